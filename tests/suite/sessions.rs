//! Members, order, resume, dedup, visibility, presence; what is said of a session, and how it is kept.

use std::collections::HashMap;
use std::time::Duration;

use twinspan::error::Reason;
use twinspan::frame::{Body, Control, Frame, pb};

use crate::harness::*;
use crate::scenarios;

scenarios! {
    all_see_the_same_order
    resume_without_gap_or_duplicate
    a_lost_log_is_told
    what_was_trimmed_is_told
    tail_begins_with_the_newest
    the_same_id_is_logged_once
    private_and_multicast_frames
    ephemeral_frames_are_not_logged
    presence_is_told_to_those_who_ask
    the_newer_of_two_by_one_name_wins
    leaving
    a_reader_that_stops_loses_nothing
    payloads_cross_unchanged
    origin_cannot_be_forged
    what_is_said_of_a_session_is_told
    a_session_is_kept_within_the_settings
    what_grew_old_is_told
    a_session_goes_in_its_own_time
}

async fn all_see_the_same_order(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(other, "s", "bob").await;
    for at in 0..100 {
        ann.send(text("s", &format!("a{at}"), "from ann")).await;
        bob.send(text("s", &format!("b{at}"), "from bob")).await;
    }
    let mut seen = [Vec::new(), Vec::new()];
    for (peer, seen) in [&mut ann, &mut bob].into_iter().zip(&mut seen) {
        for seq in 1..=200 {
            let frame = peer.logged().await;
            assert_eq!(frame.seq, seq, "no gap, no duplicate");
            seen.push(frame.id);
        }
    }
    assert_eq!(seen[0], seen[1]);
    gateway.stopped().await;
}

async fn resume_without_gap_or_duplicate(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.peer(other).await;
    let epoch = bob.join("s", pb::Join::default()).await.epoch;
    for at in 0..10 {
        ann.send(text("s", "", &at.to_string())).await;
    }
    for seq in 1..=4 {
        assert_eq!(bob.logged().await.seq, seq);
    }
    drop(bob);
    for at in 10..300 {
        ann.send(text("s", "", &at.to_string())).await;
    }
    let mut bob = gateway.peer(one).await;
    let join = pb::Join {
        after_seq: Some(4),
        epoch,
        ..pb::Join::default()
    };
    assert!(bob.join("s", join).await.resumed);
    for seq in 5..=300 {
        let frame = bob.logged().await;
        assert_eq!(
            (frame.seq, &frame.body),
            (seq, &Body::Text((seq - 1).to_string().into()))
        );
    }
    ann.send(text("s", "", "live")).await;
    assert_eq!(bob.logged().await.seq, 301);
    gateway.stopped().await;
}

async fn a_lost_log_is_told(one: Face, _: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(text("s", "x", "only")).await;
    ann.acked("x").await;
    let mut bob = gateway.peer(one).await;
    let join = pb::Join {
        after_seq: Some(7),
        epoch: "another".to_owned(),
        ..pb::Join::default()
    };
    let joined = bob.join("s", join).await;
    assert!(!joined.resumed);
    let next = bob.next().await;
    let Some(Control::Gap(gap)) = control(&next) else {
        panic!("not a gap: {next:?}")
    };
    assert_eq!(
        (gap.from_seq, gap.to_seq, gap.reason()),
        (8, 0, pb::GapReason::EpochChanged)
    );
    assert_eq!(gap.epoch, joined.epoch);
    assert_eq!(bob.logged().await.seq, 1);

    let ahead = pb::Join {
        after_seq: Some(7),
        ..pb::Join::default()
    };
    bob.control("s", Control::Join(ahead)).await;
    assert!(is(&bob.refusal().await, Reason::AfterSeqAhead));
    gateway.stopped().await;
}

