//! What README says under "Embed it" is what happens.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test, helpers and all")]

use std::path::Path;
use std::process::Command;

/// The command of a section, and the block behind it: what it prints.
fn said(readme: &str, heading: &str) -> (String, String) {
    let section = readme.split_once(heading).expect("the heading").1.split("\n## ").next().unwrap();
    let mut blocks = section.split("\n\n").filter(|block| block.starts_with("    "));
    let plain = |block: &str| block.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
    let command = plain(blocks.next().expect("a command"));
    (command, plain(blocks.next().expect("its output").trim_end()))
}

#[test]
fn the_command_prints_what_it_is_said_to_print() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let (command, output) = said(&readme, "## Embed it");
    let arguments = command.strip_prefix("cargo ").expect("a cargo command").split_whitespace();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let ran = Command::new(cargo).args(arguments).current_dir(&root).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(String::from_utf8(ran.stdout).unwrap().trim_end(), output);
}

#[test]
fn the_example_is_short_enough_to_be_read() {
    let example = include_str!("../../../adapters/eclosion/examples/embed.rs");
    assert!(example.lines().count() <= 60);
}
