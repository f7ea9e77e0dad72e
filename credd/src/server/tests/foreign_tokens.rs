//! Processes with another node's token: who is served under this node's own name, and who gets nothing.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use credd_protocol::{JobId, JobToken, Uid};
use peer::{CgroupId, Seen, Verdict};

use super::super::jobs::fixture;
use super::super::settings::ProofOfJob;
use super::super::whois::{Caller, WhoIs};
use super::house::{House, ask_on, in_a_house, own_uid};
use crate::control::{Job, ToKeeper, ToServer};

/// A node where Slurm keeps its jobs in cgroups: a job's cgroup has ten times its id, and the process that connects next
/// is in one of them.
#[derive(Clone, Default)]
struct Cgroups(Rc<Inside>);

#[derive(Default)]
struct Inside {
    cgroup: Cell<u64>,
    uid: Cell<Option<u32>>,
    searches: Cell<usize>,
}

impl WhoIs for Cgroups {
    fn caller(&self, _: SocketAddr, _: SocketAddr) -> Result<Caller, String> {
        let uid = Uid(self.0.uid.get().unwrap_or_else(own_uid));
        Ok(Caller { uid, cgroup: Some(CgroupId(self.0.cgroup.get())) })
    }

    fn made_in(&self, caller: &Caller, job: &Job, _: &mut Seen) -> Verdict {
        self.0.searches.set(self.0.searches.get() + 1);
        let own = CgroupId(u64::from(job.job.get()) * 10);
        if caller.cgroup == Some(own) { Verdict::Inside } else { Verdict::Outside }
    }
}

async fn with_cgroups() -> (House, Cgroups) {
    let cgroups = Cgroups::default();
    let whois = cgroups.clone();
    let house = House::with(|plan, _| plan.whois = Box::new(whois)).await;
    (house, cgroups)
}

async fn with_policy(policy: ProofOfJob) -> House {
    House::with(|plan, _| plan.settings.foreign_token = policy).await
}

fn leader(job: u32) -> impl FnOnce(&mut Job) {
    move |component| component.het_leader = Some(JobId::try_from(job).unwrap())
}

/// Status and word of a request with a token that no node knows.
async fn foreign(house: &House, job: u32) -> (u16, String) {
    let answer = house.ask(job, &JobToken::mint().unwrap()).await;
    if answer.status == 403 {
        assert!(answer.message().contains(&job.to_string()), "{}", answer.message());
    }
    (answer.status, answer.word())
}

fn denied(word: &str) -> (u16, String) {
    (403, word.to_owned())
}

fn served(house: &House, (status, key): (u16, String), run: &Job) {
    assert_eq!(status, 200, "{key}");
    let given_to = house.credvend.script.borrow().given[&key];
    assert_eq!(Some(given_to), house.session_of(&run.run), "credentials of another run");
}

#[test]
fn a_process_in_the_jobs_cgroup_is_served_as_this_nodes_own() {
    in_a_house(async || {
        let (mut house, cgroups) = with_cgroups().await;
        let (job, _) = house.job(7).await;
        let (other, _) = house.job(8).await;
        cgroups.0.cgroup.set(70);
        let answer = foreign(&house, 7).await;
        served(&house, answer, &job);
        cgroups.0.cgroup.set(80);
        let answer = foreign(&house, 8).await;
        served(&house, answer, &other);
    });
}

#[test]
fn a_process_of_the_user_outside_the_jobs_cgroup_gets_nothing_and_is_told_what_is_wrong() {
    in_a_house(async || {
        let (mut house, cgroups) = with_cgroups().await;
        house.job(7).await;
        house.job(8).await;
        for cgroup in [80, 1, 0] {
            cgroups.0.cgroup.set(cgroup);
            let answer = house.ask(7, &JobToken::mint().unwrap()).await;
            assert_eq!((answer.status, answer.word().as_str()), (403, "OutsideJob"));
            let message = answer.message();
            assert!(message.contains("The URL is right, job 7") && message.contains("not made in the job's cgroup"));
        }
        assert_eq!(house.counts(), (0, 0));
    });
}

