//! Client certificates: whom one stands for. It has been verified where TLS is spoken; here it is only read.

use std::time::{Duration, SystemTime};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::settings::CertificateRule;
use super::{Grants, Identity, check_subject, quoted, refused};
use crate::error::{Reason, Refusal};

/// Characters of an issuer's name that are kept.
const ISSUER_CHARACTERS: usize = 256;

/// The identity that the first rule gives which fits.
pub fn identity(rules: &[CertificateRule], der: &[u8], now: SystemTime) -> Result<Identity, Refusal> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| refused("the client certificate cannot be read"))?;
    let names = Names::of(&certificate);
    let fitting = rules
        .iter()
        .find_map(|rule| names.fit(rule).map(|subject| (rule, subject)));
    let (rule, subject) = fitting.ok_or_else(|| {
        let shown = quoted(&names.all().collect::<Vec<_>>().join(", "));
        refused(format!(
            "the client certificate's names fit no rule of this gateway: {shown}"
        ))
    })?;
    check_subject(&subject).map_err(|wrong| refused(format!("the client certificate's name {wrong}")))?;
    let validity = certificate.validity();
    let expires_at = moment(validity.not_after)?;
    if expires_at <= now {
        return Err(Refusal::new(
            Reason::TokenExpired,
            "the client certificate's time is over; get a new one",
        ));
    }
    Ok(Identity {
        token_id: serial(certificate.raw_serial()).into(),
        issuer: issuer(&certificate).into(),
        issued_at: Some(moment(validity.not_before)?),
        expires_at: Some(expires_at),
        grants: Grants::new(rule.grants.clone(), &subject).map_err(refused)?,
        subject: subject.into(),
    })
}

/// The names that a certificate has.
#[derive(Debug, Default)]
struct Names<'a> {
    uris: Vec<&'a str>,
    hosts: Vec<&'a str>,
    common: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn of(certificate: &'a X509Certificate<'a>) -> Self {
        let mut names = Self::default();
        if let Ok(Some(alternatives)) = certificate.subject_alternative_name() {
            for name in &alternatives.value.general_names {
                match name {
                    GeneralName::URI(uri) => names.uris.push(uri),
                    GeneralName::DNSName(host) => names.hosts.push(host),
                    _ => {}
                }
            }
        }
        let common = certificate.subject().iter_common_name();
        names.common = common.filter_map(|name| name.as_str().ok()).collect();
        names
    }

    fn all(&self) -> impl Iterator<Item = &'a str> {
        [&self.uris, &self.hosts, &self.common].into_iter().flatten().copied()
    }

    /// The subject that the rule makes of the first name that fits it.
    fn fit(&self, rule: &CertificateRule) -> Option<String> {
        let any = |pattern: &Option<String>, names: &[&str]| {
            let pattern = pattern.as_deref()?;
            names
                .iter()
                .find_map(|name| Some(fill(&rule.subject, name, part(pattern, name)?)))
        };
        any(&rule.san_uri, &self.uris)
            .or_else(|| {
                let pattern = rule.san_dns.as_deref()?.to_ascii_lowercase();
                self.hosts.iter().find_map(|host| {
                    let host = host.to_ascii_lowercase();
                    let label = part(&pattern, &host).filter(|part| !part.contains('.'))?;
                    Some(fill(&rule.subject, &host, label))
                })
            })
            .or_else(|| any(&rule.common_name, &self.common))
    }
}

/// What `*` stands for if the name fits: at least one character.
fn part<'n>(pattern: &str, name: &'n str) -> Option<&'n str> {
    let Some((before, after)) = pattern.split_once('*') else {
        return (pattern == name).then_some("");
    };
    let part = name.strip_prefix(before)?.strip_suffix(after)?;
    (!part.is_empty()).then_some(part)
}

/// In one pass: a name that has braces is not filled in again.
fn fill(subject: &str, name: &str, part: &str) -> String {
    let pieces: Vec<_> = subject.split("{0}").map(|piece| piece.replace("{1}", part)).collect();
    pieces.join(name)
}

fn moment(at: ASN1Time) -> Result<SystemTime, Refusal> {
    let seconds = u64::try_from(at.timestamp()).unwrap_or(0);
    let moment = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    moment.ok_or_else(|| refused("the client certificate's times are none"))
}

/// In hexadecimal, as tools show it.
fn serial(raw: &[u8]) -> String {
    let from = raw.iter().position(|byte| *byte != 0).unwrap_or(0);
    raw[from..].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn issuer(certificate: &X509Certificate<'_>) -> String {
    let name = certificate.issuer().to_string();
    name.chars()
        .filter(|c| !c.is_control())
        .take(ISSUER_CHARACTERS)
        .collect()
}
