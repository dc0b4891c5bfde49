//! The frame as protobuf.
//!
//! Owns the wire format: varints, the check of every Value that is let in, reading and writing of frames. It must never let
//! in what the JSON side could not write.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, Message};

use super::protojson::{Fault, ProtoJson, check_timestamp};
use super::scan::{self, Flaw, MAX_DEPTH, Names, What, flaw};
use super::{Any, Body, Control, Frame, Payload, Rules, Str, Types, Undecodable, check, pb, transcode};

/// How many bytes a varint takes.
#[inline(always)]
pub(super) fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Writes a varint.
#[inline(always)]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a varint over what is there.
#[inline]
pub(super) fn put_varint_at(out: &mut [u8], mut at: usize, mut value: u64) {
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
}

/// Reads a varint, if it ends and fits into 64 bits: its value, and where it ends.
#[inline(always)]
pub(crate) fn take_varint(wire: &[u8], at: usize) -> Option<(u64, usize)> {
    match wire.get(at) {
        Some(&first) if first < 0x80 => Some((u64::from(first), at + 1)),
        _ => take_long_varint(wire, at),
    }
}

#[inline(never)]
fn take_long_varint(wire: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (place, &byte) in wire.get(at..)?.iter().take(10).enumerate() {
        if place == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7F) << (7 * place);
        if byte < 0x80 {
            return Some((value, at + place + 1));
        }
    }
    None
}

/// Reads a length and what it speaks of: that, and where it ends.
#[inline(always)]
pub(super) fn take_len(wire: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let (start, end) = take_part(wire, at, wire.len())?;
    Some((wire.get(start..end)?, end))
}

/// Reads a length and finds what it speaks of, which must end within `limit`: where it begins and ends.
#[inline(always)]
pub(super) fn take_part(wire: &[u8], at: usize, limit: usize) -> Option<(usize, usize)> {
    let (len, start) = take_varint(wire, at)?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    (end <= limit).then_some((start, end))
}

/// Whether a part of the bytes is text.
#[inline(always)]
fn is_text(wire: &[u8], start: usize, end: usize) -> bool {
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let len = end - start;
    if len < 8 {
        return scan::short_part(wire, start, len) & HIGHS == 0 || is_any_text(wire, start, end);
    }
    if len <= 32 {
        let word = |at| scan::word(wire, at).unwrap_or(HIGHS);
        let mut any = word(end - 8);
        let mut at = start;
        while at + 8 < end {
            any |= word(at);
            at += 8;
        }
        if any & HIGHS == 0 {
            return true;
        }
    }
    is_any_text(wire, start, end)
}

#[inline(never)]
fn is_any_text(wire: &[u8], start: usize, end: usize) -> bool {
    wire.get(start..end)
        .is_some_and(|bytes| std::str::from_utf8(bytes).is_ok())
}

/// Checks a `google.protobuf.Value`: exactly one kind, UTF-8, finite numbers, no name twice, at most `depth` levels.
pub(super) fn check_value(wire: &[u8], depth: u32) -> Result<(), Flaw> {
    let mut checker = ValueChecker {
        wire,
        names: Names::new(),
    };
    checker.value(0, wire.len(), depth)
}

struct ValueChecker<'w> {
    wire: &'w [u8],
    names: Names,
}

