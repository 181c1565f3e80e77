//! The whole kernel in virtual time, from one seed.
//!
//! The real cores, engines and journal; around them a simulated bus, disk, machine and clients, and everything that can
//! go wrong: actors panic between any two steps, workers crash, hang, lie and are killed, the kernel is killed at any
//! record, the power fails. One seed is one world: [`play`] gives what it counted, or the first broken promise with what
//! led to it.
//!
//! Reading order: `world` (time and events), `kernel` (how the cores are driven), `trap` (panics), `machine` (workers and
//! holders), `client` and `operator`, `jobs`, `faults` (the schedules of what goes wrong), `disk` and `files`, `checks` (the
//! promises), `mutants` (mistakes on purpose).

#![expect(clippy::unwrap_used, reason = "a simulation that cannot go on has failed")]

mod checks;
mod client;
mod code;
mod disk;
mod faults;
mod files;
mod jobs;
mod kernel;
mod machine;
mod mutants;
mod operator;
mod rng;
mod trap;
mod world;

pub use mutants::Mutant;
pub use trap::{Point, Trap, Trapped};
pub use world::{EVERYBODY, Failure, Report, Who, play};
