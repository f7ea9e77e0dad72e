//! Limits the number of connections: in total, for each address, and for each address without authentication.
//!
//! Any user of a node can open connections from that node's address. So connections without an authenticated request (of a
//! node, a head or an administrator) have a small limit of their own and a few seconds for each request. When the limit is
//! reached, the oldest of them is closed. Connections of the node's credd are not affected.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::tickets::Holder;
use crate::rates::{AddressRates, Rates};

/// Timeout of an unauthenticated connection for its handshake, and then for the header of each request.
pub const UNAUTHENTICATED_PATIENCE: Duration = Duration::from_secs(5);

/// Handshakes of one node that shows its ticket: so many a second, and so many at once after a pause. It has a standing
/// stream and at most 16 requests under way; beyond, its handshakes count against its address as all others do.
const TICKET_RATE: (u32, u32) = (4, 32);

/// The bounds of `[limits]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// `max-connections`.
    pub total: u32,
    /// `max-connections-per-address`.
    pub per_address: u32,
    /// `max-unauthenticated-per-address`.
    pub unauthenticated_per_address: u32,
    /// `handshakes-per-address`: TLS handshakes a second.
    pub handshakes_per_address: u32,
}

impl Bounds {
    /// These two limits, and the others in proportion to the second: if it is raised for many nodes behind one address, the
    /// others must be raised too.
    pub fn of(total: u32, per_address: u32) -> Self {
        Bounds {
            total,
            per_address,
            unauthenticated_per_address: Bounds::usual_unauthenticated(per_address),
            handshakes_per_address: Bounds::usual_handshakes(per_address),
        }
    }

    /// The default of `max-unauthenticated-per-address`: a quarter of `per_address`.
    pub fn usual_unauthenticated(per_address: u32) -> u32 {
        (per_address / 4).max(2)
    }

    /// The default of `handshakes-per-address`: an eighth of `per_address`. A node opens two connections, and again after an
    /// outage.
    pub fn usual_handshakes(per_address: u32) -> u32 {
        (per_address / 8).max(8)
    }
}

/// Counts connections, and closes unauthenticated ones when a limit is reached.
pub struct ConnectionLimits {
    bounds: Bounds,
    handshakes: AddressRates,
    with_ticket: Rates<Holder>,
    book: Arc<Book>,
}

#[derive(Default)]
struct Book {
    entries: Mutex<Entries>,
    left: Notify,
}

#[derive(Default)]
struct Entries {
    last: u64,
    open: u32,
    addresses: HashMap<IpAddr, OfAddress>,
    /// All unauthenticated connections, in the order in which they were accepted.
    unauthenticated: std::collections::BTreeMap<u64, (IpAddr, Arc<Shown>)>,
}

#[derive(Default)]
struct OfAddress {
    open: u32,
    unauthenticated: BTreeSet<u64>,
}

/// The state of a connection.
#[derive(Default)]
struct Shown {
    authenticated: AtomicBool,
    crowded_out: AtomicBool,
    /// Notified when the connection must close.
    give_way: Notify,
    requests: Mutex<Requests>,
}

struct Requests {
    under_way: u32,
    /// When the last request ended, or the connection was accepted.
    since: Instant,
}

impl Default for Requests {
    fn default() -> Self {
        Requests { under_way: 0, since: Instant::now() }
    }
}

/// Why the server closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// A limit was reached, and a later connection takes its place.
    Crowded,
    /// No request arrived in time.
    Late,
}

impl Closed {
    /// The word for the metrics.
    pub fn word(self) -> &'static str {
        match self {
            Closed::Crowded => "crowded",
            Closed::Late => "late",
        }
    }
}

