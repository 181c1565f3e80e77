//! The machine of a simulated world: worker processes, which outlive a kernel, and their holders, which do not.
//!
//! A process computes one attempt after the other, keeps each outcome until it was told that it is safe, and may crash,
//! hang, raise, be killed, or commit twice. What waits behind an attempt that takes long its holder gives back. Its holder reports to the kernel until it is answered; after a kernel was killed,
//! the next one's holders find the processes that still live.
//!
//! The ledger is the processes' own and knows nothing of the journal: every start of an attempt, and every reason for
//! which an attempt may have to be started again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use eclosion_pool_manager::{AHEAD_PATIENCE_MS, Command as PoolCommand, Pool};
use eclosion_schemas::certificate::Death;
use eclosion_schemas::error::{Code, Error, Retry};
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::gc::{Item, ItemKind};
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{EnvironmentId, Fence, ItemId, TaskRef, WorkerId};

use crate::code::label;
use crate::files;
use crate::jobs::{QUICK, UNRESOLVABLE};
use crate::world::{Event, Party, World, output_of};

mod reports;

pub(crate) use reports::Report;
use reports::{ReportKind, commit};

#[derive(Debug)]
pub(crate) enum MachineEvent {
    Up(WorkerId, u64),
    Computed(WorkerId, u64, Fence, Ending),
    Exit(WorkerId, u64, Death),
    /// The attempt that was computed then may have taken long.
    Patience(WorkerId, u64, Fence),
    /// The ladder has come to an end.
    Cancelled(WorkerId, u64, Fence),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Good,
    Raises,
    Crashes,
    /// Commits, and commits again something else, and under a fence that is not its own.
    Lies,
}

#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) processes: BTreeMap<WorkerId, Process>,
    births: u64,
    /// Attempts that were not to have a result, whatever the kernel makes of them.
    pub(crate) excused: BTreeMap<TaskRef, BTreeSet<Fence>>,
    pub(crate) starts: BTreeMap<TaskRef, Vec<Fence>>,
    /// Attempts that computed by an edited file.
    pub(crate) by_edited: BTreeSet<Fence>,
}

#[derive(Debug)]
pub(crate) struct Process {
    /// Another number for every process, so that what was planned for one does not meet another.
    birth: u64,
    booting: bool,
    /// What it was given or told to cancel, as its holder knows.
    known: BTreeSet<Fence>,
    pub(crate) current: Option<Execute>,
    waiting: VecDeque<Execute>,
    /// What it has computed, until a call says that it is safe.
    outcomes: Vec<Kept>,
    stopping: bool,
    /// The code that its holder has told it last, and when.
    pub(crate) told: Option<(String, u64)>,
    /// What it has imported: under which text, and whether that was an edited file.
    pub(crate) imported: Option<(String, bool)>,
}

#[derive(Debug, Clone)]
struct Kept {
    execute: Execute,
    outcome: Outcome,
    safe: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Commit { version: u32 },
    Fail(Error),
}

impl Process {
    fn task(execute: &Execute) -> TaskRef {
        TaskRef::new(execute.run.clone(), execute.task.clone())
    }

    /// Every task that it knows something of.
    fn tasks(&self) -> Vec<(TaskRef, Fence)> {
        let outcome = self.outcomes.iter().map(|kept| &kept.execute);
        let all = self.current.iter().chain(&self.waiting).chain(outcome);
        all.map(|execute| (Self::task(execute), execute.fence)).collect()
    }
}

/// A thing on the disk that is called by its owner.
pub(crate) fn item(kind: ItemKind, name: &str) -> Item {
    Item::new(kind, ItemId::new(name).unwrap())
}

/// The launcher and the builder.
impl World {
    pub(crate) fn build(&mut self, environment: &EnvironmentId, spec: &EnvironmentSpec) {
        let fails = spec.requirements.iter().any(|requirement| requirement == UNRESOLVABLE);
        let built = match fails {
            true => Err(Error::invalid("environment.resolve", "no matching distribution found")),
            false => Ok(format!("{}/bin/python", files::environment_path(environment.as_str()))),
        };
        let report = Report { from: Party::Builder, kind: ReportKind::Built(environment.clone(), built) };
        let takes_us = self.rng.range(1_000, 300_000);
        self.report_after(takes_us, report);
    }

