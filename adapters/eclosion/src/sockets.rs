//! The door: one listening socket, a supervised session for each connection.
//!
//! The socket itself outlives the listener's incarnations: whoever connects while the next one begins waits in the
//! operating system's queue. A session that panics takes its own connection along and nothing else.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eclosion_bus::Address;
use eclosion_ipc::arena::{Named, Objects};
use eclosion_ipc::{Accepted, AttachedWorker, ListenOptions, Listener, Pages, Session, Traffic, Welcome};
use eclosion_kernel::Kernel;
use eclosion_kernel::background::{Begin, Work};
use eclosion_kernel::kernel::TRANSPORTS;
use eclosion_kernel::supervision::Restart;
use eclosion_schemas::Error;
use eclosion_schemas::frame::{BINCODE, Limits};
use tokio::sync::watch;

use crate::services::{ServiceTable, describe_hash};

/// Below it, each connection has an address.
pub(crate) const SESSIONS: &str = "/sessions/";
/// How long sessions may take to go; a little more than each is given for the calls that are under way.
const DRAIN: Duration = Duration::from_secs(6);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Who takes workers that were started by hand.
pub(crate) type Workers = Arc<dyn Fn(AttachedWorker) -> Work + Send + Sync>;

/// What each session begins with.
pub(crate) struct SessionSetup {
    pub(crate) welcome: Arc<Welcome>,
    pub(crate) pages: Arc<dyn Pages>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) memory: Memory,
    /// None refuses them.
    pub(crate) workers: Option<Workers>,
}

/// What every incarnation of the listener works with.
struct Door {
    kernel: Kernel,
    listener: Listener,
    setup: SessionSetup,
    services: Arc<ServiceTable>,
    sessions: AtomicU64,
}

/// What clients may read in shared memory, and how its names begin.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) objects: Objects,
    tag: String,
}

impl Memory {
    /// Names are those of one state directory, whose lock is held.
    pub(crate) fn new(objects: Objects, state: &Path) -> Self {
        let tag = blake3::hash(state.as_os_str().as_encoded_bytes()).to_hex();
        Self { objects, tag: tag.chars().take(8).collect() }
    }

    /// Removes the names that earlier lives of this kernel have left.
    pub(crate) fn sweep(&self, epoch: eclosion_schemas::Epoch) {
        match Named::sweep(&self.tag, epoch) {
            Ok(0) => {}
            Ok(found) => tracing::info!(found, "removed shared memory of an earlier kernel"),
            Err(why) => tracing::warn!(%why, "shared memory was not swept"),
        }
    }
}

/// Binds the socket and begins to accept.
///
/// # Errors
/// As [`Listener::bind`].
pub(crate) async fn listen(kernel: &Kernel, socket: &Path, setup: SessionSetup) -> Result<(), Error> {
    let listener = Listener::bind(ListenOptions::new(socket))?;
    let door = Arc::new(Door {
        kernel: kernel.clone(),
        listener,
        setup,
        services: Arc::new(ServiceTable::new(kernel)),
        sessions: AtomicU64::new(0),
    });
    let begin: Begin = Arc::new(move || -> Work { Box::pin(accept(Arc::clone(&door))) });
    kernel.supervise(TRANSPORTS, address("/listener")?, Restart::Permanent, begin).await
}

/// What the kernel says of itself to clients and workers alike.
pub(crate) fn welcome(kernel: &Kernel, instance: &str) -> Welcome {
    Welcome {
        server: concat!("eclosion/", env!("CARGO_PKG_VERSION")).into(),
        instance: instance.to_owned(),
        epoch: kernel.journal().epoch(),
        describe_hash: describe_hash(&kernel.bus().table()),
        features: vec![BINCODE.into()],
        limits: Limits::DEFAULT,
    }
}

async fn accept(door: Arc<Door>) -> Result<(), Error> {
    loop {
        let accepted = door.listener.accept().await;
        if let Err(error) = open(&door, accepted).await {
            tracing::warn!(%error, "a connection was not served");
        }
    }
}

async fn open(door: &Door, accepted: Accepted) -> Result<(), Error> {
    let number = door.sessions.fetch_add(1, Ordering::Relaxed) + 1;
    let setup = &door.setup;
    let mut stopping = setup.stopping.clone();
    let stopped = async move {
        // A sender that is gone is a kernel that is gone.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let session = Session::new(accepted, door.kernel.bus().clone(), Arc::clone(&setup.welcome), stopped)?;
    let session = session.with_services(Arc::clone(&door.services) as _);
    let session = session.counted_in(Arc::clone(&setup.traffic));
    let session = session.with_pages(Arc::clone(&setup.pages));
    let session = session.with_objects(setup.memory.objects.clone(), setup.memory.tag.clone());
    let workers = setup.workers.clone();
    let session = if workers.is_some() { session.take_workers() } else { session };
    let serving = async move {
        let end = session.run().await;
        if let (Some(take), Some(worker)) = (workers, end.worker) {
            return take(*worker).await;
        }
        tracing::debug!(client = end.client.as_deref(), calls = end.calls, why = ?end.why, "a session ended");
        Ok(())
    };
    door.kernel.hold(TRANSPORTS, address(&format!("{SESSIONS}{number}"))?, serving).await
}

fn address(text: &str) -> Result<Address, Error> {
    text.parse().map_err(|why| Error::invalid("address", format!("{text}: {why}")))
}

/// Waits until every session has said its last word, or the time is up. They are told to go by `stopping`.
pub(crate) async fn drained(kernel: &Kernel) {
    let until = tokio::time::Instant::now() + DRAIN;
    let open = || kernel.bus().addresses().iter().any(|address| address.as_str().starts_with(SESSIONS));
    while open() && tokio::time::Instant::now() < until {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
