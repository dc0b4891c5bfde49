//! Requests and workers.

use twinspan::error::Reason;
use twinspan::frame::{Body, Control, Frame, pb};

use crate::harness::*;
use crate::scenarios;

scenarios! {
    an_answer_is_streamed
    each_request_goes_to_one_worker_with_room
    a_session_stays_with_its_worker
    cancelled_while_it_runs
    cancelled_while_it_waits
    nobody_serves_the_role
    everybody_is_full
    it_takes_too_long
    the_worker_goes_away
    only_the_holder_may_answer
    chunks_are_counted
    types_are_routed
    an_asker_need_not_join
    a_worker_serves_some_sessions_only
    ids_of_open_requests_are_unique
    late_joiners_see_the_open_requests
    a_worker_that_reads_nothing_is_let_go
}

async fn an_answer_is_streamed(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(other, "s", "bob").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    assert_eq!(
        (asked.id.as_str(), asked.session_id.as_str(), asked.attempt),
        ("q", "s", 1)
    );
    assert!(
        asked
            .options
            .as_ref()
            .unwrap()
            .timeouts
            .as_ref()
            .unwrap()
            .total
            .is_some(),
        "what remains is told"
    );
    let asked = Frame {
        options: None,
        ..asked.clone()
    };
    for part in ["to", "ken", "s"] {
        worker.send(chunk(&asked, part)).await;
    }
    worker
        .send(Frame {
            body: Body::Payload(Default::default()),
            ..chunk(&asked, "")
        })
        .await;
    worker.send(last(&asked, ".")).await;
    for peer in [&mut ann, &mut bob] {
        let echo = peer.logged().await;
        assert_eq!((echo.seq, echo.id.as_str()), (1, "q"));
        for index in 0..5 {
            let reply = peer.logged().await;
            assert_eq!(
                (reply.reply_to.as_str(), reply.index, reply.attempt),
                ("q", Some(index), 1)
            );
            assert_eq!(reply.last, index == 4);
            assert_eq!(reply.from.unwrap().role, "brain");
        }
    }
    let ack = worker
        .until("the last chunk's ack", |frame| match control(frame) {
            Some(Control::Ack(ack)) => ack.accepted.iter().find(|accepted| accepted.index == Some(4)).cloned(),
            _ => None,
        })
        .await;
    assert_eq!((ack.reply_to.as_str(), ack.session_id.as_str()), ("q", "s"));
    gateway.stopped().await;
}

async fn each_request_goes_to_one_worker_with_room(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut small = gateway.worker(other, "brain", 1).await;
    let mut large = gateway.worker(one, "brain", 2).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    for id in ["1", "2", "3", "4"] {
        ann.send(request("s", id, "brain")).await;
    }
    let mut held: Vec<Frame> = vec![large.handed().await, large.handed().await, small.handed().await];
    let mut ids: Vec<_> = held.iter().map(|frame| frame.id.to_string()).collect();
    ids.sort();
    assert_eq!(ids, ["1", "2", "3"]);
    large.hears_nothing().await;
    let done = held.remove(0);
    large.send(last(&done, "done")).await;
    assert_eq!(
        large.handed().await.id,
        "4",
        "what waited goes to whoever has room first"
    );
    small.hears_nothing().await;
    gateway.stopped().await;
}

async fn a_session_stays_with_its_worker(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut first = gateway.worker(other, "brain", 2).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "1", "brain")).await;
    let asked = first.handed().await;
    let mut roomier = gateway.worker(other, "brain", 9).await;
    first.send(last(&asked, "")).await;
    ann.answer("1").await;
    ann.send(request("s", "2", "brain")).await;
    assert_eq!(first.handed().await.id, "2");
    roomier.hears_nothing().await;
    gateway.stopped().await;
}

