//! fjall's tables, read without fjall: whether they are as they were written, and what can be read of those that are not.
//!
//! fjall knows of damage only once it reads the block that has it, and one such block ends what it reads. Here every byte is
//! looked at, damage is told with its place, and a damaged block costs only what is in it.
//! It owns the format of the tables of the one version of fjall that it is pinned to. It must never change a file, nor hold
//! more of a table in memory than one block.
//!
//! ```text
//!   keyspaces/ID/current    version u64, checksum of its file u128, 0
//!   keyspaces/ID/vVERSION   archive; its section "tables" has the tables in use: id u64, 0, checksum of the file u128, seqno u64
//!   keyspaces/ID/tables/N   archive; blocks of data, then index, filter and meta
//!   archive                 sections, table of contents, trailer: "SFA!", 1, 0, checksum u128, where the contents are u64, u64
//!   block                   "LSM", 3, kind u8, checksum u128, stored bytes u32, bytes u32, checksum of all this u32, stored
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::journal::Kind;
use crate::frame::take_varint;

const TRAILER_BYTES: u64 = 38;
const HEADER_BYTES: usize = 33;
const MAGIC: [u8; 4] = [b'L', b'S', b'M', 3];
const BUFFER_BYTES: usize = 64 * 1_024;
/// The end of a block of items: how they are laid out, and how many there are.
const ITEMS_TRAILER_BYTES: usize = 31;
const ITEMS_END: u8 = 255;
const DATA: u8 = 0;
const META: u8 = 3;
/// The sections that are made of blocks.
const BLOCKS: [&[u8]; 6] = [b"data", b"tli", b"index", b"filter_tli", b"filter", b"meta"];
/// A table of contents is a handful of names.
const CONTENTS_BYTES: u64 = 1 << 20;
/// LZ4 does not make anything smaller than by this.
const LZ4_RATIO: usize = 255;

/// A place at which a file is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where what is damaged begins.
    pub offset: u64,
    /// How many bytes cannot be used.
    pub bytes: u64,
    /// What is wrong.
    pub what: Fault,
}

/// What is wrong with a file of tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not there.
    Missing,
    /// It does not name a version.
    Current,
    /// It does not have the checksum that it should.
    Checksum,
    /// Its end does not tell what is in it.
    Contents,
    /// A block should begin here.
    Header,
    /// The content of a block of this kind does not have its checksum.
    Block(u8),
    /// A block has its checksum, and holds no items.
    Items,
    /// The list of tables ends too early.
    List,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing => f.write_str("it is missing"),
            Fault::Current => f.write_str("it does not name the tables' list in use"),
            Fault::Checksum => f.write_str("the file does not have the checksum that it had"),
            Fault::Contents => f.write_str("the end of the file does not tell what is in it"),
            Fault::Header => f.write_str("a block should begin here"),
            Fault::Block(DATA) => f.write_str("the checksum of a block of data is wrong"),
            Fault::Block(_) => f.write_str("the checksum of a block of the index is wrong"),
            Fault::Items => f.write_str("a block of data cannot be taken apart"),
            Fault::List => f.write_str("the list of tables cannot be read"),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, at byte {}: {}", self.file.display(), self.offset, self.what)
    }
}

/// A table in use.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its file.
    pub file: PathBuf,
    /// The checksum of the whole file, if the list could be read that says it.
    checksum: Option<u128>,
}

/// The tables of a keyspace.
#[derive(Debug, Default)]
pub struct Tables {
    /// Those in use; if that is not known, all that are there.
    pub tables: Vec<Table>,
    /// What is wrong with the list of them.
    pub damage: Vec<Damage>,
}

/// Something that a table holds.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub kind: Kind,
    pub seqno: u64,
}

/// The directories of the keyspaces, by their numbers.
pub fn keyspaces(database: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = numbered(&database.join("keyspaces"))?;
    found.retain(|(_, path)| path.is_dir());
    Ok(found)
}

