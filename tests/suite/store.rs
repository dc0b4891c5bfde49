//! A log that fails, and one that takes its time.

use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use twinspan::error::Reason;
use twinspan::frame::{Control, Str, pb};
use twinspan::log::{
    Appended, Commit, Contents, Entry, Error, Keep, Known, Limit, Loaded, Log, Memory, Note, Page, Replayed, Retention,
    Settled, Settlements, Settler, Usage, Wait,
};

use crate::harness::*;

/// The memory store, whose appends fail or wait on cue.
struct Faulty {
    inner: Memory,
    broken: AtomicBool,
    slow: AtomicBool,
    /// The session of which an append is refused, after so many more.
    refuses: Mutex<Option<(Str, usize)>>,
    waiting: Mutex<Vec<Settled>>,
    settler: Settler,
    settlements: Mutex<Option<Settlements>>,
}

impl Faulty {
    fn new() -> Arc<Self> {
        let retention = Retention {
            age: Duration::from_secs(24 * 60 * 60),
            frames: 1_000,
            bytes: 1 << 20,
            total_bytes: 1 << 24,
        };
        let (settler, settlements) = Settlements::new();
        Arc::new(Self {
            settler,
            settlements: Mutex::new(Some(settlements)),
            inner: Memory::new(retention),
            broken: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            refuses: Mutex::default(),
            waiting: Mutex::default(),
        })
    }

    /// The session's next append is refused.
    fn refuse_once(&self, session: &str) {
        self.refuse_after(session, 0);
    }

    /// The session's next append but so many is refused.
    fn refuse_after(&self, session: &str, count: usize) {
        *self.refuses.lock().unwrap() = Some((session.into(), count));
    }

    fn commit(&self, result: &Result<(), Error>) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        let settled = waiting.into_iter().map(|waiting| Settled {
            result: result.clone(),
            ..waiting
        });
        self.settler.tell(settled.collect());
    }
}

fn unavailable() -> Error {
    Error::Unavailable("on cue".to_owned())
}

impl Log for Faulty {
    fn is_lasting(&self) -> bool {
        self.inner.is_lasting()
    }

    fn settlements(&self) -> Settlements {
        self.settlements.lock().unwrap().take().unwrap()
    }

    fn create(&self, session: &Str, data: Bytes, first: u64) -> Result<u64, Error> {
        self.inner.create(session, data, first)
    }

    fn load(&self, session: &Str) -> Wait<Option<Loaded>> {
        self.inner.load(session)
    }

    fn unload(&self, session: &Str, data: Option<Bytes>) {
        self.inner.unload(session, data);
    }

    fn save(&self, session: &Str, data: Bytes) -> Result<Wait<()>, Error> {
        self.inner.save(session, data)
    }

    fn note(&self, session: &Str, note: Note) -> Result<(), Error> {
        self.inner.note(session, note)
    }

    fn append(&self, session: &Str, entry: Entry) -> Result<Appended, Error> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(unavailable());
        }
        let mut refuses = self.refuses.lock().unwrap();
        match &mut *refuses {
            Some((refused, 0)) if refused == session => {
                *refuses = None;
                return Err(unavailable());
            }
            Some((refused, count)) if refused == session => *count -= 1,
            _ => {}
        }
        let seq = entry.frame.seq;
        let appended = self.inner.append(session, entry)?;
        if !self.slow.load(Ordering::SeqCst) {
            return Ok(appended);
        }
        self.waiting.lock().unwrap().push(Settled {
            session: session.clone(),
            life: 0,
            seq,
            first: appended.first,
            result: Ok(()),
        });
        Ok(Appended {
            commit: Commit::Later,
            ..appended
        })
    }

    fn read(&self, session: &Str, from: u64, limit: Limit) -> Wait<Page> {
        match self.broken.load(Ordering::SeqCst) {
            true => Box::pin(std::future::ready(Err(unavailable()))),
            false => self.inner.read(session, from, limit),
        }
    }

    fn read_back(&self, session: &Str, seqs: Range<u64>, limit: Limit) -> Wait<Page> {
        self.inner.read_back(session, seqs, limit)
    }

    fn replay(&self, session: &Str, seqs: Range<u64>, limit: Limit) -> Wait<Vec<Replayed>> {
        self.inner.replay(session, seqs, limit)
    }

    fn fold(&self, session: &Str, request: &str, from: u64, to: u64) {
        self.inner.fold(session, request, from, to);
    }

    fn retain(&self, session: &Str, keep: Keep) {
        self.inner.retain(session, keep);
    }

    fn trim(&self, session: &Str, now: SystemTime) -> u64 {
        self.inner.trim(session, now)
    }

    fn delete(&self, session: &Str) -> Result<Wait<()>, Error> {
        self.inner.delete(session)
    }

    fn list(&self, prefix: &str, after: &str, count: usize) -> Wait<Vec<Known>> {
        self.inner.list(prefix, after, count)
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn check(&self) -> Result<(), Error> {
        match self.broken.load(Ordering::SeqCst) {
            true => Err(unavailable()),
            false => Ok(()),
        }
    }

    fn backup(&self, out: Box<dyn Write + Send>) -> Wait<Contents> {
        self.inner.backup(out)
    }

    fn flush(&self) -> Wait<()> {
        self.inner.flush()
    }

    fn close(&self) -> Wait<()> {
        self.inner.close()
    }
}

