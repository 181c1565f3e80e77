//! Where the time of one ask goes: an asker that wants to know sends a [`Timings`] along, and whoever has the message in
//! turn ends a stage of it.
//!
//! ```text
//!   begin ──queued──▶ taken ──handled──▶ finished ──journal, worker, …──▶ … ──answered──▶ resolved
//! ```
//!
//! Invariants: (1) stages follow one upon the other and none is negative, so their sum is at most what the asker waited.
//! (2) There are at most [`STAGES_MAX`]. (3) An ask that brings none pays one branch at each of these places, and no
//! reading of the clock.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use eclosion_schemas::Stage;

use crate::locked;

/// More than any call passes through; a message that is delivered twice has its first stages twice.
const STAGES_MAX: usize = 32;

/// A cheap handle on the stages of one ask.
///
/// ```
/// let timings = eclosion_bus::Timings::begin();
/// timings.ended("queued");
/// timings.ended("handled");
/// let names: Vec<_> = timings.stages().into_iter().map(|stage| stage.name).collect();
/// assert_eq!(names, ["queued", "handled"]);
/// ```
#[derive(Debug, Clone)]
pub struct Timings(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    begun: Instant,
    /// The same moment, in the only time that other processes share with us.
    begun_wall: SystemTime,
    marks: Mutex<Vec<Mark>>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    stage: &'static str,
    ended: Instant,
}

impl Timings {
    /// The first stage begins.
    #[must_use]
    pub fn begin() -> Self {
        let marks = Mutex::new(Vec::with_capacity(8));
        Self(Arc::new(Inner { begun: Instant::now(), begun_wall: SystemTime::now(), marks }))
    }

    /// What has happened since the last stage ended was `stage`, and it ends now. Twice in a row, it becomes longer.
    pub fn ended(&self, stage: &'static str) {
        self.mark(stage, Instant::now());
    }

    /// The same at a moment that another process has told, in nanoseconds of Unix time: as its clock may have been set
    /// meanwhile, and it may lie, the moment counts as no earlier than the last stage and no later than now.
    pub fn ended_at_unix_ns(&self, stage: &'static str, unix_ns: u64) {
        let told = UNIX_EPOCH + Duration::from_nanos(unix_ns);
        let after = told.duration_since(self.0.begun_wall).unwrap_or_default();
        self.mark(stage, self.0.begun.checked_add(after).unwrap_or(self.0.begun));
    }

    fn mark(&self, stage: &'static str, told: Instant) {
        let now = Instant::now();
        let mut marks = locked(&self.0.marks);
        let ended = told.min(now).max(marks.last().map_or(self.0.begun, |last| last.ended));
        let has_room = marks.len() < STAGES_MAX;
        match marks.last_mut() {
            Some(last) if last.stage == stage => last.ended = ended,
            _ if has_room => marks.push(Mark { stage, ended }),
            _ => {}
        }
    }

    /// Those that have ended, in order.
    #[must_use]
    pub fn stages(&self) -> Vec<Stage> {
        let marks = locked(&self.0.marks);
        let mut began = self.0.begun;
        let stage = |mark: &Mark| {
            let took = mark.ended.saturating_duration_since(began);
            began = mark.ended;
            let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            Stage { name: mark.stage.to_owned(), took_ns }
        };
        marks.iter().map(stage).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(timings: &Timings) -> Vec<String> {
        timings.stages().into_iter().map(|stage| stage.name).collect()
    }

    #[test]
    fn the_same_stage_twice_in_a_row_is_one() {
        let timings = Timings::begin();
        ["queued", "queued", "handled", "queued"].into_iter().for_each(|stage| timings.ended(stage));
        assert_eq!(names(&timings), ["queued", "handled", "queued"]);
    }

    #[test]
    fn a_moment_that_another_process_tells_lies_between_the_last_stage_and_now() {
        let timings = Timings::begin();
        timings.ended("queued");
        for lie in [0, u64::MAX] {
            timings.ended_at_unix_ns(if lie == 0 { "early" } else { "late" }, lie);
        }
        let waited = timings.0.begun.elapsed();
        let stages = timings.stages();
        assert_eq!(stages[1], Stage { name: "early".into(), took_ns: 0 });
        let sum: u64 = stages.iter().map(|stage| stage.took_ns).sum();
        assert!(u128::from(sum) <= waited.as_nanos(), "{stages:?} in {waited:?}");
    }

    #[test]
    fn stages_are_bounded() {
        let timings = Timings::begin();
        for n in 0..1000 {
            timings.ended(if n % 2 == 0 { "even" } else { "odd" });
        }
        assert_eq!(timings.stages().len(), STAGES_MAX);
    }
}
