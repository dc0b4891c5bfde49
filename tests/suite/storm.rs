//! Ten thousand answers at once, while the connections of those who asked are cut at any time, again and again.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use twinspan::frame::{Control, Frame, pb};
use twinspan::router::random_name;

use crate::account::{Account, Answer, End};
use crate::harness::*;

const CLIENTS: usize = 50;
/// Of each client.
const SESSIONS: usize = 100;
/// In each session.
const REQUESTS: usize = 2;
const ANSWERS: usize = CLIENTS * SESSIONS * REQUESTS;
const WORKERS: usize = 10;
const IN_FLIGHT: u32 = 1_024;
/// Of each answer, its final reply included.
const PARTS: usize = 20;
/// How often each client's connection is cut.
const CUTS: usize = 4;
/// A seed, in decimal, to run with again.
const SEED: &str = "TWINSPAN_TEST_SEED";

/// Which answer this is: all have other texts.
#[derive(Clone, Copy)]
struct Place {
    client: usize,
    session: usize,
    request: usize,
}

impl Place {
    fn of(asked: &Frame) -> Self {
        let (client, session) = asked.session_id.split_once('.').unwrap();
        Self {
            client: client.parse().unwrap(),
            session: session.parse().unwrap(),
            request: asked.id.parse().unwrap(),
        }
    }

    fn session_id(self) -> String {
        format!("{}.{}", self.client, self.session)
    }

    /// What the answer to it consists of.
    fn parts(self, seed: u64) -> Vec<String> {
        let number = (self.client * SESSIONS + self.session) * REQUESTS + self.request;
        let mut random = Random(Random(seed ^ number as u64).next());
        (0..PARTS).map(|_| random.text()).collect()
    }
}

fn face(number: usize) -> Face {
    [Face::Json, Face::Grpc, Face::Binary, Face::Grpc][number % 4]
}

/// How far all are.
#[derive(Clone)]
struct Progress {
    /// Requests that workers have.
    asked: watch::Sender<usize>,
    /// Parts of answers that workers have sent.
    sent: watch::Sender<usize>,
}

/// A worker's life: it answers when everything is asked, some parts of this and some of that.
async fn work(mut worker: Peer, seed: u64, mut random: Random, progress: Progress) {
    let mut all = progress.asked.subscribe();
    let mut open = Vec::new();
    loop {
        tokio::select! {
            frame = worker.next() => {
                if frame.attempt > 0 && frame.reply_to.is_empty() {
                    let parts = Place::of(&frame).parts(seed);
                    open.push((frame, parts.into_iter().enumerate()));
                    progress.asked.send_modify(|asked| *asked += 1);
                }
            }
            begun = all.wait_for(|asked| *asked >= ANSWERS) => break drop(begun.unwrap()),
        }
    }
    while !open.is_empty() {
        // What it is sent is read now and then.
        while let Some(frame) = worker.next().now_or_never() {
            assert!(
                matches!(control(&frame), Some(Control::Ack(_))),
                "unexpected: {frame:?}"
            );
        }
        let at = random.below(open.len() as u64) as usize;
        let (asked, parts) = &mut open[at];
        let mut sent = 0;
        for (index, part) in parts.by_ref().take(1 + random.below(PARTS as u64 / 2) as usize) {
            let is_last = index + 1 == PARTS;
            let reply = if is_last {
                last(asked, &part)
            } else {
                chunk(asked, &part)
            };
            worker.send(reply).await;
            sent += 1;
        }
        if parts.len() == 0 {
            drop(open.swap_remove(at));
        }
        progress.sent.send_modify(|all| *all += sent);
        tokio::task::yield_now().await;
    }
    // It stays until everything has arrived.
    while worker.receive().await.is_ok() {}
}

/// One who asks.
struct Client {
    number: usize,
    address: SocketAddr,
    progress: Progress,
    accounts: Vec<Account>,
}

impl Client {
    fn place(&self, session: usize, request: usize) -> Place {
        Place {
            client: self.number,
            session,
            request,
        }
    }

