//! Requests of browsers: whose pages may send them, and what those pages may read of the answers (CORS).
//!
//! It stands before everything else, so that no handshake and no call has to ask by itself.

use std::sync::Arc;
use std::time::Duration;

use axum::Router as HttpRouter;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::{Next, from_fn_with_state};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::edge::Origins;
use crate::error::{Reason, Refusal};

/// How long a browser may remember what it was allowed.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What pages may send.
const SENT: [HeaderName; 8] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-user-agent"),
];

/// What pages may read, beyond what they always may.
const READ: [HeaderName; 4] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
    header::RETRY_AFTER,
];

/// The same services for requests that carry an `Origin`. Those that carry none come from no page, and need none of this.
pub fn guard(services: HttpRouter, origins: Origins) -> HttpRouter {
    // Whoever gets as far as this is allowed.
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::mirror_request())
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(SENT)
        .expose_headers(READ)
        .max_age(REMEMBERED);
    services.layer(cors).layer(from_fn_with_state(Arc::new(origins), admit))
}

/// Whether a request comes from a page.
pub fn is_of_a_page<T>(request: &Request<T>) -> bool {
    request.headers().contains_key(header::ORIGIN)
}

async fn admit(State(origins): State<Arc<Origins>>, request: Request<Body>, next: Next) -> Response<Body> {
    match check(&origins, &request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            tracing::debug!(%refusal, "request refused");
            refused(&refusal)
        }
    }
}

fn check(origins: &Origins, request: &Request<Body>) -> Result<(), Refusal> {
    let said = only(request, header::ORIGIN)
        .ok_or_else(|| Refusal::new(Reason::OriginDenied, "a request has one Origin, of visible characters"))?;
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => only(request, header::HOST),
    };
    origins.admit(said, host)
}

/// The header's value, if it has just one.
fn only(request: &Request<Body>, name: HeaderName) -> Option<&str> {
    let mut values = request.headers().get_all(name).into_iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{refusal}\n")));
    *response.status_mut() = StatusCode::FORBIDDEN;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}
