//! The matrix: everything that can be done, on every face, with each permission alone, without any, in other sessions, and by a
//! stranger. What suffices is written down here once more, so that a slip in the gateway's own table shows.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tonic::{Code, Status};
use twinspan::auth::Deed;
use twinspan::auth::Permission::{self, *};
use twinspan::error::Reason;
use twinspan::frame::pb::admin_client::AdminClient;
use twinspan::frame::pb::sessions_client::SessionsClient;
use twinspan::frame::{Body, Control, Frame, pb};

use crate::harness::*;
use crate::keys::Keys;

/// What a deed takes: these beside one of those. Of deeds that need no permission, none suffices and none is missing.
fn takes(deed: Deed) -> (&'static [Permission], &'static [Permission]) {
    match deed {
        Deed::Hello | Deed::Ping | Deed::Leave => (&[], &[]),
        Deed::Join => (&[], &[Read]),
        Deed::JoinPresence => (&[Read], &[Presence]),
        Deed::Send | Deed::CallPublish => (&[], &[Send]),
        Deed::Request => (&[], &[Request]),
        Deed::Replace => (&[Request], &[Cancel, CancelOwn]),
        Deed::Open => (&[Send], &[Create]),
        Deed::Serve => (&[], &[Serve]),
        Deed::Reply => (&[Serve], &[]),
        Deed::Cancel | Deed::CallCancel => (&[], &[Cancel, CancelOwn]),
        Deed::CallCreate => (&[], &[Create]),
        Deed::CallGet | Deed::CallListFrames | Deed::CallWatch | Deed::CallWhy | Deed::CallList => (&[], &[Read]),
        Deed::CallUpdate | Deed::CallClose | Deed::CallDelete => (&[], &[Manage]),
        Deed::ListWorkers | Deed::DrainWorker | Deed::Stats | Deed::Revoke | Deed::ListRevocations => (&[], &[Admin]),
        Deed::Backup | Deed::Export | Deed::Import => (&[], &[Admin]),
    }
}

fn is_call(deed: Deed) -> bool {
    deed.name().contains('.')
}

fn suffices(deed: Deed, held: &[Permission]) -> bool {
    let (all, any) = takes(deed);
    all.iter().all(|need| held.contains(need)) && (any.is_empty() || any.iter().any(|need| held.contains(need)))
}

/// These permissions, in these sessions.
fn grant(held: &[Permission], sessions: &str) -> Value {
    let serve: &[&str] = if held.contains(&Serve) { &["brain*"] } else { &[] };
    json!([{ "sessions": [sessions], "can": held, "serve": serve }])
}

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Denied,
    Unknown,
}

fn of_reason(reason: &str) -> Outcome {
    match reason {
        "PERMISSION_DENIED" => Outcome::Denied,
        "UNAUTHENTICATED" => Outcome::Unknown,
        // Refused for other reasons than who it is.
        _ => Outcome::Done,
    }
}

fn of_call<T>(answer: Result<T, Status>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Done,
        Err(status) => {
            let reason = reason_of(&status).unwrap_or_else(|| panic!("an untyped status: {status:?}"));
            let outcome = of_reason(&reason);
            assert_eq!(outcome == Outcome::Denied, status.code() == Code::PermissionDenied);
            assert_eq!(outcome == Outcome::Unknown, status.code() == Code::Unauthenticated);
            outcome
        }
    }
}

/// A gateway, and a session in which there is something to be done.
struct Stage {
    gateway: Gateway,
    keys: Keys,
    boss: String,
}

impl Stage {
    async fn new() -> Self {
        let keys = Keys::new();
        let gateway = keys
            .gateway(|config| config.limits.connections_per_subject = 100_000)
            .await;
        let boss = keys.all("boss");
        Self { gateway, keys, boss }
    }

