//! The clients of `schemas/examples`, which know sockets and JSON and nothing else, at the real binary.
//!
//! Node is no part of what this project needs: where there is none, its test says so by name and ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use binary::eclosion;

const STEPS: &str = r#"
def double(x):
    return {"x": x + x}

def refuse():
    raise ValueError("no")
"#;

struct House(TempDir);

impl House {
    fn new() -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        std::fs::write(house.0.path().join("steps.py"), STEPS).unwrap();
        let up = house.eclosion(&["up"]);
        assert!(up.status.success(), "{}", text(&up.stderr));
        house
    }

    fn eclosion(&self, words: &[&str]) -> Output {
        eclosion(self.0.path(), words).output().unwrap()
    }

    fn client(&self, program: &str, file: &str, method: &str, request: &Value) -> Command {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/examples");
        let mut command = Command::new(program);
        command.arg(examples.join(file)).arg(self.0.path().join("run/default.sock"));
        command.arg(method).arg(request.to_string()).stdin(Stdio::null());
        command
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.eclosion(&["down"]);
    }
}

/// Ended with the test, however it ends.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lines(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn does_all_that_a_client_can(program: &str, file: &str) {
    let house = House::new();
    let said = house.client(program, file, "kernel.status", &json!({})).output().unwrap();
    assert_eq!(lines(&said)[0]["state"], "ready", "{}", text(&said.stderr));

    let call = |function: &str, arguments: Value| {
        let request = json!({
            "function": format!("steps:{function}"),
            "code": house.0.path(),
            "arguments": {"body": {"$msgpack": arguments}},
        });
        house.client(program, file, "pool.call", &request).output().unwrap()
    };
    let said = call("double", json!({"x": 21}));
    assert_eq!(
        lines(&said).last().unwrap()["body"],
        json!({"$msgpack": {"x": 42}}),
        "{}",
        text(&said.stderr)
    );

    let refused = call("refuse", json!({}));
    let said = text(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("task.raised") && said.contains("ValueError"),
        "{said}"
    );

    let mut follow = house.client(program, file, "bus.subscribe", &json!({"filter": "**"}));
    let mut follower = Follower(follow.stdout(Stdio::piped()).spawn().unwrap());
    let mut heard = BufReader::new(follower.0.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&heard.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["tag"], "acknowledged");
}

#[test]
fn both_are_short_enough_to_be_copied() {
    for source in [
        include_str!("../../../schemas/examples/lines.py"),
        include_str!("../../../schemas/examples/lines.mjs"),
    ] {
        assert!(source.lines().count() <= 50, "{source}");
    }
}

#[test]
fn a_client_without_dependencies_in_python_does_all_that_a_client_can() {
    let python = std::env::var("ECLOSION_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    does_all_that_a_client_can(&python, "lines.py");
}

#[test]
fn a_client_without_dependencies_in_node_does_all_that_a_client_can() {
    let node = Command::new("node").arg("--version").output();
    if !node.is_ok_and(|node| node.status.success()) {
        eprintln!(
            "SKIPPED: a_client_without_dependencies_in_node_does_all_that_a_client_can: there is no node here"
        );
        return;
    }
    does_all_that_a_client_can("node", "lines.mjs");
}

/// The blocks under a heading of the contract, the lines of each.
fn blocks(heading: &str) -> Vec<Vec<String>> {
    let page = include_str!("../../../schemas/PROTOCOL.md");
    let section = page.split(heading).nth(1).unwrap().split("\n## ").next().unwrap();
    let blocks = section.split("```").skip(1).step_by(2);
    blocks
        .map(|block| {
            block.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        })
        .collect()
}

#[test]
fn the_lines_that_the_contract_prints_are_answered_as_it_prints() {
    let house = House::new();
    let blocks = blocks("\n## 8. Lines\n");
    let (said, answered) = (&blocks[0], &blocks[1][0]);
    let mut socket = UnixStream::connect(house.0.path().join("run/default.sock")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    said.iter().for_each(|line| socket.write_all(format!("{line}\n").as_bytes()).unwrap());
    let mut heard = BufReader::new(socket.try_clone().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&heard.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["type"], "welcome");
    let expected: Value = serde_json::from_str(answered).unwrap();
    assert_eq!(next(), expected);
    // What is forgotten first, is told with the way out.
    socket.write_all(b"{\"type\": \"call\", \"stream\": 3, \"method\": \"kernel.status\"}\n").unwrap();
    let refused = next();
    let body = &refused["body"];
    assert_eq!((&refused["type"], &body["reason"]), (&"error".into(), &"request.codec".into()), "{refused}");
    assert!(body["message"].as_str().unwrap().contains("without a body"), "{refused}");
    assert!(body["help"].as_str().unwrap().contains("eclosion describe kernel.status"), "{refused}");
}
