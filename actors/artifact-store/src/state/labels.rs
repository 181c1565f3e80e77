//! Decisions about what people say of artifacts: tags and pins. Names are `RUN/TASK` when they get here.

use eclosion_kernel::core::{Decision, Reads};
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::events::{ArtifactPinned, ArtifactTagged, ArtifactUnpinned, ArtifactUntagged};
use eclosion_schemas::ids::{NAME_CHARACTERS, has_name_characters};
use eclosion_schemas::ops::artifact::{
    PinReply, PinRequest, PinView, PinsReply, PinsRequest, TagReply, TagRequest, TagsReply, TagsRequest,
    UntagReply, UntagRequest,
};

use super::{State, run_of, unknown};
use crate::rows;

/// A tag and a holder are as long at most.
const LABEL_BYTES_MAX: usize = 64;
const REASON_BYTES_MAX: usize = 1024;
/// Pins are held in memory, so that a collection planned now sees one that was set just before.
const PINS_MAX: usize = 65_536;

pub(super) fn tag(state: &State, reads: &Reads, request: &TagRequest) -> Result<Decision, Error> {
    let is_tag = request.tag.starts_with(|c: char| c.is_ascii_alphabetic()) && is_label(&request.tag);
    if !is_tag {
        return Err(malformed("artifact.tag", &request.tag, "a tag begins with a letter"));
    }
    check_reason(&request.reason)?;
    let name = &request.name;
    let artifact = rows::found_artifact(reads, name).ok_or_else(|| unknown(state, name))?;
    let flow = rows::found_lineage(reads, run_of(name)).ok_or_else(|| unknown(state, name))?.flow;
    let path = format!("{flow}/{}", artifact.task);
    let reply = TagReply { path: path.clone(), tag: request.tag.clone(), artifact: artifact.name };
    Ok(Decision::reply(reply).event(ArtifactTagged {
        path,
        tag: request.tag.clone(),
        run: artifact.run,
        task: artifact.task,
        reason: request.reason.clone(),
    }))
}

pub(super) fn untag(reads: &Reads, request: &UntagRequest) -> Result<Decision, Error> {
    check_reason(&request.reason)?;
    if rows::found_tag(reads, &request.path, &request.tag).is_none() {
        let text = format!("`{}` has no tag `{}`", request.path, request.tag);
        return Err(Error::not_found("artifact.tag", text).help("eclosion artifact tags"));
    }
    let UntagRequest { path, tag, reason } = request.clone();
    Ok(Decision::reply(UntagReply {}).event(ArtifactUntagged { path, tag, reason }))
}

pub(super) fn tags(reads: &Reads, request: &TagsRequest) -> TagsReply {
    let mut tags = rows::found_tags(reads, request);
    let more = tags.len() > request.limit as usize;
    tags.truncate(request.limit as usize);
    TagsReply { tags, more }
}

pub(super) fn pin(state: &State, reads: &Reads, request: &PinRequest) -> Result<Decision, Error> {
    check_holder(&request.holder)?;
    check_reason(&request.reason)?;
    let artifact = rows::found_artifact(reads, &request.name).ok_or_else(|| unknown(state, &request.name))?;
    let held = state.pins.get(&artifact.name).and_then(|holders| holders.get(&request.holder));
    if held.is_none() && state.pins_count() >= PINS_MAX {
        let text = format!("{PINS_MAX} pins are set already, the most that are held");
        return Err(Error::new(Code::Exhausted, "artifact.pins", text)
            .help("eclosion artifact pins shows them; eclosion artifact unpin NAME takes one away"));
    }
    let mut holders = state.holders(&artifact.name);
    let reply = |holders| Decision::reply(PinReply { artifact: artifact.name.clone(), holders });
    if held.is_some_and(|pin| pin.reason == request.reason) {
        return Ok(reply(holders));
    }
    if held.is_none() {
        holders.push(request.holder.clone());
        holders.sort();
    }
    let (run, task) = (artifact.run.clone(), artifact.task.clone());
    let (holder, reason) = (request.holder.clone(), request.reason.clone());
    Ok(reply(holders).event(ArtifactPinned { run, task, holder, reason }))
}

/// Whoever wants it gone is content if it is gone already.
pub(super) fn unpin(state: &State, reads: &Reads, request: &PinRequest) -> Result<Decision, Error> {
    check_reason(&request.reason)?;
    let artifact = rows::found_artifact(reads, &request.name).ok_or_else(|| unknown(state, &request.name))?;
    let mut holders = state.holders(&artifact.name);
    let is_held = holders.contains(&request.holder);
    holders.retain(|holder| *holder != request.holder);
    let decision = Decision::reply(PinReply { artifact: artifact.name.clone(), holders });
    if !is_held {
        return Ok(decision);
    }
    let (holder, reason) = (request.holder.clone(), request.reason.clone());
    Ok(decision.event(ArtifactUnpinned { run: artifact.run, task: artifact.task, holder, reason }))
}

pub(super) fn pins(state: &State, request: &PinsRequest) -> PinsReply {
    let below = state.pins.range(request.prefix.clone()..);
    let pins = below.take_while(|(name, _)| name.starts_with(&request.prefix)).flat_map(|(name, holders)| {
        holders.iter().map(|(holder, pin)| PinView {
            artifact: name.clone(),
            holder: holder.clone(),
            reason: pin.reason.clone(),
            since: pin.since,
        })
    });
    let limit = request.limit as usize;
    let mut pins: Vec<PinView> = pins.take(limit.saturating_add(1)).collect();
    let more = pins.len() > limit;
    pins.truncate(limit);
    PinsReply { pins, more }
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.len() <= LABEL_BYTES_MAX && has_name_characters(text)
}

fn check_holder(holder: &str) -> Result<(), Error> {
    if is_label(holder) { Ok(()) } else { Err(malformed("artifact.holder", holder, "a holder has a name")) }
}

fn check_reason(reason: &str) -> Result<(), Error> {
    if reason.len() <= REASON_BYTES_MAX {
        return Ok(());
    }
    let text = format!("a reason has at most {REASON_BYTES_MAX} bytes, not {}", reason.len());
    Err(Error::invalid("artifact.reason", text).help("say it in a sentence"))
}

fn malformed(reason: &str, text: &str, rule: &str) -> Error {
    let shown: String = text.chars().take(LABEL_BYTES_MAX).collect();
    let help = format!("{rule}, and has at most {LABEL_BYTES_MAX} of {}", NAME_CHARACTERS);
    Error::invalid(reason, format!("`{shown}` is malformed")).help(help)
}
