//! A lint of the page: what monitoring systems and their users expect of names.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A label beyond these needs a thought about how many values it has.
const LABELS: [&str; 9] =
    ["actor", "direction", "kind", "mark", "outcome", "quantile", "source", "state", "version"];
/// Units that are not base units, and words that belong to the type.
const FOREIGN: [&str; 11] =
    ["ms", "us", "ns", "milliseconds", "micros", "kb", "mb", "kib", "mib", "percent", "permille"];

struct Sample {
    name: String,
    labels: Vec<(String, String)>,
}

fn parse(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
    };
    let pairs = labels.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
        let (label, value) = pair.split_once('=').unwrap();
        (label.to_owned(), value.trim_matches('"').to_owned())
    });
    Sample { name: name.to_owned(), labels: pairs.collect() }
}

fn lint(page: &str) -> Vec<Sample> {
    let (mut kinds, mut helped) = (BTreeMap::new(), BTreeSet::new());
    let (mut samples, mut series) = (Vec::new(), BTreeSet::new());
    for line in page.lines() {
        if let Some(head) = line.strip_prefix("# HELP ") {
            let (name, help) = head.split_once(' ').unwrap();
            assert!(helped.insert(name) && help.ends_with('.'), "{line}");
        } else if let Some(head) = line.strip_prefix("# TYPE ") {
            let (name, kind) = head.split_once(' ').unwrap();
            assert!(kinds.insert(name, kind).is_none(), "{line}");
        } else {
            let sample = parse(line);
            assert!(helped.contains(sample.name.as_str()), "{line}: no HELP before it");
            assert!(series.insert(line.rsplit_once(' ').unwrap().0), "{line} stands there twice");
            for (label, _) in &sample.labels {
                assert!(LABELS.contains(&label.as_str()), "{line}: {label} is no known label");
            }
            samples.push(sample);
        }
    }
    for (name, kind) in &kinds {
        let is_plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        assert!(name.starts_with("eclosion_") && is_plain, "{name}");
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name} is a {kind}");
        assert!(!name.split('_').any(|word| FOREIGN.contains(&word)), "{name} is not in base units");
    }
    samples
}

#[tokio::test]
async fn every_name_has_help_type_base_units_and_labels_of_few_values() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = crate::Kernel::builder().below(directory.path()).start().await.unwrap();
    let stop = tokio::sync::watch::Sender::new(false);
    let own = Own::new("test", directory.path().to_owned(), &stop);
    own.attach(kernel.kernel());
    let metrics = Metrics::new(&own);
    for session in 1..=2 {
        let address = format!("/sessions/{session}").parse().unwrap();
        kernel.kernel().hold("transports", address, std::future::pending()).await.unwrap();
    }
    let page = metrics.write(Page::Metrics).await.unwrap();
    let samples = lint(&page);
    let actors: BTreeSet<_> = samples
        .iter()
        .flat_map(|sample| &sample.labels)
        .filter_map(|(label, value)| (label == "actor").then_some(value.as_str()))
        .collect();
    assert!(actors.contains("/kernel") && actors.contains("/sessions/*"), "{actors:?}");
    assert!(!actors.iter().any(|actor| actor.starts_with("/sessions/") && !actor.ends_with("/*")));
    assert!(page.contains("eclosion_actors{actor=\"/sessions/*\",state=\"ready\"} 2"), "{page}");
    assert!(samples.iter().any(|sample| sample.name == "eclosion_journal_records"));
    kernel.shutdown().await;
}

#[tokio::test]
async fn a_page_of_health_says_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = crate::Kernel::builder().below(directory.path()).start().await.unwrap();
    let stop = tokio::sync::watch::Sender::new(false);
    let own = Own::new("test", directory.path().to_owned(), &stop);
    let metrics = Metrics::new(&own);
    assert_eq!(metrics.write(Page::Ready).await, Err("the kernel is starting\n".into()));
    own.attach(kernel.kernel());
    assert_eq!(metrics.write(Page::Ready).await, Ok("ready\n".into()));
    stop.send_replace(true);
    assert_eq!(metrics.write(Page::Ready).await, Err("draining\n".into()));
    assert_eq!(metrics.write(Page::Health).await, Ok("ok\n".into()));
    kernel.shutdown().await;
}
