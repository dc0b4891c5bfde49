//! A seeded simulation of the session machine and dispatch against a small model. The model keeps what happened as plain
//! lists and knows the guarantees; the simulation plays the shell, badly on purpose: it drops, repeats and reorders what a
//! shell would do, lets the log refuse, and kills workers at any moment. A failure names its seed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::dispatch::{Dispatch, Offer, Placed, Ticket};
use super::*;

struct Random(u64);

impl Random {
    /// SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize].clone())
    }
}

/// What the log holds of a reply.
#[derive(Debug, PartialEq, Eq)]
enum Logged {
    Other,
    Request(Str),
    Chunk(Str, u32),
    End(Str),
}

#[derive(Debug, Clone)]
struct Held {
    worker: WorkerKey,
    attempt: u32,
    chunks: u32,
}

/// What must be true, kept the simple way.
#[derive(Default)]
struct Model {
    log: Vec<Logged>,
    ids: HashMap<(Str, Str), u64>,
    recent: Vec<(Str, Str)>,
    open: BTreeMap<String, Option<Held>>,
    deadlines: HashMap<String, (Instant, Instant)>,
    workers: BTreeMap<WorkerKey, u32>,
    members: BTreeMap<String, Seat>,
}

struct World {
    random: Random,
    now: Now,
    session: Session<u64>,
    dispatch: Dispatch,
    model: Model,
    next: u64,
    closed: bool,
}

const ROLES: [&str; 2] = ["brain", "hands"];
const SENDERS: [&str; 3] = ["ann", "bob", "cy"];

fn limits() -> Limits {
    Limits {
        members: 4,
        open_requests: 6,
        dedup_ids: 8,
        ended_requests: 4,
        ..Limits::default()
    }
}

impl World {
    fn new(seed: u64) -> Self {
        #[allow(clippy::disallowed_methods, reason = "only the start: it moves by itself from there")]
        let now = Now {
            mono: Instant::now(),
            wall: SystemTime::UNIX_EPOCH,
        };
        Self {
            random: Random(seed),
            now,
            session: Session::new("s".into(), "e".into(), Arc::new(limits()), now.wall),
            dispatch: Dispatch::new(3),
            model: Model::default(),
            next: 0,
            closed: false,
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0..=2 => self.event(),
            3..=5 => self.request(),
            6..=9 => self.reply(),
            10 => self.cancel(),
            11 => self.time_passes(),
            12 => self.worker_comes(),
            13 => self.worker_goes(),
            14 => self.member_comes_or_goes(),
            _ => self.reader_begins(),
        }
        self.check();
    }

    /// The log takes the plan's frame, or, now and then, refuses it: then nothing may have happened.
    fn append(&mut self, plan: Plan, logged: Logged) -> Option<(u64, Vec<Effect>)> {
        if self.random.one_in(20) {
            return None;
        }
        assert_eq!(plan.seq, self.model.log.len() as u64 + 1, "seqs have no holes");
        self.model.log.push(logged);
        let seq = plan.seq;
        let first = 1 + self.random.below(seq).min(seq.saturating_sub(5));
        let first = first.max(self.session.first());
        let effects = self.session.apply(plan, first, seq, self.now);
        Some((seq, effects))
    }

    fn sent(&mut self, sender: &Str, id: &Str) -> Option<u64> {
        let known = self.model.recent.contains(&(sender.clone(), id.clone()));
        known.then(|| self.model.ids[&(sender.clone(), id.clone())])
    }

    fn remember(&mut self, sender: &Str, id: &Str, seq: u64) {
        self.model.ids.insert((sender.clone(), id.clone()), seq);
        self.model.recent.push((sender.clone(), id.clone()));
        let over = self.model.recent.len().saturating_sub(limits().dedup_ids);
        self.model.recent.drain(..over);
    }

    fn event(&mut self) {
        let sender = Str::from(self.random.pick(&SENDERS).unwrap());
        let id = Str::from(format!("m{}", self.random.below(12)));
        let to = self.random.pick(&SENDERS).unwrap();
        let private = self.random.one_in(3);
        let kind = if private { Kind::Private { to } } else { Kind::Event };
        let before = self.sent(&sender, &id);
        let verdict = self.session.plan_post(&Post {
            sender: &sender,
            id: &id,
            kind,
        });
        match verdict {
            Ok(Verdict::Duplicate { seq, .. }) => assert_eq!(Some(seq), before, "a duplicate gets the first one's seq"),
            Ok(Verdict::Append(plan)) => {
                assert_eq!(before, None, "what was seen is not logged again");
                assert!(!self.closed, "a closed session is not written");
                if let Some((seq, effects)) = self.append(plan, Logged::Other) {
                    assert_eq!(effects, []);
                    self.remember(&sender, &id, seq);
                }
            }
            Err(refusal) if refusal.reason == Reason::MemberNotFound => {
                assert!(private && to != &*sender && !self.model.members.contains_key(to));
            }
            Err(refusal) => assert!(self.closed && refusal.reason == Reason::SessionClosed, "{refusal}"),
        }
    }

