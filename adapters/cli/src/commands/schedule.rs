//! Schedules: make, look, preview, suspend, fire, remove.

use eclosion::{SchedulePlan, Zones, instant_text, parse_instant};
use eclosion_schemas::codec::json;
use eclosion_schemas::ops::schedule::{
    ActRequest, Change, Fire, Get, History, HistoryRequest, List, ListRequest, NameRequest, Next, NextReply,
    NextRequest, Pause, Remove, Resume, Set, SetRequest, StateReply, TriggerRequest,
};
use eclosion_schemas::schedule::{
    Action, ScheduleSpec, ScheduleState, ScheduleView, TickView, Trigger, UpcomingTick,
};
use eclosion_schemas::suggest::shell_word;
use eclosion_schemas::{Error, ScheduleName, Timestamp};
use serde_json::Value;

use crate::arguments::{self, schedule as said};
use crate::globals::Globals;
use crate::render::{self, duration, pairs, table, word};
use crate::terminal::{document, print, talk};
use crate::{exit, session, values};

pub(super) async fn perform(globals: &Globals, schedule: said::Schedule) -> Result<u8, Error> {
    use said::Schedule;
    match schedule {
        Schedule::Add(add) => self::add(globals, *add).await,
        Schedule::Ls { state, limit } => list(globals, state, limit).await,
        Schedule::Show { name } => show(globals, name).await,
        Schedule::Next(next) => self::next(globals, *next).await,
        Schedule::Pause { name, reason } => {
            let client = session::attach(globals).await?;
            let request = ActRequest { name: name.clone(), reason };
            changed(globals, &name, &client.call::<Pause>(request).await?)
        }
        Schedule::Resume { name, reason } => {
            let client = session::attach(globals).await?;
            let request = ActRequest { name: name.clone(), reason };
            changed(globals, &name, &client.call::<Resume>(request).await?)
        }
        Schedule::Trigger { name, reason } => trigger(globals, name, reason).await,
        Schedule::Rm { name, reason } => remove(globals, name, reason).await,
        Schedule::History { name, limit } => history(globals, name, limit).await,
    }
}

async fn add(globals: &Globals, add: said::AddSchedule) -> Result<u8, Error> {
    let action = action(globals, &add).await?;
    let spec = ScheduleSpec {
        misfire: add.misfire,
        grace_ms: add.grace,
        overlap: add.overlap,
        ..spec(&add.when, action)?
    };
    let client = session::attach(globals).await?;
    let name = add.name;
    let request = SetRequest { name: name.clone(), spec, replace: add.replace };
    let reply = client.call::<Set>(request).await?;
    if globals.json {
        document("schedule-set", &reply)?;
        return Ok(exit::OK);
    }
    let done = match reply.change {
        Change::Created => "is there",
        Change::Replaced => "was replaced",
        Change::Unchanged => "is there already, with this content",
    };
    talk(&format!("schedule {name} {done}; {}", policies(&reply.spec)));
    match &reply.next {
        Some(next) => talk(&format!("next at {}", local(next))),
        None => talk("no tick is left"),
    }
    Ok(exit::OK)
}

async fn action(globals: &Globals, add: &said::AddSchedule) -> Result<Action, Error> {
    if let Some(call) = &add.call {
        let operation = call.first().cloned().unwrap_or_default();
        let text = call.get(1).map_or("{}", String::as_str);
        let request: Value = json::decode(text.as_bytes()).map_err(|why| {
            Error::invalid("call.json", format!("the request is no JSON that can be sent: {why}"))
                .help(format!("eclosion describe {}", shell_word(&operation)))
        })?;
        return Ok(Action::Call { operation, request, deadline_ms: add.deadline });
    }
    let flow = arguments::Flow { flow: add.flow.clone().unwrap_or_default(), set: add.set.clone() };
    let request = super::run::request(globals, &flow).await;
    let request = request.map_err(|why| super::run::check_again(why, &flow.flow, &flow.set))?;
    Ok(Action::Run { flow: Box::new(request.flow), set: request.set, tenant: request.tenant })
}

fn spec(when: &said::When, action: Action) -> Result<ScheduleSpec, Error> {
    Ok(ScheduleSpec {
        zone: when.zone.clone(),
        missing: when.missing,
        repeated: when.repeated,
        jitter_ms: when.jitter,
        ..ScheduleSpec::new(trigger_of(when)?, action)
    })
}

/// clap sees to it that there is one.
fn trigger_of(when: &said::When) -> Result<Trigger, Error> {
    if let Some(every_ms) = when.every {
        let anchor = when.anchor.as_deref().map_or(Ok(Timestamp(0)), parse_instant)?;
        return Ok(Trigger::Every { every_ms, anchor });
    }
    if let Some(cron) = &when.cron {
        return Ok(Trigger::Cron { cron: cron.clone() });
    }
    let at = when.at.clone().unwrap_or_default();
    match at.strip_prefix('+') {
        Some(from_now) => {
            let ms = values::duration_ms(from_now).map_err(|why| Error::invalid("schedule.at", why))?;
            Ok(Trigger::At { at: instant_text(render::now().plus_ms(ms)) })
        }
        None => Ok(Trigger::At { at }),
    }
}

