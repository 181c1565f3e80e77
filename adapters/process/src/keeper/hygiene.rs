//! What a keeper does to itself before it has a child: all that it starts inherits it (tier 0).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;

use rustix::process::{Resource, Rlimit};

use super::READY_LINE;

/// Holds every descriptor number up to the highest that a zygote is given.
pub(super) fn reserve_descriptors() -> io::Result<Vec<File>> {
    let mut reserved = vec![File::open("/dev/null")?];
    while reserved.last().is_some_and(|file| file.as_raw_fd() < 4) {
        reserved.push(File::open("/dev/null")?);
    }
    Ok(reserved)
}

/// What zygotes and workers inherit (tier 0), and a session of our own: a Ctrl-C in the kernel's terminal is not ours.
pub(super) fn harden() -> io::Result<()> {
    // Refused only where we lead a group already, and then the terminal's signals do not reach us either.
    _ = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::thread::set_no_new_privs(true)?;
    // The kernel's allocator does without huge pages, which is inherited; arrays in a worker are faster with them.
    rustix::thread::disable_transparent_huge_pages(false)?;
    Ok(())
}

/// One line to whoever started us; then standard output is nobody's.
pub(super) fn announce() -> io::Result<()> {
    // A kernel that died meanwhile is no reason to fail: the grace runs.
    drop(writeln!(io::stdout(), "{READY_LINE}").and_then(|()| io::stdout().flush()));
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}
