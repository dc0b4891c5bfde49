//! The door: TCP connections that are not let in are closed at once, and a few of them are told why. It never reads what they
//! have to say beyond what is needed for them to hear the answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::error::{Reason, Refusal};

/// How many are told at a time; the others are not.
const TOLD: usize = 64;
/// How long one may take to hear it.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is read of a request that is refused.
const READ: usize = 16 << 10;

/// Turns connections away.
#[derive(Clone, Debug)]
pub struct Door(Arc<Semaphore>);

impl Door {
    /// One at which nobody stands.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(TOLD)))
    }

    /// Closes the connection, and tells its peer why if there are not too many to tell.
    pub fn turn_away(&self, stream: TcpStream, refusal: &Refusal) {
        let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else {
            return;
        };
        let answer = answer(refusal);
        tokio::spawn(async move {
            drop(tokio::time::timeout(PATIENCE, tell(stream, &answer)).await);
            drop(permit);
        });
    }
}

/// A socket that is closed while bytes of the peer are unread is reset, and the answer may be lost: so these are read.
async fn tell(mut stream: TcpStream, answer: &str) -> std::io::Result<()> {
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut left = READ;
    let mut scratch = [0; 1024];
    while left > 0 {
        match stream.read(&mut scratch).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

fn answer(refusal: &Refusal) -> String {
    let status = match refusal.reason {
        Reason::TooManyFromAddress => "429 Too Many Requests",
        _ => "503 Service Unavailable",
    };
    let text = format!("{refusal}\n");
    let seconds = refusal.retry_after.map_or(1, |wait| wait.as_secs().max(1));
    format!(
        "HTTP/1.1 {status}\r\nretry-after: {seconds}\r\ncontent-type: text/plain; charset=utf-8\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    )
}