/// The tables of a keyspace that are in use.
pub fn list(keyspace: &Path) -> io::Result<Tables> {
    let mut tables = Tables::default();
    match in_use(keyspace)? {
        Ok(listed) => {
            for (number, checksum) in listed {
                let file = keyspace.join("tables").join(number.to_string());
                match file.exists() {
                    true => tables.tables.push(Table {
                        file,
                        checksum: Some(checksum),
                    }),
                    false => tables.damage.push(whole(file, 0, Fault::Missing)),
                }
            }
        }
        Err(damage) => {
            tables.damage.push(damage);
            let all = numbered(&keyspace.join("tables"))?;
            tables.tables = all
                .into_iter()
                .map(|(_, file)| Table { file, checksum: None })
                .collect();
        }
    }
    Ok(tables)
}

/// What fjall would miss without a word when it opens the database: a keyspace of which it finds nothing it makes anew, and it
/// deletes one that it has no name or no list of tables for. What an interrupted creation leaves is nothing that it misses.
pub fn missed(database: &Path) -> io::Result<Vec<Damage>> {
    let folder = database.join("keyspaces");
    let there = keyspaces(database)?;
    if there.is_empty() {
        return Ok(Vec::new());
    }
    let marker = database.join("version");
    if !marker.exists() {
        return Ok(vec![whole(marker, 0, Fault::Missing)]);
    }
    let own = folder.join("0");
    if !own.exists() {
        return Ok(vec![whole(own, 0, Fault::Missing)]);
    }
    let (names, mut damage) = names(&own)?;
    for number in names.keys() {
        let path = folder.join(number.to_string());
        match path.exists() {
            true => damage.extend(list(&path)?.damage),
            false => damage.push(whole(path, 0, Fault::Missing)),
        }
    }
    Ok(damage)
}

/// The names that fjall's own keyspace has for the others, by their numbers, as far as it can be read; what is damaged of it.
pub fn names(own: &Path) -> io::Result<(BTreeMap<u64, String>, Vec<Damage>)> {
    let mut names = BTreeMap::new();
    let Tables { tables, mut damage } = list(own)?;
    for table in tables {
        let found = table.salvage(&mut |item| {
            let number = item.key.strip_prefix(b"n").and_then(|number| number.try_into().ok());
            if let (Some(number), Ok(name), Kind::Value) = (number, std::str::from_utf8(item.value), item.kind) {
                names.insert(u64::from_be_bytes(number), name.to_owned());
            }
            Ok(())
        })?;
        damage.extend(found);
    }
    Ok((names, damage))
}

impl Table {
    /// Reads all of the file; what is damaged.
    pub fn verify(&self) -> io::Result<Vec<Damage>> {
        let file = File::open(&self.file)?;
        // Whoever has the checksum of the whole needs to look no further.
        if self.checksum.is_some() && self.checksum == Some(hash(&file)?) {
            return Ok(Vec::new());
        }
        let mut damage = Vec::new();
        self.walk(&file, &mut |_| Ok(true), &mut |found| damage.push(found))?;
        if damage.is_empty() && self.checksum.is_some() {
            damage.push(whole(self.file.clone(), file.metadata()?.len(), Fault::Checksum));
        }
        Ok(damage)
    }

    /// Hands out the items of all blocks that are whole; what is damaged of the others.
    pub fn salvage(&self, visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>) -> io::Result<Vec<Damage>> {
        let file = File::open(&self.file)?;
        let is_packed = self.is_packed(&file)?;
        let mut damage = Vec::new();
        let mut read = |block: &Block| match block.kind == DATA {
            true => block.items(is_packed, visit),
            false => Ok(true),
        };
        self.walk(&file, &mut read, &mut |found| damage.push(found))?;
        // An index is not needed for this, nor missed.
        damage.retain(|found| matches!(found.what, Fault::Block(DATA)) || !matches!(found.what, Fault::Block(_)));
        Ok(damage)
    }

    /// Whether the data is compressed, as the block of meta says, if it can be read.
    fn is_packed(&self, file: &File) -> io::Result<Option<bool>> {
        let mut is_packed = None;
        let Ok(sections) = sections(file)? else {
            return Ok(None);
        };
        for (name, start, end) in sections {
            if name == b"meta"
                && let Ok(block) = Block::read(file, start, end)?
                && block.kind == META
            {
                block.items(Some(false), &mut |item| {
                    if item.key == b"compression#data" {
                        is_packed = Some(item.value != [0]);
                    }
                    Ok(())
                })?;
            }
        }
        Ok(is_packed)
    }

