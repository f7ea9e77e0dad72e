//! The documents, and when to ask for new ones: a state machine without I/O. [`super::vend`] does what it says.
//!
//! One [`Flight`] at a time for each (session, role): whoever asks meanwhile waits for it. A document that nobody used
//! since it was fetched is not renewed in the background. What credvend takes back ([`Cache::forget`], [`Cache::renew`])
//! it takes back from flights under way, too: what they bring is nobody's.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use credd_protocol::{RoleName, SessionId};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::clock::{Dice, Now};
use super::freshness::{FIRST_WANTED, Life, Verdict};
use super::trouble::Trouble;

/// Whose credentials.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// credvend's session.
    pub session: SessionId,
    /// The role within its project.
    pub role: RoleName,
}

/// A document as it is sent, and its life.
#[derive(Debug, Clone)]
pub struct Document {
    /// The JSON.
    pub body: Bytes,
    /// How long it is good.
    pub life: Life,
}

/// One request to credvend under way.
#[derive(Debug)]
pub struct Flight {
    /// The remaining life to ask for.
    pub wanted: Duration,
    generation: u64,
    /// credvend looks at the session after this.
    started: Now,
    /// In the background, for what was taken back.
    refetch: bool,
    /// What it brings is not to be used as it is: it was taken back, or something was missed meanwhile.
    void: Cell<bool>,
    landed: RefCell<Option<Result<Document, Trouble>>>,
    notify: Notify,
}

impl Flight {
    fn new(wanted: Duration, generation: u64, started: Now) -> Rc<Self> {
        Rc::new(Self::over(wanted, generation, started, false))
    }

    fn over(wanted: Duration, generation: u64, started: Now, refetch: bool) -> Self {
        let (void, landed, notify) = Default::default();
        Flight { wanted, generation, started, refetch, void, landed, notify }
    }

    /// What it brought, once it has landed; `None` as soon as that is not to be used: look again how things are.
    pub async fn outcome(&self) -> Option<Result<Document, Trouble>> {
        loop {
            // Made before the look: a landing in between still wakes it.
            let landed = self.notify.notified();
            if self.void.get() {
                return None;
            }
            if let Some(outcome) = &*self.landed.borrow() {
                return Some(outcome.clone());
            }
            landed.await;
        }
    }

    /// Whether nobody wants it any more.
    pub fn is_void(&self) -> bool {
        self.void.get()
    }

    fn make_void(&self) {
        self.void.set(true);
        // Whoever has not picked it up shall not.
        self.landed.borrow_mut().take();
        self.notify.notify_waiters();
    }
}

/// When credvend was last heard on its stream, where it tells what it takes back, and how long that may be ago for a
/// document to be served. `None`: for ever.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silence {
    /// The last word.
    pub heard: Option<Now>,
    /// The bound.
    pub max: Option<Duration>,
}

impl Silence {
    /// Whether a document for which credvend last vouched at `vouched` is beyond the bound. By either clock: a wall clock
    /// can be set back, and the other one stands still while the machine sleeps.
    fn lasts_too_long(&self, vouched: Now, now: Now) -> bool {
        let Some(max) = self.max else { return false };
        let silent_since = |at: Now| {
            let by_wall = Duration::try_from(now.wall - at.wall).unwrap_or_default();
            by_wall.max(now.mono.saturating_duration_since(at.mono))
        };
        silent_since(vouched) > max && self.heard.is_none_or(|heard| silent_since(heard) > max)
    }
}

/// What to do for a request.
#[derive(Debug)]
pub enum Step {
    /// Answer with this.
    Serve(Bytes),
    /// Answer with this, and start the flight.
    ServeAndFly(Bytes, Rc<Flight>),
    /// Start the flight if `start`; wait for it; if it brings nothing, serve the fallback.
    Wait {
        /// What to wait for.
        flight: Rc<Flight>,
        /// Whether the caller must start it.
        start: bool,
        /// A document that still lives now; after the wait it must be looked at again.
        fallback: Option<Document>,
        /// credvend failed lately, and there is a fallback: do not wait long.
        briefly: bool,
    },
    /// There is nothing, and credvend is not asked before `until`.
    Hold {
        /// When to come again.
        until: Instant,
        /// What credvend's last answer was.
        trouble: Trouble,
    },
}

