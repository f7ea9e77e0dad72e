//! The AWS policies that a site needs for its map: credvend's own, the revoker roles', and the boundaries that keep a stolen
//! revoker within what the projects may do anyway. Texts only.

use std::collections::{BTreeMap, BTreeSet};

use credd_protocol::RoleArn;
use serde::Serialize;
use serde_json::{Value, json};

use super::ProjectMap;

/// The managed policy that bounds every project role, in each account.
pub const PROJECT_BOUNDARY: &str = "credd-project-boundary";
/// The managed policy that bounds the revoker role.
pub const REVOKER_BOUNDARY: &str = "credd-revoker-boundary";
/// The revoker role's name where the configuration names none for an account.
pub const REVOKER: &str = "credd-revoker";

/// The most characters of a managed policy, white space not counted (IAM quotas).
const MANAGED_CHARS: usize = 6144;

/// Everything to be set up.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Policies {
    /// Whom the trust policies name: credvend.
    pub principal: String,
    /// credvend's own permissions, as managed policies; as a rule one.
    pub own: Vec<Value>,
    /// By account.
    pub accounts: Vec<OfAccount>,
    /// What an administrator should know.
    pub notes: Vec<String>,
}

/// What one AWS account needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OfAccount {
    /// Twelve digits.
    pub account: String,
    /// The revoker role.
    pub revoker: RoleArn,
    /// Who may assume it.
    pub revoker_trust: Value,
    /// What it may do; an inline policy.
    pub revoker_permissions: Value,
    /// What it may do at most, whatever else is attached to it.
    pub revoker_boundary: Bound,
    /// The project roles that need the next boundary.
    pub roles: Vec<RoleArn>,
    /// What they may do at most, whatever the revoker writes on them.
    pub project_boundary: Bound,
}

/// A managed policy that serves as a permissions boundary.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Bound {
    /// Its ARN.
    pub arn: String,
    /// Its document.
    pub document: Value,
}

fn document(statements: &[Value]) -> Value {
    json!({ "Version": "2012-10-17", "Statement": statements })
}

fn allow(actions: &[&str], resources: &BTreeSet<&str>) -> Value {
    json!({ "Effect": "Allow", "Action": actions, "Resource": resources })
}

/// The policies for a map. `allowed` are the actions that projects' roles may have at most (`s3:*`, …).
pub fn policies(map: &ProjectMap, revokers: &[RoleArn], principal: &str, allowed: &[String]) -> Policies {
    let roles: BTreeMap<&RoleArn, (bool, bool)> =
        map.projects.values().flat_map(|roles| roles.values()).fold(BTreeMap::new(), |mut all, role| {
            let (identity, tags) = all.entry(&role.arn).or_insert((false, false));
            *identity |= role.source_identity;
            *tags |= role.session_tags;
            all
        });
    let mut by_account: BTreeMap<(&str, &str), BTreeSet<&RoleArn>> = BTreeMap::new();
    for role in roles.keys() {
        by_account.entry((role.partition(), role.account_id())).or_default().insert(role);
    }
    let mut notes = vec![];
    let accounts: Vec<OfAccount> = by_account
        .into_iter()
        .map(|((partition, account), roles)| {
            let known = revokers.iter().find(|r| (r.partition(), r.account_id()) == (partition, account));
            let revoker = known.cloned().unwrap_or_else(|| {
                let arn = format!("arn:{partition}:iam::{account}:role/{REVOKER}");
                notes.push(format!(
                    "credvend.toml names no revoker role of account {account}: add {arn:?} to [aws] revoker-roles"
                ));
                arn.parse().expect("a role's ARN")
            });
            of_account(partition, account, revoker, &roles, principal, allowed, &mut notes)
        })
        .collect();
    let own = own(&roles, &accounts);
    if own.len() > 1 {
        notes.push(format!("credvend's own policy does not fit one managed policy; attach all {}", own.len()));
    }
    Policies { principal: principal.to_owned(), own, accounts, notes }
}

fn of_account(
    partition: &str,
    account: &str,
    revoker: RoleArn,
    roles: &BTreeSet<&RoleArn>,
    principal: &str,
    allowed: &[String],
    notes: &mut Vec<String>,
) -> OfAccount {
    let policy = |name: &str| format!("arn:{partition}:iam::{account}:policy/{name}");
    let project_boundary = policy(PROJECT_BOUNDARY);
    let names: BTreeSet<&str> = roles.iter().map(|role| role.as_str()).collect();
    // Reading knows no such condition. The Deny holds also where a role has no boundary at all.
    let revoking = document(&[
        allow(&["iam:GetRolePolicy", "iam:ListRolePolicies", "iam:PutRolePolicy", "iam:DeleteRolePolicy"], &names),
        json!({
            "Effect": "Deny",
            "Action": ["iam:PutRolePolicy", "iam:DeleteRolePolicy"],
            "Resource": "*",
            "Condition": { "StringNotEquals": { "iam:PermissionsBoundary": project_boundary } },
        }),
    ]);
    let chars = crate::deny::policy::counted(&revoking.to_string());
    if chars > MANAGED_CHARS {
        notes.push(format!(
            "the revoker's boundary for account {account} has {chars} characters, a managed policy {MANAGED_CHARS} at most: put the project roles below one path and name that path"
        ));
    }
    OfAccount {
        account: account.to_owned(),
        revoker_trust: document(&[json!({
            "Effect": "Allow", "Principal": { "AWS": principal }, "Action": "sts:AssumeRole"
        })]),
        revoker_permissions: revoking.clone(),
        revoker_boundary: Bound { arn: policy(REVOKER_BOUNDARY), document: revoking },
        roles: roles.iter().map(|role| (*role).clone()).collect(),
        project_boundary: Bound {
            arn: project_boundary,
            document: document(&[json!({ "Effect": "Allow", "Action": allowed, "Resource": "*" })]),
        },
        revoker,
    }
}

