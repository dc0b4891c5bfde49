//! Sessions on their way to another gateway, or from one: with the names, seqs and times that they had, and new
//! epochs.

use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use super::Router;
use super::kept::Kept;
use super::live::{Live, Origin};
use super::sessions::Away;
use super::stored::recall;
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Control, Frame, Sealed, Str, pb};
use crate::log::{self, Appended, Commit, Contents, Entry, Limit, Replayed, Seen};
use crate::session::{self, Extent, Profile, Session, State};

/// What is read at once.
const PAGE: Limit = Limit {
    frames: 256,
    bytes: 1 << 20,
};

/// The highest seq that an import may name: beyond it, nothing could be added.
const HIGHEST: u64 = 1 << 53;

/// A session that is being brought here. Until it is complete, nobody can write to it; if it never is, it is removed.
pub struct Importing {
    router: Router,
    live: Arc<Live>,
    profile: Profile,
    /// Its newest frame, if that was said.
    head: Option<u64>,
    is_complete: bool,
}

impl Drop for Importing {
    fn drop(&mut self) {
        if !self.is_complete {
            let refusal = Refusal::new(Reason::SessionDeleted, "the session could not be imported whole");
            drop(self.router.evict(&self.live, &refusal, Away::Deleted, |_| true));
        }
    }
}

impl Router {
    /// Writes a copy of all that is kept on disk, as of now.
    /// One at a time.
    pub async fn backup(&self, out: Box<dyn Write + Send>) -> Result<Contents, Refusal> {
        let busy = |_| {
            Refusal::new(
                Reason::LogUnavailable,
                "another backup is being made; try again when it is done",
            )
        };
        let _alone = self.inner.backing_up.try_lock().map_err(busy)?;
        self.inner.log.backup(out).await.map_err(Refusal::from)
    }

    /// The next sessions after a name, whoever they are for.
    pub async fn next_sessions(&self, prefix: &str, after: &str) -> Result<(Vec<pb::Session>, Option<Str>), Refusal> {
        self.list((prefix, after), usize::MAX, |_| true, |_| true).await
    }

    /// A session as it is exported; nothing if it is gone.
    pub async fn export(&self, session: &str) -> Result<Option<(Arc<Live>, pb::ExportedSession)>, Refusal> {
        let Some(live) = self.load(session).await? else {
            return Ok(None);
        };
        let exported = {
            let shared = live.lock();
            let wanted = shared.session.profile().said().retention.as_deref();
            pb::ExportedSession {
                session: Some(shared.describe(self.inner.retention)),
                owner: live.owner().to_owned(),
                wants: wanted.map(|wanted| pb::Retention {
                    max_age: wanted.age.and_then(span),
                    max_frames: wanted.frames,
                    max_bytes: wanted.bytes,
                    idle: wanted.idle.and_then(span),
                }),
            }
        };
        Ok(Some((live, exported)))
    }

    /// Some frames of a session from this seq on, up to that one, each by itself.
    pub async fn export_frames(&self, live: &Live, from: u64, to: u64) -> Result<Vec<Arc<Sealed>>, Refusal> {
        let page = self.inner.log.read(live.id(), from, PAGE).await?;
        let mut frames = Vec::new();
        for frame in page.frames {
            if frame.folded_from == 0 {
                frames.push(frame);
                continue;
            }
            // Asked for one by one, chunks that are kept together come as they were.
            for seq in frame.folded_from..=frame.seq {
                let one = Limit { frames: 1, ..PAGE };
                frames.extend(self.inner.log.read_back(live.id(), seq..seq + 1, one).await?.frames);
            }
        }
        frames.retain(|frame| frame.seq <= to);
        Ok(frames)
    }

    /// Begins to bring a session here; what is said of it was checked.
    pub async fn import(&self, from: &pb::ExportedSession, said: session::Said) -> Result<Importing, Refusal> {
        let none = pb::Session::default();
        let described = from.session.as_ref().unwrap_or(&none);
        let id = Str::from(described.session_id.as_str());
        if self.load(&id).await?.is_some() {
            return Err(exists(&id));
        }
        self.check_memory()?;
        let now = self.now();
        let time = |time: Option<prost_types::Timestamp>| time.and_then(|time| SystemTime::try_from(time).ok());
        let profile = Profile {
            state: match described.state() {
                pb::SessionState::Closed => State::Closed,
                _ => State::Open,
            },
            said: said.boxed(),
            created_at: time(described.created_at).unwrap_or(now.wall),
            updated_at: time(described.updated_at).unwrap_or(now.wall),
            revision: described.etag.parse().unwrap_or(1).min(HIGHEST),
        };
        let first = described.first_seq.max(1);
        if first.max(described.head_seq) > HIGHEST {
            return Err(Refusal::field(
                "session.first_seq",
                format!("first_seq and head_seq are at most {HIGHEST}"),
            ));
        }
        let extent = Extent {
            // Another life: here or elsewhere, other frames may have had the seqs that come after these.
            epoch: super::random_name(),
            first,
            head: first - 1,
        };
        let live = self.take_in(&id, extent, &profile, &from.owner)?;
        self.inner.log.retain(&id, self.keep_of(&profile));
        Ok(Importing {
            router: self.clone(),
            live,
            profile,
            head: Some(described.head_seq).filter(|head| *head > 0),
            is_complete: false,
        })
    }

