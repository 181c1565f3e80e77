//! `eclosion artifact …` on the real binary: what a run made is found, tagged, pinned and fetched by its tag, and all of
//! it is still so in the next life of the kernel.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use support::House;

const STEPS: &str = r#"
def words(count):
    return ["word"] * count
"#;

fn run(house: &House, flow: &str, count: u32) -> String {
    let set = format!("count={count}");
    let ended = house.say(&["run", flow, "--set", &set, "--json"]);
    let first: serde_json::Value = serde_json::from_str(ended.lines().next().unwrap()).unwrap();
    first["run"].as_str().unwrap_or_else(|| panic!("{ended}")).to_owned()
}

#[test]
fn what_a_run_made_is_found_tagged_and_pinned_and_stays_so_in_the_next_life() {
    let house = House::new(STEPS);
    let flow = house.flow(
        "words",
        "[parameters]\ncount = 1\n[tasks.make]\nrun = \"steps:words\"\nwith = { count = \"${param.count}\" }\n",
    );
    house.say(&["up"]);
    let (first, second) = (run(&house, &flow, 3), run(&house, &flow, 700));

    let tagged = house.json(&["artifact", "tag", "words/make@1", "stable", "--reason", "tried"]);
    assert_eq!(tagged["artifact"], format!("{first}/make"));
    assert_eq!(tagged["schema"], "eclosion/artifact-tag/v1");
    let pinned =
        house.say(&["artifact", "pin", "words/make@stable", "--holder", "web", "--reason", "served"]);
    assert_eq!(pinned.trim_end(), format!("{first}/make is held by web"));
    house.say(&["artifact", "tag", "words/make", "stable"]);

    for life in 1..=2 {
        let value = house.say(&["artifact", "get", "words/make@stable", "--json"]);
        assert_eq!(value.matches("\"word\"").count(), 700, "life {life}");
        let pins = house.json(&["artifact", "pins"]);
        assert_eq!(pins["pins"][0]["artifact"], format!("{first}/make"), "life {life}: {pins}");
        let history = house.say(&["artifact", "tags", "words/", "--history"]);
        let order: Vec<_> =
            history.lines().filter_map(|line| line.find("/make ").map(|_| line.contains(&first))).collect();
        assert_eq!(order, [true, false], "life {life}: {history}");
        let large = house.json(&["artifact", "search", "WORDS", "--bytes-min", "1000"]);
        assert_eq!(large["artifacts"].as_array().unwrap().len(), 1, "life {life}: {large}");
        assert_eq!(large["artifacts"][0]["run"], second);
        house.say(&["down"]);
        house.say(&["up"]);
    }

    let unpinned = house.say(&["artifact", "unpin", &format!("{first}/make"), "--holder", "web"]);
    assert_eq!(unpinned.trim_end(), format!("{first}/make is held by nobody"));
    house.say(&["artifact", "untag", "words/make@stable"]);
    let (code, told) = house.refused(&["artifact", "get", "words/make@stable"]);
    assert_eq!(code, Some(3), "{told}");
    let (code, told) = house.refused(&["artifact", "tag", "words/make", "2"]);
    assert!(code == Some(2) && told.contains("a tag begins with a letter"), "{code:?} {told}");
}
