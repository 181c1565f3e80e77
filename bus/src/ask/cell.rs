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
use crate::mailbox::Shelf;
use crate::refused::Refused;
use crate::timings::Timings;
use crate::trace::{OpenSpan, SpanEnd};

const RESOLVED: u8 = 1;
const TRIPPED: u8 = 2;

/// Items of a stream that may wait for the asker, whatever it has granted; beyond it the responder waits for credit.
pub(crate) const ITEMS_MAX: u64 = 64;

/// What comes back: items while it runs, then one reply.
#[derive(Debug)]
pub enum Item {
    Item(Value),
    Reply(Result<Value, Error>),
}

/// An error is seven times the size of a reply, and rare.
pub(crate) type Outcome = Result<Value, Box<Error>>;

#[derive(Debug)]
pub(crate) struct AskCell {
    shelf: Arc<Shelf>,
    /// Absent unless somebody looks on.
    watched: Option<Box<Watched>>,
    /// Changed only under the lock, so a store will do.
    flags: AtomicU8,
    slot: Mutex<Slot>,
}

/// What those who look on are told.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) timings: Timings,
    /// Ends with the answer.
    pub(crate) span: Mutex<Option<Box<dyn OpenSpan>>>,
}

#[derive(Debug, Default)]
struct Slot {
    outcome: Option<Outcome>,
    asker: Option<Waker>,
    /// Absent for most: asks without items whose cancellation nobody awaits.
    rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    /// False: the asker wants the reply alone, and items are discarded.
    streams: bool,
    items: VecDeque<Value>,
    /// Items that were taken, in sum.
    taken: u64,
    /// Items that the asker has granted, in sum; one that names no credit has as many as there is room for.
    granted: Option<u64>,
    /// Who waits for credit.
    producers: Vec<Waker>,
    /// Who waits for cancellation.
    watchers: Vec<Waker>,
}

impl AskCell {
    #[inline]
    pub(crate) fn new(
        shelf: Arc<Shelf>,
        streams: bool,
        granted: Option<u64>,
        watched: Option<Box<Watched>>,
    ) -> Arc<Self> {
        let rare = streams.then(|| Box::new(Rare { streams, granted, ..Rare::default() }));
        let slot = Mutex::new(Slot { outcome: None, asker: None, rare });
        Arc::new(Self { shelf, watched, flags: AtomicU8::new(0), slot })
    }

    /// Where the message was sent.
    #[inline]
    pub(crate) fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// A stage of it has ended, if anybody wants to know.
    #[inline]
    pub(crate) fn ended(&self, stage: &'static str) {
        if let Some(watched) = &self.watched {
            watched.timings.ended(stage);
        }
    }

    #[inline]
    pub(crate) fn timings(&self) -> Option<&Timings> {
        self.watched.as_ref().map(|watched| &watched.timings)
    }

    #[inline]
    fn raise(&self, flag: u8) {
        let flags = self.flags.load(Ordering::Relaxed);
        self.flags.store(flags | flag, Ordering::Release);
    }

    // Acquire pairs with the Release of `resolve` and `trip`: who sees the flag sees what led to it.
    #[inline]
    pub(crate) fn is_resolved(&self) -> bool {
        self.flags.load(Ordering::Acquire) & RESOLVED != 0
    }

    #[inline]
    pub(crate) fn is_tripped(&self) -> bool {
        self.flags.load(Ordering::Acquire) & TRIPPED != 0
    }

    /// The first outcome wins.
    #[inline]
    pub(crate) fn resolve(&self, outcome: Result<Value, Error>) {
        let outcome = outcome.map_err(Box::new);
        let (asker, producers) = {
            let mut slot = locked(&self.slot);
            if self.is_resolved() {
                drop(slot);
                // `outcome` ends here, outside the lock.
                return;
            }
            if let Some(watched) = &self.watched {
                // Before the asker can look.
                watched.answered(&outcome);
            }
            slot.outcome = Some(outcome);
            self.raise(RESOLVED);
            (slot.asker.take(), slot.producers())
        };
        if let Some(asker) = asker {
            asker.wake();
        }
        wake_all(producers);
    }

    pub(crate) fn trip(&self) {
        let (watchers, producers) = {
            let mut slot = locked(&self.slot);
            self.raise(TRIPPED);
            let watchers = slot.rare.as_mut().map(|rare| std::mem::take(&mut rare.watchers));
            (watchers, slot.producers())
        };
        wake_all(watchers);
        wake_all(producers);
    }

