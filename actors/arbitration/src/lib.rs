//! Arbitration: who may hold how much of the machine, and who waits for whom.
//!
//! Reading order: [`options`], [`rate`] (how often something may be used), [`state`] (the pure core), [`view`] (what readers are shown), [`actor`] (the shell's parts
//! that are this actor's own), [`desk`] (where clients ask and wait).

pub mod actor;
pub mod desk;
pub mod options;
pub mod rate;
pub mod state;
pub mod view;

pub use actor::ArbitrationActor;
pub use desk::DESK;
pub use options::ArbitrationOptions;
pub use rate::Rate;
pub use state::{Arbitration, Command, Effect};
