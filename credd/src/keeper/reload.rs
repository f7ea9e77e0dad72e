//! A new configuration: read, tried by the server process while it goes on serving, and in force as a whole or not at all.

use std::sync::mpsc::SyncSender;

use sd_notify::NotifyState;

use super::state::Keeper;
use crate::config::{self, Config};
use crate::logging;

/// Tells whoever asked: a sentence about what a restart alone changes, if there is any; or why nothing changed.
pub type Reply = SyncSender<Result<Option<String>, String>>;

/// `systemctl status` is not the place for a long list; the log has it whole.
const MAX_STATUS_LINES: usize = 4;

/// A reload that the server process has not answered yet.
pub struct Reload {
    new: Config,
    note: Option<String>,
    replies: Vec<Reply>,
}

/// The reloads of a supervisor.
#[derive(Default)]
pub struct Reloads {
    under_way: Option<Reload>,
    /// Asked for meanwhile, by whom if somebody waits: the file may have changed since.
    again: Option<Vec<Reply>>,
}

impl Keeper {
    /// Reads the configuration again, for these.
    pub fn reload(&mut self, replies: Vec<Reply>) {
        if self.reloads.under_way.is_some() {
            self.reloads.again.get_or_insert_default().extend(replies);
            return;
        }
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            let _ = sd_notify::notify(&[NotifyState::Reloading, now]);
        }
        let (new, note) = match config::load(&self.parts.config_path) {
            Ok(new) => self.keep_what_is_fixed(new),
            Err(error) => return self.not_in_force(&error.to_string(), &replies),
        };
        let reload = Reload { new, note, replies };
        let Some(server) = &self.server else { return self.in_force(reload) };
        match server.link.configure(&reload.new) {
            Ok(()) => self.reloads.under_way = Some(reload),
            Err(error) => self.not_in_force(&format!("the server process cannot be told: {error}"), &reload.replies),
        }
    }

    /// The server process has answered, or is gone and cannot.
    pub fn configured(&mut self, problem: Option<String>) {
        let Some(reload) = self.reloads.under_way.take() else { return };
        match problem {
            None => self.in_force(reload),
            Some(problem) => self.not_in_force(&problem, &reload.replies),
        }
    }

    fn keep_what_is_fixed(&self, mut new: Config) -> (Config, Option<String>) {
        let fixed = |config: &Config| {
            (config.http.listen, config.run_dir.clone(), config.user.clone(), config.munge.socket.clone())
        };
        let kept = fixed(&self.config);
        let note = (fixed(&new) != kept).then(|| {
            "http.listen, run-dir, user and munge.socket are as they were: a restart alone changes them".to_owned()
        });
        (new.http.listen, new.run_dir, new.user, new.munge.socket) = kept;
        (new, note)
    }

    fn in_force(&mut self, reload: Reload) {
        self.config = reload.new;
        logging::apply(&self.config.log);
        self.identify();
        tracing::info!("a new configuration is in force");
        if let Some(note) = &reload.note {
            tracing::warn!("{note}");
        }
        let status = self.endpoint_problem.clone().unwrap_or_else(|| "serving".to_owned());
        self.end_reload(&status, &reload.replies, &Ok(reload.note.clone()));
    }

    fn not_in_force(&mut self, problem: &str, replies: &[Reply]) {
        for line in problem.lines() {
            tracing::error!("the configuration in force stays: {line}");
        }
        let why: Vec<&str> = problem.lines().map(str::trim).take(MAX_STATUS_LINES).collect();
        let status = format!("serving with an earlier configuration; the file is not in force: {}", why.join(" "));
        self.end_reload(&status, replies, &Err(problem.to_owned()));
    }

    fn end_reload(&mut self, status: &str, replies: &[Reply], outcome: &Result<Option<String>, String>) {
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]);
        for reply in replies {
            let _ = reply.try_send(outcome.clone());
        }
        if let Some(replies) = self.reloads.again.take() {
            self.reload(replies);
        }
    }
}
