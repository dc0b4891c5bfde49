//! The requests of a session that have not ended, and the names of some that have.

use std::collections::{HashMap, VecDeque};
use std::time::{Instant, SystemTime};

use super::{ConnectionId, WorkerKey};
use crate::error::Reason;
use crate::frame::Str;

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its worker's final reply.
    Answered,
    /// A member cancelled it.
    Cancelled,
    /// There was no worker.
    NoWorker,
    /// No worker had room.
    AcceptTimeout,
    /// It took too long.
    TotalTimeout,
    /// Its worker went away.
    WorkerLost,
    /// Too many requests waited for its role.
    TooManyWaiting,
    /// Its session was closed.
    SessionClosed,
    /// Its session was deleted.
    SessionDeleted,
    /// The gateway stopped.
    Shutdown,
}

impl Cause {
    /// As the error that the session is told; nothing for an answer.
    pub fn reason(self) -> Option<Reason> {
        Some(match self {
            Cause::Answered => return None,
            Cause::Cancelled => Reason::RequestCancelled,
            Cause::NoWorker => Reason::NoWorker,
            Cause::AcceptTimeout => Reason::AcceptTimeout,
            Cause::TotalTimeout => Reason::TotalTimeout,
            Cause::WorkerLost => Reason::WorkerLost,
            Cause::TooManyWaiting => Reason::TooManyWaiting,
            Cause::SessionClosed => Reason::RequestCancelled,
            Cause::SessionDeleted => Reason::SessionDeleted,
            Cause::Shutdown => Reason::Shutdown,
        })
    }

    /// Whether it ends only requests that no worker has.
    pub fn needs_waiting(self) -> bool {
        matches!(self, Cause::NoWorker | Cause::AcceptTimeout)
    }

    /// Whether a worker that holds the request has to be told.
    pub(super) fn stops_worker(self) -> bool {
        !matches!(self, Cause::Answered | Cause::WorkerLost)
    }
}

/// Which of its times a request has used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The time to wait for a worker.
    Accept,
    /// All of it.
    Total,
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
    /// Since when.
    pub accepted_at: SystemTime,
    /// Which attempt a worker is at; 0 while it waits.
    pub attempt: u32,
    /// How many chunks that attempt has brought.
    pub chunks: u32,
}

#[derive(Debug)]
pub(super) struct Request<F> {
    pub seq: u64,
    pub role: Str,
    pub accepted_at: SystemTime,
    pub total_until: Instant,
    pub phase: Phase,
    pub attempts: u32,
    pub kept: F,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// No worker has it.
    Waiting { until: Instant },
    /// A worker has it. `chunks` is also the index of the next one; `last_seq` is where the last one is.
    Assigned {
        worker: WorkerKey,
        attempt: u32,
        chunks: u32,
        last_seq: u64,
    },
}

impl<F> Request<F> {
    fn next_deadline(&self) -> Instant {
        match self.phase {
            Phase::Waiting { until } => until.min(self.total_until),
            Phase::Assigned { .. } => self.total_until,
        }
    }
}

#[derive(Debug)]
pub(super) struct Requests<F> {
    open: HashMap<Str, Request<F>>,
    ended: VecDeque<Str>,
    sticky: Vec<(Str, WorkerKey)>,
    /// Never later than the earliest deadline; it may be earlier, since ends do not move it.
    earliest: Option<Instant>,
}

impl<F> Default for Requests<F> {
    fn default() -> Self {
        Self {
            open: HashMap::new(),
            ended: VecDeque::new(),
            sticky: Vec::new(),
            earliest: None,
        }
    }
}

/// How many roles a session remembers the last worker of.
const STICKY_ROLES: usize = 16;

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

    pub fn has_ended(&self, request: &str) -> bool {
        self.ended.iter().any(|ended| ended == request)
    }

    pub fn sticky(&self, role: &str) -> Option<WorkerKey> {
        self.sticky
            .iter()
            .find(|(name, _)| name == role)
            .map(|(_, worker)| *worker)
    }

    pub fn open(&mut self, id: Str, request: Request<F>) {
        let deadline = request.next_deadline();
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        self.open.insert(id, request);
    }

    pub fn chunk(&mut self, request: &str, seq: u64) {
        if let Some(Request {
            phase: Phase::Assigned { chunks, last_seq, .. },
            ..
        }) = self.open.get_mut(request)
        {
            *chunks += 1;
            *last_seq = seq;
        }
    }

    pub fn close(&mut self, request: &str, remember: usize) -> Option<Request<F>> {
        let (id, open) = self.open.remove_entry(request)?;
        if self.ended.len() >= remember {
            self.ended.pop_front();
        }
        self.ended.push_back(id.detached());
        if self.open.is_empty() {
            self.earliest = None;
        }
        Some(open)
    }

    pub fn assign(&mut self, request: &str, worker: WorkerKey) -> Option<u32> {
        let open = self.open.get_mut(request)?;
        if let Phase::Assigned { .. } = open.phase {
            return None;
        }
        open.attempts += 1;
        open.phase = Phase::Assigned {
            worker,
            attempt: open.attempts,
            chunks: 0,
            last_seq: open.seq,
        };
        let attempt = open.attempts;
        let role = open.role.clone();
        self.stick(role, worker);
        Some(attempt)
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
        let due = self
            .open
            .iter()
            .filter(|(_, open)| open.next_deadline() <= now)
            .map(|(id, open)| {
                let due = if open.total_until <= now {
                    Due::Total
                } else {
                    Due::Accept
                };
                (id.clone(), due)
            })
            .collect();
        self.earliest = self.open.values().map(Request::next_deadline).min();
        due
    }

    pub fn held_by(&self, connection: ConnectionId) -> Vec<Str> {
        self.open
            .iter()
            .filter(|(_, open)| matches!(open.phase, Phase::Assigned { worker, .. } if worker.connection == connection))
            .map(|(id, _)| id.clone())
            .collect()
    }

    pub fn list(&self) -> Vec<Opened<'_>> {
        let mut list: Vec<_> = self
            .open
            .iter()
            .map(|(id, open)| {
                let (attempt, chunks) = match open.phase {
                    Phase::Waiting { .. } => (0, 0),
                    Phase::Assigned { attempt, chunks, .. } => (attempt, chunks),
                };
                Opened {
                    id,
                    seq: open.seq,
                    role: &open.role,
                    accepted_at: open.accepted_at,
                    attempt,
                    chunks,
                }
            })
            .collect();
        list.sort_unstable_by_key(|open| open.seq);
        list
    }
}
