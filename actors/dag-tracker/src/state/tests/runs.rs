//! Whole runs: attaching, keys, cancelling, refusals, findings.

use eclosion_schemas::ops::run::{ListReply, ValidateReply, WhyReply};
use eclosion_schemas::pending::PendingReason;
use serde_json::json;

use super::*;

fn request(flow: &FlowSpec) -> StartRequest {
    StartRequest {
        flow: flow.clone(),
        set: BTreeMap::new(),
        tenant: None,
        new: false,
        idem: None,
        no_cache: false,
    }
}

fn start(world: &mut World, request: StartRequest) -> Result<StartReply, Error> {
    world.ask(Command::Start(Box::new(request), None))
}

#[test]
fn equal_content_attaches_to_an_unfinished_run_unless_a_new_one_is_wanted() {
    let mut world = World::new();
    let first = start(&mut world, request(&chain())).expect("starts");
    assert!(!first.attached);
    let again = start(&mut world, request(&chain())).expect("attaches");
    assert_eq!((again.run, again.attached), (first.run.clone(), true));
    let new = start(&mut world, StartRequest { new: true, ..request(&chain()) }).expect("starts");
    assert_ne!(new.run, first.run);
    let mut described = chain();
    described.description = "words change nothing".into();
    assert!(start(&mut world, request(&described)).expect("attaches").attached);
    let mut moved = chain();
    moved.code_hash = "abc".into();
    assert!(!start(&mut world, request(&moved)).expect("starts").attached, "other code");
    world.cancel(&first.run);
    world.cancel(&new.run);
    assert!(!start(&mut world, request(&chain())).expect("starts").attached, "cancelled is over");
    world.restart();
}

#[test]
fn the_same_key_gets_the_same_run_for_ever_and_never_another_content() {
    let mut world = World::new();
    let keyed = |flow: &FlowSpec| StartRequest { idem: Some("k".into()), new: true, ..request(flow) };
    let flow = single(|task| task);
    let first = start(&mut world, keyed(&flow)).expect("starts");
    assert_eq!(start(&mut world, keyed(&flow)).expect("known").run, first.run);
    world.succeed(&first.run, "a", &1);
    assert_eq!(
        start(&mut world, keyed(&flow)).expect("known").run,
        first.run,
        "finished, and still the same"
    );
    let error = start(&mut world, keyed(&chain())).expect_err("another content");
    assert_eq!((error.code, error.reason.as_str()), (Code::Conflict, "run.key"));
}

#[test]
fn seeds_come_from_the_parameter_or_from_the_content() {
    let mut world = World::new();
    let flow = builder::Flow::new("f").parameter("seed", 7).task("a", "m:a").build().expect("a flow");
    let run = start(&mut world, request(&flow)).expect("starts").run;
    assert_eq!(world.get(&run).run.seed, 7);
    let set = BTreeMap::from([("seed".to_owned(), 8.into())]);
    let other = start(&mut world, StartRequest { set, ..request(&flow) }).expect("starts").run;
    let (one, two) = (world.get(&run).run, world.get(&other).run);
    assert_eq!((two.seed, &two.parameters["seed"]), (8, &8.into()));
    assert_ne!(one.content, two.content);
    let unseeded = world.start(&chain());
    assert!(world.get(&unseeded).run.seed <= u64::from(u32::MAX));
}

#[test]
fn after_a_cancellation_nothing_starts_or_commits() {
    let mut world = World::new();
    let flow = builder::Flow::new("f")
        .task("a", "m:a")
        .timeout("1s")
        .task("b", "m:b")
        .task("c", "m:c")
        .after("a")
        .build()
        .expect("a flow");
    let run = world.start(&flow);
    let wish = world.wishes()["b"].clone();
    let fence = world.attempt("a");
    assert_eq!(world.cancel(&run), RunState::Cancelling);
    assert!(world.wishes().is_empty());
    let withdrawn: Vec<_> = world.engine.outstanding().values().cloned().collect();
    assert_eq!(withdrawn, [Effect::Withdraw { wishes: vec![wish.id] }]);
    let late = world.attempt_for(&wish);
    for fence in [fence, late] {
        assert_eq!(world.commit(&run, "a", fence, Payload::of(&1)), CommitReply::Stale);
        assert_eq!(world.commit(&run, "b", fence, Payload::of(&1)), CommitReply::Stale);
    }
    world.pass_ms(60_000);
    assert_eq!(world.state_of(&run), RunState::Cancelling, "time-outs are over, its worker is being stopped");
    world.check();
    world.restart();
    world.fact(AttemptStopped { worker: worker(), fence });
    let GetReply { run: head, tasks } = world.get(&run);
    assert_eq!(head.state, RunState::Cancelled);
    assert_eq!(head.error.map(|error| error.message), Some("the run was cancelled: enough".into()));
    let states: Vec<_> = tasks.iter().map(|task| task.state).collect();
    assert_eq!(states, [TaskState::Cancelled, TaskState::Skipped, TaskState::Skipped]);
    assert_eq!(world.cancel(&run), RunState::Cancelled, "again changes nothing");
    assert!(world.recorded::<StepCommitted>().is_empty());
    world.check();
}

