//! The actor of arbitration: operations to commands. It performs nothing; leases are seen through `arbitration.status`
//! and as [`LeaseView`]s.

use std::sync::{Arc, OnceLock};

use eclosion_bus::{Address, Bus, Message};
use eclosion_kernel::actor::{Actor, Context, Outputs, unimplemented};
use eclosion_kernel::core::AnyEvent;
use eclosion_kernel::journal::Record;
use eclosion_kernel::view::Views;
use eclosion_schemas::error::Error;
use eclosion_schemas::events::{
    AttemptStarted, Event, LeaseGranted, LeaseReleased, LeaseRenewed, LeaseTaken, StepCommitted,
};
use eclosion_schemas::ops::arbitration::{ADDRESS, Acquire, Release, Status};
use eclosion_schemas::ops::lease::Renew;
use eclosion_schemas::view::LeaseView;
use eclosion_schemas::{EffectId, LeaseId};
use tokio::sync::watch;

use crate::desk::{Desk, DeskLeave, DeskLook, DeskWish, GiveBack};
use crate::options::ArbitrationOptions;
use crate::state::{Arbitration, Command, Effect, State};
use crate::view;

/// Give it to the kernel's builder.
#[derive(Debug, Clone)]
pub struct ArbitrationActor {
    options: ArbitrationOptions,
    leases: Views<LeaseId, LeaseView>,
    /// Wakes those who wait at the desk.
    changes: Arc<watch::Sender<u64>>,
}

impl ArbitrationActor {
    #[must_use]
    pub fn new(options: ArbitrationOptions) -> Self {
        Self { options, leases: Views::default(), changes: Arc::default() }
    }

    /// Who holds what, read without asking.
    #[must_use]
    pub fn leases(&self) -> Views<LeaseId, LeaseView> {
        self.leases.clone()
    }

    /// What serves [`DESK`](crate::DESK). `bus` is set once the kernel has started.
    #[must_use]
    pub fn desk(&self, bus: Arc<OnceLock<Bus>>) -> Desk {
        Desk::new(bus, Arc::clone(&self.changes))
    }
}

impl Actor for ArbitrationActor {
    type Core = Arbitration;

    fn address(&self) -> &'static str {
        ADDRESS
    }

    fn core(&self) -> Arbitration {
        Arbitration { options: self.options.clone() }
    }

    fn command(&self, message: &Message) -> Result<Command, Error> {
        if let Some(request) = message.request::<Acquire>() {
            Ok(Command::Acquire(request.clone()))
        } else if let Some(request) = message.request::<Release>() {
            Ok(Command::Release(request.clone()))
        } else if message.request::<Status>().is_some() {
            Ok(Command::Status)
        } else if let Some(request) = message.request::<DeskWish>() {
            Ok(Command::Wish(request.clone()))
        } else if let Some(request) = message.request::<DeskLook>() {
            Ok(Command::Look(request.clone()))
        } else if let Some(request) = message.request::<DeskLeave>() {
            Ok(Command::Leave(request.clone()))
        } else if let Some(request) = message.request::<Renew>() {
            Ok(Command::Renew(request.clone()))
        } else if let Some(request) = message.request::<GiveBack>() {
            Ok(Command::GiveBack(request.clone()))
        } else {
            Err(unimplemented(&address()?, message.operation))
        }
    }

    /// What holds no lease gives none back.
    fn can_wait(&self, event: &AnyEvent) -> bool {
        match event.kind {
            AttemptStarted::KIND => true,
            StepCommitted::KIND => event.get::<StepCommitted>().is_some_and(|event| event.lease.is_none()),
            _ => false,
        }
    }

    fn perform(&self, _: &[(EffectId, Effect)], _: &Context<Command>) {}

    /// Leases end by many kinds of records, and there are few of them: what is gone is found by comparing.
    fn publish(&self, state: &State, records: &[Arc<Record>], outputs: &mut Outputs) {
        const SHOWN: [&str; 3] = [LeaseGranted::KIND, LeaseTaken::KIND, LeaseRenewed::KIND];
        const OF_CLIENTS: [&str; 2] = [LeaseTaken::KIND, LeaseReleased::KIND];
        let has = |kinds: &[&str]| records.iter().any(|record| kinds.contains(&&*record.kind));
        if records.is_empty() || has(&OF_CLIENTS) {
            let changes = Arc::clone(&self.changes);
            outputs.view(move || changes.send_modify(|change| *change = change.wrapping_add(1)));
        }
        let shown = self.leases.len();
        let held = view::leases(state);
        if records.is_empty() || has(&SHOWN) || held.len() < shown {
            let leases = self.leases.clone();
            outputs.view(move || {
                let gone = leases
                    .snapshot()
                    .into_iter()
                    .filter(|shown| !held.iter().any(|held| held.lease == shown.lease));
                gone.for_each(|gone| leases.remove(&gone.lease));
                held.into_iter().for_each(|held| leases.publish(held.lease.clone(), held));
            });
        }
    }
}

fn address() -> Result<Address, Error> {
    Address::new(ADDRESS).map_err(|why| Error::internal("address", why.to_string()))
}
