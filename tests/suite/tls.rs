//! TLS: both faces on one port, certificates that are replaced, and peers that speak something else.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use twinspan::client::{Client, Origin, Tls};
use twinspan::config::{ClientCertificates, Config, TlsVersion};
use twinspan::router::{Arrival, Form};

use crate::harness::*;
use crate::scenarios;

scenarios! {
    both_faces_meet_over_tls
    large_messages_arrive_whole
}

const ALL: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// A folder with a root and what it has signed; it is gone when the test is.
struct Folder {
    path: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.path).ok();
    }
}

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("twinspan-suite-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        fs::create_dir_all(&path).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let root = KeyPair::generate().unwrap();
        fs::write(path.join("ca.pem"), params.self_signed(&root).unwrap().pem()).unwrap();
        let folder = Self {
            path,
            issuer: Issuer::new(params, root),
        };
        folder.sign("gateway");
        folder.sign("backend");
        folder
    }

    /// Makes a certificate and its key, or replaces them.
    fn sign(&self, file: &str) {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        for (ending, text) in [("pem", certificate.pem()), ("key", key.serialize_pem())] {
            fs::write(self.path.join("new"), text).unwrap();
            fs::rename(self.path.join("new"), self.path.join(format!("{file}.{ending}"))).unwrap();
        }
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path.join(file)).unwrap()
    }

    fn certificate(&self, file: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path.join(file)).unwrap()
    }

    fn serve(&self, config: &mut Config) {
        config.tls.certificate = Some(self.path.join("gateway.pem"));
        config.tls.key = Some(self.path.join("gateway.key"));
    }

    async fn gateway(&self) -> Gateway {
        Gateway::with(|config| self.serve(config)).await
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate("ca.pem")).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// Shows the backend's certificate to whoever asks.
    fn resolver(&self) -> Arc<rustls::sign::SingleCertAndKey> {
        let key = PrivateKeyDer::from_pem_file(self.path.join("backend.key")).unwrap();
        let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let certificate = rustls::sign::CertifiedKey::new(vec![self.certificate("backend.pem")], key);
        Arc::new(certificate.into())
    }

    async fn peer(&self, gateway: &Gateway, face: Face) -> Peer {
        let protocol = match face {
            Face::Json => "twinspan.v1.json",
            Face::Binary => "twinspan.v1.proto",
            Face::Grpc => {
                let trust = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.read("ca.pem")));
                let endpoint = Endpoint::from_shared(format!("https://{}", gateway.address)).unwrap();
                let peer = Peer::grpc_at(endpoint.tls_config(trust).unwrap(), None).await;
                return peer.unwrap();
            }
        };
        let socket = connect(gateway, self.client(&ALL, &["http/1.1"])).await.unwrap();
        Peer::websocket_over(Box::new(socket), "localhost/v1/ws", Some(protocol)).await
    }

    async fn member(&self, gateway: &Gateway, face: Face) -> Peer {
        let mut peer = self.peer(gateway, face).await;
        peer.join("s", Default::default()).await;
        peer
    }
}

