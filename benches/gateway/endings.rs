//! How fast the end of something gets around: from a client's cancel to the worker's hearing of it, and from the loss of a
//! worker to another one's having its request. One at a time, on a gateway that does nothing else, and on one that streams.
//!
//! The figure is wall time, since that is what people wait for: from before the frame is written, or the socket is ended, to
//! the frame's having been read. The yardstick is a ping, which the gateway answers by itself. Before each sample there is a
//! pause, in which the gateway falls asleep, as it would have.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::fleet::{Browsers, Fleet, Message, Outgoing};
use crate::peer::{Face, Peer};
use crate::process::{Process, Server};
use crate::report;
use crate::rpc::{Address, Answer, Backend, Cancel, Frame, Ping, RequestOptions, Serve};
use crate::traffic::{self, ROLE};
use crate::{Options, Result};

const SESSION: &str = "endings";
const ENDED_ROLE: &str = "ended";
const PINGS: u32 = 2_000;
const CANCELS: u32 = 2_000;
const LOSSES: u32 = 500;
/// Of all that is measured here, before anything counts.
const WARM_UP: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);

/// `WORKER_LOSS_RESTART`
const RESTART: i32 = 3;
/// `CANCELLED`
const CANCELLED: i32 = 1;

const SESSIONS: usize = 150;
const WORKERS: usize = 4;
const CHUNKS: u32 = 500;
const PACE: Duration = Duration::from_millis(20);
const CROWD_LIMIT: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(50);
/// Until all of the crowd is being streamed to.
const GATHERING: Duration = Duration::from_millis(500);

pub fn measure(options: &Options) -> Result<()> {
    let Some(server) = options.gateway() else {
        return Ok(());
    };
    report::latency_head("endings: until it is heard of");
    on_both_faces(&server, "idle", |_| Ok(()))?;
    let per_second = SESSIONS as u128 * 1000 / PACE.as_millis();
    on_both_faces(&server, &format!("{per_second} texts/s"), Crowd::gather)
}

fn on_both_faces<T>(server: &Server, load: &str, crowd: impl Fn(SocketAddr) -> Result<T>) -> Result<()> {
    for face in [Face::WebSocket, Face::grpc()?] {
        let process = Process::start(server)?;
        let _crowd = crowd(process.address())?;
        let scene = Scene {
            face: &face,
            gateway: process.address(),
        };
        for (what, samples) in [
            ("ping to pong", scene.pings()?),
            ("cancel to worker", scene.cancels()?),
            ("lost worker to the next one", scene.losses()?),
        ] {
            report::latency_line(&format!("{}, {load}: {what}", face.name()), &samples);
        }
    }
    Ok(())
}

struct Scene<'a> {
    face: &'a Face,
    gateway: SocketAddr,
}

impl Scene<'_> {
    fn pings(&self) -> Result<Vec<Duration>> {
        let mut peer = self.peer()?;
        samples(PINGS, |place| {
            let data = format!("ping-{place}");
            let began = Instant::now();
            peer.send(Frame {
                ping: Some(Ping { data: data.clone() }),
                ..Frame::default()
            })?;
            peer.expect("a pong", |frame| {
                frame.pong.as_ref().is_some_and(|pong| pong.data == data)
            })?;
            Ok(began.elapsed())
        })
    }

    fn cancels(&self) -> Result<Vec<Duration>> {
        let (mut client, mut worker) = (self.peer()?, self.worker()?);
        samples(CANCELS, |place| {
            let id = format!("cancel-{place}");
            client.send(request(&id))?;
            let handed = handed(&mut worker, &id)?;
            let began = Instant::now();
            client.send(Frame {
                session_id: SESSION.into(),
                cancel: Some(Cancel { request_id: id.clone() }),
                ..Frame::default()
            })?;
            worker.expect("a cancel", |frame| {
                frame.cancel.as_ref().is_some_and(|cancel| cancel.request_id == id)
            })?;
            let took = began.elapsed();
            worker.send(last(&handed, Some(CANCELLED)))?;
            answered(&mut client, &id)?;
            Ok(took)
        })
    }

    fn losses(&self) -> Result<Vec<Duration>> {
        let mut client = self.peer()?;
        let mut holder = self.worker()?;
        samples(LOSSES, |place| {
            let id = format!("loss-{place}");
            client.send(request(&id))?;
            handed(&mut holder, &id)?;
            let next = self.worker()?;
            let lost = std::mem::replace(&mut holder, next);
            let began = Instant::now();
            lost.drop_tcp()?;
            let again = handed(&mut holder, &id)?;
            let took = began.elapsed();
            if again.attempt != 2 {
                return Err(format!("handed on as attempt {}", again.attempt).into());
            }
            holder.send(last(&again, None))?;
            answered(&mut client, &id)?;
            Ok(took)
        })
    }

    fn peer(&self) -> Result<Peer> {
        self.face.connect(self.gateway)
    }

    fn worker(&self) -> Result<Peer> {
        let mut worker = self.peer()?;
        let serve = Serve {
            role: ENDED_ROLE.into(),
            max_in_flight: 1,
        };
        worker.send(Frame {
            serve: Some(serve),
            ..Frame::default()
        })?;
        worker.expect("serving", |frame| frame.serving.is_some())?;
        Ok(worker)
    }
}

