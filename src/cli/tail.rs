//! `twinspan tail`: a session as it goes on.

use clap::Args;
use tokio::time::Instant;

use super::{Failure, Gateway, output};
use crate::client::{Followed, Start};
use crate::frame::{Body, Control, Frame};

/// `twinspan tail`.
#[derive(Debug, Args)]
pub struct Tail {
    /// The session
    session: String,
    /// Begin after this frame; 0 is the beginning
    #[arg(long, value_name = "SEQ", conflicts_with = "tail")]
    after: Option<u64>,
    /// Begin with this many of the newest frames
    #[arg(long, value_name = "N", default_value_t = 0)]
    tail: u32,
    /// Also print how its requests get on
    #[arg(long)]
    requests: bool,
    /// Print frames as JSON, one in a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
}

impl Tail {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.gateway.connect().await?;
        let start = self.after.map_or(Start::Tail(self.tail), Start::After);
        let mut follow = client.follow(&self.session, start);
        if self.requests {
            follow = follow.with_requests();
        }
        loop {
            match follow.next().await? {
                Followed::Frame(frame) => {
                    self.print(&frame)?;
                    if let Some(end) = end(&frame) {
                        return end;
                    }
                }
                Followed::Lost { error, again } => {
                    let wait_ms = again.saturating_duration_since(Instant::now()).as_millis();
                    eprintln!("twinspan: {error}; trying again in {wait_ms} ms");
                }
            }
        }
    }

    fn print(&self, frame: &Frame) -> Result<(), Failure> {
        if self.json {
            return output::line(&output::json(frame));
        }
        output::human(frame).map_or(Ok(()), |line| output::line(&line))
    }
}

/// What there is to say when the session itself is over.
fn end(frame: &Frame) -> Option<Result<(), Failure>> {
    let Body::Control(control) = &frame.body else {
        return None;
    };
    let Control::Left(left) = &**control else { return None };
    Some(match &left.error {
        Some(error) => Err(crate::client::Error::from(error.clone()).into()),
        None => Ok(()),
    })
}
