//! Workers and environments: what is there, who is held or ended, and which tasks are refused.

use eclosion_schemas::certificate::DeathCertificate;
use eclosion_schemas::ops::pool::{
    self, ActReply, CallList, CallListReply, CallListRequest, Cordon, Drain, DrainRequest, Kill, Quarantine,
    QuarantineRequest, Recycle, Release, ReleaseRequest, Resume, ResumeRequest, Status, StatusReply,
    StatusRequest, WorkerActRequest,
};
use eclosion_schemas::ops::service::{List as Services, ListRequest as ServicesRequest, ServiceView};
use eclosion_schemas::view::WorkerView;
use eclosion_schemas::{Error, WorkerId};
use serde::Serialize;

use super::calls;
use crate::arguments::pool::{How, Pool, Quarantine as Quarantined};
use crate::globals::Globals;
use crate::render::{self, table};
use crate::terminal::{document, print, talk};
use crate::{exit, session};

/// Deaths that `pool` tells; the rest is behind `--json`.
const DIED_SHOWN_MAX: usize = 3;
/// Of a content, as it is shown and as it is enough to name it.
const CONTENT_SHOWN: usize = 12;

pub(super) async fn perform(globals: &Globals, act: Option<Pool>) -> Result<u8, Error> {
    match act {
        None | Some(Pool::Ls) => list(globals).await,
        Some(Pool::Show { worker }) => show(globals, &worker).await,
        Some(Pool::Quarantine(Quarantined::Ls)) => quarantine(globals).await,
        Some(Pool::Quarantine(Quarantined::Release { content, how })) => release(globals, content, how).await,
        Some(act) => perform_act(globals, act).await,
    }
}

async fn perform_act(globals: &Globals, act: Pool) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let of =
        |worker: WorkerId, how: How| WorkerActRequest { worker, reason: how.reason, dry_run: how.dry_run };
    let (reply, words) = match act {
        Pool::Drain { worker, how: How { dry_run, reason } } => {
            let words = if worker.is_some() { Words::ENDS } else { Words::POOL_ENDS };
            let request = DrainRequest { worker, reason, dry_run, ends_with_kernel: false };
            (client.call::<Drain>(request).await?, words)
        }
        Pool::Resume { worker, how: How { dry_run, reason } } => {
            let words = if worker.is_some() { Words::GOES_ON } else { Words::POOL_GOES_ON };
            (client.call::<Resume>(ResumeRequest { worker, reason, dry_run }).await?, words)
        }
        Pool::Cordon { worker, how } => (client.call::<Cordon>(of(worker, how)).await?, Words::CORDONED),
        Pool::Recycle { worker, how } => (client.call::<Recycle>(of(worker, how)).await?, Words::ENDS),
        Pool::Kill { worker, how } => (client.call::<Kill>(of(worker, how)).await?, Words::KILLED),
        // `perform` has answered these.
        Pool::Ls | Pool::Show { .. } | Pool::Quarantine(_) => return Ok(exit::OK),
    };
    if globals.json {
        document("pool-act", &reply)?;
    } else {
        told(&reply, words).iter().for_each(|line| talk(line));
    }
    Ok(exit::OK)
}

/// What an act does to the pool or to a worker, and to what is in hand.
#[derive(Debug, Clone, Copy)]
struct Words {
    /// Not one worker, whichever there are.
    of_pool: bool,
    does: &'static str,
    hand: &'static str,
}

impl Words {
    const ENDS: Self =
        Self { of_pool: false, does: "ends when it has nothing in hand", hand: "is finished first" };
    const POOL_ENDS: Self = Self {
        of_pool: true,
        does: "starts nothing any more, and its workers end when they have nothing in hand",
        hand: "is finished first",
    };
    const GOES_ON: Self = Self { of_pool: false, does: "is given attempts again", hand: "goes on" };
    const POOL_GOES_ON: Self = Self { of_pool: true, does: "starts attempts again", hand: "goes on" };
    const CORDONED: Self = Self { of_pool: false, does: "is given nothing any more", hand: "goes on" };
    const KILLED: Self = Self { of_pool: false, does: "is killed", hand: "is lost, and tried again" };
}

