//! Proxies in front of the gateway: the PROXY header, over real sockets.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use twinspan::config::Config;

use crate::harness::*;

const LINE: &[u8] = b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n";
const BLOCK: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\x0a\x00\x00\x01\x12\x67\x00\x50";
const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

async fn gateway(trusted: &str, change: impl FnOnce(&mut Config)) -> Gateway {
    Gateway::with(|config| {
        config.proxies.protocol = true;
        config.proxies.trusted = vec![trusted.parse().unwrap()];
        change(config);
    })
    .await
}

/// What is answered to bytes that are written in pieces; nothing, if the connection is closed.
async fn answer(gateway: &Gateway, pieces: &[&[u8]]) -> String {
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    for piece in pieces {
        // A connection that is refused may be gone before all is written.
        socket.write_all(piece).await.ok();
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    patiently("the end", socket.read_to_end(&mut answer)).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_header_is_read_wherever_it_is_cut() {
    let gateway = gateway("127.0.0.0/8", |_| {}).await;
    for header in [LINE, BLOCK, b"PROXY UNKNOWN\r\n"] {
        let all = [header, REQUEST].concat();
        for cut in 0..=header.len() + 1 {
            let (one, other) = all.split_at(cut);
            let told = answer(&gateway, &[one, other]).await;
            assert!(told.starts_with("HTTP/1.1 200"), "{header:?} cut at {cut}: {told}");
        }
        let singly: Vec<_> = all.chunks(1).collect();
        assert!(answer(&gateway, &singly).await.starts_with("HTTP/1.1 200"));
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn garbage_and_no_header_at_all_end_the_connection() {
    let gateway = gateway("127.0.0.0/8", |config| config.limits.handshake = 10 * PATIENCE).await;
    let endless = [b"PROXY TCP4 ".as_slice(), &[b'1'; 4_000]].concat();
    let huge = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff";
    for bytes in [
        REQUEST,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"PROXY TCP4 not an address\r\n",
        b"PROXY\r\n",
        b"\r\n\r\n\0\r\nQUIT\r\x21\x11\x00\x0c",
        huge,
        &endless,
    ] {
        assert_eq!(answer(&gateway, &[bytes]).await, "", "{bytes:?}");
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn a_header_from_anybody_else_is_garbage() {
    let gateway = gateway("10.0.0.0/8", |_| {}).await;
    for header in [LINE, BLOCK] {
        let told = answer(&gateway, &[header, REQUEST]).await;
        assert!(!told.starts_with("HTTP/1.1 200"), "{told}");
    }
    assert!(answer(&gateway, &[REQUEST]).await.starts_with("HTTP/1.1 200"));
    gateway.stopped().await;
}

#[tokio::test]
async fn a_header_that_does_not_come_is_not_waited_for() {
    let gateway = gateway("127.0.0.0/8", |config| {
        config.limits.handshake = Duration::from_millis(100)
    })
    .await;
    for begun in [&b""[..], b"P", &LINE[..20], &BLOCK[..13], &BLOCK[..20], LINE] {
        assert_eq!(answer(&gateway, &[begun]).await, "", "{begun:?}");
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn a_websocket_follows_a_header() {
    let gateway = gateway("127.0.0.0/8", |_| {}).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(BLOCK).await.unwrap();
    let mut ann = Peer::websocket_over(Box::new(socket), "x/v1/ws", None).await;
    ann.join("s", Default::default()).await;
    ann.send(text("s", "x", "through a proxy")).await;
    ann.acked("x").await;
    gateway.stopped().await;
}
