//! Who a connection is: how it says so, how long that holds, and what others by the same name may not have of it.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use twinspan::error::Reason;
use twinspan::frame::pb::sessions_client::SessionsClient;
use twinspan::frame::{Body, Control, Frame, pb};

use crate::harness::*;
use crate::keys::{Keys, everything, in_seconds, now};
use crate::scenarios;

scenarios! {
    a_hello_makes_a_stranger_known
    strangers_are_sent_away
    an_expired_token_ends_its_connection_which_resumes
    a_hello_renews_an_identity
    a_narrower_token_takes_away_what_it_does_not_grant
    a_bad_renewal_changes_nothing
    what_is_revoked_ends_at_once
    names_belong_to_subjects
    private_frames_are_the_subjects
    nobody_is_told_who_is_there_unasked
    own_requests_and_others
    denied_workers_are_named_as_the_reason
}

fn hello(id: &str, token: &str) -> Frame {
    let hello = pb::Hello {
        client: "test/1".to_owned(),
        token: token.to_owned(),
        ..pb::Hello::default()
    };
    Frame {
        id: id.into(),
        body: Body::Control(Box::new(Control::Hello(hello))),
        ..Frame::default()
    }
}

async fn welcomed(peer: &mut Peer) -> pb::Welcome {
    peer.until("welcome", |frame| match control(frame) {
        Some(Control::Welcome(welcome)) => Some(welcome.clone()),
        _ => None,
    })
    .await
}

async fn left(peer: &mut Peer) -> pb::Error {
    peer.until("left", |frame| match control(frame) {
        Some(Control::Left(left)) => left.error.clone(),
        _ => None,
    })
    .await
}

fn named(name: &str) -> pb::Join {
    pb::Join {
        member_id: name.to_owned(),
        ..pb::Join::default()
    }
}

fn close_code(ended: &Ended) -> Option<u16> {
    match ended {
        Ended::Close(code, _) => Some(*code),
        _ => None,
    }
}

fn assert_ended(ended: &Ended, reason: Reason) {
    assert_eq!(ended.reason().as_deref(), Some(reason.row().name), "{ended:?}");
    if let Some(code) = close_code(ended) {
        assert_eq!(Some(code), reason.row().close);
    }
}

async fn a_hello_makes_a_stranger_known(one: Face, _: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut ann = gateway.peer(one).await;
    // Who sends much at once is served in order: what comes after the Hello waits for it.
    ann.send(hello("h", &keys.all("ann"))).await;
    ann.control("s", Control::Join(named("ann"))).await;
    ann.send(text("s", "x", "hello")).await;
    let welcome = welcomed(&mut ann).await;
    assert_eq!(welcome.subject, "ann");
    let expires: SystemTime = welcome.expires_at.unwrap().try_into().unwrap();
    assert!(expires > now());
    let said = ann.logged().await;
    let from = said.from.as_deref().unwrap();
    assert_eq!((from.subject.as_str(), from.member_id.as_str()), ("ann", "ann"));
    gateway.stopped().await;
}

async fn strangers_are_sent_away(one: Face, _: Face) {
    let keys = Keys::new();
    let gateway = keys
        .gateway(|config| {
            config.limits.auth_timeout = Duration::from_millis(200);
            config.limits.pre_auth_bytes = 2_000;
        })
        .await;
    let mut silent = gateway.peer(one).await;
    assert_ended(&silent.ended().await, Reason::AuthTimeout);
    let mut rash = gateway.peer(one).await;
    rash.send(text("s", "x", "hello")).await;
    assert_ended(&rash.ended().await, Reason::Unauthenticated);
    let mut wordy = gateway.peer(one).await;
    wordy.send(hello("h", &"x".repeat(3_000))).await;
    assert_ended(&wordy.ended().await, Reason::AuthTimeout);
    let mut wrong = gateway.peer(one).await;
    wrong.send(hello("h", "nonsense")).await;
    assert!(is(&wrong.refusal().await, Reason::Unauthenticated));
    assert_ended(&wrong.ended().await, Reason::Unauthenticated);
    assert_eq!(gateway.router.session_count(), 0);
    gateway.stopped().await;
}

