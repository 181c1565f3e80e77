//! The actor of the pool manager: operations to commands, effects to ports and asks, workers to views.
//!
//! A pool that begins another incarnation first compares its workers with the holders that exist
//! ([`Launcher::live`]), and hears what calls and services have of them ([`Launcher::reserved`]). The bodies of attempts are handed over by the core; where one is missing (the kernel was
//! killed between the record and its execution), the DAG tracker is asked for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use eclosion_bus::{Address, Message, Subject, TraceContext};
use eclosion_kernel::actor::{Actor, Context, Outputs, unimplemented};
use eclosion_kernel::journal::Record;
use eclosion_kernel::view::Views;
use eclosion_schemas::error::Error;
use eclosion_schemas::events::{
    AttemptStarted, AttemptStopped, Event, StepCommitted, StepFailed, WorkerAttached, WorkerCordoned,
    WorkerDied, WorkerRequested, WorkerStarted, WorkerStopping, WorkerUncordoned,
};
use eclosion_schemas::ops::arbitration;
use eclosion_schemas::ops::pool::{
    ADDRESS, Cordon, Dispatch, Drain, EnvironmentBuilt, Kill, Quarantine, Recycle, Release, Reserve, Resume,
    Status, Unreserve, Usage, Withdraw, WorkerDown, WorkerIdle, WorkerUp,
};
use eclosion_schemas::ops::task;
use eclosion_schemas::view::{EnvironmentView, WorkerView};
use eclosion_schemas::{EffectId, EnvironmentId, Fence, TaskRef, Timestamp, WorkerId};

use crate::options::PoolOptions;
use crate::ports::{EnvironmentBuilder, Launcher};
use crate::state::{Bodies, Command, Effect, Pool, State};
use crate::view;

/// Give it to the kernel's builder.
#[derive(Clone)]
pub struct PoolManager {
    options: PoolOptions,
    launcher: Arc<dyn Launcher>,
    builder: Arc<dyn EnvironmentBuilder>,
    bodies: Bodies,
    workers: Views<WorkerId, WorkerView>,
    environments: Views<EnvironmentId, EnvironmentView>,
}

impl std::fmt::Debug for PoolManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolManager").field("options", &self.options).finish_non_exhaustive()
    }
}

impl PoolManager {
    #[must_use]
    pub fn new(
        options: PoolOptions,
        launcher: Arc<dyn Launcher>,
        builder: Arc<dyn EnvironmentBuilder>,
    ) -> Self {
        Self {
            options,
            launcher,
            builder,
            bodies: Bodies::default(),
            workers: Views::default(),
            environments: Views::default(),
        }
    }

    /// The living and the last of the dead, read without asking.
    #[must_use]
    pub fn workers(&self) -> Views<WorkerId, WorkerView> {
        self.workers.clone()
    }

    #[must_use]
    pub fn environments(&self) -> Views<EnvironmentId, EnvironmentView> {
        self.environments.clone()
    }

    /// The fence makes it harmless to be told twice, and to be told late.
    fn execute(
        &self,
        id: EffectId,
        worker: &WorkerId,
        task: &TaskRef,
        fence: Fence,
        context: &Context<Command>,
    ) {
        if let Some(body) = self.bodies.take(fence) {
            return self.launcher.execute(worker, body);
        }
        let (launcher, worker) = (Arc::clone(&self.launcher), worker.clone());
        let request = task::BodyRequest { run: task.run.clone(), task: task.task.clone(), fence };
        context.ask_for::<task::Body>(id, request, move |answer| {
            match answer.map(|reply| reply.execute) {
                Ok(Some(execute)) => launcher.execute(&worker, execute),
                // It is over; whoever holds the worker says so, whether it was computing or not.
                Ok(None) => launcher.cancel(&worker, fence),
                Err(refusal) => {
                    tracing::warn!(%worker, %fence, %refusal, "the body of an attempt cannot be had");
                    launcher.cancel(&worker, fence);
                }
            }
            None
        });
    }
}

impl Actor for PoolManager {
    type Core = Pool;

