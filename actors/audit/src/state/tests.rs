//! Tables of cases over the audit record.

use std::any::Any;

use eclosion_kernel::engine::Engine;
use eclosion_kernel::journal::memory::MemoryStore;
use eclosion_kernel::journal::{Journal, JournalStore};

use super::*;

struct World {
    store: MemoryStore,
    journal: Journal,
    engine: Engine<Audit>,
}

impl World {
    fn on(store: MemoryStore) -> Self {
        let journal = Journal::new(store.open(), Some(store.reader()));
        let mut engine = Engine::new(Audit);
        engine.recover(&journal).unwrap();
        Self { store, journal, engine }
    }

    fn new() -> Self {
        Self::on(MemoryStore::default())
    }

    fn say<T: Any>(&mut self, command: &Command) -> Result<T, Error> {
        let reads = Reads::new(self.journal.epoch(), 0);
        let step = self.engine.handle(&self.journal, &reads, command, None, Timestamp(7));
        step.reply.unwrap().map(|reply| *reply.downcast::<T>().unwrap())
    }

    fn begin(&mut self) -> Result<u64, Error> {
        self.say::<BeginReply>(&Command::Begin(act())).map(|reply| reply.id)
    }

    fn end(&mut self, id: u64) -> Result<EndReply, Error> {
        self.say(&Command::End(EndRequest { id, error: None }))
    }

    /// What the writer does.
    fn write(&mut self) -> Vec<RowChange> {
        let batch = self.journal.unwritten(1_000);
        let mut rows = Vec::new();
        batch.iter().for_each(|record| project(record, &mut rows));
        self.store.append(&batch, &rows).unwrap();
        batch.iter().for_each(|record| self.journal.mark_written(record.seq));
        rows
    }

    fn shown(&mut self) -> Vec<ActView> {
        self.write();
        let rows = self.store.reader().scan(TABLE, &[], true, 100).unwrap();
        rows.iter().map(|(_, row)| rmp_serde::from_slice(row).unwrap()).collect()
    }
}

fn act() -> Act {
    Act {
        action: "actor.restart".into(),
        target: "/pool".into(),
        reason: "to see".into(),
        caller: Some("a test".into()),
        blast: String::new(),
    }
}

#[test]
fn an_act_is_shown_from_its_beginning_and_again_with_its_end() {
    let mut world = World::new();
    assert_eq!(world.begin(), Ok(1));
    let shown = world.shown();
    assert_eq!((shown[0].act.clone(), shown[0].ended_at), (act(), None));
    world.end(1).unwrap();
    let shown = world.shown();
    assert_eq!((shown.len(), shown[0].ended_at, &shown[0].error), (1, Some(Timestamp(7)), &None));
}

#[test]
fn the_end_of_an_act_counts_once() {
    let mut world = World::new();
    world.begin().unwrap();
    world.end(1).unwrap();
    world.end(1).unwrap();
    assert_eq!(world.journal.marks().appended.0, 2);
    assert_eq!(world.end(2).unwrap_err().reason, "audit.unknown");
}

#[test]
fn what_a_dead_kernel_left_open_ends_as_unknown() {
    let mut world = World::new();
    world.begin().unwrap();
    world.write();
    let mut next = World::on(world.store.clone());
    let reads = Reads::new(next.journal.epoch(), 0);
    next.engine.fold_new(&next.journal, &reads, Timestamp(9));
    let shown = next.shown();
    assert_eq!(shown[0].error.as_ref().unwrap().reason, "audit.kernel_died");
    assert_eq!(next.begin(), Ok(2));
}

#[test]
fn acts_that_are_open_are_bounded_and_so_are_reasons() {
    let mut world = World::new();
    (0..OPEN_MAX).for_each(|_| assert!(world.begin().is_ok()));
    assert_eq!(world.begin().unwrap_err().reason, "audit.open");
    world.end(1).unwrap();
    assert!(world.begin().is_ok());
    let long = Act { reason: "x".repeat(REASON_BYTES_MAX + 1), ..act() };
    assert_eq!(world.say::<BeginReply>(&Command::Begin(long)).unwrap_err().reason, "audit.reason");
}

#[test]
fn a_list_says_whether_there_are_more() {
    let mut world = World::new();
    (0..3).for_each(|_| assert!(world.begin().is_ok()));
    world.write();
    let list = |limit| {
        let mut reads = Reads::new(world.journal.epoch(), 0);
        let query = newest(limit);
        let Query::Scan { limit: rows, .. } = &query else { panic!("not a scan") };
        let found = world.store.reader().scan(TABLE, &[], true, *rows).unwrap();
        reads.insert(query, found);
        super::list(&reads, &ListRequest { limit }).unwrap()
    };
    let (two, all) = (list(2), list(3));
    assert_eq!((two.acts.iter().map(|act| act.id).collect::<Vec<_>>(), two.more), (vec![3, 2], true));
    assert_eq!((all.acts.len(), all.more), (3, false));
}

#[test]
fn the_state_after_replay_is_the_state_before() {
    let mut world = World::new();
    (0..3).for_each(|_| assert!(world.begin().is_ok()));
    world.end(2).unwrap();
    let live = Audit.digest(world.engine.state());
    world.write();
    let mut replayed = Engine::new(Audit);
    replayed.recover(&world.journal).unwrap();
    assert_eq!(Audit.digest(replayed.state()), live);
}

#[test]
fn the_newest_acts_are_kept() {
    let mut world = World::new();
    for id in 1..=KEPT_MAX + 2 {
        assert_eq!(world.begin(), Ok(id));
        world.end(id).unwrap();
        world.write();
    }
    let rows = world.store.reader().scan(TABLE, &[], false, u32::MAX).unwrap();
    assert_eq!((rows.len() as u64, &rows[0].0), (KEPT_MAX, &3_u64.to_be_bytes().to_vec()));
}
