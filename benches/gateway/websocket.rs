//! WebSocket as far as a load driver needs it: whole frames, ready-made or parsed in place, and no state.

use std::fmt::Write as _;

use crate::Result;

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// One frame of a server, in the buffer in which it came.
pub struct Frame<'a> {
    pub opcode: u8,
    pub payload: &'a [u8],
    /// Bytes of the whole frame.
    pub wire_bytes: usize,
}

/// Takes the first frame of `buffer`, if all of it is there.
pub fn parse(buffer: &[u8]) -> Result<Option<Frame<'_>>> {
    let [first, second, ..] = *buffer else {
        return Ok(None);
    };
    if first & FINAL == 0 || second & MASKED != 0 {
        return Err(format!("frame begins with {first:#04x} {second:#04x}: in pieces, or masked").into());
    }
    let (header, length) = match second {
        126 => match buffer.get(2..4) {
            Some(bytes) => (4, usize::from(u16::from_be_bytes(bytes.try_into()?))),
            None => return Ok(None),
        },
        127 => match buffer.get(2..10) {
            Some(bytes) => (10, usize::try_from(u64::from_be_bytes(bytes.try_into()?))?),
            None => return Ok(None),
        },
        short => (2, usize::from(short)),
    };
    let wire_bytes = header + length;
    Ok(buffer.get(header..wire_bytes).map(|payload| Frame {
        opcode: first & 0x0f,
        payload,
        wire_bytes,
    }))
}

/// A browser's frame.
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 8);
    push_header(&mut frame, opcode, payload.len(), MASKED);
    frame.extend_from_slice(&KEY);
    frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A server's text frame of `wire_bytes` bytes in all, its payload beginning with `mark`.
pub fn server_text(mark: &[u8], wire_bytes: usize) -> Vec<u8> {
    let header = if wire_bytes < 128 { 2 } else { 4 };
    let length = wire_bytes.saturating_sub(header).max(mark.len());
    let mut frame = Vec::with_capacity(wire_bytes);
    push_header(&mut frame, TEXT, length, 0);
    let end = frame.len() + length;
    frame.extend_from_slice(mark);
    frame.resize(end, b'.');
    frame
}

/// The request that opens a WebSocket.
pub fn opening(host: &str, path: &str, subprotocol: Option<&str>) -> String {
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    );
    if let Some(name) = subprotocol {
        let _ = write!(request, "Sec-WebSocket-Protocol: {name}\r\n");
    }
    request.push_str("\r\n");
    request
}

fn push_header(frame: &mut Vec<u8>, opcode: u8, length: usize, mask: u8) {
    frame.push(FINAL | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..126), _) => frame.push(mask | short),
        (_, Ok(medium)) => {
            frame.push(mask | 126);
            frame.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            frame.push(mask | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}
