//! The service itself: how it starts, what it tells the service manager, how it stops.

use std::process::Stdio;

use nix::sys::signal::Signal;

use super::site::{DEADLINE, SECRET, Site};

#[test]
fn serve_prints_the_pin_and_stops_when_told() {
    let mut site = Site::serving();
    let pin = site.json(&["pin", "--json"])["pin"].as_str().unwrap().to_owned();
    assert!(pin.len() == 71 && site.log().contains(&format!("pin = \"{pin}\"")), "{}", site.log());
    assert!(site.done(&["status"]).contains("store ok"));
    let again = site.run(&["serve"]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("another credvend listens there"), "{}", again.err);
    let id = site.serve.as_ref().unwrap().id();
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert!(site.stop().success());
    assert!(!site.path("run/admin.sock").exists());
    for secret in [SECRET, "not-a-real-key"] {
        assert!(!site.log().contains(secret));
    }
    let said = site.run(&["status"]);
    assert!(said.code == 1 && said.err.contains("is `credvend serve` running?"), "{}", said.err);
}

#[test]
fn the_service_manager_is_told_and_every_line_of_the_log_can_be_json() {
    let mut site = Site::new();
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &format!("{text}[log]\nformat = \"json\"\nfilter = \"debug\"\n"));
    let manager = std::os::unix::net::UnixDatagram::bind(site.path("notify")).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let told = || {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes).expect("nothing was told within the deadline");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let log = std::fs::File::create(site.path("log")).unwrap();
    let mut serve = site.command(&["serve"]);
    serve.env("NOTIFY_SOCKET", site.path("notify")).stdout(Stdio::null()).stderr(log);
    site.serve = Some(serve.spawn().unwrap());
    assert_eq!(told().trim_end(), "READY=1");
    assert!(site.done(&["status"]).contains("store ok"), "ready means that it answers");
    std::net::TcpStream::connect(("127.0.0.1", site.port)).unwrap();
    site.write("projects.toml", "not = \"a\\nproject\"\n");
    site.signal(Signal::SIGHUP);
    site.until("the complaint", |site| site.log().contains("not reloaded"));
    site.signal(Signal::SIGTERM);
    assert_eq!(told().trim_end(), "STOPPING=1");
    assert!(site.serve.take().unwrap().wait().unwrap().success());
    let log = site.log();
    for line in log.lines() {
        let said: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let texts = [&said["timestamp"], &said["level"], &said["target"], &said["fields"]["message"]];
        assert!(texts.iter().all(|text| text.is_string()), "{line}");
    }
    for message in ["ready", "stopping"] {
        assert!(log.contains(&format!("\"message\":\"{message}\"")), "{message}: {log}");
    }
}
