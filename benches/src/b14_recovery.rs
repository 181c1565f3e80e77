//! B14: back in service after a death.
//!
//! *worker* is SIGKILL to the only worker until a call is answered by its successor: the death is seen, recorded, the
//! next process forked and reserved. *kernel* is [`Kernel::start`] on a journal of 100,000 commits that no snapshot
//! covers, all verified, decoded and offered to every subsystem, until it returns. They are commits of a run that is over
//! and forgotten, so that what is measured is the reading and not one shape of graph. *panic* is a subsystem that is told
//! to panic until a question is answered by its next incarnation, in a kernel that was started on the journal of real
//! runs of a little more than 1,000 events, which the next incarnation folds again from the tail. A kernel has one panic of
//! each: the first restart waits for nothing, those after it for their backoff.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion::{Kernel, Options, Places};
use eclosion_bus::Control;
use eclosion_journal_sqlite::SqliteJournal;
use eclosion_kernel::core::AnyEvent;
use eclosion_kernel::journal::{JournalStore, Record, Stored};
use eclosion_schemas::events::{Event, StepCommitted};
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{self, Call, CallRequest};
use eclosion_schemas::ops::{arbitration, artifact, gc, run, schedule};
use eclosion_schemas::{Attempt, Epoch, Fence, Payload, Seq, Timestamp};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::Failure;
use crate::b10_dag::{binary, graph, source};
use crate::measure::Samples;
use crate::report::{Report, Role, Row};

const KILLS: usize = 15;
const STARTS: usize = 7;
const WORKER: &str = "worker killed → next serving";
const KERNEL: &str = "start on 100,000 events";
const PANICS: usize = 21;
const EVENTS: u64 = 100_000;
const BATCH: u64 = 1_000;
/// What the next incarnation of an actor folds.
const FOLDED_EVENTS_MIN: u64 = 1_000;
/// The rows of the panics, and who panics.
const SUBSYSTEMS: [(&str, &str); 6] = [
    ("panic in /dag → next serving", run::ADDRESS),
    ("panic in /pool → next serving", pool::ADDRESS),
    ("panic in /arbitration → next serving", arbitration::ADDRESS),
    ("panic in /artifacts → next serving", artifact::ADDRESS),
    ("panic in /scheduler → next serving", schedule::ADDRESS),
    ("panic in /stale → next serving", gc::ADDRESS),
];
const WORKER_NS_MAX: f64 = 50e6;
const KERNEL_NS_MAX: f64 = 1e9;
const PANIC_NS_MAX: f64 = 5e6;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (worker, kernel, panics) = runtime
        .block_on(async { Ok::<_, Failure>((workers().await?, kernels().await?, panics().await?)) })?;
    let rows = [worker, kernel].into_iter().chain(panics).collect();
    let budget = "worker killed → next serving ≤ 50 ms; start on 100,000 events ≤ 1 s; \
                  panic, 1,000 events → next incarnation serving ≤ 5 ms";
    Ok(Report::new("b14", "recovery", budget, rows)
        .at_most(WORKER_NS_MAX, |row| row.name == WORKER)
        .at_most(KERNEL_NS_MAX, |row| row.name == KERNEL)
        .at_most(PANIC_NS_MAX, |row| row.name.starts_with("panic")))
}

async fn workers() -> Result<Row, Failure> {
    let directory = tempfile::tempdir()?;
    let mut options = Options::new(Places::below(directory.path(), "bench"));
    (options.workers_max, options.keeper_binary) = (1, Some(binary()?));
    let kernel = Kernel::start(options).await?;
    let mut samples = Samples::of(Role::Us, WORKER);
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
    Ok(samples.row())
}

async fn pid(kernel: &Kernel) -> Result<i32, Failure> {
    let request = CallRequest {
        timeout_ms: None,
        limits: None,
        function: "starts:pid".into(),
        code: source().to_string_lossy().into_owned(),
        code_hash: String::new(),
        environment: EnvironmentSpec::default(),
        arguments: Payload::default(),
        with: std::collections::BTreeMap::new(),
    };
    let reply = kernel.bus().ask::<Call>(request).deadline(PATIENCE).await?;
    Ok(eclosion_schemas::codec::decode(&reply.body)?)
}

async fn kernels() -> Result<Row, Failure> {
    let (places, _directories) = on_disk()?;
    fill(&places.state.join("journal"))?;
    let mut samples = Samples::of(Role::Us, KERNEL);
    for _ in 0..STARTS {
        samples.begin_round();
        let (kernel, took) = start(&places).await?;
        samples.add(took, 1);
        kernel.shutdown().await;
    }
    Ok(samples.row())
}

