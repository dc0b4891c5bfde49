//! The pace of a connection: how fast its peer sends, and what happens when that is too fast. A frame too many is refused, and
//! told when there is room again; who sends on regardless is disconnected.
//!
//! Pure: what time it is, the caller says.

use std::time::Duration;

use crate::error::{Reason, Refusal};
use crate::limits::{Bucket, Limits, Rate};

/// Seconds' worth that may come at once.
const BURST_SECONDS: u64 = 2;
/// How much of the burst is to be free again before more is sent: a hundredth of it would let one frame pass and refuse the next.
const ROOM: Duration = Duration::from_millis(200);
/// A rest that shows that the peer heard.
const REST: Duration = Duration::from_millis(100);
/// Refusals without a rest, after which the connection ends.
const PATIENCE: u16 = 200;

/// What a connection has sent of late.
#[derive(Debug, Default)]
pub(super) struct Pace {
    frames: Bucket,
    bytes: Bucket,
    refused: u16,
}

/// What is too fast.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TooFast {
    /// This frame is refused.
    Refuse(Refusal),
    /// The connection ends.
    End(Refusal),
}

/// Who is to keep to a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Client,
    Worker,
}

impl Pace {
    /// A frame of so many bytes came.
    pub fn frame(&mut self, bytes: usize, (who, limits): (Who, &Limits), now: Duration) -> Result<(), TooFast> {
        let (frames, frames_named, sizes, sizes_named) = match who {
            Who::Client => (
                limits.frames_per_second,
                "limits.frames_per_second",
                limits.bytes_per_second,
                "limits.bytes_per_second",
            ),
            Who::Worker => (
                limits.worker_frames_per_second,
                "limits.worker_frames_per_second",
                limits.worker_bytes_per_second,
                "limits.worker_bytes_per_second",
            ),
        };
        let of_frames = Rate::new(frames.into(), BURST_SECONDS);
        let of_bytes = Rate::new(sizes as u64, BURST_SECONDS);
        let (few, small) = (
            self.frames.check(1, of_frames, now),
            self.bytes.check(bytes as u64, of_bytes, now),
        );
        let most = Duration::from_secs(BURST_SECONDS) - REST;
        if self.frames.debt(now) <= most && self.bytes.debt(now) <= most {
            self.refused = 0;
        }
        let (wait, what, setting, limit) = match (few, small) {
            (Ok(()), Ok(())) => {
                self.frames.spend(1, of_frames, now);
                self.bytes.spend(bytes as u64, of_bytes, now);
                return Ok(());
            }
            (Err(wait), Ok(())) => (wait, "frames", frames_named, frames.into()),
            (Ok(()), Err(wait)) => (wait, "bytes", sizes_named, sizes as u64),
            (Err(one), Err(other)) => (one.max(other), "frames", frames_named, frames.into()),
        };
        self.refused += 1;
        let text = format!("more than {limit} {what} in a second: the frame was refused; send it again later");
        let refusal = Refusal::limit(Reason::RateLimited, text, (setting, limit)).after(wait.max(ROOM));
        match self.refused >= PATIENCE {
            true => Err(TooFast::End(refusal)),
            false => Err(TooFast::Refuse(refusal)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            frames_per_second: 1_000,
            bytes_per_second: 10_000,
            worker_frames_per_second: 10_000,
            worker_bytes_per_second: 100_000,
            ..Limits::default()
        }
    }

    const START: Duration = Duration::from_secs(1);

    #[test]
    fn a_peer_that_is_too_fast_is_refused_and_then_ended() {
        for (who, bytes, most, setting) in [
            (Who::Client, 1, 2_000, "limits.frames_per_second"),
            (Who::Client, 100, 200, "limits.bytes_per_second"),
            (Who::Worker, 1, 20_000, "limits.worker_frames_per_second"),
            (Who::Worker, 100, 2_000, "limits.worker_bytes_per_second"),
        ] {
            let (mut pace, limits) = (Pace::default(), limits());
            let mut send = || pace.frame(bytes, (who, &limits), START);
            for _ in 0..most {
                send().unwrap();
            }
            for _ in 1..PATIENCE {
                let Err(TooFast::Refuse(refusal)) = send() else {
                    panic!("not refused")
                };
                assert_eq!(refusal.details[1].1, setting);
                assert!(refusal.retry_after.is_some());
            }
            assert!(matches!(send(), Err(TooFast::End(_))));
        }
    }

    #[test]
    fn a_peer_that_waits_as_it_is_told_goes_on_for_ever() {
        let (mut pace, limits) = (Pace::default(), limits());
        let (mut now, mut accepted) = (START, 0);
        while accepted < 100_000 {
            match pace.frame(1, (Who::Client, &limits), now) {
                Ok(()) => accepted += 1,
                Err(TooFast::Refuse(refusal)) => now += refusal.retry_after.unwrap(),
                Err(TooFast::End(_)) => panic!("ended after {accepted}"),
            }
        }
        let rate = f64::from(accepted) / (now - START).as_secs_f64();
        assert!((900.0..1_100.0).contains(&rate), "{rate}");
    }

    #[test]
    fn one_that_only_ever_slows_down_a_little_is_ended() {
        let (mut pace, limits) = (Pace::default(), limits());
        let mut now = START;
        for _ in 0..100_000 {
            now += Duration::from_micros(500);
            if let Err(TooFast::End(_)) = pace.frame(1, (Who::Client, &limits), now) {
                return;
            }
        }
        panic!("it goes on for ever");
    }
}
