//! What every store has to do, whatever it is: one list of cases.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{Commit, Keep, Limit, Log, Memory, Page, Retention};
use crate::frame::{Body, Frame, Sealed, Str};

/// As much as there is.
pub const ALL: Limit = Limit {
    frames: usize::MAX,
    bytes: usize::MAX,
};

/// Older than any frame here becomes, unless its age is what it is about.
const AGE: Duration = Duration::from_secs(1_000_000);

fn frame(seq: u64, text: &str) -> Arc<Sealed> {
    Arc::new(Sealed::new(Frame {
        seq,
        body: Body::Text(text.into()),
        ..Frame::default()
    }))
}

/// Numbers that look random and are the same every time.
pub struct Random(pub u64);

impl Random {
    /// One that is smaller.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn chunk(seq: u64, request: &str, text: &str) -> Frame {
    Frame {
        seq,
        session_id: "one".into(),
        timestamp: Some(prost_types::Timestamp {
            seconds: seq as i64,
            nanos: 5,
        }),
        reply_to: request.into(),
        attempt: 1,
        index: Some(seq as u32),
        body: Body::Text(text.into()),
        ..Frame::default()
    }
}

/// Chunks of two replies, and what else may be between them.
fn any_frame(seq: u64, random: &mut Random) -> Frame {
    let text = ["", "a", "bc", "ü€", "a long word "][random.below(5) as usize];
    let request = ["q", "r"][random.below(2) as usize];
    match random.below(12) {
        0 => Frame {
            body: Body::Data("x".into()),
            ..chunk(seq, request, "")
        },
        1 => Frame {
            reply_to: Str::EMPTY,
            ..chunk(seq, request, text)
        },
        2 => Frame {
            attempt: 2,
            ..chunk(seq, request, text)
        },
        3 => Frame {
            last: true,
            ..chunk(seq, request, text)
        },
        // Mostly several of one reply in a row.
        4..=6 => chunk(seq, request, text),
        _ => chunk(seq, "q", text),
    }
}

async fn append(log: &dyn Log, frame: &Frame) -> u64 {
    append_to(log, "one", Arc::new(Sealed::new(frame.clone()))).await
}

/// Appends a frame, and waits until it is durable. The first one brings the session into being, if it is not there yet.
async fn append_to(log: &dyn Log, session: &str, frame: Arc<Sealed>) -> u64 {
    if frame.seq == 1 {
        begin(log, session);
    }
    let appended = log.append(&session.into(), frame.into());
    let appended = appended.unwrap_or_else(|error| panic!("{error:?}"));
    if appended.commit == Commit::Later {
        log.flush().await.unwrap();
    }
    appended.first
}

/// The session is there, whether it was or not.
fn begin(log: &dyn Log, session: &str) {
    drop(log.create(&session.into(), Bytes::new(), 1));
}

/// The session is not there, whether it was or not.
async fn gone(log: &dyn Log, session: &str) {
    if let Ok(deleted) = log.delete(&session.into()) {
        deleted.await.unwrap();
    }
}

/// What was read, each in one go or folded, is what was appended from the one seq up to the other.
fn says(frames: &[Arc<Sealed>], source: &[Frame], seqs: Range<u64>) {
    let mut next = seqs.start;
    for frame in frames {
        assert_eq!(
            frame.first_seq(),
            next,
            "nothing is missing, nothing comes twice: {frames:?}"
        );
        let parts = &source[next as usize - 1..frame.seq as usize];
        let last = parts.last().unwrap();
        let text: String = parts
            .iter()
            .filter_map(|part| part.chunk_text())
            .map(Str::as_str)
            .collect();
        let want = Frame {
            folded_from: frame.folded_from,
            body: match parts {
                [only] => only.body.clone(),
                _ => Body::Text(text.into()),
            },
            ..last.clone()
        };
        assert_eq!(*frame.frame(), want);
        for part in parts.iter().filter(|_| parts.len() > 1) {
            assert!(part.chunk_text().is_some(), "{part:?} is no chunk");
            assert_eq!((&part.reply_to, part.attempt), (&last.reply_to, last.attempt));
        }
        assert_eq!(frame.folded_from, if parts.len() > 1 { next } else { 0 });
        next = frame.seq + 1;
    }
    assert_eq!(next, seqs.end);
}

