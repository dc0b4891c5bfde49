//! fjall's journals, read before fjall reads them: whether they are sound, torn or damaged.
//!
//! fjall ends a journal at the first entry that it cannot read and cuts off the rest without a word, even where whole batches
//! follow that were promised to be durable. Here a torn tail, the last write that was never finished, is told from damage.
//! It owns the format of the journals of the one version of fjall that it is pinned to. It must never change a file, except
//! where `cut` is asked to, and never hold more of a journal in memory than one entry.
//!
//! ```text
//!   journal   batch, batch, …, zeros                       the file is made 64 MiB long when it is new
//!   batch     Start, item or Clear, …, End
//!   Start     1, items u32, seqno u64                      not under the checksum
//!   item      2, kind u8, compression u8, keyspace u64, key bytes u16, value bytes u32, stored bytes u32, key, stored
//!   Clear     4, keyspace u64
//!   End       3, checksum u64, "FJL", 3                    xxh3 of all from after Start to before End, as it is written
//! ```
//!
//! Two things are taken for granted of who writes. A batch is synced before the next is written, so that only the last can be
//! unfinished. And no keyspace is cleared or deleted: fjall may give out the same seqnos again after that.

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

const EXTENSION: &str = "jnl";
const TRAILER: [u8; 4] = [b'F', b'J', b'L', 3];
/// The bytes of a Start entry.
const START_BYTES: u64 = 13;
/// The bytes of an End entry.
const END_BYTES: usize = 13;
/// The bytes of an item before its key, the tag not counted.
const HEAD_BYTES: usize = 20;
const BUFFER_BYTES: usize = 64 * 1_024;
/// fjall gives out lesser seqnos only.
const SEQNO_END: u64 = 1 << 63;
/// Flushes and compactions take seqnos as well, so those of batches have gaps, but no gap comes near to this.
const SEQNO_JUMP: u64 = 1 << 32;
/// How often the bytes of a journal may be read anew in the search for whole batches behind damage.
const SEARCHES: u64 = 8;
/// LZ4 does not make anything smaller than by this.
const LZ4_RATIO: u64 = 255;

/// What sound journals hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Files.
    pub journals: usize,
    /// Whole batches.
    pub batches: u64,
    /// Their items.
    pub items: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The last write, if it was not finished.
    pub torn: Option<Torn>,
}

/// The unfinished last write, at the end of the newest journal that holds anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The journal.
    pub file: PathBuf,
    /// Where the write begins.
    pub offset: u64,
    /// How long it is, without the zeros that follow.
    pub bytes: u64,
    /// Whether it ends as a batch does: then some of its blocks never reached the disk, or it was whole once, and promised
    /// to be durable, and has changed since.
    pub is_whole: bool,
}

/// A place at which a journal is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The journal.
    pub file: PathBuf,
    /// Where the batch begins that is damaged, or would begin.
    pub offset: u64,
    /// How many bytes cannot be used. None, if all that the batch holds is proven whole.
    pub bytes: u64,
    /// What is wrong.
    pub what: Fault,
    /// Whole batches after it, in this journal and those after it.
    pub follows: u64,
}

