//! The transports: bytes to messages and back, nothing else. None of them knows what a session is.

mod frames;
pub mod grpc;
pub mod http;
mod meter;
pub mod tcp;
pub mod websocket;
