//! The transports: bytes to messages and back, nothing else. None of them knows what a session is.

pub mod credentials;
pub mod frames;
pub mod grpc;
pub mod http;
pub mod meter;
pub mod origins;
pub mod proxy;
pub mod tcp;
pub mod websocket;
