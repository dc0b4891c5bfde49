//! The store that keeps sessions on disk, in one directory, with nothing else to start.
//!
//! ```text
//!            append, save, note, delete                       read, replay, load, list
//!                       |                                                 |
//!                    [queue] --> writer: one batch, one sync --> [ database (fjall) ] <-- keeper: trims, clears, heals
//!                                   |
//!                                   +--> settlements: what is durable now
//! ```
//!
//! Writing is one thread's, which takes all that has queued, so that a sync is shared by all who wait. Reading goes past it: it
//! sees what was committed, and never waits for a write. What was not finished when the process ended is cut when the next one
//! begins; what is damaged is refused, with the place and the remedy. A write that fails loses what was not told to be durable:
//! its sessions are loaded anew. Until the disk can be written again everything that would write is refused, and reading goes
//! on.

mod audit;
pub mod backup;
mod base;
mod check;
mod fold;
mod journal;
mod keeper;
mod open;
pub mod record;
mod repair;
mod series;
mod shelf;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use bytes::Bytes;
use fjall::{Guard, PersistMode, Readable};
use tokio::sync::oneshot;

use self::backup::Contents;
use self::base::Base;
use self::fold::Reply;
use self::record::{Corrupt, Place, What};
use self::series::{Reach, Series};
use self::shelf::Shelf;
use self::writer::{Work, Writer};
use super::{
    Appended, Commit, Entry, Error, Keep, Known, Limit, Loaded, Log, Note, Page, Replayed, Settlements, Usage, Wait,
};
use crate::frame::{Sealed, Str};

pub use check::{Finding, Findings, Report, check};
pub use open::{Found, OpenError};
pub use repair::{Repaired, Saved, repair};

/// What is durable when it is acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing outlives the process.
    Memory,
    /// What was acked outlives the process; of what was acked in the last second, some may not outlive the machine.
    Relaxed,
    /// What was acked outlives the machine.
    Durable,
}

impl Durability {
    /// How each batch is written. One is synced before the next: only the last can be unfinished then.
    fn of_writes(self) -> PersistMode {
        match self {
            Durability::Durable => PersistMode::SyncData,
            Durability::Relaxed | Durability::Memory => PersistMode::Buffer,
        }
    }
}

/// How a data directory is used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The data directory.
    pub dir: PathBuf,
    /// What is durable when it is acked; there is nothing on disk that is not at least relaxed.
    pub durability: Durability,
    /// How much is kept of a session of which nothing else is said.
    pub keep: Keep,
    /// How many bytes are to be left on the disk.
    pub min_free_bytes: u64,
    /// How many bytes may wait to be written.
    pub queue_bytes: usize,
    /// How many bytes of what was read are kept in memory.
    pub cache_bytes: u64,
    /// The epoch that sessions have from here on, if some of what was acked may be lost. Nobody had it before.
    pub epoch: String,
}

impl Settings {
    /// Where the database is.
    fn database(&self) -> PathBuf {
        Self::database_in(&self.dir)
    }

    fn database_in(dir: &Path) -> PathBuf {
        dir.join("log")
    }
}

/// Frames on disk.
pub struct Disk {
    shelf: Arc<Shelf>,
    settlements: Mutex<Option<Settlements>>,
    held: Arc<Mutex<Option<Held>>>,
}

/// What the store has while it is open.
struct Held {
    threads: Vec<JoinHandle<()>>,
    _lock: open::Lock,
}

impl Disk {
    /// Opens the directory, which comes into being if need be; what was found there.
    pub fn open(settings: Settings) -> Result<(Self, Found), OpenError> {
        let lock = open::Lock::take(&settings.dir)?;
        let (base, next_number, found) = open::open(&settings)?;
        let (settler, settlements) = Settlements::new();
        let durability = settings.durability;
        let shelf = Arc::new(Shelf::new(settings, base, next_number));
        let writer = Writer::new(Arc::clone(&shelf), settler.clone(), durability);
        let keeper = Arc::clone(&shelf);
        let threads = vec![
            start("log-writer", move || writer.run()),
            start("log-keeper", move || keeper::run(&keeper, &settler)),
        ];
        shelf.set_keeper(threads[1].thread().clone());
        let disk = Self {
            shelf,
            settlements: Mutex::new(Some(settlements)),
            held: Arc::new(Mutex::new(Some(Held { threads, _lock: lock }))),
        };
        Ok((disk, found))
    }

