//! Requests without a token: whom the kernel's word alone serves, and who gets nothing.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use credd_protocol::own_api::{OwnCredentials, OwnToken};
use credd_protocol::{JobId, NodeName, Uid};
use peer::{CgroupId, JobDirectory, Seen, Verdict};

use super::super::settings::ProofOfJob;
use super::super::whois::{Caller, WhoIs};
use super::house::{Answer, House, in_a_house, own_uid};
use crate::control::{Job, ToKeeper};

/// What the kernel shows of the process that connects next: its uid, and the job in whose cgroup it is (0: in none), on a
/// node where Slurm keeps its jobs in cgroups, or does not.
#[derive(Clone, Default)]
struct Word(Rc<Said>);

#[derive(Default)]
struct Said {
    uid: Cell<Option<u32>>,
    job: Cell<Option<u32>>,
    too_many: Cell<bool>,
    searches: Cell<usize>,
}

impl Word {
    fn uid(&self, uid: u32) {
        self.0.uid.set(Some(uid));
    }
    fn in_job(&self, job: u32) {
        self.0.job.set(Some(job));
    }
}

impl WhoIs for Word {
    fn caller(&self, _: SocketAddr, _: SocketAddr) -> Result<Caller, String> {
        let uid = Uid(self.0.uid.get().unwrap_or_else(own_uid));
        Ok(Caller { uid, cgroup: self.0.job.get().map(|job| CgroupId(job.into())) })
    }

    fn made_in(&self, caller: &Caller, job: &Job, _: &mut Seen) -> Verdict {
        let own = CgroupId(job.job.get().into());
        self.0.searches.set(self.0.searches.get() + 1);
        match caller.cgroup {
            _ if self.0.too_many.get() => Verdict::Unread,
            Some(cgroup) if cgroup == own => Verdict::Inside,
            _ => Verdict::Outside,
        }
    }

    /// Job 9 has a directory, too.
    fn other_jobs(&self, _: &NodeName, known: &[&Job]) -> Option<Vec<JobDirectory>> {
        let is_known = known.iter().any(|job| job.job.get() == 9);
        Some(if is_known { vec![] } else { vec![JobDirectory::of_job(9)] })
    }

    fn made_in_other(&self, caller: &Caller, _: &NodeName, job: &JobDirectory, _: &mut Seen) -> Verdict {
        let own = job.job().map(|job| CgroupId(job.into()));
        if caller.cgroup == own { Verdict::Inside } else { Verdict::Outside }
    }
}

async fn house(policy: ProofOfJob) -> (House, Word) {
    let word = Word::default();
    let whois = word.clone();
    let house = House::with(|plan, _| {
        plan.whois = Box::new(whois);
        plan.settings.without_token = policy;
    })
    .await;
    (house, word)
}

async fn put(house: &House, path: &str, more: &[&str]) -> Answer {
    let mut headers = vec![house.host(), "Content-Length: 0".into(), "X-Credd-Client: credd/1".into()];
    headers.extend(more.iter().map(ToString::to_string));
    house.raw(&format!("PUT /own/v1/{path} HTTP/1.1"), &headers).await
}

/// The job whose credentials come, or the error's code.
async fn credentials(house: &House, more: &[&str]) -> Result<u32, String> {
    let answer = put(house, "credentials", more).await;
    if answer.status != 200 {
        assert!(!answer.body.contains("AccessKeyId"));
        return Err(format!("{} {}", answer.status, answer.word()));
    }
    let own: OwnCredentials = serde_json::from_str(&answer.body).unwrap();
    let of = house.credvend.script.borrow().given[&own.credentials.access_key_id];
    let opened = house.said.borrow().iter().any(|m| matches!(m, ToKeeper::Opened { session, .. } if *session == of));
    assert!(opened);
    Ok(own.job.get())
}

fn no(word: &str) -> Result<u32, String> {
    Err(format!("403 {word}"))
}

