//! What a TCP connection is used for: whether it has asked for anything, how many of its calls are open, and how fast they
//! come. It knows calls, not what they ask.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use tower_service::Service;

use crate::error::{Reason, Refusal};
use crate::limits::{Bucket, Rate};
use crate::router::Router;
use crate::transport::http::refused;
use crate::transport::tcp::Keep;

/// Seconds' worth of calls that may come at once.
const BURST_SECONDS: u64 = 2;

/// The use of one TCP connection. Clones are handles of the same.
#[derive(Clone, Debug, Default)]
pub struct Usage(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    asked: AtomicBool,
    open: AtomicUsize,
    /// When the last call ended, in milliseconds from the start of the router.
    ended_ms: AtomicU64,
    calls: Mutex<Bucket>,
}

impl Usage {
    /// Whether anything was asked.
    pub fn has_asked(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// For how long no call has been open.
    pub fn idle(&self, now: Duration) -> Duration {
        if self.0.open.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        now.saturating_sub(Duration::from_millis(self.0.ended_ms.load(Ordering::Relaxed)))
    }

    fn begin(&self, router: &Router) -> Arc<Open> {
        self.0.asked.store(true, Ordering::Relaxed);
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Arc::new(Open {
            usage: self.clone(),
            router: router.clone(),
        })
    }

    fn check_rate(&self, router: &Router) -> Result<(), Refusal> {
        let limit = router.limits().calls_per_second;
        let rate = Rate::new(limit.into(), BURST_SECONDS);
        let mut calls = self.0.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.take(1, rate, router.uptime(router.now())).map_err(|wait| {
            let text = format!("more than {limit} calls in a second over this connection; send it again later");
            Refusal::limit(Reason::RateLimited, text, ("limits.calls_per_second", limit.into())).after(wait)
        })
    }
}

/// A call that is open, until it is dropped.
struct Open {
    usage: Usage,
    router: Router,
}

impl Drop for Open {
    fn drop(&mut self) {
        let now = self.router.uptime(self.router.now());
        let inner = &self.usage.0;
        inner.ended_ms.store(now.as_millis() as u64, Ordering::Relaxed);
        inner.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers the calls of one TCP connection, and keeps account of them.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    router: Router,
    usage: Usage,
}

impl<S> Counted<S> {
    /// What this service answers, with account of it.
    pub fn new(inner: S, router: Router, usage: Usage) -> Self {
        Self { inner, router, usage }
    }
}

impl<S> Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<CountedBody>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let open = self.usage.begin(&self.router);
        if let Err(refusal) = self.usage.check_rate(&self.router) {
            tracing::debug!(%refusal, "call refused");
            let refused = refused(request.headers(), &refusal);
            return Box::pin(async move { Ok(refused.map(|body| CountedBody { body, _open: open })) });
        }
        if request.method() == Method::CONNECT {
            let keep: Arc<Open> = Arc::clone(&open);
            request.extensions_mut().insert(Keep(keep));
        }
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| CountedBody { body, _open: open })) })
    }
}

/// The body of an answer; with its end, the call is over.
pub struct CountedBody {
    body: Body,
    _open: Arc<Open>,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
