//! What a client shows to say who it is: a token or an API key, with everything that it sends. It is never logged.

use std::fmt;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::Error;

/// A credential, or none.
#[derive(Clone, Default)]
pub struct Credential(Option<MetadataValue<Ascii>>);

impl Credential {
    /// A token, or an API key.
    pub fn new(secret: &str) -> Result<Self, Error> {
        let value = format!("Bearer {}", secret.trim()).parse::<MetadataValue<Ascii>>();
        match value {
            Ok(mut value) if !secret.trim().is_empty() => {
                value.set_sensitive(true);
                Ok(Self(Some(value)))
            }
            _ => Err(Error::usage("the credential is empty, or has characters that none has")),
        }
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.show(&mut request);
        Ok(request)
    }
}

impl Credential {
    /// Shows it with a request.
    pub(super) fn show<T>(&self, request: &mut Request<T>) {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "…" } else { "none" })
    }
}
