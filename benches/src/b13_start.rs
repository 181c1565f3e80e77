//! B13: how long until the kernel is there, and how large it is.
//!
//! *ready* is [`Kernel::start`] on a new directory until it returns: the journal made and synced, the socket bound.
//! *next worker* is a Python process that a zygote forks until it has introduced itself: a second worker beside a busy
//! first, asked for by a call, until the call is answered. *resident* is the process of `eclosion up --foreground`
//! without workers.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use eclosion::{Kernel, Options, Places};
use eclosion_schemas::Payload;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{Call, CallRequest};

use crate::Failure;
use crate::b10_dag::{binary, source};
use crate::measure::Samples;
use crate::report::{Report, Role, Row};

const READY: &str = "kernel ready, empty journal";
const NEXT: &str = "call on the next worker";
const RESIDENT: &str = "resident, no worker";
const STARTS: usize = 11;
const READY_NS_MAX: f64 = 50e6;
const RESIDENT_BYTES_MAX: f64 = 20.0 * 1024.0 * 1024.0;
const NEXT_NS_MAX: f64 = 15e6;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (ready, next) = runtime.block_on(measured())?;
    let rows = vec![ready.row(), next.row(), resident()?];
    let budget = "ready ≤ 50 ms; ≤ 20 MiB without workers; next worker from the zygote ≤ 15 ms";
    Ok(Report::new("b13", "start", budget, rows)
        .at_most(READY_NS_MAX, |row| row.name == READY)
        .at_most(NEXT_NS_MAX, |row| row.name == NEXT)
        .at_most(RESIDENT_BYTES_MAX, |row| row.name == RESIDENT))
}

async fn measured() -> Result<(Samples, Samples), Failure> {
    let mut ready = Samples::of(Role::Us, READY);
    let mut next = Samples::of(Role::Us, NEXT);
    for _ in 0..STARTS {
        let directory = tempfile::tempdir_in("target").or_else(|_| tempfile::tempdir())?;
        let runtime = tempfile::tempdir()?;
        let mut places = Places::below(directory.path(), "bench");
        // A socket's path is short.
        (places.runtime, places.socket) =
            (runtime.path().join("run"), runtime.path().join("run/kernel.sock"));
        let mut options = Options::new(places);
        (options.workers_max, options.keeper_binary) = (2, Some(binary()?));
        ready.begin_round();
        let started = Instant::now();
        let kernel = Kernel::start(options).await?;
        ready.add(started.elapsed(), 1);
        next.begin_round();
        next.add(second_worker(&kernel, directory.path()).await?, 1);
        kernel.shutdown().await;
    }
    Ok((ready, next))
}

/// The first worker is kept busy, so that a call needs another one.
async fn second_worker(kernel: &Kernel, directory: &Path) -> Result<Duration, Failure> {
    call(kernel, "calls:echo", serde_json::json!({"value": "x"})).await?;
    let began = directory.join("began");
    let busy = call(kernel, "starts:busy", serde_json::json!({"began": began}));
    let second = async {
        while !began.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let started = Instant::now();
        call(kernel, "calls:echo", serde_json::json!({"value": "x"})).await?;
        Ok::<_, Failure>(started.elapsed())
    };
    // The call that is dropped here is cancelled.
    tokio::select! {
        took = second => took,
        ended = busy => Err(format!("the busy call ended: {ended:?}").into()),
    }
}

async fn call(kernel: &Kernel, function: &str, arguments: serde_json::Value) -> Result<(), Failure> {
    let request = CallRequest {
        timeout_ms: None,
        limits: None,
        function: function.into(),
        code: source().to_string_lossy().into_owned(),
        code_hash: String::new(),
        environment: EnvironmentSpec::default(),
        arguments: Payload::of(&arguments),
        with: std::collections::BTreeMap::new(),
    };
    kernel.bus().ask::<Call>(request).deadline(PATIENCE).await?;
    Ok(())
}

fn resident() -> Result<Row, Failure> {
    let mut bytes = Samples::of_bytes(Role::Us, RESIDENT);
    for _ in 0..5 {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("run/bench.sock");
        let command = Command::new(binary()?)
            .args(["up", "--foreground", "--instance", "bench"])
            .env("ECLOSION_STATE_DIR", directory.path().join("state"))
            .env("ECLOSION_RUNTIME_DIR", directory.path().join("run"))
            .env("ECLOSION_CACHE_DIR", directory.path().join("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let up = Up(command);
        let started = Instant::now();
        while !socket.exists() && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Past the start, so that what it needed only for that is freed.
        std::thread::sleep(Duration::from_millis(300));
        bytes.begin_round();
        bytes.add_bytes(resident_bytes(up.0.id())?, 1);
    }
    Ok(bytes.row())
}

pub(crate) fn resident_bytes(pid: u32) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// A kernel of its own, ended with its directory.
struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}
