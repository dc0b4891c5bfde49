//! The session: a pure machine. It knows the log's position, the members, the open requests and what was seen before; it
//! decides what a frame may do and what follows from it.
//!
//! It must never do I/O, read a clock or draw a random number: time and names are arguments. Its methods are of four kinds:
//!
//! - getters (`head`, `members`, `deadline` …);
//! - `plan_*`: what would a frame, or the end of a request, do? They change nothing, so that the caller can write the log
//!   first and give up without a trace if the log refuses;
//! - `apply`: the plan's frame is in the log, let it have happened;
//! - commands that touch no log (`join`, `leave`, `assign`, `close` …).
//!
//! What is to be done outside comes back as a list of `Effect`.

pub mod dispatch;
mod members;
mod requests;
#[cfg(test)]
mod simulation;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Reason, Refusal};
use crate::frame::Str;
use crate::limits::Limits;

pub use members::{Member, Seat};
pub use requests::{Cause, Due, Opened};
use requests::{Phase, Request, Requests};
use window::{Key, Window};

/// Which connection; never used twice in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Which worker: a connection, in its capacity as one that serves a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerKey {
    /// The connection.
    pub connection: ConnectionId,
    /// Told apart from the connection's other roles.
    pub slot: u32,
}

/// What time it is, by the clock that never jumps and by the calendar.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For deadlines.
    pub mono: Instant,
    /// For people.
    pub wall: SystemTime,
}

/// Whether a session may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It may.
    Open,
    /// It may be read only.
    Closed,
}

/// A frame that somebody wants in the log, as far as the session cares.
#[derive(Debug)]
pub struct Post<'a> {
    /// The sender's name: of this dedup speaks.
    pub sender: &'a Str,
    /// The frame's id; may be empty, but for a request.
    pub id: &'a Str,
    /// What it is.
    pub kind: Kind<'a>,
}

/// What a posted frame is.
#[derive(Debug)]
pub enum Kind<'a> {
    /// For the session, or for a part of its members.
    Event,
    /// For one member.
    Private {
        /// Its name.
        to: &'a str,
    },
    /// For one worker of a role.
    Request {
        /// The role.
        role: &'a Str,
        /// How long it may wait for a worker.
        accept: Duration,
        /// How long it may take in all.
        total: Duration,
    },
    /// From a worker, for a request.
    Reply(Reply<'a>),
}

/// A worker's reply, as far as the session cares.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// The request's id.
    pub request: &'a Str,
    /// Who sends it.
    pub connection: ConnectionId,
    /// The attempt that the sender named; 0 for its own.
    pub attempt: u32,
    /// The place that the sender named.
    pub index: Option<u32>,
    /// Whether the request ends here.
    pub last: bool,
}

/// What is to become of a posted frame.
#[derive(Debug)]
pub enum Verdict {
    /// It goes to the log.
    Append(Plan),
    /// It is there already.
    Duplicate {
        /// Where.
        seq: u64,
        /// Of a chunk: its place in the reply.
        index: Option<u32>,
    },
}

/// What a frame will have done once it is in the log, and what has to be written on it.
#[derive(Debug)]
pub struct Plan {
    /// Its place in the log.
    pub seq: u64,
    /// Of replies: the attempt.
    pub attempt: u32,
    /// Of chunks and final replies: the place in the reply.
    pub index: Option<u32>,
    /// Of replies: as what the connection served.
    pub slot: Option<u32>,
    key: Option<Key>,
    change: Change,
}

#[derive(Debug)]
enum Change {
    None,
    Open {
        request: Str,
        role: Str,
        accept: Duration,
        total: Duration,
    },
    Chunk {
        request: Str,
    },
    End {
        request: Str,
        cause: Cause,
    },
}

/// What has to be done outside.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Find a worker for the request.
    Submit {
        /// The request.
        request: Str,
        /// Its role.
        role: Str,
        /// The worker that had the session's last request for the role.
        prefer: Option<WorkerKey>,
    },
    /// The request does not need a worker any more.
    Withdraw {
        /// The request.
        request: Str,
        /// Its role.
        role: Str,
    },
    /// The worker has room for one more.
    Release {
        /// The worker.
        worker: WorkerKey,
    },
    /// The worker is to stop working on the request.
    Stop {
        /// The worker.
        worker: WorkerKey,
        /// The request.
        request: Str,
        /// Why.
        cause: Cause,
    },
}

/// Where a reader wants to begin.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The last seq that it has.
    pub after: Option<u64>,
    /// The epoch of which `after` speaks.
    pub epoch: Str,
    /// How many of the newest frames it wants.
    pub tail: u32,
}

/// Where a reader begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The first seq that it will be sent.
    pub next: u64,
    /// `Start::after` could be honoured.
    pub resumed: bool,
    /// The log is not the one that the reader knew: what it asked for, from `next - 1` back to this seq, is void.
    pub void_from: Option<u64>,
}

