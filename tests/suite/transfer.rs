//! Sessions out of a gateway and into another one: backups, and exports.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_stream::StreamExt;
use tonic::{Code, Status, Streaming};
use twinspan::error::Reason;
use twinspan::frame::{Body, Control, Frame, pb};
use twinspan::log::{Durability, backup};

use crate::harness::*;

async fn on_disk(dir: &Path) -> Gateway {
    Gateway::with(|config| {
        config.durability = Durability::Durable;
        config.data_dir = dir.to_owned();
    })
    .await
}

async fn in_memory() -> Gateway {
    Gateway::with(|config| config.durability = Durability::Memory).await
}

fn metadata(key: &str, value: &str) -> std::collections::HashMap<String, String> {
    [(key.to_owned(), value.to_owned())].into()
}

/// A session with an answer of many chunks, one with words about it, and one that is closed.
async fn fill(gateway: &Gateway) {
    let mut sessions = gateway.sessions().await;
    let labelled = pb::CreateRequest {
        session_id: "labelled".to_owned(),
        metadata: metadata("title", "ü"),
        labels: metadata("tier", "gold"),
        retention: Some(pb::Retention {
            max_frames: Some(50),
            ..pb::Retention::default()
        }),
    };
    sessions.create(labelled).await.unwrap();
    let mut ann = gateway.member(Face::Json, "asked", "ann").await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    ann.send(request("asked", "q", "brain")).await;
    let asked = worker
        .until("the request", |frame| (frame.attempt > 0).then(|| frame.clone()))
        .await;
    for at in 0..20 {
        worker.send(chunk(&asked, &format!("{at} "))).await;
    }
    worker.send(last(&asked, "end")).await;
    ann.answer("q").await;
    let mut bob = gateway.member(Face::Json, "closed", "bob").await;
    bob.send(text("closed", "1", "bye")).await;
    bob.acked("1").await;
    let close = pb::CloseRequest {
        session_id: "closed".to_owned(),
        ..pb::CloseRequest::default()
    };
    sessions.close(close).await.unwrap();
    // Trimmed at its beginning.
    let mut cy = gateway.member(Face::Grpc, "labelled", "cy").await;
    for at in 1..=60 {
        cy.send(text("labelled", &at.to_string(), "x")).await;
    }
    cy.acked("60").await;
}

async fn backup_of(gateway: &Gateway) -> Streaming<pb::BackupPiece> {
    let mut admin = gateway.admin().await;
    admin.backup(pb::BackupRequest {}).await.unwrap().into_inner()
}

async fn backed_up(gateway: &Gateway, to: &Path) -> backup::Contents {
    let mut pieces = backup_of(gateway).await;
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece.unwrap().data);
    }
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::write(to, bytes).unwrap();
    backup::verify(to).unwrap()
}

async fn exported(gateway: &Gateway, prefix: &str) -> Vec<pb::Exported> {
    let request = pb::ExportRequest {
        prefix: prefix.to_owned(),
    };
    let stream = gateway.admin().await.export(request).await.unwrap().into_inner();
    stream.collect::<Result<_, _>>().await.unwrap()
}

async fn import(gateway: &Gateway, entries: Vec<pb::Exported>) -> Result<pb::ImportResponse, Status> {
    let imported = gateway.admin().await.import(tokio_stream::iter(entries)).await;
    imported.map(tonic::Response::into_inner)
}

/// Name, state, first and newest seq.
type Outline = (String, i32, u64, u64);

