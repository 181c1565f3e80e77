//! A plan: a flow that was checked, with its parameters filled in and its tasks in an order in which they can run.
//!
//! Compiling is pure and gives the same plan every time, so a run journals its flow and parameters and not its plan.
//! Refusals say what is wrong, where, and what to do: `flow.schema`, `flow.task`, `flow.function`, `flow.reference`,
//! `flow.parameter`, `flow.duration`, `flow.size`, `flow.cache`, `flow.cycle`, `flow.each`, `flow.limit`,
//! `flow.too_large`.
//!
//! Reading order: `template` (`${…}`), `units` (durations and sizes), `task` (one task's own checks), `order` (the
//! graph). Tasks stand in a plan by number; a later number never is needed by an earlier one.

mod order;
mod task;
mod template;
pub mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use eclosion_schemas::events::RunStarted;
use eclosion_schemas::flow::{Backoff, EnvironmentSpec, FLOW_SCHEMA, FlowSpec, Priority};
use eclosion_schemas::ops::run::TaskPlan;
use eclosion_schemas::ops::task::Limits;
use eclosion_schemas::suggest::hint;
use eclosion_schemas::{EnvironmentId, Error, Payload};
use serde_json::Value;

use crate::content;
pub(crate) use template::{Place, fill_item};

/// Instances of all tasks of a run together.
pub const INSTANCES_MAX: usize = 10_000;
/// Tasks in a flow, each fan-out counted once.
pub const TASKS_MAX: usize = 1_000;
/// A flow and its parameters, encoded: they travel in one event.
pub const FLOW_BYTES_MAX: usize = 60 * 1024;

/// See the head of this file.
#[derive(PartialEq)]
pub struct Plan {
    pub(crate) flow: String,
    pub(crate) code: String,
    pub(crate) code_hash: String,
    pub(crate) spec: EnvironmentSpec,
    pub(crate) environment: EnvironmentId,
    pub(crate) parameters: BTreeMap<String, Value>,
    /// Of the parameters, those that differ from the flow's own.
    pub(crate) set: Vec<String>,
    /// What the flow was read from.
    pub(crate) source: Option<String>,
    pub(crate) seed: u64,
    /// Somebody chose the seed; otherwise it follows from the content.
    pub(crate) seed_is_set: bool,
    pub(crate) content: String,
    pub(crate) tasks: Vec<Task>,
    pub(crate) by_name: BTreeMap<String, usize>,
    /// The task whose output is the run's result.
    pub(crate) result: Option<usize>,
}

/// One task of a plan; others are named by their number.
#[derive(Debug, PartialEq)]
pub(crate) struct Task {
    pub name: String,
    pub function: String,
    pub arguments: Vec<(String, Source)>,
    pub each: Each,
    /// In order, without repetition.
    pub needs: Vec<usize>,
    pub dependants: Vec<usize>,
    pub retries: u32,
    pub backoff: Backoff,
    pub timeout_ms: Option<u64>,
    pub lease: BTreeMap<String, u64>,
    pub limits: Option<Limits>,
    pub priority: Priority,
    /// The version under which results are kept; none: they are not.
    pub cache: Option<String>,
    /// A seed that was set is part of its content key.
    pub cache_seed: bool,
}

/// Where an argument comes from.
#[derive(Debug, PartialEq)]
pub(crate) enum Source {
    Fixed(Payload),
    Item,
    Around(Value),
    Output(usize),
}

/// How many instances a task has.
#[derive(Debug, PartialEq)]
pub(crate) enum Each {
    /// One, named like the task.
    One,
    /// One for each item of a list that was known when the plan was made.
    Items(Arc<[Value]>),
    /// One for each item of a list that a task gives out.
    Output(usize),
}

/// Refuses a flow with a task that asks for more than there ever is, by arbitration's keys.
///
/// # Errors
/// `flow.impossible` names the task, what it asks for and how much there is.
pub fn check_ceilings(flow: &FlowSpec, ceilings: &BTreeMap<String, u64>) -> Result<(), Error> {
    task::check_ceilings(flow, ceilings)
}

impl Plan {
    /// Checks a flow with its parameters.
    ///
    /// # Errors
    /// `invalid`, with one of the reasons at the head of this file. Where several things are wrong, the same one
    /// every time.
    pub fn compile(flow: &FlowSpec, set: &BTreeMap<String, Value>) -> Result<Self, Error> {
        check_head(flow)?;
        let parameters = merged(flow, set)?;
        check_size(flow, &parameters)?;
        let environment = content::environment_id(&flow.environment);
        let (content, seed) = content::content(flow, &environment, &parameters);
        let identity = Identity { environment, parameters, seed, content };
        Self::build(flow, identity)
    }

