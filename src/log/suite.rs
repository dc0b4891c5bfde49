//! What every store has to do, whatever it is: one list of cases.

use std::sync::Arc;

use super::{Commit, Limit, Log, Memory, Page, Retention};
use crate::frame::{Body, Frame, Sealed, Str};

const ALL: Limit = Limit {
    frames: usize::MAX,
    bytes: usize::MAX,
};

fn frame(seq: u64, text: &str) -> Arc<Sealed> {
    Arc::new(Sealed::new(Frame {
        seq,
        body: Body::Text(text.into()),
        ..Frame::default()
    }))
}

async fn fill(log: &dyn Log, session: &str, count: u64) {
    for seq in 1..=count {
        let appended = log
            .append(&session.into(), &frame(seq, &seq.to_string()))
            .unwrap_or_else(|error| panic!("{error:?}"));
        if let Commit::Later(wait) = appended.commit {
            wait.await.unwrap();
        }
    }
}

fn seqs(page: &Page) -> Vec<u64> {
    page.frames.iter().map(|frame| frame.frame().seq).collect()
}

/// A store that keeps at least ten frames of a session.
pub async fn keeps_the_contract(log: &dyn Log) {
    let (one, other): (Str, Str) = ("one".into(), "other".into());
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
    assert_eq!(seqs(&log.read_back(&one, 4, two).await.unwrap()), [3, 4]);
    assert_eq!(seqs(&log.read_back(&one, 1, two).await.unwrap()), [1]);
    assert_eq!(seqs(&log.read_back(&one, 99, two).await.unwrap()), [9, 10]);

    let tight = Limit {
        frames: usize::MAX,
        bytes: 1,
    };
    assert_eq!(
        seqs(&log.read(&one, 4, tight).await.unwrap()),
        [4],
        "a page is never empty unless there is nothing"
    );

    log.delete(&one);
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

#[tokio::test]
async fn memory() {
    let plenty = Retention {
        frames: 100,
        bytes: 1 << 20,
        total_bytes: 1 << 20,
    };
    keeps_the_contract(&Memory::new(plenty)).await;
}

#[tokio::test]
async fn memory_trims_whole_prefixes() {
    let log = Memory::new(Retention {
        frames: 4,
        bytes: 1 << 20,
        total_bytes: 1 << 20,
    });
    fill(&log, "one", 10).await;
    let page = log.read(&"one".into(), 1, ALL).await.unwrap();
    assert_eq!((page.first, seqs(&page)), (7, vec![7, 8, 9, 10]));
    let appended = log
        .append(&"one".into(), &frame(11, "x"))
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(appended.first, 8);
}

#[tokio::test]
async fn memory_stays_within_its_budget() {
    let size = frame(1, "1").size();
    let log = Memory::new(Retention {
        frames: 100,
        bytes: 1 << 30,
        total_bytes: 5 * size,
    });
    fill(&log, "one", 5).await;
    fill(&log, "one", 0).await;
    assert_eq!(log.bytes(), 5 * size);
    let refused = log.append(&"two".into(), &frame(1, "1"));
    assert!(refused.is_err(), "a session that has nothing to give up is refused");
    let appended = log
        .append(&"one".into(), &frame(6, "6"))
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(
        (appended.first, log.bytes()),
        (2, 5 * size),
        "one that has gives up its oldest"
    );
    log.delete(&"one".into());
    assert_eq!(log.bytes(), 0);
}
