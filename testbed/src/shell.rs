//! `make demo-shell`: a cluster, and a shell in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::plan::Plan;

/// Brings a cluster up and runs an interactive shell of alice's on the head; the cluster ends with the shell.
pub fn run(plan: Plan) -> Result<()> {
    let cluster = Cluster::up(plan)?;
    let enter = write_enter(&cluster)?;
    let run = cluster.run_dir().display();
    println!(
        "\nYou are alice on the head of a private cluster. Try:\n\
         \n  sinfo; sacctmgr -n show assoc format=user,account,partition\n  srun -N2 aws sts get-caller-identity\n  \
         srun aws s3 cp s3://genomics-data/hello.txt -\n  srun --account=shared aws sts get-caller-identity\n  \
         srun -p debug env        (a partition without us)\n  srun --help | grep -A1 aws\n\
         \nOther people and hosts, as root in another terminal:\n\
         \n  {enter} head bob\n  {enter} n1 root\n  {enter} head root credvend session list\n  {enter} aws root\n\
         \nLogs: {run}/log. `exit` ends the cluster.\n",
        enter = enter.display(),
    );
    let rc = cluster.head().layout_file("bashrc", "PS1='\\u@\\h:\\w\\$ '\n")?;
    // Its exit status is that of the last command typed, which is nobody's concern.
    cluster.head().command_with("alice", &terminal(), &["bash", "--rcfile", &rc, "-i"]).status()?;
    Ok(())
}

/// A script that root may run from anywhere: `enter HOST USER [COMMAND…]`.
pub fn write_enter(cluster: &Cluster) -> Result<PathBuf> {
    let path = cluster.run_dir().join("enter");
    let mut cases = String::new();
    for host in cluster.hosts() {
        cases.push_str(&format!("    {}) pid={} ;;\n", host.name(), host.pid()));
    }
    let mut environment = String::new();
    for (name, value) in cluster.head().login_environment("root") {
        if !matches!(&*name, "HOME" | "USER" | "LOGNAME") {
            environment.push_str(&format!(" '{name}={value}'"));
        }
    }
    fs::write(
        &path,
        format!(
            "#!/bin/bash\n# A command, or a shell, as a user on a host of this cluster.\n\
             case \"$1\" in\n{cases}    *) echo \"usage: enter HOST USER [COMMAND...]\" >&2; exit 64 ;;\nesac\n\
             user=${{2:-root}}; shift 2\n[ $# -gt 0 ] || set -- bash -i\n\
             home={run}/home/$user; [ -d \"$home\" ] || home=/\n\
             exec nsenter -t \"$pid\" -m -r -u -n -i -p -- setpriv --reuid=\"$user\" --regid=\"$user\" --init-groups \\\n    \
             env -i -C \"$home\" HOME=\"$home\" USER=\"$user\" LOGNAME=\"$user\" TERM=\"$TERM\"{environment} \"$@\"\n",
            run = cluster.run_dir().display(),
        ),
    )?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(path)
}

fn terminal() -> [(&'static str, &'static str); 1] {
    // What every terminal emulator of today understands; TERM itself may name one this machine does not know.
    [("TERM", "xterm")]
}
