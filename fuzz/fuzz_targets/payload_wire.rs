//! A payload that is let in as protobuf crosses to JSON and back without an error, and is then stable.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use twinspan::frame::Payload;

fuzz_target!(|data: &[u8]| {
    let Ok(payload) = Payload::from_wire_value(Bytes::copy_from_slice(data)) else { return };
    let text = payload.as_json().to_owned();
    let crossed = Payload::from_json_text(text.as_str().into()).expect("what has crossed is let in");
    let wire = crossed.encode_to_vec();
    let back = Payload::from_wire_value(wire.into()).expect("what has crossed back is let in");
    assert_eq!(back.as_json(), text);
});
