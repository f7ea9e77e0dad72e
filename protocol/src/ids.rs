//! Ids and names, validated once at the border. Beyond it nothing is checked again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::printable::{FieldValue, is_printable};

pub use crate::cluster_name::ClusterName;

/// A text that is not the id or name it was given as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {shown} is not valid: {why}")]
pub struct Invalid {
    what: &'static str,
    shown: String,
    why: String,
}

impl Invalid {
    /// `value` is shown escaped and cut to 80 characters: it may be hostile.
    pub fn new(what: &'static str, value: &str, why: impl Into<String>) -> Self {
        let mut shown = format!("{:?}", value.chars().take(80).collect::<String>());
        if value.chars().nth(80).is_some() {
            shown.push('…');
        }
        Invalid { what, shown, why: why.into() }
    }
}

/// One validated text type: `$allowed` says which texts may be one, `$max` bounds the length in bytes.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $allowed:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The text as validated.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// For a field of a log line.
            pub fn field(&self) -> FieldValue<'_> {
                FieldValue(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                let allowed: fn(&str) -> bool = $allowed;
                if text.is_empty() || text.len() > $max {
                    return Err(Invalid::new($what, text, concat!("it must have 1 to ", $max, " bytes")));
                }
                if !allowed(text) {
                    return Err(Invalid::new($what, text, $rule));
                }
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

/// What a name of Slurm's may be. slurmctld and slurmdbd take every character in the names of partitions, accounts,
/// clusters and users, and none of them is special here: whatever needs a narrower form (a path segment, a role-session
/// name, a key of a table) escapes it. Kept out is only what a reader cannot see: control characters, and those that hide or
/// reverse their neighbours. A space at the end is Slurm's padding, not the name's.
pub(crate) fn is_name(text: &str) -> bool {
    let visible = |c: char| c == ' ' || (is_printable(c) && !c.is_whitespace());
    !text.ends_with(' ') && text.chars().all(visible)
}

text_id!(
    /// A node's name as Slurm knows it: `NodeName` of slurm.conf(5), not the host name. What makes a list of names, and what
    /// Slurm writes where there is none (`(null)`), is no part of one.
    NodeName, "node name", 128, |text| text.bytes().all(|b| b.is_ascii_graphic() && !b",[]()".contains(&b)),
    "only visible ASCII except , [ ] ( ) may appear"
);
text_id!(
    /// A partition's name: `PartitionName` of slurm.conf(5).
    PartitionName, "partition name", 128, is_name,
    "only visible characters and spaces may appear, and no space at the end"
);
text_id!(
    /// A user's login name, in whatever form a directory service hands it out: `DOM\user`, `user@realm`, `Jo Doe`.
    UserName, "user name", 128, is_name,
    "only visible characters and spaces may appear, and no space at the end"
);
text_id!(
    /// A project: a Slurm account, or the `ProjectId` that a head node states. Case matters.
    ProjectId, "project id", 255, is_name,
    "only visible characters and spaces may appear, and no space at the end"
);
text_id!(
    /// A role's name within its project, as jobs ask for it (`role=train`); `default` is the only one of the IAM
    /// Credentials API (v1).
    RoleName, "role name", 64, |text| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
    "only letters, digits, '.', '_' and '-' may appear"
);
text_id!(
    /// An AWS region such as `us-east-1`.
    Region, "region", 32, |text| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
    "only lower-case letters, digits and '-' may appear"
);

text_id!(
    /// A SLUID: Slurm's name for one run of a job (25.11 and later), "s" and 13 digits of Crockford's base 32.
    Sluid, "SLUID", 14, |text| text.bytes().all(|b| b == b's' || b.is_ascii_digit() || b.is_ascii_uppercase()),
    "only 's', digits and capital letters may appear"
);

impl Default for RoleName {
    fn default() -> Self {
        RoleName("default".into())
    }
}

/// The ARN of an IAM role: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`, in any AWS partition, with any path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleArn(Box<str>);

impl RoleArn {
    /// The whole ARN.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The AWS partition: `aws`, `aws-cn`, `aws-us-gov`, …
    pub fn partition(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or_default()
    }

    /// The twelve digits of the AWS account.
    pub fn account_id(&self) -> &str {
        self.0.split(':').nth(4).unwrap_or_default()
    }

    /// The role's own name, without its path: what IAM's calls take as `RoleName`.
    pub fn role_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl FromStr for RoleArn {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Err(Invalid::new("role ARN", text, why));
        if text.len() > 2048 {
            return bad("it must have at most 2048 characters");
        }
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let [arn, partition, service, region, account, resource] = parts[..] else {
            return bad("it must look like arn:aws:iam::123456789012:role/NAME");
        };
        if arn != "arn" || service != "iam" || !region.is_empty() {
            return bad("it must look like arn:aws:iam::123456789012:role/NAME");
        }
        if !(partition == "aws" || partition.starts_with("aws-"))
            || !partition.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return bad("its partition must be aws, aws-cn, aws-us-gov or another aws-…");
        }
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return bad("its account must have twelve digits");
        }
        let Some(path) = resource.strip_prefix("role/") else {
            return bad("it names no role (role/NAME)");
        };
        let name = path.rsplit('/').next().unwrap_or_default();
        let iam_char = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(iam_char) {
            return bad("a role's name has 1 to 64 letters, digits and + = , . @ _ -");
        }
        if !path.bytes().all(|b| (0x21..0x7f).contains(&b)) || path.contains("//") || path.starts_with("/") {
            return bad("a role's path has visible ASCII characters only, and no empty part");
        }
        Ok(RoleArn(text.into()))
    }
}

