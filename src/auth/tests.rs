//! What the tests of this room share.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A folder of a test's own; it is gone when the test is.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("twinspan-auth-{}-{count}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes the file anew, in one step.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// What the server of key sets answers.
#[derive(Clone)]
pub enum Answer {
    /// This set.
    Set(String),
    /// Nothing: the connection is cut.
    Cut,
    /// Nothing, for ever.
    Silence,
    /// To look elsewhere.
    Redirect(String),
}

/// A server of key sets, on loopback, that counts what it is asked.
pub struct Publisher {
    pub url: String,
    answer: Arc<Mutex<Answer>>,
    asked: watch::Receiver<u32>,
    serving: JoinHandle<()>,
}

impl Publisher {
    pub async fn new(answer: Answer) -> Self {
        Self::serve(answer, None).await
    }

    /// The same over https; also the authority's certificate, in PEM.
    pub async fn with_tls(answer: Answer) -> (Self, String) {
        let pair = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.self_signed(&pair).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(config));
        (Self::serve(answer, Some(tls)).await, certificate.pem())
    }

    async fn serve(answer: Answer, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/keys", listener.local_addr().unwrap());
        let answer = Arc::new(Mutex::new(answer));
        let (count, asked) = watch::channel(0);
        let current = Arc::clone(&answer);
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.send_modify(|count| *count += 1);
                let answer = current.lock().unwrap().clone();
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, answer).await,
                        // Who does not trust it hangs up.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            url,
            answer,
            asked,
            serving,
        }
    }

    pub fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    pub fn asked(&self) -> u32 {
        *self.asked.borrow()
    }

    /// Waits until it was asked so often.
    pub async fn is_asked(&mut self, times: u32) {
        self.asked.wait_for(|asked| *asked >= times).await.unwrap();
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: Answer) {
    let mut request = [0; 4096];
    if stream.read(&mut request).await.is_err() {
        return;
    }
    let said = match answer {
        Answer::Set(set) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{set}", set.len()),
        Answer::Redirect(to) => format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"),
        Answer::Cut => return,
        Answer::Silence => std::future::pending().await,
    };
    stream.write_all(said.as_bytes()).await.ok();
    stream.shutdown().await.ok();
}

/// A set with an Ed25519 key by each of these names.
pub fn set_of(names: &[&str]) -> Answer {
    let key = |name: &&str| {
        format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{name}","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}}"#)
    };
    let keys: Vec<_> = names.iter().map(key).collect();
    Answer::Set(format!(r#"{{"keys":[{}]}}"#, keys.join(",")))
}