/// What joining brought about.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the member begins.
    pub begin: Begin,
    /// The connection that was in the session by the same name, and is not any more.
    pub replaced: Option<Seat>,
}

/// One session. `F` is what the caller keeps with each open request (its frame).
#[derive(Debug)]
pub struct Session<F> {
    id: Str,
    epoch: Str,
    state: State,
    head: u64,
    first: u64,
    metadata: BTreeMap<String, String>,
    created_at: SystemTime,
    updated_at: SystemTime,
    revision: u64,
    members: members::Members,
    requests: Requests<F>,
    seen: Window,
    limits: Arc<Limits>,
}

impl<F> Session<F> {
    /// A new session with an empty log.
    pub fn new(id: Str, epoch: Str, limits: Arc<Limits>, now: SystemTime) -> Self {
        Self {
            id,
            epoch,
            state: State::Open,
            head: 0,
            first: 1,
            metadata: BTreeMap::new(),
            created_at: now,
            updated_at: now,
            revision: 1,
            members: members::Members::default(),
            requests: Requests::default(),
            seen: Window::default(),
            limits,
        }
    }

    /// Its name.
    pub fn id(&self) -> &Str {
        &self.id
    }

    /// The identity of its log's life.
    pub fn epoch(&self) -> &Str {
        &self.epoch
    }

    /// The newest seq in the log, 0 for none.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// The oldest seq in the log, `head + 1` if it is empty.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Whether it may be written.
    pub fn state(&self) -> State {
        self.state
    }

    /// The application's own words about it.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// When it came into being, and when metadata or state changed last.
    pub fn times(&self) -> (SystemTime, SystemTime) {
        (self.created_at, self.updated_at)
    }

