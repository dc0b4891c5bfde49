//! Who is connected: the identities of connections, what each subject has of the gateway, and the end of what may not go on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::Router;
use super::batch::Batch;
use super::link::Link;
use super::members::dismiss;
use super::seat::{Circle, Seat, View};
use super::timers::Life;
use super::workers::Parting;
use crate::auth::{Deed, Grants, Identity, Permission, Place};
use crate::error::{Reason, Refusal};
use crate::frame::Str;

/// What is known of a connection when it is made.
pub struct Arrival {
    /// The life of what carries it.
    pub life: Life,
    /// Who it is, if it has said so already.
    pub identity: Option<Arc<Identity>>,
}

/// What a subject has.
#[derive(Clone, Copy, Debug, Default)]
struct Holding {
    links: usize,
    sessions: usize,
}

/// What each subject has. Those that have nothing are not in it.
#[derive(Default)]
pub(super) struct Subjects {
    table: Mutex<HashMap<Str, Holding>>,
}

/// What a subject may have so many of.
#[derive(Clone, Copy)]
pub(super) enum Thing {
    Link,
    Session,
}

impl Subjects {
    fn table(&self) -> MutexGuard<'_, HashMap<Str, Holding>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, subject: &str, thing: Thing, limit: usize) -> bool {
        self.table()
            .get(subject)
            .is_none_or(|holding| holding.count(thing) < limit)
    }

    /// The subject has one more; not if it has as many as it may.
    pub fn take(&self, subject: &Str, thing: Thing, limit: usize) -> bool {
        if subject.is_empty() {
            return true;
        }
        let mut table = self.table();
        let count = table.get(subject).map_or(0, |holding| holding.count(thing));
        if count >= limit {
            return false;
        }
        match table.get_mut(subject) {
            Some(holding) => *holding.of(thing) += 1,
            None => *table.entry(subject.detached()).or_default().of(thing) += 1,
        }
        true
    }

    /// The subject has one more, from before, whether it may or not.
    pub fn give(&self, subject: &Str, thing: Thing) {
        self.take(subject, thing, usize::MAX);
    }

    /// The subject has one less.
    pub fn give_back(&self, subject: &str, thing: Thing) {
        let mut table = self.table();
        if let Some(holding) = table.get_mut(subject) {
            let count = holding.of(thing);
            *count = count.saturating_sub(1);
            if holding.links + holding.sessions == 0 {
                table.remove(subject);
            }
        }
    }
}

impl Holding {
    fn of(&mut self, thing: Thing) -> &mut usize {
        match thing {
            Thing::Link => &mut self.links,
            Thing::Session => &mut self.sessions,
        }
    }

    fn count(mut self, thing: Thing) -> usize {
        *self.of(thing)
    }
}

/// How long a connection that is sent away may take to be told why.
const FAREWELL: Duration = Duration::from_secs(2);
/// The longest that is waited at once: a calendar can be set back meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

impl Router {
    /// The connection has shown who it is, for the first time or anew.
    pub fn identify(&self, link: &Arc<Link>, identity: Arc<Identity>, batch: &mut Batch) -> Result<(), Refusal> {
        match link.identity() {
            None => self.take_link(&identity.subject)?,
            Some(before) if before.subject != identity.subject => {
                let text = "the new credential is another subject's than the connection's; open another connection";
                return Err(Refusal::new(Reason::SubjectChanged, text));
            }
            Some(_) => {}
        }
        tracing::debug!(connection = %link.name(), subject = ?identity.subject, token = ?identity.token_id, "identified");
        link.set_identity(Arc::clone(&identity));
        // Whoever revokes looks at the connections afterwards: one of the two sees the other.
        if let Err(refusal) = self.auth().check_again(&identity, batch.now.wall) {
            self.expel(link, refusal.clone());
            return Err(refusal);
        }
        if !link.is_ending() {
            self.arm_link(link, self.wait_for(&identity, batch.now.wall));
        }
        self.leave_what_is_denied(link, &identity.grants, batch);
        Ok(())
    }

    /// Counts the connection among those of its subject.
    pub(super) fn take_link(&self, subject: &Str) -> Result<(), Refusal> {
        let limit = self.limits().connections_per_subject;
        match self.inner.subjects.take(subject, Thing::Link, limit) {
            true => Ok(()),
            false => Err(too_many_links(limit)),
        }
    }

    /// Whether the subject may have one more connection now.
    pub fn check_subject(&self, subject: &str) -> Result<(), Refusal> {
        let limit = self.limits().connections_per_subject;
        match self.inner.subjects.has_room(subject, Thing::Link, limit) {
            true => Ok(()),
            false => Err(too_many_links(limit)),
        }
    }

    /// Sees to it that the timers look at a new connection when it has had its time.
    pub(super) fn arm_new(&self, link: &Arc<Link>) {
        let now = self.now().wall;
        let wait = match link.identity() {
            None => Some(self.limits().auth_timeout),
            Some(identity) => match self.auth().check_again(&identity, now) {
                Ok(()) => self.wait_for(&identity, now),
                // Revoked since it was looked at.
                Err(refusal) => return self.expel(link, refusal),
            },
        };
        if wait.is_some() {
            self.arm_link(link, wait);
        }
    }

    fn wait_for(&self, identity: &Identity, now: SystemTime) -> Option<Duration> {
        let left = identity.expires_at?.duration_since(now).unwrap_or_default();
        Some(left.min(LONGEST_WAIT))
    }

