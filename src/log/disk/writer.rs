//! The one writer: it takes all that has queued, writes it as one batch, makes it durable, and tells those who wait.
//!
//! It owns the order: what was queued first is written first. It must never hold the queue's lock while it writes, nor forget
//! anybody who waits.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fjall::OwnedWriteBatch;
use prost::Message;
use tokio::sync::oneshot;

use super::Durability;
use super::base::{self, Base};
use super::record::{self, Place};
use super::series::Series;
use super::shelf::Shelf;
use crate::frame::{Run, Str};
use crate::log::{Entry, Error, Note, Seen, Settled, Settler};

/// What one batch holds at most.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_WORKS: usize = 4_096;
/// How long what nobody waits for may wait for company.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who is told how a piece of work ended.
pub(super) type Done = oneshot::Sender<Result<(), Error>>;

/// Something to be written.
pub(super) enum Work {
    /// The next frame of a session.
    Append(Arc<Series>, Entry),
    /// Something beside the frames.
    Note(Arc<Series>, Note),
    /// A new session, which begins with this seq; it can wait for company.
    Create(Arc<Series>, bytes::Bytes, u64),
    /// What there is to know of a session; without anybody who waits, it can wait for company.
    Save(Arc<Series>, bytes::Bytes, Option<Done>),
    /// A session is gone.
    Delete(Str, u64, Done),
    /// All before this is to be durable.
    Flush(Done),
}

impl Work {
    fn size(&self) -> usize {
        let content = match self {
            Work::Append(_, entry) => entry.frame.size(),
            Work::Note(_, note) => note.content.as_ref().map_or(0, bytes::Bytes::len),
            Work::Create(_, data, _) | Work::Save(_, data, _) => data.len(),
            Work::Delete(..) | Work::Flush(_) => 0,
        };
        content + size_of::<Self>()
    }

    /// Whether somebody waits for it.
    fn is_urgent(&self) -> bool {
        !matches!(self, Work::Create(..) | Work::Save(_, _, None))
    }

    /// The number of the session that it deletes.
    fn deletes(&self) -> Option<u64> {
        match self {
            Work::Delete(_, number, _) => Some(*number),
            _ => None,
        }
    }

    fn series(&self) -> Option<&Arc<Series>> {
        match self {
            Work::Append(series, _) | Work::Note(series, _) | Work::Create(series, ..) | Work::Save(series, ..) => {
                Some(series)
            }
            Work::Delete(..) | Work::Flush(_) => None,
        }
    }
}

/// What waits to be written.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    some: Condvar,
}

#[derive(Default)]
struct Waiting {
    works: Vec<Work>,
    bytes: usize,
    is_urgent: bool,
    is_closed: bool,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds work, if there is room for it.
    pub fn push(&self, work: Work, limit: usize) -> Result<(), Error> {
        let mut waiting = self.waiting();
        if waiting.is_closed {
            return Err(Error::Unavailable("the log is closed".to_owned()));
        }
        let bytes = work.size();
        if waiting.bytes + bytes > limit && waiting.bytes > 0 {
            let text = format!("the disk is slow: {} bytes wait to be written already", waiting.bytes);
            return Err(Error::Unavailable(text));
        }
        let is_news = !waiting.is_urgent && work.is_urgent();
        waiting.is_urgent |= work.is_urgent();
        waiting.bytes += bytes;
        waiting.works.push(work);
        drop(waiting);
        if is_news {
            self.some.notify_one();
        }
        Ok(())
    }

    /// How many bytes wait.
    pub fn bytes(&self) -> usize {
        self.waiting().bytes
    }

    /// Whether the writer has all that waits.
    #[cfg(test)]
    pub fn is_taken(&self) -> bool {
        self.waiting().works.is_empty()
    }

    /// What waits is written, and then nothing more.
    pub fn close(&self) {
        self.waiting().is_closed = true;
        self.some.notify_one();
    }

    /// All that waits, once there is something; nothing, once the queue is closed and empty.
    fn take(&self) -> Option<Vec<Work>> {
        let mut waiting = self.waiting();
        while !waiting.is_urgent && !waiting.is_closed {
            let (again, timeout) = self
                .some
                .wait_timeout(waiting, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner);
            waiting = again;
            if timeout.timed_out() && !waiting.works.is_empty() {
                break;
            }
        }
        if waiting.works.is_empty() && waiting.is_closed {
            return None;
        }
        waiting.is_urgent = false;
        Some(mem::take(&mut waiting.works))
    }

    /// So many bytes do not wait any more.
    fn release(&self, bytes: usize) {
        self.waiting().bytes -= bytes;
    }
}

/// The writer, which is a thread.
pub(super) struct Writer {
    shelf: Arc<Shelf>,
    settler: Settler,
    durability: Durability,
    scratch: Vec<u8>,
}

