//! The audit: whether what the database holds is what the store would have written.
//!
//! It owns what "sound" means beyond checksums of files: every value can be read, every session's records follow each other
//! without holes, and nothing belongs to nobody. It must never change anything; whoever is told of a fault may.

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;

use fjall::{Guard, Keyspace};

use super::base::{self, Base, Mark};
use super::record::{self, Place, What};
use crate::frame::Str;
use crate::log::Error;

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub sessions: u64,
    pub frames: u64,
    pub records: u64,
    pub notes: u64,
}

/// A session as it is spoken of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whose {
    pub name: Str,
    pub number: u64,
}

/// Where something of the wrong form was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shelved {
    Sessions,
    Frames,
    Notes,
    Marks,
    Dead,
}

impl Shelved {
    pub fn of(self, base: &Base) -> &Keyspace {
        match self {
            Shelved::Sessions => &base.sessions,
            Shelved::Frames => &base.frames,
            Shelved::Notes => &base.notes,
            Shelved::Marks => &base.marks,
            Shelved::Dead => &base.dead,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Shelved::Sessions => "sessions",
            Shelved::Frames => "frames",
            Shelved::Notes => "notes",
            Shelved::Marks => "marks",
            Shelved::Dead => "dead",
        }
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A session's entry cannot be read.
    Entry { key: Vec<u8>, why: String },
    /// Two sessions have one number.
    Twice { whose: Whose },
    /// How far a session was trimmed cannot be read.
    Mark { whose: Whose, why: String },
    /// A session begins later than with its first frame, and nothing says that it was trimmed.
    Unmarked { whose: Whose, first: u64 },
    /// A session is said to begin later than with the next frame to be written.
    Ahead { whose: Whose, first: u64, head: u64 },
    /// A record cannot be read.
    Record { whose: Whose, seq: u64, why: String },
    /// Frames are missing. What takes their place has this offset.
    Hole {
        whose: Whose,
        seqs: RangeInclusive<u64>,
        offset: u64,
    },
    /// A record holds frames that another one holds too.
    Overlap { whose: Whose, seq: u64 },
    /// A record says that less was before it than was before the one before it.
    Offset { whose: Whose, seq: u64 },
    /// A note cannot be read.
    Note { whose: Whose, key: u64, why: String },
    /// A key is none that the store makes.
    Key { at: Shelved, key: Vec<u8> },
    /// Something belongs to a number that no session has.
    Stray { at: Shelved, number: u64 },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Entry { why, .. } | Fault::Mark { why, .. } | Fault::Note { why, .. } => f.write_str(why),
            Fault::Twice { whose } => write!(f, "another session has the number {} too", whose.number),
            Fault::Unmarked { first, .. } => write!(
                f,
                "the oldest frame that is left is {first}, and nothing says that those before it were trimmed"
            ),
            Fault::Ahead { first, head, .. } => write!(f, "it should begin with frame {first}, but has {head} only"),
            Fault::Record { why, .. } => write!(f, "the record cannot be read: {why}"),
            Fault::Hole { seqs, .. } if seqs.start() == seqs.end() => {
                write!(f, "the frame {} is missing", seqs.start())
            }
            Fault::Hole { seqs, .. } => write!(f, "the frames {} to {} are missing", seqs.start(), seqs.end()),
            Fault::Overlap { .. } => f.write_str("the record holds frames that another one holds too"),
            Fault::Offset { .. } => f.write_str("the record's offset is less than that of the one before it"),
            Fault::Key { at, key } => write!(f, "the key {} of {} is none", base::hex(key), at.name()),
            Fault::Stray { at, number } => {
                write!(
                    f,
                    "there are {} of session number {number}, which no session has",
                    at.name()
                )
            }
        }
    }
}

type Found<'f> = &'f mut dyn FnMut(Fault) -> Result<(), Error>;

