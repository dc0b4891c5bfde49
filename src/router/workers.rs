//! The workers: who serves which role under which name, by which connection, and whether they live.
//!
//! A worker outlives its connection by its grace. It holds its requests as long as it shows life: once a tick all that hold
//! something are looked at, and one that was silent for its lease loses what it holds.
//!
//! Locks: whoever moves what workers hold from one connection to another, or takes it away for silence, does so in its turn,
//! which is taken before all other locks. A worker's own lock may be held when dispatch's is taken, so that what dispatch believes of a worker is never
//! behind what the worker knows of itself; never the other way round, and never a session's with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::batch::Batch;
use super::kept::KeptHolder;
use super::link::{Form, Link};
use super::live::{Live, Shared};
use super::why::timeouts;
use super::{Router, timers};
use crate::error::{Reason, Refusal};
use crate::frame::{Control, Str, matches, pb};
use crate::session::dispatch::{Contact, Offer, Ticket};
use crate::session::{Cause, Holder, Now, WorkerKey};

/// What a connection offers as a worker.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The worker's name.
    pub name: Str,
    /// The role, the sessions, the number.
    pub offer: Offer,
    /// How long it may be away and keep its requests.
    pub grace: Duration,
    /// What counts as a sign of life.
    pub pulse: Pulse,
    /// What it works on, from before.
    pub holds: Vec<pb::Hold>,
}

/// What counts as a sign of a worker's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// Any byte of its connection.
    Bytes,
    /// Frames only.
    Frames,
}

/// How a connection stops to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// It took its leave: its workers are gone for good.
    Goodbye,
    /// It is lost: its workers may come back.
    Lost,
}

/// A worker, whichever connection it has.
pub(super) struct Worker {
    key: WorkerKey,
    role: Str,
    name: Str,
    /// Whose it is.
    subject: Str,
    since: SystemTime,
    lease: Duration,
    post: Mutex<Post>,
}

/// What changes about a worker.
struct Post {
    link: Option<Arc<Link>>,
    /// It comes back by then, or is gone.
    away_until: Option<Instant>,
    grace: Duration,
    pulse: Pulse,
    contact: Contact,
    /// It has been asked for life, and has shown none since.
    pinged: bool,
    /// When it was handed something after its last sign of life: from then on it is waited for.
    asked: Option<u32>,
    /// The sessions that it holds requests of, told apart by where they are: there may be a newer one of the same name.
    held: HashMap<usize, (Arc<Live>, usize)>,
}

impl Worker {
    fn new(key: WorkerKey, (role, name): &(Str, Str), subject: Str, (since, lease): (SystemTime, Duration)) -> Self {
        Self {
            key,
            role: role.clone(),
            name: name.clone(),
            subject,
            since,
            lease,
            post: Mutex::new(Post {
                link: None,
                away_until: None,
                grace: Duration::ZERO,
                pulse: Pulse::Bytes,
                contact: Contact::Here,
                pinged: false,
                asked: None,
                held: HashMap::new(),
            }),
        }
    }

    fn post(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn name(&self) -> &Str {
        &self.name
    }

    pub fn subject(&self) -> &Str {
        &self.subject
    }

    pub fn link(&self) -> Option<Arc<Link>> {
        self.post().link.clone()
    }

    /// Why what it was just handed by this connection is lost, if it is.
    pub fn lost_by(&self, link: &Arc<Link>, attempt: u32) -> Option<Cause> {
        let post = self.post();
        let holder = Holder {
            worker: self.key,
            attempt,
        };
        match post.contact {
            _ if !post.is_at(link) => Some(Cause::WorkerLost(holder)),
            Contact::Silent => Some(Cause::LeaseExpired(holder)),
            Contact::Here | Contact::Away => None,
        }
    }

    /// It will hold a request of the session, at `tick`; by which connection it is reached, if it is.
    pub fn hold(&self, live: &Arc<Live>, tick: u32) -> Option<Arc<Link>> {
        let mut post = self.post();
        let link = Arc::clone(post.link.as_ref().filter(|_| post.contact == Contact::Here)?);
        if post.held.is_empty() || post.asked.is_none_or(|asked| post.last_life(&link) >= asked) {
            post.asked = Some(tick);
            post.pinged = false;
        }
        let place = Arc::as_ptr(live) as usize;
        post.held.entry(place).or_insert_with(|| (Arc::clone(live), 0)).1 += 1;
        Some(link)
    }

    /// It holds one request of the session less.
    pub fn let_go(&self, live: &Arc<Live>) {
        let mut post = self.post();
        let place = Arc::as_ptr(live) as usize;
        if let Some((_, count)) = post.held.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                post.held.remove(&place);
            }
        }
    }
}

