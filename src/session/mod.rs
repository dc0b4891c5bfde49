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

pub use crate::limits::Concurrency;
pub use members::{Member, Seat};
use requests::{Cancelling, Hold, Phase, Request, Requests};
pub use requests::{
    Cause, Due, Ended, Held, Holder, Loss, Opened, Outcome, Remaining, Reopened, Stage, Standing, Terms,
};
use window::{Key, Seen, Window};

/// Which connection; never used twice in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Which worker: one that serves a role, by whatever connection it came last; never used twice in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerKey(pub u64);

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

/// What the application has said of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Its own words, which mean nothing to the gateway.
    pub metadata: BTreeMap<String, String>,
    /// Short words by which it selects sessions.
    pub labels: BTreeMap<String, String>,
    /// How it wants the session to be kept, if it asks for anything: most do not, and are to cost little.
    pub retention: Option<Box<Wanted>>,
}

impl Said {
    /// As a profile has it.
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// How a session is to be kept, as far as it asks for something of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// How long a frame is kept.
    pub age: Option<Duration>,
    /// How many frames are.
    pub frames: Option<u64>,
    /// How many bytes of frames are.
    pub bytes: Option<u64>,
    /// How long the session is, while nobody uses it.
    pub idle: Option<Duration>,
}

/// How a session is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long a frame is kept.
    pub age: Duration,
    /// How many frames are.
    pub frames: usize,
    /// How many bytes of frames are.
    pub bytes: usize,
    /// How long the session is, while nobody uses it.
    pub idle: Duration,
}

impl Retention {
    /// What is left to a session that asks for something of its own: less, but never more.
    #[must_use]
    pub fn cut(self, wanted: &Wanted) -> Self {
        let count = |wanted: Option<u64>, most: usize| {
            wanted
                .and_then(|wanted| usize::try_from(wanted).ok())
                .map_or(most, |wanted| wanted.min(most))
        };
        let span = |wanted: Option<Duration>, most: Duration| wanted.map_or(most, |wanted| wanted.min(most));
        Self {
            age: span(wanted.age, self.age),
            frames: count(wanted.frames, self.frames),
            bytes: count(wanted.bytes, self.bytes),
            idle: span(wanted.idle, self.idle),
        }
    }
}

/// Who sends, in one word: a name is the subject's that goes by it. No name has a line break in it.
pub fn sender(subject: &str, name: &Str) -> Str {
    match subject.is_empty() {
        true => name.clone(),
        false => Str::from(format!("{subject}\n{name}")),
    }
}

/// A frame that somebody wants in the log, as far as the session cares.
#[derive(Debug)]
pub struct Post<'a> {
    /// The sender, as `sender` makes it: of this dedup speaks, and for this one's return an answer may wait.
    pub sender: &'a Str,
    /// The frame's id; may be empty, but for a request.
    pub id: &'a Str,
    /// A digest of what it says; of no account without an id.
    pub substance: u64,
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
        /// The sender's own: it need not be a member to write to itself.
        own: &'a str,
    },
    /// For one worker of a role.
    Request {
        /// The role.
        role: &'a Str,
        /// How it is to be carried out.
        terms: &'a Terms,
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
    /// How the request ends here, if it does.
    pub last: Option<Outcome>,
}

/// What is to become of a posted frame.
#[allow(clippy::large_enum_variant, reason = "it is taken apart where it is made")]
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
    /// Of replies: as which worker the connection sent it.
    pub worker: Option<WorkerKey>,
    key: Option<(Key, u64)>,
    change: Change,
}

#[derive(Debug)]
enum Change {
    None,
    Open {
        request: Str,
        role: Str,
        asker: Str,
        terms: Box<Terms>,
    },
    Chunk {
        request: Str,
    },
    Restart {
        request: Str,
        cause: Cause,
    },
    End {
        request: Str,
        cause: Cause,
    },
}

