//! Retention: what may go and why, the trash, the records of deletions.

use std::collections::BTreeMap;

use eclosion_schemas::Error;
use eclosion_schemas::ops::gc::{
    Apply, ApplyReply, ApplyRequest, ItemKind, Log, LogRequest, Plan, PlanItem, PlanReply, PlanRequest,
    Policy, PolicyRequest, Purge, PurgeRequest, Restore, RestoreRequest, Step, Trash, TrashRequest,
};

use crate::arguments::gc::{self, Gc};
use crate::globals::Globals;
use crate::render::{self, table};
use crate::terminal::{document, print, talk};
use crate::{exit, session};

pub(super) async fn perform(globals: &Globals, gc: Gc) -> Result<u8, Error> {
    match gc {
        Gc::Plan { only, items } => plan(globals, only, items).await,
        Gc::Apply(apply) if apply.yes => do_apply(globals, apply).await,
        Gc::Apply(apply) => {
            let code = plan(globals, apply.only, true).await?;
            if !globals.json {
                let only = apply.only.map(|kind| format!(" --only {kind}")).unwrap_or_default();
                let reason = render::reason_flag(&apply.reason);
                talk(&format!("nothing was done; to do it: eclosion gc apply --yes{only}{reason}"));
            }
            Ok(code)
        }
        Gc::Trash { empty: true, reason } => empty(globals, reason).await,
        Gc::Trash { empty: false, .. } => trash(globals).await,
        Gc::Restore { item, reason } => restore(globals, RestoreRequest { item, reason }).await,
        Gc::Log { limit } => log(globals, limit).await,
        Gc::Policy => policy(globals).await,
    }
}

async fn plan(globals: &Globals, only: Option<ItemKind>, items: bool) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    // As long as it takes to look at the disk; a stopped kernel still ends it.
    let plan = client.stream::<Plan>(PlanRequest { only }).await?.reply().await?;
    if globals.json {
        document("gc-plan", &plan)?;
        return Ok(exit::OK);
    }
    print(&kinds(&plan))?;
    let shown = |items: &[PlanItem]| {
        table(&["item", "step", "size", "what", "why", "held by"], items.iter().map(row))
    };
    match items {
        _ if plan.items.is_empty() => talk("there is nothing to delete"),
        true => print(&shown(&plan.items))?,
        false => print(&grouped(&plan.items))?,
    }
    if !plan.held.is_empty() {
        print(&shown(&plan.held))?;
    }
    if plan.cut > 0 {
        talk(&format!("{} more are not listed", plan.cut));
    }
    plan.findings.iter().for_each(|finding| talk(finding));
    Ok(exit::OK)
}

fn kinds(plan: &PlanReply) -> String {
    let kinds = plan.totals.iter().filter(|total| total.count > 0);
    let mut rows: Vec<_> = kinds
        .map(|total| vec![total.kind.to_string(), total.count.to_string(), render::bytes(total.bytes)])
        .collect();
    rows.push(vec!["trash".into(), plan.trash.to_string(), render::bytes(plan.trash_bytes)]);
    rows.push(vec!["all, of the quota".into(), String::new(), quota(plan)]);
    table(&["kept", "count", "size"], rows)
}

fn quota(plan: &PlanReply) -> String {
    format!("{} of {}", render::bytes(plan.used_bytes), render::bytes(plan.quota_bytes))
}

fn row(planned: &PlanItem) -> Vec<String> {
    vec![
        short(&planned.item.to_string()),
        render::word(&planned.step),
        render::bytes(planned.bytes),
        planned.what.clone(),
        planned.why.clone(),
        planned.held_by.join("; "),
    ]
}

/// Digests are long; the first characters tell them apart.
fn short(item: &str) -> String {
    const SHOWN: usize = 40;
    if item.chars().count() <= SHOWN {
        item.to_owned()
    } else {
        item.chars().take(SHOWN).chain(['…']).collect()
    }
}

/// One line for each kind, step and rule.
fn grouped(items: &[PlanItem]) -> String {
    let mut groups: BTreeMap<(Step, ItemKind, String), (u64, u64, &str)> = BTreeMap::new();
    for planned in items {
        let key = (planned.step, planned.item.kind, render::word(&planned.rule));
        let sum = groups.entry(key).or_insert((0, 0, &planned.why));
        *sum = (sum.0 + 1, sum.1 + planned.bytes, sum.2);
    }
    let rows = groups.into_iter().map(|((step, kind, rule), (count, bytes, why))| {
        vec![
            render::word(&step),
            kind.to_string(),
            count.to_string(),
            render::bytes(bytes),
            rule,
            why.to_owned(),
        ]
    });
    table(&["step", "kind", "count", "size", "rule", "why (of the first)"], rows)
}

