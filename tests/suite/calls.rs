//! The `Sessions` service.

use std::collections::HashMap;

use tonic::Code;
use twinspan::error::Reason;
use twinspan::frame::{Body, Control, Frame, pb};

use crate::harness::*;

fn publish(frame: Frame) -> pb::PublishRequest {
    pb::PublishRequest {
        frame: Some(frame),
        ..pb::PublishRequest::default()
    }
}

#[tokio::test]
async fn a_session_from_creation_to_deletion() {
    let gateway = Gateway::start().await;
    let mut sessions = gateway.sessions().await;
    let create = pb::CreateRequest {
        session_id: "s".to_owned(),
        metadata: HashMap::from([("title".to_owned(), "one".to_owned())]),
        ..pb::CreateRequest::default()
    };
    let made = sessions.create(create.clone()).await.unwrap().into_inner();
    assert_eq!(
        (made.state(), made.head_seq, made.first_seq),
        (pb::SessionState::Open, 0, 1)
    );
    let twice = sessions.create(create).await.unwrap_err();
    assert_eq!(
        (twice.code(), reason_of(&twice).as_deref()),
        (Code::AlreadyExists, Some("SESSION_EXISTS"))
    );

    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    let update = pb::UpdateRequest {
        session_id: "s".to_owned(),
        set: HashMap::from([("a".to_owned(), "1".to_owned())]),
        unset: vec!["title".to_owned(), "not there".to_owned()],
        etag: made.etag.clone(),
        ..pb::UpdateRequest::default()
    };
    let updated = sessions.update(update.clone()).await.unwrap().into_inner();
    assert_eq!(updated.metadata, HashMap::from([("a".to_owned(), "1".to_owned())]));
    let stale = sessions.update(update).await.unwrap_err();
    assert_eq!(
        (stale.code(), reason_of(&stale).as_deref()),
        (Code::Aborted, Some("ETAG_MISMATCH"))
    );
    let changed = ann
        .until("the change", |frame| match control(frame) {
            Some(Control::SessionChanged(changed)) => changed.session.clone(),
            _ => None,
        })
        .await;
    assert_eq!(changed.etag, updated.etag);

    ann.send(request("s", "q", "brain")).await;
    ann.acked("q").await;
    let close = pb::CloseRequest {
        session_id: "s".to_owned(),
        reason: "over".to_owned(),
    };
    let closed = sessions.close(close.clone()).await.unwrap().into_inner();
    assert_eq!(
        (closed.state(), closed.open_request_count),
        (pb::SessionState::Closed, 0)
    );
    assert_eq!(sessions.close(close).await.unwrap().into_inner().etag, closed.etag);
    let (_, end) = ann.answer("q").await;
    assert!(is(error(&end), Reason::RequestCancelled) && error(&end).message == "over");
    ann.send(text("s", "x", "late")).await;
    assert!(is(&ann.refusal().await, Reason::SessionClosed));

    let delete = pb::DeleteRequest {
        session_id: "s".to_owned(),
    };
    sessions.delete(delete.clone()).await.unwrap();
    let left = ann
        .until("left", |frame| match control(frame) {
            Some(Control::Left(left)) => left.error.clone(),
            _ => None,
        })
        .await;
    assert!(is(&left, Reason::SessionDeleted));
    let gone = sessions.delete(delete).await.unwrap_err();
    assert_eq!(
        (gone.code(), reason_of(&gone).as_deref()),
        (Code::NotFound, Some("SESSION_NOT_FOUND"))
    );
    gateway.stopped().await;
}

#[tokio::test]
async fn deleting_stops_the_workers() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    ann.acked("q").await;
    gateway
        .sessions()
        .await
        .delete(pb::DeleteRequest {
            session_id: "s".to_owned(),
        })
        .await
        .unwrap();
    let stop = worker
        .until("the cancel", |frame| match control(frame) {
            Some(Control::Cancel(cancel)) => Some(cancel.clone()),
            _ => None,
        })
        .await;
    assert_eq!(
        (stop.request_id.as_str(), stop.reason.as_str()),
        ("q", "SESSION_DELETED")
    );
    ann.send(request("t", "q", "brain")).await;
    let again = worker
        .until("room for the next", |frame| (frame.attempt > 0).then(|| frame.clone()))
        .await;
    assert_eq!(again.session_id, "t");
    gateway.stopped().await;
}

