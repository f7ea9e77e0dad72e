//! `[aws]` and `[sts]`: how credvend itself reaches AWS, and how often.

use credd_protocol::{Region, RoleArn};

use super::base_url;
use super::fields::Section;
use crate::source::turns::Rate;

/// `[aws]`: how credvend itself reaches AWS. Its credentials come from the SDK's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aws {
    /// `region`; unset, `AWS_REGION` or `AWS_DEFAULT_REGION` of the environment.
    pub region: Option<Region>,
    /// `sts-endpoint`: another STS, as in tests.
    pub sts_endpoint: Option<String>,
    /// `iam-endpoint`: another IAM.
    pub iam_endpoint: Option<String>,
    /// `allow-instance-metadata`: take credvend's own identity from a metadata service. Whoever else on this host
    /// reaches that service has the same authority, so this is off.
    pub allow_instance_metadata: bool,
    /// `revoker-roles`: one for each AWS account, assumed to put Deny policies on that account's project roles.
    pub revoker_roles: Vec<RoleArn>,
}

pub(super) fn read_aws(section: Section<'_, '_>) -> Aws {
    let endpoint = |key: &'static str| {
        let url = section.text(key)?;
        base_url(&url).map_err(|why| section.problem_at(key, why)).ok()?;
        Some(url)
    };
    let aws = Aws {
        region: section.parsed("region"),
        sts_endpoint: endpoint("sts-endpoint"),
        iam_endpoint: endpoint("iam-endpoint"),
        allow_instance_metadata: section.boolean("allow-instance-metadata").unwrap_or(false),
        revoker_roles: read_revokers(&section),
    };
    section.finish();
    aws
}

fn read_revokers(section: &Section<'_, '_>) -> Vec<RoleArn> {
    let mut revokers: Vec<RoleArn> = Vec::new();
    for text in section.texts("revoker-roles").unwrap_or_default() {
        match text.parse::<RoleArn>() {
            Err(error) => section.problem_at("revoker-roles", error),
            Ok(arn) if revokers.iter().any(|known| known.account_id() == arn.account_id()) => {
                let account = arn.account_id();
                section.problem_at(
                    "revoker-roles",
                    format!("account {account} has two; one revoker does for all its roles"),
                );
            }
            Ok(arn) => revokers.push(arn),
        }
    }
    revokers
}

pub(super) fn read_sts(section: Section<'_, '_>) -> Rate {
    let usual = Rate::default();
    let rate = Rate {
        per_second: section.number("rate", 1, 10_000).unwrap_or(usual.per_second),
        burst: section.number("burst", 1, 10_000).unwrap_or(usual.burst),
    };
    section.finish();
    rate
}