/// What is wrong with a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The data ends within the batch.
    Unfinished,
    /// No batch begins here, but something else.
    NoStart(u8),
    /// An entry in the batch is of no known kind.
    Tag(u8),
    /// A batch begins before the one before it has ended.
    Nested,
    /// An item is neither a value nor a removal.
    Kind(u8),
    /// An item is compressed in an unknown way.
    Compression(u8),
    /// An item that is not compressed says that it is.
    Lengths,
    /// The last bytes of the batch are wrong.
    Trailer,
    /// The checksum is wrong.
    Checksum,
    /// It holds more or fewer items than it says.
    Count {
        /// What it says.
        said: u32,
        /// What it holds.
        found: u64,
    },
    /// Its seqno does not come after the one before it, or not soon, or not before the one after it.
    Seqno {
        /// Its own.
        seqno: u64,
        /// That of the batch beside it.
        beside: u64,
    },
    /// fjall gives out no such seqno.
    SeqnoTooHigh(u64),
    /// So many journals are missing before this one.
    Missing(u64),
    /// There is no journal at all.
    NoJournal,
    /// This is no file that fjall has made; it would not open the directory.
    Foreign,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unfinished => f.write_str("a batch begins that has no end"),
            Fault::NoStart(tag) => write!(f, "a batch should begin here, but the first byte is {tag}"),
            Fault::Tag(tag) => write!(f, "the batch holds an entry of the unknown kind {tag}"),
            Fault::Nested => f.write_str("a batch begins before this one has ended"),
            Fault::Kind(kind) => write!(f, "the batch holds an item of the unknown kind {kind}"),
            Fault::Compression(kind) => write!(f, "the batch holds an item of the unknown compression {kind}"),
            Fault::Lengths => f.write_str("the batch holds an item whose lengths contradict each other"),
            Fault::Trailer => f.write_str("the last four bytes of the batch are wrong"),
            Fault::Checksum => f.write_str("the checksum of the batch is wrong"),
            Fault::Count { said, found } => write!(f, "the batch says that it has {said} items, but it has {found}"),
            Fault::Seqno { seqno, beside } => {
                write!(
                    f,
                    "the batch has the sequence number {seqno}, beside one that has {beside}"
                )
            }
            Fault::SeqnoTooHigh(seqno) => write!(f, "the batch has the impossible sequence number {seqno}"),
            Fault::NoJournal => f.write_str("the journals are missing, and with them what was written last"),
            Fault::Missing(1) => f.write_str("the journal before this one is missing"),
            Fault::Missing(count) => write!(f, "the {count} journals before this one are missing"),
            Fault::Foreign => f.write_str("this is not a journal, but has its name"),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        write!(f, "{file}, at byte {}: {}; ", self.offset, self.what)?;
        match self.follows {
            0 => f.write_str("no whole batch follows"),
            1 => f.write_str("one whole batch follows"),
            follows => write!(f, "{follows} whole batches follow"),
        }
    }
}

/// What is done to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has the value now.
    Value,
    /// It is removed.
    Removal,
    /// Its one value is removed.
    WeakRemoval,
    /// All keys of the keyspace are removed; this one is empty.
    Clear,
}

/// An item of a whole batch.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// fjall's number for the keyspace.
    pub keyspace_id: u64,
    /// The key.
    pub key: &'a [u8],
    /// The value as it was before it was compressed.
    pub value: &'a [u8],
    /// What is done.
    pub kind: Kind,
    /// The batch's seqno. Damage of kind `Seqno` says that it is wrong; the order in which items come is right still.
    pub seqno: u64,
}

/// What could be saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Batches that were handed out.
    pub batches: u64,
    /// Their items.
    pub items: u64,
    /// What was wrong, and how many bytes were left out for it. The last may be a torn tail.
    pub skipped: Vec<Damage>,
}

/// Reads all journals of the directory. Either they are sound, but for a torn tail, or this is the first damage.
pub fn verify(dir: &Path) -> io::Result<Result<Findings, Damage>> {
    let mut walk = Walk::default();
    walk.folder(dir)?;
    let verdict = walk.verdict();
    // A database always has one, if an empty one.
    let has_none = matches!(&verdict, Ok(findings) if findings.journals == 0);
    match has_none && dir.join("version").exists() {
        true => Ok(Err(Damage {
            file: dir.to_owned(),
            offset: 0,
            bytes: 0,
            what: Fault::NoJournal,
            follows: 0,
        })),
        false => Ok(verdict),
    }
}

/// Hands out the items of all whole batches in their order, those behind damage too. Ends with the first error of `visit`.
///
/// A batch behind damage is known by its checksum alone, which guards against chance and not against forgery: where a length
/// is damaged, a value may be taken for a batch if whoever sent it had shaped it like one.
pub fn salvage(dir: &Path, mut visit: impl FnMut(Item<'_>) -> io::Result<()>) -> io::Result<Salvaged> {
    let mut refused = None;
    // It is no journal's fault, and must not be told as one.
    let mut visit = |item: Item<'_>| {
        visit(item).map_err(|error| {
            refused = Some(error);
            io::ErrorKind::Interrupted.into()
        })
    };
    let mut walk = Walk {
        visit: Some(&mut visit),
        ..Walk::default()
    };
    let walked = walk.folder(dir);
    let salvaged = walk.salvaged();
    match refused {
        Some(error) => Err(error),
        None => walked.map(|()| salvaged),
    }
}

