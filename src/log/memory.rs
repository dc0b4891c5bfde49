//! The store that keeps frames in memory, within a budget. What it holds ends with the process.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::folded::Folded;
use super::{Appended, Commit, Error, Limit, Log, Page, Wait};
use crate::frame::{Run, Sealed, Str};

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

/// What is kept at one seq.
enum Slot {
    Frame(Arc<Sealed>),
    /// A chunk of those that are kept as one: which of them.
    Chunk(Arc<Folded>, u32),
}

impl Slot {
    fn is_of(&self, folded: &Arc<Folded>) -> bool {
        matches!(self, Slot::Chunk(of, _) if Arc::ptr_eq(of, folded))
    }
}

/// A session's frames: a slot for each seq, the folded ones too, so that a frame is found by its seq at once.
#[derive(Default)]
struct Kept {
    first: u64,
    bytes: usize,
    /// Chunks that are kept as one count as one.
    frames: usize,
    slots: VecDeque<Slot>,
}

impl Kept {
    fn position(&self, seq: u64) -> usize {
        seq.saturating_sub(self.first).min(self.slots.len() as u64) as usize
    }

    /// How many of the slots, each the next one's neighbour in the log, are read as one frame with the first of them.
    fn together<'a>(mut slots: impl Iterator<Item = &'a Slot>) -> usize {
        match slots.next() {
            Some(Slot::Chunk(of, _)) => 1 + slots.take_while(|slot| slot.is_of(of)).count(),
            _ => 1,
        }
    }

    fn frame(&self, at: usize, count: usize) -> Arc<Sealed> {
        match &self.slots[at] {
            Slot::Frame(frame) => Arc::clone(frame),
            Slot::Chunk(of, chunk) => of.stretch(*chunk as usize, count, self.first + at as u64),
        }
    }

    fn read(&self, from: u64, limit: Limit) -> Page {
        let mut at = self.position(from);
        let mut reading = Reading::new(limit);
        while at < self.slots.len() && reading.goes_on() {
            let count = Self::together(self.slots.range(at..));
            reading.take(self.frame(at, count));
            at += count;
        }
        self.page(reading.frames)
    }

    fn read_back(&self, seqs: &Range<u64>, limit: Limit) -> Page {
        let (start, mut end) = (self.position(seqs.start), self.position(seqs.end));
        let mut reading = Reading::new(limit);
        while end > start && reading.goes_on() {
            let count = Self::together(self.slots.range(start..end).rev());
            end -= count;
            reading.take(self.frame(end, count));
        }
        reading.frames.reverse();
        self.page(reading.frames)
    }

    fn page(&self, frames: Vec<Arc<Sealed>>) -> Page {
        Page {
            frames,
            first: self.first,
        }
    }

    fn push(&mut self, frame: Arc<Sealed>) {
        self.bytes += frame.size();
        self.frames += 1;
        self.slots.push_back(Slot::Frame(frame));
    }

    /// Drops the oldest slot, unless it is the only one; the bytes that this gave back.
    fn trim_one(&mut self) -> usize {
        if self.slots.len() < 2 {
            return 0;
        }
        let (frames, bytes) = match self.slots.pop_front() {
            None => return 0,
            Some(Slot::Frame(frame)) => (1, frame.size()),
            // The text goes with the last of its chunks.
            Some(Slot::Chunk(of, chunk)) if chunk as usize + 1 == of.len() => (1, of.size() + size_of::<Slot>()),
            Some(Slot::Chunk(..)) => (0, size_of::<Slot>()),
        };
        self.first += 1;
        self.frames -= frames;
        self.bytes -= bytes;
        bytes
    }

    /// Folds the chunks of a reply. What is not needed any more is handed out, to be dropped elsewhere.
    fn fold(&mut self, request: &str, seqs: Range<u64>) -> Vec<Slot> {
        let (start, end) = (self.position(seqs.start), self.position(seqs.end));
        let (mut run, mut places, mut dropped) = (Run::default(), Vec::new(), Vec::new());
        for at in start..end {
            let Slot::Frame(frame) = &self.slots[at] else { continue };
            // What came folded into the log has no seqs of its own for its chunks.
            if frame.reply_to != request || frame.chunk_text().is_none() || frame.folded_from > 0 {
                continue;
            }
            let frame = Arc::clone(frame);
            if !run.takes(&frame) {
                self.replace(std::mem::take(&mut run), &mut places, &mut dropped);
            }
            places.push(at);
            run.push(frame);
        }
        self.replace(run, &mut places, &mut dropped);
        dropped
    }

    fn replace(&mut self, run: Run, places: &mut Vec<usize>, dropped: &mut Vec<Slot>) {
        let before: usize = run.frames().iter().map(|frame| frame.size()).sum();
        if let Some(folded) = Folded::new(run) {
            self.bytes += folded.size() + folded.len() * size_of::<Slot>();
            self.bytes -= before;
            self.frames -= folded.len() - 1;
            let folded = Arc::new(folded);
            for (chunk, at) in (0..).zip(&*places) {
                let slot = Slot::Chunk(Arc::clone(&folded), chunk);
                dropped.push(std::mem::replace(&mut self.slots[*at], slot));
            }
        }
        places.clear();
    }
}

