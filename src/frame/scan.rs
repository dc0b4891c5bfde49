//! Reads JSON text without building anything: finds where a value ends, and whether everybody could read it.
//!
//! Owns the rules of JSON (RFC 8259) and those that the contract adds: depth, finite numbers, no lone surrogates, no name
//! twice in one object. It must never allocate in proportion to what it has not yet read, nor recurse without a limit.

use std::borrow::Cow;

/// How many levels of arrays and objects a payload may have. Each object costs three of the hundred levels that protobuf
/// libraries allow, so 32 is what every one of them can read inside a frame.
pub const MAX_DEPTH: u32 = 32;

/// What is wrong with a value, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    pub what: What,
    pub at: u32,
}

/// What can be wrong with a value, in either form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Ended,
    Unexpected,
    Trailing,
    Control,
    Escape,
    Number,
    NotFinite,
    TooDeep,
    Duplicate,
    LoneSurrogate,
    Utf8,
    Varint,
    Length,
    WireType,
    Kind,
    Field,
}

impl What {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Ended => "the text ends in the middle",
            Self::Unexpected => "this character cannot stand here",
            Self::Trailing => "something follows the end",
            Self::Control => "control characters must be escaped in a string",
            Self::Escape => "there is no such escape",
            Self::Number => "a number is not written like this",
            Self::NotFinite => "a number must be finite and within the range of a double",
            Self::TooDeep => "arrays and objects may be nested 32 levels deep",
            Self::Duplicate => "an object has a name twice",
            Self::LoneSurrogate => "a surrogate stands alone",
            Self::Utf8 => "text must be UTF-8",
            Self::Varint => "a varint ends too soon or is too long",
            Self::Length => "a length goes past the end",
            Self::WireType => "a field has the wrong wire type",
            Self::Kind => "a google.protobuf.Value must have exactly one kind",
            Self::Field => "a field is unknown or set twice",
        }
    }

    /// Whether the bytes are no JSON, or no protobuf, at all, as opposed to a value that not everybody could read.
    pub fn is_malformed(self) -> bool {
        matches!(
            self,
            Self::Ended
                | Self::Unexpected
                | Self::Trailing
                | Self::Control
                | Self::Escape
                | Self::Number
                | Self::Varint
                | Self::Length
                | Self::WireType
        )
    }
}

/// A flaw at a place.
#[cold]
pub(super) fn flaw(what: What, at: usize) -> Flaw {
    Flaw {
        what,
        at: u32::try_from(at).unwrap_or(u32::MAX),
    }
}

/// The byte at a place; 0, which is no part of any JSON token, past the end.
#[inline(always)]
pub(super) fn byte(text: &[u8], at: usize) -> u8 {
    text.get(at).copied().unwrap_or(0)
}

/// Passes over white space.
#[inline(always)]
pub(super) fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(byte(text, at), b' ' | b'\n' | b'\r' | b'\t') {
        at += 1;
    }
    at
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Marks the bytes that cannot stand in a string as they are: quotes, backslashes, control characters. Only the lowest
/// mark is certain, as a borrow may run on upwards from it.
#[inline(always)]
pub(super) fn specials(word: u64) -> u64 {
    let quote = word ^ (ONES * b'"' as u64);
    let slash = word ^ (ONES * b'\\' as u64);
    ((quote.wrapping_sub(ONES) & !quote)
        | (slash.wrapping_sub(ONES) & !slash)
        | (word.wrapping_sub(ONES * 0x20) & !word))
        & HIGHS
}

/// The next eight bytes.
#[inline(always)]
pub(super) fn word(text: &[u8], at: usize) -> Option<u64> {
    text.get(at..)?
        .first_chunk::<8>()
        .map(|chunk| u64::from_le_bytes(*chunk))
}

/// Whether no byte of a block cannot stand in a string as it is. Written so that the compiler makes it vector code.
#[inline(always)]
pub(super) fn is_plain(block: &[u8; 32]) -> bool {
    let is_special = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    !block.iter().fold(false, |any, &byte| any | is_special(byte))
}