impl ValueChecker<'_> {
    /// Checks the Value between two places.
    #[inline(always)]
    fn value(&mut self, at: usize, end: usize, depth: u32) -> Result<(), Flaw> {
        let wire = self.wire;
        if at >= end {
            return Err(flaw(What::Kind, at));
        }
        let stop = match scan::byte(wire, at) {
            0x11 => self.number(at)?,
            0x1A => {
                let (start, stop) = self.part(at, end)?;
                if !is_text(wire, start, stop) {
                    return Err(flaw(What::Utf8, start));
                }
                stop
            }
            0x08 | 0x20 => self.varint(at)?,
            0x2A => self.fields(at, end, depth)?,
            0x32 => self.list(at, end, depth)?,
            _ => return Err(flaw(What::Field, at)),
        };
        if stop == end {
            Ok(())
        } else {
            Err(flaw(What::Kind, stop))
        }
    }

    #[inline(always)]
    fn part(&self, at: usize, end: usize) -> Result<(usize, usize), Flaw> {
        take_part(self.wire, at + 1, end).ok_or_else(|| flaw(What::Length, at))
    }

    #[inline(always)]
    fn number(&self, at: usize) -> Result<usize, Flaw> {
        let Some(bits) = scan::word(self.wire, at + 1) else {
            return Err(flaw(What::Length, at));
        };
        if !f64::from_bits(bits).is_finite() {
            return Err(flaw(What::NotFinite, at));
        }
        Ok(at + 9)
    }

    #[inline(always)]
    fn varint(&self, at: usize) -> Result<usize, Flaw> {
        let (value, stop) = take_varint(self.wire, at + 1).ok_or_else(|| flaw(What::Varint, at))?;
        if value != 0 && self.wire[at] == 0x08 {
            return Err(flaw(What::Kind, at));
        }
        Ok(stop)
    }

    #[inline(never)]
    fn list(&mut self, at: usize, end: usize, depth: u32) -> Result<usize, Flaw> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(flaw(What::TooDeep, at));
        };
        let (mut at, end) = self.part(at, end)?;
        while at < end {
            if scan::byte(self.wire, at) != 0x0A {
                return Err(flaw(What::Field, at));
            }
            let (start, stop) = self.part(at, end)?;
            self.value(start, stop, depth)?;
            at = stop;
        }
        Ok(end)
    }

    #[inline(never)]
    fn fields(&mut self, at: usize, end: usize, depth: u32) -> Result<usize, Flaw> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(flaw(What::TooDeep, at));
        };
        let (begin, end) = self.part(at, end)?;
        let open = self.names.open();
        let mut certain = true;
        let mut at = begin;
        while at < end {
            if scan::byte(self.wire, at) != 0x0A {
                return Err(flaw(What::Field, at));
            }
            let (start, stop) = self.part(at, end)?;
            let entry = self.entry(start, stop)?;
            if !is_text(self.wire, entry.name.0, entry.name.1) {
                return Err(flaw(What::Utf8, entry.name.0));
            }
            let name_len = entry.name.1 - entry.name.0;
            certain &= self.names.add(open, self.wire, entry.name.0, name_len);
            self.value(entry.value.0, entry.value.1, depth)?;
            at = stop;
        }
        self.names.close(open);
        if !certain && scan::any_twice(names_of(&self.wire[begin..end])) {
            return Err(flaw(What::Duplicate, begin));
        }
        Ok(end)
    }

    /// The name and the value of an entry: each at most once.
    #[inline(always)]
    fn entry(&self, at: usize, end: usize) -> Result<Entry, Flaw> {
        if let Some(entry) = take_entry(self.wire, at, end) {
            return Ok(entry);
        }
        self.unusual_entry(at, end)
    }

    #[inline(never)]
    fn unusual_entry(&self, mut at: usize, end: usize) -> Result<Entry, Flaw> {
        let (mut name, mut value) = (None, None);
        while at < end {
            let part = match scan::byte(self.wire, at) {
                0x0A => &mut name,
                0x12 => &mut value,
                _ => return Err(flaw(What::Field, at)),
            };
            let found = self.part(at, end)?;
            if part.replace(found).is_some() {
                return Err(flaw(What::Field, at));
            }
            at = found.1;
        }
        Ok(Entry {
            name: name.unwrap_or((end, end)),
            value: value.unwrap_or((end, end)),
        })
    }
}

/// Where the name and the value of a Struct's entry begin and end.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub name: (usize, usize),
    pub value: (usize, usize),
}

/// An entry as everybody writes it: name, value, nothing else.
#[inline(always)]
pub(super) fn take_entry(wire: &[u8], at: usize, end: usize) -> Option<Entry> {
    if scan::byte(wire, at) != 0x0A {
        return None;
    }
    let name = take_part(wire, at + 1, end)?;
    if scan::byte(wire, name.1) != 0x12 {
        return None;
    }
    let value = take_part(wire, name.1 + 1, end)?;
    (value.1 == end).then_some(Entry { name, value })
}

