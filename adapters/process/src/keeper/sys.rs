//! The system calls that need `unsafe`, one per function, and nothing else.
//!
//! All of them are about being a parent: signals as a descriptor, wait with resource usage, and the moment between
//! fork and exec. The rest of the keeper's hygiene (umask, no_new_privs, limits, session) is set on the keeper itself
//! with safe calls and inherited.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::step::Exit;
use crate::message::How;

/// Signals that the keeper reads from a descriptor: a child's end, and being asked to end.
const SIGNALS: [i32; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

fn signal_set() -> libc::sigset_t {
    #[expect(unsafe_code, reason = "a signal set is made by libc alone")]
    // SAFETY: sigemptyset initializes the set that zeroed() reserves; sigaddset is given valid signal numbers.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in SIGNALS {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

/// Blocks the keeper's signals and gives a descriptor that is readable when one is pending.
pub(super) fn signal_descriptor() -> io::Result<OwnedFd> {
    let set = signal_set();
    #[expect(unsafe_code, reason = "rustix has no signalfd")]
    // SAFETY: the set is initialized and outlives both calls; the process has one thread; a descriptor that signalfd
    // returns is owned by nobody else.
    unsafe {
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

/// Closes every descriptor beyond the standard three: the keeper outlives the process that it inherited them from.
pub(super) fn close_inherited() {
    #[expect(unsafe_code, reason = "inherited descriptors have no owner in this process")]
    // SAFETY: called first of all by the keeper's main, before anything in this process opened a descriptor.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
    }
}

/// A child that has ended and is not yet waited for: its /proc entry still tells its start time.
pub(super) enum Peek {
    Ended(u32),
    /// There are children, and all of them live.
    None,
    Childless,
}

pub(super) fn peek() -> Peek {
    #[expect(unsafe_code, reason = "rustix's waitid does not tell the pid")]
    // SAFETY: `info` is a plain structure that waitid fills in; si_pid is valid after a successful call.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &raw mut info, options) != 0 {
            return Peek::Childless;
        }
        u32::try_from(info.si_pid()).ok().filter(|pid| *pid != 0).map_or(Peek::None, Peek::Ended)
    }
}

/// Takes the status of a child that [`peek`] saw.
pub(super) fn reap(pid: u32) -> Option<Exit> {
    let pid = i32::try_from(pid).ok()?;
    let mut status = 0;
    #[expect(unsafe_code, reason = "rustix has no wait4, and only it tells the peak memory of one child")]
    // SAFETY: both out-pointers are to plain structures that live through the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::wait4(pid, &raw mut status, libc::WNOHANG, &raw mut usage) != pid {
            return None;
        }
        usage
    };
    let how = if libc::WIFSIGNALED(status) {
        How::Signal(libc::WTERMSIG(status))
    } else {
        How::Code(libc::WEXITSTATUS(status))
    };
    // Linux counts in KiB.
    let peak_rss_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    Some(Exit { how, peak_rss_bytes, oom_limit_bytes: None })
}

/// The child gets this descriptor as number `target`, and signals that arrive. The descriptor must not be `target`
/// itself, and `target` must be taken in this process, or it could be the pipe by which `Command` reports a failed exec.
pub(super) fn pass(command: &mut Command, descriptor: &OwnedFd, target: RawFd) {
    let source = descriptor.as_raw_fd();
    let hook = move || {
        #[expect(unsafe_code, reason = "a descriptor has to be put in place between fork and exec")]
        // SAFETY: dup2, sigemptyset and sigprocmask are async-signal-safe; `source` stays open until the spawn is
        // over, because the caller holds it; nothing is allocated.
        unsafe {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            let unblocked = libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) == 0;
            if !unblocked || libc::dup2(source, target) == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "the only way to run code between fork and exec")]
    // SAFETY: see the hook: it calls nothing but async-signal-safe functions.
    unsafe {
        command.pre_exec(hook);
    }
}