    /// Goes through all blocks: `visit` has those that are whole and says whether it could use them, `found` what is damaged.
    fn walk(
        &self,
        file: &File,
        visit: &mut dyn FnMut(&Block) -> io::Result<bool>,
        found: &mut dyn FnMut(Damage),
    ) -> io::Result<()> {
        let length = file.metadata()?.len();
        let mut damage = |offset, bytes, what| {
            found(Damage {
                file: self.file.clone(),
                offset,
                bytes,
                what,
            })
        };
        let sections = match sections(file)? {
            Ok(sections) => sections,
            Err(offset) => {
                damage(offset, length.saturating_sub(offset), Fault::Contents);
                vec![(b"data".to_vec(), 0, offset)]
            }
        };
        for (name, start, end) in sections {
            if !BLOCKS.contains(&name.as_slice()) {
                continue;
            }
            let mut at = start;
            while at < end {
                at = match Block::read(file, at, end)? {
                    Ok(block) => {
                        if !visit(&block)? {
                            damage(at, block.bytes(), Fault::Items);
                        }
                        at + block.bytes()
                    }
                    Err((what, Some(next))) => {
                        damage(at, next - at, what);
                        next
                    }
                    Err((what, None)) => {
                        let next = find_header(file, at + 1, end)?;
                        damage(at, next - at, what);
                        next
                    }
                };
            }
        }
        Ok(())
    }
}

/// A block whose checksums are right.
struct Block {
    kind: u8,
    stored: Vec<u8>,
    /// How long it was before it was compressed.
    length: usize,
}

/// What is wrong with a block, and where it ends if that is known.
type Broken = (Fault, Option<u64>);

impl Block {
    fn read(file: &File, at: u64, end: u64) -> io::Result<Result<Self, Broken>> {
        let Some((kind, checksum, stored, length)) = header(file, at, end)? else {
            return Ok(Err((Fault::Header, None)));
        };
        let start = at + HEADER_BYTES as u64;
        // The length has its own checksum, and is within the file.
        let mut bytes = vec![0; stored];
        file.read_exact_at(&mut bytes, start)?;
        if xxh3_128(&bytes) != checksum {
            return Ok(Err((Fault::Block(kind), Some(start + stored as u64))));
        }
        Ok(Ok(Self {
            kind,
            stored: bytes,
            length,
        }))
    }

    fn bytes(&self) -> u64 {
        (HEADER_BYTES + self.stored.len()) as u64
    }

    /// Hands out the items; whether it holds items. Where it is not known whether it is compressed, both are tried.
    fn items(&self, is_packed: Option<bool>, visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>) -> io::Result<bool> {
        let guess = is_packed.unwrap_or(self.stored.len() != self.length);
        for is_packed in [guess, !guess] {
            let unpacked;
            let bytes = match is_packed {
                false => &self.stored,
                true => match unpack(&self.stored, self.length) {
                    Some(bytes) => {
                        unpacked = bytes;
                        &unpacked
                    }
                    None => continue,
                },
            };
            if bytes.len() == self.length && take_items(bytes, &mut |_| Ok(()))? {
                return take_items(bytes, visit);
            }
        }
        Ok(false)
    }
}

/// The kind, checksum, stored and original length of the block that begins here, if one does.
fn header(file: &File, at: u64, end: u64) -> io::Result<Option<(u8, u128, usize, usize)>> {
    if end.saturating_sub(at) < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, at)?;
    let [m0, m1, m2, m3, kind, rest @ ..] = bytes;
    let number = |from: usize| u32::from_le_bytes([rest[from], rest[from + 1], rest[from + 2], rest[from + 3]]);
    let mut checksum = [0; 16];
    checksum.copy_from_slice(&rest[..16]);
    let (stored, length, own) = (number(16), number(20), number(24));
    let is_sound = [m0, m1, m2, m3] == MAGIC
        && xxh3_128(&bytes[..HEADER_BYTES - 4]) as u32 == own
        && u64::from(stored) <= end - at - HEADER_BYTES as u64;
    Ok(is_sound.then_some((kind, u128::from_le_bytes(checksum), stored as usize, length as usize)))
}

