//! The kernel with the subsystems: what is opened, in which order, and what hands what to whom.

use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eclosion_arbitration::ArbitrationActor;
use eclosion_artifact_store::{ArtifactActor, BlobStore};
use eclosion_bus::Bus;
use eclosion_dag_tracker::DagActor;
use eclosion_environments::Environments;
use eclosion_ipc::arena::Objects;
use eclosion_ipc::{Traffic, Welcome};
use eclosion_kernel::clock::{Clock, SystemClock};
use eclosion_kernel::journal::Projection;
use eclosion_pool_manager::{CONTAINMENT, CONTAINMENT_BY_CGROUP, PoolManager, PoolOptions};
use eclosion_process::groups::site::{Refusal, Site};
use eclosion_process::{KeeperConfig, Leftover, groups};
use eclosion_scheduler::SchedulerActor;
use eclosion_schemas::events::{Event, WorkerDied, WorkerStarted};
use eclosion_schemas::ops::pool::{Drain, DrainRequest, Status, StatusRequest};
use eclosion_schemas::{Code, Error, Seq, WorkerId};
use eclosion_services::ServicesActor;
use eclosion_store_fs::FileStore;
use eclosion_store_fs::code_files::CodeDirectories;
use tokio::sync::watch;

use crate::Options;
use crate::builder::Builder;
use crate::calls::Calls;
use crate::environments::Builds;
use crate::introspect::{self, Finder, Own};
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::output::OutputFiles;
use crate::places::Places;
use crate::retention;
use crate::running::Kernel;
use crate::service_lives::ServiceLives;
use crate::sockets;
use crate::workers::{HostConfig, WorkerHost};

/// What derives rows.
const PROJECTIONS: &[Projection] = &[
    eclosion_dag_tracker::project,
    eclosion_artifact_store::project,
    eclosion_scheduler::project,
    eclosion_stale_manager::project,
    eclosion_audit::project,
];

/// What the subsystems stand on, and what has to be closed behind them.
#[derive(Debug)]
pub(crate) struct House {
    host: WorkerHost,
    files: Arc<FileStore>,
    places: Places,
    traffic: Arc<Traffic>,
    /// Removed with the kernel.
    _temporary: Option<Temporary>,
}

/// Starts, and returns once the socket is bound and survivors were taken over.
pub(crate) async fn start(mut builder: Builder) -> Result<Kernel, Error> {
    let (additions, tracer) = (builder.take_additions(), builder.take_tracer());
    let (options, socket, temporary) = grounds(&mut builder)?;
    let places = options.places.clone();
    places.make()?;
    let journal = builder.journal(Some(&places.state), options.accept_loss, PROJECTIONS)?;
    let files = Arc::new(FileStore::open(&places.artifacts())?);
    let blobs: Arc<dyn BlobStore> = Arc::clone(&files) as _;
    let environments = Arc::new(Environments::new(options.environments()));
    let outputs = OutputFiles::open(places.logs()).map_err(|why| unavailable(&places.logs(), &why))?;
    let grouped = grouped(&options);
    let host = WorkerHost::new(
        host_config(&options, outputs.clone(), grouped.as_ref().ok().cloned()),
        Arc::clone(&blobs),
        Arc::clone(&environments),
    );
    let builds = Builds::new(Arc::clone(&environments));
    let stop = watch::Sender::new(false);
    let own = Own::new(&places.instance, places.state.clone(), &stop);
    let bus: Arc<OnceLock<Bus>> = Arc::default();
    let itself: Arc<OnceLock<eclosion_kernel::Kernel>> = Arc::default();
    let retained = options.retention.clone().validate()?;
    let stale = retention::actor(retained, &places, &files, &outputs, &environments, Arc::clone(&itself));
    let (found, passes, passing) = (stale.findings(), stale.clone(), Arc::clone(&bus));
    let (logs, reading) = (Arc::clone(&bus), Arc::clone(&bus));
    let (sync, artifacts) = (Arc::clone(&blobs), ArtifactActor::new(blobs));
    let reader = artifacts.clone();
    let arbitration = options.arbitration();
    let ceilings = arbitration.ceilings();
    let arbitration = ArbitrationActor::new(arbitration);
    let (leases, asking) = (arbitration.clone(), Arc::clone(&bus));
    let calls = Calls::new(host.clone(), Arc::clone(&bus));
    let lives = ServiceLives::new(socket.clone(), stop.subscribe());
    let services = ServicesActor::new(Arc::new(lives.clone()));
    let held = services.views();
    let ours = introspect::serve(journal.operations(table()?), &own)
        .before_sync(Arc::new(move || sync.sync()))
        .actor(artifacts)
        .actor(arbitration)
        .actor(PoolManager::new(
            contained(options.pool(), &grouped),
            Arc::new(host.clone()),
            Arc::new(builds.clone()),
        ))
        .actor(
            DagActor::new().with_ceilings(ceilings).with_unfinished_max(options.unfinished_runs_max as usize),
        )
        .actor(SchedulerActor::new())
        .actor(stale)
        .actor(services)
        .service(eclosion_stale_manager::PASSES, move || passes.passes(Arc::clone(&passing)))
        .service(eclosion_artifact_store::FILES, move || reader.files(Arc::clone(&reading)))
        .service(eclosion_arbitration::DESK, move || leases.desk(Arc::clone(&asking)))
        .service(eclosion_schemas::ops::pool::CALLS, move || calls.clone())
        .service(eclosion_schemas::ops::log::ADDRESS, move || Logs {
            bus: Arc::clone(&logs),
            files: outputs.clone(),
        });
    let kernel = Builder::extend(additions, ours)?.start().await?;
    Builder::trace(tracer, &kernel);
    // Set once, here: the actors were made before the kernel that they are part of.
    let _ = (bus.set(kernel.bus().clone()), itself.set(kernel.clone()));
    let _ = own.more.set(Finder(Box::new(move || found.read())));
    own.attach(&kernel);
    own.attach_workers(&host);
    lives.attach(&kernel);
    let _ = own.services.set(held);
    let welcome = Arc::new(sockets::welcome(&kernel, &places.instance));
    host.attach(&kernel, Arc::clone(&welcome));
    builds.attach(&kernel);
    let house = House { host, files, places, traffic: Arc::clone(&own.traffic), _temporary: temporary };
    let started = Kernel { kernel, stop, socket, house };
    started.open_doors(welcome, &own).await?;
    Ok(started)
}

