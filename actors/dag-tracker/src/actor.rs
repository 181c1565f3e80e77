//! The shell's parts that are the DAG tracker's own: operations into commands, effects into asks, views.
//!
//! What it publishes, at *synced*: `run/RUN/state` (a `RunView`) and `run/RUN/task/TASK/state` (a `TaskView`). The
//! states of tasks are kept for new subscribers while their run is unfinished, the heads of runs while they are in
//! memory. In this process the same is read from [`RunViews`], at *written*.
//!
//! It owns nothing that an incarnation could leave behind: wishes are asked again by the shell until the pool manager
//! has answered them, and whenever the pool manager has begun another incarnation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use eclosion_bus::{Address, Bus, Filter, Message, Subject};
use eclosion_kernel::actor::{Outputs, unimplemented};
use eclosion_kernel::core::AnyEvent;
use eclosion_kernel::journal::{Journal, Projection, Record};
use eclosion_kernel::view::Views;
use eclosion_kernel::{Actor, Context};
use eclosion_schemas::events::{AttemptStarted, Event};
use eclosion_schemas::flow::FlowSpec;
use eclosion_schemas::ops::pool::{self, DispatchRequest, WithdrawRequest};
use eclosion_schemas::ops::{cache, rerun, run, task};
use eclosion_schemas::view::{RunView, TaskView};
use eclosion_schemas::{EffectId, Error, Operation, RunId, Seq, TaskId, TaskRef};

use crate::state::{Command, DagTracker, Effect, Gone, State};
use crate::{look, plan, rows, view};

/// Wishes that are made known at once; few enough to find room in a line that is nearly full.
const WISHES_TOGETHER_MAX: usize = 32;

/// What readers in this process see without asking. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RunViews {
    pub runs: Views<RunId, Arc<RunView>>,
    pub tasks: Views<TaskRef, Arc<TaskView>>,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct DagActor {
    views: RunViews,
    /// The most that one attempt can ever get, by arbitration's keys; none: not known here.
    ceilings: Option<BTreeMap<String, u64>>,
    core: DagTracker,
    /// Known once the kernel adopts: nothing is published before that could have to be forgotten.
    reach: OnceLock<Reach>,
}

/// What forgetting a state needs.
#[derive(Debug)]
struct Reach {
    bus: Bus,
    journal: Arc<Journal>,
}

impl DagActor {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses flows with a task that asks for more than there ever is, when they are started or checked: it would be
    /// refused by arbitration when its turn came. By arbitration's keys: `cpu` in thousandths of a core.
    #[must_use]
    pub fn with_ceilings(self, ceilings: BTreeMap<String, u64>) -> Self {
        Self { ceilings: Some(ceilings), ..self }
    }

    /// How many runs may be unfinished together.
    #[must_use]
    pub fn with_unfinished_max(self, unfinished_max: usize) -> Self {
        Self { core: DagTracker { unfinished_max }, ..self }
    }

    fn check_ceilings(&self, flow: &FlowSpec) -> Result<(), Error> {
        self.ceilings.as_ref().map_or(Ok(()), |ceilings| plan::check_ceilings(flow, ceilings))
    }

    #[must_use]
    pub fn views(&self) -> RunViews {
        self.views.clone()
    }

    fn publish_run(&self, state: &State, run: &RunId, seq: Seq, outputs: &mut Outputs) {
        let Some(head) = view::run_view(state, run).map(Arc::new) else { return };
        if let Some(subject) = subject(&format!("run/{run}/state")) {
            outputs.state(subject, seq, Arc::clone(&head));
        }
        let (views, run) = (self.views.clone(), run.clone());
        outputs.view(move || views.runs.publish(run, head));
    }

    fn publish_task(&self, state: &State, run: &RunId, task: &TaskId, seq: Seq, outputs: &mut Outputs) {
        let Some(view) = view::task_view(state, run, task).map(Arc::new) else { return };
        if let Some(subject) = subject(&format!("run/{run}/task/{task}/state")) {
            match is_over(state, run) {
                true => outputs.event(subject, seq, Arc::clone(&view)),
                false => outputs.state(subject, seq, Arc::clone(&view)),
            }
        }
        let (views, key) = (self.views.clone(), TaskRef::new(run.clone(), task.clone()));
        outputs.view(move || views.tasks.publish(key, view));
    }