    /// The plan of a run that was accepted.
    ///
    /// # Errors
    /// As [`Plan::compile`], when another version accepted what this one does not.
    pub fn of(started: &RunStarted) -> Result<Self, Error> {
        let identity = Identity {
            environment: started.environment.clone(),
            parameters: started.parameters.clone(),
            seed: started.seed,
            content: started.content.clone(),
        };
        Self::build(&started.flow, identity)
    }

    /// A plan without tasks, for a run whose flow this version refuses.
    pub(crate) fn empty(started: &RunStarted) -> Self {
        let flow = FlowSpec { tasks: BTreeMap::new(), result: None, ..started.flow.clone() };
        let identity = Identity {
            environment: started.environment.clone(),
            parameters: started.parameters.clone(),
            seed: started.seed,
            content: started.content.clone(),
        };
        Self::assemble(&flow, identity, Vec::new(), BTreeMap::new(), None)
    }

    fn build(flow: &FlowSpec, identity: Identity) -> Result<Self, Error> {
        let mut drafts = BTreeMap::new();
        for (name, spec) in &flow.tasks {
            drafts
                .insert(name.as_str(), task::draft(name, spec, &identity.parameters, flow.cache.as_deref())?);
        }
        let ordered: Vec<String> =
            order::order(&resolved_needs(&drafts)?)?.into_iter().map(str::to_owned).collect();
        let by_name: BTreeMap<String, usize> = ordered.iter().cloned().zip(0..).collect();
        let mut tasks = Vec::with_capacity(ordered.len());
        for name in &ordered {
            if let Some(draft) = drafts.remove(name.as_str()) {
                tasks.push(draft.number(&by_name));
            }
        }
        connect(&mut tasks);
        check_instances(&tasks)?;
        let result = result_task(flow, &tasks, &by_name)?;
        Ok(Self::assemble(flow, identity, tasks, by_name, result))
    }

    fn assemble(
        flow: &FlowSpec,
        identity: Identity,
        tasks: Vec<Task>,
        by_name: BTreeMap<String, usize>,
        result: Option<usize>,
    ) -> Self {
        let Identity { environment, parameters, seed, content } = identity;
        let is_set = |(name, value): &(&String, &Value)| flow.parameters.get(*name) != Some(*value);
        let set = parameters.iter().filter(is_set).map(|(name, _)| name.clone()).collect();
        Self {
            flow: flow.name.clone(),
            code: flow.code.clone(),
            code_hash: flow.code_hash.clone(),
            spec: flow.environment.clone(),
            environment,
            seed_is_set: content::seed_set(&parameters).is_some(),
            parameters,
            set,
            source: flow.source.clone(),
            seed,
            content,
            tasks,
            by_name,
            result,
        }
    }

    /// The hash of flow, code, environment, parameters and seed.
    #[must_use]
    pub fn content(&self) -> &str {
        &self.content
    }

    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    #[must_use]
    pub fn environment(&self) -> &EnvironmentId {
        &self.environment
    }

    /// What `run.validate` shows, in an order in which the tasks can run.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskPlan> {
        let show = |task: &Task| TaskPlan {
            task: task.name.clone(),
            function: task.function.clone(),
            needs: self.names(&task.needs),
            instances: match &task.each {
                Each::Items(items) => u32::try_from(items.len()).ok(),
                Each::One | Each::Output(_) => None,
            },
        };
        self.tasks.iter().map(show).collect()
    }

    fn names(&self, tasks: &[usize]) -> Vec<String> {
        tasks.iter().filter_map(|task| self.tasks.get(*task)).map(|task| task.name.clone()).collect()
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Plan").field(&self.content).finish()
    }
}

/// What makes a run this run and no other.
struct Identity {
    environment: EnvironmentId,
    parameters: BTreeMap<String, Value>,
    seed: u64,
    content: String,
}

fn check_head(flow: &FlowSpec) -> Result<(), Error> {
    if flow.schema != FLOW_SCHEMA {
        return Err(Error::invalid(
            "flow.schema",
            format!("this version does not know the schema `{}`", flow.schema),
        )
        .help(format!("write schema = \"{FLOW_SCHEMA}\"")));
    }
    if flow.name.is_empty() || flow.name.len() > 128 || flow.name.chars().any(char::is_control) {
        return Err(Error::invalid("flow.schema", "a flow's name has 1 to 128 printable characters")
            .help("write name = \"…\""));
    }
    if flow.tasks.is_empty() {
        return Err(Error::invalid("flow.task", "the flow has no task")
            .help("add [tasks.NAME] with run = \"module:function\""));
    }
    if flow.tasks.len() > TASKS_MAX {
        let message = format!("the flow has {} tasks, the limit is {TASKS_MAX}", flow.tasks.len());
        return Err(
            Error::invalid("flow.too_large", message).help("use `each` where tasks differ by one value only")
        );
    }
    Ok(())
}