/// Where it lives, where it listens, and what is to be removed with it.
fn grounds(builder: &mut Builder) -> Result<(Options, Option<PathBuf>, Option<Temporary>), Error> {
    let named = builder.socket.take();
    if let Some(mut options) = builder.options.take() {
        if let Some(socket) = named {
            options.places.socket = socket;
        }
        let socket = options.places.socket.clone();
        return Ok((options, Some(socket), None));
    }
    let temporary = match &builder.directory {
        Some(_) => None,
        None => Some(Temporary::new()?),
    };
    builder.is_ephemeral |= temporary.is_some();
    let directory =
        temporary.as_ref().map(|temporary| temporary.0.as_path()).or(builder.directory.as_deref());
    let mut places = Places::below(directory.unwrap_or(Path::new(".")), &builder.instance);
    if let Some(socket) = &named {
        places.socket.clone_from(socket);
    }
    Ok((Options::new(places), named, temporary))
}

/// A directory of a kernel that keeps nothing.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self, Error> {
        let mut last = std::io::ErrorKind::AlreadyExists.into();
        for _ in 0..8 {
            let name = format!("eclosion-{}-{:x}", std::process::id(), SystemClock.entropy());
            let directory = std::env::temp_dir().join(name);
            match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
                Ok(()) => return Ok(Self(directory)),
                Err(why) => last = why,
            }
        }
        Err(unavailable(&std::env::temp_dir(), &last))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(why) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(directory = %self.0.display(), %why, "a temporary directory is left");
        }
    }
}

impl Kernel {
    async fn open_doors(&self, welcome: Arc<Welcome>, own: &Arc<Own>) -> Result<(), Error> {
        if let Some(socket) = &self.socket {
            let pages = Metrics::new(own);
            let traffic = Arc::clone(&self.house.traffic);
            let host = self.house.host.clone();
            let workers: sockets::Workers = Arc::new(move |worker| {
                let host = host.clone();
                Box::pin(async move { host.take(worker).await })
            });
            let stopping = self.stop.subscribe();
            let memory = self.memory();
            let setup =
                sockets::SessionSetup { welcome, pages, stopping, traffic, memory, workers: Some(workers) };
            sockets::listen(&self.kernel, socket, setup).await?;
        }
        self.house.host.adopt(recorded_workers(&self.kernel)?).await?;
        self.memory().sweep(self.kernel.journal().epoch());
        self.house.sweep();
        self.kernel.adopt();
        self.kernel.run();
        Ok(())
    }

    fn memory(&self) -> sockets::Memory {
        sockets::Memory::new(self.house.host.objects(), &self.house.places.state)
    }

