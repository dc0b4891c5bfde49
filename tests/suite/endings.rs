//! What becomes of requests when somebody dies, leaves, falls silent, comes back or changes their mind.

use std::time::Duration;

use twinspan::error::Reason;
use twinspan::frame::{Body, Control, Frame, pb};
use twinspan::limits::{Concurrency, Role};

use crate::harness::*;
use crate::scenarios;

scenarios! {
    quiet_is_not_dead
    a_silent_worker_loses_what_it_holds
    a_worker_that_wakes_names_its_attempt
    another_worker_begins_again
    what_was_silent_is_handed_on
    so_many_may_try
    a_lost_worker_comes_back
    a_worker_that_forgot_loses_what_it_held
    a_worker_that_stays_away_loses_all
    a_goodbye_needs_no_grace
    the_newer_of_two_wins
    two_take_over_at_once
    chunks_with_ids_are_counted_by_attempt
    a_final_reply_is_sent_again
    cancelled_while_its_worker_is_away
    a_cancelled_worker_ends_it_itself
    a_cancelled_worker_that_does_not_care
    cancelled_when_the_asker_is_gone
    an_asker_that_is_back_in_time
    the_first_chunk_is_late
    the_next_chunk_is_late
    a_worker_learns_what_remains
    one_after_the_other
    one_at_a_time
    the_newest_only
    a_worker_drains
    the_same_key_the_same_worker
    sessions_take_turns
    who_wants_to_know_is_told
}

fn role_named(role: &str) -> pb::Serve {
    pb::Serve {
        role: role.to_owned(),
        max_in_flight: 8,
        ..pb::Serve::default()
    }
}

fn named(name: &str) -> pb::Serve {
    pb::Serve {
        worker_id: name.to_owned(),
        ..role_named("brain")
    }
}

/// A chunk that says of which attempt it is.
fn of(asked: &Frame, part: &str) -> Frame {
    Frame {
        attempt: asked.attempt,
        ..chunk(asked, part)
    }
}

async fn short_leases() -> Gateway {
    Gateway::with(|config| config.limits.lease = Duration::from_millis(300)).await
}

/// The text that a member has in the end, if it drops what it has when it is told that the answer begins again.
async fn answer(peer: &mut Peer, request: &str) -> (String, Frame, u32) {
    let (mut text, mut restarts) = (String::new(), 0);
    let last = peer
        .until("the final reply", |frame| {
            if frame.reply_to != request || frame.seq == 0 {
                return None;
            }
            match &frame.body {
                Body::Text(part) => text.push_str(part),
                Body::Control(restarted) => {
                    assert!(matches!(**restarted, Control::Restarted(_)));
                    restarts += 1;
                    assert_eq!(frame.attempt, restarts + 1);
                    text.clear();
                }
                _ => {}
            }
            frame.last.then(|| frame.clone())
        })
        .await;
    (text, last, restarts)
}

/// Until the request is where it is wanted.
async fn until_state(gateway: &Gateway, session: &str, request: &str, state: pb::RequestState) -> pb::WhyResponse {
    let look = async {
        loop {
            let why = gateway.why(session, request).await;
            if why.state() == state {
                return why;
            }
            tokio::task::yield_now().await;
        }
    };
    patiently("the request's state", look).await
}

async fn quiet_is_not_dead(one: Face, other: Face) {
    let gateway = short_leases().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(hasty(request("s", "q", "brain"), 0, 1_500)).await;
    worker.handed().await;
    // It reads, and says nothing: five leases long.
    assert_eq!(worker.stopped().await.reason, "TOTAL_TIMEOUT");
    assert!(is(error(&ann.answer("q").await.1), Reason::TotalTimeout));
    gateway.stopped().await;
}

async fn a_silent_worker_loses_what_it_holds(one: Face, other: Face) {
    let gateway = short_leases().await;
    let serve = pb::Serve {
        heartbeats: true,
        ..named("w")
    };
    let (mut worker, serving) = gateway.serving(other, serve).await;
    assert_eq!(serving.lease, ms(300));
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    worker.send(of(&asked, "so far")).await;
    // It answers pings of its transport, but it had promised frames.
    let told = worker.stopped().await;
    assert_eq!((told.request_id.as_str(), told.reason.as_str()), ("q", "LEASE_EXPIRED"));
    let (text, last, _) = answer(&mut ann, "q").await;
    assert_eq!(text, "so far");
    assert!(is(error(&last), Reason::LeaseExpired) && error(&last).retryable);
    worker.send(of(&asked, "too late")).await;
    assert!(is(&worker.refusal().await, Reason::RequestEnded));
    assert_eq!(gateway.router.stats().fenced_frames, 1);
    // It lives: it gets something again.
    ann.send(request("s", "r", "brain")).await;
    assert_eq!(worker.handed().await.id, "r");
    gateway.stopped().await;
}

