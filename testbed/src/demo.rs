//! `make demo`: a tour that says what it does, shows what comes out, and checks it.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::host::Output;
use crate::plan::Plan;
use crate::users::AsUser;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the tour on a cluster of its own.
pub fn run() -> Result<()> {
    let started = std::time::Instant::now();
    say("A private Slurm cluster: a head, two nodes, accounting, a pretend AWS. Nothing of this machine is touched.");
    let cluster = Cluster::up(Plan::default())?;
    note(&format!(
        "up in {:.1} s, everything of it in {}",
        started.elapsed().as_secs_f32(),
        cluster.run_dir().display()
    ));

    let (alice, bob) = (Person::new(&cluster, "alice"), Person::new(&cluster, "bob"));
    who_is_who(&alice, &bob)?;
    what_they_may_read(&alice, &bob)?;
    what_aws_saw(&cluster)?;
    a_stolen_token(&alice, &bob)?;
    the_admins_view(&cluster)?;
    say("That was it. The cluster goes away now.");
    Ok(())
}

/// A user, by whom commands are shown and run.
struct Person {
    name: &'static str,
    login: AsUser,
}

impl Person {
    fn new(cluster: &Cluster, name: &'static str) -> Self {
        Person { name, login: cluster.as_user(name) }
    }

    /// Shows a shell line, runs it, shows what it printed.
    fn types(&self, line: &str) -> Output {
        show_command(&format!("{}@head$ {line}", self.name));
        let output = self.login.run(&["bash", "-c", line]);
        show_output(&output);
        output
    }
}

fn who_is_who(alice: &Person, bob: &Person) -> Result<()> {
    say("Alice works in project genomics, Bob in climate. Neither has configured anything. Who are they in AWS?");
    const WHO: &str = "aws sts get-caller-identity --query Arn --output text";
    let seen = alice.types(&format!("srun -N2 {WHO}"));
    for node in ["n1", "n2"] {
        expect(&seen, &format!("assumed-role/genomics/lab-alice-{node}"))?;
    }
    let seen = bob.types(&format!("srun -w n1 {WHO}"));
    expect(&seen, "assumed-role/climate/lab-bob-n1")?;
    say("The project is the Slurm account of the job; with another one of hers Alice is somebody else.");
    let seen = alice.types(&format!("srun -w n2 --account=shared {WHO}"));
    expect(&seen, "assumed-role/shared/lab-alice-n2")?;
    say("A project that is not hers is refused by Slurm itself.");
    let seen = alice.types(&format!("srun --account=climate {WHO}"));
    ensure!(!seen.ok(), "Slurm should have refused the account");
    Ok(())
}

fn what_they_may_read(alice: &Person, bob: &Person) -> Result<()> {
    say("Each project's role opens its own bucket and no other.");
    let seen = alice.types("srun aws s3 cp s3://genomics-data/hello.txt -");
    expect(&seen, "data of genomics")?;
    let seen = alice.types("srun aws s3 cp s3://climate-data/hello.txt -");
    ensure!(!seen.ok(), "genomics read climate's data");
    let seen = bob.types("srun aws s3 cp s3://climate-data/hello.txt -");
    expect(&seen, "data of climate")?;
    say("In a batch job as well, of course.");
    let script = "aws sts get-caller-identity --query Arn --output text; srun aws s3 ls s3://genomics-data/";
    show_command(&format!("alice@head$ sbatch --wrap '{script}'"));
    let job = alice.login.sbatch(script, &["-w", "n1"])?;
    alice.login.wait_job(job, PATIENCE)?;
    let printed = alice.login.job_output(job);
    show_lines(&printed);
    ensure!(printed.contains("assumed-role/genomics/lab-alice-n1") && printed.contains("hello.txt"), "the batch job");
    Ok(())
}

