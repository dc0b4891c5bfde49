//! The `Sessions` service: calls without a connection.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::Outlet;
use crate::auth::{Deed, Identity, Permission, Place};
use crate::connection::{self, Connection, Drive, Incoming, Inlet};
use crate::error::{Reason, Refusal};
use crate::frame::pb::{self, sessions_server::Sessions};
use crate::frame::{Body, Frame, Rules, Str, check_labels, check_metadata, check_name, check_retention};
use crate::router::{Arrival, Asked, Batch, CLIENT_ROLE, Form, Interest, Joining, Query, Router, Sender, View};
use crate::session::{self, Said, Wanted};
use crate::transport::tcp;

/// The most that a page holds.
const PAGE: u32 = 1_000;
/// What a page holds where nothing is said.
const DEFAULT_PAGE: u32 = 100;

/// Serves `Sessions`.
#[derive(Clone)]
pub struct Calls {
    router: Router,
}

pub(super) type Answer<T> = Result<Response<T>, Status>;

/// Who calls.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Arc<Identity>, Refusal> {
    let identity = request.extensions().get::<Arc<Identity>>().cloned();
    identity.ok_or_else(|| {
        Refusal::new(
            Reason::Unauthenticated,
            "a call needs a credential: authorization: Bearer …",
        )
    })
}

/// The message of a call about a session, whose caller may do this there.
fn allowed<T>(request: Request<T>, deed: Deed, session: impl Fn(&T) -> &str) -> Result<T, Refusal> {
    let by = caller(&request)?;
    let message = request.into_inner();
    let session = session(&message);
    check_name("session_id", session)?;
    by.grants.check(deed, Place { session, role: "" })?;
    Ok(message)
}

pub(super) fn answer<T>(result: Result<T, Refusal>) -> Answer<T> {
    result.map(Response::new).map_err(|refusal| refusal.to_status())
}

impl Calls {
    /// The service.
    pub fn new(router: &Router) -> Self {
        Self { router: router.clone() }
    }

    async fn create_session(&self, request: Request<pb::CreateRequest>) -> Result<pb::Session, Refusal> {
        let by = caller(&request)?;
        let request = request.into_inner();
        let id = match request.session_id.as_str() {
            "" => crate::router::random_name(),
            id => Str::from(id),
        };
        check_name("session_id", &id)?;
        let said = said(&request)?;
        let place = Place { session: &id, role: "" };
        by.grants.check(Deed::CallCreate, place)?;
        self.router.create(&id, said, &by).await
    }

    async fn list_sessions(&self, request: &pb::ListRequest, by: &Identity) -> Result<pb::ListResponse, Refusal> {
        let arguments = format!(
            "{:?}{:?}{}{:?}{:?}{:?}",
            request.prefix,
            sorted(&request.metadata),
            request.state,
            sorted(&request.labels),
            request.created_after,
            request.updated_after
        );
        let after = token::open(&request.page_token, &arguments)?.unwrap_or_default();
        if !by.grants.allow_anywhere(Permission::Read) {
            return Ok(pb::ListResponse::default());
        }
        let may_see = |session: &str| by.grants.check(Deed::CallList, Place { session, role: "" }).is_ok();
        let created = time("created_after", request.created_after)?;
        let updated = time("updated_after", request.updated_after)?;
        let is_since = |since: Option<SystemTime>, time: Option<prost_types::Timestamp>| {
            let time = time.and_then(|time| SystemTime::try_from(time).ok());
            since.is_none_or(|since| time.is_some_and(|time| time >= since))
        };
        let is_wanted = |session: &pb::Session| {
            (request.state == 0 || request.state == session.state)
                && has_all(&session.metadata, &request.metadata)
                && has_all(&session.labels, &request.labels)
                && is_since(created, session.created_at)
                && is_since(updated, session.updated_at)
        };
        let count = page_size(request.page_size);
        let found = self.router.list((&request.prefix, &after), count, may_see, is_wanted);
        let (sessions, next) = found.await?;
        Ok(pb::ListResponse {
            sessions: sessions.into_iter().map(|session| self.shown(session, by)).collect(),
            next_page_token: next.map(|last| token::seal(&last, &arguments)).unwrap_or_default(),
        })
    }

