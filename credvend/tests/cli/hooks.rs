//! `credvend hook`, as slurmctld runs it.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::site::{SECRET, Site};

#[test]
fn the_hooks_open_and_complete_a_session() {
    let site = Site::serving();
    let pin = site.json(&["pin", "--json"])["pin"].as_str().unwrap().to_owned();
    let at = |name: &str| site.path(name).display().to_string();
    site.write(
        "hook.toml",
        &format!(
            "url = \"https://localhost:{}\"\npin = \"{pin}\"\nhead-secret-file = \"{}\"\nanswer-dir = \"{}\"\n",
            site.port,
            at("secret"),
            at("answers"),
        ),
    );
    let job = [
        ("SLURM_JOB_ID", "42"),
        ("SLURM_JOB_ACCOUNT", "genomics"),
        ("SLURM_CLUSTER_NAME", "lab"),
        ("SLURM_JOB_USER", "alice"),
    ];
    let config = at("hook.toml");
    let own = at("credvend.toml");
    let hook = |when, environment: &[(&str, &str)]| {
        let said = site.run_with(&["--config", &own, "hook", when, "--hook-config", &config], environment);
        assert_eq!(said.code, 0, "a hook never fails: {}", said.err);
        assert!(!said.err.contains(SECRET) && !said.out.contains("credd1-"), "{}", said.err);
        said.err
    };
    assert_eq!(hook("prolog", &job), "");
    let sessions = site.json(&["session", "list", "--user", "alice", "--json"]);
    assert_eq!((&sessions[0]["head-session"], &sessions[0]["status"]), (&"42".into(), &"ACTIVE".into()));
    let answer = std::fs::read_to_string(site.path("answers/42")).unwrap();
    assert!(answer.contains("AWS_CONTAINER_AUTHORIZATION_TOKEN=credd1-"), "{answer}");
    let mode = |name: &str| std::fs::metadata(site.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("answers"), mode("answers/42")), (0o700, 0o600), "the hook makes the directory");
    let of_job = site.json(&["session", "list", "--job", "42", "--cluster", "lab", "--json"]);
    assert_eq!((of_job.as_array().unwrap().len(), &of_job[0]["head-session"]), (1, &"42".into()));
    for none in [["--user", "bob"], ["--status", "completed"], ["--project", "climate"], ["--cluster", "hpc"]] {
        let listed = site.json(&[&["session", "list", "--job", "42", "--json"], &none[..]].concat());
        assert_eq!(listed.as_array().unwrap().len(), 0, "{none:?}");
    }
    assert_eq!(hook("epilog", &job), "");
    assert!(!site.path("answers/42").exists());
    let id = sessions[0]["session"].as_str().unwrap();
    assert!(site.done(&["session", "show", id]).contains("COMPLETED"));

    assert!(hook("prolog", &job[..1]).contains("no account"));
    assert!(hook("prolog", &[("SLURM_JOB_ACCOUNT", "genomics")]).contains("SLURM_JOB_ID"));
    let other = [("SLURM_JOB_ID", "43"), ("SLURM_JOB_ACCOUNT", "nobody"), job[2], job[3]];
    assert!(hook("prolog", &other).contains("projects.toml"));
    let good = std::fs::read_to_string(site.path("hook.toml")).unwrap();
    site.write("hook.toml", &good.replace(&pin, &format!("sha256:{}", "0".repeat(64))));
    let said = hook("prolog", &job);
    assert!(said.contains("TLS") && said.contains(&pin) && said.contains("`credvend pin`"), "no secret for it: {said}");
    site.write("hook.toml", "url = 5\n");
    assert!(!hook("epilog", &job).is_empty());
    for mistake in
        [&["hook", "nonsense"][..], &["--config", &own, "hook", "nonsense"], &["--config=x", "hook", "--what"]]
    {
        assert_eq!(site.run(mistake).code, 0, "{mistake:?}");
    }
    // Nobody answers: within the deadline.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let text = format!("url = \"{url}\"\nhead-secret-file = \"{}\"\ndeadline-seconds = 1\n", at("secret"));
    site.write("hook.toml", &text);
    let began = Instant::now();
    assert!(hook("prolog", &job).contains("no answer within 1 s"));
    assert!(began.elapsed() < Duration::from_secs(10));
}