    /// The reply, without items.
    #[inline]
    pub(crate) fn poll_reply(&self, task: &Task<'_>) -> Poll<Outcome> {
        let mut slot = locked(&self.slot);
        match slot.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                slot.wait(task);
                Poll::Pending
            }
        }
    }

    /// The next item, and the reply once there is none.
    pub(crate) fn poll_item(&self, task: &Task<'_>) -> Poll<Item> {
        let mut slot = locked(&self.slot);
        if let Some(item) = slot.rare.as_mut().and_then(|rare| rare.take()) {
            let producers = slot.producers();
            drop(slot);
            wake_all(producers);
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

    pub(crate) fn streams(&self) -> bool {
        locked(&self.slot).rare.as_ref().is_some_and(|rare| rare.streams)
    }

    /// `Full`: no credit. `Closed`: nobody listens anymore.
    pub(crate) fn offer(&self, item: Value) -> Result<(), Refused<Value>> {
        let asker = {
            let mut slot = locked(&self.slot);
            if self.flags.load(Ordering::Acquire) != 0 {
                return Err(Refused::Closed(item));
            }
            let Some(rare) = slot.rare.as_mut().filter(|rare| rare.streams) else { return Ok(()) };
            if rare.offered() >= rare.allowance() {
                return Err(Refused::Full(item));
            }
            rare.items.push_back(item);
            slot.asker.take()
        };
        if let Some(asker) = asker {
            asker.wake();
        }
        Ok(())
    }

    /// Ready when an offer is worth repeating.
    pub(crate) fn poll_credit(&self, task: &Task<'_>) -> Poll<()> {
        self.poll_producer(task, |rare| rare.offered() < rare.allowance())
    }

    /// Ready when more than `seen` items may have been offered in sum, or nobody listens anymore.
    pub(crate) fn poll_allowance(&self, seen: u64, task: &Task<'_>) -> Poll<()> {
        self.poll_producer(task, |rare| rare.allowance() > seen)
    }

    fn poll_producer(&self, task: &Task<'_>, may_go_on: impl Fn(&Rare) -> bool) -> Poll<()> {
        let mut slot = locked(&self.slot);
        if self.flags.load(Ordering::Acquire) != 0 {
            return Poll::Ready(());
        }
        match slot.rare.as_mut() {
            Some(rare) if rare.streams && !may_go_on(rare) => {
                remember(&mut rare.producers, task.waker());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// How many items may have been offered in sum.
    pub(crate) fn allowance(&self) -> u64 {
        let slot = locked(&self.slot);
        slot.rare.as_ref().filter(|rare| rare.streams).map_or(u64::MAX, |rare| rare.allowance())
    }

    /// `total` counts from the begin; a smaller one than before came late and changes nothing.
    pub(crate) fn grant(&self, total: u64) {
        let producers = {
            let mut slot = locked(&self.slot);
            if let Some(rare) = slot.rare.as_mut() {
                rare.granted = rare.granted.max(Some(total));
            }
            slot.producers()
        };
        wake_all(producers);
    }

    fn poll_tripped(&self, task: &Task<'_>) -> Poll<()> {
        let mut slot = locked(&self.slot);
        if self.is_tripped() {
            return Poll::Ready(());
        }
        remember(&mut slot.rare.get_or_insert_default().watchers, task.waker());
        Poll::Pending
    }
}

impl Watched {
    fn answered(&self, outcome: &Outcome) {
        self.timings.ended("answered");
        if let Some(span) = locked(&self.span).take() {
            let error = outcome.as_ref().err().map(|error| &**error);
            span.end(SpanEnd { error, stages: &self.timings.stages(), ended: None });
        }
    }
}

impl Rare {
    fn offered(&self) -> u64 {
        self.taken + self.items.len() as u64
    }

    fn allowance(&self) -> u64 {
        let room = self.taken + ITEMS_MAX;
        self.granted.map_or(room, |granted| granted.min(room))
    }

    fn take(&mut self) -> Option<Value> {
        let item = self.items.pop_front()?;
        self.taken += 1;
        Some(item)
    }
}

impl Slot {
    #[inline]
    fn wait(&mut self, task: &Task<'_>) {
        match &mut self.asker {
            Some(waker) => waker.clone_from(task.waker()),
            none => *none = Some(task.waker().clone()),
        }
    }

    #[inline]
    fn producers(&mut self) -> Option<Vec<Waker>> {
        self.rare.as_mut().map(|rare| std::mem::take(&mut rare.producers))
    }
}

fn wake_all(wakers: Option<Vec<Waker>>) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}

fn remember(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|known| known.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

/// Tells whoever works on an ask that nobody waits for the answer anymore. What was decided stands.
#[derive(Debug, Clone)]
pub struct CancelToken(pub(crate) Origin);

/// Where a message came from, and with it the mailbox that it belongs to.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Ask(Arc<AskCell>),
    Tell(Arc<Shelf>),
    /// Handled, or passed on.
    Gone,
}

impl Origin {
    pub(crate) fn ask(&self) -> Option<&Arc<AskCell>> {
        match self {
            Origin::Ask(cell) => Some(cell),
            Origin::Tell(_) | Origin::Gone => None,
        }
    }

    pub(crate) fn shelf(&self) -> Option<&Arc<Shelf>> {
        match self {
            Origin::Ask(cell) => Some(&cell.shelf),
            Origin::Tell(shelf) => Some(shelf),
            Origin::Gone => None,
        }
    }
}

impl CancelToken {
    pub(crate) const GONE: Self = Self(Origin::Gone);

    #[inline]
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::GONE)
    }

    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.ask().is_some_and(|cell| cell.is_tripped())
    }

    /// Ready once it is cancelled; for a tell, never.
    pub fn poll_cancelled(&self, task: &Task<'_>) -> Poll<()> {
        self.0.ask().map_or(Poll::Pending, |cell| cell.poll_tripped(task))
    }

    /// Returns once it is cancelled; for a tell, never.
    pub async fn cancelled(&self) {
        match self.0.ask() {
            Some(cell) => poll_fn(|task| cell.poll_tripped(task)).await,
            None => std::future::pending().await,
        }
    }
}
