//! One fact at its place in the journal.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use eclosion_schemas::events::Event;
use eclosion_schemas::{EffectId, Epoch, Seq, Timestamp};

/// Larger things are files that an event names.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;

/// A record. Typed in the process that appended it; in every later one it is decoded from its stored bytes, by the first
/// who asks and for all.
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
    value: OnceLock<Arc<dyn Any + Send + Sync>>,
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
        let (value, undecodable) = (OnceLock::new(), AtomicBool::new(false));
        Self { seq, epoch, at, kind, version, cause, body, value, undecodable }
    }
}

impl Record {
    #[must_use]
    pub fn with_value(stored: Stored, value: Arc<dyn Any + Send + Sync>) -> Self {
        Self { value: OnceLock::from(value), ..Self::from(stored) }
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
        if let Some(value) = self.value.get()
            && let Ok(event) = Arc::clone(value).downcast::<E>()
        {
            return Some(event);
        }
        let Ok(decoded) = rmp_serde::from_slice(&self.body).map(Arc::new) else {
            self.undecodable.store(true, Ordering::Relaxed);
            return None;
        };
        // Whoever was first says the same.
        let _ = self.value.set(Arc::clone(&decoded) as _);
        Some(decoded)
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
