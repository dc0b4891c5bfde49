//! ProtoJSON: what the generated readers and writers of messages, and the frame's own, are made of.
//!
//! Owns how each kind of field looks in JSON, both ways (<https://protobuf.dev/programming-guides/json/>). It must never
//! know a particular message.

use std::borrow::Cow;
use std::collections::HashMap;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose};
use bytes::Bytes;
use prost_types::{Duration, Timestamp};

use super::scan::{self, Checker, Flaw, What, byte, flaw, skip_space};
use super::{Str, check, transcode};
use crate::error::{Reason, Refusal};

/// How deep a member that is skipped may be: enough for any payload in any message.
const SKIP_DEPTH: u32 = 64;

/// A message that has a form in JSON. Implemented by generated code.
pub trait ProtoJson: prost::Message + Default {
    /// Reads an object's members into the message.
    #[doc(hidden)]
    fn read_json(&mut self, reader: &mut Reader<'_>) -> Result<(), Fault>;

    /// Whether JSON can express all that the message holds, which may have come as protobuf.
    #[doc(hidden)]
    fn check(&self) -> Result<(), Fault>;

    /// Writes the message as JSON.
    fn write_json(&self, out: &mut Vec<u8>);

    /// The message as JSON.
    fn to_json(&self) -> String {
        let mut out = Vec::new();
        self.write_json(&mut out);
        String::from_utf8(out).unwrap_or_default()
    }

    /// Reads a message from JSON; members that it does not have are refused.
    fn from_json(text: &str) -> Result<Self, Refusal> {
        let mut reader = Reader::new(text, None);
        let mut message = Self::default();
        message.read_json(&mut reader)?;
        reader.end()?;
        Ok(message)
    }
}

/// Why something is not the JSON, or the protobuf, that it should be; on its way out it learns in which fields it is.
#[derive(Debug)]
pub struct Fault(Box<Inner>);

#[derive(Debug)]
struct Inner {
    reason: Reason,
    message: Cow<'static, str>,
    at: Option<u32>,
    /// The names of the fields around it, innermost first.
    path: Vec<Cow<'static, str>>,
    ready: Option<Refusal>,
}

impl Fault {
    #[cold]
    fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            reason,
            message: message.into(),
            at: None,
            path: Vec::new(),
            ready: None,
        }))
    }

    /// The bytes are not a frame.
    #[cold]
    pub(super) fn malformed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Reason::MalformedFrame, message)
    }

    /// A field's value is not allowed.
    #[cold]
    pub(super) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Reason::InvalidField, message)
    }

    /// A value is not one that everybody could read.
    #[cold]
    pub(super) fn payload(flaw: Flaw) -> Self {
        let reason = if flaw.what.is_malformed() {
            Reason::MalformedFrame
        } else {
            Reason::InvalidPayload
        };
        Self::new(reason, flaw.what.text()).at(flaw.at as usize)
    }

    #[cold]
    fn at(mut self, at: usize) -> Self {
        self.0.at = u32::try_from(at).ok();
        self
    }

    /// The same, as seen from the message that has the field.
    #[cold]
    #[must_use]
    pub fn within(mut self, field: &'static str) -> Self {
        self.0.path.push(field.into());
        self
    }

    /// The same, for a name that the sender chose.
    #[cold]
    #[must_use]
    pub(super) fn within_member(mut self, name: &str) -> Self {
        self.0.path.push(shortened(name).into());
        self
    }
}