#[cold]
fn names_of(fields: &[u8]) -> Vec<std::borrow::Cow<'_, [u8]>> {
    let mut names = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = take_part(fields, at + 1, fields.len()) {
        let name = transcode::entry_parts(fields, start, end).name;
        names.push(fields[name.0..name.1].into());
        at = end;
    }
    names
}

/// A field as it stands on the wire.
enum Raw<'b> {
    Varint(u64),
    /// A part of the buffer, and the buffer.
    Len(&'b [u8], &'b Bytes),
    /// Four or eight bytes, which no field of a frame is.
    Fixed,
}

impl Frame {
    /// Reads a frame as protobuf. Its text and bytes are slices of `bytes`.
    #[allow(clippy::result_large_err, reason = "a frame is larger still")]
    pub fn from_wire(bytes: &Bytes, rules: &Rules) -> Result<Self, Undecodable> {
        // The frame is made where it is returned: it is large enough for moves to be felt.
        let mut result = Ok(Self::default());
        if let Ok(frame) = &mut result
            && let Err(fault) = frame.merge_wire(bytes, Some(rules.types))
        {
            result = Err(undecodable(bytes, fault));
        }
        result
    }

    fn merge_wire(&mut self, bytes: &Bytes, types: Option<&Types>) -> Result<(), Fault> {
        let mut at = 0;
        while at < bytes.len() {
            let (number, raw, end) = take_field(bytes, at).map_err(Fault::from)?;
            self.set(number, raw, types)?;
            at = end;
        }
        Ok(())
    }

    /// Sets one field. Every way in goes through here.
    #[inline]
    fn set(&mut self, number: u64, raw: Raw<'_>, types: Option<&Types>) -> Result<(), Fault> {
        match (number, raw) {
            (1, Raw::Len(part, whole)) => self.id = text(part, whole, "id")?,
            (2, Raw::Len(part, whole)) => self.session_id = text(part, whole, "sessionId")?,
            (3, Raw::Len(part, whole)) => self.r#type = text(part, whole, "type")?,
            (4, Raw::Len(part, _)) => {
                merge(self.timestamp.get_or_insert_default(), part, "timestamp")?;
                check_timestamp(self.timestamp.as_ref()).map_err(|fault| fault.within("timestamp"))?;
            }
            (5, Raw::Len(part, _)) => merge(Arc::make_mut(self.from.get_or_insert_default()), part, "from")?,
            (6, Raw::Len(part, _)) => merge(Arc::make_mut(self.to.get_or_insert_default()), part, "to")?,
            (7, Raw::Varint(value)) => self.seq = value,
            (8, Raw::Len(part, whole)) => self.reply_to = text(part, whole, "replyTo")?,
            (9, Raw::Varint(value)) => self.last = value != 0,
            (10, Raw::Varint(value)) => self.ephemeral = value != 0,
            (11, Raw::Len(part, _)) => merge_checked(&mut **self.options.get_or_insert_default(), part, "options")?,
            // Like every protobuf library, what is too large for 32 bits loses its upper ones.
            (12, Raw::Varint(value)) => self.attempt = value as u32,
            (13, Raw::Len(part, whole)) => self.set_metadata(part, whole)?,
            (14, Raw::Varint(value)) => self.index = Some(value as u32),
            (15, Raw::Varint(value)) => self.folded_from = value,
            (16..=19 | 22 | 32..=51, Raw::Len(part, whole)) => self.set_body(number, part, whole, types)?,
            (1..=19 | 22 | 32..=51, _) => {
                return Err(Fault::malformed("a field has the wrong wire type").within(field_name(number)));
            }
            _ => {}
        }
        Ok(())
    }

