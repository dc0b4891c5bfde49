//! `twinspan token`: makes tokens, API keys and secrets, and looks into tokens. No gateway is asked, and no secret is ever an argument.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args, Subcommand};
use prost_types::Timestamp;
use serde_json::{Map, Value};

use super::{Failure, output, settings};
use crate::auth::mint::{self, Claims, KeyWishes, Signer, Unverified};
use crate::auth::{Authenticator, Grant, Secret};
use crate::config::{self, Config};

/// What tokens can be signed with.
const ALGORITHMS: [&str; 12] = [
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];
/// Bytes of what is read from stdin or a file.
const INPUT_BYTES: u64 = 1 << 20;

/// `twinspan token`.
#[derive(Debug, Args)]
pub struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token, and print it
    Mint(Mint),
    /// Show what a token says, and with settings (--config FILE) whether a gateway would take it
    Inspect(Inspect),
    /// Make an API key: print it, this once, and what the file of API keys must have of it
    Key(Key),
    /// Make a secret to sign tokens with, in a new file that nobody else can read
    Secret(NewSecret),
}

impl Token {
    pub async fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Mint(mint) => mint.run(),
            Command::Inspect(inspect) => inspect.run().await,
            Command::Key(key) => key.run(),
            Command::Secret(secret) => secret.run(),
        }
    }
}

/// `twinspan token mint`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("key").required(true).args(["secret_file", "key_file"]))]
struct Mint {
    /// Who makes the token: one of the gateway's `auth.issuers`
    #[arg(long)]
    issuer: String,
    /// Whose it is
    #[arg(long)]
    subject: String,
    /// Whom it is for; may be given several times
    #[arg(long, required = true)]
    audience: Vec<String>,
    /// How long it is good for
    #[arg(long, default_value = "1h", value_parser = span)]
    ttl: Duration,
    /// What it grants, as JSON: '{"sessions":["room-*"],"can":["read","send"]}'; may be given several times
    #[arg(long = "grant", value_name = "JSON", value_parser = grant)]
    grants: Vec<Grant>,
    /// The claim that holds the grants
    #[arg(long, default_value = "twinspan")]
    claim: String,
    /// The file of the secret to sign with
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The file of the private key to sign with, in PEM
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// How to sign [default: HS256 for a secret, what is usual for a key]
    #[arg(long, value_parser = ALGORITHMS)]
    algorithm: Option<String>,
    /// The key's name in the issuer's key set
    #[arg(long)]
    kid: Option<String>,
}

impl Mint {
    fn run(self) -> Result<(), Failure> {
        let algorithm = self.algorithm.and_then(|name| name.parse().ok());
        let (path, make): (_, fn(&[u8], _) -> _) = match (&self.secret_file, &self.key_file) {
            (Some(path), _) => (path, Signer::secret),
            (None, Some(path)) => (path, Signer::pem),
            (None, None) => return Err(Failure::new(Failure::USAGE, "--secret-file or --key-file is needed")),
        };
        let signer = make(&held(path)?, algorithm).map_err(|wrong| unusable(path, &wrong))?;
        let claims = Claims {
            issuer: self.issuer,
            subject: self.subject,
            audience: self.audience,
            ttl: self.ttl,
            grants: self.grants,
            claim: self.claim,
        };
        let token = signer.named(self.kid).token(&claims, now());
        output::line(&token.map_err(|wrong| Failure::new(Failure::USAGE, wrong))?)
    }
}

/// `twinspan token inspect`.
#[derive(Debug, Args)]
struct Inspect {
    /// The token; `-`: from stdin, where no list of processes shows it
    #[arg(default_value = "-")]
    token: String,
    #[command(flatten)]
    settings: settings::Settings,
}

