//! A running kernel with whatever was built around it.
//!
//! Start: lock and journal → fold → socket → adopt what survived → perform what is owed.
//! Stop: sockets first, then actors, then the journal, synced to its end; workers go with a shutdown, and stay for the
//! next kernel when this one is killed.

use eclosion_bus::{Bus, LocalClient};
use eclosion_kernel::supervision::Escalated;
use eclosion_schemas::Error;
use eclosion_schemas::view::ActorRow;
use tokio::sync::watch;

use crate::builder::Builder;

/// A running kernel. Dropping it stops nothing; [`Kernel::shutdown`] does.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) kernel: eclosion_kernel::Kernel,
    pub(crate) stop: watch::Sender<bool>,
    #[cfg(feature = "ipc")]
    pub(crate) socket: Option<std::path::PathBuf>,
    #[cfg(feature = "workers")]
    pub(crate) house: crate::subsystems::House,
}

impl Kernel {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts one with the subsystems and nothing of an application's.
    ///
    /// # Errors
    /// As [`Builder::start`].
    #[cfg(feature = "workers")]
    pub async fn start(options: crate::Options) -> Result<Self, Error> {
        Self::builder().options(options).start().await
    }

    /// Bus, supervision, journal.
    #[must_use]
    pub fn kernel(&self) -> &eclosion_kernel::Kernel {
        &self.kernel
    }

    /// To ask, tell, publish and subscribe.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        self.kernel.bus()
    }

    /// The same as an attached client, for code that is to work with either.
    #[must_use]
    pub fn client(&self) -> LocalClient {
        LocalClient::new(self.bus())
    }

    /// Every actor, as `eclosion tree` shows them.
    #[must_use]
    pub fn rows(&self) -> Vec<ActorRow> {
        self.kernel.rows()
    }

    /// Waits until somebody asked the kernel to stop, or supervision has given up, which [`Kernel::escalated`] then says.
    pub async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            // Its sender is ours and lives as long.
            _ = stop.wait_for(|stop| *stop) => {}
            why = self.escalated() => tracing::error!(%why, "the kernel stops"),
        }
    }

    /// Waits until supervision has given up: an actor has died more often than its budget of restarts allows, and so has what
    /// is above it. Whatever is asked from then on finds nobody. The process should end then, or start another kernel.
    pub async fn escalated(&self) -> Escalated {
        self.kernel.escalated().await
    }

    /// Ends everything: sessions, workers and their keeper, actors, and last the journal, synced to its end.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        #[cfg(feature = "ipc")]
        crate::sockets::drained(&self.kernel).await;
        #[cfg(feature = "workers")]
        self.house.close().await;
        self.kernel.stop().await;
        #[cfg(feature = "ipc")]
        if let Some(socket) = &self.socket
            && let Err(why) = std::fs::remove_file(socket)
            && why.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%why, "the socket's file is left");
        }
    }
}

/// What derives rows of ours.
#[cfg(all(not(feature = "workers"), feature = "sqlite", feature = "ipc"))]
const PROJECTIONS: &[eclosion_kernel::journal::Projection] = &[eclosion_audit::project];
#[cfg(all(not(feature = "workers"), feature = "sqlite", not(feature = "ipc")))]
const PROJECTIONS: &[eclosion_kernel::journal::Projection] = &[];

/// What clients may read in shared memory, where no subsystem has a say in it.
#[cfg(all(not(feature = "workers"), feature = "ipc"))]
const OBJECTS_BYTES: u64 = 1 << 30;

#[cfg(not(feature = "workers"))]
impl Kernel {
    /// Without the subsystems.
    pub(crate) async fn bare(mut builder: Builder) -> Result<Self, Error> {
        let (additions, tracer) = (builder.take_additions(), builder.take_tracer());
        let stop = watch::Sender::new(false);
        #[cfg(feature = "sqlite")]
        let kernel = builder.journal(builder.state().as_deref(), false, PROJECTIONS)?;
        #[cfg(not(feature = "sqlite"))]
        let kernel = eclosion_kernel::Kernel::builder();
        #[cfg(feature = "ipc")]
        let (kernel, own) = {
            let state = builder.state().unwrap_or_default();
            let own = crate::introspect::Own::new(&builder.instance, state, &stop);
            let mut table = eclosion_schemas::operation::Table::default();
            eclosion_schemas::ops::operators().into_iter().try_for_each(|spec| table.declare(spec))?;
            (crate::introspect::serve(kernel.operations(table), &own), own)
        };
        let kernel = Builder::extend(additions, kernel)?.start().await?;
        Builder::trace(tracer, &kernel);
        #[cfg(feature = "ipc")]
        {
            own.attach(&kernel);
            if let Some(socket) = &builder.socket {
                let welcome = crate::sockets::welcome(&kernel, &builder.instance);
                let pages = crate::metrics::Metrics::new(&own);
                let objects = eclosion_ipc::arena::Objects::new(OBJECTS_BYTES);
                let state = builder.state().unwrap_or_else(|| socket.clone());
                let memory = crate::sockets::Memory::new(objects, &state);
                memory.sweep(kernel.journal().epoch());
                let setup = crate::sockets::SessionSetup {
                    welcome: welcome.into(),
                    pages,
                    stopping: stop.subscribe(),
                    traffic: own.traffic.clone(),
                    memory,
                    workers: None,
                };
                crate::sockets::listen(&kernel, socket, setup).await?;
            }
        }
        kernel.adopt();
        kernel.run();
        Ok(Self {
            kernel,
            stop,
            #[cfg(feature = "ipc")]
            socket: builder.socket,
        })
    }
}
