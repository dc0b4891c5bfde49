//! The `Admin` service: what operators see and do.

use tonic::{Request, Response};

use super::calls::{Answer, answer};
use crate::error::Refusal;
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

#[tonic::async_trait]
impl Admin for Operators {
    async fn list_workers(&self, request: Request<pb::ListWorkersRequest>) -> Answer<pb::ListWorkersResponse> {
        let mut workers = self.router.list_workers(&request.get_ref().role);
        workers.truncate(LISTED);
        Ok(Response::new(pb::ListWorkersResponse { workers }))
    }

    async fn drain_worker(&self, request: Request<pb::DrainWorkerRequest>) -> Answer<pb::Worker> {
        answer(self.drain(request.get_ref()))
    }

    async fn stats(&self, _: Request<pb::StatsRequest>) -> Answer<pb::StatsResponse> {
        Ok(Response::new(self.router.stats()))
    }
}
