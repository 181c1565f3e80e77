//! Reruns: which results of a finished run a new one takes over, and why the others are computed.
//!
//! A task is computed if it was named, if it is not what it was (function, arguments, seed; code and environment unless
//! the caller keeps them), if it has no result, or if it needs one that is computed. A fan-out of which only some
//! instances have a result is taken over in part. The new run records the tasks that it takes over; the results
//! themselves are recalled when their turn comes (`reuse`), so one that was collected meanwhile is computed then, and
//! what was made of it with it.
//!
//! Code is told apart by the hash of its root: any edit below it makes every task another.

use std::collections::{BTreeMap, BTreeSet};

use eclosion_kernel::core::{Decision, Reads};
use eclosion_kernel::journal::EVENT_BYTES_MAX;
use eclosion_schemas::events::{RerunOf, RunStarted};
use eclosion_schemas::ops::rerun::{RerunFate, RerunReply, RerunRequest, RerunStep};
use eclosion_schemas::ops::run::RunRequest;
use eclosion_schemas::suggest::hint;
use eclosion_schemas::{Code, Error, Retry, RunId, TaskId};
use serde_json::Value;

use super::State;
use super::admission::Door;
use super::decide::{fresh_id, known_key, other_content};
use super::run::{Instance, Phase, Run};
use crate::plan::{Each, Plan, Source, Task};
use crate::{rows, view};

/// Of a record, beside flow, parameters and the names in it.
const HEAD_BYTES: usize = 1_024;

pub(super) fn rerun(
    door: &Door,
    state: &State,
    reads: &Reads,
    request: &RerunRequest,
    trace: Option<&str>,
) -> Result<Decision, Error> {
    let older;
    let source = match state.run(&request.run) {
        Some(run) => run,
        None => {
            older = rows::restored(reads, &request.run)
                .ok_or_else(|| view::no_run(state, reads, &request.run))?;
            &older
        }
    };
    check_finished(source)?;
    let started = recorded(state, reads, &request.run)?;
    let flow = request.flow.clone().unwrap_or_else(|| started.flow.clone());
    let plan = Plan::compile(&flow, &set(source, &flow.parameters, request))?;
    check_named(&request.from, &plan, source)?;
    let steps = Comparison { source, plan: &plan, request }.steps();
    if let Some(key) = &request.idem
        && let Some((run, content)) = known_key(state, reads, key)
    {
        return match content == plan.content {
            true => Ok(Decision::reply(RerunReply { run: Some(run), attached: true, steps })),
            false => Err(other_content(key, &run)),
        };
    }
    if request.dry_run {
        return Ok(Decision::reply(RerunReply { run: None, attached: false, steps }));
    }
    if steps.iter().all(|step| step.fate == RerunFate::Taken) {
        return Err(complete(&request.run));
    }
    door.admit(state)?;
    let taken = steps.iter().filter(|step| step.fate != RerunFate::Computed);
    let (run, from) = (request.run.clone(), request.from.clone());
    let rerun_of = RerunOf { run, from, taken: taken.map(|step| step.task.clone()).collect() };
    let run = fresh_id(state, reads);
    let event = RunStarted {
        run: run.clone(),
        flow,
        parameters: plan.parameters.clone(),
        seed: plan.seed,
        content: plan.content.clone(),
        environment: plan.environment.clone(),
        tenant: source.tenant.clone(),
        idem: request.idem.clone(),
        no_cache: false,
        rerun_of: Some(Box::new(rerun_of)),
        trace: trace.map(str::to_owned),
    };
    check_size(&event)?;
    Ok(Decision::reply(RerunReply { run: Some(run), attached: false, steps }).event(event))
}

/// A run as it was started.
pub(super) fn recorded(state: &State, reads: &Reads, run: &RunId) -> Result<RunStarted, Error> {
    rows::started(reads, run).ok_or_else(|| match state.run(run) {
        // It stands in the journal and has not reached its row.
        Some(_) => Error::new(Code::Unavailable, "run.unwritten", format!("run {run} is being written"))
            .retry(Retry::After { after_ms: 50 }),
        None => view::no_run(state, reads, run),
    })
}

pub(super) fn recorded_reply(state: &State, reads: &Reads, request: &RunRequest) -> Result<Decision, Error> {
    let RunStarted { flow, parameters, .. } = recorded(state, reads, &request.run)?;
    Ok(Decision::reply(eclosion_schemas::ops::rerun::RecordedReply { flow, parameters }))
}

fn check_finished(run: &Run) -> Result<(), Error> {
    if run.state.is_final() {
        return Ok(());
    }
    let message = format!("run {} has not finished; only a finished run is run again", run.id);
    Err(Error::new(Code::Conflict, "run.unfinished", message)
        .help(format!("eclosion attach {0}, or eclosion runs cancel {0}", run.id)))
}

fn complete(run: &RunId) -> Error {
    let message =
        format!("every result of run {run} is there and made of the same; nothing would be computed");
    Error::new(Code::Conflict, "run.complete", message)
        .help(format!("name the step to begin with: eclosion rerun {run} --from TASK"))
}

/// What the run was given and the flow still knows, then what is said now.
fn set(source: &Run, known: &BTreeMap<String, Value>, request: &RerunRequest) -> BTreeMap<String, Value> {
    let old = &source.plan;
    let given = old.set.iter().filter(|name| known.contains_key(*name));
    let given = given.filter_map(|name| Some((name.clone(), old.parameters.get(name)?.clone())));
    given.chain(request.set.clone()).collect()
}

