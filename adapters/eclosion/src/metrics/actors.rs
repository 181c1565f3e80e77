//! Actors and their mailboxes: what `eclosion tree` shows, as numbers.

use std::collections::BTreeMap;

use eclosion_kernel::Kernel;
use eclosion_schemas::view::{ActorRow, ActorState, Latency};

use super::text::Kind::{Counter, Gauge};
use super::text::{Text, Value};
use super::thousandths;

/// Below these, actors are few and stay.
const LASTING: [&str; 2] = ["/journal/", "/bus/"];
const STATES: [(ActorState, &str); 9] = [
    (ActorState::Starting, "starting"),
    (ActorState::Ready, "ready"),
    (ActorState::Busy, "busy"),
    (ActorState::Stuck, "stuck"),
    (ActorState::Paused, "paused"),
    (ActorState::Draining, "draining"),
    (ActorState::Backoff, "backoff"),
    (ActorState::Failed, "failed"),
    (ActorState::Stopped, "stopped"),
];

pub(super) fn write(kernel: &Kernel, text: &mut Text) {
    let rows = kernel.rows();
    let (lasting, passing): (Vec<_>, Vec<_>) = rows.iter().partition(|row| is_lasting(&row.address));
    states(&lasting, &passing, text);
    counters(&lasting, text);
    gauges(&lasting, text);
    let help =
        "Messages that their actors did not survive or that had nobody to go to, as far as they are kept.";
    text.family("eclosion_dead_letters", Gauge, help).sample(&[], kernel.bus().dead_letters().len());
    let help = "Dead letters that newer ones have pushed out.";
    text.family("eclosion_dead_letters_forgotten_total", Counter, help)
        .sample(&[], kernel.bus().dead_letters_forgotten());
}

/// One chunk, or of those that a kernel always has.
fn is_lasting(address: &str) -> bool {
    LASTING.iter().any(|prefix| address.starts_with(prefix)) || !address.trim_start_matches('/').contains('/')
}

/// `/sessions/17` is `/sessions/*`.
fn kind_of(address: &str) -> String {
    let first = address.trim_start_matches('/').split('/').next().unwrap_or_default();
    format!("/{first}/*")
}

/// Those that come and go are counted together, and only so: a sum over them would run backwards when one leaves.
fn states(lasting: &[&ActorRow], passing: &[&ActorRow], text: &mut Text) {
    let help = "Actors by state; those that come and go under the address of their kind.";
    let mut family = text.family("eclosion_actors", Gauge, help);
    for row in lasting {
        for (state, name) in STATES {
            family.sample(&[("actor", &row.address), ("state", name)], row.state == state);
        }
    }
    let mut kinds = BTreeMap::<(String, &str), u64>::new();
    for row in passing {
        let state = STATES.iter().find(|(state, _)| *state == row.state).map_or("", |(_, name)| name);
        *kinds.entry((kind_of(&row.address), state)).or_default() += 1;
    }
    for ((kind, state), count) in kinds {
        family.sample(&[("actor", &kind), ("state", state)], count);
    }
}

fn counters(rows: &[&ActorRow], text: &mut Text) {
    type Of = fn(&ActorRow) -> u64;
    let families: [(&'static str, &str, Of); 4] = [
        ("eclosion_actor_restarts_total", "Lives of the actor after its first.", |row| {
            u64::from(row.incarnation.0.saturating_sub(1))
        }),
        ("eclosion_messages_accepted_total", "Messages that the mailbox has taken in.", |row| row.accepted),
        ("eclosion_messages_refused_total", "Messages never accepted: full or draining.", |row| row.refused),
        ("eclosion_messages_redelivered_total", "Times a message came back from a life that ended.", |row| {
            row.redelivered
        }),
    ];
    for (name, help, of) in families {
        let mut family = text.family(name, Counter, help);
        rows.iter().for_each(|row| family.sample(&[("actor", &row.address)], of(row)));
    }
    let help = "What became of accepted messages. The sum over outcomes, with what waits and is in hand, is what was accepted.";
    let mut family = text.family("eclosion_messages_total", Counter, help);
    for row in rows {
        for (outcome, count) in [
            ("handled", row.handled),
            ("dropped", row.dropped),
            ("expired", row.expired),
            ("cancelled", row.cancelled),
            ("dead_lettered", row.dead_letters),
        ] {
            family.sample(&[("actor", &row.address), ("outcome", outcome)], count);
        }
    }
}

fn gauges(rows: &[&ActorRow], text: &mut Text) {
    let help = "Accepted messages that wait, or that the actor has in hand.";
    let mut family = text.family("eclosion_mailbox_messages", Gauge, help);
    for row in rows {
        family.sample(&[("actor", &row.address), ("state", "queued")], row.depth);
        family.sample(&[("actor", &row.address), ("state", "in_hand")], row.in_hand);
    }
    let help = "Messages that the mailbox can hold.";
    each(text, "eclosion_mailbox_capacity", help, rows, |row| Some(row.capacity.into()));
    let help = "How long the oldest message has waited; absent while none does.";
    each(text, "eclosion_mailbox_oldest_seconds", help, rows, |row| {
        row.oldest_ms.map(|ms| thousandths(ms).into())
    });
    let help = "The part of the last full second with something in hand.";
    each(text, "eclosion_actor_busy_ratio", help, rows, |row| {
        Some((f64::from(row.busy_permille) / 1000.0).into())
    });
    let help = "From accepted to taken, of a sample of recent asks.";
    quantiles(text, "eclosion_message_wait_seconds", help, rows, |row| row.wait);
    let help = "From taken until the actor takes the next, of a sample of recent messages.";
    quantiles(text, "eclosion_message_handling_seconds", help, rows, |row| row.handling);
}

fn each(
    text: &mut Text,
    name: &'static str,
    help: &str,
    rows: &[&ActorRow],
    of: fn(&ActorRow) -> Option<Value>,
) {
    let mut family = text.family(name, Gauge, help);
    for row in rows {
        if let Some(value) = of(row) {
            family.sample(&[("actor", &row.address)], value);
        }
    }
}

fn quantiles(
    text: &mut Text,
    name: &'static str,
    help: &str,
    rows: &[&ActorRow],
    of: fn(&ActorRow) -> Option<Latency>,
) {
    let mut family = text.family(name, Gauge, help);
    for (row, latency) in rows.iter().filter_map(|row| Some((row, of(row)?))) {
        for (quantile, us) in [("0.5", latency.p50_us), ("0.99", latency.p99_us)] {
            family.sample(&[("actor", &row.address), ("quantile", quantile)], us / 1_000_000.0);
        }
    }
}
