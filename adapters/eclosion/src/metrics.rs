//! The pages of the socket: `/metrics`, `/healthz`, `/readyz`.
//!
//! Everything is read when it is asked for, from books that exist anyway: mailboxes, the journal's marks, what the
//! subsystems list. Nothing is kept for it and no look reads the journal, however long ago the last one was. So nobody
//! who does not look pays, and who looks pays the same each time.
//!
//! Names are `eclosion_*` in base units, counters end in `_total`. Labels come from small closed sets: the address of an
//! actor (those that come and go, sessions and workers, are one), a state, an outcome, a kind. Never the id of a run, task,
//! worker or session. A subsystem that does not answer leaves its families out, and `eclosion_source_up` says so.

mod actors;
#[cfg(feature = "workers")]
mod subsystems;
mod text;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use eclosion_ipc::{Page, Pages, Written};
use eclosion_kernel::Kernel;

use self::text::Kind::{Counter, Gauge};
use self::text::Text;
use crate::introspect::{self, Own};

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Metrics {
    own: Arc<Own>,
}

impl Metrics {
    pub(crate) fn new(own: &Arc<Own>) -> Arc<Self> {
        Arc::new(Self { own: Arc::clone(own) })
    }
}

impl Pages for Metrics {
    fn write(&self, page: Page) -> Pin<Box<dyn Future<Output = Written> + Send>> {
        let own = Arc::clone(&self.own);
        Box::pin(async move {
            let kernel = own.kernel.get().ok_or("the kernel is starting\n")?;
            match page {
                Page::Metrics => Ok(metrics(&own, kernel).await),
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

async fn metrics(own: &Own, kernel: &Kernel) -> String {
    let mut text = Text::default();
    process(own, kernel, &mut text);
    journal(kernel, &mut text);
    traffic(own, &mut text);
    spans(kernel, &mut text);
    actors::write(kernel, &mut text);
    #[cfg(feature = "workers")]
    subsystems::write(kernel.bus(), &mut text).await;
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
    let help = "Events that the journal has taken since the kernel started.";
    let mut family = text.family("eclosion_events_total", Counter, help);
    for (kind, count) in kernel.journal().appended_of_kinds() {
        family.sample(&[("kind", kind)], count);
    }
}

fn traffic(own: &Own, text: &mut Text) {
    let help = "Calls and subscriptions of clients that have not ended.";
    text.family("eclosion_client_streams", Gauge, help).sample(&[], own.traffic.streams());
    let help = "Items that open streams may send before their clients grant more.";
    text.family("eclosion_client_credit_items", Gauge, help).sample(&[], own.traffic.credit());
    let carried = own.traffic.carried();
    let help = "Frames over the connections of the kernel's socket, fragments one by one.";
    let mut family = text.family("eclosion_connection_frames_total", Counter, help);
    family.sample(&[("direction", "received")], carried.frames_received);
    family.sample(&[("direction", "sent")], carried.frames_sent);
    let help =
        "Bytes over the connections of the kernel's socket; what lies in shared memory does not pass there.";
    let mut family = text.family("eclosion_connection_bytes_total", Counter, help);
    family.sample(&[("direction", "received")], carried.bytes_received);
    family.sample(&[("direction", "sent")], carried.bytes_sent);
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
