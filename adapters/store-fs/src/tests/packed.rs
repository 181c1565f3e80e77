//! Objects that are kept compressed, on real files and with real damage.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use eclosion_schemas::events::Moved;
use eclosion_stale_manager::Stock;
use proptest::prelude::*;

use super::*;

const CHUNK: usize = 1 << 20;
/// The shortest content that is packed.
const SMALLEST: usize = 8 * 1024;

fn put_packed(store: &FileStore, bytes: &[u8]) -> Digest {
    let (stage, descriptor) = store.stage(bytes.len() as u64).unwrap();
    File::from(descriptor).write_all(bytes).unwrap();
    let (digest, length) = store.seal_as(stage, Storage::Packed).unwrap();
    assert_eq!(length, bytes.len() as u64);
    digest
}

/// Lines as a log has them.
fn text(bytes: usize) -> Vec<u8> {
    (0..).flat_map(|n: u64| format!("step {n} loss {}\n", n * 7919 % 1000).into_bytes()).take(bytes).collect()
}

/// As random as nothing that compresses is.
fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
    noise
}

#[test]
fn what_compresses_is_kept_smaller_under_the_same_name_and_read_back_whole_and_in_ranges() {
    let (directory, store) = store();
    let content = text(3 * CHUNK + 12_345);
    let digest = put_packed(&store, &content);
    assert_eq!(digest.as_str(), blake3::hash(&content).to_hex().as_str());
    let kept = std::fs::metadata(path(directory.path(), &digest)).unwrap();
    assert!(kept.len() < content.len() as u64 / 2, "{} bytes", kept.len());
    assert_eq!(kept.permissions().mode() & 0o777, 0o400);
    assert_eq!(std::fs::read_dir(directory.path().join("stage")).unwrap().count(), 0);
    store.sync().unwrap();
    drop(store);
    // Another life compares it first.
    let store = FileStore::open(directory.path()).unwrap();
    assert_eq!(store.open(&digest).unwrap().1, content.len() as u64);
    assert!(read(&store, &digest).unwrap() == content);
    for (offset, bytes) in [(0, 1), (CHUNK - 1, 2), (CHUNK, CHUNK), (3 * CHUNK + 12_344, 99), (5, 2 * CHUNK)]
    {
        let found = store.read(&digest, offset as u64, bytes as u32).unwrap();
        assert!(found == content[offset..(offset + bytes).min(content.len())], "{offset} {bytes}");
    }
    assert!(store.read(&digest, content.len() as u64, 9).unwrap().is_empty());
    assert!(store.read(&digest, u64::MAX, 9).unwrap().is_empty());
    assert_eq!(store.verify(&digest), Ok(content.len() as u64));
}

#[test]
fn what_does_not_compress_or_is_mapped_or_small_stays_as_it_is() {
    let (directory, store) = store();
    let stays =
        |digest: &Digest, content: &[u8]| std::fs::read(path(directory.path(), digest)).unwrap() == content;
    for content in [noise(2 * CHUNK), text(1_000), Vec::new()] {
        assert!(stays(&put_packed(&store, &content), &content), "{}", content.len());
    }
    let mapped = text(CHUNK);
    assert!(stays(&put(&store, &mapped), &mapped));
    // The same content again, the other way: one object, whichever way it is kept.
    assert_eq!(put_packed(&store, &mapped), put(&store, &mapped));
    assert!(read(&store, &put_packed(&store, &mapped)).unwrap() == mapped);
}

#[test]
fn whoever_opens_it_gets_a_file_of_his_own_that_can_be_mapped_and_harms_nobody() {
    let (_directory, store) = store();
    let content = text(CHUNK + 1);
    let digest = put_packed(&store, &content);
    let (mine, bytes) = store.open(&digest).unwrap();
    let mine = File::from(mine);
    assert_eq!(mine.metadata().unwrap().len(), bytes);
    mine.write_all_at(b"scribble", 0).unwrap();
    assert!(read(&store, &digest).unwrap() == content);
}