/// Removes the torn tail for good: fjall finds a journal that ends with a whole batch.
pub fn cut(torn: &Torn) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(&torn.file)?;
    if file.metadata()?.len() < torn.offset + torn.bytes {
        let why = format!("{} has changed since it was verified", torn.file.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    file.set_len(torn.offset)?;
    file.sync_all()
}

type Visit<'v> = &'v mut dyn FnMut(Item<'_>) -> io::Result<()>;

/// The walk through all journals, from the oldest to the newest, and what it has seen.
#[derive(Default)]
struct Walk<'v> {
    visit: Option<Visit<'v>>,
    files: Vec<PathBuf>,
    findings: Findings,
    places: Vec<Place>,
    /// The last two batches whose seqnos are believed, the older first.
    believed: [Option<Mark>; 2],
}

/// Damage, while it is not known what follows.
struct Place {
    spot: Spot,
    bytes: u64,
    what: Fault,
    tail: Tail,
}

/// Where a batch begins, or should, and how many whole ones there are up to its end.
#[derive(Clone, Copy)]
struct Spot {
    file: usize,
    offset: u64,
    batches: u64,
}

/// Whether a place may be what a write left that was not finished.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    No,
    Part,
    /// It ends as a batch does, but is not as it was written.
    Whole,
}

/// Where a seqno was seen.
#[derive(Clone, Copy)]
struct Mark {
    spot: Spot,
    seqno: u64,
}

impl Mark {
    fn is_before(self, seqno: u64) -> bool {
        seqno > self.seqno && seqno - self.seqno < SEQNO_JUMP
    }

    fn beside(self, other: Mark) -> (Spot, Fault) {
        let (seqno, beside) = (self.seqno, other.seqno);
        (self.spot, Fault::Seqno { seqno, beside })
    }
}

impl Walk<'_> {
    fn folder(&mut self, dir: &Path) -> io::Result<()> {
        let (journals, foreign) = list(dir)?;
        for path in foreign {
            self.files.push(path);
            self.note(self.spot(0), Fault::Foreign);
        }
        let mut next = None;
        for (number, path) in journals {
            let file = File::open(&path).map_err(|error| at(&path, &error))?;
            self.files.push(path.clone());
            if let Some(missing) = next.map(|next| number - next).filter(|missing| *missing > 0) {
                self.note(self.spot(0), Fault::Missing(missing));
            }
            next = number.checked_add(1);
            self.journal(file).map_err(|error| at(&path, &error))?;
        }
        Ok(())
    }

    /// Reads the journal that was named last.
    fn journal(&mut self, inner: impl Read + Seek) -> io::Result<()> {
        self.findings.journals += 1;
        let mut source = Source::new(inner)?;
        let mut offset = 0;
        while offset < source.end {
            offset = match source.batch(offset)? {
                Parsed::Whole(batch) => {
                    self.whole(offset, &batch);
                    if let Some(visit) = &mut self.visit {
                        source.hand_out(offset, batch.seqno, &mut **visit)?;
                    }
                    batch.end
                }
                Parsed::Broken(what) => {
                    let (next, tail) = source.behind(offset, what)?;
                    self.places.push(Place {
                        spot: self.spot(offset),
                        bytes: next - offset,
                        what,
                        tail,
                    });
                    next
                }
            };
        }
        Ok(())
    }

    /// Takes in a batch of which all items are whole.
    fn whole(&mut self, offset: u64, batch: &Batch) {
        self.findings.batches += 1;
        self.findings.items += batch.items;
        self.findings.bytes += batch.end - offset;
        let spot = self.spot(offset);
        let disorder = self.order(Mark {
            spot,
            seqno: batch.seqno,
        });
        if let Some((spot, what)) = disorder {
            self.note(spot, what);
        }
        if let Some(what) = batch.fault {
            self.note(spot, what);
        }
    }

    /// Whether the seqno fits those before it. If not, tells which batch is wrong: a seqno that was raised is seen only at
    /// the batch after it.
    fn order(&mut self, mark: Mark) -> Option<(Spot, Fault)> {
        if mark.seqno >= SEQNO_END {
            return Some((mark.spot, Fault::SeqnoTooHigh(mark.seqno)));
        }
        let [before, last] = self.believed;
        let Some(last) = last else {
            self.believed = [None, Some(mark)];
            return None;
        };
        if last.is_before(mark.seqno) {
            self.believed = [Some(last), Some(mark)];
            return None;
        }
        // Without the last, this one would fit and leave room for it.
        if before.is_none_or(|before| before.is_before(mark.seqno) && mark.seqno - before.seqno > 1) {
            self.believed = [before, Some(mark)];
            return Some(last.beside(mark));
        }
        Some(mark.beside(last))
    }

    fn spot(&self, offset: u64) -> Spot {
        Spot {
            file: self.files.len() - 1,
            offset,
            batches: self.findings.batches,
        }
    }

    /// Remembers what is wrong where no bytes are lost for it.
    fn note(&mut self, spot: Spot, what: Fault) {
        self.places.push(Place {
            spot,
            bytes: 0,
            what,
            tail: Tail::No,
        });
    }

    fn verdict(mut self) -> Result<Findings, Damage> {
        let Some(first) = self.places.first() else {
            return Ok(self.findings);
        };
        // With nothing after it, neither a batch nor anything else, it ends the newest journal that holds anything.
        let is_last = self.places.len() == 1 && first.spot.batches == self.findings.batches;
        if !is_last || first.tail == Tail::No {
            return Err(self.damage(first));
        }
        self.findings.torn = Some(Torn {
            file: self.files[first.spot.file].clone(),
            offset: first.spot.offset,
            bytes: first.bytes,
            is_whole: first.tail == Tail::Whole,
        });
        Ok(self.findings)
    }

    fn salvaged(self) -> Salvaged {
        Salvaged {
            batches: self.findings.batches,
            items: self.findings.items,
            skipped: self.places.iter().map(|place| self.damage(place)).collect(),
        }
    }

    fn damage(&self, place: &Place) -> Damage {
        Damage {
            file: self.files[place.spot.file].clone(),
            offset: place.spot.offset,
            bytes: place.bytes,
            what: place.what,
            follows: self.findings.batches - place.spot.batches,
        }
    }
}

