//! What the gateway costs, measured on its own process and set beside yardsticks that run in the same minutes.
//!
//! ```text
//! cargo bench --bench gateway -- fanout|roundtrip|tokens|idle|endings|attacks|limit|all [--server PATH] [--runs N] [--yardsticks-only]
//! ```
//!
//! This process holds the browsers and the workers. The gateway is the release binary, started as a child; so are the
//! yardsticks, which are this same program under other subcommands:
//!
//! * *raw* writes ready-made bytes of the same length to the same number of sockets and does nothing else;
//! * *bridge* is what one would write instead of the gateway: each WebSocket opens a gRPC stream of its own to the worker
//!   and every message passes through `google.protobuf.Struct`.
//!
//! The figure is CPU time of the server process per unit of work, user and kernel, to the nanosecond: wall time says
//! little on a machine that is shared with others. Only `endings`, `attacks` and `limit` are about wall time. Runs of the two sides take turns; the table shows medians and ranges.
//! Every wait ends after a fixed time with an error that says what was missing, and every delivery is counted.
//!
//! Nothing here may use the library `twinspan`: what is measured is what users run.

#![allow(clippy::disallowed_methods, reason = "measuring is asking for the time")]

mod attacks;
mod bridge;
mod endings;
mod fanout;
mod fleet;
mod idle;
mod limit;
mod peer;
mod process;
mod raw;
mod report;
mod roundtrip;
mod rpc;
mod tokens;
mod traffic;
mod websocket;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

use crate::process::Server;

/// Errors of the bench end it; they are for people.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measure what the gateway costs.
#[derive(Parser)]
#[command(name = "gateway")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
    /// Passed by cargo.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

/// What all measurements share.
#[derive(clap::Args)]
struct Options {
    /// The gateway's binary.
    #[arg(long, global = true, default_value = option_env!("CARGO_BIN_EXE_twinspan").unwrap_or("target/release/twinspan"))]
    server: PathBuf,
    /// Runs of each side; the table shows medians.
    #[arg(long, global = true, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Leave the gateway out.
    #[arg(long, global = true)]
    yardsticks_only: bool,
}

impl Options {
    fn gateway(&self) -> Option<Server> {
        (!self.yardsticks_only).then(|| Server::Gateway(self.server.clone()))
    }
}

#[derive(Subcommand)]
enum Command {
    /// One session of 1,000 browsers: frames one at a time, and in bursts of 16.
    Fanout,
    /// Browser to worker and back: one reply, 20 replies, many browsers.
    Roundtrip,
    /// 150 sessions, in each of which a worker streams short texts.
    Tokens,
    /// 10,000 browsers that say nothing.
    Idle,
    /// From a cancel, and from the loss of a worker, until a worker hears of it.
    Endings,
    /// A hundred clients beside attackers.
    Attacks,
    /// Twice as many connections as there may be.
    Limit,
    /// All of them.
    All,
    /// Be an attacker, until the input ends.
    #[command(hide = true)]
    Attacker {
        #[arg(long)]
        gateway: SocketAddr,
        #[arg(long)]
        number: usize,
    },
    /// Be the yardstick *raw*.
    #[command(hide = true)]
    YardstickRaw {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        sockets: usize,
    },
    /// Be the yardstick *bridge*.
    #[command(hide = true)]
    YardstickBridge {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        worker: SocketAddr,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let options = &cli.options;
    match cli.command {
        None => Cli::command().print_help()?,
        Some(Command::Attacker { gateway, number }) => return attacks::be_attacker(gateway, number),
        Some(Command::YardstickRaw { listen, sockets }) => return raw::serve(listen, sockets),
        Some(Command::YardstickBridge { listen, worker }) => return bridge::serve(listen, worker),
        Some(Command::Fanout) => measure(options, &[fanout::measure])?,
        Some(Command::Roundtrip) => measure(options, &[roundtrip::measure])?,
        Some(Command::Tokens) => measure(options, &[tokens::measure])?,
        Some(Command::Idle) => measure(options, &[idle::measure])?,
        Some(Command::Endings) => measure(options, &[endings::measure])?,
        Some(Command::Attacks) => measure(options, &[attacks::measure])?,
        Some(Command::Limit) => measure(options, &[limit::measure])?,
        Some(Command::All) => measure(
            options,
            &[
                fanout::measure,
                roundtrip::measure,
                tokens::measure,
                idle::measure,
                endings::measure,
                attacks::measure,
                limit::measure,
            ],
        )?,
    }
    Ok(())
}

fn measure(options: &Options, measurements: &[fn(&Options) -> Result<()>]) -> Result<()> {
    process::raise_file_limit()?;
    for measurement in measurements {
        measurement(options)?;
    }
    Ok(())
}