async fn a_worker_that_wakes_names_its_attempt(one: Face, other: Face) {
    let gateway = short_leases().await;
    let serve = pb::Serve {
        heartbeats: true,
        ..named("w")
    };
    let (mut worker, _) = gateway.serving(other, serve).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(with(request("s", "q", "brain"), on_loss(pb::WorkerLoss::Restart)))
        .await;
    let first = worker.handed().await;
    worker.send(of(&first, "old ")).await;
    assert_eq!(worker.stopped().await.reason, "SUPERSEDED");
    worker.control("", Control::Ping(pb::Ping::default())).await;
    let second = worker.handed().await;
    assert_eq!((first.attempt, second.attempt), (1, 2));
    for late in [of(&first, "of the first"), chunk(&first, "of whichever")] {
        worker.send(late).await;
        assert!(is(&worker.refusal().await, Reason::Superseded));
    }
    worker.send(of(&second, "new")).await;
    worker
        .send(Frame {
            last: true,
            ..of(&second, ".")
        })
        .await;
    let (text, last, restarts) = answer(&mut ann, "q").await;
    assert_eq!((text.as_str(), last.attempt, restarts), ("new.", 2, 1));
    gateway.stopped().await;
}

async fn another_worker_begins_again(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut first = gateway.worker(one, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(other, "s", "bob").await;
    ann.send(with(request("s", "q", "brain"), on_loss(pb::WorkerLoss::Restart)))
        .await;
    let asked = first.handed().await;
    first.send(chunk(&asked, "half an ans")).await;
    bob.until("the first chunk", |frame| (frame.reply_to == "q").then_some(()))
        .await;
    first.cut().await;
    let mut second = gateway.worker(other, "brain", 1).await;
    let again = second.handed().await;
    assert_eq!(again.attempt, 2);
    second.send(chunk(&again, "a whole ")).await;
    second.send(last(&again, "answer")).await;
    for peer in [&mut ann, &mut bob] {
        let (text, last, restarts) = answer(peer, "q").await;
        assert_eq!((text.as_str(), last.attempt, restarts), ("a whole answer", 2, 1));
        assert_eq!(last.index, Some(1), "chunks are counted anew");
    }
    let stats = gateway.router.stats();
    assert_eq!((stats.requests, stats.restarts, stats.completed), (1, 1, 1));
    gateway.stopped().await;
}

async fn what_was_silent_is_handed_on(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut first = gateway.worker(other, "brain", 2).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    for id in ["silent", "begun"] {
        ann.send(with(request("s", id, "brain"), on_loss(pb::WorkerLoss::RetryIfSilent)))
            .await;
        let asked = first.handed().await;
        if id == "begun" {
            first.send(chunk(&asked, "so")).await;
            ann.until("the chunk", |frame| (frame.reply_to == "begun").then_some(()))
                .await;
        }
    }
    first.cut().await;
    assert!(is(error(&ann.answer("begun").await.1), Reason::WorkerLost));
    let mut second = gateway.worker(other, "brain", 2).await;
    let again = second.handed().await;
    assert_eq!((again.id.as_str(), again.attempt), ("silent", 2));
    second.hears_nothing().await;
    second.send(last(&again, "!")).await;
    let mut cy = gateway.reader(one, "s").await;
    assert_eq!(answer(&mut cy, "silent").await.0, "!");
    gateway.stopped().await;
}

async fn so_many_may_try(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let options = pb::RequestOptions {
        max_attempts: 2,
        ..on_loss(pb::WorkerLoss::Restart)
    };
    ann.send(with(request("s", "q", "brain"), options)).await;
    for attempt in 1..=2 {
        let mut worker = gateway.worker(other, "brain", 1).await;
        assert_eq!(worker.handed().await.attempt, attempt);
        worker.cut().await;
    }
    let (_, last, restarts) = answer(&mut ann, "q").await;
    assert_eq!(restarts, 1);
    assert!(is(error(&last), Reason::AttemptsExhausted));
    gateway.stopped().await;
}

async fn a_lost_worker_comes_back(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let (mut worker, serving) = gateway.serving(one, named("w")).await;
    assert!(serving.grace.is_some() && serving.held.is_empty());
    let mut ann = gateway.member(other, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    worker.send(of(&asked, "one ")).await;
    worker.send(of(&asked, "two ")).await;
    ann.until("the second", |frame| (frame.index == Some(1)).then_some(()))
        .await;
    worker.cut().await;
    until_away(&gateway, "w").await;
    let serve = pb::Serve {
        holds: vec![
            hold(&asked),
            pb::Hold {
                request_id: "never".into(),
                ..hold(&asked)
            },
        ],
        ..named("w")
    };
    let (mut worker, serving) = gateway.serving(other, serve).await;
    let [held] = &serving.held[..] else {
        panic!("it holds one: {serving:?}")
    };
    let left = held.remaining.unwrap().total.unwrap();
    assert!(
        Duration::try_from(left).unwrap() > Duration::from_secs(300),
        "it learns what remains"
    );
    let told = pb::Hold {
        remaining: None,
        ..held.clone()
    };
    let expected = pb::Hold {
        chunks: 2,
        ..hold(&asked)
    };
    assert_eq!(told, expected, "it learns how far the gateway is");
    let told = worker.stopped().await;
    assert_eq!(
        (told.request_id.as_str(), told.reason.as_str()),
        ("never", "SUPERSEDED")
    );
    // What it is not sure of, it sends again.
    for (index, part) in [(1, "two "), (2, "three "), (3, "four")] {
        worker
            .send(Frame {
                index: Some(index),
                last: index == 3,
                ..of(&asked, part)
            })
            .await;
    }
    let mut bob = gateway.reader(one, "s").await;
    let (text, last, restarts) = answer(&mut bob, "q").await;
    assert_eq!((text.as_str(), last.attempt, restarts), ("one two three four", 1, 0));
    assert_eq!(gateway.router.stats().workers_resumed, 1);
    gateway.stopped().await;
}

async fn until_away(gateway: &Gateway, name: &str) {
    let look = async {
        loop {
            let workers = gateway.router.list_workers("brain");
            let worker = workers.iter().find(|worker| worker.worker_id == name).unwrap();
            if worker.state() == pb::WorkerState::Away {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    patiently("the worker to be away", look).await;
}

async fn a_worker_that_forgot_loses_what_it_held(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let (mut worker, _) = gateway.serving(other, named("w")).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(with(request("s", "q", "brain"), on_loss(pb::WorkerLoss::Restart)))
        .await;
    ann.send(request("s", "r", "brain")).await;
    worker.handed().await;
    worker.handed().await;
    worker.cut().await;
    until_away(&gateway, "w").await;
    let (mut worker, serving) = gateway.serving(one, named("w")).await;
    assert_eq!(serving.held, []);
    let again = worker.handed().await;
    assert_eq!((again.id.as_str(), again.attempt), ("q", 2));
    assert!(is(error(&ann.answer("r").await.1), Reason::WorkerLost));
    gateway.stopped().await;
}

async fn a_worker_that_stays_away_loses_all(one: Face, other: Face) {
    let gateway = short_leases().await;
    let serve = pb::Serve {
        grace: ms(200),
        ..named("w")
    };
    let (mut worker, _) = gateway.serving(other, serve).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    worker.handed().await;
    worker.cut().await;
    until_away(&gateway, "w").await;
    // Meanwhile it gets nothing.
    ann.send(hasty(request("s", "r", "brain"), 20, 0)).await;
    assert!(is(error(&ann.answer("r").await.1), Reason::AcceptTimeout));
    assert!(is(error(&ann.answer("q").await.1), Reason::WorkerLost));
    assert_eq!(gateway.router.list_workers("brain"), []);
    gateway.stopped().await;
}

async fn a_goodbye_needs_no_grace(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let (mut worker, _) = gateway.serving(other, named("w")).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    worker.handed().await;
    worker.goodbye().await;
    assert!(is(error(&ann.answer("q").await.1), Reason::WorkerLost));
    gateway.stopped().await;
}

async fn the_newer_of_two_wins(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let (mut older, _) = gateway.serving(one, named("w")).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = older.handed().await;
    let serve = pb::Serve {
        holds: vec![hold(&asked)],
        ..named("w")
    };
    let (mut newer, serving) = gateway.serving(other, serve).await;
    assert_eq!((serving.held.len(), serving.held[0].chunks), (1, 0));
    let told = older
        .until("the news", |frame| match control(frame) {
            Some(Control::Retired(retired)) => retired.error.clone(),
            _ => None,
        })
        .await;
    assert!(is(&told, Reason::WorkerReplaced));
    older.send(of(&asked, "from the old one")).await;
    assert!(is(&older.refusal().await, Reason::Superseded));
    ann.send(request("s", "r", "brain")).await;
    assert_eq!(newer.handed().await.id, "r");
    newer
        .send(Frame {
            last: true,
            ..of(&asked, "from the new one")
        })
        .await;
    assert_eq!(ann.answer("q").await.0, "from the new one");
    // What the older one does now is its own affair.
    older.cut().await;
    newer.send(last(&asked, "")).await;
    assert!(is(&newer.refusal().await, Reason::RequestEnded));
    gateway.stopped().await;
}

async fn two_take_over_at_once(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let (mut worker, _) = gateway.serving(other, named("w")).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    // Dropped, it would take its leave.
    let mut before = vec![worker];
    for round in 0..20 {
        let (mut first, mut second) = (gateway.peer(one).await, gateway.peer(other).await);
        let serve = || {
            let serve = pb::Serve {
                holds: vec![hold(&asked)],
                ..named("w")
            };
            Control::Serve(serve)
        };
        tokio::join!(first.control("", serve()), second.control("", serve()));
        // Both take over, one after the other; who came first is told so.
        let retired = async |peer: &mut Peer| {
            peer.until("the news", |frame| match control(frame) {
                Some(Control::Retired(_)) => Some(()),
                _ => None,
            })
            .await;
        };
        let is_first = tokio::select! {
            () = retired(&mut first) => false,
            () = retired(&mut second) => true,
        };
        let (mut winner, mut loser) = if is_first { (first, second) } else { (second, first) };
        loser.send(of(&asked, "lost")).await;
        let refusal = loser.refusal().await;
        assert!(is(&refusal, Reason::Superseded), "round {round}: {refusal:?}");
        let word = Frame {
            id: format!("word-{round}").as_str().into(),
            ..of(&asked, "word ")
        };
        winner.send(word).await;
        winner.acked(&format!("word-{round}")).await;
        before.push(winner);
    }
    assert_eq!(gateway.router.list_workers("brain").len(), 1);
    gateway.stopped().await;
}

async fn chunks_with_ids_are_counted_by_attempt(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(with(request("s", "q", "brain"), on_loss(pb::WorkerLoss::Restart)))
        .await;
    for attempt in 1..=2 {
        // A worker that is begun anew names its frames as it did before.
        let (mut worker, _) = gateway.serving(other, named("w")).await;
        let asked = worker.handed().await;
        assert_eq!(asked.attempt, attempt);
        for (index, part) in ["one ", "two "].into_iter().enumerate() {
            let id = format!("q-{index}");
            worker
                .send(Frame {
                    id: id.as_str().into(),
                    index: Some(index as u32),
                    ..of(&asked, part)
                })
                .await;
            assert!(!worker.acked(&id).await.duplicate);
        }
        if attempt == 2 {
            worker
                .send(Frame {
                    last: true,
                    ..of(&asked, "end")
                })
                .await;
            assert_eq!(answer(&mut ann, "q").await.0, "one two end");
        } else {
            worker.cut().await;
            until_away(&gateway, "w").await;
        }
    }
    gateway.stopped().await;
}

async fn a_final_reply_is_sent_again(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    let end = |part: &str| Frame {
        id: "end".into(),
        ..last(&asked, part)
    };
    worker.send(end("the end")).await;
    let first = worker.acked("end").await;
    worker.send(end("the end")).await;
    let again = worker.acked("end").await;
    assert_eq!((again.seq, again.duplicate), (first.seq, true));
    worker.send(end("another end")).await;
    assert!(is(&worker.refusal().await, Reason::RequestEnded));
    gateway.stopped().await;
}

async fn cancelled_while_its_worker_is_away(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let (mut worker, _) = gateway.serving(other, named("w")).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    worker.cut().await;
    until_away(&gateway, "w").await;
    assert_eq!(ann.cancel("s", "q", 60_000).await, pb::CancelOutcome::Accepted);
    let serve = pb::Serve {
        holds: vec![hold(&asked)],
        ..named("w")
    };
    let (mut worker, serving) = gateway.serving(one, serve).await;
    assert_eq!(serving.held.len(), 1);
    let told = worker.stopped().await;
    assert_eq!((told.reason.as_str(), told.attempt), ("REQUEST_CANCELLED", 1));
    assert!(told.grace.is_some());
    gateway.stopped().await;
}

#[tokio::test]
async fn an_old_request_does_not_count_against_the_lease() {
    let gateway = short_leases().await;
    let (mut worker, _) = gateway.serving(Face::Json, named("w")).await;
    let mut ann = gateway.member(Face::Grpc, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    worker.handed().await;
    ann.cancel("s", "q", 0).await;
    worker.stopped().await;
    // Nobody asks an idle worker for life.
    let idle = async {
        loop {
            let workers = gateway.router.list_workers("brain");
            let quiet = Duration::try_from(workers[0].quiet.unwrap()).unwrap();
            if quiet > Duration::from_millis(700) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    patiently("two leases to pass", idle).await;
    ann.send(hasty(request("s", "r", "brain"), 0, 900)).await;
    worker.handed().await;
    assert_eq!(
        worker.stopped().await.reason,
        "TOTAL_TIMEOUT",
        "it answers when it is asked"
    );
    gateway.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_turns_come_when_the_role_is_full() {
    const COUNT: usize = 1_000;
    let gateway = Gateway::with(|config| {
        config.limits.waiting = 1;
        config.limits.open_requests = COUNT;
        config.limits.ended_requests = COUNT;
    })
    .await;
    let (mut worker, _) = gateway.serving(Face::Grpc, named("w")).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    let mut bob = gateway.member(Face::Json, "t", "bob").await;
    ann.send(with(request("s", "0", "brain"), alongside(pb::Concurrency::Queue)))
        .await;
    let asked = worker.handed().await;
    let drain = pb::Serve {
        drain: true,
        ..named("w")
    };
    worker.serve(drain).await;
    bob.send(request("t", "fills-the-queue", "brain")).await;
    bob.acked("fills-the-queue").await;
    for id in 1..COUNT {
        ann.send(with(
            request("s", &id.to_string(), "brain"),
            alongside(pb::Concurrency::Queue),
        ))
        .await;
    }
    ann.acked(&(COUNT - 1).to_string()).await;
    worker.send(last(&asked, "")).await;
    let end = ann.answer(&(COUNT - 1).to_string()).await.1;
    assert!(is(error(&end), Reason::TooManyWaiting));
    gateway.stopped().await;
}

async fn a_cancelled_worker_ends_it_itself(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(other, "s", "bob").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    assert_eq!(bob.cancel("s", "q", 60_000).await, pb::CancelOutcome::Accepted);
    assert_eq!(worker.stopped().await.grace, ms(60_000));
    let why = gateway.why("s", "q").await;
    assert_eq!(why.state(), pb::RequestState::Cancelling);
    worker.send(chunk(&asked, "as far as I came")).await;
    let body = Body::Error(Box::new(pb::Error {
        code: pb::Code::Cancelled as i32,
        reason: "STOPPED".to_owned(),
        ..pb::Error::default()
    }));
    worker
        .send(Frame {
            body,
            ..last(&asked, "")
        })
        .await;
    let (text, last) = ann.answer("q").await;
    assert_eq!(text, "as far as I came");
    assert_eq!(error(&last).reason, "STOPPED");
    assert_eq!(last.from.unwrap().role, "brain");
    assert_eq!(ann.cancel("s", "q", 0).await, pb::CancelOutcome::AlreadyEnded);
    assert_eq!(gateway.why("s", "q").await.state(), pb::RequestState::Cancelled);
    gateway.stopped().await;
}

async fn a_cancelled_worker_that_does_not_care(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    assert_eq!(ann.cancel("s", "q", 50).await, pb::CancelOutcome::Accepted);
    assert_eq!(worker.stopped().await.grace, ms(50));
    assert_eq!(worker.stopped().await.grace, None, "now it is over");
    let last = ann.answer("q").await.1;
    assert!(is(error(&last), Reason::RequestCancelled));
    assert_eq!(error(&last).message, "the request was cancelled: enough");
    worker.send(chunk(&asked, "I was not done")).await;
    assert!(is(&worker.refusal().await, Reason::RequestEnded));
    ann.hears_nothing().await;
    gateway.stopped().await;
}

fn cancel_after(grace: i64) -> pb::RequestOptions {
    pb::RequestOptions {
        on_disconnect: pb::OnDisconnect::CancelAfter as i32,
        disconnect_grace: ms(grace),
        ..pb::RequestOptions::default()
    }
}

async fn cancelled_when_the_asker_is_gone(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 8).await;
    let mut bob = gateway.member(other, "s", "bob").await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut guest = gateway.peer(one).await;
    ann.send(with(request("s", "gone", "brain"), cancel_after(50))).await;
    ann.send(request("s", "goes-on", "brain")).await;
    worker.handed().await;
    worker.handed().await;
    guest.send(with(request("s", "guest", "brain"), cancel_after(0))).await;
    worker.handed().await;
    let name = pb::Join {
        member_id: "no-guest-any-more".to_owned(),
        ..pb::Join::default()
    };
    guest.join("s", name).await;
    ann.cut().await;
    guest.cut().await;
    for id in ["gone", "guest"] {
        let mut cy = gateway.reader(other, "s").await;
        assert!(is(error(&cy.answer(id).await.1), Reason::AskerGone), "{id}");
    }
    let open = gateway.why("s", "goes-on").await;
    assert_eq!(open.state(), pb::RequestState::Assigned);
    bob.until("the end", |frame| {
        (frame.reply_to == "gone" && frame.last).then_some(())
    })
    .await;
    gateway.stopped().await;
}

async fn an_asker_that_is_back_in_time(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 8).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(with(request("s", "q", "brain"), cancel_after(60_000))).await;
    let asked = worker.handed().await;
    ann.cut().await;
    let mut ann = gateway.member(other, "s", "ann").await;
    worker.send(last(&asked, "there you are")).await;
    assert_eq!(ann.answer("q").await.0, "there you are");
    gateway.stopped().await;
}

fn within(timeouts: pb::Timeouts) -> pb::RequestOptions {
    pb::RequestOptions {
        timeouts: Some(timeouts),
        ..pb::RequestOptions::default()
    }
}

async fn the_first_chunk_is_late(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let hasty = within(pb::Timeouts {
        first_chunk: ms(50),
        ..pb::Timeouts::default()
    });
    ann.send(with(request("s", "q", "brain"), hasty)).await;
    worker.handed().await;
    assert_eq!(worker.stopped().await.reason, "FIRST_CHUNK_TIMEOUT");
    assert!(is(error(&ann.answer("q").await.1), Reason::FirstChunkTimeout));
    assert_eq!(gateway.why("s", "q").await.state(), pb::RequestState::Expired);
    gateway.stopped().await;
}

async fn the_next_chunk_is_late(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let hasty = within(pb::Timeouts {
        first_chunk: ms(60_000),
        idle: ms(400),
        ..pb::Timeouts::default()
    });
    ann.send(with(request("s", "q", "brain"), hasty)).await;
    let asked = worker.handed().await;
    worker.send(chunk(&asked, "one")).await;
    ann.until("the chunk", |frame| (frame.reply_to == "q").then_some(()))
        .await;
    let left = async || {
        let remaining = gateway.why("s", "q").await.remaining.unwrap();
        assert_eq!((remaining.accept, remaining.first_chunk), (None, None));
        Duration::try_from(remaining.idle.unwrap()).unwrap()
    };
    // A note of progress is as good as a chunk.
    let before = patiently("time to pass", async {
        loop {
            let left = left().await;
            if left < Duration::from_millis(200) {
                return left;
            }
        }
    })
    .await;
    worker
        .send(Frame {
            ephemeral: true,
            ..chunk(&asked, "thinking")
        })
        .await;
    ann.until("the note", |frame| frame.ephemeral.then_some(())).await;
    assert!(left().await > before);
    assert_eq!(worker.stopped().await.reason, "IDLE_TIMEOUT");
    assert!(is(error(&ann.answer("q").await.1), Reason::IdleTimeout));
    gateway.stopped().await;
}

async fn a_worker_learns_what_remains(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let options = within(pb::Timeouts {
        accept: ms(5_000),
        first_chunk: ms(6_000),
        idle: ms(7_000),
        total: ms(8_000),
    });
    ann.send(with(request("s", "q", "brain"), options)).await;
    ann.acked("q").await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let asked = worker.handed().await;
    let told = asked.options.as_ref().unwrap().timeouts.unwrap();
    assert_eq!((told.accept, told.first_chunk, told.idle), (None, ms(6_000), ms(7_000)));
    let total = Duration::try_from(told.total.unwrap()).unwrap();
    assert!(total < Duration::from_millis(8_000), "some of it is gone");
    gateway.stopped().await;
}

async fn one_after_the_other(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 8).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    for id in ["1", "2", "3"] {
        ann.send(with(request("s", id, "brain"), alongside(pb::Concurrency::Queue)))
            .await;
    }
    ann.send(request("s", "beside", "brain")).await;
    let first = worker.handed().await;
    assert_eq!(first.id, "1");
    let beside = worker.handed().await;
    assert_eq!(beside.id, "beside");
    let why = gateway.why("s", "3").await;
    assert_eq!((why.state(), why.behind.as_str()), (pb::RequestState::Queued, "2"));
    assert_eq!(why.waits_for(), pb::WaitsFor::ItsTurn);
    assert_eq!(ann.cancel("s", "2", 0).await, pb::CancelOutcome::Accepted);
    worker.send(last(&first, "")).await;
    assert_eq!(worker.handed().await.id, "3");
    gateway.stopped().await;
}

async fn one_at_a_time(one: Face, other: Face) {
    let only = Role {
        concurrency: Some(Concurrency::Reject),
        ..Role::default()
    };
    let gateway = Gateway::with(|config| {
        config.limits.per_role.insert("brain".to_owned(), only);
    })
    .await;
    let mut worker = gateway.worker(other, "brain", 8).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "1", "brain")).await;
    let asked = worker.handed().await;
    ann.send(request("s", "2", "brain")).await;
    let refusal = ann.refusal().await;
    assert!(is(&refusal, Reason::SessionBusy));
    assert_eq!(refusal.details["request_id"], "1");
    let mut bob = gateway.member(one, "t", "bob").await;
    bob.send(request("t", "2", "brain")).await;
    assert_eq!(worker.handed().await.session_id, "t", "other sessions do not mind");
    worker.send(last(&asked, "")).await;
    ann.answer("1").await;
    ann.send(request("s", "2", "brain")).await;
    assert_eq!(worker.handed().await.id, "2");
    gateway.stopped().await;
}

async fn the_newest_only(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    for id in ["1", "2", "2", "3"] {
        ann.send(with(request("s", id, "brain"), alongside(pb::Concurrency::Replace)))
            .await;
    }
    for id in ["1", "2"] {
        assert!(is(error(&ann.answer(id).await.1), Reason::RequestReplaced), "{id}");
    }
    let asked = worker
        .until("the newest", |frame| {
            (frame.id == "3" && frame.attempt > 0).then(|| frame.clone())
        })
        .await;
    worker.send(last(&asked, "three")).await;
    assert_eq!(ann.answer("3").await.0, "three");
    gateway.stopped().await;
}

async fn a_worker_drains(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let (mut first, _) = gateway.serving(other, named("w")).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "1", "brain")).await;
    let asked = first.handed().await;
    let drain = pb::Serve {
        drain: true,
        ..named("w")
    };
    assert!(first.serve(drain).await.draining);
    ann.send(request("s", "2", "brain")).await;
    ann.acked("2").await;
    let why = until_state(&gateway, "s", "2", pb::RequestState::Waiting).await;
    assert_eq!(why.waits_for(), pb::WaitsFor::AWorkerThatStays);
    assert_eq!((why.place, why.waiting), (1, 1));
    first.send(last(&asked, "done")).await;
    assert_eq!(ann.answer("1").await.0, "done");
    let (mut second, _) = gateway.serving(one, named("v")).await;
    let asked = second.handed().await;
    assert_eq!(asked.id, "2");

    // An operator has the other one drained, who is told.
    let mut admin = gateway.admin().await;
    let drain = |worker_id: &str| pb::DrainWorkerRequest {
        role: "brain".to_owned(),
        worker_id: worker_id.to_owned(),
    };
    let drained = admin.drain_worker(drain("v")).await.unwrap().into_inner();
    assert_eq!((drained.state(), drained.in_flight), (pb::WorkerState::Draining, 1));
    let refused = admin.drain_worker(drain("nobody")).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("WORKER_NOT_FOUND"));
    second
        .until("the news", |frame| match control(frame) {
            Some(Control::Serving(serving)) => serving.draining.then_some(()),
            _ => None,
        })
        .await;
    second.send(last(&asked, "")).await;
    ann.answer("2").await;
    ann.send(request("s", "3", "brain")).await;
    ann.acked("3").await;
    until_state(&gateway, "s", "3", pb::RequestState::Waiting).await;
    // It changes its mind.
    second.control("", Control::Serve(named("v"))).await;
    assert_eq!(second.handed().await.id, "3");
    gateway.stopped().await;
}

async fn the_same_key_the_same_worker(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let alike = || pb::RequestOptions {
        affinity: "model-7".to_owned(),
        ..pb::RequestOptions::default()
    };
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(one, "t", "bob").await;
    let mut first = gateway.worker(other, "brain", 3).await;
    ann.send(with(request("s", "1", "brain"), alike())).await;
    first.handed().await;
    let mut roomier = gateway.worker(other, "brain", 9).await;
    bob.send(with(request("t", "2", "brain"), alike())).await;
    assert_eq!(first.handed().await.session_id, "t");
    bob.send(request("t", "3", "brain")).await;
    assert_eq!(first.handed().await.id, "3", "the session's last worker");
    bob.send(with(request("t", "4", "brain"), alike())).await;
    assert_eq!(roomier.handed().await.id, "4", "the first is full");
    gateway.stopped().await;
}

async fn sessions_take_turns(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "greedy", "ann").await;
    let mut bob = gateway.member(one, "modest", "bob").await;
    for id in ["1", "2", "3"] {
        ann.send(request("greedy", id, "brain")).await;
        ann.acked(id).await;
    }
    bob.send(request("modest", "4", "brain")).await;
    bob.acked("4").await;
    for (session, id, place) in [
        ("greedy", "1", 1),
        ("modest", "4", 2),
        ("greedy", "2", 3),
        ("greedy", "3", 4),
    ] {
        let why = until_state(&gateway, session, id, pb::RequestState::Waiting).await;
        assert_eq!((why.place, why.waiting), (place, 4), "{id}: {}", why.summary);
        assert_eq!(why.waits_for(), pb::WaitsFor::AWorker);
    }
    let mut worker = gateway.worker(other, "brain", 1).await;
    for id in ["1", "4", "2", "3"] {
        let asked = worker.handed().await;
        assert_eq!(asked.id, id);
        worker.send(last(&asked, "")).await;
    }
    gateway.stopped().await;
}

