//! The actor of the audit record: operations to commands. It performs nothing.

use eclosion_bus::{Address, Message};
use eclosion_kernel::actor::{Actor, Context, unimplemented};
use eclosion_kernel::journal::Projection;
use eclosion_schemas::EffectId;
use eclosion_schemas::error::Error;
use eclosion_schemas::ops::audit::{ADDRESS, Begin, End, List};

use crate::state::{Audit, Command, Effect, project};

/// Give it to the kernel's builder.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuditActor;

impl Actor for AuditActor {
    type Core = Audit;

    fn address(&self) -> &'static str {
        ADDRESS
    }

    fn core(&self) -> Audit {
        Audit
    }

    fn command(&self, message: &Message) -> Result<Command, Error> {
        if let Some(request) = message.request::<Begin>() {
            Ok(Command::Begin(request.clone()))
        } else if let Some(request) = message.request::<End>() {
            Ok(Command::End(request.clone()))
        } else if let Some(request) = message.request::<List>() {
            Ok(Command::List(request.clone()))
        } else {
            let address = Address::new(ADDRESS).map_err(|why| Error::internal("address", why.to_string()))?;
            Err(unimplemented(&address, message.operation))
        }
    }

    fn perform(&self, _: &[(EffectId, Effect)], _: &Context<Command>) {}

    fn projection(&self) -> Option<Projection> {
        Some(project)
    }
}