/// credvend's own permissions: to assume exactly these roles.
fn own(roles: &BTreeMap<&RoleArn, (bool, bool)>, accounts: &[OfAccount]) -> Vec<Value> {
    let assumed: Vec<&str> =
        roles.keys().map(|role| role.as_str()).chain(accounts.iter().map(|of| of.revoker.as_str())).collect();
    let with = |is: fn(&(bool, bool)) -> bool| -> Vec<&str> {
        roles.iter().filter(|(_, options)| is(options)).map(|(role, _)| role.as_str()).collect()
    };
    let wanted = [
        ("sts:AssumeRole", assumed),
        ("sts:SetSourceIdentity", with(|(identity, _)| *identity)),
        ("sts:TagSession", with(|(_, tags)| *tags)),
    ];
    let mut statements: Vec<Value> = vec![];
    let mut documents: Vec<Value> = vec![];
    for (action, resources) in wanted {
        let mut some = BTreeSet::new();
        for resource in resources {
            some.insert(resource);
            let mut tried = statements.clone();
            tried.push(allow(&[action], &some));
            if crate::deny::policy::counted(&document(&tried).to_string()) > MANAGED_CHARS && some.len() > 1 {
                some.remove(resource);
                statements.push(allow(&[action], &some));
                documents.push(document(&statements));
                statements.clear();
                some = BTreeSet::from([resource]);
            }
        }
        if !some.is_empty() {
            statements.push(allow(&[action], &some));
        }
    }
    if !statements.is_empty() {
        documents.push(document(&statements));
    }
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = r#"
[projects.genomics]
role-arn = "arn:aws:iam::123456789012:role/p/genomics"
[projects.genomics.roles.train]
role-arn = "arn:aws:iam::123456789012:role/p/train"
source-identity = true
[projects.climate]
role-arn = "arn:aws:iam::210987654321:role/climate"
session-tags = true
"#;

    #[test]
    fn every_role_is_named_exactly_and_each_account_has_its_revoker() {
        let map = super::super::parse(MAP).unwrap();
        let revoker: RoleArn = "arn:aws:iam::123456789012:role/x/revoker".parse().unwrap();
        let all = policies(&map, std::slice::from_ref(&revoker), "arn:aws:iam::1:user/c", &["s3:*".into()]);
        let [one, two] = &all.accounts[..] else { panic!("{all:?}") };
        assert_eq!((&one.revoker, two.revoker.as_str()), (&revoker, "arn:aws:iam::210987654321:role/credd-revoker"));
        assert!(all.notes.len() == 1 && all.notes[0].contains("210987654321"), "{:?}", all.notes);
        let [own] = &all.own[..] else { panic!("{all:?}") };
        let statements = own["Statement"].as_array().unwrap();
        assert_eq!(statements[0]["Action"], json!(["sts:AssumeRole"]));
        assert_eq!(statements[0]["Resource"].as_array().unwrap().len(), 5, "three roles, two revokers");
        assert_eq!(statements[1]["Resource"], json!(["arn:aws:iam::123456789012:role/p/train"]));
        assert_eq!(statements[2]["Resource"], json!(["arn:aws:iam::210987654321:role/climate"]));
        let text = all.accounts.iter().map(|of| of.revoker_permissions.to_string()).collect::<String>();
        assert!(!text.contains("role/*") && !text.contains("iam:*"), "{text}");
    }

    #[test]
    fn a_large_map_makes_several_policies_of_legal_size() {
        let text: String = (0..300)
            .map(|i| format!("[projects.p{i}]\nrole-arn = \"arn:aws:iam::123456789012:role/projects/project-{i}\"\n"))
            .collect();
        let all = policies(&super::super::parse(&text).unwrap(), &[], "arn:aws:iam::1:user/c", &["s3:*".into()]);
        assert!(all.own.len() > 1);
        let named: usize = all
            .own
            .iter()
            .flat_map(|d| d["Statement"].as_array().unwrap())
            .map(|s| s["Resource"].as_array().unwrap().len())
            .sum();
        assert_eq!(named, 301);
        assert!(all.own.iter().all(|d| d.to_string().len() <= MANAGED_CHARS));
        assert!(all.notes.iter().any(|note| note.contains("managed policy 6144 at most")), "{:?}", all.notes);
    }
}
