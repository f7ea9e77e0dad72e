//! credvend is away, ails or talks nonsense: what the jobs' clients see of it, and how it is come back to.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::cache::{Cache, CacheSettings, Document, Flight, Key, Silence, Step};
use super::super::clock::{Dice, Now, SystemDice};
use super::super::credvend::stream::RECONNECT;
use super::super::freshness::Life;
use super::super::trouble::Trouble;
use super::fake_credvend::error;
use super::house::{House, ask_on, in_a_house};
use crate::control::ToKeeper;

#[test]
fn twenty_minutes_without_credvend_are_seen_by_no_client_and_ends_come_later_exactly_once() {
    // The documents are fresh when it begins; or they pass their renewal and their floor in it.
    for age in [0, 25, 39] {
        in_a_house(async || {
            let mut house = House::new().await;
            let mut jobs = vec![];
            for id in 1..=6 {
                jobs.push(house.job(id).await);
                assert_eq!(house.ask(id, &jobs.last().unwrap().1).await.status, 200);
            }
            let fetched = house.counts().1;
            house.credvend.stop().await;
            house.clock.jump(time::Duration::minutes(age));
            for minute in 1..=20 {
                house.clock.jump(time::Duration::minutes(1));
                let mut asking = tokio::task::JoinSet::new();
                for (id, (_, token)) in (1u32..).zip(&jobs).skip(usize::from(minute > 10)) {
                    for _ in 0..4 {
                        let (endpoint, token) = (house.endpoint, token.clone());
                        asking.spawn_local(async move {
                            let stream = tokio::net::TcpStream::connect(endpoint).await.unwrap();
                            ask_on(&mut tokio::io::BufReader::new(stream), endpoint.port(), id, &token).await
                        });
                    }
                }
                for answer in asking.join_all().await {
                    assert_eq!(answer.status, 200, "minute {minute} at age {age}: {}", answer.body);
                }
                if minute == 10 {
                    house.end(&jobs[0].0.run).await;
                }
            }
            assert_eq!(house.counts().1, fetched);
            let delivered = |h: &House| {
                let over = ToKeeper::EndDelivered { run: jobs[0].0.run };
                h.said.borrow().iter().filter(|said| **said == over).count()
            };
            assert_eq!(delivered(&house), 0);
            house.credvend.start().await;
            house.until("the end is delivered", |h| delivered(h) == 1).await;
            for (id, (_, token)) in (1..).zip(&jobs).skip(1) {
                // Those that are old by now are fetched anew.
                let old = format!("ASIA{id:04}");
                while age > 15 && house.ask(id, token).await.word() == old {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                assert_eq!(house.ask(id, token).await.status, 200);
            }
            let session = house.session_of(&jobs[0].0.run).unwrap();
            assert_eq!((delivered(&house), &house.credvend.script.borrow().leaves), (1, &vec![session]));
        });
    }
}

#[test]
fn an_end_whose_acknowledgement_is_lost_is_told_again_and_over_once() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (job, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 200);
        let session = house.session_of(&job.run).unwrap();
        house.credvend.script.borrow_mut().lost_leaves = 2;
        house.end(&job.run).await;
        let over = ToKeeper::EndDelivered { run: job.run };
        house.until("delivered", |h| h.heard(&over)).await;
        assert_eq!(house.credvend.script.borrow().leaves, [session; 3], "the same end, which credvend takes once");
        assert_eq!(house.said.borrow().iter().filter(|said| **said == over).count(), 1);
    });
}

#[test]
fn whatever_credvend_answers_an_sdk_gets_whole_credentials_or_a_503_that_says_why() {
    let whole = |key: &str, secret: &str, token: &str, until: &str| {
        format!(
            r#"{{"credentials":{{"AccessKeyId":"{key}","SecretAccessKey":"{secret}","Token":"{token}","Expiration":"{until}","RoleArn":"arn:aws:iam::123456789012:role/r"}},"session-name":"lab","issued":"2026-01-01T00:00:00Z"}}"#
        )
    };
    let good = whole("ASIA1", "s", "t", "2126-01-01T00:00:00Z");
    let mut odd: Vec<(u16, String)> =
        ["", " ", "{}", "null", "[]", "0", "\"\"", "<html>busy</html>", "{\"credentials\":{}}"]
            .map(|text| (200, text.to_owned()))
            .into();
    odd.extend([
        (200, good.replace("\"ASIA1\"", "5")),
        (200, good.replace("\"t\"", "null")),
        (200, good.replace("\"Token\"", "\"Tokem\"")),
        (200, good.replace("2126-01-01T00:00:00Z", "tomorrow")),
        (200, good[..good.len() - 20].to_owned()),
        (200, whole("", "s", "t", "2126-01-01T00:00:00Z")),
        (200, whole("ASIA1", "", "t", "2126-01-01T00:00:00Z")),
        (200, whole("ASIA1", "s", "", "2126-01-01T00:00:00Z")),
        (200, whole("ASIA1", "s", "t", "2001-01-01T00:00:00Z")),
        (204, String::new()),
        (302, good.clone()),
        (401, String::new()),
        (403, "<html>a proxy's</html>".to_owned()),
        (404, "{}".to_owned()),
        (429, "slow down".to_owned()),
        (429, serde_json::to_string(&error("Busy", "too many", true)).unwrap()),
        (500, String::new()),
        (502, "<html>bad gateway</html>".to_owned()),
        (503, serde_json::to_string(&error("Unavailable", "later", true)).unwrap()),
    ]);
    in_a_house(async || {
        let mut house = House::with(|plan, _| plan.settings.patience = Duration::from_millis(100)).await;
        let mut tokens = vec![];
        for (id, (status, body)) in (1..).zip(odd) {
            house.credvend.script.borrow_mut().odd_credentials = Some((status, Bytes::from(body.clone())));
            let (_, token) = house.job(id).await;
            // The first answer may only be that there is none yet.
            for _ in 0..2 {
                let answer = house.ask(id, &token).await;
                assert_eq!(
                    (answer.status, answer.word().as_str()),
                    (503, "NotNow"),
                    "{status} {body:?}: {}",
                    answer.body
                );
                assert!(answer.message().contains(&format!("job {id}")) && !answer.body.contains("AccessKeyId"));
            }
            tokens.push((id, token));
        }
        house.credvend.script.borrow_mut().odd_credentials = None;
        for (id, token) in tokens {
            let mut answer = house.ask(id, &token).await;
            while answer.status == 503 {
                answer = house.ask(id, &token).await;
            }
            assert_eq!(answer.status, 200, "{}", answer.body);
        }
    });
}

