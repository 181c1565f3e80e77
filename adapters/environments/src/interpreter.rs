//! Who an interpreter is, as it says itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use eclosion_schemas::Error;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::failure;
use crate::process;

/// The oldest that the runtime is written for.
const VERSION_MIN: (u32, u32) = (3, 10);
/// pip that installs into another interpreter's environment.
const PIP_MIN: u32 = 23;
/// A cold disk, or a script in the place of the interpreter.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

const PROBE: &str = "\
import json, sys, sysconfig
try:
    import pip; pip = pip.__version__
except ImportError:
    pip = None
abi = sysconfig.get_config_var('SOABI') or sys.implementation.cache_tag
version = '.'.join(map(str, sys.version_info[:3]))
base = getattr(sys, '_base_executable', None) or sys.executable
print(json.dumps({'executable': sys.executable, 'base': base, 'version': version, 'abi': abi, 'pip': pip}))
";

/// One interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// Absolute; a virtual environment's own, where it is one.
    pub executable: PathBuf,
    /// The interpreter that a virtual environment was made from, else the same.
    pub base: PathBuf,
    pub version: String,
    /// What compiled modules must fit, such as `cpython-311-x86_64-linux-gnu`.
    pub abi: String,
    /// The version of its pip, where it has one.
    pub pip: Option<String>,
}

impl Interpreter {
    /// Asks it. A name is looked for on PATH.
    pub(crate) async fn probe(python: &Path) -> Result<Self, Error> {
        let mut command = process::command(python);
        command.args(["-I", "-c", PROBE]);
        let deadline = Instant::now() + PROBE_TIMEOUT;
        let said = process::run(command, deadline, |_| {}).await;
        let said = said.map_err(|failed| failure::interpreter(python, &failed.to_string()))?;
        // Behind whatever a site's start-up prints.
        let found = said.iter().rev().find_map(|line| serde_json::from_str::<Self>(line).ok());
        let found = found.ok_or_else(|| failure::interpreter(python, "it does not answer as Python does"))?;
        if !found.executable.is_absolute() || found.numbers() < Some(VERSION_MIN) {
            let text = format!("it is Python {}, and workers need 3.10 or newer", found.version);
            return Err(failure::interpreter(python, &text));
        }
        Ok(found)
    }

    fn numbers(&self) -> Option<(u32, u32)> {
        let mut parts = self.version.split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    }

    /// Its pip installs into environments that have none of their own.
    pub(crate) fn has_pip(&self) -> bool {
        let major = self.pip.as_ref().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        major.is_some_and(|major| major >= PIP_MIN)
    }

    /// What an environment's hash is made of. The base is what its virtual environments are made from.
    pub(crate) fn identity(&self) -> [String; 3] {
        let resolved = self.base.canonicalize().unwrap_or_else(|_| self.base.clone());
        [resolved.to_string_lossy().into_owned(), self.version.clone(), self.abi.clone()]
    }

    /// The ABI as part of a directory's name.
    pub(crate) fn abi_name(&self) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        self.abi.chars().take(64).map(|c| if is_plain(c) { c } else { '_' }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_an_old_pip_and_an_abi_that_could_reach_a_path() {
        let mut python = Interpreter {
            executable: "/p".into(),
            base: "/p".into(),
            version: "3.9.1".into(),
            abi: "../x".into(),
            pip: Some("22.3".into()),
        };
        assert!(!python.has_pip() && python.numbers() < Some(VERSION_MIN));
        assert_eq!(python.abi_name(), ".._x");
        python.pip = Some("24.0".into());
        python.version = "3.13.0".into();
        assert!(python.has_pip() && python.numbers() >= Some(VERSION_MIN));
    }
}
