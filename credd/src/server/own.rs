//! Requests without a token: `credd credentials` and `credd env`, for programs that cannot use the endpoint themselves and
//! for processes whose environment was cleaned (see [`credd_protocol::own_api`]).
//!
//! The kernel shows whose process it is and, on nodes where Slurm keeps its jobs in cgroup v2 directories, in which job.
//! A process in a job gets that job's credentials or none. A process outside of all jobs, such as an ssh session, and
//! every process on a node without cgroup v2, gets those of the user's only job here, or of the job that it names. This
//! rule does not protect a user's jobs from each other, since they can read each other's environment; a site that wants
//! more proof than the uid sets `http.without-token`.

use std::rc::Rc;

use bytes::Bytes;
use credd_protocol::own_api::OwnToken;
use credd_protocol::{JobId, JobToken, endpoint};
use tokio::time::Instant;

use super::answer::Denial;
use super::gate::{Own, Wanted};
use super::jobs::Run;
use super::no_own_job::NoOwnJob;
use super::proof::{self, Elsewhere, Proof};
use super::settings::ProofOfJob;
use super::whois::Caller;
use super::{Counted, Load, Server, vend};

/// The answer to a request whose head is valid.
///
/// # Errors
/// Why the process gets nothing.
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

/// [`credd_protocol::own_api::OwnCredentials`] around the document from the cache.
fn with_job(run: &Run, document: &[u8]) -> Bytes {
    let job = run.job.job;
    let region = run.job.options.region.as_ref().map(|region| format!("\"region\":\"{region}\",")).unwrap_or_default();
    [format!("{{\"job\":{job},{region}\"credentials\":").as_bytes(), document, b"}"].concat().into()
}

/// A new token for the run. Only its hash is kept.
fn token(server: &Server, run: &Run) -> Result<Bytes, Denial> {
    let job = &run.job;
    let not_now = |reason: String| Denial::NotNow { job: job.job, reason };
    let token = JobToken::mint().map_err(|error| not_now(format!("the kernel returned no random bytes ({error}).")))?;
    if !server.jobs.borrow_mut().add_token(&job.run, token.hash()) {
        return Err(Denial::JobEnded(job.job));
    }
    let uri =
        endpoint::full_uri(server.hosts.port(), job.job, &job.cluster, job.account.as_ref(), &job.user, &job.node);
    let answer = OwnToken { job: job.job, region: job.options.region.clone(), uri, token };
    Ok(serde_json::to_vec(&answer).expect("plain values").into())
}

/// The run whose credentials the caller gets: the one it belongs to, or one of its user's runs that it means.
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
    if runs.is_empty() {
        return Err(refused(choose(&runs, own).err().unwrap_or(NoOwnJob::None)));
    }
    let crowded = |_: proof::Crowded| refused(NoOwnJob::Crowded);
    let run = match proof::job_of(server, caller, load, &runs, deadline).await.map_err(crowded)? {
        Proof::Job(run) => match own.job {
            Some(asked) if !means(&run, asked) => return Err(refused(NoOwnJob::InAnother { asked, own: run.job.job })),
            _ => run,
        },
        Proof::Unclear => return Err(refused(NoOwnJob::Unclear)),
        Proof::UidOnly if policy == ProofOfJob::Cgroup => return Err(refused(NoOwnJob::NotProven)),
        Proof::UidOnly => choose(&runs, own).map_err(refused)?,
        Proof::NoneOfThese => match proof::elsewhere(server, caller, load, &runs, deadline).await.map_err(crowded)? {
            Elsewhere::Job(job) => {
                let nameless = runs.iter().filter(|run| run.job.sluid.is_none());
                return Err(refused(NoOwnJob::in_job_without(&job, ids(&runs), ids(nameless))));
            }
            Elsewhere::Unclear => return Err(refused(NoOwnJob::Unclear)),
            Elsewhere::NoJob if policy == ProofOfJob::Cgroup => return Err(refused(NoOwnJob::NotProven)),
            Elsewhere::NoJob => choose(&runs, own).map_err(refused)?,
        },
    };
    // The search may have taken a while.
    if run.ended() {
        return Err(Denial::JobEnded(run.job.job));
    }
    Ok(run)
}

/// The user's runs. If the request means a job that is not among them, the supervisor is asked to look for its record
/// first: the job may have just started.
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

/// Whether a job id means this run. The leader's id means each component of a heterogeneous job, since it is their
/// `SLURM_JOB_ID`.
fn means(run: &Run, job: JobId) -> bool {
    run.job.job == job || run.job.het_leader == Some(job)
}

fn ids<'a>(runs: impl IntoIterator<Item = &'a Rc<Run>>) -> Vec<JobId> {
    let mut ids: Vec<JobId> = runs.into_iter().map(|run| run.job.job).collect();
    ids.sort_unstable();
    ids
}

/// Chooses among the user's runs the one that the caller names, or the only one.
fn choose(runs: &[Rc<Run>], own: Own) -> Result<Rc<Run>, NoOwnJob> {
    let meant = own.job.or(own.hint);
    let among: Vec<&Rc<Run>> = runs.iter().filter(|run| meant.is_none_or(|job| means(run, job))).collect();
    match (among.as_slice(), meant) {
        ([only], _) => Ok((*only).clone()),
        ([], Some(job)) => Err(NoOwnJob::NotHere { job, named: own.job.is_some(), others: ids(runs) }),
        ([], None) => Err(NoOwnJob::None),
        (several, job) => match several.iter().find(|run| Some(run.job.job) == job) {
            Some(leader) => Ok((*leader).clone()),
            None => Err(NoOwnJob::Several(ids(several.iter().copied()))),
        },
    }
}
