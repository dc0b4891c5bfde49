//! Requests on their way to workers, and their ends: what the session machine says is to be done is done here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::Router;
use super::batch::{Batch, Haste};
use super::link::Link;
use super::live::{Live, Shared, state};
use super::publish::{Posted, Whom};
use super::seat::Circle;
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Control, Frame, Sealed, Str, pb};
use crate::session::dispatch::{Counts, Placed, Ticket, Wish};
use crate::session::{Cancelled, Cause, Due, Effect, Now, Outcome, Plan, Remaining, Stage, Stop, WorkerKey};

/// What became of a request that a worker was chosen for.
enum Handed {
    /// The worker has it.
    Yes,
    /// It needs no worker any more.
    NotNeeded,
    /// The worker cannot be reached any more.
    Unreachable,
}

impl Router {
    /// Does what the machine said is to be done.
    pub(super) fn carry_out(&self, live: &Arc<Live>, effects: Vec<Effect>, batch: &mut Batch) {
        for effect in effects {
            match effect {
                Effect::Submit {
                    request,
                    role,
                    prefer,
                    affinity,
                } => {
                    let wish = Wish {
                        worker: prefer,
                        affinity,
                    };
                    self.submit(live, request, &role, wish, batch);
                }
                Effect::Withdraw { request, role } => {
                    let ticket = Ticket {
                        session: live.id().clone(),
                        request,
                    };
                    self.dispatch().withdraw(&ticket, &role);
                }
                Effect::Release { worker } => self.release(live, worker, batch),
                Effect::Fold { request, from, to } => self.fold_answer(live, &request, from, to),
                Effect::Stop { worker, request, why } => self.stop(live, worker, &request, why, batch),
            }
        }
    }

    fn submit(&self, live: &Arc<Live>, request: Str, role: &Str, wish: Wish, batch: &mut Batch) {
        let ticket = Ticket {
            session: live.id().clone(),
            request: request.clone(),
        };
        let placed = self.dispatch().submit(ticket.clone(), role, wish);
        match placed {
            Ok(Placed::With(worker)) => self.hand_all(vec![ticket], worker, batch),
            Ok(Placed::Waiting) => {
                let mut shared = live.lock();
                if shared.session.is_waiting(&request) {
                    tracing::debug!(session = %live.id(), %request, %role, "request waits for a worker");
                    shared.note_request(self, &request, batch, live);
                } else {
                    // It ended before it began to wait; then nobody would withdraw it.
                    self.dispatch().withdraw(&ticket, role);
                }
            }
            Err(_) => self.end_or_retry(live, &request, Cause::TooManyWaiting, batch),
        }
    }

    fn stop(&self, live: &Arc<Live>, worker: WorkerKey, request: &Str, why: Stop, batch: &mut Batch) {
        let Some(link) = self.worker(worker).and_then(|worker| worker.link()) else {
            return;
        };
        let (reason, grace) = match why {
            Stop::Ended(cause) => (cause.reason(), None),
            Stop::Superseded => (Some(Reason::Superseded), None),
            Stop::Cancelled(grace) => (
                Some(Reason::RequestCancelled),
                prost_types::Duration::try_from(grace).ok(),
            ),
        };
        let cancel = pb::Cancel {
            request_id: request.to_string(),
            reason: reason.map_or("", |reason| reason.row().name).to_owned(),
            grace,
        };
        link.tell(live.id(), Control::Cancel(cancel));
        batch.touch_link(&link);
        self.check_stalled(&link);
    }

    /// The worker has room for one more request.
    fn release(&self, live: &Arc<Live>, key: WorkerKey, batch: &mut Batch) {
        if let Some(worker) = self.worker(key) {
            worker.let_go(live);
        }
        let tickets = self.dispatch().release(key);
        self.hand_all(tickets, key, batch);
    }

    /// Hands requests, of whatever sessions, to a worker that was chosen for them. For each that is not needed any more it gets
    /// another one.
    pub(super) fn hand_all(&self, tickets: Vec<Ticket>, worker: WorkerKey, batch: &mut Batch) {
        let mut tickets = VecDeque::from(tickets);
        while let Some(ticket) = tickets.pop_front() {
            let Ok(live) = self.find(&ticket.session) else {
                tickets.extend(self.dispatch().release(worker));
                continue;
            };
            match self.hand(&live, &ticket.request, worker, batch) {
                Handed::Yes => {}
                Handed::NotNeeded => tickets.extend(self.dispatch().release(worker)),
                Handed::Unreachable => {
                    // Dispatch knows that by now, and chooses another one.
                    self.dispatch().release(worker);
                    let again = live.lock().session.submit_again(&ticket.request);
                    self.carry_out(&live, again, batch);
                }
            }
        }
    }

