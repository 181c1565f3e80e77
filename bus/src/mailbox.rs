//! Where messages wait. A mailbox belongs to the bus and outlives whoever takes from it (P2).
//!
//! Two lanes, both bounded: *control*, always taken first, and *data*. One [`Mailbox::take`] waits at a time: the
//! incarnation's loop. Each message on its way through the data lane is in one of these places:
//!
//! ```text
//!            push              take                 finish
//!   sender ────────▶ queued ─────────▶ in hand ───────────────▶ handled
//!     ▲ refused        │ ▲               │ dropped unfinished
//!     └────────        │ └───────────────┤ first time: back at its old place, deliveries + 1
//!                      │                 └ second time, or closed: dead-lettered
//!                      ├ expired (at take, or by the sweep) ├ cancelled (withdrawn)
//!                      ├ dropped (WhenFull::DropOldest)     └ dead-lettered (closed)
//! ```
//!
//! An operator may close the gate: *paused*, nothing is taken from the data lane; *draining*, nothing new is accepted.
//! It is the mailbox's and not the taker's, so the next incarnation finds it as it was.
//!
//! Invariants: (1) every transition counts under the one lock, except finish, which is one atomic and therefore cheap;
//! so a reading always balances (P5). (2) `data` is sorted by ticket. (3) What is in hand keeps its place in the
//! capacity, so giving it back never exceeds it. (4) Wakers are woken, asks resolved and messages dropped outside the
//! lock.
//!
//! It deliberately has no timer: deadlines are checked at take and by [`Shelf::sweep`].

mod in_hand;
mod state;
mod timing;

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as Task, Poll, Waker};

use eclosion_schemas::Error;

pub(crate) use self::in_hand::Envelope;
pub use self::in_hand::{InHand, Message};
use self::state::{Place, State};
use crate::address::Address;
use crate::clock::{Clock, Tick};
use crate::control::Control;
use crate::dead_letter::DeadLetters;
use crate::locked;
use crate::refused::{Refused, no_responders};
use crate::statistics::MailboxStatistics;

/// Bounds of one mailbox.
#[derive(Debug, Clone, Copy)]
pub struct MailboxOptions {
    /// Messages queued and in hand.
    pub capacity_data: usize,
    pub capacity_control: usize,
    pub when_full: WhenFull,
}

impl Default for MailboxOptions {
    /// 4,096 messages (P-BND-1), 64 control words; refuses when full.
    fn default() -> Self {
        Self { capacity_data: 4096, capacity_control: 64, when_full: WhenFull::Refuse }
    }
}

/// What a full data lane does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Hands the new message back.
    #[default]
    Refuse,
    /// Drops the oldest queued message; if it was an ask, that resolves `exhausted`.
    DropOldest,
}

/// What an operator lets through the data lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gate {
    #[default]
    Open,
    /// Messages are accepted, and wait.
    Paused,
    /// Messages are refused; those that wait are taken.
    Draining,
}

/// What comes out of a mailbox.
#[derive(Debug)]
pub enum Taken {
    Control(Control),
    Message(InHand),
    /// The address was closed; nothing comes anymore.
    Closed,
}

/// The taking side. A clone takes from the same mailbox; the next incarnation uses one.
#[derive(Debug, Clone)]
pub struct Mailbox(Arc<Shelf>);

impl Mailbox {
    pub(crate) fn new(shelf: Arc<Shelf>) -> Self {
        Self(shelf)
    }

    #[must_use]
    pub fn address(&self) -> &Address {
        self.0.address()
    }

    /// Control first, then the oldest message. One waits at a time: the last to wait is the one that is woken.
    /// Cancel-safe: what was not returned was not taken.
    pub async fn take(&self) -> Taken {
        self.wait(Lanes::Both).await
    }

    /// Only control, while data is to stay where it is.
    pub async fn take_control(&self) -> Taken {
        self.wait(Lanes::Control).await
    }

    /// What is there now.
    #[must_use]
    pub fn try_take(&self) -> Option<Taken> {
        self.0.take_now(Lanes::Both, None)
    }

    #[must_use]
    pub fn statistics(&self) -> MailboxStatistics {
        self.0.statistics()
    }

