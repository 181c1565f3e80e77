//! The kernel of a simulated world: the real cores, engines and journal, driven as the shell drives them.
//!
//! What is simulated is what stands around them: the bus (each message takes a while, two of one pair keep their order),
//! the asks (repeated until answered or no longer owed, performed again when their target restarts), the writer and the
//! syncer, and supervision (a panic loses the incarnation, not the mailbox; the message in hand comes once more).

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use eclosion_arbitration::Arbitration;
use eclosion_artifact_store::Artifacts;
use eclosion_dag_tracker::DagTracker;
use eclosion_kernel::core::{Core, Query, Reads};
use eclosion_kernel::engine::{Engine, Step};
use eclosion_kernel::journal::{Journal, Mark, Reader, Record};
use eclosion_pool_manager::Pool;
use eclosion_pool_manager::state::Bodies;
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::{EffectId, Fence, Seq, WorkerId};

use crate::disk::Disk;
use crate::world::{Canary, EVERYBODY, Party, Who, World};

mod asks;
mod pipeline;
mod seats;

pub(crate) use asks::is_final;
pub(crate) use seats::Simulated;

/// A reply in its own type, or a refusal.
pub(crate) type Answer = Result<Box<dyn Any + Send>, Error>;

#[derive(Debug)]
pub(crate) enum KernelEvent {
    /// A message is in the mailbox from now on.
    Arrive(Envelope),
    /// The answer is with whoever asked.
    Answered(ReplyTo, Answer),
    /// Something was appended that it folds.
    Fold(Who),
    Wake(Who),
    Restart(Who),
    AskAgain(Who, EffectId),
    ReportAgain(u64),
    /// Effects are performed from now on.
    Run,
    Write,
    Written(usize),
    Sync,
    Synced(Seq),
}

#[derive(Debug)]
pub(crate) enum Envelope {
    Arbitration(Mail<Arbitration>),
    Pool(Mail<Pool>),
    Dag(Mail<DagTracker>),
}

/// Who waits for the answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReplyTo {
    /// An effect that is an ask.
    Effect(Who, EffectId),
    /// The pool, for the body of an attempt.
    Body(EffectId, WorkerId, Fence),
    /// A holder, or the builder.
    Report(u64),
    Start(usize),
    Cancel(usize),
    Look(usize),
}

pub(crate) struct Mail<C: Core> {
    pub(crate) command: C::Command,
    pub(crate) cause: Option<EffectId>,
    pub(crate) reply_to: ReplyTo,
    /// When its answer may be seen; `None`: at once.
    pub(crate) mark: Option<Mark>,
    pub(crate) deliveries: u8,
}

impl<C: Core> Debug for Mail<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mail for {:?}", self.reply_to)
    }
}

/// One actor: what outlives its incarnations, and the engine of the present one.
pub(crate) struct Seat<C: Core> {
    pub(crate) engine: Option<Engine<C>>,
    mailbox: VecDeque<Mail<C>>,
    wakes_at_us: Option<u64>,
    folds_soon: bool,
}

impl<C: Core> Default for Seat<C> {
    fn default() -> Self {
        Self { engine: None, mailbox: VecDeque::new(), wakes_at_us: None, folds_soon: false }
    }
}

/// What the journal's release queue has let out.
enum Released {
    Effects(Effects),
    Answer(ReplyTo, Answer, Seq),
}

#[derive(Debug, Clone)]
pub(crate) enum Effects {
    /// Of actors that owe nothing to anybody.
    None,
    Pool(Vec<(EffectId, eclosion_pool_manager::Effect)>),
    Dag(Vec<(EffectId, eclosion_dag_tracker::Effect)>),
}

