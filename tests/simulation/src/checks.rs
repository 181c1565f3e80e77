//! The promises that every world is held to. None of them asks the cores: they compare the disk, the processes' ledger
//! and what clients were shown.
//!
//! | check | promise |
//! |---|---|
//! | one commit for a task, of an attempt that ran, with that attempt's own output | P-EXEC-2 |
//! | fences only grow, over power cuts too | P-EXEC-2 |
//! | a task starts only when what it needs is committed on the disk | P-EXEC-7 |
//! | nothing commits after its run's cancellation was acknowledged | P-EXEC-6 |
//! | every start but one is explained by something that went wrong | P-EXEC-1, P1 |
//! | what computes at one time never needs more than there is | arbitration's own |
//! | what was shown is there after a power cut | P-DUR-1, P-DUR-2 |
//! | replay from bytes gives the live state | DESIGN: digest(replay) = digest(live) |
//! | every run ends once faults are over | P-EXEC-1 |
//! | every instant of a schedule is named once, and its run exists once | `ticks` |
//! | nothing is collected that somebody holds, nothing deleted that is not recorded | P7, `retention` |
//! | what a step needs, and what a kept run names, is there | P-ART-1, `retention` |
//! | every act has one end | `read` |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eclosion_arbitration::Arbitration;
use eclosion_artifact_store::Artifacts;
use eclosion_audit::Audit;
use eclosion_dag_tracker::{Command as DagCommand, DagTracker};
use eclosion_kernel::engine::Engine;
use eclosion_kernel::journal::Record;
use eclosion_pool_manager::Pool;
use eclosion_scheduler::Scheduler;
use eclosion_schemas::events::{
    AttemptStarted, GcErased, LeaseGranted, LeaseReleased, OperatorActed, OperatorEnded, RunCancelling,
    RunFinished, RunStarted, StepCommitted, StepReused,
};
use eclosion_schemas::ops::gc::Item;
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{Fence, LeaseId, Payload, RunId, Seq, TaskRef, Timestamp};
use eclosion_stale_manager::Stale;

use crate::client::key;
use crate::disk::{Disk, stored};
use crate::jobs::{CPU_MILLIS, Job, MEMORY_BYTES};
use crate::kernel::{Simulated, of};
use crate::mutants::Mutant;
use crate::world::{EVERYBODY, Report, Who, World, output_of};

mod retention;
mod ticks;

use retention::Retained;
use ticks::Ticks;

#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) counts: Report,
    /// What stands on the disk; read again after a power cut.
    on_disk: OnDisk,
    /// The highest fence that ever reached a disk, whatever became of it.
    highest: Fence,
    /// The last record that something shown depends on, and the records up to it.
    shown: Seq,
    shown_records: BTreeMap<Seq, Arc<Record>>,
    /// Runs whose cancellation was acknowledged.
    pub(crate) cancelled: BTreeSet<RunId>,
    /// What an operator has asked to be collected, each time.
    pub(crate) applied: Vec<BTreeSet<Item>>,
    /// Files that a record names which survived by chance, and they did not.
    unlucky: BTreeSet<Item>,
}

#[derive(Debug, Default)]
struct OnDisk {
    started: BTreeMap<RunId, Source>,
    cancelling: BTreeSet<RunId>,
    finished: BTreeSet<RunId>,
    /// Even the records of their deletion are gone: nobody knows of them any more.
    forgotten: BTreeSet<RunId>,
    committed: BTreeMap<TaskRef, Fence>,
    /// Of those, and of steps that took an earlier result.
    outputs: BTreeMap<TaskRef, Payload>,
    leases: BTreeMap<LeaseId, Timestamp>,
    /// Acts that are under way, and the last one's number.
    acts: BTreeSet<u64>,
    last_act: u64,
    ticks: Ticks,
    retained: Retained,
    last: Seq,
}

/// Who started a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Job(usize),
    Tick,
}

impl World {
    /// Records have reached the disk.
    pub(crate) fn check_written(&mut self, batch: &[Arc<Record>]) {
        for record in batch {
            if let Err(text) = self.checks.read(record, self.client.jobs.len()) {
                return self.fail(text);
            }
            if let Some(started) = record.event::<AttemptStarted>() {
                if started.fence <= self.checks.highest {
                    let highest = self.checks.highest;
                    return self.fail(format!("{record:?} has fence {} after {highest}", started.fence));
                }
                self.checks.highest = started.fence;
            }
            if let Some(committed) = record.event::<StepCommitted>() {
                self.check_commit(&committed);
            }
            self.check_asked(record);
            self.checks.count(record);
        }
    }

