//! A program in another process that serves operations: in Rust, and in any language that can write a line of JSON.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eclosion::Kernel;
use eclosion::client::{Client, Service, Serving};
use eclosion::schemas::client::{Client as _, Items};
use eclosion::schemas::operation::{Durability, NoItem, Operation, Role};
use eclosion::schemas::{Code, Error};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, Semaphore};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// It hangs.
const WATCHDOG: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Number {
    number: u64,
}

macro_rules! operation {
    ($name:ident, $wire:literal, $reply:ty, $item:ty, $streams:literal) => {
        struct $name;
        impl Operation for $name {
            type Request = Number;
            type Reply = $reply;
            type Item = $item;
            const NAME: &'static str = $wire;
            const ADDRESS: &'static str = "/abacus";
            const ROLE: Role = Role::View;
            const DURABILITY: Durability = Durability::Call;
            const STREAMS: bool = $streams;
            const DOC: &'static str = "A test's.";
            fn example() -> Number {
                Number { number: 1 }
            }
        }
    };
}

operation!(Double, "abacus.double", Number, NoItem, false);
operation!(Hold, "abacus.hold", Number, NoItem, false);
operation!(Count, "abacus.count", Number, Number, true);
operation!(Spell, "abacus.spell", String, NoItem, false);
operation!(Other, "abacus.other", Number, NoItem, false);

fn one(number: u64) -> Number {
    Number { number }
}

/// What the served side saw.
struct Seen {
    holding: Notify,
    left: Semaphore,
    counted: AtomicU64,
}

impl Default for Seen {
    fn default() -> Self {
        Self { holding: Notify::new(), left: Semaphore::new(0), counted: AtomicU64::new(0) }
    }
}

impl Seen {
    /// Returns once a handler's future more is gone.
    async fn left(&self) {
        watched(self.left.acquire()).await.unwrap().forget();
    }
}

/// Says that a handler's future is gone.
struct Leaving(Arc<Seen>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.left.add_permits(1);
    }
}

fn abacus(seen: &Arc<Seen>) -> Service {
    let (holding, counting) = (Arc::clone(seen), Arc::clone(seen));
    Service::new("/abacus")
        .operation::<Double, _, _>(|request, _| async move {
            assert!(request.number != 13, "as it was asked to");
            match request.number.checked_mul(2) {
                Some(number) => Ok(one(number)),
                None => Err(Error::invalid("abacus.beads", "there are not enough beads")),
            }
        })
        .operation::<Hold, _, _>(move |_, _| {
            let leaving = Leaving(Arc::clone(&holding));
            async move {
                leaving.0.holding.notify_one();
                std::future::pending().await
            }
        })
        .operation::<Count, _, _>(move |request, mut called| {
            let leaving = Leaving(Arc::clone(&counting));
            async move {
                for number in 0..request.number {
                    called.item(one(number)).await?;
                    leaving.0.counted.fetch_add(1, Ordering::SeqCst);
                }
                Ok(request)
            }
        })
}

struct Scene {
    kernel: Kernel,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/kernel.sock");
        let kernel = Kernel::builder().ephemeral().listen(&socket).start().await.unwrap();
        Self { kernel, socket, _directory: directory }
    }

    async fn serve(&self, seen: &Arc<Seen>) -> Result<Serving, Error> {
        abacus(seen).serve(&self.socket).await
    }
}

async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, work).await.unwrap()
}

