//! Whether one more run is taken. A house that is full refuses at once, and says when it is worth coming again: by the
//! pace at which runs have finished lately. Nothing that was taken is lost by it (P5): what is refused never was a run.

use eclosion_schemas::{Code, Error, Retry, Timestamp};

use super::State;

/// Finished runs that the pace is taken from.
const FINISHED_MAX: usize = 32;
/// What is said while none has finished, and the ends of what is ever said.
const UNKNOWN_MS: u64 = 1_000;
const SHORTEST_MS: u64 = 100;
const LONGEST_MS: u64 = 60_000;

/// How many may be inside, and when it is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Door {
    pub(super) unfinished_max: usize,
    pub(super) now: Timestamp,
}

impl Door {
    /// # Errors
    /// `exhausted`, with when a place is likely to be free.
    pub(super) fn admit(&self, state: &State) -> Result<(), Error> {
        let inside = state.unfinished();
        if inside < self.unfinished_max {
            return Ok(());
        }
        let text = format!("{inside} runs have not finished, the most that there may be");
        let after_ms = self.place_in_ms(state);
        Err(Error::new(Code::Exhausted, "run.too_many", text)
            .retry(Retry::After { after_ms })
            .help("eclosion runs ls; wait, or cancel some: eclosion runs cancel RUN"))
    }

    /// The mean time between ends, the time since the last of them included: a house that has come to a halt is not
    /// asked ever faster.
    fn place_in_ms(&self, state: &State) -> u64 {
        let ends = state.index.finished.iter().rev().take(FINISHED_MAX);
        let ends: Vec<_> = ends.filter_map(|run| state.run(run)?.finished_at).collect();
        let Some(oldest) = ends.last() else { return UNKNOWN_MS };
        let elapsed_ms = self.now.since_ms(*oldest);
        (elapsed_ms / ends.len() as u64).clamp(SHORTEST_MS, LONGEST_MS)
    }
}
