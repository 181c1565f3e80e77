//! The artifact store: outputs of steps by name and by content, their versions and their lineage.
//!
//! What it knows of outputs is derived from `run.started` and `step.committed`: rows by a projection, and in memory only
//! which runs are live. What people say of them, tags and pins, it decides itself. The bytes of large values lie behind a
//! port.
//!
//! Reading order: [`rows`] (what is kept, and how it is found), [`lineage`] (who needs whom), [`state`] (the pure core),
//! [`view`] (an output as readers see it), [`ports`] (where bytes lie), [`actor`] (the shell's parts that are this
//! actor's own), [`files`] (what has to read files: values with their bytes, and verification).

pub mod actor;
pub mod files;
pub mod lineage;
pub mod ports;
pub mod rows;
pub mod state;
pub mod view;

pub use actor::ArtifactActor;
pub use files::{FILES, Files};
pub use ports::{BlobStore, Storage};
pub use rows::project;
pub use state::{Artifacts, Command, State};
