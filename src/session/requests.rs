//! The requests of a session: the life of each that has not ended, and how some ended.
//!
//! ```text
//! Queued ──▶ Waiting ──▶ Assigned ──▶ Started ──▶ ended: Completed | Failed | Cancelled | Expired
//!               ▲            │           │
//!               └────────────┴───────────┘  the worker was lost, and the policy allows another attempt
//! ```
//!
//! From each phase a request may end. `Phase` carries what only that phase has; `Request::overdue` says which of its times
//! is up. Nothing here decides who works on what: that is dispatch's.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use super::{ConnectionId, Now, WorkerKey};
use crate::error::Reason;
use crate::frame::Str;
use crate::limits::Concurrency;

/// How a request is to be carried out.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How long it may wait for a worker, each time.
    pub accept: Duration,
    /// How long a worker may take to its first chunk.
    pub first_chunk: Option<Duration>,
    /// How long it may take from one chunk to the next.
    pub idle: Option<Duration>,
    /// How long it may take in all.
    pub total: Duration,
    /// What happens when its worker is lost.
    pub loss: Loss,
    /// How many workers may try.
    pub max_attempts: u32,
    /// How long the member that asked may be gone, if that matters.
    pub gone: Option<Duration>,
    /// What requests have in common that should go to the same worker; may be empty.
    pub affinity: Str,
    /// How it gets along with others of its session for the same role.
    pub concurrency: Concurrency,
}

/// What happens to a request when its worker is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It ends.
    Fail,
    /// It is handed on if nothing was said yet, and else ends.
    RetryIfSilent,
    /// It begins again.
    Restart,
}

/// Why a request ended, or its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its worker's final reply.
    Answered(Outcome),
    /// A member cancelled it.
    Cancelled,
    /// The member that asked was gone for too long.
    AskerGone,
    /// Another request took its place.
    Replaced,
    /// There was no worker.
    NoWorker,
    /// No worker had room.
    AcceptTimeout,
    /// Its worker said nothing.
    FirstChunkTimeout,
    /// Its worker said nothing more.
    IdleTimeout,
    /// It took too long.
    TotalTimeout,
    /// This worker, which held it, went away.
    WorkerLost(Holder),
    /// This worker, which held it, showed no life.
    LeaseExpired(Holder),
    /// The last worker that might try was lost.
    AttemptsExhausted,
    /// Too many requests waited for its role.
    TooManyWaiting,
    /// Its session was closed.
    SessionClosed,
    /// Its session was deleted.
    SessionDeleted,
    /// The gateway stopped.
    Shutdown,
}

/// Who lost a request. A loss that is told late does not concern what has become of the request since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The worker.
    pub worker: WorkerKey,
    /// Its attempt.
    pub attempt: u32,
}

impl Cause {
    /// As the error that the session is told; nothing for an answer.
    pub fn reason(self) -> Option<Reason> {
        Some(match self {
            Cause::Answered(_) => return None,
            Cause::Cancelled | Cause::SessionClosed => Reason::RequestCancelled,
            Cause::AskerGone => Reason::AskerGone,
            Cause::Replaced => Reason::RequestReplaced,
            Cause::NoWorker => Reason::NoWorker,
            Cause::AcceptTimeout => Reason::AcceptTimeout,
            Cause::FirstChunkTimeout => Reason::FirstChunkTimeout,
            Cause::IdleTimeout => Reason::IdleTimeout,
            Cause::TotalTimeout => Reason::TotalTimeout,
            Cause::WorkerLost(_) => Reason::WorkerLost,
            Cause::LeaseExpired(_) => Reason::LeaseExpired,
            Cause::AttemptsExhausted => Reason::AttemptsExhausted,
            Cause::TooManyWaiting => Reason::TooManyWaiting,
            Cause::SessionDeleted => Reason::SessionDeleted,
            Cause::Shutdown => Reason::Shutdown,
        })
    }

    /// How a request ends by it.
    pub fn outcome(self) -> Outcome {
        match self {
            Cause::Answered(outcome) => outcome,
            Cause::Cancelled | Cause::AskerGone | Cause::SessionClosed => Outcome::Cancelled,
            Cause::AcceptTimeout | Cause::FirstChunkTimeout | Cause::IdleTimeout | Cause::TotalTimeout => {
                Outcome::Expired
            }
            Cause::Replaced
            | Cause::NoWorker
            | Cause::WorkerLost(_)
            | Cause::LeaseExpired(_)
            | Cause::AttemptsExhausted
            | Cause::TooManyWaiting
            | Cause::SessionDeleted
            | Cause::Shutdown => Outcome::Failed,
        }
    }

