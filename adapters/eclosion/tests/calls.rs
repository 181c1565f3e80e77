//! `pool.call` against a real kernel, keeper and Python worker, everything below one temporary directory.
//!
//! The keeper is the `eclosion` binary in another role: `ECLOSION_BINARY`, else `target/debug/eclosion`. Without one
//! the test is skipped, and says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion::{Kernel, Options, Places};
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{self, Call, CallRequest, Status, StatusRequest};
use eclosion_schemas::{Code, Error, Payload, Role, codec};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const FUNCTIONS: &str = r#"
import os, pathlib, time

def add(x, y):
    return x + y

def fail(text):
    raise ValueError(text)

def hang(began):
    pathlib.Path(began).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)

def wait(began, gate):
    pathlib.Path(began).touch()
    while not os.path.exists(gate):
        time.sleep(0.005)

def note(path, n):
    with open(path, "a") as file:
        file.write(f"{n} ")

def pid():
    return os.getpid()

def die():
    os._exit(3)
"#;

fn binary() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug/eclosion");
    let binary = std::env::var_os("ECLOSION_BINARY").map_or(beside, PathBuf::from);
    binary.exists().then_some(binary)
}

struct Scene {
    directory: tempfile::TempDir,
    kernel: Kernel,
}

impl Scene {
    async fn start(keeper_binary: PathBuf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("functions.py"), FUNCTIONS).unwrap();
        let mut options = Options::new(Places::below(directory.path(), "calls"));
        options.workers_max = 1;
        options.cancel_grace_ms = 200;
        options.keeper_binary = Some(keeper_binary);
        Self { kernel: Kernel::start(options).await.unwrap(), directory }
    }

    fn request(&self, function: &str, arguments: &Value) -> CallRequest {
        CallRequest {
            timeout_ms: None,
            limits: None,
            function: function.into(),
            code: self.directory.path().to_string_lossy().into_owned(),
            code_hash: String::new(),
            environment: EnvironmentSpec::default(),
            arguments: Payload::of(arguments),
            with: std::collections::BTreeMap::new(),
        }
    }

    async fn call(&self, function: &str, arguments: Value) -> Result<Value, Error> {
        let request = self.request(function, &arguments);
        let payload = self.kernel.bus().ask::<Call>(request).deadline(PATIENCE).await?;
        Ok(codec::decode(&payload.body).unwrap())
    }

    /// Gives a call up once its function runs.
    async fn abandon(&self) {
        let began = self.directory.path().join("began");
        let request = self.request("functions:hang", &json!({"began": began}));
        let hanging = self.kernel.bus().ask::<Call>(request).deadline(PATIENCE).into_future();
        tokio::select! {
            ended = hanging => panic!("it ended: {ended:?}"),
            () = exists(&began) => {}
        }
    }
}

