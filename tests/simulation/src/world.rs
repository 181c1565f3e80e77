//! The world of one seed: virtual time, what happens next, and everybody in it.
//!
//! Nothing waits and nothing runs at the same time: what will happen stands in one queue, ordered by its time, and each
//! event is played to its end. Everything by chance is drawn from one generator, in that order.

use std::collections::{BTreeMap, VecDeque};

use eclosion_kernel::journal::Projection;
use eclosion_schemas::{Digest, Fence, Part, Payload, Timestamp, WorkerId};

use crate::checks::Checks;
use crate::client::{Client, ClientEvent};
use crate::disk::Disk;
use crate::faults::{Fault, Nemesis};
use crate::files::{Files, Forgets};
use crate::jobs::Job;
use crate::kernel::{Kernel, KernelEvent};
use crate::machine::{Machine, MachineEvent};
use crate::mutants::Mutant;
use crate::operator::Operator;
use crate::rng::Rng;
use crate::trap::Point;

/// Faults happen before this; afterwards everything must come to its end.
pub(crate) const FAULTS_UNTIL_US: u64 = 6_000_000;
/// By then every run has ended.
pub(crate) const END_US: u64 = FAULTS_UNTIL_US + 180_000_000;
/// More than any world needs: a loop without progress is found by it.
const EVENTS_MAX: u64 = 2_000_000;
/// Lines of what happened last that a failure shows.
const TRACE_MAX: usize = 400;
/// What time it is when a world begins: so late that clocks can be put back by years.
const WALL_START_MS: u64 = 1_000_000_000_000;

/// What derives rows, as in a kernel with all of them.
pub(crate) const PROJECTIONS: [Projection; 5] = [
    eclosion_dag_tracker::project,
    eclosion_artifact_store::project,
    eclosion_scheduler::project,
    eclosion_stale_manager::project,
    eclosion_audit::project,
];

#[derive(Debug)]
pub(crate) enum Event {
    /// Of one life of the kernel; nothing, once that is over.
    Kernel(u64, Box<KernelEvent>),
    Machine(MachineEvent),
    Client(ClientEvent),
    /// The operator asks for something, again.
    Operator(usize),
    Fault(Fault),
    CheckDue,
}

/// Who sends, and who receives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    Actor(Who),
    Holder(WorkerId),
    Builder,
    Client(usize),
    Operator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Artifacts,
    Arbitration,
    Pool,
    Dag,
    Scheduler,
    Stale,
    Audit,
}

pub const EVERYBODY: [Who; 7] =
    [Who::Artifacts, Who::Arbitration, Who::Pool, Who::Dag, Who::Scheduler, Who::Stale, Who::Audit];

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now_us: u64,
    mutant: Option<Mutant>,
    pub(crate) nemesis: Nemesis,
    /// How much the machine's clock was put forward or back.
    pub(crate) skew_ms: i64,
    /// Of the messages that are handled, so many lead to a panic.
    pub(crate) panics_per_mille: u64,
    events: BTreeMap<(u64, u64), Event>,
    tickets: u64,
    pub(crate) disk: Disk,
    pub(crate) files: Files,
    pub(crate) kernel: Option<Kernel>,
    /// How many kernels have begun.
    pub(crate) life: u64,
    pub(crate) machine: Machine,
    pub(crate) client: Client,
    pub(crate) operator: Operator,
    pub(crate) checks: Checks,
    trace: VecDeque<String>,
    failure: Option<String>,
}

/// What was played, when nothing was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub records: usize,
    pub runs: usize,
    pub commits: usize,
    pub starts: usize,
    pub kernels_killed: u64,
    pub power_cuts: u64,
    pub panics: u64,
    pub workers_killed: u64,
    pub adopted: u64,
    /// Attempts given to a worker behind another.
    pub ahead: u64,
    /// Of those, such as were given back because the other took long.
    pub returned: u64,
    /// Panics at each point of each actor, while it handled a message.
    pub points: BTreeMap<(Who, Point), u64>,
    pub dead_letters: u64,
    /// Actors that panicked too often, which ended the kernel.
    pub escalations: u64,
    /// Worlds by what they were tried by, beside single faults.
    pub nemeses: BTreeMap<String, u64>,
    /// Writes and syncs that the disk has refused, by what it said: each ends a kernel's life.
    pub disk_errors: BTreeMap<String, u64>,
    /// Records and files that a power cut has torn, records that it has lost, and files whose names it has lost.
    pub torn: u64,
    pub missing: u64,
    pub nameless: u64,
    /// Kernels that ended before they performed anything.
    pub died_in_recovery: u64,
    pub clock_jumps: u64,
    /// Looks for earlier results, and how many were found.
    pub looks: u64,
    pub reused: u64,
    /// Results that were to be kept, and whose code was edited meanwhile.
    pub unkept: u64,
    pub ticks_fired: u64,
    pub ticks_skipped: u64,
    pub passes: u64,
    pub collected: u64,
    pub purged: u64,
    pub restored: u64,
    /// Moves on the disk that retention has led to.
    pub moves: u64,
    pub acts: u64,
}

