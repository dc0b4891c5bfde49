//! The one table of errors: every reason the gateway can give, with what it means on each face.
//!
//! Everything inside converts to `Refusal` in the place where it knows what went wrong; everything outside (an error
//! frame, a gRPC status, a close code, an HTTP status) is derived from the reason's row here. docs/ERRORS.md is generated
//! from this table.

mod manual;

use std::fmt;
use std::time::Duration;

use crate::frame::pb::{self, Code};

pub use manual::markdown;

/// What a peer should do about its connection after an error that ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Connect again, with backoff.
    Reconnect,
    /// Do not connect again before something has been changed.
    Stop,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The stable name.
    pub name: &'static str,
    /// The gRPC code.
    pub code: Code,
    /// The WebSocket close code, where the reason can end a connection.
    pub close: Option<u16>,
    /// Whether the same thing may succeed later.
    pub retryable: bool,
    /// What it means and what to do, for the manual.
    pub text: &'static str,
}

macro_rules! reasons {
    ($($variant:ident $name:literal $code:ident $close:expr, $retry:ident, $text:literal;)*) => {
        /// Why something was refused or ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $(#[doc = $text] $variant,)* }

        impl Reason {
            /// All of them, in the order of the manual.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The reason's row.
            pub const fn row(self) -> Row {
                match self {
                    $(Reason::$variant => Row {
                        name: $name,
                        code: Code::$code,
                        close: $close,
                        retryable: reasons!(@retry $retry),
                        text: $text,
                    },)*
                }
            }
        }
    };
    (@retry retry) => { true };
    (@retry final) => { false };
}

