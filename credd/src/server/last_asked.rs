//! What the last request of a connection proved, so that the next one with the same path and token need not be parsed
//! and hashed again. SDKs keep a connection for one job.
//!
//! Path and token say which run is asked for, and nothing else: who calls, and how the run is now, is looked at for each
//! request by whoever asks here.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use hyper::header::HeaderValue;
use zeroize::Zeroizing;

use super::jobs::Run;

/// The paths that the plugin makes are shorter; a longer one is parsed each time.
const MAX_PATH_BYTES: usize = 512;

/// Of one connection.
#[derive(Default)]
pub struct LastAsked(RefCell<Option<Passed>>);

struct Passed {
    path: String,
    /// As it was sent. hyper's buffer holds it for as long, but this is erased.
    token: Zeroizing<Vec<u8>>,
    run: Weak<Run>,
}

impl LastAsked {
    /// The run that this path and this token stand for, if they are the last ones that passed, and the run is not over.
    pub fn run(&self, path: &str, token: Option<&HeaderValue>) -> Option<Rc<Run>> {
        let last = self.0.borrow();
        let last = last.as_ref()?;
        let same = last.path == path && alike(&last.token, token?.as_bytes());
        // An ended run's token is nobody's: the usual way says so, and what of it is still known.
        last.run.upgrade().filter(|run| same && !run.ended())
    }

    /// These have passed every check.
    pub fn remember(&self, path: &str, token: &str, run: &Rc<Run>) {
        if path.len() <= MAX_PATH_BYTES {
            let token = Zeroizing::new(token.as_bytes().to_vec());
            *self.0.borrow_mut() = Some(Passed { path: path.to_owned(), token, run: Rc::downgrade(run) });
        }
    }
}

/// In a time that depends on the lengths alone. A caller could only learn here what it has sent itself, but no token is
/// ever compared otherwise.
fn alike(one: &[u8], other: &[u8]) -> bool {
    let difference = one.iter().zip(other).fold(0, |difference, (a, b)| difference | (a ^ b));
    one.len() == other.len() && std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::super::jobs::{Jobs, News, fixture};
    use super::*;

    #[test]
    fn only_the_same_path_and_token_of_a_living_run_are_known_again() {
        let mut jobs = Jobs::default();
        let (job, token) = fixture::job(7, 1001);
        let News::New(run) = jobs.found(job.clone()) else { panic!("new") };
        let sent = HeaderValue::from_str(token.expose()).unwrap();
        let last = LastAsked::default();
        assert!(last.run("/p", Some(&sent)).is_none());
        last.remember("/p", token.expose(), &run);
        assert!(last.run("/p", Some(&sent)).is_some_and(|known| Rc::ptr_eq(&known, &run)));
        for (path, token) in [("/q", Some(&sent)), ("/p", None), ("/p", Some(&HeaderValue::from_static("x")))] {
            assert!(last.run(path, token).is_none(), "{path} {token:?}");
        }
        let shorter = HeaderValue::from_str(&token.expose()[..70]).unwrap();
        assert!(last.run("/p", Some(&shorter)).is_none());
        jobs.end(&job.run);
        assert!(last.run("/p", Some(&sent)).is_none(), "its job is over");
        let long = "/".repeat(MAX_PATH_BYTES + 1);
        let (other, _) = fixture::job(8, 1001);
        let News::New(other) = jobs.found(other) else { panic!("new") };
        last.remember(&long, token.expose(), &other);
        assert!(last.run(&long, Some(&sent)).is_none());
        last.remember("/r", token.expose(), &other);
        let id = other.job.run;
        drop(other);
        jobs.end(&id);
        jobs.remove(&id);
        assert!(last.run("/r", Some(&sent)).is_none(), "and nothing keeps it in memory");
    }
}
