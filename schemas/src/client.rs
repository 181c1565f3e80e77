//! One client, wherever the kernel is: in this process, or behind a socket.
//!
//! Code that is written against [`Client`] does not know which. Inside the kernel's process values travel as they are
//! (`LocalClient` of the bus); an attached client encodes them (`eclosion-client`). One suite is run over both
//! (`tests/conformance/tests/clients.rs`).
//!
//! ```
//! use eclosion_schemas::client::Client;
//! use eclosion_schemas::ops::kernel::{Empty, Status};
//! async fn pid(client: &impl Client) -> Result<u32, eclosion_schemas::Error> {
//!     Ok(client.call::<Status>(Empty {}).await?.pid)
//! }
//! ```
//!
//! What every implementation keeps:
//!
//! 1. Whatever is pending resolves: with its answer, at its deadline, or with a typed error (P3).
//! 2. Dropping a call, a stream or a subscription cancels it where it runs.
//! 3. Roles, names and requests are checked alike, and refused with the same code and reason.
//! 4. Items come as far as they are taken; memory is bounded by credit (P5).
//! 5. Between two deliveries of [`Deliveries`] nothing is missing, unless a `gap` or a `reset` stands between them.

mod calls;

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

pub use self::calls::{Call, StreamCall, Subscribe, Subscription};
use crate::codec::{self, json};
use crate::error::Error;
use crate::operation::Operation;
use crate::ops::kernel::{self, Delivery, DescribeRequest, Publish, PublishRequest};
use crate::timings::Timed;

/// The deadline of a call that names none.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// The longest deadline, and that of a stream that names none.
pub const DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What rides along with a call.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// How long to wait in sum; without one 30 s, and a day for a stream.
    pub deadline: Option<Duration>,
    /// The idempotency key.
    pub idem: Option<String>,
    /// W3C traceparent.
    pub trace: Option<String>,
    /// Items under way at most; 64 unless named, 0 for a call without items.
    pub credit: Option<u64>,
    /// Whether the answer is to say where the time went.
    pub timings: bool,
}

/// See the head of this file. A cheap handle.
pub trait Client: Clone + Debug + Send + Sync + 'static {
    type Items<O: Operation>: Items<O>;
    type Raw: RawItems;
    type Deliveries: Deliveries;

    /// Sends a call; [`Client::call`] and [`Client::stream`] are made of it.
    ///
    /// # Errors
    /// `unavailable` when the connection is gone, `exhausted` for a request over the limits. What the kernel refuses comes
    /// with the reply.
    fn begin<O: Operation>(
        &self,
        request: O::Request,
        options: CallOptions,
    ) -> impl Future<Output = Result<Self::Items<O>, Error>> + Send;

    /// Calls an operation by its name, with msgpack in and msgpack out.
    ///
    /// # Errors
    /// As [`Client::begin`].
    fn open(
        &self,
        method: &str,
        request: Bytes,
        options: CallOptions,
    ) -> impl Future<Output = Result<Self::Raw, Error>> + Send;

    /// A subscription that goes on where it was when the connection or the kernel is lost, for as long as `patience` says.
    /// Nothing is subscribed before its first delivery is asked for.
    fn follow(&self, filter: impl Into<String>, patience: Duration) -> Self::Deliveries;

    /// Calls an operation; `.await` sends it and gives the reply. Items, should it stream, are passed over.
    fn call<O: Operation>(&self, request: O::Request) -> Call<'_, Self, O> {
        Call::new(self, request)
    }

    /// Calls an operation that streams; `.await` sends it and gives the stream.
    fn stream<O: Operation>(&self, request: O::Request) -> StreamCall<'_, Self, O> {
        StreamCall::new(self, request)
    }

    /// Subscribes to subjects; `.await` gives the stream of deliveries, which ends with the connection.
    fn subscribe(&self, filter: impl Into<String>) -> Subscribe<'_, Self> {
        Subscribe::new(self, filter.into())
    }

    /// Tells all who listen to a subject. It reaches those who are there; with `keep` it is a state, of which the last is
    /// shown to later subscribers too. Gives how many heard it.
    fn publish(
        &self,
        subject: impl Into<String>,
        value: impl Serialize + Send,
        keep: bool,
    ) -> impl Future<Output = Result<u64, Error>> + Send {
        let value = serde_json::to_value(value);
        let subject = subject.into();
        async move {
            let value = value.map_err(|why| Error::invalid("publish.value", why.to_string()))?;
            Ok(self.call::<Publish>(PublishRequest { subject, value, keep }).await?.heard)
        }
    }

    /// Calls an operation by its name, JSON in and JSON out, bytes as `{"$b64": …}`. Items are passed over.
    fn call_json(&self, name: &str, request: &Value) -> impl Future<Output = Result<Value, Error>> + Send {
        async move {
            let request = json::pack(request)?.into();
            let options = CallOptions { deadline: Some(DEADLINE_DEFAULT), ..CallOptions::default() };
            let reply = self.open(name, request, options).await?.reply().await?;
            Ok(json::from_msgpack(&reply)?)
        }
    }

    /// One operation as data: name, address, role, doc, example, schemas.
    fn describe(&self, name: &str) -> impl Future<Output = Result<Value, Error>> + Send {
        async move {
            let request = DescribeRequest { name: Some(name.to_owned()) };
            let mut found = self.call::<kernel::Describe>(request).await?.operations;
            found
                .pop()
                .ok_or_else(|| Error::not_found("operation.name", format!("there is no operation {name}")))
        }
    }
}

/// Items, then the reply. Dropping it cancels the call.
pub trait Items<O: Operation>: Send {
    /// The next item; `None` once there is none: then [`Items::reply`] says how it ended. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Result<O::Item, Error>>> + Send;

    /// The reply; items that were not taken are passed over.
    ///
    /// # Errors
    /// What the call ended with.
    fn reply(self) -> impl Future<Output = Result<O::Reply, Error>> + Send;

    /// The same, and where the time went of a call with [`CallOptions::timings`].
    fn timed(self) -> impl Future<Output = Timed<O::Reply>> + Send;
}

/// The same in msgpack.
pub trait RawItems: Debug + Send {
    /// As [`Items::next`].
    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes, Error>>> + Send;

    /// As [`Items::reply`].
    ///
    /// # Errors
    /// What the call ended with.
    fn reply(self) -> impl Future<Output = Result<Bytes, Error>> + Send;
}

/// A subscription with a cursor of its own.
pub trait Deliveries: Debug + Send {
    /// The next delivery. Cancel-safe: one that was not given is given by the next call.
    ///
    /// # Errors
    /// `unavailable` when no kernel came back in time, and what a kernel refuses.
    fn next(&mut self) -> impl Future<Output = Result<Delivery, Error>> + Send;
}

/// Reads what an operation answered.
///
/// # Errors
/// `internal` for bytes that this release cannot read.
pub fn read_answer<T: serde::de::DeserializeOwned>(operation: &str, bytes: &[u8]) -> Result<T, Error> {
    codec::decode(bytes).map_err(|why| {
        let text = format!("an answer of {operation} cannot be read: {why}");
        Error::internal("reply.malformed", text).help("use client and kernel of one release")
    })
}