/// As much of what a sender wrote as is fit to be said back.
#[cold]
pub(super) fn shortened(text: &str) -> String {
    const CHARS: usize = 200;
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl From<Flaw> for Fault {
    /// A flaw outside of payloads.
    #[cold]
    fn from(flaw: Flaw) -> Self {
        let invalid = !flaw.what.is_malformed();
        let reason = if invalid {
            Reason::InvalidField
        } else {
            Reason::MalformedFrame
        };
        Self::new(reason, flaw.what.text()).at(flaw.at as usize)
    }
}

impl From<Refusal> for Fault {
    #[cold]
    fn from(refusal: Refusal) -> Self {
        let mut fault = Self::new(refusal.reason, "");
        fault.0.ready = Some(refusal);
        fault
    }
}

impl From<Fault> for Refusal {
    #[cold]
    fn from(fault: Fault) -> Self {
        let inner = *fault.0;
        if let Some(ready) = inner.ready {
            return ready;
        }
        let path: Vec<&str> = inner.path.iter().rev().map(|name| &**name).collect();
        let path = path.join(".");
        let place = inner.at.map(|at| format!(" (at byte {at})")).unwrap_or_default();
        if path.is_empty() {
            return Refusal::new(inner.reason, format!("{}{place}", inner.message));
        }
        Refusal::new(inner.reason, format!("{path}: {}{place}", inner.message)).with("field", path)
    }
}

/// Which fields of a message were read.
#[derive(Default)]
pub struct Seen(u128);

/// Reads JSON from its beginning to its end.
pub struct Reader<'t> {
    text: &'t str,
    at: usize,
    source: Option<&'t Str>,
    /// Skip members that a message does not have rather than refuse them.
    pub(super) ignore_unknown: bool,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str, source: Option<&'t Str>) -> Self {
        Self {
            text,
            at: skip_space(text.as_bytes(), 0),
            source,
            ignore_unknown: false,
        }
    }

    /// Nothing must follow.
    pub(super) fn end(&self) -> Result<(), Fault> {
        if self.at < self.text.len() {
            Err(flaw(What::Trailing, self.at).into())
        } else {
            Ok(())
        }
    }

    #[inline(always)]
    fn peek(&self) -> u8 {
        byte(self.text.as_bytes(), self.at)
    }

    #[inline(always)]
    fn move_to(&mut self, at: usize) {
        self.at = skip_space(self.text.as_bytes(), at);
    }

    #[cold]
    fn unexpected(&self) -> Fault {
        let what = if self.at < self.text.len() {
            What::Unexpected
        } else {
            What::Ended
        };
        flaw(what, self.at.min(self.text.len())).into()
    }

    /// A value of another kind than the field has; or none at all.
    #[cold]
    fn wanted(&self, message: &'static str) -> Fault {
        match self.peek() {
            b'"' | b'{' | b'[' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9' => Fault::malformed(message).at(self.at),
            _ => self.unexpected(),
        }
    }

    /// Begins an object.
    #[inline]
    pub fn open(&mut self) -> Result<(), Fault> {
        if self.peek() != b'{' {
            return Err(self.wanted("must be an object"));
        }
        self.move_to(self.at + 1);
        Ok(())
    }

    /// The name of the next member of an object, if there is one more.
    #[inline(always)]
    pub fn member(&mut self, first: &mut bool) -> Result<Option<Cow<'t, str>>, Fault> {
        match self.peek() {
            b'}' => {
                self.move_to(self.at + 1);
                return Ok(None);
            }
            b',' if !*first => self.move_to(self.at + 1),
            b'"' if *first => {}
            _ => return Err(self.unexpected()),
        }
        *first = false;
        if self.peek() != b'"' {
            return Err(self.unexpected());
        }
        let name = self.cow()?;
        if self.peek() != b':' {
            return Err(self.unexpected());
        }
        self.move_to(self.at + 1);
        Ok(Some(name))
    }

    /// Notes that a field was read, which must not happen twice.
    #[inline]
    pub fn once(&self, seen: &mut Seen, number: u32, field: &'static str) -> Result<(), Fault> {
        let bit = 1 << (number & 127);
        if seen.0 & bit != 0 {
            return Err(Fault::malformed("is there twice").at(self.at).within(field));
        }
        seen.0 |= bit;
        Ok(())
    }

    /// A member that the message does not have.
    #[cold]
    pub fn unknown(&mut self, name: &str) -> Result<(), Fault> {
        if !self.ignore_unknown {
            return Err(Fault::new(Reason::UnknownField, "there is no such field")
                .at(self.at)
                .within_member(name));
        }
        self.skip(SKIP_DEPTH)
            .map(drop)
            .map_err(|flaw| Fault::from(flaw).within_member(name))
    }

    /// Passes over a value, checking it: its text.
    #[inline]
    pub(super) fn skip(&mut self, depth: u32) -> Result<&'t str, Flaw> {
        let end = Checker::new(self.text).value(self.at, depth)?;
        let start = self.at;
        self.move_to(end);
        Ok(&self.text[start..end])
    }

    /// Passes over a value, checking it as a payload: its text, as a slice of the source.
    #[inline]
    pub(super) fn value(&mut self, depth: u32) -> Result<Str, Fault> {
        let text = self.skip(depth).map_err(Fault::payload)?;
        Ok(self
            .source
            .map_or_else(|| Str::from(text), |source| source.slice_of(text)))
    }

    /// Passes over `null`, if that is what stands here.
    #[inline(always)]
    pub fn null(&mut self) -> Result<bool, Fault> {
        if self.peek() != b'n' {
            return Ok(false);
        }
        let end = scan::literal(self.text.as_bytes(), self.at, b"null")?;
        self.move_to(end);
        Ok(true)
    }

    /// Reads `true` or `false`.
    pub fn bool(&mut self) -> Result<bool, Fault> {
        let (word, value): (&[u8], _) = match self.peek() {
            b't' => (b"true", true),
            b'f' => (b"false", false),
            _ => return Err(self.wanted("must be true or false")),
        };
        let end = scan::literal(self.text.as_bytes(), self.at, word)?;
        self.move_to(end);
        Ok(value)
    }

    /// A string, borrowed from the text where it has no escapes.
    #[inline(always)]
    fn cow(&mut self) -> Result<Cow<'t, str>, Fault> {
        let text = self.text;
        let start = self.at + 1;
        let close = scan::plain_end(text.as_bytes(), start);
        if byte(text.as_bytes(), close) != b'"' {
            return self.string_with_escapes();
        }
        self.move_to(close + 1);
        Ok(Cow::Borrowed(&text[start..close]))
    }

    #[inline(never)]
    fn string_with_escapes(&mut self) -> Result<Cow<'t, str>, Fault> {
        let start = self.at + 1;
        let string = scan::string(self.text.as_bytes(), start)?;
        let mut out = Vec::with_capacity(string.len + 8);
        scan::unescape(self.text.as_bytes(), start, &mut out);
        self.move_to(string.close + 1);
        String::from_utf8(out)
            .map(Cow::Owned)
            .map_err(|_| flaw(What::Utf8, start).into())
    }

    #[inline(always)]
    fn quoted(&mut self) -> Result<Cow<'t, str>, Fault> {
        if self.peek() != b'"' {
            return Err(self.wanted("must be a string"));
        }
        self.cow()
    }

    /// Reads a string.
    pub fn string(&mut self) -> Result<String, Fault> {
        self.quoted().map(Cow::into_owned)
    }

    /// Reads a string, as a slice of the source where it has no escapes.
    #[inline(always)]
    pub(super) fn str(&mut self) -> Result<Str, Fault> {
        let text = self.quoted()?;
        Ok(match (text, self.source) {
            (Cow::Borrowed(text), Some(source)) => source.slice_of(text),
            (text, _) => Str::from(text.into_owned()),
        })
    }

    /// Reads bytes: base64, either alphabet, with or without padding.
    pub fn bytes(&mut self) -> Result<Bytes, Fault> {
        let at = self.at;
        let text = self.quoted()?;
        let engine = if text.contains(['-', '_']) {
            &FROM_URL_SAFE
        } else {
            &FROM_STANDARD
        };
        let bytes = engine
            .decode(text.as_bytes())
            .map_err(|_| Fault::invalid("must be base64").at(at))?;
        Ok(Bytes::from(bytes))
    }

    /// Reads an integer that fits: a number or a string, of which the fraction, if any, is zero.
    fn integer(&mut self, least: i128, most: i128) -> Result<i128, Fault> {
        let at = self.at;
        let quoted = self.peek() == b'"';
        let text: Cow<'t, str> = match self.peek() {
            b'"' => self.cow()?,
            b'-' | b'0'..=b'9' => {
                let end = scan::number(self.text.as_bytes(), at)?;
                let text = &self.text[at..end];
                self.move_to(end);
                text.into()
            }
            _ => return Err(self.wanted("must be an integer")),
        };
        let bytes = text.as_bytes();
        if quoted && (bytes.is_empty() || scan::number(bytes, 0) != Ok(bytes.len())) {
            return Err(Fault::malformed("must be an integer").at(at));
        }
        match exact_integer(bytes) {
            Some(value) if (least..=most).contains(&value) => Ok(value),
            _ => Err(Fault::invalid(format!("must be an integer from {least} to {most}")).at(at)),
        }
    }

    /// Reads an unsigned integer of 32 bits.
    pub fn u32(&mut self) -> Result<u32, Fault> {
        self.integer(0, u32::MAX.into()).map(|value| value as u32)
    }

    /// Reads an unsigned integer of 64 bits.
    pub fn u64(&mut self) -> Result<u64, Fault> {
        self.integer(0, u64::MAX.into()).map(|value| value as u64)
    }

    /// Reads a signed integer of 32 bits.
    pub fn i32(&mut self) -> Result<i32, Fault> {
        self.integer(i32::MIN.into(), i32::MAX.into()).map(|value| value as i32)
    }

    /// Reads an enum by its name or number. None: a name that is unknown and to be ignored.
    pub fn r#enum(&mut self, by_name: fn(&str) -> Option<i32>) -> Result<Option<i32>, Fault> {
        if self.peek() != b'"' {
            return match self.peek() {
                b'-' | b'0'..=b'9' => self.i32().map(Some),
                _ => Err(self.wanted("must be the name or the number of an enum's value")),
            };
        }
        let at = self.at;
        let name = self.cow()?;
        match by_name(&name) {
            Some(value) => Ok(Some(value)),
            None if self.ignore_unknown => Ok(None),
            None => Err(Fault::invalid("the enum has no value by that name").at(at)),
        }
    }

    /// Reads a point in time.
    pub fn timestamp(&mut self) -> Result<Timestamp, Fault> {
        let at = self.at;
        let text = self.quoted()?;
        parse_timestamp(text.as_bytes())
            .ok_or_else(|| Fault::invalid("must be a time of the years 1 to 9999, like 2026-01-31T12:00:00.5Z").at(at))
    }

    /// Reads a span of time.
    pub fn duration(&mut self) -> Result<Duration, Fault> {
        let at = self.at;
        let text = self.quoted()?;
        parse_duration(text.as_bytes())
            .ok_or_else(|| Fault::invalid("must be a number of seconds up to 315576000000, like \"1.5s\"").at(at))
    }

    /// Reads an array.
    pub fn list<T>(
        &mut self,
        list: &mut Vec<T>,
        mut item: impl FnMut(&mut Self) -> Result<Option<T>, Fault>,
    ) -> Result<(), Fault> {
        if self.peek() != b'[' {
            return Err(self.wanted("must be an array"));
        }
        self.move_to(self.at + 1);
        if self.peek() == b']' {
            self.move_to(self.at + 1);
            return Ok(());
        }
        loop {
            list.extend(item(self)?);
            match self.peek() {
                b',' => self.move_to(self.at + 1),
                b']' => {
                    self.move_to(self.at + 1);
                    return Ok(());
                }
                _ => return Err(self.unexpected()),
            }
        }
    }

    /// Reads an object whose members are all strings.
    pub fn map(&mut self, map: &mut HashMap<String, String>) -> Result<(), Fault> {
        self.open()?;
        let mut first = true;
        while let Some(name) = self.member(&mut first)? {
            let at = self.at;
            let value = self.string().map_err(|fault| fault.within_member(&name))?;
            if map.insert(name.clone().into_owned(), value).is_some() {
                return Err(Fault::malformed("is there twice").at(at).within_member(&name));
            }
        }
        Ok(())
    }

    /// Reads the frame's metadata: few enough members that comparing each to all is cheap.
    pub(super) fn metadata(&mut self) -> Result<Vec<(Str, Str)>, Fault> {
        self.open()?;
        let mut entries: Vec<(Str, Str)> = Vec::new();
        let mut first = true;
        while let Some(name) = self.member(&mut first)? {
            let at = self.at;
            let value = self.str().map_err(|fault| fault.within_member(&name))?;
            if entries.iter().any(|(known, _)| *known == *name) {
                return Err(Fault::malformed("is there twice").at(at).within_member(&name));
            }
            if entries.len() >= check::METADATA_ENTRIES {
                return Err(check::too_many_entries("metadata").into());
            }
            let name = match (name, self.source) {
                (Cow::Borrowed(name), Some(source)) => source.slice_of(name),
                (name, _) => Str::from(name.into_owned()),
            };
            entries.push((name, value));
        }
        Ok(entries)
    }
}

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const FROM_STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
const FROM_URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);

