//! The repair of a data directory: a new database of all that can be read, in the place of the damaged one, which is kept.
//!
//! ```text
//!   tables, block by block --+
//!                            +--> what was written last of each key --> the audit, with what is mended --> log
//!   journals, by batch ------+
//! ```
//!
//! It owns what is done about each fault, and that nothing is lost without a word. It must never change or delete what was there
//! before.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch};
use prost::Message;

use super::audit::{self, Fault, Shelved, Whose};
use super::backup;
use super::base::{self, Base, Mark};
use super::check::{CACHE, Directory, Finding, Findings, Report, Scratch, guarded};
use super::journal::{self, Kind};
use super::open::OpenError;
use super::record::{self, Place};
use super::tables;
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Frame, Str, pb};
use crate::log::Error;

/// What one batch holds at most.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ITEMS: usize = 1_024;
/// A fault may come to light once another was mended: frames that nobody named are read once they have a name.
const ROUNDS: usize = 4;
/// No session has lost more frames than this; whatever says so is wrong, and is not answered with as many.
const HOLE: u64 = 1 << 26;
/// The keyspaces in the order in which the store makes them.
const ORDER: [&str; 6] = ["sessions", "frames", "notes", "marks", "dead", "meta"];

/// What a repair did.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Where the damaged database is now.
    pub aside: PathBuf,
    /// What could not be saved, and what was put in its place.
    pub dropped: Findings,
}

/// What is written of a session of which only frames are left.
pub struct Saved<'a> {
    /// Its data, as the store's caller would have saved it.
    pub data: Box<dyn Fn() -> Bytes + 'a>,
    /// The epoch of all sessions from here on: what was lost at the end of one cannot be told.
    pub epoch: String,
    /// When this is.
    pub now: SystemTime,
}

/// Checks a data directory, and puts a database of what can be read in the place of a damaged one.
pub fn repair(dir: &Path, saved: &Saved<'_>) -> Result<Report, OpenError> {
    let place = Directory::enter(dir)?;
    let repaired = || {
        let before = place.check()?;
        if before.is_sound() {
            return Ok(before);
        }
        let repaired = rebuild(&place, saved)?;
        Ok(Report {
            repaired: Some(repaired),
            ..place.check()?
        })
    };
    repaired().map_err(|error| place.refused(error))
}

fn rebuild(place: &Directory, saved: &Saved<'_>) -> Result<Repaired, Error> {
    let new = Scratch::new(place.dir.join("log.repaired")).map_err(io_failed)?;
    let mut dropped = Findings::default();
    guarded(|| {
        let base = Base::open(&new.0, CACHE).map_err(base::failed)?;
        {
            let staging = Scratch::new(place.dir.join("log.staging")).map_err(io_failed)?;
            Salvage::new(&base, &staging.0, &mut dropped)?.all(&place.log())?;
        }
        let mut mender = Mender {
            base: &base,
            saved,
            dropped: &mut dropped,
        };
        mender.mend()?;
        backup::fork(&base, &saved.epoch)
    })?;
    let aside = swap(&place.dir, &new.keep(), saved.now).map_err(io_failed)?;
    Ok(Repaired { aside, dropped })
}

fn io_failed(error: io::Error) -> Error {
    base::failed_io(&error)
}

/// Puts the new database in the place of the old one, and that aside. Where the file system can exchange two directories, there
/// is no moment without a database, and none at which another start would take the old one for something to be cleared away.
fn swap(dir: &Path, new: &Path, now: SystemTime) -> io::Result<PathBuf> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let log = dir.join("log");
    let aside = aside(dir, now);
    sync_dir(new)?;
    fs::rename(new, &aside)?;
    if renameat_with(CWD, &aside, CWD, &log, RenameFlags::EXCHANGE).is_err() {
        fs::rename(&aside, new)?;
        fs::rename(&log, &aside)?;
        fs::rename(new, &log)?;
    }
    sync_dir(dir)?;
    Ok(aside)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A name that is not taken.
fn aside(dir: &Path, now: SystemTime) -> PathBuf {
    let time = prost_types::Timestamp::from(now).to_string();
    // `2026-01-02T03:04:05.678Z`, without what file names had better not have.
    let time: String = time.chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
    let name = format!("log.damaged-{time}Z");
    let first = dir.join(&name);
    let others = (2_u32..).map(|count| dir.join(format!("{name}-{count}")));
    let mut free = std::iter::once(first).chain(others).filter(|path| !path.exists());
    free.next().unwrap_or_else(|| dir.join(name))
}

