//! What is counted from the start of the gateway.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::session::{Cause, Outcome};

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub requests: Counter,
    pub completed: Counter,
    pub failed: Counter,
    pub cancelled: Counter,
    pub expired: Counter,
    pub restarts: Counter,
    pub leases_expired: Counter,
    pub workers_lost: Counter,
    pub workers_replaced: Counter,
    pub resumed: Counter,
    pub fenced: Counter,
    pub credentials_refused: Counter,
    pub backups_failed: Counter,
}

impl Counters {
    /// A request ended.
    pub fn ended(&self, cause: Cause) {
        let counter = match cause.outcome() {
            Outcome::Completed => &self.completed,
            Outcome::Failed => &self.failed,
            Outcome::Cancelled => &self.cancelled,
            Outcome::Expired => &self.expired,
        };
        counter.count();
    }
}
