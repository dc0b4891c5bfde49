//! Who is there: `Hello`, what may be said before it is known who says it, and the renewal of an identity.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::Connection;
use crate::auth::{Identity, Secret};
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Control, Frame, Str, pb};

/// A `Hello` whose credential is being looked at. What comes after it waits.
pub(super) struct Greeting {
    id: Str,
    hello: pb::Hello,
    verdict: Pin<Box<dyn Future<Output = Result<Identity, Refusal>> + Send>>,
}

impl Connection {
    /// Whether it is known who is there.
    pub fn is_known(&self) -> bool {
        self.identity.is_some()
    }

    /// Who is there. Asked only where `admit` has let the frame through.
    pub(super) fn identity(&self) -> Result<Arc<Identity>, Refusal> {
        self.identity.clone().ok_or_else(stranger)
    }

    /// Whether the frame may be looked at: a stranger may say who it is, and show life. All else ends its connection.
    pub(super) fn admit(&self, frame: &Frame) -> Result<(), Refusal> {
        let Body::Control(control) = &frame.body else {
            return self.identity().map(drop);
        };
        match **control {
            Control::Hello(_) | Control::Ping(_) | Control::Pong(_) => Ok(()),
            _ => self.identity().map(drop),
        }
    }

    /// Whether a stranger has said too much for one.
    pub(super) fn hear(&mut self, bytes: usize) -> Result<(), Refusal> {
        if self.is_known() {
            return Ok(());
        }
        self.heard += bytes;
        let limit = self.router.limits().pre_auth_bytes;
        match self.heard > limit {
            true => Err(too_much(limit)),
            false => Ok(()),
        }
    }

    /// Does this once it is known who is there.
    pub fn do_when_known(&mut self, frame: Frame) {
        match self.is_known() {
            true => self.receive_frame(frame),
            false => self.deferred = Some(Box::new(frame)),
        }
    }

    pub(super) fn hello(&mut self, id: &Str, mut hello: pb::Hello) -> Result<(), Refusal> {
        tracing::debug!(connection = %self.link.name(), client = ?hello.client, "hello");
        let token = std::mem::take(&mut hello.token);
        if token.is_empty() && !self.is_known() && std::mem::replace(&mut self.greeted, true) {
            // A stranger is welcomed once.
            self.turn_away(id, stranger());
            return Ok(());
        }
        if token.is_empty() || !self.router.auth().is_required() {
            return self.welcome(id, &hello);
        }
        let (auth, secret, now) = (self.router.auth().clone(), Secret::new(token), self.router.now().wall);
        self.greeting = Some(Box::new(Greeting {
            id: id.clone(),
            hello,
            verdict: Box::pin(async move { auth.authenticate(&secret, now).await }),
        }));
        Ok(())
    }

    /// Whether it is known whether what was said of who is there is true.
    pub(super) fn poll_greeting(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(greeting) = &mut self.greeting else {
            return Poll::Ready(());
        };
        let verdict = ready!(greeting.verdict.as_mut().poll(cx));
        if let Some(greeting) = self.greeting.take() {
            self.begin();
            let Greeting { id, hello, .. } = *greeting;
            match verdict.and_then(|identity| self.become_known(identity)) {
                Ok(()) => self.handle(&id, &Str::EMPTY, |this| this.welcome(&id, &hello)),
                Err(refusal) => {
                    self.router.count_credential_refused();
                    self.turn_away(&id, refusal);
                }
            }
            if let Some(frame) = self.deferred.take_if(|_| self.identity.is_some()) {
                self.receive_frame(*frame);
            }
            self.flush();
        }
        Poll::Ready(())
    }

    fn become_known(&mut self, identity: Identity) -> Result<(), Refusal> {
        let identity = Arc::new(identity);
        self.router
            .identify(&self.link, Arc::clone(&identity), &mut self.batch)?;
        if self.identity.is_none() {
            self.worker = crate::session::sender(&identity.subject, self.link.name());
        }
        self.identity = Some(identity);
        Ok(())
    }

    /// A credential is of no worth: who had another one before keeps that.
    pub fn turn_away(&mut self, id: &Str, refusal: Refusal) {
        self.refuse(id, &Str::EMPTY, &refusal);
        if !self.is_known() {
            self.flush();
            self.link.end(Some(refusal));
        }
    }

    fn welcome(&mut self, id: &Str, hello: &pb::Hello) -> Result<(), Refusal> {
        self.ignore_unknown = hello.ignore_unknown;
        let limits = self.router.limits();
        let identity = self.identity.as_deref();
        let welcome = pb::Welcome {
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
            subject: identity
                .map(|identity| identity.subject.to_string())
                .unwrap_or_default(),
            expires_at: identity.and_then(|identity| identity.expires_at).map(Into::into),
        };
        self.answer(id, &Str::EMPTY, Control::Welcome(welcome))
    }
}

fn stranger() -> Refusal {
    Refusal::new(
        Reason::Unauthenticated,
        "say first who you are: a credential in the handshake (`authorization: Bearer …`, or the subprotocol \
         twinspan.bearer.… beside twinspan.v1.json), or in Hello.token as the first frame",
    )
}

/// The end of a stranger that said too much.
pub fn too_much(limit: usize) -> Refusal {
    let text = format!("more than {limit} bytes came before it was known whose they are; send a credential first");
    Refusal::limit(Reason::AuthTimeout, text, ("limits.pre_auth_bytes", limit as u64))
}
