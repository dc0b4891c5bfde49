//! Frames into sessions, requests to workers, and the ends of requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Router;
use super::batch::{Batch, Haste};
use super::link::Link;
use super::live::{AckTo, Answer, Live, Pending, Shared};
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Control, Frame, Sealed, Str, pb};
use crate::log::{Appended, Commit};
use crate::session::dispatch::{Placed, Ticket};
use crate::session::{Cause, ConnectionId, Effect, Kind, Now, Plan, Post, Reply, Verdict, WorkerKey};

/// Who sends a frame.
pub struct Sender<'a> {
    /// The connection, for replies; a call has none.
    pub link: Option<&'a Arc<Link>>,
    /// What `from` will say.
    pub address: Arc<pb::Address>,
    /// What `from` will say of replies, by the slot of what the connection serves.
    pub serves: &'a [Arc<pb::Address>],
    /// Of whom dedup speaks.
    pub name: &'a Str,
}

impl Sender<'_> {
    fn address_of(&self, slot: Option<u32>) -> Arc<pb::Address> {
        let served = slot.and_then(|slot| self.serves.get(slot as usize));
        Arc::clone(served.unwrap_or(&self.address))
    }
}

/// What a frame asks of whom.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The role.
    pub role: Str,
    /// How long it may wait for a worker.
    pub accept: Duration,
    /// How long it may take in all.
    pub total: Duration,
}

/// An accepted frame.
struct Posted {
    accepted: pb::Accepted,
    /// What follows from it now; nothing while it is not durable.
    effects: Vec<Effect>,
    /// It is not durable yet: its ack, and what follows from it, wait for that.
    waits: bool,
    /// The reply that is over with it; nothing while it is not durable.
    answer: Option<Answer>,
}

/// Who is to be told that a frame is accepted, if that has to wait.
enum Whom<'a> {
    Nobody,
    Link(&'a Arc<Link>),
    Call(oneshot::Sender<()>),
}

impl Whom<'_> {
    fn ack(self, accepted: &pb::Accepted) -> Option<AckTo> {
        match self {
            Whom::Nobody => None,
            Whom::Link(link) => Some(AckTo::Link(Arc::clone(link), accepted.clone())),
            Whom::Call(call) => Some(AckTo::Call(call)),
        }
    }
}

/// Whether a frame was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is new.
    New,
    /// It is there already.
    Duplicate,
}

impl Router {
    /// Puts a frame into a session's log. The ack goes into the batch, or to the connection later, when it is durable.
    pub fn publish(
        &self,
        live: &Arc<Live>,
        sender: &Sender<'_>,
        frame: Frame,
        asked: Option<Asked>,
        batch: &mut Batch,
    ) -> Result<Known, Refusal> {
        let is_reply = !frame.reply_to.is_empty();
        let haste = if asked.is_some() || is_reply {
            Haste::Soon
        } else {
            Haste::Now
        };
        let whom = sender.link.map_or(Whom::Nobody, Whom::Link);
        let Posted {
            accepted,
            effects,
            waits,
            answer,
        } = self.post(live, sender, frame, asked, whom, batch.now)?;
        let known = if accepted.duplicate {
            Known::Duplicate
        } else {
            Known::New
        };
        if !waits {
            if known == Known::New {
                batch.touch(live, haste);
            }
            batch.accept(accepted, haste);
        }
        self.carry_out(live, effects, batch);
        self.fold(live, answer);
        Ok(known)
    }

    /// The same for a call: the answer, and what to wait for before it may be given.
    pub fn publish_call(
        &self,
        live: &Arc<Live>,
        sender: &Sender<'_>,
        frame: Frame,
        asked: Option<Asked>,
    ) -> Result<(pb::Accepted, Option<oneshot::Receiver<()>>), Refusal> {
        let mut batch = Batch::new(self.now());
        let (call, durable) = oneshot::channel();
        let posted = self.post(live, sender, frame, asked, Whom::Call(call), batch.now)?;
        if !posted.waits {
            batch.touch(live, Haste::Now);
        }
        self.carry_out(live, posted.effects, &mut batch);
        batch.finish(None);
        Ok((posted.accepted, posted.waits.then_some(durable)))
    }

