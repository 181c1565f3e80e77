//! The Rust client: calls, streams and subscriptions over a kernel's local socket.
//!
//! It knows the schemas and nothing else of the kernel. A [`Client`] is a cheap handle on one connection; any number of
//! calls share it, and none waits for another: a stream whose items nobody takes stops at its credit.
//!
//! ```no_run
//! # async fn example() -> Result<(), eclosion_schemas::Error> {
//! use eclosion_client::Client;
//! use eclosion_schemas::ops::kernel::{Empty, Status};
//! let client = Client::connect("/run/user/1000/eclosion/default.sock").await?;
//! let status = client.call::<Status>(Empty {}).await?;
//! let mut changes = client.subscribe("run/**").await?;
//! while let Some(delivery) = changes.next().await {
//!     println!("{:?} of kernel {}", delivery?, status.pid);
//! }
//! # Ok(()) }
//! ```
//!
//! Invariants: (1) Whatever is pending resolves: with its answer, at its deadline, or with a typed error once the
//! connection is gone (P3). (2) Dropping a call or a stream cancels it at the kernel. (3) Mutating operations carry an
//! idempotency key. (4) Memory is bounded: outwards by a cap that callers wait under, inwards by credit (P5).
//!
//! A [`Client`] deliberately does not reconnect: what was under way when a connection broke is `unknown` to the caller, who
//! has the idempotency key and decides. A [`Follow`] does: it is a subscription that goes on with the next kernel.
//!
//! Both are [`eclosion_schemas::client::Client`] made for a socket: what is written against that trait runs inside the
//! kernel's own process too.
//!
//! Reading order: [`connect`], [`call`], then the connection that they share; [`serve`], for the other direction.

pub mod call;
pub mod connect;
mod connection;
mod exchange;
pub mod follow;
mod forms;
pub mod memory;
pub mod serve;

pub use call::{Call, StreamCall, Streaming, Subscribe};
pub use connect::ConnectOptions;
pub use eclosion_schemas::client::CallOptions;
pub use exchange::Exchange;
pub use follow::Follow;
pub use memory::Object;
pub use serve::{Called, Service, Serving};

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use eclosion_schemas::frame::Envelope;
use eclosion_schemas::operation::Operation;
use eclosion_schemas::{Error, Role};
use tokio::net::UnixStream;

use crate::connection::{Driver, Shared};
use crate::forms::Request;

/// One connection to a kernel. It closes with its last clone and the last call made through it.
#[derive(Debug, Clone)]
pub struct Client(Arc<Handle>);

/// Ends the driver when nobody is left who could ask.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    driver: tokio::task::AbortHandle,
    /// Where it may connect again; nowhere over a stream that was given.
    origin: Option<(PathBuf, ConnectOptions)>,
    trace: Option<Box<str>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    /// Connects as this user's client, within two seconds. Inside a tokio runtime with I/O and time; the connection is
    /// driven by one task there.
    ///
    /// # Errors
    /// `unavailable` when nobody listens, `deadline`, or what the kernel refuses the client for.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_with(path, ConnectOptions::default()).await
    }

    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_with(path: impl AsRef<Path>, options: ConnectOptions) -> Result<Self, Error> {
        let path = path.as_ref();
        let (shared, driver) = connect::connect(path, &options).await?;
        Ok(Self::driven(shared, driver, options.trace.clone(), Some((path.to_owned(), options))))
    }

    /// Greets a kernel at the other end of a stream that is connected already, as one that was inherited. When it ends
    /// there is nothing to connect to again.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn over(stream: UnixStream, options: ConnectOptions) -> Result<Self, Error> {
        let (shared, driver) = connect::over(stream, &options).await?;
        Ok(Self::driven(shared, driver, options.trace, None))
    }

    /// Calls an operation; `.await` sends it and gives the reply. Items, should it stream, are passed over.
    pub fn call<O: Operation>(&self, request: O::Request) -> Call<'_, O> {
        Call::new(self, request)
    }

    /// Calls an operation that streams; `.await` sends it and gives the stream.
    pub fn stream<O: Operation>(&self, request: O::Request) -> StreamCall<'_, O> {
        StreamCall::new(self, request)
    }

    /// Subscribes to subjects; `.await` gives the stream of deliveries.
    pub fn subscribe(&self, filter: impl Into<String>) -> Subscribe<'_> {
        Subscribe::new(self, filter.into())
    }

    /// Calls an operation by its name, with msgpack in and msgpack out.
    ///
    /// # Errors
    /// `unavailable` when the connection is gone, `exhausted` for a request over the limits.
    pub async fn open(&self, method: &str, request: Bytes, options: CallOptions) -> Result<Exchange, Error> {
        Exchange::open(self, method, Request::named(request), options).await
    }

    pub(crate) fn origin(&self) -> Option<&(PathBuf, ConnectOptions)> {
        self.0.origin.as_ref()
    }

    /// What the kernel said of itself: server, instance, epoch, limits, `describe_hash`.
    #[must_use]
    pub fn welcome(&self) -> &Envelope {
        self.0.shared.welcome()
    }

    /// What this client may do.
    #[must_use]
    pub fn role(&self) -> Role {
        self.welcome().role.unwrap_or(Role::View)
    }

    /// Returns once the connection is gone, and why.
    pub async fn closed(&self) -> Error {
        poll_fn(|task| self.shared().poll_closed(task)).await
    }

    fn trace(&self) -> Option<&str> {
        self.0.trace.as_deref()
    }

    fn driven(
        shared: Arc<Shared>,
        driver: Driver,
        trace: Option<String>,
        origin: Option<(PathBuf, ConnectOptions)>,
    ) -> Self {
        let driver = tokio::spawn(driver.run()).abort_handle();
        Self(Arc::new(Handle { shared, driver, origin, trace: trace.map(String::into_boxed_str) }))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }
}
