//! Dispatch: which worker gets which request. Pure, like the session; one for the whole gateway, since workers serve many
//! sessions.
//!
//! A request goes to exactly one worker with room: to the one that had the last request with the same affinity key, or the
//! session's last one for the role, if it can take it, else to the one with the most room. With none, it waits in its role's
//! queue: sessions take turns there, each first come first served, so that one that asks much does not keep the others from
//! asking at all.

use std::collections::{HashMap, VecDeque};

use super::WorkerKey;
use crate::error::{Reason, Refusal};
use crate::frame::{Str, matches};

/// A request, from any session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Its session.
    pub session: Str,
    /// Which of the sessions that have had this name.
    pub epoch: Str,
    /// Its id.
    pub request: Str,
}

/// What a request would like.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The worker that had the session's last request for the role.
    pub worker: Option<WorkerKey>,
    /// What it has in common with others that should go to the same worker; may be empty.
    pub affinity: Str,
}

/// What a worker offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The role that it serves.
    pub role: Str,
    /// The sessions that it works for: names with `*` for any characters; empty for all.
    pub sessions: Vec<Str>,
    /// The sessions that it may work for, as patterns.
    pub granted: Vec<Str>,
    /// How many requests it takes at once.
    pub max_in_flight: u32,
    /// It finishes what it has, and takes nothing new.
    pub draining: bool,
}

/// Whether a worker can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// It can.
    Here,
    /// It showed no life for its lease.
    Silent,
    /// Its connection is lost, and it may come back.
    Away,
}

/// What became of a submitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The worker has it.
    With(WorkerKey),
    /// It waits.
    Waiting,
}

/// The workers of a role, from a session's point of view. Those that serve it are each counted once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub total: u32,
    /// Those that serve the session.
    pub serving: u32,
    /// Of these, those with room.
    pub free: u32,
    /// Those without.
    pub full: u32,
    /// Those that take nothing new.
    pub draining: u32,
    /// Those that show no life.
    pub silent: u32,
    /// Those that have no connection.
    pub away: u32,
    /// Not of these: those that would serve the session, and may not.
    pub denied: u32,
}

#[derive(Debug)]
struct Worker {
    key: WorkerKey,
    offer: Offer,
    contact: Contact,
    in_flight: u32,
}

impl Worker {
    fn room(&self) -> u32 {
        match self.contact {
            Contact::Here if !self.offer.draining => self.offer.max_in_flight.saturating_sub(self.in_flight),
            _ => 0,
        }
    }

    fn offers(&self, session: &str) -> bool {
        self.offer.sessions.is_empty() || self.offer.sessions.iter().any(|pattern| matches(pattern, session))
    }

    fn may_serve(&self, session: &str) -> bool {
        self.offer.granted.iter().any(|pattern| matches(pattern, session))
    }

    fn serves(&self, session: &str) -> bool {
        self.offers(session) && self.may_serve(session)
    }
}

/// A queue in which sessions take turns.
#[derive(Debug, Default)]
struct Queue {
    by_session: HashMap<Str, VecDeque<(Ticket, Str)>>,
    turn: VecDeque<Str>,
    len: usize,
}

impl Queue {
    fn push(&mut self, ticket: Ticket, affinity: Str) {
        self.len += 1;
        match self.by_session.get_mut(&ticket.session) {
            Some(waiting) => waiting.push_back((ticket, affinity)),
            None => {
                let session = ticket.session.clone();
                self.turn.push_back(session.clone());
                self.by_session.insert(session, VecDeque::from([(ticket, affinity)]));
            }
        }
    }

    /// The next one of a session that fits.
    fn take(&mut self, fits: impl Fn(&str) -> bool) -> Option<(Ticket, Str)> {
        let at = self.turn.iter().position(|session| fits(session))?;
        let session = self.turn.remove(at)?;
        let waiting = self.by_session.get_mut(&session)?;
        let next = waiting.pop_front()?;
        self.len -= 1;
        if waiting.is_empty() {
            self.by_session.remove(&session);
        } else {
            self.turn.push_back(session);
        }
        Some(next)
    }

    fn remove(&mut self, ticket: &Ticket) {
        let Some(waiting) = self.by_session.get_mut(&ticket.session) else {
            return;
        };
        let before = waiting.len();
        waiting.retain(|(other, _)| other != ticket);
        self.len -= before - waiting.len();
        if waiting.is_empty() {
            self.by_session.remove(&ticket.session);
            self.turn.retain(|session| *session != ticket.session);
        }
    }

