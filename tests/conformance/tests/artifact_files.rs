//! The artifact store in a kernel, over files: values with their bytes, names that lead to names, verification.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use eclosion_artifact_store::{ArtifactActor, BlobStore, FILES};
use eclosion_bus::{Address, Bus, Call, Context, Item};
use eclosion_kernel::Kernel;
use eclosion_kernel::core::AnyEvent;
use eclosion_kernel::journal::{Append, Mark};
use eclosion_schemas::events::{RunStarted, StepCommitted};
use eclosion_schemas::operation::{Operation, Role, Spec};
use eclosion_schemas::ops::artifact::{
    Get, GetReply, GetRequest, List, ListReply, ListRequest, Piece, Pin, PinRequest, Search, SearchRequest,
    Tag, TagRequest, Unpin, Verify, VerifyReply, VerifyRequest,
};
use eclosion_schemas::{Attempt, Digest, Error, Fence, Part, Payload, Seq, Timestamp};
use eclosion_store_fs::FileStore;
use serde_json::json;

struct World {
    directory: tempfile::TempDir,
    kernel: Kernel,
    blobs: Arc<FileStore>,
}

impl World {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Arc::new(FileStore::open(directory.path()).unwrap());
        let actor = ArtifactActor::new(Arc::clone(&blobs) as Arc<dyn BlobStore>);
        let bus: Arc<OnceLock<Bus>> = Arc::default();
        let files = actor.files(Arc::clone(&bus));
        let builder = Kernel::builder().operations(eclosion_schemas::ops::table().unwrap());
        let kernel = builder.actor(actor).service(FILES, move || files.clone()).start().await.unwrap();
        bus.set(kernel.bus().clone()).unwrap();
        kernel.adopt();
        kernel.run();
        Self { directory, kernel, blobs }
    }

    async fn append(&self, event: AnyEvent) {
        let append =
            Append { events: vec![event], at: Timestamp(1), cause: None, folded: Seq(0), folds: &[] };
        let seq = self.kernel.journal().append(&append).unwrap()[0].seq;
        let (told, written) = tokio::sync::oneshot::channel();
        self.kernel.journal().hold(Mark::Written, seq, move |outcome| {
            let _ = told.send(outcome.is_ok());
        });
        assert!(written.await.unwrap());
    }

    async fn start_run(&self, run: &str) {
        let started: RunStarted = serde_json::from_value(json!({
            "run": run, "parameters": {}, "seed": 1, "content": "c", "environment": "e", "tenant": "t",
            "flow": {"schema": "eclosion/flow/v1", "name": "automl", "tasks": {"load": {"run": "m:load"}}},
        }))
        .unwrap();
        self.append(started.into()).await;
    }

    async fn commit(&self, run: &str, content: &[u8]) -> Digest {
        let (stage, file) = self.blobs.stage(content.len() as u64).unwrap();
        File::from(file).write_all(content).unwrap();
        let (digest, bytes) = self.blobs.seal(stage).unwrap();
        let part = Part { digest: Some(digest.clone()), bytes, codec: "bytes".into(), ..Part::default() };
        let committed = StepCommitted {
            run: run.parse().unwrap(),
            task: "load".parse().unwrap(),
            attempt: Attempt(1),
            fence: Fence::default(),
            worker: "w-1-1".parse().unwrap(),
            output: Payload { body: vec![0xd6, 1, 0, 0, 0, 0].into(), parts: vec![part] },
            lease: None,
            cache: None,
            unkept: None,
        };
        self.append(committed.into()).await;
        digest
    }

    /// As a transport asks: the pieces, then the reply.
    async fn get(&self, name: &str) -> Result<(Vec<u8>, GetReply), Error> {
        let context = Context {
            deadline: Instant::now() + Duration::from_secs(30),
            trace: None,
            cause: None,
            idem: None,
            role: Role::View,
            caller: None,
            timings: None,
            shares: false,
        };
        let mut pending = self.kernel.bus().call(Call {
            spec: Arc::new(Spec::of::<Get>()),
            address: Address::new(FILES).unwrap(),
            request: Box::new(GetRequest { name: name.into() }),
            context,
            credit: None,
        });
        let mut content = Vec::new();
        loop {
            match pending.next().await.unwrap() {
                Item::Item(piece) => content.extend(piece.downcast::<Piece>().unwrap().bytes),
                Item::Reply(reply) => return reply.map(|reply| (content, *reply.downcast().unwrap())),
            }
        }
    }

    async fn verify(&self, name: Option<&str>) -> VerifyReply {
        let request = VerifyRequest { name: name.map(str::to_owned) };
        self.kernel.bus().ask::<Verify>(request).to(&Address::new(FILES).unwrap()).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_comes_with_its_bytes_by_every_name_that_it_has() {
    let world = World::start().await;
    for (run, byte) in [("r1", 1), ("r2", 2), ("r3", 3)] {
        world.start_run(run).await;
        if run != "r3" {
            world.commit(run, &vec![byte; 700_000]).await;
        }
    }
    let digest = world.get("r1/load").await.unwrap().1.artifact.digest.unwrap();
    for (name, byte, version) in [
        ("r1/load", 1, 1),
        ("automl/load@1", 1, 1),
        ("automl/load@2", 2, 2),
        // The third run has not committed it yet.
        ("automl/load", 2, 2),
        (digest.as_str(), 1, 1),
    ] {
        let (content, found) = world.get(name).await.unwrap();
        assert!(content == vec![byte; 700_000], "{name}");
        assert_eq!(found.artifact.version, version, "{name}");
    }
    assert_eq!(world.get("automl/load@3").await.unwrap_err().reason, "artifact.pending");
    for unknown in ["automl/load@4", "automl/load@0", "automl/load@x", "nobody/load", "r9/load", "", "@", "/"]
    {
        assert_eq!(world.get(unknown).await.unwrap_err().reason, "artifact.unknown", "{unknown}");
    }
    let request = ListRequest { run: None, prefix: String::new(), limit: 10 };
    let listed: ListReply = world.kernel.bus().ask::<List>(request).await.unwrap();
    assert_eq!((listed.artifacts.len(), listed.cut, List::ADDRESS), (2, 0, "/artifacts"));
    world.kernel.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_pins_and_searches_take_every_name_that_an_artifact_has() {
    let world = World::start().await;
    let mut digests = Vec::new();
    for (run, bytes) in [("r1", 10), ("r2", 2_000), ("r3", 300)] {
        world.start_run(run).await;
        digests.push(world.commit(run, &vec![7; bytes]).await);
    }
    let bus = world.kernel.bus();
    let tag = |name: &str, tag: &str| {
        let request = TagRequest { name: name.into(), tag: tag.into(), reason: String::new() };
        bus.ask::<Tag>(request).to(&Address::new(FILES).unwrap()).into_future()
    };
    assert_eq!(tag("automl/load@2", "best").await.unwrap().artifact, "r2/load");
    assert_eq!(tag("automl/load@best", "served").await.unwrap().artifact, "r2/load");
    assert_eq!(tag(digests[0].as_str(), "best").await.unwrap().artifact, "r1/load");
    assert_eq!(world.get("automl/load@best").await.unwrap().0.len(), 10);
    assert_eq!(world.get("automl/load@served").await.unwrap().0.len(), 2_000);
    assert_eq!(world.get("automl/load@nobody").await.unwrap_err().reason, "artifact.unknown");
    let pin = PinRequest { name: "automl/load@served".into(), holder: "web".into(), reason: "live".into() };
    let pinned = bus.ask::<Pin>(pin.clone()).to(&Address::new(FILES).unwrap()).await.unwrap();
    assert_eq!((pinned.artifact.as_str(), pinned.holders.as_slice()), ("r2/load", &["web".to_owned()][..]));
    let unpinned = bus.ask::<Unpin>(pin).to(&Address::new(FILES).unwrap()).await.unwrap();
    assert!(unpinned.holders.is_empty());
    let any = || SearchRequest { limit: 9, ..SearchRequest::default() };
    let some = |text: &str| Some(text.to_owned());
    for (request, found) in [
        (any(), "r3 r2 r1"),
        (SearchRequest { text: "AUTOML bytes".into(), ..any() }, "r3 r2 r1"),
        (SearchRequest { text: "r2".into(), ..any() }, "r2"),
        (SearchRequest { text: digests[2].as_str()[..20].into(), ..any() }, "r3"),
        (SearchRequest { text: "automl nobody".into(), ..any() }, ""),
        (SearchRequest { bytes_min: Some(300), ..any() }, "r3 r2"),
        (SearchRequest { bytes_min: Some(20), bytes_max: Some(999), ..any() }, "r3"),
        (SearchRequest { codec: some("npy"), ..any() }, ""),
        (SearchRequest { flow: some("automl"), task: some("load"), ..any() }, "r3 r2 r1"),
        (SearchRequest { flow: some("automl"), task: some("nobody"), ..any() }, ""),
        (SearchRequest { task: some("load"), run: Some("r1".parse().unwrap()), ..any() }, "r1"),
        (SearchRequest { tag: some("served"), ..any() }, "r2"),
        (SearchRequest { tag: some("best"), flow: some("other"), ..any() }, ""),
    ] {
        let reply = bus.ask::<Search>(request.clone()).to(&Address::new(FILES).unwrap()).await.unwrap();
        let runs: Vec<_> = reply.artifacts.iter().map(|artifact| artifact.run.as_str()).collect();
        assert_eq!((runs.join(" ").as_str(), reply.more), (found, None), "{request:?}");
    }
    // One at a time, each reply says where to go on.
    let (mut before, mut runs) = (None, Vec::new());
    loop {
        let request = SearchRequest { before, limit: 1, ..SearchRequest::default() };
        let reply = bus.ask::<Search>(request).to(&Address::new(FILES).unwrap()).await.unwrap();
        runs.extend(reply.artifacts.into_iter().map(|artifact| artifact.run.to_string()));
        match reply.more {
            Some(more) => before = Some(more),
            None => break,
        }
    }
    assert_eq!(runs, ["r3", "r2", "r1"]);
    world.kernel.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verification_finds_what_the_disk_changed_and_nobody_is_given_it() {
    let world = World::start().await;
    for run in ["r1", "r2"] {
        world.start_run(run).await;
    }
    world.commit("r1", b"whole").await;
    let bad = world.commit("r2", b"damaged").await;
    assert_eq!(world.verify(None).await, VerifyReply { checked: 2, bytes: 12, bad: Vec::new() });
    let path = world.directory.path().join("objects").join(&bad.as_str()[..2]).join(&bad.as_str()[2..]);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"damagee").unwrap();
    assert_eq!(world.verify(Some("r1/load")).await, VerifyReply { checked: 1, bytes: 5, bad: Vec::new() });
    assert_eq!(world.verify(None).await, VerifyReply { checked: 2, bytes: 5, bad: vec![bad.clone()] });
    assert_eq!(world.get("r2/load").await.unwrap_err().reason, "artifact.missing");
    assert_eq!(world.verify(Some("r2/load")).await.bad, [bad]);
    world.kernel.stop().await;
}
