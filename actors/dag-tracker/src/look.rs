//! Performs looks for earlier results: asks the tracker itself what the entries say, then the artifact store whether
//! those outputs are still there, and gives the tracker the answers as a command of its own.
//!
//! Two questions, because the entries are the tracker's rows and the outputs the artifact store's: nobody reads what is
//! another's. An output that is to be taken over comes first, the one under the content key second.

use eclosion_kernel::Context;
use eclosion_schemas::events::MissCause;
use eclosion_schemas::ops::artifact::{Recall, RecallReply, RecallRequest};
use eclosion_schemas::ops::cache::{Find, FindReply, FindRequest, Found, Lookup};
use eclosion_schemas::{EffectId, Error, Payload, TaskRef};

use crate::state::{Answer, Command, Outcome};

/// Looks that are asked about at once.
const TOGETHER_MAX: usize = 32;

/// One look on its way.
#[derive(Debug, Clone)]
pub struct Looking {
    id: EffectId,
    recall: Option<TaskRef>,
    found: Found,
}

pub(crate) fn perform(looks: &[(EffectId, Lookup)], context: &Context<Command>) {
    for together in looks.chunks(TOGETHER_MAX) {
        let ids = together.iter().map(|(id, _)| *id).collect();
        let lookups: Vec<Lookup> = together.iter().map(|(_, lookup)| lookup.clone()).collect();
        let (asked, context_of_answer) = (together.to_vec(), context.clone());
        context.ask_together_for::<Find>(ids, FindRequest { lookups }, move |reply| {
            recall(looking(&asked, reply), &context_of_answer)
        });
    }
}

/// What was asked about, with what the entries say.
#[must_use]
pub fn looking(asked: &[(EffectId, Lookup)], reply: Result<FindReply, Error>) -> Vec<Looking> {
    let mut found = reply.map(|reply| reply.found).unwrap_or_else(|error| {
        tracing::error!(%error, "the cache cannot be asked; what was looked for is computed");
        Vec::new()
    });
    found.resize_with(asked.len(), || Found { causes: vec![MissCause::NoEntry], ..Found::default() });
    let looks = asked.iter().zip(found);
    looks.map(|((id, lookup), found)| Looking { id: *id, recall: lookup.recall.clone(), found }).collect()
}

/// Where there is nothing to ask the artifact store for, the answers are known.
fn recall(looks: Vec<Looking>, context: &Context<Command>) -> Option<Command> {
    let outputs: Vec<TaskRef> = looks.iter().flat_map(named).cloned().collect();
    if outputs.is_empty() {
        return Some(answers(looks, Vec::new()));
    }
    let ids = looks.iter().map(|look| look.id).collect();
    context.ask_together_for::<Recall>(ids, RecallRequest { outputs }, move |reply| {
        let RecallReply { payloads } = reply.unwrap_or_else(|error| {
            tracing::error!(%error, "outputs cannot be recalled; their steps are computed");
            RecallReply { payloads: Vec::new() }
        });
        Some(answers(looks, payloads))
    });
    None
}

/// The outputs that would do, the best first.
pub fn named(look: &Looking) -> impl Iterator<Item = &TaskRef> {
    look.recall.iter().chain(&look.found.entry)
}

/// `payloads` in the order of [`named`] of all looks.
#[must_use]
pub fn answers(looks: Vec<Looking>, payloads: Vec<Option<Payload>>) -> Command {
    let mut payloads = payloads.into_iter();
    let answer = |look: Looking| {
        let taken = look.recall.clone().zip(look.recall.as_ref().and_then(|_| payloads.next().flatten()));
        let entry = look.found.entry.clone();
        let hit = entry.clone().zip(entry.as_ref().and_then(|_| payloads.next().flatten()));
        let outcome = match (taken, hit) {
            (Some((from, output)), _) => Outcome::Found { from, output, is_taken: true },
            (None, Some((from, output))) => Outcome::Found { from, output, is_taken: false },
            (None, None) if entry.is_some() => {
                Outcome::Missed { causes: vec![MissCause::Collected], nearest: entry }
            }
            (None, None) => Outcome::Missed { causes: look.found.causes, nearest: look.found.nearest },
        };
        Answer { look: look.id, outcome }
    };
    Command::Looked(looks.into_iter().map(answer).collect())
}
