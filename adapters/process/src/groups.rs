//! Limit groups: a worker and all that it starts, held by the system itself.
//!
//! A port with two implementations. [`NoGroups`] holds nobody: limits are kept by sampling alone ([`crate::limits`]).
//! [`Cgroups`] makes a cgroup (version 2) for each worker:
//!
//! ```text
//! BASE                         memory and pids are handed on; no process is in it
//!   kernel/                    the kernel, its keeper, the zygotes
//!   eclosion-INSTANCE/
//!     worker-ID/               memory.max, memory.swap.max = 0, memory.oom.group = 1, pids.max
//! ```
//!
//! Who does what: the kernel arranges BASE when it starts ([`site`]) and sets the limits of the attempt that a worker
//! computes; the keeper places a worker as soon as its zygote has named it, before its stream is handed to the kernel, so
//! before any user code; it reads the evidence when it reaps, and takes the group away. Sampling goes on beside it: it
//! knows of bytes that only swapping could take back, where the system counts pages of files as well, and of processes,
//! where the system counts threads.
//!
//! Invariants: (1) a worker that cannot be placed is sampled, and nothing else happens to it. (2) A death is out of memory
//! only on the group's own counters. (3) Nobody is moved but ourselves.

pub mod site;

use std::fmt::Debug;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use eclosion_schemas::WorkerId;

use crate::limits::Bounds;

pub use self::site::{Site, arrange};

/// `pids.max` counts threads too, and libraries start one for each core: this many for each process that an attempt may
/// have. It holds back what forks faster than it is sampled; the limit itself is sampled.
const THREADS_PER_PROCESS: u64 = 64;
/// Groups that a task has made below its own; deeper ones stay, and so does the group.
const DEPTH_MAX: usize = 8;

/// How workers are held together by the system.
pub trait Groups: Debug + Send + Sync {
    /// There are groups: whoever has limits to keep says so.
    fn is_kept(&self) -> bool;

    /// Puts a process that has run no user code into its worker's group, which is made for it.
    ///
    /// # Errors
    /// The system refuses; then it stays where it is.
    fn place(&self, worker: &WorkerId, pid: u32) -> io::Result<()>;

    /// What the worker's attempt may take up from now on. May wait while memory is taken back: not for an actor's thread.
    ///
    /// # Errors
    /// There is no such group, or the system refuses.
    fn limit(&self, worker: &WorkerId, bounds: Bounds) -> io::Result<()>;

    /// The limit at which something of the worker was killed for memory, if the group has counted that.
    fn oom_limit_bytes(&self, worker: &WorkerId) -> Option<u64>;

    /// Kills whatever is in the group, however fast it forks.
    fn kill(&self, worker: &WorkerId);

    /// Takes the group away; false while somebody is in it.
    fn remove(&self, worker: &WorkerId) -> bool;

    /// Every group that there is, whoever made it.
    fn all(&self) -> Vec<WorkerId>;
}

/// Nobody is held.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoGroups;

impl Groups for NoGroups {
    fn is_kept(&self) -> bool {
        false
    }

    fn place(&self, _: &WorkerId, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn limit(&self, _: &WorkerId, _: Bounds) -> io::Result<()> {
        Ok(())
    }

    fn oom_limit_bytes(&self, _: &WorkerId) -> Option<u64> {
        None
    }

    fn kill(&self, _: &WorkerId) {}

    fn remove(&self, _: &WorkerId) -> bool {
        true
    }

    fn all(&self) -> Vec<WorkerId> {
        Vec::new()
    }
}

/// The groups below `eclosion-INSTANCE`, which exists.
#[derive(Debug, Clone)]
pub struct Cgroups {
    root: PathBuf,
}

impl Cgroups {
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn group(&self, worker: &WorkerId) -> PathBuf {
        self.root.join(format!("worker-{worker}"))
    }
}

/// Those of a directory that [`arrange`] gave, or none.
#[must_use]
pub fn at(root: Option<PathBuf>) -> Box<dyn Groups> {
    match root {
        Some(root) => Box::new(Cgroups::new(root)),
        None => Box::new(NoGroups),
    }
}

impl Groups for Cgroups {
    fn is_kept(&self) -> bool {
        true
    }

    fn place(&self, worker: &WorkerId, pid: u32) -> io::Result<()> {
        let group = self.group(worker);
        match fs::create_dir(&group) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(why),
            _ => {}
        }
        // Absent where the system counts no swap, or hands no memory on here.
        set_if_there(&group.join("memory.swap.max"), "0")?;
        set_if_there(&group.join("memory.oom.group"), "1")?;
        set(&group.join("cgroup.procs"), &pid.to_string())
    }

    fn limit(&self, worker: &WorkerId, bounds: Bounds) -> io::Result<()> {
        let group = self.group(worker);
        let text = |limit: Option<u64>| limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
        let threads = bounds.processes.map(|processes| u64::from(processes) * THREADS_PER_PROCESS);
        set(&group.join("memory.max"), &text(bounds.memory_bytes))?;
        set_if_there(&group.join("pids.max"), &text(threads))
    }

    fn oom_limit_bytes(&self, worker: &WorkerId) -> Option<u64> {
        let group = self.group(worker);
        let events = fs::read_to_string(group.join("memory.events")).ok()?;
        // `oom_kill` alone may be the whole machine's want of memory; with `oom` it was this limit.
        let is_of_limit = counted(&events, "oom") > 0 && counted(&events, "oom_kill") > 0;
        is_of_limit.then(|| fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok())?
    }

