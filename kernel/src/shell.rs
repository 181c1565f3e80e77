//! The shell: one journaled actor under tokio and ractor.
//!
//! ractor carries lifecycle, links, panics and kill; the bus mailbox carries the data and outlives the incarnation. The
//! ractor actor gets one message, `Run`, and loops in it:
//!
//! ```text
//! pre_start   recover: fold everything of its kinds; publish; reads are served from here on
//! Run         take (control lane first) ─► engine ─► hold {reply, publications} at synced or written,
//!                                                   hold {effects, views} at written; a batch at a time;
//!                                                   what another journaled actor is asked for goes at once
//! panic       ractor reports it; what is held stands in the journal; the message in hand goes back to the mailbox
//! ```
//!
//! Owned by the incarnation: the engine, and nothing else. Everything in [`Parts`] outlives it.
//! It never waits for the disk, for a client or for another actor.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use eclosion_bus::{Address, Bus, Control, InHand, Mailbox, Responder, Taken};
use eclosion_schemas::error::Error;
use eclosion_schemas::operation::{Durability, Role, Table};
use eclosion_schemas::{EffectId, Incarnation, Seq, Timestamp};
use ractor::{ActorProcessingErr, ActorRef};
use tokio::sync::{Mutex, Notify, broadcast, mpsc, watch};
use tokio::time::Instant;

use crate::actor::{Actor, CommandOf, Context, EffectOf, Outputs};
use crate::clock::Clock;
use crate::core::{Core, Query, Reads};
use crate::engine::{Engine, Step};
use crate::journal::{Journal, Lost, Mark, Reader, Record};
use crate::service::obey_panic;

/// Messages taken before views are published; the newest state is never further behind than these.
const BATCH_MESSAGES_MAX: usize = 64;

/// How long what can wait does.
const LAG: Duration = Duration::from_millis(1);

/// How far the kernel has come in starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Reads are served, nothing is performed.
    Fold,
    /// Survivors attach or are declared dead.
    Adopt,
    /// Outstanding effects are performed.
    Run,
}

/// What outlives the incarnations of one actor.
pub(crate) struct Parts<A: Actor> {
    pub(crate) actor: Arc<A>,
    pub(crate) address: Address,
    pub(crate) mailbox: Mailbox,
    pub(crate) journal: Arc<Journal>,
    pub(crate) reader: Arc<dyn Reader>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) bus: Bus,
    pub(crate) phase: watch::Receiver<Phase>,
    /// Addresses whose next incarnation has begun.
    pub(crate) restarts: broadcast::Sender<Address>,
    /// Something was appended that this actor folds.
    pub(crate) appended: Arc<Notify>,
    /// The same, and it can wait.
    pub(crate) lagging: Arc<Notify>,
    pub(crate) context: Context<CommandOf<A>>,
    /// Commands of its own; taken by one incarnation after the other.
    pub(crate) commands: Mutex<mpsc::UnboundedReceiver<CommandOf<A>>>,
}

/// The ractor side of an actor.
pub(crate) struct Shell<A>(std::marker::PhantomData<fn() -> A>);

impl<A> Default for Shell<A> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

/// The one message that a shell gets.
#[derive(Debug)]
pub(crate) struct Run;

pub(crate) struct Life<A: Actor> {
    parts: Arc<Parts<A>>,
    engine: Engine<A::Core>,
    restarts: broadcast::Receiver<Address>,
    phase: watch::Receiver<Phase>,
    /// Effects are performed from now on.
    performing: bool,
    /// The journal was poisoned, and speculative state taken back.
    read_only: bool,
    table: Arc<Table>,
    /// Folded since views were last published.
    unpublished: Vec<Arc<Record>>,
    /// When what can wait is folded at last.
    lags_until: Option<Instant>,
}

impl<A: Actor> ractor::Actor for Shell<A> {
    type Msg = Run;
    type State = Life<A>;
    type Arguments = (Arc<Parts<A>>, Incarnation);

    async fn pre_start(
        &self,
        _: ActorRef<Run>,
        (parts, incarnation): Self::Arguments,
    ) -> Result<Life<A>, ActorProcessingErr> {
        let mut life = Life::new(parts)?;
        life.publish_all();
        if incarnation.0 > 1 {
            // Nobody may be listening.
            let _ = life.parts.restarts.send(life.parts.address.clone());
        }
        Ok(life)
    }

    async fn post_start(&self, myself: ActorRef<Run>, _: &mut Life<A>) -> Result<(), ActorProcessingErr> {
        Ok(myself.cast(Run)?)
    }

