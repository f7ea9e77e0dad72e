//! Jobs whose start left no record on the node.

use credd_protocol::node_api::ApiError;
use credd_protocol::{JobToken, Uid};

use super::fake_credvend::{error, slurm_facts};
use super::house::{Everybody, House, ask_on, in_a_house, own_uid};
use crate::control::{Job, LateJob, RunId, ToKeeper, ToServer};
use crate::server::jobs::fixture;

/// A late record of this process' uid.
async fn late(house: &mut House, id: u32) -> (LateJob, Job, JobToken) {
    let (job, token) = fixture::job(id, own_uid());
    let late = LateJob { run: job.run, job: job.job, uid: job.uid, token: job.token, refused: None };
    house.tell(&ToServer::Late(Box::new(late.clone()))).await;
    (late, job, token)
}

fn attested(house: &House, run: &RunId) -> bool {
    house.heard(&ToKeeper::Attested { run: *run, facts: slurm_facts("batch") })
}

#[test]
fn slurms_word_goes_to_the_keeper_and_a_process_that_asks_meanwhile_waits_for_it() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (late, job, token) = late(&mut house, 7).await;
        house.until("Slurm's word", |h| attested(h, &late.run)).await;
        assert_eq!(house.counts(), (0, 0), "nothing is opened before the partition's options are known");
        let (endpoint, shown) = (house.endpoint, token.clone());
        let asking = tokio::task::spawn_local(async move {
            let stream = tokio::net::TcpStream::connect(endpoint).await.unwrap();
            ask_on(&mut tokio::io::BufReader::new(stream), endpoint.port(), 7, &shown).await
        });
        house.tell(&ToServer::Job(Box::new(job))).await;
        let answer = asking.await.unwrap();
        assert_eq!((answer.status, answer.word().as_str()), (200, "ASIA0001"), "{}", answer.body);
        assert_eq!(house.credvend.script.borrow().attests, 1);
    });
}

#[test]
fn what_credvend_refuses_for_good_is_refused_to_its_processes_and_kept() {
    in_a_house(async || {
        let mut house = House::new().await;
        let no = error("Contradicted", "Slurm says another uid", false);
        house.credvend.script.borrow_mut().refuse_attest = Some((403, no));
        let (late, _, token) = late(&mut house, 7).await;
        let reason = "Slurm says another uid".to_owned();
        house.until("the refusal", |h| h.heard(&ToKeeper::Refused { run: late.run, reason: reason.clone() })).await;
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "Refused"));
        assert!(answer.message().contains("another uid"), "{}", answer.body);
    });
}

#[test]
fn a_partition_that_is_off_is_the_keepers_word() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (mut late, _, token) = late(&mut house, 7).await;
        house.until("Slurm's word", |h| attested(h, &late.run)).await;
        late.refused = Some("they are switched off for partition debug".into());
        house.tell(&ToServer::Late(Box::new(late))).await;
        let answer = house.ask(7, &token).await;
        assert!(answer.status == 403 && answer.message().contains("partition debug"), "{}", answer.body);
        assert_eq!(house.counts(), (0, 0));
    });
}

#[test]
fn while_credvend_is_away_the_process_hears_why_and_the_end_ends_it() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.credvend.script.borrow_mut().refuse_attest = Some((503, error("Unavailable", "Slurm is away", true)));
        let (late, job, token) = late(&mut house, 7).await;
        let waiting = ToKeeper::Waiting { run: late.run, reason: "Slurm is away".into() };
        house.until("the obstacle", |h| h.heard(&waiting)).await;
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (503, "NotNow"));
        assert!(answer.message().contains("Slurm is away"), "{}", answer.body);
        house.credvend.script.borrow_mut().refuse_attest = None;
        house.until("Slurm's word", |h| attested(h, &late.run)).await;
        house.end(&job.run).await;
        assert_eq!(house.ask(7, &token).await.word(), "UnknownToken");
    });
}

#[test]
fn an_older_credvend_cannot_say_and_an_administrator_may_mend_that() {
    in_a_house(async || {
        let mut house = House::new().await;
        let old = error("NotFound", "there is nothing at \"/node/v1/jobs\"", false);
        house.credvend.script.borrow_mut().refuse_attest = Some((404, old));
        let (_, _, token) = late(&mut house, 7).await;
        house.until("it was asked", |h| h.credvend.script.borrow().attests > 0).await;
        let answer = house.ask(7, &token).await;
        assert!(answer.status == 503 && answer.message().contains("older release"), "{}", answer.body);
    });
}

#[test]
fn another_users_process_learns_nothing_of_it() {
    in_a_house(async || {
        let other = Uid(own_uid() + 1);
        let mut house = House::with(|plan, _| plan.whois = Box::new(Everybody(Ok(other)))).await;
        let (late, _, token) = late(&mut house, 7).await;
        house.until("Slurm's word", |h| attested(h, &late.run)).await;
        assert_eq!(house.ask(7, &token).await.word(), "OtherUser");
    });
}

#[test]
fn a_records_partition_must_be_slurms() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.credvend.script.borrow_mut().partition = Some("batch");
        let (_, right) = house.job(7).await;
        assert_eq!(house.ask(7, &right).await.status, 200);
        let (_, wrong) = house.job_with(8, |job| job.partition = "gpu".parse().unwrap()).await;
        let answer = house.ask(8, &wrong).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "Refused"));
        assert!(answer.message().contains("partition gpu"), "{}", answer.body);
        let queries = house.credvend.script.borrow().open_queries.clone();
        assert_eq!(queries, [Some("partition=batch".to_owned()), Some("partition=gpu".to_owned())]);
    });
}

#[test]
fn a_run_that_is_over_by_slurms_word_is_noted_and_a_revoked_one_is_not() {
    in_a_house(async || {
        for (code, message, ended, over) in [
            ("JobNotRunning", "the session is of its restart 0, Slurm is at restart 1", None, true),
            ("SessionEnded", "session x is COMPLETED: it is over", Some("COMPLETED"), true),
            ("SessionEnded", "session x is COMPLETED: says a credvend of release 0.1", None, true),
            ("SessionEnded", "session x is INVALIDATED: by root", Some("INVALIDATED"), false),
            ("SessionEnded", "session x is INVALIDATED: by root", None, false),
        ] {
            for opened in [false, true] {
                let mut house = House::new().await;
                let ended = ended.map(str::to_owned);
                let refusal = Some((403, ApiError { ended, ..error(code, message, false) }));
                if opened {
                    house.credvend.script.borrow_mut().refuse_credentials = refusal;
                } else {
                    house.credvend.script.borrow_mut().refuse_open = refusal;
                }
                let (job, token) = house.job(7).await;
                assert_eq!(house.ask(7, &token).await.word(), "Refused");
                let refused = ToKeeper::Refused { run: job.run, reason: message.to_owned() };
                house.until("the refusal", |h| h.heard(&refused)).await;
                assert_eq!(house.heard(&ToKeeper::Over { run: job.run }), over, "{code} {message}");
            }
        }
    });
}
