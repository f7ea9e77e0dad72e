//! The endpoint on the node: who gets an answer, and who does not.

use testbed::{Cluster, Plan, wait_for};

use crate::support::{SOON, alone, arn, cluster, curl, get, hold, srun, whoami};

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn another_user_with_the_stolen_token_is_denied() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    assert_eq!(job.get_as("alice").status, 200);
    for thief in ["bob", "bobby", "root", "munge"] {
        let answer = job.get_as(thief);
        assert_eq!(answer.status, 403, "{thief} got {answer:?}");
        assert!(!answer.body.contains("SecretAccessKey"));
    }
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn in_a_user_namespace_the_uid_outside_counts() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let auth = format!("Authorization: {}", job.token);
    let inside = |user: &str| {
        let argv = ["unshare", "--map-root-user", "curl", "-s", "-q", "--noproxy", "*", &job.uri, "-H", &auth];
        job.host().run_as(user, &argv).expect_ok().to_owned()
    };
    assert!(inside("alice").contains("SecretAccessKey"), "mapped to root, and alice outside");
    let other = inside("bob");
    assert!(other.contains("OtherUser") && other.contains("--userns=keep-id"), "{other}");
    job.finish();
}

/// A process with the uids that a rootless container has: 0 is the user outside, the others are sub-uids.
const IN_A_ROOTLESS_CONTAINER: &str = "\
import ctypes, os, sys
inner, outer, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
unshared, mapped = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0
    os.write(unshared[1], b'x')
    os.read(mapped[0], 1)
    os.setresgid(inner, inner, inner)
    os.setresuid(inner, inner, inner)
    os.execvp(command[0], command)
os.read(unshared[0], 1)
for name in 'gid_map', 'uid_map':
    with open(f'/proc/{child}/{name}', 'w') as file:
        file.write(f'0 {outer} 1\\n1 200000 65536\\n')
