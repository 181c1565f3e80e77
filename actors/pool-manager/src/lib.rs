//! Pool manager: environments, workers, which task runs next on which worker, and which tasks are refused because
//! equal ones have killed workers.
//!
//! Reading order: [`ports`] (what it needs of the outside), [`options`], [`state`] (the pure core), [`view`] (what
//! readers are shown), [`actor`] (the shell's parts that are this actor's own).

pub mod actor;
pub mod options;
pub mod ports;
pub mod state;
pub mod view;

pub use actor::PoolManager;
pub use options::{CONTAINMENT, CONTAINMENT_BY_CGROUP, PoolOptions};
pub use ports::{EnvironmentBuilder, Launcher};
pub use state::{AHEAD_PATIENCE_MS, Command, Effect, Pool};
