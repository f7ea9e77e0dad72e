//! Jobs' lives: open, use, renew, outage, invalidation, end.

use std::time::Duration;

use credd_protocol::node_api::Event;
use credd_protocol::record::OnError;

use super::fake_credvend::error;
use super::house::{House, ask_on, in_a_house, trusting_ca};
use crate::config::Trust;
use crate::control::{Job, ToKeeper, ToServer};

#[test]
fn a_job_gets_its_document_and_the_session_opens_at_first_use() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (job, token) = house.job(7).await;
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (200, "ASIA0001"), "{}", answer.body);
        assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
        let document: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert!(document["Expiration"].as_str().unwrap().ends_with('Z') && document.get("Code").is_none());
        let session = house.session_of(&job.run).expect("the keeper was told");
        for _ in 0..20 {
            assert_eq!(house.ask(7, &token).await.status, 200);
        }
        assert_eq!(house.counts(), (1, 1), "cached");
        house.end(&job.run).await;
        house.until("the end is delivered", |h| h.heard(&ToKeeper::EndDelivered { run: job.run })).await;
        assert_eq!(house.credvend.script.borrow().leaves, [session]);
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "JobEnded"));
    });
}

#[test]
fn every_attempt_is_signed_anew_for_the_certificate_that_was_seen() {
    for ca in [false, true] {
        in_a_house(async || {
            let mut house = House::with(|plan, credvend| {
                if ca {
                    trusting_ca(&mut plan.config, credvend);
                }
            })
            .await;
            let (_, token) = house.job(7).await;
            assert_eq!(house.ask(7, &token).await.status, 200);
            let script = house.credvend.script.borrow();
            let pin = &house.credvend.pin;
            assert!(script.authorizations.len() >= 2);
            let mut unique = script.authorizations.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), script.authorizations.len());
            for credential in &script.authorizations {
                assert!(credential.starts_with("Munge MUNGE:") && credential.contains(&format!(":{pin}:")));
            }
        });
    }
}

#[test]
fn a_credvend_with_another_certificate_gets_no_request() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| {
            plan.config.credvend.trust = Trust::Pin("ab".repeat(32));
            plan.settled = false;
        })
        .await;
        let (_, token) = house.job(7).await;
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (503, "NotNow"), "{}", answer.body);
        assert!(house.credvend.script.borrow().authorizations.is_empty());
    });
}

#[test]
fn many_askers_make_one_request() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.credvend.script.borrow_mut().delay = Duration::from_millis(100);
        let (_, token) = house.job(7).await;
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (endpoint, token) = (house.endpoint, token.clone());
            asking.spawn_local(async move {
                let stream = tokio::net::TcpStream::connect(endpoint).await.unwrap();
                ask_on(&mut tokio::io::BufReader::new(stream), endpoint.port(), 7, &token).await
            });
        }
        for answer in asking.join_all().await {
            assert_eq!((answer.status, answer.word().as_str()), (200, "ASIA0001"));
        }
        assert_eq!(house.counts(), (1, 1));
    });
}

#[test]
fn the_first_node_opens_at_once_and_the_others_at_first_use() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (first, _) = house.job_with(1, |job| job.first_node = true).await;
        let (other, _) = house.job(3).await;
        house.until("it opens", |h| h.session_of(&first.run).is_some()).await;
        assert_eq!(house.counts(), (1, 0));
        assert!(house.session_of(&other.run).is_none());
    });
}

#[test]
fn the_status_of_a_job_whose_role_aws_refuses_says_why() {
    in_a_house(async || {
        let mut house = House::new().await;
        let refused = error("RoleRefused", "AWS does not give role r", true);
        house.credvend.script.borrow_mut().refuse_credentials = Some((403, refused));
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 403);
        house.tell(&ToServer::Report { id: 1 }).await;
        let reasons = |h: &House| {
            let said = h.said.borrow();
            said.iter().find_map(|m| match m {
                ToKeeper::Report { jobs, .. } => Some((jobs[0].state.clone(), jobs[0].reason.clone())),
                _ => None,
            })
        };
        house.until("the report", |h| reasons(h).is_some()).await;
        assert_eq!(reasons(&house), Some(("open".into(), Some("AWS does not give role r".into()))));
    });
}