    fn arm_link(&self, link: &Arc<Link>, wait: Option<Duration>) {
        let place = wait.map(|wait| (self.now().mono + wait, self.next_id()));
        let before = link.arm(place);
        self.inner.timers.set_link(place, before, link);
    }

    /// The time is up that the connection was given.
    pub(super) fn expire_link(&self, link: &Arc<Link>) {
        if link.is_ending() {
            // It had its time to read why.
            return link.cut(None);
        }
        let Some(identity) = link.identity() else {
            let limit = self.limits().auth_timeout;
            let text = format!("the connection did not say who it is within {limit:?}");
            let refusal = Refusal::new(Reason::AuthTimeout, text)
                .with("limit", format!("{}s", limit.as_secs_f64()))
                .with("setting", "limits.auth_timeout");
            return self.expel(link, refusal);
        };
        let now = self.now().wall;
        match self.auth().check_again(&identity, now) {
            Err(refusal) => self.expel(link, refusal),
            Ok(()) => self.arm_link(
                link,
                self.wait_for(&identity, now)
                    .map(|wait| wait.max(Duration::from_millis(1))),
            ),
        }
    }

    /// What credentials are worth has changed: whose is worth nothing any more is sent away.
    pub fn check_identities(&self) {
        let now = self.now().wall;
        for link in self.all_links() {
            if let Some(Err(refusal)) = link.identity().map(|identity| self.auth().check_again(&identity, now)) {
                self.expel(&link, refusal);
            }
        }
    }

    /// Ends a connection that may not go on: it is shown nothing more, whether it has read what is on its way or not.
    fn expel(&self, link: &Arc<Link>, refusal: Refusal) {
        tracing::info!(connection = %link.name(), reason = %refusal.reason, "connection ended");
        let mut batch = Batch::new(self.now());
        // Whoever may come back with a new credential keeps its requests for its grace.
        let parting = match refusal.reason {
            Reason::TokenExpired => Parting::Lost,
            _ => Parting::Goodbye,
        };
        self.retire(link, parting, &mut batch);
        let seats = link.places().seats.take();
        for seat in seats {
            self.vacate(&seat, &mut batch);
        }
        let is_first = link.end_now(refusal);
        batch.finish(None);
        if is_first {
            self.arm_link(link, Some(FAREWELL));
        }
    }

    /// After an identity was renewed: what it does not allow any more is over.
    fn leave_what_is_denied(&self, link: &Arc<Link>, grants: &Grants, batch: &mut Batch) {
        let (seats, serves) = {
            let places = link.places();
            (places.seats.iter().cloned().collect::<Vec<_>>(), places.serves.clone())
        };
        for seat in seats {
            if let Err(refusal) = check_seat(grants, &seat) {
                self.vacate(&seat, batch);
                dismiss(&seat, &refusal, batch);
            }
        }
        for (role, key) in serves {
            let place = Place {
                session: "",
                role: &role,
            };
            match grants.check(Deed::Serve, place) {
                Ok(()) => self.narrow((key, link), grants.served(&role).unwrap_or_default(), batch),
                Err(refusal) => self.dismiss_denied(key, link, &refusal, batch),
            }
        }
    }

    /// What `Joined` and calls may say of who is there.
    pub fn shows_members(&self, identity: &Identity, session: &str) -> bool {
        identity.grants.allow(Permission::Presence, session)
    }

    /// Nobody, where nobody is authenticated; and the gateway itself.
    pub fn nobody(&self) -> Arc<Identity> {
        Arc::clone(&self.inner.nobody)
    }
}

fn too_many_links(limit: usize) -> Refusal {
    let text = format!("the subject has {limit} connections, the most it may have; close some");
    let setting = ("limits.connections_per_subject", limit as u64);
    Refusal::limit(Reason::TooManyConnections, text, setting).after(Duration::from_secs(1))
}

fn check_seat(grants: &Grants, seat: &Seat) -> Result<(), Refusal> {
    let place = Place {
        session: seat.live().id(),
        role: &seat.address().role,
    };
    match seat.view() {
        View::Member => grants.check(Deed::Join, place)?,
        View::Watcher => grants.check(Deed::CallWatch, place)?,
        // What it asked it was allowed to ask.
        View::Asker => {}
    }
    match seat.is_in(Circle::Presence) {
        true => grants.check(Deed::JoinPresence, place),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_so_many_and_no_more() {
        let subjects = Subjects::default();
        let ann = Str::from_static("ann");
        assert!(subjects.take(&ann, Thing::Link, 2) && subjects.take(&ann, Thing::Link, 2));
        assert!(!subjects.take(&ann, Thing::Link, 2));
        assert!(subjects.take(&ann, Thing::Session, 1) && !subjects.take(&ann, Thing::Session, 1));
        subjects.give_back(&ann, Thing::Link);
        assert!(subjects.take(&ann, Thing::Link, 2));
        for thing in [Thing::Link, Thing::Link, Thing::Session, Thing::Link] {
            subjects.give_back(&ann, thing);
        }
        assert!(subjects.table().is_empty());
        // Who has no name is bounded by what all have.
        assert!((0..9).all(|_| subjects.take(&Str::EMPTY, Thing::Link, 1)) && subjects.table().is_empty());
    }
}
