//! Somebody's actors on a bare kernel: no subsystem, no transport, no Python.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test, helpers and all")]

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use eclosion_bus::{Address, Gate, InHand, Message};
use eclosion_kernel::actor::{CommandOf, EffectOf};
use eclosion_kernel::core::{AnyEvent, Core, Decision, Reads};
use eclosion_kernel::journal::{JournalStore, Record, memory::MemoryStore};
use eclosion_kernel::supervision::{End, Ended};
use eclosion_kernel::{Actor, Context, Handler, Kernel};
use eclosion_schemas::events::Event;
use eclosion_schemas::operation::{NoItem, Operation, Spec};
use eclosion_schemas::view::ActorState;
use eclosion_schemas::{Durability, EffectId, Error, Incarnation, Role, Timestamp};
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

fn counter() -> Address {
    Address::new("/counter").unwrap()
}

fn life(kernel: &Kernel) -> (u32, u32, ActorState) {
    let row = kernel.rows().into_iter().find(|row| row.address == "/counter").unwrap();
    (row.incarnation.0, row.restarts, row.state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wished_restart_keeps_the_state_and_costs_nothing_of_the_budget() {
    let kernel = kernel(&MemoryStore::default(), Counter::default()).await;
    assert_eq!(within(kernel.bus().ask::<Count>(add(2, false)).into_future()).await, Ok(2));
    for next in 2..=12 {
        let ended = within(kernel.end(&counter(), End::Restart, "to see")).await;
        assert_eq!(ended, Ok(Ended::Next(Incarnation(next))));
    }
    assert_eq!(within(kernel.bus().ask::<Count>(add(3, false)).into_future()).await, Ok(5));
    assert_eq!(life(&kernel), (12, 0, ActorState::Ready));
    within(kernel.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_counts_as_a_death_and_says_why() {
    let kernel = kernel(&MemoryStore::default(), Counter::default()).await;
    let ended = within(kernel.end(&counter(), End::Kill, "it seemed stuck")).await;
    assert_eq!(ended, Ok(Ended::Next(Incarnation(2))));
    let row = kernel.rows().into_iter().find(|row| row.address == "/counter").unwrap();
    assert_eq!((row.restarts, row.last_error.as_deref()), (1, Some("it seemed stuck")));
    assert_eq!(within(kernel.bus().ask::<Count>(add(3, false)).into_future()).await, Ok(3));
    within(kernel.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_restarted_says_what_can_be_done() {
    let kernel = kernel(&MemoryStore::default(), Counter::default()).await;
    let refused = |address: &'static str| {
        let kernel = kernel.clone();
        async move { kernel.end(&Address::new(address).unwrap(), End::Restart, "").await.unwrap_err() }
    };
    assert_eq!(within(refused("/journal/writer")).await.reason, "actor.journal");
    assert_eq!(within(refused("/nobody")).await.reason, "actor.unknown");
    let forever: Pin<Box<dyn Future<Output = Result<(), Error>> + Send>> = Box::pin(std::future::pending());
    within(kernel.hold("holders", Address::new("/held").unwrap(), forever)).await.unwrap();
    assert_eq!(within(refused("/held")).await.reason, "actor.temporary");
    let gone = within(kernel.end(&Address::new("/held").unwrap(), End::Kill, "")).await;
    assert_eq!(gone, Ok(Ended::Gone));
    within(kernel.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_actor_stays_paused_over_a_restart_and_loses_nothing() {
    let kernel = kernel(&MemoryStore::default(), Counter::default()).await;
    assert_eq!(kernel.bus().gate(&counter(), Gate::Paused), Some(Gate::Open));
    let waiting = tokio::spawn(kernel.bus().ask::<Count>(add(2, false)).into_future());
    let ended = within(kernel.end(&counter(), End::Restart, "to see")).await;
    assert_eq!((ended, life(&kernel).2), (Ok(Ended::Next(Incarnation(2))), ActorState::Paused));
    assert!(!waiting.is_finished());
    let _ = kernel.bus().gate(&counter(), Gate::Open);
    assert_eq!(within(waiting).await.unwrap(), Ok(2));
    within(kernel.stop()).await;
}