#[test]
fn with_prefetch_or_on_error_fail_open_means_credentials_too() {
    let prefetch = |job: &mut Job| job.options.prefetch = true;
    let fail = |job: &mut Job| job.options.on_error = OnError::Fail;
    for (change, store) in [(&prefetch as &dyn Fn(&mut Job), true), (&fail, true), (&fail, false)] {
        in_a_house(async || {
            let mut house = House::with(|plan, _| plan.settings.cache.store = store).await;
            let error = error("RoleRefused", "AWS does not give role r", true);
            house.credvend.script.borrow_mut().refuse_credentials = Some((403, error));
            let (job, token) = house.job_with(4, change).await;
            let reason = "AWS does not give role r".to_owned();
            house.until("it waits", |h| h.heard(&ToKeeper::Waiting { run: job.run, reason: reason.clone() })).await;
            assert!(house.session_of(&job.run).is_none(), "open promises the first credentials");
            house.credvend.script.borrow_mut().refuse_credentials = None;
            house.until("it opens", |h| h.session_of(&job.run).is_some()).await;
            let (_, fetched) = house.counts();
            assert_eq!(house.ask(4, &token).await.status, 200);
            assert_eq!(house.counts().1, fetched + u32::from(!store), "from the cache, if there is one");
        });
    }
}

#[test]
fn with_on_error_fail_a_final_refusal_of_credentials_is_the_outcome() {
    in_a_house(async || {
        let mut house = House::new().await;
        let reason = "project genomics has no role gpu".to_owned();
        house.credvend.script.borrow_mut().refuse_credentials = Some((403, error("UnknownRole", &reason, false)));
        let (job, _) = house.job_with(4, |job| job.options.on_error = OnError::Fail).await;
        let refused = ToKeeper::Refused { run: job.run, reason };
        house.until("the keeper knows", |h| h.heard(&refused)).await;
        assert!(house.session_of(&job.run).is_none());
    });
}

#[test]
fn the_records_role_is_the_one_that_credvend_is_asked_for() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, token) = house.job_with(7, |job| job.options.role = "train".parse().unwrap()).await;
        assert_eq!(house.ask(7, &token).await.status, 200);
        // One that an earlier credd opened asks for the same.
        let session = credd_protocol::SessionId::random();
        let (_, token) = house
            .job_with(8, |job| {
                job.options.role = "infer".parse().unwrap();
                job.session = Some(session);
            })
            .await;
        assert_eq!(house.ask(8, &token).await.status, 200);
        let script = house.credvend.script.borrow();
        assert_eq!(script.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>(), ["train", "infer"]);
    });
}

#[test]
fn a_long_job_never_sees_an_old_document_while_credvend_answers() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, token) = house.job(7).await;
        // Twelve hours in steps of five minutes, one-hour documents.
        for step in 0..144 {
            let answer = house.ask(7, &token).await;
            assert_eq!(answer.status, 200);
            let document: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
            let until = document["Expiration"].as_str().unwrap();
            let until = time::OffsetDateTime::parse(until, &time::format_description::well_known::Rfc3339).unwrap();
            let left = until - super::super::clock::Clock::now(&house.clock).wall;
            assert!(left >= time::Duration::seconds(1199), "step {step}: {left} left");
            house.clock.jump(time::Duration::minutes(5));
            // Five minutes are long against a renewal: behind the job's back, it is over before they pass.
            if left < time::Duration::minutes(38) {
                let served = answer.word();
                house.until("renewed", |h| format!("ASIA{:04}", h.counts().1) != served).await;
                // credvend was asked; the answer is on its way.
                while house.ask(7, &token).await.word() == served {}
            }
        }
        let (_, fetched) = house.counts();
        assert!((24..=30).contains(&fetched), "{fetched} fetches in 12 hours");
        let script = house.credvend.script.borrow();
        assert!(script.min_lives.iter().skip(1).all(|l| *l == 2700), "{:?}", script.min_lives);
    });
}

#[test]
fn what_nobody_uses_is_renewed_once_and_then_no_more() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 200);
        house.clock.jump(time::Duration::minutes(30));
        house.until("renewed", |h| h.counts().1 == 2).await;
        // Both are looked at together: whenever the one in use is renewed, the other one could have been.
        let (_, in_use) = house.job(8).await;
        let mut served = house.ask(8, &in_use).await.word();
        for round in 1..=6 {
            house.clock.jump(time::Duration::minutes(31));
            house.until("the other one is renewed", |h| h.counts().1 > 2 + round).await;
            let mut next = house.ask(8, &in_use).await.word();
            while next == served {
                next = house.ask(8, &in_use).await.word();
            }
            served = next;
            assert_eq!(house.counts().1, 3 + round);
        }
        assert_eq!(house.ask(7, &token).await.word(), "ASIA0010");
    });
}

