//! Turns a JSON value into a `google.protobuf.Value` and back, straight from bytes to bytes.
//!
//! Owns what the two forms have to do with each other. It must never be given bytes that were not checked: what it writes
//! for such ones means nothing, though it ends and does not panic.
//!
//! The form on the wire: a Value is one field, 1 null, 2 number, 3 string, 4 bool, 5 Struct, 6 ListValue. A ListValue is a
//! row of `0a length Value`, a Struct a row of `0a length (0a length name, 12 length Value)`.

use super::scan::{self, byte, skip_space};
use super::wire::{Entry, put_varint, put_varint_at, take_entry, take_part, varint_len};

/// Writes the JSON value at `at` as a Value: where it ends.
pub(super) fn to_wire(text: &str, at: usize, out: &mut Vec<u8>) -> usize {
    let text = text.as_bytes();
    // A first guess at how wide the length of the outermost array or object will be; a wrong one costs a copy.
    let width = match text.len() {
        0..100 => 1,
        100..12_000 => 2,
        _ => 3,
    };
    let mut to = ToWire {
        text,
        out,
        widths: [1; WIDTHS],
    };
    to.widths[0] = width;
    to.value(skip_space(text, at), Alone, 0)
}

const WIDTHS: usize = scan::MAX_DEPTH as usize + 1;

/// What a value is written into, which decides what comes before it.
trait Place: Copy {
    const KIND: Kind;

    /// Writes what comes before a value of `len` bytes.
    fn put_head(self, text: &[u8], out: &mut Vec<u8>, len: usize);

    /// Writes what comes before the length of a value of yet unknown length, with room for a length of `width` around it.
    fn put_open_head(self, text: &[u8], out: &mut Vec<u8>, width: usize);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Alone,
    List,
    Entry,
}

/// A value by itself.
#[derive(Clone, Copy)]
struct Alone;

/// A value in a list.
#[derive(Clone, Copy)]
struct Item;

/// A value in an object: where its name begins, and how long that is with its escapes and without.
#[derive(Clone, Copy)]
struct Member {
    start: usize,
    raw_len: usize,
    len: usize,
}

impl Place for Alone {
    const KIND: Kind = Kind::Alone;

    fn put_head(self, _text: &[u8], _out: &mut Vec<u8>, _len: usize) {}

    fn put_open_head(self, _text: &[u8], _out: &mut Vec<u8>, _width: usize) {}
}

impl Place for Item {
    const KIND: Kind = Kind::List;

    #[inline(always)]
    fn put_head(self, _text: &[u8], out: &mut Vec<u8>, len: usize) {
        if len < 0x80 {
            return out.extend_from_slice(&[0x0A, len as u8]);
        }
        out.push(0x0A);
        put_varint(out, len as u64);
    }

    fn put_open_head(self, _text: &[u8], _out: &mut Vec<u8>, _width: usize) {}
}

impl Place for Member {
    const KIND: Kind = Kind::Entry;

    #[inline(always)]
    fn put_head(self, text: &[u8], out: &mut Vec<u8>, len: usize) {
        let entry = 2 + varint_len(self.len as u64) + self.len + varint_len(len as u64) + len;
        if entry < 0x80 {
            out.extend_from_slice(&[0x0A, entry as u8, 0x0A, self.len as u8]);
            self.put_text(text, out);
            return out.extend_from_slice(&[0x12, len as u8]);
        }
        out.push(0x0A);
        put_varint(out, entry as u64);
        self.put_name(text, out);
        out.push(0x12);
        put_varint(out, len as u64);
    }

    #[inline(always)]
    fn put_open_head(self, text: &[u8], out: &mut Vec<u8>, width: usize) {
        out.push(0x0A);
        out.extend_from_slice(&ROOM[..width]);
        self.put_name(text, out);
    }
}