    async fn update_session(&self, request: pb::UpdateRequest) -> Result<pb::Session, Refusal> {
        let metadata = Entries::new(request.set, ("unset", request.unset))?;
        let labels = Entries::new(request.set_labels, ("unset_labels", request.unset_labels))?;
        let retention = request.retention.as_ref().map(wanted).transpose()?;
        let changed = self.router.update(&request.session_id, &request.etag, |said| {
            metadata.change(&mut said.metadata);
            labels.change(&mut said.labels);
            said.retention = retention.unwrap_or(said.retention.take());
            check_metadata("set", entries(&said.metadata))?;
            check_labels("set_labels", entries(&said.labels))
        });
        changed.await
    }

    async fn publish_frame(
        &self,
        request: pb::PublishRequest,
        by: &Identity,
        deadline: Option<Duration>,
    ) -> Result<pb::PublishResponse, Refusal> {
        let mut frame = request.frame.ok_or_else(|| Refusal::field("frame", "required"))?;
        frame.check().and_then(|()| frame.check_types(self.router.types()))?;
        let name = if request.member_id.is_empty() {
            Str::from_static("api")
        } else {
            Str::from(request.member_id)
        };
        check_name("member_id", &name)?;
        check_name("session_id", &frame.session_id)?;
        if matches!(frame.body, Body::Control(_)) || !frame.reply_to.is_empty() {
            let text = "Publish sends plain frames and requests; control frames and replies need Attach";
            return Err(Refusal::new(Reason::UnexpectedFrame, text));
        }
        let mut asked = connection::asked(&self.router, by, &frame.session_id.clone(), &mut frame)?;
        if let Some(Asked { terms, .. }) = &mut asked {
            if terms.gone.is_some() {
                let text = "a call has no connection that could be lost; CANCEL_AFTER needs Attach";
                return Err(Refusal::field("options.on_disconnect", text));
            }
            terms.total = deadline.map_or(terms.total, |deadline| terms.total.min(deadline));
        }
        connection::check_send(by, &frame.session_id, &frame, asked.as_ref())?;
        let _held = self.router.load(&frame.session_id).await?;
        let (live, _) = self.router.open(&frame.session_id, by)?;
        let address = pb::Address {
            role: CLIENT_ROLE.to_string(),
            member_id: name.to_string(),
            subject: by.subject.to_string(),
            ..pb::Address::default()
        };
        let name = session::sender(&by.subject, &name);
        let sender = Sender {
            link: None,
            address: Arc::new(address),
            serves: &[],
            name: &name,
        };
        if frame.ephemeral {
            let mut batch = Batch::new(self.router.now());
            let id = frame.id.to_string();
            self.router.publish_ephemeral(&live, &sender, frame, &mut batch)?;
            batch.finish(None);
            return Ok(pb::PublishResponse {
                id,
                ..pb::PublishResponse::default()
            });
        }
        let (accepted, durable) = self.router.publish_call(&live, &sender, frame, asked)?;
        if let Some(durable) = durable {
            durable
                .await
                .map_err(|_| Refusal::new(Reason::LogUnavailable, "the log failed; the frame may be lost"))?;
        }
        Ok(pb::PublishResponse {
            id: accepted.id,
            seq: accepted.seq,
            duplicate: accepted.duplicate,
        })
    }