/// What was found, with what happened before it.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub at_us: u64,
    pub text: String,
    pub trace: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        let Failure { seed, at_us, text, .. } = self;
        write!(
            f,
            "seed {seed} at {at_us} us: {text}\nrepeat it with SIM_SEED={seed} cargo test -p eclosion-simulation --test sim keeps_every"
        )
    }
}

/// Plays one seed to its end.
///
/// # Errors
/// The first promise that was broken.
pub fn play(seed: u64, mutant: Option<Mutant>) -> Result<Report, Failure> {
    let mut world = World::new(seed, mutant);
    match world.play() {
        Ok(()) => Ok(world.report()),
        Err(text) => {
            Err(Failure { seed, at_us: world.now_us, text, trace: world.trace.into_iter().collect() })
        }
    }
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut rng = Rng::new(seed);
        let jobs = rng.range(1, 7);
        let jobs: Vec<Job> = (0..jobs)
            .map(|number| Job::random(&mut rng, usize::try_from(number).unwrap(), FAULTS_UNTIL_US).unwrap())
            .collect();
        let disk = Disk::new(PROJECTIONS.to_vec(), mutant);
        let nemesis = Nemesis::random(&mut rng);
        let mut world = Self {
            rng,
            now_us: 0,
            mutant,
            nemesis,
            skew_ms: 0,
            panics_per_mille: 3,
            events: BTreeMap::new(),
            tickets: 0,
            disk,
            files: Files::default(),
            kernel: None,
            life: 0,
            machine: Machine::default(),
            client: Client::new(jobs),
            operator: Operator::default(),
            checks: Checks::default(),
            trace: VecDeque::new(),
            failure: None,
        };
        world.files.forget(match mutant {
            Some(Mutant::SkipFileSync) => Forgets::Bytes,
            Some(Mutant::SkipDirectorySync) => Forgets::Entries,
            Some(Mutant::SealOverSynced) => Forgets::Replaced,
            _ => Forgets::Nothing,
        });
        world.plan_faults();
        world.plan_clients();
        world.plan_operator();
        world.after(FAULTS_UNTIL_US + 1_950_000, Event::CheckDue);
        if mutant == Some(Mutant::LeaseByWallClock) {
            world.after(500_000, Event::Fault(Fault::ExpireLeases));
        }
        world.after(0, Event::Fault(Fault::Boot));
        world
    }

    fn play(&mut self) -> Result<(), String> {
        let mut played = 0;
        while let Some(((at_us, _), event)) = self.events.pop_first() {
            self.now_us = at_us;
            self.files.set_now(self.now());
            played += 1;
            if at_us > END_US || self.is_over() {
                break;
            }
            if played > EVENTS_MAX {
                return Err("it goes round without end".into());
            }
            match event {
                Event::Kernel(life, event) => {
                    if life == self.life && self.kernel.is_some() {
                        self.kernel_event(*event);
                    }
                }
                Event::Machine(event) => self.machine_event(event),
                Event::Client(event) => self.client_event(event),
                Event::Operator(wish) => self.operate(wish),
                Event::Fault(fault) => self.strike(fault),
                Event::CheckDue => self.check_due(),
            }
            if let Some(text) = self.failure.take() {
                return Err(text);
            }
        }
        self.check_end()
    }

    /// Faults are over, and every client has seen the end of its run.
    fn is_over(&self) -> bool {
        let is_late = self.now_us > FAULTS_UNTIL_US + 5_000_000;
        is_late && self.client.is_satisfied() && self.operator.is_satisfied()
    }

    pub(crate) fn now(&self) -> Timestamp {
        let ms = WALL_START_MS + self.now_us / 1_000;
        Timestamp(ms.saturating_add_signed(self.skew_ms))
    }

    /// Whether this mistake is made on purpose.
    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The kinds of records that an actor does not fold, on purpose.
    pub(crate) fn forgets(&self, who: Who) -> &'static [&'static str] {
        match (self.mutant, who) {
            (Some(Mutant::CollectPinned), Who::Stale) => &["artifact.pinned", "artifact.tagged"],
            (Some(Mutant::CommitCancelled), Who::Dag) => &["run.cancelling"],
            (Some(Mutant::TickAgain), Who::Scheduler) => &["tick.skipped"],
            _ => &[],
        }
    }

    pub(crate) fn has_faults(&self) -> bool {
        self.now_us < FAULTS_UNTIL_US
    }

    pub(crate) fn after(&mut self, delay_us: u64, event: Event) {
        self.tickets += 1;
        self.events.insert((self.now_us + delay_us, self.tickets), event);
    }

    /// In this life of the kernel.
    pub(crate) fn soon(&mut self, delay_us: u64, event: KernelEvent) {
        self.after(delay_us, Event::Kernel(self.life, Box::new(event)));
    }

    /// Mostly short, now and then long.
    pub(crate) fn hop_us(&mut self) -> u64 {
        match self.rng.range(0, 20) {
            0 => self.rng.range(1_000, 30_000),
            1..=4 => self.rng.range(100, 2_000),
            _ => self.rng.range(1, 100),
        }
    }

    /// The first failure is what is told.
    pub(crate) fn fail(&mut self, text: impl Into<String>) {
        if self.failure.is_none() {
            self.failure = Some(text.into());
        }
    }

    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        let line = format!("{:>10} {}", self.now_us, line());
        self.trace.push_back(line);
    }

    fn report(&self) -> Report {
        let counts = &self.checks.counts;
        Report { records: self.disk.records().len(), runs: self.client.started(), ..counts.clone() }
    }
}

