//! Many browsers in one thread: sockets, an epoll, and a parser that never copies a whole frame.
//!
//! Cheap on purpose, so that it does not starve the server on a small machine. A fleet moves bytes; what they mean is the
//! business of a [`Browsers`]. Connections are known by their place, from 0, in the order in which they were opened.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::Result;
use crate::websocket::{self, BINARY, CLOSE, PING, PONG, TEXT};

const OPENING_LIMIT: Duration = Duration::from_secs(10);
const OPENING_BYTES: usize = 4096;
const READ_BYTES: usize = 256 * 1024;
const EVENTS: usize = 1024;

/// What the browsers of a fleet do in one run.
pub trait Browsers {
    /// A message has come, of `wire_bytes` bytes with its header.
    fn message(&mut self, message: Message<'_>, out: &mut Outgoing) -> Result<()>;

    /// Sends what is due. Called first of all, and then when the time comes that it has returned.
    fn tick(&mut self, _now: Instant, _out: &mut Outgoing) -> Option<Instant> {
        None
    }

    /// Whether all that must come has come.
    fn is_done(&self) -> bool;

    /// What has not come, for people.
    fn missing(&self) -> String;
}

/// A message for one browser.
pub struct Message<'a> {
    pub connection: usize,
    pub text: &'a [u8],
    pub wire_bytes: usize,
}

/// What is to be sent after the messages at hand have been looked at.
#[derive(Default)]
pub struct Outgoing(Vec<(usize, Vec<u8>)>);

impl Outgoing {
    /// Sends a text message.
    pub fn text(&mut self, connection: usize, message: &[u8]) {
        self.bytes(connection, websocket::masked(TEXT, message));
    }

    /// Sends bytes as they are, in one write.
    pub fn bytes(&mut self, connection: usize, bytes: Vec<u8>) {
        self.0.push((connection, bytes));
    }
}

/// Open connections to one server.
pub struct Fleet {
    address: SocketAddr,
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    outgoing: Outgoing,
}

struct Connection {
    stream: TcpStream,
    // The beginning of a frame whose end has not come yet.
    pending: Vec<u8>,
}

impl Fleet {
    pub fn new(address: SocketAddr) -> Result<Self> {
        Ok(Self {
            address,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            connections: Vec::new(),
            buffer: vec![0; READ_BYTES],
            outgoing: Outgoing::default(),
        })
    }

    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Opens a connection that goes without the opening handshake of WebSocket.
    pub fn connect(&mut self) -> Result<()> {
        let stream = connect(self.address)?;
        self.add(stream, Vec::new())
    }

    /// Opens a WebSocket.
    pub fn open(&mut self, path: &str, subprotocol: Option<&str>) -> Result<()> {
        let mut stream = connect(self.address)?;
        stream.set_read_timeout(Some(OPENING_LIMIT))?;
        let request = websocket::opening(&self.address.to_string(), path, subprotocol);
        stream.write_all(request.as_bytes())?;
        let rest = read_opening(&mut stream).map_err(|error| format!("opening {path} of {}: {error}", self.address))?;
        self.add(stream, rest)
    }

    /// Lets the browsers act until they are done, or says what is missing after `limit`.
    pub fn run(&mut self, browsers: &mut dyn Browsers, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        self.take_leftovers(browsers)?;
        let mut due = browsers.tick(Instant::now(), &mut self.outgoing);
        self.flush()?;
        while !browsers.is_done() {
            let now = Instant::now();
            if now >= deadline {
                return Err(format!("after {limit:?}: {}", browsers.missing()).into());
            }
            if due.is_some_and(|due| due <= now) {
                due = browsers.tick(now, &mut self.outgoing);
                self.flush()?;
                continue;
            }
            let until = due.map_or(deadline, |due| due.min(deadline));
            self.turn(browsers, until - now)?;
        }
        Ok(())
    }

