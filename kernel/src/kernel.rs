//! The kernel: bus, journal and supervision, wired together around somebody's actors.
//!
//! ```text
//! Builder ── start() ──► Phase::Fold      everything is folded, reads are served, nothing is performed
//!   Kernel::adopt() ───► Phase::Adopt     survivors attach or are declared dead
//!   Kernel::run() ─────► Phase::Run       outstanding effects are performed
//!   Kernel::stop() ────► actors stop in reverse order, the journal is written and synced to its end
//! ```
//!
//! Several kernels live in one process and share nothing. It installs no signal handler, no subscriber and no runtime:
//! it runs on the one that it is started on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use eclosion_bus::{Address, Bus, Control, Gate, Mailbox, MailboxOptions, MailboxStatistics, Quantiles};
use eclosion_schemas::operation::{Spec, Table};
use eclosion_schemas::view::{ActorRow, ActorState, Latency};
use eclosion_schemas::{Code, Error, Incarnation};
use tokio::sync::{Mutex, Notify, broadcast, mpsc, watch};

use crate::actor::{Actor, Context};
use crate::ask::Asks;
use crate::background::{Background, Begin, Closing, once};
use crate::clock::{Clock, SystemClock};
use crate::journal::memory::MemoryStore;
use crate::journal::stage::{Stage, StageActor, Syncing, Writing};
use crate::journal::threads::BeforeSync;
use crate::journal::{Journal, JournalStore, Opened, Projection, Reader};
use crate::service::{Factory, Handler, Service};
use crate::shell::{Parts, Phase, Shell};
use crate::supervision::{Budget, ChildSpec, End, Ended, Escalated, Restart, Root, Start};

/// The groups, in the order in which they start.
pub const JOURNAL: &str = "journal";
pub const ACTORS: &str = "actors";
pub const HOLDERS: &str = "holders";
pub const TRANSPORTS: &str = "transports";

/// How often deadlines are looked at; an ask is answered at most this late.
const SWEEP: Duration = Duration::from_millis(50);
/// Restarts that an actor may be behind in hearing of.
const RESTARTS_MAX: usize = 256;

/// Puts a kernel together. Everything has a default: in-memory journal, the machine's clock, the kernel's own table.
pub struct Builder {
    table: Table,
    clock: Arc<dyn Clock>,
    store: Box<dyn JournalStore>,
    opened: Opened,
    before_sync: Vec<BeforeSync>,
    actors: Vec<Box<dyn Register>>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("store", &self.store).field("actors", &self.actors.len()).finish()
    }
}

impl Default for Builder {
    fn default() -> Self {
        let store = MemoryStore::default();
        let opened = store.open();
        Self {
            table: Table::default(),
            clock: Arc::new(SystemClock),
            store: Box::new(store),
            opened,
            before_sync: Vec::new(),
            actors: Vec::new(),
        }
    }
}

impl Builder {
    /// Adds an operation to the table.
    ///
    /// # Errors
    /// `already_exists` when its name is taken.
    pub fn operation(mut self, spec: Spec) -> Result<Self, Error> {
        self.table.declare(spec)?;
        Ok(self)
    }

    /// Replaces the table.
    #[must_use]
    pub fn operations(mut self, table: Table) -> Self {
        self.table = table;
        self
    }

    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Where the journal is stored; it goes on where `opened` ends.
    #[must_use]
    pub fn journal(mut self, store: Box<dyn JournalStore>, opened: Opened) -> Self {
        (self.store, self.opened) = (store, opened);
        self
    }

    /// Runs before every sync of the journal: what records name must be on the disk before them.
    #[must_use]
    pub fn before_sync(mut self, sync: BeforeSync) -> Self {
        self.before_sync.push(sync);
        self
    }

    /// Adds a journaled actor; actors start in this order.
    #[must_use]
    pub fn actor<A: Actor>(mut self, actor: A) -> Self {
        self.actors.push(Box::new(Journaled(Arc::new(actor))));
        self
    }

    /// Adds a plain actor; `factory` makes the handler of each incarnation.
    #[must_use]
    pub fn service<H: Handler>(
        self,
        address: &'static str,
        factory: impl Fn() -> H + Send + Sync + 'static,
    ) -> Self {
        self.service_with(address, move |_| factory())
    }