/// The integer that a number is, if it is one that fits: `12`, `12.0`, `1.2e1`, `120e-1`.
fn exact_integer(number: &[u8]) -> Option<i128> {
    let negative = number.first() == Some(&b'-');
    let number = &number[usize::from(negative)..];
    let (mantissa, exponent) = match number.iter().position(|byte| byte | 0x20 == b'e') {
        Some(at) => (
            &number[..at],
            std::str::from_utf8(&number[at + 1..]).ok()?.parse::<i64>().ok(),
        ),
        None => (number, Some(0)),
    };
    let point = mantissa.iter().position(|&byte| byte == b'.').unwrap_or(mantissa.len());
    let digits: Vec<u8> = mantissa.iter().filter(|byte| byte.is_ascii_digit()).copied().collect();
    let Some(last) = digits.iter().rposition(|&digit| digit != b'0') else {
        return Some(0);
    };
    // How many digits are before the point, once the exponent has moved it.
    let whole = exponent?.checked_add(i64::try_from(point).ok()?)?;
    let leading = digits.iter().take_while(|&&digit| digit == b'0').count() as i64;
    if whole <= last as i64 || whole - leading > 20 {
        return None;
    }
    let value = (0..whole).fold(0_i128, |value, place| {
        let digit = digits.get(place as usize).map_or(0, |digit| digit - b'0');
        value * 10 + i128::from(digit)
    });
    Some(if negative { -value } else { value })
}

