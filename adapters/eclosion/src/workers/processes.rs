//! Processes: started and ended by the keeper, each held by a supervised actor, each death reported until it is heard.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eclosion_ipc::WorkerHandle;
use eclosion_ipc::worker::{LinkEnd, WorkerLink};
use eclosion_kernel::kernel::HOLDERS;
use eclosion_process::{How, Keeper, KeeperEvent, KnownWorker, ProcessId, SpawnWorker};
use eclosion_schemas::certificate::Death;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{WorkerDown, WorkerDownRequest};
use eclosion_schemas::{Code, EnvironmentId, Error, Timestamp, WorkerId};
use tokio::sync::{mpsc, watch};

use super::outcomes::Reports;
use super::table::{Entry, Exit};
use super::{WorkerHost, address, lock};
use crate::output::Stream;
use crate::report::until_heard;

/// A worker whose stream has ended is expected to be reaped within this; then its tree is killed.
const REAP: Duration = Duration::from_secs(5);
pub(super) const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

impl WorkerHost {
    /// The keeper, started if there is none.
    pub(super) async fn keeper(&self) -> Result<Keeper, Error> {
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
    pub(super) async fn listen(&self, mut events: mpsc::Receiver<KeeperEvent>) -> Result<(), Error> {
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

    pub(super) fn known(&self, worker: KnownWorker) {
        lock(&self.0.workers).insert(worker.worker.clone(), Entry::new());
        if !worker.alive {
            let death = worker.status.map_or_else(unseen, |how| out_of_memory(worker.oom_limit_bytes, how));
            self.exited(&worker.worker, Exit { death, peak_rss_bytes: worker.peak_rss_bytes });
            self.gone(&worker.worker);
        }
    }

    pub(super) async fn event(&self, event: KeeperEvent) {
        match event {
            KeeperEvent::Welcome { workers, .. } => workers.into_iter().for_each(|worker| self.known(worker)),
            KeeperEvent::Survivor { worker, pid, start_ticks, stream }
            | KeeperEvent::Spawned { worker, pid, start_ticks, stream } => {
                if let Some(entry) = lock(&self.0.workers).get_mut(&worker) {
                    let process = ProcessId { pid, start_ticks };
                    entry.process = Some(process);
                    entry.born_at = process.started_unix_ms().map(Timestamp).unwrap_or_default();
                }
                if self.0.config.samples_idle {
                    self.look_at_limits();
                }
                if let Err(error) = self.hold(&worker, stream).await {
                    tracing::error!(%worker, %error, "a worker cannot be held");
                    self.kill(&worker).await;
                }
            }
            KeeperEvent::SpawnFailed { worker, error } => {
                self.exited(&worker, Exit { death: Death::Start { text: error }, peak_rss_bytes: None });
                self.gone(&worker);
            }
            KeeperEvent::Exited { worker, how, peak_rss_bytes, oom_limit_bytes, .. } => {
                let verdict = match how {
                    How::Signal(SIGKILL) => {
                        lock(&self.0.workers).get(&worker).and_then(|entry| entry.verdict.clone())
                    }
                    _ => None,
                };
                let unasked =
                    || if self.is_stopping() { stopped(how) } else { out_of_memory(oom_limit_bytes, how) };
                let death = verdict.unwrap_or_else(unasked);
                self.exited(&worker, Exit { death, peak_rss_bytes: Some(peak_rss_bytes) });
                // A worker without a stream has no holder that would say so.
                if lock(&self.0.workers).get(&worker).is_some_and(|entry| entry.link.is_none()) {
                    self.gone(&worker);
                }
            }
            KeeperEvent::Lost { text } => self.lost(&text).await,
        }
    }

    /// The keeper is gone: so are the lifelines, and nobody can wait for the workers any more.
    pub(super) async fn lost(&self, text: &str) {
        if self.is_stopping() {
            tracing::debug!(text, "the keeper has ended, as it was told");
        } else {
            tracing::error!(text, "the keeper is gone; every worker is ended and its attempt tried again");
        }
        self.0.keeper.lock().await.take();
        let directory = self.0.config.keeper.dir.clone();
        let swept = tokio::task::spawn_blocking(move || eclosion_process::sweep(&directory, &[])).await;
        tracing::info!(?swept, "ended what the keeper left");
        let text = match self.is_stopping() {
            true => "it was stopped with its kernel".to_owned(),
            false => format!("its keeper was lost: {text}"),
        };
        let death = Death::Unseen { text };
        let own = |(worker, entry): (&WorkerId, &Entry)| entry.attached.is_none().then(|| worker.clone());
        let workers: Vec<_> = lock(&self.0.workers).iter().filter_map(own).collect();
        for worker in workers {
            self.exited(&worker, Exit { death: death.clone(), peak_rss_bytes: None });
            if lock(&self.0.workers).get(&worker).is_some_and(|entry| entry.link.is_none()) {
                self.gone(&worker);
            }
        }
    }

    pub(super) fn exited(&self, worker: &WorkerId, exit: Exit) {
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
    pub(super) async fn hold(&self, worker: &WorkerId, stream: std::os::fd::OwnedFd) -> Result<(), Error> {
        let reports = self.reports(worker);
        let (welcome, blobs) = (self.welcome()?, Arc::clone(&self.0.blobs));
        let (link, handle) = WorkerLink::new(stream, welcome, blobs, Arc::clone(&reports) as _)?;
        self.hold_link(worker, link, handle, reports, None).await
    }

    pub(super) fn reports(&self, worker: &WorkerId) -> Arc<Reports> {
        Arc::new(Reports { host: self.clone(), worker: worker.clone(), end: Mutex::default() })
    }

    pub(super) async fn hold_link(
        &self,
        worker: &WorkerId,
        link: WorkerLink,
        handle: WorkerHandle,
        said: Arc<Reports>,
        attached: Option<EnvironmentId>,
    ) -> Result<(), Error> {
        let kernel = self.kernel()?;
        let link = link.with_objects(self.objects());
        let exit = {
            let mut workers = lock(&self.0.workers);
            let entry = workers.entry(worker.clone()).or_insert_with(Entry::new);
            entry.link = Some(handle);
            entry.attached = attached;
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
    pub(super) async fn reap(
        &self,
        worker: &WorkerId,
        mut exit: watch::Receiver<Option<Exit>>,
        end: Option<LinkEnd>,
    ) {
        let (why, staged) = end.map_or((None, Vec::new()), |end| (end.why, end.staged));
        if let Some(why) = &why {
            tracing::warn!(%worker, %why, "a worker broke the protocol");
            self.exited(
                worker,
                Exit { death: Death::Protocol { text: why.message.clone() }, peak_rss_bytes: None },
            );
            self.kill(worker).await;
        }
        if self.is_attached(worker) {
            self.disconnected(worker);
        }
        let reaped = tokio::time::timeout(REAP, exit.wait_for(Option::is_some)).await.is_ok();
        if !reaped {
            self.kill(worker).await;
            self.exited(worker, Exit { death: unseen(), peak_rss_bytes: None });
        }
        staged.into_iter().for_each(|stage| self.0.blobs.discard(stage));
    }

    pub(super) async fn kill(&self, worker: &WorkerId) {
        if self.hang_up(worker) {
            return;
        }
        if let Some(keeper) = &*self.0.keeper.lock().await
            && let Err(why) = keeper.signal(worker.clone(), SIGKILL, true)
        {
            tracing::warn!(%worker, %why, "cannot be killed");
        }
    }

    /// Reports a worker's death, and forgets it once that was heard.
    pub(super) fn gone(&self, worker: &WorkerId) {
        let Ok(kernel) = self.kernel().cloned() else { return };
        let entry = {
            let mut workers = lock(&self.0.workers);
            let Some(entry) = workers.remove(worker) else { return };
            self.0.reporting.send_modify(|dead| _ = dead.insert(worker.clone()));
            entry
        };
        entry.settled.send_replace(true);
        let exit = entry.exit.borrow().clone();
        let Exit { death, peak_rss_bytes } =
            exit.unwrap_or_else(|| Exit { death: unseen(), peak_rss_bytes: None });
        self.calls_died(worker, &death);
        let lost = Error::new(Code::Unavailable, "worker.died", death.to_string());
        for attempt in entry.attempts.into_values() {
            // Nothing of it is committed.
            let _ = attempt.span.end(Some(&lost), None);
        }
        let request = WorkerDownRequest {
            worker: worker.clone(),
            death,
            peak_rss_bytes,
            free_memory_bytes: free_memory_bytes(),
            last_lines: self.0.config.outputs.last_lines(worker),
            wanted: self.is_stopping(),
        };
        let (host, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move {
            if until_heard::<WorkerDown>(kernel.bus(), request).await.is_ok()
                && entry.attached.is_none()
                && let Some(keeper) = &*host.0.keeper.lock().await
                && let Err(why) = keeper.forget(worker.clone())
            {
                tracing::debug!(%why, "the keeper keeps an exit record");
            }
            host.0.reporting.send_modify(|dead| _ = dead.remove(&worker));
        });
    }

    pub(super) async fn spawn(
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

/// While a kernel stops, its keeper was told to end the workers.
fn stopped(how: How) -> Death {
    match how {
        How::Signal(signal @ (SIGTERM | SIGKILL)) => {
            Death::Killed { signal, sender: Some("eclosion, which stopped".into()) }
        }
        how => death_of(how),
    }
}

/// What its group has counted says more than the signal.
fn out_of_memory(limit_bytes: Option<u64>, how: How) -> Death {
    match (limit_bytes, how) {
        (Some(limit_bytes), How::Signal(SIGKILL)) => Death::OutOfMemory { limit_bytes, measured_bytes: None },
        (_, how) => death_of(how),
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