#[derive(Debug, Default)]
struct Entry {
    document: Option<Document>,
    /// When the flight that brought it set out: credvend has vouched for the session since.
    vouched: Option<Now>,
    flight: Option<Rc<Flight>>,
    failures: u32,
    trouble: Option<Trouble>,
    /// No request to credvend before this, whoever wants it.
    not_before: Option<Instant>,
    /// Nor one in the background before this.
    not_ahead_before: Option<Instant>,
    /// Asked for since the last fetch.
    used: bool,
    /// credvend may have said something about it that was not heard.
    suspect: bool,
    /// It was in use and was taken back: fetched anew from here on, also if nobody asks.
    refetch: Option<Instant>,
    born: u64,
}

/// After an outage: soon again, since a job waits for it.
const AFTER_OUTAGE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
/// After a no: a misconfigured job must not storm credvend.
const AFTER_NO: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(10));
/// In the background nobody waits.
const IN_BACKGROUND: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));
/// What was in use and was taken back is fetched anew within this: a whole cluster hears of it in one moment.
const REFETCH_SPREAD: Duration = Duration::from_secs(10);
/// So often it is tried.
const REFETCHES: u32 = 8;
/// So many of the oldest entries are looked at for one that can go.
const EVICTION_LOOKS: usize = 64;

/// What credvend says about when to ask again is believed up to this.
const LONGEST_BUSY: Duration = Duration::from_secs(60);

/// How the cache is configured.
#[derive(Debug, Clone, Copy)]
pub struct CacheSettings {
    /// Keep documents; otherwise each is given to those who wait for it and forgotten.
    pub store: bool,
    /// At most so many entries; the oldest goes first.
    pub max_entries: usize,
}

/// All documents of the node.
pub struct Cache {
    settings: CacheSettings,
    /// Boxed: a table has room for twice as many.
    entries: HashMap<Key, Box<Entry>>,
    by_age: BTreeMap<u64, Key>,
    births: u64,
    generation: u64,
    /// What has landed and may not have been picked up yet by all who waited.
    landed: Vec<(SessionId, Weak<Flight>)>,
    dice: Rc<dyn Dice>,
}

impl Cache {
    /// An empty one.
    pub fn new(settings: CacheSettings, dice: Rc<dyn Dice>) -> Self {
        Cache {
            settings,
            entries: HashMap::new(),
            by_age: BTreeMap::new(),
            births: 0,
            generation: 0,
            landed: Vec::new(),
            dice,
        }
    }

    /// How it is to work from now on. Without a store nothing that is held is served again.
    pub fn configure(&mut self, settings: CacheSettings) {
        self.settings = settings;
        if !settings.store {
            self.entries.values_mut().for_each(|entry| entry.document = None);
        }
    }

