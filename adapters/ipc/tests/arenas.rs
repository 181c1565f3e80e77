//! One suite for every way that a value crosses: {inherited, listening} sockets × {inline, sealed, named} memory.
//!
//! The producer and the reader are two ends of a real connection, and the reader has nothing but what came through it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use eclosion_ipc::Connection;
use eclosion_ipc::arena::{
    Arena, FOLDER, Lease, Named, NamedReader, Reader, Sealed, SealedReader, Written, claim, is_ours,
};
use eclosion_schemas::frame::{Frame, Limits, StreamId};
use eclosion_schemas::{Epoch, Error, Part};

const ARENA_BYTES: u64 = 1 << 20;
const EPOCH: Epoch = Epoch(7);

/// A pair of connected sockets, by either way to come to them.
fn inherited() -> (OwnedFd, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours.into(), theirs.into())
}

fn listening() -> (OwnedFd, OwnedFd) {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("a.sock")).unwrap();
    let theirs = UnixStream::connect(directory.path().join("a.sock")).unwrap();
    (listener.accept().unwrap().0.into(), theirs.into())
}

/// A way for values: what of it the producer has, and what the reader makes of what it received.
trait Way {
    type Store: Written;
    const NAME: &'static str;

    fn make(tag: &str) -> Self::Store;
    /// What introduces the memory to the other end.
    fn introduce(store: &Self::Store) -> (Option<String>, Vec<OwnedFd>);
    fn reader(name: Option<&str>, descriptors: Vec<OwnedFd>) -> Result<Box<dyn Reader>, Error>;
}

struct BySealed;
struct ByNamed;

impl Way for BySealed {
    type Store = Sealed;
    const NAME: &'static str = "sealed";

    fn make(_: &str) -> Sealed {
        Sealed::new(ARENA_BYTES).unwrap()
    }

    fn introduce(store: &Sealed) -> (Option<String>, Vec<OwnedFd>) {
        (None, vec![store.descriptor().unwrap()])
    }

    fn reader(_: Option<&str>, descriptors: Vec<OwnedFd>) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(SealedReader::new(&descriptors[0])?))
    }
}

impl Way for ByNamed {
    type Store = Named;
    const NAME: &'static str = "named";

    fn make(tag: &str) -> Named {
        Named::new(tag, EPOCH, ARENA_BYTES).unwrap()
    }

    fn introduce(store: &Named) -> (Option<String>, Vec<OwnedFd>) {
        (Some(store.name().to_owned()), Vec::new())
    }

    fn reader(name: Option<&str>, _: Vec<OwnedFd>) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(NamedReader::new(name.unwrap())?))
    }
}

/// No two tests, and no two runs of them, share a name.
fn tag(n: u8) -> String {
    format!("{:x}{n}", std::process::id() % 0xfff_ffff)
}

async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.unwrap()
}

async fn cross(
    from: &mut Connection,
    to: &mut Connection,
    frame: Frame,
    with: Vec<OwnedFd>,
) -> (Frame, Vec<OwnedFd>) {
    from.send(frame, with);
    let flushed = std::future::poll_fn(|task| from.poll_flush(task));
    let (flushed, received) = watched(async { tokio::join!(flushed, to.receive()) }).await;
    flushed.unwrap();
    let received = received.unwrap();
    (received.frame, received.descriptors)
}

fn connected(sockets: fn() -> (OwnedFd, OwnedFd)) -> (Connection, Connection) {
    let (ours, theirs) = sockets();
    (Connection::new(ours, Limits::DEFAULT).unwrap(), Connection::new(theirs, Limits::DEFAULT).unwrap())
}

