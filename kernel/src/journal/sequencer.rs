//! The order of facts, and what waits for them: the sequencer, with its release queue (`release.rs`).
//!
//! Every actor appends here, at memory speed: the record gets its seq, stands in the tail, and the actor goes on. The
//! writer takes the tail in batches and reports `written`; the syncer reports `synced`. Whatever must not be seen
//! before its mark is *held* here with the seq it depends on: replies, publications, views, effects. It is held by the
//! journal and not by the actor's incarnation, so a panic between append and release loses nothing.
//!
//! ```text
//! append ──► appended ──writer──► written ──syncer──► synced
//!   │            release: effects, in-process views   release: replies, what clients see
//!   └─ behind?  returns the foreign records instead; the actor folds them and decides again
//! any failure ──► poisoned: back to what is synced; held things are lost, appends refused, until the next start
//! ```
//!
//! Invariants: (1) seq is gapless and never reused. (2) `synced ≤ written ≤ appended`. (3) A held thing is released
//! exactly once: with `Ok` when its mark has reached its seq, with [`Lost`] when the journal was poisoned first. At one
//! mark they are released one after the other, in the order of their seqs: nothing shows an older state after a newer.
//! (4) Append is a compare: it succeeds only if the actor has folded every record of its kinds. (5) The tail keeps
//! what is not written, and what a registered folder has not folded, up to [`TAIL_RECORDS_MAX`] (older ones are read
//! from the store).
//!
//! It neither blocks nor does I/O, so the simulation uses it as it is.

mod ahead;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::{EffectId, Epoch, Seq, Timestamp};

use super::record::{EVENT_BYTES_MAX, Record, Stored};
use super::release::{Held, Releases, Want, let_out};
use super::store::{Opened, Reader};
use crate::core::AnyEvent;

/// Records kept in memory for folders that are behind; older ones are read from the store.
pub const TAIL_RECORDS_MAX: usize = 65_536;
/// Records that may wait for the writer; above it, appends are refused until it has caught up.
pub const UNWRITTEN_RECORDS_MAX: usize = 1_048_576;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Survives SIGKILL of the kernel.
    Written,
    /// Survives a power cut.
    Synced,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    pub appended: Seq,
    pub written: Seq,
    pub synced: Seq,
}

/// The journal was poisoned before the mark was reached: it may or may not have happened.
#[derive(Debug, Clone)]
pub struct Lost(pub Arc<str>);

impl Lost {
    #[must_use]
    pub fn error(&self) -> Error {
        Error::new(Code::Unknown, "journal.poisoned", format!("the outcome is not known: {}", self.0))
            .help("eclosion status; then stop the kernel, mend the disk, and start it again")
    }
}

/// What to append, and what the appender has seen.
#[derive(Debug)]
pub struct Append<'a> {
    pub events: Vec<AnyEvent>,
    pub at: Timestamp,
    pub cause: Option<EffectId>,
    /// Up to where the appender has folded the kinds in `folds`.
    pub folded: Seq,
    pub folds: &'a [&'a str],
}

/// What an actor has not folded yet.
#[derive(Debug)]
pub struct Behind {
    pub records: Vec<Arc<Record>>,
    /// Folding them brings it up to here.
    pub head: Seq,
}

#[derive(Debug)]
pub enum AppendError {
    /// Fold these first, and decide again.
    Behind(Behind),
    Refused(Error),
}

struct Inner {
    epoch: Epoch,
    marks: Marks,
    /// Oldest first; consecutive seqs ending with `marks.appended`.
    tail: VecDeque<Arc<Record>>,
    kinds: BTreeMap<&'static str, OfKind>,
    releases: Releases,
    /// What the syncer knew of when it went to sleep.
    syncer_sleeps: Option<Want>,
    poisoned: Option<Arc<str>>,
    closed: bool,
    /// Threads that are to panic; see [`Journal::interrupt`].
    #[cfg(feature = "chaos")]
    interrupted: [bool; 2],
    reader: Option<Arc<dyn Reader>>,
}

