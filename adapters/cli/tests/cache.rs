//! Results that are used again, as a user of the command line meets them: what was computed is counted by the functions
//! themselves, in a file, so that "nothing ran" is seen and not believed.
//!
//! Real binary, real kernel, real Python.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use binary::eclosion;

/// Of open(2).
const O_NONBLOCK: i32 = 0o4000;

/// Each call leaves its task's name in `ran`.
const FLOW: &str = r#"
import pathlib

from eclosion import flow, task

HERE = pathlib.Path(__file__).parent


def ran(name):
    with (HERE / "ran").open("a") as file:
        file.write(name + "\n")


@task(cache="v1")
def load(rows: int) -> list[int]:
    ran("load")
    return list(range(rows))


@task(cache="v1")
def blob(rows: int) -> bytes:
    ran("blob")
    return b"x" * 100_000


@task(cache="v1")
def square(n: int) -> int:
    ran("square")
    return n * n


@task
def total(squares: list[int], blob: bytes, bonus: int) -> int:
    ran("total")
    return sum(squares) + len(blob) + bonus


@flow
def main(rows: int = 3, bonus: int = 0) -> int:
    return total(square.map(load(rows)), blob=blob(rows), bonus=bonus)
"#;

struct House(TempDir);

impl House {
    fn new() -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        house.write(FLOW);
        house
    }

    fn write(&self, flow: &str) {
        fs::write(self.path("steps.py"), flow).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn output(&self, words: &[&str]) -> Output {
        eclosion(self.0.path(), words).output().unwrap()
    }

    fn say(&self, words: &[&str]) -> Value {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs the flow; gives the run as it is told, and what it computed.
    fn run(&self, words: &[&str]) -> (Value, Vec<String>) {
        let words = [&["run", "steps.py:main", "--json"], words].concat();
        (self.say(&words), self.ran())
    }

    /// What was computed since this was asked last, in any order.
    fn ran(&self) -> Vec<String> {
        let ran = fs::read_to_string(self.path("ran")).unwrap_or_default();
        let _ = fs::remove_file(self.path("ran"));
        let mut ran: Vec<_> = ran.lines().map(str::to_owned).collect();
        ran.sort();
        ran
    }

    fn explained(&self, run: &Value, task: &str) -> Value {
        let explained = self.say(&["cache", "explain", run["run"].as_str().unwrap(), task, "--json"]);
        assert_eq!(explained["schema"], "eclosion/cache-explain/v1");
        explained
    }

    /// SIGKILL of the kernel in the background.
    fn kill(&self) {
        let status = self.say(&["status", "--json"]);
        let pid = status["pid"].as_u64().unwrap().to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.output(&["down"]);
    }
}

#[test]
fn equal_steps_are_computed_once_and_a_miss_says_what_changed() {
    let house = House::new();
    assert!(house.output(&["up"]).status.success());
    let everything = ["blob", "load", "square", "square", "square", "total"];

    let (first, ran) = house.run(&[]);
    assert_eq!((&first["result"], ran), (&Value::from(100_005), everything.map(str::to_owned).to_vec()));
    assert_eq!(house.explained(&first, "load")["cache"]["causes"][0]["tag"], "no_entry");

    // What is kept survives the kernel, and what has no `cache` is computed.
    house.kill();
    assert!(house.output(&["up"]).status.success());
    let (second, ran) = house.run(&["--set", "bonus=1"]);
    assert_eq!((&second["result"], ran), (&Value::from(100_006), vec!["total".to_owned()]));
    assert_eq!(second["cache"], serde_json::json!({"hits": 5, "misses": 0, "taken": 0}));
    let hit = house.explained(&second, "square[1]");
    assert_eq!(hit["cache"]["state"], "hit");
    assert_eq!(hit["cache"]["from"], serde_json::json!({"run": first["run"], "task": "square[1]"}));

    // Another argument: its step alone, and what gets another output.
    let (wider, ran) = house.run(&["--set", "rows=4"]);
    assert_eq!(ran, ["blob", "load", "square", "total"]);
    let missed = house.explained(&wider, "load");
    assert_eq!(missed["cache"]["causes"], serde_json::json!([{"tag": "argument", "name": "rows"}]));

    // Everything is computed on demand, and kept.
    let (refreshed, ran) = house.run(&["--no-cache", "--new"]);
    assert_eq!(
        (ran.len(), house.explained(&refreshed, "load")["cache"]["state"].as_str()),
        (6, Some("refreshed"))
    );

    house.write(&FLOW.replace("return n * n", "return n * n * n"));
    let (edited, ran) = house.run(&[]);
    assert_eq!((&edited["result"], ran.len()), (&Value::from(100_009), 6));
    assert_eq!(
        house.explained(&edited, "square[2]")["cache"]["causes"],
        serde_json::json!([{"tag": "code"}])
    );
    let told = house.output(&["cache", "explain", edited["run"].as_str().unwrap(), "load"]);
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("`load` is computed: its code changed since "), "{told}");
}

