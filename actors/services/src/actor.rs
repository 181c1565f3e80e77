//! The shell's parts that are this actor's own: operations into commands, lives to the runner, views.
//!
//! It publishes `service/NAME/state` (a `ServiceView`) as a state, at *synced*; in this process the same is read from
//! [`ServicesActor::views`], at *written*.

use std::collections::BTreeSet;
use std::sync::Arc;

use eclosion_bus::{Address, Message, Subject};
use eclosion_kernel::actor::{Actor, Context, Outputs, unimplemented};
use eclosion_kernel::journal::Record;
use eclosion_kernel::view::Views;
use eclosion_schemas::error::Error;
use eclosion_schemas::events::service::{
    ServiceDeclared, ServiceEnded, ServiceForgotten, ServiceReady, ServiceStarted, ServiceStopped,
};
use eclosion_schemas::ops::service::{ADDRESS, Down, List, Restart, ServiceView, Start, Stop, Up};
use eclosion_schemas::{EffectId, Operation, ServiceName, Timestamp};

use crate::ports::Runner;
use crate::state::{Command, Effect, Services, State};

/// Give it to the kernel's builder.
#[derive(Clone)]
pub struct ServicesActor {
    runner: Arc<dyn Runner>,
    views: Views<ServiceName, ServiceView>,
}

impl std::fmt::Debug for ServicesActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServicesActor").finish_non_exhaustive()
    }
}

impl ServicesActor {
    #[must_use]
    pub fn new(runner: Arc<dyn Runner>) -> Self {
        Self { runner, views: Views::default() }
    }

    /// Every service, read without asking.
    #[must_use]
    pub fn views(&self) -> Views<ServiceName, ServiceView> {
        self.views.clone()
    }
}

impl Actor for ServicesActor {
    type Core = Services;

    fn address(&self) -> &'static str {
        ADDRESS
    }

    fn core(&self) -> Services {
        Services
    }

    fn command(&self, message: &Message) -> Result<Command, Error> {
        let command = match message.operation {
            Start::NAME => {
                message.request::<Start>().map(|request| Command::Start(Box::new(request.clone())))
            }
            Stop::NAME => message.request::<Stop>().cloned().map(Command::Stop),
            Restart::NAME => message.request::<Restart>().cloned().map(Command::Restart),
            List::NAME => message.request::<List>().cloned().map(Command::List),
            Up::NAME => message.request::<Up>().cloned().map(Command::Up),
            Down::NAME => message.request::<Down>().cloned().map(Command::Down),
            other => return Err(unimplemented(&Address::new(ADDRESS)?, other)),
        };
        command.ok_or_else(|| {
            let text = format!("{} with another request", message.operation);
            Error::internal("operation.request", text)
        })
    }

    fn perform(&self, effects: &[(EffectId, Effect)], _: &Context<Command>) {
        effects.iter().for_each(|(_, effect)| self.runner.run(&effect.of, &effect.spec));
    }

    fn publish(&self, state: &State, records: &[Arc<Record>], outputs: &mut Outputs) {
        let at = records.last().map_or(Timestamp::default(), |record| record.at);
        let shown = state.views(at);
        let changed: BTreeSet<ServiceName> = match records {
            [] => shown.iter().map(|view| view.name.clone()).collect(),
            records => records.iter().filter_map(|record| concerned(record)).collect(),
        };
        for name in changed {
            let view = shown.iter().find(|view| view.name == name).cloned();
            let views = self.views.clone();
            let Some(view) = view else {
                outputs.view(move || views.remove(&name));
                continue;
            };
            // A new incarnation has no news: its predecessor has published them.
            if let (Some(record), Ok(subject)) =
                (records.last(), Subject::new(format!("service/{name}/state")))
            {
                outputs.state(subject, record.seq, view.clone());
            }
            outputs.view(move || views.publish(name, view));
        }
        let (runner, wanted) = (Arc::clone(&self.runner), state.lives());
        outputs.view(move || runner.keep(&wanted));
    }
}

/// The service that a record is about.
fn concerned(record: &Record) -> Option<ServiceName> {
    macro_rules! name_of {
        ($($event:ty),+) => {
            None$(.or_else(|| record.event::<$event>().map(|event| event.name.clone())))+
        };
    }
    name_of!(ServiceDeclared, ServiceStarted, ServiceReady, ServiceEnded, ServiceStopped, ServiceForgotten)
}
