//! Origins: whose pages a browser may let speak to the gateway.
//!
//! A browser says in `Origin` whose page a request comes from, and no page can make it lie. Other programs say what they like, or
//! nothing: this protects people from pages that they visit, and never stands for authentication.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::error::{Reason, Refusal};

/// Which origins are allowed.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    /// Those that are, wherever the gateway is.
    pub allowed: Vec<Pattern>,
    /// Whether a page of the very host that is asked is allowed where that is a name. A stranger's name can be made to lead to this
    /// gateway (DNS rebinding); only where peers show credentials does that give a page nothing.
    pub trusts_host: bool,
}

/// One entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `*`: every page, also one that has no origin.
    Any,
    /// `null`: pages without an origin, such as files and sandboxed frames.
    Null,
    /// A scheme, a host and a port.
    Page {
        /// In lower case.
        scheme: String,
        /// In lower case; IPv6 addresses in brackets.
        host: String,
        /// The port.
        port: Port,
    },
}

/// The port of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// `*`
    Any,
    /// The one of the scheme.
    Usual,
    /// This one.
    Is(u16),
}

impl Pattern {
    /// Reads `*`, `null`, `https://app.example.com`, `http://localhost:*`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "*" => return Some(Self::Any),
            "null" => return Some(Self::Null),
            _ => {}
        }
        let (scheme, authority) = text.split_once("://")?;
        let (authority, port) = match authority.strip_suffix(":*") {
            Some(host) => (Authority::parse(host).filter(|host| host.port.is_none())?, Port::Any),
            None => {
                let authority = Authority::parse(authority)?;
                let port = authority.port.map_or(Port::Usual, Port::Is);
                (authority, port)
            }
        };
        is_scheme(scheme).then(|| Self::Page {
            scheme: scheme.to_ascii_lowercase(),
            host: authority.host,
            port,
        })
    }

    fn covers(&self, origin: &Origin) -> bool {
        match (self, origin) {
            (Self::Any, _) | (Self::Null, Origin::Null) => true,
            (Self::Page { scheme, host, port }, Origin::Page { scheme: of, authority }) => {
                let same_port = match port {
                    Port::Any => true,
                    Port::Usual => authority.port(of) == usual_port(scheme),
                    Port::Is(port) => authority.port(of) == Some(*port),
                };
                scheme == of && *host == authority.host && same_port
            }
            _ => false,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Any => return f.write_str("*"),
            Self::Null => return f.write_str("null"),
            Self::Page { scheme, host, port } => (scheme, host, port),
        };
        write!(f, "{scheme}://{host}")?;
        match port {
            Port::Any => f.write_str(":*"),
            Port::Usual => Ok(()),
            Port::Is(port) => write!(f, ":{port}"),
        }
    }
}

impl Origins {
    /// Whether a page of `origin` may speak to the gateway that it called `host`.
    pub fn admit(&self, origin: &str, host: Option<&str>) -> Result<(), Refusal> {
        let Some(page) = Origin::parse(origin) else {
            return match self.allowed.contains(&Pattern::Any) {
                true => Ok(()),
                false => Err(denied(origin, "is not a web origin")),
            };
        };
        if self.allowed.iter().any(|pattern| pattern.covers(&page)) {
            return Ok(());
        }
        let Origin::Page { scheme, authority } = &page else {
            return Err(denied(origin, "is nobody's: the page is a file, or sandboxed"));
        };
        let is_same = host
            .and_then(Authority::parse)
            .is_some_and(|host| host.host == authority.host && host.port(scheme) == authority.port(scheme));
        if !is_same {
            return Err(denied(origin, "is not the gateway's own"));
        }
        match self.trusts_host || is_certain(&authority.host) {
            true => Ok(()),
            false => Err(denied(
                origin,
                "is the gateway's own only by its name, which anybody can have lead here",
            )),
        }
    }
}

fn denied(origin: &str, why: &str) -> Refusal {
    let message =
        format!("pages of {origin:?} may not use this gateway: it {why}; to allow it, add it to the setting origins");
    Refusal::new(Reason::OriginDenied, message).with("setting", "origins")
}

/// Whether nobody else can have the host lead here: an address, or this machine's own name.
fn is_certain(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost") || host.starts_with('[') || host.parse::<IpAddr>().is_ok()
}

