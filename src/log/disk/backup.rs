//! Backups: all that the database holds at one moment, as one stream of bytes that can be kept anywhere, and its way back into a
//! data directory.
//!
//! ```text
//!   backup   "twinspan backup 1\n", entry, entry, …, end
//!   entry    keyspace u8 (from 1), key bytes u16, value bytes u32, key, value, CRC-32 of all these u32
//!   end      0, entries u64, CRC-32 of all bytes before this u32
//! ```
//!
//! All numbers are little-endian. Owns this form. It must never put back less than a whole backup: one that is cut off, or
//! changed in any place, is refused, and has changed nothing.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fjall::{Keyspace, PersistMode, Readable};

use super::Settings;
use super::base::{self, Base, Fork};
use super::open::{self, OpenError};
use crate::log::Error;

const MAGIC: &[u8] = b"twinspan backup 1\n";
/// Bytes of an entry before its key.
const HEAD: usize = 7;
/// What is put back at once.
const BATCH_BYTES: usize = 4 << 20;

/// What a backup holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Sessions.
    pub sessions: u64,
    /// Records of frames; chunks of a reply can share one.
    pub records: u64,
    /// Bytes of the backup.
    pub bytes: u64,
}

/// Why bytes are no backup.
#[derive(Debug)]
pub enum Wrong {
    /// They cannot be read.
    Io(io::Error),
    /// They are something else.
    Foreign,
    /// They end too early, at this byte.
    Short(u64),
    /// The entry that begins at this byte is not as it was written.
    Damaged(u64),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Io(error) => write!(f, "it cannot be read: {error}"),
            Wrong::Foreign => write!(f, "it is no backup that this version of twinspan knows"),
            Wrong::Short(at) => write!(f, "it ends at byte {at}, before it is complete: it was cut off"),
            Wrong::Damaged(at) => write!(f, "it is damaged: what begins at byte {at} does not fit its checksum"),
        }
    }
}

impl std::error::Error for Wrong {}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Base {
    /// What is backed up, in the order in which it is put back: a session only after its frames.
    fn keyspaces(&self) -> [&Keyspace; 5] {
        [&self.frames, &self.notes, &self.marks, &self.dead, &self.sessions]
    }
}

/// Writes what the database holds now. What is written meanwhile is not in it, and does not wait for it.
///
/// It is broken off when `check` fails, lest the database is kept from being opened anew.
pub(super) fn write(
    base: &Base,
    out: &mut dyn Write,
    check: impl Fn() -> Result<(), Error>,
) -> Result<Contents, Error> {
    let snapshot = base.snapshot();
    let mut out = Summed::new(out);
    let mut contents = Contents::default();
    let unwritten = |error: io::Error| Error::Unavailable(format!("the backup cannot be written: {error}"));
    out.write_all(MAGIC).map_err(unwritten)?;
    let mut entry = Vec::new();
    let mut entries = 0_u64;
    for (kind, keyspace) in (1_u8..).zip(base.keyspaces()) {
        for guard in snapshot.iter(keyspace) {
            let (key, value) = guard.into_inner().map_err(base::failed)?;
            put(&mut entry, kind, &key, &value);
            out.write_all(&entry).map_err(unwritten)?;
            check()?;
            entries += 1;
            contents.count(keyspace, base);
        }
    }
    let mut end = vec![0];
    end.extend_from_slice(&entries.to_le_bytes());
    out.write_all(&end).map_err(unwritten)?;
    let sum = out.sum.clone().finalize();
    out.write_all(&sum.to_le_bytes()).map_err(unwritten)?;
    out.flush().map_err(unwritten)?;
    contents.bytes = out.bytes;
    Ok(contents)
}

impl Contents {
    fn count(&mut self, keyspace: &Keyspace, base: &Base) {
        let kind = keyspace.name();
        self.sessions += u64::from(kind == base.sessions.name());
        self.records += u64::from(kind == base.frames.name());
    }
}

fn put(entry: &mut Vec<u8>, kind: u8, key: &[u8], value: &[u8]) {
    entry.clear();
    entry.push(kind);
    // fjall's own bounds.
    entry.extend_from_slice(&(key.len() as u16).to_le_bytes());
    entry.extend_from_slice(&(value.len() as u32).to_le_bytes());
    entry.extend_from_slice(key);
    entry.extend_from_slice(value);
    let sum = crc32fast::hash(entry);
    entry.extend_from_slice(&sum.to_le_bytes());
}

