//! What squeue(1) is asked for, and how its answer is read.
//!
//! Every column has a fixed width in bytes but the last, the list of nodes, which only Slurm writes. A row is therefore
//! read by position: an account that holds newlines and looks like a row of its own (`sbatch --account=$'a\n1 …'` is
//! accepted where accounts are not enforced) stays within its column. Columns are one byte wider than the longest value
//! that we take, and squeue cuts at the width: a value that fills its column may have been cut, and is refused.
//!
//! The header line stays on: it shows that the answer is whole and that its columns are those that were asked for.
//! squeue 22.05 leaves out a field that it does not know and still exits with 0.

use credd_protocol::{JobId, NodeName, PartitionName, ProjectId, Uid, UserName};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use super::hostlist;
use super::{JobFacts, JobState};
use crate::store::Run;

pub mod made_up;

/// A column: squeue's name for it with `-O`, how its heading begins, how many bytes it gets.
struct Column {
    field: &'static str,
    heading: &'static str,
    width: usize,
}

const fn column(field: &'static str, heading: &'static str, width: usize) -> Column {
    Column { field, heading, width }
}

const COLUMNS: [Column; 8] = [
    column("JobID", "JOBID", 12),
    column("RestartCnt", "RESTART_COUNT", 16),
    column("UserID", "UID", 12),
    column("State", "STATE", 24),
    column("UserName", "USER", 129),
    column("Account", "ACCOUNT", 256),
    column("Partition", "PARTITION", 129),
    column("SubmitTime", "SUBMIT_TIME", 24),
];

/// Slurm's times, where neither TZ nor SLURM_TIME_FORMAT says otherwise: [`super::command`] sees to both.
const TIME: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");

/// Width 0: as long as it needs.
const LAST: Column = column("NodeList", "NODELIST", 0);

/// The fixed part of a row, in bytes.
pub const FIXED: usize = {
    let (mut sum, mut i) = (0, 0);
    while i < COLUMNS.len() {
        sum += COLUMNS[i].width;
        i += 1;
    }
    sum
};

/// The argument of `squeue --Format`.
pub fn format() -> String {
    let mut fields: Vec<String> = COLUMNS.iter().map(|c| format!("{}:{}", c.field, c.width)).collect();
    fields.push(format!("{}:{}", LAST.field, LAST.width));
    fields.join(",")
}

/// One row, in Slurm's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// The raw job id.
    pub job: JobId,
    columns: [&'a [u8]; 8],
    nodes: &'a str,
}

/// Reads a whole answer.
///
/// # Errors
/// A sentence, if it is not a header and whole rows: then nothing in it counts, absence least of all.
pub fn parse(answer: &[u8]) -> Result<Vec<Row<'_>>, String> {
    let (header, mut rest) = line(answer).ok_or("squeue's answer has no complete header line")?;
    let mut at = 0;
    for column in COLUMNS.iter().chain([&LAST]) {
        if !header.get(at..).is_some_and(|h| h.starts_with(column.heading.as_bytes())) {
            return Err(format!("squeue's answer has no column {} where one was asked for", column.heading));
        }
        at += column.width;
    }
    let mut rows = Vec::new();
    while !rest.is_empty() {
        let number = rows.len() + 1;
        let (fixed, after) = rest.split_at_checked(FIXED).ok_or_else(|| format!("row {number} is cut short"))?;
        let (nodes, after) = line(after).ok_or_else(|| format!("row {number} does not end"))?;
        rows.push(row(fixed, nodes).map_err(|why| format!("row {number}: {why}"))?);
        rest = after;
    }
    Ok(rows)
}

/// Up to a newline, and what follows it.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