#[tokio::test]
async fn a_log_that_refuses_changes_nothing() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    let mut bob = gateway.member(Face::Grpc, "s", "bob").await;
    ann.send(text("s", "1", "before")).await;
    ann.acked("1").await;
    log.broken.store(true, Ordering::SeqCst);
    ann.send(text("s", "2", "meanwhile")).await;
    let refused = ann.refusal().await;
    assert!(is(&refused, Reason::LogUnavailable) && refused.retryable);
    ann.send(request("s", "q", "brain")).await;
    assert!(is(&ann.refusal().await, Reason::LogUnavailable));
    log.broken.store(false, Ordering::SeqCst);
    ann.send(text("s", "2", "again")).await;
    assert_eq!(ann.acked("2").await.seq, 2, "the refused frame left no trace");
    assert_eq!(bob.logged().await.id, "1");
    assert_eq!(bob.logged().await.id, "2");
    gateway.stopped().await;
}

#[tokio::test]
async fn an_end_that_the_log_refuses_comes_later() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    worker
        .until("the request", |frame| (frame.attempt > 0).then_some(()))
        .await;
    log.broken.store(true, Ordering::SeqCst);
    let mut count = gateway.router.link_count();
    drop(worker);
    patiently("the worker to be gone", count.wait_for(|count| *count == 1))
        .await
        .unwrap();
    log.broken.store(false, Ordering::SeqCst);
    assert!(is(error(&ann.answer("q").await.1), Reason::WorkerLost));
    gateway.stopped().await;
}

#[tokio::test]
async fn nobody_sees_what_is_not_durable() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    let mut bob = gateway.member(Face::Grpc, "s", "bob").await;
    log.slow.store(true, Ordering::SeqCst);
    ann.send(text("s", "1", "wait")).await;
    ann.send(request("s", "q", "brain")).await;
    for peer in [&mut ann, &mut bob, &mut worker] {
        peer.hears_nothing().await;
    }
    assert_eq!(log.waiting.lock().unwrap().len(), 2);
    log.commit(&Ok(()));
    assert_eq!(ann.acked("q").await.seq, 2);
    assert_eq!(bob.logged().await.id, "1");
    assert_eq!(bob.logged().await.id, "q");
    worker
        .until("the request", |frame| (frame.attempt > 0).then_some(()))
        .await;
    gateway.stopped().await;
}

#[tokio::test]
async fn what_is_not_durable_is_news_to_whoever_joins() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    log.slow.store(true, Ordering::SeqCst);
    ann.send(text("s", "1", "wait")).await;
    ann.send(text("s", "1", "wait")).await;
    ann.hears_no_ack().await;
    let mut bob = gateway.peer(Face::Grpc).await;
    assert_eq!(bob.join("s", Default::default()).await.head_seq, 0);
    log.commit(&Ok(()));
    assert_eq!(bob.logged().await.seq, 1);
    assert!(!ann.acked("1").await.duplicate);
    gateway.stopped().await;
}

#[tokio::test]
async fn timeouts_outlast_a_log_that_refuses() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    let mut bob = gateway.member(Face::Grpc, "t", "bob").await;
    ann.send(hasty(request("s", "q", "brain"), 50, 0)).await;
    ann.acked("q").await;
    bob.send(hasty(request("t", "r", "brain"), 200, 0)).await;
    bob.acked("r").await;
    log.refuse_once("s");
    // Another session's timer goes on meanwhile.
    assert!(is(error(&bob.answer("r").await.1), Reason::NoWorker));
    assert!(is(error(&ann.answer("q").await.1), Reason::NoWorker));
    gateway.stopped().await;
}

#[tokio::test]
async fn a_request_that_replaces_and_is_refused() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    ann.send(request("s", "old", "brain")).await;
    worker.handed().await;
    // The end of the old one is logged, the new one is not.
    log.refuse_after("s", 1);
    ann.send(with(request("s", "new", "brain"), alongside(pb::Concurrency::Replace)))
        .await;
    assert!(is(&ann.refusal().await, Reason::LogUnavailable));
    let mut bob = gateway.reader(Face::Grpc, "s").await;
    assert!(is(error(&bob.answer("old").await.1), Reason::RequestReplaced));
    assert_eq!(worker.stopped().await.request_id, "old");
    // Its worker has room.
    ann.send(with(request("s", "new", "brain"), alongside(pb::Concurrency::Replace)))
        .await;
    assert_eq!(worker.handed().await.id, "new");
    gateway.stopped().await;
}

