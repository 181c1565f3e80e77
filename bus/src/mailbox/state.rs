//! What a mailbox keeps under its lock: the lanes, the counters, the asks in work.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use super::Gate;
use super::in_hand::Message;
use super::timing::Timing;
use crate::ask::AskCell;
use crate::clock::{Clock, Tick};
use crate::control::Control;
use crate::statistics::MailboxStatistics;

/// Deliveries after which a message that comes back is dead.
const DELIVERIES_MAX: u8 = 2;
/// A taker that never has to wait reads the clock once in so many takes.
const TAKES_PER_READING: u64 = 16;
/// A taker that never has to wait lets others run once in so many takes, less one: a mask.
const TAKES_BEFORE_REST: u64 = 63;
/// Resolved asks that may linger in the list of those in work.
const IN_WORK_SLACK: usize = 64;

/// Where a message that came back belongs.
#[derive(Debug)]
pub(super) enum Place {
    Queued,
    /// Its asker has left or was answered by its deadline.
    Over(Box<Message>),
    Dead(Box<Message>),
}

/// Whose deadline has passed.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) queued: Vec<Box<Message>>,
    pub(super) in_work: Vec<Arc<AskCell>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) control: VecDeque<Control>,
    /// In the order of their tickets.
    data: VecDeque<Box<Message>>,
    pub(super) taker: Option<Waker>,
    pub(super) closed: bool,
    pub(super) gate: Gate,
    pub(super) timing: Timing,
    pub(super) refused: u64,
    accepted: u64,
    dropped: u64,
    expired: u64,
    cancelled: u64,
    dead_lettered: u64,
    redelivered: u64,
    /// Taken and not given back: in hand, or handled.
    out: u64,
    current: Option<&'static str>,
    /// Asks that were taken, for the sweep; resolved ones linger until the next take or so.
    in_work: Vec<(Tick, Arc<AskCell>)>,
    /// No deadline here is earlier.
    earliest: Tick,
    takes: u64,
    /// The newest time that a message brought, or a sweep.
    recent: Tick,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            control: VecDeque::new(),
            data: VecDeque::new(),
            taker: None,
            closed: false,
            gate: Gate::Open,
            timing: Timing::default(),
            refused: 0,
            accepted: 0,
            dropped: 0,
            expired: 0,
            cancelled: 0,
            dead_lettered: 0,
            redelivered: 0,
            out: 0,
            current: None,
            in_work: Vec::new(),
            earliest: Tick::NEVER,
            takes: 0,
            recent: Tick::default(),
        }
    }

    /// Places taken in the capacity.
    #[inline]
    pub(super) fn held(&self, handled: u64) -> usize {
        self.data.len() + usize::try_from(self.out - handled).unwrap_or(usize::MAX)
    }

    #[inline]
    pub(super) fn accept(&mut self, mut message: Box<Message>) -> u64 {
        let ticket = self.accepted;
        self.accepted += 1;
        message.ticket = ticket;
        self.recent = self.recent.max(message.accepted_at);
        self.earliest = self.earliest.min(message.due);
        self.data.push_back(message);
        ticket
    }

    pub(super) fn drop_oldest(&mut self) -> Option<Box<Message>> {
        let oldest = self.data.pop_front()?;
        self.dropped += 1;
        Some(oldest)
    }

    /// Whether a taker that never has to wait should let its neighbors run before it takes another message.
    #[inline]
    pub(super) fn rests(&mut self) -> bool {
        let rests = self.takes & TAKES_BEFORE_REST == TAKES_BEFORE_REST && !self.data.is_empty();
        self.takes += u64::from(rests);
        rests
    }

    /// The oldest message whose deadline has not passed. What waited is compared with a time that may be a little
    /// old; the sweep settles the rest.
    #[inline]
    pub(super) fn take(&mut self, clock: &Clock, expired: &mut Vec<Box<Message>>) -> Option<Box<Message>> {
        if self.data.is_empty() {
            self.takes = 0;
            return None;
        }
        self.takes += 1;
        if self.takes.is_multiple_of(TAKES_PER_READING) || clock.is_manual() {
            self.recent = self.recent.max(clock.tick());
        }
        while let Some(message) = self.data.pop_front() {
            if message.due <= self.recent {
                self.expired += 1;
                expired.push(message);
                continue;
            }
            self.out += 1;
            self.current = Some(message.operation);
            if self.timing.times(self.out) {
                let now = clock.tick();
                let waited = message.ask().map(|_| now.since(message.accepted_at));
                self.timing.begin(now, waited);
            }
            if let Some(ask) = message.ask() {
                ask.ended("queued");
                self.prune();
                self.in_work.push((message.due, Arc::clone(ask)));
            }
            return Some(message);
        }
        None
    }

    /// Forgets asks that were resolved: cheaply the newest, which usually is the one just answered, and now and then all.
    #[inline]
    fn prune(&mut self) {
        while self.in_work.last().is_some_and(|(_, ask)| ask.is_resolved()) {
            self.in_work.pop();
        }
        if self.in_work.len() >= IN_WORK_SLACK && self.in_work.len() == self.in_work.capacity() {
            self.in_work.retain(|(_, ask)| !ask.is_resolved());
            // Room for as many again, so that the next full pass is paid for by as many takes.
            self.in_work.reserve(self.in_work.len().max(IN_WORK_SLACK));
        }
    }

    pub(super) fn give_back(&mut self, mut message: Box<Message>) -> Place {
        self.out -= 1;
        let ask = message.ask();
        if ask.is_some_and(|ask| ask.is_resolved()) {
            self.expired += 1;
            return Place::Over(message);
        }
        if ask.is_some_and(|ask| ask.is_tripped()) {
            self.cancelled += 1;
            return Place::Over(message);
        }
        if self.closed || message.deliveries >= DELIVERIES_MAX {
            self.dead_lettered += 1;
            return Place::Dead(message);
        }
        message.deliveries += 1;
        self.redelivered += 1;
        let at = self.place_of(message.ticket);
        self.earliest = self.earliest.min(message.due);
        self.data.insert(at, message);
        Place::Queued
    }

    fn place_of(&self, ticket: u64) -> usize {
        self.data.partition_point(|message| message.ticket < ticket)
    }

    pub(super) fn withdraw(&mut self, ticket: u64) -> Option<Box<Message>> {
        let at = self.place_of(ticket);
        if self.data.get(at)?.ticket != ticket {
            return None;
        }
        self.cancelled += 1;
        self.data.remove(at)
    }

    pub(super) fn sweep(&mut self, now: Tick, handled: u64) -> Due {
        let mut due = Due::default();
        self.recent = self.recent.max(now);
        self.timing.glance(now, self.accepted, self.out, self.out - handled);
        if self.earliest > now {
            return due;
        }
        let waiting = self.data.len();
        for message in std::mem::replace(&mut self.data, VecDeque::with_capacity(waiting)) {
            if message.due <= now {
                due.queued.push(message);
            } else {
                self.data.push_back(message);
            }
        }
        self.expired += due.queued.len() as u64;
        self.in_work.retain(|(deadline, ask)| {
            let over = *deadline <= now;
            if over && !ask.is_resolved() {
                due.in_work.push(Arc::clone(ask));
            }
            !over && !ask.is_resolved()
        });
        let queued = self.data.iter().map(|message| message.due);
        let in_work = self.in_work.iter().map(|(deadline, _)| *deadline);
        self.earliest = queued.chain(in_work).min().unwrap_or(Tick::NEVER);
        due
    }

    /// Whether an ask that was taken waits for its answer.
    pub(super) fn owes(&self) -> bool {
        self.in_work.iter().any(|(_, ask)| !ask.is_resolved())
    }

    /// An ask in work keeps its mailbox, which must not keep it in turn once nobody sweeps anymore.
    pub(super) fn forget_in_work(&mut self) -> Vec<(Tick, Arc<AskCell>)> {
        std::mem::take(&mut self.in_work)
    }

    pub(super) fn close(&mut self) -> VecDeque<Box<Message>> {
        self.closed = true;
        self.dead_lettered += self.data.len() as u64;
        std::mem::take(&mut self.data)
    }

    #[inline]
    pub(super) fn wait(&mut self, waker: &Waker) {
        match &mut self.taker {
            Some(taker) => taker.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// A look, too: it has every message timed for a while.
    pub(super) fn statistics(&mut self, handled: u64, now: Tick) -> MailboxStatistics {
        self.timing.look(now);
        let in_hand = self.out - handled;
        let oldest = self.data.front().map(|message| message.accepted_at);
        MailboxStatistics {
            accepted: self.accepted,
            handled,
            dropped: self.dropped,
            expired: self.expired,
            cancelled: self.cancelled,
            dead_lettered: self.dead_lettered,
            queued: self.data.len() as u64,
            in_hand,
            refused: self.refused,
            redelivered: self.redelivered,
            capacity: 0,
            control_queued: self.control.len() as u64,
            oldest_age: oldest.map(|at| now.since(at)),
            current: self.current.filter(|_| in_hand > 0),
            in_hand_for: (in_hand > 0).then(|| self.timing.held_for(now)),
            gate: self.gate,
            accepted_per_s: self.timing.pace.accepted_per_s,
            busy_permille: self.timing.pace.busy_permille,
            wait: self.timing.wait(),
            handling: self.timing.handling(),
        }
    }
}
