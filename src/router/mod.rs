//! The router: the shell around the session machines. It owns the registry of sessions and their locks, writes the log, wakes
//! cursors, and carries out what the machines say is to be done.
//!
//! Nothing here knows a transport. Every method computes under its locks, and acts after it has let go (docs/ARCHITECTURE.md
//! has their order).

mod admission;
mod batch;
mod counters;
mod held;
mod identities;
mod kept;
mod link;
mod live;
mod members;
mod memory;
mod publish;
mod requests;
mod seat;
mod sessions;
mod stored;
mod timers;
mod transfer;
mod why;
mod workers;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

pub use admission::{Admission, Admitted, Client, Trust};
pub use batch::Batch;
pub use identities::Arrival;
pub use kept::unknown;
pub use link::{Form, Link, Socket};
pub use live::Live;
pub use members::Joining;
pub use publish::{Asked, Known, Sender};
pub use seat::{Interest, Seat, View};
pub use sessions::{Listing, Query};
pub use timers::Life;
pub use transfer::Importing;
pub use workers::{Parting, Pulse, Serving};

use crate::auth::{Authenticator, Deed, Identity, Place};
use crate::error::{Reason, Refusal};
use crate::frame::{Str, Types, pb};
use crate::limits::Limits;
use crate::log::{Keep, Log};
use crate::session::dispatch::{Bounds, Dispatch};
use crate::session::{Concurrency, ConnectionId, Now, Retention};

/// The role that the gateway itself speaks as.
pub const GATEWAY_ROLE: &str = "gateway";
/// The role of whoever says nothing of it.
pub const CLIENT_ROLE: Str = Str::from_static("client");

/// What the router is made of.
pub struct Parts {
    /// What peers are held to.
    pub limits: Limits,
    /// Who peers are.
    pub auth: Authenticator,
    /// Where frames are kept.
    pub log: Arc<dyn Log>,
    /// The descriptors of typed messages.
    pub types: Arc<Types>,
    /// Which frame type goes to which role.
    pub routes: HashMap<String, String>,
    /// What is kept of a session that asks for nothing of its own, and the most that it can ask for.
    pub keep: Keep,
    /// How long a session that nobody uses is kept, of the same.
    pub idle: Duration,
    /// How long one stays in memory, where the log keeps it.
    pub unload: Duration,
    /// Whether the text chunks of a finished reply are kept as one.
    pub fold: bool,
}

/// The one router of a gateway. Clones are handles of the same.
#[derive(Clone)]
pub struct Router {
    inner: Arc<Inner>,
}

struct Inner {
    limits: Arc<Limits>,
    auth: Authenticator,
    nobody: Arc<Identity>,
    subjects: identities::Subjects,
    log: Arc<dyn Log>,
    types: Arc<Types>,
    routes: HashMap<Str, Str>,
    workers: Mutex<workers::Workers>,
    turn: Mutex<()>,
    counters: counters::Counters,
    retention: Retention,
    unload: Duration,
    fold: bool,
    sessions: Vec<Shard>,
    /// Whoever loads a session does so alone.
    loading: Vec<tokio::sync::Mutex<()>>,
    session_count: AtomicUsize,
    hasher: RandomState,
    links: Vec<Mutex<HashMap<ConnectionId, Arc<Link>>>>,
    link_count: watch::Sender<usize>,
    dispatch: Mutex<Dispatch>,
    timers: timers::Timers,
    later: Arc<timers::Later>,
    gateway: Arc<pb::Address>,
    next_id: AtomicU64,
    started: Instant,
    clock: Arc<timers::Clock>,
    admission: Admission,
    memory: memory::Memory,
    /// Bytes of all open requests.
    request_bytes: held::Bytes,
    /// Whoever backs up does so alone.
    backing_up: tokio::sync::Mutex<()>,
    /// When the last scheduled backup was made.
    last_backup: Mutex<Option<SystemTime>>,
    draining: AtomicBool,
}

type Shard = Mutex<HashMap<Str, Arc<Live>>>;

const SHARDS: usize = 64;

