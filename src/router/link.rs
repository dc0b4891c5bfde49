//! The link: a connection as the router sees it, which is where its frames go.
//!
//! A link has an outbox for what concerns the connection alone (acks, errors, handed requests), and seats, whose cursors say
//! how far it has been sent in each session. Writing is always the same: what the outbox holds, then what the cursors find.
//! Whoever brings something new *kicks* the link; a link that pushes (a socket) is then written to on the spot, on the
//! caller's thread, unless somebody else is at it or the socket is full; a link that is pulled (a gRPC stream) is woken.
//!
//! Locks: `out` may be taken before a session's lock, never the other way round.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Router;
use super::admission::Place;
use super::identities::Arrival;
use super::live::Found;
use super::seat::{Cursor, Seat, Seats};
use super::timers::{Later, Life};
use crate::auth::Identity;
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Control, Frame, Run, Sealed, Str, Types, pb};
use crate::log::Page;
use crate::session::{ConnectionId, WorkerKey};

/// What a peer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// WebSocket text messages of ProtoJSON.
    Json,
    /// WebSocket binary messages of protobuf.
    Binary,
    /// Bare protobuf, which gRPC puts its own prefix before.
    Wire,
}

/// A socket, of whatever kind.
pub trait Socket: AsyncRead + AsyncWrite + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + 'static> Socket for T {}

/// How a connection ends.
#[derive(Clone, Debug)]
struct End {
    /// Why, unless all is well.
    refusal: Option<Refusal>,
    /// The close frame, until it is on its way.
    farewell: Bytes,
    /// It was seen to be still there.
    is_overdue: bool,
}

/// Who is at the other end, and when that is to be looked at again.
struct Standing {
    identity: Option<Arc<Identity>>,
    until: Option<(Instant, u64)>,
}

/// A connection as the router sees it.
pub struct Link {
    id: ConnectionId,
    name: Str,
    form: Form,
    types: Arc<Types>,
    out: Mutex<Out>,
    /// Seats whose sessions have something new; nothing once the connection is over, since seats hold their link.
    ready: Mutex<Option<Vec<Arc<Seat>>>>,
    /// Somebody kicked while somebody else was writing.
    kicked: AtomicBool,
    /// The task that reads from the peer.
    driver: AtomicWaker,
    /// The gRPC stream that pulls.
    puller: AtomicWaker,
    places: Mutex<Places>,
    standing: Mutex<Standing>,
    /// There are ready seats, for a look without the lock.
    has_ready: AtomicBool,
    /// It is on the list of those who are kicked soon.
    soon: AtomicBool,
    later: Arc<Later>,
    /// Something that the connection had asked was answered.
    answered: AtomicBool,
    /// Frames of this connection that were taken, and are not durable yet.
    unsettled: AtomicU32,
    /// The task that reads waits for some of them.
    awaits_acks: AtomicBool,
    /// Of the TCP connection, which other links may share.
    life: Life,
    /// Of the coarse clock, when the peer last sent a frame.
    spoke: AtomicU32,
    /// Among the connections of its client's address.
    _place: Option<Place>,
}

struct Out {
    socket: Option<Pin<Box<dyn Socket>>>,
    waker: Waker,
    /// The socket took less than it was offered.
    blocked: bool,
    /// What is being written, in whole messages; of the first, `written` bytes are gone.
    queue: VecDeque<Bytes>,
    written: usize,
    outbox: VecDeque<Bytes>,
    outbox_bytes: usize,
    accepted: Vec<pb::Accepted>,
    turn: VecDeque<Arc<Seat>>,
    lagging: Vec<Arc<Seat>>,
    paused: bool,
    end: Option<Box<End>>,
    ended: bool,
}

/// Where a connection has a place: its seats, and the roles that it serves.
#[derive(Default)]
pub(super) struct Places {
    pub seats: Seats,
    pub serves: Vec<(Str, WorkerKey)>,
    pub retired: bool,
}

