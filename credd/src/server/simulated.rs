//! A node without processes and sockets of its own, a thousand of them in one program: for simulations and measurements.
//!
//! It is the server as it is shipped: jobs, cache, refresh, the standing stream, answers, HTTPS to credvend. What is left
//! out is the endpoint that jobs ask at, and the keeper: the node proves itself by a certificate, since nobody signs.

use std::rc::Rc;

use anyhow::Context as _;
use bytes::Bytes;
use credd_protocol::SessionId;
use tokio::sync::mpsc;

use super::clock::{SystemClock, SystemDice};
use super::credvend::https::Https;
use super::credvend::{Credvend, stream};
use super::jobs::{Run, State};
use super::keeper::Keeper;
use super::settings::Settings;
use super::whois::{Caller, WhoIs};
use super::{Server, World, news, session, vend};
use crate::config::Config;
use crate::control::Job;

/// One node. It lives in the [`tokio::task::LocalSet`] that it was started in.
pub struct Node(Rc<Server>);

/// A job on one.
#[derive(Clone)]
pub struct JobHere(Rc<Run>);

/// Nobody connects.
struct Nobody;

impl WhoIs for Nobody {
    fn caller(&self, _: std::net::SocketAddr, _: std::net::SocketAddr) -> Result<Caller, String> {
        Err("a simulated node has no endpoint".to_owned())
    }
}

impl Node {
    /// Starts one: its stream opens, its cache renews.
    ///
    /// # Errors
    /// A configuration that does not serve, or that asks for MUNGE.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let node = Self::start_deaf(config)?;
        tokio::task::spawn_local(stream::keep_open(node.0.clone()));
        Ok(node)
    }

    /// Starts one that opens no stream: where a machine has no descriptors for all of them.
    ///
    /// # Errors
    /// See [`Node::start`].
    pub fn start_deaf(config: &Config) -> anyhow::Result<Self> {
        anyhow::ensure!(config.credvend.identity.is_some(), "a simulated node proves itself by a certificate");
        let (out, mut said) = mpsc::unbounded_channel();
        let keeper = Keeper::new(out);
        let credvend = Credvend::new(Box::new(Https::new(&config.credvend, keeper.clone())?));
        let world =
            World { clock: Rc::new(SystemClock), dice: Rc::new(SystemDice::default()), whois: Box::new(Nobody) };
        let server = Server::new(keeper, credvend, 0, Settings::of(config), world);
        tokio::task::spawn_local(async move { while said.recv().await.is_some() {} });
        tokio::task::spawn_local(vend::renew(server.clone()));
        tokio::task::spawn_local(news::answer(server.clone()));
        Ok(Node(server))
    }

    /// Whether its stream has said hello.
    pub fn listens(&self) -> bool {
        self.0.news.heard().is_some()
    }

    /// A job starts here.
    ///
    /// # Errors
    /// It is here already.
    pub fn job(&self, job: Job) -> anyhow::Result<JobHere> {
        let token = job.token;
        session::found(&self.0, job);
        let run = self.0.jobs.borrow().by_token(&token).cloned();
        run.map(JobHere).context("a job that has ended, or one too many")
    }

    /// What a process of the job gets when it asks at this moment.
    ///
    /// # Errors
    /// The sentence that it would be told.
    pub async fn credentials(&self, job: &JobHere) -> Result<Bytes, String> {
        let load = self.0.load(job.0.job.uid.0);
        vend::serve(&self.0, &job.0, &load).await.map_err(|denial| denial.message())
    }

    /// The job's session, once it is open.
    pub fn session(&self, job: &JobHere) -> Option<SessionId> {
        job.0.session()
    }

    /// Waits until the job is refused for good; the reason.
    pub async fn refused(&self, job: &JobHere) -> String {
        loop {
            let changed = job.0.changed.notified();
            if let State::Refused(reason) = job.0.state() {
                return reason;
            }
            changed.await;
        }
    }

    /// The job ends here.
    pub fn end(&self, job: &JobHere) {
        session::end(&self.0, &job.0.job.run);
    }
}
