//! Supervision on ractor: who is started in which order, and what happens when something dies.
//!
//! ```text
//! root (3 restarts in 300 s) ── group ── group ── …       a group that gives up is started again by the root
//!                                 ├─ child (5 in 30 s)     one_for_one: a child is restarted alone
//!                                 └─ child
//! ```
//!
//! A child is a function that starts the next incarnation; what it works on (mailbox, journal, socket) stands outside
//! and outlives it. ractor catches the panic and reports it here; `budget` decides; the next incarnation is started
//! after the backoff. A group that gives up takes its children along and escalates to the root; a root that gives up
//! reports [`Escalated`], and whoever embeds the kernel decides (the binary exits with 70).
//!
//! Invariants: (1) children start in the order they were added and stop in reverse. (2) An exit counts once, and only
//! that of the current incarnation. (3) A supervisor never waits inside a handler.

pub mod budget;
mod group;
mod root;
mod tree;

pub use budget::{Budget, Restart};
pub use group::{ChildSpec, End, Ended, Group, Start, StartFuture};
pub use root::{Escalated, Root};
pub use tree::{Tree, Vital};