    fn hand(&self, live: &Arc<Live>, request: &Str, key: WorkerKey, batch: &mut Batch) -> Handed {
        let Some(worker) = self.worker(key) else {
            return Handed::Unreachable;
        };
        let Some(link) = worker.hold(live, self.tick()) else {
            return Handed::Unreachable;
        };
        let assigned = {
            let mut shared = live.lock();
            let attempt = shared.session.assign(request, key, link.id(), batch.now);
            if attempt.is_some() {
                shared.note_request(self, request, batch, live);
                self.arm(live, &mut shared);
            }
            let frame = shared.session.request(request).map(Arc::clone);
            attempt.zip(frame.zip(shared.session.remaining(request, batch.now.mono)))
        };
        let Some((attempt, (frame, remaining))) = assigned else {
            worker.let_go(live);
            return Handed::NotNeeded;
        };
        tracing::debug!(session = %live.id(), %request, connection = %link.name(), worker = %worker.name(), attempt, "request assigned");
        link.push(handed(&frame, attempt, remaining));
        batch.touch_link(&link);
        self.check_stalled(&link);
        if !worker.is_at(&link) {
            // It went away between being chosen and being handed the request, too late to be asked what it holds.
            self.end_or_retry(live, request, Cause::WorkerLost(key), batch);
        }
        Handed::Yes
    }

    /// What others send to a connection alone is bounded too: one that leaves so much of it unread is stuck.
    fn check_stalled(&self, link: &Link) {
        let limit = self.limits().unread_bytes;
        if link.unread() > limit {
            tracing::warn!(connection = %link.name(), limit, "a worker reads nothing of what it is handed; disconnected");
            let text = format!("more than {limit} bytes were left unread; connect again");
            link.cut(Some(
                Refusal::new(Reason::Stalled, text).with("limit", limit.to_string()),
            ));
        }
    }

    /// Ends a request by the gateway, or begins it again if that is what its terms make of the cause. Fails if it is over
    /// already, or if the log does not take the end. A cause that does not apply any more changes nothing.
    pub fn end(
        &self,
        live: &Arc<Live>,
        request: &str,
        cause: Cause,
        message: &str,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        let posted = {
            let mut shared = live.lock();
            let Some(plan) = shared.session.plan_end(request, cause, batch.now.mono)? else {
                return Ok(());
            };
            self.end_by(live, &mut shared, (request, plan), message, batch.now)?
        };
        if !posted.waits {
            batch.touch(live, Haste::Now);
        }
        self.carry_out(live, posted.effects, batch);
        Ok(())
    }

    /// Writes an end that was planned to the log.
    pub(super) fn end_by(
        &self,
        live: &Arc<Live>,
        shared: &mut Shared,
        (request, plan): (&str, Plan),
        message: &str,
        now: Now,
    ) -> Result<Posted, Refusal> {
        let error = shared.session_error(request, &plan, message)?;
        let body = match plan.restarts() {
            true => Body::Control(Box::new(Control::Restarted(pb::Restarted { error: Some(error) }))),
            false => Body::Error(Box::new(error)),
        };
        let frame = Frame {
            reply_to: shared
                .session
                .request(request)
                .map(|frame| frame.frame().id.clone())
                .unwrap_or_default(),
            last: !plan.restarts(),
            attempt: plan.attempt,
            index: plan.index,
            from: Some(Arc::clone(&self.inner.gateway)),
            body,
            ..Frame::default()
        };
        let told = (pb::Accepted::default(), Whom::Nobody);
        self.append(live, shared, frame, plan, told, now)
    }

    /// The same for ends that must be: if the log refuses, the timers try again.
    pub(super) fn end_or_retry(&self, live: &Arc<Live>, request: &str, cause: Cause, batch: &mut Batch) {
        match self.end(live, request, cause, "", batch) {
            Ok(()) => {}
            Err(refusal) if matches!(refusal.reason, Reason::RequestEnded | Reason::RequestNotFound) => {}
            Err(refusal) => {
                tracing::warn!(session = %live.id(), request, %refusal, "a request's end could not be logged; trying again");
                let mut shared = live.lock();
                if !shared.unended.iter().any(|(unended, _)| *unended == *request) {
                    shared.unended.push((request.into(), cause));
                }
                self.arm(live, &mut shared);
            }
        }
    }