    /// A session with a request of ann's that nobody has.
    async fn session(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let session = format!("s-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let ann = self
            .keys
            .token("ann", json!([{"sessions": ["s-*"], "can": ["create", "request"]}]));
        let publish = pb::PublishRequest {
            frame: Some(request(&session, "q", "nobody")),
            ..pb::PublishRequest::default()
        };
        let mut sessions = self.gateway.sessions().await;
        sessions.publish(authorized(publish, Some(&ann))).await.unwrap();
        session
    }

    async fn attempt(&self, deed: Deed, face: Face, token: Option<&str>) -> Outcome {
        let session = self.session().await;
        if is_call(deed) {
            self.call(deed, &session, token).await
        } else {
            self.say(deed, &session, (face, token)).await
        }
    }

    async fn say(&self, deed: Deed, session: &str, (face, token): (Face, Option<&str>)) -> Outcome {
        let mut peer = self.gateway.bearer(face, token).await;
        if deed == Deed::Reply {
            return self.reply(&mut peer, session).await;
        }
        let mut frame = frame(deed, session);
        frame.id = "x".into();
        peer.send(frame).await;
        loop {
            let frame = match peer.receive().await {
                Ok(frame) => frame,
                Err(ended) => return of_reason(&ended.reason().unwrap_or_default()),
            };
            match &frame.body {
                Body::Error(error) if frame.seq == 0 => return of_reason(&error.reason),
                Body::Control(control) => match &**control {
                    Control::CancelAck(ack) if ack.outcome() == pb::CancelOutcome::Denied => return Outcome::Denied,
                    Control::Joined(_) if deed != Deed::Join && deed != Deed::JoinPresence => {}
                    _ => return Outcome::Done,
                },
                _ => return Outcome::Done,
            }
        }
    }

    /// Serves, is handed something, and answers.
    async fn reply(&self, peer: &mut Peer, session: &str) -> Outcome {
        // One that nobody else serves, not even somebody who is about to be gone.
        let role = format!("brain-{session}");
        let serve = pb::Serve {
            role: role.clone(),
            ..pb::Serve::default()
        };
        peer.control("", Control::Serve(serve)).await;
        let serving = loop {
            match peer.receive().await {
                Err(ended) => return of_reason(&ended.reason().unwrap_or_default()),
                Ok(frame) => match &frame.body {
                    Body::Error(error) => break Err(of_reason(&error.reason)),
                    _ if matches!(control(&frame), Some(Control::Serving(_))) => break Ok(()),
                    _ => {}
                },
            }
        };
        if let Err(outcome) = serving {
            return outcome;
        }
        let mut boss = self.gateway.bearer(Face::Grpc, Some(&self.boss)).await;
        boss.send(request(session, "r", &role)).await;
        boss.acked("r").await;
        let why = self.gateway.why_as(session, "r", Some(&self.boss)).await;
        if why.waits_for() == pb::WaitsFor::AGrant {
            return Outcome::Denied;
        }
        let asked = peer.handed().await;
        peer.send(last(&asked, "done")).await;
        assert_eq!(boss.answer("r").await.0, "done");
        Outcome::Done
    }

    async fn call(&self, deed: Deed, session: &str, token: Option<&str>) -> Outcome {
        let mut sessions = SessionsClient::new(self.gateway.channel().await);
        let session_id = session.to_owned();
        match deed {
            Deed::CallCreate => {
                let session_id = format!("{session}-new");
                let create = pb::CreateRequest {
                    session_id,
                    ..Default::default()
                };
                of_call(sessions.create(authorized(create, token)).await)
            }
            Deed::CallGet => of_call(sessions.get(authorized(pb::GetRequest { session_id }, token)).await),
            Deed::CallList => {
                let list = pb::ListRequest {
                    prefix: session_id,
                    ..Default::default()
                };
                match sessions.list(authorized(list, token)).await {
                    // What may not be seen is not there.
                    Ok(listed) if listed.get_ref().sessions.is_empty() => Outcome::Denied,
                    answer => of_call(answer),
                }
            }
            Deed::CallUpdate => {
                let update = pb::UpdateRequest {
                    session_id,
                    ..Default::default()
                };
                of_call(sessions.update(authorized(update, token)).await)
            }
            Deed::CallClose => {
                let close = pb::CloseRequest {
                    session_id,
                    ..Default::default()
                };
                of_call(sessions.close(authorized(close, token)).await)
            }
            Deed::CallDelete => of_call(
                sessions
                    .delete(authorized(pb::DeleteRequest { session_id }, token))
                    .await,
            ),
            Deed::CallPublish => {
                let publish = pb::PublishRequest {
                    frame: Some(text(session, "x", "hello")),
                    ..Default::default()
                };
                of_call(sessions.publish(authorized(publish, token)).await)
            }
            Deed::CallListFrames => {
                let list = pb::ListFramesRequest {
                    session_id,
                    ..Default::default()
                };
                of_call(sessions.list_frames(authorized(list, token)).await)
            }
            Deed::CallWatch => {
                let watch = pb::WatchRequest {
                    session_id,
                    ..Default::default()
                };
                of_call(sessions.watch(authorized(watch, token)).await)
            }
            Deed::CallCancel => {
                let cancel = pb::CancelRequest {
                    session_id,
                    request_id: "q".to_owned(),
                    ..Default::default()
                };
                match sessions.cancel(authorized(cancel, token)).await {
                    Ok(answer) if answer.get_ref().outcome() == pb::CancelOutcome::Denied => Outcome::Denied,
                    answer => of_call(answer),
                }
            }
            Deed::CallWhy => {
                let why = pb::WhyRequest {
                    session_id,
                    request_id: "q".to_owned(),
                };
                of_call(sessions.why(authorized(why, token)).await)
            }
            _ => self.administer(deed, token).await,
        }
    }

    async fn administer(&self, deed: Deed, token: Option<&str>) -> Outcome {
        let mut admin = AdminClient::new(self.gateway.channel().await);
        match deed {
            Deed::ListWorkers => {
                let list = pb::ListWorkersRequest::default();
                of_call(admin.list_workers(authorized(list, token)).await)
            }
            Deed::DrainWorker => {
                let drain = pb::DrainWorkerRequest {
                    role: "brain".to_owned(),
                    worker_id: "w".to_owned(),
                };
                of_call(admin.drain_worker(authorized(drain, token)).await)
            }
            Deed::Stats => of_call(admin.stats(authorized(pb::StatsRequest {}, token)).await),
            Deed::Revoke => {
                let revoke = pb::RevokeRequest {
                    token_id: "somebody's".to_owned(),
                    ..Default::default()
                };
                of_call(admin.revoke(authorized(revoke, token)).await)
            }
            Deed::ListRevocations => {
                let list = pb::ListRevocationsRequest {};
                of_call(admin.list_revocations(authorized(list, token)).await)
            }
            Deed::Backup => of_call(admin.backup(authorized(pb::BackupRequest {}, token)).await),
            Deed::Export => {
                let nothing = pb::ExportRequest {
                    prefix: "nothing-".to_owned(),
                };
                of_call(admin.export(authorized(nothing, token)).await)
            }
            Deed::Import => of_call(admin.import(authorized(tokio_stream::empty(), token)).await),
            other => panic!("{other:?} is no call"),
        }
    }
}

fn frame(deed: Deed, session: &str) -> Frame {
    let control = |control| Frame {
        session_id: session.into(),
        body: Body::Control(Box::new(control)),
        ..Frame::default()
    };
    match deed {
        Deed::Hello => control(Control::Hello(pb::Hello::default())),
        Deed::Ping => control(Control::Ping(pb::Ping::default())),
        Deed::Leave => control(Control::Leave(pb::Leave {})),
        Deed::Join => control(Control::Join(pb::Join::default())),
        Deed::JoinPresence => control(Control::Join(pb::Join {
            presence: true,
            ..pb::Join::default()
        })),
        Deed::Send => text(session, "x", "hello"),
        Deed::Request => request(session, "x", "brain"),
        Deed::Replace => with(request(session, "x", "nobody"), alongside(pb::Concurrency::Replace)),
        Deed::Open => text(&format!("{session}-new"), "x", "hello"),
        Deed::Serve => control(Control::Serve(pb::Serve {
            role: "brain".to_owned(),
            ..pb::Serve::default()
        })),
        Deed::Cancel => control(Control::Cancel(pb::Cancel {
            request_id: "q".to_owned(),
            ..pb::Cancel::default()
        })),
        other => panic!("{other:?} is no frame"),
    }
}

fn faces(deed: Deed) -> &'static [Face] {
    match is_call(deed) {
        true => &[Face::Grpc],
        false => &[Face::Grpc, Face::Json, Face::Binary],
    }
}

