//! What flows back to the caller of one call: progress and metrics as they come, items as the caller grants them.
//!
//! Credit is passed on and never made up: the worker may have sent, in sum, what the caller lets us send, less what
//! reports have used of it. So what a slow caller has not taken stays in its generator, which stands still, and all that
//! lies between the two is bounded by what the caller granted.

use eclosion_bus::{Refused, Responder};
use eclosion_ipc::{Care, note_ran};
use eclosion_schemas::view::TaskReport;
use eclosion_schemas::{Error, Payload};

use crate::workers::calls::Ended;

pub(super) struct Flow {
    responder: Responder,
    streams: bool,
    /// The caller reads results in shared memory.
    shares: bool,
    /// Items in sum: that the worker may send, and that it sent.
    granted: u64,
    items: u64,
    /// Reports that were passed on; they use the caller's credit too.
    reports: u64,
    /// The caller's allowance when it was last looked at.
    seen: u64,
    /// An item that came while a report had used its credit.
    held: Option<TaskReport>,
    abandoned: bool,
}

impl Flow {
    pub(super) fn new(responder: Responder, streams: bool, shares: bool) -> Self {
        let (granted, items, reports, seen) = (0, 0, 0, 0);
        Self { responder, streams, shares, granted, items, reports, seen, held: None, abandoned: false }
    }

    pub(super) fn responder(&self) -> &Responder {
        &self.responder
    }

    pub(super) fn reply(self, outcome: Result<Payload, Error>) {
        self.responder.reply(outcome.map(|payload| Box::new(payload) as _));
    }

    /// The worker has ended the call: notes when it had it in hand, if anybody wants to know.
    pub(super) fn came_back(&self, ended: Ended) -> Result<Payload, Error> {
        if let Some(timings) = self.responder.timings() {
            note_ran(timings, ended.ran_unix_ns);
        }
        ended.result
    }

    /// What the call names.
    pub(super) fn begin(&mut self) -> Care {
        if !self.streams {
            return Care::Call { shares: self.shares };
        }
        self.seen = self.responder.allowance();
        self.granted = self.seen;
        Care::Stream { credit: self.granted, shares: self.shares }
    }

    /// What the worker is to be granted now, in sum. Not for each item: only once it has used half of what it has.
    pub(super) fn due(&mut self) -> Option<u64> {
        if !self.streams || self.abandoned {
            return None;
        }
        let total = self.seen.saturating_sub(self.reports);
        let (left, would_be) = (self.granted.saturating_sub(self.items), total.saturating_sub(self.items));
        let is_due = total > self.granted && left <= would_be / 2;
        is_due.then(|| {
            self.granted = total;
            total
        })
    }

    /// Whether nothing more may be passed on for the time being.
    pub(super) fn holds(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn pass(&mut self, report: TaskReport) {
        let is_item = matches!(report, TaskReport::Item { .. });
        self.items += u64::from(is_item);
        self.offer(report, is_item);
    }

    fn offer(&mut self, report: TaskReport, is_item: bool) {
        match self.responder.try_item(Box::new(report)) {
            Ok(()) => self.reports += u64::from(!is_item),
            Err(Refused::Full(report)) if is_item => {
                self.held = report.downcast().ok().map(|report| *report);
            }
            // A report without credit is lost; and so is an item that nobody listens for.
            Err(_) => {}
        }
        self.seen = self.seen.max(self.responder.allowance());
    }

    /// Returns once the caller has granted more. Cancel-safe.
    pub(super) async fn more(&self) {
        match self.streams {
            true => self.responder.allowance_over(self.seen).await,
            false => std::future::pending().await,
        }
    }

    pub(super) fn resume(&mut self) {
        self.seen = self.seen.max(self.responder.allowance());
        if let Some(item) = self.held.take() {
            self.offer(item, true);
        }
    }

    /// Nobody listens any more: what is held is of no use, and the outcome is still waited for.
    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
        self.held = None;
    }
}
