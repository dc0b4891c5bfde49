//! What the store's threads and callers share: the database, the sessions in use, the queue, and whether all is well.
//!
//! The database can be taken away and brought back while sessions are in use: that is how the store heals. Whoever uses it
//! has a handle for as long, in a thread that may wait.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::Thread;
use std::time::Duration;

use super::Settings;
use super::base::Base;
use super::fold::Reply;
use super::series::Series;
use super::writer::{Queue, Work};
use crate::frame::Str;
use crate::log::Error;

const SHARDS: usize = 64;
/// How long those who read may take before the database is opened anew at some other time.
const READERS_TRIES: u32 = 200;
const READERS_PAUSE: Duration = Duration::from_millis(10);
/// Replies that wait to be folded.
const REPLIES: usize = 10_000;

/// The shared state.
pub(super) struct Shelf {
    pub settings: Settings,
    base: RwLock<Option<Arc<Base>>>,
    pub queue: Queue,
    shards: Vec<Mutex<HashMap<Str, Arc<Series>>>>,
    /// Of each shard, how many sessions were taken out of it.
    removals: Vec<AtomicU64>,
    hasher: RandomState,
    /// Numbers of sessions that are deleted, and whose deletion is not written yet.
    deleting: Mutex<HashSet<u64>>,
    next_number: AtomicU64,
    /// Why nothing can be written; it is asked for at each write, and seldom set.
    failure: Mutex<Option<Error>>,
    has_failed: AtomicBool,
    /// A write has failed since all was well last: what has queued since then cannot be written either.
    is_broken: AtomicBool,
    /// The sessions of which something was lost since.
    lost: Mutex<HashSet<u64>>,
    /// Sessions of which something is to be trimmed.
    full: Mutex<Vec<Arc<Series>>>,
    /// Replies whose chunks are to be folded.
    replies: Mutex<Vec<Reply>>,
    /// There are sessions that were deleted and not cleared.
    pub has_dead: AtomicBool,
    keeper: Mutex<Option<Thread>>,
    is_closed: AtomicBool,
}

