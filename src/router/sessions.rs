//! Sessions as things that are made, listed, read, changed and removed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use super::Router;
use super::batch::{Batch, Haste};
use super::live::{AckTo, Live, Shared};
use super::members::dismiss;
use super::seat::Circle;
use super::stored;
use crate::auth::Identity;
use crate::error::{Reason, Refusal};
use crate::frame::{Control, Frame, Run, Sealed, Str, pb};
use crate::log::{self, Limit, Wait};
use crate::session::{Cause, Effect, Retention, Said, State};

/// Which frames of a log are wanted.
#[derive(Clone, Debug)]
pub struct Query {
    /// Only later ones.
    pub after: u64,
    /// Only earlier ones.
    pub before: u64,
    /// Only at this time or later.
    pub since: Option<SystemTime>,
    /// Only before this time.
    pub until: Option<SystemTime>,
    /// Only of these types, unless there are none.
    pub types: Vec<String>,
    /// The newest first.
    pub newest_first: bool,
    /// Runs of chunks as one frame.
    pub fold: bool,
    /// How many at most.
    pub count: usize,
}

/// A session, wherever it is.
enum There {
    Live(Arc<Live>),
    Stored(log::Known),
}

/// Where a session goes that is taken out of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Away {
    /// It is gone for good.
    Deleted,
    /// The log has it, if it keeps anything; here, nothing is known of it any more.
    Unloaded,
}

/// The frames that were found.
#[derive(Debug)]
pub struct Listing {
    /// In the order that was asked for.
    pub frames: Vec<Arc<Sealed>>,
    /// Where to go on, if there may be more: `after`, or `before`, of the next query.
    pub next: Option<u64>,
    /// The log's epoch, newest and oldest seq.
    pub epoch: Str,
    /// The newest frame that there is.
    pub head: u64,
    /// The oldest frame that there is.
    pub first: u64,
}

/// Sessions that one call looks through.
const SESSIONS_LOOKED_THROUGH: usize = 2_000;
/// Frames that one call looks through.
const LOOKED_THROUGH: usize = 10_000;
/// Bytes of frames that one call returns.
const LISTED_BYTES: usize = 1 << 20;
/// What is read at once.
const READ: Limit = Limit {
    frames: 256,
    bytes: LISTED_BYTES,
};

impl Router {
    /// Makes a session, of which this is said.
    pub async fn create(&self, id: &Str, said: Said, by: &Identity) -> Result<pb::Session, Refusal> {
        self.load(id).await?;
        let (live, new) = self.open(id, by)?;
        if !new {
            return Err(Refusal::new(
                Reason::SessionExists,
                format!("there is a session {id} already"),
            ));
        }
        let now = self.now().wall;
        let saved = {
            let mut shared = live.lock();
            shared.check_here(id)?;
            self.change(&live, &mut shared, |profile| profile.saying(said, now))
        };
        self.saved(&live, saved?).await?;
        Ok(live.lock().describe(self.inner.retention))
    }

    /// What there is to say about a session.
    pub async fn describe(&self, id: &str) -> Result<pb::Session, Refusal> {
        Ok(self.look_up(id).await?.lock().describe(self.inner.retention))
    }

    /// The sessions after a name, in the order of their names, that the tests let through, of their names and of what there is to
    /// say of them; and after which name to go on, if there may be more.
    pub async fn list(
        &self,
        (prefix, after): (&str, &str),
        count: usize,
        may_see: impl Fn(&str) -> bool,
        is_wanted: impl Fn(&pb::Session) -> bool,
    ) -> Result<(Vec<pb::Session>, Option<Str>), Refusal> {
        let (names, is_all) = self.names(prefix, after).await?;
        let mut page = Vec::new();
        for (name, there) in names.iter().filter(|(name, _)| may_see(name)) {
            let session = match there {
                There::Live(live) => live.lock().describe(self.inner.retention),
                There::Stored(known) => stored::describe(known, self.inner.retention)?,
            };
            if !is_wanted(&session) {
                continue;
            }
            if page.len() == count {
                let last = page
                    .last()
                    .map(|last: &pb::Session| Str::from(last.session_id.as_str()));
                return Ok((page, last));
            }
            page.push(session);
            debug_assert_eq!(page.last().map(|last| last.session_id.as_str()), Some(name.as_str()));
        }
        let last = names.keys().next_back().filter(|_| !is_all).cloned();
        Ok((page, last))
    }

