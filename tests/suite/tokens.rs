//! Tokens that try to be taken for what they are not, keys that come and go, and what is said about each; asked of the authenticator
//! itself, at a time that stands still.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};
use rcgen::{CertificateParams, KeyPair, RsaKeySize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use twinspan::auth::{
    Authenticator, CertificateRule, Identity, IssuerSettings, Permission, Revocation, Secret, Settings,
};
use twinspan::error::{Reason, Refusal};

const US: &str = "https://issuer.example";
const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A folder that is gone with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "twinspan-tokens-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes it in one step, as whoever rotates keys should.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(self.0.join("new"), text).unwrap();
        fs::rename(self.0.join("new"), &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A key pair, and what it signs with.
struct Pair {
    public: String,
    key: EncodingKey,
    algorithm: Algorithm,
}

impl Pair {
    fn new(algorithm: Algorithm) -> Self {
        let pair = match algorithm {
            Algorithm::ES256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Algorithm::ES384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Algorithm::EdDSA => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            _ => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
        };
        let pair = pair.unwrap();
        let pem = pair.serialize_pem();
        let read = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem,
            Algorithm::EdDSA => EncodingKey::from_ed_pem,
            _ => EncodingKey::from_rsa_pem,
        };
        Self {
            public: pair.public_key_pem(),
            key: read(pem.as_bytes()).unwrap(),
            algorithm,
        }
    }

    fn jwk(&self, id: &str) -> Value {
        let read = match self.algorithm {
            Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_pem,
            Algorithm::EdDSA => DecodingKey::from_ed_pem,
            _ => DecodingKey::from_rsa_pem,
        };
        let key = read(self.public.as_bytes()).unwrap();
        let mut jwk = Jwk::from_decoding_key(&key, Some(self.algorithm)).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        signed(header, &claims.to_string(), &self.key, self.algorithm)
    }
}

fn signed(header: &Value, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let said = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let signature = crypto::sign(said.as_bytes(), key, algorithm).unwrap();
    format!("{said}.{signature}")
}

fn claims() -> Value {
    json!({ "iss": US, "aud": "twinspan", "sub": "alice", "iat": NOW - 10, "exp": NOW + 600 })
}

/// The usual claims, but for some of them; null takes one away.
fn but(other: Value) -> Value {
    let mut claims = claims();
    for (name, value) in other.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn settings(issuer: Value) -> Settings {
    let mut all = json!({ "issuer": US, "audience": ["twinspan", "other"] });
    all.as_object_mut().unwrap().extend(issuer.as_object().unwrap().clone());
    Settings {
        issuers: vec![serde_json::from_value::<IssuerSettings>(all).unwrap()],
        ..Settings::default()
    }
}

async fn open(issuer: Value) -> Authenticator {
    Authenticator::open(&settings(issuer)).await.unwrap()
}

async fn try_at(authenticator: &Authenticator, token: &str, now: u64) -> Result<Identity, Refusal> {
    let tried = authenticator.authenticate(&Secret::new(token), at(now)).await;
    if let Err(refusal) = &tried {
        let signature = token.rsplit('.').next().unwrap();
        assert!(
            signature.len() < 8 || !refusal.message.contains(signature),
            "the token is shown: {refusal}"
        );
        assert!(refusal.message.is_ascii() && refusal.message.len() < 400, "{refusal}");
    }
    tried
}

async fn taken(authenticator: &Authenticator, token: &str) -> Identity {
    try_at(authenticator, token, NOW).await.unwrap()
}

/// Whether it is refused for this reason.
async fn refused(authenticator: &Authenticator, token: &str, why: &str) {
    let refusal = try_at(authenticator, token, NOW).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::Unauthenticated, "{refusal}");
    assert!(refusal.message.contains(why), "{refusal:?} does not say {why:?}");
}

#[tokio::test]
async fn every_algorithm_is_taken_by_pem_and_by_set() {
    let folder = Folder::new();
    for algorithm in [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::PS256,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
    ] {
        let pair = Pair::new(algorithm);
        let pem = folder.write("key.pem", &pair.public);
        let set = folder.write("keys.json", &json!({ "keys": [pair.jwk("k")] }).to_string());
        let token = pair.sign(&json!({ "alg": algorithm, "kid": "k", "typ": "at+jwt" }), &claims());
        for source in [
            json!({ "key_file": pem, "algorithms": [algorithm] }),
            json!({ "jwks_file": set, "algorithms": [algorithm] }),
        ] {
            assert_eq!(
                taken(&open(source).await, &token).await.subject,
                "alice",
                "{algorithm:?}"
            );
        }
    }
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let secret = folder.write("secret", &format!("{}\n", "s".repeat(64)));
        let authenticator = open(json!({ "secret_file": secret, "algorithms": [algorithm] })).await;
        let key = EncodingKey::from_secret("s".repeat(64).as_bytes());
        let token = signed(&json!({ "alg": algorithm }), &claims().to_string(), &key, algorithm);
        assert_eq!(taken(&authenticator, &token).await.subject, "alice");
    }
}

