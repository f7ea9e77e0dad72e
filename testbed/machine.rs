// What a machine needs so that a test cluster can run on it. Included by build scripts, which tell the tests, and by
// the testbed itself, which tells people.

/// Programs, and the Debian packages they come from.
const PROGRAMS: [(&str, &str); 12] = [
    ("slurmctld", "slurmctld"),
    ("slurmd", "slurmd"),
    ("slurmdbd", "slurmdbd"),
    ("srun", "slurm-client"),
    ("munged", "munge"),
    ("mariadbd", "mariadb-server"),
    ("mariadb-install-db", "mariadb-server"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("bash", "bash"),
    ("python3", "python3-venv"),
];

/// What the tests of MPI's launchers need besides.
const LAUNCHERS: [&str; 2] = ["mpiexec.hydra", "mpirun.openmpi"];

/// Where system programs are, whatever `PATH` says.
const PLACES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Everything that stands in the way of a cluster; empty if nothing does.
pub fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    if !is_root() {
        missing.push("not root: network namespaces and job users need it".to_owned());
    }
    for (program, package) in PROGRAMS {
        if !is_there(program) {
            missing.push(format!("no {program} (Debian package {package})"));
        }
    }
    missing
}

fn is_there(program: &str) -> bool {
    PLACES.iter().any(|place| std::path::Path::new(place).join(program).exists())
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0")
}

/// The library that tells a program another time, from Debian's package libfaketime.
pub fn faketime() -> Option<std::path::PathBuf> {
    let directories = std::fs::read_dir("/usr/lib").ok()?.flatten();
    directories.map(|entry| entry.path().join("faketime/libfaketime.so.1")).find(|library| library.exists())
}

/// For build scripts: sets `cfg(has_cluster)`, or warns why not; and where these are, too, `cfg(has_mpi)` for MPI's launchers and
/// `cfg(has_faketime)` for [`faketime`]. `this` is this file, as the build script includes it.
#[allow(dead_code, reason = "the testbed itself needs the list alone")]
fn tell_cargo(this: &str) {
    println!("cargo::rustc-check-cfg=cfg(has_cluster, has_mpi, has_faketime)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={this}");
    println!("cargo::rerun-if-env-changed=USER");
    let mut missing = missing();
    if missing.is_empty() {
        println!("cargo::rustc-cfg=has_cluster");
        if faketime().is_some() {
            println!("cargo::rustc-cfg=has_faketime");
        } else {
            println!("cargo::rerun-if-changed=look-again");
            println!("cargo::warning=the test of a wrong clock is ignored here: no libfaketime (Debian's libfaketime)");
        }
        missing.extend(LAUNCHERS.iter().filter(|name| !is_there(name)).map(|name| format!("no {name}")));
        if missing.is_empty() {
            return println!("cargo::rustc-cfg=has_mpi");
        }
        println!("cargo::rerun-if-changed=look-again");
        println!("cargo::warning=tests of MPI's launchers are ignored here: {} (Debian's mpich, openmpi-bin)", missing.join("; "));
    } else {
        // Something that never exists: looked at again at every build, until nothing is missing.
        println!("cargo::rerun-if-changed=look-again");
        println!("cargo::warning=tests on a real cluster are ignored here: {}", missing.join("; "));
    }
}