fn row<'a>(fixed: &'a [u8], nodes: &'a [u8]) -> Result<Row<'a>, String> {
    let mut columns: [&[u8]; 8] = [&[]; 8];
    let mut rest = fixed;
    for (place, column) in columns.iter_mut().zip(&COLUMNS) {
        let (value, after) = rest.split_at_checked(column.width).ok_or("it is cut short")?;
        (*place, rest) = (value, after);
    }
    let job = text(columns[0]).and_then(|id| id.parse::<JobId>().ok()).ok_or("it does not begin with a job id")?;
    // Only Slurm writes here, in ASCII: anything else means that the columns have moved.
    let nodes = std::str::from_utf8(nodes).ok().filter(|n| n.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
    Ok(Row { job, columns, nodes: nodes.ok_or("its list of nodes is not text")?.trim_end_matches(' ') })
}

/// A column's value, unless it fills its column (and so may have been cut) or is not text.
fn text(column: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(column).ok()?;
    text.ends_with(' ').then(|| text.trim_end_matches(' '))
}

impl Row<'_> {
    /// How often the job was requeued.
    fn restart(&self) -> Result<u32, String> {
        text(self.columns[1])
            .filter(|t| t.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| self.bad("restart count", self.columns[1]))
    }

    fn value<T: std::str::FromStr>(&self, what: &str, column: usize) -> Result<T, String> {
        let bytes = self.columns[column];
        text(bytes).and_then(|t| t.parse().ok()).ok_or_else(|| self.bad(what, bytes))
    }

    fn bad(&self, what: &str, bytes: &[u8]) -> String {
        let shown = String::from_utf8_lossy(bytes);
        format!(
            "the {what} of job {} is not usable: {:?}",
            self.job,
            shown.trim_end().chars().take(80).collect::<String>()
        )
    }

    /// What the job is doing.
    fn state(&self) -> Result<JobState, String> {
        text(self.columns[3]).and_then(state).ok_or_else(|| self.bad("state", self.columns[3]))
    }

    /// Whether it is one that waits for nodes: the row of an array stands for all its tasks that do.
    pub fn waits(&self) -> bool {
        self.state() == Ok(JobState::Pending)
    }

    /// The account; Slurm writes `(null)` or nothing where there is none.
    fn account(&self) -> Result<Option<ProjectId>, String> {
        match text(self.columns[5]) {
            Some("" | "(null)") => Ok(None),
            Some(account) => Ok(Some(account.parse().map_err(|_| self.bad("account", self.columns[5]))?)),
            None => Err(self.bad("account", self.columns[5])),
        }
    }

    /// The user's name. squeue looks the uid up on this machine and prints `nobody` for every uid that it does not find:
    /// different people under one name. `is_nobody` says whether a uid really is that of `nobody`.
    fn user(&self, uid: Uid, is_nobody: &dyn Fn(Uid) -> bool) -> Result<UserName, String> {
        let user: UserName = self.value("user name", 4)?;
        if (user.as_str() == "nobody" && !is_nobody(uid)) || user.as_str() == uid.to_string() {
            return Err(format!(
                "uid {uid} of job {} has no name on the machine where credvend runs; make the cluster's users known there",
                self.job
            ));
        }
        Ok(user)
    }

    /// The partition. A job that does not run yet may have asked for several (`sbatch --partition=a,b`): the first.
    fn partition(&self, state: JobState) -> Result<PartitionName, String> {
        let bytes = self.columns[6];
        let names = match state {
            JobState::Running | JobState::Completing => text(bytes),
            // A long list may be cut in its column; its first name, before a comma, is not.
            JobState::Pending | JobState::Over => std::str::from_utf8(bytes)
                .ok()
                .and_then(|list| list.split_once(',').map(|(first, _)| first).or_else(|| text(bytes))),
        };
        names.and_then(|name| name.parse().ok()).ok_or_else(|| self.bad("partition", bytes))
    }

    /// When this run was submitted (UTC).
    fn submitted(&self) -> Result<OffsetDateTime, String> {
        text(self.columns[7])
            .and_then(|t| PrimitiveDateTime::parse(t, TIME).ok())
            .map(PrimitiveDateTime::assume_utc)
            .ok_or_else(|| self.bad("submit time", self.columns[7]))
    }

    /// Where it runs.
    fn nodes(&self, max: usize) -> Result<Vec<NodeName>, String> {
        match self.nodes {
            "" | "(null)" | "None assigned" => Ok(Vec::new()),
            nodes => hostlist::expand(nodes, max).map_err(|error| format!("job {}: {error}", self.job)),
        }
    }

    /// The facts, for vending: every one of them must be good, but the user's name may be missing on this machine.
    ///
    /// # Errors
    /// A sentence that names the job and the fact.
    pub fn facts(&self, max_nodes: usize, is_nobody: &dyn Fn(Uid) -> bool) -> Result<JobFacts, String> {
        let (uid, state) = (self.value("uid", 2)?, self.state()?);
        Ok(JobFacts {
            job: self.job,
            restart: self.restart()?,
            submitted: self.submitted()?,
            user: self.user(uid, is_nobody),
            uid,
            account: self.account()?,
            partition: self.partition(state)?,
            nodes: self.nodes(max_nodes)?,
            state,
        })
    }

    /// The facts, for a listing, where one strange job must not hide all the others, and may not be missing either: an
    /// account that is no project id is left out, and so are more than `max_nodes` nodes and a name that does not fit; a
    /// partition's is replaced by `unreadable`, a submit time by one that no run has; an unknown state counts as
    /// [`JobState::Completing`].
    ///
    /// # Errors
    /// A sentence, if Slurm's own numbers are not readable.
    pub fn listed(&self, max_nodes: usize) -> Result<JobFacts, String> {
        let uid: Uid = self.value("uid", 2)?;
        let state = self.state().unwrap_or(JobState::Completing);
        let partition = self.partition(state).or_else(|_| "unreadable".parse().map_err(|_| "a partition".to_owned()));
        Ok(JobFacts {
            job: self.job,
            restart: self.restart()?,
            submitted: self.submitted().unwrap_or(Run::UNRECORDED),
            user: self.value("user name", 4),
            uid,
            account: self.account().unwrap_or_default(),
            partition: partition?,
            nodes: self.nodes(max_nodes).unwrap_or_default(),
            state,
        })
    }
}