async fn panics() -> Result<Vec<Row>, Failure> {
    if cfg!(not(feature = "chaos")) {
        return Err("nothing panics on request without the feature `chaos`: use cargo measure".into());
    }
    let (places, _directories) = on_disk()?;
    work(&places).await?;
    let mut all = SUBSYSTEMS.map(|(name, _)| Samples::of(Role::Us, name));
    // As the binary does it: a backtrace would cost more than the restart.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for _ in 0..PANICS {
        let (kernel, _) = start(&places).await?;
        for (samples, (_, address)) in all.iter_mut().zip(SUBSYSTEMS) {
            ask(&kernel, address).await?;
            samples.begin_round();
            let panicked = Instant::now();
            let order = Control::Panic("as asked".into());
            kernel.bus().control(&address.parse()?, order).map_err(|why| why.to_error(address))?;
            ask(&kernel, address).await?;
            samples.add(panicked.elapsed(), 1);
            let row = kernel.kernel().rows().into_iter().find(|row| row.address == address);
            assert!(row.is_some_and(|row| row.incarnation.0 == 2), "{address} was restarted once");
        }
        kernel.shutdown().await;
    }
    std::panic::set_hook(hook);
    Ok(all.into_iter().map(Samples::row).collect())
}

/// Runs graphs with real workers until their events are enough.
async fn work(places: &Places) -> Result<(), Failure> {
    let (kernel, _) = start(places).await?;
    while kernel.kernel().journal().marks().appended.0 < FOLDED_EVENTS_MIN {
        tokio::time::timeout(PATIENCE, graph(&kernel)).await??;
    }
    kernel.shutdown().await;
    Ok(())
}

/// A question that a subsystem answers by itself.
async fn ask(kernel: &Kernel, address: &str) -> Result<(), Failure> {
    let bus = kernel.bus();
    match address {
        run::ADDRESS => {
            let request = run::ListRequest { state: None, limit: 10 };
            bus.ask::<run::List>(request).deadline(PATIENCE).await?;
        }
        pool::ADDRESS => {
            bus.ask::<pool::Status>(pool::StatusRequest {}).deadline(PATIENCE).await?;
        }
        arbitration::ADDRESS => {
            bus.ask::<arbitration::Status>(arbitration::StatusRequest {}).deadline(PATIENCE).await?;
        }
        schedule::ADDRESS => {
            let request = schedule::ListRequest { state: None, limit: 10 };
            bus.ask::<schedule::List>(request).deadline(PATIENCE).await?;
        }
        gc::ADDRESS => {
            bus.ask::<gc::Policy>(gc::PolicyRequest {}).deadline(PATIENCE).await?;
        }
        _ => {
            let request = artifact::ListRequest { run: None, prefix: String::new(), limit: 10 };
            bus.ask::<artifact::List>(request).deadline(PATIENCE).await?;
        }
    }
    Ok(())
}

/// Places on a disk, where a temporary directory may be memory; with a socket whose path is short.
fn on_disk() -> Result<(Places, [TempDir; 2]), Failure> {
    let directory = tempfile::tempdir_in("target").or_else(|_| tempfile::tempdir())?;
    let runtime = tempfile::tempdir()?;
    let mut places = Places::below(directory.path(), "bench");
    (places.runtime, places.socket) = (runtime.path().join("run"), runtime.path().join("run/kernel.sock"));
    Ok((places, [directory, runtime]))
}

/// A kernel, and how long its start took. What the one before it in this process held of the journal may fall a moment
/// after its shutdown: its last readers end by themselves.
async fn start(places: &Places) -> Result<(Kernel, Duration), Failure> {
    let begun = Instant::now();
    loop {
        let mut options = Options::new(places.clone());
        options.keeper_binary = Some(binary()?);
        let started = Instant::now();
        match Kernel::start(options).await {
            Ok(kernel) => return Ok((kernel, started.elapsed())),
            Err(why) if why.reason == "journal.locked" && begun.elapsed() < PATIENCE => {
                tokio::task::yield_now().await;
            }
            Err(why) => return Err(why.into()),
        }
    }
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
        cache: None,
        unkept: None,
    };
    let body = AnyEvent::from(committed).encode()?.into();
    let kind = StepCommitted::KIND.into();
    Ok(Arc::new(
        Stored { seq: Seq(seq), epoch, at: Timestamp(seq), kind, version: 1, cause: None, body }.into(),
    ))
}
