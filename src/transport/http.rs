//! Plain HTTP: health, readiness, a word for people who open the address in a browser, and the way to the WebSocket.

use axum::Router as HttpRouter;
use axum::body::Body;
use axum::extract::State;
use axum::routing::{any, get};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};

use super::websocket;
use crate::error::Refusal;
use crate::router::Router;

const HOME: &str = "Twinspan: a session gateway.\n\n\
    WebSocket   /v1/ws              ?session_id=NAME joins at once\n\
    gRPC        twinspan.v1.Gateway, twinspan.v1.Sessions; server reflection is on\n\
    health      /healthz, /readyz\n";

/// Everything that is not gRPC.
pub fn routes(router: &Router) -> HttpRouter {
    HttpRouter::new()
        .route("/", get(async || text(StatusCode::OK, HOME.to_owned())))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/v1/ws", any(upgrade))
        .with_state(router.clone())
}

/// What there is not.
pub async fn not_found(request: Request<Body>) -> Response<Body> {
    let path = request.uri().path();
    if is_grpc(request.headers()) {
        let status = tonic::Status::unimplemented(format!(
            "there is no method {path}; server reflection lists what there is"
        ));
        return status.into_http::<tonic::body::Body>().map(Body::new);
    }
    text(StatusCode::NOT_FOUND, format!("there is nothing at {path}; see /\n"))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The answer to a call that is refused whatever it asks, in the form that its headers say the caller understands.
pub fn refused(headers: &HeaderMap, refusal: &Refusal) -> Response<Body> {
    if is_grpc(headers) {
        return refusal.to_status().into_http::<tonic::body::Body>().map(Body::new);
    }
    let status = StatusCode::from_u16(refusal.reason.http_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    refuse(status, refusal)
}

/// A refusal as text, with when to try again.
pub(super) fn refuse(status: StatusCode, refusal: &Refusal) -> Response<Body> {
    let mut response = text(status, format!("{refusal}\n"));
    if let Some(wait) = refusal.retry_after {
        // Whole seconds, and never none.
        let seconds = HeaderValue::from(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

async fn upgrade(State(router): State<Router>, request: Request<Body>) -> Response<Body> {
    websocket::upgrade(&router, request)
}

/// Whether the process is well: the log works, and time passes. Red means: look, or restart it.
async fn healthz(State(router): State<Router>) -> Response<Body> {
    match router.check() {
        Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("unwell: {why}\n")),
    }
}

/// Whether to send new clients here.
async fn readyz(State(router): State<Router>) -> Response<Body> {
    if router.is_draining() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    if let Err(refusal) = router.check_memory() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, &refusal);
    }
    healthz(State(router)).await
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
