//! A live session: the machine, its lock, and what its readers need at hand.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::Router;
use super::held::{self, Held};
use super::link::Link;
use super::seat::{Circle, Cursor, Seat};
use crate::frame::{Body, Control, Frame, Sealed, Str, pb};
use crate::limits::Limits;
use crate::session::dispatch::Ticket;
use crate::session::{Cause, Effect, Opened, Retention, Session, Stage};

/// A session in this process. Its lock is held for moments: no I/O, no encoding, no await under it.
pub struct Live {
    id: Str,
    epoch: Str,
    /// The number by which the log's settlements speak of it.
    life: u64,
    /// The subject that brought it into being.
    owner: Box<str>,
    shared: Mutex<Shared>,
}

/// Whose a live session is, and as what the log knows it.
pub(super) struct Origin<'a> {
    pub owner: &'a str,
    pub life: u64,
}

pub(super) struct Shared {
    pub session: Session<Held>,
    /// Bytes of its open requests.
    pub request_bytes: held::Bytes,
    /// The newest frame that may be read.
    pub committed: u64,
    tail: VecDeque<Arc<Sealed>>,
    notes: VecDeque<Note>,
    next_note: u64,
    notes_bytes: usize,
    seats: Vec<Arc<Seat>>,
    audience: Option<Arc<[Arc<Seat>]>>,
    /// What waits for a commit, in the order of the log.
    pub pending: VecDeque<Pending>,
    /// Ends that the log did not take yet.
    pub unended: Vec<(Str, Cause)>,
    /// When the timers are to look at this session.
    pub armed: Option<(Instant, u64)>,
    /// The log has it, though perhaps without frames.
    pub is_there: bool,
    /// Deleted: whoever still holds it must look for the session anew.
    pub gone: bool,
    pub last_used: Instant,
    limits: Arc<Limits>,
}

/// What happens once a frame is durable.
pub(super) struct Pending {
    pub seq: u64,
    pub effects: Vec<Effect>,
    pub ack: Option<AckTo>,
}

/// Who is told that a frame is durable.
pub(super) enum AckTo {
    /// A connection, with the entry of its Ack.
    Link(Arc<Link>, pb::Accepted),
    /// A call that waits.
    Call(oneshot::Sender<()>),
}

/// A frame that is not in the log.
struct Note {
    frame: Arc<Sealed>,
    circle: Circle,
}

const FOUND: usize = 32;
const FOUND_BYTES: usize = 256 << 10;

/// What a cursor finds.
#[derive(Default)]
pub(super) struct Found {
    frames: [Option<Arc<Sealed>>; FOUND],
    /// Frames that are not in the log.
    pub notes: Vec<Arc<Sealed>>,
    /// There is more than fits.
    pub more: bool,
    /// What is next for the cursor is not at hand any more.
    pub behind: bool,
}

impl Found {
    /// The logged frames, in order.
    pub fn frames(&self) -> impl Iterator<Item = &Arc<Sealed>> + Clone {
        self.frames.iter().map_while(Option::as_ref)
    }
}

/// How many members and requests a frame lists.
pub const LISTED: usize = 256;

impl Live {
    pub(super) fn new(session: Session<Held>, origin: &Origin<'_>, limits: Arc<Limits>, last_used: Instant) -> Self {
        let (id, epoch) = (session.id().clone(), session.epoch().clone());
        let shared = Shared {
            committed: session.head(),
            session,
            request_bytes: held::Bytes::default(),
            tail: VecDeque::new(),
            notes: VecDeque::new(),
            next_note: 0,
            notes_bytes: 0,
            seats: Vec::new(),
            audience: None,
            pending: VecDeque::new(),
            unended: Vec::new(),
            armed: None,
            is_there: false,
            gone: false,
            last_used,
            limits,
        };
        Self {
            id,
            epoch,
            life: origin.life,
            owner: origin.owner.into(),
            shared: Mutex::new(shared),
        }
    }

    /// The session's name.
    pub fn id(&self) -> &Str {
        &self.id
    }

    /// The identity of its log's life.
    pub fn epoch(&self) -> &Str {
        &self.epoch
    }

    /// The number by which the log's settlements speak of it.
    pub(super) fn life(&self) -> u64 {
        self.life
    }