fn told(reply: &ActReply, words: Words) -> Vec<String> {
    let who = match &reply.workers[..] {
        [worker] if !words.of_pool => worker.to_string(),
        [] => "the pool".to_owned(),
        [_] => "the pool, 1 worker,".to_owned(),
        several => format!("the pool, {} workers,", several.len()),
    };
    if !reply.changed {
        let who = who.trim_end_matches(',');
        return vec![format!("nothing changes: {who} is in that state already, or about to be")];
    }
    let would = if reply.dry_run { "dry run: " } else { "" };
    let mut lines = vec![format!("{would}{who} {}", words.does)];
    lines.extend(reply.attempts.iter().map(|one| {
        format!("{would}{}, attempt {} on {}, {}", one.task, one.attempt, one.worker, words.hand)
    }));
    if reply.waiting > 0 {
        lines.push(format!("{} more wait for a worker", reply.waiting));
    }
    if reply.dry_run {
        lines.push("nothing was done; to do it, say the same without --dry-run".to_owned());
    }
    lines
}

async fn list(globals: &Globals) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let pool = client.call::<Status>(StatusRequest {}).await?;
    let calls = client.call::<CallList>(CallListRequest {}).await?;
    if globals.json {
        document("pool", &Listed { pool: &pool, calls: &calls })?;
        return Ok(exit::OK);
    }
    let services = client.call::<Services>(ServicesRequest { name: None }).await?.services;
    let by_hand = pool.workers.iter().filter(|worker| worker.attached).count();
    let serving = pool.workers.iter().filter(|worker| worker.serves && !worker.attached).count();
    let own = pool.workers.len() - by_hand - serving;
    let max = pool.workers_max;
    let waits = if pool.waiting == 1 { "task waits" } else { "tasks wait" };
    let kept = match &pool.why_no_cgroup {
        Some(why) => format!("{} alone: {why}", pool.containment),
        None => pool.containment.clone(),
    };
    let more = [(serving, "for services"), (by_hand, "started by hand")];
    let more: String = more
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, which)| format!(" and {count} {which}"))
        .collect();
    print(&format!(
        "{own} of at most {max} workers{more}, {} {waits}; calls: {} running, {} waiting; limits are kept by {kept}",
        pool.waiting, calls.running, calls.waiting
    ))?;
    if !pool.workers.is_empty() {
        print(&table(
            &["worker", "state", "pid", "finished", "memory", "task", "held"],
            pool.workers.iter().map(|worker| row(worker, &calls, &services)),
        ))?;
    }
    if !calls.calls.is_empty() {
        print(&calls::listed(&calls.calls))?;
    }
    let rows = pool.environments.iter().map(|environment| {
        let doing = environment.error.as_ref().map_or(&environment.doing, |error| &error.message);
        let id = environment.environment.to_string();
        vec![id, render::word(&environment.state), environment.requirements.join(" "), doing.clone()]
    });
    if !pool.environments.is_empty() {
        print(&table(&["environment", "state", "requirements", "doing"], rows))?;
    }
    remarks(&pool);
    Ok(exit::OK)
}

/// The pool's own words, and beside them what calls there are.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    pool: &'a StatusReply,
    calls: &'a CallListReply,
}

fn row(worker: &WorkerView, calls: &CallListReply, services: &[ServiceView]) -> Vec<String> {
    let call = calls.calls.iter().find(|call| call.worker.as_ref() == Some(&worker.worker));
    let call = call.map(|call| call.call.to_string());
    let service = services.iter().find(|service| worker.serves && service.pid == Some(worker.pid));
    let service = service.map(|service| format!("service {}", service.name));
    let task = worker.task.as_ref().map(ToString::to_string).or(call).or(service).unwrap_or_default();
    vec![
        worker.worker.to_string(),
        if worker.attached {
            format!("{}, by hand", render::word(&worker.state))
        } else {
            render::word(&worker.state)
        },
        worker.pid.to_string(),
        worker.finished.to_string(),
        worker.rss_bytes.map_or_else(|| "-".to_owned(), render::bytes),
        task,
        worker.held.clone().unwrap_or_default(),
    ]
}

fn remarks(pool: &StatusReply) {
    if let Some(reason) = &pool.drained {
        talk(&format!("the pool is {reason}; it goes on with: eclosion pool resume"));
    }
    for waiting in &pool.pending {
        if waiting.reasons.is_empty() {
            talk(&format!("{waiting} waits for more than a worker; see: eclosion arb ls"));
        }
        for reason in &waiting.reasons {
            talk(&format!("{waiting} {}", render::run::pending_and_next(reason)));
        }
    }
    // Those that had nothing in hand ended because they were told to.
    let lost = pool.died.iter().rev().filter(|dead| dead.task.is_some()).take(DIED_SHOWN_MAX);
    lost.flat_map(render::run::certificate).for_each(|line| talk(&line));
    if pool.quarantined > 0 {
        talk(&format!("{} tasks are refused: eclosion pool quarantine ls", pool.quarantined));
    }
}

