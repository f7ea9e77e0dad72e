//! `credvend session`, `revoke`, `revocation` and `block`.

use super::site::{ARN, Site};

#[test]
fn sessions_are_closed_and_users_invalidated_from_the_command_line() {
    let site = Site::serving();
    let at = |name: &str| site.path(name).display().to_string();
    let pin = site.json(&["pin", "--json"])["pin"].as_str().unwrap().to_owned();
    let text = format!(
        "url = \"https://127.0.0.1:{}\"\npin = \"{pin}\"\nhead-secret-file = \"{}\"\n",
        site.port,
        at("secret")
    );
    site.write("hook.toml", &text);
    for (job, user) in [("1", "bob"), ("2", "bob"), ("3", "bobby")] {
        let environment = [
            ("SLURM_JOB_ID", job),
            ("SLURM_JOB_ACCOUNT", "genomics"),
            ("SLURM_CLUSTER_NAME", "lab"),
            ("SLURM_JOB_USER", user),
        ];
        let said = site.run_with(&["hook", "prolog", "--hook-config", &at("hook.toml")], &environment);
        assert_eq!(said.err, "");
    }
    let list = |args: &[&str]| {
        let all = [&["session", "list", "--json"], args].concat();
        site.json(&all).as_array().unwrap().clone()
    };
    assert_eq!((list(&["--status", "active"]).len(), list(&["--limit", "2"]).len()), (3, 2));
    let first = list(&["--user", "bob"])[0]["session"].as_str().unwrap().to_owned();
    site.done(&["session", "close", &first]);
    assert_eq!(list(&["--status", "ACTIVE"]).len(), 2);
    let rehearsed = site.json(&["revoke", "--user", "bob", "--dry-run", "--json"]);
    assert_eq!((&rehearsed["sessions-total"], &rehearsed["dry-run"]), (&1.into(), &true.into()), "{rehearsed}");
    assert_eq!(list(&["--status", "active"]).len(), 2, "nothing is changed");
    let report = site.json(&["revoke", "--user", "bob", "--why", "a stolen laptop", "--block", "--json"]);
    assert_eq!((&report["sessions-total"], &report["blocked"]), (&1.into(), &true.into()), "{report}");
    let all = site.json(&["revocation", "list", "--json"]);
    assert_eq!((all.as_array().unwrap().len(), &all[0]["why"]), (1, &"a stolen laptop".into()), "{all}");
    let shown = site.done(&["revocation", "show", report["id"].as_str().unwrap()]);
    assert!(shown.contains("user bob") && shown.contains("1 ended"), "{shown}");
    assert!(site.done(&["revocation", "list"]).contains("a stolen laptop"));
    assert_eq!(site.json(&["block", "list", "--json"])[0]["subject"], serde_json::json!({ "user": "bob" }));
    assert!(site.done(&["unblock", "--user", "bob"]).contains("let in again"));
    assert!(site.done(&["unblock", "--user", "bob"]).contains("was not blocked"));
    for bad in [&["revoke"][..], &["revoke", "--user", "a", "--project", "b"], &["revoke", "--job", "lab/7", "--block"]]
    {
        assert_ne!(site.run(bad).code, 0, "{bad:?}");
    }
    assert_eq!(site.run(&["revoke", "--user", "bob", "--cluster", "nowhere"]).code, 1);
    for (unknown, said) in [
        (&["--user", "bbo"][..], "nobody of the name bbo has had a session here"),
        (&["--user", "bbo", "--dry-run"], "check the spelling"),
        (&["--project", "genomcis"], "no project genomcis is known here"),
        (&["--job", "lab/99"], "job 99 of cluster lab has had no session here"),
        (&["--role", "arn:aws:iam::123456789012:role/genomcis"], "no project has the role"),
    ] {
        let revoked = site.run(&[&["revoke"], unknown].concat());
        assert_eq!(revoked.code, 3, "{unknown:?}: {}", revoked.err);
        assert!(revoked.err.contains(said) && revoked.err.contains("check the spelling"), "{}", revoked.err);
    }
    // Who has had no job yet may be kept out.
    let blocked = site.run(&["revoke", "--user", "bbo", "--block"]);
    assert!(blocked.code == 0 && blocked.err.contains("kept out all the same"), "{}", blocked.err);
    // Known, with nothing left to end: done.
    for known in [&["--user", "bob"][..], &["--project", "genomics", "--dry-run"], &["--job", "lab/1"]] {
        site.done(&[&["revoke"], known].concat());
    }
    assert!(site.run(&["unblock", "--job", "lab/1"]).err.contains("never blocked"));
    assert!(site.run(&["revoke", "--job", "lab/3", "--cluster", "hpc"]).err.contains("--cluster says otherwise"));
    let left = list(&["--status", "active"]);
    assert_eq!((left.len(), &left[0]["user"]), (1, &"bobby".into()));
    assert!(site.done(&["session", "list"]).lines().count() == 4);
    assert_eq!(site.run(&["session", "close", "00000000-0000-4000-8000-000000000000"]).code, 1);
    assert_eq!(site.run(&["session", "list", "--user", "a\tb"]).code, 2);
}

#[test]
fn everything_that_a_session_got_is_shown() {
    use credvend::store::sqlite::SqliteStore;
    use credvend::store::{Issuance, Origin, PAGE, Run, Session, Store};
    let mut site = Site::new();
    let at = time::OffsetDateTime::now_utc();
    let session = Session {
        id: credd_protocol::SessionId::random(),
        cluster: "lab".parse().unwrap(),
        user: "alice".parse().unwrap(),
        uid: None,
        project: "genomics".parse().unwrap(),
        partition: None,
        nodes: vec![],
        origin: Origin::Slurm(Run { job: 7.try_into().unwrap(), restart: 0, submitted: at }),
        opened: at,
        ended: None,
        status: credd_protocol::credentials_api_v1::SessionStatus::Active,
        why: None,
    };
    let issued = |number: usize| Issuance {
        session: session.id,
        user: session.user.clone(),
        cluster: session.cluster.clone(),
        project: session.project.clone(),
        role: "default".parse().unwrap(),
        role_arn: ARN.parse().unwrap(),
        role_id: "AROAEXAMPLE".into(),
        session_name: "lab-alice-n1".into(),
        source_identity: None,
        key_id: format!("ASIA{number}"),
        node: None,
        issued: at,
        expires: at + time::Duration::HOUR,
    };
    std::fs::create_dir(site.path("state")).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = std::sync::Arc::new(SqliteStore::open(&site.path("state/credvend.sqlite")).unwrap());
        store.open(session.clone()).await.unwrap();
        let mut writes = tokio::task::JoinSet::new();
        for number in 0..=PAGE {
            let (store, issued) = (store.clone(), issued(number));
            writes.spawn(async move { store.record_issuance(issued).await.unwrap() });
        }
        writes.join_all().await;
    });
    site.serve();
    let id = session.id.to_string();
    let shown = site.json(&["session", "show", &id, "--json"]);
    let mut keys: Vec<&str> =
        shown["issued"].as_array().unwrap().iter().map(|i| i["key-id"].as_str().unwrap()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), PAGE + 1);
    assert_eq!(site.done(&["session", "show", &id]).matches(" ASIA").count(), PAGE + 1);
}