/// A connection as it is counted; dropped when the connection ends.
pub struct Place {
    number: u64,
    address: IpAddr,
    shown: Arc<Shown>,
    book: Arc<Book>,
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// Closes the oldest unauthenticated connection, of this address or of all. Returns false if there is none.
    fn make_room(&mut self, of: Option<IpAddr>) -> bool {
        let oldest = match of {
            Some(address) => self.addresses.get(&address).and_then(|own| own.unauthenticated.first().copied()),
            None => self.unauthenticated.keys().next().copied(),
        };
        let Some(number) = oldest else { return false };
        let Some((address, shown)) = self.unauthenticated.get(&number).cloned() else { return false };
        shown.crowded_out.store(true, Ordering::Release);
        shown.give_way.notify_one();
        self.gone(number, address);
        true
    }

    /// Removes a connection from those without proof.
    fn proven(&mut self, number: u64, address: IpAddr) {
        self.unauthenticated.remove(&number);
        if let Some(own) = self.addresses.get_mut(&address) {
            own.unauthenticated.remove(&number);
        }
    }

    /// Removes a connection from the counts.
    fn gone(&mut self, number: u64, address: IpAddr) {
        self.unauthenticated.remove(&number);
        self.open -= 1;
        if let Some(own) = self.addresses.get_mut(&address) {
            own.unauthenticated.remove(&number);
            own.open -= 1;
            if own.open == 0 {
                self.addresses.remove(&address);
            }
        }
    }
}

impl ConnectionLimits {
    /// Creates the limits with these bounds.
    pub fn new(bounds: Bounds) -> Self {
        ConnectionLimits {
            bounds,
            // All nodes of an address may reconnect at once, as after an outage of credvend.
            handshakes: AddressRates::new(
                bounds.handshakes_per_address,
                bounds.per_address.max(bounds.handshakes_per_address),
            ),
            with_ticket: Rates::new(TICKET_RATE.0, TICKET_RATE.1),
            book: Arc::default(),
        }
    }

    /// Takes one TLS handshake from the rate of the node whose ticket was shown, else from the rate of the address. A
    /// handshake costs credvend more CPU time than its peer.
    ///
    /// # Errors
    /// The rate is exceeded; names the option.
    pub fn handshake(&self, place: &Place, ticket: Option<Holder>) -> Result<(), String> {
        let now = std::time::Instant::now();
        if ticket.is_some_and(|holder| self.with_ticket.take(holder, now).is_ok()) {
            place.stays();
            return Ok(());
        }
        self.handshakes.take(place.address, now).map_err(|_| {
            let most = self.bounds.handshakes_per_address;
            format!("[limits] handshakes-per-address = {most} a second is reached for this one")
        })
    }

    /// Counts a new connection of this address; if a limit is reached, closes the oldest unauthenticated one first.
    ///
    /// # Errors
    /// A limit is reached and there is no unauthenticated connection to close; names the option.
    pub fn enter(&self, address: IpAddr) -> Result<Place, String> {
        let Bounds { total, per_address, unauthenticated_per_address, .. } = self.bounds;
        let mut entries = self.book.lock();
        let (open, unauthenticated) = match entries.addresses.get(&address) {
            Some(own) => (own.open, own.unauthenticated.len()),
            None => (0, 0),
        };
        let crowded = open >= per_address || unauthenticated >= unauthenticated_per_address as usize;
        if crowded && !entries.make_room(Some(address)) {
            return Err(format!("[limits] max-connections-per-address = {per_address} is reached for this one"));
        }
        if entries.open >= total && !entries.make_room(None) {
            return Err(format!("[limits] max-connections = {total} is reached"));
        }
        entries.last += 1;
        entries.open += 1;
        let (number, shown) = (entries.last, Arc::<Shown>::default());
        entries.unauthenticated.insert(number, (address, shown.clone()));
        let own = entries.addresses.entry(address).or_default();
        own.open += 1;
        own.unauthenticated.insert(number);
        Ok(Place { number, address, shown, book: self.book.clone() })
    }

    /// Waits until every connection has ended, at most `patience`. Returns whether they have.
    pub async fn drained(&self, patience: Duration) -> bool {
        let empty = async {
            loop {
                let left = self.book.left.notified();
                let mut left = std::pin::pin!(left);
                left.as_mut().enable();
                if self.book.lock().open == 0 {
                    return;
                }
                left.await;
            }
        };
        tokio::time::timeout(patience, empty).await.is_ok()
    }
}

