//! One task's attempts: commits under fences, retries, lost workers, time-outs, environments.

use eclosion_schemas::ops::run::WhyReply;

use super::*;

#[test]
fn only_the_current_fence_commits_and_only_once() {
    let mut world = World::new();
    let run = world.start(&single(|task| task));
    let fence = world.attempt("a");
    let other = Fence { counter: fence.counter + 7, ..fence };
    assert_eq!(world.commit(&run, "a", other, Payload::of(&0)), CommitReply::Stale);
    assert_eq!(world.commit(&run, "a[0]", fence, Payload::of(&0)), CommitReply::Stale, "no such task");
    assert_eq!(world.commit(&run, "a", fence, Payload::of(&1)), CommitReply::Committed);
    assert_eq!(world.commit(&run, "a", fence, Payload::of(&1)), CommitReply::AlreadyCommitted);
    assert_eq!(world.commit(&run, "a", other, Payload::of(&2)), CommitReply::Stale);
    assert_eq!(world.fail(&run, "a", other), CommitReply::Stale);
    assert_eq!(world.recorded::<StepCommitted>().len(), 1);
    world.check();
}

#[test]
fn a_commit_of_another_worker_is_stale() {
    let mut world = World::new();
    let run = world.start(&single(|task| task));
    let fence = world.attempt("a");
    let stranger = "w-9-9".parse().expect("a worker id");
    let request =
        CommitRequest { run, task: id("a"), fence, worker: stranger, output: Payload::of(&1), code: None };
    let reply = world.ask::<CommitReply>(Command::Commit(Box::new(request)));
    assert_eq!(reply.expect("answers"), CommitReply::Stale);
}

#[test]
fn an_exception_is_retried_after_its_backoff_and_within_its_budget() {
    let mut world = World::new();
    let run = world.start(&single(|task| task.retries(2)));
    for (failures, most_ms) in [(1, 1_000), (2, 2_000)] {
        let fence = world.attempt("a");
        assert_eq!(world.fail(&run, "a", fence), CommitReply::Committed);
        assert_eq!(world.fail(&run, "a", fence), CommitReply::AlreadyCommitted, "the same report again");
        assert_eq!(world.commit(&run, "a", fence, Payload::of(&1)), CommitReply::Stale);
        let task = world.task(&run, "a");
        assert_eq!((task.state, task.failures), (TaskState::Backoff, failures));
        assert!(world.wishes().is_empty());
        world.restart();
        let until = world.engine.wake_at().expect("a timer");
        let wait_ms = until.since_ms(world.now);
        assert!((most_ms * 4 / 5..=most_ms).contains(&wait_ms), "{wait_ms} of {most_ms}");
        world.pass_ms(wait_ms - 1);
        assert!(world.wishes().is_empty());
        world.pass_ms(1);
        assert_eq!(world.wished(), ["a"]);
        world.check();
    }
    let fence = world.attempt("a");
    world.fail(&run, "a", fence);
    let GetReply { run: head, tasks } = world.get(&run);
    assert_eq!((head.state, tasks[0].state, tasks[0].failures), (RunState::Failed, TaskState::Failed, 3));
    let error = head.error.expect("says why");
    assert_eq!((error.reason.as_str(), error.message.as_str()), ("task.raised", "task `a` failed: boom"));
}

#[test]
fn a_task_that_failed_skips_what_needs_it_and_nothing_else() {
    let mut world = World::new();
    let flow = builder::Flow::new("f")
        .task("a", "m:a")
        .task("b", "m:b")
        .after("a")
        .task("c", "m:c")
        .after("b")
        .task("other", "m:o")
        .task("both", "m:o")
        .after("other")
        .after("c")
        .build()
        .expect("a flow");
    let run = world.start(&flow);
    let fence = world.attempt("a");
    world.fail(&run, "a", fence);
    let states = [
        ("a", TaskState::Failed),
        ("b", TaskState::Skipped),
        ("c", TaskState::Skipped),
        ("other", TaskState::Ready),
        ("both", TaskState::Skipped),
    ];
    assert_eq!(world.tasks(&run), states.map(|(task, state)| (task.to_owned(), state)));
    assert_eq!(world.state_of(&run), RunState::Running, "what does not need it goes on");
    world.succeed(&run, "other", &1);
    assert_eq!(world.state_of(&run), RunState::Failed);
    world.check();
    world.restart();
}

