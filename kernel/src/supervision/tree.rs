//! Who is alive: the vital signs of every supervised child, for `eclosion tree`. Written by supervisors, read by anyone.

use std::sync::Arc;

use dashmap::DashMap;
use eclosion_bus::Bus;
use eclosion_schemas::Incarnation;
use eclosion_schemas::view::ActorState;

use super::budget::Budget;

/// What a supervisor knows of one child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vital {
    pub state: ActorState,
    pub incarnation: Incarnation,
    /// Restarts inside the window.
    pub restarts: u32,
    pub budget: Budget,
    pub last_error: Option<String>,
    /// Children are shown in this order.
    pub order: u64,
    /// The group that supervises it.
    pub group: Arc<str>,
    /// It is not begun again when it ends.
    pub temporary: bool,
}

/// Cheap to clone; one for each kernel.
#[derive(Debug, Clone)]
pub struct Tree {
    vitals: Arc<DashMap<Arc<str>, Vital>>,
    /// It is told of each death, for whoever's message was in hand.
    bus: Bus,
}

impl Tree {
    pub(super) fn new(bus: Bus) -> Self {
        Self { vitals: Arc::default(), bus }
    }

    /// One has died, and is now in this state.
    pub(super) fn died(&self, address: &str, why: &str, state: ActorState) {
        self.bus.note_death(address, why);
        self.update(address, |vital| {
            vital.state = state;
            vital.last_error = Some(why.to_owned());
        });
    }

    pub(super) fn set(&self, address: &Arc<str>, vital: Vital) {
        self.vitals.insert(Arc::clone(address), vital);
    }

    pub(super) fn update(&self, address: &str, change: impl FnOnce(&mut Vital)) {
        if let Some(mut vital) = self.vitals.get_mut(address) {
            change(&mut vital);
        }
    }

    pub(super) fn remove(&self, address: &str) {
        self.vitals.remove(address);
    }

    #[must_use]
    pub fn get(&self, address: &str) -> Option<Vital> {
        self.vitals.get(address).map(|vital| vital.clone())
    }

    /// Every child, in the order in which they were added.
    #[must_use]
    pub fn list(&self) -> Vec<(Arc<str>, Vital)> {
        let mut list: Vec<_> =
            self.vitals.iter().map(|entry| (Arc::clone(entry.key()), entry.value().clone())).collect();
        list.sort_by(|(a, x), (b, y)| (x.order, a).cmp(&(y.order, b)));
        list
    }
}
