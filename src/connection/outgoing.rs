//! What frames ask for, whether they come over a connection or by a call.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Deed, Identity, Reach};
use crate::error::{Reason, Refusal};
use crate::frame::{CANCEL_SECONDS, Frame, Str, check_span, pb};
use crate::router::{Asked, Batch, Router};
use crate::session::{Concurrency, Loss, Terms};

/// Whether the frame is a request, and of what kind. Routes it by its type if it says nothing of where to, and gives it an id
/// if it has none.
pub fn asked(router: &Router, by: &Identity, session: &str, frame: &mut Frame) -> Result<Option<Asked>, Refusal> {
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
    router.check_memory()?;
    if frame.id.is_empty() {
        frame.id = crate::router::random_name();
    }
    let role = Str::from(role);
    let terms = terms(router, &role, frame.options.as_deref());
    let is_configured = frame
        .options
        .as_deref()
        .is_none_or(|options| options.concurrency() == pb::Concurrency::Unspecified);
    let reach = match is_configured {
        // What the operator says of the role is nobody's cancel.
        true => Reach::Any,
        false => by.grants.reach(Deed::Replace, session),
    };
    Ok(Some(Asked { role, terms, reach }))
}

/// How many workers may try a request that says nothing of it.
const ATTEMPTS: u32 = 3;

fn terms(router: &Router, role: &str, options: Option<&pb::RequestOptions>) -> Terms {
    let limits = router.limits();
    let none = pb::RequestOptions::default();
    let options = options.unwrap_or(&none);
    let timeouts = options.timeouts.unwrap_or_default();
    let cancel_after = options.on_disconnect() == pb::OnDisconnect::CancelAfter;
    Terms {
        accept: span(timeouts.accept).unwrap_or(limits.accept_timeout),
        first_chunk: span(timeouts.first_chunk),
        idle: span(timeouts.idle),
        total: span(timeouts.total).unwrap_or(limits.total_timeout),
        loss: match options.on_worker_loss() {
            pb::WorkerLoss::Unspecified | pb::WorkerLoss::Fail => Loss::Fail,
            pb::WorkerLoss::RetryIfSilent => Loss::RetryIfSilent,
            pb::WorkerLoss::Restart => Loss::Restart,
        },
        max_attempts: match options.max_attempts {
            0 => ATTEMPTS,
            attempts => attempts,
        },
        gone: cancel_after.then(|| span(options.disconnect_grace).unwrap_or_default()),
        affinity: options.affinity.as_str().into(),
        concurrency: match options.concurrency() {
            pb::Concurrency::Unspecified => router.concurrency(role),
            pb::Concurrency::Parallel => Concurrency::Parallel,
            pb::Concurrency::Queue => Concurrency::Queue,
            pb::Concurrency::Reject => Concurrency::Reject,
            pb::Concurrency::Replace => Concurrency::Replace,
        },
    }
}

/// A span that was set, and checked before.
pub fn span(set: Option<prost_types::Duration>) -> Option<Duration> {
    set.and_then(|set| Duration::try_from(set).ok())
}

/// Cancels a request.
pub fn cancel(
    router: &Router,
    session: &str,
    cancel: &pb::Cancel,
    by: &Identity,
    batch: &mut Batch,
) -> Result<pb::CancelOutcome, Refusal> {
    let (request, why) = (&cancel.request_id, &cancel.reason);
    super::check_request_id(request)?;
    if why.len() > 256 {
        return Err(Refusal::field("cancel.reason", "at most 256 bytes"));
    }
    check_span("cancel.grace", cancel.grace.as_ref(), CANCEL_SECONDS)?;
    let reach = by.grants.reach(Deed::Cancel, session);
    if reach == Reach::None {
        // Not even whether there is such a request.
        return Ok(pb::CancelOutcome::Denied);
    }
    let live = &super::find_session(router, session)?;
    if reach == Reach::Own
        && router
            .asker(live, request)
            .is_some_and(|asker| asker != by.subject.as_str())
    {
        return Ok(pb::CancelOutcome::Denied);
    }
    let message = if why.is_empty() {
        "the request was cancelled".to_owned()
    } else {
        format!("the request was cancelled: {why}")
    };
    match router.cancel(live, request, &message, span(cancel.grace), batch) {
        Ok(()) => Ok(pb::CancelOutcome::Accepted),
        Err(refusal) if refusal.reason == Reason::RequestEnded => Ok(pb::CancelOutcome::AlreadyEnded),
        Err(refusal) if refusal.reason == Reason::RequestNotFound => Ok(pb::CancelOutcome::NotFound),
        Err(refusal) => Err(refusal),
    }
}
