//! A span of ours as the SDK has it.

use std::time::SystemTime;

use eclosion_bus::{NewSpan, OpenSpan, SpanEnd, SpanKind as Kind, TraceContext};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};

#[derive(Debug)]
struct Open(Span);

/// `None` where the sampler does not want it.
pub(crate) fn begin(tracer: &SdkTracer, span: NewSpan<'_>) -> Option<Box<dyn OpenSpan>> {
    let NewSpan { name, parent, kind, began, attributes } = span;
    let kind = match kind {
        Kind::Client => SpanKind::Client,
        Kind::Server => SpanKind::Server,
        Kind::Consumer => SpanKind::Consumer,
        Kind::Internal => SpanKind::Internal,
    };
    let attributes = attributes.iter().map(|(key, value)| KeyValue::new(*key, (*value).to_owned()));
    let builder = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
    let builder = builder.with_start_time(began.unwrap_or_else(SystemTime::now));
    let parent = match parent {
        Some(parent) => Context::new().with_remote_span_context(remote(parent)),
        None => Context::new(),
    };
    let open = builder.start_with_context(tracer, &parent);
    open.is_recording().then(|| Box::new(Open(open)) as _)
}

fn remote(parent: TraceContext) -> SpanContext {
    let (trace, span) = (TraceId::from_bytes(parent.trace_id), SpanId::from_bytes(parent.span_id));
    SpanContext::new(trace, span, TraceFlags::new(parent.flags), true, TraceState::default())
}

impl OpenSpan for Open {
    fn context(&self) -> TraceContext {
        let own = self.0.span_context();
        TraceContext {
            trace_id: own.trace_id().to_bytes(),
            span_id: own.span_id().to_bytes(),
            flags: own.trace_flags().to_u8(),
        }
    }

    fn end(self: Box<Self>, end: SpanEnd<'_>) {
        let mut span = self.0;
        for stage in end.stages {
            let took_ns = i64::try_from(stage.took_ns).unwrap_or(i64::MAX);
            span.set_attribute(KeyValue::new(format!("eclosion.{}_ns", stage.name), took_ns));
        }
        if let Some(error) = end.error {
            // The reason, which is of a closed set; what an error says may hold what a user has typed.
            span.set_attribute(KeyValue::new("error.type", error.reason.clone()));
            if end.is_failure() {
                span.set_status(Status::error(error.reason.clone()));
            }
        }
        span.end_with_timestamp(end.ended.unwrap_or_else(SystemTime::now));
    }
}
