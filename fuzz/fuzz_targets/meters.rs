//! The meters of HTTP/2 and WebSocket: however the bytes are cut, the verdict is the same.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use twinspan::limits::Limits;
use twinspan::transport::{frames, meter};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NOW: Duration = Duration::from_secs(1);

fn cut(bytes: &[u8], size: u8) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(usize::from(size).max(1))
}

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    // Few of everything, so that little is much.
    let limits = Limits {
        http2_control_per_second: 4,
        http2_resets_per_second: 2,
        header_bytes: 8_192,
        fragments: 4,
        ws_control_per_second: 2,
        ..Limits::default()
    };

    let mut whole = frames::Meter::default();
    let at_once = whole.read(bytes, &limits, NOW);
    let mut parts = frames::Meter::default();
    let in_parts = cut(bytes, size).try_for_each(|part| parts.read(part, &limits, NOW));
    assert_eq!(at_once.is_ok(), in_parts.is_ok());

    let begun = || {
        let mut meter = meter::Meter::new(&limits);
        meter.read(PREFACE, NOW).map(|()| meter)
    };
    if let (Ok(mut whole), Ok(mut parts)) = (begun(), begun()) {
        let at_once = whole.read(bytes, NOW);
        let in_parts = cut(bytes, size).try_for_each(|part| parts.read(part, NOW));
        assert_eq!(at_once, in_parts);
        let at_once = whole.wrote(bytes, NOW);
        let in_parts = cut(bytes, size).try_for_each(|part| parts.wrote(part, NOW));
        assert_eq!(at_once, in_parts);
    }
});
