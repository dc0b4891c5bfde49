//! What is damaged on the disk is told, and never served: the start is refused, or the session that it hit, and no other.

use std::fs;
use std::path::{Path, PathBuf};

use fjall::{Database, KeyspaceCreateOptions};
use twinspan::error::Reason;
use twinspan::frame::{Control, Frame, pb};

use crate::harness::*;
use crate::process::{Home, Process};

fn from_the_start() -> pb::Join {
    pb::Join {
        after_seq: Some(0),
        ..pb::Join::default()
    }
}

async fn write(gateway: &Process, session: &str, seqs: std::ops::RangeInclusive<u64>) {
    let (mut ann, _) = gateway.member(Face::Json, session, pb::Join::default()).await;
    for seq in seqs {
        ann.send(text(session, &seq.to_string(), "as it was written")).await;
        assert_eq!(ann.acked(&seq.to_string()).await.seq, seq);
    }
}

fn flip(file: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(file).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 4;
    fs::write(file, bytes).unwrap();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_is_not_opened() {
    let home = Home::new();
    let gateway = home.start();
    write(&gateway, "s", 1..=20).await;
    gateway.kill();
    let journals = files(&home.dir.join("log"));
    let journal = journals
        .iter()
        .find(|path| path.extension().is_some_and(|end| end == "jnl"))
        .unwrap();
    let content = fs::read(journal).unwrap();
    let text = content.windows(6).position(|part| part == b"as it ").unwrap();
    flip(journal, |_| text);
    let (code, said) = home.refused();
    assert_eq!(code, 1, "{said}");
    for expected in [
        journal.to_str().unwrap(),
        "at byte",
        "twinspan check",
        "twinspan restore",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    // Nothing was changed by that.
    fs::write(journal, content).unwrap();
    let gateway = home.start();
    let (mut bob, _) = gateway.member(Face::Grpc, "s", from_the_start()).await;
    for seq in 1..=20 {
        assert_eq!(bob.logged().await.seq, seq);
    }
    gateway.stopped();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_session_disturbs_no_other() {
    let home = Home::new();
    let gateway = home.start();
    write(&gateway, "s", 1..=200).await;
    gateway.stopped();
    {
        // The gateway would do so after 32 MiB of frames.
        let database = Database::builder(home.dir.join("log")).open().unwrap();
        let frames = database.keyspace("frames", KeyspaceCreateOptions::default).unwrap();
        frames.rotate_memtable_and_wait().unwrap();
    }
    let gateway = home.start();
    write(&gateway, "t", 1..=20).await;
    gateway.kill();
    // The database's own tables are in the keyspace 0.
    let keyspaces = files(&home.dir.join("log/keyspaces"));
    let own = keyspaces.iter().filter(|path| !path.ends_with("0"));
    let tables: Vec<_> = own.flat_map(|path| files(&path.join("tables"))).collect();
    let [table] = &tables[..] else {
        panic!("there must be one table: {tables:?}")
    };
    // Its first half is frames, and nothing else.
    flip(table, |size| size / 4);

    let gateway = home.start();
    for face in [Face::Json, Face::Grpc] {
        let mut ann = gateway.peer(face).await;
        ann.control("s", Control::Join(from_the_start())).await;
        let refused = ann
            .until("a refusal", |frame| match &frame.body {
                twinspan::frame::Body::Error(error) => Some((**error).clone()),
                _ if frame.seq > 0 => panic!("it was served: {frame:?}"),
                _ => None,
            })
            .await;
        assert!(is(&refused, Reason::LogCorrupt), "{refused:?}");
        assert_eq!(refused.code(), pb::Code::DataLoss);
        // The same connection goes on with what is whole.
        let joined = ann.join("t", from_the_start()).await;
        assert!(joined.head_seq >= 20);
        for seq in 1..=20 {
            assert_eq!(ann.logged().await.seq, seq);
        }
        let id = format!("{face:?}");
        let more: Frame = text("t", &id, "more");
        ann.send(more).await;
        ann.acked(&id).await;
    }
    let list = pb::ListFramesRequest {
        session_id: "s".to_owned(),
        ..pb::ListFramesRequest::default()
    };
    let status = gateway.sessions().await.list_frames(list).await.unwrap_err();
    assert_eq!(reason_of(&status).as_deref(), Some("LOG_CORRUPT"), "{status:?}");
    gateway.stopped();
}
