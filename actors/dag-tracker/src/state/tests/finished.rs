//! Finished runs: what stays in memory, and what rows say of the rest.

use eclosion_schemas::ops::run::ListReply;

use super::*;

fn list(world: &mut World, state: Option<RunState>, limit: u32) -> ListReply {
    world.ask(Command::List(ListRequest { state, limit })).expect("lists")
}

/// Runs of one task each, every third of them failed.
fn many(world: &mut World, runs: usize) -> Vec<RunId> {
    let flow = single(|task| task);
    let mut started = Vec::new();
    for n in 0..runs {
        let run = world.start(&flow);
        let fence = world.attempt("a");
        match n % 3 {
            0 => world.fail(&run, "a", fence),
            _ => world.commit(&run, "a", fence, Payload::of(&n)),
        };
        started.push(run);
    }
    started
}

#[test]
fn the_newest_finished_runs_stay_in_memory_and_older_ones_are_shown_from_rows() {
    let mut world = World::new();
    let runs = many(&mut world, FINISHED_RUNS_MAX + 30);
    assert_eq!(world.engine.state().runs.len(), FINISHED_RUNS_MAX);
    world.check();
    world.restart();

    let all = list(&mut world, None, 1_000);
    let newest_first: Vec<_> = runs.iter().rev().cloned().collect();
    assert_eq!(all.runs.iter().map(|view| view.run.clone()).collect::<Vec<_>>(), newest_first);
    let failed = list(&mut world, Some(RunState::Failed), 1_000);
    assert_eq!(failed.runs.len(), runs.len().div_ceil(3));
    let some = list(&mut world, None, 10);
    assert_eq!((some.runs.len(), some.cut), (10, runs.len() as u64 - 10));

    let failed = world.get(&runs[0]);
    assert_eq!((failed.run.state, failed.tasks[0].state), (RunState::Failed, TaskState::Failed));
    assert_eq!(failed.run.error.map(|error| error.message), Some("task `a` failed: boom".into()));
    let succeeded = world.get(&runs[1]);
    assert_eq!(succeeded.run.result, Some(Payload::of(&1)));
    assert_eq!(succeeded.run.counts, BTreeMap::from([(TaskState::Succeeded, 1)]));
    assert_eq!(world.cancel(&runs[1]), RunState::Succeeded);
}

#[test]
fn an_older_run_looks_as_it_did_in_memory() {
    let mut world = World::new();
    let run = world.start(&single(|task| task.retries(1)));
    let fence = world.attempt("a");
    world.kill(&run, "a", fence);
    let fence = world.attempt("a");
    world.fail(&run, "a", fence);
    world.pass_ms(1_000);
    world.succeed(&run, "a", &1);
    let mut before = world.get(&run);
    many(&mut world, FINISHED_RUNS_MAX);
    assert!(view::run_view(world.engine.state(), &run).is_none(), "it has left the memory");
    let after = world.get(&run);
    before.tasks[0].started_at = None;
    assert_eq!(after, before);
}

#[test]
fn a_key_is_known_after_its_run_has_left_the_memory() {
    let mut world = World::new();
    let flow = single(|task| task);
    let request = StartRequest {
        flow: flow.clone(),
        set: BTreeMap::new(),
        tenant: None,
        new: true,
        idem: Some("k".into()),
        no_cache: false,
    };
    let first: StartReply = world.ask(Command::Start(Box::new(request.clone()), None)).expect("starts");
    world.succeed(&first.run, "a", &1);
    many(&mut world, FINISHED_RUNS_MAX);
    let again: StartReply = world.ask(Command::Start(Box::new(request), None)).expect("known");
    assert_eq!((again.run, again.attached), (first.run, true));
}

#[test]
fn a_finished_run_keeps_its_result_and_no_other_output() {
    let mut world = World::new();
    let run = world.start(&chain());
    for task in ["a", "b", "c"] {
        world.succeed(&run, task, &task);
    }
    let kept = world.engine.state().run(&run).expect("in memory");
    assert_eq!(kept.result, Some(Payload::of(&"c")));
    let outputs =
        kept.groups.iter().flat_map(|group| &group.instances).filter(|instance| instance.output.is_some());
    assert_eq!(outputs.count(), 0);
}
