//! Who a peer is, and what it may do.
//!
//! It must never know a connection, a session or a transport: credentials go in, identities come out.

mod deeds;
mod grants;

use std::time::SystemTime;

pub use deeds::{Deed, Need, Place, Reach, markdown};
pub use grants::{Grant, Grants, Permission};

use crate::error::Refusal;
use crate::frame::Str;

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

impl Identity {
    /// Whoever comes to a gateway that authenticates nobody.
    pub fn nobody() -> Self {
        Self {
            subject: Str::EMPTY,
            token_id: Str::EMPTY,
            issuer: Str::EMPTY,
            issued_at: None,
            expires_at: None,
            grants: Grants::all(),
        }
    }
}

/// A credential, as it came.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A credential.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Tells who peers are.
#[derive(Clone, Debug, Default)]
pub struct Authenticator {}

impl Authenticator {
    /// One that authenticates nobody.
    pub fn nobody() -> Self {
        Self {}
    }

    /// Whether peers have to say who they are.
    pub fn is_required(&self) -> bool {
        false
    }

    /// Whether a credential may come in the URL.
    pub fn takes_query(&self) -> bool {
        false
    }

    /// Who brings this credential.
    pub async fn authenticate(&self, _secret: &Secret, _now: SystemTime) -> Result<Identity, Refusal> {
        Ok(Identity::nobody())
    }

    /// Whose certificate this is.
    pub fn certificate(&self, _der: &[u8], _now: SystemTime) -> Option<Result<Identity, Refusal>> {
        None
    }

    /// Whether an identity is still worth something.
    pub fn check_again(&self, _identity: &Identity, _now: SystemTime) -> Result<(), Refusal> {
        Ok(())
    }
}
