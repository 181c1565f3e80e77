//! A run that failed, run again: what was computed is counted by the steps themselves, in a file, so that what was taken
//! over is seen and not believed.
//!
//! Real binary, real kernel, real Python; the kernel is killed in between.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use support::House;
use support::runs::text;

/// Each call leaves its task's name in `ran`. `total` fails until there is a file `mended`.
const STEPS: &str = r#"
import pathlib

from eclosion import flow, task

HERE = pathlib.Path(__file__).parent


def ran(name):
    with (HERE / "ran").open("a") as file:
        file.write(name + "\n")


@task
def load(rows: int) -> list[int]:
    ran("load")
    return list(range(rows))


@task
def square(n: int) -> int:
    ran("square")
    return n * n


@task
def total(squares: list[int], bonus: int) -> int:
    ran("total")
    if not (HERE / "mended").exists():
        raise RuntimeError("it is not mended yet")
    return sum(squares) + bonus


@flow
def main(rows: int = 3, bonus: int = 0) -> int:
    return total(square.map(load(rows)), bonus=bonus)
"#;

const ALL: [&str; 5] = ["load", "square", "square", "square", "total"];

impl House {
    /// What was computed since this was asked last, in any order.
    fn ran(&self) -> Vec<String> {
        let ran = fs::read_to_string(self.path("ran")).unwrap_or_default();
        let _ = fs::remove_file(self.path("ran"));
        let mut ran: Vec<_> = ran.lines().map(str::to_owned).collect();
        ran.sort();
        ran
    }

    /// SIGKILL of the kernel in the background, and the next one.
    fn kill_and_start_again(&self) {
        let pid = self.json(&["status"])["pid"].as_u64().unwrap().to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        self.say(&["up"]);
    }

    /// A run that failed in its last step; its id.
    fn failed(&self) -> String {
        let output = self.output(&["run", "steps.py:main", "--json"]);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        let failed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let run = text(&failed["run"]).to_owned();
        let next = format!("Run what failed again: eclosion rerun {run}");
        assert!(failed["findings"].to_string().contains(&next), "{failed:#}");
        run
    }

    /// The fate of each step, as a rerun would have it.
    fn preview(&self, words: &[&str]) -> Vec<(String, String)> {
        let preview = self.json(&[&["rerun", "--dry-run"], words].concat());
        assert_eq!((&preview["schema"], &preview["run"]), (&json!("eclosion/rerun/v1"), &Value::Null));
        let steps = preview["steps"].as_array().unwrap();
        steps.iter().map(|step| (text(&step["task"]).to_owned(), text(&step["fate"]).to_owned())).collect()
    }
}

fn fates(wanted: [(&str, &str); 3]) -> Vec<(String, String)> {
    wanted.map(|(task, fate)| (task.to_owned(), fate.to_owned())).to_vec()
}

#[test]
fn after_a_killed_kernel_a_rerun_computes_only_what_failed() {
    let house = House::new(STEPS);
    house.say(&["up"]);
    let failed = house.failed();
    assert_eq!(house.ran(), ALL);

    house.kill_and_start_again();
    let wanted = fates([("load", "taken"), ("square", "taken"), ("total", "computed")]);
    assert_eq!(house.preview(&[&failed]), wanted);
    let told = house.say(&["rerun", &failed, "--dry-run"]);
    assert!(told.contains(&format!("reused from {failed}")) && told.contains("it has no result"), "{told}");
    assert_eq!(house.ran(), [""; 0], "a preview computes nothing");

    house.write("mended", "");
    let whole = house.json(&["rerun", &failed]);
    assert_eq!((&whole["result"], house.ran()), (&json!(5), vec!["total".to_owned()]));
    assert_eq!(whole["cache"], json!({"hits": 0, "misses": 0, "taken": 4}));
    let listed = house.say(&["runs", "ls"]);
    assert!(listed.contains("5 succeeded; 4 taken over"), "{listed}");

    // Everything is there: it is said, and how to compute all the same.
    let whole = text(&whole["run"]);
    let (code, said) = house.refused(&["rerun", whole]);
    assert_ne!(code, Some(0));
    assert!(said.contains(&format!("eclosion rerun {whole} --from TASK")), "{said}");
    let again = house.json(&["rerun", whole, "--from", "square[1]"]);
    assert_eq!((&again["result"], house.ran()), (&json!(5), vec!["square".to_owned(), "total".to_owned()]));
}

#[test]
fn edited_code_is_seen_and_its_results_are_taken_over_only_if_one_says_so() {
    let house = House::new(STEPS);
    house.say(&["up"]);
    let failed = house.failed();
    assert_eq!(house.ran(), ALL);
    house.write("steps.py", &STEPS.replace("if not (HERE / \"mended\").exists():", "if bonus < 0:"));

    assert_eq!(
        house.preview(&[&failed]),
        fates([("load", "computed"), ("square", "computed"), ("total", "computed")])
    );
    let kept = house.json(&["rerun", &failed, "--keep", "--set", "bonus=2"]);
    assert_eq!((&kept["result"], house.ran()), (&json!(7), vec!["total".to_owned()]));

    let detached = house.json(&["rerun", &failed, "--detach"]);
    assert_eq!(house.ended(text(&detached["run"]))["run"]["state"], "succeeded");
    assert_eq!(house.ran(), ALL);
}
