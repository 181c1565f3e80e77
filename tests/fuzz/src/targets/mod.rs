//! The targets: each a function of bytes, with what it is given first.

mod flow;
mod frame;
mod journal;
mod message;

use std::fmt;

use crate::memory::Bound;

pub use flow::fuzz_flow;
pub use frame::fuzz_frame;
pub use journal::Journal;
pub use message::fuzz_message;

type Check = Box<dyn FnMut(&[u8]) -> Result<(), String>>;

/// See the head of the crate.
pub struct Target {
    pub name: &'static str,
    /// Cases of a usual test run.
    pub cases: u64,
    pub bound: Bound,
    pub corpus: fn() -> Vec<Vec<u8>>,
    pub check: Check,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every target.
#[must_use]
pub fn all() -> Vec<Target> {
    vec![frame::target(), message::target(), journal::target(), flow::target()]
}

/// Says `text` unless `holds`.
fn claim(holds: bool, text: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(text()) }
}