/// In process and attached alike.
async fn is_served<C: eclosion::Client>(client: &C, seen: &Seen) {
    assert_eq!(client.call::<Double>(one(21)).await, Ok(one(42)));
    let refused = client.call::<Double>(one(u64::MAX)).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Invalid, "abacus.beads"));
    let malformed = client.call_json(Double::NAME, &json!({"number": "two"})).await.unwrap_err();
    assert_eq!((malformed.code, malformed.reason.as_str()), (Code::Invalid, "request.malformed"));
    let panicked = client.call::<Double>(one(13)).await.unwrap_err();
    assert_eq!((panicked.code, panicked.reason.as_str()), (Code::Internal, "service.panicked"));
    let described = client.describe(Double::NAME).await.unwrap();
    assert_eq!((&described["address"], &described["example"]), (&json!("/abacus"), &json!({"number": 1})));

    let mut items = client.stream::<Count>(one(300)).await.unwrap();
    let mut counted = Vec::new();
    while let Some(item) = items.next().await {
        counted.push(item.unwrap().number);
    }
    assert_eq!(counted, (0..300).collect::<Vec<_>>());
    assert_eq!(items.reply().await, Ok(one(300)));
    seen.left().await;

    let before = seen.counted.load(Ordering::SeqCst);
    let mut endless = client.stream::<Count>(one(u64::MAX)).credit(4).await.unwrap();
    assert_eq!(endless.next().await, Some(Ok(one(0))));
    drop(endless);
    seen.left().await;
    // No more than credit has let through at each of the two joints.
    let produced = seen.counted.load(Ordering::SeqCst) - before;
    assert!(produced <= 256, "{produced}");

    let held = client.call::<Hold>(one(1)).deadline(Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(held.code, Code::Deadline);
    seen.left().await;
    assert_eq!(client.call::<Double>(one(1)).await, Ok(one(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_rust_serves_operations_to_callers_of_every_kind() {
    let (scene, seen) = (Scene::new().await, Arc::<Seen>::default());
    let _serving = scene.serve(&seen).await.unwrap();
    watched(is_served(&scene.kernel.client(), &seen)).await;
    watched(is_served(&Client::connect(&scene.socket).await.unwrap(), &seen)).await;
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_has_one_server_and_is_free_again_when_that_leaves() {
    let (scene, seen) = (Scene::new().await, Arc::<Seen>::default());
    let first = scene.serve(&seen).await.unwrap();
    let second = scene.serve(&seen).await.unwrap_err();
    assert_eq!((second.code, second.reason.as_str()), (Code::AlreadyExists, "operation.name"));
    let elsewhere = Service::new("/other").operation::<Double, _, _>(|request, _| async move { Ok(request) });
    let third = elsewhere.serve(&scene.socket).await.unwrap_err();
    assert_eq!(third.reason, "operation.name", "an operation is one address's, whoever asks for it");
    assert!(third.message.contains("(pid ") && third.message.contains("/abacus"), "{third}");
    let taken = Service::new("/abacus").operation::<Other, _, _>(|request, _| async move { Ok(request) });
    let taken = taken.serve(&scene.socket).await.unwrap_err();
    assert_eq!((taken.code, taken.reason.as_str()), (Code::AlreadyExists, "address.taken"));
    let holder =
        format!("/abacus is served already, by eclosion-rust/{} (pid {})", VERSION, std::process::id());
    assert_eq!(taken.message, holder);
    let reserved = Service::new("/pool").operation::<Double, _, _>(|request, _| async move { Ok(request) });
    assert_eq!(reserved.serve(&scene.socket).await.unwrap_err().reason, "address.reserved");
    // What was refused has taken nothing from who was there.
    let client = scene.kernel.client();
    assert_eq!(client.call::<Double>(one(3)).await, Ok(one(6)));

    drop(first);
    let again = async {
        loop {
            match scene.serve(&seen).await {
                Ok(serving) => return serving,
                // The kernel has not seen yet that the first one left.
                Err(refusal) => assert_eq!(refusal.code, Code::AlreadyExists),
            }
        }
    };
    let _again = watched(again).await;
    assert_eq!(scene.kernel.client().call::<Double>(one(4)).await, Ok(one(8)));
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_death_reaches_callers_and_streams_behind_what_had_come() {
    let (scene, seen) = (Scene::new().await, Arc::<Seen>::default());
    let serving = scene.serve(&seen).await.unwrap();
    let (local, attached) = (scene.kernel.client(), Client::connect(&scene.socket).await.unwrap());
    let holding = tokio::spawn(async move { local.call::<Hold>(one(1)).await });
    watched(seen.holding.notified()).await;
    let mut items = attached.stream::<Count>(one(u64::MAX)).credit(2).await.unwrap();
    assert_eq!(watched(items.next()).await, Some(Ok(one(0))));

    drop(serving);
    let told = watched(holding).await.unwrap().unwrap_err();
    assert_eq!((told.code, told.reason.as_str()), (Code::Unavailable, "service.gone"));
    let mut next = 1;
    while let Some(item) = watched(items.next()).await {
        assert_eq!(item, Ok(one(next)), "what had come, in its order");
        next += 1;
    }
    let told = watched(items.reply()).await.unwrap_err();
    assert_eq!((told.code, told.reason.as_str()), (Code::Unavailable, "service.gone"));
    assert!(told.message.contains("eclosion-rust/"), "{told}");
    // And the other way: nobody computes on for callers that are told already.
    seen.left().await;
    seen.left().await;
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_kernel_is_told_and_ends_what_was_in_hand() {
    let (scene, seen) = (Scene::new().await, Arc::<Seen>::default());
    let serving = scene.serve(&seen).await.unwrap();
    let client = scene.kernel.client();
    let _holding = tokio::spawn(async move { client.call::<Hold>(one(1)).await });
    watched(seen.holding.notified()).await;
    scene.kernel.shutdown().await;
    assert_eq!(watched(serving.closed()).await.code, Code::Unavailable);
    seen.left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_for_a_frame_is_one_calls_error() {
    let scene = Scene::new().await;
    let service = Service::new("/abacus")
        .operation::<Spell, _, _>(|request, _| async move { Ok("x".repeat(request.number as usize)) });
    let _serving = service.serve(&scene.socket).await.unwrap();
    let client = Client::connect(&scene.socket).await.unwrap();
    let refused = watched(async { client.call::<Spell>(one(1 << 24)).await }).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Exhausted, "frame.size"));
    assert_eq!(watched(async { client.call::<Spell>(one(2)).await }).await.unwrap(), "xx");
    scene.kernel.shutdown().await;
}

/// A service as a shell could write it.
struct Lines(BufReader<tokio::net::UnixStream>);

impl Lines {
    async fn say(&mut self, line: Value) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        watched(self.0.read_line(&mut line)).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_speaks_lines_serves_too() {
    let scene = Scene::new().await;
    let mut lines = Lines(BufReader::new(tokio::net::UnixStream::connect(&scene.socket).await.unwrap()));
    lines.say(json!({"type": "hello", "client": "shell", "api": 1, "role": "service"})).await;
    assert_eq!(lines.hear().await["role"], "service");
    let operations = json!([
        {"name": "abacus.double", "role": "view"},
        {"name": "abacus.count", "role": "view", "streams": true},
    ]);
    let declaration = json!({"addresses": [{"address": "/abacus", "operations": operations}]});
    lines.say(json!({"type": "call", "stream": 1, "method": "service.declare", "body": declaration})).await;
    let declared = lines.hear().await;
    assert!(declared["body"]["describe_hash"].is_string() && declared["end"] == true, "{declared}");

    let client = scene.kernel.client();
    let caller = client.clone();
    let calling = tokio::spawn(async move { caller.call::<Double>(one(21)).await });
    let call = lines.hear().await;
    assert_eq!(
        (&call["type"], &call["method"], &call["body"]),
        (&json!("call"), &json!("abacus.double"), &json!({"number": 21}))
    );
    lines.say(json!({"type": "data", "stream": call["stream"], "end": true, "body": {"number": 42}})).await;
    assert_eq!(watched(calling).await.unwrap(), Ok(one(42)));

    let caller = client.clone();
    let calling = tokio::spawn(async move { caller.call::<Double>(one(1)).await });
    let call = lines.hear().await;
    let error = json!({"code": "invalid", "reason": "abacus.beads", "message": "no beads"});
    lines.say(json!({"type": "error", "stream": call["stream"], "body": error})).await;
    assert_eq!(watched(calling).await.unwrap().unwrap_err().reason, "abacus.beads");

    let mut items = client.stream::<Count>(one(2)).await.unwrap();
    let call = lines.hear().await;
    for number in 0..2 {
        lines.say(json!({"type": "data", "stream": call["stream"], "body": {"number": number}})).await;
        assert_eq!(watched(items.next()).await, Some(Ok(one(number))));
    }
    drop(items);
    assert_eq!(lines.hear().await["type"], "cancel");
    drop(lines);
    let gone = async { while client.call::<Double>(one(1)).await.unwrap_err().code != Code::NoResponders {} };
    watched(gone).await;
    scene.kernel.shutdown().await;
}