#[test]
fn a_lost_worker_is_not_counted_as_a_failure_and_three_of_them_quarantine_the_task() {
    let mut world = World::new();
    let run = world.start(&single(|task| task.retries(0)));
    for lost in 1..=3 {
        let fence = world.attempt("a");
        world.kill(&run, "a", fence);
        world.kill(&run, "a", fence);
        let task = world.task(&run, "a");
        assert_eq!((task.lost, task.failures, task.certificates.len()), (lost, 0, lost as usize));
        assert_eq!(world.commit(&run, "a", fence, Payload::of(&1)), CommitReply::Stale, "a ghost");
        world.check();
    }
    let GetReply { run: head, tasks } = world.get(&run);
    let error = head.error.expect("says why");
    assert_eq!((head.state, error.reason.as_str()), (RunState::Failed, "task.quarantined"));
    assert_eq!(error.causes, vec!["w-1-1 killed by SIGKILL, sender unknown"; 3]);
    assert_eq!(tasks[0].certificates[2].last_lines, ["so long"]);
    let why =
        world.ask::<WhyReply>(Command::Why(WhyRequest { run: run.clone(), task: None })).expect("answers");
    assert!(why.findings[0].contains("Release it: eclosion pool quarantine ls."), "{:?}", why.findings);
    world.restart();
}

#[test]
fn a_worker_that_was_told_to_go_costs_nothing() {
    let mut world = World::new();
    let run = world.start(&single(|task| task));
    let fence = world.attempt("a");
    let certificate = DeathCertificate {
        worker: worker(),
        pid: 1,
        death: Death::Exited { code: 0 },
        at: world.now,
        task: None,
        attempt: None,
        peak_rss_bytes: None,
        free_memory_bytes: None,
        last_lines: Vec::new(),
    };
    world.fact(WorkerDied { worker: worker(), certificate, fence: Some(fence), wanted: true });
    assert_eq!((world.task(&run, "a").lost, world.wished()), (0, vec!["a".to_owned()]));
}

#[test]
fn a_time_out_ends_an_attempt_that_still_runs_and_is_retried_like_a_failure() {
    let mut world = World::new();
    let run = world.start(&single(|task| task.timeout("2s").retries(1)));
    let fence = world.attempt("a");
    world.restart();
    world.pass_ms(1_999);
    assert_eq!(world.task(&run, "a").state, TaskState::Running);
    world.pass_ms(1);
    let failed = world.recorded::<StepFailed>();
    assert_eq!((failed[0].error.code, failed[0].released, failed[0].fence), (Code::Deadline, false, fence));
    assert_eq!(failed[0].error.message, "attempt 1 did not finish within 2000 ms");
    assert_eq!(world.task(&run, "a").state, TaskState::Backoff);
    assert_eq!(world.commit(&run, "a", fence, Payload::of(&1)), CommitReply::Stale, "too late");
    assert_eq!(world.fail(&run, "a", fence), CommitReply::Stale, "it is not free because of this report");
    world.fact(AttemptStopped { worker: worker(), fence });
    world.pass_ms(1_000);
    world.succeed(&run, "a", &1);
    world.pass_ms(10_000);
    assert_eq!(world.state_of(&run), RunState::Succeeded);
    assert!(world.engine.wake_at().is_none());
}

#[test]
fn an_environment_that_cannot_be_built_fails_what_waits_for_it_and_nothing_that_runs() {
    let mut world = World::new();
    let flow = builder::Flow::new("f").task("a", "m:a").task("b", "m:b").task("c", "m:c").after("a").build();
    let run = world.start(&flow.expect("a flow"));
    let environment = world.wishes()["a"].environment.clone();
    let fence = world.attempt("a");
    let error = Error::invalid("environment.unresolvable", "no such package");
    world.fact(EnvironmentFailed { environment: environment.clone(), error: error.clone() });
    assert_eq!(world.task(&run, "b").error, Some(error.clone()));
    assert_eq!(world.task(&run, "a").state, TaskState::Running);
    world.check();
    world.restart();
    assert_eq!(world.commit(&run, "a", fence, Payload::of(&1)), CommitReply::Committed);
    assert_eq!(world.task(&run, "c").error, Some(error), "it would wait for ever");
    assert_eq!(world.get(&run).run.error.map(|error| error.reason), Some("environment.unresolvable".into()));
    let later = world.start(&single(|task| task));
    assert_eq!(world.wished(), ["a"], "another run may find it mended");
    assert_eq!(world.state_of(&later), RunState::Running);
}

