//! What attacks cost others: a hundred well-behaved clients, half on either face, ask a worker one after the other, while two
//! attackers do their worst and come back a millisecond after they are thrown out.
//!
//! The gateway has its default limits. The attackers come from an address of their own, as others would.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::peer::{Face, Peer};
use crate::process::{Process, Server};
use crate::report;
use crate::rpc::{Address, Answer, Backend, Frame};
use crate::traffic::ROLE;
use crate::websocket::{masked, opening};
use crate::{Options, Result};

const CLIENTS: usize = 100;
const ATTACKERS: usize = 2;
const ROUNDS: usize = 20;
/// Frames of an attack that are written at once.
const BURST: u32 = 1_000;
const PATIENCE: Duration = Duration::from_millis(500);
/// Between being thrown out and coming back.
const REST: Duration = Duration::from_millis(1);

const CONTINUATION: u8 = 9;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_HEADERS: u8 = 4;

pub fn measure(options: &Options) -> Result<()> {
    let Some(server) = options.gateway() else {
        return Ok(());
    };
    let Server::Gateway(path) = server else {
        return Ok(());
    };
    let process = Process::start(&Server::Guarded(path))?;
    let gateway = process.address();
    let _backend = Backend::workers(gateway, 1, Answer::Payload { replies: 1 })?;
    let mut crowd = Crowd::gather(gateway)?;
    report::latency_head("attacks: from a request to its answer, for a hundred clients");
    crowd.round_trips()?;
    let told = |what: &str, waits: &[Duration]| -> Result<()> {
        let mib = process.resident_bytes()? >> 20;
        report::latency_line(&format!("{what} ({mib} MiB)"), waits);
        Ok(())
    };
    told("quiet", &crowd.round_trips()?)?;
    for (number, (what, _)) in attacks().into_iter().enumerate() {
        let attackers = Attackers::start(gateway, number)?;
        let waits = crowd.round_trips()?;
        let thrown_out = attackers.stop()?;
        told(&format!("{what}, thrown out {thrown_out} times"), &waits)?;
    }
    told("quiet again", &crowd.round_trips()?)
}

struct Crowd {
    peers: Vec<Peer>,
    asked: u64,
}

impl Crowd {
    fn gather(gateway: SocketAddr) -> Result<Self> {
        let faces = [Face::WebSocket, Face::grpc()?];
        let peers = (0..CLIENTS).map(|place| faces[place % 2].connect(gateway));
        Ok(Self {
            peers: peers.collect::<Result<_>>()?,
            asked: 0,
        })
    }

    fn round_trips(&mut self) -> Result<Vec<Duration>> {
        let mut waits = Vec::with_capacity(ROUNDS * CLIENTS);
        for _ in 0..ROUNDS {
            for (place, peer) in self.peers.iter_mut().enumerate() {
                self.asked += 1;
                let id = format!("q{}", self.asked);
                let began = Instant::now();
                peer.send(Frame {
                    id: id.clone(),
                    session_id: format!("good-{place}"),
                    to: Some(Address { role: ROLE.into() }),
                    text: Some("?".into()),
                    ..Frame::default()
                })?;
                peer.expect("an answer", |frame| frame.reply_to == id && frame.last)?;
                waits.push(began.elapsed());
            }
        }
        Ok(waits)
    }
}

/// What an attacker writes: once at the beginning, then again and again, with the number of the burst.
#[derive(Clone)]
struct Attack {
    begin: Vec<u8>,
    burst: Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>,
}

/// Processes of their own, of the lowest priority: attackers have machines of their own, and what they compute is not to be taken
/// from those that are measured.
struct Attackers(Vec<Child>);