    pub(crate) fn launch(&mut self, worker: &WorkerId, environment: &EnvironmentId) {
        if self.machine.processes.contains_key(worker) {
            return;
        }
        self.machine.births += 1;
        let birth = self.machine.births;
        let process = Process {
            birth,
            booting: true,
            known: BTreeSet::new(),
            current: None,
            waiting: VecDeque::new(),
            outcomes: Vec::new(),
            stopping: false,
            told: None,
            imported: None,
        };
        self.machine.processes.insert(worker.clone(), process);
        let takes_us = self.rng.range(2_000, 40_000);
        let is_gone = !self.files.holds(&item(ItemKind::Environment, environment.as_str()));
        let fails = is_gone || self.has_faults() && self.rng.per_mille(40);
        for kind in [ItemKind::Log, ItemKind::Scratch] {
            self.files.put(item(kind, worker.as_str()), 100, Vec::new());
        }
        self.after(
            takes_us,
            Event::Machine(match fails {
                true => {
                    MachineEvent::Exit(worker.clone(), birth, Death::Start { text: "no such file".into() })
                }
                false => MachineEvent::Up(worker.clone(), birth),
            }),
        );
    }

    pub(crate) fn execute(&mut self, worker: &WorkerId, mut execute: Execute) {
        let now_ms = self.now_ms();
        let Some(process) = self.machine.processes.get_mut(worker) else { return };
        if !process.known.insert(execute.fence) {
            return;
        }
        let hash = std::mem::take(&mut execute.code_hash);
        let told = process.told.take_if(|(known, _)| *known == hash).unwrap_or((hash, now_ms));
        execute.code_hash = label(&told.0, told.1);
        process.told = Some(told);
        process.outcomes.retain(|kept| !kept.safe);
        process.waiting.push_back(execute);
        if let Some(current) = &process.current {
            let patience = MachineEvent::Patience(worker.clone(), process.birth, current.fence);
            self.checks.counts.ahead += 1;
            self.after(AHEAD_PATIENCE_MS * 1_000, Event::Machine(patience));
        }
        self.compute_next(worker);
    }

    fn compute_next(&mut self, worker: &WorkerId) {
        let Some(process) = self.machine.processes.get_mut(worker) else { return };
        if process.current.is_some() {
            return;
        }
        let birth = process.birth;
        let Some(execute) = process.waiting.pop_front() else {
            if process.stopping {
                self.exit_soon(worker, birth, Death::Exited { code: 0 });
            }
            return;
        };
        process.current = Some(execute.clone());
        let task = Process::task(&execute);
        self.machine.starts.entry(task.clone()).or_default().push(execute.fence);
        self.say(|| format!("{worker} starts {task} under {}", execute.fence));
        self.import(worker, &execute);
        self.check_start(&execute);
        let whole = self.check_inputs(&execute);
        self.files.touch(&item(ItemKind::Log, worker.as_str()), Some(&execute.run));
        let chance = self.rng.range(0, 10)
            + if execute.function == QUICK { 4 * u64::from(self.rng.per_mille(930)) } else { 0 };
        let takes_us = match chance {
            0 => self.rng.range(100_000, 2_500_000),
            1..=3 => self.rng.range(1_000, 100_000),
            _ => self.rng.range(10, 1_000),
        };
        let ending = match self.rng.range(0, 1_000) {
            _ if !whole => Ending::Raises,
            _ if !self.has_faults() => Ending::Good,
            0..50 => Ending::Raises,
            50..80 => Ending::Crashes,
            80..120 => Ending::Lies,
            120..160 if execute.timeout_ms.is_some() => return,
            _ => Ending::Good,
        };
        let computed = MachineEvent::Computed(worker.clone(), birth, execute.fence, ending);
        self.after(takes_us, Event::Machine(computed));
    }

    pub(crate) fn cancel(&mut self, worker: &WorkerId, fence: Fence) {
        let Some(process) = self.machine.processes.get_mut(worker) else { return };
        process.known.insert(fence);
        let mut computing = process.current.iter().chain(&process.waiting);
        let computing = computing.find(|execute| execute.fence == fence).cloned();
        let computed =
            process.outcomes.iter().map(|kept| &kept.execute).find(|execute| execute.fence == fence);
        if let Some(execute) = computing {
            self.check_cancel(&execute);
            self.machine.excuse(Process::task(&execute), fence);
        } else if let Some(execute) = computed.cloned()
            && self.may_cancel(&execute)
        {
            self.machine.excuse(Process::task(&execute), fence);
        }
        let Some(process) = self.machine.processes.get_mut(worker) else { return };
        process.waiting.retain(|execute| execute.fence != fence);
        let birth = process.birth;
        if process.current.as_ref().is_some_and(|execute| execute.fence == fence) {
            let takes_us = self.rng.range(100, 700_000);
            let cancelled = MachineEvent::Cancelled(worker.clone(), birth, fence);
            return self.after(takes_us, Event::Machine(cancelled));
        }
        let report =
            Report { from: Party::Holder(worker.clone()), kind: ReportKind::Idle(worker.clone(), fence) };
        self.report_after(0, report);
    }

