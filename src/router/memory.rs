//! Memory in all: how much the process has, and whether that leaves room for anything new.
//!
//! What is new is refused before what is there dies. It never ends anything.

use std::fs;
use std::path::Path;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::{Inner, Router};
use crate::error::{Reason, Refusal};

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// Where the kernel tells what this process has.
const STATUS: &str = "/proc/self/status";

/// What the process may have, and whether it has more.
#[derive(Debug)]
pub(super) struct Memory {
    limit: usize,
    resident: AtomicUsize,
    is_short: AtomicBool,
}

impl Memory {
    /// With so many bytes, or what the machine can give, if that is less.
    pub fn new(wanted: usize) -> Self {
        let granted = granted(Path::new("/"));
        let limit = granted.map_or(wanted, |granted| wanted.min(granted / 10 * 9));
        if limit < wanted {
            tracing::info!(limit, wanted, "limits.memory is cut to nine tenths of what there is");
        }
        Self {
            limit,
            resident: AtomicUsize::new(0),
            is_short: AtomicBool::new(false),
        }
    }

    /// The process has so many bytes now. Once short, it is so until a twentieth is free again.
    fn note(&self, resident: usize) {
        self.resident.store(resident, Ordering::Relaxed);
        let was_short = self.is_short.load(Ordering::Relaxed);
        let enough = if was_short { self.limit / 20 * 19 } else { self.limit };
        let is_short = resident > enough;
        self.is_short.store(is_short, Ordering::Relaxed);
        match (was_short, is_short) {
            (false, true) => tracing::warn!(resident, limit = self.limit, "short of memory: nothing new is begun"),
            (true, false) => tracing::info!(resident, limit = self.limit, "there is memory again"),
            _ => {}
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        if !self.is_short.load(Ordering::Relaxed) {
            return Ok(());
        }
        let text = "the gateway is short of memory and begins nothing new; try again in a moment, or elsewhere";
        Err(Refusal::limit(Reason::Overloaded, text, ("limits.memory", self.limit as u64)).after(PERIOD))
    }
}

impl Router {
    /// Whether there is memory for anything new.
    pub fn check_memory(&self) -> Result<(), Refusal> {
        self.inner.memory.check()
    }

    /// The memory of the process, in bytes, as it was seen last, and what it may be.
    pub fn memory(&self) -> (usize, usize) {
        let memory = &self.inner.memory;
        (memory.resident.load(Ordering::Relaxed), memory.limit)
    }
}

/// Looks every second, until the router is gone or the kernel tells nothing.
pub(super) async fn watch(inner: Weak<Inner>) {
    let mut interval = tokio::time::interval(PERIOD);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let (Some(inner), Some(resident)) = (inner.upgrade(), resident()) else {
            return;
        };
        inner.memory.note(resident);
    }
}

fn resident() -> Option<usize> {
    kib(&fs::read_to_string(STATUS).ok()?, "VmRSS:")
}

/// A row of a table of the kernel's, in bytes.
fn kib(table: &str, row: &str) -> Option<usize> {
    let rest = table.lines().find_map(|line| line.strip_prefix(row))?;
    let kib: usize = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the control group or the machine has, whichever is less.
fn granted(root: &Path) -> Option<usize> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo").and_then(|table| kib(&table, "MemTotal:"));
    let groups = ["sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let group = groups.into_iter().find_map(|path| read(path)?.trim().parse().ok());
    machine.into_iter().chain(group).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_so_until_a_twentieth_is_free() {
        let memory = Memory {
            limit: 2_000,
            resident: AtomicUsize::new(0),
            is_short: AtomicBool::new(false),
        };
        for (resident, is_short) in [
            (1_000, false),
            (2_000, false),
            (2_001, true),
            (1_950, true),
            (1_901, true),
            (1_900, false),
            (1_950, false),
        ] {
            memory.note(resident);
            assert_eq!(memory.check().is_err(), is_short, "{resident}");
        }
        memory.note(3_000);
        let refusal = memory.check().unwrap_err();
        assert_eq!(refusal.reason, Reason::Overloaded);
        assert_eq!(refusal.retry_after, Some(PERIOD));
        assert_eq!(refusal.details[1], ("setting", "limits.memory".to_owned()));
    }

    #[test]
    fn the_kernels_tables_are_read() {
        let table = "VmPeak:\t  10 kB\nVmRSS:\t    1234 kB\nThreads:\t2\n";
        assert_eq!(kib(table, "VmRSS:"), Some(1234 * 1024));
        assert_eq!(kib(table, "Threads:"), None);
        assert_eq!(kib("", "VmRSS:"), None);
        if Path::new(STATUS).exists() {
            assert!(resident().is_some_and(|bytes| bytes > 1 << 20));
        }
        assert_eq!(granted(Path::new("/nowhere")), None);
    }
}
