//! The keeper: it trims what is not to be kept, clears away what was deleted, syncs where that is its turn, looks at the room on
//! the disk, and opens the database anew when that can be written again.
//!
//! It works beside the writer and never in its way: each of its batches is small. It must never remove what a reader may still be
//! given.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use fjall::PersistMode;
use prost::Message;

use super::base::{self, Base, Mark};
use super::record::{self, Place, What};
use super::series::Series;
use super::shelf::Shelf;
use super::{Durability, fold, open};
use crate::log::{Error, Settler};

/// How often it looks, if nothing wakes it.
const PERIOD: Duration = Duration::from_secs(1);
/// Records that are removed by one batch.
const REMOVED: usize = 1_024;
/// What is written to see whether the disk takes it.
const PROBE: usize = 64 << 10;

/// The keeper's thread, until the store is closed.
pub(super) fn run(shelf: &Arc<Shelf>, settler: &Settler) {
    while !shelf.is_closed() {
        look_at_room(shelf);
        // Where there is too little room, this is what makes some.
        if shelf.breakdown().is_none() {
            keep(shelf, settler);
        }
        shelf.pause(PERIOD);
    }
}

fn keep(shelf: &Shelf, settler: &Settler) {
    if shelf.settings.durability == Durability::Relaxed
        && let Err(error) = shelf.with(|base| base.sync().map_err(base::failed))
    {
        return shelf.break_down(&error);
    }
    for series in shelf.take_full() {
        series.unlist();
        let first = series.first();
        report("trimmed", trim(shelf, &series));
        if series.first() > first {
            settler.tell(vec![series.settled(Ok(()))]);
        }
    }
    for reply in shelf.take_replies() {
        report(
            "folded",
            shelf.with(|base| fold::fold(base, &reply, shelf.settings.durability.of_writes())),
        );
    }
    if shelf.has_dead.swap(false, Ordering::AcqRel) {
        let cleared = clear_dead(shelf);
        if cleared.is_err() {
            shelf.has_dead.store(true, Ordering::Release);
        }
        report("cleared", cleared);
    }
}

fn report(what: &str, result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::warn!(?error, "what is not to be kept could not be {what}; trying again later");
    }
}

/// Looks whether the disk can be written again where it could not, and whether there is room on it.
fn look_at_room(shelf: &Shelf) {
    let free = match free_bytes(&shelf.settings.dir) {
        Ok(free) => free,
        Err(error) => return shelf.fail(&base::failed_io(&error)),
    };
    if shelf.breakdown().is_some()
        && let Err(error) = heal(shelf)
    {
        return tracing::debug!(?error, "the log still cannot be written");
    }
    let least = shelf.settings.min_free_bytes;
    match free < least {
        true => {
            let text = format!("the disk has {free} bytes left, fewer than disk.min_free ({least})");
            shelf.fail(&Error::Full(text));
        }
        false => shelf.recover(),
    }
}

/// Brings the database back to work after a write that failed, if the disk takes writes.
fn heal(shelf: &Shelf) -> Result<(), Error> {
    probe(&shelf.settings.dir)?;
    // A sync tells whether the database still works: after a failed write it never does again.
    let works = shelf.with(|base| base.sync().map_err(base::failed));
    works.or_else(|_| shelf.reopen(|| open::checked(&shelf.settings).map(|(base, _)| base)))?;
    shelf.mend();
    Ok(())
}

/// Writes a file and removes it, to see whether that can be done.
fn probe(dir: &Path) -> Result<(), Error> {
    let path = dir.join("probe");
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&[0; PROBE])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&path);
    written.and(removed).map_err(|error| base::failed_io(&error))
}

