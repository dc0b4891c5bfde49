//! Grants: what somebody may do, in which sessions, and as which roles.
//!
//! Pure: text in, yes or no out. What is not granted is denied, and nothing here ever widens a grant: a pattern that could mean
//! another subject's sessions as well as one's own gives nothing at all.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::frame::{Str, matches};

/// Grants that one credential may hold.
const GRANTS: usize = 32;
/// Patterns that all of them may have together.
const PATTERNS: usize = 128;
/// Bytes of a pattern.
const PATTERN_BYTES: usize = 256;
/// What names are put together with most often. A subject that has one of these in it is not told apart, whatever its own
/// patterns are: a neighbour's may be others.
const SEPARATORS: [char; 2] = ['/', ':'];
/// What stands for the subject in a pattern.
const SUBJECT: &str = "{sub}";
/// The role that whoever may read may join as.
const CLIENT: &str = "client";

/// Something that may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// Join a session, watch it, read its log and what is said about it.
    Read,
    /// Send frames that are no requests.
    Send,
    /// Send requests, to the roles of `ask`.
    Request,
    /// Cancel anybody's requests.
    Cancel,
    /// Cancel the requests that the same subject has made.
    CancelOwn,
    /// See who else is in a session.
    Presence,
    /// Bring a session into being.
    Create,
    /// Change a session's metadata, close it, delete it.
    Manage,
    /// Be a worker, for the roles of `serve`.
    Serve,
    /// What operators do: of no session, hence of the whole gateway.
    Admin,
}

impl Permission {
    /// All of them.
    pub const ALL: [Permission; 10] = [
        Permission::Read,
        Permission::Send,
        Permission::Request,
        Permission::Cancel,
        Permission::CancelOwn,
        Permission::Presence,
        Permission::Create,
        Permission::Manage,
        Permission::Serve,
        Permission::Admin,
    ];

    /// Its name, as grants have it.
    pub fn name(self) -> &'static str {
        match self {
            Permission::Read => "read",
            Permission::Send => "send",
            Permission::Request => "request",
            Permission::Cancel => "cancel",
            Permission::CancelOwn => "cancel_own",
            Permission::Presence => "presence",
            Permission::Create => "create",
            Permission::Manage => "manage",
            Permission::Serve => "serve",
            Permission::Admin => "admin",
        }
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One grant, as tokens and files have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The sessions it speaks of: names, in which `*` stands for any characters and `{sub}` for the subject.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<String>,
    /// What may be done there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub can: Vec<Permission>,
    /// The roles that may be joined as, beside `client`: names, with `*` and `{sub}` as above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// The roles that may be asked. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ask: Vec<String>,
    /// The roles that may be served, which says `serve` as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub serve: Vec<String>,
}

impl Grant {
    /// The grants in a claim: one, or a list of them.
    pub fn claimed(claim: Option<&Value>) -> Result<Vec<Self>, serde_json::Error> {
        match claim {
            None => Ok(Vec::new()),
            Some(list @ Value::Array(_)) => Vec::deserialize(list),
            Some(one) => Self::deserialize(one).map(|grant| vec![grant]),
        }
    }

    fn patterns(&self) -> impl Iterator<Item = &String> {
        [&self.sessions, &self.roles, &self.ask, &self.serve]
            .into_iter()
            .flatten()
    }
}

/// Who stands for `{sub}`, if that can be nobody else.
struct Subject<'a>(Option<&'a str>);

impl<'a> Subject<'a> {
    /// With "user-{sub}-*", what belongs to "a-b" would belong to "a" as well: so whoever has a character in it that ends the
    /// subject in some pattern, before more that may be anything, is filled in nowhere.
    fn new(grants: &[Grant], subject: &'a str) -> Self {
        let ends = grants.iter().flat_map(Grant::patterns).filter_map(|pattern| {
            let (_, after) = pattern.split_once(SUBJECT)?;
            after.chars().next().filter(|_| after.contains('*'))
        });
        let is_apart = !subject.contains(SEPARATORS) && !ends.into_iter().any(|end| subject.contains(end));
        // No name has a star, so a subject that has one is nowhere, and must not become a wildcard.
        let is_plain = !subject.is_empty() && !subject.contains(['*', '{', '}']);
        Self(Some(subject).filter(|_| is_plain && is_apart))
    }

