//! Records of a made-up job, for tests: alice's of project genomics, in partition batch on node n1 of cluster lab.

use crate::ids::{JobId, Uid};
use crate::late::{LateRecord, Owner, Policies, Policy, SlurmFacts};
use crate::record::{JobOptions, JobRecord};
use crate::secret::JobToken;

/// A record as the plugin makes it, with a new token.
pub fn record(job: u32) -> JobRecord {
    JobRecord {
        version: JobRecord::VERSION,
        job: id(job),
        restart: 0,
        cluster: "lab".parse().expect("a cluster's name"),
        node: "n1".parse().expect("a node's name"),
        user: "alice".parse().expect("a user's name"),
        uid: Uid(1001),
        gid: 1001,
        account: Some("genomics".parse().expect("an account's name")),
        partition: "batch".parse().expect("a partition's name"),
        first_node: true,
        created: 1_700_000_000,
        token: token(),
        options: JobOptions::default(),
    }
}

/// Three partitions besides the default: off, with a role of its own, and with a mistake.
pub fn policies() -> Policies {
    let train = JobOptions { role: "train".parse().expect("a role's name"), ..JobOptions::default() };
    let named = [("debug", Policy::Off), ("gpu", Policy::On(train)), ("odd", Policy::Broken("a mistake".into()))];
    let named = named.map(|(name, policy)| (name.parse().expect("a partition's name"), policy));
    Policies { default: Policy::On(JobOptions::default()), named: named.into() }
}

/// A late record of the same user's, with a new token.
pub fn late(job: u32, policies: &Policies) -> LateRecord {
    LateRecord::new(Owner { job: id(job), uid: Uid(1001), gid: 1002 }, token(), policies, 1_700_000_000)
}

/// What Slurm says of that job, which was requeued twice.
pub fn facts(partition: &str) -> SlurmFacts {
    let record = record(1);
    SlurmFacts {
        cluster: record.cluster,
        node: record.node,
        restart: 2,
        user: record.user,
        account: record.account,
        partition: partition.parse().expect("a partition's name"),
    }
}

fn id(job: u32) -> JobId {
    JobId::try_from(job).expect("a job id")
}

fn token() -> JobToken {
    JobToken::mint().expect("random bytes")
}