impl Router {
    /// A router without sessions; its timers begin to run.
    pub fn start(parts: Parts) -> Self {
        let Parts {
            limits,
            auth,
            log,
            types,
            routes,
            keep,
            idle,
            unload,
            fold,
        } = parts;
        let gateway = pb::Address {
            role: GATEWAY_ROLE.to_owned(),
            ..pb::Address::default()
        };
        let inner = Arc::new(Inner {
            dispatch: Mutex::new(Dispatch::new(Bounds {
                waiting: limits.waiting,
                affinity_keys: limits.affinity_keys,
            })),
            clock: Arc::new(timers::Clock::new(&limits)),
            admission: Admission::new(&limits),
            memory: memory::Memory::new(limits.memory),
            limits: Arc::new(limits),
            nobody: Arc::new(Identity::nobody()),
            subjects: identities::Subjects::default(),
            auth,
            log,
            types,
            routes: routes
                .into_iter()
                .map(|(kind, role)| (Str::from(kind), Str::from(role)))
                .collect(),
            workers: Mutex::default(),
            turn: Mutex::default(),
            counters: counters::Counters::default(),
            retention: Retention {
                age: keep.age,
                frames: keep.frames,
                bytes: keep.bytes,
                idle,
            },
            unload,
            fold,
            sessions: (0..SHARDS).map(|_| Shard::default()).collect(),
            loading: (0..SHARDS).map(|_| tokio::sync::Mutex::default()).collect(),
            session_count: AtomicUsize::new(0),
            hasher: RandomState::new(),
            links: (0..timers::WHEEL).map(|_| Mutex::default()).collect(),
            link_count: watch::Sender::new(0),
            timers: timers::Timers::default(),
            later: Arc::default(),
            gateway: Arc::new(gateway),
            next_id: AtomicU64::new(1),
            started: clock().mono,
            request_bytes: Arc::default(),
            backing_up: tokio::sync::Mutex::default(),
            last_backup: Mutex::default(),
            draining: AtomicBool::new(false),
        });
        let router = Self { inner };
        timers::start(&router);
        stored::start(&router);
        router
    }

    /// What peers are held to.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Who peers are.
    pub fn auth(&self) -> &Authenticator {
        &self.inner.auth
    }

    /// The descriptors of typed messages.
    pub fn types(&self) -> &Arc<Types> {
        &self.inner.types
    }

    /// What time it is.
    pub fn now(&self) -> Now {
        clock()
    }

    /// A number that no other thing of this process has.
    pub fn next_id(&self) -> u64 {
        self.inner.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn tick(&self) -> u32 {
        self.inner.clock.tick()
    }

    /// The life of a connection that is there now.
    pub fn life(&self) -> Life {
        Life::new(Arc::clone(&self.inner.clock))
    }

    /// Who is let in, and from where.
    pub fn admission(&self) -> &Admission {
        &self.inner.admission
    }

    /// How many peers were disconnected for a flood since the start.
    pub fn floods(&self) -> u64 {
        self.inner.clock.floods.value()
    }

    /// How long the router runs.
    pub fn uptime(&self, now: Now) -> Duration {
        now.mono.saturating_duration_since(self.inner.started)
    }

    fn later(&self) -> Arc<timers::Later> {
        Arc::clone(&self.inner.later)
    }

    /// The role that frames of this type go to, where nothing else is said.
    pub fn route(&self, kind: &str) -> Option<&Str> {
        self.inner.routes.get(kind)
    }

    /// How requests of one session for the role get along, where they do not say.
    pub fn concurrency(&self, role: &str) -> Concurrency {
        let role = self.inner.limits.per_role.get(role);
        role.and_then(|role| role.concurrency).unwrap_or(Concurrency::Parallel)
    }

    /// Whether new requests are refused.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Relaxed)
    }

    fn place(&self, session: &str) -> usize {
        self.inner.hasher.hash_one(session) as usize % SHARDS
    }

    fn shard(&self, session: &str) -> MutexGuard<'_, HashMap<Str, Arc<Live>>> {
        let shard = &self.inner.sessions[self.place(session)];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dispatch(&self) -> MutexGuard<'_, Dispatch> {
        self.inner.dispatch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session, if there is one.
    pub fn find(&self, session: &str) -> Result<Arc<Live>, Refusal> {
        let found = self.shard(session).get(session).cloned();
        found.ok_or_else(|| {
            Refusal::new(
                Reason::SessionNotFound,
                format!("there is no session {session}; join it or create it first"),
            )
        })
    }