impl Inspect {
    async fn run(self) -> Result<(), Failure> {
        let config = self.settings.load(Config::default())?;
        let token = if self.token == "-" { from_stdin()? } else { self.token };
        let token = token.trim();
        let Unverified { header, claims } = mint::unverified(token)
            .map_err(|wrong| Failure::new(Failure::USAGE, format!("that is no token: {wrong}")))?;
        let about = [
            format!("header     {}\n", Value::Object(header)),
            format!("claims     {}\n", Value::Object(claims.clone())),
            format!("time       {}\n", lifetime(&claims, now())),
            may(&claims, &config),
        ];
        output::foreign(&about.concat())?;
        if !config.auth.is_required() {
            return output::line("signature  NOT checked: for that, the gateway's settings are needed (--config FILE)");
        }
        let opened = Authenticator::open(&config.auth).await;
        let authenticator = opened.map_err(|error| Failure::new(Failure::USAGE, error))?;
        match authenticator.authenticate(&Secret::new(token), now()).await {
            Ok(identity) => output::foreign(&format!(
                "signature  checked: the gateway takes it, as {}\n",
                identity.subject
            )),
            Err(refusal) => Err(Failure::new(
                Failure::REFUSED,
                format!("the gateway does not take it: {refusal}"),
            )),
        }
    }
}

/// `twinspan token key`.
#[derive(Debug, Args)]
struct Key {
    /// The key's name: letters, digits, dots and hyphens
    #[arg(long)]
    id: String,
    /// Whose it is
    #[arg(long)]
    subject: String,
    /// What it grants, as JSON: '{"sessions":["*"],"serve":["brain"]}'; may be given several times
    #[arg(long = "grant", value_name = "JSON", value_parser = grant)]
    grants: Vec<Grant>,
    /// How long it is good for [default: until it is taken out of the file]
    #[arg(long, value_parser = span)]
    ttl: Option<Duration>,
    /// Put its entry into this file (`auth.api_keys`), and print the key alone
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
}

impl Key {
    fn run(self) -> Result<(), Failure> {
        let id = self.id.clone();
        let wishes = KeyWishes {
            id: self.id,
            subject: self.subject,
            ttl: self.ttl,
            grants: self.grants,
        };
        let (key, entry) = mint::api_key(wishes, now()).map_err(|wrong| Failure::new(Failure::USAGE, wrong))?;
        match &self.append {
            None => output::line(&format!("{key}\n\n{}", entry.trim_end())),
            Some(path) => {
                append(path, &id, &entry)?;
                output::line(&key)
            }
        }
    }
}

fn append(path: &Path, id: &str, entry: &str) -> Result<(), Failure> {
    let held = if path.exists() { held(path)? } else { Vec::new() };
    let text = String::from_utf8_lossy(&held);
    if mint::has_api_key(&text, id).map_err(|wrong| unusable(path, &wrong))? {
        return Err(unusable(path, &format!("has a key {id:?} already")));
    }
    let gap = match text.is_empty() || text.ends_with("\n\n") {
        true => "",
        false if text.ends_with('\n') => "\n",
        false => "\n\n",
    };
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    file.and_then(|mut file| {
        file.write_all(format!("{gap}{entry}").as_bytes())
            .and_then(|()| file.sync_all())
    })
    .map_err(|error| unusable(path, &error.to_string()))
}

/// `twinspan token secret`.
#[derive(Debug, Args)]
struct NewSecret {
    /// The file to make
    #[arg(value_name = "FILE")]
    path: PathBuf,
}

impl NewSecret {
    fn run(self) -> Result<(), Failure> {
        // Never over another one: tokens that it signed would be good for nothing.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path);
        file.and_then(|mut file| file.write_all(mint::secret().as_bytes()).and_then(|()| file.sync_all()))
            .map_err(|error| unusable(&self.path, &error.to_string()))
    }
}

fn span(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| "expected a time such as 90s, 15m, 1h or 30d, at most 365d".to_owned())
}

fn grant(text: &str) -> Result<Grant, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn held(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut held = Vec::new();
    let file = fs::File::open(path);
    file.and_then(|file| file.take(INPUT_BYTES).read_to_end(&mut held))
        .map_err(|error| unusable(path, &error.to_string()))?;
    Ok(held)
}

fn unusable(path: &Path, wrong: &str) -> Failure {
    Failure::new(Failure::USAGE, format!("{}: {wrong}", path.display()))
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(INPUT_BYTES).read_to_string(&mut text);
    read.map_err(|error| Failure::new(Failure::USAGE, format!("stdin cannot be read: {error}")))?;
    Ok(text)
}

