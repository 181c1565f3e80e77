//! One step of a test run, and where it runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

type Work = Box<dyn Fn(&Workspace) -> bool>;

/// Something that passes or fails.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    work: Work,
}

impl Step {
    pub(crate) fn new(name: &'static str, work: impl Fn(&Workspace) -> bool + 'static) -> Self {
        Self { name, work: Box::new(work) }
    }

    pub(crate) fn run(&self, workspace: &Workspace) -> bool {
        println!("==> {}", self.name);
        let started = Instant::now();
        let passed = (self.work)(workspace);
        println!("==> {}: {} in {:.0} s", self.name, verdict(passed), started.elapsed().as_secs_f64());
        passed
    }
}

fn verdict(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}

/// The checkout that is tested.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.ancestors().nth(2).unwrap_or(here).to_path_buf();
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Self { root, target }
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    pub(crate) fn target(&self, relative: &str) -> PathBuf {
        self.target.join(relative)
    }

    /// Copies a built file, because the next build may replace it.
    pub(crate) fn keep(&self, built: &str, kept: &str) -> bool {
        match std::fs::copy(self.target(built), self.target(kept)) {
            Ok(_) => true,
            Err(why) => {
                eprintln!("{built}: {why}");
                false
            }
        }
    }

    pub(crate) fn cargo(&self, arguments: &[&str]) -> bool {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        self.command(Command::new(cargo).args(arguments))
    }

    /// Runs from the root of the checkout.
    pub(crate) fn command(&self, command: &mut Command) -> bool {
        self.command_in("", command)
    }

    /// Runs in a folder, with the built binary and the tests' Python named in the environment.
    pub(crate) fn command_in(&self, folder: &str, command: &mut Command) -> bool {
        command
            .current_dir(self.root.join(folder))
            .env("ECLOSION_BINARY", self.target("debug/eclosion"))
            .env("ECLOSION_TEST_PYTHON", crate::python::interpreter(self));
        match command.status() {
            Ok(status) => status.success(),
            Err(why) => {
                eprintln!("{command:?} cannot be started: {why}");
                false
            }
        }
    }
}
