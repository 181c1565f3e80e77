//! The actor of the artifact store: operations to commands, commits to publications. It performs nothing.

use std::sync::{Arc, OnceLock};

use eclosion_bus::{Address, Bus, Message, Subject};
use eclosion_kernel::actor::{Actor, Context, Outputs, unimplemented};
use eclosion_kernel::core::AnyEvent;
use eclosion_kernel::journal::{Projection, Record};
use eclosion_schemas::EffectId;
use eclosion_schemas::error::Error;
use eclosion_schemas::ops::artifact::{ADDRESS, Get, Lineage, List, Pin, Pins, Tag, Tags, Unpin, Untag};

use crate::files::{Files, Objects, Page, Resolve, Views};
use crate::ports::BlobStore;
use crate::state::{Artifacts, Command, Effect, State};
use crate::{rows, view};

/// Give it to the kernel's builder.
#[derive(Debug, Clone)]
pub struct ArtifactActor {
    blobs: Arc<dyn BlobStore>,
}

impl ArtifactActor {
    #[must_use]
    pub fn new(blobs: Arc<dyn BlobStore>) -> Self {
        Self { blobs }
    }

    /// What serves [`crate::FILES`]: everything that has to read files. `bus` is set once the kernel has started.
    #[must_use]
    pub fn files(&self, bus: Arc<OnceLock<Bus>>) -> Files {
        Files::new(bus, Arc::clone(&self.blobs))
    }
}

impl Actor for ArtifactActor {
    type Core = Artifacts;

    fn address(&self) -> &'static str {
        ADDRESS
    }

    fn core(&self) -> Artifacts {
        Artifacts
    }

    fn command(&self, message: &Message) -> Result<Command, Error> {
        let known = read(message).or_else(|| labels(message));
        known.ok_or_else(|| match Address::new(ADDRESS) {
            Ok(address) => unimplemented(&address, message.operation),
            Err(why) => Error::internal("address", why.to_string()),
        })
    }

    /// Nobody waits for it but readers.
    fn can_wait(&self, _: &AnyEvent) -> bool {
        true
    }

    fn perform(&self, _: &[(EffectId, Effect)], _: &Context<Command>) {}

    /// Each output, as the artifact that it is, on `artifact/RUN/TASK`.
    fn publish(&self, _: &State, records: &[Arc<Record>], outputs: &mut Outputs) {
        for record in records {
            let Some(event) = view::Made::by(record) else { continue };
            match Subject::new(format!("artifact/{}/{}", event.run(), event.task())) {
                Ok(subject) => outputs.event(subject, record.seq, view::artifact(&event, record)),
                Err(why) => tracing::warn!(run = %event.run(), task = %event.task(), %why, "not published"),
            }
        }
    }

    fn projection(&self) -> Option<Projection> {
        Some(rows::project)
    }
}

/// What is answered from rows.
fn read(message: &Message) -> Option<Command> {
    if let Some(request) = message.request::<List>() {
        Some(Command::List(request.clone()))
    } else if let Some(request) = message.request::<Get>() {
        Some(Command::Get(request.clone()))
    } else if let Some(request) = message.request::<Lineage>() {
        Some(Command::Lineage(request.clone()))
    } else if let Some(request) = message.request::<Resolve>() {
        Some(Command::Resolve(request.clone()))
    } else if let Some(request) = message.request::<Objects>() {
        Some(Command::Objects(*request))
    } else if let Some(request) = message.request::<Page>() {
        Some(Command::Page(request.clone()))
    } else {
        message.request::<Views>().cloned().map(Command::Views)
    }
}

/// Tags and pins.
fn labels(message: &Message) -> Option<Command> {
    if let Some(request) = message.request::<Tag>() {
        Some(Command::Tag(request.clone()))
    } else if let Some(request) = message.request::<Untag>() {
        Some(Command::Untag(request.clone()))
    } else if let Some(request) = message.request::<Tags>() {
        Some(Command::Tags(request.clone()))
    } else if let Some(request) = message.request::<Pin>() {
        Some(Command::Pin(request.clone()))
    } else if let Some(request) = message.request::<Unpin>() {
        Some(Command::Unpin(request.clone()))
    } else {
        message.request::<Pins>().cloned().map(Command::Pins)
    }
}