impl Member {
    #[inline(always)]
    fn put_name(self, text: &[u8], out: &mut Vec<u8>) {
        out.push(0x0A);
        put_varint(out, self.len as u64);
        self.put_text(text, out);
    }

    #[inline(always)]
    fn put_text(self, text: &[u8], out: &mut Vec<u8>) {
        if self.len == self.raw_len {
            put_part(text, self.start, self.len, out);
        } else {
            scan::unescape(text, self.start, out);
        }
    }
}

/// Copies a part of the text. Most are short, and a copy of fixed size, of which not all counts, is the quickest.
#[inline(always)]
fn put_part(text: &[u8], start: usize, len: usize, out: &mut Vec<u8>) {
    match text.get(start..).and_then(|rest| rest.first_chunk::<16>()) {
        Some(chunk) if len <= 16 => {
            out.extend_from_slice(chunk);
            out.truncate(out.len() - 16 + len);
        }
        _ => out.extend_from_slice(&text[start..start + len]),
    }
}

const ROOM: [u8; 5] = [0; 5];

struct ToWire<'t, 'o> {
    text: &'t [u8],
    out: &'o mut Vec<u8>,
    /// How wide the lengths around the last array or object of each level were: the next one is likely the same.
    widths: [u8; WIDTHS],
}

impl ToWire<'_, '_> {
    #[inline(always)]
    fn value<P: Place>(&mut self, at: usize, place: P, depth: usize) -> usize {
        match byte(self.text, at) {
            b'"' => self.string(at + 1, place),
            b'{' | b'[' => self.container(at, place, depth),
            b't' => self.short(place, [0x20, 1], at + 4),
            b'f' => self.short(place, [0x20, 0], at + 5),
            b'n' => self.short(place, [0x08, 0], at + 4),
            _ => self.number(at, place),
        }
    }

    #[inline(always)]
    fn short<P: Place>(&mut self, place: P, body: [u8; 2], end: usize) -> usize {
        place.put_head(self.text, self.out, 2);
        self.out.extend_from_slice(&body);
        end
    }

    #[inline(always)]
    fn number<P: Place>(&mut self, at: usize, place: P) -> usize {
        let (value, end) = read_number(self.text, at);
        place.put_head(self.text, self.out, 9);
        let mut body = [0x11; 9];
        body[1..].copy_from_slice(&value.to_le_bytes());
        self.out.extend_from_slice(&body);
        // Something that is no number must not be read for ever.
        end.max(at + 1)
    }

    #[inline(always)]
    fn string<P: Place>(&mut self, start: usize, place: P) -> usize {
        let text = self.text;
        let close = scan::plain_end(text, start);
        if byte(text, close) != b'"' {
            return self.string_with_escapes(start, close, place);
        }
        let len = close - start;
        place.put_head(text, self.out, 1 + varint_len(len as u64) + len);
        if len < 0x80 {
            self.out.extend_from_slice(&[0x1A, len as u8]);
        } else {
            self.out.push(0x1A);
            put_varint(self.out, len as u64);
        }
        put_part(text, start, len, self.out);
        close + 1
    }

    /// Writes a string whose length will be known when it has been written.
    #[inline(never)]
    fn string_with_escapes<P: Place>(&mut self, start: usize, first_escape: usize, place: P) -> usize {
        let width = if first_escape - start < 48 { 1 } else { 2 };
        let open = self.open(place, 0x1A, width);
        let close = scan::unescape(self.text, start, self.out);
        self.close(&open);
        close + 1
    }

    /// Writes an array or object: first with room for lengths of the width guessed, then, when they are known, in the
    /// widths that they need.
    #[inline(never)]
    fn container<P: Place>(&mut self, start: usize, place: P, depth: usize) -> usize {
        let Some(&width) = self.widths.get(depth) else {
            return self.text.len();
        };
        let is_object = byte(self.text, start) == b'{';
        let open = self.open(place, if is_object { 0x2A } else { 0x32 }, width.into());
        let end = if is_object {
            self.members(start, depth + 1)
        } else {
            self.elements(start, depth + 1)
        };
        self.widths[depth] = self.close(&open) as u8;
        end
    }

