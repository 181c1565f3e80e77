//! The one allocation in which an ask waits for its answer.
//!
//! States: *open* → *resolved* ([`AskCell::resolve`], once; later outcomes are discarded) and, independent of it,
//! *tripped* ([`AskCell::trip`]: the asker has left or its deadline has passed, whoever works on it may stop).
//! Invariant: wakers are woken, and values dropped, outside the lock.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as Task, Poll, Waker};

use eclosion_schemas::Error;
use eclosion_schemas::operation::Value;

use crate::locked;
use crate::refused::Refused;

const RESOLVED: u8 = 1;
const TRIPPED: u8 = 2;

/// Items of a stream that may wait for the asker; beyond it the responder waits for credit.
pub(crate) const ITEMS_MAX: usize = 64;

/// What comes back: items while it runs, then one reply.
#[derive(Debug)]
pub enum Item {
    Item(Value),
    Reply(Result<Value, Error>),
}

/// An error is seven times the size of a reply, and rare.
type Outcome = Result<Value, Box<Error>>;

#[derive(Debug)]
pub(crate) struct AskCell {
    flags: AtomicU8,
    slot: Mutex<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    outcome: Option<Outcome>,
    asker: Option<Waker>,
    watchers: Vec<Waker>,
    /// Absent: the asker wants the reply alone, and items are discarded.
    stream: Option<Box<Stream>>,
}

#[derive(Debug, Default)]
struct Stream {
    items: VecDeque<Value>,
    producers: Vec<Waker>,
}

impl AskCell {
    pub(crate) fn new(streams: bool) -> Arc<Self> {
        let stream = streams.then(Box::default);
        let slot = Slot { stream, ..Slot::default() };
        Arc::new(Self { flags: AtomicU8::new(0), slot: Mutex::new(slot) })
    }

    // Acquire pairs with the Release of `resolve` and `trip`: who sees the flag sees what led to it.
    pub(crate) fn is_resolved(&self) -> bool {
        self.flags.load(Ordering::Acquire) & RESOLVED != 0
    }

    pub(crate) fn is_tripped(&self) -> bool {
        self.flags.load(Ordering::Acquire) & TRIPPED != 0
    }

    /// The first outcome wins.
    pub(crate) fn resolve(&self, outcome: Result<Value, Error>) {
        let outcome = outcome.map_err(Box::new);
        let (asker, producers) = {
            let mut slot = locked(&self.slot);
            if self.is_resolved() {
                drop(slot);
                // `outcome` ends here, outside the lock.
                return;
            }
            slot.outcome = Some(outcome);
            self.flags.fetch_or(RESOLVED, Ordering::Release);
            (slot.asker.take(), slot.producers())
        };
        asker.into_iter().chain(producers).for_each(Waker::wake);
    }

    pub(crate) fn trip(&self) {
        let (watchers, producers) = {
            let mut slot = locked(&self.slot);
            self.flags.fetch_or(TRIPPED, Ordering::Release);
            (std::mem::take(&mut slot.watchers), slot.producers())
        };
        watchers.into_iter().chain(producers).for_each(Waker::wake);
    }

    /// The reply, without items.
    pub(crate) fn poll_reply(&self, task: &Task<'_>) -> Poll<Result<Value, Error>> {
        let mut slot = locked(&self.slot);
        match slot.outcome.take() {
            Some(outcome) => Poll::Ready(outcome.map_err(|error| *error)),
            None => {
                slot.wait(task);
                Poll::Pending
            }
        }
    }

    /// The next item, and the reply once there is none.
    pub(crate) fn poll_item(&self, task: &Task<'_>) -> Poll<Item> {
        let mut slot = locked(&self.slot);
        if let Some(item) = slot.stream.as_mut().and_then(|stream| stream.items.pop_front()) {
            let producers = slot.producers();
            drop(slot);
            producers.into_iter().for_each(Waker::wake);
            return Poll::Ready(Item::Item(item));
        }
        match slot.outcome.take() {
            Some(outcome) => Poll::Ready(Item::Reply(outcome.map_err(|error| *error))),
            None => {
                slot.wait(task);
                Poll::Pending
            }
        }
    }

    /// `Full`: no credit. `Closed`: nobody listens anymore.
    pub(crate) fn offer(&self, item: Value) -> Result<(), Refused<Value>> {
        let asker = {
            let mut slot = locked(&self.slot);
            if self.flags.load(Ordering::Acquire) != 0 {
                return Err(Refused::Closed(item));
            }
            let Some(stream) = slot.stream.as_mut() else { return Ok(()) };
            if stream.items.len() >= ITEMS_MAX {
                return Err(Refused::Full(item));
            }
            stream.items.push_back(item);
            slot.asker.take()
        };
        asker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Ready when an offer is worth repeating.
    pub(crate) fn poll_credit(&self, task: &Task<'_>) -> Poll<()> {
        let mut slot = locked(&self.slot);
        if self.flags.load(Ordering::Acquire) != 0 {
            return Poll::Ready(());
        }
        match slot.stream.as_mut() {
            Some(stream) if stream.items.len() >= ITEMS_MAX => {
                remember(&mut stream.producers, task.waker());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    fn poll_tripped(&self, task: &Task<'_>) -> Poll<()> {
        let mut slot = locked(&self.slot);
        if self.is_tripped() {
            return Poll::Ready(());
        }
        remember(&mut slot.watchers, task.waker());
        Poll::Pending
    }
}

impl Slot {
    fn wait(&mut self, task: &Task<'_>) {
        match &mut self.asker {
            Some(waker) => waker.clone_from(task.waker()),
            none => *none = Some(task.waker().clone()),
        }
    }

    fn producers(&mut self) -> Vec<Waker> {
        self.stream.as_mut().map(|stream| std::mem::take(&mut stream.producers)).unwrap_or_default()
    }
}

fn remember(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|known| known.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

/// Tells whoever works on an ask that nobody waits for the answer anymore. What was decided stands.
#[derive(Debug, Clone)]
pub struct CancelToken(pub(crate) Option<Arc<AskCell>>);

impl CancelToken {
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|cell| cell.is_tripped())
    }

    /// Returns once it is cancelled; for a tell, never.
    pub async fn cancelled(&self) {
        match &self.0 {
            Some(cell) => poll_fn(|task| cell.poll_tripped(task)).await,
            None => std::future::pending().await,
        }
    }
}
