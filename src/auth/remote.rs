//! A key set that its issuer publishes at a URL: fetched, kept, fetched anew.
//!
//! The URL is the operator's; nothing of a token ever gets into a request. A fetch is bounded in time and bytes, follows no
//! redirect, and there is one at a time: all that wait for keys wait for the same one. Where a fetch fails, the keys of the last
//! one serve on.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::Algorithm;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout};

use super::files::{File, Privacy};
use super::keys::Keys;
use crate::error::{Reason, Refusal};

/// Bytes of a key set.
pub const SET_BYTES: u64 = 256 << 10;
/// Bytes of a file of certificates.
const CA_BYTES: u64 = 1 << 20;

/// What key sets are fetched with.
pub type Web = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// A client that trusts the system's authorities, and those in the file.
pub fn web(ca: Option<&Path>) -> Result<Web, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        let file = File::new(path, Privacy::Public, CA_BYTES);
        let pem = file.read()?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let certificates = certificates.map_err(|error| file.wrong(&format!("is not PEM: {error}")))?;
        if certificates.is_empty() {
            return Err(file.wrong("holds no certificate in PEM"));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| file.wrong(&error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector))
}

/// How often, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two fetches that went well.
    pub refresh: Duration,
    /// Between any two.
    pub again: Duration,
    /// What one may take.
    pub timeout: Duration,
    /// How old keys may be that cannot be fetched anew.
    pub stale: Duration,
}

impl Pace {
    /// The pace at which a set is refreshed so often.
    pub fn new(refresh: Duration) -> Self {
        Self {
            refresh,
            again: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
            stale: Duration::from_secs(24 * 60 * 60),
        }
    }
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Keys>, Arc<str>>>>;

/// The set.
pub struct Remote {
    issuer: String,
    url: Uri,
    web: Web,
    pace: Pace,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: Option<(Arc<Keys>, Instant)>,
    /// When the last fetch began.
    tried: Option<Instant>,
    flight: Option<Flight>,
    is_failing: bool,
}

impl Remote {
    /// The set at the URL. Nothing is fetched yet.
    pub fn new(issuer: &str, url: Uri, web: Web, pace: Pace) -> Self {
        Self {
            issuer: issuer.to_owned(),
            url,
            web,
            pace,
            state: Mutex::default(),
        }
    }

