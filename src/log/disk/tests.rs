//! What the disk store does beyond what every store does: it comes back.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::*;
use crate::frame::{Body, Frame};
use crate::log::Seen;
use crate::log::suite::{self, ALL};

/// A directory that is gone when this is.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("twinspan-disk-{}-{name}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn settings(folder: &Folder) -> Settings {
    Settings {
        dir: folder.0.clone(),
        durability: Durability::Durable,
        keep: Keep {
            age: Duration::from_secs(1 << 40),
            frames: 1_000,
            bytes: 1 << 20,
        },
        min_free_bytes: 1,
        queue_bytes: 64 << 20,
        cache_bytes: 8 << 20,
        epoch: "another-life".to_owned(),
    }
}

fn open(folder: &Folder) -> Disk {
    Disk::open(settings(folder)).unwrap_or_else(|error| panic!("{error}")).0
}

#[allow(clippy::disallowed_methods, reason = "a test has no other clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn text(seq: u64, text: &str) -> Frame {
    Frame {
        seq,
        id: seq.to_string().into(),
        session_id: "one".into(),
        timestamp: Some(now().into()),
        body: Body::Text(text.into()),
        ..Frame::default()
    }
}

fn chunk(seq: u64, index: u32, text: &str) -> Frame {
    Frame {
        id: Str::EMPTY,
        reply_to: "q".into(),
        attempt: 1,
        index: Some(index),
        ..self::text(seq, text)
    }
}

fn append(log: &Disk, frame: Frame) {
    let entry = Entry {
        seen: (!frame.id.is_empty()).then(|| Seen {
            sender: "ann".into(),
            substance: Some(frame.seq),
        }),
        ..Entry::from(Arc::new(Sealed::new(frame)))
    };
    log.append(&"one".into(), entry).unwrap();
}

async fn texts(log: &Disk, from: u64) -> Vec<String> {
    let page = log.read(&"one".into(), from, ALL).await.unwrap();
    let text = |frame: &Arc<Sealed>| match &frame.body {
        Body::Text(text) => format!("{}-{}:{text}", frame.first_seq(), frame.seq),
        other => panic!("{other:?}"),
    };
    page.frames.iter().map(text).collect()
}

