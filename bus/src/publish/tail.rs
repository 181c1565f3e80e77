//! The last publications, so that a subscriber who was away for a moment goes on where it was.
//!
//! A cursor names a position of the journal, and positions are not handed out in the order in which things are
//! published: two actors publish when each is ready, and one record leads to several publications. So a cursor stands for
//! everything that was published before the *first* publication at its position or beyond; what came after is given again.
//! A subscriber may hear some of it twice, and never misses any.

use std::collections::VecDeque;
use std::sync::Arc;

use eclosion_schemas::ids::{Epoch, Seq};

use super::Event;
use crate::address::Filter;

/// Publications that are kept; who was away for longer gets a snapshot.
pub const TAIL_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Tail {
    events: VecDeque<Arc<Event>>,
    /// The newest position of those that are not kept any more.
    dropped: Option<(Epoch, Seq)>,
}

impl Tail {
    pub(super) fn push(&mut self, event: &Arc<Event>) {
        if self.events.len() == TAIL_MAX
            && let Some(oldest) = self.events.pop_front()
        {
            self.dropped = self.dropped.max(Some(oldest.position()));
        }
        self.events.push_back(Arc::clone(event));
    }

    /// What a subscriber has not heard that heard up to `cursor`, oldest first; `None` if some of it is not kept.
    pub(super) fn since(&self, cursor: (Epoch, Seq), filter: &Filter) -> Option<Vec<Arc<Event>>> {
        if self.dropped.is_some_and(|dropped| dropped >= cursor) {
            return None;
        }
        let heard = self.events.iter().take_while(|event| event.position() < cursor).count();
        let later = self.events.range(heard..).filter(|event| filter.matches(&event.subject));
        Some(later.cloned().collect())
    }
}
