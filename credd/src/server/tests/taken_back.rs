//! What credvend takes back while jobs run: sessions, credentials; and what the node answers.

use std::time::Duration;

use credd_protocol::node_api::Event;

use super::house::{House, in_a_house};
use crate::control::ToKeeper;

#[test]
fn one_line_ends_many_sessions_for_good_and_is_answered_once_they_are_gone() {
    in_a_house(async || {
        let mut house = House::new().await;
        let mut jobs = vec![];
        for id in 1..=20 {
            let (job, token) = house.job(id).await;
            assert_eq!(house.ask(id, &token).await.status, 200);
            jobs.push((id, house.session_of(&job.run).unwrap(), token));
        }
        let over: Vec<_> = jobs[..18].iter().map(|(_, session, _)| *session).collect();
        // Three lines in one moment, and one that asks no answer of this node.
        for (sessions, answer) in
            [(&over[..8], true), (&over[8..16], true), (&over[16..17], false), (&over[17..], true)]
        {
            let (sessions, reason) = (sessions.to_vec(), "revoked by an administrator".to_owned());
            house.credvend.tell(|seq| Event::Invalidated { seq, sessions, reason, answer, completed: vec![] });
        }
        let refused = |m: &&ToKeeper| matches!(m, ToKeeper::Refused { .. });
        house.until("all are refused", |h| h.said.borrow().iter().filter(refused).count() == 18).await;
        for (id, _, token) in &jobs {
            let answer = house.ask(*id, token).await;
            let word = if *id <= 18 { "Refused".into() } else { format!("ASIA{id:04}") };
            assert_eq!(answer.word(), word);
        }
        house.until("it is answered", |h| !h.credvend.script.borrow().heard.is_empty()).await;
        let script = house.credvend.script.borrow();
        assert_eq!(script.heard.len(), 1, "together");
        assert_eq!((script.heard[0].epoch.as_str(), &script.heard[0].seqs[..]), ("first", &[1, 2, 4][..]));
    });
}

#[test]
fn dead_credentials_are_dropped_fetched_once_for_all_who_ask_and_again_for_who_used_them() {
    in_a_house(async || {
        let mut house = House::new().await;
        let mut tokens = vec![];
        let mut sessions = vec![];
        for id in 1..=3 {
            let (job, token) = house.job(id).await;
            assert_eq!(house.ask(id, &token).await.word(), format!("ASIA{id:04}"));
            sessions.push(house.session_of(&job.run).unwrap());
            tokens.push(token);
        }
        house.credvend.script.borrow_mut().delay = Duration::from_millis(50);
        let renewed = sessions[..2].to_vec();
        house.credvend.tell(|seq| Event::Renew { seq, sessions: renewed, reason: "a Deny".into(), answer: true });
        // Whoever asks next waits for new ones; many ask once.
        house.until("the cache has dropped them", |h| !h.credvend.script.borrow().heard.is_empty()).await;
        let asked = futures(&house, 1, &tokens[0], 20).await;
        assert!(asked.iter().all(|word| *word == asked[0]) && asked[0] != "ASIA0001", "{asked:?}");
        // The second one was in use: it is fetched although nobody asks.
        house.until("it is fetched anew", |h| h.counts().1 == 5).await;
        assert_eq!(house.ask(3, &tokens[2]).await.word(), "ASIA0003", "a third one's live on");
        let fetched = house.credvend.script.borrow().heard_with_requests.clone();
        assert_eq!(fetched[3..], [1, 1], "credvend is told up to where this node has heard");
        house.ask(2, &tokens[1]).await;
        assert_eq!(house.counts(), (3, 5));
    });
}

#[test]
fn new_credentials_that_cannot_be_had_yet_are_tried_for_again_although_nobody_asks() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (job, token) = house.job(1).await;
        assert_eq!(house.ask(1, &token).await.word(), "ASIA0001");
        let session = house.session_of(&job.run).unwrap();
        let busy = super::fake_credvend::error("Unavailable", "the Deny would hit these too", true);
        house.credvend.script.borrow_mut().refuse_credentials = Some((503, busy));
        house.credvend.tell(|seq| Event::Renew { seq, sessions: vec![session], reason: "r".into(), answer: true });
        house.until("it is refused", |h| h.counts().1 == 2).await;
        house.credvend.script.borrow_mut().refuse_credentials = None;
        house.until("it is given", |h| h.counts().1 == 3).await;
        while house.ask(1, &token).await.word() == "NotNow" {}
        assert_eq!((house.ask(1, &token).await.word(), house.counts().1), ("ASIA0003".into(), 3));
    });
}

async fn futures(house: &House, id: u32, token: &credd_protocol::JobToken, many: usize) -> Vec<String> {
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..many {
        let (endpoint, token) = (house.endpoint, token.clone());
        asking.spawn_local(async move {
            let stream = tokio::net::TcpStream::connect(endpoint).await.unwrap();
            super::house::ask_on(&mut tokio::io::BufReader::new(stream), endpoint.port(), id, &token).await.word()
        });
    }
    asking.join_all().await
}

