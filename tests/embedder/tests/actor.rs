//! An application's actor is like one of ours, for the kernel, for the command line and for a client in another language.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test, helpers and all")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use eclosion::bus::InHand;
use eclosion::kernel::journal::Record;
use eclosion::schemas::events::Event;
use eclosion::schemas::operation::{NoItem, Operation, Spec};
use eclosion::schemas::{Code, Durability, Role, Seq};
use eclosion::{Handler, Kernel};
use eclosion_test_embedder::operations::{Hello, HelloReply, HelloRequest};
use eclosion_test_embedder::{GREETINGS, Greeted, Greeter};
use serde_json::Value;

async fn start(directory: &Path) -> Kernel {
    let builder = Kernel::builder().below(directory).listen(directory.join("run/kernel.sock"));
    builder.operation(Spec::of::<Hello>()).actor(Greeter::default()).start().await.unwrap()
}

fn hello(name: &str, panic_once: bool) -> HelloRequest {
    HelloRequest { name: name.into(), panic_once }
}

async fn greet(kernel: &Kernel, name: &str, panic_once: bool) -> HelloReply {
    kernel.bus().ask::<Hello>(hello(name, panic_once)).await.unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The command line, against the kernel below a directory.
async fn cli(directory: &Path, words: &'static [&'static str]) -> Option<Output> {
    let built = root().join("target/debug/eclosion");
    let binary = std::env::var_os("ECLOSION_BINARY").map_or(built, PathBuf::from);
    if !binary.exists() {
        eprintln!("SKIPPED the command line: no eclosion binary; cargo build -p eclosion-cli");
        return None;
    }
    let mut command = Command::new(binary);
    command.args(words).env("ECLOSION_SOCKET", directory.join("run/kernel.sock")).env("HOME", directory);
    Some(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap())
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_in_the_tree_and_on_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = start(directory.path()).await;
    if let Some(called) = cli(directory.path(), &["call", "greet.hello", r#"{"name":"Ada"}"#]).await {
        assert_eq!(json(&called), serde_json::json!({"text": "Hello, Ada!", "times": 1}));
        let tree = cli(directory.path(), &["tree", "--json"]).await.unwrap();
        let tree = String::from_utf8(tree.stdout).unwrap();
        assert!(tree.contains(r#""/greet""#), "{tree}");
        let described = cli(directory.path(), &["describe", "greet.hello"]).await.unwrap();
        assert_eq!(json(&described)["doc"], Hello::DOC);
        let refused = cli(directory.path(), &["call", "greet.hello", r#"{"name":""}"#]).await.unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains("greet.nobody"), "{said}");
    }
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_python_calls_it_and_sees_it_in_the_tree() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = start(directory.path()).await;
    let python = std::env::var_os("ECLOSION_TEST_PYTHON")
        .map_or_else(|| root().join("target/test-python/bin/python"), PathBuf::from);
    if python.exists() {
        let mut command = Command::new(python);
        command.arg("-c").arg(include_str!("client.py")).arg(directory.path().join("run/kernel.sock"));
        command.env("PYTHONPATH", root().join("python-workers/src"));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let greeted = serde_json::json!({"text": "Hello, Guido!", "times": 1});
        assert_eq!(json(&output), serde_json::json!({"greeted": greeted, "is_in_the_tree": true}));
    } else {
        eprintln!("SKIPPED the Python client: no {}; cargo t python makes it", python.display());
    }
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_panics_once_and_comes_back_with_what_it_knew() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = start(directory.path()).await;
    assert_eq!(greet(&kernel, "Ada", false).await.times, 1);
    // The message that killed the incarnation is answered by the next one.
    assert_eq!(greet(&kernel, "Ada", true).await.times, 2);
    let row = kernel.rows().into_iter().find(|row| row.address == "/greet").unwrap();
    assert_eq!((row.incarnation.0, row.restarts), (2, 1));
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_events_rows_and_views_are_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let first = start(directory.path()).await;
    greet(&first, "Ada", false).await;
    greet(&first, "Grace", false).await;
    first.shutdown().await;
    drop(first);

    let greeter = Greeter::default();
    let views = greeter.views();
    let builder = Kernel::builder().below(directory.path()).operation(Spec::of::<Hello>());
    let second = builder.actor(greeter).start().await.unwrap();
    assert_eq!(views.get("Ada").as_deref(), Some(&1));
    assert_eq!(greet(&second, "Ada", false).await.times, 2);
    assert_eq!(views.get("Ada").as_deref(), Some(&2));

    let reader = second.kernel().reader();
    let mut greeted = Vec::new();
    let mut visit = |record: Record| {
        greeted.extend(record.event::<Greeted>().map(|greeted| greeted.name.clone()));
        ControlFlow::Continue(())
    };
    reader.read(Seq(0), &[Greeted::KIND], &mut visit).unwrap();
    assert_eq!(greeted, ["Ada", "Grace", "Ada"]);
    assert!(reader.get(GREETINGS, b"Grace").unwrap().is_some());
    assert_eq!(reader.scan(GREETINGS, b"", false, 10).unwrap().len(), 2);
    second.shutdown().await;
}

macro_rules! declared {
    ($name:ident, $wire:literal, $address:literal) => {
        struct $name;
        impl Operation for $name {
            type Request = ();
            type Reply = ();
            type Item = NoItem;
            const NAME: &'static str = $wire;
            const ADDRESS: &'static str = $address;
            const ROLE: Role = Role::View;
            const DURABILITY: Durability = Durability::Call;
            const DOC: &'static str = "Is refused.";
            fn example() {}
        }
    };
}
declared!(Ours, "run.mine", "/greet");
declared!(OurAddress, "greet.mine", "/dag");
declared!(Nobodys, "hello", "/greet");

#[tokio::test]
async fn a_name_that_is_not_its_own_is_refused() {
    let refusal = async |spec| Kernel::builder().operation(spec).start().await.unwrap_err();
    let ours = refusal(Spec::of::<Ours>()).await;
    assert_eq!((ours.code, ours.reason.as_str()), (Code::Denied, "operation.reserved"));
    assert!(ours.message.contains("`run.mine`") && ours.help.is_some(), "{ours}");
    assert_eq!(refusal(Spec::of::<OurAddress>()).await.reason, "address.reserved");
    assert_eq!(refusal(Spec::of::<Nobodys>()).await.reason, "operation.name");
}

/// No crate of ours but the facade, and nothing of the facade that is not public.
#[test]
fn it_depends_on_the_library_alone() {
    let manifest = include_str!("../Cargo.toml");
    let ours: Vec<_> = manifest.lines().filter(|line| line.starts_with("eclosion")).collect();
    assert_eq!(ours, ["eclosion.workspace = true"]);
}

#[tokio::test]
async fn a_clash_is_refused_with_the_name_that_clashes() {
    let twice = Kernel::builder().operation(Spec::of::<Hello>()).operation(Spec::of::<Hello>());
    let refusal = twice.start().await.unwrap_err();
    assert_eq!(refusal.code, Code::AlreadyExists);
    assert!(refusal.message.contains("greet.hello"), "{refusal}");
    let deciders = Kernel::builder().actor(Greeter::default()).actor(Greeter::default());
    let refusal = deciders.start().await.unwrap_err();
    assert_eq!(refusal.reason, "event.decider");
    assert!(refusal.message.contains("greet.greeted"), "{refusal}");
    let addresses = Kernel::builder().service("/greet", || Silent).actor(Greeter::default());
    let refusal = addresses.start().await.unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::AlreadyExists, "address.taken"));
    assert!(refusal.message.contains("/greet"), "{refusal}");
}

struct Silent;

impl Handler for Silent {
    async fn handle(&mut self, _: InHand) {}
}
