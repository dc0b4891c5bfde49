//! The connection: the protocol's state machine, the same for both faces. It owns what a peer may say and how it is answered;
//! the transports below it turn bytes into messages, the router above carries out what was said.
//!
//! It must never know which face it serves.

mod drive;
mod greeting;
mod loading;
mod outgoing;
mod pace;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use drive::{Drive, Incoming, Inlet};
pub use greeting::too_much;
pub use outgoing::{asked, cancel};

use pace::{Pace, TooFast, Who};

use crate::auth::{Deed, Identity, Place};
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Control, Frame, Rules, Str, Undecodable, check_id, check_name, pb};
use crate::router::{
    Asked, Batch, CLIENT_ROLE, Interest, Joining, Known, Link, Live, Parting, Pulse, Router, Sender, Serving, View,
};
use crate::session::dispatch::Offer;
use crate::session::{Start, WorkerKey, sender};
use greeting::Greeting;
use loading::Loading;

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

/// Who a connection is where it is no member.
struct Own {
    /// What `from` says.
    address: Arc<pb::Address>,
    /// Of whom dedup speaks.
    sender: Str,
}

impl Message {
    fn len(&self) -> usize {
        match self {
            Message::Text(text) => text.len(),
            Message::Binary(bytes) => bytes.len(),
        }
    }
}

/// The reading side of a connection. Its writing side is the link.
pub struct Connection {
    router: Router,
    link: Arc<Link>,
    batch: Batch,
    /// Who it is in sessions that it is not a member of.
    own: Option<Box<Own>>,
    /// What `from` says of replies, by worker.
    serves: Vec<(WorkerKey, Arc<pb::Address>)>,
    worker: Str,
    /// Who it is, once that is known.
    identity: Option<Arc<Identity>>,
    /// It was welcomed before that.
    greeted: bool,
    /// What it said of that, while it is looked at.
    greeting: Option<Box<Greeting>>,
    /// What it sent before that was known, in bytes, and what is to be done then.
    heard: usize,
    deferred: Option<Box<Frame>>,
    /// What waits for its session to be loaded.
    loading: Option<Box<Loading>>,
    /// The session of frames that name none.
    session: Str,
    ignore_unknown: bool,
    pace: Pace,
}

impl Connection {
    /// The connection of a link that was just attached.
    pub fn new(router: &Router, link: Arc<Link>) -> Self {
        let identity = link.identity();
        let subject = identity.as_ref().map_or("", |identity| identity.subject.as_str());
        tracing::debug!(connection = %link.name(), form = ?link.form(), ?subject, "connected");
        Self {
            router: router.clone(),
            batch: Batch::new(router.now()),
            own: None,
            serves: Vec::new(),
            worker: sender(subject, link.name()),
            greeted: false,
            greeting: None,
            heard: 0,
            deferred: None,
            loading: None,
            session: Str::EMPTY,
            ignore_unknown: false,
            identity,
            pace: Pace::default(),
            link,
        }
    }