fn what_aws_saw(cluster: &Cluster) -> Result<()> {
    say("So much for what the clients print. AWS keeps a log of its own: who asked for which role, under which name.");
    let service = &cluster.aws().made().access_key_id;
    let mut lines = Vec::new();
    for request in cluster.aws().requests()? {
        let by = if request.access_key_id == *service { "credvend" } else { &request.access_key_id };
        match &*request.action {
            "AssumeRole" => lines.push(format!(
                "{} {by:<20} AssumeRole  {} as {}",
                request.time,
                request.parameter("RoleArn").unwrap_or_default(),
                request.parameter("RoleSessionName").unwrap_or_default()
            )),
            "GetCallerIdentity" if by.starts_with("ASIA") => {
                lines.push(format!("{} {by:<20} GetCallerIdentity", request.time));
            }
            action if request.service == "s3" && by.starts_with("ASIA") => {
                lines.push(format!("{} {by:<20} {action}", request.time));
            }
            _ => {}
        }
    }
    show_lines(&lines.join("\n"));
    for (role, name) in [("genomics", "lab-alice-n1"), ("genomics", "lab-alice-n2"), ("climate", "lab-bob-n1")] {
        ensure!(
            lines.iter().any(|line| line.contains(&format!("role/projects/{role} as {name}"))),
            "AWS saw nobody assume {role} as {name}"
        );
    }
    Ok(())
}

fn a_stolen_token(alice: &Person, bob: &Person) -> Result<()> {
    say(
        "A job's environment holds a token for its node. Suppose Alice prints it, and Bob, on that very node, tries it.",
    );
    let script = "echo \"$AWS_CONTAINER_CREDENTIALS_FULL_URI $AWS_CONTAINER_AUTHORIZATION_TOKEN\"; sleep 600";
    let job = alice.login.sbatch(script, &["-w", "n1"])?;
    let printed = alice.login.wait_job_output(job, "\n", PATIENCE)?;
    let (uri, token) = printed.trim().split_once(' ').unwrap_or_default();
    ensure!(uri.starts_with("http://127.0.0.1:") && !token.is_empty(), "the job printed {printed:?}");
    let ask = format!("curl -s -w '\\nHTTP status %{{http_code}}\\n' -H 'Authorization: {token}' '{uri}'");
    let shown = ask.replace(token, "STOLEN").replace("-w '\\nHTTP status %{http_code}\\n' ", "");
    let as_person = |who: &Person, arguments: &[&str]| {
        show_command(&format!("{}@head$ srun {} {shown}", who.name, arguments.join(" ")));
        let mut all = arguments.to_vec();
        all.extend(["bash", "-c", &ask]);
        who.login.srun(&all)
    };
    let seen = as_person(bob, &["-w", "n1"]);
    show_output(&seen);
    expect(&seen, "HTTP status 403")?;

    say(
        "Alice herself, in her job on that node, gets credentials by it (not shown). When the job has ended, nobody does.",
    );
    let overlap = ["--overlap".to_owned(), format!("--jobid={job}")];
    let seen = as_person(alice, &[&overlap[0], &overlap[1]]);
    expect(&seen, "HTTP status 200")?;
    note("HTTP status 200");
    alice.types(&format!("scancel {job}"));
    alice.login.wait_job(job, PATIENCE)?;
    // The end of the job on its node follows the controller's word by a moment.
    let dead = crate::deadline::wait_for("the token to be dead", PATIENCE, || {
        let mut arguments = vec!["-w", "n1", "bash", "-c"];
        arguments.push(&ask);
        Some(alice.login.srun(&arguments)).filter(|seen| !seen.stdout.contains("HTTP status 200"))
    })?;
    show_command(&format!("alice@head$ srun -w n1 {shown}"));
    show_output(&dead);
    expect(&dead, "HTTP status 40")
}

fn the_admins_view(cluster: &Cluster) -> Result<()> {
    say("And the administrator sees every session.");
    show_command("root@head# credvend session list");
    let seen = cluster.head().run_as_root("credvend session list");
    show_output(&seen);
    ensure!(seen.ok(), "credvend session list failed");
    cluster.assert_nodes_healthy();
    Ok(())
}

fn expect(seen: &Output, text: &str) -> Result<()> {
    ensure!(seen.stdout.contains(text) || seen.stderr.contains(text), "expected {text:?}, saw {seen:?}");
    Ok(())
}

fn say(text: &str) {
    emit(&format!("\n{}\n", styled("1", text)));
}

fn note(text: &str) {
    emit(&format!("  {text}\n"));
}

fn show_command(line: &str) {
    emit(&format!("  {}\n", styled("36", line)));
}

fn show_output(output: &Output) {
    show_lines(&output.stdout);
    show_lines(&output.stderr);
}

fn show_lines(text: &str) {
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        emit(&format!("    {line}\n"));
    }
}

fn emit(text: &str) {
    let mut out = std::io::stdout();
    // Nobody reads any more: the tour goes on to its end all the same.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn styled(code: &str, text: &str) -> String {
    use std::io::IsTerminal;
    if std::io::stdout().is_terminal() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}