async fn an_expired_token_ends_its_connection_which_resumes(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let soon = in_seconds(2);
    let short = keys.sign("ann", json!({ "twinspan": everything("*"), "exp": soon }));
    let mut bob = gateway.bearer(other, Some(&keys.all("bob"))).await;
    bob.join("s", named("bob")).await;
    let mut ann = gateway.bearer(one, Some(&short)).await;
    let joined = ann.join("s", named("ann")).await;
    bob.send(text("s", "1", "one")).await;
    assert_eq!(ann.logged().await.seq, 1);
    let ended = ann.ended().await;
    assert_ended(&ended, Reason::TokenExpired);
    bob.send(text("s", "2", "two")).await;
    bob.acked("2").await;
    let mut ann = gateway.bearer(one, Some(&keys.all("ann"))).await;
    let resume = pb::Join {
        after_seq: Some(1),
        epoch: joined.epoch,
        ..named("ann")
    };
    assert!(ann.join("s", resume).await.resumed);
    assert_eq!(ann.logged().await.seq, 2);
    gateway.stopped().await;
}

async fn a_hello_renews_an_identity(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let soon = in_seconds(2);
    let short = |subject| keys.sign(subject, json!({ "twinspan": everything("*"), "exp": soon }));
    let mut ann = gateway.bearer(one, Some(&short("ann"))).await;
    ann.join("s", named("ann")).await;
    ann.send(hello("h", &keys.all("ann"))).await;
    welcomed(&mut ann).await;
    // One that does not renew shows that the time is over.
    let mut bob = gateway.bearer(other, Some(&short("bob"))).await;
    assert_ended(&bob.ended().await, Reason::TokenExpired);
    ann.send(text("s", "x", "still here")).await;
    assert_eq!(ann.logged().await.body, Body::Text("still here".into()));
    gateway.stopped().await;
}

async fn a_narrower_token_takes_away_what_it_does_not_grant(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut ann = gateway.bearer(one, Some(&keys.all("ann"))).await;
    ann.join("a-1", named("ann")).await;
    ann.join("b-1", named("ann")).await;
    for role in ["brain", "hand"] {
        let serve = pb::Serve {
            role: role.to_owned(),
            ..pb::Serve::default()
        };
        ann.serve(serve).await;
    }
    let narrow = json!([{"sessions": ["a-*"], "can": ["read", "send"], "serve": ["brain"]}]);
    ann.send(hello("h", &keys.token("ann", narrow))).await;
    let (mut gone, mut retired) = (None, None);
    let mut told = |frame: &Frame| {
        match control(frame) {
            Some(Control::Left(left)) => gone = Some((frame.session_id.clone(), left.error.clone().unwrap())),
            Some(Control::Retired(one)) => retired = Some(one.clone()),
            Some(Control::Welcome(_)) => return Some(()),
            _ => {}
        }
        None
    };
    ann.until("welcome", &mut told).await;
    let (session, error) = gone.unwrap();
    assert!(session == "b-1" && is(&error, Reason::PermissionDenied));
    let retired = retired.unwrap();
    assert!(retired.role == "hand" && is(retired.error.as_ref().unwrap(), Reason::PermissionDenied));
    let mut bob = gateway.bearer(other, Some(&keys.all("bob"))).await;
    bob.send(request("a-1", "q", "brain")).await;
    assert_eq!(ann.handed().await.id, "q");
    bob.send(request("b-1", "q", "brain")).await;
    bob.acked("q").await;
    let why = gateway.why_as("b-1", "q", Some(&keys.all("bob"))).await;
    assert_eq!(why.waits_for(), pb::WaitsFor::AGrant);
    ann.send(text("b-1", "x", "")).await;
    assert!(is(&ann.refusal().await, Reason::PermissionDenied));
    gateway.stopped().await;
}