    pub(crate) fn stop(&mut self, worker: &WorkerId) {
        if let Some(process) = self.machine.processes.get_mut(worker) {
            process.stopping = true;
            self.compute_next(worker);
        }
    }

    pub(crate) fn kill(&mut self, worker: &WorkerId) {
        self.end_process(worker, Death::Killed { signal: 9, sender: Some("eclosion: killed".into()) });
    }

    fn exit_soon(&mut self, worker: &WorkerId, birth: u64, death: Death) {
        let takes_us = self.rng.range(100, 20_000);
        self.after(takes_us, Event::Machine(MachineEvent::Exit(worker.clone(), birth, death)));
    }

    /// A new incarnation of the pool looks at the holders that exist. A holder whose process is gone ends once its
    /// report was answered.
    pub(crate) fn adopt(&mut self) {
        let Some(kernel) = &self.kernel else { return };
        let reporting = kernel.reports.values().filter_map(|report| match &report.kind {
            ReportKind::Down(worker, _) => Some(worker.clone()),
            _ => None,
        });
        let live = self.machine.processes.keys().cloned().chain(reporting).collect();
        self.handle_own::<Pool>(&PoolCommand::Survivors { live, reserved: Vec::new() });
    }

    /// The keeper hands every survivor of an earlier kernel to a new holder.
    pub(crate) fn attach_survivors(&mut self) {
        for worker in self.machine.processes.keys().cloned().collect::<Vec<_>>() {
            let Some(process) = self.machine.processes.get_mut(&worker) else { continue };
            // Calls that had not begun went with the stream, and the new holder knows of what is said to it alone.
            process.waiting.clear();
            process.told = None;
            process.known = process.tasks().into_iter().map(|(_, fence)| fence).collect();
            if !process.booting {
                self.checks.counts.adopted += 1;
                self.hello(&worker);
            }
        }
    }

    /// It says what it computes; what it has computed before comes after that.
    fn hello(&mut self, worker: &WorkerId) {
        let Some(process) = self.machine.processes.get(worker) else { return };
        let kept = process.outcomes.clone();
        let attempts = process.tasks().into_iter().map(|(_, fence)| fence).collect();
        let from = Party::Holder(worker.clone());
        self.report_after(0, Report { from: from.clone(), kind: ReportKind::Up(worker.clone(), attempts) });
        for Kept { execute, outcome, .. } in kept {
            let kind = self.outcome(worker, execute, outcome);
            self.report_after(1, Report { from: from.clone(), kind });
        }
    }

    /// What has waited behind one attempt for this long is better off elsewhere.
    fn give_back(&mut self, worker: &WorkerId, fence: Fence) {
        let Some(process) = self.machine.processes.get_mut(worker) else { return };
        if process.current.as_ref().is_none_or(|current| current.fence != fence) {
            return;
        }
        for execute in std::mem::take(&mut process.waiting) {
            self.checks.counts.returned += 1;
            let kind = ReportKind::Idle(worker.clone(), execute.fence);
            self.report_after(0, Report { from: Party::Holder(worker.clone()), kind });
        }
    }

    /// Its outcome was answered: the next call will say so.
    fn safe(&mut self, worker: &WorkerId, fence: Fence) {
        let kept = self.machine.processes.get_mut(worker).map(|process| &mut process.outcomes);
        kept.into_iter()
            .flatten()
            .filter(|kept| kept.execute.fence == fence)
            .for_each(|kept| kept.safe = true);
    }
}

impl World {
    pub(crate) fn machine_event(&mut self, event: MachineEvent) {
        let (worker, birth) = match &event {
            MachineEvent::Up(worker, birth)
            | MachineEvent::Computed(worker, birth, ..)
            | MachineEvent::Exit(worker, birth, _)
            | MachineEvent::Patience(worker, birth, _)
            | MachineEvent::Cancelled(worker, birth, _) => (worker.clone(), *birth),
        };
        let Some(process) = self.machine.processes.get_mut(&worker).filter(|process| process.birth == birth)
        else {
            return;
        };
        match event {
            MachineEvent::Up(..) => {
                process.booting = false;
                self.hello(&worker);
            }
            MachineEvent::Computed(_, _, fence, ending) => self.computed(&worker, fence, ending),
            MachineEvent::Exit(_, _, death) => self.end_process(&worker, death),
            MachineEvent::Patience(_, _, fence) => self.give_back(&worker, fence),
            MachineEvent::Cancelled(_, _, fence) => self.cancelled(&worker, fence),
        }
    }

