//! The host of the workers: implements the pool manager's `Launcher` over the keeper and the workers' streams.
//!
//! ```text
//! launch ─► keeper: spawn ─► Spawned + stream ─┐
//!           keeper: Survivor + stream ─────────┴─► holder `/workers/ID` ─► HELLO ─► pool.worker_up
//! execute ─► stream ─► outcome ─► step.commit / step.fail; stale, or given back ─► pool.worker_idle
//! the stream ends, the keeper says how ─► pool.worker_down
//! ```
//!
//! Calls, which nobody journals, have a table of their own: [`calls`].
//!
//! It stands outside the six and outlives their incarnations: after a panic the pool manager finds its workers here by
//! [`Launcher::live`]. It decides nothing; it says what happened, until it is heard.
//!
//! Invariants: (1) a worker in the table is alive, or its death is about to be reported. (2) A fence given to a
//! worker is given to it once; what is known is done. (3) A worker's death is reported after its stream was read
//! to its end, so an outcome that it sent is never overtaken. (4) An outcome is acknowledged to the link only once the
//! DAG tracker has answered.

pub(crate) mod calls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use eclosion_artifact_store::BlobStore;
use eclosion_bus::{Address, Subject};
use eclosion_environments::Environments;
use eclosion_ipc::Welcome;
use eclosion_ipc::worker::{
    Acknowledged, Care, KnownFences, LinkEnd, Outcome, WorkerHandle, WorkerHello, WorkerLink, WorkerReports,
};
use eclosion_kernel::Kernel;
use eclosion_kernel::kernel::HOLDERS;
use eclosion_pool_manager::{AHEAD_PATIENCE_MS, Launcher};
use eclosion_process::{How, Keeper, KeeperConfig, KeeperEvent, KnownWorker, Rung, SpawnWorker};
use eclosion_schemas::certificate::Death;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{
    WorkerDown, WorkerDownRequest, WorkerIdle, WorkerIdleRequest, WorkerUp, WorkerUpRequest,
};
use eclosion_schemas::ops::task::{Commit, CommitReply, CommitRequest, Execute, Fail, FailRequest};
use eclosion_schemas::view::TaskReport;
use eclosion_schemas::{Attempt, Code, EnvironmentId, Error, Fence, TaskRef, WorkerId};
use tokio::sync::{mpsc, oneshot, watch};

use crate::output::{OutputFiles, Part, Stream};
use crate::report::until_heard;

/// A worker whose stream has ended is expected to be reaped within this; then its tree is killed.
const REAP: Duration = Duration::from_secs(5);
/// Survivors of an earlier kernel have this long to say hello.
const ADOPT: Duration = Duration::from_secs(3);
/// Workers that are told to end have two seconds before they are killed.
const END: Duration = Duration::from_secs(8);
const SIGKILL: i32 = 9;

/// What the host is made with.
pub(crate) struct HostConfig {
    pub(crate) keeper: KeeperConfig,
    pub(crate) scratch: PathBuf,
    pub(crate) outputs: OutputFiles,
    pub(crate) cancel_grace_ms: u64,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct WorkerHost(Arc<Shared>);

struct Shared {
    config: HostConfig,
    blobs: Arc<dyn BlobStore>,
    environments: Arc<Environments>,
    kernel: OnceLock<Kernel>,
    welcome: OnceLock<Arc<Welcome>>,
    keeper: tokio::sync::Mutex<Option<Keeper>>,
    workers: Mutex<BTreeMap<WorkerId, Entry>>,
    /// Calls at workers, by their fences. Locked after `workers` if both are.
    calls: Mutex<BTreeMap<Fence, calls::AtWorker>>,
    call_counter: AtomicU64,
    /// The kernel stops: workers end because it wants them to.
    stopping: AtomicBool,
    /// Deaths that were not heard of yet.
    reporting: watch::Sender<usize>,
}

/// One worker that is alive, or about to be.
struct Entry {
    link: Option<WorkerHandle>,
    /// What it was given and has not concluded; it computes the first.
    attempts: BTreeMap<Fence, AtWorker>,
    known: KnownFences,
    /// Somebody looks whether what waits here gets its turn.
    watched: bool,
    /// How its process ended, once the keeper has said so.
    exit: watch::Sender<Option<Exit>>,
    /// It has said hello, or died before it could.
    settled: watch::Sender<bool>,
}

/// Told once an outcome is safe, or nobody wants it; the worker keeps its copy until then.
type Safe = oneshot::Sender<()>;

/// An attempt that a worker computes, or is to compute.
#[derive(Default)]
struct AtWorker {
    /// Of a survivor only the fence is known, until the pool manager has executed it once more.
    about: Option<(TaskRef, Attempt)>,
    /// The outcome of a survivor that came before that.
    early: Option<(Outcome, Safe)>,
}

#[derive(Clone, Debug)]
struct Exit {
    death: Death,
    peak_rss_bytes: Option<u64>,
}

impl Entry {
    fn new() -> Self {
        Self {
            link: None,
            attempts: BTreeMap::new(),
            known: KnownFences::default(),
            watched: false,
            exit: watch::Sender::new(None),
            settled: watch::Sender::new(false),
        }
    }
}

impl Entry {
    fn has(&self, fence: Fence) -> bool {
        self.attempts.contains_key(&fence)
    }