async fn list(globals: &Globals, state: Option<ScheduleState>, limit: u32) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let list = client.call::<List>(ListRequest { state, limit }).await?;
    if globals.json {
        document("schedules", &list)?;
        return Ok(exit::OK);
    }
    if list.schedules.is_empty() {
        talk("there is no such schedule; make one: eclosion schedule add NAME --every 10m FLOW.toml");
        return Ok(exit::OK);
    }
    let rows = list.schedules.iter().map(|one| {
        vec![
            one.name.to_string(),
            word(&one.state),
            trigger_text(&one.spec.trigger),
            one.next.as_ref().map_or_else(|| "-".to_owned(), local),
            one.last.as_ref().map_or_else(|| "-".to_owned(), |last| word(&last.state)),
            action_text(&one.spec.action),
        ]
    });
    print(&table(&["schedule", "state", "trigger", "next", "last", "action"], rows))?;
    if list.cut > 0 {
        talk(&format!(
            "{} more were cut: eclosion schedule ls --limit {}",
            list.cut,
            u64::from(limit) + list.cut
        ));
    }
    Ok(exit::OK)
}

async fn show(globals: &Globals, name: ScheduleName) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let mut view = client.call::<Get>(NameRequest { name }).await?;
    view.why.extend(changed_since(globals, &view).await);
    if globals.json {
        document("schedule", &view)?;
        return Ok(exit::OK);
    }
    print(&head(&view))?;
    let under_way: Vec<_> = view.live.iter().chain(&view.queued).collect();
    if !under_way.is_empty() {
        print(&ticks(&under_way))?;
    }
    view.why.iter().try_for_each(|why| print(why))?;
    Ok(exit::OK)
}

/// A schedule starts what was set: its flow file is not read again, and its code has the name that it had then. Where
/// the file is not here any more, there is nothing to compare.
async fn changed_since(globals: &Globals, view: &ScheduleView) -> Option<String> {
    let Action::Run { flow, .. } = &view.spec.action else { return None };
    let source = flow.source.as_deref()?;
    let now = super::run::flow(globals, source).await.ok()?;
    let what = match now.code_hash == flow.code_hash {
        true if now == **flow => return None,
        true => "the flow",
        false => "the code of the flow",
    };
    Some(format!(
        "{what} {source} has changed since this was set; to start it as it is now: eclosion schedule add {} … {} --replace",
        view.name,
        shell_word(source)
    ))
}

fn head(view: &ScheduleView) -> String {
    let counts: Vec<_> =
        view.counts.iter().map(|(state, count)| format!("{count} {}", word(state))).collect();
    pairs(&[
        ("schedule", view.name.to_string()),
        ("state", word(&view.state)),
        ("trigger", trigger_text(&view.spec.trigger)),
        ("policies", policies(&view.spec)),
        ("action", action_text(&view.spec.action)),
        ("next", view.next.as_ref().map_or_else(|| "-".to_owned(), local)),
        ("ticks", if counts.is_empty() { "none yet".to_owned() } else { counts.join(", ") }),
    ])
}

async fn next(globals: &Globals, next: said::NextTicks) -> Result<u8, Error> {
    let after = next.after.as_deref().map(parse_instant).transpose()?;
    let reply = match next.name {
        Some(name) if !is_said(&next.when) => {
            let client = session::attach(globals).await?;
            let request = NextRequest { name: Some(name), spec: None, n: next.n, after };
            client.call::<Next>(request).await?
        }
        _ => preview(&next.when, next.n, after)?,
    };
    if globals.json {
        document("schedule-next", &reply)?;
        return Ok(exit::OK);
    }
    if reply.ticks.is_empty() {
        talk("no tick is left");
        return Ok(exit::OK);
    }
    // In UTC both would be the same column.
    let is_utc = reply.ticks.iter().all(|tick| tick.local == tick.utc);
    let rows = reply.ticks.iter().map(|tick| {
        let rule = tick.rule.as_ref().map(word).unwrap_or_default();
        let local = (!is_utc).then(|| tick.local.clone());
        local.into_iter().chain([tick.utc.clone(), rule]).collect::<Vec<_>>()
    });
    match is_utc {
        true => print(&table(&["UTC", "rule"], rows))?,
        false => print(&table(&[reply.zone.as_str(), "UTC", "rule"], rows))?,
    }
    Ok(exit::OK)
}

fn is_said(when: &said::When) -> bool {
    when.every.is_some() || when.cron.is_some() || when.at.is_some()
}

