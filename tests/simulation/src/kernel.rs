//! The kernel of a simulated world: the real cores, engines and journal, driven as the shell drives them.
//!
//! What is simulated is what stands around them: the bus (each message takes a while, two of one pair keep their order),
//! the asks (repeated until answered or no longer owed, performed again when their target restarts), the writer and the
//! syncer, and supervision (a panic loses the incarnation, not the mailbox; the message in hand comes once more).

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use eclosion_arbitration::Arbitration;
use eclosion_artifact_store::Artifacts;
use eclosion_audit::Audit;
use eclosion_dag_tracker::DagTracker;
use eclosion_dag_tracker::look::Looking;
use eclosion_kernel::core::{Core, Query, Reads};
use eclosion_kernel::engine::{Engine, Step};
use eclosion_kernel::journal::{Journal, Mark, Opened, Reader, Record};
use eclosion_pool_manager::Pool;
use eclosion_pool_manager::state::Bodies;
use eclosion_scheduler::Scheduler;
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::{EffectId, Fence, Payload, Seq, TaskRef, WorkerId};
use eclosion_stale_manager::{Ports, Stale};

use crate::disk::Disk;
use crate::files::Files;
use crate::mutants::Mutant;
use crate::trap::{Point, Trap, Trapped};
use crate::world::{EVERYBODY, Party, Who, World};

mod asks;
mod looks;
mod passes;
mod pipeline;
mod seats;

pub(crate) use asks::is_final;
pub(crate) use seats::Simulated;

/// Calls a method of the world for the core that sits there.
macro_rules! of {
    ($who:expr, $world:ident.$method:ident($($argument:expr),*)) => {
        match $who {
            Who::Artifacts => $world.$method::<Artifacts>($($argument),*),
            Who::Arbitration => $world.$method::<Arbitration>($($argument),*),
            Who::Pool => $world.$method::<Pool>($($argument),*),
            Who::Dag => $world.$method::<DagTracker>($($argument),*),
            Who::Scheduler => $world.$method::<Scheduler>($($argument),*),
            Who::Stale => $world.$method::<Stale>($($argument),*),
            Who::Audit => $world.$method::<Audit>($($argument),*),
        }
    };
}
pub(crate) use of;

/// An actor that is begun again more often than this within that time ends the kernel.
const RESTARTS_MAX: usize = 5;
const RESTARTS_WITHIN_US: u64 = 30_000_000;

/// A reply in its own type, or a refusal.
pub(crate) type Answer = Result<Box<dyn Any + Send>, Error>;

#[derive(Debug)]
pub(crate) enum KernelEvent {
    /// A message is in the mailbox from now on.
    Arrive(Box<dyn Arrive>),
    /// The answer is with whoever asked.
    Answered(ReplyTo, Answer),
    /// Something was appended that it folds.
    Fold(Who),
    Wake(Who),
    Restart(Who),
    AskAgain(Who, EffectId),
    ReportAgain(u64),
    /// The stale manager's hands move something.
    Move(EffectId, eclosion_stale_manager::Effect),
    /// They say again what came of it.
    MovedAgain(eclosion_stale_manager::state::Done),
    /// A pass of retention takes its next step.
    Pass(u64),
    /// What a tick calls has answered.
    Called(EffectId),
    /// Effects are performed from now on.
    Run,
    Write,
    Written(usize),
    Sync,
    Synced(Seq),
    /// The disk was mended: the kernel is started again.
    Mend,
}

/// A message for whichever core.
pub(crate) trait Arrive: Debug {
    fn arrive(self: Box<Self>, world: &mut World);
}

impl<C: Simulated> Arrive for Mail<C> {
    fn arrive(self: Box<Self>, world: &mut World) {
        world.arrive(*self);
    }
}

/// Who waits for the answer.
#[derive(Debug, Clone)]
pub(crate) enum ReplyTo {
    /// An effect that is an ask.
    Effect(Who, EffectId),
    /// The scheduler, whose tick this starts.
    Tick(EffectId),
    /// The DAG tracker, which looks for an earlier result: the entries, then the outputs.
    Found(EffectId),
    Recalled(EffectId, Box<Recalling>),
    /// A pass of retention.
    Pass(u64),
    Moved(eclosion_stale_manager::state::Done),
    Wish(usize),
    /// The pool, for the body of an attempt.
    Body(EffectId, WorkerId, Fence),
    /// A holder, or the builder.
    Report(u64),
    Start(usize),
    Cancel(usize),
    Look(usize),
}