    fn take(&mut self, fence: Fence, about: &(TaskRef, Attempt)) {
        self.known.note(fence);
        self.attempts.insert(fence, AtWorker { about: Some(about.clone()), early: None });
    }

    /// What a survivor's attempt is about. Gives its outcome, if that came first.
    fn learn(&mut self, fence: Fence, about: &(TaskRef, Attempt)) -> Option<(Outcome, Safe)> {
        let attempt = self.attempts.get_mut(&fence).filter(|attempt| attempt.about.is_none())?;
        attempt.about = Some(about.clone());
        let early = attempt.early.take()?;
        self.attempts.remove(&fence);
        Some(early)
    }

    /// A survivor's attempts that are over: their outcomes were heard by an earlier kernel.
    fn forget_unwanted(&mut self, said: &[Fence], wanted: &[Fence]) {
        self.attempts.retain(|fence, _| !said.contains(fence) || wanted.contains(fence));
    }
}

impl WorkerHost {
    pub(crate) fn new(
        config: HostConfig,
        blobs: Arc<dyn BlobStore>,
        environments: Arc<Environments>,
    ) -> Self {
        Self(Arc::new(Shared {
            config,
            blobs,
            environments,
            kernel: OnceLock::new(),
            welcome: OnceLock::new(),
            keeper: tokio::sync::Mutex::new(None),
            workers: Mutex::default(),
            calls: Mutex::default(),
            call_counter: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
            reporting: watch::Sender::new(0),
        }))
    }

    /// Once the kernel has started: what happens is reported to its actors from now on.
    pub(crate) fn attach(&self, kernel: &Kernel, welcome: Arc<Welcome>) {
        // A host belongs to one kernel; a second attach is the same one.
        let _ = (self.0.welcome.set(welcome), self.0.kernel.set(kernel.clone()));
    }

    /// Looks for the keeper of an earlier kernel and takes its survivors over; without one, ends what it left.
    ///
    /// # Errors
    /// `unavailable` when a keeper is there and does not answer.
    pub(crate) async fn adopt(&self, recorded: Vec<eclosion_process::Leftover>) -> Result<(), Error> {
        let epoch = self.kernel()?.journal().epoch();
        match Keeper::connect(&self.0.config.keeper, epoch).await? {
            Some((keeper, events)) => {
                *self.0.keeper.lock().await = Some(keeper);
                self.listen(events).await?;
                self.settled().await;
            }
            None => {
                let directory = self.0.config.keeper.dir.clone();
                let swept =
                    tokio::task::spawn_blocking(move || eclosion_process::sweep(&directory, &recorded)).await;
                if let Ok(found @ 1..) = swept {
                    tracing::warn!(found, "ended processes of an earlier kernel");
                }
            }
        }
        Ok(())
    }

    /// Until every survivor has said hello or is dead, or the time is up.
    async fn settled(&self) {
        let waits: Vec<_> = lock(&self.0.workers).values().map(|entry| entry.settled.subscribe()).collect();
        let all = async {
            for mut wait in waits {
                // The entry may be gone: then it is settled too.
                let _ = wait.wait_for(|settled| *settled).await;
            }
        };
        if tokio::time::timeout(ADOPT, all).await.is_err() {
            tracing::warn!("some survivors did not say hello in time");
        }
    }