const LEAST_SECONDS: i64 = -62_135_596_800;
const MOST_SECONDS: i64 = 253_402_300_799;
const MOST_DURATION: i64 = 315_576_000_000;

/// Reads `count` digits.
fn digits(text: &[u8], at: usize, count: usize) -> Option<i64> {
    text.get(at..at + count)?.iter().try_fold(0, |value, &digit| {
        digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0'))
    })
}

/// Reads a fraction of a second, if one is there: its nanoseconds, and where it ends.
fn fraction(text: &[u8], at: usize) -> Option<(i32, usize)> {
    if byte(text, at) != b'.' {
        return Some((0, at));
    }
    let count = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=9).contains(&count) {
        return None;
    }
    let value = digits(text, at + 1, count)? * 10_i64.pow(9 - count as u32);
    Some((value as i32, at + 1 + count))
}

fn parse_timestamp(text: &[u8]) -> Option<Timestamp> {
    let (year, month, day) = (digits(text, 0, 4)?, digits(text, 5, 2)?, digits(text, 8, 2)?);
    let (hour, minute, second) = (digits(text, 11, 2)?, digits(text, 14, 2)?, digits(text, 17, 2)?);
    let marks = [text[4], text[7], text[10], text[13], text[16]];
    if marks != *b"--T::" || !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (nanos, at) = fraction(text, 19)?;
    let offset = match text.get(at..)? {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (digits(text, at + 1, 2)?, digits(text, at + 4, 2)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = hours * 3600 + minutes * 60;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    (LEAST_SECONDS..=MOST_SECONDS)
        .contains(&seconds)
        .then_some(Timestamp { seconds, nanos })
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the Gregorian calendar, counted in years that begin in March, so that leap days come last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

fn parse_duration(text: &[u8]) -> Option<Duration> {
    let negative = text.first() == Some(&b'-');
    let start = usize::from(negative);
    let count = text[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=12).contains(&count) {
        return None;
    }
    let seconds = digits(text, start, count)?;
    let (nanos, end) = fraction(text, start + count)?;
    if text.get(end..) != Some(b"s") || seconds > MOST_DURATION || (seconds == MOST_DURATION && nanos > 0) {
        return None;
    }
    Some(if negative {
        Duration {
            seconds: -seconds,
            nanos: -nanos,
        }
    } else {
        Duration { seconds, nanos }
    })
}

/// Whether a time that came as protobuf can be written as JSON.
pub fn check_timestamp(timestamp: Option<&Timestamp>) -> Result<(), Fault> {
    let Some(Timestamp { seconds, nanos }) = timestamp else {
        return Ok(());
    };
    if (LEAST_SECONDS..=MOST_SECONDS).contains(seconds) && (0..1_000_000_000).contains(nanos) {
        return Ok(());
    }
    Err(Fault::invalid("must be a time of the years 1 to 9999"))
}

/// Whether a span of time that came as protobuf can be written as JSON.
pub fn check_duration(duration: Option<&Duration>) -> Result<(), Fault> {
    let Some(Duration { seconds, nanos }) = duration else {
        return Ok(());
    };
    let signs = (*seconds >= 0 && *nanos >= 0) || (*seconds <= 0 && *nanos <= 0);
    let most =
        seconds.abs_diff(0) < MOST_DURATION as u64 || (seconds.abs_diff(0) == MOST_DURATION as u64 && *nanos == 0);
    if signs && most && nanos.abs_diff(0) < 1_000_000_000 {
        return Ok(());
    }
    Err(Fault::invalid(
        "must be a span of at most 315576000000 s, its parts of one sign",
    ))
}

/// Writes the members of an object.
pub struct Members<'o> {
    out: &'o mut Vec<u8>,
    begun: bool,
}

impl<'o> Members<'o> {
    /// Begins an object.
    #[inline(always)]
    pub fn open(out: &'o mut Vec<u8>) -> Self {
        Self { out, begun: false }
    }

    /// Begins a member, given its name as `,"name":`.
    #[inline(always)]
    pub fn name(&mut self, name: &'static str) -> &mut Vec<u8> {
        if self.begun {
            self.out.extend_from_slice(name.as_bytes());
        } else {
            self.begun = true;
            self.out.push(b'{');
            self.out.extend_from_slice(&name.as_bytes()[1..]);
        }
        self.out
    }

    /// Ends the object.
    #[inline(always)]
    pub fn close(self) {
        self.out.extend_from_slice(if self.begun { b"}" } else { b"{}" });
    }
}

/// Whether a field has another value than the one that it has when it is left out.
pub fn is_set<T: Default + PartialEq>(value: &T) -> bool {
    *value != T::default()
}

/// Writes a string.
#[inline]
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    transcode::put_string(out, text.as_bytes());
}

/// Writes `true` or `false`.
pub fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

/// Writes an unsigned integer of 32 bits.
pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    transcode::put_integer(out, value.into());
}