/// Reads a backup to its end, and hands out what it holds: kind, key, value. It is whole if this returns without an error.
fn read(from: impl Read, mut visit: impl FnMut(u8, &[u8], &[u8]) -> Result<(), Wrong>) -> Result<u64, Wrong> {
    let mut from = Reader {
        from: BufReader::new(from),
        sum: crc32fast::Hasher::new(),
        at: 0,
    };
    let mut magic = [0; MAGIC.len()];
    match from.fill(&mut magic) {
        Ok(()) if magic == MAGIC => {}
        Ok(()) | Err(Wrong::Short(_)) => return Err(Wrong::Foreign),
        Err(other) => return Err(other),
    }
    let (mut content, mut entries) = (Vec::new(), 0_u64);
    loop {
        let begin = from.at;
        let mut kind = [0];
        from.fill(&mut kind)?;
        if kind == [0] {
            return from.end(entries, begin);
        }
        let mut head = [0; HEAD - 1];
        from.fill(&mut head)?;
        let [k0, k1, v0, v1, v2, v3] = head;
        let key = usize::from(u16::from_le_bytes([k0, k1]));
        let value = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
        from.take(&mut content, key + value)?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&kind);
        sum.update(&head);
        sum.update(&content);
        let mut said = [0; 4];
        from.fill(&mut said)?;
        if sum.finalize() != u32::from_le_bytes(said) {
            return Err(Wrong::Damaged(begin));
        }
        let (key, value) = content.split_at(key);
        visit(kind[0], key, value)?;
        entries += 1;
    }
}

struct Reader<R> {
    from: BufReader<R>,
    sum: crc32fast::Hasher,
    at: u64,
}

impl<R: Read> Reader<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Wrong> {
        let at = self.at;
        self.from.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Wrong::Short(at),
            _ => Wrong::Io(error),
        })?;
        self.sum.update(buffer);
        self.at += buffer.len() as u64;
        Ok(())
    }

    /// So many bytes, for which no room is made before they are there.
    fn take(&mut self, content: &mut Vec<u8>, count: usize) -> Result<(), Wrong> {
        content.clear();
        let read = (&mut self.from).take(count as u64).read_to_end(content)?;
        self.sum.update(content);
        self.at += read as u64;
        match read == count {
            true => Ok(()),
            false => Err(Wrong::Short(self.at)),
        }
    }

    fn end(mut self, entries: u64, begin: u64) -> Result<u64, Wrong> {
        let mut count = [0; 8];
        self.fill(&mut count)?;
        let sum = self.sum.clone().finalize();
        let mut said = [0; 4];
        self.fill(&mut said)?;
        let is_right = u64::from_le_bytes(count) == entries && u32::from_le_bytes(said) == sum;
        let is_over = self.from.read(&mut [0])? == 0;
        match is_right && is_over {
            true => Ok(self.at),
            false => Err(Wrong::Damaged(begin)),
        }
    }
}

/// Reads a backup to its end, and says what it holds.
pub fn verify(file: &Path) -> Result<Contents, Wrong> {
    let mut contents = Contents::default();
    contents.bytes = read(File::open(file)?, |kind, _, _| {
        contents.sessions += u64::from(kind == 5);
        contents.records += u64::from(kind == 1);
        Ok(())
    })?;
    Ok(contents)
}

/// Puts a backup into a data directory that holds no sessions yet. Their epoch from here on is this one: what came after the
/// backup is not in it, and other frames may have the seqs of that.
pub fn restore(file: &Path, dir: &Path, epoch: &str) -> Result<Contents, OpenError> {
    let refused = |what: String, remedy: &str| OpenError::new(dir, what, remedy.to_owned());
    let backup = |wrong: &Wrong| {
        refused(
            format!("the backup {}: {wrong}", file.display()),
            "nothing was changed; use another one",
        )
    };
    let _lock = open::Lock::take(dir)?;
    let place = Settings::database_in(dir);
    if place.exists() {
        let remedy = "restore into a directory of its own, or move what is there away";
        return Err(refused("there are sessions in it already".to_owned(), remedy));
    }
    let contents = verify(file).map_err(|wrong| backup(&wrong))?;
    let building = dir.join("log.restoring");
    let room = "make room on the disk, and try again";
    let unwritten = |error: Error| refused(open::said(error), room);
    // What an earlier attempt left is of no use.
    fs::remove_dir_all(&building).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(refused(error.to_string(), room)),
    })?;
    fill(file, &building, epoch).map_err(|failed| match failed {
        Failed::Backup(wrong) => backup(&wrong),
        Failed::Database(error) => unwritten(error),
    })?;
    let moved = fs::rename(&building, &place).and_then(|()| File::open(dir)?.sync_all());
    moved.map_err(|error| refused(error.to_string(), room))?;
    Ok(contents)
}

