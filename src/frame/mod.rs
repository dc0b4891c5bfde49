//! The frame: its type, its two wire forms, and what is checked before one is let in.
//!
//! Owns everything that knows how bytes become frames and frames bytes. It must never know a session, a connection or a
//! socket. Whatever a decoder of this module has let through can be encoded in either form without an error.

mod any;
mod calls;
mod check;
mod fold;
mod json;
mod payload;
mod protojson;
mod scan;
mod sealed;
mod substance;
mod text;
mod transcode;
mod wire;

/// The generated types of `twinspan.v1`, with their ProtoJSON.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod pb {
    tonic::include_proto!("twinspan.v1");
    include!(concat!(env!("OUT_DIR"), "/protojson.rs"));
}

use std::sync::Arc;

use bytes::Bytes;

pub use any::Types;
pub use calls::CallCodec;
pub use check::{
    CANCEL_SECONDS, check_id, check_labels, check_metadata, check_name, check_retention, check_span, matches,
};
pub use fold::{FOLDED_BYTES, Run};
pub use payload::Payload;
pub use protojson::ProtoJson;
pub(crate) use protojson::check_timestamp;
pub use scan::MAX_DEPTH;
pub use sealed::{Form, Sealed};
pub use substance::SUBSTANCE_VERSION;
pub use text::Str;
pub(crate) use wire::{put_varint, take_varint};

use crate::error::Refusal;

/// The compiled `proto/`, as server reflection serves it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The one message of the protocol: `twinspan.v1.Frame`, with its text as slices of the buffer in which it arrived.
///
/// The fields are specified in `proto/twinspan/v1/frame.proto`.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "specified in the proto")]
pub struct Frame {
    pub id: Str,
    pub session_id: Str,
    pub r#type: Str,
    pub timestamp: Option<prost_types::Timestamp>,
    pub from: Option<Arc<pb::Address>>,
    pub to: Option<Arc<pb::Address>>,
    pub seq: u64,
    pub reply_to: Str,
    pub last: bool,
    pub ephemeral: bool,
    pub options: Option<Box<pb::RequestOptions>>,
    pub attempt: u32,
    pub metadata: Option<Box<Vec<(Str, Str)>>>,
    pub index: Option<u32>,
    pub folded_from: u64,
    pub body: Body,
}

/// `Frame.body`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Body {
    /// No body.
    #[default]
    None,
    /// Any JSON value.
    Payload(Payload),
    /// Raw bytes.
    Data(Bytes),
    /// A typed message.
    Message(Box<Any>),
    /// A piece of text.
    Text(Str),
    /// What went wrong.
    Error(Box<pb::Error>),
    /// About the connection or its place in a session.
    Control(Box<Control>),
}

/// `google.protobuf.Any`, as it crosses the gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Any {
    /// Such as `type.googleapis.com/acme.v1.Order`.
    pub type_url: Str,
    /// The message of that type, as protobuf.
    pub value: Bytes,
}

/// The bodies that are about the connection or its place in a session.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "specified in the proto")]
pub enum Control {
    Hello(pb::Hello),
    Welcome(pb::Welcome),
    Join(pb::Join),
    Joined(pb::Joined),
    Leave(pb::Leave),
    Left(pb::Left),
    Serve(pb::Serve),
    Serving(pb::Serving),
    Ack(pb::Ack),
    Cancel(pb::Cancel),
    CancelAck(pb::CancelAck),
    Gap(pb::Gap),
    Presence(pb::Presence),
    Ping(pb::Ping),
    Pong(pb::Pong),
    GoAway(pb::GoAway),
    SessionChanged(pb::SessionChanged),
    Restarted(pb::Restarted),
    Retired(pb::Retired),
    RequestChanged(pb::RequestChanged),
}

/// What a decoder is to hold a frame to.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Skip unknown members of JSON rather than refuse them.
    pub ignore_unknown: bool,
    /// The descriptors of typed messages.
    pub types: &'a Types,
}

/// Why bytes are not a frame, with what could be read of it, so that the answer can name what it answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Undecodable {
    /// The answer to the sender.
    pub refusal: Refusal,
    /// The frame's `id`, where it was read before the error.
    pub id: Str,
    /// The frame's `session_id`, likewise.
    pub session_id: Str,
}