    /// Somebody wants the credentials of `key`. Nothing is served from here beyond the bound on `silence`.
    pub fn ask(&mut self, key: &Key, now: Now, silence: Silence) -> Step {
        let generation = self.generation;
        let Some(entry) = self.entries.get_mut(key) else {
            let flight = Flight::new(FIRST_WANTED, generation, now);
            let entry = Entry { flight: Some(flight.clone()), used: true, ..Entry::default() };
            self.insert(key.clone(), Box::new(entry));
            return Step::Wait { flight, start: true, fallback: None, briefly: false };
        };
        entry.used = true;
        let mut wanted = FIRST_WANTED;
        let mut fallback = None;
        if let Some(document) = &entry.document {
            wanted = document.life.wanted();
            let verdict = document.life.verdict(now);
            let unheard = entry.vouched.is_none_or(|vouched| silence.lasts_too_long(vouched, now));
            match verdict {
                Verdict::Serve | Verdict::ServeAndRenew if !entry.suspect && !unheard => {
                    let body = document.body.clone();
                    let may_renew = entry.flight.is_none() && entry.not_ahead_before.is_none_or(|at| now.mono >= at);
                    if verdict == Verdict::ServeAndRenew && may_renew {
                        let flight = Flight::new(wanted, generation, now);
                        entry.flight = Some(flight.clone());
                        entry.used = false;
                        return Step::ServeAndFly(body, flight);
                    }
                    return Step::Serve(body);
                }
                Verdict::Dead => entry.document = None,
                // Only to be verified: what is here would do, so credvend need not ask AWS anew.
                Verdict::Serve | Verdict::ServeAndRenew => {
                    wanted = document.life.floor();
                    fallback = (!unheard).then(|| document.clone());
                }
                Verdict::RenewFirst => fallback = (!unheard).then(|| document.clone()),
            }
        }
        let briefly = entry.failures > 0 && fallback.is_some();
        if let Some(flight) = entry.flight.clone() {
            return Step::Wait { flight, start: false, fallback, briefly };
        }
        if let Some(until) = entry.not_before.filter(|at| now.mono < *at) {
            return match (fallback, &entry.trouble) {
                (Some(document), _) => Step::Serve(document.body),
                (None, Some(trouble)) => Step::Hold { until, trouble: trouble.clone() },
                (None, None) => {
                    let why = "credvend's last credentials for this job are already over; are the clocks right?";
                    Step::Hold { until, trouble: Trouble::Outage(why.to_owned()) }
                }
            };
        }
        let flight = Flight::new(wanted, generation, now);
        entry.flight = Some(flight.clone());
        entry.refetch = None;
        Step::Wait { flight, start: true, fallback, briefly }
    }

