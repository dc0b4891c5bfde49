//! The record: what is kept on disk of a frame, or of chunks of one reply that follow each other in the log.
//!
//! Owns every byte of it, and that whatever was written is either read as it was or refused. It must never trust what it reads,
//! nor know where records are kept. A format that was once in use is read for ever (`tests/golden/records.jsonl`).
//!
//! ```text
//!   key     session  8 bytes, the most significant first, as those of the seq are: keys sort as the log goes
//!           seq      8 bytes; of chunks, the last one's
//!   value   format   1 byte
//!           checksum 4 bytes, the least significant first: CRC-32 of the key, the format, and all that follows the checksum
//!           kind     1 byte: a frame, or chunks
//!           offset   varint
//!           content  a frame: flags, the header fields that the flags name, one byte that says what the body is, the body
//!                    chunks: flags, header, how many, for each when, which index and how much text, then all the text
//! ```
//!
//! Numbers are varints, text and messages begin with their length, the body ends with the record. Bodies are kept as they came.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost_types::Timestamp;

use crate::frame::{
    Any, Body, Control, Frame, Payload, ProtoJson, SUBSTANCE_VERSION, Sealed, Str, check_timestamp, pb, put_varint,
    take_varint,
};
use crate::log::Seen;
use crate::log::folded::{Chunk, Folded};

/// Where a record belongs: its key says so, and its checksum confirms it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The store's number for the session.
    pub session: u64,
    /// The seq of the frame, or of the last of the chunks.
    pub seq: u64,
}

/// A record that was read.
#[derive(Debug)]
pub struct Record {
    /// How many bytes of records the session's log had before this one.
    pub offset: u64,
    /// What it holds.
    pub what: What,
}

/// What a record holds.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a frame goes from here into what holds it, and most are frames"
)]
pub enum What {
    /// One frame, and what dedup needs of it.
    Frame(Frame, Option<Seen>),
    /// Chunks that follow each other in the log.
    Chunks {
        /// The seq of the first of them.
        first: u64,
        /// Any stretch of them.
        folded: Folded,
    },
}

/// Why something is nothing for the log: a mistake of who wanted it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotLogged(pub &'static str);

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corrupt {
    /// There are too few of them for any record.
    TooShort,
    /// They are of a format that this version does not know, as a newer one may have written them.
    Format(u8),
    /// They are not what was written, or not where.
    Checksum,
    /// What was written is no record.
    Content(&'static str),
}

const FORMAT: u8 = 1;

/// The bytes of the format and the checksum.
const HEAD_BYTES: usize = 5;

const KIND_FRAME: u8 = 1;
const KIND_CHUNKS: u8 = 2;

// Which fields there are. Those of most frames come first, so that they take one byte or two.
const TYPE: u64 = 1 << 0;
const FROM: u64 = 1 << 1;
const REPLY_TO: u64 = 1 << 2;
const ATTEMPT: u64 = 1 << 3;
const TIMESTAMP: u64 = 1 << 4;
const INDEX: u64 = 1 << 5;
const LAST: u64 = 1 << 6;
const ID: u64 = 1 << 7;
const SEEN: u64 = 1 << 8;
/// The sender that dedup knows is made of `from`, and not kept.
const SENDER_IS_FROM: u64 = 1 << 9;
const SUBSTANCE: u64 = 1 << 10;
const TO: u64 = 1 << 11;
const METADATA: u64 = 1 << 12;
const OPTIONS: u64 = 1 << 13;
const FOLDED_FROM: u64 = 1 << 14;

const FLAGS_OF_FRAMES: u64 = (FOLDED_FROM << 1) - 1;
const FLAGS_OF_CHUNKS: u64 = TYPE | FROM | REPLY_TO | ATTEMPT;

const BODY_NONE: u8 = 0;
const BODY_PAYLOAD_TEXT: u8 = 1;
const BODY_PAYLOAD_WIRE: u8 = 2;
const BODY_DATA: u8 = 3;
const BODY_MESSAGE: u8 = 4;
const BODY_TEXT: u8 = 5;
const BODY_ERROR: u8 = 6;
const BODY_RESTARTED: u8 = 7;

/// The least that is kept of a chunk beside its text, in bytes.
const CHUNK_BYTES: usize = 4;

const BAD_TIME: &str = "it has a time that cannot be";

impl Place {
    /// The key of the record.
    pub fn key(self) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.session.to_be_bytes());
        key[8..].copy_from_slice(&self.seq.to_be_bytes());
        key
    }

    /// The place that a key speaks of, if it is one.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let (session, seq) = key.split_first_chunk()?;
        Some(Self {
            session: u64::from_be_bytes(*session),
            seq: u64::from_be_bytes(seq.try_into().ok()?),
        })
    }
}

/// Adds the record of a frame to what is there; nothing, if it is refused.
pub fn write_frame(
    out: &mut Vec<u8>,
    place: Place,
    offset: u64,
    frame: &Frame,
    seen: Option<&Seen>,
) -> Result<(), NotLogged> {
    check(place, frame)?;
    let seen = seen.map(|seen| (seen, is_sender(&seen.sender, frame.from.as_deref())));
    let start = begin(out, KIND_FRAME, offset);
    put_varint(out, flags_of(frame, seen));
    put_header(out, frame);
    put_rest(out, frame);
    if let Some((seen, is_from)) = seen {
        put_seen(out, seen, is_from);
    }
    put_body(out, &frame.body);
    seal(place, &mut out[start..]);
    Ok(())
}

/// Adds one record of at least two chunks of one reply, whose seqs follow each other, to what is there; nothing, if it is
/// refused.
pub fn write_chunks(out: &mut Vec<u8>, place: Place, offset: u64, chunks: &[Arc<Sealed>]) -> Result<(), NotLogged> {
    let last = check_chunks(place, chunks)?;
    let start = begin(out, KIND_CHUNKS, offset);
    put_varint(out, flags_of(last, None) & FLAGS_OF_CHUNKS);
    put_header(out, last);
    put_varint(out, chunks.len() as u64);
    let (mut time, mut index) = (Timestamp::default(), 0);
    for chunk in chunks {
        let now = chunk.timestamp.unwrap_or_default();
        put_signed(out, now.seconds - time.seconds);
        put_signed(out, i64::from(now.nanos) - i64::from(time.nanos));
        let place = chunk.index.unwrap_or_default();
        put_varint(out, u64::from(place.wrapping_sub(index)));
        put_varint(out, chunk.chunk_text().map_or(0, |text| text.len() as u64));
        (time, index) = (now, place);
    }
    for text in chunks.iter().filter_map(|chunk| chunk.chunk_text()) {
        out.extend_from_slice(text.as_bytes());
    }
    seal(place, &mut out[start..]);
    Ok(())
}