    async fn handle(
        &self,
        myself: ActorRef<Run>,
        _: Run,
        life: &mut Life<A>,
    ) -> Result<(), ActorProcessingErr> {
        life.run().await?;
        myself.stop(None);
        Ok(())
    }
}

enum Next<C> {
    Taken(Taken),
    Own(C),
    Fold,
    Lag,
    Restarted(Address),
    Phase,
}

impl<A: Actor> Life<A> {
    fn new(parts: Arc<Parts<A>>) -> Result<Self, Error> {
        let mut engine = Engine::new(parts.actor.core());
        engine.recover(&parts.journal)?;
        engine.set_settles(false);
        let (restarts, phase) = (parts.restarts.subscribe(), parts.phase.clone());
        let read_only = parts.journal.poisoned().is_some();
        let (table, unpublished) = (parts.bus.table(), Vec::new());
        let (performing, lags_until) = (false, None);
        Ok(Self { parts, engine, restarts, phase, performing, read_only, table, unpublished, lags_until })
    }

    /// Until it is told to stop.
    async fn run(&mut self) -> Result<(), Error> {
        self.enter_phase();
        loop {
            match self.next().await {
                Next::Taken(taken) => {
                    if self.batch(taken).is_break() {
                        return Ok(());
                    }
                }
                Next::Own(command) => self.own(&command),
                Next::Fold => self.fold()?,
                Next::Lag => self.lags_until = Some(Instant::now() + LAG),
                Next::Restarted(address) => self.perform_again(&address),
                Next::Phase => self.enter_phase(),
            }
            self.publish();
        }
    }

    async fn next(&mut self) -> Next<CommandOf<A>> {
        let parts = Arc::clone(&self.parts);
        let (timer, lags_until) = (self.timer(), self.lags_until);
        let mut commands = parts.commands.lock().await;
        tokio::select! {
            biased;
            taken = parts.mailbox.take() => Next::Taken(taken),
            Some(command) = commands.recv() => Next::Own(command),
            () = parts.appended.notified() => Next::Fold,
            () = parts.lagging.notified(), if lags_until.is_none() => Next::Lag,
            () = sleep_until(lags_until) => Next::Fold,
            Ok(address) = self.restarts.recv() => Next::Restarted(address),
            Ok(()) = self.phase.changed() => Next::Phase,
            () = sleep_for(timer) => Next::Fold,
        }
    }

    fn timer(&self) -> Option<Duration> {
        if !self.performing {
            return None;
        }
        let wake = self.engine.wake_at()?;
        Some(Duration::from_millis(wake.since_ms(self.parts.clock.now()).max(1)))
    }

    /// What was taken and what is waiting behind it.
    fn batch(&mut self, first: Taken) -> ControlFlow<()> {
        let mut next = Some(first);
        for handled in 1.. {
            match next {
                Some(Taken::Message(message)) => self.message(message),
                Some(Taken::Control(Control::Stop { .. }) | Taken::Closed) => return ControlFlow::Break(()),
                Some(Taken::Control(control)) => self.control(control),
                None => break,
            }
            let more = handled < BATCH_MESSAGES_MAX;
            next = if more { self.parts.mailbox.try_take() } else { None };
        }
        ControlFlow::Continue(())
    }

    fn message(&mut self, message: InHand) {
        let (mark, cause) = (self.shown_at(message.operation), message.context.cause);
        let command = match self.parts.actor.command(&message) {
            Ok(command) => command,
            Err(refusal) => return message.finish().reply(Err(refusal)),
        };
        let now = self.parts.clock.now();
        let reads = match self.reads(&command) {
            Ok(reads) => reads,
            Err(error) => return message.finish().reply(Err(error)),
        };
        let mut step = self.engine.handle(&self.parts.journal, &reads, &command, cause, now);
        let reply = step.reply.take();
        let depends_on = step.depends_on;
        self.release(step);
        if let Some(reply) = reply {
            answer(&self.parts.journal, mark, depends_on, message.finish(), reply);
        }
    }

    fn own(&mut self, command: &CommandOf<A>) {
        let now = self.parts.clock.now();
        match self.reads(command) {
            Ok(reads) => {
                let step = self.engine.handle(&self.parts.journal, &reads, command, None, now);
                if let Some(Err(refusal)) = &step.reply {
                    tracing::warn!(address = %self.parts.address, %refusal, "refused itself");
                }
                self.release(step);
            }
            Err(error) => tracing::warn!(address = %self.parts.address, %error, "cannot read rows"),
        }
    }

