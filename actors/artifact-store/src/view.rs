//! An output as readers see it.

use std::sync::Arc;

use eclosion_kernel::journal::Record;
use eclosion_schemas::events::{StepCommitted, StepReused};
use eclosion_schemas::view::ArtifactView;
use eclosion_schemas::{Payload, RunId, TaskId};

/// A value of one part and nothing around it: the extension (fixext 4, type 1) that stands for part 0.
const ONLY_PART_0: [u8; 6] = [0xd6, 0x01, 0, 0, 0, 0];

/// A record that gives a task its output: what an attempt computed, or an earlier result that was used again.
#[derive(Debug)]
pub enum Made {
    Committed(Arc<StepCommitted>),
    Reused(Arc<StepReused>),
}

impl Made {
    #[must_use]
    pub fn by(record: &Record) -> Option<Self> {
        let committed = record.event().map(Made::Committed);
        committed.or_else(|| record.event().map(Made::Reused))
    }

    #[must_use]
    pub fn run(&self) -> &RunId {
        match self {
            Made::Committed(event) => &event.run,
            Made::Reused(event) => &event.run,
        }
    }

    #[must_use]
    pub fn task(&self) -> &TaskId {
        match self {
            Made::Committed(event) => &event.task,
            Made::Reused(event) => &event.task,
        }
    }

    #[must_use]
    pub fn output(&self) -> &Payload {
        match self {
            Made::Committed(event) => &event.output,
            Made::Reused(event) => &event.output,
        }
    }
}

/// The artifact that a record makes. It has the name `RUN/TASK`, and version 1 under it: a task has one output.
#[must_use]
pub fn artifact(event: &Made, record: &Record) -> ArtifactView {
    let only = only_part(event.output());
    let parts: u64 = event.output().parts.iter().map(|part| part.bytes).sum();
    ArtifactView {
        name: format!("{}/{}", event.run(), event.task()),
        version: 1,
        run: event.run().clone(),
        task: event.task().clone(),
        digest: only.and_then(|part| part.digest.clone()),
        bytes: only.map_or(event.output().body.len() as u64 + parts, |part| part.bytes),
        codec: only.map_or_else(|| "msgpack".to_owned(), |part| part.codec.clone()),
        file: only.and_then(|part| part.name.clone()),
        created_at: record.at,
        seq: record.seq,
    }
}

/// The part that is the whole value.
fn only_part(payload: &Payload) -> Option<&eclosion_schemas::Part> {
    match payload.parts.as_slice() {
        [part] if *payload.body == ONLY_PART_0 => Some(part),
        _ => None,
    }
}
