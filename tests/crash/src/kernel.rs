//! One kernel process of one round: started, killed, started again, stopped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use eclosion_client::Client;
use eclosion_schemas::ops::kernel::{Empty, Status, Stop, StopRequest};

use crate::round::Failure;

/// Whatever takes longer than this hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long workers outlive a killed kernel; longer than any round takes to start the next one.
const GRACE_MS: u64 = 30_000;

#[derive(Debug)]
pub(crate) struct Kernel {
    directory: PathBuf,
    child: Option<Child>,
}

impl Kernel {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), child: None }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("run/k.sock")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.directory.join("state/default/journal")
    }

    /// The binary in one of its roles, with this round's places.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .env("ECLOSION_STATE_DIR", self.directory.join("state"))
            .env("ECLOSION_RUNTIME_DIR", self.directory.join("run"))
            .env("ECLOSION_CACHE_DIR", cache())
            .env("ECLOSION_LISTEN", self.socket())
            .env("ECLOSION_SOCKET", self.socket())
            .env("ECLOSION_GRACE_MS", GRACE_MS.to_string())
            .stdin(Stdio::null());
        command
    }

    /// Starts the kernel and attaches a client once it answers.
    pub(crate) async fn start(&mut self) -> Result<Client, Failure> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let child = self.command(&["up", "--foreground"]).stdout(Stdio::null()).stderr(log).spawn()?;
        self.child = Some(child);
        self.attach().await
    }

    /// A client, once the kernel is ready.
    pub(crate) async fn attach(&mut self) -> Result<Client, Failure> {
        let ready = async {
            loop {
                if let Ok(client) = Client::connect(&self.socket()).await
                    && let Ok(status) = client.call::<Status>(Empty {}).await
                    && status.state == "ready"
                {
                    return client;
                }
                // A kernel that is not there yet cannot tell that it will be.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, ready).await {
            Ok(client) => Ok(client),
            Err(_) => Err(Failure::new(format!("the kernel does not get ready:\n{}", self.log_tail()))),
        }
    }

    /// SIGKILL, and waits for the corpse.
    pub(crate) fn kill(&mut self) -> Result<(), Failure> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks it to stop; it must end with 0.
    pub(crate) async fn stop(&mut self, client: &Client) -> Result<(), Failure> {
        client.call::<Stop>(StopRequest { now: false }).await?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let waited = tokio::task::spawn_blocking(move || wait(&mut child)).await.map_err(Failure::new)?;
        match waited? {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                Err(Failure::new(format!("the kernel ended with {status}:\n{}", self.log_tail())))
            }
            None => Err(Failure::new(format!("the kernel does not stop:\n{}", self.log_tail()))),
        }
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
        // A failed round leaves nothing running either.
        for pid in crate::leftovers::processes(&self.directory) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

fn wait(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let until = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    Ok(None)
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
