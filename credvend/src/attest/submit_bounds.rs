//! Whether a cluster bounds the texts that its users put into the environment of prologs and epilogs: the function of
//! `packaging/slurm/job_submit_credd.lua`, and `PrologFlags=Alloc`, without which the texts bypass slurmctld. Without both,
//! a user can have slurmd drain a node.

use std::time::Duration;

use super::command::{CommandError, Commands, Said};

/// Longer than the function allows, and short enough for a command line.
const PROBE_BYTES: usize = 20_000;
/// What the function's refusal begins with, as slurmctld passes it on to sbatch.
const REFUSAL: &str = "credd_check_job: ";
/// What slurmctld says of such a comment, or of a user without an account, when nothing has refused it before. Slurm asks
/// its job_submit plugins first.
const TAKEN: [&str; 2] = ["parameter too long", "Invalid account or account/partition combination"];

const LIMIT: Duration = Duration::from_secs(10);
const STDOUT_BYTES: usize = 1024 * 1024;

/// What a cluster does with overlong texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bounds {
    /// They are refused, and nobody gets around that.
    InForce,
    /// They are not, or it can be got around: why, a sentence.
    Missing(String),
    /// Why it cannot be told.
    Unknown(String),
}

/// Asks slurmctld, as any user may: a submission that only tests (`sbatch --test-only`), with an overlong comment.
pub async fn probe(commands: &Commands) -> Bounds {
    let comment = format!("--comment={}", "x".repeat(PROBE_BYTES));
    let submitted = commands.run("sbatch", &["--test-only", &comment, "--wrap=true"], LIMIT, STDOUT_BYTES).await;
    match submission(submitted) {
        Bounds::InForce => {}
        other => return other,
    }
    match commands.run("scontrol", &["show", "config"], LIMIT, STDOUT_BYTES).await {
        Ok(said) if said.success => prolog_flags(&String::from_utf8_lossy(&said.stdout)),
        Ok(said) => Bounds::Unknown(format!("scontrol: {}", said.complaint())),
        Err(error) => Bounds::Unknown(error.to_string()),
    }
}

fn submission(submitted: Result<Said, CommandError>) -> Bounds {
    let said = match submitted {
        Ok(said) => said,
        Err(error) => return Bounds::Unknown(error.to_string()),
    };
    let text = String::from_utf8_lossy(&said.stderr);
    if text.contains(REFUSAL) && !said.success {
        return Bounds::InForce;
    }
    if said.success || TAKEN.iter().any(|words| text.contains(words)) {
        return Bounds::Missing("its job_submit.lua does not call credd_check_job".into());
    }
    Bounds::Unknown(format!("sbatch --test-only: {}", said.complaint()))
}

/// Flags that are `Alloc` or imply it are listed with it (slurm.conf(5), PrologFlags).
fn prolog_flags(config: &str) -> Bounds {
    let value = config.lines().filter_map(|line| line.split_once('=')).find(|(name, _)| name.trim() == "PrologFlags");
    match value {
        Some((_, flags)) if flags.split(',').any(|flag| flag.trim() == "Alloc") => Bounds::InForce,
        Some((_, flags)) => Bounds::Missing(format!(
            "PrologFlags is {:?}, without Alloc: a job's first step runs the prolog with texts that slurmctld has not seen",
            flags.trim()
        )),
        None => Bounds::Unknown("scontrol show config has no PrologFlags".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(success: bool, stderr: &str) -> Result<Said, CommandError> {
        Ok(Said { success, stdout: Vec::new(), stderr: stderr.as_bytes().to_vec() })
    }

    #[test]
    fn only_the_functions_own_refusal_proves_it() {
        let refused = "sbatch: error: credd_check_job: comment has 20000 bytes; at most 16384 are allowed\n\
                       allocation failure: Unspecified error\n";
        assert_eq!(submission(said(false, refused)), Bounds::InForce);
        // 22.05's own bound; a user whom Slurm does not know; a release without a bound.
        for taken in [
            said(false, "allocation failure: Pathname of a file, directory or other parameter too long\n"),
            said(false, "allocation failure: Invalid account or account/partition combination specified\n"),
            said(true, "sbatch: Job 1 to start at 2026-12-01T00:22:48 using 1 processors on nodes n1\n"),
            // It speaks, and lets the job through.
            said(true, refused),
        ] {
            assert!(matches!(submission(taken), Bounds::Missing(_)));
        }
        let away = "allocation failure: Unable to contact slurm controller (connect failure)\n";
        assert!(matches!(submission(said(false, away)), Bounds::Unknown(why) if why.contains("Unable to contact")));
        let missing = CommandError::Missing { name: "sbatch", looked: "/usr/bin".into() };
        assert!(matches!(submission(Err(missing)), Bounds::Unknown(why) if why.contains("sbatch is not in /usr/bin")));
    }

    #[test]
    fn a_lazy_prolog_gets_around_it() {
        let of = |flags: &str| {
            prolog_flags(&format!("PrologEpilogTimeout     = 65534\nPrologFlags             = {flags}\n"))
        };
        assert_eq!(of("Alloc,Contain"), Bounds::InForce);
        assert_eq!(of("Alloc"), Bounds::InForce);
        assert!(matches!(of("(null)"), Bounds::Missing(why) if why.contains("without Alloc")));
        assert!(matches!(prolog_flags("Prolog = (null)\n"), Bounds::Unknown(_)));
    }
}
