//! The codec of calls: prost's, but that a message which cannot be read is refused like a frame, with a reason, rather than as
//! an internal error of the gateway.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::ProstCodec;

use crate::error::{Reason, Refusal};

/// Reads and writes the messages of calls.
#[derive(Clone, Copy, Debug)]
pub struct CallCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for CallCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for CallCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = CallDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        CallDecoder(PhantomData)
    }
}

/// The reading half.
#[derive(Clone, Copy, Debug)]
pub struct CallDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for CallDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(buffer).map(Some).map_err(|error| refusal(&error).to_status())
    }
}

/// A frame within the message brings its refusal along as text, after the path to it; anything else is prost's own error.
fn refusal(error: &prost::DecodeError) -> Refusal {
    let text = error.to_string();
    let mut parts = text.split(": ");
    let reason = parts.by_ref().find_map(Reason::by_name);
    match reason {
        Some(reason) => Refusal::new(reason, parts.collect::<Vec<_>>().join(": ")),
        None => Refusal::new(Reason::MalformedFrame, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::pb;

    #[test]
    fn a_frame_within_says_what_is_wrong_with_it() {
        // PublishRequest { frame: { payload: Value without a kind } }
        let error = pb::PublishRequest::decode(&b"\x0a\x03\x82\x01\x00"[..]).unwrap_err();
        let refusal = refusal(&error);
        assert_eq!(refusal.reason, Reason::InvalidPayload, "{error}");
        assert!(!refusal.message.contains("INVALID_PAYLOAD"), "{refusal}");
    }

    #[test]
    fn what_is_no_message_is_malformed() {
        let error = pb::PublishRequest::decode(&b"\x0a\x7f"[..]).unwrap_err();
        assert_eq!(refusal(&error).reason, Reason::MalformedFrame);
    }
}
