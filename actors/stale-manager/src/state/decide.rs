//! Commands into events.

use super::*;
use crate::plan::{Plan, Planned};

/// The next items of the plan, each an event of its own.
pub(super) fn collect(
    options: &RetentionOptions,
    state: &State,
    request: &CollectRequest,
    now: Timestamp,
) -> Result<Decision, Error> {
    if request.survey.as_of < state.recent.floor {
        let message = "more was named since the survey than is remembered";
        return Err(Error::new(Code::Unavailable, "gc.survey_old", message).retry(Retry::Now));
    }
    let plan = plan::plan(options, state, &request.survey, request.only, now);
    let named = |item: &Item| request.items.is_empty() || request.items.contains(item);
    // The plan lets objects go with the runs that it collects; whoever asks for some of it may have left such a run out.
    let stays = |run: &RunId| !state.is_collected(run) && !item_of_run(run).is_some_and(|item| named(&item));
    let is_object = |planned: &Planned| planned.shown.item.kind == ItemKind::Artifact;
    let wanted = |planned: &&Planned| {
        named(&planned.shown.item) && !(is_object(planned) && planned.of.iter().any(stays))
    };
    let limit = if request.dry_run { 0 } else { DECIDED_MAX };
    let events: Vec<AnyEvent> = plan
        .items
        .iter()
        .filter(wanted)
        .take(limit)
        .map(|planned| event(&request.survey, planned, &request.reason))
        .collect();
    let decided = events.len() as u64;
    let reply = CollectReply {
        plan: reply(options, state, plan, now),
        decided,
        busy: state.busy() + decided,
        tally: state.tally,
    };
    Ok(Decision::reply(reply).events(events))
}

fn event(survey: &Survey, planned: &Planned, reason: &str) -> AnyEvent {
    let shown = &planned.shown;
    let (item, rule, why, reason) = (shown.item.clone(), shown.rule, shown.why.clone(), reason.to_owned());
    let found = planned.found.and_then(|index| survey.found.get(index));
    if !planned.records.is_empty() {
        return erased(survey, planned).into();
    }
    match found {
        Some(found) => GcCollected {
            item,
            bytes: found.bytes,
            rule,
            why,
            what: found.what.clone(),
            token: found.token.clone(),
            of: planned.of.clone(),
            run: found.run.clone(),
            reason,
        }
        .into(),
        None => GcPurging { item, rule, why, reason }.into(),
    }
}

/// The first of them; who follows a pass asks for the others.
fn erased(survey: &Survey, planned: &Planned) -> GcErased {
    let records = survey.records.get(planned.records.clone()).unwrap_or_default();
    let records = records.get(..ERASED_MAX.min(records.len())).unwrap_or_default();
    GcErased {
        records: records.iter().map(|record| record.seq).collect(),
        runs: records.iter().filter_map(|record| record.run.clone()).collect(),
        bytes: records.iter().map(|record| record.bytes).sum(),
        ..GcErased::default()
    }
}

fn reply(options: &RetentionOptions, state: &State, plan: Plan, now: Timestamp) -> PlanReply {
    let Plan { items, held, totals, used_bytes, findings } = plan;
    let cut = items.len().saturating_sub(plan::SHOWN_MAX) + held.len().saturating_sub(plan::SHOWN_MAX);
    PlanReply {
        at: now,
        items: items.into_iter().take(plan::SHOWN_MAX).map(|planned| planned.shown).collect(),
        held: held.into_iter().take(plan::SHOWN_MAX).collect(),
        cut: cut as u64,
        totals,
        trash: state.trashed.len() as u64,
        trash_bytes: state.trash_bytes,
        used_bytes,
        quota_bytes: options.quota_bytes,
        findings,
    }
}

/// What effects came to. What is known already is said by nobody again.
pub(super) fn done(state: &State, done: &[Done]) -> Decision {
    let mut events = Vec::new();
    for Done { effect, item, outcome } in done {
        let owed = state.outstanding.contains_key(effect);
        let Some(kept) = state.kept.get(item).filter(|_| owed) else { continue };
        match outcome {
            Outcome::Moved { moved, erased } => {
                events.extend(erased.iter().cloned().map(AnyEvent::from));
                let (item, effect, outcome) = (item.clone(), *effect, moved.clone());
                let is_back =
                    matches!(moved, Moved::Kept { .. } | Moved::Failed { .. } if kept.phase == Phase::Moving);
                let back = is_back.then(|| restored(&item, kept, effect, None));
                events.push(GcMoved { item, effect, outcome }.into());
                events.extend(back.map(AnyEvent::from));
            }
            Outcome::Restored { error } => events.push(restored(item, kept, *effect, error.clone()).into()),
        }
    }
    Decision::reply(()).events(events)
}

