//! The wrapper against functions of our own in place of Slurm's: what is passed, what comes back, what gets out.
//!
//! Slurm's variadic functions are defined here with the arguments that the wrapper really passes; on the Linux ABIs
//! that Slurm knows, a callee cannot tell.
#![allow(missing_docs)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use slurm_spank::ffi::{spank_handle, spank_item_t, spank_option, spank_t};
use slurm_spank::{Context, Environment, Error, Hook, Job, JobOption, Level, Outcome, StepId, guard, guard_option};

thread_local! {
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static ENV: RefCell<BTreeMap<CString, CString>> = const { RefCell::new(BTreeMap::new()) };
    static OPTIONS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

const NOT_THERE: u32 = 3007;
const NO_SPACE: u32 = 3008;

unsafe fn text(pointer: *const c_char) -> String {
    // SAFETY: the wrapper passes NUL-terminated strings.
    unsafe { CStr::from_ptr(pointer) }.to_str().unwrap().to_owned()
}

macro_rules! log_function {
    ($name:ident) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(format: *const c_char, message: *const c_char) {
            // SAFETY: as for `text`.
            let (format, message) = unsafe { (text(format), text(message)) };
            assert_eq!(format, "%s");
            LOG.with(|log| log.borrow_mut().push(format!("{}: {message}", stringify!($name))));
        }
    };
}
log_function!(slurm_error);
log_function!(slurm_info);
log_function!(slurm_debug);
log_function!(slurm_spank_log);

