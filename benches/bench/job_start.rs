//! What a job's start costs on a real cluster: `srun true` with and without everything of ours, the plugin's own time
//! in its hooks, and how long after the prolog the session is open at credvend.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use testbed::{Cluster, Plan, wait_for};

use crate::figure::Figure;
use crate::plugin_object::example;
use crate::sample::Sample;
use crate::scratch;

const PAIRS: usize = 60;
const JOBS: usize = 24;
/// After `srun` has returned, the job's end still keeps daemons busy: that must not fall into the other cluster's turn.
const PAUSE: Duration = Duration::from_millis(200);

/// Measures on two clusters side by side.
pub fn measure() -> Result<Vec<Figure>> {
    let plan = || Plan { nodes: 1, aws: false, ..Plan::default() };
    let with = Cluster::up(plan()).context("the cluster with the plugin")?;
    let mut figures = {
        let without = Cluster::up(Plan { bare: true, ..plan() }).context("the cluster without the plugin")?;
        sruns(&with, &without)?
    };
    figures.splice(0..0, hooks_and_session(&with)?);
    Ok(figures)
}

#[expect(clippy::disallowed_methods, reason = "a measurement needs quiet between its turns; nothing is waited for")]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// A shell of alice on the login host that times one `srun` for each line it reads, without the cost of getting there.
struct Srun {
    shell: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

const LOOP: &str = "while read -r line; do start=$EPOCHREALTIME; srun -Q -n1 -w n1 $line </dev/null >/dev/null; \
                    code=$?; echo $start $EPOCHREALTIME $code; done";

impl Srun {
    fn on(cluster: &Cluster) -> Result<Self> {
        let mut command = cluster.head().command("alice", &["bash", "-c", LOOP]);
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (ask, answers) = (shell.stdin.take().context("piped")?, shell.stdout.take().context("piped")?);
        Ok(Srun { shell, ask, answers: BufReader::new(answers) })
    }

    fn start(&mut self, what: &str) -> Result<()> {
        Ok(writeln!(self.ask, "{what}")?)
    }

    /// Milliseconds.
    fn finish(&mut self) -> Result<f64> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let words: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [start, end, code] = words[..] else { anyhow::bail!("the shell said {line:?}") };
        ensure!(code == 0.0, "srun failed with {code}");
        Ok((end - start) * 1000.0)
    }

    fn run(&mut self, what: &str) -> Result<f64> {
        self.start(what)?;
        let took = self.finish();
        pause();
        took
    }
}

