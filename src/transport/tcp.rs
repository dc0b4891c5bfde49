//! The TCP connection: a stream of bytes that notes when its peer shows life, and ends when its HTTP/2 is a flood.
//!
//! Any byte counts, whatever carries it: a frame, the acknowledgement of an HTTP/2 ping, a WebSocket's pong. It must never
//! change what the bytes are; the meter looks at the headers of HTTP/2 frames, and nobody at what they carry.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::meter::{Flood, Meter};
use crate::router::{Admitted, Life, Router};

/// A TCP connection, which several links may share.
pub struct Tcp {
    stream: TcpStream,
    life: Life,
    meter: Meter,
    /// Its place among all TCP connections.
    _admitted: Admitted,
    /// The peer took less than it was offered.
    is_full: bool,
}

impl Tcp {
    /// A connection that was just accepted, and the handle of its life, which its requests are to carry as an extension.
    pub fn new(stream: TcpStream, router: &Router, admitted: Admitted) -> io::Result<(Self, Life)> {
        // Without it, small messages wait for the peer's delayed acknowledgements.
        stream.set_nodelay(true)?;
        let life = router.life().of(admitted.client());
        let tcp = Self {
            stream,
            life: life.clone(),
            meter: Meter::new(router.limits()),
            _admitted: admitted,
            is_full: false,
        };
        Ok((tcp, life))
    }

    /// A peer that takes bytes where it took none lives. One that always takes them may be gone: they are with the kernel.
    fn written(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let was_full = std::mem::replace(&mut self.is_full, polled.is_pending());
        if was_full && matches!(polled, Poll::Ready(Ok(_))) {
            self.life.sign();
        }
        polled
    }

    fn meter_written(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>], count: usize) -> io::Result<()> {
        if !self.meter.is_metering() {
            return Ok(());
        }
        let mut left = count;
        for slice in slices {
            let part = &slice[..slice.len().min(left)];
            left -= part.len();
            if let Err(flood) = self.meter.wrote(part, self.life.time()) {
                return Err(self.end(cx, flood));
            }
        }
        Ok(())
    }

    /// Tells the peer why it is disconnected, if that can be said at once.
    fn end(&mut self, cx: &mut Context<'_>, flood: Flood) -> io::Error {
        tracing::debug!(
            setting = flood.setting,
            limit = flood.limit,
            "HTTP/2 flood: disconnected"
        );
        self.life.count_flood();
        if let Some(farewell) = self.meter.farewell(&flood) {
            // A socket that is full is not waited for.
            let _ = Pin::new(&mut self.stream).poll_write(cx, &farewell);
        }
        io::Error::other(flood)
    }
}

/// The life of the connection that a request came on.
pub fn life(extensions: &http::Extensions, router: &Router) -> Life {
    extensions.get().cloned().unwrap_or_else(|| router.life())
}

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.life.sign();
            let now = self.life.time();
            if let Err(flood) = self.meter.read(&buffer.filled()[before..], now) {
                return Poll::Ready(Err(self.end(cx, flood)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        let count = ready!(self.written(polled))?;
        self.meter_written(cx, &[IoSlice::new(bytes)], count)?;
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        let count = ready!(self.written(polled))?;
        self.meter_written(cx, slices, count)?;
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