    fn kill(&self, worker: &WorkerId) {
        // A group that is gone holds nobody; before Linux 5.14 the tree is killed by its evidence alone.
        drop(set(&self.group(worker).join("cgroup.kill"), "1"));
    }

    fn remove(&self, worker: &WorkerId) -> bool {
        let group = self.group(worker);
        remove_below(&group, DEPTH_MAX);
        match fs::remove_dir(&group) {
            Ok(()) => true,
            Err(why) => why.kind() == io::ErrorKind::NotFound,
        }
    }

    fn all(&self) -> Vec<WorkerId> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| WorkerId::new(name.strip_prefix("worker-")?).ok()).collect()
    }
}

fn remove_below(group: &Path, depth: usize) {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_below(&entry.path(), depth - 1);
        // One that is not empty keeps its parent, which is tried again.
        drop(fs::remove_dir(entry.path()));
    }
}

/// Files of the system are there or not; none is made. One write, as each is read as one word.
fn set(file: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

fn set_if_there(file: &Path, text: &str) -> io::Result<()> {
    match set(file, text) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// A counter of `memory.events`; 0 where it is not.
fn counted(events: &str, name: &str) -> u64 {
    let mut lines = events.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name).and_then(|(_, count)| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the files that the system would have put there.
    fn tree(worker: &str) -> (tempfile::TempDir, Cgroups, WorkerId) {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join(format!("worker-{worker}"));
        fs::create_dir(&group).unwrap();
        for file in
            ["memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cgroup.procs", "cgroup.kill"]
        {
            fs::write(group.join(file), "").unwrap();
        }
        let groups = Cgroups::new(root.path().to_owned());
        (root, groups, WorkerId::new(worker).unwrap())
    }

    fn said(groups: &Cgroups, worker: &WorkerId, file: &str) -> String {
        fs::read_to_string(groups.group(worker).join(file)).unwrap()
    }

    #[test]
    fn a_worker_is_placed_without_swap_and_ends_as_a_whole() {
        let (_root, groups, worker) = tree("w-1-1");
        groups.place(&worker, 4242).unwrap();
        let files = ["memory.swap.max", "memory.oom.group", "cgroup.procs"];
        assert_eq!(files.map(|file| said(&groups, &worker, file)), ["0", "1", "4242"]);
        assert_eq!(groups.all(), [worker]);
    }

    #[test]
    fn limits_are_those_of_the_attempt_and_are_taken_back() {
        let (_root, groups, worker) = tree("w-1-1");
        let bounds = Bounds { memory_bytes: Some(1 << 30), processes: Some(2) };
        groups.limit(&worker, bounds).unwrap();
        assert_eq!(
            (said(&groups, &worker, "memory.max"), said(&groups, &worker, "pids.max")),
            ("1073741824".into(), "128".into())
        );
        // The system reads a write as one word, and shows the last; a plain file keeps what was longer.
        for file in ["memory.max", "pids.max"] {
            fs::write(groups.group(&worker).join(file), "").unwrap();
        }
        groups.limit(&worker, Bounds::default()).unwrap();
        assert_eq!(
            (said(&groups, &worker, "memory.max"), said(&groups, &worker, "pids.max")),
            ("max".into(), "max".into())
        );
        assert!(groups.limit(&WorkerId::new("w-1-2").unwrap(), bounds).is_err(), "a group that is not there");
    }

    #[test]
    fn out_of_memory_is_what_the_groups_own_limit_did() {
        let (_root, groups, worker) = tree("w-1-1");
        let events = |oom, oom_kill| {
            format!("low 0\nhigh 0\nmax 9\noom {oom}\noom_kill {oom_kill}\noom_group_kill 0\n")
        };
        for (events, max, found) in [
            (events(1, 3), "1048576\n", Some(1_048_576)),
            (events(0, 1), "1048576\n", None), // the machine's
            (events(2, 0), "1048576\n", None), // an allocation failed, and nobody was killed
            (events(0, 0), "1048576\n", None),
            (events(1, 1), "max\n", None),
            ("torn".into(), "1048576\n", None),
        ] {
            fs::write(groups.group(&worker).join("memory.events"), &events).unwrap();
            fs::write(groups.group(&worker).join("memory.max"), max).unwrap();
            assert_eq!(groups.oom_limit_bytes(&worker), found, "{events}{max}");
        }
        assert_eq!(groups.oom_limit_bytes(&WorkerId::new("w-1-2").unwrap()), None);
    }

    #[test]
    fn a_group_that_somebody_is_in_stays_until_he_has_gone() {
        let root = tempfile::tempdir().unwrap();
        let groups = Cgroups::new(root.path().to_owned());
        let worker = WorkerId::new("w-1-1").unwrap();
        fs::create_dir_all(root.path().join("worker-w-1-1/made/by/the/task")).unwrap();
        // A file in a plain directory holds it, as a process does a group.
        fs::write(root.path().join("worker-w-1-1/made/somebody"), "").unwrap();
        assert!(!groups.remove(&worker));
        fs::remove_file(root.path().join("worker-w-1-1/made/somebody")).unwrap();
        assert!(groups.remove(&worker) && groups.all().is_empty());
        assert!(groups.remove(&worker), "what is gone is removed");
    }
}
