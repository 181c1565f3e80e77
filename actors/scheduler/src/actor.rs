//! The shell's parts that are the scheduler's own: operations into commands, ticks into starts and calls, views.
//!
//! What it publishes, at *synced*: `schedule/NAME/state` (a `ScheduleView` as in a list) whenever a record has changed it.
//! In this process the same is read from [`SchedulerActor::schedules`], at *written*.
//!
//! It owns nothing that an incarnation could leave behind: what a tick starts is asked for again under the same key.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eclosion_bus::{Address, Bus, Message, Subject};
use eclosion_kernel::actor::{Outputs, unimplemented};
use eclosion_kernel::core::AnyEvent;
use eclosion_kernel::journal::{Projection, Record};
use eclosion_kernel::view::Views;
use eclosion_kernel::{Actor, Context};
use eclosion_schemas::events::schedule::{
    SchedulePaused, ScheduleRemoved, ScheduleResumed, ScheduleSet, TickCancelling, TickEnded, TickFired,
    TickQueued, TickSkipped,
};
use eclosion_schemas::ops::run::{self, CancelRequest, StartRequest};
use eclosion_schemas::ops::schedule::{
    ADDRESS, Fire, Get, History, List, Next, Pause, Remove, Resume, Set, SetRequest,
};
use eclosion_schemas::schedule::{Action, ScheduleSpec, ScheduleView};
use eclosion_schemas::{EffectId, Error, Operation, Role, ScheduleName, Seq};

use crate::calls::{self, Calling};
use crate::rows;
use crate::state::{Answer, Answered, Command, Effect, Scheduler, State};
use crate::trigger::Zones;
use crate::view;

/// Give it to the kernel's builder.
#[derive(Debug, Clone, Default)]
pub struct SchedulerActor {
    zones: Zones,
    schedules: Views<ScheduleName, Arc<ScheduleView>>,
    /// Known once the kernel adopts; what a schedule may call is looked up there.
    bus: Arc<OnceLock<Bus>>,
}

impl SchedulerActor {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every schedule, read without asking.
    #[must_use]
    pub fn schedules(&self) -> Views<ScheduleName, Arc<ScheduleView>> {
        self.schedules.clone()
    }

