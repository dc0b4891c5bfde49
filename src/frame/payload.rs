//! The payload: any JSON value, kept as it arrived.
//!
//! Owns the choice between the two forms of a value: the one in which it came, and the other one, made when it is first
//! asked for. It must never hold a value that has not been checked, nor build a tree of one.

use std::fmt;
use std::sync::OnceLock;

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, Message};

use super::protojson::Fault;
use super::scan::{self, Checker, MAX_DEPTH};
use super::substance::{self, Digest};
use super::wire::{self, put_varint, put_varint_at, varint_len};
use super::{Str, transcode};
use crate::error::Refusal;

/// `google.protobuf.Value`: JSON text, or the protobuf of a Value, or both.
#[derive(Clone)]
pub struct Payload {
    form: Form,
    given: Bytes,
    /// The value in the other form.
    made: OnceLock<Box<Bytes>>,
}

/// The form in which a value came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Wire,
}

impl Payload {
    fn new(form: Form, given: Bytes) -> Self {
        Self {
            form,
            given,
            made: OnceLock::new(),
        }
    }

    /// The JSON value null.
    pub const fn null() -> Self {
        Self {
            form: Form::Text,
            given: Bytes::from_static(b"null"),
            made: OnceLock::new(),
        }
    }

    /// Takes a JSON value, if everybody could read it.
    pub fn from_json_text(text: Str) -> Result<Self, Refusal> {
        let start = scan::skip_space(text.as_bytes(), 0);
        let end = Checker::new(&text).value(start, MAX_DEPTH).map_err(Fault::payload)?;
        if scan::skip_space(text.as_bytes(), end) < text.len() {
            return Err(Fault::payload(scan::flaw(scan::What::Trailing, end)).into());
        }
        Ok(Self::from_checked_text(text.slice_of(&text[start..end])))
    }

    /// Takes a `google.protobuf.Value`, if everybody could read it.
    pub fn from_wire_value(wire: Bytes) -> Result<Self, Refusal> {
        wire::check_value(&wire, MAX_DEPTH).map_err(Fault::payload)?;
        Ok(Self::from_checked_wire(wire))
    }

    pub(super) fn from_checked_text(text: Str) -> Self {
        Self::new(Form::Text, text.into_bytes())
    }

    pub(super) fn from_checked_wire(wire: Bytes) -> Self {
        Self::new(Form::Wire, wire)
    }

    /// From a tree. A number that is not finite cannot be in one; one that is too deep is refused.
    pub fn from_serde(value: &serde_json::Value) -> Result<Self, Refusal> {
        Self::from_json_text(Str::from(value.to_string()))
    }

    /// As a tree.
    pub fn to_serde(&self) -> serde_json::Value {
        serde_json::from_str(self.as_json()).unwrap_or_default()
    }

    /// As JSON.
    pub fn as_json(&self) -> &str {
        let text = match self.form {
            Form::Text => &self.given,
            Form::Wire => self.made(),
        };
        // SAFETY: `given` is a checked `Str` where the form is text. What is made of a checked Value consists of strings that
        // were checked to be UTF-8, each of them whole, between ASCII.
        #[allow(unsafe_code, reason = "checked once, not at each look")]
        unsafe {
            std::str::from_utf8_unchecked(text)
        }
    }

    /// As a `google.protobuf.Value`.
    pub fn as_wire(&self) -> &[u8] {
        match self.form {
            Form::Text => self.made(),
            Form::Wire => &self.given,
        }
    }

    /// The text that was given, if it was text; if not, what was given is `as_wire`.
    pub(crate) fn given_json(&self) -> Option<&str> {
        (self.form == Form::Text).then(|| self.text())
    }

    fn made(&self) -> &Bytes {
        self.made.get_or_init(|| {
            let mut out = Vec::with_capacity(self.given.len() + self.given.len() / 4 + 16);
            match self.form {
                Form::Text => {
                    transcode::to_wire(self.text(), 0, &mut out);
                }
                Form::Wire => transcode::to_text(&self.given, &mut out),
            }
            out.shrink_to_fit();
            Box::new(Bytes::from(out))
        })
    }

