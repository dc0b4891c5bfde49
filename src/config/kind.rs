//! The kinds of values that settings have: how they are read, and how they are written.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Value;

use crate::auth::{CertificateRule, IssuerSettings};
use crate::edge::{Forwarding, Pattern};
use crate::limits::{Concurrency, Role};
use crate::log::Durability;

/// A value as it was found.
#[derive(Clone, Debug)]
pub enum Raw {
    /// In the environment, or behind a flag.
    Text(String),
    /// In the file.
    Toml(Value),
}

impl Raw {
    /// The value as one piece of text, where it is one piece.
    fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) | Self::Toml(Value::String(text)) => Some(text.trim().to_owned()),
            Self::Toml(Value::Integer(number)) => Some(number.to_string()),
            Self::Toml(Value::Boolean(truth)) => Some(truth.to_string()),
            Self::Toml(_) => None,
        }
    }

    /// The value as it is shown to people.
    pub fn shown(&self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Toml(value) => value.to_string(),
        }
    }
}

/// What the values of a kind look like.
pub trait Described {
    /// What a value must be, for people.
    const EXPECTED: &'static str;
}

/// How a setting's values are read and written.
pub trait Kind<T>: Described {
    /// The value, if it is one.
    fn read(raw: &Raw) -> Option<T>;
    /// The value as the file would have it.
    fn show(value: &T) -> Value;
}

/// An address with a port.
pub struct Address;

impl Described for Address {
    const EXPECTED: &'static str = "an IP address and a port, such as 127.0.0.1:7080 or [::1]:7080";
}

impl Kind<SocketAddr> for Address {
    fn read(raw: &Raw) -> Option<SocketAddr> {
        raw.text()?.parse().ok()
    }

    fn show(value: &SocketAddr) -> Value {
        Value::String(value.to_string())
    }
}

/// True or false.
pub struct Switch;

impl Described for Switch {
    const EXPECTED: &'static str = "true or false";
}

impl Kind<bool> for Switch {
    fn read(raw: &Raw) -> Option<bool> {
        raw.text()?.parse().ok()
    }

    fn show(value: &bool) -> Value {
        Value::Boolean(*value)
    }
}

/// A number of things; at least one.
pub struct Count;

impl Described for Count {
    const EXPECTED: &'static str = "a whole number from 1 to 4294967295";
}

impl<T: TryFrom<u32> + TryInto<u32> + Copy> Kind<T> for Count {
    fn read(raw: &Raw) -> Option<T> {
        let number: u32 = raw.text()?.replace('_', "").parse().ok()?;
        if number == 0 { None } else { T::try_from(number).ok() }
    }

    fn show(value: &T) -> Value {
        Value::Integer((*value).try_into().map_or(i64::MAX, i64::from))
    }
}

/// A size.
pub struct Bytes;

const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Described for Bytes {
    const EXPECTED: &'static str = "a number of bytes above 0, such as 65536, \"64KiB\", \"16MiB\" or \"1GiB\"";
}

impl Kind<usize> for Bytes {
    fn read(raw: &Raw) -> Option<usize> {
        let text = raw.text()?.replace('_', "");
        let (number, unit) = split_unit(&text);
        let unit = if unit.is_empty() { "B" } else { unit };
        let (_, factor) = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
        let bytes = number.parse::<u64>().ok()?.checked_mul(*factor)?;
        // Beyond i64, TOML could not write it.
        usize::try_from(bytes)
            .ok()
            .filter(|bytes| *bytes > 0 && i64::try_from(*bytes).is_ok())
    }

    fn show(value: &usize) -> Value {
        let bytes = *value as u64;
        match SIZES[..3]
            .iter()
            .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        {
            Some((unit, factor)) => Value::String(format!("{}{unit}", bytes / factor)),
            None => Value::Integer(i64::try_from(bytes).unwrap_or(i64::MAX)),
        }
    }
}

/// A span of time.
pub struct Span;