impl Attackers {
    fn start(gateway: SocketAddr, number: usize) -> Result<Self> {
        let attackers = (0..ATTACKERS).map(|_| {
            let mut command = Command::new("nice");
            command.args(["-n", "19"]).arg(std::env::current_exe()?);
            command.args([
                "attacker",
                "--gateway",
                &gateway.to_string(),
                "--number",
                &number.to_string(),
            ]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        });
        Ok(Self(attackers.collect::<std::io::Result<_>>()?))
    }

    /// How often they were thrown out.
    fn stop(self) -> Result<u64> {
        let counts = self.0.into_iter().map(|attacker| -> Result<u64> {
            // Its input ends with this.
            let output = attacker.wait_with_output()?;
            Ok(String::from_utf8(output.stdout)?.trim().parse()?)
        });
        counts.sum()
    }
}

/// Attacks until the input ends, and prints how often it was thrown out.
pub fn be_attacker(gateway: SocketAddr, number: usize) -> Result<()> {
    let (_, attack) = attacks().swap_remove(number);
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        stopping.store(true, Ordering::Relaxed);
    });
    let mut thrown_out = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        // What ends it is what is measured.
        let _ = assault(gateway, &attack, &stop);
        thrown_out += 1;
        // It runs on the cores of those that are measured: it is not to keep them busy by itself.
        std::thread::sleep(REST);
    }
    println!("{thrown_out}");
    Ok(())
}

/// A connection from another address than the clients'.
fn connect(gateway: SocketAddr) -> std::io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 2], 0)))?;
        socket.connect(gateway).await?.into_std()
    })?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn assault(gateway: SocketAddr, attack: &Attack, stop: &AtomicBool) -> std::io::Result<()> {
    let mut socket = connect(gateway)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    // Else the gateway could stop reading because nobody reads its answers.
    let mut answers = socket.try_clone()?;
    let reader = std::thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    let written = socket.write_all(&attack.begin).and_then(|()| {
        (0..)
            .take_while(|_| !stop.load(Ordering::Relaxed))
            .try_for_each(|burst| socket.write_all(&(attack.burst)(burst)))
    });
    let _ = socket.shutdown(Shutdown::Both);
    let _ = reader.join();
    written
}

fn attacks() -> Vec<(&'static str, Attack)> {
    let http2 = |burst: Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>| Attack {
        begin: [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat(),
        burst,
    };
    let websocket = |burst: Vec<u8>, begin: Vec<u8>| Attack {
        begin: [opening("x", "/v1/ws", None).as_bytes(), &begin].concat(),
        burst: Arc::new(move |_| burst.clone()),
    };
    let same = |bytes: Vec<u8>| http2(Arc::new(move |_| bytes.repeat(BURST as usize)));
    let opened = |then: fn(u32) -> Vec<u8>| {
        http2(Arc::new(move |burst| {
            let streams = (burst * BURST..(burst + 1) * BURST).map(|number| 2 * number + 1);
            let both = streams.flat_map(|stream| [frame(HEADERS, END_HEADERS, stream, &call()), then(stream)].concat());
            both.collect()
        }))
    };
    let endless = http2(Arc::new(|burst| {
        let begin = if burst == 0 {
            frame(HEADERS, 0, 1, &call())
        } else {
            Vec::new()
        };
        [begin, frame(CONTINUATION, 0, 1, &[]).repeat(BURST as usize)].concat()
    }));
    vec![
        (
            "rapid reset",
            opened(|stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])),
        ),
        (
            "windows that overflow",
            opened(|stream| frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])),
        ),
        (
            "streams that depend on themselves",
            opened(|stream| frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[0]].concat())),
        ),
        ("PING", same(frame(PING, 0, 0, &[7; 8]))),
        ("SETTINGS", same(frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]))),
        ("WINDOW_UPDATE", same(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))),
        ("CONTINUATION", endless),
        (
            "WebSocket pings",
            websocket(masked(9, b"!").repeat(BURST as usize), Vec::new()),
        ),
        (
            "empty fragments",
            websocket(fragment().repeat(BURST as usize), [&[0x01], &fragment()[1..]].concat()),
        ),
        (
            "frames of JSON",
            websocket(masked(1, br#"{"ping":{}}"#).repeat(BURST as usize), Vec::new()),
        ),
    ]
}

fn fragment() -> Vec<u8> {
    vec![0x00, 0x80, 1, 2, 3, 4]
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The headers of a call, none of which is to be remembered: RFC 7541 §6.2.2.
fn call() -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/twinspan.v1.Gateway/Attach"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}
