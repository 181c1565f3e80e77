//! The one trait of all clients, over a connection.

use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use eclosion_schemas::client::{self, CallOptions, Deliveries, Items, RawItems, read_answer};
use eclosion_schemas::frame::WireCodec;
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::kernel::Delivery;
use eclosion_schemas::{Error, Timed, codec};
use serde::de::DeserializeOwned;

use crate::connection::Body;
use crate::exchange::Exchange;
use crate::forms::Request;
use crate::{Client, Follow};

/// A call in the making, to an attached kernel.
pub type Call<'a, O> = client::Call<'a, Client, O>;
/// A call that streams, in the making.
pub type StreamCall<'a, O> = client::StreamCall<'a, Client, O>;
/// A subscription in the making.
pub type Subscribe<'a> = client::Subscribe<'a, Client>;
/// A subscription that ends with its connection.
pub type Subscription = client::Subscription<Client>;

impl client::Client for Client {
    type Items<O: Operation> = Streaming<O>;
    type Raw = Exchange;
    type Deliveries = Follow;

    async fn begin<O: Operation>(
        &self,
        request: O::Request,
        options: CallOptions,
    ) -> Result<Streaming<O>, Error> {
        let request = self.shared().forms().request::<O>(&request)?;
        let exchange = Exchange::open(self, O::NAME, request, options).await?;
        Ok(Streaming { exchange, operation: PhantomData })
    }

    async fn open(&self, method: &str, request: Bytes, options: CallOptions) -> Result<Exchange, Error> {
        Exchange::open(self, method, Request::named(request), options).await
    }

    fn follow(&self, filter: impl Into<String>, patience: Duration) -> Follow {
        Follow::of(self, filter.into(), patience)
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
        let item = self.exchange.next_body().await?;
        Some(read::<O, _>(&item))
    }

    /// The reply; items that were not taken are passed over.
    ///
    /// # Errors
    /// What the call ended with.
    pub async fn reply(self) -> Result<O::Reply, Error> {
        self.timed().await.outcome
    }

    /// The same, and where the time went of a call with [`CallOptions::timings`].
    pub async fn timed(self) -> Timed<O::Reply> {
        let Timed { outcome, stages } = self.exchange.timed_body().await;
        Timed { outcome: outcome.and_then(|reply| read::<O, _>(&reply)), stages }
    }
}

fn read<O: Operation, T: DeserializeOwned>(body: &Body) -> Result<T, Error> {
    if O::BY_PLACE && body.codec == WireCodec::Bincode {
        return codec::positional::decode(&body.bytes).map_err(|why| {
            let text = format!("an answer of {} cannot be read: {why}", O::NAME);
            Error::internal("reply.malformed", text)
        });
    }
    read_answer(O::NAME, &body.bytes)
}

impl<O: Operation> Items<O> for Streaming<O> {
    async fn next(&mut self) -> Option<Result<O::Item, Error>> {
        self.next().await
    }

    async fn reply(self) -> Result<O::Reply, Error> {
        self.reply().await
    }

    async fn timed(self) -> Timed<O::Reply> {
        self.timed().await
    }
}

impl RawItems for Exchange {
    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        self.next().await.map(Ok)
    }

    async fn reply(self) -> Result<Bytes, Error> {
        self.reply().await
    }
}

impl Deliveries for Follow {
    async fn next(&mut self) -> Result<Delivery, Error> {
        self.next().await
    }
}
