//! The pages of the socket: `/metrics`, `/healthz`, `/readyz`.
//!
//! Everything is read when it is asked for, from books that exist anyway: mailboxes, the journal's marks, what the
//! subsystems list. The one thing kept is [`Facts`], how many events of each kind the journal has got since the kernel
//! started; it is brought up to date by a look. So nobody who does not look pays.
//!
//! Names are `eclosion_*` in base units, counters end in `_total`. Labels come from small closed sets: the address of an
//! actor (those that come and go, sessions and workers, are one), a state, an outcome, a kind. Never the id of a run, task,
//! worker or session. A subsystem that does not answer leaves its families out, and `eclosion_source_up` says so.

mod actors;
#[cfg(feature = "workers")]
mod subsystems;
mod text;

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use eclosion_ipc::{Page, Pages, Written};
use eclosion_kernel::Kernel;
use eclosion_schemas::Seq;

use self::text::Kind::{Counter, Gauge};
use self::text::Text;
use crate::introspect::{self, Own};

/// Kinds of events that are counted one by one; an application brings its own.
const KINDS_MAX: usize = 128;
/// What further kinds are counted as.
const OTHER: &str = "other";

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Metrics {
    own: Arc<Own>,
    facts: Arc<Mutex<Facts>>,
}

impl Metrics {
    /// Counts what happens from now on.
    pub(crate) fn new(own: &Arc<Own>, kernel: &Kernel) -> Arc<Self> {
        let facts = Facts { through: kernel.journal().marks().written, kinds: BTreeMap::new() };
        Arc::new(Self { own: Arc::clone(own), facts: Arc::new(Mutex::new(facts)) })
    }
}

impl Pages for Metrics {
    fn write(&self, page: Page) -> Pin<Box<dyn Future<Output = Written> + Send>> {
        let (own, facts) = (Arc::clone(&self.own), Arc::clone(&self.facts));
        Box::pin(async move {
            let kernel = own.kernel.get().ok_or("the kernel is starting\n")?;
            match page {
                Page::Metrics => Ok(metrics(&own, kernel, facts).await),
                Page::Health => match kernel.journal().poisoned() {
                    Some(why) => Err(format!("read_only since a write or sync failed: {why}\n")),
                    None => Ok("ok\n".to_owned()),
                },
                Page::Ready => match introspect::state(&own, kernel) {
                    introspect::READY => Ok("ready\n".to_owned()),
                    other => Err(format!("{other}\n")),
                },
            }
        })
    }
}

/// Events that the journal has got since the kernel started.
#[derive(Debug)]
struct Facts {
    through: Seq,
    kinds: BTreeMap<String, u64>,
}

impl Facts {
    /// Reads on from where it was.
    fn catch_up(&mut self, kernel: &Kernel) -> bool {
        let Self { through, kinds } = self;
        let read = kernel.reader().read(*through, &[], &mut |record| {
            let kind: &str = &record.kind;
            let kind = if kinds.len() < KINDS_MAX || kinds.contains_key(kind) { kind } else { OTHER };
            *kinds.entry(kind.to_owned()).or_default() += 1;
            *through = record.seq;
            ControlFlow::Continue(())
        });
        read.is_ok()
    }
}

async fn metrics(own: &Own, kernel: &Kernel, facts: Arc<Mutex<Facts>>) -> String {
    let mut text = Text::default();
    let mut up = BTreeMap::new();
    process(own, kernel, &mut text);
    journal(kernel, &mut text);
    traffic(own, &mut text);
    spans(kernel, &mut text);
    let reader = kernel.clone();
    // It may have much to read.
    let counted = tokio::task::spawn_blocking(move || {
        let mut facts = facts.lock().unwrap_or_else(PoisonError::into_inner);
        let is_whole = facts.catch_up(&reader);
        (is_whole, facts.kinds.clone())
    });
    if let Ok((is_whole, kinds)) = counted.await {
        up.insert("journal", is_whole);
        let help = "Events that the journal has got since the kernel started.";
        let mut family = text.family("eclosion_events_total", Counter, help);
        kinds.iter().for_each(|(kind, count)| family.sample(&[("kind", kind)], *count));
    }
    actors::write(kernel, &mut text);
    #[cfg(feature = "workers")]
    subsystems::write(kernel.bus(), &mut text, &mut up).await;
    let help = "Whether what the other numbers are read from has answered.";
    let mut family = text.family("eclosion_source_up", Gauge, help);
    up.iter().for_each(|(source, is_up)| family.sample(&[("source", source)], *is_up));
    text.into_string()
}

fn process(own: &Own, kernel: &Kernel, text: &mut Text) {
    text.family("eclosion_build_info", Gauge, "The release; always 1.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1_u64);
    let state = introspect::state(own, kernel);
    let mut family = text.family("eclosion_kernel_state", Gauge, "1 for the state that the kernel is in.");
    for known in introspect::STATES {
        family.sample(&[("state", known)], known == state);
    }
    text.family("eclosion_start_time_seconds", Gauge, "When the kernel was started, since 1970.")
        .sample(&[], thousandths(own.started.0));
    let help = "Lives of the kernel in this state directory, this one included.";
    text.family("eclosion_epoch", Gauge, help).sample(&[], u64::from(kernel.journal().epoch().0));
    let help = "Resident memory of the kernel itself, without its workers.";
    text.family("eclosion_process_resident_memory_bytes", Gauge, help)
        .sample(&[], introspect::own_rss_bytes());
}

fn journal(kernel: &Kernel, text: &mut Text) {
    let marks = kernel.journal().marks();
    let help = "How far the journal is: appended in memory, written (survives a kill), synced (survives a power cut).";
    let mut family = text.family("eclosion_journal_records", Gauge, help);
    for (mark, seq) in [("appended", marks.appended), ("written", marks.written), ("synced", marks.synced)] {
        family.sample(&[("mark", mark)], seq.0);
    }
    let help = "1 once a write or sync has failed: the kernel is read-only until it is started again.";
    text.family("eclosion_journal_poisoned", Gauge, help).sample(&[], kernel.journal().poisoned().is_some());
}

fn traffic(own: &Own, text: &mut Text) {
    let help = "Calls and subscriptions of clients that have not ended.";
    text.family("eclosion_client_streams", Gauge, help).sample(&[], own.traffic.streams());
    let help = "Items that open streams may send before their clients grant more.";
    text.family("eclosion_client_credit_items", Gauge, help).sample(&[], own.traffic.credit());
}

/// Only where somebody records spans.
fn spans(kernel: &Kernel, text: &mut Text) {
    let Some(counts) = kernel.bus().tracer().map(|tracer| tracer.counts()) else { return };
    let help = "Spans that have ended, by what became of them.";
    let mut family = text.family("eclosion_spans_total", Counter, help);
    family.sample(&[("outcome", "exported")], counts.exported);
    family.sample(&[("outcome", "dropped")], counts.dropped);
}

#[expect(clippy::cast_precision_loss, reason = "a time in milliseconds is far below 2^53")]
fn thousandths(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests;
