//! Sessions that outlive memory: they come into being in the log, come back from it when they are wanted, and go when nobody
//! has used them for a while.
//!
//! What comes back is made of what the log has: the profile and the open requests as they were kept, dedup and the ends of
//! requests from the frames. A worker that held something is away, as after the loss of its connection.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::batch::Batch;
use super::held::Held as HeldFrame;
use super::identities::Thing;
use super::kept::{Kept, KeptHolder, KeptRequest};
use super::link::Link;
use super::live::{Live, Origin, Shared, shown};
use super::publish::outcome;
use super::sessions::Away;
use super::{Inner, Router, random_name};
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Control, Frame, Sealed, Str, check_name, pb};
use crate::log::{self, Entry, Keep, Known, Limit, Loaded, Note, Replayed, Seen, Settled, Wait};
use crate::session::{
    Cause, Effect, Ended, Extent, Held, Holder, Now, Plan, Profile, Reopened, Retention, Session, State, Step,
};

/// What is read at once of a session that comes back.
const REPLAY: Limit = Limit {
    frames: 512,
    bytes: 1 << 20,
};
/// Sessions that are counted at once at the start.
const COUNTED: usize = 500;
/// Sessions that are looked at once in a while, at a time.
const LOOKED_AT: usize = 100;
/// How long to wait between such looks.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait after all were looked at.
const REST: Duration = Duration::from_secs(60);
/// How many tasks tell what is durable now.
const TELLERS: usize = 4;

/// What was found when the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sessions.
    pub sessions: usize,
    /// Requests that are open.
    pub requests: usize,
    /// Sessions that cannot be read. They stay where they are.
    pub unreadable: usize,
}

/// Starts the tasks, which end when the router is dropped.
pub(super) fn start(router: &Router) {
    tokio::spawn(settle(Arc::downgrade(&router.inner), router.inner.log.settlements()));
    if router.inner.log.is_lasting() {
        tokio::spawn(look_after(Arc::downgrade(&router.inner)));
    }
}

/// Has what became durable told, each session's in order and by one task.
async fn settle(inner: Weak<Inner>, mut settlements: log::Settlements) {
    let tellers: Vec<_> = (0..TELLERS)
        .map(|_| {
            let (send, parts) = mpsc::unbounded_channel();
            tokio::spawn(tell(inner.clone(), parts));
            send
        })
        .collect();
    while let Some(settled) = settlements.next().await {
        let mut parts: [Vec<Settled>; TELLERS] = Default::default();
        for settled in settled {
            parts[settled.life as usize % TELLERS].push(settled);
        }
        for (teller, part) in tellers.iter().zip(parts) {
            if !part.is_empty() && teller.send(part).is_err() {
                // The router is gone.
                return;
            }
        }
    }
}

/// Tells of what became durable, as it comes. What waits for it is bounded by what the log has taken and not written.
async fn tell(inner: Weak<Inner>, mut parts: mpsc::UnboundedReceiver<Vec<Settled>>) {
    while let Some(part) = parts.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        let router = Router { inner };
        part.into_iter().for_each(|settled| router.settle(settled));
    }
}

/// Looks at the sessions that are not in memory, a few at a time: whether anybody still wants them.
async fn look_after(inner: Weak<Inner>) {
    let mut after = Str::EMPTY;
    loop {
        tokio::time::sleep(if after.is_empty() { REST } else { PAUSE }).await;
        let Some(inner) = inner.upgrade() else { return };
        let router = Router { inner };
        match router.look_at_stored(&after).await {
            Ok(next) => after = next,
            Err(error) => tracing::warn!(?error, "the sessions that the log keeps cannot be looked at now"),
        }
    }
}

impl Router {
    fn settle(&self, settled: Settled) {
        let Ok(live) = self.find(&settled.session) else { return };
        if live.life() != settled.life {
            return;
        }
        match settled.result {
            Ok(()) => self.committed(&live, settled.seq, settled.first),
            Err(error) => self.lost(&live, &error.into()),
        }
    }

