//! What the server process says. It holds no powers and gets none: it can note outcomes of runs and end those that ended.

use std::path::{Path, PathBuf};
use std::time::Instant;

use credd_protocol::local::Outcome;
use credd_protocol::record::file;

use super::{Keeper, records, run_dir};
use crate::control::{RunId, ToKeeper};
use crate::keeper::records::Refused;

/// The longest sentence taken from the server, in characters.
const MAX_SENTENCE: usize = 1000;

impl Keeper {
    /// Takes in what a server of this generation says; an earlier one is not heard.
    pub(super) fn hear(&mut self, generation: u64, message: ToKeeper) {
        let Some(server) = self.server.as_mut().filter(|server| server.generation == generation) else { return };
        match message {
            ToKeeper::Ready => server.ready = true,
            ToKeeper::Here { id } => server.liveness.answered(id, Instant::now()),
            ToKeeper::Configured { problem } => self.configured(problem.as_deref().map(sentence)),
            // Signed on another thread; never sent here.
            ToKeeper::Sign { .. } => {}
            // Looked at with the pokes; never sent here.
            ToKeeper::Look { .. } => {}
            ToKeeper::Ticket { ticket } => {
                if let Err(error) = run_dir::write_ticket(&self.run_dir, &ticket) {
                    tracing::debug!(%error, "the handshake ticket cannot be kept for the next server process");
                }
            }
            ToKeeper::Attested { run, facts } => self.attested(&run, facts),
            ToKeeper::Over { run } => {
                let Some(known) = self.runs.get(&run).filter(|known| !known.job.ended) else { return };
                self.note(known.path.clone(), &run, file::OVER, "");
                self.over.insert(run);
            }
            ToKeeper::Opened { run: id, session } => {
                let Some(run) = self.runs.get_mut(&id) else { return };
                run.job.session = Some(session);
                let (job, path) = (run.job.job, run.path.clone());
                self.note(path, &id, file::SESSION, &session.to_string());
                self.parts.desk.board.set(job, &id, Outcome::Open);
            }
            ToKeeper::Refused { run: id, reason } => {
                let reason = sentence(&reason);
                let Some(run) = self.runs.get_mut(&id) else { return self.refuse_late(&id, reason) };
                run.job.refused = Some(reason.clone());
                let (job, path) = (run.job.job, run.path.clone());
                self.note(path, &id, file::REFUSED, &reason);
                self.parts.desk.board.set(job, &id, Outcome::Refused { reason });
            }
            ToKeeper::Waiting { run: id, reason } => {
                let known = self.runs.get(&id).map(|run| run.job.job);
                let Some(job) = known.or_else(|| self.late.job(&id)) else { return };
                let outcome = Outcome::Opening { reason: Some(sentence(&reason)) };
                self.parts.desk.board.set(job, &id, outcome);
            }
            ToKeeper::EndDelivered { run: id } => {
                let Some(run) = self.runs.get(&id) else { return };
                if !run.job.ended {
                    tracing::error!(job = %run.job.job, "the server process wants to end a running job: refused");
                    return;
                }
                let path = run.path.clone();
                self.runs.remove(&id);
                if let Some(path) = path {
                    self.remove_directory(&path, &id);
                }
            }
            ToKeeper::Report { id, health, jobs } => {
                let Some((_, reply)) = self.reports.remove(&id) else { return };
                let _ = reply.try_send(self.report(Some(health), jobs));
            }
        }
    }

    pub(super) fn note(&self, path: Option<PathBuf>, run: &RunId, name: &str, text: &str) {
        // The job may have ended since the last look: then its directory is another's, and the note has no reader.
        match path.map(|path| records::write_note(&path, run, name, text)) {
            None | Some(Ok(()) | Err(Refused::NoRecord)) => {}
            Some(Err(error)) => tracing::error!(%error, name, "cannot keep what became of a job"),
        }
    }

    pub(super) fn remove_directory(&self, path: &Path, run: &RunId) {
        if let Err(error) = records::remove(path, run) {
            tracing::error!(?path, %error, "cannot remove the directory of an ended job");
        }
    }

    pub(super) fn hear_last(&mut self, message: ToKeeper) {
        match message {
            ToKeeper::Opened { run, session } => {
                let path = self.runs.get(&run).and_then(|run| run.path.clone());
                self.note(path, &run, file::SESSION, &session.to_string());
            }
            ToKeeper::EndDelivered { run } => {
                let ended = self.runs.get(&run).filter(|known| known.job.ended);
                if let Some(path) = ended.and_then(|known| known.path.clone()) {
                    self.remove_directory(&path, &run);
                }
            }
            _ => {}
        }
    }
}

/// A sentence that may be shown on a terminal: it comes from a process that reads what jobs write.
fn sentence(text: &str) -> String {
    text.chars().take(MAX_SENTENCE).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