/// All that can be read, brought into a new database, in which what was written last of each key is what counts.
struct Salvage<'a> {
    base: &'a Base,
    /// For each key, when it was written: its sequence number.
    written: Keyspace,
    /// It is closed when this is gone.
    _staging: Database,
    batch: OwnedWriteBatch,
    bytes: usize,
    items: usize,
    dropped: &'a mut Findings,
}

/// A keyspace, and how it is known which one it is.
#[derive(Clone, Copy)]
struct Named {
    name: &'static str,
    is_guessed: bool,
}

impl<'a> Salvage<'a> {
    fn new(base: &'a Base, staging: &Path, dropped: &'a mut Findings) -> Result<Self, Error> {
        let database = Database::builder(staging)
            .cache_size(CACHE)
            .open()
            .map_err(base::failed)?;
        let written = database
            .keyspace("written", KeyspaceCreateOptions::default)
            .map_err(base::failed)?;
        Ok(Self {
            base,
            written,
            _staging: database,
            batch: base.batch(BATCH_ITEMS, None),
            bytes: 0,
            items: 0,
            dropped,
        })
    }

    fn all(mut self, log: &Path) -> Result<(), Error> {
        let keyspaces = tables::keyspaces(log).map_err(io_failed)?;
        let names = self.names(&keyspaces)?;
        for (number, path) in &keyspaces {
            if let Some(named) = names.get(number) {
                self.tables(path, *named)?;
            }
        }
        self.journals(log, &names)?;
        self.write()
    }

    /// Which keyspace has which number, as fjall's own says; where that cannot be read, as the store makes them.
    fn names(&mut self, keyspaces: &[(u64, PathBuf)]) -> Result<HashMap<u64, Named>, Error> {
        let mut names = HashMap::new();
        if let Some((_, path)) = keyspaces.iter().find(|(number, _)| *number == 0) {
            let (own, damage) = tables::names(path).map_err(io_failed)?;
            self.tell(&damage);
            for (number, own) in own {
                let name = ORDER.into_iter().find(|name| *name == own);
                let is_guessed = false;
                names.extend(name.map(|name| (number, Named { name, is_guessed })));
            }
        }
        for (number, name) in (1..).zip(ORDER) {
            if !names.values().any(|named| named.name == name) {
                let is_guessed = true;
                names.entry(number).or_insert(Named { name, is_guessed });
            }
        }
        Ok(names)
    }

    fn listed(&mut self, keyspace: &Path) -> Result<Vec<tables::Table>, Error> {
        let listed = tables::list(keyspace).map_err(io_failed)?;
        self.tell(&listed.damage);
        Ok(listed.tables)
    }

    fn tell(&mut self, damage: &[tables::Damage]) {
        for damage in damage {
            self.dropped.push(Finding::from(damage));
        }
    }

    fn tables(&mut self, keyspace: &Path, named: Named) -> Result<(), Error> {
        for table in self.listed(keyspace)? {
            let mut failed = None;
            let damage = table.salvage(&mut |item| {
                self.take(named, (item.key, item.value), item.kind, item.seqno)
                    .map_err(|error| stop(&mut failed, error))
            });
            match (failed, damage) {
                (Some(error), _) => return Err(error),
                (None, damage) => self.tell(&damage.map_err(io_failed)?),
            }
        }
        Ok(())
    }

    fn journals(&mut self, log: &Path, names: &HashMap<u64, Named>) -> Result<(), Error> {
        let mut failed = None;
        let mut last = 0;
        let salvaged = journal::salvage(log, |item| {
            let Some(named) = names.get(&item.keyspace_id) else {
                return Ok(());
            };
            // The order of batches is right even where a sequence number is not.
            if last == 0 || (item.seqno > last && item.seqno - last < 1 << 32) {
                last = item.seqno;
            }
            self.take(*named, (item.key, item.value), item.kind, last)
                .map_err(|error| stop(&mut failed, error))
        });
        match failed {
            Some(error) => Err(error),
            None => {
                for damage in &salvaged.map_err(io_failed)?.skipped {
                    let finding = Finding::from(damage);
                    self.dropped.push(Finding {
                        what: format!("{} ({} bytes left out)", finding.what, damage.bytes),
                        ..finding
                    });
                }
                Ok(())
            }
        }
    }

