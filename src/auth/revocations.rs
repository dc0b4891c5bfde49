//! What was taken back before its time: all of a subject that was issued before some moment, or one credential.
//!
//! In memory, and in a file where there is one: an object a line, appended and synced before anybody is told that it is done.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prost_types::Timestamp;
use serde::{Deserialize, Serialize};

use super::files::{File, Privacy};
use super::{Identity, moment};
use crate::error::{Reason, Refusal};

/// Revocations that are remembered.
pub const REVOCATIONS: usize = 100_000;
/// Bytes of the file.
const FILE_BYTES: u64 = 64 << 20;
/// Bytes of each name.
const NAME_BYTES: usize = 512;

/// What is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// All credentials of the subject that were issued before the moment, and those that do not say when they were.
    Subject {
        /// The subject.
        name: String,
        /// The moment.
        issued_before: SystemTime,
    },
    /// The credential by this id: `jti`, id of an API key, serial number of a certificate.
    Token {
        /// The id.
        id: String,
    },
}

/// A revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// What is taken back.
    pub what: Revoked,
    /// Of which issuer; of any, if it does not say.
    pub issuer: Option<String>,
    /// When it may be forgotten, since all that it speaks of has expired.
    pub until: Option<SystemTime>,
    /// Whether it is in a file, and known after a restart. Whoever revokes need not say.
    pub durable: bool,
}

impl Revocation {
    /// Takes back all that the subject was given before the moment.
    pub fn of_subject(name: impl Into<String>, issued_before: SystemTime) -> Self {
        let name = name.into();
        Self::of(Revoked::Subject { name, issued_before })
    }

    /// Takes back one credential.
    pub fn of_token(id: impl Into<String>) -> Self {
        Self::of(Revoked::Token { id: id.into() })
    }

    fn of(what: Revoked) -> Self {
        Self {
            what,
            issuer: None,
            until: None,
            durable: false,
        }
    }

    fn key(&self) -> Key {
        let issuer = self.issuer.clone();
        match &self.what {
            Revoked::Subject { name, .. } => (Kind::Subject, name.clone(), issuer),
            Revoked::Token { id } => (Kind::Token, id.clone(), issuer),
        }
    }

    fn is_over(&self, now: SystemTime) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Both in one: what either takes back is taken back for as long as either says.
    fn joined(self, other: &Self) -> Self {
        let until = self.until.zip(other.until).map(|(one, other)| one.max(other));
        let what = match (self.what, &other.what) {
            (
                Revoked::Subject { name, issued_before },
                Revoked::Subject {
                    issued_before: other, ..
                },
            ) => Revoked::Subject {
                name,
                issued_before: issued_before.max(*other),
            },
            (what, _) => what,
        };
        Self { what, until, ..self }
    }