impl Post {
    fn is_at(&self, link: &Arc<Link>) -> bool {
        self.link.as_ref().is_some_and(|there| Arc::ptr_eq(there, link))
    }

    fn last_life(&self, link: &Link) -> u32 {
        match self.pulse {
            Pulse::Bytes => link.last_alive().max(link.last_spoke()),
            Pulse::Frames => link.last_spoke(),
        }
    }

    fn sessions(&self) -> Vec<Arc<Live>> {
        self.held.values().map(|(live, _)| Arc::clone(live)).collect()
    }
}

/// All workers.
#[derive(Default)]
pub(super) struct Workers {
    by_key: HashMap<WorkerKey, Arc<Worker>>,
    by_name: HashMap<(Str, Str), Arc<Worker>>,
}

/// How a worker was reached before another connection served as it, and where it may hold something.
struct Before {
    link: Option<Arc<Link>>,
    sessions: Vec<Arc<Live>>,
}

/// What becomes of what a worker held, and of what it says it does.
#[derive(Default)]
struct TakenOver {
    held: Vec<pb::Hold>,
    lost: Vec<(Arc<Live>, Str, Holder)>,
    unknown: Vec<pb::Hold>,
    /// Of what it holds, what it is to end, and within which time.
    cancelled: Vec<(pb::Hold, Duration)>,
}

/// What a look at a worker found.
enum Felt {
    /// Nothing to be done.
    Well,
    /// It did not come back within its grace.
    Gone,
    /// It is to be asked for life.
    Quiet(Arc<Link>),
    /// It was silent for its lease: what it may hold in these sessions is lost to it.
    Lapsed(Vec<Arc<Live>>),
    /// It shows life again, and gets these.
    Back(Vec<Ticket>),
}

impl Router {
    fn workers(&self) -> MutexGuard<'_, Workers> {
        self.inner.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One at a time: what a worker holds is not to change hands twice at once.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.inner.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn worker(&self, key: WorkerKey) -> Option<Arc<Worker>> {
        self.workers().by_key.get(&key).cloned()
    }

    /// How long a worker of the role may be silent.
    fn lease(&self, role: &str) -> Duration {
        let limits = self.limits();
        let configured = limits.per_role.get(role).and_then(|role| role.lease);
        configured.unwrap_or(limits.lease)
    }