    /// Ends every worker and the keeper, and waits until their ends are recorded.
    pub(crate) async fn shutdown(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        let Some(keeper) = self.0.keeper.lock().await.clone() else { return };
        if let Err(why) = keeper.shutdown() {
            return tracing::warn!(%why, "the keeper is gone already");
        }
        let mut reporting = self.0.reporting.subscribe();
        let ended = async {
            loop {
                if self.is_empty() && *reporting.borrow_and_update() == 0 {
                    return;
                }
                if reporting.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(END, ended).await.is_err() {
            tracing::warn!(workers = ?self.live(), "some workers have not ended; the next start looks for them");
        }
    }

    fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Relaxed)
    }

    /// No worker is alive, of this kernel or an earlier one.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0.workers).is_empty()
    }

    pub(crate) async fn keeper_pid(&self) -> Option<u32> {
        self.0.keeper.lock().await.as_ref().map(Keeper::pid)
    }

    fn kernel(&self) -> Result<&Kernel, Error> {
        self.0.kernel.get().ok_or_else(|| Error::internal("host.detached", "the host has no kernel yet"))
    }

    /// The keeper, started if there is none.
    async fn keeper(&self) -> Result<Keeper, Error> {
        let mut slot = self.0.keeper.lock().await;
        if let Some(keeper) = &*slot {
            return Ok(keeper.clone());
        }
        if self.is_stopping() {
            return Err(Error::new(Code::Unavailable, "kernel.stopping", "the kernel is stopping"));
        }
        let epoch = self.kernel()?.journal().epoch();
        let (keeper, events) = Keeper::connect_or_start(&self.0.config.keeper, epoch).await?;
        self.listen(events).await?;
        *slot = Some(keeper.clone());
        Ok(keeper)
    }

    /// Takes the survivors that the welcome names into the table, then listens under supervision.
    async fn listen(&self, mut events: mpsc::Receiver<KeeperEvent>) -> Result<(), Error> {
        if let Some(KeeperEvent::Welcome { pid, workers }) = events.recv().await {
            tracing::info!(pid, workers = workers.len(), "attached to the keeper");
            workers.into_iter().for_each(|worker| self.known(worker));
        }
        let host = self.clone();
        let address = address("/workers/keeper")?;
        let listening = async move {
            while let Some(event) = events.recv().await {
                host.event(event).await;
            }
            Ok(())
        };
        self.kernel()?.hold(HOLDERS, address, listening).await
    }

    fn known(&self, worker: KnownWorker) {
        lock(&self.0.workers).insert(worker.worker.clone(), Entry::new());
        if !worker.alive {
            let death = worker.status.map_or_else(unseen, death_of);
            self.exited(&worker.worker, Exit { death, peak_rss_bytes: worker.peak_rss_bytes });
            self.gone(&worker.worker);
        }
    }

    async fn event(&self, event: KeeperEvent) {
        match event {
            KeeperEvent::Welcome { workers, .. } => workers.into_iter().for_each(|worker| self.known(worker)),
            KeeperEvent::Survivor { worker, stream, .. } | KeeperEvent::Spawned { worker, stream, .. } => {
                if let Err(error) = self.hold(&worker, stream).await {
                    tracing::error!(%worker, %error, "a worker cannot be held");
                    self.kill(&worker).await;
                }
            }
            KeeperEvent::SpawnFailed { worker, error } => {
                self.exited(&worker, Exit { death: Death::Start { text: error }, peak_rss_bytes: None });
                self.gone(&worker);
            }
            KeeperEvent::Exited { worker, how, peak_rss_bytes, .. } => {
                self.exited(&worker, Exit { death: death_of(how), peak_rss_bytes: Some(peak_rss_bytes) });
                // A worker without a stream has no holder that would say so.
                if lock(&self.0.workers).get(&worker).is_some_and(|entry| entry.link.is_none()) {
                    self.gone(&worker);
                }
            }
            KeeperEvent::Lost { text } => self.lost(&text).await,
        }
    }

    /// The keeper is gone: so are the lifelines, and nobody can wait for the workers any more.
    async fn lost(&self, text: &str) {
        if self.is_stopping() {
            tracing::debug!(text, "the keeper has ended, as it was told");
        } else {
            tracing::error!(text, "the keeper is gone; every worker is ended and its attempt tried again");
        }
        self.0.keeper.lock().await.take();
        let directory = self.0.config.keeper.dir.clone();
        let swept = tokio::task::spawn_blocking(move || eclosion_process::sweep(&directory, &[])).await;
        tracing::info!(?swept, "ended what the keeper left");
        let death = Death::Unseen { text: format!("its keeper was lost: {text}") };
        let workers: Vec<_> = lock(&self.0.workers).keys().cloned().collect();
        for worker in workers {
            self.exited(&worker, Exit { death: death.clone(), peak_rss_bytes: None });
            if lock(&self.0.workers).get(&worker).is_some_and(|entry| entry.link.is_none()) {
                self.gone(&worker);
            }
        }
    }

