//! Samples, medians, and the table.

use std::time::{Duration, Instant};

use crate::Result;
use crate::process::Process;

/// Work that goes on after the last byte has come (acks to workers, timers) belongs to the run as well.
const SETTLE: Duration = Duration::from_millis(30);

/// One run of one side.
#[derive(Clone, Copy)]
pub struct Sample {
    cpu_us_per_unit: f64,
    units_per_s: f64,
}

/// Runs `work`, which does `units` units, and takes the CPU time that it cost the server.
pub fn sample(process: &Process, units: u64, work: impl FnOnce() -> Result<()>) -> Result<Sample> {
    let units = units as f64;
    let cpu = process.cpu()?;
    let began = Instant::now();
    work()?;
    let wall = began.elapsed();
    std::thread::sleep(SETTLE);
    let cpu = process.cpu()? - cpu;
    Ok(Sample {
        cpu_us_per_unit: cpu.as_secs_f64() * 1e6 / units,
        units_per_s: units / wall.as_secs_f64(),
    })
}

/// One side of a comparison.
pub type Side<'a> = &'a mut dyn FnMut() -> Result<Sample>;

/// Lets the sides take turns, after one round that does not count. Returns the samples of each.
pub fn take_turns(runs: u32, sides: &mut [Option<Side<'_>>]) -> Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); sides.len()];
    for round in 0..=runs {
        for (side, samples) in sides.iter_mut().zip(&mut samples) {
            if let Some(side) = side {
                let sample = side()?;
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
    }
    Ok(samples)
}

/// Prints the head of a table.
pub fn head(title: &str, unit: &str) {
    println!("\n{title}");
    println!(
        "{:34} {:>24}  {:>34}  {:>7} {:>8} {:>8}  {:>11} {:>11}",
        "",
        format!("CPU us per {unit}"),
        "yardstick",
        "ratio",
        "target",
        "",
        "per second",
        "yardstick"
    );
}

/// Prints one line: what it cost, what the yardstick cost, and whether their ratio is at most `target`.
pub fn line(what: &str, ours: &[Sample], yardstick: (&str, &[Sample]), target: f64) {
    let (name, yardstick) = yardstick;
    let ratio = Stats::of(ours, |sample| sample.cpu_us_per_unit).median
        / Stats::of(yardstick, |sample| sample.cpu_us_per_unit).median;
    println!(
        "{what:34} {:>24}  {:>34}  {:>7} {:>8} {:>8}  {:>11} {:>11}",
        cost(ours),
        format!("{name} {}", cost(yardstick)),
        figure(ratio, 2),
        format!("<= {target}"),
        verdict(ratio, target),
        rate(ours),
        rate(yardstick),
    );
}

/// `ok`, `MISSED`, or nothing where there is no figure.
pub fn verdict(figure: f64, target: f64) -> &'static str {
    match figure {
        figure if figure.is_nan() => "",
        figure if figure <= target => "ok",
        _ => "MISSED",
    }
}

fn cost(samples: &[Sample]) -> String {
    Stats::of(samples, |sample| sample.cpu_us_per_unit).to_string()
}

fn rate(samples: &[Sample]) -> String {
    figure(Stats::of(samples, |sample| sample.units_per_s).median, 0)
}

fn figure(figure: f64, digits: usize) -> String {
    match figure {
        figure if figure.is_nan() => "-".into(),
        figure => format!("{figure:.digits$}"),
    }
}

/// Prints the head of a table of waits.
pub fn latency_head(title: &str) {
    println!("\n{title}");
    println!(
        "{:52} {:>8} {:>10} {:>10} {:>10}",
        "", "samples", "p50 us", "p99 us", "max us"
    );
}

/// Prints one line of it.
pub fn latency_line(what: &str, waits: &[Duration]) {
    let mut waits = waits.to_vec();
    waits.sort_unstable();
    let at = |percent: usize| {
        let place = (waits.len() * percent / 100).min(waits.len().saturating_sub(1));
        waits.get(place).map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e6)
    };
    println!(
        "{what:52} {:>8} {:>10} {:>10} {:>10}",
        waits.len(),
        figure(at(50), 0),
        figure(at(99), 0),
        figure(at(100), 0),
    );
}

/// The median of some figures, and their range.
pub struct Stats {
    pub median: f64,
    min: f64,
    max: f64,
}

impl Stats {
    pub fn of<T>(samples: &[T], figure: impl Fn(&T) -> f64) -> Self {
        let mut figures: Vec<f64> = samples.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        let at = |place: usize| figures.get(place).copied().unwrap_or(f64::NAN);
        let middle = figures.len() / 2;
        let median = match figures.len().is_multiple_of(2) {
            true => f64::midpoint(at(middle.wrapping_sub(1)), at(middle)),
            false => at(middle),
        };
        Self {
            median,
            min: at(0),
            max: at(figures.len().wrapping_sub(1)),
        }
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.median.is_nan() {
            return f.write_str("-");
        }
        let digits = f.precision().unwrap_or(2);
        let Self { median, min, max } = self;
        write!(f, "{median:.digits$} ({min:.digits$}..{max:.digits$})")
    }
}
