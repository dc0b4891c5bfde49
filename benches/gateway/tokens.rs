//! Token streaming: workers answer a request of each session by many short texts; what one delivered text costs.
//!
//! Two loads: *at once*, the workers send as fast as they are let, all sessions taking turns; *paced*, each session is sent
//! 50 texts a second, the sessions' beats spread evenly, so that hardly two texts for one browser are there together.
//! The raw yardstick writes as many bytes to the same number of sockets, one write per text and browser, at the same pace.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::fleet::{Browsers, Fleet, Message, Outgoing};
use crate::process::{Process, Server};
use crate::report::{self, Sample};
use crate::rpc::{Answer, Backend};
use crate::traffic::{self, Kind, ROLE, TEXT_BYTES};
use crate::{Options, Result, raw, websocket};

const SESSIONS: usize = 150;
const WORKERS: usize = 4;
const TARGET: f64 = 2.0;
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// Of the raw yardstick, where there is no gateway to take it from.
const FRAME_BYTES: u32 = 230;

struct Load {
    what: &'static str,
    chunks: u32,
    pace: Option<Duration>,
}

const LOADS: [Load; 2] = [
    Load {
        what: "200 texts at once",
        chunks: 200,
        pace: None,
    },
    Load {
        what: "100 texts, 50 a second",
        chunks: 100,
        pace: Some(Duration::from_millis(20)),
    },
];

pub fn measure(options: &Options) -> Result<()> {
    let members = first_member(SESSIONS);
    report::head(
        &format!("token streaming: {WORKERS} workers, {SESSIONS} sessions, {members} browsers, {TEXT_BYTES} B of text"),
        "text",
    );
    for load in &LOADS {
        let mut gateway = options
            .gateway()
            .map(|server| Street::gateway(&server, load))
            .transpose()?;
        let mut raw = Street::raw()?;
        let frame_bytes = Cell::new(FRAME_BYTES);
        let mut ours = gateway.as_mut().map(|street| {
            || {
                let (sample, bytes) = street.run(load, FRAME_BYTES)?;
                frame_bytes.set(bytes);
                Ok(sample)
            }
        });
        let mut yardstick = || Ok(raw.run(load, frame_bytes.get())?.0);
        let samples = report::take_turns(
            options.runs,
            &mut [ours.as_mut().map(|side| side as report::Side), Some(&mut yardstick)],
        )?;
        report::line(load.what, &samples[0], ("raw", &samples[1]), TARGET);
        println!("{:34} {} B on the wire each", "", frame_bytes.get());
    }
    Ok(())
}

/// Sessions have one, two, three, one, ... members; they stand in one row.
const fn members(session: usize) -> usize {
    session % 3 + 1
}

/// How many members the sessions before this one have.
fn first_member(session: usize) -> usize {
    (0..session).map(members).sum()
}

/// A server with the members of all sessions.
struct Street {
    // Ends before the server does: workers would complain of its end.
    backend: Option<Backend>,
    process: Process,
    fleet: Fleet,
    asked: u64,
}

impl Street {
    fn gateway(server: &Server, load: &Load) -> Result<Self> {
        let answer = Answer::Text {
            chunks: load.chunks,
            pace: load.pace,
        };
        let process = Process::start(server)?;
        let backend = Backend::workers(process.address(), WORKERS, answer)?;
        let mut fleet = Fleet::new(process.address())?;
        let sessions =
            (0..SESSIONS).flat_map(|session| std::iter::repeat_n(format!("talk-{session}"), members(session)));
        traffic::join(&mut fleet, sessions)?;
        Ok(Self {
            process,
            fleet,
            asked: 0,
            backend: Some(backend),
        })
    }

    fn raw() -> Result<Self> {
        let (process, fleet) = raw::start(first_member(SESSIONS))?;
        Ok(Self {
            process,
            fleet,
            asked: 0,
            backend: None,
        })
    }