    fn set_metadata(&mut self, part: &[u8], whole: &Bytes) -> Result<(), Fault> {
        let whole_entry = whole.slice_ref(part);
        let (mut key, mut value) = (Str::EMPTY, Str::EMPTY);
        let mut at = 0;
        while at < part.len() {
            let (number, raw, end) = take_field(&whole_entry, at).map_err(Fault::from)?;
            match (number, raw) {
                (1, Raw::Len(part, whole)) => key = text(part, whole, "metadata")?,
                (2, Raw::Len(part, whole)) => value = text(part, whole, "metadata")?,
                (1 | 2, _) => {
                    return Err(Fault::malformed("a field has the wrong wire type").within("metadata"));
                }
                _ => {}
            }
            at = end;
        }
        let entries = self.metadata.get_or_insert_default();
        // They are few enough for this search to stay cheap.
        match entries.iter().position(|(known, _)| *known == key) {
            Some(place) => entries[place].1 = value,
            None if entries.len() >= check::METADATA_ENTRIES => {
                return Err(check::too_many_entries("metadata").into());
            }
            None => entries.push((key, value)),
        }
        Ok(())
    }

    fn set_body(&mut self, number: u64, part: &[u8], whole: &Bytes, types: Option<&Types>) -> Result<(), Fault> {
        self.body = match number {
            16 => {
                check_value(part, MAX_DEPTH).map_err(|flaw| Fault::payload(flaw).within("payload"))?;
                Body::Payload(Payload::from_checked_wire(whole.slice_ref(part)))
            }
            17 => Body::Data(slice(part, whole)),
            18 => {
                let mut any = Any::default();
                any.merge_wire(part, whole)?;
                if let Some(types) = types {
                    types.check(&any)?;
                }
                Body::Message(Box::new(any))
            }
            19 => Body::Text(text(part, whole, "text")?),
            22 => {
                let mut error = Box::<pb::Error>::default();
                merge_checked(&mut *error, part, "error")?;
                Body::Error(error)
            }
            _ => match control(number, part)? {
                Some(control) => Body::Control(Box::new(control)),
                None => return Ok(()),
            },
        };
        Ok(())
    }
}

impl Any {
    fn merge_wire(&mut self, part: &[u8], whole: &Bytes) -> Result<(), Fault> {
        let part = whole.slice_ref(part);
        let mut at = 0;
        while at < part.len() {
            let (number, raw, end) = take_field(&part, at).map_err(Fault::from)?;
            match (number, raw) {
                (1, Raw::Len(url, whole)) => self.type_url = text(url, whole, "message")?,
                (2, Raw::Len(value, whole)) => self.value = slice(value, whole),
                (1 | 2, _) => {
                    return Err(Fault::malformed("a field has the wrong wire type").within("message"));
                }
                _ => {}
            }
            at = end;
        }
        Ok(())
    }

    fn wire_len(&self) -> usize {
        len_of_bytes(1, &self.type_url.as_bytes()[..]) + len_of_bytes(1, &self.value)
    }

    fn write_wire(&self, out: &mut Vec<u8>) {
        put_bytes(out, 0x0A, self.type_url.as_bytes());
        put_bytes(out, 0x12, &self.value);
    }
}

/// Reads one field: its number, what it holds, and where it ends.
#[inline(always)]
fn take_field(bytes: &Bytes, at: usize) -> Result<(u64, Raw<'_>, usize), Flaw> {
    let (key, start) = take_varint(bytes, at).ok_or_else(|| flaw(What::Varint, at))?;
    let number = key >> 3;
    if number == 0 || number >= 1 << 29 {
        return Err(flaw(What::WireType, at));
    }
    match key & 7 {
        0 => take_varint(bytes, start)
            .map(|(value, end)| (number, Raw::Varint(value), end))
            .ok_or_else(|| flaw(What::Varint, at)),
        2 => take_len(bytes, start)
            .map(|(part, end)| (number, Raw::Len(part, bytes), end))
            .ok_or_else(|| flaw(What::Length, at)),
        fixed @ (1 | 5) => {
            let end = start + if fixed == 1 { 8 } else { 4 };
            if end > bytes.len() {
                Err(flaw(What::Length, at))
            } else {
                Ok((number, Raw::Fixed, end))
            }
        }
        _ => Err(flaw(What::WireType, at)),
    }
}

#[cold]
fn undecodable(bytes: &Bytes, fault: Fault) -> Undecodable {
    let (id, session_id) = names_in(bytes);
    Undecodable {
        refusal: fault.into(),
        id,
        session_id,
    }
}

