//! Directories as the store leaves them, whole and damaged in all manner of ways: what is found, and what a repair saves.

#![allow(clippy::disallowed_methods, reason = "in tests")]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use prost::Message;

use super::*;
use crate::frame::{Body, Frame, Sealed};
use crate::log::disk::record::Place;
use crate::log::disk::repair::{Saved, repair};
use crate::log::disk::{Disk, Durability, Settings};
use crate::log::suite::ALL;
use crate::log::{Entry, Keep, Log, Note};

/// A data directory that is gone when this is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("twinspan-check-{}-{name}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        Self(path)
    }

    fn settings(&self) -> Settings {
        Settings {
            dir: self.0.clone(),
            durability: Durability::Durable,
            keep: Keep {
                age: Duration::from_secs(1 << 40),
                frames: 100_000,
                bytes: 1 << 30,
            },
            min_free_bytes: 1,
            queue_bytes: 64 << 20,
            cache_bytes: 8 << 20,
            epoch: "another-life".to_owned(),
        }
    }

    fn open(&self) -> Disk {
        Disk::open(self.settings()).unwrap_or_else(|error| panic!("{error}")).0
    }

    fn check(&self) -> Report {
        check(&self.0).unwrap_or_else(|error| panic!("{error}"))
    }

    fn repair(&self) -> Report {
        let saved = Saved {
            data: Box::new(|| "found".into()),
            epoch: "another-life".to_owned(),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        repair(&self.0, &saved).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Does something to the database behind the store's back.
    fn meddle(&self, act: impl FnOnce(&Base)) {
        let base = Base::open(&self.0.join("log"), CACHE).unwrap();
        act(&base);
        base.sync().unwrap();
    }

    /// Does something to a copy of this directory.
    fn copy(&self, name: &str) -> Self {
        let copy = Self::new(name);
        copy_all(&self.0, &copy.0);
        copy
    }

    /// All files with what is in them, but for the locks.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.0, &mut files);
        files
    }

    /// The newest table of a keyspace, by the place that it has in the order of keyspaces.
    fn table(&self, keyspace: u64) -> PathBuf {
        let dir = self.0.join(format!("log/keyspaces/{keyspace}"));
        tables::list(&dir).unwrap().tables.pop().unwrap().file
    }

    fn journal(&self) -> PathBuf {
        let found = fs::read_dir(self.0.join("log")).unwrap();
        let paths = found.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "jnl"))
            .max()
            .unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let copy = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_all(&entry.path(), &copy),
            false => drop(fs::copy(entry.path(), copy).unwrap()),
        }
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, files),
            false if path.file_name().unwrap() == "lock" => {}
            false => drop(files.insert(path.clone(), fs::read(path).unwrap())),
        }
    }
}

/// The end of what a journal holds, without the zeros that follow.
fn data_end(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Text that cannot be made much smaller.
fn noise(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + (state % 90) as u8)
    };
    (0..200).map(|_| next()).collect()
}

fn append(log: &Disk, session: &str, seqs: Range<u64>) {
    for seq in seqs {
        let frame = Frame {
            seq,
            id: seq.to_string().into(),
            session_id: session.into(),
            timestamp: Some(SystemTime::now().into()),
            body: Body::Text(noise(seq).into()),
            ..Frame::default()
        };
        log.append(&session.into(), Entry::from(Arc::new(Sealed::new(frame))))
            .unwrap();
    }
}

fn chunks(log: &Disk, session: &str, seqs: Range<u64>) {
    for seq in seqs {
        let frame = Frame {
            seq,
            session_id: session.into(),
            timestamp: Some(SystemTime::now().into()),
            reply_to: "q".into(),
            attempt: 1,
            index: Some(seq as u32),
            body: Body::Text("chunk ".into()),
            ..Frame::default()
        };
        log.append(&session.into(), Entry::from(Arc::new(Sealed::new(frame))))
            .unwrap();
    }
}

/// Brings what is in memory into tables.
fn flush(log: &Disk) {
    let flush = |base: &Base| {
        for keyspace in [
            &base.sessions,
            &base.frames,
            &base.notes,
            &base.marks,
            &base.dead,
            &base.meta,
        ] {
            keyspace.rotate_memtable_and_wait().unwrap();
        }
        Ok(())
    };
    log.shelf.with(flush).unwrap();
}

