//! Turns a JSON value into a `google.protobuf.Value` and back, straight from bytes to bytes.
//!
//! Owns what the two forms have to do with each other. It must never be given bytes that were not checked: what it writes
//! for such ones means nothing, though it ends and does not panic.
//!
//! The form on the wire: a Value is one field, 1 null, 2 number, 3 string, 4 bool, 5 Struct, 6 ListValue. A ListValue is a
//! row of `0a length Value`, a Struct a row of `0a length (0a length name, 12 length Value)`.

use super::scan::{self, byte, skip_space};
use super::wire::{put_varint, put_varint_at, take_len, varint_len};

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
    to.value(skip_space(text, at), Place::Alone, 0)
}

const WIDTHS: usize = scan::MAX_DEPTH as usize + 1;

/// What a value is written into, which decides what comes before it.
#[derive(Clone, Copy)]
enum Place<'t> {
    Alone,
    List,
    Entry { name: &'t [u8], len: usize },
}

struct ToWire<'t, 'o> {
    text: &'t [u8],
    out: &'o mut Vec<u8>,
    /// How wide the lengths around the last array or object of each level were: the next one is likely the same.
    widths: [u8; WIDTHS],
}

impl<'t> ToWire<'t, '_> {
    fn value(&mut self, at: usize, place: Place<'t>, depth: usize) -> usize {
        let text = self.text;
        match byte(text, at) {
            b'"' => self.string(at + 1, place),
            b'{' | b'[' => self.container(at, place, depth),
            b't' => self.short(place, &[0x20, 1], at + 4),
            b'f' => self.short(place, &[0x20, 0], at + 5),
            b'n' => self.short(place, &[0x08, 0], at + 4),
            _ => self.number(at, place),
        }
    }

    fn short(&mut self, place: Place<'t>, body: &[u8; 2], end: usize) -> usize {
        self.head(place, 2);
        self.out.extend_from_slice(body);
        end
    }

    #[inline]
    fn number(&mut self, at: usize, place: Place<'t>) -> usize {
        let (value, end) = read_number(self.text, at);
        self.head(place, 9);
        let mut body = [0x11; 9];
        body[1..].copy_from_slice(&value.to_le_bytes());
        self.out.extend_from_slice(&body);
        // Something that is no number must not be read for ever.
        end.max(at + 1)
    }

    #[inline]
    fn string(&mut self, start: usize, place: Place<'t>) -> usize {
        let text = self.text;
        let Ok(string) = scan::string(text, start) else {
            return text.len();
        };
        self.head(place, 1 + varint_len(string.len as u64) + string.len);
        self.out.push(0x1A);
        put_varint(self.out, string.len as u64);
        self.plain(&text[start..string.close], string.len);
        string.close + 1
    }

    /// Writes what a string stands for, given how long that is.
    #[inline]
    fn plain(&mut self, raw: &[u8], len: usize) {
        if raw.len() == len {
            self.out.extend_from_slice(raw);
        } else {
            scan::unescape(raw, self.out);
        }
    }

    /// Writes what comes before a value of `len` bytes.
    #[inline]
    fn head(&mut self, place: Place<'t>, len: usize) {
        match place {
            Place::Alone => {}
            Place::List if len < 0x80 => self.out.extend_from_slice(&[0x0A, len as u8]),
            Place::List => {
                self.out.push(0x0A);
                put_varint(self.out, len as u64);
            }
            Place::Entry { name, len: name_len } => {
                let entry = 2 + varint_len(name_len as u64) + name_len + varint_len(len as u64) + len;
                if entry < 0x80 {
                    self.out.extend_from_slice(&[0x0A, entry as u8, 0x0A, name_len as u8]);
                    self.plain(name, name_len);
                    self.out.extend_from_slice(&[0x12, len as u8]);
                } else {
                    self.out.push(0x0A);
                    put_varint(self.out, entry as u64);
                    self.name(name, name_len);
                    self.out.push(0x12);
                    put_varint(self.out, len as u64);
                }
            }
        }
    }

    fn name(&mut self, name: &[u8], len: usize) {
        self.out.push(0x0A);
        put_varint(self.out, len as u64);
        self.plain(name, len);
    }

    /// Writes an array or object: first with room for lengths of the width guessed, then, when they are known, in the
    /// widths that they need.
    fn container(&mut self, start: usize, place: Place<'t>, depth: usize) -> usize {
        let text = self.text;
        let Some(&width) = self.widths.get(depth) else {
            return text.len();
        };
        let width = usize::from(width);
        const ROOM: [u8; 5] = [0; 5];
        let begin = self.out.len();
        // From `tail` on: [12 V] kind S, where the part in brackets is missing in the outermost value, and 0a V in a list.
        match place {
            Place::Alone => {}
            Place::List => {}
            Place::Entry { name, len } => {
                self.out.push(0x0A);
                self.out.extend_from_slice(&ROOM[..width]);
                self.name(name, len);
            }
        }
        let tail = self.out.len();
        match place {
            Place::Alone => {}
            Place::List => self.out.push(0x0A),
            Place::Entry { .. } => self.out.push(0x12),
        }
        if !matches!(place, Place::Alone) {
            self.out.extend_from_slice(&ROOM[..width]);
        }
        let is_object = byte(text, start) == b'{';
        self.out.push(if is_object { 0x2A } else { 0x32 });
        self.out.extend_from_slice(&ROOM[..width]);
        let body = self.out.len();
        let end = if is_object {
            self.members(start, depth + 1)
        } else {
            self.elements(start, depth + 1)
        };
        let widest = self.close(&Open {
            begin,
            tail,
            body,
            width,
            place: place.kind(),
        });
        self.widths[depth] = widest as u8;
        end
    }

    /// Fills in the lengths of an array or object that is complete: the widest of them.
    #[inline]
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
        if body > open.body {
            self.out.resize(body + len, 0);
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
            at = skip_space(text, self.value(at, Place::List, depth));
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
            let place = Place::Entry {
                name: &text[at + 1..name.close],
                len: name.len,
            };
            at = skip_space(text, name.close + 1);
            at = skip_space(text, at + 1);
            at = skip_space(text, self.value(at, place, depth));
            if byte(text, at) == b',' {
                at = skip_space(text, at + 1);
            }
        }
        at + 1
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Alone,
    List,
    Entry,
}