#[test]
fn a_stream_that_breaks_is_taken_up_where_it_was() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (job, token) = house.job(1).await;
        let (_, other) = house.job(2).await;
        assert_eq!((house.ask(1, &token).await.status, house.ask(2, &other).await.status), (200, 200));
        let session = house.session_of(&job.run).unwrap();
        house.credvend.stop().await;
        house.credvend.tell(|seq| Event::Invalidated {
            seq,
            sessions: vec![session],
            reason: "r".into(),
            answer: true,
            completed: vec![],
        });
        house.credvend.start().await;
        house.until("it is refused", |h| h.said.borrow().iter().any(|m| matches!(m, ToKeeper::Refused { .. }))).await;
        assert_eq!(house.credvend.script.borrow().known, [None, Some(("first".to_owned(), 0))]);
        assert_eq!(house.ask(1, &token).await.word(), "Refused");
        assert_eq!(house.ask(2, &other).await.word(), "ASIA0002");
        assert_eq!(house.counts(), (2, 2), "nothing was in doubt");
        house.until("it is answered", |h| !h.credvend.script.borrow().heard.is_empty()).await;
        // A credvend that cannot tell what was missed begins anew, and then everything is.
        house.credvend.stop().await;
        house.credvend.script.borrow_mut().epoch = "second".into();
        house.credvend.start().await;
        house.until("a third stream", |h| h.credvend.script.borrow().known.len() == 3).await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while house.ask(2, &other).await.word() == "ASIA0002" {
            assert!(tokio::time::Instant::now() < deadline, "served unverified");
        }
        assert_eq!(house.credvend.script.borrow().known[2], Some(("first".to_owned(), 1)));
    });
}

#[test]
fn an_answer_that_credvend_does_not_take_is_given_again_and_holds_nothing_up() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.credvend.script.borrow_mut().refuse_heard = true;
        let (job, token) = house.job(1).await;
        assert_eq!(house.ask(1, &token).await.status, 200);
        let session = house.session_of(&job.run).unwrap();
        house.credvend.tell(|seq| Event::Renew { seq, sessions: vec![session], reason: "r".into(), answer: true });
        house.until("it is answered", |h| h.credvend.script.borrow().heard.len() == 1).await;
        assert_eq!(house.ask(1, &token).await.word(), "ASIA0002");
        house.credvend.tell(|seq| Event::Renew { seq, sessions: vec![session], reason: "r".into(), answer: true });
        house
            .until("both are answered", |h| {
                h.credvend.script.borrow().heard.last().is_some_and(|heard| heard.seqs == [1, 2])
            })
            .await;
        house.credvend.script.borrow_mut().refuse_heard = false;
        let tried = house.credvend.script.borrow().heard.len();
        house.until("again", |h| h.credvend.script.borrow().heard.len() > tried).await;
        assert_eq!(house.credvend.script.borrow().heard.last().unwrap().seqs, [1, 2]);
    });
}

#[test]
fn a_strict_partitions_job_stops_when_credvend_was_not_heard_and_another_ones_goes_on() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, strict) = house.job_with(1, |job| job.options.max_unheard_seconds = Some(60)).await;
        let (_, other) = house.job(2).await;
        assert_eq!((house.ask(1, &strict).await.status, house.ask(2, &other).await.status), (200, 200));
        house.credvend.stop().await;
        house.clock.jump(time::Duration::seconds(55));
        assert_eq!((house.ask(1, &strict).await.status, house.ask(2, &other).await.status), (200, 200));
        house.clock.jump(time::Duration::seconds(6));
        let answer = house.ask(1, &strict).await;
        assert_eq!((answer.status, answer.word().as_str()), (503, "NotNow"), "{}", answer.body);
        house.clock.jump(time::Duration::minutes(50));
        assert_eq!((house.ask(1, &strict).await.status, house.ask(2, &other).await.status), (503, 200));
        house.credvend.start().await;
        let mut answer = house.ask(1, &strict).await;
        while answer.status == 503 {
            answer = house.ask(1, &strict).await;
        }
        assert_eq!(answer.status, 200, "{}", answer.body);
    });
}

#[test]
fn of_two_bounds_on_silence_the_stricter_counts() {
    for (node, partition) in [(60, 600), (600, 60)] {
        in_a_house(async || {
            let mut house = House::with(|plan, _| plan.settings.max_unheard = Some(Duration::from_secs(node))).await;
            let (_, token) = house.job_with(1, |job| job.options.max_unheard_seconds = Some(partition)).await;
            assert_eq!(house.ask(1, &token).await.status, 200);
            house.credvend.stop().await;
            house.clock.jump(time::Duration::seconds(61));
            assert_eq!(house.ask(1, &token).await.status, 503);
        });
    }
}

/// The epilog did not run here, or could not note the end: Slurm's word counts.
#[test]
fn a_job_that_is_over_for_slurm_gets_nothing_more_and_the_keeper_hears_of_it() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (stuck, stuck_token) = house.job(1).await;
        let (other, other_token) = house.job(2).await;
        for (id, token) in [(1, &stuck_token), (2, &other_token)] {
            assert_eq!(house.ask(id, token).await.status, 200);
        }
        let completed = vec![house.session_of(&stuck.run).unwrap()];
        let (sessions, reason) = (vec![], String::new());
        house.credvend.tell(|seq| Event::Invalidated { seq, sessions, reason, answer: false, completed });
        let over = |m: &&ToKeeper| matches!(m, ToKeeper::Over { run } if *run == stuck.run);
        house.until("the keeper hears of it", |h| h.said.borrow().iter().filter(over).count() == 1).await;
        assert_eq!(house.ask(1, &stuck_token).await.word(), "Refused");
        assert_eq!(house.ask(2, &other_token).await.status, 200);
        assert_ne!(stuck.run, other.run);
    });
}
