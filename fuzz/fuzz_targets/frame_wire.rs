//! Any bytes, read as a frame of protobuf.
#![no_main]

mod common;

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use twinspan::error::Refusal;
use twinspan::frame::{Frame, Rules, Types};

fn is_about_type(refusal: &Refusal) -> bool {
    refusal
        .details
        .iter()
        .any(|(key, field)| *key == "field" && field == "message")
}

static TYPES: LazyLock<Types> = LazyLock::new(Types::default);

fuzz_target!(|wire: &[u8]| {
    let wire = Bytes::copy_from_slice(wire);
    let read = Frame::from_wire(
        &wire,
        &Rules {
            ignore_unknown: false,
            types: &TYPES,
        },
    );
    // Both ways in must agree, but for typed messages, which only one of them looks into.
    match (&read, Frame::decode(wire)) {
        (Ok(frame), Ok(other)) => assert_eq!(*frame, other),
        (Ok(_), Err(error)) => panic!("only decode refuses it: {error}"),
        (Err(refused), Ok(_)) => assert!(
            is_about_type(&refused.refusal),
            "only from_wire refuses it: {refused:?}"
        ),
        (Err(_), Err(_)) => {}
    }
    if let Ok(frame) = read {
        common::check(&frame, &TYPES);
    }
});