    /// The first sessions after a name, in the order of their names, and whether these are all.
    async fn names(&self, prefix: &str, after: &str) -> Result<(BTreeMap<Str, There>, bool), Refusal> {
        let most = SESSIONS_LOOKED_THROUGH;
        let stored = self.inner.log.list(prefix, after, most).await?;
        // Of what comes after the last of them, nothing is known yet.
        let end = stored.last().filter(|_| stored.len() == most);
        let end = end.map(|last| last.session.clone());
        let mut lives = self.all_sessions();
        lives.retain(|live| {
            live.id().starts_with(prefix)
                && live.id().as_str() > after
                && end.as_ref().is_none_or(|end| live.id() <= end)
        });
        let mut is_all = end.is_none();
        if lives.len() > most {
            let by_name = |one: &Arc<Live>, other: &Arc<Live>| one.id().cmp(other.id());
            lives.select_nth_unstable_by(most, by_name);
            lives.truncate(most);
            is_all = false;
        }
        let mut names: BTreeMap<_, _> = stored
            .into_iter()
            .map(|known| (known.session.clone(), There::Stored(known)))
            .collect();
        names.extend(lives.into_iter().map(|live| (live.id().clone(), There::Live(live))));
        while names.len() > most {
            names.pop_last();
            is_all = false;
        }
        Ok((names, is_all))
    }

    /// Changes what is said of a session, if its etag is the one that is expected, where one is.
    pub async fn update(
        &self,
        id: &str,
        etag: &str,
        change: impl FnOnce(&mut Said) -> Result<(), Refusal>,
    ) -> Result<pb::Session, Refusal> {
        let live = self.look_up(id).await?;
        let now = self.now().wall;
        let saved = {
            let mut shared = live.lock();
            shared.check_here(live.id())?;
            let is = shared.session.profile().revision.to_string();
            if !etag.is_empty() && etag != is {
                let text = format!("the session's etag is {is}, not {etag}");
                return Err(Refusal::new(Reason::EtagMismatch, text).with("etag", is));
            }
            let mut said = shared.session.profile().said().clone();
            change(&mut said)?;
            self.change(&live, &mut shared, |profile| profile.saying(said, now))?
        };
        self.saved(&live, saved).await?;
        Ok(self.tell_changed(&live))
    }

    /// Closes a session: its open requests end, and nothing more is written to it.
    pub async fn close(&self, id: &str, reason: &str) -> Result<pb::Session, Refusal> {
        let live = self.look_up(id).await?;
        let mut batch = Batch::new(self.now());
        let reason = if reason.is_empty() {
            "the session was closed"
        } else {
            reason
        };
        let closing = self.end_all_and_close(&live, reason, &mut batch);
        batch.finish(None);
        let Some(saved) = closing? else {
            return Ok(live.lock().describe(self.inner.retention));
        };
        self.saved(&live, saved).await?;
        tracing::info!(session = id, "session closed");
        Ok(self.tell_changed(&live))
    }

    /// Ends the requests of a session, until none is open, and closes it then; nothing comes of it if it is closed already.
    fn end_all_and_close(
        &self,
        live: &Arc<Live>,
        reason: &str,
        batch: &mut Batch,
    ) -> Result<Option<Wait<()>>, Refusal> {
        loop {
            let open = live.lock().session.open_ids();
            // The newest first: none is to begin because the one before it has ended.
            for request in open.iter().rev() {
                match self.end(live, request, Cause::SessionClosed, reason, batch) {
                    Err(refusal) if !matches!(refusal.reason, Reason::RequestEnded | Reason::RequestNotFound) => {
                        return Err(refusal);
                    }
                    _ => {}
                }
            }
            let mut shared = live.lock();
            shared.check_here(live.id())?;
            if shared.session.open_request_count() > 0 {
                // One came in between.
                continue;
            }
            return match shared.session.state() {
                State::Closed => Ok(None),
                State::Open => self
                    .change(live, &mut shared, |profile| profile.closed(batch.now.wall))
                    .map(Some),
            };
        }
    }

