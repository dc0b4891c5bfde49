//! What was acked survives: a gateway is killed under full load, again and again, on the same directory, and everything that it
//! promised is held against what the next one has.
//!
//! Writers on both faces send frames and requests, many at once, as fast as acks allow. Workers stream answers; one of them goes
//! on after each crash where it was, the other one knows of nothing any more. Two readers, one on each face, read it all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use twinspan::frame::{Body, Control, Frame, pb};
use twinspan::router::random_name;

use crate::account::{Account, End};
use crate::actors::{source, whole};
use crate::harness::*;
use crate::process::{Home, Process};

/// How often the gateway is killed; more take longer and prove more.
const KILLS: &str = "TWINSPAN_TEST_KILLS";
/// A seed, in decimal, to run with again.
const SEED: &str = "TWINSPAN_TEST_SEED";
const SESSIONS: u64 = 3;
const WRITERS: u64 = 4;
const WORKERS: u64 = 2;
/// Frames of a writer that wait for their acks.
const IN_FLIGHT: usize = 48;
/// Each so many-th frame of a writer is a request.
const REQUESTS: u64 = 16;
/// A gateway is killed when it has acked at least so many frames, and less than twice as many.
const ACKS: u64 = 250;
/// Frames of a writer that were acked and are sent again to the next gateway. All of them are among those that it must still know.
const AGAIN: usize = 40;
const CHUNKS: usize = crate::actors::CHUNKS;

fn session(number: u64) -> String {
    format!("s-{number}")
}

fn face(number: u64) -> Face {
    [Face::Json, Face::Grpc][number as usize % 2]
}

/// How a frame is known again: by the request that it answers, or by all that it says.
fn mark(frame: &Frame) -> String {
    match &frame.body {
        _ if !frame.reply_to.is_empty() => format!("answer to {}", frame.reply_to),
        Body::Text(text) => format!("{}: {text}", frame.id),
        other => panic!("nobody sent this: {other:?}"),
    }
}

/// A session as a reader has seen it.
#[derive(Default)]
struct Seen {
    account: Account,
    /// The mark of each frame, by its seq.
    marks: Vec<String>,
}

/// One who reads all sessions.
struct Reader {
    face: Face,
    seen: Vec<Seen>,
    /// The requests that have not ended.
    open: BTreeSet<String>,
}

impl Reader {
    fn new(face: Face) -> Self {
        Self {
            face,
            seen: (0..SESSIONS).map(|_| Seen::default()).collect(),
            open: BTreeSet::new(),
        }
    }

    fn note(&mut self, frame: &Frame) {
        assert!(
            frame.seq > 0 || !matches!(frame.body, Body::Error(_)),
            "a reader was refused: {frame:?}"
        );
        let Some(number) = frame.session_id.strip_prefix("s-") else {
            return;
        };
        let seen = &mut self.seen[number.parse::<usize>().unwrap()];
        seen.account.note(frame);
        if frame.seq == 0 {
            return;
        }
        seen.marks.resize_with(seen.account.head as usize, || mark(frame));
        if frame.reply_to.is_empty() && is_request(&frame.id) {
            self.open.insert(frame.id.to_string());
        } else if frame.last {
            self.open.remove(frame.reply_to.as_str());
        }
    }

    /// Goes on where it was, and reads until it has all that was there when it joined.
    async fn catch_up(&mut self, address: SocketAddr) -> Peer {
        let mut peer = Peer::at(address, self.face).await;
        for (number, seen) in self.seen.iter().enumerate() {
            let join = pb::Join {
                after_seq: Some(seen.account.head),
                epoch: seen.account.epoch.clone(),
                ..pb::Join::default()
            };
            peer.control(&session(number as u64), Control::Join(join)).await;
        }
        let mut heads = BTreeMap::new();
        while heads.len() < SESSIONS as usize || !self.has(&heads) {
            let frame = peer.next().await;
            if let Some(Control::Joined(joined)) = control(&frame) {
                heads.insert(frame.session_id.to_string(), joined.head_seq);
            }
            self.note(&frame);
        }
        peer
    }

