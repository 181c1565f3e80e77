//! What a round may do to a kernel. The number of a fault is its seed: `cargo crash --seed 13` cuts the power.
//!
//! | seed | fault | what must be seen |
//! |---|---|---|
//! | 0 | a worker is killed | certificate with signal, task, attempt, last lines; tried again by another process |
//! | 1, 2 | the kernel is killed, once and in its recovery | the next one takes the workers over |
//! | 3 | the keeper is killed | every attempt is lost and tried again |
//! | 4 | a client that follows is killed | its session ends, the run goes on |
//! | 5–11 | an actor, the listener, a session, the syncer panics | the next incarnation answers what was waiting |
//! | 12 | the kernel is killed and not started again | after the grace no process, socket, segment or temporary file |
//! | 13 | the power is cut while steps finish | everything that a follower was told is there |
//! | 14 | the disk takes writes and fails syncs | read-only, and it says so; reads go on |
//! | 15 | a bit of the WAL flips | refused with file and way out, and the way out works |
//! | 16 | clients in the middle of calls are killed | their calls are cancelled, their workers serve the run |
//! | 17 | several of these amid a crowd of quick tasks | what had ended stays; what waits behind one that blocks ends |
//! | 18–20 | the scheduler, the stale manager, the audit record panic | as 5–11 |
//! | 21, 22 | a service, or the kernel, is killed with callers in flight | each is answered; the address comes back |
//! | 23–25 | the worker, the client or the kernel of a stream is killed | no gap, credit holds, the generator is closed |
//! | 26–28 | the same with a large argument in shared memory | no segment, mapping or descriptor of it is left |
//! | 29 | the kernel is killed around ticks of a schedule | each instant once, each run once, none missing |
//! | 30 | the kernel is killed while it collects | the next one finishes; nothing that was held has gone |
//!
//! 13 and 14 need a disk of their own, so root and loop devices; elsewhere they are skipped and counted.

use crate::seed::Seed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL of a worker that computes.
    WorkerKilled,
    /// SIGKILL of the kernel while workers compute, and a new one at once: it must take them over.
    KernelKilled,
    /// The same twice, the second time while it recovers.
    KernelKilledTwice,
    /// SIGKILL of the keeper: every attempt is lost and tried again.
    KeeperKilled,
    /// SIGKILL of a client that follows the run.
    ClientKilled,
    /// A panic of one actor, with a message waiting behind it.
    Panic(&'static str),
    /// SIGKILL of the kernel, and no other comes within the grace.
    Abandoned,
    /// The file system under the state directory is shut down, and every process with it.
    PowerCut,
    /// The device under the file system dies; the kernel lives.
    SyncFails,
    /// One bit of the journal's WAL is not what it was.
    BitFlipped,
    /// SIGKILL of clients whose calls hold every worker, or wait for one.
    CallersKilled,
    /// Several of these in the middle of a crowd of quick tasks. Comes after the run, with runs of its own.
    Crowd,
    /// SIGKILL of one of the parties of calls to an attached Python object. As all that follow, after the run.
    Service(Victim),
    /// SIGKILL of one of the parties of a stream out of a Python generator.
    Stream(Victim),
    /// SIGKILL of one of the parties of a call whose argument lies in shared memory.
    Arena(Victim),
    /// SIGKILL of the kernel around ticks of a schedule.
    Ticks,
    /// SIGKILL of the kernel between two items that it collects.
    Collection,
}

/// Who of those that have a part in something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Kernel,
    Worker,
    Client,
    Service,
}

impl Fault {
    pub(crate) const ALL: [Self; 31] = [
        Self::WorkerKilled,
        Self::KernelKilled,
        Self::KernelKilledTwice,
        Self::KeeperKilled,
        Self::ClientKilled,
        Self::Panic("/dag"),
        Self::Panic("/pool"),
        Self::Panic("/arbitration"),
        Self::Panic("/artifacts"),
        Self::Panic("/listener"),
        Self::Panic("/session"),
        Self::Panic("/journal/syncer"),
        Self::Abandoned,
        Self::PowerCut,
        Self::SyncFails,
        Self::BitFlipped,
        Self::CallersKilled,
        Self::Crowd,
        Self::Panic("/scheduler"),
        Self::Panic("/stale"),
        Self::Panic("/audit"),
        Self::Service(Victim::Service),
        Self::Service(Victim::Kernel),
        Self::Stream(Victim::Worker),
        Self::Stream(Victim::Client),
        Self::Stream(Victim::Kernel),
        Self::Arena(Victim::Worker),
        Self::Arena(Victim::Client),
        Self::Arena(Victim::Kernel),
        Self::Ticks,
        Self::Collection,
    ];

    /// Comes after the run, in this order; the rest strikes while it computes.
    pub(crate) fn comes_after(self) -> Option<u8> {
        match self {
            Self::Service(_) | Self::Stream(_) | Self::Arena(_) | Self::Ticks => Some(0),
            Self::Crowd => Some(1),
            // Runs may be gone after it.
            Self::Collection => Some(2),
            _ => None,
        }
    }

    pub(crate) fn needs_disk(self) -> bool {
        matches!(self, Self::PowerCut | Self::SyncFails)
    }
}

/// The first rounds take the faults one by one, so that as many rounds meet each; later ones mix two or three.
pub(crate) fn choose(seed: u64, dice: &mut Seed) -> Vec<Fault> {
    let all = Fault::ALL;
    match usize::try_from(seed) {
        Ok(first) if first < all.len() => vec![all[first]],
        _ => (0..2 + dice.below(2)).map(|_| all[dice.below(all.len() as u64) as usize]).collect(),
    }
}
