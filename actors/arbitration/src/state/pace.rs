//! How fast leases come to an end, for those who are told to come again. Volatile: it is a guess, and starts anew.

use std::collections::VecDeque;

use super::Timestamp;

/// Moments that are remembered, at least this far apart.
const MOMENTS_MAX: usize = 32;
const APART_MS: u64 = 250;
/// What is said while nothing is known, and the ends of what is ever said.
const UNKNOWN_MS: u64 = 1_000;
const SHORTEST_MS: u64 = 50;
const LONGEST_MS: u64 = 60_000;

/// How many leases had ended when.
#[derive(Debug, Default)]
pub(super) struct Pace {
    moments: VecDeque<(Timestamp, u64)>,
}

impl Pace {
    pub(super) fn note(&mut self, freed: u64, now: Timestamp) {
        if self.moments.back().is_some_and(|(at, _)| now.since_ms(*at) < APART_MS) {
            return;
        }
        if self.moments.len() >= MOMENTS_MAX {
            self.moments.pop_front();
        }
        self.moments.push_back((now, freed));
    }

    /// About when the next lease ends, and a wish leaves its place.
    pub(super) fn place_in_ms(&self, freed: u64, now: Timestamp) -> u64 {
        let Some((since, before)) = self.moments.front() else { return UNKNOWN_MS };
        let (ended, elapsed_ms) = (freed.saturating_sub(*before), now.since_ms(*since));
        match (ended, elapsed_ms) {
            (_, 0) => UNKNOWN_MS,
            // Nothing has ended for that long: it takes at least as long again.
            (0, elapsed_ms) => elapsed_ms.clamp(UNKNOWN_MS, LONGEST_MS),
            (ended, elapsed_ms) => (elapsed_ms / ended).clamp(SHORTEST_MS, LONGEST_MS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_is_told_how_long_a_place_takes_at_the_present_pace() {
        let mut pace = Pace::default();
        assert_eq!(pace.place_in_ms(0, Timestamp(0)), UNKNOWN_MS);
        for second in 0..100_u64 {
            pace.note(second * 4, Timestamp(second * 1_000));
        }
        assert_eq!(pace.place_in_ms(396, Timestamp(99_000)), 250);
        let mut stuck = Pace::default();
        stuck.note(7, Timestamp(0));
        assert_eq!(stuck.place_in_ms(7, Timestamp(20_000)), 20_000);
        assert_eq!(stuck.place_in_ms(7, Timestamp(900_000)), LONGEST_MS);
    }
}
