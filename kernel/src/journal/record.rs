//! One fact at its place in the journal.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use eclosion_schemas::events::Event;
use eclosion_schemas::{EffectId, Epoch, Seq, Timestamp};

/// Larger things are files that an event names.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;

/// A record. Typed in the process that appended it, decoded from its stored bytes in every later one.
pub struct Record {
    pub seq: Seq,
    pub epoch: Epoch,
    pub at: Timestamp,
    pub kind: Arc<str>,
    pub version: u16,
    /// The effect whose performance led to it.
    pub cause: Option<EffectId>,
    /// msgpack with named fields.
    pub body: Bytes,
    value: Option<Arc<dyn Any + Send + Sync>>,
    undecodable: AtomicBool,
}

/// The parts of a record that is read back from where it is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    pub seq: Seq,
    pub epoch: Epoch,
    pub at: Timestamp,
    pub kind: Arc<str>,
    pub version: u16,
    pub cause: Option<EffectId>,
    pub body: Bytes,
}

impl From<Stored> for Record {
    fn from(stored: Stored) -> Self {
        let Stored { seq, epoch, at, kind, version, cause, body } = stored;
        Self { seq, epoch, at, kind, version, cause, body, value: None, undecodable: AtomicBool::new(false) }
    }
}

impl Record {
    #[must_use]
    pub fn with_value(stored: Stored, value: Arc<dyn Any + Send + Sync>) -> Self {
        Self { value: Some(value), ..Self::from(stored) }
    }

    #[must_use]
    pub fn is<E: Event>(&self) -> bool {
        &*self.kind == E::KIND
    }

    /// The event, if it is one of this type.
    ///
    /// A body of the right kind that cannot be decoded also gives `None`, and marks the record: see
    /// [`Record::is_undecodable`].
    #[must_use]
    pub fn event<E: Event>(&self) -> Option<Arc<E>> {
        if !self.is::<E>() {
            return None;
        }
        if let Some(value) = &self.value
            && let Ok(event) = Arc::clone(value).downcast::<E>()
        {
            return Some(event);
        }
        let decoded = rmp_serde::from_slice(&self.body).ok().map(Arc::new);
        if decoded.is_none() {
            self.undecodable.store(true, Ordering::Relaxed);
        }
        decoded
    }

    /// Somebody folded it and could not: the state is not to be trusted.
    #[must_use]
    pub fn is_undecodable(&self) -> bool {
        self.undecodable.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {} v{}", self.seq, self.kind, self.version)
    }
}
