//! A counter that owes a greeting for every even number: small enough to see the engine through it.

use eclosion_schemas::events::Event;
use eclosion_schemas::{Epoch, Timestamp};
use serde::{Deserialize, Serialize};

use super::*;
use crate::journal::{JournalStore, Opened, memory::MemoryStore};

#[derive(Debug, Serialize, Deserialize)]
struct Counted(u64);
impl Event for Counted {
    const KIND: &'static str = "counted";
}
#[derive(Debug, Serialize, Deserialize)]
struct Greeted(EffectId);
impl Event for Greeted {
    const KIND: &'static str = "greeted";
}

#[derive(Debug)]
struct Counter;
#[derive(Debug, Default, Clone, Serialize)]
struct State {
    total: u64,
    foreign: u64,
    #[serde(skip)]
    owed: BTreeMap<EffectId, &'static str>,
}
#[derive(Debug)]
enum Command {
    Count,
    Greeted(EffectId),
    Refuse,
}

impl Core for Counter {
    type State = State;
    type Volatile = ();
    type Command = Command;
    type Effect = &'static str;
    const DECIDES: &'static [&'static str] = &["counted", "greeted"];
    const FOLDS: &'static [&'static str] = &["counted", "greeted", "lease.released"];

    fn decide(
        &self,
        state: &State,
        (): &mut (),
        _: &Reads,
        command: &Command,
        _: Timestamp,
    ) -> Result<Decision, Error> {
        match command {
            Command::Count => Ok(Decision::reply(state.total + 1).event(Counted(state.total + 1))),
            Command::Greeted(id) => Ok(Decision::reply(()).event(Greeted(*id))),
            Command::Refuse => Err(Error::invalid("no", "no")),
        }
    }

    fn settle(&self, state: &State, (): &mut (), _: &Reads, _: Timestamp) -> Vec<AnyEvent> {
        // A count that is a multiple of ten is followed by another one.
        if state.total > 0 && state.total.is_multiple_of(10) {
            vec![Counted(state.total + 1).into()]
        } else {
            Vec::new()
        }
    }

    fn apply(&self, state: &mut State, record: &Record) {
        if let Some(counted) = record.event::<Counted>() {
            state.total = counted.0;
            if counted.0.is_multiple_of(2) {
                state.owed.insert(EffectId { seq: record.seq, n: 0 }, "hello");
            }
        } else if let Some(greeted) = record.event::<Greeted>() {
            state.owed.remove(&greeted.0);
        } else {
            state.foreign += 1;
        }
    }

    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, &'static str> {
        &state.owed
    }

    fn wake_at(&self, _: &State, (): &()) -> Option<Timestamp> {
        None
    }

    fn digest(&self, state: &State) -> String {
        serde_json::to_string(state).unwrap()
    }
}

fn setup() -> (Journal, Engine<Counter>) {
    (Journal::new(Opened { epoch: Epoch(1), last: Seq(0) }, None), Engine::new(Counter))
}

fn send(engine: &mut Engine<Counter>, journal: &Journal, command: &Command) -> Step<&'static str> {
    engine.handle(journal, &Reads::default(), command, None, Timestamp(1))
}

#[test]
fn reports_each_effect_once_and_again_to_the_next_incarnation() {
    let (journal, mut engine) = setup();
    assert!(send(&mut engine, &journal, &Command::Count).effects.is_empty());
    let step = send(&mut engine, &journal, &Command::Count);
    let [(id, "hello")] = step.effects[..] else { panic!("{step:?}") };
    assert!(send(&mut engine, &journal, &Command::Count).effects.is_empty());

    engine.recover(&journal).unwrap();
    assert_eq!(engine.fold_new(&journal, &Reads::default(), Timestamp(1)).effects, [(id, "hello")]);
    send(&mut engine, &journal, &Command::Greeted(id));
    engine.recover(&journal).unwrap();
    assert!(engine.fold_new(&journal, &Reads::default(), Timestamp(1)).effects.is_empty());
}

#[test]
fn folds_foreign_records_before_it_appends() {
    let (journal, mut engine) = setup();
    let foreign =
        eclosion_schemas::events::LeaseReleased { lease: "l".parse().unwrap(), reason: String::new() };
    let append =
        Append { events: vec![foreign.into()], at: Timestamp(1), cause: None, folded: Seq(0), folds: &[] };
    journal.append(&append).unwrap();
    let step = send(&mut engine, &journal, &Command::Count);
    assert_eq!((engine.state().foreign, step.depends_on), (1, Seq(2)));
}

#[test]
fn settles_what_a_command_made_due() {
    let (journal, mut engine) = setup();
    (0..10).for_each(|_| drop(send(&mut engine, &journal, &Command::Count)));
    assert_eq!(engine.state().total, 11);
}

#[test]
fn a_refusal_appends_nothing() {
    let (journal, mut engine) = setup();
    assert!(matches!(send(&mut engine, &journal, &Command::Refuse).reply, Some(Err(_))));
    assert_eq!(journal.marks().appended, Seq(0));
}

#[test]
fn replay_from_bytes_gives_the_same_state() {
    let (journal, mut engine) = setup();
    (0..7).for_each(|_| drop(send(&mut engine, &journal, &Command::Count)));
    let mut store = MemoryStore::default();
    store.append(&journal.unwritten(100), &[]).unwrap();
    let reopened = Journal::new(store.open(), Some(store.reader()));
    let mut replayed = Engine::new(Counter);
    replayed.recover(&reopened).unwrap();
    assert_eq!(replayed.digest(), engine.digest());
}

#[test]
fn a_poisoned_journal_takes_speculative_state_back() {
    let (journal, mut engine) = setup();
    send(&mut engine, &journal, &Command::Count);
    send(&mut engine, &journal, &Command::Count);
    journal.mark_written(Seq(2));
    journal.mark_synced(Seq(1));
    send(&mut engine, &journal, &Command::Count);
    journal.poison("EIO");
    engine.recover(&journal).unwrap();
    assert_eq!(engine.state().total, 1);
}
