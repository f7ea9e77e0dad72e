//! The bucket in tokio's stopped time.

use super::*;
use proptest::prelude::*;
use tokio::task::JoinSet;

fn project(n: usize) -> ProjectId {
    format!("p{n}").parse().unwrap()
}

fn turns(per_second: u32, burst: u32) -> Turns {
    Turns::new(Rate { per_second, burst })
}

/// Waits until `holds`, at most a minute of real time, whatever tokio's stopped clock says.
async fn until(holds: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "it does not come about");
        tokio::task::yield_now().await;
    }
}

/// Lets `count` calls of a project wait; each says when it had its turn.
fn herd(into: &mut JoinSet<(usize, Duration)>, turns: &Turns, of: usize, count: usize) {
    let begun = Instant::now();
    for _ in 0..count {
        let turns = turns.clone();
        into.spawn(async move {
            turns.turn(&project(of)).await.unwrap();
            (of, begun.elapsed())
        });
    }
}

async fn last(mut calls: JoinSet<(usize, Duration)>) -> HashMap<usize, Duration> {
    let mut last = HashMap::new();
    while let Some(call) = calls.join_next().await {
        let (of, at) = call.unwrap();
        let known: &mut Duration = last.entry(of).or_default();
        *known = at.max(*known);
    }
    last
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_free_and_then_the_rate_holds() {
    let turns = turns(100, 50);
    let mut calls = JoinSet::new();
    herd(&mut calls, &turns, 1, 1050);
    let at = last(calls).await[&1].as_secs_f64();
    assert!((9.9..10.2).contains(&at), "1,000 calls after the burst take 10 s: {at}");
    assert_eq!(turns.waiting(), 0);
    // After a pause there is one burst again, and no more.
    tokio::time::sleep(Duration::from_secs(100)).await;
    let mut calls = JoinSet::new();
    herd(&mut calls, &turns, 1, 60);
    let at = last(calls).await[&1].as_secs_f64();
    assert!((0.09..0.2).contains(&at), "{at}");
}

#[tokio::test(start_paused = true)]
async fn a_herd_does_not_starve_the_others() {
    let turns = turns(100, 1);
    let mut calls = JoinSet::new();
    herd(&mut calls, &turns, 0, 5000);
    until(|| turns.waiting() >= 4999).await;
    for of in 1..=10 {
        herd(&mut calls, &turns, of, 3);
    }
    let last = last(calls).await;
    for of in 1..=10 {
        // Three rounds of eleven projects.
        assert!(last[&of] < Duration::from_millis(450), "project {of} waited {:?}", last[&of]);
    }
    let herd = last[&0].as_secs_f64();
    assert!((49.0..51.5).contains(&herd), "the herd loses no more than what the others got: {herd}");
}

#[tokio::test(start_paused = true)]
async fn what_would_take_too_long_is_refused_with_a_time() {
    let turns = turns(10, 1);
    let mut calls = JoinSet::new();
    herd(&mut calls, &turns, 0, 600);
    until(|| turns.waiting() >= 599).await;
    let delay = turns.delay(&project(0)).as_secs_f64();
    assert!((59.0..61.0).contains(&delay), "{delay}");
    let mut refused = None;
    // One a tenth of a second joins the queue until it is as long as may be.
    for _ in 0..=10 * LONGEST.as_secs() {
        let (queued, waiting) = (turns.clone(), turns.waiting());
        let call = tokio::spawn(async move { queued.turn(&project(0)).await });
        until(|| turns.waiting() > waiting || call.is_finished()).await;
        if call.is_finished() {
            refused = Some(call.await.unwrap().unwrap_err());
            break;
        }
    }
    let refused = refused.expect("the queue has a longest wait");
    assert_eq!(refused.again_in, LONGEST);
    // Another project is not concerned.
    assert!(turns.delay(&project(1)) < Duration::from_secs(1));
    turns.turn(&project(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_takes_no_token_and_who_repeats_goes_first() {
    let turns = turns(10, 1);
    turns.turn(&project(0)).await.unwrap();
    let mut given_up = JoinSet::new();
    herd(&mut given_up, &turns, 0, 100);
    until(|| turns.waiting() >= 100).await;
    let begun = Instant::now();
    given_up.shutdown().await;
    turns.turn(&project(0)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
    let mut calls = JoinSet::new();
    herd(&mut calls, &turns, 0, 50);
    until(|| turns.waiting() >= 50).await;
    let begun = Instant::now();
    turns.again(&project(0)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
    assert!(last(calls).await[&0] > Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_cut_once_for_one_wave_of_refusals_and_recovers() {
    let turns = turns(100, 100);
    for _ in 0..50 {
        turns.throttled();
    }
    assert_eq!(turns.rate().round() as u32, 70, "what was under way says it once");
    let begun = Instant::now();
    turns.turn(&project(0)).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(10), "the burst is over, too");
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        turns.throttled();
    }
    let least = turns.rate();
    assert!((2.0..10.0).contains(&least), "{least}");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(turns.rate(), 100.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the mixture: every call gets its turn, in no time is more given away than the rate allows, and no project
    /// waits longer than if every other had as many calls as it has.
    #[test]
    fn every_call_has_its_turn_within_its_share(
        herds in proptest::collection::vec(0usize..400, 1..7), per_second in 5u32..500, burst in 1u32..50,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (total, last) = runtime.block_on(async {
            let turns = turns(per_second, burst);
            let mut calls = JoinSet::new();
            for (of, count) in herds.iter().enumerate() {
                // What would wait for more than a minute is another test's matter.
                herd(&mut calls, &turns, of, (*count).min(per_second as usize * 50 / herds.len()));
            }
            (calls.len(), last(calls).await)
        });
        let whole = last.values().max().copied().unwrap_or_default().as_secs_f64();
        let least = (total as f64 - f64::from(burst).max(1.0 + f64::from(per_second) * 0.005) - 1.0) / f64::from(per_second);
        prop_assert!(whole >= least, "{} calls in {} s", total, whole);
        for (of, at) in &last {
            let own = herds[*of];
            let share: usize = herds.iter().map(|other| (*other).min(own)).sum();
            let most = share as f64 / f64::from(per_second) * 1.05 + 0.2 + herds.len() as f64 / f64::from(per_second);
            prop_assert!(at.as_secs_f64() <= most, "project {} with {} calls waited {:?}, {} at most", of, own, at, most);
        }
    }
}
