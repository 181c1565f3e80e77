//! Who is who, from /proc.
//!
//! A pid alone names nobody for long: a process is named by its pid and its start time in one boot. Signals go through
//! a pidfd that was opened before the start time was compared, so they reach the one that was meant or nobody.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal};

/// The mark of a keeper's directory in the environment of everything it starts. It survives fork and exec, so that
/// what a dead keeper left behind is found whatever session it fled to.
pub const KEEPER_MARK: &str = "ECLOSION_KEEPER";

/// One process of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    pub pid: u32,
    /// Clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessId {
    /// When it was started, by the wall clock, in milliseconds since 1970: up to a second too early, never too late.
    #[must_use]
    pub fn started_unix_ms(self) -> Option<u64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let booted: u64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        let since_ms = self.start_ticks.checked_mul(1_000)? / rustix::param::clock_ticks_per_second();
        booted.checked_mul(1_000)?.checked_add(since_ms)
    }
}

/// One line of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub id: ProcessId,
    pub parent: u32,
    pub session: u32,
    /// Ended, but not yet waited for.
    pub zombie: bool,
}

/// Names this boot of the machine; empty where the system does not say.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// The process that has this pid now.
#[must_use]
pub fn row(pid: u32) -> Option<Row> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field is the program's own name and may hold anything, so fields are counted behind its last `)`.
fn parse_stat(pid: u32, stat: &str) -> Option<Row> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start_ticks = fields.nth(15)?.parse().ok()?;
    let zombie = matches!(state, "Z" | "X" | "x");
    Some(Row { id: ProcessId { pid, start_ticks }, parent, session, zombie })
}

/// Every process that can be seen, in the order of pids.
#[must_use]
pub fn table() -> Vec<Row> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut rows: Vec<_> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter_map(row).collect();
    rows.sort_by_key(|row| row.id);
    rows
}

/// Whether this process came of that one. A chain longer than a few links is not followed.
#[must_use]
pub fn descends_from(row: Row, ancestor: u32) -> bool {
    const LINKS_MAX: usize = 16;
    let parents = std::iter::successors(Some(row), |child| self::row(child.parent));
    parents.take(LINKS_MAX).any(|child| child.parent == ancestor)
}

/// Sends a signal to this very process; one that is gone already is no error.
///
/// # Errors
/// The system refuses: another user's process.
pub fn signal(target: ProcessId, signal: Signal) -> io::Result<()> {
    let Some(pid) = i32::try_from(target.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(why) => return Err(why.into()),
    };
    if row(target.pid).is_none_or(|row| row.id != target) {
        return Ok(());
    }
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(why) => Err(why.into()),
    }
}

/// Whether the process was started, by however many hands, under the keeper of this directory.
#[must_use]
pub fn is_marked(pid: u32, directory: &Path) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment.split(|byte| *byte == 0).any(|entry| {
        entry
            .strip_prefix(KEEPER_MARK.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="))
            .is_some_and(|value| value == directory.as_os_str().as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let stat = "42 (a) R 1 b) S 7 42 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3";
        let row = parse_stat(42, stat).unwrap();
        assert_eq!(row.id, ProcessId { pid: 42, start_ticks: 98765 });
        assert_eq!((row.parent, row.session, row.zombie), (7, 40, false));
    }

    #[test]
    fn a_torn_line_is_nobody() {
        for torn in ["", "42", "42 (x", "42 (x) S", "42 (x) S 1 2", "42 (x) S one 2 3"] {
            assert_eq!(parse_stat(42, torn), None, "{torn}");
        }
    }

    #[test]
    fn a_process_was_started_before_now_and_after_the_boot() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let me = row(std::process::id()).unwrap().id;
        let started = u128::from(me.started_unix_ms().unwrap());
        assert!(started <= now && started + 86_400_000 > now, "{started} {now}");
    }

    #[test]
    fn finds_itself() {
        let me = row(std::process::id()).unwrap();
        assert!(table().contains(&me));
        assert!(!boot_id().is_empty());
    }
}