/// Where the next block begins, or the end.
fn find_header(file: &File, from: u64, end: u64) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = from;
    while end.saturating_sub(at) >= HEADER_BYTES as u64 {
        let length = (end - at).min(BUFFER_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..length], at)?;
        for (index, window) in buffer[..length].windows(MAGIC.len()).enumerate() {
            let start = at + index as u64;
            if window == MAGIC && header(file, start, end)?.is_some() {
                return Ok(start);
            }
        }
        // One may begin in the last bytes of the buffer.
        at += (length - (MAGIC.len() - 1)) as u64;
    }
    Ok(end)
}

fn unpack(stored: &[u8], length: usize) -> Option<Vec<u8>> {
    if length > stored.len().saturating_mul(LZ4_RATIO) {
        return None;
    }
    let mut bytes = vec![0; length];
    let count = lz4_flex::block::decompress_into(stored, &mut bytes).ok()?;
    (count == length).then_some(bytes)
}

/// Hands out the items of a block; whether it is one. The keys of most begin as the one at the head of their stretch does.
fn take_items(bytes: &[u8], visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>) -> io::Result<bool> {
    let Some(trailer) = bytes.len().checked_sub(ITEMS_TRAILER_BYTES) else {
        return Ok(false);
    };
    let (content, trailer) = bytes.split_at(trailer);
    let Some(count) = trailer.last_chunk().map(|count| u32::from_le_bytes(*count)) else {
        return Ok(false);
    };
    let stretch = u32::from(trailer[0]).max(1);
    let mut cursor = Cursor { bytes: content, at: 0 };
    let mut head: &[u8] = &[];
    let mut key = Vec::new();
    for index in 0..count {
        let is_head = index % stretch == 0;
        let Some(step) = cursor.step(is_head) else {
            return Ok(false);
        };
        if is_head {
            head = step.rest;
        }
        let Some(prefix) = head.get(..step.shared) else {
            return Ok(false);
        };
        key.clear();
        key.extend_from_slice(prefix);
        key.extend_from_slice(step.rest);
        visit(Item {
            key: &key,
            value: step.value,
            kind: step.kind,
            seqno: step.seqno,
        })?;
    }
    Ok(cursor.take(1) == Some(&[ITEMS_END]))
}

/// An item as it is stored: how much of its key the head of its stretch has, and the rest of it.
struct Step<'a> {
    shared: usize,
    rest: &'a [u8],
    value: &'a [u8],
    kind: Kind,
    seqno: u64,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn step(&mut self, is_head: bool) -> Option<Step<'a>> {
        let kind = match self.take(1)? {
            [0] => Kind::Value,
            [1] => Kind::Removal,
            [2] => Kind::WeakRemoval,
            _ => return None,
        };
        let seqno = self.number()?;
        let shared = if is_head { 0 } else { self.length()? };
        let rest = self.length()?;
        let rest = self.take(rest)?;
        let value = match kind {
            Kind::Value => self.length()?,
            _ => 0,
        };
        let value = self.take(value)?;
        Some(Step {
            shared,
            rest,
            value,
            kind,
            seqno,
        })
    }

    fn length(&mut self) -> Option<usize> {
        self.number().and_then(|number| usize::try_from(number).ok())
    }

    fn number(&mut self) -> Option<u64> {
        let (number, at) = take_varint(self.bytes, self.at)?;
        self.at = at;
        Some(number)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }
}

/// A section of an archive: its name, where it begins, and where it ends.
type Section = (Vec<u8>, u64, u64);

/// The sections of an archive; or where its end begins, as far as that can be told, if it does not say what they are.
fn sections(file: &File) -> io::Result<Result<Vec<Section>, u64>> {
    let length = file.metadata()?.len();
    let Some(start) = length.checked_sub(TRAILER_BYTES) else {
        return Ok(Err(0));
    };
    let mut trailer = [0; TRAILER_BYTES as usize];
    file.read_exact_at(&mut trailer, start)?;
    let Some((checksum, at)) = read_trailer(&trailer) else {
        return Ok(Err(start));
    };
    if at > start || start - at > CONTENTS_BYTES {
        return Ok(Err(start));
    }
    let mut contents = vec![0; (start - at) as usize];
    file.read_exact_at(&mut contents, at)?;
    if xxh3_128(&contents) != checksum {
        return Ok(Err(at));
    }
    Ok(read_contents(&contents, at).ok_or(at))
}

