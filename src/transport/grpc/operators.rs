//! The `Admin` service: what operators see and do.

use std::time::SystemTime;

use tonic::Request;

use super::calls::{Answer, answer, caller};
use crate::auth::{Deed, Place, Revocation, Revoked};
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

    async fn take_back(&self, request: pb::RevokeRequest) -> Result<pb::Revocation, Refusal> {
        let until = request.until.map(SystemTime::try_from).transpose();
        let until = until.map_err(|_| Refusal::field("until", "not a time"))?;
        if until.is_some_and(|until| until <= self.router.now().wall) {
            return Err(Refusal::field("until", "is over already: nothing would be taken back"));
        }
        let revocation = match (request.subject.is_empty(), request.token_id.is_empty()) {
            (false, true) => Revocation::of_subject(request.subject, self.router.now().wall),
            (true, false) => Revocation::of_token(request.token_id),
            _ => return Err(Refusal::field("subject", "either a subject or a token_id is required")),
        };
        let revocation = Revocation { until, ..revocation };
        let (auth, revoked) = (self.router.auth().clone(), revocation.clone());
        // It waits for the disk.
        let done = tokio::task::spawn_blocking(move || auth.revoke(revoked)).await;
        done.map_err(|_| Refusal::new(Reason::Internal, "the revocation was cut short; try again"))??;
        // Whoever is told that it is done can count on it.
        self.router.check_identities();
        let known = self.router.auth().revocations();
        let known = known.into_iter().find(|known| known.what == revocation.what);
        Ok(listed(known.unwrap_or(revocation)))
    }

    fn drain(&self, request: &pb::DrainWorkerRequest) -> Result<pb::Worker, Refusal> {
        check_name("role", &request.role)?;
        check_name("worker_id", &request.worker_id)?;
        self.router.drain_worker(&request.role, &request.worker_id)
    }
}

fn listed(revocation: Revocation) -> pb::Revocation {
    let (subject, token_id, issued_before) = match revocation.what {
        Revoked::Subject { name, issued_before } => (name, String::new(), Some(issued_before.into())),
        Revoked::Token { id } => (String::new(), id, None),
    };
    pb::Revocation {
        subject,
        token_id,
        issued_before,
        until: revocation.until.map(Into::into),
        durable: revocation.durable,
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

    async fn revoke(&self, request: Request<pb::RevokeRequest>) -> Answer<pb::Revocation> {
        match allowed(request, Deed::Revoke) {
            Ok(request) => answer(self.take_back(request).await),
            Err(refusal) => answer(Err(refusal)),
        }
    }

    async fn list_revocations(
        &self,
        request: Request<pb::ListRevocationsRequest>,
    ) -> Answer<pb::ListRevocationsResponse> {
        answer(allowed(request, Deed::ListRevocations).map(|_| {
            let revocations = self.router.auth().revocations().into_iter().take(LISTED);
            pb::ListRevocationsResponse {
                revocations: revocations.map(listed).collect(),
            }
        }))
    }
}
