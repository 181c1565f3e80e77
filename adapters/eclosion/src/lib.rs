//! Eclosion, put together: the kernel with its subsystems, its store, its workers and its socket.
//!
//! ```no_run
//! # async fn demo() -> Result<(), eclosion_schemas::Error> {
//! use eclosion::{Eclosion, Options, Places};
//! let kernel = Eclosion::start(Options::new(Places::of("default")?)).await?;
//! println!("listening on {}", kernel.places().socket.display());
//! kernel.stopped().await;
//! kernel.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! It starts on the runtime it is called on, and takes nothing else of the process: no signal handler, no subscriber.
//!
//! Start: directories → lock and journal → fold → socket → adopt what survived → perform what is owed.
//! Stop: sockets first, then actors, then the journal, synced to its end; workers go with a shutdown, and stay for the
//! next kernel when this one is killed.

mod calls;
#[cfg(feature = "chaos")]
mod chaos;
pub mod config;
mod environments;
pub mod flow_file;
mod introspect;
mod logs;
mod output;
pub mod places;
mod report;
mod sockets;
mod workers;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eclosion_arbitration::{ArbitrationActor, ArbitrationOptions};
use eclosion_artifact_store::{ArtifactActor, BlobStore};
use eclosion_bus::Bus;
use eclosion_dag_tracker::DagActor;
use eclosion_environments::{EnvironmentOptions, Environments};
use eclosion_ipc::Welcome;
use eclosion_journal_sqlite::SqliteJournal;
use eclosion_kernel::Kernel;
use eclosion_kernel::clock::{Clock, SystemClock};
use eclosion_kernel::supervision::Escalated;
use eclosion_pool_manager::{PoolManager, PoolOptions};
use eclosion_process::{KeeperConfig, Leftover};
use eclosion_schemas::events::{Event, WorkerDied, WorkerStarted};
use eclosion_schemas::{Error, Seq, WorkerId};
use eclosion_store_fs::FileStore;
use tokio::sync::watch;

use crate::calls::Calls;
use crate::config::{Settings, machine};
use crate::environments::Builds;
use crate::introspect::{Introspect, Own};
use crate::logs::Logs;
use crate::output::OutputFiles;
use crate::workers::{HostConfig, WorkerHost};

pub use eclosion_process::{KeeperOptions, main as keeper_main};
pub use places::{DEFAULT_INSTANCE, Places};

/// How a kernel is started.
#[derive(Debug, Clone)]
pub struct Options {
    pub places: Places,
    /// Workers at a time. Default: the cores of this machine.
    pub workers_max: u32,
    /// Workers kept, even idle, for each environment that an unfinished run uses.
    pub workers_min: u32,
    /// An idle worker ends after this.
    pub idle_ms: u64,
    /// What tasks that ask for it may hold together.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    /// How long workers outlive a kernel that died.
    pub grace_ms: u64,
    /// How long an attempt may take to end once it was cancelled, before its worker is terminated.
    pub cancel_grace_ms: u64,
    /// For one build of an environment, waiting for another builder included.
    pub build_timeout_ms: u64,
    /// The binary that serves in the role `keeper`. Default: this one.
    pub keeper_binary: Option<PathBuf>,
    /// Go on from the last whole record of a damaged journal.
    pub accept_loss: bool,
}

impl Options {
    /// This machine's size, and the stated defaults.
    #[must_use]
    pub fn new(places: Places) -> Self {
        let cores = machine::cores();
        Self {
            places,
            workers_max: cores,
            workers_min: config::WORKERS_MIN_DEFAULT,
            idle_ms: config::IDLE_MS_DEFAULT,
            cpu_millis: u64::from(cores) * 1000,
            memory_bytes: machine::memory_bytes(),
            grace_ms: config::GRACE_MS_DEFAULT,
            cancel_grace_ms: config::CANCEL_GRACE_MS_DEFAULT,
            build_timeout_ms: config::BUILD_TIMEOUT_MS_DEFAULT,
            keeper_binary: None,
            accept_loss: false,
        }
    }

