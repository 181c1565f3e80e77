//! B9: calls of a Python function on one warm worker with 64 of them under way, not journaled.
//!
//! Floor: the same frames over a Unix socket to a Python loop that decodes msgpack, calls and encodes, and answers what
//! came together together. Peer: `ProcessPoolExecutor(1)` with 64 futures under way. Ours: 64 callers of `pool.call` in
//! this process, each with its next call as soon as it has the answer. A sample is the mean over a thousand calls.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion::{Kernel, Options, Places};
use tokio::task::JoinSet;

use crate::Failure;
use crate::b8_call::{Pool, Raw, call, text};
use crate::b10_dag::binary;
use crate::measure::{ROUNDS, Samples, runtime};
use crate::report::{Report, Role, Row};

const INFLIGHT: usize = 64;
const CALLS_EACH: usize = 16;
const CALLS: usize = INFLIGHT * CALLS_EACH;
const SAMPLES: usize = 5;

pub(crate) fn run() -> Result<Report, Failure> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().to_owned();
    let measuring = async move { tokio::spawn(async move { measured(&path).await.map_err(text) }).await };
    let rows = runtime()?.block_on(measuring)??;
    let budget = "64 in flight ≥ 0.3 × the raw floor";
    Ok(Report::new("b9", "pipelined Python calls, 64 B", budget, rows)
        .ratio("64 calls of pool.call", "raw Rust → Python, 64 in flight", 1.0 / 0.3)
        .ratio("64 calls of pool.call", "ProcessPoolExecutor(1), 64 in flight", 1.0))
}

async fn measured(directory: &Path) -> Result<Vec<Row>, Failure> {
    let mut options = Options::new(Places::below(directory, "bench"));
    (options.workers_max, options.keeper_binary) = (1, Some(binary()?));
    let kernel = Arc::new(Kernel::start(options).await?);
    // It makes the runtime that the floor takes its msgpack from.
    call(&kernel).await?;
    let mut raw = Raw::start("pipelined_floor", &directory.join("cache/runtime"))?;
    let mut pool = Pool::start("pipelined_peer")?;
    let mut floor = Samples::of(Role::Floor, "raw Rust → Python, 64 in flight");
    let mut peer = Samples::of(Role::Peer, "ProcessPoolExecutor(1), 64 in flight");
    let mut us = Samples::of(Role::Us, "64 calls of pool.call");
    let calls = u32::try_from(CALLS)?;
    for _ in 0..ROUNDS {
        floor.begin_round();
        for _ in 0..SAMPLES {
            let start = Instant::now();
            raw.echoes(CALLS, INFLIGHT).await?;
            floor.add(start.elapsed(), calls);
        }
        us.begin_round();
        for _ in 0..SAMPLES {
            let start = Instant::now();
            callers(&kernel).await?;
            us.add(start.elapsed(), calls);
        }
        peer.begin_round();
        for _ in 0..SAMPLES {
            let nanos = pool.round(CALLS)?.into_iter().sum();
            peer.add(Duration::from_nanos(nanos), calls);
        }
    }
    drop(raw);
    if let Some(kernel) = Arc::into_inner(kernel) {
        kernel.shutdown().await;
    }
    Ok(vec![floor.row(), peer.row(), us.row()])
}

async fn callers(kernel: &Arc<Kernel>) -> Result<(), Failure> {
    let mut callers = JoinSet::new();
    for _ in 0..INFLIGHT {
        let kernel = Arc::clone(kernel);
        callers.spawn(async move {
            for _ in 0..CALLS_EACH {
                call(&kernel).await.map_err(text)?;
            }
            Ok::<_, String>(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(())
}
