//! What is kept of sessions and open requests where they outlive the process: the words that the log carries without looking
//! at them.
//!
//! Owns their form, which is protobuf, so that a later version can add to it and an older one skip what it does not know. It
//! must never hold what a connection or a clock of this process means.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message;

use crate::frame::Str;
use crate::limits::Concurrency;
use crate::log;
use crate::session::{Loss, Profile, Said, Standing, State, Terms, Wanted};

/// A session.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Kept {
    #[prost(string, tag = "1")]
    pub epoch: String,
    /// The subject that brought it into being.
    #[prost(string, tag = "2")]
    pub owner: String,
    #[prost(bool, tag = "3")]
    closed: bool,
    #[prost(btree_map = "string, string", tag = "4")]
    metadata: BTreeMap<String, String>,
    #[prost(message, optional, tag = "5")]
    created_at: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "6")]
    updated_at: Option<prost_types::Timestamp>,
    #[prost(uint64, tag = "7")]
    revision: u64,
    #[prost(message, optional, tag = "8")]
    last_used: Option<prost_types::Timestamp>,
    #[prost(btree_map = "string, string", tag = "9")]
    labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "10")]
    retention: Option<KeptRetention>,
}

/// How a session wants to be kept.
#[derive(Clone, Copy, PartialEq, Message)]
struct KeptRetention {
    #[prost(message, optional, tag = "1")]
    age: Option<prost_types::Duration>,
    #[prost(uint64, optional, tag = "2")]
    frames: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    bytes: Option<u64>,
    #[prost(message, optional, tag = "4")]
    idle: Option<prost_types::Duration>,
}

impl Kept {
    pub fn new((epoch, owner): (&str, &str), profile: &Profile, last_used: SystemTime) -> Self {
        Self {
            epoch: epoch.to_owned(),
            owner: owner.to_owned(),
            closed: profile.state == State::Closed,
            metadata: profile.said().metadata.clone(),
            labels: profile.said().labels.clone(),
            retention: profile.said().retention.as_deref().map(|wanted| KeptRetention {
                age: wanted.age.and_then(span),
                frames: wanted.frames,
                bytes: wanted.bytes,
                idle: wanted.idle.and_then(span),
            }),
            created_at: Some(profile.created_at.into()),
            updated_at: Some(profile.updated_at.into()),
            revision: profile.revision,
            last_used: Some(last_used.into()),
        }
    }

    pub fn profile(&self) -> Profile {
        Profile {
            state: if self.closed { State::Closed } else { State::Open },
            said: Said {
                metadata: self.metadata.clone(),
                labels: self.labels.clone(),
                retention: self.retention.map(|kept| {
                    Box::new(Wanted {
                        age: duration(kept.age),
                        frames: kept.frames,
                        bytes: kept.bytes,
                        idle: duration(kept.idle),
                    })
                }),
            }
            .boxed(),
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
            revision: self.revision,
        }
    }

    pub fn last_used(&self) -> SystemTime {
        time(self.last_used)
    }

    pub fn write(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    pub fn read(session: &str, data: &[u8]) -> Result<Self, log::Error> {
        Self::decode(data).map_err(|error| unreadable(&format!("what is kept of session {session}"), &error))
    }
}

/// What is kept of a session of which nothing but its frames is known: it is open, nobody's, and has an epoch of its own.
pub fn unknown(epoch: &str, now: SystemTime) -> Bytes {
    Kept::new((epoch, ""), &Profile::new(now), now).write()
}

/// An open request.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeptRequest {
    #[prost(string, tag = "1")]
    pub role: String,
    #[prost(string, tag = "2")]
    pub asker: String,
    #[prost(message, optional, tag = "3")]
    accepted_at: Option<prost_types::Timestamp>,
    #[prost(uint32, tag = "4")]
    pub attempts: u32,
    #[prost(message, optional, tag = "5")]
    pub holder: Option<KeptHolder>,
    #[prost(string, optional, tag = "6")]
    pub cancelled: Option<String>,
    #[prost(message, optional, tag = "7")]
    terms: Option<KeptTerms>,
    #[prost(string, tag = "8")]
    pub id: String,
}

/// The worker that has a request.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeptHolder {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub subject: String,
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
}

/// How a request is to be carried out.
#[derive(Clone, PartialEq, Message)]
struct KeptTerms {
    #[prost(message, optional, tag = "1")]
    accept: Option<prost_types::Duration>,
    #[prost(message, optional, tag = "2")]
    first_chunk: Option<prost_types::Duration>,
    #[prost(message, optional, tag = "3")]
    idle: Option<prost_types::Duration>,
    #[prost(message, optional, tag = "4")]
    total: Option<prost_types::Duration>,
    #[prost(uint32, tag = "5")]
    loss: u32,
    #[prost(uint32, tag = "6")]
    max_attempts: u32,
    #[prost(message, optional, tag = "7")]
    gone: Option<prost_types::Duration>,
    #[prost(string, tag = "8")]
    affinity: String,
    #[prost(uint32, tag = "9")]
    concurrency: u32,
}

const LOSSES: [Loss; 3] = [Loss::Fail, Loss::RetryIfSilent, Loss::Restart];
const CONCURRENCIES: [Concurrency; 4] = [
    Concurrency::Parallel,
    Concurrency::Queue,
    Concurrency::Reject,
    Concurrency::Replace,
];

