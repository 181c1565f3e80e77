//! The message bus inside one kernel: addresses, mailboxes, ask, tell, publish and subscribe.
//!
//! Everything is bounded and everything is counted (P5). The bus knows nothing of actors: it owns mailboxes, and
//! whoever takes from one may die and be replaced while its messages wait (P2). Nobody who asks is left hanging: an
//! ask resolves with a reply, a refusal, its deadline, or the death of whoever held it (P3).
//!
//! Values travel typed, as they are; bytes are made only where a transport needs them, once for all receivers.
//! A [`Bus`] is a value: several live in one process and share nothing.
//!
//! Reading order: [`address`] (names), [`context`] (what rides along), [`mailbox`] (where messages wait), [`ask`]
//! (how an answer comes back), [`bus`] (routes), [`publish`] (one to many), [`local`] (all of it as one client),
//! [`dead_letter`] and [`statistics`] (what became of everything), [`timings`] and [`trace`] (where the time of asks went).

mod acts;
pub mod address;
mod admission;
pub mod ask;
pub mod bus;
pub mod clock;
pub mod context;
pub mod control;
pub mod dead_letter;
pub mod local;
pub mod mailbox;
pub mod publish;
pub mod refused;
pub mod statistics;
pub mod timings;
pub mod trace;

pub use acts::ActCall;
pub use address::{Address, Filter, InvalidName, Subject};
pub use ask::{Ask, AskFuture, CancelToken, Item, Pending, Responder};
pub use bus::{Bus, Call};
pub use clock::{Clock, ManualClock};
pub use context::{Context, TraceContext};
pub use control::{Control, Probe};
pub use dead_letter::DeadLetter;
pub use local::LocalClient;
pub use mailbox::{Gate, InHand, Mailbox, MailboxOptions, Message, Taken, WhenFull};
pub use publish::{Delivery, Event, Publication, Subscription, TAIL_MAX};
pub use refused::Refused;
pub use statistics::{MailboxStatistics, Quantiles};
pub use timings::Timings;
pub use trace::{NewSpan, OpenSpan, SpanEnd, SpanKind, TraceCounts, Tracer};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A panic while a lock is held cannot leave our states half changed (no user code runs under one), so a poisoned
/// lock is as good as any.
#[inline]
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
