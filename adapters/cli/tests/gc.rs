//! Retention on the real binary: what the plan shows is what goes, the disk gets its space back, what was collected can be
//! restored, and a kernel that is killed in the middle is followed by one that finishes.
//!
//! Real kernel, real Python, no packages. Nothing is collected by itself here: passes are asked for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use binary::eclosion;

/// What they make is kept as it is: no store can pack it.
const STEPS: &str = r#"
import random


def make(n):
    return random.Random(n).randbytes(80_000)
"#;

const FLOW: &str = r#"
schema = "eclosion/flow/v1"
name = "blobs"

[parameters]
first = 0

[tasks.make]
run = "steps:make"
each = "${param.list}"
with = { n = "${item}" }
"#;

struct House(TempDir);

impl House {
    fn new(count: usize) -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        let list: Vec<_> = (0..count).map(|n| n.to_string()).collect();
        let flow = FLOW.replace("first = 0", &format!("list = [{}]", list.join(", ")));
        fs::write(house.0.path().join("steps.py"), STEPS).unwrap();
        fs::write(house.0.path().join("flow.toml"), flow).unwrap();
        house
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = eclosion(self.0.path(), words);
        command
            .env("ECLOSION_RETENTION_INTERVAL_MS", "0")
            .env("ECLOSION_RETENTION_UNNAMED_MS", "0")
            .env("ECLOSION_RETENTION_RUN_COUNT_MAX", "0");
        command
    }

    fn document(&self, words: &[&str]) -> Value {
        let output = self.command(words).arg("--json").output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn run(&self) -> String {
        let output = self.command(&["run", "flow.toml", "--new", "--detach", "--json"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let run =
            serde_json::from_slice::<Value>(&output.stdout).unwrap()["run"].as_str().unwrap().to_owned();
        let ended = self.command(&["attach", &run]).output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        run
    }

    /// What the artifacts take on disk, in the trash or not.
    fn artifact_bytes(&self) -> u64 {
        measure(&self.0.path().join("state/default/artifacts"))
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.command(&["down"]).output();
    }
}

fn measure(path: &Path) -> u64 {
    let found = fs::symlink_metadata(path).unwrap();
    if !found.is_dir() {
        return found.blocks() * 512;
    }
    fs::read_dir(path).unwrap().map(|entry| measure(&entry.unwrap().path())).sum()
}

fn items(document: &Value) -> BTreeSet<String> {
    let of = |item: &Value| format!("{}/{}", item["item"]["kind"], item["item"]["id"]);
    document["items"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn what_the_plan_shows_goes_and_comes_back_and_its_space_is_given_back() {
    let house = House::new(3);
    let run = house.run();
    let before = house.artifact_bytes();
    let plan = house.document(&["gc", "plan"]);
    assert_eq!(plan["items"].as_array().unwrap().len(), 4, "{plan}");
    assert!(house.document(&["gc", "apply", "--dry-run"])["items"] == plan["items"]);

    let applied = house.document(&["gc", "apply", "--yes", "--reason", "a test"]);
    assert_eq!(applied["collected"], 4, "{applied}");
    let trash = house.document(&["gc", "trash"]);
    assert_eq!(items(&trash), items(&plan));
    assert_eq!(house.artifact_bytes(), before, "the trash can be restored");
    let refused = house.command(&["runs", "show", &run]).output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(3) && told.contains("run.collected"), "{told}");

    let restored = house.document(&["gc", "restore", &format!("run/{run}")]);
    assert_eq!(restored["restored"].as_array().unwrap().len(), 4, "{restored}");
    assert_eq!(house.document(&["runs", "show", &run])["run"]["run"], run.as_str());
    let verified = house.document(&["artifact", "verify"]);
    assert_eq!(
        (&verified["checked"], verified["bad"].as_array().unwrap().len()),
        (&3.into(), 0),
        "{verified}"
    );

    house.document(&["gc", "apply", "--yes"]);
    let emptied = house.document(&["gc", "trash", "--empty", "--reason", "a test"]);
    assert_eq!(emptied["purged"], 4, "{emptied}");
    let given_back = before - house.artifact_bytes();
    assert_eq!(emptied["freed_bytes"], given_back);
    assert!(given_back >= 3 * 80_000, "{given_back}");
    let log = house.document(&["gc", "log", "--limit", "100"]);
    let collected =
        log["records"].as_array().unwrap().iter().filter(|record| record["action"] == "collected");
    assert_eq!(collected.count(), 8, "{log}");
}

#[test]
fn a_kernel_killed_while_it_collects_is_followed_by_one_that_finishes() {
    let house = House::new(300);
    house.run();
    let pid = house.document(&["status"])["pid"].as_u64().unwrap().to_string();
    let mut apply = house.command(&["gc", "apply", "--yes"]).stderr(Stdio::null()).spawn().unwrap();
    // Some are in the trash, and most are not.
    let trash = house.0.path().join("state/default/artifacts/trash");
    while fs::read_dir(&trash).unwrap().count() < 5 {
        assert!(apply.try_wait().unwrap().is_none(), "it has ended before it was killed");
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    apply.wait().unwrap();

    assert!(house.command(&["up"]).output().unwrap().status.success());
    house.document(&["gc", "apply", "--yes"]);
    let trash = house.document(&["gc", "trash"]);
    assert_eq!(items(&trash).len(), 301);
    assert!(trash["items"].as_array().unwrap().iter().all(|item| item["state"] == "trashed"));
    house.document(&["gc", "trash", "--empty"]);
    assert_eq!(house.artifact_bytes(), 0);
    assert!(house.document(&["gc", "plan"])["items"].as_array().unwrap().is_empty());
}

#[test]
fn records_of_deletions_are_bounded_and_the_plan_shows_what_goes_of_them() {
    let house = House::new(1);
    let run = house.run();
    house.document(&["gc", "apply", "--yes"]);
    house.document(&["gc", "trash", "--empty"]);
    let records =
        |house: &House| house.document(&["gc", "log", "--limit", "100"])["records"].as_array().unwrap().len();
    let before = records(&house);
    assert!(before >= 4, "{before}");
    assert!(house.document(&["gc", "plan"])["items"].as_array().unwrap().is_empty());

    // A kernel that keeps fewer.
    assert!(house.command(&["down"]).output().unwrap().status.success());
    let few = ["--setting", "retention.record_count_max=1"];
    assert!(house.command(&[&["up"], &few[..]].concat()).output().unwrap().status.success());
    let plan = house.document(&["gc", "plan"]);
    assert_eq!(items(&plan), ["\"record\"/\"deletions\"".to_owned()].into(), "{plan}");
    assert_eq!(plan["items"][0]["rule"], "count");
    let applied = house.document(&["gc", "apply", "--yes"]);
    assert_eq!(applied["purged"], 1, "{applied}");
    assert_eq!(applied["freed_bytes"], plan["items"][0]["bytes"]);
    assert_eq!(records(&house), 1);
    assert!(house.document(&["gc", "plan"])["items"].as_array().unwrap().is_empty());
    let refused = house.command(&["runs", "show", &run]).output().unwrap();
    assert_eq!(refused.status.code(), Some(3), "it is not known, or known to be gone");
}
