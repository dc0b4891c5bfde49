//! WebSocket (RFC 6455): the handshake, and messages out of bytes.
//!
//! tungstenite speaks the protocol, but touches no socket: it reads what is fed to it and writes into a buffer, so that the
//! frames it makes (pongs, the answer to a close) and the ready-made messages of the link never get into each other's way,
//! and an idle connection needs no large buffers.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::io::ReadBuf;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

use super::credentials;
use super::frames::Meter;
use super::tcp::{self, Keep, Tcp};
use crate::auth::Identity;
use crate::connection::{Connection, Drive, Incoming, Inlet, Message, too_much};
use crate::error::{Reason, Refusal};
use crate::frame::{Body as FrameBody, Control, Frame, Str, pb};
use crate::router::{Arrival, Form, Life, Link, Router, Socket};

/// Text messages of ProtoJSON.
pub const JSON: &str = "twinspan.v1.json";
/// Binary messages of protobuf.
pub const PROTO: &str = "twinspan.v1.proto";

/// What an idle connection keeps for reading.
const IDLE_BUFFER: usize = 256;
/// What is read from a socket at once.
const READ: usize = 64 << 10;
/// How long what a peer still sends is read after it was sent the last word.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it.
const LINGER_BYTES: usize = 16 << 20;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Answers a handshake, and runs the connection if it is one.
pub fn upgrade(router: &Router, request: Request<Body>) -> Response<Body> {
    upgrade_to(router, request, begin)
}

/// The same, with what is to become of the connection.
fn upgrade_to<T: Future<Output = ()> + Send + 'static>(
    router: &Router,
    mut request: Request<Body>,
    begin: impl FnOnce(&Router, Upgraded, Arrived<'_>) -> Option<T> + Send + 'static,
) -> Response<Body> {
    let handshake = match handshake(&request) {
        Ok(handshake) => handshake,
        Err(refused) => return *refused,
    };
    let life = tcp::life(request.extensions(), router);
    if let Err(refusal) = router.check_room(&life) {
        tracing::debug!(%refusal, "handshake refused");
        let status = match refusal.reason {
            Reason::TooManyFromAddress => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        return super::http::refuse(status, &refusal);
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let extensions = request.extensions().clone();
    let brought = credentials::of_handshake(router, &request);
    let upgrade = hyper::upgrade::on(&mut request);
    let form = handshake.form;
    let router = router.clone();
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                // A page cannot see how a handshake is refused, but it can see a close code.
                let identity = credentials::identify(&router, &extensions, brought).await;
                let keep = extensions.get::<Keep>().cloned();
                drop(extensions);
                let arrived = Arrived {
                    life,
                    identity,
                    form,
                    query: &query,
                };
                match (begin(&router, upgraded, arrived), keep) {
                    (None, _) => {}
                    (Some(drive), None) => drop(tokio::spawn(tokio::task::coop::unconstrained(drive))),
                    (Some(drive), Some(keep)) => drop(tokio::spawn(tokio::task::coop::unconstrained(async move {
                        drive.await;
                        drop(keep);
                    }))),
                }
            }
            Err(error) => tracing::debug!(%error, "the connection ended before it became a WebSocket"),
        }
    });
    handshake.response
}

struct Handshake {
    form: Form,
    response: Response<Body>,
}

