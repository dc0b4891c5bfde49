//! Connections from outside, over real sockets: what is known of who they are.

use std::path::PathBuf;

use axum::body::Body;
use axum::routing::get;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::{ClientCertificates, Config, Tls};
use crate::edge::Forwarding;
use crate::frame::Types;
use crate::log::Memory;
use crate::router::Parts;

/// Says whose request it is.
async fn echo(request: Request<Body>) -> String {
    let client: &Client = request.extensions().get().unwrap();
    let shown = request.extensions().get::<ClientCertificate>();
    let shown = shown.map_or(0, |certificate| certificate.0.len());
    let (spoken, kind) = (
        if client.is_tls { "tls" } else { "plaintext" },
        if client.is_trusted_proxy { "proxy" } else { "client" },
    );
    format!("{} {spoken} {kind} {shown}", client.address.ip())
}

struct Gateway {
    address: SocketAddr,
    _closing: watch::Sender<bool>,
}

impl Gateway {
    async fn with(proxies: Proxies, tls: &Tls) -> Self {
        let config = Config::default();
        let router = Router::start(Parts {
            auth: crate::auth::Authenticator::nobody(),
            limits: config.limits,
            log: Arc::new(Memory::new(config.retention)),
            types: Arc::new(Types::default()),
            routes: std::collections::HashMap::new(),
            keep: config.retention.keep(),
            idle: config.idle,
            unload: Duration::from_secs(60),
            fold: config.fold,
        });
        let services = HttpRouter::new().route("/", get(echo));
        let (closing, closed) = watch::channel(false);
        let serving = Serving {
            router,
            guarded: services.clone(),
            services,
            proxies: Arc::new(proxies),
            closed,
        };
        let identity = Identity::load(tls).unwrap();
        let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), identity)
            .await
            .unwrap();
        let address = listener.address();
        tokio::spawn(async move { listener.accept(serving).await });
        Self {
            address,
            _closing: closing,
        }
    }

    async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// What a plaintext connection that begins so is told; nothing, if it is closed.
    async fn told(&self, preface: &[u8], headers: &str) -> String {
        let mut socket = self.socket().await;
        socket.write_all(preface).await.unwrap();
        ask(socket, headers).await
    }
}

async fn ask(mut socket: impl AsyncRead + AsyncWrite + Unpin, headers: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n{headers}\r\n");
    // A connection that is refused may be gone before all is written.
    socket.write_all(request.as_bytes()).await.ok();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.ok();
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => body.to_owned(),
        Some((head, _)) => head.lines().next().unwrap_or_default().to_owned(),
        None => String::new(),
    }
}

fn trusting(network: &str, headers: Forwarding) -> Proxies {
    Proxies {
        trusted: vec![network.parse().unwrap()],
        protocol: false,
        headers,
    }
}

#[tokio::test]
async fn a_trusted_proxy_names_its_client_in_headers() {
    let gateway = Gateway::with(trusting("127.0.0.0/8", Forwarding::XForwardedFor), &Tls::default()).await;
    for (headers, expected) in [
        ("", "127.0.0.1 plaintext proxy 0"),
        ("X-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1 plaintext client 0"),
        (
            "X-Forwarded-For: 6.6.6.6, 192.0.2.1, 127.0.0.9\r\n",
            "192.0.2.1 plaintext client 0",
        ),
        (
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.1\r\n",
            "192.0.2.1 plaintext client 0",
        ),
        ("X-Forwarded-For: 127.0.0.7\r\n", "127.0.0.7 plaintext proxy 0"),
        ("X-Forwarded-For: garbage\r\n", "127.0.0.1 plaintext proxy 0"),
        ("Forwarded: for=192.0.2.1\r\n", "127.0.0.1 plaintext proxy 0"),
    ] {
        assert_eq!(gateway.told(b"", headers).await, expected, "{headers}");
    }
    let gateway = Gateway::with(trusting("127.0.0.0/8", Forwarding::Forwarded), &Tls::default()).await;
    let header = "Forwarded: for=6.6.6.6, for=\"[2001:db8::1]:99\", for=127.0.0.2\r\n";
    assert_eq!(gateway.told(b"", header).await, "2001:db8::1 plaintext client 0");
}

#[tokio::test]
async fn nobody_else_names_a_client() {
    for proxies in [
        Proxies::default(),
        trusting("10.0.0.0/8", Forwarding::XForwardedFor),
        trusting("127.0.0.0/8", Forwarding::Off),
    ] {
        let kind = if proxies.trust([127, 0, 0, 1].into()) {
            "proxy"
        } else {
            "client"
        };
        let gateway = Gateway::with(proxies, &Tls::default()).await;
        let headers = "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\n";
        assert_eq!(
            gateway.told(b"", headers).await,
            format!("127.0.0.1 plaintext {kind} 0")
        );
    }
}

