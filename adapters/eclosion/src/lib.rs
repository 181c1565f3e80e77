//! Eclosion as a library: a bus, supervision and your actors, with as much around them as you ask for.
//!
//! ```
//! # fn main() -> Result<(), eclosion::schemas::Error> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use eclosion::bus::InHand;
//! use eclosion::{Handler, Kernel};
//! struct Silent;
//! impl Handler for Silent {
//!     async fn handle(&mut self, message: InHand) {
//!         message.finish().reply(Ok(Box::new(())));
//!     }
//! }
//! let kernel = Kernel::builder().ephemeral().service("/desk", || Silent).start().await?;
//! assert!(kernel.rows().iter().any(|row| row.address == "/desk"));
//! kernel.shutdown().await;
//! # Ok(()) }) }
//! ```
//!
//! | feature | brings |
//! |---|---|
//! | none | `kernel`, `bus`, `schemas`: actors under supervision, a journal in memory, the blocking façade |
//! | `sqlite` | a journal that survives: [`Builder::below`] |
//! | `ipc` | a socket for clients and `/metrics`, the actor `/kernel`, the audit record: [`Builder::listen`] |
//! | `client` | `client`, to attach to a kernel in another process, and to serve addresses from there |
//! | `config` | [`places`] and [`config`]: XDG directories, `eclosion.toml`, `ECLOSION_*` |
//! | `workers` | the subsystems and Python workers; implies `sqlite`, `ipc` and `config` |
//!
//! All are on by default. Whatever is on, the kernel runs on the runtime that it is started on, shares nothing with
//! another in the same process, and takes nothing of the process: no signal handler, no subscriber, no panic hook, no
//! allocator, no environment variable.
//!
//! Reading order: [`builder`](Builder), [`running`](Kernel), `subsystems` (what is started in which order), `extension`
//! (what an application may declare), [`blocking`].

pub mod blocking;
mod builder;
#[cfg(feature = "workers")]
mod calls;
#[cfg(feature = "chaos")]
mod chaos;
#[cfg(feature = "config")]
pub mod config;
#[cfg(feature = "workers")]
mod environments;
mod extension;
#[cfg(feature = "workers")]
pub mod flow_file;
#[cfg(feature = "ipc")]
mod history;
#[cfg(feature = "ipc")]
mod introspect;
#[cfg(feature = "workers")]
mod logs;
#[cfg(feature = "ipc")]
mod metrics;
#[cfg(feature = "ipc")]
mod operate;
#[cfg(feature = "workers")]
mod options;
#[cfg(feature = "workers")]
mod output;
#[cfg(feature = "config")]
pub mod places;
#[cfg(feature = "ipc")]
mod processes;
#[cfg(feature = "workers")]
mod report;
#[cfg(feature = "workers")]
mod retention;
mod running;
#[cfg(feature = "workers")]
mod service_lives;
#[cfg(feature = "ipc")]
mod services;
#[cfg(feature = "ipc")]
mod sockets;
#[cfg(feature = "workers")]
mod subsystems;
#[cfg(feature = "workers")]
mod workers;

#[cfg(feature = "workers")]
pub use eclosion_arbitration::Rate;
pub use eclosion_bus as bus;
pub use eclosion_bus::LocalClient;
#[cfg(feature = "client")]
pub use eclosion_client as client;
pub use eclosion_kernel as kernel;
pub use eclosion_kernel::{Actor, Context, Handler, Outputs};
#[cfg(feature = "workers")]
pub use eclosion_process::{KeeperOptions, groups::site as cgroups, kill_tree, main as keeper_main};
#[cfg(feature = "workers")]
pub use eclosion_scheduler::trigger::{Plan as SchedulePlan, Zones, instant_text, parse_instant};
pub use eclosion_schemas as schemas;
pub use eclosion_schemas::client::Client;
#[cfg(feature = "workers")]
pub use eclosion_stale_manager::{Limits, RetentionOptions};

pub use builder::Builder;
#[cfg(feature = "workers")]
pub use options::Options;
#[cfg(feature = "config")]
pub use places::{DEFAULT_INSTANCE, Places};
pub use running::Kernel;