    /// The subject that brought it into being.
    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// A request of this session, as dispatch knows it.
    pub(super) fn ticket(&self, request: &Str) -> Ticket {
        Ticket {
            session: self.id.clone(),
            epoch: self.epoch.clone(),
            request: request.clone(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the cursor wait only for what can still be answered.
    pub(super) fn keep_open(&self, cursor: &mut Cursor) {
        let shared = self.lock();
        cursor.keep_asked(|request| shared.session.request(request).is_some());
    }

    /// What the session has for a cursor.
    pub(super) fn find(&self, cursor: &mut Cursor, seat: &Seat, found: &mut Found) {
        let shared = self.lock();
        shared.find_notes(cursor, seat, found);
        if cursor.next > shared.committed {
            return;
        }
        let first = shared.session.head() + 1 - shared.tail.len() as u64;
        if cursor.next < first {
            found.behind = true;
            return;
        }
        let skip = (cursor.next - first) as usize;
        let ready = (shared.committed + 1 - first) as usize;
        let frames = shared.tail.range(skip..ready);
        let all = frames.len();
        let mut taken = 0;
        let mut bytes = 0;
        for (slot, frame) in found.frames.iter_mut().zip(frames) {
            *slot = Some(Arc::clone(frame));
            taken += 1;
            bytes += frame.size();
            if bytes > FOUND_BYTES {
                break;
            }
        }
        found.more = all > taken;
    }

    /// Lets everybody who reads the session know that there is something new; one of them may learn it a little later.
    pub(super) fn notify(&self, patient: Option<&Arc<Link>>) {
        for seat in self.audience().iter() {
            seat.link().mark(seat);
            match patient.filter(|patient| Arc::ptr_eq(patient, seat.link())) {
                Some(patient) => patient.kick_soon(),
                None => seat.link().kick(),
            }
        }
    }

    pub(super) fn audience(&self) -> Arc<[Arc<Seat>]> {
        let mut shared = self.lock();
        if let Some(audience) = &shared.audience {
            return Arc::clone(audience);
        }
        let audience: Arc<[Arc<Seat>]> = shared.seats.iter().cloned().collect();
        shared.audience = Some(Arc::clone(&audience));
        audience
    }
}

impl Shared {
    fn find_notes(&self, cursor: &mut Cursor, seat: &Seat, found: &mut Found) {
        if cursor.next_note == self.next_note {
            return;
        }
        let first = self.next_note - self.notes.len() as u64;
        let skip = if cursor.next_note < first {
            if seat.is_in(Circle::Presence) {
                found.notes.push(Arc::new(Sealed::new(self.presence_snapshot())));
            }
            0
        } else {
            (cursor.next_note - first) as usize
        };
        for note in self.notes.range(skip..) {
            // A note of progress is nothing to whoever sees the end first.
            let request = &note.frame.frame().reply_to;
            let is_late = !request.is_empty() && self.session.request(request).is_none();
            if !is_late && seat.is_in(note.circle) && seat.sees(note.frame.frame(), cursor) {
                found.notes.push(Arc::clone(&note.frame));
            }
        }
        cursor.next_note = self.next_note;
    }

    /// The newest frame is in the log.
    pub fn keep(&mut self, frame: Arc<Sealed>) {
        while self.tail.len() >= self.limits.tail_frames
            && self.tail.len() as u64 > self.session.head() - self.committed
        {
            self.tail.pop_front();
        }
        self.tail.push_back(frame);
        self.follow_log();
    }

    /// The log has let go of what was before `first`.
    pub fn trimmed(&mut self, first: u64) {
        self.session.trimmed(first);
        self.follow_log();
        if self.tail.is_empty() {
            self.tail = VecDeque::new();
        }
    }

    /// What the log does not have any more is not at hand either.
    fn follow_log(&mut self) {
        let oldest = self.session.first();
        while self.session.head() + 1 - (self.tail.len() as u64) < oldest {
            self.tail.pop_front();
        }
    }

    /// Whether there is anybody to be told.
    pub fn has_circle(&self, circle: Circle) -> bool {
        self.seats.iter().any(|seat| seat.is_in(circle))
    }

    /// Lets the log speak for the chunks that it has folded: what the tail has of them, and all before, is not at hand any
    /// more.
    pub fn forget_chunks(&mut self, request: &str, from: u64, to: u64) {
        let first = self.session.head() + 1 - self.tail.len() as u64;
        let position = |seq: u64| seq.saturating_sub(first).min(self.tail.len() as u64) as usize;
        let (start, end) = (position(from), position(to.min(self.committed) + 1));
        let is_chunk = |frame: &Arc<Sealed>| frame.reply_to == request && frame.chunk_text().is_some();
        let chunks = || (start..end).rev().filter(|at| is_chunk(&self.tail[*at]));
        // One alone is not folded.
        if let (Some(newest), Some(_)) = (chunks().next(), chunks().nth(1)) {
            self.tail.drain(..=newest);
        }
    }

    /// A frame for whoever is here now.
    pub fn note(&mut self, frame: Frame, circle: Circle) {
        if !self.has_circle(circle) {
            return;
        }
        let frame = Arc::new(Sealed::new(frame));
        self.notes_bytes += frame.size();
        self.notes.push_back(Note { frame, circle });
        while self.notes.len() > 1
            && (self.notes.len() > self.limits.ephemeral_frames || self.notes_bytes > self.limits.ephemeral_bytes)
        {
            let oldest = self.notes.pop_front();
            self.notes_bytes -= oldest.map_or(0, |note| note.frame.size());
        }
        self.next_note += 1;
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn next_note(&self) -> u64 {
        self.next_note
    }

    pub fn seats(&self) -> &[Arc<Seat>] {
        &self.seats
    }

    pub fn sit(&mut self, seat: Arc<Seat>) {
        if self.seats.is_empty() {
            self.seats.reserve_exact(1);
        }
        self.seats.push(seat);
        self.audience = None;
    }

    /// Takes the seat away, if it is still there.
    pub fn rise(&mut self, key: crate::session::Seat) -> Option<Arc<Seat>> {
        let at = self.seats.iter().position(|seat| seat.key() == key)?;
        self.audience = None;
        let seat = self.seats.swap_remove(at);
        seat.vacate();
        if self.seats.is_empty() {
            self.notes = VecDeque::new();
            self.notes_bytes = 0;
        }
        Some(seat)
    }

    /// The request's frame, as it is in the log, without looking further than the open ones.
    pub fn asked_by(&self, request: &str) -> Option<Arc<pb::Address>> {
        self.session
            .request(request)
            .and_then(|held| held.frame.frame().from.clone())
    }

    pub fn member_list(&self) -> Vec<pb::Member> {
        self.session.members().take(LISTED).map(member).collect()
    }

    /// The open requests, oldest first, as frames list them.
    pub fn request_list(&self, router: &Router) -> Vec<pb::OpenRequest> {
        let open = self.session.open_requests();
        open.iter()
            .take(LISTED)
            .map(|request| self.listed(router, request))
            .collect()
    }

    /// An open request as frames list it.
    pub fn listed(&self, router: &Router, request: &Opened<'_>) -> pb::OpenRequest {
        let worker = request.worker.and_then(|key| router.worker(key));
        pb::OpenRequest {
            request_id: request.id.to_string(),
            seq: request.seq,
            role: request.role.to_string(),
            from: self.asked_by(request.id).map(|from| (*from).clone()),
            accepted_at: Some(request.accepted_at.into()),
            attempt: request.attempt,
            chunks: request.chunks,
            state: state(request.stage) as i32,
            changed_at: Some(request.changed_at.into()),
            worker_id: worker.map(|worker| worker.name().to_string()).unwrap_or_default(),
        }
    }

    pub fn describe(&self, settings: Retention) -> pb::Session {
        let session = &self.session;
        let profile = session.profile();
        let state = match session.state() {
            crate::session::State::Open => pb::SessionState::Open,
            crate::session::State::Closed => pb::SessionState::Closed,
        };
        pb::Session {
            session_id: session.id().to_string(),
            epoch: session.epoch().to_string(),
            state: state as i32,
            metadata: profile.said().metadata.clone().into_iter().collect(),
            created_at: Some(profile.created_at.into()),
            updated_at: Some(profile.updated_at.into()),
            head_seq: self.committed,
            first_seq: session.first(),
            member_count: session.members().len() as u32,
            open_request_count: session.open_request_count() as u32,
            etag: profile.revision.to_string(),
            labels: profile.said().labels.clone().into_iter().collect(),
            retention: Some(shown(session.retention(settings))),
        }
    }

    fn presence_snapshot(&self) -> Frame {
        self.presence(pb::Presence {
            snapshot: true,
            joined: self.member_list(),
            ..pb::Presence::default()
        })
    }

    /// A presence frame; the count is filled in.
    pub fn presence(&self, presence: pb::Presence) -> Frame {
        let presence = pb::Presence {
            member_count: self.session.members().len() as u32,
            ..presence
        };
        self.control(Control::Presence(presence))
    }

    /// A control frame about this session.
    pub fn control(&self, control: Control) -> Frame {
        Frame {
            session_id: self.session.id().clone(),
            body: Body::Control(Box::new(control)),
            ..Frame::default()
        }
    }
}

/// As frames say how a session is kept.
pub(super) fn shown(retention: Retention) -> pb::Retention {
    let span = |span| prost_types::Duration::try_from(span).ok();
    pb::Retention {
        max_age: span(retention.age),
        max_frames: Some(retention.frames as u64),
        max_bytes: Some(retention.bytes as u64),
        idle: span(retention.idle),
    }
}

/// As frames name where an open request is.
pub(super) fn state(stage: Stage) -> pb::RequestState {
    match stage {
        Stage::Queued => pb::RequestState::Queued,
        Stage::Waiting => pb::RequestState::Waiting,
        Stage::Assigned => pb::RequestState::Assigned,
        Stage::Started => pb::RequestState::Started,
        Stage::Cancelling => pb::RequestState::Cancelling,
    }
}

/// As frames list members.
pub(super) fn member(member: &crate::session::Member) -> pb::Member {
    pb::Member {
        member_id: member.name.to_string(),
        role: member.role.to_string(),
        subject: member.subject.to_string(),
        joined_at: Some(member.joined_at.into()),
    }
}
