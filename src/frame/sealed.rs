//! A frame that will not change any more, with its encodings.
//!
//! Owns that each encoding is made at most once, however many members it goes to. It must never hand out bytes that differ
//! from member to member.

use std::cell::RefCell;
use std::ops::Deref;
use std::sync::OnceLock;

use bytes::Bytes;

use super::{Body, Frame, Types};

/// An immutable frame, and what it looks like on both faces: messages of WebSocket, complete with their header. A server's
/// messages are not masked, so they are the same for every member.
#[derive(Debug)]
pub struct Sealed {
    frame: Frame,
    json: OnceLock<Bytes>,
    binary: OnceLock<Bytes>,
}

/// The form of a message on a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A text message of ProtoJSON.
    Json,
    /// A binary message of protobuf.
    Proto,
}

thread_local! {
    /// Where a frame is encoded before its size is known, so that what is kept has exactly the size that it needs.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A scratch buffer that grew beyond this is given back.
const SCRATCH_BYTES: usize = 256 * 1024;

impl Sealed {
    /// Seals a frame.
    pub fn new(frame: Frame) -> Self {
        Self {
            frame,
            json: OnceLock::new(),
            binary: OnceLock::new(),
        }
    }

    /// The frame.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// A complete text message of WebSocket.
    pub fn json(&self, types: &Types) -> &Bytes {
        self.json.get_or_init(|| Self::encoded(&self.frame, Form::Json, types))
    }

    /// A complete binary message of WebSocket.
    pub fn binary(&self) -> &Bytes {
        self.binary
            .get_or_init(|| message(0x82, |out| self.frame.write_wire(out)))
    }

    /// The frame as protobuf.
    pub fn wire(&self) -> Bytes {
        let message = self.binary();
        message.slice(header_len(message)..)
    }

    /// A complete message of WebSocket, for a frame that goes to one connection only.
    pub fn encoded(frame: &Frame, form: Form, types: &Types) -> Bytes {
        match form {
            Form::Json => message(0x81, |out| frame.write_json(out, types)),
            Form::Proto => message(0x82, |out| frame.write_wire(out)),
        }
    }

    /// About how many bytes of memory this takes, both encodings included, made or not: it never changes.
    pub fn size(&self) -> usize {
        let frame = &self.frame;
        let texts = [&frame.id, &frame.session_id, &frame.r#type, &frame.reply_to];
        let header = texts.iter().map(|text| text.len()).sum::<usize>();
        let metadata = frame.metadata.iter().flat_map(|entries| entries.iter());
        let metadata = metadata.map(|(key, value)| 32 + key.len() + value.len()).sum::<usize>();
        // Each is there three times: as it came, and in both encodings. Some are larger in one of them.
        let body = match &frame.body {
            Body::None => 0,
            Body::Payload(payload) => 4 * payload.given_len(),
            Body::Data(data) => 4 * data.len(),
            Body::Message(any) => 4 * any.value.len() + 3 * any.type_url.len(),
            Body::Text(text) => 3 * text.len(),
            Body::Error(error) => {
                let details = error.details.iter();
                let details = details.map(|(key, value)| 32 + key.len() + value.len()).sum::<usize>();
                256 + 3 * (error.message.len() + error.reason.len() + details)
            }
            Body::Control(_) => 1024,
        };
        size_of::<Self>() + 320 + 3 * header + 3 * metadata + body
    }
}

impl Deref for Sealed {
    type Target = Frame;
    fn deref(&self) -> &Frame {
        &self.frame
    }
}

impl From<Frame> for Sealed {
    fn from(frame: Frame) -> Self {
        Self::new(frame)
    }
}

/// Makes an unmasked, unfragmented message of WebSocket (RFC 6455 §5.2) of what `write` writes.
fn message(first: u8, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    SCRATCH.with(|scratch| {
        let Ok(mut scratch) = scratch.try_borrow_mut() else {
            return framed(first, &write_anew(write));
        };
        scratch.clear();
        write(&mut scratch);
        let message = framed(first, &scratch);
        if scratch.capacity() > SCRATCH_BYTES {
            *scratch = Vec::new();
        }
        message
    })
}

#[cold]
fn write_anew(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn framed(first: u8, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(payload.len() + 10);
    out.push(first);
    match payload.len() {
        len @ 0..126 => out.push(len as u8),
        len @ 126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    Bytes::from(out)
}

fn header_len(message: &[u8]) -> usize {
    match message.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Payload, Rules, Str};

    #[test]
    fn headers_of_every_length() {
        let types = Types::default();
        for len in [0, 10, 100, 105, 110, 120, 125, 126, 127, 65_500, 65_535, 65_536, 70_000] {
            let frame = Frame {
                body: Body::Text(Str::from("x".repeat(len))),
                ..Frame::default()
            };
            let sealed = Sealed::new(frame.clone());
            let mut json = Vec::new();
            frame.write_json(&mut json, &types);
            let message = sealed.json(&types);
            assert_eq!(message[0], 0x81);
            assert_eq!(&message[header_len(message)..], &*json);
            let declared = match message[1] {
                126 => u16::from_be_bytes([message[2], message[3]]).into(),
                127 => u64::from_be_bytes(*message[2..].first_chunk().unwrap()),
                short => short.into(),
            };
            assert_eq!(declared as usize, json.len());
            assert_eq!(sealed.binary()[0], 0x82);
            let rules = Rules {
                ignore_unknown: false,
                types: &types,
            };
            assert_eq!(Frame::from_wire(&sealed.wire(), &rules).unwrap(), frame);
            assert_eq!(Sealed::encoded(&frame, Form::Proto, &types), *sealed.binary());
        }
    }

    #[test]
    fn encodings_are_made_once() {
        let types = Types::default();
        let payload = Payload::from_json_text(Str::from("[1,2]")).unwrap();
        let sealed = Sealed::new(Frame {
            body: Body::Payload(payload),
            ..Frame::default()
        });
        let size = sealed.size();
        assert_eq!(sealed.json(&types).as_ptr(), sealed.json(&types).as_ptr());
        assert_eq!(sealed.binary().as_ptr(), sealed.binary().as_ptr());
        assert_eq!(sealed.size(), size);
    }

    #[test]
    fn frames_are_small() {
        assert!(size_of::<Frame>() <= 320, "{}", size_of::<Frame>());
    }
}