/// Outputs that are asked for one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Recalling {
    looks: Vec<Looking>,
    outputs: VecDeque<TaskRef>,
    payloads: Vec<Option<Payload>>,
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
    pub(crate) engine: Option<Engine<Trapped<C>>>,
    mailbox: VecDeque<Mail<C>>,
    /// Commands of its own.
    own: VecDeque<C::Command>,
    trap: Trap,
    wakes_at_us: Option<u64>,
    folds_soon: bool,
    /// Its supervisor has not begun it again yet.
    restarts_at_us: u64,
}

impl<C: Core> Default for Seat<C> {
    fn default() -> Self {
        Self {
            engine: None,
            mailbox: VecDeque::new(),
            own: VecDeque::new(),
            trap: Trap::default(),
            wakes_at_us: None,
            folds_soon: false,
            restarts_at_us: 0,
        }
    }
}

/// What the journal's release queue has let out.
#[expect(clippy::large_enum_variant, reason = "few at a time, each moved once")]
enum Released {
    Effects(Effects),
    Answer(ReplyTo, Answer, Seq),
    Shown(Seq),
}

#[derive(Debug, Clone)]
pub(crate) enum Effects {
    /// Of actors that owe nothing to anybody.
    None,
    Pool(Vec<(EffectId, eclosion_pool_manager::Effect)>),
    Dag(Vec<(EffectId, eclosion_dag_tracker::Effect)>),
    Scheduler(Vec<(EffectId, eclosion_scheduler::Effect)>),
    Stale(Vec<(EffectId, eclosion_stale_manager::Effect)>),
}

/// One life of the kernel.
pub(crate) struct Kernel {
    pub(crate) journal: Arc<Journal>,
    released: Arc<Mutex<Vec<Released>>>,
    pub(crate) artifacts: Seat<Artifacts>,
    pub(crate) arbitration: Seat<Arbitration>,
    pub(crate) pool: Seat<Pool>,
    pub(crate) dag: Seat<DagTracker>,
    pub(crate) scheduler: Seat<Scheduler>,
    pub(crate) stale: Seat<Stale>,
    pub(crate) audit: Seat<Audit>,
    bodies: Bodies,
    /// Asks that have not been answered.
    asks: BTreeMap<(Who, EffectId), Effects>,
    pub(crate) reports: BTreeMap<u64, crate::machine::Report>,
    pub(crate) report_tickets: u64,
    /// What the stale manager reaches of the machine, what its hands have in hand, and its passes.
    ports: Ports,
    in_hand: std::collections::BTreeSet<EffectId>,
    passes: BTreeMap<u64, passes::Passing>,
    pass_tickets: u64,
    /// When each actor was begun again.
    restarts: VecDeque<(u64, Who)>,
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
    pub(crate) fn new(disk: &Disk, opened: Opened, files: &Files) -> Self {
        let reader: Arc<dyn Reader> = Arc::new(disk.clone());
        let journal = Arc::new(Journal::new(opened, Some(reader)));
        let marks = Arc::clone(&journal);
        Self {
            journal,
            ports: files.ports(disk, move || marks.marks().written),
            in_hand: std::collections::BTreeSet::new(),
            passes: BTreeMap::new(),
            pass_tickets: 0,
            restarts: VecDeque::new(),
            released: Arc::default(),
            artifacts: Seat::default(),
            arbitration: Seat::default(),
            pool: Seat::default(),
            dag: Seat::default(),
            scheduler: Seat::default(),
            stale: Seat::default(),
            audit: Seat::default(),
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
            KernelEvent::Arrive(mail) => mail.arrive(self),
            KernelEvent::Answered(to, answer) => self.answered(to, answer),
            KernelEvent::Fold(who) | KernelEvent::Wake(who) => of!(who, self.fold()),
            KernelEvent::Restart(who) => of!(who, self.restart()),
            KernelEvent::AskAgain(who, id) => {
                let owed = self.kernel.as_ref().and_then(|kernel| kernel.asks.get(&(who, id)));
                if let Some(effects) = owed.cloned() {
                    self.perform(effects);
                }
            }
            KernelEvent::ReportAgain(ticket) => self.send_report(ticket),
            KernelEvent::Move(id, effect) => self.do_move(id, effect),
            KernelEvent::MovedAgain(done) => self.say_moved(done),
            KernelEvent::Pass(pass) => self.pass_goes_on(pass),
            KernelEvent::Called(id) => self.call_answered(id),
            KernelEvent::Run => self.run_phase(),
            KernelEvent::Write => self.write(),
            KernelEvent::Written(count) => self.written(count),
            KernelEvent::Sync => self.sync(),
            KernelEvent::Synced(through) => self.synced(through),
            KernelEvent::Mend => self.end_kernel(),
        }
    }

    pub(crate) fn seat<C: Simulated>(&mut self) -> Option<&mut Seat<C>> {
        self.kernel.as_mut().map(C::seat)
    }

