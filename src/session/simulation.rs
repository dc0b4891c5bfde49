//! A seeded simulation of the session machine and dispatch against a small model. The model keeps what happened as plain
//! lists and knows the guarantees; the simulation plays the shell, badly on purpose: it drops, repeats and reorders what a
//! shell would do, lets the log refuse, and has workers die, fall silent, wake up and come back at any moment. After each step
//! all guarantees are looked at again. A failure names its seed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::dispatch::{Bounds, Contact, Dispatch, Offer, Placed, Ticket, Wish};
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

/// What the log holds of a request.
#[derive(Debug)]
enum Logged {
    Other,
    Request(Str),
    Chunk { request: Str, attempt: u32, index: u32 },
    Restarted { request: Str, attempt: u32 },
    End(Str),
}

#[derive(Debug, Clone)]
struct Held {
    worker: WorkerKey,
    connection: ConnectionId,
    attempt: u32,
    chunks: u32,
}

/// A request as the model has it.
#[derive(Debug)]
struct Open {
    seq: u64,
    role: Str,
    asker: Str,
    terms: Terms,
    queued: bool,
    held: Option<Held>,
    attempts: u32,
    past: HashSet<ConnectionId>,
    accept_until: Instant,
    total_until: Instant,
    quiet_until: Option<Instant>,
    cancel_until: Option<Instant>,
    gone_until: Option<Instant>,
}

impl Open {
    fn deadlines(&self) -> impl Iterator<Item = (Due, Instant)> {
        let accept = self.held.is_none().then_some((Due::Accept, self.accept_until));
        let begun = self.held.as_ref().filter(|_| self.cancel_until.is_none());
        let begun = begun.map(|held| held.chunks > 0);
        let quiet = begun.zip(self.quiet_until).map(|(begun, until)| match begun {
            true => (Due::Idle, until),
            false => (Due::FirstChunk, until),
        });
        let cancel = self.cancel_until.map(|until| (Due::Cancel, until));
        let gone = self.gone_until.map(|until| (Due::AskerGone, until));
        let total = Some((Due::Total, self.total_until));
        [accept, quiet, cancel, gone, total].into_iter().flatten()
    }
}

#[derive(Debug)]
struct Hand {
    role: Str,
    connection: ConnectionId,
    max: u32,
    contact: Contact,
    draining: bool,
}

/// What must be true, kept the simple way.
#[derive(Default)]
struct Model {
    log: Vec<Logged>,
    ids: HashMap<(Str, Str), (u64, u64)>,
    recent: Vec<(Str, Str)>,
    open: BTreeMap<String, Open>,
    /// The attempt and the next index of requests that are in the log and have not ended there.
    begun: HashMap<Str, (u32, u32)>,
    workers: BTreeMap<WorkerKey, Hand>,
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
    /// Losses that were told.
    old_news: Vec<(Str, Cause)>,
}

