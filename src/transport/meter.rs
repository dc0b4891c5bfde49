//! The HTTP/2 meter: it follows the frames of a connection in both directions, by their headers alone, and says when one side
//! makes the other work for nothing.
//!
//! Pure: bytes in, verdict out; what time it is, the caller says. It never keeps or changes what passes, and costs a pointer
//! where the connection turns out not to be HTTP/2. Resets are counted in both directions: by whatever trick a peer has its
//! streams reset, the gateway's own RST_STREAM frames show it.

use std::fmt;
use std::time::Duration;

use crate::limits::{Bucket, Limits, Rate};

/// What an HTTP/2 client begins with: RFC 9113 §3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What the header of a frame has.
const HEADER: usize = 9;

/// Types of frames: RFC 9113 §6.
mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const CONTINUATION: u8 = 9;
}

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// Control frames of the peer that one DATA frame of ours accounts for: a WINDOW_UPDATE of the stream, one of the connection,
/// and a PING by which the bandwidth is measured.
const PER_DATA: u32 = 3;
/// What the peer may save up of them.
const MOST_CREDIT: u32 = 100_000;
/// CONTINUATION frames of one block of headers.
const MOST_PARTS: u32 = 32;
/// Seconds' worth that may come at once.
const BURST_SECONDS: u64 = 2;

/// What was too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// The setting that bounds it.
    pub setting: &'static str,
    /// Its value.
    pub limit: u64,
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {} ({}): calm down", self.setting, self.limit)
    }
}

impl std::error::Error for Flood {}

/// The meter of one connection.
#[derive(Debug)]
pub struct Meter(Option<Box<Http2>>);

impl Meter {
    /// Of a connection of which nothing is known yet.
    pub fn new(limits: &Limits) -> Self {
        Self(Some(Box::new(Http2::new(limits))))
    }

    /// The peer sent these bytes, so long after the beginning of time.
    pub fn read(&mut self, bytes: &[u8], now: Duration) -> Result<(), Flood> {
        let Some(http2) = &mut self.0 else { return Ok(()) };
        match http2.recognise(bytes) {
            Some(rest) => http2.read(rest, now),
            None => {
                self.0 = None;
                Ok(())
            }
        }
    }

    /// These bytes were sent to the peer.
    pub fn wrote(&mut self, bytes: &[u8], now: Duration) -> Result<(), Flood> {
        match &mut self.0 {
            Some(http2) => http2.wrote(bytes, now),
            None => Ok(()),
        }
    }

    /// Whether what is sent is looked at.
    pub fn is_metering(&self) -> bool {
        self.0.is_some()
    }

    /// The frame that ends the connection, if it can be sent now: not within another frame.
    pub fn farewell(&self, flood: &Flood) -> Option<Vec<u8>> {
        let http2 = self.0.as_ref().filter(|http2| http2.outbound.is_between())?;
        let text = flood.to_string();
        let mut frame = Vec::with_capacity(HEADER + 8 + text.len());
        frame.extend_from_slice(&(8 + text.len() as u32).to_be_bytes()[1..]);
        frame.extend_from_slice(&[kind::GOAWAY, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&http2.last_stream.to_be_bytes());
        frame.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
        frame.extend_from_slice(text.as_bytes());
        Some(frame)
    }
}

/// Bytes of the error code of a reset.
const CODE: u8 = 4;

#[derive(Debug)]
struct Http2 {
    resets_rate: u32,
    control_rate: u32,
    opens_rate: u32,
    header_bytes: u32,
    /// Bytes of the preface that have come.
    preface: u8,
    inbound: Walker,
    outbound: Walker,
    resets: Bucket,
    control: Bucket,
    opens: Bucket,
    /// Control frames that are accounted for.
    credit: u32,
    /// Of the block of headers that is being read.
    block_bytes: u32,
    block_parts: u32,
    last_stream: u32,
    /// Of the code of a reset that is being sent, what is still to come; and whether anything of it was not zero.
    code_left: u8,
    code: u8,
}

impl Http2 {
    fn new(limits: &Limits) -> Self {
        Self {
            resets_rate: limits.http2_resets_per_second,
            control_rate: limits.http2_control_per_second,
            opens_rate: limits.http2_opens_per_second(),
            header_bytes: u32::try_from(limits.header_bytes).unwrap_or(u32::MAX),
            preface: 0,
            inbound: Walker::default(),
            outbound: Walker::default(),
            resets: Bucket::default(),
            control: Bucket::default(),
            opens: Bucket::default(),
            credit: 0,
            block_bytes: 0,
            block_parts: 0,
            last_stream: 0,
            code_left: 0,
            code: 0,
        }
    }

