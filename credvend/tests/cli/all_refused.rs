//! A site whose every job is refused although its configuration is valid: `status` and `check-config --online` say why.
//! What needs a real Slurm is in the end-to-end suite.

use std::os::unix::fs::PermissionsExt;

use credvend::attest::squeue::made_up;

use super::munged::Munged;
use super::site::{ARN, Site};

/// What `scontrol show config` prints of a site that enforces accounts, or does not.
fn settings(enforce: &str) -> String {
    format!(
        "Configuration data as of 2026-03-01T11:00:00\nAccountingStorageEnforce = {enforce}\n\
         AccountingStorageType   = accounting_storage/slurmdbd\nClusterName             = lab\n\
         PrivateData             = none\nSlurmUser               = slurm(64030)\n\nSlurmctld(primary) at h is UP\n"
    )
}

/// Makes cluster `lab` one whose made-up Slurm is asked, with these lines more.
fn ask_slurm(site: &Site, more: &str) {
    std::fs::create_dir(site.path("slurm")).unwrap();
    let dir = site.path("slurm").display().to_string();
    for name in ["squeue", "scontrol", "sinfo"] {
        let path = site.path(&format!("slurm/{name}"));
        std::fs::write(&path, format!("#!/bin/sh\nexec cat {dir}/{name}.answer\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let jobs = [made_up::running(8, 1001, "alice", "genomics", "n1"), made_up::running(9, 1001, "alice", "a", "n2")];
    site.write("slurm/squeue.answer", &format!("{}{}", made_up::header(), jobs.concat()));
    site.write("slurm/sinfo.answer", &format!("{:129}NODE_ADDR\n", "NODELIST"));
    site.write("slurm/scontrol.answer", &settings("associations"));
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    let (begin, _) = text.split_once("[[cluster]]").unwrap();
    let check = if more.contains("node-address-check") { "" } else { "node-address-check = \"off\"" };
    let cluster = format!("[[cluster]]\nname = \"lab\"\nslurm-bin = \"{dir}\"\n{check}\n{more}\n");
    site.write("credvend.toml", &format!("{begin}{cluster}"));
}

#[test]
fn a_map_without_projects_is_told() {
    let site = Site::serving();
    let told = "there are no projects: every job is refused";
    for said in [site.done(&["status"]), site.done(&["check-config"])] {
        assert!(!said.contains(told), "{said}");
    }
    site.write("projects.toml", "");
    site.done(&["reload"]);
    for said in [site.done(&["status"]), site.done(&["check-config"])] {
        assert!(said.contains(told), "{said}");
    }
    site.write("projects.toml", &format!("[projects.genomics]\nrole-arn = \"{ARN}\"\nclusters = [\"hpc\"]\n"));
    site.done(&["reload"]);
    for said in [site.done(&["status"]), site.done(&["check-config"])] {
        assert!(said.contains("no project is served there: every job is refused"), "{said}");
    }
}

#[test]
#[cfg_attr(not(munge_as_root), ignore = "needs root, munged and munge")]
fn a_munged_that_is_gone_is_told() {
    let (mut site, munged) = (Site::new(), Munged::start());
    ask_slurm(&site, &format!("munge-socket = {:?}", munged.socket()));
    let told = "no node can prove itself by MUNGE here";
    site.serve();
    // AWS is not there, which is told as a problem of its own; by then munged has been asked.
    site.until("the first look", |site| site.done(&["status"]).contains("AWS"));
    assert!(!site.done(&["status"]).contains(told));
    assert!(!site.run(&["check-config", "--online"]).out.contains(told));
    drop(munged);
    let check = site.run(&["check-config", "--online"]);
    assert!(check.code == 1 && check.out.contains(&format!("problem      cluster lab: {told}")), "{}", check.out);
    assert!(site.stop().success());
    site.serve();
    site.until("status to say it", |site| site.done(&["status"]).contains(told));
}

#[test]
fn accounts_are_called_enforced_only_where_they_are() {
    let site = Site::new();
    ask_slurm(&site, "trust-unenforced-accounts = true");
    let check = || site.run(&["check-config", "--online"]).out;
    assert!(check().contains("cluster lab  answers, and enforces accounts\n"), "{}", check());
    site.write("slurm/scontrol.answer", &settings("none"));
    let said = check();
    assert!(
        said.contains("cluster lab  answers, and does not enforce accounts: AccountingStorageEnforce is"),
        "{said}"
    );
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &text.replace("trust-unenforced-accounts = true", ""));
    let said = check();
    assert!(
        said.contains("problem      cluster lab does not enforce accounts") && !said.contains("lab  answers"),
        "{said}"
    );
}

#[test]
fn nodes_whose_address_cannot_be_compared_are_named() {
    for (check, word) in [("require", "problem"), ("warn", "warning")] {
        let site = Site::new();
        ask_slurm(&site, &format!("node-address-check = \"{check}\"\nnode-addresses = {{ n3 = \"10.0.0.3\" }}"));
        let rows = [("n1", "127.0.1.1"), ("n2", "10.0.0.2"), ("n3", "127.0.1.1"), ("n4", "no-such-host.invalid")];
        let rows: String = rows.map(|(name, address)| format!("{name:129}{address}\n")).concat();
        site.write("slurm/sinfo.answer", &format!("{:129}NODE_ADDR\n{rows}", "NODELIST"));
        let said = site.run(&["check-config", "--online"]).out;
        let finding = "cluster lab: Slurm has no address of 2 nodes that could be compared";
        let line = said.lines().find(|line| line.contains(finding)).unwrap_or_else(|| panic!("{said}"));
        assert!(line.starts_with(word), "{line}");
        assert!(line.contains("n1 (127.0.1.1: a loopback address here), n4 ("), "{line}");
        assert!(!line.contains("n2 (") && !line.contains("n3 ("), "{line}");
        assert_eq!(said.contains("lab  answers"), check == "warn", "{said}");
    }
}

#[test]
fn what_the_running_service_knows_is_part_of_the_check() {
    let mut site = Site::serving();
    let text = std::fs::read_to_string(site.path("projects.toml")).unwrap();
    site.write("projects.toml", "not = \"a project\"\n");
    assert_eq!(site.run(&["reload"]).code, 1);
    site.write("projects.toml", &text);
    let said = site.run(&["check-config", "--online"]).out;
    assert!(said.contains("service      runs here; its store: ok"), "{said}");
    assert!(said.contains("service      warning: the last reload left the old in force"), "{said}");
    // Its store is gone; a new one would be made at the next start.
    std::fs::rename(site.path("state/credvend.sqlite"), site.path("aside")).unwrap();
    let said = site.run(&["check-config", "--online"]).out;
    assert!(said.contains("service      runs here; its store: ") && said.contains("was deleted"), "{said}");
    assert!(site.stop().success());
    assert!(site.run(&["check-config", "--online"]).out.contains("service      none answers at"));
}
