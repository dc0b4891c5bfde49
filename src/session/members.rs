//! Who is in the session.

use std::time::SystemTime;

use super::ConnectionId;
use crate::frame::Str;

/// A connection's place in a session; a connection that joins again by the same name has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seat {
    /// Whose.
    pub connection: ConnectionId,
    /// Tells this place from an earlier one of the same connection.
    pub number: u64,
}

/// A connection in a session.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name, unique in the session.
    pub name: Str,
    /// Its role.
    pub role: Str,
    /// Who it proved to be.
    pub subject: Str,
    /// Its place.
    pub seat: Seat,
    /// Since when.
    pub joined_at: SystemTime,
}

/// The members, in the order of their names: a session of one member should cost little, one of thousands still find them.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_name: Vec<Member>,
}

impl Members {
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.by_name.iter()
    }

    pub fn get(&self, name: &str) -> Option<&Member> {
        self.find(name).ok().map(|at| &self.by_name[at])
    }

    /// Adds a member; the place that its name had before, if it had one.
    pub fn insert(&mut self, member: Member) -> Option<Seat> {
        match self.find(&member.name) {
            Ok(at) => {
                let old = std::mem::replace(&mut self.by_name[at], member);
                Some(old.seat)
            }
            Err(at) => {
                if self.by_name.is_empty() {
                    self.by_name.reserve_exact(1);
                }
                self.by_name.insert(at, member);
                None
            }
        }
    }

    pub fn remove(&mut self, name: &str, seat: Seat) -> Option<Member> {
        let at = self.find(name).ok()?;
        (self.by_name[at].seat == seat).then(|| self.by_name.remove(at))
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.by_name.binary_search_by(|member| member.name.as_str().cmp(name))
    }
}