const SPANS_MS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const LONGEST_MS: u64 = 365 * 86_400_000;

impl Described for Span {
    const EXPECTED: &'static str =
        "a time above 0 with its unit, such as \"500ms\", \"10s\", \"2m\", \"1h\" or \"7d\", at most 365d";
}

impl Kind<Duration> for Span {
    fn read(raw: &Raw) -> Option<Duration> {
        parse_duration(&raw.text()?)
    }

    fn show(value: &Duration) -> Value {
        let ms = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        let whole = |(_, unit_ms): &&(&str, u64)| ms.is_multiple_of(*unit_ms);
        let (unit, unit_ms) = SPANS_MS.iter().find(whole).unwrap_or(&SPANS_MS[4]);
        Value::String(format!("{}{unit}", ms / unit_ms))
    }
}

/// A time such as "10s", as the settings and the commands have it.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text);
    let (_, unit_ms) = SPANS_MS.iter().find(|(name, _)| *name == unit)?;
    let ms = number.parse::<u64>().ok()?.checked_mul(*unit_ms)?;
    (1..=LONGEST_MS).contains(&ms).then(|| Duration::from_millis(ms))
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim())
}

/// The form of the process's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: an object a line.
    Json,
}

/// A log's form.
pub struct Format;

impl Described for Format {
    const EXPECTED: &'static str = "text or json";
}

impl Kind<LogFormat> for Format {
    fn read(raw: &Raw) -> Option<LogFormat> {
        match raw.text()?.as_str() {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        }
    }

    fn show(value: &LogFormat) -> Value {
        let name = match value {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        Value::String(name.to_owned())
    }
}

/// Directives of what is logged.
pub struct Filter;

impl Described for Filter {
    const EXPECTED: &'static str =
        "a level (error, warn, info, debug, trace), or directives such as info,twinspan::session=debug";
}

impl Kind<String> for Filter {
    fn read(raw: &Raw) -> Option<String> {
        raw.text()
            .filter(|text| !text.is_empty() && tracing_subscriber::EnvFilter::try_new(text).is_ok())
    }

    fn show(value: &String) -> Value {
        Value::String(value.clone())
    }
}

/// The word of a value, out of those that there are.
fn read_word<T: Copy>(words: &[(&str, T)], raw: &Raw) -> Option<T> {
    let text = raw.text()?;
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
}

fn show_word<T: PartialEq>(words: &[(&str, T)], value: &T) -> Value {
    let known = words.iter().find(|(_, known)| known == value);
    Value::String(known.map_or("", |(word, _)| *word).to_owned())
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2
    #[default]
    V1_2,
    /// 1.3
    V1_3,
}

/// The oldest version of TLS.
pub struct Version;

const VERSIONS: [(&str, TlsVersion); 2] = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];

impl Described for Version {
    const EXPECTED: &'static str = "\"1.2\" or \"1.3\", in quotes";
}

impl Kind<TlsVersion> for Version {
    fn read(raw: &Raw) -> Option<TlsVersion> {
        read_word(&VERSIONS, raw)
    }

    fn show(value: &TlsVersion) -> Value {
        show_word(&VERSIONS, value)
    }
}

/// What is durable when it is acked.
pub struct Promise;

const PROMISES: [(&str, Durability); 3] = [
    ("durable", Durability::Durable),
    ("relaxed", Durability::Relaxed),
    ("memory", Durability::Memory),
];

impl Described for Promise {
    const EXPECTED: &'static str = "durable, relaxed or memory";
}

impl Kind<Durability> for Promise {
    fn read(raw: &Raw) -> Option<Durability> {
        read_word(&PROMISES, raw)
    }

    fn show(value: &Durability) -> Value {
        show_word(&PROMISES, value)
    }
}

/// Whether clients are asked for certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not.
    #[default]
    Off,
    /// They are, and may have none.
    Optional,
    /// Without one there is no connection.
    Required,
}

/// How clients are asked for certificates.
pub struct Asked;