    /// Counts what the log has, and brings back the sessions that have open requests.
    pub async fn recover(&self) -> Result<Recovered, Refusal> {
        let mut recovered = Recovered::default();
        let mut after = Str::EMPTY;
        loop {
            let page = self.inner.log.list("", &after, COUNTED).await?;
            let Some(last) = page.last() else { break };
            after = last.session.clone();
            for known in &page {
                recovered.sessions += 1;
                self.inner.session_count.fetch_add(1, Ordering::Relaxed);
                let back = match Kept::read(&known.session, &known.data) {
                    Ok(kept) => {
                        self.inner.subjects.give(&Str::from(kept.owner), Thing::Session);
                        self.bring_back_if_open(known).await
                    }
                    Err(error) => Err(error.into()),
                };
                match back {
                    Ok(requests) => recovered.requests += requests,
                    Err(refusal) => {
                        recovered.unreadable += 1;
                        tracing::error!(session = %known.session, %refusal, "a session cannot be brought back");
                    }
                }
            }
        }
        Ok(recovered)
    }

    async fn bring_back_if_open(&self, known: &Known) -> Result<usize, Refusal> {
        if !known.has_notes {
            return Ok(0);
        }
        let live = self.load(&known.session).await?;
        Ok(live.map_or(0, |live| live.lock().session.open_request_count()))
    }

    /// A new session, which the log knows of.
    pub(super) fn bring_into_being(&self, id: Str, owner: &str) -> Result<Arc<Live>, Refusal> {
        let now = self.now();
        let epoch = random_name();
        let limits = Arc::clone(&self.inner.limits);
        let session = Session::new(id, epoch, Arc::clone(&limits), now.wall);
        let data = match self.inner.log.is_lasting() {
            true => Kept::new((session.epoch(), owner), session.profile(), now.wall).write(),
            false => bytes::Bytes::new(),
        };
        let life = self.inner.log.create(session.id(), data, 1)?;
        Ok(Arc::new(Live::new(session, &Origin { owner, life }, limits, now.mono)))
    }

    /// The session in memory, to which it is brought if only the log has it; nothing if there is none. Whoever is about to use
    /// it holds it meanwhile, so that it does not go again.
    pub async fn load(&self, session: &str) -> Result<Option<Arc<Live>>, Refusal> {
        let live = self.shard(session).get(session).cloned();
        if live.is_some() {
            return Ok(live);
        }
        // What cannot be a name is refused by whoever knows where it stood.
        if !self.inner.log.is_lasting() || check_name("session_id", session).is_err() {
            return Ok(None);
        }
        // Whoever asked may go away meanwhile. Half a load would leave the log with a session that nobody here knows of, and
        // its last part could come after the next load, and set that back.
        let (router, session) = (self.clone(), Str::from(session));
        let loading = tokio::spawn(async move { router.load_alone(&session).await });
        loading.await.unwrap_or_else(|error| {
            Err(Refusal::new(
                Reason::Internal,
                format!("loading was broken off: {error}"),
            ))
        })
    }

    async fn load_alone(&self, session: &Str) -> Result<Option<Arc<Live>>, Refusal> {
        let _alone = self.inner.loading[self.place(session)].lock().await;
        let live = self.shard(session).get(session).cloned();
        if live.is_some() {
            return Ok(live);
        }
        let Some(loaded) = self.inner.log.load(session).await? else {
            return Ok(None);
        };
        let back = self.bring_back(session, loaded).await;
        if back.is_err() {
            self.inner.log.unload(session, None);
        }
        back.map(Some).map_err(Refusal::from)
    }

    /// The session in memory, if there is one anywhere.
    pub async fn look_up(&self, session: &str) -> Result<Arc<Live>, Refusal> {
        match self.load(session).await? {
            Some(live) => Ok(live),
            None => self.find(session),
        }
    }

    /// Whether the session would have to be loaded, if there is one.
    pub fn is_away(&self, session: &str) -> bool {
        self.inner.log.is_lasting() && !self.shard(session).contains_key(session)
    }

