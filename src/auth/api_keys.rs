//! API keys, for backends: `tsk_<id>_<secret>`, of which a file holds the hash.
//!
//! The hash is SHA-256 and nothing slower: a secret is 256 random bits, which nobody guesses, however fast the hash is. Slow hashes are
//! for what people think up.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use serde::{Deserialize, Serialize};

use super::files::File;
use super::{API_KEYS, Grant, Grants, Identity, check_subject, moment, refused};
use crate::error::{Reason, Refusal};

/// What every key begins with.
pub const PREFIX: &str = "tsk_";
/// Characters of the secret: base64url of 32 bytes.
const SECRET_CHARACTERS: usize = 43;
/// Bytes of the file.
pub const FILE_BYTES: u64 = 16 << 20;

type Hash = [u8; SHA256_OUTPUT_LEN];

/// A key as the file has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name, which is in the key too.
    pub id: String,
    /// What the key is recognized by.
    pub hash: String,
    /// Whose it is.
    pub subject: String,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued: Option<String>,
    /// Until when it is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Whether it is good for nothing at the moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    /// What it grants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entries {
    /// The keys in it.
    #[serde(default)]
    pub key: Vec<Entry>,
}

#[derive(Debug)]
struct Known {
    hash: Hash,
    is_disabled: bool,
    identity: Identity,
}

/// All keys.
#[derive(Debug)]
pub struct ApiKeys {
    file: File,
    known: RwLock<HashMap<String, Known>>,
}

impl ApiKeys {
    /// The keys in the file. The error is all that is wrong in it.
    pub fn open(file: File) -> Result<Self, Vec<String>> {
        let known = read(&file)?;
        Ok(Self {
            file,
            known: RwLock::new(known),
        })
    }

    /// Reads the file again if it has changed, and says whether the keys are others now. What cannot be used leaves them as they were.
    pub fn look(&self) -> bool {
        if !self.file.has_changed() {
            return false;
        }
        match read(&self.file) {
            Ok(known) => {
                tracing::info!(keys = known.len(), "the API keys were read again");
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
                true
            }
            Err(errors) => {
                let errors = errors.join("; ");
                tracing::warn!(errors, "the API keys cannot be read; those that are there serve on");
                false
            }
        }
    }

    /// Whose key it is.
    pub fn authenticate(&self, key: &str, now: SystemTime) -> Result<Identity, Refusal> {
        let id = id_of(key).ok_or_else(|| refused("that is not the form of an API key, tsk_<id>_<43 characters>"))?;
        let given = digest(&SHA256, key.as_bytes());
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(id);
        // One answer for both, after the same work: whether there is such an id is not told.
        let hash = found.map_or([0; SHA256_OUTPUT_LEN], |known| known.hash);
        let is_right = verify_slices_are_equal(&hash, given.as_ref()).is_ok();
        match found.filter(|_| is_right) {
            Some(known) => known.usable(now),
            None => Err(refused("there is no such API key")),
        }
    }

    /// Whether the key by that id is still good.
    pub fn check_again(&self, id: &str, now: SystemTime) -> Result<(), Refusal> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        match known.get(id) {
            Some(known) => known.usable(now).map(drop),
            None => Err(Refusal::new(Reason::TokenRevoked, "the API key was taken back")),
        }
    }
}

impl Known {
    fn usable(&self, now: SystemTime) -> Result<Identity, Refusal> {
        if self.is_disabled {
            return Err(Refusal::new(Reason::TokenRevoked, "the API key is disabled"));
        }
        if self.identity.expires_at.is_some_and(|at| at <= now) {
            return Err(Refusal::new(
                Reason::TokenExpired,
                "the API key's time is over; get a new one",
            ));
        }
        Ok(self.identity.clone())
    }
}

/// The id in a key that has the form of one.
fn id_of(key: &str) -> Option<&str> {
    let rest = key.strip_prefix(PREFIX)?;
    let (id, secret) = rest.split_at_checked(rest.len().checked_sub(SECRET_CHARACTERS)?)?;
    let is_secret = secret
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    id.strip_suffix('_').filter(|id| is_secret && is_id(id))
}

