//! One step of a test run, and where it runs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, PipeReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long nothing may be said before it is asked whether there is still somebody to say it.
const SILENCE: Duration = Duration::from_millis(200);

type Work = Box<dyn Fn(&Workspace) -> Outcome>;

/// How a step ended.
pub(crate) enum Outcome {
    /// The tests named failed, and passed when each was run again by itself.
    Passed { flaky: Vec<String> },
    /// What failed, if that is known.
    Failed(Vec<String>),
}

impl From<bool> for Outcome {
    fn from(passed: bool) -> Self {
        if passed { Self::Passed { flaky: Vec::new() } } else { Self::Failed(Vec::new()) }
    }
}

/// Something that passes or fails.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    work: Work,
}

impl Step {
    pub(crate) fn new<O: Into<Outcome>>(
        name: &'static str,
        work: impl Fn(&Workspace) -> O + 'static,
    ) -> Self {
        Self { name, work: Box::new(move |workspace| work(workspace).into()) }
    }

    pub(crate) fn run(&self, workspace: &Workspace) -> Outcome {
        println!("==> {}", self.name);
        let started = Instant::now();
        let outcome = (self.work)(workspace);
        let verdict = if matches!(outcome, Outcome::Passed { .. }) { "ok" } else { "FAILED" };
        println!("==> {}: {verdict} in {:.0} s", self.name, started.elapsed().as_secs_f64());
        outcome
    }
}

/// The program that this one was built with.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
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
        self.command(Command::new(cargo()).args(arguments))
    }

    /// Runs from the root of the checkout.
    pub(crate) fn command(&self, command: &mut Command) -> bool {
        self.command_in("", command)
    }

    /// Runs in a folder, with the built binary and the tests' Python named in the environment.
    pub(crate) fn command_in(&self, folder: &str, command: &mut Command) -> bool {
        match self.prepared(folder, command).status() {
            Ok(status) => status.success(),
            Err(why) => {
                eprintln!("{command:?} cannot be started: {why}");
                false
            }
        }
    }

    /// Runs from the root and hands on each line of what is printed; whether it succeeded. None where it cannot run.
    pub(crate) fn read(&self, mut command: Command, mut line: impl FnMut(&str)) -> Option<bool> {
        let (reader, writer) = std::io::pipe().ok()?;
        self.prepared("", &mut command).stdout(writer.try_clone().ok()?).stderr(writer);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(why) => {
                eprintln!("{command:?} cannot be started: {why}");
                return None;
            }
        };
        // It holds the writing ends, and the last of them is how the reader learns of the end.
        drop(command);
        let lines = lines(reader);
        loop {
            match lines.recv_timeout(SILENCE) {
                Ok(said) => line(&said),
                // What a test left running keeps the pipe open; it is not waited for.
                Err(RecvTimeoutError::Timeout) if matches!(child.try_wait(), Ok(None)) => {}
                Err(_) => break,
            }
        }
        child.wait().ok().map(|status| status.success())
    }

    fn prepared<'command>(&self, folder: &str, command: &'command mut Command) -> &'command mut Command {
        command
            .current_dir(self.root.join(folder))
            .env("ECLOSION_BINARY", self.target("debug/eclosion"))
            .env("ECLOSION_TEST_PYTHON", crate::python::interpreter(self))
    }
}

fn lines(reader: PipeReader) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let said = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            line.clear();
            if sender.send(said).is_err() {
                return;
            }
        }
    });
    lines
}
