//! A flow file's text.

use eclosion_dag_tracker::load;
use eclosion_schemas::Error;
use eclosion_schemas::flow::FlowSpec;

use super::{Target, claim};
use crate::corpus;
use crate::memory::Bound;

pub(super) fn target() -> Target {
    Target {
        name: "flow",
        cases: 1_500,
        // A parsed document keeps each piece with its place.
        bound: Bound { each: 1024, base: 1 << 20 },
        corpus: || {
            let toml = corpus::flows();
            let specs =
                toml.iter().filter_map(|text| load::from_toml(std::str::from_utf8(text).ok()?, "").ok());
            let json = specs.filter_map(|spec| serde_json::to_vec_pretty(&spec).ok()).collect();
            [toml, json, corpus::kept("flow")].concat()
        },
        check: Box::new(fuzz_flow),
    }
}

/// # Errors
/// What did not hold.
pub fn fuzz_flow(bytes: &[u8]) -> Result<(), String> {
    // A file that is no text is refused by who reads it.
    let text = String::from_utf8_lossy(bytes);
    reads("flow.toml", &text, load::from_toml(&text, "flow.toml"))?;
    reads("flow.json", &text, load::from_json(&text, "flow.json"))
}

fn reads(file: &str, text: &str, read: Result<FlowSpec, Error>) -> Result<(), String> {
    let flow = match read {
        Ok(flow) => flow,
        Err(refusal) => return names_its_place(file, text, &refusal),
    };
    let written = serde_json::to_string(&flow).map_err(|why| format!("a flow cannot be written: {why}"))?;
    let again =
        load::from_json(&written, "again").map_err(|why| format!("a flow does not come back: {why}"))?;
    let rewritten = serde_json::to_string(&again).map_err(|why| why.to_string())?;
    claim(written == rewritten, || format!("{written} comes back as {rewritten}"))
}

/// `FILE:LINE:COLUMN: …` with a line that there is, and help.
fn names_its_place(file: &str, text: &str, refusal: &Error) -> Result<(), String> {
    let rest = refusal.message.strip_prefix(file).and_then(|rest| rest.strip_prefix(':'));
    let mut numbers = rest.into_iter().flat_map(|rest| rest.split(':'));
    let place: [Option<usize>; 2] = [(); 2].map(|()| numbers.next()?.parse().ok());
    let lines = text.matches('\n').count() + 1;
    let is_there = matches!(place, [Some(line), Some(_)] if line <= lines);
    claim(is_there && refusal.help.is_some(), || format!("it does not say where or what next: {refusal:?}"))
}
