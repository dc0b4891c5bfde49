//! What an operator says about credentials: whose are taken, and what they give. Paths, names and addresses only: no secret is
//! ever a setting.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde::{Deserialize, Serialize};

use super::{API_KEYS, Grant, Grants};

/// How peers prove who they are. Without issuers, API keys and certificates nobody has to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose tokens are taken.
    pub issuers: Vec<IssuerSettings>,
    /// The file of API keys.
    pub api_keys: Option<PathBuf>,
    /// What client certificates stand for; the first rule that fits counts.
    pub certificates: Vec<CertificateRule>,
    /// The file of what was revoked.
    pub revocations: Option<PathBuf>,
    /// How far the clocks of issuers may be off.
    pub leeway: Duration,
    /// How often key sets are fetched anew.
    pub jwks_refresh: Duration,
    /// Certificates of authorities that are trusted beside the system's, when key sets are fetched.
    pub ca: Option<PathBuf>,
    /// Whether a token may be in the query of a WebSocket's URL.
    pub query: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            issuers: Vec::new(),
            api_keys: None,
            certificates: Vec::new(),
            revocations: None,
            leeway: Duration::from_secs(10),
            jwks_refresh: Duration::from_secs(300),
            ca: None,
            query: false,
        }
    }
}

impl Settings {
    /// Whether peers have to prove who they are.
    pub fn is_required(&self) -> bool {
        !self.issuers.is_empty() || self.api_keys.is_some() || !self.certificates.is_empty()
    }

    /// What is wrong with the settings by themselves, whatever the files hold: which setting, and what.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut names = HashSet::new();
        for issuer in &self.issuers {
            let twice = (!names.insert(&issuer.issuer)).then(|| "is there twice".to_owned());
            let wrong = issuer.problems().into_iter().chain(twice);
            problems.extend(wrong.map(|wrong| ("auth.issuers", format!("{:?}: {wrong}", issuer.issuer))));
        }
        for (at, rule) in self.certificates.iter().enumerate() {
            let wrong = rule.problems().into_iter();
            problems.extend(wrong.map(|wrong| ("auth.certificates", format!("rule {at}: {wrong}"))));
        }
        for (key, count) in [
            ("auth.issuers", self.issuers.len()),
            ("auth.certificates", self.certificates.len()),
        ] {
            if count > RULES {
                problems.push((key, format!("there are {count}; at most {RULES} may be")));
            }
        }
        problems
    }
}

/// Issuers, and rules for certificates, that there may be.
const RULES: usize = 100;

/// What is wrong with grants that are made for subjects yet to come.
fn unusable(grants: &[Grant]) -> Option<String> {
    Grants::new(grants.to_vec(), "somebody").err()
}

/// Somebody whose tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerSettings {
    /// What its tokens have as `iss`.
    pub issuer: String,
    /// Whom its tokens must be for: one of these is in their `aud`.
    pub audience: Vec<String>,
    /// How its tokens may be signed.
    pub algorithms: Vec<Algorithm>,
    /// The file of the secret that is shared with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// The file of its public key, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The file of its public keys, as a JWK set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf>,
    /// Where it publishes its keys, as a JWK set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// The claim that holds grants.
    #[serde(default = "claim")]
    pub claim: String,
    /// What comes before `sub`, so that issuers cannot speak of each other's subjects.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject_prefix: String,
    /// What all its tokens grant, beside what the claim says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
}

fn claim() -> String {
    "twinspan".to_owned()
}

impl IssuerSettings {
    fn problems(&self) -> Vec<String> {
        let sources = [
            self.secret_file.is_some(),
            self.key_file.is_some(),
            self.jwks_file.is_some(),
            self.jwks_url.is_some(),
        ];
        let is_shared = |algorithm: &Algorithm| algorithm.family() == AlgorithmFamily::Hmac;
        let shared = self.algorithms.iter().filter(|algorithm| is_shared(algorithm)).count();
        let url = self.jwks_url.as_deref().map(key_url);
        let wrong = [
            self.issuer.is_empty().then(|| "the issuer has no name".to_owned()),
            (self.issuer == API_KEYS).then(|| "that name is taken".to_owned()),
            self.audience
                .is_empty()
                .then(|| "audience is empty: tokens for somebody else would be taken".to_owned()),
            self.algorithms.is_empty().then(|| "algorithms is empty".to_owned()),
            (sources.iter().filter(|given| **given).count() != 1)
                .then(|| "exactly one of secret_file, key_file, jwks_file and jwks_url is needed".to_owned()),
            (self.secret_file.is_some() && shared < self.algorithms.len())
                .then(|| "a secret goes with HS256, HS384 and HS512 only".to_owned()),
            (self.secret_file.is_none() && shared > 0)
                .then(|| "HS256, HS384 and HS512 need a secret_file: with a public key, anybody could sign".to_owned()),
            self.claim.is_empty().then(|| "claim is empty".to_owned()),
            (!self.subject_prefix.bytes().all(|byte| byte.is_ascii_graphic()))
                .then(|| "subject_prefix must be ASCII without spaces".to_owned()),
            url.and_then(Result::err),
            unusable(&self.grants),
        ];
        wrong.into_iter().flatten().collect()
    }
}

