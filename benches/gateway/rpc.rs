//! The backends: workers of the gateway, and the worker that the bridge dials. They run in a thread of their own.
//!
//! The messages are written down here as far as they are needed. A payload is kept as the bytes that it has on the wire, so
//! that answering with it costs the worker nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::uri::PathAndQuery;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::{NamedService, StreamingService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::Result;
use crate::traffic::{ROLE, TEXT};

const START_LIMIT: Duration = Duration::from_secs(10);
const MAX_IN_FLIGHT: u32 = 1024;
const QUEUED_FRAMES: usize = 256;
const WINDOW_BYTES: u32 = 1 << 20;
const PACER_STEP: Duration = Duration::from_millis(1);

/// `twinspan.v1.Frame`, as far as it is needed here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Frame {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub session_id: String,
    #[prost(message, optional, tag = "6")]
    pub to: Option<Address>,
    #[prost(uint64, tag = "7")]
    pub seq: u64,
    #[prost(string, tag = "8")]
    pub reply_to: String,
    #[prost(bool, tag = "9")]
    pub last: bool,
    #[prost(message, optional, tag = "11")]
    pub options: Option<RequestOptions>,
    #[prost(uint32, tag = "12")]
    pub attempt: u32,
    #[prost(bytes = "bytes", optional, tag = "16")]
    pub payload: Option<Bytes>,
    #[prost(string, optional, tag = "19")]
    pub text: Option<String>,
    #[prost(message, optional, tag = "22")]
    pub error: Option<Error>,
    #[prost(message, optional, tag = "38")]
    pub serve: Option<Serve>,
    #[prost(bytes = "bytes", optional, tag = "39")]
    pub serving: Option<Bytes>,
    #[prost(message, optional, tag = "41")]
    pub cancel: Option<Cancel>,
    #[prost(message, optional, tag = "45")]
    pub ping: Option<Ping>,
    #[prost(message, optional, tag = "46")]
    pub pong: Option<Ping>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Address {
    #[prost(string, tag = "1")]
    pub role: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestOptions {
    #[prost(int32, tag = "2")]
    pub on_worker_loss: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Error {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub reason: String,
    #[prost(string, tag = "3")]
    pub message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Serve {
    #[prost(string, tag = "1")]
    pub role: String,
    #[prost(uint32, tag = "3")]
    pub max_in_flight: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Cancel {
    #[prost(string, tag = "1")]
    pub request_id: String,
}

/// A pong has the same form.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ping {
    #[prost(string, tag = "1")]
    pub data: String,
}

/// How a worker answers a request.
#[derive(Clone, Copy)]
pub enum Answer {
    /// With the request's payload, so many times; one request after the other.
    Payload { replies: u32 },
    /// With so many pieces of text, the open requests taking turns; at once, or one piece per `pace` and request.
    Text { chunks: u32, pace: Option<Duration> },
}

impl Answer {
    fn replies(self) -> u32 {
        match self {
            Self::Payload { replies } => replies,
            Self::Text { chunks, .. } => chunks,
        }
    }

    fn pace(self) -> Option<Duration> {
        match self {
            Self::Payload { .. } => None,
            Self::Text { pace, .. } => pace,
        }
    }
}

/// A thread with backends. It ends with its handle.
pub struct Backend {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Connects `workers` workers to the gateway; returns when all of them serve.
    pub fn workers(gateway: SocketAddr, workers: usize, answer: Answer) -> Result<Self> {
        let (serving, all_serving) = std::sync::mpsc::channel();
        let backend = Self::spawn(async move {
            let work = (0..workers).map(|_| work(gateway, answer, serving.clone()));
            futures_util::future::try_join_all(work).await.map(|_| ())
        })?;
        for place in 0..workers {
            let told = all_serving.recv_timeout(START_LIMIT);
            told.map_err(|_| format!("worker {place} was not told that it serves"))?;
        }
        Ok(backend)
    }

    /// Starts the worker that the bridge dials; returns it with its address.
    pub fn bridge_worker(replies: u32) -> Result<(Self, SocketAddr)> {
        let (bound, address) = std::sync::mpsc::channel();
        let backend = Self::spawn(async move {
            let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into())?;
            let incoming = incoming.with_nodelay(Some(true));
            bound.send(incoming.local_addr()?)?;
            let server = Server::builder().add_service(BridgeWorker { replies });
            Ok(server.serve_with_incoming(incoming).await?)
        })?;
        Ok((backend, address.recv_timeout(START_LIMIT)?))
    }

    fn spawn(work: impl Future<Output = Result<()>> + Send + 'static) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    ended = work => eprintln!("the workers have ended: {ended:?}"),
                }
            });
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One worker's connection: reads requests, never waiting for its own writing, and hands them to [`answer_all`].
async fn work(gateway: SocketAddr, answer: Answer, serving: std::sync::mpsc::Sender<()>) -> Result<()> {
    let (frames, outgoing) = mpsc::channel(QUEUED_FRAMES);
    let serve = Serve {
        role: ROLE.into(),
        max_in_flight: MAX_IN_FLIGHT,
    };
    frames
        .send(Frame {
            serve: Some(serve),
            ..Frame::default()
        })
        .await?;
    let channel = Endpoint::from_shared(format!("http://{gateway}"))?
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect()
        .await?;
    let mut incoming = attach(channel, outgoing).await?;
    // Bounded by what the gateway hands out at once.
    let (requests, queue) = mpsc::unbounded_channel();
    let answering = tokio::spawn(answer_all(queue, frames, answer));
    while let Some(frame) = incoming.message().await? {
        if let Some(error) = frame.error {
            return Err(format!("refused: {}: {}", error.reason, error.message).into());
        }
        if frame.serving.is_some() {
            serving.send(())?;
        }
        if frame.attempt > 0 {
            requests.send(frame)?;
        }
    }
    drop(requests);
    answering.await?
}

/// Opens a stream of frames in both directions.
pub async fn attach(channel: Channel, outgoing: mpsc::Receiver<Frame>) -> Result<Streaming<Frame>> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static("/twinspan.v1.Gateway/Attach");
    let codec = ProstCodec::<Frame, Frame>::default();
    let request = Request::new(ReceiverStream::new(outgoing));
    Ok(client.streaming(request, path, codec).await?.into_inner())
}