/// Reads everything; what is wrong is told as it is found. In memory it holds a number for each session.
pub(super) fn audit(base: &Base, found: Found<'_>) -> Result<Counts, Error> {
    let mut audit = Audit {
        base,
        found,
        numbers: HashSet::new(),
        counts: Counts::default(),
    };
    audit.sessions()?;
    audit.dead()?;
    let mut strays = HashSet::new();
    audit.strays(Shelved::Frames, &mut strays)?;
    // Where there are frames, the mark says where they begin.
    audit.strays(Shelved::Marks, &mut strays)?;
    audit.strays(Shelved::Notes, &mut HashSet::new())?;
    Ok(audit.counts)
}

struct Audit<'a> {
    base: &'a Base,
    found: Found<'a>,
    /// Of sessions, and of those that were deleted.
    numbers: HashSet<u64>,
    counts: Counts,
}

/// How far the records of a session were read.
struct Trail {
    mark: Option<Mark>,
    /// The seq that comes next; nothing until it is known where the session begins.
    next: Option<u64>,
    /// The newest frame that is known to have been.
    head: u64,
    offset: u64,
    /// Where the next record would begin.
    end: u64,
}

impl Audit<'_> {
    fn sessions(&mut self) -> Result<(), Error> {
        for guard in self.base.sessions.iter() {
            let (key, value) = guard.into_inner().map_err(base::failed)?;
            let read = base::name(&key).and_then(|name| Ok((name, base::read_entry(&key, &value)?.number)));
            match read {
                Ok((name, number)) => self.session(Whose { name, number })?,
                Err(error) => (self.found)(Fault::Entry {
                    key: key.to_vec(),
                    why: why(error)?,
                })?,
            }
        }
        Ok(())
    }

    fn session(&mut self, whose: Whose) -> Result<(), Error> {
        self.counts.sessions += 1;
        if !self.numbers.insert(whose.number) {
            return (self.found)(Fault::Twice { whose });
        }
        let mark = match self.base.mark(whose.number) {
            Ok(mark) => mark,
            Err(error) => {
                let why = why(error)?;
                (self.found)(Fault::Mark {
                    whose: whose.clone(),
                    why,
                })?;
                None
            }
        };
        let mut trail = Trail {
            mark,
            next: mark.map(|mark| mark.first.max(1)),
            head: mark.map_or(0, |mark| mark.head),
            offset: 0,
            end: 0,
        };
        for guard in self.base.frames.prefix(whose.number.to_be_bytes()) {
            let (key, value) = guard.into_inner().map_err(base::failed)?;
            match Place::from_key(&key) {
                Some(place) => self.record(&whose, place, &value, &mut trail)?,
                None => self.bad_key(Shelved::Frames, &key)?,
            }
        }
        let next = trail.next.unwrap_or(1);
        if next <= trail.head {
            (self.found)(Fault::Hole {
                whose: whose.clone(),
                seqs: next..=trail.head,
                offset: trail.end,
            })?;
        }
        if next > trail.head.saturating_add(1) {
            (self.found)(Fault::Ahead {
                whose: whose.clone(),
                first: next,
                head: trail.head,
            })?;
        }
        self.notes(&whose)
    }

    fn record(&mut self, whose: &Whose, place: Place, value: &[u8], trail: &mut Trail) -> Result<(), Error> {
        let seq = place.seq;
        trail.head = trail.head.max(seq);
        let record = match record::read(place, &whose.name, value) {
            Ok(record) => record,
            Err(error) => {
                let why = error.to_string();
                self.unread(whose, seq, trail)?;
                let whose = whose.clone();
                return (self.found)(Fault::Record { whose, seq, why });
            }
        };
        let first = match &record.what {
            What::Frame(frame, _) => frame.first_seq(),
            What::Chunks { first, .. } => *first,
        };
        self.counts.records += 1;
        if record.offset < trail.offset {
            let whose = whose.clone();
            (self.found)(Fault::Offset { whose, seq })?;
        }
        let is_first = trail.offset == 0 && trail.end == 0;
        let before = trail.end.min(record.offset);
        trail.offset = trail.offset.max(record.offset);
        trail.end = record.offset + super::record_bytes(value.len());
        // What was trimmed goes by and by.
        if trail.mark.is_some_and(|mark| seq < mark.first) {
            return Ok(());
        }
        self.counts.frames += seq.saturating_add(1).saturating_sub(first.max(trail.next.unwrap_or(1)));
        self.follow(whose, first..=seq, if is_first { record.offset } else { before }, trail)
    }

    /// A session may begin with a record that cannot be read: what its key says was not trimmed, then.
    fn unread(&mut self, whose: &Whose, seq: u64, trail: &mut Trail) -> Result<(), Error> {
        if trail.next.is_none() {
            trail.next = Some(seq);
            if seq > 1 {
                let whose = whose.clone();
                (self.found)(Fault::Unmarked { whose, first: seq })?;
            }
        }
        Ok(())
    }

    /// Whether frames come after those before them.
    fn follow(
        &mut self,
        whose: &Whose,
        seqs: RangeInclusive<u64>,
        offset: u64,
        trail: &mut Trail,
    ) -> Result<(), Error> {
        let whose = whose.clone();
        let (first, seq) = seqs.into_inner();
        // A record may hold some that were trimmed, and some that were not.
        let may_straddle = trail.mark.is_some_and(|mark| trail.next == Some(mark.first.max(1)));
        match trail.next {
            None if first > 1 => (self.found)(Fault::Unmarked { whose, first })?,
            Some(next) if first > next => (self.found)(Fault::Hole {
                whose,
                seqs: next..=first - 1,
                offset,
            })?,
            Some(next) if first < next && !may_straddle => {
                return (self.found)(Fault::Overlap { whose, seq });
            }
            _ => {}
        }
        trail.next = Some(seq.saturating_add(1));
        Ok(())
    }

    fn notes(&mut self, whose: &Whose) -> Result<(), Error> {
        for guard in self.base.notes.prefix(whose.number.to_be_bytes()) {
            let (key, value) = guard.into_inner().map_err(base::failed)?;
            let Some(place) = Place::from_key(&key) else {
                self.bad_key(Shelved::Notes, &key)?;
                continue;
            };
            self.counts.notes += 1;
            let what = || format!("note {} of session {}", place.seq, whose.name);
            if let Err(error) = base::unseal(&key, &value, what) {
                (self.found)(Fault::Note {
                    whose: whose.clone(),
                    key: place.seq,
                    why: why(error)?,
                })?;
            }
        }
        Ok(())
    }

    fn dead(&mut self) -> Result<(), Error> {
        for guard in self.base.dead.iter() {
            let key = Guard::key(guard).map_err(base::failed)?;
            match <[u8; 8]>::try_from(&*key) {
                Ok(number) => drop(self.numbers.insert(u64::from_be_bytes(number))),
                Err(_) => self.bad_key(Shelved::Dead, &key)?,
            }
        }
        Ok(())
    }

    /// What belongs to numbers that neither a session has nor one that was deleted had. One look for each number.
    fn strays(&mut self, at: Shelved, told: &mut HashSet<u64>) -> Result<(), Error> {
        let length = if at == Shelved::Marks { 8 } else { 16 };
        let mut from = Vec::new();
        loop {
            let next = at.of(self.base).range(from.as_slice()..).next();
            let Some(key) = next.map(Guard::key).transpose().map_err(base::failed)? else {
                return Ok(());
            };
            let number = key.first_chunk().map(|number| u64::from_be_bytes(*number));
            let number = number.filter(|number| key.len() == length || self.numbers.contains(number));
            let after = match number {
                Some(number) => {
                    if !self.numbers.contains(&number) && told.insert(number) {
                        (self.found)(Fault::Stray { at, number })?;
                    }
                    number.checked_add(1).map(|after| after.to_be_bytes().to_vec())
                }
                None => {
                    self.bad_key(at, &key)?;
                    Some([&*key, &[0]].concat())
                }
            };
            match after {
                Some(after) => from = after,
                None => return Ok(()),
            }
        }
    }

    fn bad_key(&mut self, at: Shelved, key: &[u8]) -> Result<(), Error> {
        let key = key.to_vec();
        (self.found)(Fault::Key { at, key })
    }
}

/// Why something cannot be read; what is wrong with the disk is not the value's fault.
fn why(error: Error) -> Result<String, Error> {
    match error {
        Error::Corrupt(why) => Ok(why),
        other => Err(other),
    }
}
