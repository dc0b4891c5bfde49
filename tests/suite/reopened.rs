//! Requests that are open when the gateway dies or stops: they go on in the next one, as their terms say.

use std::time::Duration;

use twinspan::error::Reason;
use twinspan::frame::{Control, Frame, pb};

use crate::account::{Account, Answer, End};
use crate::actors::{finish, say, source, whole};
use crate::harness::*;
use crate::process::{ENDINGS, Ending, Home, Process};

/// The pairs of faces, each with one way to end.
const CASES: [(Face, Face, Ending); 4] = [
    (Face::Json, Face::Grpc, Ending::Kill),
    (Face::Grpc, Face::Json, Ending::Kill),
    (Face::Json, Face::Grpc, Ending::Stop),
    (Face::Grpc, Face::Binary, Ending::Stop),
];

fn worker(name: &str, holds: Vec<pb::Hold>) -> pb::Serve {
    pb::Serve {
        role: "brain".to_owned(),
        worker_id: name.to_owned(),
        max_in_flight: 8,
        holds,
        ..pb::Serve::default()
    }
}

/// A member that remembers what it was told, over all its connections.
struct Member {
    session: &'static str,
    peer: Peer,
    account: Account,
}

impl Member {
    async fn join(gateway: &Process, face: Face, session: &'static str, account: Account) -> Self {
        let join = pb::Join {
            member_id: "ann".to_owned(),
            after_seq: Some(account.head),
            epoch: account.epoch.clone(),
            ..pb::Join::default()
        };
        let (peer, joined) = gateway.member(face, session, join).await;
        assert!(
            joined.resumed && joined.head_seq >= account.head,
            "what was told is there: {joined:?}"
        );
        let account = Account {
            epoch: joined.epoch,
            ..account
        };
        Self { session, peer, account }
    }

    /// The same member, of the next gateway.
    async fn again(self, gateway: &Process, face: Face) -> Self {
        Self::join(gateway, face, self.session, self.account).await
    }

    async fn ask(&mut self, request: Frame) {
        let id = request.id.to_string();
        self.peer.send(request).await;
        self.until("the request", |account| account.answers.contains_key(&id))
            .await;
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&Account) -> bool) {
        let read = async {
            while !is_so(&self.account) {
                let frame = self.peer.next().await;
                self.account.note(&frame);
            }
        };
        patiently(what, read).await;
    }

    fn answer(&self, request: &str) -> &Answer {
        &self.account.answers[request]
    }

    /// How the request ended, and the text of its attempts.
    async fn end(&mut self, request: &str) -> (Vec<String>, End) {
        let has_ended = |account: &Account| account.answers.get(request).is_some_and(|answer| answer.end.is_some());
        self.until("the end", has_ended).await;
        let answer = self.answer(request).clone();
        (answer.attempts, answer.end.unwrap())
    }

    /// What was told to this session before is on the disk once this is, with all that goes with what is written next.
    async fn settle(&mut self) {
        let head = self.account.head;
        self.peer.send(text(self.session, "", "settled")).await;
        self.until("the frame", |account| account.head > head).await;
    }
}

