//! What a frame says, as a number: the same for two frames that say the same, so that a frame sent again is told from another
//! one that was given its id.
//!
//! Owns what "the same" is (`Frame.id` in the proto). It must never build a tree of a payload, nor be given one that was not
//! checked. The number may be kept only together with the version of how it is made, for another version may come to another
//! number. Nothing keeps a peer from making two frames with the same number, by which it fools itself and nobody else.

use std::hash::{BuildHasher, Hasher};

use foldhash::quality::{FixedState, FoldHasher};

use super::scan::{self, byte, plain_end, skip_space};
use super::transcode::{entry_parts, read_number};
use super::wire::take_part;
use super::{Body, Frame, Types, pb};

/// The version of how digests are made: two digests may be compared if theirs is the same.
pub const SUBSTANCE_VERSION: u8 = 1;

impl Frame {
    /// A digest of what the sender says: type, addressee, what it replies to and whether that ends it, and the body. A payload
    /// counts as a JSON value with numbers as doubles, a typed message as the JSON of its type, or as its bytes if that is
    /// unknown.
    pub fn substance(&self, types: &Types) -> u64 {
        let mut digest = Digest::new();
        digest.text(self.r#type.as_bytes());
        digest.text(self.reply_to.as_bytes());
        digest.bool(self.last);
        match &self.to {
            None => digest.mark(Mark::Nothing),
            Some(to) => {
                digest.text(to.role.as_bytes());
                digest.text(to.member_id.as_bytes());
                digest.bool(to.multicast);
            }
        }
        self.body.digest(&mut digest, types);
        digest.end()
    }
}

impl Body {
    fn digest(&self, digest: &mut Digest, types: &Types) {
        match self {
            Self::None => digest.mark(Mark::Nothing),
            Self::Payload(payload) => {
                digest.mark(Mark::Payload);
                payload.digest(digest);
            }
            Self::Data(data) => digest.bytes(Mark::Data, data),
            Self::Message(any) => {
                digest.bytes(Mark::Message, any.type_url.as_bytes());
                // In bytes, the entries of a map have an order, which is nobody's choice.
                let mut json = Vec::new();
                types.write_json(any, &mut json);
                digest_text(&String::from_utf8_lossy(&json), digest);
            }
            Self::Text(text) => digest.text(text.as_bytes()),
            Self::Error(error) => error.digest(digest),
            Self::Control(control) => {
                let mut wire = Vec::new();
                control.write_wire(&mut wire);
                digest.bytes(Mark::Control, &wire);
            }
        }
    }
}

impl pb::Error {
    fn digest(&self, digest: &mut Digest) {
        digest.bytes(Mark::Error, self.reason.as_bytes());
        digest.text(self.message.as_bytes());
        digest.number(f64::from(self.code));
        let mut details = Members::default();
        for (key, value) in &self.details {
            let mut detail = Digest::new();
            detail.text(key.as_bytes());
            detail.text(value.as_bytes());
            details.add(&detail);
        }
        digest.members(&details);
        digest.bool(self.retryable);
        match &self.retry_after {
            None => digest.mark(Mark::Nothing),
            Some(after) => {
                digest.word(after.seconds as u64);
                digest.word(after.nanos as u64);
            }
        }
    }
}

/// What comes next in a digest. Every value begins with one, and says how long it is or where it ends, so that no two values
/// look alike.
#[derive(Clone, Copy)]
enum Mark {
    Nothing = 1,
    Null,
    False,
    True,
    Number,
    Text,
    Array,
    ArrayEnd,
    Object,
    Payload,
    Data,
    Message,
    Error,
    Control,
}

/// A digest in the making.
pub(super) struct Digest(FoldHasher<'static>);

impl Digest {
    #[inline(always)]
    fn new() -> Self {
        Self(FixedState::default().build_hasher())
    }

    #[inline(always)]
    fn end(&self) -> u64 {
        self.0.finish()
    }

    #[inline(always)]
    fn word(&mut self, word: u64) {
        self.0.write_u64(word);
    }

    #[inline(always)]
    fn mark(&mut self, mark: Mark) {
        self.word(mark as u64);
    }

    #[inline(always)]
    fn bool(&mut self, value: bool) {
        self.mark(if value { Mark::True } else { Mark::False });
    }

    /// Numbers are compared as doubles, of which zero has no sign.
    #[inline(always)]
    fn number(&mut self, value: f64) {
        self.mark(Mark::Number);
        self.word((value + 0.0).to_bits());
    }

    #[inline(always)]
    fn bytes(&mut self, mark: Mark, bytes: &[u8]) {
        self.word((bytes.len() as u64) << 8 | mark as u64);
        self.0.write(bytes);
    }

    #[inline(always)]
    fn text(&mut self, text: &[u8]) {
        self.bytes(Mark::Text, text);
    }

    #[inline(always)]
    fn members(&mut self, members: &Members) {
        self.word(members.count << 8 | Mark::Object as u64);
        self.word(members.sum);
    }
}

/// Members of an object, which have no order: each has a digest of its own, and these are added up.
#[derive(Default)]
struct Members {
    count: u64,
    sum: u64,
}

impl Members {
    #[inline(always)]
    fn add(&mut self, member: &Digest) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(member.end());
    }
}

/// Digests a JSON value that was checked.
pub(super) fn digest_text(text: &str, digest: &mut Digest) {
    let text = text.as_bytes();
    let mut of_text = OfText {
        text,
        unescaped: Vec::new(),
    };
    of_text.value(skip_space(text, 0), digest);
}

/// The room that strings with escapes begin with; few need more.
const ROOM: usize = 4096;

struct OfText<'t> {
    text: &'t [u8],
    /// The last string with escapes, without them.
    unescaped: Vec<u8>,
}

