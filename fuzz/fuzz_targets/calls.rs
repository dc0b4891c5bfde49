//! The messages of calls, which hold frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use twinspan::frame::pb;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = pb::PublishRequest::decode(data) {
        let again = pb::PublishRequest::decode(request.encode_to_vec().as_slice());
        assert!(again.is_ok(), "what is written can be read");
    }
    drop(pb::ListFramesRequest::decode(data));
    drop(pb::UpdateRequest::decode(data));
});