/// Writes a signed integer of 32 bits.
pub fn put_i32(out: &mut Vec<u8>, value: i32) {
    if value < 0 {
        out.push(b'-');
    }
    transcode::put_integer(out, value.unsigned_abs().into());
}

/// Writes an unsigned integer of 64 bits, as a string.
pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.push(b'"');
    transcode::put_integer(out, value);
    out.push(b'"');
}

/// Writes bytes as base64.
pub fn put_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, b'=');
    let written = general_purpose::STANDARD
        .encode_slice(bytes, &mut out[start..])
        .unwrap_or(0);
    out.truncate(start + written);
    out.push(b'"');
}

/// Writes an enum by its name, or by its number where that has no name.
pub fn put_enum(out: &mut Vec<u8>, value: i32, name: Option<&'static str>) {
    match name {
        Some(name) => put_string(out, name),
        None => put_i32(out, value),
    }
}

fn put_two(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&[b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8]);
}

/// Writes a fraction of a second: in 3, 6 or 9 digits, or not at all.
fn put_fraction(out: &mut Vec<u8>, nanos: u32) {
    let (mut value, count) = match nanos {
        0 => return,
        _ if nanos.is_multiple_of(1_000_000) => (nanos / 1_000_000, 3),
        _ if nanos.is_multiple_of(1000) => (nanos / 1000, 6),
        _ => (nanos, 9),
    };
    let mut text = *b".000000000";
    for digit in text[1..=count].iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    out.extend_from_slice(&text[..=count]);
}