    /// The states that nobody is shown any more are forgotten after the last of them was published.
    fn forget(&self, filter: &str, seq: Seq) {
        let (Some(reach), Ok(filter)) = (self.reach.get(), Filter::new(filter)) else { return };
        let bus = reach.bus.clone();
        reach.journal.hold_relaxed(seq, move |_| _ = bus.forget(&filter));
    }

    fn remove(&self, gone: Gone, seq: Seq, outputs: &mut Outputs) {
        match gone.head {
            true => self.forget(&format!("run/{}/**", gone.run), seq),
            false => gone
                .tasks
                .iter()
                .for_each(|task| self.forget(&format!("run/{}/task/{task}/**", gone.run), seq)),
        }
        let views = self.views.clone();
        outputs.view(move || {
            for task in gone.tasks {
                views.tasks.remove(&TaskRef::new(gone.run.clone(), task));
            }
            if gone.head {
                views.runs.remove(&gone.run);
            }
        });
    }

    /// The views of a new incarnation. Its predecessor has published everything; only readers who come now miss it.
    fn publish_all(&self, state: &State, outputs: &mut Outputs) {
        for run in state.run_ids() {
            let Some(head) = view::run_view(state, run) else { continue };
            let tasks = view::task_views(state, run);
            let seq = head.seq;
            if !head.state.is_final() {
                tasks.iter().for_each(|view| self.publish_task(state, run, &view.task, view.seq, outputs));
            } else {
                let views = self.views.clone();
                outputs.view(move || {
                    for view in tasks {
                        let key = TaskRef::new(view.run.clone(), view.task.clone());
                        views.tasks.publish(key, Arc::new(view));
                    }
                });
            }
            self.publish_run(state, run, seq, outputs);
        }
    }
}

/// The pool manager refuses nothing here; an attempt that cannot be had it refuses by an event.
fn refused(error: Error) -> Option<Command> {
    tracing::error!(%error, "the pool manager refuses to listen");
    None
}

fn is_over(state: &State, run: &RunId) -> bool {
    state.run(run).is_none_or(|run| run.state.is_final())
}

/// Ids have the characters of a chunk, so every subject here is well formed.
fn subject(text: &str) -> Option<Subject> {
    Subject::new(text).inspect_err(|why| tracing::error!(%why, "a subject out of ids")).ok()
}

/// The typed request of a message of this operation.
fn request<O: Operation>(message: &Message) -> Result<O::Request, Error>
where
    O::Request: Clone,
{
    let request = message.request::<O>().cloned();
    request.ok_or_else(|| Error::internal("operation.request", format!("{} with another request", O::NAME)))
}

/// What a run belongs to, as it is recorded.
fn trace_of(message: &Message) -> Option<String> {
    message.context.trace.map(|trace| trace.to_string())
}

impl Actor for DagActor {
    type Core = DagTracker;

