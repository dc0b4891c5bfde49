//! TLS: what the gateway shows, whom it asks for certificates, and the files that both come from, which may change at any time.
//!
//! A change that cannot be used leaves what was in force; connections that are there go on with what they began with.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{ClientCertificates, Tls, TlsVersion};
use crate::transport::tcp::ClientCertificate;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// What is wrong with the files.
#[derive(Debug, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Shakes hands, with what the files held when they were last good.
#[derive(Clone)]
pub struct Identity {
    shared: Arc<Shared>,
}

struct Shared {
    files: Files,
    now: Mutex<Now>,
}

struct Now {
    config: Arc<ServerConfig>,
    stamps: Vec<Option<Stamp>>,
}

/// Where everything is, and what is to be made of it.
#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_certificates: ClientCertificates,
    min_version: TlsVersion,
}

/// What tells one state of a file from another, also where one took the other's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    place: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What a look at the files found.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Same,
    Replaced,
    Unusable(Error),
}

impl Identity {
    /// What the settings name, if they ask for TLS.
    pub fn load(tls: &Tls) -> Result<Option<Self>, Error> {
        let (Some(certificate), Some(key)) = (tls.certificate.clone(), tls.key.clone()) else {
            return Ok(None);
        };
        let files = Files {
            certificate,
            key,
            client_ca: tls.client_ca.clone(),
            client_certificates: tls.client_certificates,
            min_version: tls.min_version,
        };
        let stamps = files.stamps();
        let config = files.load()?;
        let now = Mutex::new(Now { config, stamps });
        Ok(Some(Self {
            shared: Arc::new(Shared { files, now }),
        }))
    }

    /// Shakes hands, and says whose certificate the peer has shown.
    pub async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(Box<TlsStream<TcpStream>>, Option<ClientCertificate>)> {
        let config = Arc::clone(&self.shared.now().config);
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(<[_]>::first);
        let certificate = shown.map(|leaf| ClientCertificate(Bytes::copy_from_slice(leaf)));
        Ok((Box::new(stream), certificate))
    }

    /// Looks at the files from time to time, and takes what is new.
    pub async fn watch(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let identity = self.clone();
            match tokio::task::spawn_blocking(move || identity.look()).await {
                Ok(Look::Same) => {}
                Ok(Look::Replaced) => tracing::info!("the certificate was replaced"),
                Ok(Look::Unusable(error)) => {
                    tracing::warn!(%error, "new files for TLS cannot be used; the old ones stay in force")
                }
                Err(error) => tracing::error!(%error, "the files for TLS were not looked at"),
            }
        }
    }

    fn look(&self) -> Look {
        let files = &self.shared.files;
        // Taken before the files are read: what changes meanwhile is seen the next time.
        let stamps = files.stamps();
        if self.shared.now().stamps == stamps {
            return Look::Same;
        }
        let loaded = files.load();
        let mut now = self.shared.now();
        now.stamps = stamps;
        match loaded {
            Ok(config) => {
                now.config = config;
                Look::Replaced
            }
            Err(error) => Look::Unusable(error),
        }
    }
}

impl Shared {
    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn stamps(&self) -> Vec<Option<Stamp>> {
        let all = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        all.into_iter().flatten().map(|path| Stamp::of(path)).collect()
    }