#[tokio::test]
async fn what_a_token_says_is_what_its_bearer_is() {
    let folder = Folder::new();
    let pair = Pair::new(Algorithm::ES256);
    let path = folder.write("key.pem", &pair.public);
    let issuer = json!({
        "key_file": path, "algorithms": ["ES256"], "subject_prefix": "us:", "claim": "https://example.com/may",
        "grants": [{ "sessions": ["lobby"], "can": ["read"] }],
    });
    let authenticator = open(issuer).await;
    let grant = json!({ "sessions": ["room-*"], "can": ["read", "send"] });
    for given in [grant.clone(), json!([grant])] {
        let claims = but(json!({ "jti": "t-1", "aud": ["somebody", "other"], "https://example.com/may": given }));
        let identity = taken(&authenticator, &pair.sign(&json!({ "alg": "ES256" }), &claims)).await;
        assert_eq!(
            (&*identity.subject, &*identity.token_id, &*identity.issuer),
            ("us:alice", "t-1", US)
        );
        assert_eq!(
            (identity.issued_at, identity.expires_at),
            (Some(at(NOW - 10)), Some(at(NOW + 610)))
        );
        assert!(identity.grants.allow(Permission::Send, "room-1") && identity.grants.allow(Permission::Read, "lobby"));
        assert!(!identity.grants.allow(Permission::Send, "lobby"));
    }
    let bad = but(json!({ "https://example.com/may": { "sessions": ["*"], "cna": ["admin"] } }));
    refused(
        &authenticator,
        &pair.sign(&json!({ "alg": "ES256" }), &bad),
        "cannot be understood",
    )
    .await;
}

#[tokio::test]
async fn no_key_is_taken_for_another() {
    let folder = Folder::new();
    let (rsa, ec, other) = (
        Pair::new(Algorithm::RS256),
        Pair::new(Algorithm::ES256),
        Pair::new(Algorithm::RS256),
    );
    let set = folder.write(
        "keys.json",
        &json!({ "keys": [rsa.jwk("rsa"), ec.jwk("ec")] }).to_string(),
    );
    let authenticator = open(json!({ "jwks_file": set, "algorithms": ["RS256", "ES256"] })).await;
    let header = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
    let good = rsa.sign(&header("RS256", "rsa"), &claims());
    taken(&authenticator, &good).await;
    taken(&authenticator, &ec.sign(&json!({ "alg": "ES256" }), &claims())).await;

    // The public key as a shared secret, which everybody has.
    let shared = EncodingKey::from_secret(rsa.public.as_bytes());
    let forged = signed(
        &header("HS256", "rsa"),
        &claims().to_string(),
        &shared,
        Algorithm::HS256,
    );
    refused(&authenticator, &forged, "not one that the issuer may use").await;
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256", "RS512", "rs256"] {
        refused(
            &authenticator,
            &rsa.sign(&header(alg, "rsa"), &claims()),
            "not one that the issuer may use",
        )
        .await;
    }
    let unsigned = |end: &str| format!("{}{end}", &good[..good.rfind('.').unwrap()]);
    refused(&authenticator, &unsigned("."), "not signed").await;
    refused(&authenticator, &unsigned(""), "three parts").await;
    // Another's key; the other kind's key; each other's names.
    refused(
        &authenticator,
        &other.sign(&header("RS256", "rsa"), &claims()),
        "signature",
    )
    .await;
    refused(
        &authenticator,
        &ec.sign(&header("RS256", "rsa"), &claims()),
        "signature",
    )
    .await;
    refused(&authenticator, &ec.sign(&header("ES256", "rsa"), &claims()), "no key").await;
    refused(&authenticator, &rsa.sign(&header("RS256", "ec"), &claims()), "no key").await;
    for kid in [
        "../../dev/null",
        "' UNION SELECT 'k' --",
        "file:///dev/zero",
        "rsa\0",
        "",
        "RSA",
    ] {
        refused(&authenticator, &rsa.sign(&header("RS256", kid), &claims()), "no key").await;
    }
    refused(
        &authenticator,
        &rsa.sign(&json!({ "alg": "RS256", "kid": ["rsa"] }), &claims()),
        "kid",
    )
    .await;
    refused(
        &authenticator,
        &rsa.sign(&json!({ "alg": ["RS256"], "kid": "rsa" }), &claims()),
        "alg",
    )
    .await;
}

