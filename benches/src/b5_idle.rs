//! B5: what an actor costs that has nothing to do, and what is shown instead of one actor for each entity.
//!
//! Peer: an actor of ractor that is linked to its supervisor, as ours are. Ours: a supervised actor with its bounded
//! mailbox, statistics and restart budget, served by the kernel. Memory is what the process grew by for ten thousand of
//! them; each sample is a process of its own, because what an allocator keeps would flatter the second.
//!
//! Entities are rows: a hundred thousand views of tasks, listed and encoded as a client gets them.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use eclosion_bus::{InHand, MailboxOptions};
use eclosion_kernel::kernel::HOLDERS;
use eclosion_kernel::{Handler, Kernel};
use eclosion_schemas::{Payload, TaskRef};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::b1_view::view;
use crate::b13_start::resident_bytes;
use crate::measure::{Samples, runtime};
use crate::report::{Report, Role, Row};

/// Said by this binary to itself: one sample.
pub(crate) const SAMPLE: &str = "b5-sample";
const ACTORS: u32 = 10_000;
const ROUNDS: usize = 8;
const ENTITIES: usize = 100_000;
const LIST_NS_MAX: f64 = 200e6;
const LISTED: &str = "100,000 entities, listed";

pub(crate) fn run() -> Result<Report, Failure> {
    let mut rows = actors()?;
    rows.push(listed()?);
    let budget = "memory and spawn ≤ 1.3 × ractor's; 100,000 entities listed in ≤ 200 ms";
    Ok(Report::new("b5", "idle actors", budget, rows)
        .ratio("supervised actor, spawn", "ractor actor, spawn", 1.3)
        .ratio("supervised actor, memory", "ractor actor, memory", 1.3)
        .at_most(LIST_NS_MAX, |row| row.name == LISTED))
}

#[derive(Debug, Serialize, Deserialize)]
struct Sample {
    spawn_ns: u64,
    grown_bytes: u64,
}

fn actors() -> Result<Vec<Row>, Failure> {
    let mut peer = (
        Samples::of(Role::Peer, "ractor actor, spawn"),
        Samples::of_bytes(Role::Peer, "ractor actor, memory"),
    );
    let mut us = (
        Samples::of(Role::Us, "supervised actor, spawn"),
        Samples::of_bytes(Role::Us, "supervised actor, memory"),
    );
    for _ in 0..ROUNDS {
        for (who, (spawn, memory)) in [("ractor", &mut peer), ("eclosion", &mut us)] {
            let output = Command::new(std::env::current_exe()?).args([SAMPLE, who]).output()?;
            let sample: Sample = serde_json::from_slice(&output.stdout)
                .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
            spawn.begin_round();
            spawn.add(Duration::from_nanos(sample.spawn_ns), ACTORS);
            memory.begin_round();
            memory.add_bytes(sample.grown_bytes, ACTORS);
        }
    }
    Ok([peer, us].into_iter().flat_map(|(spawn, memory)| [spawn.row(), memory.row()]).collect())
}

/// In a process of its own: spawns them, and says as JSON what that took.
pub(crate) fn sample(who: &str) -> Result<String, Failure> {
    let spawned = async {
        match who {
            "ractor" => tokio::spawn(async { ractors().await.map_err(|why| why.to_string()) }).await?,
            _ => tokio::spawn(async { supervised().await.map_err(|why| why.to_string()) }).await?,
        }
        .map_err(Failure::from)
    };
    Ok(serde_json::to_string(&runtime()?.block_on(spawned)?)?)
}

struct Idle;

impl Actor for Idle {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

async fn ractors() -> Result<Sample, Failure> {
    let (supervisor, _) = Actor::spawn(None, Idle, ()).await?;
    let before = resident_bytes(std::process::id())?;
    let started = Instant::now();
    let mut all = Vec::new();
    for _ in 0..ACTORS {
        all.push(Actor::spawn_linked(None, Idle, (), supervisor.get_cell()).await?.0);
    }
    measured(started, before, &all)
}

impl Handler for Idle {
    async fn handle(&mut self, message: InHand) {
        message.finish().reply(Ok(Box::new(())));
    }
}

async fn supervised() -> Result<Sample, Failure> {
    let kernel = Kernel::builder().start().await?;
    let before = resident_bytes(std::process::id())?;
    let started = Instant::now();
    for n in 0..ACTORS {
        let address = format!("/idle/{n}").parse()?;
        kernel.serve(HOLDERS, address, MailboxOptions::default(), || Idle).await?;
    }
    measured(started, before, &kernel)
}

/// `alive` lives until here.
fn measured<T>(started: Instant, before: u64, alive: &T) -> Result<Sample, Failure> {
    let spawn_ns = u64::try_from(started.elapsed().as_nanos())?;
    let grown_bytes = resident_bytes(std::process::id())?.saturating_sub(before);
    black_box(alive);
    Ok(Sample { spawn_ns, grown_bytes })
}

fn listed() -> Result<Row, Failure> {
    let views = eclosion_kernel::view::Views::default();
    for n in 0..ENTITIES {
        let key = TaskRef::new("7k2m4q9d".parse()?, format!("train[{n}]").parse()?);
        views.publish(key.clone(), view(&key, 0));
    }
    let mut samples = Samples::of(Role::Us, LISTED);
    for _ in 0..ROUNDS {
        samples.begin_round();
        let started = Instant::now();
        // In the order of their names, as every list of ours is.
        let rows: BTreeMap<_, _> = views
            .snapshot()
            .into_iter()
            .map(|row| (TaskRef::new(row.run.clone(), row.task.clone()), row))
            .collect();
        let encoded = Payload::of(&rows.values().collect::<Vec<_>>());
        samples.add(started.elapsed(), 1);
        black_box(encoded);
    }
    Ok(samples.row())
}