/// What this life has appended of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct OfKind {
    last: Seq,
    count: u64,
}

/// Cheap to share; see the head of this file.
pub struct Journal {
    inner: Mutex<Inner>,
    /// The writer sleeps here.
    unwritten: Condvar,
    /// The syncer sleeps here.
    unsynced: Condvar,
    /// Who wants to know that something was appended.
    listeners: Mutex<Vec<Listener>>,
}

type Wake = Box<dyn Fn(&[AnyEvent]) + Send + Sync>;

struct Listener {
    kinds: Vec<&'static str>,
    wake: Wake,
}

impl Journal {
    /// A journal that goes on where `opened` ends.
    #[must_use]
    pub fn new(opened: Opened, reader: Option<Arc<dyn Reader>>) -> Self {
        let marks = Marks { appended: opened.last, written: opened.last, synced: opened.last };
        let inner = Inner {
            epoch: opened.epoch,
            marks,
            tail: VecDeque::new(),
            kinds: BTreeMap::new(),
            releases: Releases::default(),
            syncer_sleeps: None,
            poisoned: None,
            closed: false,
            #[cfg(feature = "chaos")]
            interrupted: [false; 2],
            reader,
        };
        Self {
            inner: Mutex::new(inner),
            unwritten: Condvar::new(),
            unsynced: Condvar::new(),
            listeners: Mutex::new(Vec::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in a critical section can be left half done: each ends by plain assignments.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    #[must_use]
    pub fn marks(&self) -> Marks {
        self.lock().marks
    }

    /// How many events of each kind were appended since the journal was opened; kinds are the code's, so they are few.
    #[must_use]
    pub fn appended_of_kinds(&self) -> BTreeMap<&'static str, u64> {
        self.lock().kinds.iter().map(|(kind, of)| (*kind, of.count)).collect()
    }

    /// Why it is read-only, if it is.
    #[must_use]
    pub fn poisoned(&self) -> Option<Arc<str>> {
        self.lock().poisoned.clone()
    }

    /// Calls `wake` after every append with one of `kinds` in it, with what was appended; with nothing when the journal is
    /// poisoned. It must be quick and must not call back.
    pub fn listen(&self, kinds: &[&'static str], wake: impl Fn(&[AnyEvent]) + Send + Sync + 'static) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.push(Listener { kinds: kinds.to_vec(), wake: Box::new(wake) });
    }

    /// Appends in one step, or says what the caller has not folded yet.
    ///
    /// # Errors
    /// [`AppendError::Behind`] hands over what to fold first. [`AppendError::Refused`]: `invalid` for an event above
    /// [`EVENT_BYTES_MAX`], `unavailable` when the journal is poisoned or the writer far behind.
    pub fn append(&self, append: &Append<'_>) -> Result<Vec<Arc<Record>>, AppendError> {
        let bodies = encode(&append.events).map_err(AppendError::Refused)?;
        let records = {
            let mut inner = self.lock();
            inner.admit().map_err(AppendError::Refused)?;
            if inner.is_behind(append) {
                drop(inner);
                return Err(AppendError::Behind(self.after(append.folded, append.folds)));
            }
            inner.push(append, bodies)
        };
        self.unwritten.notify_one();
        self.wake_listeners(&append.events);
        Ok(records)
    }

    fn wake_listeners(&self, events: &[AnyEvent]) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        for listener in listeners.iter() {
            if events.iter().any(|event| listener.kinds.contains(&event.kind)) {
                (listener.wake)(events);
            }
        }
    }

    /// The records of `kinds` after `folded`, from the tail or, where that does not reach back, from the store; and the
    /// seq up to which that is everything.
    #[must_use]
    pub fn after(&self, folded: Seq, kinds: &[&str]) -> Behind {
        let (found, start, head, reader) = {
            let inner = self.lock();
            let start = inner.tail.front().map_or(inner.marks.appended, |first| Seq(first.seq.0 - 1));
            let skip = folded.0.saturating_sub(start.0) as usize;
            let wanted = inner.tail.iter().skip(skip).filter(|record| kinds.contains(&&*record.kind));
            (wanted.cloned().collect::<Vec<_>>(), start, inner.marks.appended, inner.reader.clone())
        };
        match reader {
            Some(reader) if folded < start => {
                Behind { records: self.read_back(&*reader, folded, start, kinds, found), head }
            }
            _ => Behind { records: found, head },
        }
    }

    /// What the store has of `(folded, start]`, before what the tail had.
    fn read_back(
        &self,
        reader: &dyn Reader,
        folded: Seq,
        start: Seq,
        kinds: &[&str],
        mut tail: Vec<Arc<Record>>,
    ) -> Vec<Arc<Record>> {
        let mut records = Vec::new();
        let read = reader.read(folded, kinds, &mut |record| {
            if record.seq > start {
                return ControlFlow::Break(());
            }
            records.push(Arc::new(record));
            ControlFlow::Continue(())
        });
        if let Err(why) = read {
            // Folding around a hole would be a wrong state; nothing can be decided any more.
            self.poison(&format!("reading back: {why}"));
        }
        records.append(&mut tail);
        records
    }

    /// Runs `release` once `mark` has reached `seq`; at once, if it has already.
    pub fn hold(&self, mark: Mark, seq: Seq, release: impl FnOnce(Result<(), Lost>) + Send + 'static) {
        self.hold_for(mark, seq, true, release);
    }

    /// The same at *synced*, where nobody waits for it: it shares a sync with what follows shortly.
    pub fn hold_relaxed(&self, seq: Seq, release: impl FnOnce(Result<(), Lost>) + Send + 'static) {
        self.hold_for(Mark::Synced, seq, false, release);
    }

    fn hold_for(
        &self,
        mark: Mark,
        seq: Seq,
        urgent: bool,
        release: impl FnOnce(Result<(), Lost>) + Send + 'static,
    ) {
        let outcome = {
            let mut inner = self.lock();
            if inner.reached(mark) >= seq && inner.releases.is_free(mark) {
                Ok(())
            } else if let Some(why) = &inner.poisoned {
                Err(Lost(Arc::clone(why)))
            } else {
                inner.releases.hold(mark, seq, urgent, Box::new(release));
                if mark == Mark::Synced {
                    self.rouse_syncer(&mut inner);
                }
                return;
            }
        };
        release(outcome);
    }

    /// How many things are held, for each mark.
    #[must_use]
    pub fn held(&self) -> [usize; 2] {
        self.lock().releases.len()
    }

    /// The next records for the store, at most `max`; empty when everything is written.
    #[must_use]
    pub fn unwritten(&self, max: usize) -> Vec<Arc<Record>> {
        self.lock().unwritten(max)
    }

    /// As [`Journal::unwritten`], waiting until there are some; `None` once closed and drained, or poisoned.
    #[must_use]
    pub fn wait_unwritten(&self, max: usize) -> Option<Vec<Arc<Record>>> {
        let mut inner = self.lock();
        loop {
            #[cfg(feature = "chaos")]
            inner.obey(Mark::Written);
            if inner.poisoned.is_some() {
                return None;
            }
            let batch = inner.unwritten(max);
            if !batch.is_empty() {
                return Some(batch);
            }
            if inner.closed {
                return None;
            }
            inner = self.unwritten.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until a sync is due; gives the seq to sync up to. `None` once closed and synced, or poisoned.
    ///
    /// Due at once if somebody waits for it; not before `rested` if something is only held for it; after `idle` else.
    #[must_use]
    pub fn wait_unsynced(&self, rested: Instant, idle: Duration) -> Option<Seq> {
        let mut inner = self.lock();
        let mut idled = false;
        loop {
            #[cfg(feature = "chaos")]
            inner.obey(Mark::Synced);
            if inner.poisoned.is_some() {
                return None;
            }
            let (want, rest) = (inner.want(), rested.saturating_duration_since(Instant::now()));
            let is_due = match want {
                Want::Nothing => false,
                Want::Idle => idled || inner.closed,
                Want::Relaxed => rest.is_zero() || inner.closed,
                Want::Urgent => true,
            };
            if is_due {
                return Some(inner.marks.written);
            }
            if inner.closed && inner.marks.synced == inner.marks.appended {
                return None;
            }
            let patience = if want == Want::Relaxed { rest } else { idle };
            inner.syncer_sleeps = Some(want);
            let (guard, timeout) =
                self.unsynced.wait_timeout(inner, patience).unwrap_or_else(PoisonError::into_inner);
            inner = guard;
            inner.syncer_sleeps = None;
            idled = timeout.timed_out() && want == Want::Idle;
        }
    }

    /// Wakes the syncer if it sleeps and does not know yet how much it is wanted.
    fn rouse_syncer(&self, inner: &mut Inner) {
        if inner.syncer_sleeps.is_some_and(|known| known < inner.want()) {
            inner.syncer_sleeps = None;
            self.unsynced.notify_one();
        }
    }

    /// The writer's report: everything up to `seq` is written.
    pub fn mark_written(&self, seq: Seq) {
        self.advance(Mark::Written, seq);
    }

    /// The syncer's report: everything up to `seq` is synced.
    pub fn mark_synced(&self, seq: Seq) {
        self.advance(Mark::Synced, seq);
    }

    fn advance(&self, mark: Mark, seq: Seq) {
        {
            let mut inner = self.lock();
            if inner.poisoned.is_some() {
                // A report that was under way: what it is about was taken back.
                return;
            }
            match mark {
                Mark::Written => inner.marks.written = inner.marks.written.max(seq),
                Mark::Synced => inner.marks.synced = inner.marks.synced.max(seq).min(inner.marks.written),
            }
            inner.trim();
            let reached = inner.reached(mark);
            match mark {
                Mark::Written => self.rouse_syncer(&mut inner),
                Mark::Synced => inner.releases.served(reached),
            }
            if !inner.releases.begin(mark) {
                return;
            }
        }
        while let Some(due) = self.due(mark) {
            for release in due.into_values() {
                let_out(release);
            }
        }
    }

    fn due(&self, mark: Mark) -> Option<Held> {
        let mut inner = self.lock();
        let reached = inner.reached(mark);
        inner.releases.due(mark, reached)
    }

    /// Turns the journal read-only for good: what is held resolves as lost, in order, and what was not synced is no
    /// part of it any more.
    pub fn poison(&self, why: &str) {
        let (lost, why) = {
            let mut inner = self.lock();
            let why: Arc<str> = inner.poisoned.get_or_insert_with(|| why.into()).clone();
            // What was never synced may be gone after all, so it is shown to nobody: reads go on from what is safe.
            let safe = inner.marks.synced;
            inner.tail.retain(|record| record.seq <= safe);
            (inner.marks.appended, inner.marks.written) = (safe, safe);
            (inner.releases.take_all(), why)
        };
        tracing::error!(%why, "the journal is read-only");
        for listener in self.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            (listener.wake)(&[]);
        }
        self.unwritten.notify_all();
        self.unsynced.notify_all();
        for release in lost {
            release(Err(Lost(Arc::clone(&why))));
        }
    }

    /// Makes the writer or the syncer panic at its next look: for kernels that were built to be killed.
    #[cfg(feature = "chaos")]
    pub fn interrupt(&self, thread: Mark) {
        self.lock().interrupted[thread as usize] = true;
        self.unwritten.notify_all();
        self.unsynced.notify_all();
    }

    /// Ends the waits of writer and syncer once everything is written and synced.
    pub fn close(&self) {
        self.lock().closed = true;
        self.unwritten.notify_all();
        self.unsynced.notify_all();
    }
}

impl Inner {
    #[cfg(feature = "chaos")]
    #[expect(
        clippy::panic,
        reason = "that is what was asked for; the feature is absent from what users build"
    )]
    fn obey(&mut self, thread: Mark) {
        if std::mem::take(&mut self.interrupted[thread as usize]) {
            panic!("interrupted");
        }
    }

