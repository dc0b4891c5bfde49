//! Measures what it costs to carry a frame from one form into the other, beside a tree of `google.protobuf.Struct`.
//!
//! `cargo bench --bench transcode`, by hand. A figure is the thread's CPU time for one whole message, envelope and payload
//! parsed from one form and written in the other, the median of many samples.

use std::hint::black_box;

use bytes::Bytes;
use prost::Message;
use twinspan::frame::{Frame, Payload, Rules, Sealed, Str, Types};

mod common;

use common::measure;

/// The frame with its payload as a tree: what prost and pbjson make of it without our help.
#[derive(Clone, PartialEq, Message, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TreeFrame {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    session_id: String,
    #[prost(string, tag = "3")]
    r#type: String,
    #[prost(message, optional, tag = "16")]
    payload: Option<pbjson_types::Value>,
}

/// One long text, as chats have it.
fn chat(bytes: usize) -> String {
    let words = "The alloy's \\\"lattice\\\" distorts; see section 4.2 for the déjà vu of phases.\\n";
    let mut text = String::new();
    while text.len() < bytes.saturating_sub(90) {
        text += words;
    }
    format!(
        r#"{{"action":"search","query":"HEA synthesis","user":{{"id":"u-81723","admin":false}},"limit":20,"content":"{text}"}}"#
    )
}