    /// The session, which comes into being if need be, and if whoever opens it may have it so; and whether it did.
    pub fn open(&self, session: &Str, by: &Identity) -> Result<(Arc<Live>, bool), Refusal> {
        let mut shard = self.shard(session);
        if let Some(live) = shard.get(session) {
            return Ok((Arc::clone(live), false));
        }
        by.grants.check(Deed::Open, Place { session, role: "" })?;
        self.check_memory()?;
        self.reserve(&by.subject, self.limits().sessions_per_subject)?;
        let id = session.detached();
        let made = self.bring_into_being(id.clone(), &by.subject);
        let live = made.inspect_err(|_| self.unreserve(&by.subject))?;
        shard.insert(id, Arc::clone(&live));
        drop(shard);
        tracing::info!(session = %session, epoch = %live.epoch(), "session opened");
        Ok((live, true))
    }

    /// Counts one more session of the subject, if there may be one.
    fn reserve(&self, subject: &Str, of_subject: usize) -> Result<(), Refusal> {
        let subjects = &self.inner.subjects;
        if !subjects.take(subject, identities::Thing::Session, of_subject) {
            let text = format!(
                "the subject has made {of_subject} sessions that are still there, the most it may; delete some"
            );
            let setting = ("limits.sessions_per_subject", of_subject as u64);
            return Err(Refusal::limit(Reason::TooManySessions, text, setting));
        }
        let limit = self.inner.limits.sessions;
        if self.inner.session_count.fetch_add(1, Ordering::Relaxed) >= limit {
            self.unreserve(subject);
            let text = format!("the gateway has {limit} sessions, the most it may have");
            let setting = ("limits.sessions", limit as u64);
            return Err(Refusal::limit(Reason::TooManySessions, text, setting));
        }
        Ok(())
    }

    /// One session less of the subject.
    fn unreserve(&self, subject: &str) {
        self.inner.session_count.fetch_sub(1, Ordering::Relaxed);
        self.inner.subjects.give_back(subject, identities::Thing::Session);
    }

    fn links(&self, id: ConnectionId) -> MutexGuard<'_, HashMap<ConnectionId, Arc<Link>>> {
        let at = id.0 as usize % self.inner.links.len();
        self.inner.links[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in, if there may be one more. With a socket, it is written to; without, `Link::poll_take` gives out
    /// what there is for it.
    pub fn attach(
        &self,
        form: Form,
        socket: Option<Pin<Box<dyn Socket>>>,
        arrival: Arrival,
    ) -> Result<Arc<Link>, Refusal> {
        self.check_memory()?;
        let place = arrival.life.client().map(Client::link).transpose()?;
        let limit = self.inner.limits.connections;
        let mut admitted = false;
        self.inner.link_count.send_modify(|count| {
            admitted = *count < limit;
            *count += usize::from(admitted);
        });
        if !admitted {
            return Err(too_many_connections(limit));
        }
        if let Some(identity) = &arrival.identity
            && let Err(refusal) = self.take_link(&identity.subject)
        {
            self.inner.link_count.send_modify(|count| *count -= 1);
            return Err(refusal);
        }
        let link = Arc::new(Link::new(self, form, socket, (arrival, place)));
        self.links(link.id()).insert(link.id(), Arc::clone(&link));
        self.arm_new(&link);
        Ok(link)
    }

    /// Whether a connection with this life would be let in now.
    pub fn check_room(&self, life: &Life) -> Result<(), Refusal> {
        self.check_memory()?;
        life.client().map(Client::link).transpose()?;
        let limit = self.inner.limits.connections;
        let has_room = *self.inner.link_count.borrow() < limit;
        match has_room {
            true => Ok(()),
            false => Err(too_many_connections(limit)),
        }
    }

    /// All connections.
    pub fn all_links(&self) -> Vec<Arc<Link>> {
        all(&self.inner.links)
    }

    /// How many connections there are, as it changes.
    pub fn link_count(&self) -> watch::Receiver<usize> {
        self.inner.link_count.subscribe()
    }

    /// How many sessions there are.
    pub fn session_count(&self) -> usize {
        self.inner.session_count.load(Ordering::Relaxed)
    }

    /// How many of them are in memory.
    pub fn sessions_in_memory(&self) -> usize {
        let count = |shard: &Shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.inner.sessions.iter().map(count).sum()
    }

    /// A scheduled backup was made, or failed.
    pub fn backed_up(&self, result: Result<(), ()>) {
        match result {
            Ok(()) => *self.inner.last_backup.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.now().wall),
            Err(()) => self.inner.counters.backups_failed.count(),
        }
    }

