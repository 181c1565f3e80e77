//! What a disk can do to a SQLite journal, and what a kernel may be told then: a prefix that holds everything that
//! was synced, or a refusal. Never something else.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use eclosion_conformance::journal::{assert_same, read_all, record, records};
use eclosion_journal_sqlite::{Options, SqliteJournal};
use eclosion_kernel::journal::{JournalStore, Opened, Record, RowChange};
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::{Epoch, Seq};
use eclosion_test_disk::LoopDisk;

fn open(directory: &Path) -> Result<(SqliteJournal, Opened), Error> {
    SqliteJournal::open(directory, &Options::default())
}

/// A journal of `synced` synced records, one a batch, and `more` that are only written.
fn filled(directory: &Path, synced: u64, more: u64) {
    let (mut store, opened) = open(directory).unwrap();
    let mut syncer = store.syncer().unwrap();
    for seq in 1..=synced + more {
        store.append(&records(seq..=seq, opened.epoch), &[]).unwrap();
        if seq == synced {
            syncer.sync(Seq(seq)).unwrap();
        }
    }
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn cut(path: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

fn refused(directory: &Path, reason: &str) -> Error {
    let error = open(directory).expect_err("it must not be opened");
    assert_eq!((error.code, error.reason.as_str()), (Code::DataLoss, reason), "{error}");
    let help = error.help.clone().unwrap();
    assert!(help.contains("--accept-loss") && help.contains("damaged-"), "{help}");
    error
}

/// Up to where the WAL is in use: frames that carry its header's salts. What follows was reserved.
fn used_bytes(wal: &Path) -> u64 {
    let bytes = fs::read(wal).unwrap();
    let frames =
        bytes[32..].chunks(4120).take_while(|frame| frame.len() == 4120 && frame[8..16] == bytes[16..24]);
    32 + frames.count() as u64 * 4120
}

fn copy_of(directory: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["journal.db", "journal.db-wal", "journal.mark"] {
        fs::copy(directory.join(name), copy.path().join(name)).unwrap();
    }
    copy
}

#[test]
fn a_second_kernel_is_refused_and_told_who_holds_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::Conflict, "journal.locked"));
    assert!(error.message.contains(&std::process::id().to_string()), "{error}");
    // A reader alone keeps it locked: it could still be read from.
    let reader = first.0.reader();
    drop(first);
    assert!(open(directory.path()).is_err());
    drop(reader);
    assert!(open(directory.path()).is_ok());
}

#[test]
fn a_flipped_bit_in_a_synced_part_of_the_wal_is_refused_wherever_it_is() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 40, 0);
    let bytes = used_bytes(&directory.path().join("journal.db-wal"));
    // In every frame: once in its header, once in its page. SQLite stops at such a frame and tells nobody.
    let frames = (bytes - 32) / 4120;
    let mut refusals = 0;
    for offset in (0..frames).flat_map(|frame| [32 + frame * 4120 + 9, 32 + frame * 4120 + 24 + 4090]) {
        let copy = copy_of(directory.path());
        flip(&copy.path().join("journal.db-wal"), offset);
        match open(copy.path()) {
            Err(error) => {
                assert_eq!(error.code, Code::DataLoss, "offset {offset}: {error}");
                refusals += 1;
            }
            // What is lost then was never synced: the epoch of this life, or nothing.
            Ok((store, opened)) => {
                assert_eq!(opened.last, Seq(40), "offset {offset}");
                assert_eq!(read_all(&*store.reader(), 0, &[]).len(), 40);
            }
        }
    }
    assert!(refusals >= frames, "{refusals} of {frames} frames");
    flip(&directory.path().join("journal.db-wal"), 32 + 20 * 4120 + 100);
    let error = refused(directory.path(), "journal.truncated");
    assert!(error.message.contains("but 40 was synced"), "{error}");
    let place = format!("journal.db-wal is damaged at byte {}", 32 + 20 * 4120);
    assert!(error.message.contains(&place), "{error}");
}

/// Everything in the database file, nothing in the WAL.
fn checkpointed(directory: &Path, last: u64) {
    filled(directory, last, 0);
    let (mut store, _) = open(directory).unwrap();
    store.relieve().unwrap();
    drop(store);
    cut(&directory.join("journal.db-wal"), 0);
}

#[test]
fn a_flipped_bit_in_the_database_is_refused_or_harmless() {
    let directory = tempfile::tempdir().unwrap();
    checkpointed(directory.path(), 400);
    let expected = records(1..=400, Epoch(1));
    let bytes = fs::metadata(directory.path().join("journal.db")).unwrap().len();
    let mut refusals = 0;
    for offset in (0..bytes).step_by(211) {
        let copy = copy_of(directory.path());
        flip(&copy.path().join("journal.db"), offset);
        match open(copy.path()) {
            Ok((store, opened)) => {
                assert_eq!(opened.last, Seq(400), "offset {offset}");
                assert_same(&read_all(&*store.reader(), 0, &[]), &expected);
            }
            Err(error) => {
                assert!(
                    matches!(error.code, Code::DataLoss | Code::Precondition),
                    "offset {offset}: {error}"
                );
                refusals += 1;
            }
        }
    }
    assert!(refusals > 100, "{refusals}");
}