    /// Says at once what would fail at every tick.
    fn check(&self, request: &SetRequest, role: Role) -> Result<(), Error> {
        match (&request.spec.action, self.bus.get()) {
            (Action::Call { operation, request, .. }, Some(bus)) => {
                calls::check(bus, operation, request, role.min(Role::Operate)).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    fn publish_one(&self, state: &State, name: &ScheduleName, seq: Option<Seq>, outputs: &mut Outputs) {
        let schedules = self.schedules.clone();
        let Some(of) = state.schedule(name) else {
            let name = name.clone();
            return outputs.view(move || schedules.remove(&name));
        };
        // A view has no clock; whether ours was put back is said to who asks.
        let row = Arc::new(view::row(name, of, of.through));
        match (seq, Subject::new(format!("schedule/{name}/state"))) {
            (Some(seq), Ok(subject)) => outputs.event(subject, seq, Arc::clone(&row)),
            (Some(_), Err(why)) => tracing::warn!(%name, %why, "not published"),
            (None, _) => {}
        }
        let name = name.clone();
        outputs.view(move || schedules.publish(name, row));
    }
}

/// The typed request of a message of this operation.
fn request<O: Operation>(message: &Message) -> Result<O::Request, Error>
where
    O::Request: Clone,
{
    let request = message.request::<O>().cloned();
    request.ok_or_else(|| Error::internal("operation.request", format!("{} with another request", O::NAME)))
}

impl Actor for SchedulerActor {
    type Core = Scheduler;

    fn address(&self) -> &'static str {
        ADDRESS
    }

    fn core(&self) -> Scheduler {
        Scheduler { zones: self.zones.clone() }
    }

    fn command(&self, message: &Message) -> Result<Command, Error> {
        Ok(match message.operation {
            Set::NAME => {
                let (set, role) = (request::<Set>(message)?, message.context.role);
                self.check(&set, role)?;
                Command::Set(Box::new(set), role)
            }
            Get::NAME => Command::Get(request::<Get>(message)?),
            List::NAME => Command::List(request::<List>(message)?),
            Pause::NAME => Command::Pause(request::<Pause>(message)?),
            Resume::NAME => Command::Resume(request::<Resume>(message)?),
            Fire::NAME => {
                let mut fire = request::<Fire>(message)?;
                fire.idem = fire.idem.or_else(|| message.context.idem.clone());
                Command::Trigger(fire)
            }
            Remove::NAME => Command::Remove(request::<Remove>(message)?),
            Next::NAME => Command::Next(Box::new(request::<Next>(message)?)),
            History::NAME => Command::History(request::<History>(message)?),
            other => return Err(unimplemented(&Address::new(ADDRESS)?, other)),
        })
    }

    fn perform(&self, effects: &[(EffectId, Effect)], context: &Context<Command>) {
        for (id, effect) in effects {
            match effect {
                Effect::Start { name, n, key, spec, role } => {
                    let (name, n, key) = (name.clone(), *n, key.clone());
                    start(context, *id, Starting { name, n, key, role: *role }, spec);
                }
                Effect::Cancel { run, name } => {
                    let reason = format!("a later tick of schedule {name} became due");
                    let request = CancelRequest { run: run.clone(), reason };
                    context.ask::<run::Cancel>(*id, request, |error| {
                        tracing::error!(%error, "a run of a tick cannot be canceled");
                        None
                    });
                }
            }
        }
    }

    fn target(&self, effect: &Effect) -> Option<&'static str> {
        match effect {
            Effect::Cancel { .. } => Some(run::ADDRESS),
            Effect::Start { spec, .. } => matches!(spec.action, Action::Run { .. }).then_some(run::ADDRESS),
        }
    }

    /// A call may leave the kernel.
    fn stays_inside(&self, effect: &Effect) -> bool {
        self.target(effect).is_some()
    }

    /// Runs that start and end move nothing that somebody waits for at this very moment.
    fn can_wait(&self, _: &AnyEvent) -> bool {
        true
    }

    fn adopt(&self, context: &Context<Command>) -> Option<Command> {
        self.bus.get_or_init(|| context.bus.clone());
        None
    }

    fn publish(&self, state: &State, records: &[Arc<Record>], outputs: &mut Outputs) {
        let names: BTreeSet<ScheduleName> = match records {
            [] => state.schedules.keys().cloned().collect(),
            records => records.iter().filter_map(|record| changed(record)).collect(),
        };
        // A new incarnation has no news: its predecessor has published them.
        let seq = records.last().map(|record| record.seq);
        names.iter().for_each(|name| self.publish_one(state, name, seq, outputs));
    }

    fn projection(&self) -> Option<Projection> {
        Some(rows::project)
    }
}

/// The start of one tick.
struct Starting {
    name: ScheduleName,
    n: u64,
    key: String,
    role: Role,
}

impl Starting {
    fn answered(self, outcome: Result<Answer, Error>) -> Command {
        let Self { name, n, key, .. } = self;
        Command::Answered(Box::new(Answered { name, n, key, outcome }))
    }
}

fn start(context: &Context<Command>, id: EffectId, starting: Starting, spec: &ScheduleSpec) {
    match &spec.action {
        Action::Run { flow, set, tenant } => {
            let request = StartRequest {
                flow: flow.as_ref().clone(),
                set: set.clone(),
                tenant: tenant.clone(),
                // Equal content is what a schedule is about: every tick has a run of its own.
                new: true,
                idem: Some(starting.key.clone()),
                no_cache: false,
            };
            context.ask_for::<run::Start>(id, request, move |answer| {
                Some(starting.answered(answer.map(|reply| Answer::Run(reply.run))))
            });
        }
        Action::Call { operation, request, deadline_ms } => {
            let calling = Calling {
                name: starting.name.clone(),
                operation: operation.clone(),
                request: request.clone(),
                key: starting.key.clone(),
                role: starting.role,
                deadline: Duration::from_millis(*deadline_ms),
            };
            let bus = context.bus.clone();
            context.work(id, async move {
                Some(starting.answered(calls::call(bus, calling).await.map(Answer::Reply)))
            });
        }
    }
}

/// The schedule that a record of ours is about. What a run's record changes is followed by one of ours, or shown when
/// somebody asks.
fn changed(record: &Record) -> Option<ScheduleName> {
    let of_schedule = record
        .event::<ScheduleSet>()
        .map(|event| event.name.clone())
        .or_else(|| record.event::<SchedulePaused>().map(|event| event.name.clone()))
        .or_else(|| record.event::<ScheduleResumed>().map(|event| event.name.clone()))
        .or_else(|| record.event::<ScheduleRemoved>().map(|event| event.name.clone()));
    of_schedule
        .or_else(|| record.event::<TickFired>().map(|event| event.tick.schedule.clone()))
        .or_else(|| record.event::<TickQueued>().map(|event| event.tick.schedule.clone()))
        .or_else(|| record.event::<TickSkipped>().map(|event| event.tick.schedule.clone()))
        .or_else(|| record.event::<TickCancelling>().map(|event| event.schedule.clone()))
        .or_else(|| record.event::<TickEnded>().map(|event| event.tick.schedule.clone()))
}