/// Whatever is cut where, the log says what was appended.
async fn says_all(log: &dyn Log, source: &[Frame], first: u64) {
    let one: Str = "one".into();
    let end = source.len() as u64 + 1;
    for from in first..end {
        says(&log.read(&one, from, ALL).await.unwrap().frames, source, from..end);
        for to in from..=end {
            says(
                &log.read_back(&one, from..to, ALL).await.unwrap().frames,
                source,
                from..to,
            );
        }
    }
    for frames in 1..4 {
        let limit = Limit { frames, ..ALL };
        let (mut up, mut next) = (Vec::new(), first);
        while next < end {
            let page = log.read(&one, next, limit).await.unwrap().frames;
            next = page.last().unwrap().seq + 1;
            up.extend(page);
        }
        says(&up, source, first..end);
        let (mut down, mut next) = (Vec::new(), end);
        while next > first {
            let mut page = log.read_back(&one, 1..next, limit).await.unwrap().frames;
            next = page[0].first_seq();
            page.append(&mut down);
            down = page;
        }
        says(&down, source, first..end);
    }
}

/// Folding changes nothing of what the log says, for any store.
pub async fn folds_without_a_trace(log: &dyn Log, seed: u64) {
    let mut random = Random(seed);
    let mut source = Vec::new();
    for seq in 1..=40 {
        source.push(any_frame(seq, &mut random));
        let first = append(log, &source[source.len() - 1]).await;
        if random.below(8) == 0 {
            let (from, to) = (random.below(seq), random.below(seq + 1));
            log.fold(&"one".into(), ["q", "r", "none"][random.below(3) as usize], from, to);
            says_all(log, &source, first).await;
        }
    }
    for request in ["q", "r"] {
        log.fold(&"one".into(), request, 0, u64::MAX);
        let first = log.read(&"one".into(), 1, ALL).await.unwrap().first;
        says_all(log, &source, first).await;
    }
    log.fold(&"another".into(), "q", 0, u64::MAX);
    gone(log, "one").await;
}

async fn fill(log: &dyn Log, session: &str, count: u64) {
    for seq in 1..=count {
        append_to(log, session, frame(seq, &seq.to_string())).await;
    }
}

fn seqs(page: &Page) -> Vec<u64> {
    page.frames.iter().map(|frame| frame.frame().seq).collect()
}

/// A store that keeps at least ten frames of a session.
pub async fn keeps_the_contract(log: &dyn Log) {
    let (one, other): (Str, Str) = ("one".into(), "other".into());
    begin(log, "one");
    assert_eq!(seqs(&log.read(&one, 1, ALL).await.unwrap()), [0; 0]);
    fill(log, "one", 10).await;
    fill(log, "other", 3).await;

    assert_eq!(
        seqs(&log.read(&one, 1, ALL).await.unwrap()),
        (1..=10).collect::<Vec<_>>()
    );
    assert_eq!(seqs(&log.read(&one, 7, ALL).await.unwrap()), [7, 8, 9, 10]);
    assert_eq!(seqs(&log.read(&one, 11, ALL).await.unwrap()), [0; 0]);
    assert_eq!(seqs(&log.read(&other, 1, ALL).await.unwrap()), [1, 2, 3]);

    let two = Limit {
        frames: 2,
        bytes: usize::MAX,
    };
    assert_eq!(seqs(&log.read(&one, 4, two).await.unwrap()), [4, 5]);
    assert_eq!(seqs(&log.read_back(&one, 1..5, two).await.unwrap()), [3, 4]);
    assert_eq!(seqs(&log.read_back(&one, 1..2, two).await.unwrap()), [1]);
    assert_eq!(seqs(&log.read_back(&one, 1..100, two).await.unwrap()), [9, 10]);

    let tight = Limit {
        frames: usize::MAX,
        bytes: 1,
    };
    assert_eq!(
        seqs(&log.read(&one, 4, tight).await.unwrap()),
        [4],
        "a page is never empty unless there is nothing"
    );

    gone(log, &one).await;
    begin(log, "one");
    assert_eq!(seqs(&log.read(&one, 1, ALL).await.unwrap()), [0; 0]);
    assert_eq!(
        seqs(&log.read(&other, 1, ALL).await.unwrap()),
        [1, 2, 3],
        "sessions do not disturb each other"
    );
    fill(log, "one", 1).await;
    assert_eq!(
        seqs(&log.read(&one, 1, ALL).await.unwrap()),
        [1],
        "a session by the same name begins anew"
    );
}

