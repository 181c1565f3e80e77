//! What becomes ready when, with which arguments.

use eclosion_schemas::ops::run::WhyReply;
use eclosion_schemas::payload::Part;

use super::*;

fn flow(text: &str) -> FlowSpec {
    crate::load::from_toml(&format!("schema = \"eclosion/flow/v1\"\nname = \"t\"\n{text}"), "f")
        .expect("a flow")
}

#[test]
fn a_chain_runs_in_order_and_hands_its_outputs_on() {
    let mut world = World::new();
    let run = world.start(&chain());
    for (task, output) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(world.wished(), [task]);
        if task != "a" {
            assert_eq!(value::<i32>(&world.wishes()[task], "x"), output - 1);
        }
        world.succeed(&run, task, &output);
        world.check();
        world.restart();
    }
    let GetReply { run: head, .. } = world.get(&run);
    assert_eq!((head.state, head.result), (RunState::Succeeded, Some(Payload::of(&3))));
    assert_eq!(head.counts, BTreeMap::from([(TaskState::Succeeded, 3)]));
    assert!(world.engine.outstanding().is_empty());
}

#[test]
fn a_fan_out_over_a_list_has_an_instance_for_each_item_and_hands_on_a_list_in_order() {
    let mut world = World::new();
    let run = world.start(&flow(
        r#"
        [parameters]
        models = ["x", "y"]
        [tasks.train]
        run = "m:train"
        each = "${param.models}"
        with = { model = "${item}", label = "m-${item}", deep = [{ of = "${item}" }] }
        [tasks.pick]
        run = "m:pick"
        with = { scores = "${train}" }
        "#,
    ));
    assert_eq!(world.wished(), ["train[0]", "train[1]"]);
    let request = WhyRequest { run: run.clone(), task: Some(id("train")) };
    let why = world.ask::<WhyReply>(Command::Why(request)).expect("its name stands for all of them");
    assert_eq!((why.tasks.len(), why.findings.len()), (2, 2));
    let wish = world.wishes()["train[1]"].clone();
    assert_eq!(value::<String>(&wish, "model"), "y");
    assert_eq!(value::<String>(&wish, "label"), "m-y");
    assert_eq!(value::<serde_json::Value>(&wish, "deep"), serde_json::json!([{ "of": "y" }]));
    world.succeed(&run, "train[1]", &0.5);
    assert_eq!(world.wished(), ["train[0]"]);
    world.succeed(&run, "train[0]", &0.25);
    assert_eq!(values::<f64>(&world.wishes()["pick"], "scores"), [0.25, 0.5]);
    world.check();
    world.restart();
}

const DYNAMIC: &str = r#"
    [tasks.list]
    run = "m:list"
    [tasks.work]
    run = "m:work"
    each = "${list}"
    with = { item = "${item}" }
    [tasks.sum]
    run = "m:sum"
    with = { parts = "${work}" }
"#;

#[test]
fn a_fan_out_over_an_output_is_expanded_when_the_list_is_known() {
    let mut world = World::new();
    let run = world.start(&flow(DYNAMIC));
    assert_eq!(world.tasks(&run)[1], ("work".into(), TaskState::Waiting), "a stand-in");
    world.succeed(&run, "list", &("a", 7, vec![1, 2]));
    world.check();
    assert_eq!(world.wished(), ["work[0]", "work[1]", "work[2]"]);
    assert_eq!(value::<String>(&world.wishes()["work[0]"], "item"), "a");
    assert_eq!(value::<u8>(&world.wishes()["work[1]"], "item"), 7);
    assert_eq!(value::<Vec<u8>>(&world.wishes()["work[2]"], "item"), [1, 2]);
    world.restart();
    for n in [2, 0, 1] {
        world.succeed(&run, &format!("work[{n}]"), &n);
    }
    assert_eq!(values::<u8>(&world.wishes()["sum"], "parts"), [0, 1, 2]);
    world.succeed(&run, "sum", &3);
    assert_eq!(world.state_of(&run), RunState::Succeeded);
    world.check();
}

#[test]
fn a_fan_out_over_nothing_succeeds_at_once_and_hands_on_an_empty_list() {
    let mut world = World::new();
    let run = world.start(&flow(DYNAMIC));
    world.succeed(&run, "list", &Vec::<u8>::new());
    assert_eq!(world.wished(), ["sum"]);
    assert!(values::<u8>(&world.wishes()["sum"], "parts").is_empty());
    world.check();
    world.restart();

    let alone =
        world.start(&flow("[tasks.a]\nrun = \"m:a\"\neach = []\n[tasks.b]\nrun = \"m:b\"\neach = \"${a}\""));
    assert_eq!(world.state_of(&alone), RunState::Succeeded, "nothing to do is done");
    world.check();
    world.restart();
}