    fn computed(&mut self, worker: &WorkerId, fence: Fence, ending: Ending) {
        let Some(process) = self.machine.processes.get_mut(worker) else { return };
        let Some(execute) = process.current.take_if(|execute| execute.fence == fence) else { return };
        if ending == Ending::Crashes {
            process.current = Some(execute);
            return self.end_process(worker, Death::Killed { signal: 11, sender: None });
        }
        let outcome = match ending {
            Ending::Raises => {
                self.machine.excuse(Process::task(&execute), fence);
                Outcome::Fail(Error::internal("task.raised", "boom").retry(Retry::Now))
            }
            _ => Outcome::Commit { version: 0 },
        };
        self.finish(worker, execute.clone(), outcome);
        if ending == Ending::Lies {
            self.lie(worker, &execute);
        }
        self.compute_next(worker);
    }

    fn finish(&mut self, worker: &WorkerId, execute: Execute, outcome: Outcome) {
        let Some(process) = self.machine.processes.get_mut(worker) else { return };
        process.outcomes.push(Kept { execute: execute.clone(), outcome: outcome.clone(), safe: false });
        let kind = self.outcome(worker, execute, outcome);
        self.report_after(0, Report { from: Party::Holder(worker.clone()), kind });
    }

    /// Its holder takes it to the kernel, with what the code is by now.
    fn outcome(&mut self, worker: &WorkerId, execute: Execute, outcome: Outcome) -> ReportKind {
        let code = match outcome {
            Outcome::Commit { .. } => self.code_seen(worker, &execute),
            Outcome::Fail(_) => None,
        };
        ReportKind::Outcome(worker.clone(), Box::new(execute), outcome, code)
    }

    fn lie(&mut self, worker: &WorkerId, execute: &Execute) {
        let older = Fence { counter: execute.fence.counter.saturating_sub(1), ..execute.fence };
        for (fence, version) in [(execute.fence, 1), (older, 2)] {
            let code = self.code_seen(worker, execute);
            let output = output_of(execute.task.as_str(), fence, version);
            let request = commit(worker, execute, fence, output, code);
            let after_us = self.rng.range(1, 50_000);
            let report =
                Report { from: Party::Holder(worker.clone()), kind: ReportKind::Lie(Box::new(request)) };
            self.report_after(after_us, report);
        }
    }

    /// A result that was on its way for long: its attempt is over, and another may be under way.
    fn late(&mut self, worker: &WorkerId, execute: &Execute) {
        if self.rng.per_mille(400) {
            let output = output_of(execute.task.as_str(), execute.fence, 0);
            let code = self.code_seen(worker, execute);
            let request = commit(worker, execute, execute.fence, output, code);
            let after_us = self.rng.range(1, 1_500_000);
            let report =
                Report { from: Party::Holder(worker.clone()), kind: ReportKind::Lie(Box::new(request)) };
            self.report_after(after_us, report);
        }
    }

    /// It lets go, finishes all the same, or has to be killed.
    fn cancelled(&mut self, worker: &WorkerId, fence: Fence) {
        let chance = self.rng.range(0, 10);
        let Some(process) = self.machine.processes.get_mut(worker) else { return };
        let Some(execute) = process.current.take_if(|execute| execute.fence == fence) else { return };
        match chance {
            0..6 => {
                self.late(worker, &execute);
                let error = Error::new(Code::Cancelled, "task.cancelled", "it was cancelled");
                self.finish(worker, execute, Outcome::Fail(error));
            }
            6..8 => self.finish(worker, execute, Outcome::Commit { version: 0 }),
            _ => {
                if let Some(process) = self.machine.processes.get_mut(worker) {
                    process.current = Some(execute);
                }
                let death = Death::Killed { signal: 9, sender: Some("eclosion".into()) };
                return self.end_process(worker, death);
            }
        }
        self.compute_next(worker);
    }

    /// The process is gone; its holder, if there is a kernel, says so.
    pub(crate) fn end_process(&mut self, worker: &WorkerId, death: Death) {
        let Some(process) = self.machine.processes.remove(worker) else { return };
        self.say(|| format!("{worker} ends: {death}"));
        for (task, fence) in process.tasks() {
            self.machine.excuse(task, fence);
        }
        if let Some(execute) = &process.current {
            self.late(worker, execute);
        }
        let kind = ReportKind::Down(worker.clone(), death);
        self.report_after(0, Report { from: Party::Holder(worker.clone()), kind });
    }
}

impl Machine {
    /// This start of the task may be followed by another.
    pub(crate) fn excuse(&mut self, task: TaskRef, fence: Fence) {
        self.excused.entry(task).or_default().insert(fence);
    }

    /// The power fails: nothing is left.
    pub(crate) fn end_all(&mut self) {
        for (_, process) in std::mem::take(&mut self.processes) {
            process.tasks().into_iter().for_each(|(task, fence)| self.excuse(task, fence));
        }
    }
}