async fn what_was_trimmed_is_told(one: Face, other: Face) {
    let gateway = Gateway::with(|config| {
        config.retention.frames = 10;
        config.limits.tail_frames = 4;
    })
    .await;
    let mut ann = gateway.member(one, "s", "ann").await;
    for at in 0..30 {
        ann.send(text("s", &format!("{at}"), "x")).await;
    }
    ann.acked("29").await;
    let mut bob = gateway.peer(other).await;
    let joined = bob
        .join(
            "s",
            pb::Join {
                after_seq: Some(5),
                ..pb::Join::default()
            },
        )
        .await;
    assert_eq!((joined.resumed, joined.first_seq, joined.head_seq), (false, 21, 30));
    let next = bob.next().await;
    let Some(Control::Gap(gap)) = control(&next) else {
        panic!("not a gap: {next:?}")
    };
    assert_eq!(
        (gap.from_seq, gap.to_seq, gap.reason()),
        (6, 20, pb::GapReason::Trimmed)
    );
    for seq in 21..=30 {
        assert_eq!(bob.logged().await.seq, seq);
    }
    gateway.stopped().await;
}

async fn tail_begins_with_the_newest(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    for at in 0..20 {
        ann.send(text("s", &format!("{at}"), "x")).await;
    }
    ann.acked("19").await;
    let mut bob = gateway.peer(other).await;
    bob.join(
        "s",
        pb::Join {
            tail: 3,
            ..pb::Join::default()
        },
    )
    .await;
    for seq in 18..=20 {
        assert_eq!(bob.logged().await.seq, seq);
    }
    let both = pb::Join {
        tail: 3,
        after_seq: Some(1),
        ..pb::Join::default()
    };
    bob.control("s", Control::Join(both)).await;
    assert!(is(&bob.refusal().await, Reason::InvalidField));
    gateway.stopped().await;
}

