//! B14: back in service after a death.
//!
//! *worker* is SIGKILL to the only worker until a call is answered by its successor: the death is seen, recorded, the
//! next process forked and reserved. *kernel* is [`Eclosion::start`] on a journal of 100,000 commits that no snapshot
//! covers, all verified, decoded and offered to every subsystem, until it returns. They are commits of a run that is over
//! and forgotten, so that what is measured is the reading and not one shape of graph.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion::{Eclosion, Options, Places};
use eclosion_journal_sqlite::SqliteJournal;
use eclosion_kernel::core::AnyEvent;
use eclosion_kernel::journal::{JournalStore, Record, Stored};
use eclosion_schemas::events::{Event, StepCommitted};
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{Call, CallRequest};
use eclosion_schemas::{Attempt, Epoch, Fence, Payload, Seq, Timestamp};
use rustix::process::{Pid, Signal, kill_process};

use crate::Failure;
use crate::b10_dag::{binary, source};
use crate::measure::Samples;
use crate::report::{Report, Role};

const KILLS: usize = 15;
const STARTS: usize = 7;
const EVENTS: u64 = 100_000;
const BATCH: u64 = 1_000;
const WORKER_NS_MAX: f64 = 50e6;
const KERNEL_NS_MAX: f64 = 1e9;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (worker, kernel) =
        runtime.block_on(async { Ok::<_, Failure>((workers().await?, kernels().await?)) })?;
    let rows = vec![worker.row(), kernel.row()];
    let budget = "worker killed → next serving ≤ 50 ms; start on 100,000 events ≤ 1 s";
    let met = rows.iter().zip([WORKER_NS_MAX, KERNEL_NS_MAX]).all(|(row, max)| row.p50_ns <= max);
    let mut report = Report::new("b14", "recovery", budget, rows);
    report.met = met;
    Ok(report)
}

async fn workers() -> Result<Samples, Failure> {
    let directory = tempfile::tempdir()?;
    let mut options = Options::new(Places::below(directory.path(), "bench"));
    (options.workers_max, options.keeper_binary) = (1, Some(binary()?));
    let kernel = Eclosion::start(options).await?;
    let mut samples = Samples::of(Role::Us, "worker killed → next serving");
    let mut serving = pid(&kernel).await?;
    for _ in 0..KILLS {
        samples.begin_round();
        let killed = Instant::now();
        kill_process(Pid::from_raw(serving).ok_or("no pid")?, Signal::KILL)?;
        let next = loop {
            // A call may meet the dead worker before its death was seen; whoever calls tries again.
            match pid(&kernel).await {
                Ok(next) if next != serving => break next,
                Err(why) if killed.elapsed() > PATIENCE => return Err(why),
                Ok(_) | Err(_) => {}
            }
        };
        samples.add(killed.elapsed(), 1);
        serving = next;
    }
    kernel.shutdown().await;
    Ok(samples)
}

async fn pid(kernel: &Eclosion) -> Result<i32, Failure> {
    let request = CallRequest {
        function: "starts:pid".into(),
        code: source().to_string_lossy().into_owned(),
        code_hash: String::new(),
        environment: EnvironmentSpec::default(),
        arguments: Payload::default(),
    };
    let reply = kernel.bus().ask::<Call>(request).deadline(PATIENCE).await?;
    Ok(eclosion_schemas::codec::decode(&reply.body)?)
}

async fn kernels() -> Result<Samples, Failure> {
    let directory = tempfile::tempdir_in("target").or_else(|_| tempfile::tempdir())?;
    let runtime = tempfile::tempdir()?;
    let mut places = Places::below(directory.path(), "bench");
    (places.runtime, places.socket) = (runtime.path().join("run"), runtime.path().join("run/kernel.sock"));
    fill(&places.state.join("journal"))?;
    let mut samples = Samples::of(Role::Us, "start on 100,000 events");
    for _ in 0..STARTS {
        let mut options = Options::new(places.clone());
        options.keeper_binary = Some(binary()?);
        samples.begin_round();
        let started = Instant::now();
        let kernel = Eclosion::start(options).await?;
        samples.add(started.elapsed(), 1);
        kernel.shutdown().await;
    }
    Ok(samples)
}

fn fill(directory: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(directory)?;
    let options = eclosion_journal_sqlite::Options::default();
    let (mut store, opened) = SqliteJournal::open(directory, &options)?;
    let mut last = opened.last.0;
    while last < EVENTS {
        let batch: Vec<Arc<Record>> =
            (last + 1..=last + BATCH).map(|seq| event(seq, opened.epoch)).collect::<Result<_, _>>()?;
        store.append(&batch, &[])?;
        last += BATCH;
    }
    store.syncer()?.sync(Seq(last))?;
    Ok(())
}

fn event(seq: u64, epoch: Epoch) -> Result<Arc<Record>, Failure> {
    let committed = StepCommitted {
        run: "7k2m4q9d".parse()?,
        task: format!("step[{seq}]").parse()?,
        attempt: Attempt(1),
        fence: Fence { epoch, counter: seq },
        worker: "w-1-1".parse()?,
        output: Payload::of(&seq),
        lease: None,
    };
    let body = AnyEvent::from(committed).encode()?.into();
    let kind = StepCommitted::KIND.into();
    Ok(Arc::new(
        Stored { seq: Seq(seq), epoch, at: Timestamp(seq), kind, version: 1, cause: None, body }.into(),
    ))
}
