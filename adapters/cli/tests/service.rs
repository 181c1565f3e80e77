//! `eclosion service …` on the real binary, with real Python: its process is killed and comes back under its address, its
//! kernel is killed and begins it once, and who dies too often is given up.
//!
//! No clock: what is to happen is asked for until it is there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::process::{Command, Stdio};

use serde_json::Value;

use support::House;
use support::runs::text;

const DESK: &str = r#"
import os
import pathlib
import time

from eclosion.service import service


@service(address="/desk")
class Desk:
    def __init__(self):
        self.guests = 0
        if pathlib.Path(__file__).with_name("closed").exists():
            raise ValueError("the desk is closed")

    def hello(self, name: str) -> str:
        "Greets a guest."
        self.guests += 1
        return f"Hello, {name}, guest {self.guests} of {os.getpid()}"

    def hang(self, began: str) -> None:
        pathlib.Path(began).touch()
        while True:
            time.sleep(0.01)

    def leave(self) -> None:
        raise SystemExit
"#;

struct Scene(House);

impl Scene {
    fn new() -> Self {
        let house = House::new("");
        house.write("desk.py", DESK);
        house.say(&["up"]);
        Self(house)
    }

    fn start(&self) -> Value {
        self.0.json(&["service", "start", "desk", "desk:Desk", "--code", &self.0.path("")])
    }