const ASKED: [(&str, ClientCertificates); 3] = [
    ("off", ClientCertificates::Off),
    ("optional", ClientCertificates::Optional),
    ("required", ClientCertificates::Required),
];

impl Described for Asked {
    const EXPECTED: &'static str = "off, optional or required";
}

impl Kind<ClientCertificates> for Asked {
    fn read(raw: &Raw) -> Option<ClientCertificates> {
        read_word(&ASKED, raw)
    }

    fn show(value: &ClientCertificates) -> Value {
        show_word(&ASKED, value)
    }
}

/// The header that names a proxy's client.
pub struct Header;

const HEADERS: [(&str, Forwarding); 3] = [
    ("off", Forwarding::Off),
    ("x-forwarded-for", Forwarding::XForwardedFor),
    ("forwarded", Forwarding::Forwarded),
];

impl Described for Header {
    const EXPECTED: &'static str = "off, x-forwarded-for or forwarded";
}

impl Kind<Forwarding> for Header {
    fn read(raw: &Raw) -> Option<Forwarding> {
        read_word(&HEADERS, raw)
    }

    fn show(value: &Forwarding) -> Value {
        show_word(&HEADERS, value)
    }
}

/// An address with a port, or none.
pub struct OtherAddress;

impl Described for OtherAddress {
    const EXPECTED: &'static str = "an IP address and a port, such as 127.0.0.1:7080 or [::1]:7080, or \"\" for none";
}

impl Kind<Option<SocketAddr>> for OtherAddress {
    fn read(raw: &Raw) -> Option<Option<SocketAddr>> {
        match raw.text()?.as_str() {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        }
    }

    fn show(value: &Option<SocketAddr>) -> Value {
        Value::String(value.map_or_else(String::new, |address| address.to_string()))
    }
}

/// A path, or none.
pub struct File;

impl Described for File {
    const EXPECTED: &'static str = "a path, or \"\" for none";
}

impl Kind<Option<PathBuf>> for File {
    fn read(raw: &Raw) -> Option<Option<PathBuf>> {
        match raw {
            Raw::Text(text) | Raw::Toml(Value::String(text)) => {
                Some(Some(text.as_str()).filter(|text| !text.is_empty()).map(PathBuf::from))
            }
            Raw::Toml(_) => None,
        }
    }

    fn show(value: &Option<PathBuf>) -> Value {
        Value::String(
            value
                .as_ref()
                .map_or_else(String::new, |path| path.display().to_string()),
        )
    }
}

/// A directory.
pub struct Folder;

impl Described for Folder {
    const EXPECTED: &'static str = "a path";
}

impl Kind<PathBuf> for Folder {
    fn read(raw: &Raw) -> Option<PathBuf> {
        File::read(raw).flatten()
    }

    fn show(value: &PathBuf) -> Value {
        Value::String(value.display().to_string())
    }
}

/// A list of things, each of which is a piece of text.
fn read_list<T>(raw: &Raw, item: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    match raw {
        Raw::Text(text) => items(text).map(item).collect(),
        Raw::Toml(Value::Array(values)) => values.iter().map(|value| item(value.as_str()?.trim())).collect(),
        Raw::Toml(_) => None,
    }
}

fn show_list<T: ToString>(items: &[T]) -> Value {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().into()
}

/// Networks, and single addresses.
pub struct Networks;

impl Described for Networks {
    const EXPECTED: &'static str = "a list of addresses and networks, such as [\"192.0.2.7\", \"10.0.0.0/8\", \"fd00::/8\"] (in the \
                                    environment and behind a flag: with commas in between)";
}

impl Kind<Vec<IpNet>> for Networks {
    fn read(raw: &Raw) -> Option<Vec<IpNet>> {
        let single = |text: &str| text.parse::<IpAddr>().ok().map(IpNet::from);
        read_list(raw, |text| text.parse().ok().or_else(|| single(text)))
    }

    fn show(value: &Vec<IpNet>) -> Value {
        show_list(value)
    }
}

