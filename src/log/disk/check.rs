//! The check of a data directory that nobody uses: whether its files are as they were written, and hold what they should.
//!
//! It owns the order in which things are looked at, and how what is found is told. It must never change what is checked: what
//! fjall does when it opens a database, it does to a copy.
//!
//! Journals and tables come first, byte by byte, because only there damage has a place in a file. If they are whole, the
//! database is opened, and all sessions are read. The copy has the journals twice, and of tables only other names, where the
//! file system can do that.

#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::fs;
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use super::audit::{self, Counts, Fault, Whose};
use super::base::{self, Base};
use super::journal::{self, Torn};
use super::open::{Lock, OpenError};
use super::repair::Repaired;
use super::tables;
use crate::frame::Str;
use crate::log::Error;

/// How many findings are told one by one.
const SHOWN: usize = 100;
/// Bytes of blocks that are kept in memory: everything is read once.
pub(super) const CACHE: u64 = 8 << 20;

/// What a data directory holds, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Report {
    /// Sessions.
    pub sessions: u64,
    /// Frames that can be read.
    pub frames: u64,
    /// Records that hold them.
    pub records: u64,
    /// Notes.
    pub notes: u64,
    /// Journals.
    pub journals: u64,
    /// Tables.
    pub tables: u64,
    /// Bytes on the disk.
    pub bytes: u64,
    /// The last write, if it was not finished. That is no damage: it is cut off at the next start.
    pub torn: Option<Torn>,
    /// Whether the sessions were read, which they are only if the files are whole.
    pub is_read: bool,
    /// What is wrong.
    pub findings: Findings,
    /// What a repair did, if there was something to be done.
    pub repaired: Option<Repaired>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.count == 0
    }
}

/// Findings: the first ones, and how many there are.
#[derive(Debug, Default)]
pub struct Findings {
    /// The first ones.
    pub shown: Vec<Finding>,
    /// How many there are.
    pub count: u64,
}

impl Findings {
    pub(super) fn push(&mut self, finding: Finding) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(finding);
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: Option<PathBuf>,
    /// Where in the file.
    pub offset: Option<u64>,
    /// The session.
    pub session: Option<Str>,
    /// The store's number for it.
    pub number: Option<u64>,
    /// The frame, or the first of them.
    pub seq: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What can be done.
    pub remedy: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some(offset) = self.offset {
                write!(f, ", at byte {offset}")?;
            }
            f.write_str(": ")?;
        }
        match (&self.session, self.number) {
            (Some(session), Some(number)) => write!(f, "session {session} (number {number})")?,
            (None, Some(number)) => write!(f, "session number {number}")?,
            (Some(session), None) => write!(f, "session {session}")?,
            (None, None) => {}
        }
        match self.seq {
            Some(seq) => write!(f, ", frame {seq}: ")?,
            None if self.session.is_some() || self.number.is_some() => f.write_str(": ")?,
            None => {}
        }
        f.write_str(&self.what)
    }
}

/// What fjall writes into a directory once all is in it.
const MARKER: &[u8] = b"FJL\x03";
const REPAIR: &str = "`twinspan check --repair` saves what can be read";
const BY_HAND: &str = "this is not repaired: bring back a backup, or delete the session";

impl Finding {
    fn of_file(file: PathBuf, what: &str) -> Self {
        Self {
            file: Some(file),
            what: what.to_owned(),
            remedy: REPAIR,
            ..Self::default()
        }
    }
}

impl From<&journal::Damage> for Finding {
    fn from(damage: &journal::Damage) -> Self {
        let what = match damage.follows {
            0 => format!("{}; no whole batch follows", damage.what),
            follows => format!("{}; whole batches that follow: {follows}", damage.what),
        };
        Self {
            file: Some(damage.file.clone()),
            offset: Some(damage.offset),
            what,
            remedy: REPAIR,
            ..Self::default()
        }
    }
}

