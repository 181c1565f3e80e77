//! Frames of 8 MiB at 60 Hz to two user interfaces, one in Rust that finds shared memory by name and one in Python that is
//! passed it by descriptor. One is killed while it reads a frame (P1); a slow one is told what it missed (P5).
//!
//! The kernel is part of this process, so that its maps and descriptors are this process's. The Python viewer needs
//! `target/test-python`; without it that half is skipped, and says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]
#![allow(clippy::print_stdout, reason = "a viewer says what it sees")]

use std::future::Future;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eclosion::{Kernel, Options, Places};
use eclosion_bus::Publication;
use eclosion_client::{CallOptions, Client, ConnectOptions};
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::kernel::{Empty, OnFull, Status, Subscribe, SubscribeRequest};
use eclosion_schemas::{Epoch, Payload, Seq, codec};
use serde::Deserialize;

const PATIENCE: Duration = Duration::from_secs(120);
const FRAME_BYTES: usize = 8 << 20;
const HEADER_BYTES: usize = 128;
const PERIOD: Duration = Duration::from_micros(16_667);
/// Items under way to a viewer: what it reads, and the next.
const CREDIT: u64 = 2;
const PYTHON: &str = r#"
import sys, zlib
import eclosion
from eclosion._schemas import DeliveryChange, DeliveryGap

client = eclosion.connect(sys.argv[1])
print("viewing", flush=True)
for delivery in client.subscribe("frames/**", credit=2):
    if isinstance(delivery, DeliveryGap):
        print("gap", delivery.dropped, flush=True)
    elif isinstance(delivery, DeliveryChange):
        frame = client.value(delivery.value)
        shared = any("memfd:eclosion-arena" in line for line in open("/proc/self/maps"))
        right = zlib.crc32(frame) == zlib.crc32(bytes([delivery.seq % 251]) * (8 << 20))
        print("frame", delivery.seq, right and shared and not frame.flags.writeable, flush=True)
        if sys.stdin.readline() == "hold\n":
            print("holding", flush=True)
            sys.stdin.readline()
        del frame
"#;

/// What a viewer is told, of a subscription to payloads.
#[derive(Deserialize)]
#[serde(tag = "tag", rename_all = "snake_case")]
enum Told {
    Change {
        seq: Seq,
        value: Payload,
    },
    Gap {
        dropped: u64,
    },
    #[serde(other)]
    Other,
}

/// What this test executable does when it is started as a viewer: says each frame, and goes on when it is told to.
#[tokio::test]
async fn viewer() {
    let Ok(socket) = std::env::var("ECLOSION_TEST_VIEWS") else { return };
    let options = ConnectOptions { memory: true, ..ConnectOptions::default() };
    let client = Client::connect_with(socket, options).await.unwrap();
    let request = SubscribeRequest { filter: "frames/**".into(), on_full: OnFull::Gap, start: None };
    let options = CallOptions { credit: Some(CREDIT), ..CallOptions::default() };
    let request = codec::encode(&request).unwrap();
    let mut told = client.open(Subscribe::NAME, request.into(), options).await.unwrap();
    println!("viewing");
    let mut words = std::io::stdin().lines();
    let mut pixels = vec![0; FRAME_BYTES];
    while let Some(item) = told.next().await {
        match codec::decode::<Told>(&item).unwrap() {
            Told::Change { seq, value } => {
                let frame = client.object(&value.parts[0]).await.unwrap();
                let is_read = frame.copy_to(HEADER_BYTES, &mut pixels);
                let is_right = pixels.iter().step_by(4093).all(|byte| *byte == pixel(seq.0));
                let ends = pixels.first() == pixels.last() && frame.len() == HEADER_BYTES + FRAME_BYTES;
                let is_right = is_read && is_right && ends && frame.is_shared();
                println!("frame {} {}", seq.0, if is_right { "True" } else { "False" });
                if words.next().is_none_or(|word| word.unwrap() == "hold") {
                    println!("holding");
                    words.next();
                }
            }
            Told::Gap { dropped } => println!("gap {dropped}"),
            Told::Other => {}
        }
    }
}