/// Writes a point in time; one that JSON cannot express becomes the nearest that it can.
pub fn put_timestamp(out: &mut Vec<u8>, timestamp: &Timestamp) {
    let seconds = timestamp.seconds.clamp(LEAST_SECONDS, MOST_SECONDS);
    let nanos = timestamp.nanos.clamp(0, 999_999_999);
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    out.push(b'"');
    put_two(out, year / 100);
    put_two(out, year % 100);
    for (mark, value) in [
        (b'-', month),
        (b'-', day),
        (b'T', of_day / 3600),
        (b':', of_day / 60 % 60),
        (b':', of_day % 60),
    ] {
        out.push(mark);
        put_two(out, value);
    }
    put_fraction(out, nanos as u32);
    out.extend_from_slice(b"Z\"");
}

/// Writes a span of time; one that JSON cannot express becomes the nearest that it can.
pub fn put_duration(out: &mut Vec<u8>, duration: &Duration) {
    let seconds = duration.seconds.clamp(-MOST_DURATION, MOST_DURATION);
    let nanos = duration.nanos.clamp(-999_999_999, 999_999_999);
    let whole = seconds.unsigned_abs();
    let nanos = if whole == MOST_DURATION as u64 { 0 } else { nanos };
    out.push(b'"');
    if seconds < 0 || (seconds == 0 && nanos < 0) {
        out.push(b'-');
    }
    transcode::put_integer(out, whole);
    put_fraction(out, nanos.unsigned_abs());
    out.extend_from_slice(b"s\"");
}

