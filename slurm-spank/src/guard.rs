//! The one way from Slurm into the plugin: no panic gets out, and no value that would hurt the node.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::{Level, Spank, ffi, log};

/// The functions that Slurm calls, as far as they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `slurm_spank_init`.
    Init,
    /// `slurm_spank_init_post_opt`.
    InitPostOpt,
    /// `slurm_spank_user_init`.
    UserInit,
    /// `slurm_spank_task_init_privileged`: the only hook that may refuse a job.
    TaskInitPrivileged,
    /// `slurm_spank_job_prolog`.
    JobProlog,
    /// `slurm_spank_job_epilog`.
    JobEpilog,
}

impl Hook {
    /// The symbol.
    pub fn name(self) -> &'static str {
        match self {
            Hook::Init => "slurm_spank_init",
            Hook::InitPostOpt => "slurm_spank_init_post_opt",
            Hook::UserInit => "slurm_spank_user_init",
            Hook::TaskInitPrivileged => "slurm_spank_task_init_privileged",
            Hook::JobProlog => "slurm_spank_job_prolog",
            Hook::JobEpilog => "slurm_spank_job_epilog",
        }
    }

    /// What Slurm is told. A negative value from any other hook drains the node, or lets a job count as done without
    /// having run.
    fn code(self, outcome: Outcome) -> c_int {
        if self == Hook::TaskInitPrivileged && outcome == Outcome::Refuse { -1 } else { 0 }
    }
}

/// What a hook wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Go on.
    Proceed,
    /// Fail the job. Only [`Hook::TaskInitPrivileged`] can; any other hook goes on.
    Refuse,
}

/// Runs a hook's body with the job and the plugin's arguments from `plugstack.conf`. A panic is logged with its place,
/// and counts as `if_panics`.
///
/// # Safety
/// The three arguments are those that Slurm passed to the hook: a handle, and `ac` strings at `av`, valid until the hook
/// returns (spank.h, `spank_f`).
pub unsafe fn guard(
    hook: Hook,
    spank: ffi::spank_t,
    ac: c_int,
    av: *mut *mut c_char,
    if_panics: impl FnOnce() -> Outcome,
    body: impl FnOnce(&mut Spank, &[String]) -> Outcome,
) -> c_int {
    let outcome = caught(hook.name(), || {
        // SAFETY: passed on from the caller.
        let (mut job, arguments) = unsafe { (Spank::new(spank), strings(ac, av)) };
        body(&mut job, &arguments)
    });
    hook.code(outcome.unwrap_or_else(|| caught(hook.name(), if_panics).unwrap_or(Outcome::Proceed)))
}

/// Runs an option's callback: `body` gets the argument and whether this is slurmstepd. Only on the submit host can an
/// option be refused; a panic refuses nothing.
///
/// # Safety
/// `argument` is what Slurm passed: NULL or a string valid until the callback returns (spank.h, `spank_opt_cb_f`).
pub unsafe fn guard_option(argument: *const c_char, remote: c_int, body: impl FnOnce(&str, bool) -> Outcome) -> c_int {
    let remote = remote != 0;
    let outcome = caught("an option's callback", || {
        // SAFETY: passed on from the caller.
        let text = if argument.is_null() { c"" } else { unsafe { CStr::from_ptr(argument) } };
        body(&text.to_string_lossy(), remote)
    });
    if !remote && outcome == Some(Outcome::Refuse) { -1 } else { 0 }
}

/// # Safety
/// As for [`guard`].
unsafe fn strings(ac: c_int, av: *mut *mut c_char) -> Vec<String> {
    let count = if av.is_null() { 0 } else { usize::try_from(ac).unwrap_or(0) };
    (0..count)
        .map_while(|i| {
            // SAFETY: `i` is below `ac`.
            let text = unsafe { *av.add(i) };
            // SAFETY: a NUL-terminated string unless NULL.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        })
        .collect()
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// `None` after a panic, which is logged.
fn caught<T>(what: &str, body: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    // The default hook writes to stderr, which may be anything in slurmstepd; the place is kept for the log instead.
    QUIET.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let text = info.to_string();
            let _ = LAST_PANIC.try_with(|last| last.try_borrow_mut().map(|mut last| *last = text));
        }));
    });
    // Nothing of a body that panicked is used again: its state is replaced as a whole or not at all.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => Some(value),
        Err(payload) => {
            // A payload's own drop may panic; it is small and rare, so it is left alone.
            std::mem::forget(payload);
            let place = LAST_PANIC.with(|last| std::mem::take(&mut *last.borrow_mut()));
            log(Level::Error, &format!("spank_credd: {what}: internal error, please report it: {place}"));
            None
        }
    }
}