fn handshake(request: &Request<Body>) -> Result<Handshake, Box<Response<Body>>> {
    let headers = request.headers();
    let extended = request.method() == Method::CONNECT;
    let protocol = request.extensions().get::<hyper::ext::Protocol>();
    if extended && protocol.is_none_or(|protocol| protocol.as_str() != "websocket") {
        return Err(refuse(
            StatusCode::NOT_IMPLEMENTED,
            "of extended CONNECT (RFC 8441), only `:protocol: websocket` is known",
        ));
    }
    if !extended && !names(headers, header::UPGRADE, "websocket") {
        let mut refused = refuse(
            StatusCode::UPGRADE_REQUIRED,
            "this is a WebSocket endpoint: connect with new WebSocket(url)",
        );
        refused
            .headers_mut()
            .insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
        refused
            .headers_mut()
            .insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        return Err(refused);
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        let mut refused = refuse(
            StatusCode::UPGRADE_REQUIRED,
            "Sec-WebSocket-Version must be 13 (RFC 6455)",
        );
        refused
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_VERSION, header::HeaderValue::from_static("13"));
        return Err(refused);
    }
    let (form, protocol) = subprotocol(headers)?;
    let mut response = Response::builder();
    if extended {
        // RFC 8441: the stream is the connection, and 200 opens it.
        response = response.status(StatusCode::OK);
    } else {
        if request.method() != Method::GET || !names(headers, header::CONNECTION, "upgrade") {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                "a WebSocket handshake is a GET with Connection: Upgrade",
            ));
        }
        let key = headers
            .get(header::SEC_WEBSOCKET_KEY)
            .map(|key| key.as_bytes())
            .unwrap_or_default();
        if !is_key(key) {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                "Sec-WebSocket-Key must be 16 bytes in base64",
            ));
        }
        response = response
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key));
    }
    if let Some(protocol) = protocol {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    match response.body(Body::empty()) {
        Ok(response) => Ok(Handshake { form, response }),
        Err(_) => Err(refuse(StatusCode::BAD_REQUEST, "the handshake cannot be answered")),
    }
}

fn refuse(status: StatusCode, text: impl std::fmt::Display) -> Box<Response<Body>> {
    let mut response = Response::new(Body::from(format!("{text}\n")));
    *response.status_mut() = status;
    Box::new(response)
}

fn is_key(key: &[u8]) -> bool {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD
        .decode(key)
        .is_ok_and(|key| key.len() == 16)
}

/// Whether a header's list has the token.
fn names(headers: &HeaderMap, header: header::HeaderName, token: &str) -> bool {
    list(headers, header).any(|part| part.eq_ignore_ascii_case(token))
}

pub(super) fn list(headers: &HeaderMap, header: header::HeaderName) -> impl Iterator<Item = &str> {
    let values = headers
        .get_all(header)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// The first subprotocol of the client's that is ours. A client that offers none gets JSON.
fn subprotocol(headers: &HeaderMap) -> Result<(Form, Option<&'static str>), Box<Response<Body>>> {
    let mut offered = list(headers, header::SEC_WEBSOCKET_PROTOCOL).peekable();
    if offered.peek().is_none() {
        return Ok((Form::Json, None));
    }
    offered
        .find_map(|protocol| match protocol {
            JSON => Some((Form::Json, Some(JSON))),
            PROTO => Some((Form::Binary, Some(PROTO))),
            _ => None,
        })
        .ok_or_else(|| {
            refuse(
                StatusCode::BAD_REQUEST,
                "none of the subprotocols is known: twinspan.v1.json, twinspan.v1.proto (one of them also beside a credential)",
            )
        })
}

/// What the handshake said.
struct Arrived<'a> {
    life: Life,
    identity: Result<Option<Arc<Identity>>, Refusal>,
    form: Form,
    query: &'a str,
}

/// A connection that the router knows.
struct Linked {
    link: Arc<Link>,
    inlet: WsInlet,
    /// What was wrong with who it is.
    refused: Option<Refusal>,
}

fn connect(router: &Router, upgraded: Upgraded, arrived: Arrived<'_>) -> Option<Linked> {
    let Arrived {
        life, identity, form, ..
    } = arrived;
    let (socket, early): (Pin<Box<dyn Socket>>, Bytes) = match auto::upgrade::downcast::<TokioIo<Tcp>>(upgraded) {
        Ok(parts) => (Box::pin(parts.io.into_inner()), parts.read_buf),
        Err(upgraded) => (Box::pin(TokioIo::new(upgraded)), Bytes::new()),
    };
    // Whoever may not have one more is to be told, as a stranger.
    let identity = identity.and_then(|identity| {
        let room = identity
            .as_ref()
            .map(|identity| router.check_subject(&identity.subject));
        room.transpose().map(|_| identity)
    });
    let (identity, refused) = match identity {
        Ok(identity) => (identity, None),
        Err(refusal) => (None, Some(refusal)),
    };
    let link = match router.attach(form, Some(socket), Arrival { life, identity }) {
        Ok(link) => link,
        Err(refusal) => {
            tracing::debug!(%refusal, "connection refused");
            return None;
        }
    };
    let inlet = WsInlet::new(router, Arc::clone(&link), &early);
    Some(Linked { link, inlet, refused })
}