/// Origins of pages.
pub struct Pages;

impl Described for Pages {
    const EXPECTED: &'static str = "a list of origins: a scheme, a host and perhaps a port, with no path, such as \
                                    [\"https://app.example.com\", \"http://localhost:*\"]; or \"null\", or \"*\" (in the environment \
                                    and behind a flag: with commas in between)";
}

impl Kind<Vec<Pattern>> for Pages {
    fn read(raw: &Raw) -> Option<Vec<Pattern>> {
        read_list(raw, Pattern::parse)
    }

    fn show(value: &Vec<Pattern>) -> Value {
        show_list(value)
    }
}

/// Paths.
pub struct Files;

impl Described for Files {
    const EXPECTED: &'static str = "a list of paths (in the environment and behind a flag: with commas in between)";
}

impl Kind<Vec<PathBuf>> for Files {
    fn read(raw: &Raw) -> Option<Vec<PathBuf>> {
        match raw {
            Raw::Text(text) => Some(items(text).map(PathBuf::from).collect()),
            Raw::Toml(Value::Array(paths)) => paths.iter().map(|path| path.as_str().map(PathBuf::from)).collect(),
            Raw::Toml(_) => None,
        }
    }

    fn show(value: &Vec<PathBuf>) -> Value {
        value
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
            .into()
    }
}

/// Whose tokens are taken.
pub struct Issuers;

impl Described for Issuers {
    const EXPECTED: &'static str = "a list of issuers, each { issuer = \"https://…\", audience = [\"…\"], algorithms = [\"RS256\"], \
                                    jwks_url = \"https://…\" }, with secret_file, key_file or jwks_file in the place of jwks_url, and \
                                    optionally claim, grants and subject_prefix; algorithms are HS256, HS384, HS512, RS256, RS384, \
                                    RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA (in the environment and behind a flag: the \
                                    same as TOML)";
}

impl Kind<Vec<IssuerSettings>> for Issuers {
    fn read(raw: &Raw) -> Option<Vec<IssuerSettings>> {
        tables(raw)
    }

    fn show(value: &Vec<IssuerSettings>) -> Value {
        shown(value)
    }
}

/// What certificates stand for.
pub struct Certificates;

impl Described for Certificates {
    const EXPECTED: &'static str = "a list of rules, each { san_uri = \"spiffe://example.com/*\", subject = \"{1}\", grants = [{ … }] }, \
                                    with san_dns or common_name in the place of san_uri (in the environment and behind a flag: the \
                                    same as TOML)";
}

impl Kind<Vec<CertificateRule>> for Certificates {
    fn read(raw: &Raw) -> Option<Vec<CertificateRule>> {
        tables(raw)
    }

    fn show(value: &Vec<CertificateRule>) -> Value {
        shown(value)
    }
}

fn tables<T: DeserializeOwned>(raw: &Raw) -> Option<Vec<T>> {
    match raw {
        Raw::Toml(value) => value.clone().try_into().ok(),
        Raw::Text(text) => {
            let mut file: toml::Table = format!("list = {text}").parse().ok()?;
            file.remove("list")?.try_into().ok()
        }
    }
}

fn shown<T: Serialize>(value: &T) -> Value {
    // What was read can be written.
    Value::try_from(value).unwrap_or_else(|_| Value::Array(Vec::new()))
}

/// Frame types and their roles.
pub struct Routes;

impl Described for Routes {
    const EXPECTED: &'static str = "frame types, each with the role that it goes to: { query = \"brain\" } (in the environment and \
                                    behind a flag: query=brain,BRAIN_REQUEST=brain); a role is 1 to 128 characters out of \
                                    A-Z a-z 0-9 . _ ~ : @ / + = - and not \"gateway\"";
}

