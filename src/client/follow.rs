//! Following a session from outside of it, over reconnects.

use tokio::time::Instant;
use tonic::Streaming;

use super::{Backoff, Client, Error};
use crate::frame::{Body, Control, Frame, pb};

/// Where to begin.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// With what happens from now on, after this many of the newest frames.
    Tail(u32),
    /// After this frame; 0 is the beginning.
    After(u64),
}

/// What following brings.
#[derive(Debug)]
pub enum Followed {
    /// A frame of the session, or one about it: `Joined` whenever the connection was made, `Gap`, `Left`.
    Frame(Box<Frame>),
    /// The connection was lost; the next call waits until `again` and resumes.
    Lost {
        /// Why.
        error: Error,
        /// When it will be tried again.
        again: Instant,
    },
}

/// A session that is followed. It resumes by itself after the last frame that it handed out.
#[derive(Debug)]
pub struct Follow {
    client: Client,
    request: pb::WatchRequest,
    state: State,
    backoff: Backoff,
}

#[derive(Debug)]
enum State {
    Away { until: Option<Instant> },
    There(Box<Streaming<Frame>>),
}

impl Follow {
    pub(super) fn new(client: Client, session: &str, start: Start) -> Self {
        let mut request = pb::WatchRequest {
            session_id: session.to_owned(),
            ..pb::WatchRequest::default()
        };
        match start {
            Start::Tail(frames) => request.tail = frames,
            Start::After(seq) => request.after_seq = Some(seq),
        }
        Self {
            client,
            request,
            state: State::Away { until: None },
            backoff: Backoff::default(),
        }
    }

    /// Has `RequestChanged` come too.
    #[must_use]
    pub fn with_requests(mut self) -> Self {
        self.request.requests = true;
        self
    }

    /// What comes next. An error is the end: trying again would not help. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Followed, Error> {
        match self.advance().await {
            Ok(frame) => {
                keep_position(&mut self.request, &frame);
                if matches!(&frame.body, Body::Control(control) if matches!(**control, Control::Joined(_))) {
                    self.backoff.reset();
                }
                Ok(Followed::Frame(Box::new(frame)))
            }
            Err(error) if error.retryable => {
                let again = Instant::now() + self.backoff.after(&error);
                self.state = State::Away { until: Some(again) };
                Ok(Followed::Lost { error, again })
            }
            Err(error) => Err(error),
        }
    }

    async fn advance(&mut self) -> Result<Frame, Error> {
        loop {
            match &mut self.state {
                State::Away { until } => {
                    if let Some(until) = until {
                        tokio::time::sleep_until(*until).await;
                    }
                    let watched = self.client.sessions().watch(self.request.clone()).await?;
                    self.state = State::There(Box::new(watched.into_inner()));
                }
                State::There(frames) => {
                    let lost = || Error::transport("the gateway ended the connection");
                    return frames.message().await?.ok_or_else(lost);
                }
            }
        }
    }
}

/// Has the next request go on after this frame.
fn keep_position(request: &mut pb::WatchRequest, frame: &Frame) {
    let Body::Control(control) = &frame.body else {
        if frame.seq > 0 {
            request.after_seq = Some(frame.seq);
        }
        return;
    };
    match &**control {
        Control::Joined(joined) => {
            // A tail is asked for once; from here on it is a position like any other.
            let newest = joined
                .head_seq
                .saturating_sub(u64::from(std::mem::take(&mut request.tail)));
            let begin = newest.max(joined.first_seq.saturating_sub(1));
            request.after_seq.get_or_insert(begin);
            // The first `Joined` of another epoch is followed by a `Gap`, without which the old position would be read
            // as one of the new log.
            if request.epoch.is_empty() {
                request.epoch.clone_from(&joined.epoch);
            }
        }
        Control::Gap(gap) => {
            request.after_seq = Some(gap.to_seq);
            request.epoch.clone_from(&gap.epoch);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(control: Control) -> Frame {
        Frame {
            body: Body::Control(Box::new(control)),
            ..Frame::default()
        }
    }

    fn joined(epoch: &str, first_seq: u64, head_seq: u64) -> Frame {
        control(Control::Joined(pb::Joined {
            epoch: epoch.to_owned(),
            first_seq,
            head_seq,
            ..pb::Joined::default()
        }))
    }

    fn gap(epoch: &str, to_seq: u64) -> Frame {
        control(Control::Gap(pb::Gap {
            epoch: epoch.to_owned(),
            to_seq,
            ..pb::Gap::default()
        }))
    }

    fn frame(seq: u64) -> Frame {
        Frame {
            seq,
            ..Frame::default()
        }
    }

    /// The position after these frames.
    fn after(mut request: pb::WatchRequest, frames: &[Frame]) -> (Option<u64>, String, u32) {
        frames.iter().for_each(|frame| keep_position(&mut request, frame));
        (request.after_seq, request.epoch, request.tail)
    }

    fn tail(tail: u32) -> pb::WatchRequest {
        pb::WatchRequest {
            tail,
            ..pb::WatchRequest::default()
        }
    }

    #[test]
    fn a_connection_lost_before_the_first_frame_resumes_where_it_began() {
        assert_eq!(after(tail(0), &[joined("e", 1, 7)]), (Some(7), "e".to_owned(), 0));
        assert_eq!(after(tail(3), &[joined("e", 1, 7)]), (Some(4), "e".to_owned(), 0));
        assert_eq!(after(tail(30), &[joined("e", 6, 7)]), (Some(5), "e".to_owned(), 0));
        assert_eq!(after(tail(0), &[joined("e", 1, 0)]), (Some(0), "e".to_owned(), 0));
    }

    #[test]
    fn frames_move_the_position_and_ephemeral_ones_do_not() {
        assert_eq!(
            after(tail(0), &[joined("e", 1, 7), frame(8), frame(9), frame(0)]),
            (Some(9), "e".to_owned(), 0)
        );
    }

    #[test]
    fn an_asked_for_position_is_kept_until_a_frame_comes() {
        let asked = pb::WatchRequest {
            after_seq: Some(2),
            ..pb::WatchRequest::default()
        };
        assert_eq!(after(asked, &[joined("e", 1, 7)]), (Some(2), "e".to_owned(), 0));
    }

    #[test]
    fn a_gap_moves_the_position_and_a_new_epoch_voids_it() {
        assert_eq!(
            after(tail(0), &[joined("e", 1, 7), gap("e", 12)]),
            (Some(12), "e".to_owned(), 0)
        );
        let restarted = [joined("e", 1, 7), joined("f", 1, 3), gap("f", 0)];
        assert_eq!(after(tail(0), &restarted[..2]), (Some(7), "e".to_owned(), 0));
        assert_eq!(after(tail(0), &restarted), (Some(0), "f".to_owned(), 0));
    }
}
