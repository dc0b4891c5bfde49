//! Proxies in front of the gateway: which are believed, and whom they say they speak for.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};
use ipnet::IpNet;

/// Who stands in front of the gateway, and how they say for whom.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Whose word is believed.
    pub trusted: Vec<IpNet>,
    /// Whether connections from there begin with a PROXY header.
    pub protocol: bool,
    /// The header of requests that names the client.
    pub headers: Forwarding,
}

/// The header of a request that names whom a proxy speaks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// None is believed.
    #[default]
    Off,
    /// `X-Forwarded-For`
    XForwardedFor,
    /// `Forwarded` (RFC 7239)
    Forwarded,
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Proxies in a row that are looked through.
const HOPS: usize = 16;

impl Proxies {
    /// Whether the address is a proxy's that is believed.
    pub fn trust(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// For whom the proxy speaks that sent these headers: the last one on the way here that is no trusted proxy, or the first proxy,
    /// where all are trusted. Nobody, where nothing that can be read is said of the client.
    pub fn client(&self, headers: &HeaderMap) -> Option<SocketAddr> {
        let name = match self.headers {
            Forwarding::Off => return None,
            Forwarding::XForwardedFor => X_FORWARDED_FOR,
            Forwarding::Forwarded => FORWARDED,
        };
        let mut nearest = None;
        let lines = headers.get_all(name).into_iter().rev();
        // What cannot be read ends the way back: whoever is behind it is nobody's honest word.
        let hops = lines.flat_map(|line| self.hops(line.as_bytes()));
        for hop in hops.take(HOPS) {
            let Some(address) = hop else { break };
            nearest = Some(address);
            if !self.trust(address.ip()) {
                break;
            }
        }
        nearest
    }

    /// Whether requests name their clients.
    pub fn reads_headers(&self) -> bool {
        self.headers != Forwarding::Off
    }

    /// The addresses of one line, from the right. Of what does not follow the header's rules, nothing is believed: who wrote which
    /// part of it cannot be told.
    fn hops(&self, line: &[u8]) -> Vec<Option<SocketAddr>> {
        let read = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| address(text.trim()));
        if self.headers == Forwarding::XForwardedFor {
            return line.rsplit(|byte| *byte == b',').map(read).collect();
        }
        let text = std::str::from_utf8(line).ok().filter(|line| line.is_ascii());
        let hops = text.and_then(forwarded);
        let mut hops = hops.unwrap_or_else(|| vec![None]);
        hops.reverse();
        hops
    }
}

/// The `for` of each element of a `Forwarded` header (RFC 7239 §4), in order; nothing if it is not one.
fn forwarded(line: &str) -> Option<Vec<Option<SocketAddr>>> {
    let (mut found, mut rest, mut node) = (Vec::new(), line, None);
    loop {
        let (name, value, after) = pair(rest)?;
        if name.eq_ignore_ascii_case("for") {
            node = address(value);
        }
        match after.as_bytes().first() {
            Some(b';') => rest = &after[1..],
            Some(b',') => {
                found.push(node.take());
                rest = &after[1..];
            }
            Some(_) => return None,
            None => {
                found.push(node);
                return Some(found);
            }
        }
    }
}

const BLANK: [char; 2] = [' ', '\t'];

/// A name, its value without quotes, and what follows. No address needs a backslash: what has one stays as it is, and cannot be read.
fn pair(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_once('=')?;
    let name = name.trim_matches(BLANK);
    let is_token = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let (value, rest) = match rest.strip_prefix('"') {
        None => rest.split_at(rest.find([',', ';', '"', ' ', '\t']).unwrap_or(rest.len())),
        Some(quoted) => {
            let mut is_escaped = false;
            let end = quoted.find(|c| {
                let is_end = c == '"' && !is_escaped;
                is_escaped = c == '\\' && !is_escaped;
                is_end
            })?;
            (&quoted[..end], &quoted[end + 1..])
        }
    };
    is_token.then(|| (name, value, rest.trim_start_matches(BLANK)))
}

