//! Browser to worker and back: many browsers, each in a session of its own, each with one request at a time.
//!
//! The gateway's browsers get more than the bridge's: the ack of the request, and the request itself as the session's log
//! has it. That is paid for and counted, too: a run ends when all of it has come.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::fleet::{Browsers, Fleet, Message, Outgoing};
use crate::process::{Process, Server};
use crate::report::{self, Sample};
use crate::rpc::{Answer, Backend};
use crate::traffic::{self, Kind, PAYLOAD, ROLE};
use crate::{Options, Result};

const FEW: usize = 64;
const MANY: usize = 512;
const STREAMED: u32 = 20;
const TRIPS: u64 = 12_288;
const STREAMED_TRIPS: u64 = 1_920;
const RUN_LIMIT: Duration = Duration::from_secs(60);

const ONE_TARGET: f64 = 0.5;
const STREAMED_TARGET: f64 = 0.25;
const MANY_TARGET: f64 = 1.3;

pub fn measure(options: &Options) -> Result<()> {
    report::head(
        &format!("round trip: browser, worker, browser; {} B of payload", PAYLOAD.len()),
        "trip",
    );
    one_reply(options)?;
    streamed(options)
}

fn one_reply(options: &Options) -> Result<()> {
    let mut few = options
        .gateway()
        .map(|server| Town::gateway(&server, FEW, 1))
        .transpose()?;
    let mut many = options
        .gateway()
        .map(|server| Town::gateway(&server, MANY, 1))
        .transpose()?;
    let mut bridge_few = Town::bridge(FEW, 1)?;
    let mut bridge_many = Town::bridge(MANY, 1)?;
    let mut ours_few = few.as_mut().map(|town| || town.run(TRIPS));
    let mut ours_many = many.as_mut().map(|town| || town.run(TRIPS));
    let samples = report::take_turns(
        options.runs,
        &mut [
            ours_few.as_mut().map(|side| side as report::Side),
            Some(&mut || bridge_few.run(TRIPS)),
            ours_many.as_mut().map(|side| side as report::Side),
            Some(&mut || bridge_many.run(TRIPS)),
        ],
    )?;
    let [few, bridge_few, many, bridge_many] = &samples[..] else {
        unreachable!("there must be as many samples as sides");
    };
    let many_browsers = format!("{MANY} browsers, 1 reply");
    report::line(
        &format!("{FEW} browsers, 1 reply"),
        few,
        ("bridge", bridge_few),
        ONE_TARGET,
    );
    report::line(&many_browsers, many, ("bridge", bridge_many), ONE_TARGET);
    report::line(&many_browsers, many, (&format!("at {FEW}"), few), MANY_TARGET);
    Ok(())
}

fn streamed(options: &Options) -> Result<()> {
    let mut gateway = options
        .gateway()
        .map(|server| Town::gateway(&server, FEW, STREAMED))
        .transpose()?;
    let mut bridge = Town::bridge(FEW, STREAMED)?;
    let mut ours = gateway.as_mut().map(|town| || town.run(STREAMED_TRIPS));
    let samples = report::take_turns(
        options.runs,
        &mut [
            ours.as_mut().map(|side| side as report::Side),
            Some(&mut || bridge.run(STREAMED_TRIPS)),
        ],
    )?;
    let what = format!("{FEW} browsers, {STREAMED} replies");
    report::line(&what, &samples[0], ("bridge", &samples[1]), STREAMED_TARGET);
    Ok(())
}

/// A server with its browsers and its worker.
struct Town {
    // Ends before the server does: workers would complain of its end.
    _backend: Backend,
    process: Process,
    fleet: Fleet,
    replies: u32,
    /// Whether the server acks requests and shows them to their sender, as the gateway does.
    keeps_log: bool,
    asked: u64,
}

