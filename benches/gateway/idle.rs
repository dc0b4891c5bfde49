//! Browsers that say nothing: the memory and the CPU time that they cost the server.
//!
//! Every run has a server of its own, so that no memory is left over from an earlier one.

use std::time::{Duration, Instant};

use crate::fleet::{Browsers, Fleet, Message, Outgoing};
use crate::process::{Process, Server};
use crate::report::{self, Stats};
use crate::rpc::Backend;
use crate::traffic;
use crate::{Options, Result};

const MEMBERS: usize = 10_000;
const BRIDGE_MEMBERS: usize = 2_000;
const MAX_RUNS: u32 = 3;
const TARGET_BYTES: f64 = 4096.0;
const WARM_UP: usize = 10;
const SETTLE: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_secs(15);

pub fn measure(options: &Options) -> Result<()> {
    let runs = options.runs.min(MAX_RUNS);
    println!(
        "\nidle: {MEMBERS} browsers, each in a session of its own; {REST:?} of rest; bridge: {BRIDGE_MEMBERS} browsers"
    );
    println!(
        "{:10} {:>34} {:>10} {:>8} {:>44}",
        "", "bytes per browser", "target", "", "CPU us per browser and second of rest"
    );
    let mut ours = Vec::new();
    let mut bridge = Vec::new();
    for _ in 0..runs {
        if let Some(server) = options.gateway() {
            ours.push(gateway_run(&server)?);
        }
        bridge.push(bridge_run()?);
    }
    print("gateway", &ours, &format!("<= {TARGET_BYTES}"), TARGET_BYTES);
    print("bridge", &bridge, "", f64::INFINITY);
    Ok(())
}

struct Rest {
    bytes_per_browser: f64,
    cpu_us_per_browser_s: f64,
}

fn print(what: &str, rests: &[Rest], target: &str, target_bytes: f64) {
    let bytes = Stats::of(rests, |rest| rest.bytes_per_browser);
    let verdict = match target {
        "" => "",
        _ => report::verdict(bytes.median, target_bytes),
    };
    let cpu = Stats::of(rests, |rest| rest.cpu_us_per_browser_s);
    let (bytes, cpu) = (format!("{bytes:.0}"), cpu.to_string());
    println!("{what:10} {bytes:>34} {target:>10} {verdict:>8} {cpu:>44}");
}

fn gateway_run(server: &Server) -> Result<Rest> {
    let process = Process::start(server)?;
    let mut fleet = Fleet::new(process.address())?;
    traffic::join(&mut fleet, (0..WARM_UP).map(|place| format!("warm-{place}")))?;
    rest(&process, &mut fleet, |fleet| {
        traffic::join(fleet, (0..MEMBERS).map(|place| format!("s-{place}")))
    })
}

fn bridge_run() -> Result<Rest> {
    let (_backend, worker) = Backend::bridge_worker(1)?;
    let process = Process::start(&Server::Bridge { worker })?;
    let mut fleet = Fleet::new(process.address())?;
    let open = |fleet: &mut Fleet, browsers| -> Result<()> {
        for _ in 0..browsers {
            fleet.open("/", None)?;
        }
        Ok(())
    };
    open(&mut fleet, WARM_UP)?;
    rest(&process, &mut fleet, |fleet| open(fleet, BRIDGE_MEMBERS))
}

/// Opens the browsers and lets them rest.
fn rest(process: &Process, fleet: &mut Fleet, open: impl FnOnce(&mut Fleet) -> Result<()>) -> Result<Rest> {
    sleep(fleet, SETTLE)?;
    let before = process.resident_bytes()?;
    let others = fleet.len();
    open(fleet)?;
    sleep(fleet, SETTLE)?;
    let browsers = (fleet.len() - others) as f64;
    let cpu = process.cpu()?;
    sleep(fleet, REST)?;
    let cpu = process.cpu()? - cpu;
    // After the rest: what was only needed for opening may be given back, what heartbeats need is there.
    let grown = process.resident_bytes()?.saturating_sub(before);
    Ok(Rest {
        bytes_per_browser: grown as f64 / browsers,
        cpu_us_per_browser_s: cpu.as_secs_f64() * 1e6 / browsers / REST.as_secs_f64(),
    })
}

/// Lets the browsers do nothing but answer pings.
fn sleep(fleet: &mut Fleet, time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    fleet.run(&mut Sleepers { until }, time * 2)
}

struct Sleepers {
    until: Instant,
}

impl Browsers for Sleepers {
    fn message(&mut self, message: Message<'_>, _: &mut Outgoing) -> Result<()> {
        traffic::kind(message.text).map(|_| ())
    }

    fn tick(&mut self, _: Instant, _: &mut Outgoing) -> Option<Instant> {
        Some(self.until)
    }

    fn is_done(&self) -> bool {
        Instant::now() >= self.until
    }

    fn missing(&self) -> String {
        "time".into()
    }
}