/// An address with a port or without, in brackets or without.
fn address(text: &str) -> Option<SocketAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    let address = match bare.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 0),
        Err(_) => text.parse().ok()?,
    };
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_writes_does_not_swallow_what_the_proxy_adds() {
        for line in [
            "for=6.6.6.6;x=\", for=192.0.2.9",
            "for=6.6.6.6;x=\", for=\"192.0.2.9:80\"",
            "for=\"x, for=192.0.2.9",
            "for=6.6.6.6 é, for=192.0.2.9",
            "for=\"6.6.6.6\"é, for=192.0.2.9",
            "for=\"\\\", for=192.0.2.9",
        ] {
            // Nobody is named, rather than whom the client would have named.
            assert_eq!(client(Forwarding::Forwarded, &[line]), None, "{line}");
        }
        for host in ["a,for=6.6.6.6;b=c", "a\\\",for=6.6.6.6,x=\\\""] {
            let line = format!("for=192.0.2.9;host=\"{host}\"");
            assert_eq!(
                client(Forwarding::Forwarded, &[&line]).unwrap(),
                "192.0.2.9:0",
                "{line}"
            );
        }
        let proxies = Proxies {
            headers: Forwarding::XForwardedFor,
            ..Proxies::default()
        };
        let mut headers = HeaderMap::new();
        let line = http::HeaderValue::from_bytes(b"\xff, 192.0.2.9").unwrap();
        headers.insert(X_FORWARDED_FOR, line);
        assert_eq!(proxies.client(&headers).unwrap().ip().to_string(), "192.0.2.9");
    }

    fn client(headers: Forwarding, lines: &[&str]) -> Option<String> {
        let proxies = Proxies {
            trusted: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            protocol: false,
            headers,
        };
        let name = if headers == Forwarding::Forwarded {
            FORWARDED
        } else {
            X_FORWARDED_FOR
        };
        let mut map = HeaderMap::new();
        for line in lines {
            map.append(&name, line.parse().unwrap());
        }
        proxies.client(&map).map(|client| client.to_string())
    }

    #[test]
    fn the_last_hop_that_is_not_trusted_is_the_client() {
        for (lines, expected) in [
            (&["192.0.2.1"][..], Some("192.0.2.1:0")),
            (&["192.0.2.1:4711"], Some("192.0.2.1:4711")),
            (&["192.0.2.1, 10.0.0.2, 10.0.0.3"], Some("192.0.2.1:0")),
            // A client can write what it likes to the left of what the first trusted proxy adds.
            (&["1.1.1.1, 192.0.2.1, 10.0.0.2"], Some("192.0.2.1:0")),
            (&["10.9.9.9, 192.0.2.1"], Some("192.0.2.1:0")),
            (&["1.1.1.1", "192.0.2.1", "10.0.0.2"], Some("192.0.2.1:0")),
            (&["2001:db8::1"], Some("[2001:db8::1]:0")),
            (&["[2001:db8::1]:99, fd00::2"], Some("[2001:db8::1]:99")),
            (&["::ffff:192.0.2.1, ::ffff:10.0.0.2"], Some("192.0.2.1:0")),
            (&["10.0.0.1, 10.0.0.2"], Some("10.0.0.1:0")),
            (&["192.0.2.1, unknown, 10.0.0.2"], Some("10.0.0.2:0")),
            (&["192.0.2.1, , 10.0.0.2"], Some("10.0.0.2:0")),
            (&["192.0.2.1,"], None),
            (&["unknown"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(
                client(Forwarding::XForwardedFor, lines).as_deref(),
                expected,
                "{lines:?}"
            );
        }
    }

    #[test]
    fn the_standard_header_is_read() {
        for (lines, expected) in [
            (&["for=192.0.2.1"][..], Some("192.0.2.1:0")),
            (
                &["For=\"[2001:db8:cafe::17]:4711\";proto=https;by=10.0.0.1"],
                Some("[2001:db8:cafe::17]:4711"),
            ),
            (&["for=192.0.2.1;host=\"a,b;c\", for=10.0.0.2"], Some("192.0.2.1:0")),
            (
                &["for=192.0.2.1;host=\"a\\\",for=6.6.6.6\", for=10.0.0.2"],
                Some("192.0.2.1:0"),
            ),
            (
                &["for=1.1.1.1, for=192.0.2.1", "proto=http; for=10.0.0.2"],
                Some("192.0.2.1:0"),
            ),
            (&["for=192.0.2.1, for=_hidden, for=10.0.0.2"], Some("10.0.0.2:0")),
            (&["for=unknown"], None),
            (&["proto=https"], None),
            (&["for=\"192.0.2.1"], None),
        ] {
            assert_eq!(client(Forwarding::Forwarded, lines).as_deref(), expected, "{lines:?}");
        }
        assert_eq!(client(Forwarding::Off, &["192.0.2.1"]), None);
    }

    #[test]
    fn a_way_without_end_is_cut() {
        let long = vec!["10.0.0.1"; 10_000].join(",") + ",10.0.0.2";
        assert_eq!(
            client(Forwarding::XForwardedFor, &[&long]).as_deref(),
            Some("10.0.0.1:0")
        );
    }

    #[test]
    fn only_who_is_on_the_list_is_trusted() {
        let proxies = Proxies {
            trusted: vec!["10.0.0.0/8".parse().unwrap()],
            ..Proxies::default()
        };
        assert!(proxies.trust("10.1.2.3".parse().unwrap()));
        assert!(proxies.trust("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!proxies.trust("11.1.2.3".parse().unwrap()));
        assert!(!Proxies::default().trust("127.0.0.1".parse().unwrap()));
    }
}