/// What can be read of the names in a frame that is not one.
fn names_in(bytes: &Bytes) -> (Str, Str) {
    let (mut id, mut session_id) = (Str::EMPTY, Str::EMPTY);
    let mut at = 0;
    while at < bytes.len() {
        let Ok((number, raw, end)) = take_field(bytes, at) else {
            break;
        };
        match (number, raw) {
            (1, Raw::Len(part, whole)) => id = text(part, whole, "id").unwrap_or_default(),
            (2, Raw::Len(part, whole)) => session_id = text(part, whole, "sessionId").unwrap_or_default(),
            _ => {}
        }
        at = end;
    }
    (id, session_id)
}

#[inline(always)]
fn slice(part: &[u8], whole: &Bytes) -> Bytes {
    if part.is_empty() {
        Bytes::new()
    } else {
        whole.slice_ref(part)
    }
}

#[inline(always)]
fn text(part: &[u8], whole: &Bytes, field: &'static str) -> Result<Str, Fault> {
    if !is_text(part, 0, part.len()) {
        return Err(Fault::malformed(What::Utf8.text()).within(field));
    }
    Ok(Str::from_checked(slice(part, whole)))
}

fn merge(message: &mut impl Message, part: &[u8], field: &'static str) -> Result<(), Fault> {
    message
        .merge(part)
        .map_err(|error| Fault::malformed(error.to_string()).within(field))
}

/// Reads a message that may hold what JSON cannot write: times out of range.
fn merge_checked(message: &mut impl ProtoJson, part: &[u8], field: &'static str) -> Result<(), Fault> {
    merge(message, part, field)?;
    message.check().map_err(|fault| fault.within(field))
}

macro_rules! controls {
    ($($number:literal $variant:ident $json:literal $proto:literal;)*) => {
        fn control(number: u64, part: &[u8]) -> Result<Option<Control>, Fault> {
            match number {
                $($number => {
                    let mut message = pb::$variant::default();
                    merge_checked(&mut message, part, $json)?;
                    Ok(Some(Control::$variant(message)))
                })*
                _ => Ok(None),
            }
        }

        /// The number of the body that a member of JSON names, in either spelling, and its canonical spelling.
        pub(super) fn control_by_name(name: &str) -> Option<(u32, &'static str)> {
            match name {
                $($json => Some(($number, $json)),)*
                // Those of one word have been found already.
                $(#[allow(unreachable_patterns, reason = "names of one word have one spelling")]
                $proto => Some(($number, $json)),)*
                _ => None,
            }
        }

        /// A body that is empty yet, by its number.
        pub(super) fn read_control(number: u32, reader: &mut super::protojson::Reader<'_>) -> Result<Option<Control>, Fault> {
            match number {
                $($number => {
                    let mut message = pb::$variant::default();
                    message.read_json(reader)?;
                    Ok(Some(Control::$variant(message)))
                })*
                _ => Ok(None),
            }
        }

        impl Control {
            /// The name of the body, as JSON spells it.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $json,)*
                }
            }

            fn wire_len(&self) -> usize {
                match self {
                    $(Self::$variant(message) => len_of_message(2, message.encoded_len()),)*
                }
            }

            pub(super) fn write_wire(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(message) => put_message(out, $number << 3 | 2, message),)*
                }
            }

            pub(super) fn write_json(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(message) => message.write_json(out),)*
                }
            }
        }
    };
}

controls! {
    32 Hello "hello" "hello";
    33 Welcome "welcome" "welcome";
    34 Join "join" "join";
    35 Joined "joined" "joined";
    36 Leave "leave" "leave";
    37 Left "left" "left";
    38 Serve "serve" "serve";
    39 Serving "serving" "serving";
    40 Ack "ack" "ack";
    41 Cancel "cancel" "cancel";
    42 CancelAck "cancelAck" "cancel_ack";
    43 Gap "gap" "gap";
    44 Presence "presence" "presence";
    45 Ping "ping" "ping";
    46 Pong "pong" "pong";
    47 GoAway "goAway" "go_away";
    48 SessionChanged "sessionChanged" "session_changed";
    49 Restarted "restarted" "restarted";
    50 Retired "retired" "retired";
    51 RequestChanged "requestChanged" "request_changed";
}