// Close codes: 1xxx as in RFC 6455 §7.4.1; 4000 to 4499: connect again, with backoff; 4500 to 4999: do not, until something
// has been changed.
reasons! {
    MalformedFrame "MALFORMED_FRAME" InvalidArgument None, final,
        "The bytes are not a frame: not JSON, not protobuf, a field of the wrong kind. The message says where. Mend the sender.";
    UnknownField "UNKNOWN_FIELD" InvalidArgument None, final,
        "The JSON frame has a member that frames do not have; `details.field` names it. Mend the name, or have unknown members ignored (`Hello.ignore_unknown`).";
    InvalidField "INVALID_FIELD" InvalidArgument None, final,
        "A field's value is not allowed; `details.field` names it and the message says what is.";
    InvalidPayload "INVALID_PAYLOAD" InvalidArgument None, final,
        "The payload is not a JSON value that every member could read: too deep, a number that is not finite, a name twice, a lone surrogate, text that is not UTF-8. The message says where.";
    UnknownType "UNKNOWN_TYPE" InvalidArgument None, final,
        "The gateway has no descriptor for the message's @type. Give it one (setting `descriptors`), or send `payload`.";
    UnexpectedFrame "UNEXPECTED_FRAME" FailedPrecondition None, final,
        "Only the gateway sends such a frame, or it cannot be sent here or now. The message says why.";
    FrameTooLarge "FRAME_TOO_LARGE" ResourceExhausted Some(1009), final,
        "The frame is larger than `details.limit` bytes. The connection ends, since what follows cannot be told apart. Send less at once.";
    ProtocolError "PROTOCOL_ERROR" InvalidArgument Some(1002), final,
        "The peer broke the rules of WebSocket (RFC 6455). The connection ends.";
    InvalidUtf8 "INVALID_UTF8" InvalidArgument Some(1007), final,
        "A WebSocket text message is not UTF-8. The connection ends, as RFC 6455 asks.";
    Unauthenticated "UNAUTHENTICATED" Unauthenticated Some(4500), final,
        "The peer did not say who it is, or could not prove it; the message says what is wrong with what it said. Get a credential that is right.";
    TokenExpired "TOKEN_EXPIRED" Unauthenticated Some(4002), final,
        "The credential's time is over. Get a new one; connect again with it and resume, or say it in a `Hello` before the time is over.";
    TokenRevoked "TOKEN_REVOKED" Unauthenticated Some(4501), final,
        "The credential, or its subject, was revoked by an operator.";
    AuthUnavailable "AUTH_UNAVAILABLE" Unavailable Some(4003), retry,
        "The keys by which the credential is to be verified cannot be had now. Try again later.";
    TooManyRevocations "TOO_MANY_REVOCATIONS" ResourceExhausted None, final,
        "As many revocations are remembered as can be, `details.limit`, and none of them is over. Give them an `until`, and credentials a shorter life.";
    AuthTimeout "AUTH_TIMEOUT" Unauthenticated Some(4502), final,
        "The connection did not say who it is in time (`limits.auth_timeout`), or said too much before (`limits.pre_auth_bytes`). Send a credential with the handshake, or in a `Hello` before all else.";
    PermissionDenied "PERMISSION_DENIED" PermissionDenied None, final,
        "No grant of the peer allows it: `details.need` is the permission that it takes (docs/PERMISSIONS.md).";
    NameTaken "NAME_TAKEN" PermissionDenied None, final,
        "The member_id, or the worker_id, is another subject's here. Use another one.";
    SubjectChanged "SUBJECT_CHANGED" FailedPrecondition None, final,
        "A `Hello` on a connection that has an identity may renew it, not change it: the new credential is another subject's. Open another connection.";
    OriginDenied "ORIGIN_DENIED" PermissionDenied None, final,
        "A browser sent the request for a page whose origin may not use the gateway; it is answered with HTTP 403. If the page is yours, add its origin to the setting `origins`.";
    SessionNotFound "SESSION_NOT_FOUND" NotFound None, final,
        "There is no such session. Join it, publish to it or create it first.";
    SessionExists "SESSION_EXISTS" AlreadyExists None, final,
        "There is a session by that name already.";
    SessionClosed "SESSION_CLOSED" FailedPrecondition None, final,
        "The session was closed: it can be read, not written.";
    SessionDeleted "SESSION_DELETED" NotFound None, final,
        "The session was deleted while the connection was in it, or the request open.";
    NotAMember "NOT_A_MEMBER" FailedPrecondition None, final,
        "The connection is not a member of the session. Join it first.";
    MemberNotFound "MEMBER_NOT_FOUND" NotFound None, retry,
        "The session has no member by that name now.";
    MemberReplaced "MEMBER_REPLACED" Aborted None, final,
        "Another connection joined the session by the same member_id; the newer one wins.";
    AfterSeqAhead "AFTER_SEQ_AHEAD" OutOfRange None, final,
        "The log is not that long: `after_seq` is past its end. Forget what was known of the session and join from 0.";
    EpochChanged "EPOCH_CHANGED" Aborted None, final,
        "The log was lost and begun anew since the page token was made. Read from the start.";
    EtagMismatch "ETAG_MISMATCH" Aborted None, final,
        "The session was changed by somebody else meanwhile. Get it, and try again with its new etag.";
    InvalidPageToken "INVALID_PAGE_TOKEN" InvalidArgument None, final,
        "The page token is not one that this call gave out for these arguments. Read from the start.";
    RequestIdInUse "REQUEST_ID_IN_USE" AlreadyExists None, final,
        "Another sender's request with this id is open in the session. Use ids that are unique, such as UUIDs.";
    RequestNotFound "REQUEST_NOT_FOUND" NotFound None, final,
        "The session knows of no request with that id.";
    RequestEnded "REQUEST_ENDED" FailedPrecondition None, final,
        "The request is over; what is still sent for it reaches nobody.";
    NotYourRequest "NOT_YOUR_REQUEST" PermissionDenied None, final,
        "Only the worker that holds a request may answer it.";
    Superseded "SUPERSEDED" Aborted None, final,
        "The reply belongs to an attempt that is over: the request is another worker's now, or this one's anew. What is sent for it reaches nobody.";
    ChunkOutOfOrder "CHUNK_OUT_OF_ORDER" OutOfRange None, final,
        "The chunk's index is not the next one, `details.expected`: chunks before it are missing.";
    IdReused "ID_REUSED" AlreadyExists None, final,
        "The session has a frame with this id from this sender already, at `details.seq`, and it says something else. Use a new id for a new frame; to send a frame again, send the same.";
    SessionBusy "SESSION_BUSY" ResourceExhausted None, retry,
        "The session has an open request for the role, `details.request_id`, and this one was not to run beside it (`options.concurrency`).";
    NoWorker "NO_WORKER" Unavailable None, retry,
        "No worker served the role within the request's accept timeout.";
    AcceptTimeout "ACCEPT_TIMEOUT" DeadlineExceeded None, retry,
        "For the whole of the request's accept timeout every worker of the role was full, draining or silent, or the request's turn in its session did not come.";
    FirstChunkTimeout "FIRST_CHUNK_TIMEOUT" DeadlineExceeded None, retry,
        "The worker sent neither a chunk nor a final reply within the request's first_chunk timeout.";
    IdleTimeout "IDLE_TIMEOUT" DeadlineExceeded None, retry,
        "The worker sent nothing for the request within its idle timeout after the last chunk.";
    TotalTimeout "TOTAL_TIMEOUT" DeadlineExceeded None, final,
        "The request was not answered within its total timeout.";
    RequestCancelled "REQUEST_CANCELLED" Cancelled None, final,
        "A member cancelled the request.";
    RequestReplaced "REQUEST_REPLACED" Aborted None, final,
        "A newer request of the session for the same role took the request's place (`options.concurrency`).";
    AskerGone "ASKER_GONE" Cancelled None, final,
        "The member that asked was gone for longer than the request allows (`options.on_disconnect`).";
    WorkerLost "WORKER_LOST" Unavailable None, retry,
        "The worker that held the request disconnected before its final reply, and did not come back within its grace, or came back without it.";
    LeaseExpired "LEASE_EXPIRED" Unavailable None, retry,
        "The worker that held the request showed no life for its lease.";
    AttemptsExhausted "ATTEMPTS_EXHAUSTED" Aborted None, retry,
        "As many workers as may try the request (`options.max_attempts`) were lost, one after the other.";
    WorkerReplaced "WORKER_REPLACED" Aborted None, final,
        "Another connection serves the role by the same worker_id; the newer one wins.";
    WorkerNotFound "WORKER_NOT_FOUND" NotFound None, final,
        "No worker by that name serves the role.";
    TooManyConnections "TOO_MANY_CONNECTIONS" ResourceExhausted Some(1013), retry,
        "The gateway has as many connections as it may have; a WebSocket handshake is answered with HTTP 503. Try again later, or raise `limits.connections`.";
    TooManySessions "TOO_MANY_SESSIONS" ResourceExhausted None, retry,
        "The gateway has as many sessions as it may have. Delete some, or raise `limits.sessions`.";
    TooManyMembers "TOO_MANY_MEMBERS" ResourceExhausted None, retry,
        "The session has as many members as it may have (`limits.members`).";
    TooManyJoins "TOO_MANY_JOINS" ResourceExhausted None, final,
        "The connection is in as many sessions as it may be (`limits.joins`). Leave some first, or use another connection.";
    TooManyRequests "TOO_MANY_REQUESTS" ResourceExhausted None, retry,
        "The session has as many open requests as it may have (`limits.open_requests`).";
    TooManyWaiting "TOO_MANY_WAITING" ResourceExhausted None, retry,
        "As many requests wait for the role as may (`limits.waiting`). Add workers, or try again later.";
    TooManyRoles "TOO_MANY_ROLES" ResourceExhausted None, final,
        "The connection serves as many roles as it may (`limits.roles`).";
    HeartbeatTimeout "HEARTBEAT_TIMEOUT" Unavailable Some(4000), retry,
        "The peer showed no life for two heartbeat intervals. Connect again and resume.";
    Stalled "STALLED" ResourceExhausted Some(4001), retry,
        "A worker left more than `details.limit` bytes of what it was handed unread. It is disconnected, and what it held has ended.";
    ProtocolFlood "PROTOCOL_FLOOD" ResourceExhausted Some(1008), final,
        "The peer sent more WebSocket frames that carry nothing, or a message in more fragments, than `details.limit` (`details.setting`). The connection ends. Send messages whole, and pings seldom.";
    RateLimited "RATE_LIMITED" ResourceExhausted Some(4004), retry,
        "The connection sends more than `details.limit` in a second (`details.setting`). The frame or call was refused, and nothing of it has happened: send it again after `retry_after`. Who goes on regardless is disconnected, and should connect again with backoff.";
    TooManyFromAddress "TOO_MANY_FROM_ADDRESS" ResourceExhausted Some(1013), retry,
        "The client's address has as many connections as it may have (`limits.connections_per_ip`), or opens more in a second than it may (`limits.connects_per_second`); a WebSocket handshake is answered with HTTP 429. Close some, or connect again after `retry_after`.";
    TooManySockets "TOO_MANY_SOCKETS" Unavailable None, retry,
        "The gateway has as many TCP connections as it may have; HTTP 503. Try again later, or raise `limits.sockets`.";
    Overloaded "OVERLOADED" ResourceExhausted Some(1013), retry,
        "The gateway's memory is used up to `limits.memory`: nothing new is begun, what is there goes on; over HTTP, 503. Try again after `retry_after`.";
    RequestsTooLarge "REQUESTS_TOO_LARGE" ResourceExhausted None, retry,
        "The open requests of the session, or of the gateway, hold as many bytes as they may (`details.setting`). Wait for some to end, or send less in each.";
    Idle "IDLE" Unavailable Some(4005), retry,
        "The connection was in no session, served nothing and sent no frame for `limits.idle`. Connect again when there is something to do.";
    CallTimeout "CALL_TIMEOUT" DeadlineExceeded None, retry,
        "The request of the call did not arrive in full within `limits.call`. Send it again, faster.";
    Draining "DRAINING" Unavailable None, retry,
        "The gateway is about to stop and takes no new requests. Connect again.";
    Shutdown "SHUTDOWN" Unavailable Some(1012), retry,
        "The gateway stopped. Connect again.";
    LogUnavailable "LOG_UNAVAILABLE" Unavailable None, retry,
        "The session's log cannot be read or written now. What was refused can be sent again, with the same id: if it was written after all, it is not written twice.";
    LogFull "LOG_FULL" ResourceExhausted None, retry,
        "The log has no room for the frame. Nothing was changed; reading goes on. Delete sessions, or give it more room.";
    LogCorrupt "LOG_CORRUPT" DataLoss None, final,
        "What the log holds of the session cannot be read any more. An operator finds out by `twinspan check`, and mends it by `twinspan check --repair` or from a backup.";
    Internal "INTERNAL" Internal Some(1011), final,
        "A fault of the gateway, which its log tells more about.";
}

