//! The kernel's handle on its keeper.
//!
//! [`Keeper::connect`] finds a keeper that survived the last kernel; [`Keeper::connect_or_start`] starts one where none
//! lives. Either gives a cheap handle for requests and the receiver of what the keeper says. The first event is
//! [`KeeperEvent::Welcome`], then a [`KeeperEvent::Survivor`] for each living worker; the last is [`KeeperEvent::Lost`],
//! after which the owner [sweeps](crate::sweep()) and starts another.
//!
//! Invariants: (1) requests never block and never queue without bound. (2) The owner that stops reading events stops
//! the session's reading, not its memory. (3) A keeper is started detached: it outlives this process by design, with
//! an environment that holds no secret.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use eclosion_schemas::{Code, Epoch, Error, Retry, WorkerId};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::keeper::{READY_LINE, SOCKET_NAME};
use crate::message::{FromKeeper, How, KnownWorker, SpawnWorker, ToKeeper};
use crate::socket::{self, Link, Received};

/// Requests that wait for the session's turn: every worker's start and end at once.
const REQUESTS_MAX: usize = 1024;
const EVENTS_MAX: usize = 256;
/// Between two looks at a directory whose keeper is about to listen or to end.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How much of the keeper's log is shown when it cannot start.
const LOG_TAIL_BYTES: usize = 2048;

/// What a keeper is given of the kernel's environment, beside `ECLOSION_*`.
const KEPT: [&str; 5] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ"];
/// Secrets are resolved by the kernel and travel with the task that names them.
const SECRETS: &str = "ECLOSION_SECRET_";

/// Where a kernel's keeper lives and how it is started.
#[derive(Debug, Clone)]
pub struct KeeperConfig {
    /// The binary that takes the role `keeper`; usually the kernel's own.
    pub binary: PathBuf,
    pub instance: String,
    /// The instance's runtime directory, 0700.
    pub dir: PathBuf,
    pub grace_ms: u64,
    /// What a kernel that never comes back leaves: its socket, directories of half-done work. See
    /// [`KeeperOptions::temporary`](crate::KeeperOptions::temporary).
    pub temporary: Vec<PathBuf>,
    /// Where the keeper makes a limit group for each worker: what [`crate::groups::arrange`] gave.
    pub groups: Option<PathBuf>,
    /// Appended to by the keeper.
    pub log: PathBuf,
    /// For dialing and starting together.
    pub connect_timeout_ms: u64,
}

/// What the keeper says.
#[derive(Debug)]
pub enum KeeperEvent {
    /// The first event: every worker it knows, alive, or dead and not forgotten.
    Welcome {
        pid: u32,
        workers: Vec<KnownWorker>,
    },
    /// A worker of an earlier kernel, with a fresh stream.
    Survivor {
        worker: WorkerId,
        pid: u32,
        start_ticks: u64,
        stream: OwnedFd,
    },
    Spawned {
        worker: WorkerId,
        pid: u32,
        start_ticks: u64,
        stream: OwnedFd,
    },
    SpawnFailed {
        worker: WorkerId,
        error: String,
    },
    Exited {
        worker: WorkerId,
        pid: u32,
        how: How,
        peak_rss_bytes: u64,
        /// Its group's counters say that it was killed at this limit of memory.
        oom_limit_bytes: Option<u64>,
    },
    /// The last event: the keeper is gone, and with it every lifeline.
    Lost {
        text: String,
    },
}

/// Requests to a keeper. Cheap to clone; the session ends when the receiver of its events is dropped.
#[derive(Debug, Clone)]
pub struct Keeper {
    requests: mpsc::Sender<ToKeeper>,
    pid: u32,
}

type Session = (Keeper, mpsc::Receiver<KeeperEvent>);