    /// Bytes on the disk; nothing, while that cannot be told.
    pub fn disk_bytes(&self) -> Option<u64> {
        self.shelf.try_base()?.disk_bytes().ok()
    }

    /// Does something with the database in a thread that may wait.
    fn read_base<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Shelf, &Base) -> Result<T, Error> + Send + 'static,
    ) -> Wait<T> {
        let shelf = Arc::clone(&self.shelf);
        let read = tokio::task::spawn_blocking(move || shelf.with(|base| act(&shelf, base)));
        Box::pin(async move {
            read.await
                .unwrap_or_else(|error| Err(Error::Unavailable(format!("reading was broken off: {error}"))))
        })
    }

    /// The same for a session in use.
    fn read_series<T: Send + 'static>(
        &self,
        session: &str,
        act: impl FnOnce(&Series, &Base) -> Result<T, Error> + Send + 'static,
    ) -> Wait<T> {
        match self.shelf.series(session) {
            Ok(series) => self.read_base(move |_, base| act(&series, base)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn push_and_wait(&self, work: impl FnOnce(writer::Done) -> Work) -> Result<Wait<()>, Error> {
        let (done, wait) = oneshot::channel();
        self.shelf.push(work(done))?;
        Ok(Box::pin(async {
            wait.await
                .unwrap_or_else(|_| Err(Error::Unavailable("the log was closed".to_owned())))
        }))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        close(&self.shelf, &self.held);
    }
}

/// Ends the threads, once what waits is written, and lets go of the directory.
fn close(shelf: &Shelf, held: &Mutex<Option<Held>>) {
    let held = held.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(held) = held else { return };
    shelf.close();
    for thread in held.threads {
        // What went wrong there has been told.
        drop(thread.join());
    }
    if let Err(error) = shelf.with(|base| open::leave(base, &shelf.settings)) {
        tracing::debug!(?error, "that the log was closed could not be noted");
    }
    shelf.take_base();
}

impl Log for Disk {
    fn is_lasting(&self) -> bool {
        true
    }

    fn settlements(&self) -> Settlements {
        let mut settlements = self.settlements.lock().unwrap_or_else(PoisonError::into_inner);
        settlements.take().unwrap_or_else(Settlements::none)
    }

    fn create(&self, session: &Str, data: Bytes, first: u64) -> Result<u64, Error> {
        self.shelf.check()?;
        let entry = self.shelf.with(|base| base.entry(session))?;
        let is_there = entry.is_some_and(|entry| !self.shelf.deleting().contains(&entry.number));
        let number = self.shelf.next_number();
        let name = session.detached();
        let reach = Reach {
            first,
            head: first - 1,
            ..Reach::default()
        };
        let series = Arc::new(Series::new(name.clone(), number, reach, self.shelf.settings.keep));
        let mut shard = self.shelf.shard(session);
        if is_there || shard.contains_key(session) {
            let text = format!("session {session} came into being meanwhile; try again");
            return Err(Error::Unavailable(text));
        }
        self.shelf.push(Work::Create(Arc::clone(&series), data, first))?;
        shard.insert(name, series);
        Ok(number)
    }

    fn load(&self, session: &Str) -> Wait<Option<Loaded>> {
        let session = session.detached();
        self.read_base(move |shelf, base| {
            shelf.bring(&session, || {
                let entry = base.entry(&session)?;
                let Some(entry) = entry.filter(|entry| !shelf.deleting().contains(&entry.number)) else {
                    return Ok(None);
                };
                // What a failed write left is known once the database was opened anew.
                if let Some(error) = shelf.breakdown().filter(|_| shelf.is_lost(entry.number)) {
                    return Err(error);
                }
                let reach = reach(base, &session, entry.number)?;
                let loaded = Loaded {
                    life: entry.number,
                    epoch: base.epoch(entry.number)?,
                    notes: base.notes(entry.number)?,
                    data: entry.data,
                    first: reach.first,
                    head: reach.head,
                };
                let series = Series::new(session.clone(), entry.number, reach, shelf.settings.keep);
                Ok(Some((Arc::new(series), loaded)))
            })
        })
    }

    fn unload(&self, session: &Str, data: Option<Bytes>) {
        let series = self.shelf.remove(session);
        if let (Some(series), Some(data)) = (series, data) {
            // If it is not taken, what was saved before is still there.
            drop(self.shelf.push(Work::Save(series, data, None)));
        }
    }

    fn save(&self, session: &Str, data: Bytes) -> Result<Wait<()>, Error> {
        self.shelf.check()?;
        let series = self.sound(session)?;
        self.push_and_wait(|done| Work::Save(series, data, Some(done)))
    }

    fn note(&self, session: &Str, note: Note) -> Result<(), Error> {
        self.shelf.check()?;
        let series = self.sound(session)?;
        self.shelf.push(Work::Note(series, note))
    }

    fn append(&self, session: &Str, entry: Entry) -> Result<Appended, Error> {
        self.shelf.check()?;
        let series = self.sound(session)?;
        let seq = entry.frame.seq;
        self.shelf.push(Work::Append(Arc::clone(&series), entry))?;
        Ok(Appended {
            commit: Commit::Later,
            first: series.take(seq),
        })
    }

    fn read(&self, session: &Str, from: u64, limit: Limit) -> Wait<Page> {
        self.read_series(session, move |series, base| {
            let end = series.committed() + 1;
            while_trimmed(series, |first| {
                let frames = read(base, series, from.max(first)..end, limit)?;
                Ok(Page { frames, first })
            })
        })
    }

    fn read_back(&self, session: &Str, seqs: Range<u64>, limit: Limit) -> Wait<Page> {
        let replayed = self.replay(session, seqs, limit);
        let first = self.shelf.series(session).map_or(0, |series| series.first());
        Box::pin(async move {
            let replayed = replayed.await?;
            Ok(Page {
                frames: replayed.into_iter().map(|replayed| replayed.frame).collect(),
                first,
            })
        })
    }

    fn replay(&self, session: &Str, seqs: Range<u64>, limit: Limit) -> Wait<Vec<Replayed>> {
        self.read_series(session, move |series, base| {
            let end = seqs.end.min(series.committed() + 1);
            while_trimmed(series, |first| {
                read_back(base, series, seqs.start.max(first)..end, limit)
            })
        })
    }

    fn fold(&self, session: &Str, request: &str, from: u64, to: u64) {
        if let Ok(series) = self.shelf.series(session) {
            self.shelf.add_reply(Reply {
                series,
                request: request.into(),
                seqs: from..to.saturating_add(1),
            });
        }
    }

    fn retain(&self, session: &Str, keep: Keep) {
        if let Ok(series) = self.shelf.series(session) {
            let mut terms = series.terms();
            terms.keep = keep;
            terms.cutoff = None;
        }
    }

    fn trim(&self, session: &Str, now: SystemTime) -> u64 {
        let Ok(series) = self.shelf.series(session) else {
            return 1;
        };
        {
            let mut terms = series.terms();
            terms.cutoff = now.checked_sub(terms.keep.age);
            let first = (series.head() + 1).saturating_sub(terms.keep.frames as u64);
            series.trim_to(first);
        }
        self.shelf.list_if_full(&series);
        series.first()
    }

    fn delete(&self, session: &Str) -> Result<Wait<()>, Error> {
        let series = self.shelf.series(session)?;
        // Where there is too little room, this is what makes some.
        self.shelf.breakdown().map_or(Ok(()), Err)?;
        let name = session.detached();
        let number = series.number;
        self.shelf.deleting().insert(number);
        let deleted = self.push_and_wait(|done| Work::Delete(name, number, done));
        match &deleted {
            Ok(_) => drop(self.shelf.remove(session)),
            Err(_) => self.shelf.undelete(&[number]),
        }
        deleted
    }

    fn list(&self, prefix: &str, after: &str, count: usize) -> Wait<Vec<Known>> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        self.read_base(move |shelf, base| {
            let mut found = Vec::new();
            let fork = base.fork()?;
            // The smallest name after another one is that with the smallest byte added.
            let start = if prefix > after {
                prefix.clone()
            } else {
                format!("{after}\0")
            };
            for guard in base.sessions.range(start.as_bytes()..) {
                let (key, value) = guard.into_inner().map_err(base::failed)?;
                if !key.starts_with(prefix.as_bytes()) || found.len() == count {
                    break;
                }
                let name = base::name(&key)?;
                let entry = base::read_entry(&key, &value)?;
                if shelf.deleting().contains(&entry.number) {
                    continue;
                }
                let in_use = shelf.shard(&name).get(&name).cloned();
                let (first, head) = match in_use {
                    Some(series) => (series.first(), series.committed()),
                    // One that cannot be read is told of when it is loaded, and does not hide the others.
                    None => reach(base, &name, entry.number).map_or((1, 0), |reach| (reach.first, reach.head)),
                };
                found.push(Known {
                    session: name,
                    data: entry.data,
                    epoch: base::epoch_by(fork.as_ref(), entry.number),
                    first,
                    head,
                    has_notes: base.has_notes(entry.number)?,
                });
            }
            Ok(found)
        })
    }

    fn usage(&self) -> Usage {
        Usage {
            disk_bytes: self.disk_bytes().unwrap_or(0),
            waiting_bytes: self.shelf.queue.bytes() as u64,
        }
    }

    fn check(&self) -> Result<(), Error> {
        self.shelf.check()
    }

    fn backup(&self, mut out: Box<dyn Write + Send>) -> Wait<Contents> {
        self.read_base(move |shelf, base| backup::write(base, &mut *out, || shelf.breakdown().map_or(Ok(()), Err)))
    }

    fn close(&self) -> Wait<()> {
        let (flushed, shelf, held) = (self.flush(), Arc::clone(&self.shelf), Arc::clone(&self.held));
        Box::pin(async move {
            let flushed = flushed.await;
            let closed = tokio::task::spawn_blocking(move || close(&shelf, &held)).await;
            flushed.and(closed.map_err(|error| Error::Unavailable(format!("closing was broken off: {error}"))))
        })
    }

    fn flush(&self) -> Wait<()> {
        match self.push_and_wait(Work::Flush) {
            Ok(wait) => wait,
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

impl Disk {
    /// The session, of which nothing was lost.
    fn sound(&self, session: &str) -> Result<Arc<Series>, Error> {
        let series = self.shelf.series(session)?;
        match series.is_broken() {
            true => Err(writer::lost_before()),
            false => Ok(series),
        }
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(run).expect("the system must have threads")
}

/// Bytes that a record takes, with its key.
fn record_bytes(value: usize) -> u64 {
    (value + size_of::<Place>()) as u64
}

/// What a damaged record is told as: with the place.
fn corrupt(session: &str, place: Place, error: &Corrupt) -> Error {
    Error::Corrupt(format!(
        "frame {} of session {session} (number {}): {error}",
        place.seq, place.session
    ))
}

/// How far the log of a session goes that is not in use.
fn reach(base: &Base, session: &str, number: u64) -> Result<Reach, Error> {
    let mark = base.mark(number)?.unwrap_or_default();
    let Some((last, value)) = base.last_record(number)? else {
        return Ok(Reach {
            first: mark.head + 1,
            head: mark.head,
            trimmed: 0,
            written: 0,
        });
    };
    let offset = |seq: u64, value: &[u8]| {
        let place = Place { session: number, seq };
        record::offset_of(place, value).map_err(|error| corrupt(session, place, &error))
    };
    let from = Place {
        session: number,
        seq: mark.first,
    };
    let to = Place { seq: last, ..from };
    let oldest = base.frames.range(from.key()..=to.key()).next();
    let oldest = oldest.map(Guard::into_inner).transpose().map_err(base::failed)?;
    let trimmed = match oldest {
        Some((key, value)) => offset(base::place(&key)?.seq, &value)?,
        None => 0,
    };
    Ok(Reach {
        first: mark.first.max(1),
        head: last.max(mark.head),
        trimmed,
        written: offset(last, &value)? + record_bytes(value.len()),
    })
}

/// A page in the making.
struct Reading {
    frames: usize,
    bytes: usize,
    limit: Limit,
}

impl Reading {
    fn new(limit: Limit) -> Self {
        Self {
            frames: 0,
            bytes: 0,
            limit,
        }
    }

    fn goes_on(&self) -> bool {
        self.frames < self.limit.frames && self.bytes < self.limit.bytes
    }

    fn count(&mut self, frame: &Sealed) {
        self.frames += 1;
        self.bytes += frame.size();
    }
}

/// Reads again if what was about to be read was trimmed meanwhile.
fn while_trimmed<T>(series: &Series, read: impl Fn(u64) -> Result<T, Error>) -> Result<T, Error> {
    loop {
        let first = series.first();
        match read(first) {
            Err(Error::Corrupt(_)) if series.first() > first => {}
            read => return read,
        }
    }
}

fn read(base: &Base, series: &Series, seqs: Range<u64>, limit: Limit) -> Result<Vec<Arc<Sealed>>, Error> {
    let mut reading = Reading::new(limit);
    let mut frames = Vec::new();
    let mut next = seqs.start;
    let place = |seq| Place {
        session: series.number,
        seq,
    };
    for guard in base.frames.range(place(seqs.start).key()..place(u64::MAX).key()) {
        if next >= seqs.end || !reading.goes_on() {
            break;
        }
        let (key, value) = guard.into_inner().map_err(base::failed)?;
        let replayed = part(series, base::place(&key)?, &value, next..seqs.end)?;
        check_follows(series, next, replayed.frame.first_seq())?;
        next = replayed.frame.seq + 1;
        reading.count(&replayed.frame);
        frames.push(replayed.frame);
    }
    match next < seqs.end && reading.goes_on() {
        true => Err(hole(series, next)),
        false => Ok(frames),
    }
}

fn read_back(base: &Base, series: &Series, seqs: Range<u64>, limit: Limit) -> Result<Vec<Replayed>, Error> {
    if seqs.is_empty() {
        return Ok(Vec::new());
    }
    let place = |seq| Place {
        session: series.number,
        seq,
    };
    // Both of one moment: records may be folded meanwhile.
    let snapshot = base.snapshot();
    // The newest frame that is wanted may be in the middle of a record.
    let newest = snapshot
        .range(&base.frames, place(seqs.end - 1).key()..place(u64::MAX).key())
        .next();
    let older = snapshot
        .range(&base.frames, place(seqs.start).key()..place(seqs.end - 1).key())
        .rev();
    let mut reading = Reading::new(limit);
    let mut found = Vec::new();
    let mut end = seqs.end;
    for guard in newest.into_iter().chain(older) {
        if end <= seqs.start || !reading.goes_on() {
            break;
        }
        let (key, value) = guard.into_inner().map_err(base::failed)?;
        let replayed = part(series, base::place(&key)?, &value, seqs.start..end)?;
        check_follows(series, end - 1, replayed.frame.seq)?;
        end = replayed.frame.first_seq();
        reading.count(&replayed.frame);
        found.push(replayed);
    }
    if end > seqs.start && reading.goes_on() {
        return Err(hole(series, end - 1));
    }
    found.reverse();
    Ok(found)
}

/// What a record holds of the frames within the seqs; there is at least one, if the log is whole.
fn part(series: &Series, place: Place, value: &[u8], seqs: Range<u64>) -> Result<Replayed, Error> {
    let record = record::read(place, &series.name, value).map_err(|error| corrupt(&series.name, place, &error))?;
    match record.what {
        What::Frame(frame, seen) => Ok(Replayed {
            frame: Arc::new(Sealed::new(frame)),
            seen,
        }),
        What::Chunks { first, folded } => {
            let (start, end) = (seqs.start.max(first), seqs.end.min(place.seq + 1));
            if start >= end {
                return Err(hole(series, seqs.start));
            }
            Ok(Replayed {
                frame: folded.stretch((start - first) as usize, (end - start) as usize, start),
                seen: None,
            })
        }
    }
}

fn check_follows(series: &Series, expected: u64, found: u64) -> Result<(), Error> {
    match found == expected {
        true => Ok(()),
        false => Err(hole(series, expected)),
    }
}

fn hole(series: &Series, seq: u64) -> Error {
    Error::Corrupt(format!(
        "frame {seq} of session {} (number {}) is missing",
        series.name, series.number
    ))
}
