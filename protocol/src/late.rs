//! The late record: what a step's slurmstepd leaves for `credd` where the job's start left nothing on this node, because
//! slurmd ran no prolog there.
//!
//! slurmstepd knows for certain only whose job it is. The rest credvend has from Slurm: the node asks
//! ([`crate::node_api::ATTEST`]), and with the answer `credd` completes the record, which is from then on like any other.
//! What the job's partition gets is in here as `plugstack.conf` says it for every partition, so that nothing rests on the
//! partition that the step's environment names.
//!
//! It is a file of its own, `jobs/ID/late`: a `credd` that does not know it finds a directory without a record, and waits.

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterName, Invalid, JobId, NodeName, PartitionName, ProjectId, Uid, UserName};
use crate::record::{JobOptions, JobRecord};
use crate::secret::JobToken;

/// No late record is longer; a longer file is refused unread.
pub const MAX_LATE_BYTES: u64 = 64 * 1024;

/// What a partition gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Nothing: its jobs run as if the plugin were not there.
    Off,
    /// Credentials, with these options.
    On(JobOptions),
    /// Nothing, because its list has a mistake: a sentence for the jobs' users.
    Broken(String),
}

/// What each partition gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Policies {
    /// Those that are not named.
    pub default: Policy,
    /// Those that are.
    pub named: Vec<(PartitionName, Policy)>,
}

impl Policies {
    /// What a partition gets.
    pub fn of(&self, partition: &PartitionName) -> &Policy {
        self.named.iter().find(|(name, _)| name == partition).map_or(&self.default, |(_, policy)| policy)
    }
}

/// What a step knows of a job that has no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateRecord {
    /// The raw job id, from Slurm's item.
    pub job: JobId,
    /// The job's uid, from Slurm's item.
    pub uid: Uid,
    /// The job's gid, from Slurm's item.
    pub gid: u32,
    /// When the record was made, in seconds since 1970.
    pub created: u64,
    /// The bearer token of the job on this node.
    pub token: JobToken,
    /// [`Policies`] as JSON text: the plugin, which is to stay small, writes and never reads them.
    policies: String,
}

/// Whose a late record is, by Slurm's items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The job.
    pub job: JobId,
    /// Its uid.
    pub uid: Uid,
    /// Its gid.
    pub gid: u32,
}

/// What credvend has from Slurm about a job on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SlurmFacts {
    /// The cluster.
    pub cluster: ClusterName,
    /// This node, as it proved itself to credvend.
    pub node: NodeName,
    /// How often the job was requeued before.
    pub restart: u32,
    /// The job's user.
    pub user: UserName,
    /// Its account, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<ProjectId>,
    /// Its partition.
    pub partition: PartitionName,
}

/// What a late record turns out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completed {
    /// The record that a prolog would have left.
    Record(Box<JobRecord>),
    /// The partition is off.
    Off,
    /// Its options have a mistake: a sentence for the job's user.
    Broken(String),
}

impl LateRecord {
    /// The format written today, the first word of the first line. job, uid, gid, time and token follow, separated by
    /// spaces; the second line has the policies. Not JSON as a whole: reading it would be a large part of the plugin.
    const VERSION: &str = "1";

    /// One that is made now, in seconds since 1970.
    pub fn new(owner: Owner, token: JobToken, policies: &Policies, now: u64) -> Self {
        let Owner { job, uid, gid } = owner;
        let policies = serde_json::to_string(policies).expect("policies are plain values");
        LateRecord { job, uid, gid, created: now, token, policies }
    }

    /// What each partition gets.
    ///
    /// # Errors
    /// The text is none of the plugin's.
    pub fn policies(&self) -> Result<Policies, Invalid> {
        let bad = |e: serde_json::Error| format!("{:?} error at column {} of its policies", e.classify(), e.column());
        serde_json::from_str(&self.policies).map_err(|e| Invalid::new("late job record", "", bad(e)))
    }

