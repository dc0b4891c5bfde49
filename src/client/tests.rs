//! The client against a gateway in the same process.

use std::net::{SocketAddr, TcpListener};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::config::Config;
use crate::error::Reason;
use crate::frame::{Body, Control, Frame, pb};
use crate::log::Durability;
use crate::server::Server;

struct Gateway {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Gateway {
    async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    async fn start_at(listen: SocketAddr) -> Self {
        let mut config = Config {
            listen,
            ..Config::default()
        };
        config.durability = Durability::Memory;
        config.drain_grace = Duration::from_millis(1);
        let server = Server::bind(config).await.unwrap();
        let (address, (stop, stopped)) = (server.local_addr(), oneshot::channel());
        let running = tokio::spawn(async {
            let stopped = async { stopped.await.unwrap() };
            server.run(stopped).await.unwrap();
        });
        Self { address, stop, running }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.running.await.unwrap();
    }

    async fn client(&self) -> Client {
        Client::connect(&self.address.to_string()).await.unwrap()
    }
}

fn text(id: &str, text: &str) -> Frame {
    Frame {
        id: id.into(),
        session_id: "s".into(),
        body: Body::Text(text.into()),
        ..Frame::default()
    }
}

fn said(frame: &Frame) -> &str {
    match &frame.body {
        Body::Text(text) => text,
        other => panic!("not a text: {other:?}"),
    }
}

async fn publish(client: &Client, said: &str) -> u64 {
    let request = pb::PublishRequest {
        frame: Some(text("", said)),
        ..pb::PublishRequest::default()
    };
    client.sessions().publish(request).await.unwrap().into_inner().seq
}

/// The next frame that is no control frame.
async fn next_said(connection: &mut Connection) -> Frame {
    loop {
        let frame = connection.next().await.unwrap().unwrap();
        if !matches!(frame.body, Body::Control(_)) {
            return frame;
        }
    }
}

async fn followed(follow: &mut Follow) -> Frame {
    match follow.next().await.unwrap() {
        Followed::Frame(frame) => *frame,
        Followed::Lost { error, .. } => panic!("lost: {error}"),
    }
}

#[test]
fn addresses() {
    for (given, url) in [
        ("127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://gateway:7080", "http://gateway:7080"),
    ] {
        assert_eq!(endpoint(given, &Tls::default()).unwrap().1, url);
    }
    for given in ["gopher://gateway", "ws://127.0.0.1:7080/v1/ws", "", "http://", "a b"] {
        assert_eq!(
            endpoint(given, &Tls::default()).unwrap_err().origin,
            Origin::Usage,
            "{given}"
        );
    }
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_told_by_name() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Client::connect(&unused.to_string()).await.unwrap_err();
    assert_eq!((error.origin, error.retryable), (Origin::Transport, true));
    assert!(
        error
            .message
            .starts_with(&format!("cannot reach the gateway at http://{unused}: ")),
        "{error}"
    );
    let lazy = Client::connect_lazy(&unused.to_string()).unwrap();
    assert_eq!(lazy.attach().await.unwrap_err().origin, Origin::Transport);
}

#[tokio::test]
async fn members_hear_each_other() {
    let gateway = Gateway::start().await;
    let mut alice = gateway.client().await.attach().await.unwrap();
    let mut bob = gateway.client().await.attach().await.unwrap();
    let member = |name: &str| pb::Join {
        member_id: name.to_owned(),
        ..pb::Join::default()
    };
    assert_eq!(alice.join("s", member("alice")).await.unwrap().member_id, "alice");
    bob.join("s", member("bob")).await.unwrap();
    alice.send(text("1", "hello")).await.unwrap();
    let heard = next_said(&mut bob).await;
    assert_eq!((said(&heard), heard.seq), ("hello", 1));
    assert_eq!(heard.from.unwrap().member_id, "alice");
}

#[tokio::test]
async fn what_comes_before_an_answer_is_kept() {
    let gateway = Gateway::start().await;
    let client = gateway.client().await;
    let mut connection = client.attach().await.unwrap();
    connection.join("s", pb::Join::default()).await.unwrap();
    for said in ["a", "b"] {
        publish(&client, said).await;
    }
    connection.hello(pb::Hello::default()).await.unwrap();
    connection.leave("s").await.unwrap();
    assert_eq!(said(&next_said(&mut connection).await), "a");
    assert_eq!(said(&next_said(&mut connection).await), "b");
    connection.close().await.unwrap();
}

#[tokio::test]
async fn refusals_are_typed_and_the_connection_lives_on() {
    let gateway = Gateway::start().await;
    let client = gateway.client().await;
    let mut connection = client.attach().await.unwrap();
    let forbidden = pb::Join {
        role: "gateway".to_owned(),
        ..pb::Join::default()
    };
    let refused = connection.join("s", forbidden).await.unwrap_err();
    assert_eq!(
        (refused.origin, refused.known_reason()),
        (Origin::Gateway, Some(Reason::InvalidField))
    );
    connection.join("s", pb::Join::default()).await.unwrap();
    let missing = pb::GetRequest {
        session_id: "missing".to_owned(),
    };
    let refused = Error::from(client.sessions().get(missing).await.unwrap_err());
    assert_eq!(
        (refused.origin, refused.known_reason()),
        (Origin::Gateway, Some(Reason::SessionNotFound))
    );
}

#[tokio::test]
async fn a_worker_answers() {
    let gateway = Gateway::start().await;
    let client = gateway.client().await;
    let mut worker = client.attach().await.unwrap();
    worker
        .serve(pb::Serve {
            role: "brain".to_owned(),
            ..pb::Serve::default()
        })
        .await
        .unwrap();
    let mut asker = client.attach().await.unwrap();
    asker.join("s", pb::Join::default()).await.unwrap();
    let to = pb::Address {
        role: "brain".to_owned(),
        ..pb::Address::default()
    };
    asker
        .send(Frame {
            to: Some(to.into()),
            ..text("q", "why?")
        })
        .await
        .unwrap();
    let request = next_said(&mut worker).await;
    assert_eq!((said(&request), request.attempt), ("why?", 1));
    let reply = Frame {
        reply_to: request.id.clone(),
        last: true,
        ..text("", "because")
    };
    worker.sender().send(reply).await.unwrap();
    let answer = loop {
        let frame = next_said(&mut asker).await;
        if frame.reply_to == "q" {
            break frame;
        }
    };
    assert_eq!((said(&answer), answer.last), ("because", true));
}

#[tokio::test]
async fn a_request_can_be_cancelled() {
    let gateway = Gateway::start().await;
    let mut asker = gateway.client().await.attach().await.unwrap();
    asker.join("s", pb::Join::default()).await.unwrap();
    let to = pb::Address {
        role: "nobody".to_owned(),
        ..pb::Address::default()
    };
    asker
        .send(Frame {
            to: Some(to.into()),
            ..text("q", "why?")
        })
        .await
        .unwrap();
    let cancel = || pb::Cancel {
        request_id: "q".to_owned(),
        ..pb::Cancel::default()
    };
    assert_eq!(asker.cancel("s", cancel()).await.unwrap(), pb::CancelOutcome::Accepted);
    assert_eq!(
        asker.cancel("s", cancel()).await.unwrap(),
        pb::CancelOutcome::AlreadyEnded
    );
}

#[tokio::test]
async fn following_begins_where_it_is_told_to() {
    let gateway = Gateway::start().await;
    let client = gateway.client().await;
    for said in ["a", "b", "c"] {
        publish(&client, said).await;
    }
    for (start, first) in [(Start::Tail(1), "c"), (Start::After(1), "b"), (Start::After(0), "a")] {
        let mut follow = client.follow("s", start);
        assert!(matches!(followed(&mut follow).await.body, Body::Control(_)));
        assert_eq!(said(&followed(&mut follow).await), first);
    }
    let ahead = client.follow("s", Start::After(9)).next().await.unwrap_err();
    assert_eq!(ahead.known_reason(), Some(Reason::AfterSeqAhead));
}

#[tokio::test]
async fn following_goes_on_over_a_restart_and_says_what_is_lost() {
    let gateway = Gateway::start().await;
    let (address, client) = (gateway.address, gateway.client().await);
    publish(&client, "before").await;
    let mut follow = client.follow("s", Start::After(0));
    followed(&mut follow).await;
    assert_eq!(said(&followed(&mut follow).await), "before");
    gateway.stop().await;

    let gateway = Gateway::start_at(address).await;
    publish(&gateway.client().await, "after").await;
    let (mut lost, mut gaps) = (0, Vec::new());
    loop {
        match follow.next().await.unwrap() {
            Followed::Lost { .. } => lost += 1,
            Followed::Frame(frame) => match frame.body {
                Body::Control(control) => gaps.extend(gap(*control)),
                _ => {
                    assert_eq!(said(&frame), "after");
                    break;
                }
            },
        }
    }
    assert!(lost > 0);
    assert_eq!(gaps, [pb::GapReason::EpochChanged]);
}

fn gap(control: Control) -> Option<pb::GapReason> {
    match control {
        Control::Gap(gap) => Some(gap.reason()),
        _ => None,
    }
}
