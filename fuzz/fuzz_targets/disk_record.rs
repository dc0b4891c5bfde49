//! Any bytes, read as a record of the disk store, with the checksum that they would have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twinspan::frame::{Body, Frame, Str, Types};
use twinspan::log::Seen;
use twinspan::log::record::{self, Place, What};

const SESSION: Str = Str::from_static("s");

/// What was read must be fit for members, and be kept as it is.
fn check_frame(place: Place, offset: u64, frame: &Frame, seen: Option<&Seen>) {
    frame.write_wire(&mut Vec::new());
    frame.write_json(&mut Vec::new(), &Types::default());
    let mut value = Vec::new();
    record::write_frame(&mut value, place, offset, frame, seen).expect("what was read must be kept");
    let again = record::read(place, &SESSION, &value).expect("what was kept must be read");
    assert_eq!(again.offset, offset);
    let What::Frame(other, other_seen) = again.what else {
        panic!("a frame must stay one");
    };
    assert_eq!((&other, other_seen.as_ref()), (frame, seen));
    let mut once_more = Vec::new();
    record::write_frame(&mut once_more, place, offset, &other, seen).expect("what was read must be kept");
    // The details of an error have no order.
    if !matches!(frame.body, Body::Error(_) | Body::Control(_)) {
        assert_eq!(once_more, value);
    }
}

fuzz_target!(|input: (u16, &[u8])| {
    let (seq, bytes) = input;
    let place = Place {
        session: 1,
        seq: seq.into(),
    };
    let _ = record::read(place, &SESSION, bytes);
    let mut value = bytes.to_vec();
    record::seal(place, &mut value);
    let offset = record::offset_of(place, &value);
    let Ok(read) = record::read(place, &SESSION, &value) else {
        return;
    };
    assert_eq!(offset, Ok(read.offset));
    let (first, folded) = match read.what {
        What::Frame(frame, seen) => return check_frame(place, read.offset, &frame, seen.as_ref()),
        What::Chunks { first, folded } => (first, folded),
    };
    let chunks: Vec<_> = (0..folded.len())
        .map(|at| folded.stretch(at, 1, first + at as u64))
        .collect();
    let mut value = Vec::new();
    record::write_chunks(&mut value, place, read.offset, &chunks).expect("what was read must be kept");
    let again = record::read(place, &SESSION, &value).expect("what was kept must be read");
    let What::Chunks {
        first: begin,
        folded: other,
    } = again.what
    else {
        panic!("chunks must stay such");
    };
    assert_eq!((begin, other.len()), (first, folded.len()));
    for (at, chunk) in chunks.iter().enumerate() {
        assert_eq!(other.stretch(at, 1, first + at as u64).frame(), chunk.frame());
    }
    let count = chunks.len();
    assert_eq!(
        other.stretch(0, count, first).frame(),
        folded.stretch(0, count, first).frame()
    );
});