    /// How many are taken before this one, if every session fits.
    fn before(&self, ticket: &Ticket) -> Option<usize> {
        let own = self.by_session.get(&ticket.session)?;
        let place = own.iter().position(|(other, _)| other == ticket)?;
        let turn = self.turn.iter().position(|session| *session == ticket.session)?;
        let others = self.turn.iter().enumerate().filter(|(at, _)| *at != turn);
        let before = others.map(|(at, session)| {
            let rounds = if at < turn { place + 1 } else { place };
            self.by_session.get(session).map_or(0, VecDeque::len).min(rounds)
        });
        Some(place + before.sum::<usize>())
    }
}

/// Who had the last request with a key. The oldest key is forgotten when there are too many.
#[derive(Debug, Default)]
struct Affinity {
    workers: HashMap<Str, WorkerKey>,
    order: VecDeque<Str>,
}

impl Affinity {
    fn get(&self, key: &str) -> Option<WorkerKey> {
        self.workers.get(key).copied()
    }

    fn set(&mut self, key: &Str, worker: WorkerKey, limit: usize) {
        if key.is_empty() {
            return;
        }
        if let Some(known) = self.workers.get_mut(key) {
            *known = worker;
            return;
        }
        if self.order.len() >= limit.max(1)
            && let Some(oldest) = self.order.pop_front()
        {
            self.workers.remove(&oldest);
        }
        let key = key.detached();
        self.order.push_back(key.clone());
        self.workers.insert(key, worker);
    }
}

#[derive(Debug, Default)]
struct Role {
    workers: Vec<Worker>,
    queue: Queue,
    affinity: Affinity,
}

/// How much dispatch keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// Requests that wait for one role.
    pub waiting: usize,
    /// Affinity keys of one role.
    pub affinity_keys: usize,
}

/// All roles, with their workers and queues.
#[derive(Debug, Default)]
pub struct Dispatch {
    roles: HashMap<Str, Role>,
    served: HashMap<WorkerKey, Str>,
    bounds: Bounds,
}

