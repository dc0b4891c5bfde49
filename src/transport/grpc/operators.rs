//! The `Admin` service: what operators see and do.

use tonic::{Request, Response};

use super::calls::{Answer, answer, caller};
use crate::auth::{Deed, Place};
use crate::error::{Reason, Refusal};
use crate::frame::check_name;
use crate::frame::pb::{self, admin_server::Admin};
use crate::router::Router;

/// Workers that one answer lists.
const LISTED: usize = 10_000;

/// Serves `Admin`.
#[derive(Clone)]
pub struct Operators {
    router: Router,
}

impl Operators {
    /// The service.
    pub fn new(router: &Router) -> Self {
        Self { router: router.clone() }
    }

    fn drain(&self, request: &pb::DrainWorkerRequest) -> Result<pb::Worker, Refusal> {
        check_name("role", &request.role)?;
        check_name("worker_id", &request.worker_id)?;
        self.router.drain_worker(&request.role, &request.worker_id)
    }
}

/// The message of a call, whose caller may do this.
fn allowed<T>(request: Request<T>, deed: Deed) -> Result<T, Refusal> {
    caller(&request)?.grants.check(deed, Place::default())?;
    Ok(request.into_inner())
}

#[tonic::async_trait]
impl Admin for Operators {
    async fn list_workers(&self, request: Request<pb::ListWorkersRequest>) -> Answer<pb::ListWorkersResponse> {
        answer(allowed(request, Deed::ListWorkers).map(|request| {
            let mut workers = self.router.list_workers(&request.role);
            workers.truncate(LISTED);
            pb::ListWorkersResponse { workers }
        }))
    }

    async fn drain_worker(&self, request: Request<pb::DrainWorkerRequest>) -> Answer<pb::Worker> {
        answer(allowed(request, Deed::DrainWorker).and_then(|request| self.drain(&request)))
    }

    async fn stats(&self, request: Request<pb::StatsRequest>) -> Answer<pb::StatsResponse> {
        answer(allowed(request, Deed::Stats).map(|_| self.router.stats()))
    }

    async fn revoke(&self, _: Request<pb::RevokeRequest>) -> Answer<pb::Revocation> {
        answer(Err(Refusal::new(
            Reason::UnexpectedFrame,
            "the gateway authenticates nobody: there is nothing to revoke",
        )))
    }

    async fn list_revocations(&self, _: Request<pb::ListRevocationsRequest>) -> Answer<pb::ListRevocationsResponse> {
        Ok(Response::new(pb::ListRevocationsResponse::default()))
    }
}
