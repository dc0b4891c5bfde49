//! The fault matrix: at every chunk of an answer, its worker, its client or both are killed, stopped, or lose their connection,
//! under each policy. Every request ends once, and what is told of it is one attempt's text at a time, whole.
//!
//! All are still when it happens, so that it happens exactly there; a worker is also struck in full flow, wherever that is.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use futures_util::FutureExt;
use twinspan::error::Reason;
use twinspan::frame::{Body, Control, Frame, pb};

use crate::account::{Account, Answer, End};
use crate::actors::*;
use crate::harness::*;
use crate::scenarios;

scenarios! {
    a_worker_is_killed
    a_client_is_killed
    both_are_killed
    a_worker_is_killed_in_full_flow
    a_worker_is_stopped
    a_worker_is_stopped_in_full_flow
    a_client_is_stopped
    both_are_stopped
    all_take_a_nap
    a_worker_comes_back
    a_worker_comes_back_and_knows_of_nothing
    so_many_may_try
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    /// For longer than the lease.
    Stop,
    /// For a part of the lease.
    Nap,
}

/// To whom it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Worker,
    Client,
    Both,
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Each answer is at its place, and all are still.
    Still,
    /// The worker is sending what is left.
    Flow,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    moment: Moment,
    fault: Fault,
    victim: Victim,
    policy: pb::WorkerLoss,
    client: Face,
    worker: Face,
}

const POLICIES: [pb::WorkerLoss; 3] = [
    pb::WorkerLoss::Fail,
    pb::WorkerLoss::RetryIfSilent,
    pb::WorkerLoss::Restart,
];

/// Whether the request gets another worker, if its worker is lost after so many chunks.
fn is_retried(policy: pb::WorkerLoss, chunks: usize) -> bool {
    match policy {
        pb::WorkerLoss::RetryIfSilent => chunks == 0,
        other => other == pb::WorkerLoss::Restart,
    }
}

/// All that is told of one answer: the text of each attempt, and the end.
type Told = (Vec<String>, Option<End>);

/// What everybody is told of an answer if its worker was lost after so many replies, for this reason.
fn told_of_loss(policy: pb::WorkerLoss, reason: Reason, replies: usize) -> Told {
    match is_retried(policy, replies) {
        _ if replies > CHUNKS => told_of_nothing(),
        true => (vec![source(1, replies), whole(2)], Some(End::Answered)),
        false => (vec![source(1, replies)], Some(failed(reason))),
    }
}

/// What everybody is told if nothing was lost.
fn told_of_nothing() -> Told {
    (vec![whole(1)], Some(End::Answered))
}

fn failed(reason: Reason) -> End {
    End::Failed(reason.row().name.to_owned())
}

/// The other face.
fn across(face: Face) -> Face {
    match face {
        Face::Grpc => Face::Json,
        Face::Json | Face::Binary => Face::Grpc,
    }
}

impl Case {
    fn hits_worker(&self) -> bool {
        self.victim != Victim::Client
    }

    fn hits_client(&self) -> bool {
        self.victim != Victim::Worker
    }

    fn lease(&self) -> Duration {
        match self.fault {
            Fault::Stop if self.hits_worker() => Duration::from_secs(1),
            Fault::Nap => Duration::from_secs(3),
            _ => Duration::from_secs(60),
        }
    }

    /// Why the gateway takes the requests away from the worker, if it does.
    fn loss(&self) -> Option<Reason> {
        match self.fault {
            Fault::Kill if self.hits_worker() => Some(Reason::WorkerLost),
            Fault::Stop if self.hits_worker() => Some(Reason::LeaseExpired),
            _ => None,
        }
    }

    /// What is to be told of the answers, if their first attempts got so far.
    fn expected(&self, replies: impl Fn(usize) -> usize) -> Vec<Told> {
        let told = |place| match (self.loss(), self.moment) {
            (None, _) => told_of_nothing(),
            (Some(reason), Moment::Still) => told_of_loss(self.policy, reason, place),
            (Some(reason), Moment::Flow) => told_of_loss(self.policy, reason, replies(place)),
        };
        (0..PLACES).map(told).collect()
    }

    async fn strike(&self, actor: &mut Actor) {
        match self.fault {
            Fault::Kill => actor.kill().await,
            Fault::Stop | Fault::Nap => actor.stop(),
        }
    }

