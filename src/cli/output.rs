//! Writing to stdout, for people and for programs.

use std::io::{self, IsTerminal, Write};

use std::time::Duration;

use super::Failure;
use crate::frame::{Body, Control, Frame, Types, pb};

/// Writes as it is, at once.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::unread()),
        Err(error) => Err(Failure::new(
            Failure::REFUSED,
            format!("stdout cannot be written: {error}"),
        )),
    }
}

/// Writes text of our own as it is.
pub fn text(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

/// Writes a line.
pub fn line(line: &str) -> Result<(), Failure> {
    text(&format!("{line}\n"))
}

/// Writes text of somebody else: a terminal is shown nothing that it would take for a command.
pub fn foreign(said: &str) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        text(&harmless(said))
    } else {
        text(said)
    }
}

fn harmless(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || *c == '\n' || *c == '\t')
        .collect()
}

/// The frame as ProtoJSON, in one line.
pub fn json(frame: &Frame) -> String {
    let mut out = Vec::new();
    frame.write_json(&mut out, &Types::default());
    String::from_utf8_lossy(&out).into_owned()
}

/// What is shown where there is nothing.
pub const NOTHING: &str = "-";

/// A time of the day, to the second.
pub fn time(at: Option<&prost_types::Timestamp>) -> String {
    let at = at.map(ToString::to_string).unwrap_or_default();
    at.get(11..19).unwrap_or("--:--:--").to_owned()
}

/// A span of time, to the millisecond.
pub fn span(span: Option<&prost_types::Duration>) -> String {
    let span = span.and_then(|span| Duration::try_from(*span).ok());
    let millis = |span: Duration| Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    span.map_or_else(|| NOTHING.to_owned(), |span| format!("{:?}", millis(span)))
}

/// An enum's value as people say it: without what all names of its type begin with.
pub fn word(name: &str, prefix: &str) -> String {
    let word = name.strip_prefix(prefix).unwrap_or(name);
    word.to_lowercase().replace('_', " ")
}

/// A table: columns as wide as they need to be.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells: Vec<_> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// The frame in one line for people; none for what is of no interest to them.
pub fn human(frame: &Frame) -> Option<String> {
    let said = match &frame.body {
        Body::Control(control) => match &**control {
            Control::Restarted(restarted) => begins_again(restarted, frame.attempt),
            other => return about(other),
        },
        body => said(body),
    };
    Some(format!("{}: {said}", header(frame)))
}

fn header(frame: &Frame) -> String {
    let time = time(frame.timestamp.as_ref());
    let mut line = match frame.seq {
        0 => format!("#-     {time}"),
        seq => format!("#{seq:<5} {time}"),
    };
    if let Some(from) = frame.from.as_deref() {
        line += &format!(" {}/{}", from.role, from.member_id);
    }
    if let Some(to) = frame.to.as_deref() {
        line += &format!(" -> {}", addressee(to));
    }
    if !frame.r#type.is_empty() {
        line += &format!(" {}", frame.r#type);
    }
    if !frame.reply_to.is_empty() {
        let last = if frame.last { ", final" } else { "" };
        let folded = match frame.folded_from {
            0 => String::new(),
            from => format!(", all from #{from}"),
        };
        line += &format!(" (re {}{last}{folded})", frame.reply_to);
    }
    line
}

fn begins_again(restarted: &pb::Restarted, attempt: u32) -> String {
    let why = restarted.error.as_ref().map_or("", |error| error.reason.as_str());
    format!("{why}: the answer begins again, attempt {attempt}; what came of it before is void")
}

fn addressee(to: &pb::Address) -> String {
    match to.member_id.is_empty() {
        true if to.multicast => format!("all {}", to.role),
        true => to.role.clone(),
        false => format!("member {}", to.member_id),
    }
}

