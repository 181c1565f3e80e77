//! One open stream of a session: a call or a subscription, its credit, and the item that came without credit. It is encoded
//! when it leaves and not before, because the client holds what it names from then on.

use std::any::Any;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use eclosion_bus::{Delivery, Item, Pending, Subscription, Timings};
use eclosion_schemas::Error;
use eclosion_schemas::frame::{FRAME_BYTES_MAX, Frame, FrameType, HEADER_BYTES, StreamId, WireCodec};
use eclosion_schemas::operation::{Encode, Spec, Value};
use eclosion_schemas::{Code, Stage, codec};

use super::serve::{Declaration, Declared, Declaring, Kept, keep};
use super::sharing::Sharing;
use crate::ready::{ReadyStreams, StreamWaker};
use crate::traffic::{Counted, Traffic};

/// Of a call that names no credit: its items flow as the connection has room for them.
pub(super) const CREDIT_UNNAMED: u64 = u64::MAX;

pub(super) struct OpenStream {
    source: Source,
    /// Items that may be sent in sum.
    credit: u64,
    sent: u64,
    /// Polled while there was no credit, to learn whether the reply is next.
    held: Option<Unsent>,
    counted: Counted,
    waker: Waker,
    note: Arc<StreamWaker>,
}

pub(super) enum Source {
    Call {
        pending: Pending,
        spec: Arc<Spec>,
        timings: Option<Timings>,
        /// The request came as bincode, and so does what is answered.
        by_place: bool,
        /// What the caller may know an operation by from now on: its schema is ours.
        schema: Option<String>,
    },
    Subscription(Box<Subscription>),
    /// `service.declare`, until the addresses are given.
    Declaring {
        work: Declaring,
        kept: Kept,
    },
}

/// What a source has said and the client has not heard.
enum Unsent {
    Value(Value),
    Delivery(Delivery),
    Encoded(Bytes),
}

enum Said {
    Item(Unsent),
    Reply(Unsent),
    Error(Error),
    Idle,
}

/// One item or reply.
pub(super) struct Body {
    bytes: Bytes,
    codec: WireCodec,
}

/// What a stream has to say now.
pub(super) enum Step {
    Item(Body),
    Reply(Body),
    Error(Error),
    Idle,
}

impl Body {
    fn new(bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let bytes = bytes.into();
        let max = FRAME_BYTES_MAX - HEADER_BYTES;
        if bytes.len() > max {
            let text = format!("a message of {} bytes is over the limit of {max}", bytes.len());
            return Err(Error::new(Code::Exhausted, "frame.size", text).help("ask for less at once"));
        }
        Ok(Self { bytes, codec: WireCodec::Msgpack })
    }

    /// By place where the caller reads that and the value is not too long for it; else as msgpack.
    fn of(value: &(dyn Any + Send), by_place: Option<Encode>, named: Encode) -> Result<Self, Error> {
        match by_place.map(|encode| encode(value)) {
            Some(Ok(bytes)) => Ok(Self { bytes: bytes.into(), codec: WireCodec::Bincode }),
            _ => named(value).and_then(Self::new),
        }
    }

    pub(super) fn into_frame(self, stream: StreamId) -> Frame {
        Frame::new(FrameType::Data, stream).with_body(self.codec, self.bytes)
    }
}

impl OpenStream {
    pub(super) fn new(
        source: Source,
        credit: Option<u64>,
        list: &Arc<ReadyStreams>,
        stream: StreamId,
        traffic: &Arc<Traffic>,
    ) -> Self {
        let note = StreamWaker::new(list, stream);
        let waker = Waker::from(Arc::clone(&note));
        let counted = Counted::new(traffic, credit.unwrap_or(0));
        Self { source, credit: credit.unwrap_or(CREDIT_UNNAMED), sent: 0, held: None, counted, waker, note }
    }

    pub(super) fn is_subscription(&self) -> bool {
        matches!(self.source, Source::Subscription(_))
    }

    /// What rides along with the answer.
    pub(super) fn schema(&mut self) -> Option<String> {
        match &mut self.source {
            Source::Call { schema, .. } => schema.take(),
            Source::Subscription(_) | Source::Declaring { .. } => None,
        }
    }

    /// Whether items come before the reply.
    pub(super) fn is_streaming(&self) -> bool {
        match &self.source {
            Source::Call { spec, .. } => spec.streams,
            Source::Subscription(_) => true,
            Source::Declaring { .. } => false,
        }
    }

    /// `total` counts from the stream's begin; a smaller one than before came late and changes nothing.
    pub(super) fn credit(&mut self, total: u64) {
        if self.credit != CREDIT_UNNAMED {
            self.counted.granted(total.saturating_sub(self.credit));
        }
        self.credit = self.credit.max(total);
        if let Source::Call { pending, .. } = &self.source {
            pending.grant(total);
        }
    }

