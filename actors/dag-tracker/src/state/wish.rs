//! The wish for one attempt: which function, with which arguments, in which environment.

use std::collections::BTreeMap;

use eclosion_schemas::ops::pool::Wish;
use eclosion_schemas::ops::task::{Argument, Execute};
use eclosion_schemas::{Attempt, EffectId, Error, Fence, Payload, Timestamp};
use serde_json::Value;

use super::run::{Instance, Output, Run, Slot};
use crate::content;
use crate::plan::{Each, Place, Source, Task, fill_item};

impl Run {
    pub(super) fn wish_for(&self, slot: Slot, id: EffectId, ready_at: Timestamp) -> Result<Wish, Error> {
        let (task, instance) = self.found(slot)?;
        let plan = &self.plan;
        Ok(Wish {
            id,
            execute: self.execute(slot, Attempt(instance.attempt.0 + 1), Fence::default())?,
            environment: plan.environment.clone(),
            spec: plan.spec.clone(),
            tenant: self.tenant.clone(),
            priority: task.priority,
            ready_at,
        })
    }

    /// Outputs are shared, never encoded again; the only values that are built here are texts around an item.
    pub(super) fn execute(&self, slot: Slot, attempt: Attempt, fence: Fence) -> Result<Execute, Error> {
        let (task, instance) = self.found(slot)?;
        let plan = &self.plan;
        Ok(Execute {
            run: self.id.clone(),
            task: instance.id.clone(),
            attempt,
            fence,
            function: task.function.clone(),
            code: plan.code.clone(),
            code_hash: plan.code_hash.clone(),
            arguments: self.arguments(task, instance, slot.index)?,
            seed: content::task_seed(plan.seed, &instance.id),
            idempotency_key: content::idempotency_key(&self.id, &instance.id, &plan.content),
            timeout_ms: task.timeout_ms,
            lease: task.lease.clone(),
            limits: task.limits,
            trace: self.trace.clone(),
            timings: false,
            keeps: task.cache.is_some() && !plan.code_hash.is_empty(),
        })
    }

    fn found(&self, slot: Slot) -> Result<(&Task, &Instance), Error> {
        let found = self.task(slot).zip(self.instance(slot));
        found.ok_or_else(|| Error::internal("dag.slot", "a task that is not in the plan"))
    }

    fn arguments(
        &self,
        task: &Task,
        instance: &Instance,
        index: u32,
    ) -> Result<BTreeMap<String, Argument>, Error> {
        let named = task
            .arguments
            .iter()
            .map(|(name, source)| Ok((name.clone(), self.argument(name, source, (task, instance), index)?)));
        named.collect()
    }

    pub(super) fn argument(
        &self,
        name: &str,
        source: &Source,
        (task, instance): (&Task, &Instance),
        index: u32,
    ) -> Result<Argument, Error> {
        Ok(match source {
            Source::Fixed(payload) => Argument::Value { payload: payload.clone() },
            Source::Item => Argument::Value { payload: item_payload(task, instance, index) },
            Source::Around(value) => {
                let place = format_args!("argument `{name}` of `{}`", instance.id);
                let item = item_value(task, instance, index, place)?;
                Argument::Value { payload: Payload::of(&fill_item(value, &item, place)?) }
            }
            Source::Output(task) => match self.groups.get(*task).map(|group| &group.output) {
                Some(Output::One(payload)) => Argument::Value { payload: payload.clone() },
                Some(Output::List(payloads)) => Argument::List { payloads: payloads.clone() },
                Some(Output::None) | None => Argument::Value { payload: Payload::of(&()) },
            },
        })
    }
}

fn item_payload(task: &Task, instance: &Instance, index: u32) -> Payload {
    match (&instance.item, &task.each) {
        (Some(payload), _) => payload.clone(),
        (None, Each::Items(items)) => Payload::of(&items.get(index as usize)),
        (None, _) => Payload::of(&()),
    }
}

fn item_value(task: &Task, instance: &Instance, index: u32, place: Place<'_>) -> Result<Value, Error> {
    match (&instance.item, &task.each) {
        (Some(payload), _) => eclosion_schemas::codec::decode(&payload.body).map_err(|why| {
            Error::invalid("flow.each", format!("{place}: the item cannot stand inside another value: {why}"))
                .help("pass it as an argument of its own: with = { item = \"${item}\" }")
        }),
        (None, Each::Items(items)) => Ok(items.get(index as usize).cloned().unwrap_or_default()),
        (None, _) => Ok(Value::Null),
    }
}