    fn admit(&self) -> Result<(), Error> {
        let unavailable = |reason: &str, message: String| Error::new(Code::Unavailable, reason, message);
        if let Some(why) = &self.poisoned {
            return Err(unavailable("journal.poisoned", format!("the journal is read-only: {why}"))
                .help("eclosion status; then stop the kernel, mend the disk, and start it again"));
        }
        if self.closed {
            return Err(unavailable("journal.closed", "the kernel is stopping".into()));
        }
        if (self.marks.appended.0 - self.marks.written.0) as usize >= UNWRITTEN_RECORDS_MAX {
            return Err(unavailable("journal.behind", "the journal's writer is far behind".into())
                .retry(eclosion_schemas::Retry::After { after_ms: 100 }));
        }
        Ok(())
    }

    fn is_behind(&self, append: &Append<'_>) -> bool {
        append.folds.iter().any(|kind| self.kinds.get(kind).is_some_and(|of| of.last > append.folded))
    }

    fn push(&mut self, append: &Append<'_>, bodies: Vec<Vec<u8>>) -> Vec<Arc<Record>> {
        let mut records = Vec::with_capacity(bodies.len());
        for (event, body) in append.events.iter().zip(bodies) {
            let seq = self.marks.appended.next();
            self.marks.appended = seq;
            let of_kind = self.kinds.entry(event.kind).or_default();
            *of_kind = OfKind { last: seq, count: of_kind.count + 1 };
            let stored = Stored {
                seq,
                epoch: self.epoch,
                at: append.at,
                kind: event.kind.into(),
                version: event.version,
                cause: append.cause,
                body: body.into(),
            };
            let record = Arc::new(Record::with_value(stored, event.value()));
            self.tail.push_back(Arc::clone(&record));
            records.push(record);
        }
        records
    }