    /// The connection serves the role from now on; `answer` is given what it is to be told first.
    pub fn serve(
        &self,
        link: &Arc<Link>,
        serving: Serving,
        batch: &mut Batch,
        answer: impl FnOnce(pb::Serving),
    ) -> Result<WorkerKey, Refusal> {
        let Serving {
            name,
            mut offer,
            grace,
            pulse,
            holds,
        } = serving;
        offer.max_in_flight = offer.max_in_flight.clamp(1, self.limits().max_in_flight);
        let _turn = self.turn();
        self.check_roles(link, &offer.role)?;
        let (worker, before) = self.enlist(link, &offer.role, &name, batch.now.wall)?;
        self.leave_other_names(link, &offer.role, &name, batch);
        {
            let mut post = worker.post();
            post.grace = grace;
            post.pulse = pulse;
        }
        if !link.take_up(&offer.role, worker.key) {
            // It ended meanwhile, and nobody would notice.
            self.dismiss_worker(&worker, Parting::Goodbye, link, batch);
            return Ok(worker.key);
        }
        let taken = match before {
            None => self.holds_still(&worker, &holds, batch.now.mono),
            Some(before) => {
                self.tell_before(&worker, &before, batch);
                take_over(&worker, link, (&before, &holds, &offer.granted), batch.now.mono)
            }
        };
        tracing::info!(connection = %link.name(), role = %offer.role, worker = %name, max_in_flight = offer.max_in_flight,
            held = taken.held.len(), lost = taken.lost.len(), draining = offer.draining, "worker serves");
        answer(pb::Serving {
            role: offer.role.to_string(),
            worker_id: name.to_string(),
            max_in_flight: offer.max_in_flight,
            lease: prost_types::Duration::try_from(worker.lease).ok(),
            grace: prost_types::Duration::try_from(grace).ok(),
            held: taken.held,
            draining: offer.draining,
        });
        for hold in taken.unknown {
            stop_hold(link, hold, (Reason::Superseded, None));
        }
        for (hold, left) in taken.cancelled {
            stop_hold(link, hold, (Reason::RequestCancelled, Some(left)));
        }
        for (live, request, holder) in taken.lost {
            self.end_or_retry(&live, &request, Cause::WorkerLost(holder), batch);
        }
        let tickets = self.begin(&worker, link, offer);
        self.hand_all(tickets, worker.key, batch);
        Ok(worker.key)
    }

    /// The worker has been told what it holds: the requests that it gets now, unless it is elsewhere again.
    fn begin(&self, worker: &Worker, link: &Arc<Link>, offer: Offer) -> Vec<Ticket> {
        let mut post = worker.post();
        if !post.is_at(link) {
            return Vec::new();
        }
        post.contact = Contact::Here;
        self.dispatch().register(worker.key, offer)
    }

    fn check_roles(&self, link: &Link, role: &str) -> Result<(), Refusal> {
        let limit = self.limits().roles;
        let places = link.places();
        if places.serves.len() >= limit && !places.serves.iter().any(|(served, _)| served == role) {
            let text = format!("the connection serves {limit} roles, the most it may");
            return Err(Refusal::new(Reason::TooManyRoles, text).with("limit", limit.to_string()));
        }
        Ok(())
    }

    /// The connection served the role under another name: that worker is gone.
    fn leave_other_names(&self, link: &Arc<Link>, role: &str, name: &str, batch: &mut Batch) {
        let served = link
            .places()
            .serves
            .iter()
            .find(|(served, _)| served == role)
            .map(|(_, key)| *key);
        let other = served
            .and_then(|key| self.worker(key))
            .filter(|worker| worker.name != *name);
        if let Some(other) = other {
            self.dismiss_worker(&other, Parting::Goodbye, link, batch);
        }
    }

    /// The worker by that name, which comes into being if need be, reached by the connection from now on; and whence it came,
    /// unless it had this connection before.
    fn enlist(
        &self,
        link: &Arc<Link>,
        role: &Str,
        name: &Str,
        now: SystemTime,
    ) -> Result<(Arc<Worker>, Option<Before>), Refusal> {
        let subject = link.identity().map_or(Str::EMPTY, |identity| identity.subject.clone());
        let mut workers = self.workers();
        let id = (role.detached(), name.detached());
        let worker = match workers.by_name.get(&id) {
            Some(known) if known.subject != subject => {
                let text = format!("{name} is another subject's worker of the role {role}; use another name");
                return Err(Refusal::new(Reason::NameTaken, text).with("field", "worker_id"));
            }
            Some(known) => Arc::clone(known),
            None => {
                let since = (now, self.lease(role));
                let worker = Arc::new(Worker::new(WorkerKey(self.next_id()), &id, subject, since));
                workers.by_key.insert(worker.key, Arc::clone(&worker));
                workers.by_name.insert(id, Arc::clone(&worker));
                worker
            }
        };
        let before = self.move_to(&worker, link);
        drop(workers);
        Ok((worker, before))
    }