impl Kind<BTreeMap<String, String>> for Routes {
    fn read(raw: &Raw) -> Option<BTreeMap<String, String>> {
        let routes: BTreeMap<String, String> = match raw {
            Raw::Text(text) => items(text).map(route).collect::<Option<_>>()?,
            Raw::Toml(Value::Table(table)) => table
                .iter()
                .map(|(kind, role)| Some((kind.clone(), role.as_str()?.to_owned())))
                .collect::<Option<_>>()?,
            Raw::Toml(_) => return None,
        };
        routes
            .iter()
            .all(|(kind, role)| is_type(kind) && is_role(role))
            .then_some(routes)
    }

    fn show(value: &BTreeMap<String, String>) -> Value {
        Value::Table(
            value
                .iter()
                .map(|(kind, role)| (kind.clone(), Value::String(role.clone())))
                .collect(),
        )
    }
}

/// What is said of roles.
pub struct Roles;

const CONCURRENCIES: [(&str, Concurrency); 4] = [
    ("parallel", Concurrency::Parallel),
    ("queue", Concurrency::Queue),
    ("reject", Concurrency::Reject),
    ("replace", Concurrency::Replace),
];

impl Described for Roles {
    const EXPECTED: &'static str = "roles, each with a lease, a concurrency (parallel, queue, reject or replace) or both: \
                                    { brain = { lease = \"30s\", concurrency = \"queue\" } } (in the environment and behind a \
                                    flag: the same as TOML)";
}

impl Kind<BTreeMap<String, Role>> for Roles {
    fn read(raw: &Raw) -> Option<BTreeMap<String, Role>> {
        let table = match raw {
            Raw::Toml(Value::Table(table)) => table.clone(),
            Raw::Toml(_) => return None,
            Raw::Text(text) => {
                let mut file: toml::Table = format!("roles = {text}").parse().ok()?;
                match file.remove("roles")? {
                    Value::Table(table) => table,
                    _ => return None,
                }
            }
        };
        let roles = table.iter().map(|(name, said)| Some((name.clone(), role(said)?)));
        let roles: BTreeMap<String, Role> = roles.collect::<Option<_>>()?;
        roles.keys().all(|name| is_role(name)).then_some(roles)
    }

    fn show(value: &BTreeMap<String, Role>) -> Value {
        let said = |role: &Role| {
            let lease = role.lease.as_ref().map(|lease| ("lease".to_owned(), Span::show(lease)));
            let concurrency = role.concurrency.and_then(|concurrency| {
                let (name, _) = CONCURRENCIES.iter().find(|(_, known)| *known == concurrency)?;
                Some(("concurrency".to_owned(), Value::String((*name).to_owned())))
            });
            Value::Table(lease.into_iter().chain(concurrency).collect())
        };
        Value::Table(value.iter().map(|(name, role)| (name.clone(), said(role))).collect())
    }
}