/// One life of the kernel.
pub(crate) struct Kernel {
    pub(crate) journal: Arc<Journal>,
    released: Arc<Mutex<Vec<Released>>>,
    pub(crate) artifacts: Seat<Artifacts>,
    pub(crate) arbitration: Seat<Arbitration>,
    pub(crate) pool: Seat<Pool>,
    pub(crate) dag: Seat<DagTracker>,
    bodies: Bodies,
    /// Asks that have not been answered.
    asks: BTreeMap<(Who, EffectId), Effects>,
    pub(crate) reports: BTreeMap<u64, crate::machine::Report>,
    pub(crate) report_tickets: u64,
    arrivals: BTreeMap<(Party, Party), u64>,
    performing: bool,
    pub(crate) writing: usize,
    write_planned: bool,
    syncing: bool,
}

impl Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl Kernel {
    pub(crate) fn new(disk: &Disk) -> Self {
        let reader: Arc<dyn Reader> = Arc::new(disk.clone());
        Self {
            journal: Arc::new(Journal::new(disk.open(), Some(reader))),
            released: Arc::default(),
            artifacts: Seat::default(),
            arbitration: Seat::default(),
            pool: Seat::default(),
            dag: Seat::default(),
            bodies: Bodies::default(),
            asks: BTreeMap::new(),
            reports: BTreeMap::new(),
            report_tickets: 0,
            arrivals: BTreeMap::new(),
            performing: false,
            writing: 0,
            write_planned: false,
            syncing: false,
        }
    }
}

