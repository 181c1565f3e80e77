//! A message, and the right to handle it.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use eclosion_schemas::operation::{Operation, Value};

use crate::ask::{AskCell, CancelToken, Origin, Responder};
use crate::clock::Tick;
use crate::context::Context;

/// One message in one allocation, typed until it enters the queue.
#[non_exhaustive]
pub struct Envelope<R: ?Sized> {
    pub operation: &'static str,
    pub context: Context,
    /// 1, or 2 if an earlier hand died under it.
    pub deliveries: u8,
    /// Given when it is accepted; the place in the queue.
    pub(super) ticket: u64,
    pub(crate) accepted_at: Tick,
    /// The deadline, in the form that is compared.
    pub(crate) due: Tick,
    /// Who waits for the answer, if anybody does.
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
            .field("awaited", &self.ask().is_some())
            .finish_non_exhaustive()
    }
}

impl<R> Envelope<R> {
    #[inline]
    pub(crate) fn new(
        operation: &'static str,
        context: Context,
        accepted_at: Tick,
        due: Tick,
        origin: Origin,
        request: R,
    ) -> Box<Self> {
        let asker = CancelToken(origin);
        Box::new(Self { operation, context, deliveries: 1, ticket: 0, accepted_at, due, asker, request })
    }
}

impl<R: ?Sized> Envelope<R> {
    #[inline]
    pub(crate) fn ask(&self) -> Option<&Arc<AskCell>> {
        self.asker.0.ask()
    }
}

impl Message {
    /// The typed request; `None` if the message is of another operation, even one whose request has the same type.
    #[inline]
    #[must_use]
    pub fn request<O: Operation>(&self) -> Option<&O::Request> {
        if self.operation != O::NAME {
            return None;
        }
        self.request_any().downcast_ref()
    }

    /// The request, whatever it is.
    #[inline]
    #[must_use]
    pub fn request_any(&self) -> &(dyn Any + Send) {
        // A transport's request was boxed when it was decoded.
        match self.request.downcast_ref::<Value>() {
            Some(boxed) => boxed.as_ref(),
            None => &self.request,
        }
    }

    /// A dead letter on its way back: who asked at first is gone, and it gets two deliveries again.
    pub(crate) fn revive(&mut self, asker: Arc<AskCell>, deadline: Instant, now: Tick) {
        self.asker = CancelToken(Origin::Ask(asker));
        self.deliveries = 1;
        self.context.deadline = deadline;
        self.due = Tick::NEVER;
        self.accepted_at = now;
    }

    /// Whether somebody waits for an answer.
    #[must_use]
    pub fn is_ask(&self) -> bool {
        self.ask().is_some()
    }
}

/// The right to handle one message. [`InHand::finish`] ends it; dropped without that (its handler panicked or was
/// killed) the message goes back to the front of its mailbox, and the second time it becomes a dead letter and its
/// ask resolves `actor.died`.
#[derive(Debug)]
#[must_use = "dropping it gives the message back"]
pub struct InHand {
    /// Its origin is gone once it was finished or given back.
    message: Box<Message>,
}

impl InHand {
    #[inline]
    pub(super) fn new(message: Box<Message>) -> Self {
        Self { message }
    }

    /// Handled. The answer may come later, from anywhere.
    #[inline]
    pub fn finish(mut self) -> Responder {
        let asker = self.message.asker.take();
        if let Some(ask) = asker.0.ask() {
            ask.ended("handled");
        }
        if let Some(shelf) = asker.0.shelf() {
            shelf.finish();
        }
        Responder::new(asker)
    }

    /// Gives the message back with the text of what went wrong, as a drop does without one.
    pub fn died(mut self, text: &str) {
        self.give_back(text);
    }

    #[inline]
    #[must_use]
    pub fn cancelled(&self) -> &CancelToken {
        &self.message.asker
    }

    fn give_back(&mut self, why: &str) {
        if let Some(shelf) = self.asker.0.shelf().cloned() {
            let context = Context::until(self.context.deadline);
            let blank = Envelope::new("", context, self.accepted_at, self.due, Origin::Gone, ());
            shelf.give_back(std::mem::replace(&mut self.message, blank), why);
        }
    }
}

impl Deref for InHand {
    type Target = Message;

    #[inline]
    fn deref(&self) -> &Message {
        &self.message
    }
}

impl Drop for InHand {
    #[inline]
    fn drop(&mut self) {
        if matches!(self.asker.0, Origin::Gone) {
            return;
        }
        let panicking = std::thread::panicking();
        self.give_back(if panicking { "its handler panicked" } else { "its handler was dropped" });
    }
}