impl Keeper {
    /// Dials the keeper that lives in the directory, or starts one and dials that.
    ///
    /// # Errors
    /// `unavailable`, `keeper.start`: it could not be started, with its own last words; `conflict`, `keeper.refused`: it
    /// serves another instance or a newer kernel; `deadline`.
    pub async fn connect_or_start(config: &KeeperConfig, epoch: Epoch) -> Result<Session, Error> {
        let deadline = Instant::now() + Duration::from_millis(config.connect_timeout_ms);
        loop {
            if let Some(session) = attach(config, epoch, deadline).await? {
                return Ok(session);
            }
            start(config, deadline).await?;
        }
    }

    /// Dials the keeper that lives in the directory; `None` where none does.
    ///
    /// # Errors
    /// As [`connect_or_start`](Self::connect_or_start).
    pub async fn connect(config: &KeeperConfig, epoch: Epoch) -> Result<Option<Session>, Error> {
        attach(config, epoch, Instant::now() + Duration::from_millis(config.connect_timeout_ms)).await
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Answered by `Spawned`, `SpawnFailed` or `Lost`. The same worker again changes nothing.
    ///
    /// # Errors
    /// `unavailable`: the keeper is lost; `exhausted`: too many requests wait; `invalid`: the request is too long.
    pub fn spawn(&self, worker: SpawnWorker) -> Result<(), Error> {
        let request = ToKeeper::Spawn(worker);
        socket::encode(&request).map_err(|why| Error::invalid("worker.spawn", why.to_string()))?;
        self.request(request)
    }

    /// Sends a signal to a worker, or to all that came of it. One that is dead already is no error.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn signal(&self, worker: WorkerId, signal: i32, tree: bool) -> Result<(), Error> {
        self.request(ToKeeper::Signal { worker, signal, tree })
    }

    /// The worker's exit was journaled.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn forget(&self, worker: WorkerId) -> Result<(), Error> {
        self.request(ToKeeper::Forget { worker })
    }

    /// Ends every worker and the keeper. `Lost` follows when nothing is left.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn shutdown(&self) -> Result<(), Error> {
        self.request(ToKeeper::Shutdown {})
    }

    fn request(&self, request: ToKeeper) -> Result<(), Error> {
        self.requests.try_send(request).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => {
                Error::new(Code::Exhausted, "keeper.busy", "too many requests wait for the keeper")
                    .retry(Retry::After { after_ms: 100 })
            }
            mpsc::error::TrySendError::Closed(_) => lost("its connection is closed"),
        })
    }
}

fn lost(why: &str) -> Error {
    Error::new(Code::Unavailable, "keeper.lost", format!("the keeper is gone: {why}")).retry(Retry::Now)
}

fn late() -> Error {
    Error::new(Code::Deadline, "keeper.start", "no keeper answered before the deadline").retry(Retry::Now)
}

/// `None`: nobody listens.
async fn attach(config: &KeeperConfig, epoch: Epoch, deadline: Instant) -> Result<Option<Session>, Error> {
    loop {
        let link = match socket::dial(&config.dir.join(SOCKET_NAME)) {
            Ok(link) => link,
            Err(why) if is_nobody(&why) => return Ok(None),
            Err(why) => return Err(lost(&why.to_string())),
        };
        let hello = greet(link, &config.instance, epoch);
        match tokio::time::timeout_at(deadline, hello).await.map_err(|_| late())? {
            Ok(Greeting::Welcome(link, pid, workers)) => return Ok(Some(open(link, pid, workers).await)),
            Ok(Greeting::Refused(error)) => {
                return Err(Error::new(
                    Code::Conflict,
                    "keeper.refused",
                    format!("the keeper refused: {error}"),
                ));
            }
            // It is ending. When it is gone nobody listens, and another may be started.
            Ok(Greeting::End) => wait_before(deadline).await?,
            Err(why) => return Err(lost(&why.to_string())),
        }
    }
}