/// Whether it is a deed of no session, so that it does not matter of which ones a grant speaks.
fn is_everywhere(deed: Deed) -> bool {
    takes(deed).1.contains(&Admin) || deed == Deed::Serve || takes(deed) == (&[], &[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_permission_gives_what_it_gives_and_nothing_else() {
    let stage = Stage::new().await;
    for deed in Deed::ALL {
        for face in faces(*deed) {
            for permission in Permission::ALL {
                let mut held = takes(*deed).0.to_vec();
                held.push(permission);
                let expected = match suffices(*deed, &held) {
                    true => Outcome::Done,
                    false => Outcome::Denied,
                };
                // The request to be cancelled is ann's.
                let token = stage.keys.token("ann", grant(&held, "s-*"));
                let outcome = stage.attempt(*deed, *face, Some(&token)).await;
                assert_eq!(outcome, expected, "{deed:?} on {face:?} with {held:?}");
            }
        }
    }
    stage.gateway.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_nothing_or_elsewhere_may_nothing_here() {
    let stage = Stage::new().await;
    for deed in Deed::ALL {
        for face in faces(*deed) {
            let nothing = stage.keys.token("ann", json!([]));
            let elsewhere = stage.keys.token("ann", grant(&Permission::ALL, "other-*"));
            let expected = |is_free| if is_free { Outcome::Done } else { Outcome::Denied };
            let outcome = stage.attempt(*deed, *face, Some(&nothing)).await;
            assert_eq!(
                outcome,
                expected(takes(*deed) == (&[], &[])),
                "{deed:?} on {face:?} with nothing"
            );
            let outcome = stage.attempt(*deed, *face, Some(&elsewhere)).await;
            assert_eq!(
                outcome,
                expected(is_everywhere(*deed)),
                "{deed:?} on {face:?} from elsewhere"
            );
        }
    }
    stage.gateway.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_may_say_who_it_is() {
    let stage = Stage::new().await;
    for deed in Deed::ALL {
        for face in faces(*deed) {
            let expected = match deed {
                Deed::Hello | Deed::Ping => Outcome::Done,
                _ => Outcome::Unknown,
            };
            let outcome = stage.attempt(*deed, *face, None).await;
            assert_eq!(outcome, expected, "{deed:?} on {face:?} by a stranger");
        }
    }
    stage.gateway.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_are_granted_one_by_one() {
    let stage = Stage::new().await;
    let session = stage.session().await;
    let grants = json!([{
        "sessions": ["s-*"], "can": ["read", "request", "send"], "roles": ["author-*"], "ask": ["brain"], "serve": ["hand"],
    }]);
    let token = stage.keys.token("ann", grants);
    for face in [Face::Grpc, Face::Json, Face::Binary] {
        let mut ann = stage.gateway.bearer(face, Some(&token)).await;
        for (role, may) in [("", true), ("client", true), ("author-1", true), ("editor", false)] {
            let join = pb::Join {
                role: role.to_owned(),
                ..pb::Join::default()
            };
            if may {
                ann.join(&session, join).await;
            } else {
                ann.control(&session, Control::Join(join)).await;
                assert!(is(&ann.refusal().await, Reason::PermissionDenied), "{role}");
            }
        }
        ann.send(request(&session, &format!("{face:?}"), "brain")).await;
        ann.acked(&format!("{face:?}")).await;
        for refused in [request(&session, "no", "hand"), request(&session, "no", "nobody")] {
            ann.send(refused).await;
            let refused = ann.refusal().await;
            assert!(is(&refused, Reason::PermissionDenied));
            assert_eq!(refused.details["need"], "ask");
        }
        for (role, may) in [("hand", true), ("brain", false)] {
            let serve = pb::Serve {
                role: role.to_owned(),
                ..pb::Serve::default()
            };
            if may {
                ann.serve(serve).await;
            } else {
                ann.control("", Control::Serve(serve)).await;
                assert!(is(&ann.refusal().await, Reason::PermissionDenied));
            }
        }
    }
    stage.gateway.stopped().await;
}
