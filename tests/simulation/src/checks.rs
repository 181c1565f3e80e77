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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eclosion_arbitration::Arbitration;
use eclosion_artifact_store::Artifacts;
use eclosion_dag_tracker::{Command as DagCommand, DagTracker};
use eclosion_kernel::engine::Engine;
use eclosion_kernel::journal::Record;
use eclosion_pool_manager::Pool;
use eclosion_schemas::events::{AttemptStarted, RunCancelling, RunFinished, RunStarted, StepCommitted};
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{Fence, RunId, Seq, TaskRef};

use crate::client::key;
use crate::disk::{Disk, stored};
use crate::jobs::{CPU_MILLIS, Job, MEMORY_BYTES};
use crate::kernel::Simulated;
use crate::world::{Canary, Report, World, output_of};

#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) counts: Report,
    /// What stands on the disk; read again after a power cut.
    on_disk: OnDisk,
    /// The highest fence that ever reached a disk, whatever became of it.
    highest: Fence,
    /// The last record that something shown depends on, and the records up to it.
    shown: Seq,
    shown_records: BTreeMap<Seq, (String, Vec<u8>)>,
    /// Runs whose cancellation was acknowledged.
    pub(crate) cancelled: BTreeSet<RunId>,
}

#[derive(Debug, Default)]
struct OnDisk {
    jobs: BTreeMap<RunId, usize>,
    cancelling: BTreeSet<RunId>,
    finished: BTreeSet<RunId>,
    committed: BTreeMap<TaskRef, Fence>,
    last: Seq,
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
        }
    }

    fn check_commit(&mut self, committed: &StepCommitted) {
        let task = TaskRef::new(committed.run.clone(), committed.task.clone());
        self.checks.counts.commits += 1;
        let started = self.machine.starts.get(&task).is_some_and(|starts| starts.contains(&committed.fence));
        if !started {
            return self.fail(format!("{task} committed under {}, which never ran", committed.fence));
        }
        if committed.output != output_of(committed.task.as_str(), committed.fence, 0) {
            self.fail(format!("{task} committed under {} what that attempt did not make", committed.fence));
        }
    }

    /// A process begins an attempt.
    pub(crate) fn check_start(&mut self, execute: &Execute) {
        self.checks.counts.starts += 1;
        let run = &execute.run;
        let Some(number) = self.checks.on_disk.jobs.get(run) else {
            return self.fail(format!("{run} starts a task and is not on the disk"));
        };
        let (job, _) = &self.client.jobs[*number];
        if let Some(parent) = self.checks.uncommitted_parent(job, execute) {
            return self.fail(format!("{run}/{} starts before {parent} is committed", execute.task));
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
        let records = self.disk.records();
        let new = records
            .iter()
            .chain(&tail)
            .filter(|record| record.seq > self.checks.shown && record.seq <= depends_on);
        let new: Vec<_> =
            new.map(|record| (record.seq, (record.kind.to_string(), record.body.to_vec()))).collect();
        self.checks.shown_records.extend(new);
        self.checks.shown = depends_on;
    }

    pub(crate) fn check_after_cut(&mut self) {
        let records = self.disk.records();
        let kept: BTreeMap<Seq, &Arc<Record>> = records.iter().map(|record| (record.seq, record)).collect();
        for (seq, (kind, body)) in &self.checks.shown_records {
            if kept.get(seq).is_none_or(|record| &*record.kind != kind.as_str() || record.body != *body) {
                let text = format!("#{seq} {kind} was shown, and the power cut lost it");
                return self.fail(text);
            }
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
        self.check_replay_of::<Artifacts>();
        self.check_replay_of::<Arbitration>();
        self.check_replay_of::<Pool>();
        self.check_replay_of::<DagTracker>();
    }

    fn check_replay_of<C: Simulated>(&mut self) {
        let core = C::core(self);
        let folded = Disk::new(Vec::new());
        let Some(kernel) = &mut self.kernel else { return };
        let journal = Arc::clone(&kernel.journal);
        let Some(live) = &C::seat(kernel).engine else { return };
        let (digest, depends_on) = (live.digest(), live.depends_on());
        let all = self.disk.records().into_iter().chain(journal.unwritten(usize::MAX));
        let all: Vec<_> = all.filter(|record| record.seq <= depends_on).collect();
        folded.write(&all);
        let opened = folded.open();
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
            text += &outstanding::<Arbitration>(kernel);
            text += &outstanding::<Pool>(kernel);
            text += &outstanding::<DagTracker>(kernel);
        }
        text + &format!("{:#?}", self.machine.processes)
    }

    /// The canary: somebody believes whoever commits.
    pub(crate) fn perhaps_accept_stale(&mut self, command: DagCommand) -> DagCommand {
        let DagCommand::Commit(mut request) = command else { return command };
        if self.canary == Some(Canary::AcceptStaleFence)
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

fn outstanding<C: Simulated>(kernel: &mut crate::kernel::Kernel) -> String {
    let Some(engine) = &C::seat(kernel).engine else { return format!("{:?} is down\n", C::WHO) };
    format!("{:?} owes {:?}\n{}\n", C::WHO, engine.outstanding(), engine.core().digest(engine.state()))
}

impl Checks {
    fn read(&mut self, record: &Record, jobs: usize) -> Result<(), String> {
        let on_disk = &mut self.on_disk;
        if record.seq != on_disk.last.next() {
            return Err(format!("{record:?} follows #{}", on_disk.last));
        }
        on_disk.last = record.seq;
        // From its bytes: what cannot be read back does not count.
        let record = Record::from(stored(record));
        if let Some(started) = record.event::<RunStarted>() {
            let job = (0..jobs).find(|job| started.idem.as_deref() == Some(&key(*job)));
            on_disk.jobs.insert(started.run.clone(), job.ok_or("a run that nobody started")?);
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
        }
        Ok(())
    }

    /// Something that the task needs and that is not committed on the disk.
    fn uncommitted_parent(&self, job: &Job, execute: &Execute) -> Option<String> {
        let name = execute.task.as_str().split('[').next().unwrap_or_default();
        let shape = job.tasks.get(name)?;
        let needed = shape.parents.iter().flat_map(|parent| job.tasks[parent].instances(parent));
        let mut missing = needed.filter(|needed| {
            let task = needed.parse().map(|task| TaskRef::new(execute.run.clone(), task));
            !task.is_ok_and(|task| self.on_disk.committed.contains_key(&task))
        });
        missing.next()
    }
}
