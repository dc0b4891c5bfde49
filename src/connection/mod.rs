//! The connection: the protocol's state machine, the same for both faces. It owns what a peer may say and how it is answered;
//! the transports below it turn bytes into messages, the router above carries out what was said.
//!
//! It must never know which face it serves.

mod drive;
mod outgoing;
mod pace;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use drive::{Drive, Incoming, Inlet};
pub use outgoing::{asked, cancel};

use pace::{Pace, TooFast, Who};

use crate::error::{Reason, Refusal};
use crate::frame::{Body, Control, Frame, Rules, Str, Undecodable, check_id, check_name, pb};
use crate::router::{
    Batch, CLIENT_ROLE, Interest, Joining, Known, Link, Live, Parting, Pulse, Router, Sender, Serving, View,
};
use crate::session::dispatch::Offer;
use crate::session::{Start, WorkerKey};

/// The longest that a worker may be away.
const LONGEST_GRACE: Duration = Duration::from_secs(300);

/// One message of a peer.
#[derive(Clone, Debug)]
pub enum Message {
    /// ProtoJSON.
    Text(Str),
    /// Protobuf.
    Binary(Bytes),
}

impl Message {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// The reading side of a connection. Its writing side is the link.
pub struct Connection {
    router: Router,
    link: Arc<Link>,
    batch: Batch,
    /// What `from` says of frames into sessions that the connection is not a member of.
    address: Option<Arc<pb::Address>>,
    /// What `from` says of replies, by worker.
    serves: Vec<(WorkerKey, Arc<pb::Address>)>,
    worker: Str,
    /// The session of frames that name none.
    session: Str,
    ignore_unknown: bool,
    pace: Pace,
}

impl Connection {
    /// The connection of a link that was just attached.
    pub fn new(router: &Router, link: Arc<Link>) -> Self {
        tracing::debug!(connection = %link.name(), form = ?link.form(), "connected");
        Self {
            router: router.clone(),
            batch: Batch::new(router.now()),
            address: None,
            serves: Vec::new(),
            worker: link.name().clone(),
            session: Str::EMPTY,
            ignore_unknown: false,
            pace: Pace::default(),
            link,
        }
    }

    /// What `from` says where the connection is no member. Most never need it.
    fn own_address(&mut self) -> Arc<pb::Address> {
        let link = &self.link;
        let address = self.address.get_or_insert_with(|| {
            Arc::new(pb::Address {
                role: CLIENT_ROLE.to_string(),
                member_id: link.name().to_string(),
                ..pb::Address::default()
            })
        });
        Arc::clone(address)
    }

    /// Its writing side.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The session of frames that name none.
    pub fn set_session(&mut self, session: Str) {
        self.session = session;
    }

    /// Handles one message. What follows from it happens with `flush` at the latest.
    pub fn receive(&mut self, message: &Message) {
        self.link.spoke();
        let rules = Rules {
            ignore_unknown: self.ignore_unknown,
            types: self.router.types(),
        };
        let decoded = match message {
            Message::Text(text) => Frame::from_json(text, &rules),
            Message::Binary(bytes) => Frame::from_wire(bytes, &rules),
        };
        let too_fast = self.too_fast(message.len());
        match (decoded, too_fast) {
            (Ok(frame), None) => self.receive_frame(frame),
            (Ok(frame), Some(refusal)) => self.refuse(&frame.id, &frame.session_id, &refusal),
            (
                Err(Undecodable {
                    refusal,
                    id,
                    session_id,
                }),
                too_fast,
            ) => self.refuse(&id, &session_id, &too_fast.unwrap_or(refusal)),
        }
    }

    /// Why a frame of this size cannot be taken now. A peer that does not heed it is ended.
    fn too_fast(&mut self, bytes: usize) -> Option<Refusal> {
        let who = match self.serves.is_empty() {
            true => Who::Client,
            false => Who::Worker,
        };
        let now = self.router.uptime(self.batch.now);
        match self.pace.frame(bytes, (who, self.router.limits()), now) {
            Ok(()) => None,
            Err(TooFast::Refuse(refusal)) => Some(refusal),
            Err(TooFast::End(refusal)) => {
                tracing::debug!(connection = %self.link.name(), %refusal, "too fast; disconnected");
                self.link.end(Some(refusal.clone()));
                Some(refusal)
            }
        }
    }

    /// Handles one frame.
    pub fn receive_frame(&mut self, frame: Frame) {
        let (id, session) = (frame.id.clone(), frame.session_id.clone());
        tracing::trace!(connection = %self.link.name(), session = %session, id = %id, "frame");
        let handled = frame.check().and_then(|()| match frame.body {
            Body::Control(control) => self.control(&id, &session, *control),
            _ => self.send(frame),
        });
        if let Err(refusal) = handled {
            self.refuse(&id, &session, &refusal);
        }
    }