    fn exited(&self, worker: &WorkerId, exit: Exit) {
        if let Some(entry) = lock(&self.0.workers).get(worker) {
            entry.exit.send_if_modified(|known| {
                let first = known.is_none();
                if first {
                    *known = Some(exit);
                }
                first
            });
        }
    }

    /// Takes a stream into a supervised holder.
    async fn hold(&self, worker: &WorkerId, stream: std::os::fd::OwnedFd) -> Result<(), Error> {
        let kernel = self.kernel()?;
        let reports = Arc::new(Reports { host: self.clone(), worker: worker.clone(), end: Mutex::default() });
        let welcome = self
            .0
            .welcome
            .get()
            .ok_or_else(|| Error::internal("host.detached", "the host has no kernel yet"))?;
        let (blobs, said) = (Arc::clone(&self.0.blobs), Arc::clone(&reports));
        let (link, handle) = WorkerLink::new(stream, Arc::clone(welcome), blobs, reports)?;
        let exit = {
            let mut workers = lock(&self.0.workers);
            let entry = workers.entry(worker.clone()).or_insert_with(Entry::new);
            entry.link = Some(handle);
            entry.exit.subscribe()
        };
        // However the holding ends, even by a panic, the worker's end is seen to.
        let ending = Ending { host: self.clone(), worker: worker.clone() };
        let holding = async move {
            link.run().await;
            let end = lock(&said.end).take();
            ending.host.reap(&ending.worker, exit, end).await;
            drop(ending);
            Ok(())
        };
        kernel.hold(HOLDERS, address(&format!("/workers/{worker}"))?, holding).await
    }

    /// The stream has ended: waits until the keeper says how the process did.
    async fn reap(&self, worker: &WorkerId, mut exit: watch::Receiver<Option<Exit>>, end: Option<LinkEnd>) {
        let (why, staged) = end.map_or((None, Vec::new()), |end| (end.why, end.staged));
        if let Some(why) = &why {
            tracing::warn!(%worker, %why, "a worker broke the protocol");
            self.exited(
                worker,
                Exit { death: Death::Protocol { text: why.message.clone() }, peak_rss_bytes: None },
            );
            self.kill(worker).await;
        }
        let reaped = tokio::time::timeout(REAP, exit.wait_for(Option::is_some)).await.is_ok();
        if !reaped {
            self.kill(worker).await;
            self.exited(worker, Exit { death: unseen(), peak_rss_bytes: None });
        }
        staged.into_iter().for_each(|stage| self.0.blobs.discard(stage));
    }

    async fn kill(&self, worker: &WorkerId) {
        if let Some(keeper) = &*self.0.keeper.lock().await
            && let Err(why) = keeper.signal(worker.clone(), SIGKILL, true)
        {
            tracing::warn!(%worker, %why, "cannot be killed");
        }
    }

    /// Reports a worker's death, and forgets it once that was heard.
    fn gone(&self, worker: &WorkerId) {
        let Ok(kernel) = self.kernel().cloned() else { return };
        let Some(entry) = lock(&self.0.workers).remove(worker) else { return };
        entry.settled.send_replace(true);
        let exit = entry.exit.borrow().clone();
        let Exit { death, peak_rss_bytes } =
            exit.unwrap_or_else(|| Exit { death: unseen(), peak_rss_bytes: None });
        self.calls_died(worker, &death);
        let request = WorkerDownRequest {
            worker: worker.clone(),
            death,
            peak_rss_bytes,
            free_memory_bytes: free_memory_bytes(),
            last_lines: self.0.config.outputs.last_lines(worker),
            wanted: self.is_stopping(),
        };
        let (host, worker) = (self.clone(), worker.clone());
        self.0.reporting.send_modify(|deaths| *deaths += 1);
        tokio::spawn(async move {
            if until_heard::<WorkerDown>(kernel.bus(), request).await.is_ok()
                && let Some(keeper) = &*host.0.keeper.lock().await
                && let Err(why) = keeper.forget(worker)
            {
                tracing::debug!(%why, "the keeper keeps an exit record");
            }
            host.0.reporting.send_modify(|deaths| *deaths -= 1);
        });
    }