/// Until when it is good, in words.
fn lifetime(claims: &Map<String, Value>, now: SystemTime) -> String {
    let moment = |name: &str| {
        let seconds = claims
            .get(name)
            .and_then(Value::as_f64)
            .filter(|seconds| (0.0..1e12).contains(seconds));
        seconds.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds.trunc()))
    };
    let shown = |at: SystemTime| Timestamp::from(at);
    let whole = |span: Duration| format!("{:?}", Duration::from_secs(span.as_secs()));
    let end = match moment("exp") {
        None => return "has no end (exp): no gateway takes it".to_owned(),
        Some(end) => end,
    };
    let end = match end.duration_since(now) {
        Ok(left) => format!("expires in {}, at {}", whole(left), shown(end)),
        Err(since) => format!("EXPIRED since {}, at {}", whole(since.duration()), shown(end)),
    };
    match moment("nbf").filter(|from| *from > now) {
        Some(from) => format!("not good before {}; {end}", shown(from)),
        None => end,
    }
}

/// What it may do, in words: by its claim, and by what the settings give to all tokens of its issuer.
fn may(claims: &Map<String, Value>, config: &Config) -> String {
    let named = claims.get("iss").and_then(Value::as_str);
    let issuer = config
        .auth
        .issuers
        .iter()
        .find(|issuer| Some(issuer.issuer.as_str()) == named);
    let claim = issuer.map_or("twinspan", |issuer| issuer.claim.as_str());
    let claimed = match Grant::claimed(claims.get(claim)) {
        Ok(claimed) => claimed,
        Err(error) => return format!("may        nothing: its claim {claim:?} cannot be understood: {error}\n"),
    };
    let given = issuer.map(|issuer| issuer.grants.clone()).unwrap_or_default();
    let lines: String = given
        .iter()
        .chain(&claimed)
        .map(|grant| format!("may        {}\n", words(grant)))
        .collect();
    match lines.is_empty() {
        true => format!("may        nothing: it has no claim {claim:?}\n"),
        false => lines,
    }
}

fn words(grant: &Grant) -> String {
    let mut text = match grant.can.is_empty() {
        true => "do nothing".to_owned(),
        false => grant.can.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    if !grant.sessions.is_empty() {
        text += &format!(" in {}", grant.sessions.join(", "));
    }
    for (what, roles) in [
        ("join as", &grant.roles),
        ("ask only", &grant.ask),
        ("serve", &grant.serve),
    ] {
        if !roles.is_empty() {
            text += &format!("; {what} {}", roles.join(", "));
        }
    }
    text
}

#[allow(clippy::disallowed_methods, reason = "a command asks for the time itself")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn what_a_token_may_do_in_words() {
        let said = |value| may(&claims(value), &Config::default());
        let grant = json!({"sessions": ["room-*"], "can": ["read", "cancel_own"], "roles": ["judge"]});
        let words = "may        read, cancel_own in room-*; join as judge\n";
        assert_eq!(said(json!({ "twinspan": grant })), words);
        assert_eq!(
            said(json!({ "twinspan": [grant, {"sessions": ["*"], "serve": ["brain"]}] })),
            { format!("{words}may        do nothing in *; serve brain\n") }
        );
        assert!(said(json!({})).contains("nothing: it has no claim"));
        assert!(
            said(json!({"twinspan": {"cna": []}})).contains("nothing: its claim \"twinspan\" cannot be understood")
        );
    }

    #[test]
    fn how_long_a_token_is_good_in_words() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let said = |value| lifetime(&claims(value), now);
        assert_eq!(
            said(json!({"exp": 1_700_000_060})),
            "expires in 60s, at 2023-11-14T22:14:20Z"
        );
        assert_eq!(
            said(json!({"exp": 1_699_999_999})),
            "EXPIRED since 1s, at 2023-11-14T22:13:19Z"
        );
        assert!(said(json!({"exp": 1_700_000_060, "nbf": 1_700_000_030})).starts_with("not good before 2023-"));
        assert!(said(json!({"exp": -1})).starts_with("has no end"));
        assert!(said(json!({"exp": 1e300})).starts_with("has no end"));
    }
}
