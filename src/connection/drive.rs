//! The loop of a connection, the same for both faces: read what has come, handle it, ack and deliver once, and between the
//! times read the log for cursors that have fallen behind.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::{Connection, Message};
use crate::error::{Reason, Refusal};
use crate::log::{Page, Wait};
use crate::router::{Parting, Router, Seat};

/// What a transport reads from a peer.
pub enum Incoming {
    /// A message.
    Message(Message),
    /// Something that was for the transport alone, such as a ping.
    Nothing,
    /// The peer will send no more, but still reads.
    HalfClosed,
    /// The peer is gone, or is taking its leave: then these bytes are the last that it is sent.
    Closed(Bytes),
    /// The peer broke the rules of the transport: the last thing it is told is this.
    Broken(Refusal),
}

impl Incoming {
    /// A frame that is larger than it may be.
    pub fn too_large(limit: usize) -> Self {
        let text = format!("a frame may have {limit} bytes at most");
        Self::Broken(Refusal::limit(
            Reason::FrameTooLarge,
            text,
            ("limits.frame_bytes", limit as u64),
        ))
    }
}

/// The reading side of a transport.
pub trait Inlet: Send + Unpin + 'static {
    /// The next thing that the peer has sent. Not called again after anything but a message.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Incoming>;

    /// It is known who the peer is: it may send as much as anybody.
    fn trust(&mut self);

    /// After the end has been sent: waits until the peer has seen it, or for long enough.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    HalfClosed,
    /// The peer takes its leave, and is told first what became of what it sent.
    Leaving,
    Ending,
    Lingering,
    Done,
}

/// The future that runs a connection to its end.
pub struct Drive<I> {
    router: Router,
    connection: Connection,
    inlet: I,
    state: State,
    /// What the peer is to be sent last, once it is known.
    farewell: Option<Box<Bytes>>,
    catching_up: Option<(Arc<Seat>, Wait<Page>)>,
}

/// Messages that are handled before others get a turn.
const BATCH: usize = 64;

impl<I: Inlet> Drive<I> {
    /// The loop of this connection with this transport.
    pub fn new(router: &Router, connection: Connection, inlet: I) -> Self {
        Self {
            router: router.clone(),
            connection,
            inlet,
            state: State::Reading,
            farewell: None,
            catching_up: None,
        }
    }

    fn read(&mut self, cx: &mut Context<'_>) {
        let limits = self.router.limits();
        let (frames, bytes) = (limits.outbox_frames, limits.outbox_bytes);
        let mut count = 0;
        while self.state == State::Reading {
            // What it brings about may be the end.
            let link = self.connection.link();
            let has_room = link.may_read(frames, bytes) && link.is_settled(frames);
            if self.connection.poll_ready(cx).is_pending() || !has_room {
                break;
            }
            if self.connection.is_known() {
                self.inlet.trust();
            }
            if count == BATCH {
                cx.waker().wake_by_ref();
                break;
            }
            let Poll::Ready(incoming) = self.inlet.poll_next(cx) else {
                break;
            };
            if count == 0 {
                self.connection.begin();
            }
            count += 1;
            match incoming {
                Incoming::Message(message) => self.connection.receive(&message),
                Incoming::HalfClosed => {
                    self.connection.half_close(Parting::Goodbye);
                    self.state = State::HalfClosed;
                }
                Incoming::Nothing => {}
                Incoming::Closed(farewell) => {
                    let parting = if farewell.is_empty() {
                        Parting::Lost
                    } else {
                        Parting::Goodbye
                    };
                    self.connection.half_close(parting);
                    self.farewell = (!farewell.is_empty()).then(|| Box::new(farewell));
                    self.state = State::Leaving;
                }
                Incoming::Broken(refusal) => {
                    tracing::debug!(connection = %self.connection.link().name(), %refusal, "connection broken");
                    self.connection.half_close(Parting::Lost);
                    self.connection.link().end(Some(refusal));
                    self.state = State::Ending;
                }
            }
        }
        if count > 0 {
            self.connection.flush();
        }
    }

    fn catch_up(&mut self, cx: &mut Context<'_>) {
        loop {
            let (seat, reading) = match &mut self.catching_up {
                Some(catching_up) => catching_up,
                None => match self.router.read_for_lagging(self.connection.link()) {
                    Some(next) => self.catching_up.insert(next),
                    None => return,
                },
            };
            let Poll::Ready(page) = reading.as_mut().poll(cx) else {
                return;
            };
            self.router.caught_up(seat, page);
            self.catching_up = None;
        }
    }

    fn settle(&mut self) {
        let link = self.connection.link();
        match self.state {
            State::HalfClosed if link.awaits() == 0 && link.is_settled(0) => {
                link.end(None);
                self.state = State::Ending;
            }
            State::Leaving if self.farewell.is_none() || link.is_settled(0) => {
                link.end_with(self.farewell.take().map_or_else(Bytes::new, |farewell| *farewell));
                self.state = State::Ending;
            }
            _ => {}
        }
        if self.state != State::Done && link.has_ended() {
            self.connection.close();
            self.state = State::Lingering;
        }
    }
}

impl<I: Inlet> Future for Drive<I> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.state != State::Lingering {
            this.connection.link().poll_write(cx);
            this.catch_up(cx);
            this.connection.tidy();
            this.read(cx);
            this.settle();
        }
        if this.state == State::Lingering && this.inlet.poll_linger(cx).is_ready() {
            this.state = State::Done;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl<I> Drop for Drive<I> {
    fn drop(&mut self) {
        if !matches!(self.state, State::Lingering | State::Done) {
            self.connection.close();
        }
    }
}
