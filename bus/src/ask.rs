//! How an answer comes back: [`Ask`] (the builder), [`AskFuture`] (typed), [`Pending`] (erased, with items).
//!
//! An ask always has a deadline, and no timer: the mailbox checks it when the message is taken, the bus's sweep
//! checks those that wait and those in work. Dropping the future withdraws a message that is still queued, and trips
//! the [`CancelToken`] of one that is in work. The asker holds one allocation ([`cell::AskCell`]), the message another.

mod cell;
mod responder;

use std::future::{Future, IntoFuture, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use eclosion_schemas::operation::Operation;
use eclosion_schemas::{EffectId, Error, Role, Timed};

use self::cell::Outcome;
pub(crate) use self::cell::{AskCell, Origin, Watched};
pub use self::cell::{CancelToken, Item};
pub use self::responder::Responder;
use crate::address::Address;
use crate::bus::Bus;
use crate::context::{Context, TraceContext};
use crate::timings::Timings;

/// The deadline of an ask that names none.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);

/// An ask in the making; `.await` sends it.
#[derive(Debug)]
#[must_use = "an ask is sent when it is awaited"]
pub struct Ask<'a, O: Operation> {
    bus: &'a Bus,
    address: &'a str,
    wait: Duration,
    context: Context,
    request: O::Request,
}

impl<'a, O: Operation> Ask<'a, O> {
    pub(crate) fn new(bus: &'a Bus, request: O::Request) -> Self {
        let context = Context::until(bus.clock().never());
        Self { bus, address: O::ADDRESS, wait: DEADLINE_DEFAULT, context, request }
    }

    /// Somewhere else than at the operation's own address.
    pub fn to(mut self, address: &'a Address) -> Self {
        self.address = address.as_str();
        self
    }

    /// How long to wait, from the moment of sending.
    pub fn deadline(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    pub fn cause(mut self, cause: EffectId) -> Self {
        self.context.cause = Some(cause);
        self
    }

    pub fn idem(mut self, key: impl Into<String>) -> Self {
        self.context.idem = Some(key.into());
        self
    }

    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.context.trace = Some(trace);
        self
    }

    pub fn role(mut self, role: Role) -> Self {
        self.context.role = role;
        self
    }

    /// Sends it, and says besides the outcome where the time went.
    ///
    /// ```
    /// # use eclosion_bus::{Address, Bus, MailboxOptions, Taken};
    /// # use eclosion_schemas::ops::kernel::{Empty, Ping};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// # let bus = Bus::new(eclosion_schemas::ops::table()?);
    /// # let mailbox = bus.open(Address::new("/kernel")?, MailboxOptions::default())?;
    /// # let answering = async {
    /// #     if let Taken::Message(in_hand) = mailbox.take().await {
    /// #         in_hand.finish().reply(Ok(Box::new(Empty {})));
    /// #     }
    /// # };
    /// let asking = bus.ask::<Ping>(Empty {}).timed();
    /// # let (timed, ()) = tokio::join!(asking, answering);
    /// let names: Vec<_> = timed.stages.iter().map(|stage| stage.name.as_str()).collect();
    /// assert_eq!(names, ["queued", "handled", "answered"]);
    /// # Ok::<(), eclosion_schemas::Error>(())
    /// # }).unwrap();
    /// ```
    pub async fn timed(mut self) -> Timed<O::Reply> {
        let timings = Timings::begin();
        self.context.timings = Some(timings.clone());
        let outcome = self.await;
        Timed { outcome, stages: timings.stages() }
    }

    /// Large values in the reply may lie in shared memory: see `Part::contents`.
    pub fn shares(mut self) -> Self {
        self.context.shares = true;
        self
    }

    pub fn caller(mut self, caller: impl Into<Arc<str>>) -> Self {
        self.context.caller = Some(caller.into());
        self
    }
}

impl<O: Operation> IntoFuture for Ask<'_, O> {
    type Output = Result<O::Reply, Error>;
    type IntoFuture = AskFuture<O>;

    /// Sends; the future waits for the reply alone, items of a stream are discarded.
    fn into_future(mut self) -> AskFuture<O> {
        let clock = self.bus.clock();
        let now = clock.now();
        self.context.deadline = now.checked_add(self.wait).unwrap_or_else(|| clock.never());
        let ticks = (clock.tick_of(now), clock.tick_of(self.context.deadline));
        let pending =
            self.bus.send(self.address, O::NAME, self.context, ticks, self.request, Items::DISCARDED);
        AskFuture { pending, operation: PhantomData }
    }
}