impl Reason {
    /// Whether a peer whose connection this ended should connect again.
    pub fn advice(self) -> Advice {
        match self.row().close {
            Some(1011..=1013 | 4000..=4499) => Advice::Reconnect,
            _ if self.row().retryable => Advice::Reconnect,
            _ => Advice::Stop,
        }
    }

    /// The HTTP status of the same meaning, as google.rpc.Code maps them.
    pub fn http_status(self) -> u16 {
        match self.row().code {
            // Balancers take it for what it is: not the client's fault.
            _ if self == Self::Overloaded => 503,
            Code::Ok => 200,
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
            Code::Unauthenticated => 401,
            Code::PermissionDenied => 403,
            Code::NotFound => 404,
            Code::Aborted | Code::AlreadyExists => 409,
            Code::ResourceExhausted => 429,
            Code::Cancelled => 499,
            Code::Unimplemented => 501,
            Code::Unavailable => 503,
            Code::DeadlineExceeded => 504,
            Code::Unknown | Code::Internal | Code::DataLoss => 500,
        }
    }

    /// The reason by its stable name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.row().name == name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// A typed "no": what every part of the gateway answers with when it cannot do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The row of the table.
    pub reason: Reason,
    /// For people: what was wrong here, and what to do.
    pub message: String,
    /// What the reason speaks of.
    pub details: Vec<(&'static str, String)>,
    /// Not before this long.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal with a message of its own.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            details: Vec::new(),
            retry_after: None,
        }
    }

    /// The refusal of a field's value.
    pub fn field(field: impl Into<String>, message: impl fmt::Display) -> Self {
        let field = field.into();
        Self::new(Reason::InvalidField, format!("{field}: {message}")).with("field", field)
    }

    /// The same, with one more detail.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.details.push((key, value.into()));
        self
    }

    /// The refusal of what goes beyond a limit: its value, and the setting that raises it.
    pub fn limit(reason: Reason, message: impl Into<String>, (setting, limit): (&'static str, u64)) -> Self {
        Self::new(reason, message)
            .with("limit", limit.to_string())
            .with("setting", setting)
    }

    /// The same, with when to try again.
    #[must_use]
    pub fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// As the body of an error frame.
    pub fn to_pb(&self) -> pb::Error {
        let row = self.reason.row();
        pb::Error {
            code: row.code as i32,
            reason: row.name.to_owned(),
            message: self.message.clone(),
            details: self
                .details
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
            retryable: row.retryable,
            retry_after: self
                .retry_after
                .filter(|_| row.retryable)
                .and_then(|after| prost_types::Duration::try_from(after).ok()),
        }
    }

    /// As a gRPC status with google.rpc details.
    pub fn to_status(&self) -> tonic::Status {
        use tonic_types::{ErrorDetails, StatusExt};
        let row = self.reason.row();
        let metadata: std::collections::HashMap<String, String> = self
            .details
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect();
        let mut details = ErrorDetails::with_error_info(row.name, "twinspan", metadata);
        if let Some(after) = self.retry_after.filter(|_| row.retryable) {
            details.set_retry_info(Some(after));
        }
        tonic::Status::with_error_details(tonic::Code::from(row.code as i32), self.message.clone(), details)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Refusal {}
