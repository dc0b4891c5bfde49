//! gRPC: the bidirectional stream, on ready bytes, and the calls.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Buf, BufMut, Bytes};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Response, Status, Streaming};

use super::tcp;
use crate::auth::Identity;
use crate::connection::{Connection, Drive, Incoming, Inlet, Message, too_much};
use crate::error::{Reason, Refusal};
use crate::router::{Arrival, Form, Link, Router};

/// The stream's path.
pub const ATTACH: &str = "/twinspan.v1.Gateway/Attach";

mod calls;
mod operators;

pub use calls::Calls;
pub use operators::Operators;

/// The generated server of the stream.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod stub {
    include!(concat!(env!("OUT_DIR"), "/twinspan.v1.Gateway.rs"));
}

/// A message as it came.
#[derive(Debug)]
pub struct Inbound(Bytes);

/// A message as it goes.
#[derive(Debug)]
pub struct Outbound(Bytes);

/// Moves bytes; what they mean is the connection's business, so that a bad message does not end the stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = Outbound;
    type Decode = Inbound;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for FrameCodec {
    type Item = Outbound;
    type Error = Status;

    fn encode(&mut self, Outbound(bytes): Outbound, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(bytes.len());
        buffer.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for FrameCodec {
    type Item = Inbound;
    type Error = Status;

    /// Copies the message out of the large buffer in which it came, and which it would otherwise keep alive in the log.
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Inbound>, Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(Inbound(bytes.into())))
    }
}

/// Whether the peer has ended its half of a stream by itself. hyper and tonic let a stream that was reset look the same.
#[derive(Clone, Debug, Default)]
struct Ended(Arc<AtomicBool>);

/// Whether it is known who sends a request. A stranger may send little.
#[derive(Clone, Debug)]
struct Known(Arc<AtomicBool>);

/// What a request is held to until its message is there.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// What may come before it is known whose it is.
    pub stranger_bytes: usize,
    /// How long the message of a unary call may take to come, and the next piece of an import.
    pub call: Duration,
}

/// The prefixes of the messages in a body, which declare how long they are: what is declared is made room for.
#[derive(Debug, Default)]
struct Prefixes {
    head: [u8; PREFIX],
    have: usize,
    /// Of the message, what is still to come.
    left: usize,
}

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

impl Prefixes {
    /// The most that a message which begins in these bytes declares.
    fn declared(&mut self, mut bytes: &[u8]) -> usize {
        let mut most = 0;
        while !bytes.is_empty() {
            let skipped = bytes.len().min(self.left);
            (self.left, bytes) = (self.left - skipped, &bytes[skipped..]);
            let count = bytes.len().min(PREFIX - self.have);
            self.head[self.have..self.have + count].copy_from_slice(&bytes[..count]);
            (self.have, bytes) = (self.have + count, &bytes[count..]);
            if self.have == PREFIX {
                let [_, length @ ..] = self.head;
                self.left = u32::from_be_bytes(length) as usize;
                self.have = 0;
                most = most.max(self.left);
            }
        }
        most
    }
}

/// The body of a request, which notes how it ends, ends where a stranger says too much, and of a unary call ends in time.
struct Half {
    body: Body,
    ended: Ended,
    known: Known,
    /// What a stranger may still send, in bytes.
    left: usize,
    prefixes: Prefixes,
    due: Due,
}

/// Until when a body is to have come.
enum Due {
    Never,
    /// So long after it was first waited for.
    After(Duration, Of),
    At(Pin<Box<Sleep>>, Duration, Of),
}

/// Of what a body is to have come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    All,
    /// A piece; each has the time anew.
    Piece,
}

/// The calls whose requests are streams of known things, of any length.
const STREAMED: &str = "/twinspan.v1.Admin/Import";

impl Due {
    /// What the streams say comes when it comes; the messages of all other methods are to come at once.
    fn of(path: &str, call: Duration) -> Self {
        let unary = ["/twinspan.v1.Sessions/", "/twinspan.v1.Admin/"];
        match unary.iter().any(|service| path.starts_with(service)) {
            true if path == STREAMED => Self::After(call, Of::Piece),
            true => Self::After(call, Of::All),
            false => Self::Never,
        }
    }