    /// Begins an incarnation.
    pub(crate) fn begin<C: Simulated>(&mut self, again: bool) {
        let forgets = self.forgets(C::WHO);
        let loses = C::WHO == Who::Scheduler && self.has(Mutant::LoseTick);
        let swallows: &[&str] = if loses { &["tick.skipped"] } else { &[] };
        let core = C::core(self);
        let Some(kernel) = &mut self.kernel else { return };
        let trap = C::seat(kernel).trap.clone();
        let mut engine = Engine::new(Trapped { core, trap, forgets, swallows });
        if let Err(why) = engine.recover(&kernel.journal) {
            return self.fail(format!("{:?} cannot be recovered: {why}", C::WHO));
        }
        engine.set_settles(kernel.performing);
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

    fn restart<C: Simulated>(&mut self) {
        let now_us = self.now_us;
        let is_due =
            self.seat::<C>().is_some_and(|seat| seat.engine.is_none() && seat.restarts_at_us <= now_us);
        if is_due {
            self.begin::<C>(true);
        }
    }

    fn run_phase(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        kernel.performing = true;
        self.say(|| "phase run".into());
        for who in EVERYBODY {
            of!(who, self.performs());
        }
    }

    fn performs<C: Simulated>(&mut self) {
        if let Some(engine) = self.seat::<C>().and_then(|seat| seat.engine.as_mut()) {
            engine.set_settles(true);
        }
        self.fold::<C>();
    }

    /// A command of its own; the next incarnation takes it if this one is gone.
    pub(crate) fn own<C: Simulated>(&mut self, command: C::Command) {
        if let Some(seat) = self.seat::<C>() {
            seat.own.push_back(command);
        }
        self.work::<C>();
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
        {
            if let Some(mail) = seat.mailbox.pop_front() {
                self.handle(mail);
            } else if let Some(command) = seat.own.pop_front() {
                self.handle_own::<C>(&command);
            } else {
                return;
            }
        }
    }

    pub(crate) fn handle_own<C: Simulated>(&mut self, command: &C::Command) {
        let reads = self.reads::<C>(Some(command));
        let now = self.now();
        let Some(kernel) = &mut self.kernel else { return };
        let journal = Arc::clone(&kernel.journal);
        let Some(engine) = &mut C::seat(kernel).engine else { return };
        let step = engine.handle(&journal, &reads, command, None, now);
        self.release::<C>(step);
        self.release_all();
    }

    fn handle<C: Simulated>(&mut self, mail: Mail<C>) {
        let reads = self.reads::<C>(Some(&mail.command));
        let now = self.now();
        let point = if self.has_faults() && self.rng.per_mille(self.panics_per_mille) {
            self.rng.pick(&Point::ALL).copied()
        } else {
            None
        };
        let Some(kernel) = &mut self.kernel else { return };
        let journal = Arc::clone(&kernel.journal);
        let seat = C::seat(kernel);
        let trap = seat.trap.clone();
        let Some(engine) = &mut seat.engine else { return };
        if let Some(point) = point {
            trap.arm(point, 1);
        }
        let handling = || engine.handle(&journal, &reads, &mail.command, mail.cause, now);
        let handled = catch_unwind(AssertUnwindSafe(handling));
        trap.disarm();
        let mut step = match (handled, point) {
            (Ok(step), _) => step,
            (Err(_), Some(point)) => {
                *self.checks.counts.points.entry((C::WHO, point)).or_default() += 1;
                return self.panic_with::<C>(mail);
            }
            (Err(panic), None) => return self.fail(format!("{:?} panics: {}", C::WHO, words(&*panic))),
        };
        let Some(answer) = step.reply.take() else { return };
        let mark = if answer.is_ok() { mail.mark } else { None };
        let depends_on = step.depends_on;
        self.release::<C>(step);
        self.hold_answer(mark, depends_on, mail.reply_to, answer);
        self.release_all();
    }

    fn hold_answer(&mut self, mark: Option<Mark>, seq: Seq, to: ReplyTo, answer: Answer) {
        let mark = match mark {
            Some(Mark::Synced) if self.has(Mutant::AckBeforeSync) => None,
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
            self.checks.counts.dead_letters += 1;
            let died = Error::died("actor", "it panicked twice");
            self.answer(mail.reply_to, Err(died), Seq(0));
        }
        // What it has appended is appended: the writer and those who fold it were woken by that.
        self.tell_folders(C::WHO, &[]);
        self.plan_write();
        if !self.has(Mutant::KeepStateAcrossPanic) {
            self.panic::<C>();
        }
    }

    pub(crate) fn panic<C: Simulated>(&mut self) {
        let delay_us = self.rng.range(1_000, 60_000);
        self.end_incarnation::<C>(delay_us);
    }

    /// It is gone, and begun again after this; unless it has been too often of late, which ends the kernel.
    pub(crate) fn end_incarnation<C: Simulated>(&mut self, delay_us: u64) {
        let now_us = self.now_us;
        let Some(seat) = self.seat::<C>() else { return };
        if seat.engine.take().is_none() {
            return;
        }
        seat.restarts_at_us = now_us + delay_us;
        self.say(|| format!("{:?} panics", C::WHO));
        self.checks.counts.panics += 1;
        self.soon(delay_us, KernelEvent::Restart(C::WHO));
        let Some(kernel) = &mut self.kernel else { return };
        let since_us = now_us.saturating_sub(RESTARTS_WITHIN_US);
        kernel.restarts.retain(|(at_us, _)| *at_us >= since_us);
        kernel.restarts.push_back((now_us, C::WHO));
        if kernel.restarts.iter().filter(|(_, who)| *who == C::WHO).count() > RESTARTS_MAX {
            self.checks.counts.escalations += 1;
            self.say(|| format!("{:?} panics too often", C::WHO));
            self.end_kernel();
        }
    }

    pub(crate) fn fold<C: Simulated>(&mut self) {
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
        let (now_us, now) = (self.now_us, self.now());
        let early = self.has(Mutant::DispatchBeforeWritten)
            || C::WHO == Who::Stale && self.has(Mutant::TrashWithoutRecord);
        let Some(kernel) = &mut self.kernel else { return };
        let performing = kernel.performing;
        let Some(engine) = &mut C::seat(kernel).engine else { return };
        let wake = engine.wake_at();
        if !performing {
            engine.report_again();
        }
        if !step.records.is_empty() {
            let owed = engine.outstanding().clone();
            kernel.asks.retain(|(who, id), _| *who != C::WHO || owed.contains_key(id));
        }
        let inside = |(_, effect): &(_, C::Effect)| early || C::stays_inside(effect);
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
            let at_us = now_us + (at.since_ms(now) * 1_000).max(1_000);
            let seat = C::seat(kernel);
            if seat.wakes_at_us.is_none_or(|planned| planned > at_us) {
                seat.wakes_at_us = Some(at_us);
                self.soon(at_us - now_us, KernelEvent::Wake(C::WHO));
            }
        }
        let own = |record: &&Arc<Record>| C::DECIDES.contains(&&*record.kind);
        let decided: Vec<_> = step.records.iter().filter(own).cloned().collect();
        if !decided.is_empty() {
            self.notice(&decided);
            self.tell_folders(C::WHO, &decided);
        }
        self.plan_write();
    }