/// Waits until what is done in the background is.
async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert!(waited.is_ok(), "waited in vain for {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_contract() {
    let folder = Folder::new("contract");
    suite::keeps_the_contract(&open(&folder)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn folds_without_a_trace() {
    let folder = Folder::new("folds");
    let log = open(&folder);
    for seed in 0..3 {
        println!("seed {seed}");
        suite::folds_without_a_trace(&log, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_comes_back() {
    let folder = Folder::new("back");
    let one: Str = "one".into();
    let life = {
        let log = open(&folder);
        let life = log.create(&one, "data".into(), 1).unwrap();
        append(&log, text(1, "a"));
        append(&log, text(2, "b"));
        let note = |key, content: Option<&'static str>| Note {
            key,
            content: content.map(Bytes::from),
        };
        log.note(&one, note(1, Some("first"))).unwrap();
        log.note(&one, note(2, Some("second"))).unwrap();
        log.note(&one, note(1, None)).unwrap();
        log.save(&one, "changed".into()).unwrap().await.unwrap();
        life
    };
    let log = open(&folder);
    assert!(log.load(&"two".into()).await.unwrap().is_none());
    let loaded = log.load(&one).await.unwrap().unwrap();
    assert_eq!((loaded.life, loaded.first, loaded.head), (life, 1, 2));
    assert_eq!(loaded.data, "changed");
    assert_eq!(loaded.notes, [(2, Bytes::from("second"))]);
    assert_eq!(texts(&log, 1).await, ["1-1:a", "2-2:b"]);
    let replayed = log.replay(&one, 1..3, ALL).await.unwrap();
    let seen: Vec<_> = replayed.into_iter().map(|replayed| replayed.seen.unwrap()).collect();
    assert_eq!(seen[1].substance, Some(2));
    assert_eq!(seen[1].sender, "ann");
    append(&log, text(3, "c"));
    log.flush().await.unwrap();
    assert_eq!(texts(&log, 2).await, ["2-2:b", "3-3:c"]);
    let other = log.create(&"two".into(), Bytes::new(), 1).unwrap();
    assert!(other > life, "no number is used twice");
    assert!(log.create(&one, Bytes::new(), 1).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_durable_is_not_read() {
    let folder = Folder::new("durable");
    let one: Str = "one".into();
    let log = open(&folder);
    let mut settlements = log.settlements();
    log.create(&one, Bytes::new(), 1).unwrap();
    for seq in 1..=100 {
        append(&log, text(seq, "x"));
        let page = log.read(&one, 1, ALL).await.unwrap();
        // What was committed meanwhile need not be in the page; what is in it was committed.
        assert!(page.frames.len() as u64 <= log.shelf.series(&one).unwrap().committed());
    }
    let mut seq = 0;
    while seq < 100 {
        for settled in settlements.next().await.unwrap() {
            assert!(settled.seq > seq && settled.result.is_ok());
            seq = settled.seq;
        }
        let read = log.read(&one, 1, ALL).await.unwrap().frames.len() as u64;
        assert!(read >= seq && read <= log.shelf.series(&one).unwrap().committed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_come_together_share_a_record() {
    let folder = Folder::new("chunks");
    let one: Str = "one".into();
    {
        let log = open(&folder);
        log.create(&one, Bytes::new(), 1).unwrap();
        // The writer waits for this guard, so that what is queued meanwhile is one batch.
        let held = log.shelf.base_mut_for_tests();
        append(&log, text(1, "q"));
        while !log.shelf.queue.is_taken() {
            std::thread::yield_now();
        }
        for seq in 2..=9 {
            append(&log, chunk(seq, seq as u32 - 2, &seq.to_string()));
        }
        append(&log, text(10, "between"));
        append(&log, chunk(11, 8, "end"));
        drop(held);
        log.flush().await.unwrap();
    }
    let log = open(&folder);
    let loaded = log.load(&one).await.unwrap().unwrap();
    assert_eq!((loaded.first, loaded.head), (1, 11));
    let read = texts(&log, 1).await;
    assert!(read.len() < 11, "{read:?}");
    assert_eq!(texts(&log, 5).await[0], "5-9:56789");
    let back = log.read_back(&one, 3..7, ALL).await.unwrap();
    assert_eq!(back.frames.len(), 1);
    assert_eq!((back.frames[0].folded_from, back.frames[0].seq), (3, 6));
    assert_eq!(back.frames[0].index, Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_over_becomes_few_records() {
    let folder = Folder::new("reply");
    let one: Str = "one".into();
    let log = open(&folder);
    log.create(&one, Bytes::new(), 1).unwrap();
    append(&log, text(1, "q"));
    for seq in 2..=5 {
        append(&log, chunk(seq, seq as u32 - 2, &seq.to_string()));
        log.flush().await.unwrap();
    }
    append(&log, text(6, "between"));
    for seq in 7..=9 {
        append(&log, chunk(seq, seq as u32 - 3, &seq.to_string()));
        log.flush().await.unwrap();
    }
    let whole = ["1-1:q", "2-5:2345", "6-6:between", "7-9:789"];
    assert_eq!(texts(&log, 1).await.len(), 9);
    log.fold(&one, "q", 1, 9);
    until("the reply to be folded", async || texts(&log, 1).await == whole).await;
    assert_eq!(texts(&log, 3).await[0], "3-5:345");
    // Text beyond the bound of one frame stays in several.
    let long = "x".repeat(40 << 10);
    for seq in 10..=12 {
        append(&log, chunk(seq, seq as u32 - 3, &long));
        log.flush().await.unwrap();
    }
    append(&log, chunk(13, 10, "end"));
    log.flush().await.unwrap();
    log.fold(&one, "q", 10, 13);
    until("the rest to be folded", async || texts(&log, 10).await.len() == 3).await;
    drop(log);
    let log = open(&folder);
    assert_eq!(log.load(&one).await.unwrap().unwrap().head, 13);
    assert_eq!(texts(&log, 1).await[..4], whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_is_never_beyond_a_record_that_is_there() {
    let folder = Folder::new("mark");
    let one: Str = "one".into();
    let mut settings = settings(&folder);
    settings.keep.frames = 10_000;
    let log = Disk::open(settings).unwrap().0;
    log.create(&one, Bytes::new(), 1).unwrap();
    for seq in 1..=3_000 {
        append(&log, text(seq, "x"));
    }
    log.flush().await.unwrap();
    let series = log.shelf.series(&one).unwrap();
    let oldest = || {
        let key = |base: &base::Base| Ok(base.frames.prefix(series.number.to_be_bytes()).next().map(Guard::key));
        base::place(&log.shelf.with(key).unwrap().unwrap().unwrap())
            .unwrap()
            .seq
    };
    let surplus = || log.shelf.with(|base| keeper::surplus(base, &series)).unwrap();
    series.trim_to(2_500);
    let some = surplus();
    // More are to go than go at once.
    assert_eq!((some.keys.len(), some.first), (1_024, 1_025));
    // They are found again, as nothing was removed.
    assert_eq!(surplus().keys, some.keys);
    keeper::trim(&log.shelf, &series).unwrap();
    assert_eq!((oldest(), surplus().keys.len()), (2_500, 0));
    // What goes by a frame that is not durable takes the newest that is not with it.
    series.trim_to(3_005);
    let rest = surplus();
    assert_eq!((rest.keys.len(), rest.first), (500, 3_000));
    keeper::trim(&log.shelf, &series).unwrap();
    assert_eq!(oldest(), 3_000);
    assert_eq!(
        log.shelf.with(|base| base.mark(series.number)).unwrap().unwrap().first,
        3_000
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_to_be_kept_goes() {
    let folder = Folder::new("trim");
    let one: Str = "one".into();
    let log = open(&folder);
    log.create(&one, Bytes::new(), 1).unwrap();
    log.retain(
        &one,
        Keep {
            frames: 10,
            ..settings(&folder).keep
        },
    );
    for seq in 1..=1_000 {
        append(&log, text(seq, "x"));
    }
    log.flush().await.unwrap();
    let series = log.shelf.series(&one).unwrap();
    assert_eq!(series.first(), 991);
    assert_eq!(texts(&log, 1).await.len(), 10);
    log.trim(&one, now());
    until("the records to go", async || {
        let count = log
            .shelf
            .with(|base| Ok(base.frames.prefix(series.number.to_be_bytes()).count()));
        count.unwrap() <= 11
    })
    .await;
    // By bytes.
    let bytes = series.kept_bytes() as usize;
    log.retain(
        &one,
        Keep {
            bytes: bytes / 2,
            ..settings(&folder).keep
        },
    );
    log.trim(&one, now());
    until("half of it to go", async || series.kept_bytes() as usize <= bytes / 2).await;
    assert!(series.first() > 991);
    // By age, all of it.
    log.retain(
        &one,
        Keep {
            age: Duration::from_secs(10),
            ..settings(&folder).keep
        },
    );
    log.trim(&one, now() + Duration::from_secs(20));
    until("all of it to go", async || series.first() == 1_001).await;
    let page = log.read(&one, 1, ALL).await.unwrap();
    assert_eq!((page.frames.len(), page.first), (0, 1_001));
    log.flush().await.unwrap();
    until("the mark", async || {
        log.shelf
            .with(|base| base.mark(series.number))
            .unwrap()
            .is_some_and(|mark| mark.first == 1_001)
    })
    .await;
    drop(log);
    let log = open(&folder);
    let loaded = log.load(&one).await.unwrap().unwrap();
    assert_eq!((loaded.first, loaded.head), (1_001, 1_000));
    append(&log, text(1_001, "on"));
    log.flush().await.unwrap();
    assert_eq!(texts(&log, 1).await, ["1001-1001:on"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_session_is_gone_and_cleared() {
    let folder = Folder::new("delete");
    let one: Str = "one".into();
    let log = open(&folder);
    let life = log.create(&one, "old".into(), 1).unwrap();
    for seq in 1..=10 {
        append(&log, text(seq, "x"));
    }
    let deleted = log.delete(&one).unwrap();
    assert!(log.load(&one).await.unwrap().is_none(), "not even before it is written");
    deleted.await.unwrap();
    assert!(log.list("", "", 10).await.unwrap().is_empty());
    until("the frames to go", async || {
        let count = log
            .shelf
            .with(|base| Ok(base.frames.prefix(life.to_be_bytes()).count()));
        count.unwrap() == 0
    })
    .await;
    log.create(&one, "new".into(), 1).unwrap();
    append(&log, text(1, "anew"));
    log.flush().await.unwrap();
    assert_eq!(texts(&log, 1).await, ["1-1:anew"]);
    assert_eq!(log.list("o", "", 10).await.unwrap()[0].data, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_in_their_order() {
    let folder = Folder::new("list");
    let log = open(&folder);
    for name in ["b", "a1", "a2", "a", "c"] {
        log.create(&name.into(), name.into(), 1).unwrap();
    }
    log.flush().await.unwrap();
    let names = async |prefix: &str, after: &str, count| {
        let known = log.list(prefix, after, count).await.unwrap();
        let names: Vec<_> = known.iter().map(|known| known.session.to_string()).collect();
        names.join(" ")
    };
    assert_eq!(names("", "", 10).await, "a a1 a2 b c");
    assert_eq!(names("a", "", 10).await, "a a1 a2");
    assert_eq!(names("a", "a", 10).await, "a1 a2");
    assert_eq!(names("", "a1", 2).await, "a2 b");
    assert_eq!(names("", "c", 2).await, "");
    assert_eq!(names("x", "", 2).await, "");
}

#[test]
fn a_directory_is_one_processs() {
    let folder = Folder::new("lock");
    let log = open(&folder);
    let refused = Disk::open(settings(&folder)).err().unwrap().to_string();
    assert!(
        refused.contains(&std::process::id().to_string()) && refused.contains("--data-dir"),
        "{refused}"
    );
    drop(log);
    open(&folder);
}

/// A store that is closed, to be copied with other bytes in its one journal.
struct Closed {
    folder: Folder,
    journal: PathBuf,
    /// What was written to the journal, without the zeros that follow.
    bytes: Vec<u8>,
    /// Where its last write begins.
    last: usize,
}

impl Closed {
    fn new(folder: Folder, last: usize) -> Self {
        let (journal, bytes) = journal(&folder);
        Self {
            folder,
            journal,
            bytes,
            last,
        }
    }

    /// A store with these bytes in its journal, and the path of that.
    fn with(&self, bytes: &[u8]) -> (Folder, PathBuf) {
        fn copy(from: &Path, to: &Path) {
            fs::create_dir_all(to).unwrap();
            for entry in fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                let (path, target) = (entry.path(), to.join(entry.file_name()));
                match entry.file_type().unwrap().is_dir() {
                    true => copy(&path, &target),
                    false if path.extension().is_some_and(|end| end == "jnl") => {}
                    false => drop(fs::copy(&path, &target).unwrap()),
                }
            }
        }
        let to = Folder(self.folder.0.with_extension("copy"));
        fs::remove_dir_all(&to.0).ok();
        copy(&self.folder.0, &to.0);
        let path = to.0.join("log").join(self.journal.file_name().unwrap());
        fs::write(&path, bytes).unwrap();
        (to, path)
    }
}

fn journal(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let files = fs::read_dir(folder.0.join("log")).unwrap();
    let mut paths = files.map(|entry| entry.unwrap().path());
    let journal = paths.find(|path| path.extension().is_some_and(|end| end == "jnl"));
    let journal = journal.expect("there must be a journal");
    let mut bytes = fs::read(&journal).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(written);
    (journal, bytes)
}

/// Frames in writes of their own, each durable before the next.
async fn write_some(log: &Disk, session: &'static str, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        let frame = Frame {
            session_id: session.into(),
            ..text(seq, &format!("{session}{seq}"))
        };
        let entry = Entry::from(Arc::new(Sealed::new(frame)));
        log.append(&session.into(), entry).unwrap();
        log.flush().await.unwrap();
    }
}

/// What `write_some` wrote, as `texts` reads it.
fn written(head: u64) -> Vec<String> {
    (1..=head).map(|seq| format!("{seq}-{seq}:one{seq}")).collect()
}

/// A store with five frames, each in a write of its own.
async fn five(name: &str) -> Closed {
    let folder = Folder::new(name);
    let log = open(&folder);
    log.create(&"one".into(), "data".into(), 1).unwrap();
    write_some(&log, "one", 1..=4).await;
    let last = journal(&folder).1.len();
    write_some(&log, "one", 5..=5).await;
    drop(log);
    Closed::new(folder, last)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_write_that_was_cut_anywhere_is_told_and_cut_off() {
    let one: Str = "one".into();
    let closed = five("torn").await;
    let (begin, end) = (closed.last, closed.bytes.len());
    assert!(begin < end);
    for (cut, is_padded) in (begin..=end).flat_map(|cut| [(cut, false), (cut, true)]) {
        let mut bytes = closed.bytes[..cut].to_vec();
        if is_padded {
            // The file had its length before; what was written last never reached the disk.
            bytes.resize(end + 1_000, 0);
        }
        let (folder, path) = closed.with(&bytes);
        let (log, found) = Disk::open(settings(&folder)).unwrap_or_else(|error| panic!("{cut}: {error}"));
        let torn = found.torn.map(|torn| (torn.file, torn.offset));
        let is_torn = cut > begin && cut < end;
        assert_eq!(torn, is_torn.then_some((path, begin as u64)), "{cut}");
        let head = if cut == end { 5 } else { 4 };
        let loaded = log.load(&one).await.unwrap().unwrap();
        assert_eq!((loaded.first, loaded.head), (1, head), "{cut}");
        assert_eq!(texts(&log, 1).await, written(head), "{cut}");
        if cut % 8 != 0 {
            continue;
        }
        // It goes on from there, and what is written now comes back.
        write_some(&log, "one", head + 1..=head + 2).await;
        drop(log);
        let (log, found) = Disk::open(settings(&folder)).unwrap_or_else(|error| panic!("{cut}: {error}"));
        assert_eq!(found.torn, None, "{cut}");
        log.load(&one).await.unwrap().unwrap();
        assert_eq!(texts(&log, 1).await, written(head + 2), "{cut}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_changed_in_a_journal_is_never_served() {
    let one: Str = "one".into();
    let closed = five("flipped").await;
    let mut served = 0;
    for at in 0..closed.last {
        let mut bytes = closed.bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        let (folder, path) = closed.with(&bytes);
        let refused = match Disk::open(settings(&folder)) {
            Err(refused) => refused.to_string(),
            Ok((log, found)) => {
                // A number that still fits between its neighbours: it changes nothing.
                assert_eq!(found.torn, None, "at {at}");
                log.load(&one).await.unwrap().unwrap();
                assert_eq!(texts(&log, 1).await, written(5), "at {at}");
                served += 1;
                continue;
            }
        };
        for expected in [path.to_str().unwrap(), "at byte", "twinspan check"] {
            assert!(refused.contains(expected), "at {at}: {refused}");
        }
    }
    assert!(served < 10, "{served} changes were not noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_changed_in_a_table_is_never_served() {
    let (one, two): (Str, Str) = ("one".into(), "two".into());
    let folder = Folder::new("table");
    {
        let log = open(&folder);
        log.create(&one, "data".into(), 1).unwrap();
        write_some(&log, "one", 1..=5).await;
        log.shelf
            .with(|base| base.frames.rotate_memtable_and_wait().map_err(base::failed))
            .unwrap();
        log.create(&two, "data".into(), 1).unwrap();
        write_some(&log, "two", 1..=3).await;
    }
    let closed = Closed::new(folder, 0);
    let (mut refused, mut corrupt, mut served) = (0, 0, 0);
    // Where it begins, and a byte of every so many: opening takes its time.
    for at in (0..40).chain((40..).step_by(23)) {
        let (folder, _) = closed.with(&closed.bytes);
        let table = frames_table(&folder.0.join("log/keyspaces"));
        let mut bytes = fs::read(&table).unwrap();
        let Some(byte) = bytes.get_mut(at) else { break };
        *byte ^= 1 << (at % 8);
        fs::write(&table, &bytes).unwrap();
        let log = match Disk::open(settings(&folder)) {
            Ok((log, _)) => log,
            Err(error) => {
                assert!(error.to_string().contains("twinspan check"), "at {at}: {error}");
                refused += 1;
                continue;
            }
        };
        let read = match log.load(&one).await {
            Ok(loaded) => {
                assert!(loaded.is_some(), "at {at}: the session is gone");
                log.read(&one, 1, ALL).await.map(|page| page.frames)
            }
            Err(error) => Err(error),
        };
        match read {
            Err(Error::Corrupt(_)) => corrupt += 1,
            Err(other) => panic!("at {at}: {other:?}"),
            Ok(frames) => {
                let seqs: Vec<_> = frames.iter().map(|frame| frame.seq).collect();
                assert_eq!(seqs, [1, 2, 3, 4, 5], "at {at}");
                assert_eq!(texts(&log, 1).await, written(5), "at {at}");
                served += 1;
            }
        }
        // What is elsewhere can be read, and written.
        log.load(&two).await.unwrap().unwrap();
        write_some(&log, "two", 4..=4).await;
        let page = log.read(&two, 1, ALL).await.unwrap();
        assert_eq!(page.frames.len(), 4, "at {at}");
    }
    println!("{refused} were refused at the start, {corrupt} at reading, {served} did not matter");
    assert!(refused + corrupt > 0);
}

/// The one table that the database did not write for itself, which it does in the keyspace 0.
fn frames_table(keyspaces: &Path) -> PathBuf {
    let files = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let own = files(keyspaces).filter(|path| !path.ends_with("0"));
    let tables: Vec<_> = own.flat_map(|path| files(&path.join("tables"))).collect();
    let [table] = &tables[..] else {
        panic!("there must be one table: {tables:?}")
    };
    table.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_deleted_twice_is_not_loaded_in_between() {
    let folder = Folder::new("twice");
    let one: Str = "one".into();
    let log = open(&folder);
    log.create(&one, "first".into(), 1).unwrap();
    log.flush().await.unwrap();
    let held = log.shelf.base_mut_for_tests();
    let first = log.delete(&one).unwrap();
    while !log.shelf.queue.is_taken() {
        std::thread::yield_now();
    }
    drop(held);
    first.await.unwrap();
    log.create(&one, "second".into(), 1).unwrap();
    let second = log.delete(&one).unwrap();
    assert!(log.load(&one).await.unwrap().is_none());
    second.await.unwrap();
    assert!(log.load(&one).await.unwrap().is_none());
    assert!(log.shelf.deleting().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn journals_that_are_gone_are_told() {
    let folder = Folder::new("gone");
    drop(open(&folder));
    let database = folder.0.join("log");
    for entry in fs::read_dir(&database).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "jnl") {
            fs::remove_file(path).unwrap();
        }
    }
    let refused = Disk::open(settings(&folder)).err().unwrap().to_string();
    assert!(
        refused.contains("journals are missing") && refused.contains("check"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_lost_something_lives_another_life() {
    let folder = Folder::new("life");
    let one: Str = "one".into();
    let relaxed = || Settings {
        durability: Durability::Relaxed,
        ..settings(&folder)
    };
    let epoch = async |log: &Disk| {
        let loaded = log.load(&one).await.unwrap().unwrap();
        log.unload(&one, None);
        loaded.epoch.to_string()
    };
    let log = Disk::open(relaxed()).unwrap().0;
    log.create(&one, "data".into(), 1).unwrap();
    log.close().await.unwrap();
    drop(log);
    for (is_relaxed, is_over, boot, expected) in [
        (true, true, "an earlier one", ""),
        (false, false, "an earlier one", ""),
        (true, false, "an earlier one", "another-life"),
    ] {
        let base = Base::open(&folder.0.join("log"), 8 << 20).unwrap();
        let left = base::Use {
            boot: boot.to_owned(),
            is_relaxed,
            is_over,
        };
        base.set_use(&left).unwrap();
        drop(base);
        let log = Disk::open(relaxed()).unwrap().0;
        assert_eq!(epoch(&log).await, expected, "{left:?}");
        log.create(&format!("new {is_relaxed} {is_over}").as_str().into(), Bytes::new(), 1)
            .unwrap();
    }
    // It stays so, and what is new has its own.
    let log = Disk::open(relaxed()).unwrap().0;
    assert_eq!(epoch(&log).await, "another-life");
    let new: Str = "new true false".into();
    assert_eq!(log.load(&new).await.unwrap().unwrap().epoch, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_in_use_is_not_brought_back_beside_itself() {
    let folder = Folder::new("beside");
    let one: Str = "one".into();
    let log = open(&folder);
    log.create(&one, Bytes::new(), 1).unwrap();
    append(&log, text(1, "a"));
    log.flush().await.unwrap();
    assert!(log.load(&one).await.unwrap().is_none());
    append(&log, text(2, "b"));
    log.flush().await.unwrap();
    assert_eq!(texts(&log, 1).await, ["1-1:a", "2-2:b"]);
    // One that went and came meanwhile is read again.
    log.unload(&one, None);
    let tries = std::cell::Cell::new(0);
    let found = log.shelf.bring(&one, || {
        tries.set(tries.get() + 1);
        if tries.get() == 1 {
            log.shelf.remove(&one);
        }
        let series = Series::new(one.clone(), 1, Reach::default(), settings(&folder).keep);
        Ok(Some((Arc::new(series), tries.get())))
    });
    assert_eq!(found.unwrap(), Some(2));
}
