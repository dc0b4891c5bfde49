//! `twinspan revoke`: takes back what a subject or a token may do.

use clap::Args;
use tokio::time::Duration;

use super::{Failure, Gateway, output};
use crate::client::Error;
use crate::config::parse_duration;
use crate::frame::{ProtoJson, pb};

/// `twinspan revoke`.
#[derive(Debug, Args)]
pub struct Revoke {
    /// All that the subject was given before now
    #[arg(long, required_unless_present_any = ["token_id", "list"], conflicts_with = "token_id")]
    subject: Option<String>,
    /// The token with this `jti`, or the API key with this id
    #[arg(long)]
    token_id: Option<String>,
    /// When it may be forgotten, since all that it speaks of has expired by then, such as 24h; never, if it is not said
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    lasts: Option<Duration>,
    /// Only list what was taken back
    #[arg(long, conflicts_with_all = ["subject", "token_id", "lasts"])]
    list: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "a number with a unit is wanted, such as 90m or 24h".to_owned())
}

impl Revoke {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.gateway.connect().await?;
        if self.list {
            let answer = client.admin().list_revocations(pb::ListRevocationsRequest {}).await;
            let listed = answer.map_err(Error::from)?.into_inner();
            return match self.json {
                true => output::line(&listed.to_json()),
                false => output::text(&table(&listed.revocations)),
            };
        }
        let request = pb::RevokeRequest {
            subject: self.subject.unwrap_or_default(),
            token_id: self.token_id.unwrap_or_default(),
            until: self.lasts.map(|lasts| (now() + lasts).into()),
        };
        let answer = client.admin().revoke(request).await.map_err(Error::from)?;
        let revocation = answer.into_inner();
        match self.json {
            true => output::line(&revocation.to_json()),
            false => output::text(&table(&[revocation])),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a command asks the calendar")]
fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

fn table(revocations: &[pb::Revocation]) -> String {
    let head = ["WHAT", "ISSUED BEFORE", "UNTIL", "AFTER A RESTART"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(revocations.iter().map(row)).collect();
    output::table(&rows)
}

fn row(revocation: &pb::Revocation) -> [String; 4] {
    let what = match revocation.subject.is_empty() {
        true => format!("token {}", revocation.token_id),
        false => format!("subject {}", revocation.subject),
    };
    let time = |time: Option<&prost_types::Timestamp>| time.map_or_else(|| "-".to_owned(), ToString::to_string);
    let kept = if revocation.durable { "kept" } else { "forgotten" };
    [
        what,
        time(revocation.issued_before.as_ref()),
        time(revocation.until.as_ref()),
        kept.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each() {
        let token = pb::Revocation {
            token_id: "t-1".to_owned(),
            durable: true,
            ..pb::Revocation::default()
        };
        let subject = pb::Revocation {
            subject: "ann".to_owned(),
            issued_before: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            ..pb::Revocation::default()
        };
        let expected = "\
WHAT         ISSUED BEFORE         UNTIL  AFTER A RESTART
token t-1    -                     -      kept
subject ann  1970-01-01T00:00:00Z  -      forgotten
";
        assert_eq!(table(&[token, subject]), expected);
    }
}
