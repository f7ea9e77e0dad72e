//! Closes connections that idle, send their request's head too slowly, or never read their answer.
//!
//! One sweep over all connections four times in the allowed time, instead of a timer for each request: timers cost more
//! than everything else that a cached answer takes.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

const SWEEPS: u32 = 4;

/// Why a connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Nothing happened for too long.
    Idle,
    /// The server stops.
    Stopping,
}

/// All connections.
#[derive(Debug, Default)]
pub struct Watch {
    sweep: Cell<u32>,
    stopping: Cell<bool>,
    all: RefCell<Vec<Rc<Watched>>>,
}

/// One connection, watched until dropped.
pub struct Connection<'a> {
    watch: &'a Watch,
    watched: Rc<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Where it stands among all.
    place: Cell<usize>,
    /// The sweep before which it last did something.
    active: Cell<u32>,
    answering: Cell<bool>,
    close: Cell<Option<Close>>,
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    /// A new connection.
    pub fn connection(&self) -> Connection<'_> {
        let watched = Rc::new(Watched::default());
        watched.active.set(self.sweep.get());
        watched.close.set(self.stopping.get().then_some(Close::Stopping));
        let mut all = self.all.borrow_mut();
        watched.place.set(all.len());
        all.push(watched.clone());
        Connection { watch: self, watched }
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
        self.each(|_| Some(Close::Stopping));
    }

    fn each(&self, judge: impl Fn(&Watched) -> Option<Close>) {
        for watched in self.all.borrow().iter() {
            if let Some(close) = judge(watched) {
                watched.close.set(Some(close));
                if let Some(waker) = watched.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
        }
    }
}

/// See [`Connection::answering`].
pub struct Answering<'a>(&'a Connection<'a>);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.watched.answering.set(false);
        self.0.watched.active.set(self.0.watch.sweep.get());
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        let (mut all, place) = (self.watch.all.borrow_mut(), self.watched.place.get());
        all.swap_remove(place);
        if let Some(moved) = all.get(place) {
            moved.place.set(place);
        }
    }
}

impl Connection<'_> {
    /// A request is being answered until the guard is dropped: the connection may take its time.
    pub fn answering(&self) -> Answering<'_> {
        self.watched.answering.set(true);
        Answering(self)
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

    #[tokio::test(start_paused = true)]
    async fn the_idle_are_closed_and_those_being_answered_are_not() {
        let watch = Watch::default();
        let (idle, busy) = (watch.connection(), watch.connection());
        let answering = busy.answering();
        let start = tokio::time::Instant::now();
        let mut forever = pin!(std::future::pending::<()>());
        tokio::select! {
            close = idle.run(forever.as_mut()) => assert_eq!(close, Some(Close::Idle)),
            () = watch.sweep_all(Duration::from_secs(10)) => {}
        }
        let after = start.elapsed().as_secs_f64();
        assert!((10.0..=12.6).contains(&after), "{after}");
        assert_eq!(busy.watched.close.get(), None);
        drop(answering);
        drop(idle);
        tokio::select! {
            close = busy.run(forever.as_mut()) => assert_eq!(close, Some(Close::Idle)),
            () = watch.sweep_all(Duration::from_secs(10)) => {}
        }
        assert!(start.elapsed().as_secs_f64() > after + 9.9);
        assert_eq!(watch.all.borrow().len(), 1, "those that are gone are forgotten at once");
        let more: Vec<_> = (0..10).map(|_| watch.connection()).collect();
        drop(busy);
        drop(more);
        assert!(watch.all.borrow().is_empty());
        watch.stop();
        assert_eq!(watch.connection().watched.close.get(), Some(Close::Stopping));
    }
}
