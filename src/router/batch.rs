//! A batch: what handling several frames at once leaves to be done at the end, once.

use std::sync::Arc;

use super::link::Link;
use super::live::Live;
use crate::frame::{Body, Control, Frame, pb};
use crate::session::Now;

/// What is to be acked, and who is to be woken.
pub struct Batch {
    /// The time at which everything in it happens.
    pub now: Now,
    accepted: Vec<pb::Accepted>,
    sessions: Vec<Arc<Live>>,
    links: Vec<Arc<Link>>,
}

impl Batch {
    /// An empty one.
    pub fn new(now: Now) -> Self {
        Self {
            now,
            accepted: Vec::new(),
            sessions: Vec::new(),
            links: Vec::new(),
        }
    }

    /// The session has something new for its readers.
    pub fn touch(&mut self, live: &Arc<Live>) {
        if !self.sessions.iter().any(|other| Arc::ptr_eq(other, live)) {
            self.sessions.push(Arc::clone(live));
        }
    }

    /// The connection's outbox has something new.
    pub fn touch_link(&mut self, link: &Arc<Link>) {
        if !self.links.iter().any(|other| Arc::ptr_eq(other, link)) {
            self.links.push(Arc::clone(link));
        }
    }

    /// A frame of this batch is accepted. A later chunk speaks for the earlier ones of its request.
    pub fn accept(&mut self, accepted: pb::Accepted) {
        let before = self.accepted.iter_mut().rev().find(|before| {
            accepted.id.is_empty()
                && before.id.is_empty()
                && before.reply_to == accepted.reply_to
                && before.session_id == accepted.session_id
        });
        match before {
            Some(before) => *before = accepted,
            None => self.accepted.push(accepted),
        }
    }

    /// Sends the acks to the connection that the batch is from, and wakes everybody who has something to read.
    pub fn finish(&mut self, link: Option<&Arc<Link>>) {
        if let Some(link) = link.filter(|_| !self.accepted.is_empty()) {
            let accepted = std::mem::take(&mut self.accepted);
            link.push(Frame {
                body: Body::Control(Box::new(Control::Ack(pb::Ack { accepted }))),
                ..Frame::default()
            });
            self.touch_link(link);
        }
        for live in self.sessions.drain(..) {
            live.notify();
        }
        for link in self.links.drain(..) {
            link.kick();
        }
    }
}