/// The place of the first byte, from `at` on, that cannot stand in a string as it is; the end if there is none.
#[inline(always)]
pub(super) fn plain_end(text: &[u8], mut at: usize) -> usize {
    for _ in 0..3 {
        let Some(word) = word(text, at) else {
            return plain_end_of_tail(text, at);
        };
        let marks = specials(word);
        if marks != 0 {
            return at + (marks.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    plain_end_of_long(text, at)
}

#[inline(never)]
fn plain_end_of_long(text: &[u8], mut at: usize) -> usize {
    // Text with escapes is worth a few words more before it is taken for one without.
    for _ in 0..4 {
        let Some(word) = word(text, at) else {
            return plain_end_of_tail(text, at);
        };
        let marks = specials(word);
        if marks != 0 {
            return at + (marks.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(block) = text.get(at..).and_then(|rest| rest.first_chunk()) {
        if !is_plain(block) {
            break;
        }
        at += 32;
    }
    while let Some(word) = word(text, at) {
        let marks = specials(word);
        if marks != 0 {
            return at + (marks.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    plain_end_of_tail(text, at)
}

/// Looks at the last bytes, fewer than eight.
#[inline(never)]
fn plain_end_of_tail(text: &[u8], at: usize) -> usize {
    let (tail, len) = tail_word(text, at);
    at + ((specials(tail).trailing_zeros() / 8) as usize).min(len)
}

/// The last bytes, fewer than eight, with zeros above them; and how many they are.
#[inline(always)]
fn tail_word(text: &[u8], at: usize) -> (u64, usize) {
    let len = text.len().saturating_sub(at);
    let tail = match text.last_chunk() {
        _ if len == 0 || len > 7 => 0,
        Some(last) => u64::from_le_bytes(*last) >> (64 - 8 * len),
        None => short_word(&text[at..]),
    };
    (tail, len)
}

/// Up to seven bytes as a word.
#[inline(always)]
fn short_word(text: &[u8]) -> u64 {
    let len = text.len();
    let half = |at: usize| {
        text.get(at..)
            .and_then(|rest| rest.first_chunk::<4>())
            .map_or(0, |chunk| u64::from(u32::from_le_bytes(*chunk)))
    };
    match len {
        0 => 0,
        1..=3 => {
            u64::from(text[0])
                | u64::from(text[len / 2]) << (8 * (len / 2))
                | u64::from(text[len - 1]) << (8 * (len - 1))
        }
        4..=7 => half(0) | half(len - 4) << (8 * (len - 4)),
        _ => 0,
    }
}

/// A string, as it stands in the text: where its closing quote is, and how many bytes it has without its escapes.
#[derive(Clone, Copy)]
pub(super) struct Quoted {
    pub close: usize,
    pub len: usize,
}

impl Quoted {
    /// Whether there are escapes in it, given where it begins.
    pub fn has_escapes(self, start: usize) -> bool {
        self.close - start != self.len
    }
}

/// Reads a string whose opening quote is before `start`, checking it.
#[inline(always)]
pub(super) fn string(text: &[u8], start: usize) -> Result<Quoted, Flaw> {
    let close = plain_end(text, start);
    if byte(text, close) == b'"' {
        return Ok(Quoted {
            close,
            len: close - start,
        });
    }
    string_with_escapes(text, start, close)
}

#[inline(never)]
fn string_with_escapes(text: &[u8], start: usize, mut at: usize) -> Result<Quoted, Flaw> {
    let mut saved = 0;
    loop {
        match byte(text, at) {
            b'"' => {
                return Ok(Quoted {
                    close: at,
                    len: at - start - saved,
                });
            }
            b'\\' => {
                let (next, len) = escape(text, at)?;
                saved += next - at - len;
                at = plain_end(text, next);
            }
            _ if at >= text.len() => return Err(flaw(What::Ended, text.len())),
            _ => return Err(flaw(What::Control, at)),
        }
    }
}

/// Reads the escape at `at`: where it ends, and how many bytes of UTF-8 it stands for.
fn escape(text: &[u8], at: usize) -> Result<(usize, usize), Flaw> {
    match byte(text, at + 1) {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok((at + 2, 1)),
        b'u' => {
            let (scalar, end) = unicode(text, at)?;
            Ok((end, scalar.len_utf8()))
        }
        _ if at + 1 >= text.len() => Err(flaw(What::Ended, text.len())),
        _ => Err(flaw(What::Escape, at)),
    }
}

/// Reads `\uXXXX`, and the second half of a surrogate pair where it is the first: the character, and where it ends.
fn unicode(text: &[u8], at: usize) -> Result<(char, usize), Flaw> {
    let high = hex4(text, at + 2)?;
    if let Some(scalar) = char::from_u32(high) {
        return Ok((scalar, at + 6));
    }
    if high < 0xDC00 && byte(text, at + 6) == b'\\' && byte(text, at + 7) == b'u' {
        let low = hex4(text, at + 8)?;
        if (0xDC00..0xE000).contains(&low)
            && let Some(scalar) = char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00))
        {
            return Ok((scalar, at + 12));
        }
    }
    Err(flaw(What::LoneSurrogate, at))
}

fn hex4(text: &[u8], at: usize) -> Result<u32, Flaw> {
    let digits = text.get(at..at + 4).ok_or_else(|| flaw(What::Ended, text.len()))?;
    digits.iter().try_fold(0, |value, &digit| {
        let digit = char::from(digit).to_digit(16).ok_or_else(|| flaw(What::Escape, at))?;
        Ok(value << 4 | digit)
    })
}

/// Copies bytes up to the first that cannot stand in a string as it is: its place.
///
/// Whole words are written before it is known how much of them counts; that is quicker than to look first and copy then.
#[inline(always)]
pub(super) fn copy_plain(text: &[u8], mut at: usize, out: &mut Vec<u8>) -> usize {
    for _ in 0..6 {
        let Some(word) = word(text, at) else {
            return copy_plain_of_tail(text, at, out);
        };
        out.extend_from_slice(&word.to_le_bytes());
        let marks = specials(word);
        if marks != 0 {
            let count = (marks.trailing_zeros() / 8) as usize;
            out.truncate(out.len() - 8 + count);
            return at + count;
        }
        at += 8;
    }
    copy_plain_of_long(text, at, out)
}

#[inline(never)]
fn copy_plain_of_long(text: &[u8], at: usize, out: &mut Vec<u8>) -> usize {
    let end = plain_end(text, at);
    out.extend_from_slice(&text[at..end]);
    end
}

/// Copies the last bytes, fewer than eight.
#[inline(always)]
fn copy_plain_of_tail(text: &[u8], at: usize, out: &mut Vec<u8>) -> usize {
    let (tail, len) = tail_word(text, at);
    let count = ((specials(tail).trailing_zeros() / 8) as usize).min(len);
    out.extend_from_slice(&tail.to_le_bytes());
    out.truncate(out.len() - 8 + count);
    at + count
}

/// Copies up to eight bytes, if none of them is special.
#[inline(always)]
pub(super) fn copy_short(text: &[u8], start: usize, end: usize, out: &mut Vec<u8>) -> bool {
    let Some(word) = word(text, start).filter(|_| end - start <= 8) else {
        return false;
    };
    let unused = 8 - (end - start);
    // What comes after the part does not count.
    if unused < 8 && specials(word) << (8 * unused) != 0 {
        return false;
    }
    out.extend_from_slice(&word.to_le_bytes());
    out.truncate(out.len() - unused);
    true
}

/// Writes what a string that was checked stands for, up to its closing quote or the end: the place of that.
pub(super) fn unescape(text: &[u8], mut at: usize, out: &mut Vec<u8>) -> usize {
    loop {
        at = copy_plain(text, at, out);
        if byte(text, at) != b'\\' {
            return at;
        }
        at = unescape_one(text, at, out);
    }
}

fn unescape_one(raw: &[u8], at: usize, out: &mut Vec<u8>) -> usize {
    let plain = match byte(raw, at + 1) {
        b'b' => 0x08,
        b'f' => 0x0C,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'u' => {
            let Ok((scalar, end)) = unicode(raw, at) else {
                return raw.len();
            };
            out.extend_from_slice(scalar.encode_utf8(&mut [0; 4]).as_bytes());
            return end;
        }
        other => other,
    };
    out.push(plain);
    at + 2
}

/// What a string that was checked stands for, borrowed where it has no escapes.
pub(super) fn unescaped(raw: &[u8]) -> Cow<'_, [u8]> {
    if !raw.contains(&b'\\') {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    unescape(raw, 0, &mut out);
    Cow::Owned(out)
}

/// Where the digits that begin at `at` end.
#[inline(always)]
fn digits_end(text: &[u8], mut at: usize) -> usize {
    while byte(text, at).is_ascii_digit() {
        at += 1;
    }
    at
}

/// Passes over a number, checking how it is written: where it ends.
#[inline(always)]
pub(super) fn number(text: &[u8], start: usize) -> Result<usize, Flaw> {
    let int_start = start + usize::from(byte(text, start) == b'-');
    let mut at = digits_end(text, int_start);
    let int_len = at - int_start;
    if int_len == 0 {
        return Err(no_digit(text, at));
    }
    if int_len > 1 && byte(text, int_start) == b'0' {
        return Err(flaw(What::Number, start));
    }
    if byte(text, at) == b'.' {
        let fraction = at + 1;
        at = digits_end(text, fraction);
        if at == fraction {
            return Err(no_digit(text, at));
        }
    }
    if byte(text, at) | 0x20 == b'e' || int_len > 300 {
        at = exponent(text, at)?;
        // Whatever could come near the largest double is worth a proper look; nothing else is.
        let value = std::str::from_utf8(&text[start..at])
            .ok()
            .and_then(|number| number.parse::<f64>().ok());
        if !value.is_some_and(f64::is_finite) {
            return Err(flaw(What::NotFinite, start));
        }
    }
    Ok(at)
}

#[cold]
fn no_digit(text: &[u8], at: usize) -> Flaw {
    flaw(
        if at < text.len() { What::Number } else { What::Ended },
        at.min(text.len()),
    )
}

#[inline(never)]
fn exponent(text: &[u8], mut at: usize) -> Result<usize, Flaw> {
    if byte(text, at) | 0x20 != b'e' {
        return Ok(at);
    }
    at += 1;
    at += usize::from(matches!(byte(text, at), b'+' | b'-'));
    let digits = at;
    while byte(text, at).is_ascii_digit() {
        at += 1;
    }
    if at == digits {
        return Err(no_digit(text, at));
    }
    Ok(at)
}

/// Passes over `true`, `false` or `null`.
#[inline(always)]
pub(super) fn literal(text: &[u8], at: usize, word: &'static [u8]) -> Result<usize, Flaw> {
    match text.get(at..at + word.len()) {
        Some(found) if found == word => Ok(at + word.len()),
        Some(_) => Err(flaw(What::Unexpected, at)),
        None => Err(flaw(What::Ended, text.len())),
    }
}

/// The names of the objects that are open, as far as is needed to tell that none stands twice in one.
///
/// A fingerprint met twice proves nothing, nor does it when there is no more room; the object is then looked at again,
/// exactly, when it closes. So names that were chosen to collide cost a second look, and no more.
pub(super) struct Names {
    seen: [u32; Self::ROOM],
    len: usize,
}

impl Names {
    const ROOM: usize = 96;
    const ROOM_OF_ONE: usize = 32;

    pub fn new() -> Self {
        Self {
            seen: [0; Self::ROOM],
            len: 0,
        }
    }

    /// Where the names of an object that opens now will begin.
    #[inline(always)]
    pub fn open(&self) -> usize {
        self.len
    }

    /// Notes a name, a part of the text. False if it may have been there before.
    #[inline(always)]
    pub fn add(&mut self, open: usize, text: &[u8], start: usize, len: usize) -> bool {
        let print = fingerprint(text, start, len);
        let mut at = open;
        while at < self.len {
            if self.seen.get(at).is_none_or(|&other| other == print) {
                return false;
            }
            at += 1;
        }
        if at - open >= Self::ROOM_OF_ONE {
            return false;
        }
        let Some(free) = self.seen.get_mut(at) else {
            return false;
        };
        *free = print;
        self.len = at + 1;
        true
    }

    #[inline(always)]
    pub fn close(&mut self, open: usize) {
        self.len = open;
    }
}

#[inline(always)]
fn fingerprint(text: &[u8], start: usize, len: usize) -> u32 {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mixed = if len < 8 {
        short_part(text, start, len) ^ (len as u64) << 56
    } else {
        let tail = word(text, start + len - 8).unwrap_or(0);
        word(text, start).unwrap_or(0) ^ (tail ^ len as u64).wrapping_mul(ODD).rotate_right(29)
    };
    (mixed.wrapping_mul(ODD) >> 32) as u32
}

/// Up to seven bytes of the text as a word.
#[inline(always)]
pub(super) fn short_part(text: &[u8], start: usize, len: usize) -> u64 {
    match word(text, start) {
        Some(word) => word & !(u64::MAX << (8 * len)),
        None => short_word(text.get(start..start + len).unwrap_or_default()),
    }
}

/// Whether any name stands twice.
pub(super) fn any_twice(mut names: Vec<Cow<'_, [u8]>>) -> bool {
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// Checks values of JSON.
pub(super) struct Checker<'t> {
    text: &'t [u8],
    names: Names,
}

impl<'t> Checker<'t> {
    pub fn new(text: &'t str) -> Self {
        Self {
            text: text.as_bytes(),
            names: Names::new(),
        }
    }

    /// Checks the value that begins at `at`, with at most `depth` levels: where it ends.
    #[inline(always)]
    pub fn value(&mut self, at: usize, depth: u32) -> Result<usize, Flaw> {
        let text = self.text;
        match byte(text, at) {
            b'"' => Ok(string(text, at + 1)?.close + 1),
            b'-' | b'0'..=b'9' => number(text, at),
            b'{' => self.object(at, depth),
            b'[' => self.array(at, depth),
            b't' => literal(text, at, b"true"),
            b'f' => literal(text, at, b"false"),
            b'n' => literal(text, at, b"null"),
            _ => Err(self.unexpected(at)),
        }
    }

    #[cold]
    fn unexpected(&self, at: usize) -> Flaw {
        if at < self.text.len() {
            flaw(What::Unexpected, at)
        } else {
            flaw(What::Ended, self.text.len())
        }
    }

    #[inline(never)]
    fn array(&mut self, start: usize, depth: u32) -> Result<usize, Flaw> {
        let text = self.text;
        let Some(depth) = depth.checked_sub(1) else {
            return Err(flaw(What::TooDeep, start));
        };
        let mut at = skip_space(text, start + 1);
        if byte(text, at) == b']' {
            return Ok(at + 1);
        }
        loop {
            at = skip_space(text, self.value(at, depth)?);
            match byte(text, at) {
                b',' => at = skip_space(text, at + 1),
                b']' => return Ok(at + 1),
                _ => return Err(self.unexpected(at)),
            }
        }
    }

    #[inline(never)]
    fn object(&mut self, start: usize, depth: u32) -> Result<usize, Flaw> {
        let text = self.text;
        let Some(depth) = depth.checked_sub(1) else {
            return Err(flaw(What::TooDeep, start));
        };
        let mut at = skip_space(text, start + 1);
        if byte(text, at) == b'}' {
            return Ok(at + 1);
        }
        let open = self.names.open();
        let mut certain = true;
        loop {
            if byte(text, at) != b'"' {
                return Err(self.unexpected(at));
            }
            let name = string(text, at + 1)?;
            certain &= !name.has_escapes(at + 1) && self.names.add(open, text, at + 1, name.len);
            at = skip_space(text, name.close + 1);
            if byte(text, at) != b':' {
                return Err(self.unexpected(at));
            }
            at = skip_space(text, self.value(skip_space(text, at + 1), depth)?);
            match byte(text, at) {
                b',' => at = skip_space(text, at + 1),
                b'}' => break,
                _ => return Err(self.unexpected(at)),
            }
        }
        self.names.close(open);
        if !certain && any_twice(names_of(text, start)) {
            return Err(flaw(What::Duplicate, start));
        }
        Ok(at + 1)
    }
}

/// The names of an object that was checked.
#[cold]
fn names_of(text: &[u8], start: usize) -> Vec<Cow<'_, [u8]>> {
    let mut names = Vec::new();
    let mut at = start + 1;
    loop {
        at = skip_space(text, at);
        let Ok(name) = string(text, at + 1) else {
            return names;
        };
        names.push(unescaped(&text[at + 1..name.close]));
        at = skip_space(text, name.close + 1);
        at = skip_space(text, pass_over(text, skip_space(text, at + 1)));
        if byte(text, at) != b',' {
            return names;
        }
        at += 1;
    }
}

/// Where the value at `at` ends, if it is one; nothing is checked.
pub(super) fn pass_over(text: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < text.len() {
        match text[at] {
            b'"' => at = string_end(text, at + 1),
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                // A closing bracket that closes nothing belongs to whoever called.
                let Some(less) = depth.checked_sub(1) else {
                    return at;
                };
                depth = less;
                at += 1;
            }
            b',' | b':' if depth == 0 => return at,
            b' ' | b'\n' | b'\r' | b'\t' if depth == 0 => return at,
            _ => {
                at += 1;
                continue;
            }
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn string_end(text: &[u8], mut at: usize) -> usize {
    while at < text.len() {
        at = plain_end(text, at);
        match byte(text, at) {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), What> {
        match Checker::new(text).value(0, MAX_DEPTH) {
            Ok(end) if end == text.len() => Ok(()),
            Ok(_) => Err(What::Trailing),
            Err(flaw) => Err(flaw.what),
        }
    }

    #[test]
    fn accepts_json() {
        for text in [
            "null",
            "true",
            "false",
            "0",
            "-0",
            "-0.5e-3",
            "1E4",
            "1e308",
            "\"\"",
            "[]",
            "{}",
            "[ 1 , 2 ]",
            "{ \"a\" : { } , \"b\" : [ ] }",
            r#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\u0000""#,
            "\"a long string without anything special in it, longer than all the blocks that are read at once, é\"",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_json() {
        for (text, what) in [
            ("", What::Ended),
            ("[1", What::Ended),
            ("{\"a\"", What::Ended),
            ("\"abc", What::Ended),
            ("\"abc\\", What::Ended),
            ("nul", What::Ended),
            ("nulL", What::Unexpected),
            ("[1,]", What::Unexpected),
            ("{\"a\":1,}", What::Unexpected),
            ("{a:1}", What::Unexpected),
            ("+1", What::Unexpected),
            ("01", What::Number),
            ("1.", What::Ended),
            ("1.x", What::Number),
            ("-", What::Ended),
            ("1e", What::Ended),
            ("1e+x", What::Number),
            (".5", What::Unexpected),
            ("NaN", What::Unexpected),
            ("\"\t\"", What::Control),
            ("\"\\x\"", What::Escape),
            ("\"\\u12G4\"", What::Escape),
            ("1 2", What::Trailing),
        ] {
            assert_eq!(check(text), Err(what), "{text}");
        }
    }

    #[test]
    fn refuses_what_not_everybody_could_read() {
        for (text, what) in [
            ("1e999", What::NotFinite),
            ("-1e999", What::NotFinite),
            (&*"9".repeat(310), What::NotFinite),
            (r#""\ud800""#, What::LoneSurrogate),
            (r#""\ud800\u0041""#, What::LoneSurrogate),
            (r#""\udc00\ud800""#, What::LoneSurrogate),
            (r#"{"a":1,"a":2}"#, What::Duplicate),
            (r#"{"a":1,"\u0061":2}"#, What::Duplicate),
            (r#"[{"x":{"a":1,"b":2,"a":3}}]"#, What::Duplicate),
            (&*("[".repeat(33) + &"]".repeat(33)), What::TooDeep),
        ] {
            assert_eq!(check(text), Err(what), "{text}");
        }
        assert_eq!(check(&("[".repeat(32) + &"]".repeat(32))), Ok(()));
        assert_eq!(check(&("0.".to_owned() + &"0".repeat(400) + "1e400")), Ok(()));
    }

    #[test]
    fn names_of_wide_objects_are_compared_too() {
        let mut wide: String = (0..500)
            .map(|i| format!("\"name-{i:04}-end-of-name\":{{\"a\":[1,\"]\"]}},"))
            .collect();
        wide.pop();
        assert_eq!(check(&format!("{{{wide}}}")), Ok(()));
        assert_eq!(
            check(&format!("{{{wide},\"name-0007-end-of-name\":1}}")),
            Err(What::Duplicate)
        );
    }

    #[test]
    fn names_that_collide_are_told_apart() {
        assert_eq!(check(r#"{"12345678-a-12345678":1,"12345678-b-12345678":2}"#), Ok(()));
        assert_eq!(
            check(r#"{"12345678-a-12345678":1,"12345678-a-12345678":2}"#),
            Err(What::Duplicate)
        );
    }

    #[test]
    fn finds_specials_at_every_offset() {
        for len in 0..100 {
            for special in [b'"', b'\\', 0x1F, 0] {
                for more in 0..40 {
                    let mut text = vec![if len % 2 == 0 { 0xC3 } else { b' ' }; len];
                    assert_eq!(plain_end(&text, len / 3), len);
                    text.push(special);
                    text.extend_from_slice(&vec![special; more]);
                    assert_eq!(plain_end(&text, len / 3), len);
                }
            }
        }
    }

    #[test]
    fn passes_over_values() {
        for text in ["1", "\"a\\\"]\"", "[1,{\"a\":\"}\"}]", "null"] {
            let framed = format!("{text} ,");
            assert_eq!(pass_over(framed.as_bytes(), 0), text.len(), "{text}");
        }
        assert_eq!(pass_over(b"[[", 0), 2);
    }
}
