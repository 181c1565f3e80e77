//! Drives a core: fold, decide, append, apply, settle. No I/O, no clock, no task: the shell and the simulation both
//! use it as it is.
//!
//! ```text
//! handle(command):   fold what is new ─► decide ─► append ─┬─ behind? fold, decide again
//!                                                          └─► apply ─► settle (append, apply)* ─► Step
//! fold_new():        fold what is new ─► settle* ─► Step
//! ```
//!
//! Nothing here waits for the disk. A [`Step`] says on which seq its reply and its effects depend; whoever drives the
//! engine hands them to the journal's release queue, which lets them out at their mark.
//!
//! Invariants: (1) state is a function of the folded records alone, so [`Engine::recover`] after a panic gives the
//! state that the last incarnation had reached. (2) An effect is reported once per incarnation, in the order of ids.
//! (3) A poisoned journal takes speculative state back: [`Engine::recover`] folds only what is synced.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::{EffectId, Seq, Timestamp};

use crate::core::{AnyEvent, Core, Decision, Reads};
use crate::journal::{Append, AppendError, Behind, Journal, Record};

/// `settle` must converge; an actor that is still not settled after this many rounds is broken.
const SETTLE_ROUNDS_MAX: usize = 10_000;

/// What came of one command or one fold.
#[derive(Debug)]
pub struct Step<E> {
    /// The answer to the command; nothing for a fold.
    pub reply: Option<Result<Box<dyn Any + Send>, Error>>,
    /// Reply and effects are true only once this is written (synced, for what a client is shown).
    pub depends_on: Seq,
    /// What is newly owed.
    pub effects: Vec<(EffectId, E)>,
    /// What was folded or appended, in order; for views and publications.
    pub records: Vec<Arc<Record>>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Engine<C: Core> {
    core: C,
    state: C::State,
    volatile: C::Volatile,
    /// Everything of its kinds up to here is in the state.
    folded: Seq,
    /// The last record of its kinds.
    depends_on: Seq,
    /// Effects up to here have been reported.
    reported: EffectId,
    settles: bool,
}

impl<C: Core> Engine<C> {
    pub fn new(core: C) -> Self {
        Self {
            core,
            state: C::State::default(),
            volatile: C::Volatile::default(),
            folded: Seq(0),
            depends_on: Seq(0),
            reported: EffectId::default(),
            settles: true,
        }
    }

    /// Whether what is due is done. Not while survivors may still bring what would make it undue: a time-out that ran
    /// out while the kernel was down must not beat the result that its worker holds.
    pub fn set_settles(&mut self, settles: bool) {
        self.settles = settles;
    }

    pub fn core(&self) -> &C {
        &self.core
    }

    pub fn state(&self) -> &C::State {
        &self.state
    }

    pub fn volatile(&mut self) -> &mut C::Volatile {
        &mut self.volatile
    }

    pub fn depends_on(&self) -> Seq {
        self.depends_on
    }

    pub fn digest(&self) -> String {
        self.core.digest(&self.state)
    }

    /// Everything that is owed, reported or not.
    pub fn outstanding(&self) -> &BTreeMap<EffectId, C::Effect> {
        self.core.outstanding(&self.state)
    }

    /// What was reported was not performed: everything outstanding is reported with the next step.
    pub fn report_again(&mut self) {
        self.reported = EffectId::default();
    }

    pub fn wake_at(&self) -> Option<Timestamp> {
        self.core.wake_at(&self.state, &self.volatile)
    }

    /// Begins an incarnation: the state of everything in the journal, nothing volatile, nothing reported.
    ///
    /// # Errors
    /// `data_loss` when a record of its kinds cannot be decoded.
    pub fn recover(&mut self, journal: &Journal) -> Result<(), Error> {
        self.state = C::State::default();
        self.volatile = C::Volatile::default();
        (self.folded, self.depends_on, self.reported) = (Seq(0), Seq(0), EffectId::default());
        let behind = journal.after(Seq(0), C::FOLDS);
        self.fold(&behind, None);
        match behind.records.iter().find(|record| record.is_undecodable()) {
            None => Ok(()),
            Some(record) => {
                let message = format!("{record:?} cannot be decoded by this version");
                Err(Error::new(Code::DataLoss, "journal.undecodable", message)
                    .help("start the version that wrote it, or restore a copy of the state directory"))
            }
        }
    }

