//! How a request is to be carried out, from the command line.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Failure;
use crate::frame::pb;

/// Nothing said is the gateway's to say.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "How it is carried out")]
pub struct Terms {
    /// How long the answer may take in all
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// How long it may wait for a worker; unless said, a little less than in all
    #[arg(long, value_name = "TIME", value_parser = duration)]
    accept_timeout: Option<Duration>,
    /// How long a worker may take to begin its answer
    #[arg(long, value_name = "TIME", value_parser = duration)]
    first_chunk_timeout: Option<Duration>,
    /// How long it may take from one piece of its answer to the next
    #[arg(long, value_name = "TIME", value_parser = duration)]
    idle_timeout: Option<Duration>,
    /// What to do when the worker is lost: end it, ask another one if nothing was said yet, or ask another one in any case
    #[arg(long, value_name = "POLICY")]
    on_worker_loss: Option<WorkerLoss>,
    /// How many workers may try, the first one included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10))]
    max_attempts: Option<u32>,
    /// What it has in common with requests that should go to the same worker
    #[arg(long, value_name = "KEY")]
    affinity: Option<String>,
    /// How it gets along with other requests of the session for the role
    #[arg(long, value_name = "POLICY")]
    concurrency: Option<Concurrency>,
    /// Cancel it when this command is gone, however it ended: at once, or after a time
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, value_parser = duration)]
    cancel_on_disconnect: Option<Option<Duration>>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WorkerLoss {
    Fail,
    RetryIfSilent,
    Restart,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Concurrency {
    Parallel,
    Queue,
    Reject,
    Replace,
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    crate::config::parse_duration(text).ok_or("a time with its unit, such as 500ms, 30s or 2m")
}

impl Terms {
    /// As the request says it.
    pub fn options(&self) -> Result<pb::RequestOptions, Failure> {
        let span = |flag: &str, time: Duration| {
            prost_types::Duration::try_from(time)
                .map_err(|error| Failure::new(Failure::USAGE, format!("--{flag}: {error}")))
        };
        let timeouts = pb::Timeouts {
            // A little less, so that the error tells when there was nobody to ask.
            accept: Some(match self.accept_timeout {
                Some(time) => span("accept-timeout", time)?,
                None => span("timeout", self.timeout.mul_f64(0.9))?,
            }),
            first_chunk: self
                .first_chunk_timeout
                .map(|time| span("first-chunk-timeout", time))
                .transpose()?,
            idle: self.idle_timeout.map(|time| span("idle-timeout", time)).transpose()?,
            total: Some(span("timeout", self.timeout)?),
        };
        let on_worker_loss = self
            .on_worker_loss
            .map_or(pb::WorkerLoss::Unspecified, |loss| match loss {
                WorkerLoss::Fail => pb::WorkerLoss::Fail,
                WorkerLoss::RetryIfSilent => pb::WorkerLoss::RetryIfSilent,
                WorkerLoss::Restart => pb::WorkerLoss::Restart,
            });
        let concurrency = self
            .concurrency
            .map_or(pb::Concurrency::Unspecified, |policy| match policy {
                Concurrency::Parallel => pb::Concurrency::Parallel,
                Concurrency::Queue => pb::Concurrency::Queue,
                Concurrency::Reject => pb::Concurrency::Reject,
                Concurrency::Replace => pb::Concurrency::Replace,
            });
        let on_disconnect = match self.cancel_on_disconnect {
            Some(_) => pb::OnDisconnect::CancelAfter,
            None => pb::OnDisconnect::Unspecified,
        };
        let grace = self.cancel_on_disconnect.flatten();
        Ok(pb::RequestOptions {
            timeouts: Some(timeouts),
            on_worker_loss: on_worker_loss.into(),
            max_attempts: self.max_attempts.unwrap_or_default(),
            on_disconnect: on_disconnect.into(),
            disconnect_grace: grace.map(|time| span("cancel-on-disconnect", time)).transpose()?,
            affinity: self.affinity.clone().unwrap_or_default(),
            concurrency: concurrency.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn options(arguments: &[&str]) -> Option<pb::RequestOptions> {
        let command = Terms::augment_args(Command::new("test"));
        let matches = command.try_get_matches_from(std::iter::once(&"test").chain(arguments));
        Terms::from_arg_matches(&matches.ok()?).ok()?.options().ok()
    }

    #[test]
    fn what_is_not_said_is_the_gateways_to_say() {
        let options = options(&[]).unwrap();
        let timeouts = options.timeouts.unwrap();
        assert_eq!(timeouts.accept.unwrap().seconds, 27);
        assert_eq!(timeouts.total.unwrap().seconds, 30);
        let rest = pb::RequestOptions {
            timeouts: None,
            ..options
        };
        assert_eq!(rest, pb::RequestOptions::default());
    }

    #[test]
    fn every_flag_is_heeded() {
        let arguments = [
            "--accept-timeout=3s",
            "--first-chunk-timeout=2s",
            "--idle-timeout=1s",
            "--on-worker-loss=retry-if-silent",
            "--max-attempts=2",
            "--affinity=k",
            "--concurrency=replace",
            "--cancel-on-disconnect=3s",
        ];
        let options = options(&arguments).unwrap();
        let timeouts = options.timeouts.unwrap();
        assert_eq!(
            (
                timeouts.accept.unwrap().seconds,
                timeouts.first_chunk.unwrap().seconds,
                timeouts.idle.unwrap().seconds
            ),
            (3, 2, 1)
        );
        assert_eq!(options.on_worker_loss(), pb::WorkerLoss::RetryIfSilent);
        assert_eq!((options.max_attempts, options.affinity.as_str()), (2, "k"));
        assert_eq!(options.concurrency(), pb::Concurrency::Replace);
        assert_eq!(options.on_disconnect(), pb::OnDisconnect::CancelAfter);
        assert_eq!(options.disconnect_grace.unwrap().seconds, 3);
    }

    #[test]
    fn a_grace_may_be_left_out() {
        let options = options(&["--cancel-on-disconnect"]).unwrap();
        assert_eq!(options.on_disconnect(), pb::OnDisconnect::CancelAfter);
        assert_eq!(options.disconnect_grace, None);
    }

    #[test]
    fn nonsense_is_refused() {
        for argument in ["--max-attempts=11", "--concurrency=maybe", "--idle-timeout=soon"] {
            assert_eq!(options(&[argument]), None, "{argument}");
        }
    }
}
