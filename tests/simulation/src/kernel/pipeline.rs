//! The writer and the syncer: they take their time, and one batch after the other.

use super::*;

/// Records that one write takes at most; small, so that crashes fall between batches.
const BATCH_MAX: u64 = 40;

impl World {
    pub(super) fn plan_write(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        let marks = kernel.journal.marks();
        if marks.appended > marks.written && kernel.writing == 0 && !kernel.write_planned {
            kernel.write_planned = true;
            let delay_us = self.rng.range(1, 200);
            self.soon(delay_us, KernelEvent::Write);
        }
    }

    pub(super) fn write(&mut self) {
        let max = usize::try_from(self.rng.range(1, BATCH_MAX)).unwrap_or(1);
        let takes_us = self.rng.range(5, 3_000);
        let Some(kernel) = &mut self.kernel else { return };
        kernel.write_planned = false;
        kernel.writing = kernel.journal.unwritten(max).len();
        let count = kernel.writing;
        if count > 0 {
            self.soon(takes_us, KernelEvent::Written(count));
        }
    }

    pub(super) fn written(&mut self, count: usize) {
        let Some(kernel) = &mut self.kernel else { return };
        kernel.writing = 0;
        let batch = kernel.journal.unwritten(count);
        let journal = Arc::clone(&kernel.journal);
        if let Err(why) = self.disk.write(&batch) {
            return self.poison(&format!("writing failed: {why}"));
        }
        self.check_written(&batch);
        if let Some(last) = batch.last() {
            journal.mark_written(last.seq);
        }
        self.release_all();
        self.plan_write();
        let Some(kernel) = &mut self.kernel else { return };
        if !std::mem::replace(&mut kernel.syncing, true) {
            let delay_us = self.rng.range(1, 20_000);
            self.soon(delay_us, KernelEvent::Sync);
        }
    }

    pub(super) fn sync(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        let through = kernel.journal.marks().written;
        // What records name is on the disk before their mark is.
        self.files.sync();
        let takes_us = self.rng.range(50, 5_000);
        self.soon(takes_us, KernelEvent::Synced(through));
    }

    pub(super) fn synced(&mut self, through: Seq) {
        let Some(kernel) = &mut self.kernel else { return };
        kernel.syncing = false;
        let journal = Arc::clone(&kernel.journal);
        if let Err(why) = self.disk.sync(through, &mut self.rng) {
            return self.poison(&format!("a sync failed: {why}"));
        }
        journal.mark_synced(through);
        self.release_all();
        let Some(kernel) = &mut self.kernel else { return };
        let marks = kernel.journal.marks();
        if marks.written > marks.synced && !std::mem::replace(&mut kernel.syncing, true) {
            self.soon(100, KernelEvent::Sync);
        }
    }

    /// The disk refuses: from now on nothing is appended and nothing is shown but what is synced. Somebody sees it after a
    /// while, mends the disk, and starts the kernel again.
    fn poison(&mut self, why: &str) {
        *self.checks.counts.disk_errors.entry(why.to_owned()).or_default() += 1;
        self.say(|| why.to_owned());
        let Some(kernel) = &self.kernel else { return };
        let journal = Arc::clone(&kernel.journal);
        journal.poison(why);
        for who in EVERYBODY {
            of!(who, self.take_back());
        }
        self.release_all();
        let seen_us = self.rng.range(1_000, 400_000);
        self.soon(seen_us, KernelEvent::Mend);
    }

    /// Speculative state goes back to what is safe.
    fn take_back<C: Simulated>(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        let journal = Arc::clone(&kernel.journal);
        let Some(engine) = &mut C::seat(kernel).engine else { return };
        if let Err(why) = engine.recover(&journal) {
            self.fail(format!("{:?} cannot go back: {why}", C::WHO));
        }
    }
}
