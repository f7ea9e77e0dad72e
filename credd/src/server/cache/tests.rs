use super::super::clock::fake::Loaded;
use super::*;
use proptest::prelude::*;

/// No bound on silence.
const HEARD: Silence = Silence { heard: None, max: None };

fn cache(store: bool, max_entries: usize) -> Cache {
    Cache::new(CacheSettings { store, max_entries }, Rc::new(Loaded(0.5)))
}

fn key() -> Key {
    Key { session: SessionId::random(), role: RoleName::default() }
}

fn start() -> Now {
    Now { wall: time::macros::datetime!(2026-01-31 12:00 UTC), mono: Instant::now() }
}

fn after(now: Now, seconds: f64) -> Now {
    let by = Duration::from_secs_f64(seconds);
    Now { wall: now.wall + by, mono: now.mono + by }
}

fn document(name: &'static str, now: Now, seconds: u64) -> Document {
    let life = Life::new(now.wall, now.wall + Duration::from_secs(seconds), now, 0.5);
    Document { body: Bytes::from_static(name.as_bytes()), life }
}

/// The flight that the step wants started.
fn flight(step: Step) -> Rc<Flight> {
    match step {
        Step::Wait { flight, start: true, .. } | Step::ServeAndFly(_, flight) => flight,
        other => panic!("{other:?}"),
    }
}

fn filled(cache: &mut Cache, key: &Key, now: Now, seconds: u64) {
    let step = cache.ask(key, now, HEARD);
    cache.landed(key, &flight(step), Ok(document("one", now, seconds)), now);
}

#[test]
fn only_the_first_asker_starts_a_flight() {
    let (mut cache, key, now) = (cache(true, 10), key(), start());
    let first = flight(cache.ask(&key, now, HEARD));
    for _ in 0..5 {
        let Step::Wait { flight, start: false, .. } = cache.ask(&key, now, HEARD) else { panic!() };
        assert!(Rc::ptr_eq(&first, &flight));
    }
}

#[test]
fn an_hours_document_is_served_renewed_and_waited_for_in_time() {
    let (mut cache, key, now) = (cache(true, 10), key(), start());
    filled(&mut cache, &key, now, 3600);
    assert!(matches!(cache.ask(&key, after(now, 20.0 * 60.0), HEARD), Step::Serve(_)));
    let then = after(now, 31.0 * 60.0);
    let Step::ServeAndFly(_, renewal) = cache.ask(&key, then, HEARD) else { panic!() };
    assert_eq!(renewal.wanted, Duration::from_secs(2700));
    assert!(matches!(cache.ask(&key, then, HEARD), Step::Serve(_)), "one renewal at a time");
    let late = after(now, 41.0 * 60.0);
    assert!(matches!(cache.ask(&key, late, HEARD), Step::Wait { start: false, fallback: Some(_), .. }));
    cache.landed(&key, &renewal, Ok(document("two", late, 3600)), late);
    let Step::Serve(body) = cache.ask(&key, late, HEARD) else { panic!() };
    assert_eq!(body, "two");
}

#[test]
fn after_a_failure_credvend_is_left_alone_for_a_while() {
    let (mut cache, key, now) = (cache(true, 10), key(), start());
    let first = flight(cache.ask(&key, now, HEARD));
    cache.landed(&key, &first, Err(Trouble::No("no".into())), now);
    let Step::Hold { until, trouble } = cache.ask(&key, after(now, 0.5), HEARD) else { panic!() };
    assert_eq!((until - now.mono, trouble), (Duration::from_millis(1500), Trouble::No("no".into())));
    let second = flight(cache.ask(&key, after(now, 1.6), HEARD));
    cache.landed(&key, &second, Err(Trouble::Outage("down".into())), after(now, 1.6));
    assert!(matches!(cache.ask(&key, after(now, 1.7), HEARD), Step::Hold { .. }));
    cache.heard_again();
    flight(cache.ask(&key, after(now, 1.7), HEARD));
}

#[test]
fn an_outage_is_served_through_and_a_never_is_not() {
    for (trouble, serves) in [
        (Trouble::Outage("down".into()), true),
        (Trouble::No("role refused".into()), true),
        (Trouble::Never("session over".into()), false),
    ] {
        let (mut cache, key, now) = (cache(true, 10), key(), start());
        filled(&mut cache, &key, now, 3600);
        let late = after(now, 3000.0);
        let renewal = flight(cache.ask(&key, late, HEARD));
        cache.landed(&key, &renewal, Err(trouble.clone()), late);
        let step = cache.ask(&key, late, HEARD);
        assert_eq!(matches!(step, Step::Serve(_)), serves, "{trouble:?}: {step:?}");
        let over = cache.ask(&key, after(now, 3600.0), HEARD);
        assert!(!matches!(over, Step::Serve(_) | Step::ServeAndFly(..) | Step::Wait { fallback: Some(_), .. }));
    }
}

