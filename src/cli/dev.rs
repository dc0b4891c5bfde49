//! `twinspan dev`: the gateway with a worker that has something to say, for the first five minutes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::signals::{self, Signals};
use super::{Failure, demo, output};
use crate::auth::{Grant, Grants};
use crate::client::Credential;
use crate::config::Config;
use crate::edge::Pattern;
use crate::log::Durability;
use crate::router::Router;
use crate::server::Server;
use crate::telemetry;

/// The role of the demo worker.
const ROLE: &str = "demo";
/// The type of frame that it answers.
const TYPE: &str = "query";

/// Pages that are served from this machine, on whatever port. A file has no origin, and nothing tells one from a stranger's frame.
const PAGES: [&str; 3] = ["http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*"];

/// As `serve`, but that frames of the example's type have somebody to go to, and pages of this machine may ask.
pub fn defaults() -> Config {
    let mut config = Config {
        // It is for trying things out, and leaves nothing behind, unless it is asked to.
        durability: Durability::Memory,
        ..Config::default()
    };
    config.routes.insert(TYPE.to_owned(), ROLE.to_owned());
    config.origins = PAGES.into_iter().filter_map(Pattern::parse).collect();
    config
}

pub async fn run(mut config: Config) -> Result<(), Failure> {
    telemetry::init(&config)?;
    if config.tls.certificate.is_some() {
        // The worker and the lines to paste come from this machine, and need no certificate.
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.plaintext_listen.get_or_insert(anywhere);
    }
    let signals = Signals::install()?;
    let routed = config.routes.get(TYPE).is_some_and(|role| role == ROLE);
    let server = Server::bind(config).await?;
    let address = reachable(server.plaintext_addr().unwrap_or(server.local_addr()));
    output::text(&banner(address, routed))?;
    let url = format!("http://{address}");
    let worker = demo::work(&url, ROLE, credential(server.router())?);
    tokio::select! {
        served = server.run(signals.asked_once()) => {
            served?;
            signals::stopped();
        }
        error = worker => return Err(error.into()),
    }
    Ok(())
}

/// What the worker shows, where peers have to say who they are.
fn credential(router: &Router) -> Result<Credential, Failure> {
    let auth = router.auth();
    if !auth.is_required() {
        return Ok(Credential::default());
    }
    let grant = Grant {
        sessions: vec!["*".to_owned()],
        serve: vec![ROLE.to_owned()],
        ..Grant::default()
    };
    let subject = "twinspan-demo";
    let grants = Grants::new(vec![grant], subject).map_err(|wrong| Failure::new(Failure::USAGE, wrong))?;
    Ok(Credential::new(&auth.insider(subject, grants))?)
}

/// Where a program on this machine finds the gateway.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, v6.port())),
        _ => address,
    }
}

fn banner(address: SocketAddr, routed: bool) -> String {
    let version = env!("CARGO_PKG_VERSION");
    // As it was called, which is how it can be called again.
    let program = std::env::args().next().unwrap_or_else(|| "twinspan".to_owned());
    let to = if routed {
        String::new()
    } else {
        format!(r#","to":{{"role":"{ROLE}"}}"#)
    };
    let payload = r#""payload":{"action":"search","query":"HEA synthesis"}"#;
    let header = format!(r#""type":"{TYPE}","sessionId":"sess-456"{to}"#);
    let frame = format!(r#"{{"id":"msg-123",{header},{payload}}}"#);
    // Without an id, since calls are all from one sender: the second one by an id would be taken for the first.
    let call = format!(r#"{{"frame":{{{header},{payload}}}}}"#);
    let url = format!("ws://{address}/v1/ws?session_id=sess-456");
    format!(
        r#"
  Twinspan {version}

    WebSocket   ws://{address}/v1/ws
    gRPC        {address}   (twinspan.v1, with reflection)
    worker      role "{ROLE}": says word by word what it was told

  Ask it something:

    {program} call {ROLE} --text 'to be or not to be' --url http://{address}

  In a browser's console:

    ws = new WebSocket("{url}"); ws.onmessage = e => console.log(e.data); ws.onopen = () => ws.send('{frame}')

  In Python (pip install websockets):

    python3 -c 'from websockets.sync.client import connect; ws = connect("{url}"); ws.send("""{frame}"""); [print(m) for m in ws]'

  With grpcurl; and the answer, by buf:

    grpcurl -plaintext -d '{call}' {address} twinspan.v1.Sessions/Publish
    buf curl --protocol grpc --http2-prior-knowledge -d '{{"sessionId":"sess-456","tail":20}}' http://{address}/twinspan.v1.Sessions/Watch

  Watch from another terminal:

    {program} tail sess-456 --tail 20 --url http://{address}

  Ctrl-C stops it, after what is open has ended; twice: at once.

"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_names_addresses_that_can_be_reached() {
        for (bound, shown) in [
            ("0.0.0.0:7", "127.0.0.1:7"),
            ("[::]:7", "[::1]:7"),
            ("192.0.2.1:7", "192.0.2.1:7"),
        ] {
            assert_eq!(reachable(bound.parse().unwrap()).to_string(), shown);
        }
    }

    #[test]
    fn pages_of_this_machine_may_ask() {
        assert_eq!(defaults().origins.len(), PAGES.len());
    }

    #[test]
    fn the_banner_says_who_is_asked_where_no_route_does() {
        let address = SocketAddr::from(([127, 0, 0, 1], 7080));
        assert!(!banner(address, true).contains(r#""to""#));
        assert!(banner(address, false).contains(r#""to":{"role":"demo"}"#));
    }
}