/// Messages that are taken up at once.
const BATCH_FRAMES: usize = 64;
/// Messages on their way, beyond which the peer is not read from.
const QUEUED: usize = 1_024;
/// Bytes beyond which no more messages are taken up at once.
const BATCH_BYTES: usize = 64 << 10;
/// Chunks in a row that are worth to be folded for a reader that is behind. At the head a few come at a time, and their
/// encodings are shared by all readers, whereas a folded frame is made for one.
const FOLDED: usize = 8;
/// Slices of one vectored write.
const SLICES: usize = 64;

impl Link {
    /// A link that writes to the socket by itself, or, without one, waits for its frames to be taken by `poll_take`.
    pub(super) fn new(
        router: &Router,
        form: Form,
        socket: Option<Pin<Box<dyn Socket>>>,
        (arrival, place): (Arrival, Option<Place>),
    ) -> Self {
        let Arrival { life, identity } = arrival;
        let out = Out {
            socket,
            waker: Waker::noop().clone(),
            blocked: false,
            queue: VecDeque::new(),
            written: 0,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            accepted: Vec::new(),
            turn: VecDeque::new(),
            lagging: Vec::new(),
            paused: false,
            end: None,
            ended: false,
        };
        Self {
            id: ConnectionId(router.next_id()),
            name: super::random_name(),
            form,
            types: Arc::clone(router.types()),
            out: Mutex::new(out),
            ready: Mutex::new(Some(Vec::new())),
            kicked: AtomicBool::new(false),
            driver: AtomicWaker::new(),
            puller: AtomicWaker::new(),
            places: Mutex::default(),
            standing: Mutex::new(Standing { identity, until: None }),
            has_ready: AtomicBool::new(false),
            soon: AtomicBool::new(false),
            later: router.later(),
            answered: AtomicBool::new(false),
            unsettled: AtomicU32::new(0),
            awaits_acks: AtomicBool::new(false),
            spoke: AtomicU32::new(life.now()),
            life,
            _place: place,
        }
    }

    /// Which connection.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Its name, by which logs and `Welcome` know it.
    pub fn name(&self) -> &Str {
        &self.name
    }

    /// What its peer reads.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The peer sent a frame.
    pub fn spoke(&self) {
        self.spoke.store(self.life.now(), Ordering::Relaxed);
    }

    /// How long the router runs, to within a tick.
    pub fn time(&self) -> Duration {
        self.life.time()
    }

    /// When the peer last showed life, by the coarse clock.
    pub(super) fn last_alive(&self) -> u32 {
        self.life.last()
    }

    /// When it last sent a frame, by the coarse clock.
    pub(super) fn last_spoke(&self) -> u32 {
        self.spoke.load(Ordering::Relaxed)
    }

