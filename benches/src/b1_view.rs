//! B1: what readers see of an actor's state without entering its mailbox.
//!
//! Keys, values and view are those of the DAG tracker: [`Views`] of tasks. Floor of the kept handle: a load of an
//! `ArcSwap`. Peer of look-up and publication: a dashmap of the same entries, which gives no handle and whose reader keeps
//! the writer out. A publication makes the entity's copy and drops the one before. A sample is 64 operations in a row.
//!
//! *Among* so many entities a hundred change, spread over all of them: what the structure costs is to be flat, which is
//! held against the map's own growth, as both lie the further apart in memory the more there are. *Each in turn* changes all of them in a scattered order, so that none is in a cache when its turn comes:
//! what grows is how long memory takes, for the peer as well.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use eclosion_kernel::view::{Cell, Views};
use eclosion_schemas::view::{TaskState, TaskView};
use eclosion_schemas::{Attempt, Seq, TaskRef};

use crate::Failure;
use crate::measure::{ROUNDS, Samples};
use crate::report::{Report, Role, Row};

const SAMPLES: usize = 200;
const OPERATIONS: u32 = 64;
/// How many entities change among many.
const CHANGING: usize = 100;
/// A prime that divides no number of entities: every one has its turn, far from the one before.
const SCATTERED: usize = 7_919;
const PUBLISH_NS_MAX: f64 = 1_000.0;
/// Differences below are noise.
const FLAT: f64 = 1.3;

pub(crate) fn run() -> Result<Report, Failure> {
    let mut rows = kept()?;
    rows.extend(found()?);
    rows.extend(published(100, 1, ["insert among 100", "publish among 100"])?);
    rows.extend(published(10_000, 10_000 / CHANGING, ["insert among 10,000", "publish among 10,000"])?);
    rows.extend(published(100_000, 100_000 / CHANGING, ["insert among 100,000", "publish among 100,000"])?);
    rows.extend(published(100_000, SCATTERED, ["insert, each in turn", "publish, each in turn"])?);
    let budget = "kept handle ≤ 2 × arc_swap load; look-up ≤ 2 × dashmap get; publish ≤ 1 µs and flat";
    Ok(Report::new("b1", "read and publish a view", budget, rows)
        .ratio("kept handle", "arc_swap load", 2.0)
        .ratio("look-up and read", "dashmap get", 2.0)
        .growth(
            ["publish among 100", "publish among 10,000"],
            ["insert among 100", "insert among 10,000"],
            "growth of insert, 100 to 10,000",
            FLAT,
        )
        .growth(
            ["publish among 100", "publish among 100,000"],
            ["insert among 100", "insert among 100,000"],
            "growth of insert, 100 to 100,000",
            FLAT,
        )
        .at_most(PUBLISH_NS_MAX, |row| row.name.starts_with("publish")))
}

/// The DAG tracker's views of so many tasks, and the same entries in a dashmap.
struct Tasks {
    keys: Vec<TaskRef>,
    views: Views<TaskRef, Arc<TaskView>>,
    map: DashMap<TaskRef, Arc<TaskView>>,
    stride: usize,
    at: usize,
}

impl Tasks {
    fn new(count: usize, stride: usize) -> Result<Self, Failure> {
        let mut keys = Vec::with_capacity(count);
        for n in 0..count {
            keys.push(TaskRef::new("7k2m4q9d".parse()?, format!("train[{n}]").parse()?));
        }
        let (views, map) = (Views::default(), DashMap::new());
        for key in &keys {
            views.publish(key.clone(), Arc::new(view(key, 0)));
            map.insert(key.clone(), Arc::new(view(key, 0)));
        }
        Ok(Self { keys, views, map, stride, at: 0 })
    }

    fn advance(&mut self) {
        self.at = (self.at + self.stride) % self.keys.len();
    }

    fn key(&self) -> &TaskRef {
        &self.keys[self.at]
    }
}

pub(crate) fn view(key: &TaskRef, seq: u64) -> TaskView {
    TaskView {
        run: key.run.clone(),
        task: key.task.clone(),
        function: "steps:train".into(),
        state: TaskState::Running,
        attempt: Attempt(1),
        failures: 0,
        lost: 0,
        worker: None,
        fence: None,
        started_at: None,
        ended_at: None,
        error: None,
        certificates: Vec::new(),
        pending: Vec::new(),
        needs: Vec::new(),
        cache: None,
        seq: Seq(seq),
    }
}

/// Both in turns, a sample of one after a sample of the other.
fn in_turns<T>(
    names: [&'static str; 2],
    role: Role,
    on: &mut T,
    mut theirs: impl FnMut(&mut T),
    mut ours: impl FnMut(&mut T),
) -> Vec<Row> {
    let (mut other, mut us) = (Samples::of(role, names[0]), Samples::of(Role::Us, names[1]));
    for _ in 0..ROUNDS {
        other.begin_round();
        us.begin_round();
        for _ in 0..SAMPLES {
            sample(&mut other, || theirs(on));
            sample(&mut us, || ours(on));
        }
    }
    vec![other.row(), us.row()]
}

fn sample(samples: &mut Samples, mut operation: impl FnMut()) {
    let start = Instant::now();
    for _ in 0..OPERATIONS {
        operation();
    }
    samples.add(start.elapsed(), OPERATIONS);
}

/// A reader that keeps a handle and looks again and again.
fn kept() -> Result<Vec<Row>, Failure> {
    let tasks = Tasks::new(100, 1)?;
    let key = tasks.key();
    let swap = ArcSwap::from_pointee(view(key, 0));
    let cell = tasks.views.cell(key).ok_or("it was published")?;
    let mut both: (ArcSwap<TaskView>, Cell<Arc<TaskView>>) = (swap, cell);
    Ok(in_turns(
        ["arc_swap load", "kept handle"],
        Role::Floor,
        &mut both,
        |(swap, _)| _ = black_box(swap.load().seq),
        |(_, cell)| _ = black_box(cell.read().seq),
    ))
}

/// A reader that has the key alone.
fn found() -> Result<Vec<Row>, Failure> {
    Ok(in_turns(
        ["dashmap get", "look-up and read"],
        Role::Peer,
        &mut Tasks::new(10_000, SCATTERED)?,
        |tasks| {
            tasks.advance();
            black_box(tasks.map.get(tasks.key()).map(|view| view.seq));
        },
        |tasks| {
            tasks.advance();
            black_box(tasks.views.get(tasks.key()).map(|view| view.seq));
        },
    ))
}

/// One change of one entity among `count`, and of the `stride`-th after it next.
fn published(count: usize, stride: usize, names: [&'static str; 2]) -> Result<Vec<Row>, Failure> {
    Ok(in_turns(
        names,
        Role::Peer,
        &mut Tasks::new(count, stride)?,
        |tasks| {
            tasks.advance();
            tasks.map.insert(tasks.key().clone(), Arc::new(view(tasks.key(), 1)));
        },
        |tasks| {
            tasks.advance();
            tasks.views.publish(tasks.key().clone(), Arc::new(view(tasks.key(), 1)));
        },
    ))
}