    /// A worker that had a request of the session before this process was: it may come back, as after the loss of its
    /// connection.
    pub(super) fn expect_back(&self, role: &Str, holder: &KeptHolder, live: &Arc<Live>, now: Now) -> WorkerKey {
        let mut workers = self.workers();
        let id = (role.detached(), Str::from(holder.name.as_str()));
        let worker = match workers.by_name.get(&id) {
            Some(known) => Arc::clone(known),
            None => {
                let since = (now.wall, self.lease(role));
                let subject = Str::from(holder.subject.as_str());
                let worker = Arc::new(Worker::new(WorkerKey(self.next_id()), &id, subject, since));
                workers.by_key.insert(worker.key, Arc::clone(&worker));
                workers.by_name.insert(id, Arc::clone(&worker));
                let mut post = worker.post();
                post.contact = Contact::Away;
                post.away_until = Some(now.mono + self.limits().worker_grace);
                drop(post);
                worker
            }
        };
        let mut post = worker.post();
        let place = Arc::as_ptr(live) as usize;
        post.held.entry(place).or_insert_with(|| (Arc::clone(live), 0)).1 += 1;
        self.dispatch().expect_back(worker.key, role);
        worker.key
    }

    /// The worker is reached by the connection from now on; whence it came, unless it had this one before.
    fn move_to(&self, worker: &Worker, link: &Arc<Link>) -> Option<Before> {
        let mut post = worker.post();
        post.away_until = None;
        (!post.is_at(link)).then(|| {
            // Until it has been told what it holds, it gets nothing new.
            post.contact = Contact::Away;
            self.dispatch().contact(worker.key, Contact::Away);
            post.asked = None;
            Before {
                link: post.link.replace(Arc::clone(link)),
                sessions: post.sessions(),
            }
        })
    }

    /// A worker may work for these sessions only from now on: what it holds of others is lost to it.
    pub(super) fn narrow(&self, (key, link): (WorkerKey, &Arc<Link>), granted: Vec<Str>, batch: &mut Batch) {
        let _turn = self.turn();
        let worker = self.worker(key).filter(|worker| worker.post().is_at(link));
        let Some(worker) = worker else { return };
        let tickets = self.dispatch().grant(key, granted.clone());
        let mut sessions = worker.post().sessions();
        sessions.retain(|live| !granted.iter().any(|pattern| matches(pattern, live.id())));
        self.lose_all(key, &sessions, Cause::WorkerLost, batch);
        self.hand_all(tickets, key, batch);
    }

    /// A worker whose grants do not let it serve any more is gone, and told so.
    pub(super) fn dismiss_denied(&self, key: WorkerKey, link: &Arc<Link>, refusal: &Refusal, batch: &mut Batch) {
        let Some(worker) = self.worker(key) else { return };
        self.dismiss_worker(&worker, Parting::Goodbye, link, batch);
        let retired = pb::Retired {
            role: worker.role.to_string(),
            worker_id: worker.name.to_string(),
            error: Some(refusal.to_pb()),
        };
        link.tell(&Str::EMPTY, Control::Retired(retired));
        batch.touch_link(link);
    }

    /// The worker is served by a newer connection: the older one is told.
    fn replace(&self, worker: &Worker, old: &Arc<Link>, batch: &mut Batch) {
        old.lay_down(worker.key);
        self.inner.counters.workers_replaced.count();
        let text = format!("another connection serves {} as {}", worker.role, worker.name);
        let retired = pb::Retired {
            role: worker.role.to_string(),
            worker_id: worker.name.to_string(),
            error: Some(Refusal::new(Reason::WorkerReplaced, text).to_pb()),
        };
        old.tell(&Str::EMPTY, Control::Retired(retired));
        batch.touch_link(old);
        tracing::info!(connection = %old.name(), role = %worker.role, worker = %worker.name, "worker replaced by a newer connection");
    }