async fn do_apply(globals: &Globals, apply: gc::Apply) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let request = ApplyRequest { only: apply.only, reason: apply.reason, items: Vec::new() };
    let applied = client.stream::<Apply>(request).await?.reply().await?;
    tell(globals, &applied)
}

fn tell(globals: &Globals, applied: &ApplyReply) -> Result<u8, Error> {
    if globals.json {
        document("gc-apply", applied)?;
    } else {
        let ApplyReply { collected, trashed_bytes, purged, freed_bytes, failed, held, .. } = applied;
        print(&format!("{collected} into the trash, {}", render::bytes(*trashed_bytes)))?;
        print(&format!("{purged} deleted for good, {} given back", render::bytes(*freed_bytes)))?;
        if *held > 0 {
            talk(&format!("{held} are held: eclosion gc plan"));
        }
        if *failed > 0 {
            talk(&format!("{failed} could not be moved: eclosion gc log"));
        }
        applied.findings.iter().for_each(|finding| talk(finding));
    }
    Ok(if applied.failed == 0 { exit::OK } else { exit::FAILED })
}

async fn empty(globals: &Globals, reason: String) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let purged = client.stream::<Purge>(PurgeRequest { item: None, reason }).await?.reply().await?;
    tell(globals, &purged)
}

async fn trash(globals: &Globals) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let trash = client.call::<Trash>(TrashRequest {}).await?;
    if globals.json {
        document("gc-trash", &trash)?;
        return Ok(exit::OK);
    }
    if trash.items.is_empty() {
        talk("the trash is empty");
        return Ok(exit::OK);
    }
    let now = render::now();
    let rows = trash.items.iter().map(|item| {
        vec![
            item.item.to_string(),
            item.state.clone(),
            render::bytes(item.bytes),
            item.what.clone(),
            render::word(&item.rule),
            render::duration(item.until.since_ms(now)),
        ]
    });
    print(&table(&["item", "state", "size", "what", "rule", "goes in"], rows))?;
    if trash.cut > 0 {
        talk(&format!("{} more are not listed", trash.cut));
    }
    Ok(exit::OK)
}

async fn restore(globals: &Globals, request: RestoreRequest) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let restored = client.stream::<Restore>(request).await?.reply().await?;
    if globals.json {
        document("gc-restore", &restored)?;
        return Ok(exit::OK);
    }
    restored.restored.iter().try_for_each(|item| print(&item.to_string()))?;
    Ok(exit::OK)
}

async fn log(globals: &Globals, limit: u32) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let log = client.call::<Log>(LogRequest { limit }).await?;
    if globals.json {
        document("gc-log", &log)?;
        return Ok(exit::OK);
    }
    if log.records.is_empty() {
        talk("nothing was ever deleted");
        return Ok(exit::OK);
    }
    let now = render::now();
    let rows = log.records.iter().map(|record| {
        vec![
            format!("{} ago", render::duration(now.since_ms(record.at))),
            record.action.clone(),
            record.item.to_string(),
            render::bytes(record.bytes),
            record.rule.as_ref().map(render::word).unwrap_or_default(),
            record.why.clone(),
            record.reason.clone(),
        ]
    });
    print(&table(&["when", "what", "item", "size", "rule", "why", "reason"], rows))?;
    Ok(exit::OK)
}

async fn policy(globals: &Globals) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let policy = client.call::<Policy>(PolicyRequest {}).await?;
    if globals.json {
        document("gc-policy", &policy)?;
        return Ok(exit::OK);
    }
    let rows = policy.settings.iter().map(|setting| {
        let shown = match setting.key.rsplit_once('_') {
            Some((_, "ms")) => render::duration(setting.value),
            _ if setting.key.contains("bytes") => render::bytes(setting.value),
            _ => setting.value.to_string(),
        };
        vec![setting.key.clone(), setting.value.to_string(), shown, setting.origin.clone()]
    });
    print(&table(&["key", "value", "that is", "origin"], rows))?;
    let now = render::now();
    if let Some(last) = policy.last_pass {
        talk(&format!("the last pass was {} ago", render::duration(now.since_ms(last))));
    }
    if let Some(next) = policy.next_pass {
        talk(&format!("the next is in {}", render::duration(next.since_ms(now))));
    }
    policy.findings.iter().for_each(|finding| talk(finding));
    Ok(exit::OK)
}