/// The checksum of the table of contents, and where it is.
fn read_trailer(trailer: &[u8]) -> Option<(u128, u64)> {
    let rest = trailer.strip_prefix(b"SFA!\x01\x00")?;
    let (checksum, rest) = rest.split_first_chunk()?;
    let (at, _) = rest.split_first_chunk()?;
    Some((u128::from_le_bytes(*checksum), u64::from_le_bytes(*at)))
}

fn read_contents(contents: &[u8], end: u64) -> Option<Vec<Section>> {
    let rest = contents.strip_prefix(b"TOC!")?;
    let (count, mut rest) = rest.split_first_chunk()?;
    let mut sections = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (start, after) = rest.split_first_chunk()?;
        let (length, after) = after.split_first_chunk()?;
        let (name, after) = after.split_first_chunk()?;
        let (name, after) = after.split_at_checked(u16::from_le_bytes(*name).into())?;
        let start = u64::from_le_bytes(*start);
        let section_end = start.checked_add(u64::from_le_bytes(*length))?;
        if section_end > end {
            return None;
        }
        sections.push((name.to_vec(), start, section_end));
        rest = after;
    }
    Some(sections)
}

/// The numbers of the tables in use, with the checksums of their files.
fn in_use(keyspace: &Path) -> io::Result<Result<Vec<(u64, u128)>, Damage>> {
    let path = keyspace.join("current");
    let current = match fs::read(&path) {
        Ok(current) => current,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err(whole(path, 0, Fault::Missing))),
        Err(error) => return Err(error),
    };
    let Some((version, checksum)) = read_current(&current) else {
        return Ok(Err(whole(path, current.len() as u64, Fault::Current)));
    };
    let path = keyspace.join(format!("v{version}"));
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err(whole(path, 0, Fault::Missing))),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    if hash(&file)? != checksum {
        return Ok(Err(whole(path, length, Fault::Checksum)));
    }
    let section = sections(&file)?.ok().and_then(|sections| {
        let mut sections = sections.into_iter();
        sections.find(|(name, ..)| name == b"tables")
    });
    let Some((_, start, end)) = section else {
        return Ok(Err(whole(path, length, Fault::Contents)));
    };
    let mut bytes = vec![0; (end - start) as usize];
    file.read_exact_at(&mut bytes, start)?;
    Ok(read_list(&bytes).ok_or_else(|| whole(path, length, Fault::List)))
}

fn read_current(current: &[u8]) -> Option<(u64, u128)> {
    let (version, rest) = current.split_first_chunk()?;
    let (checksum, rest) = rest.split_first_chunk()?;
    (rest == [0]).then_some((u64::from_le_bytes(*version), u128::from_le_bytes(*checksum)))
}

fn read_list(bytes: &[u8]) -> Option<Vec<(u64, u128)>> {
    let mut tables = Vec::new();
    let (&levels, mut rest) = bytes.split_first()?;
    for _ in 0..levels {
        let (&runs, after) = rest.split_first()?;
        rest = after;
        for _ in 0..runs {
            let (count, mut after) = rest.split_first_chunk()?;
            for _ in 0..u32::from_le_bytes(*count) {
                let (number, next) = after.split_first_chunk()?;
                let (_kind, next) = next.split_first()?;
                let (checksum, next) = next.split_first_chunk()?;
                let (_seqno, next) = next.split_first_chunk::<8>()?;
                tables.push((u64::from_le_bytes(*number), u128::from_le_bytes(*checksum)));
                after = next;
            }
            rest = after;
        }
    }
    Some(tables)
}

/// What has a number for a name, in the order of the numbers.
fn numbered(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort();
    Ok(found)
}

fn whole(file: PathBuf, bytes: u64, what: Fault) -> Damage {
    Damage {
        file,
        offset: 0,
        bytes,
        what,
    }
}

fn hash(mut file: &File) -> io::Result<u128> {
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.digest128()),
            count => hash.update(&buffer[..count]),
        }
    }
}
