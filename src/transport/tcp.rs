//! The TCP connection: a stream of bytes that notes when its peer shows life.
//!
//! Any byte counts, whatever carries it: a frame, the acknowledgement of an HTTP/2 ping, a WebSocket's pong. It must never look
//! at what the bytes are.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::router::{Life, Router};

/// A TCP connection, which several links may share.
pub struct Tcp {
    stream: TcpStream,
    life: Life,
    /// The peer took less than it was offered.
    is_full: bool,
}

impl Tcp {
    /// A connection that was just accepted, and the handle of its life, which its requests are to carry as an extension.
    pub fn new(stream: TcpStream, router: &Router) -> io::Result<(Self, Life)> {
        // Without it, small messages wait for the peer's delayed acknowledgements.
        stream.set_nodelay(true)?;
        let life = router.life();
        let tcp = Self {
            stream,
            life: life.clone(),
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
}

/// The certificate by which the peer of a TLS connection has shown who it is, verified: DER.
#[derive(Clone, Debug)]
pub struct ClientCertificate(pub Bytes);

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
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(polled)
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
