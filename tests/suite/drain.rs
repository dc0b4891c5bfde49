//! Stopping.

use twinspan::error::Reason;
use twinspan::frame::{Control, Frame};
use twinspan::log::Durability;

use crate::harness::*;
use crate::scenarios;

scenarios! {
    what_is_open_finishes
}

async fn what_is_open_finishes(one: Face, other: Face) {
    let mut gateway = Gateway::with(|config| config.drain_grace = PATIENCE).await;
    let mut worker = gateway.worker(other, "brain", 1).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker
        .until("the request", |frame| (frame.attempt > 0).then(|| frame.clone()))
        .await;
    gateway.stop();
    for peer in [&mut ann, &mut worker] {
        let away = peer
            .until("go away", |frame| match control(frame) {
                Some(Control::GoAway(away)) => Some(away.clone()),
                _ => None,
            })
            .await;
        assert!(is(away.error.as_ref().unwrap(), Reason::Draining) && away.grace.is_some());
    }
    ann.send(request("s", "late", "brain")).await;
    assert!(is(&ann.refusal().await, Reason::Draining));
    worker.send(last(&asked, "just in time")).await;
    assert_eq!(ann.answer("q").await.0, "just in time");
    for peer in [&mut ann, &mut worker] {
        let ended = peer.ended().await;
        assert_eq!(ended.reason().as_deref(), Some("SHUTDOWN"), "{ended:?}");
        if let Ended::Close(code, _) = ended {
            assert_eq!(code, 1012);
        }
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn what_does_not_finish_is_ended() {
    // Where sessions are lasting it goes on in the next process.
    let mut gateway = Gateway::with(|config| config.durability = Durability::Memory).await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker
        .until("the request", |frame| (frame.attempt > 0).then(|| frame.clone()))
        .await;
    gateway.stop();
    let (_, end): (_, Frame) = ann.answer(&asked.id).await;
    assert!(is(error(&end), Reason::Shutdown));
    assert_eq!(ann.ended().await.reason().as_deref(), Some("SHUTDOWN"));
    gateway.stopped().await;
}
