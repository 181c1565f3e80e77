//! Schedules on the real binary: what is previewed, what a tick starts, and that a kernel which is killed again and again
//! starts each tick's run once.
//!
//! No sleeps: what is waited for is asked for until it is there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use binary::eclosion;

/// Far more than anything here takes; a watchdog, and no claim.
const PATIENCE: Duration = Duration::from_secs(120);

struct House(TempDir);

impl House {
    fn new() -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        fs::write(house.path("steps.py"), "def beat():\n    return 1\n").unwrap();
        let flow = "schema = \"eclosion/flow/v1\"\nname = \"beat\"\n[tasks.beat]\nrun = \"steps:beat\"\n";
        fs::write(house.path("flow.toml"), flow).unwrap();
        house
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn output(&self, words: &[&str]) -> Output {
        eclosion(self.0.path(), words).output().unwrap()
    }

    /// The document that it prints.
    fn ask(&self, words: &[&str]) -> Value {
        let output = self.output(&[words, &["--json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&text).unwrap()
    }

    fn refusal(&self, words: &[&str]) -> (Option<i32>, String) {
        let output = self.output(words);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn ticks(&self, name: &str) -> Vec<Value> {
        self.ask(&["schedule", "history", name, "--limit", "1000"])["ticks"].as_array().unwrap().clone()
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} did not come");
        }
    }

    fn kill(&self) {
        let pid = self.ask(&["status"])["pid"].as_u64().unwrap();
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        assert!(killed.success());
        // The next kernel says so itself if this one still holds the directory; that it is gone is seen here.
        self.until("its end", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
            (stat.is_empty() || state.starts_with('Z')).then_some(())
        });
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.output(&["down"]);
    }
}

fn instants(tick: &Value, every_ms: u64) -> Vec<u64> {
    let first = tick["scheduled"].as_u64().unwrap();
    let last = tick["last"].as_u64().unwrap_or(first);
    let all: Vec<u64> = (first..=last).step_by(usize::try_from(every_ms).unwrap()).collect();
    assert_eq!(all.len() as u64, tick["count"].as_u64().unwrap(), "{tick}");
    all
}

#[test]
fn a_kernel_that_is_killed_around_ticks_starts_each_run_once() {
    const EVERY_MS: u64 = 500;
    let house = House::new();
    house.ask(&["up"]);
    let words = ["schedule", "add", "beat", "--every", "500ms", "--grace", "0s", "--misfire", "run_all:1000"];
    let set = house.ask(&[&words[..], &["--overlap", "allow:64", "flow.toml"]].concat());
    assert_eq!(set["change"], "created");
    for round in 0..5 {
        let before = house.ticks("beat").len();
        house.until("a tick", || (house.ticks("beat").len() > before + round % 2).then_some(()));
        house.kill();
        house.ask(&["up"]);
    }
    house.ask(&["schedule", "pause", "beat"]);
    let has_run = |tick: &Value| tick["state"] == "skipped" || tick["run"].is_string();
    let ticks = house.until("every start", || {
        let ticks = house.ticks("beat");
        ticks.iter().all(has_run).then_some(ticks)
    });

    assert_eq!(ticks.last().unwrap()["n"], 0, "the history is complete");
    let mut met: Vec<u64> = ticks.iter().flat_map(|tick| instants(tick, EVERY_MS)).collect();
    met.sort_unstable();
    let first = met[0];
    let expected: Vec<u64> = (0..met.len() as u64).map(|n| first + n * EVERY_MS).collect();
    assert_eq!(met, expected, "every instant once, and none is missing");

    let started: Vec<&str> = ticks.iter().filter_map(|tick| tick["run"].as_str()).collect();
    let distinct: BTreeSet<&str> = started.iter().copied().collect();
    assert_eq!(distinct.len(), started.len(), "a run of its own for each tick");
    let runs = house.ask(&["runs", "ls", "--limit", "1000"])["runs"].as_array().unwrap().clone();
    let there: BTreeSet<&str> = runs.iter().filter_map(|run| run["run"].as_str()).collect();
    assert_eq!(there, distinct, "no run but those of the ticks");
    assert!(started.len() >= 5, "{started:?}");
}

#[test]
fn a_tick_calls_an_operation_and_keeps_its_answer() {
    let house = House::new();
    house.ask(&["up"]);
    house.ask(&["schedule", "add", "look", "--every", "200ms", "--call", "run.list", "{\"limit\": 3}"]);
    let ended = house
        .until("an answer", || house.ticks("look").into_iter().find(|tick| tick["state"] == "succeeded"));
    assert_eq!(ended["reply"]["runs"], Value::Array(Vec::new()));
    house.ask(&["schedule", "pause", "look", "--reason", "enough"]);
    let view = house.ask(&["schedule", "show", "look"]);
    assert_eq!(view["state"], "paused");
    assert!(view["why"][0].as_str().unwrap().contains("enough"), "{view}");
    let fired = house.ask(&["schedule", "trigger", "look"]);
    let n = fired["n"].as_u64().unwrap();
    let manual = house.until("the answer", || {
        let is_it = |tick: &Value| tick["n"] == n && tick["state"] == "succeeded";
        house.ticks("look").into_iter().find(is_it)
    });
    assert_eq!(manual["manual"], true);
    house.ask(&["schedule", "rm", "look"]);
    assert_eq!(house.ask(&["schedule", "ls"])["schedules"], Value::Array(Vec::new()));
}

#[test]
fn what_would_fail_at_every_tick_is_refused_at_once_with_the_next_command() {
    let house = House::new();
    house.ask(&["up"]);
    let add = |rest: &[&str]| house.refusal(&[&["schedule", "add", "x"], rest].concat());
    for (rest, code, says) in [
        (&["--every", "1m", "--call", "run.lst"][..], 3, "did you mean run.list?"),
        (&["--every", "1m", "--call", "kernel.stop"], 8, "a schedule has operate"),
        (&["--every", "1m", "--call", "run.get", "{}"], 2, "eclosion describe run.get"),
        (&["--every", "1m", "--call", "schedule.trigger", "{\"name\": \"x\"}"], 2, "for ever"),
        (&["--cron", "0 25 * * *", "flow.toml"], 2, "hour"),
        (&["--cron", "0 2 * * *", "--zone", "Europe/Berln", "flow.toml"], 2, "did you mean Europe/Berlin?"),
        (&["--at", "2020-01-01T00:00:00Z", "flow.toml"], 2, "choose a time to come"),
        (&["--every", "1m"], 2, "required"),
        (&["--every", "1m", "--cron", "0 2 * * *", "flow.toml"], 2, "cannot be used with"),
        (&["--every", "10", "flow.toml"], 2, "such as 10m"),
    ] {
        let (found, told) = add(rest);
        assert!(found == Some(code) && told.contains(says), "{rest:?}: {found:?} {told}");
    }
    let (code, told) = house.refusal(&["schedule", "show", "nightli"]);
    assert!(code == Some(3) && told.contains("eclosion schedule ls"), "{told}");
    house.ask(&["schedule", "add", "x", "--every", "1h", "flow.toml"]);
    assert_eq!(house.ask(&["schedule", "add", "x", "--every", "60m", "flow.toml"])["change"], "unchanged");
    let (code, told) = add(&["--every", "2h", "flow.toml"]);
    assert!(code == Some(4) && told.contains("--replace"), "{told}");
    let replaced = house.ask(&["schedule", "add", "x", "--every", "2h", "flow.toml", "--replace"]);
    assert_eq!(replaced["change"], "replaced");
    // What was set is what ticks start; whoever changes its code is told so.
    let why = |house: &House| house.ask(&["schedule", "show", "x"])["why"].to_string();
    assert!(!why(&house).contains("has changed"), "{}", why(&house));
    let steps = house.path("steps.py");
    fs::write(&steps, format!("{}\n# changed\n", fs::read_to_string(&steps).unwrap())).unwrap();
    let told = why(&house);
    assert!(told.contains("the code of the flow") && told.contains("schedule add x"), "{told}");
    let replaced = house.ask(&["schedule", "add", "x", "--every", "2h", "flow.toml", "--replace"]);
    assert_eq!(replaced["change"], "replaced");
    assert!(!why(&house).contains("has changed"), "{}", why(&house));
}

#[test]
fn what_could_be_scheduled_is_previewed_without_a_kernel() {
    let house = House::new();
    let words = ["schedule", "next", "--cron", "30 2 * * *", "--zone", "Europe/Berlin", "-n", "2"];
    let next = house.ask(&[&words[..], &["--after", "2027-03-27T12:00:00Z"]].concat());
    assert_eq!(next["schema"], "eclosion/schedule-next/v1");
    let shown: Vec<_> = next["ticks"].as_array().unwrap().iter().map(|tick| tick["local"].clone()).collect();
    assert_eq!(shown, ["2027-03-28T03:30:00+02:00", "2027-03-29T02:30:00+02:00"]);
    assert_eq!(next["ticks"][0]["rule"], "shifted_forward");
    let (code, told) = house.refusal(&["schedule", "next", "nightly"]);
    assert!(code == Some(5) && told.contains("eclosion up"), "{told}");
}