impl World {
    pub(crate) fn kernel_event(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::Arrive(Envelope::Arbitration(mail)) => self.arrive(mail),
            KernelEvent::Arrive(Envelope::Pool(mail)) => self.arrive(mail),
            KernelEvent::Arrive(Envelope::Dag(mail)) => self.arrive(mail),
            KernelEvent::Answered(to, answer) => self.answered(to, answer),
            KernelEvent::Fold(who) | KernelEvent::Wake(who) => match who {
                Who::Artifacts => self.fold::<Artifacts>(),
                Who::Arbitration => self.fold::<Arbitration>(),
                Who::Pool => self.fold::<Pool>(),
                Who::Dag => self.fold::<DagTracker>(),
            },
            KernelEvent::Restart(who) => match who {
                Who::Artifacts => self.begin::<Artifacts>(true),
                Who::Arbitration => self.begin::<Arbitration>(true),
                Who::Pool => self.begin::<Pool>(true),
                Who::Dag => self.begin::<DagTracker>(true),
            },
            KernelEvent::AskAgain(who, id) => {
                let owed = self.kernel.as_ref().and_then(|kernel| kernel.asks.get(&(who, id)));
                if let Some(effects) = owed.cloned() {
                    self.perform(effects);
                }
            }
            KernelEvent::ReportAgain(ticket) => self.send_report(ticket),
            KernelEvent::Run => self.run_phase(),
            KernelEvent::Write => self.write(),
            KernelEvent::Written(count) => self.written(count),
            KernelEvent::Sync => self.sync(),
            KernelEvent::Synced(through) => self.synced(through),
        }
    }

    pub(crate) fn seat<C: Simulated>(&mut self) -> Option<&mut Seat<C>> {
        self.kernel.as_mut().map(C::seat)
    }

    /// Begins an incarnation.
    pub(crate) fn begin<C: Simulated>(&mut self, again: bool) {
        let mut engine = Engine::new(C::core(self));
        let Some(kernel) = &mut self.kernel else { return };
        if let Err(why) = engine.recover(&kernel.journal) {
            return self.fail(format!("{:?} cannot be recovered: {why}", C::WHO));
        }
        C::seat(kernel).engine = Some(engine);
        self.say(|| format!("{:?} begins", C::WHO));
        if C::WHO == Who::Pool {
            self.adopt();
        }
        if again {
            self.perform_again(C::WHO);
        }
        self.fold::<C>();
        self.work::<C>();
    }

    fn run_phase(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        kernel.performing = true;
        self.say(|| "phase run".into());
        self.fold::<Artifacts>();
        self.fold::<Arbitration>();
        self.fold::<Pool>();
        self.fold::<DagTracker>();
    }

    /// A command of its own, as soon as it begins.
    pub(crate) fn own<C: Simulated>(&mut self, command: &C::Command) {
        let reads = self.reads::<C>(Some(command));
        let now = self.now();
        let Some(kernel) = &mut self.kernel else { return };
        let journal = Arc::clone(&kernel.journal);
        let Some(engine) = &mut C::seat(kernel).engine else { return };
        let step = engine.handle(&journal, &reads, command, None, now);
        self.release::<C>(step);
    }

    fn arrive<C: Simulated>(&mut self, mail: Mail<C>) {
        if let Some(seat) = self.seat::<C>() {
            seat.mailbox.push_back(mail);
        }
        self.work::<C>();
    }

    /// Handles what waits, until the mailbox is empty or it panics.
    fn work<C: Simulated>(&mut self) {
        while let Some(seat) = self.seat::<C>()
            && seat.engine.is_some()
            && let Some(mail) = seat.mailbox.pop_front()
        {
            if self.has_faults() && self.rng.per_mille(2) {
                return self.panic_with::<C>(mail);
            }
            self.handle(mail);
        }
    }

    fn handle<C: Simulated>(&mut self, mail: Mail<C>) {
        let reads = self.reads::<C>(Some(&mail.command));
        let now = self.now();
        let Some(kernel) = &mut self.kernel else { return };
        let journal = Arc::clone(&kernel.journal);
        let Some(engine) = &mut C::seat(kernel).engine else { return };
        let mut step = engine.handle(&journal, &reads, &mail.command, mail.cause, now);
        if self.has_faults() && self.rng.per_mille(2) {
            // It was appended, and nobody is told.
            return self.panic_with::<C>(mail);
        }
        let Some(answer) = step.reply.take() else { return };
        let mark = if answer.is_ok() { mail.mark } else { None };
        let depends_on = step.depends_on;
        self.release::<C>(step);
        self.hold_answer(mark, depends_on, mail.reply_to, answer);
        self.release_all();
    }

    fn hold_answer(&mut self, mark: Option<Mark>, seq: Seq, to: ReplyTo, answer: Answer) {
        let mark = match mark {
            Some(Mark::Synced) if self.canary == Some(Canary::ShowBeforeSynced) => None,
            mark => mark,
        };
        let Some(kernel) = &self.kernel else { return };
        let Some(mark) = mark else { return self.answer(to, answer, seq) };
        let released = Arc::clone(&kernel.released);
        kernel.journal.hold(mark, seq, move |reached| {
            let answer = reached.map_err(|lost| lost.error()).and(answer);
            released.lock().unwrap_or_else(PoisonError::into_inner).push(Released::Answer(to, answer, seq));
        });
    }

    /// The message in hand comes once more; after that it is a dead letter, and whoever asked is told.
    fn panic_with<C: Simulated>(&mut self, mut mail: Mail<C>) {
        mail.deliveries += 1;
        if mail.deliveries < 2 {
            if let Some(seat) = self.seat::<C>() {
                seat.mailbox.push_front(mail);
            }
        } else {
            let died = Error::died("actor", "it panicked twice");
            self.answer(mail.reply_to, Err(died), Seq(0));
        }
        self.panic::<C>();
    }

    pub(crate) fn panic<C: Simulated>(&mut self) {
        let Some(seat) = self.seat::<C>() else { return };
        if seat.engine.take().is_some() {
            self.say(|| format!("{:?} panics", C::WHO));
            self.checks.counts.panics += 1;
            let delay_us = self.rng.range(1_000, 60_000);
            self.soon(delay_us, KernelEvent::Restart(C::WHO));
        }
    }

    fn fold<C: Simulated>(&mut self) {
        let (reads, now) = (self.reads::<C>(None), self.now());
        let Some(kernel) = &mut self.kernel else { return };
        let journal = Arc::clone(&kernel.journal);
        let seat = C::seat(kernel);
        (seat.folds_soon, seat.wakes_at_us) = (false, None);
        let Some(engine) = &mut seat.engine else { return };
        let step = engine.fold_new(&journal, &reads, now);
        self.release::<C>(step);
        self.release_all();
    }

    fn reads<C: Simulated>(&mut self, command: Option<&C::Command>) -> Reads {
        let entropy = self.rng.next();
        let disk = self.disk.clone();
        let Some(kernel) = &mut self.kernel else { return Reads::default() };
        let mut reads = Reads::new(kernel.journal.epoch(), entropy);
        let (Some(engine), Some(command)) = (&C::seat(kernel).engine, command) else { return reads };
        for query in engine.core().queries(command) {
            let rows = match &query {
                Query::Get { table, key } => {
                    let value = disk.get(table, key).unwrap_or_default();
                    value.map(|value| (key.clone(), value)).into_iter().collect()
                }
                Query::Scan { table, prefix, newest_first, limit } => {
                    disk.scan(table, prefix, *newest_first, *limit).unwrap_or_default()
                }
            };
            reads.insert(query, rows);
        }
        reads
    }

    /// What a step led to: asks at once and other effects at *written*, others told to fold, the writer woken, the next timer.
    fn release<C: Simulated>(&mut self, step: Step<C::Effect>) {
        let now_us = self.now_us;
        let Some(kernel) = &mut self.kernel else { return };
        let performing = kernel.performing;
        let Some(engine) = &mut C::seat(kernel).engine else { return };
        let wake = engine.wake_at();
        let owed: Vec<EffectId> = engine.outstanding().keys().copied().collect();
        if !performing {
            engine.report_again();
        }
        let appended = !step.records.is_empty();
        if appended {
            let owed: std::collections::BTreeSet<_> = owed.into_iter().collect();
            kernel.asks.retain(|(who, id), _| *who != C::WHO || owed.contains(id));
        }
        let inside = |(_, effect): &(_, C::Effect)| EVERYBODY.iter().any(|who| C::asks(effect, *who));
        let (inside, outside): (Vec<_>, Vec<_>) = step.effects.into_iter().partition(inside);
        if performing && !inside.is_empty() {
            let mut released = kernel.released.lock().unwrap_or_else(PoisonError::into_inner);
            released.push(Released::Effects(C::effects(inside)));
        }
        if performing && !outside.is_empty() {
            let (effects, released) = (C::effects(outside), Arc::clone(&kernel.released));
            kernel.journal.hold(Mark::Written, step.depends_on, move |written| {
                if written.is_ok() {
                    let mut released = released.lock().unwrap_or_else(PoisonError::into_inner);
                    released.push(Released::Effects(effects));
                }
            });
        }
        if let Some(at) = wake {
            let at_us = (at.0 * 1_000).max(now_us + 1_000);
            let seat = C::seat(kernel);
            if seat.wakes_at_us.is_none_or(|planned| planned > at_us) {
                seat.wakes_at_us = Some(at_us);
                self.soon(at_us - now_us, KernelEvent::Wake(C::WHO));
            }
        }
        let own = |record: &&Arc<Record>| C::DECIDES.contains(&&*record.kind);
        let decided: Vec<_> = step.records.iter().filter(own).cloned().collect();
        if !decided.is_empty() {
            self.tell_folders(C::WHO, &decided);
        }
        self.plan_write();
    }

    fn tell_folders(&mut self, by: Who, records: &[Arc<Record>]) {
        for record in records {
            self.say(|| format!("{by:?} decides {record:?}"));
        }
        for who in EVERYBODY {
            let Some(kernel) = &mut self.kernel else { return };
            let soon = match who {
                Who::Artifacts => &mut kernel.artifacts.folds_soon,
                Who::Arbitration => &mut kernel.arbitration.folds_soon,
                Who::Pool => &mut kernel.pool.folds_soon,
                Who::Dag => &mut kernel.dag.folds_soon,
            };
            if who != by && !std::mem::replace(soon, true) {
                let delay_us = self.hop_us();
                self.soon(delay_us, KernelEvent::Fold(who));
            }
        }
    }
}