    pub(super) fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is at the other end, if that is known.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.standing().identity.clone()
    }

    pub(super) fn set_identity(&self, identity: Arc<Identity>) {
        self.standing().identity = Some(identity);
    }

    /// The timers look at it there from now on; where they did before.
    pub(super) fn arm(&self, place: Option<(Instant, u64)>) -> Option<(Instant, u64)> {
        std::mem::replace(&mut self.standing().until, place)
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_out(&self) -> Option<MutexGuard<'_, Out>> {
        match self.out.try_lock() {
            Ok(out) => Some(out),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    /// Puts a frame for this connection alone into the outbox; a kick sends it.
    pub fn push(&self, frame: Frame) {
        let bytes = self.encode(&Sealed::new(frame));
        let mut out = self.out();
        if !out.ended {
            out.outbox_bytes += bytes.len();
            out.outbox.push_back(bytes);
        }
    }

    /// Adds to the next Ack, which the next kick sends.
    pub(super) fn ack(&self, accepted: impl Iterator<Item = pb::Accepted>) {
        let mut out = self.out();
        for entry in accepted {
            // A later chunk speaks for the earlier ones of its request.
            let before = out.accepted.iter_mut().rev().find(|before| {
                entry.id.is_empty()
                    && before.id.is_empty()
                    && before.reply_to == entry.reply_to
                    && before.session_id == entry.session_id
            });
            match before {
                Some(before) => *before = entry,
                None => out.accepted.push(entry),
            }
        }
    }

    /// Sends what there is to send within a few milliseconds, together with what comes until then.
    pub(super) fn kick_soon(self: &Arc<Self>) {
        if !self.soon.swap(true, Ordering::SeqCst) {
            self.later.add(Arc::clone(self));
        }
    }

    /// The few milliseconds are over.
    pub(super) fn kick_late(&self) {
        self.soon.store(false, Ordering::SeqCst);
        let due = self.with_out(|out| !out.outbox.is_empty() || !out.accepted.is_empty());
        let due = due || self.has_ready.load(Ordering::SeqCst);
        if due {
            self.kick();
        }
    }

    /// Puts raw bytes (a pong, a ping) before everything that has not been begun to be written.
    pub fn push_first(&self, bytes: Bytes) {
        let mut out = self.out();
        let at = usize::from(out.written > 0);
        if !out.ended {
            out.queue.insert(at, bytes);
        }
    }

    /// Puts a message that is ready to be sent into the outbox; a kick sends it.
    #[cfg(test)]
    pub fn push_ready(&self, bytes: Bytes) {
        let mut out = self.out();
        out.outbox_bytes += bytes.len();
        out.outbox.push_back(bytes);
    }

    /// Ends the connection once everything before has been sent. The first end counts.
    pub fn end(&self, refusal: Option<Refusal>) {
        self.end_by(self.end_of(refusal));
    }

    /// An end without a reason is the peer's own: it has had its answer.
    fn end_of(&self, refusal: Option<Refusal>) -> End {
        let farewell = match &refusal {
            Some(refusal) if self.form != Form::Wire => close_frame(refusal),
            _ => Bytes::new(),
        };
        End {
            refusal,
            farewell,
            is_overdue: false,
        }
    }

    /// Ends the connection without a reason, as the peer wants it; with these bytes as the last.
    pub fn end_with(&self, farewell: Bytes) {
        self.end_by(End {
            refusal: None,
            farewell,
            is_overdue: false,
        });
    }

    fn end_by(&self, end: End) {
        let mut out = self.out();
        if out.end.is_none() && !out.ended {
            out.end = Some(Box::new(end));
        }
        drop(out);
        self.kick();
    }

    /// Ends the connection now, whether the peer takes what is due to it or not.
    pub fn cut(&self, refusal: Option<Refusal>) {
        self.end(refusal);
        let mut out = self.out();
        if !out.ended {
            self.abandon(&mut out);
        }
        drop(out);
        self.kick();
    }

    /// Whether it is to end, or has.
    pub(super) fn is_ending(&self) -> bool {
        self.with_out(|out| out.end.is_some() || out.ended)
    }

    fn ready(&self) -> MutexGuard<'_, Option<Vec<Arc<Seat>>>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection, and lets go of what has not begun to be sent; not if it is to end already.
    pub(super) fn end_now(&self, refusal: Refusal) -> bool {
        let mut out = self.out();
        let is_first = out.end.is_none() && !out.ended;
        if is_first {
            let begun = usize::from(out.written > 0);
            out.queue.truncate(begun);
            out.forget();
            out.end = Some(Box::new(self.end_of(Some(refusal))));
        }
        drop(out);
        self.kick();
        is_first
    }

    /// The connection is over: it has no seats any more, and none is to hold it.
    pub(super) fn let_go_of_seats(&self) {
        *self.ready() = None;
        let mut out = self.out();
        out.turn = VecDeque::new();
        out.lagging = Vec::new();
    }

    /// The connection has the seat; not if it is over.
    pub(super) fn take_seat(&self, seat: &Arc<Seat>) -> bool {
        let mut places = self.places();
        if !places.retired {
            places.seats.insert(Arc::clone(seat));
        }
        !places.retired
    }

    /// Cuts it if it was to end already when it was looked at before: its peer does not take what is on its way.
    pub(super) fn cut_if_overdue(&self) {
        let is_overdue = self.with_out(|out| {
            let end = out.end.as_deref_mut().filter(|_| !out.ended);
            end.is_some_and(|end| std::mem::replace(&mut end.is_overdue, true))
        });
        if is_overdue {
            self.cut(None);
        }
    }

    /// Bytes for this connection alone that it has not taken.
    pub(super) fn unread(&self) -> usize {
        self.with_out(|out| out.outbox_bytes)
    }

    /// The peer of a pulled link has stopped pulling.
    pub fn abandoned(&self) {
        self.abandon(&mut self.out());
    }

    /// Tells the peer that the connection will be ended.
    pub(super) fn go_away(&self, grace: Duration) {
        let refusal = Refusal::new(Reason::Draining, "the gateway is about to stop; connect again");
        let grace = prost_types::Duration::try_from(grace).ok();
        self.tell(
            &Str::EMPTY,
            Control::GoAway(pb::GoAway {
                error: Some(refusal.to_pb()),
                grace,
            }),
        );
        self.kick();
    }

    /// Whether the end has been sent, or can be sent no more.
    pub fn has_ended(&self) -> bool {
        self.with_out(|out| out.ended)
    }

    /// A seat has something new. A kick sends it.
    pub(super) fn mark(&self, seat: &Arc<Seat>) {
        if seat.mark()
            && let Some(ready) = &mut *self.ready()
        {
            ready.push(Arc::clone(seat));
            self.has_ready.store(true, Ordering::SeqCst);
        }
    }

    /// Sends what there is to send, or sees to it that it is sent.
    pub fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        if self.form == Form::Wire {
            self.puller.wake();
            return;
        }
        self.write_while_kicked();
    }

    /// Whoever held the lock looks whether it was kicked meanwhile: those who kicked did not wait.
    fn with_out<T>(&self, act: impl FnOnce(&mut Out) -> T) -> T {
        let result = act(&mut self.out());
        if self.form != Form::Wire {
            self.write_while_kicked();
        }
        result
    }

    fn write_while_kicked(&self) {
        while self.kicked.load(Ordering::SeqCst) {
            let Some(mut out) = self.try_out() else { return };
            self.kicked.store(false, Ordering::SeqCst);
            if !out.blocked {
                self.write(&mut out);
            }
        }
    }

    /// What the connection's own task does when it is woken: it writes where the socket had been full, and takes the waker.
    pub fn poll_write(&self, cx: &mut Context<'_>) {
        self.driver.register(cx.waker());
        if self.form == Form::Wire {
            return;
        }
        let mut out = self.out();
        if !out.waker.will_wake(cx.waker()) {
            out.waker = cx.waker().clone();
        }
        self.kicked.store(false, Ordering::SeqCst);
        out.blocked = false;
        self.write(&mut out);
        drop(out);
        self.write_while_kicked();
    }

    /// Reads from the socket.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let mut out = self.out();
        let polled = match &mut out.socket {
            Some(socket) => socket.as_mut().poll_read(cx, buffer),
            None => Poll::Ready(Ok(())),
        };
        drop(out);
        self.write_while_kicked();
        polled
    }

    /// The next message of a pulled link; `None` after the end.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Refusal>>> {
        let mut out = self.out();
        if out.queue.is_empty() {
            self.puller.register(cx.waker());
            self.refill(&mut out);
        }
        if let Some(bytes) = out.queue.pop_front() {
            return Poll::Ready(Some(Ok(bytes)));
        }
        match out.end.take() {
            Some(end) => {
                out.ended = true;
                self.driver.wake();
                Poll::Ready(end.refusal.map(Err))
            }
            None if out.ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// Whether the peer may be read from: not while it leaves too many answers unread. Wakes the driver when it may again.
    pub fn may_read(&self, frames: usize, bytes: usize) -> bool {
        self.with_out(|out| {
            if out.end.is_some() || out.ended {
                // Whoever was told to go is not listened to.
                return false;
            }
            // What is on its way counts too: pings are answered there.
            out.paused =
                out.outbox.len() + out.accepted.len() > frames || out.outbox_bytes > bytes || out.queue.len() > QUEUED;
            !out.paused
        })
    }

    /// A seat that has fallen behind what is at hand and wants the log to be read for it. One at a time, and only when what
    /// was read before is on its way: this bounds what lags in memory.
    pub(super) fn take_lagging(&self) -> Option<Arc<Seat>> {
        self.with_out(|out| {
            let queued = out.queue.iter().map(Bytes::len).sum::<usize>();
            match out.queue.len() < BATCH_FRAMES && queued < BATCH_BYTES {
                true => out.lagging.pop(),
                false => None,
            }
        })
    }

    /// Hands over what was read from the log for a lagging seat, and sends it.
    pub(super) fn catch_up(&self, seat: &Arc<Seat>, page: &Page) {
        if seat.is_vacated() {
            return;
        }
        let mut out = self.out();
        if seat.is_vacated() || out.end.is_some() || out.ended {
            return;
        }
        let mut cursor = seat.cursor();
        if page.first > cursor.next {
            let gap = seat.gap(cursor.next, page.first - 1, pb::GapReason::Trimmed);
            cursor.next = page.first;
            let bytes = self.encode(&Sealed::new(gap));
            out.queue.push_back(bytes);
        }
        self.deliver(&mut out, seat, &mut cursor, page.frames.iter());
        cursor.reading = false;
        drop(cursor);
        drop(out);
        self.mark(seat);
        self.kick();
    }

    fn write(&self, out: &mut Out) {
        loop {
            if out.queue.is_empty() {
                self.refill(out);
            }
            if out.queue.is_empty() {
                if self.flushed(out) {
                    self.finish(out);
                }
                return;
            }
            let Out {
                socket: Some(socket),
                waker,
                queue,
                written,
                ..
            } = out
            else {
                return;
            };
            let cx = &mut Context::from_waker(waker);
            match poll_write(socket.as_mut(), cx, queue, *written) {
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return self.abandon(out),
                Poll::Ready(Ok(count)) => out.advance(count),
                Poll::Pending => {
                    out.blocked = true;
                    return;
                }
            }
        }
    }

    /// Whether nothing that was written waits within the socket, as it may in TLS.
    fn flushed(&self, out: &mut Out) -> bool {
        let Some(socket) = &mut out.socket else { return true };
        match socket.as_mut().poll_flush(&mut Context::from_waker(&out.waker)) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => {
                self.abandon(out);
                false
            }
            Poll::Pending => {
                out.blocked = true;
                false
            }
        }
    }

    fn finish(&self, out: &mut Out) {
        let Some(end) = &mut out.end else { return };
        if out.ended {
            return;
        }
        if !end.farewell.is_empty() {
            let farewell = std::mem::take(&mut end.farewell);
            out.queue.push_back(farewell);
            return self.write(out);
        }
        let Out {
            socket: Some(socket),
            waker,
            ..
        } = out
        else {
            return;
        };
        let cx = &mut Context::from_waker(waker);
        if socket.as_mut().poll_shutdown(cx).is_pending() {
            return;
        }
        out.ended = true;
        self.driver.wake();
    }

    /// The peer cannot be written to: nothing more is.
    fn abandon(&self, out: &mut Out) {
        out.socket = None;
        out.queue = VecDeque::new();
        out.forget();
        out.ended = true;
        out.blocked = true;
        self.driver.wake();
    }

    /// Takes up to a batch of messages into the empty queue: the outbox first, then the seats in turn.
    fn refill(&self, out: &mut Out) {
        if out.ended {
            return;
        }
        if !out.accepted.is_empty() {
            let accepted = out.accepted.drain(..).collect();
            let ack = Control::Ack(pb::Ack { accepted });
            let bytes = self.encode(&Sealed::new(Frame {
                body: Body::Control(Box::new(ack)),
                ..Frame::default()
            }));
            out.outbox.push_back(bytes);
        }
        if !out.outbox.is_empty() {
            std::mem::swap(&mut out.queue, &mut out.outbox);
            out.outbox_bytes = 0;
        }
        if out.paused || !out.lagging.is_empty() {
            out.paused = false;
            self.driver.wake();
        }
        if self.has_ready.swap(false, Ordering::SeqCst) {
            let ready = self.ready().as_mut().map(std::mem::take);
            out.turn.extend(ready.into_iter().flatten());
        }
        if out.turn.is_empty() {
            return;
        }
        let mut bytes = out.queue.iter().map(Bytes::len).sum::<usize>();
        while out.queue.len() < BATCH_FRAMES && bytes < BATCH_BYTES {
            let Some(seat) = out.turn.pop_front() else { break };
            let before = out.queue.len();
            // Marked again, it is not put among the ready ones a second time.
            if self.pull(out, &seat) && seat.mark() {
                out.turn.push_back(seat);
            }
            bytes += out.queue.iter().skip(before).map(Bytes::len).sum::<usize>();
        }
        if out.turn.is_empty() && out.turn.capacity() > BATCH_FRAMES {
            out.turn = VecDeque::new();
        }
    }

    /// Takes what one seat's session has for it; whether there may be more.
    fn pull(&self, out: &mut Out, seat: &Arc<Seat>) -> bool {
        seat.unmark();
        let mut cursor = seat.cursor();
        if cursor.reading || seat.is_vacated() {
            return false;
        }
        let mut found = Found::default();
        seat.live().find(&mut cursor, seat, &mut found);
        for frame in &found.notes {
            out.queue.push_back(self.encode(frame));
        }
        if found.behind {
            cursor.reading = true;
            drop(cursor);
            out.lagging.push(Arc::clone(seat));
            self.driver.wake();
            return false;
        }
        self.deliver(out, seat, &mut cursor, found.frames());
        found.more
    }

    fn deliver<'a>(
        &self,
        out: &mut Out,
        seat: &Seat,
        cursor: &mut Cursor,
        frames: impl Iterator<Item = &'a Arc<Sealed>> + Clone,
    ) {
        let are_few = frames.clone().nth(FOLDED - 1).is_none();
        let mut run = Run::default();
        for frame in frames {
            let plain = frame.frame();
            if plain.seq < cursor.next {
                continue;
            }
            cursor.next = plain.seq + 1;
            let is_seen = seat.sees(plain, cursor);
            if is_seen && are_few {
                out.queue.push_back(self.encode(frame));
            } else if is_seen {
                if !run.takes(plain) {
                    self.deliver_run(out, &mut run);
                }
                run.push(Arc::clone(frame));
            }
            if plain.last && cursor.answered(&plain.reply_to) {
                self.answered.store(true, Ordering::SeqCst);
                self.driver.wake();
            }
        }
        self.deliver_run(out, &mut run);
    }

    fn deliver_run(&self, out: &mut Out, run: &mut Run) {
        out.queue.extend(run.drain(FOLDED).map(|frame| self.encode(&frame)));
    }

    fn encode(&self, frame: &Sealed) -> Bytes {
        match self.form {
            Form::Json => frame.json(&self.types).clone(),
            Form::Binary => frame.binary().clone(),
            Form::Wire => frame.wire(),
        }
    }

    /// Answers a control frame, or refuses a frame.
    pub fn answer(&self, to: &Str, session: &Str, body: Body) {
        self.push(Frame {
            session_id: session.clone(),
            reply_to: to.clone(),
            body,
            ..Frame::default()
        });
    }

    /// Refuses a frame.
    pub fn refuse(&self, to: &Str, session: &Str, refusal: &Refusal) {
        self.answer(to, session, Body::Error(Box::new(refusal.to_pb())));
    }

    /// Tells the connection something.
    pub fn tell(&self, session: &Str, control: Control) {
        self.answer(&Str::EMPTY, session, Body::Control(Box::new(control)));
    }

    /// The connection serves the role as this worker; not if it is over.
    pub(super) fn take_up(&self, role: &Str, worker: WorkerKey) -> bool {
        let mut places = self.places();
        if !places.retired && !places.serves.iter().any(|(_, known)| *known == worker) {
            places.serves.push((role.detached(), worker));
        }
        !places.retired
    }

    /// The connection does not serve as this worker any more.
    pub(super) fn lay_down(&self, worker: WorkerKey) {
        self.places().serves.retain(|(_, known)| *known != worker);
    }

    /// The connection's task is to look whether it waits for anything still.
    pub(super) fn recheck(&self) {
        self.answered.store(true, Ordering::SeqCst);
        self.driver.wake();
    }

    /// Whether a seat of one who only asked has all its answers since this was asked last.
    pub(super) fn take_answered(&self) -> bool {
        self.answered.swap(false, Ordering::SeqCst)
    }

    /// Its peer is to be disconnected for a flood.
    pub fn count_flood(&self) {
        self.life.count_flood();
    }

    /// Whether the connection serves any role now.
    pub fn is_worker(&self) -> bool {
        !self.places().serves.is_empty()
    }

    /// The connection's seat in a session.
    pub fn seat(&self, session: &str) -> Option<Arc<Seat>> {
        self.places().seats.get(session).cloned()
    }

    /// The one session that the connection is in, if it is in exactly one.
    pub fn only_session(&self) -> Option<Str> {
        let places = self.places();
        let members = places.seats.iter().filter(|seat| seat.is_member());
        let mut sessions = members.map(|seat| seat.live().id());
        match (sessions.next(), sessions.next()) {
            (Some(name), None) => Some(name.clone()),
            _ => None,
        }
    }

    /// Whether it is in a session, or serves a role.
    pub(super) fn is_used(&self) -> bool {
        let places = self.places();
        !places.serves.is_empty() || places.seats.len() > 0
    }

    /// A frame of this connection is to be acked later.
    pub(super) fn owe_ack(&self) {
        self.unsettled.fetch_add(1, Ordering::SeqCst);
    }

    /// It was acked, or refused.
    pub(super) fn settle_ack(&self) {
        self.unsettled.fetch_sub(1, Ordering::SeqCst);
        if self.awaits_acks.swap(false, Ordering::SeqCst) {
            self.driver.wake();
        }
    }

    /// Whether at most so many frames are still to be acked; if not, the task that reads looks again when some were.
    pub fn is_settled(&self, most: usize) -> bool {
        let is_settled = || self.unsettled.load(Ordering::SeqCst) as usize <= most;
        // Looked at once more, lest the last of them was acked in between.
        is_settled() || {
            self.awaits_acks.store(true, Ordering::SeqCst);
            is_settled()
        }
    }

    /// How many requests of this connection have not been answered to it yet.
    pub fn awaits(&self) -> usize {
        let seats: Vec<_> = self.places().seats.iter().cloned().collect();
        seats.iter().map(|seat| seat.cursor().asked()).sum()
    }
}