    /// What was given, where that is text.
    fn text(&self) -> &str {
        debug_assert_eq!(self.form, Form::Text);
        // SAFETY: as in `as_json`: where the form is text, what was given is a `Str`.
        #[allow(unsafe_code, reason = "checked once, not at each look")]
        unsafe {
            std::str::from_utf8_unchecked(&self.given)
        }
    }

    /// Writes the value as JSON, without keeping what it makes.
    #[inline]
    pub(super) fn write_json(&self, out: &mut Vec<u8>) {
        match (self.form, self.made.get()) {
            (Form::Text, _) => out.extend_from_slice(&self.given),
            (Form::Wire, Some(made)) => out.extend_from_slice(made),
            (Form::Wire, None) => transcode::to_text(&self.given, out),
        }
    }

    /// Writes the value's length and the value as protobuf, without keeping what it makes.
    #[inline]
    pub(super) fn write_wire_with_length(&self, out: &mut Vec<u8>) {
        let ready = match (self.form, self.made.get()) {
            (Form::Wire, _) => &self.given,
            (Form::Text, Some(made)) => &**made,
            (Form::Text, None) => return self.transcode_with_length(out),
        };
        put_varint(out, ready.len() as u64);
        out.extend_from_slice(ready);
    }

    fn transcode_with_length(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        let guess = varint_len(self.given.len() as u64);
        out.extend_from_slice(&[0; 10][..guess]);
        transcode::to_wire(self.text(), 0, out);
        let len = out.len() - begin - guess;
        let width = varint_len(len as u64);
        if width != guess {
            let end = out.len();
            if width > guess {
                out.resize(end + width - guess, 0);
            }
            out.copy_within(begin + guess..end, begin + width);
            out.truncate(begin + width + len);
        }
        put_varint_at(out, begin, len as u64);
    }

    /// Adds what the value says to a digest, whichever form it came in.
    pub(super) fn digest(&self, digest: &mut Digest) {
        match self.form {
            Form::Text => substance::digest_text(self.text(), digest),
            Form::Wire => substance::digest_wire(&self.given, digest),
        }
    }

    /// How many bytes were given.
    pub(super) fn given_len(&self) -> usize {
        self.given.len()
    }
}

impl Default for Payload {
    fn default() -> Self {
        Self::null()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_json())
    }
}

/// Whether the two are the same value as everybody sees it: the same members in the same order, numbers as doubles, of which
/// zero has no sign.
impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        if self.form == other.form && self.given == other.given {
            return true;
        }
        // There is more than one way to write a value in either form, but only one is ours.
        let canonical = |payload: &Self| {
            let (mut wire, mut text) = (Vec::new(), Vec::new());
            transcode::to_wire(payload.as_json(), 0, &mut wire);
            transcode::to_text(&wire, &mut text);
            text
        };
        canonical(self) == canonical(other)
    }
}

/// A Value inside a generated message. `merge_field` sees one field at a time, so a second kind replaces the first.
impl Message for Payload {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(self.as_wire());
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        _ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let mut wire = Vec::new();
        put_varint(&mut wire, u64::from(tag) << 3 | wire_type as u64);
        let body = match wire_type {
            WireType::Varint => {
                put_varint(&mut wire, prost::encoding::decode_varint(buf)?);
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => {
                let len = prost::encoding::decode_varint(buf)?;
                put_varint(&mut wire, len);
                usize::try_from(len).unwrap_or(usize::MAX)
            }
            _ => {
                return Err(wire::decode_error(Fault::payload(scan::flaw(scan::What::Field, 0))));
            }
        };
        if body > buf.remaining() {
            return Err(wire::decode_error(Fault::payload(scan::flaw(scan::What::Length, 0))));
        }
        wire.reserve(body);
        wire.put(buf.take(body));
        wire::check_value(&wire, MAX_DEPTH).map_err(|flaw| wire::decode_error(Fault::payload(flaw)))?;
        *self = Self::from_checked_wire(Bytes::from(wire));
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.as_wire().len()
    }