    /// The pattern with the subject in it; nothing if that could mean somebody else's as well.
    fn fill(&self, pattern: &str) -> Option<Str> {
        match pattern.split_once(SUBJECT) {
            None => Some(Str::from(pattern)),
            Some((before, after)) => self.0.map(|subject| Str::from(format!("{before}{subject}{after}"))),
        }
    }
}

/// What somebody may do.
#[derive(Clone, Debug)]
pub struct Grants(Kind);

#[derive(Clone, Debug)]
enum Kind {
    All,
    Listed(Arc<[Rule]>),
}

/// A grant with the subject filled in.
#[derive(Debug)]
struct Rule {
    sessions: Patterns,
    can: u16,
    roles: Patterns,
    /// `None`: all.
    ask: Option<Patterns>,
    serve: Patterns,
}

#[derive(Debug, Default)]
struct Patterns {
    live: Vec<Str>,
    /// Patterns that give nothing to this subject.
    void: Vec<String>,
}

impl Grants {
    /// Everything, as where nobody is authenticated.
    pub fn all() -> Self {
        Self(Kind::All)
    }

    /// Nothing.
    pub fn none() -> Self {
        Self(Kind::Listed(Arc::new([])))
    }

    /// The grants of a subject. The error says which of them cannot be understood.
    pub fn new(grants: Vec<Grant>, subject: &str) -> Result<Self, String> {
        if grants.len() > GRANTS {
            return Err(format!("there are {} grants; at most {GRANTS} may be", grants.len()));
        }
        let patterns = grants.iter().map(Grant::patterns).map(Iterator::count).sum::<usize>();
        if patterns > PATTERNS {
            return Err(format!("there are {patterns} patterns; at most {PATTERNS} may be"));
        }
        let subject = Subject::new(&grants, subject);
        let rules = grants
            .into_iter()
            .enumerate()
            .map(|(at, grant)| Rule::new(grant, &subject).map_err(|wrong| format!("grant {at}: {wrong}")));
        Ok(Self(Kind::Listed(rules.collect::<Result<_, _>>()?)))
    }

    fn rules(&self, session: &str) -> impl Iterator<Item = &Rule> {
        let rules: &[Rule] = match &self.0 {
            Kind::All => &[],
            Kind::Listed(rules) => rules,
        };
        rules.iter().filter(move |rule| rule.sessions.has(session))
    }

    fn is_all(&self) -> bool {
        matches!(self.0, Kind::All)
    }

    /// Whether something may be done in the session.
    pub fn allow(&self, permission: Permission, session: &str) -> bool {
        self.is_all() || self.rules(session).any(|rule| rule.can & permission.bit() != 0)
    }

    /// Whether there is any session in which something may be done.
    pub fn allow_anywhere(&self, permission: Permission) -> bool {
        match &self.0 {
            Kind::All => true,
            Kind::Listed(rules) => rules.iter().any(|rule| rule.can & permission.bit() != 0),
        }
    }

    /// Whether it may be known what the session holds.
    pub fn allow_knowing(&self, session: &str) -> bool {
        self.allow(Permission::Read, session) || self.allow(Permission::Serve, session)
    }

    /// Whether the session may be joined as the role.
    pub fn allow_role(&self, session: &str, role: &str) -> bool {
        let read = |rule: &&Rule| rule.can & Permission::Read.bit() != 0;
        self.is_all()
            || self
                .rules(session)
                .filter(read)
                .any(|rule| role == CLIENT || rule.roles.has(role))
    }

    /// Whether the role may be asked in the session.
    pub fn allow_asking(&self, session: &str, role: &str) -> bool {
        let request = |rule: &&Rule| rule.can & Permission::Request.bit() != 0;
        self.is_all()
            || self
                .rules(session)
                .filter(request)
                .any(|rule| rule.ask.as_ref().is_none_or(|roles| roles.has(role)))
    }

    /// The sessions, as patterns, that may be worked for in the role; none if the role may not be served.
    pub fn served(&self, role: &str) -> Option<Vec<Str>> {
        let rules = match &self.0 {
            Kind::All => return Some(vec![Str::from_static("*")]),
            Kind::Listed(rules) => rules,
        };
        let served = rules.iter().filter(|rule| rule.serve.has(role));
        let sessions: Vec<Str> = served.flat_map(|rule| rule.sessions.live.iter().cloned()).collect();
        (!sessions.is_empty()).then_some(sessions)
    }

    /// Whether the gateway itself may be looked at and changed.
    pub fn allow_admin(&self) -> bool {
        self.allow_anywhere(Permission::Admin)
    }

