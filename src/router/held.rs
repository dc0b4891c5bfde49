//! What open requests hold in memory: each keeps its frame until it ends, and its bytes are counted for as long.
//!
//! The count is given back where the frame is let go, whatever lets go of it; so it is exact without anybody keeping books.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Router;
use crate::error::{Reason, Refusal};
use crate::frame::Sealed;

/// A count of bytes that is shared by those who hold them.
pub(super) type Bytes = Arc<AtomicUsize>;

/// Bytes that are held until this is dropped.
struct Share {
    of: Bytes,
    bytes: usize,
}

impl Share {
    fn take(of: &Bytes, bytes: usize, limit: usize) -> Option<Self> {
        let taken = of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(bytes).filter(|sum| *sum <= limit)
        });
        taken.ok().map(|_| Self {
            of: Arc::clone(of),
            bytes,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The bytes of a request's frame, of its session's and of the gateway's.
pub(super) struct Shares {
    _session: Share,
    _total: Share,
}

/// The frame of an open request, with the bytes that it holds.
pub(super) struct Held {
    pub frame: Arc<Sealed>,
    pub _shares: Option<Shares>,
}

impl Router {
    /// Counts the frame of a request that is about to be opened in the session, or says that it is too much.
    pub(super) fn hold(&self, session: &Bytes, frame: &Sealed) -> Result<Shares, Refusal> {
        let limits = self.limits();
        let bytes = frame.size();
        let refused = |whose, setting, limit: usize| {
            let text = format!(
                "the open requests of the {whose} may hold {limit} bytes, and this one needs {bytes}: wait for some to end"
            );
            Refusal::limit(Reason::RequestsTooLarge, text, (setting, limit as u64))
        };
        let of_session = Share::take(session, bytes, limits.request_bytes)
            .ok_or_else(|| refused("session", "limits.request_bytes", limits.request_bytes))?;
        let of_all = Share::take(&self.inner.request_bytes, bytes, limits.total_request_bytes)
            .ok_or_else(|| refused("gateway", "limits.total_request_bytes", limits.total_request_bytes))?;
        Ok(Shares {
            _session: of_session,
            _total: of_all,
        })
    }

    /// How many bytes all open requests hold.
    pub fn request_bytes(&self) -> usize {
        self.inner.request_bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_until_it_is_let_go() {
        let count = Bytes::default();
        let one = Share::take(&count, 6, 10).unwrap();
        assert!(Share::take(&count, 5, 10).is_none());
        let two = Share::take(&count, 4, 10).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 10);
        drop(one);
        assert_eq!(count.load(Ordering::Relaxed), 4);
        assert!(Share::take(&count, usize::MAX, usize::MAX).is_none());
        drop(two);
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }
}