    fn has(&self, heads: &BTreeMap<String, u64>) -> bool {
        let mut sessions = self.seen.iter().enumerate();
        sessions.all(|(number, seen)| heads[&session(number as u64)] <= seen.account.head)
    }

    /// Reads until the gateway is gone.
    async fn read(mut self, mut peer: Peer) -> Self {
        while let Ok(frame) = peer.receive().await {
            self.note(&frame);
        }
        self
    }

    fn mark(&self, session: u64, seq: u64) -> &str {
        &self.seen[session as usize].marks[seq as usize - 1]
    }
}

/// One who sends frames, and knows which of them were acked.
struct Writer {
    number: u64,
    seed: u64,
    /// The number of the next frame.
    next: u64,
    unacked: BTreeSet<u64>,
    /// Under which seqs.
    acked: BTreeMap<u64, u64>,
    /// Up to which of them was looked into.
    looked: u64,
}

impl Writer {
    fn name(&self) -> String {
        format!("writer-{}", self.number)
    }

    /// Whose number is in an id.
    fn id(&self, number: u64) -> String {
        format!("w{}.{number}", self.number)
    }

    fn random(&self, number: u64) -> Random {
        Random(Random(self.seed ^ (self.number << 32) ^ number).next())
    }

    fn session_of(&self, number: u64) -> u64 {
        self.random(number).below(SESSIONS)
    }

    /// The same number is the same frame, whenever it is sent.
    fn frame(&self, number: u64) -> Frame {
        let mut random = self.random(number);
        let session = session(random.below(SESSIONS));
        let frame = text(&session, &self.id(number), &random.text());
        if !number.is_multiple_of(REQUESTS) {
            return frame;
        }
        let policy = [
            pb::WorkerLoss::Fail,
            pb::WorkerLoss::RetryIfSilent,
            pb::WorkerLoss::Restart,
        ];
        let options = pb::RequestOptions {
            max_attempts: 10,
            ..on_loss(*random.pick(&policy))
        };
        with(to(frame, role("brain")), options)
    }

    async fn connect(&self, address: SocketAddr) -> Peer {
        let mut peer = Peer::at(address, face(self.number)).await;
        for number in 0..SESSIONS {
            let join = pb::Join {
                member_id: self.name(),
                ..pb::Join::default()
            };
            peer.join(&session(number), join).await;
        }
        peer
    }

    /// Sends again what the last gateway did not ack, and some of what it did, and takes what it is told.
    async fn repeat(&mut self, peer: &mut Peer, reader: &Reader) {
        let known: BTreeMap<u64, u64> = self
            .acked
            .iter()
            .rev()
            .take(AGAIN)
            .map(|(number, seq)| (*number, *seq))
            .collect();
        for number in known.keys().chain(&self.unacked) {
            peer.send(self.frame(*number)).await;
        }
        let mut waiting: BTreeSet<u64> = known.keys().copied().chain(self.unacked.iter().copied()).collect();
        while !waiting.is_empty() {
            let frame = peer.next().await;
            for (number, accepted) in self.accepted(&frame) {
                waiting.remove(&number);
                let session = self.session_of(number);
                match known.get(&number) {
                    Some(seq) => assert_eq!((accepted.seq, accepted.duplicate), (*seq, true), "{accepted:?}"),
                    None => {
                        let is_there = accepted.seq <= reader.seen[session as usize].account.head;
                        assert_eq!(accepted.duplicate, is_there, "{accepted:?}");
                        self.take(number, accepted.seq);
                    }
                }
            }
        }
    }

