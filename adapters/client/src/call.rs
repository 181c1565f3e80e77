//! Typed calls: builders that are sent by `.await`.

use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::kernel::{self, Delivery, OnFull, SubscribeRequest};
use eclosion_schemas::{Code, Epoch, Error, Seq, Timed, codec};
use serde::de::DeserializeOwned;

use crate::Client;
use crate::exchange::{CallOptions, Exchange};

/// The deadline of a call that names none.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A call in the making; `.await` sends it.
#[derive(Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct Call<'a, O: Operation> {
    client: &'a Client,
    request: O::Request,
    options: CallOptions,
}

macro_rules! options {
    () => {
        /// How long to wait in sum.
        pub fn deadline(mut self, wait: Duration) -> Self {
            self.options.deadline = Some(wait);
            self
        }

        /// The key under which a repetition is known as such, in place of one of our own.
        pub fn idem(mut self, key: impl Into<String>) -> Self {
            self.options.idem = Some(key.into());
            self
        }

        /// A W3C traceparent.
        pub fn trace(mut self, parent: impl Into<String>) -> Self {
            self.options.trace = Some(parent.into());
            self
        }
    };
}

impl<'a, O: Operation> Call<'a, O> {
    pub(crate) fn new(client: &'a Client, request: O::Request) -> Self {
        let options =
            CallOptions { deadline: Some(DEADLINE_DEFAULT), idem: key_of::<O>(), ..CallOptions::default() };
        Self { client, request, options }
    }

    options!();

    /// Sends it, and says besides the outcome where the time went.
    pub async fn timed(mut self) -> Timed<O::Reply> {
        self.options.timings = true;
        match self.send().await {
            Ok(exchange) => {
                let Timed { outcome, stages } = exchange.timed().await;
                Timed { outcome: outcome.and_then(|reply| decoded(O::NAME, &reply)), stages }
            }
            Err(refusal) => Timed { outcome: Err(refusal), stages: Vec::new() },
        }
    }

    async fn send(mut self) -> Result<Exchange, Error> {
        if !O::STREAMS {
            self.options.credit = Some(0);
        }
        let request = codec::encode(&self.request)?.into();
        self.client.open(O::NAME, request, self.options).await
    }
}

impl<'a, O: Operation> IntoFuture for Call<'a, O> {
    type Output = Result<O::Reply, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { decoded(O::NAME, &self.send().await?.reply().await?) })
    }
}

/// A call that streams, in the making; `.await` sends it and gives the stream.
#[derive(Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct StreamCall<'a, O: Operation> {
    client: &'a Client,
    request: O::Request,
    options: CallOptions,
}

impl<'a, O: Operation> StreamCall<'a, O> {
    pub(crate) fn new(client: &'a Client, request: O::Request) -> Self {
        Self { client, request, options: CallOptions { idem: key_of::<O>(), ..CallOptions::default() } }
    }

    options!();

    /// Items under way at most.
    pub fn credit(mut self, items: u64) -> Self {
        self.options.credit = Some(items.max(1));
        self
    }
}

impl<'a, O: Operation> IntoFuture for StreamCall<'a, O> {
    type Output = Result<Streaming<O>, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let request = codec::encode(&self.request)?.into();
            let exchange = self.client.open(O::NAME, request, self.options).await?;
            Ok(Streaming { exchange, operation: PhantomData })
        })
    }
}

/// Items, then the reply. Dropping it cancels the call.
#[derive(Debug)]
#[must_use = "dropping it cancels the call"]
pub struct Streaming<O> {
    exchange: Exchange,
    operation: PhantomData<fn() -> O>,
}

impl<O: Operation> Streaming<O> {
    /// The next item; `None` once there is none: then [`Streaming::reply`] says how it ended. Cancel-safe.
    ///
    /// # Errors
    /// An item that this release cannot read.
    pub async fn next(&mut self) -> Option<Result<O::Item, Error>> {
        let item = self.exchange.next().await?;
        Some(decoded(O::NAME, &item))
    }

    /// The reply; items that were not taken are passed over.
    ///
    /// # Errors
    /// What the call ended with.
    pub async fn reply(self) -> Result<O::Reply, Error> {
        decoded(O::NAME, &self.exchange.reply().await?)
    }
}

/// A subscription in the making; `.await` sends it.
#[derive(Debug)]
#[must_use = "a subscription is sent when it is awaited"]
pub struct Subscribe<'a> {
    client: &'a Client,
    request: SubscribeRequest,
    credit: Option<u64>,
}

impl<'a> Subscribe<'a> {
    pub(crate) fn new(client: &'a Client, filter: String) -> Self {
        Self { client, request: SubscribeRequest { filter, on_full: OnFull::Gap, start: None }, credit: None }
    }

    /// What happens when it does not keep up.
    pub fn on_full(mut self, on_full: OnFull) -> Self {
        self.request.on_full = on_full;
        self
    }

    /// Goes on behind a position that was heard, where the kernel can; else it says `reset`.
    pub fn start(mut self, epoch: Epoch, seq: Seq) -> Self {
        self.request.start = Some(format!("{epoch}:{seq}"));
        self
    }

    /// Deliveries under way at most.
    pub fn credit(mut self, items: u64) -> Self {
        self.credit = Some(items.max(1));
        self
    }
}

impl<'a> IntoFuture for Subscribe<'a> {
    type Output = Result<Subscription, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let mut call = self.client.stream::<kernel::Subscribe>(self.request);
            call.options.credit = self.credit;
            Ok(Subscription { stream: Some(call.await?) })
        })
    }
}

/// Acknowledged, a snapshot of retained states, its end, then changes and gaps. Dropping it leaves.
#[derive(Debug)]
#[must_use = "dropping it leaves"]
pub struct Subscription {
    stream: Option<Streaming<kernel::Subscribe>>,
}

impl Subscription {
    /// The next delivery; `None` after the end. An error is the last thing that comes. Cancel-safe.
    ///
    /// # Errors
    /// Why it ended: `slow_consumer`, `unavailable`.
    pub async fn next(&mut self) -> Option<Result<Delivery, Error>> {
        if let Some(delivery) = self.stream.as_mut()?.next().await {
            return Some(delivery);
        }
        self.stream.take()?.reply().await.err().map(Err)
    }
}

fn decoded<T: DeserializeOwned>(name: &str, bytes: &Bytes) -> Result<T, Error> {
    codec::decode(bytes).map_err(|why| {
        let text = format!("an answer of {name} cannot be read: {why}");
        Error::new(Code::Internal, "reply.malformed", text).help("use client and kernel of one release")
    })
}

fn key_of<O: Operation>() -> Option<String> {
    O::MUTATES.then(fresh_key)
}

/// Never made twice: what the operating system's randomness gave this process, and a counter.
fn fresh_key() -> String {
    use std::hash::{BuildHasher, RandomState};
    static PROCESS: OnceLock<String> = OnceLock::new();
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(|| {
        let (high, low) = (RandomState::new().hash_one(1_u8), RandomState::new().hash_one(2_u8));
        format!("{high:016x}{low:016x}")
    });
    // Relaxed: only the numbers' being different matters.
    format!("{process}-{}", COUNTER.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use eclosion_schemas::ops::{kernel, run};

    #[test]
    fn only_what_mutates_gets_a_key_and_every_key_is_new() {
        assert_eq!(key_of::<kernel::Status>(), None);
        let keys = [key_of::<run::Start>(), key_of::<run::Start>()];
        assert!(keys[0].is_some() && keys[0] != keys[1], "{keys:?}");
    }
}