#[tokio::test]
async fn a_proxy_header_comes_before_everything_from_trusted_addresses_only() {
    let mut proxies = trusting("127.0.0.0/8", Forwarding::XForwardedFor);
    proxies.protocol = true;
    let gateway = Gateway::with(proxies.clone(), &Tls::default()).await;
    let line = b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n";
    assert_eq!(gateway.told(line, "").await, "192.0.2.1 plaintext client 0");
    // Whom the header names is no proxy, and its own headers count for nothing.
    let spoofed = gateway.told(line, "X-Forwarded-For: 6.6.6.6\r\n").await;
    assert_eq!(spoofed, "192.0.2.1 plaintext client 0");
    // A proxy before the proxy: its word counts again.
    let chained = gateway
        .told(
            b"PROXY TCP4 127.0.0.5 10.0.0.1 4711 80\r\n",
            "X-Forwarded-For: 192.0.2.9\r\n",
        )
        .await;
    assert_eq!(chained, "192.0.2.9 plaintext client 0");
    assert_eq!(
        gateway.told(b"PROXY UNKNOWN\r\n", "").await,
        "127.0.0.1 plaintext proxy 0"
    );
    assert_eq!(
        gateway.told(b"", "").await,
        "",
        "without a header the connection is closed"
    );
    proxies.trusted = vec!["10.0.0.0/8".parse().unwrap()];
    let gateway = Gateway::with(proxies, &Tls::default()).await;
    assert_eq!(gateway.told(line, "").await, "HTTP/1.1 400 Bad Request");
    assert_eq!(gateway.told(b"", "").await, "127.0.0.1 plaintext client 0");
}

/// A folder with a root, the gateway's certificate and a client's.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("twinspan-accept-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = KeyPair::generate().unwrap();
        let write = |file: &str, text: String| std::fs::write(path.join(file), text).unwrap();
        write("ca.pem", params.self_signed(&root).unwrap().pem());
        let issuer = Issuer::new(params, root);
        for name in ["localhost", "backend"] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            write(&format!("{name}.pem"), params.signed_by(&key, &issuer).unwrap().pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Self(path)
    }

    fn tls(&self, client_certificates: ClientCertificates) -> Tls {
        Tls {
            certificate: Some(self.0.join("localhost.pem")),
            key: Some(self.0.join("localhost.key")),
            client_ca: Some(self.0.join("ca.pem")),
            client_certificates,
            ..Tls::default()
        }
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.0.join(name)).unwrap()
    }

    fn client(&self, shown: Option<&str>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate("ca.pem")).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.0.join(format!("{name}.key"))).unwrap();
                let chain = vec![self.certificate(&format!("{name}.pem"))];
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        TlsConnector::from(Arc::new(config))
    }
}

#[tokio::test]
async fn requests_carry_the_certificate_that_was_shown() {
    let folder = Folder::new("shown");
    let length = folder.certificate("backend.pem").len();
    for (asked, shown, expected) in [
        (ClientCertificates::Off, Some("backend"), Some(0)),
        (ClientCertificates::Optional, None, Some(0)),
        (ClientCertificates::Optional, Some("backend"), Some(length)),
        (ClientCertificates::Required, Some("backend"), Some(length)),
        (ClientCertificates::Required, None, None),
    ] {
        let gateway = Gateway::with(Proxies::default(), &folder.tls(asked)).await;
        let name = ServerName::try_from("localhost").unwrap();
        // In TLS 1.3 a client learns that it was refused from what comes after the handshake.
        let told = match folder.client(shown).connect(name, gateway.socket().await).await {
            Ok(socket) => ask(socket, "").await,
            Err(_) => String::new(),
        };
        let expected = expected.map_or_else(String::new, |length| format!("127.0.0.1 tls client {length}"));
        assert_eq!(told, expected, "{asked:?} {shown:?}");
    }
}

#[tokio::test]
async fn a_certificate_of_a_stranger_is_refused_where_one_is_optional() {
    let (folder, strangers) = (Folder::new("ours"), Folder::new("theirs"));
    let gateway = Gateway::with(Proxies::default(), &folder.tls(ClientCertificates::Optional)).await;
    // Believes our root, and shows what another one signed.
    std::fs::copy(folder.0.join("ca.pem"), strangers.0.join("ca.pem")).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let told = match strangers
        .client(Some("backend"))
        .connect(name, gateway.socket().await)
        .await
    {
        Ok(socket) => ask(socket, "").await,
        Err(_) => String::new(),
    };
    assert_eq!(told, "");
}

#[tokio::test]
async fn a_proxy_header_comes_before_tls() {
    let folder = Folder::new("before");
    let mut proxies = trusting("127.0.0.0/8", Forwarding::Off);
    proxies.protocol = true;
    let gateway = Gateway::with(proxies, &folder.tls(ClientCertificates::Off)).await;
    let mut socket = gateway.socket().await;
    socket
        .write_all(b"PROXY TCP6 2001:db8::1 ::1 4711 443\r\n")
        .await
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let socket = folder.client(None).connect(name, socket).await.unwrap();
    assert_eq!(ask(socket, "").await, "2001:db8::1 tls client 0");
}
