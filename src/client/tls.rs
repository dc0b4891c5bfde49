//! What a client knows of TLS: whom it believes, and what it shows.

use std::fmt;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::Error;

/// Whom a client believes, and what it shows, for gateways at `https://`. All in PEM.
#[derive(Clone, Default)]
pub struct Tls {
    /// The roots that the gateway's certificate may come from; the system's, where none are given.
    pub roots: Option<Vec<u8>>,
    /// A certificate of the client's own, with its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Has the endpoint speak TLS, if its address says so.
    pub(super) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        if endpoint.uri().scheme_str() != Some("https") {
            return match self.roots.is_none() && self.identity.is_none() {
                true => Ok(endpoint),
                false => Err(Error::usage(format!(
                    "{}: certificates are of use only where the address begins with https://",
                    endpoint.uri()
                ))),
            };
        }
        if self.roots.as_deref().is_some_and(|roots| !has_certificate(roots)) {
            return Err(Error::usage("the roots to believe hold no certificate in PEM"));
        }
        let mut config = match &self.roots {
            Some(roots) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        endpoint.tls_config(config).map_err(|error| {
            Error::usage(format!(
                "the certificates cannot be used: {}",
                super::error::innermost(&error)
            ))
        })
    }
}

fn has_certificate(pem: &[u8]) -> bool {
    CertificateDer::pem_slice_iter(pem)
        .next()
        .is_some_and(|found| found.is_ok())
}

impl fmt::Debug for Tls {
    /// The key is nobody's to see.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("has_roots", &self.roots.is_some())
            .field("has_identity", &self.identity.is_some())
            .finish()
    }
}