impl KeptRequest {
    pub fn new(standing: &Standing<'_>, holder: Option<KeptHolder>) -> Self {
        let terms = standing.terms;
        Self {
            role: standing.role.to_string(),
            asker: standing.asker.to_string(),
            accepted_at: Some(standing.accepted_at.into()),
            attempts: standing.attempts,
            holder,
            cancelled: standing.cancelled.map(str::to_owned),
            id: standing.id.to_string(),
            terms: Some(KeptTerms {
                accept: span(terms.accept),
                first_chunk: terms.first_chunk.and_then(span),
                idle: terms.idle.and_then(span),
                total: span(terms.total),
                loss: place(&LOSSES, terms.loss),
                max_attempts: terms.max_attempts,
                gone: terms.gone.and_then(span),
                affinity: terms.affinity.to_string(),
                concurrency: place(&CONCURRENCIES, terms.concurrency),
            }),
        }
    }

    pub fn accepted_at(&self) -> SystemTime {
        time(self.accepted_at)
    }

    pub fn terms(&self) -> Terms {
        let none = KeptTerms::default();
        let terms = self.terms.as_ref().unwrap_or(&none);
        Terms {
            accept: duration(terms.accept).unwrap_or_default(),
            first_chunk: duration(terms.first_chunk),
            idle: duration(terms.idle),
            total: duration(terms.total).unwrap_or_default(),
            loss: at(&LOSSES, terms.loss),
            max_attempts: terms.max_attempts,
            gone: duration(terms.gone),
            affinity: Str::from(terms.affinity.as_str()),
            concurrency: at(&CONCURRENCIES, terms.concurrency),
        }
    }

    pub fn write(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    pub fn read(session: &str, seq: u64, content: &[u8]) -> Result<Self, log::Error> {
        let what = || format!("what is kept of the request at {seq} of session {session}");
        Self::decode(content).map_err(|error| unreadable(&what(), &error))
    }
}

fn unreadable(what: &str, error: &prost::DecodeError) -> log::Error {
    log::Error::Corrupt(format!("{what} cannot be read: {error}"))
}

fn time(time: Option<prost_types::Timestamp>) -> SystemTime {
    time.and_then(|time| SystemTime::try_from(time).ok())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn duration(span: Option<prost_types::Duration>) -> Option<Duration> {
    span.and_then(|span| Duration::try_from(span).ok())
}

fn span(span: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(span).ok()
}

/// Where a value is in the list of all, which later versions only add to.
fn place<T: PartialEq>(all: &[T], value: T) -> u32 {
    all.iter().position(|other| *other == value).map_or(0, |at| at as u32)
}

fn at<T: Copy>(all: &[T], place: u32) -> T {
    all.get(place as usize).copied().unwrap_or(all[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Holder, WorkerKey};

    #[test]
    fn what_is_kept_comes_back() {
        let now = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let said = Said {
            metadata: [("a".to_owned(), "ü".to_owned())].into(),
            labels: [("tier".to_owned(), "gold".to_owned())].into(),
            retention: Some(Box::new(Wanted {
                age: Some(Duration::from_secs(60)),
                frames: Some(5),
                ..Wanted::default()
            })),
        };
        let profile = Profile::new(now)
            .saying(said, now + Duration::from_secs(1))
            .closed(now + Duration::from_secs(2));
        let kept = Kept::new(("epoch", "ann"), &profile, now);
        let read = Kept::read("s", &kept.write()).unwrap();
        assert_eq!(read, kept);
        assert_eq!((read.profile(), read.last_used()), (profile, now));
        assert!(matches!(Kept::read("s", &[255]), Err(log::Error::Corrupt(_))));
    }

    #[test]
    fn requests_that_are_kept_come_back() {
        for (loss, concurrency) in LOSSES.into_iter().zip(CONCURRENCIES.into_iter().rev()) {
            let terms = Terms {
                accept: Duration::from_millis(1_500),
                first_chunk: None,
                idle: Some(Duration::from_nanos(7)),
                total: Duration::from_secs(86_400),
                loss,
                max_attempts: 3,
                gone: Some(Duration::ZERO),
                affinity: "key".into(),
                concurrency,
            };
            let standing = Standing {
                id: &"q".into(),
                seq: 5,
                role: &"brain".into(),
                asker: &"ann\ntab".into(),
                terms: &terms,
                accepted_at: SystemTime::UNIX_EPOCH + Duration::from_millis(5),
                attempts: 2,
                holder: Some(Holder {
                    worker: WorkerKey(7),
                    attempt: 2,
                }),
                cancelled: Some(""),
            };
            let holder = KeptHolder {
                name: "w".to_owned(),
                subject: "svc".to_owned(),
                attempt: 2,
            };
            let kept = KeptRequest::new(&standing, Some(holder));
            let read = KeptRequest::read("s", 5, &kept.write()).unwrap();
            assert_eq!(read, kept);
            assert_eq!(format!("{:?}", read.terms()), format!("{terms:?}"));
            assert_eq!(read.accepted_at(), standing.accepted_at);
        }
    }
}