fn field_name(number: u64) -> &'static str {
    const HEADER: [&str; 16] = [
        "",
        "id",
        "sessionId",
        "type",
        "timestamp",
        "from",
        "to",
        "seq",
        "replyTo",
        "final",
        "ephemeral",
        "options",
        "attempt",
        "metadata",
        "index",
        "foldedFrom",
    ];
    match number {
        0..=15 => HEADER[number as usize],
        16 => "payload",
        17 => "data",
        18 => "message",
        19 => "text",
        22 => "error",
        _ => "body",
    }
}

fn len_of_bytes(key: usize, bytes: &[u8]) -> usize {
    if bytes.is_empty() {
        0
    } else {
        len_of_message(key, bytes.len())
    }
}

fn len_of_message(key: usize, len: usize) -> usize {
    key + varint_len(len as u64) + len
}

fn len_of_varint(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

/// Writes a field of text or bytes, unless it is empty.
#[inline(always)]
fn put_bytes(out: &mut Vec<u8>, key: u8, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    if bytes.len() < 0x80 {
        out.extend_from_slice(&[key, bytes.len() as u8]);
    } else {
        out.push(key);
        put_varint(out, bytes.len() as u64);
    }
    out.extend_from_slice(bytes);
}

/// Writes a field of text or bytes of which it counts that it is there.
fn put_body(out: &mut Vec<u8>, key: u64, bytes: &[u8]) {
    put_varint(out, key);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_message(out: &mut Vec<u8>, key: u64, message: &impl Message) {
    put_varint(out, key);
    put_varint(out, message.encoded_len() as u64);
    message.encode_raw(out);
}

#[inline(always)]
fn put_number(out: &mut Vec<u8>, key: u8, value: u64) {
    if value != 0 {
        out.push(key);
        put_varint(out, value);
    }
}

fn put_entry(out: &mut Vec<u8>, key: &Str, value: &Str) {
    out.push(13 << 3 | 2);
    put_varint(
        out,
        (len_of_bytes(1, key.as_bytes()) + len_of_bytes(1, value.as_bytes())) as u64,
    );
    put_bytes(out, 0x0A, key.as_bytes());
    put_bytes(out, 0x12, value.as_bytes());
}

impl Frame {
    /// Writes the frame as protobuf, its fields in the order of their numbers.
    pub fn write_wire(&self, out: &mut Vec<u8>) {
        put_bytes(out, 1 << 3 | 2, self.id.as_bytes());
        put_bytes(out, 2 << 3 | 2, self.session_id.as_bytes());
        put_bytes(out, 3 << 3 | 2, self.r#type.as_bytes());
        if let Some(timestamp) = &self.timestamp {
            let (seconds, nanos) = (timestamp.seconds as u64, i64::from(timestamp.nanos) as u64);
            out.extend_from_slice(&[4 << 3 | 2, (len_of_varint(seconds) + len_of_varint(nanos)) as u8]);
            put_number(out, 1 << 3, seconds);
            put_number(out, 2 << 3, nanos);
        }
        if let Some(from) = &self.from {
            put_message(out, 5 << 3 | 2, &**from);
        }
        if let Some(to) = &self.to {
            put_message(out, 6 << 3 | 2, &**to);
        }
        put_number(out, 7 << 3, self.seq);
        put_bytes(out, 8 << 3 | 2, self.reply_to.as_bytes());
        put_number(out, 9 << 3, u64::from(self.last));
        put_number(out, 10 << 3, u64::from(self.ephemeral));
        if let Some(options) = &self.options {
            put_message(out, 11 << 3 | 2, &**options);
        }
        put_number(out, 12 << 3, u64::from(self.attempt));
        for (key, value) in self.metadata.iter().flat_map(|entries| entries.iter()) {
            put_entry(out, key, value);
        }
        if let Some(index) = self.index {
            out.push(14 << 3);
            put_varint(out, u64::from(index));
        }
        put_number(out, 15 << 3, self.folded_from);
        self.body.write_wire(out);
    }

    /// How many bytes `write_wire` writes.
    pub fn wire_len(&self) -> usize {
        let texts = [&self.id, &self.session_id, &self.r#type, &self.reply_to];
        let messages = [
            self.timestamp.as_ref().map(Message::encoded_len),
            self.from.as_ref().map(|from| from.encoded_len()),
            self.to.as_ref().map(|to| to.encoded_len()),
            self.options.as_ref().map(|options| options.encoded_len()),
        ];
        let numbers = [
            self.seq,
            u64::from(self.last),
            u64::from(self.ephemeral),
            u64::from(self.attempt),
            self.folded_from,
        ];
        let metadata = self.metadata.iter().flat_map(|entries| entries.iter());
        texts
            .into_iter()
            .map(|text| len_of_bytes(1, text.as_bytes()))
            .sum::<usize>()
            + messages
                .into_iter()
                .flatten()
                .map(|len| len_of_message(1, len))
                .sum::<usize>()
            + numbers.into_iter().map(len_of_varint).sum::<usize>()
            + metadata
                .map(|(key, value)| {
                    len_of_message(1, len_of_bytes(1, key.as_bytes()) + len_of_bytes(1, value.as_bytes()))
                })
                .sum::<usize>()
            + self.index.map_or(0, |index| 1 + varint_len(u64::from(index)))
            + self.body.wire_len()
    }
}

impl Body {
    #[inline]
    fn write_wire(&self, out: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Payload(payload) => {
                out.extend_from_slice(&[0x82, 1]);
                payload.write_wire_with_length(out);
            }
            Self::Data(data) => put_body(out, 17 << 3 | 2, data),
            Self::Message(any) => {
                put_varint(out, 18 << 3 | 2);
                put_varint(out, any.wire_len() as u64);
                any.write_wire(out);
            }
            Self::Text(text) => put_body(out, 19 << 3 | 2, text.as_bytes()),
            Self::Error(error) => put_message(out, 22 << 3 | 2, &**error),
            Self::Control(control) => control.write_wire(out),
        }
    }

    fn wire_len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Payload(payload) => len_of_message(2, payload.encoded_len()),
            Self::Data(data) => len_of_message(2, data.len()),
            Self::Message(any) => len_of_message(2, any.wire_len()),
            Self::Text(text) => len_of_message(2, text.len()),
            Self::Error(error) => len_of_message(2, error.encoded_len()),
            Self::Control(control) => control.wire_len(),
        }
    }
}

/// What prost is told of a refusal.
#[allow(
    deprecated,
    reason = "prost offers no other way to say why, and keeps this one until its next breaking release"
)]
pub(super) fn decode_error(fault: Fault) -> DecodeError {
    DecodeError::new(crate::error::Refusal::from(fault).to_string())
}

