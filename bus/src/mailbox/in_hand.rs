//! A message, and the right to handle it.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use eclosion_schemas::operation::{Operation, Value};

use super::Shelf;
use super::state::Entry;
use crate::ask::{AskCell, CancelToken, Responder};
use crate::context::Context;

/// One message in one allocation, typed until it enters the queue.
#[non_exhaustive]
pub struct Envelope<R: ?Sized> {
    pub operation: &'static str,
    pub context: Context,
    /// 1, or 2 if an earlier hand died under it.
    pub deliveries: u8,
    pub(crate) accepted_at: Instant,
    /// Who waits for the answer; nobody for a tell.
    pub(crate) asker: CancelToken,
    pub(crate) request: R,
}

/// A message as it waits and as a handler sees it.
pub type Message = Envelope<dyn Any + Send>;

impl<R: ?Sized> fmt::Debug for Envelope<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the request: it may hold what must not be written down.
        f.debug_struct("Message")
            .field("operation", &self.operation)
            .field("context", &self.context)
            .field("deliveries", &self.deliveries)
            .field("awaited", &self.asker.0.is_some())
            .finish_non_exhaustive()
    }
}

impl<R> Envelope<R> {
    pub(crate) fn new(
        operation: &'static str,
        context: Context,
        accepted_at: Instant,
        ask: Option<Arc<AskCell>>,
        request: R,
    ) -> Box<Self> {
        Box::new(Self { operation, context, deliveries: 1, accepted_at, asker: CancelToken(ask), request })
    }
}

impl<R: ?Sized> Envelope<R> {
    pub(crate) fn ask(&self) -> Option<&Arc<AskCell>> {
        self.asker.0.as_ref()
    }
}

impl Message {
    /// The typed request; `None` if the operation's request is another type.
    #[must_use]
    pub fn request<O: Operation>(&self) -> Option<&O::Request> {
        self.request_any().downcast_ref()
    }

    /// The request, whatever it is.
    #[must_use]
    pub fn request_any(&self) -> &(dyn Any + Send) {
        // A transport's request was boxed when it was decoded.
        match self.request.downcast_ref::<Value>() {
            Some(boxed) => boxed.as_ref(),
            None => &self.request,
        }
    }

    /// A dead letter on its way back: nobody waits for it, and it gets two deliveries again.
    pub(crate) fn revive(&mut self, deadline: Instant, now: Instant) {
        self.asker = CancelToken(None);
        self.deliveries = 1;
        self.context.deadline = deadline;
        self.accepted_at = now;
    }

    /// Whether somebody waits for an answer.
    #[must_use]
    pub fn is_ask(&self) -> bool {
        self.asker.0.is_some()
    }
}

/// The right to handle one message. [`InHand::finish`] ends it; dropped without that (its handler panicked or was
/// killed) the message goes back to the front of its mailbox, and the second time it becomes a dead letter and its
/// ask resolves `actor.died`.
#[derive(Debug)]
#[must_use = "dropping it gives the message back"]
pub struct InHand {
    /// Where it goes back to; taken once it was finished or given back.
    shelf: Option<Arc<Shelf>>,
    entry: Entry,
}

impl InHand {
    pub(super) fn new(shelf: Arc<Shelf>, entry: Entry) -> Self {
        Self { shelf: Some(shelf), entry }
    }

    /// Handled. The answer may come later, from anywhere.
    pub fn finish(mut self) -> Responder {
        let shelf = self.shelf.take();
        if let Some(shelf) = &shelf {
            shelf.finish();
        }
        Responder::new(shelf, std::mem::replace(&mut self.entry.message.asker, CancelToken(None)))
    }

    /// Gives the message back with the text of what went wrong, as a drop does without one.
    pub fn died(mut self, text: &str) {
        self.give_back(text);
    }

    #[must_use]
    pub fn cancelled(&self) -> &CancelToken {
        &self.entry.message.asker
    }

    fn give_back(&mut self, why: &str) {
        if let Some(shelf) = self.shelf.take() {
            let blank = Envelope::new("", Context::until(self.accepted_at), self.accepted_at, None, ());
            let message = std::mem::replace(&mut self.entry.message, blank);
            shelf.give_back(Entry { ticket: self.entry.ticket, message }, why);
        }
    }
}

impl Deref for InHand {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.entry.message
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        self.give_back(if panicking { "its handler panicked" } else { "its handler was dropped" });
    }
}
