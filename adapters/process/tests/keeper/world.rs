//! What a test needs of the world: a directory, a keeper, workers that obey, and a look at who is still there.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use eclosion_process::{Keeper, KeeperConfig, KeeperEvent, ProcessId, SpawnWorker, procfs};
use eclosion_schemas::{Epoch, WorkerId};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc;

pub(crate) const MARKER: &str = "ECLOSION_MARKER";
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) grace_ms: u64,
    runtime_paths: Vec<String>,
    /// Where its keeper makes groups.
    pub(crate) groups: Option<PathBuf>,
}

impl World {
    pub(crate) fn new(grace_ms: u64) -> Self {
        let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in");
        Self {
            dir: tempfile::tempdir().unwrap(),
            grace_ms,
            runtime_paths: vec![stand_in.display().to_string()],
            groups: None,
        }
    }

    /// With the runtime that users get, and the msgspec that it needs.
    pub(crate) fn with_real_runtime(grace_ms: u64) -> Self {
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python-workers/src").canonicalize().unwrap();
        let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("msgspec");
        if !packages.join("msgspec/__init__.py").exists() {
            let mut pip = Command::new(python());
            pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--target"])
                .arg(&packages)
                .arg("msgspec");
            assert!(pip.status().unwrap().success(), "pip install msgspec");
        }
        let runtime_paths = [source, packages].iter().map(|path| path.display().to_string()).collect();
        Self { runtime_paths, ..Self::new(grace_ms) }
    }

    pub(crate) fn config(&self) -> KeeperConfig {
        KeeperConfig { groups: self.groups.clone(), ..config(self.dir.path(), self.grace_ms) }
    }

    pub(crate) async fn kernel(&self, epoch: u32) -> Kernel {
        let (keeper, events) = Keeper::connect_or_start(&self.config(), Epoch(epoch)).await.unwrap();
        Kernel { keeper, events }
    }

    pub(crate) fn worker(&self, name: &str) -> SpawnWorker {
        SpawnWorker { code_paths: self.runtime_paths.clone(), ..worker(self.dir.path(), name) }
    }

    /// A process of its own that starts workers and waits to be killed; returns when they are up.
    pub(crate) async fn doomed_kernel(&self, workers: u32) -> tokio::process::Child {
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command.arg("kernel").arg(self.dir.path()).args([self.grace_ms.to_string(), workers.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        within("the doomed kernel's workers", lines.next_line()).await.unwrap();
        child
    }
}

fn config(dir: &Path, grace_ms: u64) -> KeeperConfig {
    KeeperConfig {
        binary: std::env::current_exe().unwrap(),
        instance: "test".into(),
        dir: dir.to_owned(),
        grace_ms,
        temporary: vec![dir.join("temporary")],
        groups: None,
        log: dir.join("keeper.log"),
        connect_timeout_ms: 20_000,
    }
}

fn worker(dir: &Path, name: &str) -> SpawnWorker {
    let file = |kind: &str| dir.join(format!("{name}.{kind}")).display().to_string();
    SpawnWorker {
        worker: WorkerId::new(name).unwrap(),
        environment: "stand-in".into(),
        python: python().display().to_string(),
        args_env: [("TEST_ASKED".to_owned(), "yes".to_owned())].into(),
        preload: Vec::new(),
        stdout: file("stdout"),
        stderr: file("stderr"),
        cwd: file("scratch"),
        code_paths: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in").display().to_string()],
    }
}

/// The interpreter itself: what PATH names may be a script that looks for it.
pub(crate) fn python() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let found =
            Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        PathBuf::from(String::from_utf8(found.stdout).unwrap().trim())
    };
    FOUND.get_or_init(find).clone()
}

pub(crate) fn doomed_kernel(dir: &str, grace_ms: u64, workers: u32) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = config(Path::new(dir), grace_ms);
        let (keeper, events) = Keeper::connect_or_start(&config, Epoch(1)).await.unwrap();
        let mut kernel = Kernel { keeper, events };
        kernel.welcome().await;
        let mut kept = Vec::new();
        for n in 0..workers {
            kernel.keeper.spawn(worker(Path::new(dir), &format!("w-{n}"))).unwrap();
            kept.push(kernel.spawned().await);
        }
        println!("up");
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

/// A kernel as far as its keeper sees it.
pub(crate) struct Kernel {
    pub(crate) keeper: Keeper,
    pub(crate) events: mpsc::Receiver<KeeperEvent>,
}

impl Kernel {
    pub(crate) async fn next(&mut self) -> KeeperEvent {
        within("an event of the keeper", self.events.recv()).await.expect("the session is open")
    }