    /// Writes what comes before a value whose length is not known yet. From `tail` on: `12 V tag S` in an object, `0a V tag
    /// S` in a list, `tag S` alone, where V and S are the lengths.
    #[inline(always)]
    fn open<P: Place>(&mut self, place: P, tag: u8, width: usize) -> Open {
        let begin = self.out.len();
        place.put_open_head(self.text, self.out, width);
        let tail = self.out.len();
        if P::KIND != Kind::Alone {
            self.out.push(if P::KIND == Kind::List { 0x0A } else { 0x12 });
            self.out.extend_from_slice(&ROOM[..width]);
        }
        self.out.push(tag);
        self.out.extend_from_slice(&ROOM[..width]);
        Open {
            begin,
            tail,
            body: self.out.len(),
            width,
            place: P::KIND,
        }
    }

    /// Fills in the lengths of a value that is complete: the width of the widest of them.
    #[inline(always)]
    fn close(&mut self, open: &Open) -> usize {
        let len = self.out.len() - open.body;
        let inner = varint_len(len as u64);
        let value = 1 + inner + len;
        let (middle, outer, entry) = match open.place {
            Kind::Alone => (open.width, open.width, 0),
            Kind::List => (varint_len(value as u64), open.width, 0),
            Kind::Entry => {
                let middle = varint_len(value as u64);
                let entry = (open.tail - open.begin - 1 - open.width) + 1 + middle + value;
                (middle, varint_len(entry as u64), entry)
            }
        };
        let mut at = Head {
            outer: open.begin + 1,
            middle: open.tail + 1,
            inner: open.body - open.width,
        };
        if inner != open.width || middle != open.width || outer != open.width {
            at = self.make_room(open, [outer, middle, inner]);
        }
        put_varint_at(self.out, at.inner, len as u64);
        if open.place != Kind::Alone {
            put_varint_at(self.out, at.middle, value as u64);
        }
        if open.place == Kind::Entry {
            put_varint_at(self.out, at.outer, entry as u64);
        }
        match open.place {
            Kind::Alone => inner,
            Kind::List => middle.max(inner),
            Kind::Entry => outer.max(middle),
        }
    }

    /// Moves what was written so that lengths of these widths fit exactly: where they go.
    #[cold]
    fn make_room(&mut self, open: &Open, [outer, middle, inner]: [usize; 3]) -> Head {
        let old = self.out.len();
        // Of an entry, what moves apart from the rest is its name, between the two lengths.
        let tail = if open.place == Kind::Entry {
            open.tail + outer - open.width
        } else {
            open.tail
        };
        let kind = if open.place == Kind::Alone {
            tail
        } else {
            tail + 1 + middle
        };
        let body = kind + 1 + inner;
        let tag = self.out[open.body - open.width - 1];
        let len = old - open.body;
        if let Some(more) = body.checked_sub(open.body) {
            self.out.extend_from_slice(&[0; 16][..more]);
        }
        let name = open.begin + 1 + open.width..open.tail;
        if tail > open.tail {
            self.out.copy_within(open.body..old, body);
            self.out.copy_within(name, open.begin + 1 + outer);
        } else {
            if open.place == Kind::Entry {
                self.out.copy_within(name, open.begin + 1 + outer);
            }
            self.out.copy_within(open.body..old, body);
        }
        self.out.truncate(body + len);
        match open.place {
            Kind::Alone => {}
            Kind::List => self.out[tail] = 0x0A,
            Kind::Entry => self.out[tail] = 0x12,
        }
        self.out[kind] = tag;
        Head {
            outer: open.begin + 1,
            middle: tail + 1,
            inner: kind + 1,
        }
    }

