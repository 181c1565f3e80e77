//! The connection that all calls of a client share.
//!
//! Whoever calls puts its frame in line and writes at once what the socket takes; the [`Driver`], one task, writes the
//! rest, reads, and hands each message to its slot. States of a slot: *open* → *answered* (its outcome is there) →
//! gone (taken or cancelled). Invariants:
//!
//! 1. Everything is behind one lock, held for a few instructions and never across an await; wakers are woken outside.
//! 2. Once `closed` is set no slot is open and none is added: nobody waits for a connection that is gone (P3).
//! 3. A kernel that sends more items than it has credit for ends the connection: slots are bounded by credit.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use eclosion_schemas::frame::{
    Assembler, Decoder, Envelope, Frame, FrameType, Limits, Outbox, StreamId, WireCodec,
};
use eclosion_schemas::ops::arena::{RELEASE, ReleaseRequest, TAKES_NAMED};
use eclosion_schemas::{Code, Error, Retry, Stage};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, Sleep};

use crate::forms::Forms;
use crate::memory::Memory;
use crate::serve::Desk;

/// What may wait for a kernel that reads slowly; callers wait below it.
const OUTGOING_BYTES_MAX: usize = 4 << 20;
/// Frames are encoded until there is this much for one system call.
const FILL_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Shared {
    welcome: Envelope,
    limits: Limits,
    writing: OwnedWriteHalf,
    state: Mutex<State>,
    memory: Memory,
    /// Where this program serves addresses.
    desk: OnceLock<Desk>,
    forms: Forms,
}

#[derive(Debug)]
struct State {
    outbox: Outbox,
    buffer: BytesMut,
    slots: BTreeMap<StreamId, Slot>,
    /// Odd, and never used twice.
    next_stream: u32,
    /// The kernel said GOAWAY: what is under way may end, nothing new is begun.
    leaving: bool,
    /// A caller has written since the driver last read.
    wrote: bool,
    /// Callers have left their frames to the driver.
    gathering: bool,
    closed: Option<Error>,
    /// When the driver next looks for calls whose deadline has passed; not later than the earliest of them.
    alarm: Option<Instant>,
    driver: Option<Waker>,
    /// Callers that wait for room, and watchers of the end.
    waiting: Vec<Waker>,
}

/// What has come of one call.
#[derive(Debug, Default)]
struct Slot {
    items: VecDeque<Body>,
    /// Items in sum: that the kernel may send, that it sent, that were taken.
    granted: u64,
    received: u64,
    outcome: Option<Ended>,
    deadline: Option<Instant>,
    taker: Option<Waker>,
}

/// What comes next on a stream.
#[derive(Debug)]
pub(crate) enum Next {
    Item(Body),
    /// The last.
    End(Ended),
}

/// One item or reply, and how it is written.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) codec: WireCodec,
    pub(crate) bytes: Bytes,
}

impl Body {
    fn of(frame: Frame) -> Self {
        Self { codec: frame.codec, bytes: frame.body }
    }
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Result<Body, Error>,
    /// Where its time went, if that was asked for.
    pub(crate) stages: Vec<Stage>,
}

impl From<Error> for Ended {
    fn from(why: Error) -> Self {
        Self { outcome: Err(why), stages: Vec::new() }
    }
}

impl Shared {
    pub(crate) fn welcome(&self) -> &Envelope {
        &self.welcome
    }

    /// Streams that the kernel opens are given to `desk` from now on. False if another has them.
    pub(crate) fn serve(&self, desk: Desk) -> bool {
        self.desk.set(desk).is_ok()
    }

