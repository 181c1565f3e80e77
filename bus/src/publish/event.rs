//! What is published, shared by all who receive it.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use eclosion_schemas::Error;
use eclosion_schemas::ids::{Epoch, Seq};
use serde::Serialize;

use crate::address::Subject;

/// A value and its place in the order of all things.
#[derive(Clone)]
pub struct Publication {
    pub epoch: Epoch,
    pub seq: Seq,
    value: Arc<dyn Published>,
    weight_bytes: u64,
}

impl Publication {
    /// Stays typed until a transport needs bytes.
    pub fn new<T: Serialize + Send + Sync + 'static>(epoch: Epoch, seq: Seq, value: T) -> Self {
        Self { epoch, seq, value: Arc::new(value), weight_bytes: 0 }
    }

    /// What it costs to keep it: a queue has room for so many bytes, apart from its number of places, and what has 64 KiB
    /// or more is not kept for who comes back with a cursor.
    #[must_use]
    pub fn weighing(self, bytes: u64) -> Self {
        Self { weight_bytes: bytes, ..self }
    }
}

impl fmt::Debug for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publication")
            .field("epoch", &self.epoch)
            .field("seq", &self.seq)
            .finish_non_exhaustive()
    }
}

/// A value of any type that can be encoded.
trait Published: Any + Send + Sync {
    fn to_json(&self) -> Result<serde_json::Value, Error>;
    fn encode(&self, tag: &'static str, event: &Event) -> Result<Vec<u8>, Error>;
}

impl<T: Serialize + Send + Sync + 'static> Published for T {
    fn to_json(&self) -> Result<serde_json::Value, Error> {
        serde_json::to_value(self).map_err(|why| not_encoded(&why))
    }

    fn encode(&self, tag: &'static str, event: &Event) -> Result<Vec<u8>, Error> {
        let (epoch, seq) = event.position();
        let wire = WireDelivery { tag, subject: event.subject.as_str(), epoch, seq, value: self };
        rmp_serde::to_vec_named(&wire).map_err(|why| not_encoded(&why))
    }
}

/// A `Delivery` of `schemas` with its value in place, so that it is not turned into JSON first.
#[derive(Serialize)]
struct WireDelivery<'a, T> {
    tag: &'static str,
    subject: &'a str,
    epoch: Epoch,
    seq: Seq,
    value: &'a T,
}

fn not_encoded(why: &dyn fmt::Display) -> Error {
    Error::internal("publish.encode", format!("a published value cannot be encoded: {why}"))
}

/// One publication on its way to all its receivers.
pub struct Event {
    pub subject: Subject,
    publication: Publication,
    change: OnceLock<Result<Arc<[u8]>, Error>>,
}

impl Event {
    pub(super) fn new(subject: Subject, publication: Publication) -> Self {
        Self { subject, publication, change: OnceLock::new() }
    }

    #[must_use]
    pub fn position(&self) -> (Epoch, Seq) {
        (self.publication.epoch, self.publication.seq)
    }

    pub(super) fn weight_bytes(&self) -> u64 {
        self.publication.weight_bytes
    }

    /// The value itself, for receivers in this process.
    #[must_use]
    pub fn value<T: 'static>(&self) -> Option<&T> {
        let value: &dyn Any = self.publication.value.as_ref();
        value.downcast_ref()
    }

    /// # Errors
    /// `internal` when the value refuses to be JSON.
    pub fn to_json(&self) -> Result<serde_json::Value, Error> {
        self.publication.value.to_json()
    }

    /// The msgpack of a `Delivery::Change`, made at most once for all receivers.
    ///
    /// # Errors
    /// `internal` when the value refuses to be encoded.
    pub fn encoded_change(&self) -> Result<Arc<[u8]>, Error> {
        let encode = || self.publication.value.encode("change", self).map(Arc::from);
        self.change.get_or_init(encode).clone()
    }

    /// The msgpack of the delivery with another value in place of its own, for one receiver: the same that lies somewhere
    /// else.
    ///
    /// # Errors
    /// `internal` when the value refuses to be encoded.
    pub fn encoded_as<T: Serialize + Send + Sync + 'static>(
        &self,
        value: &T,
        is_change: bool,
    ) -> Result<Vec<u8>, Error> {
        Published::encode(value, if is_change { "change" } else { "snapshot" }, self)
    }

    pub(super) fn encoded_snapshot(&self) -> Result<Arc<[u8]>, Error> {
        self.publication.value.encode("snapshot", self).map(Arc::from)
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("subject", &self.subject)
            .field("publication", &self.publication)
            .finish()
    }
}
