//! Earlier results: what a ready step may take instead of being computed, and what came of looking for it.
//!
//! ```text
//! Ready ──`look` owed──► the tracker asks itself for an entry, and the artifact store whether its output is there
//!    ├─ step.reused ──► Succeeded, without an attempt
//!    └─ step.missed ──► Ready, wished for as any other
//! ```
//!
//! A step is looked for once, before its first attempt. Records decide: an answer that comes when the step is no longer
//! owed a look changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use blake3::Hash;
use eclosion_kernel::core::{AnyEvent, Decision, Reads};
use eclosion_schemas::events::{
    CacheDropped, CacheNote, Ingredients, MissCause, StepMissed, StepReused, Unkept,
};
use eclosion_schemas::ops::cache::{
    DropReply, DropRequest, FindReply, FindRequest, Found, Keyed, ListReply, ListRequest, Lookup,
};
use eclosion_schemas::ops::task::{Argument, CodeSeen};
use eclosion_schemas::view::{CacheState, CacheView, RunState};
use eclosion_schemas::{CacheKey, EffectId, Error, Payload, TaskRef};

use super::fold::Fold;
use super::run::{Instance, Looked, Output, Phase, Run, Slot};
use super::{Effect, Look, State};
use crate::cache::{self, ENTRIES_MAX};
use crate::content;
use crate::plan::{Source, Task};

/// Entries that one record drops; it has room for as many.
const DROPPED_PER_RECORD: usize = 64;

/// What came of one look.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The effect that owed it.
    pub look: EffectId,
    pub outcome: Outcome,
}

#[derive(Debug, Clone)]
pub enum Outcome {
    Found { from: TaskRef, output: Payload, is_taken: bool },
    Missed { causes: Vec<MissCause>, nearest: Option<TaskRef> },
}

impl Output {
    pub(super) fn hash(&self) -> Option<Hash> {
        match self {
            Output::None => None,
            Output::One(payload) => Some(content::of_payload(payload)),
            Output::List(payloads) => Some(content::of_payloads(payloads)),
        }
    }
}

impl Run {
    /// What may be had without computing; nothing, where it was looked for or is to be computed anyway.
    pub(super) fn look(&self, slot: Slot) -> Option<Look> {
        let (task, instance) = self.task(slot).zip(self.instance(slot))?;
        if instance.looked.is_some() || self.is_named(task, instance) {
            return None;
        }
        let recall = self.rerun_of.as_ref().filter(|_| self.groups[slot.task as usize].is_taken);
        let recall = recall.map(|rerun| TaskRef::new(rerun.run.clone(), instance.id.clone()));
        let keyed = if self.no_cache { None } else { self.keyed(slot) };
        let is_wanted = recall.is_some() || keyed.is_some();
        let (run, task) = (self.id.clone(), instance.id.clone());
        is_wanted.then_some(Look { run, task, lookup: Lookup { recall, keyed } })
    }

    /// Who started the rerun named it: it is computed, whatever is stored.
    fn is_named(&self, task: &Task, instance: &Instance) -> bool {
        let named = self.rerun_of.iter().flat_map(|rerun| &rerun.from);
        named.into_iter().any(|named| *named == instance.id || named.as_str() == task.name)
    }

    /// The content key of a step whose inputs are known; none, if its results are not kept.
    fn keyed(&self, slot: Slot) -> Option<Keyed> {
        let (task, instance) = self.task(slot).zip(self.instance(slot))?;
        let version = task.cache.clone()?;
        let plan = &self.plan;
        if plan.code_hash.is_empty() {
            return None;
        }
        let mut arguments = BTreeMap::new();
        for (name, source) in &task.arguments {
            arguments.insert(name.as_str(), self.argument_hash(name, source, (task, instance), slot)?);
        }
        let seed = (plan.seed_is_set && task.cache_seed).then(|| content::task_seed(plan.seed, &instance.id));
        let ingredients = Ingredients {
            function: task.function.clone(),
            version,
            code_hash: plan.code_hash.clone(),
            environment: plan.environment.clone(),
            arguments: cache::named(&arguments),
            seed,
        };
        Some(Keyed { key: content::cache_key(&ingredients, &arguments), ingredients })
    }

