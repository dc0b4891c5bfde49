//! What waits: a frame whose session is not in memory is handled once it is, and those after it wait for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::Connection;
use crate::error::Refusal;
use crate::frame::{Body, Control, Frame};
use crate::router::Live;

/// What comes of loading a session.
type Loaded = Result<Option<Arc<Live>>, Refusal>;

/// A frame whose session is being loaded.
pub(super) struct Loading {
    frame: Frame,
    load: Pin<Box<dyn Future<Output = Loaded> + Send>>,
}

impl Connection {
    /// Whether nothing has to be waited for before the next frame is handled.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.poll_greeting(cx));
            let Some(loading) = &mut self.loading else {
                return Poll::Ready(());
            };
            // Held until the frame is handled, the session does not go again.
            let loaded = ready!(loading.load.as_mut().poll(cx));
            let Some(loading) = self.loading.take() else { continue };
            self.begin();
            match loaded {
                Ok(_) => self.handle_frame(loading.frame),
                Err(refusal) => self.refuse(&loading.frame.id, &loading.frame.session_id, &refusal),
            }
            self.flush();
        }
    }

    /// The frame, if it can be handled now; else it waits.
    pub(super) fn load_for(&mut self, frame: Frame) -> Option<Frame> {
        let is_about_session = match &frame.body {
            Body::Control(control) => matches!(**control, Control::Join(_) | Control::Leave(_) | Control::Cancel(_)),
            _ => true,
        };
        if !is_about_session {
            return Some(frame);
        }
        // One that cannot be told is refused in its place.
        let Ok(session) = self.session_of(&frame.session_id) else {
            return Some(frame);
        };
        if self.link.seat(&session).is_some() || !self.router.is_away(&session) {
            return Some(frame);
        }
        let router = self.router.clone();
        self.loading = Some(Box::new(Loading {
            frame,
            load: Box::pin(async move { router.load(&session).await }),
        }));
        None
    }
}
