//! Generators of real Python workers, streamed to real clients over the socket of a real kernel (P3, P5).
//!
//! The keeper is the `eclosion` binary in another role: `ECLOSION_BINARY`, else `target/debug/eclosion`. Without one
//! the tests are skipped, and say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::future::{Future, IntoFuture};
use std::path::{Path, PathBuf};
use std::time::Duration;

use eclosion::{Kernel, Options, Places};
use eclosion_client::{Client, Streaming};
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::kernel::{Delivery, Empty, Status};
use eclosion_schemas::ops::pool::{Call, CallRequest, Stream};
use eclosion_schemas::ops::run::{Get, RunRequest, Start, StartRequest};
use eclosion_schemas::view::{TaskItem, TaskReport};
use eclosion_schemas::{Code, Part, Payload, codec};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const FUNCTIONS: &str = r#"
import os, pathlib, time
from eclosion import current

def tokens(gate):
    current().progress(1, 2, "half")
    current().metric("loss", 0.5, 1)
    yield "to"
    wait(gate)
    yield "ken"
    return {"tokens": 2}

def count(produced, ended):
    try:
        for n in range(1_000_000):
            pathlib.Path(produced).write_text(str(n + 1))
            yield n
    finally:
        pathlib.Path(ended).touch()

def wait(gate):
    while not pathlib.Path(gate).exists():
        time.sleep(0.001)

def pid():
    return os.getpid()

def hold(value):
    pathlib.Path(__file__).with_name("held").touch()
    while True:
        time.sleep(0.001)

def look(value):
    return [len(value), sum(value)]

def where(value):
    if not hasattr(value, "ctypes"):
        return "no numpy"
    start = next(
        int(line.split("-")[0], 16)
        for line in open("/proc/self/maps")
        if "memfd:eclosion-arena" in line
        and int(line.split("-")[0], 16) <= value.ctypes.data < int(line.split()[0].split("-")[1], 16)
    )
    return [value.nbytes, int(value.sum(dtype="u8")), value.ctypes.data - start, bool(value.flags.writeable)]
"#;

struct Scene {
    directory: tempfile::TempDir,
    kernel: Kernel,
}

impl Scene {
    /// Nothing, if there is no binary that could be the keeper.
    async fn start(instance: &str) -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug/eclosion");
        let keeper = std::env::var_os("ECLOSION_BINARY").map_or(beside, PathBuf::from);
        if !keeper.exists() {
            eprintln!("SKIPPED a test of streams: no eclosion binary; cargo build -p eclosion-cli");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("functions.py"), FUNCTIONS).unwrap();
        let mut options = Options::new(Places::below(directory.path(), instance));
        options.workers_max = 1;
        options.cancel_grace_ms = 5_000;
        options.keeper_binary = Some(keeper);
        Some(Self { kernel: Kernel::start(options).await.unwrap(), directory })
    }

    async fn client(&self) -> Client {
        Client::connect(&self.kernel.places().socket).await.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn request(&self, function: &str, arguments: &Value) -> CallRequest {
        CallRequest {
            timeout_ms: None,
            limits: None,
            function: format!("functions:{function}"),
            code: self.directory.path().to_string_lossy().into_owned(),
            code_hash: String::new(),
            environment: EnvironmentSpec { python: python(), ..EnvironmentSpec::default() },
            arguments: Payload::of(arguments),
            with: std::collections::BTreeMap::new(),
        }
    }

    async fn count(&self, client: &Client, credit: u64) -> Streaming<Stream> {
        let arguments = json!({"produced": self.path("produced"), "ended": self.path("ended")});
        let _ = std::fs::remove_file(self.path("ended"));
        client.stream::<Stream>(self.request("count", &arguments)).credit(credit).await.unwrap()
    }

    fn produced(&self) -> u64 {
        std::fs::read_to_string(self.path("produced")).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// One that has numpy, if it was made.
fn python() -> Option<String> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-python/bin/python");
    made.exists().then(|| made.to_string_lossy().into_owned())
}

async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it hangs")
}

