//! A disk that has no room, fails in the middle of a write, or cannot be written at all, and gets well again: nothing that was
//! acked is lost, reading goes on, and no restart is needed.
//!
//! Each test has a small file system in memory of its own. Its size is 256 MiB: the database makes its journals 64 MiB long,
//! though without content they take no room, and writes new ones before it removes old ones; with less, it could not be filled
//! and emptied again without the ballast alone deciding everything. Whoever runs this must be allowed to mount.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use twinspan::error::Reason;
use twinspan::frame::{Body, Control, Frame, pb};

use crate::account::Account;
use crate::harness::*;
use crate::process::{Home, Process};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;

/// A file system in memory, which goes with this.
struct Tiny(PathBuf);

impl Tiny {
    fn new() -> Self {
        let dir = data_dir();
        fs::create_dir_all(&dir).unwrap();
        let options = format!("size={SIZE},mode=0700");
        run("mount", &["-t", "tmpfs", "-o", &options, "twinspan-test"], &dir);
        Self(dir)
    }

    fn home(&self, min_free: u64) -> Home {
        Home::at(self.0.join("data"))
            .with("TWINSPAN_DISK_MIN_FREE", format!("{min_free}B"))
            .with("TWINSPAN_RETENTION_FRAMES", 10_000_000)
            .with("TWINSPAN_RETENTION_BYTES", "1GiB")
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Takes room until this is left, or as near to it as there is.
    fn fill_up_to(&self, left: u64) {
        let mut ballast = File::options().create(true).append(true).open(self.ballast()).unwrap();
        loop {
            let free = self.free().saturating_sub(left);
            let part = vec![1; free.min(MIB) as usize];
            if part.is_empty() || ballast.write_all(&part).is_err() {
                return;
            }
        }
    }

    fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn free(&self) -> u64 {
        let output = Command::new("df")
            .args(["-B1", "--output=avail"])
            .arg(&self.0)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().nth(1).unwrap().trim().parse().unwrap()
    }

    fn remount(&self, how: &str) {
        run("mount", &["-o", &format!("remount,{how}")], &self.0);
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        // A process that still has something open there does not keep it.
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

fn run(program: &str, arguments: &[&str], dir: &Path) {
    let output = Command::new(program).args(arguments).arg(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "this test needs a file system of its own, and {program} failed: {said}; run the tests as root, where mounting is \
         permitted (in a container: with the capability SYS_ADMIN)"
    );
}

async fn until_health(gateway: &Process, status: u16) {
    let mut now_and_then = tokio::time::interval(Duration::from_millis(20));
    let look = async {
        while health(gateway.address, "/readyz").await != status {
            now_and_then.tick().await;
        }
    };
    patiently("the health to change", look).await;
}

/// One who writes a session.
struct Writer {
    session: &'static str,
    size: usize,
    /// The number of the next frame.
    next: usize,
    /// Which were acked, and under which seqs.
    acked: BTreeMap<usize, u64>,
}

impl Writer {
    fn new(session: &'static str, size: usize) -> Self {
        Self {
            session,
            size,
            next: 0,
            acked: BTreeMap::new(),
        }
    }

    /// The same number is the same frame.
    fn frame(&self, number: usize) -> Frame {
        let content = format!("{number} {}", "x".repeat(self.size));
        text(self.session, &number.to_string(), &content)
    }

    async fn connect(&self, gateway: &Process, face: Face) -> Peer {
        let join = pb::Join {
            member_id: "ann".to_owned(),
            ..pb::Join::default()
        };
        gateway.member(face, self.session, join).await.0
    }

    /// Writes the next frame; whether it was acked, or why not. The connection must still be there.
    async fn write(&mut self, peer: &mut Peer) -> Result<(), pb::Error> {
        self.write_at_once(1, peer).await
    }

    /// Writes some frames at once; whether all were acked, or why one was not.
    async fn write_at_once(&mut self, count: usize, peer: &mut Peer) -> Result<(), pb::Error> {
        for number in self.next..self.next + count {
            peer.send(self.frame(number)).await;
        }
        self.next += count;
        let (mut answered, mut refused) = (0, None);
        while answered < count {
            let frame = peer.next().await;
            match (&frame.body, control(&frame)) {
                (Body::Error(error), _) if frame.seq == 0 => {
                    answered += 1;
                    refused = Some((**error).clone());
                }
                (_, Some(Control::Ack(ack))) => {
                    answered += ack.accepted.len();
                    let acked = |accepted: &pb::Accepted| (accepted.id.parse().unwrap(), accepted.seq);
                    self.acked.extend(ack.accepted.iter().map(acked));
                }
                _ => {}
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Writes so many frames at once, again and again, until one is refused.
    async fn write_until_refused(&mut self, count: usize, peer: &mut Peer) -> pb::Error {
        loop {
            if let Err(error) = self.write_at_once(count, peer).await {
                return error;
            }
        }
    }

    /// Everything that was acked is there.
    async fn check(&self, gateway: &Process) {
        for face in [Face::Json, Face::Grpc] {
            let all = pb::Join {
                after_seq: Some(0),
                ..pb::Join::default()
            };
            let (mut reader, joined) = gateway.member(face, self.session, all).await;
            let mut account = Account::default();
            let mut frames = Vec::new();
            while account.head < joined.head_seq {
                let frame = reader.logged().await;
                account.note(&frame);
                frames.push(frame);
            }
            for (number, seq) in &self.acked {
                let there = &frames[*seq as usize - 1];
                let sent = self.frame(*number);
                assert_eq!((there.seq, &there.id, &there.body), (*seq, &sent.id, &sent.body));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_little_room() {
    for (one, other) in [(Face::Json, Face::Grpc), (Face::Grpc, Face::Json)] {
        let tiny = Tiny::new();
        let gateway = tiny.home(64 * MIB).start();
        let mut ann = Writer::new("s", 1_000);
        let mut peer = ann.connect(&gateway, one).await;
        for _ in 0..20 {
            ann.write(&mut peer).await.unwrap();
        }
        let (mut bob, _) = gateway.member(other, "s", pb::Join::default()).await;
        tiny.fill_up_to(32 * MIB);
        let error = ann.write_until_refused(64, &mut peer).await;
        assert!(is(&error, Reason::LogFull), "{error:?}");
        assert_eq!(error.code(), pb::Code::ResourceExhausted);
        until_health(&gateway, 503).await;
        // Nobody was put out of the session.
        for member in [&mut peer, &mut bob] {
            member.control("", Control::Ping(pb::Ping::default())).await;
            let answer = member.until("the pong, and no end", |frame| match control(frame) {
                Some(Control::Left(left)) => panic!("put out: {left:?}"),
                Some(Control::Pong(_)) => Some(()),
                _ => None,
            });
            answer.await;
        }
        // Whoever reads goes on, and whoever comes is let in.
        ann.check(&gateway).await;
        let mut sessions = gateway.sessions().await;
        let create = pb::CreateRequest {
            session_id: "new".to_owned(),
            ..pb::CreateRequest::default()
        };
        let status = sessions.create(create.clone()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
        assert_eq!(reason_of(&status).as_deref(), Some("LOG_FULL"));

        tiny.empty();
        until_health(&gateway, 200).await;
        sessions.create(create).await.unwrap();
        ann.write(&mut peer).await.unwrap();
        let seq = *ann.acked.values().last().unwrap();
        bob.until("the frame", |frame| (frame.seq == seq).then_some(())).await;
        ann.check(&gateway).await;
        drop(gateway);
        let gateway = tiny.home(64 * MIB).start();
        ann.check(&gateway).await;
        gateway.stopped();
    }
}

/// Writes until the file system has no byte left, with the room that is left to it beside the ballast.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_room_at_all() {
    for (one, other, left) in [(Face::Json, Face::Grpc, MIB), (Face::Grpc, Face::Json, 0)] {
        let tiny = Tiny::new();
        let gateway = tiny.home(1).start();
        let mut quiet = Writer::new("quiet", 10);
        let mut quiet_peer = quiet.connect(&gateway, other).await;
        quiet.write(&mut quiet_peer).await.unwrap();
        let mut ann = Writer::new("s", 20_000);
        let mut peer = ann.connect(&gateway, one).await;
        for _ in 0..10 {
            ann.write(&mut peer).await.unwrap();
        }
        let (mut bob, _) = gateway.member(other, "s", pb::Join::default()).await;
        tiny.fill_up_to(left);
        // Refused, or taken and then lost.
        let error = ann.write_until_refused(if left == 0 { 1 } else { 16 }, &mut peer).await;
        assert!(
            is(&error, Reason::LogFull) || is(&error, Reason::LogUnavailable),
            "{error:?}"
        );
        until_health(&gateway, 503).await;
        // A session that nothing was taken of does not notice, but for being refused.
        let refused = quiet.write(&mut quiet_peer).await.unwrap_err();
        assert!(
            is(&refused, Reason::LogFull) || is(&refused, Reason::LogUnavailable),
            "{refused:?}"
        );

        tiny.empty();
        until_health(&gateway, 200).await;
        quiet.write(&mut quiet_peer).await.unwrap();
        quiet.check(&gateway).await;
        // Whoever was in the session whose write failed was told that it is out of it, and comes back.
        let told = [&mut peer, &mut bob];
        for member in told {
            member.control("", Control::Ping(pb::Ping::default())).await;
            let left = member
                .until("being out, or an answer", |frame| match control(frame) {
                    Some(Control::Left(left)) => Some(left.error.clone()),
                    Some(Control::Pong(_)) => Some(None),
                    _ => None,
                })
                .await;
            assert!(left.is_none_or(|error| error.retryable), "it can be tried again");
        }
        let mut peer = ann.connect(&gateway, other).await;
        for _ in 0..10 {
            ann.write(&mut peer).await.unwrap();
        }
        ann.check(&gateway).await;
        gateway.kill();
        let gateway = tiny.home(1).start();
        ann.check(&gateway).await;
        quiet.check(&gateway).await;
        gateway.stopped();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_can_only_be_read() {
    let tiny = Tiny::new();
    let gateway = tiny.home(1).start();
    let mut ann = Writer::new("s", 1_000);
    let mut peer = ann.connect(&gateway, Face::Json).await;
    for _ in 0..10 {
        ann.write(&mut peer).await.unwrap();
    }
    let (mut bob, _) = gateway
        .member(
            Face::Grpc,
            "s",
            pb::Join {
                after_seq: Some(0),
                ..pb::Join::default()
            },
        )
        .await;
    for seq in 1..=10 {
        assert_eq!(bob.logged().await.seq, seq);
    }
    // As long as files are open for writing, the system does not let it become so: no gateway that runs can see it.
    gateway.stopped();
    tiny.remount("ro");
    let (code, said) = tiny.home(1).refused();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("--data-dir") && said.contains("Read-only"), "{said}");
    tiny.remount("rw");
    let gateway = tiny.home(1).start();
    ann.check(&gateway).await;
    gateway.stopped();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_one_processs() {
    let home = Home::new();
    let gateway = home.start();
    let (code, said) = home.refused();
    assert_eq!(code, 1, "{said}");
    for expected in ["another process has it", "--data-dir", home.dir.to_str().unwrap()] {
        assert!(said.contains(expected), "{said}");
    }
    let mut ann = Writer::new("s", 10);
    let mut peer = ann.connect(&gateway, Face::Json).await;
    ann.write(&mut peer).await.unwrap();
    // However it ends, the next one can have it.
    gateway.kill();
    let gateway = home.start();
    ann.check(&gateway).await;
    gateway.stopped();
}
