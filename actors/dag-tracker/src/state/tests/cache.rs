//! Earlier results: what hits, what misses and why, and what is kept.

use eclosion_schemas::events::{MissCause, StepMissed, Unkept};
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::cache::{DropReply, ExplainReply, ListReply};
use eclosion_schemas::view::{CacheCounts, CacheState};
use eclosion_schemas::{Digest, Part};
use serde_json::json;

use super::*;

/// `a(x) → b(a's output)`, both kept.
fn kept(x: i32) -> FlowSpec {
    let flow = builder::Flow::new("kept")
        .task("a", "m:a")
        .with("x", x)
        .cache("v1")
        .task("b", "m:b")
        .with("y", "${a}")
        .cache("v1");
    FlowSpec { code_hash: "code-1".into(), ..flow.build().expect("a flow") }
}

fn single_kept() -> FlowSpec {
    FlowSpec { code_hash: "code-1".into(), ..single(|task| task.cache("v1")) }
}

impl World {
    /// Runs `a` and `b` to their end, whatever of it is wished for.
    fn computed(&mut self, flow: &FlowSpec) -> (RunId, Vec<String>) {
        let run = self.start(flow);
        let mut computed = Vec::new();
        loop {
            self.look();
            let Some(task) = self.wished().into_iter().next() else { break };
            self.succeed(&run, &task, &format!("{task} of {}", flow.code_hash));
            computed.push(task);
        }
        assert_eq!(self.state_of(&run), RunState::Succeeded);
        (run, computed)
    }

    fn causes(&self, run: &RunId, task: &str) -> Vec<MissCause> {
        self.task(run, task).cache.expect("it was looked for").causes
    }
}

#[test]
fn a_step_of_equal_content_succeeds_without_an_attempt() {
    let mut world = World::new();
    let (first, computed) = world.computed(&kept(1));
    assert_eq!(computed, ["a", "b"]);
    world.restart();
    let (second, computed) = world.computed(&kept(1));
    assert_eq!(computed, [""; 0]);
    let view = world.task(&second, "b");
    assert_eq!(
        (view.state, view.attempt, view.worker, view.fence),
        (TaskState::Succeeded, Attempt(0), None, None)
    );
    let cache = view.cache.expect("it was looked for");
    assert_eq!((cache.state, cache.from), (CacheState::Hit, Some(TaskRef::new(first, id("b")))));
    let run = world.get(&second).run;
    assert_eq!(run.cache, Some(CacheCounts { hits: 2, misses: 0, taken: 0 }));
    assert_eq!(run.result, Some(Payload::of(&"b of code-1")));
    // A hit makes its own run the newest.
    let (third, _) = world.computed(&kept(1));
    assert_eq!(
        world.task(&third, "b").cache.and_then(|cache| cache.from),
        Some(TaskRef::new(second, id("b")))
    );
    world.check();
    world.restart();
}

#[test]
fn a_miss_names_all_that_changed_since_the_nearest_entry() {
    let argument = |name: &str| MissCause::Argument { name: name.into() };
    let change = |change: &dyn Fn(&mut FlowSpec)| {
        let mut flow = kept(1);
        change(&mut flow);
        flow
    };
    let environment = EnvironmentSpec { requirements: vec!["numpy".into()], ..EnvironmentSpec::default() };
    let task = |flow: &mut FlowSpec, change: &dyn Fn(&mut eclosion_schemas::flow::TaskSpec)| {
        flow.tasks.get_mut("a").into_iter().for_each(change);
    };
    let cases: Vec<(&str, FlowSpec, Vec<MissCause>)> = vec![
        (
            "another function",
            change(&|flow| task(flow, &|task| task.run = "m:c".into())),
            vec![MissCause::NoEntry],
        ),
        ("code", change(&|flow| flow.code_hash = "code-2".into()), vec![MissCause::Code]),
        ("environment", change(&|flow| flow.environment = environment.clone()), vec![MissCause::Environment]),
        (
            "argument",
            change(&|flow| task(flow, &|task| _ = task.with.insert("x".into(), json!(2)))),
            vec![argument("x")],
        ),
        (
            "one more",
            change(&|flow| task(flow, &|task| _ = task.with.insert("z".into(), json!(2)))),
            vec![argument("z")],
        ),
        (
            "version",
            change(&|flow| task(flow, &|task| task.cache = Some("v2".into()))),
            vec![MissCause::Version { was: "v1".into() }],
        ),
        (
            "a seed",
            change(&|flow| _ = flow.parameters.insert("seed".into(), json!(7))),
            vec![MissCause::Seed],
        ),
        (
            "several",
            change(&|flow| {
                flow.code_hash = "code-2".into();
                flow.environment = environment.clone();
            }),
            vec![MissCause::Code, MissCause::Environment],
        ),
    ];
    for (what, flow, causes) in cases {
        let mut world = World::new();
        world.computed(&kept(1));
        let (run, computed) = world.computed(&flow);
        assert_eq!(computed.first().map(String::as_str), Some("a"), "{what}");
        assert_eq!(world.causes(&run, "a"), causes, "{what}");
        world.check();
        world.restart();
    }
}

