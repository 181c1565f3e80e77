//! uv or pip: the commands that they are given, and what their lines mean.

use std::path::{Path, PathBuf};

use eclosion_schemas::Error;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::Instant;

use crate::failure;
use crate::interpreter::Interpreter;
use crate::place::Unfinished;
use crate::process;

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// `interpreter`, `wait`, `create`, `resolve`, `download` or `install`.
    pub phase: String,
    /// For a person.
    pub text: String,
    /// Packages, where the resolver says how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

impl Progress {
    pub(crate) fn phase(phase: &str, text: impl Into<String>) -> Self {
        Self { phase: phase.into(), text: text.into(), done: None, total: None }
    }
}

/// Who installs packages for one interpreter.
#[derive(Debug)]
pub(crate) enum Resolver {
    Uv {
        uv: PathBuf,
        python: PathBuf,
    },
    /// The interpreter's own pip, installing elsewhere: an environment without pip is made in a tenth of the time.
    Pip {
        python: PathBuf,
    },
    /// The interpreter has no pip, or an old one: each environment gets the one that Python brings along.
    BundledPip {
        python: PathBuf,
    },
}

impl Resolver {
    pub(crate) fn find_uv() -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|directory| directory.join("uv")).find(|uv| uv.is_file())
    }

    pub(crate) fn choose(uv: Option<&Path>, interpreter: &Interpreter) -> Self {
        let python = interpreter.executable.clone();
        match uv {
            Some(uv) => Self::Uv { uv: uv.to_owned(), python },
            None if interpreter.has_pip() => Self::Pip { python },
            None => Self::BundledPip { python },
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Uv { .. } => "uv",
            Self::Pip { .. } | Self::BundledPip { .. } => "pip",
        }
    }

    /// Makes a virtual environment with these requirements.
    pub(crate) async fn environment(
        &self,
        place: &Unfinished,
        requirements: &[&str],
        deadline: Instant,
        progress: &impl Fn(Progress),
    ) -> Result<(), Error> {
        progress(Progress::phase("create", "making a virtual environment"));
        self.run(self.create(place.path()), place, deadline, progress).await?;
        progress(Progress::phase("resolve", format!("{} resolves {}", self.name(), requirements.join(", "))));
        let mut install = self.install(&place.path().join("bin/python"));
        install.args(requirements);
        self.run(install, place, deadline, progress).await
    }

    /// Puts one package into a directory, without what it needs.
    pub(crate) async fn package(
        &self,
        requirement: &str,
        place: &Unfinished,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut install = match self {
            Self::Uv { python, .. } | Self::Pip { python } => self.install(python),
            Self::BundledPip { .. } => {
                let borrowed = place.path().join("borrowed");
                self.run(self.create(&borrowed), place, deadline, &|_| {}).await?;
                self.install(&borrowed.join("bin/python"))
            }
        };
        install.args(["--no-deps", "--target"]).arg(place.path()).arg(requirement);
        self.run(install, place, deadline, &|_| {}).await
    }

    fn create(&self, path: &Path) -> Command {
        let mut command = match self {
            Self::Uv { uv, python } => {
                let mut command = process::command(uv);
                command.args(["venv", "--no-project", "--no-config", "--python"]).arg(python);
                command
            }
            Self::Pip { python } => {
                let mut command = process::command(python);
                command.args(["-I", "-m", "venv", "--without-pip"]);
                command
            }
            Self::BundledPip { python } => {
                let mut command = process::command(python);
                command.args(["-I", "-m", "venv"]);
                command
            }
        };
        command.arg(path);
        command
    }

    /// An installation for this interpreter; options and requirements follow.
    fn install(&self, target: &Path) -> Command {
        let mut command = match self {
            Self::Uv { uv, .. } => {
                let mut command = process::command(uv);
                command.args(["pip", "install", "--python"]).arg(target);
                return command;
            }
            Self::Pip { python } => {
                let mut command = process::command(python);
                command.args(["-I", "-m", "pip", "--python"]).arg(target);
                command
            }
            Self::BundledPip { .. } => {
                let mut command = process::command(target);
                command.args(["-I", "-m", "pip"]);
                command
            }
        };
        command.args(["--disable-pip-version-check", "--no-input", "install", "--progress-bar", "off"]);
        // The keeper's zygotes are not the place to compile; neither is a build to write under root's name unasked.
        command.args(["--no-warn-script-location", "--root-user-action=ignore"]);
        command
    }

    async fn run(
        &self,
        mut command: Command,
        place: &Unfinished,
        deadline: Instant,
        progress: &impl Fn(Progress),
    ) -> Result<(), Error> {
        // It writes at the final path: whoever holds the lock says whether it may still do so.
        command.stdin(place.lock()?);
        let mut reader = Reader::default();
        let on_line = |line: &str| {
            if let Some(update) = reader.read(line) {
                progress(update);
            }
        };
        let ran = process::run(command, deadline, on_line).await;
        ran.map(drop).map_err(|failed| failure::resolver(self.name(), place.path(), failed))
    }
}

