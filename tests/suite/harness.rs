//! A gateway in this process and peers that speak to it over real sockets, on either face, so that a scenario is written once.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use twinspan::config::Config;
use twinspan::error::Reason;
use twinspan::frame::pb::admin_client::AdminClient;
use twinspan::frame::pb::sessions_client::SessionsClient;
use twinspan::frame::{Body, Control, Frame, Payload, Rules, Str, Types, pb};
use twinspan::log::{Durability, Log};
use twinspan::router::Router;
use twinspan::server::Server;

/// Longer than anything here may take; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits, but not for ever.
pub async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// A running gateway, which is drained when it is stopped.
pub struct Gateway {
    pub address: SocketAddr,
    /// Beside TLS.
    pub plaintext: Option<SocketAddr>,
    pub router: Router,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl Gateway {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::bind(config(change), None).await
    }

    pub async fn with_log(log: Arc<dyn Log>) -> Self {
        Self::bind(config(|_| {}), Some(log)).await
    }

    async fn bind(config: Config, log: Option<Arc<dyn Log>>) -> Self {
        let server = match log {
            Some(log) => Server::bind_with(config, log).await,
            None => Server::bind(config).await,
        };
        let server = server.expect("the gateway must start");
        let (address, router) = (server.local_addr(), server.router().clone());
        let plaintext = server.plaintext_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            let run = server.run(async { drop(stopped.await) });
            run.await.expect("the gateway must run");
        });
        Self {
            address,
            plaintext,
            router,
            stop: Some(stop),
            running,
        }
    }

    /// Begins the drain.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn stopped(mut self) {
        self.stop();
        patiently("the gateway to stop", self.running).await.unwrap();
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        patiently("a gRPC connection", endpoint.connect()).await.unwrap()
    }

    pub async fn sessions(&self) -> SessionsClient<Channel> {
        SessionsClient::new(self.channel().await)
    }

    /// A peer that shows who it is in its handshake, if it does.
    pub async fn bearer(&self, face: Face, token: Option<&str>) -> Peer {
        Peer::bearer(self.address, face, token).await
    }

    pub async fn peer(&self, face: Face) -> Peer {
        Peer::at(self.address, face).await
    }

    /// A peer that has joined, and its `Joined`.
    pub async fn member(&self, face: Face, session: &str, name: &str) -> Peer {
        let mut peer = self.peer(face).await;
        peer.join(
            session,
            pb::Join {
                member_id: name.to_owned(),
                ..pb::Join::default()
            },
        )
        .await;
        peer
    }

    /// A peer that reads the session from its beginning.
    pub async fn reader(&self, face: Face, session: &str) -> Peer {
        let mut peer = self.peer(face).await;
        let all = pb::Join {
            after_seq: Some(0),
            ..pb::Join::default()
        };
        peer.join(session, all).await;
        peer
    }

    /// A worker with one role.
    pub async fn worker(&self, face: Face, role: &str, max_in_flight: u32) -> Peer {
        let serve = pb::Serve {
            role: role.to_owned(),
            max_in_flight,
            ..pb::Serve::default()
        };
        self.serving(face, serve).await.0
    }

    /// A worker, and its `Serving`.
    pub async fn serving(&self, face: Face, serve: pb::Serve) -> (Peer, pb::Serving) {
        let mut peer = self.peer(face).await;
        let serving = peer.serve(serve).await;
        (peer, serving)
    }

    pub async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel().await)
    }

    /// Where a request is.
    pub async fn why(&self, session: &str, request: &str) -> pb::WhyResponse {
        self.why_as(session, request, None).await
    }

    pub async fn why_as(&self, session: &str, request: &str, token: Option<&str>) -> pb::WhyResponse {
        let why = pb::WhyRequest {
            session_id: session.to_owned(),
            request_id: request.to_owned(),
        };
        let why = authorized(why, token);
        self.sessions().await.why(why).await.unwrap().into_inner()
    }

    pub async fn websocket(&self, query: &str, protocol: Option<&str>) -> Peer {
        Peer::websocket(self.address, query, protocol).await
    }
}

pub fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        ..Config::default()
    };
    config.durability = Durability::Memory;
    if on_disk() {
        config.durability = Durability::Durable;
        config.data_dir = data_dir();
    }
    // What a test leaves open is not waited for.
    config.drain_grace = Duration::from_millis(100);
    // All peers come from one address.
    config.limits.connections_per_ip = 100_000;
    config.limits.connects_per_second = 100_000;
    change(&mut config);
    config
}

/// Whether all gateways that do not say otherwise keep their sessions on disk: the suite is run over both stores.
fn on_disk() -> bool {
    std::env::var_os("SUITE_ON_DISK").is_some()
}

