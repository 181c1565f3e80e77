//! One suite for each port, run over every implementation of it: a new implementation adds one line.
//!
//! The cases are functions here; the tests beside this folder instantiate them, and add what only one implementation
//! can be asked (damage on a disk, a power cut).
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "this crate is nothing but tests")]

pub mod journal;
