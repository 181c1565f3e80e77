//! What a worker's tree takes up, and whether that is more than it may.
//!
//! Memory is what only swapping could take back: anonymous and shared-memory pages, not files that are mapped. A look at
//! `status` counts a page once for each process that has it, and forks of one zygote share many; so it only raises the
//! question. Before anybody is killed, `smaps_rollup` answers it: there a shared page counts by its share. Where that
//! cannot be read, the first count stands.
//!
//! Processes are counted, zombies not. Whatever happens between two looks is not seen: this limits a task that grows,
//! and is no fence against one that attacks.

use std::fs;

use crate::procfs::{self, ProcessId, Row};
use crate::tree;

/// The process table at one moment.
#[derive(Debug)]
pub struct Look {
    table: Vec<Row>,
}

/// What one tree takes up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub memory_bytes: u64,
    pub processes: u32,
}

/// What a tree may take up; none: without limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    pub memory_bytes: Option<u64>,
    pub processes: Option<u32>,
}

/// What a tree has too much of, as it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    Memory { limit_bytes: u64, measured_bytes: u64 },
    Processes { limit: u32, counted: u32 },
}

impl Bounds {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// What `usage` has too much of; memory first.
    #[must_use]
    pub fn excess(&self, usage: Usage) -> Option<Excess> {
        let memory = self.memory_bytes.filter(|limit| usage.memory_bytes > *limit);
        let memory =
            memory.map(|limit_bytes| Excess::Memory { limit_bytes, measured_bytes: usage.memory_bytes });
        let processes = self.processes.filter(|limit| usage.processes > *limit);
        memory.or(processes.map(|limit| Excess::Processes { limit, counted: usage.processes }))
    }
}

impl Look {
    /// Reads the process table: some milliseconds on a busy machine, so outside an async task's thread.
    #[must_use]
    pub fn now() -> Self {
        Self { table: procfs::table() }
    }

    /// Nothing, if the leader is gone.
    #[must_use]
    pub fn usage(&self, leader: ProcessId) -> Option<Usage> {
        self.measured(leader, memory_by_status)
    }

    /// What the tree has too much of, on evidence.
    #[must_use]
    pub fn excess(&self, leader: ProcessId, bounds: Bounds) -> Option<Excess> {
        match bounds.excess(self.usage(leader)?)? {
            Excess::Memory { .. } => bounds.excess(self.measured(leader, memory_by_share)?),
            processes @ Excess::Processes { .. } => Some(processes),
        }
    }

    fn measured(&self, leader: ProcessId, memory: fn(u32) -> u64) -> Option<Usage> {
        self.table.iter().find(|row| row.id == leader && !row.zombie)?;
        let members = tree::members_by_descent(leader, &self.table);
        Some(Usage {
            memory_bytes: members.iter().map(|member| memory(member.pid)).sum(),
            processes: u32::try_from(members.len()).unwrap_or(u32::MAX),
        })
    }
}

fn memory_by_status(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    sum_of(&status, &["RssAnon:", "RssShmem:"]).unwrap_or(0)
}

fn memory_by_share(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    sum_of(&rollup, &["Pss_Anon:", "Pss_Shmem:"]).unwrap_or_else(|| memory_by_status(pid))
}

/// In bytes; none if a line is missing.
fn sum_of(text: &str, keys: &[&str]) -> Option<u64> {
    keys.iter().try_fold(0_u64, |sum, key| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
        sum.checked_add(kib.checked_mul(1024)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_is_more_than_the_limit() {
        let usage = Usage { memory_bytes: 100, processes: 3 };
        let memory = |limit_bytes| Bounds { memory_bytes: Some(limit_bytes), processes: None };
        let processes = |limit| Bounds { memory_bytes: None, processes: Some(limit) };
        for (bounds, excess) in [
            (Bounds::default(), None),
            (memory(100), None),
            (memory(99), Some(Excess::Memory { limit_bytes: 99, measured_bytes: 100 })),
            (processes(3), None),
            (processes(2), Some(Excess::Processes { limit: 2, counted: 3 })),
        ] {
            assert_eq!(bounds.excess(usage), excess, "{bounds:?}");
        }
    }

    #[test]
    fn sizes_are_kibibytes_and_a_missing_line_is_no_zero() {
        let status = "Name:\tx\nRssAnon:\t    12 kB\nRssShmem:\t 3 kB\n";
        assert_eq!(sum_of(status, &["RssAnon:", "RssShmem:"]), Some(15 * 1024));
        assert_eq!(sum_of(status, &["Pss_Anon:"]), None);
        assert_eq!(sum_of("RssAnon: much kB\n", &["RssAnon:"]), None);
    }

    #[test]
    fn this_process_takes_something_up_and_a_stranger_nothing() {
        let me = procfs::row(std::process::id()).unwrap().id;
        let look = Look::now();
        let usage = look.usage(me).unwrap();
        assert!(usage.processes >= 1 && usage.memory_bytes > 0);
        let bounds = Bounds { memory_bytes: Some(1), processes: None };
        assert!(matches!(look.excess(me, bounds), Some(Excess::Memory { limit_bytes: 1, .. })));
        assert_eq!(look.usage(ProcessId { start_ticks: me.start_ticks + 1, ..me }), None);
    }
}
