//! The system calls of the server process.
//!
//! Three filters, of which the strictest answer counts: [`ALLOWED`] and [`conditional`] pass, everything else fails with
//! EPERM; `clone3`, whose flags a filter cannot see, does not exist (glibc then takes `clone`); and whoever starts a
//! program is not this program any more, so it is killed, which the supervisor logs.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Allowed whatever their arguments are.
///
/// Not among them, on purpose: `sendmsg` and `sendmmsg`, which can carry descriptors to another process (the resolver
/// does without, see `RES_OPTIONS` where the process is started); `kill` and its kind; anything of `io_uring`, which would do all of this without a system call.
const ALLOWED: &[libc::c_long] = &[
    // The sockets.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    // The resolver's files and modules, and the system's certificates; opening them is below.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    // Of jobs' cgroups, to know in which a step began.
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_readlinkat,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // glibc's, on a kernel that has it; elsewhere the number is nobody's.
    libc::SYS_clone3,
];

/// What newer architectures have no more.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Where an attacker starts.
#[cfg(target_arch = "x86_64")]
const FATAL: &[libc::c_long] =
    &[libc::SYS_execve, libc::SYS_execveat, libc::SYS_fork, libc::SYS_vfork, libc::SYS_ptrace];
#[cfg(not(target_arch = "x86_64"))]
const FATAL: &[libc::c_long] = &[libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace];

/// A new thread shares the process, and is in no namespace of its own.
const CLONE: (u64, u64) = {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let shared = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_FILES;
    ((namespaces | shared) as u64, shared as u64)
};

/// Of open(2): not these, so for reading only.
const WRITING: u64 = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u64;

/// Any of these in one argument.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.iter().map(|value| masked(argument, u64::from(u32::MAX), *value)).collect()
}

/// The argument's bits under `mask` are `value`. The arguments concerned are 32 bits wide.
fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let op = SeccompCmpOp::MaskedEq(mask);
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?])
}

/// Allowed with some arguments only.
fn conditional() -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Rules::new();
    let mut put = |call: libc::c_long, of: Vec<SeccompRule>| drop(rules.insert(call, of));
    put(libc::SYS_openat, vec![masked(2, WRITING, 0)?]);
    #[cfg(target_arch = "x86_64")]
    put(libc::SYS_open, vec![masked(1, WRITING, 0)?]);
    put(libc::SYS_clone, vec![masked(0, CLONE.0, CLONE.1)?]);
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    put(libc::SYS_socket, one_of(0, &families.map(|family| family as u64))?);
    // The runtime's own, for signals.
    put(libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX as u64])?);
    let commands = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];
    put(libc::SYS_fcntl, one_of(1, &commands.map(|command| command as u64))?);
    put(libc::SYS_ioctl, one_of(1, &[libc::FIONREAD, libc::FIONBIO])?);
    // Memory is never writable and executable; the resolver's modules are mapped from files.
    let (write, execute) = (libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
    put(libc::SYS_mmap, vec![masked(2, write, 0)?, masked(2, execute, 0)?]);
    put(libc::SYS_mprotect, vec![masked(2, execute, 0)?]);
    // A thread's name; above all not PR_SET_PDEATHSIG or PR_SET_DUMPABLE.
    put(libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME as u64])?);
    // Its own limits may be read.
    let no_new = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    put(libc::SYS_prlimit64, vec![SeccompRule::new(vec![no_new])?]);
    // abort(3).
    put(libc::SYS_tgkill, one_of(0, &[u64::from(std::process::id())])?);
    Ok(rules)
}

/// The filters, in the order in which they are to be installed.
pub fn programs() -> Result<[BpfProgram; 3], seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = |error: i32| SeccompAction::Errno(error.cast_unsigned());
    let always = |calls: &[libc::c_long]| -> Rules { calls.iter().map(|call| (*call, vec![])).collect() };
    let filter = |rules, otherwise, then| -> Result<BpfProgram, seccompiler::Error> {
        Ok(SeccompFilter::new(rules, otherwise, then, arch)?.try_into()?)
    };
    let mut allowed = conditional()?;
    allowed.extend(always(ALLOWED));
    allowed.extend(always(OLDER));
    Ok([
        filter(always(FATAL), SeccompAction::Allow, SeccompAction::KillProcess)?,
        filter(always(&[libc::SYS_clone3]), SeccompAction::Allow, refuse(libc::ENOSYS))?,
        filter(allowed, refuse(libc::EPERM), SeccompAction::Allow)?,
    ])
}
