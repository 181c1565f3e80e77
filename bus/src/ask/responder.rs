//! The answering end of a message that was finished.

use std::future::poll_fn;
use std::task::{Context as Task, Poll};

use eclosion_schemas::operation::Value;
use eclosion_schemas::{Code, Error};

use super::cell::{CancelToken, Origin};
use crate::refused::Refused;
use crate::timings::Timings;

/// Owes one reply, and may send items before it. It may be kept as long as the reply depends on something; dropped
/// without a reply it says that whoever held it died (P3). For a tell it owes nothing and discards what it is given.
#[derive(Debug)]
pub struct Responder {
    token: CancelToken,
}

impl Responder {
    #[inline]
    pub(crate) fn new(token: CancelToken) -> Self {
        Self { token }
    }

    /// Ends the ask. A reply after the deadline is discarded.
    #[inline]
    pub fn reply(mut self, outcome: Result<Value, Error>) {
        if let Origin::Ask(cell) = self.token.take().0 {
            cell.resolve(outcome);
        }
    }

    /// A stage of what is owed has ended, if the asker wants to know ([`crate::timings`]).
    #[inline]
    pub fn ended(&self, stage: &'static str) {
        if let Origin::Ask(cell) = &self.token.0 {
            cell.ended(stage);
        }
    }

    /// Where to note stages, if the asker wants to know.
    #[must_use]
    pub fn timings(&self) -> Option<&Timings> {
        self.token.0.ask().and_then(|cell| cell.timings())
    }

    /// Sends an item, waiting for credit: what the asker has granted, and 64 items under way at most.
    ///
    /// # Errors
    /// `cancelled` once nobody listens anymore.
    pub async fn item(&self, item: Value) -> Result<(), Error> {
        let mut item = item;
        loop {
            match self.try_item(item) {
                Ok(()) => return Ok(()),
                Err(Refused::Full(back)) => item = back,
                Err(_) => return Err(Error::new(Code::Cancelled, "ask.abandoned", "nobody listens anymore")),
            }
            if let Some(cell) = self.token.0.ask() {
                poll_fn(|task| cell.poll_credit(task)).await;
            }
        }
    }

    /// Sends an item if there is credit for it.
    ///
    /// # Errors
    /// `Full` without credit, `Closed` once nobody listens anymore.
    pub fn try_item(&self, item: Value) -> Result<(), Refused<Value>> {
        self.token.0.ask().map_or(Ok(()), |cell| cell.offer(item))
    }

    /// How many items may have been sent in sum, those that were sent included; it never falls. Who has items from
    /// somewhere else asks for no more than that.
    #[must_use]
    pub fn allowance(&self) -> u64 {
        self.token.0.ask().map_or(u64::MAX, |cell| cell.allowance())
    }

    /// Returns once [`Responder::allowance`] is more than `seen`, or nobody listens anymore. Cancel-safe.
    pub async fn allowance_over(&self, seen: u64) {
        if let Some(cell) = self.token.0.ask() {
            poll_fn(|task| cell.poll_allowance(seen, task)).await;
        }
    }

    /// Whether items are wanted before the reply.
    #[must_use]
    pub fn wants_items(&self) -> bool {
        self.token.0.ask().is_some_and(|cell| cell.streams())
    }

    /// Ready when an item may be sent, or is not wanted any more.
    pub fn poll_credit(&self, task: &Task<'_>) -> Poll<()> {
        self.token.0.ask().map_or(Poll::Ready(()), |cell| cell.poll_credit(task))
    }

    /// Whether somebody waits: false for a tell.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.token.0.ask().is_some_and(|cell| !cell.is_resolved() && !cell.is_tripped())
    }

    #[must_use]
    pub fn cancelled(&self) -> &CancelToken {
        &self.token
    }
}

impl Drop for Responder {
    #[inline]
    fn drop(&mut self) {
        if let Origin::Ask(cell) = &self.token.0
            && !cell.is_resolved()
        {
            let address = cell.shelf().address().as_str();
            cell.resolve(Err(Error::died(address, "the request was dropped without an answer")));
        }
    }
}
