//! A core that panics on purpose at one of four points, and a list of records that it forgets to fold.
//!
//! ```text
//! take ─► before decide ─► decide ─► append ─► after append ─► apply ─► after apply ─► settle ─► before reply ─► release
//! ```
//!
//! The product knows nothing of it: a [`Trapped`] core is the real core with a trap around it, driven by the real engine
//! in a simulated world and by the real shell in a running kernel. A trap springs once, for the next command that reaches
//! its point; replay and folds of what others appended never spring it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eclosion_kernel::core::{AnyEvent, Core, Decision, Query, Reads};
use eclosion_kernel::journal::Record;
use eclosion_schemas::{EffectId, Error, Timestamp};

/// Where a panic loses what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Nothing has happened.
    BeforeDecide,
    /// The record stands in the journal, and not in the state.
    AfterAppend,
    /// In both, and nobody was told.
    AfterApply,
    /// All that follows from it is decided; the reply is lost.
    BeforeReply,
}

impl Point {
    pub const ALL: [Self; 4] = [Self::BeforeDecide, Self::AfterAppend, Self::AfterApply, Self::BeforeReply];
}

/// Shared by all incarnations of an actor. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Trap(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    armed: Mutex<Option<Armed>>,
    sprung: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Armed {
    point: Point,
    /// Only commands that came as a message of this operation; any, if there is none.
    operation: Option<&'static str>,
    /// The next command is such a one.
    has_come: bool,
    /// So often, each time that the command comes.
    times: u32,
    decided: bool,
    appending: bool,
}

impl Trap {
    /// The next `times` commands that reach this point panic there.
    pub fn arm(&self, point: Point, times: u32) {
        self.set(point, times, None);
    }

    /// The same of one operation's messages: what an actor tells itself meanwhile springs nothing.
    pub fn arm_for(&self, operation: &'static str, point: Point, times: u32) {
        self.set(point, times, Some(operation));
    }

    fn set(&self, point: Point, times: u32, operation: Option<&'static str>) {
        let (has_come, decided, appending) = (false, false, false);
        *self.lock() = Some(Armed { point, operation, has_come, times, decided, appending });
    }

    /// The next command is a message of this operation.
    pub fn comes(&self, operation: &str) {
        if let Some(armed) = self.lock().as_mut() {
            armed.has_come = armed.operation == Some(operation);
        }
    }

    /// Whether it was still armed.
    pub fn disarm(&self) -> bool {
        self.lock().take().is_some()
    }

    /// How often it has sprung.
    #[must_use]
    pub fn sprung(&self) -> u64 {
        self.0.sprung.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Armed>> {
        // It is never held while it springs.
        self.0.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decides(&self) {
        if let Some(armed) = self.lock().as_mut() {
            armed.decided = std::mem::take(&mut armed.has_come) || armed.operation.is_none();
            armed.appending = false;
        }
        self.reach(Point::BeforeDecide);
    }

    fn appends(&self, events: &[AnyEvent]) {
        if let Some(armed) = self.lock().as_mut() {
            armed.appending |= armed.decided && !events.is_empty();
        }
    }

    fn reach(&self, point: Point) {
        {
            let mut armed = self.lock();
            let Some(present) = armed.as_mut().filter(|armed| armed.point == point && armed.decided) else {
                return;
            };
            if matches!(point, Point::AfterAppend | Point::AfterApply) && !present.appending {
                return;
            }
            present.times -= 1;
            (present.decided, present.appending) = (false, false);
            if present.times == 0 {
                *armed = None;
            }
        }
        self.0.sprung.fetch_add(1, Ordering::Relaxed);
        // As a panic, without the hook's lines on stderr: these are many, and meant.
        std::panic::resume_unwind(Box::new(format!("a trap at {point:?}")));
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Trapped<C> {
    pub core: C,
    pub trap: Trap,
    /// Kinds that it forgets to fold: a mistake that is made on purpose.
    pub forgets: &'static [&'static str],
    /// Kinds that it decides and does not append: another.
    pub swallows: &'static [&'static str],
}

impl<C> Trapped<C> {
    pub fn new(core: C, trap: Trap) -> Self {
        Self { core, trap, forgets: &[], swallows: &[] }
    }
}

impl<C: Core> Core for Trapped<C> {
    type State = C::State;
    type Volatile = C::Volatile;
    type Command = C::Command;
    type Effect = C::Effect;

    const DECIDES: &'static [&'static str] = C::DECIDES;
    const FOLDS: &'static [&'static str] = C::FOLDS;

    fn queries(&self, command: &C::Command) -> Vec<Query> {
        self.core.queries(command)
    }

    fn decide(
        &self,
        state: &C::State,
        volatile: &mut C::Volatile,
        reads: &Reads,
        command: &C::Command,
        now: Timestamp,
    ) -> Result<Decision, Error> {
        self.trap.decides();
        let decision = self.core.decide(state, volatile, reads, command, now)?;
        self.trap.appends(&decision.events);
        Ok(decision)
    }

    fn settle(
        &self,
        state: &C::State,
        volatile: &mut C::Volatile,
        reads: &Reads,
        now: Timestamp,
    ) -> Vec<AnyEvent> {
        let mut due = self.core.settle(state, volatile, reads, now);
        due.retain(|event| !self.swallows.contains(&event.kind));
        self.trap.appends(&due);
        due
    }

    fn apply(&self, state: &mut C::State, record: &Record) {
        let is_own = C::DECIDES.contains(&&*record.kind);
        if is_own {
            self.trap.reach(Point::AfterAppend);
        }
        if !self.forgets.contains(&&*record.kind) {
            self.core.apply(state, record);
        }
        if is_own {
            self.trap.reach(Point::AfterApply);
        }
    }

    /// The engine looks at what is owed when a command is over, and before anything of it is released.
    fn outstanding<'a>(&self, state: &'a C::State) -> &'a BTreeMap<EffectId, C::Effect> {
        self.trap.reach(Point::BeforeReply);
        self.core.outstanding(state)
    }

    fn wake_at(&self, state: &C::State, volatile: &C::Volatile) -> Option<Timestamp> {
        self.core.wake_at(state, volatile)
    }

    fn digest(&self, state: &C::State) -> String {
        self.core.digest(state)
    }
}
