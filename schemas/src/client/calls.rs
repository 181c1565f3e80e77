//! Typed calls: builders that are sent by `.await`.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{CallOptions, Client, DEADLINE_DEFAULT, Items};
use crate::error::Error;
use crate::ids::{Epoch, Seq};
use crate::operation::Operation;
use crate::ops::kernel::{self, Delivery, OnFull, SubscribeRequest};
use crate::timings::Timed;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A call in the making; `.await` sends it.
#[derive(Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct Call<'a, C, O: Operation> {
    client: &'a C,
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

impl<'a, C: Client, O: Operation> Call<'a, C, O> {
    pub fn new(client: &'a C, request: O::Request) -> Self {
        let options =
            CallOptions { deadline: Some(DEADLINE_DEFAULT), idem: key_of::<O>(), ..CallOptions::default() };
        Self { client, request, options }
    }

    options!();

    /// Sends it, and says besides the outcome where the time went.
    pub async fn timed(mut self) -> Timed<O::Reply> {
        self.options.timings = true;
        match self.send().await {
            Ok(items) => items.timed().await,
            Err(refusal) => Timed { outcome: Err(refusal), stages: Vec::new() },
        }
    }

    async fn send(mut self) -> Result<C::Items<O>, Error> {
        if !O::STREAMS {
            self.options.credit = Some(0);
        }
        self.client.begin::<O>(self.request, self.options).await
    }
}

impl<'a, C: Client, O: Operation> IntoFuture for Call<'a, C, O> {
    type Output = Result<O::Reply, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.send().await?.reply().await })
    }
}

/// A call that streams, in the making; `.await` sends it and gives the stream.
#[derive(Debug)]
#[must_use = "a call is sent when it is awaited"]
pub struct StreamCall<'a, C, O: Operation> {
    client: &'a C,
    request: O::Request,
    options: CallOptions,
}

impl<'a, C: Client, O: Operation> StreamCall<'a, C, O> {
    pub fn new(client: &'a C, request: O::Request) -> Self {
        Self { client, request, options: CallOptions { idem: key_of::<O>(), ..CallOptions::default() } }
    }

    options!();

    /// Items under way at most.
    pub fn credit(mut self, items: u64) -> Self {
        self.options.credit = Some(items.max(1));
        self
    }
}

impl<'a, C: Client, O: Operation> IntoFuture for StreamCall<'a, C, O> {
    type Output = Result<C::Items<O>, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.begin::<O>(self.request, self.options).await })
    }
}

/// A subscription in the making; `.await` sends it.
#[derive(Debug)]
#[must_use = "a subscription is sent when it is awaited"]
pub struct Subscribe<'a, C> {
    client: &'a C,
    request: SubscribeRequest,
    credit: Option<u64>,
}

impl<'a, C: Client> Subscribe<'a, C> {
    pub fn new(client: &'a C, filter: String) -> Self {
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

impl<'a, C: Client> IntoFuture for Subscribe<'a, C> {
    type Output = Result<Subscription<C>, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let options = CallOptions { credit: self.credit, ..CallOptions::default() };
            let stream = self.client.begin::<kernel::Subscribe>(self.request, options).await?;
            Ok(Subscription { stream: Some(stream) })
        })
    }
}

/// Acknowledged, a snapshot of retained states, its end, then changes and gaps. Dropping it leaves.
#[must_use = "dropping it leaves"]
pub struct Subscription<C: Client> {
    stream: Option<C::Items<kernel::Subscribe>>,
}

impl<C: Client> std::fmt::Debug for Subscription<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("is_over", &self.stream.is_none()).finish()
    }
}

impl<C: Client> Subscription<C> {
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
    use crate::ops::{kernel, run};

    #[test]
    fn only_what_mutates_gets_a_key_and_every_key_is_new() {
        assert_eq!(key_of::<kernel::Status>(), None);
        let keys = [key_of::<run::Start>(), key_of::<run::Start>()];
        assert!(keys[0].is_some() && keys[0] != keys[1], "{keys:?}");
    }
}
