//! What README says under "Measure it" is what is printed, but for the figures, which are the machine's.

#![expect(clippy::unwrap_used, reason = "a test, helpers and all")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn measure(words: &[&str]) -> String {
    let ran = Command::new(env!("CARGO_BIN_EXE_eclosion-benches")).args(words).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

/// The words that stay when the machine changes.
fn shape(text: &str) -> Vec<String> {
    let is_word = |word: &&str| {
        let figure = word.trim_matches(|c: char| "(),%:".contains(c));
        let is_unit = ["ns", "µs", "ms", "s", "met", "MISSED", "…"].contains(&figure);
        !is_unit && !figure.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    // Which machine it was, and which commit.
    let lines = text
        .lines()
        .map(|line| line.split("  (x86").next().unwrap_or(line).split("  (aarch").next().unwrap());
    lines
        .map(|line| line.split_whitespace().filter(is_word).collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn the_command_prints_what_it_is_said_to_print() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let section = readme.split_once("## Measure it").expect("the heading").1.split("\n## ").next().unwrap();
    let mut blocks = section.split("\n\n").filter(|block| block.starts_with("    "));
    let command = blocks.next().expect("a command").trim();
    let words: Vec<_> = command.strip_prefix("cargo measure ").expect("ours").split_whitespace().collect();
    assert_eq!(shape(&measure(&words)), shape(blocks.next().expect("its output")));
}

#[test]
fn as_json_each_budget_is_a_line_with_floor_and_peer_and_their_histograms() {
    let lines = measure(&["b2", "--json"]);
    let report: Value = serde_json::from_str(lines.trim_end()).expect("one line for one budget");
    let rows = report["rows"].as_array().unwrap();
    let roles: Vec<_> = rows.iter().map(|row| row["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["floor", "peer", "us"]);
    for row in rows {
        let histogram = &row["histogram"];
        assert!(histogram["hdr"].as_str().unwrap().starts_with("HISTFAAA"), "{histogram}");
        assert!(histogram["count"].as_u64().unwrap() > 1_000, "{histogram}");
        let quantile = |name: &str| histogram[name].as_f64().unwrap();
        assert!(quantile("min") <= quantile("p50") && quantile("p50") <= quantile("p99"), "{histogram}");
        assert!(quantile("p99") <= quantile("max"), "{histogram}");
    }
    assert!(report["ratios"].as_array().unwrap().iter().all(|ratio| ratio["budget"].is_number()));
}

#[test]
fn a_budget_that_there_is_not_is_refused_with_those_that_there_are() {
    let refused = Command::new(env!("CARGO_BIN_EXE_eclosion-benches")).arg("b99").output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("there is no `b99`") && said.contains("b18"), "{said}");
    assert!(said.ends_with(&measure(&["--help"])), "{said}");
}
