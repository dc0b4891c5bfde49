//! The store that keeps frames in memory, within a budget. What it holds ends with the process.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Appended, Commit, Error, Limit, Log, Page, Wait};
use crate::frame::{Sealed, Str};

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Frames of one session.
    pub frames: usize,
    /// Bytes of one session.
    pub bytes: usize,
    /// Bytes of all sessions.
    pub total_bytes: usize,
}

#[derive(Default)]
struct Kept {
    first: u64,
    bytes: usize,
    frames: VecDeque<Arc<Sealed>>,
}

impl Kept {
    fn page(&self, range: std::ops::Range<usize>) -> Page {
        Page {
            frames: self.frames.range(range).cloned().collect(),
            first: self.first,
        }
    }

    /// Drops the oldest frame, unless it is the only one; the bytes that this gave back.
    fn trim_one(&mut self) -> usize {
        if self.frames.len() < 2 {
            return 0;
        }
        let bytes = self.frames.pop_front().map_or(0, |oldest| oldest.size());
        self.first += 1;
        self.bytes -= bytes;
        bytes
    }
}

type Shard = Mutex<HashMap<Str, Kept>>;

/// Frames in memory.
pub struct Memory {
    shards: Vec<Shard>,
    hasher: RandomState,
    retention: Retention,
    bytes: AtomicUsize,
}

const SHARDS: usize = 64;

impl Memory {
    /// An empty store.
    pub fn new(retention: Retention) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: RandomState::new(),
            retention,
            bytes: AtomicUsize::new(0),
        }
    }

    /// How many bytes are kept.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn shard(&self, session: &str) -> MutexGuard<'_, HashMap<Str, Kept>> {
        let at = self.hasher.hash_one(session) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the session within its own share.
    fn trim(&self, kept: &mut Kept) {
        while kept.frames.len() > self.retention.frames || kept.bytes > self.retention.bytes {
            match kept.trim_one() {
                0 => break,
                bytes => self.bytes.fetch_sub(bytes, Ordering::Relaxed),
            };
        }
    }
}

impl Log for Memory {
    fn append(&self, session: &Str, frame: &Arc<Sealed>) -> Result<Appended, Error> {
        let size = frame.size();
        let mut shard = self.shard(session);
        let kept = match shard.get_mut(session) {
            Some(kept) => kept,
            None => shard.entry(session.detached()).or_insert_with(|| Kept {
                first: 1,
                ..Kept::default()
            }),
        };
        debug_assert_eq!(
            frame.frame().seq,
            kept.first + kept.frames.len() as u64,
            "appended in order"
        );
        // For the sake of all, the session that grows gives up what it has.
        while self.bytes() + size > self.retention.total_bytes && kept.frames.len() > 1 {
            let bytes = kept.trim_one();
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        if self.bytes() + size > self.retention.total_bytes {
            return Err(Error::Full(format!(
                "memory for frames ({} bytes) is used up",
                self.retention.total_bytes
            )));
        }
        kept.frames.push_back(Arc::clone(frame));
        kept.bytes += size;
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.trim(kept);
        Ok(Appended {
            commit: Commit::Done,
            first: kept.first,
        })
    }

    fn read(&self, session: &Str, from: u64, limit: Limit) -> Wait<Page> {
        let shard = self.shard(session);
        let page = shard.get(session).map_or_else(Page::default, |kept| {
            let start = from.saturating_sub(kept.first).min(kept.frames.len() as u64) as usize;
            let count = fitting(kept.frames.range(start..), limit);
            kept.page(start..start + count)
        });
        Box::pin(std::future::ready(Ok(page)))
    }

    fn read_back(&self, session: &Str, from: u64, limit: Limit) -> Wait<Page> {
        let shard = self.shard(session);
        let page = shard.get(session).map_or_else(Page::default, |kept| {
            let end = (from + 1).saturating_sub(kept.first).min(kept.frames.len() as u64) as usize;
            let count = fitting(kept.frames.range(..end).rev(), limit);
            kept.page(end - count..end)
        });
        Box::pin(std::future::ready(Ok(page)))
    }

    fn delete(&self, session: &Str) {
        if let Some(kept) = self.shard(session).remove(session) {
            self.bytes.fetch_sub(kept.bytes, Ordering::Relaxed);
        }
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// How many of the frames a page takes.
fn fitting<'a>(frames: impl Iterator<Item = &'a Arc<Sealed>>, limit: Limit) -> usize {
    let mut bytes = 0;
    frames
        .take(limit.frames)
        .take_while(|frame| {
            let fits = bytes < limit.bytes;
            bytes += frame.size();
            fits
        })
        .count()
}
