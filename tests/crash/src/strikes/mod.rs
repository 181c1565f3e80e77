//! How each fault is done, and what must be seen of it at once. What can only be seen in the end, the judge sees.

mod abandon;
mod arenas;
pub(crate) mod callers;
mod collection;
mod crowd;
mod damage;
mod disk;
mod kills;
mod panics;
mod services;
mod streams;
mod ticks;
