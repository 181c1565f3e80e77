//! Says something to an actor until it is heard: what happened outside must not be lost because an actor was restarting.

use std::time::Duration;

use eclosion_bus::{Bus, TraceContext};
use eclosion_schemas::{Code, Error, Operation};

const DEADLINE: Duration = Duration::from_secs(10);
const BACKOFF: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Asks until there is an answer that asking again would not change.
///
/// # Errors
/// A refusal of what was said, or `unavailable` when the kernel is stopping or read-only: the next start hears of it
/// again.
pub(crate) async fn until_heard<O>(bus: &Bus, request: O::Request) -> Result<O::Reply, Error>
where
    O: Operation,
    O::Request: Clone,
{
    until_heard_within::<O>(bus, None, request).await
}

/// The same; what comes of it belongs to this trace.
///
/// # Errors
/// As [`until_heard`].
pub(crate) async fn until_heard_within<O>(
    bus: &Bus,
    trace: Option<TraceContext>,
    request: O::Request,
) -> Result<O::Reply, Error>
where
    O: Operation,
    O::Request: Clone,
{
    let mut backoff = BACKOFF;
    loop {
        let ask = bus.ask::<O>(request.clone()).deadline(DEADLINE);
        let ask = match trace {
            Some(trace) => ask.trace(trace),
            None => ask,
        };
        let refusal = match ask.await {
            Ok(reply) => return Ok(reply),
            Err(refusal) => refusal,
        };
        let passing =
            matches!(refusal.code, Code::Unavailable | Code::Deadline | Code::Exhausted | Code::Unknown);
        let over = refusal.reason.starts_with("journal.poisoned") || refusal.reason == "journal.closed";
        if over || !passing {
            tracing::warn!(operation = O::NAME, %refusal, "was not heard");
            return Err(refusal);
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}