    async fn bring_back(&self, session: &Str, loaded: Loaded) -> Result<Arc<Live>, log::Error> {
        let kept = Kept::read(session, &loaded.data)?;
        let requests = read_notes(session, &loaded.notes)?;
        let frames = self.remember(session, &loaded, &requests).await?;
        let now = self.now();
        let used = frames.last().map_or(kept.last_used(), |newest| {
            kept.last_used()
                .max(written_at(&newest.frame).unwrap_or(SystemTime::UNIX_EPOCH))
        });
        let extent = Extent {
            epoch: match loaded.epoch.is_empty() {
                true => Str::from(kept.epoch.as_str()),
                false => loaded.epoch.clone(),
            },
            first: loaded.first,
            head: loaded.head,
        };
        let limits = Arc::clone(&self.inner.limits);
        let profile = kept.profile();
        if profile.said().retention.is_some() {
            self.inner.log.retain(session, self.keep_of(&profile));
        }
        let mut machine = Session::restore(session.clone(), extent, profile, Arc::clone(&limits));
        for replayed in &frames {
            recall(&mut machine, replayed);
        }
        let origin = Origin {
            owner: &kept.owner,
            life: loaded.life,
        };
        let live = Arc::new(Live::new(machine, &origin, limits, ago(now, used)));
        live.lock().is_there = true;
        let mut batch = Batch::new(now);
        let (effects, orphans) = self.reopen(&live, requests, &frames, now);
        self.shard(session).insert(session.clone(), Arc::clone(&live));
        tracing::debug!(session = %session, head = loaded.head, "session loaded");
        self.carry_out(&live, effects, &mut batch);
        for request in orphans {
            self.end_or_retry(&live, &request, Cause::Shutdown, &mut batch);
        }
        self.arm(&live, &mut live.lock());
        batch.finish(None);
        Ok(live)
    }

    /// The newest frames, as many as it takes to know again what is to be known: the ids that dedup remembers, the requests
    /// that ended, and what was said of those that are open.
    async fn remember(
        &self,
        session: &Str,
        loaded: &Loaded,
        requests: &HashMap<u64, KeptRequest>,
    ) -> Result<Vec<Replayed>, log::Error> {
        let limits = self.limits();
        let oldest_open = requests.keys().min().copied().unwrap_or(u64::MAX);
        let (mut ids, mut ends) = (limits.dedup_ids, limits.ended_requests);
        let mut seqs = loaded.first..loaded.head + 1;
        let mut frames = Vec::new();
        while !seqs.is_empty() && (ids > 0 || ends > 0 || seqs.end > oldest_open) {
            let page = self.inner.log.replay(session, seqs.clone(), REPLAY).await?;
            let Some(oldest) = page.first() else { break };
            seqs.end = oldest.frame.first_seq();
            for replayed in &page {
                ids = ids.saturating_sub(usize::from(replayed.seen.is_some()));
                ends = ends.saturating_sub(usize::from(replayed.frame.last));
            }
            frames.extend(page.into_iter().rev());
        }
        frames.reverse();
        Ok(frames)
    }

    /// Opens the requests again that had not ended. What is to be done for them, and those whose frame is not there any more.
    fn reopen(
        &self,
        live: &Arc<Live>,
        requests: HashMap<u64, KeptRequest>,
        frames: &[Replayed],
        now: Now,
    ) -> (Vec<Effect>, Vec<Str>) {
        let mut requests: Vec<_> = requests.into_iter().collect();
        requests.sort_unstable_by_key(|(seq, _)| *seq);
        let (mut effects, mut orphans) = (Vec::new(), Vec::new());
        for (seq, kept) in requests {
            let at = frames.partition_point(|replayed| replayed.frame.seq < seq);
            match frames.get(at).filter(|replayed| replayed.frame.seq == seq) {
                Some(asked) => effects.extend(self.reopen_one(live, (&asked.frame, &kept), &frames[at..], now)),
                None => {
                    // What was asked is not there any more, and nobody can be asked it.
                    let stub = Arc::new(Sealed::new(Frame {
                        id: Str::from(kept.id.as_str()),
                        session_id: live.id().clone(),
                        seq,
                        ..Frame::default()
                    }));
                    drop(self.reopen_one(live, (&stub, &kept), &[], now));
                    orphans.push(stub.id.clone());
                }
            }
        }
        (effects, orphans)
    }

