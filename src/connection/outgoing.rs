//! What frames ask for, whether they come over a connection or by a call.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Reason, Refusal};
use crate::frame::{Frame, Str, pb};
use crate::router::{Asked, Batch, Live, Router};
use crate::session::Cause;

/// Whether the frame is a request, and of what kind. Routes it by its type if it says nothing of where to, and gives it an id
/// if it has none.
pub fn asked(router: &Router, frame: &mut Frame) -> Result<Option<Asked>, Refusal> {
    if frame.to.is_none()
        && frame.reply_to.is_empty()
        && !frame.ephemeral
        && let Some(role) = router.route(&frame.r#type)
    {
        frame.to = Some(Arc::new(pb::Address {
            role: role.to_string(),
            ..pb::Address::default()
        }));
    }
    let role = frame
        .to
        .as_deref()
        .filter(|to| !to.role.is_empty() && !to.multicast)
        .map(|to| to.role.as_str());
    let Some(role) = role else {
        return match frame.options {
            Some(_) => Err(Refusal::field(
                "options",
                "only requests (frames to a role) have options",
            )),
            None => Ok(None),
        };
    };
    if !frame.reply_to.is_empty() {
        return Err(Refusal::field(
            "reply_to",
            "a frame is a request (to a role) or a reply, not both",
        ));
    }
    if frame.ephemeral {
        return Err(Refusal::field("ephemeral", "a request cannot be ephemeral"));
    }
    if router.is_draining() {
        return Err(Refusal::new(
            Reason::Draining,
            "the gateway is about to stop and takes no new requests; connect again",
        ));
    }
    if frame.id.is_empty() {
        frame.id = crate::router::random_name();
    }
    let limits = router.limits();
    let timeouts = frame.options.as_deref().and_then(|options| options.timeouts.as_ref());
    let time = |set: Option<prost_types::Duration>, default| {
        set.and_then(|set| Duration::try_from(set).ok()).unwrap_or(default)
    };
    Ok(Some(Asked {
        role: Str::from(role),
        accept: time(timeouts.and_then(|timeouts| timeouts.accept), limits.accept_timeout),
        total: time(timeouts.and_then(|timeouts| timeouts.total), limits.total_timeout),
    }))
}

/// Cancels a request.
pub fn cancel(
    router: &Router,
    live: &Arc<Live>,
    request: &str,
    why: &str,
    batch: &mut Batch,
) -> Result<pb::CancelOutcome, Refusal> {
    super::check_request_id(request)?;
    if why.len() > 256 {
        return Err(Refusal::field("cancel.reason", "at most 256 bytes"));
    }
    let message = if why.is_empty() {
        "the request was cancelled".to_owned()
    } else {
        format!("the request was cancelled: {why}")
    };
    match router.end(live, request, Cause::Cancelled, &message, batch) {
        Ok(()) => Ok(pb::CancelOutcome::Accepted),
        Err(refusal) if refusal.reason == Reason::RequestEnded => Ok(pb::CancelOutcome::AlreadyEnded),
        Err(refusal) if refusal.reason == Reason::RequestNotFound => Ok(pb::CancelOutcome::NotFound),
        Err(refusal) => Err(refusal),
    }
}