/// Reads progress from the lines of either.
#[derive(Debug, Default)]
struct Reader {
    collected: u64,
    total: Option<u64>,
}

impl Reader {
    fn read(&mut self, line: &str) -> Option<Progress> {
        let (word, rest) = line.split_once(' ')?;
        let phase = match word {
            "Collecting" => {
                self.collected += 1;
                return Some(Progress {
                    done: Some(self.collected),
                    ..Progress::phase("resolve", first_word(rest))
                });
            }
            // uv: "Resolved 5 packages in 12ms".
            "Resolved" => {
                self.total = first_word(rest).parse().ok();
                "resolve"
            }
            "Downloading" | "Prepared" | "Using" | "Building" => "download",
            "Installing" => {
                let packages = rest.strip_prefix("collected packages: ")?;
                self.total = u64::try_from(packages.split(", ").count()).ok();
                return Some(Progress {
                    done: Some(0),
                    total: self.total,
                    ..Progress::phase("install", packages)
                });
            }
            // uv: "Installed 5 packages in 3ms"; pip: "Successfully installed a-1 b-2".
            "Installed" | "Successfully" => {
                let total = self.total;
                return Some(Progress { done: total, total, ..Progress::phase("install", line) });
            }
            _ => return None,
        };
        Some(Progress { total: self.total, ..Progress::phase(phase, line) })
    }
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Vec<(String, Option<u64>, Option<u64>)> {
        let mut reader = Reader::default();
        let updates = lines.iter().filter_map(|line| reader.read(line));
        updates.map(|update| (update.phase, update.done, update.total)).collect()
    }

    #[test]
    fn reads_how_far_pip_is() {
        let lines = [
            "Looking in links: /somewhere",
            "Collecting scikit-learn==1.5",
            "  Downloading x",
            "Downloading scikit_learn-1.5.whl (12 MB)",
            "Collecting numpy>=1 (from scikit-learn)",
            "Installing collected packages: numpy, scikit-learn",
            "Successfully installed numpy-2 scikit-learn-1.5",
        ];
        let expected = [
            ("resolve", Some(1), None),
            ("download", None, None),
            ("resolve", Some(2), None),
            ("install", Some(0), Some(2)),
            ("install", Some(2), Some(2)),
        ];
        assert_eq!(read(&lines), expected.map(|(phase, done, total)| (phase.to_owned(), done, total)));
    }

    #[test]
    fn reads_how_far_uv_is() {
        let lines = [
            "Resolved 3 packages in 5ms",
            "Prepared 1 package in 2ms",
            "Installed 3 packages in 1ms",
            " + six",
        ];
        let expected =
            [("resolve", None, Some(3)), ("download", None, Some(3)), ("install", Some(3), Some(3))];
        assert_eq!(read(&lines), expected.map(|(phase, done, total)| (phase.to_owned(), done, total)));
    }
}
