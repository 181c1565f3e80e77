use std::sync::atomic::{AtomicUsize, Ordering};

use eclosion_schemas::events::{Event, LeaseReleased};

use super::*;
use crate::core::Row;
use crate::journal::JournalStore;
use crate::journal::memory::MemoryStore;

fn journal() -> Journal {
    Journal::new(Opened { epoch: Epoch(1), last: Seq(0) }, None)
}

fn released(reason: &str) -> AnyEvent {
    LeaseReleased { lease: "l-1".parse().unwrap(), reason: reason.into() }.into()
}

fn append(journal: &Journal, folded: u64) -> Result<Vec<Arc<Record>>, AppendError> {
    journal.append(&Append {
        events: vec![released("done")],
        at: Timestamp(1),
        cause: None,
        folded: Seq(folded),
        folds: &[LeaseReleased::KIND],
    })
}

#[test]
fn releases_each_held_thing_once_at_its_own_mark() {
    let journal = journal();
    append(&journal, 0).unwrap();
    let (written, synced) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for (mark, count) in [(Mark::Written, &written), (Mark::Synced, &synced)] {
        let count = Arc::clone(count);
        journal.hold(mark, Seq(1), move |outcome| {
            outcome.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        });
    }
    journal.mark_written(Seq(1));
    assert_eq!((written.load(Ordering::Relaxed), synced.load(Ordering::Relaxed)), (1, 0));
    journal.mark_synced(Seq(1));
    journal.mark_synced(Seq(1));
    assert_eq!((written.load(Ordering::Relaxed), synced.load(Ordering::Relaxed)), (1, 1));
}

#[test]
fn an_append_from_behind_gets_what_it_has_not_folded() {
    let journal = journal();
    append(&journal, 0).unwrap();
    let Err(AppendError::Behind(behind)) = append(&journal, 0) else { panic!("it has not folded #1") };
    assert_eq!((behind.records.len(), behind.head), (1, Seq(1)));
    assert!(append(&journal, 1).is_ok());
    assert_eq!(journal.marks().appended, Seq(2));
}

#[test]
fn a_poisoned_journal_loses_what_is_held_and_refuses_the_rest() {
    let journal = journal();
    append(&journal, 0).unwrap();
    let lost = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lost);
    journal.hold(Mark::Synced, Seq(1), move |outcome| {
        assert_eq!(outcome.unwrap_err().error().code, Code::Unknown);
        count.fetch_add(1, Ordering::Relaxed);
    });
    journal.mark_written(Seq(1));
    journal.poison("fdatasync: EIO");
    assert_eq!(lost.load(Ordering::Relaxed), 1);
    let Err(AppendError::Refused(error)) = append(&journal, 1) else { panic!("it is read-only") };
    assert_eq!(error.reason, "journal.poisoned");
    // What is read from now on depends on nothing that could still be lost.
    journal.mark_written(Seq(1));
    let none = Seq(0);
    assert_eq!(journal.marks(), Marks { appended: none, written: none, synced: none });
    assert!(journal.after(none, &[LeaseReleased::KIND]).records.is_empty());
}

#[test]
fn synced_never_overtakes_written() {
    let journal = journal();
    append(&journal, 0).unwrap();
    journal.mark_synced(Seq(1));
    assert_eq!(journal.marks().synced, Seq(0));
}

#[test]
fn refuses_an_event_that_belongs_into_a_file() {
    let journal = journal();
    let events = vec![released(&"x".repeat(EVENT_BYTES_MAX))];
    let outcome =
        journal.append(&Append { events, at: Timestamp(1), cause: None, folded: Seq(0), folds: &[] });
    let Err(AppendError::Refused(error)) = outcome else { panic!("too large") };
    assert_eq!(error.reason, "event.too_large");
    assert_eq!(journal.marks().appended, Seq(0));
}

#[test]
fn a_sync_that_nobody_waits_for_is_put_off_until_somebody_does() {
    const NEVER: Duration = Duration::from_secs(3600);
    let journal = Arc::new(journal());
    append(&journal, 0).unwrap();
    journal.mark_written(Seq(1));
    journal.hold_relaxed(Seq(1), |outcome| outcome.unwrap());
    let syncer = std::thread::spawn({
        let journal = Arc::clone(&journal);
        move || journal.wait_unsynced(Instant::now() + NEVER, NEVER)
    });
    assert!(!syncer.is_finished());
    journal.hold(Mark::Synced, Seq(1), |outcome| outcome.unwrap());
    assert_eq!(syncer.join().unwrap(), Some(Seq(1)));
}

