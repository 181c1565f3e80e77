//! A worker and all that came of it.
//!
//! Three pieces of evidence say that a process belongs to a worker's tree: it descends from it, it is in the session
//! that the worker leads, or it wears the worker's **brand**. The brand is a resource limit (the hard limit on bytes in
//! POSIX message queues, lowered by a few bytes that nobody misses) that the keeper sets on each worker before user
//! code runs in it: it is inherited by fork, exec and setsid alike, so a child that forked twice into a session of its
//! own is still known as this worker's. Root may raise it; this is hygiene, not a fence against an attacker.

use std::collections::BTreeSet;
use std::io;

use rustix::process::{Pid, Resource, Rlimit, Signal};

use crate::procfs::{self, ProcessId, Row};

/// A tree that forks faster than it is counted is killed in rounds; each round leaves less to fork.
const ROUNDS_MAX: usize = 16;

/// Brands are told apart by this many values below the limit that is usual on the machine.
const BRANDS: u32 = 4096;

/// The n-th worker's brand, as a distance below the keeper's own limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Brand(u32);

impl Brand {
    /// Values come again after 4096 workers; a keeper has fewer at a time.
    #[must_use]
    pub fn nth(n: u32) -> Self {
        Self(n % BRANDS + 1)
    }

    fn limit(self) -> Option<u64> {
        // Without a limit, or with one so small that it matters, there is no brand.
        let usual = rustix::process::getrlimit(Resource::Msgqueue).maximum?;
        usual.checked_sub(u64::from(self.0)).filter(|limit| *limit >= 64 * 1024)
    }

    /// Marks a process and what it will start.
    ///
    /// # Errors
    /// It is gone, or not ours.
    pub fn set(self, pid: u32) -> io::Result<()> {
        let Some(limit) = self.limit() else { return Ok(()) };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if pid.is_some() {
            let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
            rustix::process::prlimit(pid, Resource::Msgqueue, limit)?;
        }
        Ok(())
    }

    fn is_on(self, pid: u32) -> bool {
        let Ok(limits) = std::fs::read_to_string(format!("/proc/{pid}/limits")) else { return false };
        self.limit().is_some_and(|limit| hard_limit(&limits) == Some(limit))
    }
}

fn hard_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find(|line| line.starts_with("Max msgqueue size"))?;
    line.split_ascii_whitespace().nth(4)?.parse().ok()
}

/// The living members of a worker's tree. The leader itself may be gone already.
#[must_use]
pub fn members(leader: ProcessId, brand: Option<Brand>, table: &[Row]) -> Vec<ProcessId> {
    let me = std::process::id();
    let is_orphan = |row: &Row| row.parent == me;
    members_of(leader, table, |row| {
        is_orphan(row) && !row.zombie && brand.is_some_and(|brand| brand.is_on(row.id.pid))
    })
}

fn members_of(leader: ProcessId, table: &[Row], branded: impl Fn(&Row) -> bool) -> Vec<ProcessId> {
    let in_session = |row: &Row| row.session == leader.pid && row.id.start_ticks >= leader.start_ticks;
    let is_reused = table.iter().any(|row| row.id.pid == leader.pid && row.id != leader);
    let roots =
        table.iter().filter(|row| row.id == leader || (!is_reused && in_session(row)) || branded(row));
    let roots: BTreeSet<u32> = roots.map(|row| row.id.pid).collect();
    descend(roots, table)
}

/// The living members that descent and session tell of, for whoever is not their keeper: an escapee that only its brand
/// would tell is missing.
#[must_use]
pub fn members_by_descent(leader: ProcessId, table: &[Row]) -> Vec<ProcessId> {
    members_of(leader, table, |_| false)
}

/// Everything that descends from this process, without itself.
#[must_use]
pub fn descendants(pid: u32, table: &[Row]) -> Vec<ProcessId> {
    let mut found = descend(BTreeSet::from([pid]), table);
    found.retain(|process| process.pid != pid);
    found
}

/// Kills a process and all that descends from it, until nothing of it is left.
pub fn kill(pid: u32) {
    signal_all(Signal::KILL, || descend(BTreeSet::from([pid]), &procfs::table()));
}

fn descend(mut found: BTreeSet<u32>, table: &[Row]) -> Vec<ProcessId> {
    loop {
        let before = found.len();
        for row in table {
            if found.contains(&row.parent) {
                found.insert(row.id.pid);
            }
        }
        if found.len() == before {
            break;
        }
    }
    let living = table.iter().filter(|row| !row.zombie && found.contains(&row.id.pid));
    living.map(|row| row.id).collect()
}

/// Sends a signal to a worker's tree; SIGKILL until nothing of it is left.
pub fn signal(leader: ProcessId, brand: Option<Brand>, signal: Signal) {
    signal_all(signal, || members(leader, brand, &procfs::table()));
}

/// Sends a signal to whatever `find` finds; SIGKILL until it finds nothing.
pub fn signal_all(signal: Signal, mut find: impl FnMut() -> Vec<ProcessId>) {
    let rounds = if signal == Signal::KILL { ROUNDS_MAX } else { 1 };
    for _ in 0..rounds {
        let found = find();
        if found.is_empty() {
            return;
        }
        for process in found {
            if let Err(why) = procfs::signal(process, signal) {
                tracing::warn!(pid = process.pid, signal = signal.as_raw(), %why, "a signal was refused");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: u32, parent: u32, session: u32) -> Row {
        Row { id: ProcessId { pid, start_ticks: u64::from(pid) * 10 }, parent, session, zombie: false }
    }

    fn pids(processes: Vec<ProcessId>) -> Vec<u32> {
        processes.into_iter().map(|process| process.pid).collect()
    }

    #[test]
    fn a_tree_is_descent_session_and_brand() {
        let table = [
            row(1, 0, 1),
            row(10, 1, 10),  // the keeper
            row(20, 10, 20), // the worker
            row(21, 20, 20), // its child
            row(22, 21, 22), // a grandchild in a session of its own
            row(30, 10, 20), // reparented, still in the worker's session
            row(31, 30, 31), // came of that one
            row(40, 10, 40), // an escapee that wears the brand
            row(41, 40, 41), // came of the escapee
            row(50, 10, 50), // another worker
            row(51, 50, 50),
        ];
        let found = members_of(table[2].id, &table, |row| row.id.pid == 40);
        assert_eq!(pids(found), [20, 21, 22, 30, 31, 40, 41]);
        assert_eq!(pids(descendants(50, &table)), [51]);
    }

    #[test]
    fn a_leader_that_is_gone_leaves_its_session_and_a_reused_pid_does_not() {
        let leader = ProcessId { pid: 20, start_ticks: 200 };
        assert_eq!(pids(members_of(leader, &[row(30, 10, 20)], |_| false)), [30]);
        let reused = Row { id: ProcessId { pid: 20, start_ticks: 900 }, ..row(20, 1, 20) };
        assert!(members_of(leader, &[reused, row(30, 20, 20)], |_| false).is_empty());
    }

    #[test]
    fn a_zombie_needs_no_signal() {
        let dead = Row { zombie: true, ..row(20, 10, 20) };
        assert!(members_of(dead.id, &[dead], |_| false).is_empty());
    }

    #[test]
    fn reads_the_hard_limit() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax msgqueue size   819190   819191   bytes\n";
        assert_eq!(hard_limit(limits), Some(819_191));
        assert_eq!(hard_limit("Max msgqueue size   unlimited   unlimited   bytes"), None);
    }
}
