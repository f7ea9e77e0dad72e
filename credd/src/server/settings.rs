//! What the server needs of the configuration, with bounds and patience that nobody has had a reason to configure.

use std::cell::Cell;
use std::time::Duration;

use credd_protocol::node_api::PING_SECONDS;

use super::cache::CacheSettings;
use super::watch::Bounds;
pub use crate::config::ProofOfJob;
use crate::config::{CacheMode, Config};

/// The settings in force. They are read at every request and change with a reload. Readers get a copy: the compiler loads the
/// one field that is read, so nothing is counted, locked or allocated, and a reload leaves nothing behind.
#[derive(Debug)]
pub struct InForce(Cell<Settings>);

impl InForce {
    /// These, from the start.
    pub fn new(settings: Settings) -> Self {
        InForce(Cell::new(settings))
    }

    /// The settings as they are now.
    pub fn get(&self) -> Settings {
        self.0.get()
    }

    /// These, from now on.
    pub fn replace(&self, settings: Settings) {
        self.0.set(settings);
    }
}

/// See the fields.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// `[cache]`.
    pub cache: CacheSettings,
    /// How much of this process one may have.
    pub limits: Limits,
    /// How long a request waits for an outcome. botocore reads for 2 s, the Rust SDK for 5.
    pub patience: Duration,
    /// How long a well-formed token that is not known waits for its record: a job's first process can be faster than
    /// the word of its start.
    pub newcomer_patience: Duration,
    /// What proves that a process with another node's token belongs to the job it asks for.
    pub foreign_token: ProofOfJob,
    /// What proves that a process without a token belongs to one of its user's jobs.
    pub without_token: ProofOfJob,
    /// For how long cached credentials are served while nothing is heard from credvend. `None`: until they expire.
    pub max_unheard: Option<Duration>,
    /// A stream that shows no life for so long is opened anew.
    pub silence: Duration,
    /// How often the cache is looked through at least, so that a wall clock that jumped is noticed.
    pub look: Duration,
}

/// How much of this process one may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections to the endpoint. Users who have no job here share a part: one person may have thousands of uids
    /// (subuid(5)).
    pub endpoint: Bounds,
    /// Requests of one user that wait for credvend.
    pub waiting_per_user: usize,
    /// A connection that sends no complete request head within this time (or a quarter more), idles for so long, or does
    /// not read its answer, is closed.
    pub idle: Duration,
    /// Open connections to the users' socket.
    pub user_socket: Bounds,
    /// For one exchange there.
    pub user_socket_patience: Duration,
}

impl Settings {
    /// The configuration's, and the usual ones.
    pub fn of(config: &Config) -> Self {
        Settings {
            cache: CacheSettings {
                store: config.cache.mode == CacheMode::Store,
                max_entries: config.cache.max_entries,
            },
            limits: Limits {
                endpoint: Bounds {
                    all: config.http.max_connections,
                    per_user: config.http.max_connections_per_user,
                    strangers: (config.http.max_connections / 8).max(1),
                },
                waiting_per_user: config.http.max_waiting_per_user,
                idle: Duration::from_secs(10),
                user_socket: Bounds { all: 64, per_user: 8, strangers: 64 },
                user_socket_patience: Duration::from_secs(2),
            },
            patience: Duration::from_millis(1800),
            newcomer_patience: Duration::from_millis(1000),
            foreign_token: config.http.foreign_token,
            without_token: config.http.without_token,
            max_unheard: config.cache.max_unheard,
            silence: Duration::from_secs(3 * PING_SECONDS),
            look: Duration::from_secs(15),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reload a minute for years must not make the process grow.
    #[test]
    fn a_reload_replaces_the_settings_in_place() {
        let text = format!("[credvend]\nurl = \"https://127.0.0.1:1\"\npin = \"sha256:{}\"\n", "ab".repeat(32));
        let mut settings = Settings::of(&crate::config::parse(&text).unwrap());
        let in_force = InForce::new(settings);
        settings.patience = Duration::from_secs(7);
        in_force.replace(settings);
        assert_eq!(in_force.get().patience, Duration::from_secs(7));
        assert_eq!(size_of::<InForce>(), size_of::<Settings>(), "no settings are kept elsewhere");
        assert!(!std::mem::needs_drop::<InForce>());
    }
}
