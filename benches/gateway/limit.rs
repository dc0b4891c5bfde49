//! The limit of connections: how many of 20,000 WebSockets a gateway lets in that may have 10,000, what the others are told, and
//! what it takes; and how many handshakes it answers in a second.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::process::{Process, Server};
use crate::websocket::opening;
use crate::{Options, Result};

const ATTEMPTS: usize = 20_000;
const LIMIT: usize = 10_000;
const HANDSHAKES: usize = 5_000;
const PATIENCE: Duration = Duration::from_secs(10);

pub fn measure(options: &Options) -> Result<()> {
    let Some(server) = options.gateway() else {
        return Ok(());
    };
    println!("\nlimit: {ATTEMPTS} WebSockets, one after the other, of which {LIMIT} may be");
    at_the_limit(&server)?;
    handshakes(&server)
}

fn at_the_limit(server: &Server) -> Result<()> {
    let process = Process::start_with(server, &[("TWINSPAN_LIMITS_CONNECTIONS", &LIMIT.to_string())])?;
    let before = process.resident_bytes()?;
    let (mut held, mut told) = (Vec::new(), BTreeMap::<String, usize>::new());
    let (began, cpu) = (Instant::now(), process.cpu()?);
    for _ in 0..ATTEMPTS {
        let (socket, status) = attempt(process.address())?;
        if status.contains("101") {
            held.push(socket);
        }
        *told.entry(status).or_default() += 1;
    }
    let (took, cpu) = (began.elapsed(), process.cpu()? - cpu);
    let grown = process.resident_bytes()?.saturating_sub(before);
    for (status, count) in told {
        println!("{count:>8} {status}");
    }
    println!("{took:.2?}, {cpu:.2?} of CPU time, {} MiB more", grown >> 20);
    Ok(())
}

fn handshakes(server: &Server) -> Result<()> {
    let process = Process::start(server)?;
    let (began, cpu) = (Instant::now(), process.cpu()?);
    for _ in 0..HANDSHAKES {
        attempt(process.address())?;
    }
    let (took, cpu) = (began.elapsed(), process.cpu()? - cpu);
    println!(
        "plaintext handshakes, one after the other: {:.0} in a second, {:.1} us of CPU time each",
        HANDSHAKES as f64 / took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / HANDSHAKES as f64
    );
    Ok(())
}

/// The socket, and the first line of the answer.
fn attempt(gateway: SocketAddr) -> Result<(TcpStream, String)> {
    let mut socket = TcpStream::connect(gateway)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(opening(&gateway.to_string(), "/v1/ws", None).as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n") {
        if socket.read(&mut byte)? == 0 {
            return Ok((socket, "closed".to_owned()));
        }
        answer.push(byte[0]);
    }
    Ok((socket, String::from_utf8_lossy(&answer).trim().to_owned()))
}
