//! A gateway in a process of its own, which can be killed and stopped, and started again on the directory that it leaves.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::transport::{Channel, Endpoint};
use twinspan::frame::pb;
use twinspan::frame::pb::sessions_client::SessionsClient;

use crate::harness::*;

/// How a gateway ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// At once, with whatever it was at.
    Kill,
    /// In good order.
    Stop,
}

pub const ENDINGS: [Ending; 2] = [Ending::Kill, Ending::Stop];

/// Where a gateway keeps its sessions, and what else it is told.
#[derive(Clone, Debug)]
pub struct Home {
    pub dir: PathBuf,
    settings: Vec<(&'static str, String)>,
}

impl Home {
    /// A directory that nobody else has.
    pub fn new() -> Self {
        Self::at(data_dir())
    }

    pub fn at(dir: PathBuf) -> Self {
        Self {
            dir,
            settings: Vec::new(),
        }
        // What a test leaves open is not waited for.
        .with("TWINSPAN_DRAIN_GRACE", "50ms")
        // All peers come from one address, and send as fast as they can.
        .with("TWINSPAN_LIMITS_CONNECTIONS_PER_IP", "100000")
        .with("TWINSPAN_LIMITS_CONNECTS_PER_SECOND", "100000")
        .with("TWINSPAN_LIMITS_FRAMES_PER_SECOND", "1000000")
    }

    #[must_use]
    pub fn with(mut self, variable: &'static str, value: impl ToString) -> Self {
        self.settings.push((variable, value.to_string()));
        self
    }

    /// The command that serves this directory.
    pub fn command(&self) -> Command {
        let mut command = bare();
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&self.dir)
            .envs(self.settings.iter().map(|(variable, value)| (variable, value)));
        command
    }

    pub fn start(&self) -> Process {
        Process::start(self.command())
    }

    /// Starts a gateway that is to be refused: its exit code, and what it said.
    pub fn refused(&self) -> (i32, String) {
        let output = self.command().output().unwrap();
        let code = output.status.code().expect("it must have ended by itself");
        (code, String::from_utf8(output.stderr).unwrap())
    }
}

/// The program, without what the tests themselves are told by the environment.
pub fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinspan"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_str().is_some_and(|name| name.starts_with("TWINSPAN_")) {
            command.env_remove(variable);
        }
    }
    command
}

/// A gateway that serves. It is killed when this is dropped.
pub struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: String,
    pub address: SocketAddr,
}

impl Process {
    /// Runs the command until it tells its address.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let log = BufReader::new(child.stderr.take().unwrap());
        // It is read to its end, or the gateway would have to wait to be heard.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                sender.send(line).ok();
            }
        });
        let mut process = Self {
            child,
            lines,
            seen: String::new(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        while process.address.port() == 0 {
            let line = process.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no address in {}", process.seen));
            let found = line.split(|c: char| !(c.is_ascii_digit() || ".:".contains(c)));
            let found = found.filter_map(|part| part.parse::<SocketAddr>().ok()).next();
            if let Some(address) = found.filter(|_| line.contains("listening")) {
                process.address = address;
            }
            writeln!(process.seen, "{line}").unwrap();
        }
        process
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Ends it on the spot.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// All that it has logged until it was stopped, in good order.
    pub fn stopped(mut self) -> String {
        self.signal(Signal::SIGTERM);
        assert!(self.child.wait().unwrap().success());
        let mut all = std::mem::take(&mut self.seen);
        for line in self.lines.iter() {
            writeln!(all, "{line}").unwrap();
        }
        all
    }

    pub fn end(self, ending: Ending) {
        match ending {
            Ending::Kill => self.kill(),
            Ending::Stop => drop(self.stopped()),
        }
    }

    pub async fn peer(&self, face: Face) -> Peer {
        Peer::at(self.address, face).await
    }

    /// A peer that has joined, after what it knows, and its `Joined`.
    pub async fn member(&self, face: Face, session: &str, join: pb::Join) -> (Peer, pb::Joined) {
        let mut peer = self.peer(face).await;
        let joined = peer.join(session, join).await;
        (peer, joined)
    }

    pub async fn serving(&self, face: Face, serve: pb::Serve) -> (Peer, pb::Serving) {
        let mut peer = self.peer(face).await;
        let serving = peer.serve(serve).await;
        (peer, serving)
    }

    pub async fn sessions(&self) -> SessionsClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let channel = patiently("a gRPC connection", endpoint.connect()).await.unwrap();
        SessionsClient::new(channel)
    }

    /// Where a request is.
    pub async fn why(&self, session: &str, request: &str) -> pb::WhyResponse {
        let why = pb::WhyRequest {
            session_id: session.to_owned(),
            request_id: request.to_owned(),
        };
        self.sessions().await.why(why).await.unwrap().into_inner()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