/// Slurm's long state names: slurm.h's `job_states` and flags as squeue(1) lists them under "JOB STATE CODES".
fn state(name: &str) -> Option<JobState> {
    Some(match name {
        "RUNNING" | "CONFIGURING" | "POWER_UP_NODE" | "SUSPENDED" | "STOPPED" | "SIGNALING" | "STAGE_OUT"
        | "RESIZING" => JobState::Running,
        "COMPLETING" => JobState::Completing,
        "PENDING" | "REQUEUED" | "REQUEUE_FED" | "REQUEUE_HOLD" | "SPECIAL_EXIT" | "RESV_DEL_HOLD" => JobState::Pending,
        "BOOT_FAIL" | "CANCELLED" | "COMPLETED" | "DEADLINE" | "FAILED" | "LAUNCH_FAILED" | "NODE_FAIL"
        | "OUT_OF_MEMORY" | "PREEMPTED" | "RECONFIG_FAIL" | "REVOKED" | "TIMEOUT" => JobState::Over,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::made_up::{header, row, row_of};
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    fn answer(rows: &[Vec<u8>]) -> Vec<u8> {
        let mut answer = header().into_bytes();
        rows.iter().for_each(|row| answer.extend(row));
        answer
    }

    fn alice(job: &str) -> Vec<u8> {
        row([job, "0", "2001", "RUNNING", "alice", "genomics", "batch"], "n[1-2]")
    }

    fn facts(row: Vec<u8>) -> Result<JobFacts, String> {
        let answer = answer(&[row]);
        parse(&answer).unwrap()[0].facts(100, &|uid| uid == Uid(65534))
    }

    #[test]
    fn a_row_gives_every_fact() {
        let facts = facts(row(["12", "3", "2001", "COMPLETING", "alice", "genomics", "batch"], "n[1-2],m1")).unwrap();
        assert_eq!((facts.job.get(), facts.restart, facts.uid), (12, 3, Uid(2001)));
        assert_eq!(facts.submitted, datetime!(2026-03-01 11:00 UTC));
        assert_eq!((facts.user.unwrap().as_str(), facts.partition.as_str()), ("alice", "batch"));
        assert_eq!(facts.account.unwrap().as_str(), "genomics");
        assert_eq!(facts.nodes.iter().map(NodeName::as_str).collect::<Vec<_>>(), ["n1", "n2", "m1"]);
        assert_eq!(facts.state, JobState::Completing);
    }

    #[test]
    fn an_account_that_looks_like_another_job_stays_an_account() {
        let forged = String::from_utf8(alice("7")).unwrap();
        let account = format!("a\n{}", &forged[..120]);
        let answer = answer(&[row(["1", "0", "6", "RUNNING", "eve", &account, "batch"], "n1"), alice("2")]);
        let rows = parse(&answer).unwrap();
        assert_eq!(rows.iter().map(|r| r.job.get()).collect::<Vec<_>>(), [1, 2]);
        assert!(rows[0].facts(9, &|_| false).unwrap_err().contains("account of job 1"));
        assert_eq!(rows[0].listed(9).unwrap().account, None);
    }

    #[test]
    fn a_value_that_may_have_been_cut_is_refused() {
        let long = "x".repeat(256);
        assert!(facts(row(["1", "0", "6", "RUNNING", "eve", &long, "batch"], "n1")).unwrap_err().contains("account"));
        assert!(facts(row(["1", "0", "6", "RUNNING", "eve", &long[..255], "batch"], "n1")).is_ok());
        let name = facts(row(["1", "0", "6", "RUNNING", &long[..129], "a", "batch"], "n1")).unwrap().user;
        assert!(name.unwrap_err().contains("user"));
        assert!(
            facts(row(["1", "0", "6", "RUNNING", "e", "a", &long[..129]], "n1")).unwrap_err().contains("partition")
        );
    }

    #[test]
    fn a_submit_time_in_another_form_is_refused() {
        for strange in
            ["", "N/A", "Unknown", "1740000000", "2026-03-01T11:00", "2026-02-30T11:00:00", "2026-03-01T11:00:00Z"]
        {
            let strange = row_of(["1", "0", "6", "RUNNING", "eve", "a", "batch"], strange, "n1");
            let all = answer(&[strange.clone(), alice("2")]);
            let rows = parse(&all).unwrap();
            assert_eq!(rows[0].listed(9).unwrap().submitted, Run::UNRECORDED);
            assert!(facts(strange).unwrap_err().contains("submit time of job 1"));
        }
    }

    #[test]
    fn nobody_is_no_name_for_an_unknown_uid() {
        let with =
            |uid: &str, user: &str| facts(row(["1", "0", uid, "RUNNING", user, "a", "batch"], "n1")).unwrap().user;
        assert!(with("2001", "nobody").unwrap_err().contains("uid 2001 of job 1 has no name"));
        assert!(with("2001", "2001").is_err());
        assert!(with("65534", "nobody").is_ok());
    }

    /// As squeue 22.05 wrote them: see `slurms_own_names_are_taken` of credd-protocol.
    #[test]
    fn names_of_any_form_are_read_as_slurm_writes_them() {
        for name in ["gpu+a100", "a=b", "a b", " lead", "a'b", "é", "a#b", "a[1-2]", "..", "<x>&\"y"] {
            let facts = facts(row(["1", "0", "6", "RUNNING", name, name, name], "n1")).unwrap();
            assert_eq!(facts.user.unwrap().as_str(), name);
            assert_eq!((facts.account.unwrap().as_str(), facts.partition.as_str()), (name, name));
        }
    }

    #[test]
    fn a_job_without_account_has_none() {
        for none in ["", "(null)"] {
            assert_eq!(facts(row(["1", "0", "6", "PENDING", "eve", none, "batch"], "")).unwrap().account, None);
        }
    }

    #[test]
    fn a_job_that_waits_for_one_of_several_partitions_is_read() {
        let with = |state: &str, partitions: &str| facts(row(["1", "1", "6", state, "eve", "a", partitions], ""));
        assert_eq!(with("PENDING", "gpu,batch").unwrap().partition.as_str(), "gpu");
        assert_eq!(with("CANCELLED", &"gpu,".repeat(40)).unwrap().partition.as_str(), "gpu");
        // One partition is one name, and Slurm takes a comma in it.
        assert_eq!(with("RUNNING", "gpu,batch").unwrap().partition.as_str(), "gpu,batch");
    }

    #[test]
    fn states_are_known_or_refused() {
        let with = |state: &str| facts(row(["1", "0", "6", state, "eve", "a", "batch"], "n1")).map(|f| f.state);
        assert_eq!(with("SUSPENDED"), Ok(JobState::Running));
        assert_eq!(with("REQUEUE_HOLD"), Ok(JobState::Pending));
        assert_eq!(with("NODE_FAIL"), Ok(JobState::Over));
        assert!(with("R").is_err() && with("").is_err() && with("SOMETHING_NEW").is_err());
    }

    #[test]
    fn an_answer_without_its_header_is_no_answer() {
        assert!(parse(b"").is_err());
        assert!(parse(b"JOBID ").is_err());
        assert!(parse(&alice("1")).is_err());
        assert!(parse(header().trim_end().as_bytes()).is_err());
        assert!(parse(header().replace("ACCOUNT", "FOOBARX").as_bytes()).is_err());
        assert_eq!(parse(header().as_bytes()).unwrap(), vec![]);
    }

    proptest! {
        #[test]
        fn a_truncated_answer_is_an_error_or_misses_only_whole_rows_at_its_end(
            jobs in prop::collection::vec(1u32..100_000, 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let rows: Vec<Vec<u8>> = jobs.iter().map(|j| alice(&j.to_string())).collect();
            let whole = answer(&rows);
            let at = cut.index(whole.len());
            let at_a_row_end = at.checked_sub(header().len()).is_some_and(|rows_len| rows_len.is_multiple_of(rows[0].len()));
            // Only the exit status tells a cut between two rows: no reader of the text can see it.
            prop_assert_eq!(parse(&whole[..at]).is_ok(), at_a_row_end);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(garbage in prop::collection::vec(any::<u8>(), 0..2000), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8)) {
            let _ = parse(&garbage);
            let mut answer = answer(&[alice("1"), alice("2"), alice("3")]);
            for (at, byte) in flips {
                let at = at.index(answer.len());
                answer[at] = byte;
            }
            if let Ok(rows) = parse(&answer) {
                for row in rows {
                    let _ = (row.facts(10, &|_| false), row.listed(10));
                }
            }
        }

        #[test]
        fn no_account_changes_another_column(account in "[^\0]{0,60}") {
            let answer = answer(&[row(["5", "0", "6", "RUNNING", "eve", &account, "batch"], "n1"), alice("9")]);
            let rows = parse(&answer).unwrap();
            prop_assert_eq!(rows.len(), 2);
            if let Ok(facts) = rows[0].facts(9, &|_| false) {
                prop_assert!(facts.user.unwrap().as_str() == "eve" && facts.partition.as_str() == "batch" && facts.job.get() == 5);
                prop_assert_eq!(facts.account.map(String::from).unwrap_or_default(), if account.trim_end_matches(' ') == "(null)" { "" } else { account.trim_end_matches(' ') });
            }
        }
    }
}