/// The name of an output says which attempt made it. Some have a file: one of contents that many share, or one of its own.
pub(crate) fn output_of(task: &str, fence: Fence, version: u32) -> Payload {
    let mut output = Payload::of(&format!("{task}@{fence}#{version}"));
    let name = task.split('[').next().unwrap_or_default();
    let content = match name.bytes().map(u64::from).sum::<u64>() % 3 {
        0 => Some(name.to_owned()),
        1 => Some(format!("{task}@{fence}#{version}")),
        _ => None,
    };
    output.parts.extend(content.and_then(|content| {
        let digest = Digest::new(blake3::hash(content.as_bytes()).to_hex().as_str()).ok()?;
        Some(Part { digest: Some(digest), bytes: 1_000, codec: "bytes".into(), ..Part::default() })
    }));
    output
}

fn add<K: Ord + Clone>(sum: &mut BTreeMap<K, u64>, other: &BTreeMap<K, u64>) {
    for (key, count) in other {
        *sum.entry(key.clone()).or_default() += count;
    }
}

impl Report {
    /// Of two worlds together.
    pub fn add(&mut self, other: &Self) {
        macro_rules! sum {
            ($($field:ident),*) => { $(self.$field += other.$field;)* };
        }
        sum!(
            records,
            runs,
            commits,
            starts,
            kernels_killed,
            power_cuts,
            panics,
            workers_killed,
            adopted,
            ahead
        );
        sum!(
            returned,
            dead_letters,
            escalations,
            torn,
            missing,
            nameless,
            died_in_recovery,
            clock_jumps,
            looks,
            reused,
            unkept
        );
        sum!(ticks_fired, ticks_skipped, passes, collected, purged, restored, moves, acts);
        add(&mut self.points, &other.points);
        add(&mut self.nemeses, &other.nemeses);
        add(&mut self.disk_errors, &other.disk_errors);
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { runs, records, commits, starts, adopted, ahead, returned, .. } = self;
        writeln!(
            f,
            "runs {runs}, records {records}, commits {commits}, starts {starts}, adopted {adopted}, ahead {ahead} ({returned} returned)"
        )?;
        let Self { kernels_killed, died_in_recovery, power_cuts, clock_jumps, workers_killed, .. } = self;
        writeln!(
            f,
            "kernels killed {kernels_killed} ({died_in_recovery} in recovery), clock jumps {clock_jumps}, workers killed {workers_killed}"
        )?;
        let Self { torn, missing, nameless, disk_errors, nemeses, .. } = self;
        writeln!(
            f,
            "power cuts {power_cuts}: torn {torn}, missing {missing}, names lost {nameless}; refused {disk_errors:?}; worlds {nemeses:?}"
        )?;
        let Self { panics, dead_letters, escalations, points, .. } = self;
        writeln!(
            f,
            "panics {panics}, dead letters {dead_letters}, escalations {escalations}, at the points of a message {}",
            points.values().sum::<u64>()
        )?;
        let Self { looks, reused, unkept, ticks_fired, ticks_skipped, acts, .. } = self;
        writeln!(
            f,
            "looks {looks} ({reused} found, {unkept} computed and not kept), ticks {ticks_fired} fired, {ticks_skipped} skipped, acts {acts}"
        )?;
        let Self { passes, collected, purged, restored, moves, .. } = self;
        write!(
            f,
            "passes {passes}, collected {collected}, purged {purged}, restored {restored}, moves {moves}"
        )
    }
}
