//! A kernel takes nothing of the process that it is in, and two of them share nothing.
//!
//! One test, because it looks at the whole process.

#![expect(clippy::unwrap_used, reason = "a test, helpers and all")]

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use eclosion::schemas::operation::Spec;
use eclosion::{Kernel, blocking};
use eclosion_test_embedder::Greeter;
use eclosion_test_embedder::operations::{Hello, HelloRequest};

/// What Linux says of the signals that this process catches, ignores and blocks, and of the rights of files that it makes.
fn signals() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let kept = |line: &&str| ["SigCgt", "SigIgn", "SigBlk", "Umask"].iter().any(|key| line.starts_with(key));
    status.lines().filter(kept).map(str::to_owned).collect()
}

fn request() -> HelloRequest {
    HelloRequest { name: "Ada".into(), panic_once: false }
}

async fn start(directory: &Path) -> Kernel {
    let builder = Kernel::builder().below(directory).listen(directory.join("run/kernel.sock"));
    builder.operation(Spec::of::<Hello>()).actor(Greeter::default()).start().await.unwrap()
}

async fn two_share_nothing() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, two] = [start(directories[0].path()).await, start(directories[1].path()).await];
    assert_eq!(one.bus().ask::<Hello>(request()).await.unwrap().times, 1);
    assert_eq!(one.bus().ask::<Hello>(request()).await.unwrap().times, 2);
    assert_eq!(two.bus().ask::<Hello>(request()).await.unwrap().times, 1);
    one.shutdown().await;
    assert_eq!(two.bus().ask::<Hello>(request()).await.unwrap().times, 2);
    two.shutdown().await;
}

/// An actor's panic is told by the hook that the program has set, to whom it belongs.
async fn the_panic_hook_stays() {
    static HEARD: AtomicU32 = AtomicU32::new(0);
    std::panic::set_hook(Box::new(|_| _ = HEARD.fetch_add(1, Ordering::SeqCst)));
    let directory = tempfile::tempdir().unwrap();
    let kernel = start(directory.path()).await;
    let panics = HelloRequest { panic_once: true, ..request() };
    let answered = kernel.bus().ask::<Hello>(panics).await;
    kernel.shutdown().await;
    drop(std::panic::take_hook());
    assert_eq!((answered.unwrap().times, HEARD.load(Ordering::SeqCst)), (1, 1));
}

fn blocking_waits() {
    let builder = Kernel::builder().ephemeral().operation(Spec::of::<Hello>()).actor(Greeter::default());
    let kernel = blocking::Kernel::start(builder).unwrap();
    let mut changes = kernel.subscribe("greet/*").unwrap();
    assert_eq!(kernel.ask::<Hello>(request()).unwrap().times, 1);
    let change = changes.find_map(|delivery| match delivery {
        eclosion::bus::Delivery::Change(event) => Some(event.to_json().unwrap()),
        _ => None,
    });
    assert_eq!(change, Some(1.into()));
    drop(changes);
    kernel.shutdown();
}

fn blocking_refuses_to_stop_a_runtime(runtime: &tokio::runtime::Runtime) {
    let inside = async { blocking::Kernel::start(Kernel::builder()).unwrap_err() };
    assert_eq!(runtime.block_on(inside).reason, "blocking.inside_runtime");
}

#[test]
fn a_kernel_takes_nothing_of_its_process() {
    let (signals_before, variables_before) = (signals(), std::env::vars_os().count());
    let directory_before = std::env::current_dir().unwrap();
    // Not even threads to run on: one that has a single thread, and that is this one, is enough.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(two_share_nothing());
    runtime.block_on(the_panic_hook_stays());
    blocking_refuses_to_stop_a_runtime(&runtime);
    drop(runtime);
    blocking_waits();
    assert_eq!(signals(), signals_before);
    assert_eq!(std::env::vars_os().count(), variables_before);
    assert_eq!(std::env::current_dir().unwrap(), directory_before);
    let has_subscriber = tracing::dispatcher::has_been_set();
    assert!(!has_subscriber, "somebody set a subscriber");
}