fn begin(router: &Router, upgraded: Upgraded, arrived: Arrived<'_>) -> Option<Drive<WsInlet>> {
    let query = arrived.query;
    let Linked { link, inlet, refused } = connect(router, upgraded, arrived)?;
    let mut connection = Connection::new(router, link);
    if let Some(refusal) = refused {
        connection.turn_away(&Str::EMPTY, refusal);
    } else if let Some(join) = join_of(&mut connection, query) {
        connection.do_when_known(join);
        connection.flush();
    }
    Some(Drive::new(router, connection, inlet))
}

/// The join that the URL asks for: `?session_id=…&role=…&member_id=…&after_seq=…&epoch=…&tail=…&presence=true`.
fn join_of(connection: &mut Connection, query: &str) -> Option<Frame> {
    match parse_query(query) {
        Ok((session, join)) => {
            let wanted = join.is_some();
            connection.set_session(session.clone());
            let body = FrameBody::Control(Box::new(Control::Join(join.unwrap_or_default())));
            wanted.then(|| Frame {
                session_id: session,
                body,
                ..Frame::default()
            })
        }
        Err(refusal) => {
            connection.link().refuse(&Str::EMPTY, &Str::EMPTY, &refusal);
            connection.link().kick();
            None
        }
    }
}

fn parse_query(query: &str) -> Result<(Str, Option<pb::Join>), Refusal> {
    let mut session = Str::EMPTY;
    let mut join = pb::Join::default();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|_| Refusal::field(key.as_ref(), format!("a whole number is wanted, not {text:?}")))
        };
        match key.as_ref() {
            "session_id" | "sessionId" => session = Str::from(value.as_ref()),
            "role" => join.role = value.into_owned(),
            "member_id" | "memberId" => join.member_id = value.into_owned(),
            "after_seq" | "afterSeq" => join.after_seq = Some(number(&value)?),
            "epoch" => join.epoch = value.into_owned(),
            "tail" => {
                join.tail = u32::try_from(number(&value)?).map_err(|_| Refusal::field("tail", "at most 4294967295"))?;
            }
            "presence" => {
                join.presence = match value.as_ref() {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(Refusal::field("presence", "true or false is wanted")),
                };
            }
            // Looked at before.
            credentials::PARAMETER => {}
            other => {
                let text = format!(
                    "the URL has no parameter {other:?}; it has session_id, role, member_id, after_seq, epoch, tail, presence"
                );
                return Err(Refusal::new(Reason::UnknownField, text).with("field", other.to_owned()));
            }
        }
    }
    if session.is_empty() {
        return match join == pb::Join::default() {
            true => Ok((session, None)),
            false => Err(Refusal::field(
                "session_id",
                "required in the URL, beside what else is there",
            )),
        };
    }
    Ok((session, Some(join)))
}