    fn reopen_one(
        &self,
        live: &Arc<Live>,
        (frame, kept): (&Arc<Sealed>, &KeptRequest),
        since: &[Replayed],
        now: Now,
    ) -> Vec<Effect> {
        let role = Str::from(kept.role.as_str());
        let held = kept.holder.as_ref().map(|holder| {
            let said = since.iter().rev().find(|replayed| {
                let reply = &replayed.frame;
                reply.reply_to == frame.id && reply.attempt == holder.attempt && !matches!(reply.body, Body::Control(_))
            });
            Held {
                holder: Holder {
                    worker: self.expect_back(&role, holder, live, now),
                    attempt: holder.attempt,
                },
                chunks: said.map_or(0, |said| said.frame.index.map_or(0, |index| index + 1)),
                last_seq: said.map_or(0, |said| said.frame.seq),
            }
        });
        let mut shared = live.lock();
        // What is open already is not too much.
        let shares = self.hold(&shared.request_bytes, frame).ok();
        let grace = self.limits().cancel_grace;
        let reopened = Reopened {
            seq: frame.seq,
            role,
            asker: Str::from(kept.asker.as_str()),
            terms: Box::new(kept.terms()),
            accepted_at: kept.accepted_at(),
            attempts: kept.attempts,
            held,
            cancelled: kept.cancelled.clone().map(|message| (message, grace)),
            kept: HeldFrame {
                frame: Arc::clone(frame),
                _shares: shares,
            },
        };
        shared.session.reopen(frame.id.clone(), reopened, now)
    }

    /// What the log is told with a frame.
    pub(super) fn entry(&self, shared: &Shared, frame: &Arc<Sealed>, plan: &Plan, now: Now) -> Entry {
        let mut entry = Entry::from(Arc::clone(frame));
        if !self.inner.log.is_lasting() {
            return entry;
        }
        // The digest of a typed message hangs on the descriptors that there are, and these may be others next time.
        let lasts = !matches!(frame.body, Body::Message(_));
        entry.seen = plan.seen().map(|(sender, substance)| Seen {
            sender: sender.clone(),
            substance: lasts.then_some(substance),
        });
        entry.note = match plan.step() {
            Step::None | Step::Chunk(_) => None,
            Step::Opened(_) => plan.opening(now.wall).map(|opening| Note {
                key: opening.seq,
                content: Some(KeptRequest::new(&opening, None).write()),
            }),
            Step::Restarted(request, _) => shared.session.standing(request).map(|standing| Note {
                key: standing.seq,
                content: Some(KeptRequest::new(&standing, None).write()),
            }),
            Step::Ended(request, _) => shared.session.standing(request).map(|standing| Note {
                key: standing.seq,
                content: None,
            }),
        };
        entry
    }

    /// Who has the request now, or that it was cancelled, is to be remembered. It goes with what is written next.
    pub(super) fn note_standing(&self, live: &Live, shared: &Shared, request: &str) {
        if !self.inner.log.is_lasting() {
            return;
        }
        let Some(standing) = shared.session.standing(request) else {
            return;
        };
        let holder = standing.holder.and_then(|holder| {
            let worker = self.worker(holder.worker)?;
            Some(KeptHolder {
                name: worker.name().to_string(),
                subject: worker.subject().to_string(),
                attempt: holder.attempt,
            })
        });
        let note = Note {
            key: standing.seq,
            content: Some(KeptRequest::new(&standing, holder).write()),
        };
        if let Err(error) = self.inner.log.note(live.id(), note) {
            // After a crash, the request would wait for a worker anew.
            tracing::debug!(session = %live.id(), request, ?error, "who has a request could not be noted");
        }
    }

