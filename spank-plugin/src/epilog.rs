//! A job's end on a node: `slurmstepd spank epilog`, as root, after the last process of the job.

use credd_protocol::JobId;
use credd_protocol::local::Request;
use slurm_spank::{Job, Level};

use crate::credd;
use crate::plugstack::Plugstack;
use crate::run_files::RunFiles;

/// Ends the job's record, if it has one, and tells credd.
pub fn job_epilog(job: &dyn Job, site: &Plugstack) {
    let Some(id) = job.id().ok().and_then(|id| JobId::try_from(id).ok()) else { return };
    let ended = match RunFiles::open(&site.run_dir) {
        Ok(None) => return,
        Ok(Some(files)) => files.end(id),
        Err(error) => Err(error),
    };
    match ended {
        Ok(false) => {}
        Ok(true) => {
            // credd finds the directory in `ended/` by itself as well.
            if let Err(error) = credd::tell(&site.run_dir, &Request::Ended { job: id }) {
                job.log(Level::Info, &format!("spank_credd: job {id}: credd was not told of its end at once: {error}"));
            }
        }
        Err(error) => job.log(
            Level::Error,
            &format!("spank_credd: job {id}: its end could not be noted, its token lives on: {error}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted_job::{ScriptedJob, answering, record, run_dir};
    use credd_protocol::record::RunNames;

    #[test]
    fn an_end_is_noted_once_and_credd_is_told() {
        let (_temp, paths) = run_dir();
        let site = Plugstack::parse(&[format!("run-dir={}", paths.path().display())]);
        let job = ScriptedJob::new();
        job_epilog(&job, &site);
        let files = RunFiles::open_or_create(&paths).unwrap();
        files.write_record(&record(), &RunNames::default()).unwrap();
        let lines = answering(&paths, vec![r#""ok""#.into()]);
        job_epilog(&job, &site);
        assert_eq!(lines.join().unwrap(), [r#"{"op":"ended","job":12}"#]);
        assert!(files.read_record(record().job).unwrap().is_none());
        job_epilog(&job, &site);
        assert_eq!(std::fs::read_dir(paths.ended()).unwrap().count(), 1);
        assert_eq!(job.said(Level::Error), "");
    }
}
