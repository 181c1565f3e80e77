//! What a round may do to a kernel.

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
}

impl Fault {
    pub(crate) const ALL: [Self; 12] = [
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
    ];
}

/// The first rounds take the faults one by one, so that a dozen rounds meet each; later ones mix two or three.
pub(crate) fn choose(seed: u64, dice: &mut Seed) -> Vec<Fault> {
    let all = Fault::ALL;
    match usize::try_from(seed) {
        Ok(first) if first < all.len() => vec![all[first]],
        _ => (0..2 + dice.below(2)).map(|_| all[dice.below(all.len() as u64) as usize]).collect(),
    }
}