impl Place<'_> {
    fn kind(self) -> Kind {
        match self {
            Self::Alone => Kind::Alone,
            Self::List => Kind::List,
            Self::Entry { .. } => Kind::Entry,
        }
    }
}

/// An array or object being written.
struct Open {
    begin: usize,
    tail: usize,
    body: usize,
    width: usize,
    place: Kind,
}

/// Where the lengths before an array or object go.
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
    let Some((&tag, rest)) = wire.split_first() else {
        return out.extend_from_slice(b"null");
    };
    match tag {
        0x11 => match rest.first_chunk() {
            Some(body) => put_number(out, f64::from_le_bytes(*body)),
            None => out.push(b'0'),
        },
        0x1A => {
            let (string, _) = take_len(rest, 0).unwrap_or_default();
            put_string(out, string);
        }
        0x20 => {
            let is_true = rest.iter().any(|&byte| byte & 0x7F != 0);
            out.extend_from_slice(if is_true { b"true" } else { b"false" });
        }
        0x2A => struct_to_text(take_len(rest, 0).unwrap_or_default().0, out),
        0x32 => list_to_text(take_len(rest, 0).unwrap_or_default().0, out),
        _ => out.extend_from_slice(b"null"),
    }
}

fn list_to_text(list: &[u8], out: &mut Vec<u8>) {
    out.push(b'[');
    let mut at = 0;
    while at < list.len() {
        let Some((value, end)) = take_len(list, at + 1) else {
            break;
        };
        if at > 0 {
            out.push(b',');
        }
        to_text(value, out);
        at = end;
    }
    out.push(b']');
}

fn struct_to_text(fields: &[u8], out: &mut Vec<u8>) {
    out.push(b'{');
    let mut at = 0;
    while at < fields.len() {
        let Some((entry, end)) = take_len(fields, at + 1) else {
            break;
        };
        if at > 0 {
            out.push(b',');
        }
        let (name, value) = entry_parts(entry);
        put_string(out, name);
        out.push(b':');
        to_text(value, out);
        at = end;
    }
    out.push(b'}');
}

/// The name and the value of an entry, which may come in any order; a name that is empty may be missing.
#[inline]
pub(super) fn entry_parts(entry: &[u8]) -> (&[u8], &[u8]) {
    let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
    let mut at = 0;
    while at < entry.len() {
        let Some((part, end)) = take_len(entry, at + 1) else {
            break;
        };
        if entry[at] == 0x0A {
            name = part
        } else {
            value = part
        }
        at = end;
    }
    (name, value)
}

/// Writes text as a JSON string.
#[inline]
pub(super) fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut at = 0;
    loop {
        let end = scan::plain_end(text, at);
        out.extend_from_slice(&text[at..end]);
        if end >= text.len() {
            break;
        }
        put_escape(out, text[end]);
        at = end + 1;
    }
    out.push(b'"');
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
    let digits = scaled.round_ties_even();
    if digits / 1e6 != size {
        return false;
    }
    let digits = digits as u64;
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
    out.extend_from_slice(&text[..len]);
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
    let mut digits = [0; 20];
    let mut at = digits.len();
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
    out.extend_from_slice(&digits[at..]);
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