    /// Takes in what was done to a key, unless something was done to it later.
    fn take(&mut self, named: Named, item: (&[u8], &[u8]), kind: Kind, seqno: u64) -> Result<(), Error> {
        let (key, value) = item;
        let Some(shelf) = shelved(named.name) else {
            return self.check_format(key, value);
        };
        if named.is_guessed && kind == Kind::Value && !fits(shelf, key, value) {
            self.dropped.push(Finding {
                what: format!("the key {} may be of {}, and is not", base::hex(key), named.name),
                ..Finding::default()
            });
            return Ok(());
        }
        let known = [&[shelf as u8], key].concat();
        let before = self.written.get(&known).map_err(base::failed)?;
        let before = before.and_then(|before| Some(u64::from_be_bytes(*before.first_chunk()?)));
        if before.is_some_and(|before| before > seqno) {
            return Ok(());
        }
        self.written.insert(known, seqno.to_be_bytes()).map_err(base::failed)?;
        let keyspace = shelf.of(self.base);
        match kind {
            Kind::Value => self.batch.insert(keyspace, key, value),
            Kind::Removal | Kind::WeakRemoval => self.batch.remove(keyspace, key),
            Kind::Clear => return Ok(()),
        }
        self.bytes += key.len() + value.len();
        self.items += 1;
        match self.bytes >= BATCH_BYTES || self.items >= BATCH_ITEMS {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// What a newer version wrote is not for this one to mend.
    fn check_format(&self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        match key == b"format" && value != base::FORMATS {
            true => Err(Error::Unavailable(
                "another version of twinspan wrote it: use that one to repair it".to_owned(),
            )),
            false => Ok(()),
        }
    }

    fn write(&mut self) -> Result<(), Error> {
        let batch = std::mem::replace(&mut self.batch, self.base.batch(BATCH_ITEMS, None));
        (self.bytes, self.items) = (0, 0);
        batch.commit().map_err(base::failed)
    }
}

/// Ends a walk through a file, of which the error is not.
fn stop(failed: &mut Option<Error>, error: Error) -> io::Error {
    *failed = Some(error);
    io::ErrorKind::Interrupted.into()
}

fn shelved(name: &str) -> Option<Shelved> {
    let all = [
        Shelved::Sessions,
        Shelved::Frames,
        Shelved::Notes,
        Shelved::Marks,
        Shelved::Dead,
    ];
    all.into_iter().find(|shelf| shelf.name() == name)
}

/// Whether this is what the keyspace holds.
fn fits(shelf: Shelved, key: &[u8], value: &[u8]) -> bool {
    let is_sealed = || base::unseal(key, value, String::new).is_ok();
    match shelf {
        Shelved::Frames => Place::from_key(key).is_some_and(|place| record::offset_of(place, value).is_ok()),
        Shelved::Sessions => is_sealed() && std::str::from_utf8(key).is_ok(),
        Shelved::Notes => key.len() == 16 && is_sealed(),
        Shelved::Marks => key.len() == 8 && is_sealed(),
        Shelved::Dead => key.len() == 8 && value.is_empty(),
    }
}

/// Mends what the audit finds.
struct Mender<'a> {
    base: &'a Base,
    saved: &'a Saved<'a>,
    dropped: &'a mut Findings,
}

impl Mender<'_> {
    fn mend(&mut self) -> Result<(), Error> {
        for _ in 0..ROUNDS {
            let mut count = 0;
            audit::audit(self.base, &mut |fault| {
                count += u64::from(self.fix(&fault)?);
                Ok(())
            })?;
            if count == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Does something about a fault; whether that could be done.
    fn fix(&mut self, fault: &Fault) -> Result<bool, Error> {
        let done = match fault {
            Fault::Entry { key, .. } => self.remove(Shelved::Sessions, key, "the entry is left out")?,
            Fault::Key { at, key } => self.remove(*at, key, "it is left out")?,
            Fault::Mark { whose, .. } => self.remove(
                Shelved::Marks,
                &whose.number.to_be_bytes(),
                "it begins with what is left",
            )?,
            Fault::Unmarked { whose, first } => {
                self.mark(whose, *first)?;
                "it begins with that now, as if they had been".to_owned()
            }
            Fault::Ahead { whose, head, .. } => {
                self.mark(whose, head.saturating_add(1))?;
                "it begins with the next one now".to_owned()
            }
            Fault::Record { whose, seq, .. } | Fault::Overlap { whose, seq } => {
                self.remove(Shelved::Frames, &key(whose, *seq), "the record is left out")?
            }
            Fault::Note { whose, key, .. } => {
                self.remove(Shelved::Notes, &self::key(whose, *key), "the note is left out")?
            }
            Fault::Hole { seqs, .. } if seqs.end() - seqs.start() >= HOLE => return Ok(false),
            Fault::Hole { whose, seqs, offset } => self.fill(whose, seqs.clone(), *offset)?,
            Fault::Stray {
                at: Shelved::Frames,
                number,
            } => self.name(*number)?,
            Fault::Stray { at, number } => self.clear(*at, *number)?,
            Fault::Twice { .. } | Fault::Offset { .. } => return Ok(false),
        };
        let finding = Finding::from(fault);
        self.dropped.push(Finding {
            what: format!("{}: {done}", finding.what),
            remedy: "",
            ..finding
        });
        Ok(true)
    }

    fn remove(&self, at: Shelved, key: &[u8], done: &str) -> Result<String, Error> {
        let mut batch = self.base.batch(1, None);
        batch.remove(at.of(self.base), key);
        batch.commit().map_err(base::failed)?;
        Ok(done.to_owned())
    }

    /// Says where the session begins now.
    fn mark(&self, whose: &Whose, first: u64) -> Result<(), Error> {
        let mark = Mark { first, head: first - 1 };
        let key = whose.number.to_be_bytes();
        let mut batch = self.base.batch(1, None);
        batch.insert(&self.base.marks, key, base::seal(&key, &mark.encode_to_vec()));
        batch.commit().map_err(base::failed)
    }

    /// Puts in the place of each frame that is missing one that says so.
    fn fill(&self, whose: &Whose, seqs: RangeInclusive<u64>, offset: u64) -> Result<String, Error> {
        let count = seqs.end() - seqs.start() + 1;
        let mut batch = self.base.batch(BATCH_ITEMS, None);
        let mut value = Vec::new();
        for seq in seqs {
            let place = Place {
                session: whose.number,
                seq,
            };
            value.clear();
            let frame = lost(&whose.name, seq);
            record::write_frame(&mut value, place, offset, &frame, None)
                .map_err(|error| Error::Unavailable(error.to_string()))?;
            batch.insert(&self.base.frames, place.key(), value.as_slice());
            if batch.len() >= BATCH_ITEMS {
                let full = std::mem::replace(&mut batch, self.base.batch(BATCH_ITEMS, None));
                full.commit().map_err(base::failed)?;
            }
        }
        batch.commit().map_err(base::failed)?;
        Ok(match count {
            1 => "one that says so is in its place".to_owned(),
            count => format!("{count} that say so are in their place"),
        })
    }

    /// Names a session of which nothing but frames is left.
    fn name(&self, number: u64) -> Result<String, Error> {
        let first = format!("recovered-{number}");
        let others = (2_u32..).map(|count| format!("recovered-{number}-{count}"));
        for name in std::iter::once(first).chain(others) {
            if self.base.sessions.get(&name).map_err(base::failed)?.is_some() {
                continue;
            }
            let entry = base::Entry {
                number,
                data: (self.saved.data)(),
            };
            let value = base::seal(name.as_bytes(), &entry.encode_to_vec());
            let mut batch = self.base.batch(1, None);
            batch.insert(&self.base.sessions, name.as_str(), value);
            batch.commit().map_err(base::failed)?;
            return Ok(format!(
                "they are in the session {name} now; if that was deleted once, delete it again"
            ));
        }
        Ok(String::new())
    }

    /// Removes what belongs to nobody.
    fn clear(&self, at: Shelved, number: u64) -> Result<String, Error> {
        let keyspace = at.of(self.base);
        let mut count = 0;
        let mut batch = self.base.batch(1, None);
        for guard in keyspace.prefix(number.to_be_bytes()) {
            batch.remove(keyspace, guard.key().map_err(base::failed)?);
            count += 1;
        }
        batch.commit().map_err(base::failed)?;
        Ok(format!("left out: {count}"))
    }
}

fn key(whose: &Whose, seq: u64) -> [u8; 16] {
    Place {
        session: whose.number,
        seq,
    }
    .key()
}

/// What is read where a frame was lost.
fn lost(session: &Str, seq: u64) -> Frame {
    let refusal = Refusal::new(
        Reason::LogCorrupt,
        "this frame was lost: the disk was damaged, and the log was repaired",
    );
    Frame {
        session_id: session.clone(),
        seq,
        from: Some(Arc::new(pb::Address {
            role: "gateway".to_owned(),
            ..pb::Address::default()
        })),
        body: Body::Error(Box::new(refusal.with("seq", seq.to_string()).to_pb())),
        ..Frame::default()
    }
}
