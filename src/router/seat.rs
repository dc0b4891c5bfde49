//! A seat: one connection's place in one session, with its cursor.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::link::Link;
use super::live::Live;
use crate::frame::{Body, Control, Frame, Str, pb};
use crate::session;

/// What of a session's frames a seat is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// A member: all that is for it.
    Member,
    /// A watcher, who is no member: all that is for everybody.
    Watcher,
    /// One who asked without joining: the replies to what it asked.
    Asker,
}

/// Who is told of something that is not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circle {
    /// Whoever it is for.
    All,
    /// Those who want to know who comes and goes.
    Presence,
    /// Those who want to know how requests get on.
    Requests,
}

/// What a seat is told beyond what is for everybody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interest {
    /// Who comes and goes.
    pub presence: bool,
    /// How requests get on.
    pub requests: bool,
}

/// One connection's place in one session.
pub struct Seat {
    at: Placing,
    marked: AtomicBool,
    vacated: AtomicBool,
    /// May be held when the session's lock is taken, never the other way round.
    cursor: Mutex<Cursor>,
}

/// How far a seat has been sent.
#[derive(Debug, Default)]
pub struct Cursor {
    /// The next seq.
    pub next: u64,
    /// The next of the frames that are not in the log.
    pub next_note: u64,
    /// The log is being read for it.
    pub reading: bool,
    asked: Vec<Str>,
}

impl Cursor {
    /// A cursor that begins here.
    pub fn at(next: u64, next_note: u64) -> Self {
        Self {
            next,
            next_note,
            ..Self::default()
        }
    }

    /// The connection asked this, and waits for the answer; whether it did not before.
    pub fn ask(&mut self, request: &Str) -> bool {
        let is_new = !self.asked.contains(request);
        if is_new {
            self.asked.push(request.detached());
        }
        is_new
    }

    /// Keeps waiting only for what can still be answered.
    pub fn keep_asked(&mut self, is_open: impl Fn(&Str) -> bool) {
        self.asked.retain(is_open);
    }

    /// The answer was handed over; whether it had been waited for.
    pub fn answered(&mut self, request: &str) -> bool {
        let before = self.asked.len();
        self.asked.retain(|asked| asked != request);
        self.asked.len() != before
    }

    /// Takes over what an earlier place of the same connection waits for.
    pub fn take_asked(&mut self, old: &mut Cursor) {
        self.asked.append(&mut old.asked);
    }

    /// How many answers are waited for.
    pub fn asked(&self) -> usize {
        self.asked.len()
    }
}

/// What a new seat is made of.
pub struct Placing {
    /// The session.
    pub live: Arc<Live>,
    /// The connection.
    pub link: Arc<Link>,
    /// Tells the place from earlier ones.
    pub key: session::Seat,
    /// What it is shown.
    pub view: View,
    /// Who it is.
    pub address: Arc<pb::Address>,
    /// Its member's name.
    pub name: Str,
    /// The same with the subject, in one word (`session::sender`).
    pub sender: Str,
    /// What it is told beyond what is for everybody.
    pub interest: Interest,
}

impl Seat {
    /// A new seat, whose cursor begins as said.
    pub fn new(at: Placing, cursor: Cursor) -> Self {
        Self {
            at,
            marked: AtomicBool::new(false),
            vacated: AtomicBool::new(false),
            cursor: Mutex::new(cursor),
        }
    }

    /// Its session.
    pub fn live(&self) -> &Arc<Live> {
        &self.at.live
    }

    /// Its connection.
    pub fn link(&self) -> &Arc<Link> {
        &self.at.link
    }

    /// Its place in the session.
    pub fn key(&self) -> session::Seat {
        self.at.key
    }

    /// What `from` says of frames that come from here.
    pub fn address(&self) -> &Arc<pb::Address> {
        &self.at.address
    }

    /// The member's name.
    pub fn name(&self) -> &Str {
        &self.at.name
    }

    /// Of whom dedup speaks.
    pub fn sender(&self) -> &Str {
        &self.at.sender
    }

    /// Whether it is told what concerns the circle.
    pub fn is_in(&self, circle: Circle) -> bool {
        match circle {
            Circle::All => true,
            Circle::Presence => self.at.interest.presence,
            Circle::Requests => self.at.interest.requests,
        }
    }

    /// Whether its connection is a member by it.
    pub fn is_member(&self) -> bool {
        self.at.view == View::Member
    }

    /// What it is shown.
    pub fn view(&self) -> View {
        self.at.view
    }

    pub(super) fn cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something new; whether that was not known before.
    pub(super) fn mark(&self) -> bool {
        !self.marked.swap(true, Ordering::SeqCst)
    }

    pub(super) fn unmark(&self) {
        self.marked.store(false, Ordering::SeqCst);
    }

    /// The seat was left: nothing more is sent to it.
    pub(super) fn vacate(&self) {
        self.vacated.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_vacated(&self) -> bool {
        self.vacated.load(Ordering::SeqCst)
    }

    /// Whether a frame is for this seat.
    pub fn sees(&self, frame: &Frame, cursor: &Cursor) -> bool {
        match self.at.view {
            View::Asker => cursor.asked.contains(&frame.reply_to),
            View::Member => frame.to.as_deref().is_none_or(|to| self.is_for(to, frame)),
            View::Watcher => frame.to.as_deref().is_none_or(|to| to.member_id.is_empty()),
        }
    }

    fn is_for(&self, to: &pb::Address, frame: &Frame) -> bool {
        let is_own = |one: &pb::Address| one.member_id == *self.at.name && one.subject == self.at.address.subject;
        let sent = || frame.from.as_deref().is_some_and(is_own);
        if !to.member_id.is_empty() {
            return is_own(to) || sent();
        }
        !to.multicast || to.role == self.at.address.role || sent()
    }

    /// The frame that tells of a hole.
    pub(super) fn gap(&self, from: u64, to: u64, reason: pb::GapReason) -> Frame {
        let gap = pb::Gap {
            from_seq: from,
            to_seq: to,
            reason: reason as i32,
            epoch: self.at.live.epoch().to_string(),
        };
        Frame {
            session_id: self.at.live.id().clone(),
            body: Body::Control(Box::new(Control::Gap(gap))),
            ..Frame::default()
        }
    }
}

/// The seats of one connection, by the names of their sessions: most have one, and it should cost little.
#[derive(Default)]
pub(super) struct Seats {
    by_session: Vec<Arc<Seat>>,
}

impl Seats {
    fn find(&self, session: &str) -> Result<usize, usize> {
        self.by_session
            .binary_search_by(|seat| seat.at.live.id().as_str().cmp(session))
    }

    pub fn len(&self) -> usize {
        self.by_session.len()
    }

    pub fn get(&self, session: &str) -> Option<&Arc<Seat>> {
        self.find(session).ok().map(|at| &self.by_session[at])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Seat>> {
        self.by_session.iter()
    }

    /// Puts the seat in place of the one that the session had.
    pub fn insert(&mut self, seat: Arc<Seat>) {
        match self.find(seat.at.live.id()) {
            Ok(at) => self.by_session[at] = seat,
            Err(at) => {
                if self.by_session.is_empty() {
                    self.by_session.reserve_exact(1);
                }
                self.by_session.insert(at, seat);
            }
        }
    }

    pub fn remove(&mut self, session: &str) {
        if let Ok(at) = self.find(session) {
            self.by_session.remove(at);
        }
    }

    /// All of them, by whose way they go.
    pub fn take(&mut self) -> Vec<Arc<Seat>> {
        std::mem::take(&mut self.by_session)
    }
}
