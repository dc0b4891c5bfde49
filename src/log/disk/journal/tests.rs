//! Journals as fjall writes them, whole and cut and flipped bit by bit, and what is made of them.

use std::io::Cursor;
use std::ops::Range;

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use super::*;

const SMALL: [usize; 5] = [0, 1, 7, 30, 64];

/// A folder with a store in it; it is gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("twinspan-journal-{}-{name}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn open(&self) -> (Database, [Keyspace; 2]) {
        let database = Database::builder(&self.0).worker_threads(1).open().unwrap();
        let keyspaces =
            ["frames", "heads"].map(|name| database.keyspace(name, KeyspaceCreateOptions::default).unwrap());
        (database, keyspaces)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number}.jnl"))
    }

    /// The journal without the zeros at its end.
    fn bytes(&self, number: u64) -> Vec<u8> {
        let mut file = File::open(self.path(number)).unwrap();
        let end = data_end(&mut file).unwrap();
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.take(end).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn put(&self, number: u64, bytes: &[u8]) {
        fs::write(self.path(number), bytes).unwrap();
    }

    fn verify(&self) -> Result<Findings, Damage> {
        verify(&self.0).unwrap()
    }

    /// What fjall finds: keyspace, key, value.
    fn contents(&self) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
        let (_database, keyspaces) = self.open();
        let mut found = Vec::new();
        for keyspace in &keyspaces {
            for guard in keyspace.iter() {
                let (key, value) = guard.into_inner().unwrap();
                found.push((keyspace.id(), key.to_vec(), value.to_vec()));
            }
        }
        found
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// An item as it is kept, for comparison.
type Kept = (u64, Vec<u8>, Vec<u8>, Kind);

fn kept(item: &Item<'_>) -> Kept {
    (item.keyspace_id, item.key.to_vec(), item.value.to_vec(), item.kind)
}

/// What the items come to, as `contents` tells it.
fn replay(items: &[Kept]) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
    let mut map = std::collections::BTreeMap::new();
    for (keyspace, key, value, kind) in items {
        match kind {
            Kind::Value => map.insert((*keyspace, key.clone()), value.clone()),
            _ => map.remove(&(*keyspace, key.clone())),
        };
    }
    map.into_iter()
        .map(|((keyspace, key), value)| (keyspace, key, value))
        .collect()
}

/// Bytes that look like chance but are always the same.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Writes a batch for each length, with a value of it in both keyspaces and the removal of an older key.
fn write(folder: &Folder, lengths: &[usize]) -> Vec<Kept> {
    let (database, [frames, heads]) = folder.open();
    let mut items = Vec::new();
    for (index, length) in lengths.iter().enumerate() {
        let mut batch = database.batch();
        let key = format!("key-{index:04}").into_bytes();
        let value = if index % 2 == 0 {
            vec![b'v'; *length]
        } else {
            noise(*length, index as u64)
        };
        batch.insert(&frames, key.clone(), value.clone());
        items.push((frames.id(), key.clone(), value.clone(), Kind::Value));
        batch.insert(&heads, &b"head"[..], key.clone());
        items.push((heads.id(), b"head".to_vec(), key, Kind::Value));
        if index >= 2 {
            let old = format!("key-{:04}", index - 2).into_bytes();
            batch.remove(&frames, old.clone());
            items.push((frames.id(), old, Vec::new(), Kind::Removal));
        }
        batch.commit().unwrap();
    }
    items
}

/// The bytes of a journal with a batch of each length, and where the batches are.
fn journal(name: &str, lengths: &[usize]) -> (Vec<u8>, Vec<Range<usize>>) {
    let folder = Folder::new(name);
    write(&folder, lengths);
    let bytes = folder.bytes(0);
    let ranges = ranges(&bytes);
    assert_eq!(ranges.len(), lengths.len());
    (bytes, ranges)
}

fn ranges(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut source = Source::new(Cursor::new(bytes)).unwrap();
    let mut found = Vec::new();
    let mut offset = 0;
    while offset < source.end {
        let Parsed::Whole(batch) = source.batch(offset).unwrap() else {
            panic!("no batch at {offset}");
        };
        found.push(offset as usize..batch.end as usize);
        offset = batch.end;
    }
    found
}

fn walk<'v>(journals: &[&[u8]], visit: Option<Visit<'v>>) -> Walk<'v> {
    let mut walk = Walk {
        visit,
        ..Walk::default()
    };
    for (number, bytes) in journals.iter().enumerate() {
        walk.files.push(PathBuf::from(format!("{number}.jnl")));
        walk.journal(Cursor::new(*bytes)).unwrap();
    }
    walk
}