impl Dispatch {
    /// No workers yet.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            ..Self::default()
        }
    }

    /// A worker offers itself, changes its offer, or is back. The requests that it gets at once.
    pub fn register(&mut self, key: WorkerKey, offer: Offer) -> Vec<Ticket> {
        let name = offer.role.detached();
        self.served.insert(key, name.clone());
        let role = self.roles.entry(name).or_default();
        match role.workers.iter_mut().find(|worker| worker.key == key) {
            Some(worker) => {
                worker.offer = offer;
                worker.contact = Contact::Here;
            }
            None => role.workers.push(Worker {
                key,
                offer,
                contact: Contact::Here,
                in_flight: 0,
            }),
        }
        role.fill(key, self.bounds)
    }

    /// A worker that is away, from before this dispatch was, has one more request, and may come back to it.
    pub fn expect_back(&mut self, key: WorkerKey, name: &Str) {
        self.served.insert(key, name.detached());
        let role = self.roles.entry(name.detached()).or_default();
        match role.workers.iter_mut().find(|worker| worker.key == key) {
            Some(worker) => worker.in_flight += 1,
            None => role.workers.push(Worker {
                key,
                offer: Offer {
                    role: name.detached(),
                    sessions: Vec::new(),
                    // What it may is known when it is back.
                    granted: vec![Str::from_static("*")],
                    max_in_flight: 0,
                    draining: false,
                },
                contact: Contact::Away,
                in_flight: 1,
            }),
        }
    }

    /// A worker is gone. What it held is the sessions' to end.
    pub fn unregister(&mut self, key: WorkerKey) {
        let Some(name) = self.served.remove(&key) else { return };
        if let Some(role) = self.roles.get_mut(&name) {
            role.workers.retain(|worker| worker.key != key);
        }
        self.forget_if_unused(&name);
    }

    fn worker(&mut self, key: WorkerKey) -> Option<(&mut Role, usize)> {
        let role = self.roles.get_mut(self.served.get(&key)?)?;
        let at = role.workers.iter().position(|worker| worker.key == key)?;
        Some((role, at))
    }

    /// A worker can be reached, or not any more. The requests that it gets at once.
    pub fn contact(&mut self, key: WorkerKey, contact: Contact) -> Vec<Ticket> {
        let bounds = self.bounds;
        let Some((role, at)) = self.worker(key) else {
            return Vec::new();
        };
        role.workers[at].contact = contact;
        role.fill(key, bounds)
    }

    /// A worker may work for these sessions from now on. The requests that it gets at once.
    pub fn grant(&mut self, key: WorkerKey, granted: Vec<Str>) -> Vec<Ticket> {
        let bounds = self.bounds;
        let Some((role, at)) = self.worker(key) else {
            return Vec::new();
        };
        role.workers[at].offer.granted = granted;
        role.fill(key, bounds)
    }

    /// A worker is to take nothing new; whether there is such a worker.
    pub fn drain(&mut self, key: WorkerKey) -> bool {
        let worker = self.worker(key);
        worker
            .map(|(role, at)| role.workers[at].offer.draining = true)
            .is_some()
    }

    /// What a worker offers, whether it can be reached, and how many requests it has.
    pub fn describe(&self, key: WorkerKey) -> Option<(&Offer, Contact, u32)> {
        let role = self.roles.get(self.served.get(&key)?)?;
        let worker = role.workers.iter().find(|worker| worker.key == key)?;
        Some((&worker.offer, worker.contact, worker.in_flight))
    }

    /// A request wants a worker.
    pub fn submit(&mut self, ticket: Ticket, name: &Str, wish: Wish) -> Result<Placed, Refusal> {
        let bounds = self.bounds;
        let role = match self.roles.get_mut(name) {
            Some(role) => role,
            None => self.roles.entry(name.detached()).or_default(),
        };
        if let Some(key) = role.choose(&ticket.session, &wish) {
            role.affinity.set(&wish.affinity, key, bounds.affinity_keys);
            return Ok(Placed::With(key));
        }
        if role.queue.len >= bounds.waiting {
            return Err(Refusal::new(
                Reason::TooManyWaiting,
                format!(
                    "{} requests wait for the role {name}, the most that may",
                    bounds.waiting
                ),
            )
            .with("limit", bounds.waiting.to_string()));
        }
        role.queue.push(ticket, wish.affinity);
        Ok(Placed::Waiting)
    }

    /// A waiting request needs no worker any more.
    pub fn withdraw(&mut self, ticket: &Ticket, name: &str) {
        if let Some(role) = self.roles.get_mut(name) {
            role.queue.remove(ticket);
        }
        self.forget_if_unused(name);
    }

    /// A worker is done with a request. The requests that it gets instead.
    pub fn release(&mut self, key: WorkerKey) -> Vec<Ticket> {
        let bounds = self.bounds;
        let Some((role, at)) = self.worker(key) else {
            return Vec::new();
        };
        let worker = &mut role.workers[at];
        worker.in_flight = worker.in_flight.saturating_sub(1);
        role.fill(key, bounds)
    }

    /// Whether some worker serves the role for the session, with room or without.
    pub fn is_served(&self, name: &str, session: &str) -> bool {
        self.roles
            .get(name)
            .is_some_and(|role| role.workers.iter().any(|worker| worker.serves(session)))
    }

    /// How many requests wait for the role.
    pub fn waiting(&self, name: &str) -> usize {
        self.roles.get(name).map_or(0, |role| role.queue.len)
    }

    /// How many requests are handed out before this one, if every worker serves every session; nothing if it does not wait.
    pub fn before(&self, name: &str, ticket: &Ticket) -> Option<usize> {
        self.roles.get(name)?.queue.before(ticket)
    }

    /// The workers of the role, as the session sees them.
    pub fn counts(&self, name: &str, session: &str) -> Counts {
        let mut counts = Counts::default();
        for worker in self.roles.get(name).into_iter().flat_map(|role| &role.workers) {
            counts.total += 1;
            if !worker.serves(session) {
                counts.denied += u32::from(worker.offers(session));
                continue;
            }
            counts.serving += 1;
            let kind = match worker.contact {
                Contact::Silent => &mut counts.silent,
                Contact::Away => &mut counts.away,
                Contact::Here if worker.offer.draining => &mut counts.draining,
                Contact::Here if worker.room() == 0 => &mut counts.full,
                Contact::Here => &mut counts.free,
            };
            *kind += 1;
        }
        counts
    }

    fn forget_if_unused(&mut self, name: &str) {
        if self
            .roles
            .get(name)
            .is_some_and(|role| role.workers.is_empty() && role.queue.len == 0)
        {
            self.roles.remove(name);
        }
    }
}