#[test]
fn a_wal_that_ends_below_the_mark_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 30, 0);
    let wal = directory.path().join("journal.db-wal");
    cut(&wal, used_bytes(&wal) / 2);
    let error = refused(directory.path(), "journal.truncated");
    assert!(error.help.unwrap().contains("synced record(s)"));
    fs::remove_file(&wal).unwrap();
    refused(directory.path(), "journal.truncated");
    // A refusal changes nothing, and so the next one says the same.
    refused(directory.path(), "journal.truncated");
}

#[test]
fn an_emptied_or_missing_database_is_refused_before_sqlite_makes_a_new_one() {
    for empty in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path(), 30, 0);
        let path = directory.path().join("journal.db");
        if empty {
            cut(&path, 0)
        } else {
            fs::remove_file(&path).unwrap()
        }
        refused(directory.path(), "journal.truncated");
        assert!(directory.path().join("journal.db-wal").exists());
    }
}

#[test]
fn a_missing_mark_is_refused_as_nobody_knows_what_was_promised() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 3, 0);
    fs::remove_file(directory.path().join("journal.mark")).unwrap();
    refused(directory.path(), "journal.corrupt");
}

#[test]
fn a_tail_torn_at_any_byte_above_the_mark_leaves_a_prefix() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 10, 5);
    let wal = used_bytes(&directory.path().join("journal.db-wal"));
    let mut lengths = std::collections::BTreeSet::new();
    for less in (0..wal).step_by(1_031) {
        let copy = copy_of(directory.path());
        // Torn in the reserved part, or at the end of the file.
        cut(&copy.path().join("journal.db-wal"), wal - less);
        if less % 2 == 0 {
            cut(&copy.path().join("journal.db-wal"), wal + 4120);
        }
        let Ok((store, opened)) = open(copy.path()) else { break };
        assert!((10..=15).contains(&opened.last.0), "{less} bytes less: {}", opened.last);
        assert_same(&read_all(&*store.reader(), 0, &[]), &records(1..=opened.last.0, Epoch(1)));
        lengths.insert(opened.last.0);
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [10, 11, 12, 13, 14, 15]);
}

#[test]
fn a_swapped_history_is_not_taken_for_the_one_that_was_synced() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    filled(one.path(), 5, 0);
    let (mut store, opened) = open(other.path()).unwrap();
    // The same length, another history: its first record came two lives later.
    let foreign: Vec<_> = (1..=5).map(|seq| record(seq, Epoch(opened.epoch.0 + 2))).collect();
    store.append(&foreign, &[]).unwrap();
    drop(store);
    for name in ["journal.db", "journal.db-wal"] {
        fs::copy(other.path().join(name), one.path().join(name)).unwrap();
    }
    let error = refused(one.path(), "journal.corrupt");
    assert!(error.message.contains("is not the one that was synced"), "{error}");
}

fn count(record: &Record, rows: &mut Vec<RowChange>) {
    let key = record.seq.0.to_be_bytes().to_vec();
    rows.push(RowChange { table: "seen", key, value: Some(record.body.to_vec()) });
}

#[test]
fn an_accepted_loss_goes_on_from_the_last_whole_record_and_derives_its_rows_again() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 30, 0);
    let wal = directory.path().join("journal.db-wal");
    flip(&wal, 32 + 12 * 4120 + 100);
    let message = refused(directory.path(), "journal.truncated").message;
    let options = Options { accept_loss: true, projections: vec![count] };
    let (mut store, opened) = SqliteJournal::open(directory.path(), &options).unwrap();
    assert!(message.contains(&format!("ends with record {}", opened.last)), "{message}");
    assert!(opened.last > Seq(5) && opened.last < Seq(30) && opened.epoch > Epoch(1));
    let kept = records(1..=opened.last.0, Epoch(1));
    assert_same(&read_all(&*store.reader(), 0, &[]), &kept);
    assert_eq!(store.reader().scan("seen", b"", false, 99).unwrap().len(), kept.len());
    let next = opened.last.next().0;
    store.append(&records(next..=next, opened.epoch), &[]).unwrap();
    drop(store);
    let again = open(directory.path()).unwrap().1;
    assert_eq!(again, Opened { epoch: Epoch(opened.epoch.0 + 1), last: Seq(next) });
    let kept = directory.path().join(format!("damaged-{}", kept.len()));
    assert!(kept.join("journal.db-wal").exists());
}

#[test]
fn a_batch_out_of_order_is_refused_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, opened) = open(directory.path()).unwrap();
    assert_eq!(store.append(&records(2..=2, opened.epoch), &[]).unwrap_err().reason, "journal.order");
    assert_eq!(store.append(&records(1..=1, opened.epoch), &[]).unwrap_err().reason, "journal.poisoned");
    assert_eq!(store.syncer().unwrap_err().reason, "journal.poisoned");
}

