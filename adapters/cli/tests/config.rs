//! The binary's configuration as somebody meets it: real files, real variables, a real kernel in the background.
//!
//! Each test has a project, a home and a state directory of its own; none of them needs Python.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// `project/deep` is where commands are given, `project` where its file is, `home` the user's.
struct House(TempDir);

impl House {
    fn new() -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(house.path("project/deep")).unwrap();
        fs::create_dir_all(house.path("home/.config/eclosion")).unwrap();
        house
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(path)
    }

    fn shown(&self, path: &str) -> String {
        self.path(path).display().to_string()
    }

    fn project(&self, text: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path("project/eclosion.toml"), text).unwrap();
        self
    }

    fn user(&self, text: &str) -> &Self {
        fs::write(self.path("home/.config/eclosion/eclosion.toml"), text).unwrap();
        self
    }

    /// Nothing of the tester's own environment, but what a kernel in the background needs.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eclosion"));
        command.args(words).current_dir(self.path("project/deep")).stdin(Stdio::null());
        command.env_clear().env("HOME", self.path("home")).env("PATH", std::env::var_os("PATH").unwrap());
        command.env("XDG_RUNTIME_DIR", self.path("home"));
        command
    }

    fn say(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn document(&self, words: &[&str]) -> Value {
        let output = self.command(words).arg("--json").output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.say(&["down", "--config", "/dev/null"]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A row of `config show --origin`, without the space between its cells.
fn row(output: &Output, key: &str) -> String {
    let shown = text(&output.stdout);
    let line = shown.lines().find(|line| line.split_whitespace().next() == Some(key)).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn show_says_of_each_value_where_it_was_set() {
    let house = House::new();
    house.user("[keeper]\ngrace_ms = 11\n[pool]\nidle_ms = 12\nworkers_max = 2\n");
    house.project("\n[pool]\nworkers_max = 3\ncancel_grace_ms = 4\n");
    let (project, user) =
        (house.shown("project/eclosion.toml"), house.shown("home/.config/eclosion/eclosion.toml"));
    let mut command =
        house.command(&["config", "show", "--origin", "--setting", "environment.build_timeout_ms=5000"]);
    command
        .args(["--instance", "desk"])
        .env("ECLOSION_CANCEL_GRACE_MS", "7")
        .env("ECLOSION_STATE_DIR", "here");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    for (key, rest) in [
        ("keeper.grace_ms", format!("11 user {user}:2")),
        ("pool.idle_ms", format!("12 user {user}:4")),
        ("pool.workers_max", format!("3 project {project}:3")),
        ("pool.cancel_grace_ms", "7 environment ECLOSION_CANCEL_GRACE_MS".into()),
        ("places.state_dir", format!("{} environment ECLOSION_STATE_DIR", house.shown("project/deep/here"))),
        ("environment.build_timeout_ms", "5000 flag --setting".into()),
        ("kernel.instance", "desk flag --instance".into()),
        ("kernel.listen", format!("{} default", house.shown("home/eclosion/desk.sock"))),
        ("pool.workers_min", "0 default".into()),
    ] {
        assert_eq!(row(&output, key), format!("{key} {rest}"));
    }
    let plain = house.say(&["config", "show"]);
    assert_eq!(row(&plain, "pool.workers_max"), "pool.workers_max 3");
    assert!(!text(&plain.stdout).contains("origin"));
}

#[test]
fn show_is_a_document_for_who_asks_for_json() {
    let house = House::new();
    house.project("pool.workers_max = 3\n");
    let document = house.document(&["config", "show"]);
    assert_eq!(document["schema"], "eclosion/config/v1");
    let project = house.shown("project/eclosion.toml");
    assert_eq!(document["files"], serde_json::json!({"project": project, "user": null}));
    let find = |key: &str| {
        document["settings"].as_array().unwrap().iter().find(|row| row["key"] == key).unwrap().clone()
    };
    let row = find("pool.workers_max");
    assert_eq!(row["value"], 3);
    assert_eq!(row["origin"], serde_json::json!({"layer": "project", "file": project, "line": 1}));
    assert_eq!(row["variable"], "ECLOSION_WORKERS_MAX");
    assert_eq!(find("keeper.grace_ms")["origin"], serde_json::json!({"layer": "default"}));
}

#[test]
fn whatever_is_wrong_ends_a_command_before_it_does_anything() {
    let house = House::new();
    let project = house.shown("project/eclosion.toml");
    for (text_of_file, said) in [
        (&b"[pool]\nworker_max = 3\n"[..], format!("{project}:2: `pool.worker_max` is no setting")),
        (b"[pool]\nworkers_max = \"3\"\n", format!("{project}:2: `pool.workers_max` takes a whole number")),
        (b"[pool]\nworkers_max = 0\n", format!("{project}:2: `pool.workers_max` is out of range")),
        (b"[kernel]\ninstance = \"../x\"\n", format!("{project}:2: `kernel.instance` is no name")),
        (b"[pool]\nworkers_max == 3\n", format!("{project}:2:14: ")),
        (b"# caf\xe9\n", format!("{project}:1:6: this is not UTF-8")),
        (
            b"[pool]\nworkers_min = 4096\n",
            format!("`pool.workers_min` (4096, project {project}:2) is above "),
        ),
    ] {
        house.project(text_of_file);
        for words in [&["up"][..], &["up", "--foreground"], &["run", "--detach", "flow.py:x"]] {
            let output = house.say(words);
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{words:?}: {error}");
            assert!(error.starts_with(&format!("error: {said}")), "{words:?}: {error}");
            assert!(error.contains("(config.") && error.contains("\nhelp: "), "{words:?}: {error}");
        }
        assert!(!house.path("home/.local").exists() && !house.path("home/eclosion").exists());
    }
    let hint = text(&house.project("[pool]\nworker_max = 3\n").say(&["status"]).stderr);
    assert!(hint.contains("help: did you mean `pool.workers_max`?"), "{hint}");
}

#[test]
fn a_variable_and_a_flag_are_checked_as_a_file_is() {
    let house = House::new();
    for (variable, value, reason) in [
        ("ECLOSION_GRACE_MS", "soon", "config.type"),
        ("ECLOSION_WORKERS_MAX", "0", "config.range"),
        ("ECLOSION_WORKER_MAX", "3", "config.unknown_variable"),
        ("ECLOSION_CONFIG", "nowhere.toml", "config.file"),
        ("ECLOSION_CONFIG", "/", "config.file"),
    ] {
        let output = house.command(&["status"]).env(variable, value).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{variable}: {error}");
        assert!(error.contains(&format!("({reason})")) && error.contains("\nhelp: "), "{variable}: {error}");
    }
    for (words, reason) in [
        (["--setting", "pool.workers_max"], "config.flag"),
        (["--setting", "pool.workers_maxx=3"], "config.unknown_key"),
        (["--setting", "pool.workers_max=-3"], "config.range"),
        (["--config", "nowhere.toml"], "config.file"),
    ] {
        let output = house.command(&["status"]).args(words).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {error}");
        assert!(error.contains(&format!("({reason})")), "{words:?}: {error}");
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_never_printed() {
    const SECRET: &str = "hunter2-canary";
    let house = House::new();
    for said in
        ["token = \"S\"\n", "[keeper]\ngrace_ms = \"S\"\n", "token = \"S\n", "kernel.instance = \"S/\"\n"]
    {
        house.project(said.replace('S', SECRET));
        for words in [&["config", "show", "--origin"][..], &["config", "path"], &["doctor"], &["status"]] {
            let mut command = house.command(words);
            command.env("ECLOSION_SECRET_TOKEN", SECRET).env("ECLOSION_GRACE_MS", SECRET);
            for json in [false, true] {
                let output = command.args(json.then_some("--json")).output().unwrap();
                let all = text(&output.stdout) + &text(&output.stderr);
                assert!(!all.contains(SECRET), "{said} {words:?}: {all}");
            }
        }
    }
}

#[test]
fn what_helps_to_mend_a_configuration_works_with_a_broken_one() {
    let house = House::new();
    house.project("[pool]\nworker_max = 3\n");
    let path = house.document(&["config", "path"]);
    assert_eq!(path["project"], house.shown("project/eclosion.toml"));
    assert_eq!(path["user"], house.shown("home/.config/eclosion/eclosion.toml"));
    assert_eq!(path["user_exists"], false);
    let output = house.say(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let doctor: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = doctor["checks"].as_array().unwrap();
    let limits = checks.iter().find(|check| check["name"] == "limits").unwrap();
    assert!(limits["text"].as_str().unwrap().contains("of tasks are limited by "), "{limits}");
    let config = checks.iter().find(|check| check["name"] == "config").unwrap();
    assert_eq!(config["is_well"], false);
    assert_eq!(config["help"], "did you mean `pool.workers_max`?");
    assert!(house.say(&["completion", "bash"]).status.success());
}

#[test]
fn a_kernel_in_the_background_works_with_what_was_said_where_it_was_started() {
    let house = House::new();
    house.project("[pool]\nworkers_max = 3\n[places]\nstate_dir = \"kept\"\n");
    // Relative to where it was started, and the kernel works elsewhere.
    let mut up = house.command(&["up", "--json", "--setting", "places.cache_dir=cached"]);
    let output = up.env("ECLOSION_RUNTIME_DIR", "../r").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let socket = house.path("project/deep").join("../r/default.sock");
    let up: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(up["socket"], socket.display().to_string());
    assert!(house.path("project/kept/default/journal").is_dir());
    assert!(house.path("project/deep/cached").is_dir());
    assert!(!house.path("home/.local").exists());
    let with_socket = |words: &[&str]| house.command(words).env("ECLOSION_SOCKET", &socket).output().unwrap();
    let pool: Value = serde_json::from_slice(&with_socket(&["pool", "--json"]).stdout).unwrap();
    assert_eq!(pool["workers_max"], 3);
    let log = fs::read_to_string(house.path("project/kept/default/logs/kernel.log")).unwrap();
    assert!(log.contains("configured") && log.contains("pool.workers_max=3"), "{log}");
    assert!(with_socket(&["down"]).status.success());
}

#[test]
fn a_kernel_in_the_background_gets_what_nobody_can_read_twice() {
    let house = House::new();
    house.user("[pool]\nidle_ms = 9\n").project("[pool]\nworkers_max = 2\n");
    let said = house.path("said.toml");
    fs::write(&said, "[pool]\nworkers_max = 3\n").unwrap();
    let mut up = house.command(&["up", "--json", "--config", "/dev/stdin"]);
    let output = up.stdin(fs::File::open(said).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(house.document(&["pool"])["workers_max"], 3);
    assert!(house.say(&["down"]).status.success());
}

#[test]
fn doctor_names_the_files_that_were_read() {
    let house = House::new();
    house.project("[pool]\nworkers_max = 3\n");
    let checks = text(&house.say(&["doctor"]).stdout);
    assert!(checks.contains(&house.shown("project/eclosion.toml")), "{checks}");
}

#[test]
fn completion_knows_the_command_and_its_flags() {
    let house = House::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&house.say(&["completion", shell]).stdout);
        for word in ["config", "origin", "setting"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}