/// Writes what is queued, but for the first bytes that are gone already.
fn poll_write(
    socket: Pin<&mut dyn Socket>,
    cx: &mut Context<'_>,
    queue: &VecDeque<Bytes>,
    written: usize,
) -> Poll<std::io::Result<usize>> {
    if let [only] = queue.as_slices().0
        && queue.len() == 1
    {
        return socket.poll_write(cx, &only[written..]);
    }
    let mut slices = [IoSlice::new(&[]); SLICES];
    for (slice, bytes) in slices.iter_mut().zip(queue) {
        *slice = IoSlice::new(bytes);
    }
    slices[0].advance(written);
    socket.poll_write_vectored(cx, &slices[..queue.len().min(SLICES)])
}

/// A close frame, whole: RFC 6455 §5.5.1.
fn close_frame(refusal: &Refusal) -> Bytes {
    let code = refusal.reason.row().close.unwrap_or(1011);
    let text = refusal.to_string();
    let text = &text.as_bytes()[..text.floor_char_boundary(123)];
    let mut frame = vec![0x88, 2 + text.len() as u8];
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(text);
    frame.into()
}

impl Out {
    /// Lets go of what is not in the queue yet.
    fn forget(&mut self) {
        self.outbox = VecDeque::new();
        self.outbox_bytes = 0;
        self.accepted = Vec::new();
        self.turn = VecDeque::new();
        self.lagging = Vec::new();
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.queue.front() {
            let left = first.remaining() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            self.queue.pop_front();
        }
        if self.queue.capacity() > BATCH_FRAMES {
            self.queue = VecDeque::new();
        }
    }
}