/// Keeps what may be kept, but for what is said.
fn keep() -> Keep {
    Keep {
        age: AGE,
        frames: 1_000,
        bytes: 1 << 20,
    }
}

fn aged(seconds: u64) -> Keep {
    Keep {
        age: Duration::from_secs(seconds),
        ..keep()
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A frame that was said at this time.
fn said_at(seconds: u64, seq: u64) -> Frame {
    Frame {
        timestamp: Some(at(seconds).into()),
        body: Body::Text(seq.to_string().into()),
        seq,
        ..Frame::default()
    }
}

/// What there is of the session `one`: its first seq, and all that can be read, from either side.
async fn left(log: &dyn Log) -> (u64, Vec<u64>) {
    let one: Str = "one".into();
    let page = log.read(&one, 1, ALL).await.unwrap();
    let back = log.read_back(&one, 1..u64::MAX, ALL).await.unwrap();
    assert_eq!((page.first, seqs(&page)), (back.first, seqs(&back)));
    (page.first, seqs(&page))
}

/// A session is kept as was said of it, for a store whose settings keep a thousand frames and a MiB of each session for the
/// time of `AGE`.
pub async fn keeps_as_told(log: &dyn Log) {
    keeps_so_many(log).await;
    keeps_so_many_bytes(log).await;
    keeps_what_is_young_when_it_appends(log).await;
    keeps_what_is_young_when_it_trims(log).await;
    keeps_nothing_and_goes_on(log).await;
    keeps_a_part_of_a_stretch(log).await;
    forgets_what_was_told_with_the_session(log).await;
}

async fn keeps_so_many(log: &dyn Log) {
    let (one, other): (Str, Str) = ("one".into(), "other".into());
    begin(log, "one");
    // Before there is any frame.
    log.retain(&one, Keep { frames: 4, ..keep() });
    assert_eq!(log.trim(&one, at(0)), 1);
    fill(log, "one", 10).await;
    fill(log, "other", 10).await;
    assert_eq!(left(log).await, (7, vec![7, 8, 9, 10]));
    assert_eq!(log.trim(&other, at(0)), 1, "sessions do not disturb each other");
    log.retain(&one, Keep { frames: 2, ..keep() });
    assert_eq!(log.trim(&one, at(0)), 9);
    assert_eq!(left(log).await, (9, vec![9, 10]));
    log.retain(&one, keep());
    assert_eq!(log.trim(&one, at(0)), 9, "what is gone does not come back");
    assert_eq!(append(log, &said_at(0, 11)).await, 9);
    assert_eq!(left(log).await, (9, vec![9, 10, 11]));
    gone(log, &one).await;
    gone(log, &other).await;
}

async fn keeps_so_many_bytes(log: &dyn Log) {
    let one: Str = "one".into();
    begin(log, "one");
    let bytes = 3 * Sealed::new(said_at(1, 1)).size();
    log.retain(&one, Keep { bytes, ..keep() });
    for seq in 1..=9 {
        append(log, &said_at(1, seq)).await;
    }
    assert_eq!(left(log).await, (7, vec![7, 8, 9]));
    log.retain(&one, Keep { bytes: 1, ..keep() });
    assert_eq!(log.trim(&one, at(1)), 9, "the newest stays, however large it is");
    assert_eq!(append(log, &said_at(1, 10)).await, 10);
    assert_eq!(left(log).await, (10, vec![10]));
    gone(log, &one).await;
}

async fn keeps_what_is_young_when_it_appends(log: &dyn Log) {
    let one: Str = "one".into();
    begin(log, "one");
    log.retain(&one, aged(10));
    for seq in 1..=5 {
        assert_eq!(append(log, &said_at(100 + seq, seq)).await, 1);
    }
    assert_eq!(append(log, &said_at(113, 6)).await, 3, "3 is just young enough");
    // The clock was set back: nothing is too old by it.
    assert_eq!(append(log, &said_at(50, 7)).await, 3);
    assert_eq!(append(log, &said_at(200, 8)).await, 8);
    assert_eq!(left(log).await, (8, vec![8]));
    gone(log, &one).await;
}

async fn keeps_what_is_young_when_it_trims(log: &dyn Log) {
    let one: Str = "one".into();
    begin(log, "one");
    log.retain(&one, aged(10));
    for seq in 1..=3 {
        append(log, &said_at(100 + seq, seq)).await;
    }
    // Only prefixes go: what is old by its timestamp, but came after what is not, stays.
    append(log, &said_at(50, 4)).await;
    append(log, &said_at(110, 5)).await;
    assert_eq!(log.trim(&one, at(111)), 1);
    assert_eq!(log.trim(&one, at(112)), 2);
    assert_eq!(log.trim(&one, at(112)), 2);
    assert_eq!(left(log).await, (2, vec![2, 3, 4, 5]));
    assert_eq!(log.trim(&one, at(0)), 2);
    assert_eq!(log.trim(&one, at(114)), 5);
    gone(log, &one).await;
    // What does not say when it was said is never too old.
    fill(log, "one", 2).await;
    log.retain(&one, aged(1));
    assert_eq!(log.trim(&one, at(1 << 30)), 1);
    gone(log, &one).await;
}

async fn keeps_nothing_and_goes_on(log: &dyn Log) {
    let one: Str = "one".into();
    begin(log, "one");
    log.retain(&one, aged(10));
    for seq in 1..=3 {
        append(log, &said_at(100, seq)).await;
    }
    assert_eq!(log.trim(&one, at(111)), 4);
    assert_eq!(left(log).await, (4, vec![]));
    assert_eq!(log.read(&one, 9, ALL).await.unwrap().first, 4);
    assert_eq!(log.trim(&one, at(222)), 4);
    log.fold(&one, "q", 1, 3);
    assert_eq!(append(log, &said_at(222, 4)).await, 4);
    assert_eq!(append(log, &said_at(223, 5)).await, 4);
    assert_eq!(left(log).await, (4, vec![4, 5]));
    gone(log, &one).await;
}

async fn keeps_a_part_of_a_stretch(log: &dyn Log) {
    let one: Str = "one".into();
    begin(log, "one");
    let source: Vec<Frame> = (1..=8).map(|seq| chunk(seq, "q", &seq.to_string())).collect();
    log.retain(&one, aged(10));
    for frame in &source {
        append(log, frame).await;
    }
    log.fold(&one, "q", 1, 8);
    assert_eq!(log.trim(&one, at(14)), 4);
    says_all(log, &source, 4).await;
    assert_eq!(log.trim(&one, at(19)), 9);
    says_all(log, &source, 9).await;
    gone(log, &one).await;
}

async fn forgets_what_was_told_with_the_session(log: &dyn Log) {
    let one: Str = "one".into();
    begin(log, "one");
    log.retain(&one, Keep { frames: 2, ..keep() });
    gone(log, &one).await;
    assert_eq!(log.trim(&one, at(0)), 1, "what is not there has nothing to trim");
    fill(log, "one", 5).await;
    assert_eq!(left(log).await, (1, vec![1, 2, 3, 4, 5]));
    gone(log, &one).await;
}

#[tokio::test]
async fn memory() {
    let plenty = Retention {
        age: AGE,
        frames: 100,
        bytes: 1 << 20,
        total_bytes: 1 << 20,
    };
    keeps_the_contract(&Memory::new(plenty)).await;
}

#[tokio::test]
async fn memory_keeps_as_told() {
    let Keep { age, frames, bytes } = keep();
    let log = Memory::new(Retention {
        age,
        frames,
        bytes,
        total_bytes: bytes,
    });
    keeps_as_told(&log).await;
    assert_eq!(log.bytes(), 0);
}

#[tokio::test]
async fn memory_keeps_frames_for_their_time() {
    let log = Memory::new(Retention {
        age: Duration::from_secs(10),
        frames: 100,
        bytes: 1 << 20,
        total_bytes: 1 << 20,
    });
    for seq in 1..=3 {
        append(&log, &said_at(100 + seq, seq)).await;
    }
    assert_eq!(append(&log, &said_at(113, 4)).await, 3);
    assert_eq!(log.trim(&"one".into(), at(124)), 5);
    assert_eq!(log.bytes(), 0);
}

#[tokio::test]
async fn memory_trims_whole_prefixes() {
    let log = Memory::new(Retention {
        age: AGE,
        frames: 4,
        bytes: 1 << 20,
        total_bytes: 1 << 20,
    });
    fill(&log, "one", 10).await;
    let page = log.read(&"one".into(), 1, ALL).await.unwrap();
    assert_eq!((page.first, seqs(&page)), (7, vec![7, 8, 9, 10]));
    let appended = log
        .append(&"one".into(), frame(11, "x").into())
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(appended.first, 8);
}

#[tokio::test]
async fn memory_stays_within_its_budget() {
    let size = frame(1, "1").size();
    let log = Memory::new(Retention {
        age: AGE,
        frames: 100,
        bytes: 1 << 30,
        total_bytes: 5 * size,
    });
    fill(&log, "one", 5).await;
    fill(&log, "one", 0).await;
    assert_eq!(log.bytes(), 5 * size);
    let refused = log.append(&"two".into(), frame(1, "1").into());
    assert!(refused.is_err(), "a session that has nothing to give up is refused");
    let appended = log
        .append(&"one".into(), frame(6, "6").into())
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(
        (appended.first, log.bytes()),
        (2, 5 * size),
        "one that has gives up its oldest"
    );
    gone(&log, "one").await;
    assert_eq!(log.bytes(), 0);
}

fn plenty() -> Memory {
    Memory::new(Retention {
        age: AGE,
        frames: 10_000,
        bytes: 1 << 24,
        total_bytes: 1 << 24,
    })
}

#[tokio::test]
async fn memory_folds_without_a_trace() {
    for seed in 0..20 {
        println!("seed {seed}");
        let log = plenty();
        folds_without_a_trace(&log, seed).await;
        assert_eq!(log.bytes(), 0, "seed {seed}");
        let tight = Memory::new(Retention {
            age: AGE,
            frames: 6 + seed as usize % 7,
            bytes: 1 << 24,
            total_bytes: 1 << 24,
        });
        folds_without_a_trace(&tight, seed).await;
        assert_eq!(tight.bytes(), 0, "seed {seed}");
        let brief = plenty();
        brief.retain(&"one".into(), aged(6 + seed % 7));
        folds_without_a_trace(&brief, seed).await;
        assert_eq!(brief.bytes(), 0, "seed {seed}");
    }
}

#[tokio::test]
async fn a_folded_stretch_is_one_frame() {
    let log = plenty();
    let final_frame = Frame {
        last: true,
        ..chunk(11, "q", "")
    };
    for seq in 1..=10 {
        append(&log, &chunk(seq, if seq == 6 { "r" } else { "q" }, "x")).await;
    }
    append(&log, &final_frame).await;
    log.fold(&"one".into(), "q", 1, 11);
    let page = log.read(&"one".into(), 3, ALL).await.unwrap();
    assert_eq!((page.first, seqs(&page)), (1, vec![5, 6, 10, 11]));
    assert_eq!(page.frames[0].folded_from, 3);
    let page = log.read_back(&"one".into(), 1..9, ALL).await.unwrap();
    assert_eq!(seqs(&page), [5, 6, 8]);
}

#[tokio::test]
async fn memory_keeps_folded_chunks_at_little_cost() {
    let log = plenty();
    for seq in 1..=1_000 {
        append(&log, &chunk(seq, "q", "token")).await;
    }
    let before = log.bytes();
    log.fold(&"one".into(), "q", 1, 1_000);
    let after = log.bytes();
    println!("1,000 chunks of 5 bytes: {before} bytes before, {after} after");
    assert!(after * 10 < before, "{before} before, {after} after");
    log.fold(&"one".into(), "q", 1, 1_000);
    assert_eq!(log.bytes(), after);
}

#[tokio::test]
async fn memory_counts_folded_chunks_as_one_and_trims_them_together() {
    let log = Memory::new(Retention {
        age: AGE,
        frames: 10,
        bytes: 1 << 20,
        total_bytes: 1 << 20,
    });
    for seq in 1..=10 {
        append(&log, &chunk(seq, "q", "x")).await;
    }
    log.fold(&"one".into(), "q", 1, 10);
    for seq in 11..=19 {
        assert_eq!(append(&log, &chunk(seq, "r", "x")).await, 1);
    }
    assert_eq!(append(&log, &chunk(20, "r", "x")).await, 11);
}
