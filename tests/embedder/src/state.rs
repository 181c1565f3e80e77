//! The greeter's pure core: who was greeted how often.

use std::collections::BTreeMap;

use eclosion::kernel::core::{AnyEvent, Core, Decision, Reads};
use eclosion::kernel::journal::Record;
use eclosion::schemas::events::Event;
use eclosion::schemas::{EffectId, Error, Timestamp};
use serde::{Deserialize, Serialize};

use crate::operations::HelloReply;

/// Somebody was greeted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeted {
    pub name: String,
}

impl Event for Greeted {
    const KIND: &'static str = "greet.greeted";
}

#[derive(Debug, Clone)]
pub struct Greet {
    pub name: String,
}

#[derive(Debug, Clone, Default)]
pub struct State {
    pub greeted: BTreeMap<String, u64>,
    owed: BTreeMap<EffectId, ()>,
}

#[derive(Debug, Clone, Copy)]
pub struct GreeterCore;

impl Core for GreeterCore {
    type State = State;
    type Volatile = ();
    type Command = Greet;
    /// It owes nobody anything.
    type Effect = ();
    const DECIDES: &'static [&'static str] = &[Greeted::KIND];
    const FOLDS: &'static [&'static str] = &[Greeted::KIND];

    fn decide(
        &self,
        state: &State,
        (): &mut (),
        _: &Reads,
        command: &Greet,
        _: Timestamp,
    ) -> Result<Decision, Error> {
        if command.name.is_empty() {
            return Err(
                Error::invalid("greet.nobody", "nobody has no name").help("eclosion describe greet.hello")
            );
        }
        let times = state.greeted.get(&command.name).copied().unwrap_or_default() + 1;
        let reply = HelloReply { text: format!("Hello, {}!", command.name), times };
        Ok(Decision::reply(reply).event(Greeted { name: command.name.clone() }))
    }

    fn settle(&self, _: &State, (): &mut (), _: &Reads, _: Timestamp) -> Vec<AnyEvent> {
        Vec::new()
    }

    fn apply(&self, state: &mut State, record: &Record) {
        if let Some(greeted) = record.event::<Greeted>() {
            *state.greeted.entry(greeted.name.clone()).or_default() += 1;
        }
    }

    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, ()> {
        &state.owed
    }

    fn wake_at(&self, _: &State, (): &()) -> Option<Timestamp> {
        None
    }

    fn digest(&self, state: &State) -> String {
        format!("{:?}", state.greeted)
    }
}