/// A batch in the making, and who is to be told of it.
struct Writing {
    batch: OwnedWriteBatch,
    /// Chunks of the sessions that may be continued.
    runs: HashMap<u64, (Arc<Series>, Run)>,
    heads: HashMap<u64, (Arc<Series>, u64)>,
    dones: Vec<Done>,
    deleted: Vec<u64>,
}

impl Writer {
    pub fn new(shelf: Arc<Shelf>, settler: Settler, durability: Durability) -> Self {
        Self {
            shelf,
            settler,
            durability,
            scratch: Vec::new(),
        }
    }

    /// Writes until the queue is closed.
    pub fn run(mut self) {
        let shelf = Arc::clone(&self.shelf);
        while let Some(works) = shelf.queue.take() {
            let mut works = works.into_iter().peekable();
            while works.peek().is_some() {
                let mut bytes = 0;
                let mut part = Vec::new();
                while let Some(work) = works.next_if(|_| part.len() < BATCH_WORKS && bytes < BATCH_BYTES) {
                    bytes += work.size();
                    part.push(work);
                }
                self.write(part);
                shelf.queue.release(bytes);
            }
        }
    }

    fn write(&mut self, works: Vec<Work>) {
        let failure = self.shelf.breakdown();
        // What comes after what was lost is lost as well.
        let (lost, works): (Vec<_>, Vec<_>) = works
            .into_iter()
            .partition(|work| work.series().is_some_and(|series| series.is_broken()));
        for done in dones_of(lost) {
            drop(done.send(Err(lost_before())));
        }
        let touched: Vec<_> = works.iter().filter_map(|work| work.series().cloned()).collect();
        let deleted: Vec<_> = works.iter().filter_map(Work::deletes).collect();
        let (dones, result) = match failure {
            Some(error) => (dones_of(works), Err(error)),
            None => self.try_write(works),
        };
        match result {
            Ok(settled) => {
                if !settled.is_empty() {
                    self.settler.tell(settled);
                }
                for done in dones {
                    // Whoever does not wait any more needs no answer.
                    drop(done.send(Ok(())));
                }
            }
            Err(error) => {
                self.shelf.break_down(&error);
                self.give_up(touched, &error);
                self.shelf.undelete(&deleted);
                for done in dones {
                    drop(done.send(Err(error.clone())));
                }
            }
        }
    }

    /// What was taken of these sessions is lost.
    fn give_up(&self, mut touched: Vec<Arc<Series>>, error: &Error) {
        touched.sort_unstable_by_key(|series| series.number);
        touched.dedup_by_key(|series| series.number);
        let lost = touched.into_iter().map(|series| {
            series.break_down();
            self.shelf.lose(series.number);
            series.settled(Err(error.clone()))
        });
        self.settler.tell(lost.collect());
    }

    fn try_write(&mut self, works: Vec<Work>) -> (Vec<Done>, Result<Vec<Settled>, Error>) {
        let shelf = Arc::clone(&self.shelf);
        let base = match shelf.base() {
            Ok(base) => base,
            Err(error) => return (dones_of(works), Err(error)),
        };
        let base = &*base;
        let mut writing = Writing {
            batch: base.batch(works.len(), Some(self.durability.of_writes())),
            runs: HashMap::new(),
            heads: HashMap::new(),
            dones: Vec::new(),
            deleted: Vec::new(),
        };
        let is_flush = works.iter().any(|work| matches!(work, Work::Flush(_)));
        let mut result = Ok(());
        for work in works {
            // Whoever waits is remembered, also after a failure.
            let added = self.add(base, &mut writing, work);
            result = result.and(added);
        }
        let runs = mem::take(&mut writing.runs);
        for (_, (series, run)) in runs {
            let added = self.add_run(base, &mut writing.batch, &series, run);
            result = result.and(added);
        }
        let result = result.and_then(|()| {
            writing.batch.commit().map_err(base::failed)?;
            match is_flush && self.durability == Durability::Relaxed {
                true => base.sync().map_err(base::failed),
                false => Ok(()),
            }
        });
        let settled = result.map(|()| {
            self.shelf.deleted(&writing.deleted);
            self.settle(writing.heads)
        });
        (writing.dones, settled)
    }

    fn settle(&self, heads: HashMap<u64, (Arc<Series>, u64)>) -> Vec<Settled> {
        let settled = heads.into_values().map(|(series, seq)| {
            series.commit(seq);
            self.shelf.list_if_full(&series);
            series.settled(Ok(()))
        });
        settled.collect()
    }

