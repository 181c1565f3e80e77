//! The span of what a worker has in hand, an attempt or a call, and below it what Python did of that.
//!
//! It begins when it is given to the worker and ends with the outcome, or with the worker. User code sees it as
//! `current().trace`, so that what it traces itself is below it. Python's part is told with the outcome and exported here
//! on its behalf: a worker needs no exporter.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eclosion_bus::{NewSpan, OpenSpan, SpanEnd, SpanKind, TraceContext, Tracer};
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{Error, WorkerId};

/// `None` within: nobody records it, or it belongs to no trace.
#[derive(Debug, Default)]
pub(super) struct WorkSpan {
    open: Option<(Box<dyn OpenSpan>, Arc<dyn Tracer>)>,
    function: String,
    /// What comes of the outcome belongs below this.
    trace: Option<TraceContext>,
}

impl WorkSpan {
    /// From here on `execute` belongs below it.
    pub(super) fn begin(tracer: Option<&Arc<dyn Tracer>>, execute: &mut Execute, worker: &WorkerId) -> Self {
        let Some(parent) = execute.trace.as_deref().and_then(|trace| trace.parse().ok()) else {
            return Self::default();
        };
        let untraced = Self { open: None, function: String::new(), trace: Some(parent) };
        let Some(tracer) = tracer else { return untraced };
        let (task, attempt) = (execute.task.to_string(), execute.attempt.to_string());
        let attributes = [
            ("code.function.name", execute.function.as_str()),
            ("eclosion.worker", worker.as_str()),
            ("eclosion.run", execute.run.as_str()),
            ("eclosion.task", &task),
            ("eclosion.attempt", &attempt),
        ];
        let name = format!("attempt {}", execute.function);
        let (parent, kind) = (Some(parent), SpanKind::Client);
        let begun = tracer.begin(NewSpan { name, parent, kind, began: None, attributes: &attributes });
        let Some(open) = begun else { return untraced };
        let trace = open.context();
        execute.trace = Some(trace.to_string());
        let function = execute.function.clone();
        Self { open: Some((open, Arc::clone(tracer))), function, trace: Some(trace) }
    }

    /// Returns what the commit of the outcome belongs to.
    pub(super) fn end(self, error: Option<&Error>, ran_unix_ns: Option<[u64; 2]>) -> Option<TraceContext> {
        let Some((open, tracer)) = self.open else { return self.trace };
        if let Some([began, ended]) = ran_unix_ns {
            let at = |unix_ns| UNIX_EPOCH + Duration::from_nanos(unix_ns);
            // The worker's clock is ours, and its word is not: no later than now.
            let ended = at(ended).min(SystemTime::now());
            let span = NewSpan {
                name: format!("python {}", self.function),
                parent: self.trace,
                kind: SpanKind::Server,
                began: Some(at(began).min(ended)),
                attributes: &[("code.function.name", &self.function)],
            };
            if let Some(python) = tracer.begin(span) {
                python.end(SpanEnd { error, stages: &[], ended: Some(ended) });
            }
        }
        open.end(SpanEnd { error, stages: &[], ended: None });
        self.trace
    }
}
