//! Pages of strangers: no handshake, no call and no look at an answer for them, whatever the protocol.

use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::*;

const APP: &str = "https://app.example.com";

async fn gateway(allowed: &[&str]) -> Gateway {
    let allowed = allowed.iter().map(|text| twinspan::edge::Pattern::parse(text).unwrap());
    Gateway::with(|config| config.origins = allowed.collect()).await
}

/// The head of the answer to an HTTP/1.1 request with these headers, in lower case, and what there is of its body.
async fn answer(gateway: &Gateway, line: &str, headers: &[(&str, &str)]) -> String {
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let mut request = format!("{line} HTTP/1.1\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    socket.write_all((request + "\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.windows(4).any(|part| part == b"\r\n\r\n") {
        let read = patiently("the answer", socket.read_buf(&mut answer)).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8_lossy(&answer).to_lowercase()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap()
}

/// The status of each way in, for a page of this origin that has called the gateway by this name.
async fn statuses(gateway: &Gateway, origin: Option<&str>, host: &str) -> [String; 3] {
    let origin = origin.map(|origin| ("Origin", origin));
    let with = |headers: &[(&'static str, &'static str)]| {
        let common = [("Host", host)].into_iter().chain(origin);
        common.chain(headers.iter().copied()).collect::<Vec<_>>()
    };
    let upgrade = with(&[
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]);
    let call = with(&[("Content-Type", "application/grpc-web+proto"), ("Content-Length", "0")]);
    let all = [
        answer(gateway, "GET /v1/ws", &upgrade).await,
        answer(gateway, "POST /twinspan.v1.Sessions/List", &call).await,
        answer(gateway, "GET /healthz", &with(&[])).await,
    ];
    all.map(|answer| status(&answer).to_owned())
}

fn let_in() -> [String; 3] {
    ["101", "200", "200"].map(str::to_owned)
}

fn kept_out() -> [String; 3] {
    ["403", "403", "403"].map(str::to_owned)
}

#[tokio::test]
async fn pages_are_let_in_by_their_origin() {
    let gateway = gateway(&[APP, "http://localhost:*"]).await;
    let own = gateway.address.to_string();
    let (same, other_port) = (format!("http://{own}"), "http://127.0.0.1:1".to_owned());
    for (origin, allowed) in [
        (APP, true),
        ("http://localhost:5173", true),
        (same.as_str(), true),
        (other_port.as_str(), false),
        ("https://evil.example.net", false),
        ("https://app.example.com.evil.net", false),
        ("http://app.example.com", false),
        ("null", false),
        ("", false),
    ] {
        let expected = if allowed { let_in() } else { kept_out() };
        assert_eq!(statuses(&gateway, Some(origin), &own).await, expected, "{origin}");
    }
    // Programs are no pages.
    assert_eq!(statuses(&gateway, None, &own).await, let_in());
    gateway.stopped().await;
}

#[tokio::test]
async fn a_name_that_leads_here_makes_no_page_the_gateways_own() {
    let gateway = gateway(&[]).await;
    let port = gateway.address.port();
    let rebound = format!("rebound.evil.net:{port}");
    assert_eq!(
        statuses(&gateway, Some(&format!("http://{rebound}")), &rebound).await,
        kept_out()
    );
    let local = format!("localhost:{port}");
    assert_eq!(
        statuses(&gateway, Some(&format!("http://{local}")), &local).await,
        let_in()
    );
    gateway.stopped().await;
}

#[tokio::test]
async fn a_refused_page_is_told_why() {
    let gateway = gateway(&[]).await;
    let headers = [("Host", "x"), ("Origin", "https://evil.example.net")];
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let mut request = "GET /healthz HTTP/1.1\r\nConnection: close\r\n".to_owned();
    headers
        .iter()
        .for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
    socket.write_all((request + "\r\n").as_bytes()).await.unwrap();
    let mut told = String::new();
    patiently("the answer", socket.read_to_string(&mut told)).await.unwrap();
    assert!(
        told.contains("ORIGIN_DENIED") && told.contains("setting origins"),
        "{told}"
    );
    assert!(!told.to_lowercase().contains("access-control"), "{told}");
    let twice = [("Host", "x"), ("Origin", "http://x"), ("Origin", APP)];
    assert_eq!(status(&answer(&gateway, "GET /healthz", &twice).await), "403");
    gateway.stopped().await;
}

#[tokio::test]
async fn preflights_are_answered_for_allowed_origins_only() {
    let gateway = gateway(&[APP]).await;
    let ask = [
        ("Host", "gateway.example.com"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,x-grpc-web"),
    ];
    let from = |origin| {
        let mut headers = ask.to_vec();
        headers.push(("Origin", origin));
        headers
    };
    let line = "OPTIONS /twinspan.v1.Sessions/List";
    let allowed = answer(&gateway, line, &from(APP)).await;
    assert_eq!(status(&allowed), "200");
    for part in [
        "access-control-allow-origin: https://app.example.com\r\n",
        "access-control-allow-methods: get,post\r\n",
        "access-control-max-age: 3600\r\n",
        "authorization",
        "x-grpc-web",
        "grpc-timeout",
        "traceparent",
    ] {
        assert!(allowed.contains(part), "{part} is not in {allowed}");
    }
    assert!(!allowed.contains("allow-credentials"), "{allowed}");
    let denied = answer(&gateway, line, &from("https://evil.example.net")).await;
    assert_eq!(status(&denied), "403");
    assert!(!denied.contains("access-control"), "{denied}");
    // What the page may read of the call itself.
    let call = [
        ("Host", "gateway.example.com"),
        ("Origin", APP),
        ("Content-Type", "application/grpc-web+proto"),
        ("Content-Length", "0"),
    ];
    let called = answer(&gateway, "POST /twinspan.v1.Sessions/List", &call).await;
    assert!(
        called.contains("access-control-allow-origin: https://app.example.com\r\n"),
        "{called}"
    );
    assert!(called.contains("grpc-status-details-bin"), "{called}");
    gateway.stopped().await;
}

#[tokio::test]
async fn websockets_over_http_2_are_no_way_around() {
    let gateway = gateway(&[APP]).await;
    let socket = TcpStream::connect(gateway.address).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = |method: Method, path: &str, origin: &str| {
        let uri = format!("http://{}{path}", gateway.address);
        let request = Request::builder().method(method).uri(uri).header("origin", origin);
        request
            .header("sec-websocket-version", "13")
            .body(Empty::<Bytes>::new())
            .unwrap()
    };
    // With the first answer, the client knows that the gateway takes such requests.
    let health = client
        .send_request(request(Method::GET, "/healthz", APP))
        .await
        .unwrap();
    assert_eq!(health.status(), StatusCode::OK);
    for (origin, expected) in [
        (APP, StatusCode::OK),
        ("https://evil.example.net", StatusCode::FORBIDDEN),
        ("null", StatusCode::FORBIDDEN),
    ] {
        let mut connect = request(Method::CONNECT, "/v1/ws", origin);
        let protocol = hyper::ext::Protocol::from_static("websocket");
        connect.extensions_mut().insert(protocol);
        let answer = patiently("the answer", client.send_request(connect)).await.unwrap();
        assert_eq!(answer.status(), expected, "{origin}");
    }
    gateway.stopped().await;
}
