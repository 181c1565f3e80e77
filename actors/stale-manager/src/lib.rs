//! The stale manager: what may be deleted and why, and the deletions themselves. It holds promise P7: the disk cannot
//! fill by itself.
//!
//! One policy over runs, logs, artifacts, environments, scratch and shared memory. A *plan* is a pure function of the
//! state, of what a survey found on disk, and of the time; to *apply* it decides one event for each item, and what
//! happens on disk is that event's effect. Nothing is deleted that a plan does not show.
//!
//! Reading order: [`options`], [`survey`] (what was found), [`plan`] (which rule hits what, and who holds it), [`state`]
//! (the pure core), [`view`] and [`rows`] (what readers see), [`ports`] (the disk), [`hands`] (effects, performed),
//! [`passes`] (survey, decide, follow), [`actor`] (the shell's parts that are this actor's own).

pub mod actor;
pub mod hands;
pub mod options;
pub mod passes;
pub mod plan;
pub mod ports;
pub mod rows;
pub mod state;
pub mod survey;
pub mod view;

pub use actor::StaleActor;
pub use hands::Ports;
pub use options::{Limits, RetentionOptions};
pub use passes::{PASSES, Passes};
pub use ports::{Records, Stock};
pub use rows::project;
pub use state::{Command, Effect, Stale};
pub use survey::{Disk, Found, Recorded, Survey};