    fn check_commit(&mut self, committed: &StepCommitted) {
        let task = TaskRef::new(committed.run.clone(), committed.task.clone());
        self.checks.counts.commits += 1;
        let started = self.machine.starts.get(&task).is_some_and(|starts| starts.contains(&committed.fence));
        if !started {
            return self.fail(format!("{task} committed under {}, which never ran", committed.fence));
        }
        if committed.cache.is_some() && self.machine.by_edited.contains(&committed.fence) {
            return self.fail(format!("{task} is kept under a code that it was not computed by"));
        }
        self.checks.counts.unkept += u64::from(committed.unkept.is_some());
        if committed.output != output_of(committed.task.as_str(), committed.fence, 0) {
            self.fail(format!("{task} committed under {} what that attempt did not make", committed.fence));
        }
    }

    /// A process begins an attempt.
    pub(crate) fn check_start(&mut self, execute: &Execute) {
        self.checks.counts.starts += 1;
        let run = &execute.run;
        let Some(source) = self.checks.on_disk.started.get(run) else {
            return self.fail(format!("{run} starts a task and is not on the disk"));
        };
        if let Source::Job(number) = source {
            let (job, _) = &self.client.jobs[*number];
            if let Some(parent) = self.checks.uncommitted_parent(job, execute) {
                return self.fail(format!("{run}/{} starts before {parent} is committed", execute.task));
            }
        }
        let task = TaskRef::new(run.clone(), execute.task.clone());
        if let Some(fences) = self.machine.starts.get(&task)
            && fences.windows(2).any(|pair| pair[0] >= pair[1])
        {
            return self.fail(format!("{task} starts under an older fence: {fences:?}"));
        }
        let computing = self.machine.processes.values().filter_map(|process| process.current.as_ref());
        let (mut cpu_millis, mut memory_bytes) = (0, 0);
        for execute in computing {
            let amount = |resource| execute.lease.get(resource).copied().unwrap_or_default();
            // One core is what every worker has.
            cpu_millis += if amount("cpu") > 1 { amount("cpu") * 1_000 } else { 0 };
            memory_bytes += amount("memory");
        }
        if cpu_millis > CPU_MILLIS || memory_bytes > MEMORY_BYTES {
            self.fail(format!(
                "{cpu_millis} of cpu and {memory_bytes} of memory are in use, more than there is"
            ));
        }
    }

    /// An attempt that goes on is told to stop.
    pub(crate) fn check_cancel(&mut self, execute: &Execute) {
        if !self.may_cancel(execute) {
            self.fail(format!("{}/{} is cancelled for no reason", execute.run, execute.task));
        }
    }

    /// Only a time-out or the end of its run may lead to that.
    pub(crate) fn may_cancel(&self, execute: &Execute) -> bool {
        let OnDisk { cancelling, finished, .. } = &self.checks.on_disk;
        execute.timeout_ms.is_some() || cancelling.contains(&execute.run) || finished.contains(&execute.run)
    }

    /// A client is about to be shown something that depends on this record.
    pub(crate) fn shown(&mut self, depends_on: Seq) {
        if depends_on <= self.checks.shown {
            return;
        }
        let Some(kernel) = &self.kernel else { return };
        let tail = kernel.journal.unwritten(usize::MAX);
        let after = self.checks.shown;
        let written = self.disk.between(after, depends_on).into_iter();
        let unwritten = tail.into_iter().filter(|record| record.seq > after && record.seq <= depends_on);
        self.checks.shown_records.extend(written.chain(unwritten).map(|record| (record.seq, record)));
        self.checks.shown = depends_on;
    }

    /// `safe`: what the mark said before. What is on the disk is known when it is opened again.
    pub(crate) fn check_after_cut(&mut self, safe: Seq) {
        let lost: Vec<_> = self.missing_files().collect();
        for (item, seq) in lost {
            if seq <= safe {
                return self
                    .fail(format!("{item} is named by #{seq}, which is synced, and the power cut lost it"));
            }
            self.checks.unlucky.insert(item);
        }
    }

    /// A store was opened: all that was ever shown is in it.
    pub(crate) fn check_opened(&mut self) {
        let records = self.disk.records();
        let kept: BTreeMap<Seq, &Arc<Record>> = records.iter().map(|record| (record.seq, record)).collect();
        for (seq, shown) in &self.checks.shown_records {
            if kept.get(seq).is_none_or(|record| record.kind != shown.kind || record.body != shown.body) {
                let text = format!("#{seq} {} was shown, and the power cut lost it", shown.kind);
                return self.fail(text);
            }
        }
        let last = self.checks.on_disk.last;
        let is_whole = records.len() as u64 == last.0;
        if is_whole && records.last().map_or(Seq(0), |record| record.seq) == last {
            return;
        }
        // What was committed and never synced is computed again.
        let before = std::mem::take(&mut self.checks.on_disk);
        for record in &records {
            if let Err(text) = self.checks.read(record, self.client.jobs.len()) {
                return self.fail(text);
            }
        }
        for (task, fence) in before.committed {
            if !self.checks.on_disk.committed.contains_key(&task) {
                self.machine.excuse(task, fence);
            }
        }
    }