    /// Says which case it was if it fails.
    async fn run(self) {
        if let Err(panic) = AssertUnwindSafe(self.play()).catch_unwind().await {
            eprintln!("failed: {self:?}");
            resume_unwind(panic);
        }
    }

    async fn play(self) {
        let gateway = Gateway::with(|config| {
            config.limits.lease = self.lease();
            config.fold = self.policy != pb::WorkerLoss::Fail;
        })
        .await;
        let script = |part, face| Script {
            part,
            face,
            address: gateway.address,
        };
        let mut eve = Reader::begin(&gateway, across(self.client)).await;
        let mut worker = Actor::process(script(Part::Worker(Pause::AtPlace), self.worker));
        worker
            .until("serving", |frame| {
                matches!(control(frame), Some(Control::Serving(_))).then_some(())
            })
            .await;
        let mut client = Actor::process(script(Part::Client(self.policy), self.client));
        eve.until_each("the places", |place, answer| answer.chunks as usize == place)
            .await;
        client
            .until_each("the places", |place, answer| answer.chunks as usize == place)
            .await;

        if self.moment == Moment::Flow {
            worker.go_on();
            let begun = |place, answer: &Answer| place > 0 || answer.chunks >= 10;
            eve.until_each("the flow", begun).await;
        }
        if self.hits_client() {
            self.strike(&mut client).await;
        }
        if self.hits_worker() {
            self.strike(&mut worker).await;
        }
        let mut heir = None;
        if self.hits_client() && self.fault != Fault::Nap {
            heir = Some(Heir::begin(&gateway, across(self.client), &mut client).await);
        }
        match self.loss() {
            Some(_) => self.replace(&gateway, &mut eve, &mut worker).await,
            None => self.wait_out(&gateway, &mut worker).await,
        }
        eve.until_each("the ends", |_, answer| answer.end.is_some()).await;

        let mut told = vec![eve.accounts.told(), logged(&gateway).await.told()];
        match heir {
            Some(heir) => told.push(heir.read_to_the_end().await.told()),
            None => {
                if self.hits_client() {
                    client.wake();
                }
                client.until_each("the ends", |_, answer| answer.end.is_some()).await;
                told.push(client.accounts.told());
            }
        }
        let expected = self.expected(|place| eve.accounts.replies(place));
        for told in told {
            assert_eq!(told, expected);
        }
        if self.fault == Fault::Stop && self.hits_client() {
            // It has slept over its own succession.
            client.wake();
            client.until_left().await;
        }
        gateway.stopped().await;
    }

    /// The requests are taken away from the worker, and another one comes.
    async fn replace(&self, gateway: &Gateway, eve: &mut Reader, worker: &mut Actor) {
        eve.until_each("the loss", |_, answer| answer.restarts() == 1 || answer.end.is_some())
            .await;
        let mut second = Actor::here(Script {
            part: Part::Worker(Pause::Halfway),
            face: across(self.worker),
            address: gateway.address,
        });
        eve.until_each("half of the new answers", |_, answer| {
            answer.end.is_some() || answer.chunks as usize == CHUNKS / 2
        })
        .await;
        if self.fault == Fault::Stop {
            self.sleepwalk(gateway, &eve.accounts, worker).await;
        }
        second.go_on();
        eve.until_each("the ends", |_, answer| answer.end.is_some()).await;
    }

    /// The worker is woken, and says what is left of its attempts: it is told each time that this is not wanted any more.
    async fn sleepwalk(&self, gateway: &Gateway, accounts: &Accounts, worker: &mut Actor) {
        if self.moment == Moment::Still {
            worker.go_on();
        }
        worker.wake();
        let left: usize = (0..PLACES).map(|place| CHUNKS + 1 - accounts.replies(place)).sum();
        for _ in 0..left {
            let (place, error) = worker
                .until("a refusal", |frame| match &frame.body {
                    Body::Error(error) => Some((place(&frame.session_id), (**error).clone())),
                    _ => None,
                })
                .await;
            let reason = match is_retried(self.policy, accounts.replies(place)) {
                true => Reason::Superseded,
                false => Reason::RequestEnded,
            };
            assert!(is(&error, reason), "at {place}: {error:?}");
        }
        assert_eq!(gateway.router.stats().fenced_frames, left as u64);
    }

