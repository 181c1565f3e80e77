//! Processes: the keeper that owns the workers, and the kernel's handle on it.
//!
//! One kernel instance has one **keeper**: a tiny process (the kernel's own binary in another role) that parents the
//! zygotes, adopts every worker as its own child, and so knows every exit status. The kernel may be killed and started
//! again; the keeper holds the workers meanwhile and hands each a fresh stream over its lifeline. A keeper whose kernel
//! does not come back within the grace ends every tree and itself.
//!
//! Reading order: [`message`] (what is said, as data), [`socket`] (how a message and its descriptors travel),
//! [`procfs`] (who is who, from /proc), [`tree`] (a worker and all that came of it), [`ladder`] (from asking to
//! killing), [`limits`] (what a tree may take up), [`groups`] (where the system sees to it), [`keeper`] (the process), [`client`] (the kernel's side), [`sweep`](mod@sweep) (what two deaths at once left behind).
//!
//! Who is killed is decided by evidence that outlives a process id: (boot id, pid, start time), or the mark of the
//! keeper's directory in a process's environment. Nothing here uses a parent-death signal: it fires when the spawning
//! *thread* ends, and it would kill what is to be adopted again.
//!
//! Linux alone. `unsafe` is in `keeper/sys.rs`, one step per function, and once where a socket joins tokio.

pub mod client;
pub mod groups;
pub mod keeper;
pub mod ladder;
pub mod limits;
pub mod message;
pub mod procfs;
pub mod socket;
pub mod sweep;
pub mod tree;

pub use client::{Keeper, KeeperConfig, KeeperEvent};
pub use groups::{Cgroups, Groups, NoGroups};
pub use keeper::{KeeperOptions, main};
pub use ladder::Rung;
pub use message::{How, KnownWorker, SpawnWorker};
pub use procfs::{ProcessId, boot_id};
pub use sweep::{Leftover, sweep};
pub use tree::kill as kill_tree;