    /// Which of its frames an ack is about.
    fn accepted<'a>(&self, frame: &'a Frame) -> Vec<(u64, &'a pb::Accepted)> {
        assert!(
            frame.seq > 0 || !matches!(frame.body, Body::Error(_)),
            "{} was refused: {frame:?}",
            self.name()
        );
        let Some(Control::Ack(ack)) = control(frame) else {
            return Vec::new();
        };
        let prefix = format!("w{}.", self.number);
        let number = |accepted: &pb::Accepted| accepted.id.strip_prefix(&prefix).unwrap().parse().unwrap();
        ack.accepted
            .iter()
            .map(|accepted| (number(accepted), accepted))
            .collect()
    }

    fn take(&mut self, number: u64, seq: u64) {
        assert!(self.unacked.remove(&number), "{} was acked before", self.id(number));
        self.acked.insert(number, seq);
    }

    /// Writes until the gateway is gone, or until there is enough.
    async fn write(mut self, mut peer: Peer, acks: watch::Sender<u64>, mut enough: watch::Receiver<bool>) -> Self {
        loop {
            let is_enough = *enough.borrow();
            while !is_enough && self.unacked.len() < IN_FLIGHT {
                self.unacked.insert(self.next);
                let frame = self.frame(self.next);
                self.next += 1;
                if !peer.offer(frame).await {
                    return self;
                }
            }
            if is_enough && self.unacked.is_empty() {
                return self;
            }
            let received = tokio::select! {
                received = peer.receive() => received,
                _ = enough.changed(), if !is_enough => continue,
            };
            let Ok(frame) = received else { return self };
            let mut count = 0;
            for (number, accepted) in self.accepted(&frame) {
                assert!(!accepted.duplicate, "it was new: {accepted:?}");
                self.take(number, accepted.seq);
                count += 1;
            }
            acks.send_modify(|acks| *acks += count);
        }
    }

    /// All that was acked is there, under the seq that was told.
    fn check(&mut self, reader: &Reader) {
        let from = std::mem::replace(&mut self.looked, self.next);
        let unlooked = self.acked.range(from.saturating_sub(IN_FLIGHT as u64 * 2)..);
        for (number, seq) in unlooked {
            let expected = mark(&self.frame(*number));
            assert_eq!(reader.mark(self.session_of(*number), *seq), expected, "at {seq}");
        }
    }
}

/// One who answers. What it was handed it remembers over the death of its gateway, if it is such a one.
struct Worker {
    number: u64,
    remembers: bool,
    /// What it is at, and how much of each answer it has said.
    open: Vec<(Frame, usize)>,
    /// What it was acked: the session, the request, the seq.
    acked: Vec<(String, String, u64)>,
}

impl Worker {
    async fn connect(&mut self, address: SocketAddr) -> Peer {
        if !self.remembers {
            self.open.clear();
        }
        let hold = |(asked, _): &(Frame, usize)| pb::Hold {
            session_id: asked.session_id.to_string(),
            request_id: asked.id.to_string(),
            attempt: asked.attempt,
            ..pb::Hold::default()
        };
        let serve = pb::Serve {
            role: "brain".to_owned(),
            worker_id: format!("worker-{}", self.number),
            max_in_flight: 8,
            holds: self.open.iter().map(hold).collect(),
            ..pb::Serve::default()
        };
        let mut peer = Peer::at(address, face(self.number)).await;
        let serving = peer.serve(serve).await;
        let chunks: BTreeMap<_, _> = serving
            .held
            .iter()
            .map(|held| {
                (
                    (held.session_id.as_str(), held.request_id.as_str()),
                    held.chunks as usize,
                )
            })
            .collect();
        self.open
            .retain_mut(|(asked, said)| match chunks.get(&(&*asked.session_id, &*asked.id)) {
                Some(chunks) => {
                    *said = *chunks;
                    true
                }
                None => false,
            });
        peer
    }

    fn hear(&mut self, frame: &Frame) {
        match control(frame) {
            Some(Control::Ack(ack)) => self.acked.extend(
                ack.accepted
                    .iter()
                    .map(|accepted| (accepted.session_id.clone(), accepted.reply_to.clone(), accepted.seq)),
            ),
            _ if frame.attempt > 0 && frame.reply_to.is_empty() => self.open.push((frame.clone(), 0)),
            _ => assert!(!matches!(frame.body, Body::Error(_)), "a worker was refused: {frame:?}"),
        }
    }

