//! Files that are read again when they have changed. Reading is bounded, and nothing here knows what a file means.

use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Who else may touch a file before somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privacy {
    /// Others may read it, not write it.
    Public,
    /// Others may do neither.
    Secret,
}

/// A file, and what it was when it was last read.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    privacy: Privacy,
    bytes: u64,
    seen: Mutex<Option<Mark>>,
}

/// What tells one state of a file from another without reading it.
type Mark = (u64, u64, u64, i64, i64);

fn mark(metadata: &Metadata) -> Mark {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

impl File {
    /// A file that holds at most so many bytes; it is not looked at yet.
    pub fn new(path: &Path, privacy: Privacy, bytes: u64) -> Self {
        Self {
            path: path.to_owned(),
            privacy,
            bytes,
            seen: Mutex::new(None),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds now. The error says which file it is.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        let wrong = |error: std::io::Error| self.wrong(&error.to_string());
        // Marked before it is read: what is written meanwhile is seen as a change.
        self.mark();
        let file = fs::File::open(&self.path).map_err(wrong)?;
        self.warn_of_others(&file.metadata().map_err(wrong)?);
        let mut held = Vec::new();
        file.take(self.bytes + 1).read_to_end(&mut held).map_err(wrong)?;
        if held.len() as u64 > self.bytes {
            return Err(self.wrong(&format!("has more than {} bytes", self.bytes)));
        }
        Ok(held)
    }

    /// What it holds now, as text.
    pub fn text(&self) -> Result<String, String> {
        String::from_utf8(self.read()?).map_err(|_| self.wrong("is not UTF-8"))
    }

    /// Whether it is another than the one that was read last. True once for each change.
    pub fn has_changed(&self) -> bool {
        let now = fs::metadata(&self.path).ok().as_ref().map(mark);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *seen, now) != now
    }

    /// Takes the file as it is now for read.
    pub fn mark(&self) {
        self.has_changed();
    }

    /// What is wrong with it, with its name.
    pub fn wrong(&self, what: &str) -> String {
        format!("{}: {what}", self.path.display())
    }

    fn warn_of_others(&self, metadata: &Metadata) {
        let others = match self.privacy {
            Privacy::Public => 0o022,
            Privacy::Secret => 0o077,
        };
        if metadata.is_file() && metadata.mode() & others != 0 {
            let (path, mode) = (self.path.display(), format!("{:o}", metadata.mode() & 0o777));
            tracing::warn!(%path, mode, "a file that gives access is open to others; chmod it to 600");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tests::Folder;

    #[test]
    fn a_change_is_seen_once() {
        let folder = Folder::new("files");
        let path = folder.write("a", "one");
        let file = File::new(&path, Privacy::Secret, 10);
        assert_eq!(file.text().unwrap(), "one");
        assert!(!file.has_changed());
        folder.write("a", "three");
        assert!(file.has_changed());
        assert!(!file.has_changed());
        fs::remove_file(&path).unwrap();
        assert!(file.has_changed());
        assert!(!file.has_changed());
        assert!(file.text().unwrap_err().contains(path.to_str().unwrap()));
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let folder = Folder::new("large");
        let path = folder.write("a", "0123456789");
        assert!(File::new(&path, Privacy::Public, 10).read().is_ok());
        let wrong = File::new(&path, Privacy::Public, 9).read().unwrap_err();
        assert!(wrong.ends_with("has more than 9 bytes"), "{wrong}");
    }
}