/// What a plan does to a request.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Nothing.
    None,
    /// It is accepted.
    Opened(&'a Str),
    /// Its worker said something.
    Chunk(&'a Str),
    /// Its worker is lost, and it begins again.
    Restarted(&'a Str, Cause),
    /// It ends.
    Ended(&'a Str, Cause),
}

impl Plan {
    /// What it does to a request.
    pub fn step(&self) -> Step<'_> {
        match &self.change {
            Change::None => Step::None,
            Change::Open { request, .. } => Step::Opened(request),
            Change::Chunk { request } => Step::Chunk(request),
            Change::Restart { request, cause } => Step::Restarted(request, *cause),
            Change::End { request, cause } => Step::Ended(request, *cause),
        }
    }

    /// The cause by which a request ends or begins again, if one does.
    pub fn cause(&self) -> Option<Cause> {
        match self.step() {
            Step::Restarted(_, cause) | Step::Ended(_, cause) => Some(cause),
            _ => None,
        }
    }

    /// How its frame is known again, if it is sent again: its sender, and the digest of what it says.
    pub fn seen(&self) -> Option<(&Str, u64)> {
        self.key.as_ref().map(|(key, substance)| (key.sender(), *substance))
    }

    /// The request that it opens, as it will stand.
    pub fn opening(&self, now: SystemTime) -> Option<Standing<'_>> {
        match &self.change {
            Change::Open {
                request,
                role,
                asker,
                terms,
            } => Some(Standing {
                id: request,
                seq: self.seq,
                role,
                asker,
                terms,
                accepted_at: now,
                attempts: 0,
                holder: None,
                cancelled: None,
            }),
            _ => None,
        }
    }

    /// Whether a request begins again.
    pub fn restarts(&self) -> bool {
        matches!(self.change, Change::Restart { .. })
    }
}

/// What a cancel did.
#[derive(Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// There is no worker to be asked, or no time: the request is to be ended now.
    Now,
    /// Its worker is to end it; it is told unless it knows.
    Asked(Vec<Effect>),
}

enum Known {
    New(Option<(Key, u64)>),
    Duplicate(u64),
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
        /// What it has in common with others that should go to the same worker; may be empty.
        affinity: Str,
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
    /// The request is over: what was said in answer to it lies between these places of the log.
    Fold {
        /// The request.
        request: Str,
        /// Its own place.
        from: u64,
        /// Its end's.
        to: u64,
    },
    /// The worker is to stop working on the request.
    Stop {
        /// The worker.
        worker: WorkerKey,
        /// The request.
        request: Str,
        /// Which attempt.
        attempt: u32,
        /// Why.
        why: Stop,
    },
}

/// Why a worker is to stop working on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is over.
    Ended(Cause),
    /// It is another worker's now, or will be.
    Superseded,
    /// It was cancelled: the worker has this long to end it.
    Cancelled(Duration),
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

/// What there is to know of a session beside its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Whether it may be written.
    pub state: State,
    /// What the application has said of it, if it has: of most it has not, and they are to cost little.
    pub said: Option<Box<Said>>,
    /// When it came into being.
    pub created_at: SystemTime,
    /// When any of this changed last.
    pub updated_at: SystemTime,
    /// Changes of any of this.
    pub revision: u64,
}

impl Profile {
    /// Of a new session.
    pub fn new(now: SystemTime) -> Self {
        Self {
            state: State::Open,
            said: None,
            created_at: now,
            updated_at: now,
            revision: 1,
        }
    }

    /// With something else said of it, which has been checked.
    #[must_use]
    pub fn saying(mut self, said: Said, now: SystemTime) -> Self {
        self.said = said.boxed();
        self.touched(now)
    }

    /// What the application has said of it.
    pub fn said(&self) -> &Said {
        static NOTHING: Said = Said {
            metadata: BTreeMap::new(),
            labels: BTreeMap::new(),
            retention: None,
        };
        self.said.as_deref().unwrap_or(&NOTHING)
    }

    /// How the session is kept, where these are the settings.
    pub fn retention(&self, settings: Retention) -> Retention {
        match &self.said().retention {
            Some(wanted) => settings.cut(wanted),
            None => settings,
        }
    }

    /// What is sent from now on is refused. The open requests are to be ended before.
    #[must_use]
    pub fn closed(mut self, now: SystemTime) -> Self {
        if self.state == State::Closed {
            return self;
        }
        self.state = State::Closed;
        self.touched(now)
    }

    fn touched(mut self, now: SystemTime) -> Self {
        self.revision += 1;
        self.updated_at = now;
        self
    }
}