impl From<&tables::Damage> for Finding {
    fn from(damage: &tables::Damage) -> Self {
        Self {
            file: Some(damage.file.clone()),
            offset: Some(damage.offset),
            what: match damage.bytes {
                0 => damage.what.to_string(),
                bytes => format!("{} ({bytes} bytes)", damage.what),
            },
            remedy: REPAIR,
            ..Self::default()
        }
    }
}

impl From<&Fault> for Finding {
    fn from(fault: &Fault) -> Self {
        let of = |whose: &Whose, seq| Self {
            session: Some(whose.name.clone()),
            number: Some(whose.number),
            seq,
            ..Self::default()
        };
        let place = match fault {
            Fault::Entry { key, .. } => Self {
                session: Some(String::from_utf8_lossy(key).into_owned().into()),
                ..Self::default()
            },
            Fault::Twice { whose }
            | Fault::Mark { whose, .. }
            | Fault::Unmarked { whose, .. }
            | Fault::Ahead { whose, .. }
            | Fault::Note { whose, .. } => of(whose, None),
            Fault::Record { whose, seq, .. } | Fault::Overlap { whose, seq } | Fault::Offset { whose, seq } => {
                of(whose, Some(*seq))
            }
            Fault::Hole { whose, seqs, .. } => of(whose, Some(*seqs.start())),
            Fault::Key { .. } => Self::default(),
            Fault::Stray { number, .. } => Self {
                number: Some(*number),
                ..Self::default()
            },
        };
        Self {
            what: fault.to_string(),
            remedy: match fault {
                Fault::Twice { .. } | Fault::Offset { .. } => BY_HAND,
                _ => REPAIR,
            },
            ..place
        }
    }
}

/// Checks a data directory. It must not be in use.
pub fn check(dir: &Path) -> Result<Report, OpenError> {
    let place = Directory::enter(dir)?;
    place.check().map_err(|error| place.refused(error))
}

/// A data directory that this process has.
pub(super) struct Directory {
    pub dir: PathBuf,
    _lock: Lock,
}

impl Directory {
    /// Takes a directory that there is, and leaves others as they are.
    pub fn enter(dir: &Path) -> Result<Self, OpenError> {
        let refused = |what: &str, remedy: &str| OpenError::new(dir, what.to_owned(), remedy.to_owned());
        if !dir.is_dir() {
            return Err(refused("there is no such directory", "say where it is with --data-dir"));
        }
        let log = dir.join("log");
        let is_ours = log.join("version").exists() || log.join("keyspaces").exists();
        if !is_ours {
            let what = "no gateway has kept anything there";
            return Err(refused(what, "say which directory it is with --data-dir"));
        }
        Ok(Self {
            dir: dir.to_owned(),
            _lock: Lock::take(dir)?,
        })
    }