fn value(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

/// A part as it travels: by segment if there is room, else with its bytes.
fn part<B: Written>(arena: &Arena<B>, value: &[u8]) -> (Part, Option<Lease>) {
    let lease = arena.put(&[value]);
    let segment = lease.as_ref().map(Lease::segment);
    let data = lease.is_none().then(|| value.to_vec().into());
    (Part { data, segment, bytes: value.len() as u64, codec: "bytes".into(), ..Part::default() }, lease)
}

fn bytes_of(part: &Part, reader: &dyn Reader) -> Vec<u8> {
    match (&part.data, &part.segment) {
        (Some(data), None) => data.to_vec(),
        (None, Some(segment)) => reader.copy(segment.offset, segment.length).unwrap(),
        other => panic!("one of both: {other:?}"),
    }
}

/// The suite.
async fn holds<W: Way>(sockets: fn() -> (OwnedFd, OwnedFd), tag: &str) {
    let way = W::NAME;
    let (mut producer, mut consumer) = connected(sockets);
    let arena = Arena::new(3, W::make(tag));
    let (name, descriptors) = W::introduce(arena.backing());
    let (frame, descriptors) =
        cross(&mut producer, &mut consumer, Frame::data(StreamId(2), &name).unwrap(), descriptors).await;
    let name: Option<String> = frame.decode().unwrap();
    let reader = W::reader(name.as_deref(), descriptors).unwrap();

    // Values small and large, whole and empty, arrive as they were; what fits is not in the frame.
    for length in [0, 1, 64 * 1024, 700_000] {
        let (sent, lease) = part(&arena, &value(length));
        let (frame, _) =
            cross(&mut producer, &mut consumer, Frame::data(StreamId(2), &sent).unwrap(), Vec::new()).await;
        assert!(frame.body.len() < 200, "{way}: the frame says where it is");
        let received: Part = frame.decode().unwrap();
        assert!(bytes_of(&received, reader.as_ref()) == value(length), "{way}: {length} bytes");
        drop(lease);
    }

    // A full arena falls back to inline, and goes on when there is room again, in the same place.
    let (first, held) = part(&arena, &value(900_000));
    let (second, none) = part(&arena, &value(900_000));
    assert!(none.is_none() && second.data.is_some(), "{way}");
    let (frame, _) =
        cross(&mut producer, &mut consumer, Frame::data(StreamId(2), &second).unwrap(), Vec::new()).await;
    assert!(bytes_of(&frame.decode().unwrap(), reader.as_ref()) == value(900_000), "{way}");
    let old = first.segment.unwrap();
    let second_hold = arena.lease(&old).unwrap();
    drop(held);
    assert_eq!(arena.read(&old).map(|bytes| bytes.len()), Ok(900_000), "{way}: one lease is left");
    drop(second_hold);
    assert_eq!(
        (arena.segments(), arena.read(&old).unwrap_err().reason.as_str()),
        (0, "arena.stale"),
        "{way}"
    );
    let (third, _held) = part(&arena, &value(900_000));
    assert_eq!(third.segment.unwrap().offset, old.offset, "{way}: recycled");
    assert_eq!(arena.read(&old).unwrap_err().reason, "arena.stale", "{way}: and the old one is still stale");

    // What the other end claims is checked.
    for (offset, length) in [(ARENA_BYTES, 1), (0, ARENA_BYTES + 1), (u64::MAX, 2), (1, u64::MAX)] {
        assert_eq!(reader.copy(offset, length), None, "{way}: {offset} {length}");
    }

    // The producer's end goes; who has it mapped reads on.
    drop(arena);
    assert!(reader.copy(0, 64).is_some(), "{way}");
}

#[tokio::test]
async fn a_value_crosses_an_inherited_socket_by_sealed_memory() {
    holds::<BySealed>(inherited, &tag(0)).await;
}

#[tokio::test]
async fn a_value_crosses_a_listening_socket_by_sealed_memory() {
    holds::<BySealed>(listening, &tag(1)).await;
}

#[tokio::test]
async fn a_value_crosses_an_inherited_socket_by_named_memory() {
    holds::<ByNamed>(inherited, &tag(2)).await;
}

#[tokio::test]
async fn a_value_crosses_a_listening_socket_by_named_memory() {
    holds::<ByNamed>(listening, &tag(3)).await;
}

#[tokio::test]
async fn a_value_crosses_either_socket_inline_where_there_is_no_arena() {
    for sockets in [inherited, listening] {
        let (mut producer, mut consumer) = connected(sockets);
        let bytes = 5 << 20;
        let sent = Part { data: Some(value(bytes).into()), bytes: bytes as u64, ..Part::default() };
        let (frame, _) =
            cross(&mut producer, &mut consumer, Frame::data(StreamId(2), &sent).unwrap(), Vec::new()).await;
        assert!(frame.decode::<Part>().unwrap().data.unwrap() == value(bytes));
    }
}

#[test]
fn who_has_a_sealed_arena_can_read_it_and_nothing_else() {
    use rustix::mm::{MapFlags, ProtFlags};
    let sealed = Sealed::new(4096).unwrap();
    let passed = sealed.descriptor().unwrap();
    assert!(rustix::fs::ftruncate(&passed, 0).is_err(), "it cannot be made smaller");
    assert!(rustix::fs::ftruncate(&passed, 1 << 20).is_err(), "nor larger");
    assert!(rustix::io::pwrite(&passed, b"x", 0).is_err(), "nor written");
    #[expect(unsafe_code, reason = "to see that it is refused")]
    // SAFETY: nothing is mapped, as the system refuses; if it did not, a fresh range would be.
    let mapped = unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), 4096, ProtFlags::WRITE, MapFlags::SHARED, &passed, 0)
    };
    assert!(mapped.is_err(), "nor mapped for writing");
    assert!(
        rustix::fs::fcntl_add_seals(&passed, rustix::fs::SealFlags::WRITE).is_err(),
        "nor sealed otherwise"
    );
    // The other way round: what is not sealed is not mapped, as its end would be ours.
    let file = tempfile::tempfile().unwrap();
    assert_eq!(SealedReader::new(&file).unwrap_err().reason, "arena.unsealed");
}

