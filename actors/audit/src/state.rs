//! The pure core of the audit record.
//!
//! ```text
//! begin ──► operator.acted (open) ──end──► operator.ended
//!                   └── the kernel died meanwhile ──settle of a later epoch──► operator.ended, unknown
//! ```
//!
//! Invariants: (1) An id is given once, counting from 1. (2) Every `operator.acted` is followed by exactly one
//! `operator.ended`, in this life or the next. (3) At most [`OPEN_MAX`] acts are open; memory holds nothing else.

use std::collections::BTreeMap;

use eclosion_kernel::core::{AnyEvent, Core, Decision, Query, Reads};
use eclosion_kernel::journal::{Record, RowChange};
use eclosion_schemas::error::{Code, Error, Retry};
use eclosion_schemas::events::{Event, OperatorActed, OperatorEnded};
use eclosion_schemas::ops::audit::{Act, ActView, BeginReply, EndReply, EndRequest, ListReply, ListRequest};
use eclosion_schemas::{EffectId, Epoch, Timestamp};

/// Acts that are under way together.
pub const OPEN_MAX: usize = 256;
/// Acts that can be listed: the newest. Older ones are in the journal alone.
pub const KEPT_MAX: u64 = 10_000;
/// Acts that one list shows.
pub const LIST_MAX: u32 = 1_000;
/// The operator's words, in bytes.
pub const REASON_BYTES_MAX: usize = 4 * 1024;

const TABLE: &str = "audit";

/// See the head of this file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Audit;

#[derive(Debug, Clone)]
pub enum Command {
    Begin(Act),
    End(EndRequest),
    List(ListRequest),
}

/// It owes nothing to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {}

#[derive(Debug, Clone, Default)]
pub struct State {
    last_id: u64,
    open: BTreeMap<u64, Open>,
    outstanding: BTreeMap<EffectId, Effect>,
}

#[derive(Debug, Clone)]
struct Open {
    act: Act,
    at: Timestamp,
    epoch: Epoch,
}

impl Core for Audit {
    type State = State;
    type Volatile = ();
    type Command = Command;
    type Effect = Effect;

    const DECIDES: &'static [&'static str] = &[OperatorActed::KIND, OperatorEnded::KIND];
    const FOLDS: &'static [&'static str] = Self::DECIDES;

    fn queries(&self, command: &Command) -> Vec<Query> {
        match command {
            Command::List(request) => vec![newest(request.limit)],
            Command::Begin(_) | Command::End(_) => Vec::new(),
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
            Command::Begin(act) => begin(state, act),
            Command::End(request) => end(state, request),
            Command::List(request) => list(reads, request).map(Decision::reply),
        }
    }

    /// What another life left open is not known to have been done.
    fn settle(&self, state: &State, (): &mut (), reads: &Reads, _: Timestamp) -> Vec<AnyEvent> {
        let left = state.open.iter().filter(|(_, open)| open.epoch < reads.epoch());
        left.map(|(id, open)| {
            let error =
                Error::new(Code::Unknown, "audit.kernel_died", "the kernel died while it was being done");
            ended(*id, open, Some(error)).into()
        })
        .collect()
    }

    fn apply(&self, state: &mut State, record: &Record) {
        if let Some(acted) = record.event::<OperatorActed>() {
            state.last_id = acted.id;
            let open = Open { act: acted.act.clone(), at: record.at, epoch: record.epoch };
            state.open.insert(acted.id, open);
        } else if let Some(ended) = record.event::<OperatorEnded>() {
            state.open.remove(&ended.id);
        }
    }

    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, Effect> {
        &state.outstanding
    }

    fn wake_at(&self, _: &State, (): &()) -> Option<Timestamp> {
        None
    }

    fn digest(&self, state: &State) -> String {
        format!("{state:?}")
    }
}

fn begin(state: &State, act: &Act) -> Result<Decision, Error> {
    if act.reason.len() > REASON_BYTES_MAX {
        let text = format!("the reason has {} bytes, at most {REASON_BYTES_MAX} are kept", act.reason.len());
        return Err(Error::invalid("audit.reason", text));
    }
    if state.open.len() >= OPEN_MAX {
        let text = format!("{OPEN_MAX} acts of operators are under way");
        return Err(Error::new(Code::Exhausted, "audit.open", text).retry(Retry::After { after_ms: 1_000 }));
    }
    let id = state.last_id + 1;
    Ok(Decision::reply(BeginReply { id }).event(OperatorActed { id, act: act.clone() }))
}

/// The same again changes nothing.
fn end(state: &State, request: &EndRequest) -> Result<Decision, Error> {
    match state.open.get(&request.id) {
        Some(open) => Ok(Decision::reply(EndReply {}).event(ended(request.id, open, request.error.clone()))),
        None if request.id <= state.last_id => Ok(Decision::reply(EndReply {})),
        None => Err(Error::not_found("audit.unknown", format!("there was no act {}", request.id))
            .help("eclosion audit")),
    }
}

fn ended(id: u64, open: &Open, error: Option<Error>) -> OperatorEnded {
    OperatorEnded { id, act: open.act.clone(), began_at: open.at, error }
}

/// One more than is asked for tells whether there are more.
fn newest(limit: u32) -> Query {
    Query::Scan { table: TABLE, prefix: Vec::new(), newest_first: true, limit: limit.min(LIST_MAX) + 1 }
}

fn list(reads: &Reads, request: &ListRequest) -> Result<ListReply, Error> {
    let rows = reads.rows(&newest(request.limit));
    let limit = request.limit.min(LIST_MAX) as usize;
    let acts = rows.iter().take(limit).map(|(_, row)| {
        rmp_serde::from_slice::<ActView>(row).map_err(|why| Error::internal("audit.row", why.to_string()))
    });
    Ok(ListReply { acts: acts.collect::<Result<_, _>>()?, more: rows.len() > limit })
}

/// Derives the rows of a record: one for each act, written anew when it ends, and gone after [`KEPT_MAX`] others.
pub fn project(record: &Record, rows: &mut Vec<RowChange>) {
    let view = if let Some(acted) = record.event::<OperatorActed>() {
        if let Some(oldest) = acted.id.checked_sub(KEPT_MAX) {
            rows.push(RowChange { table: TABLE, key: oldest.to_be_bytes().to_vec(), value: None });
        }
        let act = acted.act.clone();
        ActView { id: acted.id, act, began_at: record.at, ended_at: None, error: None }
    } else if let Some(ended) = record.event::<OperatorEnded>() {
        let (act, error) = (ended.act.clone(), ended.error.clone());
        ActView { id: ended.id, act, began_at: ended.began_at, ended_at: Some(record.at), error }
    } else {
        return;
    };
    let key = view.id.to_be_bytes().to_vec();
    rows.push(RowChange { table: TABLE, key, value: rmp_serde::to_vec_named(&view).ok() });
}

#[cfg(test)]
mod tests;
