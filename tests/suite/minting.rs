//! `twinspan token`, as a process: what it makes is taken, what it is told to keep is kept, and no secret is shown.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use twinspan::auth::{Authenticator, IssuerSettings, Permission, Secret, Settings};

const GRANT: &str = r#"{"sessions":["room-*"],"can":["read","send"]}"#;

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "twinspan-minting-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn twinspan(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_twinspan"))
        .arg("token")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without having read it.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn mode(path: &str) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn minted(secret: &str, more: &[&str]) -> Output {
    let usual = [
        "mint",
        "--issuer",
        "us",
        "--subject",
        "alice",
        "--audience",
        "twinspan",
        "--secret-file",
        secret,
    ];
    twinspan(&[&usual, more].concat(), "")
}

fn config(folder: &Folder, secret: &str) -> String {
    let path = folder.path("twinspan.toml");
    let text = format!(
        "[[auth.issuers]]\nissuer = \"us\"\naudience = [\"twinspan\"]\nalgorithms = [\"HS256\"]\nsecret_file = {secret:?}\n"
    );
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_token_is_made_and_looked_into() {
    let folder = Folder::new();
    let secret = folder.path("secret");
    said(&twinspan(&["secret", &secret], ""));
    assert_eq!(mode(&secret), 0o600);
    let token = said(&minted(&secret, &["--ttl", "5m", "--grant", GRANT]));
    assert_eq!(token.lines().count(), 1, "the token and nothing else");

    let shown = said(&twinspan(&["inspect", token.trim()], ""));
    for part in [
        r#""sub":"alice""#,
        "expires in ",
        "read, send in room-*",
        "signature  NOT checked",
    ] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let config = config(&folder, &secret);
    let shown = said(&twinspan(&["inspect", "--config", &config], &token));
    assert!(
        shown.contains("signature  checked: the gateway takes it, as alice"),
        "{shown}"
    );

    let other = folder.path("other");
    said(&twinspan(&["secret", &other], ""));
    let forged = said(&minted(&other, &[]));
    let refused = twinspan(&["inspect", "--config", &config], &forged);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("UNAUTHENTICATED"));
    let shown = String::from_utf8_lossy(&refused.stdout);
    assert!(shown.contains("nothing: it has no claim"), "{shown}");
}

#[test]
fn a_secret_is_made_once() {
    let folder = Folder::new();
    let secret = folder.path("secret");
    said(&twinspan(&["secret", &secret], ""));
    let held = fs::read(&secret).unwrap();
    assert_eq!(twinspan(&["secret", &secret], "").status.code(), Some(2));
    assert_eq!(fs::read(&secret).unwrap(), held);
}

#[tokio::test]
async fn a_private_key_signs_as_is_usual_for_it() {
    let folder = Folder::new();
    for (name, algorithm, usual) in [
        ("p256", &rcgen::PKCS_ECDSA_P256_SHA256, "ES256"),
        ("p384", &rcgen::PKCS_ECDSA_P384_SHA384, "ES384"),
        ("ed", &rcgen::PKCS_ED25519, "EdDSA"),
        ("rsa", &rcgen::PKCS_RSA_SHA256, "RS256"),
    ] {
        let pair = match name {
            "rsa" => rcgen::KeyPair::generate_rsa_for(algorithm, rcgen::RsaKeySize::_2048).unwrap(),
            _ => rcgen::KeyPair::generate_for(algorithm).unwrap(),
        };
        let (private, public) = (folder.path(name), folder.path(&format!("{name}.pub")));
        fs::write(&private, pair.serialize_pem()).unwrap();
        fs::write(&public, pair.public_key_pem()).unwrap();
        let usually = [
            "mint",
            "--issuer",
            "us",
            "--subject",
            "alice",
            "--audience",
            "twinspan",
            "--key-file",
            &private,
        ];
        let token = said(&twinspan(
            &[&usually[..], &["--kid", "k", "--grant", GRANT]].concat(),
            "",
        ));
        let issuer = serde_json::json!({
            "issuer": "us", "audience": ["twinspan"], "algorithms": [usual], "key_file": public,
        });
        let settings = Settings {
            issuers: vec![serde_json::from_value::<IssuerSettings>(issuer).unwrap()],
            ..Settings::default()
        };
        let identity = authenticated(&settings, token.trim()).await.unwrap();
        assert!(identity.grants.allow(Permission::Send, "room-7"), "{name}");
        let wrong = twinspan(&[&usually[..], &["--algorithm", "HS256"]].concat(), "");
        assert_eq!(wrong.status.code(), Some(2), "{name}");
    }
}

