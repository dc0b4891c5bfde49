//! What a peer may use: rates, connections of one address, the bytes of open requests, memory, and time. Every refusal names the
//! setting that it comes from.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite;
use tonic_types::StatusExt;
use twinspan::error::Reason;
use twinspan::frame::pb::sessions_client::SessionsClient;
use twinspan::frame::{Body, pb};

use crate::harness::*;
use crate::raw;
use crate::scenarios;

scenarios! {
    a_peer_that_is_too_fast_is_refused_and_can_go_on
    a_peer_that_does_not_heed_it_is_disconnected
    workers_have_a_rate_of_their_own
    the_bytes_of_open_requests_are_bounded_and_given_back
    what_is_used_for_nothing_ends_and_the_rest_does_not
    short_of_memory_nothing_new_begins
}

fn named(error: &pb::Error, reason: Reason, setting: &str) {
    assert!(is(error, reason), "{error:?}");
    assert_eq!(error.details["setting"], setting);
    assert!(error.details.contains_key("limit"), "{error:?}");
}

async fn a_peer_that_is_too_fast_is_refused_and_can_go_on(one: Face, other: Face) {
    let gateway = Gateway::with(|config| config.limits.frames_per_second = 20).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.reader(other, "s").await;
    for at in 0..100 {
        ann.send(text("s", &at.to_string(), "hey")).await;
    }
    let mut refused = std::collections::BTreeSet::new();
    let mut accepted = std::collections::BTreeSet::new();
    while refused.len() + accepted.len() < 100 {
        let frame = ann.next().await;
        match (&frame.body, control(&frame)) {
            (Body::Error(error), _) => {
                named(error, Reason::RateLimited, "limits.frames_per_second");
                assert!(error.retryable && error.retry_after.is_some());
                refused.insert(frame.reply_to.to_string());
            }
            (_, Some(twinspan::frame::Control::Ack(ack))) => {
                accepted.extend(ack.accepted.iter().map(|accepted| accepted.id.clone()));
            }
            _ => {}
        }
    }
    assert!(!refused.is_empty() && accepted.is_disjoint(&refused));
    for _ in 0..accepted.len() {
        assert!(accepted.contains(bob.logged().await.id.as_str()));
    }
    // It tries again until there is room.
    let again = async {
        loop {
            ann.send(text("s", "again", "hey")).await;
            let frame = ann.next().await;
            match frame.body {
                Body::Error(error) => {
                    let wait = error.retry_after.unwrap();
                    let wait = Duration::try_from(wait).unwrap();
                    drop(tokio::time::timeout(wait, std::future::pending::<()>()).await);
                }
                _ => return,
            }
        }
    };
    patiently("room", again).await;
    gateway.stopped().await;
}

async fn a_peer_that_does_not_heed_it_is_disconnected(one: Face, other: Face) {
    let gateway = Gateway::with(|config| config.limits.frames_per_second = 20).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.reader(other, "s").await;
    for at in 0..300 {
        ann.send(text("s", &at.to_string(), "hey")).await;
    }
    let ended = ann.ended().await;
    assert_eq!(ended.reason().as_deref(), Some("RATE_LIMITED"), "{ended:?}");
    match ended {
        Ended::Close(code, _) => assert_eq!(code, 4004),
        Ended::Status(status) => {
            assert_eq!(status.code(), tonic::Code::ResourceExhausted);
            assert!(status.get_details_retry_info().is_some());
        }
        Ended::Done => panic!("no reason"),
    }
    assert_eq!(bob.logged().await.id, "0", "what was accepted is there");
    gateway.stopped().await;
}

async fn workers_have_a_rate_of_their_own(one: Face, other: Face) {
    let gateway = Gateway::with(|config| config.limits.frames_per_second = 5).await;
    let mut worker = gateway.worker(other, "brain", 10).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    for _ in 0..200 {
        worker.send(chunk(&asked, "x")).await;
    }
    worker.send(last(&asked, "")).await;
    let (text, _) = ann.answer("q").await;
    assert_eq!(text.len(), 200);
    gateway.stopped().await;
}

