//! Rates: how much of something may come in a second, kept as one number (the generic cell rate algorithm).
//!
//! Pure: what time it is, everybody says who asks. A bucket must never let through more than its burst at once, nor more than
//! its rate in the long run.

use std::time::Duration;

/// How fast, and how much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_second: u64,
    burst: Duration,
}

impl Rate {
    /// So many in a second, with a burst of so many seconds' worth.
    pub const fn new(per_second: u64, burst_seconds: u64) -> Self {
        Self {
            per_second: if per_second == 0 { 1 } else { per_second },
            burst: Duration::from_secs(burst_seconds),
        }
    }

    /// How many in a second.
    pub const fn per_second(self) -> u64 {
        self.per_second
    }

    fn span(self, cost: u64) -> Duration {
        // Eighteen thousand million of anything at once is more than anybody lets through.
        Duration::from_nanos(cost.saturating_mul(1_000_000_000) / self.per_second)
    }
}

/// What one peer has used of a rate: the time at which all of it will have been paid for, in nanoseconds from whatever
/// beginning the callers count from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket(u64);

impl Bucket {
    /// What is to be paid for yet.
    pub fn debt(self, now: Duration) -> Duration {
        Duration::from_nanos(self.0).saturating_sub(now)
    }

    /// Whether so much may pass now, or else how long until then. What is larger than all of the burst may pass when nothing
    /// is owed.
    pub fn check(self, cost: u64, rate: Rate, now: Duration) -> Result<(), Duration> {
        let room = rate.burst.saturating_sub(rate.span(cost));
        match self.debt(now).saturating_sub(room) {
            Duration::ZERO => Ok(()),
            wait => Err(wait),
        }
    }

    /// Lets so much pass, whether it may or not.
    pub fn spend(&mut self, cost: u64, rate: Rate, now: Duration) {
        let paid = now + self.debt(now) + rate.span(cost);
        self.0 = u64::try_from(paid.as_nanos()).unwrap_or(u64::MAX);
    }

    /// Lets so much pass if it may; else says how long until it may.
    pub fn take(&mut self, cost: u64, rate: Rate, now: Duration) -> Result<(), Duration> {
        self.check(cost, rate, now)?;
        self.spend(cost, rate, now);
        Ok(())
    }

    /// Gives so much back.
    pub fn earn(&mut self, cost: u64, rate: Rate) {
        let span = u64::try_from(rate.span(cost).as_nanos()).unwrap_or(u64::MAX);
        self.0 = self.0.saturating_sub(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate::new(10, 2);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut bucket = Bucket::default();
        let passed = (0..100).filter(|_| bucket.take(1, RATE, ms(5_000)).is_ok()).count();
        assert_eq!(passed, 20);
        assert_eq!(bucket.take(1, RATE, ms(5_000)), Err(ms(100)));
        assert_eq!(bucket.take(1, RATE, ms(5_100)), Ok(()));
        assert_eq!(bucket.take(1, RATE, ms(5_100)), Err(ms(100)));
        let passed = (5_100..15_100)
            .filter(|at| bucket.take(1, RATE, ms(*at)).is_ok())
            .count();
        assert_eq!(passed, 99);
    }

    #[test]
    fn what_is_refused_costs_nothing() {
        let mut bucket = Bucket::default();
        bucket.take(20, RATE, ms(0)).unwrap();
        let before = bucket;
        assert_eq!(bucket.take(5, RATE, ms(0)), Err(ms(500)));
        assert_eq!(bucket, before);
    }

    #[test]
    fn what_is_larger_than_the_burst_passes_when_nothing_is_owed() {
        let mut bucket = Bucket::default();
        bucket.take(1, RATE, ms(0)).unwrap();
        assert_eq!(bucket.take(100, RATE, ms(0)), Err(ms(100)));
        assert_eq!(bucket.take(100, RATE, ms(100)), Ok(()));
        assert_eq!(bucket.debt(ms(100)), ms(10_000));
    }

    #[test]
    fn a_rest_does_not_add_up() {
        let mut bucket = Bucket::default();
        let passed = (0..100).filter(|_| bucket.take(1, RATE, ms(3_600_000)).is_ok()).count();
        assert_eq!(passed, 20);
    }

    #[test]
    fn what_is_given_back_can_be_spent_again() {
        let mut bucket = Bucket::default();
        bucket.take(20, RATE, ms(1_000)).unwrap();
        bucket.earn(3, RATE);
        assert_eq!((0..9).filter(|_| bucket.take(1, RATE, ms(1_000)).is_ok()).count(), 3);
    }
}
