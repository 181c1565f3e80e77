//! What is generated is committed, and says what the source says.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

#[test]
fn generated_files_are_what_the_source_says() {
    let check = Command::new(env!("CARGO_BIN_EXE_export-schemas")).arg("--check").output().unwrap();
    let said = [check.stdout, check.stderr].concat();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// The exporter names each event once; nobody else reminds its author of a new one.
#[test]
fn every_event_is_exported() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let api = std::fs::read_to_string(root.join("json/api-1.json")).unwrap();
    let api: serde_json::Value = serde_json::from_str(&api).unwrap();
    let exported: BTreeSet<&str> =
        api["events"].as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    let families = std::fs::read_dir(root.join("src/events")).unwrap();
    let files = families.map(|file| file.unwrap().path()).chain([root.join("src/events.rs")]);
    let source: Vec<_> = files.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let declared: BTreeSet<&str> = source
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| line.starts_with("event!("))
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    assert_eq!(exported, declared);
}
