//! The authenticator: credentials go in, identities come out. It knows all issuers, keys and revocations, and keeps them as their
//! files and URLs have them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::sync::watch;

use super::api_keys::{self, ApiKeys};
use super::files::{File, Privacy};
use super::issuer::Issuer;
use super::jws::Token;
use super::remote::{Pace, Remote, web};
use super::revocations::Revocations;
use super::settings::Settings;
use super::{API_KEYS, CertificateRule, Grants, Identity, Revocation, certificates, mint, quoted, refused};
use crate::error::{Reason, Refusal};
use crate::frame::Str;

/// Bytes of a token.
const TOKEN_BYTES: usize = 16 << 10;
/// How the credential of a part of this process begins.
const INSIDER: &str = "tsi_";
/// How often files are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// A credential as it came. It is never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A credential.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0).into_bytes();
        bytes.fill(0);
        // Looked at, so that the filling is not left out.
        std::hint::black_box(&bytes);
    }
}

/// Everything that is wrong with what authentication needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub Vec<String>);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("peers could not be authenticated:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Error {}

/// Says who a peer is. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Authenticator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    is_required: bool,
    takes_query: bool,
    issuers: Vec<Issuer>,
    api_keys: Option<ApiKeys>,
    certificates: Vec<CertificateRule>,
    revocations: Revocations,
    /// Parts of this process, by the hash of what they show.
    insiders: Mutex<HashMap<String, Identity>>,
    leeway: Duration,
    changes: watch::Sender<u64>,
}