    /// Tells the members what the session is like now.
    fn tell_changed(&self, live: &Arc<Live>) -> pb::Session {
        let mut batch = Batch::new(self.now());
        let changed = live.lock().tell_changed(self.inner.retention);
        batch.touch(live, Haste::Now);
        batch.finish(None);
        changed
    }

    /// Removes a session with all that it holds.
    pub async fn delete(&self, id: &str) -> Result<(), Refusal> {
        let live = self.look_up(id).await?;
        let refusal = Refusal::new(Reason::SessionDeleted, format!("session {id} was deleted"));
        let durable = self.evict(&live, &refusal, Away::Deleted, |_| true).transpose()?;
        if let Some(durable) = durable {
            durable.await?;
        }
        tracing::info!(session = id, "session deleted");
        Ok(())
    }

    /// Takes a session out of the registry, and everybody out of the session. Nothing comes of it if it is not to be, or if it
    /// is not there any more; else what tells that the log has followed.
    pub(super) fn evict(
        &self,
        live: &Arc<Live>,
        refusal: &Refusal,
        away: Away,
        only_if: impl Fn(&Shared) -> bool,
    ) -> Option<Result<Wait<()>, log::Error>> {
        let mut batch = Batch::new(self.now());
        let mut shard = self.shard(live.id());
        if !shard.get(live.id()).is_some_and(|there| Arc::ptr_eq(there, live)) {
            return None;
        }
        let mut shared = live.lock();
        if !only_if(&shared) {
            return None;
        }
        // If the log refuses, nothing has happened.
        let followed = match away {
            Away::Deleted => match self.inner.log.delete(live.id()) {
                Ok(durable) => durable,
                Err(error) => return Some(Err(error)),
            },
            Away::Unloaded => {
                self.inner.log.unload(live.id(), None);
                log::ready(())
            }
        };
        shard.remove(live.id());
        if away == Away::Deleted || !self.inner.log.is_lasting() || !shared.is_there {
            self.unreserve(live.owner());
        }
        shared.gone = true;
        let pending = std::mem::take(&mut shared.pending);
        let mut effects = Vec::new();
        let open = shared.session.open_ids();
        for request in open.iter().rev() {
            self.inner.counters.ended(Cause::SessionDeleted);
            effects.extend(shared.session.abandon(request, Cause::SessionDeleted, batch.now));
        }
        let seats: Vec<_> = shared.seats().to_vec();
        for seat in &seats {
            shared.rise(seat.key());
        }
        drop(shared);
        drop(shard);
        // Nothing will be told any more of what waits for the log. What it ended gives room back to its workers all the same.
        for pending in pending {
            effects.extend(pending.effects);
            if let Some(AckTo::Link(link, accepted)) = pending.ack {
                link.refuse(&Str::from(accepted.id), live.id(), refusal);
                link.settle_ack();
                batch.touch_link(&link);
            }
        }
        effects.retain(|effect| !matches!(effect, Effect::Fold { .. }));
        for seat in &seats {
            dismiss(seat, refusal, &mut batch);
        }
        self.carry_out(live, effects, &mut batch);
        batch.finish(None);
        Some(Ok(followed))
    }