async fn show(globals: &Globals, id: &WorkerId) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let pool = client.call::<Status>(StatusRequest {}).await?;
    let alive = pool.workers.iter().find(|worker| worker.worker == *id);
    let dead = pool.died.iter().find(|dead| dead.worker == *id);
    if globals.json {
        let found = serde_json::json!({"worker": alive, "certificate": dead});
        return match (alive, dead) {
            (None, None) => Err(unknown(id)),
            _ => document("worker", &found).map(|()| exit::OK),
        };
    }
    match (alive, dead) {
        (Some(worker), _) => print(&shown(worker))?,
        (None, Some(dead)) => print(&render::run::certificate(dead).join("\n"))?,
        (None, None) => return Err(unknown(id)),
    }
    Ok(exit::OK)
}

fn unknown(id: &WorkerId) -> Error {
    Error::not_found("worker.unknown", format!("there is no worker {id}, and none of the last dead was it"))
        .help("eclosion pool ls")
}

fn shown(worker: &WorkerView) -> String {
    let now = render::now();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let ago = |at| format!("{} ago", render::duration(now.since_ms(at)));
    render::pairs(&[
        ("worker", worker.worker.to_string()),
        ("state", format!("{}, since {}", render::word(&worker.state), ago(worker.since))),
        ("held", or_dash(worker.held.clone())),
        ("pid", worker.pid.to_string()),
        ("environment", worker.environment.to_string()),
        ("started", or_dash(worker.started_at.map(ago))),
        ("task", or_dash(worker.task.as_ref().map(ToString::to_string))),
        ("finished", worker.finished.to_string()),
        ("memory", or_dash(worker.rss_bytes.map(render::bytes))),
        ("processes", or_dash(worker.processes.map(|count| count.to_string()))),
    ])
}

async fn quarantine(globals: &Globals) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let found = client.call::<Quarantine>(QuarantineRequest {}).await?;
    if globals.json {
        document("quarantine", &found)?;
        return Ok(exit::OK);
    }
    if found.tasks.is_empty() {
        talk("nothing is quarantined");
        return Ok(exit::OK);
    }
    let now = render::now();
    let rows = found.tasks.iter().map(|task| {
        let since = format!("{} ago", render::duration(now.since_ms(task.since)));
        let deaths: Vec<_> = task.certificates.iter().map(death).collect();
        vec![
            task.content.chars().take(CONTENT_SHOWN).collect(),
            task.function.clone(),
            format!("{}/{}", task.run, task.task),
            since,
            deaths.join("; "),
        ]
    });
    print(&table(&["content", "function", "task", "since", "its workers"], rows))?;
    talk("let one be tried again: eclosion pool quarantine release CONTENT");
    Ok(exit::OK)
}

fn death(certificate: &DeathCertificate) -> String {
    format!("{} {}", certificate.worker, certificate.death)
}

async fn release(globals: &Globals, content: String, how: How) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let request = ReleaseRequest { content, reason: how.reason, dry_run: how.dry_run };
    let reply: pool::ReleaseReply = client.call::<Release>(request).await?;
    if globals.json {
        document("quarantine-release", &reply)?;
    } else {
        let would = if reply.dry_run { "would be" } else { "is" };
        talk(&format!("{} {would} tried again in any run that wants it", reply.task.function));
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(workers: &[&str], dry_run: bool) -> ActReply {
        let workers = workers.iter().map(|worker| worker.parse().unwrap()).collect();
        ActReply { dry_run, changed: true, workers, attempts: Vec::new(), waiting: 0 }
    }

    #[test]
    fn a_drain_of_a_pool_with_one_worker_speaks_of_the_pool() {
        let told = told(&reply(&["w-1-1"], true), Words::POOL_ENDS);
        assert!(told[0].starts_with("dry run: the pool, 1 worker, starts nothing any more"), "{told:?}");
        assert!(told[1].starts_with("nothing was done"), "{told:?}");
        let one = super::told(&reply(&["w-1-1"], false), Words::ENDS);
        assert_eq!(one, ["w-1-1 ends when it has nothing in hand"]);
    }
}
