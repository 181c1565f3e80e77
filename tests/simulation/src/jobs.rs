//! What clients want: random flows, their shape known to the checks.

use std::collections::BTreeMap;

use eclosion_dag_tracker::Flow;
use eclosion_schemas::flow::{Backoff, EnvironmentSpec, FlowSpec, Priority};
use eclosion_schemas::{Error, Tenant};
use serde_json::json;

use crate::code::CODE;
use crate::rng::Rng;

/// All that the machine of a simulation has for leases.
pub(crate) const CPU_MILLIS: u64 = 8_000;
pub(crate) const MEMORY_BYTES: u64 = 1_000;
/// A function that takes less than a millisecond, as a rule.
pub(crate) const QUICK: &str = "sim:quick";
/// An environment with this requirement cannot be built.
pub(crate) const UNRESOLVABLE: &str = "unresolvable";

#[derive(Debug)]
pub(crate) struct Job {
    pub flow: FlowSpec,
    pub tenant: Tenant,
    pub tasks: BTreeMap<String, Shape>,
    pub at_us: u64,
    pub cancel_at_us: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Shape {
    pub parents: Vec<String>,
    /// Instances, for a fan-out.
    pub width: Option<u32>,
}

impl Shape {
    /// The ids of its instances.
    pub(crate) fn instances(&self, name: &str) -> Vec<String> {
        match self.width {
            None => vec![name.to_owned()],
            Some(width) => (0..width).map(|index| format!("{name}[{index}]")).collect(),
        }
    }
}

impl Job {
    /// # Errors
    /// A flow that the DAG tracker would refuse: a mistake of this generator.
    pub(crate) fn random(rng: &mut Rng, number: usize, until_us: u64) -> Result<Self, Error> {
        let mut tasks: BTreeMap<String, Shape> = BTreeMap::new();
        let first = Flow::new(format!("job{number}")).code("/flow").environment(environment(rng));
        let mut flow = task(rng, first.task("t0", "sim:work"), &mut tasks, "t0");
        for index in 1..=rng.range(0, 7) {
            let name = format!("t{index}");
            flow = match rng.per_mille(150) {
                true => many(rng, flow.task(name.clone(), QUICK), &mut tasks, &name),
                false => task(rng, flow.task(name.clone(), "sim:work"), &mut tasks, &name),
            };
        }
        let mut spec = flow.build()?;
        // Results of some flows are kept, and used by others.
        if rng.per_mille(400) {
            spec.code_hash = CODE.into();
            spec.cache = Some("v1".into());
        }
        let tenant = Tenant::new(if rng.per_mille(500) { "ada" } else { "bob" });
        let at_us = rng.range(0, until_us);
        Ok(Self {
            flow: spec,
            tenant: tenant.map_err(|why| Error::internal("tenant", why.to_string()))?,
            tasks,
            at_us,
            cancel_at_us: rng.per_mille(150).then(|| at_us + rng.range(1_000, 2_000_000)),
        })
    }
}

/// More than there are workers, each quick.
fn many(
    rng: &mut Rng,
    task: eclosion_dag_tracker::builder::Task,
    tasks: &mut BTreeMap<String, Shape>,
    name: &str,
) -> eclosion_dag_tracker::builder::Task {
    let width = u32::try_from(rng.range(6, 20)).unwrap_or(6);
    let parents: Vec<_> = tasks.keys().next_back().cloned().into_iter().collect();
    let task = parents.iter().fold(task, |task, parent| task.after(parent.clone()));
    tasks.insert(name.to_owned(), Shape { parents, width: Some(width) });
    task.each(json!((0..width).collect::<Vec<_>>())).retries(2)
}

fn environment(rng: &mut Rng) -> EnvironmentSpec {
    let requirements: &[&str] = match rng.range(0, 20) {
        0 => &[UNRESOLVABLE],
        1..=5 => &["b"],
        _ => &[],
    };
    EnvironmentSpec {
        requirements: requirements.iter().map(ToString::to_string).collect(),
        ..EnvironmentSpec::default()
    }
}

fn task(
    rng: &mut Rng,
    mut task: eclosion_dag_tracker::builder::Task,
    tasks: &mut BTreeMap<String, Shape>,
    name: &str,
) -> eclosion_dag_tracker::builder::Task {
    let mut shape = Shape::default();
    for parent in tasks.keys() {
        if rng.per_mille(350) {
            shape.parents.push(parent.clone());
            task = match rng.per_mille(500) {
                true => task.with(parent.clone(), format!("${{{parent}}}")),
                false => task.after(parent.clone()),
            };
        }
    }
    if rng.per_mille(250) {
        let width = u32::try_from(rng.range(1, 5)).unwrap_or(1);
        shape.width = Some(width);
        task = task.each(json!((0..width).collect::<Vec<_>>()));
    }
    if rng.per_mille(250) {
        // Now and then more than there is.
        let memory = if rng.per_mille(40) { MEMORY_BYTES + 1 } else { rng.range(100, MEMORY_BYTES + 1) };
        task = task.resource("memory", json!(memory));
    }
    if rng.per_mille(150) {
        task = task.resource("cpu", json!(rng.range(2, CPU_MILLIS / 1_000 + 1)));
    }
    if rng.per_mille(300) {
        task = task.timeout("2s");
    }
    tasks.insert(name.to_owned(), shape);
    let class = [Priority::Interactive, Priority::Normal, Priority::Batch];
    task.retries(u32::try_from(rng.range(0, 3)).unwrap_or_default())
        .backoff(Backoff { initial_ms: rng.range(10, 500), factor: 2.0, max_ms: 2_000 })
        .priority(rng.pick(&class).copied().unwrap_or_default())
}
