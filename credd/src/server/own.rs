//! Requests without a token: `credd credentials` and `credd env`, for programs that cannot ask by themselves and processes
//! whose environment was cleaned (see [`credd_protocol::own_api`]).
//!
//! The kernel says whose process it is, and, on nodes where Slurm keeps its jobs in cgroup v2 directories, of which job.
//! Where it does not say the job, the uid is all there is: then the user's only job here is meant, or the one that the
//! caller names. A user's jobs are not defended against each other by that, since they could read each other's
//! environment; a site for which the uid is not enough says so (`http.without-token`).

use std::rc::Rc;

use bytes::Bytes;
use credd_protocol::own_api::OwnToken;
use credd_protocol::{JobId, JobToken, endpoint};
use tokio::time::Instant;

use super::answer::Denial;
use super::gate::{Own, Wanted};
use super::jobs::Run;
use super::no_own_job::NoOwnJob;
use super::proof::{self, Proof};
use super::settings::ProofOfJob;
use super::whois::Caller;
use super::{Counted, Load, Server, vend};

/// The answer to a request whose head is in order.
///
/// # Errors
/// What to tell the process.
pub async fn answer(
    server: &Rc<Server>,
    caller: &Result<Caller, String>,
    load: &Load,
    own: Own,
) -> Result<Bytes, Denial> {
    let caller = caller.as_ref().map_err(|why| Denial::NoCaller(why.clone()))?;
    let run = run_of(server, caller, load, own).await?;
    match own.wanted {
        Wanted::Credentials => Ok(with_job(&run, &vend::serve(server, &run, load).await?)),
        Wanted::Token => token(server, &run),
    }
}

/// [`credd_protocol::own_api::OwnCredentials`] around the document as it lies in the cache.
fn with_job(run: &Run, document: &[u8]) -> Bytes {
    let job = run.job.job;
    let region = run.job.options.region.as_ref().map(|region| format!("\"region\":\"{region}\",")).unwrap_or_default();
    [format!("{{\"job\":{job},{region}\"credentials\":").as_bytes(), document, b"}"].concat().into()
}

/// A new token for the run, of which nothing but the hash is kept.
fn token(server: &Server, run: &Run) -> Result<Bytes, Denial> {
    let job = &run.job;
    let not_now = |reason: String| Denial::NotNow { job: job.job, reason };
    let token = JobToken::mint().map_err(|error| not_now(format!("the kernel gave no random bytes ({error}).")))?;
    if !server.jobs.borrow_mut().add_token(&job.run, token.hash()) {
        return Err(Denial::TooManyTokens(job.job));
    }
    let uri =
        endpoint::full_uri(server.hosts.port(), job.job, &job.cluster, job.account.as_ref(), &job.user, &job.node);
    let answer = OwnToken { job: job.job, region: job.options.region.clone(), uri, token };
    Ok(serde_json::to_vec(&answer).expect("plain values").into())
}

/// The one of the caller's own runs that it is of, or that it means.
async fn run_of(server: &Rc<Server>, caller: &Caller, load: &Load, own: Own) -> Result<Rc<Run>, Denial> {
    let policy = server.settings.get().without_token;
    let refused = |why| Denial::NoOwnJob { uid: caller.uid, why };
    if policy == ProofOfJob::Off {
        return Err(refused(NoOwnJob::Off));
    }
    let Some(_waiting) = Counted::one(&load.waiting, server.settings.get().limits.waiting_per_user) else {
        return Err(refused(NoOwnJob::Crowded));
    };
    let deadline = Instant::now() + server.settings.get().newcomer_patience;
    let runs = runs(server, caller, own, deadline).await?;
    let proof = match proof::job_of(server, caller, load, &runs, deadline).await {
        Ok(proof) => proof,
        Err(proof::Crowded) => return Err(refused(NoOwnJob::Crowded)),
    };
    let run = match proof {
        Proof::Job(run) => match own.job {
            Some(asked) if !means(&run, asked) => return Err(refused(NoOwnJob::InAnother { asked, own: run.job.job })),
            _ => run,
        },
        _ if policy == ProofOfJob::Cgroup => return Err(refused(NoOwnJob::NotProven)),
        Proof::NoneOfThese | Proof::UidOnly => choose(&runs, own).map_err(refused)?,
    };
    if run.ended() {
        return Err(Denial::JobEnded(run.job.job));
    }
    Ok(run)
}

/// The user's runs. The record of a job that has just begun may not have been read: if the one that is meant is not
/// there, the keeper looks once more.
async fn runs(server: &Server, caller: &Caller, own: Own, deadline: Instant) -> Result<Vec<Rc<Run>>, Denial> {
    let of_user = || server.jobs.borrow().of_user(caller.uid).cloned().collect::<Vec<_>>();
    let mut runs = of_user();
    let meant = own.job.or(own.hint);
    if let Some(meant) = meant.filter(|meant| !runs.iter().any(|run| means(run, *meant)))
        && let Some(looked) = server.keeper.look(meant)
    {
        let _ = tokio::time::timeout_at(deadline, looked).await;
        runs = of_user();
    }
    if runs.is_empty() && !server.jobs.borrow().scanned {
        return Err(Denial::Starting);
    }
    Ok(runs)
}

/// A component of a heterogeneous job is meant by its leader's id, too: that is its `SLURM_JOB_ID`.
fn means(run: &Run, job: JobId) -> bool {
    run.job.job == job || run.job.het_leader == Some(job)
}

/// By the caller's own word, which chooses among its user's runs and reaches no other.
fn choose(runs: &[Rc<Run>], own: Own) -> Result<Rc<Run>, NoOwnJob> {
    let ids = |runs: &[&Rc<Run>]| {
        let mut ids: Vec<JobId> = runs.iter().map(|run| run.job.job).collect();
        ids.sort_unstable();
        ids
    };
    let all: Vec<&Rc<Run>> = runs.iter().collect();
    let (among, meant) = match own.job.or(own.hint) {
        Some(job) => (all.iter().copied().filter(|run| means(run, job)).collect(), Some(job)),
        None => (all.clone(), None),
    };
    match (among.as_slice(), meant) {
        ([only], _) => Ok((*only).clone()),
        ([], Some(job)) => Err(NoOwnJob::NotHere { job, named: own.job.is_some(), others: ids(&all) }),
        ([], None) => Err(NoOwnJob::None),
        (several, job) => match several.iter().find(|run| Some(run.job.job) == job) {
            Some(leader) => Ok((*leader).clone()),
            None => Err(NoOwnJob::Several(ids(several))),
        },
    }
}