    /// One run; also says how many bytes a delivery had.
    fn run(&mut self, load: &Load, frame_bytes: u32) -> Result<(Sample, u32)> {
        let deliveries = first_member(SESSIONS) as u64 * u64::from(load.chunks);
        let sends = match (&self.backend, load.pace) {
            (Some(_), pace) => self.requests(pace.unwrap_or_default()),
            (None, None) => commands_at_once(load.chunks, frame_bytes),
            (None, Some(pace)) => commands_paced(load.chunks, frame_bytes, pace),
        };
        let mut due = vec![u64::from(load.chunks); self.fleet.len()];
        if self.backend.is_none() {
            due[0] = 0;
        }
        let mut readers = Readers {
            sends: sends.into_iter().peekable(),
            began: Instant::now(),
            due,
            deliveries_due: deliveries,
            wire_bytes: 0,
        };
        let sample = report::sample(&self.process, deliveries, || self.fleet.run(&mut readers, RUN_LIMIT))?;
        let bytes = readers.wire_bytes / deliveries;
        Ok((sample, u32::try_from(bytes)?))
    }

    /// One request of each session, by its first member, spread over one beat.
    fn requests(&mut self, beat: Duration) -> Vec<Send> {
        let request = |session| {
            self.asked += 1;
            let id = self.asked;
            let frame = format!(
                r#"{{"id":"msg-{id}","type":"ask","to":{{"role":"{ROLE}"}},"payload":{{"prompt":"Tell me more."}}}}"#
            );
            Send {
                at: offset(session, beat),
                connection: first_member(session),
                bytes: websocket::masked(websocket::TEXT, frame.as_bytes()),
            }
        };
        (0..SESSIONS).map(request).collect()
    }
}

/// For each text, one command that has it written to everybody.
fn commands_at_once(chunks: u32, frame_bytes: u32) -> Vec<Send> {
    let sockets = first_member(SESSIONS) as u32;
    let send = Send::command(Duration::ZERO, 0, sockets, frame_bytes);
    vec![send; chunks as usize]
}

/// For each text and session, a command that has it written to the session's members.
fn commands_paced(chunks: u32, frame_bytes: u32, pace: Duration) -> Vec<Send> {
    let mut sends = Vec::with_capacity(SESSIONS * chunks as usize);
    for chunk in 0..chunks {
        for session in 0..SESSIONS {
            let at = pace * chunk + offset(session, pace);
            let first = first_member(session) as u32;
            sends.push(Send::command(at, first, members(session) as u32, frame_bytes));
        }
    }
    sends
}

/// Where in a beat a session's turn is.
fn offset(session: usize, beat: Duration) -> Duration {
    beat * session as u32 / SESSIONS as u32
}

/// Bytes to be sent at a time, counted from the beginning of the run.
#[derive(Clone)]
struct Send {
    at: Duration,
    connection: usize,
    bytes: Vec<u8>,
}

impl Send {
    fn command(at: Duration, first: u32, sockets: u32, frame_bytes: u32) -> Self {
        let command = raw::Command {
            first,
            sockets,
            frame_bytes,
            frames: 1,
        };
        Self {
            at,
            connection: 0,
            bytes: command.encode(),
        }
    }
}

/// All browsers of all sessions.
struct Readers {
    sends: std::iter::Peekable<std::vec::IntoIter<Send>>,
    began: Instant,
    // By connection, and in all.
    due: Vec<u64>,
    deliveries_due: u64,
    wire_bytes: u64,
}

impl Browsers for Readers {
    fn tick(&mut self, now: Instant, out: &mut Outgoing) -> Option<Instant> {
        let elapsed = now - self.began;
        while let Some(send) = self.sends.next_if(|send| send.at <= elapsed) {
            out.bytes(send.connection, send.bytes);
        }
        self.sends.peek().map(|send| self.began + send.at)
    }

    fn message(&mut self, message: Message<'_>, _: &mut Outgoing) -> Result<()> {
        if let Kind::Delivery { marks } = traffic::kind(message.text)? {
            let left = self.due[message.connection].checked_sub(marks);
            self.due[message.connection] = left.ok_or("more texts than were sent")?;
            self.deliveries_due -= marks;
            self.wire_bytes += message.wire_bytes as u64;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.deliveries_due == 0
    }

    fn missing(&self) -> String {
        let waiting = self.due.iter().filter(|due| **due > 0).count();
        format!("{} texts to {waiting} browsers are missing", self.deliveries_due)
    }
}
