//! What one subscriber has not taken yet.
//!
//! States: *open* → *ended* ([`Queue::end`]; by the subscriber, by `close`, or with the bus). Pushing is done under
//! the hub's lock and never waits; [`Queue::room`] is where a patient publisher waits, outside it.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context as Task, Poll, Waker};

use eclosion_schemas::{Code, Error};

use super::{Event, OnFull};
use crate::address::Filter;
use crate::locked;

/// Large values that may wait for one subscriber: what is over it counts as full, however few they are.
const WEIGHT_BYTES_MAX: u64 = 32 << 20;

#[derive(Debug)]
pub(super) struct Queue {
    filter: Filter,
    on_full: OnFull,
    capacity: usize,
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    changes: VecDeque<Arc<Event>>,
    weight_bytes: u64,
    /// Dropped before the oldest change.
    gap: u64,
    taker: Option<Waker>,
    publishers: Vec<Waker>,
    ended: bool,
    why_ended: Option<Error>,
}

/// What a subscriber takes.
#[derive(Debug)]
pub(super) enum Next {
    Gap(u64),
    Change(Arc<Event>),
    Ended,
}

impl Queue {
    pub(super) fn new(filter: Filter, on_full: OnFull, capacity: usize) -> Self {
        // Without room for one change nothing could ever be delivered.
        Self { filter, on_full, capacity: capacity.max(1), state: Mutex::default() }
    }

    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Returns whom to wake.
    pub(super) fn push(&self, event: &Arc<Event>) -> Option<Waker> {
        let mut waiting = locked(&self.state);
        if waiting.ended {
            return None;
        }
        if waiting.changes.len() < self.capacity && waiting.bears(event) {
            waiting.take_in(event);
            return waiting.taker.take();
        }
        match self.on_full {
            // A publisher that does not wait cannot be made to: for `block` the same as a gap.
            OnFull::Gap | OnFull::Block => waiting.push_with_gap(event),
            OnFull::Latest => waiting.push_latest(event, self.capacity),
            OnFull::Close => {
                waiting.end(Some(slow_consumer(self.capacity)));
            }
        }
        waiting.taker.take()
    }

    /// Whether a patient publisher has to wait for this one.
    pub(super) fn blocks(&self) -> bool {
        let waiting = locked(&self.state);
        self.on_full == OnFull::Block && !waiting.ended && waiting.changes.len() >= self.capacity
    }

    pub(super) async fn room(&self) {
        poll_fn(|task| {
            let mut waiting = locked(&self.state);
            if waiting.ended || waiting.changes.len() < self.capacity {
                return Poll::Ready(());
            }
            if !waiting.publishers.iter().any(|known| known.will_wake(task.waker())) {
                waiting.publishers.push(task.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    pub(super) fn poll_next(&self, task: &Task<'_>) -> Poll<Next> {
        let mut waiting = locked(&self.state);
        if waiting.gap > 0 {
            return Poll::Ready(Next::Gap(std::mem::take(&mut waiting.gap)));
        }
        if let Some(event) = waiting.let_out() {
            let publishers = std::mem::take(&mut waiting.publishers);
            drop(waiting);
            publishers.into_iter().for_each(Waker::wake);
            return Poll::Ready(Next::Change(event));
        }
        if waiting.ended {
            return Poll::Ready(Next::Ended);
        }
        match &mut waiting.taker {
            Some(taker) => taker.clone_from(task.waker()),
            none => *none = Some(task.waker().clone()),
        }
        Poll::Pending
    }

    pub(super) fn end(&self, why: Option<Error>) {
        let (taker, publishers) = {
            let mut waiting = locked(&self.state);
            waiting.end(why);
            (waiting.taker.take(), std::mem::take(&mut waiting.publishers))
        };
        taker.into_iter().chain(publishers).for_each(Waker::wake);
    }

    pub(super) fn why_ended(&self) -> Option<Error> {
        locked(&self.state).why_ended.clone()
    }
}

impl Waiting {
    fn end(&mut self, why: Option<Error>) {
        self.ended = true;
        self.why_ended = why;
    }

    /// Whether there is room for one more large value. One finds room always.
    fn bears(&self, event: &Event) -> bool {
        self.changes.is_empty() || self.weight_bytes + event.weight_bytes() <= WEIGHT_BYTES_MAX
    }

    fn take_in(&mut self, event: &Arc<Event>) {
        self.weight_bytes += event.weight_bytes();
        self.changes.push_back(Arc::clone(event));
    }

    fn let_out(&mut self) -> Option<Arc<Event>> {
        let event = self.changes.pop_front()?;
        self.weight_bytes -= event.weight_bytes();
        Some(event)
    }

    fn push_with_gap(&mut self, event: &Arc<Event>) {
        while self.let_out().is_some() {
            self.gap += 1;
            if self.bears(event) {
                break;
            }
        }
        self.take_in(event);
    }

    /// Keeps the newest of each subject; only if there are more subjects than places is anything missed.
    fn push_latest(&mut self, event: &Arc<Event>, capacity: usize) {
        self.take_in(event);
        let mut seen = HashSet::with_capacity(self.changes.len());
        let newest_first: Vec<_> =
            self.changes.drain(..).rev().filter(|event| seen.insert(event.subject.clone())).collect();
        self.changes.extend(newest_first.into_iter().rev());
        self.weight_bytes = self.changes.iter().map(|event| event.weight_bytes()).sum();
        while self.changes.len() > capacity
            || (self.weight_bytes > WEIGHT_BYTES_MAX && self.changes.len() > 1)
        {
            self.let_out();
            self.gap += 1;
        }
    }
}

fn slow_consumer(capacity: usize) -> Error {
    let message = format!("the subscriber did not keep up: {capacity} changes were waiting");
    Error::new(Code::SlowConsumer, "subscription.slow", message)
        .help("subscribe again; the snapshot catches up")
}
