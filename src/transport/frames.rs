//! The WebSocket meter: it follows the frames that a peer sends, by their headers alone, before tungstenite sees them, and says
//! when they cost work for nothing or break a rule that tungstenite notices late.
//!
//! Pure: bytes in, verdict out; what time it is, the caller says. It keeps a few bytes a connection, and never what passes.

use std::time::Duration;

use crate::error::{Reason, Refusal};
use crate::limits::{Bucket, Limits, Rate};

/// Seconds' worth of frames that carry nothing that may come at once.
const BURST_SECONDS: u64 = 2;
/// The most that a control frame may carry: RFC 6455 §5.5.
const CONTROL: u64 = 125;

const FIN: u8 = 0x80;
const OPCODE: u8 = 0x0f;
const IS_CONTROL: u8 = 0x08;
const MASKED: u8 = 0x80;

/// The meter of one connection.
#[derive(Debug, Default)]
pub struct Meter {
    /// Of the header, the length as far as it has come; then, what is still to come of the mask and the payload.
    left: u64,
    idle: Bucket,
    /// Of the message that is not complete.
    fragments: u32,
    first: u8,
    second: u8,
    /// Bytes of the header that have come; none within the payload.
    have: u8,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    first: u8,
    len: u64,
}

impl Meter {
    /// The peer sent these bytes, so long after the beginning of time.
    pub fn read(&mut self, mut bytes: &[u8], limits: &Limits, now: Duration) -> Result<(), Refusal> {
        while let Some(header) = self.next(&mut bytes) {
            self.came(header, limits, now)?;
        }
        Ok(())
    }

    /// The next header that is complete in these bytes, of which it takes what it has looked at.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Header> {
        if self.have == 0 {
            let skipped = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= skipped as u64;
            *bytes = &bytes[skipped..];
        }
        while let Some((byte, rest)) = bytes.split_first() {
            *bytes = rest;
            self.have += 1;
            let short = u64::from(self.second & !MASKED);
            match self.have {
                1 => self.first = *byte,
                2 => self.second = *byte,
                _ => self.left = self.left << 8 | u64::from(*byte),
            }
            let short = if self.have == 2 {
                u64::from(*byte & !MASKED)
            } else {
                short
            };
            let (size, is_short) = match short {
                126 => (4, false),
                127 => (10, false),
                _ => (2, true),
            };
            if self.have >= 2 && self.have == size {
                let len = if is_short { short } else { self.left };
                self.have = 0;
                self.left = len.saturating_add(if self.second & MASKED != 0 { 4 } else { 0 });
                return Some(Header { first: self.first, len });
            }
        }
        None
    }

    fn came(&mut self, Header { first, len }: Header, limits: &Limits, now: Duration) -> Result<(), Refusal> {
        if first & IS_CONTROL != 0 {
            if len > CONTROL {
                let text = format!("a control frame may carry {CONTROL} bytes at most");
                return Err(Refusal::new(Reason::ProtocolError, text));
            }
            return self.work(limits, now);
        }
        let is_whole = first & FIN != 0 && first & OPCODE != 0;
        if is_whole {
            return Ok(());
        }
        if first & OPCODE != 0 {
            self.fragments = 0;
        }
        self.fragments += 1;
        if self.fragments > limits.fragments {
            let limit = limits.fragments;
            let text = format!("a message may have {limit} fragments at most: send it in fewer");
            return Err(Refusal::limit(
                Reason::ProtocolFlood,
                text,
                ("limits.fragments", limit.into()),
            ));
        }
        if len == 0 {
            return self.work(limits, now);
        }
        Ok(())
    }

    fn work(&mut self, limits: &Limits, now: Duration) -> Result<(), Refusal> {
        let limit = limits.ws_control_per_second;
        let rate = Rate::new(limit.into(), BURST_SECONDS);
        self.idle.take(1, rate, now).map_err(|_| {
            let text = format!("more than {limit} pings, pongs and empty fragments in a second: send fewer");
            Refusal::limit(
                Reason::ProtocolFlood,
                text,
                ("limits.ws_control_per_second", limit.into()),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(5);

    fn frame(first: u8, len: u64) -> Vec<u8> {
        let mut bytes = vec![first];
        match len {
            0..=125 => bytes.push(MASKED | len as u8),
            126..=0xffff => {
                bytes.push(MASKED | 126);
                bytes.extend((len as u16).to_be_bytes());
            }
            _ => {
                bytes.push(MASKED | 127);
                bytes.extend(len.to_be_bytes());
            }
        }
        bytes.extend([1, 2, 3, 4]);
        bytes
    }

    fn whole(first: u8, len: u64) -> Vec<u8> {
        let mut bytes = frame(first, len);
        bytes.resize(bytes.len() + len as usize, 0xff);
        bytes
    }

    fn limits() -> Limits {
        Limits {
            fragments: 10,
            ws_control_per_second: 10,
            ..Limits::default()
        }
    }

    /// How many of these may be read before it is too much, and why.
    fn read(bytes: &[u8]) -> (usize, Reason) {
        let mut meter = Meter::default();
        for count in 0..100_000 {
            if let Err(refusal) = meter.read(bytes, &limits(), NOW) {
                return (count, refusal.reason);
            }
        }
        panic!("it goes on for ever")
    }

    #[test]
    fn frames_that_carry_nothing_are_bounded() {
        for (bytes, most, reason) in [
            (whole(0x89, 0), 20, Reason::ProtocolFlood),
            (whole(0x8a, 125), 20, Reason::ProtocolFlood),
            (whole(0x00, 300), 10, Reason::ProtocolFlood),
            ([whole(0x01, 0), whole(0x80, 1)].concat(), 20, Reason::ProtocolFlood),
            (whole(0x89, 126), 0, Reason::ProtocolError),
            (frame(0x88, 1 << 40), 0, Reason::ProtocolError),
        ] {
            assert_eq!(read(&bytes), (most, reason), "{:02x}", bytes[0]);
        }
    }

    #[test]
    fn messages_are_free_however_they_are_cut() {
        let mut bytes = Vec::new();
        for len in (0..300).chain([65_535, 65_536, 70_000]) {
            bytes.extend(whole(0x81, len));
            bytes.extend(whole(0x01, 1));
            bytes.extend(whole(0x00, len + 1));
            bytes.extend(whole(0x80, 1));
        }
        for size in [1, 3, 1_000, 100_000_000] {
            let mut meter = Meter::default();
            for cut in bytes.chunks(size) {
                assert_eq!(meter.read(cut, &limits(), NOW), Ok(()), "{size}");
            }
            assert_eq!(meter.left, 0);
            let pings = whole(0x89, 5).repeat(20);
            assert_eq!(meter.read(&pings, &limits(), NOW), Ok(()));
            assert!(meter.read(&pings[..2], &limits(), NOW).is_err());
        }
    }

    #[test]
    fn it_takes_few_bytes() {
        assert!(size_of::<Meter>() <= 24);
    }
}