    async fn spawn(
        &self,
        worker: WorkerId,
        environment: EnvironmentId,
        python: String,
        spec: EnvironmentSpec,
    ) {
        let spawned = async {
            let paths = self.0.environments.runtime_paths(std::path::Path::new(&python)).await?;
            let path = |stream| self.0.config.outputs.path(&worker, stream).to_string_lossy().into_owned();
            let request = SpawnWorker {
                worker: worker.clone(),
                environment: environment.to_string(),
                python,
                args_env: BTreeMap::new(),
                preload: spec.preload.clone(),
                stdout: path(Stream::Stdout),
                stderr: path(Stream::Stderr),
                cwd: self.0.config.scratch.join(worker.as_str()).to_string_lossy().into_owned(),
                code_paths: paths.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
            };
            self.keeper().await?.spawn(request)
        };
        if let Err(error) = spawned.await {
            self.exited(
                &worker,
                Exit { death: Death::Start { text: error.to_string() }, peak_rss_bytes: None },
            );
            self.gone(&worker);
        }
    }

    /// Climbs until the attempt has ended.
    async fn climb(&self, worker: WorkerId, fence: Fence) {
        let mut rung = Some(Rung::Token);
        while let Some(step) = rung {
            let link = {
                let workers = lock(&self.0.workers);
                let Some(entry) = workers.get(&worker) else { return };
                if !entry.has(fence) && !self.calls(fence) {
                    return;
                }
                entry.link.clone()
            };
            tracing::info!(%worker, %fence, rung = step.number(), "cancelling");
            match (step.signal(), link) {
                (None, Some(link)) => {
                    // Its outcome may have come meanwhile; the next look says so.
                    let _ = link.cancel(fence, step.number());
                }
                (None, None) => {}
                (Some(signal), _) => {
                    if let Some(keeper) = &*self.0.keeper.lock().await
                        && let Err(why) = keeper.signal(worker.clone(), signal, step.reaches_tree())
                    {
                        tracing::warn!(%worker, %why, "cannot be signalled");
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(step.patience_ms(self.0.config.cancel_grace_ms))).await;
            rung = step.next();
        }
    }

    /// Sees to it that nothing waits long behind one attempt: it is had back, and another worker may have it.
    fn watch(&self, worker: &WorkerId, entry: &mut Entry) {
        if entry.attempts.len() < 2 || std::mem::replace(&mut entry.watched, true) {
            return;
        }
        let (host, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move {
            let mut first = None;
            while let Some(now_first) = host.look_after(&worker, first) {
                first = Some(now_first);
                tokio::time::sleep(Duration::from_millis(AHEAD_PATIENCE_MS)).await;
            }
        });
    }

    /// Takes back what waits if the same attempt is still the first. Gives the first, `None` once nothing waits.
    fn look_after(&self, worker: &WorkerId, was_first: Option<Fence>) -> Option<Fence> {
        let (fences, link) = {
            let mut workers = lock(&self.0.workers);
            let entry = workers.get_mut(worker)?;
            entry.watched = entry.attempts.len() > 1;
            let fences: Vec<_> = entry.attempts.keys().copied().collect();
            entry.watched.then(|| (fences, entry.link.clone()))?
        };
        let first = fences.first().copied();
        if let (true, Some(link)) = (first == was_first, link) {
            // The one that has begun goes on; that it is the first is likely, and not known here.
            fences.into_iter().for_each(|fence| _ = link.take_back(fence));
        }
        first
    }

    /// An attempt has its outcome. Of one that is over already, nobody wants to know.
    fn concluded(&self, worker: &WorkerId, fence: Fence, outcome: Outcome, safe: Safe) {
        let about = {
            let mut workers = lock(&self.0.workers);
            let Some(entry) = workers.get_mut(worker) else { return };
            match entry.attempts.remove(&fence) {
                Some(AtWorker { about: Some(about), .. }) => about,
                Some(AtWorker { about: None, .. }) => {
                    let early = Some((outcome, safe));
                    entry.attempts.insert(fence, AtWorker { about: None, early });
                    return;
                }
                None => return,
            }
        };
        match outcome.is_returned() {
            true => self.idle(worker, fence),
            false => self.deliver(worker, about, fence, outcome, safe),
        }
    }

    /// Records what an attempt printed, and takes its outcome to the DAG tracker.
    fn deliver(
        &self,
        worker: &WorkerId,
        (task, attempt): (TaskRef, Attempt),
        fence: Fence,
        outcome: Outcome,
        safe: Safe,
    ) {
        let Ok(kernel) = self.kernel().cloned() else { return };
        let Outcome { result, stdout, stderr } = outcome;
        let part = Part { run: task.run.clone(), task: task.task.clone(), attempt, stdout, stderr };
        if let Err(why) = self.0.config.outputs.record(worker, &part) {
            tracing::warn!(%worker, %why, "which part of the output is whose cannot be recorded");
        }
        let (host, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move {
            let heard = conclude(&kernel, &worker, task, fence, result).await;
            if matches!(heard, Ok(CommitReply::Stale)) {
                host.idle(&worker, fence);
            }
            drop(safe);
        });
    }

    fn idle(&self, worker: &WorkerId, fence: Fence) {
        let Ok(kernel) = self.kernel().cloned() else { return };
        let request = WorkerIdleRequest { worker: worker.clone(), fence };
        tokio::spawn(async move { until_heard::<WorkerIdle>(kernel.bus(), request).await });
    }
}

impl std::fmt::Debug for WorkerHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerHost").field("workers", &self.live()).finish_non_exhaustive()
    }
}