    /// A pattern that gives nothing to this subject, if there is one that might have been meant to.
    pub fn void(&self) -> Option<&str> {
        let rules = match &self.0 {
            Kind::All => return None,
            Kind::Listed(rules) => rules,
        };
        let void = rules.iter().flat_map(|rule| &rule.sessions.void);
        void.map(String::as_str).next()
    }
}

impl Rule {
    fn new(grant: Grant, subject: &Subject<'_>) -> Result<Self, String> {
        let Grant {
            sessions,
            can,
            roles,
            ask,
            serve,
        } = grant;
        let mut bits = can.iter().fold(0, |bits, permission| bits | permission.bit());
        if !serve.is_empty() {
            bits |= Permission::Serve.bit();
        } else if bits & Permission::Serve.bit() != 0 {
            return Err("`can` has \"serve\", but `serve` does not say which roles".to_owned());
        }
        if sessions.is_empty() && bits & !Permission::Admin.bit() != 0 {
            return Err("`sessions` says nothing of where; [\"*\"] is everywhere".to_owned());
        }
        Ok(Self {
            sessions: Patterns::new("sessions", &sessions, subject)?,
            can: bits,
            roles: Patterns::new("roles", &roles, subject)?,
            ask: match ask.is_empty() {
                true => None,
                false => Some(Patterns::new("ask", &ask, subject)?),
            },
            serve: Patterns::new("serve", &serve, subject)?,
        })
    }
}

impl Patterns {
    fn new(list: &str, patterns: &[String], subject: &Subject<'_>) -> Result<Self, String> {
        let mut made = Self::default();
        for pattern in patterns {
            check(pattern).map_err(|wrong| format!("`{list}` has {pattern:?}: {wrong}"))?;
            match subject.fill(pattern) {
                Some(filled) => made.live.push(filled),
                None => made.void.push(pattern.clone()),
            }
        }
        Ok(made)
    }

    fn has(&self, name: &str) -> bool {
        self.live.iter().any(|pattern| matches(pattern, name))
    }
}