    /// What settings say, and nothing else: neither a file nor the environment is read.
    ///
    /// # Errors
    /// `precondition` for a setting without a value.
    pub fn configured(settings: &Settings) -> Result<Self, Error> {
        let places = Places::configured(settings)?;
        // The table's ranges end far below.
        let count = |setting| settings.whole(setting).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let (workers_min, workers_max) = (count(&config::WORKERS_MIN)?, count(&config::WORKERS_MAX)?);
        Ok(Self {
            places,
            workers_max,
            workers_min,
            idle_ms: settings.whole(&config::IDLE_MS)?,
            cpu_millis: settings.whole(&config::CPU_MILLIS)?,
            memory_bytes: settings.whole(&config::MEMORY_BYTES)?,
            grace_ms: settings.whole(&config::GRACE_MS)?,
            cancel_grace_ms: settings.whole(&config::CANCEL_GRACE_MS)?,
            build_timeout_ms: settings.whole(&config::BUILD_TIMEOUT_MS)?,
            keeper_binary: None,
            accept_loss: false,
        })
    }

    fn pool(&self) -> PoolOptions {
        let (workers_min, idle_ms) = (self.workers_min, self.idle_ms);
        PoolOptions { workers_min, idle_ms, ..PoolOptions::new(self.workers_max) }
    }

    fn environments(&self) -> EnvironmentOptions {
        let build_timeout = Duration::from_millis(self.build_timeout_ms);
        EnvironmentOptions { build_timeout, ..EnvironmentOptions::new(&self.places.cache) }
    }
}

/// A running kernel with everything around it. Dropping it stops nothing; [`Eclosion::shutdown`] does.
#[derive(Debug)]
pub struct Eclosion {
    kernel: Kernel,
    host: WorkerHost,
    own: Arc<Own>,
    files: Arc<FileStore>,
    places: Places,
}

impl Eclosion {
    /// Starts, and returns once the socket is bound and survivors were taken over.
    ///
    /// # Errors
    /// `conflict` when another kernel has the state directory, `data_loss` for a damaged journal, `unavailable` or
    /// `denied` for directories and sockets; each says what to do.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let places = options.places.clone();
        places.make()?;
        let journal_options = eclosion_journal_sqlite::Options {
            accept_loss: options.accept_loss,
            projections: vec![eclosion_dag_tracker::project, eclosion_artifact_store::project],
        };
        let (store, opened) = SqliteJournal::open(&places.state.join("journal"), &journal_options)?;
        let files = Arc::new(FileStore::open(&places.artifacts())?);
        let blobs: Arc<dyn BlobStore> = Arc::clone(&files) as _;
        let environments = Arc::new(Environments::new(options.environments()));
        let outputs = OutputFiles::open(places.logs()).map_err(|why| unavailable(&places.logs(), &why))?;
        let host = WorkerHost::new(
            host_config(&options, outputs.clone())?,
            Arc::clone(&blobs),
            Arc::clone(&environments),
        );
        let builds = Builds::new(environments);
        let own = Arc::new(Own {
            kernel: OnceLock::new(),
            instance: places.instance.clone(),
            state: places.state.clone(),
            started: SystemClock.now(),
            stop: watch::Sender::new(false),
        });
        let bus: Arc<OnceLock<Bus>> = Arc::default();
        let (introspect, logs, reading) = (Arc::clone(&own), Arc::clone(&bus), Arc::clone(&bus));
        let (sync, artifacts) = (Arc::clone(&blobs), ArtifactActor::new(blobs));
        let reader = artifacts.clone();
        let calls = Calls::new(host.clone(), Arc::clone(&bus));
        let kernel = Kernel::builder()
            .operations(table()?)
            .journal(Box::new(store), opened)
            .before_sync(Arc::new(move || sync.sync()))
            .actor(artifacts)
            .actor(ArbitrationActor::new(ArbitrationOptions::new(options.cpu_millis, options.memory_bytes)))
            .actor(PoolManager::new(options.pool(), Arc::new(host.clone()), Arc::new(builds.clone())))
            .actor(DagActor::new())
            .service(eclosion_artifact_store::FILES, move || reader.files(Arc::clone(&reading)))
            .service(eclosion_schemas::ops::pool::CALLS, move || calls.clone())
            .service(eclosion_schemas::ops::kernel::ADDRESS, move || Introspect(Arc::clone(&introspect)))
            .service(eclosion_schemas::ops::log::ADDRESS, move || Logs {
                bus: Arc::clone(&logs),
                files: outputs.clone(),
            })
            .start()
            .await?;
        // Set once, here: the actors were made before the kernel that they are part of.
        let _ = (own.kernel.set(kernel.clone()), bus.set(kernel.bus().clone()));
        let welcome = Arc::new(sockets::welcome(&kernel, &places));
        host.attach(&kernel, Arc::clone(&welcome));
        builds.attach(&kernel);
        let started = Self { kernel, host, own, files, places };
        started.open_doors(welcome).await?;
        Ok(started)
    }

    async fn open_doors(&self, welcome: Arc<Welcome>) -> Result<(), Error> {
        sockets::listen(&self.kernel, &self.places, welcome, self.own.stop.subscribe()).await?;
        self.host.adopt(recorded_workers(&self.kernel)?).await?;
        self.sweep();
        self.kernel.adopt();
        self.kernel.run();
        Ok(())
    }

    /// Without a worker nobody is left who could still name what was staged, or who uses scratch.
    fn sweep(&self) {
        if !self.host.is_empty() {
            return;
        }
        let swept = self.files.sweep(self.files.next_stage(), &[]);
        // Mostly there is none.
        let scratch = std::fs::remove_dir_all(self.places.scratch()).is_ok();
        tracing::debug!(swept, scratch, "removed what earlier workers left");
    }

    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    #[must_use]
    pub fn bus(&self) -> &Bus {
        self.kernel.bus()
    }

    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The keeper's pid, once a worker was needed.
    pub async fn keeper_pid(&self) -> Option<u32> {
        self.host.keeper_pid().await
    }

    /// Waits until somebody asked the kernel to stop.
    pub async fn stopped(&self) {
        // Its sender is ours and lives as long.
        let _ = self.own.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Waits until supervision has given up; the process should end then.
    pub async fn escalated(&self) -> Escalated {
        self.kernel.escalated().await
    }

    /// Ends everything: sessions, workers and their keeper, actors, and last the journal, synced to its end.
    pub async fn shutdown(&self) {
        self.own.stop.send_replace(true);
        sockets::drained(&self.kernel).await;
        self.host.shutdown().await;
        self.sweep();
        self.kernel.stop().await;
        if let Err(why) = std::fs::remove_file(&self.places.socket)
            && why.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%why, "the socket's file is left");
        }
    }
}