    fn check(&self) -> Result<(), Refusal> {
        let (kind, name, issuer) = self.key();
        let field = match kind {
            Kind::Subject => "subject",
            Kind::Token => "token_id",
        };
        match name.is_empty() || name.len() > NAME_BYTES || issuer.is_some_and(|issuer| issuer.len() > NAME_BYTES) {
            true => Err(Refusal::field(field, format!("names have 1 to {NAME_BYTES} bytes"))),
            false => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Subject,
    Token,
}

type Key = (Kind, String, Option<String>);

/// All of them.
#[derive(Debug)]
pub struct Revocations {
    file: Option<File>,
    limit: usize,
    /// Held while the file is read or written, before the other; revoking is rare.
    writing: Mutex<()>,
    /// Held for moments: every credential is looked up here.
    known: Mutex<HashMap<Key, Revocation>>,
}

impl Revocations {
    /// Those in the file, if there is one. A file that is not there yet is made by the first revocation. The error is all that is
    /// wrong in it.
    pub fn open(path: Option<&Path>, now: SystemTime) -> Result<Self, Vec<String>> {
        let revocations = Self {
            file: path.map(|path| File::new(path, Privacy::Public, FILE_BYTES)),
            ..Self::in_memory()
        };
        let wrong = revocations.reload(now);
        if wrong.is_empty() { Ok(revocations) } else { Err(wrong) }
    }

    /// None, and no file.
    pub fn in_memory() -> Self {
        Self {
            file: None,
            limit: REVOCATIONS,
            writing: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// Reads the file again if it has changed, and says whether it holds others now.
    pub fn look(&self, now: SystemTime) -> bool {
        let has_changed = self.file.as_ref().is_some_and(File::has_changed);
        if !has_changed {
            return false;
        }
        let before = self.lock().clone();
        let wrong = self.reload(now);
        if !wrong.is_empty() {
            let errors = wrong.join("; ");
            tracing::warn!(
                errors,
                "not all of the revocations can be read; those that were known stay"
            );
        }
        *self.lock() != before
    }

    /// Whether the identity, or what it was made from, is taken back.
    pub fn check(&self, identity: &Identity, now: SystemTime) -> Result<(), Refusal> {
        let known = self.lock();
        if known.is_empty() {
            return Ok(());
        }
        let any = |kind, name: &str| {
            let issuers = [None, Some(identity.issuer.to_string())];
            let mut found = issuers
                .into_iter()
                .filter_map(|issuer| known.get(&(kind, name.to_owned(), issuer)));
            found.any(|revocation| !revocation.is_over(now) && revocation.covers(identity))
        };
        if !identity.token_id.is_empty() && any(Kind::Token, &identity.token_id) {
            return Err(Refusal::new(Reason::TokenRevoked, "the credential was taken back"));
        }
        if any(Kind::Subject, &identity.subject) {
            let text = "what the subject was given before is taken back; a new credential may be had";
            return Err(Refusal::new(Reason::TokenRevoked, text));
        }
        Ok(())
    }

    /// Takes something back, from now on.
    pub fn revoke(&self, revocation: Revocation, now: SystemTime) -> Result<(), Refusal> {
        revocation.check()?;
        let key = revocation.key();
        let _writing = self.write_lock();
        let revocation = {
            let mut known = self.lock();
            match known.get(&key) {
                Some(other) => revocation.joined(other),
                None => {
                    make_room(&mut known, self.limit, now);
                    if known.len() >= self.limit {
                        return Err(full(self.limit));
                    }
                    revocation
                }
            }
        };
        let revocation = Revocation {
            durable: self.file.is_some(),
            ..revocation
        };
        // One at a time, so that the file has the lines in the order in which they count.
        if let Some(file) = &self.file {
            // Not taken for read: somebody else may have written to it too.
            append(file.path(), &revocation).map_err(|error| unwritten(file, &error))?;
        }
        self.lock().insert(key, revocation);
        Ok(())
    }

    /// All that is taken back and not forgotten.
    pub fn list(&self) -> Vec<Revocation> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Revocation>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong, of which nothing is taken; what was known then stays too, since what is wrong may be one of those.
    fn reload(&self, now: SystemTime) -> Vec<String> {
        let Some(file) = &self.file else {
            return Vec::new();
        };
        let _writing = self.write_lock();
        if !file.path().exists() && self.lock().is_empty() {
            file.mark();
            return Vec::new();
        }
        let text = match file.text() {
            Ok(text) => text,
            Err(wrong) => return vec![wrong],
        };
        let (read, wrong) = parse(file, &text, self.limit, now);
        let mut known = self.lock();
        match wrong.is_empty() {
            true => *known = read,
            false => known.extend(read),
        }
        wrong
    }
}

impl Revocation {
    fn covers(&self, identity: &Identity) -> bool {
        match &self.what {
            Revoked::Subject { issued_before, .. } => identity.issued_at.is_none_or(|at| at < *issued_before),
            Revoked::Token { .. } => true,
        }
    }
}

/// Where there is no room, forgets what is over.
fn make_room(known: &mut HashMap<Key, Revocation>, limit: usize, now: SystemTime) {
    if known.len() >= limit {
        known.retain(|_, revocation| !revocation.is_over(now));
    }
}

fn full(limit: usize) -> Refusal {
    let text =
        format!("{limit} revocations are remembered, and none of them is over; have credentials that expire sooner");
    Refusal::new(Reason::TooManyRevocations, text).with("limit", limit.to_string())
}

fn unwritten(file: &File, error: &std::io::Error) -> Refusal {
    tracing::error!(path = %file.path().display(), %error, "a revocation cannot be written, and was not made");
    Refusal::new(
        Reason::AuthUnavailable,
        "the file of revocations cannot be written; nothing was taken back",
    )
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issued_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl Line {
    fn of(revocation: &Revocation) -> Self {
        let (subject, issued_before, token_id) = match &revocation.what {
            Revoked::Subject { name, issued_before } => (Some(name.clone()), Some(written(*issued_before)), None),
            Revoked::Token { id } => (None, None, Some(id.clone())),
        };
        Self {
            subject,
            issued_before,
            token_id,
            issuer: revocation.issuer.clone(),
            until: revocation.until.map(written),
        }
    }

    fn revocation(self) -> Result<Revocation, String> {
        let time = |text: &str| moment(text).map_err(|wrong| format!("has {wrong}"));
        let what = match (self.subject, self.issued_before, self.token_id) {
            (Some(name), Some(before), None) => Revoked::Subject {
                name,
                issued_before: time(&before)?,
            },
            (None, None, Some(id)) => Revoked::Token { id },
            _ => return Err("is neither a subject with issued_before nor a token_id".to_owned()),
        };
        let revocation = Revocation {
            issuer: self.issuer,
            until: self.until.as_deref().map(time).transpose()?,
            durable: true,
            ..Revocation::of(what)
        };
        revocation.check().map_err(|refusal| refusal.message)?;
        Ok(revocation)
    }
}

fn written(at: SystemTime) -> String {
    Timestamp::from(at).to_string()
}

fn parse(file: &File, text: &str, limit: usize, now: SystemTime) -> (HashMap<Key, Revocation>, Vec<String>) {
    let mut known: HashMap<Key, Revocation> = HashMap::new();
    let mut wrong = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let read = serde_json::from_str::<Line>(line).map_err(|error| format!("is no revocation: {error}"));
        match read.and_then(Line::revocation) {
            Ok(revocation) if revocation.is_over(now) => {}
            Ok(revocation) => {
                let key = revocation.key();
                let joined = known.get(&key).map(|other| revocation.clone().joined(other));
                known.insert(key, joined.unwrap_or(revocation));
            }
            // A line that was being written when the power went: nobody was told that it was done.
            Err(_) if !text.ends_with('\n') && text.lines().count() == at + 1 => {
                tracing::warn!(path = %file.path().display(), "the last revocation is cut off, and passed over");
            }
            Err(what) => wrong.push(file.wrong(&format!("line {} {what}", at + 1))),
        }
        if known.len() > limit {
            wrong.push(file.wrong(&format!("has more than {limit} revocations that are not over")));
            break;
        }
    }
    (known, wrong)
}

fn append(path: &Path, revocation: &Revocation) -> std::io::Result<()> {
    let is_new = !path.exists();
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let mut line = serde_json::to_string(&Line::of(revocation))?;
    line.push('\n');
    if mend_end(&mut file)? {
        line.insert(0, '\n');
    }
    file.write_all(line.as_bytes())?;
    file.sync_all()?;
    let folder = path.parent().filter(|_| is_new);
    match folder.map(|folder| {
        if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        }
    }) {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Cuts off a last line that was never finished, and says whether one that was lacks its end.
fn mend_end(file: &mut fs::File) -> std::io::Result<bool> {
    const LINE_BYTES: u64 = 4 << 10;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LINE_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.take(LINE_BYTES).read_to_end(&mut end)?;
    let unfinished = end.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_whole = serde_json::from_slice::<Line>(unfinished).is_ok();
    if !unfinished.is_empty() && !is_whole {
        file.set_len(length - unfinished.len() as u64)?;
    }
    Ok(is_whole)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::Grants;
    use crate::auth::tests::Folder;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn identity(subject: &str, token_id: &str, issued_at: Option<SystemTime>) -> Identity {
        Identity {
            subject: subject.into(),
            token_id: token_id.into(),
            issuer: "them".into(),
            issued_at,
            expires_at: None,
            grants: Grants::none(),
        }
    }

    fn is_good(revocations: &Revocations, identity: &Identity) -> bool {
        revocations.check(identity, at(100)).is_ok()
    }

    #[test]
    fn a_subject_loses_what_it_was_given_before() {
        let revocations = Revocations::in_memory();
        revocations.revoke(Revocation::of_subject("a", at(10)), at(10)).unwrap();
        assert!(!is_good(&revocations, &identity("a", "", Some(at(9)))));
        assert!(!is_good(&revocations, &identity("a", "", None)));
        assert!(is_good(&revocations, &identity("a", "", Some(at(10)))));
        assert!(is_good(&revocations, &identity("b", "a", None)));
        // An earlier moment takes nothing of it back.
        revocations.revoke(Revocation::of_subject("a", at(5)), at(10)).unwrap();
        assert!(!is_good(&revocations, &identity("a", "", Some(at(9)))));
        assert_eq!(revocations.list().len(), 1);
        assert!(!revocations.list()[0].durable);
    }

    #[test]
    fn a_token_is_taken_back_of_one_issuer_or_of_all() {
        let revocations = Revocations::in_memory();
        let of_others = Revocation {
            issuer: Some("others".to_owned()),
            ..Revocation::of_token("t")
        };
        revocations.revoke(of_others, at(0)).unwrap();
        assert!(is_good(&revocations, &identity("a", "t", None)));
        revocations.revoke(Revocation::of_token("t"), at(0)).unwrap();
        assert!(!is_good(&revocations, &identity("a", "t", None)));
        assert!(is_good(&revocations, &identity("t", "", None)));
        assert!(revocations.revoke(Revocation::of_token(""), at(0)).is_err());
    }

    #[test]
    fn what_is_over_makes_room_and_nothing_else_does() {
        let revocations = Revocations {
            limit: 2,
            ..Revocations::in_memory()
        };
        let until = |id: &str, seconds| Revocation {
            until: Some(at(seconds)),
            ..Revocation::of_token(id)
        };
        revocations.revoke(until("a", 10), at(0)).unwrap();
        revocations.revoke(until("b", 20), at(0)).unwrap();
        let refusal = revocations.revoke(until("c", 30), at(9)).unwrap_err();
        assert_eq!(
            (refusal.reason, &*refusal.details[0].1),
            (Reason::TooManyRevocations, "2")
        );
        revocations.revoke(until("b", 40), at(9)).unwrap();
        revocations.revoke(until("c", 30), at(10)).unwrap();
        assert!(revocations.check(&identity("x", "b", None), at(39)).is_err());
        assert!(revocations.check(&identity("x", "b", None), at(40)).is_ok());
    }

    #[test]
    fn the_file_keeps_them_and_brings_those_of_others() {
        let folder = Folder::new("revoked");
        let path = folder.path("revoked.jsonl");
        let revocations = Revocations::open(Some(&path), at(0)).unwrap();
        let revocation = Revocation {
            until: Some(at(1_000)),
            ..Revocation::of_subject("a", at(10))
        };
        revocations.revoke(revocation, at(0)).unwrap();
        revocations.revoke(Revocation::of_token("t"), at(0)).unwrap();
        assert!(revocations.list().iter().all(|revocation| revocation.durable));
        assert!(!revocations.look(at(0)), "what it wrote itself is no news");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"token_id\":\"of-others\"}}\n")).unwrap();
        revocations.revoke(Revocation::of_token("t"), at(0)).unwrap();
        assert!(revocations.look(at(0)), "what others wrote just before is");
        assert!(!is_good(&revocations, &identity("b", "of-others", None)));
        let again = Revocations::open(Some(&path), at(0)).unwrap();
        assert!(!is_good(&again, &identity("a", "", None)) && !is_good(&again, &identity("b", "t", None)));
        assert_eq!(Revocations::open(Some(&path), at(1_000)).unwrap().list().len(), 2);
        let text = fs::read_to_string(&path).unwrap();
        folder.write("revoked.jsonl", &format!("{text}{{\"token_id\":\"u\"}}\n"));
        assert!(revocations.look(at(0)));
        assert!(!is_good(&revocations, &identity("b", "u", None)));
        folder.write("revoked.jsonl", "");
        assert!(revocations.look(at(0)));
        assert!(is_good(&revocations, &identity("b", "u", None)));
    }

    #[test]
    fn a_line_that_was_cut_off_harms_no_other() {
        let folder = Folder::new("torn");
        let path = folder.write("revoked.jsonl", "{\"token_id\":\"t\"}\n{\"token_i");
        let revocations = Revocations::open(Some(&path), at(0)).unwrap();
        revocations.revoke(Revocation::of_token("u"), at(0)).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"token_id\":\"t\"}\n{\"token_id\":\"u\"}\n"
        );
        folder.write("revoked.jsonl", "{\"token_id\":\"t\"}");
        revocations.revoke(Revocation::of_token("v"), at(0)).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"token_id\":\"t\"}\n{\"token_id\":\"v\"}\n"
        );
    }

    #[test]
    fn a_bad_file_takes_nothing_away() {
        let folder = Folder::new("bad");
        let path = folder.write("revoked.jsonl", "{\"token_id\":\"t\"}\n");
        let revocations = Revocations::open(Some(&path), at(0)).unwrap();
        for bad in ["oops\n{\"token_id\":\"u\"}\n", "\u{0}\n"] {
            folder.write("revoked.jsonl", bad);
            revocations.look(at(0));
            assert!(!is_good(&revocations, &identity("b", "t", None)));
        }
        assert!(
            !is_good(&revocations, &identity("b", "u", None)),
            "what can be read counts"
        );
        fs::remove_file(&path).unwrap();
        revocations.look(at(0));
        assert!(!is_good(&revocations, &identity("b", "t", None)));
    }

    #[test]
    fn everything_wrong_in_the_file_is_said_at_once() {
        let folder = Folder::new("wrong");
        let lines = [
            "{}",
            r#"{"subject":"a"}"#,
            r#"{"subject":"a","issued_before":"today"}"#,
            r#"{"token_id":""}"#,
            r#"{"token_id":"t","why":"lost"}"#,
            r#"{"token_id":"t"}"#,
        ];
        let path = folder.write("revoked.jsonl", &format!("{}\n", lines.join("\n")));
        let wrong = Revocations::open(Some(&path), at(0)).unwrap_err();
        assert_eq!(wrong.len(), 5, "{wrong:#?}");
        assert!(wrong[1].contains("line 2 "));
    }
}