#[test]
fn a_wish_that_is_refused_fails_its_task() {
    let mut world = World::new();
    let run = world.start(&single(|task| task.resource("memory", "1TiB")));
    let wish = world.wishes()["a"].clone();
    assert_eq!(wish.execute.lease, BTreeMap::from([("memory".to_owned(), 1 << 40)]));
    let error = Error::new(Code::Exhausted, "lease.too_large", "never that much");
    world.fact(AttemptRefused { run: run.clone(), task: id("a"), wish: wish.id, error: error.clone() });
    assert_eq!(world.task(&run, "a").error, Some(error));
    assert_eq!(world.state_of(&run), RunState::Failed);
}

#[test]
fn an_answer_to_no_wish_changes_nothing() {
    let mut world = World::new();
    let run = world.start(&single(|task| task));
    let wish = world.wishes()["a"].clone();
    let first = world.attempt_for(&wish);
    let second = world.attempt_for(&wish);
    assert_eq!(world.commit(&run, "a", second, Payload::of(&2)), CommitReply::Stale);
    assert_eq!(world.commit(&run, "a", first, Payload::of(&1)), CommitReply::Committed);
    world.check();
}

#[test]
fn the_body_of_the_current_attempt_can_be_asked_for_again() {
    use eclosion_schemas::ops::task::BodyReply;
    let mut world = World::new();
    let run = world.start(&chain());
    world.succeed(&run, "a", &5);
    let wish = world.wishes()["b"].clone();
    let fence = world.attempt("b");
    let ask = |fence| Command::Body(BodyRequest { run: run.clone(), task: id("b"), fence });
    let body = world.ask::<BodyReply>(ask(fence)).expect("answers").execute.expect("is current");
    assert_eq!((body.arguments, body.fence, body.attempt), (wish.execute.arguments, fence, Attempt(1)));
    world.commit(&run, "b", fence, Payload::of(&6));
    assert_eq!(world.ask::<BodyReply>(ask(fence)).expect("answers").execute, None);
}

#[test]
fn an_output_that_could_not_be_journaled_ends_the_attempt_with_a_reason() {
    let mut world = World::new();
    let run = world.start(&single(|task| task));
    let fence = world.attempt("a");
    let large = Payload { body: vec![0; 40_000].into(), parts: Vec::new() };
    assert_eq!(world.commit(&run, "a", fence, large), CommitReply::Stale);
    assert_eq!(world.task(&run, "a").error.map(|error| error.reason), Some("output.too_large".into()));
    assert!(world.recorded::<StepFailed>()[0].released);
}

#[test]
fn an_output_that_names_shared_memory_is_never_recorded() {
    use eclosion_schemas::{Part, Segment};
    let mut world = World::new();
    let run = world.start(&single(|task| task));
    let fence = world.attempt("a");
    let segment = Some(Segment { arena: 1, offset: 0, length: 64, generation: 1 });
    // Even of a part that is stored as well.
    let part = Part {
        segment,
        digest: "a".repeat(64).parse().ok(),
        bytes: 64,
        codec: "npy".into(),
        ..Part::default()
    };
    let output = Payload { parts: vec![part], ..Payload::of(&1) };
    assert_eq!(world.commit(&run, "a", fence, output), CommitReply::Stale);
    assert_eq!(world.task(&run, "a").error.map(|error| error.reason), Some("output.segment".into()));
}

#[test]
fn an_error_of_any_size_fits_into_a_record() {
    use eclosion_schemas::error::{RemoteException, RemoteFrame};
    let mut world = World::new();
    let run = world.start(&single(|task| task));
    let fence = world.attempt("a");
    let long = "é".repeat(50_000);
    let frame =
        RemoteFrame { file: long.clone(), line: 1, function: long.clone(), source: long.clone(), user: true };
    let remote = RemoteException {
        lang: "python".into(),
        kind: "ValueError".into(),
        text: long.clone(),
        frames: vec![frame; 100],
        notes: vec![long.clone()],
        cause: None,
        truncated: false,
    };
    let error =
        Error { remote: Some(Box::new(remote)), ..Error::internal("task.raised", long.clone()).help(long) };
    let request = FailRequest { run: run.clone(), task: id("a"), fence, worker: worker(), error };
    world.ask::<CommitReply>(Command::Fail(Box::new(request))).expect("fits");
    assert_eq!(world.state_of(&run), RunState::Failed);
    assert!(
        world.task(&run, "a").error.and_then(|error| error.remote).is_some_and(|remote| remote.truncated)
    );
}
