use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use eclosion_schemas::Code;

use super::*;

mod packed;

fn store() -> (tempfile::TempDir, FileStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    (directory, store)
}

fn put(store: &FileStore, bytes: &[u8]) -> Digest {
    let (stage, descriptor) = store.stage(bytes.len() as u64).unwrap();
    File::from(descriptor).write_all(bytes).unwrap();
    let (digest, length) = store.seal(stage).unwrap();
    assert_eq!(length, bytes.len() as u64);
    digest
}

fn path(directory: &Path, digest: &Digest) -> std::path::PathBuf {
    directory.join("objects").join(&digest.as_str()[..2]).join(&digest.as_str()[2..])
}

/// As a disk would.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[0] ^= 1;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_sealed_is_read_back_under_the_hash_of_its_bytes() {
    let (directory, store) = store();
    let digest = put(&store, b"a table");
    assert_eq!(digest.as_str(), blake3::hash(b"a table").to_hex().as_str());
    assert_eq!(read(&store, &digest).unwrap(), b"a table");
    let mode = std::fs::metadata(path(directory.path(), &digest)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o400);
    store.sync().unwrap();
    drop(store);
    assert_eq!(FileStore::open(directory.path()).unwrap().open(&digest).unwrap().1, 7);
}

#[test]
fn equal_bytes_are_one_object() {
    let (directory, store) = store();
    assert_eq!(put(&store, b"same"), put(&store, b"same"));
    let shards = std::fs::read_dir(directory.path().join("objects")).unwrap();
    let objects: usize = shards.map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap().count()).sum();
    assert_eq!(objects, 1);
    assert_eq!(std::fs::read_dir(directory.path().join("stage")).unwrap().count(), 0);
}

#[test]
fn an_empty_value_has_a_name_too() {
    let (_directory, store) = store();
    let digest = put(&store, b"");
    assert_eq!(store.open(&digest).unwrap().1, 0);
}

#[test]
fn a_damaged_object_goes_to_quarantine_and_is_missing_from_then_on() {
    let (directory, store) = store();
    let digest = put(&store, b"precious");
    damage(&path(directory.path(), &digest));
    let error = store.verify(&digest).unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::DataLoss, "artifact.hash_mismatch"));
    assert!(directory.path().join("quarantine").join(digest.as_str()).exists());
    assert_eq!(store.open(&digest).unwrap_err().reason, "artifact.missing");
    // Made again, it is there again.
    assert_eq!(put(&store, b"precious"), digest);
    assert_eq!(store.verify(&digest), Ok(8));
}

#[test]
fn bytes_are_compared_before_they_are_handed_out_for_the_first_time() {
    let (directory, first) = store();
    let digest = put(&first, b"precious");
    drop(first);
    damage(&path(directory.path(), &digest));
    let second = FileStore::open(directory.path()).unwrap();
    assert_eq!(second.open(&digest).unwrap_err().reason, "artifact.hash_mismatch");
}

#[test]
fn no_name_from_outside_reaches_a_path() {
    let (_directory, store) = store();
    for name in ["..", "ab", &"A".repeat(64), &"g".repeat(64), &format!("..{}", "a".repeat(62))] {
        let digest = Digest::new(name).unwrap();
        assert_eq!(store.open(&digest).unwrap_err().reason, "artifact.digest", "{name}");
        assert_eq!(store.verify(&digest).unwrap_err().code, Code::Invalid, "{name}");
    }
}

#[test]
fn a_link_in_an_objects_place_is_not_followed() {
    let (directory, store) = store();
    let digest = put(&store, b"mine");
    let object = path(directory.path(), &digest);
    std::fs::remove_file(&object).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &object).unwrap();
    assert!(store.open(&digest).is_err());
}

#[test]
fn an_unknown_token_seals_nothing() {
    let (_directory, store) = store();
    assert_eq!(store.seal(7).unwrap_err().reason, "artifact.stage");
    let (stage, _descriptor) = store.stage(1).unwrap();
    store.discard(stage);
    assert_eq!(store.seal(stage).unwrap_err().reason, "artifact.stage");
}

#[test]
fn a_full_disk_is_refused_before_anything_is_written() {
    let (directory, store) = store();
    let error = store.stage(1 << 60).unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::Exhausted, "artifact.disk"));
    assert_eq!(std::fs::read_dir(directory.path().join("stage")).unwrap().count(), 0);
}

#[test]
fn staged_files_are_bounded() {
    let (_directory, store) = store();
    let stages: Vec<_> = (0..STAGES_MAX).map(|_| store.stage(0).unwrap().0).collect();
    assert_eq!(store.stage(0).unwrap_err().reason, "artifact.stages");
    store.discard(stages[0]);
    assert!(store.stage(0).is_ok());
}

#[test]
fn a_survivor_seals_what_it_staged_under_the_last_kernel_and_the_rest_is_swept() {
    let (directory, first) = store();
    let staged: Vec<_> = (0..3).map(|_| first.stage(4).unwrap()).collect();
    drop(first);
    let second = FileStore::open(directory.path()).unwrap();
    let begin = second.next_stage();
    let (fresh, _descriptor) = second.stage(1).unwrap();
    assert!(staged.iter().all(|(stage, _)| *stage < fresh), "a token is never used twice");
    File::from(staged[1].1.try_clone().unwrap()).write_all(b"kept").unwrap();
    assert_eq!(second.sweep(begin, &[staged[1].0]), 2);
    assert_eq!(second.seal(staged[1].0).unwrap().0.as_str(), blake3::hash(b"kept").to_hex().as_str());
    assert!(second.seal(fresh).is_ok());
}

#[test]
fn many_threads_seal_and_sync_beside_each_other() {
    let (_directory, store) = store();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..100_u64 {
                    let digest = put(store, &(thread * 50 + n).to_be_bytes());
                    store.sync().unwrap();
                    store.verify(&digest).unwrap();
                }
            });
        }
    });
    assert!(lock(&store.unsynced).is_empty());
}
