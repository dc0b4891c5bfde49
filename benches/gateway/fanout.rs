//! One session of many browsers: what a delivery costs, frame by frame and in bursts.
//!
//! The publisher is one more browser of the session. It sends its next frame, or burst, when every receiver has the last.
//! Deliveries to the publisher itself and its acks are not counted as work, but they are paid for.

use std::cell::Cell;
use std::time::Duration;

use crate::fleet::{Browsers, Fleet, Message, Outgoing};
use crate::process::{Process, Server};
use crate::report::{self, Sample};
use crate::traffic::{self, Kind, PAYLOAD};
use crate::{Options, Result, raw, websocket};

const RECEIVERS: usize = 1000;
const PUBLISHER: usize = 0;
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// Of the raw yardstick, where there is no gateway to take it from.
const FRAME_BYTES: u32 = 460;

struct Load {
    what: &'static str,
    burst: u64,
    rounds: u64,
    target: f64,
}

const LOADS: [Load; 2] = [
    Load {
        what: "one frame at a time",
        burst: 1,
        rounds: 100,
        target: 1.5,
    },
    Load {
        what: "bursts of 16 frames",
        burst: 16,
        rounds: 25,
        target: 3.0,
    },
];

pub fn measure(options: &Options) -> Result<()> {
    let mut gateway = options.gateway().map(|server| Hall::gateway(&server)).transpose()?;
    let mut raw = Hall::raw()?;
    report::head(
        &format!(
            "fan-out: 1 session, {RECEIVERS} browsers, {} B of payload",
            PAYLOAD.len()
        ),
        "delivery",
    );
    for load in &LOADS {
        let frame_bytes = Cell::new(FRAME_BYTES);
        let mut ours = gateway.as_mut().map(|hall| {
            || {
                let (sample, bytes) = hall.run(load, FRAME_BYTES)?;
                frame_bytes.set(bytes);
                Ok(sample)
            }
        });
        let mut yardstick = || Ok(raw.run(load, frame_bytes.get())?.0);
        let samples = report::take_turns(
            options.runs,
            &mut [ours.as_mut().map(|side| side as report::Side), Some(&mut yardstick)],
        )?;
        report::line(load.what, &samples[0], ("raw", &samples[1]), load.target);
        println!("{:34} {} B on the wire each", "", frame_bytes.get());
    }
    Ok(())
}

/// A server with its receivers and the one connection that makes it send.
struct Hall {
    process: Process,
    fleet: Fleet,
    speech: Speech,
}

/// What makes the server send.
enum Speech {
    /// Frames, with ids that go on from run to run.
    Frames { published: u64 },
    /// A command.
    Command,
}

impl Hall {
    fn gateway(server: &Server) -> Result<Self> {
        let process = Process::start(server)?;
        let mut fleet = Fleet::new(process.address())?;
        let session = std::iter::repeat_n("hall".to_owned(), 1 + RECEIVERS);
        traffic::join(&mut fleet, session)?;
        Ok(Self {
            process,
            fleet,
            speech: Speech::Frames { published: 0 },
        })
    }

    fn raw() -> Result<Self> {
        let (process, fleet) = raw::start(RECEIVERS)?;
        Ok(Self {
            process,
            fleet,
            speech: Speech::Command,
        })
    }

    /// One run; also says how many bytes a delivery had.
    fn run(&mut self, load: &Load, frame_bytes: u32) -> Result<(Sample, u32)> {
        let deliveries = load.rounds * load.burst * RECEIVERS as u64;
        let mut audience = Audience {
            acks_due: match self.speech {
                Speech::Frames { .. } => load.rounds * load.burst,
                Speech::Command => 0,
            },
            speech: &mut self.speech,
            burst: load.burst,
            frame_bytes,
            rounds_left: load.rounds,
            due: vec![0; 1 + RECEIVERS],
            deliveries_due: 0,
            wire_bytes: 0,
        };
        let sample = report::sample(&self.process, deliveries, || self.fleet.run(&mut audience, RUN_LIMIT))?;
        let bytes = audience.wire_bytes / deliveries;
        Ok((sample, u32::try_from(bytes)?))
    }
}

/// All browsers of the hall.
struct Audience<'a> {
    speech: &'a mut Speech,
    burst: u64,
    frame_bytes: u32,
    rounds_left: u64,
    acks_due: u64,
    // Deliveries of the present round, by connection and in all.
    due: Vec<u64>,
    deliveries_due: u64,
    wire_bytes: u64,
}

impl Audience<'_> {
    fn begin_round(&mut self, out: &mut Outgoing) {
        self.rounds_left -= 1;
        self.due[1..].fill(self.burst);
        self.deliveries_due = self.burst * RECEIVERS as u64;
        out.bytes(PUBLISHER, self.speech.next(self.burst, self.frame_bytes));
    }
}

impl Speech {
    /// The bytes that make the server send `burst` frames to everybody.
    fn next(&mut self, burst: u64, frame_bytes: u32) -> Vec<u8> {
        match self {
            Self::Command => raw::Command {
                first: 0,
                sockets: RECEIVERS as u32,
                frame_bytes,
                frames: burst as u32,
            }
            .encode(),
            Self::Frames { published } => {
                let mut bytes = Vec::new();
                for _ in 0..burst {
                    *published += 1;
                    let payload = PAYLOAD.as_str();
                    let frame = format!(r#"{{"id":"msg-{published}","type":"news","payload":{payload}}}"#);
                    bytes.extend(websocket::masked(websocket::TEXT, frame.as_bytes()));
                }
                bytes
            }
        }
    }
}

impl Browsers for Audience<'_> {
    fn tick(&mut self, _: std::time::Instant, out: &mut Outgoing) -> Option<std::time::Instant> {
        self.begin_round(out);
        None
    }

    fn message(&mut self, message: Message<'_>, out: &mut Outgoing) -> Result<()> {
        match (traffic::kind(message.text)?, message.connection) {
            (Kind::Ack { accepted }, PUBLISHER) => {
                let left = self.acks_due.checked_sub(accepted);
                self.acks_due = left.ok_or("more acks than frames")?;
            }
            (_, PUBLISHER) => {}
            (Kind::Delivery { marks }, receiver) => {
                let left = self.due[receiver].checked_sub(marks);
                self.due[receiver] = left.ok_or("more deliveries than were sent")?;
                self.deliveries_due -= marks;
                self.wire_bytes += message.wire_bytes as u64;
                if self.deliveries_due == 0 && self.rounds_left > 0 {
                    self.begin_round(out);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.rounds_left == 0 && self.deliveries_due == 0 && self.acks_due == 0
    }

    fn missing(&self) -> String {
        let waiting = self.due.iter().filter(|due| **due > 0).count();
        format!(
            "{} deliveries to {waiting} receivers, {} acks, {} rounds are missing",
            self.deliveries_due, self.acks_due, self.rounds_left
        )
    }
}