/// Sessions `a` with 200 frames, `b` with 50 and chunks and a note, `c` that was trimmed, and `d` that was deleted.
async fn fill(log: &Disk) {
    for name in ["a", "b", "c", "d"] {
        log.create(&name.into(), Bytes::from(name), 1).unwrap();
    }
    append(log, "a", 1..201);
    append(log, "b", 1..51);
    {
        // The writer waits for this guard, so that what is queued meanwhile shares a record.
        let _held = log.shelf.base_mut_for_tests();
        chunks(log, "b", 51..81);
    }
    append(log, "b", 81..91);
    let content = Some(Bytes::from("note"));
    log.note(&"b".into(), Note { key: 7, content }).unwrap();
    let mut keep = log.shelf.settings.keep;
    keep.frames = 10;
    log.retain(&"c".into(), keep);
    append(log, "c", 1..101);
    append(log, "d", 1..11);
    log.delete(&"d".into()).unwrap().await.unwrap();
    log.trim(&"c".into(), SystemTime::now());
    log.flush().await.unwrap();
    let begun = Instant::now();
    let records = || {
        log.shelf
            .with(|base| Ok(base.frames.prefix(3_u64.to_be_bytes()).count()))
    };
    while records().unwrap() > 10 {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "waited in vain for the keeper"
        );
        tokio::task::yield_now().await;
    }
}

/// What a session holds, by the seqs: the text, or the reason of what is in its place.
async fn read(folder: &Folder, session: &str) -> Vec<(u64, String)> {
    let log = folder.open();
    let loaded = log.load(&session.into()).await.unwrap().expect("the session is there");
    let page = log.read(&session.into(), 1, ALL).await.unwrap();
    assert_eq!(page.first, loaded.first);
    let mut next = loaded.first;
    let mut read = Vec::new();
    for frame in &page.frames {
        assert_eq!(frame.first_seq(), next, "without holes");
        next = frame.seq + 1;
        read.push((
            frame.seq,
            match &frame.body {
                Body::Text(text) => text.to_string(),
                Body::Error(error) => {
                    assert_eq!(frame.from.as_ref().unwrap().role, "gateway");
                    error.reason.clone()
                }
                other => panic!("{other:?}"),
            },
        ));
    }
    assert_eq!(next, loaded.head + 1);
    read
}

fn lost(read: &[(u64, String)]) -> Vec<u64> {
    let lost = read.iter().filter(|(_, text)| text == "LOG_CORRUPT");
    lost.map(|(seq, _)| *seq).collect()
}