fn check(journals: &[&[u8]]) -> Result<Findings, Damage> {
    walk(journals, None).verdict()
}

fn save(bytes: &[u8]) -> (Vec<Kept>, Salvaged) {
    let mut items = Vec::new();
    let mut visit = |item: Item<'_>| {
        items.push(kept(&item));
        Ok(())
    };
    let salvaged = walk(&[bytes], Some(&mut visit)).salvaged();
    (items, salvaged)
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

#[test]
fn what_fjall_writes_is_found_whole_and_fjall_reads_the_same() {
    let folder = Folder::new("whole");
    let lengths = [0, 1, 100, 4_095, 4_096, 5_000, 70_001, 3, 300_000, 65_536];
    let items = write(&folder, &lengths);
    let findings = folder.verify().unwrap();
    assert_eq!((findings.journals, findings.batches), (1, lengths.len() as u64));
    assert_eq!(findings.items, items.len() as u64);
    assert_eq!(findings.bytes, folder.bytes(0).len() as u64);
    assert_eq!(findings.torn, None);
    let (mut found, mut seqnos) = (Vec::new(), Vec::new());
    let salvaged = salvage(&folder.0, |item| {
        found.push(kept(&item));
        seqnos.push(item.seqno);
        Ok(())
    });
    assert_eq!(salvaged.unwrap().skipped, []);
    assert_eq!(found, items);
    assert!(seqnos.is_sorted());
    assert_eq!(folder.contents(), replay(&items));
    // fjall has cut off the zeros and goes on from there.
    assert_eq!(folder.verify().unwrap(), findings);
    let more = write(&folder, &[5, 5]);
    assert_eq!(folder.verify().unwrap().batches, findings.batches + 2);
    assert_eq!(folder.contents(), replay(&[items, more].concat()));
}

#[test]
fn all_that_fjall_can_write_is_read() {
    let folder = Folder::new("kinds");
    {
        let (_database, [frames, heads]) = folder.open();
        frames.insert("a", "1").unwrap();
        frames.remove("a").unwrap();
        frames.remove_weak("a").unwrap();
        heads.insert(vec![b'k'; 65_535], "").unwrap();
        heads.clear().unwrap();
    }
    let mut kinds = Vec::new();
    let salvaged = salvage(&folder.0, |item| {
        kinds.push(item.kind);
        Ok(())
    });
    assert_eq!(salvaged.unwrap().skipped, []);
    assert_eq!(
        kinds,
        [Kind::Value, Kind::Removal, Kind::WeakRemoval, Kind::Value, Kind::Clear]
    );
    assert_eq!(folder.verify().unwrap().items, 5);
    let refused = salvage(&folder.0, |_| Err(io::Error::other("no room"))).unwrap_err();
    assert_eq!(refused.to_string(), "no room");
}

#[test]
fn journals_that_fjall_has_rotated_are_read_together() {
    let folder = Folder::new("rotated");
    let (database, [frames, heads]) = folder.open();
    // What is not flushed keeps the first journal.
    heads.insert("head", "first").unwrap();
    for index in 0..62_u64 {
        frames.insert(index.to_be_bytes(), noise(1_050_000, index)).unwrap();
    }
    frames.rotate_memtable_and_wait().unwrap();
    frames.insert("after", "the first").unwrap();
    heads.insert("head", "second").unwrap();
    assert_eq!(database.journal_count(), 2);
    drop((database, frames, heads));

    let findings = folder.verify().unwrap();
    assert_eq!((findings.journals, findings.batches, findings.torn), (2, 65, None));
    let sealed = fs::metadata(folder.path(0)).unwrap().len();
    assert!(sealed > 64_000_000);
    let mut keys = 0;
    salvage(&folder.0, |item| {
        keys += u64::from(item.kind == Kind::Value);
        Ok(())
    })
    .unwrap();
    assert_eq!(keys, 65);
}

#[test]
fn wherever_the_last_write_ends_it_is_torn() {
    let (bytes, ranges) = journal("torn", &SMALL);
    let last = ranges[4].clone();
    let before = check(&[&bytes[..last.start]]).unwrap();
    for end in last.clone() {
        for zeros in [0, 1, 4_096] {
            let mut part = bytes[..end].to_vec();
            part.resize(end + zeros, 0);
            let findings = check(&[&part]).unwrap();
            assert_eq!(findings.batches, 4, "{end}");
            let Some(torn) = findings.torn else {
                assert_eq!((end, &findings), (last.start, &before));
                continue;
            };
            assert_eq!((torn.offset, torn.is_whole), (last.start as u64, false), "{end}");
            let length = bytes[last.start..end].iter().rposition(|byte| *byte != 0).unwrap() + 1;
            assert_eq!(torn.bytes, length as u64);
        }
    }
}

