//! The local socket: the kernel's end of every connection.
//!
//! Three things that the composition root puts into supervised actors, each a plain value with a `run` future and no
//! task of its own, so that a panic ends one of them alone (P2):
//!
//! - [`Listener`]: the listening socket, closed to other users (P10, P-SEC-1); gives out [`Accepted`] connections.
//! - [`Session`]: a client's calls and subscriptions, carried to the bus and back (P3, P5), or one of the [`pages`].
//! - [`WorkerLink`]: one worker's stream: attempts to it, outcomes from it, files both ways.
//!
//! Values too large for frames lie in shared memory: [`arena`].
//!
//! Reading order: [`connection`] (bytes to messages and back), [`listener`], [`session`], [`worker`]. The frames are
//! `eclosion_schemas::frame`; `schemas/PROTOCOL.md` is their contract. Nothing here decides anything about runs, pools
//! or artifacts.

pub mod arena;
pub mod connection;
pub mod listener;
mod operator;
pub mod pages;
mod ready;
pub mod session;
pub mod traffic;
pub mod welcome;
pub mod worker;

pub use connection::{Connection, End};
pub use listener::{Accepted, ListenOptions, Listener, Peer};
pub use pages::{Page, Pages, Written};
pub use session::serve::{Declared, Declaring, ServiceCall, Services, gone, note_ran};
pub use session::{Session, SessionEnd};
pub use traffic::{Carried, Traffic};
pub use welcome::Welcome;
pub use worker::{
    AttachedWorker, Care, LinkEnd, Outcome, WorkerHandle, WorkerHello, WorkerLink, WorkerReports,
};
