//! Time: the deadlines of requests, the coarse clock, heartbeats, and the removal of sessions that nobody uses.
//!
//! Sessions with deadlines are in one table; one task sleeps until the first of them. One ticker moves the coarse clock, and
//! every so many ticks looks at the next spoke of the wheel of connections, so that each is looked at once a heartbeat.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use super::admission::Client;
use super::batch::Batch;
use super::counters::Counter;
use super::link::{Form, Link};
use super::live::{Live, Shared};
use super::{Inner, Router, memory};
use crate::error::{Reason, Refusal};
use crate::limits::Limits;
use crate::session::Cause;

/// Spokes of the wheel of connections.
pub(super) const WHEEL: usize = 32;
/// How far the ticker may be behind before the gateway calls itself unwell.
pub(super) const LATE: Duration = Duration::from_secs(10);
/// What "soon" is.
const SOON: Duration = Duration::from_millis(5);
/// How soon an end that the log refused is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The part of the shortest lease by which the ticker may be late before it says that the process stood still.
const STALL_OF_LEASE: u32 = 4;
/// Ticks after that in which nobody is judged.
const CALM: u32 = 4;
/// A ping, whole: RFC 6455 §5.5.2.
pub(super) const PING: Bytes = Bytes::from_static(&[0x89, 0]);

/// The table of sessions with deadlines, and of connections that may not go on for ever as who they are.
#[derive(Default)]
pub(super) struct Timers {
    table: Mutex<BTreeMap<(Instant, u64), Timed>>,
    earlier: Notify,
}

/// What the timers are to look at.
enum Timed {
    Session(Weak<Live>),
    Link(Weak<Link>),
}

impl Timers {
    /// Puts the session into the table, in one place only.
    fn set(&self, place: (Instant, u64), before: Option<(Instant, u64)>, live: &Arc<Live>) {
        self.put(Some(place), before, Timed::Session(Arc::downgrade(live)));
    }

    /// Puts the connection into the table, in one place only, or takes it out.
    pub fn set_link(&self, place: Option<(Instant, u64)>, before: Option<(Instant, u64)>, link: &Arc<Link>) {
        self.put(place, before, Timed::Link(Arc::downgrade(link)));
    }

    fn put(&self, place: Option<(Instant, u64)>, before: Option<(Instant, u64)>, timed: Timed) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = before {
            table.remove(&before);
        }
        let Some(place) = place else { return };
        let first = table.keys().next().is_none_or(|(first, _)| place.0 < *first);
        table.insert(place, timed);
        drop(table);
        if first {
            self.earlier.notify_one();
        }
    }

    fn take_due(&self, now: Instant) -> (Vec<Timed>, Option<Instant>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let later = table.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut *table, later);
        let next = table.keys().next().map(|(at, _)| *at);
        (due.into_values().collect(), next)
    }
}

/// Links that are kicked a little later, together with what comes for them until then.
#[derive(Default)]
pub(super) struct Later {
    links: Mutex<Vec<Arc<Link>>>,
    some: Notify,
}

impl Later {
    pub fn add(&self, link: Arc<Link>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.push(link);
        let first = links.len() == 1;
        drop(links);
        if first {
            self.some.notify_one();
        }
    }

