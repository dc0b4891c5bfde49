//! `twinspan backup`, `restore`, `export` and `import`: sessions out of a gateway, and into one.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{Failure, Gateway, output};
use crate::client::Error;
use crate::frame::{Frame, ProtoJson, Rules, Str, Types, pb};
use crate::log::backup;
use crate::router::random_name;

/// `twinspan backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// Where to write it. There must be no file of this name yet
    file: PathBuf,
    #[command(flatten)]
    gateway: Gateway,
}

impl Backup {
    pub async fn run(self) -> Result<(), Failure> {
        let unwritten = |error: std::io::Error| unusable(&self.file, &error);
        if self.file.exists() {
            let text = format!("{} is there already; choose another name", self.file.display());
            return Err(Failure::new(Failure::USAGE, text));
        }
        // It has its name once it is whole.
        let mut name = self.file.clone().into_os_string();
        name.push(".part");
        let part = PathBuf::from(name);
        let client = self.gateway.connect().await?;
        let answer = client.admin().backup(pb::BackupRequest {}).await.map_err(Error::from)?;
        let mut pieces = answer.into_inner();
        let mut file = backup::private_file(&part).map_err(|error| unusable(&part, &error))?;
        let written = async {
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|status| Failure::from(Error::from(status)))?;
                file.write_all(&piece.data).map_err(unwritten)?;
            }
            file.sync_all().map_err(unwritten)?;
            let contents = backup::verify(&part).map_err(|wrong| Failure::new(Failure::REFUSED, wrong))?;
            fs::rename(&part, &self.file).map_err(unwritten)?;
            Ok(contents)
        }
        .await;
        let contents = written.inspect_err(|_: &Failure| drop(fs::remove_file(&part)))?;
        told(&self.file, contents)
    }
}

/// `twinspan restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The backup
    file: PathBuf,
    /// The data directory, in which there are no sessions yet
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

impl Restore {
    pub fn run(&self) -> Result<(), Failure> {
        let contents = backup::restore(&self.file, &self.data_dir, &random_name());
        let contents = contents.map_err(|error| Failure::new(Failure::REFUSED, error))?;
        told(&self.data_dir, contents)
    }
}

fn told(place: &Path, contents: backup::Contents) -> Result<(), Failure> {
    let backup::Contents {
        sessions,
        records,
        bytes,
    } = contents;
    let place = place.display();
    output::text(&format!(
        "{place}: {sessions} sessions, {records} records of frames, {bytes} bytes\n"
    ))
}

fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Failure::USAGE, format!("{}: {error}", path.display()))
}

/// `twinspan export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Only sessions whose name begins so
    #[arg(long, default_value = "")]
    prefix: String,
    /// Where to write it, instead of stdout
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    gateway: Gateway,
}

impl Export {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.gateway.connect().await?;
        let request = pb::ExportRequest { prefix: self.prefix };
        let mut exported = client.admin().export(request).await.map_err(Error::from)?.into_inner();
        let mut out: Box<dyn Write> = match &self.output {
            Some(path) => Box::new(BufWriter::new(
                File::create(path).map_err(|error| unusable(path, &error))?,
            )),
            None => Box::new(BufWriter::new(std::io::stdout())),
        };
        let unwritten = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::unread(),
            _ => Failure::new(Failure::REFUSED, format!("the export cannot be written: {error}")),
        };
        let (types, mut line) = (Types::default(), Vec::new());
        while let Some(entry) = exported.next().await {
            let entry = entry.map_err(Error::from)?;
            line.clear();
            match entry {
                pb::Exported {
                    session: Some(session), ..
                } => session.write_json(&mut line),
                pb::Exported { frame, .. } => frame.unwrap_or_default().write_json(&mut line, &types),
            }
            line.push(b'\n');
            out.write_all(&line).map_err(unwritten)?;
        }
        out.flush().map_err(unwritten)
    }
}

/// `twinspan import`.
#[derive(Debug, Args)]
pub struct Import {
    /// What `twinspan export` has written; - reads it from stdin
    file: PathBuf,
    #[command(flatten)]
    gateway: Gateway,
}

/// Entries that wait for the gateway.
const WAITING: usize = 64;

impl Import {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.gateway.connect().await?;
        let from: Box<dyn Read + Send> = match self.file.as_os_str() == "-" {
            true => Box::new(std::io::stdin()),
            false => Box::new(File::open(&self.file).map_err(|error| unusable(&self.file, &error))?),
        };
        let (send, entries) = mpsc::channel(WAITING);
        let (fail, failed) = oneshot::channel();
        std::thread::spawn(move || {
            if let Err(failure) = read(from, &send) {
                // The stream is not to end in good order: it goes with the call.
                drop(fail.send((failure, send)));
            }
        });
        let mut admin = client.admin();
        let call = admin.import(ReceiverStream::new(entries));
        let answer = tokio::select! {
            biased;
            Ok((failure, _stream)) = failed => return Err(failure),
            answer = call => answer,
        };
        let imported = answer.map_err(Error::from)?.into_inner();
        let (sessions, frames) = (imported.sessions, imported.frames);
        output::text(&format!("{sessions} sessions, {frames} frames\n"))
    }
}

fn read(from: impl Read, to: &mpsc::Sender<pb::Exported>) -> Result<(), Failure> {
    let types = Types::default();
    let rules = Rules {
        ignore_unknown: false,
        types: &types,
    };
    for (number, line) in (1..).zip(BufReader::new(from).lines()) {
        let wrong = |why: &dyn std::fmt::Display| Failure::new(Failure::USAGE, format!("line {number}: {why}"));
        let line = line.map_err(|error| wrong(&error))?;
        if line.trim().is_empty() {
            continue;
        }
        // A session says so with its first member; everything else is a frame.
        let entry = match line.trim_start().starts_with(r#"{"session":"#) {
            true => pb::Exported {
                session: Some(pb::ExportedSession::from_json(&line).map_err(|refusal| wrong(&refusal))?),
                frame: None,
            },
            false => pb::Exported {
                session: None,
                frame: Some(Frame::from_json(&Str::from(line), &rules).map_err(|bad| wrong(&bad.refusal))?),
            },
        };
        if to.blocking_send(entry).is_err() {
            // The gateway has said why.
            return Ok(());
        }
    }
    Ok(())
}