/// Reads the record at a place, which is of this session.
pub fn read(place: Place, session: &Str, value: &[u8]) -> Result<Record, Corrupt> {
    let Opened { kind, offset, end } = Opened::new(place, value)?;
    let value = Bytes::copy_from_slice(value);
    let mut reader = Reader { value, at: end };
    let frame = Frame {
        session_id: session.clone(),
        seq: place.seq,
        ..Frame::default()
    };
    let what = match kind {
        KIND_FRAME => reader.frame(frame)?,
        KIND_CHUNKS => reader.chunks(frame)?,
        _ => return Err(Corrupt::Content("its kind is unknown")),
    };
    Ok(Record { offset, what })
}

/// The offset that the record has, once its checksum was found to be right.
pub fn offset_of(place: Place, value: &[u8]) -> Result<u64, Corrupt> {
    Opened::new(place, value).map(|opened| opened.offset)
}

/// Writes the checksum of a record into it, if it is long enough to have one.
pub fn seal(place: Place, record: &mut [u8]) {
    let checksum = checksum(place, record).to_le_bytes();
    if let Some(old) = record.get_mut(1..HEAD_BYTES) {
        old.copy_from_slice(&checksum);
    }
}

/// What dedup calls the members that this address is of: with what stands for a user, if it has that.
fn sender_of(from: &pb::Address) -> Str {
    match from.subject.is_empty() {
        true => Str::from(&*from.member_id),
        false => Str::from(format!("{}\n{}", from.subject, from.member_id)),
    }
}

fn is_sender(sender: &str, from: Option<&pb::Address>) -> bool {
    let Some(from) = from else { return false };
    let name = match from.subject.is_empty() {
        true => Some(sender),
        false => sender
            .strip_prefix(&*from.subject)
            .and_then(|name| name.strip_prefix('\n')),
    };
    name == Some(&from.member_id)
}

fn checksum(place: Place, record: &[u8]) -> u32 {
    let mut head = [0; 17];
    head[..16].copy_from_slice(&place.key());
    // A format that comes to be must not be one flipped bit away from this one.
    head[16] = record.first().copied().unwrap_or_default();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head);
    hasher.update(record.get(HEAD_BYTES..).unwrap_or_default());
    hasher.finalize()
}

/// Refuses what the log is not for, and what could not be read again.
fn check(place: Place, frame: &Frame) -> Result<(), NotLogged> {
    let no_time = |_| NotLogged(BAD_TIME);
    check_timestamp(frame.timestamp.as_ref()).map_err(no_time)?;
    if let Some(options) = &frame.options {
        options.check().map_err(no_time)?;
    }
    match &frame.body {
        Body::Error(error) => error.check().map_err(no_time)?,
        Body::Control(control) => match &**control {
            Control::Restarted(restarted) => restarted.check().map_err(no_time)?,
            _ => return Err(NotLogged("it is a control frame other than Restarted")),
        },
        _ => {}
    }
    if frame.ephemeral {
        return Err(NotLogged("it is ephemeral"));
    }
    if frame.seq != place.seq {
        return Err(NotLogged("it has another seq"));
    }
    Ok(())
}

/// Refuses what does not fold into one; the last of the chunks.
fn check_chunks(place: Place, chunks: &[Arc<Sealed>]) -> Result<&Sealed, NotLogged> {
    let [_, .., last] = chunks else {
        return Err(NotLogged("there are less than two chunks"));
    };
    let first = place.seq.checked_sub(chunks.len() as u64 - 1);
    let first = first.filter(|first| *first > 0);
    let seqs = first.ok_or(NotLogged("there are more chunks than seqs"))?..;
    let lens = chunks
        .iter()
        .filter_map(|chunk| chunk.chunk_text())
        .map(|text| text.len());
    if u32::try_from(lens.sum::<usize>()).is_err() {
        return Err(NotLogged("it is too much text"));
    }
    for (chunk, seq) in chunks.iter().zip(seqs) {
        check(Place { seq, ..place }, chunk)?;
        if !chunk.id.is_empty() || chunk.folded_from > 0 || !chunk.joins(last) {
            return Err(NotLogged("it is not a chunk like the others"));
        }
        if chunk.timestamp.is_none() || chunk.index.is_none() {
            return Err(NotLogged("it is a chunk without a time or an index"));
        }
    }
    Ok(last)
}

/// Begins a record, whose checksum is still to come: where it begins.
fn begin(out: &mut Vec<u8>, kind: u8, offset: u64) -> usize {
    let start = out.len();
    out.extend_from_slice(&[FORMAT, 0, 0, 0, 0, kind]);
    put_varint(out, offset);
    start
}

