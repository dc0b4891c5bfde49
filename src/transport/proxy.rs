//! The PROXY protocol, versions 1 and 2: the header in which a proxy says at the start of a connection for whom it speaks.
//!
//! It reads the header and not a byte more: what follows belongs to TLS or HTTP.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The longest line of version 1.
const LINE_BYTES: usize = 107;
/// What a header of version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, the version, the kind of address, and the length of the rest.
const FIXED_BYTES: usize = 16;
/// The longest rest of a header of version 2. Addresses take 36 bytes; what else there may be is passed over.
const REST_BYTES: usize = 4_096;

/// Reads the header. Gives whom the proxy speaks for; nobody, where it speaks for itself (LOCAL) or does not know (UNKNOWN).
pub async fn header(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    let bytes = match first[0] {
        b'P' => line(stream).await?,
        b'\r' => block(stream).await?,
        _ => return Err(invalid("there is none")),
    };
    let config = ParseConfig::default();
    match ProxyHeader::parse(&bytes, config) {
        Ok((header, length)) if length == bytes.len() => Ok(header.proxied_address().map(|addresses| addresses.source)),
        // All of it is there: what says that it is too short lies about its length.
        _ => Err(invalid("it cannot be read")),
    }
}

/// Version 1: takes what has come up to the end of the line, and waits for more.
async fn line(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(LINE_BYTES);
    while line.len() < LINE_BYTES {
        let mut seen = [0; LINE_BYTES];
        let room = LINE_BYTES - line.len();
        let count = stream.peek(&mut seen[..room]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = seen[..count].iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(count, |at| at + 1);
        stream.read_exact(&mut seen[..taken]).await?;
        line.extend_from_slice(&seen[..taken]);
        if end.is_some() {
            return Ok(line);
        }
    }
    Err(invalid("its line does not end"))
}

/// Version 2: says itself how long it is.
async fn block(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut fixed = [0; FIXED_BYTES];
    let (signature, rest) = fixed.split_at_mut(SIGNATURE.len());
    stream.read_exact(signature).await?;
    if signature != SIGNATURE {
        return Err(invalid("there is none"));
    }
    stream.read_exact(rest).await?;
    let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
    if length > REST_BYTES {
        return Err(invalid("it is too long"));
    }
    let mut block = vec![0; FIXED_BYTES + length];
    block[..FIXED_BYTES].copy_from_slice(&fixed);
    stream.read_exact(&mut block[FIXED_BYTES..]).await?;
    Ok(block)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no PROXY header: {why}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What is read of these bytes, written in two pieces, and what is left after it.
    async fn read(bytes: &[u8], cut: usize) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        writer.set_nodelay(true).unwrap();
        let (mut reader, _) = listener.accept().await.unwrap();
        let (one, other) = bytes.split_at(cut);
        let write = async {
            writer.write_all(one).await.unwrap();
            // The reader runs until it wants more.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            writer.write_all(other).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(write, header(&mut reader));
        let mut left = Vec::new();
        reader.read_to_end(&mut left).await.unwrap();
        (read, left)
    }

    fn block(kind: [u8; 2], rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &kind, &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x67, 0, 80];

    #[tokio::test]
    async fn headers_are_read_wherever_they_are_cut_and_not_a_byte_more() {
        let mut v6 = [0; 36];
        (v6[0], v6[1], v6[15], v6[32], v6[33]) = (0x20, 0x01, 1, 0x12, 0x67);
        let with_tlv = [V4.as_slice(), &[4, 0, 2, 0, 0]].concat();
        for (header, expected) in [
            (
                b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n".to_vec(),
                Some("192.0.2.1:4711"),
            ),
            (b"PROXY TCP6 2001::1 ::1 4711 80\r\n".to_vec(), Some("[2001::1]:4711")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (block([0x21, 0x11], &V4), Some("192.0.2.1:4711")),
            (block([0x21, 0x11], &with_tlv), Some("192.0.2.1:4711")),
            (block([0x21, 0x21], &v6), Some("[2001::1]:4711")),
            (block([0x20, 0x00], &[]), None),
            (block([0x20, 0x11], &V4), None),
            (block([0x21, 0x00], &[]), None),
        ] {
            let bytes = [header.as_slice(), b"GET / HTTP/1.1\r\n\r\n"].concat();
            for cut in 0..=bytes.len() {
                let (read, left) = read(&bytes, cut).await;
                let read = read.unwrap().map(|address| address.to_string());
                assert_eq!(read.as_deref(), expected, "{header:?} cut at {cut}");
                assert_eq!(left, b"GET / HTTP/1.1\r\n\r\n");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200], b"\r\n"].concat();
        let unix = block([0x21, 0x31], &[0; 20]);
        let huge = block([0x21, 0x11], &[0; REST_BYTES + 1]);
        for bytes in [
            b"".as_slice(),
            b"GET / HTTP/1.1\r\n\r\n",
            b"PROXY",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\n",
            b"PROXY TCP4 192.0.2.256 10.0.0.1 4711 80\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 99999\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP5 192.0.2.1 10.0.0.1 4711 80\r\n",
            b"PROXY\r\n",
            b"\r\n\r\n\0\r\nQUIX\n\x20\x00\x00\x00",
            b"\r\n\r\n\0\r\nQUIT\n",
            &block([0x31, 0x11], &V4),
            &block([0x22, 0x11], &V4),
            &block([0x21, 0x41], &V4),
            &block([0x21, 0x11], &V4[..11]),
            &block([0x21, 0x21], &V4),
            &long,
            &unix,
            &huge,
            b"\x16\x03\x01\x02\x00",
        ] {
            let (read, _) = read(bytes, bytes.len()).await;
            assert!(read.is_err(), "{bytes:?}");
        }
    }
}
