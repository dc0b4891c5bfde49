//! How long to wait before another try.

use std::time::Duration;

use super::{Error, random};

const FIRST_CEILING_MS: u64 = 500;
const LAST_CEILING_MS: u64 = 15_000;
/// Never less, so that no loop is a hot one.
const FLOOR_MS: u64 = 100;

/// Exponential backoff with full jitter: many clients that lost one gateway do not come back at the same moment.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after this failure; each is likely longer than the last.
    pub fn after(&mut self, error: &Error) -> Duration {
        let wait = jitter(self.failures, random());
        self.failures = self.failures.saturating_add(1);
        error.retry_after.unwrap_or_default() + wait
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

fn jitter(failures: u32, random: u64) -> Duration {
    let ceiling_ms = FIRST_CEILING_MS
        .saturating_mul(1 << failures.min(16))
        .min(LAST_CEILING_MS);
    Duration::from_millis(FLOOR_MS + random % (ceiling_ms - FLOOR_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_never_nothing_and_never_endless() {
        for failures in [0, 1, 5, 16, 17, u32::MAX] {
            for random in [0, 1, 12_345, u64::MAX] {
                let wait = jitter(failures, random);
                assert!(wait >= Duration::from_millis(FLOOR_MS), "{wait:?}");
                assert!(wait < Duration::from_millis(LAST_CEILING_MS), "{wait:?}");
            }
        }
    }

    #[test]
    fn the_ceiling_rises() {
        let highest = |failures| (0..20_000).map(|random| jitter(failures, random)).max().unwrap();
        assert!(highest(0) < highest(1) && highest(1) < highest(4));
    }

    #[test]
    fn what_the_gateway_asks_for_is_kept() {
        let mut error = Error::usage("");
        error.retry_after = Some(Duration::from_secs(60));
        assert!(Backoff::default().after(&error) > Duration::from_secs(60));
    }
}