    fn refuse(&mut self, id: &Str, session: &Str, refusal: &Refusal) {
        tracing::debug!(connection = %self.link.name(), session = %session, id = %id, %refusal, "refused");
        self.link.refuse(id, session, refusal);
        self.batch.touch_link(&self.link);
    }

    /// A new batch of messages begins.
    pub fn begin(&mut self) {
        self.batch.now = self.router.now();
    }

    /// Acks what was accepted, and wakes everybody who has something to read.
    pub fn flush(&mut self) {
        self.batch.finish(Some(&self.link));
    }

    /// The peer will send no more: it can hold no requests by this connection from now on.
    pub fn half_close(&mut self, parting: Parting) {
        self.router.retire(&self.link, parting, &mut self.batch);
        self.flush();
    }

    /// The connection is over.
    pub fn close(&mut self) {
        self.flush();
        self.router.detach(&self.link);
        tracing::debug!(connection = %self.link.name(), "disconnected");
    }

    fn control(&mut self, id: &Str, session: &Str, control: Control) -> Result<(), Refusal> {
        let answer = match control {
            Control::Hello(hello) => Some(self.hello(&hello)),
            Control::Ping(ping) => Some(Control::Pong(pb::Pong { data: ping.data })),
            Control::Pong(_) => return Ok(()),
            Control::Serve(serve) => return self.serve(id, serve),
            Control::Join(join) => return self.join(id, session, join),
            Control::Leave(_) => {
                let session = self.session_of(session)?;
                self.router.leave(&self.link, &session, &mut self.batch)?;
                return self.answer(id, &session, Control::Left(pb::Left::default()));
            }
            Control::Cancel(cancel) => {
                let session = self.session_of(session)?;
                let answer = self.cancel(&session, cancel)?;
                return self.answer(id, &session, answer);
            }
            other => return Err(only_the_gateway(&other)),
        };
        match answer {
            Some(answer) => self.answer(id, &Str::EMPTY, answer),
            None => Ok(()),
        }
    }

    fn answer(&mut self, id: &Str, session: &Str, control: Control) -> Result<(), Refusal> {
        self.link.answer(id, session, Body::Control(Box::new(control)));
        self.batch.touch_link(&self.link);
        Ok(())
    }

    fn hello(&mut self, hello: &pb::Hello) -> Control {
        tracing::info!(connection = %self.link.name(), client = %hello.client, "hello");
        self.ignore_unknown = hello.ignore_unknown;
        let limits = self.router.limits();
        Control::Welcome(pb::Welcome {
            connection_id: self.link.name().to_string(),
            server: concat!("twinspan/", env!("CARGO_PKG_VERSION")).to_owned(),
            heartbeat_interval: prost_types::Duration::try_from(limits.heartbeat).ok(),
            limits: Some(pb::Limits {
                frame_bytes: limits.frame_bytes as u32,
                payload_depth: crate::frame::MAX_DEPTH,
                joins: limits.joins as u32,
                members: limits.members as u32,
                open_requests: limits.open_requests as u32,
                max_in_flight: limits.max_in_flight,
            }),
            ignore_unknown: hello.ignore_unknown,
        })
    }

    /// The session that a frame is about.
    fn session_of(&self, named: &Str) -> Result<Str, Refusal> {
        if !named.is_empty() {
            return Ok(named.clone());
        }
        if !self.session.is_empty() {
            return Ok(self.session.clone());
        }
        self.link.only_session().ok_or_else(|| {
            let text = "required: the connection is not in exactly one session, which could be meant";
            Refusal::field("session_id", text)
        })
    }

    fn join(&mut self, id: &Str, session: &Str, join: pb::Join) -> Result<(), Refusal> {
        let session = self.session_of(session)?;
        let joining = joining(join, self.link.name())?;
        if joining.start.after.is_none() {
            // Who resumes was here before, and goes on.
            self.router.check_memory()?;
        }
        self.router.join(&self.link, &session, joining, id, &mut self.batch)
    }

    fn serve(&mut self, id: &Str, serve: pb::Serve) -> Result<(), Refusal> {
        let named = !serve.worker_id.is_empty();
        let grace = match outgoing::span(serve.grace) {
            Some(grace) => grace.min(LONGEST_GRACE),
            None if named => self.router.limits().worker_grace,
            None => Duration::ZERO,
        };
        let serving = Serving {
            name: match named {
                true => serve.worker_id.as_str().into(),
                false => self.link.name().clone(),
            },
            offer: Offer {
                role: serve.role.as_str().into(),
                sessions: serve.sessions.iter().map(|pattern| pattern.as_str().into()).collect(),
                max_in_flight: serve.max_in_flight.max(1),
                draining: serve.drain,
            },
            grace,
            pulse: if serve.heartbeats { Pulse::Frames } else { Pulse::Bytes },
            holds: serve.holds,
        };
        let address = Arc::new(pb::Address {
            role: serve.role,
            member_id: serving.name.to_string(),
            ..pb::Address::default()
        });
        self.worker = serving.name.clone();
        // The answer comes before the first request.
        let link = Arc::clone(&self.link);
        let answer = |serving| link.answer(id, &Str::EMPTY, Body::Control(Box::new(Control::Serving(serving))));
        let key = self.router.serve(&self.link, serving, &mut self.batch, answer)?;
        self.batch.touch_link(&self.link);
        self.serves
            .retain(|(known, served)| *known != key && served.role != address.role);
        self.serves.push((key, address));
        Ok(())
    }