/// Of an export, what an import keeps.
fn kept(entries: &[pb::Exported]) -> Vec<(Option<Outline>, Option<Frame>)> {
    let session = |exported: &pb::ExportedSession| {
        let session = exported.session.clone().unwrap();
        (session.session_id, session.state, session.first_seq, session.head_seq)
    };
    let both = |entry: &pb::Exported| (entry.session.as_ref().map(session), entry.frame.clone());
    entries.iter().map(both).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_backed_up_is_restored() {
    let (from, to) = (data_dir(), data_dir());
    let file = data_dir().join("backup");
    let gateway = on_disk(&from).await;
    fill(&gateway).await;
    let mut ann = gateway.member(Face::Json, "busy", "ann").await;
    ann.send(text("busy", "1", "x")).await;
    ann.acked("1").await;
    // Writes go on while it is made.
    let writing = async {
        for at in 2..=200 {
            ann.send(text("busy", &at.to_string(), "x")).await;
            ann.acked(&at.to_string()).await;
        }
    };
    let (contents, ()) = tokio::join!(backed_up(&gateway, &file), writing);
    assert_eq!(contents.sessions, 4);
    let before = exported(&gateway, "").await;
    gateway.stopped().await;

    assert_eq!(backup::restore(&file, &to, "another-life").unwrap(), contents);
    let gateway = on_disk(&to).await;
    let after = exported(&gateway, "").await;
    let others = |entries: &[pb::Exported]| {
        let busy = entries.iter().position(|entry| {
            let session = entry.session.as_ref().and_then(|exported| exported.session.as_ref());
            session.is_some_and(|session| session.session_id == "busy")
        });
        let busy = busy.unwrap();
        let next = entries[busy + 1..].iter().position(|entry| entry.session.is_some());
        let (mut rest, own) = (entries.to_vec(), busy + 1..busy + 1 + next.unwrap_or(0));
        let frames: Vec<_> = rest.drain(own).map(|entry| entry.frame.unwrap()).collect();
        rest.remove(busy);
        (kept(&rest), frames)
    };
    // What came after the backup is not there: whoever saw it is to be told.
    let epochs = after
        .iter()
        .filter_map(|entry| entry.session.as_ref()?.session.as_ref());
    assert!(epochs.clone().count() == 4 && epochs.clone().all(|session| session.epoch == "another-life"));
    let ((before, all), (after, some)) = (others(&before), others(&after));
    assert_eq!(before, after);
    assert_eq!(all[..some.len()], some, "of what was written meanwhile, the beginning");
    // It goes on where it was.
    let mut ann = gateway.member(Face::Json, "busy", "ann").await;
    ann.send(text("busy", "1", "x")).await;
    assert_eq!(ann.acked("1").await.seq, 1, "known again");
    gateway.stopped().await;

    let again = backup::restore(&file, &to, "another-life").unwrap_err().to_string();
    assert!(again.contains("sessions in it already"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_not_whole_is_refused() {
    let gateway = on_disk(&data_dir()).await;
    fill(&gateway).await;
    let file = data_dir().join("backup");
    backed_up(&gateway, &file).await;
    gateway.stopped().await;
    let whole = fs::read(&file).unwrap();
    let to = data_dir();
    let refused = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let refused = backup::restore(&file, &to, "another-life").unwrap_err().to_string();
        assert!(
            !to.join("log").exists() && refused.contains("nothing was changed"),
            "{refused}"
        );
        refused
    };
    for cut in (0..whole.len()).step_by(whole.len() / 50).chain([whole.len() - 1]) {
        refused(&whole[..cut]);
    }
    for at in (0..whole.len()).step_by(whole.len() / 50).chain([whole.len() - 1]) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        refused(&flipped);
    }
    assert!(refused(b"something else").contains("no backup"));
    assert!(refused(&[&whole[..], b"more"].concat()).contains("damaged"));
    fs::write(&file, &whole).unwrap();
    backup::restore(&file, &to, "another-life").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_imported() {
    let source = on_disk(&data_dir()).await;
    fill(&source).await;
    let entries = exported(&source, "").await;
    // The chunks come one by one, however they are kept.
    let chunks = entries.iter().filter_map(|entry| entry.frame.as_ref());
    let chunks: Vec<_> = chunks.filter(|frame| frame.reply_to == "q").collect();
    assert_eq!(chunks.len(), 21);
    assert!(chunks.iter().all(|chunk| chunk.folded_from == 0));

    for target in [on_disk(&data_dir()).await, in_memory().await] {
        let imported = import(&target, entries.clone()).await.unwrap();
        let frames = entries.iter().filter(|entry| entry.frame.is_some()).count();
        assert_eq!((imported.sessions, imported.frames), (3, frames as u64));
        assert_eq!(kept(&exported(&target, "").await), kept(&entries));
        // Other frames may have followed elsewhere: who was there before reads anew.
        let mut ann = target.peer(Face::Grpc).await;
        let before = entries[0]
            .session
            .as_ref()
            .and_then(|exported| exported.session.as_ref());
        let join = pb::Join {
            after_seq: Some(5),
            epoch: before.unwrap().epoch.clone(),
            ..pb::Join::default()
        };
        assert!(!ann.join("asked", join).await.resumed);
        let gap = ann.next().await;
        assert!(matches!(control(&gap), Some(Control::Gap(gap)) if gap.reason() == pb::GapReason::EpochChanged));
        assert_eq!(ann.logged().await.first_seq(), 1);
        let closed = text("closed", "2", "more");
        ann.send(closed).await;
        assert!(is(&ann.refusal().await, Reason::SessionClosed));
        let labelled = target.router.describe("labelled").await.unwrap();
        assert_eq!(
            (labelled.metadata, labelled.labels),
            (metadata("title", "ü"), metadata("tier", "gold"))
        );
        assert_eq!(labelled.retention.unwrap().max_frames, Some(50));
        // What is there is not touched.
        let refused = import(&target, entries.clone()).await.unwrap_err();
        assert_eq!(reason_of(&refused).as_deref(), Some("SESSION_EXISTS"));
        target.stopped().await;
    }
    assert_eq!(exported(&source, "clo").await.len(), 2);
    source.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_breaks_off_leaves_what_was_complete() {
    let source = in_memory().await;
    fill(&source).await;
    let entries = exported(&source, "").await;
    source.stopped().await;
    let second = entries
        .iter()
        .skip(1)
        .position(|entry| entry.session.is_some())
        .unwrap()
        + 1;
    let with = |change: &dyn Fn(&mut Frame)| {
        let mut entries = entries.clone();
        change(entries[second + 1].frame.as_mut().unwrap());
        entries
    };
    for (what, broken) in [
        ("a hole", with(&|frame| frame.seq += 1)),
        ("without a time", with(&|frame| frame.timestamp = None)),
        ("folded", with(&|frame| frame.folded_from = 1)),
        (
            "a control frame",
            with(&|frame| {
                frame.body = Body::Control(Box::new(Control::Ping(pb::Ping::default())));
            }),
        ),
        ("without its end", {
            let mut entries = entries.clone();
            entries.truncate(second + 1);
            let session = entries[second].session.as_mut().unwrap().session.as_mut().unwrap();
            session.head_seq = session.first_seq + 5;
            entries
        }),
        ("beyond all seqs", {
            let mut entries = entries.clone();
            let session = entries[second].session.as_mut().unwrap().session.as_mut().unwrap();
            session.first_seq = u64::MAX;
            entries
        }),
        ("nothing", {
            let mut entries = entries.clone();
            entries[second + 1] = pb::Exported::default();
            entries
        }),
    ] {
        let target = on_disk(&data_dir()).await;
        let refused = import(&target, broken).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused:?}");
        let is = kept(&exported(&target, "").await) == kept(&entries[..second]);
        assert!(is, "{what}");
        target.stopped().await;
    }
    let target = in_memory().await;
    let refused = import(&target, entries[1..].to_vec()).await.unwrap_err();
    assert!(refused.message().contains("session"), "{refused:?}");
    target.stopped().await;
}

fn backups(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "backup"));
    paths.sort();
    paths
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_are_made_on_a_schedule_and_the_newest_kept() {
    let dir = data_dir();
    let gateway = Gateway::with(|config| {
        config.durability = Durability::Durable;
        config.data_dir = data_dir();
        config.backup.dir = Some(dir.clone());
        // Their names tell seconds apart.
        config.backup.interval = Duration::from_millis(1_100);
        config.backup.keep = 2;
    })
    .await;
    let made = async |count: usize| {
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < count {
            seen.extend(backups(&dir));
            assert!(backups(&dir).len() <= 3, "two, and one that is about to go");
            tokio::task::yield_now().await;
        }
    };
    patiently("four backups", made(4)).await;
    gateway.stopped().await;
    let left = backups(&dir);
    assert_eq!(left.len(), 2);
    for path in left {
        backup::verify(&path).unwrap();
    }
}

#[tokio::test]
async fn an_import_may_take_longer_than_a_call_if_it_does_not_pause_as_long() {
    let from = Gateway::start().await;
    fill(&from).await;
    let entries = exported(&from, "labelled").await;
    from.stopped().await;
    let call = Duration::from_secs(2);
    let to = Gateway::with(|config| config.limits.call = call).await;
    let pieces = tokio_stream::iter(entries).throttle(call / 20);
    let imported = to.admin().await.import(pieces).await.unwrap().into_inner();
    assert_eq!((imported.sessions, imported.frames), (1, 50));
    to.stopped().await;
}

#[tokio::test]
async fn what_is_in_memory_only_has_no_backup() {
    let gateway = in_memory().await;
    let mut pieces = backup_of(&gateway).await;
    let refused = pieces.next().await.unwrap().unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("LOG_UNAVAILABLE"));
    gateway.stopped().await;
}
