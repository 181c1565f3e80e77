//! Time as the bus sees it.
//!
//! Reading the machine's clock costs as much as a third of sending a message, so the bus reads it where a deadline is
//! made and otherwise asks what time it was *lately*: [`Clock::recent`] is the newest reading anybody took, raised at
//! least by every sweep. A [`ManualClock`] moves only when told, so that tests and simulations own time; for it,
//! recent and now are the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A moment as nanoseconds since the clock began: half the size of an [`Instant`], and compared in one instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

impl Tick {
    pub(crate) const NEVER: Self = Self(u64::MAX);

    pub(crate) fn since(self, earlier: Tick) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A cheap handle on the time of one bus.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: Instant,
    never: Instant,
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
        const YEARS_30: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
        Self(Arc::new(Inner { base, never: base + YEARS_30, recent_ns: AtomicU64::new(0), manual }))
    }

    #[inline]
    #[must_use]
    pub fn now(&self) -> Instant {
        if self.0.manual {
            return self.recent();
        }
        let now = Instant::now();
        self.note(now);
        now
    }

    /// [`Clock::now`] as a tick.
    #[inline]
    pub(crate) fn tick(&self) -> Tick {
        let now = if self.0.manual { return self.recent_tick() } else { Instant::now() };
        self.note(now)
    }

    #[inline]
    pub(crate) fn recent_tick(&self) -> Tick {
        // Relaxed: a time is a number by itself, it publishes nothing.
        Tick(self.0.recent_ns.load(Ordering::Relaxed))
    }

    /// What was before the clock began counts as its beginning.
    #[inline]
    pub(crate) fn tick_of(&self, instant: Instant) -> Tick {
        let ns = instant.saturating_duration_since(self.0.base).as_nanos();
        Tick(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// The newest time that anybody has read or noted; never later than now.
    #[inline]
    #[must_use]
    pub fn recent(&self) -> Instant {
        self.0.base + Duration::from_nanos(self.recent_tick().0)
    }

    /// Somebody else has read the clock.
    #[inline]
    pub(crate) fn note(&self, now: Instant) -> Tick {
        let tick = self.tick_of(now);
        if !self.0.manual && tick.0 > self.recent_tick().0.saturating_add(SHARE_NS) {
            self.0.recent_ns.fetch_max(tick.0, Ordering::Relaxed);
        }
        tick
    }

    #[inline]
    pub(crate) fn is_manual(&self) -> bool {
        self.0.manual
    }

    /// A time that no kernel lives to see; the deadline of what has none.
    #[inline]
    pub fn never(&self) -> Instant {
        self.0.never
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
