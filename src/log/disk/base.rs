//! The database below the store: what is kept under which key, and how it is opened.
//!
//! ```text
//! keyspace   key                        value
//! sessions   name                       number, data
//! frames     number, seq                a record (`record`); chunks that share one are under the last one's seq
//! notes      number, note               what the caller keeps beside the frames
//! marks      number                     how far frames were trimmed
//! dead       number                     a session that was deleted, and whose frames are not all gone
//! meta       "format", "fork", "use"    the version of all this; the last copy, or loss, that it goes on from; how it was left
//! ```
//!
//! All numbers are big-endian, so that what belongs together lies together. Each value but a record begins with a format byte and
//! a checksum over key and content. Owns these forms; it must never decide what is written when.

use std::io;
use std::path::Path;

use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use prost::Message;

use super::record::Place;
use crate::frame::Str;
use crate::log::Error;

/// The version of the layout.
const FORMAT: u8 = 1;
/// The same, as it is kept.
pub(super) const FORMATS: &[u8] = &[FORMAT];
/// Format byte and checksum.
const SEAL: usize = 5;
/// Bytes of journals beyond which what they hold is brought into tables: what a start has to replay.
const JOURNALS: u64 = 192 << 20;
/// Bytes of new frames that are in memory before they become a table.
const MEMTABLE: u64 = 32 << 20;

/// The open database.
pub(super) struct Base {
    db: Database,
    pub sessions: Keyspace,
    pub frames: Keyspace,
    pub notes: Keyspace,
    pub marks: Keyspace,
    pub dead: Keyspace,
    pub meta: Keyspace,
}

/// A session, as it is found by its name.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Entry {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub data: bytes::Bytes,
}

/// How far a session's log was trimmed.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Mark {
    /// The oldest seq that is left, or the next one to be written.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// The newest at that time.
    #[prost(uint64, tag = "2")]
    pub head: u64,
}

/// The log was not continued where it ended: it is a copy from before, or something of it was lost. So its sessions have other
/// lives from here on.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Fork {
    /// The name of these lives.
    #[prost(string, tag = "1")]
    pub epoch: String,
    /// The sessions with numbers below this.
    #[prost(uint64, tag = "2")]
    pub below: u64,
}

const FORK: &str = "fork";

/// The epoch of a session by this fork; empty if that was before it.
pub(super) fn epoch_by(fork: Option<&Fork>, number: u64) -> Str {
    let fork = fork.filter(|fork| number < fork.below);
    fork.map_or(Str::EMPTY, |fork| Str::from(fork.epoch.as_str()))
}

/// How the database is used, and was left.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Use {
    /// The boot of the machine.
    #[prost(string, tag = "1")]
    pub boot: String,
    /// Writes are not synced before they are acked.
    #[prost(bool, tag = "2")]
    pub is_relaxed: bool,
    /// All was synced at the end.
    #[prost(bool, tag = "3")]
    pub is_over: bool,
}

const USE: &str = "use";

impl Base {
    /// The last fork, if there was one.
    pub fn fork(&self) -> Result<Option<Fork>, Error> {
        self.told(FORK, "the note of a fork")
    }

    /// The sessions that there are have other lives from here on.
    pub fn set_fork(&self, fork: &Fork) -> Result<(), Error> {
        self.tell(FORK, fork)
    }

    /// How the database was used last, and left.
    pub fn last_use(&self) -> Result<Option<Use>, Error> {
        self.told(USE, "the note of the last use")
    }

    pub fn set_use(&self, now: &Use) -> Result<(), Error> {
        self.tell(USE, now)
    }

    /// What the database says of itself under this name.
    fn told<M: Message + Default>(&self, name: &str, what: &str) -> Result<Option<M>, Error> {
        let value = self.meta.get(name).map_err(failed)?;
        value
            .map(|value| decode(name.as_bytes(), &value, || what.to_owned()))
            .transpose()
    }

    /// Says it, durably.
    fn tell(&self, name: &str, message: &impl Message) -> Result<(), Error> {
        let mut batch = self.batch(1, Some(PersistMode::SyncData));
        batch.insert(&self.meta, name, seal(name.as_bytes(), &message.encode_to_vec()));
        batch.commit().map_err(failed)
    }