async fn exists(path: &Path) {
    while !path.exists() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_answered_refused_or_given_up_and_the_worker_serves_the_next() {
    let Some(binary) = binary() else {
        return eprintln!("SKIPPED 1 test of calls: no eclosion binary; cargo build -p eclosion-cli");
    };
    let scene = Scene::start(binary).await;
    assert_eq!(scene.call("functions:add", json!({"x": 2, "y": 3})).await, Ok(json!(5)));
    let sqrt = scene.call("statistics:mean", json!({"data": [1, 2, 6]})).await;
    assert_eq!(sqrt, Ok(json!(3)));

    let raised = scene.call("functions:fail", json!({"text": "no such luck"})).await.unwrap_err();
    assert_eq!(raised.reason, "task.raised");
    assert!(raised.message.contains("no such luck"), "{raised}");
    let unfit = scene.call("functions:add", json!({"x": 2})).await.unwrap_err();
    assert_eq!((unfit.code, unfit.reason.as_str()), (Code::Invalid, "task.arguments"));

    // The only worker hangs; the next call is served because the one that nobody waits for is cancelled.
    let before = scene.call("functions:pid", json!({})).await;
    scene.abandon().await;
    assert_eq!(scene.call("functions:pid", json!({})).await, before);

    let died = scene.call("functions:die", json!({})).await.unwrap_err();
    assert_eq!(died.reason, "worker.died");
    assert!(died.message.contains("code 3"), "{died}");
    assert_ne!(scene.call("functions:pid", json!({})).await, before);

    // Nobody waits for an environment that cannot be built, though the call had a minute.
    let mut unbuildable = scene.request("functions:add", &json!({"x": 2, "y": 3}));
    unbuildable.environment.requirements = vec!["mine @ file:///nowhere/mine".into()];
    let unbuilt = scene.kernel.bus().ask::<Call>(unbuildable).deadline(PATIENCE).await.unwrap_err();
    assert_eq!((unbuilt.code, unbuilt.reason.as_str()), (Code::Invalid, "environment.resolve"));

    let status = scene.kernel.bus().ask::<Status>(StatusRequest {}).await.unwrap();
    assert_eq!(status.waiting, 0);
    scene.kernel.shutdown().await;
}

/// On one thread, so that calls arrive in the order in which they are sent.
#[tokio::test]
async fn calls_that_wait_are_served_in_their_order_and_one_that_is_given_up_holds_up_nobody() {
    const CALLS: u64 = 20;
    const GIVEN_UP: u64 = 7;
    let Some(binary) = binary() else {
        return eprintln!("SKIPPED 1 test of calls: no eclosion binary; cargo build -p eclosion-cli");
    };
    let scene = Arc::new(Scene::start(binary).await);
    let file = |name: &str| scene.directory.path().join(name);
    let (began, gate, notes) = (file("began"), file("gate"), file("notes"));
    let send = |function: &'static str, arguments: Value| {
        let scene = Arc::clone(&scene);
        tokio::spawn(async move { scene.call(function, arguments).await })
    };
    let first = send("functions:wait", json!({"began": began, "gate": gate}));
    exists(&began).await;
    let mut waiting: Vec<_> =
        (0..CALLS).map(|n| send("functions:note", json!({"path": notes, "n": n}))).collect();
    let handled = || {
        let rows = scene.kernel.kernel().rows();
        rows.into_iter().find(|row| row.address == pool::CALLS).map(|row| row.handled)
    };
    while handled() < Some(1 + CALLS) {
        tokio::task::yield_now().await;
    }
    waiting.remove(GIVEN_UP as usize).abort();
    std::fs::write(gate, "").unwrap();
    assert_eq!(first.await.unwrap(), Ok(Value::Null));
    for call in waiting {
        assert_eq!(call.await.unwrap(), Ok(Value::Null));
    }
    let served: String = (0..CALLS).filter(|n| *n != GIVEN_UP).map(|n| format!("{n} ")).collect();
    assert_eq!(std::fs::read_to_string(notes).unwrap(), served);
    Arc::into_inner(scene).unwrap().kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timed_call_says_where_its_time_went_from_the_mailbox_into_python_and_back() {
    let Some(binary) = binary() else {
        return eprintln!("SKIPPED 1 test of timings: no eclosion binary; cargo build -p eclosion-cli");
    };
    let scene = Scene::start(binary).await;
    for function in ["functions:add", "functions:fail"] {
        let request = scene.request(function, &json!({"x": 2, "y": 3}));
        let began = Instant::now();
        let timed = scene.kernel.bus().ask::<Call>(request).deadline(PATIENCE).timed().await;
        let waited = began.elapsed();
        assert_eq!(timed.outcome.is_ok(), function == "functions:add");
        let names: Vec<_> = timed.stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["queued", "handled", "worker", "sent", "python", "back", "answered"]);
        let sum: u64 = timed.stages.iter().map(|stage| stage.took_ns).sum();
        assert!(u128::from(sum) <= waited.as_nanos(), "{:?} in {waited:?}", timed.stages);
        let python = &timed.stages[4];
        assert!(python.took_ns > 0, "the worker has said when it ran: {:?}", timed.stages);
    }

    // What the journal holds back until it is synced is a stage of its own.
    let timed = scene.kernel.bus().ask::<Status>(StatusRequest {}).role(Role::View).timed().await;
    let names: Vec<_> = timed.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!((timed.outcome.is_ok(), names), (true, vec!["queued", "handled", "journal", "answered"]));
    scene.kernel.shutdown().await;
}