    /// Whether the request has not ended.
    pub fn is_open(&self, live: &Live, request: &str) -> bool {
        live.lock().session.request(request).is_some()
    }

    fn post(
        &self,
        live: &Arc<Live>,
        sender: &Sender<'_>,
        mut frame: Frame,
        asked: Option<Asked>,
        whom: Whom<'_>,
        now: Now,
    ) -> Result<Posted, Refusal> {
        let is_reply = !frame.reply_to.is_empty() && asked.is_none();
        frame.last = is_reply && (frame.last || matches!(frame.body, Body::Error(_)));
        if asked.is_some() && frame.id.is_empty() {
            frame.id = super::random_name();
        }
        let mut shared = live.lock();
        shared.check_here(live.id())?;
        let post = Post {
            sender: sender.name,
            id: &frame.id,
            kind: kind(&frame, sender, asked.as_ref(), is_reply),
        };
        let plan = match shared.session.plan_post(&post)? {
            Verdict::Append(plan) => plan,
            Verdict::Duplicate { seq, index } => {
                let accepted = pb::Accepted {
                    seq,
                    duplicate: true,
                    index,
                    ..accepted(live, &frame, is_reply)
                };
                return Ok(shared.posted_again(accepted, whom));
            }
        };
        frame.attempt = plan.attempt;
        frame.index = plan.index;
        frame.from = Some(sender.address_of(plan.slot));
        let accepted = pb::Accepted {
            seq: plan.seq,
            index: plan.index,
            ..accepted(live, &frame, is_reply)
        };
        self.append(live, &mut shared, frame, plan, (accepted, whom), now)
    }