#[test]
fn after_the_cut_fjall_opens_with_all_that_was_before() {
    let folder = Folder::new("cut");
    let items = write(&folder, &[10, 5_000, 3]);
    let bytes = folder.bytes(0);
    let last = ranges(&bytes)[2].clone();
    let expected = replay(&items[..items.len() - 3]);
    for end in last.clone() {
        folder.put(0, &[&bytes[..end], &[0; 100]].concat());
        if let Some(torn) = folder.verify().unwrap().torn {
            cut(&torn).unwrap();
            assert_eq!(cut(&torn).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(folder.bytes(0), &bytes[..last.start]);
        }
        assert_eq!(folder.contents(), expected, "{end}");
    }
    // Where the first write of all is torn, nothing is left.
    folder.put(0, &bytes[..20]);
    cut(&folder.verify().unwrap().torn.unwrap()).unwrap();
    assert_eq!(folder.contents(), []);
    // fjall would not open a last batch whose checksum is wrong.
    folder.put(0, &flipped(&bytes, (last.end - 20) * 8));
    let torn = folder.verify().unwrap().torn.unwrap();
    assert!(torn.is_whole);
    cut(&torn).unwrap();
    assert_eq!(folder.contents(), expected);
}

#[test]
fn a_bit_flipped_in_the_middle_is_damage() {
    let (bytes, ranges) = journal("middle", &SMALL);
    let (one, other) = (&bytes[..ranges[4].start], &bytes[ranges[4].start..]);
    for middle in [&ranges[2], &ranges[3]] {
        for bit in middle.start * 8..middle.end * 8 {
            let flipped = flipped(&bytes, bit);
            let damage = check(&[&flipped]).unwrap_err();
            assert_eq!(
                (damage.file.to_str(), damage.offset),
                (Some("0.jnl"), middle.start as u64),
                "{bit} {damage}"
            );
            assert!(damage.follows > 0, "{bit} {damage}");
            // Also where it ends an older journal.
            let damage = check(&[&flipped[..one.len()], other]).unwrap_err();
            assert_eq!(
                (damage.file.to_str(), damage.offset),
                (Some("0.jnl"), middle.start as u64),
                "{bit} {damage}"
            );
        }
    }
}

#[test]
fn a_bit_flipped_in_the_last_batch_is_never_passed_over() {
    let (bytes, ranges) = journal("last", &SMALL);
    let last = ranges[4].clone();
    for bit in last.start * 8..last.end * 8 {
        match check(&[&flipped(&bytes, bit)]) {
            Err(damage) => assert_eq!(damage.offset, last.start as u64, "{bit} {damage}"),
            Ok(Findings { torn: Some(torn), .. }) => assert_eq!(torn.offset, last.start as u64, "{bit}"),
            // A last seqno that is somewhat too high still comes after all others: nothing is ordered otherwise by it.
            Ok(_) => {
                let seqno = (last.start + 5) * 8;
                assert!((seqno..seqno + 32).contains(&bit), "{bit}");
                assert_eq!(bytes[bit / 8] >> (bit % 8) & 1, 0, "{bit}");
            }
        }
    }
}

#[test]
fn whatever_is_flipped_all_other_batches_are_saved() {
    let (bytes, ranges) = journal("saved", &SMALL);
    let (all, _) = save(&bytes);
    let middle = ranges[2].clone();
    let others = [&all[..4], &all[7..]].concat();
    for bit in middle.start * 8..middle.end * 8 {
        let (items, salvaged) = save(&flipped(&bytes, bit));
        let [skipped] = salvaged.skipped.as_slice() else {
            panic!("{bit}: {salvaged:?}");
        };
        assert_eq!(skipped.offset, middle.start as u64, "{bit}");
        if skipped.bytes == 0 {
            assert_eq!(items, all, "{bit}: {}", skipped.what);
        } else {
            assert_eq!((items, skipped.bytes), (others.clone(), middle.len() as u64), "{bit}");
        }
        assert_eq!(
            salvaged.items,
            if skipped.bytes == 0 { all.len() } else { others.len() } as u64
        );
    }
}

#[test]
fn a_length_that_swallows_the_next_batch_does_not_hide_it() {
    // Batches of 256 bytes: with one bit more, a value reaches to the end of the next.
    let folder = Folder::new("swallow");
    {
        let (_database, [frames, _]) = folder.open();
        for index in 0..4_u32 {
            frames
                .insert(index.to_be_bytes(), noise(256 - 13 - 21 - 4 - 13, 7))
                .unwrap();
        }
    }
    let mut bytes = folder.bytes(0);
    assert_eq!(bytes.len(), 4 * 256);
    // The second bytes of both lengths of the value.
    bytes[2 * 256 + 27] ^= 1;
    bytes[2 * 256 + 31] ^= 1;
    let damage = check(&[&bytes]).unwrap_err();
    assert_eq!((damage.offset, damage.what, damage.follows), (512, Fault::Checksum, 1));
    assert_eq!(damage.bytes, 256);
}

#[test]
fn an_end_that_is_whole_and_wrong_is_torn_only_as_the_very_last() {
    let (bytes, ranges) = journal("end", &SMALL);
    let last = ranges[4].clone();
    let wrong = flipped(&bytes, (last.end - 20) * 8);
    let torn = check(&[&wrong, &[0; 100], &[]]).unwrap().torn.unwrap();
    assert_eq!((torn.file, torn.is_whole), (PathBuf::from("0.jnl"), true));
    assert_eq!((torn.offset, torn.bytes), (last.start as u64, last.len() as u64));
    // The next was begun after this one was synced.
    for more in [&[1][..], &bytes[..20], &[9]] {
        let damage = check(&[&[&wrong, more].concat()]).unwrap_err();
        assert_eq!((damage.offset, damage.what), (last.start as u64, Fault::Checksum));
        assert_eq!(damage.follows, 0);
        check(&[&wrong, more]).unwrap_err();
    }
}

#[test]
fn a_tail_that_no_unfinished_write_can_have_left_is_damage() {
    let (bytes, ranges) = journal("tail", &SMALL);
    // The last two are broken, each in a length: there is no whole batch any more, but the end of one.
    let mut two = bytes.clone();
    two[ranges[3].start + 30] ^= 0x40;
    two[ranges[4].start + 30] ^= 0x40;
    for journal in [&two[..], &two[..ranges[4].start + 40]] {
        let damage = check(&[journal]).unwrap_err();
        assert_eq!((damage.offset, damage.follows), (ranges[3].start as u64, 0));
    }
    let foreign = [&bytes[..], b"something else"].concat();
    let damage = check(&[&foreign]).unwrap_err();
    assert_eq!((damage.offset, damage.what), (bytes.len() as u64, Fault::NoStart(b's')));
    // A block of it never came.
    let mut start = bytes.clone();
    start[ranges[4].start..][..20].fill(0);
    assert!(check(&[&start]).unwrap().torn.unwrap().is_whole);
}

#[test]
fn zeros_are_nothing_but_at_the_end() {
    let (bytes, ranges) = journal("zeros", &SMALL);
    let whole = check(&[&bytes]).unwrap();
    assert_eq!(check(&[&[&bytes[..], &[0; 200_000]].concat()]), Ok(whole));
    let at = ranges[3].start;
    let hole = [&bytes[..at], &[0; 512], &bytes[at..]].concat();
    let damage = check(&[&hole]).unwrap_err();
    assert_eq!(
        (damage.offset, damage.bytes, damage.what),
        (at as u64, 512, Fault::NoStart(0))
    );
    assert_eq!(damage.follows, 2);
    // A journal whose batches are lost altogether shows by the seqnos only if they repeat, but one that is gone does.
    assert_eq!(check(&[&[0; 70_000], &[], &bytes]).unwrap().batches, 5);
}

#[test]
fn batches_come_once_and_in_order() {
    let (bytes, ranges) = journal("order", &SMALL);
    let batch = |index: usize| &bytes[ranges[index].clone()];
    for (order, wrong) in [
        (vec![0, 1, 2, 2, 3], 3),
        (vec![0, 1, 3, 2, 4], 3),
        (vec![0, 1, 2, 3, 0], 4),
        (vec![4, 0, 1, 2], 0),
    ] {
        let parts: Vec<_> = order.iter().map(|index| batch(*index)).collect();
        let damage = check(&[&parts.concat()]).unwrap_err();
        let offset: usize = parts[..wrong].iter().map(|part| part.len()).sum();
        // Of two that were exchanged, either may be called wrong.
        assert!(matches!(damage.what, Fault::Seqno { .. }), "{damage}");
        assert!(
            damage.offset == offset as u64 || order == [0, 1, 3, 2, 4],
            "{order:?} {damage}"
        );
    }
}

#[test]
fn a_directory_is_read_by_the_numbers_of_its_journals() {
    let folder = Folder::new("numbers");
    assert_eq!(folder.verify(), Ok(Findings::default()));
    fs::write(folder.0.join("lock"), "").unwrap();
    fs::create_dir(folder.0.join("keyspaces")).unwrap();
    assert_eq!(folder.verify(), Ok(Findings::default()));
    assert_eq!(
        verify(&folder.0.join("none")).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );

    let (bytes, ranges) = journal("numbered", &SMALL);
    for (number, range) in (8..).zip(&ranges) {
        folder.put(number, &bytes[range.clone()]);
    }
    let findings = folder.verify().unwrap();
    assert_eq!((findings.journals, findings.batches), (5, 5));
    fs::rename(folder.path(9), folder.0.join("kept")).unwrap();
    let damage = folder.verify().unwrap_err();
    assert_eq!((&damage.file, damage.what), (&folder.path(10), Fault::Missing(1)));
    fs::rename(folder.0.join("kept"), folder.path(9)).unwrap();
    for name in ["x.jnl", "08.jnl", "-1.jnl", "13.JNL", "14.jnl"] {
        let path = folder.0.join(name);
        fs::create_dir(&path).unwrap();
        let damage = folder.verify().unwrap_err();
        assert_eq!((&damage.file, damage.what, damage.follows), (&path, Fault::Foreign, 5));
        fs::remove_dir(&path).unwrap();
    }
}

#[test]
fn fjall_opens_what_was_called_sound_in_several_journals() {
    let folder = Folder::new("several");
    let items = write(&folder, &[10, 5_000, 3, 40]);
    let bytes = folder.bytes(0);
    let ranges = ranges(&bytes);
    folder.put(0, &bytes[..ranges[2].start]);
    folder.put(1, &bytes[ranges[2].start..]);
    assert_eq!(folder.verify().unwrap().batches, 4);
    assert_eq!(folder.contents(), replay(&items));
}

#[test]
fn lengths_are_not_believed() {
    let (bytes, ranges) = journal("lengths", &SMALL);
    let item = ranges[2].start + 13;
    for length in [item + 11, item + 13, item + 17] {
        let mut lying = bytes.clone();
        lying[length..length + 2].fill(0xff);
        lying[ranges[2].start + 1..item - 8].fill(0xff);
        assert_eq!(check(&[&lying]).unwrap_err().follows, 2);
    }
    let packed = [&[0xf0][..], &noise(20, 1)].concat();
    for count in [packed.len() as u64 * 255 + 1, u64::from(u32::MAX), 10] {
        assert!(unpack(&packed, count, &mut Vec::new()).is_err());
    }
}

#[test]
fn whatever_is_written_over_a_batch_is_damage_and_the_rest_is_saved() {
    let (bytes, ranges) = journal("noise", &[40, 5_000, 700, 40, 300, 40]);
    let (all, _) = save(&bytes);
    for seed in 0..2_000 {
        let length = 2 + seed % 200;
        let start = ranges[1].start + (seed * 7_919) % (ranges[4].start - ranges[1].start - length);
        let mut written = bytes.clone();
        written[start..start + length].copy_from_slice(&noise(length, seed as u64));
        let damage = check(&[&written]).unwrap_err();
        assert!(damage.offset >= ranges[1].start as u64, "{seed} {damage}");
        assert!(damage.offset <= start as u64 && damage.follows >= 2, "{seed} {damage}");
        let (items, _) = save(&written);
        assert!(
            items.starts_with(&all[..2]) && items.ends_with(&all[all.len() - 6..]),
            "{seed}"
        );
    }
}

#[test]
fn a_search_that_is_led_astray_ends_as_damage() {
    let mut bytes = Vec::new();
    let size = 200_000_u32;
    while bytes.len() < size as usize {
        // A batch, as it seems, whose one value ends where all does.
        let left = size - bytes.len() as u32;
        bytes.extend([1, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([2, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(left.saturating_sub(100).to_le_bytes());
        bytes.extend(left.saturating_sub(100).to_le_bytes());
    }
    bytes.push(9);
    let damage = check(&[&bytes]).unwrap_err();
    assert_eq!((damage.offset, damage.bytes), (0, bytes.len() as u64));
}

#[test]
fn damage_says_where_and_what() {
    let damage = Damage {
        file: PathBuf::from("/data/3.jnl"),
        offset: 4_711,
        bytes: 90,
        what: Fault::Checksum,
        follows: 12,
    };
    let text = "/data/3.jnl, at byte 4711: the checksum of the batch is wrong; 12 whole batches follow";
    assert_eq!(damage.to_string(), text);
}
