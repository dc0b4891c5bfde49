//! What is sent, and how it is recognised when it comes back: by looking for a few marks, without decoding JSON.

use std::sync::LazyLock;
use std::time::Duration;

use memchr::memmem::{self, Finder};

use crate::Result;
use crate::fleet::{Browsers, Fleet, Message, Outgoing};

/// Is in every payload and every piece of text whose delivery is counted, once.
pub const MARK: &str = "deliver.me";

/// Bytes of JSON in a payload.
pub const PAYLOAD_BYTES: usize = 256;

/// Bytes of a streamed piece of text.
pub const TEXT_BYTES: usize = 32;

/// The role that the workers serve.
pub const ROLE: &str = "bench";

const SUBPROTOCOL: Option<&str> = Some("twinspan.v1.json");
const JOIN_LIMIT: Duration = Duration::from_secs(30);

/// Opens one WebSocket to the gateway for each session named, and waits until all have joined.
pub fn join(fleet: &mut Fleet, sessions: impl Iterator<Item = String>) -> Result<()> {
    let mut joining = Joining(0);
    for session in sessions {
        fleet.open(&format!("/v1/ws?session_id={session}"), SUBPROTOCOL)?;
        joining.0 += 1;
    }
    fleet.run(&mut joining, JOIN_LIMIT)
}

/// So many connections have not joined yet.
struct Joining(usize);

impl Browsers for Joining {
    fn message(&mut self, message: Message<'_>, _: &mut Outgoing) -> Result<()> {
        if kind(message.text)? == Kind::Joined {
            self.0 -= 1;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.0 == 0
    }

    fn missing(&self) -> String {
        format!("{} connections have not joined", self.0)
    }
}

/// A payload as browsers send it: some strings, a number, a list, an object.
pub static PAYLOAD: LazyLock<String> = LazyLock::new(|| {
    let head = format!(
        r#"{{"action":"search","query":"HEA synthesis","mark":"{MARK}","limit":25,"exact":false,"score":0.875,"#
    );
    let tail = r#""fields":["title","abstract","year"],"range":{"from":1998,"to":2024},"note":""#;
    let note = "x".repeat(PAYLOAD_BYTES - head.len() - tail.len() - 2);
    format!("{head}{tail}{note}\"}}")
});

/// A streamed piece of text.
pub static TEXT: LazyLock<String> = LazyLock::new(|| format!("{MARK:a<TEXT_BYTES$}"));

static MARKS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(MARK));
static ACKS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"accepted\""));
static REPLIES: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"replyTo\""));
static FINALS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"final\":true"));
static JOINED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"joined\""));
static ERRORS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"error\""));

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something whose delivery is counted: so many marks, which are more than one if pieces of text were folded.
    Delivery { marks: u64 },
    /// So many frames are accepted.
    Ack { accepted: u64 },
    /// The session is joined.
    Joined,
    /// Anything else that is no error.
    Other,
}

/// Tells what a message is. An error is one.
pub fn kind(message: &[u8]) -> Result<Kind> {
    let marks = MARKS.find_iter(message).count() as u64;
    if marks > 0 {
        return Ok(Kind::Delivery { marks });
    }
    if ERRORS.find(message).is_some() {
        return Err(format!("refused: {}", String::from_utf8_lossy(message)).into());
    }
    if ACKS.find(message).is_some() {
        let accepted = memmem::find_iter(message, b"\"seq\"").count() as u64;
        return Ok(Kind::Ack { accepted });
    }
    if JOINED.find(message).is_some() {
        return Ok(Kind::Joined);
    }
    Ok(Kind::Other)
}

/// Whether a message answers a request.
pub fn is_reply(message: &[u8]) -> bool {
    REPLIES.find(message).is_some()
}

/// Whether a message is the last answer to a request.
pub fn is_final(message: &[u8]) -> bool {
    FINALS.find(message).is_some()
}