/// A directory that nobody else has. All of them are in one for the process, which the next run clears away.
pub fn data_dir() -> PathBuf {
    static ALL: LazyLock<PathBuf> = LazyLock::new(|| {
        let all = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("data");
        std::fs::remove_dir_all(&all).ok();
        all
    });
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    ALL.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string())
}

/// What a peer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    Grpc,
    Json,
    Binary,
}

/// The pairs that scenarios are run over.
pub const FACES: [(Face, Face); 6] = [
    (Face::Grpc, Face::Grpc),
    (Face::Json, Face::Json),
    (Face::Binary, Face::Binary),
    (Face::Json, Face::Grpc),
    (Face::Grpc, Face::Json),
    (Face::Binary, Face::Json),
];

#[allow(clippy::large_enum_variant, reason = "there are few")]
enum Wire {
    Grpc {
        send: Option<mpsc::UnboundedSender<Frame>>,
        frames: Streaming<Frame>,
        tasks: Tasks,
    },
    WebSocket {
        socket: Box<WebSocketStream<Box<dyn Io>>>,
        binary: bool,
    },
}

/// What a WebSocket is spoken over.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The tasks of a gRPC connection; without them, its socket is closed.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<Vec<JoinHandle<()>>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.lock().unwrap().push(tokio::spawn(task));
    }
}

/// How a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// gRPC: OK.
    Done,
    Status(Status),
    Close(u16, String),
}

impl Ended {
    /// The reason, as either face tells it.
    pub fn reason(&self) -> Option<String> {
        match self {
            Ended::Done => None,
            Ended::Status(status) => reason_of(status),
            Ended::Close(_, text) => text.split(':').next().map(str::to_owned),
        }
    }
}

/// The reason of a status.
pub fn reason_of(status: &Status) -> Option<String> {
    use tonic_types::StatusExt;
    status.get_details_error_info().map(|info| info.reason)
}

/// One end of a connection.
pub struct Peer {
    wire: Wire,
    types: Types,
}

impl Peer {
    /// A peer of the gateway at this address, in whichever process that is.
    pub async fn at(address: SocketAddr, face: Face) -> Self {
        Self::bearer(address, face, None).await
    }

    /// The same, with a credential in its handshake.
    pub async fn bearer(address: SocketAddr, face: Face, token: Option<&str>) -> Self {
        let protocol = match face {
            Face::Grpc => {
                let peer = Self::grpc(address, token).await;
                return peer.unwrap_or_else(|status| panic!("the stream was refused: {status:?}"));
            }
            Face::Json => "twinspan.v1.json",
            Face::Binary => "twinspan.v1.proto",
        };
        let offered = match token {
            Some(token) => format!("twinspan.bearer.{token}, {protocol}"),
            None => protocol.to_owned(),
        };
        Self::websocket(address, "", Some(&offered)).await
    }

    /// A stream, or the status that it was refused with.
    pub async fn grpc(address: SocketAddr, token: Option<&str>) -> Result<Self, Status> {
        Self::grpc_at(Endpoint::from_shared(format!("http://{address}")).unwrap(), token).await
    }

    /// A peer that dials the endpoint.
    pub async fn grpc_at(endpoint: Endpoint, token: Option<&str>) -> Result<Self, Status> {
        let tasks = Tasks::default();
        let endpoint = endpoint.executor(tasks.clone());
        let channel = patiently("a gRPC connection", endpoint.connect()).await.unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let (send, frames) = mpsc::unbounded_channel::<Frame>();
        let path = http::uri::PathAndQuery::from_static("/twinspan.v1.Gateway/Attach");
        let codec = ProstCodec::<Frame, Frame>::default();
        let request = authorized(UnboundedReceiverStream::new(frames), token);
        let answer = patiently("the stream", client.streaming(request, path, codec)).await?;
        Ok(Self {
            wire: Wire::Grpc {
                send: Some(send),
                frames: answer.into_inner(),
                tasks,
            },
            types: Types::default(),
        })
    }

