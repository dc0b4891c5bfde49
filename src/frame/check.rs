//! What names, ids, metadata and times may be.
//!
//! Owns the limits that `frame.proto` states for single fields. It must never depend on who sent a frame, or when.

use prost_types::Duration;

use super::{Body, Control, Frame, pb};
use crate::error::Refusal;

/// The longest name and id, in bytes.
const NAME_BYTES: usize = 128;
/// The most entries of metadata.
pub(super) const METADATA_ENTRIES: usize = 32;
/// The longest key of metadata, in bytes.
const KEY_BYTES: usize = 128;
/// The longest value of metadata, in bytes.
const VALUE_BYTES: usize = 4096;
/// The most that keys and values of metadata may have in all, in bytes.
const METADATA_BYTES: usize = 16 * 1024;
/// The most labels.
const LABELS: usize = 32;
/// The longest key and the longest value of a label, in bytes.
const LABEL_BYTES: usize = 63;
/// The longest span that there is, in seconds: what google.protobuf.Duration may be.
const LONGEST_SECONDS: i64 = 315_576_000_000;
/// The longest timeout, in seconds.
const TIMEOUT_SECONDS: i64 = 24 * 60 * 60;
/// The most patterns in one Serve.
const PATTERNS: usize = 32;
/// The most attempts at a request.
const ATTEMPTS: u32 = 10;
/// The longest grace of a cancel, in seconds.
pub const CANCEL_SECONDS: i64 = 60;
/// The most requests that one Serve names.
const HOLDS: usize = 1_024;
/// The role that only the gateway itself has.
const GATEWAY: &str = "gateway";

const NAME: u8 = 1;
const ID: u8 = 2;

/// What each byte may be part of.
static KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut byte = 0x21;
    while byte <= 0x7E {
        let is_name = (byte as u8).is_ascii_alphanumeric()
            || matches!(byte as u8, b'.' | b'_' | b'~' | b':' | b'@' | b'/' | b'+' | b'=' | b'-');
        kinds[byte] = if is_name { NAME | ID } else { ID };
        byte += 1;
    }
    kinds
};

fn is_all(text: &str, kind: u8) -> bool {
    text.bytes().fold(kind, |kinds, byte| kinds & KINDS[usize::from(byte)]) == kind
}

/// Checks a `session_id`, `role`, `member_id` or `worker_id`, which must not be empty.
#[inline]
pub fn check_name(field: &str, name: &str) -> Result<(), Refusal> {
    if !name.is_empty() && name.len() <= NAME_BYTES && is_all(name, NAME) {
        return Ok(());
    }
    Err(Refusal::field(
        field,
        "must be 1 to 128 characters out of A-Z a-z 0-9 . _ ~ : @ / + = -",
    ))
}

/// Whether the name fits the pattern, in which `*` stands for any characters, or none.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let head = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(head) else {
        return false;
    };
    let Some(tail) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(tail)
}

/// Checks an `id`, `type` or `request_id`, which may be empty.
#[inline]
pub fn check_id(field: &str, id: &str) -> Result<(), Refusal> {
    if id.len() <= NAME_BYTES && is_all(id, ID) {
        return Ok(());
    }
    Err(Refusal::field(
        field,
        "must be at most 128 characters of printable ASCII without spaces",
    ))
}

/// Checks metadata, or what has the same limits.
pub fn check_metadata<'a>(field: &str, entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), Refusal> {
    let (mut count, mut bytes) = (0, 0);
    for (key, value) in entries {
        count += 1;
        bytes += key.len() + value.len();
        if count > METADATA_ENTRIES {
            return Err(too_many_entries(field));
        }
        if key.is_empty() || key.len() > KEY_BYTES {
            return Err(Refusal::field(field, "keys must be 1 to 128 bytes"));
        }
        if value.len() > VALUE_BYTES {
            return Err(Refusal::field(field, "values must be at most 4096 bytes"));
        }
    }
    if bytes > METADATA_BYTES {
        return Err(Refusal::field(field, "must be at most 16 KiB in all"));
    }
    Ok(())
}

