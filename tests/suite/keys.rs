//! A gateway that authenticates its peers, and what it takes to make credentials for it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use twinspan::auth::mint::{self, Signer};
use twinspan::auth::{Grant, IssuerSettings};
use twinspan::config::Config;

use crate::harness::*;

pub const ISSUER: &str = "https://issuer.example";
pub const AUDIENCE: &str = "twinspan";

#[allow(clippy::disallowed_methods, reason = "tokens are made by the calendar")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// This many seconds from now, as claims have it.
pub fn in_seconds(seconds: u64) -> u64 {
    now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + seconds
}

/// A folder that is gone with its owner.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "twinspan-keys-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// An issuer with a secret.
pub struct Keys {
    pub folder: Folder,
    signer: Signer,
}

impl Keys {
    pub fn new() -> Self {
        let folder = Folder::new();
        let secret = mint::secret();
        folder.write("secret", &secret);
        Self {
            folder,
            signer: Signer::secret(secret.as_bytes(), None).unwrap(),
        }
    }

    /// Has the gateway take this issuer's tokens, to the second.
    pub fn configure(&self, config: &mut Config) {
        let issuer = json!({
            "issuer": ISSUER,
            "audience": [AUDIENCE],
            "algorithms": ["HS256"],
            "secret_file": self.folder.path("secret"),
        });
        let issuer: IssuerSettings = serde_json::from_value(issuer).unwrap();
        config.auth.issuers = vec![issuer];
        config.auth.leeway = Duration::from_millis(1);
    }

    pub async fn gateway(&self, change: impl FnOnce(&mut Config)) -> Gateway {
        Gateway::with(|config| {
            self.configure(config);
            change(config);
        })
        .await
    }

    /// A token with these claims, and beside them what every token has.
    pub fn sign(&self, subject: &str, more: Value) -> String {
        let mut claims: Map<String, Value> = serde_json::from_value(json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": in_seconds(0), "exp": in_seconds(600),
        }))
        .unwrap();
        claims.extend(serde_json::from_value::<Map<String, Value>>(more).unwrap());
        claims.retain(|_, value| !value.is_null());
        self.signer.sign(&claims).unwrap()
    }

    /// A token with these grants.
    pub fn token(&self, subject: &str, grants: Value) -> String {
        // Whoever mistypes a grant here is to know.
        serde_json::from_value::<Vec<Grant>>(grants.clone()).unwrap();
        self.sign(subject, json!({ "twinspan": grants }))
    }

    /// A token that may do everything.
    pub fn all(&self, subject: &str) -> String {
        self.token(subject, everything("*"))
    }
}

/// All that there is, in these sessions.
pub fn everything(sessions: &str) -> Value {
    json!([{
        "sessions": [sessions],
        "can": ["read", "send", "request", "cancel", "presence", "create", "manage", "admin"],
        "roles": ["*"],
        "serve": ["*"],
    }])
}
