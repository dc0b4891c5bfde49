//! A batch: what handling several frames at once leaves to be done at the end, once.

use std::collections::VecDeque;
use std::sync::Arc;

use super::link::Link;
use super::live::Live;
use crate::frame::pb;
use crate::session::{Effect, Now};

/// How soon the sender of what is new in a session has to see it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// As soon as everybody else.
    Now,
    /// It has asked something, or answered: the ack, and its own frame, can go with what comes next.
    Soon,
}

/// What is to be acked, and who is to be woken.
pub struct Batch {
    /// The time at which everything in it happens.
    pub now: Now,
    accepted: Vec<pb::Accepted>,
    /// The sender waits for its acks.
    eager: bool,
    sessions: Vec<(Arc<Live>, Haste)>,
    links: Vec<Arc<Link>>,
    /// What is still to be done: one end may bring about the next, and many may follow from one.
    work: VecDeque<(Arc<Live>, Effect)>,
    /// Somebody is at it.
    at_work: bool,
}

impl Batch {
    /// An empty one.
    pub fn new(now: Now) -> Self {
        Self {
            now,
            accepted: Vec::new(),
            eager: false,
            sessions: Vec::new(),
            links: Vec::new(),
            work: VecDeque::new(),
            at_work: false,
        }
    }

    /// Adds to what is to be done; whether the caller is to do it, since nobody is at it.
    pub(super) fn add_work(&mut self, live: &Arc<Live>, effects: Vec<Effect>) -> bool {
        self.work
            .extend(effects.into_iter().map(|effect| (Arc::clone(live), effect)));
        !std::mem::replace(&mut self.at_work, true)
    }

    /// What is to be done next; after the last of it, nobody is at it any more.
    pub(super) fn next_work(&mut self) -> Option<(Arc<Live>, Effect)> {
        let next = self.work.pop_front();
        self.at_work = next.is_some();
        next
    }

    /// The session has something new for its readers.
    pub fn touch(&mut self, live: &Arc<Live>, haste: Haste) {
        match self.sessions.iter_mut().find(|(other, _)| Arc::ptr_eq(other, live)) {
            Some((_, known)) if haste == Haste::Now => *known = haste,
            Some(_) => {}
            None => self.sessions.push((Arc::clone(live), haste)),
        }
    }

    /// The connection's outbox has something new.
    pub fn touch_link(&mut self, link: &Arc<Link>) {
        if !self.links.iter().any(|other| Arc::ptr_eq(other, link)) {
            self.links.push(Arc::clone(link));
        }
    }

    /// A frame of this batch is accepted.
    pub fn accept(&mut self, accepted: pb::Accepted, haste: Haste) {
        self.eager |= haste == Haste::Now;
        self.accepted.push(accepted);
    }

    /// Sends the acks to the connection that the batch is from, and wakes everybody who has something to read.
    pub fn finish(&mut self, link: Option<&Arc<Link>>) {
        if let Some(link) = link.filter(|_| !self.accepted.is_empty()) {
            link.ack(self.accepted.drain(..));
            match std::mem::take(&mut self.eager) {
                true => self.touch_link(link),
                false => link.kick_soon(),
            }
        }
        for (live, haste) in self.sessions.drain(..) {
            live.notify(link.filter(|_| haste == Haste::Soon));
        }
        for link in self.links.drain(..) {
            link.kick();
        }
    }
}
