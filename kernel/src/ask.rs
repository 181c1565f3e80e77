//! Effects that are asks: an actor wishes something of another.
//!
//! The ask carries the effect's id as its cause and is repeated with backoff until it is answered, or the effect is no
//! longer outstanding. An answer means that the target's present incarnation has taken it on; when the target begins
//! another, the shell performs the effect again. A refusal that repeating cannot mend goes back to the asker as a
//! command.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eclosion_bus::{Bus, TraceContext};
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::{EffectId, Operation};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// How long one ask may take before it is repeated.
const DEADLINE: Duration = Duration::from_secs(10);
const BACKOFF: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The asks of one actor that have not been answered. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Asks<C> {
    /// By effect; effects that are asked together share their ask.
    pending: Arc<Mutex<BTreeMap<EffectId, Arc<Asking>>>>,
    commands: mpsc::UnboundedSender<C>,
}

/// Ends with the last effect that owes it.
#[derive(Debug)]
struct Asking(AbortHandle);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<C> Clone for Asks<C> {
    fn clone(&self) -> Self {
        Self { pending: Arc::clone(&self.pending), commands: self.commands.clone() }
    }
}

impl<C: Send + 'static> Asks<C> {
    /// `commands` is bounded by the number of outstanding effects: each leads to one command at most.
    pub(crate) fn new(commands: mpsc::UnboundedSender<C>) -> Self {
        Self { pending: Arc::default(), commands }
    }

    /// One ask for all of `ids`; it is caused by the first of them.
    pub(crate) fn ask<O>(
        &self,
        (bus, trace): (&Bus, Option<TraceContext>),
        ids: Vec<EffectId>,
        request: O::Request,
        answered: impl FnOnce(Result<O::Reply, Error>) -> Option<C> + Send + 'static,
    ) where
        O: Operation,
        O::Request: Clone + Sync,
    {
        let Some(first) = ids.first().copied() else { return };
        let bus = bus.clone();
        self.work(ids, async move { answered(until_answered::<O>(&bus, trace, first, request).await) });
    }

    /// What comes of `work` is a command; it is dropped once none of `ids` is owed any longer.
    pub(crate) fn work(&self, ids: Vec<EffectId>, work: impl Future<Output = Option<C>> + Send + 'static) {
        let (asks, owing) = (self.clone(), ids.clone());
        // Held until the ask stands in the table, so that its end finds it there.
        let mut pending = self.lock();
        let task = tokio::spawn(async move {
            if let Some(command) = work.await {
                // Nobody takes commands any more once the shell is gone for good.
                let _ = asks.commands.send(command);
            }
            // What was asked anew meanwhile is another's.
            let own = tokio::task::id();
            let mut pending = asks.lock();
            for id in owing {
                if pending.get(&id).is_some_and(|asking| asking.0.id() == own) {
                    pending.remove(&id);
                }
            }
        });
        let asking = Arc::new(Asking(task.abort_handle()));
        pending.extend(ids.into_iter().map(|id| (id, Arc::clone(&asking))));
    }

    /// Stops asking for what is no longer owed.
    pub(crate) fn keep(&self, is_outstanding: impl Fn(&EffectId) -> bool) {
        self.lock().retain(|id, _| is_outstanding(id));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<EffectId, Arc<Asking>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `Err` only for a refusal that would be the same the next time.
async fn until_answered<O>(
    bus: &Bus,
    trace: Option<TraceContext>,
    id: EffectId,
    request: O::Request,
) -> Result<O::Reply, Error>
where
    O: Operation,
    O::Request: Clone + Sync,
{
    let mut backoff = BACKOFF;
    loop {
        let ask = bus.ask::<O>(request.clone()).cause(id).deadline(DEADLINE);
        let ask = match trace {
            Some(trace) => ask.trace(trace),
            None => ask,
        };
        let refusal = match ask.await {
            Ok(reply) => return Ok(reply),
            Err(refusal) => refusal,
        };
        if is_final(refusal.code) {
            return Err(refusal);
        }
        tracing::debug!(operation = O::NAME, %id, %refusal, "asked in vain, asking again");
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Unavailable
            | Code::Deadline
            | Code::Exhausted
            | Code::NoResponders
            | Code::Unknown
            | Code::Cancelled
    )
}