#[tokio::test]
async fn a_loss_outlasts_a_log_that_refuses() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let mut first = gateway.worker(Face::Grpc, "brain", 1).await;
    let mut second = gateway.worker(Face::Json, "hands", 1).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    ann.send(with(request("s", "q", "brain"), on_loss(pb::WorkerLoss::Restart)))
        .await;
    assert_eq!(first.handed().await.attempt, 1);
    log.refuse_once("s");
    first.cut().await;
    second
        .serve(pb::Serve {
            role: "brain".to_owned(),
            ..pb::Serve::default()
        })
        .await;
    let again = second.handed().await;
    assert_eq!((again.id.as_str(), again.attempt), ("q", 2));
    second.send(last(&again, "done")).await;
    assert_eq!(ann.answer("q").await.0, "done");
    gateway.stopped().await;
}

#[tokio::test]
async fn a_commit_that_fails_leaves_workers_their_room() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    log.slow.store(true, Ordering::SeqCst);
    worker.send(last(&asked, "done")).await;
    worker.hears_nothing().await;
    log.commit(&Err(unavailable()));
    log.slow.store(false, Ordering::SeqCst);
    ann.until("the end of the session", |frame| {
        matches!(control(frame), Some(Control::Left(_))).then_some(())
    })
    .await;
    let mut bob = gateway.member(Face::Json, "t", "bob").await;
    bob.send(request("t", "r", "brain")).await;
    assert_eq!(worker.handed().await.id, "r");
    gateway.stopped().await;
}

#[tokio::test]
async fn a_session_that_is_deleted_before_a_commit_leaves_nobody_waiting() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let mut worker = gateway.worker(Face::Grpc, "brain", 1).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    ann.send(request("s", "q", "brain")).await;
    let asked = worker.handed().await;
    log.slow.store(true, Ordering::SeqCst);
    worker.send(last(&asked, "done")).await;
    worker.hears_nothing().await;
    let delete = pb::DeleteRequest {
        session_id: "s".to_owned(),
    };
    gateway.sessions().await.delete(delete).await.unwrap();
    assert!(is(&worker.refusal().await, Reason::SessionDeleted));
    log.slow.store(false, Ordering::SeqCst);
    // What comes too late finds nothing.
    log.commit(&Ok(()));
    let mut bob = gateway.member(Face::Json, "t", "bob").await;
    bob.send(request("t", "r", "brain")).await;
    let asked = worker.handed().await;
    assert_eq!(asked.id, "r");
    worker.send(last(&asked, "done")).await;
    assert_eq!(bob.answer("r").await.0, "done");
    // Its half of the stream is closed once nothing is owed to it.
    worker.half_close();
    worker.ended().await;
    gateway.stopped().await;
}

#[tokio::test]
async fn the_old_attempt_is_stopped_before_the_new_one_is_handed() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let serve = || pb::Serve {
        role: "brain".to_owned(),
        worker_id: "w".to_owned(),
        max_in_flight: 2,
        ..pb::Serve::default()
    };
    let (mut worker, _) = gateway.serving(Face::Grpc, serve()).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    ann.send(with(request("s", "q", "brain"), on_loss(pb::WorkerLoss::Restart)))
        .await;
    worker.handed().await;
    log.slow.store(true, Ordering::SeqCst);
    // It is the same one, and knows of nothing.
    let (mut worker, _) = gateway.serving(Face::Json, serve()).await;
    log.commit(&Ok(()));
    let mut told = Vec::new();
    for _ in 0..2 {
        let what = worker.until("either", |frame| match control(frame) {
            Some(Control::Cancel(cancel)) => Some((cancel.reason.clone(), cancel.attempt)),
            _ => (frame.attempt > 0 && frame.reply_to.is_empty()).then(|| ("handed".to_owned(), frame.attempt)),
        });
        told.push(what.await);
    }
    assert_eq!(told, [("SUPERSEDED".to_owned(), 1), ("handed".to_owned(), 2)]);
    gateway.stopped().await;
}

#[tokio::test]
async fn a_commit_that_fails_is_told_to_all() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    let mut ann = gateway.member(Face::Json, "s", "ann").await;
    log.slow.store(true, Ordering::SeqCst);
    ann.send(text("s", "1", "lost")).await;
    ann.hears_nothing().await;
    log.commit(&Err(unavailable()));
    let refused = ann.refusal().await;
    assert!(is(&refused, Reason::LogUnavailable));
    let left = ann.next().await;
    assert!(
        matches!(control(&left), Some(twinspan::frame::Control::Left(_))),
        "{left:?}"
    );
    gateway.stopped().await;
}

#[tokio::test]
async fn health_can_be_red() {
    let log = Faulty::new();
    let gateway = Gateway::with_log(Arc::clone(&log) as Arc<dyn Log>).await;
    assert_eq!(gateway.router.check(), Ok(()));
    assert_eq!(health(gateway.address, "/healthz").await, 200);
    assert_eq!(health(gateway.address, "/readyz").await, 200);
    assert_eq!(health(gateway.address, "/nothing").await, 404);
    log.broken.store(true, Ordering::SeqCst);
    assert_eq!(health(gateway.address, "/healthz").await, 503);
    assert_eq!(health(gateway.address, "/readyz").await, 503);
    gateway.stopped().await;
}
