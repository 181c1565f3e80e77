//! The pure core of the artifact store: answers from rows, and knows which runs are live and what is pinned.
//!
//! What steps have made follows from the records of others; it decides only what people say about it: tags and pins
//! ([`labels`]). Everything that is finished is found in rows; memory holds the runs that may still commit, so that a
//! name which is not there *yet* is told apart from one which will never be, and the pins.

use std::collections::BTreeMap;

use eclosion_kernel::core::{AnyEvent, Core, Decision, Query, Reads};
use eclosion_kernel::journal::Record;
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::events::{
    ArtifactPinned, ArtifactTagged, ArtifactUnpinned, ArtifactUntagged, Event, RunFinished, RunStarted,
    StepCommitted, StepReused,
};
use eclosion_schemas::ops::artifact::{
    GetReply, GetRequest, LineageReply, ListReply, ListRequest, PinRequest, PinsRequest, TagRequest,
    TagsRequest, UntagRequest,
};
use eclosion_schemas::view::ArtifactView;
use eclosion_schemas::{EffectId, RunId, Timestamp};
use serde::Serialize;

use crate::files::{
    ObjectsReply, ObjectsRequest, PageReply, PageRequest, ResolveReply, ResolveRequest, ViewsReply,
    ViewsRequest,
};
use crate::view::Made;
use crate::{lineage, rows};

mod labels;

/// What may still commit.
#[derive(Debug, Default, Clone, Serialize)]
pub struct State {
    live: BTreeMap<RunId, Live>,
    /// By artifact `RUN/TASK`, then by holder.
    pins: BTreeMap<String, BTreeMap<String, Pin>>,
    #[serde(skip)]
    outstanding: BTreeMap<EffectId, Effect>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Live {
    pub flow: String,
    pub artifacts: u64,
}

/// Why and since when somebody holds an artifact.
#[derive(Debug, Clone, Serialize)]
pub struct Pin {
    pub reason: String,
    pub since: Timestamp,
}

impl State {
    /// A run that may still commit.
    #[must_use]
    pub fn live(&self, run: &RunId) -> Option<&Live> {
        self.live.get(run)
    }

    /// Whether anybody holds this artifact, `RUN/TASK`.
    #[must_use]
    pub fn is_pinned(&self, artifact: &str) -> bool {
        self.pins.contains_key(artifact)
    }

    fn holders(&self, artifact: &str) -> Vec<String> {
        self.pins.get(artifact).map(|holders| holders.keys().cloned().collect()).unwrap_or_default()
    }

    fn pins_count(&self) -> usize {
        self.pins.values().map(BTreeMap::len).sum()
    }
}

#[derive(Debug)]
pub enum Command {
    List(ListRequest),
    Get(GetRequest),
    Lineage(GetRequest),
    Resolve(ResolveRequest),
    Objects(ObjectsRequest),
    Page(PageRequest),
    Views(ViewsRequest),
    Tag(TagRequest),
    Untag(UntagRequest),
    Tags(TagsRequest),
    Pin(PinRequest),
    Unpin(PinRequest),
    Pins(PinsRequest),
}

/// It owes nobody anything.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {}

#[derive(Debug, Clone, Copy)]
pub struct Artifacts;

impl Core for Artifacts {
    type State = State;
    type Volatile = ();
    type Command = Command;
    type Effect = Effect;