#[test]
fn clocks_that_are_hours_apart_give_no_dead_credentials() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.credvend.script.borrow_mut().skew = time::Duration::hours(-5);
        let (_, behind) = house.job(1).await;
        let answer = house.ask(1, &behind).await;
        assert_eq!(answer.status, 503, "by this node's clock they are over");
        assert!(answer.message().contains("clock"), "{}", answer.message());
        house.credvend.script.borrow_mut().skew = time::Duration::hours(5);
        let (_, ahead) = house.job(2).await;
        assert_eq!(house.ask(2, &ahead).await.status, 200);
        // Their hour is an hour, whatever this node's clock says of the time they name.
        house.credvend.stop().await;
        house.clock.jump(time::Duration::minutes(59));
        assert_eq!(house.ask(2, &ahead).await.status, 200);
    });
}

/// Half a thousand nodes' caches and streams through twenty minutes of credvend's absence, second by second.
#[test]
fn a_cluster_comes_back_spread_out_and_has_not_hammered_meanwhile() {
    const NODES: u64 = 500;
    const AWAY: u64 = 20 * 60;
    let start = Now { wall: time::macros::datetime!(2026-01-31 12:00 UTC), mono: Instant::now() };
    let at = |second: u64| {
        let by = Duration::from_secs(second);
        Now { wall: start.wall + by, mono: start.mono + by }
    };
    let (mut came_back, mut most_tries) = (vec![0u32; 120], 0);
    for node in 0..NODES {
        let dice = Rc::new(SystemDice::seeded(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(node + 1)));
        let mut cache = Cache::new(CacheSettings { store: true, max_entries: 10 }, dice.clone());
        let key = Key { session: credd_protocol::SessionId::random(), role: Default::default() };
        let document = |now: Now| Document {
            body: Bytes::from_static(b"d"),
            life: Life::new(now.wall, now.wall + Duration::from_secs(3600), now, dice.roll()),
        };
        // Fetched up to 25 minutes before credvend goes.
        let begin = 1500 - node * 1500 / NODES;
        let Step::Wait { flight, .. } = cache.ask(&key, at(begin), Silence::default()) else { panic!() };
        cache.landed(&key, &flight, Ok(document(at(begin))), at(begin));
        let (gone, back) = (1500, 1500 + AWAY);
        let (mut tries, mut failures, mut streams_at) = (0, 1, gone as f64 + RECONNECT.wait(1, &*dice).as_secs_f64());
        let mut fetched = None;
        for second in gone..back + 120 {
            let (now, away) = (at(second), second < back);
            let mut fly = |cache: &mut Cache, flight: &Rc<Flight>| {
                let outcome = if away { Err(Trouble::Outage("away".into())) } else { Ok(document(now)) };
                tries += u32::from(away);
                // The others' time comes later by itself.
                if !away && tries > 0 {
                    fetched.get_or_insert(second - back);
                }
                cache.landed(&key, flight, outcome, now);
            };
            if second as f64 >= streams_at {
                failures += 1;
                streams_at = second as f64 + RECONNECT.wait(failures, &*dice).as_secs_f64();
                if !away {
                    cache.heard_again();
                }
            }
            for (_, flight) in cache.due(now, Duration::from_secs(15)).0 {
                fly(&mut cache, &flight);
            }
            if second % 5 == node % 5 {
                match cache.ask(&key, now, Silence::default()) {
                    Step::Serve(_) => {}
                    Step::ServeAndFly(_, flight) => fly(&mut cache, &flight),
                    Step::Wait { flight, start: true, fallback: Some(_), .. } => fly(&mut cache, &flight),
                    other => panic!("node {node} at {second}: a client sees the outage: {other:?}"),
                }
            }
        }
        most_tries = most_tries.max(tries);
        if let Some(second) = fetched {
            came_back[second as usize] += 1;
        }
    }
    let returned: u32 = came_back.iter().sum();
    let busiest = came_back.iter().max().unwrap();
    let within = came_back.iter().rposition(|count| *count > 0).unwrap();
    println!(
        "{returned} of {NODES} nodes failed in the outage; they are back within {within} s, at most {busiest} in one"
    );
    println!("no node tried more than {most_tries} times in {AWAY} s");
    assert!(returned > 300, "those whose documents had become old");
    assert!(*busiest <= returned / 5, "{busiest} of {returned} in one second");
    assert!((10..=90).contains(&within), "within {within} s");
    assert!(most_tries <= 150, "{most_tries} tries of one node");
}