fn role(said: &Value) -> Option<Role> {
    let mut role = Role::default();
    for (key, value) in said.as_table()? {
        match key.as_str() {
            "lease" => role.lease = Some(Span::read(&Raw::Toml(value.clone()))?),
            "concurrency" => {
                let known = CONCURRENCIES.iter().find(|(name, _)| value.as_str() == Some(name));
                role.concurrency = Some(known?.1);
            }
            _ => return None,
        }
    }
    Some(role)
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn route(item: &str) -> Option<(String, String)> {
    let (kind, role) = item.split_once('=')?;
    Some((kind.trim().to_owned(), role.trim().to_owned()))
}

fn is_type(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_role(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~:@/+=-".contains(&byte);
    text != "gateway" && (1..=128).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    #[test]
    fn sizes() {
        for (given, bytes) in [
            ("1", 1),
            ("65536", 65_536),
            ("10_000", 10_000),
            ("64KiB", 65_536),
            ("16 MiB", 16 << 20),
            ("1gib", 1 << 30),
        ] {
            assert_eq!(Bytes::read(&text(given)), Some(bytes), "{given}");
        }
        for given in [
            "",
            "0",
            "0MiB",
            "-1",
            "1.5MiB",
            "1MB",
            "MiB",
            "99999999999GiB",
            "9223372036854775808",
        ] {
            assert_eq!(Bytes::read(&text(given)), None, "{given}");
        }
        for (bytes, shown) in [
            (1_usize, "1"),
            (1_000, "1000"),
            (1 << 10, "\"1KiB\""),
            (3 << 20, "\"3MiB\""),
            (1 << 30, "\"1GiB\""),
        ] {
            assert_eq!(Bytes::show(&bytes).to_string(), shown);
        }
    }

    #[test]
    fn spans() {
        for (given, ms) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("7 d", 7 * 86_400_000),
        ] {
            assert_eq!(Span::read(&text(given)), Some(Duration::from_millis(ms)), "{given}");
        }
        for given in [
            "",
            "10",
            "0s",
            "-1s",
            "1.5s",
            "1w",
            "s",
            "366d",
            "99999999999999999999s",
        ] {
            assert_eq!(Span::read(&text(given)), None, "{given}");
        }
        for (ms, shown) in [
            (1, "\"1ms\""),
            (1_500, "\"1500ms\""),
            (90_000, "\"90s\""),
            (600_000, "\"10m\""),
            (86_400_000, "\"1d\""),
        ] {
            assert_eq!(Span::show(&Duration::from_millis(ms)).to_string(), shown);
        }
    }

    #[test]
    fn networks_and_pages() {
        let networks = Networks::read(&text("10.0.0.0/8, 192.0.2.7,::1")).unwrap();
        assert_eq!(
            Networks::show(&networks).to_string(),
            r#"["10.0.0.0/8", "192.0.2.7/32", "::1/128"]"#
        );
        let pages = Pages::read(&text("https://app.example.com,http://localhost:*,null")).unwrap();
        assert_eq!(
            Pages::show(&pages).to_string(),
            r#"["https://app.example.com", "http://localhost:*", "null"]"#
        );
        for given in ["10.0.0.0/33", "localhost", "10.0.0"] {
            assert_eq!(Networks::read(&text(given)), None, "{given}");
        }
        for given in ["app.example.com", "https://app.example.com/", "https://a b"] {
            assert_eq!(Pages::read(&text(given)), None, "{given}");
        }
    }

    #[test]
    fn words_are_read_as_they_are_shown() {
        for word in ["1.2", "1.3"] {
            assert_eq!(Version::show(&Version::read(&text(word)).unwrap()).as_str(), Some(word));
        }
        for word in ["off", "optional", "required"] {
            assert_eq!(Asked::show(&Asked::read(&text(word)).unwrap()).as_str(), Some(word));
        }
        for word in ["off", "x-forwarded-for", "forwarded"] {
            assert_eq!(Header::show(&Header::read(&text(word)).unwrap()).as_str(), Some(word));
        }
        assert_eq!(Version::read(&text("1.1")), None);
    }

    #[test]
    fn roles_in_the_environment() {
        let given = r#"{ brain = { concurrency = "queue", lease = "30s" }, hands = { lease = "2m" } }"#;
        assert_eq!(Roles::show(&Roles::read(&text(given)).unwrap()).to_string(), given);
        for given in [
            "brain",
            "{ brain = 1 }",
            "{ gateway = {} }",
            r#"{ brain = { lease = "0s" } }"#,
            r#"{ brain = { concurrency = "some" } }"#,
            r#"{ brain = { leash = "1s" } }"#,
        ] {
            assert_eq!(Roles::read(&text(given)), None, "{given}");
        }
    }

    #[test]
    fn routes_in_the_environment() {
        let routes = Routes::read(&text("BRAIN_REQUEST=brain, query=brain,")).unwrap();
        assert_eq!(
            Routes::show(&routes).to_string(),
            r#"{ BRAIN_REQUEST = "brain", query = "brain" }"#
        );
        for given in [
            "query",
            "=brain",
            "query=",
            "a b=brain",
            "query=gateway",
            "query=br ain",
        ] {
            assert_eq!(Routes::read(&text(given)), None, "{given}");
        }
    }
}
