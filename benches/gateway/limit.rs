//! The limit of connections: how many of 20,000 WebSockets a gateway lets in that may have 10,000, what the others are told, and
//! what it takes; and how many handshakes it answers in a second.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::process::{Process, Server};
use crate::websocket::opening;
use crate::{Options, Result};

const ATTEMPTS: usize = 20_000;
const LIMIT: usize = 10_000;
const HANDSHAKES: usize = 5_000;
const PATIENCE: Duration = Duration::from_secs(10);

pub fn measure(options: &Options) -> Result<()> {
    let Some(server) = options.gateway() else {
        return Ok(());
    };
    println!("\nlimit: {ATTEMPTS} WebSockets, one after the other, of which {LIMIT} may be");
    at_the_limit(&server)?;
    let process = Process::start(&server)?;
    let plain = |gateway| attempt(gateway).map(drop);
    handshakes("plaintext", (&process, process.address()), plain)?;
    let folder = Folder::new()?;
    let process = Process::start_with(&server, &folder.settings())?;
    for (how, resumes) in [("TLS 1.3", false), ("TLS 1.3, resumed", true)] {
        let config = folder.client(resumes)?;
        handshakes(how, (&process, process.address()), |gateway| over_tls(gateway, &config))?;
    }
    Ok(())
}

fn at_the_limit(server: &Server) -> Result<()> {
    let process = Process::start_with(server, &[("TWINSPAN_LIMITS_CONNECTIONS", LIMIT.to_string())])?;
    let before = process.resident_bytes()?;
    let (mut held, mut told) = (Vec::new(), BTreeMap::<String, usize>::new());
    let (began, cpu) = (Instant::now(), process.cpu()?);
    for _ in 0..ATTEMPTS {
        let (socket, status) = attempt(process.address())?;
        if status.contains("101") {
            held.push(socket);
        }
        *told.entry(status).or_default() += 1;
    }
    let (took, cpu) = (began.elapsed(), process.cpu()? - cpu);
    let grown = process.resident_bytes()?.saturating_sub(before);
    for (status, count) in told {
        println!("{count:>8} {status}");
    }
    println!("{took:.2?}, {cpu:.2?} of CPU time, {} MiB more", grown >> 20);
    Ok(())
}

fn handshakes(
    how: &str,
    (process, gateway): (&Process, SocketAddr),
    shake: impl Fn(SocketAddr) -> Result<()>,
) -> Result<()> {
    let (began, cpu) = (Instant::now(), process.cpu()?);
    for _ in 0..HANDSHAKES {
        shake(gateway)?;
    }
    let (took, cpu) = (began.elapsed(), process.cpu()? - cpu);
    println!(
        "{how}: {:.0} handshakes in a second, one after the other, {:.1} us of the gateway's CPU time each",
        HANDSHAKES as f64 / took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / HANDSHAKES as f64
    );
    Ok(())
}

/// A certificate for the gateway, in a folder that is gone when it is dropped.
struct Folder {
    path: PathBuf,
    certificate: CertificateDer<'static>,
}

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("twinspan-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        std::fs::write(path.join("pem"), made.cert.pem())?;
        std::fs::write(path.join("key"), made.signing_key.serialize_pem())?;
        let certificate = made.cert.der().clone();
        Ok(Self { path, certificate })
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let file = |name| self.path.join(name).display().to_string();
        vec![
            ("TWINSPAN_TLS_CERTIFICATE", file("pem")),
            ("TWINSPAN_TLS_KEY", file("key")),
        ]
    }

    fn client(&self, resumes: bool) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        if !resumes {
            config.resumption = Resumption::disabled();
        }
        Ok(Arc::new(config))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.path).ok();
    }
}

/// TLS, then the handshake of a WebSocket within it.
fn over_tls(gateway: SocketAddr, config: &Arc<ClientConfig>) -> Result<()> {
    let socket = TcpStream::connect(gateway)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, socket);
    stream.write_all(opening(&gateway.to_string(), "/v1/ws", None).as_bytes())?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    match answer.ends_with(b"101") {
        true => Ok(()),
        false => Err(format!("not let in: {}", String::from_utf8_lossy(&answer)).into()),
    }
}

/// The socket, and the first line of the answer.
fn attempt(gateway: SocketAddr) -> Result<(TcpStream, String)> {
    let mut socket = TcpStream::connect(gateway)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(opening(&gateway.to_string(), "/v1/ws", None).as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n") {
        if socket.read(&mut byte)? == 0 {
            return Ok((socket, "closed".to_owned()));
        }
        answer.push(byte[0]);
    }
    Ok((socket, String::from_utf8_lossy(&answer).trim().to_owned()))
}
