//! Why a request without a token is refused: the message that `credd credentials` and `credd env` print.

use credd_protocol::{JobId, Uid};
use peer::JobDirectory;

/// Limit of the jobs that a message lists.
const MAX_LISTED: usize = 16;

/// The way out for a process in a user namespace, which has the job's environment but not its user's uid outside.
pub const ROOTLESS: &str = "In a rootless container, whose users have other uids outside, run it as yourself: podman run \
     --userns=keep-id --user $(id -u).";

/// The reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoOwnJob {
    /// The node accepts no request without a token.
    Off,
    /// The node requires the cgroup as proof of the job, and the process is in no job, or the node has no cgroup v2.
    NotProven,
    /// The process belongs to another job than the one it names.
    InAnother {
        /// The job it names.
        asked: JobId,
        /// Its own job.
        own: JobId,
    },
    /// The process belongs to a job that has no credentials here.
    InJobWithout {
        /// That job, as a phrase.
        own: String,
        /// The user's jobs that have credentials here.
        others: Vec<JobId>,
    },
    /// The process belongs to the job with this SLUID, and of some of the user's jobs here no SLUID is known: it may be one of
    /// them.
    InUnknown {
        /// The SLUID.
        sluid: String,
        /// The jobs without one.
        perhaps: Vec<JobId>,
    },
    /// The process's job was not found: there are too many cgroups, or some that cannot be read.
    Unclear,
    /// The user has no job here.
    None,
    /// The meant job is not here.
    NotHere {
        /// The meant job.
        job: JobId,
        /// The caller named it; otherwise its environment did.
        named: bool,
        /// The user's jobs here.
        others: Vec<JobId>,
    },
    /// The user has several jobs here, and nothing says which one is meant.
    Several(Vec<JobId>),
    /// Too many requests of the user wait.
    Crowded,
}

impl NoOwnJob {
    /// The process belongs to the job with this directory, and the user has `others` here, `nameless` ones of which were
    /// recorded without a SLUID.
    pub fn in_job_without(job: &JobDirectory, others: Vec<JobId>, nameless: Vec<JobId>) -> Self {
        if let Some(sluid) = job.sluid().filter(|_| !nameless.is_empty()) {
            return NoOwnJob::InUnknown { sluid: sluid.to_owned(), perhaps: nameless };
        }
        let own = match (job.job(), job.sluid()) {
            (Some(id), _) => format!("job {id}"),
            (None, Some(sluid)) => format!("the job with the SLUID {sluid}"),
            (None, None) => "another job".to_owned(),
        };
        NoOwnJob::InJobWithout { own, others }
    }

