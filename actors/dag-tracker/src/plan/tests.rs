//! Refusals, as they are shown, and what a plan is made of.

use serde_json::json;

use super::*;

fn compile(text: &str) -> Result<Plan, Error> {
    let flow = crate::load::from_toml(&format!("schema = \"eclosion/flow/v1\"\nname = \"t\"\n{text}"), "f")?;
    Plan::compile(&flow, &BTreeMap::new())
}

#[test]
fn refusals_name_the_place_and_the_way_out() {
    for (text, reason, message, help) in [
        (
            "[tasks.a]\nrun=\"m:a\"\nwith={x=\"${b}\"}\n[tasks.b]\nrun=\"m:b\"\nafter=[\"a\"]",
            "flow.cycle",
            "the tasks wait for each other in a circle: a → b → a",
            "remove one of these references, or one of the names in `after`",
        ),
        (
            "[tasks.load]\nrun=\"m:a\"\n[tasks.b]\nrun=\"m:b\"\nwith={x=\"${laod}\"}",
            "flow.reference",
            "argument `x` of task `b`: there is no task `laod`",
            "did you mean `load`?",
        ),
        (
            "[tasks.a]\nrun=\"m:a\"\nafter=[\"zz\"]",
            "flow.reference",
            "`after` of task `a`: there is no task `zz`",
            "there is `a`",
        ),
        (
            "result=\"rep\"\n[tasks.report]\nrun=\"m:a\"",
            "flow.reference",
            "result: there is no task `rep`",
            "there is `report`",
        ),
        (
            "[tasks.a]\nrun=\"steps.load\"",
            "flow.function",
            "task `a`: `steps.load` does not name a function",
            "did you mean `steps:load`?",
        ),
        (
            "[tasks.\"a b\"]\nrun=\"m:a\"",
            "flow.task",
            "task `a b`: this is not a name",
            "a name has at most 64 of A-Z a-z 0-9 _ - and begins with a letter or _",
        ),
        (
            "[tasks.a]\nrun=\"m:a\"\ntimeout=\"soon\"",
            "flow.duration",
            "timeout of task `a`: `soon` is no duration: a number comes first",
            "write a number and a unit, such as \"500ms\", \"30s\", \"2m\", \"1h\" or \"1d\"",
        ),
        (
            "[tasks.a]\nrun=\"m:a\"\nresources={memory=\"much\"}",
            "flow.size",
            "memory of task `a`: \"much\" is no size: a number comes first",
            "write bytes, or a number and a unit, such as \"512MB\" or \"2GiB\"",
        ),
        (
            "[tasks.a]\nrun=\"m:a\"\nresources={cpu=0.5}",
            "flow.size",
            "task `a`: 0.5 is no amount of `cpu`",
            "write a whole number between 1 and 1125899906842624",
        ),
        (
            "[tasks.a]\nrun=\"m:a\"\neach=7",
            "flow.each",
            "task `a`: `each` is not a list",
            "write each = [\"a\", \"b\"], each = \"${param.NAME}\" or each = \"${TASK}\"",
        ),
        (
            "[tasks.a]\nrun=\"m:a\"\nbackoff={factor=0.5}",
            "flow.duration",
            "task `a`: this backoff cannot be waited for",
            "factor is between 1 and 100, initial_ms and max_ms are at most 366 days",
        ),
        ("[tasks]", "flow.task", "the flow has no task", "add [tasks.NAME] with run = \"module:function\""),
    ] {
        let error = compile(text).expect_err(message);
        assert_eq!((error.reason.as_str(), error.message.as_str()), (reason, message));
        assert_eq!(error.help.as_deref(), Some(help), "{message}");
    }
}

#[test]
fn parameters_are_set_by_name_and_type() {
    let flow = crate::builder::Flow::new("f")
        .parameter("rate", 0.5)
        .parameter("seed", 7)
        .parameter("data", json!(null))
        .task("a", "m:a")
        .build()
        .expect("a flow");
    let set = |name: &str, value: Value| Plan::compile(&flow, &BTreeMap::from([(name.to_owned(), value)]));
    assert_eq!(set("rate", json!(1)).expect("a whole number will do").parameters["rate"], json!(1));
    assert!(set("data", json!(["x"])).is_ok(), "anything where there is no default");
    for (name, value, message, help) in [
        ("sede", json!(1), "the flow has no parameter `sede`", "did you mean `seed`?"),
        (
            "seed",
            json!("x"),
            "parameter `seed` is a whole number, \"x\" is text",
            "its default is 7: --set seed=7",
        ),
        (
            "seed",
            json!(1.5),
            "parameter `seed` is a whole number, 1.5 is a number",
            "its default is 7: --set seed=7",
        ),
    ] {
        let error = set(name, value).expect_err(message);
        assert_eq!((error.reason.as_str(), error.message.as_str()), ("flow.parameter", message));
        assert_eq!(error.help.as_deref(), Some(help));
    }
}