    /// A worker is reached by another connection now: whoever was it before is told, and it is counted.
    fn tell_before(&self, worker: &Worker, before: &Before, batch: &mut Batch) {
        match &before.link {
            Some(old) => self.replace(worker, old, batch),
            None if before.sessions.is_empty() => {}
            None => self.inner.counters.resumed.count(),
        }
    }

    /// What a worker that has its connection still holds of what it names.
    fn holds_still(&self, worker: &Worker, holds: &[pb::Hold], now: Instant) -> TakenOver {
        let mut taken = TakenOver::default();
        for hold in holds {
            let live = self.find(&hold.session_id);
            let held = live.ok().and_then(|live| {
                let shared = live.lock();
                let opened = shared.session.opened(&hold.request_id)?;
                let has = opened.worker == Some(worker.key) && opened.attempt == hold.attempt;
                has.then(|| held(&shared, hold, opened.chunks, now))
            });
            match held {
                Some(held) => taken.held.push(held),
                None => taken.unknown.push(hold.clone()),
            }
        }
        taken
    }

    /// The connection serves nothing any more.
    pub fn retire(&self, link: &Arc<Link>, parting: Parting, batch: &mut Batch) {
        let serves = {
            let mut places = link.places();
            places.retired = true;
            std::mem::take(&mut places.serves)
        };
        for (_, key) in serves {
            if let Some(worker) = self.worker(key) {
                self.dismiss_worker(&worker, parting, link, batch);
            }
        }
    }

    /// The worker has no connection any more; nothing happens if it has another one by now.
    fn dismiss_worker(&self, worker: &Arc<Worker>, parting: Parting, link: &Arc<Link>, batch: &mut Batch) {
        link.lay_down(worker.key);
        let may_return = {
            let mut post = worker.post();
            if !post.is_at(link) {
                return;
            }
            post.link = None;
            post.contact = Contact::Away;
            self.dispatch().contact(worker.key, Contact::Away);
            // One that has nothing has nothing to come back for.
            let may_return = parting == Parting::Lost && post.grace > Duration::ZERO && !post.held.is_empty();
            post.away_until = may_return.then(|| batch.now.mono + post.grace);
            may_return
        };
        if may_return {
            tracing::info!(role = %worker.role, worker = %worker.name, "worker away");
        } else {
            self.strike(worker, batch);
        }
    }

    /// The worker is gone for good, unless it is back by now; what it held is lost.
    fn strike(&self, worker: &Arc<Worker>, batch: &mut Batch) {
        let sessions = {
            let mut workers = self.workers();
            let post = worker.post();
            if post.link.is_some() || workers.by_key.remove(&worker.key).is_none() {
                return;
            }
            workers.by_name.remove(&(worker.role.clone(), worker.name.clone()));
            self.dispatch().unregister(worker.key);
            post.sessions()
        };
        tracing::info!(role = %worker.role, worker = %worker.name, "worker gone");
        if !sessions.is_empty() {
            self.inner.counters.workers_lost.count();
        }
        self.lose_all(worker.key, &sessions, Cause::WorkerLost, batch);
    }

    fn lose_all(&self, worker: WorkerKey, sessions: &[Arc<Live>], cause: fn(Holder) -> Cause, batch: &mut Batch) {
        for live in sessions {
            let held = live.lock().session.held_by(worker);
            for (request, holder) in held {
                self.end_or_retry(live, &request, cause(holder), batch);
            }
        }
    }

    /// Looks whether the workers that are waited for live, at `tick`.
    pub(super) fn feel_workers(&self, tick: u32) {
        let workers: Vec<_> = self.workers().by_key.values().cloned().collect();
        let mut batch = Batch::new(self.now());
        let _turn = self.turn();
        for worker in workers {
            self.feel_worker(&worker, tick, &mut batch);
        }
        batch.finish(None);
    }

