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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber, date_time_ymd};

    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn certificate(uri: Option<&str>, dns: Option<&str>, common: &str) -> Vec<u8> {
        let mut params = CertificateParams::new(dns.map(str::to_owned).into_iter().collect::<Vec<_>>()).unwrap();
        let uri = uri.map(|uri| SanType::URI(uri.try_into().unwrap()));
        params.subject_alt_names.extend(uri);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        params.serial_number = Some(SerialNumber::from(vec![0, 0x8f, 0x01]));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2030, 1, 1);
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .to_vec()
    }

    fn rule(key: &str, pattern: &str, subject: &str) -> CertificateRule {
        let text = format!("{key} = {pattern:?}\nsubject = {subject:?}\n");
        toml::from_str(&text).unwrap()
    }

    fn subject(rules: &[CertificateRule], der: &[u8]) -> Result<String, Reason> {
        let identity = identity(rules, der, now());
        identity
            .map(|identity| identity.subject.to_string())
            .map_err(|refusal| refusal.reason)
    }

    #[test]
    fn the_first_rule_that_fits_gives_the_subject() {
        let der = certificate(
            Some("spiffe://example.com/ns/brain"),
            Some("W1.workers.example.com"),
            "brain one",
        );
        for (key, pattern, given, expected) in [
            ("san_uri", "spiffe://example.com/*", "{1}", Some("ns/brain")),
            (
                "san_uri",
                "spiffe://example.com/*",
                "{0}",
                Some("spiffe://example.com/ns/brain"),
            ),
            ("san_uri", "spiffe://example.com/ns/brain", "brain", Some("brain")),
            ("san_uri", "spiffe://example.org/*", "{1}", None),
            ("san_uri", "spiffe://example.com/ns/brain*", "{1}", None),
            ("san_dns", "*.workers.EXAMPLE.com", "worker:{1}", Some("worker:w1")),
            ("san_dns", "*.example.com", "{1}", None),
            ("san_dns", "spiffe://*", "{1}", None),
            ("common_name", "brain *", "{1}", Some("one")),
        ] {
            let rules = [
                rule("san_uri", "nothing", "x"),
                rule(key, pattern, given),
                rule(key, pattern, "second"),
            ];
            let expected = expected.map(str::to_owned).ok_or(Reason::Unauthenticated);
            assert_eq!(subject(&rules, &der), expected, "{key} {pattern}");
        }
    }

    #[test]
    fn a_name_that_is_no_subject_is_refused() {
        let der = certificate(None, None, "two words");
        assert_eq!(
            subject(&[rule("common_name", "*", "{0}")], &der),
            Err(Reason::Unauthenticated)
        );
        let braces = certificate(None, None, "{1}{0}");
        assert_eq!(
            subject(&[rule("common_name", "*", "a{0}")], &braces),
            Ok("a{1}{0}".to_owned())
        );
    }

    #[test]
    fn what_a_certificate_says_of_itself() {
        let der = certificate(None, None, "brain");
        let identity = identity(&[rule("common_name", "*", "{0}")], &der, now()).unwrap();
        assert_eq!((&*identity.token_id, &*identity.issuer), ("8f01", "CN=brain"));
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(
            (identity.issued_at, identity.expires_at),
            (at(1_577_836_800), at(1_893_456_000))
        );
    }

    #[test]
    fn what_is_over_or_no_certificate_is_refused() {
        let der = certificate(None, None, "brain");
        let rules = [rule("common_name", "*", "{0}")];
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000);
        assert_eq!(identity(&rules, &der, later).unwrap_err().reason, Reason::TokenExpired);
        for broken in [&der[..der.len() / 2], b"", b"garbage"] {
            assert_eq!(subject(&rules, broken), Err(Reason::Unauthenticated));
        }
    }
}
