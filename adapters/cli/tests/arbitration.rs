//! Locks and rates on the real binary: who holds a lock alone is alone, a rate is kept to the millisecond of the journal,
//! who waits is told for whom, and what can never be had is refused before anything starts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::House;

const STEPS: &str = r#"
import os
import pathlib
import time

def enter(place, who):
    os.mkdir(place)  # fails while anybody else is inside
    with open(place + ".ledger", "a") as ledger:
        print(f"in {who}", file=ledger, flush=True)
        for _ in range(20_000):
            os.stat(place)
        print(f"out {who}", file=ledger, flush=True)
    os.rmdir(place)

def hold(gate):
    while not pathlib.Path(gate).exists():
        time.sleep(0.01)

def use(n):
    return n
"#;

fn started(house: &House, flow: &str) -> String {
    let said = house.say(&["run", flow, "--detach", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    said["run"].as_str().unwrap().to_owned()
}

/// A watchdog and no measurement: commands are asked again until they show it.
fn until(what: &str, mut shows: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !shows() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never seen: {what}");
    }
}

#[test]
fn runs_that_name_the_same_lock_are_never_inside_together() {
    let house = House::new(STEPS);
    let place = house.path("inside");
    let flow = |name: &str| {
        house.flow(
            name,
            &format!(
                "[tasks.enter]\nrun = \"steps:enter\"\neach = [0, 1, 2, 3]\nlocks = [\"inside\"]\n\
                 with = {{ place = {place:?}, who = \"{name} ${{item}}\" }}\n"
            ),
        )
    };
    house.say(&["up", "--setting", "pool.workers_max=4"]);
    let runs = [started(&house, &flow("left")), started(&house, &flow("right"))];
    for run in &runs {
        let output = house.output(&["attach", run]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let ledger = fs::read_to_string(format!("{place}.ledger")).unwrap();
    let lines: Vec<_> = ledger.lines().collect();
    assert_eq!(lines.len(), 16, "{ledger}");
    for pair in lines.chunks(2) {
        assert_eq!(pair[0].strip_prefix("in "), pair[1].strip_prefix("out "), "{ledger}");
    }
}

#[test]
fn a_rate_is_kept_across_runs_in_every_window_of_the_journal() {
    let house = House::new(STEPS);
    let flow = |name: &str| {
        let tasks = "[tasks.use]\nrun = \"steps:use\"\neach = [1, 2, 3, 4]\nrates = { api = 1 }\n\
                     with = { n = \"${item}\" }\n";
        house.flow(name, tasks)
    };
    house.write("eclosion.toml", "[rates]\napi = \"4/s burst 2\"\n[pool]\nworkers_max = 4\n");
    house.say(&["up"]);
    let runs = [started(&house, &flow("left")), started(&house, &flow("right"))];
    for run in &runs {
        assert!(house.output(&["attach", run]).status.success());
    }
    house.say(&["down"]);
    let times = granted_at(&house);
    assert_eq!(times.len(), 8);
    for begin in &times {
        let inside = times.iter().filter(|at| (*begin..begin + 1_000).contains(*at)).count();
        assert!(inside <= 4, "{times:?}");
    }
}

/// Read by Python's own SQLite, so that the test links none.
fn granted_at(house: &House) -> Vec<u64> {
    let script = "import pathlib, sqlite3, sys\n\
        file = next(p for p in pathlib.Path(sys.argv[1]).rglob('*') if p.is_file() and p.read_bytes()[:6] == b'SQLite')\n\
        rows = sqlite3.connect(file).execute(\"SELECT at FROM events WHERE kind = 'lease.granted' ORDER BY seq\")\n\
        print(*(at for at, in rows))";
    let output = Command::new("python3").args(["-c", script, &house.path("state")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let times = String::from_utf8(output.stdout).unwrap();
    times.split_whitespace().map(|at| at.parse().unwrap()).collect()
}

#[test]
fn who_waits_for_a_lock_is_told_who_holds_it() {
    let house = House::new(STEPS);
    let gate = house.path("gate");
    let flow = |name: &str| {
        let tasks =
            format!("[tasks.hold]\nrun = \"steps:hold\"\nlocks = [\"db\"]\nwith = {{ gate = {gate:?} }}\n");
        house.flow(name, &tasks)
    };
    house.say(&["up", "--setting", "pool.workers_max=2", "--setting", "rates.api=60/min"]);
    let first = started(&house, &flow("first"));
    until("the lease", || house.say(&["arb", "leases"]).contains(&format!("{first}/hold")));
    let second = started(&house, &flow("second"));
    until("who waits", || {
        house.say(&["arb", "waiting"]).contains(&format!("{second}/hold waits for lock db"))
    });

    // With the worker, once that has started.
    let held = format!("waits for lock db; held by {first}/hold on w-");
    until("the holder's worker", || house.say(&["why", &second]).contains(&held));
    let next = house.json(&["arb", "waiting", "--dry-run"]);
    assert_eq!(
        (&next["schema"], &next["next"][0]["run"]),
        (&"eclosion/next/v1".into(), &second.as_str().into())
    );
    let status = house.json(&["arb", "status"]);
    assert_eq!(status["locks"][0]["lock"], "db");
    assert_eq!((&status["rates"][0]["limit"], &status["waiting_count"]), (&"60/min".into(), &1.into()));
    let shown = house.say(&["arb", "status"]);
    assert!(shown.contains("lock db") && shown.contains("rate api"), "{shown}");

    fs::write(&gate, "").unwrap();
    for run in [&first, &second] {
        assert!(house.output(&["attach", run]).status.success());
    }
    until("an end", || house.json(&["arb", "leases"])["leases"].as_array().unwrap().is_empty());
}

#[test]
fn what_can_never_be_had_is_refused_before_anything_starts() {
    let house = House::new(STEPS);
    house.say(&["up", "--setting", "rates.api=60/min", "--setting", "resources.licences=2"]);
    for (name, needs, told) in [
        ("often", "rates = { api = 2 }", "burst is 1"),
        ("unknown", "rates = { search = 1 }", "no rate `search`"),
        ("much", "resources = { licences = 3 }", "there is 2 in all"),
        ("strange", "resources = { gpu0_vram = \"8GiB\" }", "knows nothing"),
        ("huge", "resources = { cpu = 1000000 }", "in all"),
        ("twice", "locks = [\"db\", \"db:shared\"]", "named twice"),
    ] {
        let tasks = format!("[tasks.use]\nrun = \"steps:use\"\nwith = {{ n = 1 }}\n{needs}\n");
        let flow = house.flow(name, &tasks);
        for command in ["run", "validate"] {
            let (code, said) = house.refused(&[command, &flow]);
            assert!(code.is_some_and(|code| code != 0), "{name}");
            assert!(said.contains(told) && said.contains("`use`"), "{command} {name}: {said}");
        }
    }
    assert!(house.json(&["runs", "ls"])["runs"].as_array().unwrap().is_empty());
}