    pub async fn websocket(address: SocketAddr, query: &str, protocol: Option<&str>) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        Self::websocket_over(Box::new(socket), &format!("{address}/v1/ws{query}"), protocol).await
    }

    /// A peer that shakes hands over a connection which is there already.
    pub async fn websocket_over(io: Box<dyn Io>, place: &str, protocol: Option<&str>) -> Self {
        let mut request = format!("ws://{place}").into_client_request().unwrap();
        if let Some(protocol) = protocol {
            request
                .headers_mut()
                .insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let (socket, _) = patiently("the handshake", tokio_tungstenite::client_async(request, io))
            .await
            .unwrap();
        let binary = protocol.is_some_and(|protocol| protocol.contains("twinspan.v1.proto"));
        Self {
            wire: Wire::WebSocket {
                socket: Box::new(socket),
                binary,
            },
            types: Types::default(),
        }
    }

    pub async fn send(&mut self, frame: Frame) {
        match &mut self.wire {
            Wire::Grpc { send, .. } => send.as_ref().unwrap().send(frame).unwrap(),
            Wire::WebSocket { socket, binary } => {
                let message = message(&frame, *binary, &self.types);
                socket.send(message).await.unwrap();
            }
        }
    }

    /// Sends a frame; whether there was still a connection to send it by.
    pub async fn offer(&mut self, frame: Frame) -> bool {
        match &mut self.wire {
            Wire::Grpc { send, .. } => send.as_ref().is_some_and(|send| send.send(frame).is_ok()),
            Wire::WebSocket { socket, binary } => {
                let message = message(&frame, *binary, &self.types);
                socket.send(message).await.is_ok()
            }
        }
    }

    /// Sends a frame, unless the connection is gone by now.
    pub async fn try_send(&mut self, frame: Frame) {
        match &mut self.wire {
            Wire::Grpc { send, .. } => {
                if let Some(send) = send {
                    send.send(frame).ok();
                }
            }
            Wire::WebSocket { socket, binary } => {
                let message = message(&frame, *binary, &self.types);
                // One that cannot be written at once waits for somebody who reads.
                drop(tokio::time::timeout(Duration::from_millis(200), socket.send(message)).await);
            }
        }
    }

    pub async fn control(&mut self, session: &str, control: Control) {
        self.send(Frame {
            session_id: session.into(),
            body: Body::Control(Box::new(control)),
            ..Frame::default()
        })
        .await;
    }

    /// Sends a raw WebSocket message.
    pub async fn send_raw(&mut self, message: Message) {
        let Wire::WebSocket { socket, .. } = &mut self.wire else {
            panic!("only WebSockets take raw messages")
        };
        socket.send(message).await.unwrap();
    }

    /// The next frame, or how the connection ended.
    pub async fn receive(&mut self) -> Result<Frame, Ended> {
        let rules = Rules {
            ignore_unknown: false,
            types: &self.types,
        };
        match &mut self.wire {
            Wire::Grpc { frames, .. } => match patiently("a frame", frames.message()).await {
                Ok(Some(frame)) => Ok(frame),
                Ok(None) => Err(Ended::Done),
                Err(status) => Err(Ended::Status(status)),
            },
            Wire::WebSocket { socket, .. } => loop {
                match patiently("a message", socket.next()).await {
                    Some(Ok(Message::Text(text))) => {
                        return Ok(
                            Frame::from_json(&Str::from(text.as_str()), &rules).expect("the gateway sends frames")
                        );
                    }
                    Some(Ok(Message::Binary(bytes))) => {
                        return Ok(Frame::from_wire(&bytes, &rules).expect("the gateway sends frames"));
                    }
                    Some(Ok(Message::Close(close))) => {
                        let close = close.map(|close| (u16::from(close.code), close.reason.to_string()));
                        let (code, reason) = close.unwrap_or((u16::from(CloseCode::Status), String::new()));
                        return Err(Ended::Close(code, reason));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(Ended::Close(1006, error.to_string())),
                    None => return Err(Ended::Close(1006, "nothing".to_owned())),
                }
            },
        }
    }

    pub async fn next(&mut self) -> Frame {
        self.receive()
            .await
            .unwrap_or_else(|ended| panic!("the connection ended: {ended:?}"))
    }

    /// The first frame of which the test makes something.
    pub async fn until<T>(&mut self, what: &str, mut test: impl FnMut(&Frame) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let search = async {
            loop {
                let frame = self.next().await;
                if let Some(found) = test(&frame) {
                    return found;
                }
                seen.push(frame);
            }
        };
        patiently(what, search).await
    }

    /// The next frame of the log.
    pub async fn logged(&mut self) -> Frame {
        self.until("a logged frame", |frame| (frame.seq > 0).then(|| frame.clone()))
            .await
    }

    /// The next error that is no reply of a worker.
    pub async fn refusal(&mut self) -> pb::Error {
        self.until("a refusal", |frame| match &frame.body {
            Body::Error(error) if frame.seq == 0 => Some((**error).clone()),
            _ => None,
        })
        .await
    }

    /// The entry of an ack for the id.
    pub async fn acked(&mut self, id: &str) -> pb::Accepted {
        self.until("an ack", |frame| match control(frame) {
            Some(Control::Ack(ack)) => ack.accepted.iter().find(|accepted| accepted.id == id).cloned(),
            _ => None,
        })
        .await
    }

    pub async fn serve(&mut self, serve: pb::Serve) -> pb::Serving {
        self.control("", Control::Serve(serve)).await;
        self.until("serving", |frame| match control(frame) {
            Some(Control::Serving(serving)) => Some(serving.clone()),
            _ => None,
        })
        .await
    }

    /// The next request that is handed to this worker.
    pub async fn handed(&mut self) -> Frame {
        self.until("a request", |frame| {
            (frame.attempt > 0 && frame.reply_to.is_empty()).then(|| frame.clone())
        })
        .await
    }

    /// The next Cancel that this worker is sent.
    pub async fn stopped(&mut self) -> pb::Cancel {
        self.until("a cancel", |frame| match control(frame) {
            Some(Control::Cancel(cancel)) => Some(cancel.clone()),
            _ => None,
        })
        .await
    }

    /// Has a request cancelled, and gives its worker so many milliseconds.
    pub async fn cancel(&mut self, session: &str, request: &str, grace: i64) -> pb::CancelOutcome {
        let cancel = pb::Cancel {
            request_id: request.to_owned(),
            reason: "enough".to_owned(),
            grace: Some(ms(grace).unwrap_or_default()),
            ..pb::Cancel::default()
        };
        self.control(session, Control::Cancel(cancel)).await;
        self.until("the cancel's answer", |frame| match control(frame) {
            Some(Control::CancelAck(ack)) => Some(ack.outcome()),
            _ => None,
        })
        .await
    }

    /// Loses the connection, as when a cable is pulled: the gateway is not told goodbye.
    pub async fn cut(self) {
        if let Wire::Grpc { tasks, .. } = &self.wire {
            let tasks: Vec<_> = tasks.0.lock().unwrap().drain(..).collect();
            // The connection is the first of them: none of the others may take its leave before.
            for task in tasks {
                task.abort();
                drop(task.await);
            }
        }
    }

    pub async fn join(&mut self, session: &str, join: pb::Join) -> pb::Joined {
        self.control(session, Control::Join(join)).await;
        self.until("joined", |frame| match control(frame) {
            Some(Control::Joined(joined)) => Some(joined.clone()),
            _ => None,
        })
        .await
    }

    /// Nothing but acks comes before the answer to a ping.
    pub async fn hears_nothing(&mut self) {
        self.control(
            "",
            Control::Ping(pb::Ping {
                data: "nothing?".to_owned(),
            }),
        )
        .await;
        let is_ack = |frame: &Frame| matches!(control(frame), Some(Control::Ack(_)));
        let next = self
            .until("the pong", |frame| (!is_ack(frame)).then(|| frame.clone()))
            .await;
        assert!(matches!(control(&next), Some(Control::Pong(_))), "unexpected: {next:?}");
    }

    /// The answer to a ping comes before any ack.
    pub async fn hears_no_ack(&mut self) {
        self.control("", Control::Ping(pb::Ping::default())).await;
        let next = self.next().await;
        assert!(matches!(control(&next), Some(Control::Pong(_))), "unexpected: {next:?}");
    }

    /// The final reply to a request, and the text of its chunks.
    pub async fn answer(&mut self, request: &str) -> (String, Frame) {
        let mut text = String::new();
        let last = self
            .until("the final reply", |frame| {
                if frame.reply_to != request || frame.seq == 0 {
                    return None;
                }
                if let Body::Text(part) = &frame.body {
                    text.push_str(part);
                }
                frame.last.then(|| frame.clone())
            })
            .await;
        (text, last)
    }

    /// Takes its leave, and is gone.
    pub async fn goodbye(mut self) {
        match &mut self.wire {
            Wire::Grpc { send, .. } => drop(send.take()),
            Wire::WebSocket { socket, .. } => SinkExt::close(socket).await.unwrap(),
        }
        self.ended().await;
    }

    /// Says that nothing more will be sent.
    pub fn half_close(&mut self) {
        let Wire::Grpc { send, .. } = &mut self.wire else {
            panic!("only gRPC streams have two halves")
        };
        drop(send.take());
    }

    /// How the connection ends, whatever comes before.
    pub async fn ended(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.receive().await {
                return ended;
            }
        }
    }
}

