//! What a person is told when something is wrong: one sentence, the exit code that a script may branch on, the command
//! to run next; and nothing half-written behind it.
//!
//! Real binary, real kernel, real Python. Each test has a house of its own; they share the runtime that workers import,
//! which the first of them has to download.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use binary::eclosion;

const STEPS: &str = r#"
import csv
import json
from eclosion import TaskError, current, task

def page(text):
    path = current().scratch / "page.html"
    path.write_text("<html>" + text + "x" * 100_000)
    return {"page": path}

def parse(text, after=None):
    (current().scratch / "half.html").write_text("<html>")
    return decoded(text)

def decoded(text):
    return json.loads(text)

def column(data, target):
    try:
        with open(data) as file:
            header = next(csv.reader(file))
    except OSError as why:
        raise TaskError(f"there is no file `{data}`", help="the path of a CSV file", retry=False) from why
    if target not in header:
        raise TaskError(f"{data} has no column `{target}`", help=f"columns: {', '.join(header)}", retry=False)
    return header.index(target)
"#;

const FLOW: &str = r#"
schema = "eclosion/flow/v1"
name = "small"
[parameters]
text = "1"
[tasks.page]
run = "steps:page"
with = { text = "${param.text}" }
[tasks.parse]
run = "steps:parse"
with = { text = "${param.text}", after = "${page}" }
"#;

const COLUMN: &str = r#"
schema = "eclosion/flow/v1"
name = "column"
[parameters]
data = ""
target = "y"
[tasks.column]
run = "steps:column"
with = { data = "${param.data}", target = "${param.target}" }
"#;

struct House {
    directory: TempDir,
    cache: PathBuf,
}

impl House {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let house = Self { directory, cache: Path::new(env!("CARGO_TARGET_TMPDIR")).join("errors-cache") };
        house.write("steps.py", STEPS);
        house.write("flow.toml", FLOW);
        house.write("column.toml", COLUMN);
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// [`FLOW`] with one thing changed.
    fn flow(&self, name: &str, from: &str, to: &str) {
        assert!(FLOW.contains(from), "{from}");
        self.write(name, &FLOW.replace(from, to));
    }

    fn say(&self, words: &[&str]) -> Output {
        eclosion(self.directory.path(), words).env("ECLOSION_CACHE_DIR", &self.cache).output().unwrap()
    }