    fn address(&self) -> &'static str {
        ADDRESS
    }

    fn core(&self) -> Pool {
        Pool { options: self.options.clone(), bodies: self.bodies.clone() }
    }

    fn command(&self, message: &Message) -> Result<Command, Error> {
        if let Some(request) = message.request::<Dispatch>() {
            let mut request = request.clone();
            if let Some(own) = message.context.trace {
                request.wishes.iter_mut().for_each(|wish| below(own, &mut wish.execute.trace));
            }
            Ok(Command::Dispatch(request))
        } else if let Some(request) = message.request::<Withdraw>() {
            Ok(Command::Withdraw(request.clone()))
        } else if let Some(request) = message.request::<WorkerUp>() {
            Ok(Command::WorkerUp(request.clone()))
        } else if let Some(request) = message.request::<WorkerDown>() {
            Ok(Command::WorkerDown(request.clone()))
        } else if let Some(request) = message.request::<WorkerIdle>() {
            Ok(Command::WorkerIdle(request.clone()))
        } else if let Some(request) = message.request::<EnvironmentBuilt>() {
            Ok(Command::EnvironmentBuilt(request.clone()))
        } else if let Some(request) = message.request::<Reserve>() {
            Ok(Command::Reserve(request.clone()))
        } else if let Some(request) = message.request::<Unreserve>() {
            Ok(Command::Unreserve(*request))
        } else if message.request::<Status>().is_some() {
            Ok(Command::Status)
        } else if let Some(command) = managed(message) {
            Ok(command)
        } else {
            let address = Address::new(ADDRESS).map_err(|why| Error::internal("address", why.to_string()))?;
            Err(unimplemented(&address, message.operation))
        }
    }

    fn perform(&self, effects: &[(EffectId, Effect)], context: &Context<Command>) {
        for (id, effect) in effects {
            match effect {
                Effect::Build { environment, spec } => self.builder.build(environment, spec),
                Effect::Launch { worker, environment, python, spec } => {
                    self.launcher.launch(worker, environment, python, spec);
                }
                Effect::Execute { worker, task, fence } => self.execute(*id, worker, task, *fence, context),
                Effect::Cancel { worker, fence } => self.launcher.cancel(worker, *fence),
                Effect::Stop { worker } => self.launcher.stop(worker),
                Effect::Kill { worker, reason } => self.launcher.kill(worker, reason),
                Effect::Acquire(request) => {
                    context.ask::<arbitration::Acquire>(*id, request.clone(), |_| None);
                }
                Effect::Release(request) => {
                    context.ask::<arbitration::Release>(*id, request.clone(), |_| None);
                }
            }
        }
    }

    fn target(&self, effect: &Effect) -> Option<&'static str> {
        match effect {
            Effect::Acquire(_) | Effect::Release(_) => Some(arbitration::ADDRESS),
            _ => None,
        }
    }

    fn stays_inside(&self, effect: &Effect) -> bool {
        matches!(effect, Effect::Acquire(_) | Effect::Release(_))
    }

    fn adopt(&self, _: &Context<Command>) -> Option<Command> {
        let live = self.launcher.live().into_iter().collect();
        Some(Command::Survivors { live, reserved: self.launcher.reserved() })
    }

    fn publish(&self, state: &State, records: &[Arc<Record>], outputs: &mut Outputs) {
        let touched = touched(state, records);
        let workers = self.workers.clone();
        let changed = view::some_workers(state, &touched);
        for worker in &changed {
            publish_worker(worker, records, outputs);
        }
        outputs.view(move || {
            changed.into_iter().for_each(|worker| workers.publish(worker.worker.clone(), worker));
        });
        if records.is_empty() || records.iter().any(|record| !is_of_an_attempt(record)) {
            self.publish_who_is_there(state, records, outputs);
        }
    }
}

impl PoolManager {
    /// Workers and environments come and go by many kinds of records, and there are few: what is gone is found by
    /// comparing.
    fn publish_who_is_there(&self, state: &State, records: &[Arc<Record>], outputs: &mut Outputs) {
        let now = records.last().map_or(Timestamp(0), |record| record.at);
        let (environments, shown) = (view::environments(state, now), view::shown(state));
        let (workers, environment_views) = (self.workers.clone(), self.environments.clone());
        outputs.view(move || {
            if workers.len() > shown.len() {
                let gone = workers.snapshot().into_iter().filter(|worker| !shown.contains(&worker.worker));
                gone.for_each(|worker| workers.remove(&worker.worker));
            }
            let gone = environment_views.snapshot().into_iter().filter(|shown| {
                !environments.iter().any(|environment| environment.environment == shown.environment)
            });
            gone.for_each(|gone| environment_views.remove(&gone.environment));
            environments.into_iter().for_each(|environment| {
                environment_views.publish(environment.environment.clone(), environment);
            });
        });
    }
}

/// What operators ask, and what is asked for them.
fn managed(message: &Message) -> Option<Command> {
    macro_rules! command_of {
        ($($operation:ident),*) => {
            $(if let Some(request) = message.request::<$operation>() {
                return Some(Command::$operation(request.clone()));
            })*
        };
    }
    command_of!(Drain, Resume, Cordon, Recycle, Kill, Usage, Release);
    message.request::<Quarantine>().map(|_| Command::Quarantine)
}

/// These change a worker that is there, and nothing else that is shown.
fn is_of_an_attempt(record: &Record) -> bool {
    [AttemptStarted::KIND, AttemptStopped::KIND, StepCommitted::KIND, StepFailed::KIND]
        .contains(&&*record.kind)
}

/// The workers that these records are about; all of them, when an incarnation begins.
fn touched(state: &State, records: &[Arc<Record>]) -> BTreeSet<WorkerId> {
    if records.is_empty() {
        return view::shown(state);
    }
    let of = |record: &Arc<Record>| {
        macro_rules! worker_of {
            ($($event:ty),*) => {
                $(if let Some(event) = record.event::<$event>() { return Some(event.worker.clone()); })*
            };
        }
        worker_of!(
            AttemptStarted,
            StepCommitted,
            StepFailed,
            AttemptStopped,
            WorkerRequested,
            WorkerStarted,
            WorkerAttached,
            WorkerStopping,
            WorkerCordoned,
            WorkerUncordoned,
            WorkerDied
        );
        None
    };
    records.iter().filter_map(of).collect()
}

fn publish_worker(worker: &WorkerView, records: &[Arc<Record>], outputs: &mut Outputs) {
    let Some(last) = records.last() else { return };
    match Subject::new(format!("worker/{}/state", worker.worker)) {
        Ok(subject) => outputs.event(subject, last.seq, worker.clone()),
        Err(why) => tracing::warn!(%why, "a worker without a subject"),
    }
}

/// An attempt belongs below the message that wished for it, if that is of the same trace.
fn below(own: TraceContext, trace: &mut Option<String>) {
    let wished = trace.as_deref().and_then(|trace| trace.parse::<TraceContext>().ok());
    if wished.is_some_and(|wished| wished.trace_id == own.trace_id) {
        *trace = Some(own.to_string());
    }
}