impl OfText<'_> {
    /// Digests the value at `at`: where it ends.
    #[inline(always)]
    fn value(&mut self, at: usize, digest: &mut Digest) -> usize {
        match byte(self.text, at) {
            b'"' => self.string(at + 1, digest),
            b'{' => self.object(at, digest),
            b'[' => self.array(at, digest),
            b't' => {
                digest.mark(Mark::True);
                at + 4
            }
            b'f' => {
                digest.mark(Mark::False);
                at + 5
            }
            b'n' => {
                digest.mark(Mark::Null);
                at + 4
            }
            _ => {
                let (value, end) = read_number(self.text, at);
                digest.number(value);
                // Something that is no number must not be read for ever.
                end.max(at + 1)
            }
        }
    }

    #[inline(always)]
    fn string(&mut self, start: usize, digest: &mut Digest) -> usize {
        let close = plain_end(self.text, start);
        if byte(self.text, close) != b'"' {
            return self.string_with_escapes(start, digest);
        }
        digest.text(&self.text[start..close]);
        close + 1
    }

    #[inline(never)]
    fn string_with_escapes(&mut self, start: usize, digest: &mut Digest) -> usize {
        self.unescaped.clear();
        self.unescaped.reserve(ROOM.min(self.text.len() - start));
        let close = scan::unescape(self.text, start, &mut self.unescaped);
        digest.text(&self.unescaped);
        close + 1
    }

    #[inline(never)]
    fn array(&mut self, start: usize, digest: &mut Digest) -> usize {
        let text = self.text;
        digest.mark(Mark::Array);
        let mut at = skip_space(text, start + 1);
        while at < text.len() && byte(text, at) != b']' {
            at = skip_space(text, self.value(at, digest));
            if byte(text, at) == b',' {
                at = skip_space(text, at + 1);
            }
        }
        digest.mark(Mark::ArrayEnd);
        at + 1
    }

    #[inline(never)]
    fn object(&mut self, start: usize, digest: &mut Digest) -> usize {
        let text = self.text;
        let mut members = Members::default();
        let mut at = skip_space(text, start + 1);
        while byte(text, at) == b'"' {
            let mut member = Digest::new();
            let colon = skip_space(text, self.string(at + 1, &mut member));
            let value = skip_space(text, colon + 1);
            at = skip_space(text, self.value(value, &mut member));
            members.add(&member);
            if byte(text, at) == b',' {
                at = skip_space(text, at + 1);
            }
        }
        digest.members(&members);
        at + 1
    }
}

