//! What `eclosion logs` shows, and when: a line of a task that still runs comes while it runs, once, and none is left
//! out where the task ends, in good order or by taking its worker along.
//!
//! Real binary, real kernel, real Python. No clock: each task goes on only after its first line was read here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use binary::eclosion;

const STEPS: &str = r#"
import os
import pathlib
import sys
import time

def speak(gate):
    print("one")
    wait(gate)
    print("two")
    sys.stdout.write("three, without an end")

def die(gate, after=None):
    print("dying")
    wait(gate)
    print("dead")
    os._exit(3)

def wait(gate):
    while not pathlib.Path(gate).exists():
        time.sleep(0.01)
"#;

struct House(TempDir);

impl House {
    fn new() -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        let flow = format!(
            "schema = \"eclosion/flow/v1\"\nname = \"words\"\n\
             [tasks.speak]\nrun = \"steps:speak\"\nwith = {{ gate = {:?} }}\n\
             [tasks.die]\nrun = \"steps:die\"\nwith = {{ gate = {:?}, after = \"${{speak}}\" }}\n",
            house.path("speak"),
            house.path("die"),
        );
        fs::write(house.path("steps.py"), STEPS).unwrap();
        fs::write(house.path("flow.toml"), flow).unwrap();
        house
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        eclosion(self.0.path(), words)
    }

    /// What it says on stdout.
    fn say(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.command(&["down"]).output();
    }
}

#[test]
fn who_follows_reads_each_line_once_and_while_its_task_runs() {
    let house = House::new();
    let started = house.say(&["run", "flow.toml", "--detach", "--json"]);
    let run =
        serde_json::from_str::<serde_json::Value>(&started).unwrap()["run"].as_str().unwrap().to_owned();

    let refused = house.command(&["logs", &run, "speka"]).output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{told}");
    assert!(told.contains("has no task `speka`") && told.contains("did you mean `speak`?"), "{told}");

    let mut follower = house.command(&["logs", &run, "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(follower.stdout.take().unwrap());
    let mut read = String::new();
    for (line, gate) in [("speak#1 one\n", "speak"), ("die#1 dying\n", "die")] {
        while !read.ends_with(line) {
            assert_ne!(output.read_line(&mut read).unwrap(), 0, "it ended before {line:?}: {read}");
        }
        fs::write(house.path(gate), "").unwrap();
    }
    output.read_to_string(&mut read).unwrap();
    assert!(follower.wait().unwrap().success());

    let mut expected = String::from("speak#1 one\nspeak#1 two\nspeak#1 three, without an end\n");
    let attempts = read.matches(" dying\n").count();
    expected.extend((1..=attempts).map(|attempt| format!("die#{attempt} dying\ndie#{attempt} dead\n")));
    assert_eq!(read, expected);

    let mut afterwards: Vec<_> = house.say(&["logs", &run]).lines().map(str::to_owned).collect();
    let mut followed: Vec<_> = read.lines().map(str::to_owned).collect();
    afterwards.sort();
    followed.sort();
    assert_eq!(afterwards, followed);
}