    /// The state of every live incarnation is what its records say, read back from bytes.
    pub(crate) fn check_replay(&mut self) {
        for who in EVERYBODY {
            of!(who, self.check_replay_of());
        }
    }

    fn check_replay_of<C: Simulated>(&mut self) {
        let core = C::core(self);
        let folded = Disk::new(Vec::new(), None);
        let is_forgetful = !self.forgets(C::WHO).is_empty();
        let Some(kernel) = &mut self.kernel else { return };
        let journal = Arc::clone(&kernel.journal);
        let Some(live) = &C::seat(kernel).engine else { return };
        if is_forgetful {
            // It is another promise that is to find it.
            return;
        }
        let (digest, depends_on) = (live.digest(), live.depends_on());
        let all = self.disk.between(Seq(0), depends_on).into_iter().chain(journal.unwritten(usize::MAX));
        let all: Vec<_> = all.filter(|record| record.seq <= depends_on).collect();
        let opened = match folded.write(&all).and_then(|()| folded.open()) {
            Ok(opened) => opened,
            Err(why) => return self.fail(format!("a copy of the journal cannot be read: {why}")),
        };
        let replayed = eclosion_kernel::journal::Journal::new(opened, Some(Arc::new(folded)));
        let mut engine = Engine::new(core);
        if let Err(why) = engine.recover(&replayed) {
            return self.fail(format!("{:?} cannot be replayed: {why}", C::WHO));
        }
        if engine.digest() != digest {
            let replayed = engine.digest();
            self.fail(format!("replay differs for {:?}\nlive     {digest}\nreplayed {replayed}", C::WHO));
        }
    }

    pub(crate) fn check_end(&mut self) -> Result<(), String> {
        self.check_replay();
        let waits = self.client.jobs.iter().position(|(_, progress)| !progress.ended);
        if let Some(number) = waits {
            let run = self.client.jobs[number].1.run.clone();
            return Err(format!("job {number} ({run:?}) has not ended\n{}", self.state_of_things()));
        }
        if let Some(text) = self.overdue() {
            return Err(text);
        }
        if let Some((item, seq)) = self.missing_files().next() {
            return Err(format!("{item} is named by #{seq}, and is not there at the end"));
        }
        for (task, fences) in &self.machine.starts {
            let excused = self.machine.excused.get(task);
            let others =
                fences.iter().filter(|fence| !excused.is_some_and(|excused| excused.contains(fence)));
            if others.count() > 1 {
                return Err(format!("{task} was started under {fences:?}; explained are {excused:?}"));
            }
        }
        Ok(())
    }

    fn state_of_things(&mut self) -> String {
        let mut text = String::new();
        if let Some(kernel) = &mut self.kernel {
            for who in EVERYBODY {
                text += &of!(who, kernel.outstanding());
            }
        }
        text + &format!("{:#?}", self.machine.processes)
    }

    /// The canary: somebody believes whoever commits.
    pub(crate) fn perhaps_accept_stale(&mut self, command: DagCommand) -> DagCommand {
        let DagCommand::Commit(mut request) = command else { return command };
        if self.has(Mutant::AcceptStaleFence)
            && let Some(kernel) = &self.kernel
            && let Some(engine) = &kernel.dag.engine
            && let Some(view) =
                eclosion_dag_tracker::view::task_view(engine.state(), &request.run, &request.task)
            && let (Some(fence), Some(worker)) = (view.fence, view.worker)
            && request.fence < fence
        {
            (request.fence, request.worker) = (fence, worker);
        }
        DagCommand::Commit(request)
    }
}

impl crate::kernel::Kernel {
    fn outstanding<C: Simulated>(&mut self) -> String {
        let Some(engine) = &C::seat(self).engine else { return format!("{:?} is down\n", C::WHO) };
        let owed = engine.outstanding();
        format!("{:?} owes {owed:?}\n{}\n", C::WHO, engine.core().core.digest(engine.state()))
    }
}

impl Checks {
    pub(crate) fn is_forgotten(&self, run: &RunId) -> bool {
        self.on_disk.forgotten.contains(run)
    }

