//! Who is sent away is gone, whether it reads why or not: it says nothing more, and is shown nothing more.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use twinspan::error::Reason;
use twinspan::frame::{Body, Control, Frame, pb};
use twinspan::router::{Arrival, Batch, Form, Interest, Joining, Socket, View};
use twinspan::session::Start;

use crate::harness::*;
use crate::keys::Keys;
use crate::raw;
use crate::scenarios;

scenarios! {
    who_reads_nothing_is_sent_away_all_the_same
    a_worker_loses_what_its_grants_do_not_cover
    requests_of_others_end_only_for_those_who_may_cancel
}

async fn revoke(gateway: &Gateway, keys: &Keys, subject: &str) {
    let revoke = pb::RevokeRequest {
        subject: subject.to_owned(),
        ..pb::RevokeRequest::default()
    };
    let revoke = authorized(revoke, Some(&keys.all("boss")));
    gateway.admin().await.revoke(revoke).await.unwrap();
}

async fn who_reads_nothing_is_sent_away_all_the_same(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut count = gateway.router.link_count();
    let mut bob = gateway.bearer(other, Some(&keys.all("bob"))).await;
    bob.join("s", pb::Join::default()).await;
    let mut eve = gateway.bearer(one, Some(&keys.all("eve"))).await;
    eve.join("s", pb::Join::default()).await;
    // More than any socket and window holds, which eve leaves unread.
    let large = "x".repeat(500_000);
    for at in 0..40 {
        bob.send(text("s", &format!("large-{at}"), &large)).await;
        bob.acked(&format!("large-{at}")).await;
    }
    revoke(&gateway, &keys, "eve").await;
    for at in 0..5 {
        eve.try_send(text("s", &format!("late-{at}"), "late")).await;
        eve.try_send(text("new", &format!("late-{at}"), "late")).await;
    }
    patiently("eve to be gone", count.wait_for(|count| *count == 1))
        .await
        .unwrap();
    let mut sessions = gateway.sessions().await;
    let get = |session: &str| {
        let get = pb::GetRequest {
            session_id: session.to_owned(),
        };
        authorized(get, Some(&keys.all("bob")))
    };
    assert_eq!(sessions.get(get("s")).await.unwrap().into_inner().head_seq, 40);
    assert_eq!(
        sessions.get(get("new")).await.unwrap_err().code(),
        tonic::Code::NotFound
    );
    gateway.stopped().await;
}

async fn a_worker_loses_what_its_grants_do_not_cover(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let serve = pb::Serve {
        role: "brain".to_owned(),
        worker_id: "w".to_owned(),
        max_in_flight: 9,
        ..pb::Serve::default()
    };
    let narrow = || keys.token("w", json!([{"sessions": ["b-*"], "serve": ["brain"]}]));
    let mut worker = gateway.bearer(other, Some(&keys.all("w"))).await;
    worker.serve(serve.clone()).await;
    let mut ann = gateway.bearer(one, Some(&keys.all("ann"))).await;
    for session in ["a-1", "b-1"] {
        ann.send(request(session, &format!("q-{session}"), "brain")).await;
        worker.handed().await;
    }
    // In place, by a narrower credential.
    let hello = pb::Hello {
        token: narrow(),
        ..pb::Hello::default()
    };
    worker.control("", Control::Hello(hello)).await;
    assert_eq!(worker.stopped().await.request_id, "q-a-1");
    let (_, lost) = ann.answer("q-a-1").await;
    assert!(is(error(&lost), Reason::WorkerLost));
    // And over another connection, whatever it says that it holds.
    worker.cut().await;
    let mut wide = gateway.bearer(other, Some(&keys.all("w"))).await;
    let hold = |session: &str, request: &str| pb::Hold {
        session_id: session.to_owned(),
        request_id: request.to_owned(),
        attempt: 1,
        ..pb::Hold::default()
    };
    let holding = pb::Serve {
        holds: vec![hold("b-1", "q-b-1")],
        ..serve
    };
    assert_eq!(wide.serve(holding.clone()).await.held.len(), 1);
    ann.send(request("a-2", "q-a-2", "brain")).await;
    wide.handed().await;
    wide.cut().await;
    let mut back = gateway.bearer(other, Some(&narrow())).await;
    let holding = pb::Serve {
        holds: vec![hold("a-2", "q-a-2"), hold("b-1", "q-b-1")],
        ..holding
    };
    let held = back.serve(holding).await.held;
    assert_eq!(
        held.iter().map(|hold| hold.request_id.as_str()).collect::<Vec<_>>(),
        ["q-b-1"]
    );
    let (_, lost) = ann.answer("q-a-2").await;
    assert!(is(error(&lost), Reason::WorkerLost));
    gateway.stopped().await;
}

