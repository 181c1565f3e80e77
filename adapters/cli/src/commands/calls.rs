//! Calls of functions: as rows of `pool`, and why one waits or failed.

use eclosion_client::Client;
use eclosion_schemas::ops::pool::{CallList, CallListRequest, CallState, CallView};
use eclosion_schemas::{CallId, Error};

use crate::exit;
use crate::globals::Globals;
use crate::render::{self, table};
use crate::terminal::{document, print, print_advice};

/// Whether an id that stands where a run's may stand is a call's.
pub(super) fn is_call(id: &str) -> bool {
    id.starts_with(CallId::PREFIX)
}

pub(super) fn listed(calls: &[CallView]) -> String {
    let now = render::now();
    let rows = calls.iter().map(|call| {
        let why = call.pending.first().map_or_else(String::new, render::run::pending);
        vec![
            call.call.to_string(),
            render::word(&call.state),
            call.function.clone(),
            format!("since {}", render::duration(now.since_ms(call.since))),
            call.worker.as_ref().map_or_else(String::new, ToString::to_string),
            why,
        ]
    });
    table(&["call", "state", "function", "for", "worker", "why"], rows)
}

/// What `eclosion why CALL` says.
///
/// # Errors
/// `call.unknown` for one that was never there, or is over for long.
pub(super) async fn why(globals: &Globals, client: &Client, id: &str) -> Result<u8, Error> {
    let list = client.call::<CallList>(CallListRequest {}).await?;
    let mut known = list.calls.iter().chain(&list.ended);
    let Some(call) = known.find(|call| call.call.as_str() == id) else {
        let text = format!("there is no call {id}, and none of the last {} was it", list.ended.len());
        return Err(Error::not_found("call.unknown", text).help("eclosion pool shows those under way"));
    };
    if globals.json {
        document("call", call)?;
        return Ok(exit::OK);
    }
    print(&said(call))?;
    call.pending
        .iter()
        .try_for_each(|reason| print_advice(&format!("  {}", render::run::pending_and_next(reason))))?;
    match &call.error {
        Some(error) => print_advice(&format!("  {}", render::error::text(error))),
        None => Ok(()),
    }?;
    Ok(exit::OK)
}

fn said(call: &CallView) -> String {
    let now = render::now();
    let since = render::duration(now.since_ms(call.since));
    let took = render::duration(call.since.since_ms(call.came_at));
    let at = call.worker.as_ref().map_or_else(String::new, |worker| format!(" at {worker}"));
    let state = match call.state {
        CallState::Waiting => format!("has waited for a worker for {since}"),
        CallState::Running => format!("has run{at} for {since}, and waited {took} before"),
        CallState::Succeeded => format!("has succeeded{at}, {since} ago, after {took}"),
        CallState::Failed => format!("has failed{at}, {since} ago, after {took}"),
        CallState::Cancelled => format!("was cancelled{at}, {since} ago, after {took}"),
    };
    format!("{} of {} {state}", call.call, call.function)
}