    /// Answers until the gateway is gone: one chunk of each answer at a time, never further ahead than the gateway can follow.
    async fn work(mut self, mut peer: Peer) -> Self {
        loop {
            for (asked, said) in &mut self.open {
                let attempt = asked.attempt as usize;
                let reply = match *said < CHUNKS {
                    true => chunk(
                        asked,
                        source(attempt, *said + 1)
                            .strip_prefix(&source(attempt, *said))
                            .unwrap(),
                    ),
                    false => last(asked, whole(attempt).strip_prefix(&source(attempt, CHUNKS)).unwrap()),
                };
                let reply = Frame {
                    attempt: asked.attempt,
                    ..reply
                };
                *said += 1;
                if !peer.offer(reply).await {
                    return self;
                }
            }
            let is_busy = !self.open.is_empty();
            self.open.retain(|(_, said)| *said <= CHUNKS);
            if is_busy {
                let ping = Frame {
                    body: Body::Control(Box::new(Control::Ping(pb::Ping::default()))),
                    ..Frame::default()
                };
                peer.offer(ping).await;
            }
            loop {
                let Ok(frame) = peer.receive().await else { return self };
                self.hear(&frame);
                if !is_busy || matches!(control(&frame), Some(Control::Pong(_))) {
                    break;
                }
            }
            while let Some(Ok(frame)) = peer.receive().now_or_never() {
                self.hear(&frame);
            }
        }
    }

    /// All chunks that were acked are there.
    fn check(&mut self, reader: &Reader) {
        for (session, request, seq) in self.acked.drain(..) {
            let session = session.strip_prefix("s-").unwrap().parse().unwrap();
            assert_eq!(reader.mark(session, seq), format!("answer to {request}"), "at {seq}");
        }
    }
}

/// Everybody, while no gateway runs.
struct All {
    writers: Vec<Writer>,
    workers: Vec<Worker>,
    readers: Vec<Reader>,
}

impl All {
    fn new(seed: u64) -> Self {
        let writer = |number| Writer {
            number,
            seed,
            next: 0,
            unacked: BTreeSet::new(),
            acked: BTreeMap::new(),
            looked: 0,
        };
        let worker = |number| Worker {
            number,
            remembers: number == 0,
            open: Vec::new(),
            acked: Vec::new(),
        };
        Self {
            writers: (0..WRITERS).map(writer).collect(),
            workers: (0..WORKERS).map(worker).collect(),
            readers: [Face::Json, Face::Grpc].map(Reader::new).into(),
        }
    }

    /// Everybody comes back to a new gateway, which is held to what the last one promised, and goes on until it is killed: when
    /// it has acked so many frames, or, with none, when all requests have ended.
    async fn live(mut self, gateway: Process, acks: Option<u64>) -> Self {
        let address = gateway.address;
        let mut peers = Vec::new();
        for reader in &mut self.readers {
            peers.push(reader.catch_up(address).await);
        }
        for reader in &self.readers {
            self.writers.iter_mut().for_each(|writer| writer.check(reader));
        }
        self.workers
            .iter_mut()
            .for_each(|worker| worker.check(&self.readers[0]));
        let mut workers = JoinSet::new();
        for mut worker in self.workers {
            let peer = worker.connect(address).await;
            workers.spawn(worker.work(peer));
        }
        let (enough, is_enough) = watch::channel(acks.is_none());
        let count = watch::Sender::new(0);
        let mut writers = JoinSet::new();
        for mut writer in self.writers {
            let mut peer = writer.connect(address).await;
            writer.repeat(&mut peer, &self.readers[0]).await;
            writers.spawn(writer.write(peer, count.clone(), is_enough.clone()));
        }
        let mut readers = JoinSet::new();
        match acks {
            Some(acks) => {
                for (reader, peer) in self.readers.into_iter().zip(peers) {
                    readers.spawn(reader.read(peer));
                }
                let mut count = count.subscribe();
                patiently("acks", count.wait_for(|count| *count >= acks)).await.unwrap();
                gateway.kill();
            }
            None => {
                for (mut reader, mut peer) in self.readers.into_iter().zip(peers) {
                    while !reader.open.is_empty() {
                        let frame = peer.next().await;
                        reader.note(&frame);
                    }
                    readers.spawn(reader.read(peer));
                }
                gateway.stopped();
            }
        }
        drop(enough);
        let mut all = Self {
            writers: writers.join_all().await,
            workers: workers.join_all().await,
            readers: readers.join_all().await,
        };
        all.writers.sort_by_key(|writer| writer.number);
        all.workers.sort_by_key(|worker| worker.number);
        all
    }
}

