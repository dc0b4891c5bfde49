//! A payload that is let in as JSON crosses to protobuf and back without an error, and is then stable.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use twinspan::frame::{Payload, Str};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = Str::from_utf8(Bytes::copy_from_slice(data)) else { return };
    let Ok(payload) = Payload::from_json_text(text) else { return };
    let wire = payload.encode_to_vec();
    let crossed = Payload::from_wire_value(wire.into()).expect("what has crossed is let in");
    let back = Payload::from_json_text(crossed.as_json().into()).expect("what has crossed back is let in");
    // Minus zero crosses to 0, as JavaScript writes it; all else is stable from the first crossing.
    let again = Payload::from_wire_value(back.encode_to_vec().into()).expect("what has crossed is let in");
    assert_eq!(again.as_json(), crossed.as_json());
});
