//! `twinspan call`: a request, and its answer as it comes.

use std::sync::Arc;

use clap::Args;

use super::body::Said;
use super::signals::Signals;
use super::terms::Terms;
use super::{Failure, Gateway, output};
use crate::client::{Client, Connection, Error, Origin, unique_name};
use crate::frame::{Body, Control, Frame, Str, pb};

const ANSWERS: &str = "\
An answer may begin again (--on-worker-loss=restart), when another worker goes on. What was printed of it by then stays
printed, whether stdout is a terminal or not; it is void, which stderr tells, and the answer is printed anew from its
beginning, on a line of its own. A program that must not see that says retry-if-silent, or reads `tail --json`.

Ctrl-C cancels the request and waits for its end; a second one does not wait.";

/// `twinspan call`.
#[derive(Debug, Args)]
#[command(after_long_help = ANSWERS)]
pub struct Call {
    /// The role that is asked
    role: String,
    /// The session to ask in; otherwise one is made for the call and deleted after it
    #[arg(long)]
    session: Option<String>,
    /// The application's word for what this is
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// What to ask; otherwise it is read from stdin, as text
    #[command(flatten)]
    said: Said,
    #[command(flatten)]
    gateway: Gateway,
    #[command(flatten)]
    terms: Terms,
}

impl Call {
    pub async fn run(self) -> Result<(), Failure> {
        let request = self.request()?;
        let client = self.gateway.connect().await?;
        let session = request.session_id.clone();
        let answered = ask(&client, request).await;
        if self.session.is_none() {
            // It is of no use to anybody else; if it cannot be deleted now, retention will.
            client
                .sessions()
                .delete(pb::DeleteRequest {
                    session_id: session.to_string(),
                })
                .await
                .ok();
        }
        answered
    }

    fn request(&self) -> Result<Frame, Failure> {
        Ok(Frame {
            id: unique_name("call").into(),
            session_id: self.session.clone().unwrap_or_else(|| unique_name("call")).into(),
            r#type: self.kind.clone().unwrap_or_default().into(),
            to: Some(Arc::new(pb::Address {
                role: self.role.clone(),
                ..pb::Address::default()
            })),
            options: Some(Box::new(self.terms.options()?)),
            body: self.said.clone().body_or_stdin()?,
            ..Frame::default()
        })
    }
}

async fn ask(client: &Client, request: Frame) -> Result<(), Failure> {
    let mut connection = client.attach().await?;
    connection.join(&request.session_id, pb::Join::default()).await?;
    let mut answer = Answer {
        session: request.session_id.clone(),
        request: request.id.clone(),
        line_open: false,
    };
    let mut signals = Signals::install()?;
    connection.send(request).await?;
    let mut interrupted = false;
    loop {
        tokio::select! {
            () = signals.asked() => {
                if std::mem::replace(&mut interrupted, true) {
                    return answer.end(Err(Failure::new(Failure::INTERRUPTED, "")));
                }
                eprintln!("twinspan: cancelled, waiting for the end; once more to leave now");
                answer.cancel(&connection).await?;
            }
            frame = connection.next() => {
                let frame = frame.unwrap_or_else(|| Err(answer.cut_off()))?;
                if let Some(end) = answer.take(&frame)? {
                    return answer.end(end);
                }
            }
        }
    }
}

struct Answer {
    session: Str,
    request: Str,
    /// Whether text was written that did not end its line.
    line_open: bool,
}

impl Answer {
    /// Writes what belongs to the answer; the outcome, if this was the last of it.
    fn take(&mut self, frame: &Frame) -> Result<Option<Result<(), Failure>>, Failure> {
        if frame.reply_to != self.request || frame.session_id != self.session {
            return Ok(None);
        }
        match &frame.body {
            Body::Text(text) => {
                output::foreign(text)?;
                self.line_open = if text.is_empty() {
                    self.line_open
                } else {
                    !text.ends_with('\n')
                };
            }
            Body::Payload(payload) => self.line(payload.as_json())?,
            Body::Data(data) => output::bytes(data)?,
            Body::Message(_) => self.line(&output::json(frame))?,
            Body::Error(error) => return Ok(Some(Err(failed((**error).clone())))),
            Body::Control(control) => {
                if let Control::Restarted(restarted) = &**control {
                    self.close_line()?;
                    eprintln!("twinspan: {}", begins_again(restarted, frame.attempt));
                }
            }
            Body::None => {}
        }
        Ok(frame.last.then_some(Ok(())))
    }

    fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.close_line()?;
        output::line(line)
    }

    fn close_line(&mut self) -> Result<(), Failure> {
        if std::mem::take(&mut self.line_open) {
            output::text("\n")
        } else {
            Ok(())
        }
    }

    fn end(mut self, outcome: Result<(), Failure>) -> Result<(), Failure> {
        self.close_line()?;
        outcome
    }

    async fn cancel(&self, connection: &Connection) -> Result<(), Error> {
        let cancel = pb::Cancel {
            request_id: self.request.to_string(),
            reason: "interrupted".to_owned(),
            ..pb::Cancel::default()
        };
        let body = Body::Control(Box::new(Control::Cancel(cancel)));
        connection
            .send(Frame {
                session_id: self.session.clone(),
                body,
                ..Frame::default()
            })
            .await
    }

    fn cut_off(&self) -> Error {
        let pb_error = pb::Error {
            code: pb::Code::Unavailable.into(),
            message: "the gateway ended the connection before the answer was complete".to_owned(),
            ..pb::Error::default()
        };
        Error {
            origin: Origin::Transport,
            ..Error::from(pb_error)
        }
    }
}

fn begins_again(restarted: &pb::Restarted, attempt: u32) -> String {
    let why = restarted.error.clone().map(Error::from);
    let why = why.map_or_else(String::new, |why| format!("{why}; "));
    format!("{why}the answer begins again, attempt {attempt}; what was printed of it is void")
}

/// A cancelled request may be ended by its worker, which has reasons of its own.
fn failed(error: pb::Error) -> Failure {
    let error = Error::from(error);
    match error.code {
        pb::Code::Cancelled => Failure::new(Failure::INTERRUPTED, error),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Reason, Refusal};

    fn answer() -> Answer {
        Answer {
            session: "s".into(),
            request: "r".into(),
            line_open: false,
        }
    }

    fn reply(body: Body) -> Frame {
        Frame {
            session_id: "s".into(),
            reply_to: "r".into(),
            body,
            ..Frame::default()
        }
    }

    #[test]
    fn only_the_last_reply_ends_it() {
        let mut answer = answer();
        assert!(answer.take(&reply(Body::None)).unwrap().is_none());
        assert!(
            answer
                .take(&Frame {
                    last: true,
                    ..reply(Body::None)
                })
                .unwrap()
                .unwrap()
                .is_ok()
        );
    }

    #[test]
    fn replies_to_others_do_not_end_it() {
        let mut answer = answer();
        for (session, request) in [("s", "other"), ("other", "r"), ("s", "")] {
            let other = Frame {
                session_id: session.into(),
                reply_to: request.into(),
                last: true,
                ..Frame::default()
            };
            assert!(answer.take(&other).unwrap().is_none());
        }
    }

    #[test]
    fn errors_have_their_exit_codes() {
        for (reason, exit) in [
            (Reason::NoWorker, 1),
            (Reason::TotalTimeout, 1),
            (Reason::RequestCancelled, 130),
        ] {
            let error = Body::Error(Box::new(Refusal::new(reason, "no").to_pb()));
            let failure = answer().take(&reply(error)).unwrap().unwrap().unwrap_err();
            assert_eq!(failure.exit, exit, "{reason}");
            assert!(failure.message.starts_with(reason.row().name));
        }
    }

    #[test]
    fn a_worker_may_end_a_cancelled_request_in_its_own_words() {
        let error = pb::Error {
            code: pb::Code::Cancelled.into(),
            reason: "STOPPED".to_owned(),
            ..pb::Error::default()
        };
        let failure = answer()
            .take(&reply(Body::Error(Box::new(error))))
            .unwrap()
            .unwrap()
            .unwrap_err();
        assert_eq!(failure.exit, 130);
    }

    #[test]
    fn an_answer_that_begins_again_goes_on() {
        let restarted = pb::Restarted {
            error: Some(Refusal::new(Reason::WorkerLost, "gone").to_pb()),
        };
        assert_eq!(
            begins_again(&restarted, 2),
            "WORKER_LOST: gone; the answer begins again, attempt 2; what was printed of it is void"
        );
        let mut answer = answer();
        answer.line_open = true;
        let frame = reply(Body::Control(Box::new(Control::Restarted(restarted))));
        assert!(answer.take(&frame).unwrap().is_none());
        assert!(!answer.line_open, "the new answer begins on a line of its own");
    }

    #[test]
    fn a_folded_frame_is_text_like_any_other() {
        let mut answer = answer();
        let folded = Frame {
            seq: 9,
            folded_from: 3,
            index: Some(6),
            ..reply(Body::Text("many words at once".into()))
        };
        assert!(answer.take(&folded).unwrap().is_none());
        assert!(answer.line_open);
    }
}
