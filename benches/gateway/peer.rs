//! One peer at a time, on either face: sends a frame, waits for a frame. For what is measured in single frames.
//!
//! Both faces carry protobuf. A WebSocket blocks on its socket; gRPC streams share one runtime, which runs while one of them
//! is waited for.

use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::Result;
use crate::fleet::read_opening;
use crate::rpc::{self, Frame};
use crate::websocket::{self, BINARY, CLOSE, PING, PONG};

const LIMIT: Duration = Duration::from_secs(10);
const QUEUED_FRAMES: usize = 64;
const READ_BYTES: usize = 16 * 1024;

/// How peers reach the gateway.
#[derive(Clone)]
pub enum Face {
    WebSocket,
    Grpc(Rc<Runtime>),
}

impl Face {
    /// The gRPC face, with a runtime of its own.
    pub fn grpc() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self::Grpc(Rc::new(runtime)))
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::WebSocket => "WebSocket",
            Self::Grpc(_) => "gRPC",
        }
    }

    /// Connects a peer.
    pub fn connect(&self, gateway: SocketAddr) -> Result<Peer> {
        let mut socket = TcpStream::connect(gateway)?;
        socket.set_nodelay(true)?;
        let line = match self {
            Self::WebSocket => {
                socket.set_read_timeout(Some(LIMIT))?;
                let opening = websocket::opening(&gateway.to_string(), "/v1/ws", Some("twinspan.v1.proto"));
                socket.write_all(opening.as_bytes())?;
                Line::WebSocket(read_opening(&mut socket)?)
            }
            Self::Grpc(runtime) => {
                let (outgoing, frames) = mpsc::channel(QUEUED_FRAMES);
                let stream = socket.try_clone()?;
                stream.set_nonblocking(true)?;
                let incoming = runtime.block_on(async {
                    let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
                    let endpoint = Endpoint::from_shared(format!("http://{gateway}"))?;
                    let channel = endpoint.connect_with_connector(Dialled(Some(stream))).await?;
                    rpc::attach(channel, frames).await
                })?;
                Line::Grpc {
                    runtime: Rc::clone(runtime),
                    outgoing,
                    incoming: Box::new(incoming),
                }
            }
        };
        Ok(Peer { socket, line })
    }
}

/// A connection.
pub struct Peer {
    socket: TcpStream,
    line: Line,
}

enum Line {
    /// What was read and not yet looked at.
    WebSocket(Vec<u8>),
    Grpc {
        runtime: Rc<Runtime>,
        outgoing: mpsc::Sender<Frame>,
        incoming: Box<Streaming<Frame>>,
    },
}

impl Peer {
    /// Sends a frame. Over gRPC it leaves when something is waited for.
    pub fn send(&mut self, frame: Frame) -> Result<()> {
        match &self.line {
            Line::WebSocket(_) => Ok(self
                .socket
                .write_all(&websocket::masked(BINARY, &frame.encode_to_vec()))?),
            Line::Grpc { outgoing, .. } => Ok(outgoing.try_send(frame)?),
        }
    }

    /// Waits for the first frame that is wanted; a refusal is an error.
    pub fn expect(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        loop {
            let frame = self.next().map_err(|error| format!("waiting for {what}: {error}"))?;
            if wanted(&frame) {
                return Ok(frame);
            }
            if let Some(error) = frame.error.filter(|_| frame.seq == 0) {
                return Err(format!("refused: {}: {}", error.reason, error.message).into());
            }
        }
    }

    /// Ends the TCP connection, without a word of WebSocket or of HTTP/2.
    pub fn drop_tcp(self) -> Result<()> {
        Ok(self.socket.shutdown(Shutdown::Both)?)
    }

    fn next(&mut self) -> Result<Frame> {
        match &mut self.line {
            Line::WebSocket(buffer) => read_frame(&mut self.socket, buffer),
            Line::Grpc { runtime, incoming, .. } => {
                let message = runtime.block_on(async { tokio::time::timeout(LIMIT, incoming.message()).await })??;
                message.ok_or_else(|| "the gateway ended the stream".into())
            }
        }
    }
}

fn read_frame(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Frame> {
    loop {
        if let Some(frame) = websocket::parse(buffer)? {
            let (opcode, wire_bytes) = (frame.opcode, frame.wire_bytes);
            let payload = frame.payload.to_vec();
            buffer.drain(..wire_bytes);
            match opcode {
                BINARY => return Ok(Frame::decode(&payload[..])?),
                PING => socket.write_all(&websocket::masked(PONG, &payload))?,
                CLOSE => return Err("closed by the gateway".into()),
                _ => {}
            }
            continue;
        }
        let filled = buffer.len();
        buffer.resize(filled + READ_BYTES, 0);
        let count = match socket.read(&mut buffer[filled..]) {
            Ok(0) => return Err("the gateway closed the connection".into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) => return Err(error.into()),
        };
        buffer.truncate(filled + count);
    }
}

type Stream = TokioIo<tokio::net::TcpStream>;

/// A connector that hands over one stream that is there already.
struct Dialled(Option<Stream>);

impl tower_service::Service<Uri> for Dialled {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().ok_or_else(|| ErrorKind::NotConnected.into());
        Box::pin(std::future::ready(stream))
    }
}