impl Launcher for WorkerHost {
    fn launch(&self, worker: &WorkerId, environment: &EnvironmentId, python: &str, spec: &EnvironmentSpec) {
        {
            let mut workers = lock(&self.0.workers);
            // While the kernel stops, what is still owed is left to the next one.
            if self.is_stopping() || workers.contains_key(worker) {
                return;
            }
            workers.insert(worker.clone(), Entry::new());
        }
        let (host, worker, environment) = (self.clone(), worker.clone(), environment.clone());
        let (python, spec) = (python.to_owned(), spec.clone());
        tokio::spawn(async move { host.spawn(worker, environment, python, spec).await });
    }

    fn execute(&self, worker: &WorkerId, execute: Execute) {
        let about = (TaskRef::new(execute.run.clone(), execute.task.clone()), execute.attempt);
        let (link, early) = {
            let mut workers = lock(&self.0.workers);
            let Some(entry) = workers.get_mut(worker) else { return };
            if entry.known.has(execute.fence) {
                (None, entry.learn(execute.fence, &about))
            } else {
                entry.take(execute.fence, &about);
                self.watch(worker, entry);
                (entry.link.clone(), None)
            }
        };
        if let Some(link) = link {
            if let Err(refusal) = link.execute(&execute, Care::Journaled) {
                // Its end, which is on its way, takes the attempt along.
                tracing::warn!(%worker, %refusal, "an attempt was not taken");
            }
        } else if let Some((outcome, safe)) = early {
            self.deliver(worker, about, execute.fence, outcome, safe);
        }
    }

    fn cancel(&self, worker: &WorkerId, fence: Fence) {
        let (computing, early) = {
            let mut workers = lock(&self.0.workers);
            let Some(entry) = workers.get_mut(worker) else { return };
            entry.known.note(fence);
            let early = entry.attempts.get_mut(&fence).and_then(|attempt| attempt.early.take());
            if early.is_some() {
                entry.attempts.remove(&fence);
            }
            (entry.has(fence), early)
        };
        drop(early);
        if !computing {
            return self.idle(worker, fence);
        }
        let (host, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move { host.climb(worker, fence).await });
    }

    fn stop(&self, worker: &WorkerId) {
        if let Some(link) = lock(&self.0.workers).get(worker).and_then(|entry| entry.link.clone()) {
            link.drain();
        }
    }

    fn live(&self) -> Vec<WorkerId> {
        lock(&self.0.workers).keys().cloned().collect()
    }
}

/// What one worker's link says.
struct Reports {
    host: WorkerHost,
    worker: WorkerId,
    end: Mutex<Option<LinkEnd>>,
}