os.write(mapped[1], b'x')
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
";

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_sub_uid_of_a_rootless_container_is_told_the_way_out() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let alice = job.host().run_as("alice", &["id", "-u"]).expect_ok().to_owned();
    let (auth, id) = (format!("Authorization: {}", job.token), job.job.to_string());
    let inside = |uid: &str, command: &[&str]| {
        let argv = [&["/usr/bin/python3", "-c", IN_A_ROOTLESS_CONTAINER, uid, &alice], command].concat();
        job.host().run_with("root", &[("SLURM_JOB_ID", &id)], &argv)
    };
    let curl = ["curl", "-s", "-q", "--noproxy", "*", &job.uri, "-H", &auth];
    assert!(inside("0", &curl).expect_ok().contains("SecretAccessKey"), "root inside is the job's user outside");
    assert!(inside("0", &["credd", "credentials"]).expect_ok().contains("SecretAccessKey"));
    let refused = inside("1001", &curl);
    assert!(refused.stdout.contains("OtherUser") && refused.stdout.contains("201000"), "{refused:?}");
    assert!(refused.stdout.contains("--userns=keep-id --user $(id -u)"), "{refused:?}");
    for command in ["credentials", "env"] {
        let refused = inside("1001", &["credd", command]);
        assert!(refused.status == 1 && refused.stdout.is_empty(), "{refused:?}");
        assert!(refused.stderr.contains("--userns=keep-id --user $(id -u)"), "{refused:?}");
    }
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_wrong_or_missing_token_a_wrong_path_a_wrong_host_a_browser() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let other = hold(&cluster, "alice", &["-w", "n1"]);
    let auth = format!("Authorization: {}", job.token);
    let get = |url: &str, headers: &[&str]| get(job.host(), "alice", url, headers).status;
    assert_eq!(get(&job.uri, &[&auth]), 200);
    assert_eq!(get(&job.uri, &[&format!("authorization: {}", job.token)]), 200, "header names have no case");
    assert_eq!(get(job.uri.split('?').next().unwrap(), &[&auth]), 200, "the query is for logs");
    assert_eq!(get(&job.uri, &[]), 403, "no token");
    assert_eq!(get(&job.uri, &["Authorization: credd1-0000"]), 403, "a malformed token");
    let nobodys = format!("Authorization: credd1-{}", "0".repeat(64));
    assert_eq!(get(&job.uri.replace(&format!("/{}/", job.job), "/4000000/"), &[&nobodys]), 403, "nobody's token");
    assert_eq!(get(&other.uri, &[&auth]), 403, "the same user's other job");
    assert_eq!(get(&job.uri, &[&auth, "Host: evil.example:9999"]), 403, "DNS rebinding");
    assert_eq!(get(&job.uri, &[&auth, "Host: 127.0.0.1:80"]), 403, "another port's host");
    assert_eq!(get(&job.uri, &[&auth, "Host: 127.0.0.1"]), 200, "the AWS Common Runtime leaves the port out");
    assert_eq!(get(&job.uri, &[&auth, "Origin: http://127.0.0.1:9999"]), 403, "a browser");
    assert_eq!(get(&job.uri, &[&auth, "X-Forwarded-For: 10.0.0.1"]), 403, "a proxy");
    assert_eq!(get("http://127.0.0.1:9999/latest/meta-data/", &[&auth]), 404, "not a metadata service");
    let post = curl(job.host(), "alice", &[&job.uri, "-H", &auth, "-X", "POST", "-d", "x"]);
    assert!((400..500).contains(&post.status), "{post:?}");
    let message = curl(job.host(), "alice", &[&other.uri, "-H", &auth]).json();
    assert!(message["message"].as_str().is_some_and(|m| m.len() > 20) && message["Code"].is_string(), "{message}");
    job.finish();
    other.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn the_aws_common_runtime_gets_credentials() {
    let cluster = cluster();
    let code = "from awscrt.auth import AwsCredentialsProvider as P; \
                print(P.new_default_chain().get_credentials().result(30).access_key_id)";
    let done = srun(&cluster, "alice", &[], &format!("python3 -c '{code}'"));
    assert!(done.expect_ok().starts_with("ASIA"), "{done:?}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn on_a_node_where_the_job_does_not_run_its_token_is_unknown() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let answer = get(cluster.node("n2"), "alice", &job.uri, &[&format!("Authorization: {}", job.token)]);
    assert_eq!((answer.status, &answer.json()["code"]), (403, &serde_json::json!("UnknownToken")), "{answer:?}");
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn another_nodes_token_serves_nobody_but_the_jobs_user() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-N2", "-w", "n1,n2"]);
    // The testbed's nodes have no cgroup v2 of Slurm's: the uid decides.
    for (node, token) in [("n2", job.token.clone()), ("n1", format!("credd1-{}", "0".repeat(64)))] {
        let ask = |user: &str| get(cluster.node(node), user, &job.uri, &[&format!("Authorization: {token}")]);
        for thief in ["bob", "bobby", "root"] {
            let answer = ask(thief);
            assert_eq!(answer.status, 403, "{thief}: {answer:?}");
            assert!(!answer.body.contains("SecretAccessKey"));
        }
        if node == "n2" {
            assert_eq!(ask("alice").status, 200);
        }
    }
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn after_the_end_the_token_is_dead() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let (uri, token) = (job.uri.clone(), job.token.clone());
    assert_eq!(job.get_as("alice").status, 200);
    job.finish();
    let ask = || get(cluster.node("n1"), "alice", &uri, &[&format!("Authorization: {token}")]).status;
    wait_for("the token to be forgotten", SOON, || (ask() == 403).then_some(())).unwrap();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_client_that_has_gone_is_not_taken_for_root() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    // bob sends a request with alice's token and closes at once, many times: the kernel then reports uid 0 for his
    // sockets. credd must never have answered one; it logs each refusal with the uid it saw.
    let script = format!(
        "import socket\nfor i in range(200):\n s=socket.create_connection(('127.0.0.1',9999))\n s.sendall(b'GET {} HTTP/1.1\\r\\nHost: 127.0.0.1:9999\\r\\nAuthorization: {}\\r\\n\\r\\n')\n s.shutdown(socket.SHUT_RDWR) if i%2 else None\n s.close()\n",
        job.uri.strip_prefix("http://127.0.0.1:9999").unwrap(),
        job.token
    );
    job.host().run_as("bob", &["/usr/bin/python3", "-c", &script]).expect_ok();
    // A half-closed connection is read to its end: still not one byte of a secret.
    let half = format!(
        "import socket\ngot=b''\nfor i in range(50):\n s=socket.create_connection(('127.0.0.1',9999))\n s.sendall(b'GET {} HTTP/1.1\\r\\nHost: 127.0.0.1:9999\\r\\nAuthorization: {}\\r\\nConnection: close\\r\\n\\r\\n')\n s.shutdown(socket.SHUT_WR)\n while True:\n  b=s.recv(65536)\n  if not b: break\n  got+=b\nprint(b'SecretAccessKey' in got)\n",
        job.uri.strip_prefix("http://127.0.0.1:9999").unwrap(),
        job.token
    );
    assert_eq!(job.host().run_as("bob", &["/usr/bin/python3", "-c", &half]).expect_ok(), "False");
    assert_eq!(job.get_as("alice").status, 200, "and alice is served as before");
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn nobody_takes_the_port_while_credd_restarts() {
    let cluster = alone();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let node = cluster.node("n1");
    node.credd().kill9().unwrap();
    let squat = "import socket\ns=socket.socket()\ns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\ns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\ntry:\n s.bind(('127.0.0.1',9999)); s.listen(); print('squatted')\nexcept OSError as e: print(e.errno)\n";
    let tried = node.run_as("bob", &["/usr/bin/python3", "-c", squat]);
    assert_eq!(tried.expect_ok(), "98", "EADDRINUSE");
    node.credd().start().unwrap();
    wait_for("credd to serve again", SOON, || (job.get_as("alice").status == 200).then_some(())).unwrap();
    job.finish();
    cluster.assert_nodes_healthy();
}

/// The socket unit of the port could not start, and credd is started by the others, as its unit says.
#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_port_that_was_taken_before_credd_is_named_by_health_and_served_once_it_is_free() {
    let cluster = Cluster::up(Plan { nodes: 1, ..Plan::default() }).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let node = cluster.node("n1");
    node.credd().stop().unwrap();
    node.unlisten("http").unwrap();
    let squat = "import socket; s = socket.create_server(('127.0.0.1', 9999)); print('here', flush=True); s.accept()";
    let mut squatter = node.start_as("bob", &["/usr/bin/python3", "-c", squat]).unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(squatter.stdout.take().unwrap()), &mut line).unwrap();
    let [program, config] = ["bin/credd", "etc/credd-n1.toml"].map(|file| cluster.run_dir().join(file));
    let argv = [program.to_str().unwrap(), "run", "--config", config.to_str().unwrap()];
    node.start_service("credd", &argv, &["root", "user"]).unwrap();

    let bob = node.run_as("bob", &["id", "-u"]).expect_ok().to_owned();
    let health = || node.run_as("root", &["credd", "health"]);
    let named = || {
        let done = health();
        (!done.ok() && format!("{}{}", done.stdout, done.stderr).contains(&format!("uid {bob}"))).then_some(())
    };
    wait_for("health to name the holder", SOON, named).unwrap_or_else(|e| panic!("{e}: {:?}", health()));
    let told = srun(&cluster, "alice", &["-w", "n1"], "echo \"[$AWS_CONTAINER_AUTHORIZATION_TOKEN]\"");
    assert!(told.stdout.contains("[]") && told.stderr.contains("no AWS credentials"), "{told:?}");
    // It ends with the first connection.
    curl(node, "bob", &["http://127.0.0.1:9999/"]);
    squatter.wait().unwrap();
    wait_for("credd to take the port", SOON, || health().ok().then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {:?}", health()));
    let served = srun(&cluster, "alice", &["-w", "n1"], &whoami(&cluster));
    assert_eq!(served.expect_ok(), arn("genomics", "alice", "n1"));
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn the_users_socket_shows_ones_own_jobs_only() {
    let cluster = cluster();
    let (alices, bobs) = (hold(&cluster, "alice", &["-w", "n1"]), hold(&cluster, "bob", &["-w", "n1"]));
    let status = |user: &str| alices.host().run_as(user, &["credd", "status", "--json"]).expect_ok().to_owned();
    let (alice_sees, root_sees) = (status("alice"), status("root"));
    assert!(
        alice_sees.contains(&alices.job.to_string()) && !alice_sees.contains(&format!(":{}", bobs.job)),
        "{alice_sees}"
    );
    assert!(root_sees.contains(&alices.job.to_string()) && root_sees.contains(&bobs.job.to_string()), "{root_sees}");
    for text in [alice_sees, root_sees] {
        assert!(!text.contains("credd1-"), "a token is shown: {text}");
    }
    alices.finish();
    bobs.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn no_secret_is_in_any_log() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let document = job.get_as("alice").json();
    let token = job.token.clone();
    job.get_as("bob");
    job.finish();
    let logs = cluster.last_log_lines(usize::MAX);
    for secret in [&token[7..], document["SecretAccessKey"].as_str().unwrap(), document["Token"].as_str().unwrap()] {
        assert!(!logs.contains(secret), "a secret stands in a log");
    }
}