impl Role {
    /// The worker that gets a request of the session now, if one can take it.
    fn choose(&mut self, session: &str, wish: &Wish) -> Option<WorkerKey> {
        let fits = |worker: &Worker| worker.room() > 0 && worker.serves(session);
        let wanted = match wish.affinity.is_empty() {
            true => wish.worker,
            false => self.affinity.get(&wish.affinity),
        };
        let preferred = wanted.and_then(|key| self.workers.iter().position(|worker| worker.key == key && fits(worker)));
        let at = preferred.or_else(|| {
            let with_room = self.workers.iter().enumerate().filter(|(_, worker)| fits(worker));
            with_room.max_by_key(|(_, worker)| worker.room()).map(|(at, _)| at)
        })?;
        let worker = &mut self.workers[at];
        worker.in_flight += 1;
        Some(worker.key)
    }

    /// Gives a worker what waits, for as long as it has room.
    fn fill(&mut self, key: WorkerKey, bounds: Bounds) -> Vec<Ticket> {
        let mut given = Vec::new();
        let Some(worker) = self.workers.iter_mut().find(|worker| worker.key == key) else {
            return given;
        };
        while worker.room() > 0
            && let Some((ticket, affinity)) = self.queue.take(|session| worker.serves(session))
        {
            worker.in_flight += 1;
            self.affinity.set(&affinity, key, bounds.affinity_keys);
            given.push(ticket);
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(connection: u64) -> WorkerKey {
        WorkerKey(connection)
    }

    fn dispatch(waiting: usize) -> Dispatch {
        Dispatch::new(Bounds {
            waiting,
            affinity_keys: 2,
        })
    }

    fn wish(worker: u64) -> Wish {
        Wish {
            worker: Some(key(worker)),
            affinity: Str::EMPTY,
        }
    }

    fn alike(affinity: &str) -> Wish {
        Wish {
            worker: None,
            affinity: affinity.into(),
        }
    }

    fn ticket(session: &str, request: &str) -> Ticket {
        Ticket {
            session: session.into(),
            epoch: "e".into(),
            request: request.into(),
        }
    }

    fn offer(sessions: &[&str], max_in_flight: u32) -> Offer {
        let sessions = sessions.iter().map(|pattern| (*pattern).into()).collect();
        Offer {
            role: "brain".into(),
            sessions,
            granted: vec!["*".into()],
            max_in_flight,
            draining: false,
        }
    }

    #[test]
    fn a_worker_gets_what_it_offers_and_may_serve() {
        let mut dispatch = Dispatch::new(Bounds {
            waiting: 9,
            affinity_keys: 9,
        });
        let granted = Offer {
            granted: vec!["team-*".into()],
            ..offer(&["*-1"], 9)
        };
        dispatch.register(key(1), granted);
        let mut placed = |session: &str| {
            let ticket = Ticket {
                session: session.into(),
                epoch: "e".into(),
                request: "q".into(),
            };
            dispatch.submit(ticket, &"brain".into(), Wish::default()).unwrap()
        };
        assert_eq!(placed("team-1"), Placed::With(key(1)));
        assert_eq!(placed("team-2"), Placed::Waiting);
        assert_eq!(placed("user-1"), Placed::Waiting);
        let counts = |session| {
            let counts = dispatch.counts("brain", session);
            (counts.total, counts.serving, counts.denied)
        };
        assert_eq!(counts("team-1"), (1, 1, 0));
        assert_eq!(counts("team-2"), (1, 0, 0));
        assert_eq!(counts("user-1"), (1, 0, 1));
    }

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*", "anything", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("user-*", "user-", true),
            ("user-*", "use", false),
            ("*-x-*", "a-x-b", true),
            ("*-x-*", "a-y-b", false),
            ("a*a", "a", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c2b", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn the_most_room_then_the_same_worker_again() {
        let mut dispatch = dispatch(10);
        dispatch.register(key(1), offer(&[], 2));
        dispatch.register(key(2), offer(&[], 3));
        let role = Str::from("brain");
        let first = dispatch.submit(ticket("s", "1"), &role, Wish::default());
        assert_eq!(first, Ok(Placed::With(key(2))));
        let again = dispatch.submit(ticket("s", "2"), &role, wish(2));
        assert_eq!(again, Ok(Placed::With(key(2))));
    }

    #[test]
    fn waits_in_order_for_one_that_may_work_for_the_session() {
        let mut dispatch = dispatch(2);
        let role = Str::from("brain");
        dispatch.register(key(1), offer(&["other"], 5));
        assert_eq!(
            dispatch.submit(ticket("a", "1"), &role, Wish::default()),
            Ok(Placed::Waiting)
        );
        assert_eq!(
            dispatch.submit(ticket("b", "2"), &role, Wish::default()),
            Ok(Placed::Waiting)
        );
        let full = dispatch.submit(ticket("c", "3"), &role, Wish::default()).unwrap_err();
        assert_eq!(full.reason, Reason::TooManyWaiting);
        assert!(!dispatch.is_served("brain", "a"));
        let given = dispatch.register(key(2), offer(&[], 1));
        assert_eq!(given, [ticket("a", "1")]);
        assert_eq!(dispatch.release(key(2)), [ticket("b", "2")]);
        assert_eq!(dispatch.release(key(2)), []);
    }

    #[test]
    fn nothing_is_kept_of_roles_that_nobody_uses() {
        let mut dispatch = dispatch(10);
        let role = Str::from("brain");
        dispatch.submit(ticket("a", "1"), &role, Wish::default()).unwrap();
        dispatch.withdraw(&ticket("a", "1"), "brain");
        dispatch.register(key(1), offer(&[], 1));
        dispatch.unregister(key(1));
        assert!(dispatch.roles.is_empty() && dispatch.served.is_empty());
    }

    #[test]
    fn sessions_take_turns() {
        let mut dispatch = dispatch(10);
        let role = Str::from("brain");
        for (session, request) in [("a", "1"), ("a", "2"), ("a", "3"), ("b", "4"), ("c", "5"), ("c", "6")] {
            dispatch
                .submit(ticket(session, request), &role, Wish::default())
                .unwrap();
        }
        let expected = [("a", "1"), ("b", "4"), ("c", "5"), ("a", "2"), ("c", "6"), ("a", "3")];
        for (before, (session, request)) in expected.into_iter().enumerate() {
            assert_eq!(
                dispatch.before("brain", &ticket(session, request)),
                Some(before),
                "{request}"
            );
        }
        dispatch.register(key(1), offer(&[], 1));
        for (session, request) in &expected[1..] {
            assert_eq!(dispatch.release(key(1)), [ticket(session, request)]);
        }
        assert_eq!(dispatch.before("brain", &ticket("a", "3")), None);
        assert_eq!(dispatch.waiting("brain"), 0);
    }

    #[test]
    fn the_same_key_goes_to_the_same_worker() {
        let mut dispatch = dispatch(10);
        let role = Str::from("brain");
        dispatch.register(key(1), offer(&[], 3));
        dispatch.register(key(2), offer(&[], 9));
        dispatch.submit(ticket("a", "1"), &role, wish(1)).unwrap();
        assert_eq!(
            dispatch.submit(ticket("a", "2"), &role, alike("k")),
            Ok(Placed::With(key(2)))
        );
        dispatch.register(key(3), offer(&[], 99));
        assert_eq!(
            dispatch.submit(ticket("b", "3"), &role, alike("k")),
            Ok(Placed::With(key(2)))
        );
        for other in ["l", "m"] {
            assert_eq!(
                dispatch.submit(ticket("b", other), &role, alike(other)),
                Ok(Placed::With(key(3)))
            );
        }
        assert_eq!(
            dispatch.submit(ticket("c", "4"), &role, alike("k")),
            Ok(Placed::With(key(3))),
            "the oldest key is forgotten"
        );
    }

    #[test]
    fn who_cannot_be_reached_or_drains_gets_nothing() {
        let mut dispatch = dispatch(10);
        let role = Str::from("brain");
        dispatch.register(key(1), offer(&[], 1));
        for (contact, kind) in [(Contact::Silent, "silent"), (Contact::Away, "away")] {
            assert_eq!(dispatch.contact(key(1), contact), []);
            assert_eq!(
                dispatch.submit(ticket("s", kind), &role, Wish::default()),
                Ok(Placed::Waiting)
            );
            assert_eq!(dispatch.contact(key(1), Contact::Here), [ticket("s", kind)]);
            assert_eq!(dispatch.release(key(1)), []);
        }
        assert!(dispatch.drain(key(1)) && !dispatch.drain(key(9)));
        assert_eq!(
            dispatch.submit(ticket("s", "1"), &role, Wish::default()),
            Ok(Placed::Waiting)
        );
        let counts = dispatch.counts("brain", "s");
        assert_eq!((counts.total, counts.serving, counts.draining), (1, 1, 1));
        assert_eq!(dispatch.register(key(1), offer(&["s"], 1)), [ticket("s", "1")]);
        assert_eq!(dispatch.counts("brain", "other").serving, 0);
        assert_eq!(dispatch.counts("brain", "s").full, 1);
    }
}
