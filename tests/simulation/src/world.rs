//! The world of one seed: virtual time, what happens next, and everybody in it.
//!
//! Nothing waits and nothing runs at the same time: what will happen stands in one queue, ordered by its time, and each
//! event is played to its end. Everything by chance is drawn from one generator, in that order.

use std::collections::{BTreeMap, VecDeque};

use eclosion_schemas::{Fence, Timestamp, WorkerId};

use crate::checks::Checks;
use crate::client::{Client, ClientEvent};
use crate::disk::Disk;
use crate::faults::Fault;
use crate::jobs::Job;
use crate::kernel::{Kernel, KernelEvent};
use crate::machine::{Machine, MachineEvent};
use crate::rng::Rng;

/// Faults happen before this; afterwards everything must come to its end.
pub(crate) const FAULTS_UNTIL_US: u64 = 6_000_000;
/// By then every run has ended.
pub(crate) const END_US: u64 = FAULTS_UNTIL_US + 180_000_000;
/// More than any world needs: a loop without progress is found by it.
const EVENTS_MAX: u64 = 2_000_000;
/// Lines of what happened last that a failure shows.
const TRACE_MAX: usize = 400;

/// A mistake that is made on purpose, to see it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canary {
    /// A result under an old fence is committed as if it were the current attempt's.
    AcceptStaleFence,
    /// What a client is shown does not wait for the disk.
    ShowBeforeSynced,
    /// Arbitration believes that there is twice as much as there is.
    GrantTwice,
    /// A wish that comes again is another wish.
    ForgetWish,
}

#[derive(Debug)]
pub(crate) enum Event {
    /// Of one life of the kernel; nothing, once that is over.
    Kernel(u64, Box<KernelEvent>),
    Machine(MachineEvent),
    Client(ClientEvent),
    Fault(Fault),
}

/// Who sends, and who receives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    Actor(Who),
    Holder(WorkerId),
    Builder,
    Client(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Artifacts,
    Arbitration,
    Pool,
    Dag,
}

pub(crate) const EVERYBODY: [Who; 4] = [Who::Artifacts, Who::Arbitration, Who::Pool, Who::Dag];

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now_us: u64,
    pub(crate) canary: Option<Canary>,
    events: BTreeMap<(u64, u64), Event>,
    tickets: u64,
    pub(crate) disk: Disk,
    pub(crate) kernel: Option<Kernel>,
    /// How many kernels have begun.
    pub(crate) life: u64,
    pub(crate) machine: Machine,
    pub(crate) client: Client,
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
        write!(f, "seed {seed} at {at_us} us: {text}\nrepeat it with SIM_SEED={seed}")
    }
}

/// Plays one seed to its end.
///
/// # Errors
/// The first promise that was broken.
pub fn play(seed: u64, canary: Option<Canary>) -> Result<Report, Failure> {
    let mut world = World::new(seed, canary);
    match world.play() {
        Ok(()) => Ok(world.report()),
        Err(text) => {
            Err(Failure { seed, at_us: world.now_us, text, trace: world.trace.into_iter().collect() })
        }
    }
}

impl World {
    fn new(seed: u64, canary: Option<Canary>) -> Self {
        let mut rng = Rng::new(seed);
        let jobs = rng.range(1, 7);
        let jobs: Vec<Job> = (0..jobs)
            .map(|number| Job::random(&mut rng, usize::try_from(number).unwrap(), FAULTS_UNTIL_US).unwrap())
            .collect();
        let disk = Disk::new(vec![eclosion_dag_tracker::project, eclosion_artifact_store::project]);
        let mut world = Self {
            rng,
            now_us: 0,
            canary,
            events: BTreeMap::new(),
            tickets: 0,
            disk,
            kernel: None,
            life: 0,
            machine: Machine::default(),
            client: Client::new(jobs),
            checks: Checks::default(),
            trace: VecDeque::new(),
            failure: None,
        };
        world.plan_faults();
        world.plan_clients();
        world.after(0, Event::Fault(Fault::Boot));
        world
    }

    fn play(&mut self) -> Result<(), String> {
        let mut played = 0;
        while let Some(((at_us, _), event)) = self.events.pop_first() {
            self.now_us = at_us;
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
                Event::Fault(fault) => self.strike(fault),
            }
            if let Some(text) = self.failure.take() {
                return Err(text);
            }
        }
        self.check_end()
    }

    /// Faults are over, and every client has seen the end of its run.
    fn is_over(&self) -> bool {
        self.now_us > FAULTS_UNTIL_US + 5_000_000 && self.client.is_satisfied()
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.now_us / 1_000)
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

/// The name of an output says which attempt made it.
pub(crate) fn output_of(task: &str, fence: Fence, version: u32) -> eclosion_schemas::Payload {
    eclosion_schemas::Payload::of(&format!("{task}@{fence}#{version}"))
}