    const DECIDES: &'static [&'static str] =
        &[ArtifactPinned::KIND, ArtifactUnpinned::KIND, ArtifactTagged::KIND, ArtifactUntagged::KIND];
    const FOLDS: &'static [&'static str] = &[
        RunStarted::KIND,
        StepCommitted::KIND,
        StepReused::KIND,
        RunFinished::KIND,
        ArtifactPinned::KIND,
        ArtifactUnpinned::KIND,
        ArtifactTagged::KIND,
        ArtifactUntagged::KIND,
    ];

    fn queries(&self, command: &Command) -> Vec<Query> {
        match command {
            Command::List(request) => vec![rows::by_prefix(&list_prefix(request)), rows::collected_runs("")],
            Command::Get(request) => {
                let mut queries: Vec<_> = rows::by_name(&request.name).into();
                queries.push(rows::collected_runs(run_of(&request.name)));
                queries
            }
            Command::Lineage(request) => {
                let run = run_of(&request.name);
                vec![rows::lineage_of(run), rows::by_prefix(&format!("{run}/")), rows::collected_runs(run)]
            }
            Command::Resolve(request) => match (request.name.split_once('@'), flow_name(&request.name)) {
                (Some((path, tag)), _) => vec![rows::tag(path, tag)],
                (None, Some((flow, task))) => vec![rows::runs_of(flow, lineage::base(task))],
                (None, None) => vec![rows::object(&request.name)],
            },
            Command::Objects(request) => vec![rows::objects(request.shard)],
            Command::Page(request) => rows::page(request.before),
            Command::Views(request) => rows::views(&request.names),
            Command::Tag(TagRequest { name, .. }) => {
                let [artifact, _] = rows::by_name(name);
                vec![artifact, rows::lineage_of(run_of(name))]
            }
            Command::Untag(request) => vec![rows::tag(&request.path, &request.tag)],
            Command::Tags(request) => vec![rows::tags(request)],
            Command::Pin(PinRequest { name, .. }) | Command::Unpin(PinRequest { name, .. }) => {
                let [artifact, _] = rows::by_name(name);
                vec![artifact]
            }
            Command::Pins(_) => Vec::new(),
        }
    }

    fn decide(
        &self,
        state: &State,
        (): &mut (),
        reads: &Reads,
        command: &Command,
        _: Timestamp,
    ) -> Result<Decision, Error> {
        match command {
            Command::List(request) => Ok(Decision::reply(list(reads, request))),
            Command::Get(request) => get(state, reads, &request.name).map(Decision::reply),
            Command::Lineage(request) => trace(state, reads, &request.name).map(Decision::reply),
            Command::Resolve(request) => Ok(Decision::reply(resolve(reads, &request.name))),
            Command::Objects(request) => {
                let objects = rows::found_objects(reads, request.shard);
                Ok(Decision::reply(ObjectsReply { objects }))
            }
            Command::Page(request) => {
                let (names, before) = rows::found_page(reads, request.before);
                Ok(Decision::reply(PageReply { names, before }))
            }
            Command::Views(request) => {
                Ok(Decision::reply(ViewsReply { views: rows::found_views(reads, &request.names) }))
            }
            Command::Tag(request) => labels::tag(state, reads, request),
            Command::Untag(request) => labels::untag(reads, request),
            Command::Tags(request) => Ok(Decision::reply(labels::tags(reads, request))),
            Command::Pin(request) => labels::pin(state, reads, request),
            Command::Unpin(request) => labels::unpin(state, reads, request),
            Command::Pins(request) => Ok(Decision::reply(labels::pins(state, request))),
        }
    }

    fn settle(&self, _: &State, (): &mut (), _: &Reads, _: Timestamp) -> Vec<AnyEvent> {
        Vec::new()
    }

    fn apply(&self, state: &mut State, record: &Record) {
        if let Some(event) = record.event::<RunStarted>() {
            let live = Live { flow: event.flow.name.clone(), artifacts: 0 };
            state.live.insert(event.run.clone(), live);
        } else if let Some(event) = Made::by(record) {
            if let Some(live) = state.live.get_mut(event.run()) {
                live.artifacts += 1;
            }
        } else if let Some(event) = record.event::<RunFinished>() {
            state.live.remove(&event.run);
        } else if let Some(event) = record.event::<ArtifactPinned>() {
            let pin = Pin { reason: event.reason.clone(), since: record.at };
            let name = format!("{}/{}", event.run, event.task);
            state.pins.entry(name).or_default().insert(event.holder.clone(), pin);
        } else if let Some(event) = record.event::<ArtifactUnpinned>() {
            unpinned(state, &event);
        }
    }

    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, Effect> {
        &state.outstanding
    }

    fn wake_at(&self, _: &State, (): &()) -> Option<Timestamp> {
        None
    }

    fn digest(&self, state: &State) -> String {
        format!("{:?} {:?}", state.live, state.pins)
    }
}

