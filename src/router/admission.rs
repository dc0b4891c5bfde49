//! Admission: who may connect, counted where a connection comes from before anything of it is read.
//!
//! An address is an IPv4 address, or the /64 of an IPv6 address. What it has is given back when the handle is dropped. The
//! table forgets addresses that have nothing and owe nothing, and is bounded by what may be connected.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::clock;
use crate::error::{Reason, Refusal};
use crate::limits::{Bucket, Limits, Rate};

/// How many seconds' worth of new connections may come at once.
const BURST_SECONDS: u64 = 5;
/// New connections that a flood counts for, so that whoever floods does not come back a hundred times a second.
const FLOOD: u64 = 25;
/// What an address may owe for floods.
const MOST_OWED: Duration = Duration::from_secs(10);
/// Addresses without a connection that are remembered.
const REMEMBERED: usize = 16_384;

/// Who is told apart from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Key {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            // Whoever has a /64 has all its addresses.
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// What one address has.
#[derive(Debug)]
struct Slot {
    sockets: AtomicUsize,
    links: AtomicUsize,
    limit: usize,
    rate: Rate,
    connects: Mutex<Bucket>,
    /// Since when times are counted.
    begun: Instant,
}

impl Slot {
    fn is_forgotten(&self, now: Duration) -> bool {
        let owes = self.connects.lock().unwrap_or_else(PoisonError::into_inner).debt(now) > Duration::ZERO;
        !owes && !self.is_used()
    }

    fn is_used(&self) -> bool {
        self.sockets.load(Ordering::Relaxed) > 0 || self.links.load(Ordering::Relaxed) > 0
    }

    fn too_many(&self) -> Refusal {
        let limit = self.limit;
        let text = format!("your address has {limit} connections, the most it may have; close some first");
        Refusal::limit(
            Reason::TooManyFromAddress,
            text,
            ("limits.connections_per_ip", limit as u64),
        )
        .after(Duration::from_secs(1))
    }

    fn connect(&self, now: Duration) -> Result<(), Refusal> {
        let mut connects = self.connects.lock().unwrap_or_else(PoisonError::into_inner);
        connects.take(1, self.rate, now).map_err(|wait| {
            let limit = self.rate.per_second();
            let text = format!("your address opens more than {limit} connections in a second; wait before the next");
            let setting = ("limits.connects_per_second", limit);
            Refusal::limit(Reason::TooManyFromAddress, text, setting).after(wait)
        })
    }
}

/// Takes one more, if there may be.
fn take(count: &AtomicUsize, limit: usize) -> bool {
    let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
        (count < limit).then_some(count + 1)
    });
    taken.is_ok()
}

/// The address of a client.
#[derive(Clone, Debug)]
pub struct Client(Arc<Slot>);

impl Client {
    /// A connection from there was ended for a flood.
    pub(super) fn flooded(&self) {
        let slot = &self.0;
        let now = clock().mono.saturating_duration_since(slot.begun);
        let mut connects = slot.connects.lock().unwrap_or_else(PoisonError::into_inner);
        if connects.debt(now) < MOST_OWED {
            connects.spend(FLOOD, slot.rate, now);
        }
    }

    /// A place for one more WebSocket or stream.
    pub(super) fn link(&self) -> Result<Place, Refusal> {
        match take(&self.0.links, self.0.limit) {
            true => Ok(Place(Arc::clone(&self.0))),
            false => Err(self.0.too_many()),
        }
    }
}

/// A WebSocket's or stream's place among those of its client's address.
#[derive(Debug)]
pub(super) struct Place(Arc<Slot>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.links.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether an address is held to limits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is one client's.
    Client,
    /// It is that of a proxy, behind which there are many.
    Proxy,
}

/// A TCP connection that was let in, until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    counts: Arc<Counts>,
    client: Option<Client>,
}

