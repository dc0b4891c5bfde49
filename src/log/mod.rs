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
//! 1. Within a session, frames are appended in the order of their seqs, without holes, from where it was created to begin.
//! 2. `append` never waits, nor does anything else that returns no future. It takes the frame whole, with the note that goes
//!    with it, or refuses it whole; a refused frame has left no trace, and the next append for the session uses its seq.
//! 3. `Commit::Done` says that the frame is as durable as the store makes it. `Commit::Later` says that `settlements` will tell,
//!    in the order of the log. If a commit fails, so do all that follow it, nothing more is taken, and what the session holds is
//!    to be loaded anew, once it was unloaded.
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
//! 11. A session is created once, or loaded, before anything else is done with it, and used by one caller from then on until it
//!    is unloaded or deleted. Its data and notes are the caller's own words: the log keeps them, and does not look at them. What
//!    was written is written in the order of the calls.
//! 12. A lasting store gives back with `load`, in this process and the next, what was committed: data, notes, frames, and with
//!    `replay` what is to be known of the frames beside what they say.

mod disk;
mod folded;
mod memory;
#[cfg(test)]
pub mod suite;

use std::future::Future;
use std::io::Write;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::{Reason, Refusal};
use crate::frame::{Sealed, Str};

pub use disk::backup::{self, Contents};
#[doc(hidden)]
pub use disk::record;
pub use disk::{
    Disk, Durability, Finding, Findings, Found, OpenError, Repaired, Report, Saved, Settings, check, repair,
};
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
    /// What was written cannot be read any more.
    Corrupt(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Full(what) => Refusal::new(Reason::LogFull, format!("the log has no room: {what}")),
            Error::Unavailable(why) => {
                Refusal::new(Reason::LogUnavailable, format!("the log cannot be used now: {why}"))
            }
            Error::Corrupt(what) => Refusal::new(Reason::LogCorrupt, format!("the log is damaged: {what}")),
        }
    }
}

/// When what was written is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Now.
    Done,
    /// `settlements` will tell.
    Later,
}

/// A frame on its way into the log, with what is kept beside it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The frame, which has its `seq`.
    pub frame: Arc<Sealed>,
    /// How it is known again, if it is sent again.
    pub seen: Option<Seen>,
    /// What changes together with it.
    pub note: Option<Note>,
}

impl From<Arc<Sealed>> for Entry {
    fn from(frame: Arc<Sealed>) -> Self {
        Self {
            frame,
            seen: None,
            note: None,
        }
    }
}

/// What it takes to know a frame again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whose it is, in one word.
    pub sender: Str,
    /// A digest of what it says; nothing if that was taken in another way than it is now.
    pub substance: Option<u64>,
}

/// Something that is kept of a session beside its frames, under a number of the caller's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The number.
    pub key: u64,
    /// The caller's words; nothing removes it.
    pub content: Option<Bytes>,
}

/// What `append` did.
#[derive(Clone, Copy, Debug)]
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
    /// How many bytes, as the store counts them.
    pub bytes: usize,
}

/// What a store uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Bytes on the disk.
    pub disk_bytes: u64,
    /// Bytes that wait to be written.
    pub waiting_bytes: u64,
}

/// A session that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The number by which settlements speak of it.
    pub life: u64,
    /// What was saved of it.
    pub data: Bytes,
    /// The identity of its log's life, if that is another one than the caller knew; else empty.
    pub epoch: Str,
    /// Its notes, in the order of their numbers.
    pub notes: Vec<(u64, Bytes)>,
    /// Its oldest frame; `head + 1` if there is none.
    pub first: u64,
    /// Its newest frame, whether that is still there or not.
    pub head: u64,
}

/// A session as a lasting store knows it.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its name.
    pub session: Str,
    /// What was saved of it.
    pub data: Bytes,
    /// As in `Loaded`.
    pub epoch: Str,
    /// Its oldest and its newest frame, as in `Loaded`.
    pub first: u64,
    /// The newest.
    pub head: u64,
    /// Whether there are notes.
    pub has_notes: bool,
}

/// A frame that is read again to be remembered.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The frame.
    pub frame: Arc<Sealed>,
    /// How it is known again.
    pub seen: Option<Seen>,
}

/// What became of appends that were to be durable later, and of what was to be trimmed.
#[derive(Clone, Debug)]
pub struct Settled {
    /// The session.
    pub session: Str,
    /// Which of those that have had this name.
    pub life: u64,
    /// All up to here are durable; or, if it failed, those that are not told of yet are lost.
    pub seq: u64,
    /// The oldest frame that is left.
    pub first: u64,
    /// Whether it failed.
    pub result: Result<(), Error>,
}

