//! The real [`Job`]: a SPANK handle.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use crate::{Context, Environment, Job, JobOption, Level, MAX_VALUE_BYTES, StepId, Used, ffi};

/// Why Slurm did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Slurm's own words.
    #[error("{call}: {text} (code {code})")]
    Slurm {
        /// Which function.
        call: &'static str,
        /// `spank_err_t`; the numbers moved between releases.
        code: u32,
        /// spank_strerror.
        text: String,
    },
    /// A variable's name or value that no environment can hold.
    #[error("a variable's name or value is empty or holds a NUL byte or '='")]
    Text,
}

/// The handle of one call. It must not outlive the hook, and does not: [`guard`](crate::guard) lends it.
#[derive(Debug)]
pub struct Spank {
    handle: ffi::spank_t,
}

impl Spank {
    /// # Safety
    /// `handle` is what Slurm passed to the hook that is running, and the hook returns after the last use.
    pub(crate) unsafe fn new(handle: ffi::spank_t) -> Self {
        Spank { handle }
    }

    fn item(&self, call: &'static str, item: ffi::spank_item_t) -> Result<u32, Error> {
        let mut value: u32 = 0;
        // SAFETY: spank.h: each item asked for here (S_JOB_UID, _GID, _ID, _STEPID, _NODEID, S_TASK_ID) takes one pointer
        // to a 32-bit integer (uid_t, gid_t and int are such on Linux); the handle is valid until the hook returns.
        check(call, unsafe { ffi::spank_get_item(self.handle, item, ptr::from_mut(&mut value)) })?;
        Ok(value)
    }
}

/// What fits nearly every value.
const USUAL_VALUE_BYTES: usize = 1024;

/// How a variable's value came.
enum Value {
    /// So many bytes of it, without the NUL.
    Whole(usize),
    /// It has more bytes than the buffer.
    TooLong,
}

impl Spank {
    /// The value of a variable that is set, in `buffer`.
    fn value_of(&self, name: &CStr, buffer: &mut [u8]) -> Option<Value> {
        // SAFETY: spank.h: writes at most `len` bytes with a NUL into `buf`, which has them; reads the name up to its
        // NUL. MAX_VALUE_BYTES and one fit an int.
        let code =
            unsafe { ffi::spank_getenv(self.handle, name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len() as c_int) };
        let length = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
        match code {
            0 => Some(Value::Whole(length)),
            // ESPANK_NOSPACE has no fixed number; it alone leaves a full buffer.
            _ if length + 1 < buffer.len() => None,
            _ => Some(Value::TooLong),
        }
    }
}

fn check(call: &'static str, code: ffi::spank_err_t) -> Result<(), Error> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: spank.h: returns a static string for any number; NULL is provided for.
    let text = unsafe {
        let text = ffi::spank_strerror(code);
        if text.is_null() { c"unknown error" } else { CStr::from_ptr(text) }
    };
    Err(Error::Slurm { call, code, text: text.to_string_lossy().into_owned() })
}

fn c_name(name: &str) -> Result<CString, Error> {
    if name.is_empty() || name.contains('=') { Err(Error::Text) } else { CString::new(name).map_err(|_| Error::Text) }
}

impl Environment for Spank {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        let name = c_name(name).ok()?;
        // On the stack: a block of this size, taken from slurmstepd's heap for each variable, breaks up the room that its next
        // spank_setenv needs (it takes 256 KiB each time), and then that comes as 64 new pages.
        let mut usual = [0; USUAL_VALUE_BYTES];
        if let Value::Whole(length) = self.value_of(&name, &mut usual)? {
            return Some(usual[..length].to_vec());
        }
        let mut long = vec![0; MAX_VALUE_BYTES + 1];
        match self.value_of(&name, &mut long)? {
            Value::Whole(length) => {
                long.truncate(length);
                Some(long)
            }
            Value::TooLong => None,
        }
    }

    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        let (name, value) = (c_name(name)?, CString::new(value).map_err(|_| Error::Text)?);
        // SAFETY: spank.h: copies both NUL-terminated strings.
        check("spank_setenv", unsafe { ffi::spank_setenv(self.handle, name.as_ptr(), value.as_ptr(), 1) })
    }

    fn unset(&mut self, name: &str) -> Result<(), Error> {
        let name = c_name(name)?;
        // SAFETY: spank.h: reads the NUL-terminated name.
        check("spank_unsetenv", unsafe { ffi::spank_unsetenv(self.handle, name.as_ptr()) })
    }
}

impl Job for Spank {
    fn context(&self) -> Context {
        // SAFETY: spank.h: takes nothing, reads a global that Slurm sets before it calls any hook.
        Context::from_raw(unsafe { ffi::spank_context() })
    }

    fn id(&self) -> Result<u32, Error> {
        self.item("S_JOB_ID", ffi::S_JOB_ID)
    }

    fn uid(&self) -> Result<u32, Error> {
        self.item("S_JOB_UID", ffi::S_JOB_UID)
    }

    fn gid(&self) -> Result<u32, Error> {
        self.item("S_JOB_GID", ffi::S_JOB_GID)
    }

    fn step(&self) -> Result<StepId, Error> {
        self.item("S_JOB_STEPID", ffi::S_JOB_STEPID).map(StepId::from)
    }

    fn node_index(&self) -> Result<u32, Error> {
        self.item("S_JOB_NODEID", ffi::S_JOB_NODEID)
    }

    fn task_index(&self) -> Result<u32, Error> {
        self.item("S_TASK_ID", ffi::S_TASK_ID)
    }

    fn register(&mut self, option: &JobOption) -> Result<(), Error> {
        let mut raw = option.to_raw();
        // SAFETY: spank.h: reads the struct during the call; all its strings are static.
        check("spank_option_register", unsafe { ffi::spank_option_register(self.handle, &mut raw) })
    }

    fn used(&mut self, option: &JobOption) -> Result<Option<Used>, Error> {
        let mut raw = option.to_raw();
        let mut argument: *mut c_char = ptr::null_mut();
        // SAFETY: spank.h: reads the struct during the call and stores a string of Slurm's, or NULL, in `argument`.
        let code = unsafe { ffi::spank_option_getopt(self.handle, &mut raw, &mut argument) };
        if code != 0 {
            // ESPANK_ERROR means "not used" and has no fixed number; whatever else fails here, fails before too, since
            // this is called from hooks where spank.h allows it. Slurm sets `argument` only on success.
            return Ok(None);
        }
        let argument = if argument.is_null() {
            None
        } else {
            // SAFETY: on success a NUL-terminated string of Slurm's option cache, which lives longer than the hook.
            Some(unsafe { CStr::from_ptr(argument) }.to_string_lossy().into_owned())
        };
        Ok(Some(Used { argument }))
    }

    fn log(&self, level: Level, message: &str) {
        crate::log(level, message);
    }
}
