//! The server: it binds, it runs, it drains. One port for everything, and a second one beside TLS where that is wanted.
//!
//! `bind` checks what can be checked and knows the addresses; `run` serves until its future ends, and returns after the drain.

mod accept;
mod backups;
mod door;
mod tls;
mod usage;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router as HttpRouter;
use futures_util::future::join_all;
use tokio::sync::watch;
use tonic_health::server::HealthReporter;

use accept::{Listener, Serving};
use backups::Schedule;
use tls::Identity;

use crate::auth::Authenticator;
use crate::config::Config;
use crate::edge::{Origins, Proxies};
use crate::frame::pb::admin_server::AdminServer;
use crate::frame::pb::sessions_server::SessionsServer;
use crate::frame::{DESCRIPTORS, Types};
use crate::log::backup::Shelf;
use crate::log::{self, Disk, Durability, Log, Memory};
use crate::router::{Parts, Router, random_name};
use crate::transport::grpc::stub::gateway_server::GatewayServer;
use crate::transport::{credentials, grpc, http as plain, origins};

/// Why a server cannot start or go on.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// A gateway that has its ports, and does not serve yet.
pub struct Server {
    /// The first is the one that all speak of; the second, where there is one, speaks plaintext beside it.
    listeners: Vec<Listener>,
    identity: Option<Identity>,
    router: Router,
    proxies: Arc<Proxies>,
    origins: Origins,
    backups: Option<Schedule>,
    grace: Duration,
}

