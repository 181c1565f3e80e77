//! The client inside the kernel's own process: values go to the bus as they are.
//!
//! It is held to what an attached client is held to: names and roles are checked by the same table, deadlines have the same
//! defaults, dropping cancels. What a program in another process serves is called here too: only then are values encoded.
//!
//! It deliberately has no limits of its own: whoever runs inside the process may fill its memory without it.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eclosion_schemas::client::{
    CallOptions, Client, DEADLINE_DEFAULT, DEADLINE_MAX, Deliveries, Items, RawItems, read_answer,
};
use eclosion_schemas::operation::{Operation, Spec, Value};
use eclosion_schemas::ops::kernel::{Delivery, Empty, OnFull, Subscribe, SubscribeRequest};
use eclosion_schemas::{Code, Error, Retry, Role, Timed, codec};

use crate::address::Address;
use crate::ask::{Item, Pending};
use crate::bus::{Bus, Call};
use crate::context::Context;
use crate::publish::Subscription;
use crate::timings::Timings;

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct LocalClient {
    bus: Bus,
    role: Role,
    caller: Arc<str>,
}

impl LocalClient {
    /// One that may do everything.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone(), role: Role::Admin, caller: Arc::from("this process") }
    }

    /// One that may do less.
    #[must_use]
    pub fn with_role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    /// What operators see as who called.
    #[must_use]
    pub fn named(self, caller: impl Into<Arc<str>>) -> Self {
        Self { caller: caller.into(), ..self }
    }

    /// What is refused is told with the reply, as to a client that is attached.
    fn send(
        &self,
        method: &str,
        request: impl FnOnce(&Spec) -> Result<Value, Error>,
        options: CallOptions,
    ) -> UnderWay {
        self.try_send(method, request, options).unwrap_or_else(UnderWay::refused)
    }

    fn try_send(
        &self,
        method: &str,
        request: impl FnOnce(&Spec) -> Result<Value, Error>,
        options: CallOptions,
    ) -> Result<UnderWay, Error> {
        let spec = self.bus.admitted(method, self.role)?;
        let request = request(&spec)?;
        if spec.name == Subscribe::NAME {
            let request = request.downcast::<SubscribeRequest>();
            let request =
                request.map_err(|_| Error::internal("request.type", "no request of bus.subscribe"))?;
            let source = Source::Subscription(Box::new(self.bus.subscription(&request)?));
            return Ok(UnderWay { source: Some((source, spec)), credit: None, outcome: None, timings: None });
        }
        let credit = options.credit.filter(|_| spec.streams).map(Credit::new);
        let address = Address::new(&*spec.address)?;
        let context = self.context(&spec, options);
        let timings = context.timings.clone();
        let named = credit.as_ref().map(|credit| credit.granted);
        let call = Call { spec: Arc::clone(&spec), address, request, context, credit: named };
        let source = Some((Source::Call(self.bus.call(call)), spec));
        Ok(UnderWay { source, credit, outcome: None, timings })
    }

    fn context(&self, spec: &Spec, options: CallOptions) -> Context {
        let default = if spec.streams { DEADLINE_MAX } else { DEADLINE_DEFAULT };
        Context {
            deadline: self.bus.clock().now() + options.deadline.unwrap_or(default).min(DEADLINE_MAX),
            trace: options.trace.and_then(|text| text.parse().ok()),
            cause: None,
            idem: options.idem,
            role: self.role,
            caller: Some(Arc::clone(&self.caller)),
            timings: options.timings.then(Timings::begin),
            shares: false,
        }
    }
}

impl Client for LocalClient {
    type Items<O: Operation> = LocalItems<O>;
    type Raw = LocalRaw;
    type Deliveries = LocalDeliveries;

    async fn begin<O: Operation>(
        &self,
        request: O::Request,
        options: CallOptions,
    ) -> Result<LocalItems<O>, Error> {
        let typed = |spec: &Spec| -> Result<Value, Error> {
            match &spec.owner {
                Some(_) => (spec.decode_request)(&codec::encode(&request)?),
                None => Ok(Box::new(request)),
            }
        };
        Ok(LocalItems { under_way: self.send(O::NAME, typed, options), operation: PhantomData })
    }

    async fn open(&self, method: &str, request: Bytes, options: CallOptions) -> Result<LocalRaw, Error> {
        let typed = |spec: &Spec| (spec.decode_request)(&request);
        Ok(LocalRaw(self.send(method, typed, options)))
    }

    fn follow(&self, filter: impl Into<String>, _: Duration) -> LocalDeliveries {
        LocalDeliveries { client: self.clone(), filter: filter.into(), hearing: None }
    }
}

/// A call on the bus.
#[derive(Debug)]
struct UnderWay {
    /// Nothing, if it was refused.
    source: Option<(Source, Arc<Spec>)>,
    /// Where the caller named one.
    credit: Option<Credit>,
    /// The reply, met while looking for items.
    outcome: Option<Result<Value, Error>>,
    timings: Option<Timings>,
}

