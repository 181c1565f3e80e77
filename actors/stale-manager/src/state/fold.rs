//! The only place where the state changes.

use eclosion_schemas::Payload;

use super::*;

pub(super) fn apply(state: &mut State, record: &Record) {
    match &*record.kind {
        RunStarted::KIND => with(record, |event: &RunStarted| {
            state.runs.insert(event.run.clone(), event.environment.clone());
        }),
        RunFinished::KIND => with(record, |event: &RunFinished| {
            state.runs.remove(&event.run);
            forget_environments(state);
        }),
        StepCommitted::KIND => with(record, |event: &StepCommitted| {
            named(state, &event.run, &event.output, record.seq);
        }),
        StepReused::KIND => with(record, |event: &StepReused| {
            named(state, &event.run, &event.output, record.seq);
        }),
        WorkerRequested::KIND => with(record, |event: &WorkerRequested| {
            state.workers.insert(event.worker.clone(), event.environment.clone());
            if let Some(place) = state.environments.get_mut(&event.environment) {
                place.used = record.at;
            }
        }),
        WorkerDied::KIND => with(record, |event: &WorkerDied| {
            state.workers.remove(&event.worker);
            forget_environments(state);
        }),
        EnvironmentRequested::KIND => with(record, |event: &EnvironmentRequested| {
            state.building.insert(event.environment.clone());
        }),
        EnvironmentReady::KIND => with(record, |event: &EnvironmentReady| {
            state.building.remove(&event.environment);
            let place = Place { python: event.python.clone(), used: record.at };
            state.environments.insert(event.environment.clone(), place);
        }),
        EnvironmentFailed::KIND => with(record, |event: &EnvironmentFailed| {
            state.building.remove(&event.environment);
        }),
        ArtifactPinned::KIND => with(record, |event: &ArtifactPinned| {
            let label = Label::Pin { task: event.task.clone(), holder: event.holder.clone() };
            labeled(state, &event.run, label);
        }),
        ArtifactUnpinned::KIND => with(record, |event: &ArtifactUnpinned| {
            let label = Label::Pin { task: event.task.clone(), holder: event.holder.clone() };
            unlabeled(state, &event.run, &label);
        }),
        ArtifactTagged::KIND => with(record, |event: &ArtifactTagged| {
            untagged(state, &event.path, &event.tag);
            let (path, tag) = (event.path.clone(), event.tag.clone());
            state.tags.insert((path.clone(), tag.clone()), event.run.clone());
            labeled(state, &event.run, Label::Tag { path, tag });
        }),
        ArtifactUntagged::KIND => {
            with(record, |event: &ArtifactUntagged| untagged(state, &event.path, &event.tag));
        }
        GcPassDue::KIND => {
            let effect = EffectId { seq: record.seq, n: 1 };
            state.passes += 1;
            state.due = Some(effect);
            state.outstanding.insert(effect, Effect::Pass);
        }
        GcCollected::KIND => with(record, |event| collected(state, event, record)),
        GcMoved::KIND => with(record, |event| moved(state, event, record)),
        GcPurging::KIND => {
            with(record, |event: &GcPurging| leave(state, &event.item, record.seq, Phase::Purging))
        }
        GcRestoring::KIND => {
            with(record, |event: &GcRestoring| leave(state, &event.item, record.seq, Phase::Restoring));
        }
        GcRestored::KIND => with(record, |event| restored(state, event, record)),
        GcErased::KIND => with(record, |event: &GcErased| {
            if let Some(last) = event.records.last() {
                state.forgotten = *last;
                state.tally.purged += 1;
                state.tally.freed_bytes += event.bytes;
            }
        }),
        GcPassed::KIND => with(record, |event| passed(state, event, record.at)),
        _ => {}
    }
}

fn with<E: Event>(record: &Record, fold: impl FnOnce(&E)) {
    if let Some(event) = record.event::<E>() {
        fold(&event);
    }
}

/// Whoever labels an artifact of a run that is in the trash has seen it a moment ago: it comes back.
fn labeled(state: &mut State, run: &RunId, label: Label) {
    state.labels.entry(run.clone()).or_default().insert(label);
    if let Some(item) = item_of_run(run).filter(|item| state.kept.contains_key(item)) {
        state.wanted.insert(item);
    }
}

/// No empty sets are kept, so that equal states are equal to the byte.
fn unlabeled(state: &mut State, run: &RunId, label: &Label) {
    if let Some(labels) = state.labels.get_mut(run) {
        labels.remove(label);
        if labels.is_empty() {
            state.labels.remove(run);
        }
    }
}

fn untagged(state: &mut State, path: &str, tag: &str) {
    let (path, tag) = (path.to_owned(), tag.to_owned());
    if let Some(run) = state.tags.remove(&(path.clone(), tag.clone())) {
        unlabeled(state, &run, &Label::Tag { path, tag });
    }
}