fn restored(item: &Item, kept: &Kept, effect: EffectId, error: Option<Error>) -> GcRestored {
    let (what, bytes, run) = (kept.what.clone(), kept.bytes, kept.run.clone());
    GcRestored { item: item.clone(), effect, what, bytes, run, error }
}

/// An item, and with a run what it alone had named.
pub(super) fn restore(state: &State, request: &RestoreRequest) -> Result<Decision, Error> {
    let kept = state.kept.get(&request.item).ok_or_else(|| not_in_trash(&request.item))?;
    check_trashed(&request.item, kept)?;
    if let Some(moving) = moving_with(state, &request.item) {
        return Err(on_its_way(moving));
    }
    let items = with_it(state, &request.item);
    let restoring = |item: &Item| GcRestoring { item: item.clone(), reason: request.reason.clone() }.into();
    let events: Vec<AnyEvent> = items.iter().map(restoring).collect();
    Ok(Decision::reply(RestoreReply { restored: items }).events(events))
}

/// The item, and of a run what else is in the trash because the run is.
fn with_it(state: &State, item: &Item) -> Vec<Item> {
    let trashed = because_of(state, item, Phase::Trashed).cloned();
    std::iter::once(item.clone()).chain(trashed).collect()
}

/// What is on its way into the trash because the run is: a run that came back without it would have lost it.
fn moving_with<'a>(state: &'a State, item: &'a Item) -> Option<&'a Item> {
    because_of(state, item, Phase::Moving).next()
}

/// What was collected because this run was, and has come so far.
fn because_of<'a>(state: &'a State, run: &'a Item, phase: Phase) -> impl Iterator<Item = &'a Item> {
    let named = move |kept: &Kept| kept.of.iter().any(|of| of.as_str() == run.id.as_str());
    let is_meant = move |item: &Item, kept: &Kept| {
        run.kind == ItemKind::Run && item.kind != ItemKind::Run && kept.phase == phase && named(kept)
    };
    state.kept.iter().filter(move |(item, kept)| is_meant(item, kept)).map(|(item, _)| item)
}

/// Into the trash or out of it, or about to be.
fn on_its_way(item: &Item) -> Error {
    let message = format!("{item} is on its way");
    Error::new(Code::Unavailable, "gc.moving", message).retry(Retry::After { after_ms: 100 })
}

fn not_in_trash(item: &Item) -> Error {
    Error::not_found("gc.not_in_trash", format!("{item} is not in the trash"))
        .help("eclosion gc trash; what was purged is gone, as eclosion gc log says")
}

fn check_trashed(item: &Item, kept: &Kept) -> Result<(), Error> {
    match kept.phase {
        Phase::Trashed => Ok(()),
        Phase::Moving | Phase::Restoring => Err(on_its_way(item)),
        Phase::Purging => Err(not_in_trash(item)),
    }
}

/// At most so many at a time as a plan decides; who asks for everything asks again. What is to come back stays.
pub(super) fn purge(state: &State, request: &PurgeRequest) -> Result<Decision, Error> {
    let items: Vec<&Item> = match &request.item {
        Some(item) if state.comes_back(item) => return Err(on_its_way(item)),
        Some(item) => {
            check_trashed(item, state.kept.get(item).ok_or_else(|| not_in_trash(item))?)?;
            vec![item]
        }
        None => {
            let trashed = state.trashed.iter().map(|(_, item)| item);
            trashed.filter(|item| !state.comes_back(item)).take(DECIDED_MAX).collect()
        }
    };
    let purging = |item: &&Item| {
        let (item, why) = ((*item).clone(), "the trash was emptied".into());
        GcPurging { item, rule: Rule::Asked, why, reason: request.reason.clone() }.into()
    };
    let events: Vec<AnyEvent> = items.iter().map(purging).collect();
    Ok(Decision::reply(events.len() as u64).events(events))
}

/// What is in the trash and was named again.
pub(super) fn named_again(state: &State) -> Vec<AnyEvent> {
    let is_trashed = |item: &&Item| state.kept.get(*item).is_some_and(|kept| kept.phase == Phase::Trashed);
    let is_whole = |item: &&Item| moving_with(state, item).is_none();
    let back: BTreeSet<Item> = state
        .wanted
        .iter()
        .filter(is_trashed)
        .filter(is_whole)
        .flat_map(|item| with_it(state, item))
        .collect();
    let reason = "it was named again while it was in the trash";
    back.into_iter().map(|item| GcRestoring { item, reason: reason.into() }.into()).collect()
}