    /// The worker goes on, after a nap if that is its fault.
    async fn wait_out(&self, gateway: &Gateway, worker: &mut Actor) {
        worker.go_on();
        if self.fault == Fault::Nap && self.hits_worker() {
            quiet(gateway, self.lease() / 3).await;
            worker.wake();
        }
    }
}

/// Until the gateway finds the worker to have been silent for so long.
async fn quiet(gateway: &Gateway, span: Duration) {
    let mut now_and_then = tokio::time::interval(Duration::from_millis(5));
    let look = async {
        loop {
            now_and_then.tick().await;
            let workers = gateway.router.list_workers("");
            let quiet = workers[0].quiet.and_then(|quiet| Duration::try_from(quiet).ok());
            if quiet.is_some_and(|quiet| quiet > span) {
                return;
            }
        }
    };
    patiently("the worker to be quiet", look).await;
}

/// All logs, as calls read them.
async fn logged(gateway: &Gateway) -> Accounts {
    let mut sessions = gateway.sessions().await;
    let mut accounts = Accounts::default();
    for place in 0..PLACES {
        let list = pb::ListFramesRequest {
            session_id: session(place),
            page_size: 1_000,
            ..pb::ListFramesRequest::default()
        };
        let listed = sessions.list_frames(list).await.unwrap().into_inner();
        assert_eq!(listed.next_page_token, "");
        accounts.put(place, Account::of(&listed.frames));
    }
    accounts
}

/// The client on the other face, who takes over what the first one had: half of the sessions at once, the others when all is
/// over.
struct Heir(Reader);

impl Heir {
    async fn begin(gateway: &Gateway, face: Face, client: &mut Actor) -> Self {
        let mut heir = Reader {
            peer: gateway.peer(face).await,
            accounts: client.accounts.clone(),
        };
        heir.join(CLIENT, (0..PLACES).step_by(2)).await;
        Self(heir)
    }

    async fn read_to_the_end(mut self) -> Accounts {
        self.0.join(CLIENT, (1..PLACES).step_by(2)).await;
        self.0.until_each("the ends", |_, answer| answer.end.is_some()).await;
        self.0.accounts
    }
}

async fn all_policies(moment: Moment, fault: Fault, victim: Victim, (client, worker): (Face, Face)) {
    let run = |policy| {
        let case = Case {
            moment,
            fault,
            victim,
            policy,
            client,
            worker,
        };
        case.run()
    };
    let [one, two, three] = POLICIES;
    tokio::join!(run(one), run(two), run(three));
}

async fn a_worker_is_killed(one: Face, other: Face) {
    all_policies(Moment::Still, Fault::Kill, Victim::Worker, (one, other)).await;
}

async fn a_worker_is_killed_in_full_flow(one: Face, other: Face) {
    all_policies(Moment::Flow, Fault::Kill, Victim::Worker, (one, other)).await;
}

async fn a_client_is_killed(one: Face, other: Face) {
    all_policies(Moment::Still, Fault::Kill, Victim::Client, (one, other)).await;
}

async fn both_are_killed(one: Face, other: Face) {
    all_policies(Moment::Still, Fault::Kill, Victim::Both, (one, other)).await;
}

async fn a_worker_is_stopped(one: Face, other: Face) {
    all_policies(Moment::Still, Fault::Stop, Victim::Worker, (one, other)).await;
}

async fn a_worker_is_stopped_in_full_flow(one: Face, other: Face) {
    all_policies(Moment::Flow, Fault::Stop, Victim::Worker, (one, other)).await;
}

async fn a_client_is_stopped(one: Face, other: Face) {
    all_policies(Moment::Still, Fault::Stop, Victim::Client, (one, other)).await;
}

async fn both_are_stopped(one: Face, other: Face) {
    all_policies(Moment::Still, Fault::Stop, Victim::Both, (one, other)).await;
}

async fn all_take_a_nap(one: Face, other: Face) {
    let run = |victim| {
        let case = Case {
            moment: Moment::Still,
            fault: Fault::Nap,
            victim,
            policy: pb::WorkerLoss::Restart,
            client: one,
            worker: other,
        };
        case.run()
    };
    tokio::join!(run(Victim::Worker), run(Victim::Client), run(Victim::Both));
}

fn named(holds: Vec<pb::Hold>) -> pb::Serve {
    pb::Serve {
        worker_id: "w".to_owned(),
        holds,
        ..serve()
    }
}