/// Writes an array.
pub fn put_list<T>(out: &mut Vec<u8>, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        put(out, item);
    }
    out.push(b']');
}

/// Writes a map, its members in the order of their names, so that the same message always has the same text.
pub fn put_map(out: &mut Vec<u8>, map: &HashMap<String, String>) {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_unstable();
    out.push(b'{');
    for (place, (name, value)) in entries.into_iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        put_string(out, name);
        out.push(b':');
        put_string(out, value);
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Option<(i64, i32)> {
        parse_timestamp(text.as_bytes()).map(|time| (time.seconds, time.nanos))
    }

    fn shown(seconds: i64, nanos: i32) -> String {
        let mut out = Vec::new();
        put_timestamp(&mut out, &Timestamp { seconds, nanos });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn timestamps() {
        assert_eq!(time("1970-01-01T00:00:00Z"), Some((0, 0)));
        assert_eq!(time("2000-02-29T23:59:59.5Z"), Some((951_868_799, 500_000_000)));
        assert_eq!(time("0001-01-01T00:00:00Z"), Some((LEAST_SECONDS, 0)));
        assert_eq!(
            time("9999-12-31T23:59:59.999999999Z"),
            Some((MOST_SECONDS, 999_999_999))
        );
        assert_eq!(time("1970-01-01T01:30:00+01:30"), Some((0, 0)));
        assert_eq!(time("1969-12-31T23:00:00.000000001-01:00"), Some((0, 1)));
        for refused in [
            "",
            "1970-01-01",
            "1970-01-01T00:00:00",
            "1970-01-01 00:00:00Z",
            "1970-01-01T00:00:00z",
            "1970-02-29T00:00:00Z",
            "1970-13-01T00:00:00Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:00:60Z",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00.0000000001Z",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "0000-01-01T00:00:00Z",
            "1970-01-01T00:00:00+0100",
            "1970-01-01T00:00:00Zx",
            "+970-01-01T00:00:00Z",
            "1970-01-01T00:00:00+24:00",
            "197é-01-01T00:00Z",
        ] {
            assert_eq!(time(refused), None, "{refused}");
        }
    }

    #[test]
    fn timestamps_there_and_back() {
        assert_eq!(shown(0, 0), "\"1970-01-01T00:00:00Z\"");
        assert_eq!(shown(-1, 1), "\"1969-12-31T23:59:59.000000001Z\"");
        assert_eq!(shown(i64::MAX, -5), "\"9999-12-31T23:59:59Z\"");
        let mut seconds = LEAST_SECONDS;
        while seconds <= MOST_SECONDS {
            for nanos in [0, 1_000_000, 120_000_000, 1000, 999_999_000, 1, 999_999_999] {
                let text = shown(seconds, nanos);
                assert_eq!(time(&text[1..text.len() - 1]), Some((seconds, nanos)), "{text}");
            }
            seconds += 86_400 * 17 + 12_347;
        }
    }

    #[test]
    fn durations() {
        let parse = |text: &str| parse_duration(text.as_bytes()).map(|span| (span.seconds, span.nanos));
        assert_eq!(parse("1.5s"), Some((1, 500_000_000)));
        assert_eq!(parse("-0.000000001s"), Some((0, -1)));
        assert_eq!(parse("315576000000s"), Some((MOST_DURATION, 0)));
        for refused in [
            "",
            "s",
            "1",
            "1.s",
            ".5s",
            "1.0000000000s",
            "315576000001s",
            "315576000000.1s",
            "1 s",
            "--1s",
            "+1s",
            "1m",
        ] {
            assert_eq!(parse(refused), None, "{refused}");
        }
        for (seconds, nanos, text) in [
            (0, 0, "0s"),
            (1, 500_000_000, "1.500s"),
            (0, -1000, "-0.000001s"),
            (-3, -1, "-3.000000001s"),
        ] {
            let mut out = Vec::new();
            put_duration(&mut out, &Duration { seconds, nanos });
            assert_eq!(String::from_utf8(out).unwrap(), format!("\"{text}\""));
            assert_eq!(parse(text), Some((seconds, nanos)));
        }
    }

    #[test]
    fn durations_out_of_range() {
        for (seconds, nanos) in [(1, -1), (-1, 1), (0, 1_000_000_000), (MOST_DURATION, 1), (i64::MIN, 0)] {
            assert!(check_duration(Some(&Duration { seconds, nanos })).is_err());
        }
        assert!(
            check_duration(Some(&Duration {
                seconds: -MOST_DURATION,
                nanos: 0
            }))
            .is_ok()
        );
    }

    #[test]
    fn integers() {
        for (text, value) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("12", Some(12)),
            ("12.0", Some(12)),
            ("1.2e1", Some(12)),
            ("120e-1", Some(12)),
            ("0.0012e4", Some(12)),
            ("-1E3", Some(-1000)),
            ("18446744073709551615", Some(u64::MAX.into())),
            ("-9223372036854775808", Some(i64::MIN.into())),
            ("0e999999999999999999999", Some(0)),
            ("1e-400", None),
            ("1.5", None),
            ("1e21", None),
            ("1e99999999999999999999", None),
            ("0.1e9223372036854775807", None),
        ] {
            assert_eq!(exact_integer(text.as_bytes()), value, "{text}");
        }
        let read = |text: &str| Reader::new(text, None).u32().ok();
        assert_eq!(read("4294967295"), Some(u32::MAX));
        assert_eq!(read("\"7\""), Some(7));
        assert_eq!(read("\"7.0\""), Some(7));
        for refused in [
            "4294967296",
            "-1",
            "\"\"",
            "\" 7\"",
            "\"07\"",
            "07",
            "true",
            "\"7x\"",
            "1e999",
        ] {
            assert_eq!(read(refused), None, "{refused}");
        }
    }

    #[test]
    fn base64_in_all_its_spellings() {
        let read = |text: &str| Reader::new(text, None).bytes().ok();
        for text in [
            "\"+/+/AQ==\"",
            "\"+/+/AQ\"",
            "\"-_-_AQ==\"",
            "\"-_-_AQ\"",
            "\"-_-_A\\u0051\"",
        ] {
            assert_eq!(read(text).as_deref(), Some(&[0xFB, 0xFF, 0xBF, 1][..]), "{text}");
        }
        for refused in ["\"A\"", "\"AQ=\\n\"", "\"+_AQ\"", "\"A Q\"", "1"] {
            assert_eq!(read(refused), None, "{refused}");
        }
        let mut out = Vec::new();
        put_base64(&mut out, &[0xFB, 0xFF, 0xBF, 1]);
        assert_eq!(out, b"\"+/+/AQ==\"");
    }
}