    /// As [`Builder::service`], for a handler that sends messages itself.
    #[must_use]
    pub fn service_with<H: Handler>(
        mut self,
        address: &'static str,
        factory: impl Fn(&Bus) -> H + Send + Sync + 'static,
    ) -> Self {
        self.actors.push(Box::new(Plain { address, factory: Arc::new(factory) }));
        self
    }

    /// Starts everything on the current runtime, up to [`Phase::Fold`].
    ///
    /// # Errors
    /// What an actor says that cannot start: `data_loss` for a journal that it cannot fold.
    pub async fn start(self) -> Result<Kernel, Error> {
        let reader = self.store.reader();
        let syncer = self.store.syncer()?;
        let journal = Arc::new(Journal::new(self.opened, Some(Arc::clone(&reader))));
        let (phase, _) = watch::channel(Phase::Fold);
        let (restarts, _) = broadcast::channel(RESTARTS_MAX);
        let bus = Bus::new(self.table);
        let kernel = Kernel {
            bus: bus.clone(),
            journal: Arc::clone(&journal),
            reader,
            root: Root::start(Arc::clone(&self.clock), bus).await?,
            clock: self.clock,
            phase: Arc::new(phase),
            restarts,
            folding: Arc::new(self.actors.iter().filter_map(|actor| actor.folds_at()).collect()),
        };
        for group in [JOURNAL, ACTORS, HOLDERS, TRANSPORTS] {
            kernel.root.add_group(group).await?;
        }
        one_decider(&self.actors)?;
        let projections = self.actors.iter().filter_map(|actor| actor.projection()).collect();
        let writing = Writing { journal: Arc::clone(&journal), store: self.store.into(), projections };
        let syncing = Syncing { journal, syncer: syncer.into(), before: self.before_sync };
        kernel.stage("/journal/writer", writing).await?;
        kernel.stage("/journal/syncer", syncing).await?;
        kernel.sweep().await?;
        let ahead = Arc::clone(&kernel.journal);
        let read = tokio::task::spawn_blocking(move || ahead.read_ahead()).await;
        read.map_err(|why| Error::internal("journal.read", why.to_string()))?;
        for actor in self.actors {
            let child = actor.child(&kernel)?;
            kernel.root.add_child(ACTORS, child).await?;
        }
        kernel.journal.forget_read_ahead();
        Ok(kernel)
    }
}

/// A running kernel. Cheap to clone; dropping it does not stop it, [`Kernel::stop`] does.
#[derive(Debug, Clone)]
pub struct Kernel {
    bus: Bus,
    journal: Arc<Journal>,
    reader: Arc<dyn Reader>,
    root: Root,
    clock: Arc<dyn Clock>,
    phase: Arc<watch::Sender<Phase>>,
    restarts: broadcast::Sender<Address>,
    /// Addresses of journaled actors.
    folding: Arc<BTreeSet<&'static str>>,
}

fn temporary(address: &Address) -> Error {
    let text = format!("{address} is not begun again when it ends");
    Error::new(Code::Precondition, "actor.temporary", text).help(format!("eclosion kill {address}"))
}

fn unknown(address: &Address) -> Error {
    Error::not_found("actor.unknown", format!("there is no actor {address}")).help("eclosion tree")
}

impl Kernel {
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    #[must_use]
    pub fn reader(&self) -> &Arc<dyn Reader> {
        &self.reader
    }

    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Lets the actors look for what survived the last kernel.
    pub fn adopt(&self) {
        self.phase.send_replace(Phase::Adopt);
    }

    /// Lets the actors perform what they owe.
    pub fn run(&self) {
        self.phase.send_replace(Phase::Run);
    }

    /// Runs background work as a supervised actor: `restart` says when it is begun again.
    ///
    /// # Errors
    /// `already_exists` when the address is taken, `unavailable` when the kernel is stopping.
    pub async fn supervise(
        &self,
        group: &str,
        address: Address,
        restart: Restart,
        begin: Begin,
    ) -> Result<(), Error> {
        let mailbox = self.bus.open(address.clone(), MailboxOptions::default())?;
        let (bus, temporary) = (self.bus.clone(), restart == Restart::Temporary);
        let start: Start = {
            let address = address.clone();
            Arc::new(move |_, supervisor| {
                let closing = temporary.then(|| Closing { bus: bus.clone(), address: address.clone() });
                let arguments = (mailbox.clone(), Arc::clone(&begin), closing);
                Box::pin(async move {
                    let started = ractor::Actor::spawn_linked(None, Background, arguments, supervisor).await;
                    started.map(|(actor, _)| actor.get_cell())
                })
            })
        };
        let (name, stop) = (address.as_str().into(), self.stopper(address));
        let spec = ChildSpec { address: name, restart, budget: Budget::ACTOR, start, stop };
        self.root.add_child(group, spec).await
    }

