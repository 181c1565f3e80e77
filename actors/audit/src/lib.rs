//! The audit record: what operators did, why, and what came of it.
//!
//! An act is recorded before it is done, so that none is done without a record; its end is recorded after it. An act
//! whose kernel died in between ends as *unknown* in the next life. Rows of the table `audit` are what lists show.
//!
//! Reading order: [`state`] (the pure core and its rows), [`actor`] (the shell's parts that are this actor's own).

pub mod actor;
pub mod state;

pub use actor::AuditActor;
pub use state::{Audit, Command, project};