impl Place {
    /// Protects the connection from newer ones. It still has to authenticate in time.
    fn stays(&self) {
        let mut entries = self.book.lock();
        if !self.crowded_out() {
            entries.proven(self.number, self.address);
        }
    }

    /// Marks the connection as authenticated: a request was authenticated as a node, a head or an administrator.
    pub fn authenticated(&self) {
        if self.shown.authenticated.load(Ordering::Acquire) {
            return;
        }
        let mut entries = self.book.lock();
        if self.shown.crowded_out.load(Ordering::Acquire) || self.shown.authenticated.swap(true, Ordering::AcqRel) {
            return;
        }
        entries.proven(self.number, self.address);
    }

    /// Marks a request as under way until the returned guard is dropped.
    pub fn request(self: &Arc<Self>) -> UnderWay {
        self.shown.requests().under_way += 1;
        UnderWay(self.clone())
    }

    /// Whether the connection was closed because a limit was reached.
    pub fn crowded_out(&self) -> bool {
        self.shown.crowded_out.load(Ordering::Acquire)
    }

    /// Waits until the connection must be closed. Never returns for an authenticated connection.
    pub async fn over(&self) -> Closed {
        loop {
            let give_way = self.shown.give_way.notified();
            if self.shown.authenticated.load(Ordering::Acquire) {
                // Is never notified again.
                give_way.await;
                return Closed::Crowded;
            }
            let (under_way, deadline) = {
                let requests = self.shown.requests();
                (requests.under_way > 0, requests.since + UNAUTHENTICATED_PATIENCE)
            };
            if !under_way && Instant::now() >= deadline {
                return Closed::Late;
            }
            let next = if under_way { Instant::now() + UNAUTHENTICATED_PATIENCE } else { deadline };
            tokio::select! {
                () = give_way => return Closed::Crowded,
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut entries = self.book.lock();
        if !self.shown.crowded_out.load(Ordering::Acquire) {
            entries.gone(self.number, self.address);
        }
        if entries.open == 0 {
            self.book.left.notify_waiters();
        }
    }
}

impl Shown {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Place::request`].
pub struct UnderWay(Arc<Place>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut requests = self.0.shown.requests();
        requests.under_way -= 1;
        requests.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(total: u32, per_address: u32, unauthenticated_per_address: u32) -> Bounds {
        Bounds { unauthenticated_per_address, ..Bounds::of(total, per_address) }
    }

    fn addresses() -> (IpAddr, IpAddr) {
        (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]))
    }

    #[test]
    fn connections_are_bounded_in_all_and_per_address() {
        let limits = ConnectionLimits::new(bounds(3, 2, 2));
        let (a, b) = addresses();
        let known = |address| limits.enter(address).inspect(Place::authenticated);
        let (one, _two) = (known(a), known(a));
        assert!(one.is_ok());
        let third = limits.enter(a).err().unwrap();
        assert!(third.contains("max-connections-per-address = 2"), "{third}");
        let _three = known(b);
        let fourth = limits.enter(b).err().unwrap();
        assert!(fourth.contains("max-connections = 3"), "{fourth}");
        drop(one);
        assert!(limits.enter(a).is_ok());
    }

    #[tokio::test]
    async fn the_oldest_without_proof_gives_way_and_what_proved_itself_stays() {
        let limits = ConnectionLimits::new(bounds(100, 10, 2));
        let (a, b) = addresses();
        let node = limits.enter(a).unwrap();
        node.authenticated();
        let elsewhere = limits.enter(b).unwrap();
        let (first, second) = (limits.enter(a).unwrap(), limits.enter(a).unwrap());
        assert!(!first.crowded_out());
        let third = limits.enter(a).unwrap();
        assert_eq!(first.over().await, Closed::Crowded);
        assert!(!node.crowded_out() && !second.crowded_out() && !third.crowded_out() && !elsewhere.crowded_out());
        // It comes too late to prove anything, and is counted once.
        first.authenticated();
        drop(first);
        let entries = limits.book.lock();
        assert_eq!((entries.open, entries.unauthenticated.len(), entries.addresses[&a].open), (4, 3, 3));
    }

    #[test]
    fn when_all_places_are_taken_those_without_proof_make_room_whosever_they_are() {
        let limits = ConnectionLimits::new(bounds(3, 10, 10));
        let (a, b) = addresses();
        let (stranger, node) = (limits.enter(a).unwrap(), limits.enter(b).unwrap());
        node.authenticated();
        let other = limits.enter(a).unwrap();
        let late = limits.enter(b).unwrap();
        assert!(stranger.crowded_out() && !other.crowded_out() && !node.crowded_out());
        drop((stranger, node, other, late));
        let entries = limits.book.lock();
        assert_eq!((entries.open, entries.unauthenticated.len(), entries.addresses.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_nothing_for_some_seconds_is_late_unless_it_is_known() {
        let limits = ConnectionLimits::new(bounds(100, 10, 2));
        let (a, _) = addresses();
        let place = Arc::new(limits.enter(a).unwrap());
        let begun = Instant::now();
        let request = place.request();
        let waits = tokio::time::timeout(UNAUTHENTICATED_PATIENCE * 10, place.over()).await;
        assert!(waits.is_err(), "an answer takes as long as it takes");
        drop(request);
        let over = tokio::time::timeout(UNAUTHENTICATED_PATIENCE * 2, place.over()).await;
        assert_eq!(over.ok(), Some(Closed::Late));
        assert!(begun.elapsed() >= UNAUTHENTICATED_PATIENCE * 11);
        place.authenticated();
        assert!(tokio::time::timeout(UNAUTHENTICATED_PATIENCE * 10, place.over()).await.is_err());
    }

    fn ticket(node: &str) -> Option<Holder> {
        let (tickets, address) = (super::super::tickets::Tickets::by(b"key"), addresses().0);
        tickets.holder(&tickets.of(&"lab".parse().unwrap(), &node.parse().unwrap(), address).unwrap(), address)
    }

    #[test]
    fn handshakes_have_a_rate_that_follows_the_connections() {
        let limits = ConnectionLimits::new(Bounds::of(1000, 64));
        let (a, b) = addresses();
        let (of_a, of_b) = (limits.enter(a).unwrap(), limits.enter(b).unwrap());
        let granted = (0..1000).filter(|_| limits.handshake(&of_a, None).is_ok()).count();
        assert!((64..200).contains(&granted), "{granted}");
        assert!(limits.handshake(&of_a, None).unwrap_err().contains("handshakes-per-address = 8"));
        assert!(limits.handshake(&of_b, None).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_nodes_ticket_is_of_use_when_its_address_has_nothing_left_and_to_that_node_alone() {
        let limits = ConnectionLimits::new(bounds(1000, 64, 2));
        let (a, _) = addresses();
        let flood = limits.enter(a).unwrap();
        assert!((0..10_000).any(|_| limits.handshake(&flood, None).is_err()), "there is no bound");
        let node = Arc::new(limits.enter(a).unwrap());
        limits.handshake(&node, ticket("n1")).unwrap();
        // Those that come later do not push it out, whatever it has left to say.
        let later: Vec<_> = (0..10).map(|_| limits.enter(a).unwrap()).collect();
        assert!(!node.crowded_out() && later[0].crowded_out());
        assert_eq!(node.over().await, Closed::Late, "it must prove itself like everybody");
        let granted = (0..1000).filter(|_| limits.handshake(&node, ticket("n1")).is_ok()).count();
        assert!((20..100).contains(&granted), "a ticket has a rate, too: {granted}");
        assert!(limits.handshake(&node, ticket("n2")).is_ok(), "behind the same address");
        drop((node, later, flood));
        let entries = limits.book.lock();
        assert_eq!((entries.open, entries.unauthenticated.len(), entries.addresses.len()), (0, 0, 0));
    }
}
