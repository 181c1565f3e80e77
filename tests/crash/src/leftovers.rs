//! What a kernel left behind: processes that bear its marker, sockets, segments, files of half-done work.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// What was killed is gone within this.
const DYING: Duration = Duration::from_secs(10);

/// Whoever was started under this kernel carries the round's directory in its environment.
pub(crate) fn processes(directory: &Path) -> Vec<u32> {
    let mark = directory.as_os_str().as_encoded_bytes();
    let me = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != me && bears(*pid, mark)).collect()
}

fn bears(pid: u32, mark: &[u8]) -> bool {
    // A zombie has no environment any more; a process of another user cannot be ours.
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.windows(mark.len()).any(|window| window == mark)
}

/// The shared memory that a process has open or mapped, by inode.
pub(crate) fn arenas(pid: u32) -> BTreeSet<u64> {
    const NAME: &str = "memfd:eclosion-arena";
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mapped = maps.lines().filter(|line| line.contains(NAME));
    let mut found: BTreeSet<u64> =
        mapped.filter_map(|line| line.split_ascii_whitespace().nth(4)?.parse().ok()).collect();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains(NAME)) {
            found.extend(fs::metadata(entry.path()).map(|open| open.ino()));
        }
    }
    found
}

/// Of every process that bears the mark.
pub(crate) fn all_arenas(directory: &Path) -> BTreeSet<u64> {
    processes(directory).into_iter().flat_map(arenas).collect()
}

/// Waits until no process is left, and no file that its end should have taken along; says what is.
pub(crate) fn none_within(directory: &Path, instance: &Path, patience: Duration) -> Result<(), String> {
    ended_within(directory, patience)?;
    let mut files = Vec::new();
    collect(&directory.join("run"), &mut files);
    // The file that keepers lock stays: removing it would let two of them lock different files of one name.
    files.retain(|file| !file.ends_with("/keeper.lock"));
    collect(&instance.join("artifacts").join("stage"), &mut files);
    collect(&instance.join("scratch"), &mut files);
    collect(Path::new("/dev/shm"), &mut files);
    files.retain(|file| !file.starts_with("/dev/shm") || file.contains("eclosion"));
    if files.is_empty() { Ok(()) } else { Err(format!("files are left: {files:?}")) }
}

/// Waits for the end of every process that bears the mark, and of those that they start meanwhile.
pub(crate) fn ended_within(directory: &Path, patience: Duration) -> Result<(), String> {
    let until = Instant::now() + patience;
    loop {
        let left = watched(directory);
        if left.is_empty() {
            return Ok(());
        }
        for (pid, pidfd) in left {
            if !has_ended(&pidfd, until) {
                return Err(format!("a process is left: {}", command_of(pid)));
            }
        }
    }
}

/// SIGKILL of every process that bears the mark, until there is none.
pub(crate) fn kill_all(directory: &Path) -> Result<(), String> {
    let until = Instant::now() + DYING;
    loop {
        let left = watched(directory);
        if left.is_empty() {
            return Ok(());
        }
        for (_, pidfd) in &left {
            // Refused only if it has ended.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        if let Some((pid, _)) = left.iter().find(|(_, pidfd)| !has_ended(pidfd, until)) {
            return Err(format!("a process cannot be killed: {}", command_of(*pid)));
        }
    }
}

fn watched(directory: &Path) -> Vec<(u32, OwnedFd)> {
    let open = |pid: u32| {
        let named = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let pidfd = pidfd_open(named, PidfdFlags::empty()).ok()?;
        // It may have ended, and another have its number, before it was opened.
        bears(pid, directory.as_os_str().as_encoded_bytes()).then_some((pid, pidfd))
    };
    processes(directory).into_iter().filter_map(open).collect()
}

fn has_ended(pidfd: &OwnedFd, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else { return false };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            ended => return ended == Ok(1),
        }
    }
}

fn command_of(pid: u32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid}: {}", String::from_utf8_lossy(&command).replace('\0', " "))
}

/// Files and what else is no directory.
fn collect(directory: &Path, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path.display().to_string());
        }
    }
}