    fn take(&self) -> Vec<Arc<Link>> {
        std::mem::take(&mut self.links.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The coarse clock, which the ticker moves on, and what is counted by those who know nothing else of the router.
#[derive(Debug)]
pub(super) struct Clock {
    tick: AtomicU32,
    span: Duration,
    pub floods: Counter,
}

impl Clock {
    pub fn new(limits: &Limits) -> Self {
        Self {
            tick: AtomicU32::new(0),
            span: Pace::of(limits).tick,
            floods: Counter::default(),
        }
    }

    /// Ticks since the start.
    pub fn tick(&self) -> u32 {
        self.tick.load(Ordering::Relaxed)
    }

    fn advance(&self) -> u32 {
        self.tick.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// When the peer of a connection last showed life, by the coarse clock, and whose connection it is. Clones are handles of the
/// same.
#[derive(Clone, Debug)]
pub struct Life {
    clock: Arc<Clock>,
    last: Arc<AtomicU32>,
    client: Option<Client>,
}

impl Life {
    pub(super) fn new(clock: Arc<Clock>) -> Self {
        let last = Arc::new(AtomicU32::new(clock.tick()));
        Self {
            clock,
            last,
            client: None,
        }
    }

    /// The same life, as that of a connection from this client's address.
    #[must_use]
    pub fn of(mut self, client: Option<Client>) -> Self {
        self.client = client;
        self
    }

    /// From where the connection comes, if that counts.
    pub(super) fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// How long the router runs, to within a tick.
    pub fn time(&self) -> Duration {
        self.clock.span * self.now()
    }

    /// The peer was disconnected for a flood.
    pub fn count_flood(&self) {
        self.clock.floods.count();
        if let Some(client) = &self.client {
            client.flooded();
        }
    }

    /// The peer showed life.
    pub fn sign(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    /// When it did so last.
    pub(super) fn last(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }

    /// What the clock shows.
    pub(super) fn now(&self) -> u32 {
        self.clock.tick()
    }
}

/// How fast the coarse clock and the wheel go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    tick: Duration,
    ticks_per_spoke: u32,
}

impl Pace {
    /// The shortest tick.
    const FINEST: Duration = Duration::from_millis(5);
    /// Ticks of a lease, at the least.
    const OF_LEASE: u32 = 8;

    /// The wheel turns once a heartbeat; the clock ticks a whole number of times a spoke, often enough to tell when a lease
    /// is over.
    fn of(limits: &Limits) -> Self {
        let spoke = (limits.heartbeat / WHEEL as u32).max(Self::FINEST);
        let wanted = spoke
            .as_nanos()
            .div_ceil((limits.shortest_lease() / Self::OF_LEASE).as_nanos().max(1));
        let most = spoke.as_nanos() / Self::FINEST.as_nanos();
        let ticks_per_spoke = u32::try_from(wanted.clamp(1, most)).unwrap_or(u32::MAX);
        Self {
            tick: spoke / ticks_per_spoke,
            ticks_per_spoke,
        }
    }

    /// Ticks of one turn of the wheel.
    fn turn(self) -> u32 {
        self.ticks_per_spoke.saturating_mul(WHEEL as u32)
    }

    /// The spoke whose turn it is at this tick, if it is that of one.
    fn spoke(self, tick: u32) -> Option<usize> {
        let is_due = tick.is_multiple_of(self.ticks_per_spoke);
        is_due.then_some((tick / self.ticks_per_spoke) as usize % WHEEL)
    }
}

/// How long a tick is.
pub(super) fn tick(limits: &Limits) -> Duration {
    Pace::of(limits).tick
}

/// Starts the tasks, which end when the router is dropped.
pub(super) fn start(router: &Router) {
    tokio::spawn(deadlines(Arc::downgrade(&router.inner)));
    tokio::spawn(kick_later(Arc::downgrade(&router.inner), router.later()));
    tokio::spawn(ticker(Arc::downgrade(&router.inner), Pace::of(router.limits())));
    tokio::spawn(memory::watch(Arc::downgrade(&router.inner)));
}

async fn deadlines(inner: Weak<Inner>) {
    while let Some(inner) = inner.upgrade() {
        let router = Router { inner };
        let (due, next) = router.inner.timers.take_due(router.now().mono);
        for timed in due {
            match timed {
                Timed::Session(live) => drop(live.upgrade().map(|live| router.expire(&live))),
                Timed::Link(link) => drop(link.upgrade().map(|link| router.expire_link(&link))),
            }
        }
        let wait = next.map_or(LATE, |next| next.saturating_duration_since(router.now().mono).min(LATE));
        let earlier = router.inner.timers.earlier.notified();
        tokio::select! {
            () = earlier => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn kick_later(inner: Weak<Inner>, later: Arc<Later>) {
    while inner.strong_count() > 0 {
        // Now and then it looks whether the router is still there.
        if tokio::time::timeout(LATE, later.some.notified()).await.is_err() {
            continue;
        }
        tokio::time::sleep(SOON).await;
        for link in later.take() {
            link.kick_late();
        }
    }
}

async fn ticker(inner: Weak<Inner>, pace: Pace) {
    let mut interval = tokio::time::interval(pace.tick);
    interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut fair_from = 0;
    loop {
        let scheduled = interval.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        let router = Router { inner };
        let tick = router.inner.clock.advance();
        if scheduled.elapsed() > router.limits().shortest_lease() / STALL_OF_LEASE {
            // The process stood still. What the peers sent meanwhile is not read yet: they are not judged by it.
            fair_from = tick.saturating_add(CALM);
        }
        let spoke = pace.spoke(tick);
        if tick >= fair_from {
            router.feel_workers(tick);
            if let Some(spoke) = spoke {
                router.feel_pulse(spoke, pace);
            }
        }
        if spoke == Some(0) {
            router.sweep();
        }
    }
}

impl Router {
    /// Sees to it that the timers look at the session when it has a deadline.
    pub(super) fn arm(&self, live: &Arc<Live>, shared: &mut Shared) {
        // While the log refuses ends, what is due is tried at this pace.
        let at = match shared.unended.is_empty() {
            true => shared.session.deadline(),
            false => Some(self.now().mono + RETRY),
        };
        let Some(at) = at else { return };
        if shared.armed.is_none_or(|(armed, _)| at < armed) {
            let place = (at, self.next_id());
            let before = shared.armed.replace(place);
            self.inner.timers.set(place, before, live);
        }
    }

    fn expire(&self, live: &Arc<Live>) {
        let mut batch = Batch::new(self.now());
        let mut shared = live.lock();
        if shared.gone {
            return;
        }
        shared.armed = None;
        let due = shared.session.due(batch.now.mono);
        let unended = std::mem::take(&mut shared.unended);
        drop(shared);
        for (request, cause) in unended {
            self.end_or_retry(live, &request, cause, &mut batch);
        }
        for (request, due) in due {
            let cause = self.cause_of(live, &request, due);
            self.end_or_retry(live, &request, cause, &mut batch);
        }
        let mut shared = live.lock();
        self.arm(live, &mut shared);
        drop(shared);
        batch.finish(None);
    }

    fn ticks_since(&self, tick: u32) -> u32 {
        self.tick().saturating_sub(tick)
    }

    /// For how long, to within a tick, the peer of a connection has shown no life.
    pub fn quiet(&self, link: &Link) -> Duration {
        tick(self.limits()) * self.ticks_since(link.last_alive())
    }

    /// For how long, to within a tick, it has sent no frame.
    pub fn silent(&self, link: &Link) -> Duration {
        tick(self.limits()) * self.ticks_since(link.last_spoke())
    }

    /// Asks for life where there was none for a heartbeat, and ends what showed none for two.
    fn feel_pulse(&self, spoke: usize, pace: Pace) {
        let links: Vec<Arc<Link>> = {
            let links = self.inner.links[spoke].lock().unwrap_or_else(PoisonError::into_inner);
            links.values().cloned().collect()
        };
        for link in links {
            link.cut_if_overdue();
            self.end_if_idle(&link);
            let quiet = self.ticks_since(link.last_alive());
            if link.form() == Form::Wire || quiet < pace.turn() {
                // gRPC connections have their pulse felt by HTTP/2.
                continue;
            }
            if quiet >= pace.turn().saturating_mul(2) {
                tracing::info!(connection = %link.name(), "no life for two heartbeats; disconnected");
                let text = "no life for two heartbeat intervals; connect again and resume";
                link.cut(Some(Refusal::new(Reason::HeartbeatTimeout, text)));
            } else {
                link.push_first(PING);
                link.kick();
            }
        }
    }

    /// Ends a connection that is used for nothing.
    fn end_if_idle(&self, link: &Link) {
        let limit = self.limits().idle;
        if link.is_used() || self.silent(link) < limit {
            return;
        }
        let text = format!(
            "in no session, without a role and without a frame for {} s; connect again when there is something to do",
            limit.as_secs()
        );
        tracing::debug!(connection = %link.name(), "idle; disconnected");
        link.end(Some(Refusal::limit(
            Reason::Idle,
            text,
            ("limits.idle", limit.as_secs()),
        )));
    }

    /// Removes what is too old, and sessions that nobody has used for long, and lets those go that the log has.
    fn sweep(&self) {
        let now = self.now();
        for live in self.all_sessions() {
            self.trim(&live, now.wall);
            self.remove_if_idle(&live);
            if self.inner.log.is_lasting() {
                self.unload(live, now);
            }
        }
    }

    /// Removes what of a session is too old. Whoever still wants to read it finds the gap.
    pub(super) fn trim(&self, live: &Live, now: SystemTime) {
        let mut shared = live.lock();
        if shared.gone || shared.session.first() > shared.session.head() {
            return;
        }
        let first = self.inner.log.trim(live.id(), now);
        shared.trimmed(first);
    }

    /// Refuses new requests from now on, and tells every connection that it will be ended.
    pub fn drain(&self, grace: Duration) {
        self.inner.draining.store(true, Ordering::Relaxed);
        for link in self.all_links() {
            link.go_away(grace);
        }
    }

    /// How many requests are open.
    pub fn open_requests(&self) -> usize {
        self.all_sessions()
            .iter()
            .map(|live| live.lock().session.open_request_count())
            .sum()
    }

    /// How many frames wait to be durable.
    pub fn unsettled(&self) -> usize {
        self.all_sessions().iter().map(|live| live.lock().pending.len()).sum()
    }

    /// Ends all connections; and what is still open, unless it can go on in the next process.
    pub fn shut_down(&self) {
        let mut batch = Batch::new(self.now());
        let ends = !self.inner.log.is_lasting();
        for live in self.all_sessions().into_iter().filter(|_| ends) {
            let open = live.lock().session.open_ids();
            for request in open.iter().rev() {
                self.end_or_retry(&live, request, Cause::Shutdown, &mut batch);
            }
        }
        batch.finish(None);
        for link in self.all_links() {
            link.end(Some(Refusal::new(
                Reason::Shutdown,
                "the gateway stopped; connect again",
            )));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wheel_turns_once_a_heartbeat_however_fine_the_clock() {
        let millis = Duration::from_millis;
        for (heartbeat, lease, tick_micros, ticks_per_spoke) in [
            (30_000, 60_000, 937_500, 1),
            (30_000, 7_000, 468_750, 2),
            (30_000, 100, 12_500, 75),
            (320, 60_000, 10_000, 1),
            (320, 100, 10_000, 1),
            (320, 1, 5_000, 2),
            (1, 1, 5_000, 1),
        ] {
            let limits = Limits {
                heartbeat: millis(heartbeat),
                lease: millis(lease),
                ..Limits::default()
            };
            let pace = Pace::of(&limits);
            let expected = Pace {
                tick: Duration::from_micros(tick_micros),
                ticks_per_spoke,
            };
            assert_eq!(pace, expected, "{heartbeat} {lease}");
            assert_eq!(pace.tick * pace.turn(), millis(heartbeat.max(160)));
            let spokes: Vec<_> = (1..=pace.turn()).filter_map(|tick| pace.spoke(tick)).collect();
            assert_eq!(spokes, (1..WHEEL).chain([0]).collect::<Vec<_>>());
        }
    }
}