#[test]
fn an_outage_is_survived_until_the_documents_expire_and_ends_without_a_restart() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.word(), "ASIA0001");
        house.credvend.stop().await;
        house.clock.jump(time::Duration::minutes(55));
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (200, "ASIA0001"), "it still lives");
        house.clock.jump(time::Duration::minutes(5));
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (503, "NotNow"));
        assert!(answer.message().contains("job 7") && answer.message().contains("credvend"), "{}", answer.message());
        assert!(answer.head.contains("retry-after"));
        house.credvend.start().await;
        let mut answer = house.ask(7, &token).await;
        while answer.status == 503 {
            answer = house.ask(7, &token).await;
        }
        assert_eq!(answer.status, 200);
    });
}

#[test]
fn with_a_bound_on_silence_nothing_is_served_once_credvend_was_not_heard_for_so_long() {
    in_a_house(async || {
        let bound = Duration::from_millis(300);
        let mut house = House::with(|plan, _| plan.settings.max_unheard = Some(bound)).await;
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 200);
        house.credvend.stop().await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while house.ask(7, &token).await.status == 200 {
            assert!(tokio::time::Instant::now() < deadline, "served for ever");
        }
        house.credvend.start().await;
        let mut answer = house.ask(7, &token).await;
        while answer.status == 503 {
            answer = house.ask(7, &token).await;
        }
        assert_eq!(answer.status, 200, "{}", answer.body);
    });
}

#[test]
fn a_job_that_starts_while_credvend_is_down_gets_credentials_when_it_is_back() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| plan.credvend_up = false).await;
        let (job, token) = house.job_with(7, |job| job.first_node = true).await;
        let before = tokio::time::Instant::now();
        let answer = house.ask(7, &token).await;
        assert!(before.elapsed() < Duration::from_millis(1990), "within botocore's patience: {:?}", before.elapsed());
        assert_eq!(answer.status, 503);
        let waits = |m: &ToKeeper| matches!(m, ToKeeper::Waiting { run, .. } if *run == job.run);
        assert!(house.said.borrow().iter().any(waits));
        house.credvend.start().await;
        let mut answer = house.ask(7, &token).await;
        while answer.status == 503 {
            answer = house.ask(7, &token).await;
        }
        assert_eq!(answer.status, 200);
    });
}

#[test]
fn refusals_reach_the_jobs_user_and_do_not_storm_credvend() {
    in_a_house(async || {
        let mut house = House::new().await;
        let never = error("NoAccount", "job 7 has no account; submit it with --account", false);
        house.credvend.script.borrow_mut().refuse_open = Some((403, never));
        let (job, token) = house.job(7).await;
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "Refused"));
        assert!(answer.message().contains("submit it with --account"));
        let reason = "job 7 has no account; submit it with --account".to_owned();
        let refused = ToKeeper::Refused { run: job.run, reason };
        house.until("the keeper knows", |h| h.heard(&refused)).await;
        for _ in 0..20 {
            assert_eq!(house.ask(7, &token).await.status, 403);
        }
        assert_eq!(house.counts().0, 1);

        let mended = error("UnknownProject", "project genomics has no role", true);
        house.credvend.script.borrow_mut().refuse_open = Some((403, mended));
        let (_, token) = house.job(8).await;
        for _ in 0..20 {
            let answer = house.ask(8, &token).await;
            assert_eq!((answer.status, answer.word().as_str()), (403, "RefusedForNow"), "{}", answer.body);
        }
        assert_eq!(house.counts().0, 2);
        house.credvend.script.borrow_mut().refuse_open = None;

        let role = error("RoleRefused", "AWS does not give role x to credvend", true);
        house.credvend.script.borrow_mut().refuse_credentials = Some((403, role));
        let (_, token) = house.job(9).await;
        for _ in 0..20 {
            let answer = house.ask(9, &token).await;
            assert_eq!((answer.status, answer.word().as_str()), (403, "RefusedForNow"));
            assert!(answer.message().contains("role x"));
        }
        assert_eq!(house.counts().1, 1);
    });
}