    /// Tells whoever takes from `address` to end.
    fn stopper(&self, address: Address) -> Arc<dyn Fn() + Send + Sync> {
        let bus = self.bus.clone();
        Arc::new(move || {
            if bus.control(&address, Control::Stop { now: false }).is_err() {
                tracing::debug!(%address, "is gone already");
            }
        })
    }

    /// As [`Kernel::supervise`], for work that owns something and cannot be begun twice.
    ///
    /// # Errors
    /// As [`Kernel::supervise`].
    pub async fn hold(
        &self,
        group: &str,
        address: Address,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Result<(), Error> {
        self.supervise(group, address, Restart::Temporary, once(work)).await
    }

    /// Serves an address while the kernel runs, as [`Builder::service`] does from its start; until the address is closed.
    ///
    /// # Errors
    /// As [`Kernel::supervise`].
    pub async fn serve<H: Handler>(
        &self,
        group: &str,
        address: Address,
        options: MailboxOptions,
        factory: impl Fn() -> H + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let mailbox = self.bus.open(address.clone(), options)?;
        let child = serving(self, mailbox, Arc::new(factory), Restart::Transient);
        let started = self.root.add_child(group, child).await;
        if started.is_err() {
            // It was open for as long as it took to be refused.
            let _ = self.bus.close(&address);
        }
        started
    }

    /// Every actor, in the order in which they were started.
    #[must_use]
    pub fn rows(&self) -> Vec<ActorRow> {
        let vitals = self.root.tree().list();
        vitals.into_iter().map(|(address, vital)| self.row(&address, &vital)).collect()
    }

    /// Ends the present incarnation after what it has in hand, or now, and waits for the next one.
    ///
    /// # Errors
    /// `not_found` for what is not supervised; `precondition` for the journal's threads, which end with the kernel alone,
    /// and for what is not begun again; `unavailable` while it is down or the kernel stops.
    pub async fn end(&self, address: &Address, how: End, why: &str) -> Result<Ended, Error> {
        if let Some(refusal) = self.refuses_end(address, how) {
            return Err(refusal);
        }
        for group in [ACTORS, HOLDERS, TRANSPORTS] {
            let refused = match self.root.end_child(group, address.as_str(), how, why).await? {
                Ended::Unknown => continue,
                Ended::Temporary => temporary(address),
                Ended::Down => {
                    Error::new(Code::Unavailable, "actor.down", format!("{address} is down and starts soon"))
                        .retry(eclosion_schemas::Retry::After { after_ms: 1_000 })
                        .help("eclosion tree")
                }
                ended => return Ok(ended),
            };
            return Err(refused);
        }
        Err(unknown(address))
    }

    /// What [`Kernel::end`] would be refused with, whenever it is asked for.
    #[must_use]
    pub fn refuses_end(&self, address: &Address, how: End) -> Option<Error> {
        match self.root.tree().get(address.as_str()) {
            None => Some(unknown(address)),
            Some(vital) if &*vital.group == JOURNAL => {
                let text = format!("{address} belongs to the journal and ends with the kernel alone");
                let refusal = Error::new(Code::Precondition, "actor.journal", text);
                Some(refusal.help("eclosion down && eclosion up"))
            }
            Some(vital) if vital.temporary && how == End::Restart => Some(temporary(address)),
            Some(_) => None,
        }
    }

    /// Whether the state of the actor at this address is folded from the journal; false for a plain handler.
    #[must_use]
    pub fn folds(&self, address: &str) -> bool {
        self.folding.contains(address)
    }

    fn row(&self, address: &str, vital: &crate::supervision::Vital) -> ActorRow {
        let parsed = address.parse::<Address>().ok();
        let statistics = parsed.and_then(|address| self.bus.statistics(&address)).unwrap_or_default();
        ActorRow {
            address: address.to_owned(),
            state: shown_state(vital.state, &statistics),
            incarnation: vital.incarnation,
            restarts: vital.restarts,
            restarts_max: vital.budget.restarts_max,
            window_ms: vital.budget.window_ms,
            depth: statistics.queued,
            capacity: statistics.capacity,
            accepted: statistics.accepted,
            handled: statistics.handled,
            dropped: statistics.dropped,
            expired: statistics.expired,
            cancelled: statistics.cancelled,
            refused: statistics.refused,
            redelivered: statistics.redelivered,
            dead_letters: statistics.dead_lettered,
            in_hand: statistics.in_hand,
            oldest_ms: statistics.oldest_age.map(millis),
            in_hand_ms: statistics.in_hand_for.map(millis),
            accepted_per_s: statistics.accepted_per_s,
            busy_permille: statistics.busy_permille,
            wait: statistics.wait.map(latency),
            handling: statistics.handling.map(latency),
            current: statistics.current.map(str::to_owned),
            last_error: vital.last_error.clone(),
        }
    }

    /// Waits until supervision has given up. An embedder decides what then; the binary exits with 70.
    pub async fn escalated(&self) -> Escalated {
        self.root.escalated().await
    }

    /// Stops: transports first, actors after them, and last the journal, written and synced to its end.
    pub async fn stop(&self) {
        self.root.stop().await;
    }

    async fn stage<S: Stage>(&self, address: &'static str, stage: S) -> Result<(), Error> {
        let stage = Arc::new(stage);
        let start: Start = Arc::new(move |_, supervisor| {
            let stage = Arc::clone(&stage);
            Box::pin(async move {
                let started =
                    ractor::Actor::spawn_linked(None, StageActor::<S>::default(), stage, supervisor).await;
                started.map(|(actor, _)| actor.get_cell())
            })
        });
        let (restart, budget) = (Restart::Transient, Budget::ACTOR);
        let journal = Arc::clone(&self.journal);
        let stop = Arc::new(move || journal.close());
        self.root
            .add_child(JOURNAL, ChildSpec { address: address.into(), restart, budget, start, stop })
            .await
    }

    async fn sweep(&self) -> Result<(), Error> {
        let bus = self.bus.clone();
        let begin: Begin = Arc::new(move || {
            let bus = bus.clone();
            Box::pin(async move {
                let mut ticks = tokio::time::interval(SWEEP);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    bus.sweep(bus.clock().now());
                }
            })
        });
        self.supervise(JOURNAL, address("/bus/sweeper")?, Restart::Permanent, begin).await
    }
}