async fn authenticated(settings: &Settings, secret: &str) -> Result<twinspan::auth::Identity, String> {
    let authenticator = Authenticator::open(settings).await.map_err(|error| error.to_string())?;
    #[allow(clippy::disallowed_methods, reason = "the command asked for the time too")]
    let now = std::time::SystemTime::now();
    let tried = authenticator.authenticate(&Secret::new(secret), now).await;
    tried.map_err(|refusal| refusal.to_string())
}

#[tokio::test]
async fn an_api_key_is_made_and_its_entry_kept() {
    let folder = Folder::new();
    let file = folder.path("keys.toml");
    let make = |id: &str| {
        twinspan(
            &[
                "key",
                "--id",
                id,
                "--subject",
                "brain",
                "--grant",
                GRANT,
                "--append",
                &file,
            ],
            "",
        )
    };
    let keys = [said(&make("one")), said(&make("two"))];
    assert_eq!(mode(&file), 0o600);
    let settings = Settings {
        api_keys: Some(PathBuf::from(&file)),
        ..Settings::default()
    };
    for (key, id) in keys.iter().zip(["one", "two"]) {
        assert_eq!(key.lines().count(), 1, "the key and nothing else");
        let identity = authenticated(&settings, key.trim()).await.unwrap();
        assert_eq!((&*identity.subject, &*identity.token_id), ("brain", id));
        assert!(identity.issued_at.is_some());
        assert!(!fs::read_to_string(&file).unwrap().contains(key.trim()));
    }
    let before = fs::read(&file).unwrap();
    assert_eq!(make("two").status.code(), Some(2));
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn an_entry_is_printed_where_no_file_is_named() {
    let folder = Folder::new();
    let printed = said(&twinspan(&["key", "--id", "ci", "--subject", "ci", "--ttl", "1h"], ""));
    let (key, entry) = printed.split_once("\n\n").unwrap();
    fs::write(Path::new(&folder.path("keys.toml")), entry).unwrap();
    let settings = Settings {
        api_keys: Some(PathBuf::from(folder.path("keys.toml"))),
        ..Settings::default()
    };
    let identity = authenticated(&settings, key).await.unwrap();
    assert_eq!(
        identity
            .expires_at
            .unwrap()
            .duration_since(identity.issued_at.unwrap())
            .unwrap()
            .as_secs(),
        3600
    );
}

#[test]
fn what_cannot_be_used_is_told_and_no_secret_shown() {
    let folder = Folder::new();
    let short = folder.path("short");
    fs::write(&short, "hunter2").unwrap();
    for (output, why) in [
        (minted(&short, &[]), "at least 32 bytes"),
        (minted(&folder.path("none"), &[]), "No such file"),
        (minted(&short, &["--grant", "{"]), "--grant"),
        (minted(&short, &["--ttl", "soon"]), "--ttl"),
        (minted(&short, &["--algorithm", "none"]), "--algorithm"),
        (minted(&short, &["--secret", "hunter2"]), "--secret"),
        (twinspan(&["inspect"], "garbage"), "that is no token"),
        (twinspan(&["key", "--id", "a b", "--subject", "x"], ""), "an id is"),
        (
            twinspan(&["key", "--id", "a", "--subject", "two words"], ""),
            "the subject is not",
        ),
    ] {
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(why), "{told}");
        assert!(why == "--secret" || !told.contains("hunter2"), "{told}");
        assert!(output.stdout.is_empty());
    }
}
