//! The binary's part in traces: one span for the command, and the exporter that a kernel in this process records with.
//!
//! `TRACEPARENT` says what the command belongs to. Where nobody exports, it is handed on to the kernel as it is, so that the
//! kernel's spans belong there all the same.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eclosion::bus::{NewSpan, OpenSpan, SpanEnd, SpanKind, TraceContext, Tracer};
use eclosion_client::ConnectOptions;
use eclosion_schemas::Error;
use eclosion_telemetry::Telemetry;

/// How long a command that is over may take to hand in its spans.
const LEAVE: Duration = Duration::from_secs(2);

/// The binary's own; a library would not have one.
static OWN: OnceLock<Own> = OnceLock::new();

#[derive(Debug)]
struct Own {
    telemetry: Option<Telemetry>,
    /// What the command's calls belong to.
    trace: Option<TraceContext>,
}

/// A command under way.
#[derive(Debug)]
pub(crate) struct Command {
    telemetry: Option<Telemetry>,
    span: Option<Box<dyn OpenSpan>>,
}

/// Reads the environment, before there is a runtime. What is wrong there is said and costs spans alone. A kernel has no span
/// of its own: it lives as long as it lives.
pub(crate) fn begin(command: &str, is_kernel: bool) -> Command {
    let telemetry = Telemetry::from_environment().unwrap_or_else(|why| {
        crate::terminal::talk(&why);
        None
    });
    let parent = std::env::var("TRACEPARENT").ok().and_then(|parent| parent.parse().ok());
    let new = || NewSpan {
        name: format!("eclosion {command}"),
        parent,
        kind: SpanKind::Client,
        began: None,
        attributes: &[],
    };
    let span = telemetry.as_ref().filter(|_| !is_kernel).and_then(|telemetry| telemetry.begin(new()));
    let trace = span.as_ref().map(|span| span.context()).or(parent.filter(|_| !is_kernel));
    // Once, here: `begin` is called by `main` alone.
    let _ = OWN.set(Own { telemetry: telemetry.clone(), trace });
    Command { telemetry, span }
}

impl Command {
    /// Hands in what is left.
    pub(crate) fn end(self, outcome: Result<&u8, &Error>) {
        if let Some(span) = self.span {
            span.end(SpanEnd { error: outcome.err(), ..SpanEnd::default() });
        }
        if let Some(telemetry) = self.telemetry {
            telemetry.close(LEAVE);
        }
    }
}

/// How a client of this command introduces itself.
pub(crate) fn connect_options() -> ConnectOptions {
    let trace = OWN.get().and_then(|own| own.trace).map(|trace| trace.to_string());
    ConnectOptions { trace, ..ConnectOptions::default() }
}

/// Who records the spans of a kernel in this process.
pub(crate) fn tracer() -> Option<Arc<dyn Tracer>> {
    let telemetry = OWN.get()?.telemetry.clone()?;
    Some(Arc::new(telemetry))
}
