//! Where credvend takes its own credentials from, and that no metadata service is asked unless allowed.
//!
//! The SDK reads environment variables, so each case runs in a process of its own: this test binary once more, with
//! `report` alone.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use credvend::source::aws::{Aws, AwsOptions};

#[tokio::test]
#[ignore = "the other tests of this file run it in processes of their own"]
async fn report() {
    let mut options = AwsOptions::new("us-east-1".parse().unwrap());
    // Nothing listens on the discard port: having credentials shows as a failed connection.
    options.sts_endpoint = Some("http://127.0.0.1:9".into());
    options.attempts = 1;
    options.allow_instance_metadata = std::env::var_os("ALLOW").is_some();
    println!("report: {:?}", Aws::load(options).await.identity().await);
}

/// What credvend says of its identity with this environment.
fn report_with(environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "report", "--ignored", "--nocapture"]).env_clear().env("HOME", "/nonexistent");
    let said = command.envs(environment.iter().copied()).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let line = said.lines().find(|line| line.contains("report: ")).unwrap_or_else(|| panic!("{said}"));
    line.to_owned()
}

/// A metadata service that knows nothing, and how often it was asked.
fn metadata_service() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    (address, asked)
}

fn config(dir: &Path, text: &str) -> String {
    let path = dir.join("config");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn metadata_services_are_not_asked_unless_allowed() {
    let (address, asked) = metadata_service();
    let (imds, container) = (format!("http://{address}"), format!("http://{address}/credentials"));
    let both = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.as_str()),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.as_str()),
    ];
    let report = report_with(&both);
    assert!(report.contains("allow-instance-metadata"), "{report}");
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    // Nor by way of a profile.
    let dir = tempfile::tempdir().unwrap();
    for source in ["Ec2InstanceMetadata", "EcsContainer"] {
        let text = format!(
            "[default]\nrole_arn = arn:aws:iam::123456789012:role/credvend\ncredential_source = {source}\nregion = us-east-1\n"
        );
        let file = config(dir.path(), &text);
        let report = report_with(&[both[0], both[1], ("AWS_CONFIG_FILE", &file)]);
        assert!(report.contains("allow-instance-metadata"), "{source}: {report}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    report_with(&[both[0], ("ALLOW", "1")]);
    assert!(asked.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_slow_process_of_a_profile_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), "[default]\ncredential_process = /bin/sleep 30\n");
    let report = report_with(&[("AWS_CONFIG_FILE", &file), ("PATH", "/usr/bin:/bin")]);
    assert!(report.contains("own credentials") && report.contains("credential_process"), "{report}");
    assert!(!report.contains("did not answer") && !report.contains("does not answer"), "{report}");
}

#[test]
fn environment_and_profiles_give_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let process = "[default]\ncredential_process = /bin/echo {\"Version\":1,\"AccessKeyId\":\"AKIAEXAMPLE\",\"SecretAccessKey\":\"x\"}\n";
    let keys = "[profile vend]\naws_access_key_id = AKIAEXAMPLE\naws_secret_access_key = x\n";
    let plain = [("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "x")];
    let process = config(dir.path(), &process.replace('"', "\\\""));
    let report = report_with(&plain);
    assert!(report.contains("AWS STS does not answer"), "{report}");
    let report = report_with(&[("AWS_CONFIG_FILE", &process), ("PATH", "/usr/bin:/bin")]);
    assert!(report.contains("AWS STS does not answer"), "{report}");
    let profile = config(dir.path(), keys);
    let report = report_with(&[("AWS_CONFIG_FILE", &profile), ("AWS_PROFILE", "vend")]);
    assert!(report.contains("AWS STS does not answer"), "{report}");
}
