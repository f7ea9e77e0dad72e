//! Why credvend did not give what was asked.

use std::time::Duration;

/// An exchange with credvend that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It could not be reached, did not answer in time, or cannot answer now. Asking again soon may help.
    #[error("{0}")]
    Outage(String),
    /// It will have an answer, but not yet: there is no use in asking again sooner than it says.
    #[error("{0}")]
    Busy(String, Duration),
    /// It answered no, but an administrator may mend that while the job runs: ask again, seldom.
    #[error("{0}")]
    No(String),
    /// It answered no to whatever this node or its cluster asks: a matter for an administrator, not of the job. Else as
    /// [`Trouble::No`].
    #[error("{0}")]
    Site(String),
    /// It answered no for good.
    #[error("{0}")]
    Never(String),
    /// It answered no for good: by Slurm's word the run that was asked for is over.
    #[error("{0}")]
    Over(String),
    /// It does not know the session, although it opened it: its store was replaced, perhaps.
    #[error("{0}")]
    Gone(String),
}

impl Trouble {
    /// The sentence for the job's user.
    pub fn reason(&self) -> &str {
        match self {
            Trouble::Busy(reason, _)
            | Trouble::Outage(reason)
            | Trouble::No(reason)
            | Trouble::Site(reason)
            | Trouble::Never(reason)
            | Trouble::Over(reason)
            | Trouble::Gone(reason) => reason,
        }
    }
}
