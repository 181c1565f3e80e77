//! Bus, supervision, journal and views for somebody's actors. Names no subsystem, transport, path or language.
//!
//! Reading order: [`core`] (the pure shape of a journaled actor), [`journal`] (facts and marks), [`engine`] (drives a
//! core without I/O), [`actor`] and `shell` (the same under tokio and ractor), `service` and [`background`] (actors
//! without a journal), [`supervision`], [`kernel`] (puts it together), [`view`], [`clock`] and [`config`]
//! (settings with their origin).

pub mod actor;
mod ask;
pub mod background;
pub mod clock;
pub mod config;
pub mod core;
pub mod engine;
pub mod journal;
pub mod kernel;
mod service;
mod shell;
pub mod supervision;
pub mod view;

pub use actor::{Actor, Context, Outputs};
pub use kernel::{Builder, Kernel};
pub use service::Handler;
pub use shell::Phase;
