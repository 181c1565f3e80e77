//! Ended spans on their way to the receiver: a bounded queue, and one thread that empties it.
//!
//! The SDK's own batch processor would do, if it said how much it drops.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use eclosion_bus::TraceCounts;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};

/// Spans that wait; as the SDK's own default.
const WAITING_MAX: usize = 2048;
/// Spans of one request.
const BATCH_MAX: usize = 512;
/// How long the first of a batch waits for others.
const GATHER: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(crate) struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    pub(crate) fn read(&self) -> TraceCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        TraceCounts { exported: read(&self.exported), dropped: read(&self.dropped) }
    }
}

#[derive(Debug)]
enum Word {
    Span(Box<SpanData>),
    Resource(Box<Resource>),
    /// What waits goes at once; the sender is dropped then.
    Flush(SyncSender<()>),
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Queue {
    /// `None` once it is closed.
    words: Mutex<Option<SyncSender<Word>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    counts: Arc<Counts>,
}

impl Queue {
    pub(crate) fn start(exporter: SpanExporter) -> std::io::Result<(Self, Arc<Counts>)> {
        let (sender, words) = sync_channel(WAITING_MAX);
        let counts = Arc::new(Counts::default());
        let worker = Worker { exporter, counts: Arc::clone(&counts), batch: Vec::new() };
        let thread = thread::Builder::new().name("telemetry".into()).spawn(move || worker.run(&words))?;
        let (words, thread) = (Mutex::new(Some(sender)), Mutex::new(Some(thread)));
        Ok((Self { words, thread, counts: Arc::clone(&counts) }, counts))
    }

    fn sender(&self) -> Option<SyncSender<Word>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn flush(&self, patience: Duration) -> OTelSdkResult {
        let Some(words) = self.sender() else { return Err(OTelSdkError::AlreadyShutdown) };
        let (flushed, heard) = sync_channel(1);
        // A full queue means a receiver that does not keep up: there is nothing to be hurried.
        if words.try_send(Word::Flush(flushed)).is_ok()
            && heard.recv_timeout(patience) == Err(RecvTimeoutError::Timeout)
        {
            return Err(OTelSdkError::Timeout(patience));
        }
        Ok(())
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let sent = self.sender().is_some_and(|words| words.try_send(Word::Span(Box::new(span))).is_ok());
        if !sent {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.flush(Duration::from_secs(5))
    }

    fn shutdown_with_timeout(&self, patience: Duration) -> OTelSdkResult {
        let until = Instant::now() + patience;
        let flushed = self.flush(patience);
        // The thread ends with the last sender.
        drop(self.words.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // One that hangs in a request is left to its time-out: it keeps nobody from leaving.
        if flushed.is_ok()
            && Instant::now() < until
            && let Some(thread) = thread
        {
            let _ = thread.join();
        }
        flushed
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(words) = self.sender() {
            // The first word of all: there is room.
            let _ = words.try_send(Word::Resource(Box::new(resource.clone())));
        }
    }
}

struct Worker {
    exporter: SpanExporter,
    counts: Arc<Counts>,
    batch: Vec<SpanData>,
}

impl Worker {
    fn run(mut self, words: &Receiver<Word>) {
        let mut due: Option<Instant> = None;
        loop {
            let wait = due.map_or(GATHER, |due| due.saturating_duration_since(Instant::now()));
            let flushed = match words.recv_timeout(wait) {
                Ok(Word::Span(span)) => {
                    self.batch.push(*span);
                    due.get_or_insert_with(|| Instant::now() + GATHER);
                    None
                }
                Ok(Word::Resource(resource)) => {
                    self.exporter.set_resource(&resource);
                    None
                }
                Ok(Word::Flush(flushed)) => Some(flushed),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.export(),
            };
            let is_due = due.is_some_and(|due| due <= Instant::now());
            if self.batch.len() >= BATCH_MAX || flushed.is_some() || is_due {
                self.export();
                due = None;
            }
        }
    }

    fn export(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        let exported = block_on(self.exporter.export(batch));
        match exported {
            Ok(()) => self.counts.exported.fetch_add(count, Ordering::Relaxed),
            Err(why) => {
                tracing::debug!(%why, count, "spans were not taken");
                self.counts.dropped.fetch_add(count, Ordering::Relaxed)
            }
        };
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Not by a runtime: the client blocks the thread by itself, which one would not allow.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut task = Context::from_waker(&waker);
    loop {
        match work.as_mut().poll(&mut task) {
            Poll::Ready(outcome) => return outcome,
            Poll::Pending => thread::park(),
        }
    }
}