    /// Writes the plan's frame to the log, and lets it have happened. What follows from it waits until it is durable, in the
    /// order of the log.
    fn append(
        &self,
        live: &Arc<Live>,
        shared: &mut Shared,
        mut frame: Frame,
        plan: Plan,
        (accepted, whom): (pb::Accepted, Whom<'_>),
        now: Now,
    ) -> Result<Posted, Refusal> {
        let seq = plan.seq;
        frame.seq = seq;
        frame.session_id = live.id().clone();
        frame.timestamp = Some(now.wall.into());
        let frame = Arc::new(Sealed::new(frame));
        let Appended { commit, first } = self.inner.log.append(live.id(), &frame)?;
        let asked = shared.session.request(&frame.reply_to).filter(|_| frame.last);
        let answer = asked.map(|asked| Answer {
            request: asked.id.clone(),
            from: asked.seq,
            to: seq,
        });
        let effects = shared.session.apply(plan, first, Arc::clone(&frame), now);
        shared.keep(frame);
        shared.last_used = now.mono;
        self.arm(live, shared);
        let wait = match commit {
            Commit::Done if shared.pending.is_empty() => {
                shared.committed = seq;
                return Ok(Posted {
                    accepted,
                    effects,
                    waits: false,
                    answer,
                });
            }
            Commit::Done => Box::pin(std::future::ready(Ok(()))),
            Commit::Later(wait) => wait,
        };
        let ack = whom.ack(&accepted);
        shared.pending.push_back(Pending {
            seq,
            effects,
            ack,
            answer,
        });
        let (router, live) = (self.clone(), Arc::clone(live));
        tokio::spawn(async move {
            match wait.await {
                Ok(()) => router.committed(&live, seq),
                Err(error) => router.lost(&live, &error.into()),
            }
        });
        Ok(Posted {
            accepted,
            effects: Vec::new(),
            waits: true,
            answer: None,
        })
    }

    /// Everything up to `seq` is durable.
    fn committed(&self, live: &Arc<Live>, seq: u64) {
        let mut batch = Batch::new(self.now());
        let mut done = Vec::new();
        let mut shared = live.lock();
        shared.committed = shared.committed.max(seq);
        while shared.pending.front().is_some_and(|pending| pending.seq <= seq) {
            done.extend(shared.pending.pop_front());
        }
        drop(shared);
        batch.touch(live, Haste::Now);
        for pending in done {
            self.carry_out(live, pending.effects, &mut batch);
            self.fold(live, pending.answer);
            match pending.ack {
                None => {}
                // A call that is gone needs no answer.
                Some(AckTo::Call(call)) => drop(call.send(())),
                Some(AckTo::Link(link, accepted)) => {
                    link.ack(std::iter::once(accepted));
                    batch.touch_link(&link);
                }
            }
        }
        batch.finish(None);
    }

    fn fold(&self, live: &Live, answer: Option<Answer>) {
        if let Some(Answer { request, from, to }) = answer {
            self.fold_answer(live, &request, from, to);
        }
    }

    /// The log failed after it had taken frames: what this process believes of the session is void.
    fn lost(&self, live: &Arc<Live>, refusal: &Refusal) {
        tracing::error!(session = %live.id(), %refusal, "the log lost frames that it had taken; the session is dropped");
        let pending = std::mem::take(&mut live.lock().pending);
        for pending in pending {
            if let Some(AckTo::Link(link, accepted)) = pending.ack {
                link.refuse(&Str::from(accepted.id), live.id(), refusal);
                link.kick();
            }
        }
        self.evict(live, refusal, |_| true);
    }

    /// Does what the machine said is to be done.
    pub(super) fn carry_out(&self, live: &Arc<Live>, effects: Vec<Effect>, batch: &mut Batch) {
        for effect in effects {
            match effect {
                Effect::Submit { request, role, prefer } => {
                    let ticket = Ticket {
                        session: live.id().clone(),
                        request: request.clone(),
                    };
                    let placed = self.dispatch().submit(ticket, &role, prefer);
                    match placed {
                        Ok(Placed::With(worker)) => {
                            if !self.hand(live, &request, worker, batch) {
                                let tickets = self.dispatch().release(worker);
                                self.hand_all(tickets, worker, batch);
                            }
                        }
                        Ok(Placed::Waiting) => {
                            // It may have ended before it began to wait; then nobody would withdraw it.
                            if !live.lock().session.is_waiting(&request) {
                                let ticket = Ticket {
                                    session: live.id().clone(),
                                    request: request.clone(),
                                };
                                self.dispatch().withdraw(&ticket, &role);
                            }
                            tracing::debug!(session = %live.id(), %request, %role, "request waits for a worker");
                        }
                        Err(_) => self.end_or_retry(live, &request, Cause::TooManyWaiting, batch),
                    }
                }
                Effect::Withdraw { request, role } => {
                    let ticket = Ticket {
                        session: live.id().clone(),
                        request,
                    };
                    self.dispatch().withdraw(&ticket, &role);
                }
                Effect::Release { worker } => self.release(live, worker, batch),
                Effect::Stop { worker, request, cause } => self.stop(live, worker, &request, cause, batch),
            }
        }
    }

    fn stop(&self, live: &Arc<Live>, worker: WorkerKey, request: &Str, cause: Cause, batch: &mut Batch) {
        let Some(link) = self.link(worker.connection) else {
            return;
        };
        let reason = cause
            .reason()
            .map(|reason| reason.row().name.to_owned())
            .unwrap_or_default();
        link.tell(
            live.id(),
            Control::Cancel(pb::Cancel {
                request_id: request.to_string(),
                reason,
                ..pb::Cancel::default()
            }),
        );
        batch.touch_link(&link);
        self.check_stalled(&link);
    }

    /// The worker has room for one more request.
    fn release(&self, live: &Arc<Live>, worker: WorkerKey, batch: &mut Batch) {
        if let Some(link) = self.link(worker.connection) {
            link.let_go(live);
        }
        let tickets = self.dispatch().release(worker);
        self.hand_all(tickets, worker, batch);
    }

    /// Hands waiting requests, of whatever sessions, to a worker. For each that is not needed any more it gets another one.
    pub(super) fn hand_all(&self, tickets: Vec<Ticket>, worker: WorkerKey, batch: &mut Batch) {
        let mut tickets = VecDeque::from(tickets);
        while let Some(ticket) = tickets.pop_front() {
            let live = self.find(&ticket.session);
            let handed = live.is_ok_and(|live| self.hand(&live, &ticket.request, worker, batch));
            if !handed {
                tickets.extend(self.dispatch().release(worker));
            }
        }
    }

    /// Hands a request to the worker that was chosen for it; whether it still needed one.
    fn hand(&self, live: &Arc<Live>, request: &Str, worker: WorkerKey, batch: &mut Batch) -> bool {
        let link = self.link(worker.connection).filter(|link| link.hold(live));
        let mut shared = live.lock();
        let remaining = shared.session.remaining(request, batch.now.mono);
        let frame = shared.session.request(request).map(Arc::clone);
        let assigned = shared.session.assign(request, worker);
        drop(shared);
        let (Some(attempt), Some(frame), Some(remaining)) = (assigned, frame, remaining) else {
            // It ended meanwhile.
            if let Some(link) = link {
                link.let_go(live);
            }
            return false;
        };
        if let Some(link) = &link {
            tracing::debug!(session = %live.id(), %request, connection = %link.name(), attempt, "request handed to a worker");
            link.push(handed(frame.frame(), attempt, remaining));
            batch.touch_link(link);
            self.check_stalled(link);
        }
        if link.is_none_or(|link| link.is_retired()) {
            // It went away between being chosen and being handed the request, too late to be asked what it holds. It is not to
            // be given another one for this one.
            self.dispatch().unregister(worker);
            self.end_or_retry(live, request, Cause::WorkerLost, batch);
        }
        true
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

    /// Ends a request by the gateway. Fails if it is over already, or if the log does not take the end.
    pub fn end(
        &self,
        live: &Arc<Live>,
        request: &str,
        cause: Cause,
        message: &str,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        let reason = cause
            .reason()
            .ok_or_else(|| Refusal::new(Reason::Internal, "an answer needs a worker"))?;
        let message = if message.is_empty() {
            reason.row().text.to_owned()
        } else {
            message.to_owned()
        };
        let mut shared = live.lock();
        if cause.needs_waiting() && !shared.session.is_waiting(request) {
            // It got a worker at the last moment.
            return Ok(());
        }
        let plan = shared.session.plan_end(request, cause)?;
        let frame = Frame {
            reply_to: shared
                .session
                .request(request)
                .map(|frame| frame.frame().id.clone())
                .unwrap_or_default(),
            last: true,
            attempt: plan.attempt,
            index: plan.index,
            from: Some(Arc::clone(&self.inner.gateway)),
            body: Body::Error(Box::new(Refusal::new(reason, message).to_pb())),
            ..Frame::default()
        };
        let told = (pb::Accepted::default(), Whom::Nobody);
        let posted = self.append(live, &mut shared, frame, plan, told, batch.now)?;
        drop(shared);
        tracing::debug!(session = %live.id(), request, %reason, "request ended by the gateway");
        if !posted.waits {
            batch.touch(live, Haste::Now);
        }
        self.carry_out(live, posted.effects, batch);
        self.fold(live, posted.answer);
        Ok(())
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

    /// Sends a frame to whoever is here now.
    pub fn publish_ephemeral(
        &self,
        live: &Arc<Live>,
        sender: &Sender<'_>,
        mut frame: Frame,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        let ends = frame.last || matches!(frame.body, Body::Error(_));
        if ends && !frame.reply_to.is_empty() {
            return Err(Refusal::field(
                "ephemeral",
                "a reply that ends its request cannot be ephemeral",
            ));
        }
        let mut shared = live.lock();
        shared.check_here(live.id())?;
        if frame.reply_to.is_empty() {
            let to = frame.to.as_deref().filter(|to| !to.member_id.is_empty());
            shared.session.check_ephemeral(to.map(|to| to.member_id.as_str()))?;
            frame.attempt = 0;
            frame.from = Some(Arc::clone(&sender.address));
        } else {
            let (attempt, slot) = shared.session.check_ephemeral_reply(reply(&frame, sender))?;
            frame.attempt = attempt;
            frame.from = Some(sender.address_of(Some(slot)));
        }
        frame.session_id = live.id().clone();
        frame.timestamp = Some(batch.now.wall.into());
        frame.seq = 0;
        frame.index = None;
        frame.last = false;
        shared.last_used = batch.now.mono;
        shared.note(frame, false);
        drop(shared);
        batch.touch(live, Haste::Now);
        Ok(())
    }
}

impl Shared {
    /// The ack of a frame that is there already is as good as the first one's: it waits as long.
    fn posted_again(&mut self, accepted: pb::Accepted, whom: Whom<'_>) -> Posted {
        let waits = accepted.seq > self.committed;
        if waits {
            let at = self.pending.partition_point(|pending| pending.seq <= accepted.seq);
            let ack = whom.ack(&accepted);
            let seq = accepted.seq;
            self.pending.insert(
                at,
                Pending {
                    seq,
                    effects: Vec::new(),
                    ack,
                    answer: None,
                },
            );
        }
        Posted {
            accepted,
            effects: Vec::new(),
            waits,
            answer: None,
        }
    }

    /// A session that was deleted under somebody's hands is not there any more.
    pub(super) fn check_here(&self, session: &Str) -> Result<(), Refusal> {
        match self.gone {
            true => Err(Refusal::new(
                Reason::SessionDeleted,
                format!("session {session} was deleted"),
            )),
            false => Ok(()),
        }
    }
}

fn kind<'a>(frame: &'a Frame, sender: &Sender<'_>, asked: Option<&'a Asked>, is_reply: bool) -> Kind<'a> {
    if let Some(Asked { role, accept, total }) = asked {
        return Kind::Request {
            role,
            accept: *accept,
            total: *total,
        };
    }
    if is_reply {
        return Kind::Reply(reply(frame, sender));
    }
    match frame.to.as_deref() {
        Some(to) if !to.member_id.is_empty() => Kind::Private { to: &to.member_id },
        _ => Kind::Event,
    }
}

fn reply<'a>(frame: &'a Frame, sender: &Sender<'_>) -> Reply<'a> {
    Reply {
        request: &frame.reply_to,
        connection: sender.link.map_or(ConnectionId(0), |link| link.id()),
        attempt: frame.attempt,
        index: frame.index,
        last: frame.last,
    }
}

/// The entry of the frame's ack. Chunks without an id are named by their place.
fn accepted(live: &Live, frame: &Frame, is_reply: bool) -> pb::Accepted {
    pb::Accepted {
        session_id: live.id().to_string(),
        id: frame.id.to_string(),
        reply_to: if is_reply {
            frame.reply_to.to_string()
        } else {
            String::new()
        },
        ..pb::Accepted::default()
    }
}

/// A request as its worker gets it.
fn handed(frame: &Frame, attempt: u32, remaining: Duration) -> Frame {
    let total = prost_types::Duration::try_from(remaining).ok();
    let timeouts = pb::Timeouts {
        total,
        ..pb::Timeouts::default()
    };
    let mut options = frame.options.as_deref().cloned().unwrap_or_default();
    options.timeouts = Some(timeouts);
    Frame {
        attempt,
        options: Some(Box::new(options)),
        ..frame.clone()
    }
}
