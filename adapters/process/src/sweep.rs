//! What is left when a keeper died, and perhaps its kernel with it.
//!
//! Workers end by themselves when their lifeline does, but what they started need not. Two pieces of evidence are
//! accepted, and nothing else is touched: a recorded (boot id, pid, start time) that still names a living process, and
//! the mark of the keeper's own directory in a process's environment. Call it only while no keeper lives there.

use std::path::Path;

use rustix::process::Signal;

use crate::procfs::{self, ProcessId};
use crate::tree;

/// A worker as the journal remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    pub pid: u32,
    pub start_ticks: u64,
    pub boot_id: String,
}

/// Kills the trees of recorded workers and everything that bears the directory's mark. Returns how many processes it
/// found. It blocks for some milliseconds: call it outside an async task's thread.
pub fn sweep(directory: &Path, recorded: &[Leftover]) -> usize {
    let boot_id = procfs::boot_id();
    let mut found = 0;
    for leftover in recorded.iter().filter(|leftover| !boot_id.is_empty() && leftover.boot_id == boot_id) {
        let leader = ProcessId { pid: leftover.pid, start_ticks: leftover.start_ticks };
        if procfs::row(leader.pid).is_some_and(|row| row.id == leader && !row.zombie) {
            found += 1;
            tree::signal(leader, None, Signal::KILL);
        }
    }
    found + sweep_marked(directory)
}

/// Kills everything that was started under a keeper of this directory, except the caller.
pub(crate) fn sweep_marked(directory: &Path) -> usize {
    let me = std::process::id();
    let mut found = 0;
    tree::signal_all(Signal::KILL, || {
        let marked: Vec<_> = procfs::table()
            .into_iter()
            .filter(|row| !row.zombie && row.id.pid != me && procfs::is_marked(row.id.pid, directory))
            .map(|row| row.id)
            .collect();
        found = found.max(marked.len());
        marked
    });
    found
}