/// What was read where a batch should begin.
enum Parsed {
    /// All that it holds is as it was written.
    Whole(Batch),
    /// It cannot be used.
    Broken(Fault),
}

struct Batch {
    end: u64,
    items: u64,
    seqno: u64,
    /// What is wrong with what the checksum does not cover.
    fault: Option<Fault>,
}

/// An entry, up to its key and its value.
enum Entry {
    Start,
    Item(Head),
    End { checksum: u64, trailer: [u8; 4] },
    Clear { keyspace_id: u64 },
}

struct Head {
    bytes: [u8; HEAD_BYTES],
    keyspace_id: u64,
    kind: Kind,
    is_compressed: bool,
    key_bytes: u64,
    value_bytes: u64,
    stored_bytes: u64,
}

/// Why no entry could be read.
enum Stop {
    Fault(Fault),
    Io(io::Error),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Io(error)
    }
}

/// A journal that is read.
struct Source<R> {
    reader: BufReader<R>,
    at: u64,
    /// Behind the last byte that is not zero; the last of a batch never is.
    end: u64,
    hash: Xxh3,
    /// How many bytes the searches have read that were no batch.
    searched: u64,
}

impl<R: Read + Seek> Source<R> {
    fn new(mut inner: R) -> io::Result<Self> {
        let end = data_end(&mut inner)?;
        inner.rewind()?;
        Ok(Self {
            reader: BufReader::with_capacity(BUFFER_BYTES, inner),
            at: 0,
            end,
            hash: Xxh3::new(),
            searched: 0,
        })
    }

    fn batch(&mut self, offset: u64) -> io::Result<Parsed> {
        match self.read_batch(offset) {
            Ok(parsed) => Ok(parsed),
            Err(Stop::Fault(what)) => Ok(Parsed::Broken(what)),
            Err(Stop::Io(error)) => Err(error),
        }
    }

    fn read_batch(&mut self, offset: u64) -> Result<Parsed, Stop> {
        self.go(offset)?;
        let [tag] = self.take()?;
        if tag != 1 {
            return Err(Fault::NoStart(tag).into());
        }
        let (said, seqno) = self.start()?;
        self.hash.reset();
        let mut items = 0;
        let (checksum, trailer) = loop {
            match self.entry()? {
                Entry::Start => return Err(Fault::Nested.into()),
                Entry::End { checksum, trailer } => break (checksum, trailer),
                Entry::Clear { keyspace_id } => {
                    self.hash.update(&[4]);
                    self.hash.update(&keyspace_id.to_le_bytes());
                }
                Entry::Item(head) => {
                    self.hash.update(&[2]);
                    self.hash.update(&head.bytes);
                    self.hash_next(head.key_bytes + head.stored_bytes)?;
                }
            }
            items += 1;
        };
        let end = self.at;
        if self.hash.digest() != checksum {
            // Without its trailer, this may be no end at all.
            let is_end = trailer == TRAILER;
            return Err(if is_end { Fault::Checksum } else { Fault::Trailer }.into());
        }
        let fault = if trailer != TRAILER {
            Some(Fault::Trailer)
        } else if u64::from(said) != items || items == 0 {
            Some(Fault::Count { said, found: items })
        } else {
            None
        };
        Ok(Parsed::Whole(Batch {
            end,
            items,
            seqno,
            fault,
        }))
    }

