//! What is held until its mark reaches the seq that it depends on, and how much a sync is wanted for it. Under the
//! journal's lock; it runs nothing itself.
//!
//! Invariants: (1) a thing is handed out once: when it is due, or when the journal is poisoned. (2) At one mark one thread
//! lets out at a time, in the order of seqs and of arrival; what becomes due meanwhile waits its turn.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use eclosion_schemas::Seq;

use super::sequencer::{Lost, Mark, Marks};

pub(super) type Release = Box<dyn FnOnce(Result<(), Lost>) + Send>;
/// By what it depends on, and in the order in which it came.
pub(super) type Held = BTreeMap<(Seq, u64), Release>;

/// How much a sync is wanted, by the most urgent of those it would serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    /// Everything written is synced.
    Nothing,
    /// Nobody waits for what is not.
    Idle,
    /// Somebody would see it, and nobody waits.
    Relaxed,
    Urgent,
}

#[derive(Default)]
pub(super) struct Releases {
    held: [Held; 2],
    /// Somebody lets out what is due at this mark.
    releasing: [bool; 2],
    /// What is held for *synced* while somebody waits for it.
    urgent: BTreeSet<Seq>,
    tickets: u64,
}

impl Releases {
    /// Nothing that came before it is still to be let out.
    pub(super) fn is_free(&self, mark: Mark) -> bool {
        !self.releasing[mark as usize]
    }

    pub(super) fn hold(&mut self, mark: Mark, seq: Seq, urgent: bool, release: Release) {
        self.tickets += 1;
        self.held[mark as usize].insert((seq, self.tickets), release);
        if mark == Mark::Synced && urgent {
            self.urgent.insert(seq);
        }
    }

    /// False if somebody lets out at this mark already.
    pub(super) fn begin(&mut self, mark: Mark) -> bool {
        !std::mem::replace(&mut self.releasing[mark as usize], true)
    }

    /// What may be let out now; `None`, and nobody lets anything out any more, if that is nothing.
    pub(super) fn due(&mut self, mark: Mark, reached: Seq) -> Option<Held> {
        let later = self.held[mark as usize].split_off(&(reached.next(), 0));
        let due = std::mem::replace(&mut self.held[mark as usize], later);
        self.releasing[mark as usize] = !due.is_empty();
        (!due.is_empty()).then_some(due)
    }

    /// Nobody waits any more for what is synced.
    pub(super) fn served(&mut self, synced: Seq) {
        self.urgent = self.urgent.split_off(&synced.next());
    }

    pub(super) fn want(&self, marks: Marks) -> Want {
        let Marks { written, synced, .. } = marks;
        let held = self.held[Mark::Synced as usize].first_key_value().map(|((seq, _), _)| *seq);
        if written == synced {
            Want::Nothing
        } else if self.urgent.first().is_some_and(|seq| *seq <= written) {
            Want::Urgent
        } else if held.is_some_and(|seq| seq <= written) {
            Want::Relaxed
        } else {
            Want::Idle
        }
    }

    /// Everything that is held, in order.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Release> + use<> {
        self.urgent.clear();
        std::mem::take(&mut self.held).into_iter().flat_map(BTreeMap::into_values)
    }

    /// For each mark.
    pub(super) fn len(&self) -> [usize; 2] {
        [self.held[0].len(), self.held[1].len()]
    }
}

/// What panics must not take those along that come after it, nor the thread that writes.
pub(super) fn let_out(release: Release) {
    if catch_unwind(AssertUnwindSafe(|| release(Ok(())))).is_err() {
        tracing::error!("what was held panicked when it was let out");
    }
}
