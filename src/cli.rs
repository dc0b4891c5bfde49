//! The commands: what `twinspan` does when it is called. Each lives in a module of its own; this one tells them apart, starts the
//! runtime, and turns what went wrong into a message and an exit code.
//!
//! Commands that talk to a gateway do so through `client`, as anybody would.

mod backup;
mod body;
mod call;
mod check;
mod demo;
mod dev;
mod output;
mod revoke;
mod send;
mod serve;
mod settings;
mod signals;
mod stats;
mod tail;
mod terms;
mod token;
mod why;
mod workers;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::client::{self, Client, Credential, Origin, Tls};
use crate::error::Reason;
use crate::{config, server, telemetry};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused, or the request ended in an error
  2    wrong usage, or settings that cannot be used
  3    the gateway could not be reached, or the connection was lost
  130  interrupted";

/// A session gateway: backends dial in over gRPC, browsers over WebSocket.
#[derive(Debug, Parser)]
#[command(name = "twinspan", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Serve(settings::Settings),
    /// Run the gateway with a demo worker, and print how to talk to it
    Dev(settings::Settings),
    /// Send one frame to a session, and print its id and its place in the session
    Send(send::Send),
    /// Ask a role something, and print the answer as it comes
    Call(call::Call),
    /// Print what a session holds and what happens in it
    Tail(tail::Tail),
    /// Tell where a request is, and what it waits for
    Why(why::Why),
    /// List the workers, and what they are doing
    Workers(workers::Workers),
    /// Have a worker finish what it has, and give it nothing new
    Drain(workers::Drain),
    /// Take back what a subject or a token may do, at once
    Revoke(revoke::Revoke),
    /// Print what was counted since the gateway started
    Stats(stats::Stats),
    /// Copy everything that a running gateway keeps on disk into one file, while it goes on
    Backup(backup::Backup),
    /// Put a backup into a data directory, for a gateway to start with
    Restore(backup::Restore),
    /// Print sessions with all their frames, a JSON object a line
    Export(backup::Export),
    /// Bring sessions that were exported into a running gateway
    Import(backup::Import),
    /// Make tokens, API keys and secrets, and look into tokens
    Token(token::Token),
    /// Say whether a data directory that no gateway uses is as it was written, and mend it
    Check(check::Check),
    /// Print the settings in force, and where each came from
    Config(settings::Show),
}

/// Where the gateway is.
#[derive(Debug, Args)]
struct Gateway {
    /// Where the gateway is
    #[arg(long, default_value = "http://127.0.0.1:7080")]
    url: String,
    /// The roots that the gateway's certificate may come from, in PEM, instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A certificate to show to the gateway, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// A token or an API key to show to the gateway, in a file; or in the variable TWINSPAN_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Gateway {
    async fn connect(&self) -> Result<Client, Failure> {
        let credential = self.credential()?;
        let client = Client::connect_with(&self.url, &self.tls()?).await?;
        Ok(client.with_credential(credential))
    }

    /// Never an argument: those can be seen by whoever lists processes.
    fn credential(&self) -> Result<Credential, Failure> {
        let secret = match &self.token_file {
            Some(path) => Some(String::from_utf8_lossy(&read(path)?).into_owned()),
            None => std::env::var(config::TOKEN_VARIABLE).ok(),
        };
        let credential = secret.map(|secret| Credential::new(&secret)).transpose()?;
        Ok(credential.unwrap_or_default())
    }

    fn tls(&self) -> Result<Tls, Failure> {
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        let roots = self.ca.as_deref().map(read).transpose()?;
        Ok(Tls { roots, identity })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::new(Failure::USAGE, format!("{} cannot be read: {error}", path.display())))
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
struct Failure {
    exit: u8,
    message: String,
}

impl Failure {
    const REFUSED: u8 = 1;
    const USAGE: u8 = 2;
    const UNREACHABLE: u8 = 3;
    const INTERRUPTED: u8 = 130;

    fn new(exit: u8, message: impl fmt::Display) -> Self {
        Self {
            exit,
            message: message.to_string(),
        }
    }

    /// The reader of our output is gone, as with `| head`: nothing is wrong, and nobody listens.
    fn unread() -> Self {
        Self::new(0, "")
    }

    fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("twinspan: {}", self.message);
        }
        ExitCode::from(self.exit)
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        match error.origin {
            Origin::Gateway if error.known_reason() == Some(Reason::Unauthenticated) => {
                let hint = "Show a token or an API key with --token-file FILE, or in the variable TWINSPAN_TOKEN.";
                Self::new(Self::REFUSED, format!("{error}\n{hint}"))
            }
            Origin::Gateway => Self::new(Self::REFUSED, error),
            Origin::Usage => Self::new(Self::USAGE, error),
            Origin::Transport if error.message.starts_with("cannot reach") => {
                let hint = "Start one with `twinspan dev`, or say where it is with --url.";
                Self::new(Self::UNREACHABLE, format!("{error}\n{hint}"))
            }
            Origin::Transport => Self::new(Self::UNREACHABLE, error),
        }
    }
}

impl From<config::Errors> for Failure {
    fn from(errors: config::Errors) -> Self {
        Self::new(Self::USAGE, errors)
    }
}

impl From<server::Error> for Failure {
    fn from(error: server::Error) -> Self {
        Self::new(Self::REFUSED, error)
    }
}

impl From<telemetry::Error> for Failure {
    fn from(error: telemetry::Error) -> Self {
        Self::new(Self::REFUSED, error)
    }
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(settings) => settings
            .load(config::Config::default())
            .and_then(|config| on_all_cores(serve::run(config))),
        Command::Dev(settings) => settings
            .load(dev::defaults())
            .and_then(|config| on_all_cores(dev::run(config))),
        Command::Send(send) => on_one_core(send.run()),
        Command::Call(call) => on_one_core(call.run()),
        Command::Tail(tail) => on_one_core(tail.run()),
        Command::Why(why) => on_one_core(why.run()),
        Command::Workers(workers) => on_one_core(workers.run()),
        Command::Drain(drain) => on_one_core(drain.run()),
        Command::Revoke(revoke) => on_one_core(revoke.run()),
        Command::Stats(stats) => on_one_core(stats.run()),
        Command::Backup(backup) => on_one_core(backup.run()),
        Command::Restore(restore) => restore.run(),
        Command::Export(export) => on_one_core(export.run()),
        Command::Import(import) => on_one_core(import.run()),
        Command::Token(token) => on_one_core(token.run()),
        Command::Check(check) => check.run(),
        Command::Config(show) => on_one_core(show.run()),
    };
    done.map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS)
}

fn on_all_cores(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    run(tokio::runtime::Builder::new_multi_thread(), command)
}

fn on_one_core(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    run(tokio::runtime::Builder::new_current_thread(), command)
}

fn run(
    mut builder: tokio::runtime::Builder,
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Failure::REFUSED, error))?;
    let done = runtime.block_on(command);
    // What still waits for a disk is not waited for without end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    done
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_went_wrong_has_its_exit_code() {
        let exit = |origin, message: &str| {
            let status = tonic::Status::unimplemented(message);
            Failure::from(client::Error {
                origin,
                ..client::Error::from(status)
            })
            .exit
        };
        assert_eq!(exit(Origin::Gateway, "no"), 1);
        assert_eq!(exit(Origin::Usage, "no"), 2);
        assert_eq!(exit(Origin::Transport, "cannot reach the gateway"), 3);
    }
}
