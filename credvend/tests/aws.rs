//! STS and IAM against a pretend AWS that enforces: signatures, trust policies, `aws:userid`, `aws:TokenIssueTime`.
//!
//! PyPI `ministack`, started for this test alone on a free loopback port. Its path is in CREDD_MINISTACK at build time,
//! or it is on PATH; else the tests are ignored.
#![forbid(unsafe_code)]

mod pretend_aws;

use std::sync::Arc;

use credd_protocol::RoleArn;
use credvend::deny::iam::{IamDenier, POLICY_NAME};
use credvend::deny::{Denier, DenyError};
use credvend::source::aws::{Aws, AwsOptions};
use credvend::source::sts::StsSource;
use credvend::source::{AssumeRequest, Assumed, Source, SourceError};
use credvend::store::{Denied, Revocation};
use pretend_aws::{Keys, PretendAws};
use time::{Duration, OffsetDateTime};

fn request(role: &str, name: &str) -> AssumeRequest {
    AssumeRequest {
        session: "3f2c8a54-8d5e-4b8e-9d2a-0c8b3f6d7e11".parse().unwrap(),
        project: "genomics".parse().unwrap(),
        role_arn: role.parse().unwrap(),
        session_name: name.into(),
        duration_seconds: 3600,
        source_identity: None,
        tags: vec![],
    }
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

fn revocation(role: &RoleArn, assumed: &Assumed, name: &str, before: OffsetDateTime) -> Revocation {
    Revocation {
        role_arn: role.clone(),
        whose: Denied::UserId(format!("{}:{name}", assumed.role_id)),
        issued_before: before,
        until: before + Duration::HOUR,
        ordered: true,
    }
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_role_is_assumed_under_the_original_trust_policy_and_no_tags_are_in_the_request() {
    let pretend = PretendAws::start().await;
    let service = pretend.create_service_user().await;
    let role = pretend.create_role("genomics", &service.arn, Some("genomics-data")).await;
    pretend.create_role("climate", &service.arn, Some("climate-data")).await;
    let source = StsSource::new(standing(&pretend, &service.keys).await);
    assert_eq!(source.identity().await.unwrap(), service.arn);

    let assumed = source.assume(&request(&role, "lab-alice-n1")).await.unwrap();
    assert!(assumed.role_id.starts_with("AROA"), "{}", assumed.role_id);
    let life = assumed.credentials.expiration - assumed.issued;
    assert!(life > Duration::minutes(59) && life < Duration::minutes(61), "{life}");
    assert_eq!(pretend.get_object(&keys(&assumed), "genomics-data").await, Ok("data of genomics-data".into()));
    assert_eq!(pretend.get_object(&keys(&assumed), "climate-data").await, Err(403));

    let requests = pretend.recorded("AssumeRole").await;
    let [record] = &requests[..] else { panic!("one request: {requests:?}") };
    assert_eq!(record["RoleSessionName"], "lab-alice-n1");
    assert_eq!(record["RoleArn"], role);
    let more: Vec<&String> = record
        .as_object()
        .unwrap()
        .keys()
        .filter(|key| key.contains("Tag") || key.contains("SourceIdentity"))
        .collect();
    assert!(more.is_empty(), "{more:?}");
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_role_that_trusts_somebody_else_is_refused_with_both_names() {
    let pretend = PretendAws::start().await;
    let service = pretend.create_service_user().await;
    let locked = pretend.create_role("locked", &format!("{}-else", service.arn), None).await;
    let open = pretend.create_role("open", &service.arn, None).await;
    let source = StsSource::new(standing(&pretend, &service.keys).await);

    let refused = async |request: AssumeRequest| match source.assume(&request).await {
        Err(SourceError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    let why = refused(request(&locked, "lab-alice-n1")).await;
    assert!(
        why.starts_with(&format!("the trust policy of {locked} must allow sts:AssumeRole to {}", service.arn)),
        "{why}"
    );
    // A role that is not there looks the same from outside; the sentence allows for it.
    let why = refused(request(&open.replace("open", "gone"), "lab-alice-n1")).await;
    assert!(why.contains("or there is no such role"), "{why}");
    // Tags need more than the original trust policy allows; they are not silently dropped.
    let mut tagged = request(&open, "lab-alice-n1");
    tagged.tags = vec![("project".into(), "genomics".into())];
    let why = refused(tagged).await;
    assert!(why.contains("must allow sts:TagSession to") && why.contains("session-tags"), "{why}");

    let stranger = standing(&pretend, &Keys::new("AKIAIOSFODNN7NOBODYX", "wrong", None)).await;
    let error = StsSource::new(stranger).assume(&request(&open, "lab-alice-n1")).await.unwrap_err();
    assert!(matches!(&error, SourceError::Unavailable(why) if why.contains("credvend's own")), "{error:?}");
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_denied_session_is_dead_and_its_neighbours_and_successors_live() {
    let pretend = PretendAws::start().await;
    let service = pretend.create_service_user().await;
    let role = pretend.create_role("genomics", &service.arn, Some("genomics-data")).await;
    let aws = standing(&pretend, &service.keys).await;
    let (source, denier) = (StsSource::new(Arc::clone(&aws)), IamDenier::new(aws, vec![PretendAws::revoker()]));
    let arn: RoleArn = role.parse().unwrap();
    let reads = async |assumed: &Assumed| pretend.get_object(&keys(assumed), "genomics-data").await.is_ok();

    let bob = source.assume(&request(&role, "lab-bob-n1")).await.unwrap();
    let bobby = source.assume(&request(&role, "lab-bobby-n1")).await.unwrap();
    assert!(reads(&bob).await && reads(&bobby).await);

    // Issue times have whole seconds: what bob gets in a later second is issued after the revocation.
    let before = OffsetDateTime::now_utc() + Duration::SECOND;
    let entry = revocation(&arn, &bob, "lab-bob-n1", before);
    denier.project(&arn, std::slice::from_ref(&entry)).await.unwrap();
    assert!(!reads(&bob).await);
    assert!(reads(&bobby).await);
    let alive = OffsetDateTime::now_utc();
    while OffsetDateTime::now_utc() < before + Duration::SECOND {
        assert!(OffsetDateTime::now_utc() - alive < Duration::seconds(10));
        tokio::task::yield_now().await;
    }
    let again = source.assume(&request(&role, "lab-bob-n1")).await.unwrap();
    assert!(reads(&again).await && !reads(&bob).await);

    // The same once more writes nothing.
    let writes = pretend.recorded("PutRolePolicy").await.iter().filter(|r| r["PolicyName"] == POLICY_NAME).count();
    denier.project(&arn, &[entry]).await.unwrap();
    let now = pretend.recorded("PutRolePolicy").await.iter().filter(|r| r["PolicyName"] == POLICY_NAME).count();
    assert_eq!((writes, now), (1, 1));

    denier.project(&arn, &[]).await.unwrap();
    assert!(reads(&bob).await);
    denier.project(&arn, &[]).await.unwrap();
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_deny_that_cannot_be_put_says_why() {
    let pretend = PretendAws::start().await;
    let service = pretend.create_service_user().await;
    let role = pretend.create_role("genomics", &service.arn, None).await;
    let aws = standing(&pretend, &service.keys).await;
    let (source, denier) = (StsSource::new(Arc::clone(&aws)), IamDenier::new(aws, vec![PretendAws::revoker()]));
    let arn: RoleArn = role.parse().unwrap();
    let assumed = source.assume(&request(&role, "lab-bob-n1")).await.unwrap();
    let now = OffsetDateTime::now_utc();

    let refused = async |arn: &RoleArn| match denier.project(arn, &[revocation(arn, &assumed, "x-y", now)]).await {
        Err(DenyError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    // A role of another account has a namesake here, which must not be touched.
    let namesake: RoleArn = "arn:aws:iam::999999999999:role/genomics".parse().unwrap();
    assert!(refused(&namesake).await.contains("no revoker role of AWS account 999999999999"));
    assert!(pretend.recorded("PutRolePolicy").await.iter().all(|r| r["PolicyName"] != POLICY_NAME));

    // More than fits: the newest are denied, and the error counts the others.
    let many: Vec<Revocation> = (0..400)
        .map(|i| revocation(&arn, &assumed, &format!("lab-user{i:03}-n1"), now + Duration::seconds(i % 3)))
        .collect();
    let error = denier.project(&arn, &many).await.unwrap_err();
    let DenyError::TooLarge { why, left_out } = error else { panic!("{error:?}") };
    assert!(why.contains("of 400 revoked names") && why.contains(&role) && why.contains("--wide"), "{why}");
    assert!(!left_out.is_empty() && left_out.len() < 400);
    assert_eq!(pretend.recorded("PutRolePolicy").await.iter().filter(|r| r["PolicyName"] == POLICY_NAME).count(), 1);

    pretend.forbid_iam_writes().await;
    let why = refused(&arn).await;
    assert!(why.contains("revoker lacks the permission iam:PutRolePolicy on") && why.contains(&role), "{why}");
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn the_roles_other_policies_are_left_their_room() {
    let pretend = PretendAws::start().await;
    let service = pretend.create_service_user().await;
    let role = pretend.create_role("genomics", &service.arn, None).await;
    let aws = standing(&pretend, &service.keys).await;
    let (source, denier) = (StsSource::new(Arc::clone(&aws)), IamDenier::new(aws, vec![PretendAws::revoker()]));
    let arn: RoleArn = role.parse().unwrap();
    let assumed = source.assume(&request(&role, "lab-bob-n1")).await.unwrap();
    let bucket = format!("arn:aws:s3:::{}", "b".repeat(6_000));
    let others = serde_json::json!([{ "Effect": "Allow", "Action": "s3:GetObject", "Resource": bucket }]);
    pretend.role_policy("genomics", others).await;

    let now = OffsetDateTime::now_utc();
    let names = |count: u32| -> Vec<Revocation> {
        (0..count).map(|i| revocation(&arn, &assumed, &format!("lab-user{i:03}-n1"), now)).collect()
    };
    let puts = async || {
        let recorded = pretend.recorded("PutRolePolicy").await;
        recorded.iter().filter(|put| put["PolicyName"] == POLICY_NAME).count()
    };
    let error = denier.project(&arn, &names(200)).await.unwrap_err();
    let DenyError::TooLarge { left_out, .. } = error else { panic!("{error:?}") };
    assert!((1..200).contains(&left_out.len()), "{}", left_out.len());
    assert_eq!(puts().await, 1, "AWS is not asked for more than there is room for");
    denier.project(&arn, &names(50)).await.unwrap();
    assert_eq!(puts().await, 2);

    // A revoker that may not list them finds out by asking for less.
    let may = serde_json::json!([{ "Effect": "Allow", "Action": ["iam:PutRolePolicy", "iam:GetRolePolicy"], "Resource": "*" }]);
    pretend.role_policy("revoker", may).await;
    let error = denier.project(&arn, &names(200)).await.unwrap_err();
    let DenyError::TooLarge { left_out, .. } = error else { panic!("{error:?}") };
    assert!((1..200).contains(&left_out.len()), "{}", left_out.len());
    assert!(puts().await > 3, "the whole was tried, and refused");
}
