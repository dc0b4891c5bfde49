//! `twinspan check`: what it says of a data directory that is sound, damaged, mended, or none.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use twinspan::frame::{Body, Frame, Sealed, Str};
use twinspan::log::{Disk, Durability, Entry, Keep, Log, Settings};

/// A data directory that is gone when this is.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A directory with a session of five frames, each written by itself.
async fn folder() -> Folder {
    let dir = std::env::temp_dir().join(format!("twinspan-check-command-{}", std::process::id()));
    fs::remove_dir_all(&dir).ok();
    let settings = Settings {
        dir: dir.clone(),
        durability: Durability::Durable,
        keep: Keep {
            age: Duration::from_secs(1 << 30),
            frames: 100,
            bytes: 1 << 20,
        },
        min_free_bytes: 1,
        queue_bytes: 1 << 20,
        cache_bytes: 1 << 20,
        epoch: "another-life".to_owned(),
    };
    let (log, _) = Disk::open(settings).unwrap();
    let session: Str = "one".into();
    log.create(&session, bytes::Bytes::new(), 1).unwrap();
    for seq in 1..=5 {
        let frame = Frame {
            seq,
            session_id: session.clone(),
            body: Body::Text(format!("this is frame {seq}").into()),
            ..Frame::default()
        };
        log.append(&session, Entry::from(Arc::new(Sealed::new(frame)))).unwrap();
        log.flush().await.unwrap();
    }
    Folder(dir)
}

fn check(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinspan"));
    command.arg("check").arg("--data-dir").arg(dir).args(arguments);
    command.output().unwrap()
}

fn says(output: &Output, exit: i32) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{text}");
    text
}

/// Flips a bit in the text of the third frame.
fn damage(dir: &Path) {
    let journal = dir.join("log/0.jnl");
    let bytes = fs::read(&journal).unwrap();
    let at = memchr::memmem::find(&bytes, b"this is frame 3").unwrap();
    let file = OpenOptions::new().write(true).open(&journal).unwrap();
    file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
}

#[tokio::test]
async fn a_data_directory_is_checked_and_mended() {
    let folder = folder().await;
    let dir = &folder.0;
    let text = says(&check(dir, &[]), 0);
    assert!(
        text.contains("frames     5\n") && text.contains("nothing is wrong\n"),
        "{text}"
    );
    let text = says(&check(dir, &["--repair"]), 0);
    assert!(text.contains("nothing was changed"), "{text}");

    damage(dir);
    let text = says(&check(dir, &[]), 1);
    assert!(
        text.contains("0.jnl, at byte ") && text.contains("twinspan check --repair"),
        "{text}"
    );
    let text = says(&check(dir, &["--json"]), 1);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found["findings"]["count"], 1);
    let text = says(&check(dir, &["--repair"]), 0);
    assert!(
        text.contains("log.damaged-") && text.contains("session one (number 1), frame 3: the frame 3 is missing"),
        "{text}"
    );
    let text = says(&check(dir, &["--json"]), 0);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&found["sound"], &found["frames"]), (&true.into(), &5.into()));
}

#[test]
fn a_directory_that_is_none_is_no_finding() {
    let dir = std::env::temp_dir().join(format!("twinspan-check-none-{}", std::process::id()));
    let text = says(&check(&dir, &[]), 2);
    assert!(
        text.contains("there is no such directory") && text.contains("--data-dir"),
        "{text}"
    );
    assert!(!dir.exists());
}