    /// The error code.
    pub fn code(&self) -> &'static str {
        match self {
            NoOwnJob::Off => "TokenWanted",
            NoOwnJob::NotProven | NoOwnJob::Unclear => "OutsideJob",
            NoOwnJob::InAnother { .. } | NoOwnJob::InJobWithout { .. } | NoOwnJob::InUnknown { .. } => "OtherJob",
            NoOwnJob::None | NoOwnJob::NotHere { .. } => "NoJob",
            NoOwnJob::Several(_) => "SeveralJobs",
            NoOwnJob::Crowded => "TooManyRequests",
        }
    }

    /// The message.
    pub fn message(&self, uid: Uid) -> String {
        match self {
            NoOwnJob::Off => {
                "This node gives credentials only to requests with the job's token (http.without-token in credd.toml). Set \
                 AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_CONTAINER_AUTHORIZATION_TOKEN to the values that they had at \
                 the start of the job."
                    .to_owned()
            }
            NoOwnJob::NotProven => format!(
                "The kernel does not show that this process (uid {uid}) belongs to a job with credentials on this node, \
                 and this node requires it (http.without-token in credd.toml). Run it within a step of the job: srun \
                 --overlap --jobid=ID."
            ),
            NoOwnJob::InAnother { asked, own } => format!(
                "This process belongs to job {own}, so it does not get the credentials of job {asked}. Run it within that \
                 job: srun --overlap --jobid={asked}."
            ),
            NoOwnJob::InJobWithout { own, others } => format!(
                "This process belongs to {own}, which has no AWS credentials on this node: it was submitted with \
                 --aws=off, its partition offers none, or it has ended. It does not get the credentials of another job. To \
                 use those of another job of yours on this node ({}), run it within that job: srun --overlap --jobid=ID.",
                list(others)
            ),
            NoOwnJob::InUnknown { sluid, perhaps } => format!(
                "This process belongs to the job with the SLUID {sluid}, and credd does not know whether that is one of \
                 yours here: of job {} no SLUID was recorded, since slurmd ran no prolog for it on this node or an older \
                 plugin did. Use the job's AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_CONTAINER_AUTHORIZATION_TOKEN, or \
                 run it outside of all jobs with --job.",
                list(perhaps)
            ),
            NoOwnJob::Unclear => format!(
                "credd cannot tell to which job this process (uid {uid}) belongs: this node has too many cgroups, or some \
                 that credd cannot read. Run it within a step of the job: srun --overlap --jobid=ID."
            ),
            NoOwnJob::None => format!(
                "No job of uid {uid} with AWS credentials runs on this node. Run this on a node of the job; if the job does \
                 run here, its stderr says why it has no credentials. {ROOTLESS}"
            ),
            NoOwnJob::NotHere { job, named, others } if others.is_empty() => format!(
                "Job {job}{} has no AWS credentials on this node, and no other job of uid {uid} has: it has ended, runs \
                 elsewhere, is another user's, or its partition offers none. {ROOTLESS}",
                of_environment(*named)
            ),
            NoOwnJob::NotHere { job, named, others } => format!(
                "Job {job}{} has no AWS credentials on this node: it has ended, runs elsewhere, is another user's, or its \
                 partition offers none. Jobs of uid {uid} that have: {}. Choose with --job.",
                of_environment(*named),
                list(others)
            ),
            NoOwnJob::Several(jobs) => format!(
                "Several jobs of uid {uid} run on this node, and nothing shows to which one this process belongs: {}. \
                 Choose with --job.",
                list(jobs)
            ),
            NoOwnJob::Crowded => {
                format!("Too many requests of uid {uid} wait for credentials on this node; try again in a few seconds.")
            }
        }
    }
}

fn of_environment(named: bool) -> &'static str {
    if named { "" } else { " (from the environment)" }
}

fn list(jobs: &[JobId]) -> String {
    let mut names: Vec<String> = jobs.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    if jobs.len() > MAX_LISTED {
        names.push("…".to_owned());
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_any_job_is_told_the_way_out_of_a_rootless_container() {
        let job = JobId::try_from(7).unwrap();
        let uid = Uid(201_000);
        let not_here = |named, others| NoOwnJob::NotHere { job, named, others }.message(uid);
        for message in [NoOwnJob::None.message(uid), not_here(false, vec![]), not_here(true, vec![])] {
            assert!(message.contains("--userns=keep-id --user $(id -u)") && message.contains("201000"), "{message}");
        }
        assert!(!not_here(false, vec![job]).contains("userns"), "the caller has jobs here");
    }

    #[test]
    fn a_job_recorded_without_its_sluid_may_be_the_callers_own() {
        let [seven, eight] = [7, 8].map(|id| JobId::try_from(id).unwrap());
        let by_sluid = JobDirectory::named("s4HP2WQ8ZK1RT0");
        let other = NoOwnJob::in_job_without(&by_sluid, vec![seven, eight], vec![]);
        assert!(matches!(other, NoOwnJob::InJobWithout { .. }));
        let perhaps = NoOwnJob::in_job_without(&by_sluid, vec![seven, eight], vec![eight]);
        let message = perhaps.message(Uid(1001));
        assert!(message.contains("SLUID s4HP2WQ8ZK1RT0") && message.contains("of job 8 no SLUID"), "{message}");
        assert_eq!(perhaps.code(), other.code());
        let by_id = NoOwnJob::in_job_without(&JobDirectory::of_job(9), vec![eight], vec![eight]);
        assert!(matches!(by_id, NoOwnJob::InJobWithout { .. }));
    }
}