#[test]
fn what_does_not_change_a_result_does_not_make_a_miss() {
    let base = kept(1);
    let with = |change: &dyn Fn(&mut FlowSpec)| {
        let mut flow = base.clone();
        change(&mut flow);
        flow
    };
    let cases: Vec<(&str, FlowSpec)> = vec![
        (
            "a parameter that nobody takes, and with it the derived seed",
            with(&|flow| _ = flow.parameters.insert("p".into(), json!(1))),
        ),
        ("the flow's name", with(&|flow| flow.name = "other".into())),
        (
            "retries and a time-out",
            with(&|flow| {
                flow.tasks.values_mut().for_each(|task| {
                    task.retries = 3;
                    task.timeout = Some("1m".into());
                })
            }),
        ),
        (
            "a seed that does not count",
            with(&|flow| {
                flow.parameters.insert("seed".into(), json!(7));
                flow.tasks.values_mut().for_each(|task| task.cache_seed = Some(false));
            }),
        ),
        (
            "the version as the flow's default",
            with(&|flow| {
                flow.cache = Some("v1".into());
                flow.tasks.values_mut().for_each(|task| task.cache = None);
            }),
        ),
    ];
    for (what, flow) in cases {
        let mut world = World::new();
        world.computed(&base);
        assert_eq!(world.computed(&flow).1, [""; 0], "{what}");
    }
}

#[test]
fn a_seed_that_was_set_is_each_tasks_own() {
    let seeded = |seed: i32| {
        let flow = builder::Flow::new("seeded")
            .parameter("seed", seed)
            .task("a", "m:a")
            .each([1, 1])
            .with("x", "${item}")
            .cache("v1");
        FlowSpec { code_hash: "h".into(), ..flow.build().expect("a flow") }
    };
    let mut world = World::new();
    assert_eq!(world.computed(&seeded(1)).1, ["a[0]", "a[1]"], "equal arguments, two seeds");
    assert_eq!(world.computed(&seeded(1)).1, [""; 0]);
    let (run, _) = world.computed(&seeded(2));
    assert_eq!(world.causes(&run, "a[0]"), [MissCause::Seed]);
}

#[test]
fn who_is_exempt_or_refreshed_or_unhashed_is_not_looked_for() {
    let mut world = World::new();
    world.computed(&kept(1));

    let mut off = kept(1);
    off.tasks.values_mut().for_each(|task| task.cache = Some("off".into()));
    let (run, computed) = world.computed(&off);
    assert_eq!((computed.len(), world.task(&run, "a").cache), (2, None));

    let unhashed = FlowSpec { code_hash: String::new(), ..kept(1) };
    let (run, computed) = world.computed(&unhashed);
    assert_eq!(computed.len(), 2);
    assert_eq!(world.task(&run, "a").cache.map(|cache| cache.state), Some(CacheState::Unhashed));

    let request = StartRequest { no_cache: true, ..world.request(&kept(1)) };
    let run = world.ask::<StartReply>(Command::Start(Box::new(request), None)).expect("starts").run;
    world.succeed(&run, "a", &"anew");
    world.succeed(&run, "b", &"anew");
    assert_eq!(world.task(&run, "a").cache.map(|cache| cache.state), Some(CacheState::Refreshed));
    let (next, _) = world.computed(&kept(1));
    assert_eq!(world.get(&next).run.result, Some(Payload::of(&"anew")), "what was computed anew is kept");
    world.check();
    world.restart();
}

