//! What was seen before: the ids that dedup remembers, and what the frames said.

use std::collections::{HashMap, VecDeque};

use crate::frame::Str;

/// A frame's identity within its session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    sender: Str,
    id: Str,
    /// Of replies: the request and the attempt. A worker that begins again may count its frames anew.
    reply: Option<(Str, u32)>,
}

impl Key {
    pub fn new(sender: &Str, id: &Str) -> Self {
        Self {
            sender: sender.clone(),
            id: id.clone(),
            reply: None,
        }
    }

    /// Who sends it.
    pub fn sender(&self) -> &Str {
        &self.sender
    }

    /// The identity of a reply.
    pub fn of_reply(self, request: &Str, attempt: u32) -> Self {
        Self {
            reply: Some((request.clone(), attempt)),
            ..self
        }
    }

    /// The same, without holding on to the buffer that the frame arrived in.
    pub fn detached(self) -> Self {
        Self {
            sender: self.sender,
            id: self.id.detached(),
            reply: self.reply.map(|(request, attempt)| (request.detached(), attempt)),
        }
    }
}

/// A frame that was seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Where it is in the log.
    pub seq: u64,
    /// A digest of what it says, if that is known.
    pub substance: Option<u64>,
}

/// The newest keys; the oldest is forgotten when there are too many.
#[derive(Debug, Default)]
pub(super) struct Window {
    seen: HashMap<Key, Seen>,
    order: VecDeque<Key>,
}

impl Window {
    pub fn get(&self, key: &Key) -> Option<Seen> {
        self.seen.get(key).copied()
    }

    pub fn insert(&mut self, key: Key, seen: Seen, limit: usize) {
        while self.order.len() >= limit.max(1) {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
        self.order.push_back(key.clone());
        self.seen.insert(key, seen);
    }
}