/// Many small objects, as a model's tokens come.
fn tokens(bytes: usize) -> String {
    let mut items = Vec::new();
    let mut len = 20;
    for place in 0.. {
        let item = format!(
            r#"{{"token":" w{place}","id":{},"logprob":-{}.{:04},"top":[{{"t":"a","p":0.25}},null]}}"#,
            place * 7919 % 50_257,
            place % 9,
            place * 37 % 10_000
        );
        if len + item.len() > bytes && !items.is_empty() {
            break;
        }
        len += item.len() + 1;
        items.push(item);
    }
    format!(r#"{{"tokens":[{}],"done":false}}"#, items.join(","))
}

/// Nothing but numbers.
fn numbers(bytes: usize) -> String {
    let mut state = 1_u64;
    let mut items = Vec::new();
    let mut len = 20;
    while len < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let item = match state >> 62 {
            0 => (state >> 44 & 0xFFFF).to_string(),
            1 => format!("{:.3}", (state >> 40 & 0xF_FFFF) as f64 / 1000.0),
            2 => format!("-{:.2}", (state >> 50 & 0xFFF) as f64 / 100.0),
            _ => ((state >> 11) as f64 / (1_u64 << 53) as f64).to_string(),
        };
        len += item.len() + 1;
        items.push(item);
    }
    format!(r#"{{"values":[{}]}}"#, items.join(","))
}

/// The four ways through a gateway, in nanoseconds: JSON to protobuf, back, and each to itself.
struct Costs([f64; 4]);

const WAYS: [&str; 4] = ["W>G", "G>W", "W>W", "G>G"];

fn ours(text: &Bytes, wire: &Bytes) -> Costs {
    let types = Types::default();
    let rules = Rules {
        ignore_unknown: false,
        types: &types,
    };
    let text = Str::from_utf8(text.clone()).expect("the frame is text");
    let mut out = Vec::with_capacity(1 << 20);
    let from_json = |text: &Str| Frame::from_json(text, &rules).expect("the frame is one");
    let from_wire = |wire: &Bytes| Frame::from_wire(wire, &rules).expect("the frame is one");
    Costs([
        measure(|| {
            out.clear();
            from_json(black_box(&text)).write_wire(&mut out);
            black_box(&out);
        }),
        measure(|| {
            out.clear();
            from_wire(black_box(wire)).write_json(&mut out, &types);
            black_box(&out);
        }),
        measure(|| {
            out.clear();
            from_json(black_box(&text)).write_json(&mut out, &types);
            black_box(&out);
        }),
        measure(|| {
            out.clear();
            from_wire(black_box(wire)).write_wire(&mut out);
            black_box(&out);
        }),
    ])
}

fn tree(text: &Bytes, wire: &Bytes) -> Costs {
    let text = std::str::from_utf8(text).expect("the frame is text");
    let mut out = Vec::with_capacity(1 << 20);
    let from_json = |text: &str| serde_json::from_str::<TreeFrame>(text).expect("the frame is one");
    let from_wire = |wire: &Bytes| TreeFrame::decode(wire.clone()).expect("the frame is one");
    Costs([
        measure(|| {
            out.clear();
            from_json(black_box(text)).encode(&mut out).expect("a Vec grows");
            black_box(&out);
        }),
        measure(|| {
            out.clear();
            serde_json::to_writer(&mut out, &from_wire(black_box(wire))).expect("a Vec grows");
            black_box(&out);
        }),
        measure(|| {
            out.clear();
            serde_json::to_writer(&mut out, &from_json(black_box(text))).expect("a Vec grows");
            black_box(&out);
        }),
        measure(|| {
            out.clear();
            from_wire(black_box(wire)).encode(&mut out).expect("a Vec grows");
            black_box(&out);
        }),
    ])
}

/// What one frame costs that many members read: decoded once, encoded once for each face.
fn sealed(text: &Bytes) -> f64 {
    let types = Types::default();
    let rules = Rules {
        ignore_unknown: false,
        types: &types,
    };
    measure(|| {
        let text = Str::from_utf8(Bytes::copy_from_slice(black_box(text))).expect("the frame is text");
        let sealed = Sealed::new(Frame::from_json(&text, &rules).expect("the frame is one"));
        black_box((sealed.json(&types).len(), sealed.wire().len()));
    })
}

/// What it costs to digest what a frame says, as it came from JSON and as it came from protobuf.
fn substance(text: &Bytes, wire: &Bytes) -> [f64; 2] {
    let types = Types::default();
    let rules = Rules {
        ignore_unknown: false,
        types: &types,
    };
    let text = Str::from_utf8(text.clone()).expect("the frame is text");
    let from_json = Frame::from_json(&text, &rules).expect("the frame is one");
    let from_wire = Frame::from_wire(wire, &rules).expect("the frame is one");
    assert_eq!(from_json.substance(&types), from_wire.substance(&types));
    [&from_json, &from_wire].map(|frame| {
        measure(|| {
            black_box(black_box(frame).substance(&types));
        })
    })
}

fn main() {
    println!(
        "bytes: Frame {}, Payload {}, Sealed {}",
        size_of::<Frame>(),
        size_of::<Payload>(),
        size_of::<Sealed>()
    );
    println!(
        "CPU ns per message; W is JSON, G is protobuf; in brackets a tree of Struct (pbjson), and how many times as much"
    );
    println!(
        "{:<10}{:>7}{}{:>12}{:>14}{:>14}",
        "payload",
        "bytes",
        WAYS.map(|way| format!("{way:>26}")).concat(),
        "W>sealed",
        "W>substance",
        "G>substance"
    );
    for (name, shape) in [
        ("chat", chat as fn(usize) -> String),
        ("tokens", tokens),
        ("numbers", numbers),
    ] {
        for bytes in [256, 4096, 65_536] {
            let payload = shape(bytes);
            let text = Bytes::from(format!(
                r#"{{"id":"msg-123","type":"query","sessionId":"sess-456","payload":{payload}}}"#
            ));
            let types = Types::default();
            let rules = Rules {
                ignore_unknown: false,
                types: &types,
            };
            let mut wire = Vec::new();
            let str = Str::from_utf8(text.clone()).expect("the frame is text");
            Frame::from_json(&str, &rules)
                .expect("the frame is one")
                .write_wire(&mut wire);
            let wire = Bytes::from(wire);
            let (ours, tree) = (ours(&text, &wire).0, tree(&text, &wire).0);
            let cells = (0..4).map(|way| {
                format!(
                    "{:>26}",
                    format!("{:.0} ({:.0}, {:.1}x)", ours[way], tree[way], tree[way] / ours[way])
                )
            });
            let [json, proto] = substance(&text, &wire);
            println!(
                "{name:<10}{:>7}{}{:>12.0}{json:>14.0}{proto:>14.0}",
                text.len(),
                cells.collect::<String>(),
                sealed(&text)
            );
        }
    }
}