#[test]
fn an_invalidated_session_is_dead_at_once() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.until("the stream is open", |h| h.credvend.script.borrow().streams == 1).await;
        let (job, token) = house.job(7).await;
        let (_, other) = house.job(8).await;
        assert_eq!(house.ask(7, &token).await.status, 200);
        assert_eq!(house.ask(8, &other).await.status, 200);
        let session = house.session_of(&job.run).unwrap();
        house.credvend.invalidate(session, "revoked by an administrator");
        let refused = ToKeeper::Refused { run: job.run, reason: "revoked by an administrator".into() };
        house.until("the keeper knows", |h| h.heard(&refused)).await;
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "Refused"));
        assert!(answer.message().contains("revoked by an administrator"));
        assert_eq!(house.ask(8, &other).await.status, 200);
        house.end(&job.run).await;
        house.until("its end is delivered", |h| h.heard(&ToKeeper::EndDelivered { run: job.run })).await;
    });
}

#[test]
fn what_was_said_while_the_stream_was_away_is_asked_for() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.until("the stream is open", |h| h.credvend.script.borrow().streams == 1).await;
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.word(), "ASIA0001");
        // credvend says that there was an event which this node did not hear.
        house.credvend.script.borrow_mut().seq = 5;
        house.credvend.say(&Event::Ping { seq: 5 });
        let ended = error("SessionEnded", "session is INVALIDATED: revoked", false);
        house.credvend.script.borrow_mut().refuse_credentials = Some((403, ended));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        let mut answer = house.ask(7, &token).await;
        while answer.status == 200 && tokio::time::Instant::now() < deadline {
            answer = house.ask(7, &token).await;
        }
        assert_eq!((answer.status, answer.word().as_str()), (403, "Refused"));
    });
}

#[test]
fn a_stream_without_life_is_opened_anew() {
    in_a_house(async || {
        let house = House::with(|plan, _| plan.settings.silence = Duration::from_millis(100)).await;
        house.until("a second stream", |h| h.credvend.script.borrow().streams >= 2).await;
    });
}

#[test]
fn a_session_that_credvend_forgot_is_opened_anew() {
    in_a_house(async || {
        let mut house = House::new().await;
        let session = credd_protocol::SessionId::random();
        let (_, token) = house.job_with(7, |job| job.session = Some(session)).await;
        let unknown = error("UnknownSession", "session is not known here", false);
        house.credvend.script.borrow_mut().refuse_credentials = Some((404, unknown));
        house.credvend.script.borrow_mut().delay = Duration::from_millis(50);
        let script = house.credvend.script.clone();
        tokio::task::spawn_local(async move {
            while script.borrow().credentials == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            script.borrow_mut().refuse_credentials = None;
        });
        let answer = house.ask(7, &token).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(house.counts(), (1, 2));
    });
}

#[test]
fn an_answer_that_comes_after_the_end_is_left() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.credvend.script.borrow_mut().delay = Duration::from_millis(200);
        let (job, _) = house.job_with(7, |job| job.first_node = true).await;
        // The open is under way: credvend has it when the signature was given.
        house.until("an open is under way", |h| h.credvend.script.borrow().authorizations.len() >= 2).await;
        house.end(&job.run).await;
        house.until("delivered", |h| h.heard(&ToKeeper::EndDelivered { run: job.run })).await;
        assert_eq!(house.credvend.script.borrow().leaves.len(), 1);
        assert!(house.session_of(&job.run).is_none());
    });
}

#[test]
fn a_job_that_ends_or_is_revoked_while_its_request_waits_gets_nothing() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.until("the stream is open", |h| h.credvend.script.borrow().streams == 1).await;
        for revoked in [false, true] {
            let (job, token) = house.job(7 + u32::from(revoked)).await;
            house.credvend.script.borrow_mut().delay = Duration::from_millis(300);
            let (endpoint, id) = (house.endpoint, job.job.get());
            let asking = tokio::task::spawn_local(async move {
                let stream = tokio::net::TcpStream::connect(endpoint).await.unwrap();
                ask_on(&mut tokio::io::BufReader::new(stream), endpoint.port(), id, &token).await
            });
            house.until("the session is open", |h| h.session_of(&job.run).is_some()).await;
            // One signature for the open was given, and now one for the credentials, which credvend is long about.
            let session = house.session_of(&job.run).unwrap();
            if revoked {
                house.credvend.invalidate(session, "revoked");
            } else {
                house.end(&job.run).await;
            }
            let answer = asking.await.unwrap();
            let word = if revoked { "Refused" } else { "JobEnded" };
            assert_eq!((answer.status, answer.word().as_str()), (403, word));
        }
    });
}