    /// Handles what comes within `timeout`, once.
    fn turn(&mut self, browsers: &mut dyn Browsers, timeout: Duration) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in &self.events {
            let place = event.token().0;
            let connection = &mut self.connections[place];
            connection
                .read(place, &mut self.buffer, browsers, &mut self.outgoing)
                .map_err(|error| format!("connection {place}: {error}"))?;
        }
        self.flush()
    }

    fn add(&mut self, stream: std::net::TcpStream, pending: Vec<u8>) -> Result<()> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let token = Token(self.connections.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
        self.connections.push(Connection { stream, pending });
        Ok(())
    }

    /// Handles messages that came with the answer to the opening handshake.
    fn take_leftovers(&mut self, browsers: &mut dyn Browsers) -> Result<()> {
        for (place, connection) in self.connections.iter_mut().enumerate() {
            let bytes = std::mem::take(&mut connection.pending);
            let taken = take_frames(place, &bytes, browsers, &mut self.outgoing)?;
            connection.pending = bytes[taken..].to_vec();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        for (place, bytes) in self.outgoing.0.drain(..) {
            let written = self.connections[place].stream.write(&bytes);
            if !matches!(written, Ok(count) if count == bytes.len()) {
                let length = bytes.len();
                return Err(format!("connection {place}: of {length} bytes were taken: {written:?}").into());
            }
        }
        Ok(())
    }
}

impl Connection {
    fn read(
        &mut self,
        place: usize,
        buffer: &mut [u8],
        browsers: &mut dyn Browsers,
        outgoing: &mut Outgoing,
    ) -> Result<()> {
        loop {
            let kept = self.pending.len();
            buffer[..kept].copy_from_slice(&self.pending);
            self.pending.clear();
            let count = match self.stream.read(&mut buffer[kept..]) {
                Ok(0) => return Err("the server closed the connection".into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error.into()),
            };
            let filled = &buffer[..kept + count];
            let taken = take_frames(place, filled, browsers, outgoing)?;
            self.pending.extend_from_slice(&filled[taken..]);
            // Readiness is told anew once a read has found less than it asked for.
            if filled.len() < buffer.len() {
                return Ok(());
            }
            if taken == 0 {
                return Err("a frame larger than the read buffer".into());
            }
        }
    }
}

/// Connects, trying again for a while where the server does not listen yet.
fn connect(address: SocketAddr) -> Result<std::net::TcpStream> {
    let deadline = Instant::now() + OPENING_LIMIT;
    loop {
        match std::net::TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(format!("{address}: {error}").into());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Hands over all whole frames; returns how many bytes they were.
fn take_frames(place: usize, bytes: &[u8], browsers: &mut dyn Browsers, outgoing: &mut Outgoing) -> Result<usize> {
    let mut taken = 0;
    while let Some(frame) = websocket::parse(&bytes[taken..])? {
        taken += frame.wire_bytes;
        match frame.opcode {
            TEXT | BINARY => browsers.message(
                Message {
                    connection: place,
                    text: frame.payload,
                    wire_bytes: frame.wire_bytes,
                },
                outgoing,
            )?,
            PING => outgoing.bytes(place, websocket::masked(PONG, frame.payload)),
            CLOSE => {
                let reason = frame.payload.get(2..).unwrap_or_default();
                return Err(format!("closed by the server: {}", String::from_utf8_lossy(reason)).into());
            }
            _ => {}
        }
    }
    Ok(taken)
}

/// Reads the answer to the opening handshake; returns what came after it.
pub fn read_opening(stream: &mut std::net::TcpStream) -> Result<Vec<u8>> {
    const END: &[u8] = b"\r\n\r\n";
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let count = stream.read(&mut piece)?;
        answer.extend_from_slice(&piece[..count]);
        if let Some(end) = memchr::memmem::find(&answer, END) {
            if !answer.starts_with(b"HTTP/1.1 101 ") {
                return Err(String::from_utf8_lossy(&answer).into());
            }
            return Ok(answer.split_off(end + END.len()));
        }
        if count == 0 || answer.len() > OPENING_BYTES {
            return Err("no end of the answer's head".into());
        }
    }
}