    /// Some of it came.
    fn advance(&mut self) {
        if let Self::At(_, call, Of::Piece) = *self {
            *self = Self::After(call, Of::Piece);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        if let Self::After(call, of) = *self {
            *self = Self::At(Box::pin(tokio::time::sleep(call)), call, of);
        }
        let Self::At(sleep, call, _) = self else {
            return Poll::Pending;
        };
        ready!(sleep.as_mut().poll(cx));
        let seconds = call.as_secs();
        let text = format!("the request of the call did not arrive within {seconds} s; send it again");
        Poll::Ready(Refusal::limit(Reason::CallTimeout, text, ("limits.call", seconds)))
    }
}

impl HttpBody for Half {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() && self.body.is_end_stream() {
            self.ended.0.store(true, Ordering::Relaxed);
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && !self.known.0.load(Ordering::Relaxed)
        {
            let sent = frame.data_ref().cloned().unwrap_or_default();
            let said = self.prefixes.declared(&sent).max(sent.len());
            let left = self.left;
            match left.checked_sub(said).map(|_| left - sent.len()) {
                Some(left) => self.left = left,
                None => return Poll::Ready(Some(Err(axum::Error::new("a stranger said too much")))),
            }
        }
        if polled.is_ready() {
            self.due.advance();
        } else if let Poll::Ready(refusal) = self.due.poll(cx) {
            // tonic finds the status among the sources of what it is given.
            return Poll::Ready(Some(Err(axum::Error::new(refusal.to_status()))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// Has the request note how its body ends, and whether it is known whose it is; and, of a unary call, end in time.
pub fn note_end(mut request: http::Request<Body>, bounds: Bounds) -> http::Request<Body> {
    // In HTTP/1.1, a body that is cut short is an error of its own.
    let is_sure = request.version() != http::Version::HTTP_2;
    let ended = Ended(Arc::new(AtomicBool::new(is_sure)));
    request.extensions_mut().insert(ended.clone());
    let known = Known(Arc::new(AtomicBool::new(
        request.extensions().get::<Arc<Identity>>().is_some(),
    )));
    request.extensions_mut().insert(known.clone());
    let due = Due::of(request.uri().path(), bounds.call);
    request.map(|body| {
        Body::new(Half {
            body,
            ended,
            known,
            left: bounds.stranger_bytes,
            prefixes: Prefixes::default(),
            due,
        })
    })
}

/// Serves `Gateway.Attach`.
#[derive(Clone)]
pub struct Attach {
    router: Router,
}

impl Attach {
    /// The service.
    pub fn new(router: &Router) -> Self {
        Self { router: router.clone() }
    }
}

#[tonic::async_trait]
impl stub::gateway_server::Gateway for Attach {
    type AttachStream = Outlet;

    async fn attach(&self, request: Request<Streaming<Inbound>>) -> Result<Response<Outlet>, Status> {
        let extensions = request.extensions();
        let arrival = Arrival {
            life: tcp::life(extensions, &self.router),
            identity: extensions.get::<Arc<Identity>>().cloned(),
        };
        let ended = extensions.get::<Ended>().cloned().unwrap_or_default();
        let known = extensions.get::<Known>().cloned();
        let link = self
            .router
            .attach(Form::Wire, None, arrival)
            .map_err(|refusal| refusal.to_status())?;
        let connection = Connection::new(&self.router, Arc::clone(&link));
        let inlet = GrpcInlet {
            messages: request.into_inner(),
            limit: self.router.limits().frame_bytes,
            stranger_limit: self.router.limits().pre_auth_bytes,
            ended,
            known,
        };
        tokio::spawn(tokio::task::coop::unconstrained(Drive::new(
            &self.router,
            connection,
            inlet,
        )));
        Ok(Response::new(Outlet(link)))
    }
}

/// The messages to a peer. Dropped, it ends the connection.
pub struct Outlet(Arc<Link>);

impl Outlet {
    pub(super) fn poll_bytes(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        self.0
            .poll_take(cx)
            .map(|next| next.map(|taken| taken.map_err(|refusal| refusal.to_status())))
    }
}

impl Stream for Outlet {
    type Item = Result<Outbound, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_bytes(cx).map(|next| next.map(|bytes| bytes.map(Outbound)))
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.0.abandoned();
    }
}

struct GrpcInlet {
    messages: Streaming<Inbound>,
    limit: usize,
    stranger_limit: usize,
    ended: Ended,
    known: Option<Known>,
}

impl GrpcInlet {
    fn is_strange(&self) -> bool {
        self.known
            .as_ref()
            .is_some_and(|known| !known.0.load(Ordering::Relaxed))
    }
}

impl Inlet for GrpcInlet {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        Pin::new(&mut self.messages).poll_next(cx).map(|next| match next {
            Some(Ok(Inbound(bytes))) => Incoming::Message(Message::Binary(bytes)),
            None if self.ended.0.load(Ordering::Relaxed) => Incoming::HalfClosed,
            // The stream was reset.
            None => Incoming::Closed(Bytes::new()),
            Some(Err(_)) if self.is_strange() => Incoming::Broken(too_much(self.stranger_limit)),
            Some(Err(status)) => broken(&status, self.limit),
        })
    }

    fn trust(&mut self) {
        if let Some(known) = self.known.take() {
            known.0.store(true, Ordering::Relaxed);
        }
    }

    fn poll_linger(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// What tonic's errors of a stream mean: a message over the limit, bytes that are no gRPC, or a peer that is gone.
fn broken(status: &Status, limit: usize) -> Incoming {
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => Incoming::too_large(limit),
        Code::Cancelled | Code::Unavailable | Code::Unknown => Incoming::Closed(Bytes::new()),
        _ => Incoming::Broken(Refusal::new(
            Reason::MalformedFrame,
            format!("not a gRPC message: {}", status.message()),
        )),
    }
}
