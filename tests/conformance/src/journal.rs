//! What every journal store must do, as cases that run over any of them: see [`journal_conforms!`](crate::journal_conforms).

use std::ops::ControlFlow;
use std::sync::Arc;

use eclosion_kernel::core::{AnyEvent, Row};
use eclosion_kernel::journal::memory::MemoryStore;
use eclosion_kernel::journal::{JournalStore, Opened, Reader, Record, RowChange, Stored};
use eclosion_schemas::error::Error;
use eclosion_schemas::events::{AttemptStopped, Event, LeaseReleased};
use eclosion_schemas::{EffectId, Epoch, Fence, Seq, Timestamp};

/// Something that keeps a journal over several lives.
pub trait Disk: Default {
    type Store: JournalStore;

    /// # Errors
    /// Whatever the store refuses with.
    fn open(&self) -> Result<(Self::Store, Opened), Error>;
}

#[derive(Debug, Default)]
pub struct MemoryDisk(MemoryStore);

impl Disk for MemoryDisk {
    type Store = MemoryStore;

    fn open(&self) -> Result<(MemoryStore, Opened), Error> {
        Ok((self.0.clone(), self.0.open()))
    }
}

/// The record `seq` of a journal in which every third one is of another kind.
#[must_use]
pub fn record(seq: u64, epoch: Epoch) -> Arc<Record> {
    let (event, cause): (AnyEvent, _) = if seq.is_multiple_of(3) {
        let fence = Fence { epoch, counter: seq };
        let Ok(worker) = "w-1-1".parse() else { unreachable!("a well-formed id") };
        (AttemptStopped { worker, fence }.into(), None)
    } else {
        let Ok(lease) = format!("l-{seq}").parse() else { unreachable!("a well-formed id") };
        let reason = format!("because of {seq}");
        (LeaseReleased { lease, reason }.into(), Some(EffectId { seq: Seq(seq - 1), n: 7 }))
    };
    let body = event.encode().unwrap_or_default().into();
    let (kind, version, at) = (event.kind.into(), event.version, Timestamp(1_000 + seq));
    Arc::new(Stored { seq: Seq(seq), epoch, at, kind, version, cause, body }.into())
}

#[must_use]
pub fn records(seqs: std::ops::RangeInclusive<u64>, epoch: Epoch) -> Vec<Arc<Record>> {
    seqs.map(|seq| record(seq, epoch)).collect()
}

/// # Panics
/// If the store refuses.
#[must_use]
pub fn read_all(reader: &dyn Reader, after: u64, kinds: &[&str]) -> Vec<Record> {
    let mut found = Vec::new();
    let read = reader.read(Seq(after), kinds, &mut |record| {
        found.push(record);
        ControlFlow::Continue(())
    });
    assert_eq!(read, Ok(()));
    found
}

/// # Panics
/// If what was read is not what [`record`] makes.
pub fn assert_same(found: &[Record], expected: &[Arc<Record>]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((found.seq, found.epoch, found.at), (expected.seq, expected.epoch, expected.at));
        assert_eq!((&found.kind, found.version), (&expected.kind, expected.version));
        assert_eq!((found.cause, &found.body), (expected.cause, &expected.body));
    }
}

fn put(table: &'static str, key: &[u8], value: &[u8]) -> RowChange {
    RowChange { table, key: key.to_vec(), value: Some(value.to_vec()) }
}

fn row(key: &[u8], value: &[u8]) -> Row {
    (key.to_vec(), value.to_vec())
}

pub fn begins_empty_in_epoch_one<D: Disk>() {
    let disk = D::default();
    let (store, opened) = disk.open().unwrap();
    assert_eq!(opened, Opened { epoch: Epoch(1), last: Seq(0) });
    assert!(read_all(&*store.reader(), 0, &[]).is_empty());
}

pub fn goes_on_where_it_ended_in_the_next_epoch<D: Disk>() {
    let disk = D::default();
    for life in 1..=3 {
        let (mut store, opened) = disk.open().unwrap();
        assert_eq!(opened, Opened { epoch: Epoch(life), last: Seq(u64::from(life - 1) * 10) });
        let first = opened.last.0 + 1;
        store.append(&records(first..=first + 9, opened.epoch), &[]).unwrap();
    }
    let (store, _) = disk.open().unwrap();
    let found = read_all(&*store.reader(), 0, &[]);
    assert_eq!(
        found.iter().map(|record| record.epoch.0).collect::<Vec<_>>(),
        [[1; 10], [2; 10], [3; 10]].concat()
    );
}

pub fn gives_back_every_field_of_every_record<D: Disk>() {
    let disk = D::default();
    let (mut store, opened) = disk.open().unwrap();
    // More than any page or batch.
    let all = records(1..=3_000, opened.epoch);
    for batch in all.chunks(700) {
        store.append(batch, &[]).unwrap();
    }
    assert_same(&read_all(&*store.reader(), 0, &[]), &all);
    drop(store);
    let (store, _) = disk.open().unwrap();
    assert_same(&read_all(&*store.reader(), 0, &[]), &all);
    assert_eq!(
        read_all(&*store.reader(), 0, &[])[0].event::<LeaseReleased>().unwrap().reason,
        "because of 1"
    );
}