#[test]
fn ones_only_job_is_served_without_a_token_and_others_are_not() {
    in_a_house(async || {
        let (mut house, word) = house(ProofOfJob::Uid).await;
        assert_eq!(credentials(&house, &[]).await, no("NoJob"));
        let (job, _) = house.job_with(7, |job| job.options.region = Some("eu-west-1".parse().unwrap())).await;
        house.job_with(8, |job| job.uid = Uid(own_uid() + 1)).await;
        assert_eq!(credentials(&house, &["X-Credd-Job: 7"]).await, Ok(7));
        assert_eq!(credentials(&house, &[]).await, Ok(7));
        assert!(
            put(&house, "credentials", &[]).await.body.starts_with(r#"{"job":7,"region":"eu-west-1","credentials":{"#)
        );
        assert_eq!(credentials(&house, &["X-Credd-Job: 8"]).await, no("NoJob"), "another user's");
        assert_eq!(credentials(&house, &["X-Credd-Job: 9"]).await, no("NoJob"));
        word.uid(own_uid() + 2);
        for more in [&[][..], &["X-Credd-Job: 7"], &["X-Credd-Job-Hint: 7"]] {
            assert_eq!(credentials(&house, more).await, no("NoJob"));
            assert_eq!(put(&house, "token", more).await.status, 403);
        }
        word.uid(own_uid());
        house.end(&job.run).await;
        house.until("the end is delivered", |h| h.heard(&ToKeeper::EndDelivered { run: job.run })).await;
        assert_eq!(credentials(&house, &["X-Credd-Job: 7"]).await, no("NoJob"), "the job is over");
        assert_eq!(credentials(&house, &[]).await, no("NoJob"));
    });
}

#[test]
fn nothing_that_a_browser_or_a_web_program_can_be_made_to_send_is_served() {
    in_a_house(async || {
        let (mut house, _) = house(ProofOfJob::Uid).await;
        house.job(7).await;
        let host = house.host();
        let client = "X-Credd-Client: x";
        for (method, headers, status, word) in [
            ("GET", vec![&*host, client], 404, "NotFound"),
            ("POST", vec![&*host, client, "Content-Length: 0"], 405, "MethodNotAllowed"),
            ("OPTIONS", vec![&*host, client], 405, "MethodNotAllowed"),
            ("PUT", vec![&*host, "Content-Length: 0"], 403, "NoClient"),
            ("PUT", vec!["Host: evil.example", client], 403, "WrongHost"),
            ("PUT", vec![&*host, client, "Origin: http://127.0.0.1:9999"], 403, "BrowserRequest"),
            ("PUT", vec![&*host, client, "Sec-Fetch-Site: same-origin"], 403, "BrowserRequest"),
            ("PUT", vec![&*host, client, "X-Forwarded-For: 10.0.0.1"], 403, "BrowserRequest"),
            ("PUT", vec![&*host, client, "X-Credd-Job: seven"], 400, "BadRequest"),
        ] {
            for path in ["/own/v1/credentials", "/own/v1/token"] {
                let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
                let answer = house.raw(&format!("{method} {path} HTTP/1.1"), &headers).await;
                assert_eq!((answer.status, answer.word().as_str()), (status, word), "{method} {headers:?}");
                assert!(!answer.head.contains("access-control"), "{}", answer.head);
            }
        }
        assert_eq!(put(&house, "else", &[]).await.word(), "NotFound");
        assert_eq!(house.counts(), (0, 0), "nothing reached credvend");
    });
}

#[test]
fn of_several_jobs_the_callers_word_chooses_unless_the_kernel_knows() {
    in_a_house(async || {
        let (mut house, word) = house(ProofOfJob::Uid).await;
        for job in [7, 8] {
            house.job(job).await;
        }
        house.job_with(19, |job| job.het_leader = Some(JobId::try_from(18).unwrap())).await;
        assert_eq!(credentials(&house, &["X-Credd-Job: 19"]).await, Ok(19));
        assert_eq!(credentials(&house, &[]).await, no("SeveralJobs"));
        let message = put(&house, "credentials", &[]).await.message();
        assert!(message.contains("7, 8, 19") && message.contains("--job"), "{message}");
        assert_eq!(credentials(&house, &["X-Credd-Job: 8"]).await, Ok(8));
        assert_eq!(credentials(&house, &["X-Credd-Job-Hint: 8"]).await, Ok(8));
        assert_eq!(credentials(&house, &["X-Credd-Job-Hint: 18"]).await, Ok(19), "the component that is here");
        assert_eq!(credentials(&house, &["X-Credd-Job: 7", "X-Credd-Job-Hint: 8"]).await, Ok(7));
        assert_eq!(credentials(&house, &["X-Credd-Job-Hint: 9"]).await, no("NoJob"), "that job is over, or has none");
        word.in_job(8);
        assert_eq!(credentials(&house, &[]).await, Ok(8));
        assert_eq!(credentials(&house, &["X-Credd-Job-Hint: 7"]).await, Ok(8), "a hint does not contradict the kernel");
        assert_eq!(credentials(&house, &["X-Credd-Job: 7"]).await, no("OtherJob"));
        word.in_job(0);
        assert_eq!(credentials(&house, &[]).await, no("SeveralJobs"));
        assert_eq!(credentials(&house, &["X-Credd-Job: 7"]).await, Ok(7), "as by ssh: the uid is enough here");
    });
}

#[test]
fn a_process_of_a_job_without_credentials_gets_no_other_jobs() {
    in_a_house(async || {
        let (mut house, word) = house(ProofOfJob::Uid).await;
        house.job(7).await;
        word.in_job(9);
        for more in [&[][..], &["X-Credd-Job: 7"], &["X-Credd-Job-Hint: 7"]] {
            assert_eq!(credentials(&house, more).await, no("OtherJob"));
            assert_eq!(put(&house, "token", more).await.word(), "OtherJob");
        }
        let message = put(&house, "credentials", &[]).await.message();
        assert!(message.contains("job 9") && message.contains("(7)"), "{message}");
        assert_eq!(house.counts(), (0, 0), "nothing reached credvend");
        word.in_job(0);
        assert_eq!(credentials(&house, &[]).await, Ok(7), "as by ssh");
        let searches = word.0.searches.get();
        assert_eq!(credentials(&house, &[]).await, Ok(7));
        assert_eq!(word.0.searches.get(), searches, "a cgroup of no job is searched once");
        // Where it cannot be told, nothing is guessed.
        word.in_job(1);
        word.0.too_many.set(true);
        assert_eq!(credentials(&house, &["X-Credd-Job: 7"]).await, no("OutsideJob"));
        word.0.too_many.set(false);
        word.in_job(9);
        house.job(9).await;
        assert_eq!(credentials(&house, &[]).await, Ok(9), "its record has come");
    });
}

#[test]
fn a_site_can_demand_the_cgroup_or_a_token() {
    in_a_house(async || {
        let (mut house, word) = house(ProofOfJob::Cgroup).await;
        house.job(7).await;
        assert_eq!(credentials(&house, &["X-Credd-Job: 7"]).await, no("OutsideJob"));
        word.in_job(0);
        assert_eq!(credentials(&house, &["X-Credd-Job: 7"]).await, no("OutsideJob"));
        word.in_job(7);
        assert_eq!(credentials(&house, &[]).await, Ok(7));
    });
    in_a_house(async || {
        let (mut house, word) = house(ProofOfJob::Off).await;
        let (_, token) = house.job(7).await;
        word.in_job(7);
        assert_eq!(credentials(&house, &["X-Credd-Job: 7"]).await, no("TokenWanted"));
        assert_eq!(house.ask(7, &token).await.status, 200);
    });
}

#[test]
fn a_minted_token_serves_its_job_until_that_ends() {
    in_a_house(async || {
        let (mut house, word) = house(ProofOfJob::Uid).await;
        let (job, _) = house.job(7).await;
        house.job(8).await;
        let answer = put(&house, "token", &["X-Credd-Job: 7"]).await;
        let own: OwnToken = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(own.job.get(), 7);
        assert_eq!(own.uri, format!("http://127.0.0.1:{}{}", house.endpoint.port(), House::path(7)));
        assert_eq!(house.ask(7, &own.token).await.status, 200);
        assert_eq!(house.ask(8, &own.token).await.word(), "OtherJob");
        word.uid(own_uid() + 1);
        assert_eq!(house.ask(7, &own.token).await.word(), "OtherUser");
        word.uid(own_uid());
        // Each process of a large node may have one.
        for _ in 1..300 {
            assert_eq!(put(&house, "token", &["X-Credd-Job: 7"]).await.status, 200);
        }
        assert_eq!(house.ask(7, &own.token).await.status, 200);
        house.end(&job.run).await;
        house.until("the end is delivered", |h| h.heard(&ToKeeper::EndDelivered { run: job.run })).await;
        assert_eq!(house.ask(7, &own.token).await.status, 403);
        let said = format!("{:?}", house.said.borrow());
        assert!(!said.contains(&own.token.expose()[7..]));
    });
}
