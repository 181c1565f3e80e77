//! The artifact store: outputs of steps by name and by content, their versions and their lineage.

pub mod ports;

pub use ports::BlobStore;
