//! The books of calls: what is under way, the last that are over, and how many ended how. In memory, as calls are.
//!
//! Each call has an [`Entry`] for as long as it is under way; one that is dropped without an outcome was cancelled.
//! What services are held by is no call of anybody's, and has none (`eclosion service ls` shows those).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use eclosion_kernel::clock::{Clock, SystemClock};
use eclosion_schemas::ops::pool::{CallCounts, CallListReply, CallState, CallView};
use eclosion_schemas::pending::PendingReason;
use eclosion_schemas::{CallId, Code, EnvironmentId, Error, Fence, Payload, WorkerId};

use crate::workers::lock;

/// Of those that are over: enough to ask after one that has just failed.
const ENDED_MAX: usize = 128;
/// Of a text that somebody else wrote, such as what a function raised.
const MESSAGE_CHARS_MAX: usize = 1_000;

/// See the head of this file. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Books(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// By the counters of their fences: oldest first.
    open: BTreeMap<u64, CallView>,
    ended: VecDeque<CallView>,
    counts: CallCounts,
}

/// A call that is under way.
#[derive(Debug)]
pub(super) struct Entry {
    books: Books,
    key: u64,
}

impl Books {
    pub(super) fn open(
        &self,
        fence: Fence,
        call: CallId,
        function: &str,
        environment: &EnvironmentId,
    ) -> Entry {
        let now = SystemClock.now();
        let view = CallView {
            call,
            function: function.to_owned(),
            environment: environment.clone(),
            state: CallState::Waiting,
            came_at: now,
            since: now,
            worker: None,
            pending: Vec::new(),
            error: None,
        };
        lock(&self.0).open.insert(fence.counter, view);
        Entry { books: self.clone(), key: fence.counter }
    }

    /// Why calls of an environment that have no worker wait.
    pub(super) fn wait(&self, environment: &EnvironmentId, pending: &[PendingReason]) {
        let mut kept = lock(&self.0);
        let open = kept.open.values_mut();
        for view in open.filter(|view| view.state == CallState::Waiting && view.environment == *environment) {
            view.pending = pending.to_vec();
        }
    }

    pub(super) fn refused(&self) {
        lock(&self.0).counts.refused += 1;
    }

    pub(super) fn list(&self, calls_max: usize) -> CallListReply {
        let kept = lock(&self.0);
        let count = |state| kept.open.values().filter(|call| call.state == state).count();
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        CallListReply {
            waiting: small(count(CallState::Waiting)),
            running: small(count(CallState::Running)),
            calls_max: small(calls_max),
            calls: kept.open.values().cloned().collect(),
            ended: kept.ended.iter().cloned().collect(),
            counts: kept.counts,
        }
    }

    fn end(&self, key: u64, outcome: Result<(), Error>) {
        let mut kept = lock(&self.0);
        let Some(mut view) = kept.open.remove(&key) else { return };
        view.since = SystemClock.now();
        view.pending.clear();
        view.state = match &outcome {
            Ok(()) => CallState::Succeeded,
            Err(why) if why.code == Code::Cancelled => CallState::Cancelled,
            Err(_) => CallState::Failed,
        };
        match view.state {
            CallState::Succeeded => kept.counts.succeeded += 1,
            CallState::Cancelled => kept.counts.cancelled += 1,
            _ => kept.counts.failed += 1,
        }
        view.error = outcome.err();
        if kept.ended.len() == ENDED_MAX {
            kept.ended.pop_front();
        }
        kept.ended.push_back(view);
    }
}

impl Entry {
    /// A worker has it, or is about to.
    pub(super) fn runs(&self, worker: &WorkerId) {
        self.change(|view| {
            view.pending.clear();
            view.state = CallState::Running;
            view.since = SystemClock.now();
            view.worker = Some(worker.clone());
        });
    }

    pub(super) fn ended(&self, outcome: &Result<Payload, Error>) {
        self.books.end(self.key, outcome.as_ref().map(|_| ()).map_err(briefly));
    }

    fn change(&self, change: impl FnOnce(&mut CallView)) {
        if let Some(view) = lock(&self.books.0).open.get_mut(&self.key) {
            change(view);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.books.end(self.key, Err(super::abandoned()));
    }
}

/// What is remembered of an error: not the whole exception.
fn briefly(error: &Error) -> Error {
    let message = error.message.chars().take(MESSAGE_CHARS_MAX).collect();
    let help = error.help.clone();
    Error { message, help, ..Error::new(error.code, error.reason.clone(), "") }.retry(error.retry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(books: &Books, counter: u64) -> Entry {
        let call = format!("call-1-{counter}").parse().unwrap();
        books.open(Fence::of_call(counter), call, "steps:wait", &"e".parse().unwrap())
    }

    #[test]
    fn a_call_is_in_the_books_from_its_coming_to_its_end_and_a_while_longer() {
        let books = Books::default();
        let (first, second) = (begun(&books, 1), begun(&books, 2));
        first.runs(&"w-1-1".parse().unwrap());
        for environment in ["e", "other"] {
            let reason = environment.into();
            books.wait(&environment.parse().unwrap(), &[PendingReason::Drained { reason }]);
        }
        let list = books.list(256);
        assert_eq!((list.waiting, list.running, list.calls_max), (1, 1, 256));
        assert_eq!(list.calls[0].worker.as_ref().map(WorkerId::as_str), Some("w-1-1"));
        assert_eq!(list.calls[0].pending, []);
        assert_eq!(list.calls[1].pending, [PendingReason::Drained { reason: "e".into() }]);
        first.ended(&Err(Error::internal("task.raised", "x".repeat(5_000))));
        drop(first);
        drop(second);
        books.refused();
        let list = books.list(256);
        assert_eq!((list.waiting, list.running, list.calls.len()), (0, 0, 0));
        let states: Vec<_> = list.ended.iter().map(|call| call.state).collect();
        assert_eq!(states, [CallState::Failed, CallState::Cancelled]);
        assert_eq!(list.ended[0].error.as_ref().map(|error| error.message.len()), Some(MESSAGE_CHARS_MAX));
        assert_eq!(list.counts, CallCounts { succeeded: 0, failed: 1, cancelled: 1, refused: 1 });
    }

    #[test]
    fn the_books_remember_the_last_calls_and_count_them_all() {
        let books = Books::default();
        for counter in 0..200 {
            begun(&books, counter).ended(&Ok(Payload::default()));
        }
        let list = books.list(256);
        assert_eq!((list.ended.len(), list.counts.succeeded), (ENDED_MAX, 200));
        assert_eq!(list.ended.last().map(|call| call.call.as_str()), Some("call-1-199"));
    }
}