/// The flow's defaults with what the caller set.
fn merged(flow: &FlowSpec, set: &BTreeMap<String, Value>) -> Result<BTreeMap<String, Value>, Error> {
    let mut parameters = flow.parameters.clone();
    for (name, value) in set {
        let Some(default) = parameters.get_mut(name) else {
            return Err(Error::invalid("flow.parameter", format!("the flow has no parameter `{name}`"))
                .help(hint(name, flow.parameters.keys().map(String::as_str))));
        };
        if !fits(default, value) {
            let (wanted, given) = (kind(default), kind(value));
            let message = format!("parameter `{name}` is {wanted}, {value} is {given}");
            return Err(Error::invalid("flow.parameter", message)
                .help(format!("its default is {default}: --set {name}={default}")));
        }
        *default = value.clone();
    }
    Ok(parameters)
}

/// A whole number may stand for a decimal one, and anything for a parameter without a default.
fn fits(default: &Value, value: &Value) -> bool {
    match (default, value) {
        (Value::Null, _) => true,
        (Value::Number(default), Value::Number(value)) => default.is_f64() || !value.is_f64(),
        _ => std::mem::discriminant(default) == std::mem::discriminant(value),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "a whole number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

fn check_size(flow: &FlowSpec, parameters: &BTreeMap<String, Value>) -> Result<(), Error> {
    let encoded = rmp_serde::to_vec_named(&(flow, parameters))
        .map_err(|why| Error::invalid("flow.schema", format!("the flow cannot be encoded: {why}")))?;
    if encoded.len() > FLOW_BYTES_MAX {
        let message =
            format!("flow and parameters need {} bytes, the limit is {FLOW_BYTES_MAX}", encoded.len());
        return Err(Error::invalid("flow.too_large", message)
            .help("read large values from a file inside a task and pass its path as a parameter"));
    }
    Ok(())
}

fn resolved_needs<'a>(drafts: &'a BTreeMap<&'a str, task::Draft>) -> Result<order::Needs<'a>, Error> {
    let mut needs = order::Needs::new();
    for (name, draft) in drafts {
        let mut needed = BTreeSet::new();
        for (key, need) in draft.references() {
            let Some((known, _)) = drafts.get_key_value(need) else {
                return Err(Error::invalid(
                    "flow.reference",
                    format!("{key} of task `{name}`: there is no task `{need}`"),
                )
                .help(hint(need, drafts.keys().copied())));
            };
            needed.insert(*known);
        }
        needs.insert(*name, needed);
    }
    Ok(needs)
}

fn connect(tasks: &mut [Task]) {
    for number in 0..tasks.len() {
        for need in tasks[number].needs.clone() {
            tasks[need].dependants.push(number);
        }
    }
}

fn check_instances(tasks: &[Task]) -> Result<(), Error> {
    let known: usize = tasks.iter().map(Task::instances_known).sum();
    if known > INSTANCES_MAX {
        return Err(Error::invalid(
            "flow.too_large",
            format!("the run would have {known} task instances, the limit is {INSTANCES_MAX}"),
        )
        .help("give each instance a batch of items"));
    }
    Ok(())
}

impl Task {
    fn instances_known(&self) -> usize {
        match &self.each {
            Each::Items(items) => items.len(),
            Each::One | Each::Output(_) => 1,
        }
    }

    pub(crate) fn is_fan_out(&self) -> bool {
        self.each != Each::One
    }
}

fn result_task(
    flow: &FlowSpec,
    tasks: &[Task],
    by_name: &BTreeMap<String, usize>,
) -> Result<Option<usize>, Error> {
    let Some(name) = &flow.result else {
        let mut last = tasks.iter().enumerate().filter(|(_, task)| task.dependants.is_empty());
        let only = last.next().filter(|_| last.next().is_none());
        return Ok(only.filter(|(_, task)| !task.is_fan_out()).map(|(number, _)| number));
    };
    let Some(number) = by_name.get(name) else {
        return Err(Error::invalid("flow.reference", format!("result: there is no task `{name}`"))
            .help(hint(name, by_name.keys().map(String::as_str))));
    };
    if tasks.get(*number).is_some_and(Task::is_fan_out) {
        return Err(Error::invalid(
            "flow.task",
            format!("result: `{name}` is a fan-out and has many outputs"),
        )
        .help(format!("add a task that takes \"${{{name}}}\" and name that one")));
    }
    Ok(Some(*number))
}

#[cfg(test)]
mod tests;
