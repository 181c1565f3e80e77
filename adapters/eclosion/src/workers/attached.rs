//! Workers that were started by hand: in a debugger, a notebook, a container. They dial the listening socket.
//!
//! ```text
//! HELLO, role worker ─► session ─► `take` ─► holder `/workers/a-EPOCH-N` ─► pool.worker_up {attached}
//! the connection ends ─► pool.worker_down {disconnected}; what it had in hand is tried again elsewhere
//! ```
//!
//! Their processes belong to whoever started them: the keeper does not know them, nobody signals them, and the only
//! thing that is ever ended here is the connection. What they print is theirs as well, and is not kept.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use eclosion_dag_tracker::environment_id;
use eclosion_ipc::worker::WorkerLink;
use eclosion_ipc::{AttachedWorker, WorkerHandle};
use eclosion_schemas::certificate::Death;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::{EnvironmentId, Error, WorkerId};

use super::table::{Entry, Exit};
use super::{WorkerHost, lock};

impl WorkerHost {
    /// Takes over a connection whose peer has said that it is a worker.
    ///
    /// # Errors
    /// The kernel is not there yet, or cannot hold it: the connection is closed.
    pub(crate) async fn take(&self, worker: AttachedWorker) -> Result<(), Error> {
        let epoch = self.kernel()?.journal().epoch();
        let n = self.0.attached_counter.fetch_add(1, Ordering::Relaxed);
        let name = WorkerId::new(format!("a-{epoch}-{n}"))
            .map_err(|why| Error::internal("worker.name", why.to_string()))?;
        let environment = worker.hello.environment.clone();
        let environment = environment.unwrap_or_else(|| environment_id(&EnvironmentSpec::default()));
        tracing::info!(worker = %name, %environment, pid = worker.peer.pid, "a worker was attached by hand");
        let reports = self.reports(&name);
        let (welcome, blobs) = (self.welcome()?, Arc::clone(&self.0.blobs));
        let (link, handle) =
            WorkerLink::attached(worker, name.clone(), welcome, blobs, Arc::clone(&reports) as _);
        self.hold_link(&name, link, handle, reports, Some(environment)).await
    }

    /// `None` for a worker of the pool's own.
    pub(super) fn environment_of_attached(&self, worker: &WorkerId) -> Option<EnvironmentId> {
        lock(&self.0.workers).get(worker)?.attached.clone()
    }

    pub(super) fn is_attached(&self, worker: &WorkerId) -> bool {
        self.environment_of_attached(worker).is_some()
    }

    /// Its connection has ended: that is all that will ever be known.
    pub(super) fn disconnected(&self, worker: &WorkerId) {
        let verdict = lock(&self.0.workers).get(worker).and_then(|entry| entry.verdict.clone());
        let text = match verdict {
            Some(Death::Killed { sender: Some(sender), .. }) => format!("{sender} hung up"),
            _ if self.is_stopping() => "the kernel stopped".to_owned(),
            _ => "its process ended or closed it".to_owned(),
        };
        self.exited(worker, Exit { death: Death::Disconnected { text }, peak_rss_bytes: None });
    }

    /// Ends the connection; false for a worker of the pool's own.
    pub(super) fn hang_up(&self, worker: &WorkerId) -> bool {
        let link = {
            let workers = lock(&self.0.workers);
            let entry = workers.get(worker).filter(|entry| entry.attached.is_some());
            let Some(entry) = entry else { return false };
            entry.link.clone()
        };
        link.iter().for_each(WorkerHandle::hang_up);
        true
    }

    pub(super) fn hang_up_attached(&self) {
        let is_attached = |entry: &&Entry| entry.attached.is_some();
        let links: Vec<_> = lock(&self.0.workers)
            .values()
            .filter(is_attached)
            .filter_map(|entry| entry.link.clone())
            .collect();
        links.iter().for_each(WorkerHandle::hang_up);
    }
}