fn is_request(id: &str) -> bool {
    let (_, number) = id.split_once('.').unwrap();
    number.parse::<u64>().unwrap().is_multiple_of(REQUESTS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acked_survives_any_death() {
    kill_again_and_again("durable", 1).await;
}

/// Only the machine's own death could lose something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acked_survives_any_death_unsynced() {
    kill_again_and_again("relaxed", 4).await;
}

/// As often as is wanted, or only a part of that.
async fn kill_again_and_again(durability: &str, part: u64) {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from_str_radix(&random_name(), 16).unwrap(),
    };
    let kills: u64 = std::env::var(KILLS).map_or(20, |kills| kills.parse().unwrap()) / part;
    eprintln!("{SEED}={seed}, {kills} kills");
    let mut random = Random(seed);
    let home = Home::new()
        .with("TWINSPAN_DURABILITY", durability)
        .with("TWINSPAN_RETENTION_FRAMES", 10_000_000)
        .with("TWINSPAN_RETENTION_BYTES", "1GiB")
        // However slow the machine, this is not about time.
        .with("TWINSPAN_LIMITS_ACCEPT_TIMEOUT", "300s");
    let mut all = All::new(seed);
    for kill in 0..kills {
        if kill % 10 == 9 {
            // More is asked than can be answered so fast.
            all = all.live(home.start(), None).await;
        }
        let acks = ACKS + random.below(ACKS);
        all = all.live(home.start(), Some(acks)).await;
    }
    all = all.live(home.start(), None).await;
    let gateway = home.start();
    check_in_the_end(&mut all, &gateway).await;
    gateway.stopped();
}

/// Whoever reads it all anew reads the same as those who were there.
async fn check_in_the_end(all: &mut All, gateway: &Process) {
    for face in [Face::Grpc, Face::Json, Face::Binary] {
        let mut anew = Reader::new(face);
        anew.catch_up(gateway.address).await;
        for reader in &all.readers {
            for (seen, anew) in reader.seen.iter().zip(&anew.seen) {
                assert_eq!(seen.account.epoch, anew.account.epoch);
                assert_eq!(seen.marks, anew.marks);
                assert_eq!(seen.account.answers, anew.account.answers);
            }
        }
        for writer in &mut all.writers {
            assert!(writer.unacked.is_empty());
            writer.looked = 0;
            writer.check(&anew);
        }
    }
    let mut answered = 0;
    for seen in &all.readers[0].seen {
        for (id, answer) in seen.account.answers.iter().filter(|(id, _)| is_request(id)) {
            match answer.end.as_ref().unwrap() {
                End::Answered => {
                    assert_eq!(*answer.attempts.last().unwrap(), whole(answer.attempts.len()), "{id}");
                    answered += 1;
                }
                End::Failed(reason) => assert_eq!(reason, "WORKER_LOST", "{id}"),
            }
        }
    }
    let acked: usize = all.writers.iter().map(|writer| writer.acked.len()).sum();
    eprintln!("{acked} frames were acked, {answered} requests were answered");
    assert!(answered > 0);
}