fn is_nobody(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

async fn wait_before(deadline: Instant) -> Result<(), Error> {
    let next = Instant::now() + LOOK_AGAIN;
    if next >= deadline {
        return Err(late());
    }
    tokio::time::sleep_until(next).await;
    Ok(())
}

enum Greeting {
    Welcome(AsyncFd<Link>, u32, Vec<KnownWorker>),
    Refused(String),
    End,
}

async fn greet(mut link: Link, instance: &str, epoch: Epoch) -> io::Result<Greeting> {
    link.send(&ToKeeper::Hello { instance: instance.to_owned(), epoch: epoch.0 }, Vec::new())?;
    #[expect(unsafe_code, reason = "the one way to watch a descriptor that tokio has no type for")]
    // SAFETY: a Link owns its socket and neither closes nor replaces it before it is dropped.
    let link = unsafe { AsyncFd::register(link) }.map_err(io::Error::from)?;
    let mut known = Vec::new();
    loop {
        match next(&link).await? {
            Some((FromKeeper::Welcome { pid, workers, more }, _)) => {
                known.extend(workers);
                if !more {
                    return Ok(Greeting::Welcome(link, pid, known));
                }
            }
            Some((FromKeeper::Refused { error }, _)) if error.contains("ending") => return Ok(Greeting::End),
            Some((FromKeeper::Refused { error }, _)) => return Ok(Greeting::Refused(error)),
            Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "it spoke before its welcome")),
            None => return Ok(Greeting::End),
        }
    }
}

/// The next packet; `None` at the end.
async fn next(link: &AsyncFd<Link>) -> io::Result<Option<(FromKeeper, Vec<OwnedFd>)>> {
    loop {
        let mut ready = link.readable().await?;
        match link.get_ref().receive()? {
            Received::Message(message, descriptors) => return Ok(Some((message, descriptors))),
            Received::Nothing => ready.clear_ready(),
            Received::End => return Ok(None),
        }
    }
}

async fn open(link: AsyncFd<Link>, pid: u32, workers: Vec<KnownWorker>) -> Session {
    let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
    let (events, heard) = mpsc::channel(EVENTS_MAX);
    // The channel is new and has room.
    drop(events.send(KeeperEvent::Welcome { pid, workers }).await);
    tokio::spawn(serve(link, waiting, events));
    (Keeper { requests, pid }, heard)
}

/// One connection, until either side ends it.
async fn serve(
    mut link: AsyncFd<Link>,
    mut requests: mpsc::Receiver<ToKeeper>,
    events: mpsc::Sender<KeeperEvent>,
) {
    let why = loop {
        let is_full = link.get_ref().is_full();
        let turn = tokio::select! {
            () = events.closed() => return,
            Some(request) = requests.recv(), if !is_full => link.get_mut().send(&request, Vec::new()),
            room = link.writable(), if is_full => match room {
                Ok(mut room) => { room.clear_ready(); drop(room); link.get_mut().flush() }
                Err(why) => Err(why),
            },
            heard = next(&link) => match heard {
                Ok(Some((message, descriptors))) => match event(message, descriptors) {
                    Ok(event) => match events.send(event).await {
                        Ok(()) => Ok(()),
                        Err(_) => return,
                    },
                    Err(why) => Err(why),
                },
                Ok(None) => break "it closed the connection".to_owned(),
                Err(why) => Err(why),
            },
        };
        if let Err(why) = turn {
            break why.to_string();
        }
    };
    // Whoever hears that it is lost finds that requests say so too.
    drop(requests);
    // The owner may have gone meanwhile, and then nobody misses it.
    drop(events.send(KeeperEvent::Lost { text: why }).await);
}

