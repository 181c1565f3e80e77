//! Which worker has lived long enough. Decided between attempts: what it has in hand is finished first.

use super::*;

impl Worker {
    /// Why it is to end as soon as it has nothing in hand.
    pub(super) fn is_used_up(&self, options: &PoolOptions, now: Timestamp) -> Option<String> {
        let attempts = self.finished + self.given.len() as u64;
        if self.attached {
            return None;
        }
        if options.recycle_attempts > 0 && attempts >= options.recycle_attempts {
            return Some(format!("recycled after {} attempts", self.finished));
        }
        let due = self.recycle_at(options).filter(|at| *at <= now)?;
        let over_ms = now.since_ms(due).saturating_add(options.recycle_age_ms);
        Some(format!("recycled at an age of {} s", over_ms / 1_000))
    }

    /// When it is too old.
    pub(super) fn recycle_at(&self, options: &PoolOptions) -> Option<Timestamp> {
        let started_at = self.started_at.filter(|_| options.recycle_age_ms > 0 && !self.attached)?;
        Some(started_at.plus_ms(options.recycle_age_ms))
    }
}

/// Why an idle worker is to end.
pub(super) fn reason(
    options: &PoolOptions,
    line: &Line,
    id: &WorkerId,
    worker: &Worker,
    now: Timestamp,
) -> Option<String> {
    if worker.attached {
        return None;
    }
    let bound = options.recycle_rss_bytes;
    let held = line.usage.get(id).map(|usage| usage.rss_bytes).filter(|held| bound > 0 && *held > bound);
    let by_size = held.map(|held| format!("recycled with {held} bytes held while idle, above {bound}"));
    by_size.or_else(|| worker.is_used_up(options, now))
}
