//! What was seen before: the ids that dedup remembers.

use std::collections::{HashMap, VecDeque};

use crate::frame::Str;

/// A frame's identity within its session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    sender: Str,
    id: Str,
}

impl Key {
    pub fn new(sender: &Str, id: &Str) -> Self {
        Self {
            sender: sender.clone(),
            id: id.clone(),
        }
    }

    /// The same, without holding on to the buffer that the frame arrived in.
    pub fn detached(self) -> Self {
        Self {
            sender: self.sender,
            id: self.id.detached(),
        }
    }
}

/// The newest keys and their seqs; the oldest is forgotten when there are too many.
#[derive(Debug, Default)]
pub(super) struct Window {
    seqs: HashMap<Key, u64>,
    order: VecDeque<Key>,
}

impl Window {
    pub fn get(&self, key: &Key) -> Option<u64> {
        self.seqs.get(key).copied()
    }

    pub fn insert(&mut self, key: Key, seq: u64, limit: usize) {
        while self.order.len() >= limit.max(1) {
            if let Some(oldest) = self.order.pop_front() {
                self.seqs.remove(&oldest);
            }
        }
        self.order.push_back(key.clone());
        self.seqs.insert(key, seq);
    }
}