    /// The keys among which that of a token is to be found. Where it names one that is not known, they are fetched anew, if they
    /// may be.
    pub async fn keys(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Arc<Keys>, Refusal> {
        let began = Instant::now();
        let known = match self.known() {
            Some(known) => known,
            None => (self.fetched().await?, Instant::now()),
        };
        let (keys, at) = known;
        let is_known = id.is_none() || keys.find(id, algorithm).is_some();
        if is_known || at >= began {
            return Ok(keys);
        }
        self.fetched().await
    }

    /// Fetches the set if it is time to, and finishes what somebody began and did not wait for.
    pub async fn refresh(&self) {
        let is_due = {
            let state = self.lock();
            let is_old = state
                .keys
                .as_ref()
                .is_none_or(|(_, at)| at.elapsed() >= self.pace.refresh);
            is_old || state.flight.is_some()
        };
        if is_due && let Some(flight) = self.flight() {
            // What went wrong is logged where it is settled.
            self.landed(flight).await.ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> Option<(Arc<Keys>, Instant)> {
        let known = self.lock().keys.clone();
        known.filter(|(_, at)| at.elapsed() < self.pace.stale)
    }

    /// Keys that were fetched now, or an answer that says when to ask again.
    async fn fetched(&self) -> Result<Arc<Keys>, Refusal> {
        let landed = match self.flight() {
            Some(flight) => self.landed(flight).await.ok(),
            None => None,
        };
        landed.ok_or_else(|| {
            let since = self.lock().tried.map_or(Duration::ZERO, |tried| tried.elapsed());
            let text = format!(
                "the keys of the issuer {:?} cannot be had now; try again later",
                self.issuer
            );
            let after = self.pace.again.saturating_sub(since).max(Duration::from_secs(1));
            let mut refusal = Refusal::new(Reason::AuthUnavailable, text).with("issuer", self.issuer.clone());
            refusal.retry_after = Some(after);
            refusal
        })
    }

    /// The fetch that is under way, or a new one, if it is not too soon.
    fn flight(&self) -> Option<Flight> {
        let mut state = self.lock();
        if state.flight.is_none() {
            if state.tried.is_some_and(|tried| tried.elapsed() < self.pace.again) {
                return None;
            }
            state.tried = Some(Instant::now());
            state.flight = Some(
                fetch(self.web.clone(), self.url.clone(), self.pace.timeout)
                    .boxed()
                    .shared(),
            );
        }
        state.flight.clone()
    }

    async fn landed(&self, flight: Flight) -> Result<Arc<Keys>, Arc<str>> {
        let outcome = flight.clone().await;
        let mut state = self.lock();
        // The first of those that waited for it settles it.
        if state.flight.as_ref().is_some_and(|current| current.ptr_eq(&flight)) {
            state.flight = None;
            let was_failing = state.is_failing;
            state.is_failing = outcome.is_err();
            let issuer = &self.issuer;
            match &outcome {
                Ok(keys) => {
                    state.keys = Some((Arc::clone(keys), Instant::now()));
                    if was_failing {
                        tracing::info!(issuer, "the issuer's keys can be fetched again");
                    }
                }
                Err(error) if was_failing => tracing::debug!(issuer, %error, "the issuer's keys cannot be fetched"),
                Err(error) => {
                    let have_keys = state.keys.is_some();
                    tracing::warn!(issuer, %error, have_keys, "the issuer's keys cannot be fetched; those that are there serve on");
                }
            }
        }
        outcome
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({})", self.url)
    }
}

async fn fetch(web: Web, url: Uri, limit: Duration) -> Result<Arc<Keys>, Arc<str>> {
    let set = timeout(limit, get(web, url)).await;
    let set = set.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
    set.map(Arc::new).map_err(Arc::from)
}

async fn get(web: Web, url: Uri) -> Result<Keys, String> {
    let request = Request::get(url)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, concat!("twinspan/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let response = web.request(request).await.map_err(|error| causes(&error))?;
    if response.status() != StatusCode::OK {
        return Err(format!(
            "the answer is {}; redirects are not followed",
            response.status()
        ));
    }
    let limit = usize::try_from(SET_BYTES).unwrap_or(usize::MAX);
    let body = Limited::new(response.into_body(), limit).collect().await;
    let body = body.map_err(|error| format!("{error} (at most {SET_BYTES} bytes are read)"))?;
    Keys::set(&body.to_bytes())
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::auth::tests::{Answer, Folder, Publisher, set_of};

    const NEVER: Duration = Duration::from_secs(3600);

    /// Everything whenever it is wanted, and old keys for ever.
    const EAGER: Pace = Pace {
        refresh: Duration::ZERO,
        again: Duration::ZERO,
        timeout: Duration::from_secs(10),
        stale: NEVER,
    };

    fn remote(publisher: &Publisher, pace: Pace) -> Remote {
        Remote::new("them", publisher.url.parse().unwrap(), web(None).unwrap(), pace)
    }

    async fn has(remote: &Remote, id: &str) -> Result<bool, Reason> {
        let keys = remote
            .keys(Some(id), Algorithm::EdDSA)
            .await
            .map_err(|refusal| refusal.reason)?;
        Ok(keys.find(Some(id), Algorithm::EdDSA).is_some())
    }

    #[tokio::test]
    async fn a_new_key_is_known_at_once_and_an_old_one_no_more_after_the_refresh() {
        let publisher = Publisher::new(set_of(&["a"])).await;
        let remote = remote(&publisher, EAGER);
        assert_eq!(has(&remote, "a").await, Ok(true));
        assert_eq!((has(&remote, "a").await, publisher.asked()), (Ok(true), 1));
        publisher.answers(set_of(&["a", "b"]));
        assert_eq!((has(&remote, "b").await, publisher.asked()), (Ok(true), 2));
        publisher.answers(set_of(&["b"]));
        assert_eq!(has(&remote, "a").await, Ok(true));
        remote.refresh().await;
        assert_eq!(has(&remote, "a").await, Ok(false));
        assert_eq!(has(&remote, "b").await, Ok(true));
    }

    #[tokio::test]
    async fn keys_serve_on_while_there_are_no_newer_ones() {
        let publisher = Publisher::new(Answer::Cut).await;
        let remote = remote(&publisher, EAGER);
        assert_eq!(has(&remote, "a").await, Err(Reason::AuthUnavailable));
        publisher.answers(set_of(&["a"]));
        assert_eq!(has(&remote, "a").await, Ok(true));
        for wrong in [Answer::Cut, Answer::Set("oops".to_owned())] {
            publisher.answers(wrong);
            remote.refresh().await;
            assert_eq!(has(&remote, "a").await, Ok(true));
            assert_eq!(has(&remote, "b").await, Err(Reason::AuthUnavailable));
        }
    }

    #[tokio::test]
    async fn keys_that_are_too_old_serve_no_more() {
        let publisher = Publisher::new(set_of(&["a"])).await;
        let stale = Pace {
            stale: Duration::ZERO,
            ..EAGER
        };
        let remote = remote(&publisher, stale);
        assert_eq!(has(&remote, "a").await, Ok(true));
        publisher.answers(Answer::Cut);
        assert_eq!(has(&remote, "a").await, Err(Reason::AuthUnavailable));
    }

    #[tokio::test]
    async fn all_who_wait_wait_for_one_fetch() {
        let publisher = Publisher::new(set_of(&["a"])).await;
        let slow = Pace { again: NEVER, ..EAGER };
        let remote = remote(&publisher, slow);
        let all = join_all((0..100).map(|_| has(&remote, "a"))).await;
        assert!(all.iter().all(|has| *has == Ok(true)));
        assert_eq!(publisher.asked(), 1);
    }

    #[tokio::test]
    async fn strangers_cannot_have_the_set_fetched_again_and_again() {
        let publisher = Publisher::new(set_of(&["a"])).await;
        let slow = Pace { again: NEVER, ..EAGER };
        let remote = remote(&publisher, slow);
        assert_eq!(has(&remote, "a").await, Ok(true));
        for id in ["b", "../../dev/null", "' OR 1=1 --"] {
            let refusal = remote.keys(Some(id), Algorithm::EdDSA).await.unwrap_err();
            assert_eq!(refusal.reason, Reason::AuthUnavailable);
            assert!(refusal.retry_after.is_some());
        }
        assert_eq!((has(&remote, "a").await, publisher.asked()), (Ok(true), 1));
    }

    #[tokio::test]
    async fn who_goes_away_leaves_the_fetch_to_others() {
        let mut publisher = Publisher::new(Answer::Silence).await;
        let slow = Pace {
            again: NEVER,
            timeout: Duration::from_millis(200),
            ..EAGER
        };
        let remote = remote(&publisher, slow);
        tokio::select! {
            _ = has(&remote, "a") => panic!("nobody answered"),
            () = publisher.is_asked(1) => {}
        }
        // It is the same fetch that is finished here.
        assert_eq!(has(&remote, "a").await, Err(Reason::AuthUnavailable));
        assert_eq!(publisher.asked(), 1);
    }

    #[tokio::test]
    async fn a_fetch_has_an_end_in_time_and_bytes_and_goes_nowhere_else() {
        let elsewhere = Publisher::new(set_of(&["a"])).await;
        let publisher = Publisher::new(Answer::Silence).await;
        let brief = Pace {
            timeout: Duration::from_millis(50),
            ..EAGER
        };
        assert_eq!(has(&remote(&publisher, brief), "a").await, Err(Reason::AuthUnavailable));
        let Answer::Set(set) = set_of(&["a"]) else {
            unreachable!()
        };
        let padded = |bytes: usize| Answer::Set(format!("{set}{}", " ".repeat(bytes - set.len())));
        let limit = usize::try_from(SET_BYTES).unwrap();
        for (answer, is_taken) in [
            (padded(limit), Ok(true)),
            (padded(limit + 1), Err(Reason::AuthUnavailable)),
            (Answer::Redirect(elsewhere.url.clone()), Err(Reason::AuthUnavailable)),
        ] {
            publisher.answers(answer);
            assert_eq!(has(&remote(&publisher, EAGER), "a").await, is_taken);
        }
        assert_eq!(elsewhere.asked(), 0);
    }

    #[tokio::test]
    async fn whoever_publishes_must_be_somebody_who_is_trusted() {
        let (publisher, authority) = Publisher::with_tls(set_of(&["a"])).await;
        let folder = Folder::new("ca");
        let ca = folder.write("ca.pem", &authority);
        let by = |ca: Option<&Path>| Remote::new("them", publisher.url.parse().unwrap(), web(ca).unwrap(), EAGER);
        assert_eq!(has(&by(Some(&ca)), "a").await, Ok(true));
        assert_eq!(has(&by(None), "a").await, Err(Reason::AuthUnavailable));
        for wrong in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(web(Some(&folder.write("ca.pem", wrong))).is_err(), "{wrong}");
        }
        assert!(web(Some(&folder.path("none.pem"))).is_err());
    }
}
