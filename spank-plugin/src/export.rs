//! What Slurm finds in the shared object: three constants and six hooks, each through [`slurm_spank::guard`].
//!
//! After a panic every hook lets the job go on, but `task_init_privileged` of an `on-error=fail` job, which stops it.
#![allow(non_upper_case_globals, missing_docs, clippy::missing_safety_doc)]

use std::ffi::{c_char, c_int, c_uint};

use slurm_spank::{Hook, JobOption, Outcome, ProcessEnvironment, Spank, ffi::spank_t, guard, guard_option};

use crate::{dispatch, job_options};

/// Slurm makes the options' variables from this name: `_SLURM_SPANK_OPTION_credd_aws`.
#[unsafe(no_mangle)]
pub static plugin_name: [u8; 6] = *b"credd\0";
#[unsafe(no_mangle)]
pub static plugin_type: [u8; 6] = *b"spank\0";
/// Slurm refuses a plugin whose major.minor is not its own.
#[unsafe(no_mangle)]
pub static plugin_version: c_uint = slurm_spank::SLURM_VERSION_NUMBER;

/// The options with the callback below.
fn options() -> [JobOption; 2] {
    job_options::options(on_option)
}

unsafe extern "C" fn on_option(option: c_int, argument: *const c_char, remote: c_int) -> c_int {
    // SAFETY: spank.h, spank_opt_cb_f: `argument` is NULL or a string that lives until this returns.
    unsafe {
        guard_option(argument, remote, |argument, remote| {
            job_options::on_option(option, argument, remote, slurm_spank::log)
        })
    }
}

/// One hook: its symbol, its [`Hook`], what a panic means, its body.
macro_rules! hook {
    ($symbol:ident, $hook:expr, $if_panics:expr, $body:expr) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $symbol(spank: spank_t, ac: c_int, av: *mut *mut c_char) -> c_int {
            // SAFETY: spank.h, spank_f: Slurm passes its handle and `ac` strings, all valid until this returns.
            unsafe { guard($hook, spank, ac, av, $if_panics, $body) }
        }
    };
}

hook!(slurm_spank_init, Hook::Init, proceed, init);
hook!(slurm_spank_init_post_opt, Hook::InitPostOpt, proceed, init_post_opt);
hook!(slurm_spank_user_init, Hook::UserInit, proceed, user_init);
hook!(slurm_spank_task_init_privileged, Hook::TaskInitPrivileged, dispatch::task_init_privileged_panicked, task_init);
hook!(slurm_spank_job_prolog, Hook::JobProlog, proceed, job_prolog);
hook!(slurm_spank_job_epilog, Hook::JobEpilog, proceed, job_epilog);

fn proceed() -> Outcome {
    Outcome::Proceed
}

fn init(job: &mut Spank, arguments: &[String]) -> Outcome {
    // SAFETY: called in srun, sbatch and salloc only, whose `main` calls this hook before it starts a thread.
    dispatch::init(job, arguments, &options(), || unsafe { ProcessEnvironment::new() })
}

fn init_post_opt(job: &mut Spank, arguments: &[String]) -> Outcome {
    dispatch::init_post_opt(job, arguments)
}

fn user_init(job: &mut Spank, arguments: &[String]) -> Outcome {
    dispatch::user_init(job, arguments)
}

fn task_init(job: &mut Spank, arguments: &[String]) -> Outcome {
    dispatch::task_init_privileged(job, arguments)
}

fn job_prolog(job: &mut Spank, arguments: &[String]) -> Outcome {
    // SAFETY: `slurmstepd spank prolog` has one thread.
    dispatch::job_prolog(job, arguments, &options(), || unsafe { ProcessEnvironment::new() })
}

fn job_epilog(job: &mut Spank, arguments: &[String]) -> Outcome {
    dispatch::job_epilog(job, arguments)
}
