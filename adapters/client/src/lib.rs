//! The Rust client of a kernel in another process.
//!
//! ```no_run
//! # async fn demo() -> Result<(), eclosion_schemas::Error> {
//! use eclosion_client::Client;
//! use eclosion_schemas::ops::kernel::{Empty, Status};
//! let client = Client::connect(std::path::Path::new("/run/user/1000/eclosion/default.sock")).await?;
//! println!("{} is {}", client.instance(), client.call::<Status>(Empty {}).await?.state);
//! # Ok(()) }
//! ```
//!
//! One connection carries any number of calls at once. Dropping a call or a stream cancels it. When the connection ends,
//! everything pending resolves with `unavailable` and the reason (P3); a client does not reconnect by itself.

mod call;
mod connection;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eclosion_schemas::frame::{API, API_COMPATIBLE, Envelope, Frame, FrameType, StreamId};
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::kernel::{OnFull, Subscribe, SubscribeRequest};
use eclosion_schemas::{Code, Epoch, Error, codec};
use tokio::net::UnixStream;

pub use call::{Call, Raw, Stream};
use connection::Connection;

/// Connecting and greeting together.
const CONNECT: Duration = Duration::from_secs(5);

/// An attached client. Cheap to clone; the connection ends with the last clone and the last call.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Arc<Connection>,
    welcome: Arc<Envelope>,
}

impl Client {
    /// Connects and greets, on the current runtime.
    ///
    /// # Errors
    /// `unavailable` when nobody listens there, `denied` when it may not be opened, `deadline` when whoever listens says
    /// nothing, and what the kernel refuses with: `precondition` for a version that does not fit.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        match tokio::time::timeout(CONNECT, Self::greet(path)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::deadline(&format!("greeting {}", path.display()))
                .help("eclosion status; eclosion doctor")),
        }
    }

    async fn greet(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).await.map_err(|why| unreachable(path, &why))?;
        let hello = Envelope {
            client: Some(concat!("eclosion-rust/", env!("CARGO_PKG_VERSION")).into()),
            api: Some(API),
            api_compatible: Some(API_COMPATIBLE),
            ..Envelope::default()
        };
        let hello = Frame::new(FrameType::Hello, StreamId::CONNECTION).with_envelope(hello);
        let (connection, welcome) = Connection::open(stream, hello).await?;
        Ok(Self { connection, welcome: Arc::new(welcome) })
    }

    /// What the kernel said of itself.
    #[must_use]
    pub fn welcome(&self) -> &Envelope {
        &self.welcome
    }

    #[must_use]
    pub fn instance(&self) -> &str {
        self.welcome.instance.as_deref().unwrap_or("")
    }

    /// The life of the kernel that this connection belongs to.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.welcome.epoch.unwrap_or_default()
    }

    /// A call with one reply. A mutating one carries an idempotency key of its own, unless it is given one.
    #[must_use = "nothing is sent before it is awaited"]
    pub fn call<O: Operation>(&self, request: O::Request) -> Call<'_, O> {
        Call::new(self, request)
    }

    /// A call whose reply is preceded by items.
    ///
    /// # Errors
    /// When the connection is over, or the request cannot be encoded.
    pub async fn stream<O: Operation>(&self, request: O::Request) -> Result<Stream<O>, Error> {
        let body = codec::encode(&request)?;
        let raw = self.raw(O::NAME, body.into(), Envelope::default()).await?;
        Ok(Stream::new(raw))
    }

    /// Subscribes: an acknowledgement, what is retained, then changes.
    ///
    /// # Errors
    /// As [`Client::stream`].
    pub async fn subscribe(&self, filter: &str, on_full: OnFull) -> Result<Stream<Subscribe>, Error> {
        self.stream::<Subscribe>(SubscribeRequest { filter: filter.to_owned(), on_full }).await
    }

    /// A call of an operation that only the kernel knows; the body is msgpack.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn raw(&self, method: &str, body: Bytes, envelope: Envelope) -> Result<Raw, Error> {
        Raw::open(&self.connection, method, body, envelope).await
    }

    /// Waits until the connection is over, and says why.
    pub async fn closed(&self) -> Error {
        self.connection.closed().await
    }
}

fn unreachable(path: &Path, why: &std::io::Error) -> Error {
    let message = format!("no kernel can be reached at {}: {why}", path.display());
    match why.kind() {
        std::io::ErrorKind::PermissionDenied => Error::new(Code::Denied, "client.denied", message),
        _ => Error::new(Code::Unavailable, "client.unreachable", message).help("eclosion up"),
    }
}