    fn elements(&mut self, start: usize, depth: usize) -> usize {
        let text = self.text;
        let mut at = skip_space(text, start + 1);
        while at < text.len() && byte(text, at) != b']' {
            at = skip_space(text, self.value(at, Item, depth));
            if byte(text, at) == b',' {
                at = skip_space(text, at + 1);
            }
        }
        at + 1
    }

    fn members(&mut self, start: usize, depth: usize) -> usize {
        let text = self.text;
        let mut at = skip_space(text, start + 1);
        while byte(text, at) == b'"' {
            let Ok(name) = scan::string(text, at + 1) else {
                return text.len();
            };
            let member = Member {
                start: at + 1,
                raw_len: name.close - at - 1,
                len: name.len,
            };
            at = skip_space(text, name.close + 1);
            at = skip_space(text, at + 1);
            at = skip_space(text, self.value(at, member, depth));
            if byte(text, at) == b',' {
                at = skip_space(text, at + 1);
            }
        }
        at + 1
    }
}

/// A value being written whose length is not known yet.
struct Open {
    begin: usize,
    tail: usize,
    body: usize,
    width: usize,
    place: Kind,
}

/// Where the lengths before such a value go.
struct Head {
    outer: usize,
    middle: usize,
    inner: usize,
}

/// Powers of ten that a double holds exactly.
const TENS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// The double nearest to the number at `start`, and where it ends.
///
/// Up to 2^53, and with a power of ten that a double holds exactly, one division rounds once and hence correctly; so does the
/// conversion of an integer that fits into 64 bits. The rest is left to the standard library.
#[inline]
pub(super) fn read_number(text: &[u8], start: usize) -> (f64, usize) {
    let negative = byte(text, start) == b'-';
    let mut at = start + usize::from(negative);
    let mut digits = 0_u64;
    let first = at;
    let mut digit = byte(text, at).wrapping_sub(b'0');
    while digit < 10 {
        digits = digits.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
        digit = byte(text, at).wrapping_sub(b'0');
    }
    let mut count = at - first;
    let mut places = 0;
    if byte(text, at) == b'.' {
        let point = at + 1;
        at = point;
        digit = byte(text, at).wrapping_sub(b'0');
        while digit < 10 {
            digits = digits.wrapping_mul(10).wrapping_add(u64::from(digit));
            at += 1;
            digit = byte(text, at).wrapping_sub(b'0');
        }
        places = at - point;
        count += places;
    }
    let exact = count <= 19 && (places == 0 || (digits <= 1 << 53 && places < TENS.len()));
    if !exact || byte(text, at) | 0x20 == b'e' {
        return read_any_number(text, start, at);
    }
    let value = if places == 0 {
        digits as f64
    } else {
        digits as f64 / TENS[places]
    };
    (if negative { -value } else { value }, at)
}

#[inline(never)]
fn read_any_number(text: &[u8], start: usize, mut at: usize) -> (f64, usize) {
    while matches!(byte(text, at), b'0'..=b'9' | b'e' | b'E' | b'+' | b'-' | b'.') {
        at += 1;
    }
    let value = std::str::from_utf8(&text[start..at])
        .ok()
        .and_then(|number| number.parse().ok());
    (value.unwrap_or(0.0), at)
}

/// Writes a Value as JSON.
pub(super) fn to_text(wire: &[u8], out: &mut Vec<u8>) {
    ToText { wire, out }.value(0, wire.len());
}

struct ToText<'w, 'o> {
    wire: &'w [u8],
    out: &'o mut Vec<u8>,
}

