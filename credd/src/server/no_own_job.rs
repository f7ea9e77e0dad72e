//! Why a request without a token got nothing: what `credd credentials` and `credd env` print.

use credd_protocol::{JobId, Uid};

/// So many of a user's jobs are named.
const NAMED: usize = 16;

/// The way out for a process in a user namespace, which has the job's environment but not its user's uid outside.
pub const ROOTLESS: &str = "In a rootless container, whose users have other uids outside, run it as yourself: podman run \
     --userns=keep-id --user $(id -u).";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoOwnJob {
    /// This node wants a token from everybody.
    Off,
    /// The node wants the cgroup to prove the job, and it does not.
    NotProven,
    /// The kernel says that the process is of another job than the one that it names.
    InAnother {
        /// The named one.
        asked: JobId,
        /// Its own.
        own: JobId,
    },
    /// No job of the user is here.
    None,
    /// Not the one that is meant.
    NotHere {
        /// The meant one.
        job: JobId,
        /// The caller named it; otherwise its environment did.
        named: bool,
        /// The user's jobs here.
        others: Vec<JobId>,
    },
    /// The user has several here, and nothing says which one is meant.
    Several(Vec<JobId>),
    /// Too many requests of the user wait.
    Crowded,
}

impl NoOwnJob {
    /// The word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            NoOwnJob::Off => "TokenWanted",
            NoOwnJob::NotProven => "OutsideJob",
            NoOwnJob::InAnother { .. } => "OtherJob",
            NoOwnJob::None | NoOwnJob::NotHere { .. } => "NoJob",
            NoOwnJob::Several(_) => "SeveralJobs",
            NoOwnJob::Crowded => "TooManyRequests",
        }
    }

    /// The sentence for people.
    pub fn message(&self, uid: Uid) -> String {
        match self {
            NoOwnJob::Off => {
                "This node gives credentials only to requests with the job's token (http.without-token in \
                 credd.toml). Use the job's environment as it was: AWS_CONTAINER_CREDENTIALS_FULL_URI and \
                 AWS_CONTAINER_AUTHORIZATION_TOKEN."
                    .to_owned()
            }
            NoOwnJob::NotProven => format!(
                "The kernel does not show that this process (uid {uid}) belongs to a job with credentials on this node, and \
                 the node wants it shown (http.without-token in credd.toml). Run it within a step of the job: srun \
                 --overlap --jobid=ID."
            ),
            NoOwnJob::InAnother { asked, own } => format!(
                "This process belongs to job {own}, so it does not get the credentials of job {asked}. Run it within that \
                 job: srun --overlap --jobid={asked}."
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
    let mut names: Vec<String> = jobs.iter().take(NAMED).map(ToString::to_string).collect();
    if jobs.len() > NAMED {
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
}
