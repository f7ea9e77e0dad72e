//! `--aws=on|off` and `--aws-token-file`: what a user may ask for at srun, sbatch and salloc.

use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicU8, Ordering};

use slurm_spank::{Job, JobOption, Level, Outcome};

/// What the user asked for. The site's `off` wins over an `on`; an `off` always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// `--aws=`, if it was used.
    pub aws: Option<bool>,
    /// `--aws-token-file`.
    pub token_file: bool,
}

const AWS: c_int = 1;
const TOKEN_FILE: c_int = 2;

/// The two options, with the callback that Slurm calls.
pub fn options(callback: unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int) -> [JobOption; 2] {
    [
        JobOption {
            name: c"aws",
            argument: Some(c"on|off"),
            usage: c"AWS credentials of the job's project: off does without them; on, the default where the cluster \
                     offers them, also says why if there are none",
            value: AWS,
            callback,
        },
        JobOption {
            name: c"aws-token-file",
            argument: None,
            usage: c"also offer the token for AWS credentials as a file, for clients that read only that; \
                     not for containers, which cannot see it",
            value: TOKEN_FILE,
            callback,
        },
    ]
}

/// What callbacks have brought so far in this process: they come with no handle to keep it in.
static SEEN_AWS: AtomicU8 = AtomicU8::new(0);
static SEEN_TOKEN_FILE: AtomicU8 = AtomicU8::new(0);

/// The options' callback. On the submit host a wrong value is refused with a message; in slurmstepd, where it can only
/// have come past that, it counts for nothing.
pub fn on_option(option: c_int, argument: &str, remote: bool, log: impl Fn(Level, &str)) -> Outcome {
    match (option, on_off(argument)) {
        (AWS, Some(on)) => SEEN_AWS.store(if on { 1 } else { 2 }, Ordering::Relaxed),
        (AWS, None) => {
            if !remote {
                let shown: String = argument.chars().take(80).collect();
                log(Level::Error, &format!("--aws={shown:?}: it must be --aws=on or --aws=off"));
            }
            return Outcome::Refuse;
        }
        (TOKEN_FILE, _) => SEEN_TOKEN_FILE.store(1, Ordering::Relaxed),
        _ => {}
    }
    Outcome::Proceed
}

/// What the callbacks have brought: complete in `init_post_opt`.
pub fn seen() -> Asked {
    Asked {
        aws: match SEEN_AWS.load(Ordering::Relaxed) {
            0 => None,
            state => Some(state == 1),
        },
        token_file: SEEN_TOKEN_FILE.load(Ordering::Relaxed) != 0,
    }
}

/// What the job was submitted with, asked of Slurm: for prolog and epilog, where no callback comes.
pub fn of_job(job: &mut dyn Job, [aws, token_file]: &[JobOption; 2]) -> Asked {
    let value = job.used(aws).ok().flatten().and_then(|used| used.argument);
    Asked { aws: value.as_deref().and_then(on_off), token_file: matches!(job.used(token_file), Ok(Some(_))) }
}

fn on_off(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn callbacks_are_remembered_and_wrong_values_refused_where_the_user_sees_it() {
        let said = RefCell::new(Vec::new());
        let log = |_, text: &str| said.borrow_mut().push(text.to_owned());
        assert_eq!(seen(), Asked::default());
        assert_eq!(on_option(AWS, "maybe", false, log), Outcome::Refuse);
        assert_eq!(on_option(AWS, "maybe", true, log), Outcome::Refuse);
        assert_eq!(said.borrow().len(), 1);
        assert!(said.borrow()[0].contains("--aws=on or --aws=off"));
        assert_eq!(seen(), Asked::default());
        on_option(AWS, "on", true, log);
        on_option(AWS, "off", true, log);
        on_option(TOKEN_FILE, "", true, log);
        assert_eq!(seen(), Asked { aws: Some(false), token_file: true });
    }
}
