//! The frame as ProtoJSON, read and written by hand, since every message of a browser passes here.
//!
//! Owns the members of a frame's object. It must never let in what the protobuf side could not write.

use std::sync::Arc;

use super::protojson::{Fault, Members, ProtoJson, Reader, Seen};
use super::protojson::{put_base64, put_bool, put_string, put_timestamp, put_u32, put_u64};
use super::scan::{self, MAX_DEPTH, byte, skip_space};
use super::{Any, Body, Frame, Payload, Rules, Str, Types, Undecodable, wire};

impl Frame {
    /// Reads a frame as ProtoJSON. Strings without escapes, and the payload, are slices of `text`.
    #[allow(clippy::result_large_err, reason = "a frame is larger still")]
    pub fn from_json(text: &Str, rules: &Rules) -> Result<Self, Undecodable> {
        let mut reader = Reader::new(text, Some(text));
        reader.ignore_unknown = rules.ignore_unknown;
        // The frame is made where it is returned: it is large enough for moves to be felt.
        let mut result = Ok(Self::default());
        if let Ok(frame) = &mut result
            && let Err(fault) = frame.read_json(&mut reader, rules.types)
        {
            result = Err(undecodable(text, fault));
        }
        result
    }

    fn read_json(&mut self, reader: &mut Reader<'_>, types: &Types) -> Result<(), Fault> {
        let mut seen = Seen::default();
        let mut first = true;
        reader.open()?;
        while let Some(name) = reader.member(&mut first)? {
            let Some((number, field)) = field_by_name(&name) else {
                reader.unknown(&name)?;
                continue;
            };
            reader.once(&mut seen, number, field)?;
            if number < 16 {
                self.read_header(number, reader).map_err(|fault| fault.within(field))?;
            } else {
                self.read_body(number, reader, types)
                    .map_err(|fault| fault.within(field))?;
            }
        }
        reader.end()
    }

    #[inline(always)]
    fn read_header(&mut self, number: u32, reader: &mut Reader<'_>) -> Result<(), Fault> {
        if reader.null()? {
            return Ok(());
        }
        match number {
            1..=3 | 8 => {
                let text = reader.str()?;
                match number {
                    1 => self.id = text,
                    2 => self.session_id = text,
                    3 => self.r#type = text,
                    _ => self.reply_to = text,
                }
            }
            4 => self.timestamp = Some(reader.timestamp()?),
            5 => Arc::make_mut(self.from.get_or_insert_default()).read_json(reader)?,
            6 => Arc::make_mut(self.to.get_or_insert_default()).read_json(reader)?,
            7 => self.seq = reader.u64()?,
            9 => self.last = reader.bool()?,
            10 => self.ephemeral = reader.bool()?,
            11 => self.options.get_or_insert_default().read_json(reader)?,
            12 => self.attempt = reader.u32()?,
            13 => {
                let entries = reader.metadata()?;
                self.metadata = (!entries.is_empty()).then(|| Box::new(entries));
            }
            14 => self.index = Some(reader.u32()?),
            _ => self.folded_from = reader.u64()?,
        }
        Ok(())
    }

    #[inline]
    fn read_body(&mut self, number: u32, reader: &mut Reader<'_>, types: &Types) -> Result<(), Fault> {
        // `null` is a payload, and no other body.
        if number != 16 && reader.null()? {
            return Ok(());
        }
        if !matches!(self.body, Body::None) {
            return Err(Fault::malformed("a frame has one body only, and there was one already"));
        }
        self.body = match number {
            16 => Body::Payload(Payload::from_checked_text(reader.value(MAX_DEPTH)?)),
            17 => Body::Data(reader.bytes()?),
            18 => Body::Message(Box::new(types.read_json(reader)?)),
            19 => Body::Text(reader.str()?),
            22 => {
                let mut error = Box::default();
                super::pb::Error::read_json(&mut error, reader)?;
                Body::Error(error)
            }
            _ => match wire::read_control(number, reader)? {
                Some(control) => Body::Control(Box::new(control)),
                None => Body::None,
            },
        };
        Ok(())
    }

