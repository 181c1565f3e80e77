//! B18: the hot operation of each subsystem, in its pure core on one core, and six questions through the bus.
//!
//! A core is driven as its engine drives it: `decide`, `apply` of what it decided, `settle` until it says nothing, with
//! the facts of others folded in between. No journal, no bus, no clock. Through the bus, 64 callers ask the six
//! subsystems of a whole kernel in turn, each of something that it answers without a record.

mod core;
mod operations;

use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion::{Kernel, Options, Places};
use eclosion_schemas::ops::{arbitration, artifact, gc, pool, run, schedule};
use eclosion_schemas::schedule::ScheduleSpec;
use tokio::task::JoinSet;

use crate::Failure;
use crate::b8_call::text;
use crate::b10_dag::{binary, graph};
use crate::measure::{ROUNDS, Samples, runtime};
use crate::report::{Report, Role, Row};

/// One million in a second.
const NS_MAX: f64 = 1_000.0;
const OPERATIONS: u32 = 100;
const SAMPLES: usize = 20;
const CALLERS: usize = 64;
const TURNS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);
const BUS: &str = "six questions through the bus, each";

pub(crate) fn run() -> Result<Report, Failure> {
    let mut rows = cores()?;
    let asking = async { tokio::spawn(async { through_the_bus().await.map_err(text) }).await };
    rows.push(runtime()?.block_on(asking)??);
    let budget = "one operation of each core ≤ 1 µs; six through the bus, pipelined, ≤ 1 µs each";
    Ok(Report::new("b18", "hot operations of the subsystems", budget, rows).at_most(NS_MAX, |_| true))
}

fn cores() -> Result<Vec<Row>, Failure> {
    let mut all = operations::all()?;
    let mut samples: Vec<_> = all.iter().map(|hot| Samples::of(Role::Us, hot.name)).collect();
    for _ in 0..ROUNDS {
        for (hot, samples) in all.iter_mut().zip(&mut samples) {
            samples.begin_round();
            for _ in 0..SAMPLES {
                hot.prepare(OPERATIONS)?;
                let start = Instant::now();
                for _ in 0..OPERATIONS {
                    hot.operate()?;
                }
                samples.add(start.elapsed(), OPERATIONS);
            }
        }
    }
    Ok(samples.into_iter().map(Samples::row).collect())
}

async fn through_the_bus() -> Result<Row, Failure> {
    let directory = tempfile::tempdir()?;
    let mut options = Options::new(Places::below(directory.path(), "bench"));
    options.keeper_binary = Some(binary()?);
    let kernel = Arc::new(Kernel::start(options).await?);
    tokio::time::timeout(PATIENCE, graph(&kernel)).await??;
    let runs = kernel.bus().ask::<run::List>(run::ListRequest { state: None, limit: 1 }).await?;
    let artifact = format!("{}/l0[0]", runs.runs.first().ok_or("it ran")?.run);
    let spec: ScheduleSpec = operations::never()?;
    let set = schedule::SetRequest { name: "never".parse()?, spec, replace: true };
    kernel.bus().ask::<schedule::Set>(set).await?;
    let mut samples = Samples::of(Role::Us, BUS);
    for _ in 0..ROUNDS {
        samples.begin_round();
        for _ in 0..SAMPLES {
            let start = Instant::now();
            callers(&kernel, &artifact).await?;
            samples.add(start.elapsed(), u32::try_from(CALLERS * TURNS * 6)?);
        }
    }
    if let Some(kernel) = Arc::into_inner(kernel) {
        kernel.shutdown().await;
    }
    Ok(samples.row())
}

async fn callers(kernel: &Arc<Kernel>, artifact: &str) -> Result<(), Failure> {
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (kernel, artifact) = (Arc::clone(kernel), artifact.to_owned());
        callers.spawn(async move {
            for _ in 0..TURNS {
                ask_each(&kernel, &artifact).await?;
            }
            Ok::<_, eclosion_schemas::Error>(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(())
}

async fn ask_each(kernel: &Kernel, artifact: &str) -> Result<(), eclosion_schemas::Error> {
    let bus = kernel.bus();
    bus.ask::<run::List>(run::ListRequest { state: None, limit: 1 }).await?;
    bus.ask::<pool::Status>(pool::StatusRequest {}).await?;
    bus.ask::<arbitration::Status>(arbitration::StatusRequest {}).await?;
    bus.ask::<artifact::Get>(artifact::GetRequest { name: artifact.to_owned() }).await?;
    bus.ask::<schedule::List>(schedule::ListRequest { state: None, limit: 1 }).await?;
    bus.ask::<gc::Policy>(gc::PolicyRequest {}).await?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test")]
mod tests {
    #[test]
    fn every_hot_operation_goes_on_for_as_long_as_it_is_measured() {
        for hot in &mut super::operations::all().unwrap() {
            for _ in 0..3 {
                hot.prepare(100).unwrap_or_else(|why| panic!("{}: {why}", hot.name));
                for _ in 0..100 {
                    hot.operate().unwrap_or_else(|why| panic!("{}: {why}", hot.name));
                }
            }
        }
    }
}
