//! The actor of the stale manager: operations to commands, effects to the hands.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use eclosion_bus::{Address, Bus, Message};
use eclosion_kernel::actor::{Actor, Context, Outputs, unimplemented};
use eclosion_kernel::core::AnyEvent;
use eclosion_kernel::journal::{Projection, Record};
use eclosion_schemas::EffectId;
use eclosion_schemas::error::Error;
use eclosion_schemas::events::{Event, GcPassed};
use eclosion_schemas::ops::gc::{ADDRESS, Log, Policy, Trash};

use crate::hands::{Hands, Ports, Report};
use crate::options::RetentionOptions;
use crate::passes::{Bring, Busy, Collect, Empty, Pass, Passed, Passes};
use crate::ports::{Records, Stock};
use crate::rows;
use crate::state::{Command, Effect, Stale, State};

/// Give it to the kernel's builder.
#[derive(Debug, Clone)]
pub struct StaleActor {
    options: RetentionOptions,
    hands: Hands,
    findings: Findings,
    /// Passes that are under way: an effect is told more than once.
    passing: Arc<Mutex<Option<EffectId>>>,
}

/// What the last pass found, read without asking. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Findings(Arc<Mutex<Vec<String>>>);

impl Findings {
    #[must_use]
    pub fn read(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, findings: Vec<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = findings;
    }
}

impl StaleActor {
    #[must_use]
    pub fn new(options: RetentionOptions, stocks: Vec<Arc<dyn Stock>>, records: Arc<dyn Records>) -> Self {
        let hands = Hands::new(Ports::new(stocks, records));
        Self { options, hands, findings: Findings::default(), passing: Arc::default() }
    }

    #[must_use]
    pub fn findings(&self) -> Findings {
        self.findings.clone()
    }

    /// What serves [`crate::PASSES`]. `bus` is set once the kernel has started.
    #[must_use]
    pub fn passes(&self, bus: Arc<OnceLock<Bus>>) -> Passes {
        Passes::new(bus, self.hands.clone())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a pass waits for the disk, and performing must not; it is bounded by the one that is due"
    )]
    fn pass(&self, effect: EffectId, bus: &Bus) {
        let passing = Arc::clone(&self.passing);
        if lock(&passing).replace(effect) == Some(effect) {
            return;
        }
        let pass = Pass { bus: bus.clone(), hands: self.hands.clone() };
        tokio::spawn(async move {
            pass.due(effect).await;
            let mut passing = lock(&passing);
            if *passing == Some(effect) {
                *passing = None;
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Actor for StaleActor {
    type Core = Stale;

    fn address(&self) -> &'static str {
        ADDRESS
    }

    fn core(&self) -> Stale {
        Stale { options: self.options.clone() }
    }

    fn command(&self, message: &Message) -> Result<Command, Error> {
        if let Some(request) = message.request::<Collect>() {
            Ok(Command::Collect(request.clone()))
        } else if let Some(request) = message.request::<Report>() {
            Ok(Command::Done(request.done.clone()))
        } else if let Some(request) = message.request::<Bring>() {
            Ok(Command::Restore(request.clone()))
        } else if let Some(request) = message.request::<Empty>() {
            Ok(Command::Purge(request.clone()))
        } else if let Some(request) = message.request::<Passed>() {
            Ok(Command::Passed(request.clone()))
        } else if message.request::<Busy>().is_some() {
            Ok(Command::Busy)
        } else if message.request::<Trash>().is_some() {
            Ok(Command::Trash)
        } else if let Some(request) = message.request::<Log>() {
            Ok(Command::Log(request.clone()))
        } else if message.request::<Policy>().is_some() {
            Ok(Command::Policy)
        } else {
            let address = Address::new(ADDRESS).map_err(|why| Error::internal("address", why.to_string()))?;
            Err(unimplemented(&address, message.operation))
        }
    }

    /// What others do is looked at when something is decided.
    fn can_wait(&self, _: &AnyEvent) -> bool {
        true
    }

    fn perform(&self, effects: &[(EffectId, Effect)], context: &Context<Command>) {
        let (passes, moves): (Vec<_>, Vec<_>) =
            effects.iter().cloned().partition(|(_, effect)| *effect == Effect::Pass);
        passes.into_iter().for_each(|(effect, _)| self.pass(effect, &context.bus));
        self.hands.take(moves, &context.bus);
    }

    fn publish(&self, state: &State, records: &[Arc<Record>], outputs: &mut Outputs) {
        if records.is_empty() || records.iter().any(|record| &*record.kind == GcPassed::KIND) {
            let (findings, text) = (self.findings.clone(), state.findings().to_vec());
            outputs.view(move || findings.publish(text));
        }
    }

    fn projection(&self) -> Option<Projection> {
        Some(rows::project)
    }
}
