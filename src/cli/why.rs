//! `twinspan why`: where a request is.

use clap::Args;

use super::{Failure, Gateway, output};
use crate::client::Error;
use crate::frame::{ProtoJson, pb};

/// `twinspan why`.
#[derive(Debug, Args)]
pub struct Why {
    /// The session
    session: String,
    /// The request's id
    request: String,
    /// Print a WhyResponse as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
}

impl Why {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.gateway.connect().await?;
        let request = pb::WhyRequest {
            session_id: self.session,
            request_id: self.request,
        };
        let answer = client.sessions().why(request).await.map_err(Error::from)?;
        let why = answer.into_inner();
        if self.json {
            return output::line(&why.to_json());
        }
        output::text(&told(&why))
    }
}

/// The summary, and a line for everything that is known.
fn told(why: &pb::WhyResponse) -> String {
    let facts = [
        ("state", Some(state(why))),
        ("asked", why.request.as_ref().map(asked)),
        ("worker", why.request.as_ref().and_then(worker)),
        ("behind", (!why.behind.is_empty()).then(|| why.behind.clone())),
        (
            "place",
            (why.place > 0).then(|| format!("{} of {}", why.place, why.waiting)),
        ),
        ("workers", why.workers.as_ref().map(workers)),
        ("remaining", why.remaining.as_ref().map(remaining)),
        ("end", (why.final_seq > 0).then(|| format!("#{}", why.final_seq))),
    ];
    let rows: Vec<_> = facts
        .into_iter()
        .filter_map(|(name, fact)| Some([name.to_owned(), fact?]))
        .collect();
    format!("{}\n\n{}", why.summary, output::table(&rows))
}

fn state(why: &pb::WhyResponse) -> String {
    let state = output::state(why.state());
    let waits = match why.waits_for() {
        pb::WaitsFor::Unspecified => String::new(),
        what => format!(" for {}", output::word(what.as_str_name(), "WAITS_FOR_")),
    };
    format!("{state}{waits}, since {}", output::time(why.changed_at.as_ref()))
}

fn asked(request: &pb::OpenRequest) -> String {
    let by = request
        .from
        .as_ref()
        .map_or_else(String::new, |from| format!(" by {}/{}", from.role, from.member_id));
    let at = output::time(request.accepted_at.as_ref());
    format!("#{} for {}{by}, at {at}", request.seq, request.role)
}

fn worker(request: &pb::OpenRequest) -> Option<String> {
    let (attempt, chunks) = (request.attempt, request.chunks);
    (!request.worker_id.is_empty()).then(|| format!("{}, attempt {attempt}, {chunks} chunks", request.worker_id))
}

fn workers(counts: &pb::WorkerCounts) -> String {
    let kinds = [
        ("free", counts.free),
        ("full", counts.full),
        ("draining", counts.draining),
        ("silent", counts.silent),
        ("away", counts.away),
    ];
    let kinds: Vec<_> = kinds
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let serving = match kinds.is_empty() {
        true => String::new(),
        false => format!(" ({})", kinds.join(", ")),
    };
    format!("{} of {} serve the session{serving}", counts.serving, counts.total)
}

fn remaining(times: &pb::Timeouts) -> String {
    let times = [
        ("to be accepted", times.accept),
        ("to the first chunk", times.first_chunk),
        ("to the next chunk", times.idle),
        ("in all", times.total),
    ];
    let told: Vec<_> = times
        .into_iter()
        .filter(|(_, time)| time.is_some())
        .map(|(what, time)| format!("{} {what}", output::span(time.as_ref())))
        .collect();
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn a_request_that_waits() {
        let request = pb::OpenRequest {
            seq: 3,
            role: "brain".to_owned(),
            from: Some(pb::Address {
                role: "client".to_owned(),
                member_id: "ann".to_owned(),
                ..pb::Address::default()
            }),
            accepted_at: at(1_700_000_000),
            ..pb::OpenRequest::default()
        };
        let why = pb::WhyResponse {
            summary: "All are busy.".to_owned(),
            state: pb::RequestState::Waiting.into(),
            changed_at: at(1_700_000_001),
            request: Some(request),
            waits_for: pb::WaitsFor::Room.into(),
            place: 2,
            waiting: 7,
            workers: Some(pb::WorkerCounts {
                total: 3,
                serving: 2,
                full: 1,
                away: 1,
                ..pb::WorkerCounts::default()
            }),
            remaining: Some(pb::Timeouts {
                accept: seconds(29),
                total: seconds(599),
                ..pb::Timeouts::default()
            }),
            ..pb::WhyResponse::default()
        };
        let expected = "\
All are busy.

state      waiting for room, since 22:13:21
asked      #3 for brain by client/ann, at 22:13:20
place      2 of 7
workers    2 of 3 serve the session (1 full, 1 away)
remaining  29s to be accepted, 599s in all
";
        assert_eq!(told(&why), expected);
    }

    #[test]
    fn a_request_that_is_over() {
        let why = pb::WhyResponse {
            summary: "It was answered.".to_owned(),
            state: pb::RequestState::Completed.into(),
            changed_at: at(1_700_000_000),
            final_seq: 9,
            ..pb::WhyResponse::default()
        };
        let expected = "It was answered.\n\nstate  completed, since 22:13:20\nend    #9\n";
        assert_eq!(told(&why), expected);
    }
}
