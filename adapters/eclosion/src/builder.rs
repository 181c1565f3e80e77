//! What a kernel is made of, before it runs: where it keeps things, where it listens, and an application's own operations
//! and actors.
//!
//! Whatever is wrong with what was declared is said by [`Builder::start`], the first of it, and nothing has started then.
//! The application's actors start after the subsystems and stop before them.

#[cfg(feature = "sqlite")]
use std::path::Path;
#[cfg(any(feature = "sqlite", feature = "ipc"))]
use std::path::PathBuf;
use std::sync::Arc;

use eclosion_bus::{Bus, Tracer};
use eclosion_kernel::core::Core;
use eclosion_kernel::journal::Projection;
use eclosion_kernel::{Actor, Handler};
use eclosion_schemas::Error;
use eclosion_schemas::operation::Spec;

use crate::extension::{check_address, check_name, check_operation};
use crate::running::Kernel;

/// The instance's name of a kernel that was given no other.
const INSTANCE: &str = "embedded";

type Addition = Box<dyn FnOnce(eclosion_kernel::Builder) -> Result<eclosion_kernel::Builder, Error> + Send>;

/// See the head of this file.
#[must_use = "a kernel runs once it was started"]
pub struct Builder {
    pub(crate) instance: String,
    /// Everything is below it.
    #[cfg(feature = "sqlite")]
    pub(crate) directory: Option<PathBuf>,
    #[cfg(feature = "ipc")]
    pub(crate) socket: Option<PathBuf>,
    #[cfg(feature = "workers")]
    pub(crate) options: Option<crate::Options>,
    /// The journal is in memory, whatever else is on the disk.
    pub(crate) is_ephemeral: bool,
    tracer: Option<Arc<dyn Tracer>>,
    additions: Vec<Addition>,
    projections: Vec<Projection>,
    refused: Option<Error>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            instance: INSTANCE.into(),
            #[cfg(feature = "sqlite")]
            directory: None,
            #[cfg(feature = "ipc")]
            socket: None,
            #[cfg(feature = "workers")]
            options: None,
            is_ephemeral: false,
            tracer: None,
            additions: Vec::new(),
            projections: Vec::new(),
            refused: None,
        }
    }
}

impl Builder {
    /// What clients and people know it by.
    pub fn instance(mut self, name: impl Into<String>) -> Self {
        self.instance = name.into();
        self
    }

    /// Nothing that it knows outlives it: the journal is in memory. So it is, too, when no directory was named.
    pub fn ephemeral(mut self) -> Self {
        self.is_ephemeral = true;
        self
    }

