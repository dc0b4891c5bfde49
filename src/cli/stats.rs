//! `twinspan stats`: what was counted.

use clap::Args;

use super::{Failure, Gateway, output};
use crate::client::Error;
use crate::frame::{ProtoJson, pb};

/// `twinspan stats`.
#[derive(Debug, Args)]
pub struct Stats {
    /// Print a StatsResponse as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
}

impl Stats {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.gateway.connect().await?;
        let answer = client.admin().stats(pb::StatsRequest {}).await.map_err(Error::from)?;
        let stats = answer.into_inner();
        if self.json {
            return output::line(&stats.to_json());
        }
        output::text(&output::table(&rows(&stats)))
    }
}

fn rows(stats: &pb::StatsResponse) -> Vec<[String; 2]> {
    let started = stats.started_at.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut rows = vec![["started".to_owned(), started]];
    for (what, count) in [
        ("connections", stats.connections),
        ("sessions", stats.sessions),
        ("open requests", stats.open_requests),
        ("requests", stats.requests),
        ("  completed", stats.completed),
        ("  failed", stats.failed),
        ("  cancelled", stats.cancelled),
        ("  expired", stats.expired),
        ("restarts", stats.restarts),
        ("leases expired", stats.leases_expired),
        ("workers lost", stats.workers_lost),
        ("workers replaced", stats.workers_replaced),
        ("workers resumed", stats.workers_resumed),
        ("fenced frames", stats.fenced_frames),
        ("sockets", stats.sockets),
        ("sockets refused", stats.sockets_refused),
        ("floods ended", stats.floods),
        ("credentials refused", stats.credentials_refused),
        ("memory bytes", stats.memory_bytes),
        ("  at most", stats.memory_limit_bytes),
        ("  open requests", stats.request_bytes),
        ("disk bytes", stats.disk_bytes),
        ("  to be written", stats.disk_queue_bytes),
        ("sessions in memory", stats.sessions_in_memory),
        ("backups failed", stats.backups_failed),
    ] {
        rows.push([what.to_owned(), count.to_string()]);
    }
    let last = stats
        .last_backup_at
        .as_ref()
        .map_or("-".to_owned(), ToString::to_string);
    rows.push(["last backup".to_owned(), last]);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_line() {
        let stats = pb::StatsResponse {
            requests: 7,
            expired: 2,
            ..pb::StatsResponse::default()
        };
        let text = output::table(&rows(&stats));
        assert!(
            text.contains("requests             7\n") && text.contains("  expired            2\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 27);
    }
}