/// A worker with a name that has answered everything up to its place; and who is told of it.
async fn interrupted(gateway: &Gateway, face: Face, policy: pb::WorkerLoss) -> (Peer, Vec<Frame>, Reader) {
    let (mut worker, _) = gateway.serving(face, named(Vec::new())).await;
    let mut eve = Reader::begin(gateway, across(face)).await;
    ask_all(&mut eve.peer, policy).await;
    let handed = hand_all(&mut worker).await;
    for (place, asked) in handed.iter().enumerate() {
        say(&mut worker, asked, 0..place).await;
    }
    eve.until_each("the places", |place, answer| answer.chunks as usize == place)
        .await;
    (worker, handed, eve)
}

async fn a_worker_comes_back(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let (worker, handed, mut eve) = interrupted(&gateway, one, pb::WorkerLoss::Restart).await;
    worker.cut().await;
    let hold = |asked: &Frame| pb::Hold {
        session_id: asked.session_id.to_string(),
        request_id: asked.id.to_string(),
        attempt: asked.attempt,
        chunks: 0,
        ..pb::Hold::default()
    };
    let holds = handed.iter().map(hold).collect();
    let (mut worker, mut serving) = gateway.serving(across(other), named(holds)).await;
    serving.held.sort_by_key(|held| place(&held.session_id));
    let chunks: Vec<_> = serving.held.iter().map(|held| held.chunks as usize).collect();
    assert_eq!(chunks, (0..PLACES).collect::<Vec<_>>());
    for (place, asked) in handed.iter().enumerate() {
        // The last one once more: it had not been acked to it.
        finish(&mut worker, asked, place.saturating_sub(1)).await;
    }
    eve.until_each("the ends", |_, answer| answer.end.is_some()).await;
    let expected = vec![told_of_nothing(); PLACES];
    assert_eq!(eve.accounts.told(), expected);
    assert_eq!(logged(&gateway).await.told(), expected);
    gateway.stopped().await;
}

async fn a_worker_comes_back_and_knows_of_nothing(one: Face, other: Face) {
    for policy in POLICIES {
        let gateway = Gateway::start().await;
        let (worker, _, mut eve) = interrupted(&gateway, one, policy).await;
        worker.cut().await;
        let (mut worker, serving) = gateway.serving(across(other), named(Vec::new())).await;
        assert_eq!(serving.held, []);
        for _ in (0..PLACES).filter(|place| is_retried(policy, *place)) {
            let asked = worker.handed().await;
            finish(&mut worker, &asked, 0).await;
        }
        eve.until_each("the ends", |_, answer| answer.end.is_some()).await;
        let told = |place| told_of_loss(policy, Reason::WorkerLost, place);
        let expected: Vec<_> = (0..PLACES).map(told).collect();
        assert_eq!(eve.accounts.told(), expected, "{policy:?}");
        assert_eq!(logged(&gateway).await.told(), expected, "{policy:?}");
        gateway.stopped().await;
    }
}

async fn so_many_may_try(one: Face, other: Face) {
    const ATTEMPTS: usize = 3;
    let gateway = Gateway::start().await;
    let mut eve = Reader::begin(&gateway, one).await;
    ask_all(&mut eve.peer, pb::WorkerLoss::Restart).await;
    for attempt in 1..=ATTEMPTS {
        let face = if attempt % 2 == 0 { across(other) } else { other };
        let (mut worker, _) = gateway.serving(face, serve()).await;
        for (place, asked) in hand_all(&mut worker).await.iter().enumerate() {
            say(&mut worker, asked, 0..place).await;
        }
        eve.until_each("the places", |place, answer| {
            answer.attempts.len() == attempt && answer.chunks as usize == place
        })
        .await;
        worker.cut().await;
    }
    eve.until_each("the ends", |_, answer| answer.end.is_some()).await;
    let told = |place| {
        let attempts = (1..=ATTEMPTS).map(|attempt| source(attempt, place)).collect();
        (attempts, Some(failed(Reason::AttemptsExhausted)))
    };
    let expected: Vec<_> = (0..PLACES).map(told).collect();
    assert_eq!(eve.accounts.told(), expected);
    assert_eq!(logged(&gateway).await.told(), expected);
    gateway.stopped().await;
}
