//! What is let in as ProtoJSON can be written in both forms, and is read back as the same.
#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use twinspan::frame::{Frame, Rules, Str, Types};

static TYPES: LazyLock<Types> = LazyLock::new(Types::default);

fuzz_target!(|data: &[u8]| {
    let types = &*TYPES;
    let Ok(text) = Str::from_utf8(Bytes::copy_from_slice(data)) else { return };
    for ignore_unknown in [false, true] {
        let rules = Rules { ignore_unknown, types };
        let Ok(frame) = Frame::from_json(&text, &rules) else { continue };
        drop(frame.check());
        let strict = Rules { ignore_unknown: false, types };
        let mut json = Vec::new();
        frame.write_json(&mut json, types);
        let json = Str::from_utf8(json.into()).expect("what is written is UTF-8");
        let again = Frame::from_json(&json, &strict).expect("what is written can be read");
        let mut wire = Vec::new();
        frame.write_wire(&mut wire);
        assert_eq!(wire.len(), frame.wire_len());
        let crossed = Frame::from_wire(&wire.into(), &strict).expect("what is written can be read");
        let (mut one, mut other) = (Vec::new(), Vec::new());
        again.write_json(&mut one, types);
        crossed.write_json(&mut other, types);
        let second = Str::from_utf8(other.into()).expect("what is written is UTF-8");
        assert_eq!(json.as_bytes(), one.as_slice(), "the written form is stable");
        drop(Frame::from_json(&second, &strict).expect("what has crossed can be read"));
    }
});
