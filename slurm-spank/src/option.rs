//! Options that a plugin adds to srun, sbatch and salloc.

use std::ffi::{CStr, c_char, c_int};

use crate::ffi;

/// An option. Everything in it is static: some Slurm releases keep the pointers.
#[derive(Debug, Clone, Copy)]
pub struct JobOption {
    /// Without the dashes.
    pub name: &'static CStr,
    /// One word for the argument in the help text; `None` if the option takes none.
    pub argument: Option<&'static CStr>,
    /// The help text, without a line break.
    pub usage: &'static CStr,
    /// What the callback gets as `val`: tells the options of a plugin apart.
    pub value: c_int,
    /// Called with `(value, argument, remote)` on the submit host, and again (twice, even) in slurmstepd before
    /// `init_post_opt`. Anything but 0 on the submit host refuses the command.
    pub callback: unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int,
}

/// How the user used an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The argument of an option that takes one; bytes that are not UTF-8 are replaced.
    pub argument: Option<String>,
}

impl JobOption {
    /// For one call; Slurm copies the strings or keeps pointers to these static ones, and writes through none.
    pub(crate) fn to_raw(self) -> ffi::spank_option {
        ffi::spank_option {
            name: self.name.as_ptr().cast_mut(),
            arginfo: self.argument.map_or(std::ptr::null_mut(), |text| text.as_ptr().cast_mut()),
            usage: self.usage.as_ptr().cast_mut(),
            has_arg: c_int::from(self.argument.is_some()),
            val: self.value,
            cb: Some(self.callback),
        }
    }
}
