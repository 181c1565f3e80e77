//! The binary as a kernel: signals, logs, the panic hook, and the exit code. Only here, never in the library.
//!
//! One SIGTERM or Ctrl-C drains: no attempt is started, what is in hand is finished, for ten seconds at most; then no new
//! sessions, and the end. A second one hurries to the end, a third one through it. A kernel whose
//! supervision has given up ends with 70, so that whoever started it starts it again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use eclosion::{Kernel, Options, Places};
use eclosion_schemas::{Code, Error};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{exit, telemetry, terminal};

/// How long attempts in hand may take to be finished after a signal.
const DRAIN: Duration = Duration::from_secs(10);

/// What ends a kernel.
enum End {
    /// By `kernel.stop`, whose sender has drained it if he wanted that.
    Asked,
    Signaled,
    GaveUp(String),
}

/// A kernel whose spans go where the environment says.
pub(crate) async fn start(options: Options) -> Result<Kernel, Error> {
    let builder = Kernel::builder().options(options);
    match telemetry::tracer() {
        Some(tracer) => builder.tracer(tracer).start().await,
        None => builder.start().await,
    }
}

/// Serves until it is asked to stop.
pub(crate) async fn serve(options: Options) -> Result<u8, Error> {
    let mut signals = Signals::new()?;
    let kernel = start(options).await?;
    tracing::info!(socket = %kernel.places().socket.display(), pid = std::process::id(), "ready");
    let end = tokio::select! {
        // A kernel that has given up has stopped as well.
        biased;
        escalated = kernel.escalated() => End::GaveUp(escalated.to_string()),
        _ = kernel.stopped() => End::Asked,
        _ = signals.next() => End::Signaled,
    };
    if matches!(end, End::Signaled) {
        tokio::select! {
            left = kernel.drain(DRAIN) => tracing::info!(left, "drained"),
            _ = signals.next() => tracing::warn!("hurried: what was not finished is tried again at the next start"),
        }
    }
    tokio::select! {
        () = kernel.shutdown() => {}
        _ = signals.next() => tracing::warn!("hurried: what was not finished goes on at the next start"),
    }
    Ok(match end {
        End::Asked | End::Signaled => exit::OK,
        End::GaveUp(why) => {
            tracing::error!(why, "gave up");
            exit::INTERNAL
        }
    })
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Terminated,
    Interrupted,
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

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Ended {
        tokio::select! {
            _ = self.terminate.recv() => Ended::Terminated,
            _ = self.interrupt.recv() => Ended::Interrupted,
        }
    }
}

/// Logs to stderr, by `RUST_LOG`; plain when it is no terminal.
pub(crate) fn log() {
    let colored = terminal::colors(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(std::io::stderr)
        .with_ansi(colored)
        .init();
}

/// Logs to a file, for a kernel whose terminal belongs to a person.
pub(crate) fn log_to_file(path: &Path) -> Result<(), Error> {
    let unwritable = |why: std::io::Error| {
        let text = format!("{} cannot be written: {why}", path.display());
        Error::new(Code::Unavailable, "log.file", text).help("eclosion doctor")
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(unwritable)?;
    }
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(unwritable)?;
    tracing_subscriber::fmt().with_env_filter(filter()).with_writer(Arc::new(file)).with_ansi(false).init();
    Ok(())
}

/// Where a kernel logs that has no terminal of its own.
pub(crate) fn log_file(places: &Places) -> PathBuf {
    places.logs().join("kernel.log")
}

fn filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,eclosion=info"))
}

/// What a process is that holds a kernel, beside its logs: its memory, which may hold secrets, is read by nobody else of
/// this user, and its panics are short.
pub(crate) fn become_kernel() {
    quiet_panics();
    // The crash tests find what was left by a mark in its environment, which nobody could read any more.
    if cfg!(not(feature = "chaos"))
        && let Err(why) = set_dumpable_behavior(DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%why, "other processes of this user can read this one's memory");
    }
}

/// A panic is one line with its place. Resolving symbols inline would cost longer than the restart that follows.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("panicked");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "{text}");
    }));
}
