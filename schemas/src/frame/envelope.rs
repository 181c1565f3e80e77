//! The envelope: what a router reads without touching the body.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FRAME_BYTES_MAX, FrameError, StreamId};
use crate::codec::{self, Bounds};
use crate::ids::{Attempt, EffectId, Epoch, Fence, Seq};
use crate::operation::Role;
use crate::timings::Stage;

macro_rules! envelope {
    ($($(#[$doc:meta])* $key:ident: $type:ty,)+) => {
        /// A msgpack map with whole words as keys. Every key is optional, absent rather than nil, and unknown keys
        /// are ignored. An empty envelope is zero bytes long.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(default)]
        pub struct Envelope {
            $(
                $(#[$doc])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $key: Option<$type>,
            )+
        }

        impl Envelope {
            const EMPTY: Self = Self { $($key: None,)+ };
        }
    };
}

envelope! {
    /// HELLO: name and version of the program, `eclosion-python/0.1.0`.
    client: String,
    /// WELCOME: the same of the kernel.
    server: String,
    /// WELCOME: the name of this kernel's instance.
    instance: String,
    /// CALL: the operation.
    method: String,
    /// PUB, and DATA of a subscription.
    subject: String,
    /// A journal position, with its epoch.
    seq: Seq,
    epoch: Epoch,
    /// The message's own id.
    id: String,
    /// The effect that this message performs; the same cause again gets the recorded reply.
    cause: EffectId,
    /// W3C traceparent.
    trace: String,
    /// CALL: how long the caller waits from now on.
    deadline_ms: u64,
    /// CALL: items that may be sent at first. CREDIT: items that may be sent in sum since the stream began.
    credit: u64,
    /// CALL: whether the answer is to say where the time went.
    timings: bool,
    /// The answer to a call with `timings`: where the time went, in order.
    stages: Vec<Stage>,
    /// The answer of a worker or a service to a call with `timings` or `trace`: when it began and when it ended, in
    /// nanoseconds of Unix time.
    ran: [u64; 2],
    /// Where a subscription begins: `new`, `all` or a cursor `EPOCH:SEQ`.
    start: String,
    /// `gap`, `latest`, `close` or `block`. Text, so that a later release's word costs a call and not the connection.
    on_full: String,
    /// A queue group: each message goes to one of its members.
    group: String,
    /// The idempotency key.
    idem: String,
    /// `name@hash` of the body's schema.
    schema: String,
    headers: BTreeMap<String, String>,
    attempt: Attempt,
    /// What the sender speaks, and the oldest api that it understands.
    api: u32,
    api_compatible: u32,
    features: Vec<String>,
    /// HELLO: the role wished for. WELCOME: the role given.
    role: Role,
    /// WELCOME: what the kernel enforces.
    limits: Limits,
    /// WELCOME: the hash of the table of operations, so that a client may keep what it knows of it.
    describe_hash: String,
    /// WELCOME to a worker: for each attempt that its HELLO named, the stream on which its outcome is wanted.
    resume: Vec<StreamId>,
    /// CALL to a worker: outcomes of attempts whose fence is below this are safe.
    safe_below: Fence,
    /// CANCEL to a worker: 0 takes an attempt back that has not begun, 1 trips the token, 2 raises in the main thread.
    rung: u8,
    /// The bytes `[from, to)` of the worker's output files that belong to the attempt.
    stdout: [u64; 2],
    stderr: [u64; 2],
    /// ERROR: the error's own reason, for a reader that leaves the body alone. GOAWAY: why.
    reason: String,
    /// PONG of a worker: what it computes.
    running: Fence,
    /// PONG of a worker: how long a pending call waited for the interpreter lock.
    gil_lag_ms: u64,
}

impl Envelope {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }
}

/// An envelope as a frame carries it: most frames have none, and a frame without one is a tenth as large to move.
#[derive(Clone, Default)]
pub struct Carried(Option<Box<Envelope>>);

impl Carried {
    #[must_use]
    pub fn into_inner(self) -> Envelope {
        self.0.map(|envelope| *envelope).unwrap_or_default()
    }

    /// Appends the envelope and returns its length.
    pub(super) fn write(&self, out: &mut BytesMut) -> Result<usize, FrameError> {
        let Some(envelope) = self.0.as_ref().filter(|envelope| !envelope.is_empty()) else { return Ok(0) };
        let start = out.len();
        let written = rmp_serde::encode::write_named(&mut out.writer(), envelope);
        written.map_err(|why| codec::CodecError::Shape { text: why.to_string() })?;
        Ok(out.len() - start)
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.is_empty() { Ok(Self::default()) } else { Ok(Self(Some(codec::decode(bytes)?))) }
    }
}

impl From<Envelope> for Carried {
    fn from(envelope: Envelope) -> Self {
        Self((!envelope.is_empty()).then(|| Box::new(envelope)))
    }
}

impl std::ops::Deref for Carried {
    type Target = Envelope;

    fn deref(&self) -> &Envelope {
        static EMPTY: Envelope = Envelope::EMPTY;
        self.0.as_deref().unwrap_or(&EMPTY)
    }
}

impl std::ops::DerefMut for Carried {
    fn deref_mut(&mut self) -> &mut Envelope {
        self.0.get_or_insert_with(Box::default)
    }
}

impl PartialEq for Carried {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl std::fmt::Debug for Carried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

impl Serialize for Carried {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

/// What a kernel enforces on each connection, as it tells it in WELCOME. A key that is absent has its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    /// The largest `len` of a frame, and the largest body of a message in fragments.
    pub frame_bytes: u32,
    pub envelope_bytes: u16,
    /// Calls without an answer.
    pub inflight: u32,
    /// Open streams.
    pub streams: u32,
    pub subscriptions: u32,
    /// Connections of the kernel in sum.
    pub connections: u32,
    /// From connecting to HELLO.
    pub hello_ms: u32,
    /// Arrays and maps inside each other.
    pub nesting: u32,
    /// Values of one message in sum.
    pub elements: u32,
    /// The body of one frame of a message in fragments.
    pub fragment_bytes: u32,
    /// Bodies of unfinished messages in sum.
    pub assembly_bytes: u32,
}

impl Limits {
    pub const DEFAULT: Self = Self {
        frame_bytes: FRAME_BYTES_MAX as u32,
        envelope_bytes: 16 * 1024,
        inflight: 256,
        streams: 1024,
        subscriptions: 256,
        connections: 128,
        hello_ms: 2_000,
        nesting: Bounds::DEFAULT.nesting as u32,
        elements: Bounds::DEFAULT.elements as u32,
        fragment_bytes: 64 * 1024,
        assembly_bytes: 2 * (1 << 24),
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