#[test]
fn a_named_arena_is_this_users_alone_and_goes_with_its_owner_or_is_swept_by_the_next() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let tag = tag(9);
    let named = Named::new(&tag, EPOCH, 8192).unwrap();
    let path = format!("/dev/shm/{}", named.name());
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert!(found.blocks() * 512 >= 8192, "the space is reserved before it is touched");
    let names = || {
        let names = std::fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(&format!("ecl.{tag}."))).count()
    };
    let other = Named::new(&tag, EPOCH, 8192).unwrap();
    assert_ne!(other.name(), named.name(), "nobody can guess it");
    assert_eq!(names(), 2);
    drop(other);
    let refused = Named::new(&tag, EPOCH, 1 << 40).unwrap_err();
    assert_eq!(refused.reason, "arena.memory", "what is not there is refused and not found out by SIGBUS");
    assert_eq!(names(), 1, "and leaves no name");
    let name = named.name().to_owned();
    drop(named);
    assert!(!std::path::Path::new(&path).exists());
    assert_eq!(NamedReader::new(&name).unwrap_err().reason, "arena.gone");
    assert_eq!(NamedReader::new("../shm/x").unwrap_err().reason, "arena.gone");

    // As a kernel does that is killed: nothing of it is dropped.
    let left = Named::new(&tag, EPOCH, 8192).unwrap();
    let name = left.name().to_owned();
    let survivor = NamedReader::new(&name).unwrap();
    std::mem::forget(left);
    let mine = Named::new(&tag, Epoch(8), 8192).unwrap();
    assert_eq!(Named::sweep(&tag, EPOCH).unwrap(), 0, "what lives is not swept");
    assert_eq!(Named::sweep(&tag, Epoch(8)).unwrap(), 1);
    assert!(NamedReader::new(&name).is_err() && NamedReader::new(mine.name()).is_ok());
    assert!(survivor.copy(0, 8192).is_some(), "who has it mapped reads on");
    assert!(Named::sweep("a/b", EPOCH).is_err());
}

#[test]
fn a_name_whose_owner_lives_is_claimed_by_nobody_and_one_that_was_left_by_anybody() {
    let tag = tag(8);
    let named = Named::new(&tag, EPOCH, 8192).unwrap();
    assert!(is_ours(named.name()));
    assert_eq!(claim(named.name()).unwrap_err(), "its kernel is alive");
    // As a killed kernel leaves it: its locks fell with it.
    let left = format!("ecl.{tag}.1.00000000");
    std::fs::write(format!("{FOLDER}/{left}"), b"x").unwrap();
    assert!(is_ours(&left));
    let claimed = claim(&left).unwrap();
    assert!(claim(&left).is_err(), "by one at a time");
    drop(claimed);
    assert!(claim(&left).is_ok());
    std::fs::remove_file(format!("{FOLDER}/{left}")).unwrap();
    assert!(claim(&left).is_err() && !is_ours(&left));
    for other in ["ecl.x", "psm_1234", "ecl-trash-1"] {
        assert!(!is_ours(other), "{other}");
    }
}