#[tokio::test]
async fn a_broken_token_is_refused_wherever_it_is_broken() {
    let folder = Folder::new();
    let pair = Pair::new(Algorithm::EdDSA);
    let path = folder.write("key.pem", &pair.public);
    let authenticator = open(json!({ "key_file": path, "algorithms": ["EdDSA"] })).await;
    let good = pair.sign(&json!({ "alg": "EdDSA" }), &claims());
    taken(&authenticator, &good).await;
    let (said, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = said.split_once('.').unwrap();
    let raised = URL_SAFE_NO_PAD.encode(but(json!({ "sub": "root" })).to_string());
    refused(&authenticator, &format!("{header}.{raised}.{signature}"), "signature").await;
    for at in 1..signature.len() {
        let cut = format!("{said}.{}", &signature[..at]);
        assert!(try_at(&authenticator, &cut, NOW).await.is_err(), "{at}");
    }
    refused(&authenticator, &format!("{good}{}", &signature[..4]), "signature").await;
    let long = "a".repeat(16 << 10);
    for garbage in [
        "",
        ".",
        "..",
        "...",
        "Bearer",
        "null",
        "{}",
        "\u{0}.\u{0}.\u{0}",
        "é.é.é",
        "tsk_",
        long.as_str(),
    ] {
        assert!(try_at(&authenticator, garbage, NOW).await.is_err(), "{garbage}");
    }
    let refusal = try_at(&authenticator, &format!("{long}a"), NOW).await.unwrap_err();
    assert!(refusal.message.contains("at most 16384"), "{refusal}");
    assert_eq!(refusal.details, [("limit", "16384".to_owned())]);
}

#[tokio::test]
async fn a_claim_that_is_wrong_or_missing_is_refused() {
    let folder = Folder::new();
    let pair = Pair::new(Algorithm::ES256);
    let path = folder.write("key.pem", &pair.public);
    let authenticator = open(json!({ "key_file": path, "algorithms": ["ES256"] })).await;
    let sign = |other: Value| pair.sign(&json!({ "alg": "ES256" }), &but(other));
    for (other, why) in [
        (json!({ "iss": null }), "has no iss"),
        (json!({ "iss": 7 }), "has no iss"),
        (
            json!({ "iss": "https://evil.example" }),
            "not one of ours: \"https://evil.example\"",
        ),
        (json!({ "iss": "https://issuer.example/" }), "not one of ours"),
        (json!({ "iss": "\u{1b}[2J\n" }), "not one of ours: \"\\u{1b}[2J\\n\""),
        (json!({ "aud": null }), "has no aud"),
        (json!({ "aud": "them" }), "audience is not ours: \"them\""),
        (json!({ "aud": ["them"] }), "audience is not ours"),
        (json!({ "aud": [] }), "audience is not ours"),
        (json!({ "aud": ["twinspan", 7] }), "neither text nor a list"),
        (json!({ "exp": null }), "has no exp"),
        (json!({ "exp": "never" }), "exp is not a time"),
        (json!({ "exp": -1 }), "exp is not a time"),
        (json!({ "exp": 1e300 }), "exp is not a time"),
        (json!({ "nbf": NOW + 11 }), "its nbf is in the future"),
        (json!({ "iat": NOW + 11 }), "its iat is in the future"),
        (json!({ "nbf": {} }), "nbf is not a time"),
        (json!({ "sub": null }), "has no sub"),
        (json!({ "sub": 7 }), "sub is not text"),
        (json!({ "sub": "" }), "sub is not 1 to 128"),
        (json!({ "sub": "two words" }), "sub is not 1 to 128"),
        (json!({ "sub": "line\nbreak" }), "sub is not 1 to 128"),
        (json!({ "sub": "ünïcode" }), "sub is not 1 to 128"),
        (json!({ "sub": "a".repeat(129) }), "sub is not 1 to 128"),
        (json!({ "jti": 7 }), "jti is not"),
        (json!({ "jti": "a\u{7}" }), "jti is not"),
        (json!({ "twinspan": "admin" }), "cannot be understood"),
        (
            json!({ "twinspan": [{ "sessions": ["*"], "can": ["fly"] }] }),
            "cannot be understood",
        ),
    ] {
        let tried = try_unicode(&authenticator, &sign(other.clone())).await.unwrap_err();
        assert_eq!(tried.reason, Reason::Unauthenticated, "{other}");
        assert!(tried.message.contains(why), "{other}: {tried}");
    }
    let twice = claims().to_string().replacen('{', r#"{"sub":"root","#, 1);
    refused(
        &authenticator,
        &signed(&json!({ "alg": "ES256" }), &twice, &pair.key, pair.algorithm),
        "each name once",
    )
    .await;
}

/// As `try_at`, where what is shown may be a peer's own words.
async fn try_unicode(authenticator: &Authenticator, token: &str) -> Result<Identity, Refusal> {
    authenticator.authenticate(&Secret::new(token), at(NOW)).await
}

#[tokio::test]
async fn clocks_may_be_off_by_the_leeway_and_no_more() {
    let folder = Folder::new();
    let pair = Pair::new(Algorithm::ES256);
    let path = folder.write("key.pem", &pair.public);
    let authenticator = open(json!({ "key_file": path, "algorithms": ["ES256"] })).await;
    let token = pair.sign(
        &json!({ "alg": "ES256" }),
        &but(json!({ "iat": NOW, "nbf": 1_800_000_000.5, "exp": NOW + 60 })),
    );
    let reason = async |now| {
        try_at(&authenticator, &token, now)
            .await
            .map(drop)
            .map_err(|refusal| refusal.reason)
    };
    assert_eq!(reason(NOW - 10).await, Err(Reason::Unauthenticated));
    assert_eq!(reason(NOW - 9).await, Ok(()));
    assert_eq!(reason(NOW + 69).await, Ok(()));
    assert_eq!(reason(NOW + 70).await, Err(Reason::TokenExpired));
    let identity = taken(&authenticator, &token).await;
    assert!(authenticator.check_again(&identity, at(NOW + 69)).is_ok());
    assert_eq!(
        authenticator.check_again(&identity, at(NOW + 70)).unwrap_err().reason,
        Reason::TokenExpired
    );
}

#[tokio::test]
async fn a_header_leads_nowhere() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let folder = Folder::new();
    let (pair, evil) = (Pair::new(Algorithm::ES256), Pair::new(Algorithm::ES256));
    let path = folder.write("keys.json", &json!({ "keys": [pair.jwk("k")] }).to_string());
    let authenticator = open(json!({ "jwks_file": path, "algorithms": ["ES256"] })).await;
    let header = json!({
        "alg": "ES256", "kid": "k", "jku": url, "x5u": url, "jwk": evil.jwk("k"), "x5c": ["MIIB"], "x5t": "AAAA",
    });
    refused(&authenticator, &evil.sign(&header, &claims()), "signature").await;
    taken(&authenticator, &pair.sign(&header, &claims())).await;
    for demand in [json!(["exp"]), json!([]), json!(["b64"])] {
        let header = json!({ "alg": "ES256", "kid": "k", "crit": demand, "b64": false });
        refused(&authenticator, &pair.sign(&header, &claims()), "crit").await;
    }
    for kind in [json!("logout+jwt"), json!("dpop+jwt"), json!(7)] {
        refused(
            &authenticator,
            &pair.sign(&json!({ "alg": "ES256", "kid": "k", "typ": kind }), &claims()),
            "typ",
        )
        .await;
    }
    let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(nobody.is_err(), "the gateway asked a server that a token named");
}

#[tokio::test]
async fn issuers_do_not_lend_each_other_their_keys() {
    let folder = Folder::new();
    let (ours, theirs) = (Pair::new(Algorithm::ES256), Pair::new(Algorithm::ES256));
    let path = folder.write("a.pem", &ours.public);
    let mut settings = settings(json!({ "key_file": path, "algorithms": ["ES256"] }));
    let mut other = settings.issuers[0].clone();
    other.issuer = "https://them.example".to_owned();
    other.key_file = Some(folder.write("b.pem", &theirs.public));
    settings.issuers.push(other);
    let authenticator = Authenticator::open(&settings).await.unwrap();
    let header = json!({ "alg": "ES256" });
    refused(&authenticator, &theirs.sign(&header, &claims()), "signature").await;
    let their_claims = but(json!({ "iss": "https://them.example" }));
    assert_eq!(
        taken(&authenticator, &theirs.sign(&header, &their_claims)).await.issuer,
        "https://them.example"
    );
}

#[tokio::test]
async fn an_issuer_whose_keys_cannot_be_had_harms_no_other() {
    let folder = Folder::new();
    let pair = Pair::new(Algorithm::ES256);
    let path = folder.write("key.pem", &pair.public);
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut settings = settings(json!({ "key_file": path, "algorithms": ["ES256"] }));
    let mut other = settings.issuers[0].clone();
    (other.issuer, other.key_file) = ("https://gone.example".to_owned(), None);
    other.jwks_url = Some(format!("http://{gone}/keys"));
    settings.issuers.push(other);
    let authenticator = Authenticator::open(&settings).await.unwrap();
    let header = json!({ "alg": "ES256", "kid": "k" });
    let theirs = pair.sign(&header, &but(json!({ "iss": "https://gone.example" })));
    let refusal = try_at(&authenticator, &theirs, NOW).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::AuthUnavailable);
    assert_eq!(refusal.details, [("issuer", "https://gone.example".to_owned())]);
    assert!(refusal.retry_after.is_some());
    taken(&authenticator, &pair.sign(&header, &claims())).await;
}

