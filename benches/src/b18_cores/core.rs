//! A core without its engine: what it decides is applied at once, and written nowhere.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use eclosion_kernel::core::{AnyEvent, Core, Reads};
use eclosion_kernel::journal::{Record, Stored};
use eclosion_schemas::events::Event;
use eclosion_schemas::{EffectId, Epoch, Error, Seq, Timestamp};

pub(super) struct Bare<C: Core> {
    core: C,
    state: C::State,
    volatile: C::Volatile,
    seq: u64,
    pub(super) now: Timestamp,
    /// What it decided since this was looked at last.
    pub(super) decided: Vec<AnyEvent>,
}

impl<C: Core> Bare<C> {
    pub(super) fn new(core: C) -> Self {
        let (state, volatile) = (C::State::default(), C::Volatile::default());
        Self { core, state, volatile, seq: 0, now: Timestamp(1_795_255_200_000), decided: Vec::new() }
    }

    pub(super) fn send(&mut self, reads: &Reads, command: &C::Command) -> Result<(), Error> {
        let decision = self.core.decide(&self.state, &mut self.volatile, reads, command, self.now)?;
        black_box(decision.reply);
        self.take(decision.events);
        self.settle(reads);
        Ok(())
    }

    /// A fact of another actor.
    pub(super) fn fold(&mut self, reads: &Reads, event: impl Event) {
        self.apply(&event.into());
        self.settle(reads);
    }

    pub(super) fn settle(&mut self, reads: &Reads) {
        loop {
            let due = self.core.settle(&self.state, &mut self.volatile, reads, self.now);
            if due.is_empty() {
                return;
            }
            self.take(due);
        }
    }

    pub(super) fn owed(&self) -> impl Iterator<Item = (&EffectId, &C::Effect)> {
        self.core.outstanding(&self.state).iter()
    }

    fn take(&mut self, events: Vec<AnyEvent>) {
        for event in &events {
            self.apply(event);
        }
        self.decided.extend(events);
    }

    fn apply(&mut self, event: &AnyEvent) {
        self.seq += 1;
        self.core.apply(&mut self.state, &record(event, self.seq, self.now));
    }
}

pub(super) fn record(event: &AnyEvent, seq: u64, at: Timestamp) -> Record {
    let stored = Stored {
        seq: Seq(seq),
        epoch: Epoch(1),
        at,
        kind: Arc::from(event.kind),
        version: event.version,
        cause: None,
        body: Bytes::new(),
    };
    Record::with_value(stored, event.value())
}
