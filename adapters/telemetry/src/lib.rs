//! Spans to an OTLP receiver, by the standard variables; for the binary, and for an embedder that asks for it.
//!
//! ```text
//!   bus, workers ─ begin, end ─▶ SDK (ids, sampler, limits) ─▶ queue (bounded, drops are counted) ─▶ thread ─▶ HTTP
//! ```
//!
//! [`Telemetry::from_environment`] is there only where a receiver is named: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or
//! `OTEL_EXPORTER_OTLP_ENDPOINT`, unless `OTEL_SDK_DISABLED` is true or `OTEL_TRACES_EXPORTER` none. What else counts is the
//! SDK's: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS` and
//! `_TIMEOUT`. The protocol is http/protobuf, without TLS: a collector is local, or behind one that is.
//!
//! Invariants: (1) whoever ends a span never waits: it is put into a queue, or dropped and counted. (2) A receiver that is
//! dead or slow costs spans and nothing else; leaving waits for it no longer than it is told to. (3) Nothing global is
//! taken: no provider, no subscriber, no propagator.

mod queue;
mod span;

use std::sync::Arc;
use std::time::Duration;

use eclosion_bus::{NewSpan, OpenSpan, TraceCounts, Tracer};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use self::queue::{Counts, Queue};

const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const PROTOCOL: &str = "http/protobuf";
const SERVICE: &str = "eclosion";

/// Exports spans until it is closed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    counts: Arc<Counts>,
}

impl Telemetry {
    /// `None` where the environment names no receiver. Not inside a runtime: the HTTP client brings its own thread.
    ///
    /// # Errors
    /// What is wrong with the variables, as a sentence.
    pub fn from_environment() -> Result<Option<Self>, String> {
        if !is_wanted(&|name| std::env::var(name).ok())? {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().build();
        let exporter = exporter.map_err(|why| format!("spans are not exported: {why}"))?;
        let (queue, counts) =
            Queue::start(exporter).map_err(|why| format!("spans are not exported: {why}"))?;
        let named = std::env::var_os("OTEL_SERVICE_NAME").is_some_and(|name| !name.is_empty());
        let resource = Resource::builder();
        let resource = if named { resource } else { resource.with_service_name(SERVICE) };
        let provider =
            SdkTracerProvider::builder().with_span_processor(queue).with_resource(resource.build()).build();
        let tracer = provider.tracer("eclosion");
        Ok(Some(Self(Arc::new(Inner { provider, tracer, counts }))))
    }

    /// Exports what is left, for at most this long; spans that end later are dropped. It blocks.
    pub fn close(&self, patience: Duration) {
        // What could not be sent is counted as dropped.
        let _ = self.0.provider.shutdown_with_timeout(patience);
    }
}

impl Tracer for Telemetry {
    fn begin(&self, span: NewSpan<'_>) -> Option<Box<dyn OpenSpan>> {
        span::begin(&self.0.tracer, span)
    }

    fn counts(&self) -> TraceCounts {
        self.0.counts.read()
    }
}

fn is_wanted(variable: &dyn Fn(&str) -> Option<String>) -> Result<bool, String> {
    let said = |name: &str| variable(name).filter(|value| !value.is_empty());
    let is_off = said("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || said("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    if is_off || !ENDPOINTS.iter().any(|name| said(name).is_some()) {
        return Ok(false);
    }
    match PROTOCOLS.iter().find_map(|name| Some((name, said(name)?))) {
        Some((name, other)) if other != PROTOCOL => {
            Err(format!("{name} is {other}, and spans are exported by {PROTOCOL} alone"))
        }
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(variables: &[(&str, &str)]) -> Result<bool, String> {
        let found = |name: &str| variables.iter().find(|(known, _)| *known == name);
        is_wanted(&|name| found(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn spans_are_exported_where_a_receiver_is_named_and_nothing_forbids_it() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        assert_eq!(wanted(&[]), Ok(false));
        assert_eq!(wanted(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), Ok(false));
        assert_eq!(wanted(&[endpoint]), Ok(true));
        assert_eq!(wanted(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://h/v1/traces")]), Ok(true));
        assert_eq!(wanted(&[endpoint, ("OTEL_SDK_DISABLED", "True")]), Ok(false));
        assert_eq!(wanted(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(false));
        assert_eq!(wanted(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]), Ok(true));
        let refused = wanted(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap_err();
        assert!(refused.contains("grpc") && refused.contains("http/protobuf"), "{refused}");
    }
}
