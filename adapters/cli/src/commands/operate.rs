//! What operators do: to actors and dead letters; and what they look at: records, processes, what operators did.

use std::time::Duration;

use eclosion_schemas::Error;
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::kernel::{
    Empty, EventItem, Events, EventsRequest, ProcessRow, Processes, ProcessesReply,
};
use eclosion_schemas::ops::{actor, audit, dead};
use serde_json::Value;

use crate::arguments::operate::{self as arguments, Deed, OnActor};
use crate::globals::Globals;
use crate::render::{self, table};
use crate::terminal::{document, print, talk, width};
use crate::{exit, session};

/// So much of an event's body is shown on any screen, however narrow.
const BODY_CHARS_MIN: usize = 40;
/// What an act may take; a drain says how long itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// No follower sits there longer.
const FOLLOW_MAX: Duration = Duration::from_secs(24 * 3600);

/// One of `actor.restart`, `actor.kill`, `actor.pause` and `actor.resume`.
pub(super) async fn act<O>(globals: &Globals, on: OnActor) -> Result<u8, Error>
where
    O: Operation<Request = actor::ActRequest, Reply = actor::ActReply>,
{
    act_within::<O>(globals, on, PATIENCE).await
}

pub(super) async fn drain(globals: &Globals, drain: arguments::Drain) -> Result<u8, Error> {
    let timeout = Duration::from_secs(drain.timeout.max(1));
    act_within::<actor::Drain>(globals, drain.actor, timeout).await
}

async fn act_within<O>(globals: &Globals, on: OnActor, deadline: Duration) -> Result<u8, Error>
where
    O: Operation<Request = actor::ActRequest, Reply = actor::ActReply>,
{
    let client = session::attach(globals).await?;
    let Deed { reason, dry_run } = on.deed;
    let reason_flag = render::reason_flag(&reason);
    let request = actor::ActRequest { address: on.address, reason, dry_run };
    let reply = client.call::<O>(request).deadline(deadline).await?;
    if globals.json {
        document("act", &reply)?;
        return Ok(exit::OK);
    }
    let verb = O::NAME.rsplit('.').next().unwrap_or(O::NAME);
    let blast = &reply.blast;
    if reply.done {
        let life = reply.incarnation.map_or_else(String::new, |life| format!("; life {life} has begun"));
        print(&format!("{verb} {}: done{life}", reply.address))?;
    } else {
        let in_hand = match &blast.current {
            Some(current) => format!(", {current} in hand"),
            None => String::new(),
        };
        print(&format!(
            "{verb} {} ({}{in_hand}): {}",
            reply.address,
            render::word(&blast.state),
            blast.text
        ))?;
        talk(&format!("nothing was done; to do it: eclosion {verb} {}{reason_flag}", reply.address));
    }
    Ok(exit::OK)
}

pub(super) async fn dead(globals: &Globals, command: arguments::Dead) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    match command {
        arguments::Dead::Ls { limit } => {
            let list = client.call::<dead::List>(dead::ListRequest { limit }).await?;
            show_letters(globals, &list)?;
        }
        arguments::Dead::Show { id } => {
            let found = client.call::<dead::Show>(dead::ShowRequest { id }).await?;
            if globals.json {
                document("dead-letter", &found)?;
            } else {
                print(&letter(&found))?;
                talk(&format!("deliver it again: eclosion dead replay {id}; or: eclosion dead drop {id}"));
            }
        }
        arguments::Dead::Replay { id, deed } => {
            let reply = client.call::<dead::Replay>(on_letter(id, deed)).await?;
            say_done(globals, "replay", &reply)?;
        }
        arguments::Dead::Drop { id, deed } => {
            let reply = client.call::<dead::Drop>(on_letter(id, deed)).await?;
            say_done(globals, "drop", &reply)?;
        }
    }
    Ok(exit::OK)
}

fn on_letter(id: u64, deed: Deed) -> dead::ActRequest {
    dead::ActRequest { id, reason: deed.reason, dry_run: deed.dry_run }
}

fn say_done(globals: &Globals, verb: &str, reply: &dead::ActReply) -> Result<(), Error> {
    if globals.json {
        return document("dead-act", reply);
    }
    let letter = &reply.letter;
    let what = format!("{verb} {} ({} to {})", letter.id, letter.operation, letter.address);
    match (reply.done, &reply.refused) {
        (true, Some(why)) => print(&format!("{what}: delivered, and refused: {}", why.message)),
        (true, None) => print(&format!("{what}: done")),
        (false, _) => print(&format!("{what}: not done, as asked")),
    }
}

fn show_letters(globals: &Globals, list: &dead::ListReply) -> Result<(), Error> {
    if globals.json {
        return document("dead-letters", list);
    }
    if list.letters.is_empty() {
        talk("there are no dead letters");
        return Ok(());
    }
    let rows = list.letters.iter().map(|letter| {
        let age = format!("{} ago", render::duration(letter.age_ms));
        vec![letter.id.to_string(), letter.address.clone(), letter.operation.clone(), age, letter.why.clone()]
    });
    print(&table(&["id", "address", "operation", "died", "why"], rows))?;
    let shown = list.letters.len() as u64;
    if shown < list.kept {
        talk(&format!("{} more: --limit {}", list.kept - shown, list.kept));
    }
    if list.forgotten > 0 {
        talk(&format!("{} older ones are forgotten", list.forgotten));
    }
    Ok(())
}