async fn a_bad_renewal_changes_nothing(one: Face, _: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut ann = gateway.bearer(one, Some(&keys.all("ann"))).await;
    ann.join("s", named("ann")).await;
    for (token, reason) in [
        ("nonsense".to_owned(), Reason::Unauthenticated),
        (keys.all("bob"), Reason::SubjectChanged),
        (keys.sign("ann", json!({"exp": 1})), Reason::TokenExpired),
    ] {
        ann.send(hello("h", &token)).await;
        assert!(is(&ann.refusal().await, reason));
        ann.send(text("s", reason.row().name, "still here")).await;
        ann.acked(reason.row().name).await;
    }
    gateway.stopped().await;
}

async fn what_is_revoked_ends_at_once(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let boss = keys.all("boss");
    let one_token = keys.sign("ann", json!({ "twinspan": everything("*"), "jti": "t-1" }));
    let other_token = keys.sign("ann", json!({ "twinspan": everything("*"), "jti": "t-2" }));
    let mut first = gateway.bearer(one, Some(&one_token)).await;
    let mut second = gateway.bearer(other, Some(&other_token)).await;
    let mut bob = gateway.bearer(one, Some(&keys.all("bob"))).await;
    for peer in [&mut first, &mut second, &mut bob] {
        peer.join("s", pb::Join::default()).await;
    }
    let mut admin = gateway.admin().await;
    let by_token = pb::RevokeRequest {
        token_id: "t-1".to_owned(),
        ..pb::RevokeRequest::default()
    };
    admin.revoke(authorized(by_token, Some(&boss))).await.unwrap();
    assert_ended(&first.ended().await, Reason::TokenRevoked);
    second.send(text("s", "x", "the other one lives")).await;
    second.acked("x").await;
    let by_subject = pb::RevokeRequest {
        subject: "ann".to_owned(),
        ..pb::RevokeRequest::default()
    };
    admin.revoke(authorized(by_subject, Some(&boss))).await.unwrap();
    assert_ended(&second.ended().await, Reason::TokenRevoked);
    bob.send(text("s", "y", "so do others")).await;
    bob.acked("y").await;
    let mut sessions = gateway.sessions().await;
    let get = || pb::GetRequest {
        session_id: "s".to_owned(),
    };
    let refused = sessions.get(authorized(get(), Some(&other_token))).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("TOKEN_REVOKED"));
    sessions.get(authorized(get(), Some(&boss))).await.unwrap();
    let list = authorized(pb::ListRevocationsRequest {}, Some(&boss));
    let listed = admin.list_revocations(list).await.unwrap().into_inner().revocations;
    assert_eq!(listed.len(), 2);
    gateway.stopped().await;
}

async fn names_belong_to_subjects(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut ann = gateway.bearer(one, Some(&keys.all("ann"))).await;
    let mut eve = gateway.bearer(other, Some(&keys.all("eve"))).await;
    ann.join("s", named("the-name")).await;
    eve.control("s", Control::Join(named("the-name"))).await;
    assert!(is(&eve.refusal().await, Reason::NameTaken));
    let serve = pb::Serve {
        role: "brain".to_owned(),
        worker_id: "w".to_owned(),
        ..pb::Serve::default()
    };
    ann.serve(serve.clone()).await;
    eve.control("", Control::Serve(serve)).await;
    assert!(is(&eve.refusal().await, Reason::NameTaken));
    let publish = pb::PublishRequest {
        frame: Some(text("s", "x", "as somebody else")),
        member_id: "the-name".to_owned(),
    };
    let mut sessions = gateway.sessions().await;
    let call = |token: String| authorized(publish.clone(), Some(&token));
    let refused = sessions.publish(call(keys.all("eve"))).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("NAME_TAKEN"));
    sessions.publish(call(keys.all("ann"))).await.unwrap();
    // The same subject, on another device, takes its place as before.
    let mut again = gateway.bearer(other, Some(&keys.all("ann"))).await;
    again.join("s", named("the-name")).await;
    assert!(is(&left(&mut ann).await, Reason::MemberReplaced));
    // A name that is free is free; its ids are not: the same id from another subject is another frame.
    again.send(text("s", "same", "ann's")).await;
    let first = again.acked("same").await;
    again.control("s", Control::Leave(pb::Leave {})).await;
    again
        .until("left", |frame| {
            matches!(control(frame), Some(Control::Left(_))).then_some(())
        })
        .await;
    eve.join("s", named("the-name")).await;
    eve.send(text("s", "same", "eve's")).await;
    let second = eve.acked("same").await;
    assert!(second.seq > first.seq && !second.duplicate);
    gateway.stopped().await;
}

