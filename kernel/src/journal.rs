//! The journal: one total order of facts, and everything that waits for a fact to be on the disk.
//!
//! `record` (one fact), `store` (the port behind which they are stored), `sequencer` (order and marks), `release` (what waits for them),
//! `threads` (the writer and the syncer), `memory` (a store for tests and ephemeral kernels).

pub mod memory;
pub mod record;
mod release;
pub mod sequencer;
pub(crate) mod stage;
pub mod store;
pub mod threads;

pub use record::{EVENT_BYTES_MAX, Record, Stored};
pub use sequencer::{Append, AppendError, Behind, Journal, Lost, Mark, Marks};
pub use store::{JournalStore, Opened, Projection, Reader, RowChange, Syncer};