/// Digests a `google.protobuf.Value` that was checked.
pub(super) fn digest_wire(wire: &[u8], digest: &mut Digest) {
    OfWire(wire).value((0, wire.len()), digest);
}

/// The form is described in `transcode`.
struct OfWire<'w>(&'w [u8]);

impl OfWire<'_> {
    #[inline(always)]
    fn value(&self, (at, end): (usize, usize), digest: &mut Digest) {
        let Self(wire) = *self;
        match byte(wire, at) {
            0x11 => digest.number(f64::from_bits(scan::word(wire, at + 1).unwrap_or(0))),
            0x1A => {
                let (start, end) = take_part(wire, at + 1, end).unwrap_or_default();
                digest.text(&wire[start..end]);
            }
            0x20 => digest.bool(wire[at + 1..end].iter().any(|&byte| byte & 0x7F != 0)),
            0x2A => self.object(at, end, digest),
            0x32 => self.array(at, end, digest),
            _ => digest.mark(Mark::Null),
        }
    }

    #[inline(never)]
    fn array(&self, at: usize, end: usize, digest: &mut Digest) {
        let (mut at, end) = take_part(self.0, at + 1, end).unwrap_or_default();
        digest.mark(Mark::Array);
        while at < end {
            let Some(item) = take_part(self.0, at + 1, end) else {
                break;
            };
            self.value(item, digest);
            at = item.1;
        }
        digest.mark(Mark::ArrayEnd);
    }

    #[inline(never)]
    fn object(&self, at: usize, end: usize, digest: &mut Digest) {
        let (mut at, end) = take_part(self.0, at + 1, end).unwrap_or_default();
        let mut members = Members::default();
        while at < end {
            let Some((start, stop)) = take_part(self.0, at + 1, end) else {
                break;
            };
            let entry = entry_parts(self.0, start, stop);
            let mut member = Digest::new();
            member.text(&self.0[entry.name.0..entry.name.1]);
            self.value(entry.value, &mut member);
            members.add(&member);
            at = stop;
        }
        digest.members(&members);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::{Any, Control, Payload, Rules, Str, Types};
    use super::*;

    fn frame(body: Body) -> Frame {
        Frame {
            body,
            ..Frame::default()
        }
    }

    /// The digest of a payload of this text, which must be that of its other form.
    fn of(text: &str) -> u64 {
        let given = Payload::from_json_text(Str::from(text)).unwrap();
        let wire = Payload::from_wire_value(Bytes::copy_from_slice(given.as_wire())).unwrap();
        let digest = frame(Body::Payload(given)).substance(&Types::default());
        assert_eq!(
            frame(Body::Payload(wire)).substance(&Types::default()),
            digest,
            "{text}"
        );
        digest
    }

    #[test]
    fn values_that_are_the_same() {
        for same in [
            &["null", " null\n"][..],
            &["1", "1.0", "1e0", "10E-1", "0.1e1"],
            &["0", "-0", "-0.0", "0e5"],
            &["0.1", "0.1000", "1e-1"],
            &["9007199254740992", "9007199254740993", "9007199254740992.0"],
            &["123456789012345678901234567890", "1.2345678901234568e29"],
            &[r#""é/\n""#, r#""\u00e9\/\u000a""#, r#""\u00E9/\u000A""#],
            &[r#""😀""#, r#""\ud83d\ude00""#],
            &["[]", "[ ]"],
            &["{}", "{\t}"],
            &["[1,[2,\"3\"]]", " [ 1 , [ 2.0 , \"\\u0033\" ] ] "],
            &[
                r#"{"a":1,"b":{"c":[],"d":null},"":true}"#,
                r#"{"":true,"b":{"d":null,"c":[]},"a":1.0}"#,
                r#"{ "\u0062" : { "c" : [ ] , "d" : null } , "a" : 1 , "" : true }"#,
            ],
        ] {
            for text in same {
                assert_eq!(of(text), of(same[0]), "{text} and {}", same[0]);
            }
        }
    }

    #[test]
    fn values_that_are_not_the_same() {
        let long = "x".repeat(300);
        let texts = [
            "null",
            "true",
            "false",
            "0",
            "1",
            "-1",
            "2",
            "1e300",
            "5e-324",
            "9007199254740994",
            "[]",
            "{}",
            "[[]]",
            "[{}]",
            "[[],[]]",
            "[[[]]]",
            "[null]",
            "[null,null]",
            "[0]",
            "[1,2]",
            "[2,1]",
            "[[1],2]",
            "[[1,2]]",
            "[1,[2]]",
            "[12]",
            "[[],1]",
            "[[1]]",
            r#""""#,
            r#""1""#,
            r#""null""#,
            r#""a""#,
            r#""ab""#,
            r#"" a""#,
            r#""\u0000""#,
            r#""\u0000\u0000""#,
            r#"["a","b"]"#,
            r#"["b","a"]"#,
            r#"["ab"]"#,
            r#"["ab",""]"#,
            r#"["","ab"]"#,
            r#"{"a":"b"}"#,
            r#"{"b":"a"}"#,
            r#"{"a":1}"#,
            r#"{"a":true}"#,
            r#"{"a":null}"#,
            r#"{"":null}"#,
            r#"{"a":{}}"#,
            r#"{"a":[]}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"{"a":{"b":1}}"#,
            r#"{"b":{"a":1}}"#,
            r#"{"a":{"b":1},"c":{}}"#,
            r#"{"a":{},"c":{"b":1}}"#,
            r#"[{"a":1},{"b":2}]"#,
            r#"[{"b":2},{"a":1}]"#,
            r#"[{"a":1,"b":2}]"#,
            r#"{"a":[1],"b":[]}"#,
            r#"{"a":[],"b":[1]}"#,
            r#"["a",1]"#,
            r#"["a",[1]]"#,
        ];
        let mut texts: Vec<_> = texts.map(str::to_owned).into();
        texts.extend([format!("\"{long}\""), format!("\"{long}x\""), format!("\"y{long}\"")]);
        let digests: HashMap<_, _> = texts.iter().map(|text| (of(text), text)).collect();
        for text in &texts {
            assert_eq!(digests[&of(text)], text);
        }
    }

    #[test]
    fn other_spellings_of_the_wire_are_the_same() {
        for (wire, json) in [
            (&[0x2A, 9, 0x0A, 7, 0x12, 2, 0x20, 1, 0x0A, 1, b'a'][..], "{\"a\":true}"),
            (&[0x2A, 6, 0x0A, 4, 0x12, 2, 0x20, 0], "{\"\":false}"),
            (&[0x1A, 0x81, 0x80, 0x00, b'x'], "\"x\""),
            (&[0x20, 0x80, 0x02], "true"),
            (&[0x08, 0x80, 0x00], "null"),
            (&[0x11, 0, 0, 0, 0, 0, 0, 0, 0x80], "0"),
        ] {
            let payload = Payload::from_wire_value(Bytes::copy_from_slice(wire)).unwrap();
            assert_eq!(
                frame(Body::Payload(payload)).substance(&Types::default()),
                of(json),
                "{json}"
            );
        }
    }

    fn error(change: impl FnOnce(&mut pb::Error)) -> Frame {
        let mut error = pb::Error::default();
        change(&mut error);
        frame(Body::Error(Box::new(error)))
    }

    fn to(role: &str, member_id: &str, multicast: bool) -> Frame {
        Frame {
            to: Some(Arc::new(pb::Address {
                role: role.to_owned(),
                member_id: member_id.to_owned(),
                multicast,
                ..pb::Address::default()
            })),
            ..Frame::default()
        }
    }

    fn message(type_url: &'static str, value: &'static [u8]) -> Frame {
        frame(Body::Message(Box::new(Any {
            type_url: Str::from_static(type_url),
            value: Bytes::from_static(value),
        })))
    }

    fn after(seconds: i64, nanos: i32) -> Frame {
        error(|error| error.retry_after = Some(prost_types::Duration { seconds, nanos }))
    }

    #[test]
    fn frames_that_are_not_the_same() {
        let payload = |text: &'static str| {
            let payload = Payload::from_json_text(Str::from_static(text)).unwrap();
            frame(Body::Payload(payload))
        };
        let detail = |key: &str, value: &str| {
            let details = HashMap::from([(key.to_owned(), value.to_owned())]);
            error(|error| error.details = details)
        };
        let frames = [
            Frame::default(),
            Frame {
                r#type: Str::from_static("a"),
                ..Frame::default()
            },
            Frame {
                reply_to: Str::from_static("a"),
                ..Frame::default()
            },
            Frame {
                last: true,
                ..Frame::default()
            },
            to("a", "", false),
            to("a", "", true),
            to("", "a", false),
            frame(Body::Text(Str::EMPTY)),
            frame(Body::Text(Str::from_static("a"))),
            frame(Body::Data(Bytes::new())),
            frame(Body::Data(Bytes::from_static(b"a"))),
            payload("null"),
            payload("\"\""),
            payload("\"a\""),
            message("", b""),
            message("", b"a"),
            message("a", b""),
            error(|_| ()),
            error(|error| error.code = 3),
            error(|error| error.reason = "a".to_owned()),
            error(|error| error.message = "a".to_owned()),
            error(|error| error.retryable = true),
            after(0, 0),
            after(1, 0),
            after(0, 1),
            detail("a", "b"),
            detail("b", "a"),
            detail("", "ab"),
            frame(Body::Control(Box::new(Control::Ping(pb::Ping::default())))),
            frame(Body::Control(Box::new(Control::Pong(pb::Pong::default())))),
        ];
        let digests: HashSet<_> = frames.iter().map(|frame| frame.substance(&Types::default())).collect();
        assert_eq!(digests.len(), frames.len());
    }

    #[test]
    fn what_a_retry_may_change_does_not_count() {
        let types = Types::default();
        let rules = Rules {
            ignore_unknown: false,
            types: &types,
        };
        let read = |text| Frame::from_json(&Str::from_static(text), &rules).unwrap();
        let first = read(r#"{"id":"a","type":"t","to":{"role":"r"},"payload":{"a":1,"b":[]}}"#);
        let again = read(
            r#"{"payload":{"b":[],"a":1.0},"id":"b","sessionId":"s","type":"t","seq":"7","attempt":2,"index":3,
                "timestamp":"2026-01-01T00:00:00Z","from":{"role":"x"},"to":{"role":"r"},"metadata":{"traceparent":"00"},
                "options":{"timeouts":{"total":"1s"}},"ephemeral":true,"foldedFrom":"1"}"#,
        );
        assert_eq!(first.substance(&Types::default()), again.substance(&Types::default()));
    }

    /// Digests are kept on disk, so that a frame that is sent again after a restart is known.
    #[test]
    fn digests_of_a_version_stay() {
        let payload = Payload::from_json_text(Str::from_static("{\"a\":[1,null,\"x\"]}")).unwrap();
        let frames = [
            Frame::default(),
            frame(Body::Payload(payload)),
            frame(Body::Text(Str::from_static("a"))),
            frame(Body::Data(Bytes::from_static(b"some more than sixteen bytes"))),
            message("type.googleapis.com/acme.v1.Order", b"\x08\x01"),
            error(|error| error.reason = "a".to_owned()),
            to("brain", "b-1", true),
        ];
        let digests = [
            0x9C7B2F7B47505EE2,
            0xFEF457FA2D0E9124,
            0x191F632EA4C4008F,
            0xEC2F72029F811771,
            0x17F7A0B1421F91A1,
            0x1A09DDC5F2BEFEFD,
            0x5BBA40657F361AE8,
        ];
        assert_eq!(
            (
                SUBSTANCE_VERSION,
                frames.map(|frame| frame.substance(&Types::default()))
            ),
            (1, digests),
            "a digest is made in another way: raise SUBSTANCE_VERSION"
        );
    }

    #[test]
    fn details_have_no_order() {
        let pairs: Vec<_> = (0..32).map(|place| (place.to_string(), "x".to_owned())).collect();
        let of = |pairs: Vec<(String, String)>| {
            error(|error| error.details = pairs.into_iter().collect()).substance(&Types::default())
        };
        let reversed = pairs.iter().rev().cloned().collect();
        assert_eq!(of(pairs), of(reversed));
    }
}