async fn cancelled_while_it_runs(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(one, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(other, "s", "bob").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    worker.send(chunk(&asked, "so far")).await;
    bob.until("the first chunk", |frame| (frame.reply_to == "q").then_some(()))
        .await;
    assert_eq!(bob.cancel("s", "q", 60_000).await, pb::CancelOutcome::Accepted);
    let told = worker.stopped().await;
    assert_eq!(
        (told.request_id.as_str(), told.reason.as_str()),
        ("q", "REQUEST_CANCELLED")
    );
    assert!(told.grace.is_some(), "it has a moment");
    assert_eq!(bob.cancel("s", "q", 0).await, pb::CancelOutcome::Accepted, "twice");
    let told = worker.stopped().await;
    assert_eq!((told.request_id.as_str(), told.grace), ("q", None), "it is over");
    assert_eq!(bob.cancel("s", "q", 60_000).await, pb::CancelOutcome::AlreadyEnded);
    assert_eq!(bob.cancel("s", "never", 60_000).await, pb::CancelOutcome::NotFound);
    worker
        .send(Frame {
            id: "late".into(),
            ..chunk(&asked, "too late")
        })
        .await;
    assert!(is(&worker.refusal().await, Reason::RequestEnded));
    let (text, end) = ann.answer("q").await;
    assert_eq!(text, "so far");
    assert!(is(error(&end), Reason::RequestCancelled) && end.last);
    assert_eq!(end.from.unwrap().role, "gateway");
    ann.hears_nothing().await;
    gateway.stopped().await;
}

async fn cancelled_while_it_waits(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    ann.acked("q").await;
    // Whoever cancels may be told of the end before the answer.
    let mut bob = gateway.reader(other, "s").await;
    assert_eq!(ann.cancel("s", "q", 60_000).await, pb::CancelOutcome::Accepted);
    assert!(is(error(&bob.answer("q").await.1), Reason::RequestCancelled));
    let mut worker = gateway.worker(other, "brain", 1).await;
    worker.hears_nothing().await;
    gateway.stopped().await;
}

async fn nobody_serves_the_role(one: Face, _: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(hasty(request("s", "q", "brain"), 50, 0)).await;
    let (_, end) = ann.answer("q").await;
    assert!(is(error(&end), Reason::NoWorker) && error(&end).retryable);
    gateway.stopped().await;
}

async fn everybody_is_full(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "1", "brain")).await;
    worker.handed().await;
    ann.send(hasty(request("s", "2", "brain"), 50, 0)).await;
    assert!(is(error(&ann.answer("2").await.1), Reason::AcceptTimeout));
    worker.hears_nothing().await;
    gateway.stopped().await;
}

async fn it_takes_too_long(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(hasty(request("s", "q", "brain"), 0, 150)).await;
    let asked = worker.handed().await;
    worker.send(chunk(&asked, "half")).await;
    let (text, end) = ann.answer("q").await;
    assert_eq!(text, "half");
    assert!(is(error(&end), Reason::TotalTimeout));
    assert_eq!(worker.stopped().await.reason, "TOTAL_TIMEOUT");
    gateway.stopped().await;
}

async fn the_worker_goes_away(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 5).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "1", "brain")).await;
    ann.send(request("s", "2", "brain")).await;
    let asked = worker.handed().await;
    worker.handed().await;
    worker.send(chunk(&asked, "half")).await;
    ann.until("the chunk", |frame| (frame.reply_to == "1").then_some(()))
        .await;
    drop(worker);
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let frame = ann.logged().await;
        if frame.last {
            assert!(is(error(&frame), Reason::WorkerLost));
            ended.push(frame.reply_to.to_string());
        }
    }
    ended.sort();
    assert_eq!(ended, ["1", "2"]);
    let mut next = gateway.worker(other, "brain", 5).await;
    next.hears_nothing().await;
    gateway.stopped().await;
}

