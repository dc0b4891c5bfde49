//! Accepting: TCP connections, what precedes HTTP on them (the PROXY header, TLS), and the HTTP that is spoken on each. It must
//! never know what a request asks for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router as HttpRouter;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

use super::FAREWELL;
use super::door::Door;
use super::tls::Identity;
use super::usage::{Counted, Usage};
use crate::edge::Proxies;
use crate::error::Refusal;
use crate::limits::Limits;
use crate::router::{Admitted, Life, Router, Trust};
use crate::transport::tcp::{Client, ClientCertificate, Stream, Tcp};
use crate::transport::{origins, proxy};

/// A port that is taken, and what is spoken there.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<Identity>,
}

/// What all connections are served with.
#[derive(Clone)]
pub struct Serving {
    pub router: Router,
    /// For requests that come from no page.
    pub services: HttpRouter,
    /// For requests of pages.
    pub guarded: HttpRouter,
    pub proxies: Arc<Proxies>,
    /// Says when connections are to end.
    pub closed: watch::Receiver<bool>,
}

impl Serving {
    /// Lets a peer in, or says why not. What is a proxy's is its clients', who are counted when they are known.
    fn admit(&self, peer: SocketAddr) -> Result<Admitted, Refusal> {
        let trust = match self.proxies.trust(peer.ip()) {
            true => Trust::Proxy,
            false => Trust::Client,
        };
        self.router.admission().admit(peer.ip(), trust)
    }
}

/// A TCP connection that was let in.
struct Visitor {
    stream: TcpStream,
    peer: SocketAddr,
    admitted: Admitted,
}

/// A connection on which HTTP may begin.
struct Opened {
    stream: Stream,
    client: Client,
    certificate: Option<ClientCertificate>,
    admitted: Admitted,
}

impl Listener {
    /// Takes the port.
    pub async fn bind(address: SocketAddr, tls: Option<Identity>) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address, tls })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections for as long as it is polled, and serves each that is let in, in a task of its own.
    pub async fn accept(&self, serving: Serving) {
        tracing::info!(address = %self.address, tls = self.tls.is_some(), "listening");
        let door = Door::new();
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => match serving.admit(peer) {
                    Ok(admitted) => {
                        let visitor = Visitor { stream, peer, admitted };
                        tokio::spawn(serve(visitor, self.tls.clone(), serving.clone()));
                    }
                    Err(refusal) => {
                        tracing::debug!(%peer, %refusal, "turned away");
                        // To be told why within TLS costs a handshake, which is what floods are made of.
                        if self.tls.is_none() {
                            door.turn_away(stream, &refusal);
                        }
                    }
                },
                Err(error) => {
                    // Out of file descriptors, or a peer that was too quick: neither ends the gateway.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// Serves one TCP connection, from its first byte on.
async fn serve(visitor: Visitor, tls: Option<Identity>, serving: Serving) {
    let peer = visitor.peer;
    let deadline = Instant::now() + serving.router.limits().handshake;
    let mut closed = serving.closed.clone();
    // Boxed: it is over soon, and the task that stays is not to have its size.
    let opening = Box::pin(open(visitor, tls, &serving));
    let opened = tokio::select! {
        opened = timeout_at(deadline, opening) => opened,
        () = asked_to_close(&mut closed) => return,
    };
    match opened {
        Ok(Ok(opened)) => speak_http(opened, deadline, serving).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "the connection did not come about: closed"),
        Err(_) => tracing::debug!(%peer, "the handshake took too long: closed"),
    }
}

/// What comes before HTTP: a trusted proxy's header, then TLS.
async fn open(visitor: Visitor, tls: Option<Identity>, serving: &Serving) -> io::Result<Opened> {
    let Visitor {
        mut stream,
        peer,
        mut admitted,
    } = visitor;
    let proxies = &serving.proxies;
    // Without it, small messages wait for the peer's delayed acknowledgements.
    stream.set_nodelay(true)?;
    let mut address = peer;
    if proxies.protocol && proxies.trust(peer.ip()) {
        address = proxy::header(&mut stream).await?.unwrap_or(peer);
    }
    address.set_ip(address.ip().to_canonical());
    if address.ip() != peer.ip().to_canonical() {
        admitted = serving.admit(address).map_err(io::Error::other)?;
    }
    let (stream, certificate) = match tls {
        Some(identity) => {
            let (stream, certificate) = identity.accept(stream).await?;
            (Stream::Tls(stream), certificate)
        }
        None => (Stream::Plain(stream), None),
    };
    let client = Client {
        address,
        is_tls: matches!(stream, Stream::Tls(_)),
        is_trusted_proxy: proxies.trust(address.ip()),
    };
    Ok(Opened {
        stream,
        client,
        certificate,
        admitted,
    })
}

/// What an HTTP/2 stream may have in its buffer to be sent.
const SEND_BUFFER: usize = 128 << 10;
/// What an HTTP/2 stream may send before it is read.
const WINDOW: u32 = 1 << 20;
/// What all streams of a connection may. h2 derives from it how many small DATA frames may wait to be read (a 512th of it), which is
/// to be more than the frames that may come at once.
const CONNECTION_WINDOW: u32 = 8 << 20;

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(limits.header_bytes)
        .header_read_timeout(limits.handshake);
    builder
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(limits.http2_streams as usize)
        // It would count for as long as the connection lives; the meter sees what the gateway resets, and how fast.
        .max_local_error_reset_streams(None)
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Who holds requests and says nothing must be seen to live a few times within its lease.
        .keep_alive_interval(limits.heartbeat.min(limits.shortest_lease() / 3))
        .keep_alive_timeout(limits.heartbeat);
    builder
}