    /// Changes what is to be known of a session, here and in the log; nothing, if the log refuses.
    pub(super) fn change(
        &self,
        live: &Live,
        shared: &mut Shared,
        change: impl FnOnce(Profile) -> Profile,
    ) -> Result<Wait<()>, Refusal> {
        let now = self.now();
        let profile = change(shared.session.profile().clone());
        let saved = match self.inner.log.is_lasting() {
            true => {
                let kept = Kept::new((live.epoch(), live.owner()), &profile, now.wall);
                self.inner.log.save(live.id(), kept.write())?
            }
            false => log::ready(()),
        };
        let before = self.keep_of(shared.session.profile());
        let keep = self.keep_of(&profile);
        shared.session.set_profile(profile);
        if keep != before {
            self.inner.log.retain(live.id(), keep);
        }
        shared.last_used = now.mono;
        Ok(saved)
    }

    /// How much of a session is kept.
    pub(super) fn keep_of(&self, profile: &Profile) -> Keep {
        let Retention { age, frames, bytes, .. } = profile.retention(self.inner.retention);
        Keep { age, frames, bytes }
    }

    /// Waits until a change is durable. If it never is, what this process believes of the session is void.
    pub(super) async fn saved(&self, live: &Arc<Live>, saved: Wait<()>) -> Result<(), Refusal> {
        let saved = saved.await.map_err(Refusal::from);
        saved.inspect_err(|refusal| self.lost(live, refusal))
    }

    /// Lets a session go that nobody uses, if the log has it. `live` is the only handle beside the registry's.
    pub(super) fn unload(&self, live: Arc<Live>, now: Now) {
        let id = live.id().clone();
        let mut shard = self.shard(&id);
        if !shard.get(&id).is_some_and(|there| Arc::ptr_eq(there, &live)) || Arc::strong_count(&live) > 2 {
            return;
        }
        let mut shared = live.lock();
        if !shared.is_settled() || shared.unused_for(now) <= self.inner.unload {
            return;
        }
        let last_used = now.wall.checked_sub(shared.unused_for(now)).unwrap_or(now.wall);
        let kept = Kept::new((live.epoch(), live.owner()), shared.session.profile(), last_used);
        self.inner.log.unload(&id, Some(kept.write()));
        shared.gone = true;
        shard.remove(&id);
        drop(shared);
        drop(shard);
        tracing::debug!(session = %id, "session unloaded");
    }

    /// Looks at some of the sessions that the log keeps: those that were not used for long are brought back, and judged by
    /// what is known of them then. After which name to go on; empty if these were the last.
    async fn look_at_stored(&self, after: &str) -> Result<Str, log::Error> {
        let page = self.inner.log.list("", after, LOOKED_AT).await?;
        let now = self.now().wall;
        for known in &page {
            let Ok(kept) = Kept::read(&known.session, &known.data) else {
                continue;
            };
            let retention = kept.profile().retention(self.inner.retention);
            let unused = now.duration_since(kept.last_used()).unwrap_or_default();
            let may_have_old = known.first <= known.head && unused > retention.age;
            if (unused <= retention.idle && !may_have_old) || !self.is_away(&known.session) {
                continue;
            }
            if let Ok(Some(live)) = self.load(&known.session).await {
                self.trim(&live, now);
                self.remove_if_idle(&live);
            }
        }
        let last = page.last().filter(|_| page.len() == LOOKED_AT);
        Ok(last.map_or(Str::EMPTY, |last| last.session.clone()))
    }

    /// Removes a session that nobody has used for long.
    pub(super) fn remove_if_idle(&self, live: &Arc<Live>) {
        let now = self.now();
        let is_idle = |shared: &Shared| {
            let idle = shared.session.retention(self.inner.retention).idle;
            shared.is_settled() && shared.unused_for(now) > idle
        };
        let refusal = Refusal::new(Reason::SessionDeleted, "the session was not used for long");
        if is_idle(&live.lock()) && matches!(self.evict(live, &refusal, Away::Deleted, is_idle), Some(Ok(_))) {
            tracing::info!(session = %live.id(), "idle session removed");
        }
    }

