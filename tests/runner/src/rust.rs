//! `cargo test` of the workspace: a line for each target, whole what failed, and once more what failed.

use std::io::Write;
use std::process::Command;

use crate::report::{Failure, Report, Show};
use crate::step::{self, Outcome, Step, Workspace};

/// `cargo test` neither builds nor refreshes another crate's binary, so it is built first and handed over by path.
pub(crate) fn tests() -> Step {
    Step::new("rust tests", |workspace| {
        let built = workspace.cargo(&["build", "--locked", "--package", "eclosion-cli"])
            && workspace.cargo(&["test", "--locked", "--workspace", "--no-run"]);
        if !built {
            return Outcome::Failed(vec!["it does not build".to_owned()]);
        }
        match test(workspace, &["--no-fail-fast"]) {
            Some(report) => again(workspace, &report.failures),
            None => Outcome::Failed(vec!["cargo test ended without saying why".to_owned()]),
        }
    })
}

/// Each failed test by itself. One that passes then hangs on chance: it is named and fails nobody's change.
fn again(workspace: &Workspace, failures: &[Failure]) -> Outcome {
    let (mut flaky, mut failed) = (Vec::new(), Vec::new());
    for failure in failures {
        let target = failure.target.join(" ");
        if failure.tests.is_empty() {
            failed.push(format!("{target}: its process died"));
            continue;
        }
        println!("once more: {target}: {}", failure.tests.join(", "));
        let mut arguments: Vec<&str> = failure.target.iter().map(String::as_str).collect();
        arguments.extend(["--", "--exact", "--test-threads=1"]);
        arguments.extend(failure.tests.iter().map(String::as_str));
        let passed = test(workspace, &arguments)
            .is_some_and(|report| report.failures.is_empty() && report.passed >= failure.tests.len());
        let named = failure.tests.iter().map(|test| format!("{target}: {test}"));
        if passed { flaky.extend(named) } else { failed.extend(named) }
    }
    if failed.is_empty() { Outcome::Passed { flaky } } else { Outcome::Failed(failed) }
}

/// None where cargo failed and no target did.
fn test(workspace: &Workspace, arguments: &[&str]) -> Option<Report> {
    let mut report = Report::default();
    let passed = workspace.read(cargo(arguments), |line| show(report.read(line)))?;
    (passed || !report.failures.is_empty()).then_some(report)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(step::cargo());
    // The names of targets are what is read here, whatever else is to be quiet.
    cargo.args(["test", "--locked", "--workspace"]).args(arguments).env("CARGO_TERM_QUIET", "false");
    cargo
}

fn show(what: Show) {
    match what {
        Show::Nothing => {}
        Show::Target(name) => {
            print!("{name}: ");
            // A line that begins is seen before it ends, where somebody looks.
            let _ = std::io::stdout().flush();
        }
        Show::Ended(how) => println!("{how}"),
        Show::Whole(lines) => println!("FAILED\n{}", lines.join("\n")),
        Show::Line(line) => println!("{line}"),
    }
}