/// A page in the making.
struct Reading {
    frames: Vec<Arc<Sealed>>,
    bytes: usize,
    limit: Limit,
}

impl Reading {
    fn new(limit: Limit) -> Self {
        Self {
            frames: Vec::new(),
            bytes: 0,
            limit,
        }
    }

    fn goes_on(&self) -> bool {
        self.frames.len() < self.limit.frames && self.bytes < self.limit.bytes
    }

    fn take(&mut self, frame: Arc<Sealed>) {
        self.bytes += frame.size();
        self.frames.push(frame);
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
        while kept.frames > self.retention.frames || kept.bytes > self.retention.bytes {
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
            kept.first + kept.slots.len() as u64,
            "appended in order"
        );
        // For the sake of all, the session that grows gives up what it has.
        while self.bytes() + size > self.retention.total_bytes && kept.slots.len() > 1 {
            let bytes = kept.trim_one();
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        if self.bytes() + size > self.retention.total_bytes {
            return Err(Error::Full(format!(
                "memory for frames ({} bytes) is used up",
                self.retention.total_bytes
            )));
        }
        kept.push(Arc::clone(frame));
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.trim(kept);
        Ok(Appended {
            commit: Commit::Done,
            first: kept.first,
        })
    }

    fn read(&self, session: &Str, from: u64, limit: Limit) -> Wait<Page> {
        let shard = self.shard(session);
        let page = shard.get(session).map(|kept| kept.read(from, limit));
        Box::pin(std::future::ready(Ok(page.unwrap_or_default())))
    }

    fn read_back(&self, session: &Str, seqs: Range<u64>, limit: Limit) -> Wait<Page> {
        let shard = self.shard(session);
        let page = shard.get(session).map(|kept| kept.read_back(&seqs, limit));
        Box::pin(std::future::ready(Ok(page.unwrap_or_default())))
    }

    fn fold(&self, session: &Str, request: &str, from: u64, to: u64) {
        // Many frames take their time: they are dropped after the lock is gone.
        let _dropped = {
            let mut shard = self.shard(session);
            let Some(kept) = shard.get_mut(session) else { return };
            let before = kept.bytes;
            let dropped = kept.fold(request, from..to.saturating_add(1));
            self.bytes.fetch_sub(before - kept.bytes, Ordering::Relaxed);
            dropped
        };
    }

    fn delete(&self, session: &Str) {
        let removed = self.shard(session).remove(session);
        if let Some(kept) = removed {
            self.bytes.fetch_sub(kept.bytes, Ordering::Relaxed);
        }
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}