    fn load(&self) -> Result<Arc<ServerConfig>, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates("tls.certificate", &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read("tls.key", &self.key)?)
            .map_err(|error| unusable("tls.key", &self.key, format!("holds no private key in PEM: {error}")))?;
        let versions = match self.min_version {
            TlsVersion::V1_2 => &VERSIONS[..],
            TlsVersion::V1_3 => &VERSIONS[..1],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|error| Error(format!("tls.min_version: {error}")))?;
        let builder = match self.verifier(&provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            let why = format!("and tls.key = {} do not go together: {error}", self.key.display());
            unusable("tls.certificate", &self.certificate, why)
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if self.client_certificates == ClientCertificates::Off {
            config.ticketer =
                aws_lc_rs::Ticketer::new().map_err(|error| Error(format!("no tickets can be made: {error}")))?;
        } else {
            // A resumed session would stand on a certificate that was looked at long ago.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Arc::new(config))
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Option<Arc<dyn ClientCertVerifier>>, Error> {
        let (Some(path), true) = (&self.client_ca, self.client_certificates != ClientCertificates::Off) else {
            return Ok(None);
        };
        let bad = |error: &dyn fmt::Display| unusable("tls.client_ca", path, format!("cannot be used: {error}"));
        let mut roots = RootCertStore::empty();
        for certificate in certificates("tls.client_ca", path)? {
            roots.add(certificate).map_err(|error| bad(&error))?;
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        if self.client_certificates == ClientCertificates::Optional {
            builder = builder.allow_unauthenticated();
        }
        builder.build().map(Some).map_err(|error| bad(&error))
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            place: (found.dev(), found.ino()),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| unusable(setting, path, format!("cannot be read: {error}")))
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(setting, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(setting, path, "holds no certificate in PEM")),
        Err(error) => Err(unusable(setting, path, format!("is not PEM: {error}"))),
    }
}

fn unusable(setting: &str, path: &Path, why: impl fmt::Display) -> Error {
    Error(format!("{setting} = {}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    /// A folder with a certificate and its key; it is gone when the test is.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("twinspan-tls-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        /// As tools do that never let anybody see half a file.
        fn replace(&self, name: &str, text: &str) {
            self.write("new", text);
            fs::rename(self.0.join("new"), self.0.join(name)).unwrap();
        }

        fn tls(&self) -> Tls {
            Tls {
                certificate: Some(self.0.join("cert.pem")),
                key: Some(self.0.join("key.pem")),
                ..Tls::default()
            }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    fn in_force(identity: &Identity) -> Arc<ServerConfig> {
        Arc::clone(&identity.shared.now().config)
    }

    #[test]
    fn a_pair_that_is_replaced_in_two_steps_is_taken_after_the_second() {
        let folder = Folder::new("steps");
        let ((cert, key), (new_cert, new_key)) = (pair(), pair());
        folder.write("cert.pem", &cert);
        folder.write("key.pem", &key);
        let identity = Identity::load(&folder.tls()).unwrap().unwrap();
        let first = in_force(&identity);
        assert_eq!(identity.look(), Look::Same);
        folder.replace("cert.pem", &new_cert);
        assert!(matches!(identity.look(), Look::Unusable(_)));
        // It is told once, and what was in force is.
        assert_eq!(identity.look(), Look::Same);
        assert!(Arc::ptr_eq(&first, &in_force(&identity)));
        folder.replace("key.pem", &new_key);
        assert_eq!(identity.look(), Look::Replaced);
        assert!(!Arc::ptr_eq(&first, &in_force(&identity)));
    }

    #[test]
    fn what_cannot_be_used_leaves_what_was() {
        let folder = Folder::new("broken");
        let (cert, key) = pair();
        folder.write("cert.pem", &cert);
        folder.write("key.pem", &key);
        let identity = Identity::load(&folder.tls()).unwrap().unwrap();
        let first = in_force(&identity);
        folder.write("cert.pem", "nothing of the kind");
        assert!(matches!(identity.look(), Look::Unusable(_)));
        folder.write("cert.pem", &cert[..cert.len() / 2]);
        assert!(matches!(identity.look(), Look::Unusable(_)));
        fs::remove_file(folder.0.join("cert.pem")).unwrap();
        assert!(matches!(identity.look(), Look::Unusable(_)));
        assert!(Arc::ptr_eq(&first, &in_force(&identity)));
        folder.write("cert.pem", &cert);
        assert_eq!(identity.look(), Look::Replaced);
    }

    #[test]
    fn what_is_wrong_names_the_setting_and_the_file() {
        let folder = Folder::new("wrong");
        let ((cert, key), (_, other)) = (pair(), pair());
        let loaded = |tls: &Tls| Identity::load(tls).err().unwrap().to_string();
        let missing = loaded(&folder.tls());
        assert!(
            missing.starts_with("tls.certificate = ") && missing.contains("cannot be read"),
            "{missing}"
        );
        folder.write("cert.pem", &cert);
        folder.write("key.pem", "");
        assert!(loaded(&folder.tls()).contains("key.pem: holds no private key in PEM"));
        folder.write("key.pem", &other);
        assert!(loaded(&folder.tls()).contains("do not go together"));
        folder.write("key.pem", &key);
        folder.write("ca.pem", "");
        let mut tls = folder.tls();
        (tls.client_ca, tls.client_certificates) = (Some(folder.0.join("ca.pem")), ClientCertificates::Required);
        assert!(loaded(&tls).contains("ca.pem: holds no certificate in PEM"));
        assert!(Identity::load(&Tls::default()).unwrap().is_none());
    }
}
