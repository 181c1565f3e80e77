//! One trace from the command line through the kernel's actors into a Python attempt and back, taken by a real receiver:
//! `rotel`, which the test's Python environment has. Without it the tests are skipped, and say so.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stderr, reason = "who reads the output of a test should know that it was skipped")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use support::House;

const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const STEPS: &str = r#"
import pathlib, eclosion

def first(seen, gate):
    pathlib.Path(seen).write_text(eclosion.current().trace or "")
    while gate and not pathlib.Path(gate).exists():
        eclosion.current().wait_cancelled(0.01)
    return 1

def second(x):
    return x + 1
"#;

const TASKS: &str = r#"
[parameters]
seen = ""
gate = ""

[tasks.first]
run = "steps:first"
with = { seen = "${param.seen}", gate = "${param.gate}" }

[tasks.second]
run = "steps:second"
with = { x = "${first}" }
"#;

/// The receiver's process; it goes with the test.
struct Receiver {
    process: Child,
    port: u16,
    log: PathBuf,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
    }
}

#[derive(Debug, Clone, Default)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
}

fn agent() -> Option<PathBuf> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-python/bin/python");
    let python = std::env::var_os("ECLOSION_TEST_PYTHON").map_or(made, PathBuf::from);
    let find = "import importlib.util as u; print(u.find_spec('rotel').submodule_search_locations[0])";
    let found = Command::new(&python).args(["-c", find]).stderr(Stdio::null()).output();
    let found = found.ok().filter(|found| found.status.success());
    let agent = found.map(|found| PathBuf::from(text(&found.stdout).trim()).join("rotel-agent"));
    if agent.is_none() {
        eprintln!("SKIPPED a test of traces: no rotel beside {}; cargo t python makes it", python.display());
    }
    agent
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Nobody listens there.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}

impl Receiver {
    fn start(agent: &Path, house: &House) -> Self {
        let (http, grpc) = (free_port(), free_port());
        let log = PathBuf::from(house.path("receiver.log"));
        let process = Command::new(agent)
            .args(["start", "--exporter", "blackhole", "--debug-log", "traces"])
            .args(["--debug-log-verbosity", "detailed"])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .stdin(Stdio::null())
            // What it takes is printed; its `--log-file` has only what it says of itself.
            .stdout(File::create(&log).unwrap())
            .stderr(Stdio::null())
            .spawn();
        let receiver = Self { process: process.unwrap(), port: http, log };
        until("the receiver listens", || TcpStream::connect(("127.0.0.1", http)).is_ok());
        receiver
    }

    fn spans(&self) -> Vec<Span> {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mut spans: Vec<Span> = Vec::new();
        for line in said.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim().to_owned();
            match key.trim() {
                "Trace ID" => spans.push(Span { trace: value, ..Span::default() }),
                key => {
                    let Some(span) = spans.last_mut() else { continue };
                    match key {
                        "Parent ID" => span.parent = value,
                        "ID" => span.id = value,
                        "Name" => span.name = value,
                        _ => {}
                    }
                }
            }
        }
        spans
    }

    /// The first of this name in the trace, once it was taken.
    fn span(&self, name: &str) -> Span {
        let mut found = None;
        let begun = Instant::now();
        while found.is_none() {
            found = self.spans().into_iter().find(|span| span.name == name && span.trace == TRACE);
            assert!(begun.elapsed() < PATIENCE, "no span {name} in {:#?}", self.spans());
        }
        found.unwrap_or_default()
    }
}

struct Scene {
    house: House,
    endpoint: String,
}

impl Scene {
    fn new(port: u16, house: House) -> Self {
        house.flow("traced", TASKS);
        Self { house, endpoint: format!("http://127.0.0.1:{port}") }
    }

    fn eclosion(&self, words: &[&str]) -> Output {
        let mut command = self.house.command(words);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &self.endpoint).env("OTEL_SERVICE_NAME", "a test");
        command.env("TRACEPARENT", format!("00-{TRACE}-{CALLER}-01"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        output
    }

    fn seen(&self) -> String {
        std::fs::read_to_string(self.house.path("seen")).unwrap_or_default()
    }

    fn run(&self, more: &[&str]) -> Output {
        let seen = format!("seen={}", self.house.path("seen"));
        self.eclosion(&[&["run", "traced.toml", "--set", &seen], more].concat())
    }
}

#[test]
fn a_run_is_one_trace_from_the_command_through_the_actors_into_python_and_back() {
    let Some(agent) = agent() else { return };
    let house = House::new(STEPS);
    let receiver = Receiver::start(&agent, &house);
    let scene = Scene::new(receiver.port, house);
    scene.eclosion(&["up"]);
    scene.run(&[]);

    let chain = [
        "eclosion run",
        "run.start /dag",
        "pool.dispatch /pool",
        "attempt steps:first",
        "python steps:first",
    ];
    let spans: Vec<_> = chain.iter().map(|name| receiver.span(name)).collect();
    assert_eq!(spans[0].parent, CALLER);
    for pair in spans.windows(2) {
        assert_eq!(pair[1].parent, pair[0].id, "{:?} is not below {:?}", pair[1], pair[0]);
    }
    let attempt = &spans[3];
    // And back: what came of it is committed below the attempt.
    let begun = Instant::now();
    while !receiver.spans().iter().any(|span| span.name == "step.commit /dag" && span.parent == attempt.id) {
        assert!(begun.elapsed() < PATIENCE, "no commit below {attempt:?}: {:#?}", receiver.spans());
    }
    // User code stands where the attempt does.
    assert_eq!(scene.seen(), format!("00-{TRACE}-{}-01", attempt.id));
}

#[test]
fn a_run_stays_in_its_trace_when_the_kernel_is_killed_and_started_again() {
    let Some(agent) = agent() else { return };
    let house = House::new(STEPS);
    let receiver = Receiver::start(&agent, &house);
    let scene = Scene::new(receiver.port, house);
    scene.eclosion(&["up"]);
    let gate = scene.house.path("gate");
    scene.run(&["--set", &format!("gate={gate}"), "--detach"]);
    until("the first task runs", || !scene.seen().is_empty());
    let pid = scene.house.json(&["status"])["pid"].as_u64().unwrap().to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    scene.eclosion(&["up"]);
    std::fs::write(&gate, "").unwrap();
    // Its span is of the second life, and its trace of the first.
    let second = receiver.span("attempt steps:second");
    let wished = receiver.spans().into_iter().find(|span| span.id == second.parent);
    assert!(wished.is_some_and(|span| span.name == "pool.dispatch /pool"), "{second:?}");
}

#[test]
fn a_receiver_that_is_dead_does_no_harm_and_its_spans_are_counted() {
    let scene = Scene::new(free_port(), House::new(STEPS));
    scene.eclosion(&["up"]);
    scene.run(&[]);
    until("spans are dropped", || {
        let mut page = String::new();
        let mut socket = UnixStream::connect(scene.house.path("run/default.sock")).unwrap();
        write!(socket, "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        socket.read_to_string(&mut page).unwrap();
        let dropped =
            page.lines().find_map(|line| line.strip_prefix("eclosion_spans_total{outcome=\"dropped\"} "));
        dropped.is_some_and(|dropped| dropped.parse::<u64>().unwrap() > 0)
    });
    let status: Value = scene.house.json(&["status"]);
    assert_eq!(status["state"], "ready");
}
