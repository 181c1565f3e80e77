//! One run: its tasks as groups of instances, and the one function that moves an instance between states.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use blake3::Hash;
use eclosion_schemas::certificate::DeathCertificate;
use eclosion_schemas::events::{MissCause, RerunOf, RunStarted, Unkept};
use eclosion_schemas::view::{CacheCounts, RunState, TaskState};
use eclosion_schemas::{
    Attempt, EffectId, Error, Fence, LeaseId, Payload, RunId, Seq, TaskId, TaskRef, Tenant, Timestamp,
    WorkerId,
};

use super::{Fold, Touch};
use crate::plan::{Each, Plan, Task};

/// Where an instance stands in its run: the number of its task in the plan, and its own number in the fan-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub task: u32,
    pub index: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub id: RunId,
    pub plan: Arc<Plan>,
    pub tenant: Tenant,
    pub idem: Option<String>,
    pub state: RunState,
    pub cancel_reason: Option<String>,
    pub started_seq: Seq,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    /// As many as the plan has tasks, in its order.
    pub groups: Vec<Group>,
    /// Instances by state; no zeros.
    pub counts: BTreeMap<TaskState, u32>,
    /// Instances that are not final.
    pub open: u32,
    /// Instances in `Ready` or `Backoff`.
    pub wished: BTreeSet<Slot>,
    pub running: BTreeSet<Slot>,
    /// Of the first task that failed.
    pub error: Option<Arc<Error>>,
    /// Its environment cannot be built: what becomes ready fails at once.
    pub environment_error: Option<Arc<Error>>,
    pub result: Option<Payload>,
    /// Nothing is taken from the cache.
    pub no_cache: bool,
    pub rerun_of: Option<Box<RerunOf>>,
    /// The trace that its attempts belong to.
    pub trace: Option<String>,
    pub cache: CacheCounts,
    pub seq: Seq,
}

/// A task of the plan in this run.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// For a fan-out over an output: one stand-in under the task's own name until the list is known.
    pub instances: Vec<Instance>,
    pub expanded: bool,
    /// Needed tasks that have not succeeded.
    pub unmet: usize,
    /// Instances that have not succeeded.
    pub left: usize,
    pub skipped: bool,
    pub output: Output,
    /// The content of the output, where a content key needs it.
    pub output_hash: Option<Hash>,
    /// Its results are taken over from the run that this one repeats, as far as they are stored.
    pub is_taken: bool,
}

/// What a task hands to those that need it, once it has succeeded.
#[derive(Debug, Clone, Default)]
pub(crate) enum Output {
    #[default]
    None,
    One(Payload),
    List(Arc<[Payload]>),
}

#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub id: TaskId,
    pub phase: Phase,
    pub attempt: Attempt,
    pub failures: u32,
    pub lost: u32,
    /// Of the last attempt, as are the fields up to `ended_at`.
    pub fence: Option<Fence>,
    pub worker: Option<WorkerId>,
    pub lease: Option<LeaseId>,
    /// Its worker reported the end itself; the same report again is known.
    pub reported: bool,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub error: Option<Arc<Error>>,
    pub certificates: Vec<Arc<DeathCertificate>>,
    /// Of a fan-out over an output.
    pub item: Option<Payload>,
    pub output: Option<Payload>,
    /// What came of looking for an earlier result. It is looked for once.
    pub looked: Option<Arc<Looked>>,
    /// Why its result, which was to be kept, is not.
    pub unkept: Option<Unkept>,
    /// The last record that changed it.
    pub seq: Seq,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Looked {
    Reused { from: TaskRef, is_taken: bool },
    Missed { causes: Vec<MissCause>, nearest: Option<TaskRef> },
}

/// The states of an instance, with what each waits for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    Waiting,
    Ready { wish: EffectId },
    Running { fence: Fence, deadline: Option<Timestamp> },
    Backoff { until: Timestamp },
    Succeeded,
    Failed,
    Cancelled,
    Skipped,
}

impl Phase {
    pub(crate) fn state(&self) -> TaskState {
        match self {
            Phase::Waiting => TaskState::Waiting,
            Phase::Ready { .. } => TaskState::Ready,
            Phase::Running { .. } => TaskState::Running,
            Phase::Backoff { .. } => TaskState::Backoff,
            Phase::Succeeded => TaskState::Succeeded,
            Phase::Failed => TaskState::Failed,
            Phase::Cancelled => TaskState::Cancelled,
            Phase::Skipped => TaskState::Skipped,
        }
    }

    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed | Phase::Cancelled | Phase::Skipped)
    }
}

impl Instance {
    pub(crate) fn new(id: TaskId, item: Option<Payload>, seq: Seq) -> Self {
        Self {
            id,
            phase: Phase::Waiting,
            attempt: Attempt(0),
            failures: 0,
            lost: 0,
            fence: None,
            worker: None,
            lease: None,
            reported: false,
            started_at: None,
            ended_at: None,
            error: None,
            certificates: Vec::new(),
            item,
            output: None,
            looked: None,
            unkept: None,
            seq,
        }
    }
}

impl Group {
    fn new(task: &Task, seq: Seq) -> Self {
        let ids: Vec<TaskId> = match &task.each {
            Each::Items(items) => {
                (0..items.len()).filter_map(|index| instance_id(&task.name, index)).collect()
            }
            Each::One | Each::Output(_) => TaskId::new(task.name.as_str()).into_iter().collect(),
        };
        let instances: Vec<_> = ids.into_iter().map(|id| Instance::new(id, None, seq)).collect();
        Self {
            left: instances.len(),
            instances,
            expanded: !matches!(task.each, Each::Output(_)),
            unmet: task.needs.len(),
            skipped: false,
            output: Output::None,
            output_hash: None,
            is_taken: false,
        }
    }
}

