//! `docs/openapi.yaml` against the program itself: schemathesis, of PyPI, makes requests of what the document says, and of
//! what it does not say, and compares every answer with it. It is deterministic, so that each run asks the same.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::program::Program;
use super::world::{SECRET, opening};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.yaml");
const EVENT_LINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testbed/openapi/event_lines.py");
const HOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testbed/openapi/hooks.py");

/// Runs schemathesis with this configuration over the operations of a tag.
async fn ask(program: &Program, tag: &str, config: &str) {
    // 503 is described: Slurm or AWS do not answer in time. The other checks see that it says so as it should.
    let common = "workers = 1\nrequest-timeout = 60.0\ncontinue-on-failure = true\n\
         [generation]\nmax-examples = 15\ndeterministic = true\ndatabase = \"none\"\ncodec = \"ascii\"\nno-shrink = true\n\
         with-security-parameters = false\n\
         [phases.stateful]\nenabled = false\n\
         [checks.not_a_server_error]\nexpected-statuses = [\"2xx\", \"3xx\", \"4xx\", \"503\"]\n";
    let file = program.path(&format!("{tag}.toml"));
    let (own, tables) = config.split_at(config.find('[').unwrap_or(config.len()));
    std::fs::write(&file, format!("{own}hooks = \"{HOOKS}\"\n{common}{tables}")).unwrap();
    let schemathesis = Path::new(option_env!("SCHEMATHESIS_FOUND").unwrap_or("schemathesis"));
    let mut command = Command::new(schemathesis);
    command
        .args(["--no-color", "--config-file"])
        .arg(&file)
        .args(["run", DOCUMENT, "--include-tag", tag])
        // Its answer does not end.
        .args(["--exclude-path", "/node/v1/stream"])
        .current_dir(program.dir.path())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", program.dir.path())
        .env("COLUMNS", "160")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tag}: {said}\n{}", program.log().lines().rev().take(20).collect::<String>());
    // What it did, for whoever reads the test's output.
    println!("{tag}: {}", said.lines().skip_while(|line| !line.contains("SUMMARY")).collect::<Vec<_>>().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_schemathesis), ignore = "needs schemathesis and ministack: `make test` installs them from PyPI")]
async fn the_program_answers_as_its_openapi_document_says() {
    let program = Program::start().await;
    let node = program.certificate("credd:node:lab:n1");
    let anybody = program.client(None);
    let send = async |request: reqwest::RequestBuilder| -> Value {
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{status} {text}: {}", program.log());
        serde_json::from_str(&text).unwrap()
    };
    let post = |client: &reqwest::Client, url: String, body: String| {
        client.post(url).header("content-type", "application/json").body(body)
    };
    // Something of each kind, so that there is something to show: a head's sessions, a node's, a revocation.
    let sessions = format!("{}/sessions", program.url());
    let open = async |body: String| send(post(&anybody, sessions.clone(), body).header("authorization", SECRET)).await;
    let token = |answer: &Value| answer["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap().to_owned();
    let zed = token(&open(opening("1299", "2026-03-01T10:00:00").replace("alice", "zed")).await);
    let path = format!("{sessions}/1299/cluster/lab/project/genomics");
    send(anybody.get(path).header("authorization", zed)).await;
    let body = json!({ "job": 7, "restart": 0, "uid": 1001, "account": "genomics" }).to_string();
    let opened = send(post(&program.client(Some(&node)), format!("{}/node/v1/sessions", program.url()), body)).await;
    let session = opened["session"].as_str().unwrap();
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "subject": { "user": "zed" }, "why": "a test" }).to_string();
    let revoked = send(post(&plain, format!("{}/admin/v1/revocations", program.admin_url()), body)).await;
    let revocation = revoked["id"].as_str().unwrap();

    let over_tls =
        format!("base-url = \"{}\"\ntls-verify = \"{}\"\n", program.url(), program.path("state/server.crt").display());
    ask(&program, "probes", &over_tls).await;
    let config = format!(
        "{over_tls}request-cert = \"{}\"\n[checks.ignored_auth]\nenabled = false\n\
         [[operations]]\ninclude-operation-id = [\"jobCredentials\", \"leaveSession\"]\n\
         parameters = {{ \"path.session\" = \"{session}\" }}\n",
        node.display()
    );
    ask(&program, "node", &config).await;
    // What a cursor looks like is the store's business, so a made-up one is rightly refused.
    let from = "checks.positive_data_acceptance.expected-statuses = [\"2xx\", \"400\", \"404\"]";
    let config = format!(
        "base-url = \"{}\"\n[checks.ignored_auth]\nenabled = false\n\
         [[operations]]\ninclude-operation-id = [\"listSessions\", \"listRevocations\"]\n{from}\n\
         [[operations]]\ninclude-operation-id = \"showSession\"\nparameters = {{ \"path.session\" = \"{session}\" }}\n{from}\n\
         [[operations]]\ninclude-operation-id = \"showRevocation\"\nparameters = {{ \"path.id\" = \"{revocation}\" }}\n",
        program.admin_url()
    );
    ask(&program, "admin", &config).await;
    let token = token(&open(opening("1301", "2026-03-01T11:00:00")).await);
    let config = format!(
        "{over_tls}headers = {{ Authorization = \"{SECRET}\" }}\n\
         [[operations]]\ninclude-operation-id = \"sessionCredentials\"\nheaders = {{ Authorization = \"{token}\" }}\n\
         parameters = {{ \"path.sessionId\" = \"1301\" }}\n",
    );
    ask(&program, "v1", &config).await;

    let stream = format!("{}/node/v1/stream", program.url());
    let mut stream = program.client(Some(&node)).get(stream).send().await.unwrap();
    let mut lines = stream.chunk().await.unwrap().unwrap().to_vec();
    send(plain.post(format!("{}/admin/v1/sessions/{session}/close", program.admin_url()))).await;
    while lines.iter().filter(|byte| **byte == b'\n').count() < 2 {
        lines.extend(stream.chunk().await.unwrap().expect("the stream goes on"));
    }
    assert!(String::from_utf8_lossy(&lines).contains("\"invalidated\""), "{}", String::from_utf8_lossy(&lines));
    compare_events(&program, &lines);
}

/// What schemathesis does not look at: lines of the nodes' stream.
fn compare_events(program: &Program, lines: &[u8]) {
    let file = program.path("lines");
    std::fs::write(&file, lines).unwrap();
    let python = Path::new(option_env!("SCHEMATHESIS_FOUND").unwrap_or("schemathesis")).with_file_name("python3");
    let output =
        Command::new(python).args([EVENT_LINES, DOCUMENT]).stdin(std::fs::File::open(file).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}: {}", String::from_utf8_lossy(lines), String::from_utf8_lossy(&output.stderr));
}
