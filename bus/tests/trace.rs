//! Spans of asks, as a tracer is told of them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use eclosion_bus::{
    Address, Bus, MailboxOptions, NewSpan, OpenSpan, SpanEnd, Taken, TraceContext, TraceCounts, Tracer,
};
use eclosion_schemas::ops::kernel::{Empty, Ping};
use eclosion_schemas::{Code, Error};

const CALLER: TraceContext = TraceContext { trace_id: [7; 16], span_id: [9; 8], flags: 1 };

/// What has become of spans, in the order in which they ended.
#[derive(Debug, Default)]
struct Recorder {
    begun: AtomicU8,
    ended: Arc<Mutex<Vec<Ended>>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Ended {
    name: String,
    own: TraceContext,
    parent: Option<TraceContext>,
    error: Option<Code>,
    stages: Vec<String>,
}

#[derive(Debug)]
struct Open(Ended, Arc<Mutex<Vec<Ended>>>);

impl Tracer for Recorder {
    fn begin(&self, span: NewSpan<'_>) -> Option<Box<dyn OpenSpan>> {
        let id = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let own = TraceContext { span_id: [id; 8], ..span.parent.unwrap_or(CALLER) };
        let ended = Ended { name: span.name, own, parent: span.parent, error: None, stages: Vec::new() };
        Some(Box::new(Open(ended, Arc::clone(&self.ended))))
    }

    fn counts(&self) -> TraceCounts {
        TraceCounts::default()
    }
}

impl OpenSpan for Open {
    fn context(&self) -> TraceContext {
        self.0.own
    }

    fn end(self: Box<Self>, end: SpanEnd<'_>) {
        let error = end.error.map(|error| error.code);
        let stages = end.stages.iter().map(|stage| stage.name.clone()).collect();
        self.1.lock().unwrap().push(Ended { error, stages, ..self.0 });
    }
}

fn scene() -> (Bus, Arc<Mutex<Vec<Ended>>>) {
    let bus = Bus::new(eclosion_schemas::ops::table().unwrap());
    let recorder = Recorder::default();
    let ended = Arc::clone(&recorder.ended);
    bus.trace_with(Arc::new(recorder));
    (bus, ended)
}

#[tokio::test]
async fn what_a_handler_asks_is_below_what_it_was_asked_and_both_end_with_their_answers() {
    let (bus, ended) = scene();
    let outer = bus.open(Address::new("/outer").unwrap(), MailboxOptions::default()).unwrap();
    let inner = bus.open(Address::new("/inner").unwrap(), MailboxOptions::default()).unwrap();
    let (to_outer, to_inner) = (Address::new("/outer").unwrap(), Address::new("/inner").unwrap());
    let asking = bus.ask::<Ping>(Empty {}).to(&to_outer).trace(CALLER);
    let handling = async {
        let Taken::Message(in_hand) = outer.take().await else { return };
        let own = in_hand.context.trace.unwrap();
        let answer = bus.ask::<Ping>(Empty {}).to(&to_inner).trace(own).await;
        in_hand.finish().reply(answer.map(|reply| Box::new(reply) as _));
    };
    let refusing = async {
        let Taken::Message(in_hand) = inner.take().await else { return };
        in_hand.finish().reply(Err(Error::new(Code::NotFound, "test.none", "there is none")));
    };
    let (answer, (), ()) = tokio::join!(async { asking.await }, handling, refusing);
    assert_eq!(answer.unwrap_err().code, Code::NotFound);

    let ended = ended.lock().unwrap();
    let [below, above] = ended.as_slice() else { panic!("{ended:?}") };
    assert_eq!((below.name.as_str(), above.name.as_str()), ("kernel.ping /inner", "kernel.ping /outer"));
    assert_eq!((above.parent, below.parent), (Some(CALLER), Some(above.own)));
    assert_eq!((below.error, above.error), (Some(Code::NotFound), Some(Code::NotFound)));
    assert_eq!(above.stages, ["queued", "handled", "answered"]);
}

#[tokio::test]
async fn an_ask_that_belongs_to_no_trace_begins_none() {
    let (bus, ended) = scene();
    let mailbox = bus.open(Address::new("/kernel").unwrap(), MailboxOptions::default()).unwrap();
    let handling = async {
        let Taken::Message(in_hand) = mailbox.take().await else { return };
        assert_eq!(in_hand.context.trace, None);
        in_hand.finish().reply(Ok(Box::new(Empty {})));
    };
    let (answer, ()) = tokio::join!(async { bus.ask::<Ping>(Empty {}).await }, handling);
    assert!(answer.is_ok() && ended.lock().unwrap().is_empty());
}