fn said(body: &Body) -> String {
    match body {
        Body::Text(text) => escaped(text),
        Body::Payload(payload) => escaped(payload.as_json()),
        Body::Data(data) => format!("({} bytes)", data.len()),
        Body::Message(message) => format!("({})", escaped(&message.type_url)),
        Body::Error(error) => format!("{}: {}", error.reason, escaped(&error.message)),
        Body::None | Body::Control(_) => String::new(),
    }
}

/// In one line, with nothing that a terminal would take for a command.
fn escaped(text: &str) -> String {
    let escape = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escape).collect()
}

fn about(control: &Control) -> Option<String> {
    match control {
        Control::Gap(gap) if gap.reason() == pb::GapReason::EpochChanged => {
            let first = gap.to_seq + 1;
            Some(format!(
                "-- gap: the log was lost and begun anew; what is above is void, the new log begins with #{first}"
            ))
        }
        Control::Gap(gap) => {
            let why = if gap.reason() == pb::GapReason::Trimmed {
                ": retention removed them"
            } else {
                ""
            };
            Some(format!(
                "-- gap: frames {} to {} cannot be had{why}",
                gap.from_seq, gap.to_seq
            ))
        }
        Control::Left(left) => {
            let why = left
                .error
                .as_ref()
                .map_or_else(String::new, |error| format!(": {}", error.reason));
            Some(format!("-- out of the session{why}"))
        }
        Control::Retired(retired) => {
            let why = retired
                .error
                .as_ref()
                .map_or_else(String::new, |error| format!(": {}", error.reason));
            let (role, worker) = (&retired.role, &retired.worker_id);
            Some(format!("-- not the worker {worker} of the role {role} any more{why}"))
        }
        Control::RequestChanged(changed) => changed.request.as_ref().map(changed_to),
        Control::GoAway(_) => Some("-- the gateway is about to stop".to_owned()),
        Control::SessionChanged(changed) => {
            let state = changed
                .session
                .as_ref()
                .map_or("?", |session| session.state().as_str_name());
            Some(format!("-- the session changed: {}", word(state, "SESSION_STATE_")))
        }
        _ => None,
    }
}

fn changed_to(request: &pb::OpenRequest) -> String {
    let (id, state) = (&request.request_id, state(request.state()));
    match request.attempt {
        0 => format!("-- request {id} for {}: {state}", request.role),
        attempt => format!(
            "-- request {id} for {}: {state}, attempt {attempt} by {}",
            request.role, request.worker_id
        ),
    }
}

