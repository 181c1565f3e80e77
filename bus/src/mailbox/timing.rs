//! How long messages wait and how long they are handled, by samples; how busy the taker is, by the sweep's glances.
//!
//! Reading the clock for every message would cost a tenth of an ask, so one message in sixteen is timed. While somebody
//! looks at the mailbox, and for ten seconds after, every message is: looking costs nothing until someone looks.
//! Waits are of asks alone, because a tell is not stamped with the exact time.
//!
//! Distributions are histograms of four buckets an octave (values within 13 % of what was measured), halved at 4,096
//! samples, so that they tell of the recent past.

use std::time::Duration;

use crate::clock::Tick;
use crate::statistics::Quantiles;

/// One message in so many is timed, less one: a mask.
const UNTIMED_MASK: u64 = 15;
/// Looking has all messages timed for so long.
const LOOKED: Duration = Duration::from_secs(10);
/// Rates and shares are taken over at least this.
const WINDOW: Duration = Duration::from_secs(1);

/// What one mailbox knows of its own pace; kept under the mailbox's lock.
#[derive(Debug, Default)]
pub(super) struct Timing {
    samples: Option<Box<Samples>>,
    /// When the message in hand was taken, if it is timed.
    started: Option<Tick>,
    looked_at: Option<Tick>,
    window: Window,
    pub(super) pace: Pace,
    /// Messages taken at the sweep's last glance, and when that changed.
    taken: (u64, Tick),
}

/// What the last window showed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    pub(super) accepted_per_s: u64,
    pub(super) busy_permille: u16,
}

#[derive(Debug, Default)]
struct Window {
    since: Tick,
    accepted: u64,
    glances: u64,
    busy: u64,
}

#[derive(Debug, Default)]
struct Samples {
    wait: Histogram,
    handling: Histogram,
}

impl Timing {
    /// Whether the next message, the `nth` of all, is to be timed.
    #[inline]
    pub(super) fn times(&self, nth: u64) -> bool {
        nth & UNTIMED_MASK == 0 || self.looked_at.is_some()
    }

    /// A timed message was taken; `waited` is known for asks.
    pub(super) fn begin(&mut self, now: Tick, waited: Option<Duration>) {
        self.started = Some(now);
        if let Some(waited) = waited {
            self.samples.get_or_insert_default().wait.record(waited);
        }
    }

    #[inline]
    pub(super) fn is_timed(&self) -> bool {
        self.started.is_some()
    }

    /// Whoever took it takes again.
    pub(super) fn end(&mut self, now: Tick) {
        if let Some(started) = self.started.take() {
            self.samples.get_or_insert_default().handling.record(now.since(started));
        }
    }

    pub(super) fn look(&mut self, now: Tick) {
        self.looked_at = Some(now);
    }

    /// The sweep passes by.
    pub(super) fn glance(&mut self, now: Tick, accepted: u64, taken: u64, in_hand: u64) {
        if self.looked_at.is_some_and(|at| now.since(at) > LOOKED) {
            self.looked_at = None;
        }
        if self.taken.0 != taken || in_hand == 0 {
            self.taken = (taken, now);
        }
        self.window.glances += 1;
        self.window.busy += u64::from(in_hand > 0);
        let length = now.since(self.window.since);
        if length >= WINDOW {
            let came = accepted - self.window.accepted;
            let ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX).max(1);
            self.pace = Pace {
                accepted_per_s: came.saturating_mul(1000) / ms,
                busy_permille: u16::try_from(self.window.busy * 1000 / self.window.glances).unwrap_or(1000),
            };
            self.window = Window { since: now, accepted, glances: 0, busy: 0 };
        }
    }

    /// How long the same message has been in hand, as far as the sweep has seen.
    pub(super) fn held_for(&self, now: Tick) -> Duration {
        now.since(self.taken.1)
    }

    pub(super) fn wait(&self) -> Option<Quantiles> {
        self.samples.as_ref().and_then(|samples| samples.wait.quantiles())
    }

    pub(super) fn handling(&self) -> Option<Quantiles> {
        self.samples.as_ref().and_then(|samples| samples.handling.quantiles())
    }
}

/// Below this everything is one bucket.
const FLOOR_NS: u64 = 64;
const OCTAVE_BUCKETS_LOG2: u32 = 2;
const BUCKETS: usize = 128;
const SAMPLES_MAX: u32 = 4096;

#[derive(Debug)]
struct Histogram {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        if self.total >= SAMPLES_MAX {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
    }

    fn quantiles(&self) -> Option<Quantiles> {
        (self.total > 0).then(|| Quantiles { p50: self.quantile(50), p99: self.quantile(99) })
    }

    /// The middle of the bucket in which the percentile falls.
    fn quantile(&self, percent: u32) -> Duration {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(u64::midpoint(floor_ns(bucket), floor_ns(bucket + 1)));
            }
        }
        Duration::from_nanos(floor_ns(BUCKETS))
    }
}

fn bucket(ns: u64) -> usize {
    let scaled = ns / FLOOR_NS + (1 << OCTAVE_BUCKETS_LOG2);
    let octave = scaled.ilog2() - OCTAVE_BUCKETS_LOG2;
    let part = (scaled >> octave) - (1 << OCTAVE_BUCKETS_LOG2);
    (((octave as usize) << OCTAVE_BUCKETS_LOG2) + part as usize).min(BUCKETS - 1)
}

/// The smallest duration of a bucket.
fn floor_ns(bucket: usize) -> u64 {
    let octave = bucket >> OCTAVE_BUCKETS_LOG2;
    let part = (bucket & ((1 << OCTAVE_BUCKETS_LOG2) - 1)) as u64;
    let scaled = ((1 << OCTAVE_BUCKETS_LOG2) + part) << octave;
    (scaled - (1 << OCTAVE_BUCKETS_LOG2)) * FLOOR_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_bucket_that_says_so() {
        for ns in [0, 1, 63, 64, 65, 255, 256, 1_000, 999_999, 50_000_000, 3_000_000_000] {
            let found = bucket(ns);
            assert!(floor_ns(found) <= ns && ns < floor_ns(found + 1), "{ns} in {found}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_near_what_was_recorded() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantiles(), None);
        (1..=1000).for_each(|us| histogram.record(Duration::from_micros(us)));
        let found = histogram.quantiles().unwrap();
        let near = |found: Duration, us: f64| (found.as_secs_f64() * 1e6 / us - 1.0).abs() < 0.13;
        assert!(near(found.p50, 500.0) && near(found.p99, 990.0), "{found:?}");
    }

    #[test]
    fn the_recent_past_outweighs_what_was_long_ago() {
        let mut histogram = Histogram::default();
        (0..100_000).for_each(|_| histogram.record(Duration::from_millis(1)));
        (0..8_192).for_each(|_| histogram.record(Duration::from_micros(1)));
        assert!(histogram.quantiles().unwrap().p50 < Duration::from_micros(2));
    }
}
