//! Twinspan: a session gateway with two faces. Backends dial in over gRPC, browsers over WebSocket; both meet in one
//! session router. See `docs/ARCHITECTURE.md` for the map.

pub mod auth;
pub mod cli;
pub mod client;
pub mod config;
pub mod connection;
pub mod edge;
pub mod error;
pub mod frame;
pub mod limits;
pub mod log;
pub mod router;
pub mod server;
pub mod session;
pub mod telemetry;
pub mod transport;
