//! The connections of one listener: how many there may be, and when one is closed.
//!
//! A connection that idles, sends its request's head too slowly, or never reads its answer is closed by one sweep over all
//! connections four times in the allowed time, instead of a timer for each request: timers cost more than everything else
//! that a cached answer takes.
//!
//! Nobody waits for a place. Where a bound is reached, a connection of the user who has most of them makes room for the
//! newcomer, an idle one before one that waits for an answer: one user, or a few together, cannot keep the others out.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

const SWEEPS: u32 = 4;

/// A full listener is logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Why a connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Nothing happened for too long.
    Idle,
    /// A newcomer has its place.
    Crowded,
    /// The server stops.
    Stopping,
}

/// How many connections there may be at a time.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of all users together.
    pub all: usize,
    /// Of one user.
    pub per_user: usize,
    /// Of all users together who have no job here.
    pub strangers: usize,
}

/// What one user has at a listener.
#[derive(Debug)]
pub struct Holder {
    uid: u32,
    open: Cell<usize>,
}

impl Holder {
    /// A user without connections.
    pub fn new(uid: u32) -> Rc<Self> {
        Rc::new(Holder { uid, open: Cell::default() })
    }
}

/// All connections of a listener.
#[derive(Debug)]
pub struct Watch {
    bounds: Cell<Bounds>,
    sweep: Cell<u32>,
    stopping: Cell<bool>,
    /// Connections that are not being closed, and those of them that are of users without a job here.
    open: Cell<usize>,
    strangers: Cell<usize>,
    born: Cell<u64>,
    all: RefCell<Vec<Rc<Watched>>>,
    empty: Notify,
    logged: Cell<Option<Instant>>,
    /// Of the connections that were open when the stop began, how many still are.
    earlier: Cell<usize>,
    earlier_closed: Notify,
}

/// One connection, watched until dropped.
pub struct Connection {
    watch: Rc<Watch>,
    watched: Rc<Watched>,
}

#[derive(Debug)]
struct Watched {
    holder: Rc<Holder>,
    stranger: bool,
    /// Its number among all that ever were.
    born: u64,
    /// Where it stands among all.
    place: Cell<usize>,
    /// The sweep before which it last did something.
    active: Cell<u32>,
    answering: Cell<bool>,
    /// It was open when the stop began.
    earlier: Cell<bool>,
    close: Cell<Option<Close>>,
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    /// Nobody is connected yet.
    pub fn new(bounds: Bounds) -> Rc<Self> {
        Rc::new(Watch {
            bounds: Cell::new(bounds),
            sweep: Cell::default(),
            stopping: Cell::default(),
            open: Cell::default(),
            strangers: Cell::default(),
            born: Cell::default(),
            all: RefCell::default(),
            empty: Notify::new(),
            logged: Cell::default(),
            earlier: Cell::default(),
            earlier_closed: Notify::new(),
        })
    }

    /// Other bounds from now on; nobody is closed for it.
    pub fn bound(&self, bounds: Bounds) {
        self.bounds.set(bounds);
    }

    /// A place for a new connection of `holder`; `stranger`: a user without a job here. `None` if nobody makes room: then
    /// the connection is to be closed without an answer, which SDKs take as a passing fault.
    pub fn admit(self: &Rc<Self>, holder: &Rc<Holder>, stranger: bool) -> Option<Connection> {
        let Bounds { all, per_user, strangers } = self.bounds.get();
        if holder.open.get() >= per_user && !self.make_room(holder, |other| Rc::ptr_eq(&other.holder, holder)) {
            return None;
        }
        if stranger && self.strangers.get() >= strangers && !self.make_room(holder, |other| other.stranger) {
            return None;
        }
        if self.open.get() >= all && !self.make_room(holder, |_| true) {
            return None;
        }
        let born = self.born.replace(self.born.get() + 1);
        let mut connections = self.all.borrow_mut();
        let watched = Rc::new(Watched {
            holder: holder.clone(),
            stranger,
            born,
            place: Cell::new(connections.len()),
            active: Cell::new(self.sweep.get()),
            answering: Cell::default(),
            earlier: Cell::default(),
            close: Cell::new(None),
            waker: RefCell::default(),
        });
        connections.push(watched.clone());
        self.count(&watched, |count| count + 1);
        if self.stopping.get() {
            self.close(&watched, Close::Stopping);
        }
        Some(Connection { watch: self.clone(), watched })
    }

