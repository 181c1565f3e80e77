//! The pure core that every journaled actor is written as.
//!
//! A core never waits, reads a clock, draws a random number or touches anything outside: it is asked, and answers with
//! values. [`crate::engine::Engine`] drives it, under tokio in a kernel and under virtual time in a simulation.
//!
//! - [`Core::decide`] turns a command into events and a reply, or refuses. It sees the state and changes nothing in it.
//! - [`Core::apply`] is the only place where state changes; own and foreign records alike, live and in replay.
//! - [`Core::settle`] says what has become due by itself: a timer ran out, a folded record made something possible.
//! - [`Core::outstanding`] is what is still owed. An effect disappears from it by an event that answers it.
//!
//! Invariants: (1) `apply` of the same records in the same order gives the same state, byte for byte in
//! [`Core::digest`]. (2) An effect's id is the seq of the record that caused it and a number. (3) `settle` converges:
//! called again on the state that its own events led to, it returns nothing in the end.
//!
//! What others will say again (wishes that are re-sent when an incarnation restarts, connections seen) may be kept in
//! [`Core::Volatile`]; it is never journaled, never in the digest, and dies with the incarnation.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use eclosion_schemas::error::Error;
use eclosion_schemas::events::Event;
use eclosion_schemas::{EffectId, Epoch, Timestamp};

use crate::journal::Record;

/// See the head of this file.
pub trait Core: Send + 'static {
    type State: Default + Clone + Send + 'static;
    type Volatile: Default + Send + 'static;
    type Command: Send + 'static;
    type Effect: Clone + Send + PartialEq + Debug + 'static;

    /// The kinds of events that it decides; nobody else may append them.
    const DECIDES: &'static [&'static str];
    /// The kinds that `apply` looks at, its own among them.
    const FOLDS: &'static [&'static str];

    /// Which rows `decide` needs to see. They are fetched before it is called.
    fn queries(&self, _command: &Self::Command) -> Vec<Query> {
        Vec::new()
    }

    /// It may be asked again about the same command, when foreign records had to be folded first.
    ///
    /// # Errors
    /// A refusal, as it is shown to the caller. Nothing has changed then.
    fn decide(
        &self,
        state: &Self::State,
        volatile: &mut Self::Volatile,
        reads: &Reads,
        command: &Self::Command,
        now: Timestamp,
    ) -> Result<Decision, Error>;

    /// What is due. Called after every command, fold and timer until it returns nothing.
    fn settle(
        &self,
        state: &Self::State,
        volatile: &mut Self::Volatile,
        reads: &Reads,
        now: Timestamp,
    ) -> Vec<AnyEvent>;

    fn apply(&self, state: &mut Self::State, record: &Record);

    fn outstanding<'a>(&self, state: &'a Self::State) -> &'a BTreeMap<EffectId, Self::Effect>;

    /// When `settle` wants to be called next, if nothing else happens.
    fn wake_at(&self, state: &Self::State, volatile: &Self::Volatile) -> Option<Timestamp>;

    /// The whole state as text, the same for equal states: what replay is compared by.
    fn digest(&self, state: &Self::State) -> String;
}

/// What a command leads to.
#[derive(Debug)]
pub struct Decision {
    pub events: Vec<AnyEvent>,
    pub reply: Box<dyn Any + Send>,
}

impl Decision {
    /// A reply of the operation's own type, and no event.
    pub fn reply<T: Send + 'static>(reply: T) -> Self {
        Self { events: Vec::new(), reply: Box::new(reply) }
    }

    #[must_use]
    pub fn event<E: Event>(mut self, event: E) -> Self {
        self.events.push(event.into());
        self
    }

    #[must_use]
    pub fn events(mut self, events: impl IntoIterator<Item = AnyEvent>) -> Self {
        self.events.extend(events);
        self
    }
}

type Encode = fn(&(dyn Any + Send + Sync)) -> Result<Vec<u8>, Error>;

/// An event on its way into the journal: typed for those who fold it in this process, and able to become bytes.
#[derive(Clone)]
pub struct AnyEvent {
    pub kind: &'static str,
    pub version: u16,
    value: Arc<dyn Any + Send + Sync>,
    encode: Encode,
}

impl AnyEvent {
    /// The stored form: msgpack with named fields.
    ///
    /// # Errors
    /// `internal` when a value cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        (self.encode)(&*self.value)
    }

    #[must_use]
    pub fn value(&self) -> Arc<dyn Any + Send + Sync> {
        Arc::clone(&self.value)
    }

    #[must_use]
    pub fn get<E: Event>(&self) -> Option<&E> {
        self.value.downcast_ref()
    }
}

impl<E: Event> From<E> for AnyEvent {
    fn from(event: E) -> Self {
        Self {
            kind: E::KIND,
            version: E::VERSION,
            value: Arc::new(event),
            encode: |value| {
                let Some(event) = value.downcast_ref::<E>() else {
                    return Err(Error::internal("event.type", format!("not a {}", E::KIND)));
                };
                rmp_serde::to_vec_named(event).map_err(|why| Error::internal("event.encode", why.to_string()))
            },
        }
    }
}

impl Debug for AnyEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnyEvent")
            .field("kind", &self.kind)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// A row, or the rows under a prefix, of one of the actor's tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Query {
    Get {
        table: &'static str,
        key: Vec<u8>,
    },
    /// At most `limit` rows whose key starts with `prefix`, in key order or backwards.
    Scan {
        table: &'static str,
        prefix: Vec<u8>,
        newest_first: bool,
        limit: u32,
    },
}

/// Key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// What a decision may know beside the state: rows, the epoch, and a number that nobody could have guessed.
#[derive(Debug, Clone, Default)]
pub struct Reads {
    rows: BTreeMap<Query, Vec<Row>>,
    epoch: Epoch,
    entropy: u64,
}

impl Reads {
    #[must_use]
    pub fn new(epoch: Epoch, entropy: u64) -> Self {
        Self { rows: BTreeMap::new(), epoch, entropy }
    }

    pub fn insert(&mut self, query: Query, rows: Vec<Row>) {
        self.rows.insert(query, rows);
    }

    /// The rows that answer a query of [`Core::queries`]; empty if there are none.
    #[must_use]
    pub fn rows(&self, query: &Query) -> &[Row] {
        self.rows.get(query).map_or(&[], Vec::as_slice)
    }

    #[must_use]
    pub fn get(&self, table: &'static str, key: &[u8]) -> Option<&[u8]> {
        let query = Query::Get { table, key: key.to_vec() };
        self.rows.get(&query)?.first().map(|(_, value)| value.as_slice())
    }

    /// This life of the kernel.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Another number for every call of `decide` or `settle`; from a seed in a simulation.
    #[must_use]
    pub fn entropy(&self) -> u64 {
        self.entropy
    }
}
