//! Accepting: TCP connections, and the HTTP that is spoken on each. It must never know what a request asks for.

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
use tower_service::Service;

use super::FAREWELL;
use crate::router::{Life, Router};
use crate::transport::tcp::Tcp;

/// Accepts connections for as long as it is polled, and serves each in a task of its own.
pub async fn accept(listener: &TcpListener, router: &Router, services: HttpRouter, closed: watch::Receiver<bool>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let serving = serve(stream, peer, router.clone(), services.clone(), closed.clone());
                tokio::spawn(serving);
            }
            Err(error) => {
                // Out of file descriptors, or a peer that was too quick: neither ends the gateway.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one TCP connection: HTTP/1.1 or HTTP/2, as it turns out.
async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    services: HttpRouter,
    mut closed: watch::Receiver<bool>,
) {
    let (stream, life) = match Tcp::new(stream, &router) {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%peer, %error, "the peer is gone already"),
    };
    let limits = router.limits();
    let asked = Arc::new(AtomicBool::new(false));
    let service = TowerToHyperService::new(Asked {
        inner: services,
        asked: Arc::clone(&asked),
        life,
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
        tokio::time::sleep(limits.handshake).await;
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

/// Notes that the peer has asked for something, and gives its requests the life of the connection.
#[derive(Clone)]
struct Asked {
    inner: HttpRouter,
    asked: Arc<AtomicBool>,
    life: Life,
}

impl Service<Request<Incoming>> for Asked {
    type Response = <HttpRouter as Service<Request<Incoming>>>::Response;
    type Error = <HttpRouter as Service<Request<Incoming>>>::Error;
    type Future = <HttpRouter as Service<Request<Incoming>>>::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        <HttpRouter as Service<Request<Incoming>>>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        self.asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(self.life.clone());
        self.inner.call(request)
    }
}