    fn fold(&mut self) -> Result<(), Error> {
        self.lags_until = None;
        if !self.read_only && self.parts.journal.poisoned().is_some() {
            self.read_only = true;
            self.engine.recover(&self.parts.journal)?;
            self.publish_all();
        }
        let (reads, now) = (self.plain_reads(), self.parts.clock.now());
        let step = self.engine.fold_new(&self.parts.journal, &reads, now);
        self.release(step);
        Ok(())
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Ping(probe) => probe.answer(),
            Control::Panic(text) => obey_panic(&self.parts.address, &text),
            Control::Stop { .. } => {}
        }
    }

    /// Survivors first, then everything that is owed.
    fn enter_phase(&mut self) {
        let phase = *self.phase.borrow_and_update();
        if phase >= Phase::Adopt
            && !self.performing
            && let Some(command) = self.parts.actor.adopt(&self.parts.context)
        {
            self.own(&command);
        }
        if phase == Phase::Run && !self.performing {
            self.performing = true;
            self.engine.set_settles(true);
            let (reads, now) = (self.plain_reads(), self.parts.clock.now());
            let step = self.engine.fold_new(&self.parts.journal, &reads, now);
            self.release(step);
        }
    }

    /// What was asked of an incarnation that is gone.
    fn perform_again(&mut self, address: &Address) {
        if !self.performing {
            return;
        }
        let targeted = |effect: &EffectOf<A>| self.parts.actor.target(effect) == Some(address.as_str());
        let effects: Vec<_> = self
            .engine
            .outstanding()
            .iter()
            .filter(|(_, effect)| targeted(effect))
            .map(|(id, effect)| (*id, effect.clone()))
            .collect();
        self.hold_effects(self.engine.depends_on(), effects);
    }

    fn release(&mut self, step: Step<EffectOf<A>>) {
        if !step.records.is_empty() {
            let outstanding = self.engine.outstanding();
            self.parts.context.asks.keep(|id| outstanding.contains_key(id));
        }
        self.unpublished.extend(step.records);
        if self.performing {
            self.hold_effects(step.depends_on, step.effects);
        } else {
            self.engine.report_again();
        }
    }

    fn hold_effects(&self, depends_on: Seq, effects: Vec<(EffectId, EffectOf<A>)>) {
        let stays_inside = |(_, effect): &(_, EffectOf<A>)| self.parts.actor.stays_inside(effect);
        let (inside, effects): (Vec<_>, Vec<_>) = effects.into_iter().partition(stays_inside);
        if !inside.is_empty() {
            perform(&self.parts, &inside);
        }
        if effects.is_empty() {
            return;
        }
        let parts = Arc::clone(&self.parts);
        let runtime = tokio::runtime::Handle::current();
        self.parts.journal.hold(Mark::Written, depends_on, move |written| {
            if written.is_ok() {
                let _entered = runtime.enter();
                perform(&parts, &effects);
            }
        });
    }

    fn publish(&mut self) {
        if self.unpublished.is_empty() {
            return;
        }
        let records = std::mem::take(&mut self.unpublished);
        self.outputs(&records);
    }

    fn publish_all(&mut self) {
        self.unpublished.clear();
        self.outputs(&[]);
    }

    fn outputs(&self, records: &[Arc<Record>]) {
        let mut outputs = Outputs::new(self.parts.journal.epoch());
        self.parts.actor.publish(self.engine.state(), records, &mut outputs);
        let Outputs { views, publications, prompt, .. } = outputs;
        let (journal, seq) = (&self.parts.journal, self.engine.depends_on());
        if !views.is_empty() {
            journal.hold(Mark::Written, seq, move |written| {
                if written.is_ok() {
                    views.into_iter().for_each(|publish| publish());
                }
            });
        }
        if !publications.is_empty() {
            let bus = self.parts.bus.clone();
            let publish = move |synced: Result<(), Lost>| {
                if synced.is_ok() {
                    publications.into_iter().for_each(|publishing| publishing.publish(&bus));
                }
            };
            match prompt {
                true => journal.hold(Mark::Synced, seq, publish),
                false => journal.hold_relaxed(seq, publish),
            }
        }
    }

    /// When the answer to a message may be seen. `None`: at once.
    fn shown_at(&self, operation: &str) -> Option<Mark> {
        let Some(spec) = self.table.get(operation) else { return Some(Mark::Synced) };
        match (spec.durability, spec.role) {
            (Durability::Power, _) => Some(Mark::Synced),
            (Durability::Process, _) => Some(Mark::Written),
            // What a client reads must still be true after a power cut; what actors tell each other need not.
            (Durability::Call, Role::View | Role::Operate | Role::Admin) => Some(Mark::Synced),
            (Durability::Call, Role::Worker | Role::Service) => None,
        }
    }

    fn plain_reads(&self) -> Reads {
        Reads::new(self.parts.journal.epoch(), self.parts.clock.entropy())
    }

    fn reads(&self, command: &CommandOf<A>) -> Result<Reads, Error> {
        let mut reads = self.plain_reads();
        for query in self.engine.core().queries(command) {
            let rows = match &query {
                Query::Get { table, key } => {
                    let value = self.parts.reader.get(table, key)?;
                    value.map(|value| (key.clone(), value)).into_iter().collect()
                }
                Query::Scan { table, prefix, newest_first, limit } => {
                    self.parts.reader.scan(table, prefix, *newest_first, *limit)?
                }
            };
            reads.insert(query, rows);
        }
        Ok(reads)
    }
}