fn failed(reason: Reason) -> End {
    End::Failed(reason.row().name.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_goes_on_where_it_was() {
    for (one, other, ending) in CASES {
        eprintln!("{one:?} and {other:?}, {ending:?}");
        let home = Home::new();
        let gateway = home.start();
        let (mut brain, _) = gateway.serving(other, worker("w", Vec::new())).await;
        let mut ann = Member::join(&gateway, one, "s", Account::default()).await;
        ann.ask(with(request("s", "q", "brain"), on_loss(pb::WorkerLoss::Fail)))
            .await;
        let asked = brain.handed().await;
        say(&mut brain, &asked, 0..5).await;
        ann.until("some of the answer", |account| account.answers["q"].chunks == 5)
            .await;
        gateway.end(ending);

        let gateway = home.start();
        let why = gateway.why("s", "q").await;
        assert_eq!(why.state(), pb::RequestState::Started, "{why:?}");
        let (mut brain, serving) = gateway.serving(one, worker("w", vec![hold(&asked)])).await;
        assert_eq!(serving.held[0].chunks, 5);
        let mut ann = ann.again(&gateway, other).await;
        finish(&mut brain, &asked, 5).await;
        assert_eq!(ann.end("q").await, (vec![whole(1)], End::Answered));
        gateway.stopped();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_come_back() {
    const LOST: [(&str, pb::WorkerLoss, usize); 6] = [
        ("s-0", pb::WorkerLoss::Fail, 0),
        ("s-1", pb::WorkerLoss::Fail, 3),
        ("s-2", pb::WorkerLoss::RetryIfSilent, 0),
        ("s-3", pb::WorkerLoss::RetryIfSilent, 3),
        ("s-4", pb::WorkerLoss::Restart, 0),
        ("s-5", pb::WorkerLoss::Restart, 3),
    ];
    for (one, other, ending) in CASES {
        eprintln!("{one:?} and {other:?}, {ending:?}");
        let home = Home::new().with("TWINSPAN_LIMITS_WORKER_GRACE", "300ms");
        let gateway = home.start();
        let (mut brain, _) = gateway.serving(other, worker("w", Vec::new())).await;
        let mut members = Vec::new();
        for (session, policy, said) in LOST {
            let mut ann = Member::join(&gateway, one, session, Account::default()).await;
            ann.ask(with(request(session, "q", "brain"), on_loss(policy))).await;
            let asked = brain.handed().await;
            say(&mut brain, &asked, 0..said).await;
            ann.until("what was said", |account| account.answers["q"].chunks as usize == said)
                .await;
            ann.settle().await;
            members.push(ann);
        }
        gateway.end(ending);

        let gateway = home.start();
        let mut others = Vec::new();
        for member in members {
            others.push(member.again(&gateway, other).await);
        }
        let (mut second, _) = gateway.serving(one, worker("x", Vec::new())).await;
        let is_retried = |policy, said| match policy {
            pb::WorkerLoss::RetryIfSilent => said == 0,
            policy => policy == pb::WorkerLoss::Restart,
        };
        for _ in LOST.iter().filter(|(_, policy, said)| is_retried(*policy, *said)) {
            let asked = second.handed().await;
            assert_eq!(asked.attempt, 2, "{asked:?}");
            finish(&mut second, &asked, 0).await;
        }
        for (ann, (session, policy, said)) in others.iter_mut().zip(LOST) {
            let expected = match is_retried(policy, said) {
                true => (vec![source(1, said), whole(2)], End::Answered),
                false => (vec![source(1, said)], failed(Reason::WorkerLost)),
            };
            assert_eq!(ann.end("q").await, expected, "{session}");
        }
        gateway.stopped();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_worker_still_waits() {
    for (one, other, ending) in CASES {
        eprintln!("{one:?} and {other:?}, {ending:?}");
        let home = Home::new();
        let gateway = home.start();
        let mut ann = Member::join(&gateway, one, "s", Account::default()).await;
        ann.ask(hasty(request("s", "q", "brain"), 60_000, 100_000)).await;
        gateway.end(ending);

        let gateway = home.start();
        let why = gateway.why("s", "q").await;
        assert_eq!(why.state(), pb::RequestState::Waiting, "{why:?}");
        let total = why.remaining.unwrap().total.unwrap();
        assert!(total.seconds < 100, "it runs on: {total:?}");
        let mut ann = ann.again(&gateway, other).await;
        let (mut brain, _) = gateway.serving(one, worker("w", Vec::new())).await;
        let asked = brain.handed().await;
        assert_eq!(asked.attempt, 1);
        finish(&mut brain, &asked, 0).await;
        assert_eq!(ann.end("q").await, (vec![whole(1)], End::Answered));
        gateway.stopped();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_has_no_more_time_than_it_had() {
    for ending in ENDINGS {
        let home = Home::new();
        let gateway = home.start();
        let (mut brain, _) = gateway.serving(Face::Grpc, worker("w", Vec::new())).await;
        let mut ann = Member::join(&gateway, Face::Json, "s", Account::default()).await;
        ann.ask(hasty(request("s", "q", "brain"), 60_000, 3_000)).await;
        let asked = brain.handed().await;
        ann.settle().await;
        let span = |remaining: Option<pb::Timeouts>| Duration::try_from(remaining.unwrap().total.unwrap()).unwrap();
        let before = span(gateway.why("s", "q").await.remaining);
        gateway.end(ending);

        let gateway = home.start();
        let mut ann = ann.again(&gateway, Face::Grpc).await;
        // Its worker is there; it is the total that is over.
        let (brain, serving) = gateway.serving(Face::Json, worker("w", vec![hold(&asked)])).await;
        if let Some(held) = serving.held.first() {
            let remaining = span(held.remaining);
            assert!(remaining < before, "{remaining:?} of {before:?}");
        }
        assert_eq!(ann.end("q").await.1, failed(Reason::TotalTimeout));
        drop(brain);
        gateway.stopped();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_being_cancelled_ends_cancelled() {
    for (one, other, ending) in CASES {
        eprintln!("{one:?} and {other:?}, {ending:?}");
        let home = Home::new().with("TWINSPAN_LIMITS_CANCEL_GRACE", "100ms");
        let gateway = home.start();
        let (mut brain, _) = gateway.serving(other, worker("w", Vec::new())).await;
        let mut ann = Member::join(&gateway, one, "s", Account::default()).await;
        ann.ask(with(request("s", "q", "brain"), on_loss(pb::WorkerLoss::Restart)))
            .await;
        let asked = brain.handed().await;
        let outcome = ann.peer.cancel("s", "q", 60_000).await;
        assert_eq!(outcome, pb::CancelOutcome::Accepted);
        assert_eq!(brain.stopped().await.request_id, "q");
        gateway.end(ending);

        let gateway = home.start();
        let mut ann = ann.again(&gateway, other).await;
        // It does not matter that its worker is there, and does not stop.
        let (brain, _) = gateway.serving(one, worker("w", vec![hold(&asked)])).await;
        assert_eq!(
            ann.end("q").await,
            (vec![String::new()], failed(Reason::RequestCancelled))
        );
        drop(brain);
        gateway.stopped();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_in_a_queue_keep_their_places() {
    for (one, other, ending) in CASES {
        eprintln!("{one:?} and {other:?}, {ending:?}");
        let home = Home::new();
        let gateway = home.start();
        let (mut brain, _) = gateway.serving(other, worker("w", Vec::new())).await;
        let mut ann = Member::join(&gateway, one, "s", Account::default()).await;
        let ids = ["c", "a", "d", "b"];
        for id in ids {
            ann.ask(with(request("s", id, "brain"), alongside(pb::Concurrency::Queue)))
                .await;
        }
        let asked = brain.handed().await;
        assert_eq!(asked.id, "c");
        say(&mut brain, &asked, 0..1).await;
        ann.until("a chunk", |account| account.answers["c"].chunks == 1).await;
        gateway.end(ending);

        let gateway = home.start();
        let mut ann = ann.again(&gateway, other).await;
        for id in &ids[1..] {
            assert_eq!(gateway.why("s", id).await.state(), pb::RequestState::Queued);
        }
        let (mut brain, serving) = gateway.serving(one, worker("w", vec![hold(&asked)])).await;
        assert_eq!(serving.held.len(), 1);
        finish(&mut brain, &asked, 1).await;
        for id in &ids[1..] {
            let asked = brain.handed().await;
            assert_eq!((asked.id.as_str(), asked.attempt), (*id, 1));
            finish(&mut brain, &asked, 0).await;
        }
        for id in ids {
            assert_eq!(ann.end(id).await, (vec![whole(1)], End::Answered));
        }
        gateway.stopped();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stops_says_so_and_loses_nothing() {
    let home = Home::new();
    let gateway = home.start();
    let (mut brain, _) = gateway.serving(Face::Grpc, worker("w", Vec::new())).await;
    let mut ann = Member::join(&gateway, Face::Json, "s", Account::default()).await;
    ann.ask(with(request("s", "q", "brain"), on_loss(pb::WorkerLoss::Fail)))
        .await;
    let asked = brain.handed().await;
    say(&mut brain, &asked, 0..7).await;
    // Nobody waits for what is on its way when the gateway is asked to stop.
    gateway.stopped();
    for peer in [&mut ann.peer, &mut brain] {
        let mut heard = Vec::new();
        let ended = loop {
            match peer.receive().await {
                Ok(frame) => heard.push(frame),
                Err(ended) => break ended,
            }
        };
        let is_warned = |frame: &Frame| matches!(control(frame), Some(Control::GoAway(_)));
        assert!(heard.iter().any(is_warned), "{heard:?}");
        assert_eq!(ended.reason().as_deref(), Some("SHUTDOWN"), "{ended:?}");
    }
    let gateway = home.start();
    let mut ann = ann.again(&gateway, Face::Grpc).await;
    let (mut brain, serving) = gateway.serving(Face::Json, worker("w", vec![hold(&asked)])).await;
    finish(&mut brain, &asked, serving.held[0].chunks as usize).await;
    assert_eq!(ann.end("q").await, (vec![whole(1)], End::Answered));
    gateway.stopped();
}
