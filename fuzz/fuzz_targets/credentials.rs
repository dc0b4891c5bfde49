//! Credentials, as strangers bring them: nothing but a signature makes one good, and nothing makes the gateway fall over.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use twinspan::auth::{Authenticator, IssuerSettings, Secret, Settings};

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("twinspan-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let secret = folder.join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").expect("a file can be written");
    let issuer = serde_json::json!({
        "issuer": "i", "audience": ["a"], "algorithms": ["HS256"], "secret_file": secret,
    });
    let issuer: IssuerSettings = serde_json::from_value(issuer).expect("the issuer is right");
    let settings = Settings {
        issuers: vec![issuer],
        ..Settings::default()
    };
    let opened = Authenticator::open(&settings).now_or_never().expect("nothing is waited for");
    opened.expect("the settings are right")
});

fuzz_target!(|data: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    if let Ok(text) = std::str::from_utf8(data) {
        let verdict = AUTHENTICATOR.authenticate(&Secret::new(text), now).now_or_never();
        assert!(verdict.expect("nothing is waited for").is_err(), "nobody signed this");
    }
    AUTHENTICATOR.certificate(data, now);
});
