//! A set of environment variables: the step's, which slurmstepd hands to the tasks, or this process's own.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::Error;

/// Values are bytes: nothing promises that they are UTF-8.
pub trait Environment {
    /// The value, if the variable is set (and no longer than [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES)).
    fn get(&self, name: &str) -> Option<Vec<u8>>;

    /// Sets it, over an older value too.
    ///
    /// # Errors
    /// What Slurm says, or [`Error::Text`] for a NUL byte or an empty or impossible name.
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Error>;

    /// Removes it; not an error if it was not there.
    ///
    /// # Errors
    /// As for [`Environment::set`].
    fn unset(&mut self, name: &str) -> Result<(), Error>;
}

/// The environment of this process: what srun, sbatch and salloc send along, and in a prolog or epilog what slurmctld
/// states about the job.
#[derive(Debug)]
pub struct ProcessEnvironment(());

impl ProcessEnvironment {
    /// The environment of this process.
    ///
    /// # Safety
    /// While the value lives, no other thread may read or write `environ`. That holds within `slurm_spank_init` of srun,
    /// sbatch and salloc: each calls it from `main` before it starts a thread (seen with 22.05: one entry in
    /// `/proc/self/task`). In `slurmstepd spank prolog|epilog` there is never a second thread. In slurmd and in a
    /// step's slurmstepd it does not hold.
    pub unsafe fn new() -> Self {
        ProcessEnvironment(())
    }
}

fn checked<'a>(name: &'a str, value: &[u8]) -> Result<&'a str, Error> {
    let bad = name.is_empty() || name.contains(['=', '\0']) || value.contains(&0);
    if bad { Err(Error::Text) } else { Ok(name) }
}

impl Environment for ProcessEnvironment {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        std::env::var_os(checked(name, b"").ok()?).map(OsStringExt::into_vec)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place, under the promise that ProcessEnvironment::new demands"
    )]
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        let name = checked(name, value)?;
        // SAFETY: setenv(3) wants that nobody else uses `environ` meanwhile: promised to ProcessEnvironment::new.
        unsafe { std::env::set_var(name, OsStr::from_bytes(value)) };
        Ok(())
    }

    fn unset(&mut self, name: &str) -> Result<(), Error> {
        let name = checked(name, b"")?;
        // SAFETY: as for `set`.
        unsafe { std::env::remove_var(name) };
        Ok(())
    }
}

/// For tests and measurements.
impl Environment for std::collections::BTreeMap<String, Vec<u8>> {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        std::collections::BTreeMap::get(self, name).cloned()
    }

    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        self.insert(checked(name, value)?.to_owned(), value.to_owned());
        Ok(())
    }

    fn unset(&mut self, name: &str) -> Result<(), Error> {
        self.remove(name);
        Ok(())
    }
}