    /// Each second time on the other face.
    async fn connect(&self, cuts: usize) -> Peer {
        let mut peer = Peer::at(self.address, face(self.number + cuts.div_ceil(2))).await;
        for (session, account) in self.accounts.iter().enumerate() {
            let join = pb::Join {
                member_id: format!("client-{}", self.number),
                after_seq: Some(account.head),
                epoch: account.epoch.clone(),
                ..pb::Join::default()
            };
            peer.control(&self.place(session, 0).session_id(), Control::Join(join))
                .await;
        }
        peer
    }

    async fn ask(&self, peer: &mut Peer) {
        for session in 0..SESSIONS {
            for number in 0..REQUESTS {
                let place = self.place(session, number);
                peer.send(request(&place.session_id(), &number.to_string(), "brain"))
                    .await;
            }
        }
    }

    /// Reads until there were so many replies, or until there are no more to come; whether there are.
    async fn read(&mut self, peer: &mut Peer, replies: u64, open: &mut usize) -> bool {
        let mut heard = 0;
        while *open > 0 && heard < replies {
            let frame = peer.next().await;
            if frame.session_id.is_empty() {
                continue;
            }
            let (_, session) = frame.session_id.split_once('.').unwrap();
            self.accounts[session.parse::<usize>().unwrap()].note(&frame);
            if frame.seq > 0 && !frame.reply_to.is_empty() {
                heard += 1;
                *open -= usize::from(frame.last);
            }
        }
        *open > 0
    }

    /// Stays away until workers have sent so much more, or all there is.
    async fn miss(&self, replies: usize) {
        let mut sent = self.progress.sent.subscribe();
        let enough = (*sent.borrow() + replies).min(ANSWERS * PARTS);
        let sent = sent.wait_for(|sent| *sent >= enough);
        drop(patiently("the others to go on", sent).await.unwrap());
    }

    /// Asks, and reads the answers by one connection after the other; how many were cut.
    async fn live(mut self, seed: u64, mut random: Random) -> usize {
        let mut open = SESSIONS * REQUESTS;
        let mut cuts = 0;
        let mut peer = self.connect(cuts).await;
        self.ask(&mut peer).await;
        loop {
            let most = (SESSIONS * REQUESTS * PARTS / (CUTS + 1)) as u64;
            let replies = if cuts < CUTS { 1 + random.below(most) } else { u64::MAX };
            if !self.read(&mut peer, replies, &mut open).await {
                break;
            }
            peer.cut().await;
            cuts += 1;
            // Meanwhile the others go on.
            let missed = random.below((ANSWERS * PARTS / CUTS) as u64) as usize;
            self.miss(missed).await;
            peer = self.connect(cuts).await;
        }
        for (session, account) in self.accounts.iter().enumerate() {
            for number in 0..REQUESTS {
                let whole = Answer {
                    attempts: vec![self.place(session, number).parts(seed).concat()],
                    chunks: PARTS as u32,
                    end: Some(End::Answered),
                };
                assert_eq!(account.answers[&number.to_string()], whole);
            }
            assert_eq!(account.head as usize, REQUESTS * (1 + PARTS));
        }
        cuts
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_answers_at_once() {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from_str_radix(&random_name(), 16).unwrap(),
    };
    eprintln!("{SEED}={seed}");
    let gateway = Gateway::with(|config| {
        config.fold = true;
        // However slow the machine, this is not about time.
        config.limits.accept_timeout = Duration::from_secs(300);
    })
    .await;
    let mut random = Random(seed);
    let progress = Progress {
        asked: watch::Sender::new(0),
        sent: watch::Sender::new(0),
    };
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        let peer = gateway.worker(face(number), "brain", IN_FLIGHT).await;
        workers.spawn(work(peer, seed, Random(random.next()), progress.clone()));
    }
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = Client {
            number,
            address: gateway.address,
            progress: progress.clone(),
            accounts: vec![Account::default(); SESSIONS],
        };
        clients.spawn(client.live(seed, Random(random.next())));
    }
    let mut cuts = 0;
    while let Some(cut) = clients.join_next().await {
        cuts += cut.unwrap();
    }
    assert!(cuts > CLIENTS * CUTS / 2, "only {cuts} cuts");
    let stats = gateway.router.stats();
    assert_eq!(
        (stats.completed, stats.restarts, stats.fenced_frames),
        (ANSWERS as u64, 0, 0)
    );
    gateway.stopped().await;
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
}