async fn the_same_id_is_logged_once(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(text("s", "same", "first")).await;
    let first = ann.acked("same").await;
    ann.send(text("s", "same", "first")).await;
    let again = ann.acked("same").await;
    assert_eq!(
        (first.seq, first.duplicate, again.seq, again.duplicate),
        (1, false, 1, true)
    );
    drop(ann);

    // On another connection, but by the same name.
    let mut ann = gateway.member(other, "s", "ann").await;
    ann.send(text("s", "same", "first")).await;
    assert!(ann.acked("same").await.duplicate, "after a reload");
    let mut bob = gateway.member(other, "s", "bob").await;
    bob.send(text("s", "same", "another sender's")).await;
    assert_eq!(bob.acked("same").await.seq, 2);

    // By the same id, but not the same.
    ann.send(text("s", "same", "second")).await;
    let refusal = ann.refusal().await;
    assert!(is(&refusal, Reason::IdReused));
    assert_eq!(refusal.details["seq"], "1");
    // The same, but not in the same words.
    ann.send(payload("s", "value", r#"{"a":1,"b":["x"]}"#)).await;
    assert!(!ann.acked("value").await.duplicate);
    let mut ann = gateway.member(one, "s", "ann").await;
    ann.send(payload("s", "value", r#"{ "b": ["\u0078"], "a": 1.0 }"#))
        .await;
    assert!(
        ann.acked("value").await.duplicate,
        "what is sent is a value, not its spelling"
    );
    ann.send(payload("s", "value", r#"{"a":2,"b":["x"]}"#)).await;
    assert!(is(&ann.refusal().await, Reason::IdReused));
    gateway.stopped().await;
}

async fn private_and_multicast_frames(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.peer(other).await;
    bob.join(
        "s",
        pb::Join {
            member_id: "bob".to_owned(),
            role: "viewer".to_owned(),
            ..pb::Join::default()
        },
    )
    .await;
    let mut cy = gateway.member(other, "s", "cy").await;

    let member = |name: &str| pb::Address {
        member_id: name.to_owned(),
        ..pb::Address::default()
    };
    ann.send(to(text("s", "1", "for bob"), member("bob"))).await;
    let viewers = pb::Address {
        multicast: true,
        ..role("viewer")
    };
    ann.send(to(text("s", "2", "for viewers"), viewers)).await;
    ann.send(to(text("s", "3", "for cy"), member("cy"))).await;
    ann.send(text("s", "4", "for all")).await;
    let ids = async |peer: &mut Peer, count| {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(peer.logged().await.id.to_string());
        }
        ids
    };
    assert_eq!(
        ids(&mut ann, 4).await,
        ["1", "2", "3", "4"],
        "the sender sees what it sent"
    );
    assert_eq!(ids(&mut bob, 3).await, ["1", "2", "4"]);
    assert_eq!(ids(&mut cy, 2).await, ["3", "4"]);

    ann.send(to(text("s", "5", "for nobody"), member("dan"))).await;
    assert!(is(&ann.refusal().await, Reason::MemberNotFound));
    bob.hears_nothing().await;
    gateway.stopped().await;
}

async fn ephemeral_frames_are_not_logged(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(other, "s", "bob").await;
    ann.send(Frame {
        ephemeral: true,
        ..text("s", "", "typing")
    })
    .await;
    let frame = bob
        .until("the ephemeral frame", |frame| frame.ephemeral.then(|| frame.clone()))
        .await;
    assert_eq!((frame.seq, frame.from.unwrap().member_id.as_str()), (0, "ann"));
    ann.send(text("s", "", "said")).await;
    assert_eq!(bob.logged().await.seq, 1);
    let mut late = gateway.peer(other).await;
    late.join(
        "s",
        pb::Join {
            after_seq: Some(0),
            ..pb::Join::default()
        },
    )
    .await;
    assert_eq!(late.next().await.body, Body::Text("said".into()));
    gateway.stopped().await;
}

async fn presence_is_told_to_those_who_ask(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.peer(one).await;
    let join = pb::Join {
        member_id: "ann".to_owned(),
        presence: true,
        ..pb::Join::default()
    };
    assert_eq!(ann.join("s", join).await.member_count, 1);
    let mut cy = gateway.member(other, "s", "cy").await;
    let bob = gateway.member(other, "s", "bob").await;
    drop(bob);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let frame = ann.next().await;
        if let Some(Control::Presence(presence)) = control(&frame) {
            seen.extend(presence.joined.iter().map(|member| format!("+{}", member.member_id)));
            seen.extend(presence.left.iter().map(|member| format!("-{}", member.member_id)));
        }
    }
    assert_eq!(seen, ["+cy", "+bob", "-bob"]);
    cy.hears_nothing().await;
    gateway.stopped().await;
}

async fn the_newer_of_two_by_one_name_wins(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut old = gateway.member(one, "s", "ann").await;
    let mut new = gateway.member(other, "s", "ann").await;
    let frame = old.next().await;
    let Some(Control::Left(left)) = control(&frame) else {
        panic!("not told: {frame:?}")
    };
    assert!(is(left.error.as_ref().unwrap(), Reason::MemberReplaced));
    new.send(text("s", "x", "hello")).await;
    assert_eq!(new.logged().await.seq, 1);
    old.hears_nothing().await;
    drop(old);
    new.send(text("s", "y", "still here")).await;
    assert_eq!(new.logged().await.seq, 2);
    assert_eq!(gateway.router.describe("s").await.unwrap().member_count, 1);
    gateway.stopped().await;
}

async fn leaving(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(other, "s", "bob").await;
    bob.control("s", Control::Leave(pb::Leave {})).await;
    bob.until("left", |frame| {
        matches!(control(frame), Some(Control::Left(_))).then_some(())
    })
    .await;
    ann.send(text("s", "x", "alone")).await;
    ann.acked("x").await;
    bob.hears_nothing().await;
    bob.control("s", Control::Leave(pb::Leave {})).await;
    assert!(is(&bob.refusal().await, Reason::NotAMember));
    gateway.stopped().await;
}

async fn a_reader_that_stops_loses_nothing(one: Face, other: Face) {
    const FRAMES: u64 = 3_000;
    let gateway = Gateway::with(|config| {
        config.limits.tail_frames = 16;
        config.retention.bytes = 1 << 27;
    })
    .await;
    let mut ann = gateway.member(one, "s", "ann").await;
    // More than the sockets between them hold.
    let mut stopped = gateway.member(other, "s", "stopped").await;
    let body = "x".repeat(4_000);
    for at in 1..=FRAMES {
        ann.send(text("s", &at.to_string(), &body)).await;
        if at % 100 == 0 {
            ann.acked(&at.to_string()).await;
        }
    }
    for seq in 1..=FRAMES {
        assert_eq!(stopped.logged().await.seq, seq);
    }
    gateway.stopped().await;
}

async fn payloads_cross_unchanged(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(other, "s", "bob").await;
    let shapes = [
        "null",
        "true",
        "-0.5",
        "1e300",
        r#""\u0000 \" \\ / ü 😀 \ud83d\ude00""#,
        "[]",
        "{}",
        r#"[[[[[[]]]],{"a":{"b":[{}]}}]]"#,
        r#"{"":"empty","z":1,"a":[1,2.5,-3,"x",null,false],"nested":{"k":"v"}}"#,
    ];
    for shape in shapes {
        ann.send(payload("s", "", shape)).await;
        let frame = bob.logged().await;
        let Body::Payload(got) = &frame.body else {
            panic!("not a payload: {frame:?}")
        };
        let want: serde_json::Value = serde_json::from_str(shape).unwrap();
        let got: serde_json::Value = serde_json::from_str(got.as_json()).unwrap();
        assert!(same(&got, &want), "{got} is not {want}");
    }
    let bytes: Vec<u8> = (0..=255).collect();
    ann.send(Frame {
        session_id: "s".into(),
        body: Body::Data(bytes.clone().into()),
        ..Frame::default()
    })
    .await;
    assert_eq!(bob.logged().await.body, Body::Data(bytes.into()));
    gateway.stopped().await;
}

/// Equal as JSON values; numbers are doubles.
fn same(one: &serde_json::Value, other: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Number, Object};
    match (one, other) {
        (Number(one), Number(other)) => one.as_f64() == other.as_f64(),
        (Array(one), Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Object(one), Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        _ => one == other,
    }
}

async fn origin_cannot_be_forged(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let mut bob = gateway.member(other, "s", "bob").await;
    let forged = pb::Address {
        role: "gateway".to_owned(),
        member_id: "root".to_owned(),
        ..pb::Address::default()
    };
    ann.send(Frame {
        from: Some(std::sync::Arc::new(forged)),
        seq: 77,
        attempt: 3,
        index: Some(9),
        last: true,
        timestamp: Some(prost_types::Timestamp { seconds: 5, nanos: 0 }),
        ..text("s", "x", "trust me")
    })
    .await;
    let frame = bob.logged().await;
    let from = frame.from.unwrap();
    assert_eq!((from.role.as_str(), from.member_id.as_str()), ("client", "ann"));
    assert_eq!((frame.seq, frame.attempt, frame.index, frame.last), (1, 0, None, false));
    assert!(frame.timestamp.unwrap().seconds > 1_000_000_000);
    let as_gateway = pb::Join {
        role: "gateway".to_owned(),
        ..pb::Join::default()
    };
    ann.control("s", Control::Join(as_gateway)).await;
    assert!(is(&ann.refusal().await, Reason::InvalidField));
    gateway.stopped().await;
}

/// A gateway whose sweep is fast.
async fn sweeping() -> Gateway {
    Gateway::with(|config| config.limits.heartbeat = Duration::from_millis(160)).await
}

fn labels<const N: usize>(entries: [(&str, &str); N]) -> HashMap<String, String> {
    entries.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// Makes a session that is to be kept so.
async fn create(gateway: &Gateway, session: &str, retention: pb::Retention) -> pb::Session {
    let create = pb::CreateRequest {
        session_id: session.to_owned(),
        retention: Some(retention),
        ..pb::CreateRequest::default()
    };
    gateway.sessions().await.create(create).await.unwrap().into_inner()
}

async fn update(gateway: &Gateway, update: pb::UpdateRequest) -> Result<pb::Session, tonic::Status> {
    let update = pb::UpdateRequest {
        session_id: "s".to_owned(),
        ..update
    };
    let updated = gateway.sessions().await.update(update).await;
    updated.map(tonic::Response::into_inner)
}

async fn what_is_said_of_a_session_is_told(one: Face, _: Face) {
    let gateway = Gateway::start().await;
    let made = pb::CreateRequest {
        session_id: "s".to_owned(),
        metadata: labels([("title", "A long story")]),
        labels: labels([("team", "red"), ("stage", "")]),
        retention: Some(pb::Retention {
            max_frames: Some(100),
            ..pb::Retention::default()
        }),
    };
    let made = gateway.sessions().await.create(made).await.unwrap().into_inner();
    assert_eq!(made.labels, labels([("team", "red"), ("stage", "")]));
    let mut ann = gateway.member(one, "s", "ann").await;
    let change = pb::UpdateRequest {
        set: labels([("owner", "ann")]),
        set_labels: labels([("team", "blue")]),
        unset_labels: vec!["stage".to_owned(), "not there".to_owned()],
        etag: made.etag.clone(),
        ..pb::UpdateRequest::default()
    };
    let updated = update(&gateway, change.clone()).await.unwrap();
    assert_eq!(updated.labels, labels([("team", "blue")]));
    assert_eq!(updated.metadata, labels([("title", "A long story"), ("owner", "ann")]));
    assert_eq!(updated.retention, made.retention, "what is not said stays");
    assert_ne!(updated.etag, made.etag);
    let told = ann
        .until("the change", |frame| match control(frame) {
            Some(Control::SessionChanged(changed)) => changed.session.clone(),
            _ => None,
        })
        .await;
    assert_eq!((&told.labels, &told.retention), (&updated.labels, &updated.retention));

    let stale = update(&gateway, change).await.unwrap_err();
    assert_eq!(reason_of(&stale).as_deref(), Some("ETAG_MISMATCH"));
    let twice = pb::UpdateRequest {
        set_labels: labels([("team", "x")]),
        unset_labels: vec!["team".to_owned()],
        ..pb::UpdateRequest::default()
    };
    let too_many = pb::UpdateRequest {
        set: labels([("lost", "with the rest")]),
        set_labels: (0..32).map(|at| (at.to_string(), String::new())).collect(),
        ..pb::UpdateRequest::default()
    };
    let forever = pb::UpdateRequest {
        retention: Some(pb::Retention {
            max_age: Some(prost_types::Duration::default()),
            ..pb::Retention::default()
        }),
        ..pb::UpdateRequest::default()
    };
    for refused in [twice, too_many, forever] {
        let refused = update(&gateway, refused).await.unwrap_err();
        assert_eq!(reason_of(&refused).as_deref(), Some("INVALID_FIELD"), "{refused:?}");
    }
    let now = gateway.router.describe("s").await.unwrap();
    assert_eq!((now.etag, now.metadata), (updated.etag, updated.metadata));
    gateway.stopped().await;
}

async fn a_session_is_kept_within_the_settings(one: Face, other: Face) {
    let gateway = Gateway::with(|config| {
        config.retention.frames = 10;
        config.idle = Duration::from_secs(60);
    })
    .await;
    let span = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let settings = pb::Retention {
        max_age: span(30 * 24 * 60 * 60),
        max_frames: Some(10),
        max_bytes: Some(16 << 20),
        idle: span(60),
    };
    let plain = create(&gateway, "plain", pb::Retention::default()).await;
    assert_eq!(plain.retention, Some(settings));
    let greedy = pb::Retention {
        max_age: span(315_576_000_000),
        max_frames: Some(u64::MAX),
        max_bytes: Some(16 << 20),
        idle: span(61),
    };
    assert_eq!(create(&gateway, "greedy", greedy).await.retention, Some(settings));
    let modest = pb::Retention {
        max_age: span(5),
        max_frames: Some(4),
        max_bytes: Some(1 << 16),
        idle: span(7),
    };
    assert_eq!(create(&gateway, "modest", modest).await.retention, Some(modest));
    for (session, face, first) in [("plain", one, 21), ("greedy", one, 21), ("modest", other, 27)] {
        let mut ann = gateway.member(face, session, "ann").await;
        for at in 1..=30 {
            ann.send(text(session, &at.to_string(), "x")).await;
        }
        ann.acked("30").await;
        let now = gateway.router.describe(session).await.unwrap();
        assert_eq!((now.first_seq, now.head_seq), (first, 30), "{session}");
    }
    gateway.stopped().await;
}

async fn what_grew_old_is_told(one: Face, other: Face) {
    let gateway = sweeping().await;
    let brief = pb::Retention {
        max_age: ms(1),
        ..pb::Retention::default()
    };
    create(&gateway, "s", brief).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    for at in 1..=3 {
        ann.send(text("s", &at.to_string(), "x")).await;
        ann.acked(&at.to_string()).await;
    }
    let old = async {
        while gateway.router.describe("s").await.unwrap().first_seq < 4 {
            tokio::task::yield_now().await;
        }
    };
    patiently("all of it to grow old", old).await;
    // Nothing was logged since.
    let mut bob = gateway.peer(other).await;
    let join = pb::Join {
        after_seq: Some(1),
        ..pb::Join::default()
    };
    let joined = bob.join("s", join).await;
    assert_eq!((joined.resumed, joined.first_seq, joined.head_seq), (false, 4, 3));
    let next = bob.next().await;
    let Some(Control::Gap(gap)) = control(&next) else {
        panic!("not a gap: {next:?}")
    };
    assert_eq!((gap.from_seq, gap.to_seq, gap.reason()), (2, 3, pb::GapReason::Trimmed));
    // Who has all of it misses nothing, and who begins anew neither.
    let mut cy = gateway.peer(other).await;
    let join = pb::Join {
        after_seq: Some(3),
        ..pb::Join::default()
    };
    assert!(cy.join("s", join).await.resumed);
    let list = pb::ListFramesRequest {
        session_id: "s".to_owned(),
        ..pb::ListFramesRequest::default()
    };
    let listed = gateway.sessions().await.list_frames(list).await.unwrap().into_inner();
    assert_eq!((listed.frames.len(), listed.first_seq, listed.head_seq), (0, 4, 3));

    let settings = pb::UpdateRequest {
        retention: Some(pb::Retention::default()),
        ..pb::UpdateRequest::default()
    };
    update(&gateway, settings).await.unwrap();
    ann.send(text("s", "4", "x")).await;
    assert_eq!(ann.acked("4").await.seq, 4);
    for peer in [&mut bob, &mut cy] {
        assert_eq!(peer.logged().await.seq, 4);
    }
    gateway.stopped().await;
}

async fn a_session_goes_in_its_own_time(one: Face, other: Face) {
    let gateway = sweeping().await;
    let brief = pb::Retention {
        idle: ms(1),
        ..pb::Retention::default()
    };
    let mut ann = gateway.member(one, "used", "ann").await;
    let kept_so = pb::UpdateRequest {
        session_id: "used".to_owned(),
        retention: Some(brief),
        ..pb::UpdateRequest::default()
    };
    gateway.sessions().await.update(kept_so).await.unwrap();
    create(&gateway, "plain", pb::Retention::default()).await;
    create(&gateway, "brief", brief).await;
    let gone = async |session: &'static str| {
        while gateway.router.describe(session).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    patiently("the end of what nobody uses", gone("brief")).await;
    assert!(gateway.router.describe("plain").await.is_ok());
    ann.send(text("used", "x", "still here")).await;
    ann.acked("x").await;
    ann.control("used", Control::Leave(pb::Leave {})).await;
    patiently("the end of what is not used any more", gone("used")).await;
    assert!(gateway.router.describe("plain").await.is_ok());
    // A later one by its name has nothing of it.
    let mut bob = gateway.member(other, "brief", "bob").await;
    bob.send(text("brief", "x", "anew")).await;
    assert_eq!(bob.acked("x").await.seq, 1);
    let (anew, plain) = (gateway.router.describe("brief"), gateway.router.describe("plain"));
    assert_eq!(anew.await.unwrap().retention, plain.await.unwrap().retention);
    gateway.stopped().await;
}
