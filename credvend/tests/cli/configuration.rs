//! `check-config`, and what keeps the service from starting.

use std::os::unix::fs::PermissionsExt;

use super::site::{ARN, Site};

#[test]
fn a_role_of_another_aws_partition_is_refused() {
    let site = Site::new();
    let foreign = ARN.replace("arn:aws:", "arn:aws-us-gov:");
    let said = site.run(&["project", "set", "climate", "--role-arn", &foreign]);
    assert!(said.code == 78 && said.err.contains("aws-us-gov"), "{}", said.err);
    assert!(site.done(&["check-config"]).contains("is valid"), "nothing was changed");
    site.write("projects.toml", &format!("[projects.genomics]\nrole-arn = \"{foreign}\"\n"));
    for command in ["check-config", "serve"] {
        let said = site.run(&[command]);
        assert_eq!(said.code, 78, "{command}: {}", said.err);
        assert!(said.err.contains("line 2") && said.err.contains("us-east-1"), "{command}: {}", said.err);
    }
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &text.replace("us-east-1", "us-gov-west-1"));
    assert!(site.done(&["check-config"]).contains("is valid"));
}

#[test]
fn checking_the_configuration_leaves_an_older_store_as_it_is() {
    let site = Site::new();
    std::fs::create_dir(site.path("state")).unwrap();
    let path = site.path("state/credvend.sqlite");
    drop(credvend::store::sqlite::SqliteStore::open(&path).unwrap());
    let newest = u32::try_from(credvend::store::sqlite::SCHEMA).unwrap();
    assert!(site.done(&["check-config"]).contains(&format!("is in order, schema {newest}")));
    // As an earlier release left it.
    let version = |set: Option<u32>| -> u32 {
        let db = rusqlite::Connection::open(&path).unwrap();
        if let Some(version) = set {
            db.pragma_update(None, "user_version", version).unwrap();
        }
        db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    };
    version(Some(newest - 1));
    let said = site.done(&["check-config"]);
    assert!(said.contains(&format!("schema {} becomes {newest}", newest - 1)), "{said}");
    assert_eq!(version(None), newest - 1, "nothing is migrated");
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &format!("admin-group = \"no-such-group-here\"\n{text}"));
    let said = site.run(&["check-config"]);
    assert!(said.code == 78 && said.err.contains("no-such-group-here"), "{}", said.err);
}

#[test]
fn a_bad_configuration_is_refused_with_every_problem() {
    let site = Site::new();
    std::fs::set_permissions(site.path("secret"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = site.run(&["serve"]);
    assert_eq!(said.code, 78);
    assert!(said.err.contains("everybody may access it"), "{}", said.err);
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &text.replace("attest", "atest").replace("us-east-1", "US"));
    for command in ["serve", "check-config", "status"] {
        let said = site.run(&[command]);
        assert_eq!(said.code, 78, "{command}");
        assert!(said.err.contains("atest") && said.err.contains("region"), "{command}: {}", said.err);
    }
    assert_eq!(site.run(&["no-such-command"]).code, 2);
}

#[test]
#[cfg_attr(not(own_mounts), ignore = "needs root")]
fn a_group_that_the_service_cannot_give_its_socket_to_is_refused_with_the_remedy() {
    use std::os::unix::process::CommandExt;
    // Somebody without privileges, and in no group but its own; a group that is there on every machine.
    let (nobody, group) = (65_534, "adm");
    let site = Site::new();
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &format!("admin-group = \"{group}\"\n{text}"));
    std::fs::create_dir_all(site.path("state")).unwrap();
    std::fs::create_dir_all(site.path("run")).unwrap();
    let files = ["", "credvend.toml", "projects.toml", "secret", "run"];
    let give = |names: &[&str], to: u32| {
        for path in names.iter().map(|name| site.path(name)) {
            std::os::unix::fs::chown(path, Some(to), Some(to)).unwrap();
        }
    };
    give(&["state"], nobody);
    let remedy = format!("usermod --append --groups {group} nobody");
    let refused = |args: &[&str], uid: u32| {
        let output = site.command(args).uid(uid).gid(uid).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(&remedy), "{args:?} as {uid}: {said}");
    };
    // Root looks on behalf of whoever owns the state.
    refused(&["check-config"], 0);
    give(&files, nobody);
    refused(&["check-config"], nobody);
    refused(&["serve"], nobody);
    let valid = site.command(&["check-config"]).uid(nobody).gid(4).output().unwrap();
    assert!(valid.status.success(), "{}", String::from_utf8_lossy(&valid.stderr));
}

#[test]
fn what_dynamodb_needs_is_said_before_a_site_moves_there() {
    let site = Site::new();
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    // Nobody listens there.
    site.write("credvend.toml", &format!("{text}[store]\nendpoint = \"http://127.0.0.1:1\"\n"));
    let policy = site.json(&["store", "policy", "--account", "123456789012"]);
    assert!(policy.to_string().contains("arn:aws:dynamodb:us-east-1:123456789012:table/credvend-sessions"), "{policy}");
    let init = site.run(&["store", "init"]);
    assert_eq!((init.code, init.out.as_str()), (1, ""), "it makes tables or says why not: {}", init.err);
}
