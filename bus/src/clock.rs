//! Time as the bus sees it.
//!
//! Reading the machine's clock costs as much as a third of sending a message, so the bus reads it where a deadline is
//! made and otherwise asks what time it was *lately*: [`Clock::recent`] is the newest reading anybody took, raised at
//! least by every sweep. A [`ManualClock`] moves only when told, so that tests and simulations own time; for it,
//! recent and now are the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A cheap handle on the time of one bus.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: Instant,
    /// Nanoseconds after `base`: the newest reading, or the time itself if it is manual.
    recent_ns: AtomicU64,
    manual: bool,
}

/// Readings closer than this to the recent one are not shared: the cache line would travel with every ask.
const SHARE_NS: u64 = 1_000_000;

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl Clock {
    /// The machine's monotonic clock.
    #[must_use]
    pub fn system() -> Self {
        Self::starting(Instant::now(), false)
    }

    /// A clock that stands at `start` until its [`ManualClock`] moves it.
    #[must_use]
    pub fn manual(start: Instant) -> (Self, ManualClock) {
        let clock = Self::starting(start, true);
        (clock.clone(), ManualClock(clock))
    }

    fn starting(base: Instant, manual: bool) -> Self {
        Self(Arc::new(Inner { base, recent_ns: AtomicU64::new(0), manual }))
    }

    #[must_use]
    pub fn now(&self) -> Instant {
        if self.0.manual {
            return self.recent();
        }
        let now = Instant::now();
        self.note(now);
        now
    }

    /// The newest time that anybody has read or noted; never later than now.
    #[must_use]
    pub fn recent(&self) -> Instant {
        // Relaxed: a time is a number by itself, it publishes nothing.
        self.0.base + Duration::from_nanos(self.0.recent_ns.load(Ordering::Relaxed))
    }

    /// Somebody else has read the clock.
    pub(crate) fn note(&self, now: Instant) {
        if self.0.manual {
            return;
        }
        let ns = u64::try_from(now.saturating_duration_since(self.0.base).as_nanos()).unwrap_or(u64::MAX);
        if ns > self.0.recent_ns.load(Ordering::Relaxed).saturating_add(SHARE_NS) {
            self.0.recent_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// A time that no kernel lives to see; the deadline of what has none.
    pub(crate) fn never(&self) -> Instant {
        const YEARS_30: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
        self.0.base + YEARS_30
    }
}

/// The hand on a manual clock.
#[derive(Debug, Clone)]
pub struct ManualClock(Clock);

impl ManualClock {
    pub fn advance(&self, by: Duration) {
        let ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.0.0.recent_ns.fetch_add(ns, Ordering::Relaxed);
    }

    #[must_use]
    pub fn now(&self) -> Instant {
        self.0.recent()
    }
}