fn flags_of(frame: &Frame, seen: Option<(&Seen, bool)>) -> u64 {
    let flag = |is_there, flag| if is_there { flag } else { 0 };
    flag(!frame.r#type.is_empty(), TYPE)
        | flag(frame.from.is_some(), FROM)
        | flag(!frame.reply_to.is_empty(), REPLY_TO)
        | flag(frame.attempt > 0, ATTEMPT)
        | flag(frame.timestamp.is_some(), TIMESTAMP)
        | flag(frame.index.is_some(), INDEX)
        | flag(frame.last, LAST)
        | flag(!frame.id.is_empty(), ID)
        | flag(seen.is_some(), SEEN)
        | flag(seen.is_some_and(|(_, is_from)| is_from), SENDER_IS_FROM)
        | flag(seen.is_some_and(|(seen, _)| seen.substance.is_some()), SUBSTANCE)
        | flag(frame.to.is_some(), TO)
        | flag(frame.metadata.is_some(), METADATA)
        | flag(frame.options.is_some(), OPTIONS)
        | flag(frame.folded_from > 0, FOLDED_FROM)
}

/// The fields that all chunks of a reply have in common.
fn put_header(out: &mut Vec<u8>, frame: &Frame) {
    if !frame.r#type.is_empty() {
        put_text(out, &frame.r#type);
    }
    if let Some(from) = &frame.from {
        put_message(out, &**from);
    }
    if !frame.reply_to.is_empty() {
        put_text(out, &frame.reply_to);
    }
    if frame.attempt > 0 {
        put_varint(out, frame.attempt.into());
    }
}

/// The other fields, but for the body.
fn put_rest(out: &mut Vec<u8>, frame: &Frame) {
    if let Some(timestamp) = &frame.timestamp {
        put_signed(out, timestamp.seconds);
        out.extend_from_slice(&timestamp.nanos.to_le_bytes());
    }
    if let Some(index) = frame.index {
        put_varint(out, index.into());
    }
    if !frame.id.is_empty() {
        put_text(out, &frame.id);
    }
    if let Some(to) = &frame.to {
        put_message(out, &**to);
    }
    if let Some(metadata) = &frame.metadata {
        put_varint(out, metadata.len() as u64);
        for (key, value) in metadata.iter() {
            put_text(out, key);
            put_text(out, value);
        }
    }
    if let Some(options) = &frame.options {
        put_message(out, &**options);
    }
    if frame.folded_from > 0 {
        put_varint(out, frame.folded_from);
    }
}

fn put_seen(out: &mut Vec<u8>, seen: &Seen, is_from: bool) {
    if !is_from {
        put_text(out, &seen.sender);
    }
    if let Some(substance) = seen.substance {
        out.push(SUBSTANCE_VERSION);
        out.extend_from_slice(&substance.to_le_bytes());
    }
}

fn put_body(out: &mut Vec<u8>, body: &Body) {
    match body {
        Body::None => out.push(BODY_NONE),
        Body::Payload(payload) => match payload.given_json() {
            Some(text) => put_bytes(out, BODY_PAYLOAD_TEXT, text.as_bytes()),
            None => put_bytes(out, BODY_PAYLOAD_WIRE, payload.as_wire()),
        },
        Body::Data(data) => put_bytes(out, BODY_DATA, data),
        Body::Message(any) => {
            out.push(BODY_MESSAGE);
            put_text(out, &any.type_url);
            out.extend_from_slice(&any.value);
        }
        Body::Text(text) => put_bytes(out, BODY_TEXT, text.as_bytes()),
        Body::Error(error) => {
            out.push(BODY_ERROR);
            prost::Message::encode_raw(&**error, out);
        }
        Body::Control(control) => {
            out.push(BODY_RESTARTED);
            if let Control::Restarted(restarted) = &**control {
                prost::Message::encode_raw(restarted, out);
            }
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    out.push(kind);
    out.extend_from_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_message(out: &mut Vec<u8>, message: &impl prost::Message) {
    put_varint(out, message.encoded_len() as u64);
    message.encode_raw(out);
}

/// Numbers near zero are short, of either sign.
fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, (value << 1 ^ value >> 63) as u64);
}

/// What every record begins with, once its checksum was found to be right.
struct Opened {
    kind: u8,
    offset: u64,
    /// Where it ends, and the content begins.
    end: usize,
}

impl Opened {
    fn new(place: Place, value: &[u8]) -> Result<Self, Corrupt> {
        match value.first() {
            None => return Err(Corrupt::TooShort),
            Some(&FORMAT) => {}
            Some(&format) => return Err(Corrupt::Format(format)),
        }
        let (Some(kept), Some(&kind)) = (value[1..].first_chunk(), value.get(HEAD_BYTES)) else {
            return Err(Corrupt::TooShort);
        };
        if u32::from_le_bytes(*kept) != checksum(place, value) {
            return Err(Corrupt::Checksum);
        }
        let offset = take_varint(value, HEAD_BYTES + 1);
        let (offset, end) = offset.ok_or(Corrupt::Content("its offset does not end"))?;
        Ok(Self { kind, offset, end })
    }
}

/// What is left to read of a record, of which anything is possible, even though its checksum is right.
struct Reader {
    value: Bytes,
    at: usize,
}

impl Reader {
    fn frame(&mut self, mut frame: Frame) -> Result<What, Corrupt> {
        let flags = self.flags(FLAGS_OF_FRAMES)?;
        let has = |flag| flags & flag != 0;
        self.header(&mut frame, flags)?;
        if has(TIMESTAMP) {
            frame.timestamp = Some(self.timestamp()?);
        }
        if has(INDEX) {
            frame.index = Some(self.number()?);
        }
        if has(ID) {
            frame.id = self.text()?;
        }
        if has(TO) {
            frame.to = Some(Arc::new(self.message()?));
        }
        if has(METADATA) {
            frame.metadata = Some(Box::new(self.metadata()?));
        }
        if has(OPTIONS) {
            frame.options = Some(Box::new(self.message()?));
        }
        if has(FOLDED_FROM) {
            frame.folded_from = self.varint()?;
        }
        frame.last = has(LAST);
        let seen = self.seen(flags, frame.from.as_deref())?;
        frame.body = self.body()?;
        Ok(What::Frame(frame, seen))
    }

    fn chunks(&mut self, mut frame: Frame) -> Result<What, Corrupt> {
        let flags = self.flags(FLAGS_OF_CHUNKS)?;
        self.header(&mut frame, flags)?;
        let chunks = self.cuts()?;
        let Some(last) = chunks.last() else {
            return Err(Corrupt::Content("it has no chunks"));
        };
        (frame.timestamp, frame.index) = (Some(last.timestamp), Some(last.index));
        let first = frame.seq.checked_sub(chunks.len() as u64 - 1);
        let first = first.filter(|first| *first > 0);
        let first = first.ok_or(Corrupt::Content("it has more chunks than seqs"))?;
        frame.folded_from = first;
        frame.body = Body::Text(self.rest_as_text()?);
        let folded = Folded::from_parts(frame, chunks);
        let folded = folded.ok_or(Corrupt::Content("its text is not cut into chunks of a reply"))?;
        Ok(What::Chunks { first, folded })
    }

    /// Where each chunk's text ends, and what else there is of it.
    fn cuts(&mut self) -> Result<Box<[Chunk]>, Corrupt> {
        let count = self.len()?;
        if count > self.left() / CHUNK_BYTES {
            return Err(Corrupt::Content("it has more chunks than bytes"));
        }
        let mut chunks = Vec::with_capacity(count);
        let (mut time, mut index, mut end) = (Timestamp::default(), 0_u32, 0_u32);
        for _ in 0..count {
            time = self.later(time)?;
            index = index.wrapping_add(self.number()?);
            let ends = end.checked_add(self.number()?);
            end = ends.ok_or(Corrupt::Content("its text is too long"))?;
            chunks.push(Chunk {
                timestamp: time,
                index,
                end,
            });
        }
        Ok(chunks.into())
    }

    fn later(&mut self, before: Timestamp) -> Result<Timestamp, Corrupt> {
        let seconds = before.seconds.checked_add(self.signed()?);
        let nanos = i64::from(before.nanos).checked_add(self.signed()?);
        let nanos = nanos.and_then(|nanos| i32::try_from(nanos).ok());
        let (Some(seconds), Some(nanos)) = (seconds, nanos) else {
            return Err(Corrupt::Content(BAD_TIME));
        };
        checked(Timestamp { seconds, nanos })
    }

    fn flags(&mut self, known: u64) -> Result<u64, Corrupt> {
        let flags = self.varint()?;
        if flags & !known != 0 {
            return Err(Corrupt::Content("it has fields that are unknown"));
        }
        Ok(flags)
    }

    fn header(&mut self, frame: &mut Frame, flags: u64) -> Result<(), Corrupt> {
        if flags & TYPE != 0 {
            frame.r#type = self.text()?;
        }
        if flags & FROM != 0 {
            frame.from = Some(Arc::new(self.message()?));
        }
        if flags & REPLY_TO != 0 {
            frame.reply_to = self.text()?;
        }
        if flags & ATTEMPT != 0 {
            frame.attempt = self.number()?;
        }
        Ok(())
    }

    fn metadata(&mut self) -> Result<Vec<(Str, Str)>, Corrupt> {
        let count = self.len()?;
        // Each has two lengths at least.
        if count > self.left() / 2 {
            return Err(Corrupt::Content("it has more metadata than bytes"));
        }
        (0..count).map(|_| Ok((self.text()?, self.text()?))).collect()
    }

    fn seen(&mut self, flags: u64, from: Option<&pb::Address>) -> Result<Option<Seen>, Corrupt> {
        if flags & SEEN == 0 {
            return match flags & (SENDER_IS_FROM | SUBSTANCE) {
                0 => Ok(None),
                _ => Err(Corrupt::Content("it has parts of what dedup is to know")),
            };
        }
        let sender = match (flags & SENDER_IS_FROM, from) {
            (0, _) => self.text()?,
            (_, Some(from)) => sender_of(from),
            (_, None) => return Err(Corrupt::Content("it has no sender")),
        };
        let mut substance = None;
        if flags & SUBSTANCE != 0 {
            let [version] = self.bytes()?;
            let digest = u64::from_le_bytes(self.bytes()?);
            substance = (version == SUBSTANCE_VERSION).then_some(digest);
        }
        Ok(Some(Seen { sender, substance }))
    }

    fn body(&mut self) -> Result<Body, Corrupt> {
        let no_payload = |_| Corrupt::Content("its payload is not one");
        let [kind] = self.bytes()?;
        Ok(match kind {
            BODY_NONE if self.left() == 0 => Body::None,
            BODY_PAYLOAD_TEXT => Body::Payload(Payload::from_json_text(self.rest_as_text()?).map_err(no_payload)?),
            BODY_PAYLOAD_WIRE => Body::Payload(Payload::from_wire_value(self.rest()).map_err(no_payload)?),
            BODY_DATA => Body::Data(self.rest()),
            BODY_MESSAGE => Body::Message(Box::new(Any {
                type_url: self.text()?,
                value: self.rest(),
            })),
            BODY_TEXT => Body::Text(self.rest_as_text()?),
            BODY_ERROR => Body::Error(Box::new(decoded(&self.rest())?)),
            BODY_RESTARTED => Body::Control(Box::new(Control::Restarted(decoded(&self.rest())?))),
            _ => return Err(Corrupt::Content("its body is of no kind")),
        })
    }

    fn timestamp(&mut self) -> Result<Timestamp, Corrupt> {
        let seconds = self.signed()?;
        let nanos = i32::from_le_bytes(self.bytes()?);
        checked(Timestamp { seconds, nanos })
    }

    fn message<M: ProtoJson>(&mut self) -> Result<M, Corrupt> {
        let len = self.len()?;
        decoded(&self.take(len)?)
    }

    fn text(&mut self) -> Result<Str, Corrupt> {
        let len = self.len()?;
        text(self.take(len)?)
    }

    fn number(&mut self) -> Result<u32, Corrupt> {
        let number = u32::try_from(self.varint()?);
        number.map_err(|_| Corrupt::Content("it has a number that is too large"))
    }

    fn signed(&mut self) -> Result<i64, Corrupt> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn len(&mut self) -> Result<usize, Corrupt> {
        let len = usize::try_from(self.varint()?);
        len.map_err(|_| Corrupt::Content("it has a length that is too large"))
    }

    fn varint(&mut self) -> Result<u64, Corrupt> {
        let (value, end) =
            take_varint(&self.value, self.at).ok_or(Corrupt::Content("it has a number that does not end"))?;
        self.at = end;
        Ok(value)
    }

    fn bytes<const COUNT: usize>(&mut self) -> Result<[u8; COUNT], Corrupt> {
        let bytes = self.value.get(self.at..).and_then(|rest| rest.first_chunk());
        let bytes = *bytes.ok_or(Corrupt::Content("it ends too early"))?;
        self.at += COUNT;
        Ok(bytes)
    }

    fn left(&self) -> usize {
        self.value.len() - self.at
    }

    fn take(&mut self, len: usize) -> Result<Bytes, Corrupt> {
        if len > self.left() {
            return Err(Corrupt::Content("it ends too early"));
        }
        // What is empty is not to keep the rest in memory.
        if len == 0 {
            return Ok(Bytes::new());
        }
        let start = self.at;
        self.at += len;
        Ok(self.value.slice(start..self.at))
    }

    fn rest(&mut self) -> Bytes {
        self.take(self.left()).unwrap_or_default()
    }

    fn rest_as_text(&mut self) -> Result<Str, Corrupt> {
        text(self.rest())
    }
}

fn text(bytes: Bytes) -> Result<Str, Corrupt> {
    Str::from_utf8(bytes).map_err(|_| Corrupt::Content("it has text that is not UTF-8"))
}

fn decoded<M: ProtoJson>(bytes: &[u8]) -> Result<M, Corrupt> {
    let message = M::decode(bytes).map_err(|_| Corrupt::Content("it has a message that is not protobuf"))?;
    message.check().map_err(|_| Corrupt::Content(BAD_TIME))?;
    Ok(message)
}

fn checked(time: Timestamp) -> Result<Timestamp, Corrupt> {
    check_timestamp(Some(&time)).map_err(|_| Corrupt::Content(BAD_TIME))?;
    Ok(time)
}

impl fmt::Display for NotLogged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this is nothing for the log: {}", self.0)
    }
}

