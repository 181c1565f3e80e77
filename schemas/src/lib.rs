//! What crosses a process: identifiers, errors, operations, events, flow files, the wire.
//!
//! This crate holds the kernel's own vocabulary and nothing else: an application brings its own operations and
//! declares them with the same [`Operation`] trait. Everything here is data; nothing here performs anything.
//!
//! Reading order: [`ids`] (newtypes), [`error`] (what a refusal says), [`operation`] (the open table), [`ops`]
//! (the kernel's operations), [`events`] (the facts in the journal), [`flow`] (flow files), [`payload`] (values
//! between steps), [`certificate`] and [`pending`] (why), [`client`] (the one trait of all clients), [`frame`] and [`codec`]
//! (bytes), [`secret`], [`suggest`] (the name that was meant).

pub mod certificate;
pub mod client;
pub mod codec;
pub mod error;
pub mod events;
pub mod flow;
pub mod frame;
pub mod ids;
pub mod operation;
pub mod ops;
pub mod payload;
pub mod pending;
pub mod schedule;
pub mod secret;
pub mod suggest;
pub mod timings;
pub mod view;

pub use error::{Code, Error, Retry};
pub use ids::*;
pub use operation::{Durability, Operation, Role};
pub use payload::{Held, Hold, Part, Payload, Segment};
pub use timings::{Stage, Timed};
