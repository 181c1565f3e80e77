//! Plain actors: a handler and its mailbox, nothing journaled. What an embedder writes first, and what holders are.
//!
//! A new incarnation gets a new handler from the factory; the mailbox and what waits in it stay.

use std::future::Future;
use std::sync::Arc;

use eclosion_bus::{Address, Control, InHand, Mailbox, Taken};
use ractor::{ActorProcessingErr, ActorRef};

use crate::shell::Run;

/// Handles one message after the other.
///
/// ```
/// use eclosion_bus::InHand;
/// use eclosion_kernel::Handler;
/// struct Echo;
/// impl Handler for Echo {
///     async fn handle(&mut self, message: InHand) {
///         message.finish().reply(Ok(Box::new(())));
///     }
/// }
/// ```
pub trait Handler: Send + 'static {
    /// A message that is dropped unfinished (a panic) is delivered once more to the next incarnation.
    fn handle(&mut self, message: InHand) -> impl Future<Output = ()> + Send;
}

/// Makes the handler of the next incarnation.
pub(crate) type Factory<H> = Arc<dyn Fn() -> H + Send + Sync>;

pub(crate) struct Service<H>(std::marker::PhantomData<fn() -> H>);

impl<H> Default for Service<H> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

pub(crate) struct Life<H> {
    mailbox: Mailbox,
    handler: H,
}

impl<H: Handler> ractor::Actor for Service<H> {
    type Msg = Run;
    type State = Life<H>;
    type Arguments = (Mailbox, Factory<H>);

    async fn pre_start(
        &self,
        _: ActorRef<Run>,
        (mailbox, factory): Self::Arguments,
    ) -> Result<Life<H>, ActorProcessingErr> {
        Ok(Life { mailbox, handler: factory() })
    }

    async fn post_start(&self, myself: ActorRef<Run>, _: &mut Life<H>) -> Result<(), ActorProcessingErr> {
        Ok(myself.cast(Run)?)
    }

    async fn handle(
        &self,
        myself: ActorRef<Run>,
        _: Run,
        life: &mut Life<H>,
    ) -> Result<(), ActorProcessingErr> {
        loop {
            match life.mailbox.take().await {
                Taken::Message(message) => life.handler.handle(message).await,
                Taken::Control(Control::Stop { .. }) | Taken::Closed => break,
                Taken::Control(Control::Ping(probe)) => probe.answer(),
                Taken::Control(Control::Panic(text)) => obey_panic(life.mailbox.address(), &text),
            }
        }
        myself.stop(None);
        Ok(())
    }
}

/// Panics, in a kernel that was built to be killed.
#[cfg(feature = "chaos")]
#[expect(clippy::panic, reason = "that is what was asked for; the feature is absent from what users build")]
pub(crate) fn obey_panic(address: &Address, text: &str) {
    panic!("{address}: {text}");
}

/// Ignores it: this build does not panic on request.
#[cfg(not(feature = "chaos"))]
pub(crate) fn obey_panic(address: &Address, text: &str) {
    tracing::warn!(%address, text, "not built to panic on request");
}