/// Where a request is, in a word.
pub fn state(state: pb::RequestState) -> String {
    word(state.as_str_name(), "REQUEST_STATE_")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn from(role: &str, member_id: &str) -> Option<Arc<pb::Address>> {
        Some(Arc::new(pb::Address {
            role: role.to_owned(),
            member_id: member_id.to_owned(),
            ..pb::Address::default()
        }))
    }

    #[test]
    fn a_frame_in_one_line() {
        let frame = Frame {
            seq: 12,
            timestamp: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 5,
            }),
            from: from("demo", "w-1"),
            r#type: "stream_chunk".into(),
            reply_to: "msg-123".into(),
            body: Body::Text("two\nlines\u{1b}[2J".into()),
            ..Frame::default()
        };
        assert_eq!(
            human(&frame).unwrap(),
            r"#12    22:13:20 demo/w-1 stream_chunk (re msg-123): two\nlines\u{1b}[2J"
        );
    }

    #[test]
    fn a_folded_frame_tells_where_it_begins() {
        let frame = Frame {
            seq: 40,
            folded_from: 12,
            reply_to: "q".into(),
            body: Body::Text("one two".into()),
            ..Frame::default()
        };
        assert_eq!(human(&frame).unwrap(), "#40    --:--:-- (re q, all from #12): one two");
    }

    #[test]
    fn an_answer_that_begins_again_is_told_in_its_place() {
        let restarted = pb::Restarted {
            error: Some(pb::Error {
                reason: "WORKER_LOST".to_owned(),
                ..pb::Error::default()
            }),
        };
        let frame = Frame {
            seq: 7,
            attempt: 2,
            reply_to: "q".into(),
            body: Body::Control(Box::new(Control::Restarted(restarted))),
            ..Frame::default()
        };
        assert_eq!(
            human(&frame).unwrap(),
            "#7     --:--:-- (re q): WORKER_LOST: the answer begins again, attempt 2; what came of it before is void"
        );
    }

    #[test]
    fn how_requests_and_workers_get_on() {
        let changed = |request| about(&Control::RequestChanged(pb::RequestChanged { request: Some(request) })).unwrap();
        let waiting = pb::OpenRequest {
            request_id: "q".to_owned(),
            role: "brain".to_owned(),
            state: pb::RequestState::Waiting.into(),
            ..pb::OpenRequest::default()
        };
        assert_eq!(changed(waiting.clone()), "-- request q for brain: waiting");
        let assigned = pb::OpenRequest {
            state: pb::RequestState::Assigned.into(),
            worker_id: "w-1".to_owned(),
            attempt: 2,
            ..waiting
        };
        assert_eq!(changed(assigned), "-- request q for brain: assigned, attempt 2 by w-1");
        let retired = pb::Retired {
            role: "brain".to_owned(),
            worker_id: "w-1".to_owned(),
            error: Some(pb::Error {
                reason: "WORKER_REPLACED".to_owned(),
                ..pb::Error::default()
            }),
        };
        assert_eq!(
            about(&Control::Retired(retired)).unwrap(),
            "-- not the worker w-1 of the role brain any more: WORKER_REPLACED"
        );
    }

    #[test]
    fn a_table_has_columns() {
        let rows = [["ROLE", "STATE"], ["brain", "ready"], ["b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "ROLE   STATE\nbrain  ready\nb\n");
    }

    #[test]
    fn spans_are_told_to_the_millisecond() {
        let of = |seconds, nanos| span(Some(&prost_types::Duration { seconds, nanos }));
        assert_eq!(of(29, 100_000_999), "29.1s");
        assert_eq!(of(0, 2_000_000), "2ms");
        assert_eq!(span(None), "-");
    }

    #[test]
    fn a_private_and_a_multicast_frame() {
        let to = |role: &str, member_id: &str, multicast| {
            let address = pb::Address {
                role: role.to_owned(),
                member_id: member_id.to_owned(),
                multicast,
                ..pb::Address::default()
            };
            human(&Frame {
                to: Some(Arc::new(address)),
                ..Frame::default()
            })
            .unwrap()
        };
        assert_eq!(to("", "m", false), "#-     --:--:-- -> member m: ");
        assert_eq!(to("r", "", true), "#-     --:--:-- -> all r: ");
        assert_eq!(to("r", "", false), "#-     --:--:-- -> r: ");
    }

    #[test]
    fn a_gap_is_told_and_the_rest_of_the_protocol_is_not() {
        let gap = pb::Gap {
            from_seq: 5,
            to_seq: 17,
            reason: pb::GapReason::Trimmed.into(),
            ..pb::Gap::default()
        };
        let anew = pb::Gap {
            reason: pb::GapReason::EpochChanged.into(),
            ..gap.clone()
        };
        let control = |control| {
            human(&Frame {
                body: Body::Control(Box::new(control)),
                ..Frame::default()
            })
        };
        assert_eq!(
            control(Control::Gap(gap)).unwrap(),
            "-- gap: frames 5 to 17 cannot be had: retention removed them"
        );
        assert!(
            control(Control::Gap(anew))
                .unwrap()
                .ends_with("the new log begins with #18")
        );
        assert_eq!(control(Control::Joined(pb::Joined::default())), None);
    }

    #[test]
    fn a_terminal_takes_no_commands_from_strangers() {
        assert_eq!(harmless("a\tb\n\u{1b}[31mc\u{7}\u{9b}"), "a\tb\n[31mc");
    }
}
