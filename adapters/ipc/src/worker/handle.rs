//! What others may do with a worker: send it an attempt, cancel one, drain it, ping it.

use std::sync::Arc;

use eclosion_schemas::frame::{Envelope, Frame, FrameType, StreamId};
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{Code, Error, Fence};

use super::attempts::{Care, Met};
use super::{Shared, outcome};

/// A cheap handle; it outlives its link, and then refuses.
#[derive(Clone)]
pub struct WorkerHandle(Arc<Shared>);

impl WorkerHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Sends an attempt as soon as the worker may have it; at once, if that is now. A fence that is known is done.
    ///
    /// # Errors
    /// `exhausted` when too many wait, `unavailable` when the worker is gone or drained. Nothing was sent then.
    pub fn execute(&self, execute: &Execute, care: Care) -> Result<(), Error> {
        let mut state = self.0.locked();
        if let Some(why) = &state.closed {
            return Err(why.clone());
        }
        if state.draining {
            return Err(Error::new(Code::Unavailable, "worker.draining", "the worker is being drained"));
        }
        state.attempts.admit(execute, care)?;
        state.pump();
        self.0.flush_now(state);
        Ok(())
    }

    /// Cancels an attempt: one that waits here ends with `task.cancelled`; at the worker, rung 1 trips its token and
    /// rung 2 raises in its main thread. False if there is no such attempt, or its outcome has come.
    pub fn cancel(&self, fence: Fence, rung: u8) -> bool {
        let mut state = self.0.locked();
        match state.attempts.cancel(fence) {
            Met::Waiting => state.withdrawn.push((fence, outcome::cancelled())),
            Met::AtWorker(stream) => state.writer.push(cancel(stream, rung), Vec::new()),
            Met::Nothing => return false,
        }
        self.0.flush_now(state);
        true
    }

    /// Lets a generator send items: `total` of them since it began. What came before with a larger one stands.
    pub fn grant(&self, fence: Fence, total: u64) {
        let mut state = self.0.locked();
        if let Some(stream) = state.attempts.grant(fence, total) {
            state.writer.push(credit(stream, total), Vec::new());
            self.0.flush_now(state);
        }
    }

    /// Asks for an attempt back that has not begun; its outcome then says so ([`Outcome::is_returned`](super::Outcome)).
    /// One that has begun goes on. False if there is no such attempt, or its outcome has come.
    pub fn take_back(&self, fence: Fence) -> bool {
        let mut state = self.0.locked();
        match state.attempts.cancel(fence) {
            Met::Waiting => state.withdrawn.push((fence, outcome::returned())),
            Met::AtWorker(stream) => state.writer.push(cancel(stream, 0), Vec::new()),
            Met::Nothing => return false,
        }
        self.0.flush_now(state);
        true
    }

    /// Tells the worker to finish what it has and exit. What waits here is still sent before.
    pub fn drain(&self) {
        let mut state = self.0.locked();
        if !state.draining {
            state.draining = true;
            state.writer.push(Frame::new(FrameType::Goaway, StreamId::CONNECTION), Vec::new());
            self.0.flush_now(state);
        }
    }

    /// Asks whether its I/O thread lives; answered by [`WorkerReports::pong`](super::WorkerReports::pong).
    pub fn ping(&self) {
        let mut state = self.0.locked();
        // One that waits says as much as many.
        if state.closed.is_none() && state.writer.control_frames() == 0 {
            state.writer.push(Frame::new(FrameType::Ping, StreamId::CONNECTION), Vec::new());
            self.0.flush_now(state);
        }
    }

    /// Cuts the worker off: its stream ends now, and what it has in hand is lost.
    pub fn hang_up(&self) {
        self.0.socket.shutdown();
    }

    /// Whether its stream is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.locked().closed.is_some()
    }
}

pub(super) fn credit(stream: StreamId, total: u64) -> Frame {
    let envelope = Envelope { credit: Some(total), ..Envelope::default() };
    Frame::new(FrameType::Credit, stream).with_envelope(envelope)
}

fn cancel(stream: StreamId, rung: u8) -> Frame {
    Frame::new(FrameType::Cancel, stream).with_envelope(Envelope { rung: Some(rung), ..Envelope::default() })
}

impl std::fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerHandle").field("is_closed", &self.is_closed()).finish()
    }
}