async fn who_wants_to_know_is_told(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut bob = gateway.peer(one).await;
    let curious = pb::Join {
        requests: true,
        ..pb::Join::default()
    };
    bob.join("s", curious).await;
    let mut ann = gateway.member(other, "s", "ann").await;
    let mut told = async |ann: &mut Peer| {
        let changed = bob.until("the news", |frame| match control(frame) {
            Some(Control::RequestChanged(changed)) => changed.request.clone(),
            _ => None,
        });
        let request = changed.await;
        ann.hears_nothing().await;
        assert!(request.changed_at.is_some() && request.accepted_at.is_some());
        (request.request_id.clone(), request.state(), request.worker_id.clone())
    };
    ann.send(request("s", "q", "brain")).await;
    ann.acked("q").await;
    ann.logged().await;
    let state = pb::RequestState::Waiting;
    assert_eq!(told(&mut ann).await, ("q".to_owned(), state, String::new()));
    let (mut worker, _) = gateway.serving(other, named("w")).await;
    worker.handed().await;
    let state = pb::RequestState::Assigned;
    assert_eq!(told(&mut ann).await, ("q".to_owned(), state, "w".to_owned()));
    assert_eq!(ann.cancel("s", "q", 60_000).await, pb::CancelOutcome::Accepted);
    let state = pb::RequestState::Cancelling;
    assert_eq!(told(&mut ann).await, ("q".to_owned(), state, "w".to_owned()));
    gateway.stopped().await;
}