    /// Says it, and gives what it was told on stderr, with every piece of which it must be refused.
    fn refused(&self, words: &[&str], code: i32, pieces: &[&str]) -> String {
        let output = self.say(words);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {told}");
        assert!(output.stdout.is_empty(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        for piece in pieces {
            assert!(told.contains(piece), "{words:?} does not say {piece:?}: {told}");
        }
        assert!(names_a_command(&told), "{words:?} names no command: {told}");
        self.check_clean(words);
        told
    }

    /// The same as a document.
    fn refused_as_json(&self, words: &[&str], code: i32) -> Value {
        let output = self.say(&[words, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{words:?}");
        self.check_clean(words);
        serde_json::from_slice(&output.stdout).expect("one document")
    }

    /// Nothing that a reader could take for a result, and nothing that was to become one.
    fn check_clean(&self, words: &[&str]) {
        let state = "state/default";
        for path in files_below(self.directory.path()) {
            let shown = path.strip_prefix(self.directory.path()).unwrap().to_string_lossy().into_owned();
            let is_left = shown.ends_with(".html")
                || shown.starts_with("out")
                || shown.starts_with("eclosion-out")
                || shown.contains(".fetch-")
                || shown.starts_with(&format!("{state}/scratch"))
                || shown.starts_with(&format!("{state}/artifacts/stage"))
                || shown.starts_with(&format!("{state}/artifacts/quarantine"));
            assert!(!is_left, "{words:?} left {shown}");
        }
        assert!(!self.path("out").exists(), "{words:?} left out");
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.say(&["down"]);
    }
}

/// `eclosion COMMAND …`, as something to type and not as a path.
fn names_a_command(told: &str) -> bool {
    told.match_indices("eclosion ").any(|(at, _)| !told[..at].ends_with(['/', '-', '.']))
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

/// An error as a program reads it.
fn check_error(error: &Value, code: &str, reason: &str, retry: &str) {
    assert_eq!(
        (&error["code"], &error["reason"], &error["retry"]["policy"]),
        (&json!(code), &json!(reason), &json!(retry)),
        "{error}"
    );
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    assert!(error["help"].as_str().is_some_and(names_a_command), "{error}");
}

#[test]
fn a_flow_file_that_is_not_there_is_not_found_and_the_likely_one_is_named() {
    let house = House::new();
    house.refused(
        &["run", "flwo.toml", "--out", "out"],
        3,
        &["error: flwo.toml cannot be read", "did you mean `flow.toml`?", "eclosion run flow.toml"],
    );
    house.refused(&["run", "nowhere/x.toml"], 3, &["error: nowhere/x.toml cannot be read"]);
    house.refused(&["run", "nowhere.py:main"], 3, &["error: nowhere.py cannot be read"]);
    house.refused(&["run", "steps.py"], 2, &["FILE.py:flow"]);
    house.refused(
        &["run", "steps.py:main"],
        2,
        &[
            "flows in it: none",
            "from eclosion import flow, task",
            "@flow",
            "@task",
            "then: eclosion validate steps.py:main",
        ],
    );
}

#[test]
fn what_is_wrong_in_a_flow_is_named_and_neither_run_nor_validated() {
    let house = House::new();
    house.flow(
        "cycle.toml",
        "text = \"${param.text}\" }\n[tasks.parse]",
        "text = \"${parse}\" }\n[tasks.parse]",
    );
    house.flow("reference.toml", "${page}", "${paeg}");
    house.flow("parameter.toml", "${param.text}\", after", "${param.txet}\", after");
    house.flow("key.toml", "with = { text = \"${param.text}\" }", "wiht = { text = \"1\" }");
    house.write("broken.toml", "schema = \"eclosion/flow/v1");
    for (file, pieces) in [
        ("cycle.toml", &["in a circle: page → parse → page"][..]),
        ("reference.toml", &["there is no task `paeg`", "did you mean `page`?"]),
        ("parameter.toml", &["txet", "did you mean `text`?"]),
        ("key.toml", &["key.toml:8:1: there is no key `wiht`", "did you mean `with`?"]),
        ("broken.toml", &["broken.toml:1:"]),
    ] {
        let command = format!("eclosion validate {file}");
        let pieces = [pieces, &[command.as_str()]].concat();
        let told = house.refused(&["run", file, "--out", "out"], 2, &pieces);
        let validated = house.refused(&["validate", file], 2, &pieces);
        assert_eq!(told, validated, "what starts no run shows no kernel");
    }
}

#[test]
fn a_misspelled_parameter_is_refused_with_the_one_that_was_meant() {
    let house = House::new();
    let words = ["run", "flow.toml", "--set", "txet=3", "--out", "out"];
    let pieces = [
        "the flow has no parameter `txet`",
        "did you mean `text`? Write --set text=3. Then: eclosion validate flow.toml",
    ];
    house.refused(&words, 2, &pieces);
    let document = house.refused_as_json(&words, 2);
    assert_eq!(document["schema"], "eclosion/error/v1");
    check_error(&document, "invalid", "flow.parameter", "never");
    house.refused(
        &["run", "flow.toml", "--set", "text=[3]"],
        2,
        &["parameter `text` is text, [3] is a list"],
    );
}

#[test]
fn to_cancel_what_has_finished_changes_nothing_and_says_so() {
    let house = House::new();
    let ran = house.say(&["run", "flow.toml", "--out", "out", "--json"]);
    let told = String::from_utf8_lossy(&ran.stderr);
    assert!(
        told.contains(" actors, all ready") && !told.contains("─ "),
        "one line where no screen is: {told}"
    );
    let ran: Value = serde_json::from_slice(&ran.stdout).expect("one document");
    assert!(house.say(&["up"]).status.success());
    let output = house.say(&["runs", "cancel", ran["run"].as_str().unwrap()]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("has finished already (succeeded); there is nothing to cancel"), "{told}");
}

#[test]
fn a_module_that_is_not_there_fails_the_run_and_says_where_it_was_looked_for() {
    let house = House::new();
    house.flow("module.toml", "steps:page", "setps:page");
    house.flow("function.toml", "steps:page", "steps:paeg");
    let beside =
        format!("is there a setps.py below {}?", house.directory.path().canonicalize().unwrap().display());
    house.refused(
        &["run", "module.toml", "--out", "out"],
        1,
        &[
            "page: module `setps` cannot be imported",
            &beside,
            "Run it again: eclosion run /",
            "1 failed, 1 skipped",
        ],
    );
    let found = ["module `steps` has no `paeg`", "did you mean `page`?"];
    house.refused(&["run", "function.toml", "--out", "out"], 1, &found);
}

#[test]
fn an_environment_that_cannot_be_had_fails_the_run_with_the_resolvers_words() {
    let mut house = House::new();
    // What is left there is looked at.
    house.cache = house.path("cache");
    house.flow(
        "flow.toml",
        "[parameters]",
        "[environment]\nrequirements = [\"mine @ file:///nowhere/mine\"]\n[parameters]",
    );
    let words = ["run", "flow.toml", "--out", "out"];
    house.refused(
        &words,
        1,
        &[
            "(environment.resolve)",
            "  ERROR: ",
            "/nowhere/mine",
            "change environment.requirements",
            "never started",
        ],
    );
    let document = house.refused_as_json(&words, 1);
    assert_eq!((&document["schema"], &document["state"]), (&json!("eclosion/run/v1"), &json!("failed")));
    check_error(&document["error"], "invalid", "environment.resolve", "never");
    let causes = document["error"]["causes"].to_string();
    assert!(causes.contains("/nowhere/mine"), "{causes}");
    let left: Vec<_> = files_below(&house.cache)
        .into_iter()
        .filter(|path| path.extension() != Some("lock".as_ref()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_task_that_raises_is_shown_by_its_own_frames() {
    let house = House::new();
    let line = |needle: &str| STEPS.lines().position(|line| line.contains(needle)).unwrap() + 1;
    let steps = house.directory.path().canonicalize().unwrap().join("steps.py");
    let outer =
        format!("{}:{}, in parse\n      return decoded(text)\n", steps.display(), line("return decoded"));
    let inner =
        format!("{}:{}, in decoded\n      return json.loads(text)\n", steps.display(), line("return json"));
    let words = ["run", "flow.toml", "--set", "text={", "--out", "out"];
    let told = house.refused(
        &words,
        1,
        &[
            &outer,
            &inner,
            "json.decoder.JSONDecodeError: Expecting property name",
            "frames of libraries not shown",
            "1 succeeded, 1 failed",
            "Read on: eclosion logs ",
            "flow.toml --set 'text={'",
        ],
    );
    assert!(!told.contains("json/decoder.py") && !told.contains("worker.py"), "{told}");
    // The step before it has committed its page: the store is where `check_clean` looks, and keeps what is whole.
    assert_eq!(files_below(&house.path("state/default/artifacts/objects")).len(), 1);
    let document = house.refused_as_json(&words, 1);
    check_error(&document["error"], "internal", "task.raised", "now");
    let failed = &document["failed"][0];
    assert_eq!(
        (&failed["task"], &failed["error"]["remote"]["type"]),
        (&json!("parse"), &json!("json.decoder.JSONDecodeError"))
    );
    let findings = document["findings"].to_string();
    assert!(findings.contains("Run it again: eclosion run "), "{findings}");
}

#[test]
fn a_flow_in_python_that_cannot_be_imported_is_shown_by_its_own_frames() {
    let house = House::new();
    house.write("mine.py", "from eclosion import flow\nimport nowhere_module\n");
    house.write("raising.py", "def inner():\n    raise ValueError('boom')\n\ninner()\n");
    let told = house.refused(
        &["run", "mine.py:main", "--out", "out"],
        2,
        &[
            "mine.py:2, in <module>\n      import nowhere_module",
            "ModuleNotFoundError: No module named 'nowhere_module'",
            "eclosion validate mine.py:main",
        ],
    );
    assert!(!told.contains("importlib") && !told.contains("describe.py"), "{told}");
    house.refused(
        &["run", "raising.py:main"],
        2,
        &[
            "raising.py:4, in <module>\n      inner()",
            "raising.py:2, in inner\n      raise ValueError('boom')",
            "ValueError: boom",
        ],
    );
}

#[test]
fn a_wrong_file_and_a_wrong_column_are_told_in_the_words_of_the_task() {
    let house = House::new();
    house.write("table.csv", "x,y\n1,2\n");
    let words =
        |pair: &'static str| ["run", "column.toml", "--out", "out", "--set", "data=table.csv", "--set", pair];
    let told = house.refused(
        &words("data=tabel.csv"),
        1,
        &["there is no file `tabel.csv`", "help: the path of a CSV file"],
    );
    assert!(told.contains("FileNotFoundError"), "{told}");
    house.refused(
        &words("target=z"),
        1,
        &["table.csv has no column `z`", "help: columns: x, y", "--set target=z"],
    );
    let document = house.refused_as_json(&words("target=z"), 1);
    check_error(&document["error"], "internal", "task.raised", "never");
}

/// The flow that the README names, on the interpreter that the Python tests are run with.
#[test]
fn the_automl_flow_says_which_data_and_which_columns_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let python = std::env::var_os("ECLOSION_TEST_PYTHON")
        .map_or_else(|| root.join("target/test-python/bin/python"), PathBuf::from);
    if !python.exists() {
        return eprintln!("SKIPPED 1 test of errors: no {}; cargo t python", python.display());
    }
    let house = House::new();
    let flow = root.join("python-workers/flows/automl");
    let text = fs::read_to_string(flow.join("flow.toml")).unwrap();
    let (head, rest) = text.split_once("[environment]").unwrap();
    let (_, rest) = rest.split_once("[parameters]").unwrap();
    let environment =
        format!("code = {:?}\n[environment]\npython = {python:?}\n[parameters]", flow.display().to_string());
    house.write("automl.toml", &format!("{head}{environment}{rest}"));
    house.write("table.csv", "price,area\n1,2\n");
    let words = |pairs: &[&'static str]| {
        let set = pairs.iter().flat_map(|pair| ["--set", pair]);
        ["run", "automl.toml", "--out", "out"].into_iter().chain(set).collect::<Vec<_>>()
    };
    house.refused(
        &words(&["data=breast_cancr"]),
        1,
        &["there is no data set and no file `breast_cancr`", "did you mean `breast_cancer`?", "1 failed, "],
    );
    house.refused(
        &words(&["data=table.csv", "target=prise"]),
        1,
        &["has no column `prise`", "did you mean `price`?"],
    );
}