impl ToText<'_, '_> {
    /// Writes the Value between two places.
    #[inline(always)]
    fn value(&mut self, at: usize, end: usize) {
        let wire = self.wire;
        match byte(wire, at) {
            0x11 => put_number(self.out, f64::from_bits(scan::word(wire, at + 1).unwrap_or(0))),
            0x1A => {
                let (start, end) = take_part(wire, at + 1, end).unwrap_or_default();
                self.string(start, end);
            }
            0x20 => {
                let is_true = wire[at + 1..end].iter().any(|&byte| byte & 0x7F != 0);
                self.out.extend_from_slice(if is_true { b"true" } else { b"false" });
            }
            0x2A => self.object(at, end),
            0x32 => self.array(at, end),
            _ => self.out.extend_from_slice(b"null"),
        }
    }

    #[inline(always)]
    fn string(&mut self, start: usize, end: usize) {
        put_part_as_string(self.out, self.wire, start, end);
    }

    #[inline(never)]
    fn array(&mut self, at: usize, end: usize) {
        let (begin, end) = take_part(self.wire, at + 1, end).unwrap_or_default();
        self.out.push(b'[');
        let mut at = begin;
        while at < end {
            let Some((start, stop)) = take_part(self.wire, at + 1, end) else {
                break;
            };
            if at > begin {
                self.out.push(b',');
            }
            self.value(start, stop);
            at = stop;
        }
        self.out.push(b']');
    }

    #[inline(never)]
    fn object(&mut self, at: usize, end: usize) {
        let (begin, end) = take_part(self.wire, at + 1, end).unwrap_or_default();
        self.out.push(b'{');
        let mut at = begin;
        while at < end {
            let Some((start, stop)) = take_part(self.wire, at + 1, end) else {
                break;
            };
            if at > begin {
                self.out.push(b',');
            }
            let entry = entry_parts(self.wire, start, stop);
            self.string(entry.name.0, entry.name.1);
            self.out.push(b':');
            self.value(entry.value.0, entry.value.1);
            at = stop;
        }
        self.out.push(b'}');
    }
}

/// The name and the value of an entry, which may come in any order; a name that is empty may be missing.
#[inline(always)]
pub(super) fn entry_parts(wire: &[u8], at: usize, end: usize) -> Entry {
    match take_entry(wire, at, end) {
        Some(entry) => entry,
        None => unusual_entry_parts(wire, at, end),
    }
}

#[inline(never)]
fn unusual_entry_parts(wire: &[u8], mut at: usize, end: usize) -> Entry {
    let mut entry = Entry {
        name: (end, end),
        value: (end, end),
    };
    while at < end {
        let Some(part) = take_part(wire, at + 1, end) else {
            break;
        };
        if wire[at] == 0x0A {
            entry.name = part
        } else {
            entry.value = part
        }
        at = part.1;
    }
    entry
}

/// Writes text as a JSON string.
pub(super) fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    put_part_as_string(out, text, 0, text.len());
}

/// Writes a part of some bytes, which is text, as a JSON string.
#[inline(always)]
fn put_part_as_string(out: &mut Vec<u8>, bytes: &[u8], start: usize, end: usize) {
    out.push(b'"');
    if !scan::copy_short(bytes, start, end, out) {
        put_text(out, &bytes[..end], start);
    }
    out.push(b'"');
}

#[inline(never)]
fn put_text(out: &mut Vec<u8>, text: &[u8], mut at: usize) {
    loop {
        at = scan::copy_plain(text, at, out);
        match text.get(at) {
            Some(&special) => put_escape(out, special),
            None => return,
        }
        at += 1;
    }
}

fn put_escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0C => b'f',
        _ => {
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digits[0], digits[1]]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Writes a finite double as ECMAScript does.
#[inline]
pub(super) fn put_number(out: &mut Vec<u8>, value: f64) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = value as i64;
    if whole as f64 == value && value.abs() < EXACT {
        if whole < 0 {
            out.push(b'-');
        }
        return put_integer(out, whole.unsigned_abs());
    }
    if put_short_decimal(out, value) {
        return;
    }
    let mut buffer = ryu_js::Buffer::new();
    out.extend_from_slice(if value.is_finite() {
        buffer.format_finite(value).as_bytes()
    } else {
        b"null"
    });
}