    async fn wait(&self, lanes: Lanes) -> Taken {
        poll_fn(|task| match self.0.take_now(lanes, Some(task)) {
            Some(taken) => Poll::Ready(taken),
            None => Poll::Pending,
        })
        .await
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lanes {
    Both,
    Control,
}

/// A mailbox as the bus holds it.
#[derive(Debug)]
pub(crate) struct Shelf {
    address: Address,
    options: MailboxOptions,
    clock: Clock,
    dead: Arc<DeadLetters>,
    handled: AtomicU64,
    state: Mutex<State>,
    /// What the last incarnation died of, as its supervisor has heard.
    last_death: Mutex<Option<String>>,
}

impl Shelf {
    pub(crate) fn new(
        address: Address,
        options: MailboxOptions,
        clock: Clock,
        dead: Arc<DeadLetters>,
    ) -> Self {
        let (handled, state) = (AtomicU64::new(0), Mutex::new(State::new()));
        Self { address, options, clock, dead, handled, state, last_death: Mutex::default() }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Accepts a message, or hands it back as it came. Whoever is to be woken is, when the caller holds no lock.
    #[inline]
    pub(crate) fn push<M>(
        &self,
        message: M,
        erase: impl FnOnce(M) -> Box<Message>,
    ) -> Result<Accepted, Refused<M>> {
        let mut state = locked(&self.state);
        if state.closed {
            return Err(Refused::Closed(message));
        }
        if state.gate == Gate::Draining {
            state.refused += 1;
            return Err(Refused::Draining(message));
        }
        let mut dropped = None;
        if state.held(self.handled()) >= self.options.capacity_data {
            dropped = match self.options.when_full {
                WhenFull::DropOldest => state.drop_oldest(),
                WhenFull::Refuse => None,
            };
            if dropped.is_none() {
                state.refused += 1;
                return Err(Refused::Full(message));
            }
        }
        Ok(Accepted { ticket: state.accept(erase(message)), taker: state.taker.take(), dropped })
    }

    pub(crate) fn push_control(&self, control: Control) -> Result<(), Refused<Control>> {
        let taker = {
            let mut state = locked(&self.state);
            if state.closed {
                return Err(Refused::Closed(control));
            }
            if state.control.len() >= self.options.capacity_control {
                return Err(Refused::Full(control));
            }
            state.control.push_back(control);
            state.taker.take()
        };
        if let Some(taker) = taker {
            taker.wake();
        }
        Ok(())
    }

    /// Lets through what it says from now on. Returns what it was.
    pub(crate) fn set_gate(&self, gate: Gate) -> Gate {
        let (was, taker) = {
            let mut state = locked(&self.state);
            (std::mem::replace(&mut state.gate, gate), state.taker.take())
        };
        if let Some(taker) = taker {
            taker.wake();
        }
        was
    }

    /// Takes, or leaves the task's waker.
    #[inline]
    fn take_now(&self, lanes: Lanes, task: Option<&Task<'_>>) -> Option<Taken> {
        let mut expired = Vec::new();
        let mut state = locked(&self.state);
        if state.timing.is_timed() {
            state.timing.end(self.clock.tick());
        }
        if !state.control.is_empty() || state.closed {
            let control = state.control.pop_front();
            return Some(control.map_or(Taken::Closed, Taken::Control));
        }
        if lanes == Lanes::Both && state.gate != Gate::Paused {
            if task.is_some() && state.rests() {
                drop(state);
                task.into_iter().for_each(|task| task.waker().wake_by_ref());
                return None;
            }
            if let Some(message) = state.take(&self.clock, &mut expired) {
                drop(state);
                expired.iter().for_each(|message| expire(message));
                return Some(Taken::Message(InHand::new(message)));
            }
        }
        if let Some(task) = task {
            state.wait(task.waker());
        }
        drop(state);
        expired.iter().for_each(|message| expire(message));
        None
    }

    /// Ends what is in hand well.
    #[inline]
    fn finish(&self) {
        // Release: whoever counts it as handled sees what its handling did.
        self.handled.fetch_add(1, Ordering::Release);
    }

    #[inline]
    fn handled(&self) -> u64 {
        self.handled.load(Ordering::Acquire)
    }

    /// Ends what is in hand badly: it is delivered once more, or becomes a dead letter.
    fn give_back(&self, message: Box<Message>, why: &str) {
        let (place, taker) = {
            let mut state = locked(&self.state);
            let place = state.give_back(message);
            (place, state.taker.take())
        };
        if let Some(taker) = taker {
            taker.wake();
        }
        match place {
            Place::Queued => {}
            Place::Over(message) => drop(message),
            Place::Dead(message) => {
                // Who unwinds does not know its own text yet; but this was its second death, and of the first it is known.
                let earlier = locked(&self.last_death).clone();
                let why = earlier.map_or_else(|| why.to_owned(), |text| format!("{why}, as before: {text}"));
                if let Some(ask) = message.ask() {
                    let died = Error::died(self.address.as_str(), why.as_str());
                    ask.resolve(Err(died.help("eclosion dead ls has its request, and delivers it again")));
                }
                self.dead.bury(&self.address, message, &why, self.clock.recent());
            }
        }
    }

    pub(crate) fn note_death(&self, why: &str) {
        *locked(&self.last_death) = Some(why.to_owned());
    }

    /// The asker has left: its message goes, if it is still queued.
    pub(crate) fn withdraw(&self, ticket: u64) {
        // Named, so that the message is dropped after the lock is released.
        let withdrawn = locked(&self.state).withdraw(ticket);
        drop(withdrawn);
    }

    /// Resolves every ask here whose deadline has passed, queued or in work.
    pub(crate) fn sweep(&self, now: Tick) {
        let due = locked(&self.state).sweep(now, self.handled());
        for message in due.queued {
            expire(&message);
        }
        for ask in due.in_work {
            ask.resolve(Err(Error::deadline("the request")));
            ask.trip();
        }
    }

    /// What is queued becomes dead letters; its asks resolve `no_responders`.
    pub(crate) fn close(&self) {
        let (messages, control, taker) = {
            let mut state = locked(&self.state);
            let messages = state.close();
            (messages, std::mem::take(&mut state.control), state.taker.take())
        };
        if let Some(taker) = taker {
            taker.wake();
        }
        drop(control);
        for message in messages {
            if let Some(ask) = message.ask() {
                ask.resolve(Err(no_responders(self.address.as_str())));
            }
            self.dead.bury(&self.address, message, "the address was closed", self.clock.recent());
        }
    }

    /// Whether the sweep still has something to do here after the address was closed.
    pub(crate) fn owes(&self) -> bool {
        locked(&self.state).owes()
    }

    /// Nobody will answer what is in hand.
    pub(crate) fn retire(&self) {
        let in_work = locked(&self.state).forget_in_work();
        for (_, ask) in in_work {
            ask.resolve(Err(no_responders(self.address.as_str())));
            ask.trip();
        }
    }

    /// Nobody sweeps anymore.
    pub(crate) fn abandon(&self) {
        let in_work = locked(&self.state).forget_in_work();
        drop(in_work);
    }

    pub(crate) fn statistics(&self) -> MailboxStatistics {
        let now = self.clock.tick();
        let mut state = locked(&self.state);
        let mut statistics = state.statistics(self.handled(), now);
        statistics.capacity = self.options.capacity_data as u64;
        statistics
    }
}

/// What is left to do for an accepted message once no lock is held.
#[derive(Debug)]
#[must_use = "the taker sleeps until it is settled"]
pub(crate) struct Accepted {
    ticket: u64,
    taker: Option<Waker>,
    /// By the policy, to make room.
    dropped: Option<Box<Message>>,
}

impl Accepted {
    /// Returns the ticket that withdraws the message.
    #[inline]
    pub(crate) fn settle(self) -> u64 {
        if let Some(taker) = self.taker {
            taker.wake();
        }
        if let Some(ask) = self.dropped.as_ref().and_then(|message| message.ask()) {
            ask.resolve(Err(Refused::Full(()).to_error(ask.shelf().address().as_str())));
        }
        self.ticket
    }
}

fn expire(message: &Message) {
    if let Some(ask) = message.ask() {
        ask.resolve(Err(Error::deadline("the request")));
        ask.trip();
    }
}
