//! Identifiers. Each is a newtype, so that a run can never be passed where a worker is meant.
//!
//! Strings travel as they are shown; numbers are ordered. None of them is random by itself: whoever makes one is
//! handed its ingredients (clock, counter, seed), so that a simulation can repeat it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An identifier that is not well formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} `{value}` must be 1 to {max} characters of {NAME_CHARACTERS}")]
pub struct InvalidId {
    pub kind: &'static str,
    pub value: String,
    pub max: usize,
}

/// Longest identifier in bytes; a subject has room for several of them.
pub const ID_BYTES_MAX: usize = 96;

/// What identifiers and the chunks of subjects are written with, as refusals say it.
pub const NAME_CHARACTERS: &str = "A-Z a-z 0-9 - _ . : = + ~ [ ]";

/// Whether every character is one of [`NAME_CHARACTERS`]; the empty text is fine here.
#[must_use]
pub fn has_name_characters(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:=+~[]".contains(&b))
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= ID_BYTES_MAX && has_name_characters(text)
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the characters and the length.
            ///
            /// # Errors
            /// [`InvalidId`] names the kind and the offending value.
            pub fn new(text: impl Into<Arc<str>>) -> Result<Self, InvalidId> {
                let text = text.into();
                if is_id(&text) {
                    Ok(Self(text))
                } else {
                    let value = text.chars().take(ID_BYTES_MAX).collect();
                    Err(InvalidId { kind: stringify!($name), value, max: ID_BYTES_MAX })
                }
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

string_id!(
    /// What makes two steps equal, as one hash: 32 hexadecimal characters.
    CacheKey
);
string_id!(
    /// One run of a flow. Fresh for every run; eight characters of base 32.
    RunId
);
string_id!(
    /// One task inside a run: its name in the flow, with `[n]` behind it for the n-th of a fan-out.
    TaskId
);
string_id!(
    /// One worker process: `w-EPOCH-COUNTER`, or `a-EPOCH-COUNTER` if it was started by hand.
    WorkerId
);
string_id!(
    /// One call of a function that is not part of a run: `call-EPOCH-COUNTER`. No run's id is as long.
    CallId
);

impl TaskId {
    /// Whether this is one of those that the fan-out of that name has become.
    #[must_use]
    pub fn is_instance_of(&self, fan_out: &TaskId) -> bool {
        let rest = self.as_str().strip_prefix(fan_out.as_str());
        rest.is_some_and(|rest| rest.starts_with('[') && rest.ends_with(']'))
    }
}

impl CallId {
    /// What each begins with.
    pub const PREFIX: &str = "call-";
}

string_id!(
    /// One right to hold resources.
    LeaseId
);
string_id!(
    /// What a client calls its own claim to a lease by: who knows it may take it up again, or give it back.
    LeaseKey
);
string_id!(
    /// The hash of what an environment is made from.
    EnvironmentId
);
string_id!(
    /// The name of a content: 64 lower-case hexadecimal characters of its BLAKE3 hash.
    Digest
);
string_id!(
    /// What a schedule is called by; unique while it exists.
    ScheduleName
);
string_id!(
    /// What a service that the kernel holds is called by.
    ServiceName
);
string_id!(
    /// Who pays: runs of one tenant share its weight.
    Tenant
);
string_id!(
    /// One thing that retention looks after, among those of its kind: a run, a digest, a worker's output.
    ItemId
);

impl Digest {
    #[must_use]
    pub fn is_blake3(&self) -> bool {
        self.as_str().len() == 64 && self.as_str().bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// The place of a record in the journal. The first is 1; gapless above the horizon; never reused.
    Seq(u64)
);
number_id!(
    /// One life of the kernel on one state directory; raised and synced before a socket is bound.
    Epoch(u32)
);
number_id!(
    /// The n-th life of one actor or worker, from 1.
    Incarnation(u32)
);
number_id!(
    /// The n-th try of a task, from 1.
    Attempt(u32)
);
number_id!(
    /// Milliseconds since 1970-01-01 UTC, from the injected clock. Never decides safety.
    Timestamp(u64)
);

impl Seq {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Timestamp {
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    #[must_use]
    pub fn since_ms(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The right to commit the result of one attempt. Totally ordered: a later epoch beats any counter.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct Fence {
    pub epoch: Epoch,
    pub counter: u64,
}

impl Fence {
    /// No kernel lives this long: fences of it number calls, which nobody journals, and never meet an attempt's.
    const CALLS: Epoch = Epoch(u32::MAX);

    /// The fence of a call that is not journaled.
    #[must_use]
    pub fn of_call(counter: u64) -> Self {
        Self { epoch: Self::CALLS, counter }
    }

    #[must_use]
    pub fn is_of_call(self) -> bool {
        self.epoch == Self::CALLS
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

/// An effect: the n-th thing owed because of the record `seq`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct EffectId {
    pub seq: Seq,
    pub n: u32,
}

impl fmt::Display for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.seq, self.n)
    }
}

/// A task of a run; what events, ledgers and logs call it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct TaskRef {
    pub run: RunId,
    pub task: TaskId,
}

impl TaskRef {
    #[must_use]
    pub fn new(run: RunId, task: TaskId) -> Self {
        Self { run, task }
    }
}

impl fmt::Display for TaskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run, self.task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_could_reach_a_path() {
        for bad in ["", "../x", "a/b", "a b", "é", "a\0b", &"x".repeat(97)] {
            assert!(RunId::new(bad).is_err(), "{bad:?}");
        }
        assert!(TaskId::new("train[3]").is_ok());
    }

    #[test]
    fn a_fan_out_is_asked_for_by_its_name() {
        let id = |text: &str| TaskId::new(text).unwrap();
        assert!(id("train[3]").is_instance_of(&id("train")));
        assert!(
            !["train", "trainer[3]", "train-x[3]"].iter().any(|task| id(task).is_instance_of(&id("train")))
        );
    }

    #[test]
    fn a_later_epoch_beats_any_counter() {
        let old = Fence { epoch: Epoch(1), counter: u64::MAX };
        assert!(Fence { epoch: Epoch(2), counter: 0 } > old);
    }
}
