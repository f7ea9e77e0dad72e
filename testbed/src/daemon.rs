//! A daemon of a host: stop it, kill it, start it again as it was.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::deadline::wait_for;
use crate::host::Host;
use crate::init_protocol::{Request, Service};

/// How long a daemon may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A daemon that the testbed started at least once.
#[derive(Debug, Clone)]
pub struct Daemon {
    pub(crate) host: Host,
    pub(crate) name: String,
}

impl Daemon {
    /// Its process id inside the host, if it runs.
    pub fn pid(&self) -> Option<i32> {
        self.host.ask(&Request::Status(self.name.clone())).ok()?.pid
    }

    /// How it ended, if it did: exit status, or minus the signal.
    pub fn ended(&self) -> Option<i32> {
        self.host.ask(&Request::Status(self.name.clone())).ok()?.ended
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.host.ask(&Request::Signal(self.name.clone(), signal as i32)).map(drop)
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.gone()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill9(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.gone()
    }

    /// SIGSTOP: it hangs.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT: it goes on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Starts it as it was last started, and returns at once.
    pub fn start(&self) -> Result<()> {
        self.host.start(&self.service()?)
    }

    /// Starts it as it was last started, with other environment variables besides; later starts have them too.
    pub fn start_with(&self, env: &[(&str, &str)]) -> Result<()> {
        let mut service = self.service()?;
        for (name, value) in env {
            service.env.retain(|(n, _)| n != name);
            service.env.push(((*name).to_owned(), (*value).to_owned()));
        }
        self.host.start(&service)
    }

    /// Stops it if it runs, and starts it.
    pub fn restart(&self) -> Result<()> {
        if self.pid().is_some() {
            self.stop()?;
        }
        self.start()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.host.log(&self.name)
    }

    /// Waits until its log holds a text.
    pub fn wait_log(&self, text: &str, within: Duration) -> Result<()> {
        wait_for(&format!("{text:?} in the log of {} on {}", self.name, self.host.name()), within, || {
            self.log().contains(text).then_some(())
        })
    }

    fn service(&self) -> Result<Service> {
        let file = self.host.layout.service_file(self.host.name(), &self.name);
        let text =
            fs::read(&file).with_context(|| format!("{} was never started on {}", self.name, self.host.name()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    fn gone(&self) -> Result<()> {
        wait_for(&format!("the end of {} on {}", self.name, self.host.name()), STOP_LIMIT, || {
            self.pid().is_none().then_some(())
        })
    }
}
