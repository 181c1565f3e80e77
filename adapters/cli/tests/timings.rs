//! `timings: true` at the real binary with real Python: from the command line, and as a line of JSON.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use support::House;

const STEPS: &str = r#"
def double(x):
    return x + x
"#;
const STAGES: [&str; 8] = ["queued", "handled", "worker", "sent", "python", "back", "answered", "encoded"];

fn request(house: &House) -> String {
    let arguments = json!({"body": {"$msgpack": {"x": 21}}});
    json!({"function": "steps:double", "code": house.path(""), "arguments": arguments}).to_string()
}

fn names(stages: &Value) -> Vec<&str> {
    stages.as_array().unwrap().iter().map(|stage| stage["name"].as_str().unwrap()).collect()
}

#[test]
fn a_call_says_where_its_time_went_when_it_is_asked_to() {
    let house = House::new(STEPS);
    house.say(&["up"]);
    let request = request(&house);

    let plain = house.json(&["call", "pool.call", &request]);
    assert_eq!(plain.get("timings"), None);

    let timed = house.json(&["call", "pool.call", &request, "--timings"]);
    let timings = &timed["timings"];
    assert_eq!(names(&timings["stages"]), STAGES);
    let stages = timings["stages"].as_array().unwrap();
    let sum: u64 = stages.iter().map(|stage| stage["took_ns"].as_u64().unwrap()).sum();
    assert!(sum <= timings["total_ns"].as_u64().unwrap(), "{timings:#}");

    // A person is told beside the reply, in the order of the stages.
    let told = house.output(&["call", "pool.call", &request, "--timings"]);
    assert_eq!(String::from_utf8(told.stdout).unwrap().trim(), "42");
    let told = String::from_utf8(told.stderr).unwrap();
    let rows: Vec<_> = told.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(rows, [&STAGES[..], &["total"]].concat(), "{told}");

    // What a journaled actor answers waits for the journal.
    let listed = house.json(&["call", "run.list", "{}", "--timings"]);
    assert_eq!(names(&listed["timings"]["stages"]), ["queued", "handled", "journal", "answered", "encoded"]);

    let described = house.json(&["describe", "run.list"]);
    assert!(described["call_options"].as_array().unwrap().iter().any(|option| option["name"] == "timings"));
}

#[test]
fn a_client_that_speaks_lines_is_told_as_well() {
    let house = House::new(STEPS);
    house.say(&["up"]);
    let mut line = UnixStream::connect(house.path("run/default.sock")).unwrap();
    let body: Value = serde_json::from_str(&request(&house)).unwrap();
    let call = |stream: u32, timings: bool| json!({"type": "call", "stream": stream, "method": "pool.call", "timings": timings, "body": body});
    writeln!(line, "{}", json!({"type": "hello", "client": "test", "api": 1})).unwrap();
    writeln!(line, "{}\n{}", call(1, true), call(3, false)).unwrap();
    let answers: Vec<Value> = BufReader::new(line)
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .filter(|said: &Value| said["end"] == true)
        .take(2)
        .collect();
    let of = |stream: u32| answers.iter().find(|said| said["stream"] == stream).unwrap();
    assert_eq!(names(&of(1)["stages"]), STAGES);
    assert_eq!(of(3).get("stages"), None);
    assert_eq!(of(3)["body"]["body"], json!({"$msgpack": 42}));
}
