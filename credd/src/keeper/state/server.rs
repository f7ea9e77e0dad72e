//! The endpoint's listener, and the server process that it is given to.

use std::sync::Arc;
use std::time::Instant;

use sd_notify::NotifyState;

use super::{BACKOFF, Keeper, LIVED_WELL, TRY_PORT_EVERY, listeners, run_dir};
use crate::control::{Job, ToServer};
use crate::handover;
use crate::keeper::liveness::Verdict;
use crate::keeper::server_link::ServerLink;
use crate::keeper::server_process::{Route, STOP_PATIENCE, Server};

impl Keeper {
    /// Gets the endpoint's listener, or raises the alarm and tries again later.
    pub(super) fn hold_endpoint(&mut self, now: Instant) {
        if self.endpoint_ours || now < self.try_port_at {
            return;
        }
        let address = self.config.http.listen;
        match self.claim_endpoint() {
            Ok(()) => {
                self.endpoint_ours = true;
                if self.endpoint_problem.take().is_some() {
                    tracing::info!(%address, "the endpoint is credd's own again");
                    let _ = sd_notify::notify(&[NotifyState::Status("serving")]);
                }
            }
            Err(problem) => {
                self.try_port_at = now + TRY_PORT_EVERY;
                if let Err(error) = run_dir::remove_endpoint(&self.run_dir) {
                    tracing::error!(%error, "cannot remove the endpoint file");
                }
                if self.endpoint_problem.as_ref() != Some(&problem) {
                    tracing::error!(problem, "no job is served");
                    let _ = sd_notify::notify(&[NotifyState::Status(&problem)]);
                }
                self.endpoint_problem = Some(problem);
            }
        }
        self.parts.desk.board.set_obstacle(self.endpoint_problem.clone());
    }

    pub(super) fn claim_endpoint(&mut self) -> Result<(), String> {
        let address = self.config.http.listen;
        let peers = &self.parts.peers;
        let listener = match self.http.take() {
            Some(listener) => listener,
            None => listeners::bind_http(address, peers).map_err(|problem| problem.to_string())?,
        };
        listeners::verify_http(&listener, address, peers).map_err(|problem| problem.to_string())?;
        self.http = Some(listener);
        run_dir::write_endpoint(&self.run_dir, address.port())
            .map_err(|error| format!("cannot write the endpoint file: {error}"))
    }

    pub(super) fn launch(&mut self, now: Instant) {
        if self.server.is_some() || !self.endpoint_ours || now < self.launch_at {
            return;
        }
        let Some(http) = &self.http else { return };
        self.generation += 1;
        let generation = self.generation;
        let launched = self.parts.program.launch().and_then(|(control, child)| {
            control.set_write_timeout(Some(STOP_PATIENCE))?;
            let reader = control.try_clone()?;
            let link = Arc::new(ServerLink::new(control.try_clone()?));
            let server = Server::new(generation, link, child, now);
            handover::give(&control, http, &self.parts.user, &self.config)?;
            let route = Route {
                generation,
                events: self.parts.desk.events.clone(),
                signer: self.parts.signer.clone(),
                link: Arc::clone(&server.link),
            };
            std::thread::Builder::new().name("server-words".into()).spawn(move || route.read(reader))?;
            Ok(server)
        });
        match launched {
            Ok(server) => {
                self.server = Some(server);
                if let Some(ticket) = run_dir::ticket(&self.run_dir) {
                    self.tell(&ToServer::Ticket { ticket });
                }
                let jobs: Vec<Job> = self.runs.all().map(|run| run.job.clone()).collect();
                for job in jobs {
                    self.tell(&ToServer::Job(Box::new(job)));
                }
                self.tell_late();
                if self.looked {
                    self.tell(&ToServer::Scanned);
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot start the server process");
                self.back_off(now);
            }
        }
    }

    pub(super) fn back_off(&mut self, now: Instant) {
        self.launch_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }

    /// Asks the server process whether it is there, and ends one that is not.
    pub(super) fn look_after_server(&mut self, now: Instant) {
        let Some(server) = &mut self.server else { return };
        match server.look(now) {
            Verdict::Wait => {}
            Verdict::Ask(id) => self.tell(&ToServer::Ping { id }),
            Verdict::Replace(why) => {
                tracing::error!(why, "the server process is ended");
                let generation = server.generation;
                self.server_gone(generation);
            }
        }
    }

    pub(super) fn server_gone(&mut self, generation: u64) {
        let Some(server) = self.server.take_if(|server| server.generation == generation) else { return };
        let now = Instant::now();
        let lived = now.duration_since(server.started);
        let status = server.end();
        if lived >= LIVED_WELL {
            self.backoff = BACKOFF.0;
        }
        self.back_off(now);
        tracing::error!(status, ?lived, "the server process is gone; another one takes its place");
        self.configured(Some("the server process ended before it had the new configuration".to_owned()));
    }
}