/// Whether a pattern can be understood, whoever the subject is.
fn check(pattern: &str) -> Result<(), &'static str> {
    if pattern.is_empty() || pattern.len() > PATTERN_BYTES {
        return Err("a pattern has 1 to 256 characters");
    }
    let mut parts = pattern.split(SUBJECT);
    let before = parts.next().unwrap_or_default();
    let after = parts.next();
    if parts.next().is_some() {
        return Err("{sub} can be there once only");
    }
    if [before, after.unwrap_or_default()].concat().contains(['{', '}']) {
        return Err("only {sub} can stand in braces");
    }
    match after {
        Some(after) if after.starts_with('*') => {
            Err("between {sub} and * there must be something that tells them apart, such as \":\"")
        }
        Some(_) if before.contains('*') => Err("no * can come before {sub}"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(json: &str) -> Grant {
        serde_json::from_str(json).unwrap()
    }

    fn grants(json: &str, subject: &str) -> Grants {
        Grants::new(vec![grant(json)], subject).unwrap()
    }

    #[test]
    fn what_is_not_granted_is_denied() {
        let none = Grants::none();
        let some = grants(r#"{"sessions":["room-*"],"can":["read"]}"#, "ann");
        for permission in Permission::ALL {
            assert!(!none.allow(permission, "room-1"));
            assert!(Grants::all().allow(permission, "room-1"));
            assert_eq!(some.allow(permission, "room-1"), permission == Permission::Read);
            assert!(!some.allow(permission, "lobby"));
        }
        assert!(!none.allow_admin() && !some.allow_admin() && Grants::all().allow_admin());
        assert!(some.allow_role("room-1", "client") && !some.allow_role("room-1", "author"));
        assert!(!some.allow_asking("room-1", "brain") && some.served("brain").is_none());
    }

    #[test]
    fn rules_do_not_lend_each_other_what_they_have() {
        let two = vec![
            grant(r#"{"sessions":["a"],"can":["read"],"roles":["author"]}"#),
            grant(r#"{"sessions":["b"],"can":["request"],"ask":["brain"],"roles":["editor"]}"#),
        ];
        let two = Grants::new(two, "ann").unwrap();
        assert!(two.allow_role("a", "author") && !two.allow_role("b", "editor") && !two.allow_role("a", "editor"));
        assert!(two.allow_asking("b", "brain") && !two.allow_asking("a", "brain") && !two.allow_asking("b", "hands"));
    }

    #[test]
    fn the_subject_stands_in_patterns() {
        let own = |subject: &str| grants(r#"{"sessions":["user-{sub}-*","inbox-{sub}"],"can":["read"]}"#, subject);
        let reads = |subject: &str, session: &str| own(subject).allow(Permission::Read, session);
        assert!(reads("ann", "user-ann-1") && reads("ann", "inbox-ann"));
        assert!(!reads("ann", "user-anna-1") && !reads("ann", "user-bob-1") && !reads("ann", "inbox-ann-1"));
        // Of these, the sessions could be somebody else's.
        for escape in ["*", "a*", "ann-x", "{sub}", "", "-"] {
            for session in [
                "user-ann-1",
                "user-ann-x-1",
                "user-bob-1",
                "user--1",
                "user-*-1",
                "user---",
            ] {
                assert!(!reads(escape, session), "{escape:?} reads {session}");
            }
            assert_eq!(own(escape).void().is_some(), escape != "ann");
        }
        // Where nothing can follow, nothing has to be told apart; but not where something follows elsewhere.
        let inbox = |subject| grants(r#"{"sessions":["inbox-{sub}"],"can":["read"]}"#, subject);
        assert!(inbox("ann-x").allow(Permission::Read, "inbox-ann-x"));
        assert!(!reads("ann-x", "inbox-ann-x") && !inbox("ann/x").allow(Permission::Read, "inbox-ann/x"));
    }

    #[test]
    fn no_two_subjects_share_what_is_theirs() {
        let subjects = ["a", "a-b", "a-b-c", "b", "a:b", "ab"];
        let names = [
            "user-a-x",
            "user-a-b-x",
            "user-a-b-c-x",
            "user-b-x",
            "user-a:b-x",
            "user-ab-x",
        ];
        for name in names {
            let json = r#"{"sessions":["user-{sub}-*"],"can":["read"]}"#;
            let owners = subjects
                .iter()
                .filter(|subject| grants(json, subject).allow(Permission::Read, name));
            assert!(owners.count() <= 1, "{name}");
        }
        let json = r#"{"sessions":["user:{sub}:*"],"can":["read"]}"#;
        for (subject, name) in [("a-b", "user:a-b:x"), ("a", "user:a:b:x")] {
            let owners: Vec<_> = subjects
                .iter()
                .filter(|other| grants(json, other).allow(Permission::Read, name))
                .collect();
            assert_eq!(owners, [&subject]);
        }
    }

    #[test]
    fn patterns_that_nobody_can_mean_are_refused() {
        for bad in [
            r#"{"can":["read"]}"#,
            r#"{"sessions":[""],"can":["read"]}"#,
            r#"{"sessions":["{sub}*"],"can":["read"]}"#,
            r#"{"sessions":["*-{sub}"],"can":["read"]}"#,
            r#"{"sessions":["{sub}-{sub}"],"can":["read"]}"#,
            r#"{"sessions":["{user}"],"can":["read"]}"#,
            r#"{"sessions":["*"],"can":["serve"]}"#,
        ] {
            assert!(Grants::new(vec![grant(bad)], "ann").is_err(), "{bad}");
        }
        for bad in [r#"{"session":["*"]}"#, r#"{"sessions":["*"],"can":["fly"]}"#] {
            assert!(serde_json::from_str::<Grant>(bad).is_err(), "{bad}");
        }
        assert!(Grants::new(vec![Grant::default(); 33], "ann").is_err());
        let many = Grant {
            sessions: vec!["a".to_owned(); 129],
            ..Grant::default()
        };
        assert!(Grants::new(vec![many], "ann").is_err());
    }

    #[test]
    fn a_worker_is_told_where_it_may_work() {
        let serves = grants(r#"{"sessions":["a-*","team:{sub}"],"serve":["brain","hand-*"]}"#, "w");
        assert_eq!(serves.served("brain").unwrap(), ["a-*", "team:w"]);
        assert_eq!(serves.served("hand-1").unwrap().len(), 2);
        assert!(serves.served("eye").is_none() && serves.allow(Permission::Serve, "a-1"));
        assert!(!serves.allow(Permission::Read, "a-1"));
        assert_eq!(Grants::all().served("eye").unwrap(), ["*"]);
    }

    #[test]
    fn an_admin_needs_no_session() {
        let admin = grants(r#"{"can":["admin"]}"#, "op");
        assert!(admin.allow_admin() && !admin.allow(Permission::Read, "s"));
    }
}
