//! What an actor adds to its core: which command an operation means, how an effect is performed, what readers see.
//!
//! Everything else about it is the same for all and is done by the shell: see [`crate::shell`].

use std::sync::Arc;

use eclosion_bus::{Address, Bus, Message, Publication, Subject, TraceContext};
use eclosion_schemas::error::Error;
use eclosion_schemas::{EffectId, Epoch, Seq};

use crate::ask::Asks;
use crate::clock::Clock;
use crate::core::{AnyEvent, Core};
use crate::journal::{Journal, Projection, Record};

/// The effect type of an actor's core.
pub type EffectOf<A> = <<A as Actor>::Core as Core>::Effect;
/// The command type of an actor's core.
pub type CommandOf<A> = <<A as Actor>::Core as Core>::Command;
/// The state type of an actor's core.
pub type StateOf<A> = <<A as Actor>::Core as Core>::State;

/// One for each journaled actor; it outlives the actor's incarnations and keeps nothing of them.
pub trait Actor: Send + Sync + 'static {
    type Core: Core;

    fn address(&self) -> &'static str;

    /// The core of a new incarnation.
    fn core(&self) -> Self::Core;

    /// Which command a message means. The request is borrowed, because a message whose handling panics is delivered
    /// once more.
    ///
    /// # Errors
    /// `unimplemented` for an operation that it does not serve.
    fn command(&self, message: &Message) -> Result<CommandOf<Self>, Error>;

    /// Performs effects, oldest first. It must not block, and it may be told the same effect again: a known id is done.
    fn perform(&self, effects: &[(EffectId, EffectOf<Self>)], context: &Context<CommandOf<Self>>);

    /// The address that an effect asks, if it asks one: it is performed again when that actor has a new incarnation.
    fn target(&self, _effect: &EffectOf<Self>) -> Option<&'static str> {
        None
    }

    /// Whether an effect need not wait for *written*: it asks a journaled actor, whose own records come behind those that
    /// the effect follows from, and what that actor does with the world waits for those. Not for an effect that anybody
    /// else sees.
    fn stays_inside(&self, _effect: &EffectOf<Self>) -> bool {
        false
    }

    /// Whether an event of another actor asks for nothing to be done at once: it is folded within milliseconds then, with
    /// what else has come, or before the next command. Called by who appends; it must be quick.
    fn can_wait(&self, _event: &AnyEvent) -> bool {
        false
    }

    /// What the actor does first in an incarnation, before any effect is performed: look for survivors.
    fn adopt(&self, _context: &Context<CommandOf<Self>>) -> Option<CommandOf<Self>> {
        None
    }

    /// Copies what the records changed for those who look. Called once for a drained batch, and with no record when an
    /// incarnation begins: then everything is to be published.
    fn publish(&self, _state: &StateOf<Self>, _records: &[Arc<Record>], _outputs: &mut Outputs) {}

    /// The rows that it derives from records.
    fn projection(&self) -> Option<Projection> {
        None
    }
}

/// What an effect is performed with. Cheap to clone.
#[derive(Debug)]
pub struct Context<C> {
    pub bus: Bus,
    pub journal: Arc<Journal>,
    pub clock: Arc<dyn Clock>,
    /// What is asked with it belongs there.
    pub(crate) trace: Option<TraceContext>,
    pub(crate) asks: Asks<C>,
}

impl<C> Clone for Context<C> {
    fn clone(&self) -> Self {
        Self {
            bus: self.bus.clone(),
            journal: Arc::clone(&self.journal),
            clock: Arc::clone(&self.clock),
            trace: self.trace,
            asks: self.asks.clone(),
        }
    }
}

impl<C> Context<C> {
    /// The same; what is asked with it belongs to this trace.
    #[must_use]
    pub fn within(&self, trace: Option<TraceContext>) -> Self {
        Self { trace, ..self.clone() }
    }
}

/// What is to be seen once the records that it tells of are safe.
pub struct Outputs {
    epoch: Epoch,
    /// Run at *written*.
    pub(crate) views: Vec<Box<dyn FnOnce() + Send>>,
    /// Published at *synced*.
    pub(crate) publications: Vec<Publishing>,
    /// Somebody waits for them.
    pub(crate) prompt: bool,
}

pub(crate) struct Publishing {
    pub(crate) subject: Subject,
    pub(crate) publication: Publication,
    pub(crate) retain: bool,
}

impl Publishing {
    pub(crate) fn publish(self, bus: &Bus) {
        if !self.retain {
            bus.publish(&self.subject, self.publication);
        } else if let Err(refusal) = bus.retain(&self.subject, self.publication) {
            tracing::warn!(subject = %self.subject, %refusal, "its state is not kept for new subscribers");
        }
    }
}

impl Outputs {
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self { epoch, views: Vec::new(), publications: Vec::new(), prompt: false }
    }

    /// Changes an in-process view at *written*.
    pub fn view(&mut self, publish: impl FnOnce() + Send + 'static) {
        self.views.push(Box::new(publish));
    }

    /// Publishes the state of something at *synced*; new subscribers get the last one as their snapshot.
    pub fn state<T: serde::Serialize + Send + Sync + 'static>(
        &mut self,
        subject: Subject,
        seq: Seq,
        value: T,
    ) {
        self.publications.push(Publishing {
            subject,
            publication: Publication::new(self.epoch, seq, value),
            retain: true,
        });
    }

    /// Has what is published here synced at once: somebody waits for it. Without this it shares a sync with what follows
    /// within milliseconds.
    pub fn promptly(&mut self) {
        self.prompt = true;
    }

    /// Publishes something that happened, at *synced*.
    pub fn event<T: serde::Serialize + Send + Sync + 'static>(
        &mut self,
        subject: Subject,
        seq: Seq,
        value: T,
    ) {
        self.publications.push(Publishing {
            subject,
            publication: Publication::new(self.epoch, seq, value),
            retain: false,
        });
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.views.is_empty() && self.publications.is_empty()
    }
}

impl std::fmt::Debug for Outputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outputs({} views, {} publications)", self.views.len(), self.publications.len())
    }
}

/// The refusal for an operation that an actor does not serve.
#[must_use]
pub fn unimplemented(address: &Address, operation: &str) -> Error {
    let message = format!("{address} does not serve {operation}");
    Error::new(eclosion_schemas::Code::Unimplemented, "operation.address", message)
}
