//! An endpoint that says back what it is told, for the Autobahn testsuite: the WebSocket listener as it is, with nothing behind it.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router as HttpRouter;
use axum::routing::any;
use bytes::{BufMut, BytesMut};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::limits::Limits;
use crate::router::Parts;
use crate::transport::tcp::Stream;

/// Says back what it is told, to the end.
struct Echo {
    link: Arc<Link>,
    inlet: WsInlet,
    is_reading: bool,
}

impl Echo {
    fn begin(router: &Router, upgraded: Upgraded, arrived: Arrived<'_>) -> Option<Self> {
        let Linked { link, inlet, .. } = connect(router, upgraded, arrived)?;
        Some(Self {
            link,
            inlet,
            is_reading: true,
        })
    }

    fn read(&mut self, cx: &mut Context<'_>) {
        while self.is_reading && self.link.may_read(1_024, 1 << 20) {
            let Poll::Ready(incoming) = self.inlet.poll_next(cx) else {
                return;
            };
            match incoming {
                Incoming::Message(Message::Text(text)) => {
                    self.say(0x81, text.as_bytes());
                    continue;
                }
                Incoming::Message(Message::Binary(bytes)) => {
                    self.say(0x82, &bytes);
                    continue;
                }
                Incoming::Nothing => continue,
                Incoming::HalfClosed => self.link.end(None),
                Incoming::Closed(farewell) => self.link.end_with(farewell),
                Incoming::Broken(refusal) => self.link.end(Some(refusal)),
            }
            self.is_reading = false;
        }
    }

    fn say(&mut self, first: u8, message: &[u8]) {
        let mut frame = BytesMut::with_capacity(message.len() + 10);
        frame.put_u8(first);
        match message.len() {
            short @ 0..=125 => frame.put_u8(short as u8),
            middle @ 126..=0xffff => {
                frame.put_u8(126);
                frame.put_u16(middle as u16);
            }
            long => {
                frame.put_u8(127);
                frame.put_u64(long as u64);
            }
        }
        frame.put_slice(message);
        self.link.push_ready(frame.freeze());
        self.link.kick();
    }
}

impl Future for Echo {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.link.poll_write(cx);
        this.read(cx);
        if !this.link.has_ended() {
            return Poll::Pending;
        }
        this.inlet.poll_linger(cx)
    }
}

/// Cases with messages of 16 MiB, in fragments of 64 bytes.
fn generous() -> Limits {
    Limits {
        frame_bytes: 32 << 20,
        outbox_bytes: 64 << 20,
        fragments: 1 << 20,
        ws_control_per_second: 10_000,
        connects_per_second: 10_000,
        ..Limits::default()
    }
}

fn router(limits: Limits) -> Router {
    let retention = crate::config::Config::default().retention;
    Router::start(Parts {
        log: Arc::new(crate::log::Memory::new(retention)),
        keep: retention.keep(),
        types: Arc::default(),
        routes: Default::default(),
        idle: limits.idle,
        unload: Duration::from_secs(60),
        fold: false,
        auth: crate::auth::Authenticator::nobody(),
        limits,
    })
}

async fn listen(listener: TcpListener) {
    let router = router(generous());
    let echoing = router.clone();
    let endpoint = any(async move |request: Request<Body>| upgrade_to(&echoing, request, Echo::begin));
    let service = HttpRouter::new().fallback(endpoint);
    while let Ok((stream, peer)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let admitted = router
            .admission()
            .admit(peer.ip(), crate::router::Trust::Proxy)
            .unwrap();
        let (stream, _) = Tcp::new(Stream::Plain(stream), &router, admitted);
        let service = hyper_util::service::TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await
                .ok();
        });
    }
}

/// Has the testsuite's client try all its cases at the address; what it reports of each.
fn fuzz(address: SocketAddr, folder: &std::path::Path) -> Value {
    let wstest = std::env::var("WSTEST").expect("WSTEST must name the testsuite's wstest");
    let spec = json!({
        "outdir": folder.join("reports"),
        "servers": [{"agent": "twinspan", "url": format!("ws://{address}")}],
        "cases": ["*"],
        "exclude-cases": [],
        "exclude-agent-cases": {},
    });
    let path = folder.join("spec.json");
    std::fs::write(&path, spec.to_string()).unwrap();
    let status = Command::new(wstest)
        .args(["-m", "fuzzingclient", "-s"])
        .arg(&path)
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let index = std::fs::read(folder.join("reports/index.json")).unwrap();
    serde_json::from_slice(&index).unwrap()
}

/// `tests/run autobahn` installs the testsuite and runs this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the Autobahn testsuite: tests/run autobahn"]
async fn no_case_of_the_autobahn_testsuite_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(listen(listener));
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tests/autobahn");
    std::fs::create_dir_all(&folder).unwrap();
    let report = tokio::task::spawn_blocking(move || fuzz(address, &folder))
        .await
        .unwrap();
    let cases = report["twinspan"].as_object().unwrap();
    // Of compression, which is not offered, the testsuite says UNIMPLEMENTED.
    let is_fine = |id: &str, verdict: &Value| match verdict.as_str() {
        Some("OK" | "NON-STRICT" | "INFORMATIONAL") => true,
        Some("UNIMPLEMENTED") => id.starts_with("12.") || id.starts_with("13."),
        _ => false,
    };
    let failed: Vec<_> = cases
        .iter()
        .filter(|(id, case)| !is_fine(id, &case["behavior"]) || !is_fine(id, &case["behaviorClose"]))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(cases.len() >= 517, "only {} cases were tried", cases.len());
}
