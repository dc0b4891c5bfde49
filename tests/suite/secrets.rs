//! No credential gets into the gateway's log, whichever way it comes, however talkative the log is.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use twinspan::auth::Grant;
use twinspan::auth::mint::{self, KeyWishes};
use twinspan::frame::pb::sessions_client::SessionsClient;
use twinspan::frame::{Body, Control, Frame, pb};

use crate::harness::*;
use crate::keys::{AUDIENCE, ISSUER, Keys, everything, now};

/// A gateway in a process of its own, whose log is read.
struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    address: SocketAddr,
}

impl Process {
    fn start(keys: &Keys, format: &str) -> Self {
        let config = format!(
            "listen = \"127.0.0.1:0\"\n\
             [log]\nformat = \"{format}\"\nfilter = \"trace\"\n\
             [auth]\nquery = true\napi_keys = {:?}\nrevocations = {:?}\n\
             [[auth.issuers]]\nissuer = \"{ISSUER}\"\naudience = [\"{AUDIENCE}\"]\nalgorithms = [\"HS256\"]\nsecret_file = {:?}\n",
            keys.folder.path("keys.toml"),
            keys.folder.path("revocations"),
            keys.folder.path("secret"),
        );
        let path = keys.folder.write("twinspan.toml", config);
        let mut child = Command::new(env!("CARGO_BIN_EXE_twinspan"))
            .args(["serve", "--config"])
            .arg(path)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let log = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut seen = Vec::new();
        let address = loop {
            let line = lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("no address in {seen:#?}"));
            let found = line.split(|c: char| !(c.is_ascii_digit() || ".:".contains(c)));
            let found = found.filter_map(|part| part.parse::<SocketAddr>().ok()).next();
            match found.filter(|address| line.contains("listening") && address.port() > 0) {
                Some(address) => break address,
                None => seen.push(line),
            }
        };
        Self { child, lines, address }
    }

    /// All that it has logged until it was stopped.
    fn stopped(mut self) -> String {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        self.lines.iter().collect::<Vec<_>>().join("\n")
    }
}

async fn say_everything(address: SocketAddr, secrets: &[String]) {
    for secret in secrets {
        for face in [Face::Json, Face::Binary] {
            let mut peer = Peer::bearer(address, face, Some(secret)).await;
            peer.control("", Control::Ping(pb::Ping::default())).await;
            peer.receive().await.ok();
        }
        drop(Peer::grpc(address, Some(secret)).await);
        let query = format!("?session_id=s&access_token={secret}");
        let mut peer = Peer::websocket(address, &query, None).await;
        peer.receive().await.ok();
        for face in [Face::Grpc, Face::Json] {
            let mut peer = Peer::at(address, face).await;
            let hello = pb::Hello {
                token: secret.clone(),
                ..pb::Hello::default()
            };
            peer.send(Frame {
                id: "h".into(),
                body: Body::Control(Box::new(Control::Hello(hello))),
                ..Frame::default()
            })
            .await;
            peer.receive().await.ok();
        }
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let mut sessions = SessionsClient::new(channel.connect().await.unwrap());
        let get = pb::GetRequest {
            session_id: "s".to_owned(),
        };
        sessions.get(authorized(get, Some(secret))).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_never_logged() {
    let keys = Keys::new();
    let wishes = KeyWishes {
        id: "k1".to_owned(),
        subject: "worker".to_owned(),
        ttl: None,
        grants: serde_json::from_value::<Vec<Grant>>(everything("*")).unwrap(),
    };
    let (api_key, entry) = mint::api_key(wishes, now()).unwrap();
    keys.folder.write("keys.toml", entry);
    let good = keys.all("ann");
    let secrets = [
        good.clone(),
        api_key.clone(),
        keys.sign("ann", json!({"exp": 1})),
        format!("{}x", &api_key[..api_key.len() - 1]),
        format!("{}.forged", good.rsplit_once('.').unwrap().0),
        "not-a-token-but-a-password".to_owned(),
    ];
    for format in ["text", "json"] {
        let process = Process::start(&keys, format);
        say_everything(process.address, &secrets).await;
        let log = process.stopped();
        assert!(
            log.contains("hello") && log.contains("ann"),
            "it was a talkative log: {log}"
        );
        for secret in &secrets {
            // Not even the part of it that proves something.
            let proof = secret.rsplit(['.', '_']).next().unwrap();
            assert!(!log.contains(proof), "{proof} is in the log");
        }
        let hash = std::fs::read_to_string(keys.folder.path("secret")).unwrap();
        assert!(!log.contains(hash.trim()));
    }
}