    fn cancel(&mut self, session: &str, cancel: pb::Cancel) -> Result<Control, Refusal> {
        let live = self.router.find(session)?;
        let outcome = outgoing::cancel(&self.router, &live, &cancel, &mut self.batch)?;
        Ok(Control::CancelAck(pb::CancelAck {
            request_id: cancel.request_id,
            outcome: outcome as i32,
        }))
    }

    /// A frame for a session.
    fn send(&mut self, mut frame: Frame) -> Result<(), Refusal> {
        let session = self.session_of(&frame.session_id)?;
        check_name("session_id", &session)?;
        let asked = asked(&self.router, &mut frame)?;
        let seat = self.link.seat(&session);
        let live = match &seat {
            Some(seat) => Arc::clone(seat.live()),
            None if !frame.reply_to.is_empty() => self.router.find(&session)?,
            None => self.router.open(&session)?.0,
        };
        let member = seat.as_deref().filter(|seat| seat.is_member());
        let is_reply = !frame.reply_to.is_empty();
        let name = match member {
            _ if is_reply => self.worker.clone(),
            Some(seat) => seat.name().clone(),
            None => self.link.name().clone(),
        };
        let address = match member {
            Some(seat) => Arc::clone(seat.address()),
            None => self.own_address(),
        };
        let sender = Sender {
            link: Some(&self.link),
            address,
            serves: &self.serves,
            name: &name,
        };
        if frame.ephemeral {
            return self.router.publish_ephemeral(&live, &sender, frame, &mut self.batch);
        }
        match asked {
            None => self
                .router
                .publish(&live, &sender, frame, None, &mut self.batch)
                .map(drop),
            Some(asked) => {
                let request = frame.id.clone();
                let is_new = self.router.expect_answer(&self.link, &live, &request)?;
                let published = self.router.publish(&live, &sender, frame, Some(asked), &mut self.batch);
                // Sent again, it may still be answered; refused or over, it is not waited for.
                let waits = match &published {
                    Ok(Known::New) => true,
                    Ok(Known::Duplicate) => self.router.is_open(&live, &request),
                    Err(_) => false,
                };
                if is_new && !waits {
                    self.router.expect_no_answer(&self.link, &live, &request);
                }
                published.map(drop)
            }
        }
    }

    /// Looks after what was answered meanwhile.
    pub fn tidy(&self) {
        self.router.tidy(&self.link);
    }
}

fn joining(join: pb::Join, default_name: &Str) -> Result<Joining, Refusal> {
    let role = if join.role.is_empty() {
        CLIENT_ROLE
    } else {
        join.role.as_str().into()
    };
    let name = if join.member_id.is_empty() {
        default_name.clone()
    } else {
        join.member_id.as_str().into()
    };
    let start = start(join.after_seq, &join.epoch, join.tail)?;
    Ok(Joining {
        name,
        role,
        start,
        interest: Interest {
            presence: join.presence,
            requests: join.requests,
        },
        view: View::Member,
    })
}

/// Where to begin, checked.
pub fn start(after: Option<u64>, epoch: &str, tail: u32) -> Result<Start, Refusal> {
    if after.is_some() && tail > 0 {
        return Err(Refusal::field(
            "tail",
            "not together with after_seq: begin at one place",
        ));
    }
    if after == Some(u64::MAX) {
        return Err(Refusal::field("after_seq", "past the end of any log"));
    }
    Ok(Start {
        after,
        epoch: epoch.into(),
        tail,
    })
}

fn only_the_gateway(control: &Control) -> Refusal {
    let text = format!("only the gateway sends {}", control.name());
    Refusal::new(Reason::UnexpectedFrame, text)
}

/// Checks a request's id where one is named.
pub fn check_request_id(id: &str) -> Result<(), Refusal> {
    if id.is_empty() {
        return Err(Refusal::field("request_id", "required"));
    }
    check_id("request_id", id)
}

/// A session by name, if the name may be one.
pub fn find_session(router: &Router, session: &str) -> Result<Arc<Live>, Refusal> {
    check_name("session_id", session)?;
    router.find(session)
}