    fn feel_worker(&self, worker: &Arc<Worker>, tick: u32, batch: &mut Batch) {
        match self.feel(worker, tick, batch.now.mono) {
            Felt::Well => {}
            Felt::Gone => self.strike(worker, batch),
            Felt::Quiet(link) => {
                link.push_first(timers::PING);
                link.kick();
            }
            Felt::Back(tickets) => {
                tracing::info!(role = %worker.role, worker = %worker.name, "worker shows life again");
                self.hand_all(tickets, worker.key, batch);
            }
            Felt::Lapsed(sessions) => {
                self.inner.counters.leases_expired.count();
                tracing::warn!(role = %worker.role, worker = %worker.name, lease_ms = worker.lease.as_millis() as u64,
                    "worker silent for its lease: it loses what it holds");
                self.lose_all(worker.key, &sessions, Cause::LeaseExpired, batch);
            }
        }
    }

    fn feel(&self, worker: &Worker, tick: u32, now: Instant) -> Felt {
        let mut post = worker.post();
        let Some(link) = post.link.clone() else {
            return match post.away_until {
                Some(until) if until <= now => Felt::Gone,
                _ => Felt::Well,
            };
        };
        let (life, asked) = (post.last_life(&link), post.asked.unwrap_or(0));
        let quiet = timers::tick(&self.inner.limits) * tick.saturating_sub(life.max(asked));
        match post.contact {
            Contact::Silent if life >= asked && quiet < worker.lease => {
                post.contact = Contact::Here;
                Felt::Back(self.dispatch().contact(worker.key, Contact::Here))
            }
            Contact::Silent | Contact::Away => Felt::Well,
            Contact::Here if post.held.is_empty() => Felt::Well,
            Contact::Here if quiet > worker.lease => {
                post.contact = Contact::Silent;
                post.asked = Some(tick);
                self.dispatch().contact(worker.key, Contact::Silent);
                Felt::Lapsed(post.sessions())
            }
            // HTTP/2 asks by itself.
            Contact::Here if quiet > worker.lease / 3 && link.form() != Form::Wire => match post.pinged {
                true => Felt::Well,
                false => {
                    post.pinged = true;
                    Felt::Quiet(link)
                }
            },
            Contact::Here => {
                post.pinged = false;
                Felt::Well
            }
        }
    }

    /// Has a worker take nothing new.
    pub fn drain_worker(&self, role: &str, name: &str) -> Result<pb::Worker, Refusal> {
        let found = self.workers().by_name.get(&(Str::from(role), Str::from(name))).cloned();
        let worker = found
            .filter(|worker| self.dispatch().drain(worker.key))
            .ok_or_else(|| {
                Refusal::new(
                    Reason::WorkerNotFound,
                    format!("no worker {name} serves the role {role}"),
                )
            })?;
        let described = self.describe_worker(&worker);
        if let Some(link) = worker.link() {
            let serving = pb::Serving {
                role: described.role.clone(),
                worker_id: described.worker_id.clone(),
                max_in_flight: described.max_in_flight,
                lease: described.lease,
                grace: described.grace,
                held: Vec::new(),
                draining: true,
            };
            link.tell(&Str::EMPTY, Control::Serving(serving));
            link.kick();
        }
        tracing::info!(role, worker = name, "worker draining");
        Ok(described)
    }

    /// The workers of the role, or all, in the order of roles and names.
    pub fn list_workers(&self, role: &str) -> Vec<pb::Worker> {
        let mut workers: Vec<_> = self.workers().by_key.values().cloned().collect();
        workers.retain(|worker| role.is_empty() || worker.role == *role);
        workers.sort_unstable_by(|one, other| (&one.role, &one.name).cmp(&(&other.role, &other.name)));
        workers.iter().map(|worker| self.describe_worker(worker)).collect()
    }

