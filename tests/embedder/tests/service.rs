//! A Python object in another process, served at an address of its own: called like any actor, killed, and back.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test, helpers and all")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use eclosion::Kernel;
use eclosion::bus::Address;
use eclosion::client::{CallOptions, Client, Exchange};
use eclosion::schemas::ops::kernel::{Describe, DescribeRequest};
use eclosion::schemas::{Code, Error, codec};
use serde_json::{Value, json};

/// It hangs.
const WATCHDOG: Duration = Duration::from_secs(60);

struct Scene {
    directory: tempfile::TempDir,
    kernel: Kernel,
    client: Client,
}

/// The service's process; it goes with the test.
struct Service(Child);

impl Service {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

fn python() -> Option<PathBuf> {
    let made = root().join("target/test-python/bin/python");
    let python = std::env::var_os("ECLOSION_TEST_PYTHON").map_or(made, PathBuf::from);
    if !python.exists() {
        eprintln!("SKIPPED a test of services: no {}; cargo t python makes it", python.display());
        return None;
    }
    Some(python)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Scene {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/kernel.sock");
        let kernel = Kernel::builder().ephemeral().listen(&socket).start().await.unwrap();
        let client = Client::connect(&socket).await.unwrap();
        Self { directory, kernel, client }
    }

    fn command(&self, python: &Path) -> Command {
        let mut command = Command::new(python);
        command
            .args(["-m", "eclosion.service", "counter:Counter", "--socket"])
            .arg(self.directory.path().join("run/kernel.sock"))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"))
            .env("PYTHONPATH", root().join("python-workers/src"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// The process, once its address is served.
    async fn serve(&self, python: &Path) -> Service {
        let service = Service(self.command(python).spawn().unwrap());
        self.until("it is served", || self.is_served()).await;
        service
    }

    fn is_served(&self) -> bool {
        let bus = self.kernel.bus();
        let is_open = bus.statistics(&Address::new("/counter").unwrap()).is_some();
        is_open && bus.table().get("counter.add").is_some()
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let waits = async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(WATCHDOG, waits).await.is_ok(), "never: {what}");
    }

    async fn open(&self, operation: &str, request: Value, deadline: Duration) -> Exchange {
        let options = CallOptions { deadline: Some(deadline), ..CallOptions::default() };
        self.client.open(operation, codec::encode(&request).unwrap().into(), options).await.unwrap()
    }

    async fn call(&self, operation: &str, request: Value) -> Result<Value, Error> {
        let reply = self.open(operation, request, WATCHDOG).await.reply().await?;
        Ok(codec::decode(&reply).unwrap())
    }

    /// A call that has begun and does not end.
    async fn hang(&self) -> Exchange {
        let began = self.directory.path().join("began");
        let exchange = self.open("counter.hang", json!({"began": began}), WATCHDOG).await;
        self.until("it runs", || began.exists()).await;
        std::fs::remove_file(began).unwrap();
        exchange
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_in_another_process_is_an_actor_like_any_other() {
    let Some(python) = python() else { return };
    let scene = Scene::start().await;
    let hash = |client: &Client| client.welcome().describe_hash.clone();
    let before = hash(&scene.client);
    let _service = scene.serve(&python).await;

    assert_eq!(scene.call("counter.add", json!({"amount": 2})).await, Ok(json!(2)));
    assert_eq!(scene.call("counter.add", json!({"amount": 3, "note": "x"})).await, Ok(json!(5)));
    let malformed = scene.call("counter.add", json!({"amount": "two"})).await.unwrap_err();
    assert_eq!((malformed.code, malformed.reason.as_str()), (Code::Invalid, "request.malformed"));
    let raised = scene.call("counter.fail", json!({})).await.unwrap_err();
    assert_eq!(raised.reason, "service.raised");
    assert_eq!(raised.remote.unwrap().kind, "ValueError");
    assert_eq!(scene.call("counter.add", json!({"amount": 0})).await, Ok(json!(5)));

    let row = scene.kernel.rows().into_iter().find(|row| row.address == "/counter").unwrap();
    assert_eq!((row.handled, row.capacity), (5, 4));
    let described = scene.client.call::<Describe>(DescribeRequest { name: Some("counter.add".into()) });
    let described = described.await.unwrap().operations.remove(0);
    assert_eq!(described["address"], "/counter");
    assert_eq!(described["doc"], "Adds to the total.");
    assert!(described["owner"].as_str().unwrap().starts_with("eclosion-python"), "{described}");
    assert_eq!(described["reply"], json!({"type": "integer"}));
    let again = Client::connect(scene.directory.path().join("run/kernel.sock")).await.unwrap();
    assert_ne!(hash(&again), before);
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timed_call_of_a_service_says_when_the_other_process_had_it_in_hand() {
    let Some(python) = python() else { return };
    let scene = Scene::start().await;
    let _service = scene.serve(&python).await;
    for (operation, request) in [("counter.add", json!({"amount": 2})), ("counter.fail", json!({}))] {
        let options = CallOptions { deadline: Some(WATCHDOG), timings: true, ..CallOptions::default() };
        let request = codec::encode(&request).unwrap().into();
        let timed = scene.client.open(operation, request, options).await.unwrap().timed().await;
        assert_eq!(timed.outcome.is_ok(), operation == "counter.add");
        let names: Vec<_> = timed.stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["queued", "handled", "sent", "python", "back", "answered", "encoded"]);
    }
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_yields_streams_as_far_as_its_caller_takes() {
    let Some(python) = python() else { return };
    let scene = Scene::start().await;
    let _service = scene.serve(&python).await;
    let mut numbers = scene.open("counter.upto", json!({"count": 1_000}), WATCHDOG).await;
    let mut seen = Vec::<u64>::new();
    while let Some(item) = numbers.next().await {
        seen.push(codec::decode(&item).unwrap());
    }
    assert_eq!(seen, (0..1_000).collect::<Vec<_>>());
    assert_eq!(codec::decode::<Value>(&numbers.reply().await.unwrap()).unwrap(), Value::Null);
    // Given up after one: the generator is closed, and the object serves the next caller.
    let mut endless = scene.open("counter.upto", json!({"count": 1_000_000_000}), WATCHDOG).await;
    assert!(endless.next().await.is_some());
    drop(endless);
    assert_eq!(scene.call("counter.add", json!({"amount": 1})).await, Ok(json!(1)));
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_death_reaches_every_caller_and_who_comes_back_takes_the_address_again() {
    let Some(python) = python() else { return };
    let scene = Scene::start().await;
    let mut service = scene.serve(&python).await;
    let running = scene.hang().await;
    // Sent behind it, and waiting at the kernel behind that.
    let behind = scene.open("counter.add", json!({"amount": 1}), WATCHDOG).await;
    let waiting = scene.open("counter.add", json!({"amount": 1}), WATCHDOG).await;
    service.kill();
    let refusal = running.reply().await.unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "service.gone"));
    for exchange in [behind, waiting] {
        // Sent to it, or still in the mailbox when that was closed.
        let refusal = exchange.reply().await.unwrap_err();
        assert!(["service.gone", "address.unserved"].contains(&refusal.reason.as_str()), "{refusal:?}");
    }
    scene.until("its address is free", || !scene.is_served()).await;
    let nobody = scene.call("counter.add", json!({"amount": 1})).await.unwrap_err();
    assert_eq!(nobody.code, Code::NoResponders);
    // Its state was the object's, and went with it.
    let _again = scene.serve(&python).await;
    assert_eq!(scene.call("counter.add", json!({"amount": 1})).await, Ok(json!(1)));
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_death_ends_its_streams_behind_what_had_come() {
    let Some(python) = python() else { return };
    let scene = Scene::start().await;
    let mut service = scene.serve(&python).await;
    let mut numbers = scene.open("counter.upto", json!({"count": 1_000_000_000}), WATCHDOG).await;
    assert_eq!(codec::decode::<u64>(&numbers.next().await.unwrap()), Ok(0));
    service.kill();
    let mut next = 1;
    while let Some(item) = numbers.next().await {
        assert_eq!(codec::decode::<u64>(&item), Ok(next));
        next += 1;
    }
    let refusal = numbers.reply().await.unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "service.gone"));
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_one_is_refused_with_the_name_of_the_first() {
    let Some(python) = python() else { return };
    let scene = Scene::start().await;
    let first = scene.serve(&python).await;
    let mut second = scene.command(&python);
    let second = tokio::task::spawn_blocking(move || second.output().unwrap()).await.unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    let holder = format!("(pid {})", first.0.id());
    assert!(
        !second.status.success() && said.contains("is served already, by") && said.contains(&holder),
        "{said}"
    );
    assert_eq!(scene.call("counter.add", json!({"amount": 1})).await, Ok(json!(1)));
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_travels_and_a_crowd_is_bounded() {
    let Some(python) = python() else { return };
    let scene = Scene::start().await;
    let _service = scene.serve(&python).await;
    let running = scene.hang().await;
    let late = scene.open("counter.add", json!({"amount": 1}), Duration::from_millis(50)).await;
    assert_eq!(late.reply().await.unwrap_err().code, Code::Deadline);
    let mut crowd = Vec::new();
    for _ in 0..16 {
        crowd.push(scene.open("counter.add", json!({"amount": 1}), WATCHDOG).await);
    }
    // Two are sent, four may wait: of the others each is refused at once.
    let refused = crowd.pop().unwrap().reply().await.unwrap_err();
    assert_eq!(refused.code, Code::Exhausted);
    drop((running, crowd));
    scene.kernel.shutdown().await;
}