#[test]
fn a_cancelled_attempt_ends_by_its_report_or_by_its_workers_death() {
    let mut world = World::new();
    for death in [false, true] {
        let run = world.start(&single(|task| task.retries(5)));
        let fence = world.attempt("a");
        world.cancel(&run);
        match death {
            true => world.kill(&run, "a", fence),
            false => assert_eq!(world.fail(&run, "a", fence), CommitReply::Committed),
        }
        assert_eq!(world.tasks(&run), [("a".to_owned(), TaskState::Cancelled)]);
        assert_eq!(world.state_of(&run), RunState::Cancelled);
    }
    world.check();
}

#[test]
fn whichever_of_commit_and_cancellation_comes_first_wins() {
    let mut world = World::new();
    let run = world.start(&chain());
    let fence = world.attempt("a");
    assert_eq!(world.commit(&run, "a", fence, Payload::of(&1)), CommitReply::Committed);
    world.cancel(&run);
    assert_eq!(world.commit(&run, "a", fence, Payload::of(&1)), CommitReply::AlreadyCommitted);
    assert_eq!(world.state_of(&run), RunState::Cancelled);
    assert_eq!(world.task(&run, "a").state, TaskState::Succeeded);
}

#[test]
fn withdrawals_do_not_pile_up() {
    let mut world = World::new();
    for _ in 0..WITHDRAWALS_MAX + 5 {
        let run = world.start(&single(|task| task));
        world.cancel(&run);
    }
    assert_eq!(world.engine.outstanding().len(), WITHDRAWALS_MAX);
}

#[test]
fn unfinished_runs_are_limited() {
    let mut world = World::new();
    let flow = single(|task| task);
    for _ in 0..UNFINISHED_RUNS_MAX {
        world.start(&flow);
    }
    let error = start(&mut world, StartRequest { new: true, ..request(&flow) }).expect_err("one too many");
    assert_eq!((error.code, error.reason.as_str()), (Code::Exhausted, "run.too_many"));
}

/// Two runs are all that may be inside.
fn full_house() -> (World, [RunId; 2]) {
    let mut world = World::new();
    world.engine = Engine::new(DagTracker { unfinished_max: 2 });
    let runs = [world.start(&single(|task| task)), world.start(&single(|task| task))];
    (world, runs)
}