impl Shelf {
    pub fn new(settings: Settings, base: Base, next_number: u64) -> Self {
        Self {
            settings,
            base: RwLock::new(Some(Arc::new(base))),
            queue: Queue::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            removals: (0..SHARDS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            deleting: Mutex::default(),
            next_number: AtomicU64::new(next_number),
            failure: Mutex::default(),
            has_failed: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
            lost: Mutex::default(),
            full: Mutex::default(),
            replies: Mutex::default(),
            has_dead: AtomicBool::new(true),
            keeper: Mutex::default(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// The database, unless it could not be opened anew. It is opened anew once nobody has it.
    pub fn base(&self) -> Result<Arc<Base>, Error> {
        let base = self.base.read().unwrap_or_else(PoisonError::into_inner);
        base.clone().ok_or_else(closed)
    }

    /// The same, unless that would have to be waited for.
    pub fn try_base(&self) -> Option<Arc<Base>> {
        self.base.try_read().ok()?.clone()
    }

    /// Has all who use the database wait.
    #[cfg(test)]
    pub fn base_mut_for_tests(&self) -> std::sync::RwLockWriteGuard<'_, Option<Arc<Base>>> {
        self.base.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database is not needed any more.
    pub fn take_base(&self) {
        drop(self.base.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Puts another database in the place of this one, which is closed first.
    pub fn reopen(&self, open: impl FnOnce() -> Result<Base, Error>) -> Result<(), Error> {
        for _ in 0..READERS_TRIES {
            let mut base = self.base.write().unwrap_or_else(PoisonError::into_inner);
            if base.as_ref().is_none_or(|base| Arc::strong_count(base) == 1) {
                drop(base.take());
                *base = Some(Arc::new(open()?));
                return Ok(());
            }
            // Those who come meanwhile are not kept waiting.
            drop(base);
            std::thread::sleep(READERS_PAUSE);
        }
        Err(Error::Unavailable("the database is still being read".to_owned()))
    }

    /// Does something with the database.
    pub fn with<T>(&self, act: impl FnOnce(&Base) -> Result<T, Error>) -> Result<T, Error> {
        act(&*self.base()?)
    }

    fn place(&self, session: &str) -> usize {
        self.hasher.hash_one(session) as usize % SHARDS
    }

    pub fn shard(&self, session: &str) -> MutexGuard<'_, HashMap<Str, Arc<Series>>> {
        let shard = &self.shards[self.place(session)];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session is not in use any more.
    pub fn remove(&self, session: &str) -> Option<Arc<Series>> {
        let mut shard = self.shard(session);
        self.removals[self.place(session)].fetch_add(1, Ordering::SeqCst);
        shard.remove(session)
    }

    /// Brings a session into use as it is on the disk, as `read` tells; nothing if there is none, or if it is in use already.
    pub fn bring<T>(
        &self,
        session: &Str,
        read: impl Fn() -> Result<Option<(Arc<Series>, T)>, Error>,
    ) -> Result<Option<T>, Error> {
        loop {
            let before = self.removals[self.place(session)].load(Ordering::SeqCst);
            let Some((series, found)) = read()? else {
                return Ok(None);
            };
            let mut shard = self.shard(session);
            if shard.contains_key(session) {
                return Ok(None);
            }
            // One that was in use meanwhile may be another one now.
            if self.removals[self.place(session)].load(Ordering::SeqCst) == before {
                shard.insert(session.clone(), series);
                return Ok(Some(found));
            }
        }
    }

    /// The session, which must be in use.
    pub fn series(&self, session: &str) -> Result<Arc<Series>, Error> {
        let found = self.shard(session).get(session).cloned();
        found.ok_or_else(|| Error::Unavailable(format!("session {session} is not in use")))
    }

    pub fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Why nothing can be written, if that is so.
    pub fn failure(&self) -> Option<Error> {
        match self.has_failed.load(Ordering::Acquire) {
            true => self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            false => None,
        }
    }

    pub fn check(&self) -> Result<(), Error> {
        self.failure().map_or(Ok(()), Err)
    }

    /// Why what was taken before cannot be written any more, if that is so. Where there is only too little room left, it can.
    pub fn breakdown(&self) -> Option<Error> {
        match self.is_broken.load(Ordering::Acquire) {
            true => self.failure().or_else(|| Some(closed())),
            false => None,
        }
    }

    /// A write failed: what was taken since is lost, and nothing more is taken.
    pub fn break_down(&self, error: &Error) {
        self.is_broken.store(true, Ordering::Release);
        self.fail(error);
    }

    /// Nothing more is taken from now on.
    pub fn fail(&self, error: &Error) {
        let before = self.set_failure(Some(error.clone()));
        if before.is_none() {
            tracing::error!(?error, "the log cannot be written; nothing more is taken until it can");
            self.wake_keeper();
        }
    }

    /// Something of the session was lost.
    pub fn lose(&self, number: u64) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
    }

    /// Whether something of the session was lost, and the database was not opened anew since.
    pub fn is_lost(&self, number: u64) -> bool {
        self.lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&number)
    }

    /// What is written reaches the disk again.
    pub fn mend(&self) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.is_broken.store(false, Ordering::Release);
    }

    /// All is well again.
    pub fn recover(&self) {
        if self.set_failure(None).is_some() {
            tracing::info!("the log can be written again");
        }
    }

    fn set_failure(&self, error: Option<Error>) -> Option<Error> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_failed.store(error.is_some(), Ordering::Release);
        std::mem::replace(&mut failure, error)
    }

    /// Adds work for the writer, if there is room for it.
    pub fn push(&self, work: Work) -> Result<(), Error> {
        self.queue.push(work, self.settings.queue_bytes)
    }

    pub fn deleting(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.deleting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These sessions are gone from the disk, though not their frames.
    pub fn deleted(&self, numbers: &[u64]) {
        if numbers.is_empty() {
            return;
        }
        self.undelete(numbers);
        self.has_dead.store(true, Ordering::Release);
        self.wake_keeper();
    }

    /// Has the keeper trim the session, if there is something to be trimmed.
    pub fn list_if_full(&self, series: &Arc<Series>) {
        if series.is_full() && series.list() {
            self.full
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Arc::clone(series));
            self.wake_keeper();
        }
    }

    /// Nobody waits any more for these to be deleted.
    pub fn undelete(&self, numbers: &[u64]) {
        let mut deleting = self.deleting();
        for number in numbers {
            deleting.remove(number);
        }
    }

    pub fn take_full(&self) -> Vec<Arc<Series>> {
        std::mem::take(&mut self.full.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the keeper fold the chunks of a reply. One that comes while too many wait stays as it is.
    pub fn add_reply(&self, reply: Reply) {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        if replies.len() < REPLIES {
            replies.push(reply);
        }
        drop(replies);
        self.wake_keeper();
    }

    pub fn take_replies(&self) -> Vec<Reply> {
        std::mem::take(&mut self.replies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set_keeper(&self, thread: Thread) {
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }

    pub fn wake_keeper(&self) {
        if let Some(keeper) = &*self.keeper.lock().unwrap_or_else(PoisonError::into_inner) {
            keeper.unpark();
        }
    }

    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.queue.close();
        self.wake_keeper();
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Waits for a while, or until there is something to do.
    pub fn pause(&self, pause: Duration) {
        if !self.is_closed() {
            std::thread::park_timeout(pause);
        }
    }
}

/// The database is being opened anew, or could not be.
fn closed() -> Error {
    Error::Unavailable("the database is not open".to_owned())
}
