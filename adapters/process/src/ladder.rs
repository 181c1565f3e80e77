//! From asking to killing: the rungs by which a running attempt is cancelled.
//!
//! The first two travel on the worker's stream and leave it its life; the last three are signals to its whole tree by
//! way of the keeper. Each rung is given time, and every rung that was climbed is shown.

use rustix::process::Signal;

/// After SIGTERM, before SIGKILL (P-EXEC-6).
pub const TERMINATE_PATIENCE_MS: u64 = 2_000;

/// One rung, in the order in which they are climbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// `current().cancelled` turns true.
    Token,
    /// `eclosion.Cancelled` is raised in the task.
    Exception,
    /// SIGINT: interrupts C code that looks for it.
    Interrupt,
    /// SIGTERM to the tree.
    Terminate,
    /// SIGKILL to the tree.
    Kill,
}

impl Rung {
    /// As it is written in frames and shown on screen, from 1.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    #[must_use]
    pub fn next(self) -> Option<Self> {
        match self {
            Rung::Token => Some(Rung::Exception),
            Rung::Exception => Some(Rung::Interrupt),
            Rung::Interrupt => Some(Rung::Terminate),
            Rung::Terminate => Some(Rung::Kill),
            Rung::Kill => None,
        }
    }

    /// The signal to send, where the rung is one.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self {
            Rung::Token | Rung::Exception => None,
            Rung::Interrupt => Some(Signal::INT.as_raw()),
            Rung::Terminate => Some(Signal::TERM.as_raw()),
            Rung::Kill => Some(Signal::KILL.as_raw()),
        }
    }

    /// SIGINT is for the task's own thread; what ends a worker ends all that came of it.
    #[must_use]
    pub fn reaches_tree(self) -> bool {
        self >= Rung::Terminate
    }

    /// How long to wait before the next rung; the three that a task may survive share the grace.
    #[must_use]
    pub fn patience_ms(self, grace_ms: u64) -> u64 {
        match self {
            Rung::Token => grace_ms / 2,
            Rung::Exception => grace_ms / 4,
            Rung::Interrupt => grace_ms - grace_ms / 2 - grace_ms / 4,
            Rung::Terminate => TERMINATE_PATIENCE_MS,
            Rung::Kill => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn climbs_every_rung_once_and_spends_the_grace() {
        let rungs: Vec<_> = std::iter::successors(Some(Rung::Token), |rung| rung.next()).collect();
        assert_eq!(rungs.iter().map(|rung| rung.number()).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        for grace_ms in [0, 1, 5_000, 5_003] {
            let spent: u64 = rungs.iter().map(|rung| rung.patience_ms(grace_ms)).sum();
            assert_eq!(spent, grace_ms + TERMINATE_PATIENCE_MS);
        }
    }
}
