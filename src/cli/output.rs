//! Writing to stdout, for people and for programs.

use std::io::{self, IsTerminal, Write};

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

/// The frame in one line for people; none for what is of no interest to them.
pub fn human(frame: &Frame) -> Option<String> {
    if let Body::Control(control) = &frame.body {
        return about(control);
    }
    let time = frame.timestamp.map(|at| at.to_string()).unwrap_or_default();
    let time = time.get(11..19).unwrap_or("--:--:--");
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
        line += &format!(" (re {}{})", frame.reply_to, if frame.last { ", final" } else { "" });
    }
    Some(format!("{line}: {}", said(&frame.body)))
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
        Control::GoAway(_) => Some("-- the gateway is about to stop".to_owned()),
        Control::SessionChanged(changed) => {
            let state = changed
                .session
                .as_ref()
                .map_or("?", |session| session.state().as_str_name());
            Some(format!(
                "-- the session changed: {}",
                state.trim_start_matches("SESSION_STATE_").to_lowercase()
            ))
        }
        _ => None,
    }
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
