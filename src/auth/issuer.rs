//! An issuer: its keys, and what a token of its must say (RFC 7519; RFC 8725 is why each check is there).
//!
//! Of a token that is not verified yet, `alg` and `kid` only choose among what the operator listed for this issuer. Claims are
//! looked at when the signature has been found to be right, and not before.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::files::{File, Privacy};
use super::jws::Token;
use super::keys::{Key, Keys};
use super::remote::{Pace, Remote, SET_BYTES, Web};
use super::settings::{IssuerSettings, key_url};
use super::{Grant, Grants, Identity, check_subject, quoted, refused};
use crate::error::{Reason, Refusal};

/// Bytes of a file with one key.
const KEY_BYTES: u64 = 64 << 10;
/// The last second of the year 9999.
const LAST_SECOND: f64 = 253_402_300_799.0;

/// An issuer.
#[derive(Debug)]
pub struct Issuer {
    settings: IssuerSettings,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(Local),
    Url(Box<Remote>),
}

/// Keys in a file.
#[derive(Debug)]
struct Local {
    file: File,
    read: fn(&[u8]) -> Result<Keys, String>,
    algorithms: Vec<Algorithm>,
    keys: RwLock<Arc<Keys>>,
}

impl Local {
    fn open(file: File, read: fn(&[u8]) -> Result<Keys, String>, algorithms: &[Algorithm]) -> Result<Self, String> {
        let local = Self {
            file,
            read,
            algorithms: algorithms.to_vec(),
            keys: RwLock::new(Arc::new(Keys::Set(Vec::new()))),
        };
        local.reload()?;
        Ok(local)
    }