    fn entry(&mut self) -> Result<Entry, Stop> {
        let [tag] = self.take()?;
        match tag {
            1 => {
                self.start()?;
                Ok(Entry::Start)
            }
            2 => Ok(Entry::Item(self.head()?)),
            3 => Ok(Entry::End {
                checksum: u64::from_le_bytes(self.take()?),
                trailer: self.take()?,
            }),
            4 => Ok(Entry::Clear {
                keyspace_id: u64::from_le_bytes(self.take()?),
            }),
            tag => Err(Fault::Tag(tag).into()),
        }
    }

    fn start(&mut self) -> Result<(u32, u64), Stop> {
        Ok((u32::from_le_bytes(self.take()?), u64::from_le_bytes(self.take()?)))
    }

    fn head(&mut self) -> Result<Head, Stop> {
        let bytes: [u8; HEAD_BYTES] = self.take()?;
        let [kind, compression, rest @ ..] = bytes;
        let number = |range: std::ops::Range<usize>| {
            let mut number = [0; 8];
            number[..range.len()].copy_from_slice(&rest[range]);
            u64::from_le_bytes(number)
        };
        let head = Head {
            bytes,
            keyspace_id: number(0..8),
            kind: match kind {
                0 => Kind::Value,
                1 => Kind::Removal,
                2 => Kind::WeakRemoval,
                kind => return Err(Fault::Kind(kind).into()),
            },
            is_compressed: match compression {
                0 => false,
                1 => true,
                compression => return Err(Fault::Compression(compression).into()),
            },
            key_bytes: number(8..10),
            value_bytes: number(10..14),
            stored_bytes: number(14..18),
        };
        if !head.is_compressed && head.value_bytes != head.stored_bytes {
            return Err(Fault::Lengths.into());
        }
        if head.key_bytes + head.stored_bytes > self.end - self.at {
            return Err(Fault::Unfinished.into());
        }
        Ok(head)
    }

