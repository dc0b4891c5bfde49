//! What holds for every frame that was let in.

use bytes::Bytes;
use twinspan::frame::{Body, Form, Frame, Rules, Sealed, Str, Types};

/// Encodes a frame in both forms and reads it again from both: it must still be the same.
pub fn check(frame: &Frame, types: &Types) {
    let rules = Rules {
        ignore_unknown: false,
        types,
    };
    let _ = frame.check();
    let mut wire = Vec::new();
    frame.write_wire(&mut wire);
    assert_eq!(wire.len(), frame.wire_len());
    let from_wire = Frame::from_wire(&Bytes::from(wire), &rules).expect("our protobuf must be read");
    assert_eq!(&from_wire, frame);
    let mut json = Vec::new();
    from_wire.write_json(&mut json, types);
    let json = Str::from(String::from_utf8(json).expect("our JSON must be UTF-8"));
    let plain: serde_json::Value = serde_json::from_str(&json).expect("our JSON must be JSON");
    // A message of unknown type cannot come back from JSON, and a known one may come back with its maps in another order.
    let from_json = match (&frame.body, Frame::from_json(&json, &rules)) {
        (Body::Message(_), Ok(_)) => return,
        (Body::Message(_), Err(_)) if plain["message"]["value"].is_string() => return,
        (_, from_json) => from_json.expect("our JSON must be read"),
    };
    assert_eq!(from_json, from_wire);
    // The bytes of control frames count, maps and all.
    if !matches!(frame.body, Body::Control(_)) {
        assert_eq!(from_wire.substance(types), frame.substance(types));
        assert_eq!(from_json.substance(types), frame.substance(types));
    }
    let sealed = Sealed::new(from_json);
    assert_eq!(
        Sealed::encoded(&sealed, Form::Proto, types).len(),
        sealed.binary().len()
    );
    assert!(sealed.json(types).ends_with(json.as_bytes()));
}