    /// What subscribers are shown, each at *synced*: the ends of runs.
    fn notice(&mut self, decided: &[Arc<Record>]) {
        let early = self.has(Mutant::PublishBeforeSynced);
        for record in decided.iter().filter(|record| &*record.kind == "run.finished") {
            let Some(kernel) = &self.kernel else { return };
            let (seq, released) = (record.seq, Arc::clone(&kernel.released));
            let mark = if early { Mark::Written } else { Mark::Synced };
            kernel.journal.hold(mark, seq, move |reached| {
                if reached.is_ok() {
                    released.lock().unwrap_or_else(PoisonError::into_inner).push(Released::Shown(seq));
                }
            });
        }
    }

    fn tell_folders(&mut self, by: Who, records: &[Arc<Record>]) {
        for record in records {
            self.say(|| format!("{by:?} decides {record:?}{}", item_of(record)));
        }
        for who in EVERYBODY {
            let Some(kernel) = &mut self.kernel else { return };
            let soon = of!(who, kernel.folds_soon());
            if who != by && !std::mem::replace(soon, true) {
                let delay_us = self.hop_us();
                self.soon(delay_us, KernelEvent::Fold(who));
            }
        }
    }
}

impl Kernel {
    pub(crate) fn is_performing(&self) -> bool {
        self.performing
    }

    fn folds_soon<C: Simulated>(&mut self) -> &mut bool {
        &mut C::seat(self).folds_soon
    }
}

/// What a record of retention is about; the others name it in what follows them.
fn item_of(record: &Record) -> String {
    use eclosion_schemas::events::{GcCollected, GcMoved, GcPurging, GcRestored, GcRestoring};
    let item = record.event::<GcCollected>().map(|event| event.item.clone());
    let item = item.or_else(|| record.event::<GcPurging>().map(|event| event.item.clone()));
    let item = item.or_else(|| record.event::<GcRestoring>().map(|event| event.item.clone()));
    let item = item.or_else(|| record.event::<GcRestored>().map(|event| event.item.clone()));
    let moved = record.event::<GcMoved>().map(|event| format!(" {} {:?}", event.item, event.outcome));
    item.map(|item| format!(" {item}")).or(moved).unwrap_or_default()
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
