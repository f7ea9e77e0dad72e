//! What a hook may ask Slurm about the job or step it was called for.

use crate::{Environment, Error, JobOption, Level, Used, ffi};

/// Which process runs the plugin (`spank_context_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// srun, as the user.
    Local,
    /// A step's slurmstepd, as root.
    Remote,
    /// sbatch or salloc, as the user.
    Allocator,
    /// slurmd itself.
    Slurmd,
    /// `slurmstepd spank prolog|epilog`, as root.
    JobScript,
    /// Slurm cannot tell.
    Unknown,
}

impl Context {
    pub(crate) fn from_raw(context: ffi::spank_context_t) -> Self {
        match context {
            ffi::S_CTX_LOCAL => Context::Local,
            ffi::S_CTX_REMOTE => Context::Remote,
            ffi::S_CTX_ALLOCATOR => Context::Allocator,
            ffi::S_CTX_SLURMD => Context::Slurmd,
            ffi::S_CTX_JOB_SCRIPT => Context::JobScript,
            _ => Context::Unknown,
        }
    }
}

/// A step's number, with Slurm's special ones told apart (`slurm.h`, since 20.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepId {
    /// The batch script.
    Batch,
    /// The container of `PrologFlags=Contain`: no user's process but adopted ones.
    Extern,
    /// salloc's shell with `use_interactive_step`.
    Interactive,
    /// An srun's.
    Number(u32),
}

impl From<u32> for StepId {
    fn from(id: u32) -> Self {
        match id {
            0xffff_fffb => StepId::Batch,
            0xffff_fffc => StepId::Extern,
            0xffff_fffa => StepId::Interactive,
            number => StepId::Number(number),
        }
    }
}

/// The job or step at hand. Its [`Environment`] is the step's; outside slurmstepd Slurm refuses access to that.
pub trait Job: Environment {
    /// Which process this is.
    fn context(&self) -> Context;

    /// `S_JOB_ID`: of a het job the component's. A user cannot forge it.
    ///
    /// # Errors
    /// Where the context has none.
    fn id(&self) -> Result<u32, Error>;

    /// `S_JOB_UID`. A user cannot forge it.
    ///
    /// # Errors
    /// Where the context has none.
    fn uid(&self) -> Result<u32, Error>;

    /// `S_JOB_GID`.
    ///
    /// # Errors
    /// Where the context has none.
    fn gid(&self) -> Result<u32, Error>;

    /// `S_JOB_STEPID`. A user cannot forge it.
    ///
    /// # Errors
    /// Where the context has none.
    fn step(&self) -> Result<StepId, Error>;

    /// `S_JOB_NODEID`: this node's place among the step's nodes, from 0.
    ///
    /// # Errors
    /// Where the context has none.
    fn node_index(&self) -> Result<u32, Error>;

    /// `S_TASK_ID`: the task's place among the step's tasks on this node, from 0; only in task hooks.
    ///
    /// # Errors
    /// Where the context has none.
    fn task_index(&self) -> Result<u32, Error>;

    /// Announces an option of srun, sbatch and salloc; only in `slurm_spank_init`.
    ///
    /// # Errors
    /// What Slurm says.
    fn register(&mut self, option: &JobOption) -> Result<(), Error>;

    /// Whether the job was submitted with the option. Not in `init` and `init_post_opt` (the option's callback serves
    /// there), and not in `task_post_fork`, `exit` and `slurmd_exit`.
    ///
    /// # Errors
    /// Where Slurm does not say; "not used" is no error.
    fn used(&mut self, option: &JobOption) -> Result<Option<Used>, Error>;

    /// Says something; see [`Level`] for who hears it.
    fn log(&self, level: Level, message: &str);
}
