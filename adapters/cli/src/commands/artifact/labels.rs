//! Tags, pins and the search.

use eclosion_schemas::Error;
use eclosion_schemas::ops::artifact::{
    Pin, PinReply, PinRequest, Pins, PinsRequest, Search, SearchRequest, Tag, TagRequest, Tags, TagsRequest,
    Unpin, Untag, UntagRequest,
};

use super::rows;
use crate::arguments::artifact as arguments;
use crate::exit;
use crate::globals::Globals;
use crate::render::{self, table};
use crate::session;
use crate::terminal::{document, print, talk};

pub(super) async fn search(globals: &Globals, search: arguments::Search) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let request = SearchRequest {
        text: search.words.join(" "),
        run: search.run,
        flow: search.flow,
        task: search.task,
        tag: search.tag,
        codec: search.codec,
        bytes_min: search.bytes_min,
        bytes_max: search.bytes_max,
        before: search.before,
        limit: search.limit,
    };
    let found = client.call::<Search>(request).await?;
    if globals.json {
        document("artifact-search", &found)?;
        return Ok(exit::OK);
    }
    match found.artifacts.is_empty() {
        true => talk(&format!("none of the {} artifacts compared is meant", found.looked)),
        false => print(&rows(&found.artifacts))?,
    }
    if let Some(more) = found.more {
        talk(&format!("there may be older ones: the same with --before {}", more.0));
    }
    Ok(exit::OK)
}

pub(super) async fn tag(globals: &Globals, name: String, tag: String, reason: String) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let tagged = client.call::<Tag>(TagRequest { name, tag, reason }).await?;
    if globals.json {
        document("artifact-tag", &tagged)?;
    } else {
        print(&format!("{}@{} is {} now", tagged.path, tagged.tag, tagged.artifact))?;
    }
    Ok(exit::OK)
}

pub(super) async fn untag(globals: &Globals, name: &str, reason: String) -> Result<u8, Error> {
    let Some((path, tag)) = name.rsplit_once('@') else {
        return Err(Error::invalid("artifact.tag", format!("`{name}` names no tag"))
            .help("write FLOW/TASK@TAG; eclosion artifact tags shows them"));
    };
    let client = session::attach(globals).await?;
    let request = UntagRequest { path: path.into(), tag: tag.into(), reason };
    let untagged = client.call::<Untag>(request).await?;
    if globals.json {
        document("artifact-untag", &untagged)?;
    } else {
        print(&format!("{name} leads nowhere now"))?;
    }
    Ok(exit::OK)
}

pub(super) async fn tags(globals: &Globals, request: TagsRequest) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let limit = request.limit;
    let found = client.call::<Tags>(request).await?;
    if globals.json {
        document("artifact-tags", &found)?;
        return Ok(exit::OK);
    }
    if found.tags.is_empty() {
        talk("nothing is tagged; eclosion artifact tag NAME TAG");
        return Ok(exit::OK);
    }
    let now = render::now();
    let rows = found.tags.into_iter().map(|tag| {
        let since = format!("{} ago", render::duration(now.since_ms(tag.at)));
        vec![
            format!("{}@{}", tag.path, tag.tag),
            tag.artifact.unwrap_or_else(|| "-".into()),
            since,
            tag.reason,
        ]
    });
    print(&table(&["tag", "artifact", "since", "reason"], rows))?;
    tell_more(found.more, limit);
    Ok(exit::OK)
}

pub(super) async fn pin(globals: &Globals, pin: arguments::Pin) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let pinned = client.call::<Pin>(request(pin)).await?;
    show_holders(globals, "artifact-pin", &pinned)
}

pub(super) async fn unpin(globals: &Globals, pin: arguments::Pin) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let unpinned = client.call::<Unpin>(request(pin)).await?;
    show_holders(globals, "artifact-unpin", &unpinned)
}

fn request(pin: arguments::Pin) -> PinRequest {
    PinRequest { name: pin.name, holder: pin.holder, reason: pin.reason }
}

fn show_holders(globals: &Globals, kind: &str, reply: &PinReply) -> Result<u8, Error> {
    if globals.json {
        document(kind, reply)?;
    } else if reply.holders.is_empty() {
        print(&format!("{} is held by nobody", reply.artifact))?;
    } else {
        print(&format!("{} is held by {}", reply.artifact, reply.holders.join(", ")))?;
    }
    Ok(exit::OK)
}

pub(super) async fn pins(globals: &Globals, request: PinsRequest) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let limit = request.limit;
    let found = client.call::<Pins>(request).await?;
    if globals.json {
        document("artifact-pins", &found)?;
        return Ok(exit::OK);
    }
    if found.pins.is_empty() {
        talk("nothing is pinned; eclosion artifact pin NAME --reason WHY");
        return Ok(exit::OK);
    }
    let now = render::now();
    let rows = found.pins.into_iter().map(|pin| {
        let since = format!("{} ago", render::duration(now.since_ms(pin.since)));
        vec![pin.artifact, pin.holder, since, pin.reason]
    });
    print(&table(&["artifact", "holder", "since", "reason"], rows))?;
    tell_more(found.more, limit);
    Ok(exit::OK)
}

fn tell_more(more: bool, limit: u32) {
    if more {
        talk(&format!("there are more: --limit {}", limit.saturating_mul(10)));
    }
}