    fn read(&mut self, record: &Record, jobs: usize) -> Result<(), String> {
        let on_disk = &mut self.on_disk;
        if record.seq != on_disk.last.next() {
            return Err(format!("{record:?} follows #{}", on_disk.last));
        }
        on_disk.last = record.seq;
        // From its bytes: what cannot be read back does not count.
        let record = Record::from(stored(record));
        on_disk.ticks.read(&record)?;
        on_disk.retained.read(&record)?;
        if let Some(started) = record.event::<RunStarted>() {
            let idem = started.idem.as_deref().unwrap_or_default();
            let job = (0..jobs).find(|job| idem == key(*job)).map(Source::Job);
            let source = job.or_else(|| idem.starts_with("schedule:").then_some(Source::Tick));
            let is_again =
                source != Some(Source::Tick) && on_disk.started.values().any(|other| Some(*other) == source);
            if is_again {
                return Err(format!("{idem} was started twice"));
            }
            on_disk.started.insert(started.run.clone(), source.ok_or("a run that nobody started")?);
        } else if let Some(cancelling) = record.event::<RunCancelling>() {
            on_disk.cancelling.insert(cancelling.run.clone());
        } else if let Some(finished) = record.event::<RunFinished>() {
            if !on_disk.finished.insert(finished.run.clone()) {
                return Err(format!("{} finished twice", finished.run));
            }
        } else if let Some(committed) = record.event::<StepCommitted>() {
            let task = TaskRef::new(committed.run.clone(), committed.task.clone());
            if on_disk.cancelling.contains(&committed.run) || on_disk.finished.contains(&committed.run) {
                return Err(format!("{task} committed after its run was over"));
            }
            if let Some(first) = on_disk.committed.insert(task.clone(), committed.fence) {
                return Err(format!("{task} committed under {first} and under {}", committed.fence));
            }
            on_disk.outputs.insert(task, committed.output.clone());
        } else if let Some(reused) = record.event::<StepReused>() {
            let task = TaskRef::new(reused.run.clone(), reused.task.clone());
            if on_disk.outputs.get(&reused.from) != Some(&reused.output) {
                return Err(format!("{task} took of {} what that has not made", reused.from));
            }
            if on_disk.outputs.insert(task.clone(), reused.output.clone()).is_some() {
                return Err(format!("{task} has two results"));
            }
        } else if let Some(erased) = record.event::<GcErased>() {
            // With the run its key is gone: who starts it again gets another.
            erased.run.iter().for_each(|run| _ = on_disk.started.remove(run));
            on_disk.forgotten.extend(erased.runs.iter().cloned());
        } else if let Some(granted) = record.event::<LeaseGranted>() {
            on_disk.leases.insert(granted.lease.clone(), record.at);
        } else if let Some(released) = record.event::<LeaseReleased>() {
            on_disk.leases.remove(&released.lease);
        } else if let Some(acted) = record.event::<OperatorActed>() {
            if acted.id != on_disk.last_act + 1 {
                return Err(format!("act {} follows act {}", acted.id, on_disk.last_act));
            }
            on_disk.last_act = acted.id;
            on_disk.acts.insert(acted.id);
        } else if let Some(ended) = record.event::<OperatorEnded>()
            && !on_disk.acts.remove(&ended.id)
        {
            return Err(format!("act {} ended twice, or never began", ended.id));
        }
        Ok(())
    }

    /// What the mutant of leases is to release.
    pub(crate) fn leases_older_than(&self, old: Timestamp) -> Vec<LeaseId> {
        let leases = self.on_disk.leases.iter().filter(|(_, since)| **since < old);
        leases.map(|(lease, _)| lease.clone()).collect()
    }

    fn count(&mut self, record: &Record) {
        let counts = &mut self.counts;
        let count = match &*record.kind {
            "step.reused" => &mut counts.reused,
            "tick.fired" => &mut counts.ticks_fired,
            "tick.skipped" => &mut counts.ticks_skipped,
            "gc.collected" => &mut counts.collected,
            "gc.purging" => &mut counts.purged,
            "gc.restored" => &mut counts.restored,
            "operator.acted" => &mut counts.acts,
            _ => return,
        };
        *count += 1;
    }

    /// Something that the task needs and that is not committed on the disk.
    fn uncommitted_parent(&self, job: &Job, execute: &Execute) -> Option<String> {
        let name = execute.task.as_str().split('[').next().unwrap_or_default();
        let shape = job.tasks.get(name)?;
        let needed = shape.parents.iter().flat_map(|parent| job.tasks[parent].instances(parent));
        let mut missing = needed.filter(|needed| {
            let task = needed.parse().map(|task| TaskRef::new(execute.run.clone(), task));
            !task.is_ok_and(|task| self.on_disk.outputs.contains_key(&task))
        });
        missing.next()
    }
}
