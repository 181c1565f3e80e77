//! What a Python generator yields, on the screen while it runs; and what becomes of it when nobody looks any more.
//!
//! Real binary, real kernel, real Python. No clock: the generator goes on only after its first item was read here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use binary::eclosion;

const STEPS: &str = r#"
import pathlib
import time
from eclosion import current

def speak(gate, ended):
    try:
        yield "to"
        while not pathlib.Path(gate).exists():
            time.sleep(0.01)
        current().metric("loss", 0.5)
        yield "ken"
    finally:
        pathlib.Path(ended).touch()
"#;

struct House(TempDir);

impl House {
    fn new() -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        fs::write(house.path("steps.py"), STEPS).unwrap();
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = eclosion(self.0.path(), words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, words: &[&str]) -> (bool, String) {
        let output = self.command(words).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn request(&self) -> String {
        json!({
            "function": "steps:speak", "code": self.0.path(),
            "with": {"gate": self.path("gate"), "ended": self.path("ended")},
        })
        .to_string()
    }

    /// The first line of a call, which goes on.
    fn call(&self, words: &[&str]) -> (Child, BufReader<std::process::ChildStdout>, String) {
        let request = self.request();
        let mut child = self.command(&[&["call", "pool.stream", &request], words].concat()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        (child, out, line)
    }

    fn wait(&self, name: &str) {
        while !self.path(name).exists() {
            std::thread::yield_now();
        }
        fs::remove_file(self.path(name)).unwrap();
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).output();
    }
}

#[test]
fn items_are_printed_while_the_generator_runs_and_a_call_that_is_left_ends_it() {
    let house = House::new();
    let (up, why) = house.run(&["up"]);
    assert!(up, "{why}");

    let (mut child, mut rest, first) = house.call(&[]);
    assert_eq!(first, "\"to\"\n");
    fs::write(house.path("gate"), "").unwrap();
    let mut after = String::new();
    rest.read_to_string(&mut after).unwrap();
    assert_eq!(after, "\"ken\"\nnull\n");
    let mut talk = String::new();
    child.stderr.take().unwrap().read_to_string(&mut talk).unwrap();
    assert!(child.wait().unwrap().success() && talk.contains("loss 0.5"), "{talk}");
    house.wait("ended");
    fs::remove_file(house.path("gate")).unwrap();

    // Ctrl-C and SIGKILL alike: the generator is closed, and the only worker that runs it serves the next.
    for signal in ["INT", "KILL"] {
        let (mut child, _rest, first) = house.call(&["--json"]);
        let first: Value = serde_json::from_str(&first).unwrap();
        assert_eq!((&first["schema"], &first["item"]["index"]), (&json!("eclosion/item/v1"), &json!(0)));
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        assert!(!child.wait().unwrap().success());
        house.wait("ended");
    }
}

#[test]
fn who_follows_a_run_reads_what_its_tasks_yield() {
    let house = House::new();
    let flow = format!(
        "schema = \"eclosion/flow/v1\"\nname = \"words\"\n\
         [tasks.speak]\nrun = \"steps:speak\"\nwith = {{ gate = {:?}, ended = {:?} }}\n",
        house.path("gate"),
        house.path("ended"),
    );
    fs::write(house.path("flow.toml"), flow).unwrap();
    let mut child = house.command(&["run", "flow.toml"]).spawn().unwrap();
    let mut talk = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let before: Vec<String> = talk.by_ref().take_while(|line| line != "speak: \"to\"").collect();
    // It was not the end of what is said: the task waits for this.
    fs::write(house.path("gate"), "").unwrap();
    let after: Vec<String> = talk.collect();
    assert!(after.iter().any(|line| line == "speak: \"ken\""), "{before:?} {after:?}");
    let mut result = String::new();
    child.stdout.take().unwrap().read_to_string(&mut result).unwrap();
    assert!(child.wait().unwrap().success(), "{after:?}");
    assert!(result.contains("ken"), "{result}");
}
