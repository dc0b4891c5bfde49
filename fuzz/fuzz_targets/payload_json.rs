//! Any text, read as a payload, beside serde_json.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use twinspan::frame::{Body, Frame, Payload, Str, Types};

/// The value with all its numbers as doubles.
fn doubles(value: Value) -> Value {
    match value {
        Value::Number(number) => (number.as_f64().unwrap_or_default() + 0.0).into(),
        Value::Array(items) => items.into_iter().map(doubles).collect(),
        Value::Object(members) => members
            .into_iter()
            .map(|(name, value)| (name, doubles(value)))
            .collect(),
        other => other,
    }
}

fn substance(payload: &Payload) -> u64 {
    let body = Body::Payload(payload.clone());
    Frame {
        body,
        ..Frame::default()
    }
    .substance(&Types::default())
}

fuzz_target!(|text: &str| {
    let theirs = serde_json::from_str::<Value>(text);
    match Payload::from_json_text(Str::from(text)) {
        Ok(payload) => {
            let theirs = doubles(theirs.expect("serde_json must read it too"));
            let wire = Bytes::copy_from_slice(payload.as_wire());
            let other = Payload::from_wire_value(wire).expect("our protobuf must be read");
            assert_eq!(doubles(other.to_serde()), theirs);
            let again = Payload::from_json_text(Str::from(other.as_json())).expect("our JSON must be read");
            assert_eq!(payload, again);
            let digests = [&payload, &other, &again].map(substance);
            assert!(digests.iter().all(|digest| *digest == digests[0]));
            let wire = Bytes::copy_from_slice(again.as_wire());
            let again = Payload::from_wire_value(wire).expect("our protobuf must be read");
            assert_eq!(again.as_json(), other.as_json());
        }
        Err(refusal) => {
            let is_stricter = refusal.message.contains("nested") || refusal.message.contains("twice");
            assert!(is_stricter || theirs.is_err(), "only we refuse it: {refusal}");
        }
    }
});