impl std::error::Error for NotLogged {}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => f.write_str("the record is too short to be one"),
            Self::Format(format) => write!(
                f,
                "the record is of format {format}, and this version knows format {FORMAT}: a newer one wrote it"
            ),
            Self::Checksum => f.write_str("the record is not what was written there: its checksum is wrong"),
            Self::Content(why) => write!(f, "the record cannot be read, though its checksum is right: {why}"),
        }
    }
}

impl std::error::Error for Corrupt {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Run, Types};
    use crate::log::suite::Random;

    const PLACE: Place = Place {
        session: 0x0102_0304_0506_0708,
        seq: 300,
    };
    const SESSION: Str = Str::from_static("session-1");
    const OFFSET: u64 = 70_000;

    fn now() -> Timestamp {
        Timestamp {
            seconds: 1_700_000_000,
            nanos: 999_000_001,
        }
    }

    fn address(role: &str, member_id: &str, subject: &str) -> Arc<pb::Address> {
        Arc::new(pb::Address {
            role: role.to_owned(),
            member_id: member_id.to_owned(),
            subject: subject.to_owned(),
            multicast: false,
        })
    }

    /// A frame as the gateway keeps them.
    fn plain(body: Body) -> Frame {
        Frame {
            session_id: SESSION,
            seq: PLACE.seq,
            timestamp: Some(now()),
            from: Some(address("client", "m-1", "")),
            body,
            ..Frame::default()
        }
    }

    fn full(body: Body) -> Frame {
        Frame {
            id: "id-1".into(),
            r#type: "query".into(),
            from: Some(address("client", "m-1", "user-1")),
            to: Some(address("brain", "", "")),
            reply_to: "q".into(),
            last: true,
            options: Some(Box::new(pb::RequestOptions {
                max_attempts: 3,
                ..pb::RequestOptions::default()
            })),
            attempt: 2,
            metadata: Some(Box::new(vec![
                ("traceparent".into(), "00-1".into()),
                ("é".into(), Str::EMPTY),
            ])),
            index: Some(u32::MAX),
            folded_from: 299,
            ..plain(body)
        }
    }

    fn text_payload(text: &'static str) -> Body {
        Body::Payload(Payload::from_json_text(Str::from_static(text)).unwrap())
    }

    fn wire_payload(text: &'static str) -> Body {
        let payload = Payload::from_json_text(Str::from_static(text)).unwrap();
        let wire = Bytes::copy_from_slice(payload.as_wire());
        Body::Payload(Payload::from_wire_value(wire).unwrap())
    }

    fn error() -> pb::Error {
        pb::Error {
            code: 3,
            reason: "R".to_owned(),
            message: "what went wrong".to_owned(),
            details: [("key".to_owned(), "value".to_owned())].into(),
            retryable: true,
            retry_after: Some(prost_types::Duration { seconds: 1, nanos: 5 }),
        }
    }

    fn restarted() -> Body {
        Body::Control(Box::new(Control::Restarted(pb::Restarted { error: Some(error()) })))
    }

    fn message() -> Body {
        Body::Message(Box::new(Any {
            type_url: "type.googleapis.com/acme.v1.Order".into(),
            value: Bytes::from_static(b"\x08\x01"),
        }))
    }

    fn bodies() -> [(&'static str, Body); 9] {
        [
            ("no body", Body::None),
            ("a payload as text", text_payload("{\"a\" : [1.50,\"\\u00e9\"]}")),
            ("a payload as protobuf", wire_payload("{\"a\":[1.5,null]}")),
            ("data", Body::Data(Bytes::from_static(b"\0\xFF"))),
            ("no data", Body::Data(Bytes::new())),
            ("a message", message()),
            ("text", Body::Text("ü€".into())),
            ("an error", Body::Error(Box::new(error()))),
            ("a request that was restarted", restarted()),
        ]
    }

    fn seen(sender: &str) -> Seen {
        Seen {
            sender: sender.into(),
            substance: Some(0x0123_4567_89AB_CDEF),
        }
    }

    fn written(frame: &Frame, seen: Option<&Seen>) -> Vec<u8> {
        let mut out = Vec::new();
        let place = Place {
            seq: frame.seq,
            ..PLACE
        };
        write_frame(&mut out, place, OFFSET, frame, seen).unwrap();
        out
    }

    fn read_frame(value: &[u8]) -> (Frame, Option<Seen>) {
        let record = read(PLACE, &SESSION, value).unwrap();
        assert_eq!(record.offset, OFFSET);
        assert_eq!(offset_of(PLACE, value), Ok(OFFSET));
        match record.what {
            What::Frame(frame, seen) => (frame, seen),
            What::Chunks { .. } => panic!("a frame is none"),
        }
    }

    /// Equal payloads may be spelled otherwise, so what was given is compared by itself.
    fn given(frame: &Frame) -> Option<(bool, &[u8])> {
        let Body::Payload(payload) = &frame.body else {
            return None;
        };
        let text = payload.given_json().map(str::as_bytes);
        Some((text.is_some(), text.unwrap_or_else(|| payload.as_wire())))
    }

    fn comes_back(frame: &Frame, seen: Option<&Seen>) {
        let value = written(frame, seen);
        let (other, other_seen) = read_frame(&value);
        assert_eq!((&other, other_seen.as_ref()), (frame, seen));
        assert_eq!(given(&other), given(frame));
        assert_eq!(offset_of(PLACE, &value), Ok(OFFSET));
    }

    fn chunk(seq: u64, text: &str) -> Frame {
        Frame {
            seq,
            r#type: "token".into(),
            reply_to: "q-1".into(),
            attempt: 1,
            index: Some(seq as u32),
            timestamp: Some(Timestamp {
                seconds: 1_700_000_000 + seq as i64 / 3,
                nanos: (seq as i32 % 3) * 333_000_000,
            }),
            from: Some(address("brain", "w", "")),
            ..plain(Body::Text(text.into()))
        }
    }

    fn chunks(texts: &[&str]) -> Vec<Arc<Sealed>> {
        let first = PLACE.seq + 1 - texts.len() as u64;
        let chunk = |(seq, text): (u64, &&str)| Arc::new(Sealed::new(chunk(seq, text)));
        (first..).zip(texts).map(chunk).collect()
    }

    fn written_chunks(chunks: &[Arc<Sealed>]) -> Vec<u8> {
        let mut out = Vec::new();
        write_chunks(&mut out, PLACE, OFFSET, chunks).unwrap();
        out
    }

    /// A record of this content, with a checksum that is right.
    fn sealed(kind: u8, content: &[u8]) -> Vec<u8> {
        let mut value = Vec::new();
        begin(&mut value, kind, OFFSET);
        value.extend_from_slice(content);
        seal(PLACE, &mut value);
        value
    }

    /// A few records of all sorts, by name.
    fn samples() -> Vec<(String, Vec<u8>)> {
        let mut samples: Vec<_> = bodies()
            .into_iter()
            .map(|(name, body)| (name.to_owned(), written(&plain(body), None)))
            .collect();
        let mut add = |name: &str, value| samples.push((name.to_owned(), value));
        let user = full(text_payload("1"));
        add("every field", written(&user, Some(&seen("user-1\nm-1"))));
        add("a sender by another name", written(&user, Some(&seen("m-1"))));
        let unknown = Seen {
            substance: None,
            ..seen("m-1")
        };
        add(
            "a digest that is not known",
            written(&plain(Body::None), Some(&unknown)),
        );
        let bare = Frame {
            seq: PLACE.seq,
            session_id: SESSION,
            ..Frame::default()
        };
        add("no field", written(&bare, None));
        add("chunks", written_chunks(&chunks(&["a", "", "ü€", "a word "])));
        samples
    }

    impl Random {
        fn yes(&mut self) -> bool {
            self.below(2) == 0
        }

        fn text(&mut self) -> Str {
            match self.below(6) {
                0 | 1 => Str::EMPTY,
                2 => "x".into(),
                3 => "ü€\n\0".into(),
                _ => "z".repeat(self.below(300) as usize).into(),
            }
        }

        fn address(&mut self) -> Arc<pb::Address> {
            let mut address = address(&self.text(), &self.text(), &self.text());
            Arc::make_mut(&mut address).multicast = self.yes();
            address
        }

        fn frame(&mut self) -> Frame {
            let shift = self.below(64);
            Frame {
                id: self.text(),
                session_id: SESSION,
                r#type: self.text(),
                timestamp: self.yes().then(|| Timestamp {
                    seconds: self.below(1 << 31) as i64 - (1 << 30),
                    nanos: self.below(1_000_000_000) as i32,
                }),
                from: self.yes().then(|| self.address()),
                to: self.yes().then(|| self.address()),
                seq: PLACE.seq,
                reply_to: self.text(),
                last: self.yes(),
                ephemeral: false,
                options: self.yes().then(Box::default),
                attempt: self.below(3) as u32,
                metadata: self.yes().then(|| {
                    let count = self.below(4);
                    Box::new((0..count).map(|_| (self.text(), self.text())).collect())
                }),
                index: self.yes().then(|| self.below(1 << 31) as u32),
                folded_from: (self.below(1 << 31) << 32) >> shift,
                body: bodies()[self.below(9) as usize].1.clone(),
            }
        }
    }

    #[test]
    fn keys_sort_as_the_log_goes() {
        let place = |session, seq| Place { session, seq };
        let places = [
            place(0, 0),
            place(0, 1),
            place(0, 256),
            place(1, 0),
            place(256, 7),
            PLACE,
            place(u64::MAX, 2),
        ];
        assert!(places.map(Place::key).is_sorted());
        for place in places {
            assert_eq!(Place::from_key(&place.key()), Some(place));
        }
        for key in [&[0; 15][..], &[0; 17], &[]] {
            assert_eq!(Place::from_key(key), None);
        }
    }

    #[test]
    fn frames_come_back() {
        for (_, body) in bodies() {
            comes_back(&plain(body.clone()), None);
            comes_back(&plain(body.clone()), Some(&seen("m-1")));
            comes_back(&full(body.clone()), Some(&seen("user-1\nm-1")));
            comes_back(
                &Frame {
                    from: None,
                    ..full(body)
                },
                Some(&seen("")),
            );
        }
        let mut random = Random(11);
        for _ in 0..500 {
            let frame = random.frame();
            let seen = random.yes().then(|| Seen {
                sender: match &frame.from {
                    Some(from) if random.yes() => sender_of(from),
                    _ => random.text(),
                },
                substance: random.yes().then(|| random.below(1 << 31) << random.below(33)),
            });
            comes_back(&frame, seen.as_ref());
        }
    }

    #[test]
    fn a_sender_that_is_in_the_frame_is_not_kept_twice() {
        for (subject, name, sender) in [
            ("", "m-1", "m-1"),
            ("", "", ""),
            ("user-1", "m-1", "user-1\nm-1"),
            ("user-1", "", "user-1\n"),
            ("a\nb", "c", "a\nb\nc"),
        ] {
            let frame = Frame {
                from: Some(address("client", name, subject)),
                ..plain(Body::None)
            };
            assert_eq!(sender_of(frame.from.as_ref().unwrap()), sender);
            let length = |sender: &str| written(&frame, Some(&seen(sender))).len();
            assert_eq!(length(sender) + 1 + sender.len() + 1, length(&format!("{sender}x")));
            for sender in [sender, "user-1m-1", "m", "user-1\n", "user-1"] {
                comes_back(&frame, Some(&seen(sender)));
            }
        }
    }

    #[test]
    fn a_digest_that_was_made_in_another_way_is_forgotten() {
        let seen = seen("m-1");
        let mut value = written(&plain(Body::None), Some(&seen));
        let digest = seen.substance.unwrap().to_le_bytes();
        let at = value.windows(8).position(|bytes| bytes == digest).unwrap();
        value[at - 1] = SUBSTANCE_VERSION + 1;
        seal(PLACE, &mut value);
        let forgotten = Seen {
            substance: None,
            ..seen
        };
        assert_eq!(read_frame(&value), (plain(Body::None), Some(forgotten)));
    }

    #[test]
    fn every_stretch_of_chunks_is_that_of_memory() {
        let mut random = Random(5);
        for count in 2..30 {
            let texts: Vec<_> = (0..count)
                .map(|_| ["", "a", "ü", "€uro ", "long words "][random.below(5) as usize])
                .collect();
            let mut parts: Vec<_> = chunks(&texts).iter().map(|part| part.frame().clone()).collect();
            for part in &mut parts {
                part.index = Some(random.below(1 << 31) as u32);
                part.timestamp.as_mut().unwrap().seconds -= random.below(1 << 31) as i64;
            }
            let parts: Vec<_> = parts.into_iter().map(|part| Arc::new(Sealed::new(part))).collect();
            let mut run = Run::default();
            parts.iter().for_each(|part| run.push(Arc::clone(part)));
            let memory = Folded::new(run).unwrap();
            let record = read(PLACE, &SESSION, &written_chunks(&parts)).unwrap();
            assert_eq!(record.offset, OFFSET);
            let What::Chunks { first, folded } = record.what else {
                panic!("chunks are none");
            };
            assert_eq!((first, folded.len()), (parts[0].seq, count));
            for start in 0..count {
                for len in 1..=count - start {
                    let seq = first + start as u64;
                    let (ours, theirs) = (folded.stretch(start, len, seq), memory.stretch(start, len, seq));
                    assert_eq!(ours.frame(), theirs.frame());
                }
            }
        }
    }

    #[test]
    fn records_are_added_to_what_is_there() {
        let mut out = b"before".to_vec();
        let frame = plain(Body::None);
        write_frame(&mut out, PLACE, OFFSET, &frame, None).unwrap();
        assert_eq!(out.strip_prefix(b"before"), Some(&*written(&frame, None)));
        let parts = chunks(&["a", "b"]);
        let before = out.clone();
        write_chunks(&mut out, PLACE, OFFSET, &parts).unwrap();
        assert_eq!(out.strip_prefix(&*before), Some(&*written_chunks(&parts)));
    }

    #[test]
    fn what_is_nothing_for_the_log_leaves_no_trace() {
        let late = Timestamp {
            seconds: i64::MAX,
            nanos: 0,
        };
        let endless = prost_types::Duration {
            seconds: i64::MAX,
            nanos: 0,
        };
        let frames = [
            plain(Body::Control(Box::new(Control::Ping(pb::Ping::default())))),
            Frame {
                ephemeral: true,
                ..plain(Body::None)
            },
            Frame {
                seq: 1,
                ..plain(Body::None)
            },
            Frame {
                timestamp: Some(late),
                ..plain(Body::None)
            },
            plain(Body::Error(Box::new(pb::Error {
                retry_after: Some(endless),
                ..pb::Error::default()
            }))),
        ];
        let mut out = Vec::new();
        for frame in frames {
            let refused = write_frame(&mut out, PLACE, OFFSET, &frame, None);
            assert!(refused.is_err(), "{frame:?}");
        }
        let like = |change: fn(&mut Frame)| {
            let mut parts = chunks(&["a", "b", "c"]);
            let mut frame = parts[1].frame().clone();
            change(&mut frame);
            parts[1] = Arc::new(Sealed::new(frame));
            parts
        };
        let runs = [
            chunks(&[]),
            chunks(&["a"]),
            like(|frame| frame.id = "id".into()),
            like(|frame| frame.attempt = 7),
            like(|frame| frame.index = None),
            like(|frame| frame.timestamp = None),
            like(|frame| frame.seq = 1),
            like(|frame| frame.folded_from = 1),
            like(|frame| frame.body = Body::None),
        ];
        for run in runs {
            assert!(write_chunks(&mut out, PLACE, OFFSET, &run).is_err(), "{run:?}");
        }
        assert_eq!(out, b"");
    }

    #[test]
    fn what_was_not_written_is_refused() {
        for (name, value) in samples() {
            assert!(read(PLACE, &SESSION, &value).is_ok(), "{name}");
            for bit in 0..value.len() * 8 {
                let mut flipped = value.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let refused = read(PLACE, &SESSION, &flipped).unwrap_err();
                match bit / 8 {
                    0 => assert_eq!(refused, Corrupt::Format(flipped[0])),
                    _ => assert_eq!(refused, Corrupt::Checksum),
                }
                assert_eq!(offset_of(PLACE, &flipped), Err(refused));
            }
            for len in 0..value.len() {
                let refused = read(PLACE, &SESSION, &value[..len]).unwrap_err();
                let is_short = len <= HEAD_BYTES;
                assert_eq!(refused, if is_short { Corrupt::TooShort } else { Corrupt::Checksum });
            }
            let longer = [&*value, &[0]].concat();
            assert_eq!(offset_of(PLACE, &longer), Err(Corrupt::Checksum));
            for (session, seq) in [(PLACE.session, 301), (1, PLACE.seq), (PLACE.seq, PLACE.session)] {
                let refused = read(Place { session, seq }, &SESSION, &value).unwrap_err();
                assert_eq!(refused, Corrupt::Checksum, "{name}");
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused_though_its_checksum_is_right() {
        let of = |flags: u64, rest: &[u8]| {
            let mut content = Vec::new();
            put_varint(&mut content, flags);
            content.extend_from_slice(rest);
            content
        };
        let endless = [0xFF; 10];
        let most = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1];
        let frames = [
            Vec::new(),
            endless.to_vec(),
            of(FOLDED_FROM << 1, &[BODY_NONE]),
            of(0, &[]),
            of(0, &[BODY_NONE, 0]),
            of(0, &[BODY_RESTARTED + 1]),
            of(0, &[BODY_TEXT, 0xFF]),
            of(0, &[BODY_PAYLOAD_TEXT]),
            of(0, &[BODY_PAYLOAD_TEXT, b'[']),
            of(0, &[BODY_PAYLOAD_WIRE]),
            of(0, &[BODY_ERROR, 0xFF]),
            of(0, &[BODY_MESSAGE, 1]),
            of(ID, &[1, 0xFF, BODY_NONE]),
            of(ID, &[2, b'a']),
            of(ID, &most),
            of(FROM, &[1, 0xFF, BODY_NONE]),
            of(METADATA, &most),
            of(METADATA, &[2, 0, 0, 0, BODY_NONE]),
            of(ATTEMPT, &most),
            of(TIMESTAMP, &[0, 0xFF, 0xFF, 0xFF, 0xFF, BODY_NONE]),
            of(TIMESTAMP, &[&most[..], &[0, 0, 0, 0, BODY_NONE]].concat()),
            of(SUBSTANCE, &[BODY_NONE]),
            of(SEEN | SENDER_IS_FROM, &[BODY_NONE]),
            of(SEEN | SUBSTANCE, &[0, 1, 2, 3]),
        ];
        let reply = |rest: &[u8]| of(REPLY_TO, &[&[1, b'q'], rest].concat());
        let runs = [
            of(0, &[2, 0, 0, 0, 0, 0, 0, 0, 0]),
            of(LAST, &[]),
            reply(&[0]),
            reply(&[1, 0, 0, 0, 0]),
            reply(&most),
            reply(&[3, 0, 0, 0, 0, 0, 0, 0, 0]),
            reply(&[2, 0, 0, 0, 0, 0, 0, 0, 1]),
            reply(&[2, 0, 0, 0, 0, 0, 0, 0, 0, b'x']),
            // A character that is cut in two.
            reply(&[2, 0, 0, 0, 1, 0, 0, 0, 1, 0xC3, 0xBC]),
            // A time before any.
            reply(&[2, 0, 1, 0, 0, 0, 0, 0, 0]),
            reply(&[&[2][..], &most, &[0, 0, 0, 0, 0, 0, 0]].concat()),
            // More chunks than the log has frames.
            reply(&[&[0xAD, 2][..], &[0; 301 * 4]].concat()),
        ];
        let runs = runs.iter().map(|content| sealed(KIND_CHUNKS, content));
        let frames = frames.iter().map(|content| sealed(KIND_FRAME, content));
        for value in frames.chain(runs).chain([sealed(3, &[0, 0])]) {
            let read = read(PLACE, &SESSION, &value);
            assert!(matches!(read, Err(Corrupt::Content(_))), "{value:?}: {read:?}");
            assert_eq!(offset_of(PLACE, &value), Ok(OFFSET));
        }
        assert!(
            read(
                PLACE,
                &SESSION,
                &sealed(KIND_CHUNKS, &reply(&[2, 0, 0, 0, 0, 0, 0, 0, 0]))
            )
            .is_ok()
        );
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let mut random = Random(3);
        let samples = samples();
        for _ in 0..20_000 {
            let (_, mut value) = samples[random.below(samples.len() as u64) as usize].clone();
            for _ in 0..=random.below(3) {
                let at = random.below(value.len() as u64 + 1) as usize;
                match random.below(3) {
                    0 => value.truncate(at.max(6)),
                    1 => value.insert(at, random.below(256) as u8),
                    _ if at < value.len() => value[at] = random.below(256) as u8,
                    _ => {}
                }
            }
            value[0] = FORMAT;
            seal(PLACE, &mut value);
            if let Ok(Record {
                offset,
                what: What::Frame(frame, seen),
            }) = read(PLACE, &SESSION, &value)
            {
                write_frame(&mut value, PLACE, offset, &frame, seen.as_ref()).unwrap();
            }
        }
    }

    #[test]
    fn refusals_say_why() {
        assert!(Corrupt::Format(9).to_string().contains("format 9"));
        assert!(Corrupt::Content("it is odd").to_string().ends_with("it is odd"));
        let all = [Corrupt::TooShort, Corrupt::Checksum].map(|corrupt| corrupt.to_string());
        assert_ne!(all[0], all[1]);
        assert!(NotLogged("it is odd").to_string().ends_with("it is odd"));
    }

    fn to_hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn from_hex(hex: &str) -> Vec<u8> {
        let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    /// A line of the golden file: the record, and in plain words what it holds.
    fn golden_line(name: &str, place: Place, value: &[u8]) -> String {
        let record = read(place, &SESSION, value).unwrap_or_else(|corrupt| panic!("{name}: {corrupt}"));
        let types = Types::default();
        let json = |frame: &Frame| {
            let mut out = Vec::new();
            frame.write_json(&mut out, &types);
            String::from_utf8(out).unwrap()
        };
        let (frames, seen) = match &record.what {
            What::Frame(frame, seen) => (vec![json(frame)], seen.clone()),
            What::Chunks { first, folded } => {
                let each = (0..folded.len()).map(|at| json(&folded.stretch(at, 1, first + at as u64)));
                (each.collect(), None)
            }
        };
        let seen = seen.map(|seen| (seen.sender.to_string(), seen.substance));
        format!(
            "{{\"name\": {}, \"key\": \"{}\", \"hex\": \"{}\", \"offset\": {}, \"frames\": {}, \"seen\": {}}}\n",
            serde_json::to_string(name).unwrap(),
            to_hex(&place.key()),
            to_hex(value),
            record.offset,
            serde_json::to_string(&frames).unwrap(),
            serde_json::to_string(&seen).unwrap(),
        )
    }

    /// Records that were ever written are read as they were meant, and are written so still.
    #[test]
    fn golden_records() {
        const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/records.jsonl");
        let hex = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            ["name", "key", "hex"].map(|field| line[field].as_str().unwrap().to_owned())
        };
        let kept = std::fs::read_to_string(FILE).unwrap_or_default();
        let (ours, former): (Vec<_>, Vec<_>) = kept
            .split_inclusive('\n')
            .partition(|line| from_hex(&hex(line)[2])[0] == FORMAT);
        let samples = samples();
        let wanted: String = samples
            .iter()
            .map(|(name, value)| golden_line(name, PLACE, value))
            .collect();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(FILE, former.concat() + &wanted).unwrap();
            return;
        }
        for line in kept.split_inclusive('\n') {
            let [name, key, value] = hex(line);
            let place = Place::from_key(&from_hex(&key)).unwrap();
            assert_eq!(golden_line(&name, place, &from_hex(&value)), line);
        }
        assert_eq!(
            ours.concat(),
            wanted,
            "records are written in another way: raise FORMAT, read the former one still, then: \
             UPDATE_GOLDEN=1 cargo test --lib golden_records"
        );
    }
}
