//! Somebody's actors on a bare kernel: no subsystem, no transport, no Python.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test, helpers and all")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use eclosion_bus::{InHand, Message};
use eclosion_kernel::actor::{CommandOf, EffectOf};
use eclosion_kernel::core::{AnyEvent, Core, Decision, Reads};
use eclosion_kernel::journal::{JournalStore, Record, memory::MemoryStore};
use eclosion_kernel::{Actor, Context, Handler, Kernel};
use eclosion_schemas::events::Event;
use eclosion_schemas::operation::{NoItem, Operation, Spec};
use eclosion_schemas::{Durability, EffectId, Error, Role, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Add {
    amount: u64,
    panic_once: bool,
}

macro_rules! operation {
    ($name:ident, $wire:literal, $address:literal, $durability:ident) => {
        struct $name;
        impl Operation for $name {
            type Request = Add;
            type Reply = u64;
            type Item = NoItem;
            const NAME: &'static str = $wire;
            const ADDRESS: &'static str = $address;
            const ROLE: Role = Role::Operate;
            const DURABILITY: Durability = Durability::$durability;
            const DOC: &'static str = "Adds.";
            fn example() -> Add {
                Add { amount: 1, panic_once: false }
            }
        }
    };
}
operation!(Count, "demo.count", "/counter", Power);
operation!(Echo, "demo.echo", "/echo", Call);

#[derive(Debug, Serialize, Deserialize)]
struct Counted(u64);
impl Event for Counted {
    const KIND: &'static str = "demo.counted";
}

struct CounterCore;
#[derive(Debug, Default, Clone)]
struct State {
    total: u64,
    owed: BTreeMap<EffectId, ()>,
}

impl Core for CounterCore {
    type State = State;
    type Volatile = ();
    type Command = u64;
    type Effect = ();
    const DECIDES: &'static [&'static str] = &[Counted::KIND];
    const FOLDS: &'static [&'static str] = &[Counted::KIND];
    fn decide(
        &self,
        state: &State,
        (): &mut (),
        _: &Reads,
        amount: &u64,
        _: Timestamp,
    ) -> Result<Decision, Error> {
        Ok(Decision::reply(state.total + amount).event(Counted(*amount)))
    }
    fn settle(&self, _: &State, (): &mut (), _: &Reads, _: Timestamp) -> Vec<AnyEvent> {
        Vec::new()
    }
    fn apply(&self, state: &mut State, record: &Record) {
        if let Some(counted) = record.event::<Counted>() {
            state.total += counted.0;
            state.owed.insert(EffectId { seq: record.seq, n: 0 }, ());
        }
    }
    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, ()> {
        &state.owed
    }
    fn wake_at(&self, _: &State, (): &()) -> Option<Timestamp> {
        None
    }
    fn digest(&self, state: &State) -> String {
        state.total.to_string()
    }
}

#[derive(Default)]
struct Counter {
    panicked: AtomicBool,
    performed: Arc<AtomicU32>,
}

impl Actor for Counter {
    type Core = CounterCore;
    fn address(&self) -> &'static str {
        "/counter"
    }
    fn core(&self) -> CounterCore {
        CounterCore
    }
    fn command(&self, message: &Message) -> Result<CommandOf<Self>, Error> {
        let add = message.request::<Count>().ok_or_else(|| Error::invalid("demo", "not a count"))?;
        assert!(!add.panic_once || self.panicked.swap(true, Ordering::SeqCst), "as asked");
        Ok(add.amount)
    }
    fn perform(&self, effects: &[(EffectId, EffectOf<Self>)], _: &Context<u64>) {
        self.performed.fetch_add(effects.len() as u32, Ordering::SeqCst);
    }
}

struct Echoes {
    panicked: Arc<AtomicBool>,
}

impl Handler for Echoes {
    async fn handle(&mut self, message: InHand) {
        let Some(add) = message.request::<Echo>().cloned() else { return };
        assert!(!add.panic_once || self.panicked.swap(true, Ordering::SeqCst), "as asked");
        message.finish().reply(Ok(Box::new(add.amount)));
    }
}

async fn kernel(store: &MemoryStore, counter: Counter) -> Kernel {
    let panicked = Arc::new(AtomicBool::new(false));
    let kernel = Kernel::builder()
        .operation(Spec::of::<Count>())
        .and_then(|builder| builder.operation(Spec::of::<Echo>()))
        .unwrap()
        .journal(Box::new(store.clone()), store.open())
        .actor(counter)
        .service("/echo", move || Echoes { panicked: Arc::clone(&panicked) })
        .start()
        .await
        .unwrap();
    kernel.adopt();
    kernel.run();
    kernel
}

fn add(amount: u64, panic_once: bool) -> Add {
    Add { amount, panic_once }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_incarnation_answers_the_message_that_killed_the_last_one() {
    let kernel = kernel(&MemoryStore::default(), Counter::default()).await;
    let bus = kernel.bus();
    assert_eq!(within(bus.ask::<Count>(add(2, false)).into_future()).await, Ok(2));
    let waiting =
        [bus.ask::<Count>(add(3, true)).into_future(), bus.ask::<Count>(add(4, false)).into_future()];
    let [third, fourth] = waiting;
    assert_eq!((within(third).await, within(fourth).await), (Ok(5), Ok(9)));
    assert_eq!(within(bus.ask::<Echo>(add(7, true)).into_future()).await, Ok(7));
    let row = kernel.rows().into_iter().find(|row| row.address == "/counter").unwrap();
    assert_eq!((row.incarnation.0, row.restarts), (2, 1));
    within(kernel.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_at_the_next_start_and_effects_are_performed_again() {
    let store = MemoryStore::default();
    let first = kernel(&store, Counter::default()).await;
    assert_eq!(within(first.bus().ask::<Count>(add(5, false)).into_future()).await, Ok(5));
    within(first.stop()).await;
    let performed = Arc::new(AtomicU32::new(0));
    let second = kernel(&store, Counter { performed: Arc::clone(&performed), ..Counter::default() }).await;
    assert_eq!(within(second.bus().ask::<Count>(add(1, false)).into_future()).await, Ok(6));
    within(second.stop()).await;
    assert_eq!(performed.load(Ordering::SeqCst), 2);
    assert_eq!(
        store.reader().read(eclosion_schemas::Seq(0), &[], &mut |_| std::ops::ControlFlow::Continue(())),
        Ok(())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_kernels_in_one_process_share_nothing() {
    let one = kernel(&MemoryStore::default(), Counter::default()).await;
    let two = kernel(&MemoryStore::default(), Counter::default()).await;
    assert_eq!(within(one.bus().ask::<Count>(add(5, false)).into_future()).await, Ok(5));
    assert_eq!(within(two.bus().ask::<Count>(add(1, false)).into_future()).await, Ok(1));
    within(one.stop()).await;
    assert_eq!(within(two.bus().ask::<Count>(add(1, false)).into_future()).await, Ok(2));
    within(two.stop()).await;
}