impl Authenticator {
    /// Reads all files, and says everything that is wrong at once. Nothing is fetched yet, and nothing runs: `watch` does both.
    #[allow(
        clippy::unused_async,
        reason = "opening may yet have to wait, and callers do not care"
    )]
    pub async fn open(settings: &Settings) -> Result<Self, Error> {
        Self::open_at_pace(settings, Pace::new(settings.jwks_refresh))
    }

    pub(super) fn open_at_pace(settings: &Settings, pace: Pace) -> Result<Self, Error> {
        let problems = settings.problems().into_iter();
        let mut wrong: Vec<_> = problems.map(|(key, problem)| format!("{key}: {problem}")).collect();
        let mut issuers = Vec::new();
        if wrong.is_empty() {
            let fetches = settings.issuers.iter().any(|issuer| issuer.jwks_url.is_some());
            let web = fetches.then(|| web(settings.ca.as_deref())).transpose();
            let web = web.unwrap_or_else(|problem| {
                wrong.push(format!("auth.ca: {problem}"));
                None
            });
            for issuer in &settings.issuers {
                match Issuer::open(issuer, web.as_ref(), pace) {
                    Ok(issuer) => issuers.push(issuer),
                    Err(problem) => wrong.push(format!("auth.issuers, {:?}: {problem}", issuer.issuer)),
                }
            }
        }
        let mut take = |key: &str, problems: Vec<String>| {
            wrong.extend(problems.into_iter().map(|problem| format!("{key}: {problem}")));
        };
        let api_keys = settings.api_keys.as_deref().and_then(|path| {
            let file = File::new(path, Privacy::Secret, api_keys::FILE_BYTES);
            ApiKeys::open(file)
                .map_err(|problems| take("auth.api_keys", problems))
                .ok()
        });
        let revocations = Revocations::open(settings.revocations.as_deref(), clock())
            .map_err(|problems| take("auth.revocations", problems))
            .ok();
        match revocations {
            Some(revocations) if wrong.is_empty() => Ok(Self(Arc::new(Inner {
                is_required: settings.is_required(),
                takes_query: settings.query,
                issuers,
                api_keys,
                certificates: settings.certificates.clone(),
                revocations,
                insiders: Mutex::default(),
                leeway: settings.leeway,
                changes: watch::Sender::new(0),
            }))),
            _ => Err(Error(wrong)),
        }
    }

    /// One that authenticates nobody: everybody may do everything, and has no name.
    pub fn nobody() -> Self {
        Self(Arc::new(Inner {
            is_required: false,
            takes_query: false,
            issuers: Vec::new(),
            api_keys: None,
            certificates: Vec::new(),
            revocations: Revocations::in_memory(),
            insiders: Mutex::default(),
            leeway: Duration::ZERO,
            changes: watch::Sender::new(0),
        }))
    }

    /// Whether peers have to prove who they are.
    pub fn is_required(&self) -> bool {
        self.0.is_required
    }

    /// Whether a credential may be in a URL.
    pub fn takes_query(&self) -> bool {
        self.0.takes_query
    }

    /// Whose credential it is: a JSON Web Token, or an API key, which is told by how it begins.
    pub async fn authenticate(&self, secret: &Secret, now: SystemTime) -> Result<Identity, Refusal> {
        if !self.is_required() {
            return Ok(Identity::nobody());
        }
        let said = secret.0.as_str();
        let identity = if said.starts_with(INSIDER) {
            let insiders = self.0.insiders.lock().unwrap_or_else(PoisonError::into_inner);
            let insider = insiders.get(&api_keys::hash(said)).cloned();
            insider.ok_or_else(|| refused("this credential is not of this process"))?
        } else if said.starts_with(api_keys::PREFIX) {
            let keys = self
                .0
                .api_keys
                .as_ref()
                .ok_or_else(|| refused("this gateway takes no API keys"))?;
            keys.authenticate(said, now)?
        } else {
            self.token(said, now).await?
        };
        self.0.revocations.check(&identity, now)?;
        Ok(identity)
    }

    async fn token(&self, text: &str, now: SystemTime) -> Result<Identity, Refusal> {
        if text.len() > TOKEN_BYTES {
            let message = format!("the token has {} bytes; at most {TOKEN_BYTES} are taken", text.len());
            return Err(refused(message).with("limit", TOKEN_BYTES.to_string()));
        }
        let token =
            Token::parse(text).map_err(|wrong| refused(format!("that is no token that could be taken: {wrong}")))?;
        let named = Token::text(&token.claims, "iss").ok_or_else(|| refused("the token has no iss"))?;
        let issuer = self.0.issuers.iter().find(|issuer| issuer.name() == named);
        let issuer =
            issuer.ok_or_else(|| refused(format!("the token's issuer is not one of ours: {}", quoted(named))))?;
        issuer.verify(&token, self.0.leeway, now).await
    }

    /// A credential for a part of this process itself, such as a worker for demonstration. Nobody else knows it, and it is gone with
    /// the process.
    pub fn insider(&self, subject: &'static str, grants: Grants) -> String {
        let secret = format!("{INSIDER}{}", mint::secret().trim_end());
        let identity = Identity {
            subject: Str::from_static(subject),
            grants,
            ..Identity::nobody()
        };
        let mut insiders = self.0.insiders.lock().unwrap_or_else(PoisonError::into_inner);
        insiders.insert(api_keys::hash(&secret), identity);
        secret
    }

    /// Whom a client certificate stands for, which TLS has verified. None where certificates stand for nobody: then another
    /// credential is needed. Where both are there, the other one counts.
    pub fn certificate(&self, der: &[u8], now: SystemTime) -> Option<Result<Identity, Refusal>> {
        if self.0.certificates.is_empty() {
            return None;
        }
        let identity = certificates::identity(&self.0.certificates, der, now);
        Some(identity.and_then(|identity| self.0.revocations.check(&identity, now).map(|()| identity)))
    }

    /// Whether an identity is still good: it may have expired or been taken back since.
    pub fn check_again(&self, identity: &Identity, now: SystemTime) -> Result<(), Refusal> {
        if !self.is_required() {
            return Ok(());
        }
        if identity.expires_at.is_some_and(|at| at <= now) {
            let text = "the credential's time is over; connect again with a new one, and resume";
            return Err(Refusal::new(Reason::TokenExpired, text));
        }
        if identity.issuer == *API_KEYS
            && let Some(keys) = &self.0.api_keys
        {
            keys.check_again(&identity.token_id, now)?;
        }
        self.0.revocations.check(identity, now)
    }

    /// Takes something back, for good: it is in the file, if there is one, when this returns. It waits for the disk.
    pub fn revoke(&self, revocation: Revocation) -> Result<(), Refusal> {
        if !self.is_required() {
            let text = "this gateway authenticates nobody: there is nothing to take back";
            return Err(Refusal::new(Reason::UnexpectedFrame, text));
        }
        self.0.revocations.revoke(revocation, clock())?;
        self.bump();
        Ok(())
    }

    /// All that is taken back, and not forgotten.
    pub fn revocations(&self) -> Vec<Revocation> {
        self.0.revocations.list()
    }

    /// Counts up whenever an identity that was good may not be any more.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Keeps up with files and URLs. It never ends, and is to run once for each gateway.
    pub async fn watch(self) {
        let files = async {
            loop {
                tokio::time::sleep(LOOK).await;
                let looking = self.clone();
                if tokio::task::spawn_blocking(move || looking.look()).await.is_err() {
                    tracing::error!("the files of authentication could not be looked at");
                }
            }
        };
        let remotes = self
            .0
            .issuers
            .iter()
            .filter_map(Issuer::remote)
            .map(async |remote: &Remote| {
                loop {
                    remote.refresh().await;
                    tokio::time::sleep(LOOK).await;
                }
            });
        tokio::join!(files, join_all(remotes));
    }

    /// Reads again what has changed.
    pub(super) fn look(&self) {
        let inner = &self.0;
        inner.issuers.iter().for_each(Issuer::look);
        let keys = inner.api_keys.as_ref().is_some_and(ApiKeys::look);
        if inner.revocations.look(clock()) || keys {
            self.bump();
        }
    }

    fn bump(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }
}

impl Identity {
    /// Who everybody is where nobody is authenticated.
    pub fn nobody() -> Self {
        Self {
            subject: Str::EMPTY,
            token_id: Str::EMPTY,
            issuer: Str::EMPTY,
            issued_at: None,
            expires_at: None,
            grants: Grants::all(),
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "for what is read and forgotten by the calendar, and asked by nobody"
)]
fn clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::IssuerSettings;
    use crate::auth::tests::{Publisher, set_of};

    #[tokio::test]
    async fn keys_are_fetched_before_anybody_needs_them_and_again_and_again() {
        let mut publisher = Publisher::new(set_of(&["a"])).await;
        let issuer = format!(
            "issuer = \"us\"\naudience = [\"a\"]\nalgorithms = [\"EdDSA\"]\njwks_url = {:?}\n",
            publisher.url
        );
        let settings = Settings {
            issuers: vec![toml::from_str::<IssuerSettings>(&issuer).unwrap()],
            ..Settings::default()
        };
        let pace = Pace {
            again: Duration::ZERO,
            ..Pace::new(Duration::ZERO)
        };
        let watching = tokio::spawn(Authenticator::open_at_pace(&settings, pace).unwrap().watch());
        publisher.is_asked(2).await;
        watching.abort();
    }
}
