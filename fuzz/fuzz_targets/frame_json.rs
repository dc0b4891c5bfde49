//! Any text, read as a frame.
#![no_main]

mod common;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use twinspan::frame::{Frame, Rules, Str, Types};

static TYPES: LazyLock<Types> = LazyLock::new(Types::default);

fuzz_target!(|text: &str| {
    let text = Str::from(text);
    for ignore_unknown in [false, true] {
        if let Ok(frame) = Frame::from_json(
            &text,
            &Rules {
                ignore_unknown,
                types: &TYPES,
            },
        ) {
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            common::check(&frame, &TYPES);
        }
    }
});
