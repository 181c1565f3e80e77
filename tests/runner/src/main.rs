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
//! made anew when that changes. Steps go on after one has failed; the exit code says whether all passed.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this binary talks to whoever runs the tests")]

mod python;
mod step;

use std::process::ExitCode;

use step::{Step, Workspace};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let workspace = Workspace::find();
    match arguments.first().map(String::as_str) {
        None => run(&workspace, &[rust(), python::tests()]),
        Some("rust") => run(&workspace, &[rust()]),
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
    let failed: Vec<_> = steps.iter().filter(|step| !step.run(workspace)).collect();
    for step in &failed {
        eprintln!("FAILED: {}", step.name);
    }
    println!("steps: {} passed, {} failed", steps.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `cargo test` neither builds nor refreshes another crate's binary, so it is built first and handed over by path.
fn rust() -> Step {
    Step::new("rust tests", |workspace| {
        workspace.cargo(&["build", "--locked", "--package", "eclosion-cli"])
            && workspace.cargo(&["test", "--locked", "--workspace", "--no-fail-fast"])
    })
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