#[test]
fn an_output_that_is_gone_is_a_miss_that_says_so() {
    let mut world = World::new();
    let (first, _) = world.computed(&kept(1));
    world.collected.insert(TaskRef::new(first.clone(), id("a")));
    let (run, computed) = world.computed(&kept(1));
    assert_eq!(computed, ["a"], "the second step's input is the same as ever");
    assert_eq!(world.causes(&run, "a"), [MissCause::Collected]);
    assert_eq!(world.computed(&kept(1)).1, [""; 0], "what was computed took its place");
}

#[test]
fn two_equal_steps_in_hand_at_once_are_both_computed_and_the_later_is_kept() {
    let mut world = World::new();
    let one = single_kept();
    let (first, second) = (world.start(&one), world.start(&one));
    world.look();
    let wishes: Vec<Wish> = world.all_wishes();
    let fences: Vec<_> =
        wishes.iter().map(|wish| (wish.execute.run.clone(), world.attempt_for(wish))).collect();
    for (run, fence) in fences {
        assert_eq!(world.commit(&run, "a", fence, Payload::of(&run.as_str())), CommitReply::Committed);
    }
    world.look();
    let later = wishes.last().map(|wish| wish.execute.run.clone()).expect("two wishes");
    let (third, _) = world.computed(&one);
    assert_eq!(
        world.task(&third, "a").cache.and_then(|cache| cache.from),
        Some(TaskRef::new(later, id("a")))
    );
    assert!([&first, &second].iter().all(|run| world.causes(run, "a") == [MissCause::NoEntry]));
    let list: ListReply = world
        .ask(Command::ListCache(cache_ops::ListRequest { function: Some("m:a".into()), limit: 9 }))
        .expect("lists");
    assert_eq!(list.entries.len(), 1, "one entry for a key");
}

#[test]
fn outputs_are_compared_by_the_content_of_their_files() {
    let digest = |c: &str| Digest::new(c.repeat(64)).expect("a digest");
    let output = |c: &str| Payload {
        body: vec![0xd6, 1, 0, 0, 0, 0].into(),
        parts: vec![Part { digest: Some(digest(c)), bytes: 9, codec: "npy".into(), ..Part::default() }],
    };
    let mut world = World::new();
    let flow = |x| {
        let mut flow = kept(x);
        flow.tasks.get_mut("a").into_iter().for_each(|task| task.cache = None);
        flow
    };
    for (x, part, hits) in [(1, "a", false), (2, "a", true), (3, "b", false)] {
        let run = world.start(&flow(x));
        let fence = world.attempt("a");
        assert_eq!(world.commit(&run, "a", fence, output(part)), CommitReply::Committed);
        world.look();
        assert_eq!(world.wished().is_empty(), hits, "{x}");
        if !hits {
            world.succeed(&run, "b", &x);
        }
    }
}

#[test]
fn a_result_is_kept_only_if_its_code_was_what_the_key_names() {
    let seen = |hash: &str, is_written| Some(CodeSeen { hash: hash.into(), is_written });
    for (code, unkept) in [
        (seen("code-1", false), None),
        (seen("code-2", false), Some(Unkept::CodeChanged)),
        // Edited, imported, and put back.
        (seen("code-1", true), Some(Unkept::CodeChanged)),
        (None, Some(Unkept::CodeUnseen)),
    ] {
        let mut world = World::new();
        let run = world.start(&single_kept());
        world.look();
        let fence = world.attempt("a");
        let reply = world.commit_seeing(&run, "a", fence, Payload::of(&1), code.clone());
        assert_eq!((reply, world.state_of(&run)), (CommitReply::Committed, RunState::Succeeded));
        let event = world.recorded::<StepCommitted>().remove(0);
        assert_eq!((event.unkept, event.cache.is_some()), (unkept, unkept.is_none()), "{code:?}");
        assert_eq!(world.task(&run, "a").cache.and_then(|cache| cache.unkept), unkept);

        let request = ExplainRequest { run: run.clone(), task: id("a") };
        let told: ExplainReply = world.ask(Command::Explain(request)).expect("explains");
        let said = told.findings.iter().any(|finding| finding.contains("is not kept"));
        assert_eq!(said, unkept.is_some(), "{:?}", told.findings);

        let again = world.start(&single_kept());
        world.look();
        assert_eq!(world.wished().is_empty(), unkept.is_none(), "{code:?}");
        if unkept.is_some() {
            world.succeed(&again, "a", &1);
        }
        world.check();
        world.restart();
        assert_eq!(world.task(&run, "a").cache.and_then(|cache| cache.unkept), unkept, "after a restart");
    }
}