    /// Ends when all is durable that was accepted, and the log is closed.
    pub async fn close_log(&self) -> Result<(), Refusal> {
        self.inner.log.close().await.map_err(Refusal::from)
    }

    /// Ends when all is durable that was accepted.
    pub async fn flush(&self) -> Result<(), Refusal> {
        self.inner.log.flush().await.map_err(Refusal::from)
    }

    /// Tells a connection that a request will end, once that is durable: the next process is to know of it.
    pub fn answer_when_durable(&self, link: &Arc<Link>, (id, session): (&Str, &Str), answer: pb::CancelAck) {
        let (router, link, id, session) = (self.clone(), Arc::clone(link), id.clone(), session.clone());
        link.owe_ack();
        tokio::spawn(async move {
            match router.flush().await {
                Ok(()) => link.answer(&id, &session, Body::Control(Box::new(Control::CancelAck(answer)))),
                Err(refusal) => link.refuse(&id, &session, &refusal),
            }
            link.settle_ack();
            link.kick();
        });
    }

    /// Whether what is accepted is to outlive the process.
    pub fn is_lasting(&self) -> bool {
        self.inner.log.is_lasting()
    }
}

impl Shared {
    /// Nobody is in the session, and nothing is to come of what was.
    fn is_settled(&self) -> bool {
        self.seats().is_empty()
            && self.session.open_request_count() == 0
            && self.pending.is_empty()
            && self.unended.is_empty()
    }

    fn unused_for(&self, now: Now) -> Duration {
        now.mono.saturating_duration_since(self.last_used)
    }
}

/// A stored session, as it is described.
pub(super) fn describe(known: &Known, settings: Retention) -> Result<pb::Session, log::Error> {
    let kept = Kept::read(&known.session, &known.data)?;
    let profile = kept.profile();
    let state = match profile.state {
        State::Open => pb::SessionState::Open,
        State::Closed => pb::SessionState::Closed,
    };
    Ok(pb::Session {
        session_id: known.session.to_string(),
        epoch: match known.epoch.is_empty() {
            true => kept.epoch,
            false => known.epoch.to_string(),
        },
        state: state as i32,
        retention: Some(shown(profile.retention(settings))),
        metadata: profile.said().metadata.clone().into_iter().collect(),
        labels: profile.said().labels.clone().into_iter().collect(),
        created_at: Some(profile.created_at.into()),
        updated_at: Some(profile.updated_at.into()),
        head_seq: known.head,
        first_seq: known.first,
        etag: profile.revision.to_string(),
        ..pb::Session::default()
    })
}

fn read_notes(session: &Str, notes: &[(u64, bytes::Bytes)]) -> Result<HashMap<u64, KeptRequest>, log::Error> {
    let notes = notes.iter();
    notes
        .map(|(seq, content)| Ok((*seq, KeptRequest::read(session, *seq, content)?)))
        .collect()
}

/// Has the session remember a frame of its log.
pub(super) fn recall<F>(session: &mut Session<F>, replayed: &Replayed) {
    let frame = replayed.frame.frame();
    let is_reply = !frame.reply_to.is_empty();
    if let Some(seen) = &replayed.seen {
        let reply = is_reply.then_some((&frame.reply_to, frame.attempt));
        session.recall_id((&seen.sender, &frame.id), reply, frame.seq, seen.substance);
    }
    if is_reply && frame.last {
        session.recall_end(Ended {
            id: frame.reply_to.detached(),
            outcome: outcome(&frame.body),
            attempt: frame.attempt,
            seq: frame.seq,
            at: written_at(frame).unwrap_or(SystemTime::UNIX_EPOCH),
        });
    }
}

fn written_at(frame: &Frame) -> Option<SystemTime> {
    frame.timestamp.and_then(|time| SystemTime::try_from(time).ok())
}

/// When that was, by the clock that never jumps.
fn ago(now: Now, then: SystemTime) -> Instant {
    let age = now.wall.duration_since(then).unwrap_or_default();
    now.mono.checked_sub(age).unwrap_or(now.mono)
}
