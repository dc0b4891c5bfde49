//! Credentials, as requests bring them: in a header, which is gRPC's metadata as well, in a WebSocket subprotocol, in the URL
//! where that is switched on, or by the certificate of the TLS connection.
//!
//! It must never log one, say one back, or let one get into a `Request`'s other parts.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::Response;
use http::{Extensions, HeaderMap, Request, header};

use super::grpc::ATTACH;
use super::tcp::ClientCertificate;
use crate::auth::{Identity, Secret};
use crate::error::{Reason, Refusal};
use crate::router::Router;

/// Before a credential among the subprotocols of a WebSocket handshake.
pub const BEARER: &str = "twinspan.bearer.";
/// The URL's parameter.
pub const PARAMETER: &str = "access_token";

/// The credential of a request's header (RFC 6750 §2.1).
pub fn of_header(headers: &HeaderMap) -> Result<Option<Secret>, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).into_iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return match headers.contains_key(header::AUTHORIZATION) {
            true => Err(malformed("there are several `authorization` headers")),
            false => Ok(None),
        };
    };
    let (scheme, secret) = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .unwrap_or_default();
    match scheme.eq_ignore_ascii_case("bearer") && !secret.trim().is_empty() {
        true => Ok(Some(Secret::new(secret.trim()))),
        false => Err(malformed("the `authorization` header is not `Bearer` and a credential")),
    }
}

/// The credential of a WebSocket handshake: by header, by subprotocol, or, where that is switched on, by the URL. One of them.
pub fn of_handshake(router: &Router, request: &Request<Body>) -> Result<Option<Secret>, Refusal> {
    let headers = request.headers();
    let offered = super::websocket::list(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let mut found: Vec<Secret> = offered
        .filter_map(|one| one.strip_prefix(BEARER))
        .map(Secret::new)
        .collect();
    found.extend(of_header(headers)?);
    if let Some(secret) = of_query(request.uri().query().unwrap_or_default()) {
        if !router.auth().takes_query() {
            return Err(malformed(
                "`access_token` in the URL is not taken here (setting `auth.query`), since URLs get into logs; use the subprotocol \
                 twinspan.bearer.… or Hello.token",
            ));
        }
        found.push(secret);
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(malformed("there are several credentials; send one")),
    }
}

fn of_query(query: &str) -> Option<Secret> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs
        .find(|(key, _)| key == PARAMETER)
        .map(|(_, value)| Secret::new(value.into_owned()))
}

fn malformed(text: &str) -> Refusal {
    Refusal::new(Reason::Unauthenticated, text)
}

/// Who it is that brings this: nothing if it has not said so.
pub async fn identify(
    router: &Router,
    extensions: &Extensions,
    brought: Result<Option<Secret>, Refusal>,
) -> Result<Option<Arc<Identity>>, Refusal> {
    if !router.auth().is_required() {
        return Ok(Some(router.nobody()));
    }
    let certificate = extensions.get::<ClientCertificate>();
    let found = prove(router, certificate, brought).await;
    if found.is_err() {
        router.count_credential_refused();
    }
    Ok(found?.map(Arc::new))
}

/// A credential that was brought counts before the connection's certificate.
async fn prove(
    router: &Router,
    certificate: Option<&ClientCertificate>,
    brought: Result<Option<Secret>, Refusal>,
) -> Result<Option<Identity>, Refusal> {
    let (auth, now) = (router.auth(), router.now().wall);
    match (brought?, certificate) {
        (Some(secret), _) => auth.authenticate(&secret, now).await.map(Some),
        (None, Some(leaf)) => auth.certificate(&leaf.0, now).transpose(),
        (None, None) => Ok(None),
    }
}

/// The services that are for peers who have said who they are; health is for everybody.
const GUARDED: [&str; 2] = ["/twinspan.", "/grpc.reflection."];

/// Gives each gRPC request its caller's identity. A call without one is refused; a stream may say later who it is.
pub async fn authenticate(State(router): State<Router>, mut request: Request<Body>, next: Next) -> Response {
    let path = request.uri().path();
    if !GUARDED.iter().any(|service| path.starts_with(service)) {
        return next.run(request).await;
    }
    let is_stream = path == ATTACH;
    let brought = of_header(request.headers());
    // What is behind has no use for it.
    request.headers_mut().remove(header::AUTHORIZATION);
    match identify(&router, request.extensions(), brought).await {
        Ok(Some(identity)) => drop(request.extensions_mut().insert(identity)),
        Ok(None) if is_stream => {}
        Ok(None) => {
            let text = "the call needs a credential, in its metadata: authorization: Bearer …";
            return refuse(&Refusal::new(Reason::Unauthenticated, text));
        }
        Err(refusal) => return refuse(&refusal),
    }
    next.run(request).await
}

fn refuse(refusal: &Refusal) -> Response {
    refusal.to_status().into_http::<tonic::body::Body>().map(Body::new)
}