/// Frames inside generated messages. They are held to the same rules; only typed messages are not looked into, as prost
/// cannot pass on which types there are (see `Frame::check_types`).
impl Message for Frame {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        let mut out = Vec::with_capacity(self.wire_len());
        self.write_wire(&mut out);
        buf.put_slice(&out);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let number = u64::from(tag);
        match wire_type {
            WireType::Varint => {
                let value = prost::encoding::decode_varint(buf)?;
                self.set(number, Raw::Varint(value), None).map_err(decode_error)
            }
            WireType::LengthDelimited => {
                let len = usize::try_from(prost::encoding::decode_varint(buf)?).unwrap_or(usize::MAX);
                if len > buf.remaining() {
                    return Err(decode_error(Fault::from(flaw(What::Length, 0))));
                }
                let part = buf.copy_to_bytes(len);
                self.set(number, Raw::Len(&part, &part), None).map_err(decode_error)
            }
            WireType::SixtyFourBit | WireType::ThirtyTwoBit => {
                prost::encoding::skip_field(wire_type, tag, buf, ctx)?;
                self.set(number, Raw::Fixed, None).map_err(decode_error)
            }
            WireType::StartGroup | WireType::EndGroup => Err(decode_error(Fault::from(flaw(What::WireType, 0)))),
        }
    }

    fn encoded_len(&self) -> usize {
        self.wire_len()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
