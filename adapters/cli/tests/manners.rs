//! The binary as a script meets it: exit codes, which stream carries what, and a kernel that comes and goes.
//!
//! Each test has directories of its own; none of them needs Python.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use binary::eclosion;

struct House(TempDir);

impl House {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn say(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn command(&self, words: &[&str]) -> Command {
        eclosion(self.0.path(), words)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.say(&["down"]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_refusal_has_its_exit_code_and_ends_with_its_help() {
    let house = House::new();
    std::fs::write(house.0.path().join("bad.toml"), "schema = \"eclosion/flow/v1\"\nnaem = \"x\"\n").unwrap();
    for (words, code) in [
        (&["status"][..], 5),
        (&["run", "nowhere.toml"], 3),
        (&["run", "bad.toml"], 2),
        (&["run", "bad.toml", "--set", "seed"], 2),
        (&["status", "--instance", "../x"], 2),
    ] {
        let output = house.say(words);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(output.stdout.is_empty(), "{words:?}");
        assert!(said.starts_with("error: ") && said.contains("\nhelp: "), "{words:?}: {said}");
    }
    assert_eq!(house.say(&["frobnicate"]).status.code(), Some(2));
}

#[test]
fn an_error_is_a_document_for_who_asks_for_json() {
    let house = House::new();
    let output = house.say(&["status", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], "eclosion/error/v1");
    assert_eq!(document["reason"], "kernel.unreachable");
    let output = house.say(&["status", "--json", "--instance", "other"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["help"], "eclosion --instance other up");
}

#[test]
fn a_kernel_comes_up_answers_and_goes_down() {
    let house = House::new();
    for started in [true, false] {
        let output = house.say(&["up", "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let up: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(up["started"], started);
    }
    for (words, schema) in [
        (&["status"][..], "eclosion/status/v1"),
        (&["tree"], "eclosion/tree/v1"),
        (&["runs", "ls"], "eclosion/runs/v1"),
        (&["artifact", "ls"], "eclosion/artifacts/v1"),
        (&["pool"], "eclosion/pool/v1"),
        (&["ps"], "eclosion/processes/v1"),
        (&["dead", "ls"], "eclosion/dead-letters/v1"),
        (&["audit"], "eclosion/audit/v1"),
        (&["schedule", "ls"], "eclosion/schedules/v1"),
        (&["gc", "plan"], "eclosion/gc-plan/v1"),
        (&["gc", "log"], "eclosion/gc-log/v1"),
        (&["arb", "status"], "eclosion/arbitration/v1"),
        (&["arb", "ls"], "eclosion/leases/v1"),
        (&["cache", "ls"], "eclosion/cache/v1"),
        (&["service", "ls"], "eclosion/services/v1"),
        (&["describe", "run.start"], "eclosion/describe/v1"),
        (&["call", "kernel.ping"], "eclosion/reply/v1"),
        (&["doctor"], "eclosion/doctor/v1"),
    ] {
        let output = house.command(words).arg("--json").output().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["schema"], schema, "{words:?}");
    }
    for (words, code) in [
        (&["runs", "show", "nowhere"][..], 3),
        (&["artifact", "get", "nowhere/x"], 3),
        (&["call", "kernel.pin"], 3),
        (&["call", "run.get", "{\"run\": 3}"], 2),
        (&["call", "run.get", "{"], 2),
    ] {
        let output = house.say(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output.stderr));
    }
    assert!(house.say(&["down"]).status.success());
    assert_eq!(house.say(&["status"]).status.code(), Some(5));
}

#[test]
fn a_kernel_that_hangs_is_named_by_its_pid() {
    let house = House::new();
    let up: Value = serde_json::from_slice(&house.say(&["up", "--json"]).stdout).unwrap();
    let pid = up["pid"].to_string();
    let signal = |name| assert!(Command::new("kill").args([name, pid.as_str()]).status().unwrap().success());
    signal("-STOP");
    let told = [&["doctor"][..], &["down"]].map(|words| text(&house.say(words).stderr));
    signal("-KILL");
    let way_on = format!("kill -9 {pid}; ");
    assert!(told.iter().all(|told| told.contains(&way_on)), "{told:?}");
}

#[test]
fn completions_are_printed_for_every_shell() {
    let house = House::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&house.say(&["completion", shell]).stdout);
        for word in
            ["schedule", "gc", "arb", "pool", "artifact", "cache", "dead", "audit", "dry-run", "reason"]
        {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
}

#[test]
fn words_that_are_no_command_are_a_document_for_who_asked_for_one() {
    let house = House::new();
    for words in [&["stauts", "--json"][..], &["--json", "runs", "show"], &["pool", "kill", "--json", "--no"]]
    {
        let output = house.say(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&document["schema"], &document["reason"]),
            (&"eclosion/error/v1".into(), &"usage".into())
        );
        let message = document["message"].as_str().unwrap();
        assert!(!message.is_empty() && !message.starts_with("error"), "{message}");
        assert!(text(&output.stderr).starts_with("error: "), "people are told as ever");
    }
    assert!(house.say(&["stauts"]).stdout.is_empty());
    assert!(text(&house.say(&["--json", "--help"]).stdout).contains("Usage"), "help is help");
}

#[test]
fn status_says_where_the_kernel_is_reached_as_up_does() {
    let house = House::new();
    let up = text(&house.say(&["up"]).stdout);
    let socket = up.trim();
    assert!(text(&house.say(&["status"]).stdout).contains(socket));
    let status: Value = serde_json::from_slice(&house.say(&["status", "--json"]).stdout).unwrap();
    assert_eq!((&status["socket"], &status["state"]), (&socket.into(), &"ready".into()));
    // What the documents print: `up` gives the socket of a kernel that is up already, too.
    assert_eq!(text(&house.say(&["up"]).stdout), up);
}

#[test]
fn an_event_has_its_instant_and_is_whole_where_no_screen_is_too_narrow() {
    let house = House::new();
    let reason = "because ".repeat(40);
    house.say(&["up"]);
    assert!(house.say(&["restart", "/dag", "--reason", reason.trim()]).status.success());
    let said = text(&house.say(&["events", "--kind", "operator.acted"]).stdout);
    assert!(said.contains(reason.trim()) && !said.contains('…') && !said.contains(" ago"), "{said}");
    let instant = said.split_whitespace().nth(1).unwrap();
    assert!(instant.starts_with("20") && instant.ends_with("+00:00"), "{instant}");
}

#[test]
fn a_schedule_in_utc_shows_each_instant_once() {
    let house = House::new();
    let columns = |zone| {
        let said = house.say(&["schedule", "next", "--cron", "0 3 * * *", "--zone", zone, "-n", "1"]);
        let said = text(&said.stdout);
        (said.lines().next().unwrap().matches("UTC").count(), said.matches("T03:00").count())
    };
    assert_eq!(columns("UTC"), (1, 1));
    assert_eq!(columns("Europe/Berlin"), (1, 1));
}
