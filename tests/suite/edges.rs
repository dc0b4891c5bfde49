//! What strangers send: garbage gets a typed answer, and nobody else notices.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use twinspan::error::Reason;
use twinspan::frame::{Body, Control, Frame, Sealed, pb};

use crate::harness::*;
use crate::scenarios;

scenarios! {
    frames_for_the_wrong_state
    names_are_checked
    pings_and_hello
    nothing_is_left_behind
}

async fn frames_for_the_wrong_state(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut bob = gateway.member(other, "s", "bob").await;
    let mut ann = gateway.peer(one).await;
    let gateways_own = [
        Control::Welcome(pb::Welcome::default()),
        Control::Joined(pb::Joined::default()),
        Control::Serving(pb::Serving::default()),
        Control::Ack(pb::Ack::default()),
        Control::CancelAck(pb::CancelAck::default()),
        Control::Gap(pb::Gap::default()),
        Control::Presence(pb::Presence::default()),
        Control::GoAway(pb::GoAway::default()),
        Control::Left(pb::Left::default()),
        Control::SessionChanged(pb::SessionChanged::default()),
    ];
    for control in gateways_own {
        ann.control("s", control.clone()).await;
        assert!(is(&ann.refusal().await, Reason::UnexpectedFrame), "{control:?}");
    }
    ann.control("s", Control::Leave(pb::Leave {})).await;
    assert!(is(&ann.refusal().await, Reason::NotAMember));
    ann.control(
        "none",
        Control::Cancel(pb::Cancel {
            request_id: "q".to_owned(),
            ..Default::default()
        }),
    )
    .await;
    assert!(is(&ann.refusal().await, Reason::SessionNotFound));
    ann.send(Frame {
        reply_to: "q".into(),
        ..text("none", "", "")
    })
    .await;
    assert!(is(&ann.refusal().await, Reason::SessionNotFound));
    bob.hears_nothing().await;
    gateway.stopped().await;
}

async fn names_are_checked(one: Face, _: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.peer(one).await;
    let long = "x".repeat(129);
    for session in ["", "with space", "über", "a*", &long] {
        ann.send(text(session, "x", "")).await;
        let refused = ann.refusal().await;
        assert!(is(&refused, Reason::InvalidField), "{session}");
        assert_eq!(refused.details["field"], "session_id");
    }
    let member = pb::Address {
        member_id: "m".to_owned(),
        ..pb::Address::default()
    };
    let bad = [
        to(
            text("s", "x", ""),
            pb::Address {
                role: "r".to_owned(),
                ..member.clone()
            },
        ),
        to(
            text("s", "x", ""),
            pb::Address {
                subject: "who".to_owned(),
                ..member
            },
        ),
        to(text("s", "x", ""), role("no role")),
        Frame {
            ephemeral: true,
            ..request("s", "x", "brain")
        },
        Frame {
            reply_to: "q".into(),
            ..request("s", "x", "brain")
        },
        hasty(text("s", "x", "not a request"), 1, 1),
        hasty(request("s", "x", "brain"), 90_000_000, 0),
        text("s", &"i".repeat(129), ""),
        text("s", "with space", ""),
    ];
    for frame in bad {
        ann.send(frame.clone()).await;
        assert!(is(&ann.refusal().await, Reason::InvalidField), "{frame:?}");
    }
    ann.control("", Control::Serve(pb::Serve::default())).await;
    assert!(is(&ann.refusal().await, Reason::InvalidField));
    gateway.stopped().await;
}

async fn pings_and_hello(one: Face, _: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.peer(one).await;
    ann.hears_nothing().await;
    let hello = pb::Hello {
        client: "test/1".to_owned(),
        ..pb::Hello::default()
    };
    ann.send(Frame {
        id: "h".into(),
        body: Body::Control(Box::new(Control::Hello(hello))),
        ..Frame::default()
    })
    .await;
    let frame = ann.next().await;
    assert_eq!(frame.reply_to, "h");
    let Some(Control::Welcome(welcome)) = control(&frame) else {
        panic!("not welcome: {frame:?}")
    };
    assert_eq!(welcome.limits.unwrap().frame_bytes, 1 << 20);
    assert!(!welcome.connection_id.is_empty() && welcome.server.starts_with("twinspan/"));
    gateway.stopped().await;
}

async fn nothing_is_left_behind(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut count = gateway.router.link_count();
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    worker
        .until("the request", |frame| (frame.attempt > 0).then_some(()))
        .await;
    drop((ann, worker));
    patiently("the connections to be gone", count.wait_for(|count| *count == 0))
        .await
        .unwrap();
    let session = gateway.router.describe("s").await.unwrap();
    assert_eq!((session.member_count, session.open_request_count), (0, 0));
    gateway.stopped().await;
}

