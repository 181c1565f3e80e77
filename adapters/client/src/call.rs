//! Calls and streams, typed and raw. Each cancels itself when it is dropped before its end.

use std::future::{Future, IntoFuture};
use std::hash::{BuildHasher, Hasher};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eclosion_schemas::frame::{Envelope, Frame, FrameType, StreamId, WireCodec};
use eclosion_schemas::operation::Operation;
use eclosion_schemas::{Error, codec};
use tokio::sync::mpsc;

use crate::Client;
use crate::connection::Connection;

/// A call is given up after this, unless it says otherwise.
const DEADLINE: Duration = Duration::from_secs(30);
/// Streams last until they end or are dropped; the kernel's own limit is a day.
const STREAM_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// Items that may be under way; half of them taken gives as many again.
const CREDIT: u64 = 64;
/// After the kernel's own deadline has passed, its answer has this long to arrive.
const LATE: Duration = Duration::from_secs(2);

/// A call to be sent. Await it.
#[derive(Debug)]
pub struct Call<'a, O: Operation> {
    client: &'a Client,
    request: O::Request,
    deadline: Duration,
    idem: Option<String>,
}

impl<'a, O: Operation> Call<'a, O> {
    pub(crate) fn new(client: &'a Client, request: O::Request) -> Self {
        let idem = O::MUTATES.then(fresh_key);
        Self { client, request, deadline: DEADLINE, idem }
    }

    /// How long the caller waits; it travels with the call.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same key again gets the same answer.
    #[must_use]
    pub fn idem(mut self, key: impl Into<String>) -> Self {
        self.idem = Some(key.into());
        self
    }

    async fn send(self) -> Result<O::Reply, Error> {
        let Self { client, request, deadline, idem } = self;
        let body = codec::encode(&request)?;
        let envelope = Envelope { deadline_ms: Some(millis(deadline)), idem, ..Envelope::default() };
        let answered = async {
            let mut raw = client.raw(O::NAME, body.into(), envelope).await?;
            // Items of a stream that is used as a call are not wanted.
            while raw.item().await?.is_some() {}
            Ok(codec::decode::<O::Reply>(&raw.reply()?)?)
        };
        match tokio::time::timeout(deadline + LATE, answered).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::deadline(O::NAME)),
        }
    }
}

impl<'a, O: Operation> IntoFuture for Call<'a, O> {
    type Output = Result<O::Reply, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// Items, and then a reply.
#[derive(Debug)]
pub struct Stream<O> {
    raw: Raw,
    operation: PhantomData<fn() -> O>,
}

impl<O: Operation> Stream<O> {
    pub(crate) fn new(raw: Raw) -> Self {
        Self { raw, operation: PhantomData }
    }

    /// The next item; `None` once the reply is there. Cancel-safe.
    ///
    /// # Errors
    /// What ended the stream.
    pub async fn item(&mut self) -> Result<Option<O::Item>, Error> {
        match self.raw.item().await? {
            Some(bytes) => Ok(Some(codec::decode(&bytes)?)),
            None => Ok(None),
        }
    }

    /// The reply, once [`Stream::item`] has given `None`.
    ///
    /// # Errors
    /// `invalid` before that.
    pub fn reply(&mut self) -> Result<O::Reply, Error> {
        Ok(codec::decode(&self.raw.reply()?)?)
    }
}

/// A stream of bytes: msgpack items, and then a msgpack reply.
#[derive(Debug)]
pub struct Raw {
    connection: Arc<Connection>,
    stream: StreamId,
    frames: mpsc::UnboundedReceiver<Frame>,
    taken: u64,
    granted: u64,
    reply: Option<Bytes>,
    over: bool,
}

impl Raw {
    pub(crate) async fn open(
        connection: &Arc<Connection>,
        method: &str,
        body: Bytes,
        envelope: Envelope,
    ) -> Result<Self, Error> {
        let (stream, frames) = connection.stream()?;
        let raw = Self {
            connection: Arc::clone(connection),
            stream,
            frames,
            taken: 0,
            granted: CREDIT,
            reply: None,
            over: false,
        };
        let deadline_ms = envelope.deadline_ms.unwrap_or_else(|| millis(STREAM_DEADLINE));
        let envelope = Envelope {
            method: Some(method.into()),
            credit: Some(CREDIT),
            deadline_ms: Some(deadline_ms),
            ..envelope
        };
        let call =
            Frame::new(FrameType::Call, stream).with_envelope(envelope).with_body(WireCodec::Msgpack, body);
        connection.send(call).await?;
        Ok(raw)
    }

    /// The next item; `None` once the reply is there. Cancel-safe.
    ///
    /// # Errors
    /// What ended the stream.
    pub async fn item(&mut self) -> Result<Option<Bytes>, Error> {
        if self.over {
            return Ok(None);
        }
        let Some(frame) = self.frames.recv().await else {
            self.over = true;
            return Err(self.connection.why());
        };
        if frame.kind == FrameType::Error {
            self.over = true;
            return Err(frame.to_error());
        }
        if frame.is_end() {
            self.over = true;
            self.reply = Some(frame.body);
            return Ok(None);
        }
        self.taken += 1;
        if self.granted - self.taken <= CREDIT / 2 {
            self.granted = self.taken + CREDIT;
            let credit = Envelope { credit: Some(self.granted), ..Envelope::default() };
            self.connection.send(Frame::new(FrameType::Credit, self.stream).with_envelope(credit)).await?;
        }
        Ok(Some(frame.body))
    }

    /// The reply, once [`Raw::item`] has given `None`.
    ///
    /// # Errors
    /// `invalid` before that.
    pub fn reply(&mut self) -> Result<Bytes, Error> {
        let early = || Error::invalid("client.reply", "the stream has not given its reply");
        self.reply.clone().ok_or_else(early)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if !self.over {
            self.connection.forget(self.stream);
            self.connection.send_now(Frame::new(FrameType::Cancel, self.stream));
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A key that nobody else will choose.
fn fresh_key() -> String {
    let random = || std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}