/// `None` never for a name that a plan has checked.
pub(super) fn instance_id(task: &str, index: usize) -> Option<TaskId> {
    TaskId::new(format!("{task}[{index}]")).ok()
}

impl Run {
    /// Every instance waits; nothing is wished for yet.
    pub(super) fn new(started: &RunStarted, plan: Plan, seq: Seq, at: Timestamp) -> Self {
        let mut groups: Vec<_> = plan.tasks.iter().map(|task| Group::new(task, seq)).collect();
        for task in started.rerun_of.iter().flat_map(|rerun| &rerun.taken) {
            if let Some(group) = plan.by_name.get(task).and_then(|number| groups.get_mut(*number)) {
                group.is_taken = true;
            }
        }
        let open = groups.iter().map(|group| group.instances.len()).sum::<usize>();
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        let counts = BTreeMap::from([(TaskState::Waiting, open)]).into_iter().filter(|(_, count)| *count > 0);
        Self {
            id: started.run.clone(),
            plan: Arc::new(plan),
            tenant: started.tenant.clone(),
            idem: started.idem.clone(),
            state: RunState::Running,
            cancel_reason: None,
            started_seq: seq,
            started_at: at,
            finished_at: None,
            groups,
            counts: counts.collect(),
            open,
            wished: BTreeSet::new(),
            running: BTreeSet::new(),
            error: None,
            environment_error: None,
            result: None,
            no_cache: started.no_cache,
            rerun_of: started.rerun_of.clone(),
            trace: started.trace.clone(),
            cache: CacheCounts::default(),
            seq,
        }
    }

    pub(crate) fn task(&self, slot: Slot) -> Option<&Task> {
        self.plan.tasks.get(slot.task as usize)
    }

    pub(crate) fn instance(&self, slot: Slot) -> Option<&Instance> {
        self.groups.get(slot.task as usize)?.instances.get(slot.index as usize)
    }

    pub(super) fn instance_mut(&mut self, slot: Slot) -> Option<&mut Instance> {
        self.groups.get_mut(slot.task as usize)?.instances.get_mut(slot.index as usize)
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        (0_u32..).zip(&self.groups).flat_map(|(task, group)| self.slots_of(task, group.instances.len()))
    }

    pub(super) fn slots_of(&self, task: u32, instances: usize) -> impl Iterator<Item = Slot> + use<> {
        (0..u32::try_from(instances).unwrap_or(u32::MAX)).map(move |index| Slot { task, index })
    }

    pub(crate) fn instances(&self) -> usize {
        self.groups.iter().map(|group| group.instances.len()).sum()
    }

    /// `train[3]` → its slot, if there is such an instance now.
    pub(crate) fn slot(&self, task: &TaskId) -> Option<Slot> {
        let text = task.as_str();
        let (name, index) = match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
            Some((name, index)) => (name, index.parse().ok()?),
            None => (text, 0),
        };
        let slot = Slot { task: u32::try_from(*self.plan.by_name.get(name)?).ok()?, index };
        // `train`, `train[00]` and a stand-in's `train[0]` name nobody: the ids must be the same.
        self.instance(slot).filter(|instance| instance.id == *task).map(|_| slot)
    }

    /// The only way from one state to another: keeps counts, sets, timers, fences and wishes in step.
    pub(super) fn enter(&mut self, slot: Slot, phase: Phase, fold: &mut Fold<'_>) {
        let Some(instance) = self.instance_mut(slot) else { return };
        let left = std::mem::replace(&mut instance.phase, phase.clone());
        instance.seq = fold.seq;
        if phase.is_final() {
            instance.ended_at = Some(fold.at);
            instance.item = None;
        }
        self.leave(slot, &left, fold);
        match &phase {
            Phase::Ready { .. } => _ = self.wished.insert(slot),
            Phase::Backoff { until } => {
                self.wished.insert(slot);
                fold.index.due.insert((*until, self.id.clone(), slot));
            }
            Phase::Running { fence, deadline } => {
                self.running.insert(slot);
                fold.index.attempts.insert(*fence, (self.id.clone(), slot));
                fold.index.due.extend(deadline.map(|deadline| (deadline, self.id.clone(), slot)));
            }
            _ => {}
        }
        self.recount(left.state(), phase.state());
        if phase.is_final() && !left.is_final() {
            self.open -= 1;
            if self.open == 0 {
                fold.index.ending.insert(self.id.clone());
            }
        }
        self.seq = fold.seq;
        fold.touch(Touch::Task(self.id.clone(), slot));
        fold.touch(Touch::Head(self.id.clone()));
    }

    fn leave(&mut self, slot: Slot, left: &Phase, fold: &mut Fold<'_>) {
        match left {
            Phase::Ready { wish } => {
                self.wished.remove(&slot);
                fold.index.outstanding.remove(wish);
            }
            Phase::Backoff { until } => {
                self.wished.remove(&slot);
                fold.index.due.remove(&(*until, self.id.clone(), slot));
            }
            Phase::Running { fence, deadline } => {
                self.running.remove(&slot);
                fold.index.attempts.remove(fence);
                if let Some(deadline) = deadline {
                    fold.index.due.remove(&(*deadline, self.id.clone(), slot));
                }
            }
            _ => {}
        }
    }

    fn recount(&mut self, left: TaskState, entered: TaskState) {
        if let Some(count) = self.counts.get_mut(&left) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&left);
            }
        }
        *self.counts.entry(entered).or_default() += 1;
    }
}