#[test]
fn credvend_that_has_no_fresher_one_is_not_asked_at_every_request() {
    let (mut cache, key, now) = (cache(true, 10), key(), start());
    let first = flight(cache.ask(&key, now, HEARD));
    let old = Life::new(now.wall - Duration::from_secs(3000), now.wall + Duration::from_secs(600), now, 0.5);
    cache.landed(&key, &first, Ok(Document { body: Bytes::from_static(b"old"), life: old }), now);
    assert!(matches!(cache.ask(&key, after(now, 1.0), HEARD), Step::Serve(_)));
    flight(cache.ask(&key, after(now, 61.0), HEARD));
}

#[test]
fn the_suspect_are_asked_about_first_and_serve_only_if_credvend_is_away() {
    let (mut cache, key, now) = (cache(true, 10), key(), start());
    filled(&mut cache, &key, now, 3600);
    cache.suspect_all();
    let step = cache.ask(&key, after(now, 1.0), HEARD);
    assert!(matches!(step, Step::Wait { start: true, fallback: Some(_), .. }), "{step:?}");
    let asking = flight(step);
    assert_eq!(asking.wanted, Duration::from_secs(1200), "credvend need not ask AWS anew");
    // A gap while the answer is on its way makes the answer suspect, too.
    cache.suspect_all();
    cache.landed(&key, &asking, Ok(document("two", now, 3600)), now);
    let again = flight(cache.ask(&key, after(now, 2.0), HEARD));
    cache.landed(&key, &again, Ok(document("three", now, 3600)), now);
    assert!(matches!(cache.ask(&key, after(now, 3.0), HEARD), Step::Serve(_)));
}

#[test]
fn with_a_bound_on_silence_nothing_is_served_unheard() {
    let (mut cache, key, now) = (cache(true, 10), key(), start());
    filled(&mut cache, &key, now, 3600);
    let silence =
        |heard: Option<f64>| Silence { heard: heard.map(|at| after(now, at)), max: Some(Duration::from_secs(60)) };
    // Its own flight is a word of credvend's, too.
    assert!(matches!(cache.ask(&key, after(now, 59.0), silence(None)), Step::Serve(_)));
    assert!(matches!(cache.ask(&key, after(now, 159.0), silence(Some(100.0))), Step::Serve(_)));
    // By either clock: this machine slept, that one's wall clock was set back.
    let slept = Now { wall: after(now, 3000.0).wall, mono: now.mono };
    let set_back = Now { wall: now.wall, mono: after(now, 161.0).mono };
    for then in [after(now, 161.0), slept, set_back] {
        let step = cache.ask(&key, then, silence(Some(100.0)));
        assert!(matches!(step, Step::Wait { fallback: None, .. }), "{step:?}");
    }
    let asking = Flight::new(FIRST_WANTED, 0, now);
    cache.entries.get_mut(&key).unwrap().flight = Some(asking.clone());
    cache.landed(&key, &asking, Err(Trouble::Outage("down".into())), after(now, 161.0));
    assert!(matches!(cache.ask(&key, after(now, 161.0), silence(Some(100.0))), Step::Hold { .. }));
    assert!(matches!(cache.ask(&key, after(now, 161.0), HEARD), Step::Serve(_)), "without a bound it is served");
}

#[test]
fn the_dead_are_not_renewed() {
    let (mut cache, key, now) = (cache(true, 10), key(), start());
    filled(&mut cache, &key, now, 3600);
    let longest = Duration::from_secs(15);
    let (flights, wait) = cache.due(after(now, 60.0), longest);
    assert!(flights.is_empty() && wait == longest);
    let then = after(now, 1800.0);
    let (mut flights, _) = cache.due(then, longest);
    let (renewed, renewal) = flights.pop().expect("it was used once");
    assert_eq!(renewed, key);
    cache.landed(&key, &renewal, Ok(document("two", then, 3600)), then);
    for minutes in 0..70 {
        assert!(cache.due(after(then, f64::from(minutes) * 60.0), longest).0.is_empty());
    }
    assert!(cache.until(&key).is_none(), "an expired document is not kept");
    assert_eq!(cache.len(), 0);
}

