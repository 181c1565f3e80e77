//! An operation to send, and a bus whose time stands still.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "a part of each test, which may panic")]

use std::future::{Future, IntoFuture};
use std::pin::pin;
use std::task::{Context as Task, Poll, Waker};
use std::time::{Duration, Instant};

use eclosion_bus::{
    Address, Bus, Clock, InHand, Mailbox, MailboxOptions, MailboxStatistics, ManualClock, Taken, WhenFull,
};
use eclosion_schemas::operation::{Durability, NoItem, Operation, Role, Spec, Table};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Note(pub(crate) u64);

/// Doubles.
#[derive(Debug)]
pub(crate) struct Double;

impl Operation for Double {
    type Request = Note;
    type Reply = u64;
    type Item = NoItem;
    const NAME: &'static str = "test.double";
    const ADDRESS: &'static str = "/test";
    const ROLE: Role = Role::View;
    const DURABILITY: Durability = Durability::Call;
    const DOC: &'static str = "Doubles.";
    fn example() -> Note {
        Note(1)
    }
}

/// Counts up to its request.
#[derive(Debug)]
pub(crate) struct Count;

impl Operation for Count {
    type Request = Note;
    type Reply = u64;
    type Item = u64;
    const NAME: &'static str = "test.count";
    const ADDRESS: &'static str = "/test";
    const ROLE: Role = Role::View;
    const DURABILITY: Durability = Durability::Call;
    const STREAMS: bool = true;
    const DOC: &'static str = "Counts.";
    fn example() -> Note {
        Note(3)
    }
}

pub(crate) struct Fixture {
    pub(crate) bus: Bus,
    pub(crate) clock: ManualClock,
    pub(crate) mailbox: Mailbox,
}

pub(crate) fn address() -> Address {
    Address::new(Double::ADDRESS).unwrap()
}

pub(crate) fn fixture() -> Fixture {
    fixture_of(8, WhenFull::Refuse)
}

pub(crate) fn fixture_of(capacity_data: usize, when_full: WhenFull) -> Fixture {
    let mut table = Table::default();
    table.declare(Spec::of::<Double>()).unwrap();
    table.declare(Spec::of::<Count>()).unwrap();
    let (clock, hand) = Clock::manual(Instant::now());
    let bus = Bus::with_clock(table, clock);
    let options = MailboxOptions { capacity_data, capacity_control: 4, when_full };
    let mailbox = bus.open(address(), options).unwrap();
    Fixture { bus, clock: hand, mailbox }
}

impl Fixture {
    pub(crate) fn tell(&self, n: u64) {
        self.bus.tell::<Double>(Note(n)).unwrap();
    }

    /// An ask that is on its way.
    pub(crate) fn ask(&self, n: u64) -> eclosion_bus::AskFuture<Double> {
        self.bus.ask::<Double>(Note(n)).deadline(Duration::from_secs(1)).into_future()
    }

    pub(crate) fn take(&self) -> Option<InHand> {
        match self.mailbox.try_take()? {
            Taken::Message(message) => Some(message),
            other => panic!("not a message: {other:?}"),
        }
    }

    pub(crate) fn statistics(&self) -> MailboxStatistics {
        self.mailbox.statistics()
    }

    pub(crate) fn advance_and_sweep(&self, by: Duration) {
        self.clock.advance(by);
        self.bus.sweep(self.clock.now());
    }
}

pub(crate) fn note(message: &InHand) -> u64 {
    message.request::<Double>().unwrap().0
}

/// Polls once; what is not ready then is not ready.
pub(crate) fn now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    match pin!(future).poll(&mut Task::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// What must be ready at once.
pub(crate) fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Task::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("not ready"),
    }
}
