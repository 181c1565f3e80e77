//! What tasks and clients share: resources, locks and rates; who holds them, and who waits for whom.

use eclosion_schemas::ops::arbitration::{LOCK_WHOLE, Scarce, Status, StatusReply, StatusRequest};
use eclosion_schemas::ops::lease::ReleaseRequest;
use eclosion_schemas::view::LeaseView;
use eclosion_schemas::{Error, Timestamp};

use crate::arguments::arb::Arb;
use crate::exit;
use crate::globals::Globals;
use crate::render::{self, table};
use crate::session;
use crate::terminal::{document, print, talk};

mod lease;

pub(super) async fn perform(globals: &Globals, arb: Arb) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let arb = match arb {
        Arb::Acquire(request) if request.command.is_empty() => {
            return lease::acquire(globals, &client, *request).await;
        }
        Arb::Acquire(request) => return lease::hold(globals, client, *request).await,
        Arb::Renew { lease, ttl } => return lease::renew(globals, &client, lease, ttl).await,
        Arb::Release { lease, key, reason, dry_run } => {
            return lease::release(globals, &client, ReleaseRequest { lease, reason, key, dry_run }).await;
        }
        looks => looks,
    };
    let status = client.call::<Status>(StatusRequest {}).await?;
    match arb {
        Arb::Status => overview(globals, &status),
        Arb::Leases => leases(globals, &status.leases),
        Arb::Waiting { dry_run: false } => waiting(globals, &status),
        // The rest was answered above.
        _ => next(globals, &status),
    }?;
    Ok(exit::OK)
}

fn overview(globals: &Globals, status: &StatusReply) -> Result<(), Error> {
    if globals.json {
        return document("arbitration", status);
    }
    let amount = render::run::amount;
    let counted = status.capacity.iter().map(|(resource, capacity)| {
        let free = status.free.get(resource).copied().unwrap_or_default();
        vec![resource.clone(), amount(resource, free), amount(resource, *capacity), String::new()]
    });
    let rates = status.rates.iter().map(|rate| {
        let next = render::duration(rate.next_at.since_ms(render::now()));
        let next = if rate.free < rate.burst { format!("next in {next}") } else { String::new() };
        vec![format!("rate {}", rate.rate), rate.free.to_string(), rate.limit.clone(), next]
    });
    let locks = status.locks.iter().map(|lock| {
        let how = if lock.shared { "shared" } else { "alone" };
        let holders: Vec<_> = lock.holders.iter().map(|holder| holder.to_string()).collect();
        vec![format!("lock {}", lock.lock), "-".into(), how.into(), format!("held by {}", holders.join(", "))]
    });
    let rows: Vec<_> = counted.chain(rates).chain(locks).collect();
    print(&table(&["what", "free", "of", ""], rows))?;
    talk(&format!("{} leases, {} waiting", status.leases.len(), status.waiting_count));
    Ok(())
}

fn leases(globals: &Globals, leases: &[LeaseView]) -> Result<(), Error> {
    if globals.json {
        return document("leases", &serde_json::json!({ "leases": leases }));
    }
    if leases.is_empty() {
        talk("nobody holds more than a worker's default lease");
        return Ok(());
    }
    let now = render::now();
    let rows = leases.iter().map(|lease| {
        let held: Vec<_> = lease.amounts.iter().map(|(key, amount)| in_words(key, *amount)).collect();
        let since = format!("{} ago", render::duration(now.since_ms(lease.since)));
        vec![
            lease.lease.to_string(),
            holder(lease),
            lease.tenant.to_string(),
            held.join(", "),
            since,
            ends(lease, now),
        ]
    });
    print(&table(&["lease", "holder", "tenant", "holds", "since", "ends"], rows))
}

fn holder(lease: &LeaseView) -> String {
    let task = lease.task.as_ref().map(ToString::to_string);
    task.or_else(|| Some(lease.client.as_ref()?.to_string())).unwrap_or_default()
}

fn ends(lease: &LeaseView, now: Timestamp) -> String {
    let Some(client) = &lease.client else { return "with its attempt".into() };
    match (client.until, client.bound) {
        (Some(until), true) => format!("in {}, or with its session", render::duration(until.since_ms(now))),
        (Some(until), false) => format!("in {}", render::duration(until.since_ms(now))),
        (None, _) => "with its session".into(),
    }
}

fn in_words(key: &str, amount: u64) -> String {
    match Scarce::of(key) {
        Scarce::Resource(resource) => format!("{resource} {}", render::run::amount(resource, amount)),
        Scarce::Lock(lock) if amount < LOCK_WHOLE => format!("lock {lock} shared"),
        Scarce::Lock(lock) => format!("lock {lock}"),
        Scarce::Rate(rate) => format!("rate {rate} {amount}"),
    }
}

fn waiting(globals: &Globals, status: &StatusReply) -> Result<(), Error> {
    if globals.json {
        let (waiting, count) = (&status.waiting, status.waiting_count);
        return document("waiting", &serde_json::json!({ "waiting": waiting, "count": count }));
    }
    for waiting in &status.waiting {
        for reason in &waiting.reasons {
            print(&format!("{waiting} {}", render::run::pending(reason)))?;
        }
    }
    match status.waiting_count - status.waiting.len() as u64 {
        0 if status.waiting.is_empty() => talk("nobody waits"),
        0 => {}
        more => talk(&format!("{more} more wait behind these")),
    }
    Ok(())
}

fn next(globals: &Globals, status: &StatusReply) -> Result<(), Error> {
    if globals.json {
        return document("next", &serde_json::json!({ "next": status.next }));
    }
    if status.next.is_empty() {
        talk("no task waits");
    }
    status.next.iter().try_for_each(|task| print(&task.to_string()))
}
