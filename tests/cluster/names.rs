//! Names that Slurm takes, ours take too: seeded random names of every kind are given to a real slurmctld and slurmdbd. A name that
//! Slurm refuses proves nothing. With one that it takes a job runs, and that job must get credentials, under exactly that name.

use testbed::{Cluster, Output, Plan};

use crate::support::admin;

/// Another seed tries other names; every one must pass.
const SEED: u64 = 0x5eed_0006;

/// So many names of each kind must be taken by Slurm, and at most so many are tried.
const WANTED: usize = 8;
const TRIED: usize = 24;

/// What a job of the test prints: a word that Slurm has run it, its number, and the endpoint's answer.
const SCRIPT: &str = r#"echo "ran $SLURM_JOB_ID"; exec curl -s -q --noproxy '*' --retry 8 --max-time 60 -o /dev/null -w '%{http_code}' \
    -H "Authorization: $AWS_CONTAINER_AUTHORIZATION_TOKEN" "$AWS_CONTAINER_CREDENTIALS_FULL_URI""#;

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// A name of these characters. Slurm writes accounts and users in lower case.
    fn name(&mut self, alphabet: &[char], longest: usize) -> String {
        let length = 1 + self.below(longest);
        (0..length).map(|_| alphabet[self.below(alphabet.len())]).collect()
    }

    /// A name of a node, of characters that slurm.conf(5), a file and a list of hosts can hold.
    fn node_name(&mut self) -> String {
        let letters: Vec<char> = ('a'..='z').chain('A'..='Z').collect();
        let inner: Vec<char> = letters.iter().copied().chain('0'..='9').chain("._-+@~".chars()).collect();
        format!("{}{}{}", self.name(&letters, 1), self.name(&inner, 14), self.name(&letters, 2))
    }

    /// One of any visible characters. A space at its end would be squeue's padding.
    fn any_name(&mut self) -> String {
        let mut alphabet: Vec<char> = (' '..='~').filter(|c| !c.is_ascii_uppercase()).chain("éß漢".chars()).collect();
        // Most names are mostly of letters and digits.
        alphabet.extend(('a'..='z').chain('0'..='9').cycle().take(180));
        loop {
            let name = self.name(&alphabet, 20);
            if !name.ends_with(' ') {
                return name;
            }
        }
    }
}

struct Names<'a> {
    cluster: &'a Cluster,
    random: Random,
    /// Capitals are tried, too: Slurm keeps them in names of this kind.
    capitals: bool,
    failures: Vec<String>,
}