/// Checks labels, of which `check_name` is not all that there is to say: they are short.
pub fn check_labels<'a>(field: &str, entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), Refusal> {
    for (at, (key, value)) in entries.into_iter().enumerate() {
        if at == LABELS {
            return Err(too_many_entries(field));
        }
        if key.is_empty() || key.len() > LABEL_BYTES || !is_all(key, NAME) {
            let text = "keys must be 1 to 63 characters out of A-Z a-z 0-9 . _ ~ : @ / + = -";
            return Err(Refusal::field(field, text));
        }
        if value.len() > LABEL_BYTES {
            return Err(Refusal::field(
                field,
                format_args!("the value of {key} must be at most 63 bytes"),
            ));
        }
    }
    Ok(())
}

/// Checks what a session asks for of how it is kept.
pub fn check_retention(retention: &pb::Retention) -> Result<(), Refusal> {
    check_positive("retention.max_age", retention.max_age.as_ref())?;
    check_positive("retention.idle", retention.idle.as_ref())?;
    for (field, count) in [
        ("retention.max_frames", retention.max_frames),
        ("retention.max_bytes", retention.max_bytes),
    ] {
        if count == Some(0) {
            return Err(Refusal::field(field, "must be more than 0"));
        }
    }
    Ok(())
}

/// A span that may be as long as a span can be.
fn check_positive(field: &str, span: Option<&Duration>) -> Result<(), Refusal> {
    let Some(Duration { seconds, nanos }) = span else {
        return Ok(());
    };
    let is_positive = *seconds >= 0 && *nanos >= 0 && (*seconds > 0 || *nanos > 0);
    if is_positive && *seconds <= LONGEST_SECONDS && *nanos < 1_000_000_000 {
        return Ok(());
    }
    Err(Refusal::field(field, "must be more than 0 and at most 10,000 years"))
}

#[cold]
pub(super) fn too_many_entries(field: &str) -> Refusal {
    Refusal::field(field, "must have at most 32 entries")
}

/// A name that may be left out.
#[inline]
fn check_optional_name(field: &str, name: &str) -> Result<(), Refusal> {
    if name.is_empty() {
        Ok(())
    } else {
        check_name(field, name)
    }
}

fn check_role(field: &str, role: &str) -> Result<(), Refusal> {
    if role == GATEWAY {
        return Err(Refusal::field(field, "only the gateway itself has this role"));
    }
    check_optional_name(field, role)
}

fn check_length(field: &str, text: &str, most: usize) -> Result<(), Refusal> {
    if text.len() <= most {
        return Ok(());
    }
    Err(Refusal::field(field, format_args!("must be at most {most} bytes")))
}

