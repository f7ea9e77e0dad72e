//! What a step's environment keeps away from the job's own credentials, and the names that Slurm takes.

use testbed::Cluster;

use crate::support::{SOON, admin, arn, cluster, hold, srun, whoami};

/// A proxy that answers nothing but remembers what it is sent, and a Rust client that uses it as its environment says.
/// Prints what the proxy got, then what became of the client.
const CLIENT_BESIDE_A_PROXY: &str = r#"
import os, socket, subprocess, sys, threading
proxy = socket.create_server(("127.0.0.1", 0))
heard = []
def answer():
    while True:
        connection, _ = proxy.accept()
        connection.settimeout(5)
        heard.append(connection.recv(65536).decode(errors="replace"))
        connection.sendall(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.close()
threading.Thread(target=answer, daemon=True).start()
for name in ("http_proxy", "HTTP_PROXY"):
    os.environ[name] = "http://127.0.0.1:%d" % proxy.getsockname()[1]
for pair in sys.argv[1:]:
    name, value = pair.split("=", 1)
    os.environ[name] = value
client = """
import obstore
store = obstore.store.S3Store("genomics-data", endpoint="http://aws:4566", region="us-east-1",
                              client_options={"allow_http": True}, retry_config={"max_retries": 0})
print(sum(len(chunk) for chunk in obstore.list(store)), "objects")
"""
done = subprocess.run([sys.executable, "-c", client], capture_output=True, text=True)
print("proxy:", repr("".join(heard)))
print("client:", done.stdout, done.stderr)
"#;

fn client_beside_a_proxy(cluster: &Cluster, submitted_with: &[(&str, &str)], in_the_job: &[&str]) -> (String, String) {
    let alice = cluster.as_user("alice");
    let mut argv = vec!["--aws-token-file", "-w", "n1", "python3", "-c", CLIENT_BESIDE_A_PROXY];
    argv.extend(in_the_job);
    let done = alice.srun_with(submitted_with, &argv);
    let (proxy, client) = done.expect_ok().split_once("client: ").expect("both are printed");
    (proxy.to_owned(), client.to_owned())
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_rust_client_gives_its_token_to_no_proxy() {
    let cluster = cluster();
    for list in ["*", "example.org,*", "127.0.0.0/8 localhost"] {
        for name in ["NO_PROXY", "no_proxy"] {
            let (proxy, client) = client_beside_a_proxy(&cluster, &[(name, list)], &[]);
            assert!(!proxy.contains("credd1-") && !proxy.contains("9999"), "{name}={list}: {proxy}");
            // With `*` the name `aws` is asked without the proxy; else the proxy gets what is signed with the credentials.
            let served =
                if list.contains('*') { client.contains("objects") } else { proxy.contains("Credential=ASIA") };
            assert!(served, "{name}={list}: {proxy} {client}");
        }
    }
    // A proxy that is set only in the job, as by `module load`.
    let (proxy, client) = client_beside_a_proxy(&cluster, &[], &[]);
    assert!(!proxy.contains("credd1-") && proxy.contains("Credential=ASIA"), "{proxy} {client}");
    // And what such a client does where nobody names the address: should this ever change, the rest proves nothing.
    let (proxy, _) = client_beside_a_proxy(&cluster, &[], &["NO_PROXY=*", "no_proxy=*"]);
    assert!(proxy.contains("credd1-"), "{proxy}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_star_still_switches_the_proxy_off_for_python_and_curl() {
    let cluster = cluster();
    let script = "python3 -c 'import urllib.request as u; print(bool(u.proxy_bypass(\"example.org\")))'; \
                  curl -s -o /dev/null -w '%{http_code}' http://aws:4566/";
    for name in ["NO_PROXY", "no_proxy"] {
        let env = [("http_proxy", "http://127.0.0.1:1"), (name, "*")];
        let done = cluster.as_user("alice").srun_with(&env, &["-w", "n1", "bash", "-c", script]);
        let (python, curl) = done.expect_ok().split_once('\n').expect("two lines");
        assert_eq!(python, "True", "{name}");
        assert_ne!(curl, "000", "{name}");
    }
}

/// Prints what stands in a step's variables that are not all ours.
const SHOWN: &str = "echo \"${AWS_EC2_METADATA_DISABLED-unset} ${AWS_REGION-unset} ${NO_PROXY-unset} ${no_proxy-unset} \
                     ${CREDD_ADDED-unset} ${AWS_CONTAINER_CREDENTIALS_FULL_URI:+uri}\"";

/// The same in a job whose user has chosen no region.
fn shown(cluster: &Cluster, options: &[&str]) -> String {
    let mut argv = vec!["env", "-u", "AWS_DEFAULT_REGION", "srun"];
    argv.extend(options);
    argv.extend(["bash", "-c", SHOWN]);
    cluster.as_user("alice").run(&argv).expect_ok().trim().to_owned()
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_step_without_credentials_does_not_ask_the_instance_for_others() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let id = job.job.to_string();
    let step = |name: &str| shown(&cluster, &["--jobid", &id, "--overlap", name]);
    assert!(step("--job-name=served").starts_with("unset unset 127.0.0.1 127.0.0.1 NO_PROXY"));
    // credd's note that credvend has refused the job for good.
    let note = format!("echo 'project genomics has no role' >/run/credd/jobs/{id}/refused");
    cluster.on("n1").run_as_root(&note).expect_ok();
    assert_eq!(step("--job-name=refused"), "true unset unset unset AWS_EC2_METADATA_DISABLED=true");
    job.finish();

    // By the partition's word, where it is off and where the job does without.
    for options in [&["-p", "nometa"][..], &["-p", "meta", "--aws=off"]] {
        let seen = shown(&cluster, options);
        assert!(
            seen.starts_with("true eu-west-1 unset unset AWS_EC2") && !seen.ends_with("uri"),
            "{options:?}: {seen}"
        );
    }
    let on = shown(&cluster, &["-p", "meta"]);
    assert!(on.starts_with("true eu-west-1 127.0.0.1 127.0.0.1 AWS_EC2") && on.ends_with("uri"), "{on}");
    // And without it nothing is added where nothing is due.
    for options in [&["-p", "debug"][..], &["--aws=off"]] {
        assert_eq!(shown(&cluster, options), "unset unset unset unset unset", "{options:?}");
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_nested_job_inherits_nothing_that_was_added_for_its_parent() {
    let cluster = cluster();
    let script = format!(
        "{SHOWN}; inner=$(sbatch --parsable --wait -p debug -w n2 -o ~/nested-%j.out --wrap '{SHOWN}'); cat ~/nested-$inner.out"
    );
    let argv = ["env", "-u", "AWS_DEFAULT_REGION", "srun", "-p", "meta", "-w", "n1", "bash", "-c", &script];
    let done = cluster.as_user("alice").run(&argv);
    let lines: Vec<&str> = done.expect_ok().lines().collect();
    assert!(lines[0].starts_with("true eu-west-1 127.0.0.1 127.0.0.1 AWS_EC2_METADATA_DISABLED=true"), "{done:?}");
    assert_eq!(lines[1].trim(), "unset unset unset unset unset");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn identities_that_win_are_named_once_a_job() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let names = ["AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONFIG_FILE"];
    let export = format!("--export=ALL,{}", names.map(|name| format!("{name}=mine")).join(","));
    let job = alice.sbatch("srun -N2 true; srun true; echo done", &["-N2", &export]).unwrap();
    assert_eq!(alice.wait_job(job, SOON).unwrap(), "COMPLETED");
    let output = alice.job_output(job);
    for name in names {
        assert_eq!(output.matches(&format!("credd: {name} is set in the job's environment")).count(), 1, "{output}");
    }
    assert!(output.contains("done") && !output.contains("mine"), "{output}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn partitions_and_accounts_of_any_name_that_slurm_takes() {
    let cluster = cluster();
    let role = cluster.aws().role_arn("shared");
    // As sacctmgr takes it, and as it comes out of it.
    let account = "r&d/x=y é #1";
    let sacctmgr = |order: &[&str]| {
        let mut argv = vec!["sacctmgr", "-i", "-Q", "add"];
        argv.extend(order);
        cluster.head().run_as("root", &argv).expect_ok().to_owned()
    };
    sacctmgr(&["account", &format!("name={account}"), "cluster=lab"]);
    sacctmgr(&["user", "name=alice", &format!("account={account}"), "cluster=lab"]);
    cluster.head().run_as("root", &["credvend", "project", "set", account, "--role-arn", role]).expect_ok();
    for partition in ["gpu+a100", "a=b c%"] {
        let done = srun(&cluster, "alice", &["-w", "n1", "-p", partition, "-A", account], &whoami(&cluster));
        assert_eq!(done.expect_ok(), arn("shared", "alice", "n1"), "{partition}");
    }
    let listed = admin(&cluster, &["session", "list", "--project", account]);
    let sessions = listed.as_array().expect("a list");
    assert_eq!(sessions.len(), 2, "{listed}");
    assert!(sessions.iter().all(|session| session["project"] == account), "{listed}");
    cluster.assert_nodes_healthy();
}
