//! Requests on their way to workers, and their ends: what the session machine says is to be done is done here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::Router;
use super::batch::{Batch, Haste};
use super::link::Link;
use super::live::{Live, Shared};
use super::publish::{Posted, Whom};
use super::seat::Circle;
use super::why::timeouts;
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Control, Frame, Sealed, Str, pb};
use crate::session::dispatch::{Placed, Ticket, Wish};
use crate::session::{Cancelled, Cause, Due, Effect, Holder, Now, Plan, Remaining, Stage, Stop, WorkerKey};

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
    /// Does what the machine said is to be done. What that brings about is done after it, not within it: there may be much.
    pub(super) fn carry_out(&self, live: &Arc<Live>, effects: Vec<Effect>, batch: &mut Batch) {
        if effects.is_empty() || !batch.add_work(live, effects) {
            return;
        }
        while let Some((live, effect)) = batch.next_work() {
            self.carry_out_one(&live, effect, batch);
        }
    }

    fn carry_out_one(&self, live: &Arc<Live>, effect: Effect, batch: &mut Batch) {
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
                self.submit(live, &request, &role, wish, batch);
            }
            Effect::Withdraw { request, role } => self.dispatch().withdraw(&live.ticket(&request), &role),
            Effect::Release { worker } => self.release(live, worker, batch),
            Effect::Fold { request, from, to } => self.fold_answer(live, &request, from, to),
            Effect::Stop {
                worker,
                request,
                attempt,
                why,
            } => self.stop(live, worker, (&request, attempt), why, batch),
        }
    }

    fn submit(&self, live: &Arc<Live>, request: &Str, role: &Str, wish: Wish, batch: &mut Batch) {
        let placed = self.dispatch().submit(live.ticket(request), role, wish);
        match placed {
            Ok(Placed::With(worker)) => {
                let instead = self.hand_over(live, request, worker, batch);
                self.hand_all(instead, worker, batch);
            }
            Ok(Placed::Waiting) => {
                let mut shared = live.lock();
                if shared.session.is_waiting(request) {
                    tracing::debug!(session = %live.id(), %request, %role, "request waits for a worker");
                    shared.note_request(self, request, batch, live);
                } else {
                    // It ended before it began to wait; then nobody would withdraw it.
                    self.dispatch().withdraw(&live.ticket(request), role);
                }
            }
            Err(_) => self.end_or_retry(live, request, Cause::TooManyWaiting, batch),
        }
    }

    fn stop(&self, live: &Arc<Live>, worker: WorkerKey, (request, attempt): (&Str, u32), why: Stop, batch: &mut Batch) {
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
            attempt,
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
            let live = self.find(&ticket.session).ok();
            tickets.extend(match live.filter(|live| *live.epoch() == ticket.epoch) {
                Some(live) => self.hand_over(&live, &ticket.request, worker, batch),
                None => self.dispatch().release(worker),
            });
        }
    }

    /// Hands a request to the worker that was chosen for it; what the worker gets instead, if it does not get this one.
    fn hand_over(&self, live: &Arc<Live>, request: &Str, worker: WorkerKey, batch: &mut Batch) -> Vec<Ticket> {
        match self.hand(live, request, worker, batch) {
            Handed::Yes => Vec::new(),
            Handed::NotNeeded => self.dispatch().release(worker),
            Handed::Unreachable => {
                // Dispatch knows that by now, and chooses another one; if this one is back already, it may get others.
                let instead = self.dispatch().release(worker);
                let again = live.lock().session.submit_again(request);
                self.carry_out(live, again, batch);
                instead
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
                self.note_standing(live, &shared, request);
                shared.note_request(self, request, batch, live);
                self.arm(live, &mut shared);
            }
            let frame = shared.session.request(request).map(|held| Arc::clone(&held.frame));
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
        let holder = Holder { worker: key, attempt };
        let missed = live.lock().session.missed(request, holder, batch.now.mono);
        if let Some(cause) = worker.lost_by(&link, attempt) {
            // It went away, or fell silent, in between: too late to be asked what it holds.
            self.end_or_retry(live, request, cause, batch);
        } else if let Some(why) = missed {
            // It was told to stop before it was told of the request.
            self.stop(live, key, (request, attempt), why, batch);
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
                .map(|held| held.frame.frame().id.clone())
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

    /// The subject that asked an open request.
    pub fn asker(&self, live: &Live, request: &str) -> Option<String> {
        let asked_by = live.lock().asked_by(request)?;
        Some(asked_by.subject.clone())
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
                self.note_standing(live, &shared, request);
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