async fn only_the_holder_may_answer(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut thief = gateway.worker(one, "hands", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    for peer in [&mut thief, &mut ann] {
        peer.send(Frame {
            id: "x".into(),
            ..last(&asked, "mine")
        })
        .await;
        assert!(is(&peer.refusal().await, Reason::NotYourRequest));
    }
    worker
        .send(Frame {
            attempt: 2,
            ..chunk(&asked, "")
        })
        .await;
    assert!(is(&worker.refusal().await, Reason::Superseded));
    worker
        .send(Frame {
            reply_to: "unheard".into(),
            ..chunk(&asked, "")
        })
        .await;
    assert!(is(&worker.refusal().await, Reason::RequestNotFound));
    worker
        .send(Frame {
            ephemeral: true,
            ..chunk(&asked, "progress")
        })
        .await;
    let progress = ann
        .until("progress", |frame| frame.ephemeral.then(|| frame.clone()))
        .await;
    assert_eq!((progress.attempt, progress.seq), (1, 0));
    worker.send(last(&asked, "yes")).await;
    assert_eq!(ann.answer("q").await.0, "yes");
    gateway.stopped().await;
}

async fn chunks_are_counted(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    for index in [0, 1, 1, 0] {
        worker
            .send(Frame {
                index: Some(index),
                ..chunk(&asked, &index.to_string())
            })
            .await;
    }
    worker
        .send(Frame {
            index: Some(5),
            ..chunk(&asked, "5")
        })
        .await;
    let refused = worker.refusal().await;
    assert!(is(&refused, Reason::ChunkOutOfOrder));
    assert_eq!(refused.details["expected"], "2");
    worker
        .send(Frame {
            index: Some(2),
            ..last(&asked, "2")
        })
        .await;
    assert_eq!(ann.answer("q").await.0, "012", "what came twice is there once");
    gateway.stopped().await;
}

async fn types_are_routed(one: Face, other: Face) {
    let gateway = Gateway::with(|config| {
        config.routes.insert("BRAIN_REQUEST".to_owned(), "brain".to_owned());
    })
    .await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(Frame {
        r#type: "BRAIN_REQUEST".into(),
        ..payload("s", "", "{}")
    })
    .await;
    let asked = worker.handed().await;
    assert!(!asked.id.is_empty(), "a request without an id is given one");
    assert_eq!(asked.to.as_ref().unwrap().role, "brain");
    worker.send(last(&asked, "yes")).await;
    assert_eq!(ann.answer(&asked.id.clone()).await.0, "yes");
    gateway.stopped().await;
}

async fn an_asker_need_not_join(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut bob = gateway.member(other, "s", "bob").await;
    let mut ann = gateway.peer(one).await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    bob.send(text("s", "b", "not for ann")).await;
    bob.acked("b").await;
    worker.send(chunk(&asked, "for ")).await;
    worker.send(last(&asked, "ann")).await;
    let (text, end) = ann.answer("q").await;
    assert_eq!((text.as_str(), end.last), ("for ann", true));
    ann.hears_nothing().await;
    assert_eq!(gateway.router.describe("s").await.unwrap().member_count, 1);
    gateway.stopped().await;
}

async fn a_worker_serves_some_sessions_only(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.peer(other).await;
    let serve = pb::Serve {
        role: "brain".to_owned(),
        sessions: vec!["user-*".to_owned()],
        ..pb::Serve::default()
    };
    worker.control("", Control::Serve(serve)).await;
    let mut ann = gateway.peer(one).await;
    ann.send(hasty(request("else", "1", "brain"), 50, 0)).await;
    assert!(is(error(&ann.answer("1").await.1), Reason::NoWorker));
    ann.send(request("user-1", "2", "brain")).await;
    assert_eq!(worker.handed().await.session_id, "user-1");
    gateway.stopped().await;
}

async fn ids_of_open_requests_are_unique(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(other, "s", "bob").await;
    ann.send(request("s", "q", "brain")).await;
    ann.acked("q").await;
    bob.send(request("s", "q", "brain")).await;
    assert!(is(&bob.refusal().await, Reason::RequestIdInUse));
    ann.send(request("s", "q", "brain")).await;
    assert!(ann.acked("q").await.duplicate);
    gateway.stopped().await;
}

async fn late_joiners_see_the_open_requests(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "1", "brain")).await;
    ann.send(request("s", "2", "brain")).await;
    ann.acked("2").await;
    let asked = worker.handed().await;
    worker.send(chunk(&asked, "half")).await;
    ann.until("the chunk", |frame| (frame.reply_to == "1").then_some(()))
        .await;
    let mut bob = gateway.peer(other).await;
    let open = bob.join("s", pb::Join::default()).await.open_requests;
    let open: Vec<_> = open
        .iter()
        .map(|open| (open.request_id.as_str(), open.attempt, open.chunks, open.role.as_str()))
        .collect();
    assert_eq!(open, [("1", 1, 1, "brain"), ("2", 0, 0, "brain")]);
    gateway.stopped().await;
}

async fn a_worker_that_reads_nothing_is_let_go(one: Face, other: Face) {
    let gateway = Gateway::with(|config| {
        config.limits.frame_bytes = 600 << 10;
        config.limits.outbox_bytes = 600 << 10;
        config.limits.unread_bytes = 4 << 20;
        config.limits.request_bytes = 1 << 30;
        config.limits.total_request_bytes = 1 << 30;
        // The ends must not be trimmed by what comes after them.
        config.retention.bytes = 1 << 28;
    })
    .await;
    let mut count = gateway.router.link_count();
    let _stuck = gateway.worker(other, "brain", 1_000).await;
    let mut ann = gateway.peer(one).await;
    let large = format!("\"{}\"", "x".repeat(500_000));
    // More than its sockets take, and what may wait for it besides.
    for at in 0..60 {
        let asked = to(payload("s", &at.to_string(), &large), role("brain"));
        ann.send(hasty(asked, 100, 0)).await;
    }
    let (_, end) = ann.answer("0").await;
    assert!(is(error(&end), Reason::WorkerLost), "{end:?}");
    patiently("the worker to be let go", count.wait_for(|count| *count == 1))
        .await
        .unwrap();
    gateway.stopped().await;
}

