//! The configuration of Slurm and MUNGE.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use anyhow::Result;

use crate::layout::Layout;
use crate::plan::Plan;

/// The head's address.
pub const HEAD: &str = "10.77.0.1";
/// The pretend AWS's address.
pub const AWS: &str = "10.77.0.2";
/// The backup controller's address.
pub const BACKUP: &str = "10.77.0.3";

/// The address of a compute node, counted from 1.
pub fn node_address(nth: usize) -> String {
    format!("10.77.{}.{}", nth / 200, 10 + nth % 200)
}

/// Writes `slurm.conf`, `slurmdbd.conf`, `plugstack.conf`, the plan's scripts, `munge.key` and `hosts`.
pub fn write(layout: &Layout, plan: &Plan) -> Result<()> {
    let dir = layout.etc().join("slurm");
    fs::write(layout.slurm_conf(), slurm_conf(layout, plan))?;
    fs::write(dir.join("plugstack.conf"), plugstack(layout, plan))?;
    for (name, text) in &plan.scripts {
        let path = layout.etc().join(name);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(&path, text.replace("{run}", &layout.run.display().to_string()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    }

    let slurmdbd = dir.join("slurmdbd.conf");
    fs::write(
        &slurmdbd,
        "AuthType=auth/munge\nDbdHost=head\nSlurmUser=slurm\nStorageType=accounting_storage/mysql\n\
         StorageHost=localhost\nStorageUser=slurm\nStorageLoc=slurm_acct_db\nPidFile=/run/slurm/slurmdbd.pid\n",
    )?;
    fs::set_permissions(&slurmdbd, Permissions::from_mode(0o600))?;
    layout.give(&slurmdbd, "slurm")?;

    let key = layout.etc().join("munge.key");
    let mut random = [0; 128];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    fs::write(&key, random)?;
    fs::set_permissions(&key, Permissions::from_mode(0o400))?;
    layout.give(&key, "munge")?;

    let mut hosts = format!("127.0.0.1 localhost\n{HEAD} head\n{AWS} aws\n{BACKUP} backup\n");
    for (nth, name) in (1..).zip(plan.node_names()) {
        hosts.push_str(&format!("{} {name}\n", node_address(nth)));
    }
    fs::write(layout.etc().join("hosts"), hosts)?;
    Ok(())
}

fn slurm_conf(layout: &Layout, plan: &Plan) -> String {
    let run = layout.run.display();
    let mut text = format!(
        "ClusterName={cluster}\n\
         SlurmctldHost=head({HEAD})\n\
         {backup}\n\
         SlurmUser=slurm\n\
         AuthType=auth/munge\n\
         AuthInfo=cred_expire=15\n\
         CredType=cred/munge\n\
         StateSaveLocation={run}/state\n\
         SlurmdSpoolDir={run}/spool/%n\n\
         SlurmctldPidFile=/run/slurm/slurmctld.pid\n\
         SlurmdPidFile=/run/slurm/slurmd.pid\n\
         ProctrackType=proctrack/linuxproc\n\
         TaskPlugin=task/none\n\
         JobAcctGatherType=jobacct_gather/none\n\
         MpiDefault=none\n\
         SwitchType=switch/none\n\
         ReturnToService=2\n\
         SelectType=select/cons_tres\n\
         SelectTypeParameters=CR_Core\n\
         SlurmdParameters=config_overrides\n\
         LaunchParameters=use_interactive_step\n\
         MailProg=/bin/true\n\
         KillWait=2\n\
         {flags}\n\
         PlugStackConfig={run}/etc/slurm/plugstack.conf\n\
         AccountingStorageType=accounting_storage/slurmdbd\n\
         AccountingStorageHost=head\n\
         AccountingStorageEnforce=associations,limits\n",
        cluster = plan.cluster_name,
        backup = if plan.backup_controller { format!("SlurmctldHost=backup({BACKUP})") } else { String::new() },
        flags = if plan.prolog_flags.is_empty() { String::new() } else { format!("PrologFlags={}", plan.prolog_flags) },
    );
    for (nth, name) in (1..).zip(plan.node_names()) {
        text.push_str(&format!(
            "NodeName={name} NodeAddr={} CPUs={} RealMemory=1000\n",
            node_address(nth),
            plan.cpus_per_node
        ));
    }
    for (nth, partition) in plan.partitions.iter().enumerate() {
        let default = if nth == 0 { " Default=YES" } else { "" };
        let name =
            if partition.name.contains(' ') { format!("\"{}\"", partition.name) } else { partition.name.clone() };
        text.push_str(&format!("PartitionName={name} Nodes=ALL{default} {}\n", partition.slurm));
    }
    text.push_str(&plan.slurm_conf.replace("{run}", &run.to_string()));
    text
}

fn plugstack(layout: &Layout, plan: &Plan) -> String {
    let plugin = layout.run.join("lib/spank_credd.so").display().to_string();
    match &plan.plugstack {
        Some(text) => text.replace("{plugin}", &plugin),
        None if plan.bare => String::new(),
        None => {
            let mut line = format!("required {plugin} {}", plan.plugin_options);
            for partition in &plan.partitions {
                if let Some(options) = &partition.plugin {
                    let name = partition.name.replace('%', "%25").replace('=', "%3D").replace(' ', "%20");
                    line.push_str(&format!(" partition:{name}={options}"));
                }
            }
            line + "\n"
        }
    }
}