/// The same function as the kernel's, here: what could be made needs no kernel to be looked at.
fn preview(when: &said::When, n: u32, after: Option<Timestamp>) -> Result<NextReply, Error> {
    let action = Action::Call { operation: String::new(), request: Value::Null, deadline_ms: 1 };
    let (plan, spec) = SchedulePlan::compile(&Zones::default(), &spec(when, action)?)?;
    let name =
        ScheduleName::new("unnamed").map_err(|why| Error::internal("schedule.name", why.to_string()))?;
    let ticks = plan.preview(&name, after.unwrap_or_else(render::now), n);
    Ok(NextReply { ticks, zone: spec.zone.unwrap_or_default() })
}

fn changed(globals: &Globals, name: &ScheduleName, reply: &StateReply) -> Result<u8, Error> {
    match globals.json {
        true => document("schedule-state", reply)?,
        false => talk(&format!("schedule {name} is {}", word(&reply.state))),
    }
    Ok(exit::OK)
}

async fn trigger(globals: &Globals, name: ScheduleName, reason: String) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let request = TriggerRequest { name: name.clone(), idem: None, reason };
    let reply = client.call::<Fire>(request).await?;
    match globals.json {
        true => document("schedule-trigger", &reply)?,
        false => {
            talk(&format!("tick {} is {}; see: eclosion schedule show {name}", reply.n, word(&reply.state)))
        }
    }
    Ok(exit::OK)
}

async fn remove(globals: &Globals, name: ScheduleName, reason: String) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let reply = client.call::<Remove>(ActRequest { name: name.clone(), reason }).await?;
    match globals.json {
        true => document("schedule-removed", &reply)?,
        false => talk(&format!("schedule {name} is removed; runs that it has started go on")),
    }
    Ok(exit::OK)
}

async fn history(globals: &Globals, name: ScheduleName, limit: u32) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let history = client.call::<History>(HistoryRequest { name, limit }).await?;
    if globals.json {
        document("schedule-history", &history)?;
        return Ok(exit::OK);
    }
    if history.ticks.is_empty() {
        talk("it has not ticked yet");
        return Ok(exit::OK);
    }
    print(&ticks(&history.ticks.iter().collect::<Vec<_>>()))?;
    if history.cut > 0 {
        talk(&format!("{} more were cut: --limit {}", history.cut, u64::from(limit) + history.cut));
    }
    Ok(exit::OK)
}

fn ticks(ticks: &[&TickView]) -> String {
    let rows = ticks.iter().map(|tick| {
        let state = match (&tick.skipped, tick.count) {
            (Some(reason), 1) => format!("skipped: {}", word(reason)),
            (Some(reason), count) => format!("{count} skipped: {}", word(reason)),
            (None, _) => word(&tick.state),
        };
        let error = tick.error.as_ref().map(|error| error.message.clone());
        vec![
            tick.n.to_string(),
            instant_text(tick.scheduled),
            state,
            tick.run.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            error.unwrap_or_else(|| tick.why.clone()),
        ]
    });
    table(&["n", "instant", "state", "run", "why"], rows)
}

fn local(next: &UpcomingTick) -> String {
    let rule = next.rule.as_ref().map(|rule| format!(" ({})", word(rule))).unwrap_or_default();
    let jitter = match next.fires_at.since_ms(next.scheduled) {
        0 => String::new(),
        ms => format!(", {} later", duration(ms)),
    };
    format!("{}{rule}{jitter}", next.local)
}

fn trigger_text(trigger: &Trigger) -> String {
    match trigger {
        Trigger::Every { every_ms, anchor } => {
            format!("every {} from {}", duration(*every_ms), instant_text(*anchor))
        }
        Trigger::Cron { cron } => format!("cron {cron}"),
        Trigger::At { at } => format!("at {at}"),
    }
}

fn action_text(action: &Action) -> String {
    match action {
        Action::Run { flow, .. } => format!("run {}", flow.name),
        Action::Call { operation, .. } => format!("call {operation}"),
    }
}

/// Every one by its name, those that were filled in as well.
fn policies(spec: &ScheduleSpec) -> String {
    let zone = spec.zone.as_deref().unwrap_or_default();
    let missing = spec.missing.as_ref().map(word).unwrap_or_default();
    let repeated = spec.repeated.as_ref().map(word).unwrap_or_default();
    let misfire = spec.misfire.map(values::policy_text).unwrap_or_default();
    let overlap = spec.overlap.map(values::policy_text).unwrap_or_default();
    let grace = duration(spec.grace_ms.unwrap_or_default());
    let jitter = duration(spec.jitter_ms);
    format!(
        "zone {zone}, missing {missing}, repeated {repeated}, misfire {misfire} after {grace}, overlap {overlap}, jitter {jitter}"
    )
}