#[tokio::test]
async fn settings_that_would_be_unsafe_are_refused_and_all_told() {
    let folder = Folder::new();
    let pair = Pair::new(Algorithm::ES256);
    let pem = folder.write("key.pem", &pair.public);
    let secret = folder.write("secret", "short");
    for (issuer, why) in [
        (
            json!({ "key_file": pem, "algorithms": ["HS256"] }),
            "anybody could sign",
        ),
        (
            json!({ "key_file": pem, "algorithms": ["ES256", "HS256"] }),
            "anybody could sign",
        ),
        (
            json!({ "key_file": pem, "algorithms": ["RS256"] }),
            "holds no key for RS256",
        ),
        (json!({ "key_file": pem, "algorithms": [] }), "algorithms is empty"),
        (
            json!({ "key_file": pem, "algorithms": ["ES256"], "audience": [] }),
            "audience is empty",
        ),
        (
            json!({ "key_file": pem, "secret_file": secret, "algorithms": ["ES256"] }),
            "exactly one",
        ),
        (json!({ "algorithms": ["ES256"] }), "exactly one"),
        (
            json!({ "secret_file": secret, "algorithms": ["HS256"] }),
            "at least 32 bytes",
        ),
        (
            json!({ "secret_file": secret, "algorithms": ["ES256"] }),
            "HS256, HS384 and HS512 only",
        ),
        (
            json!({ "key_file": folder.0.join("none"), "algorithms": ["ES256"] }),
            "No such file",
        ),
        (
            json!({ "jwks_url": "http://keys.example/", "algorithms": ["ES256"] }),
            "https",
        ),
        (
            json!({ "jwks_url": "https://me:hunter2@keys.example/", "algorithms": ["ES256"] }),
            "no secrets",
        ),
        (
            json!({ "jwks_url": "file:///etc/passwd", "algorithms": ["ES256"] }),
            "jwks_url",
        ),
        (
            json!({ "key_file": pem, "algorithms": ["ES256"], "grants": [{ "can": ["read"] }] }),
            "grant 0",
        ),
    ] {
        let mut settings = settings(issuer.clone());
        settings.api_keys = Some(folder.0.join("no-keys.toml"));
        let error = Authenticator::open(&settings).await.unwrap_err();
        let told = error.to_string();
        assert!(told.contains(why) && told.contains("no-keys.toml"), "{issuer}: {told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
}

#[tokio::test]
async fn keys_in_a_file_are_rotated_without_a_restart() {
    let folder = Folder::new();
    let (old, new) = (Pair::new(Algorithm::ES256), Pair::new(Algorithm::ES256));
    let path = folder.write("keys.json", &json!({ "keys": [old.jwk("old")] }).to_string());
    let authenticator = open(json!({ "jwks_file": path, "algorithms": ["ES256"] })).await;
    let watching = tokio::spawn(authenticator.clone().watch());
    let by = |pair: &Pair, kid: &str| pair.sign(&json!({ "alg": "ES256", "kid": kid }), &claims());
    let (by_old, by_new) = (by(&old, "old"), by(&new, "new"));
    taken(&authenticator, &by_old).await;
    refused(&authenticator, &by_new, "no key").await;
    folder.write("keys.json", "{");
    folder.write("keys.json", &json!({ "keys": [new.jwk("new")] }).to_string());
    eventually(async || try_at(&authenticator, &by_new, NOW).await.is_ok()).await;
    refused(&authenticator, &by_old, "no key").await;
    watching.abort();
}

#[tokio::test]
async fn keys_at_a_url_are_rotated_without_a_restart() {
    let (old, new) = (Pair::new(Algorithm::ES256), Pair::new(Algorithm::ES256));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let set = Arc::new(Mutex::new(json!({ "keys": [old.jwk("old")] }).to_string()));
    let serving = tokio::spawn(publish(listener, Arc::clone(&set)));
    let mut settings = settings(json!({ "jwks_url": url, "algorithms": ["ES256"] }));
    settings.jwks_refresh = Duration::from_millis(1);
    let authenticator = Authenticator::open(&settings).await.unwrap();
    let by = |pair: &Pair, kid: &str| pair.sign(&json!({ "alg": "ES256", "kid": kid }), &claims());
    taken(&authenticator, &by(&old, "old")).await;
    // Fetched a moment ago: whoever comes with another key is to come again.
    let refusal = try_at(&authenticator, &by(&new, "new"), NOW).await.unwrap_err();
    assert_eq!(
        (refusal.reason, refusal.retry_after.is_some()),
        (Reason::AuthUnavailable, true)
    );
    *set.lock().unwrap() = json!({ "keys": [new.jwk("new")] }).to_string();
    let fresh = Authenticator::open(&settings).await.unwrap();
    taken(&fresh, &by(&new, "new")).await;
    assert!(try_at(&fresh, &by(&old, "old"), NOW).await.is_err());
    serving.abort();
}

async fn publish(listener: TcpListener, set: Arc<Mutex<String>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let set = set.lock().unwrap().clone();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{set}", set.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_taken_back_is_gone_at_once_and_after_a_restart() {
    let folder = Folder::new();
    let pair = Pair::new(Algorithm::ES256);
    let pem = folder.write("key.pem", &pair.public);
    let mut settings = settings(json!({ "key_file": pem, "algorithms": ["ES256"] }));
    settings.revocations = Some(folder.0.join("revoked.jsonl"));
    let authenticator = Authenticator::open(&settings).await.unwrap();
    let mut changed = authenticator.changed();
    let token = |other: Value| pair.sign(&json!({ "alg": "ES256" }), &but(other));
    let (one, two) = (
        token(json!({ "jti": "one" })),
        token(json!({ "jti": "two", "sub": "bob" })),
    );
    let (alice, bob) = (taken(&authenticator, &one).await, taken(&authenticator, &two).await);

    authenticator.revoke(Revocation::of_token("one")).unwrap();
    assert!(has_news(&mut changed));
    assert_eq!(
        authenticator.check_again(&alice, at(NOW)).unwrap_err().reason,
        Reason::TokenRevoked
    );
    assert!(authenticator.check_again(&bob, at(NOW)).is_ok());
    authenticator.revoke(Revocation::of_subject("bob", at(NOW))).unwrap();
    let refusal = try_at(&authenticator, &two, NOW).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::TokenRevoked);
    taken(&authenticator, &token(json!({ "sub": "bob", "iat": NOW }))).await;

    let again = Authenticator::open(&settings).await.unwrap();
    assert_eq!(again.revocations().len(), 2);
    assert!(again.revocations().iter().all(|revocation| revocation.durable));
    assert!(try_at(&again, &one, NOW).await.is_err() && try_at(&again, &two, NOW).await.is_err());
}

#[tokio::test]
async fn a_revocation_that_somebody_else_writes_is_seen() {
    let folder = Folder::new();
    let pair = Pair::new(Algorithm::ES256);
    let pem = folder.write("key.pem", &pair.public);
    let mut settings = settings(json!({ "key_file": pem, "algorithms": ["ES256"] }));
    settings.revocations = Some(folder.0.join("revoked.jsonl"));
    let authenticator = Authenticator::open(&settings).await.unwrap();
    let watching = tokio::spawn(authenticator.clone().watch());
    let mut changed = authenticator.changed();
    let alice = taken(&authenticator, &pair.sign(&json!({ "alg": "ES256" }), &claims())).await;
    folder.write(
        "revoked.jsonl",
        "{\"subject\":\"alice\",\"issued_before\":\"2100-01-01T00:00:00Z\"}\n",
    );
    changed.changed().await.unwrap();
    assert!(authenticator.check_again(&alice, at(NOW)).is_err());
    watching.abort();
}

#[tokio::test]
async fn a_certificate_is_somebody_by_its_rule_until_it_is_taken_back() {
    let pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["w1.workers.example.com".to_owned()]).unwrap();
    params.serial_number = Some(vec![0x0a, 0xbc].into());
    params.not_after = rcgen::date_time_ymd(2100, 1, 1);
    let certificate = params.self_signed(&pair).unwrap();
    let rule = json!({
        "san_dns": "*.workers.example.com", "subject": "worker:{1}", "grants": [{ "sessions": ["*"], "serve": ["brain"] }],
    });
    let settings = Settings {
        certificates: vec![serde_json::from_value::<CertificateRule>(rule).unwrap()],
        ..Settings::default()
    };
    let authenticator = Authenticator::open(&settings).await.unwrap();
    assert!(authenticator.is_required());
    let identity = authenticator.certificate(certificate.der(), at(NOW)).unwrap().unwrap();
    assert_eq!((&*identity.subject, &*identity.token_id), ("worker:w1", "0abc"));
    assert!(identity.grants.served("brain").is_some());
    authenticator.revoke(Revocation::of_token("0abc")).unwrap();
    let refusal = authenticator
        .certificate(certificate.der(), at(NOW))
        .unwrap()
        .unwrap_err();
    assert_eq!(refusal.reason, Reason::TokenRevoked);
    assert!(authenticator.check_again(&identity, at(NOW)).is_err());
    refused(&authenticator, "tsk_a_b", "takes no API keys").await;
}

#[tokio::test]
async fn a_gateway_that_authenticates_nobody_lets_all_in() {
    for nobody in [
        Authenticator::nobody(),
        Authenticator::open(&Settings::default()).await.unwrap(),
    ] {
        assert!(!nobody.is_required());
        let identity = taken(&nobody, "whatever").await;
        assert!(identity.subject.is_empty() && identity.grants.allow_admin());
        assert!(nobody.certificate(b"whatever", at(NOW)).is_none());
        assert!(nobody.revoke(Revocation::of_token("t")).is_err());
    }
}

#[test]
fn a_secret_is_never_shown() {
    assert_eq!(format!("{:?}", Secret::new("hunter2")), "…");
}

fn has_news(changed: &mut watch::Receiver<u64>) -> bool {
    let has = changed.has_changed().unwrap();
    changed.mark_unchanged();
    has
}

/// Until it is so; a test that waits for ever is ended by who runs it.
async fn eventually(mut is_so: impl AsyncFnMut() -> bool) {
    while !is_so().await {
        tokio::task::yield_now().await;
    }
}