async fn private_frames_are_the_subjects(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut ann = gateway.bearer(one, Some(&keys.all("ann"))).await;
    let mut bob = gateway.bearer(other, Some(&keys.all("bob"))).await;
    ann.join("s", named("the-name")).await;
    bob.join("s", named("bob")).await;
    let to_name = pb::Address {
        member_id: "the-name".to_owned(),
        ..pb::Address::default()
    };
    bob.send(to(text("s", "1", "for ann"), to_name)).await;
    assert_eq!(ann.logged().await.to.as_deref().unwrap().subject, "ann");
    bob.send(text("s", "2", "for all")).await;
    bob.acked("2").await;
    ann.goodbye().await;
    let mut eve = gateway.bearer(one, Some(&keys.all("eve"))).await;
    let all = pb::Join {
        after_seq: Some(0),
        ..named("the-name")
    };
    eve.join("s", all.clone()).await;
    assert_eq!(eve.logged().await.body, Body::Text("for all".into()));
    eve.goodbye().await;
    let mut ann = gateway.bearer(other, Some(&keys.all("ann"))).await;
    ann.join("s", all).await;
    assert_eq!(ann.logged().await.body, Body::Text("for ann".into()));
    gateway.stopped().await;
}

async fn nobody_is_told_who_is_there_unasked(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut ann = gateway.bearer(one, Some(&keys.all("ann"))).await;
    let joined = ann.join("s", named("ann")).await;
    assert_eq!((joined.members.len(), joined.member_count), (1, 1));
    assert_eq!(joined.members[0].subject, "ann");
    let reader = keys.token("eve", json!([{"sessions": ["s"], "can": ["read"]}]));
    let mut eve = gateway.bearer(other, Some(&reader)).await;
    let joined = eve.join("s", named("eve")).await;
    assert_eq!((joined.members.len(), joined.member_count), (0, 0));
    let get = pb::GetRequest {
        session_id: "s".to_owned(),
    };
    let mut sessions = gateway.sessions().await;
    let seen = |session: pb::Session| session.member_count;
    let by_eve = sessions.get(authorized(get.clone(), Some(&reader))).await.unwrap();
    let by_ann = sessions.get(authorized(get, Some(&keys.all("ann")))).await.unwrap();
    assert_eq!((seen(by_eve.into_inner()), seen(by_ann.into_inner())), (0, 2));
    gateway.stopped().await;
}