    async fn read_frames(&self, request: pb::ListFramesRequest) -> Result<pb::ListFramesResponse, Refusal> {
        if request.types.len() > 32 {
            return Err(Refusal::field("types", "at most 32"));
        }
        let arguments = format!(
            "{:?}{}{}{:?}{:?}{:?}{}{}",
            request.session_id,
            request.after_seq,
            request.before_seq,
            request.after_time,
            request.before_time,
            request.types,
            request.newest_first,
            request.fold
        );
        let resumed = token::open(&request.page_token, &arguments)?;
        let resumed = resumed.as_deref().and_then(|token| token.split_once('/'));
        let (epoch, seq) = match resumed {
            Some((epoch, seq)) => (epoch, Some(seq.parse::<u64>().map_err(|_| token::invalid())?)),
            None => ("", None),
        };
        let mut query = Query {
            after: request.after_seq,
            before: request.before_seq,
            since: time("after_time", request.after_time)?,
            until: time("before_time", request.before_time)?,
            types: request.types,
            newest_first: request.newest_first,
            fold: request.fold,
            count: page_size(request.page_size),
        };
        match seq {
            Some(seq) if query.newest_first => query.before = seq,
            Some(seq) => query.after = seq,
            None => {}
        }
        let listing = self.router.frames(&request.session_id, epoch, &query).await?;
        let next = listing
            .next
            .map(|next| token::seal(&format!("{}/{next}", listing.epoch), &arguments));
        Ok(pb::ListFramesResponse {
            frames: listing.frames.iter().map(|frame| frame.frame().clone()).collect(),
            next_page_token: next.unwrap_or_default(),
            epoch: listing.epoch.to_string(),
            head_seq: listing.head,
            first_seq: listing.first,
        })
    }

    async fn watch_session(&self, request: Request<pb::WatchRequest>) -> Result<WatchStream, Refusal> {
        let by = caller(&request)?;
        let arrival = Arrival {
            life: tcp::life(request.extensions(), &self.router),
            identity: Some(Arc::clone(&by)),
        };
        let request = allowed(request, Deed::CallWatch, |request| &request.session_id)?;
        if request.presence {
            let place = Place {
                session: &request.session_id,
                role: "",
            };
            by.grants.check(Deed::JoinPresence, place)?;
        }
        let start = connection::start(request.after_seq, &request.epoch, request.tail)?;
        let _held = self.router.load(&request.session_id).await?;
        let link = self.router.attach(Form::Wire, None, arrival)?;
        let connection = Connection::new(&self.router, Arc::clone(&link));
        let outlet = Outlet(Arc::clone(&link));
        let joining = Joining {
            name: link.name().clone(),
            role: Str::EMPTY,
            start,
            interest: Interest {
                presence: request.presence,
                requests: request.requests,
            },
            view: View::Watcher,
        };
        let mut batch = Batch::new(self.router.now());
        let joined = self
            .router
            .join(&link, &Str::from(request.session_id), joining, &Str::EMPTY, &mut batch);
        batch.finish(None);
        // The driver ends the connection if the stream is dropped here.
        tokio::spawn(tokio::task::coop::unconstrained(Drive::new(
            &self.router,
            connection,
            Silent,
        )));
        joined.map(|()| WatchStream {
            router: self.router.clone(),
            outlet,
        })
    }

    async fn cancel_request(&self, request: &pb::CancelRequest, by: &Identity) -> Result<pb::CancelResponse, Refusal> {
        check_name("session_id", &request.session_id)?;
        let _held = self.router.load(&request.session_id).await?;
        let mut batch = Batch::new(self.router.now());
        let cancel = pb::Cancel {
            request_id: request.request_id.clone(),
            reason: request.reason.clone(),
            grace: request.grace,
            attempt: 0,
        };
        let outcome = connection::cancel(&self.router, &request.session_id, &cancel, by, &mut batch)?;
        batch.finish(None);
        if outcome == pb::CancelOutcome::Accepted {
            self.router.flush().await?;
        }
        Ok(pb::CancelResponse {
            outcome: outcome as i32,
        })
    }

    async fn explain(&self, request: &pb::WhyRequest) -> Result<pb::WhyResponse, Refusal> {
        connection::check_request_id(&request.request_id)?;
        let _held = self.router.load(&request.session_id).await?;
        self.router.why(&request.session_id, &request.request_id)
    }

    /// A session as its readers are shown it.
    fn shown(&self, mut session: pb::Session, by: &Identity) -> pb::Session {
        if !self.router.shows_members(by, &session.session_id) {
            session.member_count = 0;
        }
        session
    }

