//! What an operator does to a running kernel, and how it is seen afterwards. Real binary, real kernel; no Python.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use binary::eclosion;

/// A kernel in the background, with directories of its own.
struct House(TempDir);

impl House {
    fn up() -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        let up = house.say(&["up"]);
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        house
    }

    fn command(&self, words: &[&str]) -> Command {
        eclosion(self.0.path(), words)
    }

    fn say(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// The document that a command prints.
    fn json(&self, words: &[&str]) -> Value {
        let output = self.say(&[words, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|why| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            unreachable!("{words:?}: {why}: {said}")
        })
    }

    fn row(&self, address: &str) -> Value {
        let tree = self.json(&["tree"]);
        tree["actors"].as_array().unwrap().iter().find(|row| row["address"] == address).unwrap().clone()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.say(&["down"]);
    }
}

#[test]
fn a_restart_begins_the_next_life_and_is_in_the_audit_record_with_its_reason() {
    let house = House::up();
    let dry = house.json(&["restart", "/dag", "--dry-run"]);
    assert_eq!((&dry["done"], &dry["blast"]["queued"]), (&false.into(), &0.into()));
    assert_eq!(house.row("/dag")["incarnation"], 1);
    assert!(house.json(&["audit"])["acts"].as_array().unwrap().is_empty());

    let done = house.json(&["restart", "/dag", "--reason", "to see it come back"]);
    assert_eq!((&done["done"], &done["incarnation"]), (&true.into(), &2.into()));
    let row = house.row("/dag");
    assert_eq!((&row["incarnation"], &row["restarts"]), (&2.into(), &0.into()));
    assert!(house.say(&["runs", "ls"]).status.success());

    let act = &house.json(&["audit"])["acts"][0];
    assert_eq!(act["act"]["action"], "actor.restart");
    assert_eq!(
        (&act["act"]["target"], &act["act"]["reason"]),
        (&"/dag".into(), &"to see it come back".into())
    );
    assert!(act["ended_at"].is_u64() && act["error"].is_null(), "{act}");
    let who = act["act"]["caller"].as_str().unwrap();
    assert!(who.contains("(pid ") && who.contains(", user ") && who.contains(", program eclosion"), "{who}");
    let shown = String::from_utf8(house.say(&["audit"]).stdout).unwrap();
    assert!(shown.lines().next().unwrap().contains("who") && shown.contains(", user "), "{shown}");
}

