//! Reruns: what is taken over, what is computed, and what is refused. Every run goes through a restart of the kernel,
//! so that replay is held to the same digest.

use eclosion_schemas::events::{CollectedRun, GcCollected, MissCause};
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::gc::{Item, ItemKind, Rule};
use eclosion_schemas::ops::rerun::{RecordedReply, RerunFate, RerunReply, RerunRequest};
use eclosion_schemas::view::CacheCounts;
use serde_json::json;

use super::*;

/// `load(rows)` and `plain(k)` → `join` → `end`.
fn diamond() -> FlowSpec {
    let flow = builder::Flow::new("diamond")
        .parameter("rows", 1)
        .parameter("k", 1)
        .task("load", "m:load")
        .with("rows", "${param.rows}")
        .task("plain", "m:plain")
        .with("k", "${param.k}")
        .task("join", "m:join")
        .with("x", "${load}")
        .with("y", "${plain}")
        .task("end", "m:end")
        .with("x", "${join}")
        .result();
    FlowSpec { code_hash: "code-1".into(), ..flow.build().expect("a flow") }
}

/// `part[0..3]` → `sum`.
fn fan_out() -> FlowSpec {
    let flow = builder::Flow::new("fan-out")
        .task("part", "m:part")
        .each([1, 2, 3])
        .with("x", "${item}")
        .task("sum", "m:sum")
        .with("xs", "${part}")
        .result();
    FlowSpec { code_hash: "code-1".into(), ..flow.build().expect("a flow") }
}

fn of(run: &RunId) -> RerunRequest {
    RerunRequest {
        run: run.clone(),
        from: Vec::new(),
        flow: None,
        set: BTreeMap::new(),
        keep: false,
        dry_run: false,
        idem: None,
    }
}

fn from(run: &RunId, task: &str) -> RerunRequest {
    RerunRequest { from: vec![id(task)], ..of(run) }
}

impl World {
    fn rerun(&mut self, request: &RerunRequest) -> Result<RerunReply, Error> {
        self.ask(Command::Rerun(Box::new(request.clone()), None))
    }

    /// Everything that is wished for succeeds, but for what is to fail; gives what was computed, sorted.
    fn finish(&mut self, run: &RunId, failing: &[&str]) -> Vec<String> {
        let mut computed = Vec::new();
        loop {
            self.look();
            let Some(task) = self.wished().into_iter().next() else { break };
            match failing.contains(&task.as_str()) {
                true => {
                    let fence = self.attempt(&task);
                    self.fail(run, &task, fence);
                }
                false => self.succeed(run, &task, &format!("{task} of {run}")),
            }
            computed.push(task);
        }
        computed.sort();
        computed
    }

    /// A run that has ended, with these tasks failed.
    fn ended(&mut self, flow: &FlowSpec, failing: &[&str]) -> RunId {
        let run = self.start(flow);
        self.finish(&run, failing);
        assert!(self.state_of(&run).is_final());
        run
    }

    /// Reruns to the end, dying once between the start and the first look; gives what was computed.
    fn rerun_to_the_end(&mut self, request: &RerunRequest) -> (RunId, Vec<String>) {
        let run = self.rerun(request).expect("starts").run.expect("is no dry run");
        self.restart();
        let computed = self.finish(&run, &[]);
        assert_eq!(self.state_of(&run), RunState::Succeeded);
        self.check();
        self.restart();
        (run, computed)
    }
}

fn computed_in(reply: &RerunReply) -> Vec<String> {
    let computed = reply.steps.iter().filter(|step| step.fate == RerunFate::Computed);
    let mut names: Vec<_> = computed.map(|step| step.task.clone()).collect();
    names.sort();
    names
}

/// How the run ended that is run again.
#[derive(Debug, Clone, Copy)]
enum Ended {
    Whole,
    JoinFailed,
    /// After `load` alone.
    Cancelled,
}

fn diamond_that(world: &mut World, ended: Ended) -> RunId {
    match ended {
        Ended::Whole => world.ended(&diamond(), &[]),
        Ended::JoinFailed => world.ended(&diamond(), &["join"]),
        Ended::Cancelled => {
            let run = world.start(&diamond());
            world.succeed(&run, "load", &1);
            world.cancel(&run);
            assert_eq!(world.state_of(&run), RunState::Cancelled);
            run
        }
    }
}