enum Failed {
    Backup(Wrong),
    Database(Error),
}

fn fill(file: &Path, building: &Path, epoch: &str) -> Result<(), Failed> {
    let file = File::open(file).map_err(|error| Failed::Backup(error.into()))?;
    let base = Base::open(building, 8 << 20).map_err(|error| Failed::Database(base::failed(error)))?;
    let (mut batch, mut bytes) = (base.batch(1_024, Some(PersistMode::Buffer)), 0);
    let mut failure = None;
    let read = read(file, |kind, key, value| {
        let Some(keyspace) = base.keyspaces().get(usize::from(kind) - 1).copied() else {
            return Err(Wrong::Foreign);
        };
        batch.insert(keyspace, key, value);
        bytes += key.len() + value.len();
        if bytes > BATCH_BYTES {
            bytes = 0;
            let full = std::mem::replace(&mut batch, base.batch(1_024, Some(PersistMode::Buffer)));
            if let Err(error) = full.commit() {
                failure = Some(error);
                return Err(Wrong::Foreign);
            }
        }
        Ok(())
    });
    if let Some(error) = failure {
        return Err(Failed::Database(base::failed(error)));
    }
    read.map_err(Failed::Backup)?;
    batch.commit().map_err(|error| Failed::Database(base::failed(error)))?;
    fork(&base, epoch).map_err(Failed::Database)
}

/// The sessions of a database go on from elsewhere than where they were left.
pub(super) fn fork(base: &Base, epoch: &str) -> Result<(), Error> {
    let (below, _) = open::numbers(base)?;
    base.set_fork(&Fork {
        epoch: epoch.to_owned(),
        below,
    })
}

/// A writer that knows what has gone through it.
struct Summed<'a> {
    out: io::BufWriter<&'a mut dyn Write>,
    sum: crc32fast::Hasher,
    bytes: u64,
}

impl<'a> Summed<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out: io::BufWriter::with_capacity(64 << 10, out),
            sum: crc32fast::Hasher::new(),
            bytes: 0,
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A new file, for its owner alone.
pub fn private_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

/// Backups in a directory, of which so many are kept.
#[derive(Clone, Debug)]
pub struct Shelf {
    /// The directory.
    pub dir: PathBuf,
    /// How many.
    pub keep: usize,
}

/// How the names of backups begin and end; in between is the time, so that their order is that of their names.
const PREFIX: &str = "twinspan-";
const SUFFIX: &str = ".backup";

impl Shelf {
    /// A new file for a backup, which counts once it is `done`.
    pub fn begin(&self, time: &str) -> io::Result<(File, PathBuf)> {
        open::make_dir(&self.dir)?;
        // What one that was broken off left is of no use.
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(PREFIX) && name.ends_with(".part") {
                fs::remove_file(&path)?;
            }
        }
        let part = self.dir.join(format!("{PREFIX}{time}{SUFFIX}.part"));
        Ok((private_file(&part)?, part))
    }

    /// When the newest backup was made, if there is one.
    pub fn newest(&self) -> io::Result<Option<SystemTime>> {
        let names = self.names()?;
        let newest = names.last().map(|name| fs::metadata(self.dir.join(name)));
        newest.map(|metadata| metadata?.modified()).transpose()
    }

    /// The backups there are, the oldest first.
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names: Vec<_> = fs::read_dir(&self.dir)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The backup in this file is complete; the oldest that are too many go.
    pub fn done(&self, part: &Path) -> io::Result<PathBuf> {
        let path = part.with_extension("");
        File::open(part)?.sync_all()?;
        fs::rename(part, &path)?;
        File::open(&self.dir)?.sync_all()?;
        let all = self.names()?;
        let excess = all.len().saturating_sub(self.keep);
        for name in &all[..excess] {
            fs::remove_file(self.dir.join(name))?;
        }
        Ok(path)
    }
}
