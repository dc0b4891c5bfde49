//! What is let in as protobuf can be written in both forms, and is read back as the same.
#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use twinspan::frame::{Frame, Rules, Str, Types};

static TYPES: LazyLock<Types> = LazyLock::new(Types::default);

fuzz_target!(|data: &[u8]| {
    let types = &*TYPES;
    let rules = Rules { ignore_unknown: false, types };
    let Ok(frame) = Frame::from_wire(&Bytes::copy_from_slice(data), &rules) else { return };
    drop(frame.check());
    let mut wire = Vec::new();
    frame.write_wire(&mut wire);
    assert_eq!(wire.len(), frame.wire_len());
    let again = Frame::from_wire(&wire.clone().into(), &rules).expect("what is written can be read");
    let mut second = Vec::new();
    again.write_wire(&mut second);
    assert_eq!(wire, second, "the written form is stable");
    let mut json = Vec::new();
    frame.write_json(&mut json, types);
    let json = Str::from_utf8(json.into()).expect("what is written is UTF-8");
    drop(Frame::from_json(&json, &rules));
});
