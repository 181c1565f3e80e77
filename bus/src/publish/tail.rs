//! The last publications, so that a subscriber who was away for a moment goes on where it was.
//!
//! A cursor names a position of the journal, and positions are not handed out in the order in which things are
//! published: two actors publish when each is ready, and one record leads to several publications. So a cursor stands for
//! everything that was published before the *first* publication at its position or beyond; what came after is given again.
//! A subscriber may hear some of it twice, and never misses any.
//!
//! Large values are not kept: a thousand frames would be more than the memory there is, and shared memory that a frame lies
//! in is free as soon as the last who was told of it has given it back. That they were is kept, so that who would have
//! to hear one again is told to begin anew.

use std::collections::VecDeque;
use std::sync::Arc;

use eclosion_schemas::ids::{Epoch, Seq};

use super::Event;
use crate::address::{Filter, Subject};

/// Publications that are kept; who was away for longer gets a snapshot.
pub const TAIL_MAX: usize = 1024;

/// What is as large is gone when its last receiver has it.
const KEPT_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct Tail {
    passed: VecDeque<Passed>,
    /// The newest position of those that are not kept any more.
    dropped: Option<(Epoch, Seq)>,
}

#[derive(Debug)]
enum Passed {
    Kept(Arc<Event>),
    /// That there was a large one.
    Large {
        subject: Subject,
        position: (Epoch, Seq),
    },
}

impl Passed {
    fn of(event: &Arc<Event>) -> Self {
        match event.weight_bytes() {
            0..KEPT_BYTES_MAX => Self::Kept(Arc::clone(event)),
            _ => Self::Large { subject: event.subject.clone(), position: event.position() },
        }
    }

    fn position(&self) -> (Epoch, Seq) {
        match self {
            Self::Kept(event) => event.position(),
            Self::Large { position, .. } => *position,
        }
    }

    fn subject(&self) -> &Subject {
        match self {
            Self::Kept(event) => &event.subject,
            Self::Large { subject, .. } => subject,
        }
    }

    fn kept(&self) -> Option<Arc<Event>> {
        match self {
            Self::Kept(event) => Some(Arc::clone(event)),
            Self::Large { .. } => None,
        }
    }
}

impl Tail {
    pub(super) fn push(&mut self, event: &Arc<Event>) {
        if self.passed.len() == TAIL_MAX
            && let Some(oldest) = self.passed.pop_front()
        {
            self.dropped = self.dropped.max(Some(oldest.position()));
        }
        self.passed.push_back(Passed::of(event));
    }

    /// What a subscriber has not heard that heard up to `cursor`, oldest first; `None` if some of it is not kept.
    pub(super) fn since(&self, cursor: (Epoch, Seq), filter: &Filter) -> Option<Vec<Arc<Event>>> {
        if self.dropped.is_some_and(|dropped| dropped >= cursor) {
            return None;
        }
        let heard = self.passed.iter().take_while(|passed| passed.position() < cursor).count();
        let later = self.passed.range(heard..).filter(|passed| filter.matches(passed.subject()));
        later.map(Passed::kept).collect()
    }
}