    /// How bodies of operations are written.
    pub(crate) fn forms(&self) -> &Forms {
        &self.forms
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Says what was given back. Its answer says nothing new and is not waited for.
    pub(crate) fn release(&self, request: &ReleaseRequest) {
        let mut state = self.locked();
        if state.closed.is_none() {
            state.release(request);
            self.flush_now(state);
        }
    }

    fn shares_memory(&self) -> bool {
        self.welcome.features.as_ref().is_some_and(|features| features.iter().any(|it| it == TAKES_NAMED))
    }

    /// Opens a stream for `call` once there is room for it.
    pub(crate) fn poll_open(
        &self,
        call: &mut Option<Frame>,
        deadline: Option<Instant>,
        task: &Context<'_>,
    ) -> Poll<Result<StreamId, Error>> {
        let mut state = self.locked();
        if let Some(why) = &state.closed {
            return Poll::Ready(Err(why.clone()));
        }
        if state.leaving {
            let error = Error::new(Code::Unavailable, "kernel.stopping", "the kernel stops");
            return Poll::Ready(Err(error.retry(Retry::After { after_ms: 1_000 })));
        }
        if state.waits() >= OUTGOING_BYTES_MAX {
            state.wait(task.waker());
            return Poll::Pending;
        }
        let Some(mut frame) = call.take() else {
            return Poll::Ready(Err(Error::internal("call.polled_again", "a call was sent twice")));
        };
        let stream = StreamId(state.next_stream);
        let Some(following) = state.next_stream.checked_add(2) else {
            let text = "all two thousand million streams of this connection were used";
            return Poll::Ready(Err(
                Error::new(Code::Exhausted, "connection.streams", text).help("connect again")
            ));
        };
        state.next_stream = following;
        frame.stream = stream;
        let granted = frame.envelope.credit.unwrap_or(0);
        state.slots.insert(stream, Slot { granted, deadline, ..Slot::default() });
        state.outbox.push(frame, None);
        // The first call since something was heard goes at once. Those that follow it come from others who were woken
        // by the same read, and leave together.
        let is_first = !std::mem::replace(&mut state.wrote, true);
        if deadline.is_some_and(|at| state.alarm.is_none_or(|alarm| at < alarm)) {
            state.alarm = deadline;
            // The driver sets its clock.
            self.flush_soon(state);
        } else if is_first {
            self.flush_now(state);
        } else {
            state.gathering = true;
            self.flush_soon(state);
        }
        Poll::Ready(Ok(stream))
    }

    /// Sends what needs no room of its own: CREDIT, CANCEL.
    pub(crate) fn send(&self, frame: Frame) {
        let mut state = self.locked();
        if state.closed.is_none() {
            state.outbox.push(frame, None);
            self.flush_now(state);
        }
    }

    /// The caller has left. An open stream is cancelled.
    pub(crate) fn leave(&self, stream: StreamId) {
        let mut state = self.locked();
        let Some(slot) = state.slots.remove(&stream) else { return };
        if slot.outcome.is_none() && state.closed.is_none() {
            state.outbox.forget(stream);
            state.outbox.push(Frame::new(FrameType::Cancel, stream), None);
            if self.shares_memory() {
                state.release(&self.memory.left(stream));
            }
            self.flush_now(state);
        }
    }

    /// Items, then the reply.
    pub(crate) fn poll_next(&self, stream: StreamId, task: &Context<'_>) -> Poll<Next> {
        let mut state = self.locked();
        let gone = state.closed.clone();
        let Some(slot) = state.slots.get_mut(&stream) else {
            let over = || Error::internal("stream.over", "the stream is over");
            return Poll::Ready(Next::End(gone.unwrap_or_else(over).into()));
        };
        if let Some(item) = slot.items.pop_front() {
            return Poll::Ready(Next::Item(item));
        }
        match slot.outcome.take() {
            Some(ended) => {
                state.slots.remove(&stream);
                Poll::Ready(Next::End(ended))
            }
            None => {
                slot.wait(task.waker());
                Poll::Pending
            }
        }
    }

    /// The kernel may send `granted` items in sum.
    pub(crate) fn grant(&self, stream: StreamId, granted: u64) {
        let is_open = {
            let mut state = self.locked();
            let open = state.slots.get_mut(&stream).filter(|slot| slot.outcome.is_none());
            open.map(|slot| slot.granted = granted).is_some()
        };
        if is_open {
            let envelope = Envelope { credit: Some(granted), ..Envelope::default() };
            self.send(Frame::new(FrameType::Credit, stream).with_envelope(envelope));
        }
    }

    pub(crate) fn poll_closed(&self, task: &Context<'_>) -> Poll<Error> {
        let mut state = self.locked();
        if let Some(why) = &state.closed {
            return Poll::Ready(why.clone());
        }
        state.wait(task.waker());
        Poll::Pending
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what the socket takes; the driver does the rest.
    fn flush_now(&self, mut state: MutexGuard<'_, State>) {
        // A failure is the driver's to find: it closes the connection for all.
        if !state.flush(&self.writing).unwrap_or(false) {
            self.flush_soon(state);
        }
    }

    /// Lets the driver write.
    fn flush_soon(&self, mut state: MutexGuard<'_, State>) {
        let driver = state.driver.take();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Resolves everything that waits.
    fn close(&self, why: &Error) {
        let woken: Vec<Waker> = {
            let mut state = self.locked();
            if state.closed.is_none() {
                state.closed = Some(why.clone());
            }
            let takers = state.slots.values_mut().filter_map(|slot| slot.answer(why.clone().into()));
            let takers: Vec<Waker> = takers.collect();
            takers.into_iter().chain(std::mem::take(&mut state.waiting)).collect()
        };
        if let Some(desk) = self.desk.get() {
            desk.close();
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn release(&mut self, request: &ReleaseRequest) {
        let stream = StreamId(self.next_stream);
        // Numbers that are used up end a connection's calls, and this with them.
        let Some(following) = self.next_stream.checked_add(2) else { return };
        if let Ok(call) = Frame::call(stream, RELEASE, request) {
            self.next_stream = following;
            self.outbox.push(call, None);
        }
    }

    /// Ends the calls whose deadline has passed; returns whom to wake.
    fn expire(&mut self, now: Instant, memory: Option<&Memory>) -> Vec<Waker> {
        let mut takers = Vec::new();
        let mut left = Vec::new();
        self.alarm = None;
        for (stream, slot) in self.slots.iter_mut().filter(|(_, slot)| slot.outcome.is_none()) {
            let Some(deadline) = slot.deadline else { continue };
            if deadline > now {
                self.alarm = self.alarm.min(Some(deadline)).or(Some(deadline));
                continue;
            }
            takers.extend(slot.answer(Error::deadline("the call").into()));
            self.outbox.forget(*stream);
            self.outbox.push(Frame::new(FrameType::Cancel, *stream), None);
            left.extend(memory.map(|memory| memory.left(*stream)));
        }
        left.iter().for_each(|left| self.release(left));
        takers
    }

    fn waits(&self) -> usize {
        self.outbox.bytes() + self.buffer.len()
    }

    fn wait(&mut self, waker: &Waker) {
        if !self.waiting.iter().any(|known| known.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    fn keep(&mut self, driver: &Waker) {
        match &mut self.driver {
            Some(known) => known.clone_from(driver),
            none => *none = Some(driver.clone()),
        }
    }

    /// True when nothing is left.
    fn flush(&mut self, socket: &OwnedWriteHalf) -> io::Result<bool> {
        loop {
            while self.buffer.len() < FILL_BYTES
                && let Some((frame, _)) = self.outbox.pop()
            {
                frame.encode(&mut self.buffer).map_err(io::Error::other)?;
            }
            if self.buffer.is_empty() {
                return Ok(true);
            }
            match socket.try_write(&self.buffer) {
                Ok(written) => self.buffer.advance(written),
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(why) => return Err(why),
            }
        }
    }

    /// Whom to wake.
    fn deliver(&mut self, frame: Frame) -> Result<Option<Waker>, Error> {
        match frame.kind {
            FrameType::Error if frame.stream == StreamId::CONNECTION => return Err(frame.to_error()),
            FrameType::Ping => {
                let id = frame.envelope.id.clone();
                let pong = Frame::new(FrameType::Pong, frame.stream);
                self.outbox.push(pong.with_envelope(Envelope { id, ..Envelope::default() }), None);
            }
            FrameType::Goaway => self.leaving = true,
            FrameType::Data | FrameType::Error => {
                // What is not there was cancelled.
                if let Some(slot) = self.slots.get_mut(&frame.stream) {
                    return slot.deliver(frame);
                }
            }
            _ => {}
        }
        Ok(None)
    }
}

impl Slot {
    fn deliver(&mut self, frame: Frame) -> Result<Option<Waker>, Error> {
        if frame.kind == FrameType::Error || frame.is_end() {
            let stages = frame.envelope.stages.clone().unwrap_or_default();
            let outcome =
                if frame.kind == FrameType::Error { Err(frame.to_error()) } else { Ok(Body::of(frame)) };
            return Ok(self.answer(Ended { outcome, stages }));
        }
        self.received += 1;
        if self.received > self.granted {
            let text = format!("the kernel sent item {} where {} were granted", self.received, self.granted);
            return Err(Error::internal("stream.credit", text));
        }
        self.items.push_back(Body::of(frame));
        Ok(self.taker.take())
    }

    fn answer(&mut self, ended: Ended) -> Option<Waker> {
        self.outcome.get_or_insert(ended);
        self.taker.take()
    }

    fn wait(&mut self, waker: &Waker) {
        match &mut self.taker {
            Some(taker) => taker.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }
}

/// Reads for everybody, and writes what callers could not.
#[derive(Debug)]
pub(crate) struct Driver {
    shared: Arc<Shared>,
    reading: OwnedReadHalf,
    decoder: Decoder,
    assembler: Assembler,
    buffer: Box<[u8]>,
    /// It has let others run to add their frames.
    yielded: bool,
    alarm: Pin<Box<Sleep>>,
}

impl Driver {
    pub(crate) fn new(stream: UnixStream, decoder: Decoder, welcome: Envelope) -> (Arc<Shared>, Self) {
        let limits = welcome.limits.unwrap_or_default();
        let (reading, writing) = stream.into_split();
        let state = Mutex::new(State {
            outbox: Outbox::new(limits.fragment_bytes as usize),
            buffer: BytesMut::new(),
            slots: BTreeMap::new(),
            next_stream: 1,
            leaving: false,
            wrote: false,
            gathering: false,
            closed: None,
            alarm: None,
            driver: None,
            waiting: Vec::new(),
        });
        let (desk, memory, forms) = (OnceLock::new(), Memory::default(), Forms::new(&welcome));
        let shared = Arc::new(Shared { welcome, limits, writing, state, memory, desk, forms });
        let assembler = Assembler::new(Limits::DEFAULT);
        let buffer = vec![0; READ_BYTES].into();
        // Set by the first call that has a deadline.
        let alarm = Box::pin(tokio::time::sleep(Duration::ZERO));
        (Arc::clone(&shared), Self { shared, reading, decoder, assembler, buffer, yielded: false, alarm })
    }

    /// Until the connection is gone.
    pub(crate) async fn run(mut self) {
        let why = poll_fn(|task| self.poll(task)).await;
        self.shared.close(&why);
    }

    fn poll(&mut self, task: &mut Context<'_>) -> Poll<Error> {
        let gathering = std::mem::take(&mut self.shared.locked().gathering);
        if gathering && !std::mem::replace(&mut self.yielded, true) {
            // A scheduler runs who was woken last first: the others that are ready add their frames before this returns.
            task.waker().wake_by_ref();
            self.shared.locked().keep(task.waker());
            return Poll::Pending;
        }
        self.yielded = false;
        loop {
            if let Err(why) = self.deliver() {
                return Poll::Ready(why);
            }
            self.poll_alarm(task);
            if let Err(why) = self.poll_flush(task) {
                return Poll::Ready(lost(&why));
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match ready!(Pin::new(&mut self.reading).poll_read(task, &mut buffer)) {
                Ok(()) if buffer.filled().is_empty() => return Poll::Ready(closed()),
                Ok(()) => {
                    self.decoder.push(buffer.filled());
                    self.shared.locked().wrote = false;
                }
                Err(why) => return Poll::Ready(lost(&why)),
            }
        }
    }

    fn deliver(&mut self) -> Result<(), Error> {
        while let Some(frame) = self.decoder.next_frame()? {
            let Some(message) = self.assembler.push(frame)? else { continue };
            if message.stream != StreamId::CONNECTION && !message.stream.opened_by_client() {
                if let Some(desk) = self.shared.desk.get() {
                    desk.take(message);
                }
                continue;
            }
            if let Some(schema) = &message.envelope.schema {
                self.shared.forms.agree(schema);
            }
            let taker = self.shared.locked().deliver(message)?;
            if let Some(taker) = taker {
                taker.wake();
            }
        }
        Ok(())
    }

    /// One clock for all calls: set again only for one that is due earlier, and when it has rung.
    fn poll_alarm(&mut self, task: &mut Context<'_>) {
        loop {
            let Some(at) = self.shared.locked().alarm else { return };
            if self.alarm.deadline() != at {
                self.alarm.as_mut().reset(at);
            }
            if self.alarm.as_mut().poll(task).is_pending() {
                return;
            }
            let memory = self.shared.shares_memory().then_some(&self.shared.memory);
            let takers = self.shared.locked().expire(Instant::now(), memory);
            takers.into_iter().for_each(Waker::wake);
        }
    }

    fn poll_flush(&self, task: &mut Context<'_>) -> io::Result<()> {
        loop {
            let (flushed, waiting) = {
                let mut state = self.shared.locked();
                state.keep(task.waker());
                let flushed = state.flush(&self.shared.writing)?;
                let has_room = !state.waiting.is_empty() && state.waits() < OUTGOING_BYTES_MAX;
                (flushed, if has_room { std::mem::take(&mut state.waiting) } else { Vec::new() })
            };
            waiting.into_iter().for_each(Waker::wake);
            if flushed {
                return Ok(());
            }
            match self.shared.writing.as_ref().poll_write_ready(task) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Ok(()),
            }
        }
    }
}

impl Drop for Driver {
    /// However it ends, nobody hangs: it may be aborted, or its runtime may go.
    fn drop(&mut self) {
        self.shared.close(&closed());
    }
}

fn closed() -> Error {
    Error::new(Code::Unavailable, "connection.closed", "the connection to the kernel is closed")
        .retry(Retry::After { after_ms: 500 })
        .help("eclosion status")
}

fn lost(why: &io::Error) -> Error {
    closed().cause(why.to_string())
}