    /// Where the time of a call went that asks for it, once its answer is encoded.
    pub(super) fn stages(&self) -> Option<Vec<Stage>> {
        let Source::Call { timings: Some(timings), .. } = &self.source else { return None };
        timings.ended("encoded");
        Some(timings.stages())
    }

    /// Says that it has more.
    pub(super) fn wake(&self) {
        self.waker.wake_by_ref();
    }

    pub(super) fn poll(&mut self, stream: StreamId, sharing: &mut Sharing) -> Step {
        if self.held.is_none() {
            self.note.rearm();
            match self.source.poll(&mut Context::from_waker(&self.waker)) {
                Said::Item(item) => self.held = Some(item),
                Said::Reply(reply) => {
                    return or_error(self.source.encode_reply(reply, stream, sharing), Step::Reply);
                }
                Said::Error(error) => return Step::Error(error),
                Said::Idle => return Step::Idle,
            }
        }
        if self.sent >= self.credit {
            return Step::Idle;
        }
        let Some(item) = self.held.take() else { return Step::Idle };
        self.sent += 1;
        self.counted.sent();
        or_error(self.source.encode_item(item, stream, sharing), Step::Item)
    }
}

impl Source {
    fn poll(&mut self, task: &mut Context<'_>) -> Said {
        match self {
            Source::Call { pending, spec, .. } => match pending.poll_next(task) {
                Poll::Pending => Said::Idle,
                Poll::Ready(Some(Item::Item(item))) => Said::Item(Unsent::Value(item)),
                Poll::Ready(Some(Item::Reply(Ok(reply)))) => Said::Reply(Unsent::Value(reply)),
                Poll::Ready(Some(Item::Reply(Err(error)))) => Said::Error(error),
                Poll::Ready(None) => Said::Error(Error::died(&spec.address, "it ended without a reply")),
            },
            Source::Declaring { work, kept } => match work.as_mut().poll(task) {
                Poll::Pending => Said::Idle,
                Poll::Ready(Ok(Declared { reply, registration })) => {
                    keep(kept, Declaration::Given { _registration: registration });
                    replied(codec::encode(&reply).map_err(Into::into))
                }
                Poll::Ready(Err(refusal)) => {
                    keep(kept, Declaration::None);
                    Said::Error(refusal)
                }
            },
            Source::Subscription(subscription) => match subscription.poll_next(task) {
                Poll::Pending => Said::Idle,
                Poll::Ready(Some(delivery)) => Said::Item(Unsent::Delivery(delivery)),
                Poll::Ready(None) => match subscription.why_ended() {
                    Some(why) => Said::Error(why),
                    None => replied(nothing()),
                },
            },
        }
    }

    fn encode_item(&self, item: Unsent, stream: StreamId, sharing: &mut Sharing) -> Result<Body, Error> {
        match (self, item) {
            (Source::Call { spec, by_place, .. }, Unsent::Value(item)) => {
                let places = spec.positional.as_ref().filter(|_| *by_place).map(|places| places.encode_item);
                sharing.item(stream, item.as_ref(), |item| Body::of(item, places, spec.encode_item))
            }
            (_, item) => Self::encode(item, stream, sharing),
        }
    }

    fn encode_reply(&self, reply: Unsent, stream: StreamId, sharing: &mut Sharing) -> Result<Body, Error> {
        match (self, reply) {
            (Source::Call { spec, by_place, .. }, Unsent::Value(reply)) => {
                let places = spec.positional.as_ref().filter(|_| *by_place).map(|places| places.encode_reply);
                sharing.reply(stream, reply.as_ref(), |reply| Body::of(reply, places, spec.encode_reply))
            }
            (_, reply) => Self::encode(reply, stream, sharing),
        }
    }

    fn encode(unsent: Unsent, stream: StreamId, sharing: &mut Sharing) -> Result<Body, Error> {
        match unsent {
            Unsent::Delivery(delivery) => sharing.delivery(stream, &delivery).and_then(Body::new),
            Unsent::Encoded(bytes) => Body::new(bytes),
            Unsent::Value(_) => Err(Error::internal("reply.type", "a value without an operation")),
        }
    }
}

fn replied(encoded: Result<Vec<u8>, Error>) -> Said {
    encoded.map_or_else(Said::Error, |bytes| Said::Reply(Unsent::Encoded(bytes.into())))
}

/// The reply of `bus.subscribe`.
fn nothing() -> Result<Vec<u8>, Error> {
    Ok(codec::encode(&eclosion_schemas::ops::kernel::Empty {})?)
}

fn or_error(body: Result<Body, Error>, step: impl FnOnce(Body) -> Step) -> Step {
    body.map_or_else(Step::Error, step)
}
