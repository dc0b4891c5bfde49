//! Frames into sessions, requests to workers, and the ends of requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Router;
use super::batch::Batch;
use super::link::Link;
use super::live::{AckTo, Live, Pending, Shared};
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

/// An accepted frame, and when it is durable.
struct Posted {
    accepted: pb::Accepted,
    effects: Vec<Effect>,
    later: Option<crate::log::Wait<()>>,
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
    ) -> Result<(), Refusal> {
        let posted = self.post(live, sender, frame, asked, batch.now)?;
        let accepted = posted.accepted.clone();
        match sender.link {
            Some(link) if posted.later.is_some() => {
                let ack = AckTo::Link(Arc::clone(link), accepted);
                self.settle(live, posted, Some(ack), batch);
            }
            _ => {
                self.settle(live, posted, None, batch);
                batch.accept(accepted);
            }
        }
        Ok(())
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
        let posted = self.post(live, sender, frame, asked, batch.now)?;
        let accepted = posted.accepted.clone();
        let (ack, wait) = match posted.later {
            None => (None, None),
            Some(_) => {
                let (tell, wait) = oneshot::channel();
                (Some(AckTo::Call(tell)), Some(wait))
            }
        };
        self.settle(live, posted, ack, &mut batch);
        batch.finish(None);
        Ok((accepted, wait))
    }

    fn post(
        &self,
        live: &Arc<Live>,
        sender: &Sender<'_>,
        mut frame: Frame,
        asked: Option<Asked>,
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
        // A private frame's addressee is looked up by its text.
        let plan = match shared.session.plan_post(&post)? {
            Verdict::Append(plan) => plan,
            Verdict::Duplicate { seq, index } => {
                let accepted = pb::Accepted {
                    seq,
                    duplicate: true,
                    index,
                    ..accepted(live, &frame, is_reply)
                };
                return Ok(Posted {
                    accepted,
                    effects: Vec::new(),
                    later: None,
                });
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
        let (effects, later) = self.append(live, &mut shared, frame, plan, now)?;
        Ok(Posted {
            accepted,
            effects,
            later,
        })
    }

    /// Writes the plan's frame to the log, and lets it have happened.
    fn append(
        &self,
        live: &Arc<Live>,
        shared: &mut Shared,
        mut frame: Frame,
        plan: Plan,
        now: Now,
    ) -> Result<(Vec<Effect>, Option<crate::log::Wait<()>>), Refusal> {
        frame.seq = plan.seq;
        frame.session_id = live.id().clone();
        frame.timestamp = Some(now.wall.into());
        let frame = Arc::new(Sealed::new(frame));
        let Appended { commit, first } = self.inner.log.append(live.id(), &frame)?;
        let seq = plan.seq;
        let effects = shared.session.apply(plan, first, Arc::clone(&frame), now);
        shared.keep(frame);
        shared.last_used = now.mono;
        let later = match commit {
            Commit::Done if shared.pending.is_empty() => {
                shared.committed = seq;
                None
            }
            Commit::Done => Some(Box::pin(std::future::ready(Ok(()))) as crate::log::Wait<()>),
            Commit::Later(wait) => Some(wait),
        };
        self.arm(live, shared);
        Ok((effects, later))
    }

    /// Does what follows from an accepted frame: now, or when it is durable.
    fn settle(&self, live: &Arc<Live>, posted: Posted, ack: Option<AckTo>, batch: &mut Batch) {
        let Posted {
            accepted,
            effects,
            later,
        } = posted;
        let Some(wait) = later else {
            if !accepted.duplicate {
                batch.touch(live);
            }
            self.carry_out(live, effects, batch);
            return;
        };
        live.lock().pending.push_back(Pending {
            seq: accepted.seq,
            effects,
            ack,
        });
        let router = self.clone();
        let live = Arc::clone(live);
        tokio::spawn(async move {
            match wait.await {
                Ok(()) => router.committed(&live, accepted.seq),
                Err(error) => router.lost(&live, &error.into()),
            }
        });
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
        batch.touch(live);
        let mut acks: Vec<(Arc<Link>, Vec<pb::Accepted>)> = Vec::new();
        for pending in done {
            self.carry_out(live, pending.effects, &mut batch);
            match pending.ack {
                None => {}
                // A call that is gone needs no answer.
                Some(AckTo::Call(call)) => drop(call.send(())),
                Some(AckTo::Link(link, accepted)) => match acks.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &link))
                {
                    Some((_, list)) => list.push(accepted),
                    None => acks.push((link, vec![accepted])),
                },
            }
        }
        for (link, accepted) in acks {
            link.tell(&Str::EMPTY, Control::Ack(pb::Ack { accepted }));
            batch.touch_link(&link);
        }
        batch.finish(None);
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
        self.evict(live, refusal);
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
                        Ok(Placed::With(worker)) => self.hand(live, &request, worker, batch),
                        Ok(Placed::Waiting) => {
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
            }),
        );
        batch.touch_link(&link);
    }

    /// The worker has room for one more request.
    fn release(&self, live: &Arc<Live>, worker: WorkerKey, batch: &mut Batch) {
        if let Some(link) = self.link(worker.connection) {
            link.let_go(live);
        }
        let tickets = self.dispatch().release(worker);
        self.hand_all(tickets, worker, batch);
    }

    /// Hands waiting requests, of whatever sessions, to a worker.
    pub(super) fn hand_all(&self, tickets: Vec<Ticket>, worker: WorkerKey, batch: &mut Batch) {
        for ticket in tickets {
            match self.find(&ticket.session) {
                Ok(live) => self.hand(&live, &ticket.request, worker, batch),
                Err(_) => {
                    let more = self.dispatch().release(worker);
                    self.hand_all(more, worker, batch);
                }
            }
        }
    }

    /// Hands a request to the worker that was chosen for it.
    fn hand(&self, live: &Arc<Live>, request: &Str, worker: WorkerKey, batch: &mut Batch) {
        let link = self.link(worker.connection).filter(|link| link.hold(live));
        let mut shared = live.lock();
        let remaining = shared.session.remaining(request, batch.now.mono);
        let frame = shared.session.request(request).map(Arc::clone);
        let assigned = shared.session.assign(request, worker);
        drop(shared);
        let (Some(attempt), Some(frame), Some(remaining)) = (assigned, frame, remaining) else {
            // It ended meanwhile.
            return self.release(live, worker, batch);
        };
        let Some(link) = link else {
            return self.end_or_retry(live, request, Cause::WorkerLost, batch);
        };
        tracing::debug!(session = %live.id(), %request, connection = %link.name(), attempt, "request handed to a worker");
        link.push(handed(frame.frame(), attempt, remaining));
        batch.touch_link(&link);
        if link.is_closed() {
            // It went away between being chosen and being handed the request, too late to be asked what it holds.
            self.end_or_retry(live, request, Cause::WorkerLost, batch);
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
        let seq = plan.seq;
        let (effects, later) = self.append(live, &mut shared, frame, plan, batch.now)?;
        drop(shared);
        tracing::debug!(session = %live.id(), request, %reason, "request ended by the gateway");
        let accepted = pb::Accepted {
            seq,
            ..pb::Accepted::default()
        };
        self.settle(
            live,
            Posted {
                accepted,
                effects,
                later,
            },
            None,
            batch,
        );
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
                shared.unended.push((request.into(), cause));
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
        batch.touch(live);
        Ok(())
    }
}

impl Shared {
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
