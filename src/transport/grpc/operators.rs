//! The `Admin` service: what operators see and do.

use std::io::{self, Write};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Status, Streaming};

use super::calls::{Answer, answer, caller, said};
use crate::auth::{Deed, Place, Revocation, Revoked};
use crate::error::{Reason, Refusal};
use crate::frame::pb::{self, admin_server::Admin};
use crate::frame::{Str, check_name};
use crate::router::{Importing, Router};

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

/// Pieces of a backup that wait for whoever asked for it, and sessions and frames that do.
const WAITING: usize = 16;
/// Bytes of a piece.
const PIECE: usize = 64 << 10;
/// How long whoever asked for a backup may take for a piece of it.
const STALLED: Duration = Duration::from_secs(10);

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Where a backup goes: to the one who asked for it, who may be slower than the disk.
struct Pieces(mpsc::Sender<Result<pb::BackupPiece, Status>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        let data = Bytes::copy_from_slice(piece);
        let send = self.0.send_timeout(Ok(pb::BackupPiece { data }), STALLED);
        // The database cannot be opened anew while it is being copied: nobody may take for ever.
        let sent = tokio::runtime::Handle::current().block_on(send);
        sent.map_err(|_| {
            io::Error::new(
                io::ErrorKind::BrokenPipe,
                "whoever asked for it is gone, or reads nothing",
            )
        })?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Operators {
    fn back_up(&self) -> Answers<pb::BackupPiece> {
        let (send, pieces) = mpsc::channel(WAITING);
        let router = self.router.clone();
        tokio::spawn(async move {
            match router.backup(Box::new(Pieces(send.clone()))).await {
                Ok(contents) => tracing::info!(bytes = contents.bytes, sessions = contents.sessions, "backed up"),
                Err(refusal) => {
                    tracing::warn!(%refusal, "a backup was broken off");
                    // One that is gone need not be told.
                    drop(send.send(Err(refusal.to_status())).await);
                }
            }
        });
        Box::pin(ReceiverStream::new(pieces))
    }

    fn export(&self, request: pb::ExportRequest) -> Answers<pb::Exported> {
        let (send, exported) = mpsc::channel(WAITING);
        let router = self.router.clone();
        tokio::spawn(async move {
            if let Err(refusal) = export(&router, &request.prefix, &send).await {
                drop(send.send(Err(refusal.to_status())).await);
            }
        });
        Box::pin(ReceiverStream::new(exported))
    }

    async fn import(&self, mut exported: Streaming<pb::Exported>) -> Result<pb::ImportResponse, Refusal> {
        let mut imported = pb::ImportResponse::default();
        let mut current = None;
        let outcome = loop {
            match exported.next().await {
                None => break Ok(()),
                Some(Err(status)) => break Err(Refusal::new(Reason::MalformedFrame, status.message())),
                Some(Ok(next)) => {
                    if let Err(refusal) = self.import_one(next, &mut current, &mut imported).await {
                        break Err(refusal);
                    }
                }
            }
        };
        // One that is dropped here is removed.
        outcome?;
        if let Some(last) = current {
            self.router.imported(last).await?;
        }
        Ok(imported)
    }

    async fn import_one(
        &self,
        next: pb::Exported,
        current: &mut Option<Importing>,
        imported: &mut pb::ImportResponse,
    ) -> Result<(), Refusal> {
        if let Some(next) = next.session {
            let session = next.session.clone().unwrap_or_default();
            check_name("session.session_id", &session.session_id)?;
            let said = said(&pb::CreateRequest {
                metadata: session.metadata,
                labels: session.labels,
                retention: next.wants,
                ..pb::CreateRequest::default()
            })?;
            if let Some(before) = current.take() {
                self.router.imported(before).await?;
            }
            *current = Some(self.router.import(&next, said).await?);
            imported.sessions += 1;
            return Ok(());
        }
        let frame = next
            .frame
            .ok_or_else(|| Refusal::field("frame", "an entry has a session or a frame"))?;
        let Some(importing) = current else {
            return Err(Refusal::field("frame", "comes after the session that it is of"));
        };
        self.router.import_frame(importing, frame).await?;
        imported.frames += 1;
        Ok(())
    }
}

/// Sends what there is to export, until nobody wants it any more.
async fn export(router: &Router, prefix: &str, to: &mpsc::Sender<Result<pb::Exported, Status>>) -> Result<(), Refusal> {
    let mut after = Str::EMPTY;
    loop {
        let (sessions, next) = router.next_sessions(prefix, &after).await?;
        for session in sessions {
            let Some((live, exported)) = router.export(&session.session_id).await? else {
                continue;
            };
            let extent = exported.session.as_ref();
            let (mut from, end) = extent.map_or((1, 0), |session| (session.first_seq, session.head_seq));
            let exported = pb::Exported {
                session: Some(exported),
                frame: None,
            };
            if to.send(Ok(exported)).await.is_err() {
                return Ok(());
            }
            while from <= end {
                let frames = router.export_frames(&live, from, end).await?;
                let Some(last) = frames.last() else { break };
                // What was trimmed meanwhile would leave a hole.
                if frames[0].seq != from {
                    let text = format!("session {} was trimmed while it was read; export it again", live.id());
                    return Err(Refusal::new(Reason::LogUnavailable, text));
                }
                from = last.seq + 1;
                for frame in frames {
                    let exported = pb::Exported {
                        session: None,
                        frame: Some(frame.frame().clone()),
                    };
                    if to.send(Ok(exported)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        match next {
            Some(next) => after = next,
            None => return Ok(()),
        }
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
    type BackupStream = Answers<pb::BackupPiece>;
    type ExportStream = Answers<pb::Exported>;

    async fn backup(&self, request: Request<pb::BackupRequest>) -> Answer<Self::BackupStream> {
        answer(allowed(request, Deed::Backup).map(|_| self.back_up()))
    }

    async fn export(&self, request: Request<pb::ExportRequest>) -> Answer<Self::ExportStream> {
        answer(allowed(request, Deed::Export).map(|request| self.export(request)))
    }

    async fn import(&self, request: Request<Streaming<pb::Exported>>) -> Answer<pb::ImportResponse> {
        match allowed(request, Deed::Import) {
            Ok(exported) => answer(self.import(exported).await),
            Err(refusal) => answer(Err(refusal)),
        }
    }

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