/// An open request.
struct Open {
    request: Frame,
    sent: u32,
    due: Instant,
}

impl Open {
    fn new(request: Frame) -> Self {
        Self {
            request,
            sent: 0,
            due: Instant::now(),
        }
    }

    /// The next reply; the last of all closes the request.
    fn reply(&mut self, answer: Answer) -> Frame {
        self.sent += 1;
        let text = matches!(answer, Answer::Text { .. }).then(|| TEXT.clone());
        Frame {
            session_id: self.request.session_id.clone(),
            reply_to: self.request.id.clone(),
            last: self.sent == answer.replies(),
            payload: self.request.payload.clone().filter(|_| text.is_none()),
            text,
            ..Frame::default()
        }
    }
}

async fn answer_all(queue: mpsc::UnboundedReceiver<Frame>, frames: mpsc::Sender<Frame>, answer: Answer) -> Result<()> {
    match (answer, answer.pace()) {
        (Answer::Payload { .. }, _) => one_after_the_other(queue, frames, answer).await,
        (Answer::Text { .. }, None) => taking_turns(queue, frames, answer).await,
        (Answer::Text { .. }, Some(pace)) => paced(queue, frames, answer, pace).await,
    }
}

async fn one_after_the_other(
    mut queue: mpsc::UnboundedReceiver<Frame>,
    frames: mpsc::Sender<Frame>,
    answer: Answer,
) -> Result<()> {
    while let Some(request) = queue.recv().await {
        let mut open = Open::new(request);
        for _ in 0..answer.replies() {
            frames.send(open.reply(answer)).await?;
        }
    }
    Ok(())
}

async fn taking_turns(
    mut queue: mpsc::UnboundedReceiver<Frame>,
    frames: mpsc::Sender<Frame>,
    answer: Answer,
) -> Result<()> {
    let mut turns = VecDeque::new();
    loop {
        if turns.is_empty() {
            match queue.recv().await {
                Some(request) => turns.push_back(Open::new(request)),
                None => return Ok(()),
            }
        }
        while let Ok(request) = queue.try_recv() {
            turns.push_back(Open::new(request));
        }
        for _ in 0..turns.len() {
            let mut open = turns.pop_front().expect("as many turns must be there as were counted");
            frames.send(open.reply(answer)).await?;
            if open.sent < answer.replies() {
                turns.push_back(open);
            }
        }
    }
}

async fn paced(
    mut queue: mpsc::UnboundedReceiver<Frame>,
    frames: mpsc::Sender<Frame>,
    answer: Answer,
    pace: Duration,
) -> Result<()> {
    let mut open: Vec<Open> = Vec::new();
    let mut steps = tokio::time::interval(PACER_STEP);
    loop {
        if open.is_empty() {
            match queue.recv().await {
                Some(request) => open.push(Open::new(request)),
                None => return Ok(()),
            }
        }
        steps.tick().await;
        while let Ok(request) = queue.try_recv() {
            open.push(Open::new(request));
        }
        let now = Instant::now();
        for request in open.iter_mut().filter(|request| request.due <= now) {
            request.due += pace;
            frames.send(request.reply(answer)).await?;
        }
        open.retain(|request| request.sent < answer.replies());
    }
}

/// What goes between the bridge and its worker, with the payload as bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct Packet {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "3")]
    reply_to: String,
    #[prost(bool, tag = "4")]
    last: bool,
    #[prost(bytes = "bytes", optional, tag = "5")]
    payload: Option<Bytes>,
}

/// The service that the bridge dials: answers each packet with its payload, `replies` times.
#[derive(Clone)]
struct BridgeWorker {
    replies: u32,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl NamedService for BridgeWorker {
    const NAME: &'static str = "bench.Bridge";
}

impl tower_service::Service<http::Request<tonic::body::Body>> for BridgeWorker {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Boxed<std::result::Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let worker = self.clone();
        Box::pin(async move {
            let mut server = tonic::server::Grpc::new(ProstCodec::default());
            Ok(server.streaming(worker, request).await)
        })
    }
}

impl StreamingService<Packet> for BridgeWorker {
    type Response = Packet;
    type ResponseStream = Pin<Box<dyn Stream<Item = std::result::Result<Packet, Status>> + Send>>;
    type Future = Boxed<std::result::Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Packet>>) -> Self::Future {
        let replies = self.replies;
        let answers = request.into_inner().flat_map(move |packet| {
            stream::iter((1..=replies).map(move |reply| {
                packet.clone().map(|packet| Packet {
                    id: String::new(),
                    reply_to: packet.id,
                    last: reply == replies,
                    payload: packet.payload,
                })
            }))
        });
        let answers: Self::ResponseStream = Box::pin(answers);
        Box::pin(std::future::ready(Ok(Response::new(answers))))
    }
}