#[test]
fn another_users_process_is_not_helped_by_a_made_up_token() {
    in_a_house(async || {
        let (mut house, cgroups) = with_cgroups().await;
        house.job(7).await;
        cgroups.0.cgroup.set(70);
        for uid in [own_uid() + 1, 0].into_iter().filter(|uid| *uid != own_uid()) {
            cgroups.0.uid.set(Some(uid));
            let answer = house.ask(7, &JobToken::mint().unwrap()).await;
            assert_eq!((answer.status, answer.word().as_str()), (403, "UnknownToken"));
            assert!(answer.message().contains(&format!("no job 7 of uid {uid} runs here")), "{}", answer.message());
        }
        assert_eq!((cgroups.0.searches.get(), house.counts()), (0, (0, 0)), "no cgroup is looked at for another user");
    });
}

#[test]
fn a_token_that_is_known_here_says_which_job_it_is_whatever_the_cgroup() {
    in_a_house(async || {
        let (mut house, cgroups) = with_cgroups().await;
        house.job(7).await;
        let (_, eight) = house.job(8).await;
        cgroups.0.cgroup.set(70);
        let answer = house.ask(7, &eight).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "OtherJob"));
        assert_eq!(cgroups.0.searches.get(), 0);
        // Its record comes late: until then the cgroup decides.
        let (late, token) = fixture::job(9, own_uid());
        assert_eq!(house.ask(7, &token).await.status, 200);
        house.tell(&ToServer::Job(Box::new(late))).await;
        assert_eq!(house.ask(9, &token).await.status, 200);
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "OtherJob"), "and from now on the token does");
    });
}

#[test]
fn what_was_proven_dies_with_the_run_also_on_a_kept_connection() {
    in_a_house(async || {
        let (mut house, cgroups) = with_cgroups().await;
        let (job, _) = house.job(7).await;
        cgroups.0.cgroup.set(70);
        let (token, port) = (JobToken::mint().unwrap(), house.endpoint.port());
        let mut kept = house.connect().await;
        for _ in 0..3 {
            assert_eq!(ask_on(&mut kept, port, 7, &token).await.status, 200);
        }
        assert_eq!(cgroups.0.searches.get(), 1, "proven once for a connection");
        // Another path on the same connection needs a proof of its own.
        house.job(8).await;
        let answer = ask_on(&mut kept, port, 8, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "OutsideJob"));
        let mut kept = house.connect().await;
        assert_eq!(ask_on(&mut kept, port, 7, &token).await.status, 200);
        house.end(&job.run).await;
        house.until("the end is delivered", |h| h.heard(&ToKeeper::EndDelivered { run: job.run })).await;
        let answer = ask_on(&mut kept, port, 7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "JobEnded"));
        assert_eq!(foreign(&house, 7).await, denied("JobEnded"));
        // The job runs again: the same process must be proven to be of the new run.
        let (again, _) = house.job(7).await;
        let answer = house.ask(7, &token).await;
        served(&house, (answer.status, answer.word()), &again);
    });
}

#[test]
fn a_component_of_a_heterogeneous_job_is_served_as_itself_with_the_leaders_url() {
    in_a_house(async || {
        let (mut house, cgroups) = with_cgroups().await;
        let (one, _) = house.job_with(8, leader(7)).await;
        let (two, _) = house.job_with(9, leader(7)).await;
        house.job(10).await;
        for (cgroup, component) in [(80, &one), (90, &two)] {
            cgroups.0.cgroup.set(cgroup);
            let answer = foreign(&house, 7).await;
            served(&house, answer, component);
        }
        cgroups.0.cgroup.set(100);
        assert_eq!(foreign(&house, 7).await, denied("OutsideJob"));
        let (own, _) = house.job(7).await;
        cgroups.0.cgroup.set(70);
        let answer = foreign(&house, 7).await;
        served(&house, answer, &own);
    });
}

#[test]
fn without_cgroups_the_uid_decides_where_only_one_job_can_be_meant() {
    in_a_house(async || {
        let mut house = with_policy(ProofOfJob::Uid).await;
        let (job, _) = house.job(7).await;
        let answer = foreign(&house, 7).await;
        served(&house, answer, &job);
        house.job_with(20, |job| job.uid = Uid(own_uid() + 1)).await;
        assert_eq!(foreign(&house, 20).await, denied("UnknownToken"), "another user's job");
        assert_eq!(foreign(&house, 21).await, denied("UnknownToken"), "no job here");
        let (component, _) = house.job_with(31, leader(30)).await;
        let answer = foreign(&house, 30).await;
        served(&house, answer, &component);
        house.job_with(32, leader(30)).await;
        let answer = house.ask(30, &JobToken::mint().unwrap()).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "OtherNodesToken"));
        assert!(answer.message().contains("several components"), "{}", answer.message());
        let (leading, _) = house.job(30).await;
        let answer = foreign(&house, 30).await;
        served(&house, answer, &leading);
    });
}

