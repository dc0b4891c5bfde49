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
        Ok(Self {
            id: None,
            algorithms: AlgorithmFamily::Hmac.algorithms().to_vec(),
            key: DecodingKey::from_secret(held_secret(bytes)?),
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

/// The secret that a file holds, if it is long enough.
pub fn held_secret(bytes: &[u8]) -> Result<&[u8], String> {
    let secret = trimmed(bytes);
    match secret.len() < SECRET_BYTES {
        true => Err(format!(
            "a secret has at least {SECRET_BYTES} bytes, and this one has {}",
            secret.len()
        )),
        false => Ok(secret),
    }
}

/// What a secret's file holds, without the line's end.
fn trimmed(bytes: &[u8]) -> &[u8] {
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

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    /// RFC 7515, appendix A.2.
    const RSA: &str = r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;
    const RSA_SIGNATURE: &str = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    /// Appendix A.3.
    const EC: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    const EC_SIGNATURE: &str = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    /// RFC 8037, appendices A.2 and A.4.
    const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    const ED_SIGNATURE: &str = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

    fn set(keys: &[&str]) -> Keys {
        Keys::set(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes()).unwrap()
    }

    fn with(key: &str, more: &str) -> String {
        format!("{},{more}}}", key.trim_end_matches('}'))
    }

    #[test]
    fn the_examples_of_the_standards() {
        let all = set(&[RSA, EC, ED]);
        for (algorithm, header, claims, signature) in [
            (Algorithm::RS256, "eyJhbGciOiJSUzI1NiJ9", EXAMPLE, RSA_SIGNATURE),
            (Algorithm::ES256, "eyJhbGciOiJFUzI1NiJ9", EXAMPLE, EC_SIGNATURE),
            (
                Algorithm::EdDSA,
                "eyJhbGciOiJFZERTQSJ9",
                "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
                ED_SIGNATURE,
            ),
        ] {
            let key = all.find(None, algorithm).unwrap();
            let signed = format!("{header}.{claims}");
            assert!(key.verify(&signed, signature, algorithm), "{algorithm:?}");
            assert!(!key.verify(&signed[1..], signature, algorithm), "{algorithm:?}");
            assert!(!key.verify(&signed, &signature[4..], algorithm), "{algorithm:?}");
            assert!(!key.verify(&signed, signature, Algorithm::HS256), "{algorithm:?}");
        }
    }

    #[test]
    fn the_example_of_a_shared_secret() {
        use base64::Engine;
        let secret = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let secret = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(secret).unwrap();
        let signed = format!("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{EXAMPLE}");
        let signature = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert!(
            Key::secret(&secret)
                .unwrap()
                .verify(&signed, signature, Algorithm::HS256)
        );
        assert!(
            !Key::secret(&secret[1..])
                .unwrap()
                .verify(&signed, signature, Algorithm::HS256)
        );
    }

    #[test]
    fn a_secret_is_long_and_ends_before_its_line_does() {
        assert!(Key::secret(&[b'a'; 31]).is_err());
        assert!(Key::secret(&[&[b'a'; 31][..], b"\r\n"].concat()).is_err());
        assert!(Key::secret(&[b'a'; 32]).is_ok());
        assert_eq!(trimmed(b"secret\r\n"), b"secret");
        assert_eq!(trimmed(b" secret\n\n"), b" secret\n");
    }

    #[test]
    fn a_key_is_found_by_its_name_and_algorithm() {
        let keys = set(&[
            &with(RSA, r#""kid":"a""#),
            &with(EC, r#""kid":"a""#),
            &with(RSA, r#""kid":"b""#),
        ]);
        assert!(keys.find(Some("a"), Algorithm::PS256).is_some());
        assert!(keys.find(Some("a"), Algorithm::ES256).is_some());
        assert!(keys.find(Some("a"), Algorithm::ES384).is_none());
        assert!(keys.find(Some("b"), Algorithm::ES256).is_none());
        assert!(keys.find(Some("c"), Algorithm::RS256).is_none());
        assert!(keys.find(None, Algorithm::ES256).is_some(), "only one fits");
        assert!(keys.find(None, Algorithm::RS256).is_none(), "two fit");
        assert!(
            set(&[RSA]).find(Some("a"), Algorithm::RS256).is_none(),
            "the key has no name"
        );
    }

    #[test]
    fn a_key_is_used_for_what_it_is_for() {
        let fits = |more: &str| set(&[&with(RSA, more)]).find(None, Algorithm::RS256).is_some();
        assert!(fits(
            r#""use":"sig","key_ops":["verify"],"alg":"RS256","x5u":"http://127.0.0.1:9/","ext":true"#
        ));
        for not in [
            r#""use":"enc""#,
            r#""key_ops":["encrypt"]"#,
            r#""alg":"RS512""#,
            r#""alg":"RSA-OAEP""#,
            r#""alg":"HS256""#,
        ] {
            assert!(!fits(not), "{not}");
        }
    }

    #[test]
    fn keys_of_no_use_are_passed_over_and_others_count() {
        let (short, twisted) = (r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#, EC.replace("P-256", "P-384"));
        let shared = r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T"}"#;
        let keys = set(&[short, &twisted, shared, r#"{"kty":"new"}"#, "7", ED]);
        assert!(matches!(&keys, Keys::Set(set) if set.len() == 1));
        assert!(keys.find(None, Algorithm::HS256).is_none());
        assert!(keys.find(None, Algorithm::EdDSA).is_some());
    }

    #[test]
    fn what_is_no_set_is_refused() {
        let many = format!(r#"{{"keys":[{}]}}"#, vec!["{}"; 101].join(","));
        for wrong in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#, &many] {
            assert!(Keys::set(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(Keys::set(br#"{"keys":[]}"#).is_ok());
    }

    #[test]
    fn a_private_key_or_several_are_no_public_key() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let public = pair.public_key_pem();
        assert_eq!(Key::pem(public.as_bytes()).unwrap().algorithms, [Algorithm::ES256]);
        assert!(
            Key::pem(pair.serialize_pem().as_bytes())
                .unwrap_err()
                .contains("private key")
        );
        assert!(Key::pem(public.repeat(2).as_bytes()).is_err());
        assert!(Key::pem(b"").is_err());
    }
}
