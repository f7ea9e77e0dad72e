//! A user of a node who opens connections to credvend as fast as it can: the node's credd gets through all the same.

use testbed::{Cluster, Plan, wait_for};

use crate::support::{SOON, arn, hold, hold_script, srun, whoami};

/// Silent connections, and the beginnings of handshakes, which cost nothing to repeat. They are reset rather than closed:
/// otherwise the node's ports run out first.
const FLOOD: &str = r#"
import collections, socket, ssl, struct, threading
out = ssl.MemoryBIO()
try:
    ssl._create_unverified_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="head").do_handshake()
except ssl.SSLWantReadError:
    pass
def flood(first):
    kept = collections.deque()
    while True:
        try:
            one = socket.create_connection(("head", 8443), 5)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.sendall(first)
            kept.append(one)
            if len(kept) > 100:
                kept.popleft().close()
        except OSError:
            pass
hello = out.read()
for first in (b"", hello, hello):
    threading.Thread(target=flood, args=(first,)).start()
"#;

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_users_flood_of_connections_takes_nothing_from_its_nodes_credd() {
    // So few handshakes that one more is hardly ever let in by chance, however slow the flood is.
    let plan = Plan { nodes: 1, ..Plan::default() }.credvend_toml("[limits]\nhandshakes-per-address = 1");
    let cluster = Cluster::up(plan).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let (node, credvend) = (cluster.node("n1"), cluster.credvend());
    let running = hold(&cluster, "alice", &["-w", "n1"]);
    assert_eq!(running.get_as("alice").status, 200);

    let script = format!("timeout 600 python3 - <<'END' >/dev/null 2>&1 &\n{FLOOD}END");
    let flood = hold_script(&cluster, "bob", &["-w", "n1"], &script);
    let refused = || credvend.log().matches("handshakes-per-address").count();
    let floods = |what: &str, than: usize| {
        wait_for(what, SOON, || (refused() > than).then_some(())).unwrap();
    };
    floods("the address to have no handshakes left", 0);

    // Every connection is lost, and all that the node's credd knew, too.
    let before = refused();
    credvend.restart().unwrap();
    floods("the flood to reach the new credvend", before);
    node.credd().restart().unwrap();
    floods("the flood to go on", refused());
    let served = || (running.get_as("alice").status == 200).then_some(());
    wait_for("the running job's credentials, fetched anew", SOON, served).unwrap();
    // New jobs begin, one of them where credentials are a must.
    for partition in ["batch", "strict"] {
        let done = srun(&cluster, "alice", &["-w", "n1", "-p", partition], &whoami(&cluster));
        assert_eq!(done.expect_ok(), arn("genomics", "alice", "n1"), "{partition}");
    }
    let health = || node.run_as("root", &["credd", "health"]);
    wait_for("credd to be well", SOON, || health().ok().then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {:?}", health()));
    floods("the flood to be one to the end", refused());
    assert_eq!(cluster.as_user("bob").job_state(flood.job), "RUNNING");
    flood.finish();
    running.finish();
    cluster.assert_nodes_healthy();
}