impl Town {
    fn gateway(server: &Server, browsers: usize, replies: u32) -> Result<Self> {
        let process = Process::start(server)?;
        let backend = Backend::workers(process.address(), 1, Answer::Payload { replies })?;
        let mut fleet = Fleet::new(process.address())?;
        traffic::join(&mut fleet, (0..browsers).map(|place| format!("house-{place}")))?;
        Ok(Self {
            process,
            fleet,
            replies,
            keeps_log: true,
            asked: 0,
            _backend: backend,
        })
    }

    fn bridge(browsers: usize, replies: u32) -> Result<Self> {
        let (backend, worker): (_, SocketAddr) = Backend::bridge_worker(replies)?;
        let process = Process::start(&Server::Bridge { worker })?;
        let mut fleet = Fleet::new(process.address())?;
        for _ in 0..browsers {
            fleet.open("/", None)?;
        }
        Ok(Self {
            process,
            fleet,
            replies,
            keeps_log: false,
            asked: 0,
            _backend: backend,
        })
    }

    fn run(&mut self, trips: u64) -> Result<Sample> {
        let browsers = self.fleet.len();
        let mut asking = Asking {
            replies: self.replies,
            asked: &mut self.asked,
            to_ask: vec![trips / browsers as u64; browsers],
            had: vec![0; browsers],
            trips_due: trips,
            echoes_due: if self.keeps_log { trips } else { 0 },
            acks_due: if self.keeps_log { trips } else { 0 },
        };
        report::sample(&self.process, trips, || self.fleet.run(&mut asking, RUN_LIMIT))
    }
}

/// All browsers of a town.
struct Asking<'a> {
    replies: u32,
    asked: &'a mut u64,
    // By browser: requests to come, and replies had of the present one.
    to_ask: Vec<u64>,
    had: Vec<u32>,
    trips_due: u64,
    echoes_due: u64,
    acks_due: u64,
}

impl Asking<'_> {
    fn ask(&mut self, browser: usize, out: &mut Outgoing) {
        if self.to_ask[browser] == 0 {
            return;
        }
        self.to_ask[browser] -= 1;
        *self.asked += 1;
        let (id, payload) = (&self.asked, PAYLOAD.as_str());
        let request = format!(r#"{{"id":"msg-{id}","type":"query","to":{{"role":"{ROLE}"}},"payload":{payload}}}"#);
        out.text(browser, request.as_bytes());
    }

    fn take_reply(&mut self, message: &Message<'_>, out: &mut Outgoing) -> Result<()> {
        let browser = message.connection;
        self.had[browser] += 1;
        let is_last = self.had[browser] == self.replies;
        if traffic::is_final(message.text) != is_last {
            let (had, of) = (self.had[browser], self.replies);
            return Err(format!("reply {had} of {of}: final in the wrong place").into());
        }
        if is_last {
            self.had[browser] = 0;
            self.trips_due -= 1;
            self.ask(browser, out);
        }
        Ok(())
    }
}

impl Browsers for Asking<'_> {
    fn tick(&mut self, _: Instant, out: &mut Outgoing) -> Option<Instant> {
        for browser in 0..self.to_ask.len() {
            self.ask(browser, out);
        }
        None
    }

    fn message(&mut self, message: Message<'_>, out: &mut Outgoing) -> Result<()> {
        match traffic::kind(message.text)? {
            Kind::Delivery { .. } if traffic::is_reply(message.text) => self.take_reply(&message, out)?,
            Kind::Delivery { .. } => {
                let left = self.echoes_due.checked_sub(1);
                self.echoes_due = left.ok_or("a request was shown twice")?;
            }
            Kind::Ack { accepted } => {
                let left = self.acks_due.checked_sub(accepted);
                self.acks_due = left.ok_or("more acks than requests")?;
            }
            Kind::Joined | Kind::Other => {}
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.trips_due == 0 && self.echoes_due == 0 && self.acks_due == 0
    }

    fn missing(&self) -> String {
        format!(
            "{} trips, {} echoes, {} acks are missing",
            self.trips_due, self.echoes_due, self.acks_due
        )
    }
}