    fn request(&mut self) {
        let sender = Str::from(self.random.pick(&SENDERS).unwrap());
        let id = Str::from(format!("r{}", self.random.below(self.next + 4)));
        let role = Str::from(self.random.pick(&ROLES).unwrap());
        let accept = Duration::from_secs(1 + self.random.below(20));
        let total = Duration::from_secs(1 + self.random.below(40));
        let before = self.sent(&sender, &id);
        let post = Post {
            sender: &sender,
            id: &id,
            kind: Kind::Request {
                role: &role,
                accept,
                total,
            },
        };
        match self.session.plan_post(&post) {
            Ok(Verdict::Duplicate { seq, .. }) => assert_eq!(Some(seq), before),
            Ok(Verdict::Append(plan)) => {
                assert!(before.is_none() && !self.closed && !self.model.open.contains_key(&*id));
                let Some((seq, effects)) = self.append(plan, Logged::Request(id.clone())) else {
                    return;
                };
                self.remember(&sender, &id, seq);
                self.model.open.insert(id.to_string(), None);
                let until = (self.now.mono + accept.min(total), self.now.mono + total);
                self.model.deadlines.insert(id.to_string(), until);
                self.carry_out(effects);
            }
            Err(refusal) => match refusal.reason {
                Reason::SessionClosed => assert!(self.closed),
                Reason::RequestIdInUse => assert!(self.model.open.contains_key(&*id)),
                Reason::TooManyRequests => assert_eq!(self.model.open.len(), limits().open_requests),
                _ => panic!("{refusal}"),
            },
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Submit { request, role, prefer } => {
                    let ticket = Ticket {
                        session: "s".into(),
                        request: request.clone(),
                    };
                    match self.dispatch.submit(ticket, &role, prefer) {
                        Ok(Placed::With(worker)) => self.hand(&request, worker),
                        Ok(Placed::Waiting) => {}
                        Err(_) => self.end(&request, Cause::TooManyWaiting),
                    }
                }
                Effect::Withdraw { request, role } => {
                    self.dispatch.withdraw(
                        &Ticket {
                            session: "s".into(),
                            request,
                        },
                        &role,
                    );
                }
                Effect::Release { worker } => self.release(worker),
                Effect::Stop { worker, request, .. } => {
                    assert!(
                        !self.model.open.contains_key(&*request),
                        "a worker is stopped when the request is over"
                    );
                    let _ = worker;
                }
            }
        }
    }

    fn release(&mut self, worker: WorkerKey) {
        for ticket in self.dispatch.release(worker) {
            self.hand(&ticket.request, worker);
        }
    }

    fn hand(&mut self, request: &Str, worker: WorkerKey) {
        match self.session.assign(request, worker) {
            None => self.release(worker),
            Some(attempt) => {
                let open = self
                    .model
                    .open
                    .get_mut(&**request)
                    .expect("only open requests are handed out");
                assert!(open.is_none(), "a request is handed to one worker");
                *open = Some(Held {
                    worker,
                    attempt,
                    chunks: 0,
                });
                assert!(
                    self.model.workers.contains_key(&worker),
                    "only to workers that are there"
                );
            }
        }
    }

    fn reply(&mut self) {
        let open: Vec<_> = self.model.open.keys().cloned().collect();
        let request = match self.random.one_in(8) {
            true => Str::from(format!("r{}", self.random.below(self.next + 4))),
            false => Str::from(self.random.pick(&open).unwrap_or_default()),
        };
        let held = self.model.open.get(&*request).cloned().flatten();
        let right = held.as_ref().map_or(ConnectionId(1), |held| held.worker.connection);
        let connection = if self.random.one_in(8) {
            ConnectionId(right.0 + 1)
        } else {
            right
        };
        let attempt = if self.random.one_in(8) { 7 } else { 0 };
        let next = held.as_ref().map_or(0, |held| held.chunks);
        let index = match self.random.below(6) {
            0 => Some(next),
            1 => Some(next + 1),
            2 => next.checked_sub(1),
            _ => None,
        };
        let last = self.random.one_in(4);
        let reply = Reply {
            request: &request,
            connection,
            attempt,
            index,
            last,
        };
        let verdict = self.session.plan_post(&Post {
            sender: &"w".into(),
            id: &Str::EMPTY,
            kind: Kind::Reply(reply),
        });
        let fits = held
            .as_ref()
            .is_some_and(|held| held.worker.connection == connection && attempt == 0);
        match verdict {
            Ok(Verdict::Append(plan)) => {
                assert!(
                    fits && index.is_none_or(|index| index == next),
                    "only the holder's next chunk is logged"
                );
                assert_eq!(plan.index, Some(next));
                let logged = if last {
                    Logged::End(request.clone())
                } else {
                    Logged::Chunk(request.clone(), next)
                };
                let Some((_, effects)) = self.append(plan, logged) else {
                    return;
                };
                match last {
                    true => drop(self.model.open.remove(&*request)),
                    false => self.model.open.get_mut(&*request).unwrap().as_mut().unwrap().chunks += 1,
                }
                self.carry_out(effects);
            }
            Ok(Verdict::Duplicate { index: last, .. }) => {
                assert!(fits && index.is_some_and(|index| index < next) && last == Some(next - 1));
            }
            Err(refusal) => match refusal.reason {
                Reason::ChunkOutOfOrder => assert!(fits && index > Some(next)),
                Reason::Superseded => assert!(attempt != 0),
                Reason::NotYourRequest => assert!(held.is_none_or(|held| held.worker.connection != connection)),
                Reason::RequestEnded | Reason::RequestNotFound => assert!(!self.model.open.contains_key(&*request)),
                _ => panic!("{refusal}"),
            },
        }
    }

    fn end(&mut self, request: &str, cause: Cause) {
        // An end that the log refuses is tried again, as the shell does.
        while self.model.open.contains_key(request) {
            let plan = self
                .session
                .plan_end(request, cause)
                .expect("an open request can be ended");
            if let Some((_, effects)) = self.append(plan, Logged::End(request.into())) {
                self.model.open.remove(request);
                self.carry_out(effects);
            }
        }
    }

    fn cancel(&mut self) {
        let request = format!("r{}", self.random.below(self.next + 4));
        match self.model.open.contains_key(&request) {
            true => self.end(&request, Cause::Cancelled),
            false => {
                let refusal = self.session.plan_end(&request, Cause::Cancelled).unwrap_err();
                assert!(matches!(refusal.reason, Reason::RequestEnded | Reason::RequestNotFound));
            }
        }
    }

    fn time_passes(&mut self) {
        self.now.mono += Duration::from_millis(self.random.below(8_000));
        let due = self.session.due(self.now.mono);
        for (request, due) in due {
            let (accept, total) = self.model.deadlines[&*request];
            match due {
                Due::Total => assert!(total <= self.now.mono),
                Due::Accept => assert!(accept <= self.now.mono),
            }
            if due == Due::Accept && !self.session.is_waiting(&request) {
                assert!(
                    self.model.open.get(&*request).is_none_or(Option::is_some),
                    "it got a worker, or is over"
                );
                continue;
            }
            self.end(
                &request,
                if due == Due::Total {
                    Cause::TotalTimeout
                } else {
                    Cause::NoWorker
                },
            );
        }
        for (request, held) in &self.model.open {
            let (accept, total) = self.model.deadlines[request];
            let until = if held.is_none() { accept } else { total };
            assert!(until > self.now.mono, "{request} outlived its deadline");
        }
    }

    fn worker_comes(&mut self) {
        if self.model.workers.len() >= 4 {
            return;
        }
        let key = WorkerKey {
            connection: ConnectionId(self.fresh() * 10),
            slot: 0,
        };
        let role = Str::from(self.random.pick(&ROLES).unwrap());
        let max_in_flight = 1 + self.random.below(3) as u32;
        self.model.workers.insert(key, max_in_flight);
        for ticket in self.dispatch.register(
            key,
            Offer {
                role,
                sessions: Vec::new(),
                max_in_flight,
            },
        ) {
            self.hand(&ticket.request, key);
        }
    }

    fn worker_goes(&mut self) {
        let workers: Vec<_> = self.model.workers.keys().copied().collect();
        let Some(key) = self.random.pick(&workers) else { return };
        self.model.workers.remove(&key);
        self.dispatch.unregister(key);
        for request in self.session.held_by(key.connection) {
            self.end(&request, Cause::WorkerLost);
        }
    }

    fn member_comes_or_goes(&mut self) {
        let name = Str::from(self.random.pick(&SENDERS).unwrap());
        if self.random.one_in(3) {
            let seat = self.model.members.get(&*name).copied();
            let stale = Seat {
                connection: ConnectionId(0),
                number: 0,
            };
            assert!(
                self.session.leave(&name, stale).is_none(),
                "an old place is nobody's any more"
            );
            if let Some(seat) = seat {
                assert!(self.session.leave(&name, seat).is_some());
                self.model.members.remove(&*name);
            }
            return;
        }
        let seat = Seat {
            connection: ConnectionId(self.fresh()),
            number: self.next,
        };
        let member = Member {
            name: name.clone(),
            role: "client".into(),
            subject: Str::EMPTY,
            seat,
            joined_at: self.now.wall,
        };
        let entry = self.session.join(member, &Start::default()).expect("three names fit");
        assert_eq!(entry.replaced, self.model.members.insert(name.to_string(), seat));
    }

    fn reader_begins(&mut self) {
        let (first, head) = (self.session.first(), self.session.head());
        let after = self.random.below(head + 3);
        match self.session.begin(&Start {
            after: Some(after),
            epoch: Str::EMPTY,
            tail: 0,
        }) {
            Ok(begin) => {
                assert_eq!(begin.next, after + 1, "a reader goes on where it was");
                assert_eq!(begin.resumed, after + 1 >= first);
            }
            Err(refusal) => assert!(refusal.reason == Reason::AfterSeqAhead && after > head),
        }
        let foreign = Start {
            after: Some(after),
            epoch: "other".into(),
            tail: 0,
        };
        let begin = self.session.begin(&foreign).unwrap();
        assert!(!begin.resumed && begin.next == first && begin.void_from == Some(after + 1));
        let tail = self.random.below(10) as u32;
        let begin = self
            .session
            .begin(&Start {
                after: None,
                epoch: Str::EMPTY,
                tail,
            })
            .unwrap();
        assert!((first..=head + 1).contains(&begin.next) && head + 1 - begin.next <= u64::from(tail));
    }

    fn check(&mut self) {
        assert_eq!(self.session.head(), self.model.log.len() as u64);
        assert!(self.session.first() <= self.session.head() + 1);
        let open: BTreeSet<_> = self
            .session
            .open_requests()
            .iter()
            .map(|open| open.id.to_string())
            .collect();
        assert!(open.iter().eq(self.model.open.keys()), "the same requests are open");
        let mut waiting = 0;
        for opened in self.session.open_requests() {
            let held = &self.model.open[&**opened.id];
            assert_eq!(opened.attempt, held.as_ref().map_or(0, |held| held.attempt));
            assert_eq!(opened.chunks, held.as_ref().map_or(0, |held| held.chunks));
            waiting += usize::from(held.is_none());
            if let Some(held) = held {
                assert!(
                    self.model.workers.contains_key(&held.worker),
                    "no request is held by a worker that is gone"
                );
            }
        }
        let queued: usize = ROLES.iter().map(|role| self.dispatch.waiting(role)).sum();
        assert_eq!(queued, waiting, "what waits is queued once");
        for (worker, max) in &self.model.workers {
            let held = self
                .model
                .open
                .values()
                .flatten()
                .filter(|held| held.worker == *worker)
                .count();
            assert!(held <= *max as usize, "no worker holds more than it takes");
        }
        if let Some(deadline) = self.session.deadline() {
            let earliest = self.model.open.iter().map(|(request, held)| {
                let (accept, total) = self.model.deadlines[request];
                if held.is_none() { accept } else { total }
            });
            assert!(
                earliest.min().is_none_or(|earliest| deadline <= earliest),
                "the timers look early enough"
            );
        } else {
            assert!(self.model.open.is_empty(), "what is open has a deadline");
        }
    }

    /// In the log, every request has at most one end, no chunk comes after it, and chunks are counted from 0.
    fn check_log(&self) {
        let mut chunks: HashMap<&Str, u32> = HashMap::new();
        for logged in &self.model.log {
            match logged {
                Logged::Other => {}
                Logged::Request(request) => assert_eq!(chunks.insert(request, 0), None, "{request} was open"),
                Logged::Chunk(request, index) => {
                    let next = chunks.get_mut(request).expect("chunks belong to open requests");
                    assert_eq!(*next, *index);
                    *next += 1;
                }
                Logged::End(request) => assert!(chunks.remove(request).is_some(), "{request} ended twice"),
            }
        }
        assert_eq!(
            chunks.len(),
            self.model.open.len(),
            "every request that was begun ended, or is open"
        );
    }
}

#[test]
fn the_machine_keeps_its_promises() {
    for seed in 0..400 {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..500 {
                world.step();
            }
            world.check_log();
            for _ in 0..20 {
                world.time_passes();
            }
            world.now.mono += Duration::from_secs(60);
            world.time_passes();
            assert!(world.model.open.is_empty(), "every request ends");
            world.session.close(world.now.wall);
            world.closed = true;
            for _ in 0..20 {
                world.event();
                world.request();
            }
            world.check_log();
        });
        assert!(run.is_ok(), "seed {seed}");
    }
}