#[test]
fn content_that_looks_packed_is_packed_so_that_nobody_unpacks_what_was_not() {
    let (directory, store) = store();
    let inner = put_packed(&store, &text(CHUNK));
    let looks = std::fs::read(path(directory.path(), &inner)).unwrap();
    for content in [looks.clone(), looks[..16].to_vec(), looks[..40].to_vec()] {
        for digest in [put(&store, &content), put_packed(&store, &content)] {
            assert_eq!(digest.as_str(), blake3::hash(&content).to_hex().as_str());
            assert!(read(&store, &digest).unwrap() == content);
            assert_eq!(store.verify(&digest), Ok(content.len() as u64));
        }
    }
}

/// As a disk would: the object is another file now, with these bytes.
fn replace(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

fn flipped(bytes: &[u8], place: usize, bit: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[place] ^= 1 << bit;
    bytes
}

fn lost(error: &Error) -> bool {
    (error.code, error.reason.as_str()) == (Code::DataLoss, "artifact.hash_mismatch")
}

#[test]
fn verification_finds_any_flipped_bit_of_a_packed_object_and_nobody_gets_it_afterwards() {
    let (directory, store) = store();
    let digest = put_packed(&store, &[b'a'; SMALLEST]);
    let path = path(directory.path(), &digest);
    let whole = std::fs::read(&path).unwrap();
    for place in 0..whole.len() {
        for bit in 0..8 {
            replace(&path, &flipped(&whole, place, bit));
            let error = store.verify(&digest).expect_err(&format!("byte {place} bit {bit}"));
            assert!(lost(&error), "byte {place} bit {bit}: {error:?}");
            assert_eq!(store.open(&digest).unwrap_err().reason, "artifact.missing");
            assert!(directory.path().join("quarantine").join(digest.as_str()).exists());
        }
    }
    replace(&path, &whole);
    assert_eq!(store.verify(&digest), Ok(SMALLEST as u64));
}

#[test]
fn a_bit_that_changes_no_raw_byte_is_found_too() {
    let content = text(SMALLEST);
    let (directory, store) = store();
    let digest = put_packed(&store, &content);
    let path = path(directory.path(), &digest);
    let whole = std::fs::read(&path).unwrap();
    // Behind the magic of the first frame is its descriptor; nobody reads its bit 4.
    let bytes = flipped(&whole, 32 + 4, 4);
    let frame = zstd::zstd_safe::find_frame_compressed_size(&bytes[32..]).unwrap();
    assert!(zstd::bulk::decompress(&bytes[32..32 + frame], content.len()).unwrap() == content);
    replace(&path, &bytes);
    assert!(lost(&store.verify(&digest).unwrap_err()));
}

#[test]
fn what_was_damaged_between_two_lives_is_handed_out_neither_whole_nor_in_part() {
    let content = text(2 * CHUNK + 77);
    let (directory, first) = store();
    let digest = put_packed(&first, &content);
    drop(first);
    let path = path(directory.path(), &digest);
    let whole = std::fs::read(&path).unwrap();
    let places = [0, 16, 24, 28, 32, 36, whole.len() - 65, whole.len() - 40, whole.len() - 1];
    for place in places.into_iter().chain((0..whole.len()).step_by(whole.len() / 16)) {
        for read_first in [true, false] {
            replace(&path, &flipped(&whole, place, 4));
            let store = FileStore::open(directory.path()).unwrap();
            let error = match read_first {
                true => store.read(&digest, 0, 10).unwrap_err(),
                false => store.open(&digest).unwrap_err(),
            };
            assert!(lost(&error), "{place}: {error:?}");
            assert_eq!(store.open(&digest).unwrap_err().reason, "artifact.missing");
        }
    }
}

#[test]
fn a_frame_that_is_damaged_after_it_was_compared_is_found_by_whoever_reads_it() {
    let (directory, store) = store();
    let content = text(3 * CHUNK);
    let digest = put_packed(&store, &content);
    let path = path(directory.path(), &digest);
    let whole = std::fs::read(&path).unwrap();
    replace(&path, &flipped(&whole, whole.len() / 2, 0));
    assert!(store.read(&digest, 0, 9).unwrap() == content[..9]);
    assert!(lost(&store.read(&digest, CHUNK as u64, CHUNK as u32).unwrap_err()));
    assert!(directory.path().join("quarantine").join(digest.as_str()).exists());
}

#[test]
fn retention_counts_what_a_packed_object_takes_and_brings_it_back_whole() {
    let (directory, store) = store();
    let content = text(CHUNK);
    let digest = put_packed(&store, &content);
    store.sync().unwrap();
    let kept = std::fs::metadata(path(directory.path(), &digest)).unwrap();
    let store = Arc::new(store);
    let stock = ObjectStock::new(Arc::clone(&store));
    let found = stock.survey().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].bytes, kept.blocks() * 512);
    assert!(found[0].bytes < content.len() as u64 / 2);
    let item = found[0].item.id.clone();
    assert_eq!(stock.trash(&item, &found[0].token, "1.1"), Moved::Trashed);
    assert_eq!(store.read(&digest, 0, 1).unwrap_err().reason, "artifact.missing");
    stock.restore(&item, "1.1").unwrap();
    assert!(read(store.as_ref(), &digest).unwrap() == content);
    assert_eq!(store.verify(&digest), Ok(content.len() as u64));
    let again = stock.survey().unwrap();
    assert_eq!(stock.trash(&item, &again[0].token, "1.2"), Moved::Trashed);
    assert_eq!(stock.purge("1.2"), Ok(found[0].bytes));
}

