//! The log: where a session's frames are kept. This page is the contract; `suite` (in the tests of this module) holds every
//! store to it.
//!
//! ```text
//!            first                    committed          head
//!   trimmed  |                        |                  |
//!   . . . . .[ 5 ][ 6 ][ 7 ][ 8 ][ 9 ][10 ]( 11 )( 12 )( 13 )
//!             ^ can be read            ^    ^ appended, not yet durable: nobody may see them
//! ```
//!
//! 1. Within a session, frames are appended in the order of their seqs, without holes, from 1 in a new epoch.
//! 2. `append` never waits, nor do `retain` and `trim`. It takes the frame whole or refuses it whole; a refused frame has left no trace, and the next
//!    append for the session uses its seq.
//! 3. `Commit::Done` says that the frame is as durable as the store makes it. `Commit::Later` says that it will be when the
//!    future ends; commits of a session end in the order of their appends. If one fails, so do all that follow it, and what
//!    the session holds is to be read from the log anew.
//! 4. `read` returns committed frames in order, from the one that was asked for, or from the first that is left if that was
//!    trimmed; a page is never empty unless there is nothing from there on. `read_back` does the same from the end of a range.
//! 5. Only whole prefixes are trimmed: `first` never falls, and everything from `first` to the committed end can be read.
//!    A session is kept as the settings say, or as `retain` said last. What is too much of it, by count or by bytes, goes when
//!    the next frame is appended or with `trim`, and never its newest frame. What is too old goes at the same moments: at an
//!    append what is too old by the new frame's timestamp, with `trim` by the time that is given, and then the newest frame
//!    too may go. `trim` leaves what is not durable, and everything from the first frame on that is not too old; one without a
//!    timestamp never is. If nothing is left, `first` is the seq of the next append, also in the pages that are read.
//! 6. A page read while frames are appended or trimmed is a prefix of what a later read would return; while chunks are
//!    folded, it says the same as such a prefix.
//! 7. Sessions do not disturb each other: what is refused for one may be taken for another.
//! 8. `fold` has the store keep the text chunks of a reply, by attempt, as few texts, whatever frames are in between. Head,
//!    `first`, all other frames, and what a reader can make of the chunks stay the same.
//! 9. Folded chunks are read as one frame for each stretch of them that no other frame is within:
//!
//! ```text
//!   appended   [ 5 q ][ 6 a"w" ][ 7 a"x" ][ 8 event ][ 9 a"y" ][10 a"z" ][11 a final ]
//!   read       [ 5 q ][   6-7 a"wx"      ][ 8 event ][   9-10 a"yz"     ][11 a final ]
//!   from 7 on          [ 7 a"x" ][ 8 event ][   9-10 a"yz"     ][11 a final ]
//! ```
//!
//!    So no frame stands for anything before the one that it follows, and whoever stops after any frame, and goes on after its
//!    seq, misses nothing and has nothing twice.
//! 10. What is read, from either side, and what is trimmed may end within such a stretch: the part of it that is asked for, or
//!    left, is read as if it were all, with the text, the index and the timestamp that belong to it.

mod folded;
mod memory;
#[cfg(test)]
pub mod suite;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::error::{Reason, Refusal};
use crate::frame::{Sealed, Str};

pub use memory::{Memory, Retention};

/// A future that a store hands out.
pub type Wait<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// Why a store refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no room: `what` is full. Reading goes on.
    Full(String),
    /// The store does not work now.
    Unavailable(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Full(what) => Refusal::new(Reason::LogFull, format!("the log has no room: {what}")),
            Error::Unavailable(why) => {
                Refusal::new(Reason::LogUnavailable, format!("the log cannot be used now: {why}"))
            }
        }
    }
}

/// When an appended frame is durable.
pub enum Commit {
    /// Now.
    Done,
    /// When this ends.
    Later(Wait<()>),
}

/// What `append` did.
pub struct Appended {
    /// When the frame is durable.
    pub commit: Commit,
    /// The session's oldest frame now.
    pub first: u64,
}

/// What is kept of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// How long a frame.
    pub age: Duration,
    /// How many frames.
    pub frames: usize,
    /// How many bytes, as `Sealed::size` counts.
    pub bytes: usize,
}

/// How much to read at once.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Frames.
    pub frames: usize,
    /// Bytes, as `Sealed::size` counts; the page may exceed them by one frame.
    pub bytes: usize,
}

/// Committed frames, in order.
#[derive(Debug, Default)]
pub struct Page {
    /// The frames.
    pub frames: Vec<Arc<Sealed>>,
    /// The session's oldest frame at the time of reading.
    pub first: u64,
}

/// Where sessions' frames are kept. The module's doc is the contract.
pub trait Log: Send + Sync + 'static {
    /// Adds the next frame of the session, which has its `seq`.
    fn append(&self, session: &Str, frame: &Arc<Sealed>) -> Result<Appended, Error>;

    /// Reads from `from` on, upwards.
    fn read(&self, session: &Str, from: u64, limit: Limit) -> Wait<Page>;

    /// Reads the newest frames within the seqs, downwards; the page is still in rising order.
    fn read_back(&self, session: &Str, seqs: Range<u64>, limit: Limit) -> Wait<Page>;

    /// Folds the text chunks of the request's reply from one seq to another, all of them committed. It may do so later.
    fn fold(&self, session: &Str, request: &str, from: u64, to: u64);

    /// From now on, this is what is kept of the session, whether it has frames or not, until it is deleted. The store may forget
    /// it when the process ends.
    fn retain(&self, session: &Str, keep: Keep);

    /// Removes what is too old by now, and what is too much. The oldest seq that is left, or the seq of the next append if
    /// nothing is.
    fn trim(&self, session: &Str, now: SystemTime) -> u64;

    /// Removes the session's frames. A session that comes later by the same name begins with seq 1.
    fn delete(&self, session: &Str);

    /// Whether the store works, for the health check.
    fn check(&self) -> Result<(), Error>;
}