async fn the_bytes_of_open_requests_are_bounded_and_given_back(one: Face, other: Face) {
    let gateway = Gateway::with(|config| {
        config.limits.frame_bytes = 10_000;
        config.limits.request_bytes = 120_000;
        config.limits.total_request_bytes = 120_000;
    })
    .await;
    let mut worker = gateway.worker(other, "brain", 10).await;
    let mut ann = gateway.peer(one).await;
    let large = format!("\"{}\"", "x".repeat(9_000));
    let mut open = 0;
    let refusal = loop {
        let asked = to(payload("s", &open.to_string(), &large), role("brain"));
        ann.send(asked).await;
        let told = ann
            .until("an ack or a refusal", |frame| match (&frame.body, control(frame)) {
                (Body::Error(error), _) => Some(Some((**error).clone())),
                (_, Some(twinspan::frame::Control::Ack(_))) => Some(None),
                _ => None,
            })
            .await;
        match told {
            Some(refusal) => break refusal,
            None => open += 1,
        }
    };
    named(&refusal, Reason::RequestsTooLarge, "limits.request_bytes");
    assert!(open > 1, "{open}");
    assert!(gateway.router.request_bytes() > 9_000);
    // Another session has room of its own, but the gateway does not.
    ann.send(to(payload("t", "x", &large), role("brain"))).await;
    named(
        &ann.refusal().await,
        Reason::RequestsTooLarge,
        "limits.total_request_bytes",
    );
    // One is answered, one is cancelled, and the rest goes with its session.
    let asked = worker.handed().await;
    worker.send(last(&asked, "")).await;
    ann.answer(&asked.id).await;
    ann.cancel("s", "1", 0).await;
    let delete = pb::DeleteRequest {
        session_id: "s".to_owned(),
    };
    gateway.sessions().await.delete(delete).await.unwrap();
    let free = async {
        while gateway.router.request_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    };
    patiently("all bytes to be given back", free).await;
    gateway.stopped().await;
}

async fn what_is_used_for_nothing_ends_and_the_rest_does_not(one: Face, other: Face) {
    let gateway = Gateway::with(|config| {
        config.limits.heartbeat = Duration::from_millis(160);
        config.limits.idle = Duration::from_millis(400);
    })
    .await;
    let mut member = gateway.member(other, "s", "member").await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut idle = gateway.peer(one).await;
    let stays = async { tokio::join!(member.ended(), worker.ended()) };
    let ended = tokio::select! {
        ended = idle.ended() => ended,
        ended = stays => panic!("the others are of use: {ended:?}"),
    };
    assert_eq!(ended.reason().as_deref(), Some("IDLE"), "{ended:?}");
    if let Ended::Close(code, _) = ended {
        assert_eq!(code, 4005);
    }
    gateway.stopped().await;
}

async fn short_of_memory_nothing_new_begins(one: Face, other: Face) {
    let gateway = Gateway::with(|config| {
        config.limits.memory = 1;
        config.limits.heartbeat = Duration::from_secs(600);
    })
    .await;
    // Before the first look at it, there is no telling.
    let short = async {
        while gateway.router.check_memory().is_ok() {
            tokio::task::yield_now().await;
        }
    };
    patiently("the look at the memory", short).await;
    let _ = other;
    match one {
        Face::Grpc => {
            let get = gateway.sessions().await.create(pb::CreateRequest::default()).await;
            let status = get.unwrap_err();
            assert_eq!(reason_of(&status).as_deref(), Some("OVERLOADED"));
            assert_eq!(status.code(), tonic::Code::ResourceExhausted);
            let retry = status.get_details_retry_info().unwrap();
            assert_eq!(retry.retry_delay, Some(Duration::from_secs(1)));
        }
        Face::Json | Face::Binary => {
            let url = format!("ws://{}/v1/ws", gateway.address);
            let Err(tungstenite::Error::Http(answer)) = tokio_tungstenite::connect_async(url).await else {
                panic!("let in")
            };
            assert_eq!(answer.status(), 503);
            assert_eq!(answer.headers()["retry-after"], "1");
        }
    }
    let ready = raw::last_words(
        raw::connect(gateway.address).await,
        b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    let ready = String::from_utf8_lossy(&ready).into_owned();
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.contains("OVERLOADED"), "{ready}");
    gateway.stopped().await;
}

#[tokio::test]
async fn calls_of_a_connection_have_a_rate() {
    let gateway = Gateway::with(|config| config.limits.calls_per_second = 5).await;
    let mut sessions = gateway.sessions().await;
    let refused = async {
        loop {
            let get = pb::GetRequest {
                session_id: "none".to_owned(),
            };
            let status = sessions.get(get).await.unwrap_err();
            if status.code() == tonic::Code::ResourceExhausted {
                return status;
            }
        }
    };
    let status = patiently("a refusal", refused).await;
    assert_eq!(reason_of(&status).as_deref(), Some("RATE_LIMITED"));
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["setting"], "limits.calls_per_second");
    assert!(status.get_details_retry_info().is_some());
    // An own parse of google.rpc.Status says the same as the headers do.
    let parsed = <tonic_types::pb::Status as prost::Message>::decode(status.details()).unwrap();
    assert_eq!(parsed.code, status.code() as i32);
    assert_eq!(parsed.message, status.message());
    assert_eq!(parsed.details.len(), 2);
    // Others have their own.
    gateway.sessions().await.list(pb::ListRequest::default()).await.unwrap();
    gateway.stopped().await;
}