    /// Keeps everything below one directory, and goes on from what is there. One kernel at a time has it.
    #[cfg(feature = "sqlite")]
    pub fn below(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Serves clients on a socket, in a directory that nobody else can enter.
    #[cfg(feature = "ipc")]
    pub fn listen(mut self, socket: impl Into<PathBuf>) -> Self {
        self.socket = Some(socket.into());
        self
    }

    /// Places, sizes and times all at once; it listens where the places say, unless [`Builder::listen`] says otherwise.
    #[cfg(feature = "workers")]
    pub fn options(mut self, options: crate::Options) -> Self {
        self.options = Some(options);
        self
    }

    /// Asks that belong to a trace, runs and attempts are recorded by this one; `eclosion-telemetry` has one for OTLP. Without
    /// it a trace context is carried on as it came, and nothing is recorded.
    pub fn tracer(mut self, tracer: Arc<dyn Tracer>) -> Self {
        self.tracer = Some(tracer);
        self
    }

    /// Adds an operation of the application's own: `OWNER.verb`, served at `/OWNER/…`.
    ///
    /// ```
    /// use eclosion::schemas::operation::{Durability, NoItem, Operation, Role, Spec};
    /// #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    /// struct Hello { name: String }
    /// impl Operation for Hello {
    ///     type Request = Hello;
    ///     type Reply = String;
    ///     type Item = NoItem;
    ///     const NAME: &'static str = "greet.hello";
    ///     const ADDRESS: &'static str = "/greet";
    ///     const ROLE: Role = Role::View;
    ///     const DURABILITY: Durability = Durability::Call;
    ///     const DOC: &'static str = "Says hello.";
    ///     fn example() -> Hello { Hello { name: "Ada".into() } }
    /// }
    /// let builder = eclosion::Kernel::builder().operation(Spec::of::<Hello>());
    /// ```
    pub fn operation(mut self, spec: Spec) -> Self {
        self.expect(check_operation(&spec));
        self.add(move |kernel| kernel.operation(spec))
    }

    /// Adds a journaled actor, with its rows.
    pub fn actor<A: Actor>(mut self, actor: A) -> Self {
        self.expect(check_address(actor.address()));
        for kind in A::Core::DECIDES {
            self.expect(check_name("event", kind));
        }
        self.projections.extend(actor.projection());
        self.add(move |kernel| Ok(kernel.actor(actor)))
    }

    /// Adds a plain actor, which journals nothing; `factory` makes the handler of each incarnation.
    pub fn service<H: Handler>(
        mut self,
        address: &'static str,
        factory: impl Fn() -> H + Send + Sync + 'static,
    ) -> Self {
        self.expect(check_address(address));
        self.add(move |kernel| Ok(kernel.service(address, factory)))
    }

    /// As [`Builder::service`], for a handler that asks, tells or publishes itself.
    pub fn service_with<H: Handler>(
        mut self,
        address: &'static str,
        factory: impl Fn(&Bus) -> H + Send + Sync + 'static,
    ) -> Self {
        self.expect(check_address(address));
        self.add(move |kernel| Ok(kernel.service_with(address, factory)))
    }

    /// Starts on the current runtime. It returns once clients are served and what is owed is performed.
    ///
    /// # Errors
    /// `denied` or `invalid` for a name that is not the application's own, `already_exists` for one that is declared
    /// twice, `conflict` when another kernel has the directory, `data_loss` for a damaged journal, `unavailable` for
    /// directories and sockets; each says what to do.
    pub async fn start(self) -> Result<Kernel, Error> {
        if let Some(refusal) = self.refused {
            return Err(refusal);
        }
        #[cfg(feature = "workers")]
        return crate::subsystems::start(self).await;
        #[cfg(not(feature = "workers"))]
        return Kernel::bare(self).await;
    }

    /// Where the journal is kept, if it is.
    #[cfg(all(not(feature = "workers"), any(feature = "sqlite", feature = "ipc")))]
    pub(crate) fn state(&self) -> Option<PathBuf> {
        #[cfg(feature = "sqlite")]
        return self.directory.as_ref().map(|directory| directory.join("state"));
        #[cfg(not(feature = "sqlite"))]
        return None;
    }

    /// The journal, and what derives rows from it: ours and the application's.
    #[cfg(feature = "sqlite")]
    pub(crate) fn journal(
        &self,
        state: Option<&Path>,
        accept_loss: bool,
        ours: &[Projection],
    ) -> Result<eclosion_kernel::Builder, Error> {
        let kernel = eclosion_kernel::Kernel::builder();
        let Some(state) = state.filter(|_| !self.is_ephemeral) else { return Ok(kernel) };
        let projections = ours.iter().chain(&self.projections).copied().collect();
        let options = eclosion_journal_sqlite::Options { accept_loss, projections };
        let (store, opened) = eclosion_journal_sqlite::SqliteJournal::open(&state.join("journal"), &options)?;
        Ok(kernel.journal(Box::new(store), opened))
    }

    /// Adds what the application brings.
    pub(crate) fn extend(
        additions: Vec<Addition>,
        kernel: eclosion_kernel::Builder,
    ) -> Result<eclosion_kernel::Builder, Error> {
        additions.into_iter().try_fold(kernel, |kernel, addition| addition(kernel))
    }

    /// Before anything is performed: what a killed kernel owed belongs to its traces, too.
    pub(crate) fn trace(tracer: Option<Arc<dyn Tracer>>, kernel: &eclosion_kernel::Kernel) {
        if let Some(tracer) = tracer {
            kernel.bus().trace_with(tracer);
        }
    }

    pub(crate) fn take_tracer(&mut self) -> Option<Arc<dyn Tracer>> {
        self.tracer.take()
    }

    pub(crate) fn take_additions(&mut self) -> Vec<Addition> {
        std::mem::take(&mut self.additions)
    }

    fn add(
        mut self,
        addition: impl FnOnce(eclosion_kernel::Builder) -> Result<eclosion_kernel::Builder, Error>
        + Send
        + 'static,
    ) -> Self {
        self.additions.push(Box::new(addition));
        self
    }

    fn expect(&mut self, checked: Result<(), Error>) {
        if let Err(refusal) = checked {
            self.refused.get_or_insert(refusal);
        }
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("instance", &self.instance)
            .field("additions", &self.additions.len())
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}