    /// Writes the frame as ProtoJSON.
    pub fn write_json(&self, out: &mut Vec<u8>, types: &Types) {
        let mut members = Members::open(out);
        put_text(&mut members, ",\"id\":", &self.id);
        put_text(&mut members, ",\"sessionId\":", &self.session_id);
        put_text(&mut members, ",\"type\":", &self.r#type);
        if let Some(timestamp) = &self.timestamp {
            put_timestamp(members.name(",\"timestamp\":"), timestamp);
        }
        if let Some(from) = &self.from {
            from.write_json(members.name(",\"from\":"));
        }
        if let Some(to) = &self.to {
            to.write_json(members.name(",\"to\":"));
        }
        if self.seq != 0 {
            put_u64(members.name(",\"seq\":"), self.seq);
        }
        put_text(&mut members, ",\"replyTo\":", &self.reply_to);
        if self.last {
            put_bool(members.name(",\"final\":"), true);
        }
        if self.ephemeral {
            put_bool(members.name(",\"ephemeral\":"), true);
        }
        if let Some(options) = &self.options {
            options.write_json(members.name(",\"options\":"));
        }
        if self.attempt != 0 {
            put_u32(members.name(",\"attempt\":"), self.attempt);
        }
        if let Some(metadata) = self.metadata.as_ref().filter(|metadata| !metadata.is_empty()) {
            put_metadata(members.name(",\"metadata\":"), metadata);
        }
        if let Some(index) = self.index {
            put_u32(members.name(",\"index\":"), index);
        }
        if self.folded_from != 0 {
            put_u64(members.name(",\"foldedFrom\":"), self.folded_from);
        }
        self.body.write_json(&mut members, types);
        members.close();
    }
}

#[inline(always)]
fn put_text(members: &mut Members<'_>, name: &'static str, text: &Str) {
    if !text.is_empty() {
        put_string(members.name(name), text);
    }
}

fn put_metadata(out: &mut Vec<u8>, entries: &[(Str, Str)]) {
    for (place, (key, value)) in entries.iter().enumerate() {
        out.push(if place == 0 { b'{' } else { b',' });
        put_string(out, key);
        out.push(b':');
        put_string(out, value);
    }
    out.push(b'}');
}

impl Body {
    #[inline]
    fn write_json(&self, members: &mut Members<'_>, types: &Types) {
        match self {
            Self::None => {}
            Self::Payload(payload) => payload.write_json(members.name(",\"payload\":")),
            Self::Data(data) => put_base64(members.name(",\"data\":"), data),
            Self::Message(any) => types.write_json(any, members.name(",\"message\":")),
            Self::Text(text) => put_string(members.name(",\"text\":"), text),
            Self::Error(error) => error.write_json(members.name(",\"error\":")),
            Self::Control(control) => {
                let out = members.name(",");
                put_string(out, control.name());
                out.push(b':');
                control.write_json(out);
            }
        }
    }
}

impl Any {
    /// Writes a message of which nothing is known but its type.
    pub(super) fn write_opaque_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"@type\":");
        put_string(out, &self.type_url);
        out.extend_from_slice(b",\"value\":");
        put_base64(out, &self.value);
        out.push(b'}');
    }
}

/// The field that a member names, in either spelling, and its canonical spelling.
#[inline]
fn field_by_name(name: &str) -> Option<(u32, &'static str)> {
    Some(match name {
        "id" => (1, "id"),
        "sessionId" | "session_id" => (2, "sessionId"),
        "type" => (3, "type"),
        "payload" => (16, "payload"),
        "text" => (19, "text"),
        "replyTo" | "reply_to" => (8, "replyTo"),
        "to" => (6, "to"),
        "timestamp" => (4, "timestamp"),
        "from" => (5, "from"),
        "seq" => (7, "seq"),
        "final" => (9, "final"),
        "ephemeral" => (10, "ephemeral"),
        "options" => (11, "options"),
        "attempt" => (12, "attempt"),
        "metadata" => (13, "metadata"),
        "index" => (14, "index"),
        "foldedFrom" | "folded_from" => (15, "foldedFrom"),
        "data" => (17, "data"),
        "message" => (18, "message"),
        "error" => (22, "error"),
        _ => return wire::control_by_name(name),
    })
}

#[cold]
fn undecodable(text: &Str, fault: Fault) -> Undecodable {
    let (id, session_id) = names_in(text);
    Undecodable {
        refusal: fault.into(),
        id,
        session_id,
    }
}