    /// The epoch of a session by the last fork; empty if that was before it.
    pub fn epoch(&self, number: u64) -> Result<Str, Error> {
        Ok(epoch_by(self.fork()?.as_ref(), number))
    }

    /// Opens the database, which comes into being if need be.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self, fjall::Error> {
        let db = Database::builder(path)
            .cache_size(cache_bytes)
            .max_journaling_size(JOURNALS)
            // What is compressed would have to be compressed in the same way by whoever reads it.
            .journal_compression(CompressionType::None)
            .manual_journal_persist(true)
            .open()?;
        let plain = KeyspaceCreateOptions::default;
        let base = Self {
            sessions: db.keyspace("sessions", plain)?,
            frames: db.keyspace("frames", || plain().max_memtable_size(MEMTABLE))?,
            notes: db.keyspace("notes", plain)?,
            marks: db.keyspace("marks", plain)?,
            dead: db.keyspace("dead", plain)?,
            meta: db.keyspace("meta", plain)?,
            db,
        };
        if base.meta.get("format")?.is_none() && base.sessions.is_empty()? {
            let mut batch = base.batch(1, Some(PersistMode::SyncAll));
            batch.insert(&base.meta, "format", [FORMAT]);
            batch.commit()?;
        }
        Ok(base)
    }

    /// Whether this version reads and writes what is there.
    pub fn check_format(&self) -> Result<(), Error> {
        match self.meta.get("format").map_err(failed)?.as_deref() {
            Some([FORMAT]) => Ok(()),
            Some([newer]) => Err(Error::Unavailable(format!(
                "its format is {newer}, and this version of twinspan knows {FORMAT}: use the version that wrote it, or a newer one"
            ))),
            _ => Err(Error::Corrupt("it does not say what its format is".to_owned())),
        }
    }

    /// A batch, which is written as a whole or not at all.
    pub fn batch(&self, capacity: usize, durability: Option<PersistMode>) -> OwnedWriteBatch {
        OwnedWriteBatch::with_capacity(self.db.clone(), capacity).durability(durability)
    }

    /// Makes durable what was written.
    pub fn sync(&self) -> Result<(), fjall::Error> {
        self.db.persist(PersistMode::SyncData)
    }

    /// What all keyspaces hold at one moment.
    pub fn snapshot(&self) -> fjall::Snapshot {
        self.db.snapshot()
    }

    /// Bytes on the disk, journals included.
    pub fn disk_bytes(&self) -> Result<u64, fjall::Error> {
        self.db.disk_space()
    }

    /// The session by this name.
    pub fn entry(&self, name: &str) -> Result<Option<Entry>, Error> {
        let value = self.sessions.get(name).map_err(failed)?;
        value.map(|value| read_entry(name.as_bytes(), &value)).transpose()
    }

    pub fn mark(&self, number: u64) -> Result<Option<Mark>, Error> {
        let key = number.to_be_bytes();
        let value = self.marks.get(key).map_err(failed)?;
        value.map(|value| read_mark(number, &value)).transpose()
    }

    /// The newest record of a session.
    pub fn last_record(&self, number: u64) -> Result<Option<(u64, fjall::Slice)>, Error> {
        let last = self.frames.prefix(number.to_be_bytes()).next_back();
        let last = last.map(fjall::Guard::into_inner).transpose().map_err(failed)?;
        last.map(|(key, value)| Ok((place(&key)?.seq, value))).transpose()
    }

    pub fn has_notes(&self, number: u64) -> Result<bool, Error> {
        let first = self.notes.prefix(number.to_be_bytes()).next();
        first
            .map(fjall::Guard::key)
            .transpose()
            .map_err(failed)
            .map(|key| key.is_some())
    }

    /// The notes of a session.
    pub fn notes(&self, number: u64) -> Result<Vec<(u64, bytes::Bytes)>, Error> {
        let notes = self.notes.prefix(number.to_be_bytes());
        notes
            .map(|guard| {
                let (key, value) = guard.into_inner().map_err(failed)?;
                let content = unseal(&key, &value, || {
                    format!("note {} of session number {number}", hex(&key))
                })?;
                Ok((place(&key)?.seq, bytes::Bytes::copy_from_slice(content)))
            })
            .collect()
    }
}

