//! Leases of clients on the real binary: one at a time, also over a kernel's death; a client that is killed leaves
//! nothing; an operator takes one away, and that is recorded.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::House;
use support::runs::text;

const STEPS: &str = "def use(n):\n    return n\n";
const GRACE: &str = "arbitration.lease_grace_ms=500";

/// Waits until a file appears, so that whoever made it ends when the test says so.
const UNTIL: &str = "touch \"$0.begun\"; while [ ! -e \"$0.end\" ]; do sleep 0.02; done; echo \"$ECLOSION_LEASE\" >> \"$0.log\"";

fn holder(house: &House, name: &str) -> Child {
    let gate = house.path(name);
    let words = ["arb", "acquire", "db", "--purpose", name, "--", "sh", "-c", UNTIL, &gate];
    house.command(&words).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

fn wait_for(what: &str, shows: impl Fn() -> bool) {
    let begun = Instant::now();
    while !shows() {
        assert!(begun.elapsed() < Duration::from_secs(90), "never seen: {what}");
        std::thread::yield_now();
    }
}

fn begun(house: &House, name: &str) -> bool {
    fs::exists(house.path(&format!("{name}.begun"))).unwrap()
}

fn leases(house: &House) -> Vec<Value> {
    house.json(&["arb", "ls"])["leases"].as_array().unwrap().clone()
}

#[test]
fn a_command_runs_alone_under_its_lock_and_who_waits_is_told_for_whom() {
    let house = House::new(STEPS);
    house.say(&["up", "--setting", GRACE]);
    let mut first = holder(&house, "first");
    wait_for("the first", || begun(&house, "first"));
    let mut second = holder(&house, "second");
    let waiting = |found: &Value| text(&found["waiting"][0]["client"]["purpose"]) == "second";
    let found = house.until(&["arb", "waiting"], "who waits", waiting);
    let held_by = text(&found["waiting"][0]["reasons"][0]["holders"][0]["client"]);
    assert!(held_by.ends_with(": first") && !begun(&house, "second"), "{found:#}");
    let (code, said) = house.refused(&["arb", "acquire", "db", "--ttl", "1m", "--wait", "0s"]);
    assert!(code == Some(7) && said.contains(": first") && said.contains("eclosion arb ls"), "{said}");
    // What is free is had without waiting.
    house.say(&["arb", "acquire", "index", "--wait", "0s", "--", "true"]);
    fs::write(house.path("first.end"), "").unwrap();
    assert!(first.wait().unwrap().success());
    wait_for("the second", || begun(&house, "second"));
    fs::write(house.path("second.end"), "").unwrap();
    assert!(second.wait().unwrap().success());
    // It went back with the command, and not only after the grace.
    assert!(leases(&house).is_empty());
}

#[test]
fn the_lease_of_a_client_that_is_killed_is_given_back_after_the_grace() {
    let house = House::new(STEPS);
    house.say(&["up", "--setting", GRACE]);
    let mut first = holder(&house, "first");
    wait_for("the first", || begun(&house, "first"));
    let mut second = holder(&house, "second");
    first.kill().unwrap();
    first.wait().unwrap();
    // The command that it ran ends by the test's word.
    fs::write(house.path("first.end"), "").unwrap();
    wait_for("the second", || begun(&house, "second"));
    let events = house.say(&["events", "--kind", "lease.released", "--json"]);
    assert!(events.contains("the session that held it was over"), "{events}");
    fs::write(house.path("second.end"), "").unwrap();
    assert!(second.wait().unwrap().success());
}

#[test]
fn a_lease_survives_a_kernel_that_is_killed_and_goes_on_with_its_holder() {
    let house = House::new(STEPS);
    let up = ["up", "--setting", "arbitration.lease_grace_ms=60000"];
    house.say(&up);
    let mut first = holder(&house, "first");
    wait_for("the first", || begun(&house, "first"));
    let for_a_day = text(&house.json(&["arb", "acquire", "index", "--ttl", "24h"])["lease"]).to_owned();
    let before = leases(&house);
    let pid = house.json(&["status"])["pid"].as_u64().unwrap().to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    house.say(&up);
    assert_eq!(leases(&house), before);
    let (code, _) = house.refused(&["arb", "acquire", "db", "--ttl", "1m", "--wait", "0s"]);
    assert_eq!(code, Some(7));
    // Also where the kernel goes in peace. Its holder has come back each time: it gives back what it holds.
    house.say(&["down", "--now"]);
    house.say(&up);
    fs::write(house.path("first.end"), "").unwrap();
    assert!(first.wait().unwrap().success());
    assert_eq!(leases(&house).len(), 1);
    assert!(fs::read_to_string(house.path("first.log")).unwrap().starts_with("l-1-"));
    house.say(&["arb", "renew", &for_a_day, "--ttl", "48h"]);
    house.say(&["arb", "release", &for_a_day, "--reason", "done with it"]);
    assert!(leases(&house).is_empty());
}

#[test]
fn an_operator_takes_a_lease_away_its_command_ends_and_the_act_is_recorded() {
    let house = House::new(STEPS);
    house.say(&["up", "--setting", GRACE]);
    let mut first = holder(&house, "first");
    wait_for("the first", || begun(&house, "first"));
    let lease = text(&leases(&house)[0]["lease"]).to_owned();
    let looked = house.json(&["arb", "release", &lease, "--dry-run"]);
    assert!(looked["done"] == false && leases(&house).len() == 1, "{looked}");
    let done = house.json(&["arb", "release", &lease, "--reason", "its holder hangs"]);
    assert_eq!((&done["done"], text(&done["schema"])), (&true.into(), "eclosion/lease-released/v1"));
    assert_eq!(first.wait().unwrap().code(), Some(4));
    let record = house.say(&["audit", "--json"]);
    assert!(record.contains("its holder hangs") && record.contains(&format!("lease {lease}")), "{record}");
    let (code, said) = house.refused(&["arb", "release", &lease]);
    assert!(code == Some(3) && said.contains("an operator took it away: its holder hangs"), "{said}");
    let record = house.json(&["audit"]);
    assert_eq!(record["acts"][0]["error"]["reason"], "lease.over", "{record:#}");
}

#[test]
fn whoever_holds_next_is_alone() {
    let house = House::new(STEPS);
    house.say(&["up", "--setting", GRACE]);
    // A command that starts another one: what is taken away ends for both.
    let beats = house.path("beats");
    let beat = "sh -c 'while :; do echo >> \"$0\"; sleep 0.02; done' \"$0\" & wait";
    let words = ["arb", "acquire", "db", "--", "sh", "-c", beat, &beats];
    let hold = || house.command(&words).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let count = || fs::read(&beats).map_or(0, |beats| beats.len());
    let mut first = hold();
    wait_for("it beats", || count() > 0);
    let lease = text(&leases(&house)[0]["lease"]).to_owned();
    house.say(&["arb", "release", &lease]);
    assert_eq!(first.wait().unwrap().code(), Some(4));
    let after = count();
    house.say(&["arb", "acquire", "db", "--", "sleep", "0.2"]);
    assert_eq!(count(), after);
}

#[test]
fn a_holder_that_is_told_to_end_tells_its_command_and_waits_for_it() {
    let house = House::new(STEPS);
    house.say(&["up", "--setting", GRACE]);
    let log = house.path("log");
    let ends = "trap 'sleep 0.3; echo over >> \"$0\"; exit 9' TERM; echo begun >> \"$0\"; while :; do sleep 0.02; done";
    let words = ["arb", "acquire", "db", "--", "sh", "-c", ends, &log];
    let mut first = house.command(&words).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_for("it has begun", || fs::exists(&log).unwrap());
    assert!(Command::new("kill").args(["-TERM", &first.id().to_string()]).status().unwrap().success());
    let next = ["arb", "acquire", "db", "--", "sh", "-c", "echo next >> \"$0\"", &log];
    house.say(&next);
    assert_eq!(first.wait().unwrap().code(), Some(9));
    assert_eq!(fs::read_to_string(&log).unwrap(), "begun\nover\nnext\n");
}

#[test]
fn a_lease_without_an_end_is_told_both_ways_and_a_command_that_is_not_there_holds_nothing() {
    let house = House::new(STEPS);
    house.say(&["up"]);
    let (code, said) = house.refused(&["arb", "acquire", "db"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("eclosion arb acquire db --ttl 10m") && said.contains("acquire db -- COMMAND"),
        "{said}"
    );
    let (code, said) = house.refused(&["arb", "acquire", "db", "--", "/no/such/program"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("/no/such/program") && said.contains("cannot be run"), "{said}");
    assert!(leases(&house).is_empty(), "it was given back");
}
