//! The edge: who may speak to the gateway from where, as far as addresses and origins tell. Pure: it opens no socket, and knows
//! neither settings nor sessions.

mod origins;
mod proxies;

pub use origins::{Origins, Pattern};
pub use proxies::{Forwarding, Proxies};