const ROLES: [&str; 2] = ["brain", "hands"];
const SENDERS: [&str; 3] = ["ann", "bob", "cy"];
const WAITING: usize = 3;

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
        let bounds = Bounds {
            waiting: WAITING,
            affinity_keys: 2,
        };
        Self {
            random: Random(seed),
            now,
            session: Session::new("s".into(), "e".into(), Arc::new(limits()), now.wall),
            dispatch: Dispatch::new(bounds),
            model: Model::default(),
            next: 0,
            closed: false,
            old_news: Vec::new(),
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn step(&mut self) {
        match self.random.below(25) {
            0..=1 => self.event(),
            2..=4 => self.request(),
            5..=9 => self.reply(),
            10 => self.progress(),
            11..=12 => self.cancel(),
            13..=14 => self.time_passes(),
            15..=16 => self.worker_comes(),
            17 => self.worker_goes(),
            18 => self.worker_falls_silent(),
            19 => self.worker_wakes(),
            20 => self.worker_returns(),
            21 => self.worker_drains(),
            22 => self.member_comes_or_goes(),
            23 => self.old_news(),
            _ => self.reader_begins(),
        }
        self.check();
    }

    /// The log takes the plan's frame, or, now and then, refuses it: then nothing may have happened. What it takes keeps the
    /// order of every request: one beginning, chunks counted by attempt, none of an old attempt after a new one, one end.
    fn append(&mut self, plan: Plan, logged: Logged) -> Option<(u64, Vec<Effect>)> {
        if self.random.one_in(20) {
            return None;
        }
        assert_eq!(plan.seq, self.model.log.len() as u64 + 1, "seqs have no holes");
        let begun = &mut self.model.begun;
        match &logged {
            Logged::Other => {}
            Logged::Request(request) => {
                assert!(begun.insert(request.clone(), (1, 0)).is_none(), "{request} was open");
            }
            Logged::Chunk {
                request,
                attempt,
                index,
            } => {
                let next = begun.get_mut(request).expect("no chunk comes after the end");
                assert_eq!(
                    (*attempt, *index),
                    *next,
                    "chunks are of the attempt that is on, in order"
                );
                next.1 += 1;
            }
            Logged::Restarted { request, attempt } => {
                let next = begun.get_mut(request).expect("what is over does not begin again");
                assert_eq!(*attempt, next.0 + 1);
                *next = (*attempt, 0);
            }
            Logged::End(request) => assert!(begun.remove(request).is_some(), "{request} ended twice"),
        }
        self.model.log.push(logged);
        let seq = plan.seq;
        let first = 1 + self.random.below(seq).min(seq.saturating_sub(5));
        let first = first.max(self.session.first());
        let effects = self.session.apply(plan, first, seq, self.now);
        Some((seq, effects))
    }

    /// What dedup must say of a frame.
    fn sent(&mut self, sender: &Str, id: &Str) -> Option<(u64, u64)> {
        let known = self.model.recent.contains(&(sender.clone(), id.clone()));
        known.then(|| self.model.ids[&(sender.clone(), id.clone())])
    }

    fn remember(&mut self, sender: &Str, id: &Str, seen: (u64, u64)) {
        self.model.ids.insert((sender.clone(), id.clone()), seen);
        self.model.recent.push((sender.clone(), id.clone()));
        let over = self.model.recent.len().saturating_sub(limits().dedup_ids);
        self.model.recent.drain(..over);
    }

    fn event(&mut self) {
        let sender = Str::from(self.random.pick(&SENDERS).unwrap());
        let id = Str::from(format!("m{}", self.random.below(12)));
        let substance = self.random.below(2);
        let to = self.random.pick(&SENDERS).unwrap();
        let private = self.random.one_in(3);
        let kind = if private {
            Kind::Private { to, own: &sender }
        } else {
            Kind::Event
        };
        let before = self.sent(&sender, &id);
        let verdict = self.session.plan_post(&Post {
            sender: &sender,
            id: &id,
            substance,
            kind,
        });
        match verdict {
            Ok(Verdict::Duplicate { seq, .. }) => {
                assert_eq!(Some((seq, substance)), before, "a duplicate gets the first one's seq");
            }
            Ok(Verdict::Append(plan)) => {
                assert_eq!(before, None, "what was seen is not logged again");
                assert!(!self.closed, "a closed session is not written");
                if let Some((seq, effects)) = self.append(plan, Logged::Other) {
                    assert_eq!(effects, []);
                    self.remember(&sender, &id, (seq, substance));
                }
            }
            Err(refusal) if refusal.reason == Reason::MemberNotFound => {
                assert!(private && to != &*sender && !self.model.members.contains_key(to));
            }
            Err(refusal) if refusal.reason == Reason::IdReused => {
                assert!(
                    before.is_some_and(|(_, said)| said != substance),
                    "only what differs is refused"
                );
            }
            Err(refusal) => assert!(self.closed && refusal.reason == Reason::SessionClosed, "{refusal}"),
        }
    }

    fn terms(&mut self) -> Terms {
        let seconds = |random: &mut Random, bound| Duration::from_secs(1 + random.below(bound));
        let sometimes = |random: &mut Random| random.one_in(3).then(|| seconds(random, 10));
        let random = &mut self.random;
        Terms {
            accept: seconds(random, 20),
            first_chunk: sometimes(random),
            idle: sometimes(random),
            total: seconds(random, 60),
            loss: random.pick(&[Loss::Fail, Loss::RetryIfSilent, Loss::Restart]).unwrap(),
            max_attempts: 1 + random.below(4) as u32,
            gone: random.one_in(3).then(|| Duration::from_secs(random.below(5))),
            affinity: random.pick(&["", "", "k", "l", "m"]).unwrap().into(),
            concurrency: random
                .pick(&[
                    Concurrency::Parallel,
                    Concurrency::Parallel,
                    Concurrency::Queue,
                    Concurrency::Reject,
                    Concurrency::Replace,
                ])
                .unwrap(),
        }
    }

    fn rivals(&self, role: &str) -> Vec<String> {
        let rivals = self.model.open.iter().filter(|(_, open)| open.role == *role);
        rivals.map(|(id, _)| id.clone()).collect()
    }

    fn request(&mut self) {
        let sender = Str::from(self.random.pick(&SENDERS).unwrap());
        let id = Str::from(format!("r{}", self.random.below(self.next + 4)));
        let role = Str::from(self.random.pick(&ROLES).unwrap());
        let terms = self.terms();
        let before = self.sent(&sender, &id);
        let post = Post {
            sender: &sender,
            id: &id,
            substance: 1,
            kind: Kind::Request {
                role: &role,
                terms: &terms,
            },
        };
        let mut verdict = self.session.plan_post(&post);
        if matches!(verdict, Ok(Verdict::Append(_))) && terms.concurrency == Concurrency::Replace {
            for rival in self.session.rivals(&role) {
                self.end(&rival, Cause::Replaced);
            }
            assert_eq!(self.rivals(&role), [""; 0], "nobody is beside one that replaces");
            verdict = self.session.plan_post(&post);
        }
        match verdict {
            Ok(Verdict::Duplicate { seq, .. }) => assert_eq!(Some((seq, 1)), before),
            Ok(Verdict::Append(plan)) => {
                assert!(before.is_none() && !self.closed && !self.model.open.contains_key(&*id));
                let rivals = self.rivals(&role);
                assert!(
                    terms.concurrency != Concurrency::Reject || rivals.is_empty(),
                    "one at a time"
                );
                let Some((seq, effects)) = self.append(plan, Logged::Request(id.clone())) else {
                    return;
                };
                self.remember(&sender, &id, (seq, 1));
                let open = Open {
                    seq,
                    role,
                    asker: sender,
                    queued: terms.concurrency == Concurrency::Queue && !rivals.is_empty(),
                    held: None,
                    attempts: 0,
                    past: HashSet::new(),
                    accept_until: self.now.mono + terms.accept,
                    total_until: self.now.mono + terms.total,
                    quiet_until: None,
                    cancel_until: None,
                    gone_until: None,
                    terms,
                };
                self.model.open.insert(id.to_string(), open);
                self.carry_out(effects);
            }
            Err(refusal) => match refusal.reason {
                Reason::SessionClosed => assert!(self.closed),
                Reason::RequestIdInUse => assert!(self.model.open.contains_key(&*id)),
                Reason::TooManyRequests => assert_eq!(self.model.open.len(), limits().open_requests),
                Reason::SessionBusy => {
                    assert!(terms.concurrency == Concurrency::Reject && !self.rivals(&role).is_empty());
                }
                _ => panic!("{refusal}"),
            },
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Submit {
                    request,
                    role,
                    prefer,
                    affinity,
                } => {
                    let open = self
                        .model
                        .open
                        .get_mut(&*request)
                        .expect("only open requests want a worker");
                    open.queued = false;
                    let ticket = ticket(&request);
                    let wish = Wish {
                        worker: prefer,
                        affinity,
                    };
                    match self.dispatch.submit(ticket, &role, wish) {
                        Ok(Placed::With(worker)) => self.hand(&request, worker),
                        Ok(Placed::Waiting) => {}
                        Err(_) => {
                            assert_eq!(self.dispatch.waiting(&role), WAITING);
                            self.end(&request, Cause::TooManyWaiting);
                        }
                    }
                }
                Effect::Withdraw { request, role } => self.dispatch.withdraw(&ticket(&request), &role),
                Effect::Release { worker } => self.release(worker),
                Effect::Fold { request, from, to } => {
                    assert!(
                        from < to && !self.model.begun.contains_key(&request),
                        "only what is over is folded"
                    );
                }
                Effect::Stop {
                    worker,
                    request,
                    attempt,
                    why,
                } => {
                    assert!(attempt > 0, "a worker is stopped in an attempt");
                    let holds = self.holder(&request) == Some(Holder { worker, attempt });
                    match why {
                        Stop::Cancelled(_) => assert!(holds, "who has it is asked to end it"),
                        Stop::Ended(_) | Stop::Superseded => assert!(!holds, "who has it is not stopped"),
                    }
                }
            }
        }
    }

    fn holder(&self, request: &str) -> Option<Holder> {
        let held = self.model.open.get(request)?.held.as_ref()?;
        Some(Holder {
            worker: held.worker,
            attempt: held.attempt,
        })
    }

    fn release(&mut self, worker: WorkerKey) {
        for ticket in self.dispatch.release(worker) {
            self.hand(&ticket.request, worker);
        }
    }

    fn hand(&mut self, request: &Str, worker: WorkerKey) {
        let hand = self.model.workers.get(&worker).expect("only to workers that are there");
        assert!(
            hand.contact == Contact::Here && !hand.draining,
            "only to workers that take something"
        );
        let connection = hand.connection;
        match self.session.assign(request, worker, connection, self.now) {
            None => self.release(worker),
            Some(attempt) => {
                let open = self
                    .model
                    .open
                    .get_mut(&**request)
                    .expect("only open requests are handed out");
                assert!(
                    open.held.is_none() && !open.queued,
                    "a request is handed to one worker, in its turn"
                );
                open.attempts += 1;
                assert!(attempt == open.attempts && attempt <= open.terms.max_attempts);
                open.quiet_until = open.terms.first_chunk.map(|span| self.now.mono + span);
                open.held = Some(Held {
                    worker,
                    connection,
                    attempt,
                    chunks: 0,
                });
            }
        }
    }

    /// A request, mostly an open one, and who has it.
    fn some_request(&mut self) -> (Str, Option<Held>) {
        let open: Vec<_> = self.model.open.keys().cloned().collect();
        let request = match self.random.one_in(8) {
            true => Str::from(format!("r{}", self.random.below(self.next + 4))),
            false => Str::from(self.random.pick(&open).unwrap_or_default()),
        };
        let held = self.model.open.get(&*request).and_then(|open| open.held.clone());
        (request, held)
    }

    /// Who sends a reply: mostly who may, and now and then one who may not, or not any more.
    fn some_sender(&mut self, request: &Str, held: Option<&Held>) -> ConnectionId {
        let right = held.map_or(ConnectionId(1), |held| held.connection);
        let past = self.model.open.get(&**request).map(|open| &open.past);
        let mut past: Vec<_> = past.into_iter().flatten().copied().collect();
        past.sort_unstable();
        match self.random.below(8) {
            0 => ConnectionId(right.0 + 1),
            1..=2 => self.random.pick(&past).unwrap_or(right),
            _ => right,
        }
    }

    /// Whether a reply is from who holds the request, for the attempt that is on.
    fn may_answer(&self, reply: Reply<'_>) -> bool {
        let open = self.model.open.get(&**reply.request);
        open.is_some_and(|open| {
            open.held.as_ref().is_some_and(|held| {
                let named = reply.attempt == held.attempt;
                let meant = reply.attempt == 0 && !open.past.contains(&reply.connection);
                held.connection == reply.connection && (named || meant)
            })
        })
    }

    fn check_refused(&self, reply: Reply<'_>, refusal: &Refusal) {
        let open = self.model.open.get(&**reply.request);
        let holds = open
            .and_then(|open| open.held.as_ref())
            .is_some_and(|held| held.connection == reply.connection);
        let was = open.is_some_and(|open| open.past.contains(&reply.connection));
        match refusal.reason {
            Reason::Superseded => assert!(was || holds && reply.attempt != 0, "{refusal}"),
            Reason::NotYourRequest => assert!(open.is_some() && !holds && !was, "{refusal}"),
            Reason::RequestEnded | Reason::RequestNotFound => assert!(open.is_none(), "{refusal}"),
            _ => panic!("{refusal}"),
        }
    }

    fn reply(&mut self) {
        let (request, held) = self.some_request();
        let connection = self.some_sender(&request, held.as_ref());
        let now_at = held.as_ref().map_or(1, |held| held.attempt);
        let attempt = self
            .random
            .pick(&[0, 0, now_at, now_at, now_at.saturating_sub(1), 7])
            .unwrap();
        let next = held.as_ref().map_or(0, |held| held.chunks);
        let index = match self.random.below(6) {
            0 => Some(next),
            1 => Some(next + 1),
            2 => next.checked_sub(1),
            _ => None,
        };
        let last = self.random.one_in(6).then_some(Outcome::Completed);
        // Workers count their frames anew in each attempt.
        let id = match self.random.one_in(2) {
            true => Str::from(format!("c{}", self.random.below(6))),
            false => Str::EMPTY,
        };
        let substance = self.random.below(3);
        let reply = Reply {
            request: &request,
            connection,
            attempt,
            index,
            last,
        };
        let verdict = self.session.plan_post(&Post {
            sender: &"w".into(),
            id: &id,
            substance,
            kind: Kind::Reply(reply),
        });
        let fits = self.may_answer(reply);
        let scope = (Str::from(format!("{request}/{now_at}")), id.clone());
        let before = self.sent(&scope.0, &scope.1).filter(|_| !id.is_empty());
        match verdict {
            Ok(Verdict::Append(plan)) => {
                let due = index.is_none_or(|index| index == next);
                assert!(fits && due, "only the holder's next chunk is logged");
                assert_eq!(before, None, "what was said in this attempt is not said again");
                assert_eq!((plan.index, plan.attempt), (Some(next), now_at));
                assert_eq!(plan.worker, held.map(|held| held.worker));
                let logged = match last {
                    Some(_) => Logged::End(request.clone()),
                    None => Logged::Chunk {
                        request: request.clone(),
                        attempt: now_at,
                        index: next,
                    },
                };
                let Some((seq, effects)) = self.append(plan, logged) else {
                    return;
                };
                if !id.is_empty() {
                    self.remember(&scope.0, &scope.1, (seq, substance));
                }
                match last {
                    Some(_) => drop(self.model.open.remove(&*request)),
                    None => {
                        let open = self.model.open.get_mut(&*request).unwrap();
                        open.held.as_mut().unwrap().chunks += 1;
                        open.quiet_until = open.terms.idle.map(|idle| self.now.mono + idle);
                    }
                }
                self.carry_out(effects);
            }
            Ok(Verdict::Duplicate { index: Some(last), .. }) => {
                assert!(fits && index.is_some_and(|index| index < next) && last == next - 1);
            }
            Ok(Verdict::Duplicate { seq, index: None }) => {
                let over = !self.model.open.contains_key(&*request);
                assert!(
                    !id.is_empty() && (over || fits && before == Some((seq, substance))),
                    "said before, in this attempt"
                );
            }
            Err(refusal) if refusal.reason == Reason::IdReused => {
                assert!(fits && before.is_some_and(|(_, said)| said != substance));
            }
            Err(refusal) if refusal.reason == Reason::ChunkOutOfOrder => assert!(fits && index > Some(next)),
            Err(refusal) => {
                assert!(!fits, "who holds a request may answer it: {refusal}");
                self.check_refused(reply, &refusal);
            }
        }
    }

    fn progress(&mut self) {
        let (request, held) = self.some_request();
        let reply = Reply {
            request: &request,
            connection: self.some_sender(&request, held.as_ref()),
            attempt: self.random.below(3) as u32,
            index: None,
            last: None,
        };
        match self.session.note_reply(reply, self.now.mono) {
            Ok((attempt, worker)) => {
                assert!(self.may_answer(reply));
                let held = held.unwrap();
                assert_eq!((attempt, worker), (held.attempt, held.worker));
                let open = self.model.open.get_mut(&*request).unwrap();
                if held.chunks > 0 {
                    open.quiet_until = open.terms.idle.map(|idle| self.now.mono + idle);
                }
            }
            Err(refusal) => self.check_refused(reply, &refusal),
        }
    }

    /// What must become of a request by a cause.
    fn fate(&self, request: &str, cause: Cause) -> Option<Cause> {
        let open = &self.model.open[request];
        if cause.lost().is_none() {
            return Some(cause);
        }
        if open.cancel_until.is_some() {
            return Some(Cause::Cancelled);
        }
        let said = open.held.as_ref().is_some_and(|held| held.chunks > 0);
        let again = open.terms.loss == Loss::Restart || open.terms.loss == Loss::RetryIfSilent && !said;
        match again {
            false => Some(cause),
            true if open.attempts >= open.terms.max_attempts => Some(Cause::AttemptsExhausted),
            true => None,
        }
    }

    fn end(&mut self, request: &str, cause: Cause) {
        // An end that the log refuses is tried again, as the shell does.
        while self.model.open.contains_key(request) {
            if cause.lost().is_some_and(|holder| self.holder(request) != Some(holder)) {
                let plan = self
                    .session
                    .plan_end(request, cause, self.now.mono)
                    .expect("it is open");
                assert!(plan.is_none(), "who does not have a request cannot lose it");
                return;
            }
            let planned = self.session.plan_end(request, cause, self.now.mono);
            let plan = planned
                .expect("an open request can be ended")
                .expect("the cause applies");
            let fate = self.fate(request, cause);
            assert_eq!(plan.restarts(), fate.is_none());
            assert_eq!(plan.cause(), Some(fate.unwrap_or(cause)));
            let logged = match fate {
                Some(_) => Logged::End(request.into()),
                None => Logged::Restarted {
                    request: request.into(),
                    attempt: plan.attempt,
                },
            };
            let Some((_, effects)) = self.append(plan, logged) else {
                continue;
            };
            if fate.is_some() {
                self.model.open.remove(request);
            } else {
                let open = self.model.open.get_mut(request).unwrap();
                open.past.extend(open.held.take().map(|held| held.connection));
                open.accept_until = self.now.mono + open.terms.accept;
                open.quiet_until = None;
            }
            self.carry_out(effects);
        }
    }

    fn cancel(&mut self) {
        let request = format!("r{}", self.random.below(self.next + 4));
        let open: Vec<_> = self.model.open.keys().cloned().collect();
        let request = self
            .random
            .pick(&open)
            .filter(|_| self.random.one_in(4))
            .unwrap_or(request);
        let grace = Duration::from_secs(self.random.below(3));
        let cancelled = self.session.cancel(&request, "why", grace, self.now);
        let Some(open) = self.model.open.get_mut(&request) else {
            let refusal = cancelled.unwrap_err();
            assert!(matches!(refusal.reason, Reason::RequestEnded | Reason::RequestNotFound));
            return;
        };
        match cancelled.expect("what is open can be cancelled, also twice") {
            Cancelled::Now => {
                assert!(open.held.is_none() || grace.is_zero(), "who has it is asked first");
                self.end(&request, Cause::Cancelled);
            }
            Cancelled::Asked(effects) => {
                assert!(open.held.is_some());
                let until = self.now.mono + grace;
                let is_news = open.cancel_until.is_none_or(|before| until < before);
                let told = matches!(effects[..], [Effect::Stop { why: Stop::Cancelled(left), .. }] if left == grace);
                assert_eq!(told, is_news, "its worker learns how long it has, once");
                open.cancel_until = Some(open.cancel_until.map_or(until, |before| before.min(until)));
                self.carry_out(effects);
            }
        }
    }

    fn time_passes(&mut self) {
        self.now.mono += Duration::from_millis(self.random.below(6_000));
        let due = self.session.due(self.now.mono);
        if self.random.one_in(3) {
            // Somebody may be back before anything is done about it.
            self.member_comes_or_goes();
        }
        self.end_due(due);
        // What was not due any more may be due for something else: the timers look again at once.
        let due = self.session.due(self.now.mono);
        self.end_due(due);
        // Whoever left just now with no time to come back is looked at next.
        for (request, open) in &self.model.open {
            for (due, until) in open.deadlines().filter(|(due, _)| *due != Due::AskerGone) {
                assert!(until > self.now.mono, "{request} outlived its time: {due:?}");
            }
        }
    }

    fn end_due(&mut self, due: Vec<(Str, Due)>) {
        for (request, due) in due {
            let Some(open) = self.model.open.get(&*request) else {
                continue;
            };
            let up = open
                .deadlines()
                .any(|(what, until)| what == due && until <= self.now.mono);
            let cause = match due {
                Due::Accept => Cause::NoWorker,
                Due::FirstChunk => Cause::FirstChunkTimeout,
                Due::Idle => Cause::IdleTimeout,
                Due::Total => Cause::TotalTimeout,
                Due::AskerGone => Cause::AskerGone,
                Due::Cancel => Cause::Cancelled,
            };
            if up {
                self.end(&request, cause);
            } else {
                let plan = self
                    .session
                    .plan_end(&request, cause, self.now.mono)
                    .expect("it is open");
                assert!(
                    plan.is_none() || due == Due::Cancel,
                    "it got a worker at the last moment"
                );
            }
        }
    }

    fn worker_comes(&mut self) {
        if self.model.workers.len() >= 4 {
            return;
        }
        let key = WorkerKey(self.fresh());
        let role = Str::from(self.random.pick(&ROLES).unwrap());
        let max = 1 + self.random.below(3) as u32;
        let hand = Hand {
            role,
            connection: ConnectionId(self.next * 10),
            max,
            contact: Contact::Here,
            draining: false,
        };
        self.model.workers.insert(key, hand);
        self.register(key);
    }

    fn register(&mut self, key: WorkerKey) {
        let hand = self.model.workers.get_mut(&key).unwrap();
        hand.contact = Contact::Here;
        hand.draining = false;
        let offer = Offer {
            role: hand.role.clone(),
            sessions: Vec::new(),
            granted: vec!["*".into()],
            max_in_flight: hand.max,
            draining: false,
        };
        for ticket in self.dispatch.register(key, offer) {
            self.hand(&ticket.request, key);
        }
    }

    fn some_worker(&mut self, fits: impl Fn(&Hand) -> bool) -> Option<WorkerKey> {
        let workers = self.model.workers.iter().filter(|(_, hand)| fits(hand));
        let workers: Vec<_> = workers.map(|(key, _)| *key).collect();
        self.random.pick(&workers)
    }

    fn lose_all(&mut self, key: WorkerKey, cause: fn(Holder) -> Cause) {
        for (request, holder) in self.session.held_by(key) {
            self.end(&request, cause(holder));
            self.old_news.push((request, cause(holder)));
        }
    }

    /// A loss is told once more, late: it changes nothing.
    fn old_news(&mut self) {
        // An id that was used again names another request, of which the shell forgets the old news.
        if let Some((request, cause)) = self.random.pick(&self.old_news)
            && self.holder(&request) != cause.lost()
        {
            self.end(&request, cause);
        }
        let over = self.old_news.len().saturating_sub(8);
        self.old_news.drain(..over);
    }

    fn worker_goes(&mut self) {
        let Some(key) = self.some_worker(|_| true) else { return };
        self.model.workers.remove(&key);
        self.dispatch.unregister(key);
        self.lose_all(key, Cause::WorkerLost);
    }

    fn worker_falls_silent(&mut self) {
        let Some(key) = self.some_worker(|hand| hand.contact == Contact::Here) else {
            return;
        };
        self.model.workers.get_mut(&key).unwrap().contact = Contact::Silent;
        assert_eq!(self.dispatch.contact(key, Contact::Silent), []);
        self.lose_all(key, Cause::LeaseExpired);
    }

    fn worker_wakes(&mut self) {
        let Some(key) = self.some_worker(|hand| hand.contact == Contact::Silent) else {
            return;
        };
        self.model.workers.get_mut(&key).unwrap().contact = Contact::Here;
        for ticket in self.dispatch.contact(key, Contact::Here) {
            self.hand(&ticket.request, key);
        }
    }

    /// A worker comes back by another connection, and names some of what it has.
    fn worker_returns(&mut self) {
        let Some(key) = self.some_worker(|_| true) else { return };
        assert_eq!(self.dispatch.contact(key, Contact::Away), []);
        let connection = ConnectionId(self.fresh() * 10);
        let hand = self.model.workers.get_mut(&key).unwrap();
        hand.contact = Contact::Away;
        hand.connection = connection;
        for (request, holder) in self.session.held_by(key) {
            let open = self.model.open.get_mut(&*request).expect("held requests are open");
            let held = open.held.as_mut().expect("they are held");
            let named = !self.random.one_in(3);
            let attempt = if self.random.one_in(4) {
                held.attempt + 1
            } else {
                held.attempt
            };
            let resumed = named
                .then(|| self.session.resume(&request, key, connection, attempt))
                .flatten();
            match resumed {
                Some(chunks) => {
                    assert_eq!(
                        (chunks, attempt),
                        (held.chunks, held.attempt),
                        "it goes on where it was"
                    );
                    open.past.insert(std::mem::replace(&mut held.connection, connection));
                }
                None => {
                    assert!(!named || attempt != held.attempt);
                    self.end(&request, Cause::WorkerLost(holder));
                }
            }
        }
        self.register(key);
    }

    fn worker_drains(&mut self) {
        let Some(key) = self.some_worker(|_| true) else { return };
        assert!(self.dispatch.drain(key));
        self.model.workers.get_mut(&key).unwrap().draining = true;
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
                self.session.leave(&name, stale, self.now.mono).is_none(),
                "an old place is nobody's any more"
            );
            if let Some(seat) = seat {
                assert!(self.session.leave(&name, seat, self.now.mono).is_some());
                self.model.members.remove(&*name);
                for open in self.model.open.values_mut().filter(|open| open.asker == name) {
                    open.gone_until = open.terms.gone.map(|gone| self.now.mono + gone);
                }
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
        for open in self.model.open.values_mut().filter(|open| open.asker == name) {
            open.gone_until = None;
        }
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
        let opened = self.session.open_requests();
        let open: BTreeSet<_> = opened.iter().map(|open| open.id.to_string()).collect();
        assert!(open.iter().eq(self.model.open.keys()), "the same requests are open");
        let mut waiting = 0;
        for opened in &opened {
            let open = &self.model.open[&**opened.id];
            let held = open.held.as_ref();
            assert_eq!(opened.attempt, held.map_or(0, |held| held.attempt));
            assert_eq!(opened.chunks, held.map_or(0, |held| held.chunks));
            assert_eq!(opened.worker, held.map(|held| held.worker));
            let stage = match held {
                _ if open.cancel_until.is_some() => Stage::Cancelling,
                None if open.queued => Stage::Queued,
                None => Stage::Waiting,
                Some(held) if held.chunks == 0 => Stage::Assigned,
                Some(_) => Stage::Started,
            };
            assert_eq!(opened.stage, stage);
            let queues = held.is_none() && !open.queued;
            waiting += usize::from(queues);
            let place = self.dispatch.before(&open.role, &ticket(opened.id));
            assert_eq!(place.is_some(), queues, "what waits has a place that can be told");
            if let Some(held) = held {
                let hand = self.model.workers.get(&held.worker);
                assert!(
                    hand.is_some_and(|hand| hand.contact != Contact::Silent),
                    "no request is held by a worker that is gone or silent"
                );
            }
            let earlier = |other: &&Open| other.role == open.role && other.seq < open.seq;
            let first = !self.model.open.values().any(|other| earlier(&other));
            if open.terms.concurrency == Concurrency::Queue {
                assert_eq!(
                    open.queued, !first,
                    "one that queues has its turn when nobody is before it"
                );
            }
        }
        let queued: usize = ROLES.iter().map(|role| self.dispatch.waiting(role)).sum();
        assert_eq!(queued, waiting, "what waits is queued once");
        assert!(
            ROLES.iter().all(|role| self.dispatch.waiting(role) <= WAITING),
            "queues are bounded"
        );
        for (worker, hand) in &self.model.workers {
            let held = self.model.open.values().filter_map(|open| open.held.as_ref());
            let count = held.filter(|held| held.worker == *worker).count();
            assert!(count <= hand.max as usize, "no worker holds more than it takes");
            let (_, contact, in_flight) = self.dispatch.describe(*worker).expect("it is registered");
            assert_eq!(
                (contact, in_flight as usize),
                (hand.contact, count),
                "dispatch knows what a worker has"
            );
            let idle = hand.contact == Contact::Here && !hand.draining && count < hand.max as usize;
            assert!(
                !idle || self.dispatch.waiting(&hand.role) == 0,
                "nobody waits for a worker with room"
            );
        }
        let earliest = self
            .model
            .open
            .values()
            .flat_map(Open::deadlines)
            .map(|(_, until)| until)
            .min();
        match self.session.deadline() {
            Some(deadline) => assert!(
                earliest.is_none_or(|earliest| deadline <= earliest),
                "the timers look early enough"
            ),
            None => assert!(self.model.open.is_empty(), "what is open has a deadline"),
        }
        let begun: BTreeSet<_> = self.model.begun.keys().map(Str::to_string).collect();
        assert_eq!(begun, open, "every request that was begun ended in the log, or is open");
    }
}

fn ticket(request: &Str) -> Ticket {
    Ticket {
        session: "s".into(),
        epoch: "e".into(),
        request: request.clone(),
    }
}

/// Twenty-five hundred lives of a session, a million steps in all.
#[test]
fn the_machine_keeps_its_promises() {
    for seed in 0..2_500 {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..400 {
                world.step();
            }
            for _ in 0..20 {
                world.time_passes();
                world.check();
            }
            world.now.mono += Duration::from_secs(60);
            world.time_passes();
            assert!(world.model.open.is_empty(), "every request ends");
            let closed = world.session.profile().clone().closed(world.now.wall);
            world.session.set_profile(closed);
            world.closed = true;
            for _ in 0..20 {
                world.event();
                world.request();
                world.check();
            }
        });
        assert!(run.is_ok(), "seed {seed}");
    }
}