impl Admitted {
    /// Whose it is, if that is held to limits.
    pub fn client(&self) -> Option<Client> {
        self.client.clone()
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.counts.sockets.fetch_sub(1, Ordering::Relaxed);
        if let Some(client) = &self.client {
            client.0.sockets.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    sockets: AtomicUsize,
    refused: AtomicU64,
}

/// Lets connections in.
#[derive(Debug)]
pub struct Admission {
    sockets: usize,
    connections_per_ip: usize,
    rate: Rate,
    counts: Arc<Counts>,
    table: Mutex<HashMap<Key, Arc<Slot>>>,
    begun: Instant,
}

impl Admission {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            sockets: limits.sockets,
            connections_per_ip: limits.connections_per_ip,
            rate: Rate::new(limits.connects_per_second.into(), BURST_SECONDS),
            counts: Arc::default(),
            table: Mutex::default(),
            begun: clock().mono,
        }
    }

    /// Lets in one more TCP connection from this address, or says why not.
    pub fn admit(&self, address: IpAddr, trust: Trust) -> Result<Admitted, Refusal> {
        let admitted = self.admit_at(address, trust, clock().mono.saturating_duration_since(self.begun));
        if admitted.is_err() {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    fn admit_at(&self, address: IpAddr, trust: Trust, now: Duration) -> Result<Admitted, Refusal> {
        if !take(&self.counts.sockets, self.sockets) {
            let limit = self.sockets as u64;
            let text = format!("the gateway has {limit} TCP connections, the most it may have; try again later");
            let refusal = Refusal::limit(Reason::TooManySockets, text, ("limits.sockets", limit));
            return Err(refusal.after(Duration::from_secs(1)));
        }
        let mut admitted = Admitted {
            counts: Arc::clone(&self.counts),
            client: None,
        };
        if trust == Trust::Proxy {
            return Ok(admitted);
        }
        let client = self.client_at(address, now);
        client.0.connect(now)?;
        if !take(&client.0.sockets, client.0.limit) {
            return Err(client.0.too_many());
        }
        admitted.client = Some(client);
        Ok(admitted)
    }

    /// The client at this address, for connections whose sockets are somebody else's, such as those behind a proxy.
    pub fn client(&self, address: IpAddr) -> Client {
        self.client_at(address, clock().mono.saturating_duration_since(self.begun))
    }

    fn client_at(&self, address: IpAddr, now: Duration) -> Client {
        let key = Key::from(address);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= table.capacity() && !table.contains_key(&key) {
            forget(&mut table, now);
        }
        let slot = table.entry(key).or_insert_with(|| {
            Arc::new(Slot {
                sockets: AtomicUsize::new(0),
                links: AtomicUsize::new(0),
                limit: self.connections_per_ip,
                rate: self.rate,
                connects: Mutex::default(),
                begun: self.begun,
            })
        });
        Client(Arc::clone(slot))
    }

    /// How many TCP connections were refused since the start.
    pub fn refused(&self) -> u64 {
        self.counts.refused.load(Ordering::Relaxed)
    }

    /// How many TCP connections there are.
    pub fn sockets(&self) -> usize {
        self.counts.sockets.load(Ordering::Relaxed)
    }
}

/// Before the table grows, those are forgotten that have nothing and owe nothing; and, if that leaves too many, those that
/// have nothing.
fn forget(table: &mut HashMap<Key, Arc<Slot>>, now: Duration) {
    let is_held = |slot: &Arc<Slot>| Arc::strong_count(slot) > 1;
    table.retain(|_, slot| is_held(slot) || !slot.is_forgotten(now));
    let idle = table.values().filter(|slot| !is_held(slot) && !slot.is_used()).count();
    if idle > REMEMBERED {
        table.retain(|_, slot| is_held(slot) || slot.is_used());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1);

    fn admission(sockets: usize, per_ip: usize, per_second: u32) -> Admission {
        Admission::new(&Limits {
            sockets,
            connections_per_ip: per_ip,
            connects_per_second: per_second,
            ..Limits::default()
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn refused(admission: &Admission, address: &str, now: Duration) -> Refusal {
        admission.admit_at(ip(address), Trust::Client, now).unwrap_err()
    }

    #[test]
    fn an_address_has_as_many_as_it_may_and_gets_its_place_back() {
        let admission = admission(100, 2, 100);
        let one = admission.admit_at(ip("10.0.0.1"), Trust::Client, START).unwrap();
        let _two = admission.admit_at(ip("::ffff:10.0.0.1"), Trust::Client, START).unwrap();
        let refusal = refused(&admission, "10.0.0.1", START);
        assert_eq!(refusal.reason, Reason::TooManyFromAddress);
        assert_eq!(refusal.details[0], ("limit", "2".to_owned()));
        assert_eq!(refusal.details[1], ("setting", "limits.connections_per_ip".to_owned()));
        let _other = admission.admit_at(ip("10.0.0.2"), Trust::Client, START).unwrap();
        assert_eq!(admission.sockets(), 3);
        drop(one);
        let _again = admission.admit_at(ip("10.0.0.1"), Trust::Client, START).unwrap();
        assert_eq!(admission.sockets(), 3);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let admission = admission(100, 1, 100);
        let _one = admission
            .admit_at(ip("2001:db8:1:2:3::1"), Trust::Client, START)
            .unwrap();
        refused(&admission, "2001:db8:1:2:ffff::9", START);
        let _other = admission.admit_at(ip("2001:db8:1:3::1"), Trust::Client, START).unwrap();
    }

    #[test]
    fn new_connections_have_a_rate() {
        let admission = admission(1_000, 1_000, 10);
        let burst: Vec<_> = (0..100)
            .filter_map(|_| admission.admit_at(ip("10.0.0.1"), Trust::Client, START).ok())
            .collect();
        assert_eq!(burst.len(), 50);
        assert_eq!(admission.sockets(), 50, "what was refused takes no place");
        let refusal = refused(&admission, "10.0.0.1", START);
        assert_eq!(refusal.details[1].1, "limits.connects_per_second");
        assert_eq!(refusal.retry_after, Some(Duration::from_millis(100)));
        let later = START + Duration::from_millis(100);
        assert!(admission.admit_at(ip("10.0.0.1"), Trust::Client, later).is_ok());
    }

    #[test]
    fn a_flood_counts_for_many_connections() {
        let admission = admission(1_000, 1_000, 10);
        let client = admission.client(ip("10.0.0.1"));
        client.flooded();
        let now = clock().mono.saturating_duration_since(admission.begun);
        let let_in = (0..100).filter_map(|_| admission.admit_at(ip("10.0.0.1"), Trust::Client, now).ok());
        let held: Vec<_> = let_in.collect();
        assert_eq!(held.len(), 25, "of the fifty that may come at once");
        (0..100).for_each(|_| client.flooded());
        let wait = refused(&admission, "10.0.0.1", now).retry_after.unwrap();
        assert!(wait < MOST_OWED, "{wait:?}");
        assert!(admission.admit_at(ip("10.0.0.2"), Trust::Client, now).is_ok());
    }

    #[test]
    fn proxies_are_not_counted_as_clients_but_all_are_counted() {
        let admission = admission(3, 1, 1);
        let held: Vec<_> = (0..3)
            .map(|_| admission.admit_at(ip("10.0.0.1"), Trust::Proxy, START).unwrap())
            .collect();
        let refusal = refused(&admission, "10.0.0.2", START);
        assert_eq!(refusal.reason, Reason::TooManySockets);
        drop(held);
        assert_eq!(admission.sockets(), 0);
    }

    #[test]
    fn links_of_an_address_are_counted_too() {
        let admission = admission(10, 2, 10);
        let client = admission.client(ip("10.0.0.1"));
        let one = client.link().unwrap();
        let _two = client.link().unwrap();
        assert_eq!(client.link().unwrap_err().reason, Reason::TooManyFromAddress);
        drop(one);
        client.link().unwrap();
    }

    #[test]
    fn addresses_that_have_nothing_are_forgotten() {
        let admission = admission(10, 1, 1);
        let held = admission.admit_at(ip("10.255.0.1"), Trust::Client, START).unwrap();
        for count in 0..200_000_u32 {
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(count));
            // Each owes for its connection for a second.
            let now = START + Duration::from_micros(u64::from(count));
            drop(admission.admit_at(address, Trust::Client, now).unwrap());
        }
        let size = admission.table.lock().unwrap().len();
        assert!(size <= 4 * REMEMBERED, "{size}");
        refused(&admission, "10.255.0.1", START + Duration::from_secs(10));
        drop(held);
    }
}