    fn argument_hash(&self, name: &str, source: &Source, of: (&Task, &Instance), slot: Slot) -> Option<Hash> {
        if let Source::Output(task) = source {
            // Shared by every instance that is given it; hashing it for each would cost their product.
            return self.groups.get(*task)?.output_hash;
        }
        match self.argument(name, source, of, slot.index).ok()? {
            Argument::Value { payload } => Some(content::of_payload(&payload)),
            Argument::List { payloads } => Some(content::of_payloads(&payloads)),
        }
    }

    /// What makes the commit of a step an entry.
    pub(super) fn note(&self, slot: Slot, state: &State) -> Option<Box<CacheNote>> {
        let Keyed { key, ingredients } = self.keyed(slot)?;
        let replaces = state.entries.seq_of(&key);
        Some(Box::new(CacheNote { key, ingredients, replaces }))
    }

    pub(super) fn reused(&mut self, slot: Slot, event: &StepReused, fold: &mut Fold<'_>) {
        let Some(instance) = self.looking(slot) else { return };
        instance.looked =
            Some(Arc::new(Looked::Reused { from: event.from.clone(), is_taken: event.is_taken }));
        match event.is_taken {
            true => self.cache.taken += 1,
            false => self.cache.hits += 1,
        }
        self.succeed(slot, event.output.clone(), fold);
    }

    pub(super) fn missed(&mut self, slot: Slot, event: &StepMissed, fold: &mut Fold<'_>) {
        let Some(instance) = self.looking(slot) else { return };
        let (causes, nearest) = (event.causes.clone(), event.nearest.clone());
        instance.looked = Some(Arc::new(Looked::Missed { causes, nearest }));
        let task = slot.task as usize;
        if self.plan.tasks[task].cache.is_some() && !self.no_cache {
            self.cache.misses += 1;
        }
        if self.groups[task].is_taken {
            self.take_no_more_after(task);
        }
        self.wish(slot, fold);
    }

    /// What is computed anew may come out differently: what was made of the old must not stand beside it.
    fn take_no_more_after(&mut self, task: usize) {
        let plan = Arc::clone(&self.plan);
        let mut changed = vec![task];
        while let Some(task) = changed.pop() {
            for dependant in &plan.tasks[task].dependants {
                if std::mem::replace(&mut self.groups[*dependant].is_taken, false) {
                    changed.push(*dependant);
                }
            }
        }
    }

    fn looking(&mut self, slot: Slot) -> Option<&mut Instance> {
        let instance = self.instance_mut(slot)?;
        let is_looked_for = matches!(instance.phase, Phase::Ready { .. }) && instance.looked.is_none();
        is_looked_for.then_some(instance)
    }

    /// How a step stands to earlier results, as readers see it.
    pub(crate) fn cache_view(&self, slot: Slot) -> Option<CacheView> {
        let (task, instance) = self.task(slot).zip(self.instance(slot))?;
        let unkept = instance.unkept;
        let view = |state| CacheView { state, from: None, causes: Vec::new(), unkept };
        match instance.looked.as_deref() {
            Some(Looked::Reused { from, is_taken }) => {
                let state = if *is_taken { CacheState::Taken } else { CacheState::Hit };
                return Some(CacheView { from: Some(from.clone()), ..view(state) });
            }
            Some(Looked::Missed { causes, nearest }) => {
                let causes = causes.clone();
                let from = nearest.clone();
                return Some(CacheView { from, causes, ..view(CacheState::Miss) });
            }
            None => {}
        }
        let is_taken = self.groups[slot.task as usize].is_taken;
        if task.cache.is_none() && !is_taken {
            return None;
        }
        Some(view(match () {
            () if self.is_named(task, instance) || (self.no_cache && !is_taken) => CacheState::Refreshed,
            () if self.plan.code_hash.is_empty() && !is_taken => CacheState::Unhashed,
            () => CacheState::Waiting,
        }))
    }
}

/// Why a computed result does not become an entry: its key names a code, and the files may have been another.
pub(super) fn unkept(ingredients: &Ingredients, code: Option<&CodeSeen>) -> Option<Unkept> {
    match code {
        None => Some(Unkept::CodeUnseen),
        Some(code) if code.is_written || code.hash != ingredients.code_hash => Some(Unkept::CodeChanged),
        Some(_) => None,
    }
}