/// Writes a double that has few decimal places; false, and nothing written, if it is not one.
///
/// Two decimals of at most 15 digits are never the same double. So a decimal of at most 15 digits that reads back as the
/// value is, but for zeros at its end, the shortest one, which is the one that ECMAScript asks for.
#[inline]
fn put_short_decimal(out: &mut Vec<u8>, value: f64) -> bool {
    let size = value.abs();
    if !(1e-4..1e9).contains(&size) {
        return false;
    }
    let scaled = size * 1e6;
    let digits = (scaled + 0.5) as u64;
    if digits as f64 / 1e6 != size {
        return false;
    }
    let (whole, mut fraction) = (digits / 1_000_000, digits % 1_000_000);
    if value < 0.0 {
        out.push(b'-');
    }
    put_integer(out, whole);
    let mut text = *b".000000";
    for place in text[1..].iter_mut().rev() {
        *place = b'0' + (fraction % 10) as u8;
        fraction /= 10;
    }
    let len = text.iter().rposition(|&digit| digit != b'0').map_or(0, |last| last + 1);
    out.extend_from_slice(&text);
    out.truncate(out.len() - text.len() + len);
    true
}

const PAIRS: &[u8; 200] = b"0001020304050607080910111213141516171819\
2021222324252627282930313233343536373839\
4041424344454647484950515253545556575859\
6061626364656667686970717273747576777879\
8081828384858687888990919293949596979899";