#[test]
fn what_is_committed_and_made_of_the_same_is_taken_over_and_nothing_else() {
    type Change = fn(&mut RerunRequest);
    fn edited(request: &mut RerunRequest, edit: impl FnOnce(&mut FlowSpec)) {
        let mut flow = diamond();
        edit(&mut flow);
        request.flow = Some(flow);
    }
    fn with_code_2(flow: &mut FlowSpec) {
        flow.code_hash = "code-2".into();
    }
    fn with_numpy(flow: &mut FlowSpec) {
        flow.environment =
            EnvironmentSpec { requirements: vec!["numpy".into()], ..EnvironmentSpec::default() };
    }
    let all = "end join load plain";
    let cases: &[(&str, Ended, Change, &str)] = &[
        ("failed", Ended::JoinFailed, |_| {}, "end join"),
        ("cancelled", Ended::Cancelled, |_| {}, "end join plain"),
        ("the flow as it was", Ended::JoinFailed, |request| edited(request, |_| {}), "end join"),
        ("from a source", Ended::Whole, |request| request.from = vec![id("load")], "end join load"),
        ("from the middle", Ended::Whole, |request| request.from = vec![id("join")], "end join"),
        ("from two", Ended::Whole, |request| request.from = vec![id("end"), id("plain")], "end join plain"),
        ("from, and failed", Ended::JoinFailed, |request| request.from = vec![id("load")], "end join load"),
        ("code", Ended::JoinFailed, |request| edited(request, with_code_2), all),
        (
            "code, kept",
            Ended::JoinFailed,
            |request| {
                edited(request, with_code_2);
                request.keep = true;
            },
            "end join",
        ),
        ("environment", Ended::JoinFailed, |request| edited(request, with_numpy), all),
        (
            "environment, kept",
            Ended::JoinFailed,
            |request| {
                edited(request, with_numpy);
                request.keep = true;
            },
            "end join",
        ),
        (
            "another function, kept",
            Ended::Whole,
            |request| {
                edited(request, |flow| {
                    flow.tasks.get_mut("plain").into_iter().for_each(|task| task.run = "m:other".into());
                });
                request.keep = true;
            },
            "end join plain",
        ),
        (
            "a parameter of one",
            Ended::Whole,
            |request| _ = request.set.insert("k".into(), json!(2)),
            "end join plain",
        ),
        (
            "a parameter of another",
            Ended::Whole,
            |request| _ = request.set.insert("rows".into(), json!(2)),
            "end join load",
        ),
    ];
    for (what, ended, change, computed) in cases {
        let mut world = World::new();
        let first = diamond_that(&mut world, *ended);
        let mut request = of(&first);
        change(&mut request);

        let preview = world.rerun(&RerunRequest { dry_run: true, ..request.clone() }).expect(what);
        assert_eq!((preview.run.as_ref(), world.recorded::<RunStarted>().len()), (None, 1), "{what}");
        assert!(preview.steps.iter().all(|step| !step.why.is_empty()), "{what}");
        let (run, done) = world.rerun_to_the_end(&request);
        assert_eq!(
            (done.join(" "), computed_in(&preview).join(" ")),
            ((*computed).into(), (*computed).into()),
            "{what}"
        );

        let taken = 4 - u32::try_from(done.len()).expect("four tasks");
        let counts = (taken > 0).then_some(CacheCounts { hits: 0, misses: 0, taken });
        let view = world.get(&run).run;
        assert_eq!((view.cache, view.rerun_of), (counts, Some(first)), "{what}");
        assert_eq!(view.result, Some(Payload::of(&format!("end of {run}"))), "{what}");
    }
}

#[test]
fn an_instance_that_failed_is_computed_and_the_others_are_taken_over() {
    let mut world = World::new();
    let failed = world.ended(&fan_out(), &["part[1]"]);
    let preview = world.rerun(&RerunRequest { dry_run: true, ..of(&failed) }).expect("is known");
    let fates: Vec<_> = preview.steps.iter().map(|step| (step.fate, step.taken)).collect();
    assert_eq!(fates, [(RerunFate::Partly, 2), (RerunFate::Computed, 0)]);
    let (whole, computed) = world.rerun_to_the_end(&of(&failed));
    assert_eq!(computed, ["part[1]", "sum"]);

    // What a rerun took over, the next one takes over from it.
    let (_, computed) = world.rerun_to_the_end(&from(&whole, "part[2]"));
    assert_eq!(computed, ["part[2]", "sum"]);
    let (_, computed) = world.rerun_to_the_end(&from(&whole, "part"));
    assert_eq!(computed, ["part[0]", "part[1]", "part[2]", "sum"]);
}

