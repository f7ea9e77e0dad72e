//! The policies that `credvend project policy` prints, applied to a pretend AWS as printed: everything works with them, a
//! stolen revoker can do nothing else, and without them nothing works.
#![forbid(unsafe_code)]

mod pretend_aws;

use std::sync::Arc;

use credd_protocol::RoleArn;
use credvend::deny::iam::IamDenier;
use credvend::deny::{Denier, DenyError};
use credvend::projects::ProjectMap;
use credvend::projects::policies::{Policies, policies};
use credvend::source::aws::{Aws, AwsOptions};
use credvend::source::sts::StsSource;
use credvend::source::{AssumeRequest, Assumed, Source};
use credvend::store::{Denied, Revocation};
use pretend_aws::{Keys, PretendAws, ServiceUser};
use time::{Duration, OffsetDateTime};

const ACCOUNT: &str = "000000000000";

fn map() -> ProjectMap {
    let text = format!(
        "[projects.genomics]\nrole-arn = \"arn:aws:iam::{ACCOUNT}:role/projects/genomics\"\n\
         [projects.genomics.roles.train]\nrole-arn = \"arn:aws:iam::{ACCOUNT}:role/projects/train\"\nsource-identity = true\n"
    );
    credvend::projects::parse(&text).unwrap()
}

async fn standing(pretend: &PretendAws, keys: &Keys) -> Arc<Aws> {
    let mut options = AwsOptions::new("us-east-1".parse().unwrap());
    options.sts_endpoint = Some(pretend.endpoint().to_owned());
    options.iam_endpoint = Some(pretend.endpoint().to_owned());
    Aws::with_credentials(options, keys.provider()).await
}

fn keys(assumed: &Assumed) -> Keys {
    let given = &assumed.credentials;
    Keys::new(&given.access_key_id, given.secret_access_key.expose(), Some(given.token.expose()))
}

/// An account with two project roles and one that is none of ours, and the printed policies in force.
struct Site {
    pretend: PretendAws,
    service: ServiceUser,
    printed: Policies,
}

impl Site {
    /// `bounded`: with the boundary on the project roles, as printed.
    async fn new(bounded: bool) -> Self {
        let pretend = PretendAws::start().await;
        let service = pretend.create_bare_user().await;
        for role in ["genomics", "train", "strangers"] {
            pretend.create_role(role, &service.arn, Some(&format!("{role}-data"))).await;
        }
        pretend
            .iam()
            .update_assume_role_policy()
            .role_name("train")
            .policy_document(
                serde_json::json!({ "Version": "2012-10-17", "Statement": [{
                    "Effect": "Allow", "Principal": { "AWS": service.arn },
                    "Action": ["sts:AssumeRole", "sts:SetSourceIdentity"]
                }]})
                .to_string(),
            )
            .send()
            .await
            .unwrap();
        let printed = policies(&map(), &[], &service.arn, &["s3:*".to_owned()]);
        let [own] = &printed.own[..] else { panic!("{printed:?}") };
        pretend.user_document(own).await;
        let [of] = &printed.accounts[..] else { panic!("{printed:?}") };
        let iam = pretend.iam();
        for bound in [&of.project_boundary, &of.revoker_boundary] {
            let name = bound.arn.rsplit('/').next().unwrap();
            let made = iam.create_policy().policy_name(name).policy_document(bound.document.to_string()).send();
            assert_eq!(made.await.unwrap().policy.unwrap().arn.as_deref(), Some(&*bound.arn));
        }
        let revoker = of.revoker.role_name();
        iam.create_role()
            .role_name(revoker)
            .assume_role_policy_document(of.revoker_trust.to_string())
            .permissions_boundary(&of.revoker_boundary.arn)
            .send()
            .await
            .unwrap();
        let put = iam.put_role_policy().role_name(revoker).policy_name("revoke");
        put.policy_document(of.revoker_permissions.to_string()).send().await.unwrap();
        if bounded {
            for role in &of.roles {
                let bind = iam.put_role_permissions_boundary().role_name(role.role_name());
                bind.permissions_boundary(&of.project_boundary.arn).send().await.unwrap();
            }
        }
        Site { pretend, service, printed }
    }

    async fn assume(&self, role: &str, identity: Option<&str>) -> Result<Assumed, String> {
        let source = StsSource::new(standing(&self.pretend, &self.service.keys).await);
        let request = AssumeRequest {
            session: "3f2c8a54-8d5e-4b8e-9d2a-0c8b3f6d7e11".parse().unwrap(),
            project: "genomics".parse().unwrap(),
            role_arn: role_arn(role),
            session_name: "lab-bob-n1".into(),
            duration_seconds: 3600,
            source_identity: identity.map(str::to_owned),
            tags: vec![],
        };
        source.assume(&request).await.map_err(|error| error.to_string())
    }

    async fn reads(&self, assumed: &Assumed, role: &str) -> bool {
        self.pretend.get_object(&keys(assumed), &format!("{role}-data")).await.is_ok()
    }

    async fn deny(&self, role: &str, whose: Denied) -> Result<(), DenyError> {
        let revoker = self.printed.accounts[0].revoker.clone();
        let denier = IamDenier::new(standing(&self.pretend, &self.service.keys).await, vec![revoker]);
        let before = OffsetDateTime::now_utc() + Duration::SECOND;
        let entry = Revocation {
            role_arn: role_arn(role),
            whose,
            issued_before: before,
            until: before + Duration::HOUR,
            ordered: true,
        };
        denier.project(&role_arn(role), &[entry]).await
    }

