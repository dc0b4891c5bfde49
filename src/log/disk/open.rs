//! How a data directory is opened: by one process only, with what the last one left unfinished cut off, and not at all if it is
//! damaged.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fjall::Guard;

use super::backup;
use super::base::{self, Base, Use};
use super::journal::{self, Torn};
use super::tables;
use super::{Durability, Settings};
use crate::log::Error;

/// Why a data directory cannot be opened.
#[derive(Debug)]
pub struct OpenError {
    dir: PathBuf,
    what: String,
    remedy: String,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, what, remedy } = self;
        write!(
            f,
            "the data directory {} cannot be used: {what}; {remedy}",
            dir.display()
        )
    }
}

impl std::error::Error for OpenError {}

impl OpenError {
    pub(super) fn new(dir: &Path, what: String, remedy: String) -> Self {
        let dir = dir.to_owned();
        Self { dir, what, remedy }
    }

    pub(super) fn of(dir: &Path, error: Error) -> Self {
        let remedy = remedy(&error, dir);
        Self::new(dir, said(error), remedy)
    }
}

/// What was found when a data directory was opened.
#[derive(Debug, Default)]
pub struct Found {
    /// How long it took.
    pub took: Duration,
    /// Bytes of what was written last, which were read again.
    pub journal_bytes: u64,
    /// What was not finished, and was cut.
    pub torn: Option<Torn>,
    /// Sessions.
    pub sessions: u64,
}

/// The file by which a process has the directory.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the directory, which comes into being if need be.
    pub fn take(dir: &Path) -> Result<Self, OpenError> {
        let refused = |what: String, remedy: &str| OpenError::new(dir, what, remedy.to_owned());
        let permissions = "see to it that this user may write there, or choose another directory with --data-dir";
        if dir.is_file() {
            return Err(refused("it is a file, and no directory".to_owned(), permissions));
        }
        make_dir(dir).map_err(|error| refused(error.to_string(), permissions))?;
        let path = dir.join("lock");
        let options = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = options.map_err(|error| refused(format!("{}: {error}", path.display()), permissions))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who it is helps, and is not needed.
                drop(file.read_to_string(&mut holder));
                let what = format!("another process has it (process {})", holder.trim());
                let remedy = "stop that one, or give each process a directory of its own with --data-dir";
                return Err(refused(what, remedy));
            }
            Err(TryLockError::Error(error)) => {
                let remedy = "use a file system that knows locks";
                return Err(refused(format!("{}: {error}", path.display()), remedy));
            }
        }
        let note = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        // Without room for it, nobody is told who has the directory.
        drop(note(&mut file));
        Ok(Self { _file: file })
    }
}

/// Makes a directory that is for its owner alone.
pub(super) fn make_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Opens the database of a directory that this process has.
pub(super) fn open(settings: &Settings) -> Result<(Base, u64, Found), OpenError> {
    #[allow(clippy::disallowed_methods, reason = "how long it takes is told to people")]
    let started = Instant::now();
    let counted = checked(settings).and_then(|(base, found)| {
        take_up(&base, settings)?;
        Ok((numbers(&base)?, base, found))
    });
    let ((next_number, sessions), base, mut found) = counted.map_err(|error| OpenError::of(&settings.dir, error))?;
    found.took = started.elapsed();
    found.sessions = sessions;
    Ok((base, next_number, found))
}

/// What an error says.
pub(super) fn said(error: Error) -> String {
    match error {
        Error::Full(what) | Error::Unavailable(what) | Error::Corrupt(what) => what,
    }
}

fn remedy(error: &Error, dir: &Path) -> String {
    let dir = dir.display();
    match error {
        Error::Full(_) => "make room on the disk".to_owned(),
        Error::Unavailable(_) => "see to it that this user may read and write there".to_owned(),
        Error::Corrupt(_) => format!(
            "`twinspan check --data-dir {dir}` says what is damaged, `twinspan check --repair --data-dir {dir}` saves what can be \
             read, `twinspan restore` brings back a backup"
        ),
    }
}

/// Opens the database, if it is whole but for an end that was not finished.
pub(super) fn checked(settings: &Settings) -> Result<(Base, Found), Error> {
    let path = settings.database();
    let mut found = Found::default();
    let repaired = settings.dir.join("log.repaired");
    if !path.exists() && repaired.exists() {
        let text = format!(
            "a repair was broken off at its end: rename {} to log, and check it",
            repaired.display()
        );
        return Err(Error::Corrupt(text));
    }
    if path.exists() {
        let findings = journal::verify(&path)
            .map_err(|error| base::failed_io(&error))?
            .map_err(|damage| Error::Corrupt(damage.to_string()))?;
        found.journal_bytes = findings.bytes;
        if let Some(torn) = findings.torn {
            journal::cut(&torn).map_err(|error| base::failed_io(&error))?;
            found.torn = Some(torn);
        }
        let missed = tables::missed(&path).map_err(|error| base::failed_io(&error))?;
        if let Some(damage) = missed.first() {
            return Err(Error::Corrupt(damage.to_string()));
        }
    }
    let base = Base::open(&path, settings.cache_bytes).map_err(base::failed)?;
    base.check_format()?;
    Ok((base, found))
}

/// Which boot of the machine this is; empty where that cannot be told.
fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// Notes that the database is in use. If the machine went down while it was, and not all was synced that was acked, its
/// sessions have other lives from here on: other frames may come to have the seqs of those that are lost.
fn take_up(base: &Base, settings: &Settings) -> Result<(), Error> {
    let boot = boot();
    let is_relaxed = settings.durability != Durability::Durable;
    let last = base.last_use()?;
    // What is always durable needs no notes.
    if last.is_none() && !is_relaxed {
        return Ok(());
    }
    let may_lack = |last: Use| last.is_relaxed && !last.is_over && (last.boot != boot || boot.is_empty());
    if last.is_some_and(may_lack) {
        tracing::warn!("the machine went down while what was acked was not synced: all sessions have a new epoch");
        backup::fork(base, &settings.epoch)?;
    }
    base.set_use(&Use {
        boot,
        is_relaxed,
        is_over: false,
    })
}

/// Notes that the database is left with all that was acked.
pub(super) fn leave(base: &Base, settings: &Settings) -> Result<(), Error> {
    if settings.durability == Durability::Durable {
        return Ok(());
    }
    base.set_use(&Use {
        boot: boot(),
        is_relaxed: true,
        is_over: true,
    })
}

/// The next number that no session has, and how many sessions there are.
pub(super) fn numbers(base: &Base) -> Result<(u64, u64), Error> {
    let (mut highest, mut count) = (0, 0);
    for guard in base.sessions.iter() {
        let (key, value) = guard.into_inner().map_err(base::failed)?;
        highest = highest.max(base::read_entry(&key, &value)?.number);
        count += 1;
    }
    for guard in base.dead.iter() {
        let key = Guard::key(guard).map_err(base::failed)?;
        let number = key.first_chunk().map(|number| u64::from_be_bytes(*number));
        highest = highest.max(number.unwrap_or(0));
    }
    // Lest one is taken for a session of before.
    let below = base.fork()?.map_or(0, |fork| fork.below);
    Ok(((highest + 1).max(below), count))
}