#[tokio::test]
async fn an_address_has_so_many_connections() {
    let gateway = Gateway::with(|config| config.limits.connections_per_ip = 3).await;
    let held: Vec<_> = futures_util::future::join_all((0..3).map(|_| gateway.peer(Face::Json))).await;
    let refused = raw::last_words(raw::connect(gateway.address).await, raw::UPGRADE).await;
    let refused = String::from_utf8_lossy(&refused).into_owned();
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    assert!(refused.contains("retry-after: 1"), "{refused}");
    assert!(refused.contains("TOO_MANY_FROM_ADDRESS"), "{refused}");
    assert_eq!(gateway.router.admission().refused(), 1);
    drop(held);
    let free = async {
        while gateway.router.admission().sockets() > 0 {
            tokio::task::yield_now().await;
        }
    };
    patiently("the places to be given back", free).await;
    gateway.peer(Face::Json).await.goodbye().await;
    gateway.stopped().await;
}

#[tokio::test]
async fn streams_over_one_connection_count_for_their_address() {
    let gateway = Gateway::with(|config| config.limits.connections_per_ip = 3).await;
    let channel = gateway.channel().await;
    let mut sessions = SessionsClient::new(channel);
    let watch = || pb::WatchRequest {
        session_id: "s".to_owned(),
        ..pb::WatchRequest::default()
    };
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(sessions.watch(watch()).await.unwrap());
    }
    let status = sessions.watch(watch()).await.unwrap_err();
    assert_eq!(reason_of(&status).as_deref(), Some("TOO_MANY_FROM_ADDRESS"));
    drop(held);
    gateway.stopped().await;
}

#[tokio::test]
async fn the_gateway_has_so_many_sockets() {
    let gateway = Gateway::with(|config| config.limits.sockets = 2).await;
    let _held: Vec<_> = futures_util::future::join_all((0..2).map(|_| gateway.peer(Face::Json))).await;
    let refused = raw::last_words(raw::connect(gateway.address).await, b"").await;
    let refused = String::from_utf8_lossy(&refused).into_owned();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(
        refused.contains("limits.sockets") || refused.contains("TOO_MANY_SOCKETS"),
        "{refused}"
    );
    gateway.stopped().await;
}

#[tokio::test]
async fn a_call_whose_request_does_not_arrive_ends() {
    for path in ["/twinspan.v1.Sessions/Get", "/twinspan.v1.Admin/Import"] {
        ends_in_time(path).await;
    }
}

async fn ends_in_time(path: &str) {
    let gateway = Gateway::with(|config| config.limits.call = Duration::from_millis(200)).await;
    let mut socket = raw::connect(gateway.address).await;
    let open = raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &raw::call(path));
    let half = raw::frame(raw::DATA, 0, 1, &[0, 0, 0, 0, 9, 1]);
    socket.write_all(&[raw::hello(), open, half].concat()).await.unwrap();
    let mut heard = Vec::new();
    let answered = async {
        loop {
            let mut scratch = [0; 4096];
            let count = socket.read(&mut scratch).await.unwrap();
            assert!(count > 0, "the connection lives on");
            heard.extend_from_slice(&scratch[..count]);
            let headers = |(kind, stream, _): &(u8, u32, Vec<u8>)| *kind == raw::HEADERS && *stream == 1;
            if raw::frames(&heard).iter().any(headers) {
                return;
            }
        }
    };
    patiently("the end of the call", answered).await;
    gateway.stopped().await;
}

#[tokio::test]
async fn connections_without_a_call_end_in_good_order() {
    let gateway = Gateway::with(|config| {
        config.limits.handshake = Duration::from_millis(100);
        config.limits.idle = Duration::from_millis(300);
    })
    .await;
    let open = raw::frame(
        raw::HEADERS,
        raw::END_HEADERS | raw::END_STREAM,
        1,
        &raw::call("/twinspan.v1.Sessions/Get"),
    );
    let heard = raw::last_words(raw::connect(gateway.address).await, &[raw::hello(), open].concat()).await;
    let (code, _) = raw::goaway(&heard).expect("a GOAWAY");
    assert_eq!(code, 0);
    gateway.stopped().await;
}

#[tokio::test]
async fn compressed_messages_are_refused() {
    let gateway = Gateway::start().await;
    let head = "POST /twinspan.v1.Sessions/Get HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc-web+proto\r\n\
        Grpc-Encoding: gzip\r\nConnection: close\r\nContent-Length: 8\r\n\r\n";
    let bytes = [head.as_bytes(), &[1, 0, 0, 0, 3, 31, 139, 8]].concat();
    let heard = raw::last_words(raw::connect(gateway.address).await, &bytes).await;
    let heard = String::from_utf8_lossy(&heard).to_lowercase();
    assert!(
        heard.contains("grpc-status:12") || heard.contains("grpc-status: 12"),
        "{heard}"
    );
    gateway.stopped().await;
}