    /// Answers a command.
    pub fn handle(
        &mut self,
        journal: &Journal,
        reads: &Reads,
        command: &C::Command,
        cause: Option<EffectId>,
        now: Timestamp,
    ) -> Step<C::Effect> {
        let mut records = Vec::new();
        self.catch_up(journal, &mut records);
        let reply = loop {
            let decided = self.core.decide(&self.state, &mut self.volatile, reads, command, now);
            let Decision { events, reply } = match decided {
                Ok(decision) => decision,
                Err(refusal) => break Err(refusal),
            };
            match self.append(journal, events, cause, now, &mut records) {
                Ok(true) => break Ok(reply),
                Ok(false) => {}
                Err(refusal) => break Err(refusal),
            }
        };
        self.settle(journal, reads, now, &mut records);
        self.step(Some(reply), records)
    }

    /// Folds what others appended, and does what is due.
    pub fn fold_new(&mut self, journal: &Journal, reads: &Reads, now: Timestamp) -> Step<C::Effect> {
        let mut records = Vec::new();
        self.catch_up(journal, &mut records);
        self.settle(journal, reads, now, &mut records);
        self.step(None, records)
    }

    fn settle(&mut self, journal: &Journal, reads: &Reads, now: Timestamp, records: &mut Vec<Arc<Record>>) {
        if !self.settles {
            return;
        }
        for round in 0..SETTLE_ROUNDS_MAX {
            let due = self.core.settle(&self.state, &mut self.volatile, reads, now);
            if due.is_empty() {
                return;
            }
            if let Err(refusal) = self.append(journal, due, None, now, records) {
                // Poisoned or closing: what is due is due again at the next start.
                tracing::warn!(%refusal, round, "what is due cannot be appended");
                return;
            }
        }
        tracing::error!(rounds = SETTLE_ROUNDS_MAX, "the core does not settle");
    }

    /// `Ok(false)`: others were first; their records are folded, decide again.
    fn append(
        &mut self,
        journal: &Journal,
        events: Vec<AnyEvent>,
        cause: Option<EffectId>,
        now: Timestamp,
        records: &mut Vec<Arc<Record>>,
    ) -> Result<bool, Error> {
        if events.is_empty() {
            return Ok(true);
        }
        debug_assert!(events.iter().all(|event| C::DECIDES.contains(&event.kind)), "not its own: {events:?}");
        let append = Append { events, at: now, cause, folded: self.folded, folds: C::FOLDS };
        match journal.append(&append) {
            Ok(appended) => {
                let head = appended.last().map_or(self.folded, |record| record.seq);
                self.fold(&Behind { records: appended, head }, Some(records));
                Ok(true)
            }
            Err(AppendError::Behind(behind)) => {
                self.fold(&behind, Some(records));
                Ok(false)
            }
            Err(AppendError::Refused(error)) => Err(error),
        }
    }

    fn catch_up(&mut self, journal: &Journal, records: &mut Vec<Arc<Record>>) {
        let behind = journal.after(self.folded, C::FOLDS);
        self.fold(&behind, Some(records));
    }

    fn fold(&mut self, behind: &Behind, records: Option<&mut Vec<Arc<Record>>>) {
        for record in &behind.records {
            self.core.apply(&mut self.state, record);
            self.depends_on = record.seq;
        }
        self.folded = behind.head.max(self.folded);
        if let Some(records) = records {
            records.extend(behind.records.iter().cloned());
        }
    }

    fn step(
        &mut self,
        reply: Option<Result<Box<dyn Any + Send>, Error>>,
        records: Vec<Arc<Record>>,
    ) -> Step<C::Effect> {
        let outstanding = self.core.outstanding(&self.state);
        let new = outstanding.range((Bound::Excluded(self.reported), Bound::Unbounded));
        let effects: Vec<_> = new.map(|(id, effect)| (*id, effect.clone())).collect();
        if let Some((last, _)) = effects.last() {
            self.reported = *last;
        }
        Step { reply, depends_on: self.depends_on, effects, records }
    }
}

#[cfg(test)]
mod tests;
