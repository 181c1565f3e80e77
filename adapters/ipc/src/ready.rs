//! Which of a connection's streams have something to say, so that a wake costs what is ready and not what is open.
//!
//! One task drives the connection and leaves its waker here; each stream has a waker of its own that notes the
//! stream and wakes the task.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

use eclosion_schemas::frame::StreamId;

#[derive(Debug, Default)]
pub(crate) struct ReadyStreams(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Each stream at most once, so at most as many as are open.
    ready: VecDeque<StreamId>,
    task: Option<Waker>,
}

impl ReadyStreams {
    /// The stream that has waited longest; leaves the task's waker if there is none.
    pub(crate) fn pop(&self, task: &Context<'_>) -> Option<StreamId> {
        let mut state = self.locked();
        let ready = state.ready.pop_front();
        if ready.is_none() {
            match &mut state.task {
                Some(waker) => waker.clone_from(task.waker()),
                none => *none = Some(task.waker().clone()),
            }
        }
        ready
    }

    fn note(&self, stream: StreamId) {
        let task = {
            let mut state = self.locked();
            state.ready.push_back(stream);
            state.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream's waker.
#[derive(Debug)]
pub(crate) struct StreamWaker {
    list: Arc<ReadyStreams>,
    stream: StreamId,
    noted: AtomicBool,
}

impl StreamWaker {
    pub(crate) fn new(list: &Arc<ReadyStreams>, stream: StreamId) -> Arc<Self> {
        Arc::new(Self { list: Arc::clone(list), stream, noted: AtomicBool::new(false) })
    }

    /// To be called before the stream is polled: a wake from now on counts again.
    pub(crate) fn rearm(&self) {
        // AcqRel pairs with the swap of `wake_by_ref`: what the waker's owner did before it is seen by the poll.
        self.noted.swap(false, Ordering::AcqRel);
    }
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.noted.swap(true, Ordering::AcqRel) {
            self.list.note(self.stream);
        }
    }
}
