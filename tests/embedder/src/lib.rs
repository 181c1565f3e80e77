//! An application as somebody outside would write it: a greeter that counts whom it greeted.
//!
//! It depends on the crate `eclosion` alone and touches nothing of it: operations, event, rows, core, view and actor are
//! its own. `greet.hello` at `/greet` journals `greet.greeted`; the row of each name is in the table `greetings`, its
//! state under `greet/NAME`, its view in [`Greeter::views`].
//!
//! It panics once in its life when it is told to, so that the tests can see it come back.

pub mod operations;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use eclosion::bus::{Message, Subject};
use eclosion::kernel::actor::{CommandOf, EffectOf, unimplemented};
use eclosion::kernel::journal::{Projection, Record, RowChange};
use eclosion::kernel::view::Views;
use eclosion::schemas::{EffectId, Error};
use eclosion::{Actor, Context, Outputs};

use crate::operations::{ADDRESS, Hello};
pub use crate::state::{Greet, Greeted, GreeterCore, State};

/// The table of rows.
pub const GREETINGS: &str = "greetings";

/// How often each was greeted, to be read without asking.
pub type Greetings = Views<String, u64>;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Greeter {
    views: Greetings,
    has_panicked: AtomicBool,
}

impl Greeter {
    #[must_use]
    pub fn views(&self) -> Greetings {
        self.views.clone()
    }
}

impl Actor for Greeter {
    type Core = GreeterCore;

    fn address(&self) -> &'static str {
        ADDRESS
    }

    fn core(&self) -> GreeterCore {
        GreeterCore
    }

    fn command(&self, message: &Message) -> Result<CommandOf<Self>, Error> {
        let Some(hello) = message.request::<Hello>() else {
            return Err(unimplemented(&ADDRESS.parse()?, message.operation));
        };
        let panics = hello.panic_once && !self.has_panicked.swap(true, Ordering::SeqCst);
        assert!(!panics, "as it was asked to");
        Ok(Greet { name: hello.name.clone() })
    }

    fn perform(&self, _: &[(EffectId, EffectOf<Self>)], _: &Context<Greet>) {}

    fn publish(&self, state: &State, records: &[Arc<Record>], outputs: &mut Outputs) {
        if records.is_empty() {
            for (name, times) in &state.greeted {
                let (views, name, times) = (self.views.clone(), name.clone(), *times);
                outputs.view(move || views.publish(name, times));
            }
        }
        for record in records {
            let Some(greeted) = record.event::<Greeted>() else { continue };
            let times = state.greeted.get(&greeted.name).copied().unwrap_or_default();
            let (views, name) = (self.views.clone(), greeted.name.clone());
            outputs.view(move || views.publish(name, times));
            // A name that is no subject is greeted all the same.
            if let Ok(subject) = Subject::new(format!("greet/{}", greeted.name)) {
                outputs.state(subject, record.seq, times);
            }
        }
    }

    fn projection(&self) -> Option<Projection> {
        Some(project)
    }
}

/// The row of each name: when it was greeted last, as text.
fn project(record: &Record, rows: &mut Vec<RowChange>) {
    if let Some(greeted) = record.event::<Greeted>() {
        let value = record.seq.to_string().into_bytes();
        rows.push(RowChange { table: GREETINGS, key: greeted.name.clone().into_bytes(), value: Some(value) });
    }
}