async fn until(holds: impl Fn() -> bool) {
    watched(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn plain(payload: &Payload) -> Value {
    codec::decode(&payload.body).unwrap()
}

/// The next value that is yielded; reports on the way are kept.
async fn item(stream: &mut Streaming<Stream>, reports: &mut Vec<TaskReport>) -> Value {
    loop {
        match watched(stream.next()).await.unwrap().unwrap() {
            TaskReport::Item { payload, .. } => return plain(&payload),
            report => reports.push(report),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_the_first_token_while_the_generator_runs() {
    let Some(scene) = Scene::start("tokens").await else { return };
    let client = scene.client().await;
    let gate = scene.path("gate");
    let mut stream = client.stream::<Stream>(scene.request("tokens", &json!({"gate": gate}))).await.unwrap();
    let mut reports = Vec::new();
    assert_eq!(item(&mut stream, &mut reports).await, "to");
    assert_eq!(
        reports,
        [
            TaskReport::Progress { done: 1.0, total: Some(2.0), text: "half".into() },
            TaskReport::Metric { name: "loss".into(), value: 0.5, step: Some(1) },
        ]
    );
    // The generator cannot have ended: it waits for this.
    std::fs::write(&gate, "").unwrap();
    assert_eq!(item(&mut stream, &mut reports).await, "ken");
    assert!(watched(stream.next()).await.is_none());
    assert_eq!(plain(&stream.reply().await.unwrap()), json!({"tokens": 2}));

    // Where nobody takes items, a generator is refused and says what to do.
    let call = client.call::<Call>(scene.request("tokens", &json!({"gate": gate})));
    let refused = watched(call.into_future()).await.unwrap_err();
    assert!(refused.help.as_deref().is_some_and(|help| help.contains("pool.stream")), "{refused:?}");
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_stops_the_generator_and_one_that_leaves_ends_it() {
    const CREDIT: u64 = 4;
    let Some(scene) = Scene::start("slow").await else { return };
    let client = scene.client().await;
    let mut reports = Vec::new();
    let mut stream = scene.count(&client, CREDIT).await;
    for consumed in 0..200 {
        // At most what was granted, and one made ahead: however long the client takes, and whatever waits between.
        assert!(scene.produced() <= consumed + CREDIT + 1, "{} of {consumed}", scene.produced());
        assert_eq!(item(&mut stream, &mut reports).await, json!(consumed));
    }
    until(|| scene.produced() >= 200 + CREDIT / 2).await;
    assert!(scene.produced() <= 200 + CREDIT + 1);
    // CANCEL: the generator's `finally` runs, and the worker serves the next.
    drop(stream);
    until(|| scene.path("ended").exists()).await;
    let pid = watched(client.call::<Call>(scene.request("pid", &json!({}))).into_future()).await.unwrap();

    // The same if the whole client goes.
    let leaving = scene.client().await;
    let mut stream = scene.count(&leaving, CREDIT).await;
    assert_eq!(item(&mut stream, &mut reports).await, json!(0));
    drop((stream, leaving));
    until(|| scene.path("ended").exists()).await;
    let same = watched(client.call::<Call>(scene.request("pid", &json!({}))).into_future()).await.unwrap();
    assert_eq!(plain(&same), plain(&pid));

    // And at the deadline.
    let arguments = json!({"produced": scene.path("produced"), "ended": scene.path("ended")});
    std::fs::remove_file(scene.path("ended")).unwrap();
    let call = client.stream::<Stream>(scene.request("count", &arguments)).credit(2);
    let mut late = call.deadline(Duration::from_millis(300)).await.unwrap();
    while watched(late.next()).await.is_some() {}
    assert_eq!(late.reply().await.unwrap_err().code, Code::Deadline);
    until(|| scene.path("ended").exists()).await;
    scene.kernel.shutdown().await;
}

/// What this test executable does when it is started as a follower: takes one item, says so, and holds the stream.
#[tokio::test]
async fn follower() {
    let Ok(socket) = std::env::var("ECLOSION_TEST_FOLLOWS") else { return };
    let client = Client::connect(&socket).await.unwrap();
    let mut changes = client.subscribe("**").await.unwrap();
    changes.next().await.unwrap().unwrap();
    println!("following");
    client.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_killed_leaves_nothing_in_the_kernels_books() {
    use std::io::{BufRead as _, BufReader};
    let Some(scene) = Scene::start("killed").await else { return };
    let client = scene.client().await;
    let traffic = async || client.call::<Status>(Empty {}).await.unwrap().traffic;
    let before = traffic().await;
    assert_eq!((before.connections, before.streams, before.credit), (1, 1, 0), "this one and its call");
    let mut follower = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["follower", "--exact", "--nocapture"])
        .env("ECLOSION_TEST_FOLLOWS", &scene.kernel.places().socket)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(follower.stdout.take().unwrap());
    assert!(said.lines().any(|line| line.unwrap().contains("following")));
    let with = traffic().await;
    assert_eq!((with.connections, with.streams), (2, 2));
    assert!(with.credit > 0);
    follower.kill().unwrap();
    follower.wait().unwrap();
    watched(async { while traffic().await != before {} }).await;
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_a_run_sees_what_its_tasks_yield_and_the_result_has_it_all() {
    let Some(scene) = Scene::start("run").await else { return };
    let client = scene.client().await;
    let mut changes = client.subscribe("run/*/task/*/item").await.unwrap();
    let gate = scene.path("gate");
    let flow = json!({
        "schema": "eclosion/flow/v1", "name": "words", "code": scene.directory.path(),
        "tasks": {"speak": {"run": "functions:tokens", "with": {"gate": gate}}},
    });
    let flow = serde_json::from_value(flow).unwrap();
    let request =
        StartRequest { flow, set: [].into(), tenant: None, new: false, no_cache: false, idem: None };
    let run = watched(client.call::<Start>(request).into_future()).await.unwrap().run;
    let mut said = Vec::new();
    while said.len() < 2 {
        if let Delivery::Change { value, .. } = watched(changes.next()).await.unwrap().unwrap() {
            let item = codec::json::to_msgpack(&codec::json::encode(&value).unwrap()).unwrap();
            let item: TaskItem = codec::decode(&item).unwrap();
            said.push((item.index, item.attempt.0, item.payload.body));
            std::fs::write(&gate, "").unwrap();
        }
    }
    let text = |text: &str| Payload::of(&text).body;
    assert_eq!(said, [(0, 1, text("to")), (1, 1, text("ken"))]);
    let over = watched(async {
        loop {
            let found = client.call::<Get>(RunRequest { run: run.clone() }).await.unwrap();
            if found.run.state.is_final() {
                return found;
            }
        }
    })
    .await;
    assert_eq!(over.run.state, eclosion_schemas::view::RunState::Succeeded, "{over:?}");
    scene.kernel.shutdown().await;
}

/// The segment's address is inside of what the worker has mapped of a memfd, so nothing was copied on the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_argument_lies_in_shared_memory_and_the_worker_reads_it_where_it_is() {
    const BYTES: usize = 3 << 20;
    let Some(scene) = Scene::start("objects").await else { return };
    let bus = scene.kernel.bus();
    let large: Vec<u8> = (0..BYTES).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let sum: u64 = large.iter().map(|byte| u64::from(*byte)).sum();

    // By data: the kernel puts it there; from a client as well, whose frame has the bytes.
    let part = Part {
        data: Some(large.clone().into()),
        bytes: BYTES as u64,
        codec: "bytes".into(),
        ..Part::default()
    };
    let request = with_part(scene.request("look", &json!({})), part);
    for _ in 0..3 {
        let reply = bus.ask::<Call>(request.clone()).deadline(PATIENCE).await.unwrap();
        assert_eq!(plain(&reply), json!([BYTES, sum]));
    }
    let client = scene.client().await;
    let reply = watched(client.call::<Call>(request.clone()).into_future()).await.unwrap();
    assert_eq!(plain(&reply), json!([BYTES, sum]));

    // By segment: an array, at an address inside of the mapping, and read-only.
    let objects = scene.kernel.objects();
    let header = npy_header(BYTES);
    let lease = objects.put(&[&header, &large]).unwrap();
    let segment = lease.segment();
    let part = Part { segment: Some(segment), codec: "npy".into(), ..Part::default() };
    let request = with_part(scene.request("where", &json!({})), part);
    // A client names only what it was told of.
    let refused = watched(client.call::<Call>(request.clone()).into_future()).await.unwrap_err();
    assert_eq!(refused.reason, "arena.segment");
    let reply = bus.ask::<Call>(request.clone()).deadline(PATIENCE).await.unwrap();
    if plain(&reply) == json!("no numpy") {
        eprintln!("SKIPPED the array: the system's Python has no numpy");
    } else {
        assert_eq!(plain(&reply), json!([BYTES, sum, segment.offset + header.len() as u64, false]));
    }

    // What was given back is told apart from what lies there now.
    drop(lease);
    let refused = bus.ask::<Call>(request).deadline(PATIENCE).await.unwrap_err();
    assert_eq!(refused.reason, "arena.stale");
    until(|| objects.counts().0 == 0).await;
    scene.kernel.shutdown().await;
}

/// What this test executable does when it is started as a caller: it calls with a large argument, and waits for ever.
#[tokio::test]
async fn caller() {
    let Ok(code) = std::env::var("ECLOSION_TEST_CALLS") else { return };
    let client = Client::connect(std::env::var("ECLOSION_TEST_CALLS_AT").unwrap()).await.unwrap();
    let part = Part {
        data: Some(vec![1; 1 << 20].into()),
        bytes: 1 << 20,
        codec: "bytes".into(),
        ..Part::default()
    };
    let request = CallRequest {
        timeout_ms: None,
        limits: None,
        function: "functions:hold".into(),
        code,
        code_hash: String::new(),
        environment: EnvironmentSpec { python: python(), ..EnvironmentSpec::default() },
        arguments: Payload::default(),
        with: std::collections::BTreeMap::new(),
    };
    let _ = client.call::<Call>(with_part(request, part)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_killed_leaves_nothing_in_shared_memory() {
    let Some(scene) = Scene::start("caller").await else { return };
    let objects = scene.kernel.objects();
    let mut caller = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["caller", "--exact"])
        .env("ECLOSION_TEST_CALLS", scene.directory.path())
        .env("ECLOSION_TEST_CALLS_AT", &scene.kernel.places().socket)
        .spawn()
        .unwrap();
    until(|| scene.path("held").exists()).await;
    assert_eq!(objects.counts().0, 1, "the worker reads it");
    caller.kill().unwrap();
    caller.wait().unwrap();
    until(|| objects.counts().0 == 0).await;
    scene.kernel.shutdown().await;
}

/// A call with one argument, `value`, that is this part.
fn with_part(request: CallRequest, part: Part) -> CallRequest {
    // {"value": part 0}
    let body = [&[0x81, 0xa5][..], b"value", &[0xd6, 1, 0, 0, 0, 0]].concat();
    CallRequest { arguments: Payload { body: body.into(), parts: vec![part] }, ..request }
}

/// Of an array of `bytes` bytes, in version 1 of the format.
fn npy_header(bytes: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({bytes},), }}");
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let length = u16::try_from(text.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], text.as_bytes()].concat()
}
