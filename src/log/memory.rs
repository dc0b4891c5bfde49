//! The store that keeps frames in memory, within a budget. What it holds ends with the process.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::folded::Folded;
use super::{
    Appended, Commit, Contents, Entry, Error, Keep, Known, Limit, Loaded, Log, Note, Page, Replayed, Settlements,
    Usage, Wait, ready,
};
use crate::frame::{Run, Sealed, Str};

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// How long a frame is.
    pub age: Duration,
    /// Frames of one session.
    pub frames: usize,
    /// Bytes of one session.
    pub bytes: usize,
    /// Bytes of all sessions.
    pub total_bytes: usize,
}

impl Retention {
    /// What is kept of a session of which nothing else is said.
    pub fn keep(&self) -> Keep {
        let Self { age, frames, bytes, .. } = *self;
        Keep { age, frames, bytes }
    }
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

    fn is_before(&self, time: SystemTime) -> bool {
        let timestamp = match self {
            Slot::Frame(frame) => frame.timestamp,
            Slot::Chunk(of, chunk) => Some(of.timestamp(*chunk as usize)),
        };
        timestamp
            .and_then(|timestamp| SystemTime::try_from(timestamp).ok())
            .is_some_and(|timestamp| timestamp < time)
    }
}

/// A session's frames: a slot for each seq, the folded ones too, so that a frame is found by its seq at once.
struct Kept {
    first: u64,
    bytes: usize,
    /// Chunks that are kept as one count as one.
    frames: usize,
    slots: VecDeque<Slot>,
    /// What is kept of it, where that is not what the settings say.
    keep: Option<Box<Keep>>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            first: 1,
            bytes: 0,
            frames: 0,
            slots: VecDeque::new(),
            keep: None,
        }
    }
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

    /// Drops what is beyond the bounds, but not the newest slot; the bytes that this gave back.
    fn trim_excess(&mut self, most: Keep) -> usize {
        let before = self.bytes;
        while self.slots.len() > 1 && (self.frames > most.frames || self.bytes > most.bytes) {
            self.trim_one();
        }
        before - self.bytes
    }

    /// Drops what was said before this time, but not the newest slots, so many of them; the bytes that this gave back.
    fn trim_older(&mut self, time: Option<SystemTime>, spared: usize) -> usize {
        let before = self.bytes;
        let is_old = |slot: &Slot| time.is_some_and(|time| slot.is_before(time));
        while self.slots.len() > spared && self.slots.front().is_some_and(is_old) {
            self.trim_one();
        }
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
        before - self.bytes
    }

    /// Drops the oldest slot; the bytes that this gave back.
    fn trim_one(&mut self) -> usize {
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

    fn remove(&self, session: &str) {
        let removed = self.shard(session).remove(session);
        if let Some(kept) = removed {
            self.bytes.fetch_sub(kept.bytes, Ordering::Relaxed);
        }
    }

    /// Keeps the session within its own share. What is too old at this time, if it is known, goes too, but for the newest slots,
    /// so many of them.
    fn hold_to_share(&self, kept: &mut Kept, now: Option<SystemTime>, spared: usize) {
        let keep = kept.keep.as_deref().copied().unwrap_or(self.retention.keep());
        let oldest = now.and_then(|now| now.checked_sub(keep.age));
        let bytes = kept.trim_excess(keep) + kept.trim_older(oldest, spared);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Log for Memory {
    fn is_lasting(&self) -> bool {
        false
    }

    fn settlements(&self) -> Settlements {
        Settlements::none()
    }

    fn create(&self, session: &Str, _: Bytes, first: u64) -> Result<u64, Error> {
        // It takes no room before it has a frame, where it begins as all do.
        if first > 1 {
            let kept = Kept {
                first,
                ..Kept::default()
            };
            self.shard(session).insert(session.detached(), kept);
        }
        Ok(0)
    }

    fn load(&self, _: &Str) -> Wait<Option<Loaded>> {
        ready(None)
    }

    fn unload(&self, session: &Str, _: Option<Bytes>) {
        self.remove(session);
    }

    fn save(&self, _: &Str, _: Bytes) -> Result<Wait<()>, Error> {
        Ok(ready(()))
    }

    fn note(&self, _: &Str, _: Note) -> Result<(), Error> {
        Ok(())
    }

    fn append(&self, session: &Str, entry: Entry) -> Result<Appended, Error> {
        let frame = entry.frame;
        let size = frame.size();
        let mut shard = self.shard(session);
        let kept = match shard.get_mut(session) {
            Some(kept) => kept,
            None => shard.entry(session.detached()).or_default(),
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
        let now = frame.timestamp.and_then(|time| SystemTime::try_from(time).ok());
        kept.push(frame);
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.hold_to_share(kept, now, 1);
        Ok(Appended {
            commit: Commit::Done,
            first: kept.first,
        })
    }

    fn read(&self, session: &Str, from: u64, limit: Limit) -> Wait<Page> {
        let shard = self.shard(session);
        let page = shard.get(session).map(|kept| kept.read(from, limit));
        ready(page.unwrap_or_default())
    }

    fn read_back(&self, session: &Str, seqs: Range<u64>, limit: Limit) -> Wait<Page> {
        let shard = self.shard(session);
        let page = shard.get(session).map(|kept| kept.read_back(&seqs, limit));
        ready(page.unwrap_or_default())
    }

    fn replay(&self, _: &Str, _: Range<u64>, _: Limit) -> Wait<Vec<Replayed>> {
        ready(Vec::new())
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

    fn retain(&self, session: &Str, keep: Keep) {
        let own = (keep != self.retention.keep()).then(|| Box::new(keep));
        let mut shard = self.shard(session);
        match (shard.get_mut(session), own) {
            (Some(kept), own) => kept.keep = own,
            (None, None) => {}
            (None, own) => {
                let kept = Kept {
                    keep: own,
                    ..Kept::default()
                };
                shard.insert(session.detached(), kept);
            }
        }
    }

    fn trim(&self, session: &Str, now: SystemTime) -> u64 {
        let mut shard = self.shard(session);
        let Some(kept) = shard.get_mut(session) else { return 1 };
        self.hold_to_share(kept, Some(now), 0);
        kept.first
    }

    fn delete(&self, session: &Str) -> Result<Wait<()>, Error> {
        self.remove(session);
        Ok(ready(()))
    }

    fn list(&self, _: &str, _: &str, _: usize) -> Wait<Vec<Known>> {
        ready(Vec::new())
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn backup(&self, _: Box<dyn Write + Send>) -> Wait<Contents> {
        let text = "sessions are kept in memory only; Admin.Export tells what they hold";
        Box::pin(std::future::ready(Err(Error::Unavailable(text.to_owned()))))
    }

    fn flush(&self) -> Wait<()> {
        ready(())
    }

    fn close(&self) -> Wait<()> {
        ready(())
    }
}