    fn address(&self) -> &'static str {
        run::ADDRESS
    }

    fn core(&self) -> DagTracker {
        self.core
    }

    fn command(&self, message: &Message) -> Result<Command, Error> {
        Ok(match message.operation {
            run::Start::NAME => {
                let mut start = request::<run::Start>(message)?;
                start.idem = start.idem.or_else(|| message.context.idem.clone());
                self.check_ceilings(&start.flow)?;
                Command::Start(Box::new(start), trace_of(message))
            }
            run::Validate::NAME => {
                let validate = request::<run::Validate>(message)?;
                self.check_ceilings(&validate.flow)?;
                Command::Validate(Box::new(validate))
            }
            run::Get::NAME => Command::Get(request::<run::Get>(message)?),
            run::List::NAME => Command::List(request::<run::List>(message)?),
            run::Cancel::NAME => Command::Cancel(request::<run::Cancel>(message)?),
            run::Why::NAME => Command::Why(request::<run::Why>(message)?),
            task::Commit::NAME => Command::Commit(Box::new(request::<task::Commit>(message)?)),
            task::Fail::NAME => Command::Fail(Box::new(request::<task::Fail>(message)?)),
            task::Body::NAME => Command::Body(request::<task::Body>(message)?),
            rerun::Rerun::NAME => {
                let mut again = request::<rerun::Rerun>(message)?;
                again.idem = again.idem.or_else(|| message.context.idem.clone());
                Command::Rerun(Box::new(again), trace_of(message))
            }
            rerun::Recorded::NAME => Command::Recorded(request::<rerun::Recorded>(message)?),
            cache::Find::NAME => Command::Find(request::<cache::Find>(message)?),
            cache::List::NAME => Command::ListCache(request::<cache::List>(message)?),
            cache::Explain::NAME => Command::Explain(request::<cache::Explain>(message)?),
            cache::Drop::NAME => Command::Drop(request::<cache::Drop>(message)?),
            other => return Err(unimplemented(&Address::new(run::ADDRESS)?, other)),
        })
    }

    fn perform(&self, effects: &[(EffectId, Effect)], context: &Context<Command>) {
        let (mut wishes, mut looks) = (Vec::new(), Vec::new());
        for (id, effect) in effects {
            match effect {
                Effect::Look(owed) => looks.push((*id, owed.lookup.clone())),
                Effect::Dispatch(wish) => wishes.push(wish.as_ref().clone()),
                Effect::Withdraw { wishes } => {
                    let request = WithdrawRequest { wishes: wishes.clone() };
                    context.ask::<pool::Withdraw>(*id, request, refused);
                }
            }
        }
        for together in wishes.chunks(WISHES_TOGETHER_MAX) {
            let ids = together.iter().map(|wish| wish.id).collect();
            // Those of several runs are one message; each attempt goes on in its own run's trace.
            let trace = together.iter().find_map(|wish| wish.execute.trace.as_deref()?.parse().ok());
            let request = DispatchRequest { wishes: together.to_vec() };
            context.within(trace).ask_together::<pool::Dispatch>(ids, request, refused);
        }
        look::perform(&looks, context);
    }

    /// A look is owed again by every incarnation of this actor itself.
    fn target(&self, effect: &Effect) -> Option<&'static str> {
        (!matches!(effect, Effect::Look(_))).then_some(pool::ADDRESS)
    }

    /// That an attempt was started changes what is shown.
    fn can_wait(&self, event: &AnyEvent) -> bool {
        event.kind == AttemptStarted::KIND
    }

    /// A look waits for *written*: then it sees the entry of every step that was committed before.
    fn stays_inside(&self, effect: &Effect) -> bool {
        !matches!(effect, Effect::Look(_))
    }

    fn adopt(&self, context: &Context<Command>) -> Option<Command> {
        self.reach.get_or_init(|| Reach { bus: context.bus.clone(), journal: Arc::clone(&context.journal) });
        None
    }

    fn publish(&self, state: &State, records: &[Arc<Record>], outputs: &mut Outputs) {
        let Some(last) = records.last().map(|record| record.seq) else {
            return self.publish_all(state, outputs);
        };
        let gone: Vec<Gone> = records.iter().flat_map(|record| view::gone(state, record)).collect();
        gone.into_iter().for_each(|gone| self.remove(gone, last, outputs));
        let changed: BTreeSet<_> = records.iter().flat_map(|record| view::changed(state, record)).collect();
        // A run's head comes after its tasks: whoever hears that it is over has heard all of them.
        for (run, task) in changed.into_iter().rev() {
            match task {
                Some(task) => self.publish_task(state, &run, &task, last, outputs),
                None => {
                    self.publish_run(state, &run, last, outputs);
                    if is_over(state, &run) {
                        outputs.promptly();
                        self.forget(&format!("run/{run}/task/**"), last);
                    }
                }
            }
        }
    }

    fn projection(&self) -> Option<Projection> {
        Some(rows::project)
    }
}

#[cfg(test)]
mod tests;