fn pixel(seq: u64) -> u8 {
    u8::try_from(seq % 251).unwrap()
}

/// One viewer, as it is seen from here.
struct Viewer {
    process: Child,
    said: Lines<BufReader<ChildStdout>>,
    tell: ChildStdin,
    /// The last frame, and the first that it may see next.
    last: Option<u64>,
    dropped: u64,
}

impl Viewer {
    fn begin(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(process.stdout.take().unwrap()).lines();
        let tell = process.stdin.take().unwrap();
        let mut viewer = Self { process, said, tell, last: None, dropped: 0 };
        while !viewer.line().contains("viewing") {}
        viewer
    }

    fn rust(socket: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Self::begin(command.args(["viewer", "--exact", "--nocapture"]).env("ECLOSION_TEST_VIEWS", socket))
    }

    /// Nothing without an interpreter that has numpy.
    fn python(socket: &Path) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let interpreter: PathBuf = root.join("target/test-python/bin/python");
        if !interpreter.exists() {
            eprintln!("SKIPPED the Python viewer: `cargo t python` makes target/test-python");
            return None;
        }
        let mut command = Command::new(interpreter);
        command.env("PYTHONPATH", root.join("python-workers/src"));
        Some(Self::begin(command.args(["-c", PYTHON]).arg(socket)))
    }

    fn line(&mut self) -> String {
        self.said.next().expect("the viewer is gone").unwrap()
    }

    /// Waits for the next frame: whole, in order, and after as many as it says that it missed.
    fn frame(&mut self) -> u64 {
        loop {
            let line = self.line();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["gap", dropped] => self.dropped += dropped.parse::<u64>().unwrap(),
                ["frame", seq, is_right] => {
                    assert_eq!(*is_right, "True", "frame {seq} came as it was sent, in shared memory");
                    let seq: u64 = seq.parse().unwrap();
                    if let Some(last) = self.last {
                        assert_eq!(seq, last + 1 + self.dropped, "in order, and what is missing was told");
                    }
                    (self.last, self.dropped) = (Some(seq), 0);
                    return seq;
                }
                _ => {}
            }
        }
    }

    fn go_on(&mut self) {
        self.tell.write_all(b"on\n").unwrap();
    }

    fn hold(&mut self) {
        self.tell.write_all(b"hold\n").unwrap();
        while !self.line().contains("holding") {}
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// An embedder's actor in short: publishes frames at its own pace, whoever takes them.
struct Producer {
    published: Arc<AtomicU64>,
    /// Frames for which there was no room: what viewers hold and what waits for them is bounded, so there are none.
    refused: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Producer {
    fn begin(kernel: &Kernel) -> Self {
        let published = Arc::new(AtomicU64::new(0));
        let refused = Arc::new(AtomicU64::new(0));
        let (count, full) = (Arc::clone(&published), Arc::clone(&refused));
        let (bus, objects) = (kernel.bus().clone(), kernel.objects());
        let subject = "frames/main".parse().unwrap();
        let header = header();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(PERIOD);
            let mut seq = 1;
            loop {
                ticks.tick().await;
                let pixels = vec![pixel(seq); FRAME_BYTES];
                let Some(lease) = objects.put(&[&header, &pixels]) else {
                    full.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                let part = lease.into_part("npy");
                // Part 0.
                let payload = Payload { body: vec![0xd6, 1, 0, 0, 0, 0].into(), parts: vec![part] };
                let frame = Publication::new(Epoch(1), Seq(seq), payload).weighing(FRAME_BYTES as u64);
                bus.publish(&subject, frame);
                count.store(seq, Ordering::Relaxed);
                seq += 1;
            }
        });
        Self { published, refused, task }
    }

    fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }
}

fn header() -> Vec<u8> {
    let text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({FRAME_BYTES},), }}");
    let text = format!("{text:<width$}\n", width = HEADER_BYTES - 11);
    let length = u16::try_from(text.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], text.as_bytes()].concat()
}

async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it hangs")
}