    /// Who lost the request, if that is it.
    pub fn lost(self) -> Option<Holder> {
        match self {
            Cause::WorkerLost(holder) | Cause::LeaseExpired(holder) => Some(holder),
            _ => None,
        }
    }

    /// The time that must be up for it.
    fn due(self) -> Option<Due> {
        Some(match self {
            Cause::NoWorker | Cause::AcceptTimeout => Due::Accept,
            Cause::FirstChunkTimeout => Due::FirstChunk,
            Cause::IdleTimeout => Due::Idle,
            Cause::TotalTimeout => Due::Total,
            Cause::AskerGone => Due::AskerGone,
            _ => return None,
        })
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer.
    Completed,
    /// With an error.
    Failed,
    /// Because somebody wanted it so.
    Cancelled,
    /// Because a time was up.
    Expired,
}

/// Which of its times a request has used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The time to wait for a worker.
    Accept,
    /// The time to the first chunk.
    FirstChunk,
    /// The time between chunks.
    Idle,
    /// All of it.
    Total,
    /// What the worker had to end it by itself, once cancelled.
    Cancel,
    /// What the member that asked could be gone.
    AskerGone,
}

/// Where an open request is, as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for its turn in the session.
    Queued,
    /// It waits for a worker.
    Waiting,
    /// A worker has it.
    Assigned,
    /// A worker has begun to answer.
    Started,
    /// A worker has been told to stop.
    Cancelling,
}

/// An open request, as others see it.
#[derive(Debug)]
pub struct Opened<'a> {
    /// Its id.
    pub id: &'a Str,
    /// Its place in the log.
    pub seq: u64,
    /// Its role.
    pub role: &'a Str,
    /// Since when it is in the log.
    pub accepted_at: SystemTime,
    /// Where it is.
    pub stage: Stage,
    /// Since when it is there.
    pub changed_at: SystemTime,
    /// Who has it.
    pub worker: Option<WorkerKey>,
    /// Which attempt a worker is at; 0 while it waits.
    pub attempt: u32,
    /// How many chunks that attempt has brought.
    pub chunks: u32,
}

/// A request that is over.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its id.
    pub id: Str,
    /// How.
    pub outcome: Outcome,
    /// In which attempt; 0 if no worker had it.
    pub attempt: u32,
    /// Where the log has its end; 0 if it has none.
    pub seq: u64,
    /// When.
    pub at: SystemTime,
}

/// An open request, as it is to be remembered.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// Its id.
    pub id: &'a Str,
    /// Its place in the log.
    pub seq: u64,
    /// Its role.
    pub role: &'a Str,
    /// Who asked.
    pub asker: &'a Str,
    /// How it is to be carried out.
    pub terms: &'a Terms,
    /// Since when it is in the log.
    pub accepted_at: SystemTime,
    /// How many workers have had it.
    pub attempts: u32,
    /// Who has it.
    pub holder: Option<Holder>,
    /// What was said when it was cancelled.
    pub cancelled: Option<&'a str>,
}

/// An open request that comes back.
#[derive(Debug)]
pub struct Reopened<F> {
    /// Its place in the log.
    pub seq: u64,
    /// Its role.
    pub role: Str,
    /// Who asked.
    pub asker: Str,
    /// How it is to be carried out.
    pub terms: Box<Terms>,
    /// Since when it is in the log.
    pub accepted_at: SystemTime,
    /// How many workers have had it.
    pub attempts: u32,
    /// Who had it last, and may come back.
    pub held: Option<Held>,
    /// What was said when it was cancelled, and how long its worker has to end it.
    pub cancelled: Option<(String, Duration)>,
    /// What to keep with it.
    pub kept: F,
}

/// What a worker has said of a request that comes back.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Who has it.
    pub holder: Holder,
    /// How many chunks there are.
    pub chunks: u32,
    /// Where the last of them is; of no account without any.
    pub last_seq: u64,
}