    #[must_use]
    pub fn places(&self) -> &Places {
        &self.house.places
    }

    /// Starts no attempt any more, and waits until those in hand are finished, or the time is up. Gives how many are
    /// not; they are tried again by the next kernel. Calls are not waited for.
    pub async fn drain(&self, patience: Duration) -> usize {
        const LOOK_AGAIN: Duration = Duration::from_millis(20);
        let begun = tokio::time::Instant::now();
        let reason = "the kernel stops".to_owned();
        let request = DrainRequest { reason, ends_with_kernel: true, ..DrainRequest::default() };
        // A journal that is read-only concludes nothing any more.
        if self.kernel.journal().poisoned().is_some() || self.bus().ask::<Drain>(request).await.is_err() {
            return 0;
        }
        loop {
            let Ok(pool) = self.bus().ask::<Status>(StatusRequest {}).await else { return 0 };
            let in_hand = pool.workers.iter().filter(|worker| worker.task.is_some()).count();
            if in_hand == 0 || begun.elapsed() >= patience {
                return in_hand;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Shared memory for large values: what is put there reaches a worker, or a client that reads it, without another copy.
    /// A part of a call's arguments, or of a payload that is published, is made of the lease (`Lease::into_part`).
    #[must_use]
    pub fn objects(&self) -> Objects {
        self.house.host.objects()
    }

    /// The keeper's pid, once a worker was needed.
    pub async fn keeper_pid(&self) -> Option<u32> {
        self.house.host.keeper_pid().await
    }
}

impl House {
    /// Ends the workers and their keeper.
    pub(crate) async fn close(&self) {
        self.host.shutdown().await;
        self.sweep();
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
}

fn table() -> Result<eclosion_schemas::operation::Table, Error> {
    #[cfg_attr(not(feature = "chaos"), expect(unused_mut, reason = "chaos adds an operation"))]
    let mut table = eclosion_schemas::ops::table()?;
    #[cfg(feature = "chaos")]
    table.declare(eclosion_schemas::operation::Spec::of::<crate::chaos::Panic>())?;
    Ok(table)
}

/// The part of the memory that values in shared memory may take: one in so many.
const OBJECTS_OF_MEMORY: u64 = 4;

/// Where workers get groups, or why they do not.
fn grouped(options: &Options) -> Result<PathBuf, Refusal> {
    if !options.cgroups {
        return Err(Refusal { why: "this kernel was not told to use any".to_owned(), help: None });
    }
    let grouped = Site::here().and_then(|site| groups::arrange(&site, &options.places.instance));
    match &grouped {
        Ok(root) => tracing::info!(root = %root.display(), "workers are held by cgroups"),
        Err(refusal) => tracing::info!(%refusal, "limits are kept by sampling alone"),
    }
    grouped
}

fn contained(options: PoolOptions, grouped: &Result<PathBuf, Refusal>) -> PoolOptions {
    let (containment, why_no_cgroup) = match grouped {
        Ok(_) => (CONTAINMENT_BY_CGROUP, None),
        Err(refusal) => (CONTAINMENT, Some(refusal.to_string())),
    };
    PoolOptions { containment: containment.to_owned(), why_no_cgroup, ..options }
}

fn host_config(options: &Options, outputs: OutputFiles, grouped: Option<PathBuf>) -> HostConfig {
    let places = &options.places;
    let keeper = KeeperConfig {
        binary: options.keeper_binary.clone().unwrap_or_else(|| "eclosion".into()),
        instance: places.instance.clone(),
        dir: places.runtime.clone(),
        grace_ms: options.grace_ms,
        temporary: vec![places.socket.clone(), places.scratch(), places.artifacts().join("stage")],
        groups: grouped.clone(),
        log: places.logs().join("keeper.log"),
        connect_timeout_ms: 10_000,
    };
    let cancel_grace_ms = options.cancel_grace_ms;
    let samples_idle = options.recycle_rss_bytes > 0;
    let objects = Objects::new(options.memory_bytes / OBJECTS_OF_MEMORY);
    let code = Arc::new(CodeDirectories::default());
    let groups = groups::at(grouped).into();
    let scratch = places.scratch();
    HostConfig { keeper, groups, scratch, outputs, cancel_grace_ms, samples_idle, code, objects }
}

/// The workers that the journal knows and has not seen die.
fn recorded_workers(kernel: &eclosion_kernel::Kernel) -> Result<Vec<Leftover>, Error> {
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
    Error::new(Code::Unavailable, "places.make", format!("{}: {why}", path.display()))
}