    fn want(&self) -> Want {
        self.releases.want(self.marks)
    }

    fn reached(&self, mark: Mark) -> Seq {
        match mark {
            Mark::Written => self.marks.written,
            Mark::Synced => self.marks.synced,
        }
    }

    fn unwritten(&self, max: usize) -> Vec<Arc<Record>> {
        let waiting = (self.marks.appended.0 - self.marks.written.0) as usize;
        let from = self.tail.len().saturating_sub(waiting);
        self.tail.range(from..).take(max).cloned().collect()
    }

    fn trim(&mut self) {
        while self.tail.len() > TAIL_RECORDS_MAX
            && self.tail.front().is_some_and(|first| first.seq <= self.marks.written)
        {
            self.tail.pop_front();
        }
    }
}

fn encode(events: &[AnyEvent]) -> Result<Vec<Vec<u8>>, Error> {
    let mut bodies = Vec::with_capacity(events.len());
    for event in events {
        let body = event.encode()?;
        if body.len() > EVENT_BYTES_MAX {
            let message =
                format!("{} needs {} bytes, the limit is {EVENT_BYTES_MAX}", event.kind, body.len());
            return Err(Error::invalid("event.too_large", message)
                .help("return large values as arrays, bytes or files: they are stored beside the journal"));
        }
        bodies.push(body);
    }
    Ok(bodies)
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("Journal")
            .field("epoch", &inner.epoch)
            .field("marks", &inner.marks)
            .field("poisoned", &inner.poisoned)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