#[tokio::test]
async fn a_call_bounds_its_request() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    let mut sessions = gateway.sessions().await;
    let publish = |frame| {
        tonic::Request::new(pb::PublishRequest {
            frame: Some(frame),
            member_id: String::new(),
        })
    };
    let mut call = publish(request("s", "q", "brain"));
    call.set_timeout(Duration::from_secs(30));
    sessions.publish(call).await.unwrap();
    let told = worker.handed().await.options.unwrap().timeouts.unwrap();
    let total = Duration::try_from(told.total.unwrap()).unwrap();
    assert!(
        total <= Duration::from_secs(30) && total > Duration::from_secs(20),
        "{total:?}"
    );
    let refused = sessions
        .publish(publish(with(request("s", "r", "brain"), cancel_after(50))))
        .await;
    assert_eq!(reason_of(&refused.unwrap_err()).as_deref(), Some("INVALID_FIELD"));
    gateway.stopped().await;
}

#[tokio::test]
async fn what_a_deletion_ends_is_counted() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(Face::Json, "brain", 1).await;
    let mut ann = gateway.member(Face::Grpc, "s", "ann").await;
    for id in ["1", "2"] {
        ann.send(with(request("s", id, "brain"), alongside(pb::Concurrency::Queue)))
            .await;
    }
    assert_eq!(worker.handed().await.id, "1");
    ann.acked("2").await;
    let delete = pb::DeleteRequest {
        session_id: "s".to_owned(),
    };
    gateway.sessions().await.delete(delete).await.unwrap();
    let told = worker.stopped().await;
    assert_eq!(
        (told.request_id.as_str(), told.reason.as_str()),
        ("1", "SESSION_DELETED")
    );
    worker.hears_nothing().await;
    let stats = gateway
        .admin()
        .await
        .stats(pb::StatsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((stats.requests, stats.failed, stats.open_requests), (2, 2, 0));
    gateway.stopped().await;
}