fn message(frame: &Frame, is_binary: bool, types: &Types) -> Message {
    let mut bytes = Vec::new();
    if is_binary {
        frame.write_wire(&mut bytes);
        return Message::binary(bytes);
    }
    frame.write_json(&mut bytes, types);
    Message::text(String::from_utf8(bytes).unwrap())
}

/// A call's message, or a stream's, with a credential in its metadata.
pub fn authorized<T>(message: T, token: Option<&str>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

pub fn control(frame: &Frame) -> Option<&Control> {
    match &frame.body {
        Body::Control(control) => Some(control),
        _ => None,
    }
}

pub fn text(session: &str, id: &str, text: &str) -> Frame {
    Frame {
        session_id: session.into(),
        id: id.into(),
        body: Body::Text(text.into()),
        ..Frame::default()
    }
}

pub fn payload(session: &str, id: &str, json: &str) -> Frame {
    let payload = Payload::from_json_text(Str::from(json)).unwrap();
    Frame {
        session_id: session.into(),
        id: id.into(),
        body: Body::Payload(payload),
        ..Frame::default()
    }
}

pub fn to(frame: Frame, to: pb::Address) -> Frame {
    Frame {
        to: Some(Arc::new(to)),
        ..frame
    }
}

pub fn role(name: &str) -> pb::Address {
    pb::Address {
        role: name.to_owned(),
        ..pb::Address::default()
    }
}

pub fn request(session: &str, id: &str, role_name: &str) -> Frame {
    to(payload(session, id, r#"{"q":"?"}"#), role(role_name))
}

/// So many milliseconds; 0 for none.
pub fn ms(ms: i64) -> Option<prost_types::Duration> {
    (ms > 0).then(|| prost_types::Duration {
        seconds: ms / 1000,
        nanos: (ms % 1000) as i32 * 1_000_000,
    })
}

/// A request with its timeouts in milliseconds; 0 for the default.
pub fn hasty(frame: Frame, accept: i64, total: i64) -> Frame {
    let timeouts = pb::Timeouts {
        accept: ms(accept),
        total: ms(total),
        ..pb::Timeouts::default()
    };
    let options = pb::RequestOptions {
        timeouts: Some(timeouts),
        ..pb::RequestOptions::default()
    };
    with(frame, options)
}

/// A request with options.
pub fn with(frame: Frame, options: pb::RequestOptions) -> Frame {
    Frame {
        options: Some(Box::new(options)),
        ..frame
    }
}

/// What a request wants when its worker is lost.
pub fn on_loss(policy: pb::WorkerLoss) -> pb::RequestOptions {
    pb::RequestOptions {
        on_worker_loss: policy as i32,
        ..pb::RequestOptions::default()
    }
}

/// How a request wants to get along with others of its session.
pub fn alongside(concurrency: pb::Concurrency) -> pb::RequestOptions {
    pb::RequestOptions {
        concurrency: concurrency as i32,
        ..pb::RequestOptions::default()
    }
}

pub fn chunk(asked: &Frame, part: &str) -> Frame {
    Frame {
        reply_to: asked.id.clone(),
        ..text(&asked.session_id, "", part)
    }
}

pub fn last(asked: &Frame, part: &str) -> Frame {
    Frame {
        last: true,
        ..chunk(asked, part)
    }
}

/// The error body of a frame.
pub fn error(frame: &Frame) -> &pb::Error {
    match &frame.body {
        Body::Error(error) => error,
        other => panic!("not an error: {other:?}"),
    }
}

pub fn is(error: &pb::Error, reason: Reason) -> bool {
    error.reason == reason.row().name && error.code == reason.row().code as i32
}

/// What a worker says of a request that it goes on with.
pub fn hold(asked: &Frame) -> pb::Hold {
    pb::Hold {
        session_id: asked.session_id.to_string(),
        request_id: asked.id.to_string(),
        attempt: asked.attempt,
        ..pb::Hold::default()
    }
}

/// The status that a health check is answered.
pub async fn health(address: SocketAddr, path: &str) -> u16 {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    patiently("the answer", socket.read_to_string(&mut answer))
        .await
        .unwrap();
    answer[9..12].parse().unwrap()
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Text of some length, often with characters that JSON escapes.
    pub fn text(&mut self) -> String {
        const PARTS: [&str; 14] = [
            "a",
            "Z",
            "0",
            " ",
            "\"",
            "\\",
            "/",
            "\n",
            "\u{1}",
            "\0",
            "é",
            "€",
            "😀",
            "\u{7F}\u{2028}",
        ];
        let len = *self.pick(&[0, 1, 3, 7, 8, 9, 20, 40, 130, 300]);
        let plain = self.one_in(2);
        (0..len).map(|_| if plain { "x" } else { *self.pick(&PARTS) }).collect()
    }
}