#[test]
fn the_wal_begins_anew_when_the_writer_pauses_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, opened) = open(directory.path()).unwrap();
    let wal = directory.path().join("journal.db-wal");
    let mut largest = 0;
    for round in 0..10_u64 {
        for seq in round * 200 + 1..=round * 200 + 200 {
            store.append(&records(seq..=seq, opened.epoch), &[]).unwrap();
        }
        assert!(store.backlog_bytes() > 200 * 4096);
        store.relieve().unwrap();
        let bytes = fs::metadata(&wal).unwrap().len();
        assert!(round == 0 || bytes <= largest * 3 / 2, "{bytes} bytes after {largest}");
        largest = largest.max(bytes);
    }
    assert_eq!((store.pauses().pauses, store.pauses().busy), (10, 0));
    drop(store);
    assert_eq!(open(directory.path()).unwrap().1.last, Seq(2000));
}

/// Not a test by itself: the process that [`what_was_reported_written_survives_a_kill`] kills.
#[test]
#[ignore = "the child of another test"]
fn writes_until_it_is_killed() {
    let Some(directory) = std::env::var_os("ECLOSION_TEST_JOURNAL") else { return };
    let (mut store, opened) = open(Path::new(&directory)).unwrap();
    let mut out = std::io::stdout();
    for seq in opened.last.0 + 1.. {
        store.append(&records(seq..=seq, opened.epoch), &[]).unwrap();
        writeln!(out, "written {seq}").unwrap();
    }
}

#[test]
fn what_was_reported_written_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let mut reported = 0;
    for lines in [1, 50, 400] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writes_until_it_is_killed", "--ignored", "--nocapture"])
            .env("ECLOSION_TEST_JOURNAL", directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let seq = |line: &str| line.split("written ").nth(1).and_then(|seq| seq.parse::<u64>().ok());
        for _ in 0..lines {
            reported = output.by_ref().map_while(Result::ok).find_map(|line| seq(&line)).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What stood in the pipe was reported as well.
        reported = output.map_while(Result::ok).filter_map(|line| seq(&line)).last().unwrap_or(reported);
        let (store, opened) = open(directory.path()).unwrap();
        assert!(opened.last.0 >= reported, "{reported} was reported, {} is there", opened.last);
        assert_eq!(read_all(&*store.reader(), 0, &[]).len() as u64, opened.last.0);
    }
}

/// `None` where this cannot be done; says why, in a line that a runner can count.
fn loop_disk(purpose: &str) -> Option<LoopDisk> {
    let made = LoopDisk::new();
    if let Err(why) = &made {
        #[expect(clippy::print_stdout, reason = "a skipped test must be seen")]
        {
            println!("SKIPPED {purpose}: {why}");
        }
    }
    made.ok()
}

#[test]
fn a_power_cut_loses_nothing_that_was_reported_synced_and_fails_every_sync_after_it() {
    for round in 0..5_u64 {
        let Some(mut disk) = loop_disk("power cut") else { return };
        let state = disk.path().join("state");
        let (mut store, opened) = open(&state).unwrap();
        let mut syncer = store.syncer().unwrap();
        let (written, synced) = (AtomicU64::new(0), AtomicU64::new(0));
        let cutting = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Appends go on into the page cache for a while after the cut, as they do in a real one.
                for seq in 1.. {
                    if store.append(&records(seq..=seq, opened.epoch), &[]).is_err()
                        || cutting.load(Ordering::SeqCst)
                    {
                        return;
                    }
                    written.store(seq, Ordering::SeqCst);
                }
            });
            scope.spawn(|| {
                loop {
                    let through = written.load(Ordering::SeqCst);
                    if syncer.sync(Seq(through)).is_err() {
                        break;
                    }
                    // A report that came while the power was being cut proves nothing.
                    if !cutting.load(Ordering::SeqCst) {
                        synced.store(through, Ordering::SeqCst);
                    }
                }
                assert_eq!(syncer.sync(Seq(1)).unwrap_err().reason, "journal.poisoned");
            });
            while synced.load(Ordering::SeqCst) < 40 + round * 60 {
                std::thread::yield_now();
            }
            cutting.store(true, Ordering::SeqCst);
            disk.cut_power().unwrap();
        });
        drop((store, syncer));
        disk.power_on().unwrap();
        let (store, opened) = open(&state).unwrap();
        let reported = synced.load(Ordering::SeqCst);
        assert!(opened.last.0 >= reported, "{reported} was reported, {} is there", opened.last);
        assert_same(&read_all(&*store.reader(), 0, &[]), &records(1..=opened.last.0, Epoch(1)));
    }
}

#[test]
fn a_power_cut_drops_what_was_only_written() {
    let Some(mut disk) = loop_disk("power cut without a sync") else { return };
    let state = disk.path().join("state");
    let (mut store, opened) = open(&state).unwrap();
    for seq in 1..=50 {
        store.append(&records(seq..=seq, opened.epoch), &[]).unwrap();
    }
    disk.cut_power().unwrap();
    drop(store);
    disk.power_on().unwrap();
    // If they were there, the test above could not fail.
    assert!(open(&state).unwrap().1.last < Seq(50));
}