/// The log of a session that comes back.
#[derive(Clone, Debug)]
pub struct Extent {
    /// The identity of its life.
    pub epoch: Str,
    /// Its oldest seq, `head + 1` if it is empty.
    pub first: u64,
    /// Its newest seq, 0 for none.
    pub head: u64,
}

/// One session. `F` is what the caller keeps with each open request (its frame).
#[derive(Debug)]
pub struct Session<F> {
    id: Str,
    epoch: Str,
    head: u64,
    first: u64,
    profile: Profile,
    members: members::Members,
    requests: Requests<F>,
    seen: Window,
    limits: Arc<Limits>,
}

impl<F> Session<F> {
    /// A new session with an empty log.
    pub fn new(id: Str, epoch: Str, limits: Arc<Limits>, now: SystemTime) -> Self {
        let extent = Extent {
            epoch,
            first: 1,
            head: 0,
        };
        Self::restore(id, extent, Profile::new(now), limits)
    }

    /// A session that comes back: nobody is in it yet, and what is to be remembered comes by `recall_id`, `recall_end` and
    /// `reopen`, the oldest first.
    pub fn restore(id: Str, extent: Extent, profile: Profile, limits: Arc<Limits>) -> Self {
        Self {
            id,
            epoch: extent.epoch,
            head: extent.head,
            first: extent.first,
            profile,
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
        self.profile.state
    }

    /// What there is to know of it beside its log.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// From now on this is to be known of it.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
    }

    /// How it is kept, where these are the settings.
    pub fn retention(&self, settings: Retention) -> Retention {
        self.profile.retention(settings)
    }