#[test]
fn ends_are_delivered_however_long_credvend_is_away() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| plan.credvend_up = false).await;
        let session = credd_protocol::SessionId::random();
        let (ended, _) = house
            .job_with(7, |job| {
                job.ended = true;
                job.session = Some(session);
            })
            .await;
        let (never_opened, _) = house.job_with(8, |job| job.ended = true).await;
        let delivered = |h: &House, run| h.heard(&ToKeeper::EndDelivered { run });
        house.until("nothing to deliver", |h| delivered(h, never_opened.run)).await;
        assert!(!delivered(&house, ended.run));
        house.credvend.start().await;
        house.until("delivered", |h| delivered(h, ended.run)).await;
        assert_eq!(house.credvend.script.borrow().leaves, [session]);
    });
}

#[test]
fn credvends_answer_about_another_uid_is_not_believed() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.credvend.script.borrow_mut().other_uid = Some(4242);
        let (_, token) = house.job(7).await;
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "Refused"));
    });
}

#[test]
fn an_answer_without_end_or_sense_is_an_outage_and_is_survived() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| plan.settings.patience = Duration::from_millis(200)).await;
        let endless = bytes::Bytes::from(vec![b' '; 4 << 20]);
        let cases = [(endless, "more than 65536 bytes"), ("{\"session\":\"secret".into(), "not understood")];
        for (id, (nonsense, why)) in (7..).zip(cases) {
            house.credvend.script.borrow_mut().nonsense = Some(nonsense);
            let (_, token) = house.job(id).await;
            let mut answer = house.ask(id, &token).await;
            while !answer.message().contains(why) {
                assert!(answer.status == 503 && !answer.body.contains("secret"), "{}", answer.body);
                answer = house.ask(id, &token).await;
            }
            house.credvend.script.borrow_mut().nonsense = None;
            let mut answer = house.ask(id, &token).await;
            while answer.status == 503 {
                answer = house.ask(id, &token).await;
            }
            assert_eq!(answer.status, 200, "{}", answer.body);
        }
    });
}

#[test]
fn a_dead_document_is_not_served_but_explained() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.credvend.script.borrow_mut().life = Duration::ZERO;
        let (_, token) = house.job(7).await;
        let answer = house.ask(7, &token).await;
        assert_eq!(answer.status, 503);
        assert!(answer.message().contains("clock"), "{}", answer.message());
    });
}

#[test]
fn without_a_cache_every_request_asks_but_together_they_ask_once() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| plan.settings.cache.store = false).await;
        let (_, token) = house.job(7).await;
        for n in 1..4 {
            assert_eq!(house.ask(7, &token).await.word(), format!("ASIA000{n}"));
        }
    });
}

#[test]
fn a_job_that_credvend_cannot_answer_for_is_a_problem_while_it_runs() {
    in_a_house(async || {
        let mut house = House::with(|_, credvend| {
            let cannot = (503, error("SlurmUnavailable", "PrivateData=jobs hides other users' jobs", true));
            credvend.script.borrow_mut().refuse_open = Some(cannot);
        })
        .await;
        let (job, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 503);
        // credvend speaks on the stream meanwhile, and takes other requests.
        house.credvend.say(&Event::Ping { seq: 0 });
        let said = |problem: &Option<String>| problem.as_ref().is_some_and(|p| p.starts_with("job 7 has no session: "));
        let mut problem = None;
        while !said(&problem) {
            problem = house.credvend_problem().await;
        }
        assert!(problem.unwrap().contains("PrivateData"));
        house.end(&job.run).await;
        while house.credvend_problem().await.is_some() {}
    });
}

#[test]
fn the_keeper_learns_of_health_and_stop_is_orderly() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.until("ready", |h| h.heard(&ToKeeper::Ready)).await;
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 200);
        house.tell(&ToServer::Report { id: 3 }).await;
        house.until("a report", |h| h.said.borrow().iter().any(|m| matches!(m, ToKeeper::Report { id: 3, .. }))).await;
        let report = house.said.borrow().iter().find_map(|m| match m {
            ToKeeper::Report { health, jobs, .. } => Some((health.clone(), jobs.clone())),
            _ => None,
        });
        let (health, jobs) = report.unwrap();
        assert!(health.serving && health.credvend_problem.is_none() && health.jobs == 1, "{health:?}");
        assert_eq!((jobs[0].state.as_str(), jobs[0].credentials_until.is_some()), ("open", true));
        // An idle kept connection does not hold the stop up.
        let _idle = house.connect().await;
        house.tell(&ToServer::Stop).await;
        let served = tokio::time::timeout(Duration::from_secs(2), &mut house.server).await.expect("stops").unwrap();
        assert!(served.is_ok());
    });
}