    /// What ends a request whose time is up.
    pub(super) fn cause_of(&self, live: &Live, request: &str, due: Due) -> Cause {
        match due {
            Due::Total => Cause::TotalTimeout,
            Due::FirstChunk => Cause::FirstChunkTimeout,
            Due::Idle => Cause::IdleTimeout,
            Due::Cancel => Cause::Cancelled,
            Due::AskerGone => Cause::AskerGone,
            Due::Accept => {
                let shared = live.lock();
                let opened = shared.session.opened(request);
                let unserved = opened.is_some_and(|opened| {
                    opened.stage == Stage::Waiting && !self.dispatch().is_served(opened.role, live.id())
                });
                if unserved {
                    Cause::NoWorker
                } else {
                    Cause::AcceptTimeout
                }
            }
        }
    }

    /// Has a request end: at once, or by its worker within the grace.
    pub fn cancel(
        &self,
        live: &Arc<Live>,
        request: &str,
        message: &str,
        grace: Option<Duration>,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        let grace = grace.unwrap_or(self.limits().cancel_grace);
        let asked = {
            let mut shared = live.lock();
            let asked = shared.session.cancel(request, message, grace, batch.now)?;
            if let Cancelled::Asked(_) = asked {
                shared.note_request(self, request, batch, live);
                self.arm(live, &mut shared);
            }
            asked
        };
        match asked {
            Cancelled::Now => self.end(live, request, Cause::Cancelled, message, batch),
            Cancelled::Asked(effects) => {
                tracing::debug!(session = %live.id(), request, "request is being cancelled");
                self.carry_out(live, effects, batch);
                Ok(())
            }
        }
    }

    /// Where a request is, and what it waits for.
    pub fn why(&self, session: &str, request: &str) -> Result<pb::WhyResponse, Refusal> {
        let live = self.find(session)?;
        let now = self.now();
        let shared = live.lock();
        let Some(opened) = shared.session.opened(request) else {
            let ended = shared.session.ended(request);
            let ended = ended.ok_or_else(|| shared.session.no_such_request(request))?;
            let (state, how) = match ended.outcome {
                Outcome::Completed => (pb::RequestState::Completed, "was answered"),
                Outcome::Failed => (pb::RequestState::Failed, "failed"),
                Outcome::Cancelled => (pb::RequestState::Cancelled, "was cancelled"),
                Outcome::Expired => (pb::RequestState::Expired, "took too long"),
            };
            return Ok(pb::WhyResponse {
                summary: format!("The request {how}: its final reply is frame {}.", ended.seq),
                state: state as i32,
                changed_at: Some(ended.at.into()),
                final_seq: ended.seq,
                ..pb::WhyResponse::default()
            });
        };
        let ticket = Ticket {
            session: live.id().clone(),
            request: opened.id.clone(),
        };
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
            }),
            remaining,
            final_seq: 0,
        })
    }
}

impl Shared {
    /// What the session is told of the end of a request, or of its attempt.
    fn session_error(&self, request: &str, plan: &Plan, message: &str) -> Result<pb::Error, Refusal> {
        let cause = plan.cause();
        let reason = cause
            .and_then(Cause::reason)
            .ok_or_else(|| Refusal::new(Reason::Internal, "an answer needs a worker"))?;
        let said = match message.is_empty() && cause == Some(Cause::Cancelled) {
            true => self.session.cancel_message(request).unwrap_or_default(),
            false => message,
        };
        let message = if said.is_empty() { reason.row().text } else { said };
        Ok(Refusal::new(reason, message).to_pb())
    }

    /// Tells those who want to know where the request is now.
    pub fn note_request(&mut self, router: &Router, request: &str, batch: &mut Batch, live: &Arc<Live>) {
        if !self.has_circle(Circle::Requests) {
            return;
        }
        let Some(opened) = self.session.opened(request) else {
            return;
        };
        let changed = pb::RequestChanged {
            request: Some(self.listed(router, &opened)),
        };
        let frame = self.control(Control::RequestChanged(changed));
        self.note(frame, Circle::Requests);
        batch.touch(live, Haste::Now);
    }
}

/// A request as its worker gets it.
fn handed(frame: &Sealed, attempt: u32, remaining: Remaining) -> Frame {
    let frame = frame.frame();
    let mut options = frame.options.as_deref().cloned().unwrap_or_default();
    let idle = options.timeouts.and_then(|timeouts| timeouts.idle);
    options.timeouts = Some(pb::Timeouts {
        idle,
        ..timeouts(remaining)
    });
    Frame {
        attempt,
        options: Some(Box::new(options)),
        ..frame.clone()
    }
}

fn timeouts(remaining: Remaining) -> pb::Timeouts {
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
