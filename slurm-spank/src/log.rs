//! Slurm's log functions.

use std::ffi::CString;

use crate::ffi;

/// How loud, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// `slurm_debug`.
    Debug,
    /// `slurm_info`.
    Info,
    /// `slurm_spank_log`: as loud as an error, without the word. From `user_init` on it reaches the user's stderr.
    Notice,
    /// `slurm_error`. In a prolog it reaches slurmd's log, from `user_init` on the user's stderr too.
    Error,
}

/// The longest message: Slurm's own buffers are bounded as well.
const MAX_BYTES: usize = 2000;

/// Writes one line. Control characters are shown as `?`, so that no text from elsewhere forges another line.
pub fn log(level: Level, message: &str) {
    let text = line(message);
    let (format, text) = (c"%s".as_ptr(), text.as_ptr());
    // SAFETY: spank.h: printf-like functions; the only format is "%s" and its one argument a NUL-terminated string that
    // outlives the call. No text of ours is ever a format.
    unsafe {
        match level {
            Level::Debug => ffi::slurm_debug(format, text),
            Level::Info => ffi::slurm_info(format, text),
            Level::Notice => ffi::slurm_spank_log(format, text),
            Level::Error => ffi::slurm_error(format, text),
        }
    }
}

fn line(message: &str) -> CString {
    let mut text = String::with_capacity(message.len().min(MAX_BYTES));
    for c in message.chars() {
        if text.len() >= MAX_BYTES {
            text.push('…');
            break;
        }
        text.push(if c.is_control() { '?' } else { c });
    }
    CString::new(text).expect("NUL is a control character")
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn one_call_is_one_bounded_line() {
        assert_eq!(line("a\nb\0c\u{1b}[2J%s").to_str().unwrap(), "a?b?c?[2J%s");
        assert!(line(&"é".repeat(10_000)).as_bytes().len() < 2010);
    }
}