#[test]
fn a_step_that_keeps_nothing_is_not_asked_about_its_code() {
    let unhashed = FlowSpec { code_hash: String::new(), ..single_kept() };
    let uncached = FlowSpec { code_hash: "code-1".into(), ..single(|task| task) };
    for (flow, keeps) in [(single_kept(), true), (unhashed, false), (uncached, false)] {
        let mut world = World::new();
        let run = world.start(&flow);
        world.look();
        assert_eq!(world.wishes()["a"].execute.keeps, keeps);
        let fence = world.attempt("a");
        world.commit_seeing(&run, "a", fence, Payload::of(&1), None);
        let unkept = world.recorded::<StepCommitted>().remove(0).unkept;
        assert_eq!(unkept, keeps.then_some(Unkept::CodeUnseen));
    }
}

#[test]
fn the_oldest_entries_are_dropped_beyond_the_limit_and_others_on_demand() {
    let mut world = World::new();
    let (_, _) = world.computed(&kept(1));
    let note = |n: usize| {
        let ingredients = eclosion_schemas::events::Ingredients {
            function: format!("m:f{}", n % 2),
            version: "v1".into(),
            code_hash: "h".into(),
            environment: "e".parse().expect("an id"),
            arguments: BTreeMap::new(),
            seed: None,
        };
        Box::new(eclosion_schemas::events::CacheNote {
            key: format!("k{n}").parse().expect("a key"),
            ingredients,
            replaces: None,
        })
    };
    for n in 0..crate::cache::ENTRIES_MAX {
        let output = Payload::default();
        let (run, task) = ("gone".parse().expect("an id"), id("x"));
        let from = TaskRef::new("gone".parse().expect("an id"), id("x"));
        world.append(StepReused { run, task, output, from, is_taken: false, cache: Some(note(n)) });
    }
    world.wake();
    let list = |world: &mut World, function: Option<&str>| -> ListReply {
        let request = cache_ops::ListRequest { function: function.map(str::to_owned), limit: 20_000 };
        world.ask(Command::ListCache(request)).expect("lists")
    };
    let listed = list(&mut world, None);
    assert!(listed.entries_total <= listed.entries_max, "{} of {}", listed.entries_total, listed.entries_max);
    assert_eq!(listed.entries.len() as u64, listed.entries_total, "rows and order are of one mind");
    assert_eq!(list(&mut world, Some("m:a")).entries.len(), 0, "the oldest went first");
    assert_eq!(listed.entries[0].key.as_str(), format!("k{}", crate::cache::ENTRIES_MAX - 1));

    let drop = |request| Command::Drop(request);
    let request = DropRequest { function: Some("m:f0".into()), ..DropRequest::default() };
    let dropped: DropReply = world.ask(drop(request)).expect("drops");
    assert_eq!(list(&mut world, None).entries_total, listed.entries_total - dropped.dropped);
    assert_eq!(list(&mut world, Some("m:f0")).entries.len(), 0);
    let unknown = DropRequest { key: Some("k0".parse().expect("a key")), ..DropRequest::default() };
    assert_eq!(world.ask::<DropReply>(drop(unknown)).expect_err("gone").reason, "cache.unknown");
    assert_eq!(
        world.ask::<DropReply>(drop(DropRequest::default())).expect_err("nothing named").reason,
        "cache.drop"
    );
    world.ask::<DropReply>(drop(DropRequest { all: true, ..DropRequest::default() })).expect("drops");
    assert_eq!(list(&mut world, None).entries.len(), 0);
    world.restart();
}

#[test]
fn an_answer_that_nobody_waits_for_changes_nothing() {
    let mut world = World::new();
    let run = world.start(&kept(1));
    let looks = world.looks();
    world.cancel(&run);
    let outcome = Outcome::Missed { causes: vec![MissCause::NoEntry], nearest: None };
    let answers: Vec<_> = looks.keys().map(|look| Answer { look: *look, outcome: outcome.clone() }).collect();
    assert_eq!(answers.len(), 1);
    world.ask::<()>(Command::Looked(answers)).expect("answers");
    assert_eq!(world.recorded::<StepMissed>().len(), 0);
    assert_eq!(world.state_of(&run), RunState::Cancelled);
}