/// Whether keys may be called so.
pub fn is_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    (1..=64).contains(&id.len()) && id.bytes().all(allowed)
}

/// The hash of a key, as the file has it.
pub fn hash(key: &str) -> String {
    let hash = digest(&SHA256, key.as_bytes());
    let digits: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

fn read(file: &File) -> Result<HashMap<String, Known>, Vec<String>> {
    let text = file.text().map_err(|wrong| vec![wrong])?;
    let entries = toml::from_str::<Entries>(&text);
    // Where it went wrong, and what was expected there, but not what stands there.
    let entries =
        entries.map_err(|error| vec![file.wrong(&format!("is not a file of API keys: {}", error.message()))])?;
    let mut known = HashMap::new();
    let mut wrong = Vec::new();
    for (at, entry) in entries.key.into_iter().enumerate() {
        let id = entry.id.clone();
        match entry.known() {
            Ok(_) if known.contains_key(&id) => wrong.push(file.wrong(&format!("the key {id:?} is there twice"))),
            Ok(key) => drop(known.insert(id, key)),
            Err(what) => wrong.push(file.wrong(&format!("key {at} ({id:?}): {what}"))),
        }
    }
    if wrong.is_empty() { Ok(known) } else { Err(wrong) }
}

impl Entry {
    fn known(self) -> Result<Known, String> {
        if !is_id(&self.id) {
            return Err("an id is 1 to 64 letters, digits, dots and hyphens".to_owned());
        }
        check_subject(&self.subject).map_err(|wrong| format!("the subject {wrong}"))?;
        let hash = self.hash.strip_prefix("sha256:").and_then(bytes);
        let moment = |name: &str, text: Option<&String>| {
            let at = text.map(|text| moment(text)).transpose();
            at.map_err(|wrong| format!("{name} is {wrong}"))
        };
        Ok(Known {
            hash: hash.ok_or("hash is \"sha256:\" and 64 hexadecimal digits")?,
            is_disabled: self.disabled,
            identity: Identity {
                token_id: self.id.into(),
                issuer: API_KEYS.into(),
                issued_at: moment("issued", self.issued.as_ref())?,
                expires_at: moment("expires", self.expires.as_ref())?,
                grants: Grants::new(self.grants, &self.subject)?,
                subject: self.subject.into(),
            },
        })
    }
}

fn bytes(hex: &str) -> Option<Hash> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * SHA256_OUTPUT_LEN {
        return None;
    }
    let mut hash = Hash::default();
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(value(pair[0])? * 16 + value(pair[1])?).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::files::Privacy;
    use crate::auth::mint::{KeyWishes, api_key};
    use crate::auth::tests::Folder;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn made(id: &str, ttl: Option<Duration>) -> (String, String) {
        let wishes = KeyWishes {
            id: id.to_owned(),
            subject: format!("service-{id}"),
            ttl,
            grants: Vec::new(),
        };
        api_key(wishes, now()).unwrap()
    }

    fn open(folder: &Folder, text: &str) -> Result<ApiKeys, Vec<String>> {
        ApiKeys::open(File::new(&folder.write("keys.toml", text), Privacy::Public, FILE_BYTES))
    }

    #[test]
    fn a_key_is_recognized_and_no_other() {
        let folder = Folder::new("keys");
        let ((one, one_entry), (two, two_entry)) = (made("one", None), made("two.b-2", None));
        let keys = open(&folder, &format!("{one_entry}\n{two_entry}")).unwrap();
        let identity = keys.authenticate(&one, now()).unwrap();
        assert_eq!(
            (&*identity.subject, &*identity.token_id, &*identity.issuer),
            ("service-one", "one", API_KEYS)
        );
        assert_eq!((identity.issued_at, identity.expires_at), (Some(now()), None));
        assert_eq!(keys.authenticate(&two, now()).unwrap().subject, "service-two.b-2");
        let swapped = format!("tsk_one_{}", &two[two.len() - SECRET_CHARACTERS..]);
        let unknown = one.replace("_one_", "_three_");
        let answers = [swapped, unknown].map(|key| keys.authenticate(&key, now()).unwrap_err());
        assert_eq!(answers[0], answers[1], "whether there is such an id is not told");
        assert_eq!(answers[0].reason, Reason::Unauthenticated);
    }

    #[test]
    fn what_has_not_the_form_of_a_key_is_told_so_and_not_shown() {
        let folder = Folder::new("forms");
        let keys = open(&folder, "").unwrap();
        let secret = "x".repeat(SECRET_CHARACTERS);
        let answers: Vec<_> = [
            "tsk_",
            "tsk__",
            "tsk_a",
            &format!("tsk_{secret}"),
            &format!("tsk__{secret}"),
            &format!("tsk_a b_{secret}"),
            &format!("tsk_a_{}é", &secret[2..]),
        ]
        .iter()
        .map(|key| keys.authenticate(key, now()).unwrap_err())
        .collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        assert!(answers[0].message.contains("form"));
    }

    #[test]
    fn a_key_ends_when_it_is_disabled_expired_or_taken_out() {
        let folder = Folder::new("ends");
        let (key, entry) = made("a", Some(Duration::from_secs(60)));
        let keys = open(&folder, &entry).unwrap();
        let later = |seconds| now() + Duration::from_secs(seconds);
        let reason = |result: Result<Identity, Refusal>| result.map_err(|refusal| refusal.reason).map(|_| ());
        assert_eq!(reason(keys.authenticate(&key, later(59))), Ok(()));
        assert_eq!(reason(keys.authenticate(&key, later(60))), Err(Reason::TokenExpired));
        assert!(!keys.look());
        folder.write("keys.toml", &entry.replace("subject =", "disabled = true\nsubject ="));
        assert!(keys.look());
        assert_eq!(reason(keys.authenticate(&key, now())), Err(Reason::TokenRevoked));
        assert_eq!(keys.check_again("a", now()).unwrap_err().reason, Reason::TokenRevoked);
        folder.write("keys.toml", &entry);
        assert!(keys.look());
        assert!(keys.check_again("a", now()).is_ok());
        folder.write("keys.toml", "");
        assert!(keys.look());
        assert_eq!(reason(keys.authenticate(&key, now())), Err(Reason::Unauthenticated));
        assert_eq!(keys.check_again("a", now()).unwrap_err().reason, Reason::TokenRevoked);
    }

    #[test]
    fn a_bad_file_leaves_the_keys_as_they_were() {
        let folder = Folder::new("bad");
        let (key, entry) = made("a", None);
        let keys = open(&folder, &entry).unwrap();
        folder.write("keys.toml", "[[key]]\nid =");
        assert!(!keys.look());
        assert!(keys.authenticate(&key, now()).is_ok());
    }

    #[test]
    fn everything_wrong_in_the_file_is_said_at_once_and_no_hash_is_shown() {
        let folder = Folder::new("wrong");
        let (_, entry) = made("a", None);
        let wrong = [
            entry.clone(),
            entry.clone(),
            entry.replace("id = \"a\"", "id = \"a b\""),
            entry
                .replace("id = \"a\"", "id = \"c\"")
                .replace("service-a", "two words"),
            entry.replace("id = \"a\"", "id = \"d\"").replace("sha256:", "md5:"),
            entry
                .replace("id = \"a\"", "id = \"e\"")
                .replace("issued = \"", "issued = \"on "),
        ];
        let problems = open(&folder, &wrong.join("\n")).unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:#?}");
        let hash = entry.split("sha256:").nth(1).unwrap().split('"').next().unwrap();
        assert!(!problems.concat().contains(hash));
        assert!(open(&folder, "[[key]]\nsecret = \"x\"").is_err());
    }
}
