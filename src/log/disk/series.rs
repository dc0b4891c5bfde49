//! A session's log while it is in use: how far it goes, what of it is durable, and how much of it is to be kept.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::frame::Str;
use crate::log::{Error, Keep, Settled};

/// One session in use. Its caller appends one at a time; the writer and the keeper change the rest.
#[derive(Debug)]
pub(super) struct Series {
    pub name: Str,
    pub number: u64,
    /// The newest frame that was taken.
    head: AtomicU64,
    /// The newest frame that is durable.
    committed: AtomicU64,
    /// The oldest frame that is to be read.
    first: AtomicU64,
    /// The oldest frame that may be on the disk.
    cleaned: AtomicU64,
    /// Bytes of all records that were written, and of those that were trimmed.
    written: AtomicU64,
    trimmed: AtomicU64,
    terms: Mutex<Terms>,
    /// What was taken is lost: nothing more is taken.
    is_broken: AtomicBool,
    /// The keeper has it on its list.
    is_listed: AtomicBool,
}

/// How much of a session is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub keep: Keep,
    /// What was said before this is too old.
    pub cutoff: Option<SystemTime>,
    /// When the oldest frame was said, if that was looked at.
    pub oldest: Option<SystemTime>,
}

/// How far a session's log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub first: u64,
    pub head: u64,
    /// Bytes of the records before `first`, and of all.
    pub trimmed: u64,
    pub written: u64,
}

impl Default for Reach {
    /// Of an empty log.
    fn default() -> Self {
        Self {
            first: 1,
            head: 0,
            trimmed: 0,
            written: 0,
        }
    }
}

impl Series {
    pub fn new(name: Str, number: u64, reach: Reach, keep: Keep) -> Self {
        Self {
            name,
            number,
            head: AtomicU64::new(reach.head),
            committed: AtomicU64::new(reach.head),
            first: AtomicU64::new(reach.first),
            cleaned: AtomicU64::new(reach.first),
            written: AtomicU64::new(reach.written),
            trimmed: AtomicU64::new(reach.trimmed),
            terms: Mutex::new(Terms {
                keep,
                cutoff: None,
                oldest: None,
            }),
            is_broken: AtomicBool::new(false),
            is_listed: AtomicBool::new(false),
        }
    }

    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub fn first(&self) -> u64 {
        self.first.load(Ordering::Acquire)
    }

    /// The next frame was taken; the oldest one that is kept.
    pub fn take(&self, seq: u64) -> u64 {
        debug_assert_eq!(seq, self.head() + 1, "appended in order");
        self.head.store(seq, Ordering::Release);
        let first = (seq + 1).saturating_sub(self.terms().keep.frames as u64);
        self.trim_to(first);
        self.first()
    }

    pub fn terms(&self) -> MutexGuard<'_, Terms> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is something to be trimmed that is worth a look.
    pub fn is_full(&self) -> bool {
        let terms = *self.terms();
        // Not for every single frame.
        let slack = (terms.keep.frames as u64 / 64).min(256);
        let is_old = terms
            .cutoff
            .is_some_and(|cutoff| terms.oldest.is_none_or(|oldest| oldest < cutoff));
        self.first().saturating_sub(self.oldest()) > slack || self.kept_bytes() > terms.keep.bytes as u64 || is_old
    }

    /// Everything up to `seq` is durable.
    pub fn commit(&self, seq: u64) {
        self.committed.fetch_max(seq, Ordering::AcqRel);
    }

    /// How far it is settled.
    pub fn settled(&self, result: Result<(), Error>) -> Settled {
        Settled {
            session: self.name.clone(),
            life: self.number,
            seq: self.committed(),
            first: self.first(),
            result,
        }
    }

    /// A record is about to be written; how many bytes were before it.
    pub fn write(&self, bytes: u64) -> u64 {
        self.written.fetch_add(bytes, Ordering::AcqRel)
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Bytes of what is kept.
    pub fn kept_bytes(&self) -> u64 {
        self.written().saturating_sub(self.trimmed.load(Ordering::Acquire))
    }

    /// Nothing before this is to be read any more.
    pub fn trim_to(&self, first: u64) {
        self.first.fetch_max(first, Ordering::AcqRel);
    }

    /// Nothing before `seq` is on the disk any more, which was so many bytes of all.
    pub fn cleaned(&self, seq: u64, trimmed: u64) {
        self.cleaned.fetch_max(seq, Ordering::AcqRel);
        self.trimmed.fetch_max(trimmed, Ordering::AcqRel);
    }

    /// The oldest frame that may be on the disk.
    pub fn oldest(&self) -> u64 {
        self.cleaned.load(Ordering::Acquire)
    }

    pub fn break_down(&self) {
        self.is_broken.store(true, Ordering::Release);
    }

    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    /// It is to be listed for the keeper; whether it was not.
    pub fn list(&self) -> bool {
        !self.is_listed.swap(true, Ordering::AcqRel)
    }

    pub fn unlist(&self) {
        self.is_listed.store(false, Ordering::Release);
    }
}