#[tokio::test]
async fn listing_sessions_in_pages() {
    let gateway = Gateway::start().await;
    let mut sessions = gateway.sessions().await;
    for at in 0..25 {
        let metadata = HashMap::from([("even".to_owned(), (at % 2 == 0).to_string())]);
        sessions
            .create(pb::CreateRequest {
                session_id: format!("a{at:02}"),
                metadata,
                ..pb::CreateRequest::default()
            })
            .await
            .unwrap();
    }
    sessions
        .create(pb::CreateRequest {
            session_id: "b".to_owned(),
            ..Default::default()
        })
        .await
        .unwrap();
    let mut list = pb::ListRequest {
        page_size: 4,
        prefix: "a".to_owned(),
        metadata: HashMap::from([("even".to_owned(), "true".to_owned())]),
        ..pb::ListRequest::default()
    };
    let mut names = Vec::new();
    loop {
        let page = sessions.list(list.clone()).await.unwrap().into_inner();
        names.extend(page.sessions.into_iter().map(|session| session.session_id));
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    assert_eq!(
        names,
        (0..25).step_by(2).map(|at| format!("a{at:02}")).collect::<Vec<_>>()
    );
    for token in ["nonsense", "AAAA", &list.page_token] {
        let list = pb::ListRequest {
            page_token: token.to_owned(),
            prefix: "b".to_owned(),
            ..Default::default()
        };
        let refused = sessions.list(list).await.unwrap_err();
        assert_eq!(reason_of(&refused).as_deref(), Some("INVALID_PAGE_TOKEN"));
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn listing_sessions_by_what_is_said_of_them() {
    let gateway = Gateway::start().await;
    let mut sessions = gateway.sessions().await;
    let entry = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    let mut made = Vec::new();
    for at in 0..12 {
        let mut labels = entry("team", if at % 3 == 0 { "red" } else { "blue" });
        labels.insert("parity".to_owned(), (at % 2).to_string());
        let create = pb::CreateRequest {
            session_id: format!("{at:02}"),
            metadata: entry("half", if at < 6 { "first" } else { "second" }),
            labels,
            ..pb::CreateRequest::default()
        };
        made.push(sessions.create(create).await.unwrap().into_inner());
    }
    let change = pb::UpdateRequest {
        session_id: "03".to_owned(),
        set_labels: entry("late", "yes"),
        ..pb::UpdateRequest::default()
    };
    let changed = sessions.update(change).await.unwrap().into_inner();
    let mut found = async |list: pb::ListRequest| {
        let mut list = pb::ListRequest { page_size: 2, ..list };
        let mut names = Vec::new();
        loop {
            let page = sessions.list(list.clone()).await.unwrap().into_inner();
            names.extend(page.sessions.into_iter().map(|session| session.session_id));
            if page.next_page_token.is_empty() {
                return names;
            }
            list.page_token = page.next_page_token;
        }
    };
    let by_labels = |labels| pb::ListRequest {
        labels,
        ..pb::ListRequest::default()
    };
    assert_eq!(found(by_labels(entry("team", "red"))).await, ["00", "03", "06", "09"]);
    let mut red_and_odd = entry("team", "red");
    red_and_odd.insert("parity".to_owned(), "1".to_owned());
    assert_eq!(found(by_labels(red_and_odd.clone())).await, ["03", "09"]);
    let both = pb::ListRequest {
        metadata: entry("half", "second"),
        ..by_labels(red_and_odd)
    };
    assert_eq!(found(both).await, ["09"]);
    assert_eq!(
        found(by_labels(entry("half", "first"))).await,
        [""; 0],
        "metadata are no labels"
    );
    let since = pb::ListRequest {
        created_after: made[9].created_at,
        ..pb::ListRequest::default()
    };
    assert_eq!(found(since).await, ["09", "10", "11"]);
    let since = pb::ListRequest {
        updated_after: changed.updated_at,
        ..pb::ListRequest::default()
    };
    assert_eq!(found(since).await, ["03"]);

    let mut list = pb::ListRequest {
        page_size: 1,
        ..by_labels(entry("team", "red"))
    };
    list.page_token = sessions.list(list.clone()).await.unwrap().into_inner().next_page_token;
    list.labels = entry("team", "blue");
    let refused = sessions.list(list).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("INVALID_PAGE_TOKEN"));
    gateway.stopped().await;
}

#[tokio::test]
async fn publishing_and_reading_frames() {
    let gateway = Gateway::start().await;
    let mut sessions = gateway.sessions().await;
    for at in 1..=30 {
        let kind = if at % 3 == 0 { "third" } else { "other" };
        let frame = Frame {
            r#type: kind.into(),
            ..text("s", &at.to_string(), &at.to_string())
        };
        let published = sessions.publish(publish(frame)).await.unwrap().into_inner();
        assert_eq!((published.seq, published.duplicate), (at, false));
    }
    let again = sessions
        .publish(publish(Frame {
            r#type: "other".into(),
            ..text("s", "7", "7")
        }))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((again.seq, again.duplicate), (7, true));

    let mut read = async |list: pb::ListFramesRequest| {
        let mut list = pb::ListFramesRequest {
            session_id: "s".to_owned(),
            page_size: 4,
            ..list
        };
        let mut seqs = Vec::new();
        loop {
            let page = sessions.list_frames(list.clone()).await.unwrap().into_inner();
            assert_eq!((page.head_seq, page.first_seq), (30, 1));
            assert!(page.frames.len() <= 4);
            seqs.extend(page.frames.iter().map(|frame| frame.seq));
            if page.next_page_token.is_empty() {
                return seqs;
            }
            list.page_token = page.next_page_token;
        }
    };
    let all = pb::ListFramesRequest::default();
    assert_eq!(read(all.clone()).await, (1..=30).collect::<Vec<_>>());
    assert_eq!(
        read(pb::ListFramesRequest {
            newest_first: true,
            ..all.clone()
        })
        .await,
        (1..=30).rev().collect::<Vec<_>>()
    );
    let some = pb::ListFramesRequest {
        after_seq: 5,
        before_seq: 20,
        types: vec!["third".to_owned()],
        ..all.clone()
    };
    assert_eq!(read(some.clone()).await, [6, 9, 12, 15, 18]);
    assert_eq!(
        read(pb::ListFramesRequest {
            newest_first: true,
            ..some
        })
        .await,
        [18, 15, 12, 9, 6]
    );
    let late = prost_types::Timestamp {
        seconds: 4_000_000_000,
        nanos: 0,
    };
    assert_eq!(
        read(pb::ListFramesRequest {
            after_time: Some(late),
            ..all.clone()
        })
        .await,
        [0; 0]
    );
    assert_eq!(
        read(pb::ListFramesRequest {
            before_time: Some(late),
            ..all
        })
        .await
        .len(),
        30
    );
    gateway.stopped().await;
}

#[tokio::test]
async fn what_calls_refuse() {
    let gateway = Gateway::start().await;
    let mut sessions = gateway.sessions().await;
    let reply = Frame {
        reply_to: "q".into(),
        ..text("s", "", "")
    };
    let join = Body::Control(Box::new(Control::Join(pb::Join::default())));
    let refused = [
        (publish(reply), "UNEXPECTED_FRAME"),
        (
            publish(Frame {
                body: join,
                ..text("s", "", "")
            }),
            "UNEXPECTED_FRAME",
        ),
        (publish(text("", "", "")), "INVALID_FIELD"),
        (publish(text("not a name", "", "")), "INVALID_FIELD"),
        (pb::PublishRequest::default(), "INVALID_FIELD"),
    ];
    for (request, reason) in refused {
        let status = sessions.publish(request.clone()).await.unwrap_err();
        assert_eq!(reason_of(&status).as_deref(), Some(reason), "{request:?}: {status}");
    }
    let status = sessions
        .get(pb::GetRequest {
            session_id: "none".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(reason_of(&status).as_deref(), Some("SESSION_NOT_FOUND"));
    gateway.stopped().await;
}

#[tokio::test]
async fn watching() {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    let mut bob = gateway.member(Face::Json, "s", "bob").await;
    ann.send(text("s", "1", "before")).await;
    ann.acked("1").await;
    let watch = pb::WatchRequest {
        session_id: "s".to_owned(),
        after_seq: Some(0),
        ..pb::WatchRequest::default()
    };
    let mut frames = gateway.sessions().await.watch(watch).await.unwrap().into_inner();
    let first = frames.message().await.unwrap().unwrap();
    let Some(Control::Joined(joined)) = control(&first) else {
        panic!("not joined: {first:?}")
    };
    assert_eq!(
        (joined.member_count, joined.member_id.as_str()),
        (2, ""),
        "a watcher is not a member"
    );
    assert_eq!(frames.message().await.unwrap().unwrap().id, "1");
    let private = pb::Address {
        member_id: "bob".to_owned(),
        ..pb::Address::default()
    };
    ann.send(to(text("s", "2", "secret"), private)).await;
    ann.send(text("s", "3", "after")).await;
    assert_eq!(bob.logged().await.id, "1");
    assert_eq!(frames.message().await.unwrap().unwrap().id, "3");
    drop(frames);
    gateway.stopped().await;
}

#[tokio::test]
async fn cancelling_by_call() {
    let gateway = Gateway::start().await;
    let mut sessions = gateway.sessions().await;
    let published = sessions
        .publish(publish(request("s", "", "brain")))
        .await
        .unwrap()
        .into_inner();
    assert!(!published.id.is_empty(), "a request is given an id");
    let mut outcome = async |request_id: &str| {
        let cancel = pb::CancelRequest {
            session_id: "s".to_owned(),
            request_id: request_id.to_owned(),
            reason: "changed my mind".to_owned(),
            ..pb::CancelRequest::default()
        };
        sessions.cancel(cancel).await.unwrap().into_inner().outcome()
    };
    assert_eq!(outcome(&published.id).await, pb::CancelOutcome::Accepted);
    assert_eq!(outcome(&published.id).await, pb::CancelOutcome::AlreadyEnded);
    assert_eq!(outcome("never").await, pb::CancelOutcome::NotFound);
    gateway.stopped().await;
}
