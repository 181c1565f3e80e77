//! What the tests need of Python: a virtual environment, pytest, ruff and basedpyright.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::step::{Outcome, Step, Workspace};

const REQUIREMENTS: &str = "python-workers/requirements-test.txt";

/// The interpreter of the tests' environment, whether it is made yet or not.
pub(crate) fn interpreter(workspace: &Workspace) -> PathBuf {
    workspace.target("test-python/bin/python")
}

pub(crate) fn tests() -> Step {
    Step::new("python tests", |workspace| {
        // The client's tests are run at the real binary.
        let made = ensure(workspace) && workspace.cargo(&["build", "--locked", "--package", "eclosion-cli"]);
        if !made || in_package(workspace, &["-m", "pytest", "-q", "--cache-clear", "tests"]) {
            return Outcome::from(made);
        }
        let failed = last_failed(workspace);
        println!("once more: {}", failed.join(", "));
        let again = ["-m", "pytest", "-q", "--last-failed", "--last-failed-no-failures", "none", "tests"];
        if in_package(workspace, &again) {
            Outcome::Passed { flaky: failed }
        } else {
            Outcome::Failed(failed)
        }
    })
}

/// What pytest has noted: `{ "tests/test_feeds.py::test_name[asyncio]": true, … }`, one a line.
fn last_failed(workspace: &Workspace) -> Vec<String> {
    let noted = fs::read_to_string(workspace.path("python-workers/.pytest_cache/v/cache/lastfailed"));
    noted
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Some(line.trim().strip_prefix('"')?.split_once("\": ")?.0.to_owned()))
        .collect()
}

pub(crate) fn lints() -> Vec<Step> {
    let step = |name, arguments: &'static [&'static str]| {
        Step::new(name, move |workspace| ensure(workspace) && in_package(workspace, arguments))
    };
    let types = Step::new("basedpyright", |workspace| {
        // Told which interpreter, because it looks for packages where the first python3 on PATH has them.
        let python = interpreter(workspace);
        let python = python.to_string_lossy();
        ensure(workspace) && in_package(workspace, &["-m", "basedpyright", "--pythonpath", &python])
    });
    vec![
        step("ruff format", &["-m", "ruff", "format", "--check", "."]),
        step("ruff", &["-m", "ruff", "check", "."]),
        types,
    ]
}

fn in_package(workspace: &Workspace, arguments: &[&str]) -> bool {
    workspace.command_in("python-workers", Command::new(interpreter(workspace)).args(arguments))
}

/// Makes the environment, unless one of the same requirements is there. The copy of the requirements is its marker.
fn ensure(workspace: &Workspace) -> bool {
    let wanted = match fs::read(workspace.path(REQUIREMENTS)) {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("{REQUIREMENTS}: {why}");
            return false;
        }
    };
    let directory = workspace.target("test-python");
    let marker = directory.join("requirements.txt");
    if fs::read(&marker).is_ok_and(|made| made == wanted) {
        return true;
    }
    println!("making {}", directory.display());
    // Nothing there is as good as removed.
    let _ = fs::remove_dir_all(&directory);
    let made = workspace.command(Command::new("python3").args(["-m", "venv"]).arg(&directory));
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS];
    made && workspace.command(Command::new(interpreter(workspace)).args(pip))
        && fs::write(&marker, &wanted).is_ok()
}