impl Drop for Srun {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

fn sruns(with: &Cluster, without: &Cluster) -> Result<Vec<Figure>> {
    let mut shells = [Srun::on(with)?, Srun::on(without)?];
    let mut times = [Sample::default(), Sample::default()];
    for shell in &mut shells {
        for _ in 0..3 {
            shell.run("true")?;
        }
    }
    for pair in 0..PAIRS {
        for turn in [pair % 2, 1 - pair % 2] {
            times[turn].push(shells[turn].run("true")?);
        }
    }
    let [with, without] = times;
    let pairwise = with.ratios(&without);
    Ok(vec![
        Figure::new("srun true, with ÷ without", with.median() / without.median(), "").at_most(1.03).detail(format!(
            "medians {:.1} and {:.1} ms of {PAIRS} pairs; quartiles {:.1}–{:.1} and {:.1}–{:.1}",
            with.median(),
            without.median(),
            with.quantile(0.25),
            with.quantile(0.75),
            without.quantile(0.25),
            without.quantile(0.75)
        )),
        Figure::new("the same, median of the pairs' ratios", pairwise.median(), ""),
    ])
}

/// A line of the clock plugin.
struct Tick {
    job: u32,
    milliseconds: f64,
    /// Seconds since 1970.
    start: f64,
}

fn hooks_and_session(cluster: &Cluster) -> Result<Vec<Figure>> {
    let times = put_clocks_around(cluster)?;
    let mut shell = Srun::on(cluster)?;
    let jobs_dir = cluster.node("n1").path("/run/credd/jobs");
    let mut files = HashMap::new();
    for _ in 0..JOBS {
        shell.start("sleep 0.4")?;
        let (job, at) = session_file(&jobs_dir, &files)?;
        files.insert(job, at);
        shell.finish()?;
        pause();
    }
    let ticks = read(&times)?;
    let of = |hook: &str| ticks.get(hook).map_or(&[][..], Vec::as_slice);
    let prolog: Sample = of("job_prolog").iter().map(|tick| tick.milliseconds).collect();
    let init: HashMap<u32, f64> = of("init").iter().map(|tick| (tick.job, tick.milliseconds)).collect();
    let step: Sample =
        of("init_post_opt").iter().filter_map(|tick| Some(tick.milliseconds + init.get(&tick.job)?)).collect();
    let known: Sample =
        of("job_prolog").iter().filter_map(|tick| Some((files.get(&tick.job)? - tick.start) * 1000.0)).collect();
    let log = opened_in_log(&cluster.credvend().log());
    let open: Sample =
        of("job_prolog").iter().filter_map(|tick| Some((log.get(&tick.job)? - tick.start) * 1000.0)).collect();
    for (name, sample) in [("job_prolog", &prolog), ("init_post_opt", &step), ("session file", &known)] {
        ensure!(sample.len() >= 20, "only {} values of {name}", sample.len());
    }
    let spread = |sample: &Sample| {
        format!("{} jobs; quartiles {:.3}–{:.3}", sample.len(), sample.quantile(0.25), sample.quantile(0.75))
    };
    let mut figures = vec![
        Figure::new("init + init_post_opt in a step's slurmstepd, median", step.median(), "ms")
            .at_most(0.3)
            .detail(spread(&step)),
        Figure::new("job_prolog, median", prolog.median(), "ms").at_most(1.0).detail(spread(&prolog)),
        Figure::new("from job_prolog to the session's UUID on the node", known.median(), "ms")
            .at_most(25.0)
            .detail(spread(&known)),
    ];
    if open.len() >= 20 {
        let figure = Figure::new("from job_prolog to credvend's log line of the open", open.median(), "ms");
        figures.push(figure.at_most(25.0).detail(spread(&open)));
    }
    Ok(figures)
}

/// Rewrites `plugstack.conf`; steps and prologs read it anew.
fn put_clocks_around(cluster: &Cluster) -> Result<PathBuf> {
    let dir = scratch::dir("clock")?;
    let clock = example("libspank_clock.so")?;
    let (first, last, times) = (dir.join("clock_first.so"), dir.join("clock_last.so"), dir.join("times"));
    fs::copy(&clock, &first)?;
    fs::copy(&clock, &last)?;
    let file = cluster.run_dir().join("etc/slurm/plugstack.conf");
    let ours = fs::read_to_string(&file)?;
    let (first, last) = (first.display(), last.display());
    fs::write(&file, format!("required {first} first\n{ours}required {last} last {}\n", times.display()))?;
    Ok(times)
}

fn read(times: &Path) -> Result<HashMap<String, Vec<Tick>>> {
    /// `SLURM_EXTERN_CONT` and its neighbours: steps without tasks of the job.
    const FIRST_SPECIAL: u32 = 0xffff_fff0;
    let text = fs::read_to_string(times).with_context(|| format!("{}: the clocks told nothing", times.display()))?;
    let mut ticks: HashMap<String, Vec<Tick>> = HashMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [hook, job, step, nanoseconds, start] = words[..] else { continue };
        if step.parse::<u32>()? >= FIRST_SPECIAL {
            continue;
        }
        ticks.entry(hook.to_owned()).or_default().push(Tick {
            job: job.parse()?,
            milliseconds: nanoseconds.parse::<f64>()? / 1e6,
            start: start.parse::<f64>()? / 1e9,
        });
    }
    Ok(ticks)
}

/// Waits for the next job's session file, and gives the time of its last change in seconds since 1970.
fn session_file(jobs: &Path, known: &HashMap<u32, f64>) -> Result<(u32, f64)> {
    wait_for("the session of the next job", Duration::from_secs(10), || {
        fs::read_dir(jobs).ok()?.flatten().find_map(|entry| {
            let job: u32 = entry.file_name().to_str()?.parse().ok()?;
            let modified = fs::metadata(entry.path().join("session")).ok()?.modified().ok()?;
            let at = modified.duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
            (!known.contains_key(&job)).then_some((job, at))
        })
    })
}

/// When credvend's log says that each job's session was opened, in seconds since 1970.
fn opened_in_log(log: &str) -> HashMap<u32, f64> {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    let mut found = HashMap::new();
    for line in log.lines().filter(|line| line.contains("session opened")) {
        let at = line.split_whitespace().next().and_then(|word| OffsetDateTime::parse(word, &Rfc3339).ok());
        let job = line.split_whitespace().find_map(|word| word.strip_prefix("job=")?.parse().ok());
        if let (Some(at), Some(job)) = (at, job) {
            found.entry(job).or_insert(at.unix_timestamp_nanos() as f64 / 1e9);
        }
    }
    found
}
