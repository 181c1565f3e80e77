//! Secrets that users put into the environment, into calls and into headers are written nowhere: not into journal, logs,
//! artifacts, sockets' pages or anything else below the kernel's directories, whatever dies meanwhile (P10).
//!
//! Each place has a canary of its own, so that a leak names where it came from. What a user's own code prints, returns and
//! stores deliberately is found, in each of the same places: so the search can find.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "the support of these tests is shared")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;

use support::House;

/// Every canary begins so; nothing else here does.
const CANARY: &str = "canary-7c1e9f";
/// What the tasks give away deliberately.
const CONTROL: &str = "control-7c1e9f";

const STEPS: &str = r#"
import os
import pathlib
import signal

def has_seen(here):
    once = pathlib.Path(here)
    seen = once.exists()
    once.touch()
    return seen

def careful(once):
    if not has_seen(once):
        raise ValueError("the first time it fails")
    return [name for name, value in os.environ.items() if "canary" in value]

def dies(once):
    if not has_seen(once):
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"

def leaks(control):
    print("printed", control, flush=True)
    return {"inline": "returned " + control}

def stores(control):
    return (f"stored {control}, " + "and again " * 8).encode() * 2000

def takes(token, data=b"", how=""):
    if how == "raises":
        raise ValueError("it was refused")
    if how == "dies":
        os._exit(3)
    return len(token) + len(data)
"#;

fn tasks(house: &House) -> String {
    let once = |name| house.path(name);
    format!(
        "[tasks.careful]\nrun = \"steps:careful\"\nretries = 1\nwith = {{ once = {:?} }}\n\
         [tasks.dies]\nrun = \"steps:dies\"\nwith = {{ once = {:?} }}\n\
         [tasks.leaks]\nrun = \"steps:leaks\"\nwith = {{ control = {CONTROL:?} }}\n\
         [tasks.stores]\nrun = \"steps:stores\"\nwith = {{ control = {CONTROL:?} }}\n",
        once("failed"),
        once("died"),
    )
}

/// With what a user's shell has.
fn command(house: &House, words: &[&str]) -> Command {
    let mut command = house.command(words);
    for name in ["OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "ECLOSION_SECRET_TOKEN", "GIT_ASKPASS"] {
        command.env(name, format!("{CANARY}-{name}"));
    }
    command.env("RUST_LOG", "trace");
    command
}

fn output(house: &House, words: &[&str]) -> Output {
    command(house, words).output().unwrap()
}

