//! Arbitration: who may hold how much of the machine, and who waits for whom.
//!
//! Reading order: [`options`], [`state`] (the pure core), [`view`] (what readers are shown), [`actor`] (the shell's parts
//! that are this actor's own).

pub mod actor;
pub mod options;
pub mod state;
pub mod view;

pub use actor::ArbitrationActor;
pub use options::ArbitrationOptions;
pub use state::{Arbitration, Command, Effect};