#[test]
fn what_is_too_large_is_refused() {
    let list = |n: usize| Value::from(vec![0; n]);
    let fan = |n: usize| crate::builder::Flow::new("f").task("a", "m:a").each(list(n)).build();
    assert!(fan(INSTANCES_MAX).is_ok());
    let wide = fan(INSTANCES_MAX + 1).expect_err("too many instances");
    assert_eq!(wide.message, "the run would have 10001 task instances, the limit is 10000");
    let mut flow = fan(1).expect("a flow");
    for n in 0..TASKS_MAX {
        flow.tasks.insert(format!("t{n}"), flow.tasks["a"].clone());
    }
    let many = Plan::compile(&flow, &BTreeMap::new()).expect_err("too many tasks");
    assert_eq!(many.message, "the flow has 1001 tasks, the limit is 1000");
    let long =
        crate::builder::Flow::new("f").parameter("x", "x".repeat(FLOW_BYTES_MAX)).task("a", "m:a").build();
    assert_eq!(long.expect_err("too long").reason, "flow.too_large");
    let deep = (0..40).fold(json!(1), |value, _| json!([value]));
    let deep = crate::builder::Flow::new("f").task("a", "m:a").with("x", deep).build().expect_err("too deep");
    assert_eq!(deep.message, "argument `x` of task `a` is nested deeper than 16");
}

#[test]
fn another_schema_is_not_guessed_at() {
    let error =
        crate::load::from_toml("schema=\"eclosion/flow/v9\"\nname=\"t\"\n[tasks.a]\nrun=\"m:a\"", "f")
            .and_then(|flow| Plan::compile(&flow, &BTreeMap::new()))
            .expect_err("another version's");
    assert_eq!(error.message, "this version does not know the schema `eclosion/flow/v9`");
    assert_eq!(error.help.as_deref(), Some("write schema = \"eclosion/flow/v1\""));
}

#[test]
fn the_result_is_the_only_task_that_nobody_needs() {
    let result = |text: &str| compile(text).map(|plan| plan.result.map(|task| plan.tasks[task].name.clone()));
    let one = "[tasks.a]\nrun=\"m:a\"\n[tasks.b]\nrun=\"m:b\"\nafter=[\"a\"]";
    assert_eq!(result(one), Ok(Some("b".into())));
    assert_eq!(result("[tasks.a]\nrun=\"m:a\"\n[tasks.b]\nrun=\"m:b\""), Ok(None), "two of them");
    assert_eq!(result("[tasks.a]\nrun=\"m:a\"\neach=[1]"), Ok(None), "many outputs");
    assert_eq!(result(&format!("result=\"a\"\n{one}")), Ok(Some("a".into())));
    let fan = result("result=\"a\"\n[tasks.a]\nrun=\"m:a\"\neach=[1]").expect_err("many outputs");
    assert_eq!(fan.message, "result: `a` is a fan-out and has many outputs");
}

#[test]
fn content_is_what_is_computed_and_with_what() {
    let flow = crate::builder::Flow::new("f").parameter("n", 1).task("a", "m:a").build().expect("a flow");
    let content = |flow: &FlowSpec, set: &[(&str, Value)]| {
        let set = set.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Plan::compile(flow, &set).expect("valid").content
    };
    let same = content(&flow, &[]);
    assert_eq!(same.len(), 64);
    assert_eq!(content(&flow, &[("n", json!(1))]), same, "set to its default");
    assert_ne!(content(&flow, &[("n", json!(2))]), same);
    let hashed = FlowSpec { code: "/x".into(), code_hash: "h".into(), ..flow.clone() };
    let moved = FlowSpec { code: "/y".into(), ..hashed.clone() };
    assert_eq!(content(&hashed, &[]), content(&moved, &[]), "the same code elsewhere");
    assert_ne!(content(&FlowSpec { code_hash: "i".into(), ..moved }, &[]), content(&hashed, &[]));
    let mut other = flow.clone();
    other.environment.requirements.push("numpy".into());
    assert_ne!(content(&other, &[]), same);
}