    /// What was fetched was not for somebody who asked: it need not be renewed before somebody does.
    pub fn unused(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.used = false;
        }
    }

    /// A flight has landed: the cache learns from it, then those who wait.
    pub fn landed(&mut self, key: &Key, flight: &Rc<Flight>, outcome: Result<Document, Trouble>, now: Now) {
        let current = self.entries.get_mut(key).filter(|e| e.flight.as_ref().is_some_and(|f| Rc::ptr_eq(f, flight)));
        if flight.void.get() {
            return;
        }
        if let Some(entry) = current {
            entry.flight = None;
            match &outcome {
                Ok(document) => {
                    entry.failures = 0;
                    entry.trouble = None;
                    entry.suspect = flight.generation != self.generation;
                    // If credvend can give no fresher one, asking at each request does not help.
                    let pause = (document.life.whole() / 40).clamp(Duration::from_millis(200), Duration::from_secs(60));
                    let stale = self.settings.store && document.life.verdict(now) != Verdict::Serve;
                    entry.not_before = (stale && !entry.suspect).then(|| now.mono + pause);
                    entry.not_ahead_before = entry.not_before;
                    entry.document = self.settings.store.then(|| document.clone());
                    entry.vouched = Some(flight.started);
                }
                Err(trouble) => {
                    entry.failures = entry.failures.saturating_add(1);
                    let dice = &*self.dice;
                    let (failures, outage) = (entry.failures, matches!(trouble, Trouble::Outage(_)));
                    let (wait, behind) = match trouble {
                        // Thousands of nodes may have been told the same.
                        Trouble::Busy(_, after) => {
                            let wait = after.min(&LONGEST_BUSY).mul_f64(1.0 + dice.roll() / 10.0);
                            (wait, wait)
                        }
                        _ => {
                            let wait = if outage { AFTER_OUTAGE } else { AFTER_NO }.wait(failures, dice);
                            (wait, IN_BACKGROUND.wait(failures, dice).max(wait))
                        }
                    };
                    entry.not_before = Some(now.mono + wait);
                    entry.not_ahead_before = Some(now.mono + behind);
                    if matches!(trouble, Trouble::Never(_) | Trouble::Over(_) | Trouble::Gone(_)) {
                        entry.document = None;
                    } else if flight.refetch && failures < REFETCHES {
                        // credvend gives nothing under a name that it has just revoked, for some seconds.
                        entry.refetch = entry.not_ahead_before;
                    }
                    entry.trouble = Some(trouble.clone());
                }
            }
        }
        if outcome.is_ok() && flight.generation != self.generation {
            // It set out before something was missed: it is verified before anybody gets it.
            flight.make_void();
            return;
        }
        *flight.landed.borrow_mut() = Some(outcome);
        flight.notify.notify_waiters();
        self.landed.retain(|(_, flight)| flight.strong_count() > 0);
        self.landed.push((key.session, Rc::downgrade(flight)));
    }

    /// Starts the flights that are due ahead of anybody's need, and says when to look again at the latest.
    pub fn due(&mut self, now: Now, longest: Duration) -> (Vec<(Key, Rc<Flight>)>, Duration) {
        let (mut flights, mut next) = (Vec::new(), longest);
        for (key, entry) in &mut self.entries {
            if let Some(at) = entry.refetch.filter(|_| entry.flight.is_none()) {
                let at = entry.not_before.map_or(at, |held| held.max(at));
                if now.mono >= at {
                    let flight = Rc::new(Flight::over(FIRST_WANTED, self.generation, now, true));
                    (entry.flight, entry.refetch, entry.used) = (Some(flight.clone()), None, false);
                    flights.push((key.clone(), flight));
                } else {
                    next = next.min(at - now.mono);
                }
                continue;
            }
            let Some(document) = &entry.document else { continue };
            let life = document.life;
            if life.verdict(now) == Verdict::Dead {
                // Nobody may have it any more, so it need not lie in memory.
                entry.document = None;
                continue;
            }
            if !entry.used || entry.flight.is_some() {
                continue;
            }
            let wait = match entry.not_ahead_before.filter(|at| now.mono < *at) {
                Some(at) => (at - now.mono).max(life.left(now).saturating_sub(life.ahead())),
                None => life.left(now).saturating_sub(life.ahead()),
            };
            if wait.is_zero() {
                let flight = Flight::new(life.wanted(), self.generation, now);
                entry.flight = Some(flight.clone());
                entry.used = false;
                flights.push((key.clone(), flight));
            } else {
                next = next.min(wait);
            }
        }
        // Entries that hold nothing but an old refusal are forgotten.
        let old: Vec<Key> = self
            .entries
            .iter()
            .filter(|(_, e)| e.document.is_none() && e.flight.is_none() && e.refetch.is_none())
            .filter(|(_, e)| e.not_before.is_none_or(|at| now.mono > at + Duration::from_secs(60)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in old {
            self.remove(&key);
        }
        (flights, next.max(Duration::from_millis(20)))
    }

    /// The sessions are over here: their documents are dropped, and what is on its way is nobody's.
    pub fn forget(&mut self, sessions: &HashSet<SessionId>) {
        let keys: Vec<Key> = self.entries.keys().filter(|k| sessions.contains(&k.session)).cloned().collect();
        for key in keys {
            if let Some(flight) = self.remove(&key).and_then(|entry| entry.flight) {
                flight.make_void();
            }
        }
        self.take_back_landed(sessions);
    }

    fn take_back_landed(&mut self, sessions: &HashSet<SessionId>) {
        for (_, flight) in self.landed.iter().filter(|(session, _)| sessions.contains(session)) {
            if let Some(flight) = flight.upgrade() {
                flight.make_void();
            }
        }
    }

    /// What was issued for the sessions so far is dead in AWS: it is dropped, on its way or not. Whoever needs it next has
    /// it fetched anew; what was in use is fetched anew in any case, a little later.
    pub fn renew(&mut self, sessions: &HashSet<SessionId>, now: Now) {
        for (_, entry) in self.entries.iter_mut().filter(|(key, _)| sessions.contains(&key.session)) {
            let held = entry.document.take().is_some();
            let flight = entry.flight.take();
            entry.suspect = false;
            if entry.trouble.is_none() {
                // It was held back for the document's sake.
                (entry.not_before, entry.not_ahead_before) = (None, None);
            }
            if entry.used && held || flight.is_some() {
                entry.refetch = Some(now.mono + REFETCH_SPREAD.mul_f64(self.dice.roll()));
            }
            if let Some(flight) = flight {
                flight.make_void();
            }
        }
        self.take_back_landed(sessions);
    }

    /// Something that credvend said was missed: every document must be asked for again before it is served. Where
    /// credvend cannot be had it is still served.
    pub fn suspect_all(&mut self) {
        self.generation += 1;
        for flight in self.landed.drain(..).filter_map(|(_, flight)| flight.upgrade()) {
            flight.make_void();
        }
        for entry in self.entries.values_mut() {
            entry.suspect = entry.document.is_some();
            entry.not_before = None;
        }
    }

    /// credvend is back: what failed for its absence may be asked for at once.
    pub fn heard_again(&mut self) {
        for entry in self.entries.values_mut().filter(|e| matches!(e.trouble, Some(Trouble::Outage(_)))) {
            entry.not_before = None;
            entry.not_ahead_before = None;
        }
    }

    /// When the document of `key` expires, if there is one.
    pub fn until(&self, key: &Key) -> Option<time::OffsetDateTime> {
        Some(self.entries.get(key)?.document.as_ref()?.life.expires())
    }

    /// When the document of `key` expires that could not be renewed when it was last tried.
    pub fn failing_until(&self, key: &Key) -> Option<time::OffsetDateTime> {
        self.until(key).filter(|_| self.entries.get(key).is_some_and(|entry| entry.failures > 0))
    }

    /// Why there is no document of `key`, as far as credvend was asked for one.
    pub fn lacks(&self, key: &Key) -> Option<&Trouble> {
        let entry = self.entries.get(key).filter(|entry| entry.document.is_none())?;
        entry.trouble.as_ref()
    }

    /// Everything that the entries hold, times relative to now, for telling states apart.
    #[cfg(test)]
    pub fn sketch<D: std::fmt::Debug>(
        &self,
        now: Now,
        own: impl Fn(&Key) -> bool,
        known: impl Fn(&Bytes) -> D,
    ) -> String {
        let from_now = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(now.mono));
        let mut entries: Vec<String> = self
            .entries
            .iter()
            .map(|(key, e)| {
                let document = e.document.as_ref().map(|d| (known(&d.body), d.life.left(now)));
                let held = (from_now(e.not_before), from_now(e.not_ahead_before), from_now(e.refetch));
                let flight = e
                    .flight
                    .as_ref()
                    .map(|flight| (flight.wanted, flight.refetch, flight.generation == self.generation));
                format!(
                    "{} {document:?} {flight:?} {} {:?} {held:?} {} {}",
                    own(key),
                    e.failures,
                    e.trouble,
                    e.used,
                    e.suspect
                )
            })
            .collect();
        entries.sort();
        entries.join(";")
    }

    /// How many entries there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn insert(&mut self, key: Key, mut entry: Box<Entry>) {
        while self.entries.len() >= self.settings.max_entries.max(1) {
            // Not one that is being fetched: a flight that no entry knows could not be taken back. If all are, there is
            // one too many for a while.
            let idle = |key: &Key| self.entries.get(key).is_none_or(|entry| entry.flight.is_none());
            let Some(oldest) = self.by_age.values().take(EVICTION_LOOKS).find(|key| idle(key)).cloned() else { break };
            self.remove(&oldest);
        }
        self.births += 1;
        entry.born = self.births;
        self.by_age.insert(self.births, key.clone());
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Key) -> Option<Box<Entry>> {
        let entry = self.entries.remove(key)?;
        self.by_age.remove(&entry.born);
        Some(entry)
    }
}

#[cfg(test)]
mod tests;
