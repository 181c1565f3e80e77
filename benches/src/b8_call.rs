//! B8: one call of a Python function on a warm worker, not journaled, 64 bytes there and back.
//!
//! Floor: the same value over a Unix socket to a Python loop that decodes msgpack, calls and encodes, and does nothing
//! else. Peer: `ProcessPoolExecutor(1).submit().result()`, timed in its own process. Ours is `pool.call` over the bus,
//! with its deadline, its lease and the whole worker.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use eclosion::{Kernel, Options, Places};
use eclosion_schemas::Payload;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{Call, CallRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::Failure;
use crate::b10_dag::{binary, source};
use crate::measure::{ROUNDS, Samples, runtime};
use crate::report::{Report, Role, Row};

const SAMPLES: usize = 200;
const HEADER_BYTES: usize = 16;
/// A header and a text of 64 bytes: always as long.
const ANSWER_BYTES: usize = HEADER_BYTES + 66;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<Report, Failure> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().to_owned();
    let measuring = async move { tokio::spawn(async move { measured(&path).await.map_err(text) }).await };
    let rows = runtime()?.block_on(measuring)??;
    let budget = "p50 ≤ 1.5 × the raw Rust→Python floor; ≤ 0.8 × ProcessPoolExecutor";
    Ok(Report::new("b8", "warm Python call, 64 B", budget, rows)
        .ratio("pool.call", "raw Rust → Python echo", 1.5)
        .ratio("pool.call", "ProcessPoolExecutor(1)", 0.8))
}

/// What a task can hand over.
pub(crate) fn text(why: Failure) -> String {
    why.to_string()
}

async fn measured(directory: &Path) -> Result<Vec<Row>, Failure> {
    let mut options = Options::new(Places::below(directory, "bench"));
    (options.workers_max, options.keeper_binary) = (1, Some(binary()?));
    let kernel = Kernel::start(options).await?;
    // It makes the runtime that the floor takes its msgpack from.
    call(&kernel).await?;
    let (mut raw, mut pool) = (Raw::start("floor", &directory.join("cache/runtime"))?, Pool::start("peer")?);
    let mut floor = Samples::of(Role::Floor, "raw Rust → Python echo");
    let mut peer = Samples::of(Role::Peer, "ProcessPoolExecutor(1)");
    let mut us = Samples::of(Role::Us, "pool.call");
    for _ in 0..ROUNDS {
        floor.begin_round();
        for _ in 0..SAMPLES {
            let start = Instant::now();
            raw.echo().await?;
            floor.add(start.elapsed(), 1);
        }
        us.begin_round();
        for _ in 0..SAMPLES {
            let start = Instant::now();
            call(&kernel).await?;
            us.add(start.elapsed(), 1);
        }
        peer.begin_round();
        for nanos in pool.round(SAMPLES)? {
            peer.add(Duration::from_nanos(nanos), 1);
        }
    }
    kernel.shutdown().await;
    Ok(vec![floor.row(), peer.row(), us.row()])
}

pub(crate) fn arguments() -> Payload {
    Payload::of(&serde_json::json!({"value": "x".repeat(64)}))
}

pub(crate) async fn call(kernel: &Kernel) -> Result<(), Failure> {
    let request = CallRequest {
        timeout_ms: None,
        limits: None,
        function: "calls:echo".into(),
        code: source().to_string_lossy().into_owned(),
        code_hash: String::new(),
        environment: EnvironmentSpec::default(),
        arguments: arguments(),
        with: std::collections::BTreeMap::new(),
    };
    let reply = kernel.bus().ask::<Call>(request).deadline(PATIENCE).await?;
    if reply.body.len() == 66 { Ok(()) } else { Err("another value came back".into()) }
}

fn python(role: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(source().join("calls.py")).arg(role);
    command
}

/// The floor. The loop ends with the stream.
pub(crate) struct Raw {
    stream: UnixStream,
    frame: Vec<u8>,
    child: Child,
}

impl Raw {
    pub(crate) fn start(role: &str, runtime: &Path) -> Result<Self, Failure> {
        let mut entries = std::fs::read_dir(runtime)?.flatten().map(|entry| entry.path());
        let msgspec =
            entries.find(|path| path.join("msgspec").is_dir()).ok_or("no msgspec in the runtime")?;
        let (mine, theirs) = StdStream::pair()?;
        let child = python(role).env("PYTHONPATH", msgspec).stdin(OwnedFd::from(theirs)).spawn()?;
        mine.set_nonblocking(true)?;
        let body = arguments().body;
        let mut frame = vec![0; HEADER_BYTES];
        frame[..4].copy_from_slice(&u32::try_from(body.len())?.to_be_bytes());
        frame.extend_from_slice(&body);
        Ok(Self { stream: UnixStream::from_std(mine)?, frame, child })
    }

    async fn echo(&mut self) -> Result<(), Failure> {
        self.stream.write_all(&self.frame).await?;
        let mut answer = [0; ANSWER_BYTES];
        self.stream.read_exact(&mut answer).await?;
        Ok(())
    }

    /// So many calls with `inflight` of them under way: what has come back is sent again.
    pub(crate) async fn echoes(&mut self, calls: usize, inflight: usize) -> Result<(), Failure> {
        self.stream.write_all(&self.frame.repeat(inflight)).await?;
        let (mut sent, mut received, mut bytes) = (inflight, 0, vec![0; 64 * 1024]);
        while received < calls * ANSWER_BYTES {
            let read = self.stream.read(&mut bytes).await?;
            if read == 0 {
                return Err("the loop in Python ended".into());
            }
            received += read;
            let due = (received / ANSWER_BYTES + inflight).min(calls);
            self.stream.write_all(&self.frame.repeat(due - sent)).await?;
            sent = due;
        }
        Ok(())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// The peer. The loop ends with its input.
pub(crate) struct Pool {
    child: Child,
    asks: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Pool {
    pub(crate) fn start(role: &str) -> Result<Self, Failure> {
        let mut child = python(role).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let answers = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Self { asks: child.stdin.take(), child, answers })
    }

    /// It blocks, and nothing else of ours runs meanwhile.
    pub(crate) fn round(&mut self, calls: usize) -> Result<Vec<u64>, Failure> {
        writeln!(self.asks.as_mut().ok_or("no input")?, "{calls}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.asks.take());
        let _ = self.child.wait();
    }
}