/// No empty maps are kept, so that equal states are equal to the byte.
fn unpinned(state: &mut State, event: &ArtifactUnpinned) {
    let name = format!("{}/{}", event.run, event.task);
    if let Some(holders) = state.pins.get_mut(&name) {
        holders.remove(&event.holder);
        if holders.is_empty() {
            state.pins.remove(&name);
        }
    }
}

fn list_prefix(request: &ListRequest) -> String {
    match &request.run {
        Some(run) if !request.prefix.starts_with(&format!("{run}/")) => format!("{run}/{}", request.prefix),
        _ => request.prefix.clone(),
    }
}

/// `cut` counts what was found and not shown; beyond [`rows::ARTIFACT_ROWS_MAX`] nothing is looked at.
fn list(reads: &Reads, request: &ListRequest) -> ListReply {
    let mut artifacts = rows::found_artifacts(reads, &list_prefix(request));
    artifacts.retain(|artifact| !rows::is_collected(reads, "", artifact.run.as_str()));
    let found = artifacts.len();
    artifacts.truncate(request.limit as usize);
    ListReply { cut: (found - artifacts.len()) as u64, artifacts }
}

fn get(state: &State, reads: &Reads, name: &str) -> Result<GetReply, Error> {
    check_kept(reads, name)?;
    let artifact = rows::found_artifact(reads, name).ok_or_else(|| unknown(state, name))?;
    let payload = rows::found_payload(reads, name).ok_or_else(|| unknown(state, name))?;
    Ok(GetReply { artifact, payload })
}

fn trace(state: &State, reads: &Reads, name: &str) -> Result<LineageReply, Error> {
    check_kept(reads, name)?;
    let run = run_of(name);
    let row = rows::found_lineage(reads, run).ok_or_else(|| unknown(state, name))?;
    let all: Vec<ArtifactView> = rows::found_artifacts(reads, &format!("{run}/"));
    let this = all.iter().find(|artifact| artifact.name == name).ok_or_else(|| unknown(state, name))?;
    let task = this.task.as_str();
    Ok(LineageReply {
        inputs: lineage::inputs(&row, task, &all),
        outputs: lineage::outputs(&row, task, &all),
    })
}

/// It is not an artifact of a run that was collected.
fn check_kept(reads: &Reads, name: &str) -> Result<(), Error> {
    let run = run_of(name);
    if !rows::is_collected(reads, run, run) {
        return Ok(());
    }
    Err(Error::not_found("artifact.collected", format!("run {run} of `{name}` was collected"))
        .help(format!("eclosion gc restore run/{run}, while it is in the trash")))
}

fn unknown(state: &State, name: &str) -> Error {
    let run = run_of(name);
    match RunId::new(run).ok().and_then(|run| state.live(&run).map(|live| (run, live))) {
        Some((run, live)) => {
            let message = format!("run {run} of {} has not committed `{name}` yet", live.flow);
            let task = name.split_once('/').map_or("", |(_, task)| task);
            Error::new(Code::Precondition, "artifact.pending", message).help(format!(
                "eclosion why {run} {task}; {} artifact(s) so far: eclosion artifact ls {run}",
                live.artifacts
            ))
        }
        None => Error::not_found("artifact.unknown", format!("there is no artifact `{name}`"))
            .help("eclosion artifact ls; names are RUN/TASK, FLOW/TASK, FLOW/TASK@VERSION or FLOW/TASK@TAG"),
    }
}

fn run_of(name: &str) -> &str {
    name.split_once('/').map_or(name, |(run, _)| run)
}

/// `FLOW/TASK` in its halves; a digest has none.
fn flow_name(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('/')
}

fn resolve(reads: &Reads, name: &str) -> ResolveReply {
    let names = match (name.split_once('@'), flow_name(name)) {
        (Some((path, tag)), _) => {
            rows::found_tag(reads, path, tag).and_then(|tag| tag.artifact).into_iter().collect()
        }
        (None, Some((flow, task))) => {
            let runs = rows::found_runs(reads, flow, lineage::base(task)).into_iter();
            runs.map(|run| format!("{run}/{task}")).collect()
        }
        (None, None) => rows::found_object(reads, name).map(|row| row.name).into_iter().collect(),
    };
    ResolveReply { names }
}

#[cfg(test)]
mod tests;