fn letter(found: &dead::ShowReply) -> String {
    let letter = &found.letter;
    render::pairs(&[
        ("letter", letter.id.to_string()),
        ("address", letter.address.clone()),
        ("operation", letter.operation.clone()),
        ("why", letter.why.clone()),
        ("delivered", format!("{} times", letter.deliveries)),
        ("caller", letter.caller.clone().unwrap_or_else(|| "the kernel itself".into())),
        ("died", format!("{} ago", render::duration(letter.age_ms))),
        ("request", found.request.to_string()),
    ])
}

pub(super) async fn events(globals: &Globals, events: arguments::Events) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let arguments::Events { follow, tail, after, kinds } = events;
    let request = EventsRequest { after, tail, kinds, follow };
    let mut stream = client.stream::<Events>(request).deadline(FOLLOW_MAX).await?;
    while let Some(item) = stream.next().await {
        let item = item?;
        match globals.json {
            true => document("event", &item)?,
            false => print(&event(&item, width()))?,
        }
    }
    let reply = stream.reply().await?;
    if !globals.json && reply.shown == 0 {
        talk("nothing of that kind is recorded");
    }
    Ok(exit::OK)
}

fn event(item: &EventItem, width: Option<usize>) -> String {
    let body = match &item.event {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| field(name, value)).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    let head = format!("{:>6}  {}  {:<22} ", item.seq.0, eclosion::instant_text(item.at), item.kind);
    // Only a screen is too narrow for it; a file or a pipe gets all of it.
    let room =
        width.map_or(usize::MAX, |width| width.saturating_sub(head.chars().count() + 1).max(BODY_CHARS_MIN));
    let cut: String = body.chars().take(room).collect();
    let more = if cut.len() < body.len() { "…" } else { "" };
    format!("{head}{cut}{more}")
}

/// A small object field by field, one level deep.
fn field(name: &str, value: &Value) -> String {
    match value {
        Value::Object(fields) if fields.len() <= 6 => {
            let inner = fields.iter().map(|(inner, value)| format!("{name}.{inner}={}", brief(value)));
            inner.collect::<Vec<_>>().join(" ")
        }
        other => format!("{name}={}", brief(other)),
    }
}

/// A name as it is, an object or a list by its size.
fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => format!("{{{} fields}}", fields.len()),
        Value::Array(items) if items.len() > 8 => format!("[{} items]", items.len()),
        other => other.to_string(),
    }
}

pub(super) async fn audit(globals: &Globals, audit: arguments::Audit) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let list = client.call::<audit::List>(audit::ListRequest { limit: audit.limit }).await?;
    if globals.json {
        document("audit", &list)?;
        return Ok(exit::OK);
    }
    if list.acts.is_empty() {
        talk("no operator has done anything here yet");
        return Ok(exit::OK);
    }
    let now = render::now();
    let rows = list.acts.iter().map(|view| {
        let outcome = match (&view.error, view.ended_at) {
            (Some(error), _) => error.to_string(),
            (None, Some(_)) => "done".into(),
            (None, None) => "under way".into(),
        };
        vec![
            view.id.to_string(),
            format!("{} ago", render::duration(now.since_ms(view.began_at))),
            view.act.action.clone(),
            view.act.target.clone(),
            view.act.caller.clone().unwrap_or_else(|| "-".to_owned()),
            view.act.reason.clone(),
            outcome,
        ]
    });
    print(&table(&["act", "when", "what", "to", "who", "reason", "outcome"], rows))?;
    if list.more {
        talk("there are more: --limit N");
    }
    Ok(exit::OK)
}

pub(super) async fn processes(globals: &Globals) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let reply = client.call::<Processes>(Empty {}).await?;
    if globals.json {
        document("processes", &reply)?;
        return Ok(exit::OK);
    }
    print(&table(&["pid", "what", "memory", "cpu", "age", "command"], reply.processes.iter().map(process)))?;
    talk(&total(&reply));
    Ok(exit::OK)
}

fn process(row: &ProcessRow) -> Vec<String> {
    let what = row.worker.as_ref().map_or_else(|| row.kind.clone(), |worker| format!("worker {worker}"));
    vec![
        row.pid.to_string(),
        what,
        render::bytes(row.rss_bytes),
        format!("{:.1}%", f64::from(row.cpu_permille) / 10.0),
        render::duration(row.age_s * 1000),
        row.command.clone(),
    ]
}

fn total(reply: &ProcessesReply) -> String {
    let bytes = reply.processes.iter().map(|row| row.rss_bytes).sum();
    format!(
        "{} processes, {} together; pages that they share are counted in each",
        reply.processes.len(),
        render::bytes(bytes)
    )
}