impl Server {
    /// Takes the port, and makes all that is needed to serve.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let log = open_log(&config)?;
        Self::bind_with(config, log).await
    }

    /// The same with a log of the caller's.
    pub async fn bind_with(config: Config, log: Arc<dyn Log>) -> Result<Self, Error> {
        let Read { auth, types, identity } = read(&config).await?;
        let mut listeners = vec![listen(config.listen, identity.clone(), "listen").await?];
        if let Some(address) = config.plaintext_listen {
            listeners.push(listen(address, None, "set plaintext_listen").await?);
        }
        let router = Router::start(Parts {
            limits: config.limits,
            auth,
            log,
            types: Arc::new(types),
            routes: config.routes.into_iter().collect(),
            keep: config.retention.keep(),
            idle: config.idle,
            unload: config.disk.unload,
            fold: config.fold,
        });
        recover(&router).await?;
        Ok(Self {
            listeners,
            identity,
            router,
            proxies: Arc::new(config.proxies),
            origins: Origins {
                allowed: config.origins,
                // Where nobody is authenticated, a page needs no more than to reach the gateway.
                trusts_host: config.auth.is_required() && config.auth.certificates.is_empty(),
            },
            backups: config.backup.dir.map(|dir| Schedule {
                shelf: Shelf {
                    dir,
                    keep: config.backup.keep,
                },
                interval: config.backup.interval,
            }),
            grace: config.drain_grace,
        })
    }

    /// Reads the files that the settings name, and says what is wrong with them. Takes nothing.
    pub async fn check(config: &Config) -> Result<(), Error> {
        read(config).await.map(drop)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.listeners[0].address()
    }

    /// Where it listens for plaintext, beside TLS.
    pub fn plaintext_addr(&self) -> Option<SocketAddr> {
        self.listeners.get(1).map(Listener::address)
    }

    /// The router, for those who run a gateway within their own process.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Serves until `shutdown` ends, then drains: takes no new connections, tells everybody, lets open requests finish for as
    /// long as the configuration says, ends what is left, and returns.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let (health, services) = services(&self.router).await?;
        let (closing, closed) = watch::channel(false);
        let serving = Serving {
            router: self.router.clone(),
            guarded: origins::guard(services.clone(), self.origins),
            services,
            proxies: self.proxies,
            closed,
        };
        let accept = join_all(self.listeners.iter().map(|listener| listener.accept(serving.clone())));
        let watch = async {
            match self.identity {
                Some(identity) => identity.watch().await,
                None => std::future::pending().await,
            }
        };
        let back_up = async {
            match &self.backups {
                Some(schedule) => schedule.follow(&self.router).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = accept => {}
            () = back_up => {}
            () = watch => {}
            () = self.router.auth().clone().watch() => {}
            () = send_away(&self.router) => {}
            () = shutdown => {}
        }
        drop(serving);
        drop(self.listeners);
        drain(&self.router, &health, self.grace).await;
        if let Err(refusal) = self.router.close_log().await {
            tracing::error!(%refusal, "what was accepted last could not be written");
        }
        // The last words may still be on their way: each connection ends when it has been told, and lets go of its receiver.
        closing.send_replace(true);
        if tokio::time::timeout(FAREWELL, closing.closed()).await.is_err() {
            tracing::warn!("connections that do not end are cut");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Where sessions are kept, as the settings say.
fn open_log(config: &Config) -> Result<Arc<dyn Log>, Error> {
    if config.durability == Durability::Memory {
        return Ok(Arc::new(Memory::new(config.retention)));
    }
    let settings = log::Settings {
        dir: config.data_dir.clone(),
        durability: config.durability,
        keep: config.retention.keep(),
        min_free_bytes: config.disk.min_free as u64,
        queue_bytes: config.disk.queue,
        cache_bytes: config.disk.cache as u64,
        epoch: random_name().to_string(),
    };
    let (disk, found) = Disk::open(settings).map_err(|error| Error(error.to_string()))?;
    if let Some(torn) = &found.torn {
        tracing::warn!(file = %torn.file.display(), offset = torn.offset, bytes = torn.bytes, whole = torn.is_whole,
            "the last write was not finished, and was cut off: it had not been acked, if the disk keeps its word");
    }
    tracing::info!(
        dir = %config.data_dir.display(),
        sessions = found.sessions,
        journal_bytes = found.journal_bytes,
        took_ms = found.took.as_millis() as u64,
        "data directory opened"
    );
    Ok(Arc::new(disk))
}

/// Brings back what was going on when the last process ended.
async fn recover(router: &Router) -> Result<(), Error> {
    let started = router.now();
    let recovered = router.recover().await.map_err(|refusal| Error(refusal.to_string()))?;
    if recovered.sessions > 0 {
        let took = router.now().mono.saturating_duration_since(started.mono);
        tracing::info!(
            sessions = recovered.sessions,
            open_requests = recovered.requests,
            unreadable = recovered.unreadable,
            took_ms = took.as_millis() as u64,
            "sessions recovered"
        );
    }
    Ok(())
}

/// What the files hold that the settings name.
struct Read {
    auth: Authenticator,
    types: Types,
    identity: Option<Identity>,
}

async fn read(config: &Config) -> Result<Read, Error> {
    Ok(Read {
        auth: Authenticator::open(&config.auth)
            .await
            .map_err(|error| Error(error.to_string()))?,
        types: Types::load(&config.descriptors).map_err(Error)?,
        identity: Identity::load(&config.tls).map_err(|error| Error(error.to_string()))?,
    })
}

/// Ends the connections of those whose credentials are worth nothing any more.
async fn send_away(router: &Router) {
    let mut changed = router.auth().changed();
    while changed.changed().await.is_ok() {
        router.check_identities();
    }
}

async fn listen(address: SocketAddr, tls: Option<Identity>, flag: &str) -> Result<Listener, Error> {
    let unbound = |error| {
        Error(format!(
            "cannot listen on {address}: {error}; choose another address with --{flag}"
        ))
    };
    Listener::bind(address, tls).await.map_err(unbound)
}

/// The largest question about health, or about what there is to call.
const ASKED: usize = 16 << 10;

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
    let v1 = reflection().build_v1().map_err(unreflected)?;
    let v1alpha = reflection().build_v1alpha().map_err(unreflected)?;
    // A call's message holds a frame and a little more.
    let call_limit = limit + (64 << 10);
    let bounds = grpc::Bounds {
        stranger_bytes: router.limits().pre_auth_bytes,
        call,
    };
    let grpc =
        tonic::service::Routes::new(GatewayServer::new(grpc::Attach::new(router)).max_decoding_message_size(limit))
            .add_service(SessionsServer::new(grpc::Calls::new(router)).max_decoding_message_size(call_limit))
            .add_service(AdminServer::new(grpc::Operators::new(router)).max_decoding_message_size(call_limit))
            .add_service(health_service.max_decoding_message_size(ASKED))
            .add_service(v1.max_decoding_message_size(ASKED))
            .add_service(v1alpha.max_decoding_message_size(ASKED))
            .into_axum_router()
            .layer(axum::middleware::map_request(move |request| {
                std::future::ready(grpc::note_end(request, bounds))
            }))
            .layer(axum::middleware::from_fn_with_state(
                router.clone(),
                credentials::authenticate,
            ))
            .layer(tonic_web::GrpcWebLayer::new());
    // Added after the layer, which answers 400 to all HTTP/1 that is not gRPC-Web.
    let all = grpc.merge(plain::routes(router)).fallback(plain::not_found);
    Ok((health, all))
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
        tracing::warn!(requests = router.open_requests(), "the grace is over");
    }
    // What was said last is told to everybody before they are told to go.
    let settled = async {
        while router.unsettled() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(FAREWELL, settled).await.is_err() {
        tracing::warn!(frames = router.unsettled(), "the log does not commit what it has taken");
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
