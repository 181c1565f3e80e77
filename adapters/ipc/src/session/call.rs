//! A CALL on its way to the bus: limits, name, role, request, deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion_bus::{Address, Call, Context, Timings};
use eclosion_schemas::client::{DEADLINE_DEFAULT, DEADLINE_MAX};
use eclosion_schemas::frame::{Envelope, Frame, WireCodec};
use eclosion_schemas::operation::{Operation, Spec, Value, malformed};
use eclosion_schemas::ops::kernel::{Subscribe, SubscribeRequest};
use eclosion_schemas::ops::service::Declare;
use eclosion_schemas::{Code, Error, Retry, Role};

use super::stream::{CREDIT_UNNAMED, OpenStream, Source};
use super::{Session, stopping};
use crate::operator;

impl Session {
    /// # Errors
    /// The stream number is not the client's to use: the connection is over.
    pub(super) fn on_call(&mut self, call: Frame) -> Result<(), Error> {
        let stream = call.stream;
        if !stream.opened_by_client() || self.streams.contains_key(&stream) {
            let text = format!("{stream} is no odd number of a stream that is not open");
            return Err(Error::invalid("stream.number", text));
        }
        self.calls += 1;
        if let Some(answered) = self.sharing.answer(&call) {
            let (frame, descriptors) =
                answered.unwrap_or_else(|error| (Frame::error(stream, &error), Vec::new()));
            self.connection.send(frame, descriptors);
            return Ok(());
        }
        let credit = call.envelope.credit;
        match self.source(call) {
            Ok(source) => {
                self.insert_stream(
                    stream,
                    OpenStream::new(source, credit, &self.ready, stream, &self.traffic),
                );
                self.serve(stream);
            }
            Err(error) => self.send(Frame::error(stream, &error)),
        }
        Ok(())
    }

    fn source(&mut self, call: Frame) -> Result<Source, Error> {
        if self.draining.is_some() {
            return Err(stopping());
        }
        let method = call.envelope.method.as_deref().unwrap_or_default();
        let spec = self.bus.admitted(method, self.role)?;
        self.within_limits(&spec)?;
        // Bincode comes from who was told that it knows the operation as we do.
        let places = spec.positional.as_ref().filter(|_| call.codec == WireCodec::Bincode);
        let places = places.filter(|places| places.schema().is_some());
        if call.codec != WireCodec::Msgpack && places.is_none() {
            let codec = "request.codec";
            if call.body.is_empty() {
                return Err(Error { reason: codec.into(), ..malformed(&spec.name, &[], "", codec) });
            }
            let text = format!("the request of {} is {:?} where msgpack is expected", spec.name, call.codec);
            return Err(Error::invalid(codec, text).help(format!("eclosion describe {}", spec.name)));
        }
        if let Some(places) = places {
            let request = (places.decode_request)(&call.body)?;
            return self.ask(spec, request, call.envelope.into_inner(), true);
        }
        if spec.name == Subscribe::NAME {
            return self.subscribe(&call);
        }
        if spec.name == Declare::NAME {
            return self.declare(&call);
        }
        let request = (spec.decode_request)(&call.body)?;
        self.ask(spec, request, call.envelope.into_inner(), false)
    }

    fn ask(
        &self,
        spec: Arc<Spec>,
        request: Value,
        mut envelope: Envelope,
        by_place: bool,
    ) -> Result<Source, Error> {
        self.sharing.check(request.as_ref())?;
        // Found when it is asked for, and once.
        let ours = |offered: &String| {
            spec.positional.as_ref().and_then(|places| places.schema()) == Some(offered.as_str())
        };
        let schema = envelope.schema.take().filter(ours);
        let address = Address::new(&*spec.address)?;
        let credit = Some(envelope.credit.unwrap_or(CREDIT_UNNAMED));
        let context = self.context(&spec, envelope);
        let timings = context.timings.clone();
        let pending = self.bus.call(Call { spec: Arc::clone(&spec), address, request, context, credit });
        Ok(Source::Call { pending, spec, timings, by_place, schema })
    }

    fn within_limits(&self, spec: &Spec) -> Result<(), Error> {
        let limits = &self.welcome.limits;
        let full = |what: &str, max: u32| {
            let text = format!("this connection has {max} {what} already");
            Error::new(Code::Exhausted, "connection.limit", text).retry(Retry::After { after_ms: 50 })
        };
        if self.streams.len() >= limits.streams as usize {
            return Err(full("open streams", limits.streams));
        }
        if !spec.streams && self.inflight >= limits.inflight as usize {
            return Err(full("calls without an answer", limits.inflight));
        }
        if spec.name == Subscribe::NAME && self.subscriptions >= limits.subscriptions as usize {
            return Err(full("subscriptions", limits.subscriptions));
        }
        Ok(())
    }

    fn subscribe(&self, call: &Frame) -> Result<Source, Error> {
        let request: SubscribeRequest = call
            .decode()
            .map_err(|why| malformed(Subscribe::NAME, &call.body, &why.to_string(), why.reason()))?;
        Ok(Source::Subscription(Box::new(self.bus.subscription(&request)?)))
    }

    fn context(&self, spec: &Spec, envelope: Envelope) -> Context {
        let default = if spec.streams { DEADLINE_MAX } else { DEADLINE_DEFAULT };
        let wait = envelope.deadline_ms.map_or(default, Duration::from_millis).min(DEADLINE_MAX);
        let now: Instant = self.bus.clock().now();
        Context {
            deadline: now + wait,
            // What is malformed belongs to nobody's trace; it is no reason to refuse the call.
            trace: envelope.trace.and_then(|text| text.parse().ok()),
            // A cause is an actor's word for its own effect; a client has its idempotency key.
            cause: None,
            idem: envelope.idem,
            role: self.role,
            caller: match &self.client {
                // What an operator does is recorded with who he is.
                Some(client) if spec.role == Role::Admin || spec.act.is_some() => {
                    Some(operator::described(client, self.peer).into())
                }
                client => client.clone(),
            },
            timings: envelope.timings.unwrap_or(false).then(Timings::begin),
            shares: self.sharing.is_on(),
        }
    }
}
