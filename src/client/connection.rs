//! One connection to a gateway: frames out, frames in, and the questions that have one answer.

use std::collections::VecDeque;

use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::{Credential, Error, MAX_FRAME_BYTES};
use crate::frame::{Body, Control, Frame, Str, pb};

/// Frames that wait to be written; beyond it, `send` waits.
const OUTGOING_FRAMES: usize = 64;
/// Frames that may come before the answer to a question, and are kept for `next`.
const EARLY_FRAMES: usize = 16_384;

/// A connection. It ends when it and all its `Sender`s are dropped, or by `close`.
#[derive(Debug)]
pub struct Connection {
    sender: Sender,
    frames: Streaming<Frame>,
    early: VecDeque<Frame>,
    questions: u64,
}

/// The sending half of a connection, for tasks that only send.
#[derive(Clone, Debug)]
pub struct Sender(mpsc::Sender<Frame>);

impl Sender {
    /// Sends a frame; waits while the gateway does not take any. Whether it was accepted is told by an ack or an error frame.
    pub async fn send(&self, frame: Frame) -> Result<(), Error> {
        self.0.send(frame).await.map_err(|_| ended())
    }
}

impl Connection {
    pub(super) async fn open(channel: Channel, credential: &Credential) -> Result<Self, Error> {
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_FRAME_BYTES);
        let not_ready = |error: tonic::transport::Error| Error::from(tonic::Status::from_error(error.into()));
        grpc.ready().await.map_err(not_ready)?;
        let (sender, outgoing) = mpsc::channel(OUTGOING_FRAMES);
        let path = PathAndQuery::from_static("/twinspan.v1.Gateway/Attach");
        let codec = ProstCodec::<Frame, Frame>::default();
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
        credential.show(&mut request);
        let frames = grpc.streaming(request, path, codec).await?.into_inner();
        Ok(Self {
            sender: Sender(sender),
            frames,
            early: VecDeque::new(),
            questions: 0,
        })
    }

    /// Sends a frame; waits while the gateway does not take any. Whether it was accepted is told by an ack or an error frame.
    pub async fn send(&self, frame: Frame) -> Result<(), Error> {
        self.sender.send(frame).await
    }

    /// The sending half, for other tasks.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The next frame; none when the gateway ended the connection in good order. Dropping the future loses no frame.
    pub async fn next(&mut self) -> Option<Result<Frame, Error>> {
        match self.early.pop_front() {
            Some(frame) => Some(Ok(frame)),
            None => self.read().await,
        }
    }

    /// Becomes a member of a session. To resume, give `after_seq` and the `epoch` of the last `Joined`.
    pub async fn join(&mut self, session: &str, join: pb::Join) -> Result<pb::Joined, Error> {
        match self.ask(session, Control::Join(join)).await? {
            Control::Joined(joined) => Ok(joined),
            other => Err(unexpected(&other)),
        }
    }

    /// Leaves a session.
    pub async fn leave(&mut self, session: &str) -> Result<(), Error> {
        match self.ask(session, Control::Leave(pb::Leave {})).await? {
            Control::Left(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Becomes a worker. From then on `next` hands out requests: frames with `attempt` set.
    pub async fn serve(&mut self, serve: pb::Serve) -> Result<pb::Serving, Error> {
        match self.ask("", Control::Serve(serve)).await? {
            Control::Serving(serving) => Ok(serving),
            other => Err(unexpected(&other)),
        }
    }

    /// Says who this is, and learns what the gateway is.
    pub async fn hello(&mut self, hello: pb::Hello) -> Result<pb::Welcome, Error> {
        match self.ask("", Control::Hello(hello)).await? {
            Control::Welcome(welcome) => Ok(welcome),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends a request of a session.
    pub async fn cancel(&mut self, session: &str, cancel: pb::Cancel) -> Result<pb::CancelOutcome, Error> {
        match self.ask(session, Control::Cancel(cancel)).await? {
            Control::CancelAck(ack) => Ok(ack.outcome()),
            other => Err(unexpected(&other)),
        }
    }

    /// Says that nothing more will be sent, and reads what is still due. The gateway is told once all `Sender`s are dropped.
    pub async fn close(self) -> Result<(), Error> {
        let Self { sender, mut frames, .. } = self;
        drop(sender);
        while frames.message().await?.is_some() {}
        Ok(())
    }

    /// Asks, and keeps for `next` what comes before the answer.
    async fn ask(&mut self, session: &str, question: Control) -> Result<Control, Error> {
        self.questions += 1;
        let id = Str::from(format!("ask-{}", self.questions));
        let body = Body::Control(Box::new(question));
        self.send(Frame {
            id: id.clone(),
            session_id: session.into(),
            body,
            ..Frame::default()
        })
        .await?;
        while self.early.len() < EARLY_FRAMES {
            let frame = self.read().await.unwrap_or_else(|| Err(ended()))?;
            match frame.body {
                Body::Control(answer) if frame.reply_to == id => return Ok(*answer),
                Body::Error(error) if frame.reply_to == id && frame.seq == 0 => return Err((*error).into()),
                _ => self.early.push_back(frame),
            }
        }
        Err(Error::usage(format!(
            "{EARLY_FRAMES} frames came before an answer: read them with `next` first"
        )))
    }

    async fn read(&mut self) -> Option<Result<Frame, Error>> {
        self.frames.message().await.map_err(Error::from).transpose()
    }
}

fn ended() -> Error {
    Error::transport("the gateway ended the connection")
}

fn unexpected(answer: &Control) -> Error {
    Error::usage(format!(
        "the gateway answered something else than was asked: {answer:?}"
    ))
}