#[test]
fn a_result_that_is_not_stored_any_more_is_computed_and_so_is_what_was_made_of_it() {
    let mut world = World::new();
    let first = world.ended(&diamond(), &[]);
    world.collected.insert(TaskRef::new(first.clone(), id("load")));
    let (run, computed) = world.rerun_to_the_end(&from(&first, "end"));
    assert_eq!(computed, ["end", "join", "load"]);
    let causes = world.task(&run, "load").cache.expect("it was looked for").causes;
    assert_eq!(causes, [MissCause::NotCommitted]);
}

#[test]
fn parameters_of_the_old_run_hold_unless_they_are_set_again() {
    let mut world = World::new();
    let set = BTreeMap::from([("rows".to_owned(), json!(7))]);
    let request = StartRequest { set, ..world.request(&diamond()) };
    let first = world.ask::<StartReply>(Command::Start(Box::new(request), None)).expect("starts").run;
    world.finish(&first, &[]);
    let set = BTreeMap::from([("k".to_owned(), json!(8))]);
    let (run, computed) = world.rerun_to_the_end(&RerunRequest { set, ..of(&first) });
    assert_eq!(computed, ["end", "join", "plain"]);
    world.write();
    let recorded: RecordedReply = world.ask(Command::Recorded(RunRequest { run })).expect("is known");
    assert_eq!((&recorded.parameters["rows"], &recorded.parameters["k"]), (&json!(7), &json!(8)));
}

#[test]
fn the_same_key_gets_the_same_run_and_never_one_of_another_content() {
    let mut world = World::new();
    let first = world.ended(&diamond(), &["join"]);
    let request = RerunRequest { idem: Some("once".into()), ..of(&first) };
    let started = world.rerun(&request).expect("starts");
    let again = world.rerun(&request).expect("is known");
    assert_eq!((started.attached, again.attached, &again.run), (false, true, &started.run));
    world.restart();
    assert_eq!(world.rerun(&request).expect("is known").run, started.run);
    let set = BTreeMap::from([("k".to_owned(), json!(2))]);
    let error = world.rerun(&RerunRequest { set, ..request }).expect_err("another content");
    assert_eq!((error.code, error.reason.as_str()), (Code::Conflict, "run.key"));
    assert_eq!(world.recorded::<RunStarted>().len(), 2);
}

#[test]
fn a_run_that_has_left_the_memory_is_run_again_from_its_rows() {
    let mut world = World::new();
    let first = world.ended(&diamond(), &["join"]);
    for _ in 0..FINISHED_RUNS_MAX {
        world.ended(&single(|task| task), &[]);
    }
    assert!(view::run_view(world.engine.state(), &first).is_none(), "it has left the memory");
    assert_eq!(world.rerun_to_the_end(&of(&first)).1, ["end", "join"]);
}

#[test]
fn what_cannot_be_run_again_says_why_and_what_to_do() {
    let mut world = World::new();
    let whole = world.ended(&diamond(), &[]);
    let collected = world.ended(&diamond(), &["join"]);
    collect(&mut world, &collected);
    let unfinished = world.start(&diamond());
    let unknown: RunId = "zzzzzzzz".parse().expect("an id");
    let set = BTreeMap::from([("rwos".to_owned(), json!(2))]);
    let cases = [
        (of(&whole), "run.complete", format!("eclosion rerun {whole} --from TASK")),
        (of(&collected), "run.collected", format!("eclosion gc restore run/{collected}")),
        (of(&unfinished), "run.unfinished", format!("eclosion attach {unfinished}")),
        (of(&unknown), "run.unknown", "eclosion runs ls".into()),
        (from(&whole, "jion"), "run.task", "did you mean `join`?".into()),
        (RerunRequest { set, ..of(&whole) }, "flow.parameter", "did you mean `rows`?".into()),
    ];
    let started = world.recorded::<RunStarted>().len();
    for (request, reason, help) in cases {
        let error = world.rerun(&request).expect_err(reason);
        assert_eq!(error.reason, reason);
        assert!(error.help.as_ref().is_some_and(|said| said.contains(&help)), "{error:?}");
    }
    assert_eq!(world.recorded::<RunStarted>().len(), started);
}

fn collect(world: &mut World, run: &RunId) {
    let view = world.get(run).run;
    let started = world.journal.after(Seq(0), &[RunStarted::KIND]).records.iter().find_map(|record| {
        record.event::<RunStarted>().filter(|event| event.run == *run).map(|_| record.seq)
    });
    world.fact(GcCollected {
        item: Item::new(ItemKind::Run, run.as_str().parse().expect("an id")),
        bytes: 0,
        rule: Rule::Age,
        why: "older than 30d".into(),
        what: "a run".into(),
        token: String::new(),
        of: Vec::new(),
        run: Some(Box::new(CollectedRun { started_seq: started.expect("was started"), view })),
        reason: String::new(),
    });
}
