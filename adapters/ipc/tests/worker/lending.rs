//! Memory that is lent to a worker: written, sealed, named, given back.

use eclosion_ipc::arena::{Objects, Reader as _, SealedReader};
use eclosion_schemas::Segment;
use eclosion_schemas::ops::arena::{LEND, LendReply, LendRequest, MAPPED, MappedRequest};

use super::*;

fn the_call() -> Fence {
    Fence::of_call(1)
}

fn sharing() -> (Scene, Objects) {
    let objects = Objects::new(64 << 20);
    let kept = objects.clone();
    (Scene::sharing(Arc::new(Blobs::default()), Some(objects)), kept)
}

fn call(counter: u64) -> Execute {
    Execute { fence: Fence::of_call(counter), ..execute(1) }
}

fn lend(bytes: u64, fence: Fence) -> Frame {
    Frame::call(StreamId(1), LEND, &LendRequest { bytes, fence }).unwrap()
}

fn named(segment: Segment) -> Payload {
    payload(vec![Part {
        segment: Some(segment),
        bytes: segment.length,
        codec: "bytes".into(),
        ..Part::default()
    }])
}

/// One place to write, with the descriptor that came with it.
async fn lent(scene: &mut Scene, bytes: u64) -> (Segment, Option<OwnedFd>) {
    scene.worker.say(&lend(bytes, the_call()));
    let (reply, mut descriptors) = scene.worker.hear().await;
    (reply.decode::<LendReply>().unwrap().segment, descriptors.pop())
}

async fn mapped(scene: &mut Scene, arena: u64) {
    scene.worker.say(&Frame::call(StreamId(3), MAPPED, &MappedRequest { arena }).unwrap());
    assert_eq!(scene.worker.hear().await.0.kind, FrameType::Data);
}

#[tokio::test]
async fn a_result_that_lies_in_lent_memory_is_held_as_long_as_somebody_has_it() {
    let (mut scene, objects) = sharing();
    scene.greet(None).await;
    scene.handle.execute(&call(1), Care::Call { shares: true }).unwrap();
    let (begun, _) = scene.worker.hear().await;
    let (first, file) = lent(&mut scene, 1 << 20).await;
    let file = file.unwrap();
    rustix::io::pwrite(&file, b"written", first.offset).unwrap();
    assert!(rustix::fs::ftruncate(&file, 0).is_err(), "our own end would be in it");
    assert_eq!(objects.attach(first.arena).unwrap_err().reason, "arena.unsealed");
    mapped(&mut scene, first.arena).await;
    assert!(rustix::io::pwrite(&file, b"x", 0).is_err(), "it is sealed now");
    let (second, none) = lent(&mut scene, 1 << 20).await;
    assert!(none.is_none() && second.arena == first.arena, "a descriptor comes once");
    assert_eq!(objects.counts().0, 2);

    scene.worker.reply(begun.stream, &named(first));
    let (_, outcome, _safe) = scene.outcome().await;
    let result = outcome.result.unwrap();
    assert_eq!(&result.parts[0].contents().unwrap()[..7], b"written");
    assert_eq!(objects.counts().0, 1, "what was not named is free again");
    let reader = SealedReader::new(objects.attach(first.arena).unwrap().1).unwrap();
    assert_eq!(reader.copy(first.offset, 7).unwrap(), b"written");
    // The worker dies; who has the result reads on, and then nothing is left.
    drop(scene);
    assert_eq!(&result.parts[0].contents().unwrap()[..7], b"written");
    drop(result);
    watched(async {
        while objects.counts() != (0, 0) {
            tokio::task::yield_now().await
        }
    })
    .await;
}

#[tokio::test]
async fn memory_is_lent_only_for_a_call_whose_caller_reads_it() {
    let (mut scene, objects) = sharing();
    scene.greet(None).await;
    scene.handle.execute(&execute(1), Care::Journaled).unwrap();
    scene.handle.execute(&call(1), Care::Call { shares: false }).unwrap();
    scene.worker.hear().await;
    scene.worker.hear().await;
    for fence in [fence(1), the_call(), Fence::of_call(9)] {
        scene.worker.say(&lend(1 << 20, fence));
        assert_eq!(scene.worker.hear().await.0.to_error().reason, "arena.unshared");
    }
    assert_eq!(objects.counts(), (0, 0));
}

#[tokio::test]
async fn a_full_memory_is_said_and_a_worker_that_names_what_it_was_not_lent_is_cut_off() {
    let (mut scene, objects) = sharing();
    scene.greet(None).await;
    scene.handle.execute(&call(1), Care::Call { shares: true }).unwrap();
    let (begun, _) = scene.worker.hear().await;
    scene.worker.say(&lend(1 << 40, the_call()));
    assert_eq!(scene.worker.hear().await.0.to_error().reason, "arena.full");
    let (segment, _) = lent(&mut scene, 1 << 20).await;
    assert_eq!(segment.length, 1 << 20);
    scene.worker.reply(begun.stream, &named(Segment { length: 1, ..segment }));
    assert_eq!(scene.closed().await.why.unwrap().reason, "arena.segment");
    drop(scene);
    watched(async {
        while objects.counts() != (0, 0) {
            tokio::task::yield_now().await
        }
    })
    .await;
}

#[tokio::test]
async fn what_others_could_still_map_for_writing_is_no_result() {
    let (mut scene, _objects) = sharing();
    scene.greet(None).await;
    scene.handle.execute(&call(1), Care::Call { shares: true }).unwrap();
    let (begun, _) = scene.worker.hear().await;
    let (segment, _file) = lent(&mut scene, 1 << 20).await;
    scene.worker.reply(begun.stream, &named(segment));
    assert_eq!(scene.closed().await.why.unwrap().reason, "arena.unsealed");
}

#[tokio::test]
async fn a_segment_in_the_result_of_a_run_ends_the_connection() {
    let (mut scene, _objects) = sharing();
    scene.greet(None).await;
    scene.handle.execute(&execute(1), Care::Journaled).unwrap();
    let (begun, _) = scene.worker.hear().await;
    let segment = Segment { arena: 1, offset: 0, length: 1 << 20, generation: 1 };
    scene.worker.reply(begun.stream, &named(segment));
    assert_eq!(scene.closed().await.why.unwrap().reason, "task.payload");
}