/// With the same message in hand for so long, an actor is called stuck. Actors hand long work to others.
const STUCK: Duration = Duration::from_secs(10);

/// What a supervisor says of an actor, and what its mailbox adds.
fn shown_state(state: ActorState, statistics: &MailboxStatistics) -> ActorState {
    if state != ActorState::Ready {
        return state;
    }
    match statistics.gate {
        Gate::Paused => ActorState::Paused,
        Gate::Draining => ActorState::Draining,
        Gate::Open if statistics.in_hand_for.is_some_and(|held| held >= STUCK) => ActorState::Stuck,
        Gate::Open if statistics.in_hand > 0 => ActorState::Busy,
        Gate::Open => ActorState::Ready,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn latency(quantiles: Quantiles) -> Latency {
    let us = |duration: Duration| duration.as_secs_f64() * 1e6;
    Latency { p50_us: us(quantiles.p50), p99_us: us(quantiles.p99) }
}

/// An actor that a builder was given, whatever its type.
trait Register: Send {
    fn projection(&self) -> Option<Projection>;
    /// The kinds of events that it decides.
    fn decides(&self) -> &'static [&'static str] {
        &[]
    }
    /// Its address, if its state comes from the journal.
    fn folds_at(&self) -> Option<&'static str> {
        None
    }
    fn child(self: Box<Self>, kernel: &Kernel) -> Result<ChildSpec, Error>;
}

struct Journaled<A>(Arc<A>);

impl<A: Actor> Register for Journaled<A> {
    fn projection(&self) -> Option<Projection> {
        self.0.projection()
    }