/// Writes an integer.
#[inline]
pub(super) fn put_integer(out: &mut Vec<u8>, mut value: u64) {
    if value < 10 {
        return out.push(b'0' + value as u8);
    }
    // The digits end in the middle, so that twenty bytes can be copied wherever they begin.
    let mut digits = [0; 40];
    let mut at = 20;
    while value >= 100 {
        let pair = (value % 100) as usize * 2;
        value /= 100;
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    }
    if value >= 10 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[value as usize * 2..value as usize * 2 + 2]);
    } else {
        at -= 1;
        digits[at] = b'0' + value as u8;
    }
    if let Some(chunk) = digits.get(at..).and_then(|rest| rest.first_chunk::<20>()) {
        out.extend_from_slice(chunk);
        out.truncate(out.len() - at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(text: &str) -> Vec<u8> {
        let mut out = b"before".to_vec();
        assert_eq!(to_wire(text, 0, &mut out), text.trim_end().len());
        out.split_off(6)
    }

    fn text(wire: &[u8]) -> String {
        let mut out = Vec::new();
        to_text(wire, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn scalars() {
        assert_eq!(wire("null"), [8, 0]);
        assert_eq!(wire("true"), [0x20, 1]);
        assert_eq!(wire("false"), [0x20, 0]);
        assert_eq!(wire("\"ab\""), [0x1A, 2, b'a', b'b']);
        assert_eq!(wire("1"), [0x11, 0, 0, 0, 0, 0, 0, 0xF0, 0x3F]);
        assert_eq!(wire(" [ ] "), [0x32, 0]);
        assert_eq!(wire("{}"), [0x2A, 0]);
        assert_eq!(wire("[null]"), [0x32, 4, 0x0A, 2, 8, 0]);
        assert_eq!(
            wire("{\"a\":true}"),
            [0x2A, 9, 0x0A, 7, 0x0A, 1, b'a', 0x12, 2, 0x20, 1]
        );
    }

    #[test]
    fn there_and_back_at_every_size() {
        // Lengths pass through every width, at every level.
        for size in (0..300).chain(16_300..16_400).chain([70_000, 2_097_100, 2_097_152]) {
            let long = "x".repeat(size);
            for json in [
                format!("\"{long}\""),
                format!("[\"{long}\"]"),
                format!("{{\"{long}\":1}}"),
                format!("{{\"a\":{{\"b\":[1,\"{long}\"]}},\"c\":[]}}"),
                format!("[[[[[\"{long}\"],1]],{{\"{long}\":[]}}]]"),
            ] {
                let wire = wire(&json);
                assert_eq!(super::super::wire::check_value(&wire, scan::MAX_DEPTH), Ok(()));
                assert!(text(&wire) == json, "{size}");
            }
        }
    }

    #[test]
    fn guesses_that_were_too_wide_are_mended() {
        let wide = format!("\"{}\"", "x".repeat(200));
        for json in [
            format!("[{{\"a\":{wide}}},{{\"a\":1}},{{\"a\":{wide}}},{{}},[[{wide}],[],[{wide}]]]"),
            format!("{{\"k\":{{\"a\":{wide}}},\"l\":{{\"a\":1}},\"m\":[[{wide}]],\"n\":[]}}"),
            format!("{{\"k\":[]{}}}", " ".repeat(200)),
        ] {
            assert_eq!(text(&wire(&json)), json.replace(' ', ""));
        }
    }

    #[test]
    fn escapes() {
        let json = r#"{"a\n\"\\\u0000\u001f":"\/\ud83d\ude00\u00e9\b\f\r\t"}"#;
        assert_eq!(
            text(&wire(json)),
            "{\"a\\n\\\"\\\\\\u0000\\u001f\":\"/😀é\\b\\f\\r\\t\"}"
        );
    }

    #[test]
    fn numbers_as_ecmascript_writes_them() {
        for (json, expected) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("1.0", "1"),
            ("1e3", "1000"),
            ("-12.50", "-12.5"),
            ("0.1", "0.1"),
            ("1e21", "1e+21"),
            ("123456789012345678901", "123456789012345680000"),
            ("9007199254740993", "9007199254740992"),
            ("18446744073709551615", "18446744073709552000"),
            ("1e-7", "1e-7"),
            ("0.000001", "0.000001"),
            ("0.0001", "0.0001"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("0.30000000000000004", "0.30000000000000004"),
            ("999999999.999999", "999999999.999999"),
            ("-0.000123", "-0.000123"),
        ] {
            assert_eq!(text(&wire(json)), expected, "{json}");
        }
    }

    #[test]
    fn numbers_agree_with_the_standard_library() {
        let mut state = 7_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 11
        };
        for round in 0..200_000_u64 {
            let places = next() % 12;
            let digits = next() % 10_u64.pow((1 + next() % 16) as u32);
            let value = match round % 3 {
                0 => digits as f64 / 10_f64.powi(places as i32),
                1 => f64::from_bits(next() << 11 | next() & 0x7FF),
                _ => (next() as f64 / (1_u64 << 53) as f64) * 1e3,
            };
            if !value.is_finite() {
                continue;
            }
            let mut out = Vec::new();
            put_number(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), ryu_js::Buffer::new().format(value));
            for written in [format!("{value}"), format!("{value:e}"), format!("{value:.3}")] {
                let (read, end) = read_number(written.as_bytes(), 0);
                assert_eq!(
                    (read.to_bits(), end),
                    (written.parse::<f64>().unwrap().to_bits(), written.len()),
                    "{written}"
                );
            }
        }
    }

    #[test]
    fn anything_ends_without_panic() {
        for wire in [
            &[0x2A, 9, 0x0A][..],
            &[0x32, 2, 0x0A, 0xFF],
            &[0x11, 1],
            &[0xFF],
            &[0x1A],
            &[0x2A, 4, 0x0A, 2, 0x0A, 9],
        ] {
            let _ = text(wire);
        }
        for json in [
            "",
            "{",
            "[",
            "[1",
            "{\"",
            "{\"a\"",
            "{\"a\":",
            "]",
            "x",
            "[x,y]",
            "\"",
            "-",
            &"[".repeat(99),
        ] {
            let mut out = Vec::new();
            to_wire(json, 0, &mut out);
        }
    }
}
