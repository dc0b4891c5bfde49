//! No credential gets into the gateway's log, whichever way it comes, however talkative the log is.

use std::net::SocketAddr;

use serde_json::json;
use twinspan::auth::Grant;
use twinspan::auth::mint::{self, KeyWishes};
use twinspan::frame::pb::sessions_client::SessionsClient;
use twinspan::frame::{Body, Control, Frame, pb};

use crate::harness::*;
use crate::keys::{AUDIENCE, ISSUER, Keys, everything, now};
use crate::process::{Process, bare};

/// A gateway in a process of its own, which authenticates its peers and is as talkative as can be.
fn start(keys: &Keys, format: &str) -> Process {
    let config = format!(
        "listen = \"127.0.0.1:0\"\n\
         durability = \"memory\"\n\
         [log]\nformat = \"{format}\"\nfilter = \"trace\"\n\
         [auth]\nquery = true\napi_keys = {:?}\nrevocations = {:?}\n\
         [[auth.issuers]]\nissuer = \"{ISSUER}\"\naudience = [\"{AUDIENCE}\"]\nalgorithms = [\"HS256\"]\nsecret_file = {:?}\n",
        keys.folder.path("keys.toml"),
        keys.folder.path("revocations"),
        keys.folder.path("secret"),
    );
    let path = keys.folder.write("twinspan.toml", config);
    let mut command = bare();
    command.args(["serve", "--config"]).arg(path);
    Process::start(command)
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
        let process = start(&keys, format);
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
