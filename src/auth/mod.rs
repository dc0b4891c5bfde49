//! Who a peer is, and what it may do.
//!
//! It must never know a connection, a session or a transport: credentials go in, identities come out.

mod api_keys;
mod authenticator;
mod certificates;
mod deeds;
mod files;
mod grants;
mod issuer;
mod jws;
mod keys;
pub mod mint;
mod remote;
mod revocations;
mod settings;
#[cfg(test)]
mod tests;

use std::str::FromStr;
use std::time::SystemTime;

use prost_types::Timestamp;

pub use authenticator::{Authenticator, Error, Secret};
pub use deeds::{Deed, Need, Place, Reach, markdown};
pub use grants::{Grant, Grants, Permission};
pub use revocations::{Revocation, Revoked};
pub use settings::{CertificateRule, IssuerSettings, Settings};

use crate::error::{Reason, Refusal};
use crate::frame::Str;

/// The issuer of identities that come from API keys.
const API_KEYS: &str = "twinspan:api-keys";

/// Who a peer has proved to be.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Who; empty on a gateway that authenticates nobody.
    pub subject: Str,
    /// Which credential: the `jti` of a token, the id of an API key, the serial number of a certificate; may be empty.
    pub token_id: Str,
    /// Who says so.
    pub issuer: Str,
    /// Since when.
    pub issued_at: Option<SystemTime>,
    /// Until when.
    pub expires_at: Option<SystemTime>,
    /// What it may do.
    pub grants: Grants,
}

/// The answer to a credential that proves nothing.
fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(Reason::Unauthenticated, message)
}

/// What a stranger said, so that it can be shown: escaped, and cut.
fn quoted(said: &str) -> String {
    const CHARACTERS: usize = 64;
    let short: String = said.chars().take(CHARACTERS).collect();
    let more = if short.len() < said.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

/// A time as files have it (RFC 3339).
fn moment(text: &str) -> Result<SystemTime, String> {
    let at = Timestamp::from_str(text)
        .ok()
        .and_then(|at| SystemTime::try_from(at).ok());
    at.ok_or_else(|| format!("{text:?}, which is not a time such as 2030-01-31T12:00:00Z"))
}

/// Subjects are in frames, in patterns and in logs: they must be plain.
fn check_subject(subject: &str) -> Result<(), String> {
    let is_plain = subject.bytes().all(|byte| byte.is_ascii_graphic());
    match is_plain && (1..=128).contains(&subject.len()) {
        true => Ok(()),
        false => Err(format!(
            "is not 1 to 128 printable ASCII characters without spaces: {}",
            quoted(subject)
        )),
    }
}
