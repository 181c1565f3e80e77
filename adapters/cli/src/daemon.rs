//! The binary as a kernel: signals, logs, the panic hook, and the exit code. Only here, never in the library.
//!
//! One SIGTERM or Ctrl-C drains: no new sessions, what is in hand is finished. A second one hurries. A kernel whose
//! supervision has given up ends with 70, so that whoever started it starts it again.

use std::process::ExitCode;

use eclosion::{Eclosion, Options, Places};
use eclosion_schemas::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Supervision has given up.
pub(crate) const INTERNAL: u8 = 70;

/// What ends a kernel.
enum End {
    Asked,
    GaveUp(String),
}

/// The options of an instance: defaults, then `ECLOSION_*`.
pub(crate) fn options(instance: &str) -> Result<Options, Error> {
    let mut options = Options::new(Places::of(instance)?);
    if let Some(grace) = number("ECLOSION_GRACE_MS")? {
        options.grace_ms = grace;
    }
    if let Some(workers) = number("ECLOSION_WORKERS_MAX")? {
        options.workers_max = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
    }
    Ok(options)
}

fn number(name: &str) -> Result<Option<u64>, Error> {
    let Some(text) = std::env::var(name).ok().filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        Error::invalid("config.number", format!("{name}={text} is no whole number")).help(format!("unset {name}"))
    })
}

/// Serves until it is asked to stop.
pub(crate) async fn serve(options: Options) -> Result<ExitCode, Error> {
    let mut signals = Signals::new()?;
    let kernel = Eclosion::start(options).await?;
    tracing::info!(socket = %kernel.places().socket.display(), pid = std::process::id(), "ready");
    let end = tokio::select! {
        _ = kernel.stopped() => End::Asked,
        () = signals.next() => End::Asked,
        escalated = kernel.escalated() => End::GaveUp(escalated.to_string()),
    };
    tokio::select! {
        () = kernel.shutdown() => {}
        () = signals.next() => tracing::warn!("hurried: what was not finished goes on at the next start"),
    }
    Ok(match end {
        End::Asked => ExitCode::SUCCESS,
        End::GaveUp(why) => {
            tracing::error!(why, "gave up");
            ExitCode::from(INTERNAL)
        }
    })
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|why| Error::internal("signals", why.to_string()));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Logs to stderr, by `RUST_LOG`; plain when it is no terminal.
pub(crate) fn log(default: &str) {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let plain = std::env::var_os("NO_COLOR").is_some() || !std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(!plain).init();
}

/// A panic is one line with its place. Resolving symbols inline would cost longer than the restart that follows.
pub(crate) fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("panicked");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "{text}");
    }));
}