    /// The database.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub fn refused(&self, error: Error) -> OpenError {
        OpenError::of(&self.dir, error)
    }

    pub fn check(&self) -> Result<Report, Error> {
        let mut report = Report::default();
        self.read_files(&mut report)?;
        if report.is_sound() {
            self.read_sessions(&mut report)?;
        }
        Ok(report)
    }

    fn read_files(&self, report: &mut Report) -> Result<(), Error> {
        let log = self.log();
        let io = |error: io::Error| base::failed_io(&error);
        let marker = log.join("version");
        if marker.exists() && fs::read(&marker).ok().as_deref() != Some(MARKER) {
            report
                .findings
                .push(Finding::of_file(marker, "this does not say what the directory is"));
        }
        match journal::verify(&log).map_err(io)? {
            Ok(findings) => {
                report.journals = findings.journals as u64;
                report.torn = findings.torn;
            }
            // The first is known now; this tells of all.
            Err(_) => {
                let is_journal = |name: &Path| name.extension().is_some_and(|end| end == "jnl");
                let entries = fs::read_dir(&log).map_err(io)?;
                report.journals = entries.flatten().filter(|entry| is_journal(&entry.path())).count() as u64;
                for damage in &journal::salvage(&log, |_| Ok(())).map_err(io)?.skipped {
                    report.findings.push(Finding::from(damage));
                }
            }
        }
        if report.is_sound() && report.journals == 0 {
            let what = "there is no journal: what was written last is lost";
            report.findings.push(Finding::of_file(log.clone(), what));
        }
        self.read_tables(report).map_err(io)?;
        report.bytes = disk_bytes(&log).map_err(io)?;
        Ok(())
    }

    fn read_tables(&self, report: &mut Report) -> io::Result<()> {
        let log = self.log();
        let mut found = tables::missed(&log)?;
        let (names, unnamed) = tables::names(&log.join("keyspaces").join("0"))?;
        for (number, keyspace) in tables::keyspaces(&log)? {
            // One without a name is what an interrupted start left, and fjall clears it away.
            if number > 0 && unnamed.is_empty() && !names.contains_key(&number) {
                continue;
            }
            let listed = tables::list(&keyspace)?;
            found.extend(listed.damage);
            for table in listed.tables {
                report.tables += 1;
                found.extend(table.verify()?);
            }
        }
        let mut told = Vec::new();
        for damage in found {
            if !told.contains(&damage) && told.len() < SHOWN {
                report.findings.push(Finding::from(&damage));
                told.push(damage);
            }
        }
        Ok(())
    }

    fn read_sessions(&self, report: &mut Report) -> Result<(), Error> {
        let copy = self.copy(report.torn.as_ref())?;
        let findings = &mut report.findings;
        let audited = guarded(|| {
            let base = Base::open(&copy.0, CACHE).map_err(base::failed)?;
            base.check_format()?;
            audit::audit(&base, &mut |fault| {
                findings.push(Finding::from(&fault));
                Ok(())
            })
        });
        match audited {
            Ok(counts) => report.count(counts),
            // That it cannot be opened is what is found.
            Err(Error::Corrupt(what)) => report.findings.push(Finding::of_file(self.log(), &what)),
            Err(other) => return Err(other),
        }
        Ok(())
    }

    /// A copy of the database, which ends with a whole write.
    fn copy(&self, torn: Option<&Torn>) -> Result<Scratch, Error> {
        let copy = Scratch::new(self.dir.join("log.check")).map_err(|error| base::failed_io(&error))?;
        let copied = copy_dir(&self.log(), &copy.0).and_then(|()| match torn {
            Some(torn) => journal::cut(&Torn {
                file: copy.0.join(torn.file.file_name().unwrap_or_default()),
                ..torn.clone()
            }),
            None => Ok(()),
        });
        copied.map_err(|error| base::failed_io(&error))?;
        Ok(copy)
    }
}

impl Report {
    fn count(&mut self, counts: Counts) {
        self.is_read = true;
        self.sessions = counts.sessions;
        self.frames = counts.frames;
        self.records = counts.records;
        self.notes = counts.notes;
    }
}

/// A directory of our own, which is gone with this.
pub(super) struct Scratch(pub PathBuf);

impl Scratch {
    /// An earlier process may have left one behind.
    pub fn new(path: PathBuf) -> io::Result<Self> {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&path)?,
        }
        Ok(Self(path))
    }

    /// It is to stay.
    pub fn keep(self) -> PathBuf {
        let path = self.0.clone();
        mem::forget(self);
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If it stays, the next check removes it.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// What fjall does not expect it answers with a panic.
pub(super) fn guarded<T>(act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    panic::catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let why = said(&*panic);
        Err(Error::Corrupt(format!("the database cannot be opened or read: {why}")))
    })
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it does not say why")
}

/// Tables are never written again, so another name is as good as a copy.
fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            fs::create_dir(&copy)?;
            copy_dir(&path, &copy)?;
        } else if from.file_name().is_none_or(|name| name != "tables") || fs::hard_link(&path, &copy).is_err() {
            fs::copy(&path, &copy)?;
        }
    }
    Ok(())
}

fn disk_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => disk_bytes(&entry.path())?,
            // A journal is long before it holds anything.
            false => entry.metadata()?.blocks() * 512,
        };
    }
    Ok(bytes)
}
