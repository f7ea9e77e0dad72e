//! Two copies of this plugin, one before and one behind another plugin in `plugstack.conf`, measure that plugin's hooks
//! where they really run: in a fresh slurmstepd, with cold caches, once.
//!
//! ```text
//! required /…/clock_first.so first
//! required /…/spank_credd.so default=on
//! required /…/clock_last.so last /…/times
//! ```
//!
//! The last one appends a line for each hook: its name, job, step, its time in ns, and when it began (ns since 1970).
#![allow(non_upper_case_globals, missing_docs, clippy::missing_safety_doc)]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fs::OpenOptions;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use slurm_spank::ffi::{
    S_CTX_JOB_SCRIPT, S_CTX_REMOTE, S_JOB_ID, S_JOB_STEPID, spank_context, spank_get_item, spank_t,
};

#[unsafe(no_mangle)]
pub static plugin_name: [u8; 6] = *b"clock\0";
#[unsafe(no_mangle)]
pub static plugin_type: [u8; 6] = *b"spank\0";
#[unsafe(no_mangle)]
pub static plugin_version: c_uint = slurm_spank::SLURM_VERSION_NUMBER;

/// From the first copy to the last one. It stays in slurmstepd's own environment, no job sees it.
const VARIABLE: &str = "CREDD_BENCH_CLOCK";

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// # Safety
/// The three arguments are those that Slurm passed to a hook (spank.h, spank_f).
unsafe fn tick(hook: &str, spank: spank_t, ac: c_int, av: *mut *mut c_char) -> c_int {
    // Before all else: in the last copy it ends the other plugin's time.
    let end = now();
    // SAFETY: spank.h: callable from any hook.
    if !matches!(unsafe { spank_context() }, S_CTX_REMOTE | S_CTX_JOB_SCRIPT) {
        return 0;
    }
    let argument = |nth: usize| {
        // SAFETY: spank.h: `ac` strings at `av`, valid until the hook returns.
        (nth < ac as usize).then(|| unsafe { CStr::from_ptr(*av.add(nth)) }.to_string_lossy().into_owned())
    };
    match argument(0).as_deref() {
        Some("first") => {
            #[expect(clippy::disallowed_methods, reason = "the copies of this plugin share nothing but the process")]
            // SAFETY: slurmstepd calls `init`, `init_post_opt` and `job_prolog` while it has one thread that uses the
            // environment.
            unsafe {
                std::env::set_var(VARIABLE, now().to_string())
            };
        }
        Some("last") => {
            let start: u128 = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            let (mut job, mut step) = (0u32, 0u32);
            // SAFETY: spank.h: both items are written as uint32_t. Where an item is not available it stays 0.
            unsafe {
                spank_get_item(spank, S_JOB_ID, &raw mut job);
                spank_get_item(spank, S_JOB_STEPID, &raw mut step);
            }
            let line = format!("{hook} {job} {step} {} {start}\n", end.saturating_sub(start));
            let file = argument(1).and_then(|path| OpenOptions::new().append(true).create(true).open(path).ok());
            // Nobody reads an error here; the bench notices that lines are missing.
            let _ = file.map(|mut file| file.write_all(line.as_bytes()));
        }
        _ => {}
    }
    0
}

macro_rules! hook {
    ($symbol:ident, $name:literal) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $symbol(spank: spank_t, ac: c_int, av: *mut *mut c_char) -> c_int {
            // SAFETY: spank.h, spank_f: Slurm passes its handle and `ac` strings, all valid until this returns.
            unsafe { tick($name, spank, ac, av) }
        }
    };
}

hook!(slurm_spank_init, "init");
hook!(slurm_spank_init_post_opt, "init_post_opt");
hook!(slurm_spank_job_prolog, "job_prolog");