fn table() -> Result<eclosion_schemas::operation::Table, Error> {
    #[cfg_attr(not(feature = "chaos"), expect(unused_mut, reason = "chaos adds an operation"))]
    let mut table = eclosion_schemas::ops::table()?;
    #[cfg(feature = "chaos")]
    table.declare(eclosion_schemas::operation::Spec::of::<chaos::Panic>())?;
    Ok(table)
}

fn host_config(options: &Options, outputs: OutputFiles) -> Result<HostConfig, Error> {
    let places = &options.places;
    let binary = match &options.keeper_binary {
        Some(binary) => binary.clone(),
        None => std::env::current_exe().map_err(|why| unavailable(Path::new("/proc/self/exe"), &why))?,
    };
    let keeper = KeeperConfig {
        binary,
        instance: places.instance.clone(),
        dir: places.runtime.clone(),
        grace_ms: options.grace_ms,
        temporary: vec![places.socket.clone(), places.scratch(), places.artifacts().join("stage")],
        log: places.logs().join("keeper.log"),
        connect_timeout_ms: 10_000,
    };
    let cancel_grace_ms = options.cancel_grace_ms;
    Ok(HostConfig { keeper, scratch: places.scratch(), outputs, cancel_grace_ms })
}

/// The workers that the journal knows and has not seen die.
fn recorded_workers(kernel: &Kernel) -> Result<Vec<Leftover>, Error> {
    let mut alive = std::collections::BTreeMap::<WorkerId, Leftover>::new();
    kernel.reader().read(Seq(0), &[WorkerStarted::KIND, WorkerDied::KIND], &mut |record| {
        if let Some(started) = record.event::<WorkerStarted>() {
            let (pid, start_ticks, boot_id) = (started.pid, started.start_ticks, started.boot_id.clone());
            alive.insert(started.worker.clone(), Leftover { pid, start_ticks, boot_id });
        } else if let Some(died) = record.event::<WorkerDied>() {
            alive.remove(&died.worker);
        }
        ControlFlow::Continue(())
    })?;
    Ok(alive.into_values().collect())
}

fn unavailable(path: &Path, why: &std::io::Error) -> Error {
    Error::new(eclosion_schemas::Code::Unavailable, "places.make", format!("{}: {why}", path.display()))
}
