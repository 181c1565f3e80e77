//! `eclosion pool …` and `down` on the real binary, with a real kernel and real Python: who acts is told what it meets,
//! nothing that was in hand is lost, and what kills workers is let in nowhere until it is released.
//!
//! No clock: tasks wait for files that are made here, and what is to happen is asked for until it is there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use support::House;
use support::runs::{text, workers};

const STEPS: &str = r#"
import os
import pathlib
import time

def wait(began, gate):
    pathlib.Path(began).write_text(str(os.getpid()))
    while not pathlib.Path(gate).exists():
        time.sleep(0.01)
    return os.getpid()

def double(n):
    return 2 * n

def total(numbers):
    return sum(numbers)

def crash(n):
    os.kill(os.getpid(), 11)
"#;

const WAITING: &str =
    "[tasks.wait]\nrun = \"steps:wait\"\nwith = { began = \"HEREbegan\", gate = \"HEREgate\" }\n";

#[test]
fn a_drain_finishes_what_is_in_hand_and_a_kill_has_it_tried_again() {
    let house = House::with(STEPS, &[("waits", WAITING)]);
    let run = house.start("waits.toml");
    let worker = house.worker_of("began");
    let killed = fs::read_to_string(house.path("began")).unwrap();

    let dry = house.json(&["pool", "kill", &worker, "--dry-run"]);
    assert_eq!((text(&dry["schema"]), &dry["dry_run"]), ("eclosion/pool-act/v1", &Value::Bool(true)));
    assert_eq!(dry["attempts"][0]["task"], serde_json::json!({"run": run, "task": "wait"}));
    fs::remove_file(house.path("began")).unwrap();
    house.json(&["pool", "kill", &worker, "--reason", "a test"]);
    let second = house.worker_of("began");
    assert_ne!(fs::read_to_string(house.path("began")).unwrap(), killed);
    let dead = house.json(&["pool", "show", &worker]);
    let death = &dead["certificate"]["death"];
    assert_eq!(
        (death["signal"].as_i64(), text(&death["sender"])),
        (Some(9), "eclosion: killed by an operator: a test")
    );

    let drained = house.json(&["pool", "drain", "--reason", "a test"]);
    assert_eq!(
        (&drained["changed"], &drained["attempts"][0]["worker"]),
        (&Value::Bool(true), &Value::from(second.as_str()))
    );
    let other = house.start("waits.toml");
    assert_eq!(other, run, "an equal run that is unfinished is attached to");
    let pool = house.json(&["pool", "ls"]);
    assert_eq!(text(&pool["drained"]), "drained: a test");
    // Why the system does not keep limits is said exactly where it does not.
    let alone = text(&pool["containment"]) == "sampling";
    assert_eq!(pool["why_no_cgroup"].is_string(), alone, "{pool}");
    fs::write(house.path("gate"), "").unwrap();
    let ended = house.ended(&run);
    assert_eq!((text(&ended["run"]["state"]), ended["tasks"][0]["attempt"].as_u64()), ("succeeded", Some(2)));
    house.until(&["pool"], "no worker", |pool| workers(pool).is_empty());

    let waits = house.start("waits.toml");
    house.until(&["pool"], "a pending reason", |pool| pool["pending"][0]["reasons"][0]["tag"] == "drained");
    house.json(&["pool", "resume"]);
    assert_eq!(house.ended(&waits)["run"]["state"], "succeeded");

    let refused = house.output(&["pool", "cordon", "w-9-9"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{told}");
    assert!(told.contains("there is no worker w-9-9") && told.contains("eclosion pool ls"), "{told}");
}

#[test]
fn recycling_keeps_results_right() {
    let numbers: Vec<_> = (0..40).map(|n| n.to_string()).collect();
    let tasks = format!(
        "[tasks.double]\nrun = \"steps:double\"\neach = [{}]\nwith = {{ n = \"${{item}}\" }}\n\
         [tasks.total]\nrun = \"steps:total\"\nwith = {{ numbers = \"${{double}}\" }}\n",
        numbers.join(", ")
    );
    let house = House::with(STEPS, &[("sums", &tasks)]);
    fs::write(house.path("eclosion.toml"), "[pool]\nrecycle_attempts = 3\n").unwrap();
    let run = house.start("sums.toml");
    let ended = house.ended(&run);
    assert_eq!(ended["run"]["state"], "succeeded", "{ended:#}");
    let tasks = ended["tasks"].as_array().unwrap();
    assert!(tasks.iter().all(|task| task["certificates"].as_array().is_none_or(Vec::is_empty)), "{ended:#}");
    let value = house.json(&["artifact", "get", &format!("{run}/total")]);
    assert_eq!(value["value"], 2 * (0..40).sum::<i64>(), "{value:#}");
    let died = house.json(&["pool"])["died"].as_array().unwrap().len();
    assert!(died >= 41 / 3 - 4, "{died} workers were recycled");
}

#[test]
fn a_worker_that_is_old_or_large_ends_while_it_is_idle_and_says_why() {
    let double = "[tasks.double]\nrun = \"steps:double\"\nwith = { n = 2 }\n";
    for (setting, why) in [
        ("recycle_age_ms = 3000", "recycled at an age of"),
        ("recycle_rss_bytes = 1048576", "held while idle, above 1048576"),
    ] {
        let house = House::with(STEPS, &[("double", double)]);
        fs::write(house.path("eclosion.toml"), format!("[pool]\n{setting}\n")).unwrap();
        let ended = house.ended(&house.start("double.toml"));
        assert_eq!(ended["run"]["state"], "succeeded", "{setting}: {ended:#}");
        let died = |pool: &Value| pool["died"].as_array().is_some_and(|died| !died.is_empty());
        let pool = house.until(&["pool"], why, died);
        assert_eq!(pool["died"][0]["death"]["code"], 0, "{setting}: {pool:#}");
        let events =
            String::from_utf8(house.output(&["events", "--kind", "worker.stopping", "--json"]).stdout)
                .unwrap();
        assert!(events.contains(why), "{setting}: {events}");
    }
}

#[test]
fn three_real_deaths_quarantine_a_task_across_a_restart_until_it_is_released() {
    let crash = "[tasks.crash]\nrun = \"steps:crash\"\nwith = { n = 1 }\n";
    let house = House::with(STEPS, &[("first", crash), ("second", crash)]);
    let run = house.start("first.toml");
    let ended = house.ended(&run);
    assert_eq!(ended["run"]["error"]["reason"], "task.quarantined", "{ended:#}");
    let causes = ended["tasks"][0]["error"]["causes"].as_array().unwrap();
    assert!(causes.len() == 3 && causes.iter().all(|cause| text(cause).contains("SIGSEGV")), "{causes:?}");

    assert!(house.output(&["down"]).status.success());
    let equal = house.start("second.toml");
    let refused = house.ended(&equal);
    assert_eq!(refused["tasks"][0]["error"]["reason"], "task.quarantined", "{refused:#}");
    assert_eq!(refused["tasks"][0]["attempt"].as_u64().unwrap_or(0), 0, "no worker was spent on it");

    let listed = house.json(&["pool", "quarantine", "ls"]);
    let content = text(&listed["tasks"][0]["content"]).to_owned();
    assert_eq!(
        (text(&listed["schema"]), text(&listed["tasks"][0]["run"])),
        ("eclosion/quarantine/v1", run.as_str())
    );
    house.json(&["pool", "quarantine", "release", &content[..12], "--reason", "a test"]);
    let again = house.ended(&house.start("second.toml"));
    assert_eq!(
        again["tasks"][0]["certificates"].as_array().map(Vec::len),
        Some(3),
        "it was tried: {again:#}"
    );
}

#[test]
fn down_finishes_what_is_in_hand_and_in_a_hurry_leaves_it_to_the_next_kernel() {
    for (hurry, attempts) in [(false, 1), (true, 2)] {
        let house = House::with(STEPS, &[("waits", WAITING)]);
        let run = house.start("waits.toml");
        house.worker_of("began");
        if hurry {
            let left = house.json(&["down", "--timeout", "0"]);
            assert_eq!(left["unfinished"], 1);
            fs::write(house.path("gate"), "").unwrap();
        } else {
            let down = house.command(&["down", "--timeout", "60"]).stderr(Stdio::null()).spawn().unwrap();
            house.until(&["pool"], "a drained pool", |pool| {
                text(&pool["drained"]).contains("the kernel stops")
            });
            fs::write(house.path("gate"), "").unwrap();
            assert!(down.wait_with_output().unwrap().status.success());
        }
        assert!(house.output(&["up"]).status.success());
        assert_eq!(house.json(&["pool"])["drained"], Value::Null, "the next kernel serves");
        let ended = house.ended(&run);
        assert_eq!(ended["run"]["state"], "succeeded", "{ended:#}");
        assert_eq!(ended["tasks"][0]["attempt"], attempts, "{ended:#}");
    }
}
