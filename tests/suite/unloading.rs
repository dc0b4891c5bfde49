//! Sessions that nobody uses leave memory, and come back as they were, whoever wants them and whatever for. And what was
//! answered of a session (that it was made, changed, closed, deleted) is so after any death of the gateway.

use std::collections::HashMap;
use std::time::Duration;

use tonic::Code;
use twinspan::error::Reason;
use twinspan::frame::{Control, pb};
use twinspan::log::Durability;

use crate::harness::*;
use crate::process::Home;

/// A gateway that lets go of its sessions as soon as it can.
async fn forgetful() -> Gateway {
    Gateway::with(|config| {
        config.durability = Durability::Durable;
        config.data_dir = data_dir();
        config.disk.unload = Duration::from_millis(50);
        // Once in this time it looks for sessions that nobody uses.
        config.limits.heartbeat = Duration::from_millis(160);
    })
    .await
}

/// Until the session is on the disk alone.
async fn away(gateway: &Gateway, session: &str) {
    let mut now_and_then = tokio::time::interval(Duration::from_millis(5));
    let look = async {
        while !gateway.router.is_away(session) {
            now_and_then.tick().await;
        }
    };
    patiently("the session to leave memory", look).await;
}

fn pairs(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn name(session: &str) -> pb::GetRequest {
    pb::GetRequest {
        session_id: session.to_owned(),
    }
}

/// A session of which there is much to know: `said`, three frames, and a request that was answered.
async fn make(gateway: &Gateway, face: Face, session: &str) -> pb::Session {
    let mut sessions = gateway.sessions().await;
    let create = pb::CreateRequest {
        session_id: session.to_owned(),
        metadata: pairs(&[("title", "a talk")]),
        labels: pairs(&[("tier", "gold")]),
        retention: Some(pb::Retention {
            max_frames: Some(50),
            ..pb::Retention::default()
        }),
    };
    sessions.create(create).await.unwrap();
    let mut worker = gateway.worker(face, session, 1).await;
    let mut ann = gateway.member(face, session, "ann").await;
    for id in ["1", "2", "3"] {
        ann.send(text(session, id, id)).await;
        ann.acked(id).await;
    }
    ann.send(request(session, "q", session)).await;
    let asked = worker.handed().await;
    worker.send(last(&asked, "done")).await;
    assert_eq!(ann.answer("q").await.0, "done");
    let made = sessions.get(name(session)).await.unwrap().into_inner();
    ann.goodbye().await;
    worker.goodbye().await;
    pb::Session {
        member_count: 0,
        ..made
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_left_comes_back_as_it_was() {
    let gateway = forgetful().await;
    for (face, other) in [(Face::Json, Face::Grpc), (Face::Grpc, Face::Json)] {
        let session = &format!("s-{face:?}");
        let made = make(&gateway, face, session).await;
        assert_eq!((made.head_seq, made.first_seq), (5, 1));
        let mut sessions = gateway.sessions().await;

        // Listing it does not bring it back.
        away(&gateway, session).await;
        let list = pb::ListRequest {
            prefix: session.clone(),
            labels: pairs(&[("tier", "gold")]),
            ..pb::ListRequest::default()
        };
        let listed = sessions.list(list).await.unwrap().into_inner().sessions;
        assert_eq!(listed, std::slice::from_ref(&made));
        assert!(gateway.router.is_away(session));

        away(&gateway, session).await;
        assert_eq!(sessions.get(name(session)).await.unwrap().into_inner(), made);

        away(&gateway, session).await;
        let mut ann = gateway.peer(other).await;
        let join = pb::Join {
            member_id: "ann".to_owned(),
            after_seq: Some(1),
            epoch: made.epoch.clone(),
            ..pb::Join::default()
        };
        let joined = ann.join(session, join).await;
        assert!(joined.resumed && joined.head_seq == 5, "{joined:?}");
        for seq in 2..=5 {
            assert_eq!(ann.logged().await.seq, seq);
        }
        // It is remembered what was sent before, and what has ended.
        ann.send(text(session, "2", "2")).await;
        let again = ann.acked("2").await;
        assert_eq!((again.seq, again.duplicate), (2, true));
        ann.send(text(session, "3", "other words")).await;
        assert!(is(&ann.refusal().await, Reason::IdReused));
        let ended = ann.cancel(session, "q", 0).await;
        assert_eq!(ended, pb::CancelOutcome::AlreadyEnded);
        ann.goodbye().await;

        away(&gateway, session).await;
        let publish = |id: &str, content: &str| pb::PublishRequest {
            frame: Some(text(session, id, content)),
            member_id: "ann".to_owned(),
        };
        let published = sessions.publish(publish("1", "1")).await.unwrap().into_inner();
        assert_eq!((published.seq, published.duplicate), (1, true));
        away(&gateway, session).await;
        let published = sessions.publish(publish("4", "4")).await.unwrap().into_inner();
        assert_eq!((published.seq, published.duplicate), (6, false));

        away(&gateway, session).await;
        let list = pb::ListFramesRequest {
            session_id: session.clone(),
            ..pb::ListFramesRequest::default()
        };
        let listed = sessions.list_frames(list).await.unwrap().into_inner();
        assert_eq!((listed.epoch.as_str(), listed.head_seq), (made.epoch.as_str(), 6));
        let seqs: Vec<_> = listed.frames.iter().map(|frame| frame.seq).collect();
        assert_eq!(seqs, [1, 2, 3, 4, 5, 6]);

        away(&gateway, session).await;
        let cancel = |request: &str| pb::CancelRequest {
            session_id: session.clone(),
            request_id: request.to_owned(),
            ..pb::CancelRequest::default()
        };
        let ended = sessions.cancel(cancel("q")).await.unwrap().into_inner();
        assert_eq!(ended.outcome(), pb::CancelOutcome::AlreadyEnded);
        let unknown = sessions.cancel(cancel("r")).await.unwrap().into_inner();
        assert_eq!(unknown.outcome(), pb::CancelOutcome::NotFound);

        away(&gateway, session).await;
        let why = gateway.why(session, "q").await;
        assert_eq!((why.state(), why.final_seq), (pb::RequestState::Completed, 5));

        // And it can be changed from there.
        away(&gateway, session).await;
        let update = pb::UpdateRequest {
            session_id: session.clone(),
            set: pairs(&[("title", "another talk")]),
            etag: made.etag.clone(),
            ..pb::UpdateRequest::default()
        };
        let updated = sessions.update(update).await.unwrap().into_inner();
        away(&gateway, session).await;
        let there = sessions.get(name(session)).await.unwrap().into_inner();
        assert_eq!(there.metadata["title"], "another talk");
        assert_eq!((&there.etag, &there.epoch), (&updated.etag, &made.epoch));
        away(&gateway, session).await;
        let delete = pb::DeleteRequest {
            session_id: session.clone(),
        };
        sessions.delete(delete).await.unwrap();
        let status = sessions.get(name(session)).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    }
    gateway.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_in_use_are_in_memory() {
    const ALL: usize = 3_000;
    const USED: usize = 30;
    let gateway = forgetful().await;
    let session = |number: usize| format!("s-{number}");
    let mut ann = gateway.peer(Face::Grpc).await;
    for number in 0..ALL {
        ann.send(text(&session(number), "1", "here")).await;
    }
    let mut made = 0;
    while made < ALL {
        let accepted = ann.until("acks", |frame| match control(frame) {
            Some(Control::Ack(ack)) => Some(ack.accepted.len()),
            _ => None,
        });
        made += accepted.await;
    }
    let mut members = Vec::new();
    for number in (0..ALL).step_by(ALL / USED) {
        members.push(gateway.member(Face::Json, &session(number), "bob").await);
    }
    let in_memory = || {
        (0..ALL)
            .filter(|number| !gateway.router.is_away(&session(*number)))
            .count()
    };
    let mut now_and_then = tokio::time::interval(Duration::from_millis(20));
    let look = async {
        while in_memory() > USED {
            now_and_then.tick().await;
        }
    };
    patiently("the others to leave memory", look).await;
    assert_eq!(in_memory(), USED);
    assert_eq!(gateway.router.stats().sessions, ALL as u64, "all are there");
    // Those in memory work on, and so does any of the others.
    for (at, member) in members.iter_mut().enumerate() {
        let used = session(at * (ALL / USED));
        member.send(text(&used, "2", "still here")).await;
        assert_eq!(member.acked("2").await.seq, 2);
        let other = session(at * (ALL / USED) + 1);
        ann.send(text(&other, "1", "here")).await;
        let again = ann.acked("1").await;
        assert!(again.duplicate, "{again:?}");
    }
    gateway.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_of_a_session_is_so() {
    let home = Home::new();
    let gateway = home.start();
    let mut sessions = gateway.sessions().await;
    let create = |session: &str| pb::CreateRequest {
        session_id: session.to_owned(),
        metadata: pairs(&[("title", "a talk"), ("gone", "soon")]),
        labels: pairs(&[("tier", "gold")]),
        retention: Some(pb::Retention {
            max_frames: Some(5),
            ..pb::Retention::default()
        }),
    };
    // Each is killed right after its answer.
    let created = sessions.create(create("s")).await.unwrap().into_inner();
    gateway.kill();

    let gateway = home.start();
    let mut sessions = gateway.sessions().await;
    assert_eq!(sessions.get(name("s")).await.unwrap().into_inner(), created);
    let update = pb::UpdateRequest {
        session_id: "s".to_owned(),
        set: pairs(&[("title", "another talk")]),
        unset: vec!["gone".to_owned()],
        set_labels: pairs(&[("tier", "silver")]),
        etag: created.etag.clone(),
        retention: Some(pb::Retention {
            max_frames: Some(3),
            max_age: ms(3_600_000),
            ..pb::Retention::default()
        }),
        ..pb::UpdateRequest::default()
    };
    let updated = sessions.update(update).await.unwrap().into_inner();
    gateway.kill();

    let gateway = home.start();
    let mut sessions = gateway.sessions().await;
    assert_eq!(sessions.get(name("s")).await.unwrap().into_inner(), updated);
    assert_eq!(updated.metadata, pairs(&[("title", "another talk")]));
    assert_eq!(updated.labels, pairs(&[("tier", "silver")]));
    // It is kept as it said.
    let (mut ann, _) = gateway.member(Face::Json, "s", pb::Join::default()).await;
    for id in ["1", "2", "3", "4", "5", "6"] {
        ann.send(text("s", id, id)).await;
        ann.acked(id).await;
    }
    let kept = sessions.get(name("s")).await.unwrap().into_inner();
    assert_eq!((kept.first_seq, kept.head_seq), (4, 6));
    drop(ann);
    let close = pb::CloseRequest {
        session_id: "s".to_owned(),
        ..pb::CloseRequest::default()
    };
    let closed = sessions.close(close).await.unwrap().into_inner();
    sessions.create(create("t")).await.unwrap();
    gateway.kill();

    let gateway = home.start();
    let mut sessions = gateway.sessions().await;
    let there = sessions.get(name("s")).await.unwrap().into_inner();
    assert_eq!(there.state(), pb::SessionState::Closed);
    // Which frames are gone by now is told by what is on the disk.
    assert_eq!(
        (there.epoch, there.etag, there.head_seq),
        (closed.epoch, closed.etag, 6)
    );
    assert_eq!(there.updated_at, closed.updated_at);
    let (mut ann, joined) = gateway
        .member(
            Face::Grpc,
            "s",
            pb::Join {
                after_seq: Some(3),
                ..pb::Join::default()
            },
        )
        .await;
    assert!(joined.resumed, "{joined:?}");
    for seq in 4..=6 {
        assert_eq!(ann.logged().await.seq, seq);
    }
    ann.send(text("s", "7", "7")).await;
    assert!(is(&ann.refusal().await, Reason::SessionClosed));
    for session in ["s", "t"] {
        let delete = pb::DeleteRequest {
            session_id: session.to_owned(),
        };
        sessions.delete(delete).await.unwrap();
    }
    let anew = sessions.create(create("t")).await.unwrap().into_inner();
    gateway.kill();

    let gateway = home.start();
    let mut sessions = gateway.sessions().await;
    assert_eq!(sessions.get(name("s")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(sessions.get(name("t")).await.unwrap().into_inner(), anew);
    let listed = sessions.list(pb::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.sessions, [anew]);
    gateway.stopped();
}
