//! The DAG tracker: checks flows, holds runs, decides what may start, commits one result for each task.
//!
//! It serves `/dag`: `run.start`, `run.validate`, `run.get`, `run.list`, `run.cancel`, `run.why` for callers, and
//! `step.commit`, `step.fail` for the holders of workers, `step.body` for the pool manager. It decides `run.started`, `run.cancelling`, `run.finished`,
//! `step.committed`, `step.failed`, `step.ready`, `step.reused`, `step.missed` and `cache.dropped`, and folds what the pool manager says of attempts and workers.
//!
//! Reading order: [`load`] (a flow file's text), [`builder`] (the same flow written in Rust), [`plan`] (a flow that was
//! checked), [`state`] (the pure core), [`view`] and [`why`] (what readers see), [`rows`] (what stays of finished runs),
//! [`cache`] (content keys and what is kept under them), [`code`] (the port that says whether code is still what a key names), [`look`] (looks for earlier results, performed), [`actor`] (the shell's parts that are this actor's own).
//!
//! It deliberately does not choose workers, count resources, store large values or start anything: it wishes
//! (`Dispatch`), and the pool manager answers with `attempt.started`.

pub mod actor;
pub mod builder;
pub mod cache;
pub mod code;
mod content;
pub mod load;
pub mod look;
pub mod plan;
pub mod rows;
pub mod state;
pub mod view;
pub mod why;

pub use actor::{DagActor, RunViews};
pub use builder::Flow;
pub use code::CodeFiles;
pub use content::environment_id;
pub use plan::Plan;
pub use rows::project;
pub use state::{Command, DagTracker, Effect, State};
