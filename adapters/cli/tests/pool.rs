//! `eclosion pool …` on the real binary, with a real kernel and real Python: who acts is told what it meets, nothing
//! that was in hand is lost, and what kills workers is let in nowhere until it is released.
//!
//! No clock: tasks wait for files that are made here, and what is to happen is asked for until it is there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(90);
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

struct House(TempDir);

impl House {
    fn new(flows: &[(&str, &str)]) -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        fs::write(house.path("steps.py"), STEPS).unwrap();
        for (name, tasks) in flows {
            let tasks = tasks.replace("HERE", house.0.path().to_str().unwrap());
            let flow = format!("schema = \"eclosion/flow/v1\"\nname = \"{name}\"\n{tasks}");
            fs::write(house.path(&format!("{name}.toml")), flow).unwrap();
        }
        house
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn output(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eclosion"));
        command.args(words).current_dir(self.0.path()).stdin(Stdio::null());
        for name in ["ECLOSION_SOCKET", "ECLOSION_LISTEN", "ECLOSION_INSTANCE", "ECLOSION_CONFIG"] {
            command.env_remove(name);
        }
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("errors-cache");
        command
            .env("ECLOSION_STATE_DIR", self.path("state"))
            .env("ECLOSION_RUNTIME_DIR", self.path("run"))
            .env("ECLOSION_CACHE_DIR", cache)
            .env("XDG_CONFIG_HOME", self.path("config"));
        command.output().unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = self.output(&[words, &["--json"]].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn start(&self, flow: &str) -> String {
        self.json(&["run", flow, "--detach"])["run"].as_str().unwrap().to_owned()
    }

    /// Asks again until it is as wanted.
    fn until(&self, words: &[&str], what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let found = self.json(words);
            if wanted(&found) {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {found:#}");
        }
    }

    fn ended(&self, run: &str) -> Value {
        let is_over = |found: &Value| !["running", "cancelling"].contains(&text(&found["run"]["state"]));
        self.until(&["runs", "show", run], "the run's end", is_over)
    }

    fn worker_of(&self, began: &str) -> String {
        let begun = Instant::now();
        while fs::read_to_string(self.path(began)).is_ok_and(|pid| pid.is_empty())
            || !Path::new(&self.path(began)).exists()
        {
            assert!(begun.elapsed() < PATIENCE, "{began} did not begin");
            std::thread::yield_now();
        }
        let is_busy = |pool: &Value| workers(pool).iter().any(|worker| worker["state"] == "busy");
        let pool = self.until(&["pool"], "a busy worker", is_busy);
        let busy = workers(&pool).iter().find(|worker| worker["state"] == "busy").unwrap();
        text(&busy["worker"]).to_owned()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.output(&["down"]);
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn workers(pool: &Value) -> &[Value] {
    pool["workers"].as_array().unwrap()
}

const WAITING: &str =
    "[tasks.wait]\nrun = \"steps:wait\"\nwith = { began = \"HERE/began\", gate = \"HERE/gate\" }\n";

#[test]
fn a_drain_finishes_what_is_in_hand_and_a_kill_has_it_tried_again() {
    let house = House::new(&[("waits", WAITING)]);
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
    assert_eq!((text(&pool["drained"]), text(&pool["containment"])), ("drained: a test", "sampling"));
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
    let house = House::new(&[("sums", &tasks)]);
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
fn three_real_deaths_quarantine_a_task_across_a_restart_until_it_is_released() {
    let crash = "[tasks.crash]\nrun = \"steps:crash\"\nwith = { n = 1 }\n";
    let house = House::new(&[("first", crash), ("second", crash)]);
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