    async fn describe_session(&self, request: Request<pb::GetRequest>) -> Result<pb::Session, Refusal> {
        let by = caller(&request)?;
        let id = allowed(request, Deed::CallGet, |request| &request.session_id)?.session_id;
        Ok(self.shown(self.router.describe(&id).await?, &by))
    }

    async fn close_session(&self, request: &pb::CloseRequest) -> Result<pb::Session, Refusal> {
        if request.reason.len() > 256 {
            return Err(Refusal::field("reason", "at most 256 bytes"));
        }
        self.router.close(&request.session_id, &request.reason).await
    }
}

/// What a caller leaves its call: `grpc-timeout`, at most eight digits and a unit
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>). One that cannot be read is none.
fn deadline(metadata: &tonic::metadata::MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count = digits.parse::<u64>().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[tonic::async_trait]
impl Sessions for Calls {
    type WatchStream = WatchStream;

    async fn create(&self, request: Request<pb::CreateRequest>) -> Answer<pb::Session> {
        answer(self.create_session(request).await)
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Answer<pb::Session> {
        answer(self.describe_session(request).await)
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Answer<pb::ListResponse> {
        match caller(&request) {
            Ok(by) => answer(self.list_sessions(request.get_ref(), &by).await),
            Err(refusal) => answer(Err(refusal)),
        }
    }

    async fn update(&self, request: Request<pb::UpdateRequest>) -> Answer<pb::Session> {
        match allowed(request, Deed::CallUpdate, |request| &request.session_id) {
            Ok(request) => answer(self.update_session(request).await),
            Err(refusal) => answer(Err(refusal)),
        }
    }

    async fn close(&self, request: Request<pb::CloseRequest>) -> Answer<pb::Session> {
        match allowed(request, Deed::CallClose, |request| &request.session_id) {
            Ok(request) => answer(self.close_session(&request).await),
            Err(refusal) => answer(Err(refusal)),
        }
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Answer<pb::DeleteResponse> {
        match allowed(request, Deed::CallDelete, |request| &request.session_id) {
            Ok(request) => {
                let deleted = self.router.delete(&request.session_id).await;
                answer(deleted.map(|()| pb::DeleteResponse {}))
            }
            Err(refusal) => answer(Err(refusal)),
        }
    }

    async fn publish(&self, request: Request<pb::PublishRequest>) -> Answer<pb::PublishResponse> {
        let deadline = deadline(request.metadata());
        let by = caller(&request).map_err(|refusal| refusal.to_status())?;
        answer(self.publish_frame(request.into_inner(), &by, deadline).await)
    }

    async fn list_frames(&self, request: Request<pb::ListFramesRequest>) -> Answer<pb::ListFramesResponse> {
        match allowed(request, Deed::CallListFrames, |request| &request.session_id) {
            Ok(request) => answer(self.read_frames(request).await),
            Err(refusal) => answer(Err(refusal)),
        }
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Answer<WatchStream> {
        answer(self.watch_session(request).await)
    }

    async fn why(&self, request: Request<pb::WhyRequest>) -> Answer<pb::WhyResponse> {
        match allowed(request, Deed::CallWhy, |request| &request.session_id) {
            Ok(request) => answer(self.explain(&request).await),
            Err(refusal) => answer(Err(refusal)),
        }
    }

    async fn cancel(&self, request: Request<pb::CancelRequest>) -> Answer<pb::CancelResponse> {
        match caller(&request) {
            Ok(by) => answer(self.cancel_request(request.get_ref(), &by).await),
            Err(refusal) => answer(Err(refusal)),
        }
    }
}

/// The frames that a watcher is shown.
pub struct WatchStream {
    router: Router,
    outlet: Outlet,
}

impl Stream for WatchStream {
    type Item = Result<Frame, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.outlet.poll_bytes(cx).map(|next| {
            next.map(|bytes| {
                let rules = Rules {
                    ignore_unknown: true,
                    types: self.router.types(),
                };
                Frame::from_wire(&bytes?, &rules).map_err(|bad| bad.refusal.to_status())
            })
        })
    }
}

/// A peer that never says anything.
struct Silent;

impl Inlet for Silent {
    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Incoming> {
        Poll::Pending
    }

    fn trust(&mut self) {}

    fn poll_linger(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

fn page_size(asked: u32) -> usize {
    if asked == 0 {
        DEFAULT_PAGE as usize
    } else {
        asked.min(PAGE) as usize
    }
}

fn sorted(map: &HashMap<String, String>) -> BTreeMap<&String, &String> {
    map.iter().collect()
}

/// Entries to add and to remove.
struct Entries {
    set: HashMap<String, String>,
    unset: Vec<String>,
}

impl Entries {
    fn new(set: HashMap<String, String>, (field, unset): (&'static str, Vec<String>)) -> Result<Self, Refusal> {
        match unset.iter().find(|key| set.contains_key(*key)) {
            Some(key) => Err(Refusal::field(field, format!("{key:?} is to be both set and unset"))),
            None => Ok(Self { set, unset }),
        }
    }

    fn change(self, map: &mut BTreeMap<String, String>) {
        map.extend(self.set);
        for key in &self.unset {
            map.remove(key);
        }
    }
}

fn entries<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> impl Iterator<Item = (&'a str, &'a str)> {
    map.into_iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

fn has_all(map: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| map.get(key) == Some(value))
}

/// What is said of a session from the start.
pub(super) fn said(request: &pb::CreateRequest) -> Result<Said, Refusal> {
    check_metadata("metadata", entries(&request.metadata))?;
    check_labels("labels", entries(&request.labels))?;
    Ok(Said {
        metadata: request.metadata.clone().into_iter().collect(),
        labels: request.labels.clone().into_iter().collect(),
        retention: request.retention.as_ref().map(wanted).transpose()?.flatten(),
    })
}

/// How a session is to be kept; nothing if it is to be kept as the settings say.
fn wanted(retention: &pb::Retention) -> Result<Option<Box<Wanted>>, Refusal> {
    check_retention(retention)?;
    let span = |span: Option<prost_types::Duration>| span.and_then(|span| Duration::try_from(span).ok());
    let wanted = Wanted {
        age: span(retention.max_age),
        frames: retention.max_frames,
        bytes: retention.max_bytes,
        idle: span(retention.idle),
    };
    Ok((wanted != Wanted::default()).then(|| Box::new(wanted)))
}

fn time(field: &'static str, time: Option<prost_types::Timestamp>) -> Result<Option<SystemTime>, Refusal> {
    time.map(|time| SystemTime::try_from(time).map_err(|_| Refusal::field(field, "not a time")))
        .transpose()
}

/// Page tokens: a position, tied to the arguments that it belongs to. It may name what the caller is not to know, so only this
/// process can read or make one.
mod token {
    use std::sync::LazyLock;

    use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

    use super::{Engine, Reason, Refusal, URL_SAFE_NO_PAD};

    static KEY: LazyLock<RandomizedNonceKey> = LazyLock::new(|| {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).expect("the system must have random numbers");
        RandomizedNonceKey::new(&AES_256_GCM, &key).expect("the key must have its length")
    });

    pub fn seal(position: &str, arguments: &str) -> String {
        let mut sealed = position.as_bytes().to_vec();
        let nonce = KEY.seal_in_place_append_tag(Aad::from(arguments), &mut sealed);
        let nonce = nonce.expect("a short text must be sealed");
        URL_SAFE_NO_PAD.encode([&nonce.as_ref()[..], &sealed].concat())
    }

    pub fn open(token: &str, arguments: &str) -> Result<Option<String>, Refusal> {
        if token.is_empty() {
            return Ok(None);
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN).ok_or_else(invalid)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| invalid())?;
        let position = KEY.open_in_place(nonce, Aad::from(arguments), sealed);
        let position = position.map_err(|_| invalid())?.to_vec();
        String::from_utf8(position).map(Some).map_err(|_| invalid())
    }

    pub fn invalid() -> Refusal {
        Refusal::new(
            Reason::InvalidPageToken,
            "the page token is not one that this call gave out for these arguments since the gateway started",
        )
    }
}