#[test]
fn a_rested_syncer_serves_those_who_do_not_wait() {
    let journal = journal();
    append(&journal, 0).unwrap();
    journal.mark_written(Seq(1));
    journal.hold_relaxed(Seq(1), |outcome| outcome.unwrap());
    assert_eq!(journal.wait_unsynced(Instant::now(), Duration::from_secs(3600)), Some(Seq(1)));
}

#[test]
fn what_becomes_due_while_older_things_are_let_out_waits_its_turn() {
    let journal = Arc::new(journal());
    append(&journal, 0).unwrap();
    append(&journal, 1).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |n: u64| {
        let order = Arc::clone(&order);
        move |_| order.lock().unwrap().push(n)
    };
    journal.hold(Mark::Written, Seq(1), {
        let (journal, newer) = (Arc::clone(&journal), note(3));
        // As an actor would on its own thread, while the writer lets out what is due.
        move |_| {
            std::thread::scope(|scope| _ = scope.spawn(|| journal.hold(Mark::Written, Seq(2), newer)).join())
        }
    });
    journal.hold(Mark::Written, Seq(1), |_| panic!("by what was held"));
    journal.hold(Mark::Written, Seq(1), note(1));
    journal.hold(Mark::Written, Seq(2), note(2));
    journal.mark_written(Seq(2));
    assert_eq!((order.lock().unwrap().clone(), journal.held()), (vec![1, 2, 3], [0, 0]));
    journal.hold(Mark::Written, Seq(2), note(4));
    assert_eq!(order.lock().unwrap().last(), Some(&4));
}

#[test]
fn events_are_counted_by_kind_when_they_are_appended_and_not_when_they_are_refused() {
    let journal = journal();
    assert!(journal.appended_of_kinds().is_empty());
    append(&journal, 0).unwrap();
    assert!(append(&journal, 0).is_err());
    append(&journal, 1).unwrap();
    assert_eq!(journal.appended_of_kinds(), BTreeMap::from([(LeaseReleased::KIND, 2)]));
}

/// Counts how often somebody reads from the start.
#[derive(Debug)]
struct Counting(MemoryStore, AtomicUsize);

impl Reader for Counting {
    fn read(
        &self,
        after: Seq,
        kinds: &[&str],
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.read(after, kinds, visit)
    }

    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.0.get(table, key)
    }

    fn scan(&self, table: &str, prefix: &[u8], newest_first: bool, limit: u32) -> Result<Vec<Row>, Error> {
        self.0.scan(table, prefix, newest_first, limit)
    }
}

#[test]
fn actors_that_begin_together_read_the_store_once_and_those_that_begin_again_what_is_no_longer_kept() {
    const STORED: usize = 5_000;
    let mut store = MemoryStore::default();
    let first_life = Journal::new(store.open(), None);
    for folded in 0..STORED {
        append(&first_life, folded as u64).unwrap();
    }
    store.append(&first_life.unwritten(STORED), &[]).unwrap();

    let reader = Arc::new(Counting(store.clone(), AtomicUsize::new(0)));
    let reads = || reader.1.load(Ordering::Relaxed);
    let journal = Journal::new(store.open(), Some(Arc::clone(&reader) as Arc<dyn Reader>));
    let whole = |journal: &Journal| {
        let behind = journal.after(Seq(0), &[LeaseReleased::KIND]);
        let seqs = behind.records.iter().map(|record| record.seq.0);
        assert!(seqs.eq(1..=STORED as u64) && behind.head == Seq(STORED as u64));
        behind.records
    };
    journal.read_ahead();
    let (first, second) = (whole(&journal), whole(&journal));
    assert_eq!(reads(), 1);
    let decoded = |record: &Record| record.event::<LeaseReleased>().unwrap();
    assert!(Arc::ptr_eq(&decoded(&first[7]), &decoded(&second[7])), "it is decoded once");

    journal.forget_read_ahead();
    whole(&journal);
    assert_eq!(reads(), 2);
    let kept = journal.after(Seq(STORED as u64 - 1_000), &[LeaseReleased::KIND]);
    assert_eq!((kept.records.len(), reads()), (1_000, 2));
}
