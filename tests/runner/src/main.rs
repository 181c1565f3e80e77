//! The project's one test command, `cargo t`: builds the binary, makes what Python needs, runs every test.
//!
//! ```text
//! cargo t            everything
//! cargo t rust       cargo test of the whole workspace, with a fresh binary in ECLOSION_BINARY
//! cargo t python     pytest in python-workers
//! cargo t lint       rustfmt, clippy, features, ruff, basedpyright, drift of generated files
//! cargo crash N      N seeded rounds of killing; `cargo crash --seed S` repeats one
//! cargo t fuzz T 10m changed inputs for a decoder, for as long; the tests do the same for seconds
//! ```
//!
//! What Python needs is a virtual environment under `target/`, made from `python-workers/requirements-test.txt` and
//! made anew when that changes. Steps go on after one has failed; the exit code says whether all passed. A test that
//! fails is run once more by itself: if it passes then, it hung on chance, and the last lines name it as flaky.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this binary talks to whoever runs the tests")]

mod python;
mod report;
mod rust;
mod step;

use std::process::ExitCode;

use step::{Outcome, Step, Workspace};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let workspace = Workspace::find();
    match arguments.first().map(String::as_str) {
        None => run(&workspace, &[rust::tests(), python::tests()]),
        Some("rust") => run(&workspace, &[rust::tests()]),
        Some("python") => run(&workspace, &[python::tests()]),
        Some("lint") => run(&workspace, &lints()),
        Some("crash") => run(&workspace, &[crash(&arguments[1..])]),
        Some("fuzz") => run(&workspace, &[fuzz(&arguments[1..])]),
        Some(other) => {
            eprintln!("unknown: {other}; one of: rust, python, lint, crash, fuzz, or nothing for all tests");
            ExitCode::from(2)
        }
    }
}

fn run(workspace: &Workspace, steps: &[Step]) -> ExitCode {
    let mut failed = 0;
    let mut verdicts = Vec::new();
    for step in steps {
        let (word, names) = match step.run(workspace) {
            Outcome::Passed { flaky } if flaky.is_empty() => continue,
            Outcome::Passed { flaky } => ("FLAKY, passed by itself", flaky),
            Outcome::Failed(names) => {
                failed += 1;
                ("FAILED", names)
            }
        };
        verdicts.push(format!("{word}: {}", step.name));
        verdicts.extend(names.iter().map(|name| format!("    {name}")));
    }
    for line in verdicts {
        println!("{line}");
    }
    println!("steps: {} passed, {failed} failed", steps.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn crash(arguments: &[String]) -> Step {
    let arguments = arguments.to_vec();
    Step::new("crash rounds", move |workspace| {
        let mut command = vec!["run", "--locked", "--quiet", "--package", "eclosion-crash", "--"];
        command.extend(arguments.iter().map(String::as_str));
        workspace.cargo(&["build", "--locked", "--package", "eclosion-cli", "--features", "chaos"])
            && workspace.keep("debug/eclosion", "debug/eclosion-chaos")
            && workspace.cargo(&command)
    })
}

/// What the tests do for seconds, for as long as it is told.
fn fuzz(arguments: &[String]) -> Step {
    let arguments = arguments.to_vec();
    Step::new("changed inputs", move |workspace| {
        let mut command = vec!["run", "--locked", "--quiet", "--package", "eclosion-fuzz", "--"];
        command.extend(arguments.iter().map(String::as_str));
        workspace.cargo(&command)
    })
}

/// Each feature of the facade alone, as an embedder may ask for it; with none of them the example runs.
fn features(workspace: &Workspace) -> bool {
    let alone = ["", "sqlite", "ipc", "client", "config", "workers"];
    alone.iter().all(|feature| {
        let check = ["check", "--quiet", "--locked", "--package", "eclosion", "--no-default-features"];
        workspace.cargo(&[&check[..], &["--features", feature]].concat())
    }) && workspace.cargo(&[
        "run",
        "--quiet",
        "--locked",
        "--package",
        "eclosion",
        "--no-default-features",
        "--example",
        "embed",
    ])
}

fn lints() -> Vec<Step> {
    let mut steps = vec![
        Step::new("rustfmt", |workspace| workspace.cargo(&["fmt", "--all", "--check"])),
        Step::new("clippy", |workspace| {
            workspace.cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"])
        }),
    ];
    steps.push(Step::new("features of the library, one by one", features));
    steps.extend(python::lints());
    steps
}