    fn last_backup(&self) -> Option<SystemTime> {
        *self.inner.last_backup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A credential was refused.
    pub fn count_credential_refused(&self) {
        self.inner.counters.credentials_refused.count();
    }

    /// What has been counted since the start.
    pub fn stats(&self) -> pb::StatsResponse {
        let counters = &self.inner.counters;
        let uptime = self.inner.started.elapsed();
        let (memory, memory_limit) = self.memory();
        let usage = self.inner.log.usage();
        pb::StatsResponse {
            started_at: self.now().wall.checked_sub(uptime).map(Into::into),
            connections: *self.inner.link_count.borrow() as u64,
            sessions: self.session_count() as u64,
            open_requests: self.open_requests() as u64,
            requests: counters.requests.value(),
            completed: counters.completed.value(),
            failed: counters.failed.value(),
            cancelled: counters.cancelled.value(),
            expired: counters.expired.value(),
            restarts: counters.restarts.value(),
            leases_expired: counters.leases_expired.value(),
            workers_lost: counters.workers_lost.value(),
            workers_replaced: counters.workers_replaced.value(),
            workers_resumed: counters.resumed.value(),
            fenced_frames: counters.fenced.value(),
            sockets: self.inner.admission.sockets() as u64,
            sockets_refused: self.inner.admission.refused(),
            floods: self.floods(),
            credentials_refused: counters.credentials_refused.value(),
            memory_bytes: memory as u64,
            memory_limit_bytes: memory_limit as u64,
            request_bytes: self.request_bytes() as u64,
            disk_bytes: usage.disk_bytes,
            disk_queue_bytes: usage.waiting_bytes,
            sessions_in_memory: self.sessions_in_memory() as u64,
            last_backup_at: self.last_backup().map(Into::into),
            backups_failed: counters.backups_failed.value(),
        }
    }

    fn all_sessions(&self) -> Vec<Arc<Live>> {
        all(&self.inner.sessions)
    }

    /// The request's reply, whose chunks are from one seq to another, is over and durable: keeps it folded, if that is wanted.
    pub(super) fn fold_answer(&self, live: &Live, request: &str, from: u64, to: u64) {
        if self.inner.fold {
            self.inner.log.fold(live.id(), request, from, to);
            live.lock().forget_chunks(request, from, to);
        }
    }

    /// What is wrong with the gateway, if anything is.
    pub fn check(&self) -> Result<(), String> {
        self.inner.log.check().map_err(|error| Refusal::from(error).message)?;
        let tick = Duration::from_secs_f64(f64::from(self.tick()) * timers::tick(self.limits()).as_secs_f64());
        let behind = self.inner.started.elapsed().saturating_sub(tick);
        if behind > timers::LATE {
            return Err(format!(
                "the timers are {} s behind: the process gets too little time",
                behind.as_secs()
            ));
        }
        Ok(())
    }
}

/// What all shards hold.
fn all<K, V: Clone>(shards: &[Mutex<HashMap<K, V>>]) -> Vec<V> {
    let mut found = Vec::new();
    for shard in shards {
        found.extend(shard.lock().unwrap_or_else(PoisonError::into_inner).values().cloned());
    }
    found
}

fn too_many_connections(limit: usize) -> Refusal {
    let text = format!("the gateway has {limit} connections, the most it may have");
    Refusal::limit(Reason::TooManyConnections, text, ("limits.connections", limit as u64)).after(Duration::from_secs(1))
}

#[allow(clippy::disallowed_methods, reason = "here the shell asks")]
fn clock() -> Now {
    Now {
        mono: Instant::now(),
        wall: SystemTime::now(),
    }
}

/// Sixteen hexadecimal digits that nobody can guess.
#[allow(clippy::disallowed_methods, reason = "here the shell asks")]
pub fn random_name() -> Str {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system must have random numbers");
    Str::from(format!("{:016x}", u64::from_le_bytes(bytes)))
}
