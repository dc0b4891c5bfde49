//! What a client is told when something did not work: the gateway's typed errors, and those of the way there.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use tonic_types::StatusExt;

use crate::error::{Advice, Reason};
use crate::frame::pb::{self, Code};

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The gateway, or a worker through it.
    Gateway,
    /// The gateway could not be reached, or the connection to it was lost.
    Transport,
    /// This client: it was asked for something that cannot be.
    Usage,
}

/// What did not work.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// Who says so.
    pub origin: Origin,
    /// The canonical code.
    pub code: Code,
    /// The stable reason, as docs/ERRORS.md lists them; a worker's own otherwise. Empty where there is none.
    pub reason: String,
    /// For people.
    pub message: String,
    /// What the reason speaks of.
    pub details: BTreeMap<String, String>,
    /// Whether the same thing, done again later, may succeed.
    pub retryable: bool,
    /// Not before this long.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// The error of a caller who asks for what cannot be.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self {
            origin: Origin::Usage,
            code: Code::InvalidArgument,
            reason: String::new(),
            message: message.into(),
            details: BTreeMap::new(),
            retryable: false,
            retry_after: None,
        }
    }

    /// The connection is gone, or was never there.
    pub(super) fn transport(message: impl Into<String>) -> Self {
        Self {
            origin: Origin::Transport,
            code: Code::Unavailable,
            retryable: true,
            ..Self::usage(message)
        }
    }

    pub(super) fn unreachable(url: &str, cause: &(dyn StdError + 'static)) -> Self {
        Self::transport(format!("cannot reach the gateway at {url}: {}", cause_of(cause)))
    }

    /// The gateway's reason, if it is one that this version knows.
    pub fn known_reason(&self) -> Option<Reason> {
        Reason::by_name(&self.reason)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::Gateway if self.reason.is_empty() => write!(f, "{}: {}", self.code.as_str_name(), self.message),
            Origin::Gateway => write!(f, "{}: {}", self.reason, self.message),
            Origin::Transport | Origin::Usage => f.write_str(&self.message),
        }
    }
}

impl StdError for Error {}

impl From<pb::Error> for Error {
    fn from(error: pb::Error) -> Self {
        Self {
            origin: Origin::Gateway,
            code: error.code(),
            retry_after: error.retry_after.and_then(|after| Duration::try_from(after).ok()),
            reason: error.reason,
            message: error.message,
            details: error.details.into_iter().collect(),
            retryable: error.retryable,
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let code = Code::try_from(status.code() as i32).unwrap_or(Code::Unknown);
        let message = status.message().to_owned();
        let Some(info) = status.get_details_error_info() else {
            return Self {
                retry_after,
                ..bare(&status, code, message)
            };
        };
        let retryable = match Reason::by_name(&info.reason) {
            Some(reason) => reason.row().retryable || reason.advice() == Advice::Reconnect,
            None => code == Code::Unavailable || retry_after.is_some(),
        };
        let details = info.metadata.into_iter().collect();
        Self {
            origin: Origin::Gateway,
            code,
            reason: info.reason,
            message,
            details,
            retryable,
            retry_after,
        }
    }
}

/// A status that does not come from a gateway's table: made on this side when the connection broke, or by something between.
fn bare(status: &tonic::Status, code: Code, message: String) -> Error {
    match status.source() {
        Some(cause) => Error::transport(format!("the connection to the gateway was lost: {}", cause_of(cause))),
        None if code == Code::Unavailable => Error::transport(message),
        None => Error {
            origin: Origin::Gateway,
            code,
            ..Error::usage(message)
        },
    }
}

/// What a cause means that tells those who do not know the libraries nothing: a part of its text, and what to do.
const HINTS: [(&str, &str); 6] = [
    // A TLS alert, read as HTTP/2.
    (
        "frame with invalid size",
        "if the gateway speaks TLS, its address begins with https://",
    ),
    (
        "received corrupt message",
        "if the gateway speaks plaintext, its address begins with http://",
    ),
    (
        "UnknownIssuer",
        "the gateway's certificate comes from no root that is known here: name its root (--ca FILE)",
    ),
    (
        "CaUsedAsEndEntity",
        "the gateway shows the certificate of a root: make one that says basicConstraints=CA:FALSE",
    ),
    (
        "not valid for name",
        "the gateway's certificate is for another name: use that one in the address",
    ),
    (
        "CertificateRequired",
        "the gateway wants a certificate of the client's (--cert FILE --key FILE)",
    ),
];

fn cause_of(cause: &(dyn StdError + 'static)) -> String {
    let cause = innermost(cause).to_string();
    match HINTS.iter().find(|(text, _)| cause.contains(text)) {
        Some((_, hint)) => format!("{cause} ({hint})"),
        None => cause,
    }
}

/// The error at the bottom, which is the one that tells something: above it are "transport error" and the like.
pub(super) fn innermost<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Refusal;

    #[test]
    fn a_status_and_an_error_frame_say_the_same() {
        for reason in Reason::ALL {
            let refusal = Refusal::new(*reason, "no").with("field", "type");
            let (status, frame) = (Error::from(refusal.to_status()), Error::from(refusal.to_pb()));
            assert_eq!(status.known_reason(), Some(*reason));
            assert_eq!(status.details["field"], "type");
            let facts = |error: &Error| (error.origin, error.code, error.reason.clone(), error.details.clone());
            assert_eq!(facts(&status), facts(&frame));
            assert_eq!(frame.retryable, reason.row().retryable);
            assert_eq!(
                status.retryable,
                frame.retryable || reason.advice() == Advice::Reconnect
            );
        }
    }

    #[test]
    fn the_gateway_says_when_to_come_back() {
        let mut refusal = Refusal::new(Reason::TooManyConnections, "full");
        refusal.retry_after = Some(Duration::from_secs(3));
        assert_eq!(
            Error::from(refusal.to_status()).retry_after,
            Some(Duration::from_secs(3))
        );
        assert_eq!(Error::from(refusal.to_pb()).retry_after, Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_status_without_a_reason() {
        let lost = Error::from(tonic::Status::from_error(Box::new(std::io::Error::other(
            "reset by peer",
        ))));
        assert_eq!((lost.origin, lost.retryable), (Origin::Transport, true));
        assert_eq!(lost.message, "the connection to the gateway was lost: reset by peer");
        let wrong = Error::from(tonic::Status::unimplemented("no such method"));
        assert_eq!(
            (wrong.origin, wrong.code, wrong.retryable),
            (Origin::Gateway, Code::Unimplemented, false)
        );
        assert_eq!(wrong.to_string(), "UNIMPLEMENTED: no such method");
    }
}