impl Names<'_> {
    fn sacctmgr(&self, order: &[&str]) -> bool {
        let mut argv = vec!["sacctmgr", "-i", "-Q"];
        argv.extend(order);
        self.cluster.head().run_as("root", &argv).ok()
    }

    fn scontrol(&self, order: &[&str]) -> bool {
        let mut argv = vec!["scontrol"];
        argv.extend(order);
        self.cluster.head().run_as("root", &argv).ok()
    }

    /// A job of alice's on one of the nodes: the second is for reservations.
    fn alice(&self, node: usize, options: &[&str]) -> Output {
        let mut argv = vec!["--immediate=30", "-w", self.cluster.nodes()[node].name()];
        argv.extend(options);
        argv.extend(["bash", "-c", SCRIPT]);
        self.cluster.as_user("alice").srun(&argv)
    }

    /// Gives names of a kind to Slurm. `run` says how a job with the name went, or `None` where Slurm did not take the name; then
    /// the session must have it as `field`.
    fn try_out(&mut self, kind: &str, field: Option<&str>, mut run: impl FnMut(&Self, &str) -> Option<Output>) {
        let mut taken = vec![];
        for _ in 0..TRIED {
            let mut name = self.random.any_name();
            if self.capitals {
                let random = &mut self.random;
                name = name.chars().map(|c| if random.below(3) == 0 { c.to_ascii_uppercase() } else { c }).collect();
            }
            let Some(done) = run(self, &name) else { continue };
            // Slurm may take a name with which it then runs nothing.
            let Some(rest) = done.stdout.strip_prefix("ran ") else {
                let nodes = self.cluster.head().run_as_root("sinfo -h -N -o '%N %T %E'").stdout;
                assert!(!nodes.contains("drain"), "after {taken:?}: {nodes}");
                continue;
            };
            let (job, status) = rest.split_once('\n').unwrap_or((rest, ""));
            taken.push(name.clone());
            if status != "200" {
                self.failures.push(format!("{kind} {name:?}: the endpoint answers {status:?}: {done:?}"));
                continue;
            }
            let sessions = admin(self.cluster, &["session", "list", "--job", job]);
            let known = field.map(|field| &sessions[0][field]);
            if known.is_some_and(|known| *known != name.as_str()) {
                self.failures.push(format!("{kind} {name:?} is {known:?} here"));
            }
            if taken.len() == WANTED {
                break;
            }
        }
        println!("{kind}: Slurm takes {taken:?}");
        if taken.len() < WANTED / 2 {
            self.failures.push(format!("of the tried names of {kind}s Slurm takes too few: {taken:?}"));
        }
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn random_names_that_slurm_takes_are_taken() {
    let mut random = Random(SEED);
    let in_a_file: Vec<char> = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain("._-+".chars()).collect();
    let name = format!("L{}", random.name(&in_a_file, 12));
    let named_nodes = vec![random.node_name(), random.node_name()];
    println!("the nodes are {named_nodes:?}");
    let plan = Plan { nodes: 2, named_nodes, cluster_name: name.clone(), ..Plan::default() };
    let cluster = Cluster::up(plan).expect(&name);
    let _logs = cluster.logs_on_panic();
    let role = cluster.aws().role_arn("shared");
    let in_cluster = format!("cluster={}", name.to_ascii_lowercase());
    let mut names = Names { cluster: &cluster, random, capitals: false, failures: vec![] };

    let mut uid = 7000;
    names.try_out("user", Some("user"), |names, name| {
        // What passwd(5) cannot hold, or reads as something else.
        if name.contains([':', '/']) || name.starts_with(['+', '-', '#', ' ']) {
            return None;
        }
        uid += 1;
        let etc = names.cluster.run_dir().join("etc");
        for (file, line) in
            [("passwd", format!("{name}:x:{uid}:{uid}::/tmp:/bin/bash\n")), ("group", format!("g{uid}:x:{uid}:\n"))]
        {
            let text = std::fs::read_to_string(etc.join(file)).unwrap();
            // In one step: what ends a job reads them at any time, and a node whose epilog fails is drained.
            std::fs::write(etc.join("new"), text + &line).unwrap();
            std::fs::rename(etc.join("new"), etc.join(file)).unwrap();
        }
        let made = names.sacctmgr(&["add", "user", &format!("name={name}"), "account=genomics", &in_cluster]);
        made.then(|| {
            let id = uid.to_string();
            let head = names.cluster.head();
            let (reuid, regid) = (format!("--reuid={id}"), format!("--regid={id}"));
            let user = format!("USER={name}");
            let as_user = ["setpriv", &reuid, &regid, "--clear-groups", "env", &user, "HOME=/tmp"];
            let srun =
                ["srun", "--immediate=30", "-w", names.cluster.nodes()[0].name(), "--chdir=/tmp", "bash", "-c", SCRIPT];
            head.run_as("root", &[&as_user[..], &srun[..]].concat())
        })
    });
    // Which QOS a user may have is not enforced there.
    names.try_out("QOS", None, |names, name| {
        let made = names.sacctmgr(&["add", "qos", &format!("name={name}")]);
        made.then(|| names.alice(0, &[&format!("--qos={name}")]))
    });
    names.capitals = true;
    names.try_out("partition", Some("partition"), |names, name| {
        let made = names.scontrol(&["create", &format!("partitionname={name}"), "nodes=ALL"]);
        made.then(|| names.alice(0, &[&format!("--partition={name}")]))
    });
    names.capitals = false;
    names.try_out("account", Some("project"), |names, name| {
        let made = names.sacctmgr(&["add", "account", &format!("name={name}"), &in_cluster])
            && names.sacctmgr(&["add", "user", "name=alice", &format!("account={name}"), &in_cluster]);
        made.then(|| {
            let set = ["credvend", "project", "set", "--role-arn", role, "--", name];
            // If it is not taken, the job says so.
            names.cluster.head().run_as("root", &set);
            names.alice(0, &[&format!("--account={name}")])
        })
    });
    names.try_out("reservation", None, |names, name| {
        let reservation = format!("reservationname={name}");
        let nodes = format!("nodes={}", names.cluster.nodes()[1].name());
        let what = ["users=alice", "starttime=now", "duration=60", &nodes, "flags=ignore_jobs,overlap"];
        let made = names.scontrol(&[&["create", &reservation][..], &what].concat());
        made.then(|| {
            let done = names.alice(1, &[&format!("--reservation={name}")]);
            names.scontrol(&["delete", &reservation]);
            done
        })
    });
    assert_eq!(names.failures, [""; 0]);
    cluster.assert_nodes_healthy();
}