/// What can be read of the names in a frame that is not one: its members as far as they can be told apart.
#[cold]
fn names_in(text: &Str) -> (Str, Str) {
    let (mut id, mut session_id) = (Str::EMPTY, Str::EMPTY);
    let bytes = text.as_bytes();
    let mut at = skip_space(bytes, 0);
    if byte(bytes, at) != b'{' {
        return (id, session_id);
    }
    loop {
        at = skip_space(bytes, at + 1);
        let Some((name, end)) = string_at(text, at) else {
            break;
        };
        at = skip_space(bytes, end);
        if byte(bytes, at) != b':' {
            break;
        }
        at = skip_space(bytes, at + 1);
        let value = string_at(text, at).map(|(value, _)| value);
        match &*name {
            "id" => id = value.unwrap_or_default(),
            "sessionId" | "session_id" => session_id = value.unwrap_or_default(),
            _ => {}
        }
        at = skip_space(bytes, scan::pass_over(bytes, at));
        if byte(bytes, at) != b',' {
            break;
        }
    }
    (id, session_id)
}

fn string_at(text: &Str, at: usize) -> Option<(Str, usize)> {
    if byte(text.as_bytes(), at) != b'"' {
        return None;
    }
    let close = scan::string(text.as_bytes(), at + 1).ok()?.close;
    let raw = text.as_str().get(at + 1..close)?;
    let plain = match scan::unescaped(raw.as_bytes()) {
        std::borrow::Cow::Borrowed(_) => text.slice_of(raw),
        std::borrow::Cow::Owned(bytes) => Str::from(String::from_utf8(bytes).ok()?),
    };
    Some((plain, close + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use bytes::Bytes;

    #[allow(clippy::result_large_err, reason = "a frame is larger still")]
    fn read(text: &str) -> Result<Frame, Undecodable> {
        read_with(text, false)
    }

    #[allow(clippy::result_large_err, reason = "a frame is larger still")]
    fn read_with(text: &str, ignore_unknown: bool) -> Result<Frame, Undecodable> {
        Frame::from_json(
            &Str::from(text),
            &Rules {
                ignore_unknown,
                types: &Types::default(),
            },
        )
    }

    fn json(frame: &Frame) -> String {
        let mut out = Vec::new();
        frame.write_json(&mut out, &Types::default());
        String::from_utf8(out).unwrap()
    }

    fn over_the_wire(frame: &Frame) -> Frame {
        let mut out = Vec::new();
        frame.write_wire(&mut out);
        assert_eq!(out.len(), frame.wire_len());
        Frame::from_wire(
            &Bytes::from(out),
            &Rules {
                ignore_unknown: false,
                types: &Types::default(),
            },
        )
        .unwrap()
    }

    const CANONICAL: &[&str] = &[
        "{}",
        r#"{"id":"msg-123","sessionId":"sess-456","type":"query","payload":{"action":"search","query":"HEA synthesis"}}"#,
        r#"{"id":"a\"b","timestamp":"2026-01-31T12:00:00.500Z","from":{"role":"client","memberId":"m","subject":"s"},"to":{"role":"brain"},"seq":"18446744073709551615","replyTo":"r","final":true,"ephemeral":true,"options":{"timeouts":{"accept":"1.500s","total":"600s"}},"attempt":4294967295,"metadata":{"traceparent":"00-1","é":"\u0000"},"index":0,"foldedFrom":"7","text":""}"#,
        r#"{"payload":null}"#,
        r#"{"data":""}"#,
        r#"{"data":"AP8="}"#,
        r#"{"text":"a\nb"}"#,
        r#"{"message":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1.500s"}}"#,
        r#"{"message":{"@type":"type.googleapis.com/twinspan.v1.Ping","data":"x"}}"#,
        r#"{"error":{"code":"INVALID_ARGUMENT","reason":"R","message":"m","details":{"a":"1","b":"2"},"retryable":true,"retryAfter":"1s"}}"#,
        r#"{"error":{"code":99}}"#,
        r#"{"hello":{"client":"c/1","ignoreUnknown":true}}"#,
        r#"{"welcome":{"connectionId":"c","server":"s","heartbeatInterval":"15s","limits":{"frameBytes":1048576,"payloadDepth":32}}}"#,
        r#"{"join":{"role":"r","memberId":"m","afterSeq":"0","epoch":"e","tail":3,"presence":true}}"#,
        r#"{"joined":{"epoch":"e","headSeq":"5","firstSeq":"1","resumed":true,"memberId":"m","role":"r","members":[{"memberId":"m","role":"r","joinedAt":"1970-01-01T00:00:01Z"},{}],"memberCount":2,"openRequests":[{"requestId":"q","seq":"4","from":{"role":"client"},"attempt":1,"chunks":2}]}}"#,
        r#"{"leave":{}}"#,
        r#"{"left":{"error":{"code":"NOT_FOUND"}}}"#,
        r#"{"serve":{"role":"r","sessions":["a*","b"],"maxInFlight":8,"workerId":"w"}}"#,
        r#"{"serving":{"role":"r","workerId":"w","maxInFlight":8}}"#,
        r#"{"ack":{"accepted":[{"sessionId":"s","id":"i","seq":"1","duplicate":true,"replyTo":"r","index":0}]}}"#,
        r#"{"cancel":{"requestId":"q","reason":"why"}}"#,
        r#"{"cancelAck":{"requestId":"q","outcome":"CANCEL_OUTCOME_ALREADY_ENDED"}}"#,
        r#"{"gap":{"fromSeq":"1","toSeq":"2","reason":"GAP_REASON_TRIMMED","epoch":"e"}}"#,
        r#"{"presence":{"snapshot":true,"joined":[{"role":"r"}],"left":[{}],"memberCount":1}}"#,
        r#"{"ping":{"data":"x"}}"#,
        r#"{"pong":{}}"#,
        r#"{"goAway":{"error":{"code":"UNAVAILABLE"},"grace":"30s"}}"#,
        r#"{"sessionChanged":{"session":{"sessionId":"s","epoch":"e","state":"SESSION_STATE_OPEN","metadata":{"k":"v"},"createdAt":"2026-01-01T00:00:00Z","etag":"t"}}}"#,
    ];

    #[test]
    fn canonical_text_comes_back_as_it_was() {
        for text in CANONICAL {
            let frame = read(text).unwrap_or_else(|refused| panic!("{text}: {refused:?}"));
            assert_eq!(json(&frame), *text);
            let other = over_the_wire(&frame);
            assert_eq!(json(&other), *text);
            assert_eq!(other, frame);
        }
    }

    #[test]
    fn other_spellings() {
        for (text, canonical) in [
            (" {\n\"session_id\" :\t\"s\" } ", r#"{"sessionId":"s"}"#),
            (
                r#"{"\u0069d":"x","seq":12,"attempt":"3.0","index":1e1}"#,
                r#"{"id":"x","seq":"12","attempt":3,"index":10}"#,
            ),
            (
                r#"{"id":null,"to":null,"metadata":null,"text":null,"hello":null}"#,
                "{}",
            ),
            (r#"{"text":null,"data":"-_8"}"#, r#"{"data":"+/8="}"#),
            (r#"{"metadata":{},"seq":"0","final":false}"#, "{}"),
            (r#"{"go_away":{}}"#, r#"{"goAway":{}}"#),
            (
                r#"{"cancelAck":{"outcome":2}}"#,
                r#"{"cancelAck":{"outcome":"CANCEL_OUTCOME_ALREADY_ENDED"}}"#,
            ),
            (r#"{"error":{"code":0,"details":{}}}"#, r#"{"error":{}}"#),
            (
                r#"{"timestamp":"2026-01-31T12:00:00.000001+01:00"}"#,
                r#"{"timestamp":"2026-01-31T11:00:00.000001Z"}"#,
            ),
            (
                r#"{"message":{"data":"x","@type":"a/twinspan.v1.Ping"}}"#,
                r#"{"message":{"@type":"a/twinspan.v1.Ping","data":"x"}}"#,
            ),
        ] {
            assert_eq!(json(&read(text).unwrap()), canonical);
        }
    }

    #[test]
    fn refusals() {
        for (text, reason, field) in [
            ("", Reason::MalformedFrame, ""),
            ("[]", Reason::MalformedFrame, ""),
            ("{} x", Reason::MalformedFrame, ""),
            ("{\"id\":\"x\",}", Reason::MalformedFrame, ""),
            ("{,}", Reason::MalformedFrame, ""),
            (r#"{"id":1}"#, Reason::MalformedFrame, "id"),
            (r#"{"id":"a","id":"b"}"#, Reason::MalformedFrame, "id"),
            (
                r#"{"sessionId":"a","session_id":"b"}"#,
                Reason::MalformedFrame,
                "sessionId",
            ),
            (r#"{"id":"\ud800"}"#, Reason::InvalidField, "id"),
            (r#"{"Id":"a"}"#, Reason::UnknownField, "Id"),
            (
                r#"{"join":{"afterSeq":1,"after":1}}"#,
                Reason::UnknownField,
                "join.after",
            ),
            (
                r#"{"joined":{"openRequests":[{"from":{"rolle":""}}]}}"#,
                Reason::UnknownField,
                "joined.openRequests.from.rolle",
            ),
            (r#"{"text":"a","payload":1}"#, Reason::MalformedFrame, "payload"),
            (r#"{"payload":{"a":1,"a":2}}"#, Reason::InvalidPayload, "payload"),
            (r#"{"payload":[1e999]}"#, Reason::InvalidPayload, "payload"),
            (r#"{"payload":[1,]}"#, Reason::MalformedFrame, "payload"),
            (r#"{"seq":-1}"#, Reason::InvalidField, "seq"),
            (r#"{"attempt":4294967296}"#, Reason::InvalidField, "attempt"),
            (r#"{"final":"true"}"#, Reason::MalformedFrame, "final"),
            (r#"{"data":"*"}"#, Reason::InvalidField, "data"),
            (r#"{"timestamp":"yesterday"}"#, Reason::InvalidField, "timestamp"),
            (r#"{"error":{"code":"NO_SUCH"}}"#, Reason::InvalidField, "error.code"),
            (r#"{"metadata":{"a":1}}"#, Reason::MalformedFrame, "metadata.a"),
            (
                r#"{"metadata":{"a":"1","a":"2"}}"#,
                Reason::MalformedFrame,
                "metadata.a",
            ),
            (
                r#"{"serve":{"sessions":[null]}}"#,
                Reason::MalformedFrame,
                "serve.sessions",
            ),
            (r#"{"message":{"@type":"a/no.such.Type"}}"#, Reason::UnknownType, ""),
            (r#"{"message":{"x":1}}"#, Reason::InvalidField, "message"),
            (
                r#"{"message":{"@type":"a/twinspan.v1.Ping","dada":"x"}}"#,
                Reason::InvalidField,
                "message",
            ),
        ] {
            let refusal = read(text).expect_err(text).refusal;
            let named = refusal
                .details
                .iter()
                .find(|(key, _)| *key == "field")
                .map_or("", |(_, field)| field);
            assert_eq!((refusal.reason, named), (reason, field), "{text} {refusal}");
        }
    }

    #[test]
    fn what_is_unknown_can_be_ignored() {
        let text = r#"{"new":{"a":[1,{"b":null}]},"id":"x","error":{"code":"NEW","extra":1},"to":{"x":1}}"#;
        assert_eq!(
            json(&read_with(text, true).unwrap()),
            r#"{"id":"x","to":{},"error":{}}"#
        );
        assert!(read_with(r#"{"new":[1,]}"#, true).is_err());
        assert!(read_with(r#"{"new":1e999}"#, true).is_err());
        let deep = format!("{{\"new\":{}{}}}", "[".repeat(65), "]".repeat(65));
        assert!(read_with(&deep, true).is_err());
    }

    #[test]
    fn refusals_know_what_they_answer() {
        for text in [
            r#"{"what":1,"id":"i","sessionId":"s"}"#,
            r#"{"payload":{"a":[1e999,"}"],"a":1},"\u0069d":"i","session_id":"s"}"#,
            r#"{"id":"i","sessionId":"s","payload":{"#,
            r#"{"id":"i","sessionId":"s","seq":-1} "#,
        ] {
            let refused = read(text).unwrap_err();
            assert_eq!((&*refused.id, &*refused.session_id), ("i", "s"), "{text}");
        }
        let mut out = Vec::new();
        read(r#"{"id":"i","sessionId":"s"}"#).unwrap().write_wire(&mut out);
        out.splice(0..0, [0x9A, 1, 1, 0xFF]);
        let refused = Frame::from_wire(
            &Bytes::from(out),
            &Rules {
                ignore_unknown: false,
                types: &Types::default(),
            },
        )
        .unwrap_err();
        assert_eq!((&*refused.id, &*refused.session_id), ("i", "s"));
    }

    #[test]
    fn text_is_not_copied() {
        let text = Str::from(CANONICAL[1]);
        let frame = Frame::from_json(
            &text,
            &Rules {
                ignore_unknown: false,
                types: &Types::default(),
            },
        )
        .unwrap();
        let range = text.as_bytes().as_ptr_range();
        assert!(range.contains(&frame.id.as_bytes().as_ptr()));
        let Body::Payload(payload) = &frame.body else {
            panic!("no payload")
        };
        assert!(range.contains(&payload.as_json().as_ptr()));
    }
}