impl<F> Reopened<F> {
    /// Its times run on by the calendar in all, and anew where it is: nobody could do anything meanwhile.
    pub(super) fn into_request(self, is_behind: bool, now: Now) -> Request<F> {
        let age = now.wall.duration_since(self.accepted_at).unwrap_or_default();
        let phase = match self.held {
            Some(Held {
                holder,
                chunks,
                last_seq,
            }) => {
                let hold = Hold {
                    worker: holder.worker,
                    // No connection has this number: the worker comes back by another one, or not at all.
                    connection: ConnectionId(0),
                    attempt: holder.attempt,
                };
                match chunks {
                    0 => Phase::Assigned(hold),
                    _ => Phase::Started { hold, chunks, last_seq },
                }
            }
            None if is_behind && self.terms.concurrency == Concurrency::Queue => Phase::Queued,
            None => Phase::Waiting,
        };
        let mut request = Request {
            seq: self.seq,
            role: self.role,
            asker: self.asker,
            accepted_at: self.accepted_at,
            total_until: now.mono + self.terms.total.saturating_sub(age),
            phase,
            changed_at: now.wall,
            phase_until: None,
            cancelling: self.cancelled.map(|(message, left)| Cancelling {
                until: now.mono + left,
                message,
            }),
            // Whoever asked is not there yet.
            gone_until: self.terms.gone.map(|gone| now.mono + gone),
            attempts: self.attempts,
            past: Vec::new(),
            terms: self.terms,
            kept: self.kept,
        };
        request.enter(phase, now);
        request
    }
}

/// What remains of a request's times, where they run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remaining {
    /// To get a worker.
    pub accept: Option<Duration>,
    /// To the first chunk.
    pub first_chunk: Option<Duration>,
    /// To the next chunk.
    pub idle: Option<Duration>,
    /// In all.
    pub total: Duration,
}

/// Who has a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    pub worker: WorkerKey,
    /// The one that it was handed over, or that the worker came back by.
    pub connection: ConnectionId,
    pub attempt: u32,
}

