//! What benches of single functions share: the CPU time of one call.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

const SAMPLES: usize = 21;
const SAMPLE: Duration = Duration::from_millis(8);

/// CPU time of this thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("the clock must be readable")
        .into()
}

/// The median cost of one call, in nanoseconds.
pub fn measure(mut work: impl FnMut()) -> f64 {
    let mut rounds = 1_u32;
    let mut time = |rounds: u32| {
        let start = cpu_time();
        (0..rounds).for_each(|_| work());
        cpu_time() - start
    };
    while time(rounds) < SAMPLE {
        rounds *= 2;
    }
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|_| time(rounds).as_nanos() as f64 / f64::from(rounds))
        .collect();
    samples.sort_by(f64::total_cmp);
    samples[SAMPLES / 2]
}