fn check_named(named: &[TaskId], plan: &Plan, source: &Run) -> Result<(), Error> {
    for name in named {
        if !plan.by_name.contains_key(name.as_str()) && source.slot(name).is_none() {
            let message = format!("run {} has no task `{name}`", source.id);
            let known = plan.by_name.keys().map(String::as_str);
            return Err(Error::not_found("run.task", message).help(hint(name.as_str(), known)));
        }
    }
    Ok(())
}

fn check_size(event: &RunStarted) -> Result<(), Error> {
    let bytes = rmp_serde::to_vec_named(event).map_or(usize::MAX, |bytes| bytes.len());
    if bytes + HEAD_BYTES <= EVENT_BYTES_MAX {
        return Ok(());
    }
    let message =
        format!("the flow and the names of what is taken over need {bytes} bytes, which is too much");
    Err(Error::invalid("flow.too_large", message).help("run the flow as a whole, with `cache` in its tasks"))
}

/// The run that was, and the plan of the one that is to be.
struct Comparison<'a> {
    source: &'a Run,
    plan: &'a Plan,
    request: &'a RerunRequest,
}

impl Comparison<'_> {
    fn steps(&self) -> Vec<RerunStep> {
        let mut computed: BTreeSet<usize> = BTreeSet::new();
        let mut steps = Vec::with_capacity(self.plan.tasks.len());
        for (number, task) in self.plan.tasks.iter().enumerate() {
            let step = self.step(task, &computed);
            if step.fate != RerunFate::Taken {
                computed.insert(number);
            }
            steps.push(step);
        }
        steps
    }

    fn step(&self, task: &Task, computed: &BTreeSet<usize>) -> RerunStep {
        let step = |fate, taken, why: String| RerunStep { task: task.name.clone(), fate, taken, why };
        if let Some(why) = self.is_another(task) {
            return step(RerunFate::Computed, 0, why);
        }
        if let Some(need) = task.needs.iter().find(|need| computed.contains(need)) {
            let need = &self.plan.tasks[*need].name;
            return step(RerunFate::Computed, 0, format!("it needs `{need}`, which is computed"));
        }
        let (there, all) = self.committed(task);
        match there {
            0 => step(RerunFate::Computed, 0, "it has no result".into()),
            _ if there < all => {
                step(RerunFate::Partly, there, format!("{there} of {all} have a result that is taken over"))
            }
            _ => step(RerunFate::Taken, there, "its result is there and made of the same".into()),
        }
    }

    /// Why no result of the old run can be that of this task.
    fn is_another(&self, task: &Task) -> Option<String> {
        if self.request.from.iter().any(|named| named.as_str() == task.name) {
            return Some("it was named".into());
        }
        let (old, new) = (&self.source.plan, self.plan);
        let Some(was) = old.by_name.get(&task.name).and_then(|number| old.tasks.get(*number)) else {
            return Some(format!("run {} had no such task", self.source.id));
        };
        if was.function != task.function {
            return Some(format!("it was {}", was.function));
        }
        if old.code_hash != new.code_hash && !self.request.keep {
            return Some("its code changed (--keep takes its result over)".into());
        }
        if old.environment != new.environment && !self.request.keep {
            return Some("its environment changed (--keep takes its result over)".into());
        }
        if !self.same_each(&was.each, &task.each) {
            return Some("what it fans out over changed".into());
        }
        if let Some(name) = self.other_argument(was, task) {
            return Some(format!("argument `{name}` changed"));
        }
        let is_seed_another = old.seed_is_set != new.seed_is_set || (new.seed_is_set && old.seed != new.seed);
        is_seed_another.then(|| "the seed changed".into())
    }

    fn same_each(&self, was: &Each, is: &Each) -> bool {
        match (was, is) {
            (Each::Output(was), Each::Output(is)) => self.same_task(*was, *is),
            (was, is) => was == is,
        }
    }

    fn other_argument<'a>(&self, was: &'a Task, is: &'a Task) -> Option<&'a str> {
        let old: BTreeMap<&str, &Source> =
            was.arguments.iter().map(|(name, source)| (name.as_str(), source)).collect();
        let new: BTreeMap<&str, &Source> =
            is.arguments.iter().map(|(name, source)| (name.as_str(), source)).collect();
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        names.into_iter().find(|name| match (old.get(name), new.get(name)) {
            (Some(Source::Output(was)), Some(Source::Output(is))) => !self.same_task(*was, *is),
            (was, is) => was != is,
        })
    }

    fn same_task(&self, was: usize, is: usize) -> bool {
        let old = self.source.plan.tasks.get(was).map(|task| &task.name);
        old.is_some() && old == self.plan.tasks.get(is).map(|task| &task.name)
    }

    /// Instances with a result that is not to be computed, and all of them.
    fn committed(&self, task: &Task) -> (u32, u32) {
        let number = self.source.plan.by_name.get(&task.name);
        let Some(group) = number.and_then(|number| self.source.groups.get(*number)) else { return (0, 0) };
        let is_there = |instance: &&Instance| {
            instance.phase == Phase::Succeeded && !self.request.from.contains(&instance.id)
        };
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        // An empty fan-out has nothing to take over and nothing to compute; its stand-in was replaced by nobody.
        if group.instances.is_empty() && group.expanded {
            return (1, 1);
        }
        (count(group.instances.iter().filter(is_there).count()), count(group.instances.len()))
    }
}
