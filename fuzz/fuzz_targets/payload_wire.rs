//! Any bytes, read as a `google.protobuf.Value`, beside prost.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use twinspan::frame::{Body, Frame, Payload, Str, Types};

fn substance(payload: &Payload) -> u64 {
    let body = Body::Payload(payload.clone());
    Frame {
        body,
        ..Frame::default()
    }
    .substance(&Types::default())
}

fuzz_target!(|wire: &[u8]| {
    let Ok(payload) = Payload::from_wire_value(Bytes::copy_from_slice(wire)) else {
        return;
    };
    let theirs = prost_types::Value::decode(wire).expect("prost must read it too");
    let text = Str::from(payload.as_json());
    serde_json::from_str::<serde_json::Value>(&text).expect("our JSON must be JSON");
    let again = Payload::from_json_text(text).expect("our JSON must be read");
    assert_eq!(payload, again);
    assert_eq!(substance(&payload), substance(&again));
    let ours = prost_types::Value::decode(again.as_wire()).expect("prost must read ours");
    assert_eq!(ours, theirs);
});
