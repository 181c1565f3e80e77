//! Limits of a task, with real Python that goes beyond them: what happens, what is said, and what it costs.
//!
//! | limit | kept by | beyond it |
//! |---|---|---|
//! | `timeout` | the DAG tracker | the attempt fails (`task.timeout`), `retries` count |
//! | `memory` | sampling of the worker's tree | the tree is killed (`worker.oom`, with the bytes measured), `retries` count |
//! | `processes` | the same | the tree is killed (`limit.processes`), `retries` count |
//! | `open_files`, `file_size` | RLIMIT_NOFILE, RLIMIT_FSIZE | `OSError` in the task (`limit.…`), `retries` count |

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use serde_json::Value;
use support::House;
use support::runs::text;

const STEPS: &str = r#"
import os
import subprocess
import sys
import time

def grow():
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)))
        time.sleep(0.002)

def grow_in_a_child():
    subprocess.run([sys.executable, "-c", "import os, time\nheld = []\nwhile True:\n    held.append(os.urandom(1 << 20))\n    time.sleep(0.002)"])

def fork():
    children = [subprocess.Popen(["sleep", "600"]) for _ in range(8)]
    for child in children:
        child.wait()

def open_many():
    held = [open("/dev/null") for _ in range(500)]

def write_much(path):
    print("before", "x" * 1000)
    with open(path, "wb") as file:
        for _ in range(100):
            file.write(b"x" * 100_000)

def sleep():
    time.sleep(600)

def pages():
    with open("/proc/self/status") as status:
        assert "THP_enabled:\t0" not in status.read()

def within(path, after=None):
    held = [bytearray(1 << 20), [open("/dev/null") for _ in range(200)]]
    child = subprocess.run(["true"])
    with open(path, "wb") as file:
        file.write(b"x" * 100_000)
    return os.getpid()
"#;

/// Runs one task and gives it as it ended.
fn run(house: &House, flow: &str) -> Value {
    let ended = house.ended(&house.start(&format!("{flow}.toml")));
    ended["tasks"].as_array().unwrap()[0].clone()
}

#[test]
fn beyond_its_memory_or_its_processes_a_task_is_killed_on_evidence() {
    let memory = "resources = { memory = \"192MiB\" }\n";
    let house = House::with(
        STEPS,
        &[
            ("grow", &format!("[tasks.t]\nrun = \"steps:grow\"\n{memory}")),
            ("child", &format!("[tasks.t]\nrun = \"steps:grow_in_a_child\"\n{memory}")),
            (
                "fork",
                "[tasks.t]\nrun = \"steps:fork\"\nprocesses = 4\nretries = 1\nbackoff = { initial_ms = 1 }\n",
            ),
        ],
    );
    for flow in ["grow", "child"] {
        let task = run(&house, flow);
        let death = &task["certificates"][0]["death"];
        assert_eq!(
            (text(&task["error"]["reason"]), text(&death["tag"])),
            ("worker.oom", "out_of_memory"),
            "{task:#}"
        );
        assert_eq!(death["limit_bytes"], 192 << 20);
        assert!(death["measured_bytes"].as_u64().unwrap() > 192 << 20);
        assert_eq!(
            task["certificates"].as_array().unwrap().len(),
            1,
            "without retries it is not tried again"
        );
    }
    let task = run(&house, "fork");
    assert_eq!(text(&task["error"]["reason"]), "limit.processes", "{task:#}");
    let certificates = task["certificates"].as_array().unwrap();
    assert_eq!(certificates.len(), 2, "one retry: {task:#}");
    for certificate in certificates {
        let death = &certificate["death"];
        assert_eq!((text(&death["tag"]), death["limit"].as_u64()), ("too_many_processes", Some(4)));
        assert!(death["counted"].as_u64().unwrap() > 4);
    }
}

#[test]
fn beyond_its_files_or_its_time_a_task_fails_and_its_worker_lives_on() {
    let write =
        "[tasks.t]\nrun = \"steps:write_much\"\nfile_size = \"1MiB\"\nwith = { path = \"HEREmuch\" }\n";
    let within = "[tasks.t]\nrun = \"steps:within\"\nfile_size = \"1MiB\"\nprocesses = 4\nopen_files = 300\n\
                  resources = { memory = \"1GiB\" }\nwith = { path = \"HERElittle\" }\n";
    let house = House::with(
        STEPS,
        &[
            ("open", "[tasks.t]\nrun = \"steps:open_many\"\nopen_files = 64\n"),
            ("write", write),
            ("sleep", "[tasks.t]\nrun = \"steps:sleep\"\ntimeout = \"200ms\"\n"),
            ("within", within),
        ],
    );
    for (flow, reason) in
        [("open", "limit.open_files"), ("write", "limit.file_size"), ("sleep", "task.timeout")]
    {
        let task = run(&house, flow);
        assert_eq!(text(&task["error"]["reason"]), reason, "{task:#}");
        assert!(task["error"]["help"].is_string(), "{task:#}");
        assert!(task["certificates"].as_array().is_none_or(Vec::is_empty), "{task:#}");
    }
    let task = run(&house, "within");
    assert_eq!(text(&task["state"]), "succeeded", "the limits of others are gone: {task:#}");
}

/// The kernel's allocator turns them off for its own process, and what is turned off is inherited.
#[test]
fn workers_have_the_huge_pages_that_the_kernel_does_without() {
    let house = House::with(STEPS, &[("pages", "[tasks.t]\nrun = \"steps:pages\"\n")]);
    let task = run(&house, "pages");
    assert_eq!(text(&task["state"]), "succeeded", "{task:#}");
}

#[test]
fn a_limit_that_nobody_can_keep_is_refused_before_anything_runs() {
    let house = House::with(
        STEPS,
        &[
            ("none", "[tasks.t]\nrun = \"steps:sleep\"\nprocesses = 0\n"),
            ("few", "[tasks.t]\nrun = \"steps:sleep\"\nopen_files = 3\n"),
            ("odd", "[tasks.t]\nrun = \"steps:sleep\"\nfile_size = \"much\"\n"),
        ],
    );
    for (flow, says) in [("none", "`processes`"), ("few", "`open_files`"), ("odd", "file_size")] {
        let refused = house.output(&["validate", &format!("{flow}.toml")]);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && told.contains(says), "{flow}: {told}");
    }
}