    /// Closes one of the connections that `may_go` for a newcomer: of a user who has more than the newcomer, and of these
    /// of the one who has most, the one that has idled longest, or, if none idles, has waited longest for its answer. A
    /// newcomer who has most itself replaces an idle one of its own, or gets no place.
    fn make_room(&self, newcomer: &Rc<Holder>, may_go: impl Fn(&Watched) -> bool) -> bool {
        let connections = self.all.borrow();
        let open = || connections.iter().filter(|other| other.close.get().is_none() && may_go(other));
        let most = open().map(|other| other.holder.open.get()).max().unwrap_or(0);
        let outweighed = most > newcomer.open.get();
        let goes_first = |other: &&Rc<Watched>| {
            let idle_for = self.sweep.get().wrapping_sub(other.active.get());
            (other.answering.get(), Reverse(idle_for), other.born)
        };
        let victim = if outweighed {
            open().filter(|other| other.holder.open.get() == most).min_by_key(goes_first)
        } else {
            open().filter(|other| Rc::ptr_eq(&other.holder, newcomer) && !other.answering.get()).min_by_key(goes_first)
        };
        self.log(victim.map_or(newcomer, |victim| &victim.holder));
        victim.inspect(|victim| self.close(victim, Close::Crowded)).is_some()
    }

    fn log(&self, heaviest: &Holder) {
        let now = Instant::now();
        if self.logged.get().is_none_or(|at| now.duration_since(at) >= LOG_EVERY) {
            self.logged.set(Some(now));
            let (uid, of_this_uid, connections) = (heaviest.uid, heaviest.open.get(), self.open.get());
            tracing::warn!(uid, of_this_uid, connections, "too many connections: those of this uid make room");
        }
    }

    /// How many connections are not being closed.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// Sweeps for as long as the server lives.
    pub async fn sweep_all(&self, allowed: Duration) {
        loop {
            tokio::time::sleep(allowed / SWEEPS).await;
            let now = self.sweep.get().wrapping_add(1);
            self.sweep.set(now);
            self.each(|watched| {
                let idle = !watched.answering.get() && now.wrapping_sub(watched.active.get()) > SWEEPS;
                idle.then_some(Close::Idle)
            });
        }
    }

    /// Asks every connection to end after the answer it waits for.
    pub fn stop(&self) {
        self.stopping.set(true);
        let all = self.all.borrow();
        all.iter().for_each(|watched| watched.earlier.set(true));
        self.earlier.set(all.len());
        drop(all);
        self.each(|_| Some(Close::Stopping));
    }

    /// Whether an answer is its connection's last one.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Waits until the connections that were open when the stop began are closed.
    pub async fn earlier_closed(&self) {
        while self.earlier.get() > 0 {
            self.earlier_closed.notified().await;
        }
    }

    /// Waits until no connection is left.
    pub async fn emptied(&self) {
        while !self.all.borrow().is_empty() {
            self.empty.notified().await;
        }
    }

    fn each(&self, judge: impl Fn(&Watched) -> Option<Close>) {
        for watched in self.all.borrow().iter() {
            if let Some(close) = judge(watched) {
                self.close(watched, close);
            }
        }
    }

    /// From here on it counts no more.
    fn close(&self, watched: &Watched, close: Close) {
        if watched.close.replace(Some(close)).is_none() {
            self.count(watched, |count| count - 1);
        }
        if let Some(waker) = watched.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn count(&self, watched: &Watched, change: impl Fn(usize) -> usize) {
        let of_strangers = watched.stranger.then_some(&self.strangers);
        for count in [&self.open, &watched.holder.open].into_iter().chain(of_strangers) {
            count.set(change(count.get()));
        }
    }
}

/// See [`Connection::answering`].
pub struct Answering<'a>(&'a Connection);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.watched.answering.set(false);
        self.0.watched.active.set(self.0.watch.sweep.get());
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.watched.close.get().is_none() {
            self.watch.count(&self.watched, |count| count - 1);
        }
        let (mut all, place) = (self.watch.all.borrow_mut(), self.watched.place.get());
        all.swap_remove(place);
        if self.watched.earlier.get() {
            self.watch.earlier.set(self.watch.earlier.get() - 1);
            self.watch.earlier_closed.notify_one();
        }
        if let Some(moved) = all.get(place) {
            moved.place.set(place);
        }
        if all.is_empty() {
            self.watch.empty.notify_one();
        }
    }
}

