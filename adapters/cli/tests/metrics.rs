//! What a monitoring system gets of the real binary, over the real socket, with nothing but HTTP.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "the support of these tests is shared")]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use support::House;

const STEPS: &str = r#"
def one():
    return 1
"#;
const TASKS: &str = "[tasks.one]\nrun = \"steps:one\"\n";

/// Status line and text.
fn get(house: &House, path: &str) -> (String, String) {
    let mut stream = UnixStream::connect(house.path("run/default.sock")).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: test\r\n\r\n").unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).unwrap();
    let (head, text) = heard.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), text.to_owned())
}

/// Every name of ours in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("eclosion_")).collect()
}

fn number(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in:\n{page}")).parse().unwrap()
}

#[test]
fn a_scraper_sees_what_a_run_did_and_no_ids() {
    let house = House::new(STEPS);
    house.say(&["up"]);
    assert_eq!(get(&house, "/healthz"), ("HTTP/1.1 200 OK".into(), "ok\n".into()));
    assert_eq!(get(&house, "/readyz"), ("HTTP/1.1 200 OK".into(), "ready\n".into()));
    let flow = house.flow("one", TASKS);
    let run = house.json(&["run", &flow]);
    let (status, page) = get(&house, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    for (series, least) in [
        ("eclosion_events_total{kind=\"run.finished\"}", 1.0),
        ("eclosion_events_total{kind=\"step.committed\"}", 1.0),
        ("eclosion_messages_total{actor=\"/dag\",outcome=\"handled\"}", 1.0),
        ("eclosion_workers{state=\"idle\"}", 1.0),
        ("eclosion_environments{state=\"ready\"}", 1.0),
        ("eclosion_process_resident_memory_bytes", 1_000_000.0),
        ("eclosion_kernel_state{state=\"ready\"}", 1.0),
        ("eclosion_connection_frames_total{direction=\"received\"}", 2.0),
        ("eclosion_connection_bytes_total{direction=\"sent\"}", 100.0),
        ("eclosion_client_streams", 0.0),
        ("eclosion_client_credit_items", 0.0),
        ("eclosion_source_up{source=\"dag\"}", 1.0),
        ("eclosion_source_up{source=\"scheduler\"}", 1.0),
    ] {
        assert!(number(&page, series) >= least, "{series}:\n{page}");
    }
    assert_eq!(number(&page, "eclosion_runs{state=\"running\"}"), 0.0);
    assert!(!page.contains(run["run"].as_str().unwrap_or("no run was named")), "{page}");
    // A subsystem that does not answer takes its own numbers along and nothing else.
    house.say(&["pause", "/dag", "--reason", "a test"]);
    let (status, page) = get(&house, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(number(&page, "eclosion_source_up{source=\"dag\"}"), 0.0);
    assert!(number(&page, "eclosion_workers{state=\"idle\"}") >= 1.0);
    house.say(&["resume", "/dag"]);
}

#[test]
fn what_deploy_asks_a_kernel_for_is_on_its_page() {
    let house = House::new(STEPS);
    house.say(&["up"]);
    let (_, page) = get(&house, "/metrics");
    let there: BTreeSet<_> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
    for file in ["grafana/eclosion.json", "prometheus/eclosion.rules.yml"] {
        let text = std::fs::read_to_string(format!("{deploy}/{file}")).unwrap();
        let asked = names(&text);
        assert!(asked.len() > 4, "{file} asks for next to nothing: {asked:?}");
        let unknown: Vec<_> = asked.difference(&there).collect();
        assert!(unknown.is_empty(), "{file} asks for {unknown:?}, which is not there");
        if file.ends_with(".json") {
            let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
            let panels = dashboard["panels"].as_array().unwrap();
            assert!(
                panels.iter().all(|panel| panel["targets"][0]["expr"].is_string()),
                "a panel without a query"
            );
        }
    }
}
