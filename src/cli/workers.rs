//! `twinspan workers` and `twinspan drain`: who serves what, and who is to stop.

use clap::Args;

use super::{Failure, Gateway, output};
use crate::client::Error;
use crate::frame::{ProtoJson, pb};

/// `twinspan workers`.
#[derive(Debug, Args)]
pub struct Workers {
    /// Only those of this role
    #[arg(long)]
    role: Option<String>,
    /// Print a ListWorkersResponse as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
}

impl Workers {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.gateway.connect().await?;
        let request = pb::ListWorkersRequest {
            role: self.role.unwrap_or_default(),
        };
        let answer = client.admin().list_workers(request).await.map_err(Error::from)?;
        let listed = answer.into_inner();
        if self.json {
            return output::line(&listed.to_json());
        }
        output::text(&table(&listed.workers))
    }
}

/// `twinspan drain`.
#[derive(Debug, Args)]
pub struct Drain {
    /// The worker's role
    role: String,
    /// The worker's name, as `twinspan workers` lists it
    worker: String,
    /// Print a Worker as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
}

impl Drain {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.gateway.connect().await?;
        let request = pb::DrainWorkerRequest {
            role: self.role,
            worker_id: self.worker,
        };
        let answer = client.admin().drain_worker(request).await.map_err(Error::from)?;
        let worker = answer.into_inner();
        if self.json {
            return output::line(&worker.to_json());
        }
        output::text(&table(&[worker]))
    }
}

fn table(workers: &[pb::Worker]) -> String {
    let head = ["ROLE", "WORKER", "STATE", "LOAD", "QUIET", "SESSIONS"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(workers.iter().map(row)).collect();
    output::table(&rows)
}

fn row(worker: &pb::Worker) -> [String; 6] {
    let sessions = match worker.sessions.is_empty() {
        true => "*".to_owned(),
        false => worker.sessions.join(","),
    };
    [
        worker.role.clone(),
        worker.worker_id.clone(),
        output::word(worker.state().as_str_name(), "WORKER_STATE_"),
        format!("{}/{}", worker.in_flight, worker.max_in_flight),
        output::span(worker.quiet.as_ref()),
        sessions,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each() {
        let here = pb::Worker {
            role: "brain".to_owned(),
            worker_id: "w-1".to_owned(),
            state: pb::WorkerState::Ready.into(),
            in_flight: 3,
            max_in_flight: 8,
            quiet: Some(prost_types::Duration {
                seconds: 1,
                nanos: 200_000_000,
            }),
            ..pb::Worker::default()
        };
        let away = pb::Worker {
            worker_id: "w-22".to_owned(),
            state: pb::WorkerState::Away.into(),
            sessions: vec!["user-*".to_owned(), "a".to_owned()],
            quiet: None,
            ..here.clone()
        };
        let expected = "\
ROLE   WORKER  STATE  LOAD  QUIET  SESSIONS
brain  w-1     ready  3/8   1.2s   *
brain  w-22    away   3/8   -      user-*,a
";
        assert_eq!(table(&[here, away]), expected);
    }
}