    pub(crate) async fn welcome(&mut self) -> Vec<eclosion_process::KnownWorker> {
        match self.next().await {
            KeeperEvent::Welcome { workers, .. } => workers,
            other => panic!("{other:?}"),
        }
    }

    /// The next worker that starts, when it says that it is up.
    pub(crate) async fn spawned(&mut self) -> Worker {
        let mut worker = self.spawned_silent().await;
        assert_eq!(worker.line().await, "up");
        worker
    }

    pub(crate) async fn spawned_silent(&mut self) -> Worker {
        match self.next().await {
            KeeperEvent::Spawned { worker, pid, start_ticks, stream } => {
                Worker::new(worker, ProcessId { pid, start_ticks }, stream)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn exited(&mut self) -> (WorkerId, eclosion_process::How, u64) {
        match self.next().await {
            KeeperEvent::Exited { worker, how, peak_rss_bytes, .. } => (worker, how, peak_rss_bytes),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn lost(&mut self) {
        loop {
            if let KeeperEvent::Lost { .. } = self.next().await {
                return;
            }
        }
    }

    pub(crate) async fn shut_down(mut self) {
        self.keeper.shutdown().unwrap();
        self.lost().await;
    }
}

pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) process: ProcessId,
    pub(crate) stream: BufReader<tokio::net::UnixStream>,
}

impl Worker {
    pub(crate) fn new(id: WorkerId, process: ProcessId, stream: OwnedFd) -> Self {
        let stream = tokio::net::UnixStream::from_std(UnixStream::from(stream)).unwrap();
        Self { id, process, stream: BufReader::new(stream) }
    }

    pub(crate) async fn order(&mut self, order: &str) {
        self.stream.write_all(format!("{order}\n").as_bytes()).await.unwrap();
    }

    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        within("a line of a worker", self.stream.read_line(&mut line)).await.unwrap();
        line.trim().to_owned()
    }

    pub(crate) async fn ask_pid(&mut self, order: &str) -> u32 {
        self.order(order).await;
        self.line().await.parse().unwrap()
    }
}

pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// Waits until this process has ended, whoever its parent is.
pub(crate) fn wait_for_end(pid: u32, patience: Duration) -> bool {
    let Some(pid) = Pid::from_raw(i32::try_from(pid).unwrap()) else { return true };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return true,
        Err(why) => panic!("{why}"),
    };
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec::try_from(left).unwrap();
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(why) => panic!("{}", io::Error::from(why)),
        }
    }
}

/// Everything that was started under this marker, except the caller.
fn marked(marker: &str) -> Vec<ProcessId> {
    let wanted = format!("{MARKER}={marker}");
    let is_marked = |pid: u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    };
    let rows = procfs::table().into_iter();
    let rows = rows.filter(|row| !row.zombie && row.id.pid != std::process::id() && is_marked(row.id.pid));
    rows.map(|row| row.id).collect()
}

/// Waits until nothing of this test is left but the test.
pub(crate) fn wait_until_alone() {
    let marker = std::env::var(MARKER).unwrap();
    loop {
        let Some(process) = marked(&marker).first().copied() else { return };
        assert!(wait_for_end(process.pid, PATIENCE), "{process:?} is left");
    }
}

/// Kills what a test left behind and says who it was.
pub(crate) fn kill_marked(marker: &str) -> Vec<String> {
    let left = marked(marker);
    let told = left.iter().map(|process| {
        drop(procfs::signal(*process, rustix::process::Signal::KILL));
        let command = std::fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        format!("{} {}", process.pid, command.replace('\0', " "))
    });
    told.collect()
}

/// A directory for groups in a cgroup file system of version 2, below our own cgroup. It goes with this.
pub(crate) struct GroupRoot(pub(crate) PathBuf);

impl GroupRoot {
    /// Says aloud what is left out where there is none.
    pub(crate) fn make() -> Option<Self> {
        let site = eclosion_process::groups::Site::here().map_err(|refusal| refusal.to_string());
        let made = site.and_then(|site| {
            let root = site.own.join(format!("eclosion-test-{}", std::process::id()));
            std::fs::create_dir(&root).map_err(|why| format!("{}: {why}", root.display()))?;
            Ok(Self(root))
        });
        made.inspect_err(|why| println!("  LEFT OUT: no cgroup can be made here: {why}")).ok()
    }

    /// Hands the memory controller on, if it has it.
    pub(crate) fn has_memory(&self) -> bool {
        std::fs::write(self.0.join("cgroup.subtree_control"), "+memory +pids").is_ok()
    }
}

impl Drop for GroupRoot {
    fn drop(&mut self) {
        drop(std::fs::remove_dir(&self.0));
    }
}