    /// Changes with metadata and state.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The members by name.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.iter()
    }

    /// The requests that have not ended, oldest first.
    pub fn open_requests(&self) -> Vec<Opened<'_>> {
        self.requests.list()
    }

    /// How many requests have not ended.
    pub fn open_request_count(&self) -> usize {
        self.requests.len()
    }

    /// No request becomes due before this.
    pub fn deadline(&self) -> Option<Instant> {
        self.requests.deadline()
    }

    /// What was kept with an open request.
    pub fn request(&self, request: &str) -> Option<&F> {
        self.requests.get(request).map(|open| &open.kept)
    }

    /// What a frame would do. Changes nothing.
    pub fn plan_post(&self, post: &Post<'_>) -> Result<Verdict, Refusal> {
        if let Kind::Reply(reply) = post.kind {
            return self.plan_reply(post, reply);
        }
        let key = (!post.id.is_empty()).then(|| Key::new(post.sender, post.id));
        if let Some(seq) = key.as_ref().and_then(|key| self.seen.get(key)) {
            return Ok(Verdict::Duplicate { seq, index: None });
        }
        self.check_open()?;
        let change = match &post.kind {
            Kind::Event | Kind::Reply(_) => Change::None,
            Kind::Private { to } => {
                if self.members.get(to).is_none() && *to != post.sender.as_str() {
                    return Err(Refusal::new(
                        Reason::MemberNotFound,
                        format!("session {} has no member {to} now", self.id),
                    ));
                }
                Change::None
            }
            Kind::Request { role, accept, total } => {
                self.check_request(post.id)?;
                Change::Open {
                    request: post.id.clone(),
                    role: (*role).clone(),
                    accept: *accept,
                    total: *total,
                }
            }
        };
        Ok(Verdict::Append(Plan {
            seq: self.head + 1,
            attempt: 0,
            index: None,
            slot: None,
            key,
            change,
        }))
    }

    fn plan_reply(&self, post: &Post<'_>, reply: Reply<'_>) -> Result<Verdict, Refusal> {
        let open = match self.requests.get(reply.request) {
            Some(open) => open,
            None => return Err(self.no_such_request(reply.request)),
        };
        let Phase::Assigned {
            worker,
            attempt,
            chunks,
            last_seq,
        } = open.phase
        else {
            return Err(not_yours(reply.request));
        };
        if worker.connection != reply.connection {
            return Err(not_yours(reply.request));
        }
        check_attempt(reply, attempt)?;
        match reply.index {
            Some(index) if index < chunks => {
                return Ok(Verdict::Duplicate {
                    seq: last_seq,
                    index: Some(chunks - 1),
                });
            }
            Some(index) if index > chunks => {
                return Err(Refusal::new(
                    Reason::ChunkOutOfOrder,
                    format!("the next chunk of {} is {chunks}, not {index}", reply.request),
                )
                .with("expected", chunks.to_string()));
            }
            _ => {}
        }
        let key = (!post.id.is_empty()).then(|| Key::new(post.sender, post.id));
        if let Some(seq) = key.as_ref().and_then(|key| self.seen.get(key)) {
            return Ok(Verdict::Duplicate { seq, index: None });
        }
        let request = reply.request.clone();
        let change = match reply.last {
            true => Change::End {
                request,
                cause: Cause::Answered,
            },
            false => Change::Chunk { request },
        };
        Ok(Verdict::Append(Plan {
            seq: self.head + 1,
            attempt,
            index: Some(chunks),
            slot: Some(worker.slot),
            key,
            change,
        }))
    }

    /// Whether the connection may send an ephemeral reply to the request; its attempt, and as what the connection serves.
    pub fn check_ephemeral_reply(&self, reply: Reply<'_>) -> Result<(u32, u32), Refusal> {
        let Some(open) = self.requests.get(reply.request) else {
            return Err(self.no_such_request(reply.request));
        };
        match open.phase {
            Phase::Assigned { worker, attempt, .. } if worker.connection == reply.connection => {
                check_attempt(reply, attempt)?;
                Ok((attempt, worker.slot))
            }
            _ => Err(not_yours(reply.request)),
        }
    }

    /// Whether frames may be sent, and to whom. For frames that do not go to the log.
    pub fn check_ephemeral(&self, to: Option<&str>) -> Result<(), Refusal> {
        self.check_open()?;
        match to {
            Some(name) if self.members.get(name).is_none() => Err(Refusal::new(
                Reason::MemberNotFound,
                format!("session {} has no member {name} now", self.id),
            )),
            _ => Ok(()),
        }
    }

    /// What the end of a request by the gateway would do. Changes nothing.
    pub fn plan_end(&self, request: &str, cause: Cause) -> Result<Plan, Refusal> {
        let Some((name, open)) = self.requests.entry(request) else {
            return Err(self.no_such_request(request));
        };
        let (attempt, index) = match open.phase {
            Phase::Waiting { .. } => (0, None),
            Phase::Assigned { attempt, chunks, .. } => (attempt, Some(chunks)),
        };
        let change = Change::End {
            request: name.clone(),
            cause,
        };
        Ok(Plan {
            seq: self.head + 1,
            attempt,
            index,
            slot: None,
            key: None,
            change,
        })
    }

    /// The plan's frame is in the log, whose first seq is now `first`. `kept` is what to keep with the request that the frame
    /// opens, if it opens one.
    pub fn apply(&mut self, plan: Plan, first: u64, kept: F, now: Now) -> Vec<Effect> {
        debug_assert_eq!(
            plan.seq,
            self.head + 1,
            "a plan must be applied before the next is made"
        );
        self.head = plan.seq;
        self.first = first;
        if let Some(key) = plan.key {
            self.seen.insert(key.detached(), plan.seq, self.limits.dedup_ids);
        }
        match plan.change {
            Change::None => Vec::new(),
            Change::Open {
                request,
                role,
                accept,
                total,
            } => {
                let prefer = self.requests.sticky(&role);
                self.requests.open(
                    request.clone(),
                    Request {
                        seq: plan.seq,
                        role: role.clone(),
                        accepted_at: now.wall,
                        total_until: now.mono + total,
                        phase: Phase::Waiting {
                            until: now.mono + accept.min(total),
                        },
                        attempts: 0,
                        kept,
                    },
                );
                vec![Effect::Submit { request, role, prefer }]
            }
            Change::Chunk { request } => {
                self.requests.chunk(&request, plan.seq);
                Vec::new()
            }
            Change::End { request, cause } => self.end(request, cause),
        }
    }

    fn end(&mut self, request: Str, cause: Cause) -> Vec<Effect> {
        let Some(open) = self.requests.close(&request, self.limits.ended_requests) else {
            return Vec::new();
        };
        match open.phase {
            Phase::Waiting { .. } => vec![Effect::Withdraw {
                request,
                role: open.role,
            }],
            Phase::Assigned { worker, .. } if cause.stops_worker() => {
                vec![Effect::Stop { worker, request, cause }, Effect::Release { worker }]
            }
            Phase::Assigned { worker, .. } => vec![Effect::Release { worker }],
        }
    }

    /// Ends a request without a word in the log, because the log itself ends.
    pub fn abandon(&mut self, request: &Str, cause: Cause) -> Vec<Effect> {
        self.end(request.clone(), cause)
    }

    /// The requests that are due by `now`, to be ended one by one by `plan_end`. One that was due for want of a worker may have
    /// got one by then: see `is_waiting`.
    pub fn due(&mut self, now: Instant) -> Vec<(Str, Due)> {
        self.requests.due(now)
    }

    /// The worker was chosen for the request: the attempt to hand it as, or nothing if the request needs none any more.
    pub fn assign(&mut self, request: &str, worker: WorkerKey) -> Option<u32> {
        self.requests.assign(request, worker)
    }

    /// Whether the request is open, and no worker has it.
    pub fn is_waiting(&self, request: &str) -> bool {
        self.requests
            .get(request)
            .is_some_and(|open| matches!(open.phase, Phase::Waiting { .. }))
    }

    /// The requests that the connection holds as a worker.
    pub fn held_by(&self, connection: ConnectionId) -> Vec<Str> {
        self.requests.held_by(connection)
    }

    /// How much of a request's total time is left.
    pub fn remaining(&self, request: &str, now: Instant) -> Option<Duration> {
        self.requests
            .get(request)
            .map(|open| open.total_until.saturating_duration_since(now))
    }

    /// Where a reader that wants `start` begins.
    pub fn begin(&self, start: &Start) -> Result<Begin, Refusal> {
        let live = self.head + 1;
        let Some(after) = start.after else {
            let next = live.saturating_sub(u64::from(start.tail)).max(self.first);
            return Ok(Begin {
                next,
                resumed: false,
                void_from: None,
            });
        };
        if !start.epoch.is_empty() && start.epoch != self.epoch {
            return Ok(Begin {
                next: self.first,
                resumed: false,
                void_from: Some(after + 1),
            });
        }
        if after > self.head {
            return Err(Refusal::new(
                Reason::AfterSeqAhead,
                format!("after_seq {after} is past the log's end, {}", self.head),
            )
            .with("head_seq", self.head.to_string()));
        }
        Ok(Begin {
            next: after + 1,
            resumed: after + 1 >= self.first,
            void_from: None,
        })
    }

    /// Make a connection a member.
    pub fn join(&mut self, member: Member, start: &Start) -> Result<Entry, Refusal> {
        let begin = self.begin(start)?;
        let known = self.members.get(&member.name).is_some();
        if !known && self.members.len() >= self.limits.members {
            return Err(Refusal::new(
                Reason::TooManyMembers,
                format!(
                    "session {} has {} members, the most it may have",
                    self.id, self.limits.members
                ),
            )
            .with("limit", self.limits.members.to_string()));
        }
        Ok(Entry {
            begin,
            replaced: self.members.insert(member),
        })
    }

    /// The connection is no member any more. Nothing happens if another one has its name by now.
    pub fn leave(&mut self, name: &str, seat: Seat) -> Option<Member> {
        self.members.remove(name, seat)
    }

    /// Change the metadata; both lists have been checked.
    pub fn update(&mut self, set: impl IntoIterator<Item = (String, String)>, unset: &[String], now: SystemTime) {
        self.metadata.extend(set);
        for key in unset {
            self.metadata.remove(key);
        }
        self.touch(now);
    }

    /// Refuse what is sent from now on. The open requests are to be ended before.
    pub fn close(&mut self, now: SystemTime) {
        if self.state == State::Open {
            self.state = State::Closed;
            self.touch(now);
        }
    }

    fn touch(&mut self, now: SystemTime) {
        self.revision += 1;
        self.updated_at = now;
    }

    /// Whether the session may be written.
    pub fn check_open(&self) -> Result<(), Refusal> {
        match self.state {
            State::Open => Ok(()),
            State::Closed => Err(Refusal::new(
                Reason::SessionClosed,
                format!("session {} is closed: it can be read, not written", self.id),
            )),
        }
    }

    fn check_request(&self, id: &Str) -> Result<(), Refusal> {
        if self.requests.get(id).is_some() {
            return Err(Refusal::new(
                Reason::RequestIdInUse,
                format!("another sender's request {id} is open in this session; use ids that are unique"),
            ));
        }
        if self.requests.len() >= self.limits.open_requests {
            return Err(Refusal::new(
                Reason::TooManyRequests,
                format!(
                    "session {} has {} open requests, the most it may have",
                    self.id, self.limits.open_requests
                ),
            )
            .with("limit", self.limits.open_requests.to_string()));
        }
        Ok(())
    }

    /// Whether the request is over, or was never heard of.
    pub fn no_such_request(&self, request: &str) -> Refusal {
        if self.requests.has_ended(request) {
            Refusal::new(
                Reason::RequestEnded,
                format!("request {request} is over; what is sent for it reaches nobody"),
            )
        } else {
            Refusal::new(
                Reason::RequestNotFound,
                format!("session {} knows of no request {request}", self.id),
            )
        }
    }
}

fn check_attempt(reply: Reply<'_>, attempt: u32) -> Result<(), Refusal> {
    if reply.attempt == 0 || reply.attempt == attempt {
        return Ok(());
    }
    let text = format!(
        "the request is at attempt {attempt}, the reply is of attempt {}",
        reply.attempt
    );
    Err(Refusal::new(Reason::Superseded, text))
}

fn not_yours(request: &str) -> Refusal {
    Refusal::new(
        Reason::NotYourRequest,
        format!("request {request} is not held by this connection"),
    )
}
