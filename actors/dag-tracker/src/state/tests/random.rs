//! Any flow, any order of outcomes: the order of needs is never violated, every run ends, a task commits once.

use proptest::prelude::*;
use std::collections::BTreeMap;

use super::*;

#[derive(Debug, Clone)]
struct Shape {
    /// For each task, which of the earlier ones it needs, and how it fans out.
    tasks: Vec<(Vec<usize>, u8)>,
}

fn shapes() -> impl Strategy<Value = Shape> {
    prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 0..4), 0_u8..6), 1..9)
        .prop_map(|tasks| {
            let needs = |n: usize, picks: Vec<prop::sample::Index>| {
                picks.into_iter().filter(|_| n > 0).map(|pick| pick.index(n)).collect()
            };
            let tasks = tasks.into_iter().enumerate().map(|(n, (picks, fan))| (needs(n, picks), fan));
            Shape { tasks: tasks.collect() }
        })
}

impl Shape {
    fn flow(&self) -> FlowSpec {
        let mut flow =
            builder::Flow::new("random").task("t0", "m:f").each(serde_json::Value::from(vec![0; 2]));
        for (n, (needs, fan)) in self.tasks.iter().enumerate() {
            flow = flow.task(format!("t{}", n + 1), "m:f").retries(u32::from(fan % 3)).timeout("10s");
            for need in needs {
                flow = flow.with(format!("x{need}"), format!("${{t{need}}}"));
            }
            flow = match (fan, needs.first()) {
                (1, _) => flow.each(serde_json::Value::from(vec![1, 2, 3])),
                (2, Some(need)) => flow.each(format!("${{t{need}}}")),
                (3, _) => flow.each(serde_json::Value::Array(Vec::new())),
                _ => flow,
            };
        }
        flow.build().expect("needs point backwards")
    }
}

/// One thing that happens; each picks among what is possible at the moment.
#[derive(Debug, Clone, Copy)]
enum Happens {
    Start(usize),
    Commit(usize),
    Fail(usize),
    Die(usize),
    Ghost(usize),
    Pass(u64),
    Restart,
    Cancel,
}

fn happenings() -> impl Strategy<Value = Vec<Happens>> {
    let one = prop_oneof![
        8 => any::<usize>().prop_map(Happens::Start),
        8 => any::<usize>().prop_map(Happens::Commit),
        2 => any::<usize>().prop_map(Happens::Fail),
        1 => any::<usize>().prop_map(Happens::Die),
        1 => any::<usize>().prop_map(Happens::Ghost),
        2 => (0_u64..12_000).prop_map(Happens::Pass),
        1 => Just(Happens::Restart),
        1 => prop::bool::weighted(0.1).prop_map(|cancel| if cancel { Happens::Cancel } else { Happens::Restart }),
    ];
    prop::collection::vec(one, 0..60)
}

struct Play {
    world: World,
    run: RunId,
    /// Attempts that a worker computes, current or not.
    held: Vec<(String, Fence)>,
}

impl Play {
    fn happen(&mut self, happens: Happens) {
        let Self { world, run, held } = self;
        match happens {
            Happens::Start(pick) => {
                let wished = world.wished();
                if !wished.is_empty() {
                    let task = wished[pick % wished.len()].clone();
                    let fence = world.attempt(&task);
                    held.push((task, fence));
                }
            }
            Happens::Commit(pick) if !held.is_empty() => {
                let (task, fence) = held.swap_remove(pick % held.len());
                // Every second output is a list, so that some fan-outs over outputs work and some fail.
                let output = if pick.is_multiple_of(2) { Payload::of(&vec![1, 2]) } else { Payload::of(&1) };
                if world.commit(run, &task, fence, output) == CommitReply::Stale {
                    world.fact(AttemptStopped { worker: worker(), fence });
                }
            }
            Happens::Fail(pick) if !held.is_empty() => {
                let (task, fence) = held.swap_remove(pick % held.len());
                world.fail(run, &task, fence);
            }
            Happens::Die(pick) if !held.is_empty() => {
                let (task, fence) = held.swap_remove(pick % held.len());
                world.kill(run, &task, fence);
            }
            Happens::Ghost(pick) if !held.is_empty() => {
                // Commits, and its holder never hears of it and commits again later.
                let (task, fence) = held[pick % held.len()].clone();
                world.commit(run, &task, fence, Payload::of(&1));
            }
            Happens::Pass(ms) => world.pass_ms(ms),
            Happens::Restart => world.restart(),
            Happens::Cancel => _ = world.cancel(run),
            _ => {}
        }
        self.world.check();
    }

    /// No more mishaps: everything that is wished for starts and commits.
    fn finish(&mut self) {
        for _ in 0..2_000 {
            if view::run_view(self.world.engine.state(), &self.run).is_some_and(|view| view.state.is_final())
            {
                return;
            }
            self.happen(Happens::Start(0));
            self.happen(Happens::Commit(0));
            self.happen(Happens::Pass(5_000));
        }
        panic!("the run does not end: {:?}", self.world.tasks(&self.run));
    }
}

/// From the records alone: who started before what it needs had succeeded, who committed twice.
fn judge(play: &mut Play, flow: &FlowSpec) {
    let plan = Plan::compile(flow, &BTreeMap::new()).expect("it ran");
    let name = |task: &TaskId| task.as_str().split('[').next().unwrap_or_default().to_owned();
    let records = play.world.journal.after(Seq(0), &[AttemptStarted::KIND, StepCommitted::KIND]).records;
    let last_commit =
        records.iter().filter_map(|record| Some((record.seq, record.event::<StepCommitted>()?)));
    let mut committed: BTreeMap<TaskId, Seq> = BTreeMap::new();
    let mut done: BTreeMap<String, Seq> = BTreeMap::new();
    for (seq, event) in last_commit {
        assert_eq!(committed.insert(event.task.clone(), seq), None, "{} committed twice", event.task);
        done.insert(name(&event.task), seq);
    }
    for record in &records {
        let Some(started) = record.event::<AttemptStarted>() else { continue };
        let task = &plan.tasks[plan.by_name[&name(&started.task)]];
        for need in &task.needs {
            let need = &plan.tasks[*need].name;
            assert!(done.get(need).is_none_or(|seq| *seq < record.seq), "{} before {need}", started.task);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_run_ends_in_order_with_one_commit_for_each_task(
        shape in shapes(),
        happenings in happenings(),
    ) {
        let mut world = World::new();
        let flow = shape.flow();
        let run = world.start(&flow);
        let mut play = Play { world, run, held: Vec::new() };
        for happens in happenings {
            play.happen(happens);
        }
        play.finish();
        judge(&mut play, &flow);
        play.world.restart();
    }
}
