//! How often something may die before its supervisor gives up, and how long to wait in between. Pure.

use std::collections::VecDeque;

use eclosion_schemas::Timestamp;

/// At most `restarts_max` restarts within `window_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub restarts_max: u32,
    pub window_ms: u64,
}

impl Budget {
    /// For actors.
    pub const ACTOR: Self = Self { restarts_max: 5, window_ms: 30_000 };
    /// For the root: levels multiply, so it gives up sooner.
    pub const ROOT: Self = Self { restarts_max: 3, window_ms: 300_000 };
}

/// The first restart waits for nothing: most panics are a single bad message, and others wait in the mailbox.
const BACKOFF_MS: u64 = 50;
const BACKOFF_MS_MAX: u64 = 5_000;

/// When a child ends, when is it started again?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Restart {
    /// Always.
    #[default]
    Permanent,
    /// Only if it ended abnormally.
    Transient,
    /// Never.
    Temporary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Normal,
    /// It panicked, failed or was killed.
    Abnormal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    RestartAfter {
        ms: u64,
    },
    /// It is gone, as it should be.
    Gone,
    /// The budget is used up: the supervisor itself has failed.
    Escalate,
}

/// The restarts that count.
#[derive(Debug, Clone, Default)]
pub struct History {
    at: VecDeque<Timestamp>,
}

impl History {
    /// Decides about one exit, and remembers the restart if there is one. `jitter` is any number.
    pub fn decide(
        &mut self,
        restart: Restart,
        exit: Exit,
        budget: Budget,
        now: Timestamp,
        jitter: u64,
    ) -> Verdict {
        match (restart, exit) {
            (Restart::Temporary, _) | (Restart::Transient, Exit::Normal) => return Verdict::Gone,
            (Restart::Permanent, _) | (Restart::Transient, Exit::Abnormal) => {}
        }
        self.forget(budget, now);
        let earlier = u32::try_from(self.at.len()).unwrap_or(u32::MAX);
        if earlier >= budget.restarts_max {
            return Verdict::Escalate;
        }
        self.at.push_back(now);
        Verdict::RestartAfter { ms: backoff_ms(earlier, jitter) }
    }

    /// Restarts inside the window.
    pub fn count(&mut self, budget: Budget, now: Timestamp) -> u32 {
        self.forget(budget, now);
        u32::try_from(self.at.len()).unwrap_or(u32::MAX)
    }

    fn forget(&mut self, budget: Budget, now: Timestamp) {
        while self.at.front().is_some_and(|at| now.since_ms(*at) > budget.window_ms) {
            self.at.pop_front();
        }
    }
}

/// Nothing, then 50 ms doubling up to 5 s, each 20 % more or less.
fn backoff_ms(earlier: u32, jitter: u64) -> u64 {
    let Some(doublings) = earlier.checked_sub(1) else { return 0 };
    let full = BACKOFF_MS.saturating_mul(1 << doublings.min(16)).min(BACKOFF_MS_MAX);
    full * 4 / 5 + jitter % (full * 2 / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { restarts_max: 3, window_ms: 1_000 };

    fn dies(history: &mut History, at: u64) -> Verdict {
        history.decide(Restart::Permanent, Exit::Abnormal, BUDGET, Timestamp(at), 0)
    }

    #[test]
    fn escalates_when_the_budget_is_used_up() {
        let mut history = History::default();
        assert_eq!(dies(&mut history, 0), Verdict::RestartAfter { ms: 0 });
        assert_eq!(dies(&mut history, 1), Verdict::RestartAfter { ms: 40 });
        assert_eq!(dies(&mut history, 2), Verdict::RestartAfter { ms: 80 });
        assert_eq!(dies(&mut history, 3), Verdict::Escalate);
    }

    #[test]
    fn forgets_what_lies_outside_the_window() {
        let mut history = History::default();
        (0..3).for_each(|at| assert_ne!(dies(&mut history, at), Verdict::Escalate));
        assert_eq!(dies(&mut history, 1_003), Verdict::RestartAfter { ms: 0 });
    }

    #[test]
    fn restarts_by_policy() {
        let mut history = History::default();
        let mut exits = |restart, exit| history.decide(restart, exit, BUDGET, Timestamp(0), 0);
        assert_eq!(exits(Restart::Temporary, Exit::Abnormal), Verdict::Gone);
        assert_eq!(exits(Restart::Transient, Exit::Normal), Verdict::Gone);
        assert_eq!(exits(Restart::Transient, Exit::Abnormal), Verdict::RestartAfter { ms: 0 });
        assert_eq!(exits(Restart::Permanent, Exit::Normal), Verdict::RestartAfter { ms: 40 });
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        for jitter in [0, 1, 7, 19, u64::MAX] {
            assert!((40..=60).contains(&backoff_ms(1, jitter)));
            assert!((4_000..=6_000).contains(&backoff_ms(30, jitter)));
        }
    }
}