#[tokio::test]
async fn a_half_closed_stream_ends_when_it_is_answered() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(Face::Json, "brain", 1).await;
    let mut ann = gateway.member(Face::Grpc, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    ann.half_close();
    let asked = worker.handed().await;
    worker.send(last(&asked, "yes")).await;
    assert_eq!(ann.answer("q").await.0, "yes");
    assert!(matches!(ann.ended().await, Ended::Done));
    gateway.stopped().await;
}

#[tokio::test]
async fn a_worker_that_half_closes_holds_nothing_any_more() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    worker.handed().await;
    worker.half_close();
    assert!(is(error(&ann.answer("q").await.1), Reason::WorkerLost));
    assert!(matches!(worker.ended().await, Ended::Done));
    gateway.stopped().await;
}

#[tokio::test]
async fn limits_are_told() {
    let gateway = Gateway::with(|config| {
        config.limits.open_requests = 1;
        config.limits.joins = 1;
        config.limits.members = 2;
        config.limits.roles = 1;
        config.limits.sessions = 2;
    })
    .await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    ann.send(request("s", "1", "brain")).await;
    ann.send(request("s", "2", "brain")).await;
    let refused = ann.refusal().await;
    assert!(is(&refused, Reason::TooManyRequests));
    assert_eq!(refused.details["limit"], "1");
    ann.control("t", Control::Join(pb::Join::default())).await;
    assert!(is(&ann.refusal().await, Reason::TooManyJoins));
    let _bob = gateway.member(Face::Grpc, "s", "bob").await;
    let mut cy = gateway.peer(Face::Grpc).await;
    cy.control("s", Control::Join(pb::Join::default())).await;
    assert!(is(&cy.refusal().await, Reason::TooManyMembers));
    for role in ["a", "b"] {
        cy.control(
            "",
            Control::Serve(pb::Serve {
                role: role.to_owned(),
                ..pb::Serve::default()
            }),
        )
        .await;
    }
    assert!(is(&cy.refusal().await, Reason::TooManyRoles));
    cy.send(text("t", "", "")).await;
    cy.send(text("u", "", "")).await;
    assert!(is(&cy.refusal().await, Reason::TooManySessions));
    gateway.stopped().await;
}

#[tokio::test]
async fn a_request_sent_again_is_not_waited_for() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(Face::Json, "brain", 1).await;
    let mut ann = gateway.member(Face::Grpc, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    worker.send(last(&asked, "yes")).await;
    ann.answer("q").await;
    ann.send(request("s", "q", "brain")).await;
    assert!(ann.acked("q").await.duplicate);
    ann.half_close();
    assert!(matches!(ann.ended().await, Ended::Done));
    gateway.stopped().await;
}

#[tokio::test]
async fn a_half_closed_stream_ends_with_its_session() {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(Face::Grpc, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    ann.acked("q").await;
    ann.half_close();
    gateway.router.delete("s").await.unwrap();
    assert!(matches!(ann.ended().await, Ended::Done));
    gateway.stopped().await;
}

#[tokio::test]
async fn a_reply_that_ends_a_request_is_logged() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(Face::Json, "brain", 1).await;
    let mut ann = gateway.member(Face::Grpc, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    let fleeting = Frame {
        ephemeral: true,
        ..last(&asked, "yes")
    };
    worker.send(fleeting).await;
    assert!(is(&worker.refusal().await, Reason::InvalidField));
    worker
        .send(Frame {
            ephemeral: true,
            attempt: 7,
            ..chunk(&asked, "progress")
        })
        .await;
    assert!(is(&worker.refusal().await, Reason::Superseded));
    worker.send(last(&asked, "yes")).await;
    assert_eq!(ann.answer("q").await.0, "yes");
    gateway.stopped().await;
}

#[tokio::test]
async fn watchers_count() {
    let gateway = Gateway::with(|config| config.limits.members = 2).await;
    let _ann = gateway.member(Face::Json, "s", "ann").await;
    let mut sessions = gateway.sessions().await;
    let watch = pb::WatchRequest {
        session_id: "s".to_owned(),
        ..pb::WatchRequest::default()
    };
    let _first = sessions.watch(watch.clone()).await.unwrap();
    let second = sessions.watch(watch).await.unwrap_err();
    assert_eq!(reason_of(&second).as_deref(), Some("TOO_MANY_MEMBERS"));
    gateway.stopped().await;
}
