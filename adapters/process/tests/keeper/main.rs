//! The keeper with real processes.
//!
//! This binary plays every part: without an argument it runs each test in a process of its own, with a marker in the
//! environment that everything started there inherits; `keeper` is the role that the client starts; `kernel` is a
//! client that is there to be killed. After each test nothing may bear its marker.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and this binary is its own runner"
)]

mod cases;
mod world;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use eclosion_process::KeeperOptions;

/// No test takes longer; one that hangs is killed with all that it started.
const WATCHDOG: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [
            "keeper",
            "--instance",
            instance,
            "--dir",
            dir,
            "--grace-ms",
            grace_ms,
            "--temporary",
            temporary,
            ref groups @ ..,
        ] => eclosion_process::main(KeeperOptions {
            instance: instance.into(),
            dir: dir.into(),
            grace_ms: grace_ms.parse().unwrap(),
            temporary: vec![temporary.into()],
            groups: groups.get(1).map(Into::into),
        }),
        ["kernel", dir, grace_ms, workers] => {
            world::doomed_kernel(dir, grace_ms.parse().unwrap(), workers.parse().unwrap())
        }
        ["test", name] => run_one(name),
        _ => run_all(&words),
    }
}

fn run_one(name: &str) -> ExitCode {
    let (_, test) = cases::ALL.iter().find(|(known, _)| *known == name).expect("a known test");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test());
    ExitCode::SUCCESS
}

fn run_all(words: &[&str]) -> ExitCode {
    if words.contains(&"--list") {
        cases::ALL.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filter = words.iter().find(|word| !word.starts_with('-')).copied().unwrap_or("");
    let chosen: Vec<_> =
        cases::ALL.iter().map(|(name, _)| *name).filter(|name| name.contains(filter)).collect();
    println!("\nrunning {} tests", chosen.len());
    let failed = chosen.iter().filter(|name| !passes(name)).count();
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    let passed = chosen.len() - failed;
    let filtered = cases::ALL.len() - chosen.len();
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out\n"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes(name: &str) -> bool {
    let marker = format!("{name}-{}", std::process::id());
    let started = Instant::now();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["test", name])
        .env(world::MARKER, &marker)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let ended = world::wait_for_end(child.id(), WATCHDOG);
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let left = world::kill_marked(&marker);
    let passed = ended && status.success() && left.is_empty();
    println!(
        "test {name} ... {} ({} ms)",
        if passed { "ok" } else { "FAILED" },
        started.elapsed().as_millis()
    );
    if !passed {
        println!("  {status}, ended by itself: {ended}, left behind: {left:?}");
    }
    passed
}
