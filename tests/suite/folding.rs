//! Folding: who reads what is past gets few frames, and the same text, whatever is cut where.

use std::collections::BTreeMap;

use twinspan::frame::{Body, Frame, pb};

use crate::harness::*;
use crate::scenarios;

scenarios! {
    late_joiners_get_few_frames
    lagging_cursors_get_few_frames
    resuming_anywhere_gives_the_rest
    history_holds_answers
    replies_side_by_side_keep_their_text
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtRest {
    Chunks,
    Folded,
}

async fn gateway(at_rest: AtRest) -> Gateway {
    Gateway::with(|config| config.fold = at_rest == AtRest::Folded).await
}

fn part(at: usize) -> String {
    format!("{at}ü ")
}

fn text_of(frame: &Frame) -> &str {
    match &frame.body {
        Body::Text(text) => text,
        _ => "",
    }
}

/// A worker that has been handed the requests, which `asker` has sent.
async fn asked(gateway: &Gateway, face: Face, asker: &mut Peer, ids: &[&str]) -> (Peer, Vec<Frame>) {
    let mut worker = gateway.worker(face, "brain", 8).await;
    let mut handed = Vec::new();
    for id in ids {
        asker.send(request("s", id, "brain")).await;
        let is_handed = |frame: &Frame| (frame.attempt > 0).then(|| frame.clone());
        handed.push(worker.until("the request", is_handed).await);
    }
    (worker, handed)
}

/// A request in session "s" whose answer has so many chunks (seqs 2 and up), and the whole text.
async fn answered(gateway: &Gateway, one: Face, other: Face, chunks: usize) -> String {
    let mut ann = gateway.member(one, "s", "ann").await;
    let (mut worker, handed) = asked(gateway, other, &mut ann, &["q"]).await;
    for at in 0..chunks {
        worker.send(chunk(&handed[0], &part(at))).await;
    }
    worker.send(last(&handed[0], "end")).await;
    let (text, _) = ann.answer("q").await;
    assert_eq!(text, (0..chunks).map(part).collect::<String>() + "end");
    text
}

/// A store may fold a little later than the answer ends.
async fn until_folded(gateway: &Gateway) {
    let folded = async { while list(gateway, pb::ListFramesRequest::default()).await.len() > 3 {} };
    patiently("the answer to be folded", folded).await;
}

async fn read_after(peer: &mut Peer, after: u64) {
    let join = pb::Join {
        after_seq: Some(after),
        ..pb::Join::default()
    };
    peer.join("s", join).await;
}

/// The frames up to the end of the answer.
async fn read_to_end(peer: &mut Peer, after: u64) -> Vec<Frame> {
    read_after(peer, after).await;
    let mut frames: Vec<Frame> = Vec::new();
    while !frames.last().is_some_and(|frame| frame.last) {
        frames.push(peer.logged().await);
    }
    let mut next = after + 1;
    for frame in &frames {
        assert_eq!(frame.first_seq(), next, "no gap, no duplicate");
        next = frame.seq + 1;
    }
    frames
}

fn text_of_all(frames: &[Frame]) -> String {
    frames.iter().map(text_of).collect()
}

async fn late_joiners_get_few_frames(one: Face, other: Face) {
    let gateway = Gateway::start().await;
    let text = answered(&gateway, one, other, 200).await;
    let mut bob = gateway.peer(other).await;
    let frames = read_to_end(&mut bob, 0).await;
    assert_eq!(text_of_all(&frames), text);
    assert!(frames.len() < 20, "{} frames", frames.len());
    let folded = frames.iter().find(|frame| frame.folded_from > 0).unwrap();
    assert_eq!(folded.index, Some(folded.seq as u32 - 2), "the last one's");
    gateway.stopped().await;
}

async fn lagging_cursors_get_few_frames(one: Face, other: Face) {
    let gateway = Gateway::with(|config| config.limits.tail_frames = 4).await;
    let text = answered(&gateway, one, other, 300).await;
    let mut bob = gateway.peer(other).await;
    let frames = read_to_end(&mut bob, 0).await;
    assert_eq!(text_of_all(&frames), text);
    assert!(frames.len() < 20, "{} frames", frames.len());
    gateway.stopped().await;
}

async fn resuming_anywhere_gives_the_rest(one: Face, other: Face) {
    for at_rest in [AtRest::Chunks, AtRest::Folded] {
        let gateway = gateway(at_rest).await;
        answered(&gateway, one, other, 50).await;
        if at_rest == AtRest::Folded {
            until_folded(&gateway).await;
        }
        let mut bob = gateway.peer(other).await;
        for after in 0..=51 {
            let rest: String = (0..50).skip((after as usize).saturating_sub(1)).map(part).collect();
            let frames = read_to_end(&mut bob, after).await;
            assert_eq!(text_of_all(&frames), rest + "end", "{at_rest:?}, after {after}");
            // However few they are: nothing but the log has them.
            assert!(at_rest == AtRest::Chunks || frames.len() <= 3, "{frames:?}");
        }
        gateway.stopped().await;
    }
}

async fn history_holds_answers(one: Face, other: Face) {
    let gateway = gateway(AtRest::Folded).await;
    // One who is there from the beginning sees the same.
    let mut bob = gateway.member(other, "s", "bob").await;
    let text = answered(&gateway, one, other, 50).await;
    assert_eq!(bob.answer("q").await.0, text);
    until_folded(&gateway).await;
    let history = list(&gateway, pb::ListFramesRequest::default()).await;
    let spans: Vec<_> = history.iter().map(|frame| (frame.first_seq(), frame.seq)).collect();
    assert_eq!(spans, [(1, 1), (2, 51), (52, 52)]);
    assert_eq!(text_of_all(&history), text);
    // What comes after it is live as ever.
    bob.send(crate::harness::text("s", "x", "thanks")).await;
    assert_eq!(bob.logged().await.seq, 53);
    gateway.stopped().await;
}

async fn replies_side_by_side_keep_their_text(one: Face, other: Face) {
    let gateway = gateway(AtRest::Folded).await;
    let mut ann = gateway.member(one, "s", "ann").await;
    let (mut worker, handed) = asked(&gateway, other, &mut ann, &["q", "r"]).await;
    let mut want = BTreeMap::<String, String>::new();
    for at in 0..40 {
        // Runs of several lengths, of either.
        let asked = &handed[usize::from(at % 7 > 3)];
        want.entry(asked.id.to_string()).or_default().push_str(&part(at));
        worker.send(chunk(asked, &part(at))).await;
    }
    for asked in &handed {
        worker.send(last(asked, "")).await;
    }
    ann.answer("r").await;
    // Whoever stops after any frame, and goes on after its seq, misses nothing and has nothing twice.
    let mut bob = gateway.peer(other).await;
    let mut got = BTreeMap::<String, String>::new();
    let mut after = 0;
    while after < 44 {
        read_after(&mut bob, after).await;
        let frame = bob.logged().await;
        assert_eq!(frame.first_seq(), after + 1);
        after = frame.seq;
        if frame.chunk_text().is_some() {
            got.entry(frame.reply_to.to_string())
                .or_default()
                .push_str(text_of(&frame));
        }
    }
    assert_eq!(got, want);
    gateway.stopped().await;
}

/// All pages of a listing.
async fn list(gateway: &Gateway, list: pb::ListFramesRequest) -> Vec<Frame> {
    let mut sessions = gateway.sessions().await;
    let mut list = pb::ListFramesRequest {
        session_id: "s".to_owned(),
        ..list
    };
    let mut frames = Vec::new();
    loop {
        let page = sessions.list_frames(list.clone()).await.unwrap().into_inner();
        assert!(list.page_size == 0 || page.frames.len() <= list.page_size as usize);
        frames.extend(page.frames);
        if page.next_page_token.is_empty() {
            return frames;
        }
        list.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn pages_of_history_hold_runs() {
    for at_rest in [AtRest::Chunks, AtRest::Folded] {
        let gateway = gateway(at_rest).await;
        let text = answered(&gateway, Face::Grpc, Face::Json, 50).await;
        for page_size in 1..=3 {
            for newest_first in [false, true] {
                let request = pb::ListFramesRequest {
                    page_size,
                    newest_first,
                    fold: true,
                    ..pb::ListFramesRequest::default()
                };
                let mut frames = list(&gateway, request).await;
                if newest_first {
                    frames.reverse();
                }
                let spans: Vec<_> = frames.iter().map(|frame| (frame.first_seq(), frame.seq)).collect();
                assert_eq!(spans, [(1, 1), (2, 51), (52, 52)]);
                assert_eq!(text_of_all(&frames), text);
            }
        }
        gateway.stopped().await;
    }
}

#[tokio::test]
async fn bounds_of_history_cut_runs() {
    for at_rest in [AtRest::Chunks, AtRest::Folded] {
        let gateway = gateway(at_rest).await;
        answered(&gateway, Face::Grpc, Face::Json, 20).await;
        for (after_seq, before_seq) in [(5, 12), (1, 9), (9, 0), (0, 3), (7, 9), (21, 22)] {
            for (newest_first, fold) in [(false, false), (false, true), (true, false), (true, true)] {
                let request = pb::ListFramesRequest {
                    page_size: 2,
                    after_seq,
                    before_seq,
                    newest_first,
                    fold,
                    ..pb::ListFramesRequest::default()
                };
                let mut frames = list(&gateway, request).await;
                if newest_first {
                    frames.reverse();
                }
                let end = if before_seq == 0 { 23 } else { before_seq };
                let seqs = (after_seq.max(1) + 1)..end.min(22);
                let mut want: String = seqs.map(|seq| part(seq as usize - 2)).collect();
                if end == 23 {
                    want += "end";
                }
                assert_eq!(text_of_all(&frames), want, "{at_rest:?}, {after_seq} to {before_seq}");
            }
        }
        gateway.stopped().await;
    }
}

#[tokio::test]
async fn folding_belongs_to_a_page_token() {
    let gateway = Gateway::start().await;
    answered(&gateway, Face::Grpc, Face::Json, 20).await;
    let mut sessions = gateway.sessions().await;
    let mut list = pb::ListFramesRequest {
        session_id: "s".to_owned(),
        page_size: 1,
        fold: true,
        ..pb::ListFramesRequest::default()
    };
    let page = sessions.list_frames(list.clone()).await.unwrap().into_inner();
    list.fold = false;
    list.page_token = page.next_page_token;
    let refused = sessions.list_frames(list).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("INVALID_PAGE_TOKEN"));
    gateway.stopped().await;
}
