//! One call under way, in bytes.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use eclosion_schemas::client::CallOptions;
use eclosion_schemas::frame::{Envelope, Frame, FrameType, StreamId};
use eclosion_schemas::{Code, Error, Timed};
use tokio::time::{Instant, Sleep};

use crate::Client;
use crate::connection::{Body, Ended, Next};
use crate::forms::Request;

/// Items that are asked for in advance.
const CREDIT_DEFAULT: u64 = 64;
/// An envelope has room for this and everything else that we put into one.
const WORDS_BYTES_MAX: usize = 8 * 1024;

/// One call: items, then the reply. Dropping it cancels the call.
#[derive(Debug)]
#[must_use = "dropping it cancels the call"]
pub struct Exchange {
    client: Client,
    stream: StreamId,
    credit: u64,
    /// Items that were taken, and that were granted, in sum.
    taken: u64,
    granted: u64,
    /// The reply, met while looking for items.
    outcome: Option<Ended>,
    is_over: bool,
}

impl Exchange {
    pub(crate) async fn open(
        client: &Client,
        method: &str,
        request: Request,
        options: CallOptions,
    ) -> Result<Self, Error> {
        let shared = client.shared();
        let trace = options.trace.or_else(|| client.trace().map(str::to_owned));
        let max = shared.limits().frame_bytes as usize;
        let Request { codec, bytes, schema } = request;
        if bytes.len() >= max {
            let text = format!("a request of {} bytes is over the limit of {max}", bytes.len());
            return Err(
                Error::new(Code::Exhausted, "frame.size", text).help("send large values as artifacts")
            );
        }
        // What would not fit is found out here, where there is a caller to tell.
        let words = [Some(method), options.idem.as_deref(), trace.as_deref()];
        if words.into_iter().flatten().map(str::len).sum::<usize>() > WORDS_BYTES_MAX {
            let text = format!("method, key and trace are longer than {WORDS_BYTES_MAX} bytes");
            return Err(Error::invalid("frame.envelope_size", text));
        }
        let credit = options.credit.unwrap_or(CREDIT_DEFAULT);
        // A deadline that no clock can show is none.
        let deadline = options.deadline.and_then(|wait| Instant::now().checked_add(wait));
        let call = Frame::new(FrameType::Call, StreamId::CONNECTION).with_body(codec, bytes);
        let call = call.with_envelope(Envelope {
            method: Some(method.to_owned()),
            deadline_ms: options.deadline.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            credit: (credit > 0).then_some(credit),
            idem: options.idem,
            trace,
            timings: options.timings.then_some(true),
            schema,
            ..Envelope::default()
        });
        let (mut call, mut late) = (Some(call), None);
        let stream = poll_fn(|task| match shared.poll_open(&mut call, deadline, task) {
            Poll::Ready(opened) => Poll::Ready(opened),
            Poll::Pending => poll_late(&mut late, deadline, task).map(Err),
        })
        .await?;
        let client = client.clone();
        Ok(Self { client, stream, credit, taken: 0, granted: credit, outcome: None, is_over: false })
    }

    /// The next item, as msgpack; `None` once there is none, and then the reply is there. Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        poll_fn(|task| self.poll_next(task)).await
    }

    /// What [`Exchange::next`] awaits.
    pub fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.poll_body(task).map(|body| body.map(|body| body.bytes))
    }

    /// As [`Exchange::next`], with how it is written.
    pub(crate) async fn next_body(&mut self) -> Option<Body> {
        poll_fn(|task| self.poll_body(task)).await
    }

    fn poll_body(&mut self, task: &mut Context<'_>) -> Poll<Option<Body>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        match ready!(self.client.shared().poll_next(self.stream, task)) {
            Next::Item(item) => {
                self.took();
                Poll::Ready(Some(item))
            }
            Next::End(ended) => {
                self.is_over = true;
                self.outcome = Some(ended);
                Poll::Ready(None)
            }
        }
    }

    /// The reply, as msgpack; items that were not taken are passed over.
    ///
    /// # Errors
    /// What the call ended with.
    pub async fn reply(self) -> Result<Bytes, Error> {
        self.timed().await.outcome
    }

    /// The same, and where the time went of a call with [`CallOptions::timings`].
    pub async fn timed(self) -> Timed<Bytes> {
        let Timed { outcome, stages } = self.timed_body().await;
        Timed { outcome: outcome.map(|body| body.bytes), stages }
    }

    pub(crate) async fn timed_body(mut self) -> Timed<Body> {
        while self.next().await.is_some() {}
        let over = || Error::internal("stream.over", "the reply was taken before").into();
        let Ended { outcome, stages } = self.outcome.take().unwrap_or_else(over);
        Timed { outcome, stages }
    }

    /// Asks for more once half of what was granted has been taken.
    fn took(&mut self) {
        self.taken += 1;
        if self.granted - self.taken <= self.credit / 2 {
            self.granted = self.taken + self.credit;
            self.client.shared().grant(self.stream, self.granted);
        }
    }
}

/// The deadline of a call that still waits for room; once it is sent, the connection keeps its deadline.
fn poll_late(
    late: &mut Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
    task: &mut Context<'_>,
) -> Poll<Error> {
    let Some(deadline) = deadline else { return Poll::Pending };
    let late = late.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
    late.as_mut().poll(task).map(|()| Error::deadline("the call"))
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.client.shared().leave(self.stream);
    }
}
