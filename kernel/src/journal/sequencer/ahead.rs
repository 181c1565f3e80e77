//! Reading ahead: what is stored, once, for all the actors that begin with a kernel, in place of once for each.
//!
//! It is put into the tail, where whoever folds looks first. Where it does not fit, the newest is kept, and what lies
//! before it is read by each for itself. A little stays when all have begun: one that dies and begins again finds it there.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use eclosion_schemas::Seq;

use super::Journal;
use crate::journal::Record;

/// What is read ahead for actors that begin together, of bodies and of records: newer ones before older ones.
const READ_AHEAD_BYTES_MAX: usize = 64 * 1024 * 1024;
const READ_AHEAD_RECORDS_MAX: usize = 262_144;
/// What of it stays in the tail for those that begin again.
const KEPT_BYTES_MAX: usize = 2 * 1024 * 1024;
const KEPT_RECORDS_MAX: usize = 4_096;

impl Journal {
    /// Reads what is stored into the tail, for actors that are about to begin: each of them would read all of it. It may
    /// take a while. Call [`Journal::forget_read_ahead`] when they have.
    pub fn read_ahead(&self) {
        let Some(reader) = self.lock().reader.clone() else { return };
        let (mut ahead, mut bytes) = (VecDeque::new(), 0);
        let read = reader.read(Seq(0), &[], &mut |record| {
            bytes += record.body.len();
            ahead.push_back(Arc::new(record));
            shorten(&mut ahead, &mut bytes, READ_AHEAD_RECORDS_MAX, READ_AHEAD_BYTES_MAX);
            ControlFlow::Continue(())
        });
        let mut inner = self.lock();
        let last = ahead.back().map(|record| record.seq);
        // Where it does not fit, or cannot be read, everybody reads on their own and meets what there is to meet.
        if read.is_ok() && inner.tail.is_empty() && last == Some(inner.marks.appended) {
            inner.tail = ahead;
        }
    }

    /// Lets go of most of what was read ahead.
    pub fn forget_read_ahead(&self) {
        let inner = &mut *self.lock();
        if inner.marks.written < inner.marks.appended {
            // The writer needs what it has not taken; the tail is trimmed as it always is.
            return;
        }
        let mut bytes = inner.tail.iter().map(|record| record.body.len()).sum();
        shorten(&mut inner.tail, &mut bytes, KEPT_RECORDS_MAX, KEPT_BYTES_MAX);
        inner.tail.shrink_to_fit();
    }
}

/// Drops the oldest until the rest is within both bounds.
fn shorten(records: &mut VecDeque<Arc<Record>>, bytes: &mut usize, records_max: usize, bytes_max: usize) {
    while records.len() > records_max || *bytes > bytes_max {
        let Some(oldest) = records.pop_front() else { return };
        *bytes -= oldest.body.len();
    }
}