async fn connect(gateway: &Gateway, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(gateway.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    patiently("a TLS handshake", connector.connect(name, socket)).await
}

/// What a peer that sends these bytes is told before the connection ends.
async fn told(gateway: &Gateway, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut told = Vec::new();
    // A reset ends it as well.
    patiently("the end", socket.read_to_end(&mut told)).await.ok();
    told
}

async fn both_faces_meet_over_tls(one: Face, other: Face) {
    let folder = Folder::new();
    let gateway = folder.gateway().await;
    let mut ann = folder.member(&gateway, one).await;
    let mut bob = folder.member(&gateway, other).await;
    ann.send(text("s", "x", "within TLS")).await;
    assert_eq!(bob.logged().await.id.as_str(), "x");
    ann.acked("x").await;
    gateway.stopped().await;
}

async fn large_messages_arrive_whole(one: Face, other: Face) {
    let folder = Folder::new();
    let gateway = folder.gateway().await;
    let mut ann = folder.member(&gateway, one).await;
    let mut bob = folder.member(&gateway, other).await;
    // Far more than TLS takes at once.
    let long = "x".repeat(300_000);
    for number in 0..8 {
        ann.send(text("s", &format!("x{number}"), &long)).await;
    }
    for number in 0..8 {
        let frame = bob.next().await;
        assert_eq!(frame.id.as_str(), format!("x{number}"));
    }
    // She has not read her own copies, for which the drain would wait.
    drop(ann);
    gateway.stopped().await;
}

#[tokio::test]
async fn the_protocol_is_agreed_on_in_the_handshake() {
    let folder = Folder::new();
    let gateway = folder.gateway().await;
    for (offered, agreed) in [
        (&["h2"][..], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&["http/1.1", "h2"], Some("h2")),
        (&[], None),
    ] {
        let socket = connect(&gateway, folder.client(&ALL, offered)).await.unwrap();
        let (_, session) = socket.get_ref();
        assert_eq!(session.alpn_protocol(), agreed.map(str::as_bytes), "{offered:?}");
    }
    assert!(connect(&gateway, folder.client(&ALL, &["spdy/3"])).await.is_err());
    gateway.stopped().await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_and_old_connections_go_on() {
    let folder = Folder::new();
    let gateway = folder.gateway().await;
    let mut ann = folder.member(&gateway, Face::Json).await;
    let mut bob = folder.member(&gateway, Face::Grpc).await;
    folder.sign("gateway");
    let new = folder.certificate("gateway.pem");
    let replaced = async {
        loop {
            let socket = connect(&gateway, folder.client(&ALL, &[])).await.unwrap();
            if socket.get_ref().1.peer_certificates().unwrap()[0] == new {
                return;
            }
        }
    };
    patiently("the new certificate", replaced).await;
    ann.send(text("s", "x", "as before")).await;
    assert_eq!(bob.logged().await.id.as_str(), "x");
    gateway.stopped().await;
}

#[tokio::test]
async fn versions_below_the_lowest_are_refused() {
    let folder = Folder::new();
    let strict = Gateway::with(|config| {
        folder.serve(config);
        config.tls.min_version = TlsVersion::V1_3;
    })
    .await;
    assert!(connect(&strict, folder.client(&[&version::TLS12], &[])).await.is_err());
    assert!(connect(&strict, folder.client(&[&version::TLS13], &[])).await.is_ok());
    strict.stopped().await;
    let usual = folder.gateway().await;
    assert!(connect(&usual, folder.client(&[&version::TLS12], &[])).await.is_ok());
    usual.stopped().await;
}

#[tokio::test]
async fn plaintext_is_spoken_beside_tls() {
    let folder = Folder::new();
    let gateway = Gateway::with(|config| {
        folder.serve(config);
        config.plaintext_listen = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    let mut ann = folder.member(&gateway, Face::Json).await;
    let mut bob = Peer::at(gateway.plaintext.unwrap(), Face::Grpc).await;
    bob.join("s", Default::default()).await;
    bob.send(text("s", "x", "in the open")).await;
    assert_eq!(ann.logged().await.id.as_str(), "x");
    gateway.stopped().await;
}

#[tokio::test]
async fn who_speaks_something_else_is_soon_told_so() {
    let folder = Folder::new();
    // None of it is to end by the time limit.
    let long = |config: &mut Config| config.limits.handshake = 10 * PATIENCE;
    let secure = Gateway::with(|config| {
        folder.serve(config);
        long(config);
    })
    .await;
    assert!(
        !told(&secure, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .starts_with(b"HTTP")
    );
    assert!(
        !told(&secure, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .starts_with(b"HTTP")
    );
    secure.stopped().await;
    let open = Gateway::with(long).await;
    assert!(connect(&open, folder.client(&ALL, &[])).await.is_err());
    open.stopped().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_go_on_ends() {
    let folder = Folder::new();
    let gateway = Gateway::with(|config| {
        folder.serve(config);
        config.limits.handshake = Duration::from_millis(100);
    })
    .await;
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"] {
        assert_eq!(told(&gateway, begun).await, b"", "{begun:?}");
    }
    // One that was completed, and asks for nothing.
    let mut socket = connect(&gateway, folder.client(&ALL, &[])).await.unwrap();
    let mut nothing = Vec::new();
    patiently("the end", socket.read_to_end(&mut nothing)).await.ok();
    assert_eq!(nothing, b"");
    gateway.stopped().await;
}

#[tokio::test]
async fn sessions_of_tls_are_resumed_unless_certificates_are_asked_for() {
    let folder = Folder::new();
    for (asked, resumed) in [(ClientCertificates::Off, true), (ClientCertificates::Optional, false)] {
        let gateway = Gateway::with(|config| {
            folder.serve(config);
            config.tls.client_ca = Some(folder.path.join("ca.pem"));
            config.tls.client_certificates = asked;
        })
        .await;
        let config = folder.client(&ALL, &["http/1.1"]);
        let mut kind = None;
        for _ in 0..2 {
            let mut socket = connect(&gateway, config.clone()).await.unwrap();
            // Tickets come after the handshake, before the answer.
            let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            socket.write_all(request).await.unwrap();
            let mut answer = Vec::new();
            patiently("an answer", socket.read_to_end(&mut answer)).await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200"));
            kind = socket.get_ref().1.handshake_kind();
        }
        assert_eq!(kind == Some(rustls::HandshakeKind::Resumed), resumed, "{asked:?}");
        gateway.stopped().await;
    }
}

#[tokio::test]
async fn the_client_shows_what_it_is_given() {
    let folder = Folder::new();
    let gateway = Gateway::with(|config| {
        folder.serve(config);
        config.tls.client_ca = Some(folder.path.join("ca.pem"));
        config.tls.client_certificates = ClientCertificates::Required;
    })
    .await;
    let url = format!("https://{}", gateway.address);
    let roots = Some(folder.read("ca.pem"));
    let identity = Some((folder.read("backend.pem"), folder.read("backend.key")));
    let shown = Tls {
        roots: roots.clone(),
        identity: identity.clone(),
    };
    let client = Client::connect_with(&url, &shown).await.unwrap();
    client.attach().await.unwrap().close().await.unwrap();
    let bare = Tls { roots, identity: None };
    let refused = match Client::connect_with(&url, &bare).await {
        Ok(client) => client.attach().await.map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(refused.unwrap_err().origin, Origin::Transport);
    let open = Client::connect_with(&format!("http://{}", gateway.address), &shown).await;
    assert_eq!(open.unwrap_err().origin, Origin::Usage);
    let empty = Tls {
        roots: Some(folder.read("backend.key")),
        identity: None,
    };
    let unbelieving = Client::connect_with(&url, &empty).await;
    assert_eq!(unbelieving.unwrap_err().origin, Origin::Usage);
    gateway.stopped().await;
}

#[tokio::test]
async fn the_client_says_what_to_do_about_tls() {
    let folder = Folder::new();
    let (secure, open) = (folder.gateway().await, Gateway::start().await);
    let trust = Tls {
        roots: Some(folder.read("ca.pem")),
        identity: None,
    };
    let strangers = Tls {
        roots: Some(Folder::new().read("ca.pem")),
        identity: None,
    };
    for (url, tls, hint) in [
        (
            format!("http://{}", secure.address),
            Tls::default(),
            "begins with https://",
        ),
        (format!("https://{}", open.address), trust, "begins with http://"),
        (format!("https://{}", secure.address), strangers, "--ca FILE"),
    ] {
        let told = match Client::connect_with(&url, &tls).await {
            Ok(client) => patiently("a refusal", client.attach()).await.map(drop),
            Err(error) => Err(error),
        };
        let told = told.unwrap_err();
        assert!(told.message.contains(hint), "{told}");
    }
    secure.stopped().await;
    open.stopped().await;
}

#[tokio::test]
async fn a_certificate_says_who_it_is_on_either_face() {
    let folder = Folder::new();
    let gateway = Gateway::with(|config| {
        folder.serve(config);
        config.tls.client_ca = Some(folder.path.join("ca.pem"));
        config.tls.client_certificates = ClientCertificates::Optional;
        let rule = serde_json::json!({
            "san_dns": "localhost",
            "subject": "backend-of-{0}",
            "grants": [{"sessions": ["s"], "can": ["create", "read", "send"]}],
        });
        config.auth.certificates = vec![serde_json::from_value(rule).unwrap()];
    })
    .await;
    let shown = Tls {
        roots: Some(folder.read("ca.pem")),
        identity: Some((folder.read("backend.pem"), folder.read("backend.key"))),
    };
    let url = format!("https://{}", gateway.address);
    let client = Client::connect_with(&url, &shown).await.unwrap();
    let mut connection = client.attach().await.unwrap();
    let welcome = connection.hello(Default::default()).await.unwrap();
    assert_eq!(welcome.subject, "backend-of-localhost");
    assert!(welcome.expires_at.is_some());
    connection.join("s", Default::default()).await.unwrap();
    let refused = connection.join("t", Default::default()).await.unwrap_err();
    assert_eq!(refused.reason, "PERMISSION_DENIED");

    let mut config = folder.client(&ALL, &["http/1.1"]);
    config.client_auth_cert_resolver = folder.resolver();
    let socket = connect(&gateway, config).await.unwrap();
    let mut peer = Peer::websocket_over(Box::new(socket), "localhost/v1/ws", None).await;
    peer.send(text("s", "x", "hello")).await;
    assert_eq!(peer.acked("x").await.seq, 1);
    // Without one, it is as if nothing was said.
    let mut stranger = folder.peer(&gateway, Face::Json).await;
    stranger.send(text("s", "x", "hello")).await;
    assert_eq!(stranger.ended().await.reason().as_deref(), Some("UNAUTHENTICATED"));
    gateway.stopped().await;
}

/// Keeps what is written until it is flushed, as TLS does while the socket is full.
#[derive(Clone, Default)]
struct Holding(Arc<Mutex<(Vec<u8>, Vec<u8>)>>);

impl AsyncRead for Holding {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Holding {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap().0.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (held, sent) = &mut *self.0.lock().unwrap();
        sent.append(held);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[tokio::test]
async fn nothing_is_left_within_the_socket() {
    let gateway = Gateway::start().await;
    let socket = Holding::default();
    let arrival = Arrival {
        life: gateway.router.life(),
        identity: Some(gateway.router.nobody()),
    };
    let link = gateway
        .router
        .attach(Form::Json, Some(Box::pin(socket.clone())), arrival)
        .unwrap();
    link.push_first(b"a message".as_slice().into());
    link.kick();
    let (held, sent) = socket.0.lock().unwrap().clone();
    assert_eq!((held.as_slice(), sent.as_slice()), (&b""[..], &b"a message"[..]));
}
