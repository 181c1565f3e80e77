//! Effects, performed: one blocking thread at a time moves items, and says together what came of them.
//!
//! An effect that is in hand already is not taken twice; one that was done by an earlier life is found done by the port.
//! What cannot be reported is forgotten here and performed again by the next incarnation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use eclosion_bus::Bus;
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::events::Moved;
use eclosion_schemas::operation::{Durability, NoItem, Operation, Role};
use eclosion_schemas::ops::gc::{ADDRESS, Item, ItemKind};
use eclosion_schemas::{EffectId, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use crate::ports::{Records, Stock};
use crate::state::{Done, Effect, Outcome};

/// Items moved before what came of them is said.
const TOGETHER_MAX: usize = 64;
const DEADLINE: Duration = Duration::from_secs(10);
const BACKOFF: Duration = Duration::from_millis(100);
/// After so many tries the kernel is ending, or its journal is read-only.
const TRIES_MAX: u32 = 20;

/// What the stale manager reaches of the world. Its calls block: the hands make them on blocking threads, a simulation at
/// its own time.
#[derive(Debug)]
pub struct Ports {
    pub(crate) stocks: BTreeMap<ItemKind, Arc<dyn Stock>>,
    pub(crate) records: Arc<dyn Records>,
}

/// See the head of this file. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Hands {
    pub(crate) ports: Arc<Ports>,
    in_hand: Arc<Mutex<BTreeSet<EffectId>>>,
    one: Arc<Semaphore>,
    /// How often something was reported.
    reported: Arc<watch::Sender<u64>>,
}

/// What came of effects. Between the hands and the core.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ReportRequest {
    pub(crate) done: Vec<Done>,
}

impl Operation for Report {
    type Request = ReportRequest;
    type Reply = ();
    type Item = NoItem;
    const NAME: &'static str = "gc.done";
    const ADDRESS: &'static str = ADDRESS;
    const ROLE: Role = Role::Service;
    const DURABILITY: Durability = Durability::Call;
    const DOC: &'static str = "Says what came of moves on disk.";

    fn example() -> ReportRequest {
        ReportRequest { done: Vec::new() }
    }
}

impl Hands {
    pub(crate) fn new(ports: Ports) -> Self {
        Self {
            ports: Arc::new(ports),
            in_hand: Arc::default(),
            one: Arc::new(Semaphore::new(1)),
            reported: Arc::new(watch::Sender::new(0)),
        }
    }

    pub(crate) fn reported(&self) -> watch::Receiver<u64> {
        self.reported.subscribe()
    }

    /// Takes on what is not in hand yet; it is done in this order.
    #[expect(
        clippy::disallowed_methods,
        reason = "moves wait for the disk, and performing must not; they are bounded by what is outstanding"
    )]
    pub(crate) fn take(&self, effects: Vec<(EffectId, Effect)>, bus: &Bus) {
        let new: Vec<_> = {
            let mut in_hand = lock(&self.in_hand);
            effects.into_iter().filter(|(id, _)| in_hand.insert(*id)).collect()
        };
        if new.is_empty() {
            return;
        }
        let (hands, bus) = (self.clone(), bus.clone());
        tokio::spawn(async move {
            let ids: Vec<EffectId> = new.iter().map(|(id, _)| *id).collect();
            // Closed only with the process.
            let turn = Arc::clone(&hands.one).acquire_owned().await;
            for together in new.chunks(TOGETHER_MAX) {
                hands.perform(together.to_vec(), &bus).await;
            }
            drop(turn);
            let mut in_hand = lock(&hands.in_hand);
            ids.iter().for_each(|id| _ = in_hand.remove(id));
        });
    }

    async fn perform(&self, effects: Vec<(EffectId, Effect)>, bus: &Bus) {
        let ports = Arc::clone(&self.ports);
        let moving = move || -> Vec<Done> {
            effects.into_iter().filter_map(|(id, effect)| ports.perform(id, effect)).collect()
        };
        let done = match tokio::task::spawn_blocking(moving).await {
            Ok(done) => done,
            Err(why) => return tracing::error!(%why, "moving items ended early; the next start goes on"),
        };
        let mut tries = 1;
        while let Err(refusal) =
            bus.ask::<Report>(ReportRequest { done: done.clone() }).deadline(DEADLINE).await
        {
            if tries == TRIES_MAX || matches!(refusal.code, Code::Internal | Code::Invalid) {
                tracing::warn!(%refusal, "what came of collected items could not be recorded; the next start looks again");
                break;
            }
            tries += 1;
            tokio::time::sleep(BACKOFF).await;
        }
        self.reported.send_modify(|count| *count += 1);
    }
}

impl Ports {
    #[must_use]
    pub fn new(stocks: Vec<Arc<dyn Stock>>, records: Arc<dyn Records>) -> Self {
        Self { stocks: stocks.into_iter().map(|stock| (stock.kind(), stock)).collect(), records }
    }

    /// Does on the disk what an effect owes; nothing for a pass, which is no move.
    #[must_use]
    pub fn perform(&self, effect: EffectId, work: Effect) -> Option<Done> {
        let (item, outcome) = match work {
            Effect::Pass => return None,
            Effect::Trash { item, token, place } => {
                let moved = match self.stock(&item) {
                    Ok(stock) => stock.trash(&item.id, &token, &place),
                    Err(error) => Moved::Failed { error },
                };
                (item, Outcome::Moved { moved, erased: Vec::new() })
            }
            Effect::Restore { item, place } => {
                // Of a run only rows were hidden.
                let restored = match item.kind {
                    ItemKind::Run => Ok(()),
                    _ => self.stock(&item).and_then(|stock| stock.restore(&item.id, &place)),
                };
                (item, Outcome::Restored { error: restored.err() })
            }
            Effect::Purge { item, place } => {
                let outcome = self.purge(&item, &place);
                (item, outcome)
            }
        };
        Some(Done { effect, item, outcome })
    }

    fn purge(&self, item: &Item, place: &str) -> Outcome {
        let failed = |error| Outcome::Moved { moved: Moved::Failed { error }, erased: Vec::new() };
        if item.kind != ItemKind::Run {
            return match self.stock(item).and_then(|stock| stock.purge(place)) {
                Ok(bytes) => Outcome::Moved { moved: Moved::Purged { bytes }, erased: Vec::new() },
                Err(error) => failed(error),
            };
        }
        let run = match RunId::new(item.id.as_str()) {
            Ok(run) => run,
            Err(why) => return failed(Error::invalid("gc.item", why.to_string())),
        };
        // The pages of a database are used again; they are not given back to the disk.
        match self.records.rows(&run) {
            Ok(erased) => Outcome::Moved { moved: Moved::Purged { bytes: 0 }, erased },
            Err(error) => failed(error),
        }
    }

    fn stock(&self, item: &Item) -> Result<&Arc<dyn Stock>, Error> {
        self.stocks.get(&item.kind).ok_or_else(|| {
            Error::new(Code::Unimplemented, "gc.stock", format!("this kernel keeps no {}", item.kind))
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section is one plain change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