#[test]
fn a_fan_out_over_a_fan_out_goes_over_its_outputs() {
    let mut world = World::new();
    let run = world.start(&flow(
        "[tasks.a]\nrun = \"m:a\"\neach = [1, 2]\n[tasks.b]\nrun = \"m:b\"\neach = \"${a}\"\nwith = { x = \"${item}\" }",
    ));
    world.succeed(&run, "a[0]", &"p");
    world.succeed(&run, "a[1]", &"q");
    assert_eq!(value::<String>(&world.wishes()["b[1]"], "x"), "q");
    world.check();
}

#[test]
fn a_fan_out_over_what_is_no_list_fails_and_skips_what_needs_it() {
    let mut world = World::new();
    for output in [Payload::of(&7), Payload { body: vec![0x92, 1].into(), parts: Vec::new() }] {
        let run = world.start(&flow(DYNAMIC));
        let fence = world.attempt("list");
        assert_eq!(world.commit(&run, "list", fence, output), CommitReply::Committed);
        let states =
            [("list", TaskState::Succeeded), ("work", TaskState::Failed), ("sum", TaskState::Skipped)];
        assert_eq!(world.tasks(&run), states.map(|(task, state)| (task.to_owned(), state)));
        let error = world.get(&run).run.error.expect("says why");
        assert_eq!(error.reason, "flow.each");
        assert_eq!(
            error.message,
            "task `work` failed: `work` goes over the output of `list`, which is not a list of at most 32 KiB"
        );
        world.check();
    }
    world.restart();
}

#[test]
fn a_list_that_is_too_long_fails_its_fan_out() {
    let mut world = World::new();
    let run = world.start(&flow(DYNAMIC));
    world.succeed(&run, "list", &vec![0_u8; 9_999]);
    assert_eq!(world.get(&run).run.error.map(|error| error.reason), Some("flow.too_large".into()));
}

#[test]
fn an_item_that_is_a_part_brings_that_part_alone() {
    let mut world = World::new();
    let run = world.start(&flow(DYNAMIC));
    let part = |n: u64| Part { digest: "ab".parse().ok(), bytes: n, codec: "npy".into(), ..Part::default() };
    let body = vec![0x92, 0xd6, 1, 0, 0, 0, 0, 0xd6, 1, 0, 0, 0, 1];
    let fence = world.attempt("list");
    world.commit(&run, "list", fence, Payload { body: body.into(), parts: vec![part(10), part(11)] });
    let Argument::Value { payload } = world.wishes()["work[1]"].execute.arguments["item"].clone() else {
        panic!("one value");
    };
    assert_eq!((&payload.body[..], &payload.parts[..]), (&[0xd6, 1, 0, 0, 0, 0][..], &[part(11)][..]));
}

#[test]
fn after_orders_tasks_without_handing_anything_on() {
    let mut world = World::new();
    let run = world.start(&flow("[tasks.b]\nrun = \"m:b\"\n[tasks.a]\nrun = \"m:a\"\nafter = [\"b\"]"));
    assert_eq!(world.wished(), ["b"]);
    world.succeed(&run, "b", &());
    assert_eq!(world.wished(), ["a"]);
}

#[test]
fn outputs_are_shared_between_all_that_need_them() {
    let mut world = World::new();
    let run = world.start(&flow(
        "[tasks.a]\nrun = \"m:a\"\n[tasks.b]\nrun = \"m:b\"\neach = [1, 2, 3]\nwith = { x = \"${a}\" }\n\
         [tasks.c]\nrun = \"m:c\"\neach = [1, 2]\nwith = { x = \"${b}\" }",
    ));
    world.succeed(&run, "a", &"a text that is long enough to be on the heap");
    let wishes = world.wishes();
    let at = |task: &str| match &wishes[task].execute.arguments["x"] {
        Argument::Value { payload } => payload.body.as_ptr(),
        Argument::List { payloads } => payloads.as_ptr().cast(),
    };
    assert_eq!(at("b[0]"), at("b[2]"));
    for n in 0..3 {
        world.succeed(&run, &format!("b[{n}]"), &n);
    }
    let wishes = world.wishes();
    let list = |task: &str| match &wishes[task].execute.arguments["x"] {
        Argument::List { payloads } => payloads.as_ptr(),
        Argument::Value { .. } => panic!("a list"),
    };
    assert_eq!(list("c[0]"), list("c[1]"));
}

#[test]
fn every_attempt_sees_the_same_seed_and_key() {
    let mut world = World::new();
    let run = world.start(&single(|task| task.retries(1)));
    let first = world.wishes()["a"].execute.clone();
    let fence = world.attempt("a");
    world.fail(&run, "a", fence);
    world.pass_ms(1_000);
    let second = world.wishes()["a"].execute.clone();
    assert_eq!((first.seed, &first.idempotency_key), (second.seed, &second.idempotency_key));
    assert_eq!((first.attempt, second.attempt), (Attempt(1), Attempt(2)));
    let other = world.start(&single(|task| task.retries(1)));
    assert_ne!(
        world.wishes()["a"].execute.idempotency_key,
        first.idempotency_key,
        "another run, another key"
    );
    assert_eq!(world.wishes()["a"].execute.seed, first.seed, "equal content, equal seeds");
    assert_ne!(other, run);
}