impl Frame {
    /// Checks what the fields that a sender sets hold, each for itself. Whether they suit each other, and the moment, is for
    /// the connection to judge.
    pub fn check(&self) -> Result<(), Refusal> {
        check_id("id", &self.id)?;
        check_optional_name("session_id", &self.session_id)?;
        check_id("type", &self.r#type)?;
        check_id("reply_to", &self.reply_to)?;
        if let Some(to) = &self.to {
            check_to(to)?;
        }
        if let Some(options) = &self.options {
            check_options(options)?;
        }
        if let Some(metadata) = &self.metadata {
            check_metadata("metadata", metadata.iter().map(|(key, value)| (&**key, &**value)))?;
        }
        match &self.body {
            Body::Error(error) => check_error(error),
            Body::Control(control) => check_control(control),
            _ => Ok(()),
        }
    }
}

fn check_to(to: &pb::Address) -> Result<(), Refusal> {
    check_optional_name("to.role", &to.role)?;
    check_optional_name("to.member_id", &to.member_id)?;
    if !to.subject.is_empty() {
        return Err(Refusal::field("to.subject", "is set by the gateway alone"));
    }
    match (to.role.is_empty(), to.member_id.is_empty()) {
        (false, false) => Err(Refusal::field("to", "must have a role or a member_id, not both")),
        (true, true) => Err(Refusal::field(
            "to",
            "must have a role or a member_id; leave it out to address the session",
        )),
        (true, false) if to.multicast => Err(Refusal::field("to.multicast", "goes with a role only")),
        _ => Ok(()),
    }
}

fn check_options(options: &pb::RequestOptions) -> Result<(), Refusal> {
    if let Some(timeouts) = &options.timeouts {
        check_timeout("options.timeouts.accept", timeouts.accept.as_ref())?;
        check_timeout("options.timeouts.first_chunk", timeouts.first_chunk.as_ref())?;
        check_timeout("options.timeouts.idle", timeouts.idle.as_ref())?;
        check_timeout("options.timeouts.total", timeouts.total.as_ref())?;
    }
    check_enum::<pb::WorkerLoss>("options.on_worker_loss", options.on_worker_loss)?;
    check_enum::<pb::OnDisconnect>("options.on_disconnect", options.on_disconnect)?;
    check_enum::<pb::Concurrency>("options.concurrency", options.concurrency)?;
    check_id("options.affinity", &options.affinity)?;
    check_span(
        "options.disconnect_grace",
        options.disconnect_grace.as_ref(),
        TIMEOUT_SECONDS,
    )?;
    if options.max_attempts > ATTEMPTS {
        return Err(Refusal::field("options.max_attempts", "must be at most 10"));
    }
    if options.disconnect_grace.is_some() && options.on_disconnect() != pb::OnDisconnect::CancelAfter {
        return Err(Refusal::field(
            "options.disconnect_grace",
            "goes with on_disconnect CANCEL_AFTER only",
        ));
    }
    Ok(())
}

fn check_enum<T: TryFrom<i32>>(field: &str, value: i32) -> Result<(), Refusal> {
    match T::try_from(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(Refusal::field(field, format_args!("{value} is none of its values"))),
    }
}

/// A span that may be 0.
pub fn check_span(field: &str, span: Option<&Duration>, most_seconds: i64) -> Result<(), Refusal> {
    let Some(Duration { seconds, nanos }) = span else {
        return Ok(());
    };
    let fits = *seconds >= 0 && *nanos >= 0 && (*seconds < most_seconds || (*seconds == most_seconds && *nanos == 0));
    if fits {
        return Ok(());
    }
    Err(Refusal::field(field, format_args!("must be 0 to {most_seconds} s")))
}

fn check_timeout(field: &str, timeout: Option<&Duration>) -> Result<(), Refusal> {
    let Some(Duration { seconds, nanos }) = timeout else {
        return Ok(());
    };
    let is_positive = *seconds >= 0 && *nanos >= 0 && (*seconds > 0 || *nanos > 0);
    if is_positive && (*seconds < TIMEOUT_SECONDS || (*seconds == TIMEOUT_SECONDS && *nanos == 0)) {
        return Ok(());
    }
    Err(Refusal::field(field, "must be more than 0 and at most 24 hours"))
}

fn check_error(error: &pb::Error) -> Result<(), Refusal> {
    check_length("error.reason", &error.reason, NAME_BYTES)?;
    check_metadata(
        "error.details",
        error.details.iter().map(|(key, value)| (key.as_str(), value.as_str())),
    )
}

/// Those that only the gateway sends are not looked into: the connection refuses them.
fn check_control(control: &Control) -> Result<(), Refusal> {
    match control {
        Control::Hello(hello) => check_client(&hello.client),
        Control::Join(join) => {
            check_role("join.role", &join.role)?;
            check_optional_name("join.member_id", &join.member_id)?;
            if join.after_seq.is_some() && join.tail > 0 {
                return Err(Refusal::field("join.tail", "cannot be combined with after_seq"));
            }
            Ok(())
        }
        Control::Serve(serve) => check_serve(serve),
        Control::Cancel(cancel) => {
            if cancel.request_id.is_empty() {
                return Err(Refusal::field("cancel.request_id", "is required"));
            }
            check_id("cancel.request_id", &cancel.request_id)?;
            check_length("cancel.reason", &cancel.reason, 256)?;
            check_span("cancel.grace", cancel.grace.as_ref(), CANCEL_SECONDS)
        }
        Control::Ping(ping) => check_length("ping.data", &ping.data, 128),
        _ => Ok(()),
    }
}

fn check_client(client: &str) -> Result<(), Refusal> {
    if client.len() <= NAME_BYTES && client.bytes().all(|byte| (0x20..=0x7E).contains(&byte)) {
        return Ok(());
    }
    Err(Refusal::field(
        "hello.client",
        "must be at most 128 characters of printable ASCII",
    ))
}

fn check_serve(serve: &pb::Serve) -> Result<(), Refusal> {
    check_role("serve.role", &serve.role)?;
    if serve.role.is_empty() {
        return Err(Refusal::field("serve.role", "is required"));
    }
    check_optional_name("serve.worker_id", &serve.worker_id)?;
    check_span("serve.grace", serve.grace.as_ref(), TIMEOUT_SECONDS)?;
    if serve.grace.is_some() && serve.worker_id.is_empty() {
        return Err(Refusal::field(
            "serve.grace",
            "needs a worker_id, by which the worker comes back",
        ));
    }
    if serve.holds.len() > HOLDS {
        return Err(Refusal::field("serve.holds", "must be at most 1024 requests"));
    }
    for hold in &serve.holds {
        check_name("serve.holds.session_id", &hold.session_id)?;
        check_id("serve.holds.request_id", &hold.request_id)?;
        if hold.request_id.is_empty() {
            return Err(Refusal::field("serve.holds.request_id", "is required"));
        }
    }
    if serve.sessions.len() > PATTERNS {
        return Err(Refusal::field("serve.sessions", "must be at most 32 patterns"));
    }
    let is_pattern = |pattern: &String| {
        let fits = !pattern.is_empty() && pattern.len() <= NAME_BYTES;
        fits && pattern.split('*').all(|part| is_all(part, NAME))
    };
    if serve.sessions.iter().all(is_pattern) {
        return Ok(());
    }
    Err(Refusal::field(
        "serve.sessions",
        "must be names of sessions, in which * stands for any characters",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use crate::frame::Str;

    #[test]
    fn names() {
        for name in ["a", "a.B_9~:@/+=-", &"x".repeat(128)] {
            assert_eq!(check_name("role", name), Ok(()));
        }
        for name in ["", "a b", "a*", "é", "a\0", &"x".repeat(129)] {
            let refusal = check_name("role", name).unwrap_err();
            assert_eq!(refusal.reason, Reason::InvalidField);
            assert_eq!(refusal.details, [("field", "role".to_owned())]);
        }
        assert_eq!(check_id("id", ""), Ok(()));
        assert_eq!(check_id("id", "!\"#{}~"), Ok(()));
        assert!(
            check_id("id", "a b").is_err()
                && check_id("id", "\u{7F}").is_err()
                && check_id("id", &"x".repeat(129)).is_err()
        );
    }

    #[test]
    fn metadata() {
        assert_eq!(check_metadata("m", [("k", "v")]), Ok(()));
        let value = "v".repeat(4096);
        assert!(check_metadata("m", [("", "v")]).is_err());
        assert!(check_metadata("m", [("k", &*"v".repeat(4097))]).is_err());
        assert!(check_metadata("m", vec![("k", &*value); 4]).is_err());
        assert!(check_metadata("m", vec![("k", "v"); 33]).is_err());
    }

    fn frame(control: Control) -> Frame {
        Frame {
            body: Body::Control(Box::new(control)),
            ..Frame::default()
        }
    }

    #[test]
    fn fields_name_themselves() {
        let to = |to| Frame {
            to: Some(std::sync::Arc::new(to)),
            ..Frame::default()
        };
        let seconds = |seconds| Some(Duration { seconds, nanos: 0 });
        let total = |total| Frame {
            options: Some(Box::new(pb::RequestOptions {
                timeouts: Some(pb::Timeouts {
                    total,
                    ..pb::Timeouts::default()
                }),
                ..pb::RequestOptions::default()
            })),
            ..Frame::default()
        };
        for (frame, field) in [
            (
                Frame {
                    id: Str::from("a b"),
                    ..Frame::default()
                },
                "id",
            ),
            (
                Frame {
                    session_id: Str::from("a b"),
                    ..Frame::default()
                },
                "session_id",
            ),
            (to(pb::Address::default()), "to"),
            (
                to(pb::Address {
                    role: "a".into(),
                    member_id: "b".into(),
                    ..Default::default()
                }),
                "to",
            ),
            (
                to(pb::Address {
                    role: "a".into(),
                    subject: "b".into(),
                    ..Default::default()
                }),
                "to.subject",
            ),
            (total(seconds(0)), "options.timeouts.total"),
            (total(seconds(86_401)), "options.timeouts.total"),
            (
                frame(Control::Join(pb::Join {
                    role: "gateway".into(),
                    ..Default::default()
                })),
                "join.role",
            ),
            (
                frame(Control::Join(pb::Join {
                    after_seq: Some(0),
                    tail: 1,
                    ..Default::default()
                })),
                "join.tail",
            ),
            (frame(Control::Serve(pb::Serve::default())), "serve.role"),
            (
                frame(Control::Serve(pb::Serve {
                    role: "r".into(),
                    holds: vec![pb::Hold {
                        session_id: "no such".into(),
                        request_id: "q".into(),
                        ..Default::default()
                    }],
                    ..Default::default()
                })),
                "serve.holds.session_id",
            ),
            (frame(Control::Cancel(pb::Cancel::default())), "cancel.request_id"),
            (frame(Control::Ping(pb::Ping { data: "x".repeat(129) })), "ping.data"),
            (
                frame(Control::Hello(pb::Hello {
                    client: "\n".into(),
                    ..Default::default()
                })),
                "hello.client",
            ),
        ] {
            assert_eq!(frame.check().unwrap_err().details, [("field", field.to_owned())]);
        }
        let serve = pb::Serve {
            role: "r".into(),
            sessions: vec!["a*b*".into(), "*".into()],
            ..Default::default()
        };
        assert_eq!(frame(Control::Serve(serve)).check(), Ok(()));
        assert_eq!(total(seconds(86_400)).check(), Ok(()));
    }

    #[test]
    fn labels() {
        let long = "x".repeat(63);
        let too_long = "x".repeat(64);
        for (key, value, is_good) in [
            ("a", "", true),
            ("team/name", "anything at all, \n even ü", true),
            (long.as_str(), long.as_str(), true),
            ("", "x", false),
            ("a b", "x", false),
            ("ü", "x", false),
            (too_long.as_str(), "x", false),
            ("a", too_long.as_str(), false),
        ] {
            let checked = check_labels("labels", [(key, value)]);
            assert_eq!(checked.is_ok(), is_good, "{key:?} {value:?} {checked:?}");
        }
        let many: Vec<_> = (0..33).map(|at| at.to_string()).collect();
        let entries = |count| many[..count].iter().map(|key| (key.as_str(), ""));
        assert_eq!(check_labels("labels", entries(32)), Ok(()));
        let refused = check_labels("labels", entries(33)).unwrap_err();
        assert_eq!(refused.details, [("field", "labels".to_owned())]);
    }

    #[test]
    fn retention() {
        let span = |seconds, nanos| Some(Duration { seconds, nanos });
        let age = |max_age| pb::Retention {
            max_age,
            ..pb::Retention::default()
        };
        for good in [
            pb::Retention::default(),
            age(span(0, 1)),
            age(span(LONGEST_SECONDS, 0)),
            pb::Retention {
                max_frames: Some(1),
                max_bytes: Some(u64::MAX),
                idle: span(1, 0),
                ..pb::Retention::default()
            },
        ] {
            assert_eq!(check_retention(&good), Ok(()));
        }
        let idle = pb::Retention {
            idle: span(0, 0),
            ..pb::Retention::default()
        };
        let frames = pb::Retention {
            max_frames: Some(0),
            ..pb::Retention::default()
        };
        let bytes = pb::Retention {
            max_bytes: Some(0),
            ..pb::Retention::default()
        };
        for (bad, field) in [
            (age(span(0, 0)), "retention.max_age"),
            (age(span(-1, 0)), "retention.max_age"),
            (age(span(0, -1)), "retention.max_age"),
            (age(span(1, -1)), "retention.max_age"),
            (age(span(LONGEST_SECONDS + 1, 0)), "retention.max_age"),
            (age(span(1, 1_000_000_000)), "retention.max_age"),
            (idle, "retention.idle"),
            (frames, "retention.max_frames"),
            (bytes, "retention.max_bytes"),
        ] {
            let refused = check_retention(&bad).unwrap_err();
            assert_eq!(refused.details, [("field", field.to_owned())], "{bad:?}");
        }
    }
}