async fn requests_of_others_end_only_for_those_who_may_cancel(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let may = |can: &[&str]| json!([{"sessions": ["s"], "can": can}]);
    let mut bob = gateway.bearer(other, Some(&keys.all("bob"))).await;
    bob.send(request("s", "bobs", "brain")).await;
    bob.acked("bobs").await;
    let replacing = |id: &str| with(request("s", id, "brain"), alongside(pb::Concurrency::Replace));
    for can in [&["request"][..], &["request", "cancel_own"]] {
        let mut ann = gateway.bearer(one, Some(&keys.token("ann", may(can)))).await;
        ann.send(replacing("anns")).await;
        assert!(is(&ann.refusal().await, Reason::PermissionDenied), "{can:?}");
    }
    let mut boss = gateway
        .bearer(one, Some(&keys.token("boss", may(&["request", "cancel"]))))
        .await;
    boss.send(replacing("first")).await;
    let (_, end) = bob.answer("bobs").await;
    assert!(is(error(&end), Reason::RequestReplaced));
    // One's own, with `cancel_own`.
    let mut again = gateway
        .bearer(other, Some(&keys.token("boss", may(&["request", "cancel_own"]))))
        .await;
    again.send(replacing("second")).await;
    let (_, end) = boss.answer("first").await;
    assert!(is(error(&end), Reason::RequestReplaced));
    gateway.stopped().await;
}

/// A stream of somebody who has not said who it is, which declares a message of this many bytes.
async fn declares(gateway: &Gateway, bytes: u32) {
    let mut socket = raw::connect(gateway.address).await;
    let mut message = vec![0];
    message.extend(bytes.to_be_bytes());
    message.push(1);
    let mut out = raw::hello();
    out.extend(raw::frame(
        raw::HEADERS,
        raw::END_HEADERS,
        1,
        &raw::call("/twinspan.v1.Gateway/Attach"),
    ));
    out.extend(raw::frame(raw::DATA, 0, 1, &message));
    socket.write_all(&out).await.unwrap();
    let mut heard = Vec::new();
    let mut part = [0; 4096];
    let has_ended = |heard: &[u8]| {
        raw::frames(heard)
            .iter()
            .filter(|(kind, ..)| *kind == raw::HEADERS)
            .count()
            == 2
    };
    let until_told = async {
        while !has_ended(&heard) {
            match socket.read(&mut part).await {
                Ok(0) | Err(_) => break,
                Ok(count) => heard.extend_from_slice(&part[..count]),
            }
        }
    };
    patiently("the end of the stream", until_told).await;
}

#[tokio::test]
async fn no_room_is_made_for_what_a_stranger_declares() {
    let keys = Keys::new();
    let gateway = keys.gateway(|config| config.limits.auth_timeout = PATIENCE).await;
    // Headers, and trailers with a status.
    declares(&gateway, 1 << 20).await;
    // A WebSocket is told at the header of the frame.
    let mut peer = gateway.peer(Face::Json).await;
    peer.try_send(text("s", "x", &"x".repeat(200_000))).await;
    assert_eq!(peer.ended().await.reason().as_deref(), Some("AUTH_TIMEOUT"));
    gateway.stopped().await;
}