    fn take_in(&self, id: &Str, extent: Extent, profile: &Profile, owner: &str) -> Result<Arc<Live>, Refusal> {
        let mut shard = self.shard(id);
        if shard.contains_key(id) {
            return Err(exists(id));
        }
        // The subject has it whether it may make one more or not.
        let subject = Str::from(owner);
        self.reserve(&subject, usize::MAX)?;
        let now = self.now();
        // Nobody writes to it meanwhile, and if the process ends it is not taken for the whole.
        let closed = profile.clone().closed(now.wall);
        let data = Kept::new((&extent.epoch, owner), &closed, now.wall).write();
        let created = self.inner.log.create(id, data, extent.first);
        let life = created.inspect_err(|_| self.unreserve(&subject))?;
        let limits = Arc::clone(&self.inner.limits);
        let machine = Session::restore(id.clone(), extent, closed, Arc::clone(&limits));
        let live = Arc::new(Live::new(machine, &Origin { owner, life }, limits, now.mono));
        shard.insert(id.clone(), Arc::clone(&live));
        Ok(live)
    }

    /// Adds the next frame of a session that is being brought here.
    pub async fn import_frame(&self, importing: &Importing, mut frame: Frame) -> Result<(), Refusal> {
        let live = &importing.live;
        check_frame(&frame)?;
        frame.session_id = live.id().clone();
        let seen = (!frame.id.is_empty()).then(|| {
            let from = frame.from.as_deref();
            let name = Str::from(from.map_or("", |from| from.member_id.as_str()));
            Seen {
                sender: session::sender(from.map_or("", |from| &from.subject), &name),
                substance: Some(frame.substance(self.types())),
            }
        });
        let frame = Arc::new(Sealed::new(frame));
        loop {
            match self.adopt(live, &frame, seen.as_ref()) {
                // The disk is slower than the one who brings this: it waits.
                Err(log::Error::Unavailable(_)) if self.inner.log.check().is_ok() && self.flush().await.is_ok() => {}
                Err(error) => return Err(error.into()),
                Ok(adopted) => return adopted,
            }
        }
    }

    fn adopt(
        &self,
        live: &Arc<Live>,
        frame: &Arc<Sealed>,
        seen: Option<&Seen>,
    ) -> Result<Result<(), Refusal>, log::Error> {
        let mut shared = live.lock();
        let next = shared.session.head() + 1;
        if shared.gone || frame.seq != next {
            let text = format!("{} of session {}: the next one is {next}", frame.seq, live.id());
            return Ok(Err(Refusal::field("frame.seq", text)));
        }
        let entry = Entry {
            seen: seen.cloned(),
            ..Entry::from(Arc::clone(frame))
        };
        let Appended { commit, first } = self.inner.log.append(live.id(), entry)?;
        shared.session.adopt(frame.seq, first);
        let replayed = Replayed {
            frame: Arc::clone(frame),
            seen: seen.cloned(),
        };
        recall(&mut shared.session, &replayed);
        shared.keep(Arc::clone(frame));
        if commit == Commit::Done {
            shared.committed = frame.seq;
        }
        Ok(Ok(()))
    }

    /// The session is complete: it is what it was.
    pub async fn imported(&self, mut importing: Importing) -> Result<(), Refusal> {
        let (live, profile) = (Arc::clone(&importing.live), importing.profile.clone());
        let saved = {
            let mut shared = live.lock();
            shared.check_here(live.id())?;
            let head = shared.session.head();
            if let Some(said) = importing.head.filter(|said| *said != head) {
                let text = format!(
                    "says that session {} has frames up to {said}, and {head} was the last",
                    live.id()
                );
                return Err(Refusal::field("session.head_seq", text));
            }
            self.change(&live, &mut shared, |_| profile)?
        };
        self.saved(&live, saved).await?;
        importing.is_complete = true;
        {
            // What was written before that is durable too, though this may not have been told yet.
            let mut shared = live.lock();
            shared.committed = shared.session.head();
        }
        tracing::info!(session = %live.id(), "session imported");
        Ok(())
    }
}

fn exists(id: &str) -> Refusal {
    let text = format!("there is a session {id} already; delete it first, if this one is to take its place");
    Refusal::new(Reason::SessionExists, text).with("session_id", id.to_owned())
}

/// Whether the frame may have been in a log.
fn check_frame(frame: &Frame) -> Result<(), Refusal> {
    let is_control = matches!(&frame.body, Body::Control(control) if !matches!(**control, Control::Restarted(_)));
    if is_control {
        return Err(Refusal::field("frame.body", "a control frame, which no log holds"));
    }
    if frame.ephemeral {
        return Err(Refusal::field(
            "frame.ephemeral",
            "an ephemeral frame, which no log holds",
        ));
    }
    if frame.folded_from > 0 {
        let text = "a folded frame: an export has the chunks one by one";
        return Err(Refusal::field("frame.folded_from", text));
    }
    if frame.timestamp.is_none() {
        return Err(Refusal::field("frame.timestamp", "required"));
    }
    // Whose a private frame is was said by the gateway that it comes from.
    let mut said = frame.clone();
    if let Some(to) = &mut said.to {
        Arc::make_mut(to).subject.clear();
    }
    said.check()
}

fn span(span: std::time::Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(span).ok()
}
