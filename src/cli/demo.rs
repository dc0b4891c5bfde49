//! The demo worker: a backend like any other, which dials in over gRPC and says word by word what it was told.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::client::{Backoff, Client, Connection, Credential, Error, Sender};
use crate::frame::{Body, Control, Frame, Str, pb};

/// Between two words, so that one sees them come.
const PAUSE: Duration = Duration::from_millis(40);
const MAX_IN_FLIGHT: u32 = 256;

/// A request: its session, and its id.
type Key = (Str, Str);

/// Serves the role, over reconnects. Returns only where trying again would not help.
pub async fn work(url: &str, role: &str, credential: Credential) -> Error {
    let client = match Client::connect_lazy(url) {
        Ok(client) => client.with_credential(credential),
        Err(error) => return error,
    };
    let mut backoff = Backoff::default();
    loop {
        let ended = shift(&client, role).await;
        match ended {
            Ok(()) => backoff.reset(),
            Err(error) if !error.retryable => return error,
            Err(error) => {
                tracing::debug!(%error, "the demo worker lost its gateway");
                tokio::time::sleep(backoff.after(&error)).await;
            }
        }
    }
}

/// One connection's worth of work.
async fn shift(client: &Client, role: &str) -> Result<(), Error> {
    let mut connection = client.attach().await?;
    let serve = pb::Serve {
        role: role.to_owned(),
        max_in_flight: MAX_IN_FLIGHT,
        worker_id: "demo-worker".to_owned(),
        ..pb::Serve::default()
    };
    connection.serve(serve).await?;
    Shift {
        sender: connection.sender(),
        answers: JoinSet::new(),
        running: HashMap::new(),
    }
    .run(&mut connection)
    .await
}

/// How an answer is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// With a word: the request was cancelled, and there is a moment to end it.
    InGoodOrder,
    /// Without one: the request is over, or another worker's.
    Silently,
}

struct Shift {
    sender: Sender,
    answers: JoinSet<Key>,
    /// By request: the attempt, and how to stop it.
    running: HashMap<Key, (u32, oneshot::Sender<Stop>)>,
}

impl Shift {
    async fn run(mut self, connection: &mut Connection) -> Result<(), Error> {
        loop {
            tokio::select! {
                frame = connection.next() => match frame {
                    Some(frame) => self.handle(frame?),
                    None => return Ok(()),
                },
                Some(ended) = self.answers.join_next() => {
                    // The same request may be here again by now, as another attempt.
                    if let Ok(key) = ended
                        && self.running.get(&key).is_some_and(|(_, stop)| stop.is_closed())
                    {
                        self.running.remove(&key);
                    }
                }
            }
        }
    }

    fn handle(&mut self, frame: Frame) {
        match &frame.body {
            Body::Control(control) => {
                if let Control::Cancel(cancel) = &**control {
                    let key = (frame.session_id.clone(), Str::from(cancel.request_id.as_str()));
                    let stop = match cancel.grace {
                        Some(_) => Stop::InGoodOrder,
                        None => Stop::Silently,
                    };
                    let is_this = |(attempt, _): &(u32, _)| *attempt == cancel.attempt;
                    if let Some(at) = self.running.get(&key).filter(|running| is_this(running)).map(|_| key)
                        && let Some((_, answer)) = self.running.remove(&at)
                    {
                        // One that has just ended needs no stopping.
                        answer.send(stop).ok();
                    }
                }
            }
            Body::Error(error) if !frame.reply_to.is_empty() => {
                tracing::debug!(reason = %error.reason, "a reply was refused")
            }
            _ if frame.attempt > 0 && frame.reply_to.is_empty() => {
                let key = (frame.session_id.clone(), frame.id.clone());
                let (stop, stopped) = oneshot::channel();
                let attempt = frame.attempt;
                self.answers.spawn(answer(self.sender.clone(), frame, stopped));
                self.running.insert(key, (attempt, stop));
            }
            _ => {}
        }
    }
}

/// Streams the answer to one request, until it is told to stop.
async fn answer(sender: Sender, request: Frame, stopped: oneshot::Receiver<Stop>) -> Key {
    let stop = tokio::select! {
        biased;
        Ok(stop) = stopped => Some(stop),
        () = say(&sender, &request) => None,
    };
    let last = match stop {
        None => Some(reply(&request, "stream_end", Body::None)),
        Some(Stop::InGoodOrder) => Some(reply(&request, "stream_end", Body::Error(Box::new(cancelled())))),
        Some(Stop::Silently) => None,
    };
    if let Some(last) = last {
        // A gateway that is gone ends the whole shift; nobody is left to be told here.
        sender.send(Frame { last: true, ..last }).await.ok();
    }
    (request.session_id, request.id)
}

async fn say(sender: &Sender, request: &Frame) {
    for word in said(&request.body).split_inclusive(char::is_whitespace) {
        let chunk = reply(request, "stream_chunk", Body::Text(word.into()));
        if sender.send(chunk).await.is_err() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn reply(request: &Frame, kind: &'static str, body: Body) -> Frame {
    Frame {
        session_id: request.session_id.clone(),
        reply_to: request.id.clone(),
        attempt: request.attempt,
        r#type: Str::from_static(kind),
        body,
        ..Frame::default()
    }
}

fn cancelled() -> pb::Error {
    pb::Error {
        code: pb::Code::Cancelled.into(),
        reason: "CANCELLED".to_owned(),
        message: "the worker stopped, as it was told to".to_owned(),
        ..pb::Error::default()
    }
}

/// What the request says: its text, or that of a member of its payload that is likely to be it, or all of its payload.
fn said(body: &Body) -> String {
    match body {
        Body::Text(text) => text.to_string(),
        Body::Payload(payload) => said_in(payload.as_json()),
        Body::Data(data) => format!("{} bytes", data.len()),
        Body::Message(message) => format!("a {}", message.type_url.rsplit('/').next().unwrap_or_default()),
        Body::None | Body::Error(_) | Body::Control(_) => "nothing".to_owned(),
    }
}

fn said_in(json: &str) -> String {
    match serde_json::from_str(json) {
        Ok(Value::String(text)) => text,
        Ok(Value::Object(members)) => {
            let likely = ["text", "prompt", "query", "message"]
                .iter()
                .find_map(|name| members.get(*name)?.as_str());
            likely.map_or_else(|| json.to_owned(), str::to_owned)
        }
        _ => json.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_payload_says() {
        for (json, text) in [
            (r#""hello""#, "hello"),
            (r#"{"action":"search","query":"HEA synthesis"}"#, "HEA synthesis"),
            (r#"{"prompt":"p","text":"t"}"#, "t"),
            (r#"{"text":1}"#, r#"{"text":1}"#),
            ("[1,2]", "[1,2]"),
        ] {
            assert_eq!(said_in(json), text);
        }
    }
}