/// A WebSocket within HTTP/2 (RFC 8441) is in use for as long as it is there.
#[tokio::test]
async fn a_websocket_within_http2_is_not_idle() {
    let gateway = Gateway::with(|config| {
        config.limits.idle = Duration::from_millis(300);
        config.limits.handshake = Duration::from_millis(100);
    })
    .await;
    let mut bob = gateway.member(Face::Grpc, "s", "bob").await;
    let mut socket = raw::connect(gateway.address).await;
    let block = |protocol: &str| {
        let fields = [
            (":method", "CONNECT"),
            (":protocol", protocol),
            (":scheme", "http"),
            (":path", "/v1/ws?session_id=s"),
            (":authority", "localhost"),
            ("sec-websocket-version", "13"),
        ];
        fields
            .iter()
            .flat_map(|(name, value)| raw::header(name, value))
            .collect::<Vec<_>>()
    };
    let mut out = raw::hello();
    out.extend(raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &block("websocket")));
    socket.write_all(&out).await.unwrap();
    let mut count = gateway.router.link_count();
    patiently("the WebSocket", count.wait_for(|count| *count == 2))
        .await
        .unwrap();
    // Whoever is idle would be gone by the time that somebody else is.
    let mut idle = gateway.peer(Face::Json).await;
    assert_eq!(idle.ended().await.reason().as_deref(), Some("IDLE"));
    let hello = raw::message(0x81, br#"{"id":"x","text":"still here"}"#);
    socket.write_all(&raw::frame(raw::DATA, 0, 1, &hello)).await.unwrap();
    assert_eq!(bob.logged().await.body, Body::Text("still here".into()));
    // Nothing else is known to follow CONNECT.
    let other = raw::frame(raw::HEADERS, raw::END_HEADERS, 3, &block("connect-udp"));
    socket.write_all(&other).await.unwrap();
    let mut heard = Vec::new();
    let mut part = [0; 4096];
    let refused = async {
        while !raw::frames(&heard)
            .iter()
            .any(|(kind, stream, _)| (*kind, *stream) == (raw::HEADERS, 3))
        {
            let read = socket.read(&mut part).await.unwrap();
            assert!(read > 0, "the connection ended");
            heard.extend_from_slice(&part[..read]);
        }
    };
    patiently("the refusal", refused).await;
    assert_eq!(*gateway.router.link_count().borrow(), 2);
    gateway.stopped().await;
}

#[tokio::test]
async fn sessions_are_listed_by_whom_may_read_them_through_many_pages() {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut ann = gateway.bearer(Face::Grpc, Some(&keys.all("ann"))).await;
    for at in 0..4_100 {
        let kind = if at % 41 == 0 { "mine" } else { "other" };
        ann.send(text(&format!("{kind}-{at}"), "", "")).await;
        if at % 100 == 0 {
            ann.send(text("all", &format!("sync-{at}"), "")).await;
            ann.acked(&format!("sync-{at}")).await;
        }
    }
    let list = async |token: String| {
        let mut sessions = gateway.sessions().await;
        let (mut names, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let list = pb::ListRequest {
                page_token,
                page_size: 7,
                ..pb::ListRequest::default()
            };
            let page = sessions
                .list(authorized(list, Some(&token)))
                .await
                .unwrap()
                .into_inner();
            names.extend(page.sessions.into_iter().map(|session| session.session_id));
            page_token = page.next_page_token;
            pages += 1;
            if page_token.is_empty() {
                return (names, pages);
            }
        }
    };
    let reads = |sessions: &str| keys.token("eve", json!([{"sessions": [sessions], "can": ["read"]}]));
    let (mine, _) = list(reads("mine-*")).await;
    assert!(mine.len() == 100 && mine.is_sorted() && mine.iter().all(|name| name.starts_with("mine-")));
    let (last, pages) = list(reads("other-99*")).await;
    assert!(last.iter().all(|name| name.starts_with("other-99")) && !last.is_empty() && pages > 2);
    let (nothing, pages) = list(keys.token("eve", json!([{"sessions": ["*"], "can": ["send"]}]))).await;
    assert_eq!((nothing.len(), pages), (0, 1));
    gateway.stopped().await;
}

