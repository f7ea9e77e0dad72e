//! `DELETE /sessions/users/{user}`: exactly that user, at once, in AWS too.

use testbed::wait_for;

use crate::support::{SOON, alone, cluster, hold_script, sessions};

/// Puts the job's credentials into a file of its user, as a job that copies them away does.
const TAKE: &str = r#"/usr/bin/python3 - > ~/taken-$SLURM_JOB_ID <<'END'
import json, os, time, urllib.error, urllib.request
url, token = (os.environ["AWS_CONTAINER_" + name] for name in ("CREDENTIALS_FULL_URI", "AUTHORIZATION_TOKEN"))
for attempt in range(20):
    try:
        got = json.load(urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": token})))
        break
    except urllib.error.HTTPError as error:
        # As SDKs do with a 503: for some seconds after a revocation nothing is issued under the revoked names.
        assert error.code == 503
        time.sleep(0.5)
print(f"export AWS_ACCESS_KEY_ID={got['AccessKeyId']} AWS_SECRET_ACCESS_KEY={got['SecretAccessKey']}")
print(f"export AWS_SESSION_TOKEN={got['Token']}")
END"#;

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn bobs_end_is_not_bobbys() {
    let cluster = alone();
    let bob = hold_script(&cluster, "bob", &["-w", "n1"], TAKE);
    let bobby = hold_script(&cluster, "bobby", &["-w", "n1"], TAKE);
    let reads = |user: &str, job: u32, bucket: &str| {
        let script =
            format!("unset AWS_CONTAINER_CREDENTIALS_FULL_URI; . ~/taken-{job}; aws s3 cp s3://{bucket}/hello.txt -");
        cluster.as_user(user).run(&["bash", "-c", &script])
    };
    reads("bob", bob.job, "climate-data").expect_ok();
    reads("bobby", bobby.job, "genomics-data").expect_ok();

    let report = cluster.head().run_as("root", &["credvend", "revoke", "--user", "bob", "--json"]);
    report.expect_ok();

    wait_for("bob's endpoint to refuse", SOON, || (bob.get_as("bob").status == 403).then_some(())).unwrap();
    assert_eq!(bobby.get_as("bobby").status, 200);
    assert_eq!(sessions(&cluster, bob.job)[0]["status"], "INVALIDATED");
    assert_eq!(sessions(&cluster, bobby.job)[0]["status"], "ACTIVE");
    let denied = reads("bob", bob.job, "climate-data");
    assert!(!denied.ok(), "what bob took still works: {denied:?}\n{report:?}");
    assert!(reads("bobby", bobby.job, "genomics-data").ok(), "bobby is a bystander");

    // A later job of bob's is served: the Deny is about what was issued before.
    let later = hold_script(&cluster, "bob", &["-w", "n1"], TAKE);
    let read = reads("bob", later.job, "climate-data");
    assert!(read.ok(), "{read:?}");
    for job in [bob, bobby, later] {
        job.finish();
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn the_seeds_verbs_are_for_heads_only() {
    let cluster = cluster();
    let head = cluster.head();
    for (method, path) in [("POST", "/sessions"), ("PUT", "/sessions/1"), ("DELETE", "/sessions/users/bob")] {
        for header in ["Authorization: wrong", "X-None: 1"] {
            let answer = crate::support::curl(
                head,
                "root",
                &["-k", "-X", method, "-H", header, "-d", "{}", &format!("https://{}:8443{path}", head.address())],
            );
            assert!([401, 403].contains(&answer.status), "{method} {path}: {answer:?}");
        }
    }
}
