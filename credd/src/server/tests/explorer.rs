//! A model check of the server's own code: every order of events up to a bound, on a clock that only the explorer moves.
//!
//! What runs is `cache`, `freshness`, `jobs`, `session`, `vend` and `news` as they are shipped, over a credvend whose every
//! answer is a choice, and with two things happening before anything else gets to run as further choices. States that are
//! alike, times taken relative to the present, are looked at once. Each state is left on its own: credvend answers all it
//! was asked, the patience of all who wait passes, and then a living job must be served and an ended one delivered.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write as _;
use std::time::Instant;

use super::bed::{Act, Answer, Bed};

/// What may happen in a state.
fn moves(bed: &Bed, breadth: Breadth) -> Vec<Vec<Act>> {
    // A moment; until the document is renewed behind the answer; until it is below its floor.
    let mut single = vec![Act::Ask, Act::Pass(2), Act::Pass(2500)];
    if !breadth.pairs {
        single.push(Act::Pass(1900));
    }
    if breadth.other_job {
        single.push(Act::AskOther);
    }
    let landings: Vec<Act> = (0..bed.pending().min(2))
        .flat_map(|place| {
            [Answer::Good, Answer::Outage, Answer::No, Answer::Never, Answer::Gone]
                .map(|answer| Act::Land(place, answer))
        })
        .collect();
    let said = [Act::Invalidate, Act::Renew, Act::Gap, Act::End];
    single.extend(&landings);
    single.extend(said);
    let mut moves: Vec<Vec<Act>> = single.iter().map(|act| vec![*act]).collect();
    for first in landings.iter().filter(|act| matches!(act, Act::Land(_, Answer::Good | Answer::Gone))) {
        for second in said {
            moves.push(vec![*first, second]);
            moves.push(vec![second, *first]);
        }
        moves.push(vec![*first, Act::Ask]);
    }
    moves.extend(said.map(|act| vec![Act::Ask, act]));
    if !breadth.pairs {
        moves.truncate(single.len());
    }
    moves.retain(|acts| acts.iter().all(|act| bed.allows(*act)));
    moves
}

#[derive(Debug, Clone, Copy)]
struct Breadth {
    depth: usize,
    /// Also two things at a time, before anything else gets to run.
    pairs: bool,
    other_job: bool,
    /// The session is open when the job is found.
    open: bool,
    store: bool,
}

#[derive(Debug, Default)]
struct Explored {
    states: usize,
    moves: usize,
}

/// Looks at every state within the bound; the first one that breaks a promise ends it, with the way there.
fn explore(breadth: Breadth, deaf: Option<Act>) -> Result<Explored, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let settings = super::bed::settings(breadth.store);
    // What is left to look at from there, or the broken promise; nothing if such a state was seen.
    let replay = |path: &[Vec<Act>], seen: &mut HashSet<String>| {
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut bed = Bed::new(&settings, breadth.open, deaf).await;
            for acts in path {
                bed.play(acts).await;
            }
            if bed.broken().is_none() && !seen.insert(bed.sketch()) {
                return Ok(None);
            }
            let next = moves(&bed, breadth);
            bed.leave_alone().await;
            bed.broken().map_or(Ok(Some(next)), Err)
        })
    };
    let mut seen: HashSet<String> = HashSet::new();
    let mut explored = Explored::default();
    let mut waiting: VecDeque<Vec<Vec<Act>>> = VecDeque::from([vec![]]);
    while let Some(path) = waiting.pop_front() {
        explored.moves += 1;
        let next = match replay(&path, &mut seen) {
            Ok(Some(next)) => next,
            Ok(None) => continue,
            Err(mut why) => {
                for acts in &path {
                    let _ = write!(why, "\n  {acts:?}");
                }
                return Err(why);
            }
        };
        explored.states += 1;
        if path.len() < breadth.depth {
            waiting.extend(next.into_iter().map(|acts| [path.clone(), vec![acts]].concat()));
        }
    }
    Ok(explored)
}

fn all_kept(name: &str, breadth: Breadth) {
    let start = Instant::now();
    let explored = explore(breadth, None).unwrap_or_else(|broken| panic!("{name}: {broken}"));
    println!(
        "{name}: {} states by {} moves, {} deep, in {:.1} s: every promise kept",
        explored.states,
        explored.moves,
        breadth.depth,
        start.elapsed().as_secs_f64()
    );
    assert!(explored.states > 100, "{explored:?}");
}

const OPEN: Breadth = Breadth { depth: 4, pairs: true, other_job: false, open: true, store: true };

#[test]
fn whatever_the_order_nothing_is_served_that_was_taken_back_and_nobody_waits_for_ever() {
    all_kept("an open session, two at a time", OPEN);
    all_kept("an open session", Breadth { depth: 5, pairs: false, ..OPEN });
}

#[test]
fn whatever_the_order_also_while_the_session_is_opened() {
    all_kept("a session that opens, two at a time", Breadth { open: false, ..OPEN });
    all_kept("a session that opens", Breadth { depth: 5, pairs: false, open: false, ..OPEN });
}

#[test]
fn whatever_the_order_also_where_two_jobs_share_one_place_in_the_cache() {
    all_kept("a full cache", Breadth { pairs: false, other_job: true, ..OPEN });
}

#[test]
fn whatever_the_order_also_where_nothing_is_kept() {
    all_kept("no cache, two at a time", Breadth { depth: 3, store: false, ..OPEN });
    all_kept("no cache", Breadth { pairs: false, store: false, ..OPEN });
}

/// The checker checks: a server that does not hear one kind of event breaks a promise, and is found out.
#[test]
fn a_server_that_is_deaf_to_one_event_is_found_out() {
    for (deaf, promise) in
        [(Act::Renew, "dead in AWS"), (Act::Invalidate, "revoked"), (Act::End, "ended"), (Act::Gap, "not verified")]
    {
        let broken = explore(OPEN, Some(deaf)).expect_err("a broken promise");
        assert!(broken.contains(promise), "{deaf:?}: {broken}");
    }
}