    fn decides(&self) -> &'static [&'static str] {
        <A::Core as crate::core::Core>::DECIDES
    }

    fn folds_at(&self) -> Option<&'static str> {
        Some(self.0.address())
    }

    fn child(self: Box<Self>, kernel: &Kernel) -> Result<ChildSpec, Error> {
        let parts = Arc::new(parts(self.0, kernel)?);
        let (address, stop) = (parts.address.as_str().into(), kernel.stopper(parts.address.clone()));
        let start: Start = Arc::new(move |incarnation: Incarnation, supervisor| {
            let arguments = (Arc::clone(&parts), incarnation);
            Box::pin(async move {
                let started =
                    ractor::Actor::spawn_linked(None, Shell::<A>::default(), arguments, supervisor).await;
                started.map(|(actor, _)| actor.get_cell())
            })
        });
        Ok(ChildSpec { address, restart: Restart::Permanent, budget: Budget::ACTOR, start, stop })
    }
}

/// An event is decided by one actor and folded by any: two deciders would each append behind the other's back.
fn one_decider(actors: &[Box<dyn Register>]) -> Result<(), Error> {
    let mut kinds = BTreeSet::new();
    for kind in actors.iter().flat_map(|actor| actor.decides()) {
        if !kinds.insert(kind) {
            let text = format!("the event {kind} is decided by two actors");
            return Err(Error::new(Code::AlreadyExists, "event.decider", text));
        }
    }
    Ok(())
}

fn parts<A: Actor>(actor: Arc<A>, kernel: &Kernel) -> Result<Parts<A>, Error> {
    let address = address(actor.address())?;
    let (appended, lagging) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    // Weak: an actor may hold the journal, and a journal that is held for ever keeps its directory locked.
    let (wake, lag, listening) = (Arc::clone(&appended), Arc::clone(&lagging), Arc::downgrade(&actor));
    let folds = <A::Core as crate::core::Core>::FOLDS;
    kernel.journal.listen(folds, move |events| {
        let mut folded = events.iter().filter(|event| folds.contains(&event.kind)).peekable();
        let actor = listening.upgrade();
        let can_wait = |event| actor.as_ref().is_some_and(|actor| actor.can_wait(event));
        let may_lag = folded.peek().is_some() && folded.all(can_wait);
        if may_lag { lag.notify_one() } else { wake.notify_one() }
    });
    let (sender, commands) = mpsc::unbounded_channel();
    let context = Context {
        bus: kernel.bus.clone(),
        journal: Arc::clone(&kernel.journal),
        clock: Arc::clone(&kernel.clock),
        trace: None,
        asks: Asks::new(sender),
    };
    Ok(Parts {
        actor,
        mailbox: kernel.bus.open(address.clone(), MailboxOptions::default())?,
        address,
        journal: Arc::clone(&kernel.journal),
        reader: Arc::clone(&kernel.reader),
        clock: Arc::clone(&kernel.clock),
        bus: kernel.bus.clone(),
        phase: kernel.phase.subscribe(),
        restarts: kernel.restarts.clone(),
        appended,
        lagging,
        context,
        commands: Mutex::new(commands),
    })
}

struct Plain<H> {
    address: &'static str,
    factory: Arc<dyn Fn(&Bus) -> H + Send + Sync>,
}

impl<H: Handler> Register for Plain<H> {
    fn projection(&self) -> Option<Projection> {
        None
    }

    fn child(self: Box<Self>, kernel: &Kernel) -> Result<ChildSpec, Error> {
        let mailbox = kernel.bus.open(address(self.address)?, MailboxOptions::default())?;
        let (factory, bus) = (self.factory, kernel.bus.clone());
        let factory: Factory<H> = Arc::new(move || factory(&bus));
        Ok(serving(kernel, mailbox, factory, Restart::Permanent))
    }
}

fn serving<H: Handler>(
    kernel: &Kernel,
    mailbox: Mailbox,
    factory: Factory<H>,
    restart: Restart,
) -> ChildSpec {
    let (address, stop) = (mailbox.address().as_str().into(), kernel.stopper(mailbox.address().clone()));
    let start: Start = Arc::new(move |_, supervisor| {
        let arguments = (mailbox.clone(), Arc::clone(&factory));
        Box::pin(async move {
            let started =
                ractor::Actor::spawn_linked(None, Service::<H>::default(), arguments, supervisor).await;
            started.map(|(actor, _)| actor.get_cell())
        })
    });
    ChildSpec { address, restart, budget: Budget::ACTOR, start, stop }
}

fn address(text: &str) -> Result<Address, Error> {
    text.parse().map_err(|why| Error::invalid("address", format!("{text}: {why}")))
}