#[tokio::test]
async fn garbage_in_text_is_answered() {
    let gateway = Gateway::start().await;
    let mut bob = gateway.member(Face::Grpc, "s", "bob").await;
    let mut ann = gateway.websocket("", None).await;
    let deep = format!(r#"{{"sessionId":"s","payload":{}1{}}}"#, "[".repeat(40), "]".repeat(40));
    let cases = [
        ("", Reason::MalformedFrame),
        ("nonsense", Reason::MalformedFrame),
        ("[]", Reason::MalformedFrame),
        (r#"{"sessionId":"s""#, Reason::MalformedFrame),
        (r#"{"sessionId":"s"} x"#, Reason::MalformedFrame),
        (r#"{"sessionId":7}"#, Reason::MalformedFrame),
        (r#"{"sesionId":"s"}"#, Reason::UnknownField),
        (r#"{"sessionId":"s","session_id":"s"}"#, Reason::MalformedFrame),
        (r#"{"sessionId":"s","payload":{"a":1,"a":2}}"#, Reason::InvalidPayload),
        (r#"{"sessionId":"s","payload":1e999}"#, Reason::InvalidPayload),
        (r#"{"sessionId":"s","payload":"\ud800"}"#, Reason::InvalidPayload),
        (deep.as_str(), Reason::InvalidPayload),
        (
            r#"{"sessionId":"s","message":{"@type":"x/no.Such"}}"#,
            Reason::UnknownType,
        ),
        (r#"{"sessionId":"s\u0000"}"#, Reason::InvalidField),
    ];
    for (bad, reason) in cases {
        ann.send_raw(Message::text(bad)).await;
        let refused = ann.refusal().await;
        assert!(is(&refused, reason), "{bad}: {refused:?}");
    }
    ann.send_raw(Message::text(r#"{"id":"x","sessionId":"s","text":"fine"}"#))
        .await;
    assert_eq!(ann.acked("x").await.seq, 1);
    assert_eq!(bob.logged().await.body, Body::Text("fine".into()));
    gateway.stopped().await;
}

#[tokio::test]
async fn garbage_in_binary_is_answered() {
    let gateway = Gateway::start().await;
    let mut bob = gateway.member(Face::Json, "s", "bob").await;
    let mut ann = gateway.websocket("", Some("twinspan.v1.proto")).await;
    let cases: [&[u8]; 7] = [
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\x01\xff",
        b"\x9a\x01\x02\xff\xfe",
        b"\x0b\x0c",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x12\x01s\x82\x01\x09\x11\x00\x00\x00\x00\x00\x00\xf8\x7f",
    ];
    for bad in cases {
        ann.send_raw(Message::binary(bad.to_vec())).await;
        let refused = ann.refusal().await;
        let typed = is(&refused, Reason::MalformedFrame) || is(&refused, Reason::InvalidPayload);
        assert!(typed, "{bad:x?}: {refused:?}");
    }
    bob.hears_nothing().await;
    gateway.stopped().await;
}

#[tokio::test]
async fn frames_that_are_too_large_end_the_connection() {
    let gateway = Gateway::with(|config| config.limits.frame_bytes = 10_000).await;
    for face in [Face::Grpc, Face::Json, Face::Binary] {
        let mut ann = gateway.member(face, "s", "ann").await;
        ann.send(text("s", "x", &"x".repeat(20_000))).await;
        let ended = ann.ended().await;
        assert_eq!(ended.reason().as_deref(), Some("FRAME_TOO_LARGE"), "{ended:?}");
        if let Ended::Close(code, _) = ended {
            assert_eq!(code, 1009);
        }
    }
    gateway.stopped().await;
}

/// A WebSocket frame from a client, with a mask of zeros.
fn raw(first: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | body.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(body);
    frame
}

async fn handshaken(gateway: &Gateway) -> TcpStream {
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let handshake = "GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(handshake.as_bytes()).await.unwrap();
    let answer = patiently("the handshake", read_until(&mut socket, b"\r\n\r\n")).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(
        answer
            .to_lowercase()
            .contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "RFC 6455 §1.3"
    );
    socket
}

async fn read_until(socket: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        read.push(socket.read_u8().await.unwrap());
    }
    read
}

#[tokio::test]
async fn broken_websocket_rules_get_their_close_code() {
    let gateway = Gateway::start().await;
    let unmasked = vec![0x81, 2, b'{', b'}'];
    let cases = [
        ("not UTF-8", raw(0x81, b"\xff\xfe"), 1007),
        ("unmasked", unmasked, 1002),
        ("reserved bits", raw(0xc1, b"{}"), 1002),
        ("reserved opcode", raw(0x83, b""), 1002),
        ("fragmented ping", raw(0x09, b""), 1002),
        ("continuation of nothing", raw(0x80, b""), 1002),
    ];
    for (what, bytes, code) in cases {
        let mut socket = handshaken(&gateway).await;
        socket.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        patiently(what, socket.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer[0], 0x88, "{what}: a close frame");
        assert_eq!(u16::from_be_bytes([answer[2], answer[3]]), code, "{what}");
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn pings_of_websocket_are_answered_and_close_is_returned() {
    let gateway = Gateway::start().await;
    let mut socket = handshaken(&gateway).await;
    socket.write_all(&raw(0x89, b"hi")).await.unwrap();
    let mut pong = [0; 4];
    patiently("the pong", socket.read_exact(&mut pong)).await.unwrap();
    assert_eq!(&pong, b"\x8a\x02hi");
    socket.write_all(&raw(0x88, &1000_u16.to_be_bytes())).await.unwrap();
    let mut rest = Vec::new();
    patiently("the close", socket.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"\x88\x02\x03\xe8");
    gateway.stopped().await;
}

#[tokio::test]
async fn handshakes_that_are_none_get_an_answer() {
    let gateway = Gateway::start().await;
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    let cases = [
        (String::new(), "426"),
        (format!("{upgrade}{key}"), "426"),
        (format!("{upgrade}{key}Sec-WebSocket-Version: 8\r\n"), "426"),
        (format!("{upgrade}{version}"), "400"),
        (format!("{upgrade}{version}Sec-WebSocket-Key: short\r\n"), "400"),
        (
            format!("{upgrade}{version}{key}Sec-WebSocket-Protocol: mqtt\r\n"),
            "400",
        ),
    ];
    for (headers, status) in cases {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        let request = format!("GET /v1/ws HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let line = patiently("an answer", read_until(&mut socket, b"\r\n")).await;
        let line = String::from_utf8(line).unwrap();
        assert!(line.starts_with(&format!("HTTP/1.1 {status}")), "{headers}: {line}");
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn peers_that_ask_for_nothing_are_closed() {
    let gateway = Gateway::with(|config| config.limits.handshake = Duration::from_millis(100)).await;
    for begun in [
        "",
        "GET /v1/ws HTT",
        "GET / HTTP/1.1\r\nHost: x\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(begun.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        // A reset is an end too.
        drop(patiently("the end", socket.read_to_end(&mut rest)).await);
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn a_length_prefix_reserves_nothing() {
    let gateway = Gateway::start().await;
    let channel = gateway.channel().await;
    let mut bob = gateway.member(Face::Json, "s", "bob").await;
    // 64 MB are announced on a stream of the same HTTP/2 connection that another stream goes on using.
    let announced = bytes::Bytes::from_static(&[0, 4, 0, 0, 0, 1, 2, 3]);
    let body = http_body_util::Full::new(announced);
    let request = http::Request::post(format!("http://{}/twinspan.v1.Gateway/Attach", gateway.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(body))
        .unwrap();
    let mut raw = channel.clone();
    let ready = std::future::poll_fn(|cx| tower_service::Service::<http::Request<_>>::poll_ready(&mut raw, cx));
    patiently("the channel", ready).await.unwrap();
    let answer = patiently("an answer", tower_service::Service::call(&mut raw, request))
        .await
        .unwrap();
    let trailers = patiently("trailers", http_body_util::BodyExt::collect(answer.into_body()))
        .await
        .unwrap();
    let status = tonic::Status::from_header_map(trailers.trailers().unwrap()).unwrap();
    assert_eq!(reason_of(&status).as_deref(), Some("FRAME_TOO_LARGE"), "{status:?}");
    let mut sessions = pb::sessions_client::SessionsClient::new(channel);
    sessions
        .get(pb::GetRequest {
            session_id: "s".to_owned(),
        })
        .await
        .unwrap();
    bob.hears_nothing().await;
    gateway.stopped().await;
}

#[tokio::test]
async fn the_url_joins() {
    let gateway = Gateway::start().await;
    let mut ann = gateway.websocket("?session_id=s&member_id=ann&role=author", None).await;
    let first = ann.next().await;
    let Some(Control::Joined(joined)) = control(&first) else {
        panic!("not joined: {first:?}")
    };
    assert_eq!((joined.member_id.as_str(), joined.role.as_str()), ("ann", "author"));
    for at in 0..3 {
        ann.send_raw(Message::text(format!(r#"{{"id":"{at}","text":"{at}"}}"#)))
            .await;
        ann.acked(&at.to_string()).await;
    }
    let again = format!("?session_id=s&after_seq=1&epoch={}", joined.epoch);
    let mut bob = gateway.websocket(&again, None).await;
    assert_eq!(bob.logged().await.seq, 2);
    for (query, reason) in [
        ("?sesion_id=s", Reason::UnknownField),
        ("?session_id=s&tail=many", Reason::InvalidField),
        ("?session_id=s&presence=maybe", Reason::InvalidField),
        ("?role=author", Reason::InvalidField),
        ("?session_id=not%20a%20name", Reason::InvalidField),
    ] {
        let mut peer = gateway.websocket(query, None).await;
        assert!(is(&peer.refusal().await, reason), "{query}");
        peer.hears_nothing().await;
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn unknown_members_are_ignored_when_asked() {
    let gateway = Gateway::start().await;
    let mut ann = gateway.websocket("?session_id=s", None).await;
    ann.send_raw(Message::text(r#"{"hello":{"ignoreUnknown":true}}"#)).await;
    ann.until("welcome", |frame| {
        matches!(control(frame), Some(Control::Welcome(_))).then_some(())
    })
    .await;
    ann.send_raw(Message::text(r#"{"id":"x","text":"a","fromTheFuture":{"x":[1]}}"#))
        .await;
    assert_eq!(ann.acked("x").await.seq, 1);
    gateway.stopped().await;
}

#[tokio::test]
async fn silence_is_ended_and_life_is_not() {
    let gateway = Gateway::with(|config| config.limits.heartbeat = Duration::from_millis(320)).await;
    let mut silent = handshaken(&gateway).await;
    let mut alive = gateway.member(Face::Json, "s", "alive").await;
    let mut read = Vec::new();
    let ended = async {
        tokio::select! {
            read = silent.read_to_end(&mut read) => drop(read),
            ended = alive.ended() => panic!("who answers pings lives: {ended:?}"),
        }
    };
    patiently("the silent one's end", ended).await;
    assert!(read.starts_with(&[0x89, 0]), "it was asked for life first");
    let last: Vec<u8> = read.iter().copied().skip_while(|byte| *byte != 0x88).collect();
    assert_eq!(u16::from_be_bytes([last[2], last[3]]), 4000);
    gateway.stopped().await;
}

#[tokio::test]
async fn who_answers_pings_lives_on_either_face() {
    for face in [Face::Grpc, Face::Json] {
        let gateway = Gateway::with(|config| {
            config.limits.heartbeat = Duration::from_millis(320);
            config.limits.lease = Duration::from_millis(600);
            config.limits.frames_per_second = 1_000_000;
        })
        .await;
        let mut quiet = gateway.member(face, "s", "quiet").await;
        let link = gateway.router.all_links().remove(0);
        let mut busy = gateway.member(Face::Binary, "other", "busy").await;
        // Answers are what makes the time pass.
        let lease = gateway.router.limits().lease;
        let only_answers = async {
            for at in 0.. {
                busy.send(text("other", &at.to_string(), "tick")).await;
                busy.acked(&at.to_string()).await;
                if gateway.router.silent(&link) > 2 * lease && gateway.router.quiet(&link) < lease {
                    break;
                }
            }
        };
        tokio::select! {
            () = patiently("a peer that is silent and lives", only_answers) => {}
            ended = quiet.ended() => panic!("who answers pings lives: {ended:?}"),
        }
        gateway.stopped().await;
    }
}

/// gRPC-Web over HTTP/1.1: a request whose length is not told ends as well as any other.
#[tokio::test]
async fn a_chunked_grpc_web_stream_waits_for_its_answer() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    let message = Sealed::new(request("s", "q", "brain")).wire();
    let mut body = vec![0];
    body.extend_from_slice(&(message.len() as u32).to_be_bytes());
    body.extend_from_slice(&message);
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST /twinspan.v1.Gateway/Attach HTTP/1.1\r\nhost: twinspan\r\ncontent-type: application/grpc-web+proto\r\n\
         connection: close\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        body.len()
    );
    for part in [head.as_bytes(), &body, b"\r\n0\r\n\r\n"] {
        socket.write_all(part).await.unwrap();
    }
    let asked = worker.handed().await;
    worker.send(last(&asked, "here it is")).await;
    let mut answer = Vec::new();
    patiently("the answer", socket.read_to_end(&mut answer)).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("here it is"));
    gateway.stopped().await;
}