impl WorkerReports for Reports {
    /// What a survivor computes is always wanted here: whether it is stale, the DAG tracker says.
    fn up(&self, hello: &WorkerHello) -> bool {
        let Ok(kernel) = self.host.kernel().cloned() else { return false };
        if hello.attempts.iter().any(|fence| fence.is_of_call()) {
            // Its caller died with an earlier kernel, and nothing says when it would be done.
            let (host, worker) = (self.host.clone(), self.worker.clone());
            tokio::spawn(async move { host.kill(&worker).await });
            return false;
        }
        let settled = {
            let mut workers = lock(&self.host.0.workers);
            let Some(entry) = workers.get_mut(&self.worker) else { return false };
            for fence in &hello.attempts {
                entry.known.note(*fence);
                entry.attempts.insert(*fence, AtWorker::default());
            }
            entry.settled.clone()
        };
        let request = WorkerUpRequest {
            worker: self.worker.clone(),
            pid: hello.pid,
            start_ticks: hello.start_ticks,
            boot_id: hello.boot_id.clone(),
            attempts: hello.attempts.clone(),
        };
        let host = self.host.clone();
        tokio::spawn(async move {
            match until_heard::<WorkerUp>(kernel.bus(), request.clone()).await {
                Ok(reply) => {
                    let mut workers = lock(&host.0.workers);
                    let entry = workers.get_mut(&request.worker);
                    entry
                        .into_iter()
                        .for_each(|entry| entry.forget_unwanted(&request.attempts, &reply.wanted));
                }
                Err(_) => host.kill(&request.worker).await,
            }
            settled.send_replace(true);
        });
        true
    }

    fn closed(&self, end: LinkEnd) {
        *lock(&self.end) = Some(end);
    }

    fn report(&self, fence: Fence, report: TaskReport) {
        if fence.is_of_call() {
            return self.host.call_reported(fence, report);
        }
        let Ok(kernel) = self.host.kernel() else { return };
        let about = {
            let workers = lock(&self.host.0.workers);
            let attempt = workers.get(&self.worker).and_then(|entry| entry.attempts.get(&fence));
            attempt.and_then(|attempt| attempt.about.clone())
        };
        let Some((task, _)) = about else { return };
        let subject = format!("run/{}/task/{}/report", task.run, task.task);
        let Ok(subject) = subject.parse::<Subject>() else { return };
        let journal = kernel.journal();
        let publication = eclosion_bus::Publication::new(journal.epoch(), journal.marks().synced, report);
        kernel.bus().publish(&subject, publication);
    }

    fn outcome(&self, fence: Fence, outcome: Outcome) -> Acknowledged {
        if fence.is_of_call() {
            self.host.call_concluded(fence, outcome);
            return Box::pin(std::future::ready(()));
        }
        let (safe, heard) = oneshot::channel();
        self.host.concluded(&self.worker, fence, outcome, safe);
        Box::pin(async move {
            // The sender is dropped either way.
            let _ = heard.await;
        })
    }
}

async fn conclude(
    kernel: &Kernel,
    worker: &WorkerId,
    task: TaskRef,
    fence: Fence,
    result: Result<eclosion_schemas::Payload, Error>,
) -> Result<CommitReply, Error> {
    let (TaskRef { run, task }, worker) = (task, worker.clone());
    let refusal = match result {
        Ok(output) => {
            let commit =
                CommitRequest { run: run.clone(), task: task.clone(), fence, worker: worker.clone(), output };
            match until_heard::<Commit>(kernel.bus(), commit).await {
                Ok(reply) => return Ok(reply),
                // It cannot be committed as it is (too large, say): that is the attempt's failure.
                Err(refusal) => refusal,
            }
        }
        Err(error) => error,
    };
    until_heard::<Fail>(kernel.bus(), FailRequest { run, task, fence, worker, error: refusal }).await
}

/// Sees to a worker's end however its holding ends.
struct Ending {
    host: WorkerHost,
    worker: WorkerId,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let alive =
            lock(&self.host.0.workers).get(&self.worker).is_some_and(|entry| entry.exit.borrow().is_none());
        if alive {
            let (host, worker) = (self.host.clone(), self.worker.clone());
            let text = "its holder ended before it did".into();
            self.host.exited(&self.worker, Exit { death: Death::Protocol { text }, peak_rss_bytes: None });
            tokio::spawn(async move { host.kill(&worker).await });
        }
        self.host.gone(&self.worker);
    }
}

fn death_of(how: How) -> Death {
    match how {
        How::Code(code) => Death::Exited { code },
        How::Signal(signal) => Death::Killed { signal, sender: None },
    }
}

fn unseen() -> Death {
    Death::Unseen { text: "nobody waited for it".into() }
}

fn free_memory_bytes() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    Some(system.available_memory())
}

fn address(text: &str) -> Result<Address, Error> {
    text.parse().map_err(|why| Error::invalid("address", format!("{text}: {why}")))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
