//! Servers as child processes, and what the kernel says about their CPU time and memory.
//!
//! A server dies with its handle, and nothing but servers started here is ever ended.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::Result;

const START_LIMIT: Duration = Duration::from_secs(10);

/// All peers come from one address.
const ONE_ADDRESS: &[(&str, &str)] = &[
    ("TWINSPAN_LIMITS_CONNECTIONS_PER_IP", "1000000"),
    ("TWINSPAN_LIMITS_CONNECTS_PER_SECOND", "1000000"),
];
/// What is measured is what frames cost, not what is allowed.
const UNHURRIED: &[(&str, &str)] = &[
    ("TWINSPAN_LIMITS_FRAMES_PER_SECOND", "100000000"),
    ("TWINSPAN_LIMITS_BYTES_PER_SECOND", "64GiB"),
    ("TWINSPAN_LIMITS_WORKER_FRAMES_PER_SECOND", "100000000"),
    ("TWINSPAN_LIMITS_WORKER_BYTES_PER_SECOND", "64GiB"),
    ("TWINSPAN_LIMITS_CALLS_PER_SECOND", "100000000"),
    ("TWINSPAN_LIMITS_REQUEST_BYTES", "1GiB"),
    ("TWINSPAN_LIMITS_TOTAL_REQUEST_BYTES", "1GiB"),
];

/// What can be started.
pub enum Server {
    /// The binary under test, with limits that the one peer of a bench cannot reach.
    Gateway(PathBuf),
    /// The same with its default limits.
    Guarded(PathBuf),
    /// See [`crate::raw`].
    Raw { sockets: usize },
    /// See [`crate::bridge`].
    Bridge { worker: SocketAddr },
}

/// A running server.
pub struct Process {
    child: Child,
    clock: ClockId,
    address: SocketAddr,
    log: PathBuf,
    // Its end tells a yardstick that this process is gone.
    _stdin: Option<std::process::ChildStdin>,
}

impl Process {
    /// Starts the server on a free port of 127.0.0.1 and waits until it accepts connections.
    pub fn start(server: &Server) -> Result<Self> {
        Self::start_with(server, &[])
    }

    /// The same, with these variables in its environment.
    pub fn start_with(server: &Server, variables: &[(&str, String)]) -> Result<Self> {
        let address = free_address()?;
        let log = log_path(server);
        let mut command = command(server, address)?;
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|error| format!("{:?}: {error}", command.get_program()))?;
        let stdin = child.stdin.take();
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(child.id())?))?;
        let mut process = Self {
            child,
            clock,
            address,
            log,
            _stdin: stdin,
        };
        // The raw yardstick takes its first connection for the one that commands it.
        if !matches!(server, Server::Raw { .. }) {
            process.await_listener()?;
        }
        Ok(process)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// User and kernel time of all its threads, the ended ones too.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(clock_gettime(self.clock)?.into())
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .ok_or("/proc/PID/status has no VmRSS: the server has ended")?
            .trim()
            .parse()?;
        Ok(kib * 1024)
    }

    fn await_listener(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match TcpStream::connect(self.address) {
                Ok(_) => return Ok(()),
                Err(error) => {
                    let ended = self.child.try_wait()?;
                    if ended.is_some() || Instant::now() > deadline {
                        let log = self.log.display();
                        return Err(format!(
                            "{} took no connection: {error}; ended: {ended:?}; see {log}",
                            self.address
                        )
                        .into());
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets this process and its children have as many sockets as the system grants.
pub fn raise_file_limit() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// Ends this process when the one that started it is gone: nobody is left to measure it.
pub fn exit_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

fn command(server: &Server, address: SocketAddr) -> Result<Command> {
    let listen = address.to_string();
    let command = match server {
        Server::Gateway(path) => {
            let mut command = Command::new(path);
            command.args(["serve", "--listen", &listen, "--durability", "memory"]);
            command.envs(ONE_ADDRESS.iter().chain(UNHURRIED).copied());
            command
        }
        Server::Guarded(path) => {
            let mut command = Command::new(path);
            command.args(["serve", "--listen", &listen, "--durability", "memory"]);
            command
        }
        Server::Raw { sockets } => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["yardstick-raw", "--listen", &listen]);
            command.args(["--sockets", &sockets.to_string()]);
            command
        }
        Server::Bridge { worker } => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["yardstick-bridge", "--listen", &listen]);
            command.args(["--worker", &worker.to_string()]);
            command
        }
    };
    Ok(command)
}

/// Where the server's stderr goes: the same names in every run of the bench, so that they do not pile up.
fn log_path(server: &Server) -> PathBuf {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    let kind = match server {
        Server::Gateway(_) | Server::Guarded(_) => "gateway",
        Server::Raw { .. } => "raw",
        Server::Bridge { .. } => "bridge",
    };
    let place = STARTED.fetch_add(1, Ordering::Relaxed);
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{place}-{kind}.log"))
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