    /// What follows the preface; nothing if the peer does not speak HTTP/2.
    fn recognise<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let missing = &PREFACE[usize::from(self.preface)..];
        let count = missing.len().min(bytes.len());
        let (begin, rest) = bytes.split_at(count);
        if begin != &missing[..count] {
            return None;
        }
        self.preface += count as u8;
        Some(rest)
    }

    fn read(&mut self, mut bytes: &[u8], now: Duration) -> Result<(), Flood> {
        while let Some(frame) = self.inbound.next(&mut bytes) {
            self.came(frame, now)?;
        }
        Ok(())
    }

    fn wrote(&mut self, mut bytes: &[u8], now: Duration) -> Result<(), Flood> {
        self.look_at_code(bytes, now)?;
        while let Some(frame) = self.outbound.next(&mut bytes) {
            match frame.kind {
                kind::DATA => self.earn(PER_DATA),
                // The acknowledgement is due.
                kind::SETTINGS | kind::PING if frame.flags & ACK == 0 => self.earn(1),
                kind::RST_STREAM => {
                    (self.code, self.code_left) = (0, CODE);
                    self.look_at_code(bytes, now)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Of a reset that is being sent, the code counts: one without an error only ends a call that was answered before all of it
    /// was read.
    fn look_at_code(&mut self, bytes: &[u8], now: Duration) -> Result<(), Flood> {
        if self.code_left == 0 {
            return Ok(());
        }
        for byte in bytes.iter().take(usize::from(self.code_left)) {
            self.code |= byte;
            self.code_left -= 1;
        }
        match self.code_left == 0 && self.code != 0 {
            true => self.reset(now),
            false => Ok(()),
        }
    }

    fn earn(&mut self, credit: u32) {
        self.credit = (self.credit + credit).min(MOST_CREDIT);
    }

    fn came(&mut self, frame: Header, now: Duration) -> Result<(), Flood> {
        match frame.kind {
            kind::DATA if frame.flags & PADDED == 0 && (frame.len > 0 || frame.flags & END_STREAM != 0) => Ok(()),
            kind::HEADERS => {
                self.last_stream = self.last_stream.max(frame.stream);
                (self.block_bytes, self.block_parts) = (0, 0);
                self.block(frame)?;
                let rate = Rate::new(self.opens_rate.into(), BURST_SECONDS);
                let taken = self.opens.take(1, rate, now);
                taken.map_err(|_| Flood {
                    setting: "limits.calls_per_second",
                    limit: u64::from(self.opens_rate) / 4,
                })
            }
            kind::CONTINUATION => self.block(frame),
            kind::RST_STREAM => self.reset(now),
            _ => self.work(now),
        }
    }

    fn block(&mut self, frame: Header) -> Result<(), Flood> {
        self.block_bytes = self.block_bytes.saturating_add(frame.len);
        self.block_parts += 1;
        let is_over = frame.flags & END_HEADERS != 0;
        // Compressed, they are smaller than what the limit is about; what is a little larger is refused with a status.
        let is_large = self.block_bytes > self.header_bytes.saturating_mul(4);
        if is_large || self.block_parts > MOST_PARTS && !is_over {
            return Err(Flood {
                setting: "limits.header_bytes",
                limit: self.header_bytes.into(),
            });
        }
        Ok(())
    }

    fn reset(&mut self, now: Duration) -> Result<(), Flood> {
        let rate = Rate::new(self.resets_rate.into(), BURST_SECONDS);
        self.resets.take(1, rate, now).map_err(|_| Flood {
            setting: "limits.http2_resets_per_second",
            limit: self.resets_rate.into(),
        })
    }

    fn work(&mut self, now: Duration) -> Result<(), Flood> {
        if self.credit > 0 {
            self.credit -= 1;
            return Ok(());
        }
        let rate = Rate::new(self.control_rate.into(), BURST_SECONDS);
        self.control.take(1, rate, now).map_err(|_| Flood {
            setting: "limits.http2_control_per_second",
            limit: self.control_rate.into(),
        })
    }
}

/// The header of a frame: RFC 9113 §4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    len: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Finds the headers of frames in a stream of bytes, however it is cut.
#[derive(Clone, Copy, Debug, Default)]
struct Walker {
    header: [u8; HEADER],
    have: u8,
    /// Of the payload, what is still to come.
    left: u32,
}

impl Walker {
    fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// The next header that is complete in these bytes, of which it takes what it has looked at.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Header> {
        let skipped = bytes.len().min(self.left as usize);
        self.left -= skipped as u32;
        *bytes = &bytes[skipped..];
        let have = usize::from(self.have);
        let count = bytes.len().min(HEADER - have);
        self.header[have..have + count].copy_from_slice(&bytes[..count]);
        *bytes = &bytes[count..];
        self.have += count as u8;
        if usize::from(self.have) < HEADER {
            return None;
        }
        self.have = 0;
        let [a, b, c, kind, flags, stream @ ..] = self.header;
        self.left = u32::from_be_bytes([0, a, b, c]);
        Some(Header {
            len: self.left,
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(5);
    const RST: u8 = kind::RST_STREAM;
    const PRIORITY: u8 = 2;
    const WINDOW_UPDATE: u8 = 8;
    const UNKNOWN: u8 = 0x42;

    fn frame(kind: u8, flags: u8, len: usize) -> Vec<u8> {
        let mut bytes = (len as u32).to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        bytes.resize(HEADER + len, 0);
        bytes
    }

    fn limits() -> Limits {
        Limits {
            http2_resets_per_second: 10,
            http2_control_per_second: 50,
            calls_per_second: 100,
            header_bytes: 8 << 10,
            ..Limits::default()
        }
    }

    fn meter() -> Meter {
        let mut meter = Meter::new(&limits());
        meter.read(PREFACE, NOW).unwrap();
        meter
    }

    /// How many of these may be read before it is too much, and of what.
    fn read(meter: &mut Meter, frame: &[u8]) -> (usize, &'static str) {
        for count in 0..100_000 {
            if let Err(flood) = meter.read(frame, NOW) {
                return (count, flood.setting);
            }
        }
        panic!("it goes on for ever")
    }

    #[test]
    fn frames_that_cost_work_for_nothing_are_bounded() {
        for (kind, flags, len, most, setting) in [
            (kind::SETTINGS, 0, 6, 100, "limits.http2_control_per_second"),
            (kind::PING, 0, 8, 100, "limits.http2_control_per_second"),
            (PRIORITY, 0, 5, 100, "limits.http2_control_per_second"),
            (WINDOW_UPDATE, 0, 4, 100, "limits.http2_control_per_second"),
            (UNKNOWN, 0, 0, 100, "limits.http2_control_per_second"),
            (kind::DATA, 0, 0, 100, "limits.http2_control_per_second"),
            (kind::DATA, PADDED, 200, 100, "limits.http2_control_per_second"),
            (RST, 0, 4, 20, "limits.http2_resets_per_second"),
            (kind::HEADERS, END_HEADERS, 20, 800, "limits.calls_per_second"),
            (kind::CONTINUATION, 0, 1, 32, "limits.header_bytes"),
            (kind::CONTINUATION, 0, 4096, 8, "limits.header_bytes"),
        ] {
            assert_eq!(read(&mut meter(), &frame(kind, flags, len)), (most, setting), "{kind}");
        }
    }

    #[test]
    fn data_and_the_ends_of_streams_are_free() {
        let mut meter = meter();
        for _ in 0..100_000 {
            meter.read(&frame(kind::DATA, 0, 7), NOW).unwrap();
            meter.read(&frame(kind::DATA, END_STREAM, 0), NOW).unwrap();
        }
    }

    #[test]
    fn resets_are_counted_whoever_sends_them() {
        let mut meter = meter();
        let mut reset = frame(RST, 0, 4);
        reset[HEADER + 3] = 1;
        for _ in 0..10 {
            meter.read(&reset, NOW).unwrap();
            meter.wrote(&reset, NOW).unwrap();
        }
        let flood = meter.wrote(&reset, NOW).unwrap_err();
        assert_eq!(flood.setting, "limits.http2_resets_per_second");
        assert_eq!(flood.limit, 10);
        let later = NOW + Duration::from_millis(100);
        assert_eq!(meter.read(&reset, later), Ok(()));
        assert!(meter.read(&reset, later).is_err());
    }

    #[test]
    fn a_reset_without_an_error_is_how_refusals_end() {
        let mut meter = meter();
        let reset = frame(RST, 0, 4);
        for _ in 0..1_000 {
            // However it is cut.
            let (begin, rest) = reset.split_at(HEADER + 2);
            meter.wrote(begin, NOW).unwrap();
            meter.wrote(rest, NOW).unwrap();
        }
    }

    #[test]
    fn what_was_sent_accounts_for_updates_of_windows() {
        let mut meter = meter();
        for _ in 0..1_000 {
            meter.wrote(&frame(kind::DATA, 0, 100), NOW).unwrap();
        }
        let (count, _) = read(&mut meter, &frame(WINDOW_UPDATE, 0, 4));
        assert_eq!(count, 3_100);
    }

    #[test]
    fn it_sees_the_same_however_the_bytes_are_cut() {
        let mut bytes = PREFACE.to_vec();
        for len in 1..=100 {
            bytes.extend(frame(kind::PING, 0, 8));
            bytes.extend(frame(kind::DATA, 0, len));
        }
        bytes.extend(frame(kind::PING, 0, 8));
        // The last PING is one too many, and is seen when its header is complete.
        let end = bytes.len() - 8 - 1;
        for size in [1, 2, 7, 9, 24, 25, 1_000] {
            let mut meter = Meter::new(&limits());
            let verdicts: Vec<_> = bytes.chunks(size).map(|cut| meter.read(cut, NOW)).collect();
            let first = verdicts.iter().position(Result::is_err);
            assert_eq!(first, Some(end / size), "{size}");
        }
    }

    #[test]
    fn nothing_but_http_2_is_metered() {
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nXX",
            b"\x16\x03\x01",
            b"PRY",
        ] {
            let mut meter = Meter::new(&limits());
            meter.read(other, NOW).unwrap();
            assert!(!meter.is_metering(), "{other:?}");
            assert_eq!(meter.read(&frame(RST, 0, 4).repeat(1_000), NOW), Ok(()));
        }
        let mut meter = Meter::new(&limits());
        meter.read(&PREFACE[..10], NOW).unwrap();
        assert!(meter.is_metering());
        meter.read(&PREFACE[10..], NOW).unwrap();
        assert!(meter.is_metering());
        assert_eq!(size_of::<Meter>(), size_of::<usize>());
    }

    #[test]
    fn the_last_word_names_the_limit_and_keeps_out_of_other_frames() {
        let mut meter = meter();
        let (_, setting) = read(&mut meter, &frame(RST, 0, 4));
        let flood = Flood { setting, limit: 10 };
        let bytes = meter.farewell(&flood).unwrap();
        let mut walker = Walker::default();
        let mut rest = &bytes[..];
        let header = walker.next(&mut rest).unwrap();
        assert_eq!((header.kind, header.len as usize), (kind::GOAWAY, bytes.len() - HEADER));
        assert_eq!(rest[4..8], ENHANCE_YOUR_CALM.to_be_bytes());
        assert!(String::from_utf8_lossy(rest).contains("limits.http2_resets_per_second (10)"));
        meter.wrote(&frame(kind::DATA, 0, 100)[..50], NOW).unwrap();
        assert_eq!(meter.farewell(&flood), None);
        meter.wrote(&[0; 59], NOW).unwrap();
        assert!(meter.farewell(&flood).is_some());
    }
}