    fn reload(&self) -> Result<(), String> {
        let keys = (self.read)(&self.file.read()?).map_err(|wrong| self.file.wrong(&wrong))?;
        // A single key must be one that the algorithms can use; a set may yet get one.
        let misfit = |algorithm: &&Algorithm| matches!(keys, Keys::One(_)) && keys.find(None, **algorithm).is_none();
        if let Some(algorithm) = self.algorithms.iter().find(misfit) {
            return Err(self.file.wrong(&format!("holds no key for {algorithm:?}")));
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Issuer {
    /// The issuer with its keys, as far as they are in files.
    pub fn open(settings: &IssuerSettings, web: Option<&Web>, pace: Pace) -> Result<Self, String> {
        let algorithms = &settings.algorithms;
        let public = |path, bytes| File::new(path, Privacy::Public, bytes);
        let source = match settings {
            IssuerSettings {
                secret_file: Some(path),
                ..
            } => {
                let read: fn(&[u8]) -> _ = |bytes| Key::secret(bytes).map(Keys::One);
                Source::File(Local::open(
                    File::new(path, Privacy::Secret, KEY_BYTES),
                    read,
                    algorithms,
                )?)
            }
            IssuerSettings {
                key_file: Some(path), ..
            } => {
                let read: fn(&[u8]) -> _ = |bytes| Key::pem(bytes).map(Keys::One);
                Source::File(Local::open(public(path, KEY_BYTES), read, algorithms)?)
            }
            IssuerSettings {
                jwks_file: Some(path), ..
            } => Source::File(Local::open(public(path, SET_BYTES), Keys::set, algorithms)?),
            IssuerSettings { jwks_url, .. } => {
                let url = key_url(jwks_url.as_deref().unwrap_or_default())?;
                let web = web.ok_or("there is nothing to fetch keys with")?.clone();
                Source::Url(Box::new(Remote::new(&settings.issuer, url, web, pace)))
            }
        };
        Ok(Self {
            settings: settings.clone(),
            source,
        })
    }

    /// What its tokens have as `iss`.
    pub fn name(&self) -> &str {
        &self.settings.issuer
    }

    /// Where its keys are fetched, if they are.
    pub fn remote(&self) -> Option<&Remote> {
        match &self.source {
            Source::Url(remote) => Some(remote),
            Source::File(_) => None,
        }
    }

    /// Reads the keys' file again if it has changed. What cannot be used leaves the keys as they were.
    pub fn look(&self) {
        let Source::File(local) = &self.source else { return };
        if !local.file.has_changed() {
            return;
        }
        let issuer = self.name();
        match local.reload() {
            Ok(()) => tracing::info!(issuer, "the issuer's keys were read again"),
            Err(error) => tracing::warn!(
                issuer,
                error,
                "the issuer's keys cannot be read; those that are there serve on"
            ),
        }
    }

    /// Whom the token is of, if it is right in all.
    pub async fn verify(&self, token: &Token<'_>, leeway: Duration, now: SystemTime) -> Result<Identity, Refusal> {
        let algorithm = self.algorithm(&token.header)?;
        let id = match token.header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.as_str()),
            Some(_) => return Err(refused("the token's kid is not text")),
        };
        let keys = match &self.source {
            Source::File(local) => local.keys(),
            Source::Url(remote) => remote.keys(id, algorithm).await?,
        };
        let key = keys.find(id, algorithm).ok_or_else(|| {
            let named = id.map_or("without a kid".to_owned(), |id| format!("with the kid {}", quoted(id)));
            refused(format!(
                "the issuer has no key for a token {named} and the algorithm {algorithm:?}"
            ))
        })?;
        if !key.verify(token.signed, token.signature, algorithm) {
            return Err(refused("the token's signature is not right"));
        }
        self.identity(&token.claims, leeway, now)
    }

    fn algorithm(&self, header: &Map<String, Value>) -> Result<Algorithm, Refusal> {
        if header.contains_key("crit") {
            return Err(refused(
                "the token's header has crit, and the gateway has none of what that demands",
            ));
        }
        match header.get("typ") {
            None => {}
            Some(Value::String(kind)) if is_token_type(kind) => {}
            Some(kind) => {
                let kind = quoted(&kind.to_string());
                return Err(refused(format!("the token's typ is {kind}; it must be JWT or at+jwt")));
            }
        }
        let named = Token::text(header, "alg").ok_or_else(|| refused("the token's header has no alg"))?;
        let known = self.settings.algorithms.iter();
        let listed = known.copied().find(|algorithm| format!("{algorithm:?}") == named);
        listed.ok_or_else(|| {
            refused(format!(
                "the token's alg is not one that the issuer may use: {}",
                quoted(named)
            ))
        })
    }

    fn identity(&self, claims: &Map<String, Value>, leeway: Duration, now: SystemTime) -> Result<Identity, Refusal> {
        self.check_audience(claims)?;
        let expires_at =
            time(claims, "exp")?.ok_or_else(|| refused("the token has no exp: it would be valid for ever"))?;
        let expires_at = expires_at + leeway;
        if let Ok(since) = now.duration_since(expires_at) {
            let text = format!(
                "the token's time is over, since {} s; get a new one",
                (since + leeway).as_secs()
            );
            return Err(Refusal::new(Reason::TokenExpired, text));
        }
        for name in ["nbf", "iat"] {
            if time(claims, name)?.is_some_and(|from| from > now + leeway) {
                return Err(refused(format!(
                    "the token is not valid yet: its {name} is in the future"
                )));
            }
        }
        let subject = match claims.get("sub") {
            Some(Value::String(subject)) => format!("{}{subject}", self.settings.subject_prefix),
            Some(_) => return Err(refused("the token's sub is not text")),
            None => return Err(refused("the token has no sub: it does not say whose it is")),
        };
        check_subject(&subject).map_err(|wrong| refused(format!("the token's sub {wrong}")))?;
        let token_id = match claims.get("jti") {
            None => "",
            Some(Value::String(id)) if id.len() <= 256 && id.bytes().all(|byte| byte.is_ascii_graphic()) => id,
            Some(_) => {
                return Err(refused(
                    "the token's jti is not up to 256 characters of ASCII without spaces",
                ));
            }
        };
        Ok(Identity {
            token_id: token_id.into(),
            issuer: self.name().into(),
            issued_at: time(claims, "iat")?,
            expires_at: Some(expires_at),
            grants: self.grants(claims, &subject)?,
            subject: subject.into(),
        })
    }

    fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), Refusal> {
        let ours = |named: &Value| {
            named
                .as_str()
                .is_some_and(|named| self.settings.audience.iter().any(|one| one == named))
        };
        let (is_ours, shown) = match claims.get("aud") {
            Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
                (list.iter().any(ours), Value::Array(list.clone()).to_string())
            }
            Some(one @ Value::String(text)) => (ours(one), text.clone()),
            Some(_) => return Err(refused("the token's aud is neither text nor a list of texts")),
            None => return Err(refused("the token has no aud: it may be for somebody else")),
        };
        match is_ours {
            true => Ok(()),
            false => Err(refused(format!("the token's audience is not ours: {}", quoted(&shown)))),
        }
    }

    fn grants(&self, claims: &Map<String, Value>, subject: &str) -> Result<Grants, Refusal> {
        let name = &self.settings.claim;
        let wrong = |wrong: String| {
            refused(format!(
                "the token's claim {name:?} cannot be understood: {}",
                short(&wrong)
            ))
        };
        let claimed = Grant::claimed(claims.get(name)).map_err(|error| wrong(error.to_string()))?;
        let all = self.settings.grants.iter().cloned().chain(claimed).collect();
        Grants::new(all, subject).map_err(wrong)
    }
}

fn is_token_type(kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    let kind = kind.strip_prefix("application/").unwrap_or(&kind);
    kind == "jwt" || kind == "at+jwt"
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(160).collect()
}

/// A claim that is a time, in seconds since 1970.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<SystemTime>, Refusal> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let seconds = value.as_f64().filter(|seconds| (0.0..=LAST_SECOND).contains(seconds));
    let seconds = seconds.ok_or_else(|| refused(format!("the token's {name} is not a time in seconds since 1970")))?;
    Ok(Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)))
}