#[test]
fn background_renewals_that_fail_come_back_slowly() {
    let (mut cache, key, now) = (cache(true, 10), key(), start());
    filled(&mut cache, &key, now, 3600);
    let mut then = after(now, 1800.0);
    let mut tries = 0;
    while then.wall < after(now, 3500.0).wall {
        // A job that asks keeps it in use, and gets what is there.
        for (key, flight) in cache.due(then, Duration::from_secs(15)).0 {
            tries += 1;
            cache.landed(&key, &flight, Err(Trouble::Outage("down".into())), then);
        }
        cache.entries.get_mut(&key).unwrap().used = true;
        then = after(then, 1.0);
    }
    assert!((30..60).contains(&tries), "{tries} tries in 28 minutes");
}

#[test]
fn the_oldest_goes_first_and_nothing_is_kept_where_nothing_shall_be() {
    let (mut full, now) = (cache(true, 3), start());
    let keys: Vec<Key> = (0..5).map(|_| key()).collect();
    for key in &keys {
        filled(&mut full, key, now, 3600);
    }
    assert_eq!(full.len(), 3);
    assert!(full.until(&keys[1]).is_none() && full.until(&keys[2]).is_some());
    assert_eq!(full.by_age.len(), 3);

    let (mut off, key) = (cache(false, 3), key());
    filled(&mut off, &key, now, 3600);
    assert!(off.until(&key).is_none());
    flight(off.ask(&key, now, HEARD));
}

#[test]
fn a_forgotten_sessions_flight_lands_for_nobody() {
    let (mut cache, key, now) = (cache(true, 3), key(), start());
    let first = flight(cache.ask(&key, now, HEARD));
    cache.forget(&HashSet::from([key.session]));
    cache.landed(&key, &first, Ok(document("one", now, 3600)), now);
    assert!(cache.until(&key).is_none() && cache.len() == 0 && cache.by_age.is_empty());
    // Nor for the one who asked anew in between.
    let first = flight(cache.ask(&key, now, HEARD));
    cache.forget(&HashSet::from([key.session]));
    let second = flight(cache.ask(&key, now, HEARD));
    cache.landed(&key, &first, Ok(document("one", now, 3600)), now);
    assert!(cache.until(&key).is_none());
    cache.landed(&key, &second, Ok(document("two", now, 3600)), now);
    assert!(matches!(cache.ask(&key, now, HEARD), Step::Serve(body) if body == "two"));
}

/// What happens in a random life.
#[derive(Debug, Clone)]
enum Happening {
    Pass(u16),
    Ask,
    Look,
    Land,
    Fail,
    Gap,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0u16..600).prop_map(Happening::Pass),
        Just(Happening::Ask),
        Just(Happening::Look),
        Just(Happening::Land),
        Just(Happening::Fail),
        Just(Happening::Gap),
    ]
}

proptest! {
    /// While every flight lands at once with a whole life, nothing below a third of its life is ever served; and never
    /// is anything served that is over.
    #[test]
    fn nothing_old_is_served_while_credvend_answers(
        whole in 60u64..43_200,
        happenings in proptest::collection::vec(happening(), 1..80),
        reachable in any::<bool>(),
    ) {
        let (mut cache, key, mut now) = (cache(true, 10), key(), start());
        let mut open: Vec<Rc<Flight>> = Vec::new();
        let mut newest: Option<Life> = None;
        for what in happenings {
            match what {
                Happening::Pass(seconds) => now = after(now, f64::from(seconds)),
                Happening::Look => open.extend(cache.due(now, Duration::from_secs(15)).0.into_iter().map(|(_, f)| f)),
                Happening::Gap => cache.suspect_all(),
                Happening::Land => {}
                Happening::Fail if !reachable => {
                    for flight in open.drain(..) {
                        cache.landed(&key, &flight, Err(Trouble::Outage("down".into())), now);
                    }
                }
                Happening::Fail => {}
                Happening::Ask => {
                    let served = match cache.ask(&key, now, HEARD) {
                        Step::Serve(_) => true,
                        Step::ServeAndFly(_, flight) => {
                            open.push(flight);
                            true
                        }
                        Step::Wait { flight, start, .. } => {
                            if start {
                                open.push(flight);
                            }
                            false
                        }
                        Step::Hold { .. } => false,
                    };
                    if served {
                        let left = newest.expect("served from somewhere").left(now);
                        prop_assert!(!left.is_zero());
                        if reachable {
                            prop_assert!(left >= Duration::from_secs(whole) / 3, "{left:?} of {whole}");
                        }
                    }
                }
            }
            if reachable || matches!(what, Happening::Land) {
                for flight in open.drain(..) {
                    let fresh = document("fresh", now, whole);
                    newest = Some(fresh.life);
                    cache.landed(&key, &flight, Ok(fresh), now);
                }
            }
            prop_assert!(cache.entries.len() == cache.by_age.len());
        }
    }
}
