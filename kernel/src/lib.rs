//! Bus, supervision, journal and views for somebody's actors. Names no subsystem, transport, path or language.
//!
//! Reading order: [`core`] (the pure shape of a journaled actor), [`journal`] (facts and marks), [`engine`] (drives a
//! core without I/O), `shell` (the same under tokio and ractor), `supervision`, `kernel`.

pub mod actor;
mod ask;
pub mod clock;
pub mod core;
pub mod engine;
pub mod journal;
mod shell;
pub mod supervision;
pub mod view;