    /// What `from` says where the connection is no member. Most never need it.
    fn own(&mut self, identity: &Identity) -> &Own {
        let link = &self.link;
        self.own.get_or_insert_with(|| {
            let address = pb::Address {
                role: CLIENT_ROLE.to_string(),
                member_id: link.name().to_string(),
                subject: identity.subject.to_string(),
                ..pb::Address::default()
            };
            Box::new(Own {
                address: Arc::new(address),
                sender: sender(&identity.subject, link.name()),
            })
        })
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
        if let Err(refusal) = self.hear(message.len()) {
            return self.turn_away(&Str::EMPTY, refusal);
        }
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
        let who = match !self.serves.is_empty() && self.link.is_worker() {
            true => Who::Worker,
            false => Who::Client,
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
        if let Err(refusal) = self.admit(&frame) {
            return self.turn_away(&id, refusal);
        }
        if let Some(frame) = self.load_for(frame) {
            self.handle_frame(frame);
        }
    }

    fn handle_frame(&mut self, frame: Frame) {
        let (id, session) = (frame.id.clone(), frame.session_id.clone());
        self.handle(&id, &session, |this| {
            frame.check()?;
            match frame.body {
                Body::Control(control) => this.control(&id, &session, *control),
                _ => this.send(frame),
            }
        });
    }

    /// Does something that can be refused.
    fn handle(&mut self, id: &Str, session: &Str, act: impl FnOnce(&mut Self) -> Result<(), Refusal>) {
        if let Err(refusal) = act(self) {
            self.refuse(id, session, &refusal);
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
            Control::Hello(hello) => return self.hello(id, hello),
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
                return match answer.outcome() == pb::CancelOutcome::Accepted && self.router.is_lasting() {
                    true => {
                        self.router.answer_when_durable(&self.link, (id, &session), answer);
                        Ok(())
                    }
                    false => self.answer(id, &session, Control::CancelAck(answer)),
                };
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
        let place = Place {
            session: &session,
            role: &joining.role,
        };
        let grants = &self.identity()?.grants;
        grants.check(Deed::Join, place)?;
        if joining.interest.presence {
            grants.check(Deed::JoinPresence, place)?;
        }
        if joining.start.after.is_none() {
            // Who resumes was here before, and goes on.
            self.router.check_memory()?;
        }
        self.router.join(&self.link, &session, joining, id, &mut self.batch)
    }

    fn serve(&mut self, id: &Str, serve: pb::Serve) -> Result<(), Refusal> {
        let identity = self.identity()?;
        let place = Place {
            session: "",
            role: &serve.role,
        };
        identity.grants.check(Deed::Serve, place)?;
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
                granted: identity.grants.served(&serve.role).unwrap_or_default(),
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
            subject: identity.subject.to_string(),
            ..pb::Address::default()
        });
        self.worker = sender(&identity.subject, &serving.name);
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

    fn cancel(&mut self, session: &str, cancel: pb::Cancel) -> Result<pb::CancelAck, Refusal> {
        let identity = self.identity()?;
        let outcome = outgoing::cancel(&self.router, session, &cancel, &identity, &mut self.batch)?;
        Ok(pb::CancelAck {
            request_id: cancel.request_id,
            outcome: outcome as i32,
        })
    }

    /// A frame for a session.
    fn send(&mut self, frame: Frame) -> Result<(), Refusal> {
        let session = self.session_of(&frame.session_id)?;
        check_name("session_id", &session)?;
        let identity = self.identity()?;
        let is_reply = !frame.reply_to.is_empty();
        let sent = self.send_to(session.clone(), frame, &identity);
        match sent {
            // Whoever may neither read nor serve there is not told what there is.
            Err(refusal) if is_reply && tells_what_there_is(&refusal) && !identity.grants.allow_knowing(&session) => {
                let text = "the request is not held by this connection";
                Err(Refusal::new(Reason::NotYourRequest, text))
            }
            sent => sent,
        }
    }

    fn send_to(&mut self, session: Str, mut frame: Frame, identity: &Identity) -> Result<(), Refusal> {
        let asked = asked(&self.router, identity, &session, &mut frame)?;
        check_send(identity, &session, &frame, asked.as_ref())?;
        let seat = self.link.seat(&session);
        let live = match &seat {
            Some(seat) => Arc::clone(seat.live()),
            None if !frame.reply_to.is_empty() => self.router.find(&session)?,
            None => self.router.open(&session, identity)?.0,
        };
        let member = seat.as_deref().filter(|seat| seat.is_member());
        let is_reply = !frame.reply_to.is_empty();
        let (address, name) = match member {
            Some(seat) => (Arc::clone(seat.address()), seat.sender().clone()),
            None => {
                let own = self.own(identity);
                (Arc::clone(&own.address), own.sender.clone())
            }
        };
        let name = if is_reply { self.worker.clone() } else { name };
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

fn tells_what_there_is(refusal: &Refusal) -> bool {
    use Reason::{RequestEnded, RequestNotFound, SessionClosed, SessionDeleted, SessionNotFound};
    matches!(
        refusal.reason,
        SessionNotFound | SessionClosed | SessionDeleted | RequestNotFound | RequestEnded
    )
}

/// Whether the frame may be sent. A reply needs what only its request knows: to be its worker's.
pub fn check_send(identity: &Identity, session: &str, frame: &Frame, asked: Option<&Asked>) -> Result<(), Refusal> {
    let (deed, role) = match asked {
        Some(asked) => (Deed::Request, asked.role.as_str()),
        None if !frame.reply_to.is_empty() => (Deed::Reply, ""),
        None => (Deed::Send, ""),
    };
    identity.grants.check(deed, Place { session, role })
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