/// The store's end of its settlements.
#[derive(Clone, Debug)]
pub struct Settler(mpsc::UnboundedSender<Vec<Settled>>);

impl Settler {
    /// Tells what became of appends.
    pub fn tell(&self, settled: Vec<Settled>) {
        // A caller that is gone needs no answer.
        drop(self.0.send(settled));
    }
}

/// What became of appends, in order. What waits in it is bounded by what the store has taken and not written.
#[derive(Debug)]
pub struct Settlements(mpsc::UnboundedReceiver<Vec<Settled>>);

impl Settlements {
    /// Both ends.
    pub fn new() -> (Settler, Self) {
        let (settler, settlements) = mpsc::unbounded_channel();
        (Settler(settler), Self(settlements))
    }

    /// Of a store that never has anything to tell.
    pub fn none() -> Self {
        Self::new().1
    }

    /// The next ones; nothing once the store is gone.
    pub async fn next(&mut self) -> Option<Vec<Settled>> {
        self.0.recv().await
    }
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
    /// Whether sessions outlive their callers: what is unloaded can be loaded again.
    fn is_lasting(&self) -> bool;

    /// What becomes of appends. The first caller gets it.
    fn settlements(&self) -> Settlements;

    /// A new session, with an empty log that begins with this seq: 1, but for one that is brought from elsewhere. The number by
    /// which settlements speak of it. Refused where there is one by this name.
    fn create(&self, session: &Str, data: Bytes, first: u64) -> Result<u64, Error>;

    /// Brings back a session that is not in use; nothing if there is none, or if it came into use meanwhile.
    fn load(&self, session: &Str) -> Wait<Option<Loaded>>;

    /// Lets go of a session in which nothing waits to be committed. These are the last words about it.
    fn unload(&self, session: &Str, data: Option<Bytes>);

    /// Keeps what is to be known of the session. It is written after what was appended before; the future, which need not be
    /// waited for, ends when it is durable.
    fn save(&self, session: &Str, data: Bytes) -> Result<Wait<()>, Error>;

    /// Keeps a note, or removes one, as soon as the next frame would be written.
    fn note(&self, session: &Str, note: Note) -> Result<(), Error>;

    /// Adds the next frame of the session.
    fn append(&self, session: &Str, entry: Entry) -> Result<Appended, Error>;

    /// Reads from `from` on, upwards.
    fn read(&self, session: &Str, from: u64, limit: Limit) -> Wait<Page>;

    /// Reads the newest frames within the seqs, downwards; the page is still in rising order.
    fn read_back(&self, session: &Str, seqs: Range<u64>, limit: Limit) -> Wait<Page>;

    /// As `read_back`, with what `append` was told of the frames.
    fn replay(&self, session: &Str, seqs: Range<u64>, limit: Limit) -> Wait<Vec<Replayed>>;

    /// Folds the text chunks of the request's reply from one seq to another, all of them committed. It may do so later, or never.
    fn fold(&self, session: &Str, request: &str, from: u64, to: u64);

    /// Removes the session with its frames, data and notes, whether it is in use or not. One that comes later by the same name
    /// begins with seq 1. The future, which need not be waited for, ends when that is durable.
    fn delete(&self, session: &Str) -> Result<Wait<()>, Error>;

    /// So many sessions by names that begin so and come after this one, in their order.
    fn list(&self, prefix: &str, after: &str, count: usize) -> Wait<Vec<Known>>;

    /// From now on, this is what is kept of the session, whether it has frames or not, until it is unloaded or deleted.
    fn retain(&self, session: &Str, keep: Keep);

    /// Removes what is too old by now, and what is too much; a store may do so a little later. The oldest seq that is left, or
    /// the seq of the next append if nothing is.
    fn trim(&self, session: &Str, now: SystemTime) -> u64;

    /// What it uses.
    fn usage(&self) -> Usage;

    /// Whether the store works, for the health check.
    fn check(&self) -> Result<(), Error>;

    /// Writes a copy of all that is committed now, while writes go on.
    fn backup(&self, out: Box<dyn Write + Send>) -> Wait<Contents>;

    /// Ends when all that was written before is durable.
    fn flush(&self) -> Wait<()>;

    /// The same, and lets go of whatever the store has. Nothing is written or read any more.
    fn close(&self) -> Wait<()>;
}

/// A future that is over.
pub fn ready<T: Send + 'static>(value: T) -> Wait<T> {
    Box::pin(std::future::ready(Ok(value)))
}