/// The place that a key of `frames` or `notes` says.
pub(super) fn place(key: &[u8]) -> Result<Place, Error> {
    Place::from_key(key).ok_or_else(|| Error::Corrupt(format!("a key of {} bytes: {}", key.len(), hex(key))))
}

pub(super) fn read_entry(name: &[u8], value: &[u8]) -> Result<Entry, Error> {
    let what = || format!("the entry of session {}", String::from_utf8_lossy(name));
    decode(name, value, what)
}

pub(super) fn read_mark(number: u64, value: &[u8]) -> Result<Mark, Error> {
    decode(&number.to_be_bytes(), value, || {
        format!("the mark of session number {number}")
    })
}

/// The name of a session, from its key.
pub(super) fn name(key: &[u8]) -> Result<Str, Error> {
    Str::from_utf8(bytes::Bytes::copy_from_slice(key))
        .map_err(|_| Error::Corrupt(format!("a session's name is not UTF-8: {}", hex(key))))
}

fn decode<M: Message + Default>(key: &[u8], value: &[u8], what: impl Fn() -> String) -> Result<M, Error> {
    let content = unseal(key, value, &what)?;
    M::decode(content).map_err(|error| Error::Corrupt(format!("{} cannot be read: {error}", what())))
}

/// A value with its format byte and checksum.
pub(super) fn seal(key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(SEAL + content.len());
    value.push(FORMAT);
    value.extend_from_slice(&checksum(key, content).to_le_bytes());
    value.extend_from_slice(content);
    value
}

/// What was sealed.
pub(super) fn unseal<'a>(key: &[u8], value: &'a [u8], what: impl Fn() -> String) -> Result<&'a [u8], Error> {
    let Some((head, content)) = value.split_first_chunk::<SEAL>() else {
        return Err(Error::Corrupt(format!("{} has {} bytes only", what(), value.len())));
    };
    let [format, sum @ ..] = *head;
    if format != FORMAT {
        return Err(Error::Corrupt(format!("{} has the unknown format {format}", what())));
    }
    match checksum(key, content) == u32::from_le_bytes(sum) {
        true => Ok(content),
        false => Err(Error::Corrupt(format!("{} does not fit its checksum", what()))),
    }
}

fn checksum(key: &[u8], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(content);
    hasher.finalize()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a failure of the database means.
pub(super) fn failed(error: fjall::Error) -> Error {
    match &error {
        fjall::Error::Io(io) => failed_io(io),
        // Places in tables that are not there are no fault of the disk: a table leads there that is not as it was written.
        fjall::Error::Storage(fjall::LsmError::Io(io)) if is_misled(io) => Error::Corrupt(format!("a table: {io}")),
        fjall::Error::Storage(fjall::LsmError::Io(io)) => failed_io(io),
        fjall::Error::Storage(
            inner @ (fjall::LsmError::ChecksumMismatch { .. }
            | fjall::LsmError::InvalidTag(_)
            | fjall::LsmError::InvalidTrailer
            | fjall::LsmError::InvalidHeader(_)
            | fjall::LsmError::Decompress(_)
            | fjall::LsmError::Unrecoverable),
        ) => Error::Corrupt(format!("a table: {inner:?}")),
        fjall::Error::JournalRecovery(inner) => Error::Corrupt(format!("a journal: {inner:?}")),
        fjall::Error::Poisoned => Error::Unavailable("an earlier write failed".to_owned()),
        fjall::Error::Locked => Error::Unavailable("another process has it open".to_owned()),
        other => Error::Unavailable(other.to_string()),
    }
}

fn is_misled(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::NotFound
    )
}

/// What a failure of the file system means.
pub(super) fn failed_io(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Error::Full(format!("the disk: {error}"))
        }
        _ => Error::Unavailable(format!("the disk: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_what_was_sealed_or_corrupt() {
        let value = seal(b"key", b"content");
        let what = || "it".to_owned();
        assert_eq!(unseal(b"key", &value, what).unwrap(), b"content");
        assert!(unseal(b"kez", &value, what).is_err());
        for at in 0..value.len() {
            assert!(unseal(b"key", &value[..at], what).is_err());
            for bit in 0..8 {
                let mut flipped = value.clone();
                flipped[at] ^= 1 << bit;
                assert!(unseal(b"key", &flipped, what).is_err());
            }
        }
    }
}