#[unsafe(no_mangle)]
extern "C" fn spank_strerror(_: u32) -> *const c_char {
    c"a reason".as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn spank_context() -> u32 {
    2
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spank_get_item(_: spank_t, item: spank_item_t, value: *mut u32) -> u32 {
    let known = match item {
        0 => 1001,
        2 => 77,
        3 => 0xffff_fffc,
        _ => return 3001,
    };
    // SAFETY: the wrapper passes a pointer to 32 bits.
    unsafe { *value = known };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spank_getenv(_: spank_t, name: *const c_char, buffer: *mut c_char, length: c_int) -> u32 {
    // SAFETY: as for `text`.
    let name = unsafe { CStr::from_ptr(name) };
    let Some(value) = ENV.with(|env| env.borrow().get(name).cloned()) else { return NOT_THERE };
    // As strlcpy does: what fits, and a NUL.
    let length = usize::try_from(length).unwrap();
    let count = value.as_bytes().len().min(length - 1);
    // SAFETY: the buffer has `length` bytes.
    unsafe {
        ptr::copy_nonoverlapping(value.as_ptr(), buffer, count);
        *buffer.add(count) = 0;
    }
    if value.as_bytes().len() >= length { NO_SPACE } else { 0 }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spank_setenv(_: spank_t, name: *const c_char, value: *const c_char, overwrite: c_int) -> u32 {
    assert_eq!(overwrite, 1);
    // SAFETY: as for `text`.
    let (name, value) = unsafe { (CStr::from_ptr(name).to_owned(), CStr::from_ptr(value).to_owned()) };
    ENV.with(|env| env.borrow_mut().insert(name, value));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spank_unsetenv(_: spank_t, name: *const c_char) -> u32 {
    // SAFETY: as for `text`.
    let name = unsafe { CStr::from_ptr(name) };
    ENV.with(|env| env.borrow_mut().remove(name));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spank_option_register(_: spank_t, option: *mut spank_option) -> u32 {
    // SAFETY: the wrapper passes a valid struct with valid strings.
    let (name, has_arg) = unsafe { (text((*option).name), (*option).has_arg) };
    OPTIONS.with(|options| options.borrow_mut().push(format!("{name}/{has_arg}")));
    if name == "taken" { 3002 } else { 0 }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spank_option_getopt(_: spank_t, option: *mut spank_option, argument: *mut *mut c_char) -> u32 {
    // SAFETY: as above; `argument` is valid for a pointer.
    unsafe {
        if text((*option).name) != "used" {
            return 3000;
        }
        *argument = c"value".as_ptr().cast_mut();
    }
    0
}

const HANDLE: *mut spank_handle = ptr::null_mut();

unsafe extern "C" fn no_callback(_: c_int, _: *const c_char, _: c_int) -> c_int {
    0
}

fn option(name: &'static CStr) -> JobOption {
    JobOption { name, argument: Some(c"x"), usage: c"x", value: 1, callback: no_callback }
}

/// Runs `body` as a hook without arguments.
fn hook(hook: Hook, body: impl FnOnce(&mut slurm_spank::Spank, &[String]) -> Outcome) -> c_int {
    // SAFETY: no argument strings; the functions above make nothing of the handle.
    unsafe { guard(hook, HANDLE, 0, ptr::null_mut(), || Outcome::Proceed, body) }
}

fn log() -> String {
    LOG.with(|log| log.borrow_mut().drain(..).collect::<Vec<_>>().join("\n"))
}

const HOOKS: [Hook; 6] =
    [Hook::Init, Hook::InitPostOpt, Hook::UserInit, Hook::TaskInitPrivileged, Hook::JobProlog, Hook::JobEpilog];

#[test]
fn only_one_hook_can_refuse_and_no_panic_gets_out() {
    for which in HOOKS {
        let refused = if which == Hook::TaskInitPrivileged { -1 } else { 0 };
        assert_eq!(hook(which, |_, _| Outcome::Refuse), refused, "{which:?}");
        assert_eq!(hook(which, |_, _| Outcome::Proceed), 0);
        assert_eq!(log(), "");
        assert_eq!(hook(which, |_, _| panic!("deliberate")), 0, "{which:?}");
        let said = log();
        assert!(said.contains(which.name()) && said.contains("deliberate") && said.contains("fake_slurm.rs"), "{said}");
        // SAFETY: as in `hook`.
        let code = unsafe { guard(which, HANDLE, 0, ptr::null_mut(), || Outcome::Refuse, |_, _| panic!("deliberate")) };
        assert_eq!(code, refused);
        // SAFETY: as in `hook`.
        let code = unsafe { guard(which, HANDLE, 0, ptr::null_mut(), || panic!("again"), |_, _| panic!("deliberate")) };
        assert_eq!(code, 0);
        log();
    }
}

#[test]
fn option_callbacks_refuse_on_the_submit_host_only() {
    // SAFETY: NULL or static strings.
    unsafe {
        assert_eq!(
            guard_option(c"x".as_ptr(), 0, |text, _| if text == "x" { Outcome::Refuse } else { Outcome::Proceed }),
            -1
        );
        assert_eq!(guard_option(c"x".as_ptr(), 1, |_, _| Outcome::Refuse), 0);
        assert_eq!(
            guard_option(ptr::null(), 0, |text, _| if text.is_empty() { Outcome::Proceed } else { Outcome::Refuse }),
            0
        );
        assert_eq!(guard_option(ptr::null(), 0, |_, _| panic!("deliberate")), 0);
    }
    assert!(log().contains("deliberate"));
}

#[test]
fn arguments_items_and_options_arrive() {
    let mut words = [c"default=on".as_ptr().cast_mut(), ptr::null_mut(), c"never".as_ptr().cast_mut()];
    let seen = RefCell::new(false);
    // SAFETY: three pointers, static strings or NULL.
    let code = unsafe {
        guard(
            Hook::Init,
            HANDLE,
            3,
            words.as_mut_ptr(),
            || Outcome::Proceed,
            |job, arguments| {
                assert_eq!(arguments, ["default=on"]);
                assert_eq!(
                    (job.context(), job.id(), job.uid(), job.step()),
                    (Context::Remote, Ok(77), Ok(1001), Ok(StepId::Extern))
                );
                assert!(matches!(job.gid(), Err(Error::Slurm { call: "S_JOB_GID", code: 3001, .. })));
                assert!(job.register(&option(c"free")).is_ok() && job.register(&option(c"taken")).is_err());
                assert_eq!(job.used(&option(c"used")).unwrap().unwrap().argument.as_deref(), Some("value"));
                assert_eq!(job.used(&option(c"unused")), Ok(None));
                job.log(Level::Notice, "100%s\nforged");
                *seen.borrow_mut() = true;
                Outcome::Proceed
            },
        )
    };
    assert!(code == 0 && seen.take(), "{}", log());
    assert_eq!(OPTIONS.with(RefCell::take), ["free/1", "taken/1"]);
    assert_eq!(log(), "slurm_spank_log: 100%s?forged");
}

#[test]
fn values_of_every_length_are_read_and_impossible_ones_not_written() {
    let code = hook(Hook::InitPostOpt, |job, _| {
        for length in [0, 1, 1022, 1023, 1024, 8191, 8192, 100_000, slurm_spank::MAX_VALUE_BYTES] {
            let value = vec![b'x'; length];
            job.set("NAME", &value).unwrap();
            assert_eq!(job.get("NAME"), Some(value), "{length}");
        }
        job.unset("NAME").unwrap();
        assert_eq!(job.get("NAME"), None);
        for (name, value) in [("", &b"x"[..]), ("A=B", b"x"), ("A\0B", b"x"), ("A", b"x\0y")] {
            assert_eq!(job.set(name, value), Err(Error::Text));
        }
        Outcome::Proceed
    });
    assert_eq!((code, log().as_str()), (0, ""));
}