fn told_ms(world: &mut World) -> u64 {
    let request = StartRequest { new: true, ..request(&single(|task| task)) };
    let error = start(world, request).expect_err("no room");
    assert_eq!((error.code, error.reason.as_str()), (Code::Exhausted, "run.too_many"));
    match error.retry {
        Retry::After { after_ms } => after_ms,
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_is_refused_a_run_is_told_how_long_a_place_takes_at_the_present_pace() {
    let (mut world, [first, second]) = full_house();
    assert_eq!(told_ms(&mut world), 1_000, "nothing is known yet");
    let begun = world.now;
    world.cancel(&first);
    world.start(&single(|task| task));
    world.now = begun.plus_ms(4_000);
    world.cancel(&second);
    world.start(&single(|task| task));
    assert_eq!(told_ms(&mut world), 2_000, "two have ended in four seconds");
    world.now = begun.plus_ms(3_600_000);
    assert_eq!(told_ms(&mut world), 60_000, "a house at a halt is not asked ever faster");
}

#[test]
fn a_place_that_is_free_is_given_to_the_next_who_comes() {
    let (mut world, [first, _]) = full_house();
    told_ms(&mut world);
    world.cancel(&first);
    world.start(&single(|task| task));
    told_ms(&mut world);
}

#[test]
fn a_run_that_nobody_knows_is_refused_with_the_likely_one() {
    let mut world = World::new();
    let run = world.start(&chain());
    let slip: RunId = format!("{}x", &run.as_str()[..7]).parse().expect("an id");
    let error = world.ask::<GetReply>(Command::Get(RunRequest { run: slip.clone() })).expect_err("unknown");
    assert_eq!((error.code, error.reason.as_str()), (Code::NotFound, "run.unknown"));
    assert_eq!(error.help, Some(format!("did you mean `{run}`?")));
    let cancel = Command::Cancel(CancelRequest { run: slip, reason: String::new() });
    assert_eq!(world.ask::<CancelReply>(cancel).expect_err("unknown").reason, "run.unknown");
}

#[test]
fn validating_shows_the_order_and_starts_nothing() {
    let mut world = World::new();
    let request = ValidateRequest { flow: chain(), set: BTreeMap::new() };
    let reply: ValidateReply = world.ask(Command::Validate(Box::new(request))).expect("valid");
    let names: Vec<_> = reply.tasks.iter().map(|task| (task.task.as_str(), task.needs.join(","))).collect();
    assert_eq!(names, [("a", String::new()), ("b", "a".into()), ("c", "b".into())]);
    assert_eq!(world.journal.marks().appended, Seq(0));
}

#[test]
fn waiting_and_failed_things_say_why() {
    let mut world = World::new();
    let run = world.start(&chain());
    assert_eq!(world.task(&run, "b").pending, [PendingReason::Upstream { tasks: vec![id("a")] }]);
    let fence = world.attempt("a");
    let why = |world: &mut World, task: Option<&str>| {
        let request = WhyRequest { run: run.clone(), task: task.map(id) };
        world.ask::<WhyReply>(Command::Why(request))
    };
    let waiting = why(&mut world, Some("b")).expect("answers");
    assert_eq!(waiting.findings, ["`b` waits for tasks that it needs: `a`."]);
    world.kill(&run, "a", fence);
    let fence = world.attempt("a");
    world.fail(&run, "a", fence);
    let failed = why(&mut world, None).expect("answers");
    assert_eq!(
        failed.findings,
        [
            format!(
                "Run {run} failed: task `a` failed: boom. Run what failed again: eclosion rerun {run}. See what it ran: eclosion runs show {run}"
            ),
            format!("`a` failed after 2 attempts: boom. Read on: eclosion logs {run} a"),
            "Worker w-1-1 died while computing `a`: killed by SIGKILL, sender unknown. Its last line: so long".into(),
        ]
    );
    let error = why(&mut world, Some("aa")).expect_err("no such task");
    assert_eq!((error.reason.as_str(), error.help.as_deref()), ("run.task", Some("did you mean `a`?")));
}

#[test]
fn what_failed_is_run_again_by_a_command_that_a_shell_takes_as_it_is() {
    let mut world = World::new();
    let mut flow = single(|task| task);
    flow.source = Some("/home/ada/it's mine/flow.toml".into());
    for (name, default) in [("seed", json!(7)), ("data", json!("iris")), ("n", json!("")), ("kept", json!(1))]
    {
        flow.parameters.insert(name.into(), default);
    }
    let set = [("seed", json!(8)), ("data", json!("/a b.csv")), ("n", json!("3")), ("kept", json!(1))];
    let set = set.map(|(name, value)| (name.to_owned(), value)).into();
    let run = start(&mut world, StartRequest { set, ..request(&flow) }).expect("starts").run;
    let fence = world.attempt("a");
    world.fail(&run, "a", fence);
    let why =
        world.ask::<WhyReply>(Command::Why(WhyRequest { run: run.clone(), task: None })).expect("answers");
    let command =
        r#"eclosion run '/home/ada/it'\''s mine/flow.toml' --set 'data=/a b.csv' --set 'n="3"' --set seed=8"#;
    let again = format!("Run what failed again: eclosion rerun {run}. Run it again: {command}");
    assert_eq!(why.findings[0], format!("Run {run} failed: task `a` failed: boom. {again}"));
    let error = world.get(&run).run.error.expect("failed");
    assert_eq!(error.help, Some(format!("eclosion why {run}")));
}

#[test]
fn a_long_result_is_not_repeated_where_runs_are_published_and_listed() {
    let mut world = World::new();
    for (length, is_published) in [(10, true), (20_000, false)] {
        let run = world.start(&single(|task| task));
        let result = "x".repeat(length);
        world.succeed(&run, "a", &result);
        let got = world.get(&run).run;
        assert_eq!(
            (got.result, got.result_bytes),
            (Some(Payload::of(&result)), Some(Payload::of(&result).bytes()))
        );
        let published = view::run_view(world.engine.state(), &run).expect("in memory");
        assert_eq!((published.result.is_some(), published.result_bytes), (is_published, got.result_bytes));
        let listed =
            world.ask::<ListReply>(Command::List(ListRequest { state: None, limit: 1 })).expect("lists");
        assert_eq!((&listed.runs[0].run, &listed.runs[0].result), (&run, &None));
    }
}

#[test]
fn a_record_says_what_it_changed() {
    let mut world = World::new();
    let run = world.start(&chain());
    world.succeed(&run, "a", &1);
    let committed = world.journal.after(Seq(0), &[StepCommitted::KIND]).records.remove(0);
    let changed = view::changed(world.engine.state(), &committed);
    let named: Vec<_> = changed.iter().map(|(_, task)| task.as_ref().map(TaskId::as_str)).collect();
    assert_eq!(named, [None, Some("a"), Some("b")], "the head, the task, and what became ready");
}