/// What an asker makes of items.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Items {
    /// False: it wants the reply alone.
    pub(crate) wanted: bool,
    /// How many it grants at first; `None`: as many as there is room for.
    pub(crate) credit: Option<u64>,
}

impl Items {
    pub(crate) const DISCARDED: Self = Self { wanted: false, credit: None };
}

/// The typed reply to come. It borrows nothing.
#[derive(Debug)]
#[must_use = "dropping it withdraws the ask"]
pub struct AskFuture<O> {
    pending: Pending,
    operation: PhantomData<fn() -> O>,
}

impl<O: Operation> Future for AskFuture<O> {
    type Output = Result<O::Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        self.pending.poll_reply(task).map(|outcome| {
            let reply =
                outcome.map_err(|error| *error)?.downcast::<O::Reply>().map_err(|_| wrong_type::<O>())?;
            Ok(*reply)
        })
    }
}

fn wrong_type<O: Operation>() -> Error {
    let wanted = std::any::type_name::<O::Reply>();
    Error::internal("reply.type", format!("the reply to {} is not a {wanted}", O::NAME))
}

/// An ask under way, as transports see it: items, then one reply. Dropping it withdraws the ask.
#[derive(Debug)]
#[must_use = "dropping it withdraws the ask"]
pub struct Pending(State);

#[derive(Debug)]
enum State {
    /// Never accepted.
    Refused(Box<Error>),
    Waiting {
        cell: Arc<AskCell>,
        ticket: u64,
    },
    Done,
}

impl Pending {
    pub(crate) fn refused(error: Error) -> Self {
        Self(State::Refused(Box::new(error)))
    }

    #[inline]
    pub(crate) fn waiting(cell: Arc<AskCell>, ticket: u64) -> Self {
        Self(State::Waiting { cell, ticket })
    }

    /// Items as they come, then the reply, then `None`. Cancel-safe.
    pub async fn next(&mut self) -> Option<Item> {
        poll_fn(|task| self.poll_next(task)).await
    }

    /// What [`Pending::next`] awaits.
    pub fn poll_next(&mut self, task: &mut Task<'_>) -> Poll<Option<Item>> {
        match &self.0 {
            State::Waiting { cell, .. } => {
                let item = std::task::ready!(cell.poll_item(task));
                if matches!(item, Item::Reply(_)) {
                    self.0 = State::Done;
                }
                Poll::Ready(Some(item))
            }
            State::Refused(_) => Poll::Ready(self.take_refusal().map(|error| Item::Reply(Err(*error)))),
            State::Done => Poll::Ready(None),
        }
    }

    /// Grants items of a stream: `total` of them since it began. It is cumulative, so that one that comes late or twice
    /// does no harm. Only for a call that named its credit.
    pub fn grant(&self, total: u64) {
        if let State::Waiting { cell, .. } = &self.0 {
            cell.grant(total);
        }
    }

    #[inline]
    fn poll_reply(&mut self, task: &Task<'_>) -> Poll<Outcome> {
        match &self.0 {
            State::Waiting { cell, .. } => {
                let reply = std::task::ready!(cell.poll_reply(task));
                self.0 = State::Done;
                Poll::Ready(reply)
            }
            State::Refused(_) | State::Done => Poll::Ready(Err(self.take_refusal().unwrap_or_else(|| {
                Box::new(Error::internal("ask.polled_again", "a finished ask was polled again"))
            }))),
        }
    }

    fn take_refusal(&mut self) -> Option<Box<Error>> {
        match std::mem::replace(&mut self.0, State::Done) {
            State::Refused(error) => Some(error),
            other => {
                self.0 = other;
                None
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let State::Waiting { cell, ticket } = &self.0
            && !cell.is_resolved()
        {
            // In this order: a message that is given back in between is either seen to be abandoned or found here.
            cell.trip();
            cell.shelf().withdraw(*ticket);
        }
    }
}