/// A key set's address, if keys may be fetched from there.
pub fn key_url(url: &str) -> Result<Uri, String> {
    let wrong = |why: &str| format!("jwks_url {url:?}: {why}");
    let uri: Uri = url.parse().map_err(|_| wrong("that is no URL"))?;
    let authority = uri.authority().ok_or_else(|| wrong("that is no URL with a host"))?;
    if authority.as_str().contains('@') {
        // Not shown again: it may be a password.
        return Err("jwks_url has a user in it; keys are public, and settings hold no secrets".to_owned());
    }
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if is_loopback(authority.host()) => Ok(uri),
        Some("http") => Err(wrong("keys come over https, or over http from this machine itself")),
        _ => Err(wrong("only https and http are known")),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What a client certificate stands for that has a name of this form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateRule {
    /// A URI among its alternative names; one `*` stands for any characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub san_uri: Option<String>,
    /// A DNS name among them; one `*` stands for one label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub san_dns: Option<String>,
    /// Its common name; one `*` stands for any characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
    /// The subject: `{0}` is the name that fitted, `{1}` what `*` stood for.
    #[serde(default = "whole_name")]
    pub subject: String,
    /// What it grants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
}

fn whole_name() -> String {
    "{0}".to_owned()
}

impl CertificateRule {
    /// Where it looks, and for what.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        [&self.san_uri, &self.san_dns, &self.common_name]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    fn problems(&self) -> Vec<String> {
        let patterns: Vec<_> = self.patterns().collect();
        let is_starred = patterns.iter().any(|pattern| pattern.contains('*'));
        let rest = self.subject.replace("{0}", "").replace("{1}", "");
        let wrong = [
            (patterns.len() != 1).then(|| "exactly one of san_uri, san_dns and common_name is needed".to_owned()),
            patterns
                .iter()
                .any(|pattern| pattern.is_empty() || pattern.matches('*').count() > 1)
                .then(|| "a name has one `*` at most, and is not empty".to_owned()),
            (rest.contains(['{', '}']) || self.subject.is_empty() || !rest.bytes().all(|byte| byte.is_ascii_graphic()))
                .then(|| "subject is ASCII without spaces, in which {0} and {1} stand for what fitted".to_owned()),
            (self.subject.contains("{1}") && !is_starred)
                .then(|| "{1} is what `*` stood for, and there is none".to_owned()),
            unusable(&self.grants),
        ];
        wrong.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(rule: &str) -> String {
        let settings = Settings {
            certificates: vec![toml::from_str(rule).unwrap()],
            ..Settings::default()
        };
        let problems = settings.problems();
        assert!(problems.iter().all(|(key, _)| *key == "auth.certificates"));
        problems.into_iter().map(|(_, problem)| problem).collect()
    }

    #[test]
    fn rules_for_certificates_that_nobody_can_mean_are_told() {
        for good in [
            "san_uri = 'spiffe://example.com/*'\nsubject = 'svc:{1}'",
            "common_name = 'brain'",
            "san_dns = '*.example.com'\ngrants = [{ sessions = ['*'], serve = ['brain'] }]",
        ] {
            assert_eq!(wrong(good), "", "{good}");
        }
        for (bad, why) in [
            ("subject = 'a'", "exactly one"),
            ("san_dns = 'a'\ncommon_name = 'b'", "exactly one"),
            ("san_dns = '*.*.example.com'", "one `*` at most"),
            ("san_dns = ''", "not empty"),
            ("common_name = 'brain'\nsubject = '{1}'", "there is none"),
            ("common_name = 'brain'\nsubject = '{2}'", "{0} and {1}"),
            ("common_name = 'brain'\nsubject = 'two words'", "without spaces"),
            ("common_name = 'brain'\ngrants = [{ can = ['read'] }]", "grant 0"),
        ] {
            assert!(wrong(bad).contains(why), "{bad}: {}", wrong(bad));
        }
    }

    #[test]
    fn keys_come_from_where_nobody_else_can_change_them() {
        for good in [
            "https://keys.example/a?b=c",
            "http://127.0.0.1:80/",
            "http://[::1]/",
            "http://localhost/keys",
        ] {
            assert!(key_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/keys",
            "keys.example",
            "http://keys.example/",
            "http://127.0.0.1.keys.example/",
            "http://localhost.keys.example/",
            "http://10.0.0.1/",
            "ftp://keys.example/",
            "file:///keys",
            "https://localhost@keys.example/",
        ] {
            assert!(key_url(bad).is_err(), "{bad}");
        }
    }
}