fn event(message: FromKeeper, descriptors: Vec<OwnedFd>) -> io::Result<KeeperEvent> {
    let stream = || {
        let missing = || io::Error::new(io::ErrorKind::InvalidData, "a worker came without its stream");
        let stream = descriptors.into_iter().next().ok_or_else(missing)?;
        rustix::io::ioctl_fionbio(&stream, true)?;
        io::Result::Ok(stream)
    };
    Ok(match message {
        FromKeeper::Survivor { worker, pid, start_ticks } => {
            KeeperEvent::Survivor { worker, pid, start_ticks, stream: stream()? }
        }
        FromKeeper::Spawned { worker, pid, start_ticks } => {
            KeeperEvent::Spawned { worker, pid, start_ticks, stream: stream()? }
        }
        FromKeeper::SpawnFailed { worker, error } => KeeperEvent::SpawnFailed { worker, error },
        FromKeeper::Exited { worker, pid, how, peak_rss_bytes, oom_limit_bytes } => {
            KeeperEvent::Exited { worker, pid, how, peak_rss_bytes, oom_limit_bytes }
        }
        FromKeeper::Welcome { .. } | FromKeeper::Refused { .. } => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it greeted twice"));
        }
    })
}

/// Starts a keeper and waits until it listens, or has found that another does.
async fn start(config: &KeeperConfig, deadline: Instant) -> Result<(), Error> {
    let mut child = command(config).and_then(|mut command| command.spawn()).map_err(|why| {
        let text = format!("{} cannot be started as keeper: {why}", config.binary.display());
        Error::new(Code::Unavailable, "keeper.start", text)
    })?;
    let stdout = child.stdout.take();
    let listens = tokio::time::timeout_at(deadline, says_ready(stdout)).await;
    if listens == Ok(true) {
        // Waited for when it ends, so that it is no zombie of a long-lived kernel.
        tokio::spawn(async move { child.wait().await });
        return Ok(());
    }
    let status = tokio::time::timeout_at(deadline, child.wait()).await;
    match status {
        Ok(Ok(status)) if status.success() => wait_before(deadline).await,
        Ok(status) => {
            let text = status.map_or_else(|why| why.to_string(), |status| status.to_string());
            let error = Error::new(
                Code::Unavailable,
                "keeper.start",
                format!("the keeper ended at its start: {text}"),
            );
            Err(log_tail(&config.log).into_iter().fold(error, Error::cause))
        }
        Err(_) => {
            give_up(child);
            Err(late())
        }
    }
}

fn give_up(mut child: Child) {
    // It may just have ended by itself.
    drop(child.start_kill());
    tokio::spawn(async move { child.wait().await });
}

async fn says_ready(stdout: Option<impl AsyncRead + Unpin>) -> bool {
    let Some(stdout) = stdout else { return false };
    let mut line = String::new();
    let mut lines = BufReader::new(tokio::io::AsyncReadExt::take(stdout, 64));
    lines.read_line(&mut line).await.is_ok() && line.trim_end() == READY_LINE
}

fn command(config: &KeeperConfig) -> io::Result<Command> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&config.log)?;
    let mut command = Command::new(&config.binary);
    command.arg("keeper").args(["--instance", &config.instance]).arg("--dir").arg(&config.dir);
    command.args(["--grace-ms", &config.grace_ms.to_string()]);
    for path in &config.temporary {
        command.arg("--temporary").arg(path);
    }
    if let Some(groups) = &config.groups {
        command.arg("--groups").arg(groups);
    }
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    Ok(command)
}

fn is_kept(name: &str) -> bool {
    KEPT.contains(&name) || (name.starts_with("ECLOSION_") && !name.starts_with(SECRETS))
}

fn log_tail(log: &Path) -> Vec<String> {
    let bytes = std::fs::read(log).unwrap_or_default();
    let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned();
    let mut lines: Vec<_> = tail.lines().rev().take(5).map(str::to_owned).collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_reaches_the_keeper() {
        assert!(is_kept("PATH") && is_kept("ECLOSION_MARKER"));
        assert!(
            !is_kept("ECLOSION_SECRET_TOKEN") && !is_kept("AWS_SECRET_ACCESS_KEY") && !is_kept("LD_PRELOAD")
        );
    }
}
