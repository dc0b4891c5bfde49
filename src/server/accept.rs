//! Accepting: TCP connections, what precedes HTTP on them (the PROXY header, TLS), and the HTTP that is spoken on each. It must
//! never know what a request asks for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
use super::tls::Identity;
use crate::edge::Proxies;
use crate::router::{Life, Router};
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

/// A connection on which HTTP may begin.
struct Opened {
    stream: Stream,
    client: Client,
    certificate: Option<ClientCertificate>,
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

    /// Accepts connections for as long as it is polled, and serves each in a task of its own.
    pub async fn accept(&self, serving: Serving) {
        tracing::info!(address = %self.address, tls = self.tls.is_some(), "listening");
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    tokio::spawn(serve(stream, peer, self.tls.clone(), serving.clone()));
                }
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
async fn serve(stream: TcpStream, peer: SocketAddr, tls: Option<Identity>, serving: Serving) {
    let deadline = Instant::now() + serving.router.limits().handshake;
    let mut closed = serving.closed.clone();
    // Boxed: it is over soon, and the task that stays is not to have its size.
    let opening = Box::pin(open(stream, peer, tls, &serving.proxies));
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
async fn open(mut stream: TcpStream, peer: SocketAddr, tls: Option<Identity>, proxies: &Proxies) -> io::Result<Opened> {
    // Without it, small messages wait for the peer's delayed acknowledgements.
    stream.set_nodelay(true)?;
    let mut address = peer;
    if proxies.protocol && proxies.trust(peer.ip()) {
        address = proxy::header(&mut stream).await?.unwrap_or(peer);
    }
    address.set_ip(address.ip().to_canonical());
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
    })
}

/// HTTP/1.1 or HTTP/2, as it turns out.
async fn speak_http(opened: Opened, deadline: Instant, serving: Serving) {
    let peer = opened.client.address;
    let limits = serving.router.limits();
    let mut closed = serving.closed.clone();
    let (stream, life) = Tcp::new(opened.stream, &serving.router);
    let asked = Arc::new(AtomicBool::new(false));
    let service = TowerToHyperService::new(Asked {
        services: serving.services.clone(),
        guarded: serving.guarded.clone(),
        proxies: Arc::clone(&serving.proxies),
        asked: Arc::clone(&asked),
        life,
        client: opened.client,
        certificate: opened.certificate,
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.handshake);
    builder
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(256)
        // Who holds requests and says nothing must be seen to live a few times within its lease.
        .keep_alive_interval(limits.heartbeat.min(limits.shortest_lease() / 3))
        .keep_alive_timeout(limits.heartbeat);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let silence = async {
        tokio::time::sleep_until(deadline).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "connection ended");
            }
        }
        () = silence => tracing::debug!(%peer, "connected, and asked for nothing: closed"),
        () = asked_to_close(&mut closed) => {
            connection.as_mut().graceful_shutdown();
            if let Ok(Err(error)) = tokio::time::timeout(FAREWELL, connection).await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        }
    }
}

async fn asked_to_close(closed: &mut watch::Receiver<bool>) {
    // A sender that is gone asks for the same.
    drop(closed.wait_for(|closed| *closed).await);
}

/// Notes that the peer has asked for something, and gives its requests the life of the connection and what is known of the peer.
#[derive(Clone)]
struct Asked {
    services: HttpRouter,
    guarded: HttpRouter,
    proxies: Arc<Proxies>,
    asked: Arc<AtomicBool>,
    life: Life,
    client: Client,
    certificate: Option<ClientCertificate>,
}

impl Asked {
    /// Whose request it is: behind a trusted proxy each may be somebody else's.
    fn client(&self, request: &Request<Incoming>) -> Client {
        let named = match self.client.is_trusted_proxy {
            true => self.proxies.client(request.headers()),
            false => None,
        };
        named.map_or(self.client, |address| Client {
            address,
            is_trusted_proxy: self.proxies.trust(address.ip()),
            ..self.client
        })
    }
}

impl Service<Request<Incoming>> for Asked {
    type Response = <HttpRouter as Service<Request<Incoming>>>::Response;
    type Error = <HttpRouter as Service<Request<Incoming>>>::Error;
    type Future = <HttpRouter as Service<Request<Incoming>>>::Future;

    /// A router is always ready.
    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        <HttpRouter as Service<Request<Incoming>>>::poll_ready(&mut self.services, cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        self.asked.store(true, Ordering::Relaxed);
        let client = self.client(&request);
        let extensions = request.extensions_mut();
        extensions.insert(self.life.clone());
        extensions.insert(client);
        if let Some(certificate) = &self.certificate {
            extensions.insert(certificate.clone());
        }
        match origins::is_of_a_page(&request) {
            true => self.guarded.call(request),
            false => self.services.call(request),
        }
    }
}

#[cfg(test)]
mod tests;