#[test]
fn whatever_an_operator_changes_is_in_the_audit_record_and_so_is_what_was_refused() {
    let house = House::up();
    house.json(&["pool", "drain", "--dry-run"]);
    assert_eq!(house.json(&["audit"])["acts"], serde_json::json!([]));

    house.json(&["pool", "drain", "--reason", "a new driver"]);
    house.json(&["pool", "resume"]);
    house.json(&["schedule", "add", "nightly", "--cron", "30 2 * * *", "--call", "gc.apply"]);
    house.json(&["schedule", "trigger", "nightly"]);
    let missing = house.say(&["schedule", "pause", "weekly", "--reason", "the wrong name"]);
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");

    // What the schedule called ends a little later.
    let deadline = Instant::now() + Duration::from_secs(20);
    let acts = loop {
        let acts = house.json(&["audit"])["acts"].as_array().unwrap().clone();
        if acts.len() == 6 && acts.iter().all(|act| act["ended_at"].is_u64()) || Instant::now() > deadline {
            break acts;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let find = |action: &str| {
        let found = acts.iter().find(|act| act["act"]["action"] == action);
        found.unwrap_or_else(|| unreachable!("no {action}: {acts:#?}"))
    };
    assert_eq!(acts.len(), 6, "{acts:#?}");
    let drained = &find("pool.drain")["act"];
    assert_eq!((&drained["target"], &drained["reason"]), (&"the pool".into(), &"a new driver".into()));
    assert!(drained["caller"].as_str().unwrap().contains(", user "), "{drained}");
    assert_eq!(find("schedule.set")["act"]["target"], "schedule nightly");
    assert_eq!(find("gc.apply")["act"]["caller"], "schedule nightly");
    let refused = find("schedule.pause");
    assert_eq!(
        (&refused["act"]["target"], &refused["error"]["code"]),
        (&"schedule weekly".into(), &"not_found".into())
    );
    let done = ["pool.drain", "pool.resume", "schedule.set", "schedule.trigger", "gc.apply"];
    assert!(done.iter().all(|action| find(action)["error"].is_null()), "{acts:#?}");

    assert!(house.say(&["down"]).status.success() && house.say(&["up"]).status.success());
    let stopped = &house.json(&["audit"])["acts"][0];
    assert_eq!(stopped["act"]["action"], "kernel.stop");
    assert!(stopped["ended_at"].is_u64() && stopped["error"].is_null(), "{stopped}");
}

#[test]
fn a_kill_counts_as_a_death_and_status_says_so() {
    let house = House::up();
    assert_eq!(house.json(&["kill", "/pool", "--reason", "it seemed stuck"])["incarnation"], 2);
    let row = house.row("/pool");
    assert_eq!(
        (&row["restarts"], &row["last_error"]),
        (&1.into(), &"killed by an operator: it seemed stuck".into())
    );
    let findings = house.json(&["status"])["findings"].to_string();
    assert!(findings.contains("/pool was restarted 1 times lately"), "{findings}");
}

#[test]
fn a_paused_actor_answers_once_it_is_resumed() {
    let house = House::up();
    assert!(house.say(&["pause", "/dag"]).status.success());
    assert_eq!(house.row("/dag")["state"], "paused");
    assert!(house.json(&["status"])["findings"].to_string().contains("eclosion resume /dag"));
    let mut asking = house.command(&["runs", "ls", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    // The question waits in the mailbox of who is paused.
    while house.row("/dag")["depth"] == 0 {
        assert!(asking.try_wait().unwrap().is_none(), "it was answered");
    }
    assert!(house.say(&["resume", "/dag"]).status.success());
    assert!(asking.wait().unwrap().success());
    assert_eq!(house.row("/dag")["state"], "ready");
}

#[test]
fn a_draining_actor_refuses_what_is_new_and_says_how_to_go_on() {
    let house = House::up();
    assert_eq!(house.json(&["drain", "/dag"])["done"], true);
    let refused = house.say(&["runs", "ls"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("draining") && said.contains("eclosion resume /dag"), "{said}");
    assert_eq!(refused.status.code(), Some(7), "{said}");
    assert!(house.say(&["resume", "/dag"]).status.success());
    assert!(house.say(&["runs", "ls"]).status.success());
}

#[test]
fn what_must_not_be_done_is_refused_with_what_can() {
    let house = House::up();
    for (words, reason) in [
        (&["pause", "/kernel"][..], "actor.needed"),
        (&["drain", "/audit"], "actor.needed"),
        (&["restart", "/journal/writer"], "actor.journal"),
        (&["restart", "/dog"], "actor.unknown"),
        (&["dead", "replay", "7"], "dead_letter.unknown"),
    ] {
        let refusal = house.json(words);
        assert_eq!(refusal["reason"], reason, "{words:?}");
        assert!(refusal["help"].is_string(), "{words:?}");
    }
    assert_eq!(house.json(&["restart", "/dog"])["help"], "did you mean /dag?");
    // What was refused is in the record with why.
    let record = house.json(&["audit"]);
    let acts = record["acts"].as_array().unwrap();
    let dog = &acts[0];
    assert_eq!((&dog["act"]["target"], &dog["error"]["reason"]), (&"/dog".into(), &"actor.unknown".into()));
    assert!(acts.iter().all(|act| act["error"].is_object() && act["ended_at"].is_u64()), "{record:#}");
}

#[test]
fn a_dry_run_is_refused_as_the_act_would_be_and_promises_no_journal_where_there_is_none() {
    let house = House::up();
    for words in [["restart", "/journal/writer"], ["kill", "/journal/syncer"]] {
        let dry = house.json(&[&words[..], &["--dry-run"]].concat());
        assert_eq!(dry["reason"], "actor.journal", "{words:?}");
    }
    let session = house.json(&["tree"])["actors"].as_array().unwrap().iter().find_map(|row| {
        let address = row["address"].as_str()?;
        address.starts_with("/sessions/").then(|| address.to_owned())
    });
    if let Some(session) = session {
        // It may be gone with its connection by now; either way it is not restarted.
        let dry = house.json(&["restart", &session, "--dry-run"]);
        assert!(["actor.temporary", "actor.unknown"].contains(&dry["reason"].as_str().unwrap()), "{dry}");
    }
    let text = |address| house.json(&["restart", address, "--dry-run"])["blast"]["text"].to_string();
    assert!(text("/dag").contains("folds its state from the journal"));
    assert!(text("/logs").contains("it has no journal"), "{}", text("/logs"));
}

#[test]
fn a_suggested_command_repeats_what_was_said() {
    let house = House::up();
    let socket = house.0.path().join("run/default.sock").display().to_string();
    let words = ["--socket", &socket, "restart", "/dag", "--dry-run", "--reason", "a new driver"];
    let said = String::from_utf8(house.say(&words).stderr).unwrap();
    let command = format!("eclosion --socket {socket} restart /dag --reason 'a new driver'");
    assert!(said.contains(&command), "{said}");
    let said =
        String::from_utf8(house.say(&["--socket", &socket, "gc", "apply", "--only", "run"]).stderr).unwrap();
    assert!(said.contains(&format!("eclosion --socket {socket} gc apply --yes --only run")), "{said}");
}

#[test]
fn events_are_followed_as_they_are_recorded() {
    let house = House::up();
    let mut following = house
        .command(&["events", "--follow", "--json", "--kind", "operator.*"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    assert!(house.say(&["restart", "/pool", "--reason", "first"]).status.success());
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let (acted, ended) = (next(), next());
    assert_eq!(
        (&acted["kind"], &acted["event"]["act"]["reason"]),
        (&"operator.acted".into(), &"first".into())
    );
    assert_eq!((&ended["kind"], &ended["event"]["id"]), (&"operator.ended".into(), &1.into()));
    following.kill().unwrap();
    following.wait().unwrap();
    let after = acted["seq"].to_string();
    let again = house.say(&["events", "--json", "--after", &after, "--kind", "operator.ended"]);
    assert_eq!(serde_json::from_slice::<Value>(&again.stdout).unwrap(), ended);
}

#[test]
fn the_tree_says_what_an_actor_has_handled_and_how_long_it_waited_and_took() {
    let house = House::up();
    // From the first look on every message is timed, for a while.
    let before = house.row("/dag")["handled"].as_u64().unwrap();
    for _ in 0..3 {
        assert!(house.say(&["runs", "ls"]).status.success());
    }
    let row = house.row("/dag");
    assert!(row["handled"].as_u64().unwrap() >= before + 3, "{row}");
    for (timed, quantile) in
        [("wait", "p50_us"), ("wait", "p99_us"), ("handling", "p50_us"), ("handling", "p99_us")]
    {
        assert!(row[timed][quantile].as_f64().unwrap() > 0.0, "{timed} {quantile}: {row}");
    }
    assert!(row["capacity"].as_u64().unwrap() > 0 && row["restarts_max"].as_u64().unwrap() > 0, "{row}");
    assert_eq!((&row["depth"], &row["dead_letters"], &row["refused"]), (&0.into(), &0.into(), &0.into()));
    let shown = String::from_utf8(house.say(&["tree"]).stdout).unwrap();
    for column in ["state", "life", "waiting", "handled", "in/s", "busy", "wait p50/p99", "handling p50/p99"]
    {
        assert!(shown.lines().next().unwrap().contains(column), "{column}:\n{shown}");
    }
}

#[test]
fn processes_are_shown_with_what_they_are() {
    let house = House::up();
    let pid = house.json(&["status"])["pid"].clone();
    let processes = house.json(&["ps"])["processes"].as_array().unwrap().clone();
    let kernel = processes.iter().find(|row| row["kind"] == "kernel").unwrap();
    assert_eq!(kernel["pid"], pid);
    assert!(kernel["rss_bytes"].as_u64().unwrap() > 1 << 20);
}

/// The first command under a heading of README, and what README says that it prints.
fn said(readme: &str, heading: &str) -> (String, String) {
    let section = readme.split(&format!("## {heading}\n\n")).nth(1).unwrap();
    let mut blocks = section.split("\n\n").filter(|block| block.starts_with("    "));
    let mut block = || blocks.next().unwrap().lines().map(str::trim).collect::<Vec<_>>().join("\n");
    (block(), block())
}

#[test]
fn the_readme_says_what_an_operator_sees() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let (command, output) = said(&std::fs::read_to_string(readme).unwrap(), "Operate it");
    let (words, reason) = command.split_once(" --reason ").unwrap();
    let words: Vec<_> = words.split(' ').skip(1).collect();
    let house = House::up();
    let done = house.say(&[&words[..], &["--reason", reason.trim_matches('"')]].concat());
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), output, "{done:?}");
}
