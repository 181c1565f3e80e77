//! A list into instances: when the output that a task fans out over is known.

use eclosion_schemas::codec::elements;
use eclosion_schemas::{Error, Part, Payload, TaskId};

use super::fold::Fold;
use super::run::{Instance, Output, Phase, Run, instance_id};
use super::{Gone, Touch};
use crate::plan::{Each, INSTANCES_MAX};

/// The extension of one part, with its index behind it: `d6 01 00 00 00 07`.
const PART_MARKER: [u8; 2] = [0xd6, 1];

/// Replaces the stand-in of a fan-out over an output by one instance for each item; nothing to do otherwise.
///
/// # Errors
/// `flow.each` when the output is no list, `flow.too_large` when there are too many items.
pub(super) fn expand(run: &mut Run, task: usize, fold: &mut Fold<'_>) -> Result<(), Error> {
    let Each::Output(source) = run.plan.tasks[task].each else { return Ok(()) };
    if run.groups[task].expanded {
        return Ok(());
    }
    let name = &run.plan.tasks[task].name;
    let items = match &run.groups[source].output {
        Output::List(payloads) => payloads.to_vec(),
        Output::One(payload) => items(payload).ok_or_else(|| no_list(name, &run.plan.tasks[source].name))?,
        Output::None => Vec::new(),
    };
    let instances = run.instances() - 1 + items.len();
    if instances > INSTANCES_MAX {
        let message = format!(
            "`{name}` would bring the run to {instances} task instances, the limit is {INSTANCES_MAX}"
        );
        return Err(Error::invalid("flow.too_large", message).help("give each instance a batch of items"));
    }
    let named = items.into_iter().enumerate().filter_map(|(n, item)| Some((instance_id(name, n)?, item)));
    let instances: Vec<_> = named.map(|(id, item)| Instance::new(id, Some(item), fold.seq)).collect();
    let stand_in = run.replace_stand_in(task, instances);
    fold.touch(Touch::Gone(Gone { run: run.id.clone(), tasks: stand_in, head: false }));
    fold.touch(Touch::All(run.id.clone()));
    Ok(())
}

fn no_list(task: &str, source: &str) -> Error {
    Error::invalid(
        "flow.each",
        format!("`{task}` goes over the output of `{source}`, which is not a list of at most 32 KiB"),
    )
    .help(format!("let `{source}` return a short list, such as one of numbers or of file names"))
}

/// The items of a list, as slices of its bytes.
fn items(list: &Payload) -> Option<Vec<Payload>> {
    eclosion_schemas::codec::scan(&list.body).ok()?;
    let places = elements(&list.body).ok()??;
    Some(places.into_iter().map(|place| item(list.body.slice(place), &list.parts)).collect())
}

/// An item that is exactly one part brings that part; another may refer to any of them.
fn item(body: bytes::Bytes, parts: &[Part]) -> Payload {
    if parts.is_empty() {
        return Payload { body, parts: Vec::new() };
    }
    let sole =
        body.strip_prefix(&PART_MARKER).and_then(|index| Some(u32::from_be_bytes(index.try_into().ok()?)));
    match sole.and_then(|index| parts.get(index as usize)) {
        Some(part) => {
            let body = [&PART_MARKER[..], &[0; 4]].concat();
            Payload { body: body.into(), parts: vec![part.clone()] }
        }
        None => Payload { body, parts: parts.to_vec() },
    }
}

impl Run {
    /// Gives who stood in.
    fn replace_stand_in(&mut self, task: usize, instances: Vec<Instance>) -> Vec<TaskId> {
        let added = u32::try_from(instances.len()).unwrap_or(u32::MAX);
        let waiting = self.counts.entry(Phase::Waiting.state()).or_default();
        *waiting = *waiting + added - 1;
        if *waiting == 0 {
            self.counts.remove(&Phase::Waiting.state());
        }
        self.open = self.open + added - 1;
        let group = &mut self.groups[task];
        group.left = instances.len();
        group.expanded = true;
        let stood_in = std::mem::replace(&mut group.instances, instances);
        stood_in.into_iter().map(|instance| instance.id).collect()
    }
}