    fn clear(&mut self) {
        *self = Self::null();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    fn payload(text: &str) -> Payload {
        Payload::from_json_text(Str::from(text)).unwrap()
    }

    #[test]
    fn both_forms() {
        let given = payload(" {\"a\": [1, 2.5]} ");
        assert_eq!(given.as_json(), "{\"a\": [1, 2.5]}");
        let other = Payload::from_wire_value(Bytes::copy_from_slice(given.as_wire())).unwrap();
        assert_eq!(other.as_json(), "{\"a\":[1,2.5]}");
        assert_eq!(given, other);
        assert_ne!(given, payload("{\"a\":[1,2]}"));
        assert_eq!(payload("[-0, 1e2]"), payload("[0,100]"));
        assert_eq!(Payload::decode(&*given.encode_to_vec()).unwrap(), given);
        assert_eq!(given.to_serde(), serde_json::json!({"a": [1, 2.5]}));
        assert_eq!(Payload::from_serde(&given.to_serde()).unwrap(), given);
        assert_eq!(Payload::default().as_json(), "null");
    }

    #[test]
    fn refusals_say_where() {
        let refusal = Payload::from_json_text(Str::from("[1e999]")).unwrap_err();
        assert_eq!(refusal.reason, Reason::InvalidPayload);
        assert!(refusal.message.contains("byte 1"), "{refusal}");
        assert!(Payload::from_json_text(Str::from("1 2")).is_err());
        assert!(Payload::from_wire_value(Bytes::new()).is_err());
    }

    #[test]
    fn the_wire_is_checked() {
        let nan = [&[0x11][..], &f64::NAN.to_le_bytes()].concat();
        let twice = [
            0x2A, 18, 0x0A, 7, 0x0A, 1, b'a', 0x12, 2, 0x20, 1, 0x0A, 7, 0x0A, 1, b'a', 0x12, 2, 0x20, 0,
        ];
        for (wire, what) in [
            (&[][..], "kind"),
            (&nan, "finite"),
            (&[0x1A, 1, 0xFF], "UTF-8"),
            (&[0x1A, 2, b'a'], "length"),
            (&[0x08, 0, 0x08, 0], "kind"),
            (&[0x08, 1], "kind"),
            (&[0x0B, 0x0C], "unknown"),
            (&[0x32, 2, 0x0A, 0], "kind"),
            (&[0x2A, 2, 0x0A, 0], "kind"),
            (&[0x2A, 2, 0x10, 0], "unknown"),
            (&twice, "twice"),
            (
                &[0x20, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F],
                "varint",
            ),
            (
                &[0x1A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
                "length",
            ),
        ] {
            let refusal = Payload::from_wire_value(Bytes::copy_from_slice(wire)).unwrap_err();
            assert!(refusal.message.contains(what), "{wire:?} {refusal}");
        }
    }

    #[test]
    fn other_spellings_of_the_wire_are_read() {
        // The value before the name, no name at all, lengths with more bytes than they need.
        for (wire, json) in [
            (&[0x2A, 9, 0x0A, 7, 0x12, 2, 0x20, 1, 0x0A, 1, b'a'][..], "{\"a\":true}"),
            (&[0x2A, 6, 0x0A, 4, 0x12, 2, 0x20, 0], "{\"\":false}"),
            (&[0x1A, 0x81, 0x80, 0x00, b'x'], "\"x\""),
            (&[0x20, 0x80, 0x02], "true"),
        ] {
            assert_eq!(
                Payload::from_wire_value(Bytes::copy_from_slice(wire))
                    .unwrap()
                    .as_json(),
                json
            );
        }
    }

    #[test]
    fn lengths_of_every_width() {
        for size in (100..140).chain(16_370..16_400) {
            for json in [
                format!("\"{}\"", "x".repeat(size)),
                format!("[{}]", vec!["1"; size / 6].join(",")),
            ] {
                let payload = payload(&json);
                let mut out = b"before".to_vec();
                payload.write_wire_with_length(&mut out);
                let (value, end) = wire::take_len(&out, 6).unwrap();
                assert_eq!((value, end), (payload.as_wire(), out.len()));
            }
        }
    }
}