#[tokio::test]
async fn why_a_request_is_where_it_is() {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    let serve = pb::Serve {
        sessions: vec!["other".to_owned()],
        ..named("elsewhere")
    };
    let _elsewhere = gateway.serving(Face::Grpc, serve).await;
    ann.send(request("s", "q", "brain")).await;
    let why = until_waits(&gateway, "q", pb::WaitsFor::AWorkerOfTheSession).await;
    let workers = why.workers.unwrap();
    assert_eq!((workers.total, workers.serving), (1, 0));
    let serve = pb::Serve {
        max_in_flight: 1,
        ..named("w")
    };
    let (mut worker, _) = gateway.serving(Face::Grpc, serve).await;
    let asked = worker.handed().await;
    ann.send(request("s", "r", "brain")).await;
    let why = until_waits(&gateway, "r", pb::WaitsFor::Room).await;
    assert_eq!((why.place, why.waiting, why.workers.unwrap().full), (1, 1, 1));
    let why = gateway.why("s", "q").await;
    assert_eq!(why.state(), pb::RequestState::Assigned);
    assert_eq!(why.request.as_ref().unwrap().worker_id, "w");
    assert!(why.summary.contains("Worker w"), "{}", why.summary);
    worker.send(chunk(&asked, "so")).await;
    until_state(&gateway, "s", "q", pb::RequestState::Started).await;
    worker.send(last(&asked, "it is")).await;
    let why = until_state(&gateway, "s", "q", pb::RequestState::Completed).await;
    let end = ann.answer("q").await.1;
    assert_eq!(why.final_seq, end.seq);
    let unknown = pb::WhyRequest {
        session_id: "s".to_owned(),
        request_id: "never".to_owned(),
    };
    let refused = gateway.sessions().await.why(unknown).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("REQUEST_NOT_FOUND"));
    gateway.stopped().await;
}

async fn until_waits(gateway: &Gateway, request: &str, reason: pb::WaitsFor) -> pb::WhyResponse {
    let mut sessions = gateway.sessions().await;
    let look = async {
        loop {
            let why = pb::WhyRequest {
                session_id: "s".to_owned(),
                request_id: request.to_owned(),
            };
            // It may not be there yet.
            if let Ok(why) = sessions.why(why).await
                && why.get_ref().waits_for() == reason
                && why.get_ref().place > 0
            {
                return why.into_inner();
            }
        }
    };
    patiently("the reason", look).await
}
