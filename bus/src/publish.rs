//! One to many: publish, retain, subscribe.
//!
//! Everything that decides *who gets what* happens under the one lock of the [`Hub`], so a subscription is race-free:
//! its acknowledgement, its snapshot of retained states and its first change lie on one cut (P-ORD-3). A subscriber's
//! own queue has its own lock, inside the hub's in order, so takers do not wait for publishers.
//!
//! A publication is shared, not copied: each receiver gets a pointer to one [`Event`], which is encoded at most once
//! for all transports. Nothing here is unbounded (P5): queues have a capacity and a policy, states are counted, the
//! cache of matches is cut when it is full.
//!
//! It keeps no more history than its [`tail`]: who was away longer gets a snapshot, and reads the journal for the rest.

mod event;
mod queue;
mod subscription;
mod tail;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use eclosion_schemas::ids::{Epoch, Seq};
pub use eclosion_schemas::ops::kernel::OnFull;
use eclosion_schemas::{Code, Error};

pub use self::event::{Event, Publication};
use self::queue::Queue;
use self::subscription::Opening;
pub use self::subscription::{Delivery, Subscription};
pub use self::tail::TAIL_MAX;
use self::tail::Tail;
use crate::address::{Filter, Subject};
use crate::locked;

/// States that are kept for snapshots.
pub const RETAINED_MAX: usize = 262_144;
/// Subjects whose receivers are remembered.
const MATCHES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Hub(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    subscribers: BTreeMap<u64, Arc<Queue>>,
    last_id: u64,
    retained: BTreeMap<Subject, Arc<Event>>,
    /// Who receives a subject, so that filters are compared once a subject and not once a publication. Emptied by
    /// every change of the subscribers.
    matches: HashMap<Subject, Arc<[Arc<Queue>]>>,
    /// The newest position published.
    newest: (Epoch, Seq),
    tail: Tail,
}

impl State {
    fn receivers(&mut self, subject: &Subject) -> Arc<[Arc<Queue>]> {
        if let Some(known) = self.matches.get(subject) {
            return Arc::clone(known);
        }
        let matching = self.subscribers.values().filter(|queue| queue.filter().matches(subject));
        let receivers: Arc<[_]> = matching.cloned().collect();
        if self.matches.len() >= MATCHES_MAX {
            self.matches.clear();
        }
        self.matches.insert(subject.clone(), Arc::clone(&receivers));
        receivers
    }

    fn opening(&self, filter: &Filter, start: Option<(Epoch, Seq)>) -> Opening {
        let reset = match start {
            None => None,
            Some((epoch, _)) if epoch != self.newest.0 => {
                Some(format!("the cursor is of epoch {epoch}, and this is epoch {}", self.newest.0))
            }
            Some(cursor) if cursor > self.newest => {
                Some(format!("the cursor {} is beyond {}", cursor.1, self.newest.1))
            }
            Some(cursor) => match self.tail.since(cursor, filter) {
                Some(changes) => return Opening::resume(cursor, changes),
                None => Some(format!("what came behind {} is not kept any more", cursor.1)),
            },
        };
        let states = self.retained.iter().filter(|(subject, _)| filter.matches(subject));
        Opening::snapshot(self.newest, reset, states.map(|(_, event)| Arc::clone(event)).collect())
    }

    fn deliver(&mut self, event: &Arc<Event>, receivers: &[Arc<Queue>]) -> Wakers {
        self.newest = self.newest.max(event.position());
        self.tail.push(event);
        Wakers(receivers.iter().filter_map(|queue| queue.push(event)).collect())
    }
}

/// Whom to wake once the hub's lock is released.
#[must_use]
struct Wakers(Vec<std::task::Waker>);

impl Wakers {
    fn wake(self) {
        self.0.into_iter().for_each(std::task::Waker::wake);
    }
}

impl Hub {
    pub(crate) fn publish(&self, subject: &Subject, publication: Publication) -> usize {
        let event = Arc::new(Event::new(subject.clone(), publication));
        let (count, wakers) = {
            let mut state = locked(&self.0);
            let receivers = state.receivers(subject);
            (receivers.len(), state.deliver(&event, &receivers))
        };
        wakers.wake();
        count
    }

    pub(crate) async fn publish_patiently(&self, subject: &Subject, publication: Publication) -> usize {
        let event = Arc::new(Event::new(subject.clone(), publication));
        loop {
            let blocker = {
                let mut state = locked(&self.0);
                let receivers = state.receivers(subject);
                match receivers.iter().find(|queue| queue.blocks()) {
                    Some(blocker) => Arc::clone(blocker),
                    None => {
                        let wakers = state.deliver(&event, &receivers);
                        drop(state);
                        wakers.wake();
                        return receivers.len();
                    }
                }
            };
            blocker.room().await;
        }
    }

    pub(crate) fn retain(&self, subject: &Subject, publication: Publication) -> Result<usize, Error> {
        let event = Arc::new(Event::new(subject.clone(), publication));
        let (count, kept, wakers) = {
            let mut state = locked(&self.0);
            let full = state.retained.len() >= RETAINED_MAX;
            let kept = match state.retained.get_mut(subject) {
                Some(older) if older.position() > event.position() => return Ok(0),
                Some(older) => {
                    *older = Arc::clone(&event);
                    true
                }
                None if full => false,
                None => state.retained.insert(subject.clone(), Arc::clone(&event)).is_none(),
            };
            let receivers = state.receivers(subject);
            (receivers.len(), kept, state.deliver(&event, &receivers))
        };
        wakers.wake();
        if kept { Ok(count) } else { Err(too_many_states()) }
    }

    pub(crate) fn forget(&self, filter: &Filter) -> usize {
        let mut state = locked(&self.0);
        let before = state.retained.len();
        state.retained.retain(|subject, _| !filter.matches(subject));
        before - state.retained.len()
    }

    /// With a cursor, what was published since then; a snapshot otherwise.
    pub(crate) fn subscribe(
        &self,
        filter: Filter,
        on_full: OnFull,
        capacity: usize,
        start: Option<(Epoch, Seq)>,
    ) -> Subscription {
        let queue = Arc::new(Queue::new(filter, on_full, capacity));
        let mut state = locked(&self.0);
        let opening = state.opening(queue.filter(), start);
        state.last_id += 1;
        let id = state.last_id;
        state.subscribers.insert(id, Arc::clone(&queue));
        state.matches.clear();
        drop(state);
        Subscription::new(queue, Leave { hub: Arc::downgrade(&self.0), id }, opening)
    }
}

impl Drop for Hub {
    /// Who listens to a bus that is gone hears the end.
    fn drop(&mut self) {
        let subscribers = std::mem::take(&mut locked(&self.0).subscribers);
        subscribers.into_values().for_each(|queue| queue.end(None));
    }
}

fn too_many_states() -> Error {
    let message =
        format!("{RETAINED_MAX} states are kept already; this one was published but is in no snapshot");
    Error::new(Code::Exhausted, "publish.states", message)
}

/// Ends a subscription's place in the hub.
#[derive(Debug)]
struct Leave {
    hub: std::sync::Weak<Mutex<State>>,
    id: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let Some(hub) = self.hub.upgrade() else { return };
        let mut state = locked(&hub);
        state.subscribers.remove(&self.id);
        state.matches.clear();
    }
}