/// Which entries there are; rows say so, and only a question reads rows.
pub(super) fn find(reads: &Reads, request: &FindRequest) -> Decision {
    let found = request.lookups.iter().map(|lookup| match &lookup.keyed {
        None => Found { causes: vec![MissCause::NotCommitted], ..Found::default() },
        Some(Keyed { key, ingredients }) => match cache::rows::entry(reads, key) {
            Some(entry) => Found { entry: Some(entry.from), ..Found::default() },
            None => cache::missed(ingredients, &cache::rows::of_function(reads, &ingredients.function)),
        },
    });
    Decision::reply(FindReply { found: found.collect() })
}

pub(super) fn list(state: &State, reads: &Reads, request: &ListRequest) -> Decision {
    let mut entries = cache::rows::list(reads, request);
    let cut = entries.len().saturating_sub(request.limit as usize) as u64;
    entries.truncate(request.limit as usize);
    let entries_total = state.entries.len() as u64;
    Decision::reply(ListReply { entries, cut, entries_total, entries_max: ENTRIES_MAX as u64 })
}

pub(super) fn drop(state: &State, request: &DropRequest) -> Result<Decision, Error> {
    let DropRequest { key, function, all, .. } = request;
    if usize::from(key.is_some()) + usize::from(function.is_some()) + usize::from(*all) != 1 {
        return Err(Error::invalid(
            "cache.drop",
            "a key, a function or all of it is dropped, and one of them",
        )
        .help("eclosion cache drop module:function; eclosion cache ls shows keys and functions"));
    }
    let is_meant = |entry_key: &CacheKey, entry_function: &str| {
        *all || key.as_ref() == Some(entry_key) || function.as_deref() == Some(entry_function)
    };
    let entries: Vec<_> = state.entries.dropped(is_meant).collect();
    if entries.is_empty() && !all {
        let what = key.as_ref().map(ToString::to_string).or_else(|| function.clone()).unwrap_or_default();
        return Err(Error::not_found("cache.unknown", format!("nothing is kept under `{what}`"))
            .help("eclosion cache ls"));
    }
    let reply = DropReply { dropped: entries.len() as u64 };
    Ok(Decision::reply(reply).events(drop_events(entries, "asked for")))
}

fn drop_events(entries: Vec<eclosion_schemas::events::DroppedEntry>, reason: &str) -> Vec<AnyEvent> {
    let records = entries
        .chunks(DROPPED_PER_RECORD)
        .map(|entries| CacheDropped { entries: entries.to_vec(), reason: reason.to_owned() }.into());
    records.collect()
}

/// Entries beyond the limit.
pub(super) fn surplus(state: &State) -> Vec<AnyEvent> {
    drop_events(state.entries.surplus(), "beyond the limit")
}

/// Answers to looks that are still owed.
pub(super) fn looked(state: &State, answers: &[Answer]) -> Decision {
    let mut noted = BTreeSet::new();
    let events = answers.iter().filter_map(|answer| decided(state, answer, &mut noted));
    Decision::reply(()).events(events)
}

fn decided(state: &State, answer: &Answer, noted: &mut BTreeSet<CacheKey>) -> Option<AnyEvent> {
    let Some(Effect::Look(look)) = state.index.outstanding.get(&answer.look) else { return None };
    let run = state.run(&look.run).filter(|run| run.state == RunState::Running)?;
    let slot = run.slot(&look.task)?;
    let instance = run.instance(slot)?;
    let (run_id, task) = (run.id.clone(), instance.id.clone());
    Some(match &answer.outcome {
        Outcome::Found { from, output, is_taken } => {
            let note = if *is_taken { None } else { run.note(slot, state) };
            // One entry has one record; a second one of this batch would not know the first's seq.
            let cache = note.filter(|note| noted.insert(note.key.clone()));
            let (from, output, is_taken) = (from.clone(), output.clone(), *is_taken);
            StepReused { run: run_id, task, output, from, is_taken, cache }.into()
        }
        Outcome::Missed { causes, nearest } => {
            let (causes, nearest) = (causes.clone(), nearest.clone());
            StepMissed { run: run_id, task, causes, nearest }.into()
        }
    })
}