async fn own_requests_and_others(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let may = |can: &[&str]| json!([{"sessions": ["s"], "can": can}]);
    let all = ["create", "read", "request", "cancel_own"];
    let mut ann = gateway.bearer(one, Some(&keys.token("ann", may(&all)))).await;
    let mut eve = gateway.bearer(other, Some(&keys.token("eve", may(&all)))).await;
    ann.send(request("s", "q", "brain")).await;
    ann.acked("q").await;
    assert_eq!(eve.cancel("s", "q", 0).await, pb::CancelOutcome::Denied);
    assert_eq!(eve.cancel("s", "none", 0).await, pb::CancelOutcome::NotFound);
    // From another device, it is still its own.
    let mut again = gateway.bearer(other, Some(&keys.token("ann", may(&all)))).await;
    assert_eq!(again.cancel("s", "q", 0).await, pb::CancelOutcome::Accepted);
    ann.send(request("s", "r", "brain")).await;
    ann.acked("r").await;
    let mut boss = gateway.bearer(other, Some(&keys.token("boss", may(&["cancel"])))).await;
    assert_eq!(boss.cancel("s", "r", 0).await, pb::CancelOutcome::Accepted);
    let mut nobody = gateway.bearer(one, Some(&keys.token("nobody", may(&["read"])))).await;
    for request in ["q", "none"] {
        assert_eq!(nobody.cancel("s", request, 0).await, pb::CancelOutcome::Denied);
    }
    gateway.stopped().await;
}

async fn denied_workers_are_named_as_the_reason(one: Face, other: Face) {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let serves = json!([{"sessions": ["team-*"], "serve": ["brain"]}]);
    let mut worker = gateway.bearer(other, Some(&keys.token("w", serves))).await;
    let serve = pb::Serve {
        role: "brain".to_owned(),
        ..pb::Serve::default()
    };
    worker.serve(serve).await;
    let boss = keys.all("boss");
    let mut ann = gateway.bearer(one, Some(&boss)).await;
    ann.send(request("user-1", "q", "brain")).await;
    ann.acked("q").await;
    let why = gateway.why_as("user-1", "q", Some(&boss)).await;
    assert_eq!(why.waits_for(), pb::WaitsFor::AGrant);
    assert_eq!(why.workers.unwrap().denied, 1);
    ann.send(request("team-1", "q", "brain")).await;
    let asked = worker.handed().await;
    assert_eq!(asked.session_id, "team-1");
    assert_eq!(asked.from.as_deref().unwrap().subject, "boss");
    worker.send(last(&asked, "done")).await;
    let (_, answer) = ann.answer("q").await;
    assert_eq!(answer.from.as_deref().unwrap().subject, "w");
    gateway.stopped().await;
}

#[tokio::test]
async fn a_stranger_s_url_joins_when_it_is_known() {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut ann = gateway.websocket("?session_id=s&member_id=ann", None).await;
    ann.send(hello("h", &keys.all("ann"))).await;
    welcomed(&mut ann).await;
    let joined = ann
        .until("joined", |frame| match control(frame) {
            Some(Control::Joined(joined)) => Some(joined.clone()),
            _ => None,
        })
        .await;
    assert_eq!(joined.members[0].subject, "ann");
    gateway.stopped().await;
}

#[tokio::test]
async fn credentials_come_one_at_a_time_and_by_the_url_only_if_that_is_on() {
    let keys = Keys::new();
    let token = keys.all("ann");
    for allowed in [false, true] {
        let gateway = keys.gateway(|config| config.auth.query = allowed).await;
        let query = format!("?access_token={token}&session_id=s");
        let mut ann = gateway.websocket(&query, None).await;
        match allowed {
            true => assert!(matches!(control(&ann.next().await), Some(Control::Joined(_)))),
            false => assert_ended(&ann.ended().await, Reason::Unauthenticated),
        }
        let bearer = format!("twinspan.bearer.{token}, twinspan.v1.json");
        let mut twice = gateway.websocket(&query, Some(&bearer)).await;
        assert_ended(&twice.ended().await, Reason::Unauthenticated);
        gateway.stopped().await;
    }
}