impl Hold {
    pub fn holder(&self) -> Holder {
        Holder {
            worker: self.worker,
            attempt: self.attempt,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// Others of its session come first.
    Queued,
    /// No worker has it.
    Waiting,
    /// A worker has it, and has said nothing of this attempt.
    Assigned(Hold),
    /// A worker is at it. `chunks` is also the index of the next one; `last_seq` is where the last one is.
    Started { hold: Hold, chunks: u32, last_seq: u64 },
}

#[derive(Debug)]
pub(super) struct Cancelling {
    pub until: Instant,
    pub message: String,
}

#[derive(Debug)]
pub(super) struct Request<F> {
    pub seq: u64,
    pub role: Str,
    pub asker: Str,
    pub terms: Box<Terms>,
    pub accepted_at: SystemTime,
    pub total_until: Instant,
    pub phase: Phase,
    /// Since when it is in its phase.
    pub changed_at: SystemTime,
    /// Until when it may be in its phase.
    pub phase_until: Option<Instant>,
    pub cancelling: Option<Cancelling>,
    pub gone_until: Option<Instant>,
    pub attempts: u32,
    /// Connections that held it before: what they still send is fenced off.
    pub past: Vec<ConnectionId>,
    pub kept: F,
}

impl<F> Request<F> {
    pub fn hold(&self) -> Option<Hold> {
        match self.phase {
            Phase::Queued | Phase::Waiting => None,
            Phase::Assigned(hold) | Phase::Started { hold, .. } => Some(hold),
        }
    }

    pub fn standing<'a>(&'a self, id: &'a Str) -> Standing<'a> {
        Standing {
            id,
            seq: self.seq,
            role: &self.role,
            asker: &self.asker,
            terms: &self.terms,
            accepted_at: self.accepted_at,
            attempts: self.attempts,
            holder: self.hold().map(|hold| hold.holder()),
            cancelled: self.cancelling.as_ref().map(|cancelling| cancelling.message.as_str()),
        }
    }

    pub fn chunks(&self) -> u32 {
        match self.phase {
            Phase::Started { chunks, .. } => chunks,
            _ => 0,
        }
    }

    pub fn stage(&self) -> Stage {
        match self.phase {
            _ if self.cancelling.is_some() => Stage::Cancelling,
            Phase::Queued => Stage::Queued,
            Phase::Waiting => Stage::Waiting,
            Phase::Assigned(_) => Stage::Assigned,
            Phase::Started { .. } => Stage::Started,
        }
    }

    fn deadlines(&self) -> [(Option<Instant>, Due); 4] {
        let of_phase = match self.phase {
            Phase::Queued | Phase::Waiting => Due::Accept,
            Phase::Assigned(_) => Due::FirstChunk,
            Phase::Started { .. } => Due::Idle,
        };
        [
            (self.cancelling.as_ref().map(|cancelling| cancelling.until), Due::Cancel),
            (Some(self.total_until), Due::Total),
            (self.gone_until, Due::AskerGone),
            // Once cancelled, it is not to be any quicker.
            (self.phase_until.filter(|_| self.cancelling.is_none()), of_phase),
        ]
    }

    fn next_deadline(&self) -> Instant {
        let set = self.deadlines().into_iter().filter_map(|(until, _)| until);
        set.min().unwrap_or(self.total_until)
    }

    fn overdue(&self, now: Instant) -> Option<Due> {
        let up = |(until, _): &(Option<Instant>, Due)| until.is_some_and(|until| until <= now);
        self.deadlines().into_iter().find(up).map(|(_, due)| due)
    }

    /// Whether the cause applies to the request as it is now: what was due may have been answered since, a worker that was
    /// lost may not have had it any more.
    pub fn admits(&self, cause: Cause, now: Instant) -> bool {
        match (cause.lost(), cause.due()) {
            (Some(holder), _) => self.hold().is_some_and(|hold| hold.holder() == holder),
            (None, Some(due)) => {
                let up = |(until, what): (Option<Instant>, Due)| what == due && until.is_some_and(|until| until <= now);
                self.deadlines().into_iter().any(up)
            }
            (None, None) => true,
        }
    }

    /// What becomes of it by a cause that applies: another attempt, or its end by this cause.
    pub fn fate(&self, cause: Cause) -> Option<Cause> {
        if cause.lost().is_none() {
            return Some(cause);
        }
        let again = match self.terms.loss {
            Loss::Fail => false,
            Loss::RetryIfSilent => self.chunks() == 0,
            Loss::Restart => true,
        };
        match (again, self.attempts < self.terms.max_attempts) {
            _ if self.cancelling.is_some() => Some(Cause::Cancelled),
            (true, true) => None,
            (true, false) => Some(Cause::AttemptsExhausted),
            (false, _) => Some(cause),
        }
    }

    pub fn remaining(&self, now: Instant) -> Remaining {
        let left = |until: Instant| until.saturating_duration_since(now);
        let of_phase = self.phase_until.map(left);
        let (mut accept, mut first_chunk, mut idle) = (None, None, None);
        match self.phase {
            Phase::Queued | Phase::Waiting => accept = of_phase,
            Phase::Assigned(_) => first_chunk = of_phase,
            Phase::Started { .. } => idle = of_phase,
        }
        Remaining {
            accept,
            first_chunk,
            idle,
            total: left(self.total_until),
        }
    }

    fn enter(&mut self, phase: Phase, now: Now) {
        let span = match phase {
            Phase::Queued | Phase::Waiting => Some(self.terms.accept),
            Phase::Assigned(_) => self.terms.first_chunk,
            Phase::Started { .. } => self.terms.idle,
        };
        self.phase = phase;
        self.changed_at = now.wall;
        self.phase_until = span.map(|span| now.mono + span);
    }

    fn opened<'a>(&'a self, id: &'a Str) -> Opened<'a> {
        let hold = self.hold();
        Opened {
            id,
            seq: self.seq,
            role: &self.role,
            accepted_at: self.accepted_at,
            stage: self.stage(),
            changed_at: self.changed_at,
            worker: hold.map(|hold| hold.worker),
            attempt: hold.map_or(0, |hold| hold.attempt),
            chunks: self.chunks(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Requests<F> {
    open: HashMap<Str, Request<F>>,
    /// How many of them wait for their turn.
    queued: usize,
    ended: VecDeque<Ended>,
    sticky: Vec<(Str, WorkerKey)>,
    /// Never later than the earliest deadline; it may be earlier, since ends do not move it.
    earliest: Option<Instant>,
}

impl<F> Default for Requests<F> {
    fn default() -> Self {
        Self {
            open: HashMap::new(),
            queued: 0,
            ended: VecDeque::new(),
            sticky: Vec::new(),
            earliest: None,
        }
    }
}

/// How many roles a session remembers the last worker of.
const STICKY_ROLES: usize = 16;
/// How many earlier holders of a request are told that they were superseded, rather than that it is not theirs.
const PAST: usize = 16;

impl<F> Requests<F> {
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn get(&self, request: &str) -> Option<&Request<F>> {
        self.open.get(request)
    }

    pub fn entry(&self, request: &str) -> Option<(&Str, &Request<F>)> {
        self.open.get_key_value(request)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.earliest
    }

    pub fn ended(&self, request: &str) -> Option<&Ended> {
        self.ended.iter().rev().find(|ended| ended.id == *request)
    }

    pub fn sticky(&self, role: &str) -> Option<WorkerKey> {
        self.sticky
            .iter()
            .find(|(name, _)| name == role)
            .map(|(_, worker)| *worker)
    }

    fn wake_at(&mut self, deadline: Instant) {
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
    }

    pub fn open(&mut self, id: Str, request: Request<F>) {
        self.wake_at(request.next_deadline());
        self.queued += usize::from(matches!(request.phase, Phase::Queued));
        self.open.insert(id, request);
    }

    /// The open requests for a role, oldest first.
    pub fn of_role(&self, role: &str) -> Vec<(&Str, &Request<F>)> {
        let mut open: Vec<_> = self.open.iter().filter(|(_, open)| open.role == role).collect();
        open.sort_unstable_by_key(|(_, open)| open.seq);
        open
    }

    /// Changes an open request by `act`, and looks after its deadlines.
    fn change<T>(&mut self, request: &str, act: impl FnOnce(&mut Request<F>) -> T) -> Option<T> {
        let open = self.open.get_mut(request)?;
        let done = act(open);
        let deadline = open.next_deadline();
        self.wake_at(deadline);
        Some(done)
    }

    pub fn chunk(&mut self, request: &str, seq: u64, now: Now) {
        self.change(request, |open| match &mut open.phase {
            Phase::Started { chunks, last_seq, .. } => {
                *chunks += 1;
                *last_seq = seq;
                open.phase_until = open.terms.idle.map(|idle| now.mono + idle);
            }
            Phase::Assigned(hold) => {
                let started = Phase::Started {
                    hold: *hold,
                    chunks: 1,
                    last_seq: seq,
                };
                open.enter(started, now);
            }
            Phase::Queued | Phase::Waiting => {}
        });
    }

    /// The worker said something that is no chunk.
    pub fn progress(&mut self, request: &str, now: Instant) {
        self.change(request, |open| {
            if let Phase::Started { .. } = open.phase {
                open.phase_until = open.terms.idle.map(|idle| now + idle);
            }
        });
    }

    pub fn close(&mut self, request: &str, ended: (Outcome, u64, SystemTime), remember: usize) -> Option<Request<F>> {
        let (id, open) = self.open.remove_entry(request)?;
        self.queued -= usize::from(matches!(open.phase, Phase::Queued));
        let (outcome, seq, at) = ended;
        let ended = Ended {
            id: id.detached(),
            outcome,
            attempt: open.hold().map_or(0, |hold| hold.attempt),
            seq,
            at,
        };
        self.remember(ended, remember);
        if self.open.is_empty() {
            self.earliest = None;
        }
        Some(open)
    }

    pub fn remember(&mut self, ended: Ended, limit: usize) {
        if self.ended.len() >= limit {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    /// The first of the role that waited for its turn, if it has come.
    pub fn next_in_turn(&mut self, role: &str, now: Now) -> Option<Str> {
        if self.queued == 0 {
            return None;
        }
        let (id, first) = self.of_role(role).into_iter().next()?;
        if !matches!(first.phase, Phase::Queued) {
            return None;
        }
        let id = id.clone();
        self.queued -= 1;
        self.change(&id, |open| {
            // The time to wait for a worker has run since the beginning.
            let until = open.phase_until;
            open.enter(Phase::Waiting, now);
            open.phase_until = until;
        });
        Some(id)
    }

    pub fn assign(&mut self, request: &str, worker: WorkerKey, connection: ConnectionId, now: Now) -> Option<u32> {
        let open = self.open.get(request)?;
        if !matches!(open.phase, Phase::Waiting) {
            return None;
        }
        let (attempt, role) = (open.attempts + 1, open.role.clone());
        self.change(request, |open| {
            open.attempts = attempt;
            let hold = Hold {
                worker,
                connection,
                attempt,
            };
            open.enter(Phase::Assigned(hold), now);
        });
        self.stick(role, worker);
        Some(attempt)
    }

    /// The holder is lost: the request waits for another one.
    pub fn begin_again(&mut self, request: &str, now: Now) {
        self.change(request, |open| {
            if let Some(hold) = open.hold() {
                open.fence(hold.connection);
            }
            open.enter(Phase::Waiting, now);
        });
    }

    /// The worker came back by another connection; how many chunks there are.
    pub fn resume(&mut self, request: &str, worker: WorkerKey, connection: ConnectionId, attempt: u32) -> Option<u32> {
        let open = self.open.get_mut(request)?;
        let was = open.hold()?;
        if was.worker != worker || was.attempt != attempt {
            return None;
        }
        if let Phase::Assigned(hold) | Phase::Started { hold, .. } = &mut open.phase {
            hold.connection = connection;
        }
        open.fence(was.connection);
        Some(open.chunks())
    }

    /// Its worker is to end it by itself until then; whether that is earlier than it was to before.
    pub fn cancel(&mut self, request: &str, cancelling: Cancelling, now: Now) -> bool {
        let changed = self.change(request, |open| match &mut open.cancelling {
            Some(before) => {
                let is_earlier = cancelling.until < before.until;
                before.until = before.until.min(cancelling.until);
                is_earlier
            }
            none => {
                open.changed_at = now.wall;
                *none = Some(cancelling);
                true
            }
        });
        changed == Some(true)
    }

    /// The member that asked is gone, or back.
    pub fn asker(&mut self, name: &str, gone_at: Option<Instant>) {
        let mut wake = None;
        for open in self.open.values_mut().filter(|open| open.asker == *name) {
            open.gone_until = gone_at.and_then(|at| Some(at + open.terms.gone?));
            // One that is back may have been due already, and is not any more.
            wake = wake.into_iter().chain(std::iter::once(open.next_deadline())).min();
        }
        if let Some(at) = wake {
            self.wake_at(at);
        }
    }

    fn stick(&mut self, role: Str, worker: WorkerKey) {
        match self.sticky.iter_mut().find(|(name, _)| *name == role) {
            Some((_, last)) => *last = worker,
            None => {
                if self.sticky.len() >= STICKY_ROLES {
                    self.sticky.remove(0);
                }
                self.sticky.push((role.detached(), worker));
            }
        }
    }

    pub fn due(&mut self, now: Instant) -> Vec<(Str, Due)> {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return Vec::new();
        }
        let overdue = |(id, open): (&Str, &Request<F>)| Some((id.clone(), open.overdue(now)?));
        let due = self.open.iter().filter_map(overdue).collect();
        // What is due now is ended by the caller, or tried again; if it then does not apply any more, the other times do.
        let deadlines = self.open.values().flat_map(Request::deadlines);
        self.earliest = deadlines.filter_map(|(until, _)| until).filter(|at| *at > now).min();
        due
    }

    pub fn held_by(&self, worker: WorkerKey) -> Vec<(Str, Holder)> {
        let holder = |open: &Request<F>| open.hold().map(|hold| hold.holder());
        let found = self
            .open
            .iter()
            .filter_map(|(id, open)| Some((id.clone(), holder(open)?)));
        found.filter(|(_, holder)| holder.worker == worker).collect()
    }

    pub fn ids(&self) -> Vec<Str> {
        self.list().iter().map(|open| open.id.clone()).collect()
    }

    pub fn list(&self) -> Vec<Opened<'_>> {
        let mut list: Vec<_> = self.open.iter().map(|(id, open)| open.opened(id)).collect();
        list.sort_unstable_by_key(|open| open.seq);
        list
    }

    pub fn opened(&self, request: &str) -> Option<Opened<'_>> {
        self.entry(request).map(|(id, open)| open.opened(id))
    }
}

impl<F> Request<F> {
    fn fence(&mut self, connection: ConnectionId) {
        if self.past.len() >= PAST {
            self.past.remove(0);
        }
        self.past.push(connection);
    }
}