    /// Reads a log.
    pub async fn frames(&self, id: &str, epoch: &str, query: &Query) -> Result<Listing, Refusal> {
        let live = self.look_up(id).await?;
        let (committed, first) = {
            let shared = live.lock();
            (shared.committed, shared.session.first())
        };
        if !epoch.is_empty() && *live.epoch() != *epoch {
            return Err(Refusal::new(
                Reason::EpochChanged,
                "the session's log was begun anew since the page token was made",
            ));
        }
        let mut listing = Listing {
            frames: Vec::new(),
            next: None,
            epoch: live.epoch().clone(),
            head: committed,
            first,
        };
        let end = if query.before == 0 {
            committed + 1
        } else {
            query.before.min(committed + 1)
        };
        let mut seqs = query.after.saturating_add(1).max(first)..end;
        let mut looked = 0;
        let mut gathered = Gathered::new(query);
        while !seqs.is_empty() {
            if gathered.is_full() || looked >= LOOKED_THROUGH {
                listing.next = Some(if query.newest_first { seqs.end } else { seqs.start - 1 });
                break;
            }
            let page = self.page(live.id(), &seqs, query.newest_first).await?;
            if page.is_empty() {
                break;
            }
            for frame in page {
                if gathered.is_full() || !gathered.take(&frame) {
                    break;
                }
                looked += 1;
                match query.newest_first {
                    true => seqs.end = frame.first_seq(),
                    false => seqs.start = frame.seq + 1,
                }
            }
        }
        listing.frames = gathered.finish();
        Ok(listing)
    }

    /// Some of the frames within the seqs, in the order that was asked for.
    async fn page(&self, session: &Str, seqs: &Range<u64>, newest_first: bool) -> Result<Vec<Arc<Sealed>>, log::Error> {
        let log = &self.inner.log;
        if newest_first {
            let page = log.read_back(session, seqs.clone(), READ).await?;
            return Ok(page.frames.into_iter().rev().collect());
        }
        let mut frames = log.read(session, seqs.start, READ).await?.frames;
        let within = frames.partition_point(|frame| frame.seq < seqs.end);
        let beyond = frames.get(within).map(|frame| frame.first_seq());
        frames.truncate(within);
        // Of folded chunks that reach beyond the end, those before it are wanted.
        if let Some(first) = beyond.filter(|first| *first < seqs.end) {
            frames.extend(log.read_back(session, first..seqs.end, READ).await?.frames);
        }
        Ok(frames)
    }
}

/// What is found for a query.
struct Gathered<'a> {
    query: &'a Query,
    frames: Vec<Arc<Sealed>>,
    /// The newest of what was found, which may go on.
    run: Run,
    bytes: usize,
    refused: bool,
}

impl<'a> Gathered<'a> {
    fn new(query: &'a Query) -> Self {
        Self {
            query,
            frames: Vec::new(),
            run: Run::default(),
            bytes: 0,
            refused: false,
        }
    }

    fn count(&self) -> usize {
        self.frames.len() + usize::from(!self.run.frames().is_empty())
    }

    /// Whether no frame is wanted any more, whatever it is.
    fn is_full(&self) -> bool {
        self.refused || self.bytes >= LISTED_BYTES || (!self.query.fold && self.count() >= self.query.count)
    }

    /// Looks at the next frame, and keeps it if it is wanted; whether there was room for it.
    fn take(&mut self, frame: &Arc<Sealed>) -> bool {
        if !self.query.wants(frame) {
            return true;
        }
        if self.query.fold && self.count() > 0 && self.run.takes(frame) {
            self.bytes += frame.chunk_text().map_or(0, |text| text.len());
        } else if self.count() < self.query.count {
            self.bytes += frame.size();
            self.frames.extend(self.run.drain(2));
        } else {
            self.refused = true;
            return false;
        }
        self.run.push(Arc::clone(frame));
        true
    }

    fn finish(mut self) -> Vec<Arc<Sealed>> {
        self.frames.extend(self.run.drain(2));
        self.frames
    }
}

impl Query {
    fn wants(&self, frame: &Frame) -> bool {
        let time = frame.timestamp.and_then(|time| SystemTime::try_from(time).ok());
        let private = frame.to.as_deref().is_some_and(|to| !to.member_id.is_empty());
        !private
            && self.since.is_none_or(|since| time.is_some_and(|time| time >= since))
            && self.until.is_none_or(|until| time.is_some_and(|time| time < until))
            && (self.types.is_empty() || self.types.iter().any(|wanted| frame.r#type == wanted.as_str()))
    }
}

impl Shared {
    /// Tells the members what the session is like now.
    fn tell_changed(&mut self, settings: Retention) -> pb::Session {
        let session = self.describe(settings);
        let frame = self.control(Control::SessionChanged(pb::SessionChanged {
            session: Some(session.clone()),
        }));
        self.note(frame, Circle::All);
        session
    }
}