fn ok(house: &House, words: &[&str]) -> String {
    let output = output(house, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that it says, whether it succeeds or not.
fn said(house: &House, words: &[&str]) -> String {
    let output = output(house, words);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn call(house: &House, from: &str, how: &str, data: &str) {
    let token = format!("{CANARY}-argument-{from}");
    let request = json!({
        "function": "steps:takes", "code": house.path(""), "with": {"token": token, "how": how},
        // `{"data": part 0}`: 64 KiB go by shared memory.
        "arguments": {
            "body": {"$b64": "gaRkYXRh1gEAAAAA"},
            "parts": [{"data": {"$b64": data}, "bytes": data.len() / 4 * 3, "codec": "bytes"}],
        },
    });
    let answer = said(house, &["call", "pool.call", &request.to_string()]);
    assert!(!answer.contains(CANARY), "{how}: {answer}");
}

/// A page of the socket, asked for with a token.
fn page(house: &House, path: &str) -> String {
    let mut stream = UnixStream::connect(house.path("run/default.sock")).unwrap();
    let head = format!("GET {path}?token={CANARY}-query HTTP/1.1\r\nhost: localhost\r\n");
    write!(stream, "{head}authorization: Bearer {CANARY}-header\r\ncookie: s={CANARY}-cookie\r\n\r\n")
        .unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).unwrap();
    heard
}

fn kill(house: &House) {
    let pid = house.json(&["status"])["pid"].to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    // The next one is refused as long as this one holds the directory.
    while Path::new(&format!("/proc/{pid}/fd/0")).exists() {
        std::thread::yield_now();
    }
}

/// Every file below, but what the test itself has put there.
fn files(below: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(below).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        match path.is_dir() && !path.is_symlink() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

/// Every value of every table, whole: in the file it may lie in pieces.
fn rows(database: &str) -> Vec<u8> {
    let script = "import sqlite3, sys\n\
        base = sqlite3.connect(sys.argv[1])\n\
        for (name,) in base.execute('select name from sqlite_master where type = \"table\"').fetchall():\n\
        \x20   for row in base.execute(f'select * from \"{name}\"'):\n\
        \x20       for cell in row:\n\
        \x20           sys.stdout.buffer.write(cell if isinstance(cell, bytes) else str(cell).encode())\n";
    let dumped = Command::new("python3").args(["-c", script, database]).output().unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    dumped.stdout
}

/// Where a word is found, in what is left of a kernel that has stopped.
fn found(house: &House, word: &str) -> Vec<String> {
    let mut all = Vec::new();
    ["state", "run", "config"].iter().for_each(|part| files(Path::new(&house.path(part)), &mut all));
    all.extend(fs::read_dir("/dev/shm").into_iter().flatten().map(|entry| entry.unwrap().path()));
    let holds = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| contains(&bytes, word));
    let mut places: Vec<_> =
        all.iter().filter(|path| holds(path)).map(|path| path.display().to_string()).collect();
    if contains(&rows(&house.path("state/default/journal/journal.db")), word) {
        places.push("a row of the journal".into());
    }
    places
}

/// Whatever an artifact holds, unpacked.
fn stored(house: &House, run: &str) -> Vec<u8> {
    let mut all = Vec::new();
    for artifact in house.json(&["artifact", "ls"])["artifacts"].as_array().unwrap() {
        let name = format!("{run}/{}", artifact["task"].as_str().unwrap());
        let into = house.path("unpacked");
        all.extend(ok(house, &["artifact", "get", &name, "--out", &into]).into_bytes());
        let mut paths = Vec::new();
        files(Path::new(&into), &mut paths);
        paths.iter().for_each(|path| all.extend(fs::read(path).unwrap()));
    }
    all
}

#[test]
fn secrets_are_written_nowhere_and_what_is_given_away_is_found() {
    let house = House::new(STEPS);
    ok(&house, &["up"]);
    let flow = house.flow("secretive", &tasks(&house));
    let run = serde_json::from_str::<serde_json::Value>(&ok(&house, &["run", &flow, "--detach", "--json"]))
        .unwrap();
    let run = run["run"].as_str().unwrap().to_owned();
    ok(&house, &["attach", &run]);
    let seen = ok(&house, &["artifact", "get", &format!("{run}/careful")]);
    assert!(!seen.contains("_"), "a task sees variables that are not its own: {seen}");

    // 72 KiB of a canary, again and again, three bytes for four.
    let data = "Y2FuYXJ5LTdjMWU5Zi1h".repeat(5_000);
    assert_eq!(CANARY, "canary-7c1e9f", "it is what `data` says in base64");
    for how in ["", "raises", "dies"] {
        call(&house, "whole", how, &data);
    }
    let malformed = json!({"fnction": format!("{CANARY}-malformed")}).to_string();
    said(&house, &["call", "pool.call", &malformed]);
    let pages: Vec<String> = ["/metrics", "/nowhere", "/healthz"].map(|path| page(&house, path)).to_vec();
    assert!(pages[0].contains("eclosion_"), "{pages:?}");

    kill(&house);
    ok(&house, &["up"]);
    call(&house, "second-life", "", &data);
    let looks: [&[&str]; 14] = [
        &["status"],
        &["tree"],
        &["ps"],
        &["pool"],
        &["runs", "ls"],
        &["runs", "show", &run],
        &["why", &run],
        &["logs", &run, "leaks"],
        &["events"],
        &["audit"],
        &["dead", "ls"],
        &["config", "show", "--origin"],
        &["doctor"],
        &["describe"],
    ];
    let shown: Vec<String> =
        looks.iter().map(|words| said(&house, &[words, &["--json"][..]].concat())).collect();
    for (look, said) in looks.iter().zip(&shown).map(|(look, said)| (look.join(" "), said)) {
        assert!(!said.contains(CANARY), "{look}: {said}");
    }
    assert!(pages.iter().all(|page| !page.contains(CANARY)), "{pages:?}");
    assert!(shown[7].contains(CONTROL), "{}", shown[7]);
    let stored = stored(&house, &run);
    assert!(contains(&stored, &format!("stored {CONTROL}")) && !contains(&stored, CANARY));
    ok(&house, &["down"]);

    let nowhere = found(&house, CANARY);
    assert!(nowhere.is_empty(), "a secret was written: {nowhere:?}");
    let given_away = found(&house, &format!("printed {CONTROL}"));
    assert!(given_away.iter().any(|place| place.ends_with(".stdout")), "{given_away:?}");
    let returned = found(&house, &format!("returned {CONTROL}"));
    assert!(returned.iter().any(|place| place.starts_with("a row")), "{returned:?}");
}

#[test]
fn a_password_of_the_package_index_is_in_no_words_of_the_resolver() {
    let house = House::new(STEPS);
    ok(&house, &["up"]);
    let plain = house.flow("plain", "[tasks.one]\nrun = \"steps:takes\"\nwith = { token = \"x\" }\n");
    // The runtime's own package is laid out while there is an index.
    ok(&house, &["run", &plain]);
    ok(&house, &["down"]);
    let index = format!("http://user:{CANARY}-index@127.0.0.1:9/simple");
    let variables = [
        ("PIP_INDEX_URL", index.as_str()),
        ("UV_DEFAULT_INDEX", index.as_str()),
        ("PIP_RETRIES", "0"),
        ("UV_HTTP_RETRIES", "0"),
        ("PIP_DEFAULT_TIMEOUT", "1"),
    ];
    let up = command(&house, &["up"]).envs(variables).output().unwrap();
    assert!(up.status.success(), "{up:?}");
    let flow = house.flow(
        "unresolved",
        "[environment]\nrequirements = [\"no-such-package-7c1e9f==1\"]\n\
         [tasks.one]\nrun = \"steps:takes\"\nwith = { token = \"x\" }\n",
    );
    let refused = command(&house, &["run", &flow]).envs(variables).output().unwrap();
    let words =
        format!("{}{}", String::from_utf8_lossy(&refused.stdout), String::from_utf8_lossy(&refused.stderr));
    assert!(!refused.status.success() && words.contains("no-such-package-7c1e9f"), "{words}");
    assert!(!words.contains(CANARY), "{words}");
    ok(&house, &["down"]);
    let nowhere = found(&house, CANARY);
    assert!(nowhere.is_empty(), "a password was written: {nowhere:?}");
}
