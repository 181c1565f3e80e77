//! The scheduler: what happens on time, once for each instant, and a record of what did not.
//!
//! Reading order: [`trigger`] (when a schedule ticks: cron, intervals, zones), [`state`] (the pure core), [`rows`] (the
//! latest ticks of each schedule), `view` (what readers are shown), `calls` (a tick that calls an operation), [`actor`]
//! (the shell's parts that are this actor's own).

pub mod actor;
mod calls;
pub mod rows;
pub mod state;
pub mod trigger;
mod view;

pub use actor::SchedulerActor;
pub use rows::project;
pub use state::{Command, Effect, Scheduler};
pub use trigger::{Plan, Zones};