#[test]
fn a_site_can_ask_for_the_cgroup_or_switch_it_off() {
    in_a_house(async || {
        for (policy, says) in [(ProofOfJob::Cgroup, "no cgroup v2"), (ProofOfJob::Off, "accepts no other node's")] {
            let mut house = with_policy(policy).await;
            house.job(7).await;
            let answer = house.ask(7, &JobToken::mint().unwrap()).await;
            assert_eq!((answer.status, answer.word().as_str()), (403, "OtherNodesToken"));
            assert!(answer.message().contains(says) && answer.message().contains("foreign-token"));
        }
        let cgroups = Cgroups::default();
        let whois = cgroups.clone();
        let mut house = House::with(|plan, _| {
            plan.whois = Box::new(whois);
            plan.settings.foreign_token = ProofOfJob::Off;
        })
        .await;
        house.job(7).await;
        cgroups.0.cgroup.set(70);
        assert_eq!(foreign(&house, 7).await, denied("OtherNodesToken"), "off, whatever the kernel could prove");
        let mut house = House::with(|plan, _| {
            plan.whois = Box::new(cgroups);
            plan.settings.foreign_token = ProofOfJob::Cgroup;
        })
        .await;
        house.job(7).await;
        assert_eq!(foreign(&house, 7).await.0, 200);
    });
}

#[test]
fn while_the_keeper_hangs_only_tokens_that_were_proven_before_are_served() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| {
            plan.looks = false;
            plan.settings.newcomer_patience = Duration::from_secs(4);
        })
        .await;
        let (job, _) = house.job(7).await;
        let token = JobToken::mint().unwrap();
        assert_eq!(house.ask(7, &token).await.word(), "RecordsUnread", "it may be the token of a record not read yet");
        house.said.borrow_mut().clear();
        let (mut first, port) = (house.connect().await, house.endpoint.port());
        let asked = async { ask_on(&mut first, port, 7, &token).await };
        let mut asked = std::pin::pin!(asked);
        let look = |house: &House| {
            house.said.borrow().iter().find_map(|m| if let ToKeeper::Look { id, .. } = m { Some(*id) } else { None })
        };
        while look(&house).is_none() {
            let waited = tokio::time::timeout(Duration::from_millis(5), asked.as_mut()).await;
            assert!(waited.is_err(), "served before the keeper has looked");
        }
        let id = look(&house).unwrap();
        house.tell(&ToServer::Looked { id }).await;
        let answer = asked.await;
        served(&house, (answer.status, answer.word()), &job);
        assert_eq!(house.ask(7, &token).await.status, 200, "no second look");
    });
}

#[test]
fn a_flood_of_unknown_tokens_searches_one_after_the_other_and_is_bounded() {
    in_a_house(async || {
        let cgroups = Cgroups::default();
        let whois = cgroups.clone();
        let mut house = House::with(|plan, _| {
            plan.whois = Box::new(whois);
            plan.settings.limits.waiting_per_user = 16;
        })
        .await;
        let (_, own) = house.job(7).await;
        cgroups.0.cgroup.set(1);
        let house = Rc::new(house);
        let mut flood = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let house = house.clone();
            flood.spawn_local(async move { foreign(&house, 7).await });
        }
        let mut words: HashMap<String, usize> = HashMap::new();
        while let Some(outcome) = flood.join_next().await {
            let (status, word) = outcome.unwrap();
            assert!(matches!(status, 403 | 503));
            *words.entry(word).or_default() += 1;
        }
        assert!(words["TooManyRequests"] >= 84, "{words:?}");
        // Each search that found nothing is followed by a pause, within one patience of 300 ms.
        assert!(cgroups.0.searches.get() <= 8, "{}", cgroups.0.searches.get());
        cgroups.0.cgroup.set(70);
        assert_eq!(house.ask(7, &own).await.status, 200);
    });
}
