//! Flows written in Rust.
//!
//! ```
//! use eclosion_dag_tracker::Flow;
//!
//! let flow = Flow::new("demo")
//!     .code("/home/ada/flow")
//!     .parameter("seed", 7)
//!     .task("load", "steps:load")
//!     .with("seed", "${param.seed}")
//!     .task("train", "steps:train")
//!     .each(["logistic", "forest"])
//!     .with("table", "${load}")
//!     .with("model", "${item}")
//!     .retries(2)
//!     .timeout("2m")
//!     .build()?;
//! assert_eq!(flow.tasks.len(), 2);
//! # Ok::<(), eclosion_schemas::Error>(())
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use eclosion_schemas::Error;
use eclosion_schemas::flow::{Backoff, EnvironmentSpec, FLOW_SCHEMA, FlowSpec, Priority, TaskSpec};
use serde_json::Value;

use crate::plan::Plan;

/// A flow without a task, as yet.
#[derive(Debug, Clone)]
pub struct Flow {
    spec: FlowSpec,
    twice: Option<String>,
}

/// A flow whose last task is being described.
#[derive(Debug, Clone)]
pub struct Task {
    flow: Flow,
    name: String,
    spec: TaskSpec,
}

impl Flow {
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        let spec = FlowSpec {
            schema: FLOW_SCHEMA.into(),
            name: name.into(),
            description: String::new(),
            code: ".".into(),
            code_hash: String::new(),
            source: None,
            environment: EnvironmentSpec::default(),
            parameters: BTreeMap::new(),
            tasks: BTreeMap::new(),
            result: None,
            cache: None,
        };
        Self { spec, twice: None }
    }

    /// The root that modules are imported from.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.spec.code = code.into();
        self
    }

    #[must_use]
    pub fn environment(mut self, environment: EnvironmentSpec) -> Self {
        self.spec.environment = environment;
        self
    }

    #[must_use]
    pub fn parameter(mut self, name: impl Into<String>, default: impl Into<Value>) -> Self {
        self.spec.parameters.insert(name.into(), default.into());
        self
    }

    /// The version under which the results of all tasks are kept that name none of their own.
    #[must_use]
    pub fn cache(mut self, version: impl Into<String>) -> Self {
        self.spec.cache = Some(version.into());
        self
    }

    #[must_use]
    pub fn task(self, name: impl Into<String>, run: impl Into<String>) -> Task {
        let spec = TaskSpec { run: run.into(), ..TaskSpec::default() };
        Task { flow: self, name: name.into(), spec }
    }

    fn take(&mut self, name: String, spec: TaskSpec) {
        match self.spec.tasks.entry(name) {
            Entry::Vacant(place) => _ = place.insert(spec),
            Entry::Occupied(taken) => _ = self.twice.get_or_insert(taken.key().clone()),
        }
    }
}

impl Task {
    /// A keyword argument; `${…}` in texts are references.
    #[must_use]
    pub fn with(mut self, argument: impl Into<String>, value: impl Into<Value>) -> Self {
        self.spec.with.insert(argument.into(), value.into());
        self
    }

    /// One instance for each item: a list, `"${param.NAME}"` or `"${TASK}"`.
    #[must_use]
    pub fn each(mut self, items: impl Into<Value>) -> Self {
        self.spec.each = Some(items.into());
        self
    }

    /// The version under which its results are kept, or `"off"`.
    #[must_use]
    pub fn cache(mut self, version: impl Into<String>) -> Self {
        self.spec.cache = Some(version.into());
        self
    }

    /// It draws no random numbers: a seed that was set is no part of its content key.
    #[must_use]
    pub fn cache_without_seed(mut self) -> Self {
        self.spec.cache_seed = Some(false);
        self
    }

    #[must_use]
    pub fn after(mut self, task: impl Into<String>) -> Self {
        self.spec.after.push(task.into());
        self
    }

    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.spec.retries = retries;
        self
    }

    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.spec.backoff = backoff;
        self
    }

    /// `"30s"`, `"2m"`.
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<String>) -> Self {
        self.spec.timeout = Some(timeout.into());
        self
    }

    #[must_use]
    pub fn resource(mut self, name: impl Into<String>, amount: impl Into<Value>) -> Self {
        self.spec.resources.insert(name.into(), amount.into());
        self
    }

    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.spec.priority = priority;
        self
    }

    /// Ends this task and begins another.
    #[must_use]
    pub fn task(self, name: impl Into<String>, run: impl Into<String>) -> Task {
        self.end().task(name, run)
    }

    /// Ends this task, whose output is the run's result.
    #[must_use]
    pub fn result(mut self) -> Self {
        self.flow.spec.result = Some(self.name.clone());
        self
    }

    fn end(mut self) -> Flow {
        self.flow.take(self.name, self.spec);
        self.flow
    }

    /// Checks the flow with its default parameters.
    ///
    /// # Errors
    /// As [`Plan::compile`]; `flow.task` for a name used twice.
    pub fn build(self) -> Result<FlowSpec, Error> {
        let Flow { spec, twice } = self.end();
        if let Some(name) = twice {
            return Err(Error::invalid("flow.task", format!("two tasks are called `{name}`"))
                .help("give one of them another name, or use `each`"));
        }
        Plan::compile(&spec, &BTreeMap::new())?;
        Ok(spec)
    }
}