/// What tungstenite takes for its socket.
#[derive(Default)]
struct Feed {
    unread: Vec<u8>,
    at: usize,
    unsent: Vec<u8>,
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.unread.len() {
            self.unread = Vec::new();
            self.at = 0;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = buffer.len().min(self.unread.len() - self.at);
        buffer[..count].copy_from_slice(&self.unread[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unsent.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct WsInlet {
    link: Arc<Link>,
    router: Router,
    socket: WebSocket<Feed>,
    meter: Meter,
    /// What the meter has to say.
    broken: Option<Box<Refusal>>,
    /// What a stranger may still send, in bytes.
    left: Option<usize>,
    linger: Option<Box<Linger>>,
}

/// What is left of a connection that has been sent the last word.
struct Linger {
    time: Pin<Box<tokio::time::Sleep>>,
    bytes: usize,
}

impl WsInlet {
    fn new(router: &Router, link: Arc<Link>, early: &[u8]) -> Self {
        let left = link.identity().is_none().then_some(router.limits().pre_auth_bytes);
        // What a frame declares is made room for: a stranger is to declare little.
        let limit = left.unwrap_or(usize::MAX).min(router.limits().frame_bytes);
        let config = WebSocketConfig::default()
            .read_buffer_size(IDLE_BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit));
        let feed = Feed {
            unread: early.to_vec(),
            ..Feed::default()
        };
        let socket = WebSocket::from_raw_socket(feed, Role::Server, Some(config));
        let mut inlet = Self {
            link,
            router: router.clone(),
            socket,
            meter: Meter::default(),
            broken: None,
            left,
            linger: None,
        };
        inlet.measure(early);
        inlet
    }

    fn measure(&mut self, bytes: &[u8]) {
        let verdict = self.meter.read(bytes, self.router.limits(), self.link.time());
        if let Err(refusal) = verdict {
            if refusal.reason == Reason::ProtocolFlood {
                self.link.count_flood();
            }
            self.broken.get_or_insert(Box::new(refusal));
        }
    }

    /// Sends what tungstenite has to say.
    fn speak(&mut self) {
        // It has not written yet what it answers; into the buffer it always can.
        drop(self.socket.flush());
        let unsent = &mut self.socket.get_mut().unsent;
        if !unsent.is_empty() {
            self.link.push_first(std::mem::take(unsent).into());
            self.link.kick();
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(self.link.poll_read(cx, &mut buffer))?;
            let filled = buffer.filled();
            if self.linger.is_none() {
                self.socket.get_mut().unread.extend_from_slice(filled);
                self.measure(filled);
            }
            Poll::Ready(Ok(filled.len()))
        })
    }

    fn broken(&self, error: &Error) -> Incoming {
        let limits = self.router.limits();
        let refusal = match error {
            Error::Capacity(CapacityError::MessageTooLong { max_size, .. })
                if self.left.is_some() && *max_size == limits.pre_auth_bytes =>
            {
                too_much(limits.pre_auth_bytes)
            }
            Error::Capacity(CapacityError::MessageTooLong { .. }) => return Incoming::too_large(limits.frame_bytes),
            Error::Utf8(_) => Refusal::new(Reason::InvalidUtf8, "a text message must be UTF-8"),
            Error::ConnectionClosed | Error::AlreadyClosed | Error::Io(_) => return Incoming::Closed(Bytes::new()),
            other => Refusal::new(Reason::ProtocolError, other.to_string()),
        };
        Incoming::Broken(refusal)
    }
}

impl Inlet for WsInlet {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        loop {
            if let Some(refusal) = self.broken.take() {
                return Poll::Ready(Incoming::Broken(*refusal));
            }
            let message = match self.socket.read() {
                Ok(WsMessage::Text(text)) => Message::Text(Str::from(text.as_str())),
                Ok(WsMessage::Binary(bytes)) => Message::Binary(Bytes::copy_from_slice(&bytes)),
                Ok(WsMessage::Close(_)) => {
                    // What was accepted before is acked before the answer to the close.
                    drop(self.socket.flush());
                    let farewell = std::mem::take(&mut self.socket.get_mut().unsent);
                    return Poll::Ready(Incoming::Closed(farewell.into()));
                }
                Ok(_) => {
                    self.speak();
                    return Poll::Ready(Incoming::Nothing);
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    match ready!(self.poll_fill(cx)) {
                        Ok(0) | Err(_) => return Poll::Ready(Incoming::Closed(Bytes::new())),
                        Ok(count) => match self.left.map(|left| left.checked_sub(count)) {
                            Some(None) => {
                                return Poll::Ready(Incoming::Broken(too_much(self.router.limits().pre_auth_bytes)));
                            }
                            left => self.left = left.flatten(),
                        },
                    }
                    continue;
                }
                Err(error) => return Poll::Ready(self.broken(&error)),
            };
            return Poll::Ready(Incoming::Message(message));
        }
    }

    fn trust(&mut self) {
        if self.left.take().is_some() {
            let limit = Some(self.router.limits().frame_bytes);
            self.socket.set_config(|config| {
                *config = config.max_message_size(limit).max_frame_size(limit);
            });
        }
    }

    /// A socket that is closed while bytes of the peer are unread is reset, and the peer may never see the close frame: so
    /// these are read, for a while.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| {
            Box::new(Linger {
                time: Box::pin(tokio::time::sleep(LINGER)),
                bytes: LINGER_BYTES,
            })
        });
        if linger.time.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        self.socket.get_mut().unread = Vec::new();
        match ready!(self.poll_fill(cx)) {
            Ok(0) | Err(_) => Poll::Ready(()),
            Ok(count) => {
                let linger = self.linger.as_mut().filter(|linger| linger.bytes > count);
                let Some(linger) = linger else {
                    return Poll::Ready(());
                };
                linger.bytes -= count;
                // Others first: a peer that floods always has more.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod echo;