#[derive(Debug)]
enum Source {
    Call(Pending),
    Subscription(Box<Subscription>),
}

/// Items that were taken, and that were granted, in sum.
#[derive(Debug)]
struct Credit {
    width: u64,
    taken: u64,
    granted: u64,
}

impl Credit {
    fn new(width: u64) -> Self {
        Self { width, taken: 0, granted: width }
    }

    /// Asks for more once half of what was granted has been taken.
    fn took(&mut self, pending: &Pending) {
        self.taken += 1;
        if self.granted - self.taken <= self.width / 2 {
            self.granted = self.taken + self.width;
            pending.grant(self.granted);
        }
    }
}

impl UnderWay {
    fn refused(refusal: Error) -> Self {
        Self { source: None, credit: None, outcome: Some(Err(refusal)), timings: None }
    }

    /// An item, and how it is encoded.
    async fn next(&mut self) -> Option<Result<(Value, Encode), Error>> {
        if self.outcome.is_some() {
            return None;
        }
        let (source, spec) = self.source.as_mut()?;
        let encode = spec.encode_item;
        self.outcome = Some(match source {
            Source::Call(pending) => match pending.next().await {
                Some(Item::Item(item)) => {
                    if let Some(credit) = &mut self.credit {
                        credit.took(pending);
                    }
                    return Some(Ok((item, encode)));
                }
                Some(Item::Reply(reply)) => reply,
                None => Err(Error::died(&spec.address, "it ended without a reply")),
            },
            Source::Subscription(subscription) => match subscription.next().await {
                Some(delivery) => return Some(delivery.to_wire().map(|item| (Box::new(item) as _, encode))),
                None => subscription.why_ended().map_or_else(|| Ok(Box::new(Empty {}) as Value), Err),
            },
        });
        None
    }

    async fn reply(mut self) -> Result<(Value, Encode), Error> {
        while self.next().await.is_some() {}
        let over = || Error::internal("stream.over", "there is no reply");
        let reply = self.outcome.ok_or_else(over)??;
        let (_, spec) = self.source.ok_or_else(over)?;
        Ok((reply, spec.encode_reply))
    }
}

/// Items and the reply as values. Dropping it cancels the call.
#[derive(Debug)]
#[must_use = "dropping it cancels the call"]
pub struct LocalItems<O> {
    under_way: UnderWay,
    operation: PhantomData<fn() -> O>,
}

impl<O: Operation> Items<O> for LocalItems<O> {
    async fn next(&mut self) -> Option<Result<O::Item, Error>> {
        let item = self.under_way.next().await?;
        Some(item.and_then(|(item, encode)| typed(O::NAME, item, encode)))
    }

    async fn reply(self) -> Result<O::Reply, Error> {
        let (reply, encode) = self.under_way.reply().await?;
        typed(O::NAME, reply, encode)
    }

    async fn timed(self) -> Timed<O::Reply> {
        let timings = self.under_way.timings.clone();
        let outcome = self.reply().await;
        Timed { outcome, stages: timings.map(|timings| timings.stages()).unwrap_or_default() }
    }
}

type Encode = fn(&(dyn Any + Send)) -> Result<Vec<u8>, Error>;

/// A value of another type with the same fields, as of a service in another process, goes by its bytes.
fn typed<T: serde::de::DeserializeOwned + 'static>(
    name: &str,
    value: Value,
    encode: Encode,
) -> Result<T, Error> {
    match value.downcast::<T>() {
        Ok(value) => Ok(*value),
        Err(value) => read_answer(name, &encode(value.as_ref())?),
    }
}

/// Items and the reply as msgpack. Dropping it cancels the call.
#[derive(Debug)]
#[must_use = "dropping it cancels the call"]
pub struct LocalRaw(UnderWay);

impl RawItems for LocalRaw {
    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        let item = self.0.next().await?;
        Some(item.and_then(|(item, encode)| encode(item.as_ref()).map(Bytes::from)))
    }

    async fn reply(self) -> Result<Bytes, Error> {
        let (reply, encode) = self.0.reply().await?;
        encode(reply.as_ref()).map(Bytes::from)
    }
}

/// A subscription in this process: it lasts as long as the bus.
#[derive(Debug)]
#[must_use = "dropping it leaves"]
pub struct LocalDeliveries {
    client: LocalClient,
    filter: String,
    hearing: Option<Subscription>,
}

impl Deliveries for LocalDeliveries {
    async fn next(&mut self) -> Result<Delivery, Error> {
        let hearing = match &mut self.hearing {
            Some(hearing) => hearing,
            none => {
                let filter = self.filter.clone();
                let request = SubscribeRequest { filter, on_full: OnFull::Gap, start: None };
                none.insert(self.client.bus.subscription(&request)?)
            }
        };
        match hearing.next().await {
            Some(delivery) => delivery.to_wire(),
            None => Err(hearing.why_ended().unwrap_or_else(stopped)),
        }
    }
}

fn stopped() -> Error {
    Error::new(Code::Unavailable, "kernel.stopping", "the kernel stops")
        .retry(Retry::After { after_ms: 1_000 })
}