/// Off the runtime's threads: viewers are read by blocking.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    watched(tokio::task::spawn_blocking(work)).await.unwrap()
}

async fn until(holds: impl Fn() -> bool) {
    watched(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Lines of this process's own table that speak of shared memory of a kernel.
fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("eclosion-arena") || line.contains("/dev/shm/ecl.")).count()
}

fn descriptors() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let is_ours = |target: &PathBuf| {
        let target = target.to_string_lossy();
        target.contains("eclosion-arena") || target.contains("/dev/shm/ecl.")
    };
    targets.filter(is_ours).count()
}

fn names(tag: &str) -> usize {
    let names = std::fs::read_dir("/dev/shm").unwrap().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with(&format!("ecl.{tag}."))).count()
}

/// Takes `count` frames and goes on after each.
async fn take(mut viewer: Viewer, count: usize) -> Viewer {
    apart(move || {
        for _ in 0..count {
            viewer.frame();
            viewer.go_on();
        }
        viewer
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_viewers_is_killed_inside_a_frame_and_nobody_else_notices() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = Kernel::start(Options::new(Places::below(directory.path(), "frames"))).await.unwrap();
    let socket = kernel.places().socket.clone();
    let tag: String = blake3_of(&kernel.places().state);
    let client = Client::connect(&socket).await.unwrap();
    let connections = async || client.call::<Status>(Empty {}).await.unwrap().traffic.connections;
    // Names in /dev/shm, segments held, and what this process has mapped and open of them: as now, so at the end.
    let objects = kernel.objects();
    assert_eq!((names(&tag), objects.counts().0, mappings(), descriptors()), (0, 0, 0, 0));
    let producer = Producer::begin(&kernel);

    let at = socket.clone();
    let rust = apart(move || Viewer::rust(&at)).await;
    let at = socket.clone();
    let python = apart(move || Viewer::python(&at)).await;
    let rust = take(rust, 20).await;
    assert!(names(&tag) > 0, "it finds them by name");

    // The Python viewer dies with a frame in its hands; the other takes the next sixty, and the producer never waited.
    if let Some(python) = python {
        let mut python = take(python, 20).await;
        let python = apart(move || {
            python.frame();
            python.hold();
            python
        })
        .await;
        let before = producer.published();
        until(|| producer.published() > before + 10).await;
        python.kill();
        watched(async { while connections().await > 2 {} }).await;
    }
    let rust = take(rust, 60).await;

    // One that takes its time is told what it missed, and what waits for it is bounded: see the producer's `refused`.
    let mut slow = {
        let at = socket.clone();
        apart(move || Viewer::rust(&at)).await
    };
    for _ in 0..3 {
        slow = apart(move || {
            slow.frame();
            slow
        })
        .await;
        let before = producer.published();
        until(|| producer.published() > before + 30).await;
        slow.go_on();
    }
    let mut slow = apart(move || {
        let mut missed = 0;
        for _ in 0..10 {
            let last = slow.last.unwrap();
            missed += slow.frame() - last - 1;
            slow.go_on();
        }
        assert!(missed > 0, "it could not have had them all");
        slow
    })
    .await;

    // The Rust viewers die inside a frame.
    for viewer in [rust, {
        slow.last = None;
        slow
    }] {
        let mut viewer = viewer;
        let viewer = apart(move || {
            viewer.last = None;
            viewer.frame();
            viewer.hold();
            viewer
        })
        .await;
        viewer.kill();
    }
    watched(async { while connections().await > 1 {} }).await;
    until(|| names(&tag) == 0).await;
    let before = producer.published();
    until(|| producer.published() > before + 5).await;
    producer.task.abort();
    assert_eq!(producer.refused.load(Ordering::Relaxed), 0, "there was room for every frame");
    until(|| objects.counts().0 == 0).await;
    kernel.shutdown().await;
    drop((objects, client, kernel, producer));
    until(|| mappings() == 0 && descriptors() == 0).await;
}

fn blake3_of(path: &Path) -> String {
    blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex().chars().take(8).collect()
}
