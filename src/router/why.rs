//! Why a request is where it is: what it waits for, and how long it may.

use std::time::Duration;

use super::Router;
use super::live::state;
use crate::error::Refusal;
use crate::frame::{Str, pb};
use crate::session::dispatch::Counts;
use crate::session::{Ended, Outcome, Remaining, Stage};

impl Router {
    /// Where a request is, and what it waits for.
    pub fn why(&self, session: &str, request: &str) -> Result<pb::WhyResponse, Refusal> {
        let live = self.find(session)?;
        let now = self.now();
        let shared = live.lock();
        let Some(opened) = shared.session.opened(request) else {
            let ended = shared.session.ended(request);
            return ended.map(over).ok_or_else(|| shared.session.no_such_request(request));
        };
        let ticket = live.ticket(opened.id);
        let (counts, place, waiting) = {
            let dispatch = self.dispatch();
            let place = dispatch
                .before(opened.role, &ticket)
                .map_or(0, |before| before as u32 + 1);
            let counts = dispatch.counts(opened.role, live.id());
            (counts, place, dispatch.waiting(opened.role) as u32)
        };
        let behind = shared.session.behind(request).map(Str::to_string).unwrap_or_default();
        let listed = shared.listed(self, &opened);
        let waits_for = waits_for(opened.stage, counts);
        let remaining = shared.session.remaining(request, now.mono).map(timeouts);
        Ok(pb::WhyResponse {
            summary: summary(&listed, waits_for, counts, (place, waiting), &behind),
            state: state(opened.stage) as i32,
            changed_at: listed.changed_at,
            request: Some(listed),
            waits_for: waits_for as i32,
            place,
            waiting,
            behind,
            workers: Some(pb::WorkerCounts {
                total: counts.total,
                serving: counts.serving,
                free: counts.free,
                full: counts.full,
                draining: counts.draining,
                silent: counts.silent,
                away: counts.away,
                denied: counts.denied,
            }),
            remaining,
            final_seq: 0,
        })
    }
}

fn over(ended: &Ended) -> pb::WhyResponse {
    let (state, how) = match ended.outcome {
        Outcome::Completed => (pb::RequestState::Completed, "was answered"),
        Outcome::Failed => (pb::RequestState::Failed, "failed"),
        Outcome::Cancelled => (pb::RequestState::Cancelled, "was cancelled"),
        Outcome::Expired => (pb::RequestState::Expired, "took too long"),
    };
    pb::WhyResponse {
        summary: format!("The request {how}: its final reply is frame {}.", ended.seq),
        state: state as i32,
        changed_at: Some(ended.at.into()),
        final_seq: ended.seq,
        ..pb::WhyResponse::default()
    }
}

/// What remains of a request's times, as frames have it.
pub(super) fn timeouts(remaining: Remaining) -> pb::Timeouts {
    let span = |span: Duration| prost_types::Duration::try_from(span).ok();
    pb::Timeouts {
        accept: remaining.accept.and_then(span),
        first_chunk: remaining.first_chunk.and_then(span),
        idle: remaining.idle.and_then(span),
        total: span(remaining.total),
    }
}

fn waits_for(stage: Stage, counts: Counts) -> pb::WaitsFor {
    match stage {
        Stage::Queued => pb::WaitsFor::ItsTurn,
        Stage::Assigned | Stage::Started | Stage::Cancelling => pb::WaitsFor::Unspecified,
        Stage::Waiting if counts.total == 0 => pb::WaitsFor::AWorker,
        Stage::Waiting if counts.serving == 0 && counts.denied > 0 => pb::WaitsFor::AGrant,
        Stage::Waiting if counts.serving == 0 => pb::WaitsFor::AWorkerOfTheSession,
        Stage::Waiting if counts.free + counts.full > 0 => pb::WaitsFor::Room,
        Stage::Waiting if counts.silent + counts.away > 0 => pb::WaitsFor::Life,
        Stage::Waiting => pb::WaitsFor::AWorkerThatStays,
    }
}

fn summary(
    request: &pb::OpenRequest,
    waits_for: pb::WaitsFor,
    counts: Counts,
    (place, waiting): (u32, u32),
    behind: &str,
) -> String {
    let role = &request.role;
    let queue = format!("It is number {place} of {waiting} in the queue.");
    match waits_for {
        pb::WaitsFor::Unspecified => {
            let what = match request.state() {
                pb::RequestState::Cancelling => "has been told to stop",
                pb::RequestState::Started => "is answering it",
                _ => "has it, and has sent nothing yet",
            };
            let (worker, attempt, chunks) = (&request.worker_id, request.attempt, request.chunks);
            format!("Worker {worker} of the role {role} {what} (attempt {attempt}, {chunks} chunks).")
        }
        pb::WaitsFor::AWorker => format!("No worker serves the role {role}. {queue}"),
        pb::WaitsFor::AWorkerOfTheSession => format!(
            "{} workers serve the role {role}, but none of them this session (see their `sessions`). {queue}",
            counts.total
        ),
        pb::WaitsFor::AGrant => format!(
            "{} workers serve the role {role}, but this session is denied to them by their grants. {queue}",
            counts.denied
        ),
        pb::WaitsFor::Room => format!(
            "All {} workers of the role {role} for this session have as much as they take. {queue}",
            counts.serving
        ),
        pb::WaitsFor::AWorkerThatStays => format!(
            "All {} workers of the role {role} for this session are draining. {queue}",
            counts.serving
        ),
        pb::WaitsFor::Life => format!(
            "No worker of the role {role} for this session is there: {} silent, {} away, {} draining. {queue}",
            counts.silent, counts.away, counts.draining
        ),
        pb::WaitsFor::ItsTurn => format!("It waits for the end of request {behind} of its session."),
    }
}