#[test]
fn a_torn_packed_object_is_found() {
    let content = text(2 * CHUNK);
    let (directory, first) = store();
    let digest = put_packed(&first, &content);
    drop(first);
    let path = path(directory.path(), &digest);
    let whole = std::fs::read(&path).unwrap();
    for kept in [17, 31, 32, 40, whole.len() / 2, whole.len() - 8, whole.len() - 1] {
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, &whole[..kept]).unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        assert_eq!(store.verify(&digest).unwrap_err().code, Code::DataLoss, "{kept}");
    }
}

#[test]
fn what_a_crash_left_half_packed_is_swept_and_the_staged_file_is_still_there() {
    let (directory, first) = store();
    let content = text(CHUNK);
    let (stage, descriptor) = first.stage(content.len() as u64).unwrap();
    File::from(descriptor).write_all(&content).unwrap();
    drop(first);
    std::fs::write(directory.path().join(format!("stage/{stage}{PACKED_SUFFIX}")), b"half").unwrap();
    let second = FileStore::open(directory.path()).unwrap();
    assert_eq!(std::fs::read_dir(directory.path().join("stage")).unwrap().count(), 1);
    let (digest, _) = second.seal_as(stage, Storage::Packed).unwrap();
    assert!(read(&second, &digest).unwrap() == content);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_range_of_any_content_is_what_was_put(
        seed in any::<u8>(),
        bytes in 0_usize..(2 * CHUNK + 999),
        run in 1_usize..4_000,
        reads in prop::collection::vec((0_usize..3 * CHUNK, 0_usize..CHUNK), 1..8),
    ) {
        let (_directory, store) = store();
        let content: Vec<u8> = (0..bytes).map(|at| (at / run) as u8 ^ seed).collect();
        let digest = put_packed(&store, &content);
        for (offset, bytes) in reads {
            let begin = offset.min(content.len());
            let end = (begin + bytes).min(content.len());
            prop_assert!(store.read(&digest, offset as u64, bytes as u32).unwrap() == content[begin..end]);
        }
        prop_assert!(read(&store, &digest).unwrap() == content);
    }
}

/// Figures, by hand: `cargo test --release -p eclosion-store-fs packed -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn figures_of_put_and_get_with_and_without() {
    let (directory, store) = store();
    let bytes = 64 * CHUNK;
    for (name, content) in [("text", text(bytes)), ("noise", noise(bytes))] {
        for storage in [Storage::Mapped, Storage::Packed] {
            let (stage, descriptor) = store.stage(content.len() as u64).unwrap();
            File::from(descriptor).write_all(&content).unwrap();
            let sealing = std::time::Instant::now();
            let (digest, _) = store.seal_as(stage, storage).unwrap();
            let sealed = sealing.elapsed();
            let opening = std::time::Instant::now();
            assert!(read(&store, &digest).unwrap().len() == bytes);
            let opened = opening.elapsed();
            let kept = std::fs::metadata(path(directory.path(), &digest)).unwrap().len();
            let rate = |took: std::time::Duration| bytes as f64 / (1 << 20) as f64 / took.as_secs_f64();
            println!(
                "{name} {storage:?}: seal {:.0} MiB/s, open and read {:.0} MiB/s, {:.1} % kept",
                rate(sealed),
                rate(opened),
                kept as f64 * 100.0 / bytes as f64
            );
        }
    }
}