    fn describe_worker(&self, worker: &Worker) -> pb::Worker {
        let (link, grace, quiet) = {
            let post = worker.post();
            let life = post.link.as_ref().map(|link| post.last_life(link));
            let quiet = life.map(|life| timers::tick(&self.inner.limits) * self.tick().saturating_sub(life));
            (post.link.clone(), post.grace, quiet)
        };
        let span = |span: Duration| prost_types::Duration::try_from(span).ok();
        let dispatch = self.dispatch();
        let offered = dispatch.describe(worker.key);
        let state = match offered {
            Some((_, Contact::Away, _)) | None => pb::WorkerState::Away,
            Some((_, Contact::Silent, _)) => pb::WorkerState::Silent,
            Some((offer, Contact::Here, _)) if offer.draining => pb::WorkerState::Draining,
            Some((_, Contact::Here, _)) => pb::WorkerState::Ready,
        };
        pb::Worker {
            role: worker.role.to_string(),
            worker_id: worker.name.to_string(),
            connection_id: link.map(|link| link.name().to_string()).unwrap_or_default(),
            state: state as i32,
            sessions: offered.map_or_else(Vec::new, |(offer, ..)| {
                offer.sessions.iter().map(Str::to_string).collect()
            }),
            max_in_flight: offered.map_or(0, |(offer, ..)| offer.max_in_flight),
            in_flight: offered.map_or(0, |(.., in_flight)| in_flight),
            lease: span(worker.lease),
            grace: span(grace),
            quiet: quiet.and_then(span),
            since: Some(worker.since.into()),
        }
    }
}

/// What a worker keeps of what it held, now that it is reached by another connection.
fn take_over(
    worker: &Worker,
    link: &Link,
    (before, holds, granted): (&Before, &[pb::Hold], &[Str]),
    now: Instant,
) -> TakenOver {
    let name = |hold: &pb::Hold| (hold.session_id.as_str().into(), hold.request_id.as_str().into());
    let mut named: HashMap<(Str, Str), &pb::Hold> = holds.iter().map(|hold| (name(hold), hold)).collect();
    let mut taken = TakenOver::default();
    for live in &before.sessions {
        let is_granted = granted.iter().any(|pattern| matches(pattern, live.id()));
        let mut shared = live.lock();
        for (request, holder) in shared.session.held_by(worker.key) {
            let name = (live.id().clone(), request.clone());
            let hold = named.get(&name).copied().filter(|_| is_granted);
            let chunks = hold.and_then(|hold| shared.session.resume(&request, worker.key, link.id(), hold.attempt));
            let Some((hold, chunks)) = hold.zip(chunks) else {
                taken.lost.push((Arc::clone(live), request, holder));
                continue;
            };
            named.remove(&name);
            // A loss that the log had not taken yet is none any more.
            shared
                .unended
                .retain(|(id, cause)| *id != request || cause.lost() != Some(holder));
            let left = shared.session.cancel_left(&request, now);
            taken.cancelled.extend(left.map(|left| (hold.clone(), left)));
            taken.held.push(held(&shared, hold, chunks, now));
        }
    }
    taken.unknown = named.into_values().cloned().collect();
    taken
}

/// A request that a worker holds, as it is told.
fn held(shared: &Shared, hold: &pb::Hold, chunks: u32, now: Instant) -> pb::Hold {
    pb::Hold {
        chunks,
        remaining: shared.session.remaining(&hold.request_id, now).map(timeouts),
        ..hold.clone()
    }
}

fn stop_hold(link: &Link, hold: pb::Hold, (reason, left): (Reason, Option<Duration>)) {
    let cancel = pb::Cancel {
        request_id: hold.request_id,
        reason: reason.row().name.to_owned(),
        grace: left.and_then(|left| prost_types::Duration::try_from(left).ok()),
        attempt: hold.attempt,
    };
    link.tell(&hold.session_id.into(), Control::Cancel(cancel));
}
