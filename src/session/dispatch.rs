//! Dispatch: which worker gets which request. Pure, like the session; one for the whole gateway, since workers serve many
//! sessions.
//!
//! A request goes to exactly one worker with room: to the one that had the session's last request for the role if it can take
//! it, else to the one with the most room. With none, it waits in its role's queue, first come first served.

use std::collections::{HashMap, VecDeque};

use super::WorkerKey;
use crate::error::{Reason, Refusal};
use crate::frame::Str;

/// A request, from any session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Its session.
    pub session: Str,
    /// Its id.
    pub request: Str,
}

/// What a worker offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The role that it serves.
    pub role: Str,
    /// The sessions that it works for: names with `*` for any characters; empty for all.
    pub sessions: Vec<Str>,
    /// How many requests it takes at once.
    pub max_in_flight: u32,
}

/// What became of a submitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The worker has it.
    With(WorkerKey),
    /// It waits.
    Waiting,
}

#[derive(Debug)]
struct Worker {
    key: WorkerKey,
    offer: Offer,
    in_flight: u32,
}

impl Worker {
    fn room(&self) -> u32 {
        self.offer.max_in_flight.saturating_sub(self.in_flight)
    }

    fn serves(&self, session: &str) -> bool {
        self.offer.sessions.is_empty() || self.offer.sessions.iter().any(|pattern| matches(pattern, session))
    }
}

#[derive(Debug, Default)]
struct Role {
    workers: Vec<Worker>,
    waiting: VecDeque<Ticket>,
}

/// All roles, with their workers and queues.
#[derive(Debug, Default)]
pub struct Dispatch {
    roles: HashMap<Str, Role>,
    served: HashMap<WorkerKey, Str>,
    max_waiting: usize,
}

impl Dispatch {
    /// No workers yet; at most so many requests wait for a role.
    pub fn new(max_waiting: usize) -> Self {
        Self {
            max_waiting,
            ..Self::default()
        }
    }

    /// A worker offers itself, or changes its offer. The requests that it gets at once.
    pub fn register(&mut self, key: WorkerKey, offer: Offer) -> Vec<Ticket> {
        let name = offer.role.detached();
        self.served.insert(key, name.clone());
        let role = self.roles.entry(name).or_default();
        match role.workers.iter_mut().find(|worker| worker.key == key) {
            Some(worker) => worker.offer = offer,
            None => role.workers.push(Worker {
                key,
                offer,
                in_flight: 0,
            }),
        }
        role.fill(key)
    }

    /// A worker is gone. What it held is the sessions' to end.
    pub fn unregister(&mut self, key: WorkerKey) {
        let Some(name) = self.served.remove(&key) else { return };
        if let Some(role) = self.roles.get_mut(&name) {
            role.workers.retain(|worker| worker.key != key);
        }
        self.forget_if_unused(&name);
    }

    /// A request wants a worker.
    pub fn submit(&mut self, ticket: Ticket, name: &Str, prefer: Option<WorkerKey>) -> Result<Placed, Refusal> {
        let role = match self.roles.get_mut(name) {
            Some(role) => role,
            None => self.roles.entry(name.detached()).or_default(),
        };
        if let Some(worker) = role.choose(&ticket.session, prefer) {
            worker.in_flight += 1;
            return Ok(Placed::With(worker.key));
        }
        if role.waiting.len() >= self.max_waiting {
            return Err(Refusal::new(
                Reason::TooManyWaiting,
                format!(
                    "{} requests wait for the role {name}, the most that may",
                    self.max_waiting
                ),
            )
            .with("limit", self.max_waiting.to_string()));
        }
        role.waiting.push_back(ticket);
        Ok(Placed::Waiting)
    }

    /// A waiting request needs no worker any more.
    pub fn withdraw(&mut self, ticket: &Ticket, name: &str) {
        if let Some(role) = self.roles.get_mut(name) {
            role.waiting.retain(|waiting| waiting != ticket);
        }
        self.forget_if_unused(name);
    }

    /// A worker is done with a request. The requests that it gets instead.
    pub fn release(&mut self, key: WorkerKey) -> Vec<Ticket> {
        let Some(name) = self.served.get(&key) else {
            return Vec::new();
        };
        let Some(role) = self.roles.get_mut(name) else {
            return Vec::new();
        };
        if let Some(worker) = role.workers.iter_mut().find(|worker| worker.key == key) {
            worker.in_flight = worker.in_flight.saturating_sub(1);
        }
        if role.waiting.is_empty() {
            Vec::new()
        } else {
            role.fill(key)
        }
    }