fn samples(count: u32, mut once: impl FnMut(u32) -> Result<Duration>) -> Result<Vec<Duration>> {
    let mut sample = |place| {
        std::thread::sleep(PAUSE);
        once(place)
    };
    for place in 0..WARM_UP {
        sample(place)?;
    }
    (WARM_UP..WARM_UP + count).map(sample).collect()
}

fn request(id: &str) -> Frame {
    Frame {
        id: id.into(),
        session_id: SESSION.into(),
        to: Some(Address {
            role: ENDED_ROLE.into(),
        }),
        options: Some(RequestOptions {
            on_worker_loss: RESTART,
        }),
        text: Some("?".into()),
        ..Frame::default()
    }
}

fn handed(worker: &mut Peer, id: &str) -> Result<Frame> {
    worker.expect("a request", |frame| frame.attempt > 0 && frame.id == id)
}

fn answered(client: &mut Peer, id: &str) -> Result<Frame> {
    client.expect("the end", |frame| frame.last && frame.reply_to == id)
}

fn last(request: &Frame, code: Option<i32>) -> Frame {
    let error = |code| crate::rpc::Error {
        code,
        ..crate::rpc::Error::default()
    };
    Frame {
        session_id: request.session_id.clone(),
        reply_to: request.id.clone(),
        attempt: request.attempt,
        last: true,
        error: code.map(error),
        ..Frame::default()
    }
}

/// Sessions of one browser each that are streamed to all the time.
struct Crowd {
    over: Arc<AtomicBool>,
    browsers: Option<JoinHandle<()>>,
    _backend: Backend,
}

impl Crowd {
    fn gather(gateway: SocketAddr) -> Result<Self> {
        let answer = Answer::Text {
            chunks: CHUNKS,
            pace: Some(PACE),
        };
        let backend = Backend::workers(gateway, WORKERS, answer)?;
        let mut fleet = Fleet::new(gateway)?;
        traffic::join(&mut fleet, (0..SESSIONS).map(|session| format!("crowd-{session}")))?;
        let over = Arc::new(AtomicBool::new(false));
        let mut listening = Listening {
            over: Arc::clone(&over),
            began: Instant::now(),
            asked: 0,
        };
        let browsers = std::thread::spawn(move || {
            if let Err(error) = fleet.run(&mut listening, CROWD_LIMIT) {
                eprintln!("the load has ended: {error}");
            }
        });
        std::thread::sleep(GATHERING);
        Ok(Self {
            over,
            browsers: Some(browsers),
            _backend: backend,
        })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(browsers) = self.browsers.take() {
            let _ = browsers.join();
        }
    }
}

/// All browsers of a crowd. Who is answered asks again.
struct Listening {
    over: Arc<AtomicBool>,
    began: Instant,
    asked: usize,
}

impl Listening {
    fn ask(&mut self, browser: usize, out: &mut Outgoing) {
        self.asked += 1;
        let id = self.asked;
        let frame = format!(r#"{{"id":"msg-{id}","type":"ask","to":{{"role":"{ROLE}"}},"payload":{{}}}}"#);
        out.text(browser, frame.as_bytes());
    }
}

impl Browsers for Listening {
    fn tick(&mut self, now: Instant, out: &mut Outgoing) -> Option<Instant> {
        // Spread over a beat, so that not all are streamed to at the same moment.
        let turn = |browser: usize| self.began + PACE * browser as u32 / SESSIONS as u32;
        let due = (self.asked..SESSIONS)
            .take_while(|browser| turn(*browser) <= now)
            .count();
        let next = (self.asked + due < SESSIONS).then(|| turn(self.asked + due));
        for _ in 0..due {
            self.ask(self.asked, out);
        }
        next.or(Some(now + LOOK))
    }

    fn message(&mut self, message: Message<'_>, out: &mut Outgoing) -> Result<()> {
        traffic::kind(message.text)?;
        if traffic::is_final(message.text) {
            self.ask(message.connection, out);
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn missing(&self) -> String {
        "the end of the measurement".into()
    }
}