#[tokio::test]
async fn a_bad_credential_is_told_by_close_code_and_status() {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let expired = keys.sign("ann", json!({"exp": 1}));
    for (token, reason) in [
        ("nonsense", Reason::Unauthenticated),
        (expired.as_str(), Reason::TokenExpired),
    ] {
        for face in [Face::Json, Face::Binary] {
            let mut peer = gateway.bearer(face, Some(token)).await;
            assert!(is(&peer.refusal().await, reason));
            assert_ended(&peer.ended().await, reason);
        }
        let status = match Peer::grpc(gateway.address, Some(token)).await {
            Ok(_) => panic!("let in"),
            Err(status) => status,
        };
        assert_eq!(reason_of(&status).as_deref(), Some(reason.row().name));
        let mut sessions = SessionsClient::new(gateway.channel().await);
        let get = pb::GetRequest {
            session_id: "s".to_owned(),
        };
        let status = sessions.get(authorized(get, Some(token))).await.unwrap_err();
        assert_eq!(reason_of(&status).as_deref(), Some(reason.row().name));
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn replies_tell_a_prober_nothing() {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let mut ann = gateway.bearer(Face::Json, Some(&keys.all("ann"))).await;
    ann.send(request("there", "q", "brain")).await;
    ann.acked("q").await;
    let mut eve = gateway
        .bearer(Face::Grpc, Some(&keys.token("eve", everything("own-*"))))
        .await;
    let mut seen = Vec::new();
    for (session, request) in [("there", "q"), ("there", "none"), ("nowhere", "q")] {
        let reply = Frame {
            reply_to: request.into(),
            ..text(session, "", "?")
        };
        eve.send(reply).await;
        seen.push(eve.refusal().await.reason);
    }
    assert_eq!(seen, ["NOT_YOUR_REQUEST"; 3]);
    gateway.stopped().await;
}

#[tokio::test]
async fn a_subject_has_so_much_and_no_more() {
    let keys = Keys::new();
    let gateway = keys
        .gateway(|config| {
            config.limits.connections_per_subject = 2;
            config.limits.sessions_per_subject = 2;
        })
        .await;
    let mut first = gateway.bearer(Face::Json, Some(&keys.all("ann"))).await;
    let second = gateway.bearer(Face::Grpc, Some(&keys.all("ann"))).await;
    let refused = Peer::grpc(gateway.address, Some(&keys.all("ann"))).await.err().unwrap();
    assert_eq!(reason_of(&refused).as_deref(), Some("TOO_MANY_CONNECTIONS"));
    let mut late = gateway.peer(Face::Json).await;
    late.send(hello("h", &keys.all("ann"))).await;
    let told = late.refusal().await;
    assert_eq!(told.details["setting"], "limits.connections_per_subject");
    let mut bob = gateway.bearer(Face::Json, Some(&keys.all("bob"))).await;
    bob.hears_nothing().await;
    let mut count = gateway.router.link_count();
    second.goodbye().await;
    patiently("room", count.wait_for(|count| *count <= 2)).await.unwrap();
    gateway
        .bearer(Face::Grpc, Some(&keys.all("ann")))
        .await
        .hears_nothing()
        .await;

    for session in ["a", "b"] {
        first.send(text(session, session, "")).await;
        first.acked(session).await;
    }
    first.send(text("c", "c", "")).await;
    let told = first.refusal().await;
    assert!(is(&told, Reason::TooManySessions));
    assert_eq!(told.details["setting"], "limits.sessions_per_subject");
    let delete = pb::DeleteRequest {
        session_id: "a".to_owned(),
    };
    let mut sessions = gateway.sessions().await;
    sessions
        .delete(authorized(delete, Some(&keys.all("bob"))))
        .await
        .unwrap();
    first.send(text("c", "c", "")).await;
    first.acked("c").await;
    gateway.stopped().await;
}

#[tokio::test]
async fn subprotocols_are_answered_without_the_credential() {
    let keys = Keys::new();
    let gateway = keys.gateway(|_| {}).await;
    let token = keys.all("ann");
    let offered = format!("twinspan.bearer.{token}, twinspan.v1.json");
    let mut ann = gateway.websocket("?session_id=s", Some(&offered)).await;
    ann.send_raw(Message::text(r#"{"id":"x","text":"hello"}"#)).await;
    ann.acked("x").await;
    gateway.stopped().await;
}
