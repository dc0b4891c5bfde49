//! Making credentials: tokens, API keys, secrets. For `twinspan token`, and for tests; the gateway itself makes none.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, EncodingKey, Header};
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use super::api_keys::{self, Entries, Entry};
use super::keys::{SECRET_BYTES, held_secret};
use super::{Grant, Grants, check_subject, jws};

/// What a token is to say.
#[derive(Clone, Debug)]
pub struct Claims {
    /// Who makes it.
    pub issuer: String,
    /// Whose it is.
    pub subject: String,
    /// Whom it is for.
    pub audience: Vec<String>,
    /// How long it is good for.
    pub ttl: Duration,
    /// What it grants.
    pub grants: Vec<Grant>,
    /// The claim that holds that.
    pub claim: String,
}

/// What tokens are signed with.
pub struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    key_id: Option<String>,
}

impl Signer {
    /// By a secret, as a file holds it. HS256, unless it is to be another.
    pub fn secret(bytes: &[u8], algorithm: Option<Algorithm>) -> Result<Self, String> {
        let algorithm = algorithm.unwrap_or(Algorithm::HS256);
        let secret = held_secret(bytes)?;
        if algorithm.family() != AlgorithmFamily::Hmac {
            return Err(format!("{algorithm:?} takes a private key (--key-file), not a secret"));
        }
        Ok(Self {
            key: EncodingKey::from_secret(secret),
            algorithm,
            key_id: None,
        })
    }

    /// By a private key in PEM (PKCS #8; RSA also PKCS #1), with the algorithm that is usual for it, unless it is to be another.
    pub fn pem(bytes: &[u8], algorithm: Option<Algorithm>) -> Result<Self, String> {
        let key = EncodingKey::from_rsa_pem(bytes);
        let key = key
            .or_else(|_| EncodingKey::from_ec_pem(bytes))
            .or_else(|_| EncodingKey::from_ed_pem(bytes));
        let key = key.map_err(
            |_| "holds no private key in PEM that can be used (\"-----BEGIN PRIVATE KEY-----\": RSA, P-256, P-384, Ed25519)",
        )?;
        let usual: &[Algorithm] = match key.family() {
            AlgorithmFamily::Ec => &[Algorithm::ES256, Algorithm::ES384],
            AlgorithmFamily::Ed => &[Algorithm::EdDSA],
            AlgorithmFamily::Rsa | AlgorithmFamily::Hmac => &[Algorithm::RS256],
        };
        let tried: Vec<Algorithm> = algorithm.map_or_else(|| usual.to_vec(), |algorithm| vec![algorithm]);
        // Whether a key is of an algorithm's curve shows when it signs.
        let fits = |algorithm: &Algorithm| jsonwebtoken::crypto::sign(b"", &key, *algorithm).is_ok();
        let algorithm = tried
            .into_iter()
            .find(fits)
            .ok_or("the key is not one for that algorithm")?;
        Ok(Self {
            key,
            algorithm,
            key_id: None,
        })
    }

    /// The same, with a name for the key in each token.
    #[must_use]
    pub fn named(self, key_id: Option<String>) -> Self {
        Self { key_id, ..self }
    }

    /// A token that says so.
    pub fn token(&self, claims: &Claims, now: SystemTime) -> Result<String, String> {
        check_subject(&claims.subject).map_err(|wrong| format!("the subject {wrong}"))?;
        Grants::new(claims.grants.clone(), &claims.subject)?;
        let seconds = |at: SystemTime| {
            at.duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs())
        };
        let mut members = Map::new();
        members.insert("iss".to_owned(), json!(claims.issuer));
        members.insert("sub".to_owned(), json!(claims.subject));
        members.insert("aud".to_owned(), json!(claims.audience));
        members.insert("iat".to_owned(), json!(seconds(now)));
        members.insert("exp".to_owned(), json!(seconds(now + claims.ttl)));
        members.insert("jti".to_owned(), json!(URL_SAFE_NO_PAD.encode(random::<16>())));
        if !claims.grants.is_empty() {
            members.insert(claims.claim.clone(), json!(claims.grants));
        }
        self.sign(&members)
    }

    /// Any claims at all, signed.
    pub fn sign(&self, claims: &Map<String, Value>) -> Result<String, String> {
        let header = Header {
            kid: self.key_id.clone(),
            ..Header::new(self.algorithm)
        };
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|error| error.to_string())
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({:?})", self.algorithm)
    }
}

/// What an API key is to be.
#[derive(Clone, Debug, Default)]
pub struct KeyWishes {
    /// Its name.
    pub id: String,
    /// Whose it is.
    pub subject: String,
    /// How long it is good for; for ever, if it does not say.
    pub ttl: Option<Duration>,
    /// What it grants.
    pub grants: Vec<Grant>,
}

/// A new API key, and what the file has of it, as TOML.
pub fn api_key(wishes: KeyWishes, now: SystemTime) -> Result<(String, String), String> {
    let KeyWishes {
        id,
        subject,
        ttl,
        grants,
    } = wishes;
    if !api_keys::is_id(&id) {
        return Err("an id is 1 to 64 letters, digits, dots and hyphens".to_owned());
    }
    check_subject(&subject).map_err(|wrong| format!("the subject {wrong}"))?;
    Grants::new(grants.clone(), &subject)?;
    let key = format!("{}{id}_{}", api_keys::PREFIX, URL_SAFE_NO_PAD.encode(random::<32>()));
    let entry = Entry {
        id,
        hash: api_keys::hash(&key),
        subject,
        issued: Some(written(now)),
        expires: ttl.map(|ttl| written(now + ttl)),
        disabled: false,
        grants,
    };
    let entries = Entries { key: vec![entry] };
    let text = toml::to_string(&entries).map_err(|error| error.to_string())?;
    Ok((key, text))
}

/// Whether a file of API keys has one by that id.
pub fn has_api_key(file: &str, id: &str) -> Result<bool, String> {
    let entries: Entries =
        toml::from_str(file).map_err(|error| format!("is not a file of API keys: {}", error.message()))?;
    Ok(entries.key.iter().any(|entry| entry.id == id))
}

/// The second as RFC 3339 has it.
fn written(at: SystemTime) -> String {
    let second = Timestamp {
        nanos: 0,
        ..Timestamp::from(at)
    };
    second.to_string()
}

/// A new secret for HS256 and its like, as a file holds it: text, so that it can be pasted.
pub fn secret() -> String {
    format!("{}\n", URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()))
}

/// What a token says of itself, verified by nobody.
#[derive(Clone, Debug)]
pub struct Unverified {
    /// Its header.
    pub header: Map<String, Value>,
    /// Its claims.
    pub claims: Map<String, Value>,
}

/// Looks into a token. The error says why it is none.
pub fn unverified(token: &str) -> Result<Unverified, &'static str> {
    let jws::Token { header, claims, .. } = jws::Token::parse(token)?;
    Ok(Unverified { header, claims })
}

#[allow(clippy::disallowed_methods, reason = "secrets are drawn here")]
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system must have random numbers");
    bytes
}