    /// The members by name.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.iter()
    }

    /// The requests that have not ended, oldest first.
    pub fn open_requests(&self) -> Vec<Opened<'_>> {
        self.requests.list()
    }

    /// Their ids, oldest first.
    pub fn open_ids(&self) -> Vec<Str> {
        self.requests.ids()
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
        let key = match self.look_up(post, None)? {
            Known::New(key) => key,
            Known::Duplicate(seq) => return Ok(Verdict::Duplicate { seq, index: None }),
        };
        self.check_open()?;
        let change = match &post.kind {
            Kind::Event | Kind::Reply(_) => Change::None,
            Kind::Private { to, own } => {
                if self.members.get(to).is_none() && to != own {
                    return Err(Refusal::new(
                        Reason::MemberNotFound,
                        format!("session {} has no member {to} now", self.id),
                    ));
                }
                Change::None
            }
            Kind::Request { role, terms } => {
                self.check_request(post.id, role, terms)?;
                Change::Open {
                    request: post.id.clone(),
                    role: (*role).clone(),
                    asker: post.sender.clone(),
                    terms: Box::new((*terms).clone()),
                }
            }
        };
        Ok(Verdict::Append(Plan {
            seq: self.head + 1,
            attempt: 0,
            index: None,
            worker: None,
            key,
            change,
        }))
    }

    /// Whether a frame with this id was seen before, and said the same.
    fn look_up(&self, post: &Post<'_>, reply: Option<(&Str, u32)>) -> Result<Known, Refusal> {
        if post.id.is_empty() {
            return Ok(Known::New(None));
        }
        let mut key = Key::new(post.sender, post.id);
        if let Some((request, attempt)) = reply {
            key = key.of_reply(request, attempt);
        }
        match self.seen.get(&key) {
            None => Ok(Known::New(Some((key, post.substance)))),
            // Where it is not known what the frame said, its id is believed.
            Some(seen) if seen.substance.is_none_or(|substance| substance == post.substance) => {
                Ok(Known::Duplicate(seen.seq))
            }
            Some(seen) => {
                let text = format!(
                    "frame {} of this sender, at {}, says something else; use a new id",
                    post.id, seen.seq
                );
                Err(Refusal::new(Reason::IdReused, text).with("seq", seen.seq.to_string()))
            }
        }
    }

    fn plan_reply(&self, post: &Post<'_>, reply: Reply<'_>) -> Result<Verdict, Refusal> {
        let open = match self.requests.get(reply.request) {
            Some(open) => open,
            None => return self.plan_late_reply(post, reply),
        };
        let hold = open.answering(reply)?;
        let (chunks, last_seq) = match open.phase {
            Phase::Started { chunks, last_seq, .. } => (chunks, last_seq),
            _ => (0, open.seq),
        };
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
        let key = match self.look_up(post, Some((reply.request, hold.attempt)))? {
            Known::New(key) => key,
            Known::Duplicate(seq) => return Ok(Verdict::Duplicate { seq, index: None }),
        };
        let request = reply.request.clone();
        let change = match reply.last {
            Some(outcome) => Change::End {
                request,
                cause: Cause::Answered(outcome),
            },
            None => Change::Chunk { request },
        };
        Ok(Verdict::Append(Plan {
            seq: self.head + 1,
            attempt: hold.attempt,
            index: Some(chunks),
            worker: Some(hold.worker),
            key,
            change,
        }))
    }

    /// A reply to a request that is over: it may be one that was sent again, since its ack was lost.
    fn plan_late_reply(&self, post: &Post<'_>, reply: Reply<'_>) -> Result<Verdict, Refusal> {
        let over = || self.no_such_request(reply.request);
        let ended = self.requests.ended(reply.request).ok_or_else(over)?;
        let attempt = if reply.attempt == 0 {
            ended.attempt
        } else {
            reply.attempt
        };
        match self.look_up(post, Some((reply.request, attempt))) {
            Ok(Known::Duplicate(seq)) => Ok(Verdict::Duplicate { seq, index: None }),
            _ => Err(over()),
        }
    }

    /// A reply that is not logged, a note of progress: its attempt, and as which worker the connection sent it.
    pub fn note_reply(&mut self, reply: Reply<'_>, now: Instant) -> Result<(u32, WorkerKey), Refusal> {
        let Some(open) = self.requests.get(reply.request) else {
            return Err(self.no_such_request(reply.request));
        };
        let hold = open.answering(reply)?;
        self.requests.progress(reply.request, now);
        Ok((hold.attempt, hold.worker))
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

    /// What the end of a request by the gateway would do, or the end of its attempt. Changes nothing. There is no plan for a
    /// cause that does not apply any more: a time that is not up, a worker that does not have the request.
    pub fn plan_end(&self, request: &str, cause: Cause, now: Instant) -> Result<Option<Plan>, Refusal> {
        let Some((name, open)) = self.requests.entry(request) else {
            return Err(self.no_such_request(request));
        };
        if !open.admits(cause, now) {
            return Ok(None);
        }
        let hold = open.hold();
        let request = name.clone();
        let (attempt, index, change) = match open.fate(cause) {
            None => (open.attempts + 1, None, Change::Restart { request, cause }),
            Some(cause) => {
                let attempt = hold.map_or(0, |hold| hold.attempt);
                let index = hold.map(|_| open.chunks());
                (attempt, index, Change::End { request, cause })
            }
        };
        Ok(Some(Plan {
            seq: self.head + 1,
            attempt,
            index,
            worker: None,
            key: None,
            change,
        }))
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
        if let Some((key, substance)) = plan.key {
            let seen = Seen {
                seq: plan.seq,
                substance: Some(substance),
            };
            self.seen.insert(key.detached(), seen, self.limits.dedup_ids);
        }
        match plan.change {
            Change::None => Vec::new(),
            Change::Open {
                request,
                role,
                asker,
                terms,
            } => {
                let queued = terms.concurrency == Concurrency::Queue && !self.requests.of_role(&role).is_empty();
                let opened = Request {
                    seq: plan.seq,
                    role,
                    asker,
                    accepted_at: now.wall,
                    changed_at: now.wall,
                    total_until: now.mono + terms.total,
                    phase_until: Some(now.mono + terms.accept),
                    phase: if queued { Phase::Queued } else { Phase::Waiting },
                    cancelling: None,
                    gone_until: None,
                    attempts: 0,
                    past: Vec::new(),
                    terms,
                    kept,
                };
                self.requests.open(request.clone(), opened);
                if queued { Vec::new() } else { self.submit(request) }
            }
            Change::Chunk { request } => {
                self.requests.chunk(&request, plan.seq, now);
                Vec::new()
            }
            Change::Restart { request, .. } => {
                let hold = self.requests.get(&request).and_then(Request::hold);
                self.requests.begin_again(&request, now);
                let mut effects = hold.map_or_else(Vec::new, |hold| {
                    // The old attempt is stopped before the new one is handed out: it may be to the same worker.
                    stop(hold, request.clone(), Stop::Superseded).into()
                });
                effects.extend(self.submit(request));
                effects
            }
            Change::End { request, cause } => self.end(request, cause, plan.seq, now),
        }
    }

    fn submit(&self, request: Str) -> Vec<Effect> {
        let Some(open) = self.requests.get(&request) else {
            return Vec::new();
        };
        vec![Effect::Submit {
            role: open.role.clone(),
            prefer: self.requests.sticky(&open.role),
            affinity: open.terms.affinity.clone(),
            request,
        }]
    }

    fn end(&mut self, request: Str, cause: Cause, seq: u64, now: Now) -> Vec<Effect> {
        let remember = self.limits.ended_requests;
        let Some(open) = self
            .requests
            .close(&request, (cause.outcome(), seq, now.wall), remember)
        else {
            return Vec::new();
        };
        let fold = (open.attempts > 0 && seq > 0).then(|| Effect::Fold {
            request: request.clone(),
            from: open.seq,
            to: seq,
        });
        let mut effects = match (open.phase, cause) {
            (Phase::Queued, _) => Vec::new(),
            (Phase::Waiting, _) => vec![Effect::Withdraw {
                request,
                role: open.role.clone(),
            }],
            (Phase::Assigned(hold) | Phase::Started { hold, .. }, Cause::Answered(_)) => {
                vec![Effect::Release { worker: hold.worker }]
            }
            (Phase::Assigned(hold) | Phase::Started { hold, .. }, _) => stop(hold, request, Stop::Ended(cause)).into(),
        };
        if let Some(next) = self.requests.next_in_turn(&open.role, now) {
            effects.extend(self.submit(next));
        }
        effects.extend(fold);
        effects
    }

    /// The worker that was chosen for a waiting request could not be reached.
    pub fn submit_again(&self, request: &str) -> Vec<Effect> {
        match self.requests.entry(request) {
            Some((id, open)) if matches!(open.phase, Phase::Waiting) => self.submit(id.clone()),
            _ => Vec::new(),
        }
    }

    /// Ends a request without a word in the log, because the log itself ends.
    pub fn abandon(&mut self, request: &Str, cause: Cause, now: Now) -> Vec<Effect> {
        self.end(request.clone(), cause, 0, now)
    }

    /// Somebody wants the request to end: its worker, if it has one, is given `grace` to do it.
    pub fn cancel(&mut self, request: &str, message: &str, grace: Duration, now: Now) -> Result<Cancelled, Refusal> {
        let Some((id, open)) = self.requests.entry(request) else {
            return Err(self.no_such_request(request));
        };
        let Some(hold) = open.hold().filter(|_| grace > Duration::ZERO) else {
            return Ok(Cancelled::Now);
        };
        let id = id.clone();
        let cancelling = Cancelling {
            until: now.mono + grace,
            message: message.to_owned(),
        };
        let is_news = self.requests.cancel(request, cancelling, now);
        let stop = is_news.then_some(Effect::Stop {
            worker: hold.worker,
            request: id,
            attempt: hold.attempt,
            why: Stop::Cancelled(grace),
        });
        Ok(Cancelled::Asked(stop.into_iter().collect()))
    }

    /// What is left to the worker of a request that is being cancelled.
    pub fn cancel_left(&self, request: &str, now: Instant) -> Option<Duration> {
        let cancelling = self.requests.get(request)?.cancelling.as_ref()?;
        Some(cancelling.until.saturating_duration_since(now))
    }

    /// What a worker that was just told of a request has missed meanwhile: that it is to stop.
    pub fn missed(&self, request: &str, holder: Holder, now: Instant) -> Option<Stop> {
        let held = self.requests.get(request).and_then(Request::hold);
        match held.is_some_and(|hold| hold.holder() == holder) {
            true => self.cancel_left(request, now).map(Stop::Cancelled),
            false => Some(Stop::Superseded),
        }
    }

    /// What was said when the request was cancelled, if it was.
    pub fn cancel_message(&self, request: &str) -> Option<&str> {
        let cancelling = self.requests.get(request)?.cancelling.as_ref()?;
        Some(&cancelling.message)
    }

    /// An open request, as it is to be remembered.
    pub fn standing(&self, request: &str) -> Option<Standing<'_>> {
        self.requests.entry(request).map(|(id, open)| open.standing(id))
    }

    /// A frame is in the log that was in another one, at this place.
    pub fn adopt(&mut self, seq: u64, first: u64) {
        debug_assert_eq!(seq, self.head + 1, "adopted in order");
        self.head = seq;
        self.first = first;
    }

    /// A frame of the log, by which it is known again: its sender, its id, of replies the request and the attempt, its place and
    /// what it says.
    pub fn recall_id(
        &mut self,
        (sender, id): (&Str, &Str),
        reply: Option<(&Str, u32)>,
        seq: u64,
        substance: Option<u64>,
    ) {
        let key = Key::new(sender, id);
        let key = match reply {
            Some((request, attempt)) => key.of_reply(request, attempt),
            None => key,
        };
        let seen = Seen { seq, substance };
        self.seen.insert(key.detached(), seen, self.limits.dedup_ids);
    }

    /// A request of the log that is over.
    pub fn recall_end(&mut self, ended: Ended) {
        self.requests.remember(ended, self.limits.ended_requests);
    }

    /// A request of the log that is not over goes on from where it was.
    pub fn reopen(&mut self, id: Str, reopened: Reopened<F>, now: Now) -> Vec<Effect> {
        let is_behind = !self.requests.of_role(&reopened.role).is_empty();
        let request = reopened.into_request(is_behind, now);
        let waits = matches!(request.phase, Phase::Waiting);
        self.requests.open(id.clone(), request);
        if waits { self.submit(id) } else { Vec::new() }
    }

    /// The open requests for a role that a new one takes the place of.
    pub fn rivals(&self, role: &str) -> Vec<Str> {
        let rivals = self.requests.of_role(role);
        rivals.into_iter().map(|(id, _)| id.clone()).collect()
    }

    /// The requests that are due by `now`, to be ended one by one by `plan_end`, which looks again.
    pub fn due(&mut self, now: Instant) -> Vec<(Str, Due)> {
        self.requests.due(now)
    }

    /// The worker was chosen for the request, and is reached by the connection: the attempt to hand it as, or nothing if the
    /// request needs none any more.
    pub fn assign(&mut self, request: &str, worker: WorkerKey, connection: ConnectionId, now: Now) -> Option<u32> {
        self.requests.assign(request, worker, connection, now)
    }

    /// A worker came back by another connection, and says that it still works on the request: how many chunks there are, or
    /// nothing if it does not have it.
    pub fn resume(&mut self, request: &str, worker: WorkerKey, connection: ConnectionId, attempt: u32) -> Option<u32> {
        self.requests.resume(request, worker, connection, attempt)
    }

    /// The connections by which a sender asked without joining are gone.
    pub fn asker_gone(&mut self, sender: &str, now: Instant) {
        self.requests.asker(sender, Some(now));
    }

    /// An open request, as others see it.
    pub fn opened(&self, request: &str) -> Option<Opened<'_>> {
        self.requests.opened(request)
    }

    /// A request that is over, unless that was long ago.
    pub fn ended(&self, request: &str) -> Option<&Ended> {
        self.requests.ended(request)
    }

    /// The request of the session that this one waits for.
    pub fn behind(&self, request: &str) -> Option<&Str> {
        let open = self.requests.get(request)?;
        matches!(open.phase, Phase::Queued).then_some(())?;
        let before = self.requests.of_role(&open.role);
        before
            .into_iter()
            .map(|(id, _)| id)
            .take_while(|id| **id != *request)
            .last()
    }

    /// Whether the request is open, and no worker has it.
    pub fn is_waiting(&self, request: &str) -> bool {
        self.requests
            .get(request)
            .is_some_and(|open| matches!(open.phase, Phase::Waiting))
    }

    /// The requests that the worker holds.
    pub fn held_by(&self, worker: WorkerKey) -> Vec<(Str, Holder)> {
        self.requests.held_by(worker)
    }

    /// What remains of an open request's times.
    pub fn remaining(&self, request: &str, now: Instant) -> Option<Remaining> {
        self.requests.get(request).map(|open| open.remaining(now))
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
        self.check_own(&member.name, &member.subject)?;
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
        self.requests.asker(&sender(&member.subject, &member.name), None);
        Ok(Entry {
            begin,
            replaced: self.members.insert(member),
        })
    }

    /// Whether the name may be this subject's: nobody takes the name of a member that is somebody else.
    pub fn check_own(&self, name: &str, subject: &str) -> Result<(), Refusal> {
        match self.members.get(name) {
            Some(member) if member.subject != *subject => Err(Refusal::new(
                Reason::NameTaken,
                format!(
                    "{name} is another subject's name in session {}; use another one",
                    self.id
                ),
            )
            .with("field", "member_id")),
            _ => Ok(()),
        }
    }

    /// A member by name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.get(name)
    }

    /// The connection is no member any more. Nothing happens if another one has its name by now.
    pub fn leave(&mut self, name: &str, seat: Seat, now: Instant) -> Option<Member> {
        let member = self.members.remove(name, seat)?;
        self.requests.asker(&sender(&member.subject, &member.name), Some(now));
        Some(member)
    }

    /// The log has let go of what was before `first`.
    pub fn trimmed(&mut self, first: u64) {
        self.first = self.first.max(first);
    }

    /// Whether the session may be written.
    pub fn check_open(&self) -> Result<(), Refusal> {
        match self.profile.state {
            State::Open => Ok(()),
            State::Closed => Err(Refusal::new(
                Reason::SessionClosed,
                format!("session {} is closed: it can be read, not written", self.id),
            )),
        }
    }

    fn check_request(&self, id: &Str, role: &str, terms: &Terms) -> Result<(), Refusal> {
        if self.requests.get(id).is_some() {
            return Err(Refusal::new(
                Reason::RequestIdInUse,
                format!("another sender's request {id} is open in this session; use ids that are unique"),
            ));
        }
        let replaced = match terms.concurrency {
            Concurrency::Replace => self.requests.of_role(role).len(),
            _ => 0,
        };
        if self.requests.len() - replaced >= self.limits.open_requests {
            let limit = self.limits.open_requests;
            let text = format!("session {} has {limit} open requests, the most it may have", self.id);
            let setting = ("limits.open_requests", limit as u64);
            return Err(Refusal::limit(Reason::TooManyRequests, text, setting));
        }
        if terms.concurrency == Concurrency::Reject
            && let Some((other, _)) = self.requests.of_role(role).first()
        {
            let text =
                format!("request {other} of the session is open for the role {role}; wait for its end, or cancel it");
            return Err(Refusal::new(Reason::SessionBusy, text).with("request_id", other.to_string()));
        }
        Ok(())
    }

    /// Whether the request is over, or was never heard of.
    pub fn no_such_request(&self, request: &str) -> Refusal {
        if self.requests.ended(request).is_some() {
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

impl<F> Request<F> {
    /// Who holds the request, if the reply is from there.
    fn answering(&self, reply: Reply<'_>) -> Result<Hold, Refusal> {
        let superseded = |text: String| Refusal::new(Reason::Superseded, text);
        match self.hold() {
            Some(hold) if hold.connection == reply.connection => {
                // One that had an earlier attempt too may be speaking of that.
                let silent_is_now = !self.past.contains(&reply.connection);
                match reply.attempt {
                    0 if silent_is_now => Ok(hold),
                    0 => Err(superseded(format!(
                        "this connection had request {} before: say `attempt` {}, if it is that one",
                        reply.request, hold.attempt
                    ))),
                    theirs if theirs == hold.attempt => Ok(hold),
                    theirs => Err(superseded(format!(
                        "the request is at attempt {}, the reply is of attempt {theirs}",
                        hold.attempt
                    ))),
                }
            }
            _ if self.past.contains(&reply.connection) => Err(superseded(format!(
                "request {} is another worker's now; what is sent for it from here reaches nobody",
                reply.request
            ))),
            _ => Err(Refusal::new(
                Reason::NotYourRequest,
                format!("request {} is not held by this connection", reply.request),
            )),
        }
    }
}

/// The worker is done with the request, and is to know why.
fn stop(hold: Hold, request: Str, why: Stop) -> [Effect; 2] {
    let Hold { worker, attempt, .. } = hold;
    let stop = Effect::Stop {
        worker,
        request,
        attempt,
        why,
    };
    [stop, Effect::Release { worker }]
}