    /// Whether some worker serves the role for the session, with room or without.
    pub fn is_served(&self, name: &str, session: &str) -> bool {
        self.roles
            .get(name)
            .is_some_and(|role| role.workers.iter().any(|worker| worker.serves(session)))
    }

    /// How many requests wait for the role.
    pub fn waiting(&self, name: &str) -> usize {
        self.roles.get(name).map_or(0, |role| role.waiting.len())
    }

    fn forget_if_unused(&mut self, name: &str) {
        if self
            .roles
            .get(name)
            .is_some_and(|role| role.workers.is_empty() && role.waiting.is_empty())
        {
            self.roles.remove(name);
        }
    }
}

impl Role {
    fn choose(&mut self, session: &str, prefer: Option<WorkerKey>) -> Option<&mut Worker> {
        let fits = |worker: &Worker| worker.room() > 0 && worker.serves(session);
        let preferred = prefer.and_then(|key| self.workers.iter().position(|worker| worker.key == key && fits(worker)));
        let at = preferred.or_else(|| {
            let with_room = self.workers.iter().enumerate().filter(|(_, worker)| fits(worker));
            with_room.max_by_key(|(_, worker)| worker.room()).map(|(at, _)| at)
        })?;
        self.workers.get_mut(at)
    }

    /// Gives a worker what waits, oldest first, for as long as it has room.
    fn fill(&mut self, key: WorkerKey) -> Vec<Ticket> {
        let Some(worker) = self.workers.iter_mut().find(|worker| worker.key == key) else {
            return Vec::new();
        };
        let mut given = Vec::new();
        let mut at = 0;
        while worker.room() > 0 && at < self.waiting.len() {
            if worker.serves(&self.waiting[at].session) {
                worker.in_flight += 1;
                given.extend(self.waiting.remove(at));
            } else {
                at += 1;
            }
        }
        given
    }
}

/// Whether the name fits the pattern, in which `*` stands for any characters, or none.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let head = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(head) else {
        return false;
    };
    let Some(tail) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::ConnectionId;

    fn key(connection: u64) -> WorkerKey {
        WorkerKey {
            connection: ConnectionId(connection),
            slot: 0,
        }
    }

    fn ticket(session: &str, request: &str) -> Ticket {
        Ticket {
            session: session.into(),
            request: request.into(),
        }
    }

    fn offer(sessions: &[&str], max_in_flight: u32) -> Offer {
        let sessions = sessions.iter().map(|pattern| (*pattern).into()).collect();
        Offer {
            role: "brain".into(),
            sessions,
            max_in_flight,
        }
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
        let mut dispatch = Dispatch::new(10);
        dispatch.register(key(1), offer(&[], 2));
        dispatch.register(key(2), offer(&[], 3));
        let role = Str::from("brain");
        let first = dispatch.submit(ticket("s", "1"), &role, None);
        assert_eq!(first, Ok(Placed::With(key(2))));
        let again = dispatch.submit(ticket("s", "2"), &role, Some(key(2)));
        assert_eq!(again, Ok(Placed::With(key(2))));
    }

    #[test]
    fn waits_in_order_for_one_that_may_work_for_the_session() {
        let mut dispatch = Dispatch::new(2);
        let role = Str::from("brain");
        dispatch.register(key(1), offer(&["other"], 5));
        assert_eq!(dispatch.submit(ticket("a", "1"), &role, None), Ok(Placed::Waiting));
        assert_eq!(dispatch.submit(ticket("b", "2"), &role, None), Ok(Placed::Waiting));
        let full = dispatch.submit(ticket("c", "3"), &role, None).unwrap_err();
        assert_eq!(full.reason, Reason::TooManyWaiting);
        assert!(!dispatch.is_served("brain", "a"));
        let given = dispatch.register(key(2), offer(&[], 1));
        assert_eq!(given, [ticket("a", "1")]);
        assert_eq!(dispatch.release(key(2)), [ticket("b", "2")]);
        assert_eq!(dispatch.release(key(2)), []);
    }

    #[test]
    fn nothing_is_kept_of_roles_that_nobody_uses() {
        let mut dispatch = Dispatch::new(10);
        let role = Str::from("brain");
        dispatch.submit(ticket("a", "1"), &role, None).unwrap();
        dispatch.withdraw(&ticket("a", "1"), "brain");
        dispatch.register(key(1), offer(&[], 1));
        dispatch.unregister(key(1));
        assert!(dispatch.roles.is_empty() && dispatch.served.is_empty());
    }
}
