//! Where spans are begun and ended. The bus opens one for the handling of each ask that belongs to a trace; who exports
//! it, and whether, is a [`Tracer`]'s matter. Without one nothing is begun and a trace context is carried on as it came.
//!
//! A span is begun when the ask is accepted, and its own context takes the place of the one that came: whatever the
//! handler asks with `message.context.trace` is below it. It ends with the answer, and says as attributes how long its
//! stages took ([`crate::timings`]).

use std::fmt::Debug;
use std::time::SystemTime;

use eclosion_schemas::{Code, Error, Stage};

use crate::context::TraceContext;

/// Begins spans; implemented at the edge. It must neither block nor fail: what it cannot take it drops and counts.
pub trait Tracer: Send + Sync + Debug + 'static {
    /// `None`: it is not to be recorded, and what comes of it belongs to the parent.
    fn begin(&self, span: NewSpan<'_>) -> Option<Box<dyn OpenSpan>>;

    fn counts(&self) -> TraceCounts;
}

/// A span that has not ended. Dropped, it ends as it is.
pub trait OpenSpan: Send + Debug {
    /// What stands for it on its way; flags included.
    fn context(&self) -> TraceContext;

    fn end(self: Box<Self>, end: SpanEnd<'_>);
}

/// What a span is when it begins.
#[derive(Debug, Clone)]
pub struct NewSpan<'a> {
    /// `run.start /dag`
    pub name: String,
    /// `None`: it begins a trace.
    pub parent: Option<TraceContext>,
    pub kind: SpanKind,
    /// `None`: now.
    pub began: Option<SystemTime>,
    pub attributes: &'a [(&'static str, &'a str)],
}

/// Which side of a message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Asks.
    Client,
    /// Answers somebody outside of the kernel.
    Server,
    /// Handles what another part of the kernel has asked.
    Consumer,
    Internal,
}

/// How a span ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpanEnd<'a> {
    pub error: Option<&'a Error>,
    pub stages: &'a [Stage],
    /// `None`: now.
    pub ended: Option<SystemTime>,
}

/// What became of spans that have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TraceCounts {
    pub exported: u64,
    /// There was no room for them, or the receiver did not take them.
    pub dropped: u64,
}

impl SpanEnd<'_> {
    /// Whether the error is the kernel's or its workers', and not the answer to a question.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        let ours = |error: &&Error| {
            matches!(
                error.code,
                Code::Internal | Code::Unavailable | Code::DataLoss | Code::Unknown | Code::Deadline
            )
        };
        self.error.as_ref().is_some_and(ours)
    }
}