    fn add(&mut self, base: &Base, writing: &mut Writing, work: Work) -> Result<(), Error> {
        match work {
            Work::Append(series, entry) => self.add_frame(base, writing, series, entry),
            Work::Note(series, note) => {
                add_note(base, &mut writing.batch, series.number, note);
                Ok(())
            }
            Work::Create(series, data, first) => {
                // Its caller is told that it is there.
                writing
                    .heads
                    .entry(series.number)
                    .or_insert_with(|| (Arc::clone(&series), first - 1));
                if first > 1 {
                    let mark = base::Mark { first, head: first - 1 };
                    let key = series.number.to_be_bytes();
                    let value = base::seal(&key, &mark.encode_to_vec());
                    writing.batch.insert(&base.marks, key, value);
                }
                add_entry(base, &mut writing.batch, &series, data);
                Ok(())
            }
            Work::Save(series, data, done) => {
                writing.dones.extend(done);
                add_entry(base, &mut writing.batch, &series, data);
                Ok(())
            }
            Work::Delete(name, number, done) => {
                writing.dones.push(done);
                writing.batch.remove(&base.sessions, &**name.as_bytes());
                writing.batch.insert(&base.dead, number.to_be_bytes(), []);
                writing.deleted.push(number);
                Ok(())
            }
            Work::Flush(done) => {
                writing.dones.push(done);
                Ok(())
            }
        }
    }

    fn add_frame(
        &mut self,
        base: &Base,
        writing: &mut Writing,
        series: Arc<Series>,
        entry: Entry,
    ) -> Result<(), Error> {
        let Entry { frame, seen, note } = entry;
        if let Some(note) = note {
            add_note(base, &mut writing.batch, series.number, note);
        }
        match writing.heads.get_mut(&series.number) {
            Some((_, head)) => *head = frame.seq,
            None => drop(writing.heads.insert(series.number, (Arc::clone(&series), frame.seq))),
        }
        let is_chunk = seen.is_none() && frame.id.is_empty() && frame.folded_from == 0 && frame.chunk_text().is_some();
        if !writing.runs.is_empty() || is_chunk {
            let run = writing.runs.get_mut(&series.number);
            match run {
                Some((_, run)) if is_chunk && run.takes(&frame) => {
                    run.push(frame);
                    return Ok(());
                }
                Some(_) => {
                    if let Some((series, run)) = writing.runs.remove(&series.number) {
                        self.add_run(base, &mut writing.batch, &series, run)?;
                    }
                }
                None => {}
            }
            if is_chunk {
                let mut run = Run::default();
                run.push(frame);
                writing.runs.insert(series.number, (series, run));
                return Ok(());
            }
        }
        self.add_record(base, &mut writing.batch, &series, (&frame, seen.as_ref()))
    }

    fn add_record(
        &mut self,
        base: &Base,
        batch: &mut OwnedWriteBatch,
        series: &Series,
        (frame, seen): (&crate::frame::Frame, Option<&Seen>),
    ) -> Result<(), Error> {
        let place = Place {
            session: series.number,
            seq: frame.seq,
        };
        self.scratch.clear();
        record::write_frame(&mut self.scratch, place, series.written(), frame, seen).map_err(unwritable)?;
        self.insert(base, batch, series, place);
        Ok(())
    }

    fn add_run(&mut self, base: &Base, batch: &mut OwnedWriteBatch, series: &Series, run: Run) -> Result<(), Error> {
        let frames = run.frames();
        let Some(last) = frames.last() else { return Ok(()) };
        if frames.len() == 1 {
            return self.add_record(base, batch, series, (last, None));
        }
        let place = Place {
            session: series.number,
            seq: last.seq,
        };
        self.scratch.clear();
        record::write_chunks(&mut self.scratch, place, series.written(), frames).map_err(unwritable)?;
        self.insert(base, batch, series, place);
        Ok(())
    }

    fn insert(&mut self, base: &Base, batch: &mut OwnedWriteBatch, series: &Series, place: Place) {
        series.write(super::record_bytes(self.scratch.len()));
        batch.insert(&base.frames, place.key(), self.scratch.as_slice());
    }
}

fn add_entry(base: &Base, batch: &mut OwnedWriteBatch, series: &Series, data: bytes::Bytes) {
    let entry = base::Entry {
        number: series.number,
        data,
    };
    let key = series.name.as_bytes();
    let value = base::seal(key, &entry.encode_to_vec());
    batch.insert(&base.sessions, &**key, value);
}

fn add_note(base: &Base, batch: &mut OwnedWriteBatch, number: u64, note: Note) {
    let key = Place {
        session: number,
        seq: note.key,
    }
    .key();
    match note.content {
        Some(content) => batch.insert(&base.notes, key, base::seal(&key, &content)),
        None => batch.remove(&base.notes, key),
    }
}

fn dones_of(works: Vec<Work>) -> Vec<Done> {
    let done = |work| match work {
        Work::Save(_, _, done) => done,
        Work::Delete(_, _, done) | Work::Flush(done) => Some(done),
        Work::Append(..) | Work::Note(..) | Work::Create(..) => None,
    };
    works.into_iter().filter_map(done).collect()
}

/// Why nothing more is written of a session.
pub(super) fn lost_before() -> Error {
    Error::Unavailable("an earlier write of the session failed; it is loaded anew".to_owned())
}

fn unwritable(what: record::NotLogged) -> Error {
    Error::Unavailable(what.to_string())
}
