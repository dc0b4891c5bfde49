//! Any text, read as a frame.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use twinspan::frame::{Frame, Rules, Str, Types};

fuzz_target!(|text: &str| {
    let types = Types::default();
    let text = Str::from(text);
    for ignore_unknown in [false, true] {
        if let Ok(frame) = Frame::from_json(
            &text,
            &Rules {
                ignore_unknown,
                types: &types,
            },
        ) {
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            common::check(&frame, &types);
        }
    }
});