/// Where nobody is authenticated, nothing is denied to anybody.
#[tokio::test]
async fn anybody_replaces_anybody_where_nobody_is_known() {
    let gateway = Gateway::start().await;
    let mut ann = gateway.peer(Face::Json).await;
    ann.send(request("s", "first", "brain")).await;
    ann.acked("first").await;
    let mut bob = gateway.peer(Face::Grpc).await;
    bob.send(with(
        request("s", "second", "brain"),
        alongside(pb::Concurrency::Replace),
    ))
    .await;
    let (_, end): (_, Frame) = ann.answer("first").await;
    assert!(is(error(&end), Reason::RequestReplaced));
    gateway.stopped().await;
}

/// Takes nothing.
struct Full;

impl AsyncRead for Full {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Full {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// What a link holds of its address, and of memory, is given back, whatever was still due to it.
#[tokio::test]
async fn nothing_is_left_of_a_link_that_is_over() {
    let gateway = Gateway::start().await;
    let mut bob = gateway.peer(Face::Json).await;
    for form in [Form::Json, Form::Wire] {
        let arrival = Arrival {
            life: gateway.router.life(),
            identity: Some(gateway.router.nobody()),
        };
        let socket: Option<Pin<Box<dyn Socket>>> = match form {
            Form::Wire => None,
            _ => Some(Box::pin(Full)),
        };
        let link = gateway.router.attach(form, socket, arrival).unwrap();
        for session in ["s", "t"] {
            let joining = Joining {
                name: link.name().clone(),
                role: "client".into(),
                start: Start::default(),
                interest: Interest::default(),
                view: View::Member,
            };
            let mut batch = Batch::new(gateway.router.now());
            gateway
                .router
                .join(&link, &session.into(), joining, &"".into(), &mut batch)
                .unwrap();
            batch.finish(None);
            let id = format!("{form:?}");
            bob.send(text(session, &id, "news that nobody fetches")).await;
            bob.acked(&id).await;
        }
        let weak = Arc::downgrade(&link);
        link.cut(None);
        gateway.router.detach(&link);
        drop(link);
        assert!(weak.upgrade().is_none(), "{form:?}");
    }
    gateway.stopped().await;
}

/// Told twice to go, it is still told why.
#[tokio::test]
async fn whoever_is_sent_away_twice_is_told_once() {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut eve = gateway.bearer(Face::Json, Some(&keys.all("eve"))).await;
    eve.join("s", pb::Join::default()).await;
    for _ in 0..3 {
        revoke(&gateway, &keys, "eve").await;
        gateway.router.check_identities();
    }
    match eve.ended().await {
        Ended::Close(code, reason) => assert!(code == 4501 && reason.starts_with("TOKEN_REVOKED"), "{code} {reason}"),
        other => panic!("{other:?}"),
    }
    gateway.stopped().await;
}

/// A page token tells whoever has it nothing, and is nothing to anybody who makes one up.
#[tokio::test]
async fn page_tokens_are_sealed() {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut ann = gateway.bearer(Face::Grpc, Some(&keys.all("ann"))).await;
    for at in 0..2_100 {
        ann.send(text(&format!("secret-{at:04}"), "", "")).await;
    }
    ann.send(text("secret-9999", "last", "")).await;
    ann.acked("last").await;
    let eve = keys.token("eve", json!([{"sessions": ["mine"], "can": ["read"]}]));
    let mut sessions = gateway.sessions().await;
    let first = sessions
        .list(authorized(pb::ListRequest::default(), Some(&eve)))
        .await
        .unwrap()
        .into_inner();
    assert!(first.sessions.is_empty() && !first.next_page_token.is_empty());
    let said = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(&first.next_page_token)
        .unwrap();
    assert!(!String::from_utf8_lossy(&said).contains("secret"));
    let mut forged = first.next_page_token.clone();
    forged.replace_range(3..4, if &forged[3..4] == "A" { "B" } else { "A" });
    for token in ["", "x", forged.as_str()] {
        let list = pb::ListRequest {
            page_token: token.to_owned(),
            ..pb::ListRequest::default()
        };
        let answer = sessions.list(authorized(list, Some(&eve))).await;
        assert_eq!(answer.is_ok(), token.is_empty(), "{token}");
    }
    gateway.stopped().await;
}