/// HTTP/1.1 or HTTP/2, as it turns out.
async fn speak_http(opened: Opened, deadline: Instant, serving: Serving) {
    let Opened {
        stream,
        client,
        certificate,
        admitted,
    } = opened;
    let peer = client.address;
    let router = serving.router.clone();
    let mut closed = serving.closed.clone();
    let (stream, life) = Tcp::new(stream, &router, admitted);
    let usage = Usage::default();
    let known = Known {
        serving,
        life,
        client,
        certificate,
    };
    let service = TowerToHyperService::new(Counted::new(known, router.clone(), usage.clone()));
    let builder = builder(router.limits());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let is_silent = tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "connection ended");
            }
            return;
        }
        is_silent = unused(&router, &usage, deadline) => is_silent,
        () = asked_to_close(&mut closed) => false,
    };
    if is_silent {
        return tracing::debug!(%peer, "connected, and asked for nothing: closed");
    }
    connection.as_mut().graceful_shutdown();
    if let Ok(Err(error)) = tokio::time::timeout(FAREWELL, connection).await {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Waits until a connection is of no use: whether it never was of any.
async fn unused(router: &Router, usage: &Usage, deadline: Instant) -> bool {
    let limit = router.limits().idle;
    tokio::time::sleep_until(deadline).await;
    if !usage.has_asked() {
        return true;
    }
    loop {
        let idle = usage.idle(router.uptime(router.now()));
        if idle >= limit {
            return false;
        }
        tokio::time::sleep(limit - idle).await;
    }
}

async fn asked_to_close(closed: &mut watch::Receiver<bool>) {
    // A sender that is gone asks for the same.
    drop(closed.wait_for(|closed| *closed).await);
}

/// Gives requests the life of their connection, and what is known of their peer.
#[derive(Clone)]
struct Known {
    serving: Serving,
    life: Life,
    client: Client,
    certificate: Option<ClientCertificate>,
}

impl Known {
    /// Whose request it is, and the life that is counted among the client's own: behind a trusted proxy each request may be
    /// somebody else's.
    fn client(&self, request: &Request<Incoming>) -> (Client, Life) {
        let proxies = &self.serving.proxies;
        let named = match self.client.is_trusted_proxy {
            true => proxies.client(request.headers()),
            false => None,
        };
        let admission = self.serving.router.admission();
        let Some(address) = named else {
            // A proxy that is to name its clients, and does not, is as one client.
            let is_silent = self.client.is_trusted_proxy && proxies.reads_headers();
            let counted = is_silent.then(|| admission.client(self.client.address.ip()));
            let life = match counted {
                None => self.life.clone(),
                counted => self.life.clone().of(counted),
            };
            return (self.client, life);
        };
        let client = Client {
            address,
            is_trusted_proxy: proxies.trust(address.ip()),
            ..self.client
        };
        let counted = Some(admission.client(address.ip()));
        (client, self.life.clone().of(counted))
    }
}

impl Service<Request<Incoming>> for Known {
    type Response = <HttpRouter as Service<Request<Incoming>>>::Response;
    type Error = <HttpRouter as Service<Request<Incoming>>>::Error;
    type Future = <HttpRouter as Service<Request<Incoming>>>::Future;

    /// A router is always ready.
    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        <HttpRouter as Service<Request<Incoming>>>::poll_ready(&mut self.serving.services, cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let (client, life) = self.client(&request);
        let extensions = request.extensions_mut();
        extensions.insert(life);
        extensions.insert(client);
        if let Some(certificate) = &self.certificate {
            extensions.insert(certificate.clone());
        }
        match origins::is_of_a_page(&request) {
            true => self.serving.guarded.call(request),
            false => self.serving.services.call(request),
        }
    }
}

#[cfg(test)]
mod tests;