/// How many bytes there are for the process on the disk.
pub(super) fn free_bytes(dir: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Removes the records of a session that are not to be kept.
pub(super) fn trim(shelf: &Shelf, series: &Series) -> Result<(), Error> {
    let durability = shelf.settings.durability.of_writes();
    loop {
        let is_done = shelf.with(|base| {
            let surplus = surplus(base, series)?;
            if let Some(last) = surplus.keys.last() {
                remove(base, series, &surplus, durability)?;
                series.cleaned(last.seq + 1, surplus.trimmed);
            }
            Ok(surplus.keys.len() < REMOVED)
        })?;
        if is_done || shelf.is_closed() {
            return Ok(());
        }
    }
}

/// Records of a session that are not to be kept.
#[derive(Default)]
pub(super) struct Surplus {
    pub keys: Vec<Place>,
    /// The oldest frame that is left when they are gone, if it is there yet: no record before it stays.
    pub first: u64,
    /// Bytes of all that was written up to the last of them.
    trimmed: u64,
}

/// The oldest records that are not to be kept, some at a time: those before `first`, those by which the session is too large, but
/// for the newest, and those that are too old.
pub(super) fn surplus(base: &Base, series: &Series) -> Result<Surplus, Error> {
    let terms = *series.terms();
    let limit = terms.keep.bytes as u64;
    // A little more than is needed, so as not to come back for every frame.
    let target = limit - limit / 16;
    let is_large = series.kept_bytes() > limit;
    let (first, head) = (series.first(), series.committed());
    let start = Place {
        session: series.number,
        seq: series.oldest(),
    };
    let end = Place { seq: head, ..start };
    let mut surplus = Surplus::default();
    if end.seq < start.seq {
        return Ok(surplus);
    }
    for guard in base.frames.range(start.key()..=end.key()) {
        let judged = guard.into_inner().map_err(base::failed).and_then(|(key, value)| {
            let place = base::place(&key)?;
            let damaged = |error| super::corrupt(&series.name, place, &error);
            let before = record::offset_of(place, &value).map_err(damaged)?;
            let is_beyond = place.seq < first || (is_large && series.written().saturating_sub(before) > target);
            let goes = (is_beyond && place.seq < head) || is_old(series, place, &value)?;
            Ok((place, before + super::record_bytes(value.len()), goes))
        });
        match judged {
            Ok((place, trimmed, true)) if surplus.keys.len() < REMOVED => {
                series.trim_to(place.seq + 1);
                surplus.first = place.seq + 1;
                surplus.trimmed = trimmed;
                surplus.keys.push(place);
            }
            // There are more.
            Ok((_, _, true)) => return Ok(surplus),
            Ok((place, _, false)) => {
                surplus.first = surplus.first.max(first.min(place.seq));
                return Ok(surplus);
            }
            // What is before it goes all the same.
            Err(_) if !surplus.keys.is_empty() => return Ok(surplus),
            Err(error) => return Err(error),
        }
    }
    surplus.first = surplus.first.max(first);
    Ok(surplus)
}

/// Whether the newest of what a record holds is too old.
fn is_old(series: &Series, place: Place, value: &[u8]) -> Result<bool, Error> {
    let Some(cutoff) = series.terms().cutoff else {
        return Ok(false);
    };
    let record = record::read(place, &series.name, value);
    let record = record.map_err(|error| super::corrupt(&series.name, place, &error))?;
    let said = match record.what {
        What::Frame(frame, _) => frame.timestamp,
        What::Chunks { folded, .. } => Some(folded.timestamp(folded.len() - 1)),
    };
    // One that does not say when it was said never is.
    let said = said.and_then(|said| SystemTime::try_from(said).ok());
    series.terms().oldest = Some(said.unwrap_or(cutoff));
    Ok(said.is_some_and(|said| said < cutoff))
}

fn remove(base: &Base, series: &Series, surplus: &Surplus, durability: PersistMode) -> Result<(), Error> {
    let mut batch = base.batch(surplus.keys.len() + 1, Some(durability));
    let head = series.committed();
    let mark = Mark {
        // What is trimmed in memory may not be written yet, and would be appended anew after a crash.
        first: surplus.first.min(head + 1),
        head,
    };
    let key = series.number.to_be_bytes();
    batch.insert(&base.marks, key, base::seal(&key, &mark.encode_to_vec()));
    for place in &surplus.keys {
        batch.remove(&base.frames, place.key());
    }
    batch.commit().map_err(base::failed)
}

/// Clears away what is left of deleted sessions, many with each batch.
fn clear_dead(shelf: &Shelf) -> Result<(), Error> {
    let durability = shelf.settings.durability.of_writes();
    let mut is_done = false;
    while !is_done && !shelf.is_closed() {
        is_done = shelf.with(|base| clear_some(base, durability))?;
    }
    Ok(())
}

/// Clears as much as one batch takes away; whether that was all.
fn clear_some(base: &Base, durability: PersistMode) -> Result<bool, Error> {
    let mut batch = base.batch(REMOVED, Some(durability));
    for dead in base.dead.iter() {
        let number = dead.key().map_err(base::failed)?;
        for keyspace in [&base.frames, &base.notes] {
            for guard in keyspace.prefix(&number) {
                if batch.len() >= REMOVED {
                    batch.commit().map_err(base::failed)?;
                    return Ok(false);
                }
                batch.remove(keyspace, guard.key().map_err(base::failed)?);
            }
        }
        batch.remove(&base.marks, number.clone());
        batch.remove(&base.dead, number);
    }
    batch.commit().map_err(base::failed)?;
    Ok(true)
}
