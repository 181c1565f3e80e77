use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use eclosion_kernel::core::Row;
use eclosion_kernel::journal::{JournalStore, Reader, Record, RowChange, Stored};
use eclosion_schemas::{Epoch, Seq, Timestamp};

use super::{RECORDS_MAX, ROWS_MAX};
use crate::database::{open_reader, rows_seq};
use crate::{Options, SqliteJournal};

fn record(seq: u64) -> Arc<Record> {
    let (kind, body) = ("test.happened".into(), vec![7; 20].into());
    let stored =
        Stored { seq: Seq(seq), epoch: Epoch(1), at: Timestamp(seq), kind, version: 1, cause: None, body };
    Arc::new(stored.into())
}

/// Few keys, so that they are put, put again and removed, in the table and before it.
fn scatter(record: &Record, rows: &mut Vec<RowChange>) {
    let seq = record.seq.0;
    let key = |seq: u64| format!("{:02}", seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58).into_bytes();
    rows.push(RowChange { table: "t", key: key(seq), value: Some(seq.to_be_bytes().to_vec()) });
    rows.push(RowChange { table: "t", key: key(seq * 3), value: None });
    rows.push(RowChange { table: "u", key: key(seq), value: Some(Vec::new()) });
}

fn open(directory: &Path, projections: Vec<super::Projection>) -> SqliteJournal {
    SqliteJournal::open(directory, &Options { projections, ..Options::default() }).unwrap().0
}

fn append(store: &mut SqliteJournal, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        let (record, mut rows) = (record(seq), Vec::new());
        scatter(&record, &mut rows);
        store.append(&[record], &rows).unwrap();
    }
}

/// What `t` holds after so many records.
fn expected(last: u64) -> Vec<Row> {
    let (mut all, mut rows) = (BTreeMap::new(), Vec::new());
    (1..=last).for_each(|seq| scatter(&record(seq), &mut rows));
    for RowChange { key, value, .. } in rows.into_iter().filter(|row| row.table == "t") {
        match value {
            Some(value) => drop(all.insert(key, value)),
            None => drop(all.remove(&key)),
        }
    }
    all.into_iter().collect()
}

fn carried(directory: &Path) -> Option<Seq> {
    rows_seq(&open_reader(&directory.join("journal.db")).unwrap()).unwrap()
}

#[test]
fn gathered_rows_and_those_of_the_table_are_read_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path(), vec![scatter]);
    let reader = store.reader();
    for last in 1..=ROWS_MAX as u64 {
        append(&mut store, last..=last);
        let expected = expected(last);
        assert_eq!(reader.scan("t", b"", false, 99).unwrap(), expected, "after {last}");
        for limit in [0, 1, 5] {
            let newest: Vec<Row> = expected.iter().rev().take(limit).cloned().collect();
            assert_eq!(reader.scan("t", b"", true, limit as u32).unwrap(), newest, "after {last}");
        }
        let below: Vec<Row> = expected.iter().filter(|(key, _)| key[0] == b'2').cloned().collect();
        assert_eq!(reader.scan("t", b"2", false, 99).unwrap(), below, "after {last}");
        for n in 0..64 {
            let key = format!("{n:02}").into_bytes();
            let value = expected.iter().find(|row| row.0 == key).map(|row| row.1.clone());
            assert_eq!(reader.get("t", &key).unwrap(), value, "after {last}");
        }
    }
    let carried = carried(directory.path()).unwrap();
    assert!(carried > Seq(0) && carried < Seq(ROWS_MAX as u64), "{carried}");
}

#[test]
fn rows_that_were_gathered_at_a_death_are_derived_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut last = 0;
    // A dropped journal leaves what a killed one does: nothing is carried over at the end.
    for more in [5, 1, ROWS_MAX as u64 + 10, 40] {
        let mut store = open(directory.path(), vec![scatter]);
        assert_eq!(carried(directory.path()), Some(Seq(last)));
        assert_eq!(store.reader().scan("t", b"", false, 99).unwrap(), expected(last));
        append(&mut store, last + 1..=last + more);
        last += more;
        drop(store);
        assert!(carried(directory.path()) < Some(Seq(last)));
    }
    let reader = open(directory.path(), vec![scatter]).reader();
    assert_eq!(reader.scan("t", b"", false, 99).unwrap(), expected(last));
}

#[test]
fn without_projections_every_row_stands_in_its_table() {
    let directory = tempfile::tempdir().unwrap();
    append(&mut open(directory.path(), Vec::new()), 1..=9);
    assert_eq!(carried(directory.path()), None);
    let mut store = open(directory.path(), vec![scatter]);
    assert_eq!(carried(directory.path()), Some(Seq(9)));
    assert_eq!(store.reader().scan("t", b"", false, 99).unwrap(), expected(9));
    append(&mut store, 10..=12);
    drop(store);
    // They wait for somebody who can derive them.
    append(&mut open(directory.path(), Vec::new()), 13..=14);
    assert_eq!(carried(directory.path()), Some(Seq(9)));
    let reader = open(directory.path(), vec![scatter]).reader();
    assert_eq!(reader.scan("t", b"", false, 99).unwrap(), expected(14));
    drop(reader);
    drop(open(directory.path(), Vec::new()));
    assert_eq!(carried(directory.path()), None);
}

#[test]
fn a_journal_of_the_format_before_is_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    append(&mut open(directory.path(), Vec::new()), 1..=20);
    let format = |set: Option<i64>| {
        let connection = rusqlite::Connection::open(directory.path().join("journal.db")).unwrap();
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        if let Some(format) = set {
            connection.pragma_update(None, "user_version", format).unwrap();
        }
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap()
    };
    format(Some(1));
    let reader = open(directory.path(), vec![scatter]).reader();
    assert_eq!(reader.scan("t", b"", false, 99).unwrap(), expected(20));
    drop(reader);
    assert_eq!((format(None), carried(directory.path())), (2, Some(Seq(20))));
}

#[test]
fn records_without_rows_do_not_pile_up_behind_the_table() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path(), vec![|_, _| {}]);
    let records: Vec<_> = (1..=RECORDS_MAX as u64 + 1).map(record).collect();
    let (most, one) = records.split_at(RECORDS_MAX);
    store.append(most, &[]).unwrap();
    store.append(one, &[]).unwrap();
    drop(store);
    assert_eq!(carried(directory.path()), Some(Seq(RECORDS_MAX as u64)));
}

#[test]
fn a_scan_never_sees_half_of_a_batch_while_rows_are_carried_over() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path(), vec![scatter]);
    let (reader, done) = (store.reader(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for newest_first in [false, true] {
            let (reader, done) = (&reader, &done);
            scope.spawn(move || twins(&**reader, newest_first, done));
        }
        for seq in 1..=ROWS_MAX as u64 * 4 {
            let rows = ["a", "b"].map(|key| RowChange {
                table: "twins",
                key: key.into(),
                value: Some(seq.to_be_bytes().to_vec()),
            });
            store.append(&[record(seq)], &rows).unwrap();
        }
        done.store(true, Ordering::SeqCst);
    });
}

fn twins(reader: &dyn Reader, newest_first: bool, done: &AtomicBool) {
    let mut last = Vec::new();
    while !done.load(Ordering::SeqCst) {
        let found = reader.scan("twins", b"", newest_first, 9).unwrap();
        let [(_, a), (_, b)] = &found[..] else {
            assert!(last.is_empty() && found.is_empty());
            continue;
        };
        assert_eq!(a, b);
        assert!(*a >= last, "what was written cannot disappear");
        last.clone_from(a);
    }
}