    /// Whoever has stolen the revoker's credentials.
    async fn thief(&self) -> aws_sdk_iam::Client {
        let sts = aws_sdk_sts::Client::from_conf(
            aws_sdk_sts::Config::builder()
                .behavior_version(aws_config::BehaviorVersion::latest())
                .region(aws_config::Region::new("us-east-1"))
                .endpoint_url(self.pretend.endpoint())
                .http_client(aws_smithy_http_client::Builder::new().build_http())
                .credentials_provider(self.service.keys.provider())
                .build(),
        );
        let ask = sts.assume_role().role_arn(self.printed.accounts[0].revoker.as_str()).role_session_name("thief");
        let given = ask.send().await.unwrap().credentials.unwrap();
        let stolen = Keys::new(&given.access_key_id, &given.secret_access_key, Some(&given.session_token));
        aws_sdk_iam::Client::from_conf(
            aws_sdk_iam::Config::builder()
                .behavior_version(aws_config::BehaviorVersion::latest())
                .region(aws_config::Region::new("us-east-1"))
                .endpoint_url(self.pretend.endpoint())
                .http_client(aws_smithy_http_client::Builder::new().build_http())
                .credentials_provider(stolen.provider())
                .build(),
        )
    }
}

fn role_arn(name: &str) -> RoleArn {
    format!("arn:aws:iam::{ACCOUNT}:role/projects/{name}").parse().unwrap()
}

const ANYTHING: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#;

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn with_the_printed_policies_everything_works_and_nothing_else_does() {
    let site = Site::new(true).await;
    let genomics = site.assume("genomics", None).await.unwrap();
    let train = site.assume("train", Some("bob")).await.unwrap();
    let (other, neighbour) =
        (site.assume("train", Some("bobby")).await.unwrap(), site.assume("train", None).await.unwrap());
    assert!(site.reads(&genomics, "genomics").await && site.reads(&train, "train").await);
    // A role that is not in the map.
    assert!(site.assume("strangers", None).await.is_err());

    site.deny("genomics", Denied::UserId(format!("{}:lab-bob-n1", genomics.role_id))).await.unwrap();
    assert!(!site.reads(&genomics, "genomics").await);
    // By the identity alone: the same role session name without it, and bobby's, live.
    site.deny("train", Denied::SourceIdentity("bob".into())).await.unwrap();
    assert!(!site.reads(&train, "train").await);
    assert!(site.reads(&other, "train").await && site.reads(&neighbour, "train").await);
    site.deny("train", Denied::Everyone).await.unwrap();
    assert!(!site.reads(&other, "train").await && !site.reads(&neighbour, "train").await);
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_stolen_revoker_touches_no_other_role_and_widens_none() {
    let site = Site::new(true).await;
    let thief = site.thief().await;
    let put = async |role: &str| {
        let put = thief.put_role_policy().role_name(role).policy_name("evil").policy_document(ANYTHING);
        put.send().await.is_ok()
    };
    assert!(!put("strangers").await, "a role that is none of ours");
    assert!(!put(site.printed.accounts[0].revoker.role_name()).await, "itself");
    assert!(thief.create_user().user_name("evil").send().await.is_err());
    let unbind = thief.delete_role_permissions_boundary().role_name("genomics");
    assert!(unbind.send().await.is_err(), "the boundary");
    assert!(thief.update_assume_role_policy().role_name("genomics").policy_document(ANYTHING).send().await.is_err());
    // It may write on a project's role; that gives nothing beyond the boundary.
    assert!(put("genomics").await);
    let genomics = site.assume("genomics", None).await.unwrap();
    assert!(site.reads(&genomics, "train").await, "what the boundary allows, all of S3 as printed here");
    let as_genomics = keys(&genomics);
    let config = aws_sdk_iam::Config::builder()
        .behavior_version(aws_config::BehaviorVersion::latest())
        .region(aws_config::Region::new("us-east-1"))
        .endpoint_url(site.pretend.endpoint())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .credentials_provider(as_genomics.provider())
        .build();
    let widened = aws_sdk_iam::Client::from_conf(config);
    assert!(widened.create_user().user_name("evil").send().await.is_err(), "no IAM beyond the boundary");
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn without_the_boundary_or_the_policies_nothing_is_denied_and_the_reason_is_said() {
    let site = Site::new(false).await;
    let genomics = site.assume("genomics", None).await.unwrap();
    let userid = || Denied::UserId(format!("{}:lab-bob-n1", genomics.role_id));
    let why = site.deny("genomics", userid()).await.unwrap_err().to_string();
    assert!(why.contains("permissions boundary") && why.contains("iam:PutRolePolicy"), "{why}");
    assert!(site.reads(&genomics, "genomics").await);

    // credvend's own identity without its policy.
    site.pretend
        .user_policy(serde_json::json!([{ "Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*" }]))
        .await;
    let why = site.deny("genomics", userid()).await.unwrap_err().to_string();
    assert!(why.contains("revoker role") && why.contains("cannot be assumed"), "{why}");
    assert!(site.assume("genomics", None).await.is_err());
}