impl Connection {
    /// A request is being answered until the guard is dropped: the connection may take its time.
    pub fn answering(&self) -> Answering<'_> {
        self.watched.answering.set(true);
        Answering(self)
    }

    /// Whether a request is being answered.
    pub fn is_answering(&self) -> bool {
        self.watched.answering.get()
    }

    /// Runs the connection until it ends (`None`) or must end.
    pub async fn run<C: Future>(&self, mut connection: Pin<&mut C>) -> Option<Close> {
        std::future::poll_fn(|cx| {
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            if let Some(close) = self.watched.close.get() {
                return Poll::Ready(Some(close));
            }
            let mut waker = self.watched.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    const AMPLE: Bounds = Bounds { all: 100, per_user: 100, strangers: 100 };

    fn closed(connection: &Connection) -> Option<Close> {
        connection.watched.close.get()
    }

    #[tokio::test(start_paused = true)]
    async fn the_idle_are_closed_and_those_being_answered_are_not() {
        let watch = Watch::new(AMPLE);
        let user = Holder::new(1001);
        let admit = || watch.admit(&user, false).unwrap();
        let (idle, busy) = (admit(), admit());
        let answering = busy.answering();
        let start = tokio::time::Instant::now();
        let mut forever = pin!(std::future::pending::<()>());
        tokio::select! {
            close = idle.run(forever.as_mut()) => assert_eq!(close, Some(Close::Idle)),
            () = watch.sweep_all(Duration::from_secs(10)) => {}
        }
        let after = start.elapsed().as_secs_f64();
        assert!((10.0..=12.6).contains(&after), "{after}");
        assert_eq!(closed(&busy), None);
        drop(answering);
        drop(idle);
        tokio::select! {
            close = busy.run(forever.as_mut()) => assert_eq!(close, Some(Close::Idle)),
            () = watch.sweep_all(Duration::from_secs(10)) => {}
        }
        assert!(start.elapsed().as_secs_f64() > after + 9.9);
        assert_eq!(watch.all.borrow().len(), 1, "those that are gone are forgotten at once");
        let more: Vec<_> = (0..10).map(|_| admit()).collect();
        drop(busy);
        drop(more);
        assert_eq!((watch.all.borrow().len(), watch.open(), user.open.get()), (0, 0, 0));
        watch.stop();
        let late = admit();
        assert_eq!(closed(&late), Some(Close::Stopping));
        let (emptied, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(60), watch.emptied()), async {
            tokio::task::yield_now().await;
            drop(late);
        });
        assert!(emptied.is_ok());
    }

    #[test]
    fn the_heaviest_users_oldest_idle_connection_makes_room() {
        let watch = Watch::new(Bounds { all: 6, ..AMPLE });
        let [heavy, light, other] = [1, 2, 3].map(Holder::new);
        let heavys: Vec<_> = (0..4).map(|_| watch.admit(&heavy, false).unwrap()).collect();
        let lights: Vec<_> = (0..2).map(|_| watch.admit(&light, false).unwrap()).collect();
        let first_answering = heavys[0].answering();
        let _others = watch.admit(&other, false).unwrap();
        assert_eq!(closed(&heavys[1]), Some(Close::Crowded), "the first one waits for its answer");
        drop(first_answering);
        watch.sweep.set(1);
        heavys[0].watched.active.set(1);
        let again = watch.admit(&light, false).unwrap();
        assert_eq!(closed(&heavys[2]), Some(Close::Crowded), "the first one was used since");
        // Three for the light user, two for the heavy one: now the light one is the heaviest.
        let third = watch.admit(&heavy, false).unwrap();
        assert_eq!(closed(&lights[0]), Some(Close::Crowded));
        assert!(
            [&again, &third, &heavys[0], &heavys[3], &lights[1]].iter().all(|connection| closed(connection).is_none())
        );
        assert_eq!((watch.open(), heavy.open.get(), light.open.get(), other.open.get()), (6, 3, 2, 1));
        drop((heavys, lights, again, third, _others));
        assert_eq!((watch.open(), heavy.open.get(), light.open.get(), other.open.get()), (0, 0, 0, 0));
    }

    #[test]
    fn where_none_idles_the_heaviest_users_oldest_wait_ends_and_the_heaviest_gets_nothing_more() {
        let watch = Watch::new(Bounds { all: 3, ..AMPLE });
        let [heavy, light] = [1, 2].map(Holder::new);
        let lights = watch.admit(&light, false).unwrap();
        let heavys: Vec<_> = (0..2).map(|_| watch.admit(&heavy, false).unwrap()).collect();
        let answering: Vec<_> = heavys.iter().map(Connection::answering).collect();
        assert!(watch.admit(&heavy, false).is_none(), "its own answers wait, and the light user's idle one stays");
        assert_eq!((closed(&lights), watch.open()), (None, 3));
        let newcomer = watch.admit(&Holder::new(3), false).unwrap();
        assert_eq!((closed(&heavys[0]), closed(&heavys[1])), (Some(Close::Crowded), None));
        assert_eq!((closed(&lights), closed(&newcomer)), (None, None));
        drop(answering);
    }

    #[test]
    fn a_users_bound_and_that_of_strangers_take_nothing_from_others() {
        let watch = Watch::new(Bounds { all: 100, per_user: 2, strangers: 3 });
        let user = Holder::new(1);
        let strangers: Vec<_> = (10..13).map(|uid| watch.admit(&Holder::new(uid), true).unwrap()).collect();
        let own: Vec<_> = (0..3).map(|_| watch.admit(&user, false).unwrap()).collect();
        assert_eq!(closed(&own[0]), Some(Close::Crowded));
        let more = watch.admit(&Holder::new(13), true).unwrap();
        assert_eq!(closed(&strangers[0]), Some(Close::Crowded));
        assert!(own[1..].iter().chain(&strangers[1..]).chain([&more]).all(|connection| closed(connection).is_none()));
        let answering: Vec<_> = own.iter().map(Connection::answering).collect();
        assert!(watch.admit(&user, false).is_none());
        drop(answering);
    }
}
