//! The receiving end: acknowledged, snapshot, end of snapshot, then changes and gaps. With a cursor: acknowledged, what
//! was published since then, then changes; or acknowledged, reset, and a snapshot as without one.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};

use eclosion_schemas::Error;
use eclosion_schemas::ids::{Epoch, Seq};
use eclosion_schemas::ops::kernel::Delivery as WireDelivery;

use super::queue::{Next, Queue};
use super::{Event, Leave};

/// One item of a subscription; its form on the wire is [`eclosion_schemas::ops::kernel::Delivery`].
#[derive(Debug, Clone)]
pub enum Delivery {
    /// The first item: subscribed, as of this position.
    Acknowledged {
        epoch: Epoch,
        seq: Seq,
    },
    /// The cursor cannot be gone on from; a snapshot follows.
    Reset {
        why: Arc<str>,
    },
    /// A retained state, before any change.
    Snapshot(Arc<Event>),
    SnapshotEnd,
    Change(Arc<Event>),
    /// This many were dropped here.
    Gap {
        dropped: u64,
    },
}

impl Delivery {
    /// As it is declared in `schemas`.
    ///
    /// # Errors
    /// `internal` when a value refuses to be JSON.
    pub fn to_wire(&self) -> Result<WireDelivery, Error> {
        Ok(match self {
            Delivery::Acknowledged { epoch, seq } => WireDelivery::Acknowledged { epoch: *epoch, seq: *seq },
            Delivery::Reset { why } => WireDelivery::Reset { why: why.to_string() },
            Delivery::Snapshot(event) => {
                let ((epoch, seq), subject) = (event.position(), event.subject.to_string());
                WireDelivery::Snapshot { subject, epoch, seq, value: event.to_json()? }
            }
            Delivery::SnapshotEnd => WireDelivery::SnapshotEnd {},
            Delivery::Change(event) => {
                let ((epoch, seq), subject) = (event.position(), event.subject.to_string());
                WireDelivery::Change { subject, epoch, seq, value: event.to_json()? }
            }
            Delivery::Gap { dropped } => WireDelivery::Gap { dropped: *dropped },
        })
    }

    /// As msgpack with named fields; a change is encoded once for all its receivers.
    ///
    /// # Errors
    /// `internal` when a value refuses to be encoded.
    pub fn encoded(&self) -> Result<Arc<[u8]>, Error> {
        match self {
            Delivery::Change(event) => event.encoded_change(),
            Delivery::Snapshot(event) => event.encoded_snapshot(),
            small => rmp_serde::to_vec_named(&small.to_wire()?)
                .map(Arc::from)
                .map_err(|why| Error::internal("publish.encode", why.to_string())),
        }
    }
}

/// A place in the audience. Dropping it leaves.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
    opening: Opening,
    /// Held for its drop.
    _leave: Leave,
}

/// What comes before the first change of the queue, in this order.
#[derive(Debug)]
pub(super) struct Opening {
    position: Option<(Epoch, Seq)>,
    reset: Option<Arc<str>>,
    snapshot: Option<std::vec::IntoIter<Arc<Event>>>,
    changes: std::vec::IntoIter<Arc<Event>>,
}

impl Opening {
    pub(super) fn snapshot(position: (Epoch, Seq), reset: Option<String>, states: Vec<Arc<Event>>) -> Self {
        Self {
            position: Some(position),
            reset: reset.map(Arc::from),
            snapshot: Some(states.into_iter()),
            changes: Vec::new().into_iter(),
        }
    }

    pub(super) fn resume(cursor: (Epoch, Seq), changes: Vec<Arc<Event>>) -> Self {
        Self { position: Some(cursor), reset: None, snapshot: None, changes: changes.into_iter() }
    }

    fn next(&mut self) -> Option<Delivery> {
        if let Some((epoch, seq)) = self.position.take() {
            return Some(Delivery::Acknowledged { epoch, seq });
        }
        if let Some(why) = self.reset.take() {
            return Some(Delivery::Reset { why });
        }
        if let Some(states) = &mut self.snapshot {
            if let Some(state) = states.next() {
                return Some(Delivery::Snapshot(state));
            }
            self.snapshot = None;
            return Some(Delivery::SnapshotEnd);
        }
        self.changes.next().map(Delivery::Change)
    }
}

impl Subscription {
    pub(super) fn new(queue: Arc<Queue>, leave: Leave, opening: Opening) -> Self {
        Self { queue, opening, _leave: leave }
    }

    /// The next item; `None` once it has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        poll_fn(|task| self.poll_next(task)).await
    }

    /// What [`Subscription::next`] awaits.
    pub fn poll_next(&mut self, task: &mut Task<'_>) -> Poll<Option<Delivery>> {
        if let Some(delivery) = self.opening.next() {
            return Poll::Ready(Some(delivery));
        }
        let progress = ready!(tokio::task::coop::poll_proceed(task));
        let next = ready!(self.queue.poll_next(task));
        progress.made_progress();
        Poll::Ready(match next {
            Next::Gap(dropped) => Some(Delivery::Gap { dropped }),
            Next::Change(event) => Some(Delivery::Change(event)),
            Next::Ended => None,
        })
    }

    /// Why it ended: `slow_consumer`, or nothing if the bus is gone.
    #[must_use]
    pub fn why_ended(&self) -> Option<Error> {
        self.queue.why_ended()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // A publisher may be waiting for room that nobody will make anymore.
        self.queue.end(None);
    }
}
