//! Services: Python objects that the kernel starts, and begins again when they die.
//!
//! What is wanted is durable: a kernel that starts goes on with every service that was not stopped. Each life of a service
//! is one effect, owed until the life is over; whoever performs it ([`ports::Runner`]) keeps the process, and says when it
//! is up and when it is down. Whether and when the next life begins is decided here, by the service's own policy, with the
//! budget and the backoff that actors have.
//!
//! Reading order: [`state`] (the pure core), [`ports`], [`actor`] (the shell's parts that are this actor's own).

pub mod actor;
pub mod ports;
pub mod state;

pub use actor::ServicesActor;
pub use ports::Runner;
pub use state::{Command, Services};