    /// Reads a late record's file contents.
    ///
    /// # Errors
    /// What is wrong with the text; it never shows the token.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let bad = |why: &str| Invalid::new("late job record", "", why);
        let text = std::str::from_utf8(bytes).map_err(|_| bad("it is no text"))?;
        let (first, policies) = text.split_once('\n').ok_or_else(|| bad("it is cut short"))?;
        let policies = policies.strip_suffix('\n').ok_or_else(|| bad("it is cut short"))?.to_owned();
        let number = |text: &str| text.parse::<u64>().map_err(|_| bad("a number in it is none"));
        let small = |text: &str| text.parse::<u32>().map_err(|_| bad("a number in it is none"));
        let mut words = first.split(' ');
        let mut next = || words.next().ok_or_else(|| bad("it is cut short"));
        if next()? != Self::VERSION {
            return Err(bad("its version is another one than this program reads"));
        }
        let record = LateRecord {
            job: JobId::try_from(small(next()?)?)?,
            uid: Uid(small(next()?)?),
            gid: small(next()?)?,
            created: number(next()?)?,
            token: next()?.parse()?,
            policies,
        };
        if next().is_ok() || bytes.len() as u64 > MAX_LATE_BYTES {
            return Err(bad("it is too long"));
        }
        Ok(record)
    }

    /// The late record's file contents.
    ///
    /// # Errors
    /// It would be too long to be read: `plugstack.conf` names very many partitions.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Invalid> {
        let LateRecord { job, uid, gid, created, token, policies } = self;
        let text = format!("{} {job} {uid} {gid} {created} {}\n{policies}\n", Self::VERSION, token.expose());
        if text.len() as u64 > MAX_LATE_BYTES {
            return Err(Invalid::new("late job record", "", "plugstack.conf has more partitions than fit"));
        }
        Ok(text.into_bytes())
    }

    /// With what Slurm says. The partition that Slurm names decides, and its options count.
    ///
    /// # Errors
    /// As [`LateRecord::policies`].
    pub fn complete(self, facts: SlurmFacts) -> Result<Completed, Invalid> {
        let options = match self.policies()?.of(&facts.partition) {
            Policy::On(options) => options.clone(),
            Policy::Off => return Ok(Completed::Off),
            Policy::Broken(why) => return Ok(Completed::Broken(why.clone())),
        };
        Ok(Completed::Record(Box::new(JobRecord {
            version: JobRecord::VERSION,
            job: self.job,
            restart: facts.restart,
            cluster: facts.cluster,
            node: facts.node,
            user: facts.user,
            uid: self.uid,
            gid: self.gid,
            account: facts.account,
            partition: facts.partition,
            // A session is opened by the first node's credd, unasked; this one's is opened at once in any case.
            first_node: true,
            created: self.created,
            token: self.token,
            options,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{facts, late, policies};
    use proptest::prelude::*;

    #[test]
    fn slurms_partition_decides_what_a_late_record_becomes() {
        let record = late(12, &policies());
        assert_eq!(record.policies().unwrap(), policies());
        assert_eq!(LateRecord::from_bytes(&record.to_bytes().unwrap()).unwrap(), record);
        let Completed::Record(gpu) = record.clone().complete(facts("gpu")).unwrap() else { panic!("not on") };
        assert_eq!((gpu.options.role.as_str(), gpu.restart, gpu.uid, gpu.gid), ("train", 2, Uid(1001), 1002));
        assert_eq!(gpu.token, record.token);
        let Completed::Record(batch) = record.clone().complete(facts("batch")).unwrap() else { panic!("not on") };
        assert_eq!(batch.options, JobOptions::default());
        assert_eq!(record.clone().complete(facts("debug")).unwrap(), Completed::Off);
        assert_eq!(record.clone().complete(facts("odd")).unwrap(), Completed::Broken("a mistake".into()));
        assert!(LateRecord { policies: "{}".into(), ..record }.complete(facts("gpu")).is_err());
    }

    #[test]
    fn its_debug_and_errors_hide_the_token_and_a_long_one_is_not_written() {
        let record = late(12, &policies());
        let token = record.token.expose().to_owned();
        assert!(!format!("{record:?}").contains(&token[8..]));
        let text = String::from_utf8(record.to_bytes().unwrap()).unwrap().replace(&token, &token.to_uppercase());
        let error = LateRecord::from_bytes(text.as_bytes()).unwrap_err().to_string();
        assert!(!error.to_lowercase().contains(&token[8..]), "{error}");
        let named = (0..2000).map(|at| (format!("p{at}").parse().unwrap(), Policy::Broken("x".repeat(30)))).collect();
        assert!(late(12, &Policies { named, ..policies() }).to_bytes().unwrap_err().to_string().contains("partitions"));
    }

    proptest! {
        #[test]
        fn no_text_like_one_makes_the_parser_panic(text in "1 [0-9 a-f\\-]{0,90}\n?[ -~]{0,20}\n?") {
            let _ = LateRecord::from_bytes(text.as_bytes()).map(|record| record.policies());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = LateRecord::from_bytes(&bytes);
        }
    }
}