    /// Hands out the items of a batch that was found whole.
    fn hand_out(&mut self, offset: u64, seqno: u64, visit: Visit<'_>) -> io::Result<()> {
        self.go(offset + START_BYTES)?;
        let (mut key, mut stored, mut unpacked) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let head = match self.entry() {
                Ok(Entry::Item(head)) => head,
                Ok(Entry::Clear { keyspace_id }) => {
                    visit(Item {
                        keyspace_id,
                        key: &[],
                        value: &[],
                        kind: Kind::Clear,
                        seqno,
                    })?;
                    continue;
                }
                Ok(Entry::End { .. }) => return Ok(()),
                Err(Stop::Io(error)) => return Err(error),
                Ok(Entry::Start) | Err(Stop::Fault(_)) => return Err(changed()),
            };
            self.fill(&mut key, head.key_bytes)?;
            self.fill(&mut stored, head.stored_bytes)?;
            if head.is_compressed {
                unpack(&stored, head.value_bytes, &mut unpacked)?;
            }
            visit(Item {
                keyspace_id: head.keyspace_id,
                key: &key,
                value: if head.is_compressed { &unpacked } else { &stored },
                kind: head.kind,
                seqno,
            })?;
        }
    }

    /// Where to go on behind what is broken, and whether that may be a torn tail.
    fn behind(&mut self, offset: u64, what: Fault) -> io::Result<(u64, Tail)> {
        let mut from = offset + 1;
        while let Some(start) = self.find_start(from)? {
            if let Parsed::Whole(_) = self.batch(start)? {
                return Ok((start, Tail::No));
            }
            // What is no batch is nearly always seen by its first few bytes. Where it is not, again and again, the search
            // ends, and what follows is not known.
            self.searched += self.at - start;
            if self.searched > SEARCHES * self.end {
                return Ok((self.end, Tail::No));
            }
            from = start + 1;
        }
        let tail = match (what, self.find_end(offset)?) {
            // Blocks that never reached the disk are zeros, so nothing else can have come of an unfinished write.
            (Fault::NoStart(1..), _) => Tail::No,
            (_, None) => Tail::Part,
            (_, Some(end)) if end == self.end => Tail::Whole,
            // What has an end was synced before the next was begun, of which there is something.
            (_, Some(_)) => Tail::No,
        };
        Ok((self.end, tail))
    }

    /// Behind the first bytes that look like an End entry.
    fn find_end(&mut self, from: u64) -> io::Result<Option<u64>> {
        self.go(from)?;
        let mut window = [0; END_BYTES];
        while self.at < self.end {
            let at = self.at;
            let buffer = self.buffer()?;
            for (index, byte) in buffer.iter().enumerate() {
                window.rotate_left(1);
                window[END_BYTES - 1] = *byte;
                if *byte == TRAILER[3] && window[0] == 3 && window.ends_with(&TRAILER) {
                    return Ok(Some(at + index as u64 + 1));
                }
            }
            let count = buffer.len();
            self.consume(count);
        }
        Ok(None)
    }

    fn find_start(&mut self, from: u64) -> io::Result<Option<u64>> {
        self.go(from)?;
        while self.at < self.end {
            let buffer = self.buffer()?;
            let (count, found) = (buffer.len(), buffer.iter().position(|byte| *byte == 1));
            if let Some(index) = found {
                return Ok(Some(self.at + index as u64));
            }
            self.consume(count);
        }
        Ok(None)
    }

    fn go(&mut self, to: u64) -> io::Result<()> {
        self.reader.seek_relative(to.wrapping_sub(self.at).cast_signed())?;
        self.at = to;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        if self.end.saturating_sub(self.at) < N as u64 {
            return Err(Fault::Unfinished.into());
        }
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    /// Reads so many bytes, which are known to be there.
    fn fill(&mut self, bytes: &mut Vec<u8>, count: u64) -> io::Result<()> {
        bytes.resize(count as usize, 0);
        self.reader.read_exact(bytes)?;
        self.at += count;
        Ok(())
    }

    fn hash_next(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let length = buffer.len().min(count as usize);
            self.hash.update(&buffer[..length]);
            self.consume(length);
            count -= length as u64;
        }
        Ok(())
    }

    /// Some of the bytes that come, up to the end.
    fn buffer(&mut self) -> io::Result<&[u8]> {
        let left = self.end - self.at;
        let buffer = self.reader.fill_buf()?;
        if buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&buffer[..buffer.len().min(left as usize)])
    }

    fn consume(&mut self, count: usize) {
        self.reader.consume(count);
        self.at += count as u64;
    }
}

type Numbered = Vec<(u64, PathBuf)>;

/// The journals by their numbers, and what has such a name and is none.
fn list(dir: &Path) -> io::Result<(Numbered, Vec<PathBuf>)> {
    let (mut journals, mut foreign) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(|error| at(dir, &error))? {
        let entry = entry.map_err(|error| at(dir, &error))?;
        let path = entry.path();
        if !path.extension().is_some_and(|end| end.eq_ignore_ascii_case(EXTENSION)) {
            continue;
        }
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        // It is named as fjall would name it: neither `01.jnl` nor `1.JNL`.
        let number = number.filter(|number| entry.file_name() == *format!("{number}.{EXTENSION}"));
        match number {
            Some(number) if entry.file_type()?.is_file() => journals.push((number, path)),
            _ => foreign.push(path),
        }
    }
    journals.sort();
    foreign.sort();
    Ok((journals, foreign))
}

/// Behind the last byte that is not zero.
fn data_end(inner: &mut (impl Read + Seek)) -> io::Result<u64> {
    let zeros = vec![0; BUFFER_BYTES];
    let mut chunk = zeros.clone();
    let mut end = inner.seek(SeekFrom::End(0))?;
    while end > 0 {
        let start = (end - 1) / BUFFER_BYTES as u64 * BUFFER_BYTES as u64;
        let part = &mut chunk[..(end - start) as usize];
        inner.seek(SeekFrom::Start(start))?;
        inner.read_exact(part)?;
        // The comparison is what makes it fast over tens of megabytes of zeros.
        if *part != zeros[..part.len()] {
            let last = part.iter().rposition(|byte| *byte != 0).unwrap_or_default();
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn unpack(stored: &[u8], count: u64, value: &mut Vec<u8>) -> io::Result<()> {
    if count > stored.len() as u64 * LZ4_RATIO {
        return Err(changed());
    }
    value.resize(count as usize, 0);
    match lz4_flex::block::decompress_into(stored, value) {
        Ok(length) if length as u64 == count => Ok(()),
        _ => Err(changed()),
    }
}

/// What was proven whole a moment ago is not.
fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the journal changes while it is read")
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
