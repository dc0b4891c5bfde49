//! The TCP connection, with TLS or without: a stream of bytes that notes when its peer shows life, ends when its HTTP/2 is a flood,
//! and knows what is known of its peer.
//!
//! Any byte counts, whatever carries it: a frame, the acknowledgement of an HTTP/2 ping, a WebSocket's pong. It must never
//! change what the bytes are; the meter looks at the headers of HTTP/2 frames, and nobody at what they carry.

use std::any::Any;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::meter::{Flood, Meter};
use crate::router::{Admitted, Life, Router};

/// Who is at the other end. Every request carries it as an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address, as far as it is known: behind a trusted proxy the one that the proxy names; the port is 0 where none was named.
    pub address: SocketAddr,
    /// Whether it speaks TLS to this process. What it speaks to a proxy is not known.
    pub is_tls: bool,
    /// Whether the address is that of a trusted proxy, and not of somebody behind it. Of a TCP connection whose requests name
    /// their clients it is; what is counted by address then is counted of requests.
    pub is_trusted_proxy: bool,
}

/// The certificate that the peer showed, in DER: verified against `tls.client_ca`, and the peer has its key. Every request of
/// such a connection carries it as an extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate(pub Bytes);

/// The bytes of a connection, as they are spoken.
pub enum Stream {
    /// As they are on the wire.
    Plain(TcpStream),
    /// Within TLS. Boxed: its state is large, and most of what idles beside it has none.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A TCP connection, which several links may share.
pub struct Tcp {
    stream: Stream,
    life: Life,
    meter: Meter,
    /// Its place among all TCP connections.
    _admitted: Admitted,
    /// The peer took less than it was offered.
    is_full: bool,
}

impl Tcp {
    /// A connection that was just accepted, and the handle of its life, which its requests are to carry as an extension.
    pub fn new(stream: Stream, router: &Router, admitted: Admitted) -> (Self, Life) {
        let life = router.life().of(admitted.client());
        let tcp = Self {
            stream,
            life: life.clone(),
            meter: Meter::new(router.limits()),
            _admitted: admitted,
            is_full: false,
        };
        (tcp, life)
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
            let _ = self.stream.pin().poll_write(cx, &farewell);
        }
        io::Error::other(flood)
    }
}

/// What either kind of stream can do.
trait Bytewise: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytewise for T {}

impl Stream {
    fn pin(&mut self) -> Pin<&mut dyn Bytewise> {
        match self {
            Self::Plain(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

/// What says that a call is open, for as long as it is kept. A WebSocket within HTTP/2 keeps its own: its call's body is over at once.
#[derive(Clone)]
pub struct Keep(pub Arc<dyn Any + Send + Sync>);

/// The life of the connection that a request came on.
pub fn life(extensions: &http::Extensions, router: &Router) -> Life {
    extensions.get().cloned().unwrap_or_else(|| router.life())
}

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.stream.pin().poll_read(cx, buffer))?;
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
        let polled = self.stream.pin().poll_write(cx, bytes);
        let count = ready!(self.written(polled))?;
        self.meter_written(cx, &[IoSlice::new(bytes)], count)?;
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.stream.pin().poll_write_vectored(cx, slices);
        let count = ready!(self.written(polled))?;
        self.meter_written(cx, slices, count)?;
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.pin().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.pin().poll_shutdown(cx)
    }
}