pub fn reads_after_a_seq_and_by_kind_until_told_to_stop<D: Disk>() {
    let disk = D::default();
    let (mut store, opened) = disk.open().unwrap();
    let all = records(1..=30, opened.epoch);
    store.append(&all, &[]).unwrap();
    let reader = store.reader();
    assert_same(&read_all(&*reader, 20, &[]), &all[20..]);
    assert_eq!(read_all(&*reader, 20, &[AttemptStopped::KIND]).len(), 4);
    assert_eq!(read_all(&*reader, 0, &[AttemptStopped::KIND, LeaseReleased::KIND]).len(), 30);
    assert!(read_all(&*reader, 30, &[]).is_empty() && read_all(&*reader, 99, &[]).is_empty());
    assert!(read_all(&*reader, 0, &["nobody.decides"]).is_empty());
    let mut seen = 0;
    let read = reader.read(Seq(0), &[], &mut |_| {
        seen += 1;
        if seen == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((read, seen), (Ok(()), 5));
}

pub fn keeps_rows_with_their_records<D: Disk>() {
    let disk = D::default();
    let (mut store, opened) = disk.open().unwrap();
    let rows = [put("a", b"k", b"1"), put("a", b"k", b"2"), put("b", b"k", b"3"), put("a", b"gone", b"")];
    store.append(&records(1..=1, opened.epoch), &rows).unwrap();
    let gone = RowChange { table: "a", key: b"gone".to_vec(), value: None };
    assert_eq!(store.reader().get("a", b"gone"), Ok(Some(Vec::new())));
    store.append(&records(2..=2, opened.epoch), &[gone]).unwrap();
    drop(store);
    let (store, _) = disk.open().unwrap();
    let reader = store.reader();
    assert_eq!(reader.get("a", b"k"), Ok(Some(b"2".to_vec())));
    assert_eq!(reader.get("b", b"k"), Ok(Some(b"3".to_vec())));
    assert_eq!(reader.get("a", b"gone"), Ok(None));
    assert_eq!(reader.get("nobody", b"k"), Ok(None));
}

pub fn scans_a_prefix_in_both_directions<D: Disk>() {
    let disk = D::default();
    let (mut store, opened) = disk.open().unwrap();
    let keys: [&[u8]; 7] = [b"", b"a", b"a/1", b"a/2", b"a/\xff\xff", b"b", b"\xff\xff"];
    let rows: Vec<RowChange> = keys.iter().map(|key| put("t", key, key)).collect();
    store.append(&records(1..=1, opened.epoch), &rows).unwrap();
    let reader = store.reader();
    let scan = |prefix: &[u8], newest_first, limit| reader.scan("t", prefix, newest_first, limit).unwrap();
    let expected = |keys: &[&[u8]]| keys.iter().map(|key| row(key, key)).collect::<Vec<_>>();
    assert_eq!(scan(b"", false, 99), expected(&keys));
    assert_eq!(scan(b"a/", false, 99), expected(&keys[2..5]));
    assert_eq!(scan(b"a/", false, 2), expected(&keys[2..4]));
    assert_eq!(scan(b"a/", true, 2), expected(&[b"a/\xff\xff", b"a/2"]));
    assert_eq!(scan(b"\xff", true, 9), expected(&[b"\xff\xff"]));
    assert_eq!(scan(b"a/\xff", false, 9), expected(&[b"a/\xff\xff"]));
    assert!(scan(b"c", false, 9).is_empty() && scan(b"", false, 0).is_empty());
}

pub fn readers_beside_the_writer_see_a_prefix<D: Disk>() {
    let disk = D::default();
    let (mut store, opened) = disk.open().unwrap();
    let reader = store.reader();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = 0;
                while last < 600 {
                    let found = read_all(&*reader, 0, &[]);
                    assert!(found.iter().map(|record| record.seq.0).eq(1..=found.len() as u64));
                    assert!(found.len() >= last, "what was written cannot disappear");
                    last = found.len();
                }
            });
        }
        for seq in 1..=600 {
            store.append(&records(seq..=seq, opened.epoch), &[]).unwrap();
        }
    });
}

pub fn a_sync_covers_what_was_written_before_it<D: Disk>() {
    let disk = D::default();
    let (mut store, opened) = disk.open().unwrap();
    let mut syncer = store.syncer().unwrap();
    for seq in 1..=5 {
        store.append(&records(seq..=seq, opened.epoch), &[]).unwrap();
        syncer.sync(Seq(seq)).unwrap();
    }
    drop((store, syncer));
    assert_eq!(disk.open().unwrap().1.last, Seq(5));
}

/// One test for each case, over one kind of disk.
#[macro_export]
macro_rules! journal_conforms {
    ($name:ident, $disk:ty) => {
        mod $name {
            $crate::journal_conforms!(@cases $disk:
                begins_empty_in_epoch_one
                goes_on_where_it_ended_in_the_next_epoch
                gives_back_every_field_of_every_record
                reads_after_a_seq_and_by_kind_until_told_to_stop
                keeps_rows_with_their_records
                scans_a_prefix_in_both_directions
                readers_beside_the_writer_see_a_prefix
                a_sync_covers_what_was_written_before_it
            );
        }
    };
    (@cases $disk:ty: $($case:ident)*) => {
        $(#[test]
        fn $case() {
            $crate::journal::$case::<$disk>();
        })*
    };
}