/// Also on the thread that reports *written*: a performer that panics must not take the journal's writer along.
fn perform<A: Actor>(parts: &Parts<A>, effects: &[(EffectId, EffectOf<A>)]) {
    let performed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        parts.actor.perform(effects, &parts.context);
    }));
    if performed.is_err() {
        tracing::error!(address = %parts.address, ?effects, "performing panicked; they are performed again at the next start");
    }
}

fn answer(
    journal: &Journal,
    mark: Option<Mark>,
    depends_on: Seq,
    responder: Responder,
    reply: Result<Box<dyn std::any::Any + Send>, Error>,
) {
    let (Some(mark), Ok(_)) = (mark, &reply) else { return responder.reply(reply) };
    journal.hold(mark, depends_on, move |reached| match reached {
        Ok(()) => {
            responder.ended("journal");
            responder.reply(reply);
        }
        Err(lost) => responder.reply(Err(lost.error())),
    });
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

async fn sleep_for(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// The commands an actor gives itself while it performs.
impl<C: Send + 'static> Context<C> {
    /// Asks another actor for what an effect wishes, until it is answered or no longer owed. `refused` turns a refusal
    /// that repeating cannot mend into a command of its own.
    pub fn ask<O>(
        &self,
        id: EffectId,
        request: O::Request,
        refused: impl FnOnce(Error) -> Option<C> + Send + 'static,
    ) where
        O: eclosion_schemas::Operation,
        O::Request: Clone + Sync,
    {
        self.asks
            .ask::<O>((&self.bus, self.trace), vec![id], request, |answer| answer.err().and_then(refused));
    }

    /// One ask for what several effects wish; it goes on until it is answered or none of them is owed any longer.
    pub fn ask_together<O>(
        &self,
        ids: Vec<EffectId>,
        request: O::Request,
        refused: impl FnOnce(Error) -> Option<C> + Send + 'static,
    ) where
        O: eclosion_schemas::Operation,
        O::Request: Clone + Sync,
    {
        self.asks.ask::<O>((&self.bus, self.trace), ids, request, |answer| answer.err().and_then(refused));
    }

    /// The same, where the reply matters: `answered` is called with it on a task of its own.
    pub fn ask_for<O>(
        &self,
        id: EffectId,
        request: O::Request,
        answered: impl FnOnce(Result<O::Reply, Error>) -> Option<C> + Send + 'static,
    ) where
        O: eclosion_schemas::Operation,
        O::Request: Clone + Sync,
    {
        self.asks.ask::<O>((&self.bus, self.trace), vec![id], request, answered);
    }

    /// Performs an effect that is no plain ask, on a task of its own; dropped once the effect is no longer owed. What comes
    /// of it is a command.
    pub fn work(&self, id: EffectId, work: impl Future<Output = Option<C>> + Send + 'static) {
        self.asks.work(vec![id], work);
    }

    /// One ask for what several effects wish, where the reply matters.
    pub fn ask_together_for<O>(
        &self,
        ids: Vec<EffectId>,
        request: O::Request,
        answered: impl FnOnce(Result<O::Reply, Error>) -> Option<C> + Send + 'static,
    ) where
        O: eclosion_schemas::Operation,
        O::Request: Clone + Sync,
    {
        self.asks.ask::<O>((&self.bus, self.trace), ids, request, answered);
    }

    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}
