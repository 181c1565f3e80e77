//! Calls of functions are seen: in `pool`, in `/metrics`, by `why` and `logs`. Real binary, real kernel, real Python.
//!
//! No clock: functions wait for a file that is made here, and what is to happen is asked for until it is there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use support::House;
use support::runs::text;

const STEPS: &str = r#"
import pathlib
import time

def wait(gate):
    print("it waits")
    while not pathlib.Path(gate).exists():
        time.sleep(0.01)
    return 7

def fails(n):
    raise ValueError(f"no {n}")
"#;

const WAITS: &str = "[tasks.wait]\nrun = \"steps:wait\"\nwith = { gate = \"HEREgate\" }\n";

/// One worker for all, and a call in a process of its own.
fn house() -> House {
    let house = House::with(STEPS, &[("waits", WAITS)]);
    house.write("eclosion.toml", "[pool]\nworkers_max = 1\n");
    assert!(house.output(&["up"]).status.success());
    house
}

fn call(house: &House, function: &str, with: &Value) -> Child {
    let code = house.path("");
    let request = json!({"function": format!("steps:{function}"), "code": code, "with": with}).to_string();
    let words = ["call", "pool.call", &request, "--deadline", "60", "--json"];
    house.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn number(house: &House, name: &str) -> f64 {
    let mut socket = UnixStream::connect(house.path("run/default.sock")).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    socket.read_to_string(&mut page).unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| unreachable!("no {name} in {page}")).parse().unwrap()
}

fn said(house: &House, words: &[&str]) -> String {
    let output = house.output(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_call_under_way_and_one_that_waits_are_seen_and_explained() {
    let house = house();
    let gate = house.path("gate");
    let first = call(&house, "wait", &json!({"gate": gate}));
    let pool = house.until(&["pool"], "a call that runs", |pool| pool["calls"]["running"] == 1);
    let running = pool["calls"]["calls"][0].clone();
    let second = call(&house, "wait", &json!({"gate": gate}));
    let pool = house.until(&["pool"], "a call with its reason", |pool| {
        pool["calls"]["calls"][1]["pending"][0]["tag"] == "worker"
    });
    let waiting = &pool["calls"]["calls"][1];
    assert_eq!((text(&running["function"]), text(&waiting["state"])), ("steps:wait", "waiting"));
    assert_eq!(waiting["pending"][0]["busy"], json!([running["worker"]]), "{pool:#}");

    let shown = said(&house, &["pool"]);
    assert!(shown.contains("calls: 1 running, 1 waiting"), "{shown}");
    let (running, waiting) = (text(&running["call"]).to_owned(), text(&waiting["call"]).to_owned());
    let of_worker = shown
        .lines()
        .find(|line| line.trim_start().starts_with(text(&pool["workers"][0]["worker"])))
        .unwrap();
    assert!(of_worker.contains(&running), "its worker names it: {shown}");
    assert_eq!(number(&house, "eclosion_calls{state=\"waiting\"}"), 1.0);
    assert_eq!(number(&house, "eclosion_calls{state=\"running\"}"), 1.0);

    let why = said(&house, &["why", &waiting]);
    assert!(why.contains("has waited for a worker") && why.contains("1 of 1 busy"), "{why}");
    assert!(why.contains("see: eclosion pool"), "{why}");
    let why = said(&house, &["why", &running]);
    assert!(why.contains("has run at w-") && why.contains("steps:wait"), "{why}");
    assert_eq!(text(&house.json(&["why", &running])["schema"]), "eclosion/call/v1");

    fs::write(&gate, "").unwrap();
    for call in [first, second] {
        assert!(call.wait_with_output().unwrap().status.success());
    }
    house.until(&["pool"], "no call", |pool| pool["calls"]["calls"].as_array().is_some_and(Vec::is_empty));
    assert_eq!(number(&house, "eclosion_calls_total{outcome=\"succeeded\"}"), 2.0);
    assert!(said(&house, &["why", &running]).contains("has succeeded"));
    assert_eq!(said(&house, &["logs", &running]), "it waits\n");
}

#[test]
fn a_call_that_failed_says_why_for_a_while_and_an_unknown_one_says_where_to_look() {
    let house = house();
    assert!(!call(&house, "fails", &json!({"n": 3})).wait_with_output().unwrap().status.success());
    let ended = house.json(&["pool"])["calls"]["ended"][0].clone();
    let id = text(&ended["call"]);
    let why = said(&house, &["why", id]);
    assert!(why.contains("has failed") && why.contains("no 3"), "{why}");
    assert_eq!(number(&house, "eclosion_calls_total{outcome=\"failed\"}"), 1.0);
    for words in [["why", "call-9-9"], ["logs", "call-9-9"]] {
        let refused = house.output(&words);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(3), "{told}");
        assert!(told.contains("help: eclosion"), "{told}");
    }
}

#[test]
fn a_time_out_of_a_call_ends_it_and_a_limit_that_nobody_keeps_is_refused() {
    let house = house();
    let request = |more: (&str, Value)| {
        let mut request =
            json!({"function": "steps:wait", "code": house.path(""), "with": {"gate": house.path("gate")}});
        request[more.0] = more.1;
        let output = house.output(&["call", "pool.call", &request.to_string(), "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let refused = request(("timeout_ms", 200.into()));
    assert_eq!((text(&refused["code"]), text(&refused["reason"])), ("deadline", "call.timeout"));
    let refused = request(("limits", json!({"processes": 3})));
    assert_eq!(text(&refused["reason"]), "call.limits");
    assert!(text(&refused["help"]).contains("eclosion run"), "{refused}");
}

#[test]
fn a_run_that_waits_for_a_drained_pool_says_so_and_how_it_goes_on() {
    let house = house();
    assert!(house.output(&["pool", "drain", "--reason", "a test"]).status.success());
    let run = house.start("waits.toml");
    house.until(&["pool"], "a wish", |pool| pool["waiting"] == 1);
    let why = said(&house, &["why", &run]);
    assert!(why.contains("the pool is drained: a test"), "{why}");
    assert!(why.contains("eclosion pool resume"), "{why}");
    // Whoever named the kernel is told the command that means the same one.
    let socket = house.path("run/default.sock");
    let why = said(&house, &["--socket", &socket, "why", &run]);
    assert!(why.contains(&format!("eclosion --socket {socket} pool resume")), "{why}");
    fs::write(house.path("gate"), "").unwrap();
    assert!(house.output(&["pool", "resume"]).status.success());
    assert_eq!(house.ended(&run)["run"]["state"], "succeeded");
}

#[test]
fn a_run_that_waits_for_a_lock_names_who_holds_it_and_where_to_look() {
    let house = house();
    let lease = text(&house.json(&["arb", "acquire", "db", "--ttl", "1h", "--purpose", "a backup"])["lease"])
        .to_owned();
    let waits = WAITS.replace("HERE", &house.path(""));
    let run = house.start(&house.flow("locked", &format!("{waits}locks = [\"db\"]\n")));
    let waits_for_it = |why: &Value| why["tasks"][0]["pending"][0]["tag"] == "lock";
    house.until(&["why", &run], "a lock", waits_for_it);
    let why = said(&house, &["why", &run]);
    assert!(why.contains("waits for lock db; held by") && why.contains("a backup"), "{why}");
    assert!(why.contains("see: eclosion arb ls"), "{why}");
    assert!(house.output(&["arb", "release", &lease, "--reason", "a test"]).status.success());
    fs::write(house.path("gate"), "").unwrap();
    assert_eq!(house.ended(&run)["run"]["state"], "succeeded");
}