    fn hello(&self) -> String {
        let said = self.0.json(&["call", "desk.hello", r#"{"name": "Ada"}"#]);
        text(&said["reply"]).to_owned()
    }

    fn service(&self) -> Value {
        self.0.json(&["service", "ls"])["services"][0].clone()
    }

    fn until(&self, state: &str, life: u64) -> Value {
        let is_there = |list: &Value| {
            let service = &list["services"][0];
            service["state"] == state && service["life"] == life
        };
        self.0.until(&["service", "ls"], state, is_there)["services"][0].clone()
    }

    fn row(&self) -> Value {
        let tree = self.0.json(&["tree"]);
        let rows = tree["actors"].as_array().unwrap();
        rows.iter().find(|row| row["address"] == "/services/desk").unwrap().clone()
    }
}

fn kill(pid: &Value) {
    let pid = pid.as_u64().unwrap().to_string();
    assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
}

#[test]
fn a_service_that_is_killed_comes_back_under_its_address_and_its_callers_are_told() {
    let scene = Scene::new();
    let started = scene.start();
    assert_eq!(
        (text(&started["schema"]), text(&started["state"]), text(&started["address"])),
        ("eclosion/service/v1", "ready", "/desk")
    );
    let pid = started["pid"].clone();
    assert_eq!(scene.hello(), format!("Hello, Ada, guest 1 of {pid}"));
    assert_eq!(scene.start()["pid"], pid, "the same start again is the same service");
    let processes = scene.0.json(&["ps"]);
    let process = processes["processes"].as_array().unwrap().iter().find(|row| row["pid"] == pid).unwrap();
    assert_eq!((text(&process["kind"]), text(&process["service"])), ("service", "desk"));

    // The address has one holder, whatever a second service is called.
    let code = scene.0.path("");
    let second = ["service", "start", "second", "desk:Desk", "--code", &code, "--restarts-max", "0"];
    let (_, said) = scene.0.refused(&second);
    assert!(said.contains("is served already, by") && said.contains(&format!("(pid {pid})")), "{said}");
    scene.0.json(&["service", "stop", "second"]);
    assert_eq!(scene.hello(), format!("Hello, Ada, guest 2 of {pid}"));

    // A caller is inside when it is killed: told at once, by name.
    let began = scene.0.path("began");
    let request = format!(r#"{{"began": {began:?}}}"#);
    let words = ["call", "desk.hang", &request];
    let caller = scene.0.command(&words).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    while !std::path::Path::new(&began).exists() {
        std::thread::yield_now();
    }
    kill(&pid);
    let told = caller.wait_with_output().unwrap();
    let said = String::from_utf8(told.stderr).unwrap();
    assert!(!told.status.success() && said.contains("service.gone"), "{said}");

    let next = scene.until("ready", 2);
    assert_ne!(next["pid"], pid);
    assert_eq!((text(&next["address"]), &next["restarts"]), ("/desk", &Value::from(1)));
    assert_eq!(scene.hello(), format!("Hello, Ada, guest 1 of {}", next["pid"]));
    assert_eq!((text(&scene.row()["state"]), &scene.row()["restarts"]), ("ready", &Value::from(1)));

    // It leaves by itself, which its policy leaves at that; and an operator begins it again.
    let _ = scene.0.output(&["call", "desk.leave", "{}"]);
    scene.until("stopped", 2);
    let again = scene.0.json(&["service", "restart", "desk", "--reason", "a test"]);
    assert_eq!((text(&again["state"]), &again["life"]), ("ready", &Value::from(3)));
    let stopped = scene.0.json(&["service", "stop", "desk"]);
    assert_eq!(text(&stopped["state"]), "stopped");
    scene.0.until(&["tree"], "the address is free", |tree| {
        tree["actors"].as_array().unwrap().iter().all(|row| row["address"] != "/desk")
    });
}

#[test]
fn a_service_outlives_its_kernel_and_is_begun_exactly_once_by_the_next() {
    let scene = Scene::new();
    let first = scene.start();
    let kernel = scene.0.json(&["status"]);
    kill(&kernel["pid"]);
    scene.0.say(&["up"]);
    let second = scene.until("ready", 2);
    assert_eq!(second["restarts"], 0, "the death of the kernel is not its own");
    assert_eq!(scene.hello(), format!("Hello, Ada, guest 1 of {}", second["pid"]));
    let started = scene.0.say(&["events", "--tail", "1000", "--json"]);
    let lives = started.lines().filter(|line| line.contains(r#""service.started""#)).count();
    assert_eq!(lives, 2, "{first} {second}");
    // One that is stopped in order keeps what is wanted, too.
    scene.0.say(&["down"]);
    scene.0.say(&["up"]);
    scene.until("ready", 3);
    assert!(scene.hello().starts_with("Hello, Ada, guest 1"));
    scene.0.json(&["service", "stop", "desk"]);
    scene.0.say(&["down"]);
    scene.0.say(&["up"]);
    assert_eq!(text(&scene.service()["state"]), "stopped");
}

#[test]
fn a_service_that_cannot_live_is_given_up_by_name() {
    let scene = Scene::new();
    scene.0.write("closed", "");
    let code = scene.0.path("");
    let words = ["service", "start", "desk", "desk:Desk", "--code", &code, "--restarts-max", "2"];
    let (status, said) = scene.0.refused(&words);
    assert!(status != Some(0) && said.contains("the desk is closed"), "{said}");
    let failed = scene.until("failed", 3);
    assert!(text(&failed["last_error"]["message"]).contains("the desk is closed"), "{failed}");
    let row = scene.row();
    assert_eq!(text(&row["state"]), "failed");
    assert!(text(&row["last_error"]).contains("the desk is closed"), "{row}");
    // The cause is mended, and its earlier deaths are forgotten.
    std::fs::remove_file(scene.0.path("closed")).unwrap();
    let mended = scene.0.json(&["service", "restart", "desk"]);
    assert_eq!((text(&mended["state"]), &mended["restarts"]), ("ready", &Value::from(0)));
    let (_, said) = scene.0.refused(&["service", "stop", "nobody"]);
    assert!(said.contains("there is no service nobody") && said.contains("eclosion service ls"), "{said}");
}

#[test]
fn a_service_whose_code_cannot_be_imported_has_failed_at_once_and_says_why() {
    let scene = Scene::new();
    for (source, reason) in [("def desk(:", "SyntaxError"), ("import nothing_called_so", "nothing_called_so")]
    {
        scene.0.write("broken.py", source);
        let words = ["service", "start", "broken", "broken:Desk", "--code", &scene.0.path("")];
        let refused = scene.0.output(&words);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(reason), "{said}");
        assert!(!said.contains("begun again"), "{said}");
        let service = scene.service();
        assert_eq!(
            (text(&service["state"]), service["restarts"].as_u64()),
            ("failed", Some(0)),
            "{service:#}"
        );
    }
}
