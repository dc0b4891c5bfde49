//! The client: the protocol over gRPC, for backends, for tools and for this crate's own commands.
//!
//! It speaks the public protocol and knows nothing of the gateway beyond it.
//!
//! ```no_run
//! use twinspan::client::{Client, Error};
//! use twinspan::frame::{Body, Frame, pb};
//!
//! # async fn example() -> Result<(), Error> {
//! let client = Client::connect("http://127.0.0.1:7080").await?;
//! let mut connection = client.attach().await?;
//! connection.join("room-1", pb::Join::default()).await?;
//! let hello = Frame { session_id: "room-1".into(), body: Body::Text("hello".into()), ..Frame::default() };
//! connection.send(hello).await?;
//! while let Some(frame) = connection.next().await {
//!     println!("{:?}", frame?.body);
//! }
//! # Ok(())
//! # }
//! ```

mod backoff;
mod connection;
mod credential;
mod error;
mod follow;
mod tls;

use std::time::Duration;

use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

pub use backoff::Backoff;
pub use connection::{Connection, Sender};
pub use credential::Credential;
pub use error::{Error, Origin};
pub use follow::{Follow, Followed, Start};
pub use tls::Tls;

use crate::frame::pb::admin_client::AdminClient;
use crate::frame::pb::sessions_client::SessionsClient;

/// The largest frame that a client takes from a gateway.
const MAX_FRAME_BYTES: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a quiet connection is asked for life, so that a gateway that vanished without a word is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A gateway, seen from outside. Clones share one HTTP/2 connection, which is made anew when it was lost.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    credential: Credential,
    url: String,
}

/// What calls go through.
pub type Service = InterceptedService<Channel, Credential>;

impl Client {
    /// Connects to a gateway, such as `http://127.0.0.1:7080` or `https://gateway.example.com`; without a scheme, `http` is meant.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::connect_with(url, &Tls::default()).await
    }

    /// The same, with certificates.
    pub async fn connect_with(url: &str, tls: &Tls) -> Result<Self, Error> {
        let (endpoint, url) = endpoint(url, tls)?;
        match endpoint.connect().await {
            Ok(channel) => Ok(Self {
                channel,
                credential: Credential::default(),
                url,
            }),
            Err(error) => Err(Error::unreachable(&url, &error)),
        }
    }

    /// The same, but it connects when it is first used.
    pub fn connect_lazy(url: &str) -> Result<Self, Error> {
        let (endpoint, url) = endpoint(url, &Tls::default())?;
        Ok(Self {
            channel: endpoint.connect_lazy(),
            credential: Credential::default(),
            url,
        })
    }

    /// The same client, which shows this credential with all that it sends.
    #[must_use]
    pub fn with_credential(self, credential: Credential) -> Self {
        Self { credential, ..self }
    }

    /// Where the gateway is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The calls: sessions without a connection.
    pub fn sessions(&self) -> SessionsClient<Service> {
        SessionsClient::with_interceptor(self.channel.clone(), self.credential.clone())
            .max_decoding_message_size(MAX_FRAME_BYTES)
    }

    /// The calls of operators: workers, and what was counted.
    pub fn admin(&self) -> AdminClient<Service> {
        AdminClient::with_interceptor(self.channel.clone(), self.credential.clone())
            .max_decoding_message_size(MAX_FRAME_BYTES)
    }

    /// Opens a connection: frames in both directions.
    pub async fn attach(&self) -> Result<Connection, Error> {
        Connection::open(self.channel.clone(), &self.credential).await
    }

    /// Follows a session from outside of it, over reconnects, without gaps and duplicates.
    pub fn follow(&self, session: &str, start: Start) -> Follow {
        Follow::new(self.clone(), session, start)
    }
}

fn endpoint(url: &str, tls: &Tls) -> Result<(Endpoint, String), Error> {
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(Error::usage(format!(
            "{url}: the address of a gateway begins with http:// or https://"
        )));
    }
    let endpoint = Endpoint::from_shared(url.clone())
        .and_then(|endpoint| endpoint.user_agent(concat!("twinspan/", env!("CARGO_PKG_VERSION"))))
        .map_err(|error| Error::usage(format!("{url} is not an address of a gateway: {error}")))?
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    Ok((tls.apply(endpoint)?, url))
}

/// A name that nobody else has: `prefix`, a dash, sixteen hexadecimal digits.
pub fn unique_name(prefix: &str) -> String {
    format!("{prefix}-{:016x}", random())
}

fn random() -> u64 {
    getrandom::u64().expect("the system must have random numbers")
}

#[cfg(test)]
mod tests;
