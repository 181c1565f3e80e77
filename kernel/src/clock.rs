//! Time and entropy, injected. Nothing else in the kernel asks the machine what time it is.

use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

use eclosion_schemas::Timestamp;

/// What a kernel takes from its surroundings besides messages.
pub trait Clock: Send + Sync + Debug + 'static {
    /// Wall time. Used for what people read and for waiting; never for safety.
    fn now(&self) -> Timestamp;

    /// A number that nobody could have guessed.
    fn entropy(&self) -> u64;
}

/// The machine's clock and the process's random keys.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn entropy(&self) -> u64 {
        // Each RandomState has keys of its own from the system's generator.
        std::collections::hash_map::RandomState::new().build_hasher().finish()
    }
}
