//! B10: durable steps. A graph of 10 × 10 tasks, every one of a layer needing all of the layer before.
//!
//! Each step is durable at *written* before its dependants start, the run at *synced* when it ends; results are inline.
//! Peer: the same functions by hand over `ProcessPoolExecutor`, which records nothing. Both have as many processes.
//! A sample is one whole graph, from asking to knowing the end, on warm workers. Rounds of both take turns, each of the
//! peer's with a pool of its own, because where two processes are placed on two cores decides much.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion::{Kernel, Options, Places};
use eclosion_schemas::RunId;
use eclosion_schemas::flow::{FLOW_SCHEMA, FlowSpec, TaskSpec};
use eclosion_schemas::ops::kernel::OnFull;
use eclosion_schemas::ops::run::{Start, StartRequest};
use eclosion_schemas::view::RunView;

use crate::Failure;
use crate::measure::Samples;
use crate::report::{Report, Role};

const WORKERS: u32 = 2;
const LAYERS: usize = 10;
const ROUNDS: usize = 8;
const GRAPHS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<Report, Failure> {
    let directory = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut us = Samples::of(Role::Us, "eclosion run");
    let mut peer = Samples::of(Role::Peer, "ProcessPoolExecutor by hand");
    runtime.block_on(in_turns(directory.path(), &mut us, &mut peer))?;
    let rows = vec![peer.row(), us.row()];
    let budget = "the 10 × 10 graph ≤ ProcessPoolExecutor by hand";
    Ok(Report::new("b10", "durable steps", budget, rows).ratio(
        "eclosion run",
        "ProcessPoolExecutor by hand",
        1.0,
    ))
}

pub(crate) fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// One round of the peer; the first graph starts its processes and is not counted.
fn by_hand() -> Result<Vec<Duration>, Failure> {
    let mut command = Command::new("python3");
    command.arg(source().join("layers.py")).args([WORKERS.to_string(), GRAPHS.to_string()]);
    let output = command.output()?;
    let nanos: Vec<u64> = serde_json::from_slice(&output.stdout)?;
    Ok(nanos.into_iter().map(Duration::from_nanos).collect())
}

async fn in_turns(directory: &Path, us: &mut Samples, peer: &mut Samples) -> Result<(), Failure> {
    let mut options = Options::new(Places::below(directory, "bench"));
    options.workers_max = WORKERS;
    options.keeper_binary = Some(binary()?);
    let kernel = Kernel::start(options).await?;
    // Starts the workers.
    tokio::time::timeout(PATIENCE, graph(&kernel)).await??;
    for _ in 0..ROUNDS {
        peer.begin_round();
        by_hand()?.into_iter().for_each(|took| peer.add(took, 1));
        us.begin_round();
        for n in 0..=GRAPHS {
            let started = Instant::now();
            tokio::time::timeout(PATIENCE, graph(&kernel)).await??;
            if n > 0 {
                us.add(started.elapsed(), 1);
            }
        }
    }
    kernel.shutdown().await;
    Ok(())
}

/// The workers are the keeper's, and the keeper is the binary in another role.
pub(crate) fn binary() -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe()?.with_file_name("eclosion");
    if beside.exists() { Ok(beside) } else { Err("build the binary first: cargo build --release".into()) }
}

/// Runs one graph to its end.
pub(crate) async fn graph(kernel: &Kernel) -> Result<(), Failure> {
    let (flow, set) = (flow(), BTreeMap::new());
    let request = StartRequest { flow, set, tenant: None, new: true, idem: None, no_cache: false };
    let run = kernel.bus().ask::<Start>(request).await?.run;
    let mut changes = kernel.bus().subscribe(format!("run/{run}/state").parse()?, OnFull::Latest, 16);
    while let Some(delivery) = changes.next().await {
        if ended(&delivery, &run) {
            return Ok(());
        }
    }
    Err("the subscription ended".into())
}

fn ended(delivery: &eclosion_bus::Delivery, run: &RunId) -> bool {
    let event = match delivery {
        eclosion_bus::Delivery::Snapshot(event) | eclosion_bus::Delivery::Change(event) => event,
        _ => return false,
    };
    event.value::<Arc<RunView>>().is_some_and(|view| view.run == *run && view.state.is_final())
}

fn flow() -> FlowSpec {
    let items = || Some(serde_json::json!((0..10).collect::<Vec<_>>()));
    let layer = |n: usize| {
        let mut with = BTreeMap::from([("i".to_owned(), "${item}".into())]);
        if n > 0 {
            with.insert("inputs".to_owned(), format!("${{l{}}}", n - 1).into());
        }
        (format!("l{n}"), TaskSpec { run: "layers:step".into(), with, each: items(), ..TaskSpec::default() })
    };
    FlowSpec {
        schema: FLOW_SCHEMA.into(),
        name: "layers".into(),
        description: String::new(),
        code: source().to_string_lossy().into_owned(),
        code_hash: "bench".into(),
        source: None,
        environment: eclosion_schemas::flow::EnvironmentSpec::default(),
        parameters: BTreeMap::new(),
        tasks: (0..LAYERS).map(layer).collect(),
        result: None,
        cache: None,
    }
}
