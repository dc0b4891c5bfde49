//! Frames into sessions.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Router;
use super::batch::{Batch, Haste};
use super::held::Held;
use super::link::Link;
use super::live::{AckTo, Live, Pending, Shared};
use super::seat::Circle;
use super::sessions::Away;
use crate::auth::Reach;
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Frame, Sealed, Str, pb};
use crate::log::{Appended, Commit};
use crate::session::{
    Cause, Concurrency, ConnectionId, Effect, Kind, Now, Outcome, Plan, Post, Reply, Step, Terms, Verdict, WorkerKey,
};

/// Who sends a frame.
pub struct Sender<'a> {
    /// The connection, for replies; a call has none.
    pub link: Option<&'a Arc<Link>>,
    /// What `from` will say.
    pub address: Arc<pb::Address>,
    /// What `from` will say of replies, by the worker that the connection is.
    pub serves: &'a [(WorkerKey, Arc<pb::Address>)],
    /// The same in one word (`session::sender`): of whom dedup speaks.
    pub name: &'a Str,
}

impl Sender<'_> {
    fn address_of(&self, worker: Option<WorkerKey>) -> Arc<pb::Address> {
        let served = self.serves.iter().find(|(key, _)| Some(*key) == worker);
        Arc::clone(served.map_or(&self.address, |(_, address)| address))
    }
}

/// What a frame asks of whom.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The role.
    pub role: Str,
    /// How it is to be carried out.
    pub terms: Terms,
    /// Whose requests may end for it, if it replaces others.
    pub reach: Reach,
}

/// An accepted frame.
pub(super) struct Posted {
    pub accepted: pb::Accepted,
    /// What follows from it now; nothing while it is not durable.
    pub effects: Vec<Effect>,
    /// It is not durable yet: its ack, and what follows from it, wait for that.
    pub waits: bool,
}

/// Who is to be told that a frame is accepted, if that has to wait.
pub(super) enum Whom<'a> {
    Nobody,
    Link(&'a Arc<Link>),
    Call(oneshot::Sender<()>),
}

