//! The host of the workers: implements the pool manager's `Launcher` over the keeper and the workers' streams.
//!
//! ```text
//! launch ─► keeper: spawn ─► Spawned + stream ─┐
//!           keeper: Survivor + stream ─────────┴─► holder `/workers/ID` ─► HELLO ─► pool.worker_up
//! execute ─► stream ─► outcome ─► step.commit / step.fail; stale, or given back ─► pool.worker_idle
//! the stream ends, the keeper says how ─► pool.worker_down
//! ```
//!
//! [`processes`] are started, held and buried; those that were started by hand come over the listening socket
//! ([`attached`]); [`attempts`] go to them; [`outcomes`] come back; [`limits`] are kept
//! meanwhile. Calls, which nobody
//! journals, have a table of their own: [`calls`].
//!
//! It stands outside the six and outlives their incarnations: after a panic the pool manager finds its workers here by
//! [`Launcher::live`]. It decides nothing; it says what happened, until it is heard.
//!
//! Invariants: (1) a worker in the table is alive, or its death is about to be reported. (2) A fence given to a
//! worker is given to it once; what is known is done. (3) A worker's death is reported after its stream was read
//! to its end, so an outcome that it sent is never overtaken. (4) An outcome is acknowledged to the link only once the
//! DAG tracker has answered.

mod attached;
mod attempts;
pub(crate) mod calls;
mod limits;
mod outcomes;
mod processes;
mod spans;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use eclosion_artifact_store::BlobStore;
use eclosion_bus::{Address, Tracer};
use eclosion_dag_tracker::CodeFiles;
use eclosion_environments::Environments;
use eclosion_ipc::Welcome;
use eclosion_ipc::arena::Objects;
use eclosion_kernel::Kernel;
use eclosion_pool_manager::Launcher;
use eclosion_process::{Groups, Keeper, KeeperConfig};
use eclosion_schemas::ops::pool::ReserveRequest;
use eclosion_schemas::{Error, Fence, WorkerId};
use tokio::sync::watch;

use self::table::Entry;
use crate::output::OutputFiles;

/// Survivors of an earlier kernel have this long to say hello.
const ADOPT: Duration = Duration::from_secs(3);
/// Workers that are told to end have two seconds before they are killed.
const END: Duration = Duration::from_secs(8);

/// What the host is made with.
pub(crate) struct HostConfig {
    pub(crate) keeper: KeeperConfig,
    /// How the system holds workers to their limits.
    pub(crate) groups: Arc<dyn Groups>,
    pub(crate) scratch: PathBuf,
    pub(crate) outputs: OutputFiles,
    pub(crate) cancel_grace_ms: u64,
    /// What idle workers hold is asked for: some are recycled by it.
    pub(crate) samples_idle: bool,
    /// What code is when a result of it is to be kept.
    pub(crate) code: Arc<dyn CodeFiles>,
    /// Where large arguments of calls lie.
    pub(crate) objects: Objects,
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
    /// What calls and services have of workers, by their tickets.
    reserved: Mutex<BTreeMap<u64, (WorkerId, ReserveRequest)>>,
    attached_counter: AtomicU64,
    /// The kernel stops: workers end because it wants them to.
    stopping: AtomicBool,
    /// Somebody looks what workers take up. Locked after `workers` if both are.
    looking: Mutex<bool>,
    /// Dead, and not heard of yet: until then they are no less there than the living.
    reporting: watch::Sender<BTreeSet<WorkerId>>,
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
            reserved: Mutex::default(),
            attached_counter: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
            looking: Mutex::default(),
            reporting: watch::Sender::default(),
        }))
    }

    /// Who records spans, once the kernel has started.
    fn tracer(&self) -> Option<&Arc<dyn Tracer>> {
        self.0.kernel.get()?.bus().tracer()
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
        self.hang_up_attached();
        if let Some(keeper) = self.0.keeper.lock().await.clone()
            && let Err(why) = keeper.shutdown()
        {
            return tracing::warn!(%why, "the keeper is gone already");
        }
        let mut reporting = self.0.reporting.subscribe();
        let ended = async {
            loop {
                if self.is_empty() && reporting.borrow_and_update().is_empty() {
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

    fn welcome(&self) -> Result<Arc<Welcome>, Error> {
        let welcome = self.0.welcome.get().map(Arc::clone);
        welcome.ok_or_else(|| Error::internal("host.detached", "the host has no kernel yet"))
    }

    fn kernel(&self) -> Result<&Kernel, Error> {
        self.0.kernel.get().ok_or_else(|| Error::internal("host.detached", "the host has no kernel yet"))
    }
}

impl std::fmt::Debug for WorkerHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerHost").field("workers", &self.live()).finish_non_exhaustive()
    }
}

fn address(text: &str) -> Result<Address, Error> {
    text.parse().map_err(|why| Error::invalid("address", format!("{text}: {why}")))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