impl TryFrom<String> for RoleArn {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<RoleArn> for String {
    fn from(arn: RoleArn) -> String {
        arn.0.into()
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A Slurm job's raw id (`%A` of squeue(1)): of an array task its own, of a het component the component's. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct JobId(u32);

impl JobId {
    /// As Slurm writes it.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for JobId {
    type Error = Invalid;
    fn try_from(id: u32) -> Result<Self, Invalid> {
        // slurm.h: NO_VAL, INFINITE and their neighbours stand for "no job".
        if id == 0 || id >= 0xffff_fffd {
            return Err(Invalid::new("job id", &id.to_string(), "Slurm gives no job this number"));
        }
        Ok(JobId(id))
    }
}

impl From<JobId> for u32 {
    fn from(id: JobId) -> u32 {
        id.0
    }
}

impl FromStr for JobId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Invalid::new("job id", text, "it must be a decimal number"));
        }
        let id: u32 = text.parse().map_err(|_| Invalid::new("job id", text, "it must fit 32 bits"))?;
        JobId::try_from(id)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A numeric user id. Not -1, which chown(2) and the kernel use for "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uid(pub u32);

impl FromStr for Uid {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse() {
            Ok(uid) if uid != u32::MAX && text.bytes().all(|b| b.is_ascii_digit()) => Ok(Uid(uid)),
            _ => Err(Invalid::new("uid", text, "it must be a decimal number below 4294967295")),
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `credvend`'s own name of a session, a UUID: one run of one job. A requeued job is another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub uuid::Uuid);

impl SessionId {
    /// A new random id.
    pub fn random() -> Self {
        SessionId(uuid::Uuid::new_v4())
    }
}

impl FromStr for SessionId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        uuid::Uuid::try_parse(text).map(SessionId).map_err(|_| Invalid::new("session id", text, "it must be a UUID"))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn role_arns_of_every_partition_and_path_are_read() {
        let arn: RoleArn = "arn:aws-us-gov:iam::123456789012:role/team/x/name".parse().unwrap();
        assert_eq!((arn.partition(), arn.account_id(), arn.role_name()), ("aws-us-gov", "123456789012", "name"));
        for ok in ["arn:aws:iam::123456789012:role/n", "arn:aws-cn:iam::123456789012:role/a/n"] {
            assert!(ok.parse::<RoleArn>().is_ok(), "{ok}");
        }
        for bad in [
            "",
            "arn:aws:iam::1:role/n",
            "arn:aws:iam::123456789012:user/n",
            "arn:aws:iam::123456789012:role/",
            "arn:evil:iam::123456789012:role/n",
            "arn:aws:iam::123456789012:role//n",
        ] {
            assert!(bad.parse::<RoleArn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hostile_text_is_shown_escaped_and_cut() {
        let error = "\u{1b}[2J".repeat(100).parse::<UserName>().unwrap_err().to_string();
        assert!(!error.contains('\u{1b}') && error.len() < 700, "{error}");
    }

    /// Each was seen to be taken by slurm.conf(5) or sacctmgr(1) of Slurm 22.05, and to come back unchanged from a prolog's
    /// environment and from squeue(1).
    #[test]
    fn slurms_own_names_are_taken() {
        for name in [
            "gpu+a100", "a=b", "a:b", "a/b", "a%b", "a b", " lead", "a@b", "a'b", "a`b", r"a\b", "é", "a*b", "a#b",
            "a?b", "a&b", "a,b", "a[1-2]", "..", "-x", "<x>&\"y", "CapS",
        ] {
            assert_eq!(name.parse::<PartitionName>().unwrap().as_str(), name);
            assert_eq!(name.parse::<ProjectId>().unwrap().as_str(), name);
            assert_eq!(name.parse::<UserName>().unwrap().as_str(), name);
            assert_eq!(name.parse::<ClusterName>().unwrap().as_str(), name);
        }
        assert!("y".repeat(255).parse::<ProjectId>().is_ok() && "gpu+1".parse::<NodeName>().is_ok());
        for unseen in ["", "a\nb", "a\tb", "\u{1b}[2J", "a\u{202e}b", "a\u{200b}", "a\u{a0}b", "a ", "a\0"] {
            assert!(unseen.parse::<PartitionName>().is_err() && unseen.parse::<ProjectId>().is_err(), "{unseen:?}");
        }
        for list in ["n[1-2]", "n1,n2", "n 1", "(null)", "é"] {
            assert!(list.parse::<NodeName>().is_err(), "{list}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_an_id_panic(text in ".*") {
            let _ = text.parse::<RoleArn>();
            let _ = text.parse::<JobId>();
            let _ = text.parse::<ProjectId>();
            let _ = text.parse::<SessionId>();
            if let Ok(uid) = text.parse::<Uid>() {
                prop_assert!(uid.0 != u32::MAX);
            }
        }

        #[test]
        fn what_is_accepted_survives_json(text in "[ -~é漢]{0,70}") {
            if let Ok(project) = text.parse::<ProjectId>() {
                let json = serde_json::to_string(&project).unwrap();
                prop_assert_eq!(serde_json::from_str::<ProjectId>(&json).unwrap(), project);
            }
        }
    }
}
