//! What a mailbox keeps under its lock: the lanes, the counters, the asks in work.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::in_hand::Message;
use crate::ask::AskCell;
use crate::clock::Clock;
use crate::control::Control;
use crate::statistics::MailboxStatistics;

/// Deliveries after which a message that comes back is dead.
const DELIVERIES_MAX: u8 = 2;
/// A taker that never has to wait reads the clock once in so many takes.
const TAKES_PER_READING: u64 = 16;
/// Resolved asks that may linger in the list of those in work.
const IN_WORK_SLACK: usize = 64;

/// A message in its place. Tickets are handed out in order and never again.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) ticket: u64,
    pub(super) message: Box<Message>,
}

/// Where a message that came back belongs.
#[derive(Debug)]
pub(super) enum Place {
    Settled,
    Dead(Box<Message>),
}

/// Whose deadline has passed.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) queued: Vec<Box<Message>>,
    pub(super) in_work: Vec<Arc<AskCell>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) control: VecDeque<Control>,
    data: VecDeque<Entry>,
    pub(super) taker: Option<Waker>,
    pub(super) closed: bool,
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
    in_work: Vec<(Instant, Arc<AskCell>)>,
    /// No deadline here is earlier.
    earliest: Option<Instant>,
    takes: u64,
}

impl State {
    /// Places taken in the capacity.
    pub(super) fn held(&self, handled: u64) -> usize {
        self.data.len() + usize::try_from(self.out - handled).unwrap_or(usize::MAX)
    }

    pub(super) fn accept(&mut self, message: Box<Message>) -> u64 {
        let ticket = self.accepted;
        self.accepted += 1;
        let deadline = message.context.deadline;
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        self.data.push_back(Entry { ticket, message });
        ticket
    }

    pub(super) fn drop_oldest(&mut self) -> Option<Box<Message>> {
        let oldest = self.data.pop_front()?;
        self.dropped += 1;
        Some(oldest.message)
    }

    /// The oldest message whose deadline has not passed. What waited is compared with a time that may be a little
    /// old; the sweep settles the rest.
    pub(super) fn take(&mut self, clock: &Clock, expired: &mut Vec<Box<Message>>) -> Option<Entry> {
        if self.data.is_empty() {
            self.takes = 0;
            return None;
        }
        self.takes += 1;
        let now = if self.takes.is_multiple_of(TAKES_PER_READING) { clock.now() } else { clock.recent() };
        while let Some(entry) = self.data.pop_front() {
            if entry.message.context.deadline <= now {
                self.expired += 1;
                expired.push(entry.message);
                continue;
            }
            self.out += 1;
            self.current = Some(entry.message.operation);
            if let Some(ask) = entry.message.ask() {
                self.prune();
                self.in_work.push((entry.message.context.deadline, Arc::clone(ask)));
            }
            return Some(entry);
        }
        None
    }

    /// Forgets asks that were resolved: cheaply the newest, which usually is the one just answered, and now and then all.
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

    pub(super) fn give_back(&mut self, mut entry: Entry) -> Place {
        self.out -= 1;
        let ask = entry.message.ask();
        if ask.is_some_and(|ask| ask.is_resolved()) {
            self.expired += 1;
            return Place::Settled;
        }
        if ask.is_some_and(|ask| ask.is_tripped()) {
            self.cancelled += 1;
            return Place::Settled;
        }
        if self.closed || entry.message.deliveries >= DELIVERIES_MAX {
            self.dead_lettered += 1;
            return Place::Dead(entry.message);
        }
        entry.message.deliveries += 1;
        self.redelivered += 1;
        let at = self.place_of(entry.ticket);
        self.data.insert(at, entry);
        Place::Settled
    }

    fn place_of(&self, ticket: u64) -> usize {
        self.data.partition_point(|entry| entry.ticket < ticket)
    }

    pub(super) fn withdraw(&mut self, ticket: u64) -> Option<Box<Message>> {
        let at = self.place_of(ticket);
        if self.data.get(at)?.ticket != ticket {
            return None;
        }
        let entry = self.data.remove(at)?;
        self.cancelled += 1;
        Some(entry.message)
    }

    pub(super) fn sweep(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return due;
        }
        let waiting = self.data.len();
        for entry in std::mem::replace(&mut self.data, VecDeque::with_capacity(waiting)) {
            if entry.message.context.deadline <= now {
                due.queued.push(entry.message);
            } else {
                self.data.push_back(entry);
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
        let deadlines = self.data.iter().map(|entry| entry.message.context.deadline);
        self.earliest = deadlines.chain(self.in_work.iter().map(|(deadline, _)| *deadline)).min();
        due
    }

    pub(super) fn close(&mut self) -> VecDeque<Entry> {
        self.closed = true;
        self.dead_lettered += self.data.len() as u64;
        std::mem::take(&mut self.data)
    }

    pub(super) fn wait(&mut self, waker: &Waker) {
        match &mut self.taker {
            Some(taker) => taker.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    pub(super) fn statistics(&self, handled: u64, now: Instant) -> MailboxStatistics {
        let in_hand = self.out - handled;
        let oldest = self.data.front().map(|entry| entry.message.accepted_at);
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
            oldest_age: oldest.map(|at| now.saturating_duration_since(at)),
            current: self.current.filter(|_| in_hand > 0),
        }
    }
}