#[test]
fn what_is_dropped_or_not_stored_any_more_is_computed() {
    let house = House::new();
    assert!(house.output(&["up"]).status.success());
    let _ = house.run(&[]);
    let kept = house.say(&["cache", "ls", "--json", "--function", "steps:square"]);
    assert_eq!(kept["entries"].as_array().unwrap().len(), 3);

    let key = kept["entries"][0]["key"].as_str().unwrap();
    assert_eq!(house.say(&["cache", "drop", key, "--json"])["dropped"], 1);
    assert_eq!(house.run(&["--new"]).1, ["square", "total"]);
    assert_eq!(house.say(&["cache", "drop", "steps:square", "--json"])["dropped"], 3);
    let unknown = house.output(&["cache", "drop", "steps:square"]);
    assert_eq!(unknown.status.code(), Some(3), "{}", String::from_utf8_lossy(&unknown.stderr));

    // The one output that is a file.
    for object in fs::read_dir(house.path("state/default/artifacts/objects")).unwrap() {
        fs::remove_dir_all(object.unwrap().path()).unwrap();
    }
    let (run, ran) = house.run(&["--new"]);
    assert_eq!(ran, ["blob", "square", "square", "square", "total"]);
    assert_eq!(house.explained(&run, "blob")["cache"]["causes"], serde_json::json!([{"tag": "collected"}]));
}

/// Each function says that it was called and waits until somebody has written to its gate.
const GATED: &str = r#"
import pathlib

HERE = pathlib.Path(__file__).parent


def compute(x: int = 0) -> int:
    with (HERE / "ran").open("a") as file:
        file.write(__name__ + "\n")
    (HERE / f"{__name__}.gate").read_text()
    return x + 1
"#;

/// Two modules, so that the second is imported when the first has been computed.
const CHAIN: &str = r#"
schema = "eclosion/flow/v1"
name = "gated"

[tasks.first]
run = "first:compute"
cache = "v1"

[tasks.second]
run = "second:compute"
cache = "v1"
with = { x = "${first}" }
"#;

impl House {
    /// A gate that is shut: whoever reads it waits for [`House::within`].
    fn shut(&self, module: &str) {
        let _ = fs::remove_file(self.gate(module));
        assert!(Command::new("mkfifo").arg(self.gate(module)).status().unwrap().success());
    }

    fn open(&self, module: &str) {
        fs::remove_file(self.gate(module)).unwrap();
        fs::write(self.gate(module), "").unwrap();
    }

    fn gate(&self, module: &str) -> String {
        self.path(&format!("{module}.gate"))
    }

    /// Does something while a function waits at its gate, then lets it go on.
    fn within(&self, module: &str, act: impl FnOnce()) {
        // Opens when the function does; a run that has ended opens it as well.
        let gate = fs::OpenOptions::new().write(true).open(self.gate(module)).unwrap();
        act();
        drop(gate);
    }

    fn run_gated(&self, edits: impl FnOnce()) -> (Value, Vec<String>) {
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let output = self.output(&["run", "gated/flow.toml", "--new", "--json"]);
                for module in ["gated/first", "gated/second"] {
                    let _ =
                        fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(self.gate(module));
                }
                output
            });
            edits();
            let output = running.join().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let ran = fs::read_to_string(self.path("gated/ran")).unwrap_or_default();
            let _ = fs::remove_file(self.path("gated/ran"));
            let run: Value = serde_json::from_slice(&output.stdout).unwrap();
            (run, ran.lines().map(str::to_owned).collect())
        })
    }

    /// What is said of a result that is not kept.
    fn unkept(&self, run: &Value, task: &str) -> Option<String> {
        let explained = self.explained(run, task);
        let kept = explained["cache"]["unkept"].is_null();
        let findings = explained["findings"].as_array().unwrap();
        let said = findings.iter().filter_map(Value::as_str).find(|text| text.contains("is not kept"));
        assert_eq!(kept, said.is_none(), "{explained}");
        said.map(str::to_owned)
    }
}

#[test]
fn a_result_whose_code_was_edited_while_it_ran_is_not_kept() {
    let house = House::new();
    fs::create_dir(house.path("gated")).unwrap();
    fs::write(house.path("gated/flow.toml"), CHAIN).unwrap();
    let (first, second) = (house.path("gated/first.py"), house.path("gated/second.py"));
    for (module, file) in [("gated/first", &first), ("gated/second", &second)] {
        fs::write(file, GATED).unwrap();
        house.shut(module);
    }
    assert!(house.output(&["up"]).status.success());

    // The first is computed by what its run names, and nobody can know; the second by what it does not name, and the
    // files are put back before anybody looks.
    let edited = GATED.replace("x + 1", "x + 1000");
    let (run, ran) = house.run_gated(|| {
        house.within("gated/first", || fs::write(&second, edited).unwrap());
        house.within("gated/second", || fs::write(&second, GATED).unwrap());
    });
    assert_eq!((&run["result"], ran), (&Value::from(1001), vec!["first".to_owned(), "second".into()]));
    for task in ["first", "second"] {
        let said = house.unkept(&run, task).unwrap_or_default();
        assert!(said.contains("the code changed while it ran. Run it again: eclosion run "), "{said}");
    }
    let why = house.output(&["why", run["run"].as_str().unwrap(), "first"]);
    let why = String::from_utf8(why.stdout).unwrap();
    assert!(why.contains("The result of `first` is not kept"), "{why}");

    // The same content again, by the same worker: nothing is found, and what it had imported counts no more.
    house.open("gated/first");
    house.open("gated/second");
    let (again, ran) = house.run_gated(|| {});
    assert_eq!((&again["result"], ran.len()), (&Value::from(2), 2));
    assert_eq!((house.unkept(&again, "first"), house.unkept(&again, "second")), (None, None));
    let (found, ran) = house.run_gated(|| {});
    assert_eq!((&found["result"], ran), (&Value::from(2), vec![]));
}
