//! The server: it binds, it runs, it drains. One port for everything.
//!
//! `bind` checks what can be checked and knows the address; `run` serves until its future ends, and returns after the drain.

mod door;
mod usage;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router as HttpRouter;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic_health::server::HealthReporter;

use crate::config::Config;
use crate::frame::pb::admin_server::AdminServer;
use crate::frame::pb::sessions_server::SessionsServer;
use crate::frame::{DESCRIPTORS, Types};
use crate::limits::Limits;
use crate::log::{Log, Memory};
use crate::router::{Admitted, Parts, Router, Trust};
use crate::transport::grpc::stub::gateway_server::GatewayServer;
use crate::transport::tcp::Tcp;
use crate::transport::{grpc, http as plain};

use door::Door;
use usage::{Counted, Usage};

/// Why a server cannot start or go on.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// A gateway that has its port, and does not serve yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    grace: Duration,
}

impl Server {
    /// Takes the port, and makes all that is needed to serve.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let log = Arc::new(Memory::new(config.retention));
        Self::bind_with(config, log).await
    }

    /// The same with a log of the caller's.
    pub async fn bind_with(config: Config, log: Arc<dyn Log>) -> Result<Self, Error> {
        let types = Types::load(&config.descriptors).map_err(Error)?;
        let unbound = |error| {
            Error(format!(
                "cannot listen on {}: {error}; choose another address with --listen",
                config.listen
            ))
        };
        let listener = TcpListener::bind(config.listen).await.map_err(unbound)?;
        let address = listener.local_addr().map_err(unbound)?;
        let router = Router::start(Parts {
            limits: config.limits,
            log,
            types: Arc::new(types),
            routes: config.routes.into_iter().collect(),
            idle: config.idle,
            fold: config.fold,
        });
        Ok(Self {
            listener,
            address,
            router,
            grace: config.drain_grace,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The router, for those who run a gateway within their own process.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Serves until `shutdown` ends, then drains: takes no new connections, tells everybody, lets open requests finish for as
    /// long as the configuration says, ends what is left, and returns.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let (health, services) = services(&self.router).await?;
        tracing::info!(address = %self.address, "listening");
        let (closing, closed) = watch::channel(false);
        let accept = accept(&self.listener, &self.router, services, closed);
        tokio::select! {
            () = accept => {}
            () = shutdown => {}
        }
        drop(self.listener);
        drain(&self.router, &health, self.grace).await;
        // The last words may still be on their way: each connection ends when it has been told, and lets go of its receiver.
        closing.send_replace(true);
        if tokio::time::timeout(FAREWELL, closing.closed()).await.is_err() {
            tracing::warn!("connections that do not end are cut");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

async fn services(router: &Router) -> Result<(HealthReporter, HttpRouter), Error> {
    let (limit, call) = (router.limits().frame_bytes, router.limits().call);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<GatewayServer<grpc::Attach>>().await;
    health.set_serving::<SessionsServer<grpc::Calls>>().await;
    let unreflected =
        |error: tonic_reflection::server::Error| Error(format!("the compiled-in descriptors do not work: {error}"));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // With it, tools can show the reason of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    // A call's message holds a frame and a little more.
    let call_limit = limit + (64 << 10);
    let grpc =
        tonic::service::Routes::new(GatewayServer::new(grpc::Attach::new(router)).max_decoding_message_size(limit))
            .add_service(SessionsServer::new(grpc::Calls::new(router)).max_decoding_message_size(call_limit))
            .add_service(AdminServer::new(grpc::Operators::new(router)).max_decoding_message_size(call_limit))
            .add_service(health_service)
            .add_service(reflection().build_v1().map_err(unreflected)?)
            .add_service(reflection().build_v1alpha().map_err(unreflected)?)
            .into_axum_router()
            .layer(axum::middleware::map_request(move |request| {
                std::future::ready(grpc::note_end(request, call))
            }))
            .layer(tonic_web::GrpcWebLayer::new());
    // Added after the layer, which answers 400 to all HTTP/1 that is not gRPC-Web.
    let all = grpc.merge(plain::routes(router)).fallback(plain::not_found);
    Ok((health, all))
}

async fn accept(listener: &TcpListener, router: &Router, services: HttpRouter, closed: watch::Receiver<bool>) {
    let door = Door::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match router.admission().admit(peer.ip(), Trust::Client) {
                Ok(admitted) => {
                    let visitor = Visitor { stream, peer, admitted };
                    tokio::spawn(serve(visitor, router.clone(), services.clone(), closed.clone()));
                }
                Err(refusal) => {
                    tracing::debug!(%peer, %refusal, "turned away");
                    door.turn_away(stream, &refusal);
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

/// A TCP connection that was let in.
struct Visitor {
    stream: TcpStream,
    peer: SocketAddr,
    admitted: Admitted,
}

/// What an HTTP/2 stream may have in its buffer to be sent.
const SEND_BUFFER: usize = 128 << 10;
/// What an HTTP/2 stream, and all of a connection's together, may send before it is read.
const WINDOW: u32 = 1 << 20;

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
        .max_local_error_reset_streams(limits.http2_resets_per_second as usize * 2)
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        // Who holds requests and says nothing must be seen to live a few times within its lease.
        .keep_alive_interval(limits.heartbeat.min(limits.shortest_lease() / 3))
        .keep_alive_timeout(limits.heartbeat);
    builder
}

/// Serves one TCP connection: HTTP/1.1 or HTTP/2, as it turns out.
async fn serve(visitor: Visitor, router: Router, services: HttpRouter, mut closed: watch::Receiver<bool>) {
    let Visitor { stream, peer, admitted } = visitor;
    let (stream, life) = match Tcp::new(stream, &router, admitted) {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%peer, %error, "the peer is gone already"),
    };
    let usage = Usage::default();
    let service = TowerToHyperService::new(Counted::new(services, router.clone(), usage.clone(), life));
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
        is_silent = unused(&router, &usage) => is_silent,
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
async fn unused(router: &Router, usage: &Usage) -> bool {
    let limits = router.limits();
    tokio::time::sleep(limits.handshake).await;
    if !usage.has_asked() {
        return true;
    }
    loop {
        let idle = usage.idle(router.uptime(router.now()));
        if idle >= limits.idle {
            return false;
        }
        tokio::time::sleep(limits.idle - idle).await;
    }
}

async fn asked_to_close(closed: &mut watch::Receiver<bool>) {
    // A sender that is gone asks for the same.
    drop(closed.wait_for(|closed| *closed).await);
}

/// How long connections may take to be told the last word.
const FAREWELL: Duration = Duration::from_secs(3);

async fn drain(router: &Router, health: &HealthReporter, grace: Duration) {
    tracing::info!(
        connections = *router.link_count().borrow(),
        requests = router.open_requests(),
        "draining"
    );
    health.set_not_serving::<GatewayServer<grpc::Attach>>().await;
    health.set_not_serving::<SessionsServer<grpc::Calls>>().await;
    router.drain(grace);
    let finished = async {
        while router.open_requests() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(grace, finished).await.is_err() {
        tracing::warn!(
            requests = router.open_requests(),
            "the grace is over; what is open is ended"
        );
    }
    router.shut_down();
    let mut count = router.link_count();
    let gone = count.wait_for(|count| *count == 0);
    if tokio::time::timeout(FAREWELL, gone).await.is_err() {
        tracing::warn!(
            connections = *router.link_count().borrow(),
            "connections that did not take the last word are cut"
        );
    }
}