/// What a browser says.
enum Origin {
    Null,
    Page { scheme: String, authority: Authority },
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        if text == "null" {
            return Some(Self::Null);
        }
        let (scheme, authority) = text.split_once("://")?;
        let authority = Authority::parse(authority)?;
        is_scheme(scheme).then(|| Self::Page {
            scheme: scheme.to_ascii_lowercase(),
            authority,
        })
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// A host, and a port where one is said.
struct Authority {
    host: String,
    port: Option<u16>,
}

impl Authority {
    fn parse(text: &str) -> Option<Self> {
        let end = match text.strip_prefix('[') {
            Some(rest) => rest.find(']')? + 2,
            None => text.find(':').unwrap_or(text.len()),
        };
        let (host, port) = text.split_at(end);
        let port = match port.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => Some(digits.parse().ok()?),
            None if port.is_empty() => None,
            _ => return None,
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => format!("[{}]", address.parse::<Ipv6Addr>().ok()?),
            None if is_name(host) => host.to_ascii_lowercase(),
            None => return None,
        };
        Some(Self { host, port })
    }

    fn port(&self, scheme: &str) -> Option<u16> {
        self.port.or(usual_port(scheme))
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

fn usual_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(allowed: &[&str], trusts_host: bool) -> Origins {
        let allowed = allowed.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        Origins { allowed, trusts_host }
    }

    #[test]
    fn the_list_is_heeded() {
        let list = origins(
            &["https://app.example.com", "http://localhost:*", "http://[::1]:8080"],
            false,
        );
        for (origin, allowed) in [
            ("https://app.example.com", true),
            ("https://APP.example.com", true),
            ("https://app.example.com:443", true),
            ("https://app.example.com:444", false),
            ("http://app.example.com", false),
            ("https://app.example.com.evil.net", false),
            ("https://evil.net/https://app.example.com", false),
            ("https://app.example.com@evil.net", false),
            ("https://sub.app.example.com", false),
            ("http://localhost", true),
            ("http://localhost:3000", true),
            ("https://localhost:3000", false),
            ("http://localhost.evil.net:80", false),
            ("http://[::1]:8080", true),
            ("http://[0:0:0:0:0:0:0:1]:8080", true),
            ("http://[::1]", false),
            ("null", false),
            ("", false),
            ("://", false),
            ("https://", false),
            ("https://app.example.com:99999", false),
        ] {
            assert_eq!(list.admit(origin, Some("gateway")).is_ok(), allowed, "{origin}");
        }
        assert!(origins(&["null"], false).admit("null", None).is_ok());
        for origin in ["https://evil.net", "null", "what is this"] {
            assert!(origins(&["*"], false).admit(origin, None).is_ok(), "{origin}");
        }
    }

    #[test]
    fn the_same_host_and_port_are_the_same_origin() {
        for (origin, host, same) in [
            ("https://gw.example.com", "gw.example.com", true),
            ("https://gw.example.com", "GW.example.com:443", true),
            ("http://gw.example.com", "gw.example.com:80", true),
            ("http://gw.example.com:7080", "gw.example.com:7080", true),
            ("http://gw.example.com:3000", "gw.example.com:7080", false),
            ("https://gw.example.com", "gw.example.com:7080", false),
            ("https://evil.net", "gw.example.com", false),
            ("http://[::1]:7080", "[::1]:7080", true),
            ("null", "null", false),
        ] {
            assert_eq!(
                origins(&[], true).admit(origin, Some(host)).is_ok(),
                same,
                "{origin} {host}"
            );
        }
        assert!(origins(&[], true).admit("https://gw.example.com", None).is_err());
    }

    #[test]
    fn a_name_that_anybody_can_point_here_is_not_believed() {
        let doubting = origins(&[], false);
        for (host, believed) in [
            ("127.0.0.1:7080", true),
            ("192.0.2.7:7080", true),
            ("[::1]:7080", true),
            ("localhost:7080", true),
            ("app.localhost:7080", true),
            ("rebound.evil.net:7080", false),
            ("127.0.0.1.evil.net:7080", false),
        ] {
            let refused = doubting.admit(&format!("http://{host}"), Some(host)).err();
            assert_eq!(refused.is_none(), believed, "{host}");
            assert!(refused.is_none_or(|refusal| refusal.reason == Reason::OriginDenied));
        }
    }

    #[test]
    fn patterns_are_shown_as_they_are_read() {
        for text in [
            "*",
            "null",
            "https://app.example.com",
            "http://localhost:*",
            "http://[::1]:8080",
        ] {
            assert_eq!(Pattern::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "app.example.com",
            "https://",
            "https://*",
            "https://a/",
            "https://a:b",
            "https://a:1:*",
            "1://a",
            "https://[::g]",
        ] {
            assert_eq!(Pattern::parse(text), None, "{text}");
        }
    }
}