impl Whom<'_> {
    fn ack(self, accepted: &pb::Accepted) -> Option<AckTo> {
        match self {
            Whom::Nobody => None,
            Whom::Link(link) => {
                link.owe_ack();
                Some(AckTo::Link(Arc::clone(link), accepted.clone()))
            }
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
        let mut before = Vec::new();
        let posted = self.post(live, sender, frame, asked, (whom, &mut before), batch.now);
        self.make_way(live, before, batch);
        let Posted {
            accepted,
            effects,
            waits,
        } = posted.inspect_err(|refusal| self.count_refused(refusal))?;
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
        let mut before = Vec::new();
        let posted = self.post(live, sender, frame, asked, (Whom::Call(call), &mut before), batch.now);
        self.make_way(live, before, &mut batch);
        let posted = posted.inspect_err(|_| batch.finish(None))?;
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
        (whom, before): (Whom<'_>, &mut Vec<Effect>),
        now: Now,
    ) -> Result<Posted, Refusal> {
        let is_reply = !frame.reply_to.is_empty() && asked.is_none();
        frame.last = is_reply && (frame.last || matches!(frame.body, Body::Error(_)));
        if asked.is_some() && frame.id.is_empty() {
            frame.id = super::random_name();
        }
        let substance = match frame.id.is_empty() {
            true => 0,
            false => frame.substance(self.types()),
        };
        let mut shared = live.lock();
        shared.check_here(live.id())?;
        shared.check_own(sender)?;
        let post = Post {
            sender: sender.name,
            id: &frame.id,
            substance,
            kind: kind(&frame, sender, asked.as_ref(), is_reply),
        };
        let mut verdict = shared.session.plan_post(&post)?;
        if let (Verdict::Append(_), Some(asked)) = (&verdict, &asked)
            && asked.terms.concurrency == Concurrency::Replace
        {
            shared.check_rivals(asked, &sender.address.subject)?;
            self.end_rivals(live, &mut shared, &asked.role, (before, now))?;
            verdict = shared.session.plan_post(&post)?;
        }
        let plan = match verdict {
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
        frame.from = Some(sender.address_of(plan.worker));
        shared.address_to(&mut frame, sender);
        let accepted = pb::Accepted {
            seq: plan.seq,
            index: plan.index,
            ..accepted(live, &frame, is_reply)
        };
        self.append(live, &mut shared, frame, plan, (accepted, whom), now)
    }

    /// What comes from superseded attempts, or after the end, is counted.
    fn count_refused(&self, refusal: &Refusal) {
        if matches!(refusal.reason, Reason::Superseded | Reason::RequestEnded) {
            self.inner.counters.fenced.count();
        }
    }

    /// A new request takes the place of those that are open for its role. What follows from that is to be done also if the
    /// new one is then refused.
    fn end_rivals(
        &self,
        live: &Arc<Live>,
        shared: &mut Shared,
        role: &str,
        (effects, now): (&mut Vec<Effect>, Now),
    ) -> Result<(), Refusal> {
        for rival in shared.session.rivals(role) {
            if let Some(plan) = shared.session.plan_end(&rival, Cause::Replaced, now.mono)? {
                effects.extend(self.end_by(live, shared, (&rival, plan), "", now)?.effects);
            }
        }
        Ok(())
    }

    fn make_way(&self, live: &Arc<Live>, effects: Vec<Effect>, batch: &mut Batch) {
        if !effects.is_empty() {
            batch.touch(live, Haste::Now);
            self.carry_out(live, effects, batch);
        }
    }

    /// Writes the plan's frame to the log, and lets it have happened. What follows from it waits until it is durable, in the
    /// order of the log.
    pub(super) fn append(
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
        let shares = match plan.step() {
            Step::Opened(_) => Some(self.hold(&shared.request_bytes, &frame)?),
            _ => None,
        };
        let entry = self.entry(shared, &frame, &plan, now);
        let Appended { commit, first } = self.inner.log.append(live.id(), entry)?;
        self.record(live, &plan);
        if let Step::Ended(request, _) = plan.step() {
            shared.unended.retain(|(unended, _)| unended != request);
        }
        let held = Held {
            frame: Arc::clone(&frame),
            _shares: shares,
        };
        let effects = shared.session.apply(plan, first, held, now);
        shared.keep(frame);
        shared.last_used = now.mono;
        self.arm(live, shared);
        if commit == Commit::Done {
            shared.committed = seq;
            return Ok(Posted {
                accepted,
                effects,
                waits: false,
            });
        }
        let ack = whom.ack(&accepted);
        shared.pending.push_back(Pending { seq, effects, ack });
        Ok(Posted {
            accepted,
            effects: Vec::new(),
            waits: true,
        })
    }

    /// What happens to requests is counted, and told to operators.
    fn record(&self, live: &Live, plan: &Plan) {
        let counters = &self.inner.counters;
        let (session, seq, attempt) = (live.id(), plan.seq, plan.attempt);
        match plan.step() {
            Step::None => {}
            Step::Opened(request) => {
                counters.requests.count();
                tracing::debug!(%session, %request, seq, "request accepted");
            }
            Step::Chunk(request) if plan.index == Some(0) => {
                tracing::debug!(%session, %request, seq, attempt, "request started");
            }
            Step::Chunk(_) => {}
            Step::Restarted(request, cause) => {
                counters.restarts.count();
                tracing::debug!(%session, %request, seq, attempt, ?cause, "request restarted");
            }
            Step::Ended(request, cause) => {
                counters.ended(cause);
                tracing::debug!(%session, %request, seq, attempt, outcome = ?cause.outcome(), ?cause, "request ended");
            }
        }
    }

    /// Everything up to `seq` is durable.
    pub(super) fn committed(&self, live: &Arc<Live>, seq: u64, first: u64) {
        let mut batch = Batch::new(self.now());
        let mut done = Vec::new();
        let mut shared = live.lock();
        shared.committed = shared.committed.max(seq);
        shared.trimmed(first);
        shared.is_there = true;
        while shared.pending.front().is_some_and(|pending| pending.seq <= seq) {
            done.extend(shared.pending.pop_front());
        }
        drop(shared);
        batch.touch(live, Haste::Now);
        for pending in done {
            self.carry_out(live, pending.effects, &mut batch);
            match pending.ack {
                None => {}
                // A call that is gone needs no answer.
                Some(AckTo::Call(call)) => drop(call.send(())),
                Some(AckTo::Link(link, accepted)) => {
                    link.ack(std::iter::once(accepted));
                    link.settle_ack();
                    batch.touch_link(&link);
                }
            }
        }
        batch.finish(None);
    }

    /// The log failed after it had taken frames: what this process believes of the session is void.
    pub(super) fn lost(&self, live: &Arc<Live>, refusal: &Refusal) {
        tracing::error!(session = %live.id(), %refusal, "the log lost frames that it had taken; the session is dropped");
        self.evict(live, refusal, Away::Unloaded, |_| true);
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
        shared.check_own(sender)?;
        if frame.reply_to.is_empty() {
            let to = frame.to.as_deref().filter(|to| !to.member_id.is_empty());
            shared.session.check_ephemeral(to.map(|to| to.member_id.as_str()))?;
            frame.attempt = 0;
            frame.from = Some(Arc::clone(&sender.address));
            shared.address_to(&mut frame, sender);
        } else {
            let noted = shared.session.note_reply(reply(&frame, sender), batch.now.mono);
            let (attempt, worker) = noted.inspect_err(|refusal| self.count_refused(refusal))?;
            frame.attempt = attempt;
            frame.from = Some(sender.address_of(Some(worker)));
        }
        frame.session_id = live.id().clone();
        frame.timestamp = Some(batch.now.wall.into());
        frame.seq = 0;
        frame.index = None;
        frame.last = false;
        shared.last_used = batch.now.mono;
        shared.note(frame, Circle::All);
        drop(shared);
        batch.touch(live, Haste::Now);
        Ok(())
    }
}

impl Shared {
    /// Whoever takes the place of others' requests ends them.
    fn check_rivals(&self, asked: &Asked, subject: &str) -> Result<(), Refusal> {
        let rivals = self.session.rivals(&asked.role);
        let is_allowed = |rival: &Str| match asked.reach {
            Reach::Any => true,
            Reach::Own => self.asked_by(rival).is_some_and(|asker| asker.subject == *subject),
            Reach::None => false,
        };
        match rivals.iter().find(|rival| !is_allowed(rival)) {
            None => Ok(()),
            Some(_) => {
                let text = "somebody else's request would end for this one, which takes `cancel` in the session";
                Err(Refusal::new(Reason::PermissionDenied, text)
                    .with("need", "cancel")
                    .with("session_id", self.session.id().to_string()))
            }
        }
    }

    /// Whoever calls names itself, and not somebody else. A connection has shown its name when it joined.
    fn check_own(&self, sender: &Sender<'_>) -> Result<(), Refusal> {
        let pb::Address { member_id, subject, .. } = &*sender.address;
        match sender.link {
            Some(_) => Ok(()),
            None => self.session.check_own(member_id, subject),
        }
    }

    /// A private frame is for whoever goes by the name now, not for a subject that does so later.
    fn address_to(&self, frame: &mut Frame, sender: &Sender<'_>) {
        let Some(to) = frame.to.as_mut().filter(|to| !to.member_id.is_empty()) else {
            return;
        };
        let member = self.session.member(&to.member_id);
        let subject = member.map_or(sender.address.subject.as_str(), |member| &member.subject);
        if !subject.is_empty() {
            Arc::make_mut(to).subject = subject.to_owned();
        }
    }

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
                },
            );
        }
        Posted {
            accepted,
            effects: Vec::new(),
            waits,
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

fn kind<'a>(frame: &'a Frame, sender: &'a Sender<'_>, asked: Option<&'a Asked>, is_reply: bool) -> Kind<'a> {
    if let Some(Asked { role, terms, .. }) = asked {
        return Kind::Request { role, terms };
    }
    if is_reply {
        return Kind::Reply(reply(frame, sender));
    }
    match frame.to.as_deref() {
        Some(to) if !to.member_id.is_empty() => Kind::Private {
            to: &to.member_id,
            own: &sender.address.member_id,
        },
        _ => Kind::Event,
    }
}

fn reply<'a>(frame: &'a Frame, sender: &Sender<'_>) -> Reply<'a> {
    Reply {
        request: &frame.reply_to,
        connection: sender.link.map_or(ConnectionId(0), |link| link.id()),
        attempt: frame.attempt,
        index: frame.index,
        last: frame.last.then(|| outcome(&frame.body)),
    }
}

/// How a final reply ends its request.
pub(super) fn outcome(body: &Body) -> Outcome {
    match body {
        Body::Error(error) => match error.code() {
            pb::Code::Cancelled => Outcome::Cancelled,
            pb::Code::DeadlineExceeded => Outcome::Expired,
            _ => Outcome::Failed,
        },
        _ => Outcome::Completed,
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