async fn filled(name: &str, is_flushed: bool) -> Folder {
    let folder = Folder::new(name);
    let log = folder.open();
    fill(&log).await;
    if is_flushed {
        flush(&log);
    }
    drop(log);
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_wrote_is_sound_and_stays_as_it_is() {
    let fresh = Folder::new("fresh");
    drop(fresh.open());
    let folders = [
        (fresh, 0),
        (filled("in-journals", false).await, 3),
        (filled("in-tables", true).await, 3),
    ];
    for (folder, sessions) in folders {
        let before = folder.files();
        for report in [folder.check(), folder.repair()] {
            assert!(report.is_sound(), "{:?}", report.findings);
            assert!(report.is_read && report.repaired.is_none() && report.torn.is_none());
            assert_eq!(report.sessions, sessions);
            assert!(report.journals > 0 && report.bytes > 0);
            if sessions > 0 {
                assert_eq!((report.frames, report.notes), (300, 1));
                assert!(report.records < report.frames, "chunks share records");
            }
        }
        assert!(before == folder.files(), "nothing is changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_table_is_found_and_costs_its_block_only() {
    let sound = filled("table", true).await;
    let all = read(&sound, "a").await;
    assert_eq!(all.len(), 200);
    let length = fs::metadata(sound.table(2)).unwrap().len();
    for at in [
        0,
        40,
        length / 3,
        length / 2,
        length - 1_200,
        length - 600,
        length - 30,
        length - 1,
    ] {
        let folder = sound.copy(&format!("table-{at}"));
        let table = folder.table(2);
        flip(&table, at);
        let report = folder.check();
        let found = report.findings.shown.first();
        let found = found.unwrap_or_else(|| panic!("nothing at {at} of {length}"));
        assert_eq!(found.file.as_ref(), Some(&table), "{at}: {found}");
        let offset = found.offset.unwrap();
        assert!(offset <= at, "{at}: {found}");
        assert!(!report.is_read && !report.is_sound());

        let report = folder.repair();
        assert!(report.is_sound() && report.is_read, "{at}: {:?}", report.findings);
        assert_eq!(report.sessions, 3, "{at}");
        let repaired = report.repaired.unwrap();
        assert_eq!(repaired.aside, folder.0.join("log.damaged-20231114T221320Z"));
        assert!(repaired.aside.join("version").exists());
        let told = repaired.dropped.shown.first();
        let is_data = at <= length / 2;
        assert!(!is_data || told.is_some_and(|told| told.file.is_some()), "{at}");
        let now = read(&folder, "a").await;
        // The journals have what was in the tables as well, until fjall removes them; then a block is lost.
        let kept = now.iter().zip(&all).filter(|(now, was)| now == was).count();
        assert_eq!(now.len(), all.len(), "{at}");
        assert_eq!(kept + lost(&now).len(), all.len(), "{at}");
        assert!(folder.repair().repaired.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_table_had_is_replaced_by_what_says_so() {
    let folder = filled("block", true).await;
    let all = read(&folder, "a").await;
    // Whatever the journal has is cut off, so that the tables are all there is.
    let journal = folder.journal();
    OpenOptions::new()
        .write(true)
        .open(&journal)
        .unwrap()
        .set_len(0)
        .unwrap();
    let report = folder.check();
    assert!(report.is_sound(), "{:?}", report.findings);
    let table = folder.table(2);
    let third = fs::metadata(&table).unwrap().len() / 6;
    flip(&table, third);
    let report = folder.repair();
    assert!(report.is_sound(), "{:?}", report.findings);
    let dropped = report.repaired.unwrap().dropped;
    let now = read(&folder, "a").await;
    let gone = lost(&now);
    assert!(!gone.is_empty() && gone.len() < 40, "{gone:?}");
    assert!(gone.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{gone:?}");
    for (now, was) in now.iter().zip(&all) {
        assert!(now == was || gone.contains(&now.0));
    }
    let hole = dropped
        .shown
        .iter()
        .find(|finding| finding.seq == Some(gone[0]))
        .unwrap();
    assert!(hole.to_string().contains(&format!(
        "the frames {} to {} are missing",
        gone[0],
        gone[gone.len() - 1]
    )));
    // It goes on from there.
    let log = folder.open();
    log.load(&"a".into()).await.unwrap();
    append(&log, "a", 201..202);
    log.flush().await.unwrap();
    drop(log);
    assert!(folder.check().is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_journal_is_found_and_costs_its_batch_only() {
    let folder = Folder::new("journal");
    let log = folder.open();
    log.create(&"a".into(), Bytes::new(), 1).unwrap();
    for seq in 1..31 {
        append(&log, "a", seq..seq + 1);
        log.flush().await.unwrap();
    }
    drop(log);
    let journal = folder.journal();
    let at = data_end(&journal) / 2;
    flip(&journal, at);
    let report = folder.check();
    let found = &report.findings.shown[0];
    assert_eq!(found.file.as_ref(), Some(&journal));
    assert!((at - 400..=at).contains(&found.offset.unwrap()), "{at}: {found}");
    let report = folder.repair();
    assert!(report.is_sound(), "{:?}", report.findings);
    let now = read(&folder, "a").await;
    assert_eq!(now.len(), 30);
    assert_eq!(lost(&now).len(), 1);
    assert!(folder.check().is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_write_that_was_not_finished_is_no_damage() {
    let folder = Folder::new("torn");
    let log = folder.open();
    log.create(&"a".into(), Bytes::new(), 1).unwrap();
    append(&log, "a", 1..3);
    log.flush().await.unwrap();
    drop(log);
    let journal = folder.journal();
    let before = data_end(&journal);
    let log = folder.open();
    log.load(&"a".into()).await.unwrap();
    append(&log, "a", 3..4);
    log.flush().await.unwrap();
    drop(log);
    let end = data_end(&journal);
    let whole = fs::read(&journal).unwrap();
    for length in before..end {
        fs::write(&journal, &whole[..length as usize]).unwrap();
        let report = folder.check();
        assert!(report.is_sound(), "{length}: {:?}", report.findings);
        assert_eq!(report.torn.is_some(), length > before, "{length}");
        assert_eq!(report.frames, 2);
        assert_eq!(fs::metadata(&journal).unwrap().len(), length, "a check cuts nothing");
    }
    assert!(folder.repair().repaired.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_without_a_session_come_back_under_a_name_that_says_so() {
    let folder = filled("nameless", true).await;
    let all = read(&folder, "b").await;
    folder.meddle(|base| {
        let mut batch = base.batch(1, None);
        batch.remove(&base.sessions, "b");
        batch.commit().unwrap();
    });
    let report = folder.check();
    assert_eq!(report.findings.count, 2, "{:?}", report.findings);
    assert_eq!(report.findings.shown[0].number, Some(2));
    let report = folder.repair();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert_eq!((report.sessions, report.notes), (3, 0));
    assert_eq!(read(&folder, "recovered-2").await, all);
    let log = folder.open();
    assert_eq!(log.load(&"recovered-2".into()).await.unwrap().unwrap().data, "found");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_left_out_and_told() {
    let folder = filled("values", false).await;
    let key = |session, seq| Place { session, seq }.key();
    folder.meddle(|base| {
        let mut batch = base.batch(1, None);
        batch.insert(&base.frames, key(1, 5), "no record");
        batch.insert(&base.frames, key(1, 200), "no record");
        batch.remove(&base.frames, key(1, 100));
        batch.remove(&base.frames, key(1, 101));
        batch.insert(&base.notes, key(2, 7), "no note");
        batch.insert(&base.marks, 3_u64.to_be_bytes(), "no mark");
        batch.insert(&base.sessions, "e", "no entry");
        batch.insert(&base.notes, key(99, 1), "nobody's");
        batch.insert(&base.frames, "short", "no key");
        batch.commit().unwrap();
    });
    let report = folder.check();
    let found: Vec<_> = report.findings.shown.iter().map(Finding::to_string).collect();
    let found = found.join("\n");
    for expected in [
        "session a (number 1), frame 5: the record cannot be read",
        "session a (number 1), frame 5: the frame 5 is missing",
        "session a (number 1), frame 100: the frames 100 to 101 are missing",
        "session a (number 1), frame 200: the frame 200 is missing",
        "session b (number 2): note 7",
        "session c (number 3): the mark",
        "session c (number 3): the oldest frame that is left is 91",
        "session e: the entry",
        "session number 99: there are notes",
        "the key 73686f7274 of frames is none",
    ] {
        assert!(found.contains(expected), "{expected}\n{found}");
    }
    let report = folder.repair();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert!(report.repaired.unwrap().dropped.count >= 10);
    assert_eq!(lost(&read(&folder, "a").await), [5, 100, 101, 200]);
    assert_eq!(read(&folder, "c").await.len(), 10);
    assert_eq!(lost(&read(&folder, "b").await), [0_u64; 0]);
}

type Damaging = fn(&Folder);

#[tokio::test(flavor = "multi_thread")]
async fn what_fjall_itself_needs_can_be_lost() {
    let sound = filled("files", true).await;
    let all = read(&sound, "a").await;
    let damages: [(&str, Damaging); 6] = [
        ("marker", |folder| {
            fs::remove_file(folder.0.join("log/version")).unwrap()
        }),
        ("current", |folder| {
            fs::remove_file(folder.0.join("log/keyspaces/2/current")).unwrap()
        }),
        ("list", |folder| {
            let found = fs::read_dir(folder.0.join("log/keyspaces/2")).unwrap();
            let mut paths = found.map(|entry| entry.unwrap().path());
            let list = paths.find(|path| path.file_name().unwrap().to_string_lossy().starts_with('v'));
            flip(&list.unwrap(), 20);
        }),
        ("names", |folder| {
            let table = folder.table(0);
            flip(&table, 100);
        }),
        ("own", |folder| {
            fs::remove_dir_all(folder.0.join("log/keyspaces/0")).unwrap()
        }),
        ("index", |folder| {
            let table = folder.table(1);
            let length = fs::metadata(&table).unwrap().len();
            File::options()
                .write(true)
                .open(table)
                .unwrap()
                .set_len(length - 300)
                .unwrap();
        }),
    ];
    for (name, damage) in damages {
        let folder = sound.copy(&format!("files-{name}"));
        damage(&folder);
        let report = folder.check();
        assert!(!report.is_sound(), "{name}");
        let before = folder.files();
        // Neither is fjall to see it first, which would delete what it does not understand.
        let opened = Disk::open(folder.settings()).map(drop);
        assert!(
            opened.is_err_and(|error| error.to_string().contains("check --repair")),
            "{name}"
        );
        assert!(before == folder.files(), "{name}");
        let report = folder.repair();
        assert!(report.is_sound(), "{name}: {:?}", report.findings);
        assert_eq!(read(&folder, "a").await, all, "{name}");
        assert_eq!(report.sessions, 3, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_flipped_is_found_and_mended() {
    let sound = filled("sweep", true).await;
    // Some of it is in tables only, some in journals only.
    OpenOptions::new()
        .write(true)
        .open(sound.journal())
        .unwrap()
        .set_len(0)
        .unwrap();
    let log = sound.open();
    log.load(&"a".into()).await.unwrap();
    append(&log, "a", 201..206);
    log.flush().await.unwrap();
    append(&log, "a", 206..211);
    log.flush().await.unwrap();
    drop(log);
    let all = read(&sound, "a").await;
    for (index, (file, bytes)) in sound.files().into_iter().enumerate() {
        let end = match file.extension().is_some_and(|end| end == "jnl") {
            // The last write could be one that was not finished.
            true => bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last.saturating_sub(1_500)),
            false => bytes.len(),
        };
        if end > 0 {
            let at = (end * (index % 5) / 5) as u64;
            let file = file.strip_prefix(&sound.0).unwrap();
            is_mended(&sound.copy("swept"), &all, file, at).await;
        }
    }
}

async fn is_mended(folder: &Folder, all: &[(u64, String)], file: &Path, at: u64) {
    let what = format!("{} at {at}", file.display());
    flip(&folder.0.join(file), at);
    assert!(!folder.check().is_sound(), "{what}");
    let report = folder.repair();
    assert!(report.is_sound(), "{what}: {:?}", report.findings);
    let log = folder.open();
    let names = log.list("", "", 9).await.unwrap();
    drop(log);
    let mut names = names.iter().map(|known| &known.session);
    let name = names.find(|name| ["a", "recovered-1"].contains(&&***name));
    let now = read(folder, name.unwrap()).await;
    let kept = now.iter().filter(|frame| all.contains(frame)).count();
    assert_eq!(kept + lost(&now).len(), now.len(), "{what}");
    assert!(kept > 150, "{what}: {kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_is_not_ahead_of_what_there_is() {
    let folder = filled("ahead", false).await;
    folder.meddle(|base| {
        let key = 1_u64.to_be_bytes();
        let mark = base::Mark { first: 300, head: 200 };
        let mut batch = base.batch(1, None);
        batch.insert(&base.marks, key, base::seal(&key, &mark.encode_to_vec()));
        batch.commit().unwrap();
    });
    assert_eq!(folder.check().findings.count, 1);
    assert!(folder.repair().is_sound());
    assert!(read(&folder, "a").await.is_empty());
    let log = folder.open();
    log.load(&"a".into()).await.unwrap();
    append(&log, "a", 201..202);
    log.flush().await.unwrap();
    drop(log);
    assert_eq!(read(&folder, "a").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_two_sessions_have_is_left_to_people() {
    let folder = filled("twice", true).await;
    folder.meddle(|base| {
        let entry = base::Entry {
            number: 1,
            data: Bytes::new(),
        };
        let mut batch = base.batch(1, None);
        batch.insert(&base.sessions, "z", base::seal(b"z", &entry.encode_to_vec()));
        batch.commit().unwrap();
    });
    assert_eq!(folder.check().findings.count, 1);
    let report = folder.repair();
    assert_eq!(report.findings.count, 1);
    assert_eq!(report.findings.shown[0].remedy, BY_HAND);
}

#[test]
fn what_is_not_to_be_checked_is_refused() {
    let folder = Folder::new("refused");
    let refused = |folder: &Folder| check(&folder.0).err().unwrap().to_string();
    assert!(refused(&folder).contains("no such directory"));
    assert!(!folder.0.exists());
    fs::create_dir(&folder.0).unwrap();
    assert!(refused(&folder).contains("no gateway has kept anything there"));
    fs::create_dir(folder.0.join("log")).unwrap();
    fs::write(folder.0.join("log/access.log"), "somebody else's").unwrap();
    assert!(refused(&folder).contains("no gateway has kept anything there"));
    assert_eq!(folder.files().len(), 1);
    fs::remove_dir_all(&folder.0).unwrap();
    let log = folder.open();
    let text = refused(&folder);
    assert!(
        text.contains(&std::process::id().to_string()) && text.contains("stop that one"),
        "{text}"
    );
    drop(log);
    assert!(folder.check().is_sound());
}
