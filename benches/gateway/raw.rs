//! The yardstick *raw*: writes ready-made bytes to sockets and does nothing else.
//!
//! One thread, blocking sockets, one `write` per socket and command. Its first connection commands it; the others, as many
//! as its command line says, receive.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::fleet::Fleet;
use crate::process::{Process, Server};
use crate::traffic::MARK;
use crate::{Result, process, websocket};

const COMMAND_BYTES: usize = 16;
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Write `frames` frames of `frame_bytes` bytes each, in one write per socket, to `sockets` sockets from `first` on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Command {
    pub first: u32,
    pub sockets: u32,
    pub frame_bytes: u32,
    pub frames: u32,
}

impl Command {
    pub fn encode(self) -> Vec<u8> {
        [self.first, self.sockets, self.frame_bytes, self.frames]
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect()
    }

    fn decode(bytes: &[u8]) -> Self {
        let field = |place: usize| {
            let bytes = bytes[place * 4..place * 4 + 4].try_into();
            u32::from_le_bytes(bytes.expect("a field must have 4 bytes"))
        };
        Self {
            first: field(0),
            sockets: field(1),
            frame_bytes: field(2),
            frames: field(3),
        }
    }
}

/// Starts the yardstick; the fleet's connection 0 commands it, the others receive.
pub fn start(sockets: usize) -> Result<(Process, Fleet)> {
    let process = Process::start(&Server::Raw { sockets })?;
    let mut fleet = Fleet::new(process.address())?;
    for _ in 0..=sockets {
        fleet.connect()?;
    }
    Ok((process, fleet))
}

/// Serves until the commanding connection ends.
pub fn serve(listen: SocketAddr, sockets: usize) -> Result<()> {
    process::exit_with_parent();
    let listener = TcpListener::bind(listen)?;
    let mut commands = accept(&listener)?;
    let mut receivers = Vec::with_capacity(sockets);
    for _ in 0..sockets {
        receivers.push(accept(&listener)?);
    }
    let mut buffer = vec![0; 4096 * COMMAND_BYTES];
    let mut filled = 0;
    let mut ready = Ready::default();
    loop {
        match commands.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        }
        let whole = filled - filled % COMMAND_BYTES;
        for command in buffer[..whole].chunks_exact(COMMAND_BYTES) {
            let command = Command::decode(command);
            let bytes = ready.bytes(command);
            let first = command.first as usize;
            for receiver in &mut receivers[first..first + command.sockets as usize] {
                receiver.write_all(bytes)?;
            }
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

/// The bytes of the last command, kept for the next.
#[derive(Default)]
struct Ready {
    shape: (u32, u32),
    bytes: Vec<u8>,
}

impl Ready {
    fn bytes(&mut self, command: Command) -> &[u8] {
        let shape = (command.frame_bytes, command.frames);
        if self.shape != shape {
            let frame = websocket::server_text(MARK.as_bytes(), command.frame_bytes as usize);
            self.bytes = frame.repeat(command.frames as usize);
            self.shape = shape;
        }
        &self.bytes
    }
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_LIMIT))?;
    Ok(stream)
}
