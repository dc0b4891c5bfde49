//! The keys by which tokens are verified, and what each may verify: from a secret, a PEM file or a JWK set (RFC 7517).

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, crypto};
use serde::Deserialize;
use serde_json::Value;

use super::jws::strict;

/// Keys of one set.
const KEYS: usize = 100;
/// Bytes that a secret has at least: as many as HS256 puts out (RFC 7518 §3.2).
pub const SECRET_BYTES: usize = 32;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A key.
#[derive(Debug)]
pub struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Key {
    /// A secret that is shared with the issuer. A line's end after it does not belong to it.
    pub fn secret(bytes: &[u8]) -> Result<Self, String> {
        let secret = trimmed(bytes);
        if secret.len() < SECRET_BYTES {
            return Err(format!(
                "a secret has at least {SECRET_BYTES} bytes, and this one has {}",
                secret.len()
            ));
        }
        Ok(Self {
            id: None,
            algorithms: AlgorithmFamily::Hmac.algorithms().to_vec(),
            key: DecodingKey::from_secret(secret),
        })
    }

    /// A public key in PEM.
    pub fn pem(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is not PEM")?;
        if text.contains("PRIVATE KEY-----") {
            return Err(
                "holds a private key, which only the issuer may have: give the gateway the public one".to_owned(),
            );
        }
        let is_key = text.contains("-----BEGIN PUBLIC KEY-----") || text.contains("-----BEGIN RSA PUBLIC KEY-----");
        if !is_key || text.matches("-----BEGIN ").count() != 1 {
            return Err("is not one public key in PEM (\"-----BEGIN PUBLIC KEY-----\")".to_owned());
        }
        let read = [
            DecodingKey::from_rsa_pem,
            DecodingKey::from_ec_pem,
            DecodingKey::from_ed_pem,
        ];
        let key = read.iter().find_map(|read| read(bytes).ok());
        Self::public(key.ok_or("holds no RSA, P-256, P-384 or Ed25519 key")?)
    }

    /// A public key of any kind.
    fn public(key: DecodingKey) -> Result<Self, String> {
        // The curve of a key in PEM, and the size of any, can be seen from its parts only.
        let parts = Jwk::from_decoding_key(&key, None).map_err(|error| format!("holds no usable key: {error}"))?;
        let algorithms: &[Algorithm] = match parts.algorithm {
            AlgorithmParameters::RSA(rsa) => {
                // Four characters of base64url for three bytes.
                let bits = rsa.n.len() * 6 / 8 * 8;
                if !RSA_BITS.contains(&bits) {
                    return Err(format!("RSA keys have 2048 to 8192 bits, and this one about {bits}"));
                }
                AlgorithmFamily::Rsa.algorithms()
            }
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                jsonwebtoken::jwk::EllipticCurve::P256 => &[Algorithm::ES256],
                jsonwebtoken::jwk::EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return Err("that curve is not known".to_owned()),
            },
            AlgorithmParameters::OctetKeyPair(_) => &[Algorithm::EdDSA],
            _ => return Err("is no public key".to_owned()),
        };
        Ok(Self {
            id: None,
            algorithms: algorithms.to_vec(),
            key,
        })
    }

    /// Whether the signature is this key's.
    pub fn verify(&self, signed: &str, signature: &str, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
            && crypto::verify(signature, signed.as_bytes(), &self.key, algorithm).unwrap_or(false)
    }
}

/// What a secret's file holds, without the line's end.
pub fn trimmed(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

/// The keys of an issuer.
#[derive(Debug)]
pub enum Keys {
    /// One key, which needs no name.
    One(Key),
    /// Some that are told apart by their names.
    Set(Vec<Key>),
}

impl Keys {
    /// Reads a JWK set. Keys that are of no use here are passed over, as RFC 7517 §5 asks.
    pub fn set(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Members {
            keys: Vec<Value>,
        }
        let members = strict(json).and_then(serde_json::from_value::<Members>);
        let Members { keys } = members.map_err(|error| format!("is not a JWK set: {error}"))?;
        if keys.len() > KEYS {
            return Err(format!("has {} keys; at most {KEYS} may be", keys.len()));
        }
        let mut known = Vec::new();
        for (at, key) in keys.into_iter().enumerate() {
            match jwk(key) {
                Ok(key) => known.push(key),
                Err(why) => tracing::debug!(at, why, "a key of the set is passed over"),
            }
        }
        if known.is_empty() {
            tracing::warn!("a JWK set has no key that could verify a token");
        }
        Ok(Self::Set(known))
    }

    /// The key that a token with this header is to be verified by. A token that names none is taken where only one fits.
    pub fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&Key> {
        let set = match self {
            Self::One(key) => return key.algorithms.contains(&algorithm).then_some(key),
            Self::Set(set) => set,
        };
        let mut fitting = set
            .iter()
            .filter(|key| key.algorithms.contains(&algorithm) && (id.is_none() || key.id.as_deref() == id));
        let first = fitting.next();
        first.filter(|_| id.is_some() || fitting.next().is_none())
    }
}

/// A member of a JWK set, as far as it matters here.
#[derive(Deserialize)]
struct Member {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

fn jwk(member: Value) -> Result<Key, String> {
    let member: Member = serde_json::from_value(member).map_err(|error| error.to_string())?;
    if member.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
        return Err("it is not for signatures".to_owned());
    }
    if member.key_ops.is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
        return Err("it is not to verify by".to_owned());
    }
    let parts = (member.kty.as_str(), member.crv.as_deref());
    let (x, y) = (member.x.unwrap_or_default(), member.y.unwrap_or_default());
    let key = match parts {
        ("RSA", _) => DecodingKey::from_rsa_components(&member.n.unwrap_or_default(), &member.e.unwrap_or_default()),
        ("EC", Some("P-256" | "P-384")) => DecodingKey::from_ec_components(&x, &y),
        ("OKP", Some("Ed25519")) => DecodingKey::from_ed_components(&x),
        _ => return Err(format!("its kind is not known: {parts:?}")),
    };
    let mut key = Key::public(key.map_err(|error| error.to_string())?)?;
    if parts.1 == Some("P-256") && key.algorithms != [Algorithm::ES256]
        || parts.1 == Some("P-384") && key.algorithms != [Algorithm::ES384]
    {
        return Err("its coordinates are not of its curve".to_owned());
    }
    if let Some(only) = member.alg {
        key.algorithms.retain(|algorithm| format!("{algorithm:?}") == only);
    }
    key.id = member.kid;
    match key.algorithms.is_empty() {
        true => Err("its algorithm is not known, or not its kind's".to_owned()),
        false => Ok(key),
    }
}
