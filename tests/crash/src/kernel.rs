//! One kernel process of one round: started, killed, started again, stopped.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use eclosion_client::Client;
use eclosion_schemas::ops::kernel::{Empty, Status, Stop};
use tokio::process::Child;

use crate::failure::{Failure, ensure};
use crate::leftovers;
use crate::watch::Watch;

/// Whatever takes longer than this hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How long workers outlive a killed kernel; longer than any round takes to start the next one.
const GRACE_MS: u64 = 30_000;
/// The same on every machine.
pub(crate) const WORKERS_MAX: usize = 2;

#[derive(Debug)]
pub(crate) struct Kernel {
    directory: PathBuf,
    state: PathBuf,
    grace_ms: u64,
    collects: bool,
    /// Every task may wait at a worker, however long it takes.
    all_quick: bool,
    child: Option<Child>,
}

impl Kernel {
    /// `state` may be on a disk of its own; everything else is below `directory`.
    pub(crate) fn new(directory: &Path, state: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            state: state.to_owned(),
            grace_ms: GRACE_MS,
            collects: false,
            all_quick: false,
            child: None,
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("run/k.sock")
    }

    pub(crate) fn instance(&self) -> PathBuf {
        self.state.join("default")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.instance().join("journal")
    }

    /// Of the keepers that are started from now on; `None` is the usual one.
    pub(crate) fn set_grace(&mut self, grace_ms: Option<u64>) {
        self.grace_ms = grace_ms.unwrap_or(GRACE_MS);
    }

    /// Of the kernels that are started from now on: whatever nothing holds is due, and goes when it is asked for.
    pub(crate) fn keep_nothing(&mut self) {
        self.collects = true;
    }

    /// Of the kernels that are started from now on: what is given ahead does not depend on how fast this machine is.
    pub(crate) fn give_ahead(&mut self, all_quick: bool) {
        self.all_quick = all_quick;
    }

    /// The binary in one of its roles, with this round's places.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .env("ECLOSION_STATE_DIR", &self.state)
            .env("ECLOSION_RUNTIME_DIR", self.directory.join("run"))
            .env("ECLOSION_CACHE_DIR", cache())
            .env("ECLOSION_LISTEN", self.socket())
            .env("ECLOSION_SOCKET", self.socket())
            .env("ECLOSION_GRACE_MS", self.grace_ms.to_string())
            .env("ECLOSION_WORKERS_MAX", WORKERS_MAX.to_string())
            .env("RUST_LOG", "info")
            .stdin(Stdio::null());
        if self.all_quick {
            command.env("ECLOSION_QUICK_MS", "600000");
        }
        if self.collects {
            for name in ["INTERVAL_MS", "UNNAMED_MS", "RUN_COUNT_MAX"] {
                command.env(format!("ECLOSION_RETENTION_{name}"), "0");
            }
        }
        command
    }

    /// Says a command as a person would, and gives what they would see.
    pub(crate) async fn say(&self, arguments: &[&str]) -> Result<Output, Failure> {
        let mut command = tokio::process::Command::from(self.command(arguments));
        let said = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await;
        Ok(said.map_err(|_| Failure::new(format!("eclosion {arguments:?} hangs")))??)
    }

    /// Starts the kernel and attaches a client once it answers.
    pub(crate) async fn start(&mut self) -> Result<Client, Failure> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = tokio::process::Command::from(self.command(&["up", "--foreground"]));
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn()?);
        self.attach().await
    }

    /// A client, once the kernel is ready: it says so in its log, which is watched. A slow machine may fail to answer a try
    /// that comes after its last word, so that there is another.
    pub(crate) async fn attach(&mut self) -> Result<Client, Failure> {
        let watch = Watch::on(&self.directory)?;
        let ready = async {
            loop {
                if let Ok(client) = Client::connect(&self.socket()).await
                    && let Ok(status) = client.call::<Status>(Empty {}).await
                    && status.state == "ready"
                {
                    return Ok::<_, Failure>(client);
                }
                if let Ok(changed) = tokio::time::timeout(TRY_AGAIN, watch.changed()).await {
                    changed?;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, ready).await {
            Ok(client) => client,
            Err(_) => Err(Failure::new(format!("the kernel does not get ready:\n{}", self.log_tail()))),
        }
    }

    /// SIGKILL, and waits for the corpse.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// SIGKILL of everything that was ever started under this kernel, as when the power goes.
    pub(crate) async fn kill_all(&mut self) -> Result<(), Failure> {
        self.kill().await?;
        leftovers::kill_all(&self.directory).map_err(Failure::new)
    }

    /// Asks it to stop; it must end with 0.
    pub(crate) async fn stop(&mut self, client: &Client) -> Result<(), Failure> {
        client.call::<Stop>(Empty {}).await?;
        self.stopped().await
    }

    /// It was asked to stop; it must end with 0.
    pub(crate) async fn stopped(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let Ok(status) = tokio::time::timeout(PATIENCE, child.wait()).await else {
            child.kill().await?;
            return Err(Failure::new(format!("the kernel does not stop:\n{}", self.log_tail())));
        };
        let status = status?;
        ensure(status.success(), || format!("the kernel ended with {status}:\n{}", self.log_tail()))
    }

    fn log(&self) -> PathBuf {
        self.directory.join("kernel.log")
    }

    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // A failed round leaves nothing running either; whoever is left, the next round is not about.
        let _ = leftovers::kill_all(&self.directory);
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(".")).to_path_buf()
}

pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Built with the feature `chaos`: it panics on request.
fn binary() -> PathBuf {
    std::env::var_os("ECLOSION_CHAOS_BINARY")
        .map_or_else(|| target().join("debug/eclosion-chaos"), PathBuf::from)
}

/// Shared by all rounds: the Python runtime need not be laid out a hundred times.
fn cache() -> PathBuf {
    target().join("crash-cache")
}

pub(crate) fn python() -> PathBuf {
    std::env::var_os("ECLOSION_TEST_PYTHON")
        .map_or_else(|| target().join("test-python/bin/python"), PathBuf::from)
}

pub(crate) fn source(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}