/// A run names these objects from now on; what is in the trash of them comes back.
fn named(state: &mut State, run: &RunId, output: &Payload, seq: Seq) {
    for digest in output.parts.iter().filter_map(|part| part.digest.as_ref()) {
        state.recent.add(digest, seq, run);
        let Ok(id) = ItemId::new(digest.as_str()) else { continue };
        let item = Item::new(ItemKind::Artifact, id);
        if state.kept.contains_key(&item) {
            state.wanted.insert(item);
        }
    }
}

/// Of those that nobody uses, the place is found again when they are used again.
fn forget_environments(state: &mut State) {
    let State { environments, building, runs, workers, .. } = state;
    let is_used = |id: &EnvironmentId| runs.values().chain(workers.values()).any(|used| used == id);
    environments.retain(|id, _| is_used(id));
    // The pool manager gives up a build for nobody without a word.
    building.retain(is_used);
}

fn collected(state: &mut State, event: &GcCollected, record: &Record) {
    let effect = EffectId { seq: record.seq, n: 1 };
    let mut kept = Kept {
        phase: Phase::Moving,
        since: record.at,
        bytes: event.bytes,
        rule: event.rule,
        what: event.what.clone(),
        of: event.of.clone(),
        run: event.run.clone(),
        place: effect,
    };
    state.tally.collected += 1;
    if event.item.kind == ItemKind::Run {
        // Only rows: they are hidden by this very record.
        kept.phase = Phase::Trashed;
        trashed(state, &event.item, &kept);
    } else {
        let (item, token, place) = (event.item.clone(), event.token.clone(), effect.to_string());
        state.outstanding.insert(effect, Effect::Trash { item, token, place });
    }
    state.kept.insert(event.item.clone(), kept);
}

fn trashed(state: &mut State, item: &Item, kept: &Kept) {
    state.tally.trashed_bytes += kept.bytes;
    state.trash_bytes += kept.bytes;
    state.trashed.insert((kept.since, item.clone()));
}

fn moved(state: &mut State, event: &GcMoved, record: &Record) {
    if state.outstanding.remove(&event.effect).is_none() {
        return;
    }
    let Some(mut kept) = state.kept.remove(&event.item) else { return };
    match (&event.outcome, kept.phase) {
        (Moved::Trashed, _) => {
            kept.phase = Phase::Trashed;
            kept.since = record.at;
            trashed(state, &event.item, &kept);
            state.kept.insert(event.item.clone(), kept);
        }
        (Moved::Purged { bytes }, _) => {
            state.tally.purged += 1;
            state.tally.freed_bytes += bytes;
            state.wanted.remove(&event.item);
        }
        // It stays in the trash, and its time is over: the next pass tries again.
        (Moved::Failed { .. } | Moved::Kept { .. }, Phase::Purging) => {
            state.tally.failed += 1;
            kept.phase = Phase::Trashed;
            state.trash_bytes += kept.bytes;
            state.trashed.insert((kept.since, event.item.clone()));
            state.kept.insert(event.item.clone(), kept);
        }
        (Moved::Failed { .. } | Moved::Kept { .. }, _) => {
            state.tally.failed += 1;
            state.wanted.remove(&event.item);
        }
        (Moved::Gone, _) => {
            state.wanted.remove(&event.item);
        }
    }
    if !state.kept.contains_key(&event.item) {
        state.recent.leave(&event.item, record.seq);
    }
}

/// Out of the trash, in one direction or the other.
fn leave(state: &mut State, item: &Item, seq: Seq, phase: Phase) {
    let Some(kept) = state.kept.get_mut(item) else { return };
    state.trashed.remove(&(kept.since, item.clone()));
    state.trash_bytes = state.trash_bytes.saturating_sub(kept.bytes);
    state.wanted.remove(item);
    kept.phase = phase;
    let (item, place) = (item.clone(), kept.place.to_string());
    let effect = match phase {
        Phase::Purging => Effect::Purge { item, place },
        _ => Effect::Restore { item, place },
    };
    state.outstanding.insert(EffectId { seq, n: 1 }, effect);
}

fn restored(state: &mut State, event: &GcRestored, record: &Record) {
    state.outstanding.remove(&event.effect);
    state.wanted.remove(&event.item);
    let Some(mut kept) = state.kept.remove(&event.item) else { return };
    if event.error.is_some() && kept.phase == Phase::Restoring {
        // Its time in the trash begins anew, so that somebody can look.
        (kept.phase, kept.since) = (Phase::Trashed, record.at);
        state.trash_bytes += kept.bytes;
        state.trashed.insert((kept.since, event.item.clone()));
        state.kept.insert(event.item.clone(), kept);
    } else {
        state.recent.leave(&event.item, record.seq);
    }
}

fn passed(state: &mut State, event: &GcPassed, at: Timestamp) {
    if let Some(effect) = event.effect {
        state.outstanding.remove(&effect);
        if state.due == Some(effect) {
            state.due = None;
        }
    }
    state.last_pass = Some(at);
    state.findings = event.findings.clone();
}
