//! Raw bytes: frames of HTTP/2 and of WebSocket as an attacker writes them, with no library in between.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::patiently;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

/// What an HTTP/2 client begins with, before its SETTINGS.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub async fn connect(address: SocketAddr) -> TcpStream {
    let socket = patiently("a TCP connection", TcpStream::connect(address))
        .await
        .unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// Writes all of it, as far as the gateway takes it, and reads until the gateway has closed: what it said.
pub async fn last_words(mut socket: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = socket.split();
    let mut heard = Vec::new();
    let writing = async {
        // The gateway may close in the middle of it.
        drop(write.write_all(bytes).await);
        drop(write.flush().await);
        std::future::pending::<()>().await
    };
    let reading = async {
        let mut scratch = vec![0; 64 << 10];
        loop {
            match read.read(&mut scratch).await {
                Ok(0) | Err(_) => return,
                Ok(count) => heard.extend_from_slice(&scratch[..count]),
            }
        }
    };
    let both = async {
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    };
    patiently("the gateway to hang up", both).await;
    heard
}

/// A frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The preface, and SETTINGS.
pub fn hello() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A header that neither side remembers: RFC 7541 §6.2.2.
pub fn header(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0];
    for text in [name, value] {
        length(&mut block, text.len());
        block.extend_from_slice(text.as_bytes());
    }
    block
}

/// RFC 7541 §5.1, with a prefix of seven bits.
fn length(block: &mut Vec<u8>, mut len: usize) {
    if len < 127 {
        return block.push(len as u8);
    }
    block.push(127);
    len -= 127;
    while len >= 128 {
        block.push(128 | (len & 127) as u8);
        len >>= 7;
    }
    block.push(len as u8);
}

/// The headers of a gRPC call.
pub fn call(path: &str) -> Vec<u8> {
    [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", path),
        header(":authority", "localhost"),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    ]
    .concat()
}

/// The frames of HTTP/2 in these bytes, as far as they are whole: their kinds, streams and payloads.
pub fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let Some((payload, rest)) = rest.split_at_checked(len) else {
            break;
        };
        found.push((head[3], stream, payload.to_vec()));
        bytes = rest;
    }
    found
}

/// The error code and the text of the last GOAWAY in these bytes.
pub fn goaway(bytes: &[u8]) -> Option<(u32, String)> {
    let (_, _, payload) = frames(bytes).into_iter().rfind(|(kind, _, _)| *kind == GOAWAY)?;
    let code = u32::from_be_bytes(payload.get(4..8)?.try_into().unwrap());
    Some((code, String::from_utf8_lossy(&payload[8..]).into_owned()))
}

/// The handshake of a WebSocket.
pub const UPGRADE: &[u8] = b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A masked frame of WebSocket.
pub fn message(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(first, payload.len() as u64);
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// The head of a masked frame that says it has so many bytes.
pub fn head(first: u8, len: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match len {
        0..=125 => bytes.push(0x80 | len as u8),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(len.to_be_bytes());
        }
    }
    bytes.extend([0x37, 0xfa, 0x21, 0x3d]);
    bytes
}

/// The code and the text of the close frame that these bytes of the gateway's end with, after the handshake.
pub fn close(bytes: &[u8]) -> Option<(u16, String)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let mut rest = &bytes[end..];
    while let [first, second, after @ ..] = rest {
        let (len, after) = match second {
            126 => (usize::from(u16::from_be_bytes([after[0], after[1]])), &after[2..]),
            len => (usize::from(*len), after),
        };
        let payload = after.get(..len)?;
        if *first == 0x88 {
            let (code, text) = payload.split_at_checked(2)?;
            let code = u16::from_be_bytes([code[0], code[1]]);
            return Some((code, String::from_utf8_lossy(text).into_owned()));
        }
        rest = &after[len..];
    }
    None
}
